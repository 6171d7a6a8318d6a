"""TIFF files against tifffile, which writes what is read here and reads what is written."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import LIMIT
from profiles import examples

from conv3d_cli.api.files import convolve_file
from conv3d_cli.errors import FormatError, OutputExistsError, ShapeError, SpecError, WriteError
from conv3d_cli.formats import create_volume, open_volume, read_volume, write_volume
from conv3d_cli.formats.tiff import FORMAT
from conv3d_cli.formats.tiff import format as tiff
from conv3d_cli.model.grid import Grid, Spacing, affine_from_spacing, grid_after
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.model.volume import Array, Axes, Volume, VolumeHeader, VolumeReader

HYPERSTACK = {
    "axes": "TZCYX",
    "spacing": 0.5,
    "unit": "um",
    "xorigin": 3,
    "yorigin": -2.5,
    "zorigin": 1,
    "finterval": 2.5,
    "mode": "composite",
    "min": 0.0,
    "max": 900.0,
    "Ranges": (0.0, 900.0, 0.0, 500.0),
    "Info": "Überschrift\nsecond line",
    "Labels": [f"t{t} z{z} c{c}" for t in range(3) for z in range(4) for c in range(2)],
    "LUTs": [np.full((3, 256), 7, np.uint8), np.full((3, 256), 9, np.uint8)],
}


def values(*shape: int, dtype: Any = np.uint16) -> Array:
    return (np.arange(np.prod(shape)) * 7 % 251).reshape(shape).astype(dtype)


def hyperstack(path: Path, **more: Any) -> Array:
    data = values(3, 4, 2, 6, 5)
    tifffile.imwrite(
        path, data, imagej=True, resolution=((10, 3), (4, 1)), metadata={**HYPERSTACK, **more}
    )
    return data


def imagej_of(path: Path) -> dict[str, Any]:
    with tifffile.TiffFile(path) as file:
        return dict(file.imagej_metadata or {})


def pixels_of(path: Path) -> Any:
    with tifffile.TiffFile(path) as file:
        root = ElementTree.fromstring(str(file.ome_metadata))
    return next(element for element in root.iter() if element.tag.endswith("Pixels"))


def write_like(
    source: Path,
    target: Path,
    transform: VoxelTransform | None = None,
    dtype: Any = None,
    channels: int | None = None,
) -> tuple[str, ...]:
    """Write every step-th voxel of a file as a convolution would; returns the writer's notes."""
    transform = transform or VoxelTransform()
    with open_volume(str(source)) as reader:
        header = reader.header
        n, d, _, _, c = header.shape
        data = np.stack([reader.read(i, slice(0, d), slice(0, c)) for i in range(n)])
    dz, dy, dx = transform.step
    data = data[:, ::dz, ::dy, ::dx, :channels].astype(dtype or header.dtype)
    letters = tiff.output_letters(header.axes.letters, c, data.dtype)
    sizes = {"z": data.shape[1], "y": data.shape[2], "x": data.shape[3], "c": data.shape[4]}
    out = replace(
        header,
        axes=header.axes.renamed(letters, sizes),
        dtype=data.dtype,
        grid=grid_after(header.grid, transform),
        transform=transform,
    )
    with create_volume(str(target), out) as writer:
        for i in range(n):
            writer.write(i, 0, 0, data[i])
        writer.commit()
    return (*writer.remarks, *writer.notes)


def whole(reader: VolumeReader) -> Array:
    n, d, _, _, c = reader.header.shape
    return np.stack([reader.read(i, slice(0, d), slice(0, c)) for i in range(n)])


# --------------------------------------------------------------------------------------------------
# Reading


STORED = {
    "plain": (values(4, 6, 5), "zyx", {"metadata": None}),
    "big-endian": (values(4, 6, 5), "zyx", {"metadata": None, "byteorder": ">"}),
    "BigTIFF": (values(4, 6, 5), "zyx", {"bigtiff": True}),
    "single page": (values(6, 5), "yx", {"metadata": None}),
    "float64": (values(4, 6, 5, dtype=np.float64), "zyx", {}),
    "int32": (values(4, 6, 5, dtype=np.int32), "zyx", {"metadata": None}),
    "named": (values(2, 3, 4, 6, 5), "ctzyx", {"metadata": {"axes": "CTZYX"}}),
    "named size 1": (values(1, 4, 6, 5), "tzyx", {"metadata": {"axes": "TZYX"}}),
    "unknown letters": (values(2, 3, 6, 5), "rzyx", {"metadata": {"axes": "RZYX"}}),
    "deflate": (
        values(4, 60, 50),
        "zyx",
        {"compression": "zlib", "rowsperstrip": 7, "metadata": None},
    ),
    "deflate, predictor": (values(4, 60, 50), "zyx", {"compression": "zlib", "predictor": 2}),
    "deflate, big-endian": (values(4, 6, 5), "zyx", {"compression": "zlib", "byteorder": ">"}),
    "tiles": (values(3, 40, 50, dtype=np.float32), "zyx", {"tile": (16, 16), "metadata": None}),
    "deflated tiles": (values(3, 40, 50), "zyx", {"tile": (16, 32), "compression": "zlib"}),
    "volume in a page": (
        values(32, 32, 16),
        "zyx",
        {"volumetric": True, "tile": (16, 16, 16), "compression": "zlib"},
    ),
    "RGB": (values(4, 6, 5, 3, dtype=np.uint8), "zyxs", {"photometric": "rgb"}),
    "RGB, deflate": (
        values(4, 6, 5, 3, dtype=np.uint8),
        "zyxs",
        {"photometric": "rgb", "compression": "zlib"},
    ),
    "RGB plane": (values(6, 5, 3, dtype=np.uint8), "yxs", {"photometric": "rgb", "metadata": None}),
    "samples apart": (
        values(4, 3, 6, 5, dtype=np.uint8),
        "zsyx",
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "metadata": None},
    ),
}


@pytest.mark.parametrize("kind", STORED)
def test_reads_what_tifffile_writes(tmp_path: Path, kind: str) -> None:
    data, letters, options = STORED[kind]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, **{"photometric": "minisblack", **options})
    with open_volume(str(path)) as reader:
        assert (reader.header.axes.letters, reader.header.axes.shape) == (letters, data.shape)
        assert reader.header.dtype == data.dtype
        assert reader.header.dtype.isnative
        assert reader.header.format == "TIFF"
        assert reader.header.grid.spacing is None
        assert not reader.sequential
    np.testing.assert_array_equal(read_volume(str(path)).data, data)


@pytest.mark.parametrize(
    "kind", ["plain", "deflate", "samples apart", "volume in a page", "deflated tiles"]
)
def test_reads_any_planes_in_any_order(tmp_path: Path, kind: str) -> None:
    data, letters, options = STORED[kind]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, **{"photometric": "minisblack", **options})
    axes = Axes(letters, data.shape)
    n, depth, _, _, channels = axes.canonical_shape
    with open_volume(str(path)) as reader:
        for start, stop in ((depth - 1, depth), (0, 1), (1, 3), (0, depth), (2, 2)):
            for c in range(channels):
                planes, one = slice(start, stop), slice(c, c + 1)
                np.testing.assert_array_equal(
                    reader.read(0, planes, one), axes.block(data, 0, planes, one)
                )
            reader.release(0, start)
    assert n == 1


