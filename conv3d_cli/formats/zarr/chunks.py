"""Arrays of Zarr stores in folders, read and written by their codecs alone.

zarr passes every chunk through several coroutines and threads, which for small chunks takes two or
three times as long as the codecs; the pipelines that other packages offer unpack chunks without
bounds. So a `FolderArray` opens the files of chunks and shards itself, unpacks and packs them by
numcodecs within the bounds of codecs.py, and gives the same voxels and the same bytes as zarr.
`direct` makes one of a zarr Array; an array that it does not know (in a zip file, at a URL, with
filters of numbers) stays zarr's. zarr and numcodecs are imported late.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from conv3d_cli.formats.base import pieces, within
from conv3d_cli.formats.zarr.codecs import (
    CODECS,
    INDEX_ENTRY_BYTES,
    PREFIX,
    READ_ENTRY_BYTES,
    ChunkCodec,
    plain_codec,
)
from conv3d_cli.formats.zarr.remote import check_size
from conv3d_cli.model.volume import Array
from conv3d_cli.system.inputs import regular_file
from conv3d_cli.system.machine import thread_count
from conv3d_cli.system.room import room_left

CONCURRENT_CHUNKS = 10  # done at once by one call, here and by zarr: its "async.concurrency"
# Chunks that are listed at once. Each takes half a kilobyte; a hostile store has one per voxel.
LISTED_CHUNKS = 4096
BATCHES = 4  # parts of a call's work for each thread, so that none waits long for the others
NUMBERS = "biufc"  # kinds of dtypes
MISSING = 2**64 - 1  # offset and length of a chunk that is not in its shard


@dataclass(frozen=True)
class Packing:
    """One codec of a chunk's bytes: its row of `CODECS`, numcodecs' object, and its limits.

    codec : ChunkCodec
    plain : object or None      numcodecs' codec; None for a checksum
    given : int                 most bytes that are packed
    """

    codec: ChunkCodec
    plain: Any
    given: int


@dataclass(frozen=True)
class Chain:
    """How the voxels of a chunk become bytes, as a store's metadata tell it.

    shape : ints            of a chunk
    dtype : numpy dtype     of its voxels as they are stored
    order : ints            its axes as they are stored, slowest first
    packings : tuple        what is done to the bytes, in the order of packing
    typed : bool            format 2, whose codecs are given voxels rather than bytes
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...]
    packings: tuple[Packing, ...]
    typed: bool = False

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def most(self) -> int:
        """Most bytes of a packed chunk."""
        if not self.packings:
            return self.nbytes
        last = self.packings[-1]
        return last.codec.packed(last.given, last.plain)

    @cached_property
    def in_order(self) -> bool:
        """True if the axes are stored in their own order."""
        return self.order == tuple(range(len(self.order)))

    def unpack(self, data: Any, into: Array) -> Array:
        """The voxels of a packed chunk.

        data : bytes-like
        into : array        bytes that may be filled with the voxels as they are stored
        Returns an array of `shape`, of which `into` or `data` may be the memory.
        Raises: ValueError if it unpacks to more or less than the chunk; what codecs raise.
        """
        for packing in reversed(self.packings):
            if packing.codec.unpack is None:
                data = _without_checksum(data)
            else:
                last = packing is self.packings[0]
                data = packing.codec.unpack(
                    data, packing.given, packing.plain, into if last else None
                )
        size = memoryview(data).nbytes
        if size != self.nbytes:
            raise ValueError(f"it unpacks to {size:,} bytes, where its shape needs {self.nbytes:,}")
        stored = np.frombuffer(data, np.uint8).view(self.dtype)
        if self.in_order:
            return stored.reshape(self.shape)
        shape = [self.shape[axis] for axis in self.order]
        return stored.reshape(shape).transpose(np.argsort(self.order))

    def pack(self, values: Array, fill: Any, memory: Array) -> Any:
        """The bytes of a chunk.

        values : array      the chunk's voxels, perhaps fewer along some axes than the chunk has
        fill : scalar       the voxels beyond those
        memory : array      of `nbytes` bytes, which is overwritten
        Returns bytes-like, of which `memory` may be the memory.
        """
        stored = memory.view(self.dtype)
        whole = stored.reshape([self.shape[axis] for axis in self.order])
        inside = whole.transpose(np.argsort(self.order))
        if values.shape != self.shape:
            whole[...] = fill
            inside = inside[tuple(slice(0, size) for size in values.shape)]
        inside[...] = values
        data: Any = whole if self.typed else memory
        for packing in self.packings:
            if packing.codec.unpack is None:
                data = bytes(data) + _checksum(data)
            else:
                data = packing.plain.encode(data)
        return data


