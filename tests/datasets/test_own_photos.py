"""The guide for own photographs is code too: its COLMAP converter and its recipe for known cameras are run here."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.two_balls import two_balls

from nsr.datasets.check import check_scene
from nsr.datasets.idr import load_idr
from nsr.geometry.cameras import project_all
from nsr.geometry.poses import rotation_to_quaternion, transform_cameras

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/own_photos.md").read_text(encoding="utf-8")
SCENE = two_balls(12)


def code(containing: str) -> str:
    blocks = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if containing in block]
    assert len(blocks) == 1
    return blocks[0]


def write_pictures(folder: Path) -> None:
    for name, pictures in (("image", SCENE.images), ("mask", SCENE.masks)):
        (folder / name).mkdir(parents=True)
        for view, picture in enumerate(pictures):
            Image.fromarray(picture.numpy()).save(folder / name / f"IMG_{view}.png")


def assert_sees_the_same(scene) -> None:
    """Points of the world land on the same pixels, and the check is content."""
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double() - 0.5
    frames = [torch.from_numpy(np.linalg.inv(s.world_from_scene) @ SCENE.world_from_scene) for s in (scene, SCENE)]
    found, expected = (
        project_all(s.cameras, (points @ frame[:3, :3].T + frame[:3, 3]).float())[0]
        for s, frame in zip((scene, SCENE), frames, strict=True)
    )
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert [finding for finding in check_scene(scene) if finding.level != "info"] == []


def test_colmap_converter(tmp_path):
    scene, model = tmp_path / "cup", tmp_path / "sparse"
    write_pictures(scene)
    model.mkdir()
    cameras = transform_cameras(SCENE.cameras, SCENE.world_from_scene)
    k = cameras.intrinsics.clone()
    k[:, 0, 1] = 0
    values = [k[0, 0, 0], k[0, 1, 1], k[0, 0, 2] + 0.5, k[0, 1, 2] + 0.5]
    (model / "cameras.txt").write_text("# header\n1 PINHOLE 120 90 " + " ".join(f"{float(v):.9g}" for v in values) + "\n")
    lines = ["# header"]
    for view in reversed(range(12)):  # COLMAP lists images in any order, each with a line of points that may be empty
        inverse = torch.linalg.inv(cameras.camera_to_world[view].double())
        numbers = [*rotation_to_quaternion(inverse[:3, :3]).tolist(), *inverse[:3, 3].tolist()]
        pose = " ".join(f"{number:.12g}" for number in numbers)
        lines += [f"{view + 1} {pose} 1 IMG_{view}.png", "" if view % 2 else "1.0 2.0 -1"]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "colmap_to_idr.py").write_text(code("colmap_to_idr.py"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "colmap_to_idr.py"), str(model), str(scene)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = load_idr(scene)
    assert loaded.cameras.intrinsics[:, 0, 1].abs().max() < 1e-3
    k[:, 0, 1] = SCENE.cameras.intrinsics[:, 0, 1]
    loaded.cameras.intrinsics[:, 0, 1] = k[:, 0, 1]  # COLMAP's pinhole knows no skew; the test scene has some
    assert_sees_the_same(loaded)


def test_known_cameras_and_dropping_the_scene_frame(tmp_path, monkeypatch):
    write_pictures(tmp_path / "cup")
    monkeypatch.chdir(tmp_path)
    cameras = transform_cameras(SCENE.cameras, SCENE.world_from_scene)
    inverse = np.linalg.inv(cameras.camera_to_world.double().numpy())
    names = {"Ks": cameras.intrinsics.double().numpy(), "Rs": inverse[:, :3, :3], "ts": inverse[:, :3, 3]}
    exec(code("zip(Ks, Rs, ts)"), names)
    assert_sees_the_same(load_idr("cup"))
    assert "scale_mat_0" in np.load("cup/cameras.npz")
    exec(code('startswith("scale_mat")'), {})
    assert sorted(np.load("cup/cameras.npz")) == sorted(f"world_mat_{i}" for i in range(12))
