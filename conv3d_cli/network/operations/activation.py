"""Functions of single voxels, or of the channels of each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import get_activation
from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode

SLOPES = 4.0  # no activation of the catalogue is steeper near a finite number


class Activation(Operation):
    """An activation of Keras, by its name or its serialized form; along the channels if it has an
    axis.
    """

    attributes = ("activation",)

    def resolve(self) -> Shape:
        self.activation = get_activation(self.argument("activation"))
        if self.activation.kind == "tensor":
            raise SpecError(
                f"{self.where} is {self.activation.text}, which needs more than the channels of a "
                "voxel; volumes are streamed, so use the axis of the channels"
            )
        source = self.inputs[0]
        if not self.activation.halves:
            return source
        if source.channels % 2:
            raise ShapeError(
                f"{self.where}: glu halves the channels, received an odd number: {source.channels}"
            )
        return source._replace(channels=source.channels // 2)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return self.activation(windows[0].box(*box))

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        voxels = windows[0].box(*box)

        def plane(_: int, d: int) -> None:
            if self.activation.kind == "voxel":
                out[d] = voxels[d]
                self.activation.in_place(out[d])
            else:
                out[d] = self.activation(voxels[d])

        team.run(len(out), plane)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        voxels, spread = windows[0].box(*box), errors[0].box(*box)
        if self.activation.kind == "axis":
            # each output follows all channels, and none by more than the largest change of these
            spread = np.broadcast_to(
                SLOPES * spread.max(axis=3, keepdims=True), (*box.size, self.shape.channels)
            )
            size = np.abs(self.activation(voxels))
            if self.activation.halves:
                spread = spread * (1 + np.abs(voxels).max(axis=3, keepdims=True))
            return np.asarray(spread + rounding * (1 + size))
        value, low, high = (self.activation(voxels + shift) for shift in (0, -spread, spread))
        with np.errstate(invalid="ignore"):
            spread = np.maximum(abs(high - value), abs(value - low))
            return np.asarray(spread + rounding * (1 + abs(value)))


class PReLU(Operation):
    """x if x > 0 else alpha · x, with a trained alpha for each channel or one for all."""

    weights = ("alpha",)

    def resolve(self) -> Shape:
        channels = self.inputs[0].channels
        values = self.node.weights.get("alpha")
        if values is None:
            self.weight("alpha", (1, 1, 1, channels))
        alpha = np.asarray(values, np.float64)
        if alpha.shape[:-1].count(1) != alpha.ndim - 1 or alpha.shape[-1] not in (1, channels):
            raise ShapeError(
                f"{self.where} has a slope for every voxel ({'x'.join(map(str, alpha.shape))}), "
                "which fits volumes of one size only; it is taken with shared_axes=[1, 2, 3]"
            )
        if not np.isfinite(alpha).all():
            raise ShapeError(f"{self.where} has NaN or infinite weights 'alpha'")
        self.alpha = np.broadcast_to(alpha.reshape(-1), (channels,))
        return self.inputs[0]

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return bent(windows[0].box(*box), self.alpha)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        mapping.scale(windows[0].box(*box), self.alpha, np.zeros_like(self.alpha), out, team, True)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.mapping import scale_code

        return [scale_code(real, bends=True)]

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        steepest = np.maximum(1, np.abs(self.alpha))
        return (errors[0].box(*box) + rounding * np.abs(windows[0].box(*box))) * steepest


def bent(voxels: Array, alpha: Reals) -> Reals:
    """max(x, 0) + alpha · min(x, 0): NaN stays NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.maximum(voxels, 0) + alpha * np.minimum(voxels, 0))


class LayerNormalization(Operation):
    """(x - mean) / √(variance + epsilon) · gamma + beta, over the channels of each voxel."""

    attributes = ("epsilon", "center", "scale")
    weights = ("gamma", "beta")

    def resolve(self) -> Shape:
        of_channels = (self.inputs[0].channels,)
        self.epsilon = self.number("epsilon", 1e-3)
        self.gamma = (
            self.weight("gamma", of_channels)
            if self.argument("scale", True)
            else np.ones(of_channels)
        )
        self.beta = (
            self.weight("beta", of_channels)
            if self.argument("center", True)
            else np.zeros(of_channels)
        )
        return self.inputs[0]

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        voxels, start = windows[0].box(*box), box.start

        def plane(_: int, d: int) -> None:
            own = Window(voxels[d : d + 1].astype(np.float64), start)
            out[d] = self.define([own], Box.at(start, own.voxels.shape[:3]))[0]

        team.run(len(out), plane)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].box(*box)
        with np.errstate(invalid="ignore", over="ignore"):
            centred = voxels - voxels.mean(axis=3, keepdims=True)
            variance = np.square(centred).mean(axis=3, keepdims=True)
            return np.asarray(centred / np.sqrt(variance + self.epsilon) * self.gamma + self.beta)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        voxels, spread = windows[0].box(*box), errors[0].box(*box).max(axis=3, keepdims=True)
        deviation = np.sqrt(voxels.var(axis=3, keepdims=True) + self.epsilon)
        off = (spread + rounding * np.abs(voxels).max(axis=3, keepdims=True)) / deviation
        largest = 1 + np.abs(voxels - voxels.mean(axis=3, keepdims=True)) / deviation
        size = np.abs(self.define(windows, box))
        bound = 4 * off * largest**2 * np.abs(self.gamma)
        return np.asarray(bound + rounding * (size + np.abs(self.beta)))
