"""Rotations, similarity alignment, trainable cameras, and where a camera looks."""

import numpy as np
import pytest
import torch
from support.camera_rings import ring

from nsr.geometry.cameras import project_all
from nsr.geometry.poses import (
    TrainableCameras,
    align_cameras,
    look_at,
    mean_up,
    quaternion_to_rotation,
    rotation_error_degrees,
    rotation_to_quaternion,
    transform_cameras,
    umeyama,
)
from nsr.types import Cameras


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    return quaternion_to_rotation(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).double())


def test_quaternion_known_rotation():
    half = np.pi / 4  # 90 degrees about z takes x to y
    rotation = quaternion_to_rotation(torch.tensor([np.cos(half), 0, 0, np.sin(half)]))
    torch.testing.assert_close(rotation @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0.0, 1, 0]).double())


def test_quaternion_round_trip_including_half_turns():
    rotations = torch.cat([random_rotations(200), torch.eye(3).double()[None]])
    for axis in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.6, 0.8, 0], [-0.6, 0, 0.8]):  # w = 0
        rotations = torch.cat([rotations, quaternion_to_rotation(torch.tensor([0.0, *axis]).double())[None]])
    quaternion = rotation_to_quaternion(rotations)
    torch.testing.assert_close(quaternion.norm(dim=-1), torch.ones(len(rotations)).double())
    assert (quaternion[:, 0] >= 0).all()
    torch.testing.assert_close(quaternion_to_rotation(quaternion), rotations)


def test_quaternion_derivatives():
    quaternion = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    assert torch.autograd.gradcheck(quaternion_to_rotation, quaternion)
    assert torch.autograd.gradcheck(lambda q: rotation_to_quaternion(quaternion_to_rotation(q)), quaternion)


@pytest.mark.parametrize("degrees", [1e-4, 0.5, 90.0, 179.9])
def test_rotation_error(degrees):
    half = np.radians(degrees) / 2
    turn = quaternion_to_rotation(torch.tensor([np.cos(half), np.sin(half) * 0.6, 0.0, np.sin(half) * 0.8]))
    base = random_rotations(1)[0]
    assert float(rotation_error_degrees(turn @ base, base)) == pytest.approx(degrees, rel=1e-6)


def test_umeyama_recovers_a_similarity():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(30, 3))
    rotation = random_rotations(1, seed=3)[0].numpy()
    target = 2.5 * source @ rotation.T + [10, -20, 5]
    found = umeyama(source, torch.from_numpy(target))
    np.testing.assert_allclose(found[:3, :3], 2.5 * rotation, atol=1e-12)
    np.testing.assert_allclose(found[:3, 3], [10, -20, 5], atol=1e-11)


def test_umeyama_is_the_least_squares_optimum():
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))

    def cost(matrix):
        return np.square(source @ matrix[:3, :3].T + matrix[:3, 3] - target).sum()

    best = umeyama(source, target)
    for _ in range(50):  # no nearby similarity is better
        turn = quaternion_to_rotation(torch.from_numpy(np.r_[1, 0.05 * rng.normal(size=3)])).numpy()
        other = best.copy()
        other[:3, :3] = (1 + 0.05 * rng.normal()) * turn @ best[:3, :3]
        other[:3, 3] += 0.05 * rng.normal(size=3)
        assert cost(other) >= cost(best)


@pytest.mark.parametrize("flat", [False, True])
def test_umeyama_never_mirrors(flat):
    source = np.random.default_rng(2).normal(size=(10, 3))
    if flat:
        source[:, 2] = 0
    found = umeyama(source, source * [1, 1, -1] if not flat else source * [-1, 1, 1])
    assert np.linalg.det(found[:3, :3]) > 0
    if flat:  # a plane's mirror image is a half turn away
        np.testing.assert_allclose(source @ found[:3, :3].T + found[:3, 3], source * [-1, 1, 1], atol=1e-12)


def test_umeyama_rejects_other_shapes():
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        umeyama(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="NaN"):
        umeyama(np.full((4, 3), np.nan), np.zeros((4, 3)))


