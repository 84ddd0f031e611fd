"""Programs that run as processes of their own, and again where a later try may succeed: see Supervisor."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, TypeVar

from nsr.utils.errors import RetriableError, is_transient

T = TypeVar("T")

LOG_NAME = "failsafe.csv"
SUPERVISOR = "NSR_SUPERVISOR"  # variable of the environment in which a program finds the process that supervises it
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
LONGEST_WAIT = 60.0  # seconds between two attempts
_ERROR = "nsr: error: "  # how the line begins in which a program of ours says why it failed
# Windows has no death by signal: a process that crashed or was ended by the system has one of its status codes.
_WINDOWS_DEATHS, _WINDOWS_CTRL_C = 0xC0000000, 0xC000013A


class Exhausted(RetriableError):
    """What was waited for has not come, long enough for another try not to be worth it now."""


class Attempt(NamedTuple):
    """One run of a program: a line of the log. exit_code: 128 + n where signal n killed it; step: reached by then."""

    run: str
    program: str
    attempt: int
    began: str
    seconds: str
    exit_code: int
    reason: str
    step: int | None


class Supervisor:
    """Runs a program until it ends for good: with success, with an error that would come again, or when asked to stop.

    Tried again are exit code 75 (what nsr ends with when running again may succeed) and death by a signal. The wait before is
    `backoff` seconds, doubled by each further failure up to LONGEST_WAIT. After max_retries tries in a row that got no further
    than any before, it gives up; a try that did get further begins the count and the waits anew. Every attempt is a row of
    folder/failsafe.csv and a line on stderr.

    It is a context manager: within, SIGTERM, Ctrl-C and SIGHUP (its terminal has closed) are passed on to the program as
    SIGTERM, upon which nsr saves and ends, and nothing is started after them. On Windows the console itself tells both of
    Ctrl-C.

    run: what is being worked on, for the log; wait: sleeps for so many seconds.
    """

    def __init__(
        self, folder: Path, run: str, *, max_retries: int, backoff: float, wait: Callable[[float], None] | None = None
    ) -> None:
        self.log, self.run_name = folder / LOG_NAME, run
        self.max_retries, self.backoff = max_retries, backoff
        self.stopped_by: str | None = None
        self._wait = wait or self._sleep
        self._process: subprocess.Popen | None = None
        self._previous: dict[int, object] = {}

    def run(self, program: str, command: Callable[[], Sequence[str]], step: Callable[[], int | None] = lambda: None) -> int:
        """Run a program to its end; its last exit code, 128 + n where signal n killed it, as shells have it.

        program: its name, for the log; command: the command line of the next attempt; step: how far the work has come by now.
        Both look at files: a transient error of theirs, or a RetriableError, is an attempt that failed; Exhausted is the last.
        """
        number, failures, farthest = 0, 0, _unless_transient(step)
        while True:
            number += 1
            began, since, exhausted = datetime.now(), time.monotonic(), False
            try:
                line = command()
            except (OSError, RetriableError) as error:
                if not isinstance(error, RetriableError) and not is_transient(error):
                    raise
                code, reason, exhausted = RetriableError.exit_code, f"not started: {error}", isinstance(error, Exhausted)
            else:
                began, since = datetime.now(), time.monotonic()  # the command may have been waited for
                code, reason = self._attempt(line)
            now, seconds = _unless_transient(step), time.monotonic() - since
            if now is not None and (farthest is None or now > farthest):
                failures, farthest = 0, now
            failures += 1
            wait = _pause(self.backoff, failures)
            again, what_next = self._decide(code, failures, wait, exhausted)
            shown = 128 - code if code < 0 else code
            stamp = began.isoformat(sep=" ", timespec="seconds")
            self._record(Attempt(self.run_name, program, number, stamp, f"{seconds:.1f}", shown, reason, now))
            ended = f"exit code {shown} ({reason})" if code else "done"
            at = f" at step {now}" if now is not None else ""
            say(f"failsafe: {program}, attempt {number}: {ended}{at} after {seconds:.0f} s{what_next}")
            if again:
                self._wait(wait)
            if not again or self.stopped_by is not None:
                return shown

    def wait_while(self, busy: Callable[[], bool], most: float, why: str) -> None:
        """Wait for another process, which the user is told: no attempt of ours, so none that failed. Within `command`.

        why: what it is busy with. Raises Exhausted where it still is after `most` seconds, RetriableError when asked to stop.
        """
        end, told = time.monotonic() + most, False
        while busy():
            if self.stopped_by is not None:
                raise RetriableError(why)
            if time.monotonic() >= end:
                raise Exhausted(f"{why} after {most:g} s; end it, or run the same command again later")
            if not told:
                say(f"failsafe: {why}; waiting for it, up to {most:g} s")
                told = True
            self._sleep(min(1.0, most))

    def _decide(self, code: int, failures: int, wait: float, exhausted: bool) -> tuple[bool, str]:
        """Whether to try again after an attempt, and what to say about it. failures: in a row without progress."""
        if code == 0:
            return False, ""
        if self.stopped_by is not None:
            return False, f"; stopped by {self.stopped_by}"
        if not is_retriable(code):
            return False, "; not tried again: it would end the same way"
        if exhausted:
            return False, "; given up"
        if failures > self.max_retries:
            return False, f"; given up: no progress in {failures} attempts"
        return True, f"; retry {failures} of {self.max_retries} in {wait:g} s"

    def _attempt(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command line once: its exit code as subprocess has it (-n: killed by signal n), and why it ended.

        Its stderr is passed on line by line; its last error line is the reason.
        """
        reason = ""
        # Python's own choice for a pipe on Windows is not UTF-8.
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", SUPERVISOR: str(os.getpid())}
        options = {"env": environment, "stderr": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
        try:
            process = subprocess.Popen(command, **options)
        except OSError as error:  # no memory for another process, say
            if not is_transient(error):
                raise
            return RetriableError.exit_code, f"not started: {error.strerror}"
        with process:
            try:
                self._process = process
                if self.stopped_by is not None:  # between the last look and the start
                    process.terminate()
                for line in process.stderr:
                    say(line, end="")
                    if line.startswith(_ERROR):
                        reason = line.removeprefix(_ERROR).strip()
                code = process.wait()
            except BaseException:
                process.terminate()
                raise
            finally:
                self._process = None
        return code, reason or _meaning(code)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.stopped_by is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))  # one long sleep would go on after a signal

    def _record(self, attempt: Attempt) -> None:
        """Add a row to the log. A disk that is full must not end what is there to survive one."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            new = not self.log.is_file() or self.log.stat().st_size == 0
            with open(self.log, "a", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                if new:
                    rows.writerow(Attempt._fields)
                rows.writerow(attempt)
        except OSError as error:
            say(f"failsafe: {self.log}: {error.strerror}; this attempt is not on record")

    # ------------------------------------------------------------------------------------------------ signals

    def __enter__(self) -> Supervisor:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._handle) for number in heeded()}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number).name
        # To terminate a process on Windows is to kill it, without a chance to save.
        if self._process is not None and os.name != "nt":
            self._process.terminate()


def persistently(look: Callable[[], T], *, max_retries: int, backoff: float, wait: Callable[[float], None] = time.sleep) -> T:
    """What `look` returns, tried again after transient errors of the file system, with a Supervisor's waits.

    Raises RetriableError after max_retries of them.
    """
    failures = 0
    while True:
        try:
            return look()
        except OSError as error:
            if not is_transient(error):
                raise
            failures += 1
            if failures > max_retries:
                raise RetriableError(
                    f"{error}; given up after {failures} attempts: run the same command again later"
                ) from error
            seconds = _pause(backoff, failures)
            say(f"failsafe: {error}; retry {failures} of {max_retries} in {seconds:g} s")
            wait(seconds)


def _pause(backoff: float, failures: int) -> float:
    """Seconds before the next attempt after so many failures in a row."""
    return min(backoff * 2.0 ** min(failures - 1, 20), LONGEST_WAIT)


def _unless_transient(step: Callable[[], int | None]) -> int | None:
    """A step, None where it cannot be read for a while."""
    try:
        return step()
    except OSError as error:
        if not is_transient(error):
            raise
        return None


def heeded() -> list[int]:
    """Those of SIGNALS that a process is to end by: not SIGHUP under nohup."""
    return [
        number for number in SIGNALS if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN
    ]


def is_retriable(code: int) -> bool:
    """Whether a program that ended with this code, -n for signal n, may be run again."""
    return code == RetriableError.exit_code or code < 0 or (code >= _WINDOWS_DEATHS and code != _WINDOWS_CTRL_C)


def _meaning(code: int) -> str:
    """Of a program that ended without an error line."""
    if code == 0:
        return "done"
    if code >= _WINDOWS_DEATHS:
        return f"ended by the system with status {code:#x}"
    if code > 0:
        return "without a word"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


def say(text: str, end: str = "\n") -> None:
    """A line on stderr; not a reason to stop where stderr is a file on a full disk, or a reader that has left."""
    with suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)
