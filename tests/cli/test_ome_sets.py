"""OME-TIFFs in several files at the command line: every position its own output, and all files count as input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from ometiff import planes, write_file, write_positions, write_split

from conv3d_cli import read_volume
from conv3d_cli.system.digests import file_digest


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The voxels of a.ome.tif and b.ome.tif, in a folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return write_split(tmp_path)


def change(path: str) -> None:
    """Another first voxel."""
    with tifffile.TiffFile(path, is_ome=False) as file:
        place = file.pages[0].dataoffsets[0]
    content = bytearray(Path(path).read_bytes())
    content[place] ^= 1
    Path(path).write_bytes(content)


def test_a_batch_of_positions(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_positions(tmp_path)
    names = [f"p{k}.ome.tif" for k in range(3)]
    run("apply", *names, "-k", "identity", "--dtype", "uint16", "--out-dir", "out", "--verify", 100)
    for k, name in enumerate(names):
        written = read_volume(f"out/{name}")
        np.testing.assert_array_equal(written.data, data[k])
        assert written.grid.spacing == (k + 1.0, (k + 1) / 10, (k + 1) / 10)
    assert "spacing  3,0.3,0.3 um" in run("info", "p2.ome.tif").stdout


def test_a_part_of_the_input_that_changed(run: Any, split: np.ndarray) -> None:
    arguments = [
        "a.ome.tif",
        "-k",
        "identity",
        "--out-dir",
        "out",
        "--resume",
        "--sidecar",
        "--depfile",
        "rules.mk",
    ]
    run("apply", *arguments)
    assert Path("rules.mk").read_text().splitlines()[0] == "out/a.ome.tif: a.ome.tif b.ome.tif"
    record = json.loads(Path("out/a.json").read_text(encoding="utf-8"))["Conv3D"]
    assert {i["Path"]: i["Digest"] for i in record["Inputs"]} == {
        f"../{name}": file_digest(name) for name in ("a.ome.tif", "b.ome.tif")
    }
    assert json.loads(run("apply", *arguments, "--json").stdout)["status"] == "skipped"
    change("b.ome.tif")
    assert "b.ome.tif has changed" in run("rerun", "out/a.json", code=4).stderr
    assert "its input changed" in run("apply", *arguments, code=5).stderr
    run("apply", *arguments, "--overwrite")
    with tifffile.TiffFile("b.ome.tif", is_ome=False) as file:
        np.testing.assert_array_equal(read_volume("out/a.ome.tif").data[2], file.pages[0].asarray())
    assert json.loads(run("apply", *arguments, "--json").stdout)["status"] == "skipped"


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_no_output_over_a_part_of_the_input(
    run: Any, split: np.ndarray, options: list[str]
) -> None:
    before = Path("b.ome.tif").read_bytes()
    result = run("apply", "a.ome.tif", "-k", "box", "-o", "b.ome.tif", *options, code=5)
    assert "b.ome.tif is one of the files that the input a.ome.tif is read from" in result.stderr
    run("apply", "a.ome.tif", "-k", "box", "-o", "c.npy", "--depfile", "b.ome.tif", code=5)
    run(
        "apply",
        "a.ome.tif",
        "-k",
        "box",
        "--nan",
        "ignore",
        "-o",
        "c.npy",
        "--coverage-out",
        "b.ome.tif",
        *options,
        code=5,
    )
    os.mkdir("other")
    write_file(Path("other/b.ome.tif"), planes(1), "", None)
    result = run(
        "apply",
        "a.ome.tif",
        "other/b.ome.tif",
        "-k",
        "box",
        "--out-dir",
        ".",
        "--overwrite",
        code=5,
    )
    assert "would replace the input a.ome.tif" in result.stderr
    assert Path("b.ome.tif").read_bytes() == before
    assert sorted(os.listdir()) == ["a.ome.tif", "b.ome.tif", "other"]


def test_names_that_lead_out_of_the_folder(run: Any, split: np.ndarray) -> None:
    os.mkdir("in")
    for name in ("a.ome.tif", "b.ome.tif"):
        content = Path(name).read_bytes()
        Path("in", name).write_bytes(
            content.replace(b'FileName="b.ome.tif"', b'FileName="../bb.tif"')
        )
    result = run("info", "in/a.ome.tif", code=3)
    assert "is outside the file's folder and is not followed" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["a.ome.tif", "b.ome.tif"], ["."]])
def test_a_set_of_which_each_file_is_named_is_read_once(
    run: Any, split: np.ndarray, words: list[str]
) -> None:
    told = run("apply", *words, "-k", "identity", "--dtype", "same", "--out-dir", "out").stderr
    assert "give one volume, of 2 files: it is read once" in " ".join(told.split())
    assert os.listdir("out") == ["a.ome.tif"]
    np.testing.assert_array_equal(read_volume("out/a.ome.tif").data, split)
