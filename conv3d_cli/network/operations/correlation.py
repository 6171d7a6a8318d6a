"""Normalized cross-correlation: how well a template fits around each output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from conv3d_cli.errors import ShapeError, setting
from conv3d_cli.model.box import Box, Span
from conv3d_cli.network.operations.base import Array, Reals, Shape, Window, spans_of
from conv3d_cli.network.operations.windows import InWindows
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.engine.moments import Rules


class NormalizedCorrelation(InWindows):
    """How well a template fits around each output: from -1 to 1, 0 where nothing varies.

    Inputs: the volume, and its sums weighted by the template, whose weights are t / (|t| √n): t is
    the template minus its mean, of n voxels. `window` is 1 for each of them, and 0 for others.

    steady : number     outputs are 0 where the standard deviation is not above this part of the
                        mean; if it is above 0 there, they count as lost
    """

    arity: ClassVar[tuple[int, int | None]] = (2, 2)
    attributes = ("boundary", "steady")

    def resolve(self) -> Shape:
        self.read_window()
        self.steady = self.number("steady", 0.0)
        volume, sums = self.inputs
        if sums != volume:
            raise ShapeError(f"{self.where} has a volume of {volume}, and sums of {sums}")
        return volume

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        return outputs if number else super().span(number, axis, outputs)

    def _spread(self, window: Window, box: Box, beyond: float) -> tuple[Reals, Reals]:
        """Mean and standard deviation around each output of a box.

        beyond : float      the value outside the volume
        """
        mean, deviation = (np.empty((*box.size, self.shape.channels)) for _ in range(2))
        weights = self.window.reshape(-1, 1)
        counts = [float(c) for c in self.beyond.counts]
        ones = Window(np.ones((*window.voxels.shape[:3], 1)), window.start)
        for place in np.ndindex(*box.size):
            voxels = self.gathered(window, box, place, [beyond] * 3)
            own = weights * self.gathered(ones, box, place, counts)
            with np.errstate(invalid="ignore"):
                voxels = np.where(own > 0, voxels, 0.0)
                mean[place] = (own * voxels).sum(axis=0) / own.sum(axis=0)
                squares = np.square(voxels - mean[place])
                deviation[place] = np.sqrt((own * squares).sum(axis=0) / own.sum(axis=0))
        return mean, deviation

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        mean, deviation = self._spread(windows[0], box, self.beyond.value)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.clip(windows[1].box(*box) / deviation, -1, 1)
        steady = (deviation <= self.steady * np.abs(mean)) | (deviation == 0)
        return np.where(steady, 0.0, value)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        value = self.define(windows, box)
        mean, deviation = self._spread(windows[0], box, self.beyond.value)
        moved, spread = self._spread(errors[0], box, 0.0)
        spread = np.hypot(moved, spread)  # see `LocalStatistics`
        least = deviation - spread
        with np.errstate(invalid="ignore", divide="ignore"):
            off = (errors[1].box(*box) + np.abs(value) * spread) / least
        sure = (least > 0) & (least > self.steady * (np.abs(mean) + moved))
        never = deviation + spread <= self.steady * np.abs(np.abs(mean) - moved)
        exact = never | ((deviation == 0) & (spread == 0))
        found = np.minimum(np.where(sure, off, np.where(exact, 0.0, 2.0)), 2.0)
        return found + rounding * np.abs(value)

    @property
    def _rules(self) -> Rules:
        from conv3d_cli.engine.moments import Rules

        return Rules(self.beyond.value, self.beyond.counts, steady=self.steady)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.moments import CORRELATION, local_statistics

        taken = spans_of(self, 0, box)
        self.lost += local_statistics(
            windows[0].box(*taken),
            self.passes,
            CORRELATION,
            self.positions(box, taken.start),
            [a - b for a, b in zip(box.start, taken.start, strict=True)],
            out,
            team,
            rules=self._rules,
            sums=windows[1].box(*box),
        )

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.moments import moments_code, weighting

        return [moments_code(real, weighting(False, self._rules))]

    def lost_note(self) -> str:
        if not self.lost:
            return ""
        return (
            f"around {count_of(self.lost, 'voxel')} the volume varies by less than "
            f"{self.steady:.1g} of its mean, too little for float32: correlations there are 0; "
            f"{setting('precision', 'float64')} computes them"
        )
