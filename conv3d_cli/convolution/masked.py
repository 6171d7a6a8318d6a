"""Masked convolution: voxels that are missing, or count less, are left out of a weighted mean.

    y = numerator / coverage = Σ w·c·x / Σ w·c

w is the kernel (the applicability, of sum 1), c the certainty of a voxel: the mask's value as a part of its
largest, and 0 where the voxel is missing. Coverage is the fraction of the kernel's weight that was available.
Both sums go through a plan of their own, in all passes of a separable kernel, and are divided once. This is the
normalised convolution of H. Knutsson and C.-F. Westin, Normalized and differential convolution, CVPR 1993.

Outputs whose coverage is 1 keep the bits of the plain convolution. So data without missing voxels cost nothing:
the plain convolution is tried first, and packing flags the windows that hold a certainty other than 1.
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
from conv3d_cli.engine.weighting import Certainty, Division, clear, divide, label_extents, near_one
from conv3d_cli.errors import ShapeError
from conv3d_cli.model.box import Box, Size, Slices, align, count_voxels
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Boundary, ConvProblem, Triple
from conv3d_cli.model.volume import Array

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team
    from conv3d_cli.engine.plan import SlabResult

BLOCK = (8, 16, 32)  # outputs that are classified together
# If fewer than 1 in 4 outputs of a slab have missing voxels in their windows, compute the next slab's plain convolution
# first and check it afterwards.
RECHECK_FRACTION = 1 / 4
# If more than this fraction of the outputs needs division, skip the classification of the next slabs and divide all
# their outputs, for so many slabs and as long as this many are flagged.
MOSTLY_INCOMPLETE, SKIPPED_SLABS = 0.9, 3
# of coverages, which under a mask are the same for every time point and channel
KEPT_BYTES = 128 << 20


def mean_kernel(kernel: Kernel) -> Kernel:
    """The kernel with weights that sum to 1, which means need.

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
    moderate = kernel.moderate()
    return replace(kernel, weights=moderate.weights / moderate.sum)


def check_centre(missing: Missing, problem: ConvProblem, kernel: Kernel) -> None:
    """Check that each output lies at a voxel, if the mask is to be read there. Raises: ShapeError."""
    if missing.mask is None or (missing.mask_mode == "extend" and not missing.labels):
        return
    if any(c * d % 1 for c, d in zip(problem.centre, problem.dilation_rate, strict=True)):
        raise ShapeError(
            f"the kernel {kernel.name} has an even size, so its outputs lie between the mask's voxels; "
            "pass --mask-mode extend, or a kernel of odd sizes"
        )


def coverage_problem(problem: ConvProblem, channels: int) -> ConvProblem:
    """The convolution of the certainties. The outside has certainty 1, unless the boundary renormalizes."""
    boundary = problem.boundary
    if boundary.mode in ("zeros", "constant"):
        boundary = Boundary("constant", 1.0)
    elif boundary.mode == "mirror-one":
        boundary = Boundary("mirror-one", 1.0)
    return replace(
        problem, in_channels=channels, filters=channels, groups=channels, boundary=boundary
    )


def check_edges(boundary: Boundary) -> None:
    """Check that the boundary may be combined with missing voxels. Raises: ShapeError."""
    if boundary.mode == "renormalize-depth":
        raise ShapeError(
            "boundary renormalize-depth is for volumes without missing voxels: take --boundary renormalize with a mask, "
            "--missing or --nan ignore"
        )


def edge_coverage(problem: ConvProblem, kernel: Kernel) -> EdgeCoverage:
    """The coverage where only voxels outside the volume are missing (renormalize-depth: those outside along depth).

    Raises: ShapeError for outputs outside the volume along the other axes.
    """
    if problem.boundary.mode != "renormalize-depth":
        return EdgeCoverage(problem, kernel.weights)
    for axis in (1, 2):
        reach = kernel.size[axis] // 2 * problem.dilation_rate[axis]
        if max(problem.pad_before[axis], problem.pad_after[axis]) > reach:
            raise ShapeError(
                "boundary renormalize-depth is for outputs inside the volume: take --padding same or valid"
            )
    return EdgeCoverage(problem, kernel.weights, axes=(0,))


