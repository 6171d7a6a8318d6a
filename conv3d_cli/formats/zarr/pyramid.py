"""Resolution levels of an image: which axes each level halves, and the means that fill it.

A voxel of a level is the mean of 2 voxels along each halved axis. The last voxel of an odd axis is
in no mean, so that all voxels of a level cover the same number of voxels of the finest level. A
level is computed tile by tile from the next finer one. Arrays are only indexed: this module does
not import zarr.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from conv3d_cli.model.volume import SPATIAL, Array

LEAST_SIZE = 16  # voxels; shorter axes are not halved
WORKERS = 4  # threads, each with a tile


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


def halve(block: Array, axes: Sequence[int]) -> Array:
    """Means of pairs of voxels along some axes, in the dtype of `block`.

    Means of integers are rounded half to even.

    axes : ints     axes of `block` to halve; their sizes are even
    >>> halve(np.array([[1, 3], [5, 8]], np.uint8), (0, 1)).tolist()
    [[4]]
    """
    sums: Array = block
    for axis in axes:
        even, odd = (
            tuple(slice(start, None, 2) if i == axis else slice(None) for i in range(block.ndim))
            for start in (0, 1)
        )
        with np.errstate(invalid="ignore"):  # inf + -inf
            sums = np.add(sums[even], sums[odd], dtype=np.float64)
    means = sums / 2.0 ** len(axes)
    if block.dtype.kind in "iub":
        np.rint(means, out=means)
    if block.dtype.kind in "iu" and block.dtype.itemsize == 8:
        # float64 cannot hold the largest integers of 64 bits: it rounds 2^63 - 1 up to 2^63
        limits = np.iinfo(block.dtype)
        whole = means.clip(limits.min, np.nextafter(float(limits.max), 0)).astype(block.dtype)
        return np.where(means >= float(limits.max), block.dtype.type(limits.max), whole)
    with np.errstate(over="ignore"):
        return means.astype(block.dtype)


def fill_level(
    below: Any, level: Any, halved: Sequence[int], tile: Sequence[int], stop: threading.Event
) -> None:
    """Fill the array of a level with the means of the next finer one, tile by tile.

    below, level : arrays       zarr's or NumPy's; the finer level and the one to fill
    halved : ints               axes along which `level` is half as long
    tile : ints                 size of a tile of `level` along each axis: its chunk or shard
    stop : Event                when set, no further tile is begun
    """
    factors = [2 if i in halved else 1 for i in range(len(tile))]

    def fill(place: tuple[slice, ...]) -> None:
        if stop.is_set():
            return
        values = np.empty([s.stop - s.start for s in place], level.dtype)
        # Each piece reads as many voxels as a tile has; if tiles are even, one tile of `below`.
        pieces = [-(-t // 2) if i in halved else t for i, t in enumerate(tile)]
        for piece in tiles(values.shape, pieces):
            source = tuple(
                slice((s.start + p.start) * factor, (s.start + p.stop) * factor)
                for s, p, factor in zip(place, piece, factors, strict=True)
            )
            values[piece] = halve(np.asarray(below[source]), halved)
        level[place] = values

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="conv3d-levels") as pool:
        try:
            for done in pool.map(fill, tiles(level.shape, tile)):
                assert done is None
        except BaseException:
            stop.set()
            raise


def tiles(shape: Sequence[int], tile: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """All tiles of an array, in storage order.

    >>> [tuple((s.start, s.stop) for s in tile) for tile in tiles((2, 3), (2, 2))]
    [((0, 2), (0, 2)), ((0, 2), (2, 3))]
    """
    for index in np.ndindex(*(-(-n // t) for n, t in zip(shape, tile, strict=True))):
        yield tuple(
            slice(i * t, min((i + 1) * t, n)) for i, t, n in zip(index, tile, shape, strict=True)
        )


def level_bytes(tile: Sequence[int], itemsize: int) -> int:
    """Memory that `fill_level` takes.

    For each worker: a tile and its encoded bytes, and a piece with the tiles that it is read from
    and its sums in float64.
    """
    # a piece of an odd tile may overlap 8
    tiles_read = 1 if all(t % 2 == 0 or t == 1 for t in tile) else 8
    return WORKERS * math.prod(tile) * (4 * itemsize + 2 * itemsize * tiles_read + 8)
