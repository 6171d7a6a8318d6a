"""MRC and CCP4, compared with mrcfile, and with headers by hand where it writes none such."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats import open_volume, read_volume, write_volume
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Volume

VALUES = np.arange(24).reshape(2, 3, 4)


@pytest.fixture
def mrcfile() -> Any:
    return pytest.importorskip("mrcfile")


def saved(mrcfile: Any, path: Path, values: np.ndarray, **more: Any) -> None:
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = (1.5, 2.5, 3.5)
        file.header.origin = (10, -20, 30)
        for name, value in more.items():
            file.header[name] = value


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
def test_voxels_and_cell_are_mrcfiles(tmp_path: Path, mrcfile: Any, dtype: str) -> None:
    saved(mrcfile, tmp_path / "a.mrc", VALUES.astype(dtype), ispg=1)
    volume = read_volume(str(tmp_path / "a.mrc"))
    assert volume.axes == "zyx"
    assert volume.data.dtype == ("float32" if dtype == "float16" else dtype)
    np.testing.assert_array_equal(volume.data, VALUES)
    np.testing.assert_allclose(volume.grid.spacing_in("nm"), (0.35, 0.25, 0.15), rtol=1e-6)
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (1, -2, 3), rtol=1e-6)
    for name in ("o.mrc", "o.map.gz"):
        write_volume(str(tmp_path / name), volume)
        with mrcfile.open(tmp_path / name) as back:
            np.testing.assert_array_equal(back.data, VALUES)
            np.testing.assert_allclose(back.voxel_size.tolist(), (1.5, 2.5, 3.5), rtol=1e-6)
            np.testing.assert_allclose(back.header.origin.tolist(), (10, -20, 30), rtol=1e-6)
            assert back.is_volume()
    problems = io.StringIO()
    assert mrcfile.validate(tmp_path / "o.mrc", problems), problems.getvalue()
    with mrcfile.open(tmp_path / "o.mrc") as back:
        assert (back.header.dmin, back.header.dmax) == (0, 23)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_dtype_without_a_mode_is_stored_wider(tmp_path: Path, mrcfile: Any, dtype: str) -> None:
    path = str(tmp_path / "a.mrc")
    write_volume(path, Volume((VALUES * 11 % 256).astype(dtype), "zyx"))
    with mrcfile.open(path) as back:
        np.testing.assert_array_equal(back.data, VALUES * 11 % 256)
    with pytest.raises(WriteError, match="MRC has no int32; pass dtype='float32'"):
        write_volume(str(tmp_path / "b.mrc"), Volume(VALUES.astype("i4"), "zyx"))


def test_stacks(tmp_path: Path, mrcfile: Any) -> None:
    """Of images, of volumes, and of images that older programs mean as a volume."""
    series = np.arange(120, dtype=np.float32).reshape(5, 2, 3, 4)
    with mrcfile.new(tmp_path / "v.mrc") as file:
        file.set_data(series)
    with mrcfile.new(tmp_path / "i.mrcs") as file:
        file.set_data(series[0])
        file.set_image_stack()
    volume, images = (read_volume(str(tmp_path / name)) for name in ("v.mrc", "i.mrcs"))
    assert (volume.axes, images.axes) == ("tzyx", "tyx")
    np.testing.assert_array_equal(volume.data, series)
    np.testing.assert_array_equal(images.data, series[0])
    for name, found in (("v.mrc", volume), ("i.mrcs", images)):
        write_volume(str(tmp_path / f"o_{name}"), found)
        with mrcfile.open(tmp_path / f"o_{name}") as back:
            np.testing.assert_array_equal(back.data, found.data)
            assert back.is_volume_stack() == (name == "v.mrc")
            assert back.is_image_stack() == (name == "i.mrcs")
    saved(mrcfile, tmp_path / "old.mrc", series[0], ispg=0, mz=2)
    with open_volume(str(tmp_path / "old.mrc")) as reader:
        assert reader.header.axes.letters == "zyx"
        assert any("axes='tyx'" in note for note in reader.notes)


def by_hand(order: str, mode: int, values: np.ndarray, **words: Any) -> bytes:
    """A header as the page of MRC2014 describes it, and voxels."""
    head = bytearray(1024)
    nz, ny, nx = values.shape
    struct.pack_into(f"{order}10i", head, 0, nx, ny, nz, mode, *words.get("start", (0, 0, 0)), *words.get("m", (nx, ny, nz)))  # fmt: skip
    struct.pack_into(f"{order}6f3i", head, 40, *words.get("cell", (40, 30, 20, 90, 90, 90)), *words.get("map", (1, 2, 3)))  # fmt: skip
    struct.pack_into(f"{order}2i", head, 88, 1, len(words.get("extended", b"")))
    struct.pack_into(f"{order}2i", head, 152, *words.get("imod", (0, 0)))
    head[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    return bytes(head) + words.get("extended", b"") + values.tobytes()


def test_big_endian_and_extended_header(tmp_path: Path) -> None:
    path = tmp_path / "a.ccp4"
    path.write_bytes(by_hand(">", 1, VALUES.astype(">i2"), extended=b"X" * 160))
    volume = read_volume(str(path))
    np.testing.assert_array_equal(volume.data, VALUES)
    assert volume.grid.spacing == pytest.approx((1, 1, 1))
    write_volume(str(tmp_path / "o.mrc"), volume)
    assert (tmp_path / "o.mrc").read_bytes()[1024:1184] == b"X" * 160


def test_axes_in_another_order(tmp_path: Path) -> None:
    """CCP4 maps have often y fastest: MAPC 2, MAPR 1, MAPS 3; NSTART follows the file's order."""
    path = tmp_path / "a.map"
    path.write_bytes(
        by_hand(
            "<",
            2,
            VALUES.astype("<f4"),
            map=(2, 1, 3),
            m=(30, 40, 20),
            cell=(60, 40, 60, 90, 90, 90),
            start=(5, 6, 7),
        )
    )
    volume = read_volume(str(path))
    assert volume.axes == "zxy"
    np.testing.assert_allclose(volume.grid.spacing, (0.3, 0.1, 0.2), rtol=1e-6)  # z, y, x in nm
    np.testing.assert_allclose(volume.grid.affine[:3, 3], (6 * 0.2, 5 * 0.1, 7 * 0.3), rtol=1e-6)
    write_volume(str(tmp_path / "o.mrc"), volume)
    again = read_volume(str(tmp_path / "o.mrc"))
    assert again.axes == "zyx"
    np.testing.assert_array_equal(again.data, VALUES.transpose(0, 2, 1))
    np.testing.assert_allclose(again.grid.affine, volume.grid.affine, rtol=1e-6)


