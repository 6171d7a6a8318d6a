"""Which image of a TIFF file is read, and what is said of the rest.

Right values come from the arrays that were written, or from tifffile page by page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from ometiff import SCHEMA, planes, write_positions

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume, read_volume, volume_files
from conv3d_cli.model.volume import Array


def ome(shape: tuple[int, ...], data: str = "<TiffData/>") -> bytes:
    """OME-XML of a uint16 image t c z y x with sizes, as people write it by hand."""
    sizes = "".join(f' Size{a}="{n}"' for a, n in zip("TCZYX", shape, strict=True))
    channels = "".join(
        f'<Channel ID="Channel:0:{c}" Name="dye {c}" SamplesPerPixel="1"/>' for c in range(shape[1])
    )
    return (
        f'<OME xmlns="{SCHEMA}"><Image ID="Image:0" Name="cells"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint16"{sizes} PhysicalSizeX="0.2" PhysicalSizeY="0.2" '
        f'PhysicalSizeZ="0.7" TimeIncrement="2">{channels}{data}</Pixels></Image></OME>'
    ).encode()


# ---------------------------------------------------------------------------------------------------------------------
# OME-XML beside the JSON that tifffile writes unless it is told not to


@pytest.mark.parametrize("data", ["<TiffData/>", ""])
@pytest.mark.parametrize("metadata", [{}, {"axes": "TCZYX"}])
def test_ome_xml_beside_json_is_read(tmp_path: Path, data: str, metadata: Any) -> None:
    values = planes(1, (2, 3, 4, 12, 14))
    path = tmp_path / "a.ome.tif"
    description = ome(values.shape, data)
    tifffile.imwrite(
        path, values, description=description, metadata=metadata, photometric="minisblack"
    )
    with tifffile.TiffFile(path) as file:
        assert file.is_shaped
        assert file.is_ome
    volume = read_volume(str(path))
    assert volume.axes == "tczyx"
    np.testing.assert_array_equal(volume.data, values)
    assert volume.grid.spacing == (0.7, 0.2, 0.2)
    assert volume.grid.unit == "um"
    assert [c["Name"] for c in volume.metadata.items["Channel"]] == ["dye 0", "dye 1", "dye 2"]
    with open_volume(str(path)) as reader:
        assert reader.notes == ()


def test_ome_xml_that_does_not_fit_leaves_the_json(tmp_path: Path) -> None:
    values = planes(1, (4, 12, 14))
    path = tmp_path / "a.ome.tif"
    description = ome((1, 1, 9, 12, 14))
    tifffile.imwrite(
        path,
        values,
        description=description,
        metadata={"axes": "ZYX", "spacing": [3, 2, 1], "unit": "um"},
        photometric="minisblack",
    )
    with open_volume(str(path)) as reader:
        assert "OME-XML does not fit its pages" in reader.notes[0]
        assert reader.header.grid.spacing == (3, 2, 1)
    np.testing.assert_array_equal(read_volume(str(path)).data, values)


def test_sizes_of_the_json_where_the_ome_xml_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    description = ome((1, 1, 4, 12, 14)).replace(b"PhysicalSize", b"Other")
    tifffile.imwrite(
        path,
        planes(1),
        description=description,
        metadata={"spacing": [3, 2, 1], "unit": "um"},
        photometric="minisblack",
    )
    assert read_volume(str(path)).grid.spacing == (3, 2, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Series


def write_two(path: Path) -> tuple[Array, Array]:
    """A thumbnail before a stack, as some microscopes write them."""
    small, stack = planes(1, (3, 4)), planes(2)
    with tifffile.TiffWriter(path) as writer:
        for name, data in (("thumbnail", small), ("cells", stack)):
            writer.write(data, photometric="minisblack", metadata={"axes": "ZYX"[-data.ndim:], "Name": name})  # fmt: skip
    return small, stack


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_any_series_can_be_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    small, stack = write_two(path)
    np.testing.assert_array_equal(read_volume(str(path)).data, small)
    np.testing.assert_array_equal(read_volume(f"{path}::1").data, stack)
    if name == "a.ome.tif":
        np.testing.assert_array_equal(read_volume(f"{path}::cells").data, stack)
    with pytest.raises(FormatError, match=r"it has 0 \(.*3 x 4\), 1 \(.*4 x 12 x 14\)"):
        open_volume(f"{path}::7")
    assert volume_files(f"{path}::1") == (str(path),)
    with open_volume(f"{path}::1", axes="tyx") as reader:
        assert reader.header.axes.letters == "tyx"


def test_any_position_can_be_named_from_any_file(tmp_path: Path) -> None:
    data = write_positions(tmp_path)
    for part in ("2", "position 2", "Image:2"):
        volume = read_volume(f"{tmp_path / 'p0.ome.tif'}::{part}")
        np.testing.assert_array_equal(volume.data, data[2])
        assert volume.grid.spacing == (3.0, 0.3, 0.3)
    assert volume_files(f"{tmp_path / 'p0.ome.tif'}::2") == (
        str(tmp_path / "p0.ome.tif"),
        str(tmp_path / "p2.ome.tif"),
    )


def test_names_that_two_series_share(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        for seed in (1, 2):
            writer.write(planes(seed), photometric="minisblack", metadata={"axes": "ZYX", "Name": "n"})  # fmt: skip
    with pytest.raises(FormatError, match=r"2 of its images have this name.*a\.ome\.tif::0"):
        open_volume(f"{path}::n")


def test_a_file_whose_own_name_holds_colons(tmp_path: Path) -> None:
    path = tmp_path / "a::1.tif"
    tifffile.imwrite(path, planes(3), photometric="minisblack")
    np.testing.assert_array_equal(read_volume(str(path)).data, planes(3))


# ---------------------------------------------------------------------------------------------------------------------
# Pages that belong to no series


def test_small_versions_between_the_pages_are_left_out(tmp_path: Path) -> None:
    data, path = planes(4), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in data:
            writer.write(page, metadata=None, photometric="minisblack", contiguous=False)
            writer.write(
                page[::2, ::2],
                subfiletype=1,
                metadata=None,
                photometric="minisblack",
                contiguous=False,
            )
    np.testing.assert_array_equal(read_volume(str(path)).data, data)


def test_a_small_version_before_the_page(tmp_path: Path) -> None:
    data, path = planes(4), tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(data[0, :3, :4], subfiletype=1, metadata=None, photometric="minisblack")
        for page in data:
            writer.write(page, metadata=None, photometric="minisblack", contiguous=False)
    np.testing.assert_array_equal(read_volume(str(path)).data, data)


def test_pages_beyond_the_description_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    parts = '<TiffData IFD="0" PlaneCount="1"/><TiffData FirstC="1" IFD="1" PlaneCount="1"/>'
    values = planes(5, (2, 12, 14))
    tifffile.imwrite(
        path,
        values,
        description=ome((1, 1, 1, 12, 14), parts),
        metadata=None,
        photometric="minisblack",
    )
    with open_volume(str(path)) as reader:
        assert reader.notes == (
            "1 of the file's 2 pages belongs to no image of its description: left out",
        )


# ---------------------------------------------------------------------------------------------------------------------
# The other way to read, for --verify


def by_both_ways(name: str, **options: Any) -> tuple[Array, Array]:
    found = []
    for again in (False, True):
        with open_volume(name, again=again, **options) as reader:
            axes = reader.header.axes
            whole = tuple(slice(0, n) for n in axes.shape)
            found.append(np.array(reader.array[whole]))  # type: ignore[attr-defined]
            assert type(reader).__name__ == "PlaneReader" or not again
    return found[0], found[1]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["XYZCT", "XYCZT", "XYTZC", "XYCTZ"])
def test_both_ways_to_read_agree(tmp_path: Path, order: str, compression: str | None) -> None:
    data = planes(3, (2, 3, 4, 6, 5))
    sizes = dict(zip("TCZYX", data.shape, strict=True))
    letters = order[::-1]
    stored = data.transpose([("TCZYX").index(a) for a in letters])
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stored, metadata={"axes": letters}, compression=compression, photometric="minisblack")  # fmt: skip
    one, other = by_both_ways(str(path))
    np.testing.assert_array_equal(one, stored)
    np.testing.assert_array_equal(other, stored)
    assert one.shape == tuple(sizes[a] for a in letters)


def test_both_ways_read_shuffled_planes_and_other_files(tmp_path: Path) -> None:
    data = planes(7, (6, 12, 14))
    order = [3, 0, 5, 1, 4, 2]
    parts = "".join(
        f'<TiffData FirstZ="{z}" IFD="{k}" PlaneCount="1"/>' for k, z in enumerate(order)
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, data[order], description=ome((1, 1, 6, 12, 14), parts), metadata=None, photometric="minisblack")  # fmt: skip
    positions = write_positions(tmp_path)
    for name, right in ((str(path), data), (f"{tmp_path / 'p0.ome.tif'}::2", positions[2])):
        for found in by_both_ways(name):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_both_ways_read_colours_and_hyperstacks(tmp_path: Path, dtype: Any) -> None:
    rgb = planes(1, (4, 6, 5, 3), dtype)
    path = tmp_path / "rgb.ome.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", metadata={"axes": "ZYXS"})
    stack = planes(2, (2, 3, 4, 6, 5), dtype)
    other = tmp_path / "stack.tif"
    tifffile.imwrite(other, stack, imagej=True, metadata={"axes": "TZCYX"})
    for name, right in ((path, rgb), (other, stack)):
        for found in by_both_ways(str(name)):
            np.testing.assert_array_equal(found, right)


def test_verification_finds_voxels_that_were_read_from_a_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    """As if the offset of the voxels were one in another file."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes(3), photometric="minisblack", metadata={"axes": "ZYX"})
    monkeypatch.setattr("conv3d_cli.formats.tiff.format.mapped_offset", lambda found, path: 0)
    result = run("apply", path, "-k", "identity", "-o", tmp_path / "o.npy", "--verify", 50, code=7)
    assert "is wrong" in result.output


