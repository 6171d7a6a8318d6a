"""Operations that are computed as they are defined, plane by plane on the team's threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Array, Operation, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team


class PlaneByPlane(Operation):
    """An operation whose definition is fast enough, and has the same bits for each output."""

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        first, (height, width) = box.start[0], box[1:]

        def plane(_: int, d: int) -> None:
            out[d] = self.define(windows, Box((first + d, first + d + 1), height, width))[0]

        team.run(len(out), plane)
