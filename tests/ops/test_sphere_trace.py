"""Sphere tracing of closed-form surfaces, with the options of IDR and with those of the instant configuration."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import normalize

from nsr.ops.reference import sphere_trace as reference
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.types import Rays

IDR = TraceOptions()
EXACT = TraceOptions(threshold=1e-6, max_iterations=60)  # IDR's march, run to its end
INSTANT = TraceOptions(
    max_iterations=60,
    threshold=0.0,
    relaxation=1.3,
    min_step=0.004,
    both_ends=False,
    line_search_steps=0,
    sampler_steps=0,
    secant_steps=8,
    min_sdf_samples=0,
)
SAMPLER = TraceOptions(max_iterations=1, threshold=1e-6, sampler_steps=200)  # one step, then samples and secant
OPTIONS = {"exact": EXACT, "instant": INSTANT, "sampler": SAMPLER}
# To a change of sign from both ends: whatever is beyond the back's last value is never looked at.
BOTH_ENDS = TraceOptions(max_iterations=60, threshold=0.0, min_step=0.004, sampler_steps=0)
RADIUS = 0.5


def sphere(x: Tensor) -> Tensor:
    return x.norm(dim=-1) - RADIUS


def box(x: Tensor) -> Tensor:
    q = x.abs() - torch.tensor([0.5, 0.3, 0.4], dtype=x.dtype)
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def torus(x: Tensor) -> Tensor:
    ring = torch.hypot(x[..., 0], x[..., 1]) - 0.5
    return torch.hypot(ring, x[..., 2]) - 0.2


def two_spheres(x: Tensor) -> Tensor:
    shift = torch.tensor([0.5, 0.0, 0.0], dtype=x.dtype)
    return torch.minimum((x - shift).norm(dim=-1) - 0.2, (x + shift).norm(dim=-1) - 0.3)


SHAPES = {"sphere": sphere, "box": box, "torus": torus, "two spheres": two_spheres}


def rays_through(n: int, seed: int = 0, distance: float = 2.5, dtype=torch.float64) -> Rays:
    """From random places outside, towards random points of the unit ball."""
    g = torch.Generator().manual_seed(seed)
    origins = normalize(torch.randn(n, 3, generator=g, dtype=dtype), dim=1) * distance
    targets = normalize(torch.randn(n, 3, generator=g, dtype=dtype), dim=1) * torch.rand(n, 1, generator=g, dtype=dtype)
    return Rays(origins, normalize(targets - origins, dim=1))


def first_root(sdf, rays: Rays, radius: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Distance of the first + to - crossing within the unit ball by brute force: 20000 samples, then bisection.

    Returns distance [N], hit [N], and the smallest |f| at a local minimum above 0 (how nearly a ray grazes) [N].
    """
    closest = -(rays.origins * rays.directions).sum(1)
    chord = (radius**2 - rays.at(closest).square().sum(1)).clamp(min=0).sqrt()
    near, far = (closest - chord).clamp(min=0), closest + chord
    t = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, 20_000, dtype=near.dtype)
    f = sdf(rays.origins[:, None] + t[..., None] * rays.directions[:, None])
    inside = f <= 0
    hit, index = inside.any(1), inside.to(torch.uint8).argmax(1).clamp(min=1)
    low, high = t.gather(1, index[:, None] - 1)[:, 0], t.gather(1, index[:, None])[:, 0]
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = sdf(rays.at(middle)) <= 0
        low, high = torch.where(below, low, middle), torch.where(below, middle, high)
    return high, hit, f.abs().amin(1)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_closed_form_from_outside(backend, name, shape, options):
    sdf, rays = SHAPES[shape], rays_through(100)
    expected, expected_hit, grazing = first_root(sdf, rays)
    with backend(name):
        hits = trace(sdf, rays, OPTIONS[options])
    # A ray that dips into the surface by less than a sample's spacing is a matter of resolution.
    clear = expected_hit | (grazing > 1e-3)
    agree = hits.hit == expected_hit
    assert agree[clear].float().mean() >= (1.0 if options == "exact" else 0.98)
    both = hits.hit & expected_hit
    assert both.sum() > 15
    slope = (sdf(rays.at(expected + 1e-4)) - sdf(rays.at(expected - 1e-4))) / 2e-4
    steep = both & (slope < -0.2)
    torch.testing.assert_close(hits.distance[steep], expected[steep], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("options", [*OPTIONS.values(), BOTH_ENDS], ids=[*OPTIONS, "both ends"])
def test_closed_form_from_inside(backend, name, options):
    """From the centre of a sphere the first change of sign is the way out; from the hole of a torus it is the tube."""
    g = torch.Generator().manual_seed(1)
    directions = normalize(torch.randn(60, 3, generator=g, dtype=torch.float64), dim=1)
    rays = Rays(torch.zeros_like(directions) + torch.tensor([0.1, 0.0, 0.0]), directions)
    b = (rays.origins * directions).sum(1)
    exit_distance = -b + (b * b - rays.origins.square().sum(1) + RADIUS**2).sqrt()
    with backend(name):
        hits = trace(sphere, rays, options)
        angle = torch.arange(60, dtype=torch.float64)
        flat = normalize(torch.stack([angle.cos(), angle.sin(), 0.2 * (3 * angle).cos()], 1), dim=1)
        in_hole = Rays(torch.zeros_like(flat), flat)
        tube = trace(torus, in_hole, options)
    assert hits.hit.all()
    torch.testing.assert_close(hits.distance, exit_distance, rtol=0, atol=1e-5)
    assert tube.hit.all()
    torch.testing.assert_close(torus(in_hole.at(tube.distance)), torch.zeros(60, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (tube.distance < 0.4).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_plane(options):
    rays = rays_through(200, seed=2)
    hits = trace(lambda x: x[:, 2] + 0.1, rays, OPTIONS[options])
    t = (-0.1 - rays.origins[:, 2]) / rays.directions[:, 2]
    crosses = (rays.origins[:, 2] > 0) & (rays.directions[:, 2] < -0.05) & (rays.at(t).norm(dim=1) < 0.95)
    assert crosses.sum() > 20
    assert hits.hit[crosses].all()
    torch.testing.assert_close(hits.distance[crosses], t[crosses], rtol=0, atol=1e-5)


def test_float32_is_as_good_as_float32_allows():
    double, single = rays_through(300), rays_through(300, dtype=torch.float64)
    single = Rays(single.origins.float(), normalize(single.directions.float(), dim=1))
    a, b = trace(sphere, double, INSTANT), trace(sphere, single, INSTANT)
    facing = a.hit & b.hit & ((normalize(double.at(a.distance), dim=1) * double.directions).sum(1) < -0.2)
    assert (a.hit == b.hit).float().mean() > 0.99
    torch.testing.assert_close(b.distance[facing], a.distance[facing].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("options", ["exact", "instant"])
def test_misses(backend, name, options):
    """Of the surface, of the bounding sphere (closest approach), and of a sphere behind the camera (not below 0)."""
    origins = torch.tensor([[0.0, 0.7, -3.0], [0.0, 1.5, -3.0], [0.0, 0.0, 3.0], [0.0, 2.0, 3.0]])
    rays = Rays(origins, torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1))
    with backend(name):
        hits = trace(sphere, rays, OPTIONS[options])
    assert not hits.hit.any()
    assert hits.distance[0] == pytest.approx(3.0, abs=0.15)  # the smallest SDF lies where the ray passes the centre
    assert hits.distance[1:].tolist() == [3.0, 0.0, 0.0]


@pytest.mark.parametrize("options", OPTIONS)
def test_grazing_rays(options):
    """Just above and just below the rim of the sphere; the ray at the rim itself may be either, but ends."""
    heights = torch.tensor([0.4999, 0.49, 0.5, 0.51, 0.52], dtype=torch.float64)
    origins = torch.stack([torch.zeros(5, dtype=torch.float64), heights, torch.full((5,), -3.0, dtype=torch.float64)], 1)
    rays = Rays(origins, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).repeat(5, 1))
    hits = trace(sphere, rays, OPTIONS[options])
    assert hits.hit[1]
    assert not hits.hit[3:].any()
    assert hits.distance[1] == pytest.approx(3 - (0.25 - 0.49**2) ** 0.5, abs=1e-3 if options == "exact" else 1e-5)


def test_thin_plate_is_not_stepped_over():
    """A plate of thickness 0.01 is met by over-relaxed steps, whatever the step before it: spheres must overlap."""

    def plate(x):
        return x[:, 2].abs() - 0.005

    rays = rays_through(500, seed=3)
    through = rays.at(-rays.origins[:, 2] / rays.directions[:, 2]).norm(dim=1) < 0.9
    for relaxation in (1.0, 1.3, 1.8):
        hits = trace(plate, rays, TraceOptions(max_iterations=400, threshold=1e-6, relaxation=relaxation))
        assert hits.hit[through].all()
        assert plate(rays.at(hits.distance)[through]).abs().max() < 1e-5


def test_over_relaxation_saves_evaluations():
    rays = rays_through(500, seed=4)
    plain = trace(torus, rays, TraceOptions(**{**vars(INSTANT), "relaxation": 1.0}))
    relaxed = trace(torus, rays, INSTANT)
    assert relaxed.evaluations < plain.evaluations
    assert (relaxed.hit == plain.hit).float().mean() > 0.99


def test_the_sampler_finds_what_the_march_cannot():
    """A distance scaled by 0.2 makes ten steps fall short of the surface; sampling between the ends finds it."""

    def timid(x):
        return 0.2 * sphere(x)

    rays = rays_through(200, seed=5)
    expected, expected_hit, _ = first_root(sphere, rays)
    clear = expected_hit & (trace(sphere, rays, EXACT).hit)
    without = trace(timid, rays, TraceOptions(threshold=1e-6, sampler_steps=0))
    with_sampler = trace(timid, rays, TraceOptions(threshold=1e-6, sampler_steps=200))
    assert without.hit[clear].float().mean() < 0.1
    assert with_sampler.hit[clear].float().mean() > 0.97
    hit = with_sampler.hit & expected_hit
    torch.testing.assert_close(with_sampler.distance[hit], expected[hit], rtol=0, atol=3e-4)


def test_line_search_and_secant_mend_an_overshoot():
    """With |grad f| = 1.8 the march overshoots; IDR halves the step, and the bracket gives the exact distance."""

    def bold(x):
        return 1.8 * sphere(x)

    rays = rays_through(200, seed=6)
    expected, expected_hit, grazing = first_root(sphere, rays)
    for options in (EXACT, INSTANT):
        hits = trace(bold, rays, options)
        deep = expected_hit & ((normalize(rays.at(expected), dim=1) * rays.directions).sum(1) < -0.5)
        assert hits.hit[deep].all()
        torch.testing.assert_close(hits.distance[deep], expected[deep], rtol=0, atol=1e-5)
        assert not hits.hit[~expected_hit & (grazing > 1e-3)].any()


@pytest.mark.parametrize("options", [IDR, INSTANT], ids=["idr", "instant"])
def test_mask_gives_the_smallest_sdf_off_the_surface(options):
    """Inside the mask without a hit, and outside it with or without: the distance of the smallest SDF along the ray."""
    heights = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8], dtype=torch.float64)
    origins = torch.stack([torch.zeros(5, dtype=torch.float64), heights, torch.full((5,), -3.0, dtype=torch.float64)], 1)
    rays = Rays(origins, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).repeat(5, 1))
    mask = torch.tensor([True, False, False, True, False])
    hits = trace(sphere, rays, options, mask)
    assert hits.hit.tolist() == [True, True, True, False, False]  # whatever the mask
    assert hits.distance[0] == pytest.approx(2.5, abs=1e-4)
    # The smallest SDF of each is at z = 0; 100 samples of a chord of 2 are 0.02 apart, steps of the march up to 0.3.
    smallest = sphere(rays.at(hits.distance))[1:]
    torch.testing.assert_close(smallest, heights[1:] - RADIUS, rtol=0, atol=1e-3 if options is IDR else 0.08)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("options", [IDR, INSTANT, SAMPLER], ids=["idr", "instant", "sampler"])
