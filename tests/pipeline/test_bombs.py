"""Small files that unpack to much, or whose headers take much: refused below --max-memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bombs import BOMBS, EDGE
from processes import peak_memory

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")
CEILING = 300 << 20
# What is read all the same, its first bytes alone; of others, the ceiling is told, or damage.
READ = {"CZI zstd", "TIFF deflate", "TIFF LZMA", "TIFF PackBits"}
TOO_LARGE = {"CZI XML", "LIF XML", "OME-XML", "DICOM deflated", "Zarr attributes"}
TOO_LARGE |= {"Zarr index", "Zarr zip", "PyTorch zip", "Keras zip", "NumPy zip"}
TOO_LARGE |= {"JSON kernel", "JSON config", "TOML config"}
QUICK = {"HDF5 lzf", "ND2 frame", "TIFF PackBits", "MRtrix packed", "Zarr attributes"}
QUICK |= {"TOML config", "DICOM RLE", "Zarr index", "Zarr zip", "PyTorch zip", "NumPy zip"}
LIBRARIES = {"HDF5": "h5py", "Imaris": "h5py", "MINC": "h5py", "ND2": "nd2", "LIF": "liffile"}
LIBRARIES |= {"DICOM": "pydicom", "Zarr": "zarr", "TIFF": "tifffile", "OME-XML": "tifffile"}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BOMBS],
)
def test_a_bomb_stays_below_the_ceiling(name: str, tmp_path: Path) -> None:
    if library := LIBRARIES.get(name.split()[0]):
        pytest.importorskip(library)
    file = BOMBS[name](tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((EDGE,) * 3, np.float32))
    given = {"k": ("x.npy", "-k", file), "c": ("x.npy", "-k", "box:size=3", "-c", file)}
    for beside in ("a.REC", "a+orig.BRIK"):
        (tmp_path / beside).write_bytes(bytes(4096))
    chosen = given.get(file.split(".")[0], (file, "-k", "box:size=3"))
    code, memory, text = peak_memory(
        tmp_path, "apply", *chosen, "-o", "o.npy", "--max-memory", CEILING
    )
    assert memory <= CEILING
    assert code == (0 if name in READ else 6 if name in TOO_LARGE else 3), text
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (code > 0)
    assert "Traceback" not in text
