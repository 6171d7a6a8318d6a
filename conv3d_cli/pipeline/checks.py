"""Checksums of a job: whether its tiles are checked while they are computed, and what came of it.

`engine/checksum.py` says how. A job is checked by default if that is predicted to take at most
`SHARE` of the process's CPU time; the prediction depends on the job alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from conv3d_cli.convolution.copying import Copy
from conv3d_cli.system.words import count_of, percent

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.engine import Plan
    from conv3d_cli.engine.checksum import CheckCounts, Checks
    from conv3d_cli.pipeline.request import Job

SHARE = 0.05
MOST_NOTES = 5
# CPU seconds of a process besides its convolutions, measured as `Checks.seconds` was: to start, and
# to read or write a byte of voxels.
START_SECONDS, BYTE_SECONDS = 0.4, 0.6e-9


class CheckReport(NamedTuple):
    """What the checksums of a job found.

    tiles : int         tiles computed
    unchecked : int     of these, tiles whose windows contain NaN, infinity or numbers near
                        overflow, so that their sums could not be compared
    repaired : int      tiles that failed, and were computed again
    faults : tuple      a line for each of the first of these
    """

    tiles: int
    unchecked: int
    repaired: int
    faults: tuple[str, ...] = ()

    def plus(self, other: CheckReport | None) -> CheckReport:
        """Both together; on a cluster, of two tasks.

        >>> CheckReport(3, 1, 1, ("a",)).plus(CheckReport(2, 0, 1, ("b",)))
        CheckReport(tiles=5, unchecked=1, repaired=2, faults=('a', 'b'))
        """
        if other is None:
            return self
        return CheckReport(
            self.tiles + other.tiles,
            self.unchecked + other.unchecked,
            self.repaired + other.repaired,
            (*self.faults, *other.faults)[:MOST_NOTES],
        )

    def record(self) -> dict[str, int]:
        """The numbers, for JSON."""
        return {"tiles": self.tiles, "unchecked": self.unchecked, "repaired": self.repaired}

    def words(self) -> str:
        """For a line of a report.

        >>> CheckReport(1000, 12, 0).words()
        '988 of 1000 tiles by checksums; 12 with NaN, infinity or huge numbers were not'
        """
        checked = self.tiles - self.unchecked
        text = f"{checked:,} of {count_of(self.tiles, 'tile')} by checksums"
        if self.unchecked:
            text += f"; {self.unchecked:,} with NaN, infinity or huge numbers were not"
        return text + (f"; {self.repaired:,} computed again" if self.repaired else "")


def begin_checks(job: Job, convolutions: Sequence[Convolution], parts: int) -> None:
    """Check the tiles of a job if it asks for that, or leaves the choice and it costs little.

    parts : int     how many times the last convolution runs
    """
    if job.checks is False:
        return
    plans = [
        plan
        for convolution in convolutions
        if not isinstance(convolution, Copy)
        for plan in convolution.plans
    ]
    if job.checks or _cost_little(job, plans, parts):
        for plan in plans:
            plan.check()


def _cost_little(job: Job, plans: Sequence[Plan], parts: int) -> bool:
    """Whether checks are predicted to take at most `SHARE` of the process."""
    added = sum(plan.check_seconds for plan in plans)
    # a cluster's workers have started already
    others = 0.0 if job.on_cluster else job.share_of_start * START_SECONDS
    for plan in plans:
        voxels = math.prod(plan.problem.in_shape) + math.prod(plan.problem.out_shape)
        others += parts * (
            plan.seconds[plan.algorithm.name] * plan.threads + 4 * BYTE_SECONDS * voxels
        )
    return parts * added <= SHARE * (others + parts * added)


def check_report(convolutions: Sequence[Convolution]) -> CheckReport | None:
    """What the checksums found; None if there were none."""
    return _report([checks.counts for checks in _checks_of(convolutions)])


def take_checks(convolutions: Sequence[Convolution]) -> CheckReport | None:
    """What the checksums found since the last call; None if there were none."""
    return _report([checks.take_counts() for checks in _checks_of(convolutions)])


def _report(counts: Sequence[CheckCounts]) -> CheckReport | None:
    if not counts:
        return None
    faults = [fault for one in counts for fault in one.faults]
    return CheckReport(
        sum(one.steps for one in counts),
        sum(one.unchecked for one in counts),
        len(faults),
        tuple(map(str, faults[:MOST_NOTES])),
    )


def _checks_of(convolutions: Sequence[Convolution]) -> list[Checks]:
    return [
        plan.checks
        for convolution in convolutions
        for plan in convolution.plans
        if plan.checks is not None
    ]


def check_notes(job: Job, report: CheckReport | None) -> list[str]:
    """Notes on tiles that were computed again, and on those that could not be checked."""
    if report is None:
        return []
    notes = list(report.faults)
    if report.repaired > MOST_NOTES:
        more = report.repaired - MOST_NOTES + 1
        notes[MOST_NOTES - 1 :] = [f"... and {count_of(more, 'tile')} more"]
    if job.checks and report.unchecked:
        notes.append(
            f"{count_of(report.unchecked, 'tile')} ({percent(report.unchecked, report.tiles)}) "
            "could not be checked: NaN, infinity or huge numbers are in reach of the kernel"
        )
    return notes
