"""Which stored number a missing value is, of a dtype that may not hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli.model.missing import Missing, missing_value_notes, stored_value

LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0.1, "f4", float(np.float32(0.1))),
        (0.1, "f8", 0.1),
        (-3.4028235e38, "f4", LOWEST),  # as NumPy prints it
        (-1e39, "f4", None),
        (np.inf, "f4", np.inf),
        (-32768, "i2", -32768),
        (-32769, "i2", None),
        (0.5, "i2", None),
        (-1, "u1", None),
        (1, "?", 1),
    ],
)
def test_the_number_that_voxels_have(value: float, dtype: str, expected: float | None) -> None:
    assert stored_value(value, np.dtype(dtype)) == expected
    notes = missing_value_notes(Missing(value=value), np.dtype(dtype))
    assert bool(notes) == (expected is None)


@pytest.mark.parametrize("command", [("apply", "-k", "box:size=1"), ("local", "--size", "1")])
@pytest.mark.parametrize("value", ["0.1", "-3.4028235e+38"])
def test_the_nearest_float_is_missing(
    tmp_path: Path, command: tuple[str, ...], value: str, run: Any
) -> None:
    voxels = np.arange(1, 28, dtype=np.float32).reshape(3, 3, 3)
    voxels[1, 1, 1] = np.float32(value)
    np.save(tmp_path / "v.npy", voxels)
    out = tmp_path / "o.npy"
    result = run(command[0], tmp_path / "v.npy", *command[1:], "--missing", value,
                 "--verify", "27", "-o", out)  # fmt: skip
    assert np.argwhere(np.isnan(np.load(out))).tolist() == [[1, 1, 1]]
    assert "marks no voxel" not in result.stderr


def test_a_value_after_the_scale_marks_no_voxel(tmp_path: Path, run: Any) -> None:
    stored = np.full((3, 3, 3), -999, np.int16)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "v.nii")
    result = run("apply", tmp_path / "v.nii", "-k", "box:size=1", "--missing", "-496.5",
                 "-o", tmp_path / "o.nii")  # fmt: skip
    assert "--missing -496.5 marks no voxel" in " ".join(result.stderr.split())


def test_integers_that_float64_does_not_tell_apart(tmp_path: Path, run: Any) -> None:
    np.save(tmp_path / "v.npy", np.arange(27).reshape(3, 3, 3) + 2**53)
    result = run("apply", tmp_path / "v.npy", "-k", "box:size=1", "--missing", 2**53 + 1,
                 "-o", tmp_path / "o.npy")  # fmt: skip
    assert "another integer close by may have been meant" in " ".join(result.stderr.split())
