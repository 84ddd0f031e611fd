"""Guards: bad steps are counted and given up on, lack of memory is recognised, signals become a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from nsr.training.guards import BadStepGuard, TerminationSignal, finite_or_raise, is_out_of_memory
from nsr.utils.errors import TrainingError
from nsr.utils.supervisor import SUPERVISOR

GOOD = {"loss": 1.0, "rgb": torch.tensor(0.5)}
BAD = {"loss": 1.0, "rgb": torch.tensor(float("nan"))}


def test_finite_or_raise_shows_every_loss():
    finite_or_raise(GOOD)
    with pytest.raises(TrainingError, match=r"loss = 1, rgb = nan"):
        finite_or_raise(BAD)
    with pytest.raises(TrainingError, match=r"rgb = -inf"):
        finite_or_raise({"rgb": float("-inf")})


def test_guard_gives_up_only_after_bad_steps_in_a_row():
    guard = BadStepGuard(patience=3)
    assert [guard.note(losses) for losses in (BAD, BAD, GOOD, BAD, BAD)] == [False, False, True, False, False]
    assert guard.total == 4
    with pytest.raises(TrainingError, match="3 bad steps in a row"):
        guard.note(BAD)


def test_guard_resumes_its_count():
    guard = BadStepGuard(patience=2)
    guard.note(BAD)
    resumed = BadStepGuard(patience=2)
    resumed.load_state_dict(guard.state_dict())
    with pytest.raises(TrainingError):
        resumed.note(BAD)


def test_guard_refuses_senseless_patience():
    with pytest.raises(ValueError, match="patience"):
        BadStepGuard(patience=0)


def test_lack_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float64)  # what torch's CPU allocator really says
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert is_out_of_memory(RuntimeError("can't start new thread"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_set_the_flag_and_handlers_are_restored(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with TerminationSignal() as termination:
        assert not termination.requested
        os.kill(os.getpid(), number)
        assert termination.requested
        assert termination.name == number.name
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.fixture
def python_handles_ctrl_c():
    """Python's own handler, as in a terminal: a shell's background jobs begin with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_a_second_ctrl_c_interrupts():
    with TerminationSignal() as termination:
        os.kill(os.getpid(), signal.SIGINT)
        assert termination.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_it_stays_silent():
    seen = []

    def work():
        with TerminationSignal() as termination:
            seen.append(termination.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.skipif(os.name == "nt", reason="there a launcher may stand between")
def test_the_end_of_a_supervisor_counts_as_a_signal(monkeypatch):
    monkeypatch.setenv(SUPERVISOR, str(os.getppid()))
    with TerminationSignal() as watched:
        assert not watched.requested
    monkeypatch.setenv(SUPERVISOR, str(os.getppid() + 1))
    with TerminationSignal() as watched:
        assert watched.requested
        assert watched.name == "the end of its supervisor"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up here")
def test_a_terminal_that_closes_ends_a_run_unless_under_nohup(monkeypatch):
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, heeded in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
            signal.signal(signal.SIGHUP, handler)
            with TerminationSignal() as watched:
                os.kill(os.getpid(), signal.SIGHUP)
                assert watched.requested == heeded
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)
