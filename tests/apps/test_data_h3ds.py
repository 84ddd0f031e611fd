"""`nsr data h3ds`: what there is, what is missing, and the arrangement in IDR's layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.heads import VIEWS, write_h3ds
from support.refusals import DATA, USAGE, files_in

from nsr.apps.main import main
from nsr.datasets.detect import load_scene
from nsr.datasets.h3ds import H3dsScene, is_h3ds_scene
from nsr.geometry.poses import transform_cameras


@pytest.fixture(scope="module")
def made_heads(tmp_path_factory) -> Path:
    """Two heads, of which only one has a split of four views. Not to be changed."""
    root = write_h3ds(tmp_path_factory.mktemp("h3ds"), "anna", "ben")
    text = (root / "config.toml").read_text()
    (root / "config.toml").write_text(text.replace("4 = [0, 1, 2, 5]", "", 1).replace("3 = [0, 1, 5]", "3 = [5, 1, 4]", 1))
    return root


@pytest.fixture
def heads(made_heads, tmp_path) -> Path:
    return Path(shutil.copytree(made_heads, tmp_path / "heads"))


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_scenes_and_splits_are_listed(made_heads, capsys):
    assert main(["data", "h3ds", str(made_heads)]) == 0
    first, *rows = table(capsys.readouterr().out)
    assert " ".join(first) == f"{made_heads}: version 0.1, 2 scenes by {made_heads / 'config.toml'}"
    assert rows == [
        ["scene", "views", "splits", "tags", "missing"],
        ["anna", str(VIEWS), "3", "made", "ball", "nothing"],
        ["ben", str(VIEWS), "3", "4", "made", "ball", "nothing"],
    ]
    assert main(["data", "h3ds", str(made_heads), "--scenes", "ben", "ben", "--views", "4"]) == 0
    assert table(capsys.readouterr().out)[2:] == [["ben", str(VIEWS), "4", "made", "ball", "nothing"]]


def test_what_is_missing_is_said_and_ends_with_an_error(heads, capsys, refused):
    for name in ("landmarks.txt", "image/img_0003.jpg"):
        (heads / "anna" / name).unlink()
    assert main(["data", "h3ds", str(heads)]) == DATA
    output = capsys.readouterr()
    assert "landmarks.txt, 1 of 6 in image/ (img_0003.jpg)\n" in output.out
    assert "1 of 2 scenes are not whole; missing of anna: landmarks.txt, 1 of 6" in output.err
    refused(["data", "h3ds", heads, "--views", 4], DATA, "missing of anna", "a split of 4 views")
    assert main(["data", "h3ds", str(heads), "--scenes", "ben"]) == 0
    capsys.readouterr()
    before = files_in(heads.parent)
    refused(["data", "h3ds", heads, "--out", heads.parent / "out"], DATA, "missing of anna", "landmarks.txt")
    assert files_in(heads.parent) == before


def test_bad_requests_are_refused(heads, tmp_path, refused, monkeypatch):
    refused(["data", "h3ds", tmp_path / "nowhere"], DATA, "no such folder", "H3DS is not downloaded by nsr", "docs/heads.md")
    refused(["data", "h3ds", heads, "--scenes", "anne"], USAGE, "--scenes anne", "Did you mean 'anna'")
    refused(["data", "h3ds", heads, "--config", tmp_path / "none.toml"], DATA, "none.toml", "cannot be read")
    refused(["data", "h3ds", heads, "--views", 5, "--out", tmp_path / "out"], DATA, "missing of anna", "a split of 5 views")
    (heads / "config.toml").write_text("[scenes.ben]\nviews = 6")
    refused(["data", "h3ds", heads, "--out", tmp_path / "out"], DATA, "no scene has a list of 3, 4, 8, 16, 32 views")
    assert not (tmp_path / "out").exists()


def test_another_version_is_warned_about(heads, capsys):
    (heads / "version.txt").write_text("0.2")
    assert main(["data", "h3ds", str(heads)]) == 0
    assert f"warning: the data are of version 0.2, {heads / 'config.toml'} is for version 0.1" in capsys.readouterr().out


def test_the_arrangement_is_of_the_published_views_in_idrs_layout(made_heads, tmp_path, capsys):
    out = tmp_path / "new" / "idr"
    assert main(["data", "h3ds", str(made_heads), "--out", str(out)]) == 0
    assert "3 scans, listed in scan_list.txt" in capsys.readouterr().out
    expected = {"view3/scan0": ("anna", [5, 1, 4]), "view3/scan1": ("ben", [0, 1, 5]), "view4/scan1": ("ben", [0, 1, 2, 5])}
    lines = (out / "scan_list.txt").read_text().splitlines()
    assert lines == [f"{place} {name} {','.join(map(str, views))}" for place, (name, views) in expected.items()]
    assert sorted(path.parent.name + "/" + path.name for path in out.glob("*/*")) == sorted(expected)
    for place, (name, views) in expected.items():
        scan, head = load_scene(out / place), load_scene(made_heads / name)
        assert scan.view_names == tuple(f"{i:06}" for i in range(len(views)))
        assert [path.name for path in sorted((out / place / "mask").iterdir())] == [f"{i:03}.png" for i in range(len(views))]
        # A point in the world is where it was in the photographs, and the photographs are the same bytes.
        assert torch.equal(scan.images, head.images[views])
        assert torch.equal(scan.masks, head.masks[views])
        assert np.array_equal(scan.world_from_scene, head.world_from_scene)
        assert torch.allclose(project(scan), project(head)[views], atol=1e-3)
        assert is_h3ds_scene(out / place)
        ours, theirs = H3dsScene(out / place), H3dsScene(made_heads / name)
        assert ours.mesh_file.read_bytes() == theirs.mesh_file.read_bytes()
        assert ours.landmarks() == theirs.landmarks()
        assert ours.region("face_sphere").tolist() == theirs.region("face_sphere").tolist()


def project(scene) -> torch.Tensor:
    """[V, 3, 2] pixels of three points that are given in the world."""
    cameras = transform_cameras(scene.cameras, scene.world_from_scene)
    points = torch.tensor([[7.0, -3, 100], [20, 5, 110], [-10, -20, 80]])
    local = (points - cameras.centers[:, None]) @ cameras.camera_to_world[:, :3, :3]
    pixels = local @ cameras.intrinsics.mT
    return pixels[..., :2] / pixels[..., 2:]


def test_an_arrangement_is_written_whole_or_not_at_all(heads, tmp_path, refused):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    before = files_in(tmp_path)
    refused(["data", "h3ds", heads, "--out", out], USAGE, "already exists and is not empty")
    matrices = dict(np.load(heads / "ben" / "cameras.npz"))
    del matrices["scale_mat_5"]
    np.savez(heads / "ben" / "cameras.npz", **matrices)
    refused(["data", "h3ds", heads, "--out", tmp_path / "idr"], DATA, "cameras.npz", "key scale_mat_5 is missing")
    assert files_in(tmp_path) == before
    assert not (tmp_path / "idr").exists()


def test_the_shared_heads_are_whole(shared_data, capsys):
    assert main(["data", "h3ds", str(shared_data / "heads"), "--views", "3", "4", "8", "16", "32"]) == 0
    assert len([row for row in table(capsys.readouterr().out) if row[-1] == "nothing"]) == 6
