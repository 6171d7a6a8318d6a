"""The bias and an activation of two straight parts, on the sums of a step before their store."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import inlined, memory, real_field
from conv3d_cli.engine.step import F


def ramp(real, form):
    """Add the bias to the sums of a block of rows, and apply the `Ramp` of the step record.

    real : str      name of the sums' dtype
    form : str      see `model.ramp.Ramp.form`
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    bits = {4: np.int32, 8: np.int64}[size]
    leaky, plain = form == "leaky", form == "plain"
    zero, no_bits = kind(0), bits(0)

    @inlined
    def bend(address, count, bias, bias_step, threshold, floor, ceiling, slope):
        """Change `count` numbers in a row; `bias_step` is 0 if they have one bias in common."""
        sums, patterns = memory(address, kind), memory(address, bits)
        for k in range(count):
            x = sums[k] + bias[k * bias_step]
            if leaky:
                sums[k] = x if x >= zero else x * slope
            else:
                value = zero if x <= threshold else x
                if not plain:
                    value = floor if value < floor else value
                    value = ceiling if value > ceiling else value
                    low = threshold - x
                    value = value - low * slope if low > zero and slope != zero else value
                sums[k] = value
                # as whole numbers, since the compiler may ignore the sign of zero
                patterns[k] = no_bits if value == zero else patterns[k]

    def loops(step):
        filters, planes = step[F.filters], step[F.step_planes]
        height, width = step[F.block_rows], step[F.width]
        by_filter, by_column = step[F.acc_filter_step], step[F.acc_column_step]
        threshold, slope = kind(real_field(step, F.threshold)), kind(real_field(step, F.ramp_slope))
        floor, ceiling = kind(real_field(step, F.floor)), kind(real_field(step, F.ceiling))
        first = size * step[F.group] * step[F.bias_group_step]
        bias = memory(step[F.bias] + first, kind)
        # sums of voxels that lie side by side are padded, and so is the bias
        together = by_filter == 1 and by_column == step[F.bias_group_step]
        for i in range(planes):
            for j in range(height):
                row = step[F.accumulator] + size * (
                    i * step[F.acc_plane_step] + j * step[F.acc_row_step]
                )
                if by_filter == 1:
                    count = by_column if together else filters
                    for k in range(width):
                        at = row + size * k * by_column
                        bend(at, count, bias, 1, threshold, floor, ceiling, slope)
                else:
                    for f in range(filters):
                        at = row + size * f * by_filter
                        own = memory(step[F.bias] + first + size * f, kind)
                        bend(at, width, own, 0, threshold, floor, ceiling, slope)

    return loops
