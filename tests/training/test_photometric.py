"""The photometric term on a ball painted with waves: where its surface is and who sees it is known in closed form."""

import dataclasses

import pytest
import torch

from nsr.datasets.sampling import PixelSampler
from nsr.geometry.cameras import pixel_rays
from nsr.models.idr import TrainingOutput
from nsr.ops.sphere_trace import TraceOptions, trace
from nsr.training.photometric import PhotometricTerm
from nsr.training.settings import PhotometricConfig
from tests.support.painted_ball import RADIUS, PaintedBall, photographs, ring_of_cameras
from tests.support.painted_plane import paint


class WavyBall(PaintedBall):
    """blocker: a small ball beside it that was not there when the photographs were taken."""

    blocker: torch.Tensor | None = None

    def color(self, points, view_dirs):
        return paint(2.0 * points)[..., None].repeat(1, 3)

    def trace(self, rays):
        def sdf(x):
            ball = self.sdf(x)
            return ball if self.blocker is None else torch.minimum(ball, (x - self.blocker).norm(dim=-1) - 0.05)

        return trace(sdf, rays, TraceOptions())


@pytest.fixture(scope="module")
def scene():
    """30 views around a ball of about 130 pixels across."""
    cameras = ring_of_cameras(views=30, width=160, height=120)
    intrinsics = cameras.intrinsics * torch.tensor([4.0, 4.0, 1.0])[:, None]
    return photographs(dataclasses.replace(cameras, intrinsics=intrinsics), WavyBall())


def term_of(scene, **changes):
    settings = {"rays": 300, "levels": 3, "level_steps": 10, "min_std": 0.0} | changes
    return PhotometricTerm(scene, PhotometricConfig(**settings))


def seen(scene, radius: float, rays: int = 400):
    """A batch, and what the model's forward pass would say of it if the ball had another radius."""
    sampler = PixelSampler(scene, seed=0, inside_share=1.0, uniform_share=0.0, band_px=2)
    batch = sampler.draw(rays)
    camera_rays = pixel_rays(scene.cameras, batch.view, batch.pixels)
    b = (camera_rays.origins * camera_rays.directions).sum(-1)
    discriminant = b**2 - camera_rays.origins.square().sum(-1) + radius**2
    surface = discriminant > 0.02  # nor at grazing angles
    points = camera_rays.at(-b - discriminant.clamp(min=0).sqrt())[surface].requires_grad_()
    empty, zeros = torch.zeros(0, 3), torch.zeros(rays)
    return batch, TrainingOutput(
        surface, surface.nonzero()[:, 0], ~surface, points, points / radius, empty, zeros, zeros[:0], empty, empty, empty
    )


def test_it_is_least_on_the_true_surface(scene):
    term = term_of(scene, occlusion=False)
    losses = {radius: term(WavyBall(), *seen(scene, radius), level=0).item() for radius in (0.56, 0.59, RADIUS, 0.61, 0.64)}
    assert losses[RADIUS] < 0.05
    assert losses[0.56] > losses[0.59] > 1.3 * losses[RADIUS]
    assert losses[0.64] > losses[0.61] > 1.3 * losses[RADIUS]


@pytest.mark.parametrize("radius", [0.59, 0.61])
def test_its_gradient_leads_back_to_the_true_surface(scene, radius):
    batch, output = seen(scene, radius)
    term_of(scene, occlusion=False)(WavyBall(), batch, output, level=0).backward()
    outward = (output.points.grad * output.normal).sum(-1).sum()
    assert outward.sign() == (1 if radius > RADIUS else -1)  # the loss grows away from the surface


def test_coarse_levels_reach_further(scene):
    batch, output = seen(scene, 0.5)
    term_of(scene, occlusion=False, matched=1.0)(WavyBall(), batch, output, level=2).backward()
    assert (output.points.grad * output.normal).sum() < 0  # 0.1 of 0.6 off, it still leads outwards


@pytest.mark.parametrize(("asked", "levels"), [(0, 3), (2, 2), (9, 5)])
def test_the_coarsest_images_are_about_50_wide_and_hold_a_patch(scene, asked, levels):
    assert [len(term_of(scene, levels=asked).levels)] == [levels]  # of images of 160 x 120


def test_levels_follow_the_steps_and_end_at_full_size(scene):
    assert [term_of(scene).level(step) for step in (0, 9, 10, 19, 20, 5000)] == [2, 2, 1, 1, 0, 0]


def test_rays_that_match_at_full_size_do_not_look_at_the_coarse_level(scene):
    def loss(radius: float, **changes) -> float:
        return term_of(scene, occlusion=False, **changes)(WavyBall(), *seen(scene, radius), level=2).item()

    fine = term_of(scene, occlusion=False)(WavyBall(), *seen(scene, RADIUS), level=0).item()
    assert loss(RADIUS, matched=0.0) == pytest.approx(fine, rel=0.1)  # but for rays with fewer sources than count
    assert loss(RADIUS, matched=1.0) < 0.5 * fine  # nothing matches so well: all rays look at the coarse level


def test_views_that_something_hides_the_surface_from_do_not_count(scene):
    model = WavyBall()
    point = torch.tensor([[RADIUS, 0.0, 0.0]])
    term = term_of(scene)
    assert not term._hidden(model, point, torch.tensor([[0, 1, 2]])).any()
    model.blocker = 0.8 * point[0] + 0.2 * scene.cameras.centers[1]
    assert term._hidden(model, point, torch.tensor([[0, 1, 29]])).tolist() == [[False, True, False]]
    assert term._hidden(WavyBall(), point, torch.tensor([[15, 0, 0]]))[0, 0]  # on the far side of the ball itself


def test_a_source_that_shows_something_else_does_not_count(scene):
    """Every third photograph is noise: of the two sources of the others, the views beside them, one is."""
    noise = torch.randint(256, scene.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spoilt = torch.where((torch.arange(30) % 3 == 0)[:, None, None, None], noise, scene.images)
    batch, output = seen(scene, RADIUS)
    clean = batch.view % 3 != 0
    of_clean = clean[output.surface]
    output = output._replace(
        surface=output.surface & clean,
        ray=output.ray[of_clean],
        points=output.points[of_clean],
        normal=output.normal[of_clean],
    )

    def loss(images: torch.Tensor) -> float:
        term = term_of(dataclasses.replace(scene, images=images), sources=2, best=2, patches=(5,), occlusion=False)
        return term(WavyBall(), batch, output, level=0).item()

    # Some rays have the noise alone to compare with. Were it to count for all, the loss would be above 0.5.
    assert loss(spoilt) < loss(scene.images) + 0.1


def test_without_any_pair_to_compare_it_is_zero(scene):
    batch, output = seen(scene, RADIUS)
    loss = term_of(scene, min_angle=179.0, occlusion=False)(WavyBall(), batch, output, level=2)
    loss.backward()
    assert loss.item() == 0.0
    assert not output.points.grad.any()
