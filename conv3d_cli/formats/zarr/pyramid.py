"""Resolution levels of an image: which axes each level halves, and how it is filled.

A level is computed box by box from the next finer one, by a method of `downsampling.py`. Arrays are
only indexed: this module does not import zarr.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from conv3d_cli.formats.zarr.downsampling import Downsampling
from conv3d_cli.model.volume import SPATIAL, Array

LEAST_SIZE = 16  # voxels; shorter axes are not halved
WORKERS = 4  # threads, each with a box
# Bytes of the finer level that a box reads at once where its method needs voxels beyond the box, so
# that few chunks are decoded for two boxes. One tile may have more.
MOST_READ = 16 << 20
CACHED = 1 << 18  # voxels of the finer level that are reduced at once, so that caches hold them


def level_factors(
    letters: str, shape: Sequence[int], spacing: Sequence[float] | None, levels: int
) -> list[dict[str, int]]:
    """For each level: axis letter -> number of voxels of the finest level that one voxel covers.

    Returns fewer levels if no axis is long enough to be halved.

    letters, shape                  axes and sizes of the finest level
    spacing : (D, H, W) or None     an axis with larger spacing is halved only when the others have
                                    reached it
    levels : int                    number of levels, including the finest
    >>> level_factors("zyx", (64, 256, 256), (3.0, 1.0, 1.0), 3)
    [{}, {'y': 2, 'x': 2}, {'z': 2, 'y': 4, 'x': 4}]
    """
    steps = dict(
        zip(
            SPATIAL,
            spacing if spacing is not None and all(spacing) else (1.0, 1.0, 1.0),
            strict=True,
        )
    )
    sizes = {a: n for a, n in zip(letters, shape, strict=True) if a in SPATIAL}
    factors: list[dict[str, int]] = [{}]
    while len(factors) < levels:
        long_enough = [a for a in sizes if sizes[a] >= LEAST_SIZE]
        if not long_enough:
            break
        finest = min(steps[a] for a in long_enough)
        halved = [a for a in long_enough if steps[a] < 2 * finest]
        before = factors[-1]
        factors.append(
            {
                a: before.get(a, 1) * (2 if a in halved else 1)
                for a in sizes
                if a in before or a in halved
            }
        )
        for a in halved:
            sizes[a] //= 2
            steps[a] *= 2
    return factors


def level_shape(letters: str, shape: Sequence[int], factors: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a level.

    letters, shape          axes and sizes of the finest level
    factors : dict          of the level, from `level_factors`
    >>> level_shape("zyx", (65, 256, 256), {"z": 2, "y": 4, "x": 4})
    (32, 64, 64)
    """
    return tuple(n // factors.get(a, 1) for a, n in zip(letters, shape, strict=True))


def fill_level(
    below: Any,
    level: Any,
    halved: Sequence[int],
    tile: Sequence[int],
    method: Downsampling,
    stop: threading.Event,
) -> None:
    """Fill the array of a level from the next finer one, box by box.

    below, level : arrays       zarr's or NumPy's; the finer level and the one to fill
    halved : ints               axes along which `level` is half as long
    tile : ints                 size of a tile of `level` along each axis: its chunk or shard
    method : Downsampling
    stop : Event                when set, no further box is begun
    """
    box = _box(tile, level.shape, halved, method, level.dtype.itemsize)

    def fill(place: tuple[slice, ...]) -> None:
        if stop.is_set():
            return
        shape = [s.stop - s.start for s in place]
        values = np.empty(shape, level.dtype)
        for piece in tiles(shape, _piece(tile, shape, halved, method)):
            wanted = [
                slice(s.start + p.start, s.start + p.stop)
                for s, p in zip(place, piece, strict=True)
            ]
            source = _cells(below, wanted, halved, method.halo)
            _reduce(source, values[piece], halved, method)
        level[place] = values

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="conv3d-levels") as pool:
        try:
            for done in pool.map(fill, tiles(level.shape, box)):
                assert done is None
        except BaseException:
            stop.set()
            raise


