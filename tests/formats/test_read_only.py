"""Analyze, AFNI, PAR/REC and MINC, compared with nibabel, which brings files; and what they refuse."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import input_format, open_volume, read_volume, volume_files, write_volume
from conv3d_cli.model.volume import Volume
from conv3d_cli.system.isolated import PIPE_BYTES, PROCESS_BYTES

DATA = Path(nibabel.__file__).parent / "tests" / "data"
VALUES = np.arange(60).reshape(3, 4, 5)


def analyze(path: Path, kind: Any, values: np.ndarray, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = kind(values.T, np.diag([-2.0, 1.5, 3.0, 1.0]))
        for name, value in options.items():
            image.header[name] = value
        image.to_filename(str(path))


class TestAnalyze:
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
    def test_voxels_and_place_are_nibabels(self, tmp_path: Path, dtype: str) -> None:
        analyze(tmp_path / "a.img", nibabel.AnalyzeImage, VALUES.astype(dtype))
        by_nibabel = nibabel.AnalyzeImage.from_filename(str(tmp_path / "a.img"))
        for name in ("a.hdr", "a.img"):
            volume = read_volume(str(tmp_path / name))
            assert (volume.axes, volume.data.dtype) == ("zyx", dtype)
            np.testing.assert_array_equal(volume.data, VALUES)
            np.testing.assert_allclose(volume.grid.affine, by_nibabel.affine)
        assert [Path(n).name for n in volume_files(str(tmp_path / "a.img"))] == ["a.hdr", "a.img"]

    def test_big_endian_series_and_gzip(self, tmp_path: Path) -> None:
        series = np.arange(120).reshape(2, 3, 4, 5).astype(np.int16)
        header = nibabel.AnalyzeHeader(endianness=">")
        header.set_data_dtype(np.int16)
        nibabel.AnalyzeImage(series.T, np.diag([-2, 1.5, 3, 1]), header).to_filename(str(tmp_path / "a.img"))  # fmt: skip
        for name in ("a.img", "a.hdr"):
            with gzip.open(tmp_path / f"p{name[1:]}.gz", "wb") as file:
                file.write((tmp_path / name).read_bytes())
        for name in ("a.hdr", "p.img.gz", "p.hdr.gz"):
            volume = read_volume(str(tmp_path / name))
            assert volume.axes == "tzyx"
            np.testing.assert_array_equal(volume.data, series)

    def test_spms_scale_and_origin(self, tmp_path: Path) -> None:
        analyze(tmp_path / "b.img", nibabel.Spm2AnalyzeImage, VALUES.astype(np.int16))
        (tmp_path / "b.mat").unlink()  # nibabel would take the origin from it
        data = bytearray((tmp_path / "b.hdr").read_bytes())
        data[112:116] = np.float32(0.25).tobytes()
        data[253:259] = np.array([2, 3, 1], "<i2").tobytes()
        (tmp_path / "b.hdr").write_bytes(data)
        volume = read_volume(str(tmp_path / "b.hdr"))
        np.testing.assert_array_equal(volume.data, VALUES * 0.25)
        by_nibabel = nibabel.Spm2AnalyzeImage.from_filename(str(tmp_path / "b.img"))
        np.testing.assert_array_equal(volume.data, by_nibabel.get_fdata().T)
        np.testing.assert_allclose(volume.grid.affine, by_nibabel.affine)
        (tmp_path / "b.mat").write_bytes(b"x")
        with open_volume(str(tmp_path / "b.img")) as reader:
            assert any("b.mat" in note for note in reader.notes)
            assert any("which side is left" in note for note in reader.notes)

    def test_damage(self, tmp_path: Path) -> None:
        analyze(tmp_path / "a.img", nibabel.AnalyzeImage, VALUES.astype(np.int16))
        whole = (tmp_path / "a.hdr").read_bytes()
        for at, value, word in ((70, 32, "complex"), (42, -1, "damaged")):
            data = bytearray(whole)
            data[at : at + 2] = np.int16(value).tobytes()
            (tmp_path / "a.hdr").write_bytes(data)
            with pytest.raises(FormatError, match=word):
                read_volume(str(tmp_path / "a.hdr"))
        (tmp_path / "a.hdr").write_bytes(whole)
        os.truncate(tmp_path / "a.img", 100)
        with pytest.raises(FormatError, match="truncated"):
            read_volume(str(tmp_path / "a.hdr"))


class TestAfni:
    @pytest.mark.parametrize(
        "name",
        ["example4d+orig.HEAD", "example4d+orig.BRIK.gz", "scaled+tlrc.HEAD", "scaled+tlrc.BRIK"],
    )
    def test_files_of_nibabels(self, name: str) -> None:
        volume, image = read_volume(str(DATA / name)), nibabel.load(DATA / name)
        np.testing.assert_allclose(
            volume.data, image.get_fdata().T.reshape(volume.data.shape), rtol=1e-6
        )
        np.testing.assert_allclose(volume.grid.affine, image.affine)
        assert (volume.grid.unit, volume.grid.anatomical) == ("mm", True)
        assert len(volume_files(str(DATA / name))) == 2

    def dataset(self, folder: Path, more: str = "", factors: str = "0 0.5") -> str:
        """Two sub-bricks by hand, as README.attributes describes them."""

        def attribute(kind: str, name: str, count: int, value: str) -> str:
            return f"\ntype  = {kind}-attribute\nname  = {name}\ncount = {count}\n {value}\n"

        text = attribute("integer", "DATASET_DIMENSIONS", 5, "5 4 3 0 0")
        text += attribute("integer", "DATASET_RANK", 8, "3 2 0 0 0 0 0 0")
        text += attribute("integer", "BRICK_TYPES", 2, "1 1")
        text += attribute("float", "BRICK_FLOAT_FACS", 2, factors)
        text += attribute("string", "BYTEORDER_STRING", 10, "'MSB_FIRST~")
        text += attribute("integer", "ORIENT_SPECIFIC", 3, "1 3 4")
        text += attribute("float", "ORIGIN", 3, "10 20 -30")
        text += attribute("float", "DELTA", 3, "-2 -1.5 3")
        (folder / "a+orig.HEAD").write_text(text + more)
        (folder / "a+orig.BRIK").write_bytes(np.stack([VALUES, VALUES]).astype(">i2").tobytes())
        return str(folder / "a+orig.HEAD")

    def test_factors_of_sub_bricks(self, tmp_path: Path, run: Any) -> None:
        path = self.dataset(tmp_path)
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.data, np.stack([VALUES, VALUES * 0.5]))
        # 1: from left to right, 3: from front to back, 4: upwards; DICOM's x points to the left
        np.testing.assert_array_equal(
            volume.grid.affine, [[2, 0, 0, -10], [0, 1.5, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]]
        )
        out = str(tmp_path / "o.nii")
        run("apply", path, "-k", "identity", "-o", out, "--verify", "50")
        np.testing.assert_array_equal(read_volume(out).data, volume.data)
        (tmp_path / "one").mkdir()
        with open_volume(self.dataset(tmp_path / "one", factors="0.5 0.5")) as reader:
            assert reader.header.scale == (0.5, 0.0)  # stays int16

    def test_damage(self, tmp_path: Path) -> None:
        path = self.dataset(tmp_path)
        for old, new, word in (
            ("1 1\n", "1 3\n", "types"),
            ("5 4 3 0 0", "5 4 x", "DATASET_DIMENSIONS"),
            ("3 2 0", "3 2000 0", "truncated"),
            ("-2 -1.5 3", "0 -1.5 3", "no meaning"),
        ):
            self.dataset(tmp_path)
            text = Path(path).read_text()
            assert old in text
            Path(path).write_text(text.replace(old, new))
            with pytest.raises(FormatError, match=word):
                read_volume(path)
        (tmp_path / "a+orig.HEAD").unlink()
        with pytest.raises(FormatError, match="its HEAD must be in the same folder"):
            read_volume(str(tmp_path / "a+orig.BRIK"))


MINC = ["minc1_1_scale.mnc", "minc1_4d.mnc", "minc1-no-att.mnc", "tiny.mnc"]
MINC += ["minc2_1_scale.mnc", "minc2_4d.mnc", "minc2-4d-d.mnc", "minc2-no-att.mnc", "small.mnc"]


@pytest.mark.usefixtures("hdf5_in_this_process")
class TestMinc:
    @pytest.mark.parametrize("name", MINC)
    def test_files_of_nibabels(self, name: str) -> None:
        if name.startswith(("minc2", "small")):
            pytest.importorskip("h5py")
        volume = read_volume(str(DATA / name))
        image = nibabel.load(DATA / name)
        np.testing.assert_allclose(volume.data, image.get_fdata(), rtol=1e-6, atol=1e-7)
        order = [volume.axes.replace("t", "").index(a) for a in "xyz"]  # nibabel: as stored
        np.testing.assert_allclose(volume.grid.affine, image.affine[:, [*order, 3]])

    @pytest.mark.parametrize("name", ["minc1_4d.mnc", "minc2_4d.mnc"])
    def test_slices_are_read_alone(self, name: str) -> None:
        if name.startswith("minc2"):
            pytest.importorskip("h5py")
        whole = read_volume(str(DATA / name)).data
        with open_volume(str(DATA / name)) as reader:
            assert not reader.sequential
            block = reader.read(1, slice(3, 5), slice(0, 1))
            np.testing.assert_array_equal(block[..., 0], whole[1, 3:5])
            process = 0 if name.startswith("minc1") else PROCESS_BYTES + PIPE_BYTES
            assert reader.buffer_bytes(2, 1) - process < 4 << 20

    def test_links_into_other_files_are_not_followed(self, tmp_path: Path) -> None:
        h5py = pytest.importorskip("h5py")
        shutil.copy(DATA / "small.mnc", tmp_path / "secret.mnc")
        shutil.copy(DATA / "small.mnc", tmp_path / "a.mnc")
        with h5py.File(tmp_path / "a.mnc", "r+") as file:
            del file["minc-2.0/image/0/image"]
            file["minc-2.0/image/0/image"] = h5py.ExternalLink("secret.mnc", "/minc-2.0/image/0/image")  # fmt: skip
        with pytest.raises(FormatError, match="is a link, which is not followed"):
            read_volume(str(tmp_path / "a.mnc"))

    @pytest.mark.parametrize("name", ["tiny.mnc", "small.mnc"])
    def test_damage(self, tmp_path: Path, name: str) -> None:
        pytest.importorskip("h5py")
        data = (DATA / name).read_bytes()
        for size in (10, 600, 3000, len(data) // 2):
            (tmp_path / "a.mnc").write_bytes(data[:size])
            with pytest.raises(FormatError, match=r"a\.mnc"):
                read_volume(str(tmp_path / "a.mnc"))


@pytest.mark.parametrize("suffix", [".mnc", ".HEAD", ".BRIK"])
def test_outputs_say_what_can_be_written(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(SpecError, match=r"is not written; write \.nii\.gz"):
        write_volume(str(tmp_path / f"a{suffix}"), Volume(VALUES, "zyx"))
    with pytest.raises(SpecError, match=r"no volume has the suffix \.xyz \(see"):
        write_volume(str(tmp_path / "a.xyz"), Volume(VALUES, "zyx"))


@pytest.mark.parametrize("name", ["tiny.mnc", "scaled+tlrc.HEAD"])
def test_the_command_reads_them(tmp_path: Path, run: Any, name: str) -> None:
    out = str(tmp_path / "o.nii.gz")
    run(
        "apply",
        str(DATA / name),
        "-k",
        "gaussian:fwhm=4mm",
        "-o",
        out,
        "--verify",
        "50",
        "--sidecar",
    )
    assert input_format(out).name == "NIfTI"  # type: ignore[union-attr]
    np.testing.assert_allclose(read_volume(out).grid.affine, read_volume(str(DATA / name)).grid.affine, rtol=1e-6, atol=1e-6)  # fmt: skip


# of the affine and the voxels, as nibabel's own tests give them (from Philips' software and by hand)
PHANTOM = "phantom_EPI_asc_CLEAR_2_1"
PHANTOM_AFFINE = [
    [-3.64994708, 0.0, 1.83564171, 123.66276611],
    [0.0, -3.75, 0.0, 115.617],
    [0.86045705, 0.0, 7.78655376, -27.91161211],
]


def par(folder: Path, name: str = PHANTOM, head: str = "a.PAR", rec: str = "a.REC") -> Path:
    """A copy of a pair; `PAR` alone for the files of which nibabel brings no voxels."""
    shutil.copy(DATA / f"{name}.PAR", folder / head)
    if (DATA / f"{name}.REC").exists():
        shutil.copy(DATA / f"{name}.REC", folder / rec)
    return folder / head


class TestParRec:
    @pytest.mark.parametrize("names", [("a.PAR", "a.REC"), ("a.par", "a.rec"), ("A.par", "a.REC")])
    def test_either_name_in_any_case(self, tmp_path: Path, names: tuple[str, str]) -> None:
        par(tmp_path, PHANTOM, *names)
        for name in names:
            path = str(tmp_path / name)
            found = input_format(path)
            assert found is not None
            assert found.name == "PAR/REC"
            assert [Path(n).name for n in volume_files(path)] == list(names)
            volume = read_volume(path)
            assert (volume.axes, volume.data.shape) == ("tzyx", (3, 9, 64, 64))
            assert volume.grid.affine is not None
            np.testing.assert_allclose(volume.grid.affine[:3], PHANTOM_AFFINE, atol=1e-6)
            # of the console, where nibabel's tests have 2299.41 and 194.96 from Philips' NIfTI
            assert volume.data.max() == pytest.approx(2299.41106, rel=1e-5)
            assert volume.data.mean(dtype=float) == pytest.approx(194.958763, rel=1e-5)

    def test_each_slice_has_its_scale(self, tmp_path: Path) -> None:
        path = str(par(tmp_path, "phantom_varscale"))
        lines = [line.split() for line in (DATA / "phantom_varscale.PAR").read_text().split("\n")]
        table = np.array([line[11:13] for line in lines if line and line[0].isdigit()], float)
        assert len(set(table[:, 1])) > 1
        stored = np.fromfile(tmp_path / "a.REC", "<u2").reshape(27, 64, 64)
        right = stored * table[:, 1, None, None] + table[:, 0, None, None]  # DV = PV * RS + RI
        right = right.reshape(3, 9, 64, 64)
        with open_volume(path) as reader:
            assert any("console (DV)" in note for note in reader.notes)
            for n in range(3):
                block = reader.read(n, slice(2, 5), slice(0, 1))[..., 0]
                np.testing.assert_allclose(block, right[n, 2:5], rtol=1e-6)
        np.testing.assert_allclose(read_volume(path).data, right, rtol=1e-6)

    def test_slices_in_another_order(self, tmp_path: Path) -> None:
        """Slice by slice, each with all its time points: voxels and lines move together."""
        path = par(tmp_path)
        right = read_volume(str(path)).data
        lines = path.read_text("latin-1").split("\n")
        table = [i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0].isdigit()]
        voxels = np.fromfile(tmp_path / "a.REC", "<u2").reshape(27, 64, 64)
        order = np.arange(27).reshape(3, 9).T.ravel()
        rows = [lines[table[i]] for i in order]
        for place, row in zip(table, rows, strict=True):
            lines[place] = row
        path.write_text("\n".join(lines), "latin-1")
        voxels[order].tofile(tmp_path / "a.REC")
        np.testing.assert_array_equal(read_volume(str(path)).data, right)

    def test_time_and_name(self, tmp_path: Path) -> None:
        with open_volume(str(par(tmp_path))) as reader:
            assert reader.header.facts.time_step == (2.0, "s")  # "Repetition time [msec]: 2000"
            assert reader.header.facts.name == "EPI_asc CLEAR"

    def test_volumes_that_are_no_time_points(self, tmp_path: Path) -> None:
        path = par(tmp_path, "T1_dual_echo")
        with path.open() as file:
            header = nibabel.parrec.PARRECHeader.from_fileobj(file)
        (tmp_path / "a.REC").write_bytes(bytes(int(np.prod(header.get_data_shape())) * 2))
        with open_volume(str(path)) as reader:
            assert any("volumes differ in echo number" in note for note in reader.notes)
            assert reader.header.facts.time_step is None

    def test_diffusion(self, tmp_path: Path) -> None:
        path = par(tmp_path, "DTI")
        with path.open() as file:
            header = nibabel.parrec.PARRECHeader.from_fileobj(file)
        (tmp_path / "a.REC").write_bytes(bytes(int(np.prod(header.get_rec_shape())) * 2))
        with open_volume(str(path)) as reader:
            assert reader.header.facts.others == ("b-values and directions",)

    def test_what_is_missing(self, tmp_path: Path) -> None:
        def said(path: Path) -> str:
            with pytest.raises(FormatError) as caught:
                open_volume(str(path))
            assert "\n" not in str(caught.value)
            return str(caught.value)

        assert "there is no .REC of its name beside it" in said(par(tmp_path, "T1"))
        assert "truncated: Header inconsistency: Found 3 dynamic" in said(
            par(tmp_path, "phantom_truncated", "b.PAR", "b.REC")
        )
        path = par(tmp_path, PHANTOM, "c.PAR", "c.REC")
        (tmp_path / "c.REC").write_bytes((tmp_path / "c.REC").read_bytes()[:-2])
        assert "c.REC: truncated" in said(path)
        text = path.read_text("latin-1")
        more = re.sub(r"(slices/locations +: +)9", r"\g<1>999999999", text)
        path.write_text(more, "latin-1")
        assert "it lists 27 slices, and a volume has 999999999" in said(path)
        path.write_text(text[:3000], "latin-1")
        assert "c.PAR: " in said(path)

    def test_a_rec_of_mrc_stays_mrc(self, tmp_path: Path) -> None:
        write_volume(str(tmp_path / "a.rec"), Volume(VALUES.astype(np.float32), "zyx"))
        (tmp_path / "a.par").write_text("parameters of a reconstruction")
        found = input_format(str(tmp_path / "a.rec"))
        assert found is not None
        assert found.name == "MRC"

    def test_voxels_of_a_scanner_are_not_overwritten(self, tmp_path: Path) -> None:
        par(tmp_path)
        with pytest.raises(SpecError, match="PAR/REC is not written"):
            write_volume(str(tmp_path / "a.REC"), Volume(VALUES, "zyx"), overwrite=True)
