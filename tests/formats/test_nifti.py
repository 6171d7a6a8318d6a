"""NIfTI against nibabel as the independent reader and writer.

Lying headers and damaged streams, byte by byte.
"""

from __future__ import annotations

import gzip
import logging
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import LIMIT
from profiles import examples

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from conv3d_cli.errors import FormatError, OutputExistsError, WriteError
from conv3d_cli.formats import create_volume, open_volume, packed, read_volume, write_volume
from conv3d_cli.formats.codecs import codec_named
from conv3d_cli.formats.nifti import FORMAT
from conv3d_cli.model.grid import Grid, affine_from_spacing, grid_after
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.model.volume import Axes, Volume, VolumeHeader

REAL_SCAN = Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz"
SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img.gz")


def zstd_frame(data: bytes) -> bytes:
    """A frame with a checksum."""
    parameter = zstd.CompressionParameter
    return zstd.compress(data, options={parameter.compression_level: 7, parameter.checksum_flag: 1})


PACK = {".nii.gz": gzip.compress, ".nii.zst": zstd_frame}
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])


def rigid(
    spacing: tuple[float, float, float] = (2, 3, 4),
    origin: tuple[float, float, float] = (-90, 126, -72),
) -> Any:
    """An affine that float32 and a quaternion hold (nearly) exactly; spacing along x, y, z."""
    affine = np.eye(4)
    affine[:3, :3] = TURN * spacing
    affine[:3, 3] = origin
    return affine


def image(
    data: np.ndarray,
    version: int = 1,
    pair: bool = False,
    order: str = "<",
    affine: Any = None,
    **fields: Any,
) -> Any:
    """A nibabel image; data in (x, y, z, ...) order; `fields` are set in its header as they are."""
    kinds = {
        (1, False): nibabel.Nifti1Image,
        (1, True): nibabel.Nifti1Pair,
        (2, False): nibabel.Nifti2Image,
        (2, True): nibabel.Nifti2Pair,
    }
    kind = kinds[version, pair]
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    made = kind(data, affine, header)
    for name, value in fields.items():
        made.header[name] = value
    return made


def save(made: Any, path: Path) -> str:
    nibabel.save(made, path)
    return str(path)


def saved(path: Path, data: np.ndarray, **options: Any) -> str:
    """A file of these voxels, as nibabel writes it."""
    pair = path.name.removesuffix(".gz").endswith((".hdr", ".img"))
    return save(image(data, pair=pair, **options), path)


def values(shape: tuple[int, ...], dtype: Any = np.int16) -> np.ndarray:
    return (np.arange(np.prod(shape)) % 113).reshape(shape).astype(dtype)


def patch(path: str, position: int, layout: str, *numbers: Any) -> None:
    """Overwrite bytes of a file."""
    content = bytearray(Path(path).read_bytes())
    struct.pack_into(layout, content, position, *numbers)
    Path(path).write_bytes(content)


