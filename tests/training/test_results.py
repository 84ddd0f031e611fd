"""Meshes, pictures and scores of a model whose surface and colours are known in closed form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.painted_ball import RADIUS, WORLD_FROM_SCENE, PaintedBall, paint, photographs, ring_of_cameras

from nsr.geometry.poses import align_cameras, transform_cameras
from nsr.training.results import (
    evaluate_rendering,
    refined_scene,
    render_view,
    run_mesh,
    scale_cameras,
    training_views,
    vertex_colors,
)
from nsr.training.run import reference_cameras
from nsr.types import Cameras

DRIFT = np.array([[0, -0.9, 0, 0.02], [0.9, 0, 0, -0.05], [0, 0, 0.9, 0.03], [0, 0, 0, 1]])


def to_scene(points: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(WORLD_FROM_SCENE)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def test_the_mesh_is_the_ball_in_world_units_and_in_its_paint():
    mesh = run_mesh(PaintedBall(), WORLD_FROM_SCENE, resolution=48)
    points = to_scene(mesh.vertices)
    assert np.allclose(np.linalg.norm(points, axis=1), RADIUS, atol=1e-3)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (50 * RADIUS) ** 3, rel=0.01)  # outward, and not mirrored
    expected = 255 * paint(torch.from_numpy(points)).numpy()
    assert np.abs(mesh.visual.vertex_colors[:, :3] - expected).max() <= 1


def test_floaters_go_unless_asked_for_and_colours_can_be_left_out():
    """The floater is beside the ball in all views, and only the masks tell that it is no part of the object."""
    model, cameras = PaintedBall(floater=True), ring_of_cameras(width=80, height=60)
    cameras.intrinsics[:, :2, 2] += 16  # room above the ball
    masks = photographs(cameras, PaintedBall()).masks

    def mesh(**options):
        return run_mesh(model, WORLD_FROM_SCENE, resolution=48, color=False, **options)

    assert mesh(cameras=cameras, masks=masks).body_count == 1
    assert mesh(cameras=cameras).body_count == 2
    assert mesh().body_count == 1  # without cameras the largest piece stands for the object
    assert mesh(cameras=cameras, masks=masks, all_components=True).body_count == 2
    assert mesh().visual.kind != "vertex"


def test_training_views_are_those_of_the_mesh_in_the_world():
    """Far from the origin of the world single precision would be some metres off."""
    far = WORLD_FROM_SCENE + np.array([[0, 0, 0, 4e8], [0] * 4, [0] * 4, [0] * 4])
    run = SimpleNamespace(cameras=ring_of_cameras(), world_from_scene=far)
    centers = run.cameras.centers.double().numpy() @ far[:3, :3].T + far[:3, 3]
    assert np.allclose(training_views(run).cameras.centers.numpy(), centers, rtol=0, atol=1e-6)


def test_colour_views():
    model, cameras = PaintedBall(tint=0.1), ring_of_cameras(12)
    mesh = run_mesh(PaintedBall(), np.eye(4), resolution=32, color=False)
    points, normals = (torch.tensor(np.array(a), dtype=torch.float32) for a in (mesh.vertices, mesh.vertex_normals))
    along = vertex_colors(model, mesh, "normal")
    assert torch.allclose(along, paint(points) - 0.1 * normals, atol=1e-5)
    # A vertex on the equator, straight in front of the first camera: the four best cameras lie around it.
    mean = vertex_colors(model, mesh, "mean", cameras)
    front = points[:, 0].argmax()
    rays = torch.nn.functional.normalize(points[front] - cameras.centers, dim=-1)
    best = (rays @ normals[front]).argsort()[:4]
    assert torch.allclose(mean[front], paint(points[front]) + 0.1 * rays[best].mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="needs cameras"):
        vertex_colors(model, mesh, "mean")


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_pictures_of_any_size_look_through_the_same_camera(scale, samples):
    cameras = ring_of_cameras()
    shown = render_view(PaintedBall(), cameras, 1, scale, samples=samples)
    assert shown.rgb.shape == shown.normal.shape == (round(30 * scale), round(40 * scale), 3)
    # The centroid of the silhouette, mapped back to the full picture, does not move with the scale.
    rows, columns = shown.silhouette.nonzero().float().mean(0)
    full = render_view(PaintedBall(), cameras, 1, samples=1).silhouette.nonzero().float().mean(0)
    assert torch.allclose(torch.stack([rows + 0.5, columns + 0.5]) / scale, full + 0.5, atol=0.3)
    hit = shown.coverage > 0
    assert torch.allclose(shown.normal[hit].norm(dim=-1), torch.ones(int(hit.sum())), atol=1e-5)
    assert (shown.rgb[~hit] == 1).all()
    assert (shown.normal[~hit] == 0).all()


def test_a_pixel_shows_the_mean_of_the_rays_in_it_that_hit():
    cameras, model = ring_of_cameras(), PaintedBall()
    fine = render_view(model, cameras, 2, scale=3.0, samples=1)
    shown = render_view(model, cameras, 2, samples=3)
    hits = fine.coverage.reshape(30, 3, 40, 3)
    assert torch.allclose(shown.coverage, hits.mean(dim=(1, 3)), atol=1e-6)
    assert ((shown.coverage > 0) & (shown.coverage < 1)).any()
    assert torch.equal(shown.silhouette, shown.coverage >= 0.5)
    colors = fine.rgb.reshape(30, 3, 40, 3, 3)
    covered = shown.coverage > 0
    mean = (colors * hits[..., None]).sum(dim=(1, 3))[covered] / hits.sum(dim=(1, 3))[covered][:, None]
    assert torch.allclose(shown.rgb[covered], mean, atol=1e-5)
    # In front of white it is the mean of all rays, hits or not.
    assert torch.allclose(shown.on_white(shown.rgb), colors.mean(dim=(1, 3)), atol=1e-5)


def test_scaled_cameras_keep_the_corners_of_the_image():
    cameras = ring_of_cameras(width=41, height=31)
    scaled = scale_cameras(cameras, 0.37)
    corner = torch.linalg.solve(cameras.intrinsics[0], torch.tensor([40.5, 30.5, 1.0]))
    seen = scaled.intrinsics[0] @ corner
    assert torch.allclose(seen[:2], torch.tensor([scaled.width - 0.5, scaled.height - 0.5]), atol=1e-4)
    assert (scaled.width, scaled.height) == (15, 11)


def test_scores_of_a_perfect_and_of_a_tinted_model():
    scene = photographs(ring_of_cameras(width=64, height=48), PaintedBall())
    scores = evaluate_rendering(PaintedBall(), scene, per_view=True)
    assert scores["iou"] == 1.0
    assert scores["psnr"] > 50  # all that is left is the rounding to bytes
    assert scores["ssim"] > 0.99
    assert set(scores["per_view"]) == set(scene.view_names)
    tinted = evaluate_rendering(PaintedBall(tint=0.1), scene)
    # Along a unit direction d the colour is off by 0.1 d: a mean square of 0.01 / 3.
    assert tinted["psnr"] == pytest.approx(-10 * np.log10(0.01 / 3), abs=0.05)
    assert "per_view" not in tinted


def test_training_views_take_the_cameras_that_training_left():
    scene = photographs(ring_of_cameras(), PaintedBall())
    moved = scene.cameras[[1, 3]]
    moved.camera_to_world[:, 0, 3] += 0.5
    run = SimpleNamespace(train_views=[1, 3], cameras=moved, aligned=False, world_from_scene=WORLD_FROM_SCENE)
    mixed = refined_scene(run, scene).cameras.camera_to_world
    assert torch.equal(mixed[[1, 3]], moved.camera_to_world)
    assert torch.equal(mixed[[0, 2, 4]], scene.cameras.camera_to_world[[0, 2, 4]])


@pytest.mark.parametrize("noisy_start", [False, True])
def test_a_frame_that_drifted_is_led_back_by_its_training_cameras(noisy_start):
    """A ball and its cameras, moved together by a similarity, fit the other photographs and the world as before."""
    scene, trained = photographs(ring_of_cameras(8), PaintedBall()), [0, 1, 3, 4, 6]
    if noisy_start:
        reference = transform_cameras(scene.cameras, WORLD_FROM_SCENE)
        wrong = transform_cameras(scene.cameras, DRIFT @ DRIFT)
        scene = replace(scene, cameras=wrong, world_from_scene=np.eye(4), reference=reference)
    world = reference_cameras(scene)
    drifted = transform_cameras(world, DRIFT @ np.linalg.inv(WORLD_FROM_SCENE))[trained]
    run = SimpleNamespace(
        train_views=trained, cameras=drifted, aligned=True, world_from_scene=align_cameras(drifted, world[trained])
    )
    assert np.allclose(run.world_from_scene, WORLD_FROM_SCENE @ np.linalg.inv(DRIFT), atol=1e-3)
    refined = refined_scene(run, scene)
    assert np.array_equal(refined.world_from_scene, run.world_from_scene)
    back = transform_cameras(refined.cameras, refined.world_from_scene)
    torch.testing.assert_close(back.camera_to_world, world.camera_to_world, rtol=0, atol=1e-3)
    torch.testing.assert_close(refined.cameras.centers[[2, 5, 7]], expected_centers(world)[[2, 5, 7]], rtol=0, atol=1e-4)


def expected_centers(world: Cameras) -> torch.Tensor:
    return transform_cameras(world, DRIFT @ np.linalg.inv(WORLD_FROM_SCENE)).centers