def _checksum(data: Any) -> bytes:
    import google_crc32c  # zarr's

    return int(google_crc32c.value(bytes(data))).to_bytes(4, "little")


def _without_checksum(data: Any) -> Any:
    """The bytes before their CRC32C. Raises: ValueError if it is another's."""
    view = memoryview(data).cast("B")
    if _checksum(view[:-4]) != bytes(view[-4:]):
        raise ValueError("its checksum is wrong")
    return view[:-4]


@dataclass(frozen=True)
class Shards:
    """How the files of a sharded array are divided.

    shape : ints        voxels of a shard
    counts : ints       chunks of a shard along each axis
    checked : bool      the index ends with a checksum
    first : bool        the index stands at the beginning of the file
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    checked: bool
    first: bool

    @property
    def index_bytes(self) -> int:
        """Bytes of the index."""
        return INDEX_ENTRY_BYTES * math.prod(self.counts) + 4 * self.checked

    @property
    def at_once(self) -> int:
        """The most shards whose indices take no more than half of the memory that is left."""
        return max(1, room_left() // 2 // (READ_ENTRY_BYTES * math.prod(self.counts)))

    def read_index(self, file: Any, size: int) -> Any:
        """Offsets and lengths of the chunks: (*counts, 2).

        size : int      bytes of the file
        Raises: ValueError for a damaged index.
        """
        if size < self.index_bytes:
            raise ValueError(
                f"it has {size:,} bytes, where its index alone takes {self.index_bytes:,}"
            )
        start = 0 if self.first else size - self.index_bytes
        data: Any = _read(file, start, np.empty(self.index_bytes, np.uint8))
        if self.checked:
            data = _without_checksum(data)
        return np.frombuffer(data, "<u8").reshape(*self.counts, 2)

    def joined(self, packed: Mapping[tuple[int, ...], Any]) -> list[Any]:
        """The parts of a shard's file.

        packed : mapping        place in the shard -> bytes of the chunk
        """
        index = np.full((*self.counts, 2), MISSING, "<u8")
        parts: list[Any] = []
        at = self.index_bytes if self.first else 0
        for place in morton_order(self.counts):
            if place in packed:
                size = memoryview(packed[place]).nbytes
                index[place] = at, size
                at += size
                parts.append(packed[place])
        data = index.tobytes()
        data += _checksum(data) if self.checked else b""
        return [data, *parts] if self.first else [*parts, data]


@lru_cache(maxsize=16)
def morton_order(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The places of a grid in Z-order, as zarr writes the chunks of a shard.

    The bits of a place's coordinates are interleaved, the first axis lowest; an axis gives as many
    bits as its largest coordinate has.

    >>> morton_order((2, 2))
    ((0, 0), (1, 0), (0, 1), (1, 1))
    """
    bits = [(count - 1).bit_length() for count in counts]
    levels = [
        (axis, bit) for bit in range(max(bits, default=0)) for axis in range(len(counts))
        if bit < bits[axis]
    ]  # fmt: skip

    def code(place: tuple[int, ...]) -> int:
        return sum(((place[axis] >> bit) & 1) << n for n, (axis, bit) in enumerate(levels))

    return tuple(sorted(product(*map(range, counts)), key=code))