def test_float16_is_handed_out_as_float32(tmp_path: Path) -> None:
    data = values(4, 6, 5, dtype=np.float16)
    for name, options in (("a.tif", {}), ("b.tif", {"compression": "zlib"})):
        tifffile.imwrite(tmp_path / name, data, photometric="minisblack", **options)
        with open_volume(str(tmp_path / name)) as reader:
            assert reader.header.dtype == np.float32
            np.testing.assert_array_equal(whole(reader)[0, ..., 0], data.astype(np.float32))


def test_truth_values_are_unpacked(tmp_path: Path) -> None:
    data = values(4, 6, 5) % 2 == 0
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.tif")).data, data)


def test_unnamed_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(2, 3, 6, 5), photometric="minisblack")
    with open_volume(str(path)) as reader:
        assert reader.header.axes.letters == "tzyx"
        assert any("axes=" in note for note in reader.notes)
    with open_volume(str(path), channels_first=True) as reader:
        assert reader.header.axes.letters == "czyx"
    with open_volume(str(path), axes="zcyx") as reader:
        assert reader.header.shape == (1, 2, 6, 5, 3)
    with pytest.raises(
        FormatError, match=r"axes='zyx' names 3 axes, it has 4: shape \(2, 3, 6, 5\)"
    ):
        open_volume(str(path), axes="zyx")
    with pytest.raises(SpecError, match="different letters"):
        open_volume(str(path), axes="zzyx")


def test_given_axes_may_name_axes_of_size_one(tmp_path: Path) -> None:
    data = values(1, 4, 1, 6, 5)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TZCYX"})
    with open_volume(str(tmp_path / "a.tif")) as reader:
        assert reader.header.axes.letters == "zyx"
    with open_volume(str(tmp_path / "a.tif"), axes="tyx") as reader:
        assert reader.header.shape == (4, 1, 6, 5, 1)
    with open_volume(str(tmp_path / "a.tif"), axes="czatyx") as reader:
        assert reader.header.axes.shape == (1, 4, 1, 6, 5, 1)


def test_first_series_is_used_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(values(4, 6, 5), photometric="minisblack")
        writer.write(values(3, 7, 8), photometric="minisblack")
    with open_volume(str(path)) as reader:
        assert reader.header.axes.shape == (4, 6, 5)
        assert reader.notes == (
            "the file holds 2 image series: number 0 is used, shape (4, 6, 5); "
            f"{path}::1 names another",
        )
    pyramid = tmp_path / "pyramid.ome.tif"
    with tifffile.TiffWriter(pyramid) as writer:
        writer.write(
            values(4, 64, 64), subifds=1, photometric="minisblack", metadata={"axes": "ZYX"}
        )
        writer.write(
            values(4, 32, 32), subfiletype=1, photometric="minisblack", metadata={"axes": "ZYX"}
        )
    with open_volume(str(pyramid)) as reader:
        assert reader.header.axes.shape == (4, 64, 64)
        assert any("2 levels" in note for note in reader.notes)


def test_what_a_viewer_would_show_otherwise_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(4, 6, 5), photometric="miniswhite", metadata=None)
    with open_volume(str(path)) as reader:
        assert "shows 0 as white" in reader.notes[0]
    table = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(
        path, values(4, 6, 5, dtype=np.uint8), photometric="palette", colormap=table, metadata=None
    )
    with open_volume(str(path)) as reader:
        assert "a table of colours" in reader.notes[0]


def test_imagej_hyperstack(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = hyperstack(path)
    with open_volume(str(path)) as reader:
        header = reader.header
        assert header.axes == Axes("tzcyx", (3, 4, 2, 6, 5))
        assert header.grid.spacing == (0.5, 0.25, 0.3)
        assert header.grid.unit == "um"
        np.testing.assert_allclose(header.grid.world((1, -2.5, 3)), 0, atol=1e-12)
        assert reader.notes == ()
    np.testing.assert_array_equal(read_volume(str(path)).data, data)


@pytest.mark.parametrize(
    ("unit", "known"),
    [
        ("micron", "um"),
        ("\\u00B5m", "um"),
        ("um", "um"),
        ("nm", "nm"),
        ("mm", "mm"),
        ("pixel", None),
        ("furlong", None),
    ],
)
def test_imagej_units(tmp_path: Path, unit: str, known: str | None) -> None:
    path = tmp_path / "a.tif"
    options = {"imagej": True, "resolution": (2, 2)}
    tifffile.imwrite(
        path, values(4, 6, 5), metadata={"axes": "ZYX", "spacing": 3.0, "unit": unit}, **options
    )
    with open_volume(str(path)) as reader:
        assert reader.header.grid.unit == known
        # without a unit it still tells the proportions
        assert reader.header.grid.spacing == (
            3.0,
            0.5,
            0.5,
        )
    write_like(path, tmp_path / "b.tif")
    assert imagej_of(tmp_path / "b.tif")["unit"] == unit


def test_imagej_without_calibration(tmp_path: Path) -> None:
    for name, unit in (("a.tif", {}), ("b.tif", {"unit": "pixel"})):
        tifffile.imwrite(
            tmp_path / name, values(4, 6, 5), imagej=True, metadata={"axes": "ZYX", **unit}
        )
        with open_volume(str(tmp_path / name)) as reader:
            grid = reader.header.grid
            assert (grid.spacing, grid.unit, grid.affine) == (None, None, None)


def test_imagej_units_of_single_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": 500, "unit": "um", "zunit": "nm", "yunit": "mm"}
    tifffile.imwrite(path, values(4, 6, 5), imagej=True, resolution=(2, 2000), metadata=metadata)
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == (0.5, 0.5, 0.5)
    write_like(path, tmp_path / "b.tif", VoxelTransform((2, 1, 1)))
    written = imagej_of(tmp_path / "b.tif")
    assert (written["spacing"], written["unit"], written["yunit"], written["zunit"]) == (
        1000,
        "um",
        "mm",
        "nm",
    )
    with open_volume(str(tmp_path / "b.tif")) as reader:
        assert reader.header.grid.spacing == (1.0, 0.5, 0.5)


def test_imagej_without_z_spacing_takes_one_unit_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        values(4, 6, 5),
        imagej=True,
        resolution=(4, 4),
        metadata={"axes": "ZYX", "unit": "um"},
    )
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == (1.0, 0.25, 0.25)
        assert reader.notes == ("the file gives no z spacing: it is 1 um, as in ImageJ",)


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [((72, 72), 2, None), ((100, 100), 3, 0.01), ((254, 254), 2, 0.1)],
)
def test_imagej_takes_its_unit_from_the_resolution_tag(
    tmp_path: Path, resolution: Any, unit: int, spacing: float | None
) -> None:
    path = tmp_path / "a.tif"
    options = {"imagej": True, "resolution": resolution, "resolutionunit": unit}
    tifffile.imwrite(path, values(4, 6, 5), metadata={"axes": "ZYX"}, **options)
    with open_volume(str(path)) as reader:
        assert (reader.header.grid.spacing or (0, 0, None))[2] == (
            None if spacing is None else pytest.approx(spacing)
        )


