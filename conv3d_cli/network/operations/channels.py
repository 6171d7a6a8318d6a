"""Operations that choose among the channels of each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Array, Reals, Shape, Window
from conv3d_cli.network.operations.planes import PlaneByPlane
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team


class TakeChannels(PlaneByPlane):
    """The channels at the positions `channels`, in this order; one may come several times."""

    attributes = ("channels",)

    def resolve(self) -> Shape:
        source, taken = self.inputs[0], self.argument("channels", ())
        whole = isinstance(taken, (list, tuple)) and all(type(n) is int for n in taken)
        if not whole or not taken:
            raise SpecError(
                f"{self.where} needs whole numbers for channels, received {taken!r:.80}"
            )
        if min(taken) < 0 or max(taken) >= source.channels:
            wrong = max(taken) if min(taken) >= 0 else min(taken)
            held = (
                f"channels 0 to {source.channels - 1}" if source.channels > 1 else "channel 0 only"
            )
            raise ShapeError(f"{self.where} takes channel {wrong}, and its input has {held}")
        self.taken = list(taken)
        return source._replace(channels=len(taken))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.asarray(windows[0].box(*box)[..., self.taken])

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return self.define(errors, box)


class ArgMax(PlaneByPlane):
    """The position of the largest channel, from 0; of equal ones the first, or the last if `last`.

    A voxel with NaN gives the position of its first NaN, or its last; such voxels are counted.
    """

    attributes = ("last",)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        voxels = windows[0].box(*box)
        found = np.zeros(len(voxels), np.int64)

        def count(_: int, d: int) -> None:
            with np.errstate(over="ignore", invalid="ignore"):  # the sum tells at once of most
                if not np.isfinite(voxels[d].sum()):
                    found[d] = np.isnan(voxels[d]).any(axis=2).sum()

        team.run(len(voxels), count)
        self.lost += int(found.sum())
        super().compute(windows, box, out, team)

    def lost_note(self) -> str:
        if not self.lost:
            return ""
        which = "last" if self.argument("last", False) else "first"
        return (
            f"{count_of(self.lost, 'voxel')} had NaN among the channels of which the largest is "
            f"the label, and got the number of the {which} such channel"
        )

    def resolve(self) -> Shape:
        return self.inputs[0]._replace(channels=1)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].box(*box)
        if self.argument("last", False):
            found = voxels.shape[3] - 1 - np.argmax(voxels[..., ::-1], axis=3)
        else:
            found = np.argmax(voxels, axis=3)
        return np.asarray(found[..., None], np.float64)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        """Channels that are nearer to the largest than their errors may take its place."""
        voxels, spread = windows[0].box(*box), errors[0].box(*box)
        if self.inputs[0].channels == 1:
            return np.zeros((*box.size, 1))
        low = np.max(voxels - spread, axis=3, keepdims=True)
        possible = ~(voxels + spread < low)  # NaN is possible
        count = possible.sum(axis=3, keepdims=True)
        return np.where(count > 1, float(self.inputs[0].channels - 1), 0.0)
