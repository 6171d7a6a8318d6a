"""MetaImage, compared with SimpleITK, whose own format it is, and with headers by hand."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import open_volume, read_volume, volume_files, write_volume
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Volume

DIRECTION = [0.36, 0.48, -0.8, -0.8, 0.6, 0, 0.48, 0.64, 0.6]
TO_RAS = np.diag([-1.0, -1, 1, 1])
AFFINE = TO_RAS @ np.vstack(
    [np.c_[np.reshape(DIRECTION, (3, 3)) * (0.5, 1.25, 3), (10, -20, 30.5)], [0, 0, 0, 1]]
)
HEAD = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 3 2\n"


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float32",
        "float64",
    ],
)
def test_voxels_and_place_are_simpleitks(
    tmp_path: Path, sitk: Any, rng: np.random.Generator, name: str, packed: bool, dtype: str
) -> None:
    values = (rng.random((4, 5, 6)) * 100).astype(dtype)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 1.25, 3))
    image.SetOrigin((10, -20, 30.5))
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(tmp_path / name), packed)
    volume = read_volume(str(tmp_path / name))
    assert (volume.axes, volume.data.dtype) == ("zyx", dtype)
    np.testing.assert_array_equal(volume.data, values)
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-12)
    assert (volume.grid.unit, volume.grid.anatomical) == ("mm", True)
    out = str(tmp_path / f"o{name}")
    write_volume(out, volume, compression="deflate" if packed and name == "a.mha" else "none")
    back = sitk.ReadImage(out)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), values)
    for method in ("GetDirection", "GetOrigin", "GetSpacing"):
        np.testing.assert_allclose(getattr(back, method)(), getattr(image, method)(), atol=1e-12)


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_channels_and_series(
    tmp_path: Path, sitk: Any, rng: np.random.Generator, compression: str
) -> None:
    values = rng.random((2, 4, 5, 3)).astype("f4")
    for vector, axes in ((True, "zyxc"), (False, "tzyx")):
        image = sitk.GetImageFromArray(values, isVector=vector)
        image.SetSpacing((1, 2, 3) if vector else (1, 2, 3, 2.5))
        path = str(tmp_path / f"{axes}.mha")
        sitk.WriteImage(image, path)
        volume = read_volume(path)
        assert volume.axes == axes
        np.testing.assert_array_equal(volume.data, values)
        write_volume(f"{path}.o.mha", volume, compression=compression)
        back = sitk.ReadImage(f"{path}.o.mha")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), values)
        assert back.GetSpacing() == image.GetSpacing()  # of time, too


def test_large_packed_volumes_stream(tmp_path: Path, sitk: Any, rng: np.random.Generator) -> None:
    """Several blocks of the packer: the check sum is that of all."""
    values = rng.integers(0, 9, (40, 300, 301)).astype(np.uint8)
    path = str(tmp_path / "a.mha")
    write_volume(path, Volume(values, "zyx"), compression="deflate")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), values)
    head, _, body = Path(path).read_bytes().partition(b"LOCAL\n")
    assert zlib.decompress(body) == values.tobytes()
    assert int(head.split(b"CompressedDataSize = ")[1].split()[0]) == len(body)
    with open_volume(path) as reader:
        assert reader.sequential
        block = reader.read(0, slice(20, 22), slice(0, 1))
        np.testing.assert_array_equal(block[..., 0], values[20:22])


def text_file(path: Path, more: str, data: bytes = b"") -> str:
    path.write_bytes((HEAD + more).encode() + data)
    return str(path)


VALUES = np.arange(24).reshape(2, 3, 4)


def test_big_endian_by_hand(tmp_path: Path) -> None:
    path = text_file(
        tmp_path / "a.mha",
        "ElementByteOrderMSB = True\nElementType = MET_SHORT\nElementDataFile = LOCAL\n",
        VALUES.astype(">i2").tobytes(),
    )
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, VALUES)
    assert volume.grid.spacing is None  # no ElementSpacing


def test_header_size_of_minus_one_counts_from_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(77) + VALUES.astype("<u2").tobytes())
    more = "HeaderSize = {}\nElementType = MET_USHORT\nElementDataFile = x.raw\n"
    for size in (-1, 77):
        path = text_file(tmp_path / "a.mhd", more.format(size))
        np.testing.assert_array_equal(read_volume(path).data, VALUES)


@pytest.mark.parametrize("form", ["list", "pattern"])
def test_a_file_for_each_slice(tmp_path: Path, sitk: Any, form: str) -> None:
    for n in (0, 1):
        (tmp_path / f"s{n + 7:03}.raw").write_bytes(VALUES[n].astype("<u2").tobytes())
    which = {"list": "LIST\ns007.raw\ns008.raw\n", "pattern": "s%03d.raw 7 8 1\n"}[form]
    path = text_file(tmp_path / "a.mhd", f"ElementType = MET_USHORT\nElementDataFile = {which}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), VALUES)
    with open_volume(path) as reader:
        assert any("copied into one" in note for note in reader.notes)
    np.testing.assert_array_equal(read_volume(path).data, VALUES)
    assert [Path(name).name for name in volume_files(path)] == ["a.mhd", "s007.raw", "s008.raw"]


@pytest.mark.parametrize("name", ["../secret.raw", "{top}/secret.raw", "link.raw"])
@pytest.mark.parametrize("form", ["{}\n", "LIST\n{}\nb.raw\n"])
def test_files_outside_the_folder_are_not_read(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(48))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    named = form.format(name.format(top=tmp_path))
    path = text_file(folder / "a.mhd", f"ElementType = MET_USHORT\nElementDataFile = {named}")
    with pytest.raises(FormatError, match="outside the file's folder and is not followed"):
        read_volume(path)


def test_refusals(tmp_path: Path) -> None:
    for more, word in (
        ("ElementType = MET_OTHER\nElementDataFile = LOCAL\n", "no ElementType"),
        ("ElementType = MET_SHORT\n", "no 'ElementDataFile'"),
        ("ElementType = MET_SHORT\nElementDataFile = gone.raw\n", "no such file"),
        ("ElementType = MET_SHORT\nElementDataFile = LOCAL\n", "truncated"),
        (
            "ElementSpacing = 1 0 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n",
            "no meaning",
        ),
        ("ElementSpacing = 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n", "3 numbers"),
        ("BinaryData = False\nElementType = MET_SHORT\nElementDataFile = LOCAL\n", "text"),
        ("\0\0\n", "damaged"),
    ):
        with pytest.raises(FormatError, match=word):
            read_volume(text_file(tmp_path / "a.mha", more))
    with pytest.raises(SpecError, match=r"\.mhd is written raw"):
        write_volume(str(tmp_path / "b.mhd"), Volume(VALUES, "zyx"), compression="deflate")


def test_unknown_fields_and_history_are_kept(tmp_path: Path, run: Any) -> None:
    path = text_file(
        tmp_path / "a.mha",
        "Modality = MET_MOD_CT\nMyKey = some words\nElementSpacing = 1 2 3\nElementType = MET_FLOAT\n"
        "ElementDataFile = LOCAL\n",
        struct.pack("<24f", *range(24)),
    )
    out = str(tmp_path / "o.mha")
    run("apply", path, "-k", "box:size=3", "-o", out, "--history")
    text = Path(out).read_bytes().partition(b"ElementDataFile")[0].decode()
    assert "Modality = MET_MOD_CT\nMyKey = some words\n" in text
    with open_volume(out) as reader:
        assert len(reader.header.history) == 1


def test_micrometres_become_millimetres(tmp_path: Path) -> None:
    grid = Grid((2.0, 0.5, 0.5), "um", affine_from_spacing((2.0, 0.5, 0.5)))
    path = str(tmp_path / "a.mha")
    write_volume(path, Volume(VALUES.astype("u1"), "zyx", grid))
    assert b"ElementSpacing = 0.0005 0.0005 0.002\n" in Path(path).read_bytes()


def test_a_place_without_spacing_is_itks(tmp_path: Path, sitk: Any, run: Any) -> None:
    head = f"{HEAD}Offset = 1 2 3\nTransformMatrix = 0 1 0 1 0 0 0 0 1\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mha").write_bytes(f"{head}ElementDataFile = LOCAL\n".encode() + bytes(24))
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    with open_volume(str(tmp_path / "a.mha")) as reader:
        assert "the file gives no ElementSpacing: it is taken as 1, as ITK does" in reader.notes
        grid = reader.header.grid
    expected = np.eye(4)
    expected[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    expected[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(grid.affine, TO_RAS @ expected, atol=1e-12)
    run("convert", tmp_path / "a.mha", tmp_path / "b.mha")
    back = sitk.ReadImage(str(tmp_path / "b.mha"))
    for get in ("GetOrigin", "GetDirection", "GetSpacing"):
        assert getattr(back, get)() == getattr(image, get)()
