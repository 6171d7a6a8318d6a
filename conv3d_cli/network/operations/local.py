"""Statistics of the voxels in a window around each output: mean, spread, and what is made of them.

`compute` combines means and variances axis by axis (`engine/moments.py`); the definition takes the
voxels of each window as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import Boundary, VoxelTransform
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window, spans_of
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team, moments
    from conv3d_cli.engine.machine_code import MachineCode


class LocalStatistics(Operation):
    """A statistic of the voxels in a window around each output, channel by channel.

    Inputs: the volume, and perhaps the certainty of its voxels, of one channel or as many as the
    volume has: 0, of a voxel that does not count, to 1.

    statistic : "mean", "std" (standard deviation), "variance", "zscore" (voxel minus mean, divided
        by the standard deviation), "snr" (mean divided by standard deviation) or "contrast"
        (standard deviation divided by mean); a quotient is 0 where its divisor is 0
    boundary : text         what lies outside the volume
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
    weights = ("window",)

    def resolve(self) -> Shape:
        from conv3d_cli.engine.moments import STATISTICS

        source = self.inputs[0]
        self.statistic = self.choice("statistic", "mean", STATISTICS)
        self.boundary = Boundary.parse(self.argument("boundary", "symmetric"))
        self.ddof = self.argument("ddof", 0)
        if self.ddof not in (0, 1):
            raise SpecError(f"{self.where} needs 0 or 1 for ddof, received {self.ddof!r}")
        self.min_coverage = self.number("min_coverage", 0.0)
        self.empty = self.number("empty", np.nan)
        self.window = self.weight("window", (None, None, None))
        if (self.window < 0).any() or not self.window.any():
            raise SpecError(f"{self.where} needs weights of at least 0, not all of them 0")
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
        self.before = [(length - 1) // 2 for length in self.window.shape]
        return source

    # -- positions

    @cached_property
    def sources(self) -> list[NDArray[np.int64]]:
        """Along each axis, the voxel at every position that windows span; -1 outside."""
        found = []
        for axis in range(3):
            length = self.inputs[0][axis]
            first = -self.before[axis]
            last = first + length + self.window.shape[axis] - 1
            at = [self.boundary.source_index(position, length) for position in range(first, last)]
            found.append(np.array(at, np.int64))
        return found

    @cached_property
    def _reach(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Along each axis: the least voxel at each position or later, the largest until there."""
        found = []
        for at, length in zip(self.sources, self.inputs[0].size, strict=True):
            least = np.minimum.accumulate(np.where(at < 0, length - 1, at)[::-1])[::-1]
            found.append((least, np.maximum.accumulate(np.maximum(at, 0))))
        return found

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        # what is mirrored goes back, so that these or later outputs begin with their least voxel
        least, most = self._reach[axis]
        last = outputs[1] + self.window.shape[axis] - 2
        return int(least[outputs[0]]), int(most[last]) + 1

    @property
    def transform(self) -> VoxelTransform:
        d, h, w = (
            (length - 1) / 2 - before
            for length, before in zip(self.window.shape, self.before, strict=True)
        )
        return VoxelTransform(offset=(d, h, w))

    def positions(self, box: Box, start: Sequence[int]) -> list[NDArray[np.int64]]:
        """The voxel at each position of a box's windows, counted from `start`; -1 outside."""
        found = []
        for axis, (first, last) in enumerate(box):
            at = self.sources[axis][first : last + self.window.shape[axis] - 1]
            found.append(np.where(at < 0, -1, at - start[axis]))
        return found

    @property
    def _outside(self) -> tuple[float, tuple[bool, bool, bool]]:
        """The value outside the volume, and whether it counts there along D, H, W."""
        mode = self.boundary.mode
        value = self.boundary.value if mode == "constant" else 0.0
        return value, (not self.boundary.renormalizes, mode != "renormalize", mode != "renormalize")

    # -- the definition

    def _gathered(
        self, windows: Sequence[Window], box: Box, place: tuple[int, ...], beyond: float
    ) -> tuple[Reals, Reals]:
        """The voxels (n, c) in the window of an output, and how much each counts: (n, c).

        beyond : float      the value outside the volume
        """
        places = [
            at[p : p + length]
            for at, p, length in zip(
                self.positions(box, (0, 0, 0)), place, self.window.shape, strict=True
            )
        ]
        voxels, certainty = (
            window.voxels[
                np.ix_(
                    *(
                        np.where(at < 0, 0, at - start)
                        for at, start in zip(places, window.start, strict=True)
                    )
                )
            ].astype(np.float64)
            for window in (*windows, Window(np.ones((*self.inputs[0].size, 1)), (0, 0, 0)))[:2]
        )
        certainty = np.broadcast_to(certainty, voxels.shape).copy()
        _, counts = self._outside
        for axis in (2, 1, 0):  # depth last: what lies outside there is so along all axes
            outside = places[axis] < 0
            np.moveaxis(voxels, axis, 0)[outside] = beyond
            np.moveaxis(certainty, axis, 0)[outside] = float(counts[axis])
        weights = self.window[..., None] * certainty
        channels = voxels.shape[3]
        return voxels.reshape(-1, channels), weights.reshape(-1, channels)

    def _describe(
        self, windows: Sequence[Window], box: Box, place: tuple[int, ...], beyond: float
    ) -> tuple[Reals, Reals, Reals, Reals]:
        """Of the window of an output: mean, variance, coverage, and factor of the variance (c,)."""
        voxels, weights = self._gathered(windows, box, place, beyond)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            voxels = np.where(weights > 0, voxels, 0.0)
            voxels = np.where(np.isfinite(voxels), voxels, np.nan)
            total = weights.sum(axis=0)
            mean = (weights * voxels).sum(axis=0) / total
            variance = (weights * np.square(voxels - mean)).sum(axis=0) / total
            factor = np.ones_like(total)
            if self.ddof:
                number = np.square(total) / np.square(weights).sum(axis=0)
                alone = number <= 1 + 1e-9
                factor = np.where(alone, np.nan, number / (number - 1))
                total = np.where(alone, 0.0, total)
        return mean, variance, total / self.window.sum(), factor

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
        beyond, _ = self._outside
        for place in np.ndindex(*box.size):
            mean, variance, coverage, factor = self._describe(windows, box, place, beyond)
            value = self._combine(mean if own is None else own[place], mean, variance * factor)
            lost = (coverage < self.min_coverage * (1 - 1e-9)) | (coverage == 0)
            if own is not None and counts is not None:
                lost = lost | (counts[place] <= 0)
            out[place] = np.where(lost, self.empty, value)
        return out

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        """Errors of the voxels move a mean by their mean, a deviation by their mean square."""
        value = self.define(windows, box)
        moved, spread, means, deviations = (np.empty_like(value) for _ in range(4))
        beyond, _ = self._outside
        weighed = [errors[0], *windows[1:]]
        for place in np.ndindex(*box.size):
            mean, variance, _, factor = self._describe(windows, box, place, beyond)
            means[place], deviations[place] = np.abs(mean), np.sqrt(variance * factor)
            mean, variance, *_ = self._describe(weighed, box, place, 0.0)
            moved[place] = mean
            spread[place] = np.sqrt(factor * (np.square(mean) + variance))
        with np.errstate(invalid="ignore", divide="ignore"):
            off = {
                "mean": lambda: moved,
                "std": lambda: spread,
                "variance": lambda: (2 * deviations + spread) * spread,
                "zscore": lambda: self._of_quotient(
                    errors[0].box(*box) + moved, spread, value, deviations
                ),
                "snr": lambda: self._of_quotient(moved, spread, value, deviations),
                "contrast": lambda: self._of_quotient(spread, moved, value, means),
            }[self.statistic]()
        sizes = np.abs(value) + (means if self.statistic == "mean" else 0.0)
        found = off + rounding * sizes
        return np.where(np.isnan(found) & ~np.isnan(value), np.inf, found)

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

        value, counts = self._outside
        masked = bool(self.argument("masked", False))
        return Rules(value, counts, self.ddof, self.min_coverage, self.empty, masked)

    @cached_property
    def _passes(self) -> moments.Window:
        from conv3d_cli.engine.moments import Window

        return Window.of(self.window)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        from conv3d_cli.engine.moments import local_statistics

        taken = spans_of(self, 0, box)
        voxels, *certainty = (window.box(*taken) for window in windows)
        first = [a - b for a, b in zip(box.start, taken.start, strict=True)]
        self.lost += local_statistics(
            voxels,
            self._passes,
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
        inside = " inside the mask" if self.argument("masked", False) else ""
        few = " or fewer than two voxels" if self.ddof else ""
        return (
            f"{count_of(self.lost, 'voxel')}{inside} had less than {self.min_coverage:g} of the "
            f"window's weight{few} ({setting('min_coverage')}) and are {self.empty:g}"
        )
