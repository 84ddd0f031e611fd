"""nsr transfer over real, tiny runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny_run import HEIGHT, ROOT, WIDTH, nsr_command, write_other_scene
from trimesh import Trimesh

from nsr.apps.main import main
from nsr.geometry.meshes import load_mesh, vertex_colors
from nsr.training.run import Run, load_run

FAST = ["--samples", "1", "--sheet", "2", "--frames", "3"]


@pytest.fixture(scope="module")
def runs(tiny_files, tmp_path_factory) -> Path:
    """A folder with the finished run `one`, `other`, of another seed, and `elsewhere`, of another scene. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_files / "run", folder / "one")
    for name, scene in (("other", tiny_files / "ball"), ("elsewhere", write_other_scene(folder / "cup"))):
        train = ["train", "--conf", tiny_files / "tiny.conf", "--data_dir", scene, "--nepoch", 2, "--seed", 5]
        assert main([str(argument) for argument in [*train, "--exps_folder", folder / "exps"]]) == 0
        (run,) = (folder / "exps" / f"tiny_{scene.name}").iterdir()
        run.rename(folder / name)
    return folder


def transfer(*arguments: object) -> int:
    return main(["transfer", *map(str, arguments), *FAST])


def colours_of(theirs: Run, ours: Run, mesh: Trimesh) -> np.ndarray:
    """[P, 3] 0..255, what the one's rendering network says of the other's surface, in the frame of the surface."""
    in_scene = mesh.copy().apply_transform(np.linalg.inv(ours.world_from_scene))
    points, normals = (torch.tensor(np.array(values)).float() for values in (in_scene.vertices, in_scene.vertex_normals))
    with torch.no_grad():
        surface = ours.model.implicit_network(points)
        rgb = theirs.model.rendering_network(points, surface.gradient, -normals, surface.feature)
    return 255 * rgb.numpy()


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_a_run_in_its_own_colours_is_what_nsr_render_shows(runs, tmp_path):
    one, out = runs / "one", tmp_path / "out"
    assert transfer("--geometry_id", one, "--appearance_id", one, "--out", out) == 0
    assert main(["render", str(one), "--orbit", "3", "--samples", "1", "--out", str(tmp_path / "rendered")]) == 0
    ours, rendered = pictures(out / "frames"), pictures(tmp_path / "rendered")
    assert len(ours) == 3
    assert all(np.array_equal(a, b) for a, b in zip(ours, rendered, strict=True))
    assert all((picture < 255).any() for picture in ours)


SIZES = {"one": (WIDTH, HEIGHT), "elsewhere": (40, 42)}


@pytest.mark.parametrize(("surface", "colours"), [("one", "other"), ("one", "elsewhere"), ("elsewhere", "one")])
def test_a_run_in_the_colours_of_another(surface, colours, runs, tmp_path, capsys):
    """Also of a scene with another frame, up direction and size of photographs: all but the colours is the surface's."""
    one, other, out = runs / surface, runs / colours, tmp_path / "out"
    options = ["--geometry_id", one, "--appearance_id", other, "--out", out, "--mesh", "--resolution", 48, "--scale", 2]
    assert transfer(*options) == 0
    assert f"{out}: surface of {one}, colours of {other}, 3 views" in capsys.readouterr().out
    assert main(["mesh", str(one), "--resolution", "48", "--out", str(tmp_path / "mesh.ply")]) == 0
    ours, plain = load_mesh(out / "mesh.ply"), load_mesh(tmp_path / "mesh.ply")
    assert len(plain.faces) > 100
    assert ours.vertices.tobytes() == plain.vertices.tobytes()
    assert ours.faces.tobytes() == plain.faces.tobytes()
    assert not np.array_equal(vertex_colors(ours), vertex_colors(plain))
    expected = colours_of(load_run(other), load_run(one), plain)
    np.testing.assert_allclose(vertex_colors(ours)[:, :3], expected, atol=2)

    assert main(["render", str(one), "--orbit", "3", "--samples", "1", "--scale", "2", "--out", str(tmp_path / "own")]) == 0
    frames, own = pictures(out / "frames"), pictures(tmp_path / "own")
    for a, b in zip(frames, own, strict=True):
        assert a.shape == (2 * SIZES[surface][1], 2 * SIZES[surface][0], 3)
        np.testing.assert_array_equal((a == 255).all(axis=-1), (b == 255).all(axis=-1))  # the same silhouette
        assert not np.array_equal(a, b)
    with Image.open(out / "transfer.gif") as animation:
        assert (animation.n_frames, animation.size) == (3, (2 * SIZES[surface][0], 2 * SIZES[surface][1]))
    sheet = np.array(Image.open(out / "sheet.png"))
    assert sheet.shape[0] > 2 * 240
    assert sheet.shape[1] > 3 * 240 * SIZES[surface][0] / SIZES[surface][1]
    record = json.loads((out / "transfer.json").read_text())
    assert record["geometry"]["run"] == str(one.resolve())
    assert record["appearance"]["checkpoint"] != record["geometry"]["checkpoint"]


