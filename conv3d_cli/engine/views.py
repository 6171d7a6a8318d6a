"""Views: arrays as the compiled loops see them, as flat memory and tables of offsets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTSIDE = -1  # as an index: no source voxel, the constant stands there
OUTSIDE_OFFSET = np.iinfo(np.int64).min  # the same in a table of offsets, where -1 may be an offset


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
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": dtype.str,
            "version": 3,
        }
        self.owner = owner


def flat_view(array: NDArray[Any]) -> FlatView:
    """See `FlatView`. The array must be aligned, with strides that are multiples of its item size.

    >>> flat_view(np.arange(6)[::-2]).start, flat_view(np.arange(6)[::-2]).strides
    (4, (-2,))
    """
    itemsize, flags = array.itemsize, array.flags
    if flags.c_contiguous and flags.writeable and array.size:
        return FlatView(
            array.reshape(-1), 0, tuple([stride // itemsize for stride in array.strides])
        )
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    lowest = sum(step for step in steps if step < 0)
    highest = sum(step for step in steps if step > 0)
    address = array.__array_interface__["data"][0]
    memory = _Memory(address + lowest, (highest - lowest) // itemsize + 1, array.dtype, array)
    return FlatView(
        np.asarray(memory),
        -lowest // itemsize,
        tuple(stride // itemsize for stride in array.strides),
    )


def is_flattenable(array: NDArray[Any]) -> bool:
    """Whether `flat_view` takes it: native byte order, aligned, whole strides."""
    flags = array.flags
    return (
        array.dtype.isnative
        and flags.aligned
        and array.size > 0
        and (flags.forc or all(stride % array.itemsize == 0 for stride in array.strides))
    )


def offset_table(indices: list[int], stride: int) -> NDArray[np.int64]:
    """Source indices (OUTSIDE where there is none) as offsets in elements from index 0 (there OUTSIDE_OFFSET)."""
    table = np.array(indices, dtype=np.int64)
    return np.where(table == OUTSIDE, OUTSIDE_OFFSET, table * stride)


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that begin at a page, and so at a cache line: vectors that lie across two take twice the loads."""
    raw = np.zeros(count * dtype.itemsize + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + count * dtype.itemsize].view(dtype)


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
