"""No socket is opened, and no other computer asked, by an import or by a job on local files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Python tells of each socket that it makes, connects or binds, and of each name that it looks up.
PROGRAM = """
import sys
def watch(event, arguments):
    if event.startswith("socket.") and event not in {allowed}:
        raise SystemExit(f"{{event}} {{arguments[1:]}}")
sys.addaudithook(watch)
{code}
"""
RUN = """
from conv3d_cli.cli import main
main(sys.argv[1:], standalone_mode=False)
"""
EVERYTHING = """
import importlib, pkgutil, conv3d_cli
for name in conv3d_cli.__all__:
    getattr(conv3d_cli, name)
for found in pkgutil.walk_packages(conv3d_cli.__path__, "conv3d_cli."):
    if not found.name.endswith(("__main__", "napari")):
        importlib.import_module(found.name)
"""
PAIR = ("socket.__new__",)  # of zarr's event loop, which wakes itself


def watched(folder: Path, code: str, *words: str, allowed: tuple[str, ...] = ()) -> str:
    """What went wrong in a process that may open no socket."""
    program = PROGRAM.format(code=code, allowed=repr(set(allowed)))
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stderr or f"exit code {done.returncode}"


def test_an_attempt_is_noticed(tmp_path: Path) -> None:
    for code in ("import socket; socket.socket()", "import socket; socket.getaddrinfo('a', 1)"):
        assert watched(tmp_path, code).startswith("socket.")


def test_an_import_opens_no_socket(tmp_path: Path) -> None:
    """Of the package, and of all its modules with the libraries that they import."""
    assert watched(tmp_path, EVERYTHING) == ""


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz", ".tif", ".ome.zarr"])
def test_a_job_on_local_files_opens_no_socket(suffix: str, volume: Path) -> None:
    words = ["apply", volume.name, "-k", "gaussian:sigma=1vox", "-o", f"o{suffix}", "-q"]
    allowed = PAIR if "zarr" in suffix else ()
    assert watched(volume.parent, RUN, *words, allowed=allowed) == ""
    words[1], words[5] = words[5], "back.npy"
    assert watched(volume.parent, RUN, *words, allowed=allowed) == ""
    assert (volume.parent / "back.npy").is_file()
