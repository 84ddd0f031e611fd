"""Hash grid: closed form, native = reference, gradcheck, opcheck, determinism."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from nsr.ops.hash_grid import HashGridSpec, hash_grid, hash_grid_with_jacobian

SPECS = {
    "dense": HashGridSpec(2, 2, 2, 4, 8),
    "hashed": HashGridSpec(3, 2, 4, 16, 5),
    "mixed smoothstep": HashGridSpec(4, 2, 2, 16, 8, "smoothstep"),
    "one feature": HashGridSpec(3, 1, 3, 9, 7),
    "three features": HashGridSpec(2, 3, 3, 9, 7, "smoothstep"),
    "four features": HashGridSpec(2, 4, 3, 9, 7),
    "twelve features, one level": HashGridSpec(1, 12, 5, 5, 7),
    "sixteen levels": HashGridSpec(16, 2, 4, 64, 10),
    "wide": HashGridSpec(4, 2, 2, 16, 8, extent=1.2),
}
TINY = {  # for gradcheck, which perturbs every entry: dense and hashed levels, both interpolations, 1 to 4 features
    "hashed": HashGridSpec(2, 2, 3, 7, 4),
    "mixed smoothstep": HashGridSpec(3, 2, 1, 5, 5, "smoothstep"),
    "one feature": HashGridSpec(2, 1, 2, 5, 5),
    "three features": HashGridSpec(2, 3, 1, 3, 4, "smoothstep"),
    "four features": HashGridSpec(2, 4, 1, 3, 3),
    "narrow": HashGridSpec(2, 2, 3, 7, 4, "smoothstep", extent=0.8),
}


def make(spec, n, dtype=torch.float64, seed=0, extent=1.0):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, 3, generator=g, dtype=dtype) * 2 - 1) * extent
    table = torch.randn(spec.table_entries, spec.features, generator=g, dtype=dtype)
    return x.requires_grad_(), table.requires_grad_()


def op_arguments(x, table, spec, active=None):
    return x, table, spec.resolutions, spec.offsets, spec.smoothstep, spec.extent, spec.levels if active is None else active


def test_geometry():
    spec = HashGridSpec(levels=12, features=2, base_resolution=16, max_resolution=320, log2_table_size=17)
    assert spec.resolutions[0] == 16
    assert spec.resolutions[-1] == 320
    assert all(a < b for a, b in zip(spec.resolutions, spec.resolutions[1:], strict=False))
    sizes = [b - a for a, b in zip(spec.offsets, spec.offsets[1:], strict=False)]
    assert sizes == [min((r + 1) ** 3, 2**17) for r in spec.resolutions]
    assert spec.table_entries == sum(sizes)
    assert spec.output_dim == 24


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"levels": 0}, "levels"),
        ({"levels": 33}, "levels"),
        ({"features": 0}, "features"),
        ({"max_resolution": 8}, "max_resolution"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"extent": 0.0}, "extent"),
        ({"extent": float("inf")}, "extent"),
    ],
)
def test_impossible_grids(change, name):
    with pytest.raises(ValueError, match=name):
        HashGridSpec(**change)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_dense_level_reproduces_a_trilinear_function(backend, name):
    """A level that stores all its vertices interpolates 1 + 2x - 3y + 0.5z + xyz exactly, with its derivative."""
    spec = HashGridSpec(1, 1, 4, 4, 10)
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")  # x fastest

    def f(x, y, z):
        return 1 + 2 * x - 3 * y + 0.5 * z + x * y * z

    points = make(spec, 100)[0].detach()
    with backend(name):
        h, jacobian = hash_grid_with_jacobian(points, f(x, y, z).reshape(-1, 1), spec)
    px, py, pz = points.unbind(1)
    torch.testing.assert_close(h[:, 0], f(px, py, pz))
    # The interpolant of xyz within a cell is xyz itself: it is linear along each axis.
    torch.testing.assert_close(jacobian[:, 0], torch.stack([2 + py * pz, -3 + px * pz, 0.5 + px * py], 1))


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_outside_the_cube(backend, name, interpolation):
    """The value of the nearest face, and no derivative along the clamped axis."""
    spec = HashGridSpec(2, 2, 3, 7, 6, interpolation)
    table = make(spec, 1)[1]
    inside = torch.tensor([[1.0, 0.3, -0.2], [-1.0, -1.0, 0.4]], dtype=torch.float64)
    outside = torch.tensor([[1.7, 0.3, -0.2], [-2.0, -9.0, 0.4]], dtype=torch.float64)
    with backend(name):
        h_in, _ = hash_grid_with_jacobian(inside, table, spec)
        h_out, jacobian = hash_grid_with_jacobian(outside, table, spec)
    torch.testing.assert_close(h_out, h_in)
    assert (jacobian[0, :, 0] == 0).all()
    assert (jacobian[1, :, :2] == 0).all()
    assert (jacobian[0, :, 1:] != 0).any()


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
def test_a_wider_cube_is_the_same_grid_stretched(backend, name, interpolation):
    narrow, wide = (HashGridSpec(3, 2, 3, 9, 7, interpolation, extent=extent) for extent in (1.0, 1.25))
    x, table = (t.detach() for t in make(narrow, 50))
    with backend(name):
        h, jacobian = hash_grid_with_jacobian(x, table, narrow)
        h_wide, jacobian_wide = hash_grid_with_jacobian(1.25 * x, table, wide)
        beyond = torch.tensor([[1.05, 0.3, -0.2], [1.15, 0.3, -0.2], [1.25, 0.3, -0.2], [1.35, 0.3, -0.2]], dtype=x.dtype)
        at = hash_grid(beyond, table, wide)
    torch.testing.assert_close(h_wide, h)
    torch.testing.assert_close(jacobian_wide, jacobian / 1.25)
    assert not torch.equal(at[0], at[1])  # behind 1 it goes on
    torch.testing.assert_close(at[2], at[3])  # behind its faces it does not


@pytest.mark.parametrize("name", ["native", "reference"])
def test_nan_point_gives_nan_and_leaves_the_others_alone(backend, name):
    spec = SPECS["hashed"]
    x, table = (t.detach() for t in make(spec, 40))
    with backend(name):
        clean = hash_grid(x, table, spec)
        x[7, 1] = float("nan")
        h = hash_grid(x, table, spec)
    assert h[7].isnan().all()
    others = torch.arange(40) != 7
    assert torch.equal(h[others], clean[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", SPECS)
@pytest.mark.parametrize("n", [0, 1, 7, 5000])
def test_native_equals_reference(backend, dtype, key, n):
    """h, J and the gradients of a loss of both with respect to x and table."""
    spec = SPECS[key]
    x, table = make(spec, n, dtype, extent=1.1)
    active = max(1, spec.levels - 1)
    results = {}
    for name in ("native", "reference"):
        with backend(name):
            h, jacobian = hash_grid_with_jacobian(x, table, spec, active)
        g = torch.Generator().manual_seed(1)
        loss = (h * torch.randn(h.shape, generator=g, dtype=dtype)).sum()
        loss = loss + (jacobian * torch.randn(jacobian.shape, generator=g, dtype=dtype)).sum()
        results[name] = h, jacobian, *torch.autograd.grad(loss, (x, table))
    for native, reference in zip(results["native"], results["reference"], strict=True):
        assert native.shape == reference.shape
        scale = reference.abs().max().item() if reference.numel() else 1.0
        tolerance = 1e-12 if dtype == torch.float64 else 3e-5  # float32: p = u * resolution keeps few digits of the cell
        torch.testing.assert_close(native, reference, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("key", SPECS)
def test_double_backward_equals_reference(backend, key):
    """Gradient of |dh/dx|^2-like losses, through autograd.grad(create_graph=True), and through the table's gradient."""
    spec = SPECS[key]
    x, table = make(spec, 200)
    results = {}
    for name in ("native", "reference"):
        with backend(name):
            h = hash_grid(x, table, spec)
            g = torch.Generator().manual_seed(1)
            weight = torch.randn(h.shape, generator=g, dtype=h.dtype).requires_grad_()
            first = torch.autograd.grad((h * weight).sum(), (x, table), create_graph=True)
            probes = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in first]
            loss = sum((a * b).sum() for a, b in zip(first, probes, strict=True))
            results[name] = torch.autograd.grad(loss, (x, table, weight))
    for native, reference in zip(results["native"], results["reference"], strict=True):
        torch.testing.assert_close(native, reference, rtol=1e-10, atol=1e-10 * reference.abs().max().item())


