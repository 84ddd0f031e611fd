"""Sets of voxels."""

import torch

from nsr.geometry.visual_hull import grid_axis
from nsr.geometry.voxels import Voxels


def one_voxel() -> Voxels:
    voxels = Voxels(torch.zeros(9, 9, 9, dtype=torch.bool), 2.0)
    voxels.occupied[6, 1, 4] = True
    return voxels


def test_a_vertex_stands_for_the_cell_around_it():
    voxels = one_voxel()
    axis = grid_axis(9, 2.0)
    vertex = torch.stack([axis[6], axis[1], axis[4]])
    assert voxels.size == 0.5
    for axis, offset, inside in [(0, 0.24, True), (0, 0.26, False), (1, -0.24, True), (1, -0.26, False), (2, 0.24, True)]:
        point = vertex.clone()
        point[axis] += offset
        assert voxels.contain(point) == inside
    assert voxels.contain(vertex.expand(3, 2, 3)).shape == (3, 2)
    assert not voxels.contain(torch.tensor([[9.0, 0.0, 0.0]])).any()  # beyond the grid counts as its border


def test_growing_reaches_along_all_axes_and_ends_at_the_border():
    grown = one_voxel().grown(2).occupied
    expected = torch.zeros(9, 9, 9, dtype=torch.bool)
    expected[4:9, 0:4, 2:7] = True
    assert torch.equal(grown, expected)


def test_shrinking_is_growing_of_what_is_not_occupied():
    cells = torch.zeros(9, 9, 9, dtype=torch.bool)
    cells[2:7, 2:7, 2:7] = True
    expected = torch.zeros_like(cells)
    expected[4, 4, 4] = True
    assert torch.equal(Voxels(cells, 1.0).shrunk(2).occupied, expected)
    assert torch.equal(Voxels(torch.ones_like(cells), 1.0).shrunk(2).occupied, torch.ones_like(cells))
