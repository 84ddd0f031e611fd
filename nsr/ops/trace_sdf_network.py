"""nsr.ops.sphere_trace.trace for a network of nsr.ops.sdf_network: the whole trace in one op.

Each ray runs the program of csrc/kernels/trace_ray.h, the same state machine, with the network evaluated in between: no
tensor per iteration, and on a GPU nothing that the host waits for.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from nsr import _ext
from nsr.ops.sdf_network import SdfNetwork, network_arguments, sdf_network
from nsr.ops.sphere_trace import TraceOptions, checked_rays, trace
from nsr.types import Rays, SurfaceHits


@torch.no_grad()
def trace_sdf_network(
    network: SdfNetwork, rays: Rays, options: TraceOptions, object_mask: Bool[Tensor, " N"] | None = None
) -> SurfaceHits:
    """What trace(lambda x: sdf_network(x, *network), rays, options, object_mask) returns.

    The values that decide are the same; they differ from those of another implementation of the network by rounding, and so
    may the hits of rays that graze the surface.

    Args:
        network: on the device and with the dtype of the rays.
        rays, options, object_mask: see nsr.ops.sphere_trace.trace.

    Raises:
        ValueError: rays or mask of the wrong shape or dtype, or a network that does not fit (see sdf_network).
    """
    origins, directions = checked_rays(rays, object_mask)
    arguments = network_arguments(origins, network, "trace_sdf_network")
    if _ext.backend() == "reference":
        return trace(lambda x: sdf_network(x, *network), rays, options, object_mask)
    o = options
    plan = (o.radius, o.max_iterations, o.line_search_steps, o.threshold, o.relaxation, o.min_step, o.both_ends)
    plan += (o.sampler_steps, o.secant_steps, o.min_sdf_samples)
    distance, hit, evaluations = torch.ops.nsr.trace_sdf_network(origins, directions, object_mask, *arguments, *plan)
    return SurfaceHits(distance, hit, evaluations.sum())


@_ext.on_load
def _register() -> None:
    """Attaches shapes for tracing to the native op; it has no derivative."""

    @torch.library.register_fake("nsr::trace_sdf_network")
    def _(origins, *rest):
        rays = origins.shape[0]
        hit = origins.new_empty(rays, dtype=torch.bool)
        return origins.new_empty(rays), hit, origins.new_empty(rays, dtype=torch.int32)
