"""`apply --compression`: compressed TIFF on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from conv3d_cli.formats import read_volume, write_volume
from conv3d_cli.model.volume import Volume


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two channels, one after another in the file."""
    path = tmp_path / "a.npy"
    np.save(path, rng.integers(0, 900, (2, 9, 40, 30)).cumsum(axis=-1).astype(np.float32))
    return path


@pytest.mark.parametrize("axes", ["zcyx", "czyx"])
@pytest.mark.parametrize(("name", "compression"), [("b.tif", "deflate"), ("b.ome.tif", "zstd")])
def test_the_same_voxels_and_bytes_whatever_the_run(
    run: Any, source: Path, tmp_path: Path, compression: str, name: str, axes: str
) -> None:
    start = ["apply", source, "--axes", axes, "-k", "gaussian:sigma=1vox", "--overwrite"]
    run(*start, "-o", tmp_path / "plain.npy")
    contents = set()
    for options in (["-j", 1], ["-j", 3], ["--max-memory", "260M"], ["--boundary", "wrap"]):
        out = tmp_path / name
        run(*start, *options, "--compression", compression, "-o", out)
        if "wrap" not in options:
            contents.add(out.read_bytes())
            read = read_volume(str(out))
            plain = np.load(tmp_path / "plain.npy")
            if axes == "zcyx":
                np.testing.assert_array_equal(read.data, plain)
            else:  # channels are computed together, since they are written so, and not one by one: the sums round otherwise
                np.testing.assert_allclose(read.data.transpose(1, 0, 2, 3), plain, rtol=1e-4)
    assert len(contents) == 1


def test_a_layer_and_a_stack(
    run: Any, source: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    np.save(tmp_path / "k.npy", rng.normal(size=(3, 3, 3, 2, 4)))
    start = ["apply", source, "--axes", "czyx", "-k", tmp_path / "k.npy", "-o"]
    run(*start, tmp_path / "b.tif", "--compression", "deflate")
    run(*start, tmp_path / "b.npy")
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "b.tif").transpose(1, 0, 2, 3), np.load(tmp_path / "b.npy")
    )


def test_compressed_in_and_out(run: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.integers(0, 900, (40, 30, 20)).astype(np.uint16)
    for name, compression in (("plain", "none"), ("deflate", "deflate"), ("zstd", "zstd")):
        write_volume(str(tmp_path / f"{name}.tif"), Volume(data, "zyx"), compression=compression)
        run(
            "apply",
            tmp_path / f"{name}.tif",
            "-k",
            "box:size=5",
            "--boundary",
            "wrap",
            "-o",
            tmp_path / f"{name}_out.tif",
        )
        np.testing.assert_array_equal(
            tifffile.imread(tmp_path / f"{name}_out.tif"),
            tifffile.imread(tmp_path / "plain_out.tif"),
        )
    assert "adobe deflate" in run("info", tmp_path / "deflate.tif").stdout
    assert "opens no zstd" in run(
        "apply", tmp_path / "plain.tif", "-k", "identity", "--compression", "zstd", "-o", tmp_path / "z.tif"
    ).stderr  # fmt: skip


def test_refused(run: Any, source: Path, tmp_path: Path) -> None:
    start = ["apply", source, "-k", "box:size=3", "-o"]
    for target in (tmp_path / "b.nii.gz", tmp_path / "b.npy", "-"):
        assert (
            "--compression deflate is for TIFF"
            in run(*start, target, "--compression", "deflate", code=2).stderr
        )
    assert "lzw" in run(*start, tmp_path / "b.tif", "--compression", "lzw", code=2).stderr
    config = tmp_path / "c.toml"
    config.write_text('kernel = "box:size=3"\ncompression = "lzw"\n')
    run("apply", source, "-c", config, "-o", tmp_path / "b.tif", code=2)
    config.write_text('kernel = "box:size=3"\ncompression = "deflate"\n')
    run("apply", source, "-c", config, "--axes", "czyx", "-o", tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].compression == 8


def test_a_damaged_page_leaves_no_output(
    run: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.integers(0, 900, (40, 30, 20)).astype(np.uint16)
    write_volume(str(tmp_path / "a.tif"), Volume(data, "zyx"), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[30].dataoffsets[0]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[place + 10 : place + 40] = bytes(30)
    (tmp_path / "a.tif").write_bytes(content)
    error = run(
        "apply", tmp_path / "a.tif", "-k", "box:size=3", "-o", tmp_path / "b.tif", code=3
    ).stderr
    assert "page 31" in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
