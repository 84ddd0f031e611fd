"""The fused tracer against the wavefront tracer on the same network: same hits, same distances, same evaluations."""

import pytest
import torch
from support.sdf_networks import make_network, tensors_of
from torch.library import opcheck
from torch.nn.functional import normalize

from nsr.ops.sdf_network import network_arguments, sdf_network
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.ops.trace_sdf_network import trace_sdf_network
from nsr.types import Rays

INSTANT = TraceOptions(
    max_iterations=40,
    threshold=0.0,
    relaxation=1.3,
    min_step=0.004,
    both_ends=False,
    line_search_steps=0,
    sampler_steps=0,
    secant_steps=4,
    min_sdf_samples=0,
)
OPTIONS = {
    "idr": TraceOptions(),
    "instant": INSTANT,
    "sampler": TraceOptions(max_iterations=1, threshold=1e-6, sampler_steps=200),  # one step, then samples and secant
    "both ends, relaxed, no samples": TraceOptions(
        relaxation=1.5, min_step=0.01, line_search_steps=1, sampler_steps=0, min_sdf_samples=0
    ),
    "no secant": TraceOptions(threshold=1e-5, secant_steps=0, min_sdf_samples=7, radius=0.8),
}


def bumpy_ball(dtype=torch.float64, seed=0):
    """A network about |x| - 0.5 in its first neurons, with bumps from the rest and the grid: a surface of many kinds of ray."""
    network = make_network("instant", dtype, seed=seed, scale=0.3)
    with torch.no_grad():
        (w0, b0), (w1, b1) = network.layers
        generator = torch.Generator().manual_seed(seed)
        normals = normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1).to(dtype)
        w0[:, :3] = normals
        w0[:, 3:] *= 0.15
        b0.zero_()
        w1[0] = 4.0 / 64  # the mean over directions of |n . x| is |x| / 2, and squareplus takes one side of it
        b1[0] = -0.5
    return network


def rays_through(n, dtype=torch.float64, seed=0, distance=2.0):
    generator = torch.Generator().manual_seed(seed)
    origins = normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1) * distance
    targets = normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1)
    targets = targets * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return Rays(origins.to(dtype), normalize(targets - origins, dim=1).to(dtype))


def both(network, rays, options, mask=None):
    fused = trace_sdf_network(network, rays, options, mask)
    return fused, trace(lambda x: sdf_network(x, *network), rays, options, mask)


def assert_same(fused, wavefront, rays, network, tolerance):
    assert torch.equal(fused.hit, wavefront.hit)
    assert int(fused.evaluations) == pytest.approx(wavefront.evaluations, rel=0.005)
    near = (fused.distance - wavefront.distance).abs() <= tolerance
    # Where samples tie for the smallest SDF, rounding may choose either.
    with torch.no_grad():
        values = [sdf_network(rays.at(hits.distance), *network) for hits in (fused, wavefront)]
    assert (near | ((values[0] - values[1]).abs() <= 0.1 * tolerance)).all()
    assert near.float().mean() > 0.99


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_wavefront(options, masked, dtype):
    network, rays = bumpy_ball(dtype), rays_through(700, dtype)
    mask = torch.rand(700, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    fused, wavefront = both(network, rays, OPTIONS[options], mask)
    assert 0.2 < fused.hit.float().mean() < 0.95
    assert_same(fused, wavefront, rays, network, 1e-5 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_from_inside_and_past_the_sphere(options):
    network = bumpy_ball()
    outward = rays_through(100, distance=0.05)
    beside = torch.tensor([[0.0, 3.0, -5.0], [0.0, 3.0, 5.0]], dtype=torch.float64)
    past = Rays(beside, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).repeat(2, 1))
    rays = Rays(torch.cat([outward.origins, past.origins]), torch.cat([outward.directions, past.directions]))
    fused, wavefront = both(network, rays, OPTIONS[options])
    assert fused.hit[:100].any()
    assert fused.distance[100:].tolist() == [5.0, 0.0]
    assert_same(fused, wavefront, rays, network, 1e-9)


@pytest.mark.parametrize("options", ["idr", "instant"])
def test_other_networks(options):
    for kind in ("softplus, odd sizes", "deep and wide", "no level, no feature", "bank", "bank, no level", "modulated"):
        network, rays = make_network(kind, seed=2), rays_through(200, seed=3)
        assert_same(*both(network, rays, OPTIONS[options]), rays, network, 1e-9)


@pytest.mark.parametrize("options", ["idr", "instant"])
def test_rays_do_not_depend_on_each_other_nor_on_threads(options):
    network, rays = bumpy_ball(torch.float32), rays_through(700, torch.float32, seed=5)
    mask = torch.rand(700, generator=torch.Generator().manual_seed(0)) > 0.3
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(trace_sdf_network(network, rays, OPTIONS[options], mask))
    finally:
        torch.set_num_threads(before)
    for hits in results[1:]:
        assert torch.equal(hits.hit, results[0].hit)
        assert torch.equal(hits.distance, results[0].distance)
        assert hits.evaluations == results[0].evaluations
    for i in range(0, 700, 71):
        alone = trace_sdf_network(network, rays[i : i + 1], OPTIONS[options], mask[i : i + 1])
        assert torch.equal(alone.distance, results[0].distance[i : i + 1])


@pytest.mark.parametrize("options", OPTIONS)
def test_nan_ends_as_misses(options):
    network = bumpy_ball()
    with torch.no_grad():
        network.layers[-1][1][0] = float("nan")
    rays = rays_through(50)
    hits = trace_sdf_network(network, rays, OPTIONS[options], torch.arange(50) % 2 == 0)
    assert not hits.hit.any()
    assert hits.distance.isfinite().all()


@pytest.mark.parametrize("n", [0, 1])
def test_no_ray_and_one_ray(n):
    hits = trace_sdf_network(bumpy_ball(), rays_through(1)[:n], INSTANT, torch.ones(n, dtype=torch.bool))
    assert hits.distance.shape == hits.hit.shape == (n,)
    assert (hits.evaluations > 0) == (n == 1)
    assert not hits.distance.requires_grad


def test_reference_backend_takes_the_wavefront(backend):
    network, rays = bumpy_ball(), rays_through(100)
    native = trace_sdf_network(network, rays, INSTANT)
    with backend("reference"):
        reference = trace_sdf_network(network, rays, INSTANT)
    assert_same(native, reference, rays, network, 1e-6)


@pytest.mark.usefixtures("unchecked_signatures")
def test_arguments_that_do_not_fit():
    network, rays = bumpy_ball(), rays_through(4)
    with pytest.raises(ValueError, match="object_mask"):
        trace_sdf_network(network, rays, INSTANT, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected \[N, 3\]"):
        trace_sdf_network(network, Rays(rays.origins[0], rays.directions[0]), INSTANT)
    with pytest.raises(ValueError, match="one dtype"):
        trace_sdf_network(network, rays_through(4, torch.float32), INSTANT)


def test_opcheck():
    network, rays = bumpy_ball(torch.float32), rays_through(20, torch.float32)
    for tensor in tensors_of(network):
        tensor.requires_grad_(False)
    arguments = network_arguments(rays.origins, network, "test")
    plan = (1.0, 40, 0, 0.0, 1.3, 0.004, True, 10, 4, 10)
    for mask in (None, torch.arange(20) % 2 == 0):
        opcheck(torch.ops.nsr.trace_sdf_network, (rays.origins, rays.directions, mask, *arguments, *plan))
