"""DICOM: series made with pydicom and its own test files, compared with what GDCM reads in SimpleITK."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import input_format, open_volume, read_volume, volume_files

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
AXIAL = (1.0, 0, 0, 0, 1, 0)
# turned about all three axes
TURN = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.1, 1, 0.3], [0.2, -0.3, 1]]))[0]
OBLIQUE = (*TURN[:, 0] * np.sign(TURN[0, 0]), *TURN[:, 1] * np.sign(TURN[1, 1]))
SHAPE = (6, 5, 4)
VALUES = np.arange(120, dtype=np.int16).reshape(SHAPE) - 30


def instance(values: np.ndarray, **elements: Any) -> Any:
    """A CT image of one plane, in memory."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientID = data.PatientName = "x"
    data.SeriesInstanceUID, data.SeriesNumber = "1.2.3", 4
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    return data


def write(data: Any, path: Path, syntax: Any = ExplicitVRLittleEndian) -> None:
    data.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(path, enforce_file_format=True)


def series(
    folder: Path,
    values: np.ndarray = VALUES,
    directions: Any = AXIAL,
    step: Any = None,
    names: Any = lambda k: f"IM{(k * 7) % 11:04}.dcm",
    **elements: Any,
) -> str:
    """A folder with a file for each plane, whose names are in another order than the planes."""
    folder.mkdir(exist_ok=True)
    row, column = np.array(directions[:3]), np.array(directions[3:])
    step = np.cross(row, column) * 2.5 if step is None else np.array(step)
    for k, plane in enumerate(values):
        data = instance(
            plane,
            ImagePositionPatient=[float(f"{x:.9g}") for x in np.array([-20.0, 10, 5]) + k * step],
            ImageOrientationPatient=[float(f"{x:.9g}") for x in directions],
            PixelSpacing=[0.75, 0.5],
            SliceThickness=99,  # is not the distance
            SpacingBetweenSlices=99,
            InstanceNumber=len(values) - k,
            RescaleSlope=1,
            RescaleIntercept=0,
        )
        for name, value in elements.items():
            setattr(data, name, value(k) if callable(value) else value)
        write(data, folder / names(k))
    return str(folder)


