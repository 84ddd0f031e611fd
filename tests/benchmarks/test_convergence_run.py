"""One run of a convergence benchmark: the same rays for all, curves outside the clock, figures that are right."""

import importlib
import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from support.dtu_reference import write_reference
from support.painted_ball import RADIUS, WORLD_FROM_SCENE, PaintedBall, photographs, ring_of_cameras
from support.tiny_run import tiny_config

from nsr.evaluation.dtu import DtuReference
from nsr.training.launch import train
from nsr.training.results import render_view
from nsr.training.start import start_from_hull
from nsr.training.trainer import Trainer
from nsr.utils.errors import RetriableError


@pytest.fixture
def worker(program):
    return program("convergence_run")


@pytest.fixture
def scene(tmp_path):
    """The painted ball from all round, with its mesh."""
    truth = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS).apply_transform(WORLD_FROM_SCENE)
    truth.export(tmp_path / "mesh_gt.ply")
    cameras = ring_of_cameras(6, 80, 60)
    cameras.intrinsics[:, :2, 2] += cameras.intrinsics.new_tensor([30.0, 20.0])  # the ball is not in the upper left corner
    scene = photographs(cameras, PaintedBall())
    return replace(scene, name="scan24", ground_truth=str(tmp_path / "mesh_gt.ply"))


def job_of(worker, **changes):
    plan = importlib.import_module("convergence_plan")
    values = {
        "scene": "scan24", "data": "nowhere", "views": None, "holdout": 2, "dtu": None, "recipe": "instant",
        "encoder": "HashGrid", "conf": "instant", "overrides": (), "budget": 2.0, "times": (0.5, 1.0, 2.0), "seed": 0,
        "device": "cpu", "measuring": plan.Measuring(resolution=64, views=2, rays=10**6),
    }  # fmt: skip
    return worker.Job(**{**values, **changes})


OTHER_ENCODERS = {
    "hash grid": (),
    "positional": ("model.implicit_network.encoder.type=vanilla", "model.rendering_network.point_encoder.type=vanilla"),
    "wider": ("model.implicit_network.dims=[24,24]", "model.implicit_network.encoder.type=fourier"),
}


def record_draws(trainer: Trainer) -> list:
    """The batches that the trainer's sampler will have drawn."""
    batches = []
    for way in ("draw", "draw_inside"):
        original = getattr(trainer.sampler, way)
        setattr(trainer.sampler, way, lambda n, original=original: batches.append(original(n)) or batches[-1])
    return batches


def test_all_encoders_see_the_same_rays(scene):
    """Those of the stage of shape and colours and, where it begins at the same step, of the colours alone."""
    drawn = {}
    for name, overrides in OTHER_ENCODERS.items():
        trainer = Trainer(tiny_config("train.budget=0", "train.nepoch=2", *overrides), scene, seed=5)
        batches = record_draws(trainer)
        trainer.fit()
        drawn[name] = torch.cat([torch.cat([batch.view[:, None], batch.pixels], dim=1) for batch in batches])
    assert len(drawn["hash grid"]) == 12 * 64
    assert all(torch.equal(rays, drawn["hash grid"]) for rays in drawn.values())
    trainer = Trainer(tiny_config(), scene, seed=6)
    assert not torch.equal(trainer.sampler.draw(64).pixels, drawn["hash grid"][:64, 1:])  # another seed, other rays


