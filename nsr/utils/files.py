"""Files that are never seen half-written, and folders that one process at a time may write."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nsr.utils.errors import UsageError

LOCK_NAME = ".lock"


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


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync folders; the file itself is synced
    finally:
        os.close(descriptor)


@contextmanager
def file_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process: `with file_lock(run_folder): ...`. The kernel frees it when the process dies.

    Raises UsageError at once, naming the holder, when another process (or another block of this one) holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(
                f"{folder} is being written by another process (pid {holder}); "
                "wait until it has finished, stop it, or choose another output folder"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