@pytest.mark.parametrize("imagej", [True, False])
@pytest.mark.parametrize(
    ("resolution", "tag", "unit", "pixel", "noted"),
    [
        (1e5, 3, "um", 0.1, True),  # ImageJ multiplies by 10,000; for Bio-Formats the tag counts
        (1e5, 3, "nm", 100, True),
        (1e5, 3, "mm", 1e-4, True),
        (254000, 2, "um", 0.1, True),
        (10, 2, "um", 0.1, False),  # tifffile wrote a tag of inches unasked
        (10, 1, "um", 0.1, False),
        (10, 3, "cm", 0.1, False),
        (10, 3, "pixel", 0.1, False),
    ],
)
def test_units_of_tag_and_description_that_contradict(
    tmp_path: Path, imagej: bool, resolution: float, tag: int, unit: str, pixel: float, noted: bool
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        values(4, 6, 5),
        imagej=imagej,
        resolution=(resolution, resolution),
        resolutionunit=tag,
        metadata={"axes": "ZYX", "unit": unit, "spacing": 5 * pixel},
        photometric="minisblack",
    )
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == pytest.approx((5 * pixel, pixel, pixel))
        assert [note for note in reader.notes if "resolution is per" in note] == (
            list(reader.notes) if noted else []
        )
        assert bool(reader.notes) == noted
    write_like(path, tmp_path / "b.tif")
    with open_volume(str(tmp_path / "b.tif")) as reader:
        assert reader.header.grid.spacing == pytest.approx((5 * pixel, pixel, pixel))
        assert reader.notes == ()


@pytest.mark.parametrize(("spacing", "depth"), [({"spacing": 0.5}, 0.5), ({}, 1.0)])
def test_centimetres_of_a_tag_say_nothing_of_z(
    tmp_path: Path, spacing: dict[str, float], depth: float
) -> None:
    """ImageJ takes pixels of at most 0.001 cm in micron, and leaves a depth of 1 as it is."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        values(4, 6, 5),
        imagej=True,
        resolution=(1e5, 1e5),
        resolutionunit=3,
        metadata={"axes": "ZYX", **spacing},
    )
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == (depth, 0.1, 0.1)
        assert reader.header.grid.unit == "um"
        assert reader.header.grid.assumed == {"d"}
        assert len(reader.notes) == 1
    with open_volume(str(path), spacing=Spacing((0.7, 0.1, 0.1), "um")) as reader:
        assert reader.header.grid.spacing == pytest.approx((0.7, 0.1, 0.1))
        assert reader.notes == ()


def test_the_default_of_72_dots_per_inch_is_no_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        values(4, 6, 5),
        imagej=True,
        resolution=(72, 72),
        resolutionunit=2,
        metadata={"axes": "ZYX", "unit": "um", "spacing": 2},
    )
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == (2, 1, 1)
        assert reader.header.grid.assumed == {"h", "w"}
        assert reader.notes == ("the file gives no pixel size: it is 1 um, as in ImageJ",)


def test_print_resolution_of_a_plain_file_is_no_voxel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for unit in (1, 2, 3):
        options = {"resolution": (300, 300), "resolutionunit": unit, "metadata": None}
        tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack", **options)
        with open_volume(str(path)) as reader:
            assert reader.header.grid.spacing is None


def test_imagej_signed_voxels_stored_as_unsigned(tmp_path: Path) -> None:
    # ImageJ keeps 16-bit voxels unsigned and writes what must be added: as users see it, these are
    # -100 and up
    path = tmp_path / "a.tif"
    stored = values(4, 6, 5) + 32668
    metadata = {"axes": "ZYX", "cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "gray value"}
    tifffile.imwrite(path, stored.astype(np.uint16), imagej=True, metadata=metadata)
    with open_volume(str(path)) as reader:
        assert reader.header.scale == (1.0, -32768.0)
    np.testing.assert_array_equal(read_volume(str(path)).data, stored.astype(np.float32) - 32768)
    tifffile.imwrite(path, values(4, 6, 5, dtype=np.int16), imagej=True, metadata=metadata)
    with open_volume(str(path)) as reader:
        assert reader.header.scale == (1.0, 0.0)


@pytest.mark.parametrize("function", [1, 4, 6, 13, 21])
def test_a_calibration_of_imagej_by_a_curve_is_told(tmp_path: Path, function: int) -> None:
    """Functions 1 to 13 of ImageJ's Calibration are curves, 21 is the uncalibrated density."""
    path = tmp_path / "a.tif"
    curve = {"axes": "ZYX", "cf": function, "c0": 1.0, "c1": 0.5, "vunit": "OD"}
    tifffile.imwrite(path, values(4, 6, 5).astype(np.uint8), imagej=True, metadata=curve)
    with open_volume(str(path)) as reader:
        assert reader.header.scale == (1.0, 0.0)
        words = f"ImageJ shows its values by a curve (calibration function {function}, in OD)"
        assert sum(note.startswith(words) for note in reader.notes) == 1
    for other in ({**curve, "cf": 20}, {k: v for k, v in curve.items() if k != "vunit"}):
        tifffile.imwrite(path, values(4, 6, 5).astype(np.uint8), imagej=True, metadata=other)
        with open_volume(str(path)) as reader:
            assert not any("curve" in note for note in reader.notes)


