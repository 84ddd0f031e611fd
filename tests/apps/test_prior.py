"""`nsr prior` and --prior: each kind is made, begins a run, holds it, and is refused where it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from support.painted_ball import RADIUS, WORLD_FROM_SCENE
from support.refusals import CHECKPOINT, DATA, USAGE
from support.run_folders import checkpoint
from support.tiny_run import nsr_command, write_tiny_conf, write_tiny_scene

from nsr.apps.main import main
from nsr.training.checkpoint import load_checkpoint
from nsr.training.prior_files import open_prior
from nsr.training.run import load_run

WORLD_RADIUS, WORLD_CENTRE = 50 * RADIUS, WORLD_FROM_SCENE[:3, 3]
START = ["start.resolution=32", "start.steps=300", "start.points=1024", "train.budget=0", "train.nepoch=1"]
DECODER = ["code_size=2", "dims=[32,32,32]", "skip_in=[2]", "shapes=6", "points=256", "learning_rate=5e-3", "clamp=0.3"]


def nsr(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A scene, a configuration, and a prior of each kind."""
    folder = tmp_path_factory.mktemp("priors")
    write_tiny_scene(folder / "ball")
    write_tiny_conf(folder / "tiny.conf", *START)
    # Balls of other sizes, somewhere else: which of them it is and where it stands is for the fit to find.
    (folder / "meshes").mkdir()
    for number, radius in enumerate([22.0, 26.0, 30.0, 34.0, 38.0, 42.0]):
        ball = trimesh.creation.icosphere(subdivisions=3, radius=radius).apply_translation((3.0, 2.0, 95.0))
        ball.export(folder / "meshes" / f"{number}.ply")
    nsr("prior", "deepsdf", folder / "meshes", "--out", folder / "family.safetensors", "--steps", 300, "--samples", 3000,
        "--align", "none", *DECODER)  # fmt: skip
    for seed in (0, 1):
        nsr("prior", "pretrain", folder / "ball", "--views", 5, "--conf", folder / "tiny.conf", "-o", folder / f"run{seed}",
            "--seed", seed)  # fmt: skip
    nsr("prior", "average", folder / "run0", folder / "run1", "-o", folder / "mean.safetensors")
    return folder


def reconstructed(made: Path, out: Path, prior: str, *more: object) -> dict:
    options = ["--conf", made / "tiny.conf", "--out", out, "--resolution", 32, "--mesh-only", "--views", 3]
    nsr("reconstruct", made / "ball", *options, "--prior", made / prior, *more)
    return json.loads((out / "metrics.json").read_text())


def error_of(out: Path) -> float:
    """Mean distance of a result's vertices from the true ball, of its radius."""
    vertices = trimesh.load(out / "mesh.ply").vertices
    return float(np.abs(np.linalg.norm(vertices - WORLD_CENTRE, axis=-1) - WORLD_RADIUS).mean()) / WORLD_RADIUS


@pytest.mark.parametrize("prior", ["family.safetensors", "run0", "mean.safetensors"])
def test_each_prior_begins_a_reconstruction_at_its_surface(made, tmp_path, prior):
    metrics = reconstructed(made, tmp_path / "out", prior)  # hardly more than its start
    assert metrics["prior"] == str(made / prior)
    assert metrics["prior_agreement"] > 0.93
    assert metrics["prior_placed_by"] in ("world", "centre", "sphere")
    assert error_of(tmp_path / "out") < 0.06
    state = checkpoint(tmp_path / "out")
    assert {f"run.anchor.{name}" for name in ("points", "sdf", "weight")} <= state.tensors.keys()
    assert state.meta["prior"]["checksum"] == open_prior(made / prior).checksum


def test_the_anchor_holds_what_no_photograph_sees(made, tmp_path):
    """Photographs of one side only. The surface is not taught where it is seen from nowhere; the prior keeps it."""
    one_view = ["--views", "0,", "train.nepoch=40", "train.budget=0", "photometric.rays=16"]
    errors = {}
    for weight in (0, 100):
        out = tmp_path / str(weight)
        reconstructed(made, out, "run0", *one_view, f"prior.anchor_weight={weight}", "loss.eikonal_weight=0",
                      "loss.smoothness_weight=0", "prior.fit.scale_spread=0")  # fmt: skip
        errors[weight] = error_of(out)
    assert errors[100] < 0.08
    assert errors[100] < errors[0]


