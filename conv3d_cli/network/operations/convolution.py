"""Conv3D, Conv3DTranspose and Dense: weighted sums over windows and channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import get_activation
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Operation, Reals, Shape, Window
from conv3d_cli.network.operations.sliding import Sliding, padding_of

MOST_PHASES = 4096  # of the strides of a transposed convolution


class WeightedSum(Operation):
    """An operation with a kernel, a bias and an activation.

    kernel : (kd, kh, kw, in_channels/groups, filters)      as Conv3D has it
    bias : (filters,) or None
    """

    weights = ("kernel", "bias")

    def read_weights(self, kernel: Reals) -> None:
        """Take the kernel, and read the bias and the activation."""
        self.kernel = kernel
        filters = kernel.shape[4]
        has_bias = self.argument("use_bias", "bias" in self.node.weights)
        self.bias = self.weight("bias", (filters,)) if has_bias else None
        self.activation = get_activation(self.argument("activation"))
        if self.activation.kind == "tensor":
            raise SpecError(
                f"{self.where} has the activation '{self.activation.text}', which needs the whole "
                "output at once, but volumes are streamed; use the last axis (axis=-1)"
            )
        for name, key in (("filters", 4), ("units", 4)):
            told = self.node.attributes.get(name)
            if told is not None and told != kernel.shape[key]:
                raise ShapeError(
                    f"{self.where} says {name}={told}, but its kernel has {kernel.shape[key]}"
                )

    @property
    def channels_after(self) -> int:
        """Channels of the output, after the activation. Raises: ShapeError for an odd glu."""
        filters: int = self.kernel.shape[4]
        if not self.activation.halves:
            return filters
        if filters % 2:
            raise ShapeError(
                f"{self.where}: glu halves the channels, received an odd number: {filters}"
            )
        return filters // 2

    def finish(self, sums: Reals) -> Reals:
        """Add the bias and apply the activation."""
        return self.activation(sums if self.bias is None else sums + self.bias)

    def sums(self, windows: Sequence[Window], box: Box, kernel: Reals) -> Reals:
        """The sums of a box of outputs, without bias and activation: (d, h, w, filters)."""
        raise NotImplementedError

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return self.finish(self.sums(windows, box, self.kernel))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        size = np.abs(self.kernel)
        (voxels, start), (off, _) = windows[0], errors[0]
        magnitudes = np.abs(voxels)
        finite = magnitudes[np.isfinite(magnitudes)]
        # transforms round all voxels of a tile together, by the largest of them
        total = size.sum(axis=(0, 1, 2, 3)) * float(finite.max(initial=0.0))
        spread = self.sums([Window(off, start)], box, size) + 2 * rounding * total
        sums = self.sums(windows, box, self.kernel)
        value, low, high = (self.finish(sums + shift) for shift in (0, -spread, spread))
        with np.errstate(invalid="ignore"):
            return np.maximum(abs(high - value), abs(value - low)) + rounding * abs(value)


class Convolution(WeightedSum):
    """A weighted sum over the taps of a kernel, in groups of channels."""

    groups: int
    attributes: ClassVar[tuple[str, ...]] = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "dilation_rate",
        "groups",
        "activation",
        "use_bias",
    )

    def require_kernel_size(self, size: Sequence[int]) -> None:
        """Refuse a node that tells another size than its kernel has. Raises: ShapeError."""
        if "kernel_size" in self.node.attributes:
            told = self.whole_numbers("kernel_size", size)
            if told != size:
                raise ShapeError(f"{self.where} says kernel_size={told}, but its kernel is {size}")

    def reached(self, axis: int, tap: int, outputs: Span) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The input positions that outputs get by a tap, and which of the outputs have one."""
        raise NotImplementedError

    def sums(self, windows: Sequence[Window], box: Box, kernel: Reals) -> Reals:
        source = windows[0]
        sums = np.zeros((*box.size, kernel.shape[4]))
        per_group, filters = kernel.shape[3], kernel.shape[4] // self.groups
        for tap in itertools.product(*map(range, kernel.shape[:3])):
            taken, given = [], []
            for axis, outputs in enumerate(box):
                positions, inside = self.reached(axis, tap[axis], outputs)
                taken.append(positions[inside] - source.start[axis])
                given.append(np.flatnonzero(inside))
            values = source.voxels[np.ix_(*taken)]
            for g in range(self.groups):
                own = slice(g * per_group, (g + 1) * per_group)
                to = slice(g * filters, (g + 1) * filters)
                with np.errstate(invalid="ignore", over="ignore"):
                    part = sums[..., to]
                    part[np.ix_(*given)] += values[..., own] @ kernel[tap][:, to]
        return sums


class Conv3D(Sliding, Convolution):
    """Keras' Conv3D; `padding` may also be three (before, after) pairs of zeros."""

    def resolve(self) -> Shape:
        self.groups = self.channel_groups("groups", 1)
        per_group = self.inputs[0].channels // self.groups
        self.read_weights(self.weight("kernel", (None, None, None, per_group, None)))
        depth, height, width, _, filters = self.kernel.shape
        if filters % self.groups:
            raise ShapeError(
                f"{self.where} has {self.groups} groups, which do not divide its {filters} filters"
            )
        self.require_kernel_size((depth, height, width))
        return Shape(*self.slide((depth, height, width), 1), self.channels_after)


