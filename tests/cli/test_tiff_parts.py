"""FILE::PART on the command line: one of several images of a file, wherever a volume can be named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from ometiff import planes


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """two.ome.tif in the current folder, with a thumbnail and the stack `planes(2)`."""
    monkeypatch.chdir(tmp_path)
    with tifffile.TiffWriter("two.ome.tif") as writer:
        for name, axes, data in (
            ("thumbnail", "YX", planes(1, (3, 4))),
            ("cells 1/2", "ZYX", planes(2)),
        ):
            writer.write(data, photometric="minisblack", metadata={"axes": axes, "Name": name})
    return tmp_path


def test_outputs_of_the_parts_of_a_file_have_names_of_their_own(two: Path, run: Any) -> None:
    run("apply", "two.ome.tif::0", "two.ome.tif::1", "two.ome.tif::cells 1/2", "-k", "identity",
        "--dtype", "uint16", "--out-dir", "o")  # fmt: skip
    np.testing.assert_array_equal(tifffile.imread("o/two_0.ome.tif"), planes(1, (3, 4)))
    np.testing.assert_array_equal(tifffile.imread("o/two_1.ome.tif"), planes(2))
    np.testing.assert_array_equal(tifffile.imread("o/two_cells_1_2.ome.tif"), planes(2))


def test_info_lists_the_series(two: Path, run: Any) -> None:
    text = run("info", "two.ome.tif").stdout
    assert "series   0 is read, of 0 (thumbnail, 3 x 4), 1 (cells 1/2, 4 x 12 x 14)" in text
    assert "two.ome.tif::1 names another" in text
    named = json.loads(run("info", "two.ome.tif::1", "--json").stdout)
    assert named["shape"] == [4, 12, 14]
    assert "notes" not in named  # the user chose


def test_a_part_is_recorded_and_repeated(two: Path, run: Any) -> None:
    command = ("apply", "two.ome.tif::cells 1/2", "-k", "box:size=3", "-o", "o.ome.tif")
    run(*command, "--sidecar", "--history", "--depfile", "o.d")
    record = json.loads(Path("o.json").read_text())["Conv3D"]
    assert "'two.ome.tif::cells 1/2'" in record["Command"]
    assert [entry["Path"] for entry in record["Inputs"]] == ["two.ome.tif"]
    assert Path("o.d").read_text().startswith("o.ome.tif: two.ome.tif\n")
    assert "same" in run("rerun", "o.json").stdout


def test_resume_tells_the_parts_apart(two: Path, run: Any, error_line: Any) -> None:
    rest = ("-k", "box:size=3", "-o", "o.npy", "--resume")
    run("apply", "two.ome.tif::1", *rest)
    before = Path("o.npy").stat()
    run("apply", "two.ome.tif::1", *rest)
    assert Path("o.npy").stat() == before
    assert "other settings (part)" in error_line(run("apply", "two.ome.tif::0", *rest, code=5).stderr)  # fmt: skip


def test_no_output_takes_the_place_of_the_other_images(
    two: Path, run: Any, error_line: Any
) -> None:
    before = Path("two.ome.tif").read_bytes()
    for name in ("two.ome.tif", "two.ome.tif::1"):
        result = run("apply", name, "-k", "identity", "-o", "two.ome.tif", "--overwrite", code=5)
        assert "the others would be lost" in error_line(result.stderr)
    assert Path("two.ome.tif").read_bytes() == before


def test_a_part_as_mask_and_kernel(two: Path, run: Any) -> None:
    np.save("v.npy", np.ones((4, 12, 14), np.float32))
    run("apply", "v.npy", "-k", "identity", "--mask", "two.ome.tif::1", "-o", "m.npy")
    assert np.load("m.npy").shape == (4, 12, 14)
    run("apply", "v.npy", "-k", "two.ome.tif::0", "-o", "k.npy")
    # in the middle all weights meet ones
    assert np.load("k.npy")[1, 5, 5] == planes(1, (3, 4)).sum()


def test_files_of_one_volume_have_no_parts(two: Path, run: Any, error_line: Any) -> None:
    np.save("v.npy", np.ones((4, 3, 3), np.float32))
    result = run("info", "v.npy::1", code=3)
    assert "a file of NumPy holds one volume; leave out ::1" in error_line(result.stderr)
    result = run("info", "two.ome.tif::9", code=3)
    assert "it has 0 (thumbnail, 3 x 4), 1 (cells 1/2" in error_line(result.stderr)
