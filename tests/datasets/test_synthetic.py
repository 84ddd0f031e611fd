"""The built-in scenes: exact geometry, agreement of cameras, images and masks, determinism, cache, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nsr.datasets import synthetic
from nsr.datasets.idr import load_idr
from nsr.datasets.synthetic import make_scene, write_scene
from nsr.geometry.cameras import image_pixels, pixel_rays, project_all
from nsr.geometry.meshes import load_mesh, to_world
from nsr.geometry.raycast import Raycaster
from nsr.utils.errors import UsageError

DENTS = f"dents-v{synthetic._VERSION}.ply"
SMALL = {"views": 6, "width": 96, "height": 72}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Meshes are made once for all tests here, at a quarter of their resolution."""
    patch = pytest.MonkeyPatch()
    patch.setattr(synthetic, "_RESOLUTION", {"bust": 96, "dents": 72})
    yield tmp_path_factory.mktemp("cache")
    patch.undo()


@pytest.fixture(scope="module", params=synthetic.NAMES)
def scene(request, cache):
    return make_scene(request.param, cache_dir=cache, **SMALL)


def in_scene(scene):
    return to_world(load_mesh(scene.ground_truth), np.linalg.inv(scene.world_from_scene))


def test_geometry_is_one_closed_solid_of_the_stated_size(scene):
    mesh = in_scene(scene)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert mesh.volume > 0
    assert 0.75 < np.linalg.norm(mesh.vertices, axis=1).max() < synthetic.OBJECT_RADIUS


def test_shapes_and_types(scene):
    assert scene.images.shape == (6, 72, 96, 3)
    assert scene.masks.shape == (6, 72, 96)
    assert scene.images.dtype == scene.masks.dtype == torch.uint8
    assert scene.cameras.intrinsics.dtype == scene.cameras.camera_to_world.dtype == torch.float32
    assert scene.view_names == tuple(f"{i:06d}" for i in range(6))
    rotation = scene.cameras.camera_to_world[:, :3, :3].double()
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).double().expand(6, 3, 3), atol=1e-6)
    assert (torch.linalg.det(rotation) > 0).all()


def test_vertices_project_into_the_masks_and_the_object_is_whole(scene):
    points = torch.from_numpy(np.asarray(in_scene(scene).vertices)).float()
    pixels, depth = project_all(scene.cameras, points)
    assert (depth > 0).all()
    column, row = pixels.round().long().unbind(-1)
    assert column.min() >= 1
    assert column.max() <= 94
    assert row.min() >= 1
    assert row.max() <= 70
    # A vertex on the outline may fall into a pixel of which no ray met the object, never further out.
    for v in range(len(scene)):
        grown = torch.nn.functional.max_pool2d(scene.masks[v][None].float(), 3, stride=1, padding=1)[0]
        assert (grown[row[v], column[v]] > 0).all()
        assert (scene.masks[v][row[v], column[v]] > 0).float().mean() > 0.97
    filled = (pixels.amax(1) - pixels.amin(1)).amax(0)
    assert filled[1] > 0.6 * 72


def test_masks_are_the_coverage_of_the_pixels_by_the_mesh(scene):
    """Rays of nsr.geometry.cameras hit the mesh exactly where a pixel is covered, and soft pixels are the rim."""
    raycaster = Raycaster(in_scene(scene))
    pixels = image_pixels(96, 72)
    for view in (0, 3):
        rays = pixel_rays(scene.cameras, torch.full((len(pixels),), view), pixels)
        hit = raycaster.first_hit(rays.origins.numpy(), rays.directions.numpy()).hit.reshape(72, 96)
        mask = scene.masks[view].numpy()
        assert hit[mask == 255].mean() > 0.999
        assert not hit[mask == 0].any() or hit[mask == 0].mean() < 0.001
        assert set(np.unique(mask)) <= {0, 64, 128, 191, 255}
        assert 0.005 < np.mean((mask > 0) & (mask < 255)) < 0.1


def test_background_is_grey_and_texture_is_strong(scene):
    outside = scene.images[scene.masks == 0]
    assert (outside == 128).all()
    inside = scene.images[scene.masks == 255].float() / 255
    assert inside.std() > 0.12
    # Strong at the scale of a pixel too, or photometric terms have nothing to hold on to.
    step = (scene.images[:, :, 1:].float() - scene.images[:, :, :-1].float()).abs() / 255
    both = (scene.masks[:, :, 1:] == 255) & (scene.masks[:, :, :-1] == 255)
    assert step[both].mean() > 0.03


def test_a_point_looks_nearly_the_same_from_two_views(cache):
    """Texture and light stay with the object: only the weak highlight and sampling differ between views."""
    scene = make_scene("dents", views=12, width=200, height=150, cache_dir=cache)
    mesh = in_scene(scene)
    raycaster = Raycaster(mesh)
    points, normals = np.asarray(mesh.vertices), np.asarray(mesh.vertex_normals)
    pixels, _ = project_all(scene.cameras, torch.from_numpy(points).float())
    colors = np.full((2, len(points), 3), np.nan)
    towards = torch.nn.functional.normalize(scene.cameras.centers, dim=-1)
    nearest = int((towards[1:] @ towards[0]).argmax()) + 1
    for i, view in enumerate((0, nearest)):
        eye = scene.cameras.centers[view].numpy().astype(np.float64)
        facing = ((eye - points) * normals).sum(-1) > 0.5 * np.linalg.norm(eye - points, axis=-1)
        seen = facing & raycaster.visible(points, eye)
        column, row = pixels[view, seen].round().long().unbind(-1)
        colors[i, seen] = scene.images[view][row, column].numpy() / 255
    both = np.isfinite(colors).all(axis=(0, 2))
    assert both.sum() > 200
    a, b = colors[0, both], colors[1, both]
    assert np.abs(a - b).mean() < 0.09
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.7
    assert np.corrcoef(a.ravel(), np.roll(b, 7, axis=0).ravel())[0, 1] < 0.5


