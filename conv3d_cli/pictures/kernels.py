"""Pictures of kernels: the central slices, and the profile along each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conv3d_cli.model.grid import Grid, length_scale
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pictures.orientation import orientations
from conv3d_cli.pictures.panels import Panel
from conv3d_cli.pictures.slices import Values

LEVELS = 48  # rows of a profile
GAMMA = 0.5  # the square root makes the tails of bell-shaped kernels visible


@dataclass(frozen=True, eq=False)
class KernelPicture:
    """Panels of a kernel.

    slices : 3 panels       across D, H, W
    profiles : 3 panels     along D, H, W
    caption : lines of text
    scale : float           the largest absolute weight
    voxel : float           the shortest side of a voxel, in the panels' unit of length
    negative : bool         a weight is below 0
    """

    slices: Sequence[Panel]
    profiles: Sequence[Panel]
    caption: Sequence[str]
    scale: float
    voxel: float
    negative: bool


def kernel_panels(kernel: Kernel, grid: Grid | None = None) -> KernelPicture:
    """Panels of the planes through the centre across D, H, W, and of the profiles along them.

    kernel : of a bank, the first filter is drawn; of a layer, its first channel of its first filter
    grid : Grid or None     its spacing gives the voxels their proportions (None: cubes), and with
                            its unit the numbers on the axes, which else count voxels

    The axes show the offset from the centre, and for profiles the sum of the weights.
    >>> picture = kernel_panels(Kernel(np.ones((3, 5, 7))))
    >>> [panel.values.shape for panel in picture.slices]
    [(5, 7), (3, 7), (3, 5)]
    """
    weights = kernel.for_channels(1)[..., 0, 0]
    scale = float(np.abs(weights).max())
    centre = kernel.centre or tuple((k - 1) / 2 for k in kernel.size)
    turns = orientations(Grid())
    grid = grid or Grid()
    steps = grid.spacing or (1.0, 1.0, 1.0)
    lengths, unit = length_scale(grid)
    offsets = [
        (-c * length + 0.0, (size - 1 - c) * length)
        for c, size, length in zip(centre, weights.shape, lengths, strict=True)
    ]
    sides = [size * step for size, step in zip(weights.shape, steps, strict=True)]
    slices, profiles = [], []
    for turn in turns:
        axis, letter = turn.axis, "dhw"[turn.axis]
        position = int(centre[axis] + 0.5)
        plane = turn.upright(np.take(weights, position, axis=axis))
        extent = (sides[turn.down], sides[turn.right])
        slices.append(
            Panel(
                f"{letter} = {position}",
                plane,
                extent,
                (-scale, scale),
                directions=turn.directions,
                signed=True,
                gamma=GAMMA,
                across=offsets[turn.right],
                down=offsets[turn.down],
            )
        )
        profile = weights.sum(axis=(turn.down, turn.right))
        profiles.append(
            Panel(
                f"along {letter}",
                bars(profile),
                (max(sides) / 2, sides[axis]),
                (-1.0, 1.0),
                signed=True,
                has_scale=False,
                across=offsets[axis],
                down=(max(0.0, float(profile.max())), min(0.0, float(profile.min()))),
            )
        )
    directions = "; ".join(f"{'dhw'[turn.axis]} = {turn.directions}" for turn in turns)
    first = ["first filter, first channel"] if kernel.is_layer else list(kernel.filter_names[:1])
    caption = [
        *first,
        f"slices: {directions}",
        f"numbers: offset from the centre in {unit}, and sums of weights",
        "brightness: square root of a weight; below: sums over the two other axes",
    ]
    return KernelPicture(slices, profiles, caption, scale, min(steps), bool(weights.min() < 0))


def bars(profile: Values) -> Values:
    """A profile (voxels,) as a bar chart (LEVELS, voxels): 1 in a positive bar, -1 in a negative.

    Elsewhere 0.
    >>> bars(np.array([2.0, -1.0, 0.0]))[:: LEVELS // 3]
    array([[ 1.,  0.,  0.],
           [ 1.,  0.,  0.],
           [ 0., -1.,  0.]])
    """
    high, low = max(0.0, float(profile.max())), min(0.0, float(profile.min()))
    level = high - (np.arange(LEVELS)[:, None] + 0.5) / LEVELS * (high - low)
    positive, negative = (level > 0) & (level < profile), (level < 0) & (level > profile)
    return np.where(positive, 1.0, np.where(negative, -1.0, 0.0))
