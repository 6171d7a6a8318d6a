"""Voxel sizes in the tags of microscopes and slide scanners."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from ometiff import planes

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume, read_volume
from conv3d_cli.formats.tiff.directories import read_directories
from conv3d_cli.formats.tiff.vendors import read_vendor
from conv3d_cli.model.volume import Array, Axes


def write_stk(path: Path, data: Array, steps: list[tuple[int, int]]) -> None:
    """A MetaMorph file: one directory, the planes behind it, and UIC tags 1 and 2.

    steps : pairs       the distance of each plane to the next, a rational
    Source: Molecular Devices, MetaMorph Stack (STK) Image File Format.
    """
    depth, height, width = data.shape
    size = height * width * 2
    start = 8
    voxels = data.astype("<u2").tobytes()
    after = start + len(voxels)
    # UIC1: numbers of facts, and their values or where these are
    texts = struct.pack("<I", 3) + b"um\0"  # counted with its end
    rational = struct.pack("<II", 1, 10)
    facts = [(4, after), (5, after), (6, after + 8), (1, 1)]
    uic1 = b"".join(struct.pack("<II", *fact) for fact in facts)
    uic1_at = after + 8 + len(texts)
    uic2 = b"".join(struct.pack("<6I", *step, 0, 0, 0, 0) for step in steps)
    uic2_at = uic1_at + len(uic1)
    end = uic2_at + len(uic2)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size),
        (33628, 4, len(facts), uic1_at), (33629, 5, depth, uic2_at),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, end)
        + voxels + rational + texts + uic1 + uic2 + directory + bytes(4)
    )  # fmt: skip


def test_metamorph(tmp_path: Path) -> None:
    path = tmp_path / "a.stk"
    write_stk(path, planes(2), [(1, 2)] * 4)
    with tifffile.TiffFile(path) as file:
        assert file.is_stk
    volume = read_volume(str(path))
    np.testing.assert_array_equal(volume.data, planes(2))
    assert (volume.grid.spacing, volume.grid.unit) == ((0.5, 0.1, 0.1), "um")
    with open_volume(str(path)) as reader:
        assert reader.notes == ()
    write_stk(path, planes(2), [(1, 2), (1, 3), (1, 2), (1, 2)])
    with open_volume(str(path)) as reader:
        assert reader.notes == ("the file gives no z spacing: it is taken as 1 um",)


def tags(**known: Any) -> Any:
    """A series with TIFF's tags of a resolution."""
    values = {282: known.get("x"), 283: known.get("y"), 296: known.get("unit")}
    page = SimpleNamespace(
        tags=SimpleNamespace(valueof=values.get), description=known.get("text", "")
    )
    return SimpleNamespace(keyframe=page)


@pytest.mark.parametrize(
    ("facts", "series", "spacing"),
    [
        ({"is_lsm": True, "lsm_metadata": {"VoxelSizeX": 2e-7, "VoxelSizeY": 2e-7, "VoxelSizeZ": 5e-7}}, tags(), (0.5, 0.2, 0.2)),
        ({"is_fluoview": True, "fluoview_metadata": {"Dimensions": [("X", 9, 0.0, 0.25, "um"), ("Y", 9, 0.0, 0.25, "um"), ("Z", 4, 0.0, 2.0, "um")]}}, tags(), (2, 0.25, 0.25)),
        ({"is_sis": True, "sis_metadata": {"pixelsizex": 1e-7, "pixelsizey": 3e-7}}, tags(), (1, 0.3, 0.1)),
        ({"is_micromanager": True, "micromanager_metadata": {"Summary": {"PixelSize_um": 0.65, "z-step_um": 2}}}, tags(), (2, 0.65, 0.65)),
        ({"is_svs": True}, tags(text="Aperio|AppMag = 20|MPP = 0.499"), (1, 0.499, 0.499)),
        ({"is_ndpi": True}, tags(x=(20000, 1), y=(40000, 1), unit=3), (1, 0.25, 0.5)),
        ({"is_scn": True}, tags(x=(20000, 1), y=(20000, 1), unit=2), None),  # inches: a default
        ({"is_micromanager": True, "micromanager_metadata": {"Summary": {"PixelSize_um": 0}}}, tags(), None),
        ({}, tags(x=(20000, 1), y=(20000, 1), unit=3), None),
    ],
)  # fmt: skip
def test_dialects(facts: dict[str, Any], series: Any, spacing: Any) -> None:
    found = read_vendor(SimpleNamespace(**facts), series, Axes("zyx", (4, 9, 9)))
    assert found.grid.spacing == spacing
    assert found.grid.unit == (None if spacing is None else "um")


