"""Heads through the command line: reconstructed from the published views, and measured as H3DS does, runs and meshes alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation
from support.ball_run import open_as_run
from support.heads import ball_mesh, head_marks, head_mesh, head_reference, write_ball_head, write_h3ds, write_truth
from support.painted_ball import RADIUS
from support.refusals import CHECKPOINT, DATA, EXTENSION, USAGE, files_in
from support.tiny_run import write_tiny_conf

from nsr.apps.eval_h3ds import FIGURES
from nsr.apps.main import main
from nsr.evaluation import h3ds_pictures
from nsr.evaluation.h3ds import evaluate_head
from nsr.evaluation.h3ds_pictures import FACE_MAXIMUM, HEAD_MAXIMUM
from nsr.evaluation.report import heat_colors
from nsr.geometry.meshes import load_mesh, new_mesh, save_mesh, to_world, vertex_colors
from nsr.training.heads import head_reference as read_reference
from nsr.training.results import run_figures
from nsr.training.run import load_run

EVERY_FIGURE = {
    *("face_mm", "head_mm", "face_surface_mm", "head_surface_mm", "head_accuracy_mm", "face_surface_accuracy_mm"),
    *("head_surface_accuracy_mm", "face_scale", "head_scale", "h3ds_reference", "h3ds_landmarks"),
}
HEAT_MAPS = ("h3ds_head.ply", "h3ds_face.ply", "h3ds.png")


def nsr(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def figures_in(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Full ones take seconds."""
    monkeypatch.setattr(h3ds_pictures, "SIZE", 60)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    """A scene folder with the made head and no photographs. Not to be changed."""
    folder = tmp_path_factory.mktemp("truth") / "made"
    truth = head_reference()
    write_truth(folder, truth.mesh, truth.landmarks, truth.regions)
    return folder


def bumpy(subdivisions: int = 4, moved: np.ndarray | None = None):
    """The made head with waves of two millimetres, in a frame of its own where `moved` is given."""
    mesh = head_mesh(subdivisions)
    bent = new_mesh(mesh.vertices + 2 * np.sin(mesh.vertices / 12), mesh.faces)
    return bent if moved is None else to_world(bent, moved)


# ---------------------------------------------------------------------------------------------------- mesh files


def test_a_mesh_file_is_measured_against_the_scan_of_a_scene(head, tmp_path, capsys):
    mesh = bumpy()
    save_mesh(mesh, tmp_path / "mine.ply")
    nsr("eval", tmp_path / "mine.ply", "--h3ds", "--reference", head)
    figures = figures_in(tmp_path / "mine_h3ds.json")
    assert figures.keys() == EVERY_FIGURE | {"mesh"}
    assert (figures["h3ds_reference"], figures["h3ds_landmarks"]) == (str(head), "none")
    errors = evaluate_head(mesh, read_reference(head))
    for name, value in errors.figures().items():
        assert figures[name] == pytest.approx(value, rel=1e-4), name
    assert 0.5 < figures["face_mm"] < 4
    printed = capsys.readouterr().out
    assert "face_mm" in printed
    for name, aligned, maximum in (("head", errors.head, HEAD_MAXIMUM), ("face", errors.face, FACE_MAXIMUM)):
        file = tmp_path / f"mine_h3ds_{name}.ply"
        assert str(file) in printed
        shown = load_mesh(file)
        assert np.allclose(shown.vertices, aligned.reference.mesh.vertices[np.sort(aligned.vertices)], atol=1e-4)
        told = np.asarray(shown.metadata["_ply_raw"]["vertex"]["data"]["error_mm"]).ravel()
        assert np.allclose(told, aligned.surface_distances, atol=1e-3)
        assert np.abs(vertex_colors(shown)[:, :3].astype(int) - heat_colors(told, maximum)).max() <= 1
    with Image.open(tmp_path / "mine_h3ds.png") as picture:
        assert picture.size[0] > 5 * 60
        assert picture.size[1] > 4 * 60
        assert np.array(picture).std() > 20


