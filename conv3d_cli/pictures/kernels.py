"""What a kernel looks like: its central slices, and its profile along each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pictures.orientation import orientations
from conv3d_cli.pictures.panels import Panel
from conv3d_cli.pictures.slices import Values

LEVELS = 48  # of a profile's height
BEND = 0.5  # the square root lifts the tails of bell shapes above black


@dataclass(frozen=True, eq=False)
class KernelPicture:
    """Panels of a kernel.

    scale : float       the largest absolute weight
    voxel : float       a voxel's shortest side, in the panels' unit of length
    """

    slices: Sequence[Panel]
    profiles: Sequence[Panel]
    caption: Sequence[str]
    scale: float
    voxel: float
    negative: bool


def kernel_panels(
    kernel: Kernel, spacing: tuple[float, float, float] | None = None
) -> KernelPicture:
    """Panels of the planes through the centre across D, H, W, and of the sums over the two other axes.

    spacing : (D, H, W) or None     of voxels, which are drawn in proportion; None: cubes
    Of a layer, the first filter's first channel; of a bank, the first filter.
    """
    weights = kernel.for_channels(1)[..., 0, 0]
    scale = float(np.abs(weights).max())
    centre = kernel.centre or tuple((k - 1) / 2 for k in kernel.size)
    turns = orientations(Grid())
    steps = spacing or (1.0, 1.0, 1.0)
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
                words=turn.words,
                signed=True,
                bend=BEND,
            )
        )
        profile = weights.sum(axis=(turn.down, turn.right))
        title = f"along {letter}: {profile.min():.3g} to {profile.max():.3g}"
        profiles.append(
            Panel(
                title,
                bars(profile),
                (max(sides) / 2, sides[axis]),
                (-1.0, 1.0),
                signed=True,
                measures=False,
            )
        )
    words = "; ".join(f"{'dhw'[turn.axis]} = {turn.words}" for turn in turns)
    first = ["first filter, first channel"] if kernel.is_layer else list(kernel.filter_names[:1])
    caption = [
        *first,
        f"slices: {words}",
        "shades go with the square root of a weight; below: the sums over the two other axes",
    ]
    return KernelPicture(slices, profiles, caption, scale, min(steps), bool(weights.min() < 0))


def bars(profile: Values) -> Values:
    """A profile as bars, (LEVELS, voxels): 1 in a bar above 0, -1 in one below, 0 elsewhere.

    >>> bars(np.array([2.0, -1.0, 0.0]))[:: LEVELS // 3]
    array([[ 1.,  0.,  0.],
           [ 1.,  0.,  0.],
           [ 0., -1.,  0.]])
    """
    high, low = max(0.0, float(profile.max())), min(0.0, float(profile.min()))
    level = high - (np.arange(LEVELS)[:, None] + 0.5) / LEVELS * (high - low)
    return np.where(
        (level > 0) & (level < profile), 1.0, np.where((level < 0) & (level > profile), -1.0, 0.0)
    )
