"""Recorded steps: that a replay is the step that would have been taken, whatever changes from one step to the next."""

import math

import pytest
import torch
from support.devices import need_device
from support.painted_ball import PaintedBall, photographs
from support.recorded_ops import RecordedOps, record_ops
from support.tiny_run import HEIGHT, VIEWS, WIDTH, tiny_config
from support.two_balls import cameras_around

from nsr.training.step_graph import Readback, StepGraph, StepNumbers
from nsr.training.step_times import PARTS, StepTimes
from nsr.training.trainer import TIMED_EVERY, Trainer

CPU = torch.device("cpu")
STEPS = 24
OPTIONS = {  # every schedule moves within STEPS
    "instant": (),
    "exposure": ("exposure.type=affine",),
    "coarse to fine, occlusion": ("photometric.levels=2", "photometric.occlusion=true", "photometric.level_steps=5"),
    "shaded anew": ("model.reevaluate=true",),
}


def make_trainer(*options):
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall())
    schedule = (f"train.nepoch={STEPS // VIEWS}", "train.budget=0", "train.warmup_steps=10", "train.color_from=0.7")
    trainer = Trainer(tiny_config(*schedule, *options), scene)
    trainer.start()
    trainer.padded = True
    return trainer


def state(trainer):
    tensors = {**trainer.model.state_dict(), **dict(trainer.exposure.named_parameters() if trainer.exposure else ())}
    for name, member in trainer.optimisers.members.items():
        for i, of_parameter in enumerate(member.state.values()):
            tensors |= {f"{name} {i} {key}": value for key, value in of_parameter.items()}
    return {name: value.detach().clone() for name, value in tensors.items()}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replays_are_the_steps_that_would_have_been_taken(options, monkeypatch):
    monkeypatch.setattr("nsr.ops.patch_ncc._check_tensors", lambda *_: None)
    found = []
    for recorded in (False, True):
        trainer = make_trainer(*options)
        monkeypatch.setattr(trainer.graph, "_record", record_ops)
        trainer.graph.enabled = recorded
        losses = [trainer.step() for _ in range(STEPS)]
        found.append((losses, state(trainer)))
        kinds = 3 + ("occlusion" in str(options))
        assert trainer.graph.recordings >= kinds if recorded else trainer.graph.recordings == 0
        assert trainer.graph.recordings < STEPS / 2  # most steps are replays
    (losses, as_they_are), (of_replays, replayed) = found
    assert of_replays == losses
    assert as_they_are.keys() == replayed.keys()
    for name, value in as_they_are.items():
        assert torch.equal(replayed[name], value), name
    assert losses[0]["mask"] != losses[1]["mask"]


def test_a_number_of_the_host_in_a_step_is_noticed(monkeypatch):
    """What the test above would show if a schedule were no tensor."""
    found = []
    for recorded in (False, True):
        trainer = make_trainer()
        trainer.padded = False  # numbers, and fixed shapes all the same
        for name in ("_color_losses", "_losses"):
            monkeypatch.setattr(trainer, name, as_padded(trainer, getattr(trainer, name)))
        monkeypatch.setattr(trainer.graph, "_record", record_ops)
        trainer.graph.enabled = recorded
        found.append([trainer.step()["loss"] for _ in range(8)])
    assert found[0][:2] == found[1][:2]
    assert found[0] != found[1]


def as_padded(trainer, losses):
    def padded(*arguments):
        trainer.padded = True
        try:
            return losses(*arguments)
        finally:
            trainer.padded = False

    return padded


def test_a_bad_step_in_a_replay_changes_nothing(monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer.graph, "_record", record_ops)
    trainer.graph.enabled = True
    for _ in range(3):
        trainer.step()
    assert trainer.graph.recordings == 1
    pixels = trainer.sampler._mask  # a step that compares with NaN: the recorded tensors are read anew
    before, trainer.scene.cameras.intrinsics[:] = trainer.scene.cameras.intrinsics.clone(), math.nan
    parameters = state(trainer)
    trainer.step()
    assert trainer.guard.total == 1
    assert all(torch.equal(value, parameters[name]) for name, value in state(trainer).items())
    trainer.scene.cameras.intrinsics[:] = before
    trainer.step()
    assert trainer.guard.total == 1
    assert not all(torch.equal(value, parameters[name]) for name, value in state(trainer).items())
    assert pixels is trainer.sampler._mask


