"""The two passes of a normalised convolution beside the sums: voxels and their weights made ready, and the division."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import memory, real_field
from conv3d_cli.engine.normalize import DIVIDE_AT as D
from conv3d_cli.engine.normalize import WEIGH_AT as W
from conv3d_cli.engine.normalize import WITHIN
from conv3d_cli.engine.step import F


def weigh(source, real):
    """A plane's voxels times their weights, and the weights; 0 for both where a voxel is missing.

    Parameters: see `engine.normalize.W`. slope, intercept, fill (the value that is missing) as fields of the step.
    """
    stored, kind = np.dtype(source).type, np.dtype(real).type
    in_size, size = np.dtype(source).itemsize, np.dtype(real).itemsize
    mark = kind(WITHIN)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        scaled = step[F.scaled] != 0
        missing = real_field(step, F.fill)
        step_in, step_weight = p[W.source_column], p[W.mask_column]
        width = p[W.width]
        lost = 0
        for row in range(p[W.height]):
            values = memory(p[W.source] + row * p[W.source_row] * in_size, stored)
            given = memory(p[W.mask] + row * p[W.mask_row] * size, kind)
            products = memory(p[W.products] + row * width * size, kind)
            weights = memory(p[W.weights] + row * width * size, kind)
            for k in range(width):
                raw = values[k * step_in]
                value = kind(raw)
                if scaled:
                    value = kind(np.float64(raw) * slope + intercept)
                weight = given[k * step_weight]
                within = weight > kind(0)
                known = within
                if p[W.finite] != 0:
                    known = known and value - value == kind(0)
                if p[W.compare] != 0:
                    known = known and np.float64(raw) != missing
                weight = weight if known else (mark if within else kind(0))
                products[k] = value * weight if known else kind(0)
                weights[k] = weight
                lost += weight != kind(1)
        p[W.lost] += lost

    return loops


def divide(real):
    """sums / coverage in place, where the coverage is neither whole nor too small; `fill` where it is too small.

    Parameters: see `engine.normalize.D`. slope: how near to 1 a coverage counts as whole; intercept: the least that counts.
    """
    kind = np.dtype(real).type

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        near, least, fill = (
            kind(real_field(step, F.slope)),
            kind(real_field(step, F.intercept)),
            kind(real_field(step, F.fill)),
        )
        repeat, count = p[D.channels], p[D.voxels]
        sums, coverage = memory(p[D.sums], kind), memory(p[D.coverage], kind)
        one = kind(1)
        bare = 0
        if repeat == 1:
            for k in range(count):
                part = coverage[k]
                value = sums[k] / part
                value = sums[k] if abs(part - one) <= near else value
                seen = part >= least
                sums[k] = value if seen else fill
                bare += not seen
        else:
            for k in range(count):
                part = coverage[k]
                seen = part >= least
                bare += not seen
                for c in range(repeat):
                    value = sums[k * repeat + c]
                    value = value if abs(part - one) <= near else value / part
                    sums[k * repeat + c] = value if seen else fill
        p[D.bare] += bare

    return loops
