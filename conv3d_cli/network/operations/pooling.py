"""Pooling: the largest or the mean voxel of a window, or of the whole volume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window
from conv3d_cli.network.operations.planes import PlaneByPlane
from conv3d_cli.network.operations.sliding import Sliding

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode


class Pooling3D(PlaneByPlane, Sliding):
    """A function of the voxels in a window, for each channel.

    As in ONNX, `padding` may also be three (before, after) pairs, and windows may have gaps, of
    `dilation_rate`; padded voxels never count.
    """

    attributes: ClassVar[tuple[str, ...]] = ("pool_size", "strides", "padding", "dilation_rate")

    def resolve(self) -> Shape:
        size = self.whole_numbers("pool_size", 2)
        return Shape(*self.slide(size, size), self.inputs[0].channels)

    @property
    def has_gaps(self) -> bool:
        """Whether windows leave voxels out; such windows have no compiled function."""
        return max(self.dilation) > 1

    def taps(self, window: Window, box: Box, outside: float) -> list[Array]:
        """For each position in the window, the voxel there of every output: (d, h, w, c) each.

        outside : float     what padded positions hold
        """
        found = []
        for tap in itertools.product(*map(range, self.size)):
            taken, inside = [], []
            for axis, outputs in enumerate(box):
                positions, here = self.reached(axis, tap[axis], outputs)
                inside.append(here)
                taken.append(np.where(here, positions - window.start[axis], 0))
            values = window.voxels[np.ix_(*taken)]
            mask = inside[0][:, None, None] & inside[1][:, None] & inside[2]
            found.append(np.where(mask[..., None], values, outside))
        return found

    largest: ClassVar[bool]

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        if self.has_gaps:
            super().compute(windows, box, out, team)
            return
        first = [
            at * stride - before
            for at, stride, (before, _) in zip(box.start, self.strides, self.pads, strict=True)
        ]
        voxels, start = windows[0]
        mapping.pool(
            voxels,
            start,
            self.inputs[0].size,
            first,
            self.size,
            self.strides,
            out,
            team,
            self.largest,
            bool(self.argument("count_include_pad", False)),
        )

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.mapping import pool_code

        return [] if self.has_gaps else [pool_code(real, self.largest)]


class MaxPooling3D(Pooling3D):
    """The largest voxel of each window; NaN if one of them is NaN."""

    largest = True

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.asarray(np.max(self.taps(windows[0], box, -np.inf), axis=0))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return np.asarray(np.max(self.taps(errors[0], box, 0.0), axis=0))


class AveragePooling3D(Pooling3D):
    """The mean of the voxels of each window that lie in the volume.

    `count_include_pad` divides by the whole window instead, as ONNX may.
    """

    attributes: ClassVar[tuple[str, ...]] = (*Pooling3D.attributes, "count_include_pad")
    largest = False

    def counts(self, axis: int, outputs: Span) -> Array:
        """The number of voxels in the windows of outputs along an axis."""
        if self.argument("count_include_pad", False):
            return np.full(outputs[1] - outputs[0], self.size[axis])
        inside = [self.reached(axis, tap, outputs)[1] for tap in range(self.size[axis])]
        return np.asarray(np.maximum(np.sum(inside, axis=0), 1))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        depth, height, width = (self.counts(axis, span) for axis, span in enumerate(box))
        count = depth[:, None, None] * height[:, None] * width
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(np.sum(self.taps(windows[0], box, 0.0), axis=0) / count[..., None])

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        size = Window(np.abs(windows[0].voxels), windows[0].start)
        return self.define(errors, box) + rounding * self.define([size], box)


class GlobalPooling3D(Operation):
    """A function of all voxels of a channel; the result is a volume of one voxel."""

    attributes = ("keepdims",)
    needs_whole = True

    def resolve(self) -> Shape:
        return Shape(1, 1, 1, self.inputs[0].channels)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return 0, self.inputs[0][axis]

    @property
    def transform(self) -> VoxelTransform:
        depth, height, width, _ = self.inputs[0]
        return VoxelTransform(
            (depth, height, width), ((depth - 1) / 2, (height - 1) / 2, (width - 1) / 2)
        )


class GlobalMaxPooling3D(GlobalPooling3D):
    """The largest voxel of each channel; NaN if one of them is NaN."""

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.asarray(np.max(windows[0].voxels, axis=(0, 1, 2), keepdims=True))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return np.asarray(np.max(errors[0].voxels, axis=(0, 1, 2), keepdims=True))

    def begin(self) -> Any:
        return np.full(self.shape.channels, -np.inf)

    def gather(self, gathered: Any, planes: Array, team: Team) -> Any:
        return np.maximum(gathered, planes.max(axis=(0, 1, 2)))

    def result(self, gathered: Any) -> Array:
        return np.asarray(gathered)[None, None, None]


class GlobalAveragePooling3D(GlobalPooling3D):
    """The mean voxel of each channel."""

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(np.mean(windows[0].voxels, axis=(0, 1, 2), keepdims=True))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        size = Window(np.abs(windows[0].voxels), windows[0].start)
        return self.define(errors, box) + rounding * self.define([size], box)

    def begin(self) -> Any:
        return np.zeros(self.shape.channels)

    def gather(self, gathered: Any, planes: Array, team: Team) -> Any:
        sums = np.empty((len(planes), self.shape.channels))

        def plane(_: int, d: int) -> None:
            sums[d] = planes[d].sum(axis=(0, 1), dtype=np.float64)

        team.run(len(planes), plane)
        for one in sums:  # in order, so that the sum does not depend on how many come at once
            gathered = gathered + one
        return gathered

    def result(self, gathered: Any) -> Array:
        return np.asarray(gathered / math.prod(self.inputs[0].size))[None, None, None]