def write_ndpi(path: Path, pages: list[tuple[Any, float, int]], start: int = 0) -> None:
    """Hamamatsu's TIFF: 64-bit offsets of directories, and upper halves of values behind them.

    pages : (H, W, 3) voxels, magnification (-1: of the macro camera), and height in nanometres
    start : int     bytes before the first page
    """
    with open(path, "wb") as file:
        file.write(b"II*\0" + bytes(8))
        file.seek(max(start, 12))

        def put(data: bytes) -> int:
            place = file.tell()
            file.write(data + bytes(-len(data) % 8))
            return place

        link = 4
        for voxels, magnification, height in pages:
            rows, columns, _ = voxels.shape
            bits, made = put(struct.pack("<3H", 8, 8, 8)), put(b"Hamamatsu\0")
            data, cm = put(voxels.tobytes()), put(struct.pack("<2I", 40000, 1))
            zoom = struct.unpack("<I", struct.pack("<f", magnification))[0]
            tags = [
                (256, 4, 1, columns), (257, 4, 1, rows), (258, 3, 3, bits), (259, 3, 1, 1),
                (262, 3, 1, 2), (271, 2, 10, made), (273, 4, 1, data), (277, 3, 1, 3),
                (278, 4, 1, rows), (279, 4, 1, voxels.nbytes), (282, 5, 1, cm), (283, 5, 1, cm),
                (296, 3, 1, 3), (65420, 4, 1, 1), (65421, 11, 1, zoom), (65422, 9, 1, 0),
                (65423, 9, 1, 0), (65424, 9, 1, height & 0xFFFFFFFF),
            ]  # fmt: skip
            place = put(struct.pack("<H", len(tags)))
            file.seek(place + 2)
            for code, kind, count, value in tags:
                file.write(struct.pack("<HHII", code, kind, count, value & 0xFFFFFFFF))
            following = file.tell()
            file.write(bytes(8) + b"".join(struct.pack("<I", tag[3] >> 32) for tag in tags))
            end = file.tell()
            file.seek(link)
            file.write(struct.pack("<Q", place))
            file.seek(end)
            link = following


def colours(count: int, *size: int) -> Any:
    return np.random.default_rng(count).integers(0, 255, (count, *size, 3), np.uint8)


@pytest.mark.parametrize(
    ("heights", "spacing", "said"),
    [
        ((-2000, 0, 2000), 2.0, ""),
        ((4000, 2500, 1000), 1.5, ""),
        ((0, -2000, 2000), 1.0, "in stored order, they are at 0, -2, 2 um; "),
        ((0, 1000, 3000), 1.0, "in stored order, they are at 0, 1, 3 um; "),
        ((0, 0, 0), 1.0, "in stored order, they are at 0, 0, 0 um; "),
    ],
)
def test_the_heights_of_hamamatsu(
    heights: tuple[int, ...], spacing: float, said: str, tmp_path: Path
) -> None:
    """The macro camera's picture aside, as tifffile reads them; heights in stored order."""
    voxels, macro = colours(3, 64, 96), colours(1, 20, 30)[0]
    pages = [(voxels[k], 40.0, heights[k]) for k in range(3)]
    write_ndpi(tmp_path / "a.ndpi", [*pages, (macro, -1.0, 0)])
    with open_volume(str(tmp_path / "a.ndpi")) as reader:
        assert reader.header.axes.letters == "zyxs"
        assert reader.header.grid.spacing == (spacing, 0.25, 0.25)
        notes = " ".join(reader.notes)
        np.testing.assert_array_equal(reader.read(0, slice(0, 3), slice(0, 3)), voxels)
    assert said in notes
    assert ("not evenly stacked" in notes) == bool(said)
    with open_volume(str(tmp_path / "a.ndpi::1")) as reader:
        np.testing.assert_array_equal(reader.read(0, slice(0, 1), slice(0, 3))[0], macro)


