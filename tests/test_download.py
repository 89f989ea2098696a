from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gdown
import pytest

from u2export.core.models import Source
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.network import download

CONTENT = bytes(i * 7 % 256 for i in range(3_000_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CUT = 1 << 20  # a whole number of the pieces that gdown writes


@dataclass
class Server:
    """A server on this machine whose faults a test chooses by path."""

    address: str = ""
    seen: list[tuple[str, str]] = field(default_factory=list)
    cut_once: set[str] = field(default_factory=set)

    def source(self, path: str) -> Source:
        return Source("url", f"{self.address}/{path}")


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.state = server
        super().__init__(*args)

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.strip("/")
        asked = self.headers.get("Range", "")
        self.state.seen.append((path, asked))
        if path == "redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif path == "missing":
            self.send_error(404)
        elif path == "stall":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
            self.wfile.flush()
            time.sleep(2.5)
        elif path == "page":
            self._give(b"<!DOCTYPE html><html>too many downloads</html>", "")
        elif path == "empty":
            self._give(b"", "")
        elif path == "corrupt":
            self._give(CONTENT[:-1] + b"!", asked)
        elif path == "norange":
            self._give(CONTENT, "")
        elif path in ("cutonce", "cutalways"):
            first = path not in self.state.cut_once
            self.state.cut_once.add(path)
            self._give(CONTENT, asked, CUT if first or path == "cutalways" else None)
        else:
            self._give(CONTENT, asked)

    def _give(self, content: bytes, asked: str, stop: int | None = None) -> None:
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][:stop])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("U2EXPORT_OFFLINE")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)  # gdown's back-off
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, state))
    http.daemon_threads = True
    state.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "u2netp.pth"


def _left(place: Path) -> list[str]:
    """What lies beside the file, lock files aside."""
    return sorted(
        str(p.relative_to(place.parent))
        for p in place.parent.rglob("*")
        if p.is_file() and p != place and p.suffix != ".lock"
    )


def test_a_good_file_arrives_whole_and_leaves_nothing_else(server: Server, place: Path):
    assert download.fetch([server.source("good")], place, sha256=SHA256) == SHA256
    assert place.read_bytes() == CONTENT
    assert _left(place) == []


def test_redirects_are_followed(server: Server, place: Path):
    download.fetch([server.source("redirect")], place, sha256=SHA256)
    assert place.read_bytes() == CONTENT


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, place: Path):
    download.fetch([server.source("cutonce")], place, sha256=SHA256)
    assert place.read_bytes() == CONTENT
    assert server.seen == [("cutonce", ""), ("cutonce", "bytes=1048576-")]


def test_what_one_call_left_is_continued_by_the_next(server: Server, place: Path):
    with pytest.raises(DependencyError, match="broke off"):
        download.fetch([server.source("cutalways")], place, sha256=SHA256, retries=0)
    assert len(_left(place)) == 1
    download.fetch([server.source("good")], place, sha256=SHA256)
    assert server.seen[-1] == ("good", "bytes=1048576-")
    assert place.read_bytes() == CONTENT
    assert _left(place) == []


def test_a_server_that_cannot_resume_is_asked_for_the_whole_file(server: Server, place: Path):
    with pytest.raises(DependencyError):
        download.fetch([server.source("cutalways")], place, sha256=SHA256, retries=0)
    download.fetch([server.source("norange")], place, sha256=SHA256, retries=0)
    assert place.read_bytes() == CONTENT


def test_a_rest_that_belongs_to_another_file_is_thrown_away(server: Server, place: Path):
    with pytest.raises(DependencyError):
        download.fetch([server.source("cutalways")], place, sha256=SHA256, retries=0)
    rest = place.parent / _left(place)[0]
    rest.write_bytes(b"x" * CUT)
    download.fetch([server.source("good")], place, sha256=SHA256)
    assert place.read_bytes() == CONTENT
    assert [asked for _, asked in server.seen][-2:] == ["bytes=1048576-", ""]


def test_a_silent_server_is_given_up_for_the_next_source(server: Server, place: Path):
    sources = [server.source("stall"), server.source("good")]
    begun = time.monotonic()
    download.fetch(sources, place, sha256=SHA256, timeout_s=0.3, retries=1)
    assert time.monotonic() - begun < 5
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize("bad", ["corrupt", "missing", "page", "empty"])
def test_a_source_without_the_file_is_followed_by_the_next(server: Server, place: Path, bad: str):
    download.fetch([server.source(bad), server.source("good")], place, sha256=SHA256)
    assert place.read_bytes() == CONTENT
    assert _left(place) == []


