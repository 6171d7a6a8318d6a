"""Normalised convolution: voxels that are missing, or count less, are left out of a weighted mean.

    y = Σ w·m·x / Σ w·m

w are the kernel's weights, m the certainty of a voxel: a mask's value, 0 where a voxel is missing. Both sums go through the
plan as they stand, numerator and coverage through all passes of a separable kernel, and are divided once. Source: H. Knutsson
and C.-F. Westin, Normalized and differential convolution, CVPR 1993.

Voxels whose window holds every weight keep the bits of the plain convolution. So data without missing voxels cost nothing: the
plain convolution is tried first, and what packing notes on the way tells whether it stands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine import make_plan
from conv3d_cli.engine.normalize import divide, weigh
from conv3d_cli.errors import ShapeError
from conv3d_cli.model.grid import UNITS, Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import AXIS_NAMES, Boundary, ConvProblem
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader
from conv3d_cli.slabs import SlabInput
from conv3d_cli.stream import Convolution

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team

KEPT_BYTES = 128 << 20  # of coverages, which are the same for every time point and channel under a mask
MOST_LABELS = 1 << 16
MASK_TOLERANCE = 0.01  # voxels that a mask's corner may lie from the volume's


def mean_kernel(kernel: Kernel) -> Kernel:
    """The kernel with weights that sum to 1, of which means are made.

    Raises: ShapeError for a layer, and for weights below 0 or of sum 0.
    """
    if kernel.is_layer:
        raise ShapeError(
            f"a mask, missing voxels and boundary renormalize are for filters (3-D kernels), and {kernel.name} is a layer, "
            "which mixes channels; --nan zero takes layers"
        )
    negative = int((kernel.weights < 0).sum())
    if negative or kernel.sum <= 0:
        what = f"has {negative} weights below 0" if negative else "has no weight"
        raise ShapeError(
            f"a mean over the voxels that are there needs weights of one sign, and the kernel {kernel.name} {what} (sum "
            f"{kernel.sum:.6g}); take --nan zero in place of --nan ignore and a mask, and another --boundary than renormalize"
        )
    return replace(kernel, weights=kernel.weights / kernel.sum)


def check_centre(missing: Missing, problem: ConvProblem, kernel: Kernel) -> None:
    """That an output lies under one voxel, where the mask is to be looked up there. Raises: ShapeError."""
    if missing.mask is None or (missing.mask_mode == "extend" and not missing.labels):
        return
    if any(c * d % 1 for c, d in zip(problem.centre, problem.dilation_rate, strict=True)):
        raise ShapeError(
            f"the kernel {kernel.name} has an even size, so its outputs lie between the mask's voxels; "
            "pass --mask-mode extend, or a kernel of odd sizes"
        )


def coverage_problem(problem: ConvProblem, channels: int) -> ConvProblem:
    """The convolution that the weights go through: what is outside counts, as data do, unless the boundary renormalizes."""
    boundary = problem.boundary
    if boundary.mode in ("zeros", "constant"):
        boundary = Boundary("constant", 1.0)
    elif boundary.mode == "mirror-one":
        boundary = Boundary("mirror-one", 1.0)
    return replace(problem, in_channels=channels, filters=channels, groups=channels, boundary=boundary)


def coverage_kernel(kernel: Kernel, problem: ConvProblem, missing: Missing) -> Kernel:
    """The kernel that the weights go through: the same, but under renormalize-depth what it weighs along depth alone.

    Raises: ShapeError where that is not what means are divided by: voxels are missing, or outputs lie outside the volume.
    """
    if problem.boundary.mode != "renormalize-depth":
        return kernel
    if missing.weighs or missing.nan == "ignore":
        raise ShapeError(
            "boundary renormalize-depth is for volumes without missing voxels: take --boundary renormalize with a mask, "
            "--missing or --nan ignore"
        )
    centre = [(k - 1) // 2 for k in kernel.size]
    for axis in (1, 2):
        if (
            max(problem.pad_before[axis], problem.pad_after[axis])
            > kernel.size[axis] // 2 * problem.dilation_rate[axis]
        ):
            raise ShapeError(
                "boundary renormalize-depth is for outputs inside the volume: take --padding same or valid"
            )
    weights = np.zeros_like(kernel.weights)
    weights[:, centre[1], centre[2]] = kernel.weights.sum(axis=(1, 2))
    return replace(kernel, weights=weights)


def normalized(
    convolution: Convolution, missing: Missing, kernel: Kernel, many: bool = False, tells_coverage: bool = False
) -> NormalizedConvolution:
    """A plain convolution, made to do what `missing` asks for.

    kernel : Kernel     as it was planned: see `mean_kernel`
    many : bool         whether it runs over several parts of a volume, which may share their coverage
    """
    plan = convolution.plan
    alike = missing.nan != "ignore" and missing.value is None  # for all channels and time points
    coverage_plan = None
    if missing.divides(plan.problem.boundary):
        channels = 1 if alike and not missing.labels else plan.problem.in_channels
        problem = coverage_problem(plan.problem, channels)
        weights = coverage_kernel(kernel, plan.problem, missing).for_channels(channels)
        try:
            name = plan.algorithm.name
            coverage_plan = make_plan(problem, weights, dtype=plan.dtype, threads=plan.threads, algorithm=name)
        except ShapeError:  # an algorithm for several channels
            coverage_plan = make_plan(problem, weights, dtype=plan.dtype, threads=plan.threads)
    return NormalizedConvolution(
        plan, convolution.is_layer, convolution.bias, convolution.activations, convolution.channels_first,
        convolution.activity, missing=missing, coverage_plan=coverage_plan, keeps_coverage=alike and many,
        tells_coverage=tells_coverage, per_channel=convolution.per_channel, magnitude=convolution.magnitude,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Reading voxels with their weights


class WeighedReader(VolumeReader):
    """A volume's voxels times their weights, the weights, and what else the means need, as further channels.

    A block is (d, h, w, 2·c), or 3·c: products, weights, and under `mask_mode` keep the voxels themselves. Under `labels` it is
    voxels, and labels in place of weights.

    reader : VolumeReader           stays the caller's to close
    mask : VolumeReader or None     random access, one channel, the same D, H, W
    """

    def __init__(self, reader: VolumeReader, mask: VolumeReader | None, missing: Missing, real: np.dtype[Any]) -> None:
        self.reader, self.mask, self.missing, self.path = reader, mask, missing, reader.path
        self.header = replace(reader.header, dtype=real, scale=(1.0, 0.0))
        self.sequential, self.channels_together = reader.sequential, reader.channels_together
        self.notes = reader.notes

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        block = self.reader.read(n, depth, channels)
        return self._weigh(block, None if self.mask is None else self.mask.read(0, depth, slice(0, 1)))

    def _weigh(self, block: Array, mask: Array | None) -> Array:
        missing, real = self.missing, self.header.dtype
        slope, intercept = self.reader.header.scale
        depth, height, width, channels = block.shape
        # a plane's channels lie one after another, so that the engine packs rows of one kind
        out = np.empty((depth, layers_of(missing), channels, height, width), real)
        given = None
        if mask is not None:
            given = mask[..., 0].astype(real)
            scale = self.mask.header.scale  # type: ignore[union-attr]
            if scale != (1.0, 0.0):
                given = given * real.type(scale[0]) + real.type(scale[1])
        if missing.labels or missing.mask_mode == "keep":
            values = block.astype(real)
            if (slope, intercept) != (1.0, 0.0):
                values = values * real.type(slope) + real.type(intercept)
            out[:, 0 if missing.labels else 2] = values.transpose(0, 3, 1, 2)
        if missing.labels:
            assert given is not None
            out[:, 1] = given[:, None]
            if missing.value is not None:
                out[:, 0][(block == missing.value).transpose(0, 3, 1, 2)] = np.nan
        else:
            weigh(
                block, given, out[:, :2], scale=(slope, intercept), finite=missing.nan == "ignore", missing=missing.value
            )  # fmt: skip
        return out.reshape(depth, -1, height, width).transpose(0, 2, 3, 1)

    def release(self, n: int, depth_stop: int) -> None:
        self.reader.release(n, depth_stop)
        if self.mask is not None:
            self.mask.release(0, depth_stop)

    def finish(self) -> None:
        self.reader.finish()
        self.notes = self.reader.notes


def layers_of(missing: Missing) -> int:
    """Kinds of channels in a block of a `WeighedReader`."""
    return 3 if missing.mask_mode == "keep" and not missing.labels else 2


def check_mask(mask: VolumeReader, header: VolumeHeader, labels: bool = False) -> None:
    """That a mask has the volume's grid, one channel, and numbers from 0 on, of which one is above it.

    labels : bool       its numbers are regions: whole, and below `MOST_LABELS`
    Raises: ShapeError.
    """
    size, wanted = mask.header.shape, header.shape
    if size[1:4] != wanted[1:4] or size[0] * size[4] != 1:
        differing = [
            f"{name} {a} against {b}" for name, a, b in zip(AXIS_NAMES, size[1:4], wanted[1:4], strict=True)
            if a != b
        ] + ([f"{size[0]} time points and {size[4]} channels against 1"] if size[0] * size[4] != 1 else [])  # fmt: skip
        raise ShapeError(f"the mask {mask.path} has another grid than the volume: {', '.join(differing)}; resample it")
    apart = _voxels_apart(header.grid, mask.header.grid, wanted[1:4])
    worst = int(apart.argmax())
    if apart[worst] > MASK_TOLERANCE:
        raise ShapeError(
            f"the mask {mask.path} lies elsewhere in the world than the volume: up to {apart[worst]:.3g} voxels along "
            f"{AXIS_NAMES[worst]}; resample it to the volume's grid"
        )
    slope, intercept = mask.header.scale
    low, high = math.inf, -math.inf
    for start in range(0, size[1], 16):
        values = mask.read(0, slice(start, min(start + 16, size[1])), slice(0, 1))
        least, most = float(values.min()), float(values.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ShapeError(f"the mask {mask.path} holds NaN or infinity; weights are numbers from 0 on")
        if labels and (most >= MOST_LABELS or (values.dtype.kind == "f" and (values != np.rint(values)).any())):
            raise ShapeError(f"the labels in {mask.path} must be whole numbers from 0 to {MOST_LABELS - 1}")
        low, high = min(low, least * slope + intercept), max(high, most * slope + intercept)
        mask.release(0, start)
    if low < 0:
        raise ShapeError(f"the mask {mask.path} holds numbers below 0 ({low:g}); weights are numbers from 0 on")
    if high <= 0:
        raise ShapeError(f"the mask {mask.path} is empty: it holds 0 alone")


def _voxels_apart(grid: Grid, other: Grid, size: tuple[int, ...]) -> NDArray[np.float64]:
    """How far, in voxels along D, H, W, another grid's corners lie from a grid's; 0 where either is unknown."""
    if grid.affine is None or other.affine is None or abs(np.linalg.det(grid.affine)) < 1e-30:
        return np.zeros(3)
    factor = 1.0 if grid.unit is None or other.unit is None else UNITS[other.unit] / UNITS[grid.unit]
    corners = np.array([(*c[::-1], 1.0) for c in itertools.product(*((0, n - 1) for n in size))]).T
    theirs = np.diag([factor, factor, factor, 1.0]) @ other.affine
    moved = np.linalg.solve(grid.affine, (theirs - grid.affine) @ corners)[:3]
    return np.asarray(np.abs(moved).max(axis=1)[::-1])


# ---------------------------------------------------------------------------------------------------------------------
# Computing


@dataclass
class NormalizedConvolution(Convolution):
    """A convolution of voxels that may be missing; see `Missing`.

    coverage_plan : Plan or None    of `coverage_problem`; None where no means are taken
    keeps_coverage : bool           the same coverage serves every part: it depends on mask and place alone
    tells_coverage : bool           `coverage` is asked for after each slab
    """

    takes_boxes = False

    missing: Missing = NOTHING
    coverage_plan: Plan | None = None
    keeps_coverage: bool = False
    tells_coverage: bool = False
    _bare: int = 0
    _told: Array | None = None
    _kept: dict[Any, Array] = field(default_factory=dict)
    _kept_bytes: int = 0
    # memory of the last slab: fresh pages cost more than the sums
    _spare: dict[str, Array] = field(default_factory=dict)
    _lately: bool = False  # whether the last slab held a missing voxel: the next one is then not tried plainly

    @property
    def coverage(self) -> Array | None:
        return self._told

    @property
    def bare(self) -> int:
        return self._bare

    def held_bytes(self, planes: int) -> int:
        plan = self.plan
        plane = math.prod(self.problem.in_size[1:]) * self.problem.in_channels * plan.dtype.itemsize
        # read, joined and computed from: weights beside the voxels; sums and coverage of about as many planes
        copies = 3 + ((layers_of(self.missing) - 1) * 4 + 1 if self.missing.weighs else 2)
        kept = math.prod(self.problem.out_size) * plan.dtype.itemsize if self.keeps_coverage else 0
        scratch = 0 if self.coverage_plan is None else self.coverage_plan.scratch_bytes
        return super().held_bytes(planes) + planes * plane * copies + min(KEPT_BYTES, kept) + scratch

    def convolve(
        self,
        slab: SlabInput,
        out: Array,
        team: Team,
        scale: tuple[float, float],
        outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[tuple[int, int, int], tuple[slice, slice, slice]] | None = None,
    ) -> int:
        assert around is None, "means are computed in slabs"
        missing, real = self.missing, self.plan.dtype
        channels = self.problem.in_channels
        self._told = None
        if missing.labels:
            return self._by_labels(slab, out, team, outputs, progress)
        if missing.weighs:
            if slab.source.shape[3] == channels:  # wholly outside: nothing was read
                weights = np.zeros_like(slab.source)
            else:
                weights = slab.source[..., channels : 2 * channels]
            values = slab.source[..., :channels]
            return self._mean(slab, values, weights, out, team, outputs, progress)
        renormalizes = self.problem.boundary.renormalizes
        if not self._lately and not renormalizes:
            noted: list[int] = []
            before = self.activity_sum
            clipped = self._plain(slab, out, team, scale, outputs, progress, noted=noted)
            if not noted:
                return clipped
            self.activity_sum, progress = before, None  # its voxels are counted
        if missing.nan == "propagate":
            ones = np.broadcast_to(np.ones(1, real), slab.source.shape)
            return self._mean(slab, slab.source, ones, out, team, outputs, progress, scale)
        depth, height, width, _ = slab.source.shape
        both = self._memory("voxels", (depth, 2, channels, height, width))
        lost = weigh(slab.source, None, both, scale=scale, finite=True, team=team)
        self._lately = lost > 0
        if lost and missing.nan == "error":
            raise ShapeError(f"NaN or infinity among the voxels, {lost} of them here, and --nan error was asked for")
        values, weights = (both[:, i].transpose(0, 2, 3, 1) for i in (0, 1))
        if missing.nan == "zero" and renormalizes:  # a zero is a voxel
            ones = np.broadcast_to(np.ones(1, real), values.shape)
            return self._mean(slab, values, ones, out, team, outputs, progress)
        if missing.nan == "zero":
            return self._plain(replace(slab, source=values), out, team, (1.0, 0.0), outputs, progress)
        if not lost and not renormalizes:
            return self._plain(slab, out, team, scale, outputs, progress)
        return self._mean(slab, values, weights, out, team, outputs, progress)

    def _mean(
        self, slab: SlabInput, values: Array, weights: Array, out: Array, team: Team, outputs: slice,
        progress: Callable[[int], None] | None, scale: tuple[float, float] = (1.0, 0.0),
    ) -> int:  # fmt: skip
        """Fill `out` with means of values that are multiplied by their weights."""
        missing = self.missing
        inside = None
        if missing.mask is not None and missing.mask_mode != "extend":
            inside = self._at_centre(slab, weights, out.shape) > 0
            if missing.mask_mode == "clip" and not self.tells_coverage and not inside.any():
                if progress is not None:
                    progress(out.size)
                return self._finish(np.zeros((*out.shape[:3], self.problem.filters), self.plan.dtype), out, team)
        coverage = self._coverage(slab, weights, out.shape, team)
        sums = self._memory("sums", (*out.shape[:3], self.problem.filters))
        self.plan.convolve_slab(
            values,
            sums,
            slab.planes,
            team,
            rows=slab.rows,
            columns=slab.columns,
            scale=scale,
            progress=progress,
        )
        fill = 0.0 if missing.mask is not None else math.nan
        self._bare += divide(sums, coverage, missing.min_coverage, fill, team)
        if self.tells_coverage:
            self._told = coverage
        self._activated(sums, outputs)
        if inside is not None:
            self._put_outside(slab, inside, sums)
        return self._finish(sums, out, team)

    def _memory(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array to fill, in the memory that the last one of this name had."""
        count = math.prod(shape)
        if name not in self._spare or self._spare[name].size < count:
            self._spare[name] = np.empty(count, self.plan.dtype)
        return self._spare[name][:count].reshape(shape)

    def _activated(self, sums: Array, outputs: slice) -> None:
        """Bias and activations, in place, which a plain convolution has in its tiles."""
        if self.bias is not None:
            sums += self.bias[outputs]
        if self._in_tiles:
            self._activate(sums)

    def _coverage(self, slab: SlabInput, weights: Array, shape: tuple[int, ...], team: Team) -> Array:
        """Weight that the means of a slab hold, as part of the kernel's."""
        plan = self.coverage_plan
        assert plan is not None
        key = (slab.start, tuple(slab.planes), None if slab.rows is None else tuple(slab.rows))
        if self.keeps_coverage and key in self._kept:
            return self._kept[key]
        size = (*shape[:3], plan.problem.filters)
        lasting = self.keeps_coverage or self.tells_coverage
        coverage = np.empty(size, plan.dtype) if lasting else self._memory("coverage", size)
        self._sum_weights(slab, weights[..., : plan.problem.in_channels], coverage, team)
        if self.keeps_coverage and self._kept_bytes + coverage.nbytes <= KEPT_BYTES:
            self._kept[key] = coverage
            self._kept_bytes += coverage.nbytes
        return coverage

    def _sum_weights(self, slab: SlabInput, weights: Array, coverage: Array, team: Team) -> None:
        assert self.coverage_plan is not None
        self.coverage_plan.convolve_slab(weights, coverage, slab.planes, team, rows=slab.rows, columns=slab.columns)

    def _put_outside(self, slab: SlabInput, inside: Array, sums: Array) -> None:
        """What the mask mode says, where the voxel under the kernel's centre is outside the mask."""
        if self.missing.mask_mode == "clip":
            np.copyto(sums, 0, where=~inside)
        else:
            last = slab.source.shape[3] - self.problem.in_channels
            np.copyto(sums, self._at_centre(slab, slab.source[..., last:], sums.shape), where=~inside)

    def _at_centre(self, slab: SlabInput, voxels: Array, shape: tuple[int, ...]) -> Array:
        """Voxels (d, h, w, c) under the kernel's centre for each output; 0 outside the volume."""
        problem = self.problem
        whole = [slab.planes, slab.rows, slab.columns]
        for axis, indices in enumerate(whole):
            if indices is None:
                indices = problem.source_indices(axis, 0, problem.out_size[axis])
            first = round(problem.centre[axis] * problem.dilation_rate[axis])
            places = np.array(indices[first :: problem.strides[axis]][: shape[axis]])
            if len(places) > 1 and (np.diff(places) == 1).all() and places[0] >= 0:
                taken = voxels[(slice(None),) * axis + (slice(places[0], places[-1] + 1),)]
            else:
                taken = voxels.take(np.maximum(places, 0), axis=axis)
                taken[(slice(None),) * axis + (places < 0,)] = 0
            voxels = taken
        return voxels

    def _by_labels(
        self, slab: SlabInput, out: Array, team: Team, outputs: slice, progress: Callable[[int], None] | None
    ) -> int:
        """Means over the voxels of a voxel's own region, one region after another."""
        real, problem, missing = self.plan.dtype, self.problem, self.missing
        channels = problem.in_channels
        sums = np.zeros((*out.shape[:3], problem.filters), real)
        covered = np.zeros_like(sums)
        if slab.source.shape[3] > channels:
            values, labels = slab.source[..., :channels], slab.source[..., channels]
            own = self._at_centre(slab, labels[..., None], out.shape)[..., 0].astype(np.int64)
            for label in np.flatnonzero(np.bincount(own.ravel())).tolist():
                if label == 0:
                    continue
                mine = (labels == label).astype(real)
                both = self._memory("voxels", (len(values), 2, channels, *values.shape[1:3]))
                weigh(
                    values,
                    mine,
                    both,
                    finite=missing.nan == "ignore" or missing.value is not None,
                    team=team,
                )
                products, weights = (both[:, i].transpose(0, 2, 3, 1) for i in (0, 1))
                part, coverage = np.empty_like(sums), np.empty_like(sums)
                self.plan.convolve_slab(products, part, slab.planes, team, rows=slab.rows, columns=slab.columns)
                self._sum_weights(slab, weights, coverage, team)
                self._bare += divide(part, coverage, missing.min_coverage, 0.0, team)
                here = (own == label)[..., None]
                np.copyto(sums, part, where=here)
                np.copyto(covered, coverage, where=here)
            self._activated(sums, outputs)
            np.copyto(sums, 0, where=(own == 0)[..., None])
            if missing.mask_mode == "keep":
                np.copyto(sums, self._at_centre(slab, values, out.shape), where=(own == 0)[..., None])
        if self.tells_coverage:
            self._told = covered
        if progress is not None:
            progress(sums.size)
        return self._finish(sums, out, team)
