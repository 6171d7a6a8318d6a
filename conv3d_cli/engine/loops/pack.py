"""Packing: copies one input plane of a tile, with its halo, into the layout of the micro-kernels.

Whatever the source's dtype, strides, scale and boundary, a packed plane is plain float32 or
float64, so the micro-kernels have no edge cases. There are two layouts:

- `pack_rows`: (channel, row, position). A row is split by stride phase: position p is stored at
  `(p % stride) * pitch + p // stride`, so that a tap reads consecutive elements for consecutive
  outputs at any stride.
- `pack_voxels`: (row, position, channel), with `pitch` elements from one position to the next.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import copy_vector, inlined, memory, real_field
from conv3d_cli.engine.step import F
from conv3d_cli.engine.tile import SPARE_LINES
from conv3d_cli.engine.views import OUTSIDE_OFFSET, stored_bits

# Packed at each end of a row's run that is read in place, in addition to a window, so that whole
# vectors read no others.
ENDS = 16


@inlined
def value_of(raw, scaled, slope, intercept):
    """The value of a stored number in float64, which the caller rounds once.

    Scaling in float64 is what nibabel does.
    """
    if scaled:
        return np.float64(raw) * slope + intercept
    return np.float64(raw)


@inlined
def positions(step):
    """The task's input positions: (rows, columns, first row, first column, run start, run stop).

    The positions of the run, which count from the first column, are consecutive source columns.
    """
    first_row, first_column = step[F.row] * step[F.stride_h], step[F.column] * step[F.stride_w]
    height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
    width = (step[F.width] - 1) * step[F.stride_w] + step[F.extent_w]
    run_start = min(max(step[F.run_start] - first_column, 0), width)
    run_stop = min(max(step[F.run_stop] - first_column, run_start), width)
    return height, width, first_row, first_column, run_start, run_stop


def finder(real, check):
    """A function that tells whether packed numbers contain NaN, infinity or huge numbers.

    Huge are numbers from 2^64 on (float64: 2^512), which may overflow in a transform; sums and
    products of smaller ones do not. Without `check`, the function always returns False.
    """
    bits, exponent = (
        (np.uint32, 0x7F800000) if real == "float32" else (np.uint64, 0x7FF0000000000000)
    )
    least = (127 + 64) << 23 if real == "float32" else (1023 + 512) << 52

    @inlined
    def holds_huge(address, count):
        if not check:
            return False
        numbers = memory(address, bits)
        mask, huge = bits(exponent), bits(least)
        bad = bits(0)
        for i in range(count):
            bad |= bits((numbers[i] & mask) >= huge)
        return bad != 0

    return holds_huge


def pack_rows(source_dtype, real, check):
    """Pack one plane in rows.

    source_dtype, real : str    names of the source's and the packed dtype
    check : int                 1: set `last_nonfinite` at NaN, infinity and huge numbers
    """
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    itemsize, source_bytes = np.dtype(real).itemsize, np.dtype(source_dtype).itemsize
    double = 1 if itemsize == 8 else 0
    bits = stored_bits(source_dtype, real) or 0
    holds_huge = finder(real, check)

    @inlined
    def number(source, at, offset, fill, scaled, slope, intercept):
        """The packed number at an offset in the row that begins at `at`."""
        if offset == OUTSIDE_OFFSET:
            return fill
        return kind(value_of(source[at + offset], scaled, slope, intercept))

    def loops(step):
        source = memory(step[F.source], raw_type)
        planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
        fill = kind(real_field(step, F.fill))
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        stride, pitch, column_step = step[F.stride_w], step[F.pitch], step[F.source_column_step]
        height, width, first_row, first_column, run_start, run_stop = positions(step)
        columns = memory(step[F.columns] + 8 * first_column, np.int64)
        plane = planes[step[F.position]]
        in_place, over = step[F.packed_stop] > 0, step[F.row_reach]
        lines = memory(step[F.source_lines] + 8 * step[F.slot] * step[F.lines_step], np.int64)
        run = run_stop - run_start
        # whether all positions beside the run are outside: then whole vectors fill them
        fills = in_place and run_start <= ENDS and width - run_stop <= ENDS
        if fills:
            for p in range(run_start):
                fills &= columns[p] == OUTSIDE_OFFSET
            for p in range(run_stop, width):
                fills &= columns[p] == OUTSIDE_OFFSET
        for c in range(step[F.channels]):
            origin = (step[F.group] * step[F.channels] + c) * step[F.source_channel_step]
            to = step[F.scratch] + itemsize * (
                step[F.slot] * step[F.plane_step] + c * step[F.channel_step]
            )
            for j in range(height):
                target = memory(to + itemsize * j * step[F.row_step], kind)
                row = rows[first_row + j]
                at = origin + plane + row
                if plane == OUTSIDE_OFFSET or row == OUTSIDE_OFFSET:
                    if in_place:
                        lines[j] = step[F.outside]
                    for phase in range(stride):
                        for p in range((width - phase + stride - 1) // stride):
                            target[phase * pitch + p] = fill
                elif stride == 1:
                    if fills:  # and some of the run, which is packed afterwards
                        last = memory(to + itemsize * (j * step[F.row_step] + width - ENDS), kind)
                        for p in range(ENDS):
                            target[p] = fill
                            last[p] = fill
                    else:
                        for p in range(run_start):
                            target[p] = number(
                                source, at, columns[p], fill, scaled, slope, intercept
                            )
                        for p in range(run_stop, width):
                            target[p] = number(
                                source, at, columns[p], fill, scaled, slope, intercept
                            )
                    here = at
                    if run > 0:
                        here += columns[run_start]
                    if in_place:
                        lines[j] = step[F.source] + source_bytes * (here - run_start)
                        for end in range(2):
                            p = end * (run - ENDS - over)
                            from_here = step[F.source] + source_bytes * (here + p)
                            to_here = to + itemsize * (j * step[F.row_step] + run_start + p)
                            copy_vector(ENDS, double, bits, from_here, to_here)
                            if over > 0:  # another vector, which overlaps the first one
                                from_here += source_bytes * over
                                to_here += itemsize * over
                                copy_vector(ENDS, double, bits, from_here, to_here)
                    elif column_step == 1 and not scaled:
                        for p in range(run):
                            target[run_start + p] = kind(source[here + p])
                    elif column_step == 1:
                        for p in range(run):
                            target[run_start + p] = kind(
                                value_of(source[here + p], True, slope, intercept)
                            )
                    else:
                        for p in range(run):
                            raw = source[here + p * column_step]
                            target[run_start + p] = kind(value_of(raw, scaled, slope, intercept))
                else:
                    for phase in range(stride):
                        for p in range((width - phase + stride - 1) // stride):
                            offset = columns[phase + p * stride]
                            target[phase * pitch + p] = number(
                                source, at, offset, fill, scaled, slope, intercept
                            )
                if check:
                    for phase in range(stride):
                        count = (width - phase + stride - 1) // stride
                        if holds_huge(
                            to + itemsize * (j * step[F.row_step] + phase * pitch), count
                        ):
                            step[F.last_nonfinite] = step[F.position]
        if in_place:
            for j in range(height, height + SPARE_LINES):
                lines[j] = lines[height - 1]

    return loops


def pack_voxels(source_dtype, real, check):
    """As `pack_rows`, with channels last."""
    raw_type, kind = np.dtype(source_dtype).type, np.dtype(real).type
    itemsize = np.dtype(real).itemsize
    holds_huge = finder(real, check)

    def loops(step):
        source = memory(step[F.source], raw_type)
        planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
        fill = kind(real_field(step, F.fill))
        scaled = step[F.scaled] != 0
        slope, intercept = real_field(step, F.slope), real_field(step, F.intercept)
        pitch, channels = step[F.pitch], step[F.channels]
        channel_step, column_step = step[F.source_channel_step], step[F.source_column_step]
        height, width, first_row, first_column, run_start, run_stop = positions(step)
        columns = memory(step[F.columns] + 8 * first_column, np.int64)
        # voxels that are contiguous in the source and in the scratch are copied as one long row
        joined = channel_step == 1 and column_step == channels and pitch == channels and not scaled
        if not joined:
            run_stop = run_start
        plane = planes[step[F.position]]
        origin = step[F.group] * channels * channel_step
        to = step[F.scratch] + itemsize * step[F.slot] * step[F.plane_step]
        for j in range(height):
            target = memory(to + itemsize * j * step[F.row_step], kind)
            row = rows[first_row + j]
            outside = plane == OUTSIDE_OFFSET or row == OUTSIDE_OFFSET
            p = 0
            while p < width:
                if run_start == p and run_stop > p and not outside:
                    here = origin + plane + row + columns[p]
                    for q in range((run_stop - p) * channels):
                        target[p * pitch + q] = kind(source[here + q])
                    p = run_stop
                    continue
                offset = columns[p]
                if outside or offset == OUTSIDE_OFFSET:
                    for c in range(channels):
                        target[p * pitch + c] = fill
                else:
                    here = origin + plane + row + offset
                    if channel_step == 1:
                        for c in range(channels):
                            target[p * pitch + c] = kind(
                                value_of(source[here + c], scaled, slope, intercept)
                            )
                    else:
                        for c in range(channels):
                            raw = source[here + c * channel_step]
                            target[p * pitch + c] = kind(value_of(raw, scaled, slope, intercept))
                p += 1
            if check:
                for p in range(width):
                    if holds_huge(to + itemsize * (j * step[F.row_step] + p * pitch), channels):
                        step[F.last_nonfinite] = step[F.position]

    return loops