@pytest.fixture
def simulated_time(monkeypatch):
    """Training time that no machine changes: the start takes 0.3 s, each step 0.05 s. Returns what lets more pass."""
    now = [0.0]

    def passes(seconds):
        now[0] += seconds

    def taking(seconds, function):
        return lambda *arguments: (function(*arguments), passes(seconds))[0]

    monkeypatch.setattr("nsr.training.schedule.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("nsr.training.trainer.start_from_hull", taking(0.3, start_from_hull))
    monkeypatch.setattr(Trainer, "step", taking(0.05, Trainer.step))
    return passes


def curve_run(worker, scene, folder, times, stop_at=None, **changes):
    """Trains a tiny run with a curve in a folder, or goes on with it."""
    trainer = Trainer(tiny_config("train.checkpoint_seconds=1e9", f"train.budget={times[-1]}", "train.nepoch=0"), scene)
    curve = worker.Curve(folder, times, os.getppid())
    checkpoint = folder / "checkpoints" / "latest.safetensors"
    continued = checkpoint.is_file()
    if continued:
        trainer.resume(checkpoint)
    curve.begin(trainer, continued)
    if not continued:
        trainer.start()
        curve.look(trainer, 0.0)

    def after_step(trainer, losses):
        curve(trainer, losses)
        if stop_at is not None and trainer.clock.seconds > stop_at:
            raise KeyboardInterrupt

    train(trainer, folder, how_to_continue="", say=print, after_step=after_step)
    curve.finish(trainer)
    return curve, trainer


def test_a_curve_is_seen_at_its_times_and_outside_the_clock(worker, scene, tmp_path, monkeypatch, simulated_time):
    folder, times = tmp_path / "run", (0.2, 0.4, 0.8, 1.2)
    plain = worker.save_checkpoint

    def slow(*arguments):
        simulated_time(0.6)
        plain(*arguments)

    monkeypatch.setattr(worker, "save_checkpoint", slow)
    curve, trainer = curve_run(worker, scene, folder, times)
    assert trainer.clock.seconds == pytest.approx(1.2, abs=0.06)
    first, *points = curve.points
    assert (first["at"], first["step"], first["losses"]) == (0.0, 0, {})
    assert points[-1]["at"] == 1.2
    assert points[-1]["step"] == trainer.clock.step
    # The first step ends behind the first time, and the last moment is looked at once.
    assert [point["at"] for point in points] == [0.2, 0.4, 0.8, 1.2]
    for before, point in zip(curve.points, points, strict=False):
        assert point["at"] <= point["seconds"]
        assert before["step"] < point["step"]
        assert before["rays"] < point["rays"]
        assert math.isfinite(point["losses"]["loss"])
        assert point["peak_memory_mb"] >= before["peak_memory_mb"] > 50
    result = curve.result()
    rate = (points[-1]["rays"] - points[-2]["rays"]) / (points[-1]["seconds"] - points[-2]["seconds"])
    assert result["points"][-1]["rays_per_second"] == pytest.approx(rate)
    assert result["start_seconds"] == first["seconds"] == pytest.approx(0.3)
    assert result["sessions"] == [{"from": "start", "step": 0, "seconds": 0.0}]


def test_an_interrupted_curve_goes_on_and_does_not_keep_what_is_seen_again(worker, scene, tmp_path, simulated_time):
    folder, times = tmp_path / "run", (0.3, 0.6, 0.9, 1.5)
    with pytest.raises(KeyboardInterrupt):
        curve_run(worker, scene, folder, times, stop_at=1.0)
    state = json.loads((folder / worker.CURVE).read_text())
    assert not state["finished"]
    kept = list(state["points"])
    assert kept[-1]["at"] == 0.9
    # A point behind the checkpoint: the process died between the two files.
    state["points"].append({**kept[-1], "step": 10**6, "at": 1.2})
    (folder / worker.CURVE).write_text(json.dumps(state))
    curve, trainer = curve_run(worker, scene, folder, times)
    assert curve.finished
    assert curve.points[: len(kept)] == kept
    assert [point["at"] for point in curve.points[len(kept) :]] == [1.5]
    assert trainer.clock.step > kept[-1]["step"]
    assert [session["from"] for session in curve.state["sessions"]] == ["start", "checkpoint"]
    assert curve.state["sessions"][1]["step"] == kept[-1]["step"]
    assert trainer.clock.seconds >= 1.5


def test_losses_are_averaged_over_steps_of_the_same_kind(worker, tmp_path):
    curve = worker.Curve(tmp_path, (1.0,), os.getppid())
    assert curve.mean_losses() == {}
    for loss in ({"loss": 9.0, "mask": 9.0}, {"loss": 1.0}, {"loss": math.nan}, {"loss": 2.0}):
        curve.recent.append(loss)
    assert curve.mean_losses() == {"loss": 1.5}


def test_a_run_ends_with_the_benchmark_that_began_it(worker, scene, tmp_path):
    trainer = Trainer(tiny_config(), scene)
    with pytest.raises(RetriableError, match="the benchmark that began this run has ended"):
        worker.Curve(tmp_path, (60.0,), parent=-1)(trainer, {"loss": 1.0})


def test_the_true_model_has_no_errors(worker, scene, tmp_path):
    judge = worker.Judge(job_of(worker), scene)
    figures = judge(PaintedBall(), tmp_path / "pictures" / "000.png")
    assert figures["chamfer_percent"] < 0.2  # marching cubes
    assert figures["psnr"] > 40
    assert figures["iou"] == 1
    picture = np.array(Image.open(tmp_path / "pictures" / "000.png"))
    assert picture.shape[0] == worker.PICTURE_HEIGHT
    shown = picture.min(axis=-1) < 255
    assert 0.6 < shown.mean() < math.pi / 4  # an ellipse in its window, which has a small margin
    height, width = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    assert (height[0] + height[-1]) / 2 == pytest.approx(picture.shape[0] / 2, abs=6)
    assert (width[0] + width[-1]) / 2 == pytest.approx(picture.shape[1] / 2, abs=6)


def test_a_thinned_picture_is_compared_with_the_same_pixels(worker, scene):
    plan = importlib.import_module("convergence_plan")
    judge = worker.Judge(job_of(worker, measuring=plan.Measuring(views=2, rays=600)), scene)
    assert judge.stride == 9  # 9 x 7 pixels of 4 rays, in both views
    figures = judge.renderings(PaintedBall())
    assert figures["psnr"] > 40
    assert figures["iou"] == 1


def test_a_model_that_is_wrong_has_the_error_that_it_has(worker, scene, tmp_path):
    larger = PaintedBall()
    larger.radius.data *= 1.05
    judge = worker.Judge(job_of(worker), scene)
    figures = judge(larger, tmp_path / "000.png")
    assert figures["chamfer_percent"] == pytest.approx(5.0, abs=0.2)
    nothing = PaintedBall()
    nothing.radius.data.fill_(-1.0)
    figures = judge(nothing, tmp_path / "001.png")
    assert "chamfer_percent" not in figures
    assert not (tmp_path / "001.png").exists()


def test_dtu_is_measured_by_its_own_protocol(worker, scene, tmp_path):
    center = WORLD_FROM_SCENE[:3, 3]
    scan = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS * 1.02).apply_transform(WORLD_FROM_SCENE).vertices
    box = np.stack([center - 80 * RADIUS, center + 80 * RADIUS])
    write_reference(
        tmp_path, 24, DtuReference(scan, np.ones((170, 170, 170), dtype=bool), box, RADIUS, np.array([0, 0, 0, 1.0]))
    )
    judge = worker.Judge(job_of(worker, dtu=str(tmp_path)), replace(scene, ground_truth=None))
    figures = judge.geometry(judge.mesh(PaintedBall()))
    assert "chamfer_percent" not in figures
    assert figures["dtu_completeness_mm"] == pytest.approx(0.02 * 50 * RADIUS, abs=0.05)


