"""Overlapping patches of a volume, and the weights by which their outputs are blended.

Patches lie as MONAI's sliding windows do: the overlap gives the step from one to the next, and the
last one along each axis ends with the volume. A volume that is smaller than a patch is extended by
zeros at both ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import Triple
from conv3d_cli.system.elementary import exp

BLENDS = ("gaussian", "constant")
SIGMA = 0.125  # standard deviation of the Gaussian weights, as a fraction of the patch
LEAST_WEIGHT = 1e-3

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class PatchLayout:
    """The patches of a volume.

    size : (D, H, W)        voxels of the volume
    patch : (D, H, W)       voxels of a patch
    overlap : (D, H, W)     the fraction of a patch that the next one shares along an axis, from 0
                            to below 1
    blend : str             "gaussian": the middle of a patch counts more; "constant": all alike

    Positions of patches are those of their first voxels, along each axis, in the volume; a patch
    that is larger than the volume begins before it.

    Source: MONAI, monai/inferers/utils.py and monai/data/utils.py.

    >>> layout = PatchLayout((10, 4, 8), (4, 4, 12), (0.5, 0.5, 0.5), "constant")
    >>> [layout.starts(axis) for axis in range(3)], layout.count
    ([(0, 2, 4, 6), (0,), (-2,)], 4)
    """

    size: Triple
    patch: Triple
    overlap: tuple[float, float, float]
    blend: str = "gaussian"

    def starts(self, axis: int) -> tuple[int, ...]:
        """Positions along an axis, in ascending order."""
        return self._starts[axis]

    @cached_property
    def _starts(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            _starts(size, patch, overlap)
            for size, patch, overlap in zip(self.size, self.patch, self.overlap, strict=True)
        )

    @property
    def count(self) -> int:
        """The number of patches."""
        return math.prod(map(len, self._starts))

    def inside(self, starts: Triple) -> Box:
        """The part of a patch that lies in the volume, in the volume's positions."""
        depth, height, width = (
            (max(0, start), min(size, start + length))
            for start, size, length in zip(starts, self.size, self.patch, strict=True)
        )
        return Box(depth, height, width)

    def covering(self, axis: int, outputs: Span) -> tuple[int, ...]:
        """Positions along an axis of the patches that have voxels in a span."""
        first, last = outputs
        return tuple(s for s in self.starts(axis) if s < last and s + self.patch[axis] > first)

    def needed(self, axis: int, outputs: Span) -> Span:
        """The voxels of the volume along an axis that patches with voxels in a span take.

        >>> PatchLayout((10, 4, 8), (4, 4, 12), (0.5, 0.5, 0.5)).needed(0, (3, 5))
        (0, 8)
        """
        starts = self.covering(axis, outputs)
        return max(0, starts[0]), min(self.size[axis], starts[-1] + self.patch[axis])

    def patches_of(self, outputs: Box) -> Iterator[Triple]:
        """Positions of the patches that have voxels in a box, in the order of blending."""
        spans = (self.covering(axis, span) for axis, span in enumerate(outputs))
        yield from itertools.product(*spans)

    @cached_property
    def profiles(self) -> tuple[Reals, ...]:
        """Along each axis, the Gaussian whose product weighs the voxels of a patch."""
        if self.blend == "constant":
            return tuple(np.ones(length) for length in self.patch)
        distances = (np.arange(length) - (length - 1) / 2 for length in self.patch)
        return tuple(
            np.asarray(exp(-0.5 * (distance / (SIGMA * length)) ** 2))
            for distance, length in zip(distances, self.patch, strict=True)
        )

    @cached_property
    def least(self) -> float:
        """The least weight of a voxel."""
        return max(LEAST_WEIGHT, math.prod(float(profile.min()) for profile in self.profiles))

    def weights(self, box: Box) -> Reals:
        """The weights of a box of a patch, (d, h, w).

        >>> layout = PatchLayout((9, 9, 9), (3, 3, 3), (0.0, 0.0, 0.0))
        >>> layout.weights(Box((1, 2), (1, 2), (0, 3))).round(4).tolist()
        [[[0.0286, 1.0, 0.0286]]]
        """
        depth, height, width = (
            profile[first:last] for profile, (first, last) in zip(self.profiles, box, strict=True)
        )
        product = depth[:, None, None] * height[:, None] * width
        return np.asarray(np.maximum(product, self.least))

    def total(self, plane: int) -> Reals:
        """The sum of the weights of all patches in a plane of the volume, (H, W)."""
        _, height, width = self.size
        found = np.zeros((height, width))
        whole = Box((plane, plane + 1), (0, height), (0, width))
        for starts in self.patches_of(whole):
            taken = Box((plane, plane + 1), *self.inside(starts)[1:])
            found[taken.slices[1:]] += self.weights(taken.shift([-s for s in starts]))[0]
        return found


def _starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    if size <= patch:
        return (-((patch - size) // 2),)
    # rounded as in MONAI, where a step of whole voxels may come out one less
    step = max(1, int(patch * (1 - overlap)))
    return (*range(0, size - patch, step), size - patch)
