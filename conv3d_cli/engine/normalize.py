"""Voxels with weights, and sums divided by the weight they hold: what a normalised convolution needs beside two plans."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import load, machine_code
from conv3d_cli.engine.step import new_step, set_fields
from conv3d_cli.engine.team import Team

# What the loops are told, as int64 `parameters`. Addresses; steps in elements; counts.
W: Any = namedtuple(
    "W", "source source_row source_column mask mask_row mask_column products weights height width finite compare lost"
)
D: Any = namedtuple("D", "sums coverage voxels channels bare")
# Their places: Numba takes the members of a namedtuple as constants.
WEIGH_AT, DIVIDE_AT = W(*range(len(W._fields))), D(*range(len(D._fields)))

# The weight of a voxel that is missing within a mask: nothing beside any other, and yet above 0, as outside it none is.
WITHIN = 1e-30
# A coverage this near to 1, in units of the last place, is whole: what rounding makes of a sum of all weights. Sums are then
# left as they are, so that a voxel far from anything missing has the bits of the plain convolution.
WHOLE_ULPS = 32


def weigh(
    block: NDArray[Any],
    mask: NDArray[Any] | None,
    out: NDArray[Any],
    *,
    scale: tuple[float, float] = (1.0, 0.0),
    finite: bool = False,
    missing: float | None = None,
    team: Team | None = None,
) -> int:
    """Values times weights, and the weights, of a block of voxels: how many voxels have another weight than 1.

    block : (d, h, w, c)        any real dtype and strides
    mask : (d, h, w) or None    weights of the arithmetic's dtype, at least 0; None: all 1
    out : (d, 2, c, h, w)       of the arithmetic's dtype: the products, then the weights; 0 and `WITHIN` where a voxel is missing
    scale : (slope, intercept)  of the values
    finite : bool               NaN and infinity are missing
    missing : float or None     the stored value that is missing
    """
    real = out.dtype
    depth, height, width, channels = block.shape
    if block.dtype == bool:
        block = block.view(np.uint8)
    if not block.dtype.isnative or (block.dtype.kind == "f" and block.dtype.itemsize == 2):
        block = block.astype(real)
    one = np.ones(1, real)
    code = machine_code("normalize", "weigh", block.dtype.name, real.name)
    load([code])
    lost = np.zeros((depth, channels), np.int64)
    itemsize = block.itemsize

    def run(_: int, task: int) -> None:
        plane, channel = divmod(task, channels)
        given = one if mask is None else mask[plane]
        row_step, column_step = (0, 0) if mask is None else (s // real.itemsize for s in given.strides)
        part = block[plane, ..., channel]
        parameters = np.array(
            W(
                source=part.ctypes.data, source_row=part.strides[0] // itemsize, source_column=part.strides[1] // itemsize,
                mask=given.ctypes.data, mask_row=row_step, mask_column=column_step,
                products=out[plane, 0, channel].ctypes.data, weights=out[plane, 1, channel].ctypes.data, height=height,
                width=width, finite=int(finite), compare=int(missing is not None), lost=0,
            ),
            np.int64,
        )  # fmt: skip
        step = new_step()
        set_fields(
            step, parameters=parameters.ctypes.data, scaled=scale != (1.0, 0.0), slope=scale[0], intercept=scale[1],
            fill=0.0 if missing is None else missing,
        )  # fmt: skip
        code(step.ctypes.data)
        lost[plane, channel] = parameters[WEIGH_AT.lost]

    if team is None:
        for task in range(depth * channels):
            run(0, task)
    else:
        team.run(depth * channels, run)
    return int(lost.sum())


def divide(sums: NDArray[Any], coverage: NDArray[Any], least: float, fill: float, team: Team) -> int:
    """Divide sums by their coverage in place: how many voxels had too little of it.

    sums : (d, h, w, c), contiguous
    coverage : (d, h, w, c), or (d, h, w, 1) for all channels; contiguous, of the same dtype; 1 where all weights are there
    least : float       the coverage below which a voxel becomes `fill`
    """
    depth, height, width, channels = sums.shape
    repeat = channels if coverage.shape[3] != channels else 1
    code = machine_code("normalize", "divide", sums.dtype.name)
    load([code])
    bare = np.zeros(depth, np.int64)

    def run(_: int, plane: int) -> None:
        voxels = height * width * (1 if repeat > 1 else channels)
        parameters = np.array(
            D(sums[plane].ctypes.data, coverage[plane].ctypes.data, voxels=voxels, channels=repeat, bare=0), np.int64
        )
        step = new_step()
        near = WHOLE_ULPS * float(np.finfo(sums.dtype).eps)
        set_fields(step, parameters=parameters.ctypes.data, slope=near, intercept=least, fill=fill)
        code(step.ctypes.data)
        bare[plane] = parameters[DIVIDE_AT.bare]

    team.run(depth, run)
    return int(bare.sum())
