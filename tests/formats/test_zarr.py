"""OME-Zarr: stores as the zarr library writes them, read.

Stores that we write, read by the library and held to NGFF's rules.
"""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    MemoryLimitError,
    OutputExistsError,
    SpecError,
    WriteError,
)
from conv3d_cli.formats import create_volume, find_format, open_volume, read_volume, write_volume
from conv3d_cli.formats.zarr import chunks as zarr_chunks
from conv3d_cli.formats.zarr import pyramid as zarr_pyramid
from conv3d_cli.formats.zarr.downsampling import mean
from conv3d_cli.formats.zarr.format import ZarrWriter
from conv3d_cli.formats.zarr.pyramid import level_factors
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Volume, parts_in_storage_order
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

zarr = pytest.importorskip("zarr")

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}
AXES = ["zyx", "yx", "tczyx", "czyx", "tzyx", "tcyx"]


def describe(
    letters: str, scale: list[float], version: str, levels: int = 1, **more: Any
) -> dict[str, Any]:
    """Attributes of an image whose levels are each half as fine in space."""
    axes = [
        {"name": a, "type": TYPES[a], **({"unit": UNITS[a]} if a in UNITS else {})} for a in letters
    ]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {
                    "type": "scale",
                    "scale": [
                        s * (2**level if a in "zyx" else 1)
                        for a, s in zip(letters, scale, strict=True)
                    ],
                },
            ],
        }
        for level in range(levels)
    ]
    multiscale: dict[str, Any] = {"name": "embryo", "axes": axes, "datasets": datasets, **more}
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}]}
    return {"ome": {"version": "0.5", "multiscales": [multiscale]}}


def make_store(
    path: Path,
    data: np.ndarray,
    attributes: dict[str, Any],
    version: str,
    levels: int = 1,
    **options: Any,
) -> Path:
    """A store made by the zarr library alone."""
    zarr_format = 2 if version == "0.4" else 3
    group = zarr.create_group(str(path), zarr_format=zarr_format, attributes=attributes)
    space = [i for i, a in enumerate(range(data.ndim)) if i >= data.ndim - min(3, data.ndim)]
    for level in range(levels):
        part = data[
            tuple(
                slice(None, None, 2**level) if i in space else slice(None) for i in range(data.ndim)
            )
        ]
        array = group.create_array(str(level), shape=part.shape, dtype=part.dtype, **options)
        array[...] = part
    return path


def volume(
    rng: np.random.Generator, letters: str = "zyx", shape: tuple[int, ...] = (7, 9, 11)
) -> Volume:
    grid = Grid((2.0, 0.5, 0.25), "um", affine_from_spacing((2.0, 0.5, 0.25), (10.0, -3.0, 1.5)))
    return Volume(rng.normal(size=shape).astype(np.float32), letters, grid)


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
    }


# --------------------------------------------------------------------------------------------------
# Reading what the library wrote


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("letters", AXES)
@pytest.mark.parametrize("dtype", [">u2", "float32", "float16"])
def test_images_of_the_library(
    tmp_path: Path, version: str, letters: str, dtype: str, rng: np.random.Generator
) -> None:
    shape = tuple({"t": 2, "c": 3, "z": 5, "y": 6, "x": 7}[a] for a in letters)
    data = (rng.random(shape) * 100).astype(dtype)
    scale = [{"t": 0.5, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}[a] for a in letters]
    path = make_store(
        tmp_path / "a.zarr",
        data,
        describe(letters, scale, version),
        version,
        chunks=(2,) * len(shape),
    )
    back = read_volume(str(path))
    assert back.axes == letters
    assert back.data.dtype.isnative
    np.testing.assert_array_equal(back.data, data)
    assert back.grid.unit == "um"
    assert back.grid.spacing == (2.0 if "z" in letters else 1.0, 0.5, 0.25)
    assert find_format(str(path)).name == "OME-Zarr"  # type: ignore[union-attr]


