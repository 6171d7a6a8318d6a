"""Servers of Zarr stores that send nothing, break off, send too much, or fail once."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("zarr")


class Server:
    """A server of a folder; `misbehave` may answer a request for a chunk in its place."""

    def __init__(self, folder: Path) -> None:
        self.in_metadata = False
        self.asked, self.end = 0, threading.Event()
        self.misbehave: Any = lambda handler, number: False
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if "/c/" in self.path or outer.in_metadata:
                    outer.asked += 1
                    if outer.misbehave(self, outer.asked):
                        return
                super().do_GET()

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/x.ome.zarr"

    def stall(self, handler: Any, number: int) -> bool:
        """Send ten bytes of more, and wait."""
        handler.send_response(200)
        handler.send_header("Content-Length", "1024")
        handler.end_headers()
        handler.wfile.write(bytes(10))
        handler.wfile.flush()
        self.end.wait(60)
        return True

    def stall_before_the_header(self, handler: Any, number: int) -> bool:
        self.end.wait(60)
        return True


@pytest.fixture
def server(tmp_path: Path, run: Any) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    np.save(tmp_path / "x.npy", np.ones((8, 8, 8), np.float32))
    run("apply", tmp_path / "x.npy", "-k", "identity", "-o", folder / "x.ome.zarr")
    made = Server(folder)
    with made.http:
        threading.Thread(target=made.http.serve_forever, daemon=True).start()
        yield made
        made.end.set()
        made.http.shutdown()


@pytest.mark.parametrize("way", ["stall", "stall_before_the_header"])
def test_a_server_that_sends_nothing_is_given_up(
    server: Server, way: str, tmp_path: Path, run: Any, error_line: Any
) -> None:
    server.misbehave = getattr(server, way)
    began = time.monotonic()
    result = run(
        "apply", server.url, "-k", "box:size=3", "-o", tmp_path / "o.npy", "--timeout", "0.4", code=3
    )  # fmt: skip
    assert time.monotonic() - began < 20  # without a limit: 60
    text = error_line(result.stderr)
    assert "the server sent nothing for 0.4 s, 3 times; try again, or pass --timeout 1.6" in text
    assert server.asked == 3
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("info", "URL", "--stats"),
        ("compare", "URL", "x.npy"),
        ("view", "URL"),
        ("explain", "URL", "-k", "box:size=3"),
        ("kernel", "show", "gaussian:fwhm=6mm", "--like", "URL"),
    ],
    ids=lambda command: command[0],
)
def test_so_it_is_in_every_command_that_reads_an_address(
    server: Server,
    command: tuple[str, ...],
    tmp_path: Path,
    run: Any,
    error_line: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    server.misbehave, server.in_metadata = server.stall, True
    words = [server.url if word == "URL" else word for word in command]
    began = time.monotonic()
    result = run(*words, "--timeout", "0.3", code=3)
    assert time.monotonic() - began < 20
    assert "the server sent nothing for 0.3 s, 3 times" in error_line(result.stderr)
    result = run(*words, "--timeout", "0", code=2)
    assert "--timeout is a positive number of seconds, received 0" in error_line(result.stderr)


@pytest.mark.parametrize(
    ("address", "package"),
    [("s3://b/x.zarr", "s3fs"), ("s3a://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("gcs://b/x", "gcsfs")],
)  # fmt: skip
def test_a_missing_file_system_is_named(
    address: str, package: str, run: Any, error_line: Any
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    text = error_line(run("info", address, code=3).stderr)
    assert text.endswith(f"its file system needs a package: pip install {package}")


def test_what_fails_once_is_asked_for_again_and_told(
    server: Server, tmp_path: Path, run: Any
) -> None:
    def fail(handler: Any, number: int) -> bool:
        if number == 1:
            handler.send_error(503)
        elif number == 2:  # the connection ends early
            handler.send_response(200)
            handler.send_header("Content-Length", "1024")
            handler.end_headers()
            handler.close_connection = True
        return number < 3

    server.misbehave = fail
    result = run("apply", server.url, "-k", "identity", "-o", tmp_path / "o.npy")
    assert "the server did not answer at once: retried 2 times" in " ".join(result.stderr.split())
    assert np.array_equal(np.load(tmp_path / "o.npy"), np.ones((8, 8, 8), np.float32))


def test_what_is_refused_is_not_asked_for_again(
    server: Server, tmp_path: Path, run: Any, error_line: Any
) -> None:
    server.misbehave = lambda handler, number: handler.send_error(403) or True
    result = run("apply", server.url, "-k", "identity", "-o", tmp_path / "o.npy", code=3)
    assert "403" in error_line(result.stderr)
    assert server.asked == 1


def test_an_answer_without_end_is_read_no_further_than_a_chunk_can_be(
    server: Server, tmp_path: Path, run: Any, error_line: Any
) -> None:
    sent = 0

    def flood(handler: Any, number: int) -> bool:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        try:
            while not server.end.is_set() and sent < 1 << 30:
                handler.wfile.write(bytes(1 << 16))
                sent += 1 << 16
        except OSError:
            pass
        return True

    server.misbehave = flood
    result = run("apply", server.url, "-k", "identity", "-o", tmp_path / "o.npy", code=3)
    assert "bytes that are possible" in error_line(result.stderr)
    assert sent < 1 << 26


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_time_out_is_positive(value: str, tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 4, 4), np.float32))
    result = run(
        "apply", tmp_path / "x.npy", "-k", "identity", "-o", tmp_path / "o.npy",
        "--timeout", value, code=2,
    )  # fmt: skip
    assert "--timeout is a positive number of seconds, received" in error_line(result.stderr)