def test_arrangements(cache):
    front = make_scene("bust", views=30, width=32, height=24, cache_dir=cache).cameras.centers
    around = make_scene("bust", views=30, width=32, height=24, arrangement="around", cache_dir=cache).cameras.centers
    azimuth = torch.rad2deg(torch.atan2(front[:, 0], front[:, 2])).abs()
    assert azimuth.max() < 125
    assert (front[:, 2] > 0).float().mean() > 0.65
    assert (around[:, 2] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    for centers in (front, around):
        assert centers.norm(dim=-1).min() > 3.0
        assert centers.norm(dim=-1).max() < 3.4


def test_deterministic_and_seeded(cache, tmp_path):
    arguments = {"views": 2, "width": 48, "height": 40}
    first = make_scene("dents", cache_dir=cache, **arguments)
    (tmp_path / DENTS).write_bytes((cache / DENTS).read_bytes())
    again = make_scene("dents", cache_dir=tmp_path, **arguments)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.cameras.camera_to_world, again.cameras.camera_to_world)
    other = make_scene("dents", cache_dir=cache, seed=1, **arguments)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.cameras.camera_to_world, other.cameras.camera_to_world)
    assert other.ground_truth == first.ground_truth


def test_cache_is_used_and_a_damaged_one_is_made_again(cache, monkeypatch):
    arguments = {"views": 2, "width": 40, "height": 40, "cache_dir": cache}
    first = make_scene("dents", **arguments)
    path = next(cache.glob("dents-2x40x40-*.npz"))
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_render_scene", None)  # a call would fail
        assert torch.equal(make_scene("dents", **arguments).images, first.images)
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        path.write_bytes(damage)
        assert torch.equal(make_scene("dents", **arguments).images, first.images)
        assert path.read_bytes() == whole
    assert not list(cache.glob(".*"))


def test_default_cache_follows_xdg(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "nsr" / "synthetic"
    folder.mkdir(parents=True)
    (folder / DENTS).write_bytes((cache / DENTS).read_bytes())
    assert make_scene("dents", views=1, width=16, height=16).ground_truth == str(folder / DENTS)


def test_damaged_mesh_is_made_again(cache, tmp_path):
    whole = (cache / DENTS).read_bytes()
    (tmp_path / DENTS).write_bytes(whole[:1000])
    mesh = make_scene("dents", views=1, width=16, height=16, cache_dir=tmp_path).ground_truth
    assert len(load_mesh(mesh).faces) > 10_000
    assert (tmp_path / DENTS).read_bytes() == whole


def test_written_scene_reads_back_as_idr(scene, tmp_path):
    folder = tmp_path / "scene"
    write_scene(scene, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["cameras.npz", "image", "mask", "mesh_gt.ply"]
    back = load_idr(folder)
    assert torch.equal(back.images, scene.images)
    assert torch.equal(back.masks, scene.masks)
    assert torch.allclose(back.cameras.intrinsics, scene.cameras.intrinsics, atol=1e-3)
    assert torch.allclose(back.cameras.camera_to_world, scene.cameras.camera_to_world, atol=1e-5)
    assert np.allclose(back.world_from_scene, scene.world_from_scene)
    assert np.array_equal(load_mesh(back.ground_truth).vertices, load_mesh(scene.ground_truth).vertices)
    assert np.array(Image.open(folder / "image" / "000005.png")).shape == (72, 96, 3)
    # world_mat is K [R | t] in millimetres: the last row of K [R | t] measures depth.
    world_mat = np.load(folder / "cameras.npz")["world_mat_0"]
    assert np.linalg.norm(world_mat[2, :3]) == pytest.approx(1, abs=1e-6)


def test_write_refuses_a_folder_in_use(scene, tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_scene(scene, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        make_scene("dents", cache_dir=tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bunny"}, "bust, dents"),
        ({"name": "bust", "arrangement": "above"}, "frontal, around"),
        ({"name": "bust", "background": "garden"}, "plain, room"),
        ({"name": "bust", "views": 0}, "at least 1 view"),
        ({"name": "bust", "width": 4}, "16x16"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        make_scene(**arguments, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_room_changes_what_is_behind_the_object_and_nothing_else(cache):
    plain, room = (make_scene("bust", views=3, width=64, height=48, background=b, cache_dir=cache) for b in ("plain", "room"))
    assert torch.equal(plain.masks, room.masks)
    assert torch.equal(plain.cameras.camera_to_world, room.cameras.camera_to_world)
    on_object, behind = plain.masks == 255, plain.masks == 0
    assert torch.equal(plain.images[on_object], room.images[on_object])
    assert plain.images[behind].float().std() == 0
    assert room.images[behind].float().std() > 20
