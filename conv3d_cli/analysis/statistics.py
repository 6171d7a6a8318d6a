"""The range, mean and spread of a volume's values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from conv3d_cli.analysis.compare import values_of
from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.model.volume import VolumeReader

BYTES_EACH = 64  # of memory for a voxel meanwhile


@dataclass
class Statistics:
    """Values of a volume, with its scale applied; NaN and infinity are only counted.

    voxels, nonfinite : int     all voxels, and those that are NaN or infinite
    low, high : float           smallest and largest value; NaN if there is none
    mean, deviation : float     mean and standard deviation; NaN if there is no value
    """

    voxels: int = 0
    nonfinite: int = 0
    low: float = math.nan
    high: float = math.nan
    mean: float = math.nan
    deviation: float = math.nan


def value_statistics(volume: VolumeReader) -> Statistics:
    """Read a volume once, in float64, plane by plane.

    Raises: FormatError if it is truncated or damaged.
    """
    found, count, mean, squares = Statistics(), 0, 0.0, 0.0
    for block in blocks_of([volume], BYTES_EACH):
        values = values_of(block.stored[0], volume.header).astype(np.float64)
        finite = values[np.isfinite(values)]
        found.voxels += values.size
        found.nonfinite += values.size - finite.size
        if finite.size:
            found.low = float(np.fmin(found.low, finite.min()))
            found.high = float(np.fmax(found.high, finite.max()))
            # means of parts are joined, since a sum of squares would lose digits
            own = float(finite.mean())
            apart, together = own - mean, count + finite.size
            squares += float(((finite - own) ** 2).sum())
            squares += apart * apart * count * finite.size / together
            mean += apart * finite.size / together
            count = together
    volume.finish()
    if count:
        found.mean, found.deviation = mean, math.sqrt(squares / count)
    return found
