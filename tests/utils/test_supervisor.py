"""Programs that are run again: which ends are final, how long it waits, when it gives up, what it passes on. Real processes."""

from __future__ import annotations

import csv
import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nsr.utils import supervisor as module
from nsr.utils.errors import RetriableError
from nsr.utils.supervisor import LOG_NAME, Supervisor, is_retriable, persistently

ROOT = Path(__file__).resolve().parents[2]
FINAL = (1, 2, 3, 4, 5, 6, 7, 70, 130)

# Ends as the first word of a file says, and takes the word away: 75@6 is exit code 75 at step 6, -9 is death by SIGKILL.
PROGRAM = """
import os, sys
from pathlib import Path
plan, step = map(Path, sys.argv[1:])
first, *rest = plan.read_text().split()
plan.write_text(" ".join(rest))
end, _, reached = first.partition("@")
if reached:
    step.write_text(reached)
print("step", step.name, file=sys.stderr, flush=True)
if end == "75":
    print("nsr: error: out of memory with 64 rays", file=sys.stderr, flush=True)
if end.startswith("-"):
    os.kill(os.getpid(), -int(end))
sys.exit(int(end))
"""


class Supervised:
    """What came of supervising PROGRAM through a plan; waits: as asked for, without waiting."""

    def __init__(self, folder: Path, plan: str, *, max_retries: int = 5, backoff: float = 1.0) -> None:
        (folder / "plan").write_text(plan)
        step = folder / "step"
        command = [sys.executable, "-S", "-c", PROGRAM, str(folder / "plan"), str(step)]
        self.waits: list[float] = []
        with Supervisor(folder, "run1", max_retries=max_retries, backoff=backoff, wait=self.waits.append) as supervisor:
            self.code = supervisor.run("train", lambda: command, lambda: int(step.read_text()) if step.exists() else None)
        self.left = (folder / "plan").read_text()
        self.rows = rows(folder)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / LOG_NAME, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_may_succeed_is_tried_until_it_does(tmp_path, capfd):
    done = Supervised(tmp_path, "75@3 -9@4 -15 0@8 1")
    assert (done.code, done.left) == (0, "1")
    assert done.waits == [1, 1, 2]  # the second got further than the first, the third no further than the second
    assert [row["exit_code"] for row in done.rows] == ["75", "137", "143", "0"]
    assert [row["step"] for row in done.rows] == ["3", "4", "4", "8"]
    assert [row["attempt"] for row in done.rows] == ["1", "2", "3", "4"]
    reasons = [row["reason"] for row in done.rows]
    assert reasons[0] == "out of memory with 64 rays"
    assert "killed by SIGKILL" in reasons[1]
    assert reasons[2:] == ["killed by SIGTERM", "done"]
    assert {(row["run"], row["program"]) for row in done.rows} == {("run1", "train")}
    stderr = capfd.readouterr().err.splitlines()
    assert stderr.count("step step") == 4  # the programs' own
    ours = [line for line in stderr if line.startswith("failsafe: ")]
    assert len(ours) == 4
    assert ours[0].startswith("failsafe: train, attempt 1: exit code 75 (out of memory with 64 rays) at step 3 after ")
    assert ours[0].endswith("; retry 1 of 5 in 1 s")
    assert ours[3].startswith("failsafe: train, attempt 4: done at step 8 after ")


@pytest.mark.parametrize("code", FINAL)
def test_other_ends_are_final(tmp_path, code):
    done = Supervised(tmp_path, f"{code} 0")
    assert (done.code, done.left, done.waits) == (code, "0", [])
    assert [row["exit_code"] for row in done.rows] == [str(code)]


def test_it_gives_up_where_retries_bring_no_progress_and_ends_like_the_last(tmp_path, capfd):
    done = Supervised(tmp_path, "75 75 75 -9 0", max_retries=3)
    assert (done.code, done.left, done.waits) == (137, "0", [1, 2, 4])
    assert "given up: no progress in 4 attempts" in capfd.readouterr().err


def test_without_retries_there_is_one_attempt(tmp_path):
    done = Supervised(tmp_path, "75@9 0", max_retries=0)
    assert (done.code, done.left, done.waits) == (75, "0", [])


