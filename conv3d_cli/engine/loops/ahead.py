"""Fetching ahead: while a step is summed, the source of the next plane comes from memory.

Packing waits for memory and summing does not, so a kernel that calls `fetch_ahead` between its register tiles hides the one
behind the other. It is a hint: an address that is wrong for a rare layout costs nothing but the hint.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.simd import inlined, memory, prefetch
from conv3d_cli.engine.step import F

LINE = 64  # bytes


@inlined
def fetch_ahead(step, itemsize, row, column, width):
    """Ask for `width` voxels of the input plane that is packed next, from output row `row` and column `column` of the task."""
    channels = step[F.channels]
    if step[F.step_plane] + step[F.step_planes] >= step[F.plane] + step[F.depth]:
        return  # the task's last step
    if step[F.source_column_step] != channels:
        return
    plane = memory(step[F.planes], np.int64)[step[F.position] + 1]
    at = plane + memory(step[F.rows], np.int64)[(step[F.row] + row) * step[F.stride_h] + step[F.extent_h] - 1]
    at += memory(step[F.columns], np.int64)[(step[F.column] + column) * step[F.stride_w] + step[F.extent_w] // 2]
    address = step[F.source] + itemsize * (at + step[F.group] * channels)
    for i in range((width * step[F.stride_w] * channels * itemsize + LINE - 1) // LINE):
        prefetch(address + LINE * i)
