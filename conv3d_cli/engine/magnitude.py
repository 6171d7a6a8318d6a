"""Vectors of sums, as a bank of derivatives gives them, made one number each: their length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import load, machine_code
from conv3d_cli.engine.step import Output, Progress, Source, StepRecord
from conv3d_cli.engine.team import Team

Array = NDArray[Any]


class VectorRoom:
    """Memory for slabs of sums, used again by the next: fresh pages cost more than the sums."""

    def __init__(self) -> None:
        self._flat = np.empty(0)

    def array(self, size: tuple[int, int, int], filters: int, dtype: np.dtype[Any]) -> Array:
        """An array (d, h, w, filters) to be filled, as `magnitudes` takes it quickest: a plane's filters one after another."""
        depth, height, width = size
        count = math.prod((*size, filters))
        if self._flat.size < count or self._flat.dtype != dtype:
            self._flat = np.empty(count, dtype)
        return self._flat[:count].reshape(depth, filters, height, width).transpose(0, 2, 3, 1)


def magnitudes(sums: Array, count: int, team: Team) -> Array:
    """The root of the sum of squares of every `count` filters: (d, h, w, c·count) of floats -> (d, h, w, c).

    Squares are added in float64 in the order of the filters, and rounded once: no slope is too large or too small for its square.

    >>> with Team(1) as team:
    ...     magnitudes(np.array([[[[3, 4, 6e30, 8e30]]]], np.float32), 2, team)
    array([[[[5.e+00, 1.e+31]]]], dtype=float32)
    """
    planes = np.ascontiguousarray(sums.transpose(0, 3, 1, 2))
    depth, filters, height, width = planes.shape
    channels = filters // count
    result = np.empty((depth, channels, height, width), planes.dtype)
    code = machine_code("magnitude", "magnitude", count, planes.dtype.name)
    load([code])

    def plane(_: int, d: int) -> None:
        for c in range(channels):
            code(
                StepRecord(
                    Source(planes[d, c * count]),
                    Output(result[d, c]),
                    Progress(width=height * width),
                )
            )

    team.run(depth, plane)
    return result.transpose(0, 2, 3, 1)
