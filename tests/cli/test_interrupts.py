"""Ctrl-C, SIGTERM and SIGHUP end a command within seconds, whatever it waits for."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, started, wait_until

from conv3d_cli.system import interrupts

CONV3D = [sys.executable, "-m", "conv3d_cli"]
SLACK = 20.0  # seconds that a busy machine may add to the limit; without one it takes 30 or 600


@pytest.fixture
def stalled(tmp_path: Path, run: Any) -> Iterator[tuple[str, threading.Event]]:
    """The URL of an image whose server sends ten bytes of a chunk and no more; set once asked."""
    np.save(tmp_path / "x.npy", np.ones((32, 32, 32), np.float32))
    run("apply", tmp_path / "x.npy", "-k", "identity", "-o", tmp_path / "x.ome.zarr")
    asked, end = threading.Event(), threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if path.is_file() and path.suffix != ".json":
                self.send_response(200)
                self.send_header("Content-Length", "1024")
                self.end_headers()
                self.wfile.write(bytes(10))
                self.wfile.flush()
                asked.set()
                end.wait(600)
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/x.ome.zarr", asked
        end.set()
        server.shutdown()


def has_begun_to_end(process: subprocess.Popen[str], number: int) -> bool:
    """True once SIGTERM was handled: it is ignored from then on. True where /proc does not tell."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return True
    ignored = next(int(line[7:], 16) for line in lines if line.startswith("SigIgn:"))
    return process.poll() is not None or bool(ignored >> (number - 1) & 1)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    "sent",
    [["INT"], ["TERM"], ["HUP"], ["INT", "INT"], ["TERM", "INT"], ["TERM", "HUP"]],
    ids=" ".join,
)
def test_a_server_that_stalls_does_not_hold_a_command(
    stalled: tuple[str, threading.Event], sent: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    url, asked = stalled
    command = [*CONV3D, "apply", url, "-k", "box:size=3", "-o", "o.npy", "-q"]
    with started(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_until(asked.is_set, process)
        began = time.monotonic()
        for name in sent:
            process.send_signal(signal.Signals[f"SIG{name}"])
            if name == "TERM":  # the one of the lower number is handled first if both are there
                wait_until(lambda: has_begun_to_end(process, signal.SIGTERM))
            time.sleep(0.05)
        _, errors = process.communicate(timeout=LIMIT)
    assert time.monotonic() - began < interrupts.SECONDS + SLACK
    first = signal.Signals[f"SIG{sent[0]}"]
    assert process.returncode == 128 + first
    word = "interrupted" if sent[0] == "INT" else "terminated"
    assert errors.startswith(f"{word}; ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "x.ome.zarr"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("command", ["info --stats", "view"])
def test_so_it_is_in_other_commands(
    command: str, stalled: tuple[str, threading.Event], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    url, asked = stalled
    name, *rest = command.split()
    with started(
        [*CONV3D, name, url, *rest], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until(asked.is_set, process)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT)
    assert time.monotonic() - began < interrupts.SECONDS + SLACK
    assert process.returncode == 130
    assert errors.startswith(b"interrupted; ")
    assert errors.count(b"\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("target", "sent"), [("-", "TERM"), ("fifo.npy", "INT")])
def test_a_reader_that_sleeps_does_not_hold_a_command(
    target: str, sent: str, tmp_path: Path
) -> None:
    """The pipe is full, and nobody takes anything out of it."""
    np.save(tmp_path / "x.npy", np.ones((64, 64, 64), np.float32))
    reads, writes = os.pipe()
    if target != "-":
        os.mkfifo(tmp_path / target)
        os.close(reads)
        reads = os.open(tmp_path / target, os.O_RDONLY | os.O_NONBLOCK)
    command = [*CONV3D, "apply", "x.npy", "-k", "identity", "-o", target, "-q", "--overwrite"]
    try:
        with started(command, cwd=tmp_path, stdout=writes, stderr=subprocess.PIPE) as process:
            wait_until(lambda: _waiting_bytes(reads) >= 1 << 14, process)
            began = time.monotonic()
            process.send_signal(signal.Signals[f"SIG{sent}"])
            _, errors = process.communicate(timeout=LIMIT)
        assert time.monotonic() - began < interrupts.SECONDS + SLACK
        assert process.returncode == 128 + signal.Signals[f"SIG{sent}"]
        assert errors.count(b"\n") == 1
        assert b"Traceback" not in errors
        assert set(os.listdir(tmp_path)) <= {"x.npy", target}
    finally:
        os.close(reads)
        os.close(writes)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="signals to threads of Linux")
@pytest.mark.parametrize("sent", ["INT", "TERM", "HUP"])
def test_a_signal_that_another_thread_receives_ends_a_command(sent: str, tmp_path: Path) -> None:
    """The system may give it to any thread; the main thread waits for one that computes."""
    np.save(tmp_path / "x.npy", np.ones((400, 400, 400), np.float32))
    kernel = "expr:exp(-(d+2*h*w)**2):radius=9vox"  # half a minute
    for name in "ab":
        (tmp_path / f"{name}.npy").symlink_to("x.npy")
    command = [*CONV3D, "apply", "a.npy", "b.npy", "-k", kernel, "--algorithm", "direct"]
    command += ["--out-dir", "out", "--jobs", "2"]
    with started(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(tmp_path.glob("out/.*")), process)
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
        # the oldest one: a signal to a thread that is just ending is lost with it
        other = min(number for number in threads if number != process.pid)
        began = time.monotonic()
        _signal_thread(process.pid, other, signal.Signals[f"SIG{sent}"])
        _, errors = process.communicate(timeout=LIMIT)
    assert time.monotonic() - began < interrupts.SECONDS + SLACK
    assert process.returncode == 128 + signal.Signals[f"SIG{sent}"]
    assert errors.count("\n") == 1


def _signal_thread(process: int, thread: int, number: int) -> None:
    """Send a signal to one thread of another process."""
    import ctypes
    import platform

    tgkill = {"x86_64": 234, "aarch64": 131}.get(platform.machine())
    if tgkill is None:
        pytest.skip("the number of tgkill is not known here")
    assert ctypes.CDLL(None, use_errno=True).syscall(tgkill, process, thread, number) == 0


def _waiting_bytes(pipe: int) -> int:
    """Bytes in a pipe that nobody has read."""
    import fcntl
    import termios

    found = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["click", "numpy", "conv3d_cli.cli.apply", "conv3d_cli.formats"])
def test_ctrl_c_while_modules_are_imported(module: str, tmp_path: Path) -> None:
    """One line, and no traceback through the importing modules."""
    np.save(tmp_path / "x.npy", np.ones((8, 8, 8), np.float32))
    script = f"""
import signal, sys
from importlib.abc import MetaPathFinder

class Interrupting(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)

from conv3d_cli.__main__ import main
sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["apply", "x.npy", "-k", "box:size=3", "-o", "o.npy"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == "interrupted; no output was left behind\n"
    assert done.returncode == 130
    assert os.listdir(tmp_path) == ["x.npy"]
