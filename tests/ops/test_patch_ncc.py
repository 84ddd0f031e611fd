"""Photometric consistency: closed form, native = reference, gradcheck, opcheck."""

import itertools
from dataclasses import replace

import pytest
import torch
from support.painted_plane import NORMAL, VIEWS, gradients, off_the_plane, plane_cameras, plane_photographs, scene_points
from torch.autograd import gradcheck
from torch.library import opcheck

from nsr.ops.patch_ncc import VARIANCE_FLOOR, patch_images, patch_ncc

BACKENDS = ["native", "reference"]
both_backends = pytest.mark.parametrize("name", BACKENDS)


@pytest.fixture(scope="module")
def photographs():
    """patch_images of the painted plane, float64."""
    cameras = plane_cameras(VIEWS)
    return patch_images(plane_photographs(cameras), cameras)


def as_float32(points, photographs):
    x, normal, pixels, view, sources = points
    points = *(t.detach().float().requires_grad_() for t in (x, normal)), pixels.float(), view, sources
    return points, type(photographs)(**{key: value.float() for key, value in vars(photographs).items()})


@both_backends
def test_one_at_the_true_plane_and_flat_there(backend, name, photographs):
    x, normal, *seen = scene_points(200)
    x, normal = x.requires_grad_(), normal.requires_grad_()
    with backend(name):
        ncc, valid = patch_ncc(x, normal, *seen, photographs)
        slope, _ = torch.autograd.grad(ncc.sum(), (x, normal))
        aside, _ = patch_ncc(x + 0.1 * NORMAL, normal, *seen, photographs)
        slope_aside, _ = torch.autograd.grad(aside.sum(), (x, normal))
    assert valid.all()
    assert ncc.max() <= 1
    assert ncc.min() > 0.95  # where the waves are nearly level, the variance floor shows
    assert ncc.median() > 0.99
    assert aside.mean() < 0.8
    assert slope.norm(dim=1).mean() < 0.1 * slope_aside.norm(dim=1).mean()


@both_backends
@pytest.mark.parametrize("step", [-0.03, 0.03])
def test_the_derivative_points_back_to_the_plane(backend, name, photographs, step):
    """From either side of the plane, along the normal; and from a tilted normal towards the true one."""
    x, normal, *seen = scene_points(200)
    tilt = torch.tensor([1.0, 0.5, 0.05], dtype=torch.float64) * 10 * step
    moved, tilted = (x + step * normal).requires_grad_(), (normal + tilt).requires_grad_()
    with backend(name):
        off = patch_ncc(moved, normal, *seen, photographs).ncc
        on = patch_ncc(x, normal, *seen, photographs).ncc
        wrong = patch_ncc(x, tilted, *seen, photographs).ncc
        (back,) = torch.autograd.grad(off.sum(), moved)
        (upright,) = torch.autograd.grad(wrong.sum(), tilted)
    assert (off < on).double().mean() > 0.99
    assert ((back @ NORMAL) * step < 0).double().mean() > 0.95
    assert (wrong < on).double().mean() > 0.95
    assert ((upright * tilt).sum(1) < 0).double().mean() > 0.95


@both_backends
def test_contrast_and_length_of_the_normal_do_not_matter(backend, name, photographs):
    x, normal, pixels, view, sources = off_the_plane(50)
    fainter = replace(photographs, images=photographs.images.clone())
    fainter.images[1:] = 0.6 * fainter.images[1:] + 0.3
    with backend(name):
        ncc, _ = patch_ncc(x, normal, pixels, view, sources, photographs)
        torch.testing.assert_close(patch_ncc(x, 7 * normal, pixels, view, sources, photographs).ncc, ncc)
        assert (patch_ncc(x, normal, pixels, view, sources, fainter).ncc - ncc).abs().median() < 5e-3


