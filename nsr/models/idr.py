"""The IDR model: trace rays to the surface, make the intersection differentiable, shade it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nsr.encoders import Encoder
from nsr.geometry.voxels import Voxels
from nsr.models.implicit_network import ImplicitNetwork, ImplicitNetworkConfig
from nsr.models.intersection import differentiable_intersection
from nsr.models.rendering_network import RenderingNetwork, RenderingNetworkConfig
from nsr.models.rows import first_rows, rows_where
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.ops.trace_sdf_network import trace_sdf_network
from nsr.types import Rays, RenderOutput, SurfaceHits

RENDER_PATIENCE = 5  # times the tracer iterations of a training step


@dataclass(frozen=True)
class ModelConfig:
    """The two networks and the tracer between them.

    reevaluate: shade with normal and feature evaluated anew at the differentiable intersection, as IDR does (they then
    depend on the network through the point too); without, one evaluation per point serves all terms. Where the cameras are
    trained they are always evaluated anew, since the colour must follow the cameras.
    min_cosine: see differentiable_intersection.
    """

    implicit_network: ImplicitNetworkConfig = field(default_factory=ImplicitNetworkConfig)
    rendering_network: RenderingNetworkConfig = field(default_factory=RenderingNetworkConfig)
    ray_tracer: TraceOptions = field(default_factory=TraceOptions)
    reevaluate: bool = True
    min_cosine: float = 0.01

    def __post_init__(self) -> None:
        if self.rendering_network.normalise_features and self.implicit_network.feature_size < 2:
            raise ValueError(
                "rendering_network.normalise_features is true: expected implicit_network.feature_size of 2 or more, since one "
                f"number normalised is always 0; got {self.implicit_network.feature_size}"
            )

    def check_device(self, kind: str) -> None:
        """Raises what the encoders raise where they cannot be trained on a device of this kind; see EncoderConfig."""
        rendering = self.rendering_network
        for encoder in (self.implicit_network.encoder, rendering.point_encoder, rendering.view_encoder):
            encoder.options.check_device(kind)


class Padding(NamedTuple):
    """Which rows of a padded TrainingOutput count: of points, normal and rgb, surface [N]; of free_sdf, empty [F]; of the two
    gradients of neighbours, centres [M]. All bool."""

    surface: Tensor
    empty: Tensor
    centres: Tensor


class TrainingOutput(NamedTuple):
    """What the losses of a step of N rays need; S of the rays hit the surface inside the mask, and not in free space.

    surface: [N] bool, those S rays; ray: [S], which they are; free: [N] bool, the rays that hit it where nothing is;
    points: [S, 3], the differentiable intersections, as if the cameras were fixed; normal: [S, 3], the SDF's gradient there
    (not normalised); rgb: [S, 3];
    sdf: [N] at the hit, or at the ray's smallest SDF where it misses;
    free_sdf: [F], at those of the volume's points where nothing is;
    gradient: [P, 3] of the SDF at all points of the step (rays, volume, neighbours), for the eikonal term;
    centre_gradient, neighbour_gradient: [M, 3] at M of the ray points and at a point beside each.
    padding: None, or where the rows of these end that count: then S = N, F and M are the numbers of points that were asked
    for, and rows behind the ones described above are there for the shape alone.
    """

    surface: Tensor
    ray: Tensor
    free: Tensor
    points: Tensor
    normal: Tensor
    rgb: Tensor
    sdf: Tensor
    free_sdf: Tensor
    gradient: Tensor
    centre_gradient: Tensor
    neighbour_gradient: Tensor
    padding: Padding | None = None


class IDRModel(nn.Module):
    """Implicit network and rendering network over one scene, in the scene frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.implicit_network = ImplicitNetwork(config.implicit_network)
        self.rendering_network = RenderingNetwork(config.rendering_network, config.implicit_network.feature_size)

    @classmethod
    def build(cls, config: ModelConfig, seed: int) -> IDRModel:
        """A model whose initial weights depend on the seed alone; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    def with_appearance_of(self, other: IDRModel) -> IDRModel:
        """This surface in the colours of another model's rendering network: a model of the networks themselves, not of copies.

        Raises ValueError where the rendering network expects features of another size.
        """
        sizes = [model.config.implicit_network.feature_size for model in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"with_appearance_of: expected features of size {sizes[1]}, as the other model's; got {sizes[0]}")
        model = IDRModel.build(replace(self.config, rendering_network=other.config.rendering_network), seed=0)
        model.implicit_network, model.rendering_network = self.implicit_network, other.rendering_network
        return model.train(self.training)

    @property
    def bounding_radius(self) -> float:
        """Radius of the sphere about the origin outside which there is nothing, scene units."""
        return self.config.ray_tracer.radius

    def set_progress(self, geometry: float, appearance: float) -> None:
        """Coarse to fine: how much of the encoders' detail the surface and its colour may use, both in 0..1."""
        self.implicit_network.encoder.set_progress(geometry)
        for encoder in self._color_encoders():
            encoder.set_progress(appearance)

    def shown_detail(self) -> tuple[int | None, ...]:
        """The levels that the encoders of surface and colour show after set_progress, None for one that has none."""
        return tuple(encoder.active_levels for encoder in (self.implicit_network.encoder, *self._color_encoders()))

    def _color_encoders(self) -> list[Encoder]:
        """Of points and, where the colour depends on them, of view directions."""
        encoders = (self.rendering_network.point_encoder, self.rendering_network.view_encoder)
        return [encoder for encoder in encoders if encoder is not None]

    def sdf(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """Signed distance at scene-frame points, negative inside."""
        return self.implicit_network.sdf(x)

    def color(self, points: Float[Tensor, "N 3"], view_dirs: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """rgb in [0, 1] of surface points seen along unit directions (from the camera)."""
        surface = self.implicit_network(points)
        return self.rendering_network(points, surface.gradient, view_dirs, surface.feature)

    def trace(self, rays: Rays, object_mask: Bool[Tensor, " N"] | None = None) -> SurfaceHits:
        """First intersections, without gradient. See nsr.ops.sphere_trace.trace."""
        return self._trace(rays, self.config.ray_tracer, object_mask)

    def _trace(self, rays: Rays, options: TraceOptions, object_mask: Tensor | None = None) -> SurfaceHits:
        """In one op where there is one for the network, else as a wavefront around it."""
        network = self.implicit_network.fused()
        if network is not None:
            return trace_sdf_network(network, rays, options, object_mask)
        return trace(self.sdf, rays, options, object_mask)

    @torch.no_grad()
    def render(self, rays: Rays, chunk: int | None = None) -> RenderOutput:
        """Colour, unit normal and distance of N rays, `chunk` rays at a time (None: what suits the device)."""
        if chunk is None:
            # Fused networks need little memory per ray, and a GPU is not filled by fewer.
            fused = self.implicit_network.fused() is not None and self.rendering_network.fused() is not None
            chunk = 2**20 if fused and rays.origins.device.type != "cpu" else 2**16
        parts = []
        for begin in range(0, rays.origins.shape[0], chunk):
            parts.append(self._render_chunk(rays[begin : begin + chunk]))
        if not parts:
            empty = rays.origins.new_zeros(0)
            return RenderOutput(rays.origins, rays.origins, empty, empty.bool())
        return RenderOutput(*(torch.cat([getattr(p, f) for p in parts]) for f in ("rgb", "normal", "distance", "hit")))

    def _render_chunk(self, rays: Rays) -> RenderOutput:
        # A training step can do without the few rays that creep along a silhouette; a picture shows a hole for each.
        options = replace(self.config.ray_tracer, max_iterations=RENDER_PATIENCE * self.config.ray_tracer.max_iterations)
        hits = self._trace(rays, options)
        rgb = torch.ones_like(rays.origins)
        normal = torch.zeros_like(rays.origins)
        index = hits.hit.nonzero()[:, 0]
        if index.numel():
            rgb[index], gradient = self._shade(rays, hits, index)
            normal[index] = F.normalize(gradient, dim=-1)
        return RenderOutput(rgb, normal, hits.distance * hits.hit, hits.hit)

    def surface_colors(
        self, rays: Rays, padded: bool = False
    ) -> tuple[Float[Tensor, "S 3"], Int[Tensor, " S"], Bool[Tensor, " S"] | None]:
        """Colours of what rays see of the surface as it is: rgb [S, 3], which [S] of the rays hit it, and None.

        Differentiable with respect to the rendering network alone. padded: S is the number of rays, and the last tells which
        rows count.
        """
        hits = self.trace(rays)
        index = rows_where(hits.hit, padded)
        return self._shade(rays, hits, index)[0], index, first_rows(hits.hit) if padded else None

    def _shade(self, rays: Rays, hits: SurfaceHits, index: Tensor) -> tuple[Tensor, Tensor]:
        """rgb and the SDF's gradient, [S, 3] both, where the rays `index` hit; without gradient for the surface."""
        directions = rays.directions.index_select(0, index)
        with torch.no_grad():
            points = rays.at(hits.distance).index_select(0, index)
            surface = self.implicit_network(points)
        return self.rendering_network(points, surface.gradient, directions, surface.feature), surface.gradient

    def forward(
        self,
        rays: Rays,
        object_mask: Bool[Tensor, " N"],
        volume_points: Float[Tensor, "U 3"],
        neighbour_offsets: Float[Tensor, "M 3"],
        free_space: Voxels | None = None,
        padded: bool = False,
    ) -> TrainingOutput:
        """One training step's forward pass.

        object_mask: which of the N rays see the object; volume_points: where else the eikonal term looks;
        neighbour_offsets: M <= N displacements; ray points 0 .. M - 1 get a neighbour at that offset, whose gradient joins the
        eikonal term and serves the smoothness term; free_space: where a surface is known to be wrong; padded: with shapes that
        do not depend on what the rays hit, see TrainingOutput.padding.
        """
        with torch.no_grad():
            hits = self.trace(Rays(rays.origins.detach(), rays.directions.detach()), object_mask)
        points = rays.at(hits.distance)
        in_free_space = torch.zeros_like(hits.hit) if free_space is None else free_space.contain(points.detach())
        surface = hits.hit & object_mask & ~in_free_space
        n, m = points.shape[0], neighbour_offsets.shape[0]
        neighbours = points[:m].detach() + neighbour_offsets
        # As in IDR, the eikonal and smoothness terms do not see the cameras: they would move them to where they are small.
        field_ = self.implicit_network(torch.cat([points.detach(), volume_points, neighbours]))
        sdf, gradient = field_.sdf[:n], field_.gradient[:n]
        with_cameras = points.requires_grad
        if with_cameras:  # the mask term and the intersection do: add d f(x) = grad f . dx, which is 0 in value
            sdf = sdf + (gradient.detach() * (points - points.detach())).sum(dim=-1)

        ray = rows_where(surface, padded)  # index_select with it is several times faster than [] with either
        directions, normal = rays.directions.index_select(0, ray), gradient.index_select(0, ray)
        crossing = differentiable_intersection(
            points.index_select(0, ray), directions, sdf.index_select(0, ray), normal, self.config.min_cosine
        )
        shaded = (
            self.implicit_network(crossing)
            if self.config.reevaluate or with_cameras
            else field_._replace(gradient=normal, feature=field_.feature.index_select(0, ray))
        )
        if with_cameras:  # the terms of the shape would see half of a derivative: they take the other cameras as fixed
            fixed = points.detach().index_select(0, ray), directions.detach(), field_.sdf[:n].index_select(0, ray)
            of_shape = differentiable_intersection(*fixed, normal, self.config.min_cosine), normal
        else:
            of_shape = crossing, shaded.gradient
        rgb = self.rendering_network(crossing, shaded.gradient, directions, shaded.feature)
        of_volume = field_.sdf[n : n + volume_points.shape[0]]
        of_volume = of_volume[:0] if free_space is None else of_volume
        empty = torch.ones_like(of_volume, dtype=torch.bool) if free_space is None else free_space.contain(volume_points)
        centres = rows_where(surface[:m], padded)
        return TrainingOutput(
            surface=surface,
            ray=ray,
            free=hits.hit & in_free_space,
            points=of_shape[0],
            normal=of_shape[1],
            rgb=rgb,
            sdf=sdf,
            free_sdf=of_volume if padded else of_volume[empty],
            gradient=field_.gradient,
            centre_gradient=gradient.index_select(0, centres),
            neighbour_gradient=field_.gradient.index_select(0, centres + (n + volume_points.shape[0])),
            padding=Padding(first_rows(surface), empty, first_rows(surface[:m])) if padded else None,
        )