def test_nan_and_infinite_sdf_end_as_misses(backend, name, options):
    rays = rays_through(50)
    with backend(name):
        for value in (float("nan"), float("inf")):
            hits = trace(lambda x, v=value: torch.full_like(x[:, 0], v), rays, options)
            assert not hits.hit.any()
            assert hits.distance.isfinite().all()
        # NaN beyond the front of the sphere does not hurt the rays that never get there.
        hits = trace(lambda x: torch.where(x[:, 0] > 0, float("nan"), sphere(x)), rays, options)
    clean = trace(sphere, rays, options)
    assert hits.evaluations <= clean.evaluations * 2
    left = clean.hit & (rays.at(clean.distance)[:, 0] < -0.1) & (rays.origins[:, 0] < -1.2)
    if not options.both_ends:  # from both ends, the far one starts in the NaN and simply stays there
        assert hits.hit[left].all()


@pytest.mark.parametrize("name", ["native", "reference"])
def test_a_step_too_long_by_rounding_ends(backend, name):
    """The distances t of float32 are 2^-22 apart here: a step of 963.6 of them becomes one of 964, and ends on the surface."""
    step, calls = 963.6 * 2.0**-22, 0

    def staircase(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        assert calls < 100, "the ray marches for ever"
        t = x[:, 2] + 3
        return torch.where(t < 2.2, 0.4, torch.where(t < 2.4001, step, 0.0))

    rays = Rays(torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]]))
    with backend(name):
        hits = trace(staircase, rays, TraceOptions(both_ends=False))
    assert hits.hit.all()
    torch.testing.assert_close(hits.distance, torch.tensor([2.4 + step]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("n", [0, 1])
def test_no_ray_and_one_ray(backend, name, n):
    rays = Rays(torch.tensor([[0.0, 0.0, -3.0]])[:n], torch.tensor([[0.0, 0.0, 1.0]])[:n])
    for options in (IDR, INSTANT):
        with backend(name):
            hits = trace(sphere, rays, options, torch.ones(n, dtype=torch.bool))
        assert hits.hit.tolist() == [True] * n
        assert hits.distance.tolist() == pytest.approx([2.5] * n, abs=1e-4)
        assert (hits.evaluations == 0) == (n == 0)


@pytest.mark.parametrize("options", [IDR, INSTANT], ids=["idr", "instant"])
def test_rays_do_not_depend_on_each_other(options):
    rays, mask = rays_through(300, seed=7), torch.rand(300, generator=torch.Generator().manual_seed(0)) > 0.3
    together = trace(torus, rays, options, mask)
    alone = [trace(torus, rays[i : i + 1], options, mask[i : i + 1]) for i in range(0, 300, 7)]
    assert torch.equal(together.distance[::7], torch.cat([hits.distance for hits in alone]))
    assert torch.equal(together.hit[::7], torch.cat([hits.hit for hits in alone]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [IDR, INSTANT, SAMPLER], ids=["idr", "instant", "sampler"])
@pytest.mark.parametrize("masked", [False, True])
def test_native_equals_reference(backend, shape, options, masked):
    rays = rays_through(400, seed=8)
    mask = torch.rand(400, generator=torch.Generator().manual_seed(0)) > 0.5 if masked else None
    results = {}
    for name in ("native", "reference"):
        with backend(name):
            results[name] = trace(SHAPES[shape], rays, options, mask)
    native, ours = results["native"], results["reference"]
    assert torch.equal(native.hit, ours.hit)
    assert native.evaluations == pytest.approx(ours.evaluations, rel=0.01)
    same = (native.distance - ours.distance).abs() < 1e-6  # the secant search ends at 1e-6, on either side
    # Where two samples tie for the smallest SDF, rounding may choose either.
    f = SHAPES[shape](rays.at(native.distance)), SHAPES[shape](rays.at(ours.distance))
    assert (same | ((f[0] - f[1]).abs() < 1e-6)).all()


def test_no_gradient_and_no_dependence_on_the_sdf_s_graph():
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    hits = trace(lambda x: scale * sphere(x), rays_through(10), INSTANT)
    assert not hits.distance.requires_grad
    assert torch.is_grad_enabled()


def test_sampler_is_chunked():
    """20000 unfinished rays of 100 samples are 2e6 points: no call sees more than 1e6."""
    calls = []

    def timid(x):
        calls.append(len(x))
        return 0.05 * sphere(x)

    rays = rays_through(30_000, distance=2.0, dtype=torch.float32)
    trace(timid, rays, TraceOptions(max_iterations=1))
    assert sum(calls) > 1_000_000
    assert max(calls) <= 1_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0.0}, "radius"),
        ({"relaxation": 0.9}, "relaxation"),
        ({"relaxation": 2.0}, "relaxation"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"sampler_steps": 1}, "sampler_steps"),
        ({"threshold": 0.0, "sampler_steps": 0}, "never hits"),
    ],
)
def test_impossible_options(change, message):
    with pytest.raises(ValueError, match=message):
        TraceOptions(**change)


