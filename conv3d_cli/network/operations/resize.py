"""Resize: other sizes by the nearest voxel or between neighbours, as ONNX defines it.

Source: ONNX, onnx/defs/tensor/defs.cc and docs/Operators.md, Resize.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Array, Reals, Shape, Window
from conv3d_cli.network.operations.planes import PlaneByPlane

LONGEST = 1 << 20  # voxels along an axis, each of which has its neighbours listed
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn",
)  # fmt: skip
ROUNDING = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


class _Neighbours(NamedTuple):
    """What each output along an axis takes: voxel `low`, and `weight` of the way to `high`."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: Reals


class Resize(PlaneByPlane):
    """Other sizes: by factors `scales` (D, H, W), by `sizes` (D, H, W), or those of a second input.

    mode : "nearest" or "linear"
    coordinates : one of `COORDINATES`, the map from outputs to positions in the input
    rounding : one of `ROUNDING`, of positions to the nearest voxel

    Positions are float32 where voxels are chosen, as runtimes have them, so that ties fall alike.
    """

    arity = (1, 2)
    attributes = ("scales", "sizes", "mode", "coordinates", "rounding")

    def resolve(self) -> Shape:
        source = self.inputs[0]
        self.mode = self.choice("mode", "nearest", ("nearest", "linear"))
        self.coordinates = self.choice("coordinates", "half_pixel", COORDINATES)
        self.rounding = self.choice("rounding", "round_prefer_floor", ROUNDING)
        given = self.argument("scales")
        if len(self.inputs) == 2:
            sizes: Sequence[int] = self.inputs[1].size
        elif given is None:
            sizes = self.whole_numbers("sizes", None)
        if len(self.inputs) == 2 or given is None:
            self.scales = [new / old for new, old in zip(sizes, source.size, strict=True)]
        else:
            self.scales = self._factors(given)
            sizes = [
                int(np.float32(n) * np.float32(by))
                for n, by in zip(source.size, self.scales, strict=True)
            ]
            self.require_sizes(sizes)
            ties = self.coordinates == "half_pixel_symmetric" and self.mode == "nearest"
            if (self.coordinates == "align_corners" or ties) and any(
                abs(n * by - new) > 1e-4
                for n, by, new in zip(source.size, self.scales, sizes, strict=True)
            ):
                what = "has half_pixel_symmetric ties" if ties else "aligns corners"
                raise ShapeError(
                    f"{self.where} {what}, and its scales {tuple(self.scales)} make no "
                    f"whole sizes of a volume of {source}, which runtimes round in other ways; "
                    "give sizes that they make whole"
                )
        if max(sizes) > LONGEST:
            raise ShapeError(
                f"{self.where} makes {max(sizes):,} voxels of {source}; an axis has at most "
                f"{LONGEST:,}"
            )
        self.neighbours = [
            self._along(length, new, scale)
            for length, new, scale in zip(source.size, sizes, self.scales, strict=True)
        ]
        return Shape(sizes[0], sizes[1], sizes[2], source.channels)

    def _factors(self, given: object) -> list[float]:
        values = list(given) if isinstance(given, (list, tuple)) else []
        if len(values) != 3 or not all(
            type(v) in (int, float) and math.isfinite(v) and 0 < v < 2**31 for v in values
        ):
            raise SpecError(
                f"{self.where} needs three positive numbers for scales, received {given!r:.80}"
            )
        return values

    def _along(self, length: int, new: int, scale: float) -> _Neighbours:
        """What the outputs along an axis take."""
        real = np.dtype(np.float32 if self.mode == "nearest" else np.float64).type
        outputs: Array = np.arange(new).astype(real)
        by, half, last = real(scale), real(0.5), real(length - 1)
        at: Array
        if self.coordinates == "align_corners":
            at = outputs * last / real(max(new - 1, 1))
        elif self.coordinates == "asymmetric":
            at = outputs / by
        elif self.coordinates == "tf_half_pixel_for_nn":
            at = (outputs + half) / by
        elif self.coordinates == "pytorch_half_pixel" and new == 1:
            at = np.zeros(1, real)
        else:
            at = (outputs + half) / by - half
        if self.coordinates == "half_pixel_symmetric":
            at = at + real(length) * half * (1 - real(new) / (by * real(length)))
        if self.mode == "linear":
            at = np.clip(at, 0, length - 1)
            low = np.floor(at).astype(np.int64)
            return _Neighbours(low, np.minimum(low + 1, length - 1), at - low)
        rounded = {
            "round_prefer_floor": lambda: np.ceil(at - half),
            "round_prefer_ceil": lambda: np.floor(at + half),
            "floor": lambda: np.floor(at),
            "ceil": lambda: np.ceil(at),
        }[self.rounding]()
        low = np.clip(rounded, 0, length - 1).astype(np.int64)
        return _Neighbours(low, low, np.zeros(new))

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        if number == 1:  # only its size counts
            length = self.inputs[1][axis]
            return min(outputs[0], length - 1), min(outputs[1], length)
        found = self.neighbours[axis]
        return int(found.low[outputs[0]]), int(found.high[outputs[1] - 1]) + 1

    @property
    def transform(self) -> VoxelTransform:
        steps, offsets = [], []
        for length, new, scale in zip(
            self.inputs[0].size, self.shape.size, self.scales, strict=True
        ):
            step, offset = 1 / scale, (1 / scale - 1) / 2
            if self.coordinates == "align_corners":
                step, offset = ((length - 1) / (new - 1) if new > 1 else 1.0), 0.0
                step = step or 1.0  # one voxel, repeated
            elif self.coordinates == "asymmetric" and self.mode == "linear":
                offset = 0.0
            steps.append(step)
            offsets.append(offset)
        return VoxelTransform((steps[0], steps[1], steps[2]), (offsets[0], offsets[1], offsets[2]))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        result: Array = windows[0].voxels
        for axis, (span, start) in enumerate(zip(box, windows[0].start, strict=True)):
            low, high, weight = self.neighbours[axis]
            first = np.take(result, low[slice(*span)] - start, axis=axis)
            weight = weight[slice(*span)]
            if weight.any():
                shape = [1] * 4
                shape[axis] = len(weight)
                by = weight.astype(result.dtype).reshape(shape)
                second = np.take(result, high[slice(*span)] - start, axis=axis)
                # a voxel that has no weight may be infinite
                with np.errstate(invalid="ignore", over="ignore"):
                    between = first * (1 - by) + second * by
                first = np.where(by == 0, first, between)
            result = first
        return np.asarray(result)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        voxels, start = windows[0]
        sizes = self.define([Window(np.abs(voxels), start)], box)
        return self.define(errors, box) + 3 * rounding * sizes
