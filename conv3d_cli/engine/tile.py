"""Tiles: what every algorithm that works on packed tiles shares, and what an algorithm is.

A tile is a box of output voxels of one volume and one group. Its input, with the halo, is packed into scratch memory
(`packing.py`), the algorithm sums into an accumulator, the epilogue stores it. `TileLayout` says how large the box is and
where a tap lies in the scratch. Sizes depend on the problem alone, never on threads or slabs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.model.spec import ConvProblem


class Tile(NamedTuple):
    """Output voxels along depth, height and width."""

    depth: int
    height: int
    width: int


@dataclass(frozen=True)
class TileLayout:
    """The scratch memory of a tile: (channel, depth, height, row), a row split by stride phase (see `packing.py`).

    tile : Tile                 the largest box; tiles at the volume's edge use a part of it
    depth, height : int         packed planes and rows
    pitch : int                 numbers from one stride phase of a row to the next
    row_step, plane_step, channel_step : int    in numbers
    """

    tile: Tile
    depth: int
    height: int
    pitch: int
    row_step: int
    channels: int
    filters: int

    @property
    def plane_step(self) -> int:
        return self.height * self.row_step

    @property
    def channel_step(self) -> int:
        return self.depth * self.plane_step

    @property
    def scratch_size(self) -> int:
        """Numbers in the scratch buffer."""
        return self.channels * self.channel_step

    @property
    def accumulator_size(self) -> int:
        """Numbers in the accumulator."""
        return self.filters * self.tile.depth * self.tile.height * self.tile.width

    def tap_offsets(self, problem: ConvProblem) -> NDArray[np.int64]:
        """Where each tap of output voxel (0, 0, 0) lies in the scratch, in (channel, kd, kh, kw) order: (taps,)."""
        channel, kd, kh, kw = np.indices((self.channels, *problem.kernel_size)).reshape(4, -1)
        along_width = kw * problem.dilation_rate[2]
        stride = problem.strides[2]
        offsets = (
            channel * self.channel_step
            + kd * problem.dilation_rate[0] * self.plane_step
            + kh * problem.dilation_rate[1] * self.row_step
            + along_width % stride * self.pitch
            + along_width // stride
        )
        return np.ascontiguousarray(offsets, dtype=np.int64)


# 16 x 16 rows: a tile of a quarter of them (8 x 8) spends a third of its time on halos and on being handed out.
LARGEST_TILE = Tile(16, 16, 512)


def plan_tile(problem: ConvProblem, dtype: np.dtype[Any], budget: int, largest: Tile = LARGEST_TILE) -> TileLayout:
    """The largest tile from `largest` down whose scratch and accumulator fit `budget` bytes.

    Depth and height are halved down to 8, then the width (which the vectors run along) down to 128, then all of them as
    far as needed; a single voxel of many channels may still exceed the budget.
    """
    tile = Tile(*(min(size, wish) for size, wish in zip(problem.out_size, largest, strict=True)))
    while True:
        layout = _layout(problem, tile)
        if (layout.scratch_size + layout.accumulator_size) * dtype.itemsize <= budget:
            return layout
        rows, width = max(tile[:2]), tile.width
        if width > 128 and rows <= 8:
            tile = tile._replace(width=-(-width // 2))
        elif rows > 1:
            axis = "depth" if tile.depth >= tile.height else "height"
            tile = tile._replace(**{axis: -(-rows // 2)})
        elif width > 16:
            tile = tile._replace(width=-(-width // 2))
        else:
            return layout


def _layout(problem: ConvProblem, tile: Tile) -> TileLayout:
    packed = [(n - 1) * s + e for n, s, e in zip(tile, problem.strides, problem.extent, strict=True)]
    stride = problem.strides[2]
    # A multiple of 16 numbers keeps rows on cache lines; the odd 16 keeps rows from sharing cache sets.
    pitch = math.ceil(packed[2] / stride / 16) * 16
    row_step = stride * pitch
    if row_step % 256 == 0:
        row_step += 16
    return TileLayout(
        tile, packed[0], packed[1], pitch, row_step, problem.channels_per_group, problem.filters_per_group
    )


class PreparedAlgorithm(Protocol):
    """An algorithm made ready for one problem and its weights; shared by all threads, changed by none."""

    layout: TileLayout

    def new_workspace(self) -> Any:
        """Memory of one thread's own, handed to `convolve_tile`."""

    def convolve_tile(self, group: int, scratch: NDArray[Any], accumulator: NDArray[Any], workspace: Any) -> None:
        """Sum one group over a packed tile into accumulator (filters of the group, d, h, w)."""


class Algorithm(NamedTuple):
    """One way to compute a convolution.

    name : str              for `--algorithm` and `explain`
    summary : str           one line
    reject : callable       (problem, weights) -> why it cannot run this, or None
    prepare : callable      (problem, weights, dtype) -> PreparedAlgorithm
    seconds : callable      (problem, weights, threads) -> predicted time
    """

    name: str
    summary: str
    reject: Callable[[ConvProblem, NDArray[Any]], str | None]
    prepare: Callable[[ConvProblem, NDArray[Any], np.dtype[Any]], PreparedAlgorithm]
    seconds: Callable[[ConvProblem, NDArray[Any], int], float]
