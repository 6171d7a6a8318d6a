"""Arrays as the compiled loops access them: flat memory and tables of offsets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTSIDE = -1  # as an index: outside the volume, where the boundary's constant stands
OUTSIDE_OFFSET = np.iinfo(np.int64).min  # the same in a table of offsets, where -1 can be an offset


class FlatView(NamedTuple):
    """An array of any strides as one flat block of memory: loops are compiled once per dtype.

    flat : 1-D array        from the array's lowest address to its highest; never read-only
    start : int             index in `flat` of the array's element (0, 0, ...)
    strides : tuple         in elements
    """

    flat: NDArray[Any]
    start: int
    strides: tuple[int, ...]


class _Memory:
    """A block of memory at an address, as an array interface; it keeps its owner alive."""

    def __init__(self, address: int, count: int, dtype: np.dtype[Any], owner: object) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": dtype.str,
            "version": 3,
        }
        self.owner = owner


def flat_view(array: NDArray[Any]) -> FlatView:
    """The `FlatView` of an array for which `is_flattenable` holds.

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
    """Whether `flat_view` accepts it: native, aligned, not empty, strides of whole elements."""
    flags = array.flags
    return (
        array.dtype.isnative
        and flags.aligned
        and array.size > 0
        and (flags.forc or all(stride % array.itemsize == 0 for stride in array.strides))
    )


def offset_table(indices: list[int], stride: int) -> NDArray[np.int64]:
    """Source indices as offsets in elements from index 0; OUTSIDE becomes OUTSIDE_OFFSET.

    >>> offset_table([0, 1, 3], 5)
    array([ 0,  5, 15])
    """
    table = np.array(indices, dtype=np.int64)
    return np.where(table == OUTSIDE, OUTSIDE_OFFSET, table * stride)


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A 1-D array of zeros that begins at a page, and so at a cache line.

    A vector that straddles two cache lines takes twice the loads.
    """
    raw = np.zeros(count * dtype.itemsize + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + count * dtype.itemsize].view(dtype)


def inner_run(indices: list[int]) -> tuple[int, int]:
    """The longest run of positions with consecutive source indices: (start, stop).

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


def stored_bits(dtype: str, real: str) -> int | None:
    """How loops name the dtype of numbers that they read as `real`: 0 if it is the same, else the
    bits of an integer, negative if it is signed. None: they do not read it.

    >>> stored_bits("float32", "float32"), stored_bits("int16", "float32")
    (0, -16)
    """
    kind = np.dtype(dtype)
    if dtype == real:
        return 0
    if kind.kind not in "iu" or kind.itemsize > 4:
        return None
    return kind.itemsize * (-8 if kind.kind == "i" else 8)