# ---------------------------------------------------------------------------------------------------------------------
# OME-XML that the schema accepts


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("\u03bcm", "\u00b5m"),
        ("um", "\u00b5m"),
        ("micron", "\u00b5m"),
        ("inch", "in"),
        ("angstrom", "\u00c5"),
        ("nm", "nm"),
        ("\u00b5m", "\u00b5m"),
        ("pixel", "pixel"),
        ("reference frame", "reference frame"),
        ("furlong", "pixel"),
        ("", "pixel"),
    ],
)
def test_units_are_written_as_the_schema_spells_them(
    tmp_path: Path, run: Any, word: str, written: str
) -> None:
    path, out = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    xml = ome((1, 1, 4, 12, 14)).decode()
    for axis in "XYZ":
        xml = xml.replace(
            f' PhysicalSize{axis}="', f' PhysicalSize{axis}Unit="{word}" PhysicalSize{axis}="'
        )
    xml = xml.replace(' TimeIncrement="2"', ' TimeIncrement="2" TimeIncrementUnit="sec"')
    tifffile.imwrite(path, planes(1), description=xml.encode(), metadata=None, photometric="minisblack")  # fmt: skip
    run("apply", path, "-k", "identity", "-o", out)
    with tifffile.TiffFile(out) as file:
        text = str(file.ome_metadata)
    assert f'PhysicalSizeXUnit="{written}"' in text
    assert 'TimeIncrementUnit="s"' in text
    ome_types = pytest.importorskip("ome_types")
    pixels = ome_types.from_xml(text).images[0].pixels
    assert pixels.physical_size_x_unit.value == written
    assert (pixels.physical_size_x, pixels.physical_size_z) == (0.2, 0.7)


