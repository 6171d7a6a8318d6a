"""Packing: one input plane of a tile, with its halo, in the layout the micro-kernels want.

Whatever the source is (dtype, strides, scale, boundary), a packed plane is plain float32 or float64, so the loops behind it
have no edge cases. Two layouts:

- `pack_rows`: (channel, row, position), a row split by stride phase: position p lies at `(p % stride) * pitch + p // stride`,
  so that a tap reads consecutive numbers for consecutive outputs at any stride.
- `pack_voxels`: (row, position, channel), channels next to one another; `pitch` numbers from one position to the next.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import inlined, memory, real_field
from conv3d_cli.engine.step import F

OUTSIDE = np.iinfo(np.int64).min  # in an offset table: no source voxel, the fill stands there


@inlined
def _value(raw, scaled, slope, intercept):
    # In float64, as nibabel does, then rounded once by the caller; for an unscaled float32 it is the number itself.
    if scaled:
        return np.float64(raw) * slope + intercept
    return np.float64(raw)


def _finder(real, check):
    """A function that tells whether a run of packed numbers holds NaN, infinity, or what may become it in a transform.

    That is numbers from 2^64 on (float64: 2^512): their products and sums still have room. Always False without `check`.
    """
    bits, exponent = (np.uint32, 0x7F800000) if real == "float32" else (np.uint64, 0x7FF0000000000000)
    least = (127 + 64) << 23 if real == "float32" else (1023 + 512) << 52

    @inlined
    def holds_non_finite(address, count):
        if not check:
            return False
        numbers = memory(address, bits)
        mask, huge = bits(exponent), bits(least)
        bad = bits(0)
        for i in range(count):
            bad |= bits((numbers[i] & mask) >= huge)
        return bad != 0

    return holds_non_finite


def pack_rows(source_dtype, real, check):
    """source_dtype, real: names of dtypes; check: 1 to note in `last_bad` where NaN or infinity was packed."""
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    itemsize = np.dtype(real).itemsize
    holds_non_finite = _finder(real, check)

    def loops(step):
        source = memory(step[F.source], raw_type)
        planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
        columns = memory(step[F.columns], np.int64)
        fill = kind(real_field(step, F.fill))
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        stride, pitch, column_step = step[F.stride_w], step[F.pitch], step[F.source_column_step]
        height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
        width = (step[F.width] - 1) * stride + step[F.extent_w]
        first_row, first_column = step[F.row] * step[F.stride_h], step[F.column] * stride
        # the run of columns that follow one another in the source, cut to this tile
        run_start = min(max(step[F.run_start] - first_column, 0), width)
        run_stop = min(max(step[F.run_stop] - first_column, run_start), width)
        if stride > 1:
            run_stop = run_start
        plane = planes[step[F.position]]
        for c in range(step[F.channels]):
            origin = (step[F.group] * step[F.channels] + c) * step[F.source_channel_step]
            to = step[F.scratch] + itemsize * (step[F.slot] * step[F.plane_step] + c * step[F.channel_step])
            for j in range(height):
                target = memory(to + itemsize * j * step[F.row_step], kind)
                row = rows[first_row + j]
                if plane == OUTSIDE or row == OUTSIDE:
                    for phase in range(stride):
                        for p in range((width - phase + stride - 1) // stride):
                            target[phase * pitch + p] = fill
                    if check and not abs(fill) < kind(2.0**64):
                        step[F.last_bad] = step[F.position]
                    continue
                at = origin + plane + row
                if stride == 1:
                    for p in range(run_start):
                        offset = columns[first_column + p]
                        if offset == OUTSIDE:
                            target[p] = fill
                        else:
                            target[p] = kind(_value(source[at + offset], scaled, slope, intercept))
                    here = at
                    if run_start < run_stop:
                        here += columns[first_column + run_start]
                    if column_step == 1 and not scaled:
                        for p in range(run_stop - run_start):
                            target[run_start + p] = kind(source[here + p])
                    elif column_step == 1:
                        for p in range(run_stop - run_start):
                            target[run_start + p] = kind(_value(source[here + p], True, slope, intercept))
                    else:
                        for p in range(run_stop - run_start):
                            raw = source[here + p * column_step]
                            target[run_start + p] = kind(_value(raw, scaled, slope, intercept))
                    for p in range(run_stop, width):
                        offset = columns[first_column + p]
                        if offset == OUTSIDE:
                            target[p] = fill
                        else:
                            target[p] = kind(_value(source[at + offset], scaled, slope, intercept))
                else:
                    for phase in range(stride):
                        for p in range((width - phase + stride - 1) // stride):
                            offset = columns[first_column + phase + p * stride]
                            if offset == OUTSIDE:
                                target[phase * pitch + p] = fill
                            else:
                                target[phase * pitch + p] = kind(_value(source[at + offset], scaled, slope, intercept))
                if check:
                    for phase in range(stride):
                        count = (width - phase + stride - 1) // stride
                        if holds_non_finite(to + itemsize * (j * step[F.row_step] + phase * pitch), count):
                            step[F.last_bad] = step[F.position]

    return loops


def pack_voxels(source_dtype, real, check):
    """As `pack_rows`, channels last."""
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    itemsize = np.dtype(real).itemsize
    holds_non_finite = _finder(real, check)

    def loops(step):
        source = memory(step[F.source], raw_type)
        planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
        columns = memory(step[F.columns], np.int64)
        fill = kind(real_field(step, F.fill))
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        stride, pitch, channels = step[F.stride_w], step[F.pitch], step[F.channels]
        channel_step, column_step = step[F.source_channel_step], step[F.source_column_step]
        height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
        width = (step[F.width] - 1) * stride + step[F.extent_w]
        first_row, first_column = step[F.row] * step[F.stride_h], step[F.column] * stride
        run_start = min(max(step[F.run_start] - first_column, 0), width)
        run_stop = min(max(step[F.run_stop] - first_column, run_start), width)
        # voxels that follow one another without a gap in the source and in the scratch are one long row
        joined = channel_step == 1 and column_step == channels and pitch == channels and not scaled
        if not joined:
            run_stop = run_start
        plane = planes[step[F.position]]
        origin = step[F.group] * channels * channel_step
        to = step[F.scratch] + itemsize * step[F.slot] * step[F.plane_step]
        for j in range(height):
            target = memory(to + itemsize * j * step[F.row_step], kind)
            row = rows[first_row + j]
            p = 0
            while p < width:
                if run_start == p and run_stop > p and plane != OUTSIDE and row != OUTSIDE:
                    here = origin + plane + row + columns[first_column + p]
                    for q in range((run_stop - p) * channels):
                        target[p * pitch + q] = kind(source[here + q])
                    p = run_stop
                    continue
                offset = columns[first_column + p]
                if plane == OUTSIDE or row == OUTSIDE or offset == OUTSIDE:
                    for c in range(channels):
                        target[p * pitch + c] = fill
                else:
                    here = origin + plane + row + offset
                    if channel_step == 1:
                        for c in range(channels):
                            target[p * pitch + c] = kind(_value(source[here + c], scaled, slope, intercept))
                    else:
                        for c in range(channels):
                            raw = source[here + c * channel_step]
                            target[p * pitch + c] = kind(_value(raw, scaled, slope, intercept))
                p += 1
            if check:
                for p in range(width):
                    if holds_non_finite(to + itemsize * (j * step[F.row_step] + p * pitch), channels):
                        step[F.last_bad] = step[F.position]

    return loops
