"""Running the command: in this process for most tests, in a real one where exit codes and signals matter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from conv3d_cli.cli import main

Run = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(autouse=True)
def _a_terminal_of_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests are run in."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run() -> Run:
    """Call `conv3d ARGS...`; paths and numbers are turned into text. Fails on an exit code that was not expected."""

    def call(*arguments: Any, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        unexpected = result.exception if not isinstance(result.exception, SystemExit) else None
        assert result.exit_code == code, (result.exit_code, result.output, unexpected)
        assert unexpected is None or code == 0, repr(unexpected)
        return result

    return call


@pytest.fixture
def shell() -> Shell:
    """Call `conv3d ARGS...` as a process of its own."""

    def call(*arguments: Any, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "conv3d_cli", *(str(a) for a in arguments)]
        return subprocess.run(command, capture_output=True, check=False, env=dict(os.environ), **kwargs)

    return call


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
def error_line() -> Callable[[str], str]:
    """The message of a failed command, which must be one line (a usage hint may stand above it)."""

    def only(text: str) -> str:
        lines = [line for line in text.strip().splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, text
        assert text.strip().splitlines()[-1] == lines[0], text
        assert "Traceback" not in text
        return lines[0]

    return only