class FolderArray:
    """A zarr Array in a folder, which is indexed by slices and integers as zarr's are.

    Every chunk of what is assigned is written, also one of the fill value alone: a missing one is
    then known to be lost.

    array : zarr Array
    folder : str                of its metadata
    shards : Shards or None     None: each chunk is a file
    workers : int or None       threads that unpack and pack; None: see `machine.thread_count`
    """

    def __init__(
        self, array: Any, folder: str, chain: Chain, shards: Shards | None, workers: int | None
    ) -> None:
        self.zarr_array = array
        self.shape: tuple[int, ...] = tuple(int(size) for size in array.shape)
        self.dtype, self.fill_value = array.dtype, array.fill_value
        self.chunks, self.shards = array.chunks, array.shards
        self._folder, self._chain, self._shards, self._workers = folder, chain, shards, workers
        self._fill = 0 if self.fill_value is None else self.fill_value
        self._unit = chain.shape if shards is None else shards.shape
        self._at_once = CONCURRENT_CHUNKS if shards is None else shards.at_once
        self._watch = getattr(array.store_path.store, "watch", None)

    def with_workers(self, workers: int) -> FolderArray:
        """The same array, read and written by so many threads."""
        return FolderArray(self.zarr_array, self._folder, self._chain, self._shards, workers)

    def __getitem__(self, selection: Any) -> Array:
        return self.read(selection, lambda shape: np.empty(shape, self.dtype))

    def read(self, selection: Any, empty: Callable[[tuple[int, ...]], Array]) -> Array:
        """The voxels of a selection.

        empty : callable    (shape) -> array in storage order, which is filled
        Raises: ValueError for a damaged chunk; OSError; what codecs raise.
        """
        box = _box(selection, self.shape)
        if box is None:  # not of integers and slices of step 1
            found: Array = self.zarr_array[selection]
            return found
        ranges, shape = box
        values = empty(tuple(map(len, ranges)))
        self._for_files(self._read_file, ranges, values)
        return values.reshape(shape)

    def __setitem__(self, selection: Any, values: Any) -> None:
        box = _box(selection, self.shape)
        if box is not None:
            ranges, shape = box
            whole = all(
                r.start % unit == 0 and (r.stop % unit == 0 or r.stop == size)
                for r, unit, size in zip(ranges, self._unit, self.shape, strict=True)
            )
            if whole and isinstance(values, np.ndarray) and values.shape == shape:
                given = values.reshape([len(r) for r in ranges])
                self._for_files(self._write_file, ranges, given)
                return
        self.zarr_array[selection] = values

    def _for_files(
        self,
        work: Callable[[Part, Array, Scratch, int], None],
        ranges: Sequence[range],
        values: Array,
    ) -> None:
        """Work on the files of a box: on several at once, or if they are few, inside of each."""
        for inner, outer in _portions(ranges, self._unit):
            self._for_some_files(work, inner, values[outer])

    def _for_some_files(
        self,
        work: Callable[[Part, Array, Scratch, int], None],
        ranges: Sequence[range],
        values: Array,
    ) -> None:
        files = list(_divided(ranges, self._unit))
        workers = self._workers or min(CONCURRENT_CHUNKS, thread_count(None))
        if len(files) < workers and self._shards is not None:
            for part in files:
                work(part, values[part.outer], Scratch(), workers)
            return

        def work_on(some: Sequence[Part]) -> None:
            scratch = Scratch()
            for part in some:
                work(part, values[part.outer], scratch, 1)

        _spread(work_on, _batches(files, workers), min(workers, self._at_once))

    def _name(self, place: tuple[int, ...]) -> tuple[str, str]:
        """The key of a chunk or shard, and its file."""
        key = str(self.zarr_array.metadata.encode_chunk_key(place))
        return key, os.path.join(self._folder, *key.split("/"))

    def _read_file(self, part: Part, values: Array, scratch: Scratch, workers: int) -> None:
        key, name = self._name(part.place)
        try:
            file = open(name, "rb", buffering=0, opener=regular_file)  # noqa: SIM115
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            if self._watch is not None:
                self._watch.see(key, None)
            values[...] = self._fill
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            if self._shards is None:
                check_size(key, size, self._chain.most)
                self._unpack(_read(file, 0, scratch.packed(size)), part.inner, values, scratch)
                return
            index = self._shards.read_index(file, size)
        for inner, outer in _portions(part.inner, self._chain.shape):
            self._read_chunks(key, name, size, index, inner, values[outer], scratch, workers)

    def _read_chunks(
        self,
        key: str,
        name: str,
        size: int,
        index: Any,
        inner: Sequence[range],
        values: Array,
        scratch: Scratch,
        workers: int,
    ) -> None:
        """Read the voxels `inner` of a shard.

        key, name, size     of the shard and its file, in bytes
        index : array       of the shard: see `Shards.read_index`
        """
        chunks = []
        for one in _divided(inner, self._chain.shape):
            start, length = index[one.place].tolist()
            if start == length == MISSING:
                values[one.outer] = self._fill
                continue
            check_size(f"a chunk in {key}", length, self._chain.most)
            if start + length > size:
                raise ValueError(f"the index in {key} points beyond the end of the file")
            chunks.append((start, length, one))
        chunks.sort(key=itemgetter(0))  # as they stand in the file

        def unpack(some: Sequence[tuple[int, int, Part]]) -> None:
            own = scratch if workers == 1 else Scratch()
            with open(name, "rb", buffering=0, opener=regular_file) as file:
                for start, length, one in some:
                    data = _read(file, start, own.packed(length))
                    self._unpack(data, one.inner, values[one.outer], own)

        _spread(unpack, _batches(chunks, workers), workers)

    def _unpack(self, data: Any, inner: Sequence[range], values: Array, scratch: Scratch) -> None:
        """Unpack the voxels `inner` of a chunk into `values`."""
        chain = self._chain
        alike = values.shape == chain.shape and values.dtype == chain.dtype and chain.in_order
        if alike and values.flags.c_contiguous:
            into = values.reshape(-1).view(np.uint8)
            found = chain.unpack(data, into)
            if np.may_share_memory(found, into):
                return
        else:
            found = chain.unpack(data, scratch.voxels(chain.nbytes))
        values[...] = found[tuple(slice(r.start, r.stop) for r in inner)]

    def _write_file(self, part: Part, values: Array, scratch: Scratch, workers: int) -> None:
        name = self._name(part.place)[1]
        chain = self._chain
        if self._shards is None:
            memory = scratch.voxels(chain.nbytes)
            write_chunk(name, [chain.pack(values, self._fill, memory)])
            return
        packed: dict[tuple[int, ...], Any] = {}

        def pack(some: Sequence[Part]) -> None:
            own = scratch if workers == 1 else Scratch()
            for one in some:
                if not chain.packings:  # what is packed stays in the memory that it is given
                    own = Scratch()
                memory = own.voxels(chain.nbytes)
                packed[one.place] = chain.pack(values[one.outer], self._fill, memory)

        chunks = list(_divided([range(size) for size in values.shape], self._chain.shape))
        _spread(pack, _batches(chunks, workers), workers)
        write_chunk(name, self._shards.joined(packed))


