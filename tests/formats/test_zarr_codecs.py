"""Chunks of a Zarr store unpack to no more than their shape allows, by codecs that are known."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume

pytest.importorskip("zarr")

SIDE = 32  # voxels along an axis of the only chunk: 128 KiB of float32
ALLOWED, BOMB = 4 * SIDE**3, 48 << 20  # bytes
PLAIN = {"name": "bytes", "configuration": {"endian": "little"}}


def zstd_stream(data: bytes) -> bytes:
    """A frame that does not tell its size."""
    zstd = pytest.importorskip("backports.zstd")
    packer = zstd.ZstdCompressor()
    return b"".join([packer.compress(data), packer.flush()])


def numcodecs_of(**config: Any) -> Callable[[bytes], bytes]:
    import numcodecs

    return numcodecs.get_codec(config).encode


LZMA = {"id": "lzma", "format": 1, "check": -1, "preset": None, "filters": None}
BLOSC = {"id": "blosc", "cname": "zstd", "clevel": 9, "shuffle": 0, "blocksize": 0}
# compressor of format 2, what packs
FORMAT_2: dict[str, tuple[dict[str, Any], Callable[[bytes], bytes]]] = {
    "zlib": ({"id": "zlib", "level": 1}, zlib.compress),
    "gzip": ({"id": "gzip", "level": 1}, gzip.compress),
    "bz2": ({"id": "bz2", "level": 1}, bz2.compress),
    "lzma": (LZMA, lambda data: lzma.compress(data, preset=0)),
    "zstd": ({"id": "zstd", "level": 1}, numcodecs_of(id="zstd", level=1)),
    "zstd stream": ({"id": "zstd", "level": 1}, zstd_stream),
    "blosc": (BLOSC, numcodecs_of(**BLOSC)),
    "two": ({"id": "bz2", "level": 1}, lambda data: bz2.compress(zlib.compress(data, 9))),
}
FILTERS: dict[str, list[dict[str, Any]]] = {"two": [{"id": "zlib", "level": 9}]}
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
FORMAT_3: dict[str, tuple[list[dict[str, Any]], Callable[[bytes], bytes]]] = {
    "gzip": ([{"name": "gzip", "configuration": {"level": 1}}], gzip.compress),
    "zstd": ([ZSTD], numcodecs_of(id="zstd", level=1)),
    "zstd stream": ([ZSTD], zstd_stream),
    "numcodecs.zlib": ([{"name": "numcodecs.zlib", "configuration": {"level": 1}}], zlib.compress),
    "blosc": (
        [
            {
                "name": "blosc",
                "configuration": {
                    "cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "typesize": 4, "blocksize": 0,
                },
            }
        ],
        numcodecs_of(**BLOSC),
    ),
}  # fmt: skip


def format_2(folder: Path, compressor: Any, packed: bytes, filters: Any = None) -> Path:
    folder.mkdir()
    node = {
        "zarr_format": 2, "shape": [SIDE] * 3, "chunks": [SIDE] * 3, "dtype": "<f4", "order": "C",
        "fill_value": 0, "compressor": compressor, "filters": filters,
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(node))
    (folder / "0.0.0").write_bytes(packed)
    return folder


def format_3(folder: Path, codecs: list[dict[str, Any]], packed: bytes) -> Path:
    (folder / "c/0/0").mkdir(parents=True)
    grid = {"name": "regular", "configuration": {"chunk_shape": [SIDE] * 3}}
    node = {
        "zarr_format": 3, "node_type": "array", "shape": [SIDE] * 3, "data_type": "float32",
        "chunk_grid": grid, "chunk_key_encoding": {"name": "default"}, "fill_value": 0,
        "codecs": codecs, "attributes": {},
    }  # fmt: skip
    (folder / "zarr.json").write_text(json.dumps(node))
    (folder / "c/0/0/0").write_bytes(packed)
    return folder


def sharded(codecs: list[dict[str, Any]], packed: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Codecs and bytes of a shard with one chunk."""
    import numcodecs

    index = bytes(numcodecs.get_codec({"id": "crc32c"}).encode(struct.pack("<QQ", 0, len(packed))))
    settings = {
        "chunk_shape": [SIDE] * 3, "codecs": [PLAIN, *codecs], "index_location": "end",
        "index_codecs": [PLAIN, {"name": "crc32c"}],
    }  # fmt: skip
    # numcodecs puts the checksum first, Zarr after the index
    index = index[4:] + index[:4] if index[4:] == struct.pack("<QQ", 0, len(packed)) else index
    return [{"name": "sharding_indexed", "configuration": settings}], packed + index


