"""NIfTI files that are no volumes, or whose numbers are names: CIFTI by its header, FreeSurfer's surfaces, labels."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume


def nifti(
    path: Path, shape: tuple[int, ...], version: int = 1, intent: int = 0, dtype: Any = np.float32
) -> Path:
    """A file of zeros but for its first voxel."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    values = np.zeros(shape, dtype)
    values.flat[0] = 1
    image = kind(values, np.eye(4))
    image.header["intent_code"] = intent
    nibabel.save(image, path)
    return path


def with_extension(path: Path, code: int) -> Path:
    """A NIfTI-2 file with an extension of this code put before its voxels."""
    data = path.read_bytes()
    content = struct.pack("<ii", 32, code) + b"<CIFTI Version=2/>".ljust(24, b"\0")
    start = 540 + 4 + len(content)  # vox_offset is a whole number at byte 168
    path.write_bytes(
        data[:168] + struct.pack("<q", start) + data[176:540] + b"\1\0\0\0" + content + data[544:]
    )
    return path


@pytest.mark.parametrize("intent", [3000, 3002, 3006, 3099])
@pytest.mark.parametrize("version", [1, 2])
def test_cifti_by_its_intent(tmp_path: Path, intent: int, version: int) -> None:
    with pytest.raises(FormatError, match="it is CIFTI, not a volume"):
        open_volume(str(nifti(tmp_path / "a.nii", (1, 1, 1, 1, 3, 20), version, intent)))
    for other in (2999, 3100, 1007, 2001):
        open_volume(str(nifti(tmp_path / "b.nii", (4, 5, 6), version, other))).close()


def test_cifti_by_its_extension(tmp_path: Path, run: Any) -> None:
    path = with_extension(nifti(tmp_path / "a.nii", (1, 1, 1, 1, 3, 20), 2), 32)
    with pytest.raises(FormatError, match="it is CIFTI, not a volume"):
        open_volume(str(path))
    other = with_extension(nifti(tmp_path / "b.nii", (4, 5, 6), 2), 44)
    open_volume(str(other)).close()
    (tmp_path / "in").mkdir()
    nifti(tmp_path / "in/scan.nii", (4, 5, 6))
    path.rename(tmp_path / "in/a.nii")
    result = run("apply", tmp_path / "in", "-k", "box", "--out-dir", tmp_path / "out")
    assert "left out 1 CIFTI file (a.nii)" in result.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scan.nii"]


def test_freesurfers_own_way_around_long_axes(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", (6, 1, 1, 2))
    data = bytearray(path.read_bytes())
    struct.pack_into("<h", data, 42, -1)  # dim[1]; the length is in glmin
    struct.pack_into("<i", data, 144, 6)
    path.write_bytes(data)
    with pytest.raises(
        FormatError,
        match=r"FreeSurfer's list of a surface's vertices \(dim\[1\] is -1\).*mri_surf2surf",
    ):
        open_volume(str(path))


@pytest.mark.parametrize(
    ("shape", "is_list"),
    [
        ((27307, 1, 6), True),  # 163842 vertices, as FreeSurfer cuts them
        ((27307, 1, 6, 2), True),
        ((10242, 1, 1), True),
        ((10242, 1, 1, 3), True),
        ((1, 1, 1, 9), True),
        ((1, 1, 1, 1, 3), True),
        ((1, 7, 1), True),
        ((9, 1, 9), False),  # a coronal slice
        ((27307, 6, 1), False),
        ((9, 8), False),
        ((1, 1, 1), False),
        ((2, 3, 4), False),
    ],
)
def test_lists_are_told(tmp_path: Path, shape: tuple[int, ...], is_list: bool, run: Any) -> None:
    path = nifti(tmp_path / "a.nii", shape)
    with open_volume(str(path)) as reader:
        assert [note for note in reader.notes if "surface" in note] == list(reader.notes)
        assert len(reader.notes) == is_list
    if shape == (27307, 1, 6, 2):
        return
    told = run("apply", path, "-k", "box", "-o", tmp_path / "o.npy")
    assert ("are a list rather than a volume" in told.stderr) == is_list
    assert ("note     its" in run("info", path).stdout) == is_list
    record = json.loads(run("info", "--json", path).stdout)
    assert len(record.get("notes", [])) == is_list


def test_axes_that_are_given_are_believed(tmp_path: Path) -> None:
    with open_volume(str(nifti(tmp_path / "a.nii", (1, 1, 1, 9))), axes="xtzy") as reader:
        assert not reader.notes


def test_copies_of_labels_are_labels_whatever_their_dtype(tmp_path: Path, run: Any) -> None:
    path = nifti(tmp_path / "a.nii", (4, 5, 6), intent=1002, dtype=np.int16)
    for dtype in ("float32", "int16"):
        output = tmp_path / f"{dtype}.nii"
        run("apply", path, "-k", "identity", "-o", output, "--dtype", dtype)
        assert int(nibabel.load(output).header["intent_code"]) == 1002
