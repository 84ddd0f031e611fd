"""Carving by stereo on a ball painted with waves, inside hulls that are larger than it."""

import dataclasses

import pytest
import torch

from nsr.geometry.visual_hull import grid_axis
from nsr.geometry.voxels import Voxels
from nsr.training.patch_match import PatchMatch
from nsr.training.settings import PhotometricConfig
from nsr.training.stereo import FEWER, PlaneSweep, StereoStart, carve_by_stereo
from tests.support.painted_ball import RADIUS, PaintedBall, photographs, ring_of_cameras

RESOLUTION, EXTENT = 64, 1.0
CONFIG = PhotometricConfig(min_std=0.0)


class WavyBall(PaintedBall):
    """Waves of so many lengths and directions that no two places look alike."""

    def color(self, points, view_dirs):
        generator = torch.Generator().manual_seed(0)
        waves = 25.0 * torch.randn(3, 24, generator=generator)
        phases = 6.3 * torch.rand(24, generator=generator)
        return (0.5 + 0.06 * torch.sin(points @ waves + phases).sum(-1))[..., None].repeat(1, 3)


@pytest.fixture(scope="module")
def scene():
    """30 views around a ball of about 130 pixels across."""
    cameras = ring_of_cameras(views=30, width=160, height=120)
    intrinsics = cameras.intrinsics * torch.tensor([4.0, 4.0, 1.0])[:, None]
    return photographs(dataclasses.replace(cameras, intrinsics=intrinsics), WavyBall())


def vertices() -> torch.Tensor:
    axis = grid_axis(RESOLUTION, EXTENT)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def ball(radius: float, centre=(0.0, 0.0, 0.0)) -> Voxels:
    return Voxels((vertices() - torch.tensor(centre)).norm(dim=-1) < radius, EXTENT)