def masked_convolution(
    convolution: Convolution,
    missing: Missing,
    kernel: Kernel,
    mask: Mask | None = None,
    many: bool = False,
    reports_coverage: bool = False,
) -> MaskedConvolution:
    """A plain convolution, made to do what `missing` asks for.

    kernel : Kernel     as it was planned: see `mean_kernel`
    mask : Mask or None
    many : bool         whether it runs over several parts of a volume, which may share their coverage
    reports_coverage : bool     whether `coverage` is asked for after each slab
    """
    plan = convolution.plan
    boundary = plan.problem.boundary
    coverage_plan = edges = None
    if missing.has_weights or missing.nan == "ignore":
        check_edges(boundary)
        same = certainty_is_shared(missing) and not missing.labels
        coverage_plan = _coverage_plan(plan, kernel, 1 if same else plan.problem.in_channels)
        if (
            plan.depth_step % coverage_plan.block_alignment.depth
        ):  # slabs begin where sums of all channels may
            coverage_plan = _coverage_plan(plan, kernel, plan.problem.in_channels)
    elif boundary.renormalizes:
        edges = edge_coverage(plan.problem, kernel)
    given = {field.name: getattr(convolution, field.name) for field in fields(Convolution)}
    keeps_coverage = (
        certainty_is_shared(missing) and missing.has_weights and not missing.labels and many
    )
    return MaskedConvolution(
        **given,
        missing=missing,
        mask=mask,
        coverage_plan=coverage_plan,
        edges=edges,
        keeps_coverage=keeps_coverage,
        reports_coverage=reports_coverage,
    )


def _coverage_plan(plan: Plan, kernel: Kernel, channels: int) -> Plan:
    """The plan for certainties of so many channels: by the algorithm of the numerators, if it takes them."""
    problem, weights = coverage_problem(plan.problem, channels), kernel.for_channels(channels)
    try:
        return make_plan(
            problem, weights, dtype=plan.dtype, threads=plan.threads, algorithm=plan.algorithm.name
        )
    except ShapeError:  # an algorithm for several channels
        return make_plan(problem, weights, dtype=plan.dtype, threads=plan.threads)


# ---------------------------------------------------------------------------------------------------------------------
# Computing


