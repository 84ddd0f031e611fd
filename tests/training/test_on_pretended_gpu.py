"""The commands with --device: everything is where it has to be, and nothing is left on the CPU."""

import pytest
import torch
from support.painted_ball import PaintedBall, photographs
from support.pretended_gpu import CROSSINGS, GPU, pretended_gpu
from support.tiny_run import HEIGHT, VIEWS, WIDTH, tiny_config, write_tiny_conf, write_tiny_scene
from support.two_balls import cameras_around

from nsr.apps.main import main
from nsr.training.trainer import Trainer


def test_what_is_pretended(monkeypatch):
    with pretended_gpu(monkeypatch):
        a, b = torch.zeros(3, device=GPU), torch.arange(3.0).to(GPU)
        assert (a + b).device == GPU
        assert (a + b).tolist() == [0, 1, 2]
        assert b.new_tensor([1.0]).device == GPU
        assert (b * 2.0).cpu().device.type == "cpu"
        leaf = torch.ones(3, device=GPU, requires_grad=True)
        (leaf * b).sum().backward()
        assert leaf.grad.device == GPU
        with pytest.raises(RuntimeError, match="same device"):
            a + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[b.long()]
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()


def test_steps(monkeypatch):
    """Losses as on the CPU: the same draws, since the generator is the CPU's."""
    scene, losses = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall()), []
    config = tiny_config("train.budget=0", "train.nepoch=2", "train.color_from=0.2")
    with pretended_gpu(monkeypatch):
        trainer = Trainer(config, scene.to(GPU))
        trainer.start()
        assert all(parameter.device == GPU for parameter in trainer.model.parameters())
        losses.append([trainer.step() for _ in range(5)])
    trainer = Trainer(config, scene)
    trainer.start()
    losses.append([trainer.step() for _ in range(5)])
    for on_gpu, on_cpu in zip(*losses, strict=True):
        assert on_gpu == pytest.approx(on_cpu, rel=0.02, abs=1e-5)


OPTIONS = [(), ("exposure.type=affine", "photometric.occlusion=true"), ("train.color_from=1e-6",), ("model.reevaluate=true",)]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_copies_nothing_between_the_devices(monkeypatch, options):
    """Where anything is copied, or a value looked at, a step cannot be recorded as a CUDA graph."""
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall())
    with pretended_gpu(monkeypatch):
        trainer = Trainer(tiny_config("train.budget=0", "train.nepoch=2", *options), scene.to(GPU))
        trainer.start()
        trainer.step()
        plan = trainer._plan()
        CROSSINGS.clear()
        result = trainer._work(plan)
        assert CROSSINGS == []
        for cross in (lambda: result.values.cpu(), lambda: result.values[0].item(), lambda: torch.ones(3).to(GPU)):
            cross()
        assert len(CROSSINGS) == 3


@pytest.mark.parametrize("options", [(), ("exposure.type=affine", "photometric.occlusion=true"), ("start.type=hull",)])
def test_commands(monkeypatch, tmp_path, options):
    scene = write_tiny_scene(tmp_path / "scene")
    conf = write_tiny_conf(tmp_path / "tiny.conf", "train.budget=0", "train.nepoch=3", "train.preview_steps=5")
    run = tmp_path / "run"
    commands = [
        ["reconstruct", scene, "--conf", conf, "--out", run, "--resolution", "32", "--holdout", "1", *options],
        ["render", run, "--views", "2"],
        ["mesh", run, "--resolution", "32"],
        ["eval", run],
    ]
    with pretended_gpu(monkeypatch):
        for command in commands:
            assert main([*map(str, command), "--device", str(GPU)]) == 0, command
    assert (run / "mesh.ply").is_file()
