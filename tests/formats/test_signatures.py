"""Inputs are what their content says; what is recognized and not read is named with a cure."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import (
    FORMATS,
    content_of,
    find_format,
    input_format,
    open_volume,
    output_format,
    read_volume,
    recognize,
    signatures,
    volume_files,
    write_volume,
)
from conv3d_cli.formats.signatures import FOREIGN
from conv3d_cli.model.volume import Volume

VALUES = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
ONE_FILE = [
    ".nii",
    ".nii.gz",
    ".tif",
    ".npy",
    ".nrrd",
    ".mha",
    ".mgh",
    ".mgz",
    ".mif",
    ".mif.gz",
    ".mrc",
    ".mrc.gz",
]


@pytest.mark.parametrize(
    "wrong", [".dat", ".tif", ".nii.gz", ".img.gz", ".img", ".npy", ".mrc", ""]
)
@pytest.mark.parametrize("suffix", ONE_FILE)
def test_content_comes_before_the_name(tmp_path: Path, suffix: str, wrong: str) -> None:
    write_volume(str(tmp_path / f"a{suffix}"), Volume(VALUES, "zyx"))
    name = str(tmp_path / f"b{wrong}")
    shutil.copy(tmp_path / f"a{suffix}", name)
    own = find_format(f"a{suffix}")
    assert own is not None
    assert input_format(name) is own
    np.testing.assert_array_equal(read_volume(name).data, VALUES)
    with open_volume(name) as reader:
        told = [note for note in reader.notes if f"its content is {own.name}" in note]
    assert bool(told) == (not own.claims(name))


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


def _zip(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


# content -> a word of the name, and a word of the cure
STRANGERS: dict[str, tuple[bytes, str, str]] = {
    "gifti": (b'<?xml version="1.0"?>\n<!DOCTYPE GIFTI SYSTEM "x">\n<GIFTI Version="1">', "GIFTI", "wb_command"),
    "ole": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "OIB", "bfconvert"),
    "deltavision": (bytes(96) + b"\xa0\xc0" + bytes(926), "DeltaVision", "bfconvert"),
    "dm4": (struct.pack(">iqi", 4, 600, 1) + bytes(600), "DM4", "dm2mrc"),
    "matlab": (b"MATLAB 5.0 MAT-file, Platform" + bytes(600), "MATLAB", "loadmat"),
    "npz": (_zip("a.npy"), "npz", "numpy.save"),
    "zip": (_zip("a.txt"), "zip archive", "unzip"),
    "bz2": (bz2.compress(bytes(600)), "bzip2", "bunzip2"),
    "xz": (lzma.compress(bytes(600)), "xz", "unxz"),
    "tar": (_tar(), "tar archive", "tar -xf"),
    "tgz": (gzip.compress(_tar()), "tar archive", "tar -xf"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(600), "PNG", "TIFF"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(600), "JPEG", "TIFF"),
    "pdf": (b"%PDF-1.7\n" + bytes(600), "PDF", "name the volume"),
    "html": (b"<!DOCTYPE html>\n<html><head>", "HTML", "downloaded"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "annex": (b"/annex/objects/MD5E-s1--0.nii.gz\n", "git-annex", "datalad get"),
    "surface": (b"\xff\xff\xfecreated by x" + bytes(600), "surface", "mri_surf2surf"),
    "tracks": (b"mrtrix tracks\n" + bytes(600), "streamlines", "tckmap"),
    "vtk": (b"# vtk DataFile Version 3.0\n" + bytes(600), "VTK", "MetaImage"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("name", ["a.nii", "a.tif", "a.mrc", "IM0001"])
def test_strangers_are_named_with_a_cure(tmp_path: Path, kind: str, name: str) -> None:
    data, word, cure = STRANGERS[kind]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_volume(str(path))
    message = str(caught.value)
    assert word in message
    assert cure in message
    assert "\n" not in message


@pytest.mark.parametrize("found", [f for f in FOREIGN if f.suffixes], ids=lambda f: f.name)
def test_suffixes_of_strangers(tmp_path: Path, found: Any) -> None:
    """Of an input whose content says nothing, and of an output."""
    for suffix in found.suffixes:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"conv3d " * 20)
        with pytest.raises(FormatError) as caught:
            read_volume(str(path))
        assert f"it is {found.name}; {found.cure}" in str(caught.value)
        with pytest.raises(SpecError, match=r"is not written; write \.nii\.gz"):
            output_format(str(path))
        path.unlink()
        with pytest.raises(FormatError, match="no such file"):
            read_volume(str(path))


def test_no_suffix_is_claimed_by_a_format_and_a_stranger() -> None:
    own = {suffix for found in FORMATS for suffix in found.suffixes}
    assert not own & {suffix for found in FOREIGN for suffix in found.suffixes}


def test_every_format_knows_its_own_files(tmp_path: Path) -> None:
    for found in FORMATS:
        for suffix in found.suffixes if found.create is not None else ():
            if suffix == "-":
                continue
            path = str(tmp_path / f"a{suffix}")
            write_volume(path, Volume(VALUES, "zyx"), overwrite=True)
            assert input_format(path) is found, suffix


def test_a_format_that_is_not_read_packed_says_so(tmp_path: Path) -> None:
    write_volume(str(tmp_path / "a.tif"), Volume(VALUES, "zyx"))
    path = tmp_path / "a.tif.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.tif").read_bytes()))
    with pytest.raises(FormatError, match="TIFF packed by gzip; unpack it first: gunzip"):
        read_volume(str(path))


def test_folders_of_n5(tmp_path: Path) -> None:
    folder = tmp_path / "x.n5"
    folder.mkdir()
    (folder / "attributes.json").write_text("{}")
    with pytest.raises(FormatError, match="it is N5; convert it"):
        read_volume(str(folder))


def test_thumbnails_of_vsi_are_not_taken_for_the_volume(tmp_path: Path) -> None:
    write_volume(str(tmp_path / "a.tif"), Volume(VALUES, "zyx"))
    shutil.move(tmp_path / "a.tif", tmp_path / "a.vsi")
    with pytest.raises(FormatError, match="Olympus VSI"):
        read_volume(str(tmp_path / "a.vsi"))


@pytest.mark.parametrize("role", ["input", "mask", "kernel", "info", "view", "compare"])
def test_the_same_line_for_every_role(tmp_path: Path, run: Any, role: str) -> None:
    volume, other = str(tmp_path / "v.nii"), str(tmp_path / "a.dm4")
    write_volume(volume, Volume(VALUES, "zyx"))
    Path(other).write_bytes(STRANGERS["dm4"][0])
    out = ["-o", str(tmp_path / "o.nii")]
    command = {
        "input": ["apply", other, "-k", "box:size=3", *out],
        "mask": ["apply", volume, "-k", "box:size=3", "--mask", other, *out],
        "kernel": ["apply", volume, "-k", other, *out],
        "info": ["info", other],
        "view": ["view", other],
        "compare": ["compare", volume, other],
    }[role]
    told = run(*command, code=3).stderr.replace("\n", " ")
    assert " ".join(told.split()).count("it is Gatan DM3 or DM4; convert it: dm2mrc") == 1


def test_a_kernel_by_its_content(tmp_path: Path, run: Any) -> None:
    write_volume(str(tmp_path / "v.nii"), Volume(VALUES, "zyx"))
    write_volume(str(tmp_path / "k.tif"), Volume(np.ones((3, 3, 3), np.float32), "zyx"))
    shutil.move(tmp_path / "k.tif", tmp_path / "k.dat")
    for kernel, out in ((str(tmp_path / "k.dat"), "a.nii"), ("box:size=3", "b.nii")):
        run("apply", str(tmp_path / "v.nii"), "-k", kernel, "-o", str(tmp_path / out))
    one, other = (read_volume(str(tmp_path / name)).data for name in ("a.nii", "b.nii"))
    np.testing.assert_allclose(one[1, 1:3, 1:4], other[1, 1:3, 1:4] * 27, rtol=1e-5)


def test_a_folder_of_strangers_is_named(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for n in range(3):
        (folder / f"IM{n:04}").write_bytes(STRANGERS["dm4"][0])
    told = run("apply", str(folder), "-k", "box:size=3", "--out-dir", str(tmp_path / "o"), code=3)
    words = " ".join(told.stderr.split())
    assert "no volumes in" in words
    assert "IM0000 is Gatan DM3 or DM4; convert it: dm2mrc" in words


@pytest.mark.parametrize("role", ["input", "mask", "info", "kernel"])
def test_an_unknown_file_is_one_short_line(
    tmp_path: Path, run: Any, error_line: Any, role: str
) -> None:
    """The line says what the file is not, and which page has the list; it has no list itself."""
    np.save(tmp_path / "a.npy", np.ones((4, 5, 6), np.float32))
    stranger, out = tmp_path / "notes.xyz", tmp_path / "o.npy"
    stranger.write_bytes(b"\x00\x01\x02 neither this nor that")
    apply = ["apply", tmp_path / "a.npy", "-o", out]
    words = {
        "input": ["apply", stranger, "-k", "box:size=3", "-o", out],
        "mask": [*apply, "-k", "box:size=3", "--mask", stranger],
        "info": ["info", stranger],
        "kernel": [*apply, "-k", stranger],
    }[role]
    page = "kernels" if role == "kernel" else "formats"
    line = error_line(run(*words, code=3).stderr)
    assert "neither its content nor its name is of a" in line
    assert line.endswith(f"(see conv3d help {page})")
    assert ".nii" not in line.replace(str(tmp_path), "")
    run("help", page)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("o.nii.gzz", ".nii.gz"), ("o.nrd", ".nrrd"), ("o.ome.tff", ".ome.tiff"), ("o.zar", ".zarr")],
)
def test_an_unknown_output_names_the_nearest_suffix(
    tmp_path: Path, run: Any, error_line: Any, name: str, nearest: str
) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 5, 6), np.float32))
    words = ["apply", tmp_path / "a.npy", "-k", "box:size=3", "-o", tmp_path / name]
    line = error_line(run(*words, code=2).stderr)
    assert f"did you mean '{nearest}'? (see conv3d help formats)" in line
    assert ".mif" not in line


def test_an_output_without_a_suffix(tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 5, 6), np.float32))
    words = ["apply", tmp_path / "a.npy", "-k", "box:size=3", "-o", tmp_path / "out"]
    assert "a volume needs a suffix (see" in error_line(run(*words, code=2).stderr)


def test_first_bytes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many questions are asked, until the file is another one."""
    path = str(tmp_path / "a.nii.gz")
    write_volume(path, Volume(VALUES, "zyx"))
    opened: list[str] = []
    real = signatures.Start
    monkeypatch.setattr(signatures, "Start", lambda *a: opened.append(a[0]) or real(*a))
    for _ in range(3):
        assert recognize(path) is find_format(path)
        content_of(path)
        volume_files(path)
    assert opened == [path]
    Path(path).write_bytes(STRANGERS["dm4"][0])
    assert getattr(recognize(path), "name", "").startswith("Gatan")
    assert opened == [path, path]


