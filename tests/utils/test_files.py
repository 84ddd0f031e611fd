"""Atomic files, folder locks, and the thread policy."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from nsr.utils.errors import UsageError
from nsr.utils.files import atomic_folder, atomic_write, file_lock, is_locked, keep_as
from nsr.utils.threads import THREAD_POLICY, set_thread_policy


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path, "w") as file:
        file.write("é\n")
        assert not path.exists()
    plain = tmp_path / "plain"
    plain.write_text("")
    assert path.read_bytes() == "é\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path, "wb") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_appears_whole_with_ordinary_permissions(tmp_path):
    path = tmp_path / "new" / "folder"
    with atomic_folder(path) as folder:
        (folder / "a.txt").write_text("x")
        assert not path.exists()
    assert os.listdir(path) == ["a.txt"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    with pytest.raises(UsageError, match="not empty; name a new folder"), atomic_folder(path):
        pass
    assert os.listdir(path) == ["a.txt"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()

    def interrupted() -> None:
        with atomic_folder(tmp_path / "empty") as folder:
            (folder / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_a_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "real" / "a.txt")
    with atomic_write(link, "w") as file:
        file.write("x")
    assert link.is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "x"


def test_other_modes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mode"), atomic_write(tmp_path / "a", "a"):
        pass


def test_a_file_is_kept_under_another_name(tmp_path):
    path, other = tmp_path / "latest.bin", tmp_path / "previous.bin"
    path.write_bytes(b"1")
    keep_as(path, other)
    assert (path.read_bytes(), other.read_bytes()) == (b"1", b"1")
    keep_as(path, other)  # both names are of one file by now
    with atomic_write(path, "wb") as file:
        file.write(b"2")
    assert (path.read_bytes(), other.read_bytes()) == (b"2", b"1")
    keep_as(path, other)
    assert (path.read_bytes(), other.read_bytes()) == (b"2", b"2")
    assert sorted(os.listdir(tmp_path)) == ["latest.bin", "previous.bin"]


def test_a_file_is_kept_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path, other = tmp_path / "latest.bin", tmp_path / "previous.bin"
    path.write_bytes(b"1")
    with atomic_write(path, "wb") as file:
        file.write(b"2")
        keep_as(path, other)
    assert (path.read_bytes(), other.read_bytes()) == (b"2", b"1")
    assert sorted(os.listdir(tmp_path)) == ["latest.bin", "previous.bin"]


def test_a_locked_folder_refuses_a_second_writer_until_it_is_free(tmp_path):
    with file_lock(tmp_path / "run"):
        with pytest.raises(UsageError, match=f"pid {os.getpid()}"), file_lock(tmp_path / "run"):
            pass
        code = f"from nsr.utils.files import file_lock\nwith file_lock({str(tmp_path / 'run')!r}): pass"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "is being written by another process" in child.stderr
    with file_lock(tmp_path / "run"):
        pass


def test_whether_a_folder_is_locked_can_be_asked(tmp_path):
    assert not is_locked(tmp_path)
    with file_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    assert is_locked(tmp_path) is False  # asking does not take it


def test_thread_policy_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    set_thread_policy()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("active", THREAD_POLICY["GOMP_SPINCOUNT"])