def test_any_order_and_names_of_axes(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.random((3, 4, 5, 2))
    axes = [
        {"name": "x", "type": "space"},
        {"name": "y", "type": "space"},
        {"name": "z", "type": "space"},
        {"name": "c", "type": "channel"},
    ]
    attributes = describe("zyx", [1, 1, 1], "0.5")
    image = attributes["ome"]["multiscales"][0]
    image["axes"] = axes
    image["datasets"][0]["coordinateTransformations"][0]["scale"] = [3, 2, 5, 1]
    path = make_store(tmp_path / "a.zarr", data, attributes, "0.5")
    back = read_volume(str(path))
    assert back.axes == "xyzc"
    assert back.grid.spacing == (5, 2, 3)
    image["axes"] = [{"name": n, "type": "space"} for n in ("plane", "row", "column")] + axes[3:]
    path = make_store(tmp_path / "b.zarr", data, attributes, "0.5")
    assert read_volume(str(path)).axes == "zyxc"
    assert read_volume(str(path), axes="yxzc").axes == "yxzc"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_transformations_are_composed(
    tmp_path: Path, version: str, rng: np.random.Generator
) -> None:
    attributes = describe("zyx", [2, 0.5, 0.25], version)
    image = (attributes.get("ome") or attributes)["multiscales"][0]
    image["datasets"][0]["coordinateTransformations"].append(
        {"type": "translation", "translation": [1, 2, 3]}
    )
    image["coordinateTransformations"] = [
        {"type": "scale", "scale": [10, 10, 10]},
        {"type": "translation", "translation": [0, 0, 7]},
    ]
    path = make_store(tmp_path / "a.zarr", rng.random((4, 5, 6)), attributes, version)
    grid = read_volume(str(path)).grid
    assert grid.spacing == (20, 5, 2.5)
    np.testing.assert_array_equal(grid.world((0, 0, 0)), [37, 20, 10])  # x, y, z
    np.testing.assert_array_equal(grid.world((1, 1, 1)), [39.5, 25, 30])


def test_units_of_each_axis(tmp_path: Path, rng: np.random.Generator) -> None:
    attributes = describe("zyx", [500, 0.5, 0.5], "0.4")
    attributes["multiscales"][0]["axes"][0]["unit"] = "nanometer"
    path = make_store(tmp_path / "a.zarr", rng.random((4, 5, 6)), attributes, "0.4")
    grid = read_volume(str(path)).grid
    assert (grid.spacing, grid.unit) == ((0.5, 0.5, 0.5), "um")
    for axis in attributes["multiscales"][0]["axes"]:
        axis["unit"] = "angstrom"
    path = make_store(tmp_path / "b.zarr", rng.random((4, 5, 6)), attributes, "0.4")
    grid = read_volume(str(path)).grid
    assert (grid.spacing, grid.unit) == ((50, 0.05, 0.05), "nm")


def test_nothing_is_known_of_scales_of_one_without_units(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    attributes = describe("zyx", [1, 1, 1], "0.5")
    for axis in attributes["ome"]["multiscales"][0]["axes"]:
        del axis["unit"]
    path = make_store(tmp_path / "a.zarr", rng.random((4, 5, 6)), attributes, "0.5")
    assert read_volume(str(path)).grid.spacing is None


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_by_name(tmp_path: Path, version: str, rng: np.random.Generator) -> None:
    data = rng.random((8, 8, 8))
    path = make_store(
        tmp_path / "a.ome.zarr", data, describe("zyx", [1, 1, 1], version, 3), version, 3
    )
    for name in (f"{path}", f"{path}/", f"{path}/0", f"{path}/0/"):
        back = read_volume(name)
        np.testing.assert_array_equal(back.data, data)
        assert back.grid.spacing == (1, 1, 1)
    back = read_volume(f"{path}/2")
    np.testing.assert_array_equal(back.data, data[::4, ::4, ::4])
    assert (back.grid.spacing, back.grid.unit) == ((4, 4, 4), "um")
    with open_volume(str(path)) as reader:
        assert reader.notes == ("the image has 3 levels of resolution: the finest is used",)
        assert reader.storage()["levels"] == "0: 8 x 8 x 8; 1: 4 x 4 x 4; 2: 2 x 2 x 2"
    with open_volume(f"{path}/1") as reader:
        assert reader.notes == ()


def test_older_images(tmp_path: Path, rng: np.random.Generator) -> None:
    """0.1 and 0.2 have five unnamed axes, 0.3 names without types; none has scales."""
    data = rng.random((2, 1, 3, 4, 5))
    path = make_store(
        tmp_path / "a.zarr",
        data,
        {"multiscales": [{"version": "0.1", "datasets": [{"path": "0"}]}]},
        "0.4",
    )
    assert read_volume(str(path)).axes == "tczyx"
    attributes = {
        "multiscales": [{"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}]
    }
    path = make_store(tmp_path / "b.zarr", data[0, 0], attributes, "0.4")
    back = read_volume(str(path))
    assert (back.axes, back.grid.spacing) == ("zyx", None)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_bare_arrays(tmp_path: Path, zarr_format: int, rng: np.random.Generator) -> None:
    data = rng.random((3, 4, 5, 2))
    for name in ("a.zarr", "folder"):
        zarr.create_array(
            str(tmp_path / name), data=data, zarr_format=zarr_format, chunks=(2, 2, 2, 2)
        )
        with open_volume(str(tmp_path / name)) as reader:
            assert reader.header.axes.letters == "zyxc"
            assert reader.notes == (
                "the array has no OME metadata: read as zyxc; axes= overrides this",
            )
        with open_volume(str(tmp_path / name), channels_first=True) as reader:
            assert reader.header.axes.letters == "czyx"
        np.testing.assert_array_equal(read_volume(str(tmp_path / name), axes="zyxt").data, data)
    group = zarr.create_group(str(tmp_path / "b.zarr"), zarr_format=zarr_format)
    group.create_array("deep/raw", data=data)
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.zarr" / "deep" / "raw")).data, data)


def test_arrays_that_name_their_axes(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.random((3, 4, 5, 2))
    zarr.create_array(str(tmp_path / "a.zarr"), data=data, dimension_names=("c", "y", "x", "t"))
    assert read_volume(str(tmp_path / "a.zarr")).axes == "cyxt"
    zarr.create_array(
        str(tmp_path / "b.zarr"),
        data=data,
        zarr_format=2,
        attributes={"_ARRAY_DIMENSIONS": ["z", "c", "y", "x"]},
    )
    assert read_volume(str(tmp_path / "b.zarr")).axes == "zcyx"
    zarr.create_array(str(tmp_path / "c.zarr"), data=data, dimension_names=("lat", "lon", "y", "x"))
    assert read_volume(str(tmp_path / "c.zarr")).axes == "zyxc"


def test_sharded_arrays(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.random((9, 10, 11))
    attributes = describe("zyx", [1, 1, 1], "0.5")
    path = make_store(
        tmp_path / "a.zarr", data, attributes, "0.5", chunks=(2, 3, 4), shards=(4, 6, 8)
    )
    with open_volume(str(path)) as reader:
        assert reader.storage()["shards"] == "4 x 6 x 8"
    np.testing.assert_array_equal(read_volume(str(path)).data, data)


def test_chunks_that_are_not_there(tmp_path: Path) -> None:
    """They are the fill value, which a note says; so are those of a shard."""
    attributes = describe("zyx", [1, 1, 1], "0.5")
    group = zarr.create_group(str(tmp_path / "a.zarr"), attributes=attributes)
    array = group.create_array("0", shape=(8, 4, 4), chunks=(2, 4, 4), dtype="uint8", fill_value=7)
    array[:2] = 1
    with open_volume(str(tmp_path / "a.zarr")) as reader:
        values = reader.read(0, slice(0, 8), slice(0, 1))
        reader.finish()
        assert (
            reader.notes[-1]
            == "chunks that are not in the store: 3 of 4; they are read as its fill value, 7"
        )
    assert (values[:2] == 1).all()
    assert (values[2:] == 7).all()


@pytest.mark.parametrize(
    "name",
    ["a.zarr", "a.ome.zarr/1", "x/a.zarr/s/0", "file:///a.zarr", "s3://b/c", "https://h/x.zarr/"],
)
def test_names_of_stores(name: str) -> None:
    assert find_format(name).name == "OME-Zarr"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "other"), [("a.zarr/k.npy", "NumPy"), ("a.zarr.nii.gz", "NIfTI"), ("a.zar", None)]
)
def test_names_of_others(name: str, other: str | None) -> None:
    found = find_format(name)
    assert (found.name if found else None) == other


# --------------------------------------------------------------------------------------------------
# What is wrong with a store is one line


def message(path: Path | str, kind: type[Conv3DError] = FormatError) -> str:
    with pytest.raises(kind) as caught:
        read_volume(str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text.replace(str(path), "")) < 500
    return text


def test_groups_that_are_no_images(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.create_group(str(path))
    assert (
        message(path)
        == f"cannot read {path}: it is a Zarr group without an OME image (no multiscales)"
    )
    group.create_array("raw", data=rng.random((2, 2, 2)))
    assert f"it holds raw: name an array, such as {path}/raw" in message(path)
    for key in ("plate", "well", "bioformats2raw.layout"):
        for attributes in ({key: 3}, {"ome": {key: 3}}):
            zarr.create_group(str(tmp_path / "b.zarr"), overwrite=True, attributes=attributes)
            what = "a plate of wells" if key == "plate" else "several images"
            assert message(tmp_path / "b.zarr").endswith(what)


def test_missing_levels(tmp_path: Path, rng: np.random.Generator) -> None:
    path = make_store(
        tmp_path / "a.zarr", rng.random((4, 4, 4)), describe("zyx", [1, 1, 1], "0.5"), "0.5"
    )
    assert "no such file or folder" in message(path / "7")
    os.rename(path / "0", path / "1")
    text = message(path)
    assert text.startswith(f"cannot read {path}: its metadata name an array '0', but")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda m: m.pop("axes"), "without axes"),
        (lambda m: m.pop("datasets"), "'datasets' is missing"),
        (lambda m: m.update(datasets=[]), "no datasets"),
        (lambda m: m["datasets"][0].pop("path"), "'path' is missing"),
        (lambda m: m["axes"].pop(), "3 numbers for 2 axes"),
        (lambda m: m["axes"].__setitem__(0, m["axes"][1]), "two axes have the same name"),
        (
            lambda m: m["datasets"][0]["coordinateTransformations"][0].update(type="affine"),
            "'affine'",
        ),
        (lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale="big"), "damaged"),
        (
            lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale=[1, 1]),
            "2 numbers for 3 axes",
        ),
        (lambda m: m["datasets"][0]["coordinateTransformations"][0].pop("scale"), "not supported"),
        (lambda m: m.update(axes=7), "damaged"),
    ],
)
def test_damaged_descriptions(
    tmp_path: Path, change: Any, fact: str, rng: np.random.Generator
) -> None:
    attributes = describe("zyx", [1, 1, 1], "0.5")
    change(attributes["ome"]["multiscales"][0])
    path = make_store(tmp_path / "a.zarr", rng.random((4, 4, 4)), attributes, "0.5")
    text = message(path)
    assert "OME metadata" in text
    assert fact in text


