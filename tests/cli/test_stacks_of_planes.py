"""Folders of TIFF files with a plane each, read as one volume: --stack, and FOLDER::PATTERN."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from ometiff import planes

from conv3d_cli.formats import open_volume, read_volume, volume_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with z1.tif to z12.tif in `planes`: planes(2) of 12 planes."""
    monkeypatch.chdir(tmp_path)
    Path("planes").mkdir()
    for z, plane in enumerate(planes(2, (12, 6, 7))):
        tifffile.imwrite(
            f"planes/z{z + 1}.tif", plane, photometric="minisblack",
            imagej=True, resolution=(2, 2), metadata={"unit": "um"},
            compression="zlib" if z % 2 else None,
        )  # fmt: skip
    return tmp_path


def test_a_folder_of_planes_is_one_volume(folder: Path, run: Any) -> None:
    """In natural order: SimpleITK stacks the same files in the order that it is given."""
    result = run("apply", "planes", "--stack", "-k", "box:size=3", "--out-dir", "o", "--verify", 99)
    assert "files of one plane give no z spacing: it is taken as 1 um" in result.stderr
    whole = np.stack([tifffile.imread(f"planes/z{z}.tif") for z in range(1, 13)])
    np.save("whole.npy", whole)
    run("apply", "whole.npy", "-k", "box:size=3", "-o", "right.npy")
    np.testing.assert_array_equal(tifffile.imread("o/planes.ome.tif"), np.load("right.npy"))
    sitk = pytest.importorskip("SimpleITK")
    names = [f"planes/z{z}.tif" for z in range(1, 13)]
    found = read_volume("planes::*")
    np.testing.assert_array_equal(found.data, sitk.GetArrayFromImage(sitk.ReadImage(names)))
    assert (found.grid.spacing, found.grid.unit) == ((1.0, 0.5, 0.5), "um")


def test_every_command_takes_a_stack(folder: Path, run: Any) -> None:
    record = json.loads(run("info", "planes::z*.tif", "--json", "--spacing", "2,0.5,0.5um").stdout)
    assert record["shape"] == [12, 6, 7]
    assert record["spacing"] == [2, 0.5, 0.5]
    assert "notes" not in record  # the guess is void
    np.save("v.npy", planes(2, (12, 6, 7)))
    assert "agree" in run("compare", "planes::*", "planes::z*.tif").stdout
    run("view", "planes::*", "-o", "v.png")
    run("apply", "v.npy", "-k", "identity", "--mask", "planes::*", "-o", "m.npy")
    run("apply", "v.npy", "-k", "planes::z[123].tif", "-o", "k.npy")


def test_all_planes_count_as_input(folder: Path, run: Any, error_line: Any) -> None:
    names = tuple(f"planes/z{z}.tif" for z in range(1, 13))
    assert volume_files("planes::*") == names
    command = ("apply", "planes", "--stack", "-k", "identity", "--dtype", "uint16", "-o", "o.npy")
    run(*command, "--resume", "--depfile", "o.d")
    rule = Path("o.d").read_text().replace("\\\n", " ").splitlines()[0]
    target, *read = rule.split()
    assert target == "o.npy:"
    assert sorted(read) == sorted(names)
    tifffile.imwrite("planes/z5.tif", np.zeros((6, 7), np.uint16), photometric="minisblack")
    result = run(*command, "--resume", code=5)
    assert "its input changed since" in error_line(result.stderr)
    run(*command, "--resume", "--overwrite")
    assert not np.load("o.npy")[4].any()
    result = run(
        "apply", "planes::*", "-k", "identity", "-o", "planes/z5.tif", "--overwrite", code=5
    )
    assert "one of the files that the input" in error_line(result.stderr)
    run("apply", "planes", "--stack", "-k", "identity", "-o", "s.tif", "--sidecar")
    record = json.loads(Path("s.json").read_text())["Conv3D"]
    assert len(record["Inputs"]) == 12
    assert "same" in run("rerun", "s.json").stdout


