"""Pooling of windows with gaps, as ONNX has it: every `dilation_rate`-th voxel along each axis."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform, output_size, pad_sizes
from conv3d_cli.network.operations.base import Array, Shape, Window
from conv3d_cli.network.operations.convolution import padding_of
from conv3d_cli.network.operations.planes import PlaneByPlane
from conv3d_cli.network.operations.pooling import AveragePooling3D, MaxPooling3D, Pooling3D

if TYPE_CHECKING:
    from conv3d_cli.engine.machine_code import MachineCode


class Dilated(PlaneByPlane, Pooling3D):
    """A pooling of windows with gaps."""

    attributes: ClassVar[tuple[str, ...]] = ("pool_size", "strides", "padding", "dilation_rate")

    def resolve(self) -> Shape:
        source = self.inputs[0]
        self.size = self.whole_numbers("pool_size", 2)
        self.strides = self.whole_numbers("strides", self.size)
        self.rates = self.whole_numbers("dilation_rate", 1)
        padding = padding_of(self)
        lengths, pads = [], []
        for axis in range(3):
            along = padding if isinstance(padding, str) else padding[axis]
            numbers = source[axis], self.size[axis], self.strides[axis], self.rates[axis], along
            lengths.append(output_size(*numbers))
            pads.append(pad_sizes(*numbers)[0])
        self.require_sizes(lengths)
        self.before = (pads[0], pads[1], pads[2])
        return Shape(lengths[0], lengths[1], lengths[2], source.channels)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        length, reach = self.inputs[0][axis], (self.size[axis] - 1) * self.rates[axis] + 1
        first = outputs[0] * self.strides[axis] - self.before[axis]
        last = (outputs[1] - 1) * self.strides[axis] - self.before[axis] + reach
        first = min(max(first, 0), length - 1)
        return first, max(min(last, length), first + 1)

    @property
    def transform(self) -> VoxelTransform:
        d, h, w = (
            (k - 1) / 2 * rate - before
            for k, rate, before in zip(self.size, self.rates, self.before, strict=True)
        )
        return VoxelTransform(self.strides, (d, h, w))

    def positions(self, axis: int, tap: int, outputs: Span) -> Array:
        """The input positions of a tap of the windows of outputs; outside, too."""
        starts = np.arange(*outputs) * self.strides[axis] - self.before[axis]
        return np.asarray(starts + tap * self.rates[axis])

    def taps(self, window: Window, box: Box, outside: float) -> list[Array]:
        found = []
        for tap in itertools.product(*map(range, self.size)):
            taken, inside = [], []
            for axis, span in enumerate(box):
                positions = self.positions(axis, tap[axis], span)
                here = (positions >= 0) & (positions < self.inputs[0][axis])
                inside.append(here)
                taken.append(np.where(here, positions - window.start[axis], 0))
            mask = inside[0][:, None, None] & inside[1][:, None] & inside[2]
            found.append(np.where(mask[..., None], window.voxels[np.ix_(*taken)], outside))
        return found

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        return []


class DilatedMaxPooling3D(Dilated, MaxPooling3D):
    """The largest voxel of each window; NaN if one of them is NaN."""


class DilatedAveragePooling3D(Dilated, AveragePooling3D):
    """The mean of the voxels of each window that lie in the volume.

    `count_include_pad` divides by the whole window instead.
    """

    attributes: ClassVar[tuple[str, ...]] = (*Dilated.attributes, "count_include_pad")

    def counts(self, axis: int, outputs: Span) -> Array:
        """The number of voxels in the windows of outputs along an axis."""
        if self.argument("count_include_pad", False):
            return np.full(outputs[1] - outputs[0], self.size[axis])
        inside = [
            (at >= 0) & (at < self.inputs[0][axis])
            for at in (self.positions(axis, tap, outputs) for tap in range(self.size[axis]))
        ]
        return np.asarray(np.maximum(np.sum(inside, axis=0), 1))
