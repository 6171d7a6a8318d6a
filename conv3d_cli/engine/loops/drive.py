"""The driver: tasks through pack → absorb → convolve → activate → store in machine code.

An algorithm that accepts it (`PreparedAlgorithm.in_place`) reads rows of the source where they lie.
Then memory is read once, and nothing is copied but the ends of the rows, where the boundary's
voxels stand beside those of the source. A table (`source_lines`) has the addresses of all rows, as
the boundary orders them.
"""

from __future__ import annotations

import numpy as np

from conv3d_cli.engine.loops.ahead import LINE
from conv3d_cli.engine.loops.pack import ENDS
from conv3d_cli.engine.loops.simd import call, inlined, memory
from conv3d_cli.engine.step import HAS_INCOMPLETE, HAS_NONFINITE, F


@inlined
def _find_inner(step):
    """Find the columns of a task that are read in place, and the positions that are packed.

    Also whether sums may be stored at once, and the first column that begins a cache line.
    """
    step[F.inner_column] = step[F.inner_column_stop] = 0
    step[F.packed_stop] = step[F.packed_start] = 0
    width, over, lanes = step[F.width], step[F.extent_w] - 1, LINE // step[F.itemsize]
    # whether all rows of the output are aligned alike; then it is written in whole lines
    steps = step[F.out_plane_step] | step[F.out_row_step]
    if step[F.filters] > 1:
        steps |= step[F.out_filter_step]
    is_aligned = steps % lanes == 0
    step[F.stores_sums] = step[F.writes_out] != 0 and (is_aligned or step[F.streaming] == 0)
    to = step[F.plane] * step[F.out_plane_step] + step[F.row] * step[F.out_row_step]
    to += step[F.group] * step[F.filters] * step[F.out_filter_step] + step[F.column]
    to += step[F.out] // step[F.itemsize]
    step[F.line_column] = -to % lanes if is_aligned and step[F.stores_sums] != 0 else 0
    start = max(step[F.run_start] - step[F.column], 0)
    stop = min(step[F.run_stop] - step[F.column], width + over)
    reach = step[F.row_reach]
    if step[F.reads_source] == 0 or stop - start < 4 * ENDS or reach > ENDS:
        return
    step[F.packed_stop], step[F.packed_start] = start + reach + ENDS, stop - reach - ENDS
    first = start + (-(to + start) % lanes if is_aligned else 0)
    step[F.inner_column] = first
    step[F.inner_column_stop] = first + (min(stop - over, width) - first) // lanes * lanes


@inlined
def _enter_grid(step, grid):
    """Set the fields that depend on the grid of a task; see `GridFields`."""
    w = grid % step[F.apart_w]
    h = grid // step[F.apart_w] % step[F.apart_h]
    d = grid // step[F.apart_w] // step[F.apart_h]
    step[F.out_depth] = (step[F.all_depth] - d + step[F.apart_d] - 1) // step[F.apart_d]
    step[F.out_height] = (step[F.all_height] - h + step[F.apart_h] - 1) // step[F.apart_h]
    step[F.out_width] = (step[F.all_width] - w + step[F.apart_w] - 1) // step[F.apart_w]
    planes, rows = 8 * d * step[F.positions_d], 8 * h * step[F.positions_h]
    columns = 8 * w * step[F.positions_w]
    step[F.planes] = step[F.all_planes] + planes
    step[F.rows] = step[F.all_rows] + rows
    step[F.columns] = step[F.all_columns] + columns
    step[F.mask_planes] = step[F.all_mask_planes] + planes
    step[F.mask_rows] = step[F.all_mask_rows] + rows
    step[F.mask_columns] = step[F.all_mask_columns] + columns
    aside = d * step[F.out_apart_d] + h * step[F.out_apart_h] + w * step[F.out_apart_w]
    step[F.out] = step[F.all_out] + aside
    if step[F.all_coverage] != 0:
        aside = d * step[F.coverage_apart_d] + h * step[F.coverage_apart_h]
        step[F.coverage] = step[F.all_coverage] + aside + w * step[F.coverage_apart_w]
    if step[F.all_inside] != 0:
        aside = d * step[F.inside_apart_d] + h * step[F.inside_apart_h]
        step[F.inside] = step[F.all_inside] + aside + w * step[F.inside_apart_w]


def run_tasks():
    """Run the tasks first_task <= t < last_task of a step record (terms: see `engine/step.py`)."""

    def loops(step):
        stride, extent, ring = step[F.stride_d], step[F.extent_d], step[F.ring]
        plane_bytes = step[F.plane_step] * step[F.itemsize]
        window = memory(step[F.window], np.int64)
        whole = (step[F.step_depth] - 1) * stride + extent
        for task in range(step[F.first_task], step[F.last_task]):
            band = task // step[F.width_bands]
            block = band // step[F.height_bands]
            step[F.task] = task
            group = block // step[F.depth_blocks]
            if step[F.grids] > 0:
                _enter_grid(step, group % step[F.grids])
                group //= step[F.grids]
            step[F.group] = step[F.first_group] + group
            first_plane = block % step[F.depth_blocks] * step[F.tile_depth]
            step[F.plane] = first_plane
            step[F.row] = band % step[F.height_bands] * step[F.tile_height]
            step[F.column] = task % step[F.width_bands] * step[F.tile_width]
            end_plane = min(first_plane + step[F.tile_depth], step[F.out_depth])
            step[F.depth] = end_plane - first_plane
            step[F.height] = min(step[F.tile_height], step[F.out_height] - step[F.row])
            step[F.width] = min(step[F.tile_width], step[F.out_width] - step[F.column])
            if min(step[F.depth], step[F.height], step[F.width]) <= 0:
                continue  # not all grids have equally many voxels
            packed = first_plane * stride
            _find_inner(step)
            step[F.last_nonfinite] = step[F.last_incomplete] = -1
            number = task * step[F.steps_per_task]
            plane = first_plane
            while plane < end_plane:
                planes = min(step[F.step_depth], end_plane - plane)
                step[F.step_number] = number
                step[F.step_plane] = plane
                step[F.step_planes] = planes
                first = plane * stride
                end = (plane + planes - 1) * stride + extent
                packed = max(packed, first)
                while packed < end:
                    step[F.position] = packed
                    step[F.slot] = packed % ring
                    call(step[F.pack], step)
                    if step[F.absorb] != 0:
                        call(step[F.absorb], step)
                    packed += 1
                for i in range(whole):  # the last step of a task may have fewer planes
                    window[i] = min(first + i, end - 1) % ring * plane_bytes
                if step[F.flags] != 0:
                    flags = memory(step[F.flags], np.uint8)
                    flags[number] = HAS_NONFINITE * (
                        step[F.last_nonfinite] >= first
                    ) + HAS_INCOMPLETE * (step[F.last_incomplete] >= first)
                row = 0
                while row < step[F.height]:
                    step[F.block_row] = row
                    step[F.block_rows] = min(step[F.block_height], step[F.height] - row)
                    call(step[F.convolve], step)
                    if step[F.activate] != 0:
                        call(step[F.activate], step)
                    call(step[F.store], step)
                    row += step[F.block_height]
                number += 1
                plane += planes

    return loops
