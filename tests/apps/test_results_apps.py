"""nsr mesh, render and eval over a run whose model is known in closed form."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from support.ball_run import TRAINED, open_as_run
from support.dtu_reference import write_reference
from support.painted_ball import RADIUS, WORLD_FROM_SCENE

from nsr.apps.eval import CAMERAS, DTU, MESH, RENDERING
from nsr.apps.main import main
from nsr.evaluation.dtu import DtuReference
from nsr.geometry.meshes import load_mesh, vertex_colors
from nsr.models.exposure import AffineExposure
from nsr.training.results import render_view, run_figures
from nsr.utils.errors import DataError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """What load_run returns for the folder `run`, with a ball as the trained model."""
    return open_as_run(monkeypatch, tmp_path / "run")


def ball_mesh(radius: float = RADIUS) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=5, radius=radius).apply_transform(WORLD_FROM_SCENE)


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_mesh_writes_every_format_in_world_units(run, tmp_path, suffix, capsys):
    out = tmp_path / f"ball.{suffix}"
    assert main(["mesh", str(run.folder), "--resolution", "32", "--out", str(out)]) == 0
    mesh = trimesh.load(out, force="mesh", process=False)
    assert np.allclose(mesh.bounds.mean(axis=0), WORLD_FROM_SCENE[:3, 3], atol=0.2)
    assert np.allclose(np.ptp(mesh.bounds, axis=0), 100 * RADIUS, rtol=0.01)
    assert capsys.readouterr().out.startswith(f"{out}: ")


def test_mesh_has_a_default_place(run):
    assert main(["mesh", str(run.folder), "--resolution", "16", "--color-view", "mean"]) == 0
    assert (run.folder / "mesh.ply").is_file()


@pytest.mark.parametrize("with_photographs", [True, False])
def test_mesh_marks_and_trims_what_the_ring_of_cameras_does_not_see(run, tmp_path, capsys, with_photographs):
    """Of a ball, cameras three radii off in the plane z = 0 see neither pole; masks add nothing, where they are right."""
    if not with_photographs:
        run.load_scene = raises_data_error
    marked, trimmed = tmp_path / "marked.ply", tmp_path / "trimmed.ply"
    command = ["mesh", str(run.folder), "--resolution", "64", "--unseen"]
    assert main([*command, "mark", "--out", str(marked)]) == 0
    assert main([*command, "trim", "--out", str(trimmed)]) == 0
    printed = capsys.readouterr().out
    assert ("by the cameras alone: no photographs" in printed) == (not with_photographs)
    share = float(re.search(r"seen by 1 or more training views: ([\d.]+) %", printed)[1])
    # From three radii a cap of cos > 1/3 is seen: of all heights up to sqrt(8)/3, and up to 0.75 around the held-out view.
    assert 80 < share < 100 * 8**0.5 / 3
    height = np.abs(load_mesh(trimmed).vertices[:, 2] - WORLD_FROM_SCENE[2, 3]) / (50 * RADIUS)
    assert height.max() == pytest.approx(8**0.5 / 3, abs=0.02)
    whole = load_mesh(marked)
    assert whole.is_watertight
    grey = (vertex_colors(whole)[:, :3] == 128).all(axis=1)
    height = np.abs(whole.vertices[:, 2] - WORLD_FROM_SCENE[2, 3]) / (50 * RADIUS)
    assert grey[height > 0.97].all()
    assert not grey[height < 0.6].any()


def raises_data_error():
    raise DataError("no photographs")


def test_mesh_refuses_what_cannot_be(run, capsys):
    mesh = ["mesh", str(run.folder), "--resolution", "16"]
    assert main([*mesh, "--unseen", "trim", "--min-views", "6"]) == 2
    assert "--min-views 6: expected 1 to 5, the number of training views" in capsys.readouterr().err
    assert main([*mesh, "--min-views", "2"]) == 2
    assert "--min-views 2: all surface is kept; expected --unseen mark or --unseen trim" in capsys.readouterr().err
    assert main([*mesh, "--unseen", "mark", "--no-color", "--out", str(run.folder / "mesh.glb")]) == 2
    assert "only .ply can tell without colours" in capsys.readouterr().err
    assert main([*mesh, "--unseen", "mark", "--no-color"]) == 0
    assert b"property uchar views" in (run.folder / "mesh.ply").read_bytes()
    assert main([*mesh, "--unseen", "trim", "--min-views", "5", "--out", str(run.folder / "none.ply")]) == 3
    assert "5 of the views see, found none" in capsys.readouterr().err
    assert not (run.folder / "none.ply").exists()


def test_render_training_views_as_pictures(run, capsys):
    assert main(["render", str(run.folder), "--what", "rgb", "normal"]) == 0
    files = sorted(path.name for path in (run.folder / "renders").iterdir())
    assert files == [f"view_{view:04d}.png" for view in TRAINED]
    picture = np.array(Image.open(run.folder / "renders" / "view_0002.png"))
    assert picture.shape == (30, 80, 3)
    photograph = run.load_scene().images[2].numpy()
    shown = render_view(run.model, run.load_scene().cameras, 2)
    rim = ((shown.coverage > 0) & (shown.coverage < 1)).numpy()
    assert np.abs(picture[:, :40].astype(int) - photograph)[~rim].max() <= 1
    assert rim.any()
    mixed = (255 * shown.on_white(shown.rgb)).numpy()  # with the background
    assert np.abs(picture[:, :40] - mixed)[rim].max() <= 1
    assert main(["render", str(run.folder), "--samples", "1"]) == 0
    stairs = np.array(Image.open(run.folder / "renders" / "view_0002.png"))
    assert np.abs(stairs - 255 * render_view(run.model, run.load_scene().cameras, 2, samples=1).rgb.numpy()).max() <= 1
    assert main(["render", str(run.folder), "--samples", "9"]) == 2
    assert "--samples 9: expected 1 to 8 rays per side of a pixel" in capsys.readouterr().err


def test_render_chosen_views_at_half_size(run, tmp_path):
    out = tmp_path / "pictures"
    assert main(["render", str(run.folder), "--views", "0,3", "--scale", "0.5", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["view_0000.png", "view_0003.png"]
    assert Image.open(out / "view_0003.png").size == (20, 15)


def test_render_in_the_exposure_of_each_photograph(run, tmp_path, capsys):
    folder = str(run.folder)
    assert main(["render", folder, "--own_exposure"]) == 2
    assert "has learned no exposures" in capsys.readouterr().err
    run.exposure = AffineExposure(len(TRAINED)).requires_grad_(False)
    run.exposure.deviation[1, :, 3] = 0.1  # view 1 is brighter by 0.1, but for the mean over the five views
    assert main(["render", folder, "--turntable", "2", "--own_exposure"]) == 2
    for options, out in (([], "mean"), (["--own_exposure"], "own")):
        assert main(["render", folder, "--views", "1,3,4", *options, "--out", str(tmp_path / out)]) == 0
    for view, change in ((1, 0.08), (3, 0.0), (4, -0.02)):  # view 3 was held out
        mean, own = (np.array(Image.open(tmp_path / out / f"view_{view:04d}.png")).astype(float) for out in ("mean", "own"))
        hit = (mean < 255).any(axis=-1) & (mean.max(axis=-1) < 220)
        assert (own - mean)[hit].mean() / 255 == pytest.approx(change, abs=0.003)
        assert (own[mean.min(axis=-1) == 255] == 255).all()  # the background stays white


@pytest.mark.parametrize("path", ["--spline", "--turntable"])
def test_render_animations(run, tmp_path, path):
    gif, mp4 = tmp_path / "a.gif", tmp_path / "a.mp4"
    assert main(["render", str(run.folder), path, "4", "--out", str(gif)]) == 0
    with Image.open(gif) as animation:
        assert (animation.n_frames, animation.size) == (4, (40, 30))
        middle = np.array(animation.convert("RGB"))[13:17, 16:20].astype(int)
    assert middle.min() < 250  # the ball is in the middle, and it is not white
    pytest.importorskip("imageio_ffmpeg")
    assert main(["render", str(run.folder), path, "3", "--out", str(mp4)]) == 0
    import imageio

    assert len(imageio.mimread(mp4)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.mp4", "run"]


def test_eval_measures_what_is_asked(run, tmp_path, capsys):
    ball_mesh().export(tmp_path / "gt.ply")
    command = ["eval", str(run.folder), "--eval_rendering", "--eval_cameras", "--gt", str(tmp_path / "gt.ply")]
    assert main([*command, "--resolution", "64"]) == 0
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["psnr"] > 50
    assert metrics["psnr_views"] == "held out"
    assert list(metrics["per_view"]) == ["003"]
    assert metrics["chamfer_percent"] < 0.2
    assert "chamfer_percent_all" in metrics
    assert "psnr" in capsys.readouterr().out
    assert metrics["samples_per_pixel"] == 4
    assert main(["eval", str(run.folder), "--samples", "1"]) == 0
    coarse = json.loads((run.folder / "metrics.json").read_text())
    assert coarse["samples_per_pixel"] == 1
    assert coarse["psnr"] != metrics["psnr"]
    figures = {"checkpoint": "0123abcd", "steps": 700, "rays": 9000, "train_seconds": 12.5, "seed": 3, "views": len(TRAINED)}
    assert figures.items() <= metrics.items()


def test_eval_corrects_colours_where_exposures_were_learned(run):
    metrics = run.folder / "metrics.json"
    assert main(["eval", str(run.folder), "--eval_rendering"]) == 0
    assert "psnr_affine" not in json.loads(metrics.read_text())
    run.exposure = AffineExposure(len(TRAINED))
    scene = run.load_scene()
    darker = replace(scene, images=(0.6 * scene.images).to(torch.uint8))
    run.load_scene = lambda: darker
    assert main(["eval", str(run.folder), "--eval_rendering"]) == 0
    figures = json.loads(metrics.read_text())
    assert figures["psnr"] < 20
    assert figures["psnr_affine"] > 45
    assert figures["per_view"]["003"]["psnr_affine"] == pytest.approx(figures["psnr_affine"])


def test_eval_keeps_what_it_does_not_measure_of_the_same_checkpoint_alone(run, capsys):
    out = run.folder / "metrics.json"
    command = ["eval", str(run.folder), "--eval_rendering"]
    earlier = {"checkpoint": "0123abcd", "peak_memory_mb": 90.0, "chamfer_percent": 1.5, "psnr": 1.0, "lpips": 0.5}
    out.write_text(json.dumps(earlier))
    assert main(command) == 0
    metrics = json.loads(out.read_text())
    assert (metrics["peak_memory_mb"], metrics["chamfer_percent"]) == (90.0, 1.5)
    assert metrics["psnr"] > 50
    assert "lpips" not in metrics  # of renderings that are gone
    assert "dropped" not in capsys.readouterr().out
    for checkpoint in ({"checkpoint": "4567cdef"}, {}):  # a run that was continued, and a file that does not say
        out.write_text(json.dumps({"chamfer_percent": 1.5, "psnr": 1.0, **checkpoint}))
        assert main(command) == 0
        metrics = json.loads(out.read_text())
        assert "chamfer_percent" not in metrics
        assert metrics["checkpoint"] == "0123abcd"
        assert "dropped what was not measured on this checkpoint: chamfer_percent" in capsys.readouterr().out


def test_eval_leaves_nothing_of_an_earlier_measurement(run, tmp_path):
    """Every name that a measurement writes is known as its own."""
    ball_mesh().export(tmp_path / "gt.ply")
    choices = {RENDERING: ["--eval_rendering"], CAMERAS: ["--eval_cameras"], MESH: ["--gt", str(tmp_path / "gt.ply")]}
    for kind, choice in choices.items():
        out = tmp_path / "m.json"
        out.unlink(missing_ok=True)
        assert main(["eval", str(run.folder), "--resolution", "16", "--out", str(out), *choice]) == 0
        names = json.loads(out.read_text()).keys() - run_figures(run).keys()
        assert names == {name for name in names if kind.fullmatch(name)}
        assert len(names) > 3


def test_eval_measures_a_known_error_of_the_surface(run, tmp_path):
    ball_mesh(radius=RADIUS / 1.05).export(tmp_path / "gt.ply")
    out = tmp_path / "m.json"
    command = ["eval", str(run.folder), "--gt", str(tmp_path / "gt.ply"), "--out", str(out)]
    assert main([*command, "--resolution", "64"]) == 0
    metrics = json.loads(out.read_text())
    assert metrics["chamfer_percent_all"] == pytest.approx(5.0, abs=0.15)
    assert "psnr" not in metrics


def test_eval_measures_as_dtu_does(run, tmp_path, capsys):
    """The scan: the ball's upper half, a millimetre further in. The table is through its middle."""
    center = WORLD_FROM_SCENE[:3, 3]
    scan = ball_mesh().vertices
    scan = center + (scan - center) * (1 - 1 / (50 * RADIUS))
    box = np.stack([center - 80 * RADIUS, center + 80 * RADIUS])
    plane = np.array([0, 0, 1.0, -center[2]])
    write_reference(tmp_path, 24, DtuReference(scan, np.ones((170, 170, 170), dtype=bool), box, RADIUS, plane))
    out = tmp_path / "m.json"
    command = ["eval", str(run.folder), "--dtu_gt", str(tmp_path), "--resolution", "48", "--out", str(out)]
    scene = replace(run.load_scene(), name="scan24")
    run.load_scene = lambda: scene
    assert main(command) == 0
    metrics = json.loads(out.read_text())
    assert metrics["dtu_completeness_mm"] == pytest.approx(1.0, abs=0.05)
    # Points of the scan are up to a millimetre apart.
    assert metrics["dtu_accuracy_mm"] == pytest.approx(1.05, abs=0.1)
    assert all(DTU.fullmatch(name) for name in metrics.keys() - run_figures(run).keys())
    assert main([*command, "--dtu_scan", "65"]) == 3
    assert "stl065_total.ply" in capsys.readouterr().err
    assert main(["eval", str(run.folder), "--dtu_scan", "65"]) == 2
    assert "expected --dtu_gt DIR beside it" in capsys.readouterr().err


