"""Normalised convolution: voxels that are missing, or count less, are left out of a weighted mean.

    y = Σ w·m·x / Σ w·m

w are the kernel's weights, m the certainty of a voxel: a mask's value as a part of its largest, 0 where a voxel is missing.
Both sums go through the plan as they stand, numerator and coverage through all passes of a separable kernel, and are divided
once. Source: H. Knutsson and C.-F. Westin, Normalized and differential convolution, CVPR 1993.

Voxels whose window holds every weight keep the bits of the plain convolution. So data without missing voxels cost nothing: the
plain convolution is tried first, and what packing notes on the way tells whether it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.masks import Mask
from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.regions import (
    EdgeCoverage,
    Positions,
    Surveyed,
    boxes_around,
    flags_beside,
    look,
    slices_of,
    strips_of,
    voxels_beside,
    voxels_in,
)
from conv3d_cli.convolution.slabs import SlabInput, SlabSource
from conv3d_cli.engine import make_plan
from conv3d_cli.engine.normalize import Division, Weighing, clear, divide, label_extents, near_one
from conv3d_cli.engine.plan import Part
from conv3d_cli.engine.team import OneOf
from conv3d_cli.errors import ShapeError
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Boundary, ConvProblem
from conv3d_cli.model.volume import Array

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team

BLOCK = (8, 16, 32)  # outputs of a block that is looked at
RARE = 4  # where less than one voxel in so many is divided or void, the next slab is summed before it is looked at
MOST = (
    0.9  # where more of the voxels are divided, the next slabs are not looked at: so many, and while as much is noted
)
NOT_LOOKED_AT = 3
KEPT_BYTES = 128 << 20  # of coverages, which are the same for every time point and channel under a mask


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
    moderate = kernel.moderate()
    return replace(kernel, weights=moderate.weights / moderate.sum)


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


def check_edges(boundary: Boundary) -> None:
    """That voxels may be missing beside what a boundary leaves out. Raises: ShapeError."""
    if boundary.mode == "renormalize-depth":
        raise ShapeError(
            "boundary renormalize-depth is for volumes without missing voxels: take --boundary renormalize with a mask, "
            "--missing or --nan ignore"
        )


def edge_coverage(problem: ConvProblem, kernel: Kernel) -> EdgeCoverage:
    """What means hold where only voxels outside the volume are missing; under renormalize-depth, those outside along depth.

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


def normalized(
    convolution: Convolution, missing: Missing, kernel: Kernel, mask: Mask | None = None, many: bool = False,
    tells_coverage: bool = False,
) -> NormalizedConvolution:  # fmt: skip
    """A plain convolution, made to do what `missing` asks for.

    kernel : Kernel     as it was planned: see `mean_kernel`
    mask : Mask or None
    many : bool         whether it runs over several parts of a volume, which may share their coverage
    """
    plan = convolution.plan
    boundary = plan.problem.boundary
    coverage_plan = edges = None
    if missing.weighs or missing.nan == "ignore":
        check_edges(boundary)
        same = alike(missing) and not missing.labels
        coverage_plan = _coverage_plan(plan, kernel, 1 if same else plan.problem.in_channels)
        if plan.depth_step % coverage_plan.grain.depth:  # slabs begin where sums of all channels may
            coverage_plan = _coverage_plan(plan, kernel, plan.problem.in_channels)
    elif boundary.renormalizes:
        edges = edge_coverage(plan.problem, kernel)
    return NormalizedConvolution(
        plan, convolution.is_layer, convolution.bias, convolution.activations, convolution.channels_first,
        convolution.activity, missing=missing, mask=mask, coverage_plan=coverage_plan, edges=edges,
        keeps_coverage=alike(missing) and missing.weighs and not missing.labels and many, tells_coverage=tells_coverage,
        per_channel=convolution.per_channel, magnitude=convolution.magnitude,
    )  # fmt: skip


