"""A convolution ready to run: the engine's plan, and the steps that follow its sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.losses import Losses
from conv3d_cli.convolution.slabs import SlabInput
from conv3d_cli.errors import ShapeError
from conv3d_cli.model.kernel import require_finite_in
from conv3d_cli.model.ramp import Ramp
from conv3d_cli.model.spec import ConvProblem, Triple
from conv3d_cli.model.volume import Array

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team
    from conv3d_cli.engine.division import Sharing
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.engine.plan import SlabResult
    from conv3d_cli.engine.repetition import Repetition
    from conv3d_cli.engine.weighting import Certainty
    from conv3d_cli.layer.activations import Activation
    from conv3d_cli.model.box import Slices

Penalty = Callable[[Array], float]
SLAB_COPIES = 3  # copies of a slab's sums that activations of whole slabs make


@dataclass
class Convolution:
    """One convolution ready to run: the engine's plan, and the steps that follow its sums.

    plan : Plan                     plan for one part of a volume: all its channels, or one channel
                                    if channels are streamed one by one
    is_layer : bool                 True: each part yields all filters. False (a 3-D kernel or a
                                    bank): it yields the filters of its own channels
    bias : (filters,) or None
    activations : sequence          applied in order. Voxelwise ones run in the engine's tiles; the
                                    first that needs a whole axis, and all after it, run on the slab
    channels_first : bool           softmax then runs along the width, the last axis, as in Keras
    activity : callable or None     penalty of the output, summed over slabs in `activity_sum`
    filters_per_channel : int       filters of each channel, if this is no layer
    magnitude : bool                replace the filters of a channel by the root of the sum of their
                                    squares, after the bias and before the activations
    losses : Losses or None         of the slabs so far; None: nobody asks for them

    Raises: SpecError for a bias or an activation's parameter beyond the range of the plan's dtype.
    """

    plan: Plan
    is_layer: bool
    bias: NDArray[Any] | None = None
    activations: Sequence[Activation] = ()
    channels_first: bool = False
    activity: Penalty | None = None
    activity_sum: float = 0.0
    filters_per_channel: int = 1
    magnitude: bool = False
    losses: Losses | None = None

    takes_boxes: ClassVar[bool] = True  # whether a box can be computed without the rest of its slab
    runs_plan_alone: ClassVar[bool] = True  # whether the plan, once over the source, gives all sums

    @property
    def coverage(self) -> Array | None:
        """The fraction of the kernel's weight that was available to each output of the last slab.

        (d, h, w, c or 1), of the arithmetic's dtype; None for a plain convolution.
        """
        return None

    @property
    def below_min_coverage(self) -> int:
        """Number of outputs so far with less than `min_coverage` of the kernel's weight.

        With a mask, only outputs inside it count.
        """
        return 0

    @property
    def any_mean(self) -> bool:
        """Whether any output (with a mask: any inside it) has enough coverage for a mean."""
        return True

    @property
    def plans(self) -> list[Plan]:
        """All plans that run."""
        return [self.plan]

    def use_threads(self, threads: int) -> None:
        """Plan for another number of threads."""
        for plan in self.plans:
            plan.use_threads(threads)

    def tasks_for(self, size: Triple) -> int:
        """The number of tasks of a box of outputs (d, h, w), which can all run at once."""
        return self.plan.tasks_for(size)

    def sharing(self, size: Triple) -> Sharing:
        """How the threads are predicted to share a box of outputs (d, h, w)."""
        return self.plan.sharing(size)

    def loops_to_load(
        self, source: np.dtype[Any], out: np.dtype[Any], scale: tuple[float, float]
    ) -> list[MachineCode]:
        """The functions that slabs call, from voxels of a dtype and scale to another dtype.

        None is loaded for it. Functions that few slabs need are left out; `convolve` loads those.
        """
        stored = self.plan.dtype if self.on_slabs else out
        numerators = self.plan.loops_to_load(source, stored, scale, self._policy)
        activation = self._tile_activation
        ramps = [self.plan.ramp_code(activation)] if isinstance(activation, Ramp) else []
        return [*numerators, *ramps, *self._finishing(out)]

    def _finishing(self, out: np.dtype[Any]) -> list[MachineCode]:
        """The functions that `_finish` calls."""
        codes = [self.plan.store_code(out)]
        if self.magnitude:
            from conv3d_cli.engine.magnitude import magnitude_code

            codes.append(magnitude_code(self.filters_per_channel, self.plan.dtype))
        return codes

    @property
    def _policy(self) -> Certainty | None:
        """Which voxels are missing; None: none."""
        return None

    def memory(self, planes: int, computed: int) -> dict[str, int]:
        """Bytes by name, in addition to input, output and the plan's scratch and weights.

        planes : int    input planes in memory
        computed : int  output planes computed at once
        """
        sums = self._sums_bytes(computed)
        if self.magnitude:
            return {"sums": sums}
        return {"sums": (1 + SLAB_COPIES) * sums} if self.on_slabs else {}

    def _sums_bytes(self, computed: int) -> int:
        problem = self.problem
        return (
            computed * math.prod(problem.out_size[1:]) * problem.filters * self.plan.dtype.itemsize
        )

    def with_mask(self, slab: SlabInput, stop: int) -> SlabInput:
        """The slab with the mask's planes that it needs, if there is a mask.

        slab : SlabInput    input of the output planes from `slab.start` to `stop` - 1
        Called by the thread that reads slabs.
        """
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
            from conv3d_cli.engine.magnitude import VectorRoom  # imports Numba

            self._vectors = VectorRoom()
        effective = [a for a in self.activations if not a.is_linear]
        split = next(
            (i for i, a in enumerate(effective) if a.kind != "voxel" or self.magnitude),
            len(effective),
        )
        self._in_tiles, self._on_slabs = effective[:split], effective[split:]

    @property
    def problem(self) -> ConvProblem:
        """The integers of the convolution of one part of a volume."""
        return self.plan.problem

    def outputs(self, channels: slice) -> slice:
        """The filters that are applied to these input channels."""
        if self.is_layer:
            return slice(0, self.problem.filters)
        filters = self.filters_per_channel
        return slice(channels.start * filters, channels.stop * filters)

    def stored(self, channels: slice, count: int) -> slice:
        """The channels of an output volume (of `count` channels) that these input channels fill."""
        fills_all = self.is_layer or any(activation.halves for activation in self.activations)
        if fills_all:
            return slice(0, count)
        return channels if self.magnitude else self.outputs(channels)

    @property
    def channels_out(self) -> int:
        """Channels of the output. Raises: ShapeError, see `channels_after`."""
        filters = self.problem.filters // (self.filters_per_channel if self.magnitude else 1)
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
        """Fill out (d, h, w, c) with a slab's result. Returns the number of clipped values.

        scale : (slope, intercept)          of the stored voxels
        outputs : slice                     the filters to compute, see the method `outputs`
        progress : callable or None         gets the number of values finished, from any thread
        around : (sizes, place) or None     a larger box to compute, and the place of `out` in it
        Raises: ValueError for an array or a table that does not fit, see `Plan.convolve_slab`.
        """
        clipped = self._results(slab, out, team, scale, outputs, progress, around)
        if self.losses is not None:
            self.losses.see(
                slab.source,
                out,
                scale,
                self.exact_dtype(out.dtype),
                team,
                inside=None if slab.mask is None else slab.mask.source,
                has_missing=self.has_missing,
            )
        return clipped

    def take_losses(self) -> Losses | None:
        """The losses since the last call, for a process that adds up those of several."""
        found = self.losses
        if found is not None:
            self.losses = Losses(found.sums_weights, found.is_linear, found.gain)
        return found

    def exact_dtype(self, out: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype whose rounding integers of the input go through; the output has `out`."""
        return self.plan.dtype

    @property
    def has_missing(self) -> bool:
        """Whether outputs may be NaN by request."""
        return False

    def repetition(self, slab: SlabInput, out: Array) -> Repetition | None:
        """A whole volume, ready to be computed again; None if it takes more than the plan's tiles.

        slab, out : its arrays; see `Plan.repetition`
        """
        if not self.runs_plan_alone or self.on_slabs or self.losses is not None:
            return None
        return self.plan.repetition(slab.source, out, slab.planes, self.bias, self._tile_activation)

    def _results(
        self,
        slab: SlabInput,
        out: Array,
        team: Team,
        scale: tuple[float, float],
        outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[Triple, Slices] | None = None,
    ) -> int:
        """See `convolve`."""
        return self._plain(slab, out, team, scale, outputs, progress, around).clipped

    def _plain(
        self,
        slab: SlabInput,
        out: Array,
        team: Team,
        scale: tuple[float, float],
        outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[Triple, Slices] | None = None,
        flags_incomplete: bool = False,
        certainty: Certainty | None = None,
    ) -> SlabResult:
        """See `convolve`; flags_incomplete, certainty and the result: see `Plan.convolve_slab`."""
        bias = None if self.bias is None else self.bias[outputs]
        whole = self.on_slabs or around is not None
        size = out.shape[:3] if around is None else around[0]
        sums = out
        if self.magnitude:
            sums = self._vectors.array(size, self.problem.filters, self.plan.dtype)
        elif whole:
            sums = np.empty((*size, self.problem.filters), self.plan.dtype)
        if self.plan.checks is not None:
            self.plan.checks.first_plane = slab.start
        result = self.plan.convolve_slab(
            slab.source,
            sums,
            slab.planes,
            team,
            rows=slab.rows,
            columns=slab.columns,
            scale=scale,
            bias=bias,
            activation=self._tile_activation,
            progress=progress,
            flags_incomplete=flags_incomplete,
            certainty=certainty,
        )
        if not whole:
            return result
        return result._replace(
            clipped=self._finish(sums if around is None else sums[around[1]], out, team)
        )

    def _finish(self, sums: Array, out: Array, team: Team) -> int:
        """Apply the steps of whole slabs to its sums and store them. Returns the number clipped."""
        if self.magnitude:
            from conv3d_cli.engine.magnitude import magnitudes

            sums = magnitudes(sums, self.filters_per_channel, team)
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
        """Whether a step runs on whole slabs, for which their sums are kept in the plan's dtype."""
        return bool(self._on_slabs) or self.magnitude or self.activity is not None

    @property
    def _tile_activation(self) -> Ramp | Callable[[Array], None] | None:
        """What the engine applies to tiles: compiled, if it is one activation of two parts."""
        ramp = self._in_tiles[0].ramp if len(self._in_tiles) == 1 else None
        return ramp or (self._activate if self._in_tiles else None)

    def _activate(self, tile: NDArray[Any]) -> None:
        for activation in self._in_tiles:
            activation.in_place(tile)


def channels_after(channels: int, activations: Sequence[Activation], channels_first: bool) -> int:
    """The number of channels after activations: each glu halves it.

    Raises: ShapeError if the number is odd, or under channels_first.
    """
    for activation in activations:
        if activation.halves:
            if channels_first:
                raise ShapeError(
                    "activation 'glu' halves the last axis, which under channels_first is the "
                    "width: the output would not have the volume's width; use data_format "
                    "channels_last"
                )
            if channels % 2:
                raise ShapeError(
                    f"activation 'glu' halves the channels, received an odd number: {channels}; "
                    "use an even number of filters"
                )
            channels //= 2
    return channels
