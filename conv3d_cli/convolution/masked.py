"""Masked convolution: weighted means that leave out missing voxels and weigh the others.

    y = numerator / coverage = Σ w·c·x / Σ w·c

w is the kernel (the applicability, of sum 1). c is the certainty of a voxel: the mask's value
divided by its largest, and 0 for a missing voxel. Coverage is the fraction of the kernel's weight
that was available. Each sum has its own plan and goes through all passes of a separable kernel
before the one division. This is the normalized convolution of H. Knutsson and C.-F. Westin,
Normalized and differential convolution, CVPR 1993.

Outputs whose coverage is 1 have the bits of the plain convolution. So missing voxels cost nothing
where there are none: the plain convolution runs first, and packing flags the windows that hold a
certainty other than 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.masks import Mask
from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.regions import (
    CertaintySource,
    EdgeCoverage,
    Flags,
    Positions,
    boxes_around,
    classify_blocks,
    count_outside,
    flags_outside,
    strips_of,
)
from conv3d_cli.convolution.slabs import SlabInput, SlabSource
from conv3d_cli.engine import make_plan
from conv3d_cli.engine.team import SerialWorker
from conv3d_cli.engine.weighting import (
    Certainty,
    Division,
    clear,
    clear_code,
    divide,
    extents_code,
    flags_code,
    label_extents,
    near_one,
)
from conv3d_cli.errors import ShapeError, setting
from conv3d_cli.model.box import Box, Size, Slices, align, count_voxels
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Boundary, ConvProblem, Triple
from conv3d_cli.model.volume import Array

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.engine.plan import SlabResult

BLOCK = (8, 16, 32)  # outputs that are classified together
# If up to this fraction of a slab's outputs have missing voxels in their windows, run the plain
# convolution of the next slab before classifying it.
RECHECK_FRACTION = 1 / 4
# If more than this fraction of a slab's outputs need division, divide all outputs of the next
# slabs without classifying them: up to this many slabs, while the fraction stays as high.
MOSTLY_INCOMPLETE, SKIPPED_SLABS = 0.9, 3
# Largest cache of coverages, which under a mask alone are the same for all time points and channels
COVERAGE_CACHE_BYTES = 128 << 20


def mean_kernel(kernel: Kernel) -> Kernel:
    """The kernel with its weights divided by their sum, as means need them.

    Raises: ShapeError for a layer, for weights below 0, and for weights of sum 0.

    >>> mean_kernel(Kernel(np.ones((1, 2, 2)))).weights.tolist()
    [[[0.25, 0.25], [0.25, 0.25]]]
    """
    if kernel.is_layer:
        raise ShapeError(
            "a mask, missing voxels and boundary renormalize need a filter (a 3-D kernel), "
            f"received a layer, {kernel.title}, which mixes channels; use {setting('nan', 'zero')} "
            "with layers"
        )
    negative = int((kernel.weights < 0).sum())
    if negative or kernel.sum <= 0:
        weights = "weight" if negative == 1 else "weights"
        fault = f"has {negative} {weights} below 0" if negative else "has no weight"
        raise ShapeError(
            "a mask, missing voxels and boundary renormalize take means, which need non-negative "
            f"weights, but {kernel.title} {fault} (sum {kernel.sum:.6g}); use "
            f"{setting('nan', 'zero')} instead of a mask or {setting('nan', 'ignore')}, and "
            f"another {setting('boundary')} than renormalize"
        )
    moderate = kernel.moderate()
    return replace(kernel, weights=moderate.weights / moderate.sum)


def check_centre(missing: Missing, problem: ConvProblem, kernel: Kernel) -> None:
    """Check that each output lies at a voxel, if the mask is read there.

    Raises: ShapeError for a kernel whose centre lies between voxels.
    """
    if missing.mask is None or (missing.mask_mode == "extend" and not missing.labels):
        return
    if any(c * d % 1 for c, d in zip(problem.centre, problem.dilation_rate, strict=True)):
        raise ShapeError(
            f"{kernel.title} has an even size, so its outputs lie between the mask's "
            f"voxels; pass {setting('mask_mode', 'extend')}, or use a kernel of odd size"
        )


def coverage_problem(problem: ConvProblem, channels: int) -> ConvProblem:
    """The convolution of the certainties of `channels` channels, each on its own.

    Voxels outside the volume have certainty 1, or 0 if the boundary renormalizes.
    """
    boundary = problem.boundary
    if boundary.mode in ("zeros", "constant"):
        boundary = Boundary("constant", 1.0)
    elif boundary.mode == "mirror-one":
        boundary = Boundary("mirror-one", 1.0)
    return replace(
        problem, in_channels=channels, filters=channels, groups=channels, boundary=boundary
    )


def check_edges(boundary: Boundary) -> None:
    """Check that the boundary can be combined with missing voxels.

    Raises: ShapeError for renormalize-depth.
    """
    if boundary.mode == "renormalize-depth":
        raise ShapeError(
            "boundary renormalize-depth is for volumes without missing voxels; use "
            f"{setting('boundary', 'renormalize')} with a mask, {setting('missing')} or "
            f"{setting('nan', 'ignore')}"
        )


def edge_coverage(problem: ConvProblem, kernel: Kernel) -> EdgeCoverage:
    """The coverage if only voxels outside the volume are missing.

    Under renormalize-depth only voxels outside along depth are missing.
    Raises: ShapeError if renormalize-depth is padded beyond the volume along height or width.
    """
    if problem.boundary.mode != "renormalize-depth":
        return EdgeCoverage(problem, kernel.weights)
    for axis in (1, 2):
        reach = kernel.size[axis] // 2 * problem.dilation_rate[axis]
        if max(problem.pad_before[axis], problem.pad_after[axis]) > reach:
            raise ShapeError(
                "boundary renormalize-depth needs outputs inside the volume; use "
                f"{setting('padding', 'same')} or valid"
            )
    return EdgeCoverage(problem, kernel.weights, axes=(0,))


def masked_convolution(
    convolution: Convolution,
    missing: Missing,
    kernel: Kernel,
    mask: Mask | None = None,
    several_parts: bool = False,
    reports_coverage: bool = False,
) -> MaskedConvolution:
    """Extend a plain convolution by a policy for missing voxels.

    kernel : Kernel             the kernel of `convolution`, see `mean_kernel`
    mask : Mask or None         of the volume
    several_parts : bool        the convolution will run over several parts of a volume, which may
                                share their coverage
    reports_coverage : bool     the caller reads `coverage` after each slab
    Raises: ShapeError for a boundary that missing voxels or the padding exclude.
    """
    plan = convolution.plan
    boundary = plan.problem.boundary
    is_shared = certainty_is_shared(missing) and not missing.labels
    coverage_plan = edges = None
    if missing.has_weights or missing.nan == "ignore":
        check_edges(boundary)
        coverage_plan = _coverage_plan(plan, kernel, 1 if is_shared else plan.problem.in_channels)
        if plan.depth_step % coverage_plan.block_alignment.depth:
            # slabs begin at multiples of the numerator's depth_step, which do not fit this plan
            coverage_plan = _coverage_plan(plan, kernel, plan.problem.in_channels)
    elif boundary.renormalizes:
        edges = edge_coverage(plan.problem, kernel)
    plain = {field.name: getattr(convolution, field.name) for field in fields(Convolution)}
    return MaskedConvolution(
        **plain,
        missing=missing,
        mask=mask,
        coverage_plan=coverage_plan,
        edges=edges,
        keeps_coverage=is_shared and missing.has_weights and several_parts,
        reports_coverage=reports_coverage,
    )


def _coverage_plan(plan: Plan, kernel: Kernel, channels: int) -> Plan:
    """The plan for the certainties, by the numerator's algorithm unless it refuses one channel."""
    problem, weights = coverage_problem(plan.problem, channels), kernel.for_channels(channels)
    try:
        return make_plan(
            problem, weights, dtype=plan.dtype, threads=plan.threads, algorithm=plan.algorithm.name
        )
    except ShapeError:  # the algorithm needs several channels
        return make_plan(problem, weights, dtype=plan.dtype, threads=plan.threads)


