"""The IDR layout: what is read, and what is said about folders that cannot be."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.idr_folder import world_matrices, write_folder
from support.two_balls import WORLD_FROM_SCENE, two_balls

from nsr.datasets.detect import load_scene, parse_views
from nsr.datasets.idr import load_idr
from nsr.geometry.cameras import project_all
from nsr.geometry.poses import transform_cameras
from nsr.utils.errors import DataError, UsageError

SCENE = two_balls(6, 40, 30)


@pytest.fixture
def folder(tmp_path):
    return write_folder(SCENE, tmp_path / "balls")


def rewrite(folder, change, name="cameras.npz"):
    matrices = dict(np.load(folder / name))
    change(matrices)
    np.savez(folder / name, **matrices)


def assert_same(scene, views=range(6)):
    torch.testing.assert_close(scene.images, SCENE.images[list(views)])
    torch.testing.assert_close(scene.masks, SCENE.masks[list(views)])
    torch.testing.assert_close(scene.cameras.intrinsics, SCENE.cameras.intrinsics[list(views)], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(scene.cameras.camera_to_world, SCENE.cameras.camera_to_world[list(views)], rtol=1e-5, atol=1e-5)


def test_round_trip(folder):
    scene = load_idr(folder)
    assert_same(scene)
    np.testing.assert_allclose(scene.world_from_scene, WORLD_FROM_SCENE)
    assert scene.cameras.intrinsics.dtype == torch.float32
    assert (scene.cameras.width, scene.cameras.height) == (40, 30)
    assert scene.name == "balls"
    assert scene.ground_truth is None
    assert scene.view_names[2] == "000002"


@pytest.mark.parametrize("scale_mat", [True, False])
def test_noisy_cameras_are_the_start_of_a_refinement_alone(folder, scale_mat):
    true = dict(np.load(folder / "cameras.npz"))
    matrices = {}
    for i in range(6):
        matrices[f"world_mat_{i}"] = true[f"world_mat_{(i + 1) % 6}"]
        matrices[f"scale_mat_{i}"] = WORLD_FROM_SCENE @ np.diag([2, 2, 2, 1])
    np.savez(folder / "cameras_linear_init.npz", **{k: v for k, v in matrices.items() if scale_mat or "scale" not in k})
    files = {path.name: path.read_bytes() for path in folder.glob("*.npz")}
    assert load_scene(folder).reference is None
    assert_same(load_scene(folder))
    noisy = load_scene(folder, train_cameras=True, views=[4, 1])
    factor = 2 if scale_mat else 1
    np.testing.assert_allclose(noisy.world_from_scene, WORLD_FROM_SCENE @ np.diag([factor, factor, factor, 1]))
    true = load_scene(folder, views=[5, 2]).cameras
    torch.testing.assert_close(noisy.cameras.centers, true.centers / factor, rtol=1e-5, atol=1e-5)
    reference = transform_cameras(SCENE.cameras, WORLD_FROM_SCENE)[[4, 1]]
    torch.testing.assert_close(noisy.reference.camera_to_world, reference.camera_to_world, rtol=1e-5, atol=1e-3)
    assert {path.name: path.read_bytes() for path in folder.glob("*.npz")} == files
    (folder / "cameras_linear_init.npz").unlink()
    assert load_scene(folder, train_cameras=True).reference is None


def test_noisy_cameras_that_cannot_be_read_are_named(folder):
    np.savez(folder / "cameras_linear_init.npz", world_mat_0=np.eye(4))
    assert_same(load_idr(folder))
    with pytest.raises(DataError, match=r"cameras_linear_init.npz: 1 cameras for 6 images"):
        load_idr(folder, train_cameras=True)


def test_neus_names_and_jpg(tmp_path):
    scene = load_idr(write_folder(SCENE, tmp_path / "s", names=("images", "masks", "cameras_sphere.npz"), suffix="jpg"))
    torch.testing.assert_close(scene.masks, SCENE.masks)
    assert len(scene) == 6


def test_natural_order_beyond_ten(tmp_path):
    many = two_balls(12, 40, 30)
    scene = load_idr(write_folder(many, tmp_path / "s", stem="img_{}", mask_stem="mask_{}"))
    torch.testing.assert_close(scene.images, many.images)
    torch.testing.assert_close(scene.masks, many.masks)


def test_some_views_in_the_order_asked_for(folder):
    assert_same(load_idr(folder, views=[4, 1]), [4, 1])
    with pytest.raises(UsageError, match="views 0 to 5"):
        load_idr(folder, views=[6])
    with pytest.raises(UsageError, match="no view"):
        load_idr(folder, views=[])


def test_images_that_are_part_of_a_larger_set_go_by_their_numbers(folder):
    for view in (0, 2, 5):
        (folder / "image" / f"{view:06d}.png").unlink()
        (folder / "mask" / f"{view:03d}.png").unlink()
    assert_same(load_idr(folder), [1, 3, 4])


def test_sign_scale_and_shape_of_the_matrices_do_not_matter(folder):
    def change(matrices):
        for i in range(6):
            matrices[f"world_mat_{i}"] = -0.01 * matrices[f"world_mat_{i}"][:3]

    rewrite(folder, change)
    assert_same(load_idr(folder))


def test_alpha_serves_as_mask(folder):
    for view in range(6):
        (folder / "mask" / f"{view:03d}.png").unlink()
        rgba = np.dstack([SCENE.images[view].numpy(), SCENE.masks[view].numpy()])
        Image.fromarray(rgba).save(folder / "image" / f"{view:06d}.png")
    (folder / "mask").rmdir()
    assert_same(load_idr(folder))


def test_ground_truth_is_found(folder):
    (folder / "mesh_gt.ply").touch()
    assert load_idr(folder).ground_truth == str(folder / "mesh_gt.ply")


def test_missing_scale_mat_is_computed_and_written_back(tmp_path):
    scene = two_balls(12)
    folder = write_folder(scene, tmp_path / "s", scale_mat=False)
    first = load_idr(folder)
    written = np.load(folder / "cameras.npz")
    np.testing.assert_array_equal(written["scale_mat_11"], first.world_from_scene)
    np.testing.assert_array_equal(written["world_mat_3"], world_matrices(scene)["world_mat_3"])
    second = load_idr(folder)
    torch.testing.assert_close(first.cameras.camera_to_world, second.cameras.camera_to_world)
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_missing_scale_mat_in_a_read_only_folder(tmp_path):
    folder = write_folder(two_balls(12), tmp_path / "s", scale_mat=False)
    folder.chmod(0o555)
    try:
        assert load_idr(folder).world_from_scene.shape == (4, 4)
        assert "scale_mat_0" not in np.load(folder / "cameras.npz")
    finally:
        folder.chmod(0o755)


def test_missing_scale_mat_when_writing_fails_stays_in_memory(tmp_path, monkeypatch, caplog):
    folder = write_folder(two_balls(12), tmp_path / "s", scale_mat=False)

    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("nsr.datasets.idr.atomic_write", refuse)
    scene = load_idr(folder)
    assert "not written back" in caplog.text
    assert "scale_mat_0" not in np.load(folder / "cameras.npz")
    assert scene.cameras.centers.norm(dim=-1).min() > 1


def without_masks(folder):
    shutil.rmtree(folder / "mask")
    return folder


def test_without_masks_all_is_object_and_the_scene_says_so(folder):
    assert load_idr(folder).masked
    scene = load_idr(without_masks(folder), views=[4, 1])
    assert not scene.masked
    assert scene.masks.shape == (2, 30, 40)
    assert (scene.masks == 255).all()
    assert not scene.select([0]).masked


def test_without_masks_and_frame_the_cameras_tell_where_the_object_is(folder):
    rewrite(folder, lambda m: [m.pop(f"scale_mat_{i}") for i in range(6)])
    before = (folder / "cameras.npz").read_bytes()
    scene = load_idr(without_masks(folder))
    middle = (np.linalg.inv(SCENE.world_from_scene) @ scene.world_from_scene)[:3, 3]
    assert np.linalg.norm(middle) < 0.1
    assert (folder / "cameras.npz").read_bytes() == before  # such a guess is not for keeping


def test_masks_that_are_given_take_the_place_of_the_folders_own(folder):
    masks = SCENE.masks.flip(0)
    scene = load_idr(without_masks(folder), views=[4, 1], masks=masks)
    assert scene.masked
    assert torch.equal(scene.masks, masks[[4, 1]])
    with pytest.raises(DataError, match="one per image"):
        load_idr(folder, masks=masks[:3])


def test_a_sphere_that_is_given_is_the_scenes_unit_sphere(folder):
    scene = load_idr(folder, sphere=(1.0, 2.0, 3.0, 50.0))
    np.testing.assert_array_equal(scene.world_from_scene, [[50, 0, 0, 1], [0, 50, 0, 2], [0, 0, 50, 3], [0, 0, 0, 1]])
    ours, theirs = (transform_cameras(s.cameras, s.world_from_scene).centers for s in (scene, load_idr(folder)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_alpha_in_some_images_only_is_refused(folder):
    rgba = np.dstack([SCENE.images[2].numpy(), SCENE.masks[2].numpy()])
    Image.fromarray(rgba).save(without_masks(folder) / "image" / "000002.png")
    with pytest.raises(DataError, match=r"000000\.png.*alpha channel.*mask/"):
        load_idr(folder)


# ------------------------------------------------------------------------------------------------------ what is wrong


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path):
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(path)


def resize(path, size):
    Image.open(path).resize(size).save(path)


def set_key(key, value):
    return lambda f: rewrite(f, lambda m: m.__setitem__(key, value))


SINGULAR = np.diag([1.0, 1.0, 0.0, 1.0])
SPOILT = {
    "no images": (lambda f: [p.unlink() for p in (f / "image").iterdir()], "no images"),
    "no cameras": (lambda f: (f / "cameras.npz").unlink(), "no camera file"),
    "a mask too few": (lambda f: (f / "mask" / "003.png").unlink(), r"6 images and 5 masks.*000003\.png"),
    "an image too few": (lambda f: (f / "image" / "000003.png").unlink(), r"5 images and 6 masks.*003\.png"),
    "misnamed mask": (
        lambda f: (f / "mask" / "003.png").rename(f / "mask" / "017.png"),
        r"without a mask: 000003\.png.*without an image: 017\.png",
    ),
    "mask of other size": (lambda f: resize(f / "mask" / "002.png", (20, 30)), r"002\.png: mask of 20x30 .* 40x30"),
    "turned mask": (lambda f: resize(f / "mask" / "002.png", (30, 40)), "EXIF"),
    "image of other size": (lambda f: resize(f / "image" / "000004.png", (41, 30)), r"000004\.png: image of 41x30"),
    "empty mask": (lambda f: blank(f / "mask" / "005.png"), r"empty mask.*005\.png"),
    "truncated image": (lambda f: truncate(f / "image" / "000001.png"), r"000001\.png is truncated"),
    "truncated cameras": (lambda f: truncate(f / "cameras.npz"), r"cameras\.npz: not a readable npz"),
    "nan": (set_key("world_mat_3", np.full((4, 4), np.nan)), "world_mat_3 has NaN"),
    "singular": (set_key("world_mat_3", SINGULAR), "singular"),
    "shape": (set_key("world_mat_3", np.eye(3)), r"world_mat_3 must be .* \[3, 3\]"),
    "missing key": (lambda f: rewrite(f, lambda m: m.pop("world_mat_3")), "5 cameras for 6 images.*world_mat_3"),
    "missing scale": (lambda f: rewrite(f, lambda m: m.pop("scale_mat_3")), "scale_mat_3 is missing"),
    "missing first scale": (lambda f: rewrite(f, lambda m: m.pop("scale_mat_0")), "scale_mat_0 is missing"),
    "other keys": (lambda f: np.savez(f / "cameras.npz", poses=np.eye(4)), "no camera matrices.*found poses"),
    "different scales": (set_key("scale_mat_3", np.diag([2.0, 2, 2, 1])), "scale_mat_3 differs"),
    "uneven scale": (
        lambda f: rewrite(f, lambda m: m.update({f"scale_mat_{i}": np.diag([1.0, 2, 3, 1]) for i in range(6)})),
        "not a similarity",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_bad_folders(folder, name):
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        load_idr(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_scene(tmp_path / "nowhere")


def test_unknown_layout_tells_what_is_there_and_what_could_be(tmp_path, folder):
    with pytest.raises(DataError, match=r"it holds balls/.*Layouts understood.*did you mean .*balls"):
        load_scene(tmp_path)
    assert len(load_scene(folder, views=[0, 2])) == 2


def test_parse_views():
    assert parse_views("8", 48) == [0, 6, 12, 18, 24, 30, 36, 42]
    assert parse_views("3", 3) == [0, 1, 2]
    assert parse_views("0,3,5", 6) == [0, 3, 5]
    assert parse_views("0-10:2, 11", 12) == [0, 2, 4, 6, 8, 10, 11]
    assert parse_views("3,", 6) == [3]
    for text in ("", "0", "7", "a", "1,1", "4-2", "2-9", "6,", "-1", "1-4:0"):
        with pytest.raises(UsageError, match="view"):
            parse_views(text, 6)


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(("path", "views", "size"), [
    ("scenes/dtu_scan24_half", 49, (800, 600)),
    ("scenes/dino_sparse_ring", 15, (640, 480)),
    ("heads/ict_000", 48, (512, 512)),
])  # fmt: skip
def test_real_scenes(shared_data, path, views, size):
    scene = load_idr(shared_data / path, views=[0, 1, views - 1])
    assert (scene.cameras.width, scene.cameras.height) == size
    assert scene.images.shape == (3, size[1], size[0], 3)
    pixels, depth = project_all(scene.cameras, torch.zeros(1, 3))
    assert (depth > 1).all()
    assert ((pixels > 0) & (pixels < torch.tensor(size))).all()


def test_head_mesh_projects_into_the_masks(shared_data):
    import trimesh

    scene = load_idr(shared_data / "heads/ict_000", views=[0, 10, 20, 30, 40])
    vertices = trimesh.load(scene.ground_truth, process=False).vertices[::20]
    scene_from_world = np.linalg.inv(scene.world_from_scene)
    points = torch.from_numpy(vertices @ scene_from_world[:3, :3].T + scene_from_world[:3, 3]).float()
    pixels = project_all(scene.cameras, points)[0]
    reach = torch.nn.functional.max_pool2d(scene.masks.float(), 3, 1, 1) > 127  # one pixel of rounding
    for offset, expected in ((0.0, True), (3.0, False)):  # a wrong pixel-centre convention would show
        u, v = (pixels + offset).round().long().clamp(0, 511).unbind(-1)
        inside = reach[torch.arange(5)[:, None], v, u].float().mean()
        assert (inside > 0.9995) == expected
