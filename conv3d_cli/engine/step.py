"""The step record: everything the compiled loops of one thread know, as one run of 64-bit numbers.

Every compiled function has the same signature, `void(step)`, and reads what it needs from the record by name. So a tile runs
through pack → convolve → store without leaving machine code (`loops/drive.py`), any packing goes with any algorithm and any
store, and a call from Python costs one pointer. A field holds an int64, or a float64 where `REALS` says so; `*_at` fields
and those in `ADDRESSES` are addresses of memory.

Words: a *task* is a column of output voxels (a tile of height x width, swept along depth); a *step* is the `step_depth` output
planes of a task that are computed at once; the *window* is the input planes a step reads. Positions along an axis count the
places that taps span, padding included, from the slab's first one.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIELDS = (
    # functions, by address; 0 where there is none
    "pack", "absorb", "convolve", "activate", "store",
    # tasks first_task <= t < last_task are run; numbered over (group, depth block, height band, width band), groups
    # from `first_group` on
    "first_task", "last_task", "first_group", "depth_blocks", "height_bands", "width_bands",
    "tile_depth", "tile_height", "tile_width", "step_depth", "steps_per_task",
    "out_depth", "out_height", "out_width",
    # geometry
    "stride_d", "stride_h", "stride_w", "extent_d", "extent_h", "extent_w", "channels", "filters",
    # source: flat memory; offset tables say where positions lie in it
    "source", "source_itemsize", "source_channel_step", "source_column_step", "planes", "rows", "columns",
    "run_start", "run_stop", "fill", "scaled", "slope", "intercept",
    # weights of the voxels, for packing that weighs: a mask (0: none; its numbers side by side along the width) with its own
    # offset tables; 1 to pack the weights in place of the products; the mask's number that counts, if `labelled`; whether NaN
    # and infinity are missing, and a stored value; whether huge numbers are to be noted
    "mask", "mask_planes", "mask_rows", "mask_columns", "packs_weights", "labelled", "label", "finite", "compare", "missing",
    "look",
    # scratch: a ring of packed planes, of numbers of `itemsize` bytes
    "itemsize", "scratch", "ring", "pitch", "row_step", "plane_step", "channel_step",
    # the algorithm's own
    "weights", "parameters", "workspace",
    # accumulator of a step: (filters, depth, height, width) in these steps
    "accumulator", "acc_filter_step", "acc_plane_step", "acc_row_step", "acc_column_step",
    # output: flat memory
    "out", "out_filter_step", "out_plane_step", "out_row_step", "out_column_step", "bias", "has_bias", "streaming",
    # a division in place of a store: the sums stand in `out`, `repeat` channels of them for one of coverage; which coverage is
    # near enough to 1, the least that counts, what stands for less; where coverage is put (0: nowhere); where numbers stand, one
    # for each place, which are above 0 where too little coverage is counted (0: it is counted everywhere)
    "repeat", "near", "least", "void", "coverage", "coverage_plane_step", "coverage_row_step", "coverage_column_step",
    "inside", "inside_plane_step", "inside_row_step", "inside_column_step",
    # per step of every task: voxels the output could not hold, or means of too little; `HELD_BAD` and `HELD_MISSING` of its
    # window (0: nobody asks)
    "clipped", "flags",
    # the task at hand: its number, group, first voxel and size
    "task", "group", "plane", "row", "column", "depth", "height", "width",
    # the block at hand: a step is computed and stored in blocks of `block_height` rows while they are in the cache
    "block_height", "block_row", "block_rows",
    # the step at hand: its number over all tasks, its first output plane within the slab and its number of planes; where its
    # window's planes are packed (address of int64 offsets into scratch, in bytes); the position being packed and its place
    # in the ring
    "step_number", "step_plane", "step_planes", "window", "position", "slot", "task_position",
    # where packing last met NaN or infinity, and a voxel whose weight is not 1 (positions; below 0: nowhere)
    "last_bad", "last_missing",
)  # fmt: skip

REALS = ("fill", "slope", "intercept", "label", "missing", "near", "least", "void")

# Bits of a step's flag: NaN, infinity or huge numbers in its window; voxels whose weight is not 1.
HELD_BAD, HELD_MISSING = 1, 2

_Fields = namedtuple("_Fields", FIELDS)  # type: ignore[misc]  # a namedtuple, since Numba takes its members as constants
F: Any = _Fields(*range(len(FIELDS)))


def new_step() -> NDArray[np.int64]:
    """An empty record.

    >>> step = new_step()
    >>> set_fields(step, channels=3, fill=0.5)
    >>> int(step[F.channels]), float(step.view(float)[F.fill])
    (3, 0.5)
    """
    return np.zeros(len(FIELDS), np.int64)


def set_fields(step: NDArray[np.int64], **values: int | float) -> None:
    """Set fields by name; `REALS` as float64."""
    reals = step.view(np.float64)
    for name, value in values.items():
        (reals if name in REALS else step)[getattr(F, name)] = value