def test_pictures_are_thinned_to_the_rays_allowed(worker, scene):
    plan = importlib.import_module("convergence_plan")
    cameras = scene.cameras[:2]  # of 80 x 60
    assert worker.stride_within(cameras, plan.Measuring(rays=9600, samples=1)) == 1
    assert worker.stride_within(cameras, plan.Measuring(rays=9599, samples=1)) == 2
    assert worker.stride_within(cameras, plan.Measuring(rays=9600, samples=2)) == 2
    assert worker.stride_within(cameras, plan.Measuring(rays=540, samples=1)) == 5  # 16 x 12 = 192 pixels of each
    whole, thinned = (render_view(PaintedBall(), scene.cameras, 1, stride=stride) for stride in (1, 7))
    assert torch.equal(thinned.rgb, whole.rgb[::7, ::7])
    assert torch.equal(thinned.coverage, whole.coverage[::7, ::7])


def test_views_are_split_as_the_data_set_says(worker, scene):
    assert worker.split(job_of(worker), scene) == ([0, 2, 3, 5], [1, 4], [1, 4])
    training, held, measured = worker.split(job_of(worker, views=(0, 3)), scene)
    assert (training, held) == ([0, 3], [])
    assert set(measured) <= {1, 2, 4, 5}
    assert len(measured) == 2
    with pytest.raises(worker.DataError, match="has 6 views; expected views"):
        worker.split(job_of(worker, views=(0, 7)), scene)
