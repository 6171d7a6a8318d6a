"""The codecs that chunks of a Zarr store may be packed by, and how they are unpacked within bounds.

A chunk of a few kilobytes can unpack to gigabytes. So no codec unpacks to more than the chunk's own
size: headers that tell a size are compared with it before anything is allocated, and streams are
unpacked no further. Codecs that are not in `CODECS`, such as pickle, are refused by name as soon as
the metadata are read. zarr and numcodecs are imported late.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import signature
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.codecs import (
    GZIP_MAGIC,
    ZSTD_MAGIC,
    unpack_members,
    zstd_content,
    zstd_module,
)
from conv3d_cli.system.room import JSON_BYTES, check_tree

PREFIX = "numcodecs."  # of numcodecs' codecs in format 3
NUMBERS = "biufc"  # kinds of dtypes that a codec may convert to
SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")  # of Blosc, by numcodecs' number
LZMA_BYTES = 64 << 20  # of a dictionary, which the strongest of xz's levels takes


def _same_size(size: int, codec: Any) -> int:
    return size


def _compressed(size: int, codec: Any) -> int:
    """Most bytes that this many bytes take when no compressor can make them smaller."""
    return size + size // 8 + 1024


def _converted(size: int, codec: Any) -> int:
    """Bytes after a codec that stores another dtype. Raises: ValueError if that is no number."""
    import numpy as np

    cast = hasattr(codec, "decode_dtype")
    given = np.dtype(codec.decode_dtype if cast else codec.dtype)
    stored = np.dtype(codec.encode_dtype if cast else codec.astype)
    if given.kind not in NUMBERS or stored.kind not in NUMBERS:
        raise ValueError(f"its codec stores {given} as {stored}, which are not both numbers")
    return int(-(-size // given.itemsize) * stored.itemsize)


def _unpack_zlib(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    from isal.igzip_lib import DECOMP_ZLIB, IgzipDecompressor

    return unpack_members(data, most, lambda: IgzipDecompressor(DECOMP_ZLIB))


def _unpack_gzip(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor

    return unpack_members(data, most, lambda: IgzipDecompressor(DECOMP_GZIP), GZIP_MAGIC)


def _unpack_bz2(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    import bz2

    return unpack_members(data, most, bz2.BZ2Decompressor, b"BZh")


def _unpack_lzma(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    import lzma

    if codec.format == lzma.FORMAT_RAW:
        return unpack_members(
            data, most, lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=codec.filters)
        )
    limit = max(most, LZMA_BYTES) + (2 << 20)
    return unpack_members(data, most, lambda: lzma.LZMADecompressor(memlimit=limit), b"\xfd7zXZ")


def _unpack_zstd(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    size = zstd_content(bytes(memoryview(data)[:18]))
    if size is not None:
        return _decoded(data, size, most, codec, into)
    try:
        module = zstd_module()
    except ImportError:
        raise ValueError(
            "its zstd frame does not tell its size, for which the package backports.zstd is "
            "needed: pip install 'conv3d[zstd]'"
        ) from None
    return unpack_members(data, most, module.ZstdDecompressor, ZSTD_MAGIC)


def _unpack_blosc(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    head, stored = bytes(memoryview(data)[:16]), memoryview(data).nbytes
    # Blosc's decoder trusts the header, and reads beyond a truncated buffer
    size, packed = (int.from_bytes(head[at : at + 4], "little") for at in (4, 12))
    if len(head) < 16 or packed != stored:
        raise ValueError(f"it has {stored} bytes, where its header promises {packed}")
    return _decoded(data, size, most, codec, into)


def _unpack_lz4(data: Any, most: int, codec: Any, into: Any = None) -> Any:
    size = int.from_bytes(bytes(memoryview(data)[:4]), "little")
    return _decoded(data, size, most, codec, into)


def _decoded(data: Any, size: int, most: int, codec: Any, into: Any) -> Any:
    """Data decoded by numcodecs into `size` bytes, which its header promises.

    into : array of bytes or None       is filled if it has this size
    """
    import numpy as np

    if size > most:
        raise ValueError(f"it unpacks to {size:,} bytes, where its shape allows {most:,}")
    if not size:
        return b""
    if into is None or into.nbytes != size:
        into = np.empty(size, np.uint8)
    return codec.decode(data, into)


@dataclass(frozen=True)
class ChunkCodec:
    """A codec that may be used in a Zarr store.

    name : str          numcodecs' id, and the name in format 3, there perhaps after `PREFIX`
    packed : callable   (bytes, numcodecs' codec) -> most bytes that they take when encoded
    unpack : callable or None   (data, most, numcodecs' codec, array of bytes or None) -> data,
                                decoded to at most `most` bytes, perhaps into the array; it raises
                                ValueError for more. None: the size of its input gives that of its
                                result
    """

    name: str
    packed: Callable[[int, Any], int] = _compressed
    unpack: Callable[[Any, int, Any, Any], Any] | None = None


CODECS = {
    codec.name: codec
    for codec in (
        ChunkCodec("blosc", unpack=_unpack_blosc),
        ChunkCodec("bz2", unpack=_unpack_bz2),
        ChunkCodec("gzip", unpack=_unpack_gzip),
        ChunkCodec("lz4", unpack=_unpack_lz4),
        ChunkCodec("lzma", unpack=_unpack_lzma),
        ChunkCodec("zlib", unpack=_unpack_zlib),
        ChunkCodec("zstd", unpack=_unpack_zstd),
        ChunkCodec("adler32"),
        ChunkCodec("crc32"),
        ChunkCodec("crc32c"),
        ChunkCodec("fletcher32"),
        ChunkCodec("jenkins_lookup3"),
        ChunkCodec("astype", _converted),
        ChunkCodec("bitround", _same_size),
        ChunkCodec("delta", _converted),
        ChunkCodec("fixedscaleoffset", _converted),
        ChunkCodec("packbits", lambda size, codec: size // 8 + 2),
        ChunkCodec("quantize", _converted),
        ChunkCodec("shuffle", _same_size),
        # in format 3 alone
        ChunkCodec("bytes", _same_size),
        ChunkCodec("endian", _same_size),  # as drafts called it
        ChunkCodec("sharding_indexed"),
        ChunkCodec("transpose", _same_size),
    )
}


def check_codecs(path: str, key: str, metadata: bytes) -> None:
    """Check the codecs that a node's metadata name, before zarr makes any of them.

    path, key : str     of the store, and of the metadata in it, for the message
    Raises: FormatError for one that is not in `CODECS`; MemoryLimitError for metadata whose values
        take too much.

    >>> check_codecs("a.zarr", ".zarray", b'{"compressor": {"id": "zlib"}, "filters": null}')
    >>> check_codecs("a.zarr", "0/.zarray", b'{"filters": [{"id": "pickle"}]}')
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.FormatError: cannot read a.zarr: 0/.zarray names the codec 'pickle'; ...
    """
    check_tree(metadata, JSON_BYTES, path)
    try:
        node = json.loads(metadata)
    except (ValueError, RecursionError):
        return  # zarr reports it
    for name in _named(node):
        if name.removeprefix(PREFIX) not in CODECS:
            raise FormatError(
                f"cannot read {path}: {key} names the codec {name!r}; those that are read are "
                f"{', '.join(sorted(CODECS))}: write the store again with one of them"
            )


def _named(node: Any) -> Iterator[str]:
    """Names of all codecs in the metadata of an array, those inside of shards, too."""
    if not isinstance(node, Mapping):
        return
    # format 2
    filters = node.get("filters")
    for codec in (node.get("compressor"), *(filters if isinstance(filters, list) else ())):
        if isinstance(codec, Mapping):
            yield str(codec.get("id"))
    # format 3
    for part in ("codecs", "index_codecs"):
        codecs = node.get(part)
        for codec in codecs if isinstance(codecs, list) else ():
            if isinstance(codec, Mapping):
                yield str(codec.get("name"))
                yield from _named(codec.get("configuration"))
            else:
                yield str(codec)


def plain_codec(stored: Mapping[str, Any]) -> Any:
    """numcodecs' codec of one that format 3 describes; both pack to the same bytes.

    stored : mapping    "name" and "configuration"
    """
    import numcodecs

    settings = dict(stored.get("configuration") or {})
    name = stored["name"].removeprefix(PREFIX)
    if name == stored["name"] == "blosc":
        settings["shuffle"] = SHUFFLES.index(settings["shuffle"])
        # older ones take the size of the array's items, which are bytes then
        if "typesize" not in signature(numcodecs.Blosc).parameters:
            settings.pop("typesize", None)
    return numcodecs.get_codec({"id": name, **settings})


INDEX_ENTRY_BYTES = 16  # of a chunk in the index of its shard
# Memory for each chunk of a shard: of its entry while it is read, verified and looked into, and of
# what is listed until the shard is written.
READ_ENTRY_BYTES = 3 * INDEX_ENTRY_BYTES
WRITTEN_ENTRY_BYTES = 1000


def most_in_an_index(array: Any) -> int:
    """The number of chunks in the largest index of a shard of an opened array; 0 without shards."""
    from zarr.codecs import ShardingCodec

    found, voxels = 0, math.prod(array.shards or array.chunks)
    waiting = [(codec, voxels) for codec in array.async_array.codec_pipeline]
    while waiting:
        codec, voxels = waiting.pop()
        if isinstance(codec, ShardingCodec):
            part = math.prod(codec.chunk_shape)
            found = max(found, voxels // max(1, part))
            waiting += [(inner, part) for inner in codec.codecs]
    return found


def bound_codecs(array: Any) -> int:
    """Make an opened array unpack within bounds; its metadata stay as they are.

    array : zarr Array      changed
    Returns the most bytes that a stored chunk or shard can have.
    Raises: ValueError for a codec that converts to or from what is no number.
    """
    opened = array.async_array
    pipeline = opened.codec_pipeline
    voxels = math.prod(array.shards or array.chunks)
    codecs, most = _bounded(tuple(pipeline), voxels, voxels * array.dtype.itemsize)
    object.__setattr__(opened, "codec_pipeline", type(pipeline).from_codecs(codecs))
    return most


def _bounded(codecs: Sequence[Any], voxels: int, size: int) -> tuple[list[Any], int]:
    """zarr's codecs, bounded, and the most bytes that voxels of this size take when encoded."""
    from zarr.codecs import ShardingCodec
    from zarr.codecs._v2 import V2Codec

    found: list[Any] = []
    for codec in codecs:
        if isinstance(codec, V2Codec):
            inner: list[Any] = []
            for one in (*(codec.filters or ()), *([codec.compressor] if codec.compressor else ())):
                inner.append(_Bounded(one, size))
                size = CODECS[one.codec_id].packed(size, one)
            last = inner.pop() if codec.compressor else None
            found.append(V2Codec(filters=tuple(inner) or None, compressor=last))
        elif isinstance(codec, ShardingCodec):
            part = math.prod(codec.chunk_shape)
            inside, most = _bounded(codec.codecs, part, -(-size * part // max(1, voxels)))
            # 16 bytes of the index for each part; a shard may have gaps
            size = 2 * max(1, voxels // max(1, part)) * (most + 16) + 1024
            found.append(replace(codec, codecs=tuple(inside)))
        else:
            stored = codec.to_dict()
            known = CODECS[stored["name"].removeprefix(PREFIX)]
            plain = None
            if known.unpack is not None or known.packed is _converted:
                plain = plain_codec(stored)
            bounded = codec
            if known.unpack is not None:
                bounded = _format_3_class()(codec, _Bounded(plain, size))
            found.append(bounded)
            size = known.packed(size, plain)
    return found, size


class _Bounded:
    """One of numcodecs' codecs that decodes to at most `most` bytes, and does not encode."""

    def __init__(self, codec: Any, most: int) -> None:
        self._codec, self._most = codec, most
        self.codec_id = codec.codec_id

    def decode(self, data: Any, out: Any = None) -> Any:
        unpack = CODECS[self.codec_id].unpack
        if unpack is None:
            return self._codec.decode(data)
        return unpack(data, self._most, self._codec, None)


@lru_cache(maxsize=1)
def _format_3_class() -> Any:
    from zarr.abc.codec import BytesBytesCodec
    from zarr.core.buffer.cpu import as_numpy_array_wrapper

    @dataclass(frozen=True)
    class BoundedCodec(BytesBytesCodec):
        """A codec of format 3 that decodes by a `_Bounded`, and does not encode."""

        codec: Any
        bounded: _Bounded
        is_fixed_size = False

        def evolve_from_array_spec(self, array_spec: Any) -> Any:
            return self  # zarr's codec has been evolved

        def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            return as_numpy_array_wrapper(self.bounded.decode, chunk_bytes, chunk_spec.prototype)

        async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

        def compute_encoded_size(self, size: int, chunk_spec: Any) -> int:
            return int(self.codec.compute_encoded_size(size, chunk_spec))

        def to_dict(self) -> Any:
            return self.codec.to_dict()

    return BoundedCodec