def voxels(path: Path) -> np.ndarray[Any, Any]:
    with open_volume(str(path), axes="zyx") as reader:
        return np.asarray(reader.read(0, slice(0, SIDE), slice(0, 1)))[..., 0]


def refused(path: Path) -> str:
    """The message, once it is sure that little memory was taken."""
    voxels_of_import = format_2(path.parent / "warm.zarr", None, bytes(ALLOWED))
    voxels(voxels_of_import)  # imports
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as error:
            voxels(path)
        assert tracemalloc.get_traced_memory()[1] < BOMB / 4
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def data(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.normal(size=(SIDE, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("name", FORMAT_2)
def test_a_chunk_of_format_2_unpacks_no_further_than_its_shape(
    name: str, tmp_path: Path, data: np.ndarray[Any, Any]
) -> None:
    compressor, pack = FORMAT_2[name]
    filters = FILTERS.get(name)
    good = format_2(tmp_path / "good.zarr", compressor, pack(data.tobytes()), filters)
    assert np.array_equal(voxels(good), data)
    packed = pack(bytes(BOMB))
    assert len(packed) < ALLOWED  # the size of the file does not tell
    text = refused(format_2(tmp_path / "bomb.zarr", compressor, packed, filters))
    assert "it unpacks to " in text
    assert "shape allows" in text


@pytest.mark.parametrize("within", ["chunk", "shard"])
@pytest.mark.parametrize("name", FORMAT_3)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_a_chunk_of_format_3_unpacks_no_further_than_its_shape(
    name: str, within: str, tmp_path: Path, data: np.ndarray[Any, Any]
) -> None:
    codecs, pack = FORMAT_3[name]
    stores = []
    for kind, content in (("good", data.tobytes()), ("bomb", bytes(BOMB))):
        packed = pack(content)
        assert len(packed) < 1.2 * ALLOWED
        chain, stored = [PLAIN, *codecs], packed
        if within == "shard":
            chain, stored = sharded(codecs, packed)
        stores.append(format_3(tmp_path / f"{kind}.zarr", chain, stored))
    assert np.array_equal(voxels(stores[0]), data)
    text = refused(stores[1])
    assert "it unpacks to " in text


def test_lz4_promises_its_size_in_its_header(tmp_path: Path, data: np.ndarray[Any, Any]) -> None:
    pack = numcodecs_of(id="lz4", acceleration=1)
    compressor = {"id": "lz4", "acceleration": 1}
    good = pack(data.tobytes())
    assert np.array_equal(voxels(format_2(tmp_path / "good.zarr", compressor, good)), data)
    lying = struct.pack("<I", 1 << 30) + bytes(good)[4:]
    text = refused(format_2(tmp_path / "bomb.zarr", compressor, lying))
    assert "it unpacks to 1,073,741,824 bytes, where its shape allows 131,072" in text


def test_several_members_and_filters_are_read_as_before(
    tmp_path: Path, data: np.ndarray[Any, Any]
) -> None:
    raw = data.tobytes()
    parts = {
        "gzip": gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]),
        "bz2": bz2.compress(raw[:5000]) + bz2.compress(raw[5000:]),
        "lzma": lzma.compress(raw[:5000]) + lzma.compress(raw[5000:]),
    }
    for name, packed in parts.items():
        store = format_2(tmp_path / f"{name}.zarr", FORMAT_2[name][0], packed)
        assert np.array_equal(voxels(store), data)


@pytest.mark.parametrize(
    "chain",
    [
        [{"id": "delta", "dtype": "<f4"}],
        [{"id": "astype", "encode_dtype": "<f8", "decode_dtype": "<f4"}],
        [{"id": "shuffle", "elementsize": 4}, {"id": "crc32"}],
        [{"id": "fixedscaleoffset", "scale": 2**20, "offset": 0, "dtype": "<f4", "astype": "<i8"}],
    ],
)
def test_filters_are_undone(chain: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    import zarr

    data = rng.integers(-8, 8, (SIDE, SIDE, SIDE)).astype(np.float32)
    import numcodecs

    array = zarr.create_array(
        tmp_path / "a.zarr", shape=data.shape, chunks=data.shape, dtype="<f4", zarr_format=2,
        filters=[numcodecs.get_codec(dict(one)) for one in chain],
        compressors=numcodecs.Zlib(1),
    )  # fmt: skip
    array[...] = data
    assert np.array_equal(voxels(tmp_path / "a.zarr"), data)


def test_a_chunk_larger_than_its_shape_is_not_read(tmp_path: Path) -> None:
    store = format_2(tmp_path / "a.zarr", None, b"")
    with open(store / "0.0.0", "wb") as file:
        file.truncate(1 << 33)
    assert f"0.0.0 has {1 << 33:,} bytes, where at most {ALLOWED:,} are possible" in refused(store)


def test_metadata_larger_than_any_are_not_read(tmp_path: Path) -> None:
    store = format_2(tmp_path / "a.zarr", None, b"")
    with open(store / ".zattrs", "wb") as file:
        file.truncate(1 << 33)
    assert ".zattrs has 8,589,934,592 bytes" in refused(store)


@pytest.mark.parametrize("name", ["pickle", "json2", "msgpack2", "categorize", "vlen-utf8", "zfpy"])
def test_other_codecs_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = format_2(tmp_path / "a.zarr", None, b"cos\nsystem\n", [{"id": name}])
    with pytest.raises(FormatError, match=rf"\.zarray names the codec '{name}'; those .* zstd: "):
        voxels(path)
    (tmp_path / "b").mkdir()
    inner = [{"name": f"numcodecs.{name}", "configuration": {}}]
    for number, codecs in enumerate(([PLAIN, *inner], sharded(inner, b"")[0])):
        path = format_3(tmp_path / f"b/{number}.zarr", codecs, b"")
        with pytest.raises(FormatError, match=rf"names the codec 'numcodecs\.{name}'"):
            voxels(path)


def test_a_codec_that_stores_no_numbers_is_refused(tmp_path: Path) -> None:
    config = {"id": "astype", "encode_dtype": "V1000000", "decode_dtype": "<f4"}
    text = refused(format_2(tmp_path / "a.zarr", None, b"", [config]))
    assert "which are not both numbers" in text


@pytest.mark.parametrize("place", ["../other.zarr", "0/../../other.zarr", "file:///other.zarr"])
def test_a_dataset_does_not_leave_its_store(place: str, tmp_path: Path) -> None:
    packed = np.ones((SIDE, SIDE, SIDE), np.float32).tobytes()
    format_2(tmp_path / "other.zarr", None, packed)
    image = tmp_path / "a.zarr"
    image.mkdir()
    (image / ".zgroup").write_text('{"zarr_format": 2}')
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [1, 1, 1]}]
    level = {"path": place, "coordinateTransformations": scale}
    attributes = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": [level]}]}
    (image / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(FormatError, match=r"the path '.*' of a dataset leaves the store"):
        open_volume(str(image))
