"""Fitting a prior's surface to silhouettes: its place, its size and its code come out as they were put in."""

import numpy as np
import pytest
import torch
import trimesh
from support.prior_balls import Ball, similarity
from support.two_balls import cameras_around
from torch import nn

from nsr.geometry.cameras import image_pixels, pixel_rays
from nsr.priors.fitting import FitConfig, fit_shape
from nsr.priors.shape import PriorShape
from nsr.priors.silhouette_rays import draw_rays, near_smallest, smallest_along, wrong_by

CONFIG = FitConfig(rays=1500, scale_spread=1.0)


class Ellipsoid(PriorShape):
    """|x| 0.3 wide; its code is the logarithm of the half axes along y and z, beside 0.5. A distance near the surface."""

    code_size = 2

    def __init__(self):
        super().__init__(1.0, np.eye(4))

    def distance(self, points, code):
        axes = torch.cat([torch.full_like(code[..., :1], 0.3), 0.5 * code.exp()], dim=-1)
        scaled = points / axes
        length = scaled.norm(dim=-1).clamp_min(1e-6)
        return (length - 1.0) * length / (scaled / axes).norm(dim=-1).clamp_min(1e-6)


def masks_of(shape, code, prior_from_scene, cameras):
    """[V, H, W] uint8, by looking along every pixel's ray."""
    matrix = torch.as_tensor(prior_from_scene, dtype=torch.float32)
    masks = []
    pixels = image_pixels(cameras.width, cameras.height)
    for view in range(len(cameras)):
        rays = pixel_rays(cameras, torch.full((len(pixels),), view), pixels)
        t = torch.linspace(2.0, 4.4, 120)
        points = (rays.origins[:, None] + t[None, :, None] * rays.directions[:, None]).reshape(-1, 3)
        sdf = shape.sdf(points @ matrix[:3, :3].T + matrix[:3, 3], code).reshape(len(pixels), -1)
        masks.append((sdf.min(dim=1).values < 0).reshape(cameras.height, cameras.width))
    return torch.stack(masks).to(torch.uint8) * 255


def drawn_from(masks, cameras, count=1500):
    return draw_rays(masks, cameras, count, 1.2, torch.Generator().manual_seed(0))


def generator():
    return torch.Generator().manual_seed(1)


def test_rays_are_of_both_sides_and_along_the_outlines():
    cameras, ball = cameras_around(3), Ball()
    drawn = drawn_from(masks_of(ball, ball.no_code(), np.eye(4), cameras), cameras)
    smallest = torch.linalg.cross(drawn.rays.origins, drawn.rays.directions).norm(dim=-1) - 0.5
    assert (smallest[drawn.side == 1] < 0.01).all()
    assert (smallest[drawn.side == -1] > -0.01).all()
    outline = drawn.side == 0
    assert 0.5 < outline.float().mean() < 0.75  # fewer of the others: some miss the ball
    assert smallest[outline].abs().max() < 0.015  # a pixel is 0.02 wide at that distance
    assert smallest[outline].mean().abs() < 0.002
    assert ((drawn.rays.at(drawn.near).norm(dim=-1) - 1.2).abs() < 1e-4).all()


def test_empty_and_full_masks_have_no_outline():
    cameras = cameras_around(2)
    shape = (2, cameras.height, cameras.width)
    for masks, side in ((torch.zeros(shape, dtype=torch.uint8), -1), (torch.full(shape, 255, dtype=torch.uint8), 1)):
        assert set(drawn_from(masks, cameras).side.tolist()) == {side}


def test_the_smallest_distance_along_a_ray_is_found_and_followed():
    cameras = cameras_around(4)
    ball = Ball(centre=(0.2, -0.1, 0.05))
    drawn = drawn_from(masks_of(ball, ball.no_code(), np.eye(4), cameras), cameras)

    def sdf(points):
        return ball.sdf(points, ball.no_code())

    closest = ((ball.centre - drawn.rays.origins) * drawn.rays.directions).sum(-1).clamp(drawn.near, drawn.far)
    exact = sdf(drawn.rays.at(closest))
    found = sdf(drawn.rays.at(smallest_along(sdf, drawn)))
    assert (found - exact).max() < 2e-3
    shifted = (closest + 0.02).clamp(drawn.near, drawn.far)
    assert (sdf(drawn.rays.at(near_smallest(sdf, drawn, shifted, 0.03))) - exact).max() < 1e-3


