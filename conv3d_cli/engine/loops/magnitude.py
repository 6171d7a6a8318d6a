"""The length of a vector of sums at every voxel."""

from __future__ import annotations

import math

import numpy as np

from conv3d_cli.engine.loops.simd import memory
from conv3d_cli.engine.step import F


def magnitude(count, real):
    """The root of the sum of `count` squares per voxel, computed in float64.

    Source: (count, voxels). Out: (voxels,).
    """
    kind = np.dtype(real).type

    def loops(step):
        sums, result = memory(step[F.source], kind), memory(step[F.out], kind)
        voxels = step[F.width]
        for k in range(voxels):
            total = 0.0
            for f in range(count):
                value = np.float64(sums[f * voxels + k])
                total += value * value
            result[k] = kind(math.sqrt(total))

    return loops