def test_landmarks_carry_a_mesh_from_afar(head, tmp_path):
    """In another unit and frame: by vertices of the mesh, and by points."""
    far = np.eye(4)
    far[:3, :3] = 0.02 * Rotation.from_euler("xyz", (100, 30, -60), degrees=True).as_matrix()
    far[:3, 3] = (50, 0, -20)
    save_mesh(bumpy(moved=far), tmp_path / "far.ply")
    save_mesh(bumpy(), tmp_path / "near.ply")
    marks, mesh = head_marks(head_mesh()), load_mesh(tmp_path / "far.ply")
    vertices, points = tmp_path / "vertices.txt", tmp_path / "points.txt"
    vertices.write_text("".join(f"{name} {vertex}\n" for name, vertex in marks.items()))
    places = {name: " ".join(map(str, mesh.vertices[vertex])) for name, vertex in marks.items()}
    points.write_text("".join(f"{name} {place}\n" for name, place in places.items()))
    command = ["--h3ds", "--reference", head, "--out"]
    nsr("eval", tmp_path / "near.ply", *command, tmp_path / "near.json")
    near = figures_in(tmp_path / "near.json")
    for file in (vertices, points):
        nsr("eval", tmp_path / "far.ply", *command, tmp_path / "far.json", "--landmarks", file)
        figures = figures_in(tmp_path / "far.json")
        assert figures["h3ds_landmarks"] == str(file)
        assert figures["face_mm"] == pytest.approx(near["face_mm"], rel=0.1)
        assert figures["face_scale"] == pytest.approx(50, rel=0.02)


def test_meshes_and_options_that_do_not_do_are_refused(head, tmp_path, refused):
    mesh, out = tmp_path / "mine.ply", tmp_path / "out.json"
    save_mesh(bumpy(3), mesh)
    before = files_in(tmp_path)
    measure = ["eval", mesh, "--h3ds", "--reference"]
    refused(["eval", mesh], USAGE, "mine.ply: a mesh; expected the folder of a run, or --h3ds --reference SCENE")
    refused(["eval", mesh, "--h3ds"], USAGE, "expected --reference SCENE beside it")
    refused([*measure, head, "--eval_rendering"], USAGE, "--eval_rendering: is about a run")
    refused([*measure, tmp_path], DATA, f"{tmp_path}: no head with its scan", "full_head.obj", "docs/heads.md")
    refused([*measure, head, "--landmarks", "auto"], EXTENSION, "--landmarks auto", "nsr.faces", "is not installed", "nose_tip")
    refused([*measure, head, "--landmarks", tmp_path / "none.txt"], DATA, "none.txt: no such file")
    refused(["eval", tmp_path / "none.ply", "--h3ds", "--reference", head], DATA, "none.ply: no such mesh file")
    refused(["eval", tmp_path, "--landmarks", "auto"], USAGE, "--landmarks: expected --h3ds beside it")
    refused(["eval", tmp_path / "run", "--h3ds"], CHECKPOINT, "run")
    assert files_in(tmp_path) == before
    marks = tmp_path / "marks.txt"
    marks.write_text("nose_tip 99999\n")
    refused([*measure, head, "--landmarks", marks], DATA, f"--landmarks {marks}: nose_tip: vertex 99999", "NAME X Y Z")
    marks.write_text("nose_tip 3\n")
    refused([*measure, head, "--landmarks", marks], DATA, "right_eye, left_eye, nose_base, right_lips, left_lips missing")
    out.write_text('{"checkpoint": "0123"}')
    refused([*measure, head, "--out", out], USAGE, "holds the figures of a run")
    assert out.read_text() == '{"checkpoint": "0123"}'


# ---------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose trained model is a ball, on a scene whose head is that ball."""
    return open_as_run(monkeypatch, tmp_path / "run", source=str(write_ball_head(tmp_path / "head")))


def test_a_run_is_measured_against_the_scan_of_its_scene(run, tmp_path):
    metrics = run.folder / "metrics.json"
    earlier = {"checkpoint": "0123abcd", "chamfer_percent": 1.5, "face_mm": 99.0, "head_something_mm": 3.0}
    metrics.write_text(json.dumps({**earlier, "h3ds_old": 1}))
    nsr("eval", run.folder, "--h3ds", "--resolution", 64)
    figures = figures_in(metrics)
    assert figures.keys() == EVERY_FIGURE | run_figures(run).keys() | {"chamfer_percent", "head_something_mm"}
    assert all(FIGURES.fullmatch(name) for name in EVERY_FIGURE)
    # A ball that is where it should be; its vertices are some millimetre apart.
    assert figures["face_surface_mm"] < 0.1
    assert figures["head_surface_accuracy_mm"] < 0.2
    assert figures["face_mm"] < 1
    assert figures["head_scale"] == pytest.approx(1, abs=0.01)
    assert [name for name in HEAT_MAPS if not (run.folder / name).is_file()] == []


