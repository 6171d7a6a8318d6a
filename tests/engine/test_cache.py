"""Compiled loops on disk: a second process loads them, and no state of the disk keeps the command from working."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np, sys, time
from conv3d_cli import conv3d
from conv3d_cli.engine import CACHE_FOLDER

got = conv3d(np.ones((4, 4, 4), np.float32), np.ones((3, 3, 3)))
assert got.shape == (2, 2, 2) and (got == 27).all()
loops = [direct.direct_loops, packing.pack_loops, epilogue.store_float_loops]
hits = sum(sum(f.stats.cache_hits.values()) for f in loops)
misses = sum(sum(f.stats.cache_misses.values()) for f in loops)
print(hits, misses, CACHE_FOLDER)
"""


def run(cwd: Path, **environment: str) -> tuple[int, int, str]:
    """Convolve in a fresh process: (cache hits, misses, folder)."""
    env = {k: v for k, v in os.environ.items() if k not in ("CONV3D_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env.update(environment)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    hits, misses, folder = done.stdout.split()
    return int(hits), int(misses), folder


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hits, misses, folder = run(tmp_path, CONV3D_CACHE_DIR=str(cache))
    assert (hits, misses) == (0, 3)
    assert Path(folder).parent == cache
    files = sorted(cache.rglob("*.nb*"))
    assert files
    hits, misses, _ = run(tmp_path, CONV3D_CACHE_DIR=str(cache))
    assert (hits, misses) == (3, 0)
    assert sorted(cache.rglob("*.nb*")) == files  # and adds no file

    # a damaged file costs a compilation, no more
    for file in cache.rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])
    for file in cache.rglob("*.nbi"):
        file.write_bytes(file.read_bytes()[:50])
    assert run(tmp_path, CONV3D_CACHE_DIR=str(cache))[:2] == (0, 3)
    assert run(tmp_path, CONV3D_CACHE_DIR=str(cache))[:2] == (3, 0)  # mended


def test_without_a_usable_home_it_still_works(tmp_path: Path) -> None:
    """HOME is missing: the private folder under the temporary directory is used."""
    home = tmp_path / "no" / "home"
    (tmp_path / "tmp").mkdir()
    _, _, folder = run(tmp_path, HOME=str(home), XDG_CACHE_HOME="/proc/nothing", TMPDIR=str(tmp_path / "tmp"))
    assert folder.startswith(str(tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    """Its files are code that would be loaded."""
    from conv3d_cli.engine import jit

    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    assert not jit._usable(open_folder)
    private = tmp_path / "private"
    assert jit._usable(private)
    assert private.stat().st_mode & 0o777 == 0o700


def test_no_folder_at_all_compiles_in_memory(tmp_path: Path) -> None:
    """As on a system where everything is read-only."""
    env = dict(os.environ, CONV3D_CACHE_DIR="/proc/nothing", NUMBA_CACHE_DIR="", XDG_CACHE_HOME="/proc/nothing")
    env.update(HOME="/proc/nothing", TMPDIR="/proc/nothing")
    code = "import tempfile; tempfile.gettempdir = lambda: '/proc/nothing'\n" + SCRIPT
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[2] == "None"


def test_a_changed_engine_file_never_runs_stale_code(tmp_path: Path) -> None:
    """The cache is keyed by all of the engine's files: a change in one reaches loops that live in another."""
    import conv3d_cli

    package = tmp_path / "conv3d_cli"
    shutil.copytree(Path(conv3d_cli.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    _, misses, first = run(tmp_path, CONV3D_CACHE_DIR=cache, PYTHONPATH=str(tmp_path))
    assert misses == 3
    with open(package / "engine" / "tile.py", "a") as file:
        file.write("\n# changed\n")
    _, misses, second = run(tmp_path, CONV3D_CACHE_DIR=cache, PYTHONPATH=str(tmp_path))
    assert misses == 3
    assert first != second