def test_imagej_above_4_gb_has_one_page(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    shape = (2200, 1000, 1000)
    with warnings.catch_warnings():
        # tifffile says that it writes one page for all, as ImageJ does
        warnings.simplefilter("ignore")
        with tifffile.TiffWriter(path, imagej=True) as writer:
            offset, _ = writer.write(
                shape=shape,
                dtype=np.uint16,
                photometric="minisblack",
                metadata={"axes": "ZYX"},
                returnoffset=True,
            )
    assert path.stat().st_size > 2**32
    with open(path, "r+b") as file:  # a hole in the file: nearly nothing of it is on the disk
        os.pwrite(file.fileno(), b"\x39\x30", offset + (2199 * 1000 * 1000 + 5 * 1000 + 7) * 2)
    with open_volume(str(path)) as reader:
        assert reader.header.axes.shape == shape
        assert reader.read(0, slice(2199, 2200), slice(0, 1))[0, 5, 7, 0] == 12345


OME = {
    "axes": "TCZYX",
    "PhysicalSizeX": 250.0,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 0.25,
    "PhysicalSizeYUnit": "µm",
    "PhysicalSizeZ": 0.5,
    "PhysicalSizeZUnit": "µm",
    "TimeIncrement": 3.0,
    "TimeIncrementUnit": "s",
    "Name": "embryo <7>",
    "Description": "made & kept",
    "Channel": {"Name": ["DAPI", "GFP"], "Color": [-1, 255]},
}


def test_ome_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    data = values(3, 2, 4, 6, 5)
    tifffile.imwrite(path, data, photometric="minisblack", metadata=OME)
    with open_volume(str(path)) as reader:
        assert reader.header.axes == Axes("tczyx", (3, 2, 4, 6, 5))
        assert reader.header.grid.unit == "nm"
        assert reader.header.grid.spacing == (500.0, 250.0, 250.0)
    np.testing.assert_array_equal(read_volume(str(path)).data, data)


def test_ome_positions_are_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    planes = {
        "PositionX": [10.0] * 4,
        "PositionY": [-2.0] * 4,
        "PositionZ": [5.0, 5.5, 6.0, 6.5],
        **{f"Position{a}Unit": ["µm"] * 4 for a in "XYZ"},
    }
    metadata = {"axes": "ZYX", **{f"PhysicalSize{a}": 0.5 for a in "XYZ"}, "Plane": planes}
    tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack", metadata=metadata)
    with open_volume(str(path)) as reader:
        np.testing.assert_allclose(reader.header.grid.world((0, 0, 0)), [10, -2, 5])
    write_like(path, tmp_path / "b.ome.tif", VoxelTransform((2, 1, 2), (1.0, 0.5, 0.0)))
    with open_volume(str(tmp_path / "b.ome.tif")) as reader:
        np.testing.assert_allclose(reader.header.grid.world((0, 0, 0)), [10, -1.75, 5.5])
        assert reader.header.grid.spacing == (1.0, 0.5, 1.0)
    planes["PositionX"] = [10.0, 10.0, 99.0, 10.0]  # tiles of a mosaic, not a stack
    tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack", metadata=metadata)
    with open_volume(str(path)) as reader:
        np.testing.assert_allclose(reader.header.grid.world((0, 0, 0)), [0, 0, 0])


def test_ome_without_z_spacing(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2}
    tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack", metadata=metadata)
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == (1.0, 0.2, 0.1)
        assert reader.notes == ("the file gives no z spacing: it is taken as 1 um",)


@pytest.mark.parametrize(
    ("sizes", "spacing"),
    [
        ({"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "Å"}, (0.1, 0.05, 0.05)),
        ({"PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "mm"}, (1.0, 0.5, 0.5)),
        (
            {"PhysicalSizeX": 0.0, "PhysicalSizeY": 250.0, "PhysicalSizeYUnit": "nm"},
            (1.0, 250.0, 250.0),
        ),
    ],
)
def test_ome_with_one_pixel_size(
    tmp_path: Path, sizes: dict[str, Any], spacing: tuple[float, ...]
) -> None:
    """A pixel is a square: the other size takes the unit along with the number."""
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "ZYX", **sizes}
    tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack", metadata=metadata)
    with open_volume(str(path)) as reader:
        np.testing.assert_allclose(reader.header.grid.spacing, spacing)
        assert "spacing: it is taken as that of" in reader.notes[0]


@pytest.mark.parametrize(
    ("unit", "notes"),
    [
        ("foo", ["its unit 'foo' is unknown: its spacing has no unit"]),
        ("pixel", []),
        ("reference frame", []),
        ("mm", []),
    ],
)
def test_ome_unknown_units_are_told(tmp_path: Path, unit: str, notes: list[str]) -> None:
    path = tmp_path / "a.ome.tif"
    metadata: dict[str, Any] = {"axes": "ZYX"}
    for letter in "XYZ":
        metadata |= {f"PhysicalSize{letter}": 0.5, f"PhysicalSize{letter}Unit": unit}
    tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack", metadata=metadata)
    with open_volume(str(path)) as reader:
        assert reader.header.grid.spacing == (0.5, 0.5, 0.5)
        assert reader.header.grid.unit == ("mm" if unit == "mm" else None)
        assert list(reader.notes) == notes


def test_ome_spread_over_two_files(tmp_path: Path) -> None:
    data = values(4, 6, 5)
    names = ("first.ome.tif", "second.ome.tif")
    parts = "".join(
        (
            f'<TiffData FirstZ="{2 * i}" IFD="0" PlaneCount="2"><UUID '
            f'FileName="{name}">urn:uuid:{i}</UUID></TiffData>'
        )
        for i, name in enumerate(names)
    )
    for i, name in enumerate(names):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{i}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="5" SizeY="6" '
            'SizeZ="4" SizeC="1" SizeT="1">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
        )
        options = {
            "description": xml,
            "metadata": None,
            "photometric": "minisblack",
            "compression": "zlib",
        }
        with tifffile.TiffWriter(tmp_path / name, ome=False) as writer:
            writer.write(data[2 * i : 2 * i + 2], **options)
    with open_volume(str(tmp_path / names[0])) as reader:
        np.testing.assert_array_equal(whole(reader)[0, ..., 0], data)
        np.testing.assert_array_equal(reader.read(0, slice(0, 1), slice(0, 1))[0, ..., 0], data[0])
    (tmp_path / names[1]).unlink()
    with pytest.raises(FormatError, match="2 of its 4 planes are missing"):
        open_volume(str(tmp_path / names[0]))


def test_json_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for metadata, options in (
        ({"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 0.3}, {}),
        ({"spacing": 0.3, "unit": "um"}, {"resolution": (10, 5)}),
        ({"spacing": [0.3, 0.2, 0.1], "unit": "um"}, {}),
    ):
        tifffile.imwrite(
            path,
            values(4, 6, 5),
            photometric="minisblack",
            metadata={"axes": "ZYX", **metadata},
            **options,
        )
        with open_volume(str(path)) as reader:
            assert (reader.header.grid.spacing, reader.header.grid.unit) == ((0.3, 0.2, 0.1), "um")


def test_only_the_pages_asked_for_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    data = np.random.default_rng(1).integers(0, 255, (40, 400, 500), np.uint8)
    tifffile.imwrite(
        path, data, compression="zlib", photometric="minisblack", metadata={"axes": "ZYX"}
    )
    decoded = []
    original = tifffile.TiffPage.asarray

    def asarray(page: Any, **options: Any) -> Array:
        decoded.append(page.index)
        return np.asarray(original(page, **options))

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with open_volume(str(path)) as reader:
        assert decoded == []
        tracemalloc.start()
        block = reader.read(0, slice(30, 32), slice(0, 1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(block[..., 0], data[30:32])
    assert sorted(decoded) == [30, 31]
    assert peak < data.nbytes / 4


def test_a_page_of_several_channels_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _, options = STORED["samples apart"]
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    decoded = []
    original = tifffile.TiffPage.asarray

    def asarray(page: Any, **options: Any) -> Array:
        decoded.append(page.index)
        return np.asarray(original(page, **options))

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with open_volume(str(tmp_path / "a.tif")) as reader:
        for z in range(4):
            for c in range(3):
                reader.read(0, slice(z, z + 1), slice(c, c + 1))
    assert decoded == [0, 1, 2, 3]


def test_tifffile_keeps_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(4, 6, 5), photometric="minisblack")
    path.write_bytes(path.read_bytes().replace(b'"shape": [4', b'"shape": [7'))
    with pytest.raises(FormatError):
        open_volume(str(path))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("tifffile").filters == []


# --------------------------------------------------------------------------------------------------
# Damage


def damaged(tmp_path: Path, content: bytes, name: str = "bad.tif") -> str:
    """The message of the error that reading such a file ends with.

    It must be one line and name the file.
    """
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_volume(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    "content", [b"", b"I", b"II*\0", b"II*\0\0\0\0\0", b"not a TIFF file at all", b"\0" * 500]
)
def test_files_that_are_no_tiff(tmp_path: Path, content: bytes) -> None:
    damaged(tmp_path, content)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        open_volume(str(tmp_path / "none.tif"))
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(FormatError, match="folder"):
        open_volume(str(tmp_path / "folder.tif"))


TRUNCATED: dict[str, dict[str, Any]] = {
    "imagej": {"imagej": True, "metadata": {"axes": "TZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "TZYX"}},
    "ome, deflate": {"ome": True, "metadata": {"axes": "TZYX"}, "compression": "zlib"},
    "shaped": {"metadata": {"axes": "TZYX"}},
    "shaped, deflate": {"metadata": {"axes": "TZYX"}, "compression": "zlib", "rowsperstrip": 3},
    "plain": {"metadata": None},
    "plain, BigTIFF": {"metadata": None, "bigtiff": True},
    "plain, tiles": {"metadata": None, "tile": (16, 16), "compression": "zlib"},
}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_a_truncated_file_is_never_read_as_a_shorter_one(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "whole.tif"
    data = values(2, 3, 20, 18)
    tifffile.imwrite(path, data, photometric="minisblack", **TRUNCATED[kind])
    content = path.read_bytes()
    size = len(content)
    cuts = {*range(1, size, max(1, size // 60)), *range(size - 30, size)}
    for cut in cuts:
        short = tmp_path / "short.tif"
        short.write_bytes(content[:cut])
        try:
            read = read_volume(str(short)).data
        except FormatError:
            continue
        assert size - cut < 30  # only bytes that nothing points to were lost
        np.testing.assert_array_equal(read.reshape(data.shape), data)


def directories(content: bytes) -> list[int]:
    """Offsets of the page directories of a little-endian classic TIFF file."""
    found = []
    (offset,) = struct.unpack("<I", content[4:8])
    while offset:
        found.append(offset)
        (count,) = struct.unpack("<H", content[offset : offset + 2])
        (offset,) = struct.unpack("<I", content[offset + 2 + 12 * count :][:4])
    return found


def changed(content: bytes, page: int, tag: int, value: int) -> bytes:
    """The file with another value in a tag of a page."""
    result = bytearray(content)
    offset = directories(content)[page]
    (count,) = struct.unpack("<H", content[offset : offset + 2])
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        code, kind = struct.unpack("<HH", content[entry : entry + 4])
        if code == tag:
            result[entry + 8 : entry + 12] = struct.pack(
                "<HH" if kind == 3 else "<I", *((value, 0) if kind == 3 else (value,))
            )
            return bytes(result)
    raise AssertionError(f"no tag {tag}")


def plain_file(tmp_path: Path, **options: Any) -> bytes:
    path = tmp_path / "good.tif"
    tifffile.imwrite(
        path, values(5, 20, 18), photometric="minisblack", **{"metadata": None, **options}
    )
    return path.read_bytes()


@pytest.mark.parametrize("back_to", [0, 2])
def test_circle_of_directories(tmp_path: Path, back_to: int) -> None:
    content = plain_file(tmp_path)
    places = directories(content)
    (count,) = struct.unpack("<H", content[places[-1] : places[-1] + 2])
    last = places[-1] + 2 + 12 * count
    circle = content[:last] + struct.pack("<I", places[back_to]) + content[last + 4 :]
    assert "circle" in damaged(tmp_path, circle)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}])
def test_pages_larger_than_the_file(tmp_path: Path, options: dict[str, Any]) -> None:
    content = plain_file(tmp_path, **options)
    tracemalloc.start()
    for tag in (256, 257):
        for size in (1 << 14, 1 << 31):
            lie = content
            for page in range(5):
                lie = changed(lie, page, tag, size)
            damaged(tmp_path, lie)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_pages_that_differ(tmp_path: Path) -> None:
    content = plain_file(tmp_path)
    for tag, value in ((256, 9), (258, 8), (259, 8), (278, 7)):
        damaged(tmp_path, changed(content, 3, tag, value))


def test_a_stack_with_a_thumbnail_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(values(4, 6, 5), photometric="minisblack", metadata=None)
        writer.write(values(3, 2), photometric="minisblack", metadata=None)
    with open_volume(str(path)) as reader:
        assert reader.header.axes == Axes("zyx", (4, 6, 5))
        assert "2 image series" in reader.notes[0]


def test_strips_out_of_place(tmp_path: Path) -> None:
    for options in ({}, {"compression": "zlib"}):
        content = plain_file(tmp_path, **options)
        assert "page 3" in damaged(tmp_path, changed(content, 2, 273, len(content) - 5))
        damaged(tmp_path, changed(content, 2, 273, 0))
    assert "claims" in damaged(tmp_path, changed(plain_file(tmp_path), 0, 279, 11))
    assert "page 3" in damaged(
        tmp_path, changed(plain_file(tmp_path, compression="zlib"), 2, 279, 11)
    )


def test_compressed_voxels_that_are_damaged(tmp_path: Path) -> None:
    content = bytearray(plain_file(tmp_path, compression="zlib"))
    with tifffile.TiffFile(tmp_path / "good.tif") as file:
        offset = file.pages[3].dataoffsets[0]
    content[offset + 10 : offset + 20] = bytes(10)
    assert "page 4" in damaged(tmp_path, bytes(content))


def test_descriptions_that_promise_too_much(tmp_path: Path) -> None:
    imagej = plain_file(tmp_path, imagej=True, metadata={"axes": "ZYX"})
    for slices in (b"slices=7", b"slices=9"):
        damaged(tmp_path, imagej.replace(b"slices=5", slices))
    shaped = plain_file(tmp_path, metadata={"axes": "ZYX"})
    damaged(tmp_path, shaped.replace(b'"shape": [5, ', b'"shape": [9, '))
    assert damaged(tmp_path, shaped.replace(b'"shape": [5, ', b'"shape": [9, '))


def ome_file(
    path: Path, pages: list[Array], size_z: str = "2", count: str = "2", tag: str = "TiffData"
) -> bytes:
    """A file of any pages with OME-XML that says what it likes."""
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
        'ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint16" SizeX="5" SizeY="6" SizeZ="{size_z}" SizeC="1" '
        f'SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/><{tag} IFD="0" '
        f'PlaneCount="{count}"/></Pixels></Image></OME>'
    )
    with tifffile.TiffWriter(path, ome=False) as writer:
        for page in pages:
            writer.write(page, description=xml, metadata=None)
    return path.read_bytes()


def test_ome_descriptions_that_promise_too_much(tmp_path: Path) -> None:
    path = tmp_path / "bad.ome.tif"
    page = values(6, 5)
    ome_file(path, [page, page])
    assert read_volume(str(path)).data.shape == (2, 6, 5)
    assert "missing" in damaged(tmp_path, ome_file(path, [page, page], size_z="9"))
    tracemalloc.start()
    for lie in ({"size_z": "5000000000"}, {"count": "99999999999"}):
        assert "planes" in damaged(tmp_path, ome_file(path, [page, page], **lie))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert "axes=" in damaged(tmp_path, ome_file(path, [page, page], tag="Other"))
    assert read_volume(str(tmp_path / "bad.tif"), axes="zyx").data.shape == (2, 6, 5)
    for other in (page[:, :4], page[:3], page.astype(np.uint8), page.astype(np.int16)):
        damaged(tmp_path, ome_file(path, [page, other]))


def test_codecs_that_are_not_installed(tmp_path: Path) -> None:
    content = plain_file(tmp_path, compression="zlib")
    for page in range(5):
        content = changed(content, page, 259, 34887)  # LERC
    (tmp_path / "bad.tif").write_bytes(content)
    with open_volume(str(tmp_path / "bad.tif")) as reader:  # its header can be told all the same
        assert reader.header.axes.shape == (5, 20, 18)
    if 34887 not in tifffile.TIFF.DECOMPRESSORS:
        assert "pip install 'conv3d[tiff]'" in damaged(tmp_path, content)


def test_complex_voxels(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", values(4, 6, 5, dtype=np.complex64), photometric="minisblack"
    )
    with pytest.raises(FormatError, match="complex"):
        open_volume(str(tmp_path / "a.tif"))


# --------------------------------------------------------------------------------------------------
# Writing


def test_imagej_file_comes_back_as_it_was(tmp_path: Path) -> None:
    data = hyperstack(tmp_path / "a.tif")
    assert write_like(tmp_path / "a.tif", tmp_path / "b.tif") == ()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), data)
    before, after = imagej_of(tmp_path / "a.tif"), imagej_of(tmp_path / "b.tif")
    for key in (
        "channels",
        "slices",
        "frames",
        "images",
        "spacing",
        "unit",
        "finterval",
        "mode",
        "Info",
        "Labels",
    ):
        assert after[key] == before[key], key
    assert (after["xorigin"], after["yorigin"], after["zorigin"]) == (3, -2.5, 1)
    np.testing.assert_array_equal(after["LUTs"], before["LUTs"])
    assert not {"min", "max", "Ranges"} & after.keys()  # display ranges fit the input only
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.series[0].axes == "TZCYX"
        assert file.pages[0].tags[282].value == (10, 3)
        assert file.pages[0].tags[283].value == (4, 1)


def test_imagej_after_strides(tmp_path: Path) -> None:
    data = hyperstack(tmp_path / "a.tif")
    transform = VoxelTransform((2, 1, 2), (1.0, 0.5, 0.0))
    write_like(tmp_path / "a.tif", tmp_path / "b.tif", transform)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), data[:, ::2, :, :, ::2])
    after = imagej_of(tmp_path / "b.tif")
    assert after["spacing"] == 1.0
    # new origin = (old origin - offset) / step: the world's zero stays where it is
    assert after.get("zorigin", 0) == (1 - 1) / 2
    assert after["yorigin"] == -2.5 - 0.5
    assert after["xorigin"] == 3 / 2
    assert after["Labels"] == [
        f"t{t} z{z} c{c}" for t in range(3) for z in (1, 3) for c in range(2)
    ]
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].tags[282].value == (5, 3)
    half = VoxelTransform((2, 1, 1), (0.5, 0.0, 0.0))
    write_like(tmp_path / "a.tif", tmp_path / "c.tif", half)
    # the output's slices lie between the labelled ones
    assert "Labels" not in imagej_of(tmp_path / "c.tif")


def test_imagej_with_other_channels_loses_their_colours(tmp_path: Path) -> None:
    hyperstack(tmp_path / "a.tif")
    write_like(tmp_path / "a.tif", tmp_path / "b.tif", channels=1)
    assert not {"LUTs", "Labels"} & imagej_of(tmp_path / "b.tif").keys()


def test_ome_file_comes_back_as_it_was(tmp_path: Path) -> None:
    data = values(3, 2, 4, 6, 5)
    tifffile.imwrite(tmp_path / "a.ome.tif", data, photometric="minisblack", metadata=OME)
    write_like(tmp_path / "a.ome.tif", tmp_path / "b.ome.tiff", dtype=np.float64)
    with tifffile.TiffFile(tmp_path / "b.ome.tiff") as file:
        assert (file.series[0].kind, file.series[0].axes) == ("ome", "TCZYX")  # its own order
        np.testing.assert_array_equal(file.asarray(), data)
        xml = str(file.ome_metadata)
    assert "UUID" not in xml
    assert 'Name="embryo &lt;7&gt;"' in xml
    assert "made &amp; kept" in xml
    pixels = pixels_of(tmp_path / "b.ome.tiff")
    assert pixels.get("Type") == "double"
    for key, value in OME.items():
        if key.startswith(("PhysicalSize", "TimeIncrement")):
            assert pixels.get(key) == str(value)
    channels = [element for element in pixels if element.tag.endswith("Channel")]
    assert [(c.get("Name"), c.get("Color")) for c in channels] == [("DAPI", "-1"), ("GFP", "255")]


def test_ome_after_strides(tmp_path: Path) -> None:
    data = values(3, 2, 4, 6, 5)
    tifffile.imwrite(tmp_path / "a.ome.tif", data, photometric="minisblack", metadata=OME)
    write_like(
        tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", VoxelTransform((2, 3, 1), (1.0, 0.0, 0.0))
    )
    pixels = pixels_of(tmp_path / "b.ome.tif")
    assert [pixels.get(f"Size{a}") for a in "XYZCT"] == ["5", "2", "2", "2", "3"]
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit")) == ("250.0", "nm")
    assert (pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit")) == ("0.75", "µm")
    assert (pixels.get("PhysicalSizeZ"), pixels.get("PhysicalSizeZUnit")) == ("1.0", "µm")
    planes = [element for element in pixels if element.tag.endswith("Plane")]
    assert [plane.get("PositionZ") for plane in planes[:2]] == ["0.5", "1.5"]
    with open_volume(str(tmp_path / "b.ome.tif")) as reader:
        np.testing.assert_allclose(reader.header.grid.world((0, 0, 0)), [0, 0, 500])


def test_from_ome_to_imagej_and_back(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", values(3, 2, 4, 6, 5), photometric="minisblack", metadata=OME
    )
    write_like(tmp_path / "a.ome.tif", tmp_path / "b.tif")
    after = imagej_of(tmp_path / "b.tif")
    assert (after["finterval"], after["unit"], after["spacing"]) == (3.0, "nm", 500.0)
    assert after["Labels"] == ["DAPI", "GFP"] * 12
    write_like(tmp_path / "b.tif", tmp_path / "c.ome.tif")
    pixels = pixels_of(tmp_path / "c.ome.tif")
    assert (pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit")) == ("3.0", "s")
    assert pixels.get("PhysicalSizeZ") == "500.0"


@pytest.mark.parametrize(
    ("name", "dtype", "kind", "note"),
    [
        ("b.tif", np.uint8, "imagej", None),
        ("b.tif", np.int16, "imagej", None),
        ("b.tiff", np.uint16, "imagej", None),
        ("b.TIF", np.float32, "imagej", None),
        ("b.tif", np.float64, "ome", "float64 does not fit ImageJ TIFF: written as OME-TIFF"),
        ("b.tif", np.int32, "ome", "int32 does not fit ImageJ TIFF: written as OME-TIFF"),
        (
            "b.tif",
            np.int64,
            "shaped",
            "int64 does not fit ImageJ TIFF: written as plain TIFF with its axes in",
        ),
        ("b.ome.tif", np.float32, "ome", None),
        ("b.OME.TIFF", np.uint32, "ome", None),
    ],
)
def test_dialect(tmp_path: Path, name: str, dtype: Any, kind: str, note: str | None) -> None:
    data = hyperstack(tmp_path / "a.tif")
    notes = write_like(tmp_path / "a.tif", tmp_path / name, VoxelTransform((1, 1, 2)), dtype=dtype)
    lost = (
        "this TIFF output does not hold the labels of slices, tables of colours, "
        "the text of Image > Show Info"
    )
    assert (notes[-1:] == (lost,)) == (kind != "imagej")
    notes = tuple(text for text in notes if text != lost)
    assert (len(notes), *(text.startswith(note or "") for text in notes)) == (
        (1, True) if note else (0,)
    )
    with tifffile.TiffFile(tmp_path / name) as file:
        assert (file.series[0].kind, file.series[0].axes) == (kind, "TZCYX")
        assert file.series[0].dtype == dtype
        np.testing.assert_array_equal(file.asarray(), data[..., ::2].astype(dtype))
    with open_volume(str(tmp_path / name)) as reader:
        assert (reader.header.grid.spacing, reader.header.grid.unit) == ((0.5, 0.25, 0.6), "um")
        np.testing.assert_allclose(reader.header.grid.world((1, -2.5, 1.5)), 0, atol=1e-12)


def test_large_files_have_64_bit_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hyperstack(tmp_path / "a.tif")
    monkeypatch.setattr(tiff, "CLASSIC_LIMIT", 1000)
    notes = write_like(tmp_path / "a.tif", tmp_path / "b.tif")
    lost = (
        "this TIFF output does not hold the labels of slices, tables of colours, "
        "the text of Image > Show Info"
    )
    assert notes == (
        "a file above 4 GB does not fit ImageJ TIFF: written as OME-TIFF (BigTIFF)",
        lost,
    )
    assert write_like(tmp_path / "a.tif", tmp_path / "b.ome.tif") == (lost,)
    for name in ("b.tif", "b.ome.tif"):
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.is_bigtiff
            np.testing.assert_array_equal(file.asarray(), data)


def test_what_no_tiff_can_hold(tmp_path: Path) -> None:
    def header(dtype: Any, shape: tuple[int, ...] = (2, 3, 4)) -> VolumeHeader:
        return VolumeHeader(Axes("zyx", shape), np.dtype(dtype))

    with pytest.raises(WriteError, match=r"OME-TIFF holds no int64.*name it \.tif"):
        create_volume(str(tmp_path / "a.ome.tif"), header(np.int64))
    with pytest.raises(WriteError, match="complex64"):
        create_volume(str(tmp_path / "a.tif"), header(np.complex64))
    with pytest.raises(WriteError, match="empty"):
        create_volume(str(tmp_path / "a.tif"), header(np.uint8, (2, 0, 4)))
    assert list(tmp_path.iterdir()) == []
    write_volume(str(tmp_path / "a.tif"), Volume(values(2, 3, 4) > 5, "zyx"))
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.uint8
    with pytest.raises(OutputExistsError):
        create_volume(str(tmp_path / "a.tif"), header(np.uint8))


def nifti_like(affine: Array, dtype: Any = np.float32, axes: str = "ctzyx") -> VolumeHeader:
    """A header as another format hands it over."""
    sizes = {"c": 2, "t": 3, "z": 4, "y": 6, "x": 5, "s": 3}
    grid = Grid((3.0, 1.0, 2.0), "mm", affine, affine)
    shape = tuple(sizes[a] for a in axes)
    return VolumeHeader(
        Axes(axes, shape), np.dtype(dtype), grid, format="NIfTI", metadata={"any": "thing"}
    )


def test_from_another_format(tmp_path: Path) -> None:
    header = nifti_like(affine_from_spacing((3, 1, 2), (-72, -126, -90)))
    data = values(2, 3, 4, 6, 5, dtype=np.float32)
    write_volume(str(tmp_path / "a.tif"), Volume(data, "ctzyx", header.grid, "NIfTI", {}))
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "a.tif"), data.transpose(1, 2, 0, 3, 4)
    )
    after = imagej_of(tmp_path / "a.tif")
    assert [after[key] for key in ("unit", "spacing", "xorigin", "yorigin", "zorigin")] == [
        "mm",
        3.0,
        45.0,
        126.0,
        24.0,
    ]
    with open_volume(str(tmp_path / "a.tif")) as reader:
        np.testing.assert_allclose(reader.header.grid.affine, header.grid.affine)


def test_micrometres_are_called_what_each_dialect_calls_them(tmp_path: Path) -> None:
    volume = Volume(values(4, 6, 5), "zyx", Grid((1.0, 0.5, 0.5), "um"))
    write_volume(str(tmp_path / "a.tif"), volume)
    assert imagej_of(tmp_path / "a.tif")["unit"] == "micron"
    write_volume(str(tmp_path / "a.ome.tif"), volume)
    assert pixels_of(tmp_path / "a.ome.tif").get("PhysicalSizeXUnit") == "µm"


def test_rotation_cannot_be_held_and_is_said(tmp_path: Path) -> None:
    turn = affine_from_spacing((3, 1, 2), (1, 2, 3))
    turn[:3, :3] = turn[:3, :3] @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    flip = affine_from_spacing((3, 1, 2)) @ np.diag([-1.0, 1, 1, 1])
    for affine in (turn, flip):
        for name in ("a.tif", "a.ome.tif"):
            header = nifti_like(affine, axes="zyx")
            with create_volume(str(tmp_path / name), header) as writer:
                assert writer.notes == (
                    "TIFF holds voxel spacing but no rotation or flip: the affine is left out",
                )
                writer.write(0, 0, 0, np.zeros((4, 6, 5, 1), np.float32))
                writer.commit()
            with open_volume(str(tmp_path / name)) as reader:
                assert reader.header.grid.spacing == (3.0, 1.0, 2.0)
                assert reader.header.grid.unit == "mm"
            (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("letters", "channels", "expected"),
    [
        ("zyx", 1, "zyx"),
        ("zyx", 4, "zcyx"),
        ("xyz", 1, "zyx"),
        ("zyxc", 2, "zcyx"),
        ("tzyxc", 2, "tzcyx"),
        ("ctzyx", 2, "tzcyx"),
        ("tczyx", 2, "tzcyx"),
        ("szyx", 3, "zyxs"),
        ("zcyxs", 6, "zcyxs"),
        ("tazyxc", 2, "tazcyx"),
        ("yx", 1, "yx"),
    ],
)
def test_output_letters(letters: str, channels: int, expected: str) -> None:
    assert FORMAT.output_letters(letters, channels, np.dtype(np.float32)) == expected


def test_rgb_stays_rgb_while_it_is_8_bit(tmp_path: Path) -> None:
    data = values(4, 6, 5, 3, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb")
    for name in ("b.tif", "b.ome.tif"):
        write_like(tmp_path / "a.tif", tmp_path / name)
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.series[0].axes == "ZYXS"
            assert file.pages[0].photometric == 2
            np.testing.assert_array_equal(file.asarray(), data)
    for name in ("c.tif", "c.ome.tif"):
        write_like(tmp_path / "a.tif", tmp_path / name, dtype=np.float32)
        with tifffile.TiffFile(tmp_path / name) as file:
            # a channel for each colour: no program knows 32-bit RGB
            assert file.series[0].axes == "ZCYX"
            np.testing.assert_array_equal(
                file.asarray(), data.transpose(0, 3, 1, 2).astype(np.float32)
            )


def test_a_colour_table_stays_with_its_channel(tmp_path: Path) -> None:
    table = np.arange(768).reshape(3, 256).astype(np.uint16) << 6
    tifffile.imwrite(
        tmp_path / "a.tif",
        values(4, 6, 5, dtype=np.uint8),
        imagej=True,
        colormap=table,
        metadata={"axes": "ZYX"},
    )
    write_like(tmp_path / "a.tif", tmp_path / "b.tif", dtype=np.float32)
    np.testing.assert_array_equal(imagej_of(tmp_path / "b.tif")["LUTs"], table >> 8)


@pytest.mark.parametrize("name", ["b.tif", "b.ome.tif"])
def test_slabs_in_any_order(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    header = nifti_like(affine_from_spacing((3, 1, 2)), axes="tzcyx")
    data = values(3, 4, 2, 6, 5, dtype=np.float32)
    parts = [(n, z, c) for n in range(3) for z in range(4) for c in range(2)]
    with create_volume(str(tmp_path / name), header) as writer:
        assert not writer.sequential
        for index in rng.permutation(len(parts)):
            n, z, c = parts[index]
            block = writer.block(n, slice(z, z + 1), slice(c, c + 1))
            block[...] = data[n, z, c, None, :, :, None]
            writer.write(n, z, c, block)
        assert not (tmp_path / name).exists()
        writer.commit()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / name), data)


@pytest.mark.parametrize(
    ("name", "dtype"), [("b.tif", np.float32), ("b.ome.tif", np.float32), ("b.tif", np.int64)]
)
def test_the_same_volume_gives_the_same_bytes(tmp_path: Path, name: str, dtype: Any) -> None:
    hyperstack(tmp_path / "a.tif")
    contents = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_like(tmp_path / "a.tif", tmp_path / folder / name, dtype=dtype)
        contents.append((tmp_path / folder / name).read_bytes())
        if folder == "one":
            time.sleep(1.1)  # time stamps would differ
    assert contents[0] == contents[1]
    assert b"tifffile" not in contents[0]  # nor do they depend on the library's name and version


def test_nothing_is_left_of_an_abandoned_file(tmp_path: Path) -> None:
    with create_volume(str(tmp_path / "a.tif"), nifti_like(np.eye(4))):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path) -> None:
    script = """
        import resource, sys
        import numpy as np
        from conv3d_cli.errors import WriteError
        from conv3d_cli.formats import create_volume
        from conv3d_cli.model.volume import Axes, VolumeHeader
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        for name in ("a.tif", "a.ome.tif"):
            try:
                header = VolumeHeader(Axes("zyx", (64, 200, 200)), np.dtype(np.float32))
                create_volume(sys.argv[1] + "/" + name, header)
            except WriteError as error:
                assert "ulimit" in str(error), error
            else:
                raise SystemExit("no error")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_tifffile_is_not_imported_to_start() -> None:
    script = "import sys, conv3d_cli.formats; assert 'tifffile' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT)


SPACINGS = st.floats(1e-4, 1e4).map(lambda value: float(f"{value:.4g}"))


@settings(max_examples=examples(80))
@given(
    letters=st.sampled_from(
        [
            "zyx",
            "yx",
            "tzyx",
            "czyx",
            "tczyx",
            "zyxc",
            "zyxs",
            "xyz",
            "ctzyx",
            "tazyx",
            "azyx",
            "tazcyxs",
        ]
    ),
    sizes=st.lists(st.integers(1, 4), min_size=7, max_size=7),
    dtype=st.sampled_from(
        ["uint8", "int16", "uint16", "float32", "float64", "int8", "int32", "uint32", "uint64"]
    ),
    suffix=st.sampled_from([".tif", ".ome.tif"]),
    spacing=st.none() | st.tuples(SPACINGS, SPACINGS, SPACINGS),
    unit=st.sampled_from(["nm", "um", "mm", "cm", "m", None]),
    origin=st.tuples(*[st.integers(-9, 9)] * 3),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    letters: str,
    sizes: list[int],
    dtype: str,
    suffix: str,
    spacing: Any,
    unit: str | None,
    origin: tuple[int, int, int],
) -> None:
    path = str(tmp_path_factory.mktemp("trip") / f"a{suffix}")
    data = values(*sizes[: len(letters)], dtype=dtype)
    grid = Grid()
    if spacing is not None:
        d, h, w = (-o * s for o, s in zip(origin, spacing, strict=True))
        grid = Grid(spacing, unit, affine_from_spacing(spacing, (d, h, w)))
    volume = Volume(data, letters, grid)
    if dtype == "uint64" and suffix == ".ome.tif":
        with pytest.raises(WriteError):
            write_volume(path, volume)
        return
    write_volume(path, volume)
    read = read_volume(path)
    assert read.data.dtype == data.dtype
    assert read.shape == volume.shape
    before, after = Axes(letters, data.shape), Axes(read.axes, read.data.shape)
    n, depth, _, _, channels = volume.shape
    for i in range(n):
        np.testing.assert_array_equal(
            after.block(read.data, i, slice(0, depth), slice(0, channels)),
            before.block(data, i, slice(0, depth), slice(0, channels)),
        )
    if spacing is None or (unit is None and set(spacing) == {1.0}):
        assert read.grid.spacing is None
    else:
        assert read.grid.unit == unit
        np.testing.assert_allclose(read.grid.spacing, spacing, rtol=1e-7)
        np.testing.assert_allclose(read.grid.affine, grid.affine, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int8", "int64"])
def test_another_dialect_is_no_loss_under_strict(dtype: str, tmp_path: Path) -> None:
    """ImageJ has no such integers; the file of another dialect holds each of them, and is told."""
    data = np.arange(-60, 60).reshape(4, 5, 6).astype(dtype)
    np.save(tmp_path / "a.npy", data)
    result = convolve_file(
        tmp_path / "a.npy", tmp_path / "b.tif", "identity", dtype=dtype, strict=True
    )
    assert any(f"{dtype} does not fit ImageJ TIFF: written as " in note for note in result.notes)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), data)
    hyperstack(tmp_path / "h.tif")
    lossy = {"kernel": "identity", "dtype": dtype, "strict": True}
    with pytest.raises(ShapeError, match="labels"):  # what is lost is still refused
        convolve_file(tmp_path / "h.tif", tmp_path / "c.tif", **lossy)