def test_patterns_choose_channels(folder: Path, run: Any) -> None:
    for z, plane in enumerate(planes(3, (3, 6, 7))):
        tifffile.imwrite(f"planes/s_C1_z{z}.tif", plane, photometric="minisblack")
    command = ("apply", "planes", "--stack", "--glob", "*_C1_*.tif", "-k", "identity")
    run(*command, "--dtype", "uint16", "--out-dir", "o")
    np.testing.assert_array_equal(tifffile.imread("o/planes_C1.ome.tif"), planes(3, (3, 6, 7)))


def test_memory_of_a_stack(folder: Path, run: Any) -> None:
    """Only planes that are needed are read."""
    reader = open_volume("planes::*")
    with reader:
        assert reader.buffer_bytes(1, 1) < 6 * 6 * 7 * 2
        np.testing.assert_array_equal(
            reader.read(0, slice(9, 11), slice(0, 1))[..., 0], planes(2, (12, 6, 7))[9:11]
        )


def test_gaps_and_odd_files(folder: Path, run: Any, error_line: Any) -> None:
    Path("planes/z7.tif").unlink()
    assert "planes may be missing: z8.tif follows z6.tif" in run("info", "planes::*").stdout
    tifffile.imwrite("planes/z7.tif", np.zeros((6, 8), np.uint16), photometric="minisblack")
    message = error_line(run("info", "planes::*", code=3).stderr)
    assert "planes/z7.tif differs from planes/z1.tif in size or type" in message
    tifffile.imwrite("planes/z7.tif", np.zeros((2, 6, 7), np.uint16), photometric="minisblack")
    message = error_line(run("info", "planes::*", code=3).stderr)
    assert "planes/z7.tif holds 2 pages" in message
    assert "no TIFF file in planes matches q*" in error_line(
        run("info", "planes::q*", code=3).stderr
    )
    message = error_line(run("apply", "planes/z1.tif", "--stack", "-k", "box", "-o", "a.npy", code=2).stderr)  # fmt: skip
    assert "no input is a folder" in message
    for more in (["--recursive"], ["--glob", "a*", "--glob", "b*"]):
        run("apply", "planes", "--stack", *more, "-k", "box", "-o", "a.npy", code=2)


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("t{b}_z{a}.tif", True),
        ("z{a}_c{b}.tif", True),
        ("{letter}_z{a}.tif", True),
        ("z{n}.tif", False),
        ("{letter}{n}.tif", False),
        ("z{n}_{time}.tif", False),
        ("z{n}_c1.tif", False),
    ],
)
def test_names_of_several_stacks_are_told(
    tmp_path: Path, name: str, several: bool, run: Any
) -> None:
    data = planes(1, (6, 6, 7))
    for n, plane in enumerate(data):
        a, b = n % 3, n // 3
        words = name.format(a=a, b=b, n=n, letter="xy"[b], time=7 * n + 100)
        tifffile.imwrite(tmp_path / words, plane, photometric="minisblack")
    assert ("seem to be several stacks" in run("info", f"{tmp_path}::*").stdout) == several


def test_what_is_no_file_ends_in_a_line(folder: Path, run: Any, error_line: Any) -> None:
    odd = Path("planes/z7.tif")
    odd.unlink()
    odd.mkdir()
    command = ("apply", "planes", "--stack", "-k", "box:size=3", "-o", "o.npy")
    assert "planes/z7.tif: it is a folder" in error_line(run(*command, code=3).stderr)
    odd.rmdir()
    odd.symlink_to("nowhere")
    assert "planes/z7.tif: it is a link to" in error_line(run(*command, code=3).stderr)
    odd.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(odd)
        assert "planes/z7.tif: it is a pipe" in error_line(run(*command, code=3).stderr)


def test_coloured_planes(tmp_path: Path) -> None:
    data = planes(1, (3, 6, 7, 3), np.uint8)
    for z, plane in enumerate(data):
        tifffile.imwrite(tmp_path / f"{z}.tif", plane, photometric="rgb")
    volume = read_volume(f"{tmp_path}::*")
    assert volume.axes == "zyxs"
    np.testing.assert_array_equal(volume.data, data)
