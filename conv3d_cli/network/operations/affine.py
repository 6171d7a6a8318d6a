"""Operations that scale and shift every channel by numbers that are known before: a · x + b."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode


class Affine(Operation):
    """scale · x + offset for each channel; the numbers are weights `scale` and `offset`.

    scale, offset : (channels,)
    """

    weights: ClassVar[tuple[str, ...]] = ("scale", "offset")

    def resolve(self) -> Shape:
        self.scale, self.offset = self.read()
        return self.inputs[0]

    def read(self) -> tuple[Reals, Reals]:
        """Scale and offset, (channels,) each."""
        channels = self.inputs[0].channels
        return self.weight("scale", (channels,)), self.weight("offset", (channels,))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        with np.errstate(invalid="ignore", over="ignore"):
            return windows[0].box(*box) * self.scale + self.offset

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        mapping.scale(windows[0].box(*box), self.scale, self.offset, out, team)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.mapping import scale_code

        return [scale_code(real, bends=False)]

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        size = np.abs(windows[0].box(*box)) * np.abs(self.scale) + np.abs(self.offset)
        return errors[0].box(*box) * np.abs(self.scale) + rounding * size


class BatchNormalization(Affine):
    """gamma · (x - moving_mean) / √(moving_variance + epsilon) + beta, as Keras applies it."""

    attributes = ("epsilon", "center", "scale")
    weights = ("gamma", "beta", "moving_mean", "moving_variance")

    def read(self) -> tuple[Reals, Reals]:
        of_channels = (self.inputs[0].channels,)
        epsilon = self.number("epsilon", 1e-3)
        variance = self.weight("moving_variance", of_channels) + epsilon
        if variance.min() <= 0:
            raise ShapeError(f"{self.where} has a moving_variance + epsilon that is not positive")
        scale = 1 / np.sqrt(variance)
        if self.argument("scale", True):
            scale = scale * self.weight("gamma", of_channels)
        offset = -self.weight("moving_mean", of_channels) * scale
        if self.argument("center", True):
            offset = offset + self.weight("beta", of_channels)
        return scale, offset


class Normalization(Affine):
    """(x - mean) / √variance, as Keras' Normalization; `invert` undoes it."""

    attributes = ("mean", "variance", "invert")
    weights = ("mean", "variance", "count")

    def read(self) -> tuple[Reals, Reals]:
        mean, variance = self._read("mean"), self._read("variance")
        deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras' epsilon
        if self.argument("invert", False):
            return deviation, mean
        return 1 / deviation, -mean / deviation

    def _read(self, name: str) -> Reals:
        """Mean or variance, (channels,): an argument, or a weight."""
        channels, told = self.inputs[0].channels, self.node.attributes.get(name)
        if told is None:
            values = np.asarray(self.node.weights.get(name, np.nan), np.float64)
            if name not in self.node.weights:
                return self.weight(name, (channels,))
        else:
            values = np.asarray(told, np.float64)
        if (
            values.size not in (1, channels)
            or not np.isfinite(values).all()
            or (name == "variance" and values.min() < 0)
        ):
            raise ShapeError(
                f"{self.where} needs a {name} for each of {channels} channels, or one, received "
                f"shape {values.shape}"
            )
        return np.broadcast_to(values.reshape(-1), (channels,))


class Rescaling(Affine):
    """scale · x + offset with one number for all channels, or one for each."""

    attributes = ("scale", "offset")
    weights = ()

    def read(self) -> tuple[Reals, Reals]:
        return self._read("scale", 1.0), self._read("offset", 0.0)

    def _read(self, name: str, default: float) -> Reals:
        channels = self.inputs[0].channels
        try:
            values = np.asarray(self.argument(name, default), np.float64).reshape(-1)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.size not in (1, channels) or not np.isfinite(values).all():
            raise SpecError(
                f"{self.where} needs a number for {name}, or one for each of {channels} channels, "
                f"received {self.argument(name)!r:.80}"
            )
        return np.broadcast_to(values, (channels,))
