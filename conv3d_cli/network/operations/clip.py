"""Clip: limits of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conv3d_cli.errors import SpecError
from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Reals, Shape, Window
from conv3d_cli.network.operations.planes import PlaneByPlane


class Clip(PlaneByPlane):
    """min(max(x, least), largest); each a number or one for each channel. NaN stays NaN.

    Where `least` is above `largest`, the result is `largest`.
    """

    attributes = ("least", "largest")

    def resolve(self) -> Shape:
        self.least = self._limit("least", -np.inf)
        self.largest = self._limit("largest", np.inf)
        return self.inputs[0]

    def _limit(self, name: str, default: float) -> Reals:
        """(channels,)"""
        channels = self.inputs[0].channels
        try:
            values = np.asarray(self.argument(name, default), np.float64).reshape(-1)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.size not in (1, channels) or np.isnan(values).any():
            raise SpecError(
                f"{self.where} needs a number for {name}, or one for each of {channels} channels, "
                f"received {self.argument(name)!r:.80}"
            )
        return np.broadcast_to(values, (channels,))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].box(*box)
        least, largest = (limit.astype(voxels.dtype) for limit in (self.least, self.largest))
        return np.asarray(np.minimum(np.maximum(voxels, least), largest))

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return errors[0].box(*box) + rounding * np.abs(self.define(windows, box))