def error_of(path: str | Path) -> str:
    with pytest.raises(FormatError) as caught:
        read_volume(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cannot read ")
    return message


def written(path: Path, volume: Volume, **options: Any) -> Any:
    """Write a volume and open it with nibabel."""
    write_volume(str(path), volume, **options)
    return nibabel.load(path)


def empty_header(
    axes: str = "zyx", shape: tuple[int, ...] = (4, 3, 2), dtype: str = "float32", **more: Any
) -> Any:
    return VolumeHeader(Axes(axes, shape), np.dtype(dtype), **more)


# --------------------------------------------------------------------------------------------------
# Reading


class TestRead:
    def test_the_real_scan(self) -> None:
        reference = nibabel.load(REAL_SCAN)
        volume = read_volume(str(REAL_SCAN))
        assert volume.axes == "tzyx"
        assert volume.data.dtype == np.int16
        np.testing.assert_array_equal(volume.data, np.asanyarray(reference.dataobj).T)
        assert volume.grid.affine is not None
        np.testing.assert_array_equal(volume.grid.affine, reference.affine)
        np.testing.assert_allclose(
            volume.grid.spacing, reference.header.get_zooms()[2::-1], rtol=1e-6
        )
        assert volume.grid.unit == "mm"

    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_dtypes_and_byte_orders(
        self, tmp_path: Path, dtype: str, order: str, suffix: str
    ) -> None:
        for version in (1, 2):
            data = values((3, 4, 5), order + dtype)
            path = saved(tmp_path / f"v{version}{suffix}", data, version=version, order=order)
            volume = read_volume(path)
            assert volume.data.dtype == np.dtype(dtype)
            assert volume.data.dtype.isnative
            np.testing.assert_array_equal(volume.data, data.T)

    @pytest.mark.parametrize(
        ("shape", "letters"),
        [
            ((3, 4), "yx"),
            ((3, 4, 5), "zyx"),
            ((3, 4, 5, 2), "tzyx"),
            ((3, 4, 5, 1), "tzyx"),
            ((3, 4, 5, 1, 3), "ctzyx"),
            ((3, 4, 1, 1, 3), "ctzyx"),
            ((3, 4, 5, 2, 3, 2), "actzyx"),
            ((3, 4, 5, 2, 3, 2, 2), "bactzyx"),
            ((3, 4, 5, 1, 1, 1, 2), "bactzyx"),
            ((3, 4, 5, 2, 1, 1, 1), "bactzyx"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_axes_and_their_round_trip(
        self, tmp_path: Path, shape: tuple[int, ...], letters: str, suffix: str
    ) -> None:
        data = values(shape)
        made = image(data)
        # nibabel drops trailing ones
        made.header["dim"] = [
            len(shape),
            *shape,
            *[1] * (7 - len(shape)),
        ]
        content = (
            made.header.binaryblock[:108]
            + struct.pack("<f", 352)
            + made.header.binaryblock[112:]
            + bytes(4)
        )
        packed = content + data.tobytes(order="F")
        path = tmp_path / f"v{suffix}"
        path.write_bytes(gzip.compress(packed) if suffix.endswith("gz") else packed)
        volume = read_volume(str(path))
        assert volume.axes == letters
        np.testing.assert_array_equal(volume.data, data.T)
        back = written(tmp_path / f"back{suffix}", volume)
        assert back.header["dim"].tolist() == made.header["dim"].tolist()
        np.testing.assert_array_equal(np.asanyarray(back.dataobj).reshape(shape), data)

    @pytest.mark.parametrize("samples", [3, 4])
    @pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 2), (3, 4, 5, 2, 2)])
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_rgb(self, tmp_path: Path, samples: int, shape: tuple[int, ...], suffix: str) -> None:
        pixels = values((*shape, samples), np.uint8)
        colour = np.dtype([(name, "u1") for name in "RGBA"[:samples]])
        path = saved(tmp_path / f"v{suffix}", pixels.view(colour)[..., 0], scl_slope=2, scl_inter=1)
        with open_volume(path) as reader:
            assert reader.header.scale == (1, 0)
        volume = read_volume(path)
        assert volume.axes == "dtzyx"[-len(shape) :] + "s"
        assert volume.shape[4] == samples
        expected = np.moveaxis(pixels, -1, 0).T
        np.testing.assert_array_equal(volume.data, expected)
        back = written(tmp_path / f"back{suffix}", volume)
        assert back.header["datatype"] == {3: 128, 4: 2304}[samples]
        assert back.header["bitpix"] == 8 * samples
        assert back.header["dim"].tolist() == nibabel.load(path).header["dim"].tolist()
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), pixels.view(colour)[..., 0])

    @pytest.mark.parametrize(
        ("slope", "intercept", "scale"),
        [
            (0.5, -7, (0.5, -7)),
            (1, 3, (1, 3)),
            (-2, 0, (-2, 0)),
            (0, 5, (1, 0)),
            (np.nan, np.nan, (1, 0)),
            (np.inf, 1, (1, 0)),
        ],
    )
    def test_scaling_is_told_not_applied(
        self, tmp_path: Path, slope: float, intercept: float, scale: tuple[float, float]
    ) -> None:
        data = values((3, 4, 5))
        path = saved(tmp_path / "v.nii", data)
        patch(path, 112, "<ff", slope, intercept)
        with open_volume(path) as reader:
            assert reader.header.scale == scale
            np.testing.assert_array_equal(reader.read(0, slice(0, 5), slice(0, 1))[..., 0], data.T)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.data, np.asanyarray(nibabel.load(path).dataobj).T)
        back = written(tmp_path / "back.nii", volume)
        assert back.dataobj.slope == 1
        assert back.dataobj.inter == 0
        np.testing.assert_array_equal(np.asanyarray(back.dataobj).T, volume.data)

    def test_a_slope_needs_an_intercept(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "v.nii", values((3, 4, 5)))
        patch(path, 112, "<ff", 2, np.nan)
        assert "scl_inter" in error_of(path)

    def test_axes_may_be_renamed(self, tmp_path: Path) -> None:
        data = values((3, 4, 5, 2))
        for suffix in (".nii", ".nii.gz"):
            path = saved(tmp_path / f"v{suffix}", data, affine=rigid())
            volume = read_volume(path, axes="czyx")
            assert volume.shape == (1, 5, 4, 3, 2)
            np.testing.assert_array_equal(volume.data, data.T)
            assert written(tmp_path / f"back{suffix}", volume, overwrite=True).shape == (
                3,
                4,
                5,
                1,
                2,
            )

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("axes", ["txyz", "zcyx", "zyxc", "ztyx", "xzyt", "cyxz"])
    def test_space_may_be_renamed(self, tmp_path: Path, suffix: str, axes: str) -> None:
        data = values((3, 4, 5, 2))
        path = saved(tmp_path / f"v{suffix}", data, affine=rigid())
        volume = read_volume(path, axes=axes)
        np.testing.assert_array_equal(volume.data, data.T)
        affine = nibabel.load(path).affine
        if axes == "txyz":  # (x, y, z) are dimensions 3, 2, 1
            np.testing.assert_array_equal(volume.grid.affine, affine[:, [2, 1, 0, 3]])
            np.testing.assert_allclose(volume.grid.spacing, (2, 3, 4), rtol=1e-6)
            back = written(tmp_path / f"back{suffix}", volume)
            np.testing.assert_allclose(back.affine, affine[:, [2, 1, 0, 3]], rtol=1e-6)
            np.testing.assert_array_equal(np.asanyarray(back.dataobj), data.transpose(2, 1, 0, 3))
        elif axes in ("zcyx", "zyxc", "ztyx", "xzyt"):  # the file's time is space now
            assert volume.grid.affine is None

    def test_rgb_with_channels_beside(self, tmp_path: Path) -> None:
        pixels = values((3, 4, 5, 2, 3), np.uint8)
        colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        path = saved(tmp_path / "v.nii.gz", pixels.view(colour)[..., 0])
        volume = read_volume(path, axes="czyxs")
        assert volume.shape == (1, 5, 4, 3, 6)
        np.testing.assert_array_equal(volume.data, pixels.transpose(3, 2, 1, 0, 4))

    @pytest.mark.parametrize(("name", "packed"), [("v.nii.gz", False), ("v.nii", True)])
    def test_content_counts_not_the_suffix(self, tmp_path: Path, name: str, packed: bool) -> None:
        data = values((3, 4, 5))
        content = image(data).to_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
        np.testing.assert_array_equal(read_volume(str(tmp_path / name)).data, data.T)

    def test_voxels_after_a_gap(self, tmp_path: Path) -> None:
        data = values((3, 4, 5))
        content = bytearray(image(data).to_bytes())
        struct.pack_into("<f", content, 108, 1024)
        content[352:352] = bytes(1024 - 352)
        for name, file in {"v.nii": content, "v.nii.gz": gzip.compress(content)}.items():
            (tmp_path / name).write_bytes(file)
            np.testing.assert_array_equal(read_volume(str(tmp_path / name)).data, data.T)

    def test_nothing_is_printed_or_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """nibabel reports what it corrects; a header full of small faults passes in silence."""
        path = saved(tmp_path / "v.nii", values((3, 4, 5)))
        patch(path, 76, "<4f", 0, -2, -3, 4)  # qfac 0, negative sizes
        patch(path, 252, "<hh", 99, -3)  # codes that do not exist
        with caplog.at_level(logging.DEBUG):
            volume = read_volume(path)
            write_volume(str(tmp_path / "back.nii"), volume)
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")
        np.testing.assert_allclose(volume.grid.spacing, (4, 3, 2))

    def test_nibabel_waits_until_it_is_needed(self) -> None:
        code = (
            "import conv3d_cli.formats, sys; print([m for m in ('nibabel', 'isal', "
            "'tifffile') if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------------
# Place in the world


CODES = [(0, 0), (1, 0), (0, 1), (4, 2), (2, 5), (3, 3)]


def two_forms(sform_code: int, qform_code: int, version: int = 1, **options: Any) -> Any:
    """An image whose sform and qform differ: half a voxel apart, other angles.

    Pixdim is the qform's.
    """
    made = image(values((6, 7, 8), np.float32), version=version, **options)
    made.header["pixdim"] = [1, 2, 3, 4, 1.5, 1, 1, 1]
    if sform_code:
        sform = rigid((2.25, 3, 4.5), (-91, 120, -70))
        made.header.set_sform(sform, code=sform_code)
    if qform_code:
        made.header.set_qform(rigid() @ np.diag([1, -1, 1, 1]), code=qform_code)
    return made


def transform_matrix(transform: VoxelTransform) -> np.ndarray:
    matrix = np.diag([*transform.step[::-1], 1.0])
    matrix[:3, 3] = transform.offset[::-1]
    return matrix


class TestGrid:
    @pytest.mark.parametrize(("sform_code", "qform_code"), CODES)
    @pytest.mark.parametrize("order", "<>")
    def test_affine_is_nibabels(
        self, tmp_path: Path, sform_code: int, qform_code: int, order: str
    ) -> None:
        path = save(two_forms(sform_code, qform_code, order=order), tmp_path / "v.nii")
        header = nibabel.load(path).header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (sform_code, qform_code)
        grid = read_volume(path).grid
        assert grid.affine is not None
        np.testing.assert_allclose(grid.affine, header.get_best_affine(), rtol=1e-12, atol=1e-12)
        assert (grid.qform is not None) == bool(sform_code and qform_code)
        if grid.qform is not None:
            np.testing.assert_allclose(grid.qform, header.get_qform(), rtol=1e-12, atol=1e-12)
        expected = (4.5, 3, 2.25) if sform_code else (4, 3, 2)
        np.testing.assert_allclose(grid.spacing, expected, rtol=1e-6)

    @pytest.mark.parametrize(("sform_code", "qform_code"), CODES)
    @pytest.mark.parametrize("version", [1, 2])
    def test_unchanged_it_keeps_its_bytes(
        self, tmp_path: Path, sform_code: int, qform_code: int, version: int
    ) -> None:
        made = two_forms(sform_code, qform_code, version)
        made.header["pixdim"][4:] = 1.5, 7, 8, 9
        made.header["srow_x"][3] += 0.1  # whatever it is worth under code 0
        path = save(made, tmp_path / "v.nii")
        field = {1: 76, 2: 104}[version]
        patch(path, field, {1: "<f", 2: "<d"}[version], 0)  # qfac 0 stands for 1, and stays
        before = nibabel.load(path, mmap=False).header
        write_volume(str(tmp_path / "back.nii"), read_volume(path))
        names = (
            "srow_x srow_y srow_z quatern_b quatern_c quatern_d qoffset_x qoffset_y "
            "qoffset_z pixdim "
        )
        names += "sform_code qform_code xyzt_units toffset"
        kind = type(before)
        with open(path, "rb") as one, open(tmp_path / "back.nii", "rb") as two:
            first, second = (kind.from_fileobj(file, check=False) for file in (one, two))
        for name in names.split():
            assert first[name].tobytes() == second[name].tobytes(), name

    @pytest.mark.parametrize(("sform_code", "qform_code"), CODES)
    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize(
        "transform",
        [
            VoxelTransform((2, 1, 3), (0.5, 0.0, 1.0)),
            VoxelTransform((1, 1, 1), (0.0, 0.5, 0.0)),
            VoxelTransform((1, 2, 2), (1.0, 1.0, 1.0)),
        ],
    )
    def test_each_form_is_transformed_by_itself(
        self,
        tmp_path: Path,
        sform_code: int,
        qform_code: int,
        version: int,
        transform: VoxelTransform,
    ) -> None:
        path = save(two_forms(sform_code, qform_code, version), tmp_path / "v.nii")
        before = nibabel.load(path).header
        with open_volume(path) as reader:
            source = reader.header
        sizes = {
            a: -(-n // s) for a, n, s in zip("zyx", source.axes.shape, transform.step, strict=True)
        }
        header = replace(
            source,
            axes=source.axes.renamed("zyx", sizes),
            grid=grid_after(source.grid, transform),
            transform=transform,
        )
        with create_volume(str(tmp_path / "back.nii"), header) as writer:
            assert writer.notes == ()
            writer.commit()
        after = nibabel.load(tmp_path / "back.nii").header
        assert (int(after["sform_code"]), int(after["qform_code"])) == (sform_code, qform_code)
        matrix = transform_matrix(transform)
        if sform_code:
            np.testing.assert_allclose(
                after.get_sform(), before.get_sform() @ matrix, rtol=1e-6, atol=1e-5
            )
        if qform_code:
            np.testing.assert_allclose(
                after.get_qform(), before.get_qform() @ matrix, rtol=1e-6, atol=1e-5
            )
        # sizes that contradict a lone sform stay while the spacing does
        own_sizes = qform_code or not sform_code or max(transform.step) == 1
        spacing = (2, 3, 4) if own_sizes else (2.25, 3, 4.5)
        np.testing.assert_allclose(
            after["pixdim"][1:4], np.multiply(spacing, transform.step[::-1]), rtol=1e-6
        )
        assert after["pixdim"][4] == 1.5

    def test_half_a_voxel_far_from_the_origin(self, tmp_path: Path) -> None:
        """nibabel's update_header compares with a tolerance of 1e-5 and would lose it."""
        affine = rigid((1e-3, 1e-3, 1e-3), (150, -150, 150))
        path = save(
            image(values((6, 7, 8), np.float32), version=2, affine=affine), tmp_path / "v.nii"
        )
        volume = read_volume(path)
        moved = grid_after(volume.grid, VoxelTransform((1, 1, 1), (0.5, 0.5, 0.5)))
        back = written(tmp_path / "back.nii", replace(volume, grid=moved))
        np.testing.assert_allclose(
            back.affine,
            affine @ transform_matrix(VoxelTransform((1, 1, 1), (0.5,) * 3)),
            rtol=1e-14,
        )

    def test_half_turns(self, tmp_path: Path) -> None:
        """Quaternions without a real part, whose rest may be longer than 1 by rounding."""
        for turn in (
            np.diag([1, -1, -1]),
            np.diag([-1, 1, -1]),
            np.diag([-1, -1, 1]),
            -np.eye(3),
            np.diag([-1, 1, 1]),
        ):
            affine = np.eye(4)
            affine[:3, :3] = turn * (2, 3, 4)
            made = image(values((3, 4, 5)))
            made.header.set_qform(affine, code=1)
            path = save(made, tmp_path / "v.nii")
            np.testing.assert_allclose(read_volume(path).grid.affine, affine, atol=1e-6)
        axis = np.array([0.6, 0.8, 0]) * (1 + 1e-6)
        patch(path, 256, "<3f", *axis)
        np.testing.assert_allclose(read_volume(path).grid.spacing, (4, 3, 2), rtol=1e-6)

    @pytest.mark.parametrize(
        ("code", "unit"), [(0, "mm"), (1, "m"), (2, "mm"), (3, "um"), (7, "mm")]
    )
    def test_units(self, tmp_path: Path, code: int, unit: str) -> None:
        path = saved(tmp_path / "v.nii", values((3, 4, 5)), affine=rigid())
        patch(path, 123, "B", code | 16)
        volume = read_volume(path)
        assert volume.grid.unit == unit
        np.testing.assert_allclose(volume.grid.spacing, (4, 3, 2), rtol=1e-6)
        back = written(tmp_path / "back.nii", volume)
        assert back.header["xyzt_units"] == code | 16
        np.testing.assert_array_equal(back.affine, nibabel.load(path).affine)

    @pytest.mark.parametrize(
        ("unit", "code", "factor"),
        [("nm", 3, 1e-3), ("um", 3, 1), ("mm", 2, 1), ("cm", 2, 10), ("m", 1, 1), (None, 0, 1)],
    )
    def test_other_units_are_converted(
        self, tmp_path: Path, unit: str | None, code: int, factor: float
    ) -> None:
        grid = Grid((40.0, 30.0, 20.0), unit, affine_from_spacing((40, 30, 20), (4, 5, 6)))
        volume = Volume(values((3, 4, 5), np.uint8), "zyx", grid)
        back = written(tmp_path / "v.nii", volume)
        assert int(back.header["xyzt_units"]) == code
        np.testing.assert_allclose(
            back.header.get_zooms(), np.multiply((20, 30, 40), factor), rtol=1e-6
        )
        np.testing.assert_allclose(back.affine[:3, 3], np.multiply((6, 5, 4), factor), rtol=1e-6)
        if unit:
            again = read_volume(str(tmp_path / "v.nii")).grid
            np.testing.assert_allclose(again.spacing_in("um"), grid.spacing_in("um"), rtol=1e-6)

    def test_another_unit_than_the_source(self, tmp_path: Path) -> None:
        made = two_forms(4, 2)
        made.header.set_xyzt_units("mm", "sec")
        volume = read_volume(save(made, tmp_path / "v.nii"))
        scaling = np.diag([1000, 1000, 1000, 1])
        grid = volume.grid
        assert grid.affine is not None
        assert grid.qform is not None
        microns = Grid((4500.0, 3000.0, 2250.0), "um", scaling @ grid.affine, scaling @ grid.qform)
        back = written(tmp_path / "back.nii", replace(volume, grid=microns)).header
        assert back.get_xyzt_units() == ("micron", "sec")
        np.testing.assert_allclose(back.get_sform(), microns.affine, rtol=1e-6)
        np.testing.assert_allclose(back.get_qform(), microns.qform, rtol=1e-6, atol=1e-2)
        assert (int(back["sform_code"]), int(back["qform_code"])) == (4, 2)

    def test_a_volume_from_elsewhere_gets_both_forms(self, tmp_path: Path) -> None:
        grid = Grid((3.0, 2.0, 1.0), "mm")
        back = written(tmp_path / "v.nii", Volume(values((3, 4, 5), np.uint8), "zyx", grid)).header
        expected = np.diag([1, 2, 3, 1])
        for matrix, code in (back.get_sform(coded=True), back.get_qform(coded=True)):
            assert code == 2
            np.testing.assert_allclose(matrix, expected, rtol=1e-6)
        np.testing.assert_allclose(back["pixdim"][1:4], (1, 2, 3))

    def test_without_spacing_it_gets_neither(self, tmp_path: Path) -> None:
        back = written(tmp_path / "v.nii", Volume(values((3, 4, 5), np.uint8), "zyx")).header
        assert (int(back["sform_code"]), int(back["qform_code"]), int(back["xyzt_units"])) == (
            0,
            0,
            0,
        )
        assert back["pixdim"].tolist() == [1] * 8
        volume = read_volume(save(two_forms(1, 1), tmp_path / "w.nii"))
        back = written(tmp_path / "w.nii", replace(volume, grid=Grid()), overwrite=True).header
        assert (int(back["sform_code"]), int(back["qform_code"])) == (0, 0)

    def test_a_new_orientation_is_not_lost(self, tmp_path: Path) -> None:
        """A header with neither form cannot say it, so it gets both."""
        volume = read_volume(save(two_forms(0, 0), tmp_path / "v.nii"))
        turned = Grid((4.0, 3.0, 2.0), "mm", rigid())
        back = written(tmp_path / "back.nii", replace(volume, grid=turned)).header
        assert (int(back["sform_code"]), int(back["qform_code"])) == (2, 2)
        np.testing.assert_allclose(back.get_sform(), rigid(), rtol=1e-6)
        np.testing.assert_allclose(back.get_qform(), rigid(), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("codes", "after", "noted"), [((1, 0), (1, 0), 0), ((0, 3), (3, 0), 1), ((4, 2), (4, 0), 0)]
    )
    def test_shears(
        self, tmp_path: Path, codes: tuple[int, int], after: tuple[int, int], noted: int
    ) -> None:
        volume = read_volume(save(two_forms(*codes), tmp_path / "v.nii"))
        sheared = rigid()
        sheared[0, 1] += 0.7
        header = replace(volume.header, grid=Grid((4.0, 3.0, 2.0), "mm", sheared))
        with create_volume(str(tmp_path / "back.nii"), header) as writer:
            assert len(writer.notes) == noted
            writer.commit()
        back = nibabel.load(tmp_path / "back.nii").header
        assert (int(back["sform_code"]), int(back["qform_code"])) == after
        np.testing.assert_allclose(back.get_best_affine(), sheared, rtol=1e-6)
        np.testing.assert_allclose(
            back["pixdim"][1:4], np.linalg.norm(sheared[:3, :3], axis=0), rtol=1e-6
        )

    def test_a_sheared_qform_beside_a_sform(self, tmp_path: Path) -> None:
        volume = read_volume(save(two_forms(4, 2), tmp_path / "v.nii"))
        sheared = rigid()
        sheared[0, 1] += 0.7
        header = replace(volume.header, grid=replace(volume.grid, qform=sheared))
        with create_volume(str(tmp_path / "back.nii"), header) as writer:
            assert "shear" in " ".join(writer.notes)
            writer.commit()
        back = nibabel.load(tmp_path / "back.nii").header
        assert (int(back["sform_code"]), int(back["qform_code"])) == (4, 2)
        np.testing.assert_array_equal(back.get_sform(), volume.grid.affine)

    @pytest.mark.parametrize(
        "matrix", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 0, 1, 1])]
    )
    def test_affines_that_are_none(self, tmp_path: Path, matrix: np.ndarray) -> None:
        volume = Volume(values((3, 4, 5), np.uint8), "zyx", Grid((1.0, 1.0, 1.0), "mm", matrix))
        with pytest.raises(WriteError, match="affine"):
            write_volume(str(tmp_path / "v.nii"), volume)
        assert os.listdir(tmp_path) == []

    def test_voxel_sizes_that_are_none_are_1_and_noted(self, tmp_path: Path) -> None:
        for value in (0, np.nan, np.inf):
            path = save(two_forms(0, 1), tmp_path / "v.nii")
            before = read_volume(path).grid.spacing
            patch(path, 84, "<f", value)
            with open_volume(path) as reader:
                assert reader.header.grid.spacing == pytest.approx((before[0], 1, before[2]))
                assert "h" in reader.header.grid.assumed
                assert f"pixdim[2] is {value:g}" in " ".join(reader.notes)
            # a sform is used all the same
            path = save(two_forms(1, 1), tmp_path / "v.nii")
            patch(path, 84, "<f", value)
            volume = read_volume(path)
            np.testing.assert_allclose(volume.grid.spacing, (4.5, 3, 2.25), rtol=1e-6)
            write_volume(str(tmp_path / "back.nii"), volume, overwrite=True)

    def test_an_axis_of_one_voxel_needs_no_size(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "v.nii", values((3, 4)))
        patch(path, 88, "<f", 0)
        assert read_volume(path).grid.spacing == (1, 1, 1)

    # ----------------------------------------------------------------------------------------------
    # -----------------------
    # The rest of the header

    @pytest.mark.parametrize("version", [1, 2])
    def test_half_a_turn_is_no_less_for_rounding(self, tmp_path: Path, version: int) -> None:
        """(b, c, d) of the scan that nibabel ships, which rounding made too short: that would turn
        it by 6e-5.
        """
        quaternion = np.float32([0, -0.9967085123062134, -0.0810687392950058])
        fields = dict(zip(("quatern_b", "quatern_c", "quatern_d"), quaternion, strict=True))
        path = saved(
            tmp_path / "turn.nii",
            values((3, 4, 5)),
            version=version,
            qform_code=1,
            sform_code=0,
            **fields,
        )
        expected = nibabel.load(path).header.get_qform()
        with open_volume(path) as reader:
            np.testing.assert_allclose(reader.header.grid.affine, expected, atol=1e-9)