def carve(hull: Voxels, scene, config=CONFIG) -> StereoStart:
    return carve_by_stereo(hull, scene, config, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def carved(scene) -> StereoStart:
    """What stereo makes of a ball of radius 0.85."""
    return carve(ball(0.85), scene)


def test_depths_lie_on_the_painted_ball(scene):
    sweep = PlaneSweep(scene, CONFIG, ball(0.85))
    found = sweep.depths()
    depths = sweep.consistent(found)
    assert 0.3 < depths.isfinite().sum() / sweep.swept.sum() < found.isfinite().sum() / sweep.swept.sum()
    points = torch.cat([sweep._points(view, depths) for view in range(len(scene))])
    error = (points[points.isfinite().all(1)].norm(dim=-1) - RADIUS).abs()
    assert error.median() < 0.5 * sweep.hull.size
    assert error.quantile(0.98) < 2.5 * sweep.hull.size


def test_what_is_in_front_of_the_surface_is_carved_and_the_object_is_not(carved):
    hull, left = ball(0.85), carved.surface.occupied
    assert not (left & ~hull.occupied).any()
    assert left[ball(RADIUS - 2.0 * hull.size).occupied].float().mean() > 0.999  # a few single voxels vanish when blurred
    points = vertices()
    faced = points[..., 2].abs() < 0.3
    front = hull.occupied & (points.norm(dim=-1) > RADIUS + 3.0 * hull.size) & faced
    assert left[front].float().mean() < 0.05


def depths_of_the_ball(sweep: PlaneSweep) -> torch.Tensor:
    """The true ones, [V, h, w]."""
    along = -(sweep.rays.origins * sweep.rays.directions).sum(-1)
    return sweep.maps(along - (along.square() - sweep.rays.origins.square().sum(-1) + RADIUS**2).sqrt())


def test_one_view_carves_where_it_is_certain_and_only_two_where_not(scene):
    sweep = PlaneSweep(scene, CONFIG, ball(0.85))
    depths = depths_of_the_ball(sweep)
    alone, both = (torch.where(torch.arange(len(depths))[:, None, None] < views, depths, torch.nan) for views in (1, 2))
    nobody, all_ = (torch.full((len(sweep.view),), certain) for certain in (False, True))
    whole = sweep.hull.occupied
    assert torch.equal(sweep.carve(alone, nobody).occupied, whole)
    certain = sweep.carve(alone, all_).occupied
    assert (whole & ~certain).sum() > 1000
    of_two = sweep.carve(both, nobody).occupied
    assert 0 < (whole & ~of_two).sum() < (whole & ~sweep.carve(both, all_).occupied).sum()
    solid = ball(RADIUS - 2.0 * sweep.hull.size).occupied
    assert certain[solid].float().mean() > 0.999  # a ray is looked up that passes a pixel beside


def test_rays_beside_share_a_plane_with_what_they_have_found_on_it_alone(scene):
    sweep = PlaneSweep(scene, CONFIG, ball(0.85))
    maps = depths_of_the_ball(sweep)
    depths = maps[sweep.swept]
    planes = PatchMatch(sweep, depths.nan_to_num(), torch.Generator())
    planes.normal = torch.nn.functional.normalize(sweep.rays.at(depths), dim=-1)
    inner = depths.isfinite() & (planes.beside >= 0).all(dim=1) & depths[planes.beside].isfinite().all(dim=1)
    known = depths.isfinite()
    share = planes.share(depths)
    assert (share[known] > 0).float().mean() > 0.95  # not at the rim, where neighbours are far apart
    assert share[inner].mean() > 0.9
    assert (share[~known] == 0).all()
    scattered = depths - 5.0 * torch.rand(len(depths), generator=torch.Generator().manual_seed(0))
    planes.distance = scattered.nan_to_num()
    assert (planes.share(scattered)[known] > 0).float().mean() < 0.3
    assert planes.share(scattered)[inner].mean() < 0.1
    single = torch.full_like(maps, torch.nan)
    single[:, ::3, ::3] = maps[:, ::3, ::3]  # no two beside each other
    alone = single[sweep.swept].isfinite()
    assert (planes.share(single[sweep.swept])[alone] == 0).all()


def test_scores_are_averaged_with_the_rays_beside_but_for_a_step_in_depth(scene):
    sweep = PlaneSweep(scene, CONFIG, ball(0.85))
    planes = PatchMatch(sweep, torch.ones(len(sweep.view)), torch.Generator())
    inner = (planes.beside >= 0).all(dim=1).nonzero()[0, 0]
    border = (planes.beside < 0).any(dim=1).nonzero()[0, 0]
    common = torch.zeros(len(sweep.view), 12)
    common[:, 5] = 0.9
    common[planes.beside[inner], 5] = 0.0
    common[planes.beside[inner], 6] = 0.9  # a step behind
    everywhere = planes.with_those_beside(common)
    assert everywhere[inner, [5, 8]].tolist() == pytest.approx([0.9, 0.0])
    uniform = planes.with_those_beside(torch.full((len(sweep.view), 12), 0.9))
    assert uniform[border].tolist() == pytest.approx([0.9] * 12)  # of the rays there are
    lonely = torch.zeros(len(sweep.view), 12)
    lonely[inner, 5] = 0.9
    assert planes.with_those_beside(lonely)[inner].max() == pytest.approx(0.1)


def right(planes: PatchMatch, sweep: PlaneSweep) -> float:
    """Share of the rays that see the ball whose planes lie within half a voxel of it."""
    error = (planes.distance - depths_of_the_ball(sweep)[sweep.swept]).abs()
    return (error[error.isfinite()] < 0.5 * sweep.hull.size).float().mean().item()


def test_planes_that_neighbours_share_are_right_where_matches_are_poor(scene, monkeypatch):
    few = scene.select([0, 2, 4])
    grain = 25.0 * torch.randn(few.images.shape[:3], generator=torch.Generator().manual_seed(1))[..., None]
    noisy = dataclasses.replace(few, images=(few.images + grain).clamp(0, 255).to(torch.uint8))
    sweep = PlaneSweep(noisy, CONFIG, ball(0.85))
    tried, scores = sweep.scores()
    first = tried.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]

    def settled() -> tuple[float, float]:
        planes = PatchMatch(sweep, first, torch.Generator().manual_seed(0))
        planes.refine()
        before = right(planes, sweep)
        planes.settle()
        return before, right(planes, sweep)

    before, after = settled()
    assert after > 1.15 * before
    monkeypatch.setattr("nsr.training.patch_match.SHARE_WEIGHT", 0.0)
    assert after > 1.1 * settled()[1]  # not by searching longer


def test_a_hull_without_filled_cavities_stays(scene):
    exact = ball(RADIUS)
    left = carve(exact, scene).surface.occupied
    assert (exact.occupied & ~left).sum() < 0.02 * exact.occupied.sum()


def with_piece(radius: float, centre) -> Voxels:
    """The painted ball, smaller, and a piece beside it that touches it not."""
    return Voxels(ball(0.3).occupied | ball(radius, centre).occupied, EXTENT)


def test_a_piece_that_the_masks_need_stays_without_depths(scene):
    hull = with_piece(0.1, (0.0, 0.0, 0.5))  # above, where no view of the ring has anything else in its place
    sweep = PlaneSweep(scene, CONFIG, hull)
    kept = sweep.without_remnants(hull, torch.full(sweep.swept.shape, torch.nan))
    assert torch.equal(kept.occupied, hull.occupied)


def test_a_piece_that_floats_before_the_object_goes(scene):
    towards = torch.nn.functional.normalize(scene.cameras.centers[0], dim=0)
    hull = with_piece(0.1, (0.5 * towards).tolist())
    near = [0, 1, 29]  # from where the object is behind it
    sweep = PlaneSweep(scene.select(near), CONFIG, hull)
    nothing = torch.full(sweep.swept.shape, torch.nan)
    assert torch.equal(sweep.without_remnants(hull, nothing).occupied, ball(0.3).occupied)
    depths = nothing.clone()
    points = sweep._points(0, torch.full_like(depths, 1.8 - 0.6))  # on the piece's near side
    on_piece = (points - 0.5 * towards).norm(dim=-1) < 0.11
    depths[0, sweep.swept[0]] = torch.where(on_piece, 1.8 - 0.6, torch.nan)
    assert torch.equal(sweep.without_remnants(hull, depths).occupied, hull.occupied)  # stereo has seen it


