"""Camera errors: invisible to similarities, exact for known disturbances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nsr.evaluation.poses import evaluate_cameras
from nsr.geometry.poses import transform_cameras
from nsr.types import Cameras
from nsr.utils.errors import DataError


def rotation(axis, degrees: float) -> torch.Tensor:
    axis = torch.nn.functional.normalize(torch.as_tensor(axis, dtype=torch.float64), dim=0)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.matrix_exp(cross * np.radians(degrees))


@pytest.fixture
def cameras():
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4, dtype=torch.float64).repeat(9, 1, 1)
    for pose in poses:
        pose[:3, :3] = rotation(torch.randn(3, generator=generator), float(torch.rand(1, generator=generator)) * 180)
        pose[:3, 3] = torch.randn(3, generator=generator) * 2
    return Cameras(torch.eye(3, dtype=torch.float64).repeat(9, 1, 1), poses, 40, 30)


def test_a_similarity_is_no_error(cameras):
    similarity = np.eye(4)
    similarity[:3, :3] = 120 * rotation((1, 2, 3), 77).numpy()
    similarity[:3, 3] = [5, -600, 70]
    errors = evaluate_cameras(cameras, transform_cameras(cameras, similarity))
    assert errors["rotation_error_degrees_max"] < 1e-9
    assert errors["translation_error_max"] < 1e-9
    assert errors["alignment_scale"] == pytest.approx(120)


def test_known_rotation_errors(cameras):
    poses = cameras.camera_to_world.clone()
    for i in range(9):
        poses[i, :3, :3] = poses[i, :3, :3] @ rotation((1, i, -1), float(i))
    errors = evaluate_cameras(Cameras(cameras.intrinsics, poses, 40, 30), cameras)
    assert errors["rotation_error_degrees_mean"] == pytest.approx(4)
    assert errors["rotation_error_degrees_median"] == pytest.approx(4)
    assert errors["rotation_error_degrees_max"] == pytest.approx(8)
    assert errors["translation_error_max"] < 1e-9


def test_known_translation_errors():
    """Centres at the corners of a cube, all moved by 0.3 along the diagonals but alternately in and out."""
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(8, 1, 1)
    poses[:, :3, 3] = corners
    moved = poses.clone()
    # Sign by parity: a cubic harmonic, orthogonal to every infinitesimal similarity.
    moved[:, :3, 3] += 0.3 * corners * corners.prod(dim=1, keepdim=True) / 3**0.5
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(8, 1, 1)
    errors = evaluate_cameras(Cameras(intrinsics, moved, 4, 3), Cameras(intrinsics, poses, 4, 3))
    assert errors["rotation_error_degrees_max"] < 1e-6
    # The best scale s minimises the sum over s (sqrt 3 +- 0.3) - sqrt 3.
    radius = np.sqrt(3) + np.array([0.3, -0.3])
    scale = np.sqrt(3) * radius.sum() / (radius**2).sum()
    expected = np.abs(scale * radius - np.sqrt(3))
    assert errors["translation_error_mean"] == pytest.approx(expected.mean())
    assert errors["translation_error_max"] == pytest.approx(expected.max())
    assert errors["translation_error_percent_mean"] == pytest.approx(100 * expected.mean() / np.sqrt(3))


def test_errors(cameras):
    with pytest.raises(DataError, match="9 and 4"):
        evaluate_cameras(cameras, cameras[:4])
    broken = cameras.camera_to_world.clone()
    broken[2, 0, 3] = float("nan")
    with pytest.raises(DataError, match="estimated camera"):
        evaluate_cameras(Cameras(cameras.intrinsics, broken, 40, 30), cameras)