def derivatives(x, table, spec):
    """Value, J, the first derivatives of both, and the second ones of the value."""
    x, table = x.detach().requires_grad_(), table.detach().requires_grad_()
    h = hash_grid(x, table, spec)
    first = torch.autograd.grad(0.1 * h.square().sum(), [x, table], create_graph=True)
    second = torch.autograd.grad(1e-3 * (first[0].square().sum() + first[1].float().square().sum()), [x, table])
    h_too, jacobian = hash_grid_with_jacobian(x, table, spec)
    of_jacobian = torch.autograd.grad(1e-2 * (h_too * jacobian.sum(-1)).sum(), [x, table])
    return [h.detach(), jacobian.detach(), *(g.detach() for g in first), *second, *of_jacobian]


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("key", SPECS)
def test_a_table_of_halves_is_the_table_of_the_same_floats(backend, name, key):
    """What is read is computed with as floats; what is added up is rounded to halves once, at the end."""
    x, table = make(SPECS[key], 97, torch.float32)
    halves = table.detach().half()
    with backend(name):
        ours, floats = derivatives(x, halves, SPECS[key]), derivatives(x, halves.float(), SPECS[key])
    assert [value.dtype for value in ours] == [torch.float32] * 2 + [torch.float32, torch.float16] * 3
    for value, expected in zip(ours[:3], floats[:3], strict=True):
        assert torch.equal(value, expected)
    for value, expected in zip(ours[3:], floats[3:], strict=True):
        torch.testing.assert_close(value.float(), expected, rtol=2e-3, atol=1e-3 * expected.abs().max().item())