def test_each_kind_of_work_is_recorded_when_it_comes_again(monkeypatch):
    graph, done = StepGraph(CPU, [], True), []
    monkeypatch.setattr(graph, "_record", record_ops)
    counter = torch.zeros(())

    def work(name):
        done.append(name)
        counter.add_(1.0)
        return counter * 2.0

    for i, key in enumerate("aaabbba"):
        assert graph.run(key, lambda key=key: work(key)).item() == 2.0 * (i + 1)
    assert done == ["a", "a", "b", "b", "a"]  # as it is, to be recorded; the third of a kind asks Python for nothing
    assert graph.recordings == 2


def test_a_recording_that_fails_is_told_once_and_training_goes_on():
    graph = StepGraph(CPU, [], True)

    def fail(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    graph._record = fail
    with pytest.warns(UserWarning, match="runs without, slower: operation not permitted") as told:
        assert [graph.run("a", lambda: 1) for _ in range(4)] == [1] * 4
    assert len(told) == 1
    assert graph.recordings == 0


def test_no_memory_to_record_with_is_for_the_trainer_to_handle():
    graph = StepGraph(CPU, [], True)

    def fail(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    graph._record = fail
    graph.run("a", lambda: 1)
    with pytest.raises(torch.OutOfMemoryError):
        graph.run("a", lambda: 1)
    assert graph.enabled
    assert graph.run("a", lambda: 2) == 2


def test_numbers_stay_where_they_are():
    numbers = StepNumbers(CPU)
    first = numbers.put([1.0, 2.0])
    assert numbers.put([3.0, 0.1]) is first
    assert first.tolist() == [3.0, 0.1]


def test_losses_of_the_cpu_come_at_once():
    readback = Readback()
    assert readback(("a", "b"), torch.tensor([1.0, 2.0])) == [{"a": 1.0, "b": 2.0}]
    assert readback.come() == []


def test_times_of_the_parts_are_those_of_the_step():
    trainer = make_trainer()
    for _ in range(3):
        trainer.step()
    times = trainer.times.take()
    assert tuple(times) == PARTS
    assert all(milliseconds > 0 for milliseconds in times.values())
    assert trainer.times.take() == {}
    times = StepTimes(CPU)
    times.begin()
    with pytest.raises(ValueError, match="losses ends; expected the end of draw"):
        times.end("losses")


def test_recording_changes_nothing_and_replays_draw_on():
    """Of the tests' own stand-in for a graph."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(3)
    with RecordedOps() as recording:
        drawn = torch.rand(3, generator=generator)
        total += drawn
    assert total.eq(0).all()
    again = torch.Generator().manual_seed(0)
    expected = [torch.rand(3, generator=again) for _ in range(2)]
    for i in range(2):
        recording.replay()
        assert torch.equal(drawn, expected[i])
    assert torch.equal(total, expected[0] + expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_gpu_replays_its_steps(options):
    """The same losses as without recording, up to the order of sums; and the graph is really used."""
    need_device("cuda")
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall()).to("cuda")
    schedule = (f"train.nepoch={STEPS // VIEWS}", "train.budget=0", "train.warmup_steps=10", "train.color_from=0.7")
    found = []
    for recorded in ("false", "true"):
        trainer = Trainer(tiny_config(*schedule, *options, f"train.cuda_graph={recorded}"), scene)
        trainer.start()
        for _ in range(STEPS):
            trainer.step()
        come = trainer.readback.come()
        found.append(come[-1] if come else trainer.losses)
        assert trainer.graph.enabled == (recorded == "true")
        assert (trainer.graph.recordings >= 3) == (recorded == "true")
        assert trainer.guard.total == 0
    assert found[1] == pytest.approx(found[0], rel=0.1, abs=1e-3)
    assert all(milliseconds > 0 for milliseconds in trainer.times.take().values())


@pytest.mark.gpu
def test_losses_of_a_gpu_come_one_step_late():
    need_device("cuda")
    readback, names = Readback(), ("a",)
    values = [torch.full((1,), float(i), device="cuda") for i in range(4)]
    assert readback(names, values[0]) == [{"a": 0.0}]
    assert readback(names, values[1]) == []
    assert readback(names, values[2]) == [{"a": 1.0}]
    assert readback(names, values[3], wait=True) == [{"a": 2.0}, {"a": 3.0}]
    assert TIMED_EVERY > 1
