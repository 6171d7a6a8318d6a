"""--verify all: what the command line says of checksums, and of tiles that fail them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.engine.checksum import Checks

Apply = Callable[..., Any]


@pytest.fixture
def apply(run: Any, volume: Path, tmp_path: Path) -> Apply:
    """Run `conv3d apply` on a small volume; the output is o.npy."""

    def call(*arguments: Any, code: int = 0) -> Any:
        return run(
            "apply", volume, "-k", "laplacian", "-o", tmp_path / "o.npy", *arguments, code=code
        )

    return call


def fail(patch: pytest.MonkeyPatch, times: int) -> None:
    """Let the weights look damaged so many times."""
    left = iter(range(times))
    intact = Checks.weights_intact
    patch.setattr(Checks, "weights_intact", lambda self: next(left, None) is None and intact(self))


@pytest.mark.parametrize(
    ("words", "checked"), [([], True), (["--verify", "all"], True), (["--verify", "off"], False)]
)
def test_json_tells_what_was_checked(apply: Apply, words: list[str], checked: bool) -> None:
    found = json.loads(apply(*words, "--json").stdout.splitlines()[-1])
    checks = found.get("checks")
    if not checked:
        assert checks is None
    else:
        assert checks["tiles"] > 0
        assert (checks["unchecked"], checks["repaired"]) == (0, 0)


def test_a_tile_that_fails_is_repaired_and_told(
    apply: Apply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply("--verify", "off")
    right = np.load(tmp_path / "o.npy")
    fail(monkeypatch, 1)
    result = apply("--verify", "all", "--overwrite", "--sidecar")
    assert "failed the checksum" in " ".join(result.output.split())
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), right, atol=1e-5)
    sidecar = json.loads((tmp_path / "o.json").read_text())
    record = next(value for value in sidecar.values() if isinstance(value, dict))
    assert record["RepairedTiles"] >= 1


def test_a_tile_that_fails_twice_ends_with_7_and_leaves_nothing(
    apply: Apply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    fail(monkeypatch, 99)
    result = apply("--verify", "all", code=7)
    assert "failed the checksum twice" in " ".join(result.output.split())
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", ["0", "-1", "some", "1.5"])
def test_other_values_are_refused(apply: Apply, value: str) -> None:
    result = apply(f"--verify={value}", code=2)
    assert "must be a whole number of at least 1, all or off" in " ".join(result.output.split())
