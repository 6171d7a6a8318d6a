"""MRtrix images, by bytes made by hand from MRtrix's documentation of the format."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume, read_volume, volume_files, write_volume
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Volume

VALUES = np.arange(60).reshape(3, 4, 5)  # z, y, x
MATRIX = [[0.8, -0.6, 0.0, 10.0], [0.6, 0.8, 0.0, -20.0], [0.0, 0.0, 1.0, 30.5]]
TRANSFORM = "".join(f"transform: {','.join(map(str, row))}\n" for row in MATRIX)
AFFINE = np.vstack([np.array(MATRIX) * (2, 1.5, 3, 1), [0, 0, 0, 1]])


def mif(path: Path, fields: str, data: bytes, dim: str = "5,4,3", vox: str = "2,1.5,3") -> str:
    """A file with its voxels, whose offset leaves room for the header."""
    text = f"mrtrix image\ndim: {dim}\nvox: {vox}\n{fields}file: . 600\nEND\n".encode()
    whole = text.ljust(600, b"\0") + data
    path.write_bytes(gzip.compress(whole) if path.suffix == ".gz" else whole)
    return str(path)


@pytest.mark.parametrize("name", ["a.mif", "a.mif.gz"])
@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("Int8", "i1"), ("UInt8", "u1"), ("Int16LE", "<i2"), ("UInt16BE", ">u2"), ("Int32BE", ">i4"),
        ("UInt32LE", "<u4"), ("Int64LE", "<i8"), ("UInt64BE", ">u8"), ("Float32BE", ">f4"),
        ("Float64LE", "<f8"), ("float32le", "<f4"), ("UInt16", "=u2"),
    ],
)  # fmt: skip
def test_datatypes(tmp_path: Path, name: str, word: str, code: str) -> None:
    path = mif(
        tmp_path / name,
        f"layout: +0,+1,+2\ndatatype: {word}\n{TRANSFORM}",
        VALUES.astype(code).tobytes(),
    )
    volume = read_volume(path)
    assert (volume.axes, volume.data.dtype) == ("zyx", np.dtype(code).newbyteorder("="))
    np.testing.assert_array_equal(volume.data, VALUES)
    np.testing.assert_allclose(volume.grid.affine, AFFINE)
    assert (volume.grid.unit, volume.grid.anatomical) == ("mm", True)


@pytest.mark.parametrize("layout", ["-0,-1,+2", "+0,-2,-1", "-2,+0,+1", "+2,+1,+0"])
def test_layouts_keep_every_voxel_in_its_place(tmp_path: Path, layout: str) -> None:
    """Voxel (i, j, k) of MRtrix lies at transform . (i, j, k) · vox, wherever it is stored."""
    places = [int(word[1:]) for word in layout.split(",")]
    flipped = VALUES[tuple(slice(None, None, -1 if layout.split(",")["zyx"[::-1].index(a)][0] == "-" else 1) for a in "zyx")]  # fmt: skip
    order = sorted(range(3), key=lambda axis: -places[axis])  # slowest first; 0 is x
    stored = flipped.transpose([2 - axis for axis in order])
    path = mif(
        tmp_path / "a.mif",
        f"layout: {layout}\ndatatype: Int16LE\n{TRANSFORM}",
        np.ascontiguousarray(stored).astype("<i2").tobytes(),
    )
    for name in (path, str(tmp_path / "o.mif")):
        volume = read_volume(name)
        found = volume.data.transpose([volume.axes.index(a) for a in "xyz"])
        for index in np.ndindex(5, 4, 3):
            position = AFFINE @ [*index, 1]
            w, h, d = np.rint(np.linalg.solve(volume.grid.affine, position)[:3]).astype(int)
            assert found[w, h, d] == VALUES[index[::-1]]
        if name == path:
            write_volume(str(tmp_path / "o.mif"), volume)
    text = (tmp_path / "o.mif").read_bytes().split(b"END")[0].decode()
    signs = [word[0] for word in layout.split(",")]
    kept = text.partition("layout: ")[2].partition("\n")[0].split(",")
    assert [word[0] for word in kept] == signs
    rows = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("transform")]
    np.testing.assert_allclose(
        [[float(n) for n in row.split(",")] for row in rows], MATRIX, atol=1e-12
    )


def test_masks_of_one_bit(tmp_path: Path) -> None:
    """The first voxel is the highest bit of the first byte."""
    mask = np.arange(60).reshape(3, 4, 5) % 7 < 3
    for name in ("a.mif", "b.mif.gz"):
        path = mif(
            tmp_path / name, "layout: +0,+1,+2\ndatatype: Bit\n", np.packbits(mask).tobytes()
        )
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.data, mask)
        with open_volume(path) as reader:
            assert any("one bit" in note for note in reader.notes)
    path = mif(tmp_path / "c.mif", "layout: +0,+1,+2\ndatatype: Bit\n", bytes(7))
    with pytest.raises(FormatError, match="truncated"):
        read_volume(path)


def test_scaling_is_offset_and_scale(tmp_path: Path) -> None:
    path = mif(
        tmp_path / "a.mif",
        "layout: +0,+1,+2\ndatatype: Int16LE\nscaling: 5,0.5\n",
        VALUES.astype("<i2").tobytes(),
    )
    np.testing.assert_array_equal(read_volume(path).data, VALUES * 0.5 + 5)


def test_four_axes(tmp_path: Path) -> None:
    series = np.arange(120).reshape(2, 3, 4, 5)
    for layout, axes, stored in (
        ("+0,+1,+2,+3", "tzyx", series),
        ("+1,+2,+3,+0", "zyxc", series.transpose(1, 2, 3, 0)),
    ):
        path = mif(
            tmp_path / "a.mif",
            f"layout: {layout}\ndatatype: Int16LE\n{TRANSFORM}dw_scheme: 0,0,1,1000\ndw_scheme: 1,0,0,0\n",
            np.ascontiguousarray(stored).astype("<i2").tobytes(),
            "5,4,3,2",
            "2,1.5,3,0.72",
        )
        volume = read_volume(path)
        assert volume.axes == axes
        np.testing.assert_array_equal(volume.data, stored)
        write_volume(str(tmp_path / "o.mif"), volume, overwrite=True)
        text = (tmp_path / "o.mif").read_bytes().split(b"END")[0].decode()
        assert "dim: 5,4,3,2\nvox: 2,1.5,3,0.72\n" in text
        assert f"layout: {layout}\n" in text
        assert "dw_scheme: 0,0,1,1000\ndw_scheme: 1,0,0,0\n" in text


def test_headers_with_voxels_beside(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mih")
    grid = Grid((3.0, 1.5, 2.0), "mm", affine_from_spacing((3.0, 1.5, 2.0), (1, 2, 3)))
    write_volume(path, Volume(VALUES.astype("f4"), "zyx", grid))
    assert [Path(name).name for name in volume_files(path)] == ["a.mih", "a.dat"]
    assert (tmp_path / "a.dat").read_bytes() == VALUES.astype("<f4").tobytes()
    np.testing.assert_array_equal(read_volume(path).data, VALUES)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ("file: ../secret.dat 0\n", "outside the file's folder and is not followed"),
        ("file: a.dat\nfile: b.dat\n", "2 files"),
        ("file: a-[0:3].dat\n", "several files"),
        ("file: gone.dat\n", "no such file"),
        ("layout: +0,+0,+2\nfile: a.dat\n", "layout"),
        ("datatype: CFloat32LE\nfile: a.dat\n", "complex"),
        ("transform: 1,0,0\nfile: a.dat\n", "12 numbers"),
        ("", "no file"),
    ],
)
def test_refusals(tmp_path: Path, fields: str, word: str) -> None:
    (tmp_path / "secret.dat").write_bytes(bytes(60))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.dat").write_bytes(bytes(60))
    kind = "" if "datatype" in fields else "datatype: UInt8\n"
    (folder / "a.mih").write_text(f"mrtrix image\ndim: 5,4,3\nvox: 1,1,1\n{kind}{fields}END\n")
    with pytest.raises(FormatError, match=word):
        read_volume(str(folder / "a.mih"))


def test_history_goes_on_where_mrtrixs_ends(tmp_path: Path, run: Any) -> None:
    path = mif(
        tmp_path / "a.mif",
        "layout: +0,+1,+2\ndatatype: UInt8\ncommand_history: mrconvert a b  (version=3.0.4)\n",
        VALUES.astype("u1").tobytes(),
    )
    out = str(tmp_path / "o.mif")
    run("apply", path, "-k", "box:size=3", "-o", out, "--history")
    lines = Path(out).read_bytes().split(b"END")[0].decode().splitlines()
    found = [line for line in lines if line.startswith("command_history: ")]
    assert found[0] == "command_history: mrconvert a b  (version=3.0.4)"
    assert found[1].startswith("command_history: conv3d ")
