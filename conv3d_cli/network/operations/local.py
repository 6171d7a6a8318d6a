"""Statistics of the voxels in a window around each output: mean, spread, and what is made of them.

`compute` combines means and variances axis by axis (`engine/moments.py`); the definition takes the
voxels of each window as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Array, Reals, Shape, Window, spans_of
from conv3d_cli.network.operations.windows import InWindows
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team, moments
    from conv3d_cli.engine.machine_code import MachineCode


# The relative error of sums of float64.
SUMMED = 1e-13


class _Described(NamedTuple):
    """The voxels of a window: mean, variance, its factor by ddof, and coverage; (c,) each."""

    mean: Reals
    variance: Reals
    factor: Reals
    coverage: Reals


def _certainty(windows: Sequence[Window]) -> Window:
    """The certainty of voxels: the second input, or 1."""
    if len(windows) == 2:
        return windows[1]
    return Window(np.ones((*windows[0].voxels.shape[:3], 1)), windows[0].start)


class LocalStatistics(InWindows):
    """A statistic of the voxels in a window around each output, channel by channel.

    Inputs: the volume, and perhaps the certainty of its voxels, of one channel or as many as the
    volume has: 0, of a voxel that does not count, to 1.

    statistic : "mean", "std" (standard deviation), "variance", "zscore" (voxel minus mean, divided
        by the standard deviation), "snr" (mean divided by standard deviation) or "contrast"
        (standard deviation divided by mean); a quotient is 0 where its divisor is 0
    ddof : 0 or 1           variances of the voxels, or of what they are a sample of
    min_coverage : number   outputs whose voxels have less than this part of the window's weight
                            are `empty`
    empty : number or None  such outputs, and z-scores of voxels that do not count; None: NaN
    masked : bool           of such outputs, only those are told of whose own voxel counts

    Weights: `window` (D, H, W), at least 0. If it has no voxel in its centre, outputs lie half a
    voxel further on. An output is NaN if a voxel of its window is NaN or infinite.
    """

    arity: ClassVar[tuple[int, int | None]] = (1, 2)
    attributes = ("statistic", "boundary", "ddof", "min_coverage", "empty", "masked")

    def resolve(self) -> Shape:
        from conv3d_cli.engine.moments import STATISTICS

        source = self.inputs[0]
        self.statistic = self.choice("statistic", "mean", STATISTICS)
        self.ddof = self.argument("ddof", 0)
        if self.ddof not in (0, 1):
            raise SpecError(f"{self.where} needs 0 or 1 for ddof, received {self.ddof!r}")
        self.min_coverage = self.number("min_coverage", 0.0)
        self.empty = np.nan if self.argument("empty") is None else self.number("empty", 0.0)
        self.masked = bool(self.argument("masked", False))
        self.read_window()
        if self.ddof and (self.window > 0).sum() == 1:
            raise SpecError(
                f"{self.where} has a window of one voxel, of which nothing varies; pass ddof=0, or "
                "take a larger window"
            )
        for certainty in self.inputs[1:]:
            if certainty not in (source, source._replace(channels=1)):
                raise ShapeError(
                    f"{self.where} has a volume of {source}, and certainties of {certainty}"
                )
        return source

    # -- the definition

    def _counted(
        self, windows: Sequence[Window], box: Box, place: tuple[int, ...]
    ) -> tuple[Reals, Reals]:
        """The voxels (n, c) in the window of an output, NaN unless finite, and their weights."""
        value, counts = self.beyond
        voxels = self.gathered(windows[0], box, place, [value] * 3)
        certainty = self.gathered(_certainty(windows), box, place, [float(c) for c in counts])
        weights = self.window.reshape(-1, 1) * certainty
        voxels = np.where(weights > 0, voxels, 0.0)
        return np.where(np.isfinite(voxels), voxels, np.nan), np.maximum(weights, 0.0)

    def _describe(self, voxels: Reals, weights: Reals) -> _Described:
        """Describe the voxels (n, c) of a window by their weights."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            total = weights.sum(axis=0)
            mean = (weights * voxels).sum(axis=0) / total
            variance = (weights * np.square(voxels - mean)).sum(axis=0) / total
            factor = np.ones_like(total)
            if self.ddof:
                number = np.square(total) / np.square(weights).sum(axis=0)
                alone = ~(number > 1 + 1e-9)
                factor = np.where(alone, np.nan, number / (number - 1))
                total = np.where(alone, 0.0, total)
        return _Described(mean, variance, factor, total / self.window.sum())

    def _combine(self, own: Reals, mean: Reals, variance: Reals) -> Reals:
        """The statistic of voxels, means and variances."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            deviation = np.sqrt(variance)
            if self.statistic == "mean":
                return np.where(np.isnan(variance), np.nan, mean)
            if self.statistic == "variance":
                return variance
            if self.statistic == "std":
                return deviation
            above, below = {
                "zscore": (own - mean, deviation),
                "snr": (mean, deviation),
                "contrast": (deviation, mean),
            }[self.statistic]
            return np.asarray(np.where(below == 0, 0.0 * above, above / below))

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        out = np.empty((*box.size, self.shape.channels))
        own = windows[0].box(*box) if self.statistic == "zscore" else None
        counts = windows[1].box(*box) if len(windows) == 2 else None
        for place in np.ndindex(*box.size):
            found = self._describe(*self._counted(windows, box, place))
            value = self._combine(
                found.mean if own is None else own[place], found.mean, found.variance * found.factor
            )
            lost = (found.coverage < self.min_coverage * (1 - 1e-9)) | (found.coverage == 0)
            if own is not None and counts is not None:
                lost = lost | (counts[place] <= 0)
            out[place] = np.where(lost, self.empty, value)
        return out

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        value = self.define(windows, box)
        moved, spread, means, deviations = (np.empty_like(value) for _ in range(4))
        for place in np.ndindex(*box.size):
            moves = self._moves(windows, errors, box, place)
            moved[place], spread[place], means[place], deviations[place] = moves
        own = errors[0].box(*box)
        if self.statistic == "zscore" and len(windows) == 2:
            # whether a voxel counts must be certain
            changes = windows[1].box(*box) <= errors[1].box(*box)
            own = np.where(changes & (errors[1].box(*box) > 0), np.inf, own)
        with np.errstate(invalid="ignore", divide="ignore"):
            off = {
                "mean": lambda: moved,
                "std": lambda: spread,
                "variance": lambda: (2 * deviations + spread) * spread,
                "zscore": lambda: self._of_quotient(own + moved, spread, value, deviations),
                "snr": lambda: self._of_quotient(moved, spread, value, deviations),
                "contrast": lambda: self._of_quotient(spread, moved, value, means),
            }[self.statistic]()
            if self.statistic == "zscore":  # a difference of means that are of double precision
                off = off + SUMMED * np.where(deviations > 0, means / deviations, 0.0)
        sizes = np.abs(value) + (means if self.statistic == "mean" else 0.0)
        found = off + rounding * sizes
        return np.where(np.isnan(found) & ~np.isnan(value), np.inf, found)

    def _moves(
        self,
        windows: Sequence[Window],
        errors: Sequence[Window],
        box: Box,
        place: tuple[int, ...],
    ) -> tuple[Reals, Reals, Reals, Reals]:
        """How far errors move mean and standard deviation of a window, and how large both are.

        Errors of the voxels move a mean by no more than their mean, and a standard deviation by no
        more than the root of their mean square. Errors of the certainties are changes of weights.
        """
        voxels, weights = self._counted(windows, box, place)
        off = self.gathered(errors[0], box, place, (0, 0, 0))
        changes = np.zeros_like(weights)
        if len(windows) == 2:
            changes = self.window.reshape(-1, 1) * self.gathered(errors[1], box, place, (0, 0, 0))
            voxels = np.where(
                changes > 0, self.gathered(windows[0], box, place, [self.beyond.value] * 3), voxels
            )
        found = self._describe(voxels, weights)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            least = (weights - changes).sum(axis=0)
            from_mean = voxels - found.mean
            moved = (changes * np.abs(from_mean)).sum(axis=0) / least
            unlike = np.abs(np.square(from_mean) - found.variance)
            varied = (changes * unlike).sum(axis=0) / least + np.square(moved)
            factor = found.factor
            if self.ddof:
                squares = np.square(weights + changes).sum(axis=0)
                number = np.square(least) / squares
                factor = np.where(number > 1, number / (number - 1), np.inf)
            deviation = np.sqrt(found.variance * found.factor)
            grown = (found.variance + varied) * factor - found.variance * found.factor
            spread = np.minimum(np.sqrt(grown), grown / deviation)
            weighed = weights + changes
            moved += (weighed * off).sum(axis=0) / least
            spread += np.sqrt(factor * (weighed * np.square(off)).sum(axis=0) / least)
            # the least coverage must be certain
            near = found.coverage - changes.sum(axis=0) / self.window.sum() < self.min_coverage
            unsure = (least <= 0) | (near & (found.coverage >= self.min_coverage))
            unsure &= changes.any(axis=0)
        moved, spread = (np.where(unsure, np.inf, part) for part in (moved, spread))
        return moved, spread, np.abs(found.mean), deviation

    @staticmethod
    def _of_quotient(above: Reals, below: Reals, value: Reals, divisor: Reals) -> Reals:
        """The error of a quotient of which both parts may be off."""
        least = divisor - below
        found = (above + np.abs(value) * below) / least
        exact = (above == 0) & (below == 0)
        return np.where(exact, 0.0, np.where(least > 0, found, np.inf))

    # -- the fast way

    @property
    def _rules(self) -> moments.Rules:
        from conv3d_cli.engine.moments import Rules

        value, counts = self.beyond
        masked = bool(self.argument("masked", False))
        return Rules(value, counts, self.ddof, self.min_coverage, self.empty, told_inside=masked)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.moments import local_statistics

        taken = spans_of(self, 0, box)
        voxels, *certainty = (window.box(*taken) for window in windows)
        first = [a - b for a, b in zip(box.start, taken.start, strict=True)]
        self.lost += local_statistics(
            voxels,
            self.passes,
            self.statistic,
            self.positions(box, taken.start),
            first,
            out,
            team,
            certainty[0] if certainty else None,
            self._rules,
        )

    def loops(self, real: np.dtype[Any]) -> list[MachineCode]:
        from conv3d_cli.engine.moments import moments_code, weighting

        return [moments_code(real, weighting(len(self.inputs) == 2, self._rules))]

    def lost_note(self) -> str:
        if not self.lost:
            return ""
        inside = " inside the mask" if self.masked else ""
        few = " or fewer than two voxels" if self.ddof else ""
        return (
            f"{count_of(self.lost, 'voxel')}{inside} had less than {self.min_coverage:g} of the "
            f"window's weight{few} ({setting('min_coverage')}) and are {self.empty:g}"
        )