def by_gdcm(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine (RAS) of a folder by SimpleITK's reader of series."""
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1
    return sitk.GetArrayFromImage(image), affine


def error_of(path: str) -> str:
    with pytest.raises(FormatError) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestGeometry:
    @pytest.mark.parametrize("directions", [AXIAL, (0, 1.0, 0, 0, 0, -1), (-1.0, 0, 0, 0, 1, 0), OBLIQUE])  # fmt: skip
    def test_voxels_and_place_are_gdcms(self, tmp_path: Path, directions: Any) -> None:
        path = series(tmp_path / "s", directions=directions)
        volume = read_volume(path)
        voxels, affine = by_gdcm(path)
        assert volume.axes == "zyx"
        np.testing.assert_array_equal(volume.data, voxels)
        np.testing.assert_array_equal(volume.data, VALUES)
        np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-6)
        assert volume.grid.spacing == pytest.approx((2.5, 0.75, 0.5), abs=1e-6)
        assert (volume.grid.unit, volume.grid.anatomical) == ("mm", True)

    def test_slices_sorted_against_the_normal(self, tmp_path: Path) -> None:
        """The normal decides, not the order of numbers: what is above comes later."""
        path = series(tmp_path / "s", step=(0, 0, -2.5))
        np.testing.assert_array_equal(read_volume(path).data, VALUES[::-1])
        np.testing.assert_array_equal(by_gdcm(path)[0], VALUES[::-1])

    def test_a_tilted_gantry_shears_the_affine(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", step=(0, 0.5, 2.5))
        with open_volume(path) as reader:
            assert any("tilted by 11.3 degrees" in note for note in reader.notes)
            affine = reader.header.grid.affine
        assert affine is not None
        # LPS to RAS: y is turned
        np.testing.assert_allclose(affine[:3, 2], [0, -0.5, 2.5])
        np.testing.assert_array_equal(read_volume(path).data, VALUES)

    def test_gaps_and_uneven_slices_are_refused(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s")
        os.unlink(tmp_path / "s" / "IM0010.dcm")  # of slice 3
        assert "slices are missing: 1 after slice 3 of 5, in a gap of 5 mm" in error_of(path)
        uneven = series(tmp_path / "u", ImagePositionPatient=lambda k: [0, 0, 2.5 * k + (k == 2)])
        assert "1.5 to 3.5 mm apart" in error_of(uneven)

    def test_doubled_slices_are_refused(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s")
        shutil.copy(tmp_path / "s" / "IM0000.dcm", tmp_path / "s" / "copy.dcm")
        assert "have 1 to 2 images each" in error_of(path)
        for file in list((tmp_path / "s").iterdir()):
            shutil.copy(file, tmp_path / "s" / f"b{file.name}")
        os.unlink(tmp_path / "s" / "bcopy.dcm")
        os.unlink(tmp_path / "s" / "copy.dcm")
        assert "slices are doubled" in error_of(path)

    def test_one_slice(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", VALUES[:1], SpacingBetweenSlices=4, SliceThickness=3)
        assert read_volume(path).grid.spacing == (4, 0.75, 0.5)

    def test_other_sizes_and_directions_are_refused(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s")
        write(instance(VALUES[0, :3], ImagePositionPatient=[0, 0, 0]), tmp_path / "s" / "z.dcm")
        assert "5 x 4 and 3 x 4 voxels" in error_of(path)
        turned = series(
            tmp_path / "t",
            ImageOrientationPatient=lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, 1],
        )
        assert "different directions" in error_of(turned)

    def test_mosaics_are_named(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
        message = error_of(path)
        assert "mosaic" in message
        assert "dcm2niix" in message


class TestValues:
    @pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
    def test_types(self, tmp_path: Path, dtype: str, rng: np.random.Generator) -> None:
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, SHAPE, dtype=dtype, endpoint=True)
        volume = read_volume(series(tmp_path / "s", values))
        assert volume.data.dtype == dtype
        np.testing.assert_array_equal(volume.data, values)

    @pytest.mark.parametrize("signed", [False, True])
    def test_twelve_bits_with_an_overlay_above(self, tmp_path: Path, signed: bool) -> None:
        """Bits above those in use hold something else; GDCM masks them, too."""
        values = np.arange(120).reshape(SHAPE) - (60 if signed else 0)
        stored = ((values & 0xFFF) | 0x5000).astype(np.uint16)
        path = series(
            tmp_path / "s", stored, BitsStored=12, HighBit=11, PixelRepresentation=int(signed)
        )
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.data, values)
        np.testing.assert_array_equal(by_gdcm(path)[0], values)

    def test_slope_and_intercept(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", RescaleSlope="0.5", RescaleIntercept="-1024")
        with open_volume(path) as reader:
            assert reader.header.scale == (0.5, -1024)
            assert reader.header.dtype == np.int16
        np.testing.assert_array_equal(read_volume(path).data, VALUES * 0.5 - 1024)
        np.testing.assert_array_equal(by_gdcm(path)[0], VALUES * 0.5 - 1024)

    def test_a_slope_for_each_slice(self, tmp_path: Path) -> None:
        """As in PET."""
        path = series(tmp_path / "s", RescaleSlope=lambda k: f"{k + 1}")
        expected = VALUES * np.arange(1, 7)[:, None, None]
        np.testing.assert_array_equal(read_volume(path).data, expected)

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])  # fmt: skip
    def test_transfer_syntaxes(self, tmp_path: Path, syntax: Any) -> None:
        if syntax is JPEG2000Lossless:
            pytest.importorskip("PIL")
            found = []
            for name in ("MR_small", "MR_small_jp2klossless"):
                (tmp_path / name).mkdir()
                shutil.copy(FILES / f"{name}.dcm", tmp_path / name)
                found.append(read_volume(str(tmp_path / name)).data)
            np.testing.assert_array_equal(*found)
            return
        path = series(tmp_path / "s")
        for file in (tmp_path / "s").iterdir():
            data = pydicom.dcmread(file)
            if syntax is RLELossless:
                data.compress(RLELossless)
            write(data, file, syntax)
        np.testing.assert_array_equal(read_volume(path).data, VALUES)

    def test_files_of_a_series_are_packed_in_different_ways(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s")
        ways = (ImplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian)
        for k, file in enumerate((tmp_path / "s").iterdir()):
            data, syntax = pydicom.dcmread(file), ways[k % 3]
            if syntax is RLELossless:
                data.compress(RLELossless)
            write(data, file, syntax)
        np.testing.assert_array_equal(read_volume(path).data, VALUES)

    def test_compressions_without_a_decoder_are_named(self, tmp_path: Path) -> None:
        from pydicom.pixels import get_decoder

        shutil.copy(FILES / "MR_small_jpeg_ls_lossless.dcm", tmp_path / "a.dcm")
        if get_decoder("1.2.840.10008.1.2.4.80").is_available:
            pytest.skip("a decoder is installed")
        message = error_of(str(tmp_path / "a.dcm"))
        assert "JPEG-LS" in message
        assert "pip install pylibjpeg" in message

    def test_colours(self, tmp_path: Path) -> None:
        values = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
        one = instance(
            values[..., 0],
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=1,
        )
        one.PixelData = values.transpose(2, 0, 1).tobytes()
        write(one, tmp_path / "a.dcm")
        volume = read_volume(str(tmp_path / "a.dcm"))
        assert volume.axes == "zyxs"
        np.testing.assert_array_equal(volume.data[0], values)


class TestSeries:
    def test_a_folder_or_a_file_of_it(self, tmp_path: Path, run: Any) -> None:
        path = series(tmp_path / "s", names=lambda k: f"1.2.840.{k}")
        (tmp_path / "s" / "notes.txt").write_text("x")
        (tmp_path / "s" / "DICOMDIR").write_bytes(b"x")
        file = os.path.join(path, "1.2.840.3")
        assert input_format(path) is input_format(file)
        with open_volume(path) as reader:
            assert reader.notes == ("files that hold no image are left out: notes.txt",)
        with open_volume(file) as reader:
            assert reader.notes == (f"it is read with the 5 other files of its series in {path}",)
        for name in (path, file):
            np.testing.assert_array_equal(read_volume(name).data, VALUES)
            assert len(volume_files(name)) == 6
        out = tmp_path / "o.nii.gz"
        run("apply", path, "-k", "identity", "-o", str(out), "--verify", "60", "--sidecar")
        np.testing.assert_array_equal(read_volume(str(out)).data, VALUES)
        run("rerun", str(tmp_path / "o.json"))

    @pytest.mark.parametrize("count", [3, 6])
    def test_slices_given_by_name_are_one_volume(
        self, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        """As a shell expands `*.dcm`. dcm2niix, too, takes the series of a file that is named."""
        from conv3d_cli.formats.dicom import series as module

        read: list[str] = []
        real = module.read_frames
        monkeypatch.setattr(module, "read_frames", lambda path: read.append(path) or real(path))
        module._scan_files.cache_clear()
        files = sorted(Path(series(tmp_path / "s")).iterdir())[:count]
        told = run("apply", *files, "-k", "identity", "--out-dir", tmp_path / "o").stderr
        words = (
            f"{files[0]} and {count - 1} more names give one volume, of 6 files: it is read once"
        )
        assert words in " ".join(told.split())
        (out,) = (tmp_path / "o").iterdir()
        np.testing.assert_array_equal(read_volume(str(out)).data, VALUES)
        assert max(read.count(str(file)) for file in files[1:]) == 1
        run("apply", *files, "-k", "identity", "-o", tmp_path / "one.nii")

    def test_slices_of_two_series_are_two_volumes(self, tmp_path: Path, run: Any) -> None:
        for name, uid in (("a", "1.2.3"), ("b", "1.2.4")):
            series(tmp_path, names=lambda k, n=name: f"{n}{k}.dcm", SeriesInstanceUID=uid)
        files = sorted(tmp_path.glob("*.dcm"))
        run("apply", *files, "-k", "identity", "--out-dir", tmp_path / "o")
        assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["a0.nii.gz", "b0.nii.gz"]

    def test_a_tree_of_series(self, tmp_path: Path, run: Any) -> None:
        (tmp_path / "study").mkdir()
        for uid in ("1.2.840.7", "1.2.840.8"):
            series(tmp_path / "study" / uid, SeriesInstanceUID=uid)
        run("apply", str(tmp_path / "study"), "-k", "identity", "--out-dir", str(tmp_path / "o"), "--resume")  # fmt: skip
        assert sorted(p.name for p in (tmp_path / "o").glob("*.gz")) == [
            "1.2.840.7.nii.gz",
            "1.2.840.8.nii.gz",
        ]
        told = run("apply", str(tmp_path / "study"), "-k", "identity", "--out-dir", str(tmp_path / "o"), "--resume")  # fmt: skip
        assert "2 up to date" in told.stderr or "skip" in told.stderr

    def test_several_series_are_listed(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", SeriesDescription="T1")
        series(tmp_path / "s", VALUES + 5, names=lambda k: f"b{k}", SeriesInstanceUID="1.2.9", SeriesNumber=12)  # fmt: skip
        message = error_of(path)
        assert "2 series; name one: ::4 (T1, 6 images), ::12 (6 images)" in message
        for part in ("12", "1.2.9"):
            np.testing.assert_array_equal(read_volume(f"{path}::{part}").data, VALUES + 5)
        np.testing.assert_array_equal(read_volume(f"{path}::T1").data, VALUES)
        np.testing.assert_array_equal(read_volume(f"{path}/b3").data, VALUES + 5)
        assert "3 is none of its series" in error_of(f"{path}::3")
        assert len(volume_files(f"{path}::12")) == 6

    @pytest.mark.parametrize("key", ["TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber"])  # fmt: skip
    def test_time(self, tmp_path: Path, key: str) -> None:
        for t in range(3):
            series(tmp_path / "s", VALUES + 200 * t, names=lambda k, t=t: f"{k}_{2 - t}.dcm", **{key: 40 * t + 1})  # fmt: skip
        with open_volume(str(tmp_path / "s")) as reader:
            assert reader.header.axes.letters == "tzyx"
            step = (40.0, "ms") if key == "TriggerTime" else None
            assert reader.header.facts.time_step == step
        volume = read_volume(str(tmp_path / "s"))
        np.testing.assert_array_equal(volume.data, np.stack([VALUES, VALUES + 200, VALUES + 400]))

    def test_time_and_echo(self, tmp_path: Path) -> None:
        expected = np.stack([np.stack([VALUES + 10 * t + e for e in range(2)]) for t in range(3)])
        for t in range(3):
            for e in range(2):
                series(tmp_path / "s", expected[t, e], names=lambda k, t=t, e=e: f"{k}_{t}_{e}.dcm", AcquisitionNumber=t + 1, EchoTime=5 + 7 * e)  # fmt: skip
        volume = read_volume(str(tmp_path / "s"))
        assert volume.axes == "tezyx"
        np.testing.assert_array_equal(volume.data, expected)

    @pytest.mark.parametrize("number", [0, 3])
    def test_images_without_directions(self, tmp_path: Path, number: int) -> None:
        """They are in the order of their numbers, whatever their files are called."""
        directions: Any = None if number == 0 else lambda k: None if k == number else list(AXIAL)
        path = series(tmp_path / "s", ImageOrientationPatient=directions)
        with open_volume(path) as reader:
            assert any("no directions: they are stacked by" in note for note in reader.notes)
            assert not reader.header.grid.anatomical
        np.testing.assert_array_equal(read_volume(path).data, VALUES[::-1])

    @pytest.mark.parametrize("number", [None, 5])
    def test_images_without_positions_and_numbers(self, tmp_path: Path, number: Any) -> None:
        path = series(tmp_path / "s", ImagePositionPatient=None, InstanceNumber=number)
        assert "nothing tells the order of its images: they have no positions" in error_of(path)

    def test_images_without_directions_of_one_number(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", ImageOrientationPatient=None, InstanceNumber=5)
        assert "nothing tells the order of its images: they have no directions" in error_of(path)

    def test_images_without_positions(self, tmp_path: Path) -> None:
        path = series(tmp_path / "s", ImagePositionPatient=None, ImageOrientationPatient=None)
        with open_volume(path) as reader:
            assert any("no positions" in note for note in reader.notes)
            assert not reader.header.grid.anatomical
        np.testing.assert_array_equal(read_volume(path).data, VALUES[::-1])  # by InstanceNumber


class TestEnhanced:
    def enhanced(self, path: Path, times: int = 1) -> np.ndarray:
        values = np.arange(times * 120, dtype=np.uint16).reshape(times, *SHAPE)
        data = instance(values.reshape(-1, 5, 4))
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
        data.NumberOfFrames = times * 6
        shared, measures, plane = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 9
        plane.ImageOrientationPatient = [float(f"{x:.9g}") for x in OBLIQUE]
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        data.SharedFunctionalGroupsSequence = [shared]
        normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
        frames = []
        for k in range(times * 6):
            frame, place, content, value = Dataset(), Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [float(f"{x:.9g}") for x in (k % 6) * 2.5 * normal]
            content.TemporalPositionIndex = k // 6 + 1
            value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 2, 1, "US"
            frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
            frame.PixelValueTransformationSequence = [value]
            frames.append(frame)
        data.PerFrameFunctionalGroupsSequence = frames
        write(data, path)
        return values

    def test_a_volume_in_one_file(self, tmp_path: Path) -> None:
        values = self.enhanced(tmp_path / "a.dcm")
        sitk = pytest.importorskip("SimpleITK")
        image = sitk.ReadImage(str(tmp_path / "a.dcm"))
        volume = read_volume(str(tmp_path / "a.dcm"))
        np.testing.assert_array_equal(volume.data, values[0] * 2 + 1)
        np.testing.assert_array_equal(volume.data, sitk.GetArrayFromImage(image))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        affine[:2] *= -1
        np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-6)

    def test_time(self, tmp_path: Path) -> None:
        values = self.enhanced(tmp_path / "a.dcm", 3)
        volume = read_volume(str(tmp_path / "a.dcm"))
        assert volume.axes == "tzyx"
        np.testing.assert_array_equal(volume.data, values * 2 + 1)

    def test_a_dose(self, tmp_path: Path) -> None:
        """Offsets of the frames, and the scale of a dose; GDCM reads the same place."""
        sitk = pytest.importorskip("SimpleITK")
        shutil.copy(FILES / "rtdose.dcm", tmp_path / "a.dcm")
        volume = read_volume(str(tmp_path / "a.dcm"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = sitk.ReadImage(str(tmp_path / "a.dcm"))
            scale = float(pydicom.dcmread(tmp_path / "a.dcm").DoseGridScaling)
        stored = sitk.GetArrayFromImage(image)
        np.testing.assert_allclose(volume.data, stored * scale, rtol=1e-6)
        assert volume.grid.affine is not None
        np.testing.assert_allclose(volume.grid.affine[:3, 3] * (-1, -1, 1), image.GetOrigin())
        assert volume.grid.spacing == pytest.approx(image.GetSpacing()[::-1])

    def test_films_are_series_in_time(self, tmp_path: Path) -> None:
        pytest.importorskip("PIL")
        shutil.copy(FILES / "examples_ybr_color.dcm", tmp_path / "a.dcm")
        with open_volume(str(tmp_path / "a.dcm")) as reader:
            assert reader.header.axes.letters == "tyxs"
            assert reader.header.shape[0] == 30


# pydicom's files whose voxels both read
AGREED = [
    "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_padded.dcm", "MR_small_expb.dcm", "ExplVR_BigEnd.dcm", "examples_overlay.dcm", "SC_rgb_rle.dcm",
    "SC_rgb_rle_2frame.dcm", "SC_ybr_full_422_uncompressed.dcm", "image_dfl.dcm", "693_J2KI.dcm",
    "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "J2K_pixelrep_mismatch.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", AGREED)
def test_pydicoms_files_are_read_as_gdcm_reads_them(tmp_path: Path, name: str) -> None:
    pytest.importorskip("PIL")
    sitk = pytest.importorskip("SimpleITK")
    shutil.copy(FILES / name, tmp_path / "a.dcm")
    volume = read_volume(str(tmp_path / "a.dcm"))
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.dcm")))
    np.testing.assert_array_equal(volume.data, found.reshape(volume.data.shape))


@pytest.mark.parametrize("path", sorted(FILES.glob("*.dcm")), ids=lambda path: path.stem)
def test_every_file_is_read_or_named(tmp_path: Path, path: Path) -> None:
    shutil.copy(path, tmp_path / "a.dcm")
    said = ""
    try:
        read_volume(str(tmp_path / "a.dcm"))
    except FormatError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")
@pytest.mark.parametrize("inside", [False, True], ids=["folder", "file"])
def test_links_to_nothing_and_pipes_are_told(inside: bool, tmp_path: Path) -> None:
    """An image may be behind such a link, where DataLad has not fetched it."""
    folder = tmp_path / "a"
    path = str(folder / "IM0000.dcm") if inside else str(folder)
    series(folder)
    assert not any("left out" in note for note in read_notes(path))
    (folder / "z.dcm").symlink_to("nowhere")
    expected = f"z.dcm left out: it is a link to {folder / 'nowhere'}, which does not exist"
    assert any(note.startswith(expected) for note in read_notes(path))
    os.mkfifo(folder / "b.dcm")
    assert "b.dcm and 1 more left out: it is a pipe, or a device" in read_notes(path)


def read_notes(path: str) -> tuple[str, ...]:
    with open_volume(path) as reader:
        return reader.notes


def test_padding_is_told(tmp_path: Path) -> None:
    """Scanners fill what they do not see with a number that no tissue has."""
    values = VALUES.astype(np.int16)
    folder = series(tmp_path / "a", values, PixelPaddingValue=-2000)
    (note,) = [note for note in read_notes(folder) if "missing" in note]
    assert note.startswith("voxels of -2000 are missing by its PixelPaddingValue")
    folder = series(tmp_path / "b", values)
    assert not [note for note in read_notes(folder) if "missing" in note]
