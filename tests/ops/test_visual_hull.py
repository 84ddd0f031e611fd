"""The visual hull against its definition, native against reference, and what blocks of vertices must not change."""

import itertools

import pytest
import torch
from torch.library import opcheck

from nsr.geometry.poses import look_at
from nsr.ops.visual_hull import visual_hull


def random_cameras(views: int, width: int, height: int, dtype, seed: int, nearest: float = 0.3):
    """projections [V, 3, 4] and focals [V] of cameras at distances nearest to 4: some inside the grid, some far from it."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    eye = torch.nn.functional.normalize(uniform(views, 3) - 0.5, dim=-1) * (nearest + (4 - nearest) * uniform(views, 1))
    pose = look_at(eye, eye.new_tensor([0.1, -0.2, 0.05]), eye.new_tensor([0.1, 0.2, 1.0]))
    k = torch.zeros(views, 3, 3, dtype=torch.float64)
    k[:, 0, 0], k[:, 1, 1] = width * (0.5 + uniform(views)), width * (0.5 + uniform(views))
    k[:, 0, 1], k[:, 2, 2] = uniform(views), 1.0
    k[:, 0, 2], k[:, 1, 2] = width * uniform(views), height * uniform(views)
    rotation = pose[:, :3, :3].transpose(1, 2)
    projections = k @ torch.cat([rotation, -rotation @ eye[..., None]], dim=-1)
    return projections.to(dtype), k[:, [0, 1], [0, 1]].amax(-1).to(dtype)


def random_masks(views: int, width: int, height: int, seed: int, share: float = 0.2, cell: int = 1) -> torch.Tensor:
    """[V, H, W] of random cells: single pixels, or squares in which whole blocks of vertices find room."""
    coarse = torch.rand(views, -(-height // cell), -(-width // cell), generator=torch.Generator().manual_seed(seed)) < share
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :height, :width]


def by_definition(masks, projections, focals, axis, reach, min_views, max_misses) -> torch.Tensor:
    """All vertices against all object pixels of all views."""
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    size = torch.tensor([masks.shape[2], masks.shape[1]])
    seen_by, misses = torch.zeros(len(points)), torch.zeros(len(points))
    for mask, projection, focal in zip(masks, projections, focals, strict=True):
        image = points @ projection[:, :3].T + projection[:, 3]
        depth = image[:, 2]
        pixel = (image[:, :2] / depth[:, None] + 0.5).floor()
        seen = (depth > 0) & ((pixel >= 0) & (pixel < size)).all(-1)
        objects = mask.nonzero().flip(-1).to(pixel)
        away = torch.cdist(pixel, objects).amin(-1) if len(objects) else torch.full_like(depth, torch.inf)
        seen_by += seen
        misses += seen & (away > reach * focal / depth + 0.5)
    return ((seen_by >= min_views) & (misses <= max_misses)).reshape(len(axis), len(axis), len(axis))


# views, width, height, vertices per axis, cell of the masks, reach, min_views, max_misses
CASES = {
    "plain": (6, 31, 22, 17, 3, 0.0, 1, 3),
    "one view": (1, 31, 22, 13, 4, 0.05, 1, 0),
    "one pixel": (3, 1, 1, 9, 1, 0.1, 1, 1),
    "one row": (4, 17, 1, 11, 2, 0.1, 0, 2),
    "one column": (4, 1, 17, 11, 2, 0.1, 1, 2),
    "one vertex": (2, 20, 20, 1, 20, 0.0, 1, 1),
    "reach beyond the image": (5, 13, 9, 10, 1, 3.0, 3, 1),
    "blocks": (4, 56, 40, 19, 24, 0.03, 2, 1),
    "no view": (0, 5, 5, 4, 1, 0.0, 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_is_its_definition(backend, case):
    views, width, height, resolution, cell, reach, min_views, max_misses = CASES[case]
    axis = torch.linspace(-1, 1, resolution, dtype=torch.float64) if resolution > 1 else torch.tensor([0.1]).double()
    for seed in range(2):
        masks = random_masks(views, width, height, seed, 0.5, cell)
        arguments = (masks, *random_cameras(views, width, height, torch.float64, seed), axis, reach, min_views, max_misses)
        expected = by_definition(*arguments)
        for name in ("native", "reference"):
            with backend(name):
                assert torch.equal(visual_hull(*arguments), expected)


def test_the_cases_are_neither_empty_nor_full():
    views, width, height, resolution, cell, *rules = CASES["blocks"]
    masks = random_masks(views, width, height, 0, 0.5, cell)
    cameras = random_cameras(views, width, height, torch.float64, 0)
    hull = visual_hull(masks, *cameras, torch.linspace(-1, 1, resolution, dtype=torch.float64), *rules)
    assert 0.1 < hull.float().mean() < 0.9


@pytest.mark.parametrize(("dtype", "differing"), [(torch.float64, 0.0), (torch.float32, 1e-4)])  # float32: pixels at .5
@pytest.mark.parametrize("cell", [7, 80])
@pytest.mark.parametrize("reach", [0.0, 0.02])
def test_native_equals_reference_and_any_number_of_threads(backend, dtype, differing, cell, reach):
    views, width, height, threads = 9, 320, 240, torch.get_num_threads()
    masks = random_masks(views, width, height, 1, 0.4, cell)
    axis = torch.linspace(-1, 1, 45, dtype=dtype)
    arguments = (masks, *random_cameras(views, width, height, dtype, 2, nearest=1.2), axis, reach, 2, 2)
    hulls = []
    try:
        for name, count in (("reference", 1), ("native", 1), ("native", 2)):
            torch.set_num_threads(count)
            with backend(name):
                hulls.append(visual_hull(*arguments))
    finally:
        torch.set_num_threads(threads)
    reference, one, two = hulls
    assert torch.equal(one, two)
    assert (one != reference).float().mean() <= differing
    assert 0.05 < reference.float().mean() < 0.95


def test_what_reaches_further_contains_what_reaches_less():
    masks = random_masks(5, 200, 150, 3, 0.05, 5)
    cameras = random_cameras(5, 200, 150, torch.float32, 3, nearest=2)
    hulls = [visual_hull(masks, *cameras, torch.linspace(-1, 1, 50), reach) for reach in (0.0, 0.02, 0.1, 0.5)]
    for less, more in itertools.pairwise(hulls):
        assert more[less].all()
        assert more.sum() > less.sum()


def test_empty_masks_carve_what_they_see_and_nothing_else(backend):
    masks = torch.zeros(1, 40, 50, dtype=torch.bool)
    projections, focals = random_cameras(1, 50, 40, torch.float64, 5, nearest=2)
    axis = torch.linspace(-1, 1, 30, dtype=torch.float64)
    left = visual_hull(masks, projections, focals, axis, 100.0, min_views=0)
    seen = visual_hull(~masks, projections, focals, axis)
    assert torch.equal(left, ~seen)
    assert 0 < seen.sum() < seen.numel()


@pytest.mark.usefixtures("unchecked_signatures")
def test_arguments_that_do_not_fit():
    masks, axis = torch.ones(2, 5, 6, dtype=torch.bool), torch.linspace(-1, 1, 4)
    projections, focals = random_cameras(2, 6, 5, torch.float32, 0)
    with pytest.raises(ValueError, match="masks is"):
        visual_hull(masks.byte(), projections, focals, axis)
    with pytest.raises(ValueError, match="masks is"):
        visual_hull(masks[:, :0], projections, focals, axis)
    with pytest.raises(ValueError, match="projections has shape"):
        visual_hull(masks, projections[:1], focals, axis)
    with pytest.raises(ValueError, match="projections is"):
        visual_hull(masks, projections.half(), focals, axis)
    with pytest.raises(ValueError, match="focals is"):
        visual_hull(masks, projections, focals.double(), axis)
    with pytest.raises(ValueError, match="reach is"):
        visual_hull(masks, projections, focals, axis, reach=float("nan"))
    with pytest.raises(ValueError, match="max_misses is -1"):
        visual_hull(masks, projections, focals, axis, max_misses=-1)
    with pytest.raises(ValueError, match="does not ascend"):
        visual_hull(masks, projections, focals, axis.flip(0))


def test_cameras_that_are_not_numbers_see_nothing(backend):
    masks = torch.zeros(1, 5, 6, dtype=torch.bool)
    projections, focals = torch.full((1, 3, 4), torch.nan), torch.ones(1)
    for name in ("native", "reference"):
        with backend(name):
            assert visual_hull(masks, projections, focals, torch.linspace(-1, 1, 9), min_views=0).all()
            assert not visual_hull(masks, projections, focals, torch.linspace(-1, 1, 9)).any()


def test_opcheck():
    masks = random_masks(2, 6, 5, 0)
    cameras = random_cameras(2, 6, 5, torch.float32, 0)
    opcheck(torch.ops.nsr.visual_hull, (masks, *cameras, torch.linspace(-1, 1, 10), 0.1, 1, 0))
