"""Limits of the system as users meet them: file sizes, open files, memory, threads, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

resource = pytest.importorskip("resource")


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


COMMAND = [sys.executable, "-m", "conv3d_cli", "apply", "x.npy", "-k", "box:size=3", "-q"]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a volume of 250 KiB that cannot be packed much, and an older output."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 40, 40), np.float32))
    (tmp_path / "o.npy").write_bytes(b"old")
    return tmp_path


def ended(folder: Path, limit: str, value: int, *options: str) -> subprocess.CompletedProcess[str]:
    """The command with a limit: it gives one line, and nothing is left behind."""
    number = getattr(resource, limit)

    def lower() -> None:
        resource.setrlimit(number, (value, value))

    done = subprocess.run(
        [*COMMAND, *options],
        cwd=folder,
        preexec_fn=lower,
        capture_output=True,
        text=True,
        errors="replace",  # an output that goes to the standard output
        check=False,
    )
    assert len(done.stderr.splitlines()) == (done.returncode != 0), done.stderr
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    return done


@pytest.mark.parametrize(
    "target", ["o.npy", *(slow(name) for name in ("p.nii.gz", "p.tif", "p.ome.zarr"))]
)
def test_a_limit_of_file_sizes(target: str, desk: Path) -> None:
    done = ended(desk, "RLIMIT_FSIZE", 20_000, "-o", target, "--overwrite")
    assert done.returncode == 1
    assert f"cannot write {target}" in done.stderr
    assert "ulimit -f" in done.stderr
    assert sorted(os.listdir(desk)) == ["o.npy", "x.npy"]
    assert (desk / "o.npy").read_bytes() == b"old"


def test_a_limit_of_open_files(desk: Path) -> None:
    done = ended(desk, "RLIMIT_NOFILE", 6, "-o", "o.npy", "--overwrite")
    if done.returncode:
        assert "ulimit -n" in done.stderr
        assert (desk / "o.npy").read_bytes() == b"old"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems ignore the limit")
@pytest.mark.parametrize("target", ["o.npy", "-"])
def test_memory_for_libraries(target: str, desk: Path) -> None:
    """A library that cannot be loaded for lack of memory is no output that cannot be written."""
    done = ended(desk, "RLIMIT_AS", 300_000 << 10, "-o", target, "--overwrite")
    if done.returncode == 0:
        pytest.skip("this machine's libraries need less")
    assert (desk / "o.npy").read_bytes() == b"old"
    if "memory for thread-local data: ABORT" in done.stderr:
        pytest.skip("the C library ended the process before it could say why")
    if "no more threads" not in done.stderr:  # their stacks are what the limit leaves no room for
        assert done.returncode == 6
        assert "out of memory" in done.stderr
    assert "-v" in done.stderr
    assert "cannot write" not in done.stderr


def test_a_limit_of_threads(desk: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.chdir(desk)
    monkeypatch.setattr(threading.Thread, "start", refused)
    words = "the system starts no more threads"
    line = run("apply", "x.npy", "-k", "box:size=3", "-o", "p.npy", code=1).stderr
    assert words in line
    assert len(line.splitlines()) == 1
    assert not os.path.exists("p.npy")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with less room than an output needs; only root may make it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "none", disk], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
@pytest.mark.parametrize(
    "options",
    [
        slow(["-o", "disk/o.npy"]),
        slow(["-o", "disk/o.nii.gz", "--sidecar"]),
        slow(["-o", "disk/o.ome.zarr"]),
        ["-o", "disk/o.npy", "--nan", "ignore", "--coverage-out", "disk/c.nii.gz"],
    ],
    ids=" ".join,
)
def test_a_full_disk(options: list[str], desk: Path, full_disk: Path) -> None:
    done = subprocess.run(
        [*COMMAND, *options], cwd=desk, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(full_disk) == []