def test_only_the_sign_counts_in_and_out_of_the_masks():
    smallest = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.1, -0.1])
    wrong, counts = wrong_by(smallest, torch.tensor([1, 1, -1, -1, 0, 0]))
    assert wrong.tolist() == pytest.approx([0.1, 0.0, 0.0, -0.1, 0.1, -0.1])
    assert counts.tolist() == [1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("views", [3, 8])
def test_place_and_size_of_a_ball_are_found(views):
    cameras, ball = cameras_around(views), Ball()
    truth = similarity(1.25, offset=(0.15, -0.1, 0.05))  # prior_from_scene
    masks = masks_of(ball, ball.no_code(), truth, cameras)
    fitted = fit_shape(ball, drawn_from(masks, cameras), {"start": np.eye(4)}, CONFIG)
    radius, centre = 0.5 / 1.25, -torch.tensor([0.15, -0.1, 0.05]) / 1.25
    x = centre + radius * nn.functional.normalize(torch.randn(200, 3, generator=generator()), dim=-1)
    assert fitted.sdf(x).abs().mean() < 0.01
    assert fitted.agreement > 0.95
    held = fit_shape(ball, drawn_from(masks, cameras), {"start": np.eye(4)}, FitConfig(rays=1500, scale_spread=0.0))
    assert np.cbrt(np.linalg.det(held.prior_from_scene[:3, :3])) == pytest.approx(1.0, abs=1e-5)


def test_one_view_does_not_tell_the_size_and_the_likely_one_is_taken():
    """From one eye a larger ball further away looks the same."""
    cameras, ball = cameras_around(4)[[0]], Ball()
    masks = masks_of(ball, ball.no_code(), np.eye(4), cameras)
    begin = {"start": similarity(0.85, offset=(0.05, 0.0, 0.0))}
    sizes = {}
    for spread in (0.01, 1.0):
        fitted = fit_shape(ball, drawn_from(masks, cameras), begin, FitConfig(rays=1500, scale_spread=spread))
        sizes[spread] = float(np.cbrt(np.linalg.det(fitted.prior_from_scene[:3, :3])))
        assert fitted.agreement > 0.97
    assert sizes[0.01] == pytest.approx(0.85, abs=0.04)
    assert abs(sizes[1.0] - 0.85) > abs(sizes[0.01] - 0.85)


def test_code_and_pose_of_a_family_are_found():
    cameras, family = cameras_around(8), Ellipsoid()
    code = torch.tensor([0.3, -0.4])
    turned = trimesh.transformations.rotation_matrix(0.2, (0, 0, 1))
    masks = masks_of(family, code, turned, cameras)
    fitted = fit_shape(family, drawn_from(masks, cameras), {"start": np.eye(4)}, FitConfig(rays=1500, scale_spread=0.0))
    # Not by its numbers: with its axes exchanged, and turned by a right angle, an ellipsoid is the same.
    inward = nn.functional.normalize(torch.randn(300, 3, generator=generator()), dim=-1)
    surface = inward * torch.cat([torch.tensor([0.3]), 0.5 * code.exp()]) @ torch.as_tensor(turned[:3, :3]).float()
    assert fitted.sdf(surface).abs().max() < 0.015


def test_of_several_places_the_one_that_leads_furthest_is_taken():
    cameras, ball = cameras_around(5), Ball()
    masks = masks_of(ball, ball.no_code(), np.eye(4), cameras)
    begin = {"far": similarity(1.0, offset=(1.4, 0.0, 0.0)), "near": similarity(1.1, offset=(0.05, 0.0, 0.0))}
    assert fit_shape(ball, drawn_from(masks, cameras), begin, CONFIG).began == "near"
    with pytest.raises(ValueError, match="one place"):
        fit_shape(ball, drawn_from(masks, cameras), {}, CONFIG)


def test_seen_points_say_what_silhouettes_cannot_and_wrong_ones_do_not_matter():
    """One view tells no depth. Points on the surface do, a fifth of them being wrong."""
    cameras, ball = cameras_around(4)[[0]], Ball()
    truth = similarity(1.0, offset=tuple(0.25 * cameras.camera_to_world[0, :3, 2].tolist()[i] for i in range(3)))
    masks = masks_of(ball, ball.no_code(), truth, cameras)
    centre = -torch.as_tensor(truth[:3, 3], dtype=torch.float32)
    directions = nn.functional.normalize(torch.randn(600, 3, generator=generator()), dim=-1)
    seen = centre + 0.5 * directions
    seen[::5] += 0.5 * torch.rand(120, 3, generator=generator())
    config = FitConfig(rays=1500, scale_spread=0.0)
    with_points = fit_shape(ball, drawn_from(masks, cameras), {"start": np.eye(4)}, config, seen=seen)
    without = fit_shape(ball, drawn_from(masks, cameras), {"start": np.eye(4)}, config)
    exact = centre + 0.5 * directions
    assert with_points.sdf(exact).abs().mean() < 0.015
    assert without.sdf(exact).abs().mean() > 2 * with_points.sdf(exact).abs().mean()


def test_what_the_prior_cannot_follow_does_not_drag_it_along():
    """The masks go on below the ball, as a neck does below a head."""
    cameras, ball = cameras_around(6), Ball()
    neck = Ball(centre=(0.0, 0.0, -0.6), code_size=1)
    masks = masks_of(ball, ball.no_code(), np.eye(4), cameras)
    more = torch.maximum(masks, masks_of(neck, torch.tensor([np.log(0.25)], dtype=torch.float32), np.eye(4), cameras))
    assert (more != masks).float().mean() > 0.01
    begin = {"start": similarity(1.0, offset=(0.08, 0.0, 0.05))}
    fitted = fit_shape(ball, drawn_from(more, cameras), begin, CONFIG)
    x = 0.5 * nn.functional.normalize(torch.randn(300, 3, generator=generator()), dim=-1)
    assert fitted.sdf(x).abs().mean() < 0.015