class TestHeader:
    def described(self, version: int = 1, order: str = "<") -> Any:
        made = two_forms(1, 1, version, order=order)
        header = made.header
        header.set_xyzt_units("mm", "msec")
        header["descrip"] = b"a scan, 80 characters at most"
        header["aux_file"] = b"aux.txt"
        header["toffset"] = 2.5
        header["intent_code"], header["intent_name"], header["intent_p1"] = 5, b"z", 3
        header["cal_min"], header["cal_max"] = 10, 90
        header.set_dim_info(freq=0, phase=1, slice=2)
        header["slice_start"], header["slice_end"] = 1, 6
        header["slice_duration"], header["slice_code"] = 0.25, 3
        return made

    KEPT = (
        "descrip",
        "aux_file",
        "toffset",
        "intent_code",
        "intent_name",
        "intent_p1",
        "intent_p2",
        "intent_p3",
        "xyzt_units",
        "pixdim",
    )
    SLICES = ("slice_start", "slice_end", "slice_duration", "slice_code", "dim_info")

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_unchanged_volumes_keep_it(
        self, tmp_path: Path, version: int, order: str, suffix: str
    ) -> None:
        path = save(self.described(version, order), tmp_path / "v.nii")
        before = nibabel.load(path).header
        back = written(tmp_path / f"back{suffix}", read_volume(path))
        assert int(back.header["sizeof_hdr"]) == {1: 348, 2: 540}[version]
        assert back.header.endianness == "<"
        for name in (*self.KEPT, *self.SLICES):
            np.testing.assert_array_equal(before[name], back.header[name], err_msg=name)
        assert (float(back.header["cal_min"]), float(back.header["cal_max"])) == (0, 0)

    @pytest.mark.parametrize(
        ("transform", "sizes", "kept"),
        [
            (VoxelTransform(), {"y": 5}, True),
            (VoxelTransform((1, 2, 2), (0, 1, 1)), {"y": 4, "x": 3}, True),
            (VoxelTransform(), {"z": 6}, False),
            (VoxelTransform((2, 1, 1), (0, 0, 0)), {"z": 4}, False),
            (VoxelTransform((1, 1, 1), (0.5, 0, 0)), {}, False),
        ],
    )
    def test_slice_timing(
        self, tmp_path: Path, transform: VoxelTransform, sizes: dict[str, int], kept: bool
    ) -> None:
        path = save(self.described(), tmp_path / "v.nii")
        with open_volume(path) as reader:
            source = reader.header
        header = replace(
            source,
            axes=source.axes.renamed("zyx", sizes),
            grid=grid_after(source.grid, transform),
            transform=transform,
        )
        with create_volume(str(tmp_path / "back.nii"), header) as writer:
            writer.commit()
        before, after = (nibabel.load(p).header for p in (path, tmp_path / "back.nii"))
        if kept:
            for name in self.SLICES:
                assert before[name] == after[name]
        else:
            assert after.get_dim_info() == (0, 1, None)
            assert [float(after[name]) for name in self.SLICES[:4]] == [0, 0, 0, 0]

    def test_scalars_have_other_intents_than_vectors(self, tmp_path: Path) -> None:
        source = read_volume(save(self.described(), tmp_path / "v.nii"))
        more = replace(source, data=np.stack([source.data] * 3), axes="czyx")
        back = written(tmp_path / "c.nii", more)
        assert back.shape == (6, 7, 8, 1, 3)
        assert back.header.get_intent("code") == (1007, (), "")
        fewer = replace(read_volume(str(tmp_path / "c.nii")), data=source.data, axes="zyx")
        assert written(tmp_path / "d.nii", fewer).header.get_intent("code") == (0, (), "")

    @pytest.mark.parametrize("intent", [0, 1006, 1007])
    def test_vectors_keep_their_intent(self, tmp_path: Path, intent: int) -> None:
        path = saved(tmp_path / "v.nii", values((3, 4, 5, 1, 3), np.float32), intent_code=intent)
        back = written(tmp_path / "back.nii", read_volume(path))
        assert int(back.header["intent_code"]) == intent
        assert back.header["dim"].tolist() == [5, 3, 4, 5, 1, 3, 1, 1]

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
    def test_colours_that_are_not_bytes_become_vectors(self, tmp_path: Path, suffix: str) -> None:
        pixels = values((3, 4, 5, 2, 3), np.uint8)
        colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        source = read_volume(saved(tmp_path / "v.nii", pixels.view(colour)[..., 0]))
        back = written(
            tmp_path / f"back{suffix}", replace(source, data=source.data.astype(np.float32))
        )
        assert back.shape == (3, 4, 5, 2, 3)
        assert back.get_data_dtype() == np.float32
        assert int(back.header["intent_code"]) == 1007
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), pixels)
        # also where the caller keeps the samples last: slabs come as pixels and are spooled into
        # vectors
        header = replace(source.header, dtype=np.dtype(np.float32))
        with create_volume(str(tmp_path / f"again{suffix}"), header) as writer:
            assert not writer.sequential
            assert writer.header.axes.letters == "ctzyx"
            for n in (1, 0):
                block = source.data[n].astype(np.float32)
                writer.write(n, 2, 0, block[2:])
                writer.write(n, 0, 0, block[:2])
            writer.commit()
        np.testing.assert_array_equal(
            np.asanyarray(nibabel.load(tmp_path / f"again{suffix}").dataobj), pixels
        )

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".hdr.gz"])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("version", [1, 2])
    def test_extensions_come_back_byte_for_byte(
        self, tmp_path: Path, suffix: str, order: str, version: int
    ) -> None:
        contents = [
            (6, b"a comment\0"),
            (4, b"<afni/>" + bytes(30)),
            (10000, bytes(range(8))),
            (2, b"not DICOM at all"),
        ]
        pair = suffix.startswith(".hdr")
        header = image(values((3, 4, 5)), version, pair, order).header
        tail = b""
        for code, content in contents:
            padded = content + bytes(-(len(content) + 8) % 16)
            tail += struct.pack(order + "ii", len(padded) + 8, code) + padded
        header["vox_offset"] = 0 if pair else header.single_vox_offset + len(tail)
        voxels = values((3, 4, 5)).astype(order + "i2").tobytes(order="F")
        head = header.binaryblock + b"\1\0\0\0" + tail
        pack = gzip.compress if suffix.endswith(".gz") else bytes
        (tmp_path / f"v{suffix}").write_bytes(pack(head if pair else head + voxels))
        if pair:
            (tmp_path / f"v{suffix}".replace(".hdr", ".img")).write_bytes(pack(voxels))
        volume = read_volume(str(tmp_path / f"v{suffix}"))
        np.testing.assert_array_equal(volume.data, values((3, 4, 5)).T)
        assert [code for code, _ in volume.metadata.extensions] == [6, 4, 10000, 2]
        write_volume(str(tmp_path / f"back{suffix}"), volume)
        unpack = gzip.decompress if suffix.endswith(".gz") else bytes
        after = unpack((tmp_path / f"back{suffix}").read_bytes())
        start = header.sizeof_hdr
        expected = b"\1\0\0\0" + b"".join(
            struct.pack("<ii", len(c) + 8 + -(len(c) + 8) % 16, code)
            + c
            + bytes(-(len(c) + 8) % 16)
            for code, c in contents
        )
        assert after[start : start + len(expected)] == expected
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old nibabel has pydicom read what is not DICOM
            back = nibabel.load(tmp_path / f"back{suffix}")
        assert [e.get_code() for e in back.header.extensions] == [6, 4, 10000, 2]
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), values((3, 4, 5)))

    def test_no_extension_means_none(self, tmp_path: Path) -> None:
        write_volume(str(tmp_path / "v.nii"), Volume(values((3, 4, 5), np.uint8), "zyx"))
        write_volume(str(tmp_path / "v.img"), Volume(values((3, 4, 5), np.uint8), "zyx"))
        assert (tmp_path / "v.nii").read_bytes()[348:352] == bytes(4)
        assert os.path.getsize(tmp_path / "v.nii") == 352 + 60
        assert os.path.getsize(tmp_path / "v.hdr") == 348
        assert os.path.getsize(tmp_path / "v.img") == 60

    @pytest.mark.parametrize("size", [-1, 4, 8192, 2**31 - 1])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr"])
    def test_extensions_that_lie_are_left_out_and_shift_no_voxel(
        self, tmp_path: Path, size: int, suffix: str
    ) -> None:
        pair = suffix == ".hdr"
        data = values((3, 4, 5))
        header = image(data, pair=pair).header
        header["vox_offset"] = 0 if pair else 352 + 32
        head = header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", size, 6) + bytes(24)
        voxels = data.tobytes(order="F")
        content = head if pair else head + voxels
        (tmp_path / f"v{suffix}").write_bytes(
            gzip.compress(content) if suffix.endswith("gz") else content
        )
        (tmp_path / "v.img").write_bytes(voxels)
        with open_volume(str(tmp_path / f"v{suffix}")) as reader:
            assert f"extension 1 says it has {size} bytes" in " ".join(reader.notes)
        volume = read_volume(str(tmp_path / f"v{suffix}"))
        np.testing.assert_array_equal(volume.data, data.T)
        assert volume.metadata.extensions == ()

    @pytest.mark.parametrize("size", [1 << 26, 16])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_extensions_of_many_megabytes_are_left_out(
        self, tmp_path: Path, size: int, suffix: str
    ) -> None:
        """One of 64 MiB, or very many small ones: what they take is bounded, and told."""
        data, total = values((3, 4, 5)), 1 << 26 if size > 16 else 1 << 23
        header = image(data, pair=False).header
        header["vox_offset"] = 352 + total
        one = struct.pack("<ii", size, 6) + bytes(size - 8)
        content = header.binaryblock + b"\1\0\0\0" + one * (total // size) + data.tobytes(order="F")
        path = tmp_path / f"v{suffix}"
        path.write_bytes(gzip.compress(content, 1) if suffix.endswith("gz") else content)
        del content, one
        tracemalloc.start()
        try:
            with open_volume(str(path)) as reader:
                assert tracemalloc.get_traced_memory()[1] < 24 << 20
                assert "its extensions are more than 16 MiB from number" in " ".join(reader.notes)
                read = reader.read(0, slice(0, 5), slice(0, 1))[..., 0]
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(read, data.T)

    def test_long_axes_make_nifti_2(self, tmp_path: Path) -> None:
        path = save(self.described(), tmp_path / "v.nii")
        volume = read_volume(path)
        long = replace(volume, data=np.zeros((2, 1, 32768), np.uint8), metadata=volume.metadata)
        with create_volume(str(tmp_path / "note.nii"), long.header) as writer:
            assert "NIfTI-2" in " ".join(writer.notes)
        back = written(tmp_path / "back.nii.gz", long)
        assert isinstance(back, nibabel.Nifti2Image)
        assert back.shape == (32768, 1, 2)
        before = nibabel.load(path).header
        for name in self.KEPT:
            np.testing.assert_array_equal(before[name], back.header[name], err_msg=name)
        np.testing.assert_array_equal(before.get_sform(), back.header.get_sform())
        again = written(
            tmp_path / "again.nii",
            replace(read_volume(str(tmp_path / "back.nii.gz")), data=volume.data),
        )
        assert isinstance(again, nibabel.Nifti2Image)
        fresh = written(tmp_path / "fresh.nii", Volume(np.zeros((1, 1, 40000), np.uint8), "zyx"))
        assert isinstance(fresh, nibabel.Nifti2Image)

    @pytest.mark.parametrize(
        ("letters", "shape", "dim", "noted"),
        [
            ("tzyx", (2, 5, 4, 3), (3, 4, 5, 2), False),
            ("tczyx", (2, 6, 5, 4, 3), (3, 4, 5, 2, 6), False),
            ("qzyx", (2, 5, 4, 3), (3, 4, 5, 2), True),
            ("qtzyx", (2, 3, 5, 4, 3), (3, 4, 5, 3, 1, 2), True),
            ("tqzyx", (3, 2, 5, 4, 3), (3, 4, 5, 2, 1, 3), True),
            ("rqtzyxc", (2, 2, 3, 5, 4, 3, 6), (3, 4, 5, 3, 6, 2, 2), True),
            ("tyx", (2, 4, 3), (3, 4, 1, 2), False),
            ("cyx", (2, 4, 3), (3, 4, 1, 1, 2), False),
        ],
    )
    def test_where_axes_go(
        self,
        tmp_path: Path,
        letters: str,
        shape: tuple[int, ...],
        dim: tuple[int, ...],
        noted: bool,
    ) -> None:
        volume = Volume(values(shape), letters)
        back = written(tmp_path / "v.nii.gz", volume)
        assert back.header["dim"].tolist() == [len(dim), *dim, *[1] * (7 - len(dim))]
        header = replace(volume.header, axes=volume.header.axes)
        with create_volume(str(tmp_path / "note.nii"), header) as writer:
            assert bool(writer.notes) == noted
        again = read_volume(str(tmp_path / "v.nii.gz"))
        assert again.shape == volume.shape
        for n in range(volume.shape[0]):
            whole = (n, slice(None), slice(None))
            np.testing.assert_array_equal(
                again.header.axes.block(again.data, *whole),
                volume.header.axes.block(volume.data, *whole),
            )

    def test_more_axes_than_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(WriteError, match="abde"):
            write_volume(str(tmp_path / "v.nii"), Volume(values((1, 2, 1, 2, 3, 3, 3)), "abdezyx"))

    @pytest.mark.parametrize(
        ("dtype", "cure"),
        [("int64", "int32"), ("uint64", "uint32"), ("float16", "float32"), ("bool", "uint8")],
    )
    def test_dtypes_that_are_not_written(self, tmp_path: Path, dtype: str, cure: str) -> None:
        for suffix in SUFFIXES:
            with pytest.raises(WriteError, match=f"pass dtype='{cure}'"):
                write_volume(
                    str(tmp_path / f"v{suffix}"), Volume(values((3, 4, 5)).astype(dtype), "zyx")
                )
        assert os.listdir(tmp_path) == []


# --------------------------------------------------------------------------------------------------
# Headers that lie

LIES_1 = [
    (0, "<i", 349, "348"),
    (0, "<i", 0, "348"),
    (40, "<h", 0, "dim\\[0\\]"),
    (40, "<h", 8, "dim\\[0\\]"),
    (40, "<h", -1, "dim\\[0\\]"),
    (40, "<h", 1, "1 axis"),
    (42, "<h", 0, "at least 1"),
    (44, "<h", -4, "at least 1"),
    (46, "<h", 32767, "truncated"),
    (40, "<8h", (7, *[32767] * 7), "truncated"),
    (70, "<hh", (0, 16), "datatype 0"),
    (70, "<hh", (1, 1), "datatype 1"),
    (70, "<hh", (77, 16), "datatype 77"),
    (70, "<hh", (32, 64), "complex"),
    (70, "<hh", (1792, 128), "complex"),
    (70, "<hh", (2048, 256), "complex"),
    (70, "<hh", (64, 64), "truncated"),
    (108, "<f", 0, "vox_offset"),
    (108, "<f", 348, "vox_offset"),
    (108, "<f", -1, "vox_offset"),
    (108, "<f", 352.5, "vox_offset"),
    (108, "<f", np.nan, "vox_offset"),
    (108, "<f", np.inf, "vox_offset"),
    (108, "<f", 368, "truncated"),
    (108, "<f", 3e38, "truncated"),
    (344, "4s", b"n+2\0", "magic"),
    (344, "4s", bytes(4), "magic"),
]


class TestLies:
    @pytest.mark.parametrize(("position", "layout", "value", "told"), LIES_1)
    @pytest.mark.parametrize("packed", [False, True])
    def test_nifti_1(
        self, tmp_path: Path, position: int, layout: str, value: Any, told: str, packed: bool
    ) -> None:
        path = saved(tmp_path / "v.nii", values((3, 4, 5)))
        patch(path, 252, "<hh", 0, 0)  # neither form
        patch(path, position, layout, *(value if isinstance(value, tuple) else (value,)))
        if packed:
            content = Path(path).read_bytes()
            path = str(tmp_path / "v.nii.gz")
            Path(path).write_bytes(gzip.compress(content))
        with pytest.raises(FormatError, match=told):
            read_volume(path)
        error_of(path)

    @pytest.mark.parametrize(
        ("position", "layout", "value", "told"),
        [
            (4, "4s", b"n+1\0", "magic"),
            (8, "4B", (10, 26, 10, 0), "text mode"),
            (16, "<q", 2**40, "dim\\[0\\]"),
            (24, "<q", -(2**40), "at least 1"),
            (24, "<q", 2**62, "truncated"),
            (168, "<q", 352, "vox_offset"),
            (168, "<q", 2**62, "truncated"),
        ],
    )
    @pytest.mark.parametrize("packed", [False, True])
    def test_nifti_2(
        self, tmp_path: Path, position: int, layout: str, value: Any, told: str, packed: bool
    ) -> None:
        path = saved(tmp_path / "v.nii", values((3, 4, 5)), version=2)
        patch(path, position, layout, *(value if isinstance(value, tuple) else (value,)))
        if packed:
            content = Path(path).read_bytes()
            path = str(tmp_path / "v.nii.gz")
            Path(path).write_bytes(gzip.compress(content))
        with pytest.raises(FormatError, match=told):
            read_volume(path)
        error_of(path)

    @pytest.mark.parametrize(("field", "count"), [("quatern_b", 256), ("qoffset_z", 276)])
    def test_a_spoilt_qform(self, tmp_path: Path, field: str, count: int) -> None:
        path = save(two_forms(0, 1), tmp_path / "v.nii")
        patch(path, count, "<f", np.nan)
        assert "qform" in error_of(path)
        path = save(two_forms(1, 1), tmp_path / "v.nii")
        patch(path, count, "<f", np.nan)
        assert read_volume(path).grid.qform is None

    @pytest.mark.parametrize("rows", [(np.nan, 0, 0, 0), (np.inf, 1, 1, 1), None])
    def test_a_spoilt_sform(self, tmp_path: Path, rows: tuple[float, ...] | None) -> None:
        path = save(two_forms(1, 0), tmp_path / "v.nii")
        patch(path, 280, "<12f", *(rows or (0,) * 4), *(0,) * 8)
        assert "sform" in error_of(path)

    def test_nothing_is_made_room_for(self, tmp_path: Path) -> None:
        """Four gigabytes promised by 400 bytes: refused at once, whatever the memory."""
        content = bytearray(image(values((3, 4, 5))).to_bytes())
        struct.pack_into("<8h", content, 40, 3, 2000, 1000, 1000, 1, 1, 1, 1)
        (tmp_path / "v.nii.gz").write_bytes(gzip.compress(content))
        assert "promises" in error_of(tmp_path / "v.nii.gz")

    def test_a_stream_that_ends_well_but_early(self, tmp_path: Path) -> None:
        content = image(values((3, 4, 5))).to_bytes()
        for length in (0, 3, 200, 347, 350, 352, 400, len(content) - 1):
            (tmp_path / "v.nii.gz").write_bytes(gzip.compress(content[:length]))
            error_of(tmp_path / "v.nii.gz")

    @given(st.data())
    @settings(
        max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_any_spoilt_bytes(self, tmp_path: Path, data: st.DataObject) -> None:
        """Read, or one FormatError: nothing else may come of a damaged header."""
        version = data.draw(st.sampled_from([1, 2]))
        content = bytearray(two_forms(1, 1, version).to_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, 347 if version == 1 else 539))
            content[position] = data.draw(st.integers(0, 255))
        path = tmp_path / "v.nii"
        path.write_bytes(content)
        try:
            volume = read_volume(str(path))
        except FormatError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            try:
                write_volume(str(tmp_path / "back.nii"), volume, overwrite=True)
            except WriteError as error:
                assert "pass dtype=" in str(error) or "affine" in str(error)  # noqa: PT017


# --------------------------------------------------------------------------------------------------
# Pairs


class TestPairs:
    @pytest.mark.parametrize(
        "name", ["v.hdr", "v.img", "v.hdr.gz", "v.img.gz", "V.HDR", "V.IMG.GZ"]
    )
    def test_either_name(self, tmp_path: Path, name: str) -> None:
        volume = Volume(values((5, 4, 3)), "zyx", Grid((3.0, 2.0, 1.0), "mm"))
        write_volume(str(tmp_path / name), volume)
        names = sorted(os.listdir(tmp_path))
        assert len(names) == 2
        assert {n.lower().removesuffix(".gz")[-4:] for n in names} == {".hdr", ".img"}
        for found in names:
            np.testing.assert_array_equal(read_volume(str(tmp_path / found)).data, volume.data)
        if name.islower():
            back = nibabel.load(tmp_path / name)
            assert isinstance(back, nibabel.Nifti1Pair)
            np.testing.assert_array_equal(np.asanyarray(back.dataobj), volume.data.T)

    @pytest.mark.parametrize("packed", ["hdr", "img"])
    def test_one_half_compressed(self, tmp_path: Path, packed: str) -> None:
        data = values((3, 4, 5))
        saved(tmp_path / "v.hdr", data)
        plain = tmp_path / f"v.{packed}"
        (tmp_path / f"v.{packed}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        for name in os.listdir(tmp_path):
            np.testing.assert_array_equal(read_volume(str(tmp_path / name)).data, data.T)

    @pytest.mark.parametrize(
        ("gone", "given", "told"), [("hdr", "img", "header"), ("img", "hdr", "voxels")]
    )
    def test_one_half_missing(self, tmp_path: Path, gone: str, given: str, told: str) -> None:
        saved(tmp_path / "v.hdr", values((3, 4, 5)))
        (tmp_path / f"v.{gone}").unlink()
        message = error_of(tmp_path / f"v.{given}")
        assert told in message
        assert f"v.{gone}" in message

    @pytest.mark.parametrize("given", ["hdr", "img"])
    @pytest.mark.parametrize("there", ["hdr", "img"])
    def test_both_names_are_protected(self, tmp_path: Path, given: str, there: str) -> None:
        (tmp_path / f"v.{there}").write_bytes(b"precious")
        with pytest.raises(OutputExistsError, match=f"v.{there}"):
            write_volume(str(tmp_path / f"v.{given}"), Volume(values((5, 4, 3)), "zyx"))
        assert os.listdir(tmp_path) == [f"v.{there}"]
        assert (tmp_path / f"v.{there}").read_bytes() == b"precious"

    def test_the_header_comes_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        order = []
        move = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).suffix), move(a, b)))
        write_volume(str(tmp_path / "v.hdr"), Volume(values((5, 4, 3)), "zyx"))
        assert order == [".img", ".hdr"]

    def test_a_pair_becomes_a_single_file_and_back(self, tmp_path: Path) -> None:
        made = image(values((3, 4, 5), np.float32), pair=True, affine=rigid())
        made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))
        save(made, tmp_path / "v.hdr")
        one = written(tmp_path / "v.nii", read_volume(str(tmp_path / "v.img")))
        two = written(tmp_path / "w.img", read_volume(str(tmp_path / "v.nii")))
        for back in (one, two):
            assert back.header.extensions.get_codes() == [6]
            np.testing.assert_array_equal(back.affine, nibabel.load(tmp_path / "v.hdr").affine)
            np.testing.assert_array_equal(np.asanyarray(back.dataobj), values((3, 4, 5)))


