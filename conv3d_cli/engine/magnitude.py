"""The magnitude of vectors of filter outputs, such as gradients from a bank of derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.step import Output, Progress, Source, StepRecord
from conv3d_cli.engine.team import Team

Array = NDArray[Any]


class VectorRoom:
    """Memory for the sums of a slab, reused by the next: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self._flat = np.empty(0)

    def array(self, size: tuple[int, int, int], filters: int, dtype: np.dtype[Any]) -> Array:
        """An uninitialised array (d, h, w, filters), which the next call may reuse.

        Its memory order is (d, filters, h, w), which `magnitudes` reads fastest.
        """
        depth, height, width = size
        count = math.prod((*size, filters))
        if self._flat.size < count or self._flat.dtype != dtype:
            self._flat = np.empty(count, dtype)
        return self._flat[:count].reshape(depth, filters, height, width).transpose(0, 2, 3, 1)


def magnitude_code(count: int, real: np.dtype[Any]) -> MachineCode:
    """The loop of `magnitudes` for vectors of `count` numbers of this dtype."""
    return machine_code("magnitude", "magnitude", count, real.name)


def magnitudes(sums: Array, count: int, team: Team) -> Array:
    """The Euclidean norm of every `count` consecutive filters, per voxel.

    sums : (d, h, w, c * count)     float32 or float64
    Returns (d, h, w, c) of the same dtype. Squares are added in float64 in the order of the
    filters, so no float32 value overflows or vanishes when squared, and the root is rounded once.

    >>> with Team(1) as team:
    ...     magnitudes(np.array([[[[3, 4, 6e30, 8e30]]]], np.float32), 2, team)
    array([[[[5.e+00, 1.e+31]]]], dtype=float32)
    """
    planes = np.ascontiguousarray(sums.transpose(0, 3, 1, 2))
    depth, filters, height, width = planes.shape
    channels = filters // count
    result = np.empty((depth, channels, height, width), planes.dtype)
    code = magnitude_code(count, planes.dtype)
    load([code])

    def plane(_: int, d: int) -> None:
        for c in range(channels):
            source, out = Source(planes[d, c * count]), Output(result[d, c])
            code(StepRecord(source, out, Progress(width=height * width)))

    team.run(depth, plane)
    return result.transpose(0, 2, 3, 1)