def test_progress_begins_the_count_and_the_waits_anew(tmp_path):
    done = Supervised(tmp_path, "75@5 75 75 75@6 75 75 0@7", max_retries=3)
    assert (done.code, done.waits) == (0, [1, 2, 4, 1, 2, 4])


def test_what_was_reached_before_is_no_progress(tmp_path):
    done = Supervised(tmp_path, "75@5 75@3 75@4 75@5 0", max_retries=3)  # after falling back to an earlier checkpoint
    assert (done.code, done.left) == (75, "0")


def test_waits_are_bounded(tmp_path):
    done = Supervised(tmp_path, "75 " * 8 + "0", max_retries=9, backoff=2)
    assert done.waits == [2, 4, 8, 16, 32, 60, 60, 60]


# ---------------------------------------------------------------------------------------------- signals

POLITE = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    print("nsr: error: stopped by", signal.Signals(number).name, file=sys.stderr)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1]).touch()
time.sleep(60)
"""


def signal_when(happened, number: signal.Signals) -> None:
    """Send this process a signal as soon as something is true."""

    def work() -> None:
        deadline = time.monotonic() + 30
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=work, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_it(tmp_path, number):
    before = signal.getsignal(number)
    signal_when((tmp_path / "ready").exists, number)
    with Supervisor(tmp_path, "run", max_retries=5, backoff=1.0) as supervisor:
        code = supervisor.run("train", lambda: [sys.executable, "-S", "-c", POLITE, str(tmp_path / "ready")])
    assert code == 75
    assert supervisor.stopped_by == number.name
    assert [row["reason"] for row in rows(tmp_path)] == ["stopped by SIGTERM"]
    assert signal.getsignal(number) == before


def test_a_signal_ends_the_wait_too(tmp_path):
    began = time.monotonic()
    signal_when((tmp_path / LOG_NAME).exists, signal.SIGTERM)
    with Supervisor(tmp_path, "run", max_retries=5, backoff=50.0) as supervisor:
        code = supervisor.run("train", lambda: [sys.executable, "-S", "-c", "raise SystemExit(75)"])
    assert (code, len(rows(tmp_path))) == (75, 1)
    assert time.monotonic() - began < 40


def test_a_program_does_not_outlive_a_supervisor_that_fails(tmp_path, monkeypatch):
    class Gone(Exception):
        pass

    def fail(*_, **__):
        raise Gone

    monkeypatch.setattr(module, "say", fail)
    code = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); print(file=sys.stderr); time.sleep(60)"
    with Supervisor(tmp_path, "run", max_retries=0, backoff=1.0) as supervisor, pytest.raises(Gone):
        supervisor.run("train", lambda: [sys.executable, "-S", "-c", code, str(tmp_path / "pid")])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# ---------------------------------------------------------------------------------------------- the machine


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capfd):
    (tmp_path / "file").write_text("not a folder")
    with Supervisor(tmp_path / "file", "run", max_retries=0, backoff=1.0) as supervisor:
        assert supervisor.run("train", lambda: [sys.executable, "-S", "-c", ""]) == 0
    assert "not on record" in capfd.readouterr().err


def test_no_memory_for_a_process_is_worth_a_retry(tmp_path, monkeypatch):
    popen, failures = subprocess.Popen, [OSError(errno.ENOMEM, "Cannot allocate memory")]

    def start(*arguments, **options):
        if failures:
            raise failures.pop()
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    done = Supervised(tmp_path, "0")
    assert (done.code, [row["exit_code"] for row in done.rows]) == (0, ["75", "0"])
    assert done.rows[0]["reason"] == "not started: Cannot allocate memory"
    failures.append(FileNotFoundError(errno.ENOENT, "No such file"))
    with pytest.raises(FileNotFoundError):
        Supervised(tmp_path, "0")


def test_a_file_system_that_is_away_when_the_supervisor_looks_is_worth_a_retry(tmp_path):
    """It asks for the command and the step before and after each attempt."""
    away = OSError(errno.ESTALE, "Stale file handle")
    commands = [away, RetriableError("the checkpoint is gone"), [sys.executable, "-S", "-c", ""]]
    steps = iter([away, 3, away, 5])

    def told(value):
        if isinstance(value, Exception):
            raise value
        return value

    waits = []
    with Supervisor(tmp_path, "run", max_retries=2, backoff=1.0, wait=waits.append) as supervisor:
        assert supervisor.run("train", lambda: told(commands.pop(0)), lambda: told(next(steps))) == 0
    assert [(row["exit_code"], row["step"]) for row in rows(tmp_path)] == [("75", "3"), ("75", ""), ("0", "5")]
    assert [row["reason"] for row in rows(tmp_path)][:2] == [
        "not started: [Errno 116] Stale file handle",
        "not started: the checkpoint is gone",
    ]
    assert waits == [1, 2]
    with (
        Supervisor(tmp_path, "run", max_retries=2, backoff=1.0, wait=waits.append) as supervisor,
        pytest.raises(FileNotFoundError),
    ):
        supervisor.run("train", lambda: told(FileNotFoundError(errno.ENOENT, "No such file")))


def test_another_process_is_waited_for_at_the_cost_of_no_attempt(tmp_path, capfd):
    busy, step = [True, True, False], [sys.executable, "-S", "-c", ""]

    def command() -> list[str]:
        supervisor.wait_while(lambda: busy.pop(0), 30.0, "the run is written by pid 7")
        return step

    with Supervisor(tmp_path, "run", max_retries=0, backoff=1.0) as supervisor:
        supervisor._sleep = lambda seconds: None
        assert supervisor.run("train", command) == 0
    assert [row["exit_code"] for row in rows(tmp_path)] == ["0"]
    told = [line for line in capfd.readouterr().err.splitlines() if "pid 7" in line]
    assert told == ["failsafe: the run is written by pid 7; waiting for it, up to 30 s"]


def test_another_process_is_not_waited_for_for_ever(tmp_path, capfd):
    waits: list[float] = []
    with Supervisor(tmp_path, "run", max_retries=5, backoff=1.0, wait=waits.append) as supervisor:
        code = supervisor.run("train", lambda: supervisor.wait_while(lambda: True, 0.1, "the run is written by pid 7"))
    assert (code, waits) == (75, [])  # not five times as long as was said
    (row,) = rows(tmp_path)
    assert row["reason"].startswith("not started: the run is written by pid 7 after 0.1 s; end it")
    assert capfd.readouterr().err.rstrip().endswith("; given up")


def test_a_signal_ends_waiting_for_another_process(tmp_path, capfd):
    with Supervisor(tmp_path, "run", max_retries=5, backoff=1.0) as supervisor:
        signal_when(lambda: True, signal.SIGTERM)
        code = supervisor.run("train", lambda: supervisor.wait_while(lambda: True, 60.0, "the run is written by pid 7"))
    assert code == 75
    assert capfd.readouterr().err.rstrip().endswith("; stopped by SIGTERM")


def test_what_is_looked_up_before_is_persistent_too(capfd):
    def look():
        if failures:
            raise failures.pop()
        return "there"

    waits: list[float] = []
    patience = {"max_retries": 2, "backoff": 1.0, "wait": waits.append}
    failures = [OSError(errno.EIO, "Input/output error")] * 2
    assert persistently(look, **patience) == "there"
    assert waits == [1, 2]
    assert "retry 2 of 2 in 2 s" in capfd.readouterr().err
    failures = [OSError(errno.EIO, "Input/output error")] * 3
    with pytest.raises(RetriableError, match="given up after 3 attempts"):
        persistently(look, **patience)
    failures = [PermissionError(errno.EACCES, "Permission denied")]
    with pytest.raises(PermissionError):
        persistently(look, **patience)


def test_deaths_on_windows_are_told_apart():
    access_violation, ctrl_c = 0xC0000005, 0xC000013A
    assert [is_retriable(code) for code in (75, -9, -6, access_violation)] == [True] * 4
    assert not any(is_retriable(code) for code in (0, ctrl_c, *FINAL))


def test_nothing_here_needs_modules_that_windows_lacks(monkeypatch):
    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)  # which makes `import name` fail
    with pytest.raises(ImportError):
        import fcntl  # noqa: F401
    for name in ("utils/supervisor", "utils/files", "training/folders", "training/log", "apps/failsafe", "apps/train"):
        spec = importlib.util.spec_from_file_location("loaded_anew", ROOT / "nsr" / f"{name}.py")
        fresh = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "loaded_anew", fresh)
        spec.loader.exec_module(fresh)
