"""Packing: the input of a tile, with its halo, in the layout the loops want.

Whatever the source is (dtype, strides, scale, boundary), a packed tile is plain float32 or float64 in one flat scratch
buffer, so the loops behind it have no edge cases. Layout: (channel, depth, height, row), where a row of width positions
is split by stride phase: position p lies at `(p % stride) · pitch + p // stride`. So a tap reads consecutive numbers
for consecutive outputs at any stride.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.jit import compiled

OUTSIDE = -1  # in an offset table: no source voxel, the constant stands there


class FlatView(NamedTuple):
    """An array of any strides as one flat run of memory, so that loops are compiled once for a dtype.

    flat : 1-D array        from the array's lowest address to its highest, writable as far as Numba can tell
    start : int             element of index (0, 0, ...)
    strides : tuple         in elements
    """

    flat: NDArray[Any]
    start: int
    strides: tuple[int, ...]


class _Memory:
    """A stretch of memory by address; it keeps the owner alive."""

    def __init__(self, address: int, count: int, dtype: np.dtype[Any], owner: object) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (count,), "typestr": dtype.str, "version": 3}
        self.owner = owner


def flat_view(array: NDArray[Any]) -> FlatView:
    """See `FlatView`. The array must be aligned, with strides that are multiples of its item size.

    >>> flat_view(np.arange(6)[::-2]).start, flat_view(np.arange(6)[::-2]).strides
    (4, (-2,))
    """
    itemsize = array.itemsize
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    lowest = sum(step for step in steps if step < 0)
    highest = sum(step for step in steps if step > 0)
    address = array.__array_interface__["data"][0]
    memory = _Memory(address + lowest, (highest - lowest) // itemsize + 1, array.dtype, array)
    return FlatView(np.asarray(memory), -lowest // itemsize, tuple(stride // itemsize for stride in array.strides))


def is_flattenable(array: NDArray[Any]) -> bool:
    """Whether `flat_view` takes it: native byte order, aligned, whole strides."""
    return (
        array.dtype.isnative
        and bool(array.flags.aligned)
        and all(stride % array.itemsize == 0 for stride in array.strides)
        and array.size > 0
    )


def offset_table(indices: list[int], stride: int) -> NDArray[np.int64]:
    """Source indices (OUTSIDE where there is none) as offsets in elements from index 0; OUTSIDE stays a sentinel.

    A negative stride makes offsets negative, so the sentinel is the one value no offset can take.
    """
    table = np.array(indices, dtype=np.int64)
    return np.where(table == OUTSIDE, np.iinfo(np.int64).min, table * stride)


def inner_run(indices: list[int]) -> tuple[int, int]:
    """The longest run of positions that simply follow one another in the source: (start, stop).

    >>> inner_run([-1, 0, 1, 2, 2])
    (1, 4)
    """
    best = (0, 0)
    start = 0
    for position in range(1, len(indices) + 1):
        broken = position == len(indices) or indices[position] != indices[position - 1] + 1
        if broken or indices[position - 1] == OUTSIDE:
            if indices[start] != OUTSIDE and position - start > best[1] - best[0]:
                best = (start, position)
            start = position
    return best


@compiled
def _value(raw, scaled, slope, intercept):
    # In float64, as nibabel does, then rounded once by the caller; for an unscaled float32 it is the number itself.
    if scaled:
        return np.float64(raw) * slope + intercept
    return np.float64(raw)


@compiled
def pack_loops(
    source, start, channel_step, channels, planes, rows, columns, run_start, run_stop, column_step,
    fill, scaled, slope, intercept, stride, pitch, scratch_height, scratch_depth, row_length, scratch,
):  # fmt: skip
    # source: flat; planes (pd,), rows (ph,), columns (pw,): offsets in source, int64 minimum = outside;
    # columns[run_start:run_stop] advance by column_step; scratch: flat (channels, scratch_depth, scratch_height, row_length)
    outside = np.iinfo(np.int64).min
    kind = scratch.dtype.type
    width = columns.size
    for c in range(channels):
        for i in range(planes.size):
            for j in range(rows.size):
                to = ((c * scratch_depth + i) * scratch_height + j) * row_length
                if planes[i] == outside or rows[j] == outside:
                    for p in range(row_length):
                        scratch[to + p] = fill
                    continue
                at = start + c * channel_step + planes[i] + rows[j]
                run = run_stop - run_start if stride == 1 else 0
                for phase in range(stride):
                    here = to + phase * pitch
                    p = phase
                    while p < width:
                        if run > 0 and p == run_start:
                            # Slices, since sums of signed indices are tested for negative values, which is slow.
                            target = scratch[to + p : to + p + run]
                            if column_step == 1:
                                values = source[at + columns[p] : at + columns[p] + run]
                                for q in range(run):
                                    target[q] = kind(_value(values[q], scaled, slope, intercept))
                            else:
                                first = np.uint64(at + columns[p])
                                for q in range(np.uint64(run)):
                                    raw = source[first + q * np.uint64(column_step)]
                                    target[q] = kind(_value(raw, scaled, slope, intercept))
                            p += run
                            here += run
                            continue
                        if columns[p] == outside:
                            scratch[here] = fill
                        else:
                            scratch[here] = kind(_value(source[at + columns[p]], scaled, slope, intercept))
                        p += stride
                        here += 1