def test_axes_that_are_not_the_arrays(tmp_path: Path, rng: np.random.Generator) -> None:
    path = make_store(
        tmp_path / "a.zarr", rng.random((2, 4, 4, 4)), describe("zyx", [1, 1, 1], "0.5"), "0.5"
    )
    assert "name 3 axes, its array has 4" in message(path)


@pytest.mark.parametrize("codec", ["blosc", "zstd", "gzip", None])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_corrupt_chunks(
    tmp_path: Path, codec: str | None, version: str, rng: np.random.Generator
) -> None:
    if version == "0.5":
        from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

        compressor: Any = {
            "blosc": BloscCodec(),
            "zstd": ZstdCodec(),
            "gzip": GzipCodec(),
            None: None,
        }[codec]
    else:
        import numcodecs

        compressor = {
            "blosc": numcodecs.Blosc(),
            "zstd": numcodecs.Zstd(),
            "gzip": numcodecs.GZip(),
            None: None,
        }[codec]
    path = make_store(
        tmp_path / "a.zarr",
        rng.random((8, 6, 6)),
        describe("zyx", [1, 1, 1], version),
        version,
        chunks=(2, 6, 6),
        compressors=compressor,
    )
    chunk = path / "0" / ("2.0.0" if version == "0.4" else "c/2/0/0")
    whole = chunk.read_bytes()
    for content in (
        b"",
        whole[:10],
        whole[: len(whole) // 2],
        whole[:-1],
        rng.bytes(len(whole) // 2),
    ):
        chunk.write_bytes(content)
        text = message(path)
        assert text.startswith(f"cannot read {path}: planes 4 to 5: ")
        assert "damaged" in text
    chunk.write_bytes(whole)
    with open_volume(str(path)) as reader:
        chunk.write_bytes(b"xyz")
        # what is whole can be read
        assert reader.read(0, slice(0, 4), slice(0, 1)).shape == (
            4,
            6,
            6,
            1,
        )
        with pytest.raises(FormatError):
            reader.read(0, slice(4, 6), slice(0, 1))


def test_codecs_nobody_knows(tmp_path: Path, rng: np.random.Generator) -> None:
    path = make_store(
        tmp_path / "a.zarr", rng.random((4, 4, 4)), describe("zyx", [1, 1, 1], "0.5"), "0.5"
    )
    stored = json.loads((path / "0" / "zarr.json").read_text())
    stored["codecs"][-1] = {"name": "flac9", "configuration": {}}
    (path / "0" / "zarr.json").write_text(json.dumps(stored))
    assert "flac9" in message(path)
    path = make_store(
        tmp_path / "b.zarr", rng.random((4, 4, 4)), describe("zyx", [1, 1, 1], "0.4"), "0.4"
    )
    stored = json.loads((path / "0" / ".zarray").read_text())
    stored["compressor"] = {"id": "flac9"}
    (path / "0" / ".zarray").write_text(json.dumps(stored))
    text = message(path)
    assert "flac9" in text
    assert "codec" in text


def test_voxels_that_are_no_numbers(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(2, 2, 2), dtype="complex64")
    assert "complex" in message(tmp_path / "a.zarr")


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    path = make_store(
        tmp_path / "a.zarr", rng.random((4, 4, 4)), describe("zyx", [1, 1, 1], "0.5"), "0.5"
    )
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert message(path).endswith("Zarr needs the zarr package: pip install 'conv3d[zarr]'")
    with pytest.raises(WriteError, match=r"pip install 'conv3d\[zarr\]'"):
        write_volume(str(tmp_path / "b.zarr"), volume(rng))
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_other_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "it is a folder" in message(tmp_path / "folder")
    (tmp_path / "a.zarr").write_bytes(b"x")
    assert "it is a file; a Zarr store is a folder" in message(tmp_path / "a.zarr")


# --------------------------------------------------------------------------------------------------
# URLs


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server over a folder: its address, and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", folder
        served.shutdown()
        thread.join()


def test_reading_from_a_web_server(
    server: tuple[str, Path], rng: np.random.Generator, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    address, folder = server
    expected = volume(rng)
    write_volume(str(folder / "a.ome.zarr"), expected, levels=1, chunks=(2, 4, 5))
    for name in ("a.ome.zarr", "a.ome.zarr/", "a.ome.zarr/0"):
        back = read_volume(f"{address}/{name}")
        np.testing.assert_array_equal(back.data, expected.data)
        assert back.grid.spacing == expected.grid.spacing
    text = message(f"{address}/no.zarr")
    assert text.startswith(f"cannot read {address}/no.zarr: no such Zarr store")
    with pytest.raises(WriteError, match="a web server can only be read from"):
        write_volume(f"{address}/b.zarr", expected)
    with pytest.raises(FormatError, match="OME-Zarr at URLs"):
        read_volume(f"{address}/a.nii.gz")
    run_job(
        Job(
            f"{address}/a.ome.zarr",
            str(tmp_path / "b.npy"),
            (Stage(Kernel(np.ones((1, 1, 1)))),),
            threads=1,
        )
    )
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), expected.data)


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("aiohttp")
    text = message("http://127.0.0.1:9/a.zarr")
    assert text.startswith("cannot read http://127.0.0.1:9/a.zarr: ")


def test_file_urls_are_folders(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    url = (folder / "a.zarr").as_uri()
    assert url.startswith("file://")
    expected = volume(rng)
    write_volume(url, expected)
    assert os.listdir(folder) == ["a.zarr"]
    for name in (url, url + "/0", str(folder / "a.zarr")):
        np.testing.assert_array_equal(read_volume(name).data, expected.data)
    with pytest.raises(OutputExistsError):
        write_volume(url, expected)


@pytest.fixture
def memory() -> Iterator[str]:
    """A place for stores in memory, which fsspec treats as a far one."""
    fsspec = pytest.importorskip("fsspec")
    yield "memory://place"
    files = fsspec.filesystem("memory")
    if files.exists("/place"):
        files.rm("/place", recursive=True)


def test_remote_stores(memory: str, rng: np.random.Generator) -> None:
    first, second = volume(rng), volume(rng, "czyx", (2, 5, 6, 7))
    path = f"{memory}/a.ome.zarr"
    write_volume(path, first, levels=2)
    np.testing.assert_array_equal(read_volume(path).data, first.data)
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        write_volume(path, second)
    beside = f"{memory}/a.ome.zar[r].zarr"  # no pattern
    write_volume(beside, second)
    write_volume(beside, first, overwrite=True)
    np.testing.assert_array_equal(read_volume(path).data, first.data)
    write_volume(path, second, overwrite=True)
    np.testing.assert_array_equal(read_volume(f"{path}/").data, second.data)
    for other in (f"{path}/0", path):
        with pytest.raises(OutputExistsError, match="the input lies in it"):
            run_job(Job(other, path, (Stage(Kernel(np.ones((1, 1, 1)))),), overwrite=True))


def test_an_unfinished_remote_store_is_no_image(memory: str, rng: np.random.Generator) -> None:
    import fsspec

    path, files = f"{memory}/a.zarr", fsspec.filesystem("memory")
    write_volume(path, volume(rng))
    new = volume(rng)
    writer = create_volume(path, new.header, overwrite=True, chunks=(2, 4, 4))
    writer.write(0, 0, 0, new.data[:4, ..., None])
    assert files.find("/place")
    assert "no such Zarr store" in message(path)
    writer.abort()
    assert not files.exists("/place/a.zarr") or files.find("/place/a.zarr") == []


# --------------------------------------------------------------------------------------------------
# What is written: read by the library, held to NGFF's rules


def check_ngff(path: Path, version: str) -> dict[str, Any]:
    """The rules of https://ngff.openmicroscopy.org that are MUSTs for an image.

    Returns its multiscale.
    """
    group = zarr.open_group(str(path), mode="r")
    attributes = group.attrs.asdict()
    if version == "0.5":
        assert group.metadata.zarr_format == 3
        assert set(attributes) == {"ome"}
        assert attributes["ome"]["version"] == "0.5"
        attributes = attributes["ome"]
    else:
        assert group.metadata.zarr_format == 2
        assert attributes["multiscales"][0]["version"] == "0.4"
    (multiscale,) = attributes["multiscales"]
    axes = multiscale["axes"]
    names = [a["name"] for a in axes]
    kinds = [a.get("type") for a in axes]
    assert 2 <= len(axes) <= 5
    assert len(set(names)) == len(names)
    assert 2 <= kinds.count("space") <= 3
    assert kinds.count("time") <= 1
    assert len([k for k in kinds if k not in ("time", "space")]) <= 1
    assert kinds == sorted(kinds, key=lambda k: {"time": 0, "space": 2}.get(k, 1))
    assert names[-kinds.count("space") :] == list("zyx")[-kinds.count("space") :]
    before = None
    for dataset in multiscale["datasets"]:
        array = group[dataset["path"]]
        assert array.ndim == len(axes)
        assert array.metadata.zarr_format == group.metadata.zarr_format
        if version == "0.5":
            assert list(array.metadata.dimension_names) == names
        else:
            assert array.metadata.dimension_separator == "/"
        scale, *rest = dataset["coordinateTransformations"]
        assert scale["type"] == "scale"
        assert len(scale["scale"]) == len(axes)
        assert len(rest) <= 1
        for translation in rest:
            assert translation["type"] == "translation"
            assert len(translation["translation"]) == len(axes)
        assert before is None or all(a <= b for a, b in zip(array.shape, before, strict=True))
        before = array.shape
    for channel in attributes.get("omero", {"channels": []})["channels"]:
        assert len(channel["color"]) == 6
        assert {"min", "max", "start", "end"} <= set(channel["window"])
    return multiscale


@pytest.mark.parametrize(
    "letters", ["zyx", "yx", "tczyx", "czyx", "tzyx", "xyz", "zyxc", "tzyxs", "qzyx"]
)
def test_what_is_written_is_ome_zarr(
    tmp_path: Path, letters: str, rng: np.random.Generator
) -> None:
    sizes = {"t": 2, "c": 3, "s": 3, "z": 5, "y": 6, "x": 7, "q": 2}
    given = volume(rng, letters, tuple(sizes[a] for a in letters))
    path = tmp_path / "a.ome.zarr"
    write_volume(str(path), given, levels=2)
    multiscale = check_ngff(path, "0.5")
    names = "".join(axis["name"] for axis in multiscale["axes"])
    order = [letters.replace("s", "c").index(a) for a in names]
    np.testing.assert_array_equal(
        zarr.open_array(str(path / "0"), mode="r")[...], given.data.transpose(order)
    )
    scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale[-2:] == [0.5, 0.25]


def test_axes_that_ngff_does_not_hold(tmp_path: Path, rng: np.random.Generator) -> None:
    for letters in ("tqzyxc", "qrzyx", "qtzyx"):
        with pytest.raises(WriteError, match="OME-Zarr holds time"):
            write_volume(str(tmp_path / "a.zarr"), Volume(rng.random((2,) * len(letters)), letters))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_version_chunks_codec_and_metadata_are_kept(
    tmp_path: Path, version: str, rng: np.random.Generator
) -> None:
    import numcodecs
    from zarr.codecs import ZstdCodec

    data = rng.integers(0, 1000, (2, 3, 9, 10, 11), dtype=np.uint16)
    attributes = describe("tczyx", [0.5, 1, 2, 0.5, 0.25], version)
    window = {"min": 0, "max": 65535, "start": 0, "end": 1000}
    omero = {
        "id": 7,
        "name": "embryo",
        "rdefs": {"model": "color", "defaultZ": 4},
        "channels": [
            {"label": f"dye {i}", "color": "00FF00", "active": True, "window": window}
            for i in range(3)
        ],
    }
    (attributes.get("ome") or attributes)["omero"] = omero
    codec: Any = numcodecs.Zstd(level=3) if version == "0.4" else ZstdCodec(level=3)
    make_store(
        tmp_path / "a.zarr", data, attributes, version, chunks=(1, 1, 4, 5, 6), compressors=codec
    )
    kernel = Stage(Kernel(np.ones((3, 3, 3)) / 27), padding="valid", strides=(1, 2, 2))
    run_job(Job(str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), (kernel,), levels=1))
    multiscale = check_ngff(tmp_path / "b.zarr", version)
    assert multiscale["name"] == "embryo"
    assert multiscale["axes"] == (attributes.get("ome") or attributes)["multiscales"][0]["axes"]
    scale, translation = multiscale["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [0.5, 1, 2, 1, 0.5]
    assert translation["translation"] == [0, 0, 2, 0.5, 0.25]
    array = zarr.open_array(str(tmp_path / "b.zarr" / "0"), mode="r")
    assert array.shape == (2, 3, 7, 4, 5)
    assert array.chunks == (1, 1, 4, 4, 5)
    assert array.dtype == np.float32
    assert array.compressors == (codec,)
    found = zarr.open_group(str(tmp_path / "b.zarr"), mode="r").attrs.asdict()
    kept = (found.get("ome") or found)["omero"]
    assert [c["label"] for c in kept["channels"]] == ["dye 0", "dye 1", "dye 2"]
    assert kept["rdefs"] == {"model": "color"}
    assert "id" not in kept
    for c, channel in enumerate(kept["channels"]):  # shown from its smallest to its largest value
        values = array[:, c]
        assert channel["window"]["start"] == channel["window"]["min"] == float(values.min())
        assert channel["window"]["end"] == channel["window"]["max"] == float(values.max())


def test_shards_are_kept_and_chunks_replace_them(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.random((9, 10, 11)).astype(np.float32)
    source = make_store(
        tmp_path / "a.zarr",
        data,
        describe("zyx", [1, 1, 1], "0.5"),
        "0.5",
        chunks=(2, 3, 4),
        shards=(4, 6, 8),
    )
    write_volume(str(tmp_path / "b.zarr"), read_volume(str(source)))
    array = zarr.open_array(str(tmp_path / "b.zarr" / "0"), mode="r")
    assert (array.chunks, array.shards) == ((2, 3, 4), (4, 6, 8))
    np.testing.assert_array_equal(array[...], data)
    write_volume(str(tmp_path / "c.zarr"), read_volume(str(source)), chunks=(3, 3, 3))
    array = zarr.open_array(str(tmp_path / "c.zarr" / "0"), mode="r")
    assert (array.chunks, array.shards) == ((3, 3, 3), None)
    np.testing.assert_array_equal(array[...], data)


def test_codecs_that_write_the_time_are_replaced(tmp_path: Path, rng: np.random.Generator) -> None:
    from zarr.codecs import GzipCodec

    source = make_store(
        tmp_path / "a.zarr",
        rng.random((4, 5, 6)),
        describe("zyx", [1, 1, 1], "0.5"),
        "0.5",
        compressors=GzipCodec(),
    )
    given = read_volume(str(source))
    with create_volume(str(tmp_path / "b.zarr"), given.header) as writer:
        assert writer.notes == (
            "the input's gzip writes the time into each chunk: Blosc (LZ4) is used instead",
        )


def test_rotations_are_said_to_be_lost(tmp_path: Path, rng: np.random.Generator) -> None:
    flipped = affine_from_spacing((1.0, 1.0, 1.0))
    flipped[0, 0] = -1
    given = replace(volume(rng), grid=Grid((1.0, 1.0, 1.0), "mm", flipped))
    with create_volume(str(tmp_path / "a.zarr"), given.header) as writer:
        assert any("rotation or flip" in note for note in writer.notes)


@pytest.mark.parametrize("name", ["a.zarr/0", "a.zarr/b.zarr/c", "folder"])
def test_outputs_are_whole_stores(tmp_path: Path, name: str, rng: np.random.Generator) -> None:
    with pytest.raises(SpecError):
        write_volume(str(tmp_path / name), volume(rng))


def test_a_folder_of_something_else_is_never_replaced(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(WriteError, match="is not a Zarr store"):
        write_volume(str(tmp_path / "a.zarr"), volume(rng), overwrite=True)
    assert (tmp_path / "a.zarr" / "thesis.txt").read_text() == "years"


# --------------------------------------------------------------------------------------------------
# Chunks: any shape, any order of slabs, each read and written once


@settings(max_examples=examples(40))
@given(st.data())
def test_any_chunks_and_slabs(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sizes = st.integers(1, 9)
    letters = data.draw(st.sampled_from(["zyx", "czyx", "tczyx"]))
    shape = tuple(data.draw(sizes) if a in "zyx" else data.draw(st.integers(1, 3)) for a in letters)
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    chunks = tuple(data.draw(sizes) for _ in range(3))
    folder = tmp_path_factory.mktemp("chunks")
    given_volume = Volume(array, letters)
    header = given_volume.header
    blocks = [
        (n, start, channels)
        for n, channels in parts_in_storage_order(
            header.axes, channels_together=data.draw(st.booleans())
        )
        for start in range(header.shape[1])
    ]
    blocks = data.draw(st.permutations(blocks))
    with create_volume(str(folder / "a.zarr"), header, chunks=chunks) as writer:
        for n, start, channels in blocks:
            writer.write(
                n,
                start,
                channels.start,
                header.axes.block(array, n, slice(start, start + 1), channels),
            )
        writer.commit()
    np.testing.assert_array_equal(
        zarr.open_array(str(folder / "a.zarr" / "0"), mode="r")[...], array
    )
    with open_volume(str(folder / "a.zarr")) as reader:
        for _ in range(6):
            n = data.draw(st.integers(0, header.shape[0] - 1))
            c = data.draw(st.integers(0, header.shape[4] - 1))
            start = data.draw(st.integers(0, header.shape[1] - 1))
            stop = data.draw(st.integers(start + 1, header.shape[1]))
            expected = header.axes.block(array, n, slice(start, stop), slice(c, c + 1))
            np.testing.assert_array_equal(
                reader.read(n, slice(start, stop), slice(c, c + 1)), expected
            )
            if data.draw(st.booleans()):
                reader.release(n, data.draw(st.integers(0, header.shape[1])))


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """How often each chunk is read and written."""
    read: Counter[str] = Counter()
    written: Counter[str] = Counter()
    get, put = zarr_chunks._read, zarr_chunks.write_chunk

    def spied(file: Any, start: int, data: Any) -> Any:
        read[file.name] += 1
        return get(file, start, data)

    def noted(name: str, parts: Any) -> None:
        written[name] += 1
        put(name, parts)

    monkeypatch.setattr(zarr_chunks, "_read", spied)
    monkeypatch.setattr(zarr_chunks, "write_chunk", noted)
    return read, written


@pytest.mark.parametrize("slab_bytes", [1, 5000, 1 << 24])
@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("chunks", [(1, 1, 4, 5, 16), (1, 2, 3, 16, 16), (1, 1, 1, 8, 8)])
def test_each_chunk_is_read_and_written_once(
    tmp_path: Path,
    traffic: Any,
    monkeypatch: pytest.MonkeyPatch,
    slab_bytes: int,
    layer: bool,
    chunks: Any,
    rng: np.random.Generator,
) -> None:
    data = rng.random((2, 2, 13, 10, 12)).astype(np.float32)
    source = make_store(
        tmp_path / "a.zarr", data, describe("tczyx", [1] * 5, "0.5"), "0.5", chunks=chunks
    )
    traffic[1].clear()
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", slab_bytes)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.LEAST_SLAB", 1)
    weights = rng.random((3, 3, 3, 2, 3) if layer else (3, 3, 3))
    run_job(
        Job(
            str(source),
            str(tmp_path / "b.zarr"),
            (Stage(Kernel(weights), padding="same"),),
            threads=2,
        )
    )
    read, written = traffic
    count = int(np.prod([-(-n // c) for n, c in zip(data.shape, chunks, strict=True)]))
    assert len(read) == count
    assert set(read.values()) == {1}
    assert written
    assert set(written.values()) == {1}


# --------------------------------------------------------------------------------------------------
# Levels


def test_levels_are_means_and_lie_in_their_place(tmp_path: Path, rng: np.random.Generator) -> None:
    spacing, origin = (2.0, 0.5, 0.5), (10.0, -3.0, 1.5)
    data = rng.normal(size=(2, 17, 70, 65)).astype(np.float32)
    given = Volume(data, "czyx", Grid(spacing, "um", affine_from_spacing(spacing, origin)))
    path = tmp_path / "a.zarr"
    write_volume(str(path), given, levels=4, chunks=(5, 16, 20))
    multiscale = check_ngff(path, "0.5")
    levels = [zarr.open_array(str(path / str(i)), mode="r")[...] for i in range(4)]
    assert [a.shape for a in levels] == [
        (2, 17, 70, 65),
        (2, 17, 35, 32),
        (2, 17, 17, 16),
        (2, 8, 8, 8),
    ]
    pairs = levels[0][:, :, :70, :64].reshape(2, 17, 35, 2, 32, 2).astype(np.float64)
    np.testing.assert_array_equal(levels[1], pairs.mean((3, 5)).astype(np.float32))
    eights = levels[2][:, :16, :16, :16].reshape(2, 8, 2, 8, 2, 8, 2).astype(np.float64)
    np.testing.assert_array_equal(levels[3], eights.mean((2, 4, 6)).astype(np.float32))
    for level, factors in zip(range(4), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)], strict=True):
        grid = read_volume(f"{path}/{level}").grid
        assert grid.spacing == tuple(s * f for s, f in zip(spacing, factors, strict=True))
        # the centre of the first voxel is that of the voxels it is the mean of
        centre = [o + s * (f - 1) / 2 for o, s, f in zip(origin, spacing, factors, strict=True)]
        np.testing.assert_allclose(grid.world((0, 0, 0)), centre[::-1], rtol=1e-14)
    assert multiscale["type"] == "local mean"


@pytest.mark.parametrize("shape", [(16, 16, 16), (33, 18, 47), (40, 16, 3)])
@pytest.mark.parametrize("chunks", [(3, 5, 7), (4, 4, 4), (64, 64, 64)])
def test_levels_do_not_depend_on_chunks(
    tmp_path: Path, shape: Any, chunks: Any, rng: np.random.Generator
) -> None:
    data = rng.integers(0, 255, shape, dtype=np.uint8)
    write_volume(str(tmp_path / "a.zarr"), Volume(data, "zyx"), levels=3, chunks=chunks)
    levels = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    below = data
    for number, factors in enumerate(level_factors("zyx", shape, None, 3)[1:], 1):
        halved = [i for i, n in enumerate(below.shape) if n >= 16]
        even = below[
            tuple(
                slice(0, n // 2 * 2) if i in halved else slice(None)
                for i, n in enumerate(below.shape)
            )
        ]
        below = mean(even, halved)
        assert below.shape == tuple(
            n // factors.get(a, 1) for a, n in zip("zyx", shape, strict=True)
        )
        np.testing.assert_array_equal(levels[str(number)][...], below)


def test_means_of_integers_are_rounded_half_to_even() -> None:
    assert mean(np.array([0, 1, 2, 3, 254, 255, 255, 255], np.uint8), [0]).tolist() == [
        0,
        2,
        254,
        255,
    ]
    largest = np.iinfo(np.int64).max
    assert mean(np.array([largest, largest, -largest, -largest, 2, 4]), [0]).tolist() == [
        largest,
        -largest,
        3,
    ]
    assert mean(np.full(2, 2**64 - 1, np.uint64), [0]).tolist() == [2**64 - 1]
    assert mean(np.array([np.inf, -np.inf, np.nan, 1]), [0]).tolist() == pytest.approx(
        [np.nan, np.nan], nan_ok=True
    )
    assert mean(np.array([True, True, False, False]), [0]).tolist() == [True, False]


def test_fewer_levels_than_asked_for_are_said(tmp_path: Path, rng: np.random.Generator) -> None:
    with create_volume(str(tmp_path / "a.zarr"), volume(rng).header, levels=3) as writer:
        assert writer.notes == (
            "1 of 3 levels are written: the axes are too short to be halved further",
        )


# --------------------------------------------------------------------------------------------------
# Jobs


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("letters", ["zyx", "tczyx"])
def test_the_same_bits_as_from_npy(
    tmp_path: Path, version: str, letters: str, rng: np.random.Generator
) -> None:
    shape = tuple({"t": 2, "c": 2, "z": 20, "y": 30, "x": 31}[a] for a in letters)
    data = rng.normal(size=shape).astype(np.float32)
    np.save(tmp_path / "a.npy", data)
    chunks = tuple(1 if a in "tc" else 7 for a in letters)
    make_store(
        tmp_path / "a.zarr",
        data,
        describe(letters, [1.0] * len(shape), version),
        version,
        chunks=chunks,
    )
    stage = Stage("gaussian:sigma=1.5vox")
    run_job(Job(str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), (stage,), axes=letters))
    run_job(Job(str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), (stage,)))
    run_job(Job(str(tmp_path / "a.zarr"), str(tmp_path / "c.npy"), (stage,)))
    expected = np.load(tmp_path / "b.npy")
    np.testing.assert_array_equal(
        zarr.open_array(str(tmp_path / "b.zarr" / "0"), mode="r")[...], expected
    )
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), expected)


def test_the_same_bytes_for_any_threads_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    write_volume(str(tmp_path / "a.zarr"), volume(rng, "czyx", (2, 20, 33, 40)), chunks=(6, 10, 16))
    results = []
    for threads, slab in itertools.product((1, 3), (1, 1 << 24)):
        monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", slab)
        monkeypatch.setattr("conv3d_cli.pipeline.blocking.LEAST_SLAB", 1)
        job = Job(
            str(tmp_path / "a.zarr"),
            str(tmp_path / "b.zarr"),
            (Stage("gaussian:sigma=1vox"),),
            threads=threads,
        )
        run_job(replace(job, levels=3, overwrite=True))
        results.append(all_files(tmp_path / "b.zarr"))
    assert all(result == results[0] for result in results)
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]


def test_rows_of_chunks_are_counted(tmp_path: Path, rng: np.random.Generator) -> None:
    """A store whose chunks are as deep as the volume is held whole: the ceiling says so."""
    data = np.zeros((64, 256, 256), np.float32)
    attributes = describe("zyx", [1, 1, 1], "0.5")
    thin = make_store(tmp_path / "thin.zarr", data, attributes, "0.5", chunks=(1, 256, 256))
    deep = make_store(tmp_path / "deep.zarr", data, attributes, "0.5", chunks=(64, 64, 64))
    np.save(tmp_path / "a.npy", data)
    predicted = {}
    for name in ("a.npy", "thin.zarr", "deep.zarr"):
        job = Job(
            str(tmp_path / name), str(tmp_path / "out.npy"), (Stage("box:size=3"),), threads=1
        )
        with prepare_job(job) as prepared:
            predicted[name] = prepared.memory
        with prepare_job(
            replace(job, target=str(tmp_path / "o.zarr"), chunks=(64, 64, 64))
        ) as prepared:
            assert prepared.memory >= predicted[name] + data.nbytes
    assert predicted["a.npy"] < predicted["thin.zarr"] < predicted["deep.zarr"]
    assert predicted["deep.zarr"] >= predicted["a.npy"] + data.nbytes
    ceiling = predicted["thin.zarr"]
    run_job(
        Job(
            str(thin),
            str(tmp_path / "x.npy"),
            (Stage("box:size=3"),),
            threads=1,
            max_memory=ceiling,
        )
    )
    with pytest.raises(MemoryLimitError, match=r"pass max_memory='\d+M'"):
        run_job(
            Job(
                str(deep),
                str(tmp_path / "y.npy"),
                (Stage("box:size=3"),),
                threads=1,
                max_memory=200 << 20,
            )
        )


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    write_volume(str(tmp_path / "a.zarr"), volume(rng, shape=(20, 33, 40)))
    (tmp_path / "out").mkdir()
    job = Job(
        str(tmp_path / "a.zarr"), str(tmp_path / "out" / "b.zarr"), (Stage("box:size=3"),), levels=2
    )
    run_job(job)
    before = all_files(tmp_path / "out")
    for where in ("_store", "commit"):
        original = getattr(ZarrWriter, where)

        def interrupted(self: Any, *arguments: Any, _original: Any = original) -> None:
            _original(self, *arguments) if arguments else None
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ZarrWriter, where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_job(replace(job, overwrite=True))
        assert all_files(tmp_path / "out") == before
    with monkeypatch.context() as patch:
        patch.setattr(
            zarr_pyramid, "_reduce", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(WriteError, match="no space left"):
            run_job(replace(job, overwrite=True))
    assert all_files(tmp_path / "out") == before
    assert os.listdir(tmp_path / "out") == ["b.zarr"]


def test_a_store_is_never_written_over_its_input(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.zarr"
    write_volume(str(path), volume(rng))
    before = all_files(path)
    os.symlink(path, tmp_path / "link.zarr")
    for source, target in (
        (path, path),
        (f"{path}/0", path),
        (f"{path}/", f"{tmp_path}/link.zarr"),
        (path.as_uri(), path),
    ):
        with pytest.raises(OutputExistsError, match="the input lies in it"):
            run_job(Job(str(source), str(target), (Stage("box:size=3"),), overwrite=True))
    assert all_files(path) == before


@pytest.mark.parametrize(("option", "value"), [("chunks", (8, 8, 8)), ("levels", 2)])
def test_other_formats_have_no_chunks(
    tmp_path: Path, option: str, value: Any, rng: np.random.Generator
) -> None:
    write_volume(str(tmp_path / "a.zarr"), volume(rng))
    job = Job(
        str(tmp_path / "a.zarr"), str(tmp_path / "b.npy"), (Stage("box:size=3"),), **{option: value}
    )
    with pytest.raises(SpecError, match=rf"{option}= is for .*OME-Zarr"):
        run_job(job)
    with pytest.raises(SpecError, match=option):
        replace(job, target=str(tmp_path / "b.zarr"), **{option: 0})


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("size", [2**21, 2**40])
def test_a_size_that_no_disk_holds_is_refused_at_once(
    zarr_format: int, size: int, tmp_path: Path
) -> None:
    """A few hundred bytes of metadata, and no chunk: whatever loops over planes would not end."""
    store = tmp_path / "x.zarr"
    store.mkdir()
    shape = [size] * 3
    two = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": shape,
        "dtype": "<f4",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    three = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    name, metadata = (".zarray", two) if zarr_format == 2 else ("zarr.json", three)
    (store / name).write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match=r"promises .* bytes, more than any disk holds"):
        open_volume(str(store))
