"""What a job writes: its main output, and volumes and tables beside it, whose kinds are in `ROLES`.

Code that needs a job's files loops over `Job.outputs`. So a new kind is one entry of `ROLES`, its
option (in settings/options.py), and the code that computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from conv3d_cli.errors import setting

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.model.volume import Array

VOLUME = "volume"
"""The role of a job's main output."""
PEAKS = "peaks"
"""The role of the table of peaks."""
TABLE_SUFFIX = ".tsv"


class PeakRules(NamedTuple):
    """Which voxels of an output are peaks: local maxima, the highest first.

    threshold : float           the least value of a peak
    reach : (D, H, W)           in voxels; a peak is left out if a higher one is nearer than this,
                                that is, if Σ (distance / reach)² < 1
    """

    threshold: float
    reach: tuple[float, float, float]


@dataclass(frozen=True)
class Output:
    """A volume or a table that a job writes.

    role : str      "volume", a name in `ROLES`, or "iteration N" (see `role_of`)
    path : str      "-" for a .npy stream on standard output
    """

    role: str
    path: str


@dataclass(frozen=True)
class OutputRole:
    """A kind of additional output: a volume (float32, with the main output's shape and grid), or a
    table.

    name : str              name in records and messages
    values : callable or None   (convolution) -> values for the last slab, (d, h, w, c or 1); None:
                            it is not computed slab by slab
    of_means : bool         only jobs that take means have it, as it is computed from coverage
    purpose : str           predicate for messages that start with the option's name
    is_table : bool         it is no volume
    iteration : int         whose estimate it is, of an operation that iterates; 0: another volume
    """

    name: str
    values: Callable[[Convolution], Array] | None
    of_means: bool
    purpose: str
    is_table: bool = False
    iteration: int = 0

    @property
    def option(self) -> str:
        """The name of the option for its path, with underscores."""
        if self.iteration:
            return "save_every"
        return self.name if self.is_table else f"{self.name}_out"

    @property
    def flag(self) -> str:
        """The option as messages name it."""
        return setting(self.option)


def _coverage(convolution: Convolution) -> Array:
    """The fraction of the kernel's weight available to each mean of the last slab."""
    import numpy as np

    return np.ones((), np.float32) if convolution.coverage is None else convolution.coverage


ROLES = {
    role.name: role
    for role in (
        OutputRole("coverage", _coverage, of_means=True, purpose="writes the coverage of means"),
        OutputRole(PEAKS, None, of_means=False, purpose="lists the peaks of scores", is_table=True),
    )
}
OUTPUT_OPTIONS = tuple(role.option for role in ROLES.values())


ITERATION = "iteration"


def estimate_output(number: int, path: str) -> Output:
    """The output that an estimate is written to.

    number : int        of the iteration, from 1

    >>> role_of(estimate_output(5, "o_iter05.tif").role).iteration
    5
    """
    return Output(f"{ITERATION} {number}", path)


def role_of(name: str) -> OutputRole:
    """The kind of an additional output, by the role of its `Output`."""
    if name in ROLES:
        return ROLES[name]
    number = int(name.removeprefix(f"{ITERATION} "))
    purpose = "writes estimates of iterations"
    return OutputRole(name, None, of_means=False, purpose=purpose, iteration=number)


def outputs_beside(paths: dict[str, str | None]) -> tuple[Output, ...]:
    """The additional outputs that options request.

    paths : dict        path by option name, with underscores; only `OUTPUT_OPTIONS` are used

    >>> outputs_beside({"coverage_out": "coverage.nii", "mask": "brain.nii"})
    (Output(role='coverage', path='coverage.nii'),)
    """
    named = ((role.name, paths.get(role.option)) for role in ROLES.values())
    return tuple(Output(name, path) for name, path in named if path is not None)
