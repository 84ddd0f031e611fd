"""Recorded steps: that a replay is the step that would have been taken, whatever changes from one step to the next."""

import math
from typing import ClassVar

import pytest
import torch
from support.devices import need_device
from support.painted_ball import PaintedBall, photographs
from support.recorded_ops import RecordedOps, record_ops
from support.tiny_run import HEIGHT, VIEWS, WIDTH, tiny_config
from support.two_balls import cameras_around

from nsr.training.guards import HalfStep
from nsr.training.step_graph import Readback, StepGraph, StepNumbers
from nsr.training.step_times import PARTS, StepTimes
from nsr.training.trainer import TIMED_EVERY, Trainer
from nsr.utils.errors import RetriableError

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
    matrices = trainer.ray_matrices  # what is recorded reads them anew
    before = matrices.clone()
    matrices[:] = math.nan
    parameters = state(trainer)
    trainer.step()
    assert trainer.guard.total == 1
    assert all(torch.equal(value, parameters[name]) for name, value in state(trainer).items())
    matrices[:] = before
    trainer.step()
    assert trainer.guard.total == 1
    assert not all(torch.equal(value, parameters[name]) for name, value in state(trainer).items())


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
    assert graph.failure == "operation not permitted when stream is capturing"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), HalfStep()])
def test_work_that_there_is_no_memory_to_record_runs_as_it_is(error, recwarn):
    """Also where memory ran out in the optimisers: recording has changed nothing."""
    graph, tried = StepGraph(CPU, [], True), []

    def fail(work):
        tried.append(None)
        raise error

    graph._record = fail
    assert [graph.run("a", lambda: 1) for _ in range(4)] == [1] * 4
    assert len(tried) == 1
    graph._record = record_ops
    for _ in range(3):
        assert graph.run("b", lambda: torch.ones(()) + 1.0) == 2.0
    assert graph.recordings == 1
    assert graph.enabled
    assert not recwarn.list


def test_before_rays_are_given_up_the_graph_is(monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer.graph, "_record", record_ops)
    trainer.graph.enabled = True
    for _ in range(3):
        trainer.step()
    rays, failures = trainer.rays, [MemoryError(), MemoryError()]
    run = trainer.graph.run

    def run_within(key, work):
        if failures:
            raise failures.pop()
        return run(key, work)

    monkeypatch.setattr(trainer.graph, "run", run_within)
    failures.pop()
    trainer.step()
    assert trainer.rays == rays  # without the graph there was memory enough
    failures.append(MemoryError())
    trainer.graph.release()
    with pytest.raises(RetriableError, match=f"out of memory with {rays} rays"):  # as few as there may be
        trainer.step()


class FakeGraph:
    """What is called of a CUDA graph, in order."""

    calls: ClassVar[list] = []

    def __getattr__(self, name):
        return lambda *arguments, **options: self.calls.append((name, *arguments, *options.values()))

    def pool(self):
        return f"pool of {id(self)}"


def test_how_a_graph_is_recorded(monkeypatch):
    """The generators are registered before, the memory of the graph before is taken over, and every beginning has its end."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    calls = FakeGraph.calls
    calls.clear()

    class Generator(torch.Generator):
        def graphsafe_set_state(self, _):
            calls.append("freed")

    generator = Generator()
    graph = StepGraph(CPU, [generator], True)
    for _ in range(3):
        graph.run("a", lambda: calls.append("work") or 1)
    begin = ("capture_begin", None, "thread_local")
    recorded = [("register_generator_state", generator), begin, "work", ("capture_end",)]
    assert calls == ["work", *recorded, ("replay",), ("replay",)]
    before = graph._graph
    calls.clear()
    for _ in range(2):
        graph.run("b", lambda: calls.append("work") or 1)
    assert calls[2] == ("capture_begin", before.pool(), "thread_local")
    calls.clear()

    def work(fails):
        calls.append("work")
        if fails:
            raise RuntimeError("not permitted")

    graph.run("c", lambda: work(False))
    with pytest.warns(UserWarning, match="not permitted"), pytest.raises(RuntimeError):
        graph.run("c", lambda: work(True))  # which fails again as it is
    assert calls[-4:] == ["work", ("capture_end",), "freed", "work"]
    assert not graph.enabled


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
        torch.cuda.synchronize()
        trainer.times.read()
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


@pytest.mark.gpu
def test_a_refused_recording_does_not_end_training_on_a_gpu():
    need_device("cuda")
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    graph, drawn = StepGraph(device, [generator], True), []

    def work():
        value = torch.rand(3, generator=generator, device=device)
        drawn.append(value.sum().item())  # nobody may wait while a graph is recorded
        return value

    with graph.stream():
        graph.run("a", work)
        with pytest.warns(UserWarning, match="runs without"):
            graph.run("a", work)
        graph.run("a", work)
    again = torch.Generator(device).manual_seed(0)
    assert drawn == [torch.rand(3, generator=again, device=device).sum().item() for _ in range(3)]
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_draws_of_a_gpu_go_on_where_a_checkpoint_was_taken_between_replays():
    need_device("cuda")
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    graph = StepGraph(device, [generator], True)

    def draw():
        with graph.stream():
            return graph.run("a", lambda: torch.rand(3, generator=generator, device=device)).tolist()

    drawn = [draw() for _ in range(5)]
    again = torch.Generator(device)
    again.set_state(generator.get_state().cpu())
    assert torch.rand(3, generator=again, device=device).tolist() == draw()
    again.manual_seed(0)
    assert drawn == [torch.rand(3, generator=again, device=device).tolist() for _ in range(5)]


@pytest.mark.gpu
def test_a_bad_step_and_a_picture_between_replays_on_a_gpu():
    need_device("cuda")
    scene = photographs(cameras_around(VIEWS, WIDTH, HEIGHT), PaintedBall()).to("cuda")
    trainer = Trainer(tiny_config("train.nepoch=10", "train.budget=0"), scene)
    trainer.start()
    for _ in range(4):
        trainer.step()
    assert trainer.graph.recordings == 1
    before = trainer.ray_matrices.clone()
    trainer.ray_matrices[:] = math.nan
    trainer._take_note(trainer.readback.come())
    parameters = state(trainer)
    trainer.step()
    trainer._take_note(trainer.readback.come())
    assert trainer.guard.total == 1
    assert all(torch.equal(value, parameters[name]) for name, value in state(trainer).items())
    trainer.ray_matrices[:] = before
    with trainer.untimed():
        trainer.model.render(trainer._rays(torch.zeros(50, dtype=torch.long, device="cuda"), torch.rand(50, 2, device="cuda")))
    trainer.step()
    trainer._take_note(trainer.readback.come())
    assert trainer.guard.total == 1
    assert math.isfinite(trainer.losses["loss"])
