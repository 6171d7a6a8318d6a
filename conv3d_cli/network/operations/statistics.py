"""Normalization by the statistics of the whole volume: of groups of channels, or of each channel.

It is run as `Statistics`, which reads the whole volume, and `Normalize`, which reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conv3d_cli.errors import ShapeError
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.network.operations.base import Operation, Reals, Shape, Window


class GroupNormalization(Operation):
    """(x - mean) / √(variance + epsilon) · gamma + beta, over each group's channels and all voxels.

    `groups` of -1: each channel is a group, as in instance normalization.
    """

    attributes = ("groups", "epsilon", "center", "scale")
    weights = ("gamma", "beta")

    def resolve(self) -> Shape:
        channels = self.inputs[0].channels
        groups = self.argument("groups", 32)
        self.groups = channels if groups == -1 else groups
        if not isinstance(self.groups, int) or self.groups < 1 or channels % self.groups:
            raise ShapeError(
                f"{self.where} has groups={groups!r}, which must divide the {channels} channels of "
                "its input"
            )
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

    @property
    def needs_whole(self) -> bool:
        return True

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].voxels
        grouped = voxels.reshape(*voxels.shape[:3], self.groups, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = grouped.mean(axis=(0, 1, 2, 4))
            variance = np.square(grouped - mean[:, None]).mean(axis=(0, 1, 2, 4))
            each = voxels.shape[3] // self.groups
            mean, variance = np.repeat(mean, each), np.repeat(variance, each)
            own = windows[0].box(*box) - mean
            return own / np.sqrt(variance + self.epsilon) * self.gamma + self.beta

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
        size = np.abs(self.define(windows, box))
        return spread / deviation * (
            2 * np.abs(self.gamma) + 2 * (size + np.abs(self.beta))
        ) + rounding * (size + np.abs(self.beta))


class Statistics(Operation):
    """Mean and variance of groups of channels over all voxels: (1, 1, 1, 2 · groups)."""

    attributes = ("groups",)

    def resolve(self) -> Shape:
        self.groups = int(self.argument("groups"))
        return Shape(1, 1, 1, 2 * self.groups)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return 0, self.inputs[0][axis]

    @property
    def needs_whole(self) -> bool:
        return True

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
