"""`apply --history`: the command in the output itself, as each format holds it, and through a chain of formats."""

from __future__ import annotations

import itertools
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from nibabel.nifti1 import Nifti1Extension

from conv3d_cli.formats import open_volume

COMMAND = "conv3d apply a.nii.gz -k box:size=3"
LINE = f"conv3d {version('conv3d')} box:size=3: {COMMAND}"


def history(path: str) -> tuple[str, ...]:
    with open_volume(path) as reader:
        return reader.header.history


def described(name: str) -> str:
    return str(nibabel.load(name).header["descrip"].item().decode())


@pytest.mark.parametrize("name", ["o.nii.gz", "o.nii", "o.hdr"])
def test_nifti_as_others_read_it(desk: Path, name: str, run: Any) -> None:
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", name, "--history")
    image = nibabel.load(name)
    assert [
        (e.get_code(), e.get_content().rstrip(b"\0").decode()) for e in image.header.extensions
    ] == [(6, LINE)]
    assert described(name) == f"conv3d {version('conv3d')} box:size=3"
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "plain.nii")
    np.testing.assert_array_equal(image.dataobj, nibabel.load("plain.nii").dataobj)


def test_without_it_nothing_is_written(desk: Path, run: Any) -> None:
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.nii")
    assert described("o.nii") == ""
    assert not nibabel.load("o.nii").header.extensions


def test_what_stood_there_is_kept(desk: Path, run: Any) -> None:
    image = nibabel.load("a.nii.gz")
    image.header["descrip"] = b"FSL5.0"
    image.header.extensions.append(Nifti1Extension(6, b"mine"))
    image.header.extensions.append(Nifti1Extension(4, b"<AFNI/>"))
    nibabel.save(image, "b.nii")
    run("apply", "b.nii", "-k", "box:size=3", "-o", "o.nii", "--history")
    found = nibabel.load("o.nii").header.extensions
    assert [(e.get_code(), e.get_content()[:4]) for e in found] == [
        (6, b"mine"),
        (4, b"<AFN"),
        (6, b"conv"),
    ]
    assert described("o.nii") == f"FSL5.0; conv3d {version('conv3d')} box:size=3"
    run(
        "apply",
        "o.nii",
        "-k",
        "gaussian:sigma=1vox:truncate=4.0000000000000001",
        "-o",
        "p.nii",
        "--history",
    )
    assert len(history("p.nii")) == 2
    assert described("p.nii").startswith("conv3d ")  # both have no room


def test_a_long_kernel_and_other_letters(desk: Path, run: Any) -> None:
    name = "ü" * 50 + ".npy"
    np.save(name, np.ones((1, 1, 1)))
    run("apply", "a.nii.gz", "-k", name, "-o", "o.nii", "--history")
    raw = nibabel.load("o.nii").header["descrip"].item()
    assert len(raw) <= 79
    assert raw.decode().rstrip("ü").startswith("conv3d ")
    assert history("o.nii")[0].endswith(f"'{name}'")


@pytest.mark.parametrize("compression", [[], ["--compression", "deflate"]])
def test_imagej(desk: Path, compression: list[str], run: Any) -> None:
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.tif", "--history", *compression)
    with tifffile.TiffFile("o.tif") as file:
        assert file.is_imagej
        assert file.imagej_metadata["Info"] == " ".join([LINE, *compression])
    tifffile.imwrite(
        "j.tif",
        np.zeros((4, 5, 6), np.uint8),
        imagej=True,
        metadata={"axes": "ZYX", "Info": "Mine\nand yours"},
    )
    run("apply", "j.tif", "-k", "box:size=3", "-o", "p.tif", "--history", *compression)
    with tifffile.TiffFile("p.tif") as file:
        assert (
            file.imagej_metadata["Info"]
            == f"Mine\nand yours\n{' '.join([LINE.replace('a.nii.gz', 'j.tif'), *compression])}"
        )
    assert len(history("p.tif")) == 1


def test_ome(desk: Path, run: Any) -> None:
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.ome.tif", "--history")
    with tifffile.TiffFile("o.ome.tif") as file:
        found = tifffile.xml2dict(file.ome_metadata)["OME"]["StructuredAnnotations"][
            "CommentAnnotation"
        ]
        assert found["Value"] == LINE
        assert file.series[0].shape == (7, 9, 8)
    run("apply", "o.ome.tif", "-k", "box:size=5", "-o", "p.ome.tif", "--history")
    assert [line.split()[2] for line in history("p.ome.tif")] == ["box:size=3:", "box:size=5:"]


def test_zarr(desk: Path, run: Any) -> None:
    zarr = pytest.importorskip("zarr")
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.ome.zarr", "--history")
    group = zarr.open_group("o.ome.zarr", mode="r")
    assert group.attrs["conv3d"] == {"history": [LINE]}
    run("apply", "o.ome.zarr/0", "-k", "box:size=5", "-o", "p.ome.zarr", "--history")
    assert [line.split()[2] for line in history("p.ome.zarr")] == ["box:size=3:", "box:size=5:"]


def test_a_chain_of_formats_keeps_every_step(desk: Path, run: Any) -> None:
    pytest.importorskip("zarr")
    names = ["a.nii.gz", "b.ome.tif", "c.tif", "d.ome.zarr", "e.nii", "f.ome.tif", "g.nii.gz"]
    for source, target in itertools.pairwise(names):
        run("apply", source, "-k", "identity", "-o", target, "--history")
    assert [line.split()[5] for line in history("g.nii.gz")] == names[:-1]
    lines = run("info", "g.nii.gz").stdout.splitlines()
    assert sum("conv3d apply" in line for line in lines) == 6
    assert json.loads(run("info", "g.nii.gz", "--json").stdout)["history"] == list(
        history("g.nii.gz")
    )


def test_a_format_without_room_says_so(desk: Path, run: Any) -> None:
    result = run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.npy", "--history")
    assert ".npy holds no history" in result.stderr


def test_the_same_bytes_wherever_files_lie_and_however_they_are_named(desk: Path, run: Any) -> None:
    Path("deep/er").mkdir(parents=True)
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.nii.gz", "--history", "-j", "1")
    run(
        "apply",
        desk / "a.nii.gz",
        "-k",
        "box:size=3",
        "-o",
        "deep/er/other.nii.gz",
        "--history",
        "--sidecar",
        "--verify",
        "3",
    )
    assert Path("o.nii.gz").read_bytes() == Path("deep/er/other.nii.gz").read_bytes()


def test_hostile_histories(desk: Path, run: Any) -> None:
    """What stands there in other kinds is no history, and does no harm."""
    pytest.importorskip("zarr")
    run("apply", "a.nii.gz", "-k", "box:size=3", "-o", "o.ome.zarr")
    path = Path("o.ome.zarr/zarr.json")
    for own in ("text", {"history": "text"}, {"history": [1, "x", None]}, [], {"history": {}}):
        values = json.loads(path.read_text())
        values["attributes"]["conv3d"] = own
        path.write_text(json.dumps(values))
        assert set(history("o.ome.zarr")) <= {"x"}
    image = nibabel.load("a.nii.gz")
    image.header.extensions.append(Nifti1Extension(6, b"conv3d \xff\xfe: bad letters"))
    nibabel.save(image, "b.nii")
    run("apply", "b.nii", "-k", "box:size=3", "-o", "p.nii", "--history")
    assert len(history("p.nii")) == 2
