"""MGH and MGZ, compared with nibabel, and with FreeSurfer's default where nibabel does not look."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats import open_volume, read_volume, write_volume
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Volume

OWN = Path(nibabel.__file__).parent / "tests" / "data" / "test.mgz"
OBLIQUE = np.array(
    [[-1.9, 0.2, 0.1, 80], [0.1, 0.3, 2.4, -60.5], [0.2, -1.4, 0.3, 70], [0, 0, 0, 1.0]]
)


def by_nibabel(path: Path) -> MGHImage:
    """A file in memory, so that no open file is left to be warned of."""
    data = path.read_bytes()
    return MGHImage.from_bytes(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)


def saved(path: Path, shape: tuple[int, ...] = (5, 4, 3), dtype: str = "float32") -> MGHImage:
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    image = MGHImage(data, OBLIQUE)
    image.header["tr"] = 2500.0
    image.header["flip_angle"] = 1.2
    nibabel.save(image, path)
    return image


def test_a_file_of_nibabels(tmp_path: Path) -> None:
    volume, image = read_volume(str(OWN)), by_nibabel(OWN)
    assert volume.axes == "tzyx"
    np.testing.assert_array_equal(volume.data, np.asarray(image.dataobj).T)
    np.testing.assert_allclose(volume.grid.affine, image.affine)


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 2)])
def test_reading_and_writing_agree_with_nibabel(
    tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...]
) -> None:
    image = saved(tmp_path / f"a{suffix}", shape, dtype)
    volume = read_volume(str(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(volume.data, np.asarray(image.dataobj).T)
    assert volume.data.dtype == dtype
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(volume.grid.spacing, image.header.get_zooms()[2::-1], rtol=1e-6)
    assert (volume.grid.unit, volume.grid.anatomical) == ("mm", True)
    write_volume(str(tmp_path / f"b{suffix}"), volume)
    back = by_nibabel(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj))
    assert back.get_data_dtype().newbyteorder("=") == dtype
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-5)


def test_the_footer_is_kept(tmp_path: Path, run: Any) -> None:
    """Repetition time and tags; of a packed file they come after all voxels."""
    saved(tmp_path / "a.mgh", (5, 4, 3, 2))
    tags = struct.pack(">iq", 3, 9) + b"mri_x --y"
    with open(tmp_path / "a.mgh", "ab") as file:
        file.write(tags)
    (tmp_path / "p.mgz").write_bytes(gzip.compress((tmp_path / "a.mgh").read_bytes()))
    for name in ("a.mgh", "p.mgz"):
        run("apply", str(tmp_path / name), "-k", "box:size=3", "-o", str(tmp_path / f"o_{name}"))
        header = by_nibabel(tmp_path / f"o_{name}").header
        assert (float(header["tr"]), float(header["flip_angle"])) == (2500.0, np.float32(1.2))
    assert (tmp_path / "o_a.mgh").read_bytes().endswith(tags)
    assert gzip.decompress((tmp_path / "o_p.mgz").read_bytes()).endswith(tags)


def test_strides_move_the_centre(tmp_path: Path, run: Any) -> None:
    """The first voxel of the output keeps its place in the world, by nibabel."""
    saved(tmp_path / "a.mgz", (8, 7, 6))
    run("apply", str(tmp_path / "a.mgz"), "-k", "identity", "--strides", "2,1,2", "--padding", "valid", "-o", str(tmp_path / "o.mgz"))  # fmt: skip
    affine = by_nibabel(tmp_path / "o.mgz").affine
    np.testing.assert_allclose(affine[:3, 3], OBLIQUE[:3, 3], atol=1e-4)
    np.testing.assert_allclose(affine[:3, :3], OBLIQUE[:3, :3] * (2, 1, 2), atol=1e-5)


def test_uint16_is_read_and_stored_as_what_all_readers_know(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mgh")
    write_volume(path, Volume(np.full((2, 3, 4), 60000, np.uint16), "zyx"))
    assert by_nibabel(Path(path)).get_fdata().max() == 60000
    head = bytearray(Path(path).read_bytes())[:284]
    struct.pack_into(">i", head, 20, 10)  # as FreeSurfer 7 writes it
    Path(path).write_bytes(bytes(head) + np.full(24, 60001, ">u2").tobytes())
    volume = read_volume(path)
    assert volume.data.dtype == np.uint16
    assert volume.data.max() == 60001


def test_without_good_directions_nothing_is_known_of_the_grid(tmp_path: Path) -> None:
    path = str(tmp_path / "a.mgh")
    write_volume(path, Volume(np.ones((2, 3, 4), np.uint8), "zyx"))
    with open_volume(path) as reader:
        assert reader.header.grid.spacing is None
        assert "goodRASFlag 0" in reader.notes[0]
    grid = Grid((2.0, 1.0, 1.0), "um", None)
    write_volume(path, Volume(np.ones((2, 3, 4), np.uint8), "zyx", grid), overwrite=True)
    np.testing.assert_allclose(by_nibabel(Path(path)).header.get_zooms(), (1e-3, 1e-3, 2e-3))


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.mgh"
    saved(path)
    good = path.read_bytes()
    for at, form, value, word in (
        (20, ">i", 9, "RGB"),
        (0, ">i", 2, "version"),
        (4, ">i", -3, "damaged"),
        (30, ">f", float("nan"), "affine has no meaning"),
        (4, ">i", 10**6, "truncated"),
    ):
        data = bytearray(good)
        struct.pack_into(form, data, at, value)
        path.write_bytes(data)
        with pytest.raises(FormatError, match=word):
            read_volume(str(path))
    with pytest.raises(WriteError, match="MGH has no float64; pass dtype='float32'"):
        write_volume(str(tmp_path / "b.mgh"), Volume(np.ones((2, 3, 4)), "zyx"))


def test_a_packed_file_streams(tmp_path: Path) -> None:
    saved(tmp_path / "a.mgz", (5, 4, 3, 2))
    with open_volume(str(tmp_path / "a.mgz")) as reader:
        assert reader.sequential


@pytest.mark.parametrize("name", ["lh.thickness.mgh", "lh.thickness.mgz"])
@pytest.mark.parametrize("shape", [(163842, 1, 1), (10242, 1, 1), (27307, 1, 6)])
def test_values_of_a_surface_are_told(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    """As FreeSurfer stores its icospheres, of 10 * 4^k + 2 vertices."""
    nibabel.save(MGHImage(np.zeros(shape, np.float32), np.eye(4)), tmp_path / name)
    with open_volume(str(tmp_path / name)) as reader:
        assert any("are a list rather than a volume" in note for note in reader.notes)
    saved(tmp_path / "a.mgh")
    with open_volume(str(tmp_path / "a.mgh")) as reader:
        assert not reader.notes


def test_a_footer_that_is_lost_is_named(tmp_path: Path, run: Any) -> None:
    """Tags of FreeSurfer's utils/tags.h: 3 a command line, 31 a transform, 41 a direction, 30 one
    whose length has 4 bytes, and a number that nobody knows."""
    saved(tmp_path / "a.mgh", (5, 4, 3))
    footer = struct.pack(">5f", 2500, 0, 12, 0, 256)
    for tag, form, content in ((3, ">iq", b"mri_x --y"), (30, ">ii", b"old"), (41, ">iq", b"ROW")):
        footer += struct.pack(form, tag, len(content)) + content
    footer += struct.pack(">iq", 77, 1) + b"x"
    data = (tmp_path / "a.mgh").read_bytes()[: 284 + 60 * 4]
    (tmp_path / "a.mgh").write_bytes(data + footer)
    source = str(tmp_path / "a.mgh")
    told = run("apply", source, "-k", "box:size=3", "-o", str(tmp_path / "o.nii.gz")).stderr
    told = " ".join(told.split())
    assert "does not hold the footer's repetition time, echo time, transform and 2 more" in told
    assert "does not hold the footer's command lines" in told
    strict = ("apply", source, "-k", "box:size=3", "-o", str(tmp_path / "s.nii.gz"), "--strict")
    assert "the footer's repetition time" in run(*strict, code=4).stderr
    kept = run("apply", source, "-k", "box:size=3", "-o", str(tmp_path / "o.mgh"), "--strict")
    assert "footer" not in kept.stderr
    assert (tmp_path / "o.mgh").read_bytes().endswith(footer)


@pytest.mark.parametrize("rest", [b"", b"\0" * 20, b"\0" * 20 + b"\0\0\0\3\xff", b"\1" * 30])
def test_a_footer_that_is_cut_off(rest: bytes, tmp_path: Path, run: Any) -> None:
    saved(tmp_path / "a.mgh", (5, 4, 3))
    data = (tmp_path / "a.mgh").read_bytes()[: 284 + 60 * 4]
    (tmp_path / "a.mgh").write_bytes(data + rest)
    run("info", str(tmp_path / "a.mgh"))


def test_what_may_stand_behind_packed_voxels_is_said(tmp_path: Path, run: Any) -> None:
    saved(tmp_path / "a.mgz", (5, 4, 3))
    options = ("-k", "box:size=3", "--strict", "-o")  # it may be nothing
    told = run("apply", str(tmp_path / "a.mgz"), *options, str(tmp_path / "o.nii.gz")).stderr
    assert "does not hold what may stand behind its packed voxels" in " ".join(told.split())
    told = run("apply", str(tmp_path / "a.mgz"), *options, str(tmp_path / "o.mgz")).stderr
    assert "behind" not in told