@pytest.mark.usefixtures("unchecked_signatures")
def test_arguments_that_do_not_fit():
    rays = rays_through(4)
    with pytest.raises(ValueError, match="object_mask"):
        trace(sphere, rays, IDR, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="sdf returned"):
        trace(lambda x: sphere(x)[:, None], rays, IDR)
    with pytest.raises(ValueError, match=r"expected \[N, 3\]"):
        trace(sphere, Rays(rays.origins[0], rays.directions[0]), IDR)
    with pytest.raises(ValueError, match="float32"):
        trace(sphere, Rays(rays.origins, rays.directions.float()), IDR)


@pytest.mark.parametrize("samples", [2, 5, 64])
def test_scan(samples):
    values = torch.randn(200, samples, generator=torch.Generator().manual_seed(0))
    values[values > 1.5] = float("nan")
    orientation = torch.where(torch.arange(200) % 2 == 0, 1.0, -1.0)
    for ours, theirs in zip(
        torch.ops.nsr.sphere_trace_scan(values, orientation), reference.sphere_trace_scan(values, orientation), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_opcheck():
    rays = rays_through(20, dtype=torch.float32)
    origins, directions = rays.origins, rays.directions
    ops = torch.ops.nsr
    opcheck(ops.sphere_trace_start, (origins, directions, 1.0, None))
    state, flags = ops.sphere_trace_start(origins, directions, 1.0, torch.ones(20, dtype=torch.bool))
    items = torch.arange(40)
    march = (state, flags, items, torch.full((40,), 0.1), origins, directions, 10, 1, 5e-5, 1.2, 0.0)
    opcheck(ops.sphere_trace_march_, march)
    brackets = torch.tensor([[1.0, 0.5, 2.0, -0.5, 1.0, 0.0, 1.0]]).repeat(20, 1)
    opcheck(ops.sphere_trace_secant_, (brackets, torch.arange(20), torch.full((20,), 0.1), origins, directions))
    opcheck(ops.sphere_trace_scan, (torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), torch.ones(20)))
