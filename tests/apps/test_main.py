"""The command line: one clear line and a typed exit code for everything that goes wrong."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from nsr.apps.main import COMMANDS, Terminated, main
from nsr.utils import errors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch):
    """Installs a sub-command `probe` that does what it is told; returns a function that runs it."""

    def install(action):
        def build_parser(prog: str) -> argparse.ArgumentParser:
            parser = argparse.ArgumentParser(prog=prog)
            parser.add_argument("--number", type=int)
            parser.add_argument("overrides", nargs="*")
            parser.set_defaults(run=action)
            return parser

        module = types.ModuleType("nsr_probe")
        module.build_parser = build_parser
        monkeypatch.setitem(sys.modules, "nsr_probe", module)
        monkeypatch.setitem(COMMANDS, "probe", ("nsr_probe", "for the tests"))
        return lambda *arguments: main(["probe", *arguments])

    return install


def fail_with(error: BaseException):
    def action(args):
        raise error

    return action


def test_success_and_the_codes_that_programs_return(command):
    assert command(lambda args: None)() == 0
    assert command(lambda args: 6)() == 6


def test_options_and_overrides_may_be_mixed(command):
    seen = []
    run = command(lambda args: seen.append((args.number, args.overrides)))
    assert run("a=1", "--number", "3", "b=2") == 0
    assert seen == [(3, ["a=1", "b=2"])]


@pytest.mark.parametrize(
    "kind",
    [
        errors.UsageError,
        errors.DataError,
        errors.ConfigError,
        errors.CheckpointError,
        errors.ExtensionError,
        errors.TrainingError,
        errors.RetriableError,
    ],
)
def test_typed_errors_are_one_line_with_their_code(command, capsys, monkeypatch, kind):
    monkeypatch.delenv("NSR_DEBUG", raising=False)
    assert command(fail_with(kind("first\nsecond")))() == kind.exit_code
    captured = capsys.readouterr()
    assert captured.err == "nsr: error: first second\n"
    assert captured.out == ""


def test_debug_shows_the_traceback(command, capsys, monkeypatch):
    monkeypatch.setenv("NSR_DEBUG", "1")
    assert command(fail_with(errors.DataError("bad image")))() == 3
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("nsr: error: bad image\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 75, "stopped by SIGTERM; run again"),
        (MemoryError(), 75, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 75, "out of memory (CUDA"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 1, "/x/y: Read-only file system"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            75,
            "/x/y: No space left on device; mend that and run again",
        ),
        (OSError(errno.ESTALE, "Stale file handle", "/x/y"), 75, "/x/y: Stale file handle"),
        (ImportError("libz.so: failed to map segment from shared object"), 75, "out of memory"),
    ],
)
def test_errors_of_the_machine_are_one_line(command, capsys, error, code, text):
    assert command(fail_with(error))() == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert text in lines[0]


def test_sigterm_tidies_up_and_is_retriable(command, capsys, tmp_path):
    from nsr.utils.files import atomic_write

    def action(args):
        with atomic_write(tmp_path / "mesh.ply") as file:
            file.write("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    assert command(action)() == 75
    assert capsys.readouterr().err == "nsr: error: stopped by SIGTERM; run again\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_real_lack_of_memory_on_the_cpu_is_retriable(command, capsys):
    assert command(lambda args: torch.empty(2**50))() == 75
    assert "out of memory" in capsys.readouterr().err


def test_a_defect_shows_its_traceback_and_ends_with_70(command, capsys):
    assert command(fail_with(AssertionError("impossible")))() == 70
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "AssertionError: impossible (a defect of nsr" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["probe", "--nonsense"], "unrecognized arguments: --nonsense (see nsr probe --help)"),
        (["probe", "--numb", "3"], "unrecognized arguments: --numb"),
        (["probe", "--number", "three"], "argument --number: invalid int value: 'three'"),
        (["mesh"], "RUN"),
        (["mesh", "x", "--color-view", "up"], "--color-view: invalid choice: 'up'"),
        (["mesh", "x", "--resolution", "1"], "--resolution 1: expected 8 to 2048"),
        (["mesh", "x", "--out", "a.stl"], "--out a.stl: expected a file name that ends in .ply, .obj, .glb"),
        (["render", "x", "--scale", "0"], "--scale 0.0: expected"),
        (["render", "x", "--spline", "0"], "--spline 0: expected at least one view"),
        (["render", "x", "--spline", "3", "--turntable", "3"], "not allowed with argument"),
        (["render", "x", "--out", "a.avi"], "ends in .gif, .mp4"),
        (["eval", "x", "--out", "a.txt"], "ends in .json"),
    ],
)
def test_usage_errors_are_one_line_and_end_with_2(command, capsys, arguments, text):
    command(lambda args: None)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert text in lines[0]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: nsr {name}")
    assert "examples:" in text


def test_help_lists_every_command(capsys):
    assert main([]) == 0
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in COMMANDS)


@pytest.mark.parametrize("name", ["mesh", "render", "eval"])
def test_a_run_that_cannot_be_read_is_a_checkpoint_error(name, tmp_path, capsys):
    assert main([name, str(tmp_path / "nowhere")]) == 5
    assert "does not exist" in capsys.readouterr().err
    torch.save({"model": torch.ones(1)}, tmp_path / "a.safetensors")
    assert main([name, str(tmp_path / "a.safetensors")]) == 5
    assert "pickle" in capsys.readouterr().err


def test_a_missing_ground_truth_is_noticed_before_the_run_is_opened(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--gt", str(tmp_path / "none.ply")]) == 3
    assert "none.ply: no such file" in capsys.readouterr().err


def test_as_a_process_with_a_reader_that_leaves():
    # The pipe's reader is gone before anything is printed; more than a pipe's buffer, so that the write must fail.
    code = "import sys, nsr.apps.main as m; m._run = lambda argv: print('x' * 10**6) or 0; sys.exit(m.main([]))"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, cwd=ROOT)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def exit_code_without_reader(code: str) -> int:
    """Of a program that waits for the end of its input, which comes when nobody reads its stderr any more."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, cwd=ROOT)
    process.stderr.close()
    process.stdin.close()
    return process.wait()


def test_an_error_that_nobody_reads_has_its_exit_code():
    """A trainer whose supervisor was killed saves and ends with 75, and has nobody to tell."""
    code = (
        "import sys, nsr.apps.main as m\nfrom nsr.utils.errors import RetriableError\n"
        "def run(argv):\n    sys.stdin.read()\n    raise RetriableError('the state is saved')\n"
        "m._run = run\nsys.exit(m.main([]))"
    )
    assert exit_code_without_reader(code) == 75


@pytest.mark.skipif(os.name == "nt", reason="nobody can tell there")
def test_a_reader_of_stderr_that_leaves_is_no_success():
    """As the progress of training may be read: what was running has not ended."""
    code = (
        "import sys, time, nsr.apps.main as m\n"
        "def run(argv):\n    sys.stdin.read()\n    print('x', file=sys.stderr, flush=True)\n"
        "m._run = run\nsys.exit(m.main([]))"
    )
    assert exit_code_without_reader(code) == 75