def test_every_half_is_read_as_it_is():
    """All 2^16 of them, subnormal, infinite and NaN too, as features of one vertex."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    table = torch.zeros(8, 2**16, dtype=torch.float16)
    table[0] = halves
    (h,) = hash_grid(torch.full((1, 3), -1.0), table, HashGridSpec(1, 2**16, 1, 1, 3))
    finite = halves.isfinite()
    assert torch.equal(h[finite], halves[finite].float())
    assert not h[~finite].isfinite().any()


@pytest.mark.parametrize("key", TINY)
def test_gradcheck(key):
    spec = TINY[key]
    x, table = make(spec, 4)
    assert gradcheck(lambda x, t: hash_grid(x, t, spec), (x, table))
    assert gradgradcheck(lambda x, t: hash_grid(x, t, spec), (x, table))
    assert gradcheck(lambda x, t: hash_grid_with_jacobian(x, t, spec), (x, table))


def test_gradcheck_at_cell_faces_of_smoothstep():
    """Smoothstep is continuously differentiable: first derivatives hold on the very faces."""
    spec = HashGridSpec(1, 2, 4, 4, 8, "smoothstep")
    table = make(spec, 1)[1].detach()
    x = torch.tensor([[0.5, 0.0, -0.5], [0.25, -0.5, 1e-9]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: hash_grid(x, table, spec), (x,), eps=1e-6, atol=1e-4)


def test_jacobian_is_the_derivative():
    spec = SPECS["mixed smoothstep"]
    x, table = make(spec, 5)
    h, jacobian = hash_grid_with_jacobian(x, table, spec)
    for k in range(spec.output_dim):
        (row,) = torch.autograd.grad(h[:, k].sum(), x, retain_graph=True)
        torch.testing.assert_close(jacobian[:, k], row)
        assert row.abs().max() > 0


def test_inactive_levels_are_zero_and_get_no_gradient():
    spec = SPECS["mixed smoothstep"]
    x, table = make(spec, 50)
    h, jacobian = hash_grid_with_jacobian(x, table, spec, active_levels=2)
    assert (h[:, 2 * spec.features :] == 0).all()
    assert (jacobian[:, 2 * spec.features :] == 0).all()
    (grad_table,) = torch.autograd.grad(h.sum() + jacobian.square().sum(), table)
    assert (grad_table[spec.offsets[2] :] == 0).all()
    assert (grad_table[: spec.offsets[2]] != 0).any()
    assert (hash_grid(x, table, spec, active_levels=0) == 0).all()


def test_only_the_gradients_that_are_needed():
    """A table alone, or points alone: the other gets no gradient, and the op returns an empty tensor for it."""
    spec = SPECS["hashed"]
    x, table = make(spec, 10)
    for f in (hash_grid, lambda *a: hash_grid_with_jacobian(*a)[1]):
        (both,) = torch.autograd.grad(f(x, table, spec).square().sum(), table)
        (alone,) = torch.autograd.grad(f(x.detach(), table, spec).square().sum(), table)
        assert torch.equal(both, alone)
    grad_h = torch.ones(10, spec.output_dim, dtype=x.dtype)
    grad_x, grad_table = torch.ops.nsr.hash_grid_bwd(grad_h, *op_arguments(x, table, spec), False, True)
    assert grad_x.shape == (0,)
    assert grad_table.shape == table.shape


def test_bit_identical_for_any_number_of_threads():
    spec = HashGridSpec(12, 2, 16, 320, 14)
    x, table = make(spec, 3000, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            h, jacobian = hash_grid_with_jacobian(x, table, spec)
            results.append((h, jacobian, *torch.autograd.grad(h.sum() + jacobian.square().sum(), (x, table))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_next_derivative_raises_by_name():
    spec = SPECS["one feature"]
    x, table = make(spec, 3)
    (first,) = torch.autograd.grad(hash_grid(x, table, spec).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="hash_grid_bwd_bwd"):
        torch.autograd.grad(second.sum(), x)
    h, _ = hash_grid_with_jacobian(x, table, spec)
    (first,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="hash_grid_jac_bwd"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("key", ["hashed", "three features"])
def test_opcheck(key):
    spec = SPECS[key]
    x, table = make(spec, 6)
    ops = torch.ops.nsr
    opcheck(ops.hash_grid, op_arguments(x, table, spec))
    opcheck(ops.hash_grid_jac, op_arguments(x, table, spec))
    opcheck(ops.hash_grid, op_arguments(x.detach().float(), table.detach().half(), spec))
    fixed = op_arguments(x.detach(), table.detach(), spec)
    grad_h, grad_jacobian = (torch.ones_like(t) for t in ops.hash_grid_jac(*fixed))
    opcheck(ops.hash_grid_bwd, (grad_h.clone().requires_grad_(), *op_arguments(x, table, spec), True, True))
    opcheck(ops.hash_grid_jac_bwd, (grad_h, grad_jacobian, *fixed, True, False))
    grad_grads = torch.ones_like(fixed[0]), torch.ones_like(fixed[1])
    opcheck(ops.hash_grid_bwd_bwd, (*grad_grads, grad_h, *fixed))


@pytest.mark.usefixtures("unchecked_signatures")
def test_arguments_that_do_not_fit():
    spec = SPECS["hashed"]
    x, table = (t.detach() for t in make(spec, 4))
    with pytest.raises(ValueError, match=r"x has shape \(12,\)"):
        hash_grid(x.flatten(), table, spec)
    with pytest.raises(ValueError, match="table has shape"):
        hash_grid(x, table[:-1], spec)
    with pytest.raises(ValueError, match="float32 and float16"):
        hash_grid(x.float(), table, spec)
    with pytest.raises(ValueError, match="float32 and float16"):
        hash_grid(x, table.half(), spec)
    with pytest.raises(ValueError, match="active_levels is 9"):
        hash_grid(x, table, spec, active_levels=9)
    with pytest.raises(RuntimeError, match="offsets"):
        torch.ops.nsr.hash_grid(x, table[:-1], spec.resolutions, spec.offsets, False, 3)


def test_non_contiguous_inputs():
    spec = SPECS["hashed"]
    x, table = (t.detach() for t in make(spec, 20))
    h = hash_grid(x, table, spec)
    assert torch.equal(h, hash_grid(x.t().contiguous().t(), table.t().contiguous().t(), spec))