# --------------------------------------------------------------------------------------------------
# Compressed streams


def smooth(shape: tuple[int, ...] = (40, 50, 60)) -> np.ndarray:
    return (1000 * np.sin(np.arange(np.prod(shape)) / 500)).astype(np.int16).reshape(shape)


class TestStreams:
    @pytest.fixture(params=PACK)
    def suffix(self, request: pytest.FixtureRequest) -> str:
        return request.param

    def test_truncated_at_many_points(self, tmp_path: Path, suffix: str) -> None:
        content = PACK[suffix](image(smooth()).to_bytes())
        path = tmp_path / f"v{suffix}"
        for length in [
            *range(1, 40),
            *range(40, len(content), len(content) // 60),
            *range(len(content) - 20, len(content)),
        ]:
            path.write_bytes(content[:length])
            assert "truncated" in error_of(path) or length < 20

    def test_truncated_within_a_slab(self, tmp_path: Path, suffix: str) -> None:
        content = PACK[suffix](image(smooth((100, 80, 60))).to_bytes())
        path = tmp_path / f"v{suffix}"
        path.write_bytes(content[:-30])
        with open_volume(str(path)) as reader:
            reader.read(0, slice(0, 3), slice(0, 1))
            with pytest.raises(FormatError, match="truncated"):
                reader.read(0, slice(3, 60), slice(0, 1))

    @pytest.mark.parametrize("position", [-8, -5, -4, -1])
    def test_checksum_and_length(self, tmp_path: Path, suffix: str, position: int) -> None:
        """What the trailer says is compared, even if no voxel is missing."""
        content = bytearray(PACK[suffix](image(smooth()).to_bytes()))
        content[position] ^= 1
        (tmp_path / f"v{suffix}").write_bytes(content)
        assert "corrupt" in error_of(tmp_path / f"v{suffix}")

    @pytest.mark.parametrize(
        "garbage",
        [b"\x01garbage", b"GARBAGE12byt", b"\x1f\x8b\x08 not really", b"\0\0\0x"],
    )
    def test_bytes_behind_the_stream(self, tmp_path: Path, suffix: str, garbage: bytes) -> None:
        """Ignored behind gzip, as `gzip -t` does, unless they begin like another member."""
        path = tmp_path / f"v{suffix}"
        path.write_bytes(PACK[suffix](image(smooth()).to_bytes()) + garbage)
        if suffix != ".nii.gz" or garbage.startswith(b"\x1f\x8b"):
            error_of(path)
            return
        np.testing.assert_array_equal(read_volume(str(path)).data, smooth().T)
        with open_volume(str(path)) as reader:
            reader.read(0, slice(0, reader.header.shape[1]), slice(0, 1))
            reader.finish()
            assert any("follow its gzip stream" in note for note in reader.notes)

    def test_damaged_in_the_middle(
        self, tmp_path: Path, suffix: str, rng: np.random.Generator
    ) -> None:
        content = PACK[suffix](image(smooth()).to_bytes())
        for _ in range(30):
            damaged = bytearray(content)
            damaged[int(rng.integers(20, len(content) - 8))] ^= 1 << int(rng.integers(8))
            (tmp_path / f"v{suffix}").write_bytes(damaged)
            try:
                volume = read_volume(str(tmp_path / f"v{suffix}"))
            except FormatError:
                continue
            np.testing.assert_array_equal(volume.data, smooth().T)  # a bit that nothing depends on

    def test_several_members_and_padding(self, tmp_path: Path, suffix: str) -> None:
        content = image(smooth()).to_bytes()
        packed = (
            PACK[suffix](content[:1000])
            + PACK[suffix](content[1000:])
            + bytes(512 if suffix == ".nii.gz" else 0)
        )
        (tmp_path / f"v{suffix}").write_bytes(packed)
        np.testing.assert_array_equal(read_volume(str(tmp_path / f"v{suffix}")).data, smooth().T)

    def test_forward_only(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "v.nii.gz", smooth())
        with open_volume(path) as reader:
            assert reader.sequential
            np.testing.assert_array_equal(
                reader.read(0, slice(20, 25), slice(0, 1))[..., 0], smooth().T[20:25]
            )
            with pytest.raises(RuntimeError, match="forward"):
                reader.read(0, slice(24, 26), slice(0, 1))
            np.testing.assert_array_equal(
                reader.read(0, slice(58, 60), slice(0, 1))[..., 0], smooth().T[58:]
            )
            reader.finish()

    def test_channels_one_by_one(self, tmp_path: Path) -> None:
        data = values((3, 4, 5, 2, 3))
        path = saved(tmp_path / "v.nii.gz", data)
        with open_volume(path) as reader:
            np.testing.assert_array_equal(
                reader.read(1, slice(2, 4), slice(2, 3))[..., 0], data[:, :, 2:4, 1, 2].T
            )
        with open_volume(path) as reader, pytest.raises(RuntimeError, match="one by one"):
            reader.read(0, slice(0, 1), slice(0, 3))

    def test_no_more_than_a_slab_is_held(self, tmp_path: Path, suffix: str) -> None:
        import tracemalloc

        data = np.zeros((256, 256, 256), np.uint8)
        data[::7] = 3
        write_volume(str(tmp_path / f"v{suffix}"), Volume(data, "zyx"))
        tracemalloc.start()
        with open_volume(str(tmp_path / f"v{suffix}")) as reader:
            for start in range(0, 256, 4):
                assert reader.read(0, slice(start, start + 4), slice(0, 1)).shape == (
                    4,
                    256,
                    256,
                    1,
                )
            reader.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20

    def test_slabs_out_of_order_are_refused(self, tmp_path: Path, suffix: str) -> None:
        header = empty_header("czyx", (2, 4, 3, 2))
        with create_volume(str(tmp_path / f"v{suffix}"), header) as writer:
            block = np.zeros((2, 3, 2, 1), np.float32)
            for n, depth, channel in ((0, 2, 0), (0, 0, 1)):
                with pytest.raises(RuntimeError, match="order"):
                    writer.write(n, depth, channel, block)
            with pytest.raises(RuntimeError, match="order"):
                writer.write(0, 0, 0, np.zeros((2, 3, 2, 2), np.float32))
            writer.write(0, 0, 0, block)
            with pytest.raises(RuntimeError, match="12 of 48"):
                writer.commit()
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("level", [0, 1, 2, 3])
    @pytest.mark.parametrize("size", [0, 5, 1 << 20, (1 << 20) - 352, (3 << 20) + 17])
    def test_streams_are_read_by_others(
        self, level: int, size: int, rng: np.random.Generator
    ) -> None:
        for data in (rng.bytes(size), bytes(size)):
            stream = packed.packed(data, codec_named("v.gz"), level)
            assert gzip.decompress(stream) == data
            assert zlib.decompress(stream, 31) == data  # one member
            assert stream[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"

    def test_bytes_do_not_depend_on_threads_or_writes(
        self, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
    ) -> None:
        volume = Volume(rng.normal(size=(60, 200, 150)).astype(np.float32).cumsum(axis=2), "zyx")
        results = set()
        for threads, depth in (("1", 60), ("2", 1), ("7", 17)):
            monkeypatch.setenv("CONV3D_THREADS", threads)
            path = tmp_path / f"v{threads}{suffix}"
            with create_volume(str(path), volume.header) as writer:
                for start in range(0, 60, depth):
                    writer.write(0, start, 0, volume.data[start : start + depth, ..., np.newaxis])
                writer.commit()
            results.add(path.read_bytes())
        assert len(results) == 1
        np.testing.assert_array_equal(read_volume(str(path)).data, volume.data)

    def test_levels(self, tmp_path: Path) -> None:
        volume = Volume(smooth((60, 200, 100)), "zyx")
        sizes = []
        for level in (0, 3):
            path = str(tmp_path / f"v{level}.nii.gz")
            write_volume(path, volume, gz_level=level)
            sizes.append(os.path.getsize(path))
            np.testing.assert_array_equal(read_volume(path).data, volume.data)
        assert sizes[1] < sizes[0] < volume.data.nbytes

    def test_the_callers_buffer_is_free_again(
        self, tmp_path: Path, suffix: str, rng: np.random.Generator
    ) -> None:
        data = rng.integers(0, 255, (40, 300, 300), np.uint8)
        with create_volume(
            str(tmp_path / f"v{suffix}"), empty_header("zyx", data.shape, "uint8")
        ) as writer:
            block = np.empty((20, 300, 300, 1), np.uint8)
            for start in (0, 20):
                block[..., 0] = data[start : start + 20]
                writer.write(0, start, 0, block)
                block[...] = 0
            writer.commit()
        np.testing.assert_array_equal(read_volume(str(tmp_path / f"v{suffix}")).data, data)

    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".nii.zst"])
    def test_a_full_disk(self, tmp_path: Path, suffix: str) -> None:
        """A limit on file sizes stands in for it: the error is a WriteError, no thread hangs,
        nothing stays behind.
        """
        code = """
import resource, sys, threading
import numpy as np
from conv3d_cli.errors import WriteError
from conv3d_cli.formats import write_volume
from conv3d_cli.model.volume import Volume
data = np.random.default_rng(0).integers(0, 255, (60, 256, 256), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    write_volume(sys.argv[1], Volume(data, "zyx"))
except WriteError as error:
    print(error, threading.active_count())
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"v{suffix}")],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"cannot write {tmp_path}")
        assert "ulimit" in done.stdout
        assert done.stdout.rstrip().endswith(" 1")
        assert done.stderr == ""
        assert os.listdir(tmp_path) == []

    def test_abort_while_blocks_are_packed(
        self, tmp_path: Path, suffix: str, rng: np.random.Generator
    ) -> None:
        data = rng.normal(size=(64, 256, 256, 1)).astype(np.float32)
        with create_volume(
            str(tmp_path / f"v{suffix}"), empty_header("zyx", data.shape[:3])
        ) as writer:
            writer.write(0, 0, 0, data[:40])
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("size", [5, 1 << 20, (3 << 20) + 17])
    def test_zstd_frames(self, size: int, rng: np.random.Generator) -> None:
        """One for each MiB, each with a checksum and its size; no level changes them."""
        for data in (rng.bytes(size), bytes(size)):
            streams = {packed.packed(data, codec_named("v.zst"), level) for level in (0, 1, 3)}
            assert len(streams) == 1
            (stream,) = streams
            frames = 0
            while stream:
                assert stream[4] & 0b100  # a checksum follows
                assert zstd.get_frame_info(stream).decompressed_size == len(data[:1048576])
                frame = zstd.ZstdDecompressor()
                assert frame.decompress(stream) == data[:1048576]
                stream, data, frames = frame.unused_data, data[1048576:], frames + 1
            assert (data, frames) == (b"", -(-size // 1048576))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_zstd_of_other_encoders(self, tmp_path: Path, workers: int) -> None:
        """A stream without sizes or checksums, and frames to be skipped, which pzstd puts before
        each of its own.
        """
        content = image(smooth()).to_bytes()
        with zstd.open(
            tmp_path / "v.zst", "wb", options={zstd.CompressionParameter.nb_workers: workers}
        ) as file:
            for start in range(0, len(content), 1000):
                file.write(content[start : start + 1000])
        skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"abcd"
        frame = (tmp_path / "v.zst").read_bytes()
        for name in ("v.nii.zst", "v.nii"):
            (tmp_path / name).write_bytes(skipped + frame + skipped + zstd_frame(b""))
            np.testing.assert_array_equal(read_volume(str(tmp_path / name)).data, smooth().T)
        for length in (3, 10, len(skipped), len(skipped) + 3, len(skipped) + len(frame) + 5):
            (tmp_path / "v.nii.zst").write_bytes((skipped + frame + skipped)[:length])
            error_of(tmp_path / "v.nii.zst")

    @pytest.mark.parametrize("log", [17, 23, 27, 28])
    def test_zstd_windows_are_counted(self, tmp_path: Path, log: int) -> None:
        """What unpacking holds beside the slabs, up to the limit of zstd itself."""
        parameter = zstd.CompressionParameter
        path = str(saved(tmp_path / "v.nii", np.zeros((256, 256, 40), np.int16)))
        skipped = b"\x5f\x2a\x4d\x18" + struct.pack("<I", 30) + bytes(30)
        compressor = zstd.ZstdCompressor(options={parameter.window_log: log})
        content = Path(path).read_bytes()
        stream = (
            compressor.compress(content[:1000])
            + compressor.compress(content[1000:])
            + compressor.flush()
        )
        (tmp_path / "v.nii.zst").write_bytes(skipped + stream)
        if log == 28:
            assert "window of 256 MiB" in error_of(tmp_path / "v.nii.zst")
            return
        with open_volume(str(tmp_path / "v.nii.zst")) as reader:
            assert reader.buffer_bytes(1, 1) == min(1 << log, len(content))
        (tmp_path / "v.nii.zst").write_bytes(zstd_frame(content))  # of a known size: one segment
        with open_volume(str(tmp_path / "v.nii.zst")) as reader:
            assert 1 << 20 <= reader.buffer_bytes(1, 1) <= len(content)

    def test_zstd_shrinks_no_further_than_is_believed(self) -> None:
        codec = codec_named("v.zst")
        assert codec is not None
        data = bytes(64 << 20)
        assert len(data) <= codec.largest_inflation * min(
            len(zstd.compress(data, level)) for level in (1, 19)
        )

    def test_zstd_that_is_not_installed(self, tmp_path: Path) -> None:
        code = """