class Conv3DTranspose(Convolution):
    """Keras' Conv3DTranspose: output strides * i + dilation_rate * k - cut gets input i by tap k.

    The kernel is (kd, kh, kw, filters/groups, in_channels), as Keras stores it. `padding` may also
    be three (before, after) pairs of outputs that are cut off, as in ONNX; `output_padding` then
    adds outputs after the last.
    Source: Keras 3, keras/src/backend/common/backend_utils.py.
    """

    attributes = (*Convolution.attributes, "output_padding")

    def resolve(self) -> Shape:
        source = self.inputs[0]
        self.strides = self.whole_numbers("strides", 1)
        self.dilation = self.whole_numbers("dilation_rate", 1)
        self.groups = self.channel_groups("groups", 1)
        if math.prod(self.strides) > MOST_PHASES:
            raise SpecError(
                f"{self.where} has strides {self.strides}; their product may be at most "
                f"{MOST_PHASES}"
            )
        kernel = self.weight("kernel", (None, None, None, None, source.channels))
        self.read_weights(_as_conv(kernel, self.groups))
        size = kernel.shape[:3]
        self.require_kernel_size(size)
        added = self.node.attributes.get("output_padding")
        more = None if added is None else self.whole_numbers("output_padding", 0, minimum=0)
        padding = padding_of(self)
        lengths, cuts = [], []
        for axis in range(3):
            extent = (size[axis] - 1) * self.dilation[axis] + 1
            along = padding if isinstance(padding, str) else padding[axis]
            cut, length = transposed_sizes(
                source[axis],
                extent,
                self.strides[axis],
                along,
                None if more is None else more[axis],
            )
            cuts.append(cut)
            lengths.append(length)
        self.require_sizes(lengths)
        self.cuts = (cuts[0], cuts[1], cuts[2])
        return Shape(lengths[0], lengths[1], lengths[2], self.channels_after)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        extent = (self.kernel.shape[axis] - 1) * self.dilation[axis] + 1
        stride, cut, length = self.strides[axis], self.cuts[axis], self.inputs[0][axis]
        first = -(-(outputs[0] + cut - extent + 1) // stride)
        last = (outputs[1] - 1 + cut) // stride + 1
        first = min(max(first, 0), length - 1)
        return first, max(min(last, length), first + 1)

    @property
    def transform(self) -> VoxelTransform:
        steps, offsets = [], []
        for axis in range(3):
            stride, cut = self.strides[axis], self.cuts[axis]
            centre = (self.kernel.shape[axis] - 1) / 2 * self.dilation[axis]
            steps.append(1 / stride)
            offsets.append((cut - centre) / stride)
        return VoxelTransform((steps[0], steps[1], steps[2]), (offsets[0], offsets[1], offsets[2]))

    def reached(self, axis: int, tap: int, outputs: Span) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        places = np.arange(*outputs) + self.cuts[axis] - tap * self.dilation[axis]
        positions, rest = places // self.strides[axis], places % self.strides[axis]
        return positions, (rest == 0) & (positions >= 0) & (positions < self.inputs[0][axis])


def _as_conv(kernel: Reals, groups: int) -> Reals:
    """(kd, kh, kw, filters/groups, in_channels) as (kd, kh, kw, in_channels/groups, filters)."""
    parts = np.split(kernel, groups, axis=4)  # the input channels of each group
    return np.ascontiguousarray(
        np.concatenate([part.transpose(0, 1, 2, 4, 3) for part in parts], axis=4)
    )


def transposed_sizes(
    length: int, extent: int, stride: int, padding: str | tuple[int, int], more: int | None
) -> tuple[int, int]:
    """Outputs that a transposed convolution cuts off before the first, and outputs in all.

    length : int        inputs along the axis
    extent : int        inputs that the dilated kernel spans
    more : int or None  `output_padding`
    Source: Keras 3, backend/common/backend_utils.py
    _convert_conv_transpose_padding_args_from_keras_to_jax.

    >>> transposed_sizes(5, 3, 2, "same", None), transposed_sizes(5, 3, 2, "valid", None)
    ((0, 10), (0, 11))
    >>> transposed_sizes(5, 4, 2, (1, 1), 1)
    (1, 11)
    """
    full = (length - 1) * stride + extent
    if not isinstance(padding, str):
        return padding[0], full - sum(padding) + (more or 0)
    if padding == "valid":
        return 0, full + (max(extent, stride) - extent if more is None else more)
    pads = stride + extent - 2 if more is None else extent + extent % 2 - 2 + more
    left = min(pads // 2 + pads % 2, extent - 1)
    return extent - 1 - left, (length - 1) * stride + 1 + pads - (extent - 1)


class Dense(WeightedSum):
    """Keras' Dense on the channels of each voxel; the kernel is (in_channels, units)."""

    attributes = ("units", "activation", "use_bias")

    def resolve(self) -> Shape:
        kernel = self.weight("kernel", (self.inputs[0].channels, None))
        self.read_weights(kernel[None, None, None])
        return Shape(*self.inputs[0].size, self.channels_after)

    def sums(self, windows: Sequence[Window], box: Box, kernel: Reals) -> Reals:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(windows[0].box(*box) @ kernel[0, 0, 0])