def test_oblique_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.map"
    path.write_bytes(by_hand("<", 2, VALUES.astype("<f4"), cell=(40, 30, 20, 90, 90, 120)))
    affine = read_volume(str(path)).grid.affine
    np.testing.assert_allclose(affine[:3, 1], (-0.5, np.sqrt(0.75), 0), atol=1e-7)


@pytest.mark.parametrize(("flags", "dtype"), [(0, "uint8"), (1, "int8")])
def test_imods_bytes(tmp_path: Path, flags: int, dtype: str) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(by_hand("<", 0, VALUES.astype("u1"), imod=(1146047817, flags)))
    assert read_volume(str(path)).data.dtype == dtype


def test_files_from_before_the_word_map(tmp_path: Path) -> None:
    data = bytearray(by_hand("<", 2, VALUES.astype("<f4")))
    data[208:216] = bytes(8)
    (tmp_path / "a.dat").write_bytes(gzip.compress(data))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.dat")).data, VALUES)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    for mode, word in ((4, "complex"), (101, "4 bits"), (9, "not an MRC file")):
        path.write_bytes(by_hand("<", mode, VALUES.astype("<c8")))
        with pytest.raises(FormatError, match=word):
            read_volume(str(path))
    path.write_bytes(by_hand("<", 2, VALUES.astype("<f4"))[:-1])
    with pytest.raises(FormatError, match="truncated"):
        read_volume(str(path))


def test_micrometres_are_written_as_angstrom(tmp_path: Path, mrcfile: Any) -> None:
    grid = Grid((0.002, 0.001, 0.0005), "um", affine_from_spacing((0.002, 0.001, 0.0005)))
    write_volume(str(tmp_path / "a.mrc"), Volume(VALUES.astype("f4"), "zyx", grid))
    with mrcfile.open(tmp_path / "a.mrc") as back:
        np.testing.assert_allclose(back.voxel_size.tolist(), (5, 10, 20), rtol=1e-6)
