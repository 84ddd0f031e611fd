"""Downloading against a server on this machine: whole, interrupted, resumed, changed, hostile."""

import io
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nsr.apps.data import build_parser
from nsr.datasets.download import DTU_SCANS, download_dtu, fetch, missing_from_scan
from nsr.utils.errors import DataError, RetriableError, UsageError


class Server:
    """Serves one body. `ranges`: honour Range; `cut`: close the connection after so many bytes, once."""

    def __init__(self, body: bytes):
        self.body, self.tag, self.ranges, self.cut, self.status, self.requests = body, '"v1"', True, None, 200, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/DTU.zip"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.requests.append(wanted)
        if self.status != 200:
            request.send_error(self.status)
            return
        start = 0
        if wanted and self.ranges and request.headers.get("If-Range", self.tag) == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.body):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        request.send_header("Content-Length", str(len(self.body) - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        request.end_headers()
        end = len(self.body) if self.cut is None else start + self.cut
        self.cut = None
        request.wfile.write(self.body[start:end])


def dtu_zip(scans=DTU_SCANS, extra=(), prefix="DTU/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for scan in scans:
            for name in ("image/000000.png", "mask/000.png", "cameras.npz"):
                archive.writestr(f"{prefix}scan{scan}/{name}", f"{scan} {name} ".encode() * 200)
        for name, content, attributes in extra:
            info = zipfile.ZipInfo("x")
            info.filename = info.orig_filename = name
            info.external_attr = attributes
            archive.writestr(info, content)
    return buffer.getvalue()


@pytest.fixture
def server():
    server = Server(dtu_zip())
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_all_scans_arrive_and_a_second_call_downloads_nothing(server, tmp_path):
    seen = []
    folders = download_dtu(tmp_path, server.url, progress=lambda done, total: seen.append((done, total)))
    assert [f.name for f in folders] == [f"scan{i}" for i in DTU_SCANS]
    assert (tmp_path / "DTU/scan65/mask/000.png").read_bytes() == b"65 mask/000.png " * 200
    assert seen[-1] == (len(server.body), len(server.body))
    assert not [p for p in (tmp_path / "DTU").iterdir() if p.name.startswith(".")]
    assert not list(tmp_path.glob("DTU.zip*"))
    download_dtu(tmp_path, server.url)
    assert len(server.requests) == 1


def test_interrupted_transfer_resumes_where_it_stopped(server, tmp_path):
    server.cut = 20_000
    with pytest.raises(RetriableError, match="run the same command again"):
        download_dtu(tmp_path, server.url)
    assert (tmp_path / "DTU.zip.part").stat().st_size == 20_000
    assert not (tmp_path / "DTU.zip").exists()
    download_dtu(tmp_path, server.url)
    assert server.requests == [None, "bytes=20000-"]
    assert missing_from_scan(tmp_path / "DTU/scan122") == ""


def test_server_without_ranges_starts_anew(server, tmp_path):
    server.cut, server.ranges = 20_000, False
    with pytest.raises(RetriableError):
        fetch(server.url, tmp_path / "x.zip")
    fetch(server.url, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == server.body
    assert not list(tmp_path.glob("*.part*"))


def test_changed_file_is_not_stitched_to_the_old_part(server, tmp_path):
    server.cut = 20_000
    with pytest.raises(RetriableError):
        fetch(server.url, tmp_path / "x.zip")
    server.body, server.tag = bytes(reversed(server.body)), '"v2"'
    fetch(server.url, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == server.body


def test_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(b"0" * (len(server.body) + 5))
    (tmp_path / "x.zip.part.tag").write_text(server.tag)
    fetch(server.url, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == server.body


def test_http_error_and_no_connection(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="HTTP 404"):
        download_dtu(tmp_path, server.url)
    port = server.http.server_port
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DataError, match="no connection"):
        download_dtu(tmp_path, f"http://127.0.0.1:{port}/DTU.zip", timeout=5)
    with pytest.raises(DataError, match="--url"):
        download_dtu(tmp_path, "no-address")


@pytest.mark.parametrize("body", [b"<html>too many requests</html>", b"", dtu_zip()[:-3000]], ids=["page", "empty", "cut"])
def test_what_is_no_zip_is_moved_aside(server, tmp_path, body):
    server.body = body
    with pytest.raises(DataError, match="not a usable zip"):
        download_dtu(tmp_path, server.url)
    assert (tmp_path / "DTU.zip.refused").exists()
    server.body = dtu_zip()
    download_dtu(tmp_path, server.url)  # the next run starts anew
    assert missing_from_scan(tmp_path / "DTU/scan24") == ""


def test_damaged_member_leaves_no_half_scan(server, tmp_path):
    body = bytearray(server.body)
    at = body.find(b"65 image")
    body[at : at + 8] = b"damaged!"
    server.body = bytes(body)
    with pytest.raises(DataError, match="not a usable zip"):
        download_dtu(tmp_path, server.url)
    assert not (tmp_path / "DTU/scan65").exists()
    assert missing_from_scan(tmp_path / "DTU/scan24") == ""
    assert not [p for p in (tmp_path / "DTU").iterdir() if p.name.startswith(".")]


EVIL = {
    "above": ("DTU/scan24/../../../evil.txt", b"x", 0),
    "absolute": ("/tmp/nsr_evil.txt", b"x", 0),
    "backslash": ("DTU\\..\\..\\evil.txt", b"x", 0),
    "drive": ("C:/evil.txt", b"x", 0),
    "link": ("DTU/scan24/image/link.png", b"/etc/passwd", (stat.S_IFLNK | 0o777) << 16),
    "device": ("DTU/scan24/image/tty", b"", (stat.S_IFCHR | 0o666) << 16),
}


@pytest.mark.parametrize("kind", EVIL)
def test_unsafe_members_stop_everything(server, tmp_path, kind):
    server.body = dtu_zip(extra=[EVIL[kind]])
    out = tmp_path / "deep" / "er"
    with pytest.raises(DataError, match="unsafe member"):
        download_dtu(out, server.url)
    assert not (out / "DTU").exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_missing_scan_is_named_and_the_others_stay(server, tmp_path):
    server.body = dtu_zip([s for s in DTU_SCANS if s != 118])
    with pytest.raises(DataError, match="has no scan118"):
        download_dtu(tmp_path, server.url)
    assert missing_from_scan(tmp_path / "DTU/scan114") == ""


def test_other_nesting_and_a_choice_of_scans(server, tmp_path):
    server.body = dtu_zip(prefix="")
    assert [f.name for f in download_dtu(tmp_path, server.url, scans=(65, 24), keep_zip=True)] == ["scan65", "scan24"]
    assert not (tmp_path / "DTU/scan37").exists()
    assert (tmp_path / "DTU.zip").exists()
    download_dtu(tmp_path, server.url, scans=(37,))
    assert len(server.requests) == 1  # from the archive that was kept


def test_full_disk_is_said(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("nsr.datasets.download.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="disk is full"):
        download_dtu(tmp_path, server.url)


def test_command_line(server, tmp_path, capsys):
    def run(*argv):
        args = build_parser("nsr data").parse_args(["download", "dtu", "--out", str(tmp_path), *argv])
        return args.run(args)

    assert run("--url", server.url, "--scan", "24", "65") == 0
    assert "2 scans in" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--scan 3"):
        run("--scan", "3")
