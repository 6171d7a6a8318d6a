"""Fixtures for all tests: the command line, sample volumes, a seeded generator; and the loop cache.

`README.md` in this folder shows how to write a test with them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from profiles import register_profiles

# Set before anything imports Numba: tests keep their compiled loops in a folder of their own.
CACHE = os.path.join(tempfile.gettempdir(), f"conv3d-test-cache-{os.getuid()}")
os.environ.setdefault("CONV3D_CACHE_DIR", CACHE)
# What commands print does not depend on which loops are compiled already.
os.environ["CONV3D_COMPILE_NOTE"] = "off"

# `make test` runs the tests inside make. If a test starts make, that must not inherit the options.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)

# A shell starts background jobs with SIGINT ignored, and children inherit that: the commands which
# tests interrupt would run on to their ends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Whoever imports what lies there has only what Windows has, so doctests are not looked for in it.
collect_ignore = ["windows"]

register_profiles()

# So that a failed assert in a helper module shows its values, as in a test.
pytest.register_assert_rewrite("cases", "oracle", "tools")

ROOT = Path(__file__).parent.parent
Run = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session", autouse=True)
def _compile_in_this_process() -> Iterator[None]:
    """Start no processes that compile loops while pytest itself runs in several.

    All CPUs are busy then, and each of those processes imports Numba anew.
    """
    from conv3d_cli.engine import machine_code

    with pytest.MonkeyPatch.context() as patch:
        if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
            patch.setattr(machine_code, "worker_count", lambda loops: 1)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator with a fixed seed."""
    return np.random.default_rng(20260101)


# --------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(autouse=True)
def _a_terminal_of_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the width of help and messages independent of the terminal that runs the tests."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="session")
def run() -> Run:
    """Run `conv3d ARGUMENTS...` in this process; arguments may be paths and numbers.

    The test fails if the exit code is not `code`; `code=None` accepts every exit code.
    """

    def call(*arguments: Any, code: int | None = 0) -> Result:
        from conv3d_cli.cli import main  # late, because a test of imports needs a fresh interpreter

        result = CliRunner().invoke(main, [str(a) for a in arguments])
        error = None if isinstance(result.exception, SystemExit) else result.exception
        assert error is None, (repr(error), result.output)
        assert code in (None, result.exit_code), (result.exit_code, result.output)
        return result

    return call


@pytest.fixture(scope="session")
def shell() -> Shell:
    """Run `conv3d ARGUMENTS...` as a process of its own, with real exit codes and streams."""

    def call(*arguments: Any, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "conv3d_cli", *(str(a) for a in arguments)]
        return subprocess.run(
            command, capture_output=True, check=False, env=dict(os.environ), **kwargs
        )

    return call


@pytest.fixture(scope="session")
def error_line() -> Callable[[str], str]:
    """The message of a failed command, which must be one line; a usage hint may precede it."""

    def only(text: str) -> str:
        lines = [line for line in text.strip().splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, text
        assert text.strip().splitlines()[-1] == lines[0], text
        assert "Traceback" not in text
        return lines[0]

    return only


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, str]:
    """Environment variables for scripts and makefiles: `conv3d` is the one under test."""
    script = tmp_path / "bin" / "conv3d"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m conv3d_cli "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}


class _Here:
    """As `Isolated`, without a process; each has a reader of its own."""

    def __init__(self, path: str, library: str) -> None:
        self._reader: Any = None

    def call(self, function: str, *arguments: Any) -> Any:
        from conv3d_cli import errors
        from conv3d_cli.formats import isolated
        from conv3d_cli.system.isolated import answer_to

        isolated._reader = self._reader
        kind, result = answer_to(function, arguments)
        self._reader = getattr(isolated, "_reader", None)
        if kind:
            raise getattr(errors, kind, RuntimeError)(result)
        return result

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def hdf5_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read HDF5 files without a process for each of them, which takes half a second.

    Damaged files crash the HDF5 library: a test of such files must not take this.
    """
    import conv3d_cli.formats.hdf5.format
    import conv3d_cli.formats.isolated
    import conv3d_cli.kernels.weights

    packages = conv3d_cli.formats, conv3d_cli.kernels
    for user in (packages[0].isolated, packages[0].hdf5.format, packages[1].weights):
        monkeypatch.setattr(user, "Isolated", _Here)


# --------------------------------------------------------------------------------------------------
# Sample data


@pytest.fixture
def volume(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A small .npy volume."""
    path = tmp_path / "volume.npy"
    np.save(path, rng.standard_normal((7, 9, 11)).astype(np.float32))
    return path


@pytest.fixture
def kernel(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A 3x3x3 kernel file."""
    path = tmp_path / "kernel.npy"
    np.save(path, rng.standard_normal((3, 3, 3)))
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """The first time point of nibabel's example4d: 24 planes 2.2 mm apart, voxels of 2 mm."""
    import nibabel

    source = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    image = nibabel.load(source)
    path = tmp_path / "scan.nii"
    values = np.asarray(image.dataobj[..., 0])
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)
    return path


@pytest.fixture
def sitk() -> Any:
    """SimpleITK. Imported where warnings are errors, it ends the process on Python 3.13."""
    return pytest.importorskip("SimpleITK")


@pytest.fixture
def mask(scan: Path) -> Path:
    """A mask on the grid of `scan`: 1 where the scan is brighter than its mean, else 0."""
    import nibabel

    image = nibabel.load(scan)
    values = np.asarray(image.dataobj)
    path = scan.with_name("mask.nii")
    inside = (values > values.mean()).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(inside, image.affine), path)
    return path


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a scan a.nii.gz of 3 x 1.5 x 1.5 mm, its mask.nii, and a kernel k.npy."""
    from conv3d_cli import Grid, Volume, write_volume
    from conv3d_cli.model.grid import affine_from_spacing

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    spacing = (3.0, 1.5, 1.5)
    grid = Grid(spacing, "mm", affine_from_spacing(spacing, (0.0, 0.0, 0.0)))
    scan = rng.integers(0, 900, (7, 9, 8)).astype(np.int16)
    write_volume("a.nii.gz", Volume(scan, "zyx", grid))
    write_volume("mask.nii", Volume((rng.random(scan.shape) < 0.9).astype(np.uint8), "zyx", grid))
    np.save("k.npy", rng.random((3, 3, 3)))
    return tmp_path


@pytest.fixture
def sample_data(tmp_path: Path) -> Path:
    """A copy of the folder sample_data that a test may write to."""
    return Path(shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data"))