class Lamp(PaintedBall):
    """One colour, lit from the camera: it looks alike from everywhere, so its shading matches at wrong depths too."""

    def color(self, points, view_dirs):
        facing = -(torch.nn.functional.normalize(points, dim=-1) * view_dirs).sum(-1)
        return (0.1 + 0.8 * facing.clamp(min=0))[..., None].repeat(1, 3)


def test_shading_that_matches_everywhere_carves_nothing(scene):
    exact = ball(RADIUS)
    start = carve(exact, photographs(scene.cameras, Lamp()))
    assert (exact.occupied & ~start.surface.occupied).sum() < 0.005 * exact.occupied.sum()
    assert start.seen_through.occupied.sum() < 0.005 * exact.occupied.sum()


def test_large_photographs_are_compared_at_a_smaller_size(scene):
    sweep = PlaneSweep(scene, CONFIG, ball(0.85), width=80)
    assert sweep.images.images.shape[1:] == (60, 80)
    depths = sweep.consistent(sweep.depths())
    points = torch.cat([sweep._points(view, depths) for view in range(len(scene))])
    error = (points[points.isfinite().all(1)].norm(dim=-1) - RADIUS).abs()
    assert len(error) > 1000
    assert error.median() < 0.5 * sweep.hull.size


def test_a_share_of_the_rays_sees_less_of_the_same(scene, carved):
    hurried = carve_by_stereo(ball(0.85), scene, CONFIG, torch.Generator().manual_seed(0), share=0.25)
    assert 0.1 < len(hurried.points) / len(carved.points) < 0.5
    error = (hurried.points.norm(dim=-1) - RADIUS).abs()
    assert error.median() < 0.5 * 2 * EXTENT / (RESOLUTION - 1)


def test_photographs_without_texture_leave_the_hull(scene):
    blank = dataclasses.replace(scene, images=torch.full_like(scene.images, 128))
    hull = ball(0.7)
    assert torch.equal(carve(hull, blank, PhotometricConfig()).surface.occupied, hull.occupied)


def test_a_single_view_leaves_the_hull(scene):
    hull = ball(0.7)
    assert torch.equal(carve(hull, scene.select([0])).surface.occupied, hull.occupied)


def test_planes_found_by_patch_match_lie_in_the_surface(scene):
    sweep = PlaneSweep(scene, CONFIG, ball(0.85))
    tried, scores = sweep.scores()
    first = tried.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
    planes = PatchMatch(sweep, first, torch.Generator().manual_seed(0))
    begun = planes.score.clone()
    planes.refine()
    assert (planes.score >= begun).all()
    assert (planes.normal.norm(dim=-1) - 1.0).abs().max() < 1e-5
    good = planes.score > 0.97
    assert good.float().mean() > 1.3 * (begun > 0.97).float().mean()
    points = sweep.rays.at(planes.distance)[good]
    assert (points.norm(dim=-1) - RADIUS).abs().median() < 0.2 * sweep.hull.size
    tilted = (planes.normal != -sweep.rays.directions)[good].any(dim=-1)
    outwards = points[tilted] / RADIUS
    found, facing = ((normal[good][tilted] * outwards).sum(dim=-1) for normal in (planes.normal, -sweep.rays.directions))
    assert found.median() > 0.9 > 0.85 > facing.median()


def test_the_surface_seen_lies_closer_than_a_voxel_with_its_normals(carved):
    assert len(carved.points) > 1000
    assert (carved.points.norm(dim=-1) - RADIUS).abs().quantile(0.9) < 0.6 * carved.surface.size
    assert (carved.normals * torch.nn.functional.normalize(carved.points, dim=-1)).sum(dim=-1).median() > 0.9


def test_nothing_is_seen_where_nothing_is_left(scene, monkeypatch):
    """What one view has found and others have carved away, or what was cut off with a remnant, is no surface."""

    def half(sweep, carved, depths):
        occupied = carved.occupied.clone()
        occupied[: RESOLUTION // 2] = False
        return Voxels(occupied, EXTENT)

    monkeypatch.setattr(PlaneSweep, "without_remnants", half)
    start = carve(ball(0.85), scene)
    assert len(start.points) > 500
    assert start.surface.grown(1).contain(start.points).all()
    assert start.points[:, 0].min() > -2.0 * start.surface.size


def test_what_two_views_see_is_scored_without_the_others(scene):
    three = scene.select([0, 1, 2])
    blind = three.masks.clone()
    blind[2] = 0

    def best(views) -> float:
        sweep = PlaneSweep(views, CONFIG, ball(0.85))
        first = torch.arange(len(sweep.view))[sweep.view == 0]
        distance = sweep.rays.origins[first].norm(dim=-1) - RADIUS
        return sweep.score(distance, -sweep.rays.directions[first], first).max().item()

    assert best(three) > 0.95
    assert 0.75 < best(dataclasses.replace(three, masks=blind)) <= 1.0 - FEWER