import sys
sys.modules["backports.zstd"] = sys.modules["compression.zstd"] = None
import numpy as np
from conv3d_cli import formats
from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.model.volume import Volume
path = sys.argv[1]
for work in (
    lambda: formats.read_volume(path),
    lambda: formats.check_output(path, overwrite=True),
    lambda: formats.write_volume(path, Volume(np.zeros((2, 2, 2)), "zyx"), overwrite=True),
):
    try:
        work()
    except (FormatError, WriteError) as error:
        print(error)
"""
        (tmp_path / "v.nii.zst").write_bytes(zstd_frame(image(smooth()).to_bytes()))
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "v.nii.zst")],
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        lines = done.stdout.splitlines()
        assert [line.split()[1] for line in lines] == ["read", "write", "write"], done.stderr
        assert all(
            "v.nii.zst" in line and line.endswith("pip install 'conv3d[zstd]'") for line in lines
        )
        assert os.listdir(tmp_path) == ["v.nii.zst"]


# --------------------------------------------------------------------------------------------------
# Both ways


@given(st.data())
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    """nibabel -> conv3d -> conv3d -> nibabel: voxels, shape, affine and codes."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=6), label="shape"))
    dtype = data.draw(
        st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"]), label="dtype"
    )
    order = data.draw(st.sampled_from("<>"), label="order")
    version = data.draw(st.sampled_from([1, 2]), label="version")
    first, second = (data.draw(st.sampled_from(SUFFIXES), label="suffix") for _ in range(2))
    codes = data.draw(st.sampled_from(CODES), label="codes")
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    rng = np.random.default_rng(seed)
    stored = np.frombuffer(rng.bytes(int(np.prod(shape)) * int(dtype[1])), order + dtype).reshape(
        shape
    )
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3] = np.c_[turn * rng.uniform(0.1, 5, 3), rng.normal(size=3) * 100]
    made = image(stored, version, first in (".hdr", ".img.gz"), order)
    made.header.set_sform(affine if codes[0] else None, code=codes[0])
    made.header.set_qform(affine if codes[1] else None, code=codes[1])
    path = save(made, tmp_path / f"a{first}")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, stored.T)
    back = written(tmp_path / f"b{second}", volume, overwrite=True)
    before = nibabel.load(path)
    assert back.shape == before.shape
    assert back.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), stored)
    np.testing.assert_array_equal(back.affine, before.affine)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == codes


