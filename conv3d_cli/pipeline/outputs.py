"""The volumes that a job writes: its output, and others beside it, each of a kind in `ROLES`.

Whoever looks at a job's files loops over `Job.outputs`. So a new kind of volume is one entry of
`ROLES`, its option (in cli/options.py), and the code that computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.model.volume import Array

VOLUME = "volume"
"""The role of a job's main output."""


@dataclass(frozen=True)
class Output:
    """A volume that a job writes.

    role : str      "volume", or the name of one in `ROLES`
    path : str      "-" is a .npy pipe
    """

    role: str
    path: str


@dataclass(frozen=True)
class OutputRole:
    """A kind of volume beside the output: float32, with the output's shape and grid.

    name : str              in records and messages
    values : callable       (convolution) -> its values for the last slab, (d, h, w, c or 1)
    of_means : bool         only jobs that take means have it; its values are made of their coverage
    purpose : str           what it is for, to go on after the option's name in a message
    """

    name: str
    values: Callable[[Convolution], Array]
    of_means: bool
    purpose: str

    @property
    def option(self) -> str:
        """The option that names its file, with underscores."""
        return f"{self.name}_out"

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--{self.name}-out"


def _coverage(convolution: Convolution) -> Array:
    """The part of the kernel's weight that each mean of the last slab holds."""
    import numpy as np

    return np.ones((), np.float32) if convolution.coverage is None else convolution.coverage


ROLES = {
    role.name: role
    for role in (
        OutputRole("coverage", _coverage, of_means=True, purpose="tells what means are made of"),
    )
}
OUTPUT_OPTIONS = tuple(role.option for role in ROLES.values())


def outputs_beside(paths: dict[str, str | None]) -> tuple[Output, ...]:
    """The outputs that options ask for.

    paths : dict        by option, with underscores; others than `OUTPUT_OPTIONS` are passed over

    >>> outputs_beside({"coverage_out": "seen.nii", "mask": "brain.nii"})
    (Output(role='coverage', path='seen.nii'),)
    """
    named = ((role.name, paths.get(role.option)) for role in ROLES.values())
    return tuple(Output(name, path) for name, path in named if path is not None)
