"""Camera paths: turntable, spline and orbit."""

import numpy as np
import pytest
import torch
from scipy.spatial import Delaunay
from support.camera_rings import ring

from nsr.geometry.camera_paths import orbit_cameras, spline_cameras, turntable_cameras
from nsr.geometry.cameras import image_pixels, pixel_rays, project_all, ray_sphere
from nsr.geometry.poses import look_at, rotation_error_degrees
from nsr.types import Cameras


@pytest.mark.parametrize("cameras", [ring(12), ring(3, elevation=1.2), ring(12)[[0]]], ids=["ring", "high", "one"])
def test_turntable_sees_the_whole_unit_sphere(cameras):
    path = turntable_cameras(cameras, 24)
    assert len(path) == 24
    border = image_pixels(160, 100)
    border = border[(border[:, 0] % 159 == 0) | (border[:, 1] % 99 == 0)]
    view = torch.zeros(len(border), dtype=torch.long)
    hits = torch.stack([ray_sphere(pixel_rays(path[i], view, border), 0.98)[2] for i in range(24)])
    assert not hits.any()
    sphere = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    pixels, depth = project_all(path, sphere)
    assert (depth > 0).all()
    assert (pixels >= -0.5).all()
    assert (pixels <= torch.tensor([159.5, 99.5])).all()


