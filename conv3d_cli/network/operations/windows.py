"""Operations on the voxels in a window around each output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import Boundary, VoxelTransform
from conv3d_cli.network.operations.base import Operation, Reals, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import moments


class Beyond(NamedTuple):
    """Voxels outside the volume: their value, and whether they count there along D, H, W."""

    value: float
    counts: tuple[bool, bool, bool]


class InWindows(Operation):
    """An operation whose outputs see the voxels in a window, of the size of the volume.

    boundary : Boundary     what lies outside the volume
    window : (D, H, W)      weights, at least 0; if it has no voxel in its centre, outputs lie half
                            a voxel further on
    """

    weights = ("window",)

    def read_window(self) -> None:
        """Read the node's window and boundary. Raises: SpecError, ShapeError."""
        self.boundary = Boundary.parse(self.argument("boundary", "symmetric"))
        self.window = self.weight("window", (None, None, None))
        if (self.window < 0).any() or not self.window.any():
            raise SpecError(f"{self.where} needs weights of at least 0, not all of them 0")
        self.before = [(length - 1) // 2 for length in self.window.shape]

    @cached_property
    def sources(self) -> list[NDArray[np.int64]]:
        """Along each axis, the voxel at every position that windows span; -1 outside."""
        found = []
        for axis in range(3):
            length = self.inputs[0][axis]
            first = -self.before[axis]
            last = first + length + self.window.shape[axis] - 1
            at = [self.boundary.source_index(position, length) for position in range(first, last)]
            found.append(np.array(at, np.int64))
        return found

    @cached_property
    def _reach(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Along each axis: the least voxel at each position or later, the largest until there."""
        found = []
        for at, length in zip(self.sources, self.inputs[0].size, strict=True):
            least = np.minimum.accumulate(np.where(at < 0, length - 1, at)[::-1])[::-1]
            found.append((least, np.maximum.accumulate(np.maximum(at, 0))))
        return found

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        # what is mirrored goes back, so that these or later outputs begin with their least voxel
        least, most = self._reach[axis]
        last = outputs[1] + self.window.shape[axis] - 2
        return int(least[outputs[0]]), int(most[last]) + 1

    @property
    def transform(self) -> VoxelTransform:
        d, h, w = (
            (length - 1) / 2 - before
            for length, before in zip(self.window.shape, self.before, strict=True)
        )
        return VoxelTransform(offset=(d, h, w))

    def positions(self, box: Box, start: Sequence[int]) -> list[NDArray[np.int64]]:
        """The voxel at each position of a box's windows, counted from `start`; -1 outside."""
        found = []
        for axis, (first, last) in enumerate(box):
            at = self.sources[axis][first : last + self.window.shape[axis] - 1]
            found.append(np.where(at < 0, -1, at - start[axis]))
        return found

    @cached_property
    def beyond(self) -> Beyond:
        """Voxels outside the volume."""
        mode = self.boundary.mode
        value = self.boundary.value if mode == "constant" else 0.0
        some = mode != "renormalize"
        return Beyond(value, (not self.boundary.renormalizes, some, some))

    def gathered(
        self, window: Window, box: Box, place: tuple[int, ...], beyond: Sequence[float]
    ) -> Reals:
        """The numbers (n, c) of an input in the window of an output.

        beyond : three floats       the numbers outside the volume along D, H, W
        """
        places = [
            at[p : p + length]
            for at, p, length in zip(
                self.positions(box, (0, 0, 0)), place, self.window.shape, strict=True
            )
        ]
        taken = (
            np.where(at < 0, 0, at - start) for at, start in zip(places, window.start, strict=True)
        )
        found = np.broadcast_to(
            window.voxels[np.ix_(*taken)], (*self.window.shape, self.shape.channels)
        ).astype(np.float64)
        for axis in (2, 1, 0):  # depth last: what lies outside there is so along all axes
            np.moveaxis(found, axis, 0)[places[axis] < 0] = beyond[axis]
        return found.reshape(-1, self.shape.channels)

    @cached_property
    def passes(self) -> moments.Window:
        """The window, divided into passes of the engine."""
        from conv3d_cli.engine.moments import Window

        return Window.of(self.window)
