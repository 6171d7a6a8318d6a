"""A convolution made ready: the engine's plan, and what happens to its sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.slabs import SlabInput
from conv3d_cli.errors import ShapeError
from conv3d_cli.model.kernel import require_finite_in
from conv3d_cli.model.spec import ConvProblem, Triple
from conv3d_cli.model.volume import Array

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team
    from conv3d_cli.engine.plan import SlabResult
    from conv3d_cli.engine.weighting import Certainty
    from conv3d_cli.layer.activations import Activation
    from conv3d_cli.model.box import Slices

Penalty = Callable[[Array], float]
SLAB_COPIES = 3  # of its sums, that activations of whole slabs make


@dataclass
class Convolution:
    """One convolution made ready: the engine's plan, and what happens to its sums.

    plan : Plan                     of one part of a volume: all channels, or one where channels are streamed one by one
    is_layer : bool                 whether a part gives all filters, or (a 3-D kernel, a bank) those of its own channels
    bias : (filters,) or None
    activations : list              in order; those that look at one voxel run in the engine's tiles, from the first that
                                    needs a whole axis on they run on the slab
    channels_first : bool           the last axis of a softmax is then the width, as in Keras
    activity : callable or None     penalty of the output, summed over slabs in `activity_sum`
    per_channel : int               filters of each channel, where it is no layer
    magnitude : bool                the filters of a channel become one number: the root of the sum of their squares, taken after
                                    the bias and before the activations
    """

    plan: Plan
    is_layer: bool
    bias: NDArray[Any] | None = None
    activations: Sequence[Activation] = ()
    channels_first: bool = False
    activity: Penalty | None = None
    activity_sum: float = 0.0
    per_channel: int = 1
    magnitude: bool = False

    takes_boxes: ClassVar[bool] = True  # whether boxes may be computed by themselves

    @property
    def coverage(self) -> Array | None:
        """The fraction of the kernel's weight that was available to each output of the last slab.

        (d, h, w, c or 1), of the arithmetic's dtype; None for a plain convolution.
        """
        return None

    @property
    def below_min_coverage(self) -> int:
        """How many outputs so far (with a mask: inside it) had less than `min_coverage` of the kernel's weight."""
        return 0

    @property
    def any_mean(self) -> bool:
        """Whether some output (with a mask: inside it) has enough coverage for a mean."""
        return True

    @property
    def plans(self) -> list[Plan]:
        """All plans that run."""
        return [self.plan]

    def memory(self, planes: int, made: int) -> dict[str, int]:
        """Bytes taken beside input, output, the plan's scratch and weights, by name.

        planes, made : int      planes of the input at hand, and of the output computed at once
        """
        sums = self._sums_bytes(made)
        if self.magnitude:
            return {"sums": sums}
        return {"sums": (1 + SLAB_COPIES) * sums} if self.on_slabs else {}

    def _sums_bytes(self, made: int) -> int:
        problem = self.problem
        return made * math.prod(problem.out_size[1:]) * problem.filters * self.plan.dtype.itemsize

    def with_mask(self, slab: SlabInput, stop: int) -> SlabInput:
        """The input of output planes up to `stop`, with a mask's beside it if there is one; called where slabs are read."""
        return slab

    def __post_init__(self) -> None:
        real = self.plan.dtype
        if self.bias is not None:
            largest = float(max(self.bias, key=abs))
            require_finite_in(largest, real, f"the bias, with {largest:.3g}, is")
            self.bias = self.bias.astype(real)
        for activation in self.activations:
            for key, value in activation.config.items():
                if isinstance(value, int | float):
                    require_finite_in(value, real, f"{key} of activation {activation.name} is")
        if self.magnitude:
            # late: it knows the compiler's loops
            from conv3d_cli.engine.magnitude import (
                VectorRoom,
            )

            self._vectors = VectorRoom()
        useful = [a for a in self.activations if not a.is_linear]
        split = next(
            (i for i, a in enumerate(useful) if a.kind != "voxel" or self.magnitude), len(useful)
        )
        self._in_tiles, self._on_slabs = useful[:split], useful[split:]

    @property
    def problem(self) -> ConvProblem:
        return self.plan.problem

    def outputs(self, channels: slice) -> slice:
        """The filters that these input channels go through."""
        if self.is_layer:
            return slice(0, self.problem.filters)
        return slice(channels.start * self.per_channel, channels.stop * self.per_channel)

    def stored(self, channels: slice, count: int) -> slice:
        """Where the output of these input channels belongs in a volume of `count` channels."""
        every = self.is_layer or any(activation.halves for activation in self.activations)
        if every:
            return slice(0, count)
        return channels if self.magnitude else self.outputs(channels)

    @property
    def channels_out(self) -> int:
        """Channels of the output. Raises: ShapeError, see `channels_after`."""
        filters = self.problem.filters // (self.per_channel if self.magnitude else 1)
        return channels_after(filters, self.activations, self.channels_first)

    def convolve(
        self,
        slab: SlabInput,
        out: Array,
        team: Team,
        scale: tuple[float, float],
        outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[Triple, Slices] | None = None,
    ) -> int:
        """Fill out (d, h, w, c) with a slab's result. Returns how many voxels its dtype could not hold.

        around : (sizes, place) or None     a larger box to compute, and the place of `out` in it
        """
        return self._plain(slab, out, team, scale, outputs, progress, around).clipped

    def _plain(
        self, slab: SlabInput, out: Array, team: Team, scale: tuple[float, float], outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[Triple, Slices] | None = None, flags_incomplete: bool = False,
        certainty: Certainty | None = None,
    ) -> SlabResult:  # fmt: skip
        """See `convolve`; flags_incomplete, certainty and the result: see `Plan.convolve_slab`."""
        bias = None if self.bias is None else self.bias[outputs]
        whole = self.on_slabs or around is not None
        size = out.shape[:3] if around is None else around[0]
        sums = out
        if self.magnitude:
            sums = self._vectors.array(size, self.problem.filters, self.plan.dtype)
        elif whole:
            sums = np.empty((*size, self.problem.filters), self.plan.dtype)
        result = self.plan.convolve_slab(
            slab.source, sums, slab.planes, team, rows=slab.rows, columns=slab.columns,
            scale=scale, bias=bias, activation=self._activate if self._in_tiles else None, progress=progress,
            flags_incomplete=flags_incomplete, certainty=certainty,
        )  # fmt: skip
        if not whole:
            return result
        return result._replace(
            clipped=self._finish(sums if around is None else sums[around[1]], out, team)
        )

    def _finish(self, sums: Array, out: Array, team: Team) -> int:
        """Do what is left to do with a slab's activated sums. Returns how many voxels the output's dtype could not hold."""
        if self.magnitude:
            from conv3d_cli.engine.magnitude import magnitudes

            sums = magnitudes(sums, self.per_channel, team)
        for activation in self._on_slabs:
            if self.channels_first and activation.kind == "axis":
                sums = np.moveaxis(activation(np.moveaxis(sums, 2, -1)), -1, 2)
            else:
                sums = activation(sums)
        if self.activity is not None:
            self.activity_sum += self.activity(sums)
        return self.plan.store(sums, out)

    @property
    def on_slabs(self) -> bool:
        """Whether something runs on whole slabs after the sums: then they are held in the arithmetic's dtype first."""
        return bool(self._on_slabs) or self.magnitude or self.activity is not None

    def _activate(self, tile: NDArray[Any]) -> None:
        for activation in self._in_tiles:
            activation.in_place(tile)


def channels_after(channels: int, activations: Sequence[Activation], channels_first: bool) -> int:
    """Channels that are left after activations: a glu halves them.

    Raises: ShapeError if there is an odd number to halve.
    """
    for activation in activations:
        if activation.halves:
            if channels_first:
                raise ShapeError(
                    "activation 'glu' halves the last axis, which under channels_first is the width: a volume has no place "
                    "for that; use data_format channels_last"
                )
            if channels % 2:
                raise ShapeError(
                    f"activation 'glu' halves the channels, received an odd number of them: {channels}"
                )
            channels //= 2
    return channels