def test_everything_includes_a_head_and_the_scale_tells_of_the_wrong_size(run, tmp_path):
    scan = ball_mesh(radius=1.02 * RADIUS)
    lines = [f"v {x} {y} {z}" for x, y, z in scan.vertices] + [f"f {a} {b} {c}" for a, b, c in scan.faces + 1]
    (tmp_path / "head" / "full_head.obj").write_text("\n".join(lines))
    out = tmp_path / "all.json"
    nsr("eval", run.folder, "--mesh-only", "--resolution", 48, "--out", out)
    figures = figures_in(out)
    assert {"face_mm", "head_mm"} <= figures.keys()
    assert "psnr" not in figures
    assert figures["head_surface_mm"] < 0.2
    assert figures["head_scale"] == pytest.approx(1.02, abs=0.005)
    assert {f"all_{name}" for name in HEAT_MAPS} <= {path.name for path in tmp_path.iterdir()}


def test_vertices_of_a_runs_landmarks_are_those_of_its_mesh_file(run, tmp_path, refused):
    marks = tmp_path / "marks.txt"
    mesh = ball_mesh()
    truth = read_reference(tmp_path / "head")
    marks.write_text("".join(f"{name} {len(mesh.vertices) - 1 - vertex}\n" for name, vertex in truth.landmarks.items()))
    command = ["eval", run.folder, "--h3ds", "--resolution", 48, "--landmarks", marks]
    refused(command, DATA, f"has vertices, but there is no {run.folder / 'mesh.ply'}", "nsr mesh", "NAME X Y Z")
    # Numbered backwards, as the landmarks are: only by this file do they fit.
    count = len(mesh.vertices)
    save_mesh(new_mesh(mesh.vertices[::-1], count - 1 - mesh.faces), run.folder / "mesh.ply")
    nsr(*command)
    figures = figures_in(run.folder / "metrics.json")
    assert figures["h3ds_landmarks"] == str(marks)
    assert figures["face_surface_mm"] < 0.1


def test_a_run_elsewhere_is_measured_against_the_scan_that_is_named(monkeypatch, tmp_path, refused):
    run = open_as_run(monkeypatch, tmp_path / "run", source=str(tmp_path))
    scene = write_ball_head(tmp_path / "head")
    refused(["eval", run.folder, "--h3ds"], DATA, f"{tmp_path}: no head with its scan")
    nsr("eval", run.folder, "--h3ds", "--reference", scene, "--resolution", 48)
    figures = figures_in(run.folder / "metrics.json")
    assert figures["h3ds_reference"] == str(scene)
    assert "rotation_error_mean_degrees" not in figures
    assert not any(name.startswith("rotation") for name in figures)


# --------------------------------------------------------------------------------------------------- reconstruct


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory) -> Path:
    """`nsr reconstruct HEAD --views 3` of a made head whose three published views are 0, 1 and 5."""
    folder = tmp_path_factory.mktemp("reconstruct")
    write_h3ds(folder / "heads", "anna")
    start = ["start.resolution=32", "start.steps=80", "start.points=512"]
    conf = write_tiny_conf(folder / "tiny.conf", *start, "train.budget=0", "train.nepoch=30")
    options = ["--conf", conf, "--out", folder / "out", "--resolution", 32, "--mesh-only", "--unseen", "trim"]
    nsr("reconstruct", folder / "heads" / "anna", "--views", 3, *options)
    return folder / "out"


def test_reconstruct_takes_the_published_views_and_measures_the_face_and_the_head(reconstructed):
    figures = figures_in(reconstructed / "metrics.json")
    assert figures["views"] == 3
    assert load_run(reconstructed).train_views == [0, 1, 5]
    for where in (figures, figures["trimmed"]):
        assert 0 < where["face_mm"] < 5
        assert 0 < where["head_mm"] < 10
        assert 0 < where["chamfer_percent_all"] < 20
    report = (reconstructed / "report.html").read_text()
    assert "face_mm" in report
    assert "head_mm" in report


def test_reconstruct_and_eval_measure_alike(reconstructed, tmp_path):
    """Of the same mesh: what eval extracts anew at the resolution that reconstruct had."""
    out = tmp_path / "again.json"
    nsr("eval", reconstructed, "--h3ds", "--resolution", 32, "--out", out)
    ours, again = figures_in(reconstructed / "metrics.json"), figures_in(out)
    for name in ("face_mm", "head_mm"):
        assert again[name] == pytest.approx(ours[name], rel=1e-3)


def test_damaged_truth_is_found_before_training(tmp_path, refused):
    root = write_h3ds(tmp_path / "heads", "anna")
    (root / "anna" / "regions" / "face_sphere.txt").write_text("1\ntwo\n")
    conf = write_tiny_conf(tmp_path / "tiny.conf")
    options = ["--conf", conf, "--out", tmp_path / "out", "--budget", 1]
    refused(["reconstruct", root / "anna", *options], DATA, "face_sphere.txt", "expected one vertex number per line, found two")
    assert not (tmp_path / "out").exists()
