"""What an operation that is made of convolutions is, and the `Composition` that it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from conv3d_cli.errors import named
from conv3d_cli.kernels.grammar import (
    Described,
    check_parameters,
    describe,
    lower_names,
    parse_parameters,
)
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing
from conv3d_cli.model.spec import Boundary
from conv3d_cli.model.volume import VolumeReader
from conv3d_cli.network.graph import Node
from conv3d_cli.network.operations.base import Shape
from conv3d_cli.pipeline.outputs import PeakRules
from conv3d_cli.pipeline.request import Stage, Step


@dataclass
class Composition:
    """The stages and steps that an operation makes of a volume, in order.

    Positions of what was added are those in the job; `volume` stands for the volume itself.

    shape : Shape               voxels along D, H, W, and channels, of the volume
    grid : Grid                 of the volume
    boundary : Boundary         what lies beyond the edges
    precision : str             of the arithmetic, "float32" or "float64"
    missing : Missing           policy for missing voxels
    kernel : Kernel or None     the kernel of an operation that takes one, ready to be applied
    template_mask : Kernel or None      volume that tells which voxels of the kernel count
    volume : int                the position of the volume: -1, or of the step that replaced its
                                missing voxels by 0
    certainty : int or None     the position of the voxels' certainties, from 0 for a missing voxel
                                to 1: of one channel, or of as many as the volume has; None: all
                                voxels count alike
    channel_names : tuple       names of the channels that it makes of each channel of the
                                volume, in order; (): it keeps the channels
    reopened : callable or None opens the volume once more, to look at it before the job begins;
                                None: it comes from a pipe, which is read once
    found : dict                what was found by looking at it, by name, for the record
    making : int                bytes of memory that was taken meanwhile, at the most
    writes_table : bool         whether the table that it may have is asked for
    peaks : PeakRules or None   what its peaks are, if it has a table of them
    notes : list of str         for the user
    stages : list               what was added so far

    >>> from conv3d_cli.model.grid import Grid
    >>> made = Composition(Shape(8, 9, 10, 1), Grid(), Boundary("symmetric"))
    >>> smooth = made.convolve("box:size=3")
    >>> made.step("Subtract", made.volume, smooth)
    1
    >>> [(stage.name, stage.inputs) for stage in made.stages]
    [('box:size=3', (-1,)), ('subtract', (-1, 0))]
    """

    shape: Shape
    grid: Grid
    boundary: Boundary
    precision: str = "float32"
    missing: Missing = field(default_factory=Missing)
    kernel: Kernel | None = None
    template_mask: Kernel | None = None
    volume: int = -1
    certainty: int | None = None
    channel_names: tuple[str, ...] = ()
    reopened: Callable[[], AbstractContextManager[VolumeReader]] | None = None
    found: dict[str, float] = field(default_factory=dict)
    making: int = 0
    writes_table: bool = False
    peaks: PeakRules | None = None
    notes: list[str] = field(default_factory=list)
    stages: list[Stage | Step] = field(default_factory=list)

    def convolve(self, kernel: str | Kernel, taken: int | None = None, **settings: Any) -> int:
        """Add a convolution of what stands at a position, by default of the volume.

        settings : those of `Stage`; padding and boundary are those of filters, unless given
        Returns its position.
        """
        settings = {"boundary": self.boundary, "padding": "same", **settings}
        name = kernel.name if isinstance(kernel, Kernel) else kernel
        source = self.volume if taken is None else taken
        self.stages.append(Stage(kernel, name=self._free(name), inputs=(source,), **settings))
        return len(self.stages) - 1

    def step(
        self,
        operation: str,
        *taken: int,
        weights: dict[str, ArrayLike] | None = None,
        **attributes: Any,
    ) -> int:
        """Add an operation of networks that takes what stands at some positions.

        operation : str     its name in `network/operations/catalogue.py`
        Returns its position.
        """
        arrays = {key: np.asarray(value) for key, value in (weights or {}).items()}
        node = Node(self._free(operation.lower()), operation, (), attributes, arrays)
        self.stages.append(Step(node, taken or (self.volume,)))
        return len(self.stages) - 1

    def _free(self, name: str) -> str:
        """A name that no stage has: the name itself, or with a number."""
        taken = {stage.name for stage in self.stages}
        found, number = name, 1
        while found in taken:
            number += 1
            found = f"{name} {number}"
        return found


@dataclass(frozen=True)
class ComposedOperation:
    """An operation that is made of convolutions.

    function : callable     (Composition, /, parameters) -> the position of the output; its name is
                            the operation's
    takes_kernel : bool     it takes the kernel of the job, such as a template
    saves : callable or None    (value of each parameter by name) -> the iterations whose estimates
                            are written to files of their own
    takes_missing : bool    it leaves out missing voxels and weights the others, by
                            `Composition.certainty`; else a mask only says where outputs are written
    takes_template_mask : bool      a volume may tell which voxels of its kernel count
    table : str             the role of a table that it may write beside its output; "": none
    """

    function: Callable[..., int]
    takes_kernel: bool = False
    saves: Callable[[Mapping[str, Any]], Sequence[int]] | None = None
    takes_missing: bool = False
    takes_template_mask: bool = False
    table: str = ""

    @property
    def described(self) -> Described[int]:
        """Its name, parameters and summary."""
        return describe(self.function)

    @property
    def name(self) -> str:
        """Its name, which is that of its command."""
        return self.function.__name__

    def normal_text(self, text: str) -> str:
        """A text with names in lower case. Raises: SpecError for parameters that it lacks."""
        lower = lower_names(text)
        check_parameters(lower, self.described)
        return lower

    def values(self, text: str, grid: Grid | None = None) -> dict[str, Any]:
        """The values of the parameters that a normal text gives; messages call them options.

        Raises: as `grammar.parse_parameters`.
        """
        return parse_parameters(text, self.function, grid, named)