def test_turntable_goes_once_round():
    path = turntable_cameras(ring(12), 10)
    angle = torch.atan2(path.centers[:, 1], path.centers[:, 0])
    steps = torch.rad2deg((angle.roll(-1) - angle) % (2 * torch.pi))
    torch.testing.assert_close(steps, torch.full((10,), 36.0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_spline_is_smooth_closed_and_looks_at_the_origin(count):
    cameras = ring(12)[list(range(count))]
    path = spline_cameras(cameras, 80)
    rotation = path.camera_to_world[:, :3, :3]
    turns = rotation_error_degrees(rotation, rotation.roll(1, 0))
    assert turns.max() < 15
    assert turns.min() > 0
    pixels, depth = project_all(path, torch.zeros(1, 3))
    assert (depth > 0).all()
    torch.testing.assert_close(pixels[:, 0], path.intrinsics[:, :2, 2], atol=1e-2, rtol=0)
    torch.testing.assert_close(path.centers.norm(dim=-1), torch.full((80,), 4.0), atol=0.2, rtol=0)


def test_spline_of_a_ring_passes_near_its_cameras():
    cameras = ring(8)
    nearest = torch.cdist(cameras.centers, spline_cameras(cameras, 400).centers).amin(1)
    assert nearest.max() < 0.1


def cameras_at(azimuth, elevation, distance=4.0) -> Cameras:
    """Level cameras that look at the origin; angles in degrees about the z axis."""
    around, above = (np.radians(np.asarray(angle, dtype=float)) for angle in (azimuth, elevation))
    eye = np.stack([np.cos(around) * np.cos(above), np.sin(around) * np.cos(above), np.sin(above)], axis=1)
    eye = torch.from_numpy(eye * np.reshape(distance, (-1, 1))).float()
    pose = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    k = torch.tensor([[200.0, 0.0, 80.0], [0.0, 200.0, 50.0], [0.0, 0.0, 1.0]]).repeat(len(eye), 1, 1)
    return Cameras(k, pose, 160, 100)


def angles_of(cameras: Cameras) -> np.ndarray:
    """[N, 2] azimuth and elevation in degrees."""
    centers = cameras.centers.double().numpy()
    x, y, z = (centers / np.linalg.norm(centers, axis=1, keepdims=True)).T
    return np.degrees(np.stack([np.arctan2(y, x), np.arcsin(z)], axis=1))


def check_smooth_closed_and_centred(path: Cameras) -> None:
    rotation = path.camera_to_world[:, :3, :3]
    turns = rotation_error_degrees(rotation, rotation.roll(1, 0))
    changes = (turns - turns.roll(1, 0)).abs()
    assert turns.max() < 6 * 240 / len(path)
    assert changes.max() < 0.2 * turns.max()  # no corner, and none where the path closes
    pixels, depth = project_all(path, torch.zeros(1, 3))
    assert (depth > 0).all()
    torch.testing.assert_close(pixels[:, 0], path.intrinsics[:, :2, 2], atol=2e-2, rtol=0)
    assert (path.camera_to_world[:, 2, 1] < 0).all()  # the image's top is up


GRID = np.stack(np.meshgrid(np.linspace(-50, 50, 7), np.linspace(10, 60, 7)), axis=-1).reshape(-1, 2)
PATCHES = {
    "DTU": GRID * (1 - 0.1 * (GRID[:, 1:] > 40)),
    "three": np.array([[-45.0, 5], [0, 12], [40, 3]]),
    "ball seen from the front": np.stack(
        [np.linspace(-115, 115, 40) * np.sin(np.arange(40)), np.linspace(-62, 62, 40)], axis=1
    ),
    "a steep band": np.stack([np.linspace(-50, 50, 60), np.linspace(-50, 50, 60) + 8 * np.sin(7.0 * np.arange(60))], axis=1),
    "behind the seam of the azimuths": np.array([[150.0, 10], [170, 40], [200, 20], [190, -5], [230, 15]]),
}


@pytest.mark.parametrize("name", PATCHES)
def test_orbit_stays_among_cameras_that_see_one_side(name):
    given = PATCHES[name]
    path = orbit_cameras(cameras_at(*given.T), 240)
    check_smooth_closed_and_centred(path)
    found = angles_of(path)
    found[:, 0] = given[:, 0].mean() + (found[:, 0] - given[:, 0].mean() + 180) % 360 - 180
    assert (Delaunay(given).find_simplex(found, tol=1e-6) >= 0).all()
    for axis, share in ((0, 0.4), (1, 0.2)):  # and it is not a mere point among them
        assert np.ptp(found[:, axis]) > share * min(np.ptp(given[:, axis]), 50)
    assert np.ptp(found[:, 1]) < 40.1


@pytest.mark.parametrize("count", [3, 8, 30])
def test_orbit_goes_all_round_where_the_cameras_do(count):
    azimuth = 360 / count * np.arange(count)
    path = orbit_cameras(cameras_at(azimuth, 20 + 10 * np.sin(np.arange(count) * 2.4)), 24)
    check_smooth_closed_and_centred(path)
    found = angles_of(path)
    np.testing.assert_allclose(np.diff(found[:, 0], append=found[0, 0]) % 360, 15, atol=1e-3)
    np.testing.assert_allclose(found[:, 1], np.median(20 + 10 * np.sin(np.arange(count) * 2.4)), atol=0.5)


def test_orbit_ignores_the_azimuth_of_cameras_overhead():
    azimuth, elevation = np.array([-30.0, 30, 0, 179]), np.array([10.0, 10, 30, 88])
    assert np.abs(angles_of(orbit_cameras(cameras_at(azimuth, elevation), 30))[:, 0]).max() <= 30


def test_orbit_keeps_the_distances():
    """Those of a ring about another centre, in between; and none beyond the cameras'."""
    azimuth = np.arange(0, 360, 10)
    distance = np.exp(1.4 + 0.2 * np.cos(np.radians(azimuth)))
    path = orbit_cameras(cameras_at(azimuth, 0 * azimuth, distance), 60)
    wanted = np.exp(1.4 + 0.2 * np.cos(np.radians(angles_of(path)[:, 0])))
    np.testing.assert_allclose(path.centers.norm(dim=-1), wanted, rtol=1e-4)
    few = orbit_cameras(cameras_at([-40, 0, 40, 10], [0, 30, 0, 12], [3, 4, 3.5, 5]), 60)
    assert few.centers.norm(dim=-1).min() >= 3 - 1e-5
    assert few.centers.norm(dim=-1).max() <= 5 + 1e-5


def test_orbit_of_cameras_in_a_line_or_in_one_place():
    line = angles_of(orbit_cameras(cameras_at([-30, 0, 10, 50], [5, 5, 5, 5]), 60))
    np.testing.assert_allclose([line[:, 0].min(), line[:, 0].max()], [-30, 50], atol=0.2)
    np.testing.assert_allclose(line[:, 1], 5, atol=0.2)
    place = angles_of(orbit_cameras(cameras_at([20], [60]), 60))
    np.testing.assert_allclose([np.ptp(place[:, 1]), np.ptp(place[:, 0])], [16, 32], atol=0.3)
    assert len(orbit_cameras(cameras_at([20, 20], [60, 60]), 1)) == 1
