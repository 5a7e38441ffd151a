from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdresearch.data.download import fetch
from kdresearch.errors import UserError

CONTENT = np.random.default_rng(0).bytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``cut`` closes the connection after so many bytes, ``ranges`` obeys Range headers."""

    daemon_threads = True
    content = CONTENT
    cut: int | None = None
    ranges = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        content, start = self.server.content, 0
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        if wanted and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if self.server.cut is None else start + self.server.cut
        self.wfile.write(content[start:end])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, SHA256, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "data.bin" and path.read_bytes() == CONTENT
    assert fetch(server.url, SHA256, path.parent) == path
    assert server.asked == [None] and files(path.parent) == ["data.bin"]


def test_by_default_it_is_kept_in_the_store(server: Server, tmp_path: Path) -> None:
    assert fetch(server.url, SHA256) == tmp_path / "home" / "downloads" / "data.bin"


def test_what_was_cut_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 300_000
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot download.*cut off.*data.path=FILE"):
            fetch(server.url, SHA256, tmp_path)
        assert not (tmp_path / "data.bin").exists()
    server.cut = None
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]
    assert files(tmp_path) == ["data.bin"]


def test_a_server_without_ranges_begins_again(server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = 300_000, False
    with pytest.raises(UserError):
        fetch(server.url, SHA256, tmp_path)
    server.cut = None
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_is_only_checked(server: Server, tmp_path: Path) -> None:
    server.cut = 0
    with pytest.raises(UserError):
        fetch(server.url, SHA256, tmp_path)
    (part,) = (file for file in tmp_path.iterdir() if ".part-" in file.name)
    part.write_bytes(CONTENT)
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=r"another checksum.*removed"):
        fetch(server.url, SHA256, tmp_path)
    assert files(tmp_path) == []
    server.content = CONTENT
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_what_does_not_end_is_refused_and_removed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdresearch.data.download.LIMIT", 500_000)
    with pytest.raises(UserError, match="gave more than 500,000 bytes; what came was removed"):
        fetch(server.url, SHA256, tmp_path)
    assert files(tmp_path) == []


def test_a_host_that_cannot_be_reached_is_named(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1.*Not Found.*data.path=FILE"):
        fetch(server.url, SHA256, tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/data.bin"
        with pytest.raises(UserError, match=f"cannot download {url} .*refused"):
            fetch(url, SHA256, tmp_path)
    assert files(tmp_path) == []


def test_a_server_that_speaks_no_http_or_falls_silent_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/data.bin"
        with pytest.raises(UserError, match="timed out"):
            fetch(url, SHA256, tmp_path, timeout=0.2)
        listening.accept()[0].close()

        def babble() -> None:
            connection = listening.accept()[0]
            connection.recv(1000)
            connection.sendall(b"220 mail.example.org ESMTP\r\n")
            connection.close()

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        with pytest.raises(UserError, match=f"cannot download {url}"):
            fetch(url, SHA256, tmp_path)
        thread.join()