def test_a_prior_is_in_the_losses_and_the_run_continues_with_it(made, tmp_path):
    def rows(run: Path) -> list[str]:
        return (run / "metrics.csv").read_text().splitlines()

    options = ["--conf", made / "tiny.conf", "--data_dir", made / "ball", "--views", 3]
    whole, first = tmp_path / "whole", tmp_path / "first"
    for folder, epochs in ((whole, 4), (first, 2)):
        nsr("train", *options, "--prior", made / "family.safetensors", "--exps_folder", folder, "--nepoch", epochs,
            "--timestamp", "run")  # fmt: skip
    assert "prior" in rows(whole / "tiny_ball" / "run")[0].split(",")
    continued = ["--is_continue", "--expname", "tiny_ball", "--exps_folder", first, "--timestamp", "run", "--nepoch", 4]
    nsr("train", *continued)
    # The schedule knew of another end, so only what does not follow it is the same: the anchor.
    ours, theirs = (checkpoint(folder / "tiny_ball" / "run") for folder in (whole, first))
    assert theirs.meta["step"] == ours.meta["step"] == 12
    for name in ("points", "sdf", "weight"):
        assert torch.equal(ours.tensors[f"run.anchor.{name}"], theirs.tensors[f"run.anchor.{name}"])
    assert theirs.meta["prior"] == ours.meta["prior"]


def test_a_start_from_weights_keeps_or_resets_what_is_asked_for(made, tmp_path):
    before = checkpoint(made / "run0").tensors
    for rendering in ("keep", "reset"):
        for optimiser in ("keep", "reset"):
            out = tmp_path / f"{rendering}_{optimiser}"
            options = ["--conf", made / "tiny.conf", "--data_dir", made / "ball", "--views", 3, "--budget", 1e-6]
            nsr("train", *options, "--exps_folder", out, "--timestamp", "run", "--prior", made / "run0", "prior.start=weights",
                f"prior.rendering={rendering}", f"prior.optimiser={optimiser}", "--seed", 7)  # fmt: skip
            after = checkpoint(out / "tiny_ball" / "run").tensors

            def same(part: str, after=after) -> bool:
                names = [name for name in before if name.startswith(f"run.model.{part}.")]
                assert names
                return all(torch.equal(before[name], after[name]) for name in names)

            assert same("implicit_network")
            assert same("rendering_network") == (rendering == "keep")
            moments = [name for name in before if name.startswith("run.optimisers.") and name.endswith("exp_avg")]
            kept = all(name in after and torch.equal(before[name], after[name]) for name in moments)
            assert kept == (optimiser == "keep")
            assert not any(name.startswith("run.anchor") for name in after)


def test_networks_go_on_from_weights_and_grids_from_surfaces_unless_told(made, tmp_path, refused):
    start = ["--data_dir", made / "ball", "--views", 3, "--budget", 1e-6, "--exps_folder", tmp_path]
    nsr("train", "--conf", made / "tiny.conf", *start, "--timestamp", "grid", "--prior", made / "run0")
    assert any(name.startswith("run.anchor") for name in checkpoint(tmp_path / "tiny_ball" / "grid").tensors)

    vanilla = ["model.implicit_network.encoder.type=vanilla", "model.rendering_network.point_encoder.type=vanilla"]
    conf = write_tiny_conf(tmp_path / "network.conf", *START, *vanilla)
    nsr("prior", "pretrain", made / "ball", "--views", 4, "--conf", conf, "-o", tmp_path / "network")
    nsr("train", "--conf", conf, *start, "--timestamp", "run", "--prior", tmp_path / "network")
    after = checkpoint(tmp_path / "network_ball" / "run").tensors
    assert not any(name.startswith("run.anchor") for name in after)
    before = checkpoint(tmp_path / "network").tensors
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("run.model."))

    # A network's surface can begin a grid, and its weights cannot.
    nsr("train", "--conf", made / "tiny.conf", *start, "--timestamp", "taught", "--prior", tmp_path / "network")
    asked = ["train", "--conf", made / "tiny.conf", *start, "--timestamp", "no", "prior.start=weights", "--prior"]
    refused([*asked, tmp_path / "network"], USAGE, "built otherwise", "prior.start=surface")
    refused([*asked, made / "family.safetensors"], USAGE, "family of surfaces")


def test_weights_are_averaged_where_they_are_networks(made, tmp_path, refused):
    vanilla = ["model.implicit_network.encoder.type=vanilla", "model.rendering_network.point_encoder.type=vanilla"]
    conf = write_tiny_conf(tmp_path / "network.conf", *START, *vanilla, "model.implicit_network.weight_norm=true")
    for seed in (0, 1):
        nsr("prior", "pretrain", made / "ball", "--views", 4, "--conf", conf, "-o", tmp_path / f"{seed}", "--seed", seed)
    mean = tmp_path / "mean.safetensors"
    nsr("prior", "average", tmp_path / "0", tmp_path / "1", "-o", mean, "--space", "weights")
    models = [load_run(tmp_path / f"{seed}").model for seed in (0, 1)]
    averaged = open_prior(mean).trained.model
    for i in range(averaged.implicit_network.depth):
        weights = [model.implicit_network.layer(i).weight for model in models]
        torch.testing.assert_close(averaged.implicit_network.layer(i).weight, (weights[0] + weights[1]) / 2)
    nsr("train", "--conf", conf, "--data_dir", made / "ball", "--views", 3, "--exps_folder", tmp_path, "--prior", mean)
    refused(
        ["prior", "average", made / "run0", made / "run1", "-o", tmp_path / "no.safetensors", "--space", "weights"],
        USAGE, "table", "--space function",
    )  # fmt: skip
    refused(
        ["prior", "average", made / "run0", tmp_path / "0", "-o", tmp_path / "no.safetensors", "--space", "weights"],
        USAGE, "different models",
    )  # fmt: skip
    assert not (tmp_path / "no.safetensors").exists()


