"""Projection matrices, rays and pixels: closed forms, round trips, derivatives."""

import numpy as np
import pytest
import torch

from nsr.geometry.cameras import (
    compose_projection,
    decompose_projection,
    image_pixels,
    pixel_rays,
    project,
    project_all,
    ray_sphere,
)
from nsr.geometry.poses import quaternion_to_rotation
from nsr.types import Cameras, Rays
from nsr.utils.errors import DataError


def random_cameras(count: int, seed: int = 0, dtype=torch.float64) -> Cameras:
    """Cameras with skew, unequal focal lengths and a principal point off the centre, in any direction."""
    generator = torch.Generator().manual_seed(seed)
    intrinsics = torch.tensor([[300.0, 4.0, 70.0], [0.0, 280.0, 41.0], [0.0, 0.0, 1.0]], dtype=dtype).repeat(count, 1, 1)
    intrinsics[:, :2] *= 1 + 0.2 * torch.rand(count, 1, 1, generator=generator, dtype=dtype)
    pose = torch.eye(4, dtype=dtype).repeat(count, 1, 1)
    pose[:, :3, :3] = quaternion_to_rotation(torch.randn(count, 4, generator=generator, dtype=dtype))
    pose[:, :3, 3] = 3 * torch.randn(count, 3, generator=generator, dtype=dtype)
    return Cameras(intrinsics, pose, 160, 90)


@pytest.mark.parametrize("factor", [1.0, -1.0, 250.0, -0.003])
def test_projection_round_trip_at_any_scale_and_sign(factor):
    cameras = random_cameras(20)
    k, pose = cameras.intrinsics.numpy(), cameras.camera_to_world.numpy()
    found_k, found_pose = decompose_projection(factor * compose_projection(k, pose))
    np.testing.assert_allclose(found_k, k, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found_pose, pose, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(found_pose[:, :3, :3]), 1, rtol=1e-12)
    assert (np.diagonal(found_k, axis1=1, axis2=2) > 0).all()


def test_projection_known_camera():
    # A camera at (1, 2, -5) looking along +z with the axes of the world: x goes right, y goes down.
    pose = np.eye(4)
    pose[:3, 3] = [1, 2, -5]
    k = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    pixel = compose_projection(k, pose) @ [2, 4, 5, 1]
    np.testing.assert_allclose(pixel / pixel[2], [60, 60, 1])


def test_decompose_takes_one_matrix_as_well_as_many():
    cameras = random_cameras(3)
    many = compose_projection(cameras.intrinsics.numpy(), cameras.camera_to_world.numpy())
    k, pose = decompose_projection(many[1])
    assert k.shape == (3, 3)
    assert pose.shape == (4, 4)
    np.testing.assert_allclose(k, decompose_projection(many)[0][1])


@pytest.mark.parametrize("spoil", ["nan", "inf", "singular", "zero"])
def test_decompose_refuses_what_is_no_camera(spoil):
    matrix = compose_projection(np.diag([100.0, 100.0, 1.0]), np.eye(4))
    if spoil in ("nan", "inf"):
        matrix[1, 2] = float(spoil)
    elif spoil == "singular":
        matrix[0] = 2 * matrix[1]
    else:
        matrix[:] = 0
    with pytest.raises(DataError):
        decompose_projection(matrix)


def test_rays_and_projection_are_inverse():
    cameras = random_cameras(5)
    view = torch.arange(5).repeat_interleave(40)
    pixels = torch.rand(200, 2, dtype=torch.float64) * torch.tensor([160.0, 90.0]) - 0.5
    rays = pixel_rays(cameras, view, pixels)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(200, dtype=torch.float64))
    distance = 0.1 + 5 * torch.rand(200, dtype=torch.float64)
    found, depth = project(cameras, view, rays.at(distance))
    torch.testing.assert_close(found, pixels, rtol=1e-9, atol=1e-9)
    assert (depth > 0).all()
    behind = project(cameras, view, rays.at(-distance))[1]
    assert (behind < 0).all()


def test_project_all_is_project_for_every_view():
    cameras, points = random_cameras(4), torch.randn(7, 3, dtype=torch.float64)
    pixels, depth = project_all(cameras, points)
    view = torch.arange(4).repeat_interleave(7)
    one_by_one, one_depth = project(cameras, view, points.repeat(4, 1))
    torch.testing.assert_close(pixels.reshape(-1, 2), one_by_one)
    torch.testing.assert_close(depth.reshape(-1), one_depth)


def test_a_point_in_the_camera_centre_stays_finite():
    cameras = random_cameras(1)
    pixels, depth = project_all(cameras, cameras.centers)
    assert pixels.isfinite().all()
    assert depth.abs().max() < 1e-9


def test_pixel_rays_derivatives():
    cameras = random_cameras(2)
    view, pixels = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 5.0], [100.0, 20.0], [0.0, 89.0]]).double()

    def rays_of(intrinsics, pose, pixels):
        rays = pixel_rays(Cameras(intrinsics, pose, 160, 90), view, pixels)
        return rays.origins, rays.directions

    inputs = [t.clone().requires_grad_() for t in (cameras.intrinsics, cameras.camera_to_world, pixels)]
    assert torch.autograd.gradcheck(rays_of, inputs)


def test_image_pixels_are_row_by_row():
    pixels = image_pixels(3, 2)
    assert pixels.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_ray_sphere_closed_form():
    origins = torch.tensor([[0.0, 0, -3], [0, 0, 0], [0, 0, 3], [0, 2, -3], [0.6, 0, -100], [0, 1, -3]]).double()
    rays = Rays(origins, torch.tensor([[0.0, 0, 1]]).double().expand(6, 3))
    near, far, hits = ray_sphere(rays, 1.0)
    assert hits.tolist() == [True, True, False, False, True, False]  # ahead, inside, behind, beside, off-axis, touching
    torch.testing.assert_close(near, torch.tensor([2, 0, 0, 3, 99.2, 3]).double())
    torch.testing.assert_close(far, torch.tensor([4, 1, 0, 3, 100.8, 3]).double())


def test_ray_sphere_keeps_its_digits_far_away():
    distance = 1000.0
    rays = Rays(torch.tensor([[0.8, 0.0, -distance]]), torch.tensor([[0.0, 0.0, 1.0]]))
    near, far, _ = ray_sphere(rays, 1.0)
    assert float(far - near) == pytest.approx(1.2, abs=2e-4)  # float32 spacing at 1000 is 6e-5


def test_ray_sphere_derivatives_are_finite_for_misses():
    origins = torch.tensor([[0.0, 1.0, -3.0], [0.0, 5.0, -3.0]], requires_grad=True)
    near, far, _ = ray_sphere(Rays(origins, torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3)), 1.0)
    (near + far).sum().backward()
    assert origins.grad.isfinite().all()
