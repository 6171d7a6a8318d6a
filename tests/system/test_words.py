"""Messages count in the singular and in the plural."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.system.words import count_of


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 voxels"), (1, "1 voxel"), (2, "2 voxels"), (21, "21 voxels")]
)
def test_one_thing_is_singular(number: int, words: str) -> None:
    assert count_of(number, "voxel") == words


def test_a_plural_may_be_irregular() -> None:
    assert count_of(1, "axis", "axes") == "1 axis"
    assert count_of(3, "axis", "axes") == "3 axes"


def test_a_plan_for_one_thread(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 5), np.float32))
    words = run("explain", tmp_path / "x.npy", "-k", "box:size=1,1,3", "-j", "1").output
    assert "\nthreads    1 at work, on 1 task of a slab\n" in words
    assert "slabs of 1 plane\n" in words
