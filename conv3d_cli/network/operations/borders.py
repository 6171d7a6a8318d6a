"""Padding by the volume's own voxels: mirrored, or those of the border repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conv3d_cli.errors import ShapeError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.network.operations.base import Array, Reals, Window
from conv3d_cli.network.operations.planes import PlaneByPlane
from conv3d_cli.network.operations.reshaping import Shift


class BorderPadding3D(PlaneByPlane, Shift):
    """Add voxels around a volume as `mode` says.

    mode : "edge" (abc -> aabcc) or "reflect" (abc -> babcb; of fewer voxels than the volume has)
    """

    attributes = ("padding", "mode")

    def added(self) -> list[tuple[int, int]]:
        pairs = self.pairs("padding")
        self.mode = self.choice("mode", "edge", ("edge", "reflect"))
        for pair, length in zip(pairs, self.inputs[0].size, strict=True):
            if self.mode == "reflect" and max(pair) >= length:
                raise ShapeError(
                    f"{self.where} mirrors {max(pair)} voxels of a volume of "
                    f"{self.inputs[0]}, which takes more voxels than that; give a larger volume or "
                    "patch"
                )
        return pairs

    def sources(self, axis: int, outputs: Span) -> Array:
        """The input position of each output, along an axis."""
        length = self.inputs[0][axis]
        positions = np.arange(*outputs) - self.before[axis]
        if self.mode == "edge" or length == 1:
            return np.clip(positions, 0, length - 1)
        positions = np.abs(positions)
        return np.asarray(length - 1 - np.abs(length - 1 - positions))

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        # a mirrored border goes back, so what these or later outputs take begins with their least
        later = self.sources(axis, (outputs[0], self.shape[axis]))
        earlier = self.sources(axis, (0, outputs[1]))
        return int(later.min()), int(earlier.max()) + 1

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        window = windows[0]
        taken = (
            self.sources(axis, span) - start
            for axis, (span, start) in enumerate(zip(box, window.start, strict=True))
        )
        return np.asarray(window.voxels[np.ix_(*taken)])

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return self.define(errors, box)