def test_the_sheet_shows_surface_colours_and_both(runs, tmp_path, monkeypatch):
    from nsr.evaluation import report

    sheets = []
    monkeypatch.setattr(report, "preview_picture", lambda path, rows, columns: sheets.append((rows, columns)))
    out = tmp_path / "out"
    assert transfer("--geometry_id", runs / "one", "--appearance_id", runs / "other", "--out", out) == 0
    ((rows, columns),) = sheets
    assert columns == ["A: one", "B: other", "A like B"]
    for folder, column in (("one", 0), ("other", 1)):
        alone = tmp_path / folder
        assert transfer("--geometry_id", runs / "one", "--appearance_id", runs / folder, "--out", alone) == 0
        np.testing.assert_array_equal(rows[0][1][2 if column else 0], pictures(alone / "frames")[0])
    assert not np.array_equal(rows[0][1][0], rows[0][1][1])


def test_the_place_by_default_is_within_the_run_of_the_surface(runs, tmp_path):
    one = Path(shutil.copytree(runs / "one", tmp_path / "one"))
    assert transfer("--geometry_id", one, "--appearance_id", runs / "other" / "checkpoints" / "latest.safetensors") == 0
    assert (one / "transfer" / "other" / "transfer.gif").is_file()
    stamps = ("2026_01_01_00_00_00", "2026_01_01_00_00_01")  # of one experiment: they must not replace each other's results
    for name, stamp in zip(("one", "other"), stamps, strict=True):
        run = shutil.copytree(runs / name, tmp_path / "exps" / "cup_65" / stamp)
        assert transfer("--geometry_id", one, "--appearance_id", run) == 0
    for name, stamp in zip(("one", "other"), stamps, strict=True):
        record = json.loads((one / "transfer" / f"cup_65_{stamp}" / "transfer.json").read_text())
        assert record["appearance"]["checkpoint"] == load_run(runs / name).checkpoint


def test_scans_by_the_names_of_their_experiments(runs, tmp_path, refused):
    exps, out = tmp_path / "exps", tmp_path / "out"
    for run, places in {
        "one": ("tiny_65/2026_01_01_00_00_00", "cup_65/2026_01_01_00_00_00", "NFFB_dtu_fixed_cameras_65/2026_01_01_00_00_00"),
        "other": ("tiny_106/2026_01_01_00_00_00", "tiny_65/2026_01_01_00_00_01", "cup_106/2026_01_01_00_00_00"),
    }.items():
        for place in places:
            shutil.copytree(runs / run, exps / place)

    def sources(*options: object) -> tuple[str, str]:
        assert transfer(*options, "--exps_folder", exps, "--out", out) == 0
        record = json.loads((out / "transfer.json").read_text())
        return tuple(str(Path(record[name]["run"]).relative_to(exps)) for name in ("geometry", "appearance"))

    ids = ["--geometry_id", 65, "--appearance_id", 106]
    stamp = "2026_01_01_00_00_0"
    assert sources(*ids, "--conf", "some/tiny.conf") == (f"tiny_65/{stamp}1", f"tiny_106/{stamp}0")  # the newest
    assert sources(*ids, "--exp", "cup") == (f"cup_65/{stamp}0", f"cup_106/{stamp}0")
    shutil.copytree(runs / "other", exps / "NFFB_dtu_fixed_cameras_106" / f"{stamp}0")
    assert sources(*ids, "--exp", "NFFB") == tuple(f"NFFB_dtu_fixed_cameras_{scan}/{stamp}0" for scan in (65, 106))
    experiment = exps / "cup_106"  # the folder of an experiment
    assert sources("--geometry_id", experiment, "--appearance_id", 65, "--exp", "cup") == (
        f"cup_106/{stamp}0",
        f"cup_65/{stamp}0",
    )

    command = ["transfer", *ids, "--exps_folder", exps]
    refused(command, 5, "--geometry_id 65: no such run", str(exps / "instant_65"))
    shutil.copytree(runs / "one", exps / "NFFB_instant_65" / f"{stamp}0")
    refused([*command, "--exp", "NFFB"], 2, "--geometry_id 65", "NFFB_dtu_fixed_cameras_65, NFFB_instant_65", "--conf")
    assert sources(*ids, "--exp", "NFFB", "--conf", "dtu_fixed_cameras")[0] == f"NFFB_dtu_fixed_cameras_65/{stamp}0"
    # Names that hold others' names: NFFB is not NFFB_TCNN, and lps not scan_lps.
    for place in ("StylemodNFFB_TCNN_instant_9", "StylemodNFFB_instant_scan_9"):
        shutil.copytree(runs / "one", exps / place / f"{stamp}0")
    command = ["transfer", "--geometry_id", 9, "--appearance_id", 65, "--exp", "StylemodNFFB", "--exps_folder", exps]
    refused(command, 5, "--geometry_id 9: no such run", str(exps / "StylemodNFFB_9"), "StylemodNFFB_VARIANT_9")
    shutil.copytree(runs / "one", exps / "StylemodNFFB_dtu_fixed_cameras_9" / f"{stamp}0")
    shutil.copytree(runs / "one", exps / "StylemodNFFB_dtu_fixed_cameras_65" / f"{stamp}0")
    assert sources(*command[1:5], "--exp", "StylemodNFFB", "--conf", "dtu")[0] == f"StylemodNFFB_dtu_fixed_cameras_9/{stamp}0"
    shutil.copytree(runs / "one", exps / "named" / "mine")  # nsr train --timestamp mine
    assert sources("--geometry_id", exps / "named", "--appearance_id", 65, "--exp", "cup")[0] == "named/mine"
    shutil.copytree(runs / "one", exps / "named" / "yours")
    command = ["transfer", "--geometry_id", exps / "named", "--appearance_id", exps / "named" / "mine"]
    refused(command, 5, "2 runs without time stamps, mine, yours")
    (exps / "empty").mkdir()
    refused(["transfer", "--geometry_id", exps / "empty", "--appearance_id", 65], 5, "no run", "found nothing")