def test_a_file_of_the_wrong_hash_is_removed_and_refused(server: Server, place: Path):
    with pytest.raises(ArtifactError, match=rf"sha256 \w+… instead of {SHA256[:12]}"):
        download.fetch([server.source("corrupt")], place, sha256=SHA256)
    assert not place.exists()
    assert _left(place) == []


@pytest.mark.parametrize("bad", ["page", "empty"])
def test_a_web_page_or_nothing_is_refused_with_and_without_a_hash(
    server: Server, place: Path, bad: str
):
    """As something that is not there, so that a hotel's login page is no damaged file."""
    for sha256 in ("", SHA256):
        with pytest.raises(DependencyError, match=r"web page|empty file"):
            download.fetch([server.source(bad)], place, sha256=sha256)
    assert not place.exists()
    assert _left(place) == []


def test_a_failing_fetch_leaves_an_older_file_alone(server: Server, place: Path):
    place.parent.mkdir()
    place.write_bytes(b"older")
    with pytest.raises(ArtifactError):
        download.fetch([server.source("corrupt")], place, sha256=SHA256)
    assert place.read_bytes() == b"older"


def test_a_file_that_is_here_is_not_fetched(server: Server, place: Path):
    place.parent.mkdir()
    place.write_bytes(CONTENT)
    download.fetch([server.source("good")], place, sha256=SHA256)
    assert server.seen == []


def test_without_a_hash_an_earlier_piece_is_not_continued(server: Server, place: Path):
    with pytest.raises(DependencyError):
        download.fetch([server.source("cutalways")], place, retries=0)
    download.fetch([server.source("good")], place)
    assert server.seen[-1] == ("good", "")
    assert place.read_bytes() == CONTENT


def test_a_password_in_an_address_is_not_shown(server: Server, place: Path):
    with pytest.raises(DependencyError) as caught:
        download.fetch([Source("url", "http://me:secret@127.0.0.1:9/f")], place, retries=0)
    assert "secret" not in str(caught.value)


def test_two_at_once_fetch_once(server: Server, place: Path):
    threads = [
        threading.Thread(
            target=download.fetch, args=([server.source("good")], place), kwargs={"sha256": SHA256}
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.read_bytes() == CONTENT
    assert server.seen == [("good", "")]


def test_the_mirror_comes_first(server: Server, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("U2EXPORT_MIRROR", f"{server.address}/mirror/")
    download.fetch([server.source("corrupt")], place, sha256=SHA256)
    assert server.seen == [("mirror/u2netp.pth", "")]


def test_google_drive_is_asked_by_the_files_id(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    real = gdown.download

    def redirected(*, id: str, url: None, **options: object) -> object:
        asked.append(id)
        return real(url=f"{server.address}/good", **options)

    monkeypatch.setattr(gdown, "download", redirected)
    download.fetch([Source("gdrive", "1rbSTG")], place, sha256=SHA256)
    assert asked == ["1rbSTG"]
    assert place.read_bytes() == CONTENT


def test_google_drives_refusal_is_said_and_the_next_source_tried(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
):
    real = gdown.download

    def refusing(*, id: str | None, **options: object) -> object:
        if id:
            raise gdown.exceptions.FileURLRetrievalError("Too many users")
        return real(**options)

    monkeypatch.setattr(gdown, "download", refusing)
    with pytest.raises(DependencyError, match="Google Drive: Google Drive refuses it"):
        download.fetch([Source("gdrive", "1rbSTG")], place, sha256=SHA256)
    download.fetch([Source("gdrive", "1rbSTG"), server.source("good")], place, sha256=SHA256)
    assert place.read_bytes() == CONTENT


def test_an_unreachable_source_says_the_ways_out(server: Server, place: Path):
    with pytest.raises(DependencyError) as caught:
        download.fetch([Source("url", "http://127.0.0.1:9/f")], place, sha256=SHA256, retries=0)
    assert "127.0.0.1: not reachable" in str(caught.value)
    for way in ("put u2netp.pth into weights/", "--weights", "U2EXPORT_MIRROR"):
        assert way in str(caught.value)


def test_offline_makes_no_connection(server: Server, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("U2EXPORT_OFFLINE", "1")
    with pytest.raises(DependencyError, match="U2EXPORT_OFFLINE forbids"):
        download.fetch([server.source("good")], place, sha256=SHA256)
    assert server.seen == []


def test_a_place_that_cannot_be_written_is_said(server: Server, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        download.fetch([server.source("good")], tmp_path / "file" / "u2netp.pth", sha256=SHA256)
