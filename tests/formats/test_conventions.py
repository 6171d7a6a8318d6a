"""What a file says of missing voxels and packed numbers is told, since it is not applied."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from conv3d_cli.formats.conventions import convention_notes, missing_note, notes_for

VALUES = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
CF = {"_FillValue": np.int16(-9999), "scale_factor": 0.5, "add_offset": np.array([10.0])}
MISSING = "voxels of -9999 are missing by its {}; they count as values without --missing -9999"
PACKED = "its values are packed (value = stored * 0.5 + 10) and are used as they are stored"


def netcdf(folder: Path) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file["v"] = VALUES
        file["v"].attrs.update(CF)
    return folder / "a.h5"


def by_xarray(folder: Path) -> Path:
    array = zarr.create_array(folder / "a.zarr", shape=VALUES.shape, dtype=VALUES.dtype)
    array[:] = VALUES
    array.attrs.update({name: float(np.ravel(value)[0]) for name, value in CF.items()})
    return folder / "a.zarr"


def by_gdal(folder: Path) -> Path:
    tag = (42113, "s", 0, "-9999", True)
    tifffile.imwrite(folder / "a.tif", VALUES.astype(np.float32), extratags=[tag])
    return folder / "a.tif"


@pytest.mark.parametrize(
    ("make", "mark", "packed"),
    [
        (netcdf, "_FillValue", True),
        (by_xarray, "_FillValue", True),
        (by_gdal, "GDAL_NODATA", False),
    ],
)
def test_conventions_that_are_not_applied_are_told(
    make: Callable[[Path], Path], mark: str, packed: bool, tmp_path: Path, run: Any
) -> None:
    source = make(tmp_path)
    given = ["--axes", "zyx"] if source.suffix == ".zarr" else []
    for line in (
        ["info", source],
        ["apply", source, "-k", "box:size=3", "-o", tmp_path / "o.npy"],
    ):
        told = run(*line, *given).output
        assert MISSING.format(mark) in " ".join(told.split())
        assert (PACKED in " ".join(told.split())) == packed


def test_what_a_job_is_told_of_missing_voxels_is_true_of_it(tmp_path: Path, run: Any) -> None:
    """No word if their value is given, and no option that the command does not have."""
    for source in (netcdf(tmp_path), by_gdal(tmp_path)):
        output = ["-o", tmp_path / "o.npy", "--overwrite"]
        line = ["apply", source, "-k", "box:size=3", *output]
        assert "are missing" not in run(*line, "--missing", -9999).stderr
        assert "without --missing -9999" in " ".join(run(*line, "--missing", -1).stderr.split())
        copy = ["convert", source, *output]
        blurred = ["deconvolve", source, "-k", "box:size=3", "--iterations", 1, *output]
        for other in (copy, [*copy, "--channels", 0], blurred):
            told = " ".join(run(*other).stderr.split())
            assert "they count as values" in told
            assert "--missing" not in told


def test_nan_and_the_neutral_scale_need_no_word() -> None:
    for value in (np.nan, "AAAAAAAA+H8=", None, np.array([1, 2]), True):
        assert convention_notes({"_FillValue": value, "scale_factor": 1, "add_offset": 0}) == ()
    (note,) = convention_notes({"_FillValue": np.nan, "missing_value": np.int32(-1)})
    assert "voxels of -1 are missing by its missing_value" in note


@pytest.mark.parametrize("takes", [True, False])
def test_a_note_on_missing_voxels_is_the_same_in_a_worker(takes: bool) -> None:
    (note,) = notes_for(missing_note(-1, "nodata"), None, lambda: takes)
    (copy,) = notes_for([pickle.loads(pickle.dumps(note))], None, lambda: takes)
    assert (note, pickle.loads(pickle.dumps(note))) == (copy, note)
    assert notes_for([copy], -1.0, lambda: takes) == ()


def test_a_rounded_mark_is_the_missing_value(tmp_path: Path, run: Any) -> None:
    """Voxels of float32 are missing by the float nearest to 1e20, and so is the mark."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["v"] = VALUES.astype(np.float32)
        file["v"].attrs["_FillValue"] = np.float32(1e20)
    asked = ("apply", tmp_path / "a.h5::v", "-k", "box:size=3", "-o", tmp_path / "o.npy")
    assert "missing by its _FillValue" in run(*asked).output
    assert "missing by its" not in run(*asked, "--missing", "1e20", "--overwrite").output