def test_the_mean_of_two_surfaces_lies_between_them(made, tmp_path):
    """Of balls of 30 and 42 mm: a ball of 36. Its model is the grid's."""
    sizes = []
    for number, scale in enumerate((1.0, 1.4)):
        scene = write_tiny_scene(tmp_path / f"ball{number}")
        if scale != 1.0:  # the same photographs, and a larger world
            cameras = dict(np.load(scene / "cameras.npz"))
            larger = np.diag([scale, scale, scale, 1.0])
            centre = np.eye(4)
            centre[:3, 3] = WORLD_CENTRE
            larger = centre @ larger @ np.linalg.inv(centre)
            for name in cameras:
                moved = cameras[name] @ np.linalg.inv(larger) if name.startswith("world") else larger @ cameras[name]
                cameras[name] = moved
            np.savez(scene / "cameras.npz", **cameras)
        nsr("prior", "pretrain", scene, "--views", 5, "--conf", made / "tiny.conf", "-o", tmp_path / f"{number}")
        sizes.append(50 * scale * RADIUS)
    nsr("prior", "average", tmp_path / "0", tmp_path / "1", "-o", tmp_path / "mean.safetensors")
    shape = open_prior(tmp_path / "mean.safetensors").shape
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    x = directions * (sum(sizes) / 2 / 50)  # in the first one's scene frame
    assert shape.sdf(x, shape.no_code()).abs().mean() < 0.05


def test_an_interrupted_training_of_a_family_goes_on(made, tmp_path):
    arguments = ["prior", "deepsdf", made / "meshes", "--samples", 2000, *DECODER, "--align", "none", "--seed", 3]
    out, whole = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    command, environment = nsr_command(*arguments, "--steps", 400, "--out", out)
    # Saved every moment here, so that there is something to go on from.
    script = "import nsr.training.prior_making as m, sys; m.SAVED_EVERY = 0.0; from nsr.apps.main import main; sys.exit(main())"
    process = subprocess.Popen([command[0], "-c", script, *command[3:]], env=environment, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not out.is_file() or load_checkpoint(out).meta["prior"]["steps"] < 20:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    steps = load_checkpoint(out).meta["prior"]["steps"]
    assert 20 <= steps < 400
    nsr(*arguments, "--steps", 400, "--out", out)
    nsr(*arguments, "--steps", 400, "--out", whole)
    ours, theirs = load_checkpoint(out).tensors, load_checkpoint(whole).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_unfinished_and_foreign_priors_are_refused(made, tmp_path, refused):
    start = ["train", "--conf", made / "tiny.conf", "--data_dir", made / "ball", "--exps_folder", tmp_path, "--prior"]
    refused([*start, tmp_path / "nothing.safetensors"], CHECKPOINT, "nothing.safetensors", "does not exist")
    (tmp_path / "garbage.safetensors").write_bytes(os.urandom(300))
    refused([*start, tmp_path / "garbage.safetensors"], CHECKPOINT, "garbage.safetensors")
    refused([*start, made / "run0", "--init_weights", made / "run0"], USAGE, "exclude each other")
    again = ["prior", "deepsdf", made / "meshes", "--steps", 300, "--samples", 3000, "--align", "none", *DECODER]
    refused([*again, "--seed", 9, "--out", made / "family.safetensors"], CHECKPOINT, "another prior")
    assert not any((tmp_path / "tiny_ball").glob("*")) if (tmp_path / "tiny_ball").exists() else True


def test_bad_meshes_and_names_are_refused(made, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    out = ["--out", tmp_path / "p.safetensors"]
    refused(["prior", "deepsdf", tmp_path / "empty", *out], DATA, "no meshes")
    refused(["prior", "deepsdf", tmp_path / "nowhere", *out], DATA, "no such file")
    inside_out = trimesh.creation.icosphere(radius=3.0)
    inside_out.invert()
    inside_out.export(tmp_path / "empty" / "inverted.ply")
    refused(["prior", "deepsdf", tmp_path / "empty", *out, "--steps", 1], DATA, "inverted.ply", "inwards")
    refused(["prior", "deepsdf", made / "meshes", "--out", tmp_path / "p.txt"], USAGE, ".safetensors")
    refused(["prior", "deepsdf", made / "meshes", *out, "code_sice=3"], 4, "code_sice", "code_size")
    refused(["prior", "average", made / "run0", *out], USAGE, "two models")
    refused(["prior", "average", made / "run0", made / "family.safetensors", *out], USAGE, "family of surfaces")
    assert not (tmp_path / "p.safetensors").exists()