# ---------------------------------------------------------------------------------------------------------------------
# Names of TIFF files


@pytest.mark.parametrize(
    "suffix",
    [".ome.btf", ".ome.tf2", ".ome.tf8", ".btf", ".tf2", ".tf8", ".lsm", ".stk", ".svs",
     ".scn", ".qptiff", ".SVS", ".dat", ""],
)  # fmt: skip
def test_tiff_under_other_names_is_read(tmp_path: Path, suffix: str, run: Any) -> None:
    path = tmp_path / f"a{suffix}"
    tifffile.imwrite(path, planes(1), photometric="minisblack", metadata={"axes": "ZYX"}, bigtiff="f" in suffix)  # fmt: skip
    np.testing.assert_array_equal(read_volume(str(path)).data, planes(1))
    run("apply", path, "-k", "identity", "--dtype", "uint16", "-o", tmp_path / "o.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "o.tif"), planes(1))
    assert volume_files(str(path)) == (str(path),)


@pytest.mark.parametrize("suffix", [".ome.btf", ".ome.tf2", ".ome.tf8", ".btf", ".tf2", ".tf8"])
def test_names_of_bigtiff_give_bigtiff(tmp_path: Path, suffix: str, run: Any) -> None:
    np.save(tmp_path / "a.npy", planes(1))
    path = tmp_path / f"o{suffix}"
    run("apply", tmp_path / "a.npy", "-k", "identity", "--dtype", "uint16", "-o", path)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert file.is_ome
        np.testing.assert_array_equal(file.asarray(), planes(1))


def test_names_that_are_only_read(tmp_path: Path, run: Any, error_line: Any) -> None:
    for name in ("a.lsm", "b"):
        tifffile.imwrite(tmp_path / name, planes(1), photometric="minisblack", metadata={"axes": "ZYX"})  # fmt: skip
    result = run("apply", tmp_path / "a.lsm", "-k", "identity", "-o", tmp_path / "o.lsm", code=2)
    assert "are read, and not written; name it .ome.tif" in error_line(result.stderr)
    run("apply", tmp_path / "a.lsm", tmp_path / "b", "-k", "identity", "--out-dir", tmp_path / "o")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["a.ome.tif", "b.ome.tif"]
    (tmp_path / "b").write_bytes(b"no TIFF")
    result = run("apply", tmp_path / "b", "-k", "identity", "-o", tmp_path / "p.tif", code=3)
    assert "it is text, and no volume" in error_line(result.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Acquisitions that were stopped


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_what_is_complete_can_be_read(
    tmp_path: Path, compression: str | None, run: Any, error_line: Any
) -> None:
    """Five time points of four slices were planned; the file ends within the fourth."""
    data, path = planes(1, (5, 4, 6, 7)), tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as writer:
        for number, page in enumerate(data.reshape(20, 6, 7)[:14]):
            writer.write(
                page,
                description=ome((5, 1, 4, 6, 7)) if number == 0 else None,
                metadata=None,
                photometric="minisblack",
                compression=compression,
                contiguous=False,
            )
    message = error_line(run("info", path, code=3).stderr)
    assert "6 of its 20 planes are missing" in message
    assert "--axes tzyx reads t = 0 to 2 of 5, which are complete" in message
    out = tmp_path / "o.npy"
    command = ("apply", path, "--axes", "tzyx", "-k", "identity", "--dtype", "uint16", "-o", out)
    result = run(*command, "--verify", 40)
    assert "planes are missing: t = 0 to 2 of 5 are read" in result.stderr
    np.testing.assert_array_equal(np.load(out), data[:3])
    assert volume_files(str(path)) == (str(path),)
