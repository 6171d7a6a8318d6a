"""Operations of networks on planes of voxels: pooling, moving and scaling, on a team of threads.

Arrays are (d, h, w, c) with the channels of a voxel together. A task is a plane of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.step import AlgorithmData, Output, Source, StepRecord
from conv3d_cli.engine.team import Team

Array = NDArray[Any]


def names(name: str, fields: str) -> Any:
    """A module with the index of each field, which the loops take as constants; see `step.F`."""
    found: Any = ModuleType(name)
    vars(found).update({field: index for index, field in enumerate(fields.split())})
    found.count = len(fields.split())
    return found


POOL_AT = names(
    "POOL",
    "rows columns channels planes first_row first_column stride_h stride_w size_h size_w "
    "height width start_row start_column plane_step row_step column_step out_row_step "
    "out_column_step count_d count_all",
)
MOVE_AT = names("MOVE", "rows columns channels out_row_step out_column_step")
SCALE_AT = names("SCALE", "rows length row_step out_row_step pattern")
PATTERN = 64  # numbers that a row of scales has at least, so that loops over it are vectors


def pool_code(real: np.dtype[Any], largest: bool) -> MachineCode:
    """The loop of `pool`."""
    return machine_code("mapping", "pool", real.name, int(largest))


def move_code(real: np.dtype[Any]) -> MachineCode:
    """The loop of `move`."""
    return machine_code("mapping", "move", real.name)


def scale_code(real: np.dtype[Any], bends: bool) -> MachineCode:
    """The loop of `scale`."""
    return machine_code("mapping", "scale", real.name, int(bends))


def steps_of(array: Array) -> tuple[int, int, int]:
    """Elements from one plane, row and column of an array to the next."""
    d, h, w = (step // array.itemsize for step in array.strides[:3])
    return d, h, w


def with_channels_together(array: Array) -> Array:
    """An array (d, h, w, c) whose channels lie side by side in memory."""
    together = array.shape[3] == 1 or array.strides[3] == array.itemsize
    return array if together else np.ascontiguousarray(array)


def pool(
    voxels: Array,
    start: Sequence[int],
    whole: Sequence[int],
    first: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    out: Array,
    team: Team,
    largest: bool,
    counts_padding: bool = False,
) -> None:
    """Fill `out` with the largest voxel, or the mean, of the windows of a box of outputs.

    voxels, start : (d, h, w, c) and the position of its first voxel in the input
    whole : (D, H, W)       of the input; window positions outside are left out
    first : (D, H, W)       position of the first window's first voxel, perhaps outside
    size, strides : (D, H, W) of a window
    counts_padding : bool   means are divided by the whole window

    >>> x = np.arange(8.0, dtype=np.float32).reshape(1, 1, 8, 1)
    >>> out = np.empty((1, 1, 4, 1), np.float32)
    >>> with Team(1) as team:
    ...     pool(x, (0, 0, 0), (1, 1, 8), (0, 0, 0), (1, 1, 2), (1, 1, 2), out, team, True)
    >>> out.ravel().tolist()
    [1.0, 3.0, 5.0, 7.0]
    """
    code = pool_code(out.dtype, largest)
    load([code])
    voxels = with_channels_together(voxels)
    numbers = np.zeros(POOL_AT.count, np.int64)
    plane_step, row_step, column_step = steps_of(voxels)
    _, out_row_step, out_column_step = steps_of(out)
    for name, value in {
        "rows": out.shape[1],
        "columns": out.shape[2],
        "channels": out.shape[3],
        "first_row": first[1],
        "first_column": first[2],
        "stride_h": strides[1],
        "stride_w": strides[2],
        "size_h": size[1],
        "size_w": size[2],
        "height": whole[1],
        "width": whole[2],
        "start_row": start[1],
        "start_column": start[2],
        "plane_step": plane_step,
        "row_step": row_step,
        "column_step": column_step,
        "out_row_step": out_row_step,
        "out_column_step": out_column_step,
        "count_all": int(counts_padding),
    }.items():
        numbers[getattr(POOL_AT, name)] = value

    def plane(_: int, d: int) -> None:
        low = first[0] + d * strides[0]
        begin, end = max(low, 0), min(low + size[0], whole[0])
        own = numbers.copy()
        own[POOL_AT.planes] = end - begin
        own[POOL_AT.count_d] = size[0] if counts_padding else end - begin
        source = voxels[begin - start[0] :]
        code(StepRecord(Source(source=source), Output(out[d]), AlgorithmData(parameters=own)))

    team.run(len(out), plane)


def move(
    voxels: Array,
    planes: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int],
    fill: Array,
    out: Array,
    team: Team,
) -> None:
    """Copy voxels with all their channels: out[d, h, w] = voxels[planes[d], rows[h], columns[w]].

    planes, rows, columns : indices; where one is -1, the output is `fill`, (c,)

    >>> x = np.array([1.0, 2.0], np.float32).reshape(1, 1, 2, 1)
    >>> out = np.empty((1, 1, 5, 1), np.float32)
    >>> with Team(1) as team:
    ...     move(x, [0], [0], [0, 0, 1, 1, -1], np.full(1, 9, np.float32), out, team)
    >>> out.ravel().tolist()
    [1.0, 1.0, 2.0, 2.0, 9.0]
    """
    code = move_code(out.dtype)
    load([code])
    voxels = with_channels_together(voxels)
    _, row_step, column_step = steps_of(voxels)
    _, out_row_step, out_column_step = steps_of(out)
    tables = [
        np.array([-1 if at < 0 else at * step for at in along], np.int64)
        for along, step in ((rows, row_step), (columns, column_step))
    ]
    sizes = np.array([*out.shape[1:], out_row_step, out_column_step], np.int64)
    fill = np.ascontiguousarray(fill, out.dtype)

    def plane(_: int, d: int) -> None:
        source = voxels[planes[d] :] if planes[d] >= 0 else None
        code(
            StepRecord(
                Source(source=source, rows=tables[0], columns=tables[1]),
                Output(out[d]),
                AlgorithmData(weights=fill, parameters=sizes),
            )
        )

    team.run(len(out), plane)


def scale(
    voxels: Array, scales: Array, offsets: Array, out: Array, team: Team, bends: bool = False
) -> None:
    """Fill `out` with scales · x + offsets for each channel, computed in float64 and rounded once.

    scales, offsets : (c,)
    bends : bool    max(x, 0) + scales · min(x, 0) instead; NaN stays NaN

    >>> x = np.array([1.0, 2.0], np.float32).reshape(1, 1, 1, 2)
    >>> out = np.empty_like(x)
    >>> with Team(1) as team:
    ...     scale(x, np.array([2.0, 3.0]), np.array([0.5, 0.0]), out, team)
    >>> out.ravel().tolist()
    [2.5, 6.0]
    """
    code = scale_code(out.dtype, bends)
    load([code])
    voxels = with_channels_together(voxels)
    channels = out.shape[3]
    if steps_of(voxels)[2] != channels:
        voxels = np.ascontiguousarray(voxels)
    result = out if steps_of(out)[2] == channels else np.empty(out.shape, out.dtype)
    repeats = max(1, -(-PATTERN // channels))
    numbers = np.concatenate([np.tile(scales, repeats), np.tile(offsets, repeats)])
    sizes = np.array(
        [
            out.shape[1],
            out.shape[2] * channels,
            steps_of(voxels)[1],
            steps_of(result)[1],
            repeats * channels,
        ],
        np.int64,
    )

    def plane(_: int, d: int) -> None:
        code(
            StepRecord(
                Source(source=voxels[d]),
                Output(result[d]),
                AlgorithmData(weights=numbers.astype(np.float64), parameters=sizes),
            )
        )

    team.run(len(out), plane)
    if result is not out:
        out[...] = result
