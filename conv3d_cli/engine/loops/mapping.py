"""The loops of a network's operations on one plane of outputs: pooling, moving, scaling."""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import memory
from conv3d_cli.engine.mapping import MOVE_AT as MOVE
from conv3d_cli.engine.mapping import POOL_AT as POOL
from conv3d_cli.engine.mapping import SCALE_AT as SCALE
from conv3d_cli.engine.step import F


def pool(real, largest):
    """The largest voxel, or the mean, of the window of each output.

    largest : int       1: the largest, NaN if one is NaN; 0: the mean
    Source: the first plane of the windows. Voxels are added in the order of depth, height, width.
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    least, zero = kind(-np.inf), kind(0)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        channels, planes = p[POOL.channels], p[POOL.planes]
        for h in range(p[POOL.rows]):
            row = p[POOL.first_row] + h * p[POOL.stride_h]
            row_from, row_to = max(row, 0), min(row + p[POOL.size_h], p[POOL.height])
            for w in range(p[POOL.columns]):
                column = p[POOL.first_column] + w * p[POOL.stride_w]
                column_from = max(column, 0)
                column_to = min(column + p[POOL.size_w], p[POOL.width])
                place = h * p[POOL.out_row_step] + w * p[POOL.out_column_step]
                out = memory(step[F.out] + size * place, kind)
                for c in range(channels):
                    out[c] = least if largest else zero
                for d in range(planes):
                    for i in range(row_from - p[POOL.start_row], row_to - p[POOL.start_row]):
                        line = d * p[POOL.plane_step] + i * p[POOL.row_step]
                        for j in range(
                            column_from - p[POOL.start_column], column_to - p[POOL.start_column]
                        ):
                            at = line + j * p[POOL.column_step]
                            voxels = memory(step[F.source] + size * at, kind)
                            if largest:
                                for c in range(channels):
                                    value, best = voxels[c], out[c]
                                    out[c] = value if value > best or value != value else best
                            else:
                                for c in range(channels):
                                    out[c] += voxels[c]
                if not largest:
                    count = p[POOL.count_d]
                    if p[POOL.count_all]:
                        count *= p[POOL.size_h] * p[POOL.size_w]
                    else:
                        count *= (row_to - row_from) * (column_to - column_from)
                    for c in range(channels):
                        out[c] /= kind(count)

    return loops


def move(real):
    """Copy all channels of voxels from where the tables of rows and columns say.

    A place below 0, or no source, stands for the numbers in `weights`, one for each channel.
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        channels = p[MOVE.channels]
        rows, columns = memory(step[F.rows], np.int64), memory(step[F.columns], np.int64)
        fill = memory(step[F.weights], kind)
        for h in range(p[MOVE.rows]):
            for w in range(p[MOVE.columns]):
                place = h * p[MOVE.out_row_step] + w * p[MOVE.out_column_step]
                out = memory(step[F.out] + size * place, kind)
                if step[F.source] == 0 or rows[h] < 0 or columns[w] < 0:
                    for c in range(channels):
                        out[c] = fill[c]
                else:
                    voxels = memory(step[F.source] + size * (rows[h] + columns[w]), kind)
                    for c in range(channels):
                        out[c] = voxels[c]

    return loops


def scale(real, bends):
    """scale · x + offset in float64, rounded once, for rows of `length` numbers.

    bends : int     1: max(x, 0) + scale · min(x, 0) instead
    `weights` has the scales and then the offsets of `pattern` numbers; a row repeats them.
    """
    kind, size = np.dtype(real).type, np.dtype(real).itemsize
    zero = kind(0)

    def loops(step):
        p = memory(step[F.parameters], np.int64)
        pattern, length = p[SCALE.pattern], p[SCALE.length]
        scales = memory(step[F.weights], np.float64)
        offsets = memory(step[F.weights] + 8 * pattern, np.float64)
        for row in range(p[SCALE.rows]):
            voxels = memory(step[F.source] + size * row * p[SCALE.row_step], kind)
            out = memory(step[F.out] + size * row * p[SCALE.out_row_step], kind)
            first = 0
            while first < length:
                for k in range(min(pattern, length - first)):
                    value = voxels[first + k]
                    if bends:
                        low = np.float64(value) * scales[k]
                        out[first + k] = value if value > zero else kind(low)
                    else:
                        out[first + k] = kind(np.float64(value) * scales[k] + offsets[k])
                first += pattern

    return loops