# --------------------------------------------------------------------------------------------------
# Boxes, threads and files


class Part(NamedTuple):
    """The part of a box that lies in one chunk or shard.

    place : ints        of the chunk or shard in its grid
    inner : ranges      the part inside of the chunk or shard
    outer : slices      the part inside of the box
    """

    place: tuple[int, ...]
    inner: tuple[range, ...]
    outer: tuple[slice, ...]


def _divided(box: Sequence[range], unit: Sequence[int]) -> Iterator[Part]:
    """The parts of a box in storage order, cut where chunks or shards of the size `unit` meet.

    >>> [(part.place, part.inner, part.outer) for part in _divided([range(3, 9)], [8])]
    [((0,), (range(3, 8),), (slice(0, 5, None),)), ((1,), (range(0, 1),), (slice(5, 6, None),))]
    """
    axes = []
    for along, size in zip(box, unit, strict=True):
        cuts = []
        for place in range(along.start // size, -(-along.stop // size)):
            start, stop = max(along.start, place * size), min(along.stop, (place + 1) * size)
            inner = range(start - place * size, stop - place * size)
            cuts.append((place, inner, slice(start - along.start, stop - along.start)))
        axes.append(cuts)
    for cut in product(*axes):
        yield Part(*zip(*cut, strict=True))


def _portions(
    box: Sequence[range], unit: Sequence[int]
) -> Iterator[tuple[tuple[range, ...], tuple[slice, ...]]]:
    """The parts of a box that each have few enough chunks to be listed, and their places in it.

    >>> [(ranges, place) for ranges, place in _portions([range(1, 9000)], [1])]
    ... # doctest: +NORMALIZE_WHITESPACE
    [((range(1, 4097),), (slice(0, 4096, None),)),
     ((range(4097, 8193),), (slice(4096, 8192, None),)),
     ((range(8193, 9000),), (slice(8192, 8999, None),))]
    """
    place = [slice(along.start, along.stop) for along in box]
    for piece in pieces(place, unit, LISTED_CHUNKS):
        yield tuple(range(s.start, s.stop) for s in piece), within(piece, place)


def _box(selection: Any, shape: Sequence[int]) -> tuple[tuple[range, ...], tuple[int, ...]] | None:
    """The box that integers and slices of step 1 select, and the shape of the result, else None.

    >>> _box((slice(None), 2), (4, 5, 6))
    ((range(0, 4), range(2, 3), range(0, 6)), (4, 6))
    """
    indices = selection if isinstance(selection, tuple) else (selection,)
    if not shape or len(indices) > len(shape):
        return None
    ranges, sizes = [], []
    every = (*indices, *(slice(None),) * (len(shape) - len(indices)))
    for index, size in zip(every, shape, strict=True):
        if isinstance(index, slice):
            start, stop, step = index.indices(size)
            if step != 1 or stop <= start:
                return None
            ranges.append(range(start, stop))
            sizes.append(stop - start)
        elif isinstance(index, int | np.integer) and 0 <= index < size:
            ranges.append(range(int(index), int(index) + 1))
        else:
            return None
    return tuple(ranges), tuple(sizes)


def _batches(jobs: Sequence[Any], workers: int) -> list[Sequence[Any]]:
    """Jobs in a few parts of the same size for each worker, one after another."""
    size = max(1, -(-len(jobs) // (1 if workers == 1 else BATCHES * workers)))
    return [jobs[at : at + size] for at in range(0, len(jobs), size)]


class Scratch:
    """Memory that one thread uses for one chunk after another.

    The system gives and zeroes new memory page by page, which can take as long as a codec.
    """

    def __init__(self) -> None:
        self._packed = self._voxels = np.empty(0, np.uint8)

    def packed(self, size: int) -> Array:
        """So many bytes, for what is read."""
        if self._packed.size < size:
            self._packed = np.empty(size + size // 8, np.uint8)
        return self._packed[:size]

    def voxels(self, size: int) -> Array:
        """So many bytes, for the voxels of a chunk."""
        if self._voxels.size < size:
            self._voxels = np.empty(size, np.uint8)
        return self._voxels[:size]


def _spread(work: Callable[[Any], None], jobs: Sequence[Any], workers: int) -> None:
    """Do all jobs by so many threads; by the caller's alone if it is one. Raises: what they raise.

    After an error, no further job is begun.
    """
    if min(workers, len(jobs)) <= 1:
        for job in jobs:
            work(job)
        return
    pool = ThreadPoolExecutor(min(workers, len(jobs)), thread_name_prefix="conv3d-chunks")
    try:
        for done in pool.map(work, jobs):
            assert done is None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(file: Any, start: int, data: Array) -> Array:
    """Fill an array of bytes from an unbuffered file. Raises: ValueError if it ends before."""
    rest = data.data
    file.seek(start)
    while len(rest):
        count = file.readinto(rest)
        if not count:
            raise ValueError("its file breaks off")
        rest = rest[count:]
    return data


def write_chunk(name: str, parts: Sequence[Any]) -> None:
    """Write the file of a chunk from its parts; it appears complete, in place of an older one."""
    partial = f"{name}.{uuid4().hex}.partial"  # as zarr's: the writer of a store removes what stays
    try:
        file = open(partial, "wb")  # noqa: SIM115
    except FileNotFoundError:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        file = open(partial, "wb")  # noqa: SIM115
    try:
        with file:
            for part in parts:
                file.write(part)
            file.flush()
            start_flushing(file.fileno())
        os.replace(partial, name)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def start_flushing(number: int) -> None:
    """Let the system begin to write an open file's dirty pages to disk, where it knows how."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)


# --------------------------------------------------------------------------------------------------
# What the metadata say


def direct(array: Any, workers: int | None = None) -> Any:
    """A zarr Array as a `FolderArray` if it is one that can be; else the array itself.

    workers : int or None       see `FolderArray`
    """
    from zarr.storage import LocalStore

    where = array.store_path
    store = getattr(where.store, "_store", where.store)  # inside of a wrapper
    if not isinstance(store, LocalStore) or array.dtype.kind not in NUMBERS or not array.shape:
        return array
    try:
        chain, shards = _layout(array.metadata)
    except _UnknownLayoutError:
        return array
    folder = os.path.join(os.fspath(store.root), *where.path.split("/"))
    return FolderArray(array, folder, chain, shards, workers)


def alone(array: Any) -> Any:
    """A `FolderArray` for callers that have threads of their own; another array as it is."""
    return array.with_workers(1) if isinstance(array, FolderArray) else array


class _UnknownLayoutError(Exception):
    """The metadata name what only zarr knows."""


def _layout(metadata: Any) -> tuple[Chain, Shards | None]:
    """How an array's chunks are stored. Raises: _UnknownLayoutError."""
    if metadata.zarr_format == 2:
        if metadata.filters:
            raise _UnknownLayoutError
        shape = tuple(metadata.chunks)
        order = tuple(range(len(shape)))
        dtype = metadata.dtype.to_native_dtype()
        size = math.prod(shape) * dtype.itemsize
        packings: tuple[Packing, ...] = ()
        if metadata.compressor is not None:
            packings = (_packing(metadata.compressor.codec_id, metadata.compressor, size),)
        in_order = order if metadata.order == "C" else order[::-1]
        return Chain(shape, dtype, in_order, packings, typed=True), None
    stored = metadata.to_dict()
    grid, codecs = stored["chunk_grid"], tuple(stored["codecs"])
    if grid["name"] != "regular":
        raise _UnknownLayoutError
    shape = tuple(grid["configuration"]["chunk_shape"])
    dtype = metadata.data_type.to_native_dtype()
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return _chain(codecs, shape, dtype), None
    inside = codecs[0]["configuration"]
    part = tuple(inside["chunk_shape"])
    index = [_chain_word(codec) for codec in inside["index_codecs"]]
    # zarr can be told to write the chunks of a shard in another order
    written = getattr(metadata.codecs[0], "subchunk_write_order", "morton")
    if index not in (["bytes little"], ["bytes little", "crc32c"]) or written != "morton":
        raise _UnknownLayoutError
    counts = tuple(whole // size for whole, size in zip(shape, part, strict=True))
    first = inside.get("index_location", "end") == "start"
    shards = Shards(shape, counts, len(index) == 2, first)
    return _chain(tuple(inside["codecs"]), part, dtype), shards


def _chain_word(codec: dict[str, Any]) -> str:
    """A codec's name, with the byte order if it tells one."""
    return " ".join([codec["name"], *map(str, (codec.get("configuration") or {}).values())])


def _chain(codecs: Sequence[dict[str, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Chain:
    """The chain of format 3's codecs. Raises: _UnknownLayoutError."""
    order = tuple(range(len(shape)))
    rest = list(codecs)
    while rest and rest[0]["name"] == "transpose":
        axes = rest.pop(0)["configuration"]["order"]
        if not isinstance(axes, tuple | list):
            raise _UnknownLayoutError
        order = tuple(order[axis] for axis in axes)
    if not rest or rest[0]["name"] not in ("bytes", "endian"):
        raise _UnknownLayoutError
    endian = (rest.pop(0).get("configuration") or {}).get("endian")
    if dtype.itemsize > 1:
        if endian not in ("little", "big"):
            raise _UnknownLayoutError
        dtype = dtype.newbyteorder("<" if endian == "little" else ">")
    size = math.prod(shape) * dtype.itemsize
    packings = []
    for codec in rest:
        packings.append(_packing(codec["name"], None, size, codec))
        size = packings[-1].codec.packed(size, packings[-1].plain)
    return Chain(shape, dtype, order, tuple(packings))


def _packing(name: str, plain: Any, size: int, stored: dict[str, Any] | None = None) -> Packing:
    """One codec of bytes. Raises: _UnknownLayoutError for another one."""
    known = CODECS.get(name.removeprefix(PREFIX))
    if known is None or (known.unpack is None and name != "crc32c"):
        raise _UnknownLayoutError
    if stored is not None and known.unpack is not None:
        plain = plain_codec(stored)
    return Packing(known, plain, size)
