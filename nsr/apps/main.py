"""The `nsr` command: finds the program for a sub-command, runs it, and turns errors into one line and an exit code.

A program is a module with `build_parser(prog) -> ArgumentParser`, whose parsers set `run=function` as a default;
`function(args)` does the work and returns an exit code or None. Only the module of the chosen command is imported.

Exit codes: 0 done; 2 usage; 75 try again (out of memory, a full disk or one that is away for a while, stopped by a signal or by
Ctrl-C with the work saved); other codes are those of nsr.utils.errors; 70 is a defect of nsr itself; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from nsr import __version__
from nsr.utils.errors import NsrError, RetriableError, UsageError, is_transient
from nsr.utils.memory import keep_freed_memory
from nsr.utils.threads import set_thread_policy

COMMANDS = {
    "reconstruct": ("nsr.apps.reconstruct", "photographs to mesh, pictures and report, in one go"),
    "train": ("nsr.apps.train", "train a surface, with IDR's flags"),
    "failsafe": ("nsr.apps.failsafe", "train and evaluate unattended: again after kills, lack of memory, full disks"),
    "mesh": ("nsr.apps.mesh", "extract the mesh of a trained run"),
    "render": ("nsr.apps.render", "render training views, novel views or a turntable"),
    "transfer": ("nsr.apps.transfer", "the surface of one run in the colours of another"),
    "eval": ("nsr.apps.eval", "measure a run: images, cameras, distance to a known mesh"),
    "plot": ("nsr.apps.plot", "draw the losses and metrics of runs, and how they still change"),
    "prior": ("nsr.apps.prior", "surfaces known beforehand: pretrained, averaged, or a family from meshes"),
    "data": ("nsr.apps.data", "check, download or make scenes"),
    "doctor": ("nsr.apps.doctor", "show what is installed, built and missing"),
}
EXIT_DEFECT = 70  # EX_SOFTWARE
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code and never raises, but for argparse's own SystemExit in --help."""
    set_thread_policy()
    keep_freed_memory()
    try:
        with _sigterm_raises():
            code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _has_reader(2):  # what was running has not ended
            return RetriableError.exit_code
        # The reader (head, less) has gone. Point stdout elsewhere, or the interpreter complains as it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Terminated:
        return _fail("stopped by SIGTERM; run again", RetriableError.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except NsrError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        return _unexpected(error)


def _has_reader(stream: int) -> bool:
    """Whether somebody still reads a pipe that this process writes to; True where that cannot be known."""
    try:
        poll = select.poll()
        poll.register(stream, 0)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError):  # Windows; a stream that is closed
        return True


class Terminated(KeyboardInterrupt):
    """SIGTERM, as Python itself makes SIGINT a KeyboardInterrupt: what is being written is tidied up on the way out."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def handle(number: int, frame: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)


def _run(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[argv[0]][0])
        parser = module.build_parser(f"nsr {argv[0]}")
        args = parse(parser, argv[1:])
        if not hasattr(args, "run"):
            parser.error("expected a sub-command")
        return args.run(args) or 0
    parser = _top_parser()
    parse(parser, argv)  # --help, --version, or an unknown command: none of them returns
    parser.print_help()
    return 0


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options and `key=value` overrides may stand in any order; a mistake is one line instead of a page of usage."""
    _raise_usage_errors(parser)
    try:
        return parser.parse_intermixed_args(argv)
    except TypeError:  # argparse's way to say that a parser with sub-commands cannot do that; each of these can
        commands = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        if argv and argv[0] in commands:
            return commands[argv[0]].parse_intermixed_args(argv[1:])
        return parser.parse_args(argv)


def _raise_usage_errors(parser: argparse.ArgumentParser) -> None:
    def error(message: str) -> NoReturn:
        raise UsageError(f"{message} (see {parser.prog} --help)")

    parser.error = error
    parser.allow_abbrev = False  # an option that is added later must not change what a script's shortened one means
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _raise_usage_errors(child)


def _top_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nsr",
        description="From photographs to a neural surface, fast.",
        epilog="commands:\n"
        + "".join(f"  {name:<13}{text}\n" for name, (_, text) in COMMANDS.items())
        + "\nexamples:\n  nsr reconstruct bust --budget 60 --out runs/bust\n  nsr mesh --help\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nsr {__version__}")
    # Commands never get here: this only makes an unknown one a usage error that lists those that exist.
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="command", help="one of those below")
    return parser


def _unexpected(error: Exception) -> int:
    """Errors that nsr did not raise itself: memory, the file system, or a defect, which alone deserves a traceback."""
    if _is_out_of_memory(error):
        reason = str(error).strip().split("\n")[0]
        message = f"out of memory ({reason}); run again with fewer rays or a lower resolution"
        return _fail(message, RetriableError.exit_code)
    if isinstance(error, OSError) and error.strerror is not None:
        path = error.filename2 or error.filename  # of a renaming, the name that was asked for
        place = f"{path}: " if path is not None else ""
        if is_transient(error):
            return _fail(f"{place}{error.strerror}; mend that and run again", RetriableError.exit_code)
        return _fail(f"{place}{error.strerror}", NsrError.exit_code)
    traceback.print_exc()
    print(f"nsr: error: {type(error).__name__}: {error} (a defect of nsr, please report it)", file=sys.stderr)
    return EXIT_DEFECT


def _is_out_of_memory(error: Exception) -> bool:
    """Without importing torch for a command that has not needed it."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from nsr.training.guards import is_out_of_memory

    return is_out_of_memory(error)


def _fail(message: str, code: int) -> int:
    """One line on stderr; the traceback too when NSR_DEBUG=1."""
    if os.environ.get("NSR_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    with suppress(OSError):  # of a reader that has gone the exit code is still to be right
        print(f"nsr: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