def test_hamamatsu_beyond_four_gigabytes(tmp_path: Path) -> None:
    (voxels,) = colours(1, 64, 96)
    macro = (colours(1, 20, 30)[0], -1.0, 0)
    write_ndpi(tmp_path / "a.ndpi", [(voxels, 40.0, 0), macro], start=5 << 30)
    with open_volume(str(tmp_path / "a.ndpi")) as reader:
        np.testing.assert_array_equal(reader.read(0, slice(0, 1), slice(0, 3))[0], voxels)
    with open(tmp_path / "a.ndpi", "r+b") as file:  # sparse
        file.truncate((5 << 30) + 8000)
    with pytest.raises(FormatError, match="truncated"), open_volume(str(tmp_path / "a.ndpi")):
        pass


@pytest.mark.parametrize("name", ["a.ndpi", "renamed.tif"])
def test_hamamatsu_that_breaks_off(name: str, tmp_path: Path) -> None:
    """Wherever it does: in the head, and between the halves of an offset, too."""
    (voxels,) = colours(1, 4, 4)
    write_ndpi(tmp_path / name, [(voxels, 40.0, 0), (voxels, 40.0, 1000)])
    data = (tmp_path / name).read_bytes()
    second = data.rindex(struct.pack("<2H", 18, 256))  # of 18 tags, which begin with the width
    for length in range(4, second + 2):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"not a TIFF file|truncated"):
            read_directories(str(tmp_path / name))


@pytest.mark.parametrize(("overlap", "noted"), [("4", True), ("0", False)])
def test_ventana(overlap: str, noted: bool, tmp_path: Path) -> None:
    voxels, label = colours(1, 64, 96)[0], colours(1, 20, 30)[0]
    xml = f'<M><iScan ScanRes="0.25"/><TileJointInfo OverlapX="{overlap}" OverlapY="0"/></M>'
    xmp = [(700, "B", len(xml), xml.encode(), True)]
    path = tmp_path / "a.bif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        shared = {"photometric": "rgb", "metadata": None, "extratags": xmp}
        file.write(label, description="Label Image", **shared)
        file.write(voxels, tile=(16, 16), description="level=0 mag=40", **shared)
        file.write(voxels[::2, ::2], tile=(16, 16), description="level=1 mag=20", **shared)
    with open_volume(str(path)) as reader:
        np.testing.assert_array_equal(reader.read(0, slice(0, 1), slice(0, 3))[0], voxels)
        assert reader.header.grid.spacing == (1.0, 0.25, 0.25)
        notes = " ".join(reader.notes)
    assert ("tiles overlap" in notes) == noted
    assert "its name is no format's" not in notes


def test_the_levels_of_leica_are_no_pages_left_over(tmp_path: Path) -> None:
    (voxels,) = colours(1, 64, 96)
    levels = '<dimension sizeX="96" sizeY="64" r="0" ifd="0"/>'
    levels += '<dimension sizeX="24" sizeY="16" r="1" ifd="1"/>'
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        '<collection name="c" uuid="u" sizeX="9" sizeY="9"><image name="i" uuid="v">'
        f'<pixels sizeX="96" sizeY="64">{levels}</pixels>'
        '<view sizeX="96" sizeY="64" offsetX="0" offsetY="0"/></image></collection></scn>'
    )
    path = tmp_path / "a.scn"
    shared = {"photometric": "rgb", "metadata": None, "tile": (16, 16)}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        cm = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
        file.write(voxels, description=text, **cm, **shared)
        file.write(voxels[::4, ::4], **shared)
    with open_volume(str(path)) as reader:
        assert reader.notes == ("the file holds 2 levels of resolution: the full one is used",)
        assert reader.header.grid.spacing == (1.0, 0.25, 0.25)
