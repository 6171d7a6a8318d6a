"""Prefetching: while a step is summed, the source of the next plane is fetched from memory.

Packing waits for memory and summing does not, so a micro-kernel that prefetches between its
register tiles hides the latency. A prefetch is a hint: for a rare layout the address may be wrong,
which only wastes the hint.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import inlined, memory, prefetch
from conv3d_cli.engine.step import F
from conv3d_cli.engine.views import OUTSIDE_OFFSET

LINE = 64  # bytes


@inlined
def _next_voxel(step, row, column):
    """The address of an input voxel in the plane that is packed next; 0 if the source has none.

    row, column : int       the voxel's input position, relative to the task
    """
    address = 0
    if step[F.step_plane] + step[F.step_planes] < step[F.plane] + step[F.depth]:
        plane = memory(step[F.planes], np.int64)[step[F.position] + 1]
        down = memory(step[F.rows], np.int64)[step[F.row] * step[F.stride_h] + row]
        along = memory(step[F.columns], np.int64)[step[F.column] * step[F.stride_w] + column]
        if plane != OUTSIDE_OFFSET and down != OUTSIDE_OFFSET and along != OUTSIDE_OFFSET:
            first = step[F.group] * step[F.channels] * step[F.source_channel_step]
            address = step[F.source] + step[F.source_itemsize] * (first + plane + down + along)
    return address


@inlined
def fetch_rows(step, row, gap, rows, column, width):
    """Prefetch the input of `rows` rows of `width` outputs, in the plane that is packed next.

    row, column : int       the first output, relative to the block of rows and to the task
    gap : int               output rows from one of the rows to the next
    Does nothing unless a channel's voxels are contiguous.
    """
    if step[F.source_column_step] == 1:
        for r in range(rows):
            down = step[F.block_row] + row + r * gap
            if down < step[F.height]:
                input_row = down * step[F.stride_h] + step[F.extent_h] // 2
                input_column = column * step[F.stride_w] + step[F.extent_w] // 2
                address = _next_voxel(step, input_row, input_column)
                if address != 0:
                    for i in range(
                        (width * step[F.stride_w] * step[F.source_itemsize] + LINE - 1) // LINE
                    ):
                        prefetch(address + LINE * i)


@inlined
def find_planes(step, planes, table):
    """Note where the planes begin that are packed next, at the task's first column.

    table : address     receives int64 (planes,), addresses; instead of one outside the source, any
    """
    found, offsets = memory(table, np.int64), memory(step[F.planes], np.int64)
    last = (step[F.plane] + step[F.depth] - 1) * step[F.stride_d] + step[F.extent_d] - 1
    along = step[F.group] * step[F.channels] * step[F.source_channel_step]
    along += memory(step[F.columns], np.int64)[max(step[F.column], step[F.run_start])]
    for p in range(planes):
        plane = offsets[min(step[F.position] + 1 + p, last)]
        plane = plane if plane != OUTSIDE_OFFSET else 0
        found[p] = step[F.source] + step[F.source_itemsize] * (plane + along)


@inlined
def find_lines(step, row, rows, planes, starts, table):
    """Note where lines of these planes begin, of the rows that some outputs read in the middle.

    row, rows : int     outputs, relative to the task
    starts : address    as `find_planes` notes them
    table : address     receives int64 (planes, rows), addresses; instead of one outside the source,
                        any
    """
    found, of_planes = memory(table, np.int64), memory(starts, np.int64)
    offsets = memory(step[F.rows], np.int64)
    for r in range(rows):
        number = min(row + r, step[F.height] - 1) + step[F.extent_h] // 2
        at = offsets[step[F.row] + number]
        at = at * step[F.source_itemsize] if at != OUTSIDE_OFFSET else 0
        for p in range(planes):
            found[p * rows + r] = of_planes[p] + at


@inlined
def bytes_ahead(step):
    """How far from a line of the plane that was packed last the same one lies in the next plane.

    In bytes; 0 if there is no next plane, or if one of the two is outside the source.
    """
    planes, distance = memory(step[F.planes], np.int64), 0
    last = (step[F.out_depth] - 1) * step[F.stride_d] + step[F.extent_d] - 1
    if step[F.position] < last:
        here, there = planes[step[F.position]], planes[step[F.position] + 1]
        if here != OUTSIDE_OFFSET and there != OUTSIDE_OFFSET:
            distance = (there - here) * step[F.source_itemsize]
    return distance


@inlined
def fetch_lines(lines, first, stop, offset):
    """Prefetch a cache line at an offset from each of the addresses first <= i < stop."""
    for i in range(first, stop):
        prefetch(lines[i] + offset)


@inlined
def fetch_part(step, part, parts):
    """Prefetch part `part` of `parts` of the rows of the plane that is packed next.

    Does nothing unless a channel's voxels are contiguous.
    """
    planes, rows = memory(step[F.planes], np.int64), memory(step[F.rows], np.int64)
    columns = memory(step[F.columns], np.int64)
    last = (step[F.out_depth] - 1) * step[F.stride_d] + step[F.extent_d] - 1
    if (
        step[F.source_column_step] != 1
        or step[F.position] >= last
        or planes[step[F.position] + 1] == OUTSIDE_OFFSET
    ):
        return
    first_column = step[F.column] * step[F.stride_w]
    width = (step[F.width] - 1) * step[F.stride_w] + step[F.extent_w]
    start = max(step[F.run_start], first_column)
    stop = min(step[F.run_stop], first_column + width)
    if start >= stop:
        return
    first_row = step[F.row] * step[F.stride_h]
    height = (step[F.height] - 1) * step[F.stride_h] + step[F.extent_h]
    first = step[F.group] * step[F.channels] * step[F.source_channel_step]
    origin = first + planes[step[F.position] + 1] + columns[start]
    size = step[F.source_itemsize]
    lines = ((stop - start) * size + LINE - 1) // LINE
    for j in range(height * part // parts, height * (part + 1) // parts):
        row = rows[first_row + j]
        if row != OUTSIDE_OFFSET:
            at = step[F.source] + (origin + row) * size
            for line in range(lines):
                prefetch(at + LINE * line)


@inlined
def fetch_voxels(step, row, column, width):
    """Prefetch the input of `width` outputs in all channels, in the plane that is packed next.

    row, column : int       the first output, relative to the block of rows and to the task
    Does nothing unless a voxel's channels are contiguous.
    """
    size = step[F.source_itemsize]
    column_bytes, voxel_bytes = step[F.source_column_step] * size, step[F.channels] * size
    voxels = width * step[F.stride_w]
    if column_bytes == voxel_bytes:  # the voxels are contiguous
        voxels, voxel_bytes = 1, voxels * voxel_bytes
    if step[F.channels] > 1 and step[F.source_channel_step] == 1 and voxel_bytes >= LINE:
        input_row = (step[F.block_row] + row) * step[F.stride_h] + step[F.extent_h] - 1
        input_column = column * step[F.stride_w] + step[F.extent_w] // 2
        address = _next_voxel(step, input_row, input_column)
        if address != 0:
            for v in range(voxels):
                for i in range((voxel_bytes + LINE - 1) // LINE):
                    prefetch(address + v * column_bytes + LINE * i)