def _coverage_plan(plan: Plan, kernel: Kernel, channels: int) -> Plan:
    """The plan for weights of so many channels: the algorithm of the sums, if it takes them."""
    problem, weights = coverage_problem(plan.problem, channels), kernel.for_channels(channels)
    try:
        return make_plan(problem, weights, dtype=plan.dtype, threads=plan.threads, algorithm=plan.algorithm.name)
    except ShapeError:  # an algorithm for several channels
        return make_plan(problem, weights, dtype=plan.dtype, threads=plan.threads)


# ---------------------------------------------------------------------------------------------------------------------
# Computing


@dataclass
class NormalizedConvolution(Convolution):
    """A convolution of voxels that may be missing; see `Missing`.

    mask : Mask or None
    coverage_plan : Plan or None    of `coverage_problem`; None where no means are taken, or `edges` tells the coverage
    edges : EdgeCoverage or None    where nothing is missing but what is outside the volume
    keeps_coverage : bool           the same coverage serves every part: it depends on mask and place alone
    tells_coverage : bool           `coverage` is asked for after each slab
    """

    takes_boxes = False

    missing: Missing = NOTHING
    mask: Mask | None = None
    coverage_plan: Plan | None = None
    edges: EdgeCoverage | None = None
    keeps_coverage: bool = False
    tells_coverage: bool = False
    _bare: int = 0
    _any_mean: bool = False
    _told: Array | None = None
    _kept: dict[int, _Places] = field(default_factory=dict)
    _kept_bytes: int = 0
    # memory of the last slab: fresh pages cost more than the sums
    _spare: dict[str, Array] = field(default_factory=dict)
    _lately: bool = False  # whether the last slab held a missing voxel: the next one is then looked at first
    _unseen: int = 0  # slabs that are divided everywhere before one is looked at again

    @property
    def coverage(self) -> Array | None:
        return self._told

    @property
    def bare(self) -> int:
        return self._bare

    @property
    def any_mean(self) -> bool:
        return self.mask is None or self._any_mean

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
        if self.mask is not None:  # as stored and as weights, of the slab at hand and of the one that is read
            stored, weight = self.mask.reader.header.dtype.itemsize, self.mask.weight_itemsize(plan.dtype)
            use["masks"] = planes * area * (stored + 2 * weight)
        kept = math.prod(self.problem.out_size) * itemsize if self.keeps_coverage else 0
        use["coverage"] = min(KEPT_BYTES, kept) + (voxels if self.tells_coverage else 0)
        if self.coverage_plan is not None:
            use["scratch"] = self.coverage_plan.scratch_for((made, *self.problem.out_size[1:]))
        return use

    def with_mask(self, slab: SlabInput, stop: int) -> SlabInput:
        if self.mask is None:
            return slab
        source = SlabSource(self.mask.reader, 0, slice(0, 1), self.problem)
        found = source.read(slab.start, stop)
        weights = self.mask.weights(found.source[..., 0], self.plan.dtype)
        source.release(slab.start)
        return replace(slab, mask=replace(found, source=weights[..., None]))

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
        missing, renormalizes = self.missing, self.problem.boundary.renormalizes
        self._told = None
        weighing = self._weighing(slab)
        noted: list[Part] = []
        tries = not (missing.weighs or renormalizes or self._lately)
        if (self.coverage_plan is None and self.edges is None) or tries:
            before = self.activity_sum
            clipped = self._plain(slab, out, team, scale, outputs, progress, noted=noted, weighing=weighing)
            if not noted or missing.nan == "zero":
                return clipped
            self._refuse(slab, scale)
            self.activity_sum, progress = before, None  # its voxels are counted
        size = (*out.shape[:3], self.problem.filters)
        in_place = out.dtype == self.plan.dtype and out.shape == size and not self.on_slabs
        work = _Work(slab, out if in_place else self._memory("sums", size), team, scale, weighing)
        if missing.labels:
            self._by_labels(work)
        elif self.edges is not None:
            self._sum(work, whole_of(size), team, noted=noted)
            if noted:
                self._refuse(slab, scale)
            self._divide_edges(work, self.edges)
        else:
            summed = tries and in_place and self.bias is None and not self._in_tiles
            self._mean(work, summed, noted)
        if progress is not None:
            progress(out.size)
        return self._end(work, out, outputs)

    def _refuse(self, slab: SlabInput, scale: tuple[float, float]) -> None:
        """Raises: ShapeError if NaN are errors and there are some."""
        if self.missing.nan == "error":
            lost = int((~np.isfinite(slab.source * scale[0] + scale[1])).sum())
            raise ShapeError(f"NaN or infinity among the voxels, {lost} of them here, and --nan error was asked for")

    def _weighing(self, slab: SlabInput) -> Weighing:
        """The weights of a slab's voxels."""
        finite = self.missing.nan != "propagate"
        if slab.mask is None:
            return Weighing(finite=finite, missing=self.missing.value)
        return Weighing(slab.mask.source[..., 0], self._positions(slab.mask), None, finite, self.missing.value)

    def _positions(self, slab: SlabInput) -> Positions:
        """For every position of the taps along depth, height and width, its place in what was read."""
        rows, columns = whole_planes(self.problem)
        return slab.planes, rows if slab.rows is None else slab.rows, columns if slab.columns is None else slab.columns

    def _memory(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array to fill, in the memory that the last one of this name had."""
        count = math.prod(shape)
        if name not in self._spare or self._spare[name].size < count:
            self._spare[name] = np.empty(count, self.plan.dtype)
        return self._spare[name][:count].reshape(shape)

    # -- the two sums

    def _sum(
        self, work: _Work, part: Part, team: Team, out: Array | None = None, noted: list[Part] | None = None
    ) -> int:
        """The products of a part of a slab, summed into its place, or into `out`."""
        planes, rows, columns = _cut(self._positions(work.slab), self.problem, part)
        self.plan.convolve_slab(
            work.slab.source, work.sums[slices_of(part)] if out is None else out, planes, team, rows=rows, columns=columns,
            scale=work.scale, noted=noted, weighing=_cut_weighing(work.weighing, self.problem, part),
        )  # fmt: skip
        return 0

    def _divide(self, work: _Work, part: Part, team: Team, division: Division, sums: Array | None = None) -> int:
        """Coverage of a part of a slab, by which its sums, or those in `sums`, are divided: how many means are none."""
        plan = self.coverage_plan
        assert plan is not None
        weighing: Weighing | None = _cut_weighing(work.weighing, self.problem, part)._replace(weights=True)
        source, scale = work.slab.source[..., : plan.problem.in_channels], work.scale
        planes, rows, columns = _cut(self._positions(work.slab), self.problem, part)
        if self._by_mask_alone and work.slab.mask is not None:  # then the mask is all that need be read
            planes, rows, columns = _cut(self._positions(work.slab.mask), self.problem, part)
            source, scale, weighing = work.slab.mask.source, (1.0, 0.0), None
        return plan.convolve_slab(
            source, work.sums[slices_of(part)] if sums is None else sums, planes, team, rows=rows, columns=columns, scale=scale,
            weighing=weighing, division=division,
        )  # fmt: skip

    @property
    def _by_mask_alone(self) -> bool:
        """Whether weights are the mask's, whatever the voxels."""
        return self.mask is not None and not self.missing.labels and alike(self.missing)

    # -- means

    def _mean(self, work: _Work, summed: bool, noted: list[Part]) -> None:
        """Sums of a slab, divided where their windows lack something.

        summed : they stand there already
        noted : parts of the slab whose windows may lack something; empty: any may
        """
        assert self.coverage_plan is not None
        missing, sums, team = self.missing, work.sums, work.team
        depth, height, width, channels = sums.shape
        whole, voxels = whole_of(sums.shape), depth * height * width
        if self._unseen and not summed:
            self._sum(work, whole, team, noted=noted)
            self._unseen = self._unseen - 1 if voxels_in(set(noted)) > MOST * voxels else 0
            places = _Places([], [whole], [], 0, [])
        else:
            places = self._places(work, noted, summed)
            divided = voxels_in(places.divided)
            self._lately = (divided + places.voids) * RARE > voxels
            self._unseen = NOT_LOOKED_AT if self.mask is None and divided > MOST * voxels else 0
            self._on_parts(work, places.summed, lambda n, team: self._sum(work, places.summed[n], team), [self.plan])
        fill = 0.0 if self.mask is not None else math.nan
        inside = self._mask_at_centre(work)
        coverage = places.coverage
        if coverage is not None:
            pieces = [(sums[p], coverage[p]) for p in map(slices_of, places.divided)]
            divide(pieces, Division(missing.min_coverage, fill), team)
            bare = places.bare
        else:
            if self.tells_coverage or self.keeps_coverage:
                coverage = np.ones((depth, height, width, self.coverage_plan.problem.filters), self.plan.dtype)
                self._fill(coverage, places.void, 0.0, team)

            def one(number: int, team: Team) -> int:
                part = places.divided[number]
                told = None if coverage is None else coverage[slices_of(part)]
                own = None if inside is None else inside[slices_of(part)]
                return self._divide(work, part, team, Division(missing.min_coverage, fill, told, own))

            bare = self._on_parts(work, places.divided, one, [self.coverage_plan])
            lost = places.voids
            if inside is not None:
                lost = sum(int(np.count_nonzero(inside[slices_of(part)])) for part in places.lost)
            bare += lost * channels
            if self.keeps_coverage and coverage is not None and self._kept_bytes + coverage.nbytes <= KEPT_BYTES:
                self._kept[work.slab.start] = places._replace(bare=bare, coverage=coverage)
                self._kept_bytes += coverage.nbytes
        self._fill(sums, places.void, fill, team)
        self._count(bare, inside)
        self._told = coverage if self.tells_coverage else None

    def _mask_at_centre(self, work: _Work) -> Array | None:
        """The mask under each output (d, h, w, 1), above 0 inside it; None without one."""
        mask = work.slab.mask
        return None if mask is None else self._at_centre(mask, mask.source, work.sums.shape)

    def _count(self, bare: int, inside: Array | None) -> None:
        """Take note of a slab's means that are none, under a mask of those inside it, and of whether there are others."""
        self._bare += bare
        if not self._any_mean and inside is not None:
            self._any_mean = bool(np.count_nonzero(inside) * self.problem.filters > bare)

    def _fill(self, array: Array, parts: list[Part], value: float, team: Team) -> None:
        shares = [parts[first :: 2 * team.threads] for first in range(2 * team.threads)]

        def fill(_: int, share: int) -> None:
            for part in shares[share]:
                array[slices_of(part)] = value

        if parts:
            team.run(len(shares), fill)

    def _places(self, work: _Work, noted: list[Part], summed: bool) -> _Places:
        """Where a slab's sums (unless they stand there) and coverage must be computed."""
        kept = self._kept.get(work.slab.start)
        if kept is not None:
            return kept
        slab, weighing, problem, coverage_plan, team = (
            work.slab,
            work.weighing,
            self.problem,
            self.coverage_plan,
            work.team,
        )
        assert coverage_plan is not None
        depth, height, width, _ = work.sums.shape
        block = block_of((depth, height, width), self.plan, coverage_plan)
        region = whole_of(work.sums.shape)
        if noted:  # whole blocks of planes that hold them all
            first, last = min(part[0][0] for part in noted), max(part[0][1] for part in noted)
            region = (
                (first // block[0] * block[0], min(-(-last // block[0]) * block[0], depth)),
                (0, height),
                (0, width),
            )
        lacking = holding = inside = None
        if slab.mask is not None:
            lacking, holding, inside = look(
                slab.mask.source, self._positions(slab.mask), problem, region, block, None, team
            )
        if slab.mask is None or not self._by_mask_alone:
            seen = look(
                slab.source,
                self._positions(slab),
                problem,
                region,
                block,
                Surveyed(weighing, work.scale, self.plan.dtype),
                team,
            )
            lacking = seen.lacking if lacking is None else lacking | seen.lacking
            holding = seen.holding if holding is None else holding & seen.holding
        assert lacking is not None
        assert holding is not None
        wanted = holding
        if inside is not None and self.missing.mask_mode == "clip" and not self.tells_coverage:
            wanted = wanted & inside  # outside it stands 0, whatever the mean
        halo_depth, halo_height, halo_width = (
            -(-(e - s) // s) for e, s in zip(problem.extent, problem.strides, strict=True)
        )
        halo = halo_depth, halo_height, halo_width
        needed = [] if summed else boxes_around(wanted, block, region, halo)
        divided = boxes_around(wanted & lacking, block, region, halo)
        # what is bare within a division is counted there
        voids = voxels_beside(~wanted, block, region, divided)
        lost = []
        if inside is not None:
            lost = strips_of(flags_beside(inside & ~holding, block, region, divided), block, region)
        return _Places(needed, divided, strips_of(~wanted, block, region), voids, lost)

    def _on_parts(self, work: _Work, parts: list[Part], run: Callable[[int, Team], int], plans: list[Plan]) -> int:
        """Run over parts of a slab by number, large ones by the whole team, others side by side; the sum of what it returns."""
        team = work.team
        by_size = sorted(range(len(parts)), key=lambda number: -voxels_in([parts[number]]))
        whole = math.prod(work.sums.shape[:3])
        large = [number for number in by_size if voxels_in([parts[number]]) * 4 * team.threads > whole]
        small = by_size[len(large) :]
        counts = [run(number, team) for number in large]
        for plan in plans if small else []:
            plan.make_ready(team.workers(len(small)))
        team.run(len(small), lambda worker, task: counts.append(run(small[task], OneOf(worker))))
        return sum(counts)

    def _divide_edges(self, work: _Work, edges: EdgeCoverage) -> None:
        """Divide by what is inside the volume, which outputs near its edges have less of."""
        missing, real = self.missing, self.plan.dtype
        depth, height, width, _ = work.sums.shape
        first = work.slab.start
        part: Part = ((first, first + depth), (0, height), (0, width))
        if self.tells_coverage:
            told = edges.at(part, real)
            self._told = np.where(abs(told - 1) <= near_one(real), real.type(1), told)
        pieces = [
            (work.sums[planes[0] - first : planes[1] - first, slice(*rows), slice(*columns)], edges.at(own, real))
            for (planes, rows, columns), own in edges.edges(part)
        ]
        self._bare += divide(pieces, Division(missing.min_coverage, math.nan), work.team)

    # -- labels

    def _by_labels(self, work: _Work) -> None:
        """Means over the voxels of a voxel's own region: each region's in the box that it lies in."""
        slab, sums, missing, real = work.slab, work.sums, self.missing, self.plan.dtype
        assert slab.mask is not None
        assert self.coverage_plan is not None
        depth, height, width, _ = sums.shape
        size = depth, height, width
        own = np.ascontiguousarray(self._at_centre(slab.mask, slab.mask.source, size)[..., 0])
        extents = label_extents(own, int(own.max(initial=0)) + 1)
        grain = common_grain(self.plan, self.coverage_plan)
        coverage = np.zeros(sums.shape, real) if self.tells_coverage else None
        sums.fill(0)
        labels = [label for label in range(1, len(extents)) if extents[label, 0, 1] >= 0]
        boxes = [_whole_grains(extents[label], grain, size) for label in labels]

        def one(number: int, team: Team) -> int:
            label, part = labels[number], boxes[number]
            place = slices_of(part)
            shape = (*(b - a for a, b in part), sums.shape[3])
            mine = own[place] == label
            means = self._memory(f"means {team.worker if isinstance(team, OneOf) else 'of all'}", shape)
            told = None if coverage is None else np.empty(shape, real)
            regional = work._replace(weighing=work.weighing._replace(label=float(label)))
            self._sum(regional, part, team, out=means)
            division = Division(missing.min_coverage, 0.0, told, mine[..., None].view(np.uint8))
            bare = self._divide(regional, part, team, division, sums=means)
            np.copyto(sums[place], means, where=mine[..., None])
            if coverage is not None and told is not None:
                np.copyto(coverage[place], told, where=mine[..., None])
            return bare

        bare = self._on_parts(work, boxes, one, [self.plan, self.coverage_plan])
        self._count(bare, own[..., None])
        self._told = coverage

    # -- what comes after

    def _end(self, work: _Work, out: Array, outputs: slice) -> int:
        """Bias, activations, what stands outside a mask, and the store: how many voxels the output's dtype could not hold."""
        slab, sums = work.slab, work.sums
        mask_mode = None if slab.mask is None or self.missing.mask_mode == "extend" else self.missing.mask_mode
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
    """A slab being computed: its input, the sums of its outputs (d, h, w, c), and how its voxels are weighed."""

    slab: SlabInput
    sums: Array
    team: Team
    scale: tuple[float, float]
    weighing: Weighing


class _Places(NamedTuple):
    """Parts of a slab: where sums are needed, where they are divided, and where nothing is held.

    voids : voxels that nothing was summed for, and that lie in no part that is divided
    lost : parts of them that hold voxels inside the mask
    bare, coverage : means that are none, and (d, h, w, c) or None, of the whole slab, where they are kept for the next part
    """

    summed: list[Part]
    divided: list[Part]
    void: list[Part]
    voids: int
    lost: list[Part]
    bare: int = 0
    coverage: Array | None = None


def alike(missing: Missing) -> bool:
    """Whether the weights are the same for all channels and time points."""
    return missing.nan != "ignore" and missing.value is None


def whole_of(size: tuple[int, ...]) -> Part:
    """All outputs of a slab (d, h, w, ...)."""
    return (0, size[0]), (0, size[1]), (0, size[2])


def common_grain(*plans: Plan) -> tuple[int, int, int]:
    """What parts begin and end at multiples of, so that each plan gives them the bits of the whole volume."""
    depth, height, width = (math.lcm(*sizes) for sizes in zip(*(plan.grain for plan in plans), strict=True))
    return depth, height, width


def block_of(size: tuple[int, ...], *plans: Plan) -> tuple[int, int, int]:
    """Outputs of the blocks that are looked at: what plans compute together, or small ones."""
    grain = common_grain(*plans)
    depth, height, width = (g if g > 1 else min(b, n) for g, b, n in zip(grain, BLOCK, size, strict=False))
    return depth, height, width


def _whole_grains(extent: NDArray[np.int64], grain: tuple[int, int, int], size: tuple[int, ...]) -> Part:
    """The part that holds outputs from first to last along each axis."""
    depth, height, width = (
        (int(first) // g * g, min((int(last) // g + 1) * g, n))
        for (first, last), g, n in zip(extent, grain, size, strict=True)
    )
    return depth, height, width


def _cut(positions: Positions, problem: ConvProblem, part: Part) -> Positions:
    """The positions that a part of the outputs reads."""
    planes, rows, columns = (
        indices[a * stride : (b - 1) * stride + extent]
        for indices, (a, b), stride, extent in zip(positions, part, problem.strides, problem.extent, strict=True)
    )
    return planes, rows, columns


def _cut_weighing(weighing: Weighing, problem: ConvProblem, part: Part) -> Weighing:
    if weighing.mask is None:
        return weighing
    return weighing._replace(positions=_cut(weighing.positions, problem, part))


@lru_cache(maxsize=4)
def whole_planes(problem: ConvProblem) -> tuple[list[int], list[int]]:
    """For every position of the taps along height and width, its row and column."""
    rows, columns = (problem.source_indices(axis, 0, problem.out_size[axis]) for axis in (1, 2))
    return rows, columns
