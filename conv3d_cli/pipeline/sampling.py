"""Blocks of a volume, spread over it, for what is found out before the job begins.

Which blocks these are depends on the volume's shape alone, and a pass over the file ends with the
last of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, VolumeReader
from conv3d_cli.system.room import READING_BYTES, ceiling_of_memory, require_room, room_left

MOST_BLOCKS = 16
BLOCK_VOXELS = 1 << 19
GOLDEN = (math.sqrt(5) - 1) / 2


def block_size(size: Triple, reach: Sequence[int]) -> Triple:
    """The size of blocks of a volume, which is whole if it has at most `BLOCK_VOXELS`.

    reach : (D, H, W)       lengths to which those of a block are in proportion

    >>> block_size((20, 30, 40), (3, 3, 3)), block_size((100, 2000, 2000), (30, 15, 15))
    ((20, 30, 40), (100, 63, 63))
    """
    found = list(size)
    while math.prod(found) > BLOCK_VOXELS:
        axis = max(range(3), key=lambda a: found[a] / reach[a])
        found[axis] = -(-found[axis] // 2)
    return found[0], found[1], found[2]


def sampled_blocks(reader: VolumeReader, size: Triple, bytes_each: int) -> Iterator[Array]:
    """Blocks (d, h, w) of stored voxels, of one channel and time point each, in any order.

    There are at most `MOST_BLOCKS`; all that cover the volume if they are no more.

    size : (d, h, w)    of every block, at most that of the volume
    bytes_each : int    of memory that the caller takes for a voxel of a block
    Raises: MemoryLimitError; FormatError for a file that cannot be read.

    >>> from conv3d_cli.model.volume import ArrayReader, Axes, VolumeHeader
    >>> axes = Axes("zyx", (4, 5, 6))
    >>> volume = ArrayReader(np.zeros(axes.shape), VolumeHeader(axes, np.dtype(float)))
    >>> [block.shape for block in sampled_blocks(volume, (3, 5, 6), 8)]
    [(3, 5, 6), (3, 5, 6)]
    """
    header = reader.header
    count, *lengths, channels = header.shape
    starts = [
        [round(n) for n in np.linspace(0, whole - own, -(-whole // own))]
        for whole, own in zip(lengths, size, strict=True)
    ]
    every = list(itertools.product(range(count), range(channels), *starts))
    wanted = [every[n] for n in _spread(len(every))]
    voxels = math.prod(size)
    own = voxels * (len(wanted) * header.dtype.itemsize + bytes_each)
    require_room(own, "a part of it, in which noise is looked for,", reader.path)
    begun: dict[tuple[int, ...], Array] = {}
    left = dict.fromkeys(wanted, voxels)
    with ceiling_of_memory(room_left() - own + READING_BYTES):
        for block in blocks_of([reader], 0, together=reader.channels_together):
            (stored,) = block.stored
            for at in list(left):
                n, channel, *first = at
                if n != block.n or not 0 <= channel - block.channel < stored.shape[3]:
                    continue
                inner, outer = [], []
                for begin, length, start, held in zip(
                    first, size, block.starts, stored.shape, strict=False
                ):
                    low, high = max(begin, start), min(begin + length, start + held)
                    inner.append(slice(low - begin, high - begin))
                    outer.append(slice(low - start, high - start))
                if any(part.stop <= part.start for part in inner):
                    continue
                target = begun.setdefault(at, np.empty(size, header.dtype))
                taken = stored[(*outer, channel - block.channel)]
                target[tuple(inner)] = taken
                left[at] -= taken.size
                if not left[at]:
                    del left[at]
                    yield begun.pop(at)
            if not left:
                return


def _spread(count: int) -> list[int]:
    """Up to `MOST_BLOCKS` of so many positions, far from one another along every axis.

    >>> _spread(3), len(set(_spread(64))) == MOST_BLOCKS
    ([0, 1, 2], True)
    """
    if count <= MOST_BLOCKS:
        return list(range(count))
    step = round(count * GOLDEN)
    while math.gcd(step, count) > 1:
        step += 1
    return [n * step % count for n in range(MOST_BLOCKS)]