def test_the_real_scan_survives(tmp_path: Path) -> None:
    reference = nibabel.load(REAL_SCAN)
    back = written(tmp_path / "v.nii.gz", read_volume(str(REAL_SCAN)))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), np.asanyarray(reference.dataobj))
    for name in reference.header:
        if name not in ("cal_max", "cal_min", "scl_slope", "scl_inter", "vox_offset"):
            np.testing.assert_array_equal(reference.header[name], back.header[name], err_msg=name)
    assert [e.get_content() for e in back.header.extensions] == [
        e.get_content() for e in reference.header.extensions
    ]
    assert FORMAT.claims("BRAIN.NII.GZ")


# --------------------------------------------------------------------------------------------------
# Pairs whose process ends while they take their places

ENDING = """
import os, signal, sys
import numpy as np
from conv3d_cli.formats import write_volume
from conv3d_cli.model.volume import Volume

path, call, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
calls = 0

def ending(real):
    def step(*arguments, **options):
        global calls
        calls += 1
        if calls == call:
            if how == "kill":
                os._exit(9)
            signal.raise_signal(getattr(signal, how))
        return real(*arguments, **options)
    return step

for name in ("rename", "replace", "link", "unlink"):
    setattr(os, name, ending(getattr(os, name)))
write_volume(path, Volume(np.full((4, 5, 6), 2.5, np.float32), "zyx"), overwrite=True)
"""