def _box(
    tile: Sequence[int],
    shape: Sequence[int],
    halved: Sequence[int],
    method: Downsampling,
    itemsize: int,
) -> list[int]:
    """The size of the boxes of a level: a tile, or several where a method reads beyond them."""
    box = list(tile)
    if not method.halo:
        return box
    most = MOST_READ // (itemsize * 2 ** len(halved))
    for axis in sorted(halved, reverse=True):
        while box[axis] < shape[axis] and 2 * math.prod(box) <= most:
            box[axis] *= 2
    return box


def _piece(
    tile: Sequence[int], shape: Sequence[int], halved: Sequence[int], method: Downsampling
) -> list[int]:
    """The size of the pieces of a box that are read from the finer level at once.

    A piece has as many voxels there as a tile has here, so that it is one tile of it if tiles are
    even; the whole box where a method reads beyond it.
    """
    if method.halo:
        return list(shape)
    return [-(-t // 2) if i in halved else t for i, t in enumerate(tile)]


def _cells(below: Any, wanted: Sequence[slice], halved: Sequence[int], halo: int) -> Array:
    """The voxels of the finer level that some voxels of a level are made of.

    wanted : slices         the voxels of the level
    halo : int              voxels to add on each side along `halved`; beyond the edge of the array
                            they are its mirror image, in which the last voxel comes twice
    """
    parts, beyond = [], []
    for axis, (voxels, size) in enumerate(zip(wanted, below.shape, strict=True)):
        if axis not in halved:
            parts.append(voxels)
            beyond.append((0, 0))
            continue
        low, high = 2 * voxels.start - halo, 2 * voxels.stop + halo
        parts.append(slice(max(low, 0), min(high, size)))
        beyond.append((max(-low, 0), max(high - size, 0)))
    block = np.asarray(below[tuple(parts)])
    return np.pad(block, beyond, "symmetric") if np.any(beyond) else block


def _reduce(source: Array, out: Array, halved: Sequence[int], method: Downsampling) -> None:
    """Fill voxels of a level, a few planes at a time.

    source : array      of `_cells`
    """
    axis = min(halved)
    step = max(1, CACHED * out.shape[axis] // max(1, source.size))
    for first in range(0, out.shape[axis], step):
        last = min(first + step, out.shape[axis])
        part = _along(axis, slice(2 * first, 2 * last + 2 * method.halo), source.ndim)
        out[_along(axis, slice(first, last), out.ndim)] = method.reduce(source[part], halved)


def _along(axis: int, part: slice, dimensions: int) -> tuple[slice, ...]:
    """The index of a part of one axis, and of all of the others."""
    return tuple(part if i == axis else slice(None) for i in range(dimensions))


def tiles(shape: Sequence[int], tile: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """All tiles of an array, in storage order.

    >>> [tuple((s.start, s.stop) for s in tile) for tile in tiles((2, 3), (2, 2))]
    [((0, 2), (0, 2)), ((0, 2), (2, 3))]
    """
    for index in np.ndindex(*(-(-n // t) for n, t in zip(shape, tile, strict=True))):
        yield tuple(
            slice(i * t, min((i + 1) * t, n)) for i, t, n in zip(index, tile, shape, strict=True)
        )


def level_bytes(
    letters: str,
    shape: Sequence[int],
    spacing: Sequence[float] | None,
    tile: Sequence[int],
    method: Downsampling,
    itemsize: int,
) -> int:
    """Memory that `fill_level` takes for the first level below the finest; 0 if there is none.

    For each worker: a box and its encoded bytes, a piece with the tiles that it is read from, and
    what is reduced at once.

    letters, shape, spacing     as of `level_factors`
    tile, method                as of `fill_level`
    """
    *_, factors = level_factors(letters, shape, spacing, 2)
    halved = [i for i, a in enumerate(letters) if factors.get(a, 1) > 1]
    if not halved:
        return 0
    reduced = 3 * CACHED * 8
    if method.halo:
        box = _box(tile, level_shape(letters, shape, factors), halved, method, itemsize)
        read = math.prod(n + 2 * method.halo if i in halved else n for i, n in enumerate(box))
        read *= 2 ** len(halved)
        return int(WORKERS * ((2 * math.prod(box) + 2 * read) * itemsize + reduced))
    # a piece of an odd tile may overlap 8
    tiles_read = 1 if all(t % 2 == 0 or t == 1 for t in tile) else 8
    return WORKERS * (math.prod(tile) * itemsize * (4 + 2 * tiles_read) + reduced)