def test_eval_cameras_notices_moved_cameras(run, tmp_path):
    out = tmp_path / "m.json"
    poses = run.cameras.camera_to_world
    poses[2, :3, 3] += poses.new_tensor([0.0, 0.0, 0.2])
    assert main(["eval", str(run.folder), "--eval_cameras", "--out", str(out)]) == 0
    metrics = json.loads(out.read_text())
    assert any("rotation" in name for name in metrics)
    assert any("translation" in name and value > 1.0 for name, value in metrics.items())  # 0.2 scene units are 10 mm


def test_eval_without_a_choice_renders_and_skips_what_it_cannot_know(run):
    assert main(["eval", str(run.folder)]) == 0
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert "psnr" in metrics
    assert "chamfer_percent" not in metrics


def test_eval_refuses_to_overwrite_what_is_not_metrics(run, tmp_path, capsys):
    out = tmp_path / "notes.json"
    out.write_text("my notes")
    assert main(["eval", str(run.folder), "--out", str(out)]) == 3
    assert "not JSON" in capsys.readouterr().err
    assert out.read_text() == "my notes"


def test_eval_mesh_only_leaves_the_renderings_out(run, tmp_path, capsys):
    command = ["eval", str(run.folder), "--mesh-only", "--resolution", "32"]
    assert main(command) == 0
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["steps"] == run.step
    assert "chamfer_percent" not in metrics
    ball_mesh().export(tmp_path / "gt.ply")
    known = replace(run.load_scene(), ground_truth=tmp_path / "gt.ply")
    run.load_scene = lambda: known
    assert main(command) == 0
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics["chamfer_percent"] < 1
    assert "psnr" not in metrics
    assert main([*command, "--eval_rendering"]) == 2
    assert "--mesh-only" in capsys.readouterr().err
