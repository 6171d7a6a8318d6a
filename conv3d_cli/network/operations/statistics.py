"""Normalization by the statistics of the whole volume: of groups of channels, or of each channel.

It is run as `Statistics`, which reads the whole volume, and `Normalize`, which reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode


GATHERING = "/statistics"  # what the name of a `Statistics` adds to that of its node


class GroupNormalization(Operation):
    """(x - mean) / √(variance + epsilon) · gamma + beta, over each group's channels and all voxels.

    `groups` of -1: each channel is a group, as in instance normalization.
    """

    attributes = ("groups", "epsilon", "center", "scale")
    needs_whole = True
    weights = ("gamma", "beta")

    def resolve(self) -> Shape:
        channels = self.inputs[0].channels
        each = self.argument("groups", 32) == -1
        self.groups = channels if each else self.channel_groups("groups", 32)
        self.epsilon = self.number("epsilon", 1e-3)
        of_channels = (channels,)
        self.gamma = (
            self.weight("gamma", of_channels) if self.argument("scale", True) else np.ones(channels)
        )
        self.beta = (
            self.weight("beta", of_channels)
            if self.argument("center", True)
            else np.zeros(channels)
        )
        return self.inputs[0]

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return 0, self.inputs[0][axis]

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].voxels
        grouped = voxels.reshape(*voxels.shape[:3], self.groups, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = grouped.mean(axis=(0, 1, 2, 4))
            variance = np.square(grouped - mean[:, None]).mean(axis=(0, 1, 2, 4))
            each = voxels.shape[3] // self.groups
            mean, variance = np.repeat(mean, each), np.repeat(variance, each)
            own = windows[0].box(*box) - mean
            return np.asarray(own / np.sqrt(variance + self.epsilon) * self.gamma + self.beta)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        voxels = windows[0].voxels
        grouped = voxels.reshape(*voxels.shape[:3], self.groups, -1)
        deviation = np.repeat(
            np.sqrt(grouped.var(axis=(0, 1, 2, 4)) + self.epsilon),
            voxels.shape[3] // self.groups,
        )
        spread = errors[0].voxels.max() + rounding * np.abs(voxels).max()
        size = np.abs(self.define(windows, box)) + np.abs(self.beta)
        bound = spread / deviation * 2 * (np.abs(self.gamma) + size)
        return np.asarray(bound + rounding * size)


class Statistics(Operation):
    """Mean and variance of groups of channels over all voxels: (1, 1, 1, 2 · groups)."""

    attributes = ("groups",)
    needs_whole = True

    def resolve(self) -> Shape:
        self.groups = int(self.argument("groups"))
        return Shape(1, 1, 1, 2 * self.groups)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return 0, self.inputs[0][axis]

    @property
    def transform(self) -> VoxelTransform:
        raise NotImplementedError("its node's own transform counts")

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].voxels
        grouped = voxels.reshape(*voxels.shape[:3], self.groups, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = grouped.mean(axis=(0, 1, 2, 4))
            variance = np.square(grouped - mean[:, None]).mean(axis=(0, 1, 2, 4))
        return np.concatenate([mean, variance])[None, None, None]

    def begin(self) -> Any:
        return 0, np.zeros(self.groups), np.zeros(self.groups)

    def gather(self, gathered: Any, planes: Array, team: Team) -> Any:
        """Number of voxels, mean, and sum of squares around the mean, so far.

        Source: T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise algorithm for
        computing sample variances, Stanford STAN-CS-79-773.
        """
        found: list[Any] = [None] * len(planes)

        def plane(_: int, d: int) -> None:
            grouped = planes[d].reshape(-1, self.groups, planes.shape[3] // self.groups)
            with np.errstate(invalid="ignore", over="ignore"):
                mean = grouped.mean(axis=(0, 2), dtype=np.float64)
                spread = np.square(grouped - mean[:, None]).sum(axis=(0, 2), dtype=np.float64)
            found[d] = grouped.shape[0] * grouped.shape[2], mean, spread

        team.run(len(planes), plane)
        count, mean, spread = gathered
        with np.errstate(invalid="ignore", over="ignore"):
            for more, own_mean, own_spread in found:  # in order: see `begin`
                total = count + more
                delta = own_mean - mean
                mean = mean + delta * (more / total)
                spread = spread + own_spread + delta**2 * (count * more / total)
                count = total
        return count, mean, spread

    def result(self, gathered: Any) -> Array:
        count, mean, spread = gathered
        return np.concatenate([mean, spread / count])[None, None, None]


class Normalize(Operation):
    """The second half of a normalization: inputs are the volume and its `Statistics`."""

    arity = (2, 2)
    attributes = ("epsilon",)
    weights = ("gamma", "beta")

    def resolve(self) -> Shape:
        channels = self.inputs[0].channels
        self.groups = self.inputs[1].channels // 2
        self.epsilon = self.number("epsilon", 1e-3)
        self.gamma = self.weight("gamma", (channels,))
        self.beta = self.weight("beta", (channels,))
        return self.inputs[0]

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return (0, 1) if number else outputs

    def affine(self, statistics: Reals) -> tuple[Reals, Reals]:
        """Scale and offset of each channel, (channels,) each, from (1, 1, 1, 2 · groups)."""
        numbers = statistics.reshape(-1).astype(np.float64)
        each = self.inputs[0].channels // self.groups
        mean, variance = (np.repeat(part, each) for part in np.split(numbers, 2))
        scale = self.gamma / np.sqrt(variance + self.epsilon)
        return scale, self.beta - mean * scale

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        scale, offset = self.affine(windows[1].voxels)
        with np.errstate(invalid="ignore", over="ignore"):
            return windows[0].box(*box) * scale + offset

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine import mapping

        scale, offset = self.affine(windows[1].voxels)
        mapping.scale(windows[0].box(*box), scale, offset, out, team)

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.mapping import scale_code

        return [scale_code(real, bends=False)]