def pair_after(folder: Path, call: int, how: str, old: bool) -> tuple[int, str]:
    """(exit code, what is there) after a process that writes float32 over uint8 ended at one of its
    renames.
    """
    for path in folder.iterdir():
        path.unlink()
    if old:
        save(image(np.full((6, 5, 4), 7, np.uint8), pair=True), folder / "o.hdr")
    command = [sys.executable, "-c", ENDING, str(folder / "o.hdr"), str(call), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if "o.hdr" not in there or "o.img" not in there:
        return done.returncode, "none" if how == "kill" else f"none {there}"
    found = np.asanyarray(nibabel.load(folder / "o.hdr").dataobj)
    if found.dtype == np.uint8:
        return done.returncode, "old" if (found == 7).all() else "MIXED"
    return done.returncode, "new" if (found == 2.5).all() else "MIXED"


@pytest.mark.parametrize("old", [False, True])
def test_a_header_never_stands_beside_voxels_of_another(tmp_path: Path, old: bool) -> None:
    """Whenever the process is killed: nibabel finds the old pair, the new one, or none."""
    seen = []
    for call in range(1, 9):
        code, found = pair_after(tmp_path, call, "kill", old)
        assert code in (0, 9)
        seen.append(found)
        if code == 0:
            break
    assert code == 0, "more steps than were tried"
    assert "MIXED" not in seen
    assert seen[-1] == "new"
    assert len(seen) > 2
    assert not old or seen[0] == "old"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_signals_wait_for_both_files_of_a_pair(tmp_path: Path, how: str, old: bool) -> None:
    for call in (1, 2, 3):
        code, found = pair_after(tmp_path, call, how, old)
        assert found == "new", (call, code)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
