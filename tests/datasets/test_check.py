"""The scene check finds each usual mistake, names it, and stays quiet about good scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.idr_folder import world_matrices, write_folder
from support.two_balls import two_balls

from nsr.apps.data import build_parser
from nsr.apps.main import main
from nsr.datasets.check import check_scene
from nsr.datasets.consistency import HullConsistency
from nsr.datasets.hull_picture import hull_picture
from nsr.geometry.cameras import decompose_projection
from nsr.geometry.poses import transform_cameras
from nsr.types import Cameras, Scene

SCENE = two_balls(14, 104, 78)
FLIP = np.diag([1.0, -1.0, -1.0])


def messages(scene: Scene, level: str) -> list[str]:
    return [f"{f.message} -> {f.advice}" for f in check_scene(scene) if f.level == level]


def only_error(scene: Scene) -> str:
    errors = messages(scene, "error")
    assert len(errors) == 1, errors
    return errors[0]


def written_as(write) -> Scene:
    """The scene whose camera file was written by `write(K, camera_to_world [4, 4]) -> [3, 4]` in the world frame."""
    cameras = transform_cameras(SCENE.cameras, SCENE.world_from_scene)
    poses = cameras.camera_to_world.double().numpy()
    matrices = np.stack([write(k, c) for k, c in zip(cameras.intrinsics.double().numpy(), poses, strict=True)])
    k, pose = decompose_projection(matrices @ SCENE.world_from_scene)
    return replace(SCENE, cameras=Cameras(torch.from_numpy(k).float(), torch.from_numpy(pose).float(), 104, 78))


def test_masks_numbered_from_another_start_are_a_warning(tmp_path, capsys):
    """They may belong to the images in order, or one of each may be missing."""
    folder = write_folder(SCENE, tmp_path / "balls", stem="img_{:03d}")
    assert main(["data", "check", str(folder)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    for view in reversed(range(len(SCENE))):
        (folder / "mask" / f"{view:03d}.png").rename(folder / "mask" / f"{view + 1:03d}.png")
    assert main(["data", "check", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "warning  images and masks differ in names and numbers and are paired by order: img_000.png with 001.png" in printed
    assert "0 errors, 1 warnings" in printed


@pytest.mark.parametrize("views", [14, 3, 2])
def test_a_good_scene_has_no_errors(views):
    scene = SCENE.select(list(range(views)))
    assert messages(scene, "error") == []
    if views > 2:
        assert messages(scene, "warning") == []
    assert any("visual hull fills the silhouettes" in m for m in messages(scene, "info"))


@pytest.mark.parametrize(
    ("path", "views"),
    [
        ("scenes/dtu_scan24_half", range(0, 49, 6)),
        ("scenes/dino_sparse_ring", range(15)),
        ("heads/scan_lps", range(0, 48, 6)),
    ],
)
def test_real_scenes_have_no_errors_or_warnings(shared_data, path, views):
    from nsr.datasets.idr import load_idr

    scene = load_idr(shared_data / path, views=list(views))
    assert [f for f in check_scene(scene) if f.level != "info"] == []


def test_inverted_poses_are_named():
    assert "poses are inverted" in only_error(written_as(lambda k, c: k @ c[:3]))


def test_opengl_poses_are_named():
    error = only_error(written_as(lambda k, c: k @ FLIP @ np.linalg.inv(c)[:3]))
    assert "OpenGL" in error
    assert "14 of 14 cameras look away" in error


def test_opengl_camera_to_world_is_named():
    assert "inverted and look along -z" in only_error(written_as(lambda k, c: k @ (c @ np.diag([1, -1, -1, 1]))[:3]))


def test_cameras_for_images_of_another_size_are_named():
    error = only_error(written_as(lambda k, c: np.diag([2, 2, 1]) @ k @ np.linalg.inv(c)[:3]))
    assert "another size" in error
    assert "0.5" in error


def test_reversed_order_is_named():
    assert "reversed order" in only_error(replace(SCENE, masks=SCENE.masks.flip(0)))


def test_shuffled_masks_fit_nothing():
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    assert "no usual cause fits" in only_error(replace(SCENE, masks=SCENE.masks[order]))


def test_object_outside_the_unit_sphere():
    shift = np.eye(4)
    shift[:3, :3] *= 0.4
    shift[0, 3] = 0.3
    cameras = transform_cameras(SCENE.cameras, np.linalg.inv(shift))
    error = only_error(replace(SCENE, cameras=cameras, world_from_scene=SCENE.world_from_scene @ shift))
    assert "does not lie in the unit sphere" in error
    assert "scale_mat" in error


def test_object_partly_outside_is_a_warning():
    cameras = transform_cameras(SCENE.cameras, np.diag([1.6, 1.6, 1.6, 1.0]))
    assert any("reaches out of the unit sphere" in m for m in messages(replace(SCENE, cameras=cameras), "warning"))


def test_one_camera_that_looks_away():
    pose = SCENE.cameras.camera_to_world.clone()
    pose[5] = pose[5] @ torch.diag(torch.tensor([1.0, -1, -1, 1]))
    errors = messages(replace(SCENE, cameras=replace(SCENE.cameras, camera_to_world=pose)), "error")
    assert any("look away from the object: 005" in e for e in errors)
    assert any("view 005 does not fit" in e for e in errors)


@pytest.mark.parametrize("view", [0, 9])
def test_one_shifted_camera_is_found(view):
    k = SCENE.cameras.intrinsics.clone()
    k[view, 0, 2] += 20
    found = messages(replace(SCENE, cameras=replace(SCENE.cameras, intrinsics=k)), "error")
    found += messages(replace(SCENE, cameras=replace(SCENE.cameras, intrinsics=k)), "warning")
    assert [m for m in found if "does not fit" in m and f"view {view:03d}" in m]
    assert len(found) == 1


def test_two_swapped_masks_are_found():
    masks = SCENE.masks.clone()
    masks[2], masks[7] = SCENE.masks[7], SCENE.masks[2]
    assert sorted(HullConsistency(masks, SCENE.cameras).wrong_views()[0]) == [2, 7]


@pytest.mark.parametrize(("value", "message"), [(0, "empty mask: 004"), (255, "the mask covers the whole image: 004")])
def test_empty_and_full_masks(value, message):
    masks = SCENE.masks.clone()
    masks[4] = value
    assert any(message in e for e in messages(replace(SCENE, masks=masks), "error"))


def test_inverted_masks():
    assert "inverted" in only_error(replace(SCENE, masks=255 - SCENE.masks))


def test_soft_blurred_and_tiny_masks():
    blurred = torch.nn.functional.avg_pool2d(SCENE.masks.float(), 17, 1, 8).to(torch.uint8)
    assert any("blurred" in m for m in messages(replace(SCENE, masks=blurred), "warning"))
    soft = torch.nn.functional.avg_pool2d(SCENE.masks.float(), 3, 1, 1).to(torch.uint8)
    found = check_scene(replace(SCENE, masks=soft))
    assert any("soft mask edges" in f.message for f in found if f.level == "info")
    assert not [f for f in found if f.level != "info"]
    masks = SCENE.masks.clone()
    masks[1] = 0
    masks[1, 39:42, 52:55] = 255
    assert any("less than 0.2 %" in m for m in messages(replace(SCENE, masks=masks), "warning"))


def test_duplicates():
    images = SCENE.images.clone()
    images[3] = images[8]
    assert any("003 and 008 show the same image" in m for m in messages(replace(SCENE, images=images), "warning"))
    pose, masks = SCENE.cameras.camera_to_world.clone(), SCENE.masks.clone()
    pose[3], masks[3] = pose[8], masks[8]
    doubled = replace(SCENE, masks=masks, cameras=replace(SCENE.cameras, camera_to_world=pose))
    assert any("003 and 008 have the same camera" in m for m in messages(doubled, "warning"))


def test_views_from_one_direction():
    scene = SCENE.select([0, 0, 0])
    assert any("within 0.0 degrees" in m for m in messages(scene, "warning"))


def test_hull_picture_shows_agreement_and_disagreement(tmp_path):
    def colours(scene):
        hull_picture(scene, tmp_path / "hull.png")
        pixels = np.asarray(Image.open(tmp_path / "hull.png")).astype(int).reshape(-1, 3)
        tinted = [np.abs(pixels - c).max(-1) < 100 for c in ((40, 140, 255), (255, 40, 160))]
        return (np.abs(pixels - (60, 230, 60)).max(-1) == 0).mean(), (tinted[0] | tinted[1]).mean()

    flat = replace(SCENE, images=torch.full_like(SCENE.images, 90))
    line, wrong = colours(flat)
    assert line > 0.005
    assert wrong < 0.01
    masks = flat.masks.clone()
    masks[0] = masks[0].flip(0).flip(1).roll((13, 26), (0, 1))
    assert colours(replace(flat, masks=masks))[1] > 2 * wrong
    empty = replace(flat, masks=torch.zeros_like(flat.masks))
    assert colours(empty)[0] == 0


def run(*argv: str) -> int:
    args = build_parser("nsr data").parse_args(list(argv))
    return args.run(args) or 0


def test_command_line(tmp_path, capsys):
    good = write_folder(SCENE, tmp_path / "good")
    assert run("check", str(good), "--out", str(tmp_path / "sheet.png"), "--views", "8") == 0
    assert "ready to train" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").size[0] > 300
    bad = write_folder(SCENE, tmp_path / "bad")
    matrices = world_matrices(SCENE)
    away = {key: np.vstack([value[:3] @ _flip_about(SCENE), [0, 0, 0, 1]]) for key, value in matrices.items()}
    np.savez(bad / "cameras.npz", **away, **{f"scale_mat_{i}": SCENE.world_from_scene for i in range(14)})
    assert run("check", str(bad)) == 3
    out = capsys.readouterr().out
    assert "error" in out
    assert "not ready" in out


def _flip_about(scene: Scene) -> np.ndarray:
    """A world motion after which the object is where no camera looks."""
    motion = np.eye(4)
    motion[:3, 3] = 6 * scene.world_from_scene[0, 0]
    return motion