def test_refusals(runs, tiny_files, tmp_path, refused):
    train = ["train", "--conf", tiny_files / "tiny.conf", "--data_dir", tiny_files / "ball", "--nepoch", 1, "--expname", "wide"]
    train += ["--exps_folder", tmp_path / "exps", "model.implicit_network.feature_size=9"]
    assert main([str(argument) for argument in train]) == 0
    both = ["transfer", "--geometry_id", runs / "one", "--appearance_id"]
    out = tmp_path / "out"
    words = "model.implicit_network.feature_size is 7 in the one and 9 in the other"
    refused([*both, tmp_path / "exps" / "wide", "--out", out], 5, words, "the same --conf")
    assert not out.exists()
    refused(["transfer", "--geometry_id", "65"], 2, "--appearance_id")
    refused([*both, runs / "other", "--frames", 0], 2, "--frames", "from 1 up")
    refused([*both, runs / "other", "--scale", 0], 2, "--scale 0")
    refused([*both, runs / "other", "--out", runs / "one" / "metrics.csv"], 2, "--out", "is a file")


@pytest.mark.skipif(os.name == "nt", reason="its first line means nothing there")
def test_the_script_finds_the_nsr_of_its_checkout_from_any_python(tmp_path):
    """As docs/transfer.md has it: by its name alone, in a shell whose python3 knows nothing of nsr."""
    script, bare = tmp_path / "checkout" / "scripts" / "eval_disentanglement.py", tmp_path / "bare"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / script.name, script)
    write_program(bare / "python3", f'exec "{sys.executable}" -I -S "$@"')
    environment = {"PATH": f"{bare}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def call() -> tuple[int, str, str]:
        command = [script, "--geometry_id", "65", "--appearance_id", "a b"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    code, _, stderr = call()
    assert code == 6
    assert "No module named 'nsr'" in stderr
    assert "make setup" in stderr
    told = 'printf "%s|" {} "$@"; exit 7'
    write_program(bare / "nsr", told.format("path"))
    assert call() == (7, "path|transfer|--geometry_id|65|--appearance_id|a b|", "")
    write_program(tmp_path / "checkout" / ".venv" / "bin" / "nsr", told.format("own"))
    assert call() == (7, "own|transfer|--geometry_id|65|--appearance_id|a b|", "")


def write_program(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def test_the_script_is_the_command(runs, tmp_path):
    _, environment = nsr_command()
    options = ["--geometry_id", runs / "one", "--appearance_id", runs / "other", "--out", tmp_path / "out", *FAST]
    script = [sys.executable, ROOT / "scripts" / "eval_disentanglement.py", *options]
    subprocess.run([*map(str, script)], env=environment, check=True, timeout=60, cwd=tmp_path)
    assert (tmp_path / "out" / "sheet.png").is_file()
