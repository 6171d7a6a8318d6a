"""NIfTI files that break a rule without losing anything: read, noted, and equal to other readers.

nibabel and SimpleITK are the independent readers; where neither reads a file, the voxels that were
written into it are the right value.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import conv3d_cli
from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume, read_volume
from conv3d_cli.formats.deviations import DEVIATIONS

BYTES = np.random.default_rng(3).integers(0, 200, (4, 5, 6))


def nifti(path: Path, *patches: tuple[int, str, Any], dtype: str = "u1", order: str = "<") -> Path:
    """A NIfTI-1 file of `BYTES`, 2 x 3 x 4 mm, with bytes of its header overwritten."""
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    made = nibabel.Nifti1Image(BYTES.astype(dtype), np.diag([2, 3, 4, 1.0]), header)
    content = bytearray(made.to_bytes())
    for position, layout, value in patches:
        numbers = value if isinstance(value, tuple) else (value,)
        struct.pack_into(order + layout, content, position, *numbers)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def notes_of(path: Path) -> str:
    with open_volume(str(path)) as reader:
        return "; ".join(reader.notes)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8"])
@pytest.mark.parametrize("bitpix", [0, 8, 32, 64, -1])
def test_the_datatype_is_believed_where_bitpix_contradicts(
    tmp_path: Path, bitpix: int, dtype: str, order: str, suffix: str
) -> None:
    path = nifti(tmp_path / f"v{suffix}", (72, "h", bitpix), dtype=dtype, order=order)
    volume = read_volume(str(path))
    assert volume.data.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.data, BYTES.T)
    np.testing.assert_array_equal(nibabel.load(path).dataobj, BYTES)
    expected = 8 * np.dtype(dtype).itemsize
    assert ("bitpix" in notes_of(path)) == (bitpix != expected)


@pytest.mark.parametrize(
    ("dim", "dimension"),
    [((4, 4, 5, 6, 0, 1, 1, 1), 4), ((5, 4, 5, 6, 1, 0, 1, 1), 5), ((7, 4, 5, 6, 1, 1, 1, 0), 7)],
)
def test_a_size_of_0_is_1(tmp_path: Path, dim: tuple[int, ...], dimension: int) -> None:
    path = nifti(tmp_path / "v.nii", (40, "8h", dim))
    volume = read_volume(str(path))
    np.testing.assert_array_equal(volume.data.squeeze(), BYTES.T)
    assert f"dim[{dimension}] is 0: read as 1" in notes_of(path)
    itk = pytest.importorskip("SimpleITK")
    np.testing.assert_array_equal(
        itk.GetArrayFromImage(itk.ReadImage(str(path))).squeeze(), BYTES.T
    )


def test_a_size_of_0_is_not_written_again(tmp_path: Path, run: Any) -> None:
    path = nifti(tmp_path / "v.nii", (40, "8h", (4, 4, 5, 6, 0, 1, 1, 1)))
    result = run("apply", path, "-k", "identity", "-o", tmp_path / "o.nii")
    assert "dim[4] is 0" in " ".join(result.stderr.split())
    assert nibabel.load(tmp_path / "o.nii").shape == (4, 5, 6, 1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_pairs_magic_in_a_file_with_its_voxels(tmp_path: Path, suffix: str) -> None:
    path = nifti(tmp_path / f"v{suffix}", (344, "4s", b"ni1\0"))
    np.testing.assert_array_equal(read_volume(str(path)).data, BYTES.T)
    assert "read as one file" in notes_of(path)
    itk = pytest.importorskip("SimpleITK")
    np.testing.assert_array_equal(itk.GetArrayFromImage(itk.ReadImage(str(path))), BYTES.T)


def test_a_pairs_header_without_voxels_is_told_to_be_one(
    tmp_path: Path, run: Any, error_line: Any
) -> None:
    path = nifti(tmp_path / "v.nii", (344, "4s", b"ni1\0"))
    for content in (path.read_bytes()[:348], path.read_bytes()[:352]):
        path.write_bytes(content)
        line = error_line(run("info", path, code=3).stderr)
        assert "name it .hdr, and that file .img" in line
    nifti(path, (344, "4s", b"ni1\0"), (108, "f", 0.0))
    assert "name it .hdr" in error_line(run("info", path, code=3).stderr)


@pytest.mark.parametrize("sizes", [(-2, 3, 4), (2, -3, -4)])
def test_a_negative_voxel_size_loses_its_sign(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """As nibabel reads it: header.get_zooms() and the affine of a header without forms."""
    path = nifti(tmp_path / "v.nii", (80, "3f", sizes), (252, "2h", (0, 0)))
    grid = read_volume(str(path)).grid
    np.testing.assert_array_equal(grid.affine, nibabel.load(path).affine)
    assert grid.spacing == (4, 3, 2)
    assert "without the sign" in notes_of(path)


class TestVoxelSizesThatContradict:
    def test_a_note_names_both(self, tmp_path: Path) -> None:
        path = nifti(tmp_path / "v.nii", (80, "3f", (1.5, 1.5, 5.0)), (252, "2h", (0, 1)))
        assert "2,3,4 by the sform, 1.5,1.5,5 by pixdim" in notes_of(path)
        np.testing.assert_array_equal(read_volume(str(path)).grid.spacing, (4, 3, 2))

    @pytest.mark.parametrize("factor", [1, 1 + 1e-4, 1 - 9e-4])
    def test_rounding_is_no_contradiction(self, tmp_path: Path, factor: float) -> None:
        sizes = tuple(factor * size for size in (2, 3, 4))
        assert notes_of(nifti(tmp_path / "v.nii", (80, "3f", sizes))) == ""

    @pytest.mark.parametrize("form", ["sform", "qform", "none"])
    def test_consistent_files_have_no_note(self, tmp_path: Path, form: str) -> None:
        codes = {"sform": (0, 1), "qform": (1, 0), "none": (0, 0)}[form]
        assert notes_of(nifti(tmp_path / "v.nii", (252, "2h", codes))) == ""

    def test_an_axis_of_one_voxel_has_no_size_to_contradict(self, tmp_path: Path) -> None:
        plane = nibabel.Nifti1Image(BYTES[:, :, :1].astype("u1"), np.diag([2, 3, 4, 1.0]))
        content = bytearray(plane.to_bytes())
        struct.pack_into("<f", content, 88, 1.0)
        (tmp_path / "v.nii").write_bytes(content)
        assert notes_of(tmp_path / "v.nii") == ""


def test_a_damaged_qform_beside_a_sform_is_told(tmp_path: Path) -> None:
    path = nifti(tmp_path / "v.nii", (252, "2h", (1, 1)), (256, "f", np.nan))
    assert "its qform has no meaning: the sform beside it is used" in notes_of(path)
    np.testing.assert_array_equal(read_volume(str(path)).grid.affine, np.diag([2, 3, 4, 1.0]))


@pytest.mark.parametrize("axis", [(0.9, 0.9, 0.9), (0.0, 0.0, 1.1), (5.0, -3.0, 1.0)])
def test_a_quaternion_longer_than_any_rotation_is_told(
    tmp_path: Path, axis: tuple[float, ...]
) -> None:
    """ITK reads the same rotation; nibabel refuses the file."""
    codes = (252, "2h", (1, 0))
    path = nifti(tmp_path / "v.nii", codes, (256, "3f", axis))
    assert "which no rotation has" in notes_of(path)
    image = pytest.importorskip("SimpleITK").ReadImage(str(path))
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = read_volume(str(path)).grid.affine
    assert affine is not None
    np.testing.assert_allclose(affine[:3, :3], np.diag([-1, -1, 1]) @ directions, atol=1e-5)
    rounded = nifti(tmp_path / "r.nii", codes, (256, "3f", (0.0, 0.0, 1 + 1e-4)))
    beside = nifti(tmp_path / "s.nii", (252, "2h", (1, 1)), (256, "3f", axis))
    assert notes_of(rounded) == notes_of(beside) == ""


@pytest.mark.skipif(np.finfo(np.longdouble).nmant == 112, reason="this machine has quadruples")
@pytest.mark.parametrize("order", "<>")
def test_ieee_quadruples_are_refused_where_the_processor_has_none(
    tmp_path: Path, order: str, run: Any, error_line: Any
) -> None:
    """A binary128 1 is 0x3fff, then zeros: as an x87 number it would read as 0."""
    path = nifti(tmp_path / "v.nii", (70, "2h", (1536, 128)), order=order)
    one = (0x3FFF << 112).to_bytes(16, "little" if order == "<" else "big")
    path.write_bytes(path.read_bytes()[:352] + one * BYTES.size)
    result = run("apply", path, "-k", "identity", "-o", tmp_path / "o.nii", code=3)
    line = error_line(result.stderr)
    assert "datatype 1536 is IEEE's float of 128 bits" in line
    assert "float64" in line
    assert not (tmp_path / "o.nii").exists()


@pytest.mark.parametrize("tail", [b"\x01garbage", b"GARBAGE12byt", b"x"])
@pytest.mark.parametrize("what", ["volume", "mask", "kernel"])
def test_bytes_after_gzip_are_noted_whoever_reads(
    tmp_path: Path, what: str, tail: bytes, run: Any
) -> None:
    """The voxels are those of the same file without the tail, in each role."""
    clean = {name: tmp_path / f"{name}.nii.gz" for name in ("volume", "mask", "kernel")}
    nifti(clean["volume"])
    nifti(clean["mask"])
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), "f4"), np.eye(4)), clean["kernel"])
    files = dict(clean)
    files[what] = tmp_path / "tail.nii.gz"
    files[what].write_bytes(clean[what].read_bytes() + tail)
    for names, out in ((clean, "a.nii"), (files, "b.nii")):
        result = run(
            "apply", names["volume"], "-k", names["kernel"], "--mask", names["mask"],
            "-o", tmp_path / out,
        )  # fmt: skip
    assert "no gzip stream follow its gzip stream" in " ".join(result.stderr.split())
    np.testing.assert_array_equal(
        nibabel.load(tmp_path / "a.nii").get_fdata(), nibabel.load(tmp_path / "b.nii").get_fdata()
    )


def test_a_truncated_stream_tells_where_it_broke(tmp_path: Path) -> None:
    """`gzip -dc` unpacks that many bytes of it, too."""
    whole = gzip.compress(np.random.default_rng(0).bytes(5000))
    path = nifti(tmp_path / "v.nii.gz")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content + whole)[:-4000])
    unpacked = len(zlib.decompressobj(31).decompress(path.read_bytes()))
    with pytest.raises(FormatError, match=f"breaks off after {unpacked} unpacked bytes"):
        read_volume(str(path))


def test_every_deviation_has_a_source_and_stands_in_the_manual() -> None:
    page = (Path(conv3d_cli.__file__).parent / "manual" / "formats.md").read_text()
    told = page.replace("`", "")
    for name, deviation in DEVIATIONS.items():
        assert deviation.source, name
        assert f"| {deviation.formats} |" in told, name
        assert f"| {deviation.done} |" in told, name


def test_like_fsl_measures_by_pixdim_as_fsl_does(tmp_path: Path, run: Any) -> None:
    """fslmaths knows pixdim only: it smooths as it does a file whose sform agrees with pixdim."""
    data = np.random.default_rng(0).uniform(1, 100, (9, 10, 11)).astype("f4")
    sizes = {"sform.nii": (2, 2, 2), "pixdim.nii": (1.5, 1.5, 5.0)}
    for name, (x, y, z) in sizes.items():
        nibabel.save(nibabel.Nifti1Image(data, np.diag([x, y, z, 1.0])), tmp_path / name)
    content = bytearray((tmp_path / "sform.nii").read_bytes())
    struct.pack_into("<3f", content, 80, *sizes["pixdim.nii"])
    (tmp_path / "both.nii").write_bytes(content)

    def smooth(name: str, *like: str) -> np.ndarray:
        out = tmp_path / f"o_{name}"
        run("apply", tmp_path / name, "-k", "gaussian:fwhm=6mm", *like, "--overwrite", "-o", out)
        return np.asarray(nibabel.load(out).dataobj)

    told = run("apply", tmp_path / "both.nii", "-k", "gaussian:fwhm=6mm", "--like", "fsl",
               "-o", tmp_path / "told.nii").stderr  # fmt: skip
    assert "takes lengths by pixdim: voxels of 5,1.5,1.5 mm" in " ".join(told.split())
    fsl = ("--like", "fsl")
    np.testing.assert_array_equal(smooth("both.nii", *fsl), smooth("pixdim.nii", *fsl))
    for like in ((), ("--like", "nilearn"), ("--like", "mrtrix")):
        np.testing.assert_array_equal(smooth("both.nii", *like), smooth("sform.nii", *like))
    header = nibabel.load(tmp_path / "o_both.nii").header
    np.testing.assert_allclose(header.get_sform(), np.diag([2, 2, 2, 1.0]))


def test_info_tells_of_volume_and_mask_once_voxels_are_read(tmp_path: Path, run: Any) -> None:
    for name in ("v", "m"):
        path = nifti(tmp_path / f"{name}.nii.gz")
        path.write_bytes(path.read_bytes() + b"tail")
    arguments = ["info", tmp_path / "v.nii.gz", "--fwhm", "--mask", tmp_path / "m.nii.gz"]
    shown = " ".join(run(*arguments).stdout.split())
    assert shown.count("follow its gzip stream") == 2
    assert f"mask {tmp_path / 'm.nii.gz'}: bytes" in shown


def test_bytes_after_the_gzip_stream_of_an_nrrd(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "v.nrrd"
    fields = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 5 6\nencoding: gzip\n\n"
    voxels = BYTES.astype("u1").tobytes(order="F")
    path.write_bytes(fields + gzip.compress(voxels, mtime=0) + b"tail")
    result = run("apply", path, "-k", "identity", "-o", tmp_path / "o.npy")
    assert "follow its gzip stream" in " ".join(result.stderr.split())
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), BYTES.T)