@dataclass
class SlabHistory:
    """What a masked convolution keeps from one slab to the next.

    below_min_coverage : int    outputs so far with too little coverage
    any_mean : bool             whether some output inside the mask had enough
    coverage : array or None    of the last slab (d, h, w, c or 1), if it is reported
    had_missing : bool          whether the last slab had many windows with missing voxels: the next is classified first
    slabs_until_recheck : int   slabs to divide everywhere before the next one is classified again
    coverage_cache : dict       by a slab's first output plane: its boxes and coverage, for the next part of the volume
    cached_bytes : int          of these coverages
    buffers : dict              memory of the last slab, by its use: fresh pages cost more than the sums
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
        """An array to fill, in the memory that the last one of this name had."""
        count = math.prod(shape)
        if name not in self.buffers or self.buffers[name].size < count:
            self.buffers[name] = np.empty(count, dtype)
        return self.buffers[name][:count].reshape(shape)


@dataclass
class MaskedConvolution(Convolution):
    """A convolution of voxels that may be missing; see `Missing`.

    mask : Mask or None
    coverage_plan : Plan or None    of `coverage_problem`; None where no means are taken, or `edges` gives the coverage
    edges : EdgeCoverage or None    where only voxels outside the volume are missing
    keeps_coverage : bool           coverage depends on the mask alone, and serves every part of the volume
    reports_coverage : bool         `coverage` is asked for after each slab
    history : SlabHistory           what changes from slab to slab
    """

    takes_boxes = False

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

    def memory(self, planes: int, made: int) -> dict[str, int]:
        plan = self.plan
        area, itemsize = math.prod(self.problem.in_size[1:]), plan.dtype.itemsize
        voxels = planes * area * self.problem.in_channels * itemsize
        use = super().memory(planes, made)
        # sums, and what activations and labels need beside them
        use["sums"] = use.get("sums", 0) + voxels * (2 + self.missing.labels)
        if (
            self.mask is not None
        ):  # as stored and as certainties, of the slab at hand and of the one that is read
            stored, weight = (
                self.mask.reader.header.dtype.itemsize,
                self.mask.weight_itemsize(plan.dtype),
            )
            use["masks"] = planes * area * (stored + 2 * weight)
        kept = math.prod(self.problem.out_size) * itemsize if self.keeps_coverage else 0
        use["coverage"] = min(KEPT_BYTES, kept) + (voxels if self.reports_coverage else 0)
        if self.coverage_plan is not None:
            use["scratch"] = self.coverage_plan.scratch_for((made, *self.problem.out_size[1:]))
        return use

    def with_mask(self, slab: SlabInput, stop: int) -> SlabInput:
        if self.mask is None:
            return slab
        source = SlabSource(self.mask.reader, 0, slice(0, 1), self.problem)
        found = source.read(slab.start, stop)
        certainty = self.mask.certainty(found.source[..., 0], self.plan.dtype)
        source.release(slab.start)
        return replace(slab, mask=replace(found, source=certainty[..., None]))

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
        if around is not None:
            raise ValueError("means are computed in slabs of whole planes, and a box was asked for")
        missing, history = self.missing, self.history
        history.coverage = None
        certainty = self._certainty(slab)
        flagged: list[Box] = []
        tries = not (
            missing.has_weights or self.problem.boundary.renormalizes or history.had_missing
        )
        if (self.coverage_plan is None and self.edges is None) or tries:
            before = self.activity_sum
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
            self._refuse(slab, scale)
            self.activity_sum, progress = before, None  # its voxels are counted
        size = (*out.shape[:3], self.problem.filters)
        in_place = out.dtype == self.plan.dtype and out.shape == size and not self.on_slabs
        sums = out if in_place else history.buffer("sums", size, self.plan.dtype)
        work = _Work(slab, sums, team, scale, certainty)
        if missing.labels:
            self._by_labels(work)
        elif self.edges is not None:
            if self._sum(work, Box.whole(size), team, flags_incomplete=True).flagged:
                self._refuse(slab, scale)
            self._divide_edges(work, self.edges)
        else:
            summed = tries and in_place and self.bias is None and not self._in_tiles
            self._mean(work, summed, flagged)
        if progress is not None:
            progress(out.size)
        return self._end(work, out, outputs)

    def _refuse(self, slab: SlabInput, scale: tuple[float, float]) -> None:
        """Raises: ShapeError if NaN are errors and there are some."""
        if self.missing.nan == "error":
            lost = int((~np.isfinite(slab.source * scale[0] + scale[1])).sum())
            raise ShapeError(
                f"NaN or infinity among the voxels, {lost} of them here, and --nan error was asked for"
            )

    def _certainty(self, slab: SlabInput) -> Certainty:
        """The certainty of a slab's voxels."""
        given = Certainty(
            nonfinite_missing=self.missing.nan != "propagate", missing_value=self.missing.value
        )
        if slab.mask is None:
            return given
        return given._replace(mask=slab.mask.source[..., 0], positions=self._positions(slab.mask))

    def _positions(self, slab: SlabInput) -> Positions:
        """The place in what was read of each position of the taps along depth, height and width."""
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
        """Compute the numerators of a box of a slab, in their place or in `out`."""
        planes, rows, columns = _cut(self._positions(work.slab), self.problem, box)
        return self.plan.convolve_slab(
            work.slab.source, work.sums[box.slices] if out is None else out, planes, team, rows=rows, columns=columns,
            scale=work.scale, flags_incomplete=flags_incomplete,
            certainty=_cut_certainty(work.certainty, self.problem, box),
        )  # fmt: skip

    def _divide(
        self, work: _Work, box: Box, team: Team, division: Division, sums: Array | None = None
    ) -> int:
        """Divide a box of a slab's sums, or `sums`, by its coverage. Returns how many outputs have too little of it."""
        plan = self.coverage_plan
        assert plan is not None
        certainty: Certainty | None = _cut_certainty(work.certainty, self.problem, box)._replace(
            replaces_source=True
        )
        source, scale = work.slab.source[..., : plan.problem.in_channels], work.scale
        planes, rows, columns = _cut(self._positions(work.slab), self.problem, box)
        if (
            self._by_mask_alone and work.slab.mask is not None
        ):  # then the mask is all that need be read
            planes, rows, columns = _cut(self._positions(work.slab.mask), self.problem, box)
            source, scale, certainty = work.slab.mask.source, (1.0, 0.0), None
        return plan.convolve_slab(
            source, work.sums[box.slices] if sums is None else sums, planes, team, rows=rows, columns=columns,
            scale=scale, certainty=certainty, division=division,
        ).clipped  # fmt: skip

    @property
    def _by_mask_alone(self) -> bool:
        """Whether certainty is the mask's, whatever the voxels are."""
        return (
            self.mask is not None and not self.missing.labels and certainty_is_shared(self.missing)
        )

    # -- means

    def _mean(self, work: _Work, summed: bool, flagged: list[Box]) -> None:
        """Compute a slab's numerators, and divide those whose windows have missing voxels.

        summed : the numerators stand there already
        flagged : the boxes of the slab whose windows may have missing voxels; empty: any may
        """
        assert self.coverage_plan is not None
        missing, sums, team, history = self.missing, work.sums, work.team, self.history
        voxels, channels = math.prod(sums.shape[:3]), sums.shape[3]
        whole = Box.whole(sums.shape)
        if history.slabs_until_recheck and not summed:
            flagged = self._sum(work, whole, team, flags_incomplete=True).flagged
            mostly = count_voxels(set(flagged)) > MOSTLY_INCOMPLETE * voxels
            history.slabs_until_recheck = history.slabs_until_recheck - 1 if mostly else 0
            boxes = _SlabBoxes([], [whole], [], 0, [])
        else:
            boxes = self._boxes(work, flagged, summed)
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
        inside = self._mask_at_centre(work)
        coverage = boxes.coverage
        if coverage is not None:
            pieces = [
                (sums[place], coverage[place]) for place in (box.slices for box in boxes.divided)
            ]
            divide(pieces, Division(missing.min_coverage, empty_value), team)
            below = boxes.below_min_coverage
        else:
            if self.reports_coverage or self.keeps_coverage:
                coverage = np.ones(
                    (*sums.shape[:3], self.coverage_plan.problem.filters), self.plan.dtype
                )
                self._fill(coverage, boxes.empty, 0.0, team)

            def divide_box(number: int, team: Team) -> int:
                box = boxes.divided[number]
                own = None if coverage is None else coverage[box.slices]
                counted = None if inside is None else inside[box.slices]
                return self._divide(
                    work, box, team, Division(missing.min_coverage, empty_value, own, counted)
                )

            below = self._on_boxes(work, boxes.divided, divide_box, [self.coverage_plan])
            empty = boxes.empty_count
            if inside is not None:
                empty = sum(
                    int(np.count_nonzero(inside[box.slices])) for box in boxes.empty_in_mask
                )
            below += empty * channels
            if (
                self.keeps_coverage
                and coverage is not None
                and history.cached_bytes + coverage.nbytes <= KEPT_BYTES
            ):
                history.coverage_cache[work.slab.start] = boxes._replace(
                    below_min_coverage=below, coverage=coverage
                )
                history.cached_bytes += coverage.nbytes
        self._fill(sums, boxes.empty, empty_value, team)
        self._count(below, inside)
        history.coverage = coverage if self.reports_coverage else None

    def _mask_at_centre(self, work: _Work) -> Array | None:
        """The mask under each output (d, h, w, 1), above 0 inside it; None without one."""
        mask = work.slab.mask
        return None if mask is None else self._at_centre(mask, mask.source, work.sums.shape)

    def _count(self, below: int, inside: Array | None) -> None:
        """Count a slab's outputs without enough coverage (with a mask: inside it), and see whether others have enough."""
        history = self.history
        history.below_min_coverage += below
        if not history.any_mean and inside is not None:
            history.any_mean = bool(np.count_nonzero(inside) * self.problem.filters > below)

    def _fill(self, array: Array, boxes: list[Box], value: float, team: Team) -> None:
        """Set boxes of an array to a value."""
        tasks = [boxes[first :: 2 * team.threads] for first in range(2 * team.threads)]

        def fill(_: int, task: int) -> None:
            for box in tasks[task]:
                array[box.slices] = value

        if boxes:
            team.run(len(tasks), fill)

    def _boxes(self, work: _Work, flagged: list[Box], summed: bool) -> _SlabBoxes:
        """The boxes of a slab to sum (none if it is summed), and those to divide by coverage."""
        kept = self.history.coverage_cache.get(work.slab.start)
        if kept is not None:
            return kept
        slab, problem, plan, team = work.slab, self.problem, self.coverage_plan, work.team
        assert plan is not None
        depth, height, width, _ = work.sums.shape
        block = block_of((depth, height, width), self.plan, plan)
        region = Box.whole(work.sums.shape)
        if flagged:  # whole blocks of planes that hold them all
            first, last = min(box.depth[0] for box in flagged), max(box.depth[1] for box in flagged)
            region = region._replace(depth=align((first, last), block[0], depth))
        found = in_mask = None
        if slab.mask is not None:
            positions = self._positions(slab.mask)
            found = classify_blocks(slab.mask.source, positions, problem, region, block, None, team)
            in_mask = found.in_mask
        if found is None or not self._by_mask_alone:
            voxels = CertaintySource(work.certainty, work.scale, self.plan.dtype)
            own = classify_blocks(
                slab.source, self._positions(slab), problem, region, block, voxels, team
            )
            incomplete = own.incomplete if found is None else found.incomplete | own.incomplete
            present = own.present if found is None else found.present & own.present
        else:
            incomplete, present = found.incomplete, found.present
        wanted = present
        if in_mask is not None and self.missing.mask_mode == "clip" and not self.reports_coverage:
            wanted = wanted & in_mask  # outside the mask stands 0, whatever the mean
        halo_depth, halo_height, halo_width = (
            -(-(e - s) // s) for e, s in zip(problem.extent, problem.strides, strict=True)
        )
        halo = halo_depth, halo_height, halo_width
        needed = [] if summed else boxes_around(wanted, block, region, halo)
        divided = boxes_around(wanted & incomplete, block, region, halo)
        # outputs below `min_coverage` within a division are counted there
        empty_count = count_outside(~wanted, block, region, divided)
        empty_in_mask = []
        if in_mask is not None:
            empty_in_mask = strips_of(
                flags_outside(in_mask & ~present, block, region, divided), block, region
            )
        return _SlabBoxes(
            needed, divided, strips_of(~wanted, block, region), empty_count, empty_in_mask
        )

    def _on_boxes(
        self, work: _Work, boxes: list[Box], run: Callable[[int, Team], int], plans: list[Plan]
    ) -> int:
        """Run over boxes of a slab by number: large ones by the whole team, others side by side.

        Returns the sum of what `run` returns.
        """
        team = work.team
        by_size = sorted(range(len(boxes)), key=lambda number: -boxes[number].size.voxels)
        whole = math.prod(work.sums.shape[:3])
        large = [
            number for number in by_size if boxes[number].size.voxels * 4 * team.threads > whole
        ]
        small = by_size[len(large) :]
        counts = [run(number, team) for number in large]
        for plan in plans if small else []:
            plan.make_ready(team.workers(len(small)))
        team.run(
            len(small), lambda worker, task: counts.append(run(small[task], SerialWorker(worker)))
        )
        return sum(counts)

    def _divide_edges(self, work: _Work, edges: EdgeCoverage) -> None:
        """Divide by the weight inside the volume, of which outputs near its edges have less than 1."""
        missing, real = self.missing, self.plan.dtype
        slab = Box.at((work.slab.start, 0, 0), work.sums.shape[:3])
        if self.reports_coverage:
            coverage = edges.at(slab, real)
            self.history.coverage = np.where(
                abs(coverage - 1) <= near_one(real), real.type(1), coverage
            )
        pieces = [
            (work.sums[box.within(slab).slices], edges.at(own, real))
            for box, own in edges.edges(slab)
        ]
        self.history.below_min_coverage += divide(
            pieces, Division(missing.min_coverage, math.nan), work.team
        )

    # -- labels

    def _by_labels(self, work: _Work) -> None:
        """Means over the voxels of the output's own region: those of each region in the box that it lies in."""
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

        def one(number: int, team: Team) -> int:
            label, box = present[number], boxes[number]
            shape = (*box.size, sums.shape[3])
            inside = (labels[box.slices] == label)[..., None]
            worker = team.worker if isinstance(team, SerialWorker) else "of all"
            means = self.history.buffer(f"means {worker}", shape, real)
            own = None if coverage is None else np.empty(shape, real)
            regional = work._replace(certainty=work.certainty._replace(label=float(label)))
            self._sum(regional, box, team, out=means)
            division = Division(missing.min_coverage, 0.0, own, inside.view(np.uint8))
            below = self._divide(regional, box, team, division, sums=means)
            np.copyto(sums[box.slices], means, where=inside)
            if coverage is not None and own is not None:
                np.copyto(coverage[box.slices], own, where=inside)
            return below

        below = self._on_boxes(work, boxes, one, [self.plan, self.coverage_plan])
        self._count(below, labels[..., None])
        self.history.coverage = coverage

    # -- what comes after

    def _end(self, work: _Work, out: Array, outputs: slice) -> int:
        """Add the bias, apply activations, fill the outside of a mask, and store.

        Returns how many voxels the output's dtype could not hold.
        """
        slab, sums = work.slab, work.sums
        mask_mode = (
            None
            if slab.mask is None or self.missing.mask_mode == "extend"
            else self.missing.mask_mode
        )
        if self.missing.labels:
            mask_mode = "keep" if self.missing.mask_mode == "keep" else "clip"
        inside = voxels = None
        if slab.mask is not None and mask_mode is not None:
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

        def put_outside(_: int, plane: int) -> None:
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
            work.team.run(len(sums), put_outside)
        elif inside is not None:
            clear(sums, inside, work.team)
        if stores:
            work.team.run(len(sums), store)
        return int(clipped.sum()) if sums is out or stores else self._finish(sums, out, work.team)

    def _at_centre(self, slab: SlabInput, voxels: Array, shape: tuple[int, ...]) -> Array:
        """Voxels (d, h, w, c) under the kernel's centre for each output; 0 outside the volume."""
        problem = self.problem
        for axis, indices in enumerate(self._positions(slab)):
            first = round(problem.centre[axis] * problem.dilation_rate[axis])
            places = np.array(indices[first :: problem.strides[axis]][: shape[axis]])
            if len(places) > 1 and (np.diff(places) == 1).all() and places[0] >= 0:
                taken = voxels[(slice(None),) * axis + (slice(places[0], places[-1] + 1),)]
            else:
                taken = voxels.take(np.maximum(places, 0), axis=axis)
                taken[(slice(None),) * axis + (places < 0,)] = 0
            voxels = taken
        return voxels


class _Work(NamedTuple):
    """A slab being computed: its input, the sums of its outputs (d, h, w, c), and the certainty of its voxels."""

    slab: SlabInput
    sums: Array
    team: Team
    scale: tuple[float, float]
    certainty: Certainty


class _SlabBoxes(NamedTuple):
    """Boxes of a slab to sum, boxes to divide by coverage, and boxes without any voxel of certainty above 0.

    empty_count : outputs in `empty` that no box in `divided` covers
    empty_in_mask : the boxes of them that hold outputs inside the mask
    below_min_coverage, coverage : of the whole slab, where they are kept for the next part of the volume:
        outputs with too little coverage, and (d, h, w, c)
    """

    summed: list[Box]
    divided: list[Box]
    empty: list[Box]
    empty_count: int
    empty_in_mask: list[Box]
    below_min_coverage: int = 0
    coverage: Array | None = None


def certainty_is_shared(missing: Missing) -> bool:
    """Whether certainty is the same for all channels and time points."""
    return missing.nan != "ignore" and missing.value is None


def common_alignment(*plans: Plan) -> Triple:
    """The multiples at which boxes begin and end, so that each plan gives them the bits of the whole volume."""
    depth, height, width = (
        math.lcm(*sizes) for sizes in zip(*(plan.block_alignment for plan in plans), strict=True)
    )
    return depth, height, width


def block_of(size: tuple[int, ...], *plans: Plan) -> Triple:
    """The outputs of a block that is classified as a whole: what plans compute together, or a small block."""
    alignment = common_alignment(*plans)
    depth, height, width = (
        g if g > 1 else min(b, n) for g, b, n in zip(alignment, BLOCK, size, strict=False)
    )
    return depth, height, width


def _box_of(extent: NDArray[np.int64]) -> Box:
    """The box from the first to the last output, (3, 2), along each axis."""
    depth, height, width = ((int(first), int(last) + 1) for first, last in extent)
    return Box(depth, height, width)


def _cut(positions: Positions, problem: ConvProblem, box: Box) -> Positions:
    """The positions that a box of outputs reads."""
    planes, rows, columns = (
        indices[a * stride : (b - 1) * stride + extent]
        for indices, (a, b), stride, extent in zip(
            positions, box, problem.strides, problem.extent, strict=True
        )
    )
    return planes, rows, columns


def _cut_certainty(certainty: Certainty, problem: ConvProblem, box: Box) -> Certainty:
    """The certainty of the voxels that a box of outputs reads."""
    if certainty.mask is None:
        return certainty
    return certainty._replace(positions=_cut(certainty.positions, problem, box))


@lru_cache(maxsize=4)
def whole_planes(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """For every position of the taps along height and width, its row and column."""
    rows, columns = (problem.source_indices(axis, 0, problem.out_size[axis]) for axis in (1, 2))
    return rows, columns