@pytest.mark.parametrize("patch", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("n", [0, 1, 100])
def test_native_equals_reference(backend, photographs, patch, n):
    points = off_the_plane(n)
    results = {}
    for name in BACKENDS:
        with backend(name):
            ncc, valid = patch_ncc(*points, photographs, patch, 0.005)
        results[name] = ncc, *gradients(ncc, points), valid
    for native, reference in zip(results["native"], results["reference"], strict=True):
        assert native.shape == reference.shape
        torch.testing.assert_close(native, reference, rtol=1e-9, atol=1e-10)
    assert n < 100 or results["native"][-1].double().mean() > 0.9


def test_float32_is_close_to_float64(photographs):
    """Both backends are; the derivative jumps where a sample crosses a pixel's centre line, so it is compared as a whole."""
    points = off_the_plane(400)
    ncc, valid = patch_ncc(*points, photographs)
    exact = gradients(ncc, points)
    points32, photographs32 = as_float32(points, photographs)
    ncc32, valid32 = patch_ncc(*points32, photographs32)
    assert ncc32.dtype == torch.float32
    assert (valid == valid32).all()
    torch.testing.assert_close(ncc32.double(), ncc, rtol=0, atol=2e-4)
    for rounded, true in zip(gradients(ncc32, points32), exact, strict=True):
        assert (rounded - true).norm() < 2e-3 * true.norm()
        assert ((rounded - true).norm(dim=1) < 1e-3 * true.norm(dim=1)).double().mean() > 0.95


@pytest.mark.parametrize("patch", [3, 7, 11])
def test_gradcheck(photographs, patch):
    """At points none of whose samples is within reach of a pixel's centre line, where the slope jumps."""
    x, normal, *seen = off_the_plane(6, seed=4)
    assert gradcheck(lambda x, n: patch_ncc(x, n, *seen, photographs, patch).ncc, (x, normal), eps=1e-7, atol=1e-5)


def test_gradcheck_of_the_reference(backend, photographs):
    x, normal, *seen = off_the_plane(3, seed=4)
    with backend("reference"):
        assert gradcheck(lambda x, n: patch_ncc(x, n, *seen, photographs).ncc, (x, normal), eps=1e-7, atol=1e-5)


def test_a_point_gets_the_same_in_any_batch_and_with_any_number_of_threads(photographs):
    points, images = as_float32(off_the_plane(300), photographs)
    ncc, valid = patch_ncc(*points, images)
    one_by_one = [patch_ncc(*(t[i : i + 1] for t in points), images) for i in range(0, 300, 37)]
    assert all(torch.equal(one.ncc, ncc[i : i + 1]) for one, i in zip(one_by_one, range(0, 300, 37), strict=True))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ncc, valid = patch_ncc(*points, images)
            results.append((ncc, valid, *gradients(ncc, points)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("patch", [3, 7, 11])
def test_cuda_equals_cpu(photographs, patch):
    points = off_the_plane(100)
    there = [t.detach().cuda().requires_grad_(t.is_floating_point()) for t in points]
    images = type(photographs)(**{key: value.cuda() for key, value in vars(photographs).items()})
    here = patch_ncc(*points, photographs, patch, 0.005)
    on_gpu = patch_ncc(*there, images, patch, 0.005)
    assert torch.equal(on_gpu.valid.cpu(), here.valid)
    torch.testing.assert_close(on_gpu.ncc.cpu(), here.ncc, rtol=1e-9, atol=1e-10)
    weights = torch.linspace(-1, 1, here.ncc.numel(), dtype=torch.float64).view_as(here.ncc)
    expected = torch.autograd.grad((here.ncc * weights).sum(), points[:2])
    for grad, true in zip(torch.autograd.grad((on_gpu.ncc * weights.cuda()).sum(), there[:2]), expected, strict=True):
        torch.testing.assert_close(grad.cpu(), true, rtol=1e-9, atol=1e-9)


def test_only_the_gradients_that_are_needed(photographs):
    x, normal, *seen = off_the_plane(20)
    ncc, _ = patch_ncc(x, normal, *seen, photographs)
    both = torch.autograd.grad(ncc.sum(), (x, normal))
    for first, second in itertools.permutations((0, 1)):
        tensors = [x.detach(), normal.detach()]
        tensors[first] = (x, normal)[first]
        alone = torch.autograd.grad(patch_ncc(*tensors, *seen, photographs).ncc.sum(), tensors[first])
        assert torch.equal(alone[0], both[first])
        assert not tensors[second].requires_grad
    with torch.no_grad():
        again = patch_ncc(x, normal, *seen, photographs)
    assert torch.equal(again.ncc, ncc)
    assert not again.ncc.requires_grad


def test_the_second_derivative_raises_by_name(photographs):
    x, normal, *seen = off_the_plane(5)
    ncc, _ = patch_ncc(x, normal, *seen, photographs)
    (first,) = torch.autograd.grad(ncc.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="patch_ncc_bwd"):
        torch.autograd.grad(first.sum(), normal)


def op_arguments(points, images):
    return *points, images.images, images.ray_matrices, images.projections, images.centers, 5, VARIANCE_FLOOR, 0.0


def test_opcheck(photographs):
    points = off_the_plane(6)
    arguments = op_arguments(points, photographs)
    opcheck(torch.ops.nsr.patch_ncc, (*arguments, True))
    constants = [t.detach() for t in points]
    opcheck(torch.ops.nsr.patch_ncc, (*op_arguments(constants, photographs), False))
    ncc, _, jacobian_x, jacobian_normal = torch.ops.nsr.patch_ncc(*op_arguments(constants, photographs), True)
    opcheck(torch.ops.nsr.patch_ncc_bwd, (torch.ones_like(ncc), *constants[:2], jacobian_x, jacobian_normal))
    ncc, *_ = torch.ops.nsr.patch_ncc(*arguments, False)
    with pytest.raises(RuntimeError, match="keep=True"):
        ncc.sum().backward()


def test_non_contiguous_inputs(photographs):
    points = scene_points(20)
    ncc, _ = patch_ncc(*points, photographs)
    strided = [torch.stack([t, t], -1)[..., 0] for t in points]
    assert torch.equal(ncc, patch_ncc(*strided, photographs).ncc)


def test_patch_images_agree_with_the_cameras(photographs):
    """Pixel -> ray -> point -> pixel, and depth in the last number."""
    cameras = plane_cameras(VIEWS)
    pixels = torch.tensor([[12.25, 70.0, 1.0]], dtype=torch.float64)
    for view in range(VIEWS):
        direction = photographs.ray_matrices[view] @ pixels[0]
        torch.testing.assert_close(photographs.projections[view] @ (2.5 * direction), 2.5 * pixels[0])
        torch.testing.assert_close(direction @ cameras.camera_to_world[view, :3, 2], torch.ones((), dtype=torch.float64))
    assert torch.equal(photographs.centers, cameras.centers)