def test_text_is_named(tmp_path: Path, run: Any, error_line: Any) -> None:
    """Also where the bytes that are looked at end within a character."""
    for name, text in (("notes.xyz", "10 µm\n"), ("README", "a" + "µ" * 4000)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        line = error_line(run("info", tmp_path / name, code=3).stderr)
        assert line.endswith(f"{name}: it is text, and no volume (see conv3d help formats)")


DATA = [
    path
    for name, inner in (
        ("nibabel", "tests/data"),
        ("nibabel", "nicom/tests/data"),
        ("nibabel", "gifti/tests/data"),
        ("nibabel", "externals/tests/data"),
        ("skimage", "data"),
    )
    if (found := importlib.util.find_spec(name)) is not None and found.origin
    for path in sorted((Path(found.origin).parent / inner).iterdir())
    if path.is_file()
]


def test_info_of_every_file_of_other_packages(run: Any, hdf5_in_this_process: Any) -> None:
    """Each is read, or one line names what it is."""
    unknown = []
    for path in DATA:
        result = run("info", path, code=None)
        assert result.exit_code in (0, 3), path
        if result.exit_code:
            assert result.stderr.count("Error:") == 1
            if "neither its content nor its name" in " ".join(result.stderr.split()):
                unknown.append(path.name)
    assert len(DATA) > 100
    # parts of Siemens' headers, and the numbers of a surface: files without a format
    assert {Path(name).suffix for name in unknown} <= {".bin", ".gz", ".dat"}, unknown
