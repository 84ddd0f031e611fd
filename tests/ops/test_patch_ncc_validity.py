"""Photometric consistency: which pairs are valid, case by case, and arguments that do not fit."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.painted_plane import (
    NORMAL,
    VIEWS,
    gradients,
    off_the_plane,
    plane_cameras,
    plane_photographs,
    plane_points,
    scene_points,
)

from nsr.ops.patch_ncc import VARIANCE_FLOOR, patch_images, patch_ncc

both_backends = pytest.mark.parametrize("name", ["native", "reference"])


@pytest.fixture(scope="module")
def photographs():
    """patch_images of the painted plane, float64."""
    cameras = plane_cameras(VIEWS)
    return patch_images(plane_photographs(cameras), cameras)


def invalid_cases():
    """What makes a pair invalid: a change to (points, photographs), given as (name, function)."""

    def set_entry(index, value):
        def change(points, photographs):
            points = [t.detach().clone() for t in points]
            points[index][0] = value if isinstance(value, (int, float)) else torch.tensor(value).to(points[index])
            return points, photographs

        return change

    def looking_past(points, photographs):
        """The source cameras are moved aside."""
        centers = photographs.centers.clone()
        centers[points[4].flatten(), 0] += 3
        return points, replace(photographs, centers=centers)

    def background(view_of):
        def change(points, photographs):
            images = photographs.images.clone()
            images[view_of(points).flatten()] = float("nan")
            return points, replace(photographs, images=images)

        return change

    nan = float("nan")
    return [
        ("no source", set_entry(4, -1)),
        ("reference patch left of the image", set_entry(2, [2.9, 40.0])),
        ("reference patch below the image", set_entry(2, [40.0, 76.1])),
        ("warped patch outside the image", looking_past),
        ("background in the reference view", background(lambda p: p[3])),
        ("background in the source view", background(lambda p: p[4])),
        ("NaN point", set_entry(0, nan)),
        ("NaN normal", set_entry(1, nan)),
        ("zero normal", set_entry(1, 0.0)),
        ("NaN pixel", set_entry(2, nan)),
    ]


@both_backends
@pytest.mark.parametrize(("case", "change"), invalid_cases(), ids=[case for case, _ in invalid_cases()])
def test_invalid_pairs(backend, name, photographs, case, change):
    """All sources of one point: NCC and derivatives are exactly 0."""
    points, images = change([t[:1] for t in scene_points(1)], photographs)
    points[:2] = (t.detach().requires_grad_() for t in points[:2])
    with backend(name):
        before = patch_ncc(*scene_points(1), photographs).valid
        ncc, valid = patch_ncc(*points, images)
        grads = gradients(ncc, points)
    assert before.all()
    assert not valid.any()
    assert (ncc == 0).all()
    assert all((grad == 0).all() for grad in grads)


def looking_at(photographs, view, eye, target):
    """The photographs with the camera of one view moved to `eye` and turned towards `target`, upright anyhow."""
    forward = F.normalize(target - eye, dim=0)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.3, 1.0, 0.2], dtype=eye.dtype)), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    projections, centers = photographs.projections.clone(), photographs.centers.clone()
    projections[view] = plane_cameras(VIEWS).intrinsics[view] @ rotation
    centers[view] = eye
    return replace(photographs, projections=projections, centers=centers)


@both_backends
def test_both_cameras_must_be_in_front_of_the_plane_and_see_it_ahead(backend, name, photographs):
    """One point, with the source camera put where all other conditions hold: only the first pair is valid."""
    x, normal, pixels, view, _ = (t[:1] for t in scene_points(1))
    source = (view[:, None] + 1) % VIEWS
    up = 2.5 * F.normalize(NORMAL, dim=0)
    mirrored = 2 * photographs.centers[view] - x  # behind the reference camera

    def seen_from(x, normal, eye, sign=1):
        images = looking_at(photographs, source[0, 0], eye[0], x[0])
        images = replace(images, projections=images.projections * sign)
        points = x.clone().requires_grad_(), normal.clone().requires_grad_(), pixels, view, source
        ncc, valid = patch_ncc(*points, images)
        assert valid.all() or ((ncc == 0).all() and all((grad == 0).all() for grad in gradients(ncc, points)))
        return valid.item()

    with backend(name):
        assert seen_from(x, normal, x + up)
        assert not seen_from(x, normal, x - up)  # the source sees the plane from behind
        assert not seen_from(x, -normal, x - up)  # the reference sees it from behind
        assert not seen_from(mirrored, normal, mirrored + up)  # the reference looks away from it
        assert not seen_from(x, normal, x + up, sign=-1)  # the source looks away: the same pixels at negative depth


@both_backends
def test_edge_on(backend, name, photographs):
    """A plane is compared when the rays of the patch meet it at a cosine of 0.01 or more."""
    x, _, pixels, view, sources = scene_points(1)
    source = sources[:, :1]
    ray = F.normalize(x - photographs.centers[view], dim=1)
    away = photographs.centers[source[:, 0]] - x
    across = F.normalize(away - (away * ray).sum(1, keepdim=True) * ray, dim=1)  # a normal that faces the source
    # A very long lens: the rays of the patch are all but parallel, so that its samples lie close together.
    narrow = 1e-5 * torch.eye(3, dtype=torch.float64)
    narrow[:, 2] = (1 - 1e-5) * F.pad(pixels[0], (0, 1), value=1.0)
    narrow[2, 2] = 1.0
    lens = replace(photographs, ray_matrices=photographs.ray_matrices @ narrow)
    with backend(name):
        valid = [patch_ncc(x, across - cosine * ray, pixels, view, source, lens).valid.item() for cosine in (0.011, 0.009)]
    assert valid == [True, False]


@both_backends
def test_the_border_of_the_image(backend, name, photographs):
    """A patch may reach the centres of the outermost pixels, and no further."""
    cameras = plane_cameras(VIEWS)
    right, lower = cameras.width - 4.0, cameras.height - 4.0
    inside = [[3.0, 40.0], [right, 40.0], [50.0, 3.0], [50.0, lower]]
    outside = [[2.999, 40.0], [right + 0.001, 40.0], [50.0, 2.999], [50.0, lower + 0.001]]
    pixels = torch.tensor(inside + outside, dtype=torch.float64)
    view = torch.zeros(8, dtype=torch.long)
    zoomed_out = torch.tensor([[0.4, 0.0, 0.3 * cameras.width], [0.0, 0.4, 0.3 * cameras.height], [0.0, 0.0, 1.0]]).double()
    source = replace(photographs, projections=zoomed_out @ photographs.projections)  # sees all that the reference sees
    x = plane_points(cameras, view, pixels)
    with backend(name):
        valid = patch_ncc(x, NORMAL.repeat(8, 1), pixels, view, torch.full((8, 1), 3), source).valid[:, 0]
    assert valid.tolist() == [True] * 4 + [False] * 4


@both_backends
def test_one_background_pixel(backend, name, photographs):
    """Pairs whose samples have the pixel among their four are out, and no others change."""
    x, normal, pixels, view, sources = scene_points(60)
    pixels = pixels.round() + 0.5
    x = plane_points(plane_cameras(VIEWS), view, pixels)
    hole = 50, 41  # column, row
    images = photographs.images.clone()
    images[1, hole[1], hole[0]] = float("nan")
    with backend(name):
        clean = patch_ncc(x, normal, pixels, view, sources, photographs)
        ncc, valid = patch_ncc(x, normal, pixels, view, sources, replace(photographs, images=images))
    reach = (pixels - torch.tensor(hole)).abs().amax(1) <= 3.5  # half the patch, and the cell around a sample
    assert (valid[view == 1] == ~reach[view == 1, None]).all()
    assert torch.equal(ncc[valid], clean.ncc[valid])
    lost = (view != 1)[:, None] & (sources == 1) & ~valid
    assert 0 < lost.sum() < (sources == 1).sum()
    assert (valid | (sources == 1) | (view == 1)[:, None]).all()


@both_backends
def test_without_texture(backend, name, photographs):
    """Flat patches are valid unless min_std says otherwise; nearly flat ones have bounded slopes."""
    points = off_the_plane(40)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(photographs.images.shape, generator=g, dtype=torch.float64)
    with backend(name):
        for level in (0.0, 1e-9, 1e-5):
            images = replace(photographs, images=0.5 + level * noise)
            ncc, valid = patch_ncc(*points, images)
            assert valid.any()
            assert ncc.abs().max() <= level**2 / VARIANCE_FLOOR * 10
            assert all(grad.abs().max() <= 1e6 * level**2 / VARIANCE_FLOOR for grad in gradients(ncc, points))
        std = 0.02
        images = replace(photographs, images=0.5 + std * noise)
        ncc, valid = patch_ncc(*points, images, min_std=0.6 * std)
        assert valid.any()
        assert (patch_ncc(*points, images, min_std=1.6 * std).valid == 0).all()


def op_arguments(points, images):
    return *points, images.images, images.ray_matrices, images.projections, images.centers, 5, VARIANCE_FLOOR, 0.0


@pytest.mark.usefixtures("unchecked_signatures")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda t: t.flatten()}, r"x is torch.float64 of shape \(12,\)"),
        ({"normal": lambda t: t[:-1]}, r"normal has shape \(3, 3\)"),
        ({"normal": lambda t: t.float()}, "normal is torch.float32"),
        ({"pixels": lambda t: t.long()}, "pixels is torch.int64"),
        ({"view": lambda t: t.int()}, "view is torch.int32"),
        ({"view": lambda t: t + 10}, "view names view 1"),
        ({"view": lambda t: t - 10}, "view names view -"),
        ({"sources": lambda t: t[:, 0]}, "sources has shape"),
        ({"sources": lambda t: t - 5}, "sources names view -"),
        ({"patch": lambda _: 4}, "patch is 4"),
        ({"patch": lambda _: 13}, "patch is 13"),
        ({"min_std": lambda _: -1.0}, "min_std is -1.0"),
    ],
)
def test_arguments_that_do_not_fit(photographs, change, message):
    names = ("x", "normal", "pixels", "view", "sources")
    arguments = dict(zip(names, scene_points(4), strict=True)) | {"images": photographs, "patch": 7, "min_std": 0.0}
    for name, function in change.items():
        arguments[name] = function(arguments[name])
    with pytest.raises(ValueError, match=message):
        patch_ncc(**arguments)


@pytest.mark.usefixtures("unchecked_signatures")
def test_the_op_itself_checks_too_and_is_safe_with_any_index(photographs):
    points = scene_points(4)
    with pytest.raises(RuntimeError, match="sources"):
        torch.ops.nsr.patch_ncc(*op_arguments([*points[:4], points[4][:3]], photographs), False)
    with pytest.raises(RuntimeError, match="centers"):
        torch.ops.nsr.patch_ncc(*op_arguments(points, replace(photographs, centers=photographs.centers[:2])), False)
    far = torch.full_like(points[4], 10**12)
    assert not torch.ops.nsr.patch_ncc(*op_arguments([*points[:4], far], photographs), False)[1].any()
    assert not torch.ops.nsr.patch_ncc(*op_arguments([*points[:3], far[:, 0], points[4]], photographs), False)[1].any()


@pytest.mark.usefixtures("unchecked_signatures")
def test_images_and_cameras_that_do_not_fit():
    cameras = plane_cameras(VIEWS)
    grey = plane_photographs(cameras)
    with pytest.raises(ValueError, match=r"expected the cameras of these images"):
        patch_images(grey[:, ::2, ::2], cameras)
    with pytest.raises(ValueError, match=r"the cameras are 3 of"):
        patch_images(grey, cameras[[0, 1, 2]])
    with pytest.raises(ValueError, match=r"torch.uint8"):
        patch_images((grey * 255).byte(), cameras)
    with pytest.raises(ValueError, match="2 x 2"):
        patch_images(grey[:, :1], replace(cameras, height=1))