# --------------------------------------------------------------------------------------------------
# Computing


@dataclass
class SlabHistory:
    """State that a masked convolution carries from one slab to the next.

    below_min_coverage : int    outputs so far with too little coverage
    any_mean : bool             some output inside the mask had enough coverage
    coverage : array or None    of the last slab (d, h, w, c or 1), if it is reported
    had_missing : bool          many windows of the last slab had missing voxels, so the next one is
                                classified before anything is summed
    slabs_until_recheck : int   slabs to divide everywhere before the next one is classified
    coverage_cache : dict       boxes and coverage of a slab by its first output plane, for the next
                                part of the volume
    cached_bytes : int          bytes of the coverages in the cache
    buffers : dict              memory of the last slab by its use; touching fresh pages takes
                                longer than the sums
    """

    below_min_coverage: int = 0
    any_mean: bool = False
    coverage: Array | None = None
    had_missing: bool = False
    slabs_until_recheck: int = 0
    coverage_cache: dict[int, _SlabBoxes] = field(default_factory=dict)
    cached_bytes: int = 0
    buffers: dict[str, Array] = field(default_factory=dict)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An uninitialized array in the memory of the previous one of this name, if it fits."""
        count = math.prod(shape)
        if name not in self.buffers or self.buffers[name].size < count:
            self.buffers[name] = np.empty(count, dtype)
        return self.buffers[name][:count].reshape(shape)


@dataclass
class MaskedConvolution(Convolution):
    """A convolution of voxels that may be missing; made by `masked_convolution`.

    missing : Missing               the policy
    mask : Mask or None
    coverage_plan : Plan or None    plan of `coverage_problem`; None if no means are taken, or if
                                    `edges` gives the coverage
    edges : EdgeCoverage or None    the coverage if only voxels outside the volume are missing
    keeps_coverage : bool           coverage depends on the mask alone: compute it for the first
                                    part of the volume and cache it for the others
    reports_coverage : bool         the caller reads `coverage` after each slab
    history : SlabHistory           state from slab to slab
    """

    takes_boxes = False
    runs_plan_alone = False

    missing: Missing = NOTHING
    mask: Mask | None = None
    coverage_plan: Plan | None = None
    edges: EdgeCoverage | None = None
    keeps_coverage: bool = False
    reports_coverage: bool = False
    history: SlabHistory = field(default_factory=SlabHistory)

    @property
    def coverage(self) -> Array | None:
        return self.history.coverage

    @property
    def below_min_coverage(self) -> int:
        return self.history.below_min_coverage

    @property
    def any_mean(self) -> bool:
        return self.mask is None or self.history.any_mean

    @property
    def plans(self) -> list[Plan]:
        return [self.plan] if self.coverage_plan is None else [self.plan, self.coverage_plan]

    def memory(self, planes: int, computed: int) -> dict[str, int]:
        plan = self.plan
        area, itemsize = math.prod(self.problem.in_size[1:]), plan.dtype.itemsize
        voxels = planes * area * self.problem.in_channels * itemsize
        use = super().memory(planes, computed)
        # the sums, and their copies for activations and labels
        use["sums"] = use.get("sums", 0) + voxels * (2 + self.missing.labels)
        if self.mask is not None:
            # stored values, and certainties both of this slab and of the one being read
            stored = self.mask.reader.header.dtype.itemsize
            certainty = self.mask.certainty_dtype(plan.dtype).itemsize
            use["masks"] = planes * area * (stored + 2 * certainty)
        cached = math.prod(self.problem.out_size) * itemsize if self.keeps_coverage else 0
        use["coverage"] = min(COVERAGE_CACHE_BYTES, cached)
        if self.reports_coverage:
            use["coverage"] += voxels
        if self.coverage_plan is not None:
            use["scratch"] = self.coverage_plan.scratch_for((computed, *self.problem.out_size[1:]))
        return use

    def loops_to_load(
        self, source: np.dtype[Any], out: np.dtype[Any], scale: tuple[float, float]
    ) -> list[MachineCode]:
        real, weights = self.plan.dtype, self._policy._replace(replaces_source=True)
        if self._plain_first or not self._takes_means:
            return super().loops_to_load(source, out, scale)
        codes = [*self.plan.loops_to_load(source, real, scale, self._policy), *self._finishing(out)]
        if self.coverage_plan is None:
            return [*codes, Division(self.missing.min_coverage, math.nan).code(real)]
        division = Division(self.missing.min_coverage, 0.0)
        mask = None if self.mask is None else self.mask.certainty_dtype(real)
        if mask is not None:
            inside = np.dtype(np.uint8) if self.missing.labels else mask
            division = division._replace(inside=np.empty(0, inside))
            if self._mask_mode == "clip":
                codes.append(clear_code(real, mask))
            if self.missing.labels:
                codes.append(extents_code(mask))
            else:
                codes.append(flags_code(mask, mask, is_mask=True))
        if mask is not None and self._mask_is_certainty:
            return [*codes, *self.coverage_plan.loops_to_load(mask, real, division=division)]
        if not self.missing.labels:
            codes.append(flags_code(source, real, is_mask=False))
        return [
            *codes,
            *self.coverage_plan.loops_to_load(source, real, scale, weights, division),
        ]

    @property
    def _policy(self) -> Certainty:
        """The certainty of voxels; of the mask's values only their dtype."""
        mask = None
        if self.mask is not None:
            mask = np.empty((0, 0, 0), self.mask.certainty_dtype(self.plan.dtype))
        missing = self.missing
        return Certainty(
            mask, nonfinite_missing=missing.nan != "propagate", missing_value=missing.value
        )

    @property
    def _plain_first(self) -> bool:
        """Whether a slab is convolved before anybody looks for missing voxels."""
        renormalizes = self.problem.boundary.renormalizes
        return not (self.missing.has_weights or renormalizes or self.history.had_missing)

    @property
    def _mask_mode(self) -> str:
        """As in `Missing`; no region of labels has means outside itself."""
        mode = self.missing.mask_mode
        return "clip" if mode == "extend" and self.missing.labels else mode

    @property
    def _takes_means(self) -> bool:
        return self.coverage_plan is not None or self.edges is not None

    def with_mask(self, slab: SlabInput, stop: int) -> SlabInput:
        if self.mask is None:
            return slab
        source = SlabSource(self.mask.reader, 0, slice(0, 1), self.problem)
        stored = source.read(slab.start, stop)
        certainty = self.mask.certainty(stored.source[..., 0], self.plan.dtype)
        source.release(slab.start)
        return replace(slab, mask=replace(stored, source=certainty[..., None]))

    @property
    def has_missing(self) -> bool:
        return self.coverage_plan is not None or self.edges is not None

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
        if around is not None:
            raise ValueError("means are computed in slabs of whole planes, received a box")
        missing, history = self.missing, self.history
        history.coverage = None
        certainty = self._certainty(slab)
        flagged: list[Box] = []
        plain_first = self._plain_first
        if plain_first or not self._takes_means:
            activity_before = self.activity_sum
            clipped, flagged = self._plain(
                slab,
                out,
                team,
                scale,
                outputs,
                progress,
                flags_incomplete=True,
                certainty=certainty,
            )
            if not flagged or missing.nan == "zero":
                return clipped
            self._refuse_nonfinite(slab, scale)
            # undo the penalty; the progress of these outputs is reported already
            self.activity_sum, progress = activity_before, None
        size = (*out.shape[:3], self.problem.filters)
        in_place = out.dtype == self.plan.dtype and out.shape == size and not self.on_slabs
        sums = out if in_place else history.buffer("sums", size, self.plan.dtype)
        work = _Work(slab, sums, team, scale, certainty)
        if missing.labels:
            self._mean_by_label(work)
        elif self.edges is not None:
            if self._sum(work, Box.whole(size), team, flags_incomplete=True).flagged:
                self._refuse_nonfinite(slab, scale)
            self._divide_edges(work, self.edges)
        else:
            is_summed = plain_first and in_place and self.bias is None and not self._in_tiles
            self._mean(work, is_summed, flagged)
        if progress is not None:
            progress(out.size)
        return self._finish_means(work, out, outputs)

    def _refuse_nonfinite(self, slab: SlabInput, scale: tuple[float, float]) -> None:
        """Raises: ShapeError if the policy is nan=error; the slab holds NaN or infinity."""
        if self.missing.nan == "error":
            count = int((~np.isfinite(slab.source * scale[0] + scale[1])).sum())
            raise ShapeError(
                f"{setting('nan', 'error')} allows no NaN or infinity among the voxels, received "
                f"{count} in the slab that begins at output plane {slab.start}; use "
                f"{setting('nan', 'ignore')} or {setting('nan', 'zero')}"
            )

    def _certainty(self, slab: SlabInput) -> Certainty:
        """The certainty of a slab's voxels."""
        if slab.mask is None:
            return self._policy
        return self._policy._replace(
            mask=slab.mask.source[..., 0], positions=self._positions(slab.mask)
        )

    def _positions(self, slab: SlabInput) -> Positions:
        """For each position that taps span along depth, height and width, its index in the source.

        The index is -1 outside the volume.
        """
        rows, columns = whole_planes(self.problem)
        return (
            slab.planes,
            rows if slab.rows is None else slab.rows,
            columns if slab.columns is None else slab.columns,
        )

    # -- the two sums

    def _sum(
        self,
        work: _Work,
        box: Box,
        team: Team,
        out: Array | None = None,
        flags_incomplete: bool = False,
    ) -> SlabResult:
        """Compute the numerators of a box of a slab, in `work.sums` or in `out`."""
        planes, rows, columns = _crop_positions(self._positions(work.slab), self.problem, box)
        return self.plan.convolve_slab(
            work.slab.source,
            work.sums[box.slices] if out is None else out,
            planes,
            team,
            rows=rows,
            columns=columns,
            scale=work.scale,
            flags_incomplete=flags_incomplete,
            certainty=_crop_certainty(work.certainty, self.problem, box),
        )

    def _divide(
        self, work: _Work, box: Box, team: Team, division: Division, sums: Array | None = None
    ) -> int:
        """Divide a box of `work.sums`, or `sums`, by its coverage.

        Returns the number of outputs below the minimal coverage.
        """
        plan = self.coverage_plan
        assert plan is not None
        positions, source, scale = self._positions(work.slab), work.slab.source, work.scale
        source = source[..., : plan.problem.in_channels]
        certainty: Certainty | None = _crop_certainty(work.certainty, self.problem, box)._replace(
            replaces_source=True
        )
        if self._mask_is_certainty and work.slab.mask is not None:  # the voxels need not be read
            positions, source = self._positions(work.slab.mask), work.slab.mask.source
            scale, certainty = (1.0, 0.0), None
        planes, rows, columns = _crop_positions(positions, self.problem, box)
        return plan.convolve_slab(
            source,
            work.sums[box.slices] if sums is None else sums,
            planes,
            team,
            rows=rows,
            columns=columns,
            scale=scale,
            certainty=certainty,
            division=division,
        ).clipped

    @property
    def _mask_is_certainty(self) -> bool:
        """Whether the mask's values are the certainties, whatever the voxels are."""
        return (
            self.mask is not None and not self.missing.labels and certainty_is_shared(self.missing)
        )

    # -- means

    def _mean(self, work: _Work, is_summed: bool, flagged: list[Box]) -> None:
        """Compute a slab's numerators and divide those whose windows have missing voxels.

        is_summed : bool        `work.sums` holds the numerators already
        flagged : list of Box   outputs whose windows may have missing voxels; empty: any may
        """
        assert self.coverage_plan is not None
        sums, team, history = work.sums, work.team, self.history
        voxels = math.prod(sums.shape[:3])
        whole = Box.whole(sums.shape)
        if history.slabs_until_recheck and not is_summed:
            flagged = self._sum(work, whole, team, flags_incomplete=True).flagged
            mostly = count_voxels(set(flagged)) > MOSTLY_INCOMPLETE * voxels
            history.slabs_until_recheck = history.slabs_until_recheck - 1 if mostly else 0
            boxes = _SlabBoxes([], [whole], [], 0, [])
        else:
            boxes = self._boxes(work, flagged, is_summed)
            divided = count_voxels(boxes.divided)
            history.had_missing = divided + boxes.empty_count > RECHECK_FRACTION * voxels
            mostly = self.mask is None and divided > MOSTLY_INCOMPLETE * voxels
            history.slabs_until_recheck = SKIPPED_SLABS if mostly else 0
            self._on_boxes(
                work,
                boxes.summed,
                lambda n, team: self._sum(work, boxes.summed[n], team).clipped,
                [self.plan],
            )
        empty_value = 0.0 if self.mask is not None else math.nan
        division = Division(self.missing.min_coverage, empty_value)
        inside = self._mask_at_centre(work)
        coverage = boxes.coverage
        if coverage is not None:
            divided_slices = [box.slices for box in boxes.divided]
            divide([(sums[box], coverage[box]) for box in divided_slices], division, team)
            below = boxes.below_min_coverage
        else:
            if self.reports_coverage or self.keeps_coverage:
                shape = (*sums.shape[:3], self.coverage_plan.problem.filters)
                coverage = np.ones(shape, self.plan.dtype)
                self._fill(coverage, boxes.empty, 0.0, team)
            below = self._divide_boxes(work, boxes, division, coverage, inside)
            if coverage is not None:
                self._cache_coverage(work, boxes, below, coverage)
        self._fill(sums, boxes.empty, empty_value, team)
        self._count(below, inside)
        history.coverage = coverage if self.reports_coverage else None

    def _divide_boxes(
        self,
        work: _Work,
        boxes: _SlabBoxes,
        division: Division,
        coverage: Array | None,
        inside: Array | None,
    ) -> int:
        """Compute the coverage of `boxes.divided` and divide their sums by it.

        coverage : (d, h, w, c or 1) or None    filled, if it is reported or cached
        inside : (d, h, w, 1) or None           only outputs where it is above 0 are counted
        Returns the number of outputs of the slab below the minimal coverage.
        """
        assert self.coverage_plan is not None

        def divide_box(number: int, team: Team) -> int:
            box = boxes.divided[number]
            box_division = division._replace(
                coverage=None if coverage is None else coverage[box.slices],
                inside=None if inside is None else inside[box.slices],
            )
            return self._divide(work, box, team, box_division)

        below = self._on_boxes(work, boxes.divided, divide_box, [self.coverage_plan])
        empty = boxes.empty_count
        if inside is not None:
            empty = sum(int(np.count_nonzero(inside[box.slices])) for box in boxes.empty_in_mask)
        channels: int = work.sums.shape[3]
        return below + empty * channels

    def _cache_coverage(self, work: _Work, boxes: _SlabBoxes, below: int, coverage: Array) -> None:
        """Keep a slab's coverage for the next part of the volume, if it can be reused and fits."""
        history = self.history
        fits = history.cached_bytes + coverage.nbytes <= COVERAGE_CACHE_BYTES
        if self.keeps_coverage and fits:
            history.coverage_cache[work.slab.start] = boxes._replace(
                below_min_coverage=below, coverage=coverage
            )
            history.cached_bytes += coverage.nbytes

    def _mask_at_centre(self, work: _Work) -> Array | None:
        """The mask under each output's centre (d, h, w, 1), or None without a mask."""
        mask = work.slab.mask
        return None if mask is None else self._at_centre(mask, mask.source, work.sums.shape)

    def _count(self, below: int, inside: Array | None) -> None:
        """Add a slab's outputs below the minimal coverage to the history.

        inside : (d, h, w, 1) or None   the mask; note whether any output inside it has a mean
        """
        history = self.history
        history.below_min_coverage += below
        if not history.any_mean and inside is not None:
            history.any_mean = bool(np.count_nonzero(inside) * self.problem.filters > below)

    def _fill(self, array: Array, boxes: list[Box], value: float, team: Team) -> None:
        """Set boxes of an array (d, h, w, c) to a value."""
        tasks = [boxes[first :: 2 * team.threads] for first in range(2 * team.threads)]

        def fill(_: int, task: int) -> None:
            for box in tasks[task]:
                array[box.slices] = value

        if boxes:
            team.run(len(tasks), fill)

    def _boxes(self, work: _Work, flagged: list[Box], is_summed: bool) -> _SlabBoxes:
        """The boxes of a slab to sum (none if `is_summed`) and those to divide by coverage."""
        cached = self.history.coverage_cache.get(work.slab.start)
        if cached is not None:
            return cached
        problem, plan = self.problem, self.coverage_plan
        assert plan is not None
        depth, height, width, _ = work.sums.shape
        block = block_of((depth, height, width), self.plan, plan)
        region = Box.whole(work.sums.shape)
        if flagged:  # only the planes of flagged outputs, in whole blocks
            first, last = min(box.depth[0] for box in flagged), max(box.depth[1] for box in flagged)
            region = region._replace(depth=align((first, last), block[0], depth))
        incomplete, present, in_mask = self._classify(work, region, block)
        wanted = present
        if in_mask is not None and self.missing.mask_mode == "clip" and not self.reports_coverage:
            wanted = wanted & in_mask  # outputs outside the mask are set to 0 anyway
        halo_depth, halo_height, halo_width = (
            -(-(e - s) // s) for e, s in zip(problem.extent, problem.strides, strict=True)
        )
        halo = halo_depth, halo_height, halo_width
        summed = [] if is_summed else boxes_around(wanted, block, region, halo)
        divided = boxes_around(wanted & incomplete, block, region, halo)
        # the division itself counts the outputs below `min_coverage` in its boxes
        empty_count = count_outside(~wanted, block, region, divided)
        empty_in_mask = []
        if in_mask is not None:
            empty_in_mask = strips_of(
                flags_outside(in_mask & ~present, block, region, divided), block, region
            )
        return _SlabBoxes(
            summed, divided, strips_of(~wanted, block, region), empty_count, empty_in_mask
        )

    def _classify(
        self, work: _Work, region: Box, block: Triple
    ) -> tuple[Flags, Flags, Flags | None]:
        """The flags of `BlockFlags` for mask and voxels together; `in_mask` is None without a mask.

        A window is present if certainties above 0 occur in it both in the mask and in the voxels.
        """
        slab, problem, team = work.slab, self.problem, work.team
        masked = None
        if slab.mask is not None:
            positions = self._positions(slab.mask)
            masked = classify_blocks(
                slab.mask.source, positions, problem, region, block, None, team
            )
            if self._mask_is_certainty:
                return masked
        source = CertaintySource(work.certainty, work.scale, self.plan.dtype)
        voxels = classify_blocks(
            slab.source, self._positions(slab), problem, region, block, source, team
        )
        if masked is None:
            return voxels.incomplete, voxels.present, None
        incomplete, present = masked.incomplete | voxels.incomplete, masked.present & voxels.present
        return incomplete, present, masked.in_mask

    def _on_boxes(
        self, work: _Work, boxes: list[Box], run: Callable[[int, Team], int], plans: list[Plan]
    ) -> int:
        """Process the boxes of a slab: all threads share a large box, each takes a small one.

        run : callable          takes the box's number and a team; returns a count
        plans : list of Plan    plans that `run` uses
        Returns the sum of the counts.
        """
        team = work.team
        by_size = sorted(range(len(boxes)), key=lambda number: -boxes[number].size.voxels)
        voxels = math.prod(work.sums.shape[:3])
        large = [
            number for number in by_size if boxes[number].size.voxels * 4 * team.threads > voxels
        ]
        small = by_size[len(large) :]
        counts = [run(number, team) for number in large]
        for plan in plans if small else []:
            plan.make_ready()
        team.run(
            len(small), lambda worker, task: counts.append(run(small[task], SerialWorker(worker)))
        )
        return sum(counts)

    def _divide_edges(self, work: _Work, edges: EdgeCoverage) -> None:
        """Divide the outputs near the volume's edges by the kernel's weight inside the volume."""
        real = self.plan.dtype
        slab = Box.at((work.slab.start, 0, 0), work.sums.shape[:3])
        if self.reports_coverage:
            coverage = edges.at(slab, real)
            self.history.coverage = np.where(
                abs(coverage - 1) <= near_one(real), real.type(1), coverage
            )
        pieces = [
            (work.sums[box.within(slab).slices], edges.at(source, real))
            for box, source in edges.edges(slab)
        ]
        division = Division(self.missing.min_coverage, math.nan)
        self.history.below_min_coverage += divide(pieces, division, work.team)

    # -- labels

    def _mean_by_label(self, work: _Work) -> None:
        """Compute each output's mean over the voxels of its own region.

        Every region is computed in the box around its outputs.
        """
        slab, sums, missing, real = work.slab, work.sums, self.missing, self.plan.dtype
        assert slab.mask is not None
        assert self.coverage_plan is not None
        size = Size(*sums.shape[:3])
        labels = np.ascontiguousarray(self._at_centre(slab.mask, slab.mask.source, size)[..., 0])
        extents = label_extents(labels)
        alignment = common_alignment(self.plan, self.coverage_plan)
        coverage = np.zeros(sums.shape, real) if self.reports_coverage else None
        sums.fill(0)
        present = [label for label in range(1, len(extents)) if extents[label, 0, 1] >= 0]
        boxes = [_box_of(extents[label]).align(alignment, size) for label in present]

        def mean_of_region(number: int, team: Team) -> int:
            label, box = present[number], boxes[number]
            shape = (*box.size, sums.shape[3])
            inside = (labels[box.slices] == label)[..., None]
            worker = team.worker if isinstance(team, SerialWorker) else "of all"
            means = self.history.buffer(f"means {worker}", shape, real)
            box_coverage = None if coverage is None else np.empty(shape, real)
            regional = work._replace(certainty=work.certainty._replace(label=float(label)))
            self._sum(regional, box, team, out=means)
            division = Division(missing.min_coverage, 0.0, box_coverage, inside.view(np.uint8))
            below = self._divide(regional, box, team, division, sums=means)
            np.copyto(sums[box.slices], means, where=inside)
            if coverage is not None and box_coverage is not None:
                np.copyto(coverage[box.slices], box_coverage, where=inside)
            return below

        below = self._on_boxes(work, boxes, mean_of_region, [self.plan, self.coverage_plan])
        self._count(below, labels[..., None])
        self.history.coverage = coverage

    # -- after the means

    def _finish_means(self, work: _Work, out: Array, outputs: slice) -> int:
        """Add the bias, apply activations, set outputs outside a mask, and store them in `out`.

        Returns the number of values clipped to the dtype of `out`.
        """
        slab, sums = work.slab, work.sums
        mask_mode, inside, voxels = self._mask_mode, None, None
        if slab.mask is not None and mask_mode != "extend":
            inside = self._at_centre(slab.mask, slab.mask.source, sums.shape)
            voxels = self._at_centre(slab, slab.source, sums.shape) if mask_mode == "keep" else None
        stores = sums is not out and not self.on_slabs
        clipped = np.zeros(len(sums), np.int64)

        def activate(_: int, plane: int) -> None:
            part = sums[plane : plane + 1]
            if self.bias is not None:
                part += self.bias[outputs]
            if self._in_tiles:
                self._activate(part)

        def keep_outside(_: int, plane: int) -> None:
            assert inside is not None
            assert voxels is not None
            part, (slope, intercept) = sums[plane : plane + 1], work.scale
            values = voxels[plane : plane + 1].astype(part.dtype)
            if (slope, intercept) != (1.0, 0.0):
                values = values * part.dtype.type(slope) + part.dtype.type(intercept)
            np.copyto(part, values, where=inside[plane : plane + 1] <= 0)

        def store(_: int, plane: int) -> None:
            clipped[plane] = self.plan.store(sums[plane : plane + 1], out[plane : plane + 1])

        if self.bias is not None or self._in_tiles:
            work.team.run(len(sums), activate)
        if voxels is not None:
            work.team.run(len(sums), keep_outside)
        elif inside is not None:
            clear(sums, inside, work.team)
        if stores:
            work.team.run(len(sums), store)
        return int(clipped.sum()) if sums is out or stores else self._finish(sums, out, work.team)

    def _at_centre(self, slab: SlabInput, voxels: Array, shape: tuple[int, ...]) -> Array:
        """The voxel under the kernel's centre for each output (d, h, w, c); 0 outside the volume.

        voxels : (planes, rows, columns, c)     the slab's source, or its mask
        shape : (d, h, w, ...)                  of the outputs
        """
        problem = self.problem
        for axis, indices in enumerate(self._positions(slab)):
            first = round(problem.centre[axis] * problem.dilation_rate[axis])
            centres = np.array(indices[first :: problem.strides[axis]][: shape[axis]])
            if len(centres) > 1 and (np.diff(centres) == 1).all() and centres[0] >= 0:
                taken = voxels[(slice(None),) * axis + (slice(centres[0], centres[-1] + 1),)]
            else:
                taken = voxels.take(np.maximum(centres, 0), axis=axis)
                taken[(slice(None),) * axis + (centres < 0,)] = 0
            voxels = taken
        return voxels


class _Work(NamedTuple):
    """A slab being computed.

    sums : (d, h, w, c)     numerators, then means, of its outputs
    scale : (slope, intercept) of its stored voxels
    """

    slab: SlabInput
    sums: Array
    team: Team
    scale: tuple[float, float]
    certainty: Certainty


class _SlabBoxes(NamedTuple):
    """The boxes of a slab, by what is done with them.

    summed : compute their numerators
    divided : divide them by their coverage
    empty : no voxel in their windows has a certainty above 0, or (mode clip) all their outputs lie
        outside the mask
    empty_count : number of outputs in `empty` that no box in `divided` covers
    empty_in_mask : boxes with outputs inside the mask whose windows have no certainty above 0, if
        no box in `divided` covers them
    below_min_coverage, coverage : of the whole slab, if cached for the next part of the volume:
        number of outputs below the minimal coverage, and coverage (d, h, w, c or 1)
    """

    summed: list[Box]
    divided: list[Box]
    empty: list[Box]
    empty_count: int
    empty_in_mask: list[Box]
    below_min_coverage: int = 0
    coverage: Array | None = None


def certainty_is_shared(missing: Missing) -> bool:
    """Whether all channels and time points have the same certainties."""
    return missing.nan != "ignore" and missing.value is None


def common_alignment(*plans: Plan) -> Triple:
    """The multiples along depth, height and width to which boxes are aligned.

    Every plan computes an aligned box bit for bit as it computes the whole volume.
    """
    depth, height, width = (
        math.lcm(*sizes) for sizes in zip(*(plan.block_alignment for plan in plans), strict=True)
    )
    return depth, height, width


def block_of(size: tuple[int, ...], *plans: Plan) -> Triple:
    """The size of the blocks to classify: the plans' alignment, or `BLOCK` along axes without one.

    size : outputs of the slab along depth, height and width
    """
    alignment = common_alignment(*plans)
    depth, height, width = (
        unit if unit > 1 else min(block, n)
        for unit, block, n in zip(alignment, BLOCK, size, strict=False)
    )
    return depth, height, width


def _box_of(extent: NDArray[np.int64]) -> Box:
    """The box of an extent (3, 2): the first and the last output along each axis."""
    depth, height, width = ((int(first), int(last) + 1) for first, last in extent)
    return Box(depth, height, width)


def _crop_positions(positions: Positions, problem: ConvProblem, box: Box) -> Positions:
    """The positions that the taps of a box of outputs span."""
    planes, rows, columns = (
        indices[a * stride : (b - 1) * stride + extent]
        for indices, (a, b), stride, extent in zip(
            positions, box, problem.strides, problem.extent, strict=True
        )
    )
    return planes, rows, columns


def _crop_certainty(certainty: Certainty, problem: ConvProblem, box: Box) -> Certainty:
    """The certainty of the voxels in the windows of a box of outputs."""
    if certainty.mask is None:
        return certainty
    return certainty._replace(positions=_crop_positions(certainty.positions, problem, box))


@lru_cache(maxsize=4)
def whole_planes(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """The row and column of every height and width position that taps span in whole planes."""
    rows, columns = (problem.source_indices(axis, 0, problem.out_size[axis]) for axis in (1, 2))
    return rows, columns