@pytest.mark.parametrize("views", [1, 2, 3, 12])
def test_align_cameras_even_where_centres_do_not_fix_the_rotation(views):
    reference = ring(12)[list(range(views))]
    similarity = np.eye(4)
    similarity[:3, :3] = 3 * random_rotations(1, seed=5)[0].numpy()
    similarity[:3, 3] = [1, 2, 3]
    estimated = transform_cameras(reference, np.linalg.inv(similarity))
    moved = transform_cameras(estimated, align_cameras(estimated, reference))
    torch.testing.assert_close(moved.camera_to_world, reference.camera_to_world, atol=1e-5, rtol=1e-5)


def test_transform_cameras_keeps_what_they_see():
    cameras = ring(5)
    similarity = np.eye(4)
    similarity[:3, :3] = 120 * random_rotations(1, seed=7)[0].numpy()
    similarity[:3, 3] = [30, -10, 600]
    points = torch.rand(20, 3) - 0.5
    moved_points = points.double() @ torch.from_numpy(similarity[:3, :3]).T + torch.from_numpy(similarity[:3, 3])
    moved = transform_cameras(cameras, similarity)
    torch.testing.assert_close(project_all(moved, moved_points.float())[0], project_all(cameras, points)[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.linalg.det(moved.camera_to_world[:, :3, :3]), torch.ones(5))


def test_trainable_cameras_start_where_they_were():
    cameras = ring(6)
    poses = TrainableCameras(cameras)
    torch.testing.assert_close(poses.cameras().camera_to_world, cameras.camera_to_world, atol=1e-6, rtol=0)
    view = torch.tensor([4, 0, 4])
    torch.testing.assert_close(poses(view), cameras.camera_to_world[view], atol=1e-6, rtol=0)


def test_trainable_cameras_sparse_step_moves_only_the_views_drawn():
    poses = TrainableCameras(ring(6))
    before = poses.poses.weight.detach().clone()
    optimiser = torch.optim.SparseAdam(poses.parameters(), lr=1e-2)
    poses(torch.tensor([1, 3, 1]))[:, :3].square().sum(dim=(1, 2)).sum().backward()
    assert poses.poses.weight.grad.is_sparse
    optimiser.step()
    moved = (poses.poses.weight.detach() - before).abs().amax(-1) > 0
    assert moved.tolist() == [False, True, False, True, False, False]


def test_trainable_cameras_recover_a_shifted_view():
    truth = ring(4)
    points = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    wanted = project_all(truth, points)[0]
    pose = truth.camera_to_world.clone()
    pose[2, :3, 3] += torch.tensor([0.1, -0.05, 0.08])
    poses = TrainableCameras(Cameras(truth.intrinsics, pose, 160, 100), sparse=False)
    optimiser = torch.optim.Adam(poses.parameters(), lr=1e-2)
    assert (project_all(poses.cameras(), points)[0] - wanted).abs().max() > 4
    for _ in range(300):
        optimiser.zero_grad()
        (project_all(poses.cameras(), points)[0] - wanted).square().mean().backward()
        optimiser.step()
    assert (project_all(poses.cameras(), points)[0] - wanted).abs().max() < 0.2


def test_look_at_puts_target_ahead_and_up_above():
    pose = look_at(torch.tensor([[3.0, 0, 0], [0, 0, 5.0]]), torch.zeros(3), torch.tensor([0.0, 0, 1.0]))
    torch.testing.assert_close(torch.linalg.det(pose[:, :3, :3]), torch.ones(2))
    torch.testing.assert_close(pose[0, :3, 2], torch.tensor([-1.0, 0, 0]))
    torch.testing.assert_close(pose[0, :3, 1], torch.tensor([0.0, 0, -1.0]))  # down in the image is down in the world
    torch.testing.assert_close(pose[1, :3, 2], torch.tensor([0.0, 0, -1.0]))  # straight from above: any roll, no NaN


@pytest.mark.parametrize("roll", [0.0, np.pi / 2])
def test_mean_up_of_a_ring_even_on_its_side(roll):
    up = mean_up(ring(12, roll=roll))
    assert abs(float(up[2])) == pytest.approx(1, abs=1e-5)
    if roll == 0:
        assert up[2] > 0
