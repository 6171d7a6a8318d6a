"""Levels of an image: which axes of each are halved, and the means that fill them, tile by tile from the level below.

A level's voxel is the mean of 2 voxels along each axis that is halved; an odd one at the end of an axis is in no mean, so
that every voxel of a level stands for as many of the finest. Arrays are seen through indexing alone: nothing here knows zarr.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from conv3d_cli.model.volume import SPATIAL, Array

LEAST_SIZE = 16  # voxels: a shorter axis is not halved any more
WORKERS = 4  # tiles at once


def level_factors(
    letters: str, shape: Sequence[int], spacing: Sequence[float] | None, levels: int
) -> list[dict[str, int]]:
    """How many voxels of the finest level make one voxel of each level, by axis letter; fewer levels if axes get short.

    spacing : (D, H, W) or None     an axis along which voxels are long waits until the others have caught up
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

    >>> level_shape("zyx", (65, 256, 256), {"z": 2, "y": 4, "x": 4})
    (32, 64, 64)
    """
    return tuple(n // factors.get(a, 1) for a, n in zip(letters, shape, strict=True))


def halve(block: Array, axes: Sequence[int]) -> Array:
    """Means of pairs of voxels along some axes, of even sizes; integers are rounded half to even.

    >>> halve(np.array([[1, 3], [5, 8]], np.uint8), (0, 1)).tolist()
    [[4]]
    """
    sums: Array = block
    for axis in axes:
        even, odd = (
            tuple(slice(start, None, 2) if i == axis else slice(None) for i in range(block.ndim))
            for start in (0, 1)
        )
        with np.errstate(invalid="ignore"):  # of two infinities
            sums = np.add(sums[even], sums[odd], dtype=np.float64)
    means = sums / 2.0 ** len(axes)
    if block.dtype.kind in "iub":
        np.rint(means, out=means)
    if block.dtype.kind in "iu" and block.dtype.itemsize == 8:
        # the largest integers of 64 bits are no float64: 2^63 is one too many
        limits = np.iinfo(block.dtype)
        whole = means.clip(limits.min, np.nextafter(float(limits.max), 0)).astype(block.dtype)
        return np.where(means >= float(limits.max), block.dtype.type(limits.max), whole)
    with np.errstate(over="ignore"):
        return means.astype(block.dtype)


def fill_level(
    below: Any, level: Any, halved: Sequence[int], tile: Sequence[int], stop: threading.Event
) -> None:
    """Fill an array with the means of the one below it, one tile after another.

    below, level : arrays       zarr's or NumPy's; `level` is half as long along the axes `halved`
    tile : tuple                voxels of `level` along each axis that are stored together
    stop : Event                when set, no further tile is begun
    """

    def fill(place: tuple[slice, ...]) -> None:
        if stop.is_set():
            return
        values = np.empty([s.stop - s.start for s in place], level.dtype)
        # Piece by piece, each as large as a tile: pieces of even tiles are tiles of the level below, read once.
        pieces = [-(-t // 2) if i in halved else t for i, t in enumerate(tile)]
        for piece in tiles(values.shape, pieces):
            source = tuple(
                slice((s.start + p.start) * 2, (s.start + p.stop) * 2) if i in halved
                else slice(s.start + p.start, s.start + p.stop)
                for i, (s, p) in enumerate(zip(place, piece, strict=True))
            )  # fmt: skip
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
    """All tiles of an array, in storage order."""
    for index in np.ndindex(*(-(-n // t) for n, t in zip(shape, tile, strict=True))):
        yield tuple(
            slice(i * t, min((i + 1) * t, n)) for i, t, n in zip(index, tile, shape, strict=True)
        )


def level_bytes(tile: Sequence[int], itemsize: int) -> int:
    """Memory that `fill_level` takes: for each worker a tile, encoded too, and a piece, decoded too, with its sums in float64."""
    # odd ones: a piece lies across several
    tiles_read = 1 if all(t % 2 == 0 or t == 1 for t in tile) else 8
    return WORKERS * math.prod(tile) * (4 * itemsize + 2 * itemsize * tiles_read + 8)
