"""Fetching ahead: while a step is summed, the source of the next plane comes from memory.

Packing waits for memory and summing does not, so a kernel that calls `fetch_ahead` between its register tiles hides the one
behind the other. It is a hint: an address that is wrong for a rare layout costs nothing but the hint.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.pack import OUTSIDE
from conv3d_cli.engine.loops.simd import inlined, memory, prefetch
from conv3d_cli.engine.step import F

LINE = 64  # bytes


@inlined
def fetch_ahead(step, row, column, width):
    """Ask for `width` voxels of the input plane that is packed next, from row `row` of the block and column `column` of the task.

    Only where a voxel's channels are side by side; the drive fetches planar sources itself.
    """
    source_bytes = step[F.source_itemsize]
    column_bytes, voxel_bytes = step[F.source_column_step] * source_bytes, step[F.channels] * source_bytes
    voxels = width * step[F.stride_w]
    if column_bytes == voxel_bytes:  # one run
        voxels, voxel_bytes = 1, voxels * voxel_bytes
    more = step[F.step_plane] + step[F.step_planes] < step[F.plane] + step[F.depth]
    if more and step[F.channels] > 1 and step[F.source_channel_step] == 1 and voxel_bytes >= LINE:
        down = (step[F.row] + step[F.block_row] + row) * step[F.stride_h] + step[F.extent_h] - 1
        along = (step[F.column] + column) * step[F.stride_w] + step[F.extent_w] // 2
        plane = memory(step[F.planes], np.int64)[step[F.position] + 1]
        down, along = memory(step[F.rows], np.int64)[down], memory(step[F.columns], np.int64)[along]
        if plane != OUTSIDE and down != OUTSIDE and along != OUTSIDE:
            address = step[F.source] + source_bytes * (plane + down + along + step[F.group] * step[F.channels])
            for v in range(voxels):
                for i in range((voxel_bytes + LINE - 1) // LINE):
                    prefetch(address + v * column_bytes + LINE * i)
