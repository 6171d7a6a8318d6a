"""One pass over all voxels of a volume, or of several side by side, in blocks that fit into memory.

For whatever reads whole volumes outside of a job, which has its own plan (`pipeline/memory.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, VolumeReader, parts_in_storage_order
from conv3d_cli.system.room import require_room, room_left

MOST_PLANES = 8  # read at once, which `pipeline/held.py` counts on
ENOUGH_BYTES = 128 << 20  # more at once is no faster
WORK_BYTES = 32 << 20  # of what is computed from a block
COPIES = 2  # of what is read, while it is put together


class Block(NamedTuple):
    """A part of one volume of a series.

    starts : (D, H, W) of its first voxel
    channel : the first one
    stored : its stored voxels (d, h, w, c), of each reader
    """

    n: int
    starts: Triple
    channel: int
    stored: tuple[Array, ...]


def blocks_of(
    readers: Sequence[VolumeReader], bytes_each: int, rows: int = 0, together: bool = False
) -> Iterator[Block]:
    """The blocks of volumes of the same shape, in the order in which the first one is stored.

    Whole planes are read, or boxes where a plane does not fit; blocks are parts of them. Planes are
    released as the pass moves on.

    bytes_each : int    that is computed from a voxel while its block is worked on
    rows : int          of which multiples are in every block but the last of a plane, as wide as
                        the volume; 0: blocks are cut anywhere
    together : bool     blocks have all channels, of which several are stored in one piece
    Raises: MemoryLimitError if not even a plane fits, and a reader gives nothing smaller.

    >>> import numpy as np
    >>> from conv3d_cli.model.volume import ArrayReader, Axes, VolumeHeader
    >>> axes = Axes("tzyx", (2, 9, 4, 5))
    >>> volume = ArrayReader(np.zeros(axes.shape), VolumeHeader(axes, np.dtype(float)))
    >>> [(block.n, block.starts, len(block.stored[0])) for block in blocks_of([volume], 8)]
    [(0, (0, 0, 0), 8), (0, (8, 0, 0), 1), (1, (0, 0, 0), 8), (1, (8, 0, 0), 1)]
    """
    _, *sizes, _ = readers[0].header.shape
    whole = (slice(0, sizes[1]), slice(0, sizes[2]))
    least = (1, rows, sizes[2]) if rows else (1, 1, 1)
    for n, channels in parts_in_storage_order(readers[0].header.axes, together):
        count = channels.stop - channels.start
        voxels = WORK_BYTES // max(1, count * bytes_each)
        for box in _boxes(sizes, _read_at_once(readers, count, least)):
            for reader in readers:
                reader.release(n, box[0].start)
            stored = tuple(
                reader.read(n, box[0], channels)
                if box[1:] == whole
                else reader.read_box(n, *box, channels)
                for reader in readers
            )
            inner = [part.stop - part.start for part in box]
            for part in _boxes(inner, _lengths(inner, voxels, least)):
                d, h, w = (first.start + p.start for first, p in zip(box, part, strict=True))
                yield Block(n, (d, h, w), channels.start, tuple(array[part] for array in stored))


def _boxes(sizes: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[slice, slice, slice]]:
    """Boxes of at most so many voxels along each axis, that cover a volume."""
    d, h, w = (
        [slice(first, min(first + length, size)) for first in range(0, size, length)]
        for size, length in zip(sizes, lengths, strict=True)
    )
    return itertools.product(d, h, w)


def _lengths(sizes: Sequence[int], voxels: int, units: Sequence[int] = (1, 1, 1)) -> list[int]:
    """The longest box of at most so many voxels, the last axes first, in whole units.

    Of one unit at least.

    >>> _lengths((9, 10, 20), 1000), _lengths((9, 10, 20), 75), _lengths((9, 10, 20), 75, (4, 4, 4))
    ([5, 10, 20], [1, 3, 20], [4, 4, 4])
    """
    found = [max(1, min(unit, size)) for unit, size in zip(units, sizes, strict=True)]
    for axis in (2, 1, 0):
        others = found[0] * found[1] * found[2] // found[axis]
        most = min(sizes[axis], voxels // others)
        if most < sizes[axis]:
            most -= most % found[axis]
        found[axis] = max(found[axis], most)
    return found


def _read_at_once(readers: Sequence[VolumeReader], channels: int, least: Triple) -> list[int]:
    """Planes, rows and columns of what is read at once: multiples of `least`, or up to the end."""
    _, *sizes, _ = readers[0].header.shape
    depth, height, width = (max(1, size) for size in sizes)
    each = COPIES * channels * sum(reader.header.dtype.itemsize for reader in readers)
    room = room_left() - WORK_BYTES

    def needed(planes: int) -> int:
        buffers = sum(reader.buffer_bytes(planes, channels) for reader in readers)
        return planes * height * width * each + buffers

    planes = min(MOST_PLANES, depth)
    while planes > 1 and needed(planes) > min(room, ENOUGH_BYTES):
        planes //= 2
    if needed(planes) <= min(room, ENOUGH_BYTES):
        return [planes, height, width]
    accesses = [access for reader in readers if (access := reader.box_access())]
    if len(accesses) < len(readers):
        require_room(needed(1) + WORK_BYTES, "a plane of it", readers[0].path)
        return [1, height, width]
    units = [
        min(size, -(-max(a.unit[i] for a in accesses) // least[i]) * least[i])
        for i, size in enumerate(sizes)
    ]
    room -= sum(access.buffer_bytes for access in accesses)
    voxels = min(room, ENOUGH_BYTES) // max(1, each)
    if math.prod(units) * each <= room:  # so that no chunk is decoded twice
        return _lengths(sizes, voxels, units)
    smallest = math.prod(min(n, size) for n, size in zip(least, sizes, strict=True))
    require_room(room_left() - room + max(1, smallest * each), "a chunk of it", readers[0].path)
    return _lengths(sizes, voxels, least)
