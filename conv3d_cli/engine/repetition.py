"""A convolution of a small array, ready to be repeated for other arrays of the same layout.

To check a small problem, plan it and fill the step record takes longer than to compute it. A
repetition keeps the filled record. A call stores two addresses in it and runs the loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode
from conv3d_cli.engine.step import (
    CheckedRun,
    F,
    FieldGroup,
    Output,
    Source,
    StepRecord,
    address_of,
)
from conv3d_cli.engine.tile import PreparedAlgorithm


class Filled(NamedTuple):
    """What step records were filled with, for one run over a region.

    tasks : int             tasks of the region
    drive : MachineCode     runs the tasks of a record
    clipped : (steps,)      int64, receives the values that the output's dtype cannot represent
    flags : (steps,) or None    uint8, receives `HAS_NONFINITE` and `HAS_INCOMPLETE` of each step
    failures : list         receives what a Python activation raises
    groups : list           must live as long as the loops run, since they read its memory
    epilogues : dict        those of the workers, by number; likewise
    checked : CheckedRun or None    receives the results of checksums
    """

    tasks: int
    drive: MachineCode
    clipped: NDArray[np.int64]
    flags: NDArray[np.uint8] | None
    failures: list[BaseException]
    groups: list[FieldGroup]
    epilogues: dict[int, Any]
    checked: CheckedRun | None = None


@dataclass(eq=False)
class Repetition:
    """See `Plan.repetition`, which makes it. One call at a time, in one thread.

    step : StepRecord       filled for arrays of the same shapes, strides and dtypes
    source_start, out_start : int   where the loops begin, in bytes from the arrays' first elements
    prepared : PreparedAlgorithm    has memory that the loops read
    bytes : int             memory that it keeps
    """

    step: StepRecord
    filled: Filled
    source_start: int
    out_start: int
    prepared: PreparedAlgorithm
    bytes: int

    def __post_init__(self) -> None:
        for group in self.filled.groups:  # the next call has arrays of its own
            if isinstance(group, Source):
                group.source = None
            if isinstance(group, Output):
                group.out = None
        self.step[F.first_task], self.step[F.last_task] = 0, self.filled.tasks

    def run(self, source: NDArray[Any], out: NDArray[Any]) -> bool:
        """Fill `out`; False if it must be computed anew, since a window has NaN or infinity.

        source, out : of the layout of those that `Plan.repetition` got; nothing checks this
        Raises: what a Python activation raises.
        """
        numbers, filled = self.step.numbers, self.filled
        numbers[F.source] = address_of(source) + self.source_start
        numbers[F.out] = address_of(out) + self.out_start
        flags = filled.flags
        if flags is not None:
            flags.fill(0)
        filled.drive(self.step)
        if filled.failures:
            raise filled.failures.pop()
        return flags is None or not flags.any()
