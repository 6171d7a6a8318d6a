"""Arrays in folders, read and written without zarr's pipelines: the same voxels and the same bytes, and one line for damage."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli import Volume, write_volume
from conv3d_cli.errors import FormatError
from conv3d_cli.formats import open_volume
from conv3d_cli.formats.zarr import chunks as zarr_chunks
from conv3d_cli.formats.zarr.chunks import FolderArray, direct
from conv3d_cli.formats.zarr.format import ZarrWriter, create_zarr
from conv3d_cli.formats.zarr.store import ChunkWatch, OneThread, folder_to_write, open_node
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Axes, VolumeHeader

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")

SHAPE = (21, 33, 40)
CHUNKS = (4, 8, 16)
BLOSC = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}
V3 = zarr.codecs
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "zstd": {"compressors": V3.ZstdCodec(level=1, checksum=True)},
    "blosc": {"compressors": V3.BloscCodec(**BLOSC, typesize=8)},
    "gzip": {"compressors": V3.GzipCodec(level=1)},
    "zstd and checksum": {"compressors": [V3.ZstdCodec(level=1), V3.Crc32cCodec()]},
    "checksum": {"compressors": [V3.Crc32cCodec()]},
    "transposed": {"filters": [V3.TransposeCodec(order=(2, 0, 1))] * 2},
    "big-endian": {"serializer": V3.BytesCodec(endian="big")},
    "names with dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "shards": {"shards": (12, 40, 32), "compressors": V3.BloscCodec(**BLOSC)},
    "shards of plain chunks": {"shards": (12, 16, 32), "compressors": None},
    "shards, transposed": {
        "shards": (8, 16, 32), "filters": [V3.TransposeCodec(order=(1, 2, 0))],
        "serializer": V3.BytesCodec(endian="big"), "compressors": V3.ZstdCodec(),
    },
    "one shard": {"shards": (24, 40, 48)},
    "format 2": {"zarr_format": 2},
    "format 2, plain": {"zarr_format": 2, "compressors": None},
    "format 2, Fortran": {"zarr_format": 2, "order": "F", "compressors": numcodecs.Blosc("lz4", 5, 1)},
    "format 2, zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib(1)},
    "format 2, lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    "format 2, bz2": {"zarr_format": 2, "compressors": numcodecs.BZ2(1)},
    "format 2, lzma": {"zarr_format": 2, "compressors": numcodecs.LZMA(preset=0)},
}  # fmt: skip
INDEX_FIRST = V3.ShardingCodec(
    chunk_shape=CHUNKS, codecs=[V3.BytesCodec(), V3.ZstdCodec()], index_location="start"
)
INDEX_UNCHECKED = V3.ShardingCodec(
    chunk_shape=CHUNKS, codecs=[V3.BytesCodec()], index_codecs=[V3.BytesCodec()]
)
for name, serializer in (("index first", INDEX_FIRST), ("index unchecked", INDEX_UNCHECKED)):
    LAYOUTS[f"shards, {name}"] = {
        "chunks": (12, 16, 32), "serializer": serializer, "compressors": None,
    }  # fmt: skip
BOXES = (
    np.s_[:], np.s_[0:4, 0:8, 0:16], np.s_[3:17, 5:33, 1:39], np.s_[20:21], np.s_[5, 7:30, 40 - 3 :],
    np.s_[np.int64(2), 3, 4:5], np.s_[0:20, :, 7],
)  # fmt: skip


def made(path: Path, layout: str, dtype: str, fill: Any, **more: Any) -> Any:
    options = {"chunks": CHUNKS, **LAYOUTS[layout], **more}
    return zarr.create_array(
        folder_to_write(str(path)), shape=SHAPE, dtype=dtype, fill_value=fill, **options
    )


def random(dtype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.integers(0, 2 if dtype == "bool" else 120, SHAPE).astype(dtype)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


OTHERS = (("uint16", 7), ("bool", True), ("complex64", 2 - 1j), ("int8", -3))
CASES = [(layout, "float32", np.nan) for layout in LAYOUTS] + [
    (layout, dtype, fill)
    for layout in ("big-endian", "shards", "format 2, Fortran")
    for dtype, fill in OTHERS
]


@pytest.mark.parametrize(("layout", "dtype", "fill"), CASES, ids=str)
def test_voxels_and_bytes_are_those_of_the_library(
    layout: str, dtype: str, fill: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = random(dtype, rng)
    theirs = made(tmp_path / "theirs", layout, dtype, fill, config={"write_empty_chunks": True})
    ours = made(tmp_path / "ours", layout, dtype, fill, config={"write_empty_chunks": True})
    data[:12, :16] = fill  # a whole chunk is written, too
    theirs[...] = data
    fast = direct(ours)
    assert isinstance(fast, FolderArray)
    fast[:, :, :] = data
    stored = contents(tmp_path / "ours")
    expected = contents(tmp_path / "theirs")
    if layout == "gzip":  # it writes the time
        assert stored.keys() == expected.keys()
    else:
        assert stored == expected
    for workers in (1, 3):
        read = direct(open_node(str(tmp_path / "theirs")), workers)
        assert isinstance(read, FolderArray)
        for box in BOXES:
            found = read[box]
            np.testing.assert_array_equal(found, data[box])
            assert (found.shape, found.dtype) == (data[box].shape, data.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_missing_is_the_fill_value(
    layout: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = random("float32", rng)
    array = made(tmp_path / "a", layout, "float32", -5.0)
    array[0:9, 3:20, 0:40] = data[0:9, 3:20, 0:40]  # of shards, some chunks
    expected = np.full(SHAPE, -5, np.float32)
    expected[0:9, 3:20, 0:40] = data[0:9, 3:20, 0:40]
    watches = ChunkWatch(), ChunkWatch()
    theirs, ours = (open_node(str(tmp_path / "a"), watch) for watch in watches)
    np.testing.assert_array_equal(direct(ours)[:], expected)
    np.testing.assert_array_equal(theirs[:], expected)
    assert watches[0].missing == watches[1].missing
    assert (watches[1].missing > 0) == ("one shard" not in layout)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">u2", "<i8"])
def test_both_byte_orders_of_format_2(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    data = random(dtype, rng)
    for name in ("a", "b"):
        made(tmp_path / name, "format 2", dtype, None)
    zarr.open_array(tmp_path / "a", mode="r+")[...] = data
    direct(zarr.open_array(tmp_path / "b", mode="r+"))[:] = data
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    found = direct(open_node(str(tmp_path / "a")))[:]
    np.testing.assert_array_equal(found, data)
    assert found.dtype == np.dtype(dtype)


def test_odd_grids_of_chunks_in_a_shard(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.integers(0, 99, (9, 25, 7, 2)).astype(np.uint8)
    for name in ("a", "b"):
        zarr.create_array(
            tmp_path / name, shape=data.shape, dtype=data.dtype, chunks=(3, 5, 1, 2),
            shards=(9, 25, 7, 2), config={"write_empty_chunks": True},
        )  # fmt: skip
    zarr.open_array(tmp_path / "a", mode="r+", config={"write_empty_chunks": True})[...] = data + 1
    direct(zarr.open_array(tmp_path / "b", mode="r+"))[:] = data + 1
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("layout", ["zstd", "shards", "format 2, Fortran"])
def test_a_box_that_cuts_chunks_is_written_around_what_is_there(
    layout: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = random("int16", rng)
    array = direct(made(tmp_path / "a", layout, "int16", 0))
    array[:] = data
    for box, new in ((np.s_[3:9, 5, 2:31], 500), (np.s_[0:4, 0:8, 0:16], data[:4, :8, :16] + 1)):
        array[box] = new
        data[box] = new
    np.testing.assert_array_equal(array[:], data)
    assert direct(open_node(str(tmp_path / "a")))[20, 32, 39] == data[20, 32, 39]
    np.testing.assert_array_equal(array[::2, 1], data[::2, 1])  # as zarr reads it


def test_other_arrays_stay_those_of_the_library(tmp_path: Path) -> None:
    inner = V3.ShardingCodec(chunk_shape=(2, 8, 16))
    others = [
        {"zarr_format": 2, "filters": [numcodecs.Delta(dtype="<f4")]},
        {"chunks": (8, 16, 32), "shards": (16, 32, 64), "serializer": inner, "compressors": None},
        {"zarr_format": 2, "dtype": "S4", "fill_value": b""},
    ]
    for number, options in enumerate(others):
        path = tmp_path / f"{number}.zarr"
        given = {"shape": SHAPE, "dtype": "<f4", "chunks": CHUNKS, **options}
        array = zarr.create_array(path, **given)
        assert direct(array) is array
    memory = zarr.create_array({}, shape=SHAPE, dtype="<f4", chunks=CHUNKS)
    assert direct(memory) is memory


# --------------------------------------------------------------------------------------------------
# Damage


@pytest.mark.parametrize("layout", ["zstd", "shards", "one shard"])
def test_many_chunks_are_listed_a_few_at_a_time(
    layout: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile store has a chunk for each voxel."""
    theirs = made(tmp_path / "theirs", layout, "uint8", 0)
    data = random("uint8", rng)
    theirs[...] = data
    listed: list[int] = []
    divide = zarr_chunks._batches

    def batches(jobs: Any, workers: int) -> Any:
        listed.append(len(jobs))
        return divide(jobs, workers)

    monkeypatch.setattr(zarr_chunks, "_batches", batches)
    monkeypatch.setattr(zarr_chunks, "LISTED_CHUNKS", 5)
    fast = direct(theirs)
    for box in BOXES:
        np.testing.assert_array_equal(fast[box], data[box])
    assert 2 <= max(listed) <= 5
    if layout == "zstd":
        ours = direct(made(tmp_path / "ours", layout, "uint8", 0))
        ours[:, :, :] = data
        assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_many_chunks_in_a_zip_file(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conv3d_cli.formats.zarr import format as zarr_format

    data = rng.random((4, 9, 10)).astype(np.float32)
    write_volume(str(tmp_path / "a.zarr.zip"), Volume(data, "zyx"), chunks=(2, 2, 2))
    asked: list[int] = []

    class Watched:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __getattr__(self, name: str) -> Any:
            return getattr(self.array, name)

        def __getitem__(self, selection: Any) -> Any:
            found = self.array[selection]
            asked.append(found.size)
            return found

    monkeypatch.setattr(zarr_format, "LISTED_CHUNKS", 3)
    with open_volume(str(tmp_path / "a.zarr.zip")) as reader:
        reader.array = Watched(reader.array)
        np.testing.assert_array_equal(reader.read(0, slice(1, 4), slice(0, 1))[..., 0], data[1:4])
    assert max(asked) <= 3 * 2**3


@pytest.mark.parametrize(("room", "at_once"), [(1000, 1), (3 * 1000, 1), (6 * 48 * 125, 3)])
def test_few_large_indices_are_held_at_once(
    room: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of an index has 16 bytes, which are there three times while they are read."""
    monkeypatch.setattr(zarr_chunks, "room_left", lambda: room)
    workers: list[int] = []
    spread = zarr_chunks._spread

    def watched(work: Any, jobs: Any, count: int) -> None:
        workers.append(count)
        spread(work, jobs, count)

    monkeypatch.setattr(zarr_chunks, "_spread", watched)
    array = zarr.create_array(
        folder_to_write(str(tmp_path / "a")), shape=(20, 20, 20), chunks=(1,) * 3,
        shards=(5,) * 3, dtype="uint8", fill_value=3,
    )  # fmt: skip
    assert (direct(array, 8)[:, :, :] == 3).all()
    assert workers == [at_once]


def test_the_plan_counts_indices(tmp_path: Path, run: Any, error_line: Any) -> None:
    """A shard of 128 x 128 x 128 chunks has an index of 32 MiB, and the output one as well."""
    path = tmp_path / "a.zarr"
    zarr.create_array(
        folder_to_write(str(path)), shape=(128,) * 3, chunks=(1,) * 3, shards=(128,) * 3,
        dtype="uint8", fill_value=0,
    )  # fmt: skip
    job = ["apply", path, "-k", "box:size=3", "--max-memory", "300M", "-o"]
    for target in ("o.npy", "o.zarr"):
        result = run(*job, tmp_path / target, code=6)
        assert "need" in error_line(result.stderr)
        assert "the ceiling is 300.0 MiB" in error_line(result.stderr)
        assert not (tmp_path / target).exists()
    with open_volume(str(path)) as reader:
        access = reader.box_access()
        assert access is not None
        assert min(reader.buffer_bytes(1, 1), access.buffer_bytes) > 2 * (16 << 21)
    run("apply", path, "-k", "box:size=3", "--max-memory", "500M", "-o", tmp_path / "o.npy")


def stored(tmp_path: Path, layout: str) -> tuple[Path, Path]:
    """A volume, and one of its files."""
    path = tmp_path / "a.zarr"
    array = made(path, layout, "float32", 0)
    array[...] = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return path, path / "c" / "0" / "0" / "0"


def refusal(path: Path) -> str:
    with open_volume(str(path), axes="zyx") as reader, pytest.raises(FormatError) as error:
        reader.read(0, slice(0, SHAPE[0]), slice(0, 1))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_chunk_that_breaks_off(tmp_path: Path) -> None:
    path, file = stored(tmp_path, "plain")
    file.write_bytes(file.read_bytes()[:-4])
    assert "it unpacks to 2,044 bytes, where its shape needs 2,048" in refusal(path)
    file.write_bytes(b"")
    assert "it unpacks to 0 bytes" in refusal(path)


@pytest.mark.parametrize("layout", ["checksum", "zstd and checksum", "one shard"])
def test_a_byte_that_changed(layout: str, tmp_path: Path) -> None:
    path, file = stored(tmp_path, layout)
    data = bytearray(file.read_bytes())
    data[-6] ^= 1  # in the index, in a shard
    file.write_bytes(data)
    assert "its checksum is wrong" in refusal(path)


def rewritten(file: Path, place: tuple[int, ...], entry: tuple[int, int]) -> None:
    """Change an entry of a shard's index."""
    shards = zarr_chunks.Shards((12, 16, 32), (3, 2, 2), False, False)
    data = bytearray(file.read_bytes())
    index = np.frombuffer(data[-shards.index_bytes :], "<u8").reshape(3, 2, 2, 2).copy()
    index[place] = entry
    file.write_bytes(bytes(data[: -shards.index_bytes]) + index.tobytes())


def test_an_index_that_lies(tmp_path: Path) -> None:
    path, file = stored(tmp_path, "shards, index unchecked")
    size = file.stat().st_size
    rewritten(file, (1, 0, 1), (size - 100, 2048))
    assert "the index in c/0/0/0 points beyond the end of the file" in refusal(path)
    rewritten(file, (1, 0, 1), (0, 1 << 40))
    assert "has 1,099,511,627,776 bytes, where at most 2,048 are possible" in refusal(path)
    rewritten(file, (1, 0, 1), (2**64 - 1, 2048))
    assert "points beyond the end" in refusal(path)
    file.write_bytes(b"short")
    assert "it has 5 bytes, where its index alone takes 192" in refusal(path)


def test_an_error_ends_the_work_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stored(tmp_path, "zstd")
    opened = []

    def failing(file: Any, start: int, data: Any) -> Any:
        opened.append(file.name)
        raise OSError(5, "Input/output error")

    before = threading.active_count()
    array = direct(open_node(str(path)), 2)
    monkeypatch.setattr(zarr_chunks, "_read", failing)
    with pytest.raises(OSError, match="Input/output"):
        array[:]
    assert threading.active_count() == before
    assert len(opened) < 90 / 2  # of the chunks


def test_a_file_that_cannot_be_written_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    array = direct(made(tmp_path / "a", "shards", "uint8", 0))
    array[:] = np.ones(SHAPE, np.uint8)
    before = contents(tmp_path / "a")
    monkeypatch.setattr(zarr_chunks, "start_flushing", full)
    with pytest.raises(OSError, match="No space"):
        array[:] = np.zeros(SHAPE, np.uint8)
    assert contents(tmp_path / "a") == before


# --------------------------------------------------------------------------------------------------
# Who uses them


def test_volumes_are_read_and_written_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zarr's pipeline sees no chunk of a volume in a folder."""
    from zarr.core.codec_pipeline import BatchedCodecPipeline

    async def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("zarr's pipeline was used")

    monkeypatch.setattr(BatchedCodecPipeline, "read", never)
    monkeypatch.setattr(BatchedCodecPipeline, "write", never)
    data = np.arange(64**3, dtype=np.float32).reshape(64, 64, 64)
    for name in ("a.ome.zarr", "b.ozx"):
        write_volume(str(tmp_path / name), Volume(data, "zyx"), chunks=(16, 32, 32), levels=3)
    with open_volume(str(tmp_path / "a.ome.zarr")) as reader:
        block = reader.read(0, slice(0, 64), slice(0, 1))
    np.testing.assert_array_equal(block[..., 0], data)


def test_one_thread_works_alone_and_keeps_its_memory(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random("uint16", rng)
    path = str(tmp_path / "a")
    array = direct(made(tmp_path / "a", "shards", "uint16", 0))
    monkeypatch.setattr(zarr_chunks, "ThreadPoolExecutor", None)
    with OneThread() as thread:
        here = thread.array(array, path)
        here[:] = data
        first = here[0:8]
        np.testing.assert_array_equal(first, data[:8])
        second = here[4:12, 3, 1:40]
        assert np.may_share_memory(first, second)
        np.testing.assert_array_equal(second, data[4:12, 3, 1:40])


def test_tasks_of_a_cluster_write_all_chunks(tmp_path: Path) -> None:
    """Zeros, too, so that a missing chunk is known to be lost."""
    zeros = np.zeros((8, 8, 8, 1), np.float32)
    header = VolumeHeader(Axes("zyx", zeros.shape[:3]), zeros.dtype, Grid())
    writer = create_zarr(str(tmp_path / "a.zarr"), header)
    assert isinstance(writer, ZarrWriter)
    try:
        target = writer.target()
        with OneThread() as thread:
            target.write(0, (0, 0, 0), 0, zeros, thread)
        assert (Path(target.node) / "c/0/0/0").exists()
    finally:
        writer.abort()
