"""First intersection of rays with the zero set of any signed distance function.

One tracer for all configurations: sphere tracing (Hart 1996) with over-relaxation (Keinert et al. 2014), from both
ends, with the uniform sampler and the secant search of IDR (Yariv et al. 2020, supplementary material). It runs as a
wavefront: PyTorch evaluates the SDF on the compacted points of the rays that still march, the ops advance those rays
and emit the next points. The maths per ray is in csrc/kernels/sphere_trace.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from nsr import _ext
from nsr.ops.reference import sphere_trace as reference
from nsr.ops.reference.sphere_trace import Status, column
from nsr.types import Rays, SurfaceHits

SDF = Callable[[Tensor], Tensor]
MAX_SAMPLED_POINTS = 1_000_000  # points of the sampler that exist at a time


@dataclass(frozen=True)
class TraceOptions:
    """What the tracer does; the defaults are IDR's.

    radius: of the bounding sphere around the origin; rays are followed within it, from their origin if that is inside.
    max_iterations: steps per end. A ray that has not met the surface after so many goes to the sampler.
    threshold: |f| accepted as the surface; 0 accepts only a change of sign, which the secant search then refines.
    relaxation: steps are so many times f, undone where the spheres of their ends leave a gap; 1 is plain marching.
    min_step: shortest step. It forces a ray through to a change of sign, and through features thinner than itself.
    both_ends: also march from the far end, which ends misses early and shortens the interval of the sampler.
    line_search_steps: after an overshoot (f < 0) so many times halve the step before accepting the change of sign.
    sampler_steps: uniform samples between the ends of a ray that is not finished after the march; the first change from
        + to - counts. 0: such a ray is a miss.
    secant_steps: of the bracketed (Illinois) secant search after a change of sign; ends early at |f| <= 1e-6.
    min_sdf_samples: uniform samples for the smallest SDF along a ray off the surface, when a mask is given; 0 uses the
        samples of the march, which for a ray outside the mask then goes on behind a hit for as long as f falls.

    Raises:
        ValueError: a value out of range, or a combination that can accept no hit.
    """

    radius: float = 1.0
    max_iterations: int = 10
    threshold: float = 5.0e-5
    relaxation: float = 1.0
    min_step: float = 0.0
    both_ends: bool = True
    line_search_steps: int = 3
    sampler_steps: int = 100
    secant_steps: int = 8
    min_sdf_samples: int = 100

    def __post_init__(self) -> None:
        at_least = {"max_iterations": 1, "threshold": 0, "relaxation": 1, "min_step": 0, "line_search_steps": 0}
        at_least |= {"sampler_steps": 0, "secant_steps": 0, "min_sdf_samples": 0}
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {least} or more")
        if not self.radius > 0:
            raise ValueError(f"radius is {self.radius!r}; expected more than 0")
        if self.relaxation >= 2:
            raise ValueError(f"relaxation is {self.relaxation!r}; expected 1 to 2 (2 excluded)")
        if self.sampler_steps == 1 or self.min_sdf_samples == 1:
            raise ValueError("sampler_steps and min_sdf_samples are 0 (off) or 2 and more; got 1")
        if self.threshold == 0 and self.min_step == 0 and self.sampler_steps == 0:
            raise ValueError(
                "threshold: with threshold 0, min_step 0 and sampler_steps 0 a ray only approaches the surface and "
                "never hits it; set one of them"
            )


@torch.no_grad()
def trace(sdf: SDF, rays: Rays, options: TraceOptions, object_mask: Bool[Tensor, " N"] | None = None) -> SurfaceHits:
    """Where rays first meet the surface sdf(x) = 0, without gradient.

    A hit is the first change of sign along the ray (or |f| <= threshold): from outside to inside, and from inside to
    outside for a ray that starts inside the object. The result of a ray does not depend on the others of the batch. An
    SDF that is NaN along a ray makes it a miss.

    Args:
        sdf: maps points [M, 3] to signed distances [M], negative inside; called with M >= 1, any number of times. M is
            up to 2 N, or 1e6 in the sampler: a model that cannot take so many chunks them itself.
        rays: N rays, scene frame, unit directions.
        options: see TraceOptions.
        object_mask: [N] bool, which rays are known to see the object. In training: rays outside it get the distance
            of their smallest SDF even where they hit (IDR's mask loss), and min_sdf_samples applies.

    Returns:
        SurfaceHits. `hit` is what the SDF says, whatever the mask. `distance` is that of the intersection for hits
        (inside the mask, if any); of the smallest SDF met for other rays; of the closest approach to the origin, not
        below 0, for rays that miss the bounding sphere.

    Raises:
        ValueError: rays, mask or values of sdf of the wrong shape or dtype.
    """
    origins, directions = checked_rays(rays, object_mask)
    tracer = _Tracer(sdf, origins, directions, options, object_mask)
    if origins.shape[0] > 0:
        tracer.march()
        tracer.sample_unfinished()
        tracer.refine()
        tracer.search_minimum()
    return tracer.hits()


def checked_rays(rays: Rays, object_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    origins, directions = rays.origins, rays.directions
    if origins.dim() != 2 or origins.shape[1] != 3 or origins.shape != directions.shape:
        shapes = f"{list(origins.shape)} and {list(directions.shape)}"
        raise ValueError(f"trace: rays have origins and directions of shape {shapes}; expected [N, 3] twice")
    if origins.dtype != directions.dtype or origins.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"trace: rays are {origins.dtype} and {directions.dtype}; expected float32 or float64 twice")
    if object_mask is not None and (object_mask.dtype != torch.bool or object_mask.shape != origins.shape[:1]):
        raise ValueError(f"trace: object_mask is {object_mask.dtype} {list(object_mask.shape)}; expected bool [{len(origins)}]")
    return origins.detach().contiguous(), directions.detach().contiguous()


class _Tracer:
    """The phases of one call of trace, over the state of its rays."""

    def __init__(
        self, sdf: SDF, origins: Tensor, directions: Tensor, options: TraceOptions, object_mask: Tensor | None
    ) -> None:
        self.ops = reference if _ext.backend() == "reference" else torch.ops.nsr
        self.sdf, self.origins, self.directions, self.options = sdf, origins, directions, options
        self.object_mask = object_mask
        self.evaluations = 0
        seek = ~object_mask if object_mask is not None and options.min_sdf_samples == 0 else None
        self.state, self.flags = self.ops.sphere_trace_start(origins, directions, options.radius, seek)
        self.status = column(self.flags, "status")
        self.hit_distance = torch.zeros_like(origins[:, 0])
        self.sampled = torch.zeros_like(self.status, dtype=torch.bool)

    def evaluate(self, points: Tensor) -> Tensor:
        values = self.sdf(points)
        if values.shape != points.shape[:1]:
            raise ValueError(f"trace: sdf returned {list(values.shape)} for {list(points.shape)} points; expected [M]")
        self.evaluations += points.shape[0]
        return values.to(points.dtype).contiguous()

    def march(self) -> None:
        """Until every ray has met the surface, left the sphere, or run out of iterations."""
        o = self.options
        steps = (o.max_iterations, o.line_search_steps, o.threshold, o.relaxation, o.min_step)
        fronts = 2 * (self.status == Status.MARCHING).nonzero()[:, 0]
        items = torch.stack([fronts, fronts + 1], 1).flatten() if o.both_ends else fronts
        rays = (self.origins, self.directions)
        items, points = self.ops.sphere_trace_march_(self.state, self.flags, items, None, *rays, *steps)
        while items.numel() > 0:
            values = self.evaluate(points)
            items, points = self.ops.sphere_trace_march_(self.state, self.flags, items, values, *rays, *steps)
        self.hit_distance.copy_(column(self.state, "hi_t"))

    def sample_unfinished(self) -> None:
        """Brackets the first change of sign between the ends of the rays that ran out of iterations."""
        if self.options.sampler_steps == 0:
            return
        unfinished = (self.status == Status.UNFINISHED).nonzero()[:, 0]
        for rays in unfinished.split(max(1, MAX_SAMPLED_POINTS // self.options.sampler_steps)):
            begin, end = column(self.state, "from_t")[rays], column(self.state, "far")[rays]
            t, values = self._sample(rays, begin, end, self.options.sampler_steps)
            orientation = column(self.flags, "orientation")[rays].to(values.dtype)
            crossing, minimum = self.ops.sphere_trace_scan(values, orientation)
            self._keep_minimum(rays, t, values, minimum)
            found = crossing < self.options.sampler_steps
            self.status[rays] = torch.where(found, int(Status.BRACKETED), int(Status.MISSED)).int()
            rays, high = rays[found], crossing[found, None]
            t, g = t[found], (values * orientation[:, None])[found]
            for name, source, index in (("from_t", t, -1), ("from_g", g, -1), ("hi_t", t, 0), ("hi_g", g, 0)):
                column(self.state, name)[rays] = source.gather(1, high + index)[:, 0]
        self.sampled[unfinished] = True

    def refine(self) -> None:
        """Secant search in the brackets."""
        bracketed = self.status == Status.BRACKETED
        if self.object_mask is not None:
            bracketed = bracketed & self.object_mask  # the distances of other hits are not returned
        rays = bracketed.nonzero()[:, 0]
        ends = [column(self.state, name)[rays] for name in ("from_t", "from_g", "hi_t", "hi_g")]
        orientation = column(self.flags, "orientation")[rays].to(self.state.dtype)
        brackets = torch.stack([*ends, ends[0], torch.zeros_like(ends[0]), orientation], 1)
        origins, directions = self.origins[rays], self.directions[rays]
        rows = torch.arange(len(rays), device=rays.device)
        rows, points = self.ops.sphere_trace_secant_(brackets, rows, None, origins, directions)
        for _ in range(self.options.secant_steps):
            if rows.numel() == 0:
                break
            rows, points = self.ops.sphere_trace_secant_(brackets, rows, self.evaluate(points), origins, directions)
        self.hit_distance[rays] = column(brackets, "t")

    def search_minimum(self) -> None:
        """Uniform samples for the smallest SDF: of rays that miss in the mask, and of all rays outside it."""
        samples = self.options.min_sdf_samples
        if self.object_mask is None or samples == 0:
            return
        hit = self._hit()
        wanted = ~(hit & self.object_mask) & (self.status != Status.OUTSIDE) & ~self.sampled
        for rays in wanted.nonzero()[:, 0].split(max(1, MAX_SAMPLED_POINTS // samples)):
            begin = torch.where(hit[rays], column(self.state, "hi_t")[rays], column(self.state, "near")[rays])
            t, values = self._sample(rays, begin, column(self.state, "exit")[rays], samples)
            _, minimum = self.ops.sphere_trace_scan(values, torch.ones_like(begin))
            self._keep_minimum(rays, t, values, minimum)

    def _sample(self, rays: Tensor, begin: Tensor, end: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Distances and SDF values [R, S] at uniform distances, both ends included."""
        fraction = torch.linspace(0, 1, samples, dtype=begin.dtype, device=begin.device)
        t = begin[:, None] + (end - begin)[:, None] * fraction
        points = self.origins[rays, None] + t[..., None] * self.directions[rays, None]
        return t, self.evaluate(points.reshape(-1, 3)).view_as(t)

    def _keep_minimum(self, rays: Tensor, t: Tensor, values: Tensor, minimum: Tensor) -> None:
        t, f = t.gather(1, minimum[:, None])[:, 0], values.gather(1, minimum[:, None])[:, 0]
        better = f < column(self.state, "best_f")[rays]
        column(self.state, "best_t")[rays[better]] = t[better]
        column(self.state, "best_f")[rays[better]] = f[better]

    def _hit(self) -> Tensor:
        status = self.status
        return (status == Status.CONVERGED) | (status == Status.BRACKETED) | (status == Status.PASSED)

    def hits(self) -> SurfaceHits:
        hit = self._hit()
        on_surface = hit if self.object_mask is None else hit & self.object_mask
        distance = torch.where(on_surface, self.hit_distance, column(self.state, "best_t"))
        return SurfaceHits(distance, hit, self.evaluations)


@_ext.on_load
def _register() -> None:
    """Attaches shapes for tracing to the native ops; the tracer has no derivatives."""
    fake = torch.library.register_fake

    def compacted(items, values, origins):
        count = items.shape[0] if values is None else torch.library.get_ctx().new_dynamic_size()
        return items.new_empty(count), origins.new_empty(count, 3)

    @fake("nsr::sphere_trace_start")
    def _(origins, directions, radius, seek_minimum):
        rays = origins.shape[0]
        state = origins.new_empty(rays, len(reference.STATE))
        return state, origins.new_empty(rays, len(reference.FLAGS), dtype=torch.int32)

    @fake("nsr::sphere_trace_march_")
    def _(state, flags, items, values, origins, directions, *options):
        return compacted(items, values, origins)

    @fake("nsr::sphere_trace_secant_")
    def _(brackets, rows, values, origins, directions):
        return compacted(rows, values, origins)

    @fake("nsr::sphere_trace_scan")
    def _(values, orientation):
        rays = values.shape[0]
        return values.new_empty(rays, dtype=torch.long), values.new_empty(rays, dtype=torch.long)
