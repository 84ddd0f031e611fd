"""Fetching the DTU scans that IDR was evaluated on, from the address its authors publish. Resumes, checks, unpacks."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from nsr.utils.errors import DataError, RetriableError
from nsr.utils.files import file_lock

DTU_URL = "https://www.dropbox.com/s/ujmakiaiekdl6sh/DTU.zip?dl=1"
DTU_SCANS = (24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 106, 110, 114, 118, 122)
_CHUNK = 2**18
Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None when the server does not tell)


def download_dtu(
    out: str | Path,
    url: str = DTU_URL,
    *,
    scans: tuple[int, ...] = DTU_SCANS,
    keep_zip: bool = False,
    timeout: float = 30.0,
    progress: Progress | None = None,
) -> list[Path]:
    """Download the archive, unpack it into out/DTU/scan<id>, and verify every scan. Returns the scans' folders.

    Nothing is done when all scans are there already. An interrupted transfer is resumed from out/DTU.zip.part.

    Raises:
        RetriableError: the network failed midway; running the same command again continues.
        DataError: the address does not answer, what came is no zip, has unsafe members, or lacks a scan; disk full.
    """
    root, archive = Path(out) / "DTU", Path(out) / "DTU.zip"
    folders = [root / f"scan{scan}" for scan in scans]
    if all(not missing_from_scan(folder) for folder in folders):
        return folders
    try:
        with file_lock(out):
            if not archive.exists():
                fetch(url, archive, timeout=timeout, progress=progress)
            _unpack(archive, root, scans)
            if not keep_zip:
                archive.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"{out}: the disk is full; free some space and run the same command again") from error
        raise DataError(f"{out}: cannot be written ({error}); choose another folder with --out") from error
    return folders


def _unpack(archive: Path, root: Path, scans: tuple[int, ...]) -> None:
    """Unpack and verify; an archive that cannot be used is moved aside, so that the next run downloads anew."""
    try:
        extract_scans(archive, root, scans)
        for scan in scans:
            if missing := missing_from_scan(root / f"scan{scan}"):
                raise DataError(f"{archive}: scan{scan} is incomplete, {missing}")
    except DataError as error:
        refused = archive.with_name(archive.name + ".refused")
        os.replace(archive, refused)
        raise DataError(
            f"{error}. The archive was moved to {refused.name}: run again to download it anew, or give another "
            "address with --url"
        ) from error


def missing_from_scan(folder: Path) -> str:
    """What a scan lacks of the IDR layout, in words; empty when it is complete."""
    for name in ("image", "mask"):
        if not any((folder / name).glob("*.png")) and not any((folder / name).glob("*.jpg")):
            return f"no images in {name}/"
    return "" if (folder / "cameras.npz").is_file() else "no cameras.npz"


# ----------------------------------------------------------------------------------------------------------- transfer


def fetch(url: str, target: Path, *, timeout: float = 30.0, progress: Progress | None = None) -> None:
    """Download a URL to a file. Bytes collect in `target`.part; what is there already is asked for no second time.

    When the server's ETag or modification date is no longer the one the part was begun with, it starts anew.

    Raises:
        RetriableError: the connection broke; the part is kept.
        DataError: no connection, or an HTTP error.
    """
    part, tag_file = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.tag")
    target.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() and tag_file.exists() else 0
    tag = tag_file.read_text() if have else ""
    headers = {"User-Agent": "nsr"}
    if have:
        headers["Range"] = f"bytes={have}-"
    if tag:
        headers["If-Range"] = tag
    response = _open(url, headers, timeout)
    if response is None:  # the part does not fit what the server has
        part.unlink()
        return fetch(url, target, timeout=timeout, progress=progress)
    with response:
        if response.status != 206:  # the whole file, from its beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        tag_file.write_text(_tag(response.headers))
        _receive(response, part, have, total, progress, url)
    os.replace(part, target)
    tag_file.unlink(missing_ok=True)


def _open(url: str, headers: dict[str, str], timeout: float):
    """The server's answer; None when it cannot continue where `headers` asks it to."""
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
        start = headers.get("Range", "").replace("=", " ")  # asked: bytes=5-, answered: bytes 5-9/10
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(start):
            response.close()
            return None
        return response
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return None
        raise DataError(f"{url}: HTTP {error.code} {error.reason}; give another address with --url") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{url}: no connection ({reason}); check the network, or give a mirror with --url") from error


def _tag(headers) -> str:
    """What If-Range may hold: a strong ETag, else the modification date, else nothing."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _receive(response, part: Path, have: int, total: int | None, progress: Progress | None, url: str) -> None:
    """Append the body to the part file. RetriableError when it ends early."""
    with open(part, "ab" if have else "wb") as file:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise RetriableError(_broken(url, have, total, error)) from error
            if not chunk:
                break
            file.write(chunk)
            have += len(chunk)
            if progress is not None:
                progress(have, total)
    if total is not None and have < total:
        raise RetriableError(_broken(url, have, total, "the server closed the connection"))


def _broken(url: str, have: int, total: int | None, reason: object) -> str:
    of = f" of {total}" if total is not None else ""
    return f"{url}: the transfer broke off after {have}{of} bytes ({reason}); run the same command again to continue"


# ------------------------------------------------------------------------------------------------------------ archive


def extract_scans(archive: Path, root: Path, scans: tuple[int, ...]) -> None:
    """Unpack the scans' folders of an archive, wherever in it they lie, to root/scan<id>; each appears complete or not
    at all. A scan that is complete already is left alone.

    Raises:
        DataError: not a zip, damaged, members that point outside, or a scan that is not in it.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            members = [_safe(info, archive) for info in zip_file.infolist()]
            if sum(info.file_size for info, _ in members) > shutil.disk_usage(archive.parent).free:
                raise OSError(errno.ENOSPC, "the unpacked scans do not fit")
            for scan in scans:
                folder = root / f"scan{scan}"
                if missing_from_scan(folder):
                    _extract_one(zip_file, members, folder, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: not a usable zip archive ({error})") from error


def _safe(info: zipfile.ZipInfo, archive: Path) -> tuple[zipfile.ZipInfo, PurePosixPath]:
    """A member and its path. DataError for one that would be written outside, or is not a plain file or folder."""
    # orig_filename: ZipInfo has already replaced backslashes and cut at NUL in filename.
    name = info.orig_filename.replace("\\", "/")
    path = PurePosixPath(name)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise DataError(f"{archive}: unsafe member {info.orig_filename!r} would be written outside; nothing was unpacked")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{archive}: unsafe member {info.orig_filename!r} is a link or device; nothing was unpacked")
    return info, path


def _extract_one(
    zip_file: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, PurePosixPath]], folder: Path, archive: Path
) -> None:
    """Unpack the folder of one scan into a temporary folder beside its place, then rename."""
    inside = [(info, path) for info, path in members if folder.name in path.parts[:-1] and not info.is_dir()]
    if not inside:
        raise DataError(f"{archive}: has no {folder.name}; expected the archive of IDR's DTU scans")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for info, path in inside:
            below = path.parts[path.parts.index(folder.name) + 1 :]
            target = temporary.joinpath(*below)
            target.parent.mkdir(parents=True, exist_ok=True)
            with zip_file.open(info) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
        if folder.exists():  # an incomplete one
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
