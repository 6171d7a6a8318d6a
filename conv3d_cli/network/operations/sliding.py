"""Windows that slide over a volume: what convolutions and poolings share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import SpecError
from conv3d_cli.model.box import Span
from conv3d_cli.model.spec import Pads, Triple, VoxelTransform, output_size, pad_sizes
from conv3d_cli.network.operations.base import Operation


class Sliding(Operation):
    """A function of the voxels in a window.

    size, strides, dilation : (D, H, W)     of the window
    padding : str or Pads                   as the node tells
    pads : sequence of (before, after)      voxels outside the volume that windows reach, D, H, W
    """

    def slide(self, size: Triple, strides: int | Triple) -> Triple:
        """Read how the window moves; returns the output's sizes.

        strides : int or (D, H, W)      if the node has none
        Raises: SpecError; ShapeError if the volume has no window.
        """
        self.size = size
        self.strides = self.whole_numbers("strides", strides)
        self.dilation = self.whole_numbers("dilation_rate", 1)
        self.padding = padding_of(self)
        lengths, self.pads = [], []
        for axis in range(3):
            along = self.padding if isinstance(self.padding, str) else self.padding[axis]
            length, stride, rate = self.inputs[0][axis], self.strides[axis], self.dilation[axis]
            lengths.append(output_size(length, size[axis], stride, rate, along))
            self.pads.append(pad_sizes(length, size[axis], stride, rate, along))
        self.require_sizes(lengths)
        return lengths[0], lengths[1], lengths[2]

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        reach, length = (self.size[axis] - 1) * self.dilation[axis] + 1, self.inputs[0][axis]
        first = outputs[0] * self.strides[axis] - self.pads[axis][0]
        last = (outputs[1] - 1) * self.strides[axis] - self.pads[axis][0] + reach
        first = min(max(first, 0), length - 1)
        return first, max(min(last, length), first + 1)

    @property
    def transform(self) -> VoxelTransform:
        d, h, w = (
            (k - 1) / 2 * rate - before
            for k, rate, (before, _) in zip(self.size, self.dilation, self.pads, strict=True)
        )
        return VoxelTransform(self.strides, (d, h, w))

    def reached(self, axis: int, tap: int, outputs: Span) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The input positions of a tap of the windows of outputs, and which lie in the volume."""
        positions = np.arange(*outputs) * self.strides[axis] - self.pads[axis][0]
        positions = positions + tap * self.dilation[axis]
        return positions, (positions >= 0) & (positions < self.inputs[0][axis])


def padding_of(operation: Operation) -> str | Pads:
    """The padding of a node: a word, or three (before, after) pairs. Raises: SpecError."""
    value = operation.argument("padding", "valid")
    if isinstance(value, str):
        return operation.choice("padding", "valid", ("valid", "same", "same_lower"))
    pairs = [tuple(pair) for pair in value] if isinstance(value, (list, tuple)) else []
    if len(pairs) != 3 or any(
        len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in pair)
        for pair in pairs
    ):
        raise SpecError(
            f"{operation.where} needs valid, same or three pairs of at least 0 for padding, "
            f"received {value!r}"
        )
    first, second, third = ((int(low), int(high)) for low, high in pairs)
    return first, second, third
