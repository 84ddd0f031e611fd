"""Source views: angles of a ring of cameras are known in closed form."""

import pytest
import torch

from nsr.geometry.poses import look_at
from nsr.geometry.source_views import source_views
from nsr.types import Cameras


def ring(degrees: list[float], distance: float = 3.0) -> Cameras:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    eyes = distance * torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()], dim=-1)
    pose = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)).float()
    return Cameras(torch.eye(3).expand(len(degrees), 3, 3), pose, 4, 4)


def test_the_nearest_views_far_enough_apart_are_taken_in_order():
    cameras = ring([0, 4, 10, 18, 30, -9, 55, 120])
    # From 0: 4 is too near, -9 and 10 fit, 18 is 8 from 10, 30 fits; 55 is the fifth, 120 is too far to look alike.
    assert source_views(cameras, count=6, min_angle=8.0)[0].tolist() == [5, 2, 3, 4, 6, -1]
    assert source_views(cameras, count=3, min_angle=8.0)[0].tolist() == [5, 2, 3]
    assert source_views(cameras, count=6, min_angle=9.0)[0].tolist() == [5, 2, 4, 6, -1, -1]
    assert source_views(cameras, count=6, min_angle=9.0, max_angle=30.0)[0].tolist() == [5, 2, 4, -1, -1, -1]


def test_a_single_view_has_no_sources():
    assert source_views(ring([0]), count=2, min_angle=5.0).tolist() == [[-1, -1]]


@pytest.mark.parametrize("views", [7, 36])
def test_no_view_is_its_own_source(views):
    table = source_views(ring([10.0 * i for i in range(views)]), count=4, min_angle=10.0)
    assert table.shape == (views, 4)
    assert not (table == torch.arange(views)[:, None]).any()
