"""Files and folders that are never seen half-written, and folders that one process at a time may write."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nsr.utils.errors import UsageError

LOCK_NAME = ".lock"
_LOCKED_BYTE = 2**30  # on Windows: behind the text, since nobody else can read a byte that is locked


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that appears under its name complete or not at all: `with atomic_write(path, "wb") as file: ...`.

    mode: "w" for UTF-8 text, or "wb". The data goes to a temporary file in the same folder, is flushed to the disk and
    renamed over `path`; when the block raises, the temporary file is removed and an earlier `path` stays as it was.
    Missing folders are created.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write: expected mode 'w' or 'wb', got {mode!r}")
    target = Path(os.path.realpath(path))  # through symbolic links: replace the file, not the link
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: its files are private (0600), ours follow the umask like any other output. The extension is
    # kept, because some writers choose the format by it.
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill a folder that appears under its name complete or not at all: `with atomic_folder(path) as folder: ...`.

    What is written to `folder`, beside its place, is renamed to `path`, or removed when the block raises. Missing parents are
    created. Raises UsageError where `path` exists and is not an empty folder.
    """
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{path}: already exists and is not empty; name a new folder or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    temporary.mkdir()  # not tempfile.mkdtemp, whose folders are private (see atomic_write)
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    if os.name == "nt":  # which opens no folders, and keeps the order of renames itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync folders; the file itself is synced
    finally:
        os.close(descriptor)


def keep_as(path: Path, other: Path) -> None:
    """Let a file have another name too, in place of whatever had that. It stays there when `path` is written anew.

    Where the file system has no second names the file is renamed, and `path` is missing until it is written anew.
    """
    temporary = other.with_name(f".{other.stem}.{secrets.token_hex(4)}{other.suffix}")
    try:
        os.link(path, temporary)
    except (OSError, NotImplementedError):
        os.replace(path, other)
        return
    os.replace(temporary, other)
    temporary.unlink(missing_ok=True)  # still there if both were names of one file already


@contextmanager
def file_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process: `with file_lock(run_folder): ...`. The kernel frees it when the process dies.

    Raises UsageError at once, naming the holder, when another process (or another block of this one) holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_NAME, "a+", encoding="utf-8") as file:
        if not _take_lock(file):
            raise UsageError(
                f"{folder} is being written by another process (pid {lock_holder(folder)}); "
                "wait until it has finished, stop it, or choose another output folder"
            )
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_locked(folder: str | Path) -> bool:
    """Whether a process holds a folder by file_lock."""
    try:
        with open(Path(folder) / LOCK_NAME, "r+", encoding="utf-8") as file:
            return not _take_lock(file)
    except FileNotFoundError:
        return False


def lock_holder(folder: str | Path) -> str:
    """The process that holds a folder by file_lock, or held it last: its pid, "unknown" where that is not to be read."""
    try:
        return (Path(folder) / LOCK_NAME).read_text(encoding="utf-8").strip() or "unknown"
    except OSError:
        return "unknown"


def _take_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed; whether nobody else has."""
    if os.name == "nt":
        import msvcrt

        os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
        with suppress(OSError):
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        return False
    import fcntl

    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
