"""Statistics of the voxels in a window around each output, on a team of threads.

`Window` divides the weights of a window into passes, once; `local_statistics` runs them. Arrays are
(d, h, w, c) with the channels of a voxel together. Arithmetic is float64, whatever the voxels are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.mapping import steps_of
from conv3d_cli.engine.step import AlgorithmData, StepRecord, address_of
from conv3d_cli.engine.team import Team

Array = NDArray[Any]
Reals = NDArray[np.float64]
Longs = NDArray[np.int64]

STATISTICS = ("mean", "std", "variance", "zscore", "snr", "contrast")
# What a sum that is given becomes: divided by the standard deviation, and limited to -1 ... 1.
CORRELATION = "correlation"
# What a row of moments holds, by how voxels are weighted: not; by certainties; so that the number
# of voxels is asked for, too.
QUANTITIES = (2, 3, 4)
# A number of voxels up to here is one voxel.
ALONE = 1 + 1e-9
# Weights that differ from a product of three profiles by this part of the largest are one.
SEPARABLE = 1e-14
# What a combination costs beside its terms, in terms.
FINISHING = 1
# Columns and rows that a thread computes at once, and bytes of its ring. They change no bit: more
# are not faster, and fewer compute more beside their outputs.
MOST_COLUMNS, LEAST_COLUMNS, RING_BYTES, MOST_ROWS, LEAST_ROWS = 512, 64, 2 << 20, 64, 16


class MomentsArguments(NamedTuple):
    """The int64 `parameters` of the loops: addresses, strides in elements, counts, tables.

    planes, rows, columns : outputs; columns are numbers: all channels of a voxel
    channels : numbers of a voxel
    positions : numbers in a row of moments, those beside the outputs included
    height : rows of moments in the ring
    apart : bytes from one quantity of moments to the next
    planes_at, rows_at : int64, the plane or row of the source at each position, -1 outside
    segments : int64 (segments, 4): first and last position in numbers, and the column of the
        source (-1: outside), or the position of moments to copy (-1: none)
    profiles : int64 (profiles, 3): first tap, taps, and the one with the largest weight
    reach_d, weights_d : int64, float64 of each tap
    reach_h : int64 (taps_h, 2): rows, and bytes within the moments of a row
    reach_w : int64: bytes within a row; none, if the window is not separable
    block_h, block_w : rows and columns of a block, 0: none; with the weights in a block
    parts : rows of moments in a slot of the ring: those of profiles, and of a block
    outside : a row of voxels outside the volume; outside_counts: of what they count
    counts_h, counts_w : 1 if voxels outside the volume count
    own, own_plane, own_row : of the numbers that outputs relate, see `local_statistics`
    own_counts : address of what the voxel at the first output counts
    statistic : index of one of `STATISTICS`, and then `CORRELATION`
    told_inside : 1: of outputs that see too little, only those whose own voxel counts are counted
    """

    planes: int
    rows: int
    columns: int
    channels: int
    positions: int
    height: int
    apart: int
    source: int
    source_plane: int
    source_row: int
    certainty: int
    certainty_plane: int
    certainty_row: int
    outside: int
    outside_counts: int
    counts_h: int
    counts_w: int
    own: int
    own_plane: int
    own_row: int
    own_counts: int
    told_inside: int
    statistic: int
    planes_at: int
    rows_at: int
    segments: int
    segment_count: int
    profiles: int
    profile_count: int
    reach_d: int
    weights_d: int
    taps_h: int
    pivot_h: int
    reach_h: int
    weights_h: int
    taps_w: int
    pivot_w: int
    reach_w: int
    weights_w: int
    block_h: int
    block_weights_h: int
    block_w: int
    block_weights_w: int
    parts: int
    scalars: int
    table: int
    ring: int
    buffer: int
    out: int
    out_plane: int
    out_row: int
    lost: int = 0


class Scalars(NamedTuple):
    """The float64 numbers of a run.

    outside : the value outside the volume
    correction : factor of variances
    min_coverage : the least coverage; below it an output is `empty`
    steady : see `Rules`
    """

    outside: float
    correction: float
    min_coverage: float
    empty: float
    steady: float


MOMENTS_AT = MomentsArguments(*range(len(MomentsArguments._fields)))
SCALARS_AT = Scalars(*range(len(Scalars._fields)))


class Taps(NamedTuple):
    """Places that are combined, with weights of sum 1, and the one with the largest weight."""

    places: Longs
    weights: Reals
    pivot: int


def _taps(places: Any, weights: Sequence[float]) -> tuple[Taps, float]:
    """Taps, and the sum of their weights before it became 1."""
    total = math.fsum(weights)
    scaled = np.array([weight / total for weight in weights])
    return Taps(np.asarray(places, np.int64), scaled, int(scaled.argmax())), total


@dataclass(frozen=True)
class Window:
    """The weights of a window, divided into passes along depth, height and width.

    size : (D, H, W)            of the window
    profiles : list of Taps     along depth: places are planes
    along_h : Taps              places are (row, column, profile); of a separable window the column
                                is 0, and profile 1 is that of blocks
    along_w : Taps or None      places are (column, 0), or (column, 1) of a block; None: `along_h`
                                has combined all
    blocks : (H, W)             rows and columns of a block, which are combined before; 0: none
    number : float              so many voxels of equal weight have a mean of the same variance
    """

    size: tuple[int, int, int]
    profiles: list[Taps]
    along_h: Taps
    along_w: Taps | None
    blocks: tuple[int, int]
    number: float

    @classmethod
    def of(cls, weights: Reals) -> Window:
        """Divide the weights (D, H, W) of a window, which are not negative, nor all 0.

        >>> Window.of(np.ones((3, 5, 16))).along_w.places.tolist()
        [[0, 1], [4, 1], [8, 1], [12, 1]]
        >>> cross = Window.of(np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]]))
        >>> cross.along_w, len(cross.along_h.places), cross.number
        (None, 5, 5.0)
        """
        weights = np.asarray(weights, np.float64)
        weights = weights / weights.max()
        number = math.fsum(weights.ravel()) ** 2 / math.fsum((weights * weights).ravel())
        size = weights.shape[0], weights.shape[1], weights.shape[2]
        factors = _factors(weights)
        if factors is not None:
            depth, height, width = (
                _taps(np.flatnonzero(factor), factor[factor > 0].tolist())[0] for factor in factors
            )
            height, rows = _in_blocks(height)
            width, columns = _in_blocks(width)
            no_column = np.insert(height.places, 1, 0, axis=1)
            height = height._replace(places=no_column)
            return cls(size, [depth], height, width, (rows, columns), number)
        profiles: dict[bytes, int] = {}
        found: list[Taps] = []
        places: list[tuple[int, int, int]] = []
        sums = []
        for row, column in np.ndindex(*size[1:]):
            along = weights[:, row, column]
            if not along.any():
                continue
            taps, total = _taps(np.flatnonzero(along), along[along > 0].tolist())
            key = taps.places.tobytes() + taps.weights.tobytes()
            if key not in profiles:
                profiles[key] = len(found)
                found.append(taps)
            places.append((row, column, profiles[key]))
            sums.append(total)
        return cls(size, found, _taps(places, sums)[0], None, (0, 0), number)


def _in_blocks(taps: Taps) -> tuple[Taps, int]:
    """Taps with places (place, 0), or (place, 1) of blocks of equal weights; places in a block.

    Blocks save work: 5 blocks of 3 and their sum instead of 15 places.
    """
    places, weights = taps.places, taps.weights
    count = len(places)
    if (weights != weights[0]).any() or places[-1] - places[0] != count - 1:
        best = count
    else:
        best = min(range(1, count + 1), key=lambda n: n + sum(divmod(count, n)))
    if best + sum(divmod(count, best)) + FINISHING >= count:
        return taps._replace(places=np.stack([places, 0 * places], axis=1)), 0
    whole, rest = divmod(count, best)
    first = int(places[0])
    found = [(first + best * n, 1) for n in range(whole)]
    found += [(first + best * whole + n, 0) for n in range(rest)]
    return _taps(found, [best] * whole + [1] * rest)[0], best


def _factors(weights: Reals) -> tuple[Reals, Reals, Reals] | None:
    """Profiles along D, H, W whose product the weights are; None if there are none."""
    peak = np.unravel_index(int(weights.argmax()), weights.shape)
    depth = weights[:, peak[1], peak[2]]
    height, width = weights[peak[0], :, peak[2]], weights[peak[0], peak[1]]
    most = weights[peak]
    product = (depth[:, None, None] / most) * (height[:, None] / most) * width
    if np.abs(product - weights).max() > SEPARABLE * most or ((product > 0) != (weights > 0)).any():
        return None
    return depth, height, width


class Rules(NamedTuple):
    """What counts, and what outputs without enough of it are.

    outside : float             the value of voxels outside the volume
    outside_counts : 3 bools    whether those outside along D, H, W count
    ddof : int                  0: variances of the voxels; 1: of what they are a sample of
    min_coverage : float        the least part of the window's weight that an output needs
    empty : float               outputs that have less, and z-scores of voxels that do not count
    steady : float              correlations are 0 where the standard deviation is not above this
                                part of the mean
    told_inside : bool          count outputs that have less only where their own voxel counts
    """

    outside: float = 0.0
    outside_counts: tuple[bool, bool, bool] = (True, True, True)
    ddof: int = 0
    min_coverage: float = 0.0
    empty: float = 0.0
    steady: float = 0.0
    told_inside: bool = False


PLAIN = Rules()


def weighting(has_certainty: bool, rules: Rules) -> int:
    """How voxels are weighted: 0: all count; 1: by certainty; 2: so, and ddof is 1."""
    if not has_certainty and all(rules.outside_counts):
        return 0
    return 2 if rules.ddof else 1


def moments_code(real: np.dtype[Any], weighted: int) -> MachineCode:
    """The loops of `local_statistics`; weighted: see `weighting`."""
    cpu = cpu_class()
    vectors = 4 if cpu.registers >= 32 else 2
    return machine_code("moments", "moments", real.name, weighted, cpu.lanes // 2, vectors)


def local_statistics(
    voxels: Array,
    window: Window,
    statistic: str,
    positions: Sequence[Longs],
    first: Sequence[int],
    out: Array,
    team: Team,
    certainty: Array | None = None,
    rules: Rules = PLAIN,
    sums: Array | None = None,
) -> int:
    """Fill `out` (d, h, w, c) with a statistic of the window of each output.

    voxels : (d, h, w, c)       of the dtype of `out`
    positions : three int64     index in `voxels` of every position that windows span along D, H, W;
                                -1 outside the volume
    first : (D, H, W)           index in `voxels` of the first output's own voxel
    certainty : (d, h, w, 1 or c) or None   how much voxels count, 0 to 1; those of 0 may be NaN
    sums : like `out`           what a correlation divides
    Returns the number of outputs whose windows have too little weight, or vary too little.

    >>> x, out = np.array([1.0, 2.0, 6.0]).reshape(1, 1, 3, 1), np.empty((1, 1, 1, 1))
    >>> places = [np.array([0]), np.array([0]), np.array([0, 1, 2])]
    >>> with Team(1) as team:
    ...     lost = local_statistics(
    ...         x, Window.of(np.ones((1, 1, 3))), "mean", places, (0, 0, 1), out, team
    ...     )
    >>> out.ravel().tolist()
    [3.0]
    """
    if certainty is None and not all(rules.outside_counts):
        certainty = np.broadcast_to(np.ones(1, out.dtype), voxels.shape)
    weighted = weighting(certainty is not None, rules)
    code = moments_code(out.dtype, weighted)
    load([code])
    voxels = _rows_together(voxels)
    channels = out.shape[3]
    if certainty is not None:
        certainty = np.broadcast_to(certainty, voxels.shape)
        certainty = _rows_together(np.asarray(certainty, out.dtype))
    own = _rows_together(sums) if sums is not None else voxels[first[0] :, first[1] :, first[2] :]
    target = out if _has_rows_together(out) else np.empty(out.shape, out.dtype)
    run = _Run(
        code, weighted, statistic, voxels, certainty, window, positions, first, own, target, rules
    )
    height, width = out.shape[1], out.shape[2] * channels
    rows = min(MOST_ROWS, max(LEAST_ROWS, -(-height // (4 * team.threads))))
    columns = max(1, run.block_columns // channels) * channels
    tasks = [
        (top, min(top + rows, height), left, min(left + columns, width))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    lost = [0] * len(tasks)

    def work(_: int, task: int) -> None:
        lost[task] = run(*tasks[task])

    if out.size:
        team.run(len(tasks), work)
    if target is not out:
        out[...] = target
    return sum(lost)


def _has_rows_together(array: Array) -> bool:
    """Whether the numbers of a row lie side by side."""
    channels = array.shape[3]
    column, channel = array.strides[2:]
    return (array.shape[2] == 1 or column == channels * array.itemsize) and (
        channels == 1 or channel == array.itemsize
    )


def _rows_together(array: Array) -> Array:
    """An array whose rows lie side by side in memory."""
    return array if _has_rows_together(array) else np.ascontiguousarray(array)


@dataclass
class _Run:
    """One call of `local_statistics`; called for some rows and columns of outputs."""

    code: MachineCode
    weighted: int
    statistic: str
    voxels: Array
    certainty: Array | None
    window: Window
    positions: Sequence[Longs]
    first: Sequence[int]
    own: Array
    out: Array
    rules: Rules

    def __post_init__(self) -> None:
        window, real = self.window, self.out.dtype
        number, ddof = window.number, self.rules.ddof
        scalars = Scalars(
            outside=self.rules.outside,
            correction=number / (number - 1) if ddof and number > ALONE else 1.0,
            # the weights of all voxels add up to 1, but for rounding
            min_coverage=self.rules.min_coverage * (1 - 1e-9),
            empty=self.rules.empty,
            steady=self.rules.steady,
        )
        self.scalars = np.array(scalars, np.float64)
        length = self.voxels.shape[2] * self.voxels.shape[3]
        self.beyond = np.full(length, self.rules.outside, real)
        self.beyond_counts = np.full(length, self.rules.outside_counts[0], real)
        starts = np.cumsum([0, *(len(taps.places) for taps in window.profiles)])
        self.profiles = np.array(
            [
                (start, len(taps.places), taps.pivot)
                for start, taps in zip(starts.tolist(), window.profiles, strict=False)
            ],
            np.int64,
        )
        self.reach_d = np.concatenate([taps.places for taps in window.profiles])
        self.weights_d = np.concatenate([taps.weights for taps in window.profiles])
        self.planes, self.rows = (
            np.ascontiguousarray(positions, np.int64) for positions in self.positions[:2]
        )
        most = [len(taps.places) for taps in (*window.profiles, window.along_h)]
        most += window.blocks
        self.most_taps = max(
            most + ([] if window.along_w is None else [len(window.along_w.places)])
        )

    @property
    def block_columns(self) -> int:
        """Numbers of a row that a thread computes at once: its ring fits into L2, if it can."""
        window = self.window
        each = window.size[1] * self.parts * QUANTITIES[self.weighted] * 8
        channels: int = self.out.shape[3]
        least = max(LEAST_COLUMNS, (window.size[2] - 1) * channels)
        return min(MOST_COLUMNS, max(least, RING_BYTES // each))

    @property
    def parts(self) -> int:
        """Rows of moments in a slot of the ring: those of profiles, and of a block."""
        return len(self.window.profiles) + (self.window.blocks[0] > 0)

    def segments(self, left: int, right: int) -> Longs:
        """The segments of the positions left <= k < right, see `MomentsArguments`."""
        channels = self.voxels.shape[3]
        at = self.positions[2][left:right]
        follows = (at[1:] == at[:-1] + 1) & (at[1:] > 0) | (at[1:] < 0) & (at[:-1] < 0)
        bounds = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(at)]
        runs = [(begin, end, int(at[begin])) for begin, end in itertools.pairwise(bounds)]
        inside = [run for run in runs if run[2] >= 0]
        main = max(inside, key=lambda run: run[1] - run[0]) if inside else None
        found = [] if main is None else [(*main, -1)]
        for begin, end, column in runs:
            if main is None or begin != main[0]:
                copied = -1
                if main is not None and column >= main[2]:
                    copied = main[0] + column - main[2]
                    copied = copied if copied + end - begin <= main[1] else -1
                found.append((begin, end, column, copied))
        return np.array(
            [[n * channels if n >= 0 else -1 for n in segment] for segment in found], np.int64
        )

    def __call__(self, top: int, bottom: int, left: int, right: int) -> int:
        """Compute rows and columns (numbers, from a whole voxel on). Returns lost outputs."""
        window, out, itemsize = self.window, self.out, self.out.itemsize
        channels = out.shape[3]
        across = right - left + (window.size[2] - 1) * channels
        segments = self.segments(left // channels, (left + across) // channels)
        apart = 8 * (-(-across // 8) * 8 + 8)
        quantities = QUANTITIES[self.weighted]
        row_bytes = quantities * apart
        height = window.size[1]
        along_h, along_w = window.along_h, window.along_w
        reach_h = np.stack(
            [
                along_h.places[:, 0],
                along_h.places[:, 1] * 8 * channels + along_h.places[:, 2] * row_bytes,
            ],
            axis=1,
        )
        reach_w = np.zeros(1, np.int64)
        if along_w is not None:
            reach_w = along_w.places[:, 0] * 8 * channels + along_w.places[:, 1] * row_bytes
        block_weights = [np.full(max(block, 1), 1 / max(block, 1)) for block in window.blocks]
        parts = self.parts
        weights_h = along_h.weights
        weights_w = np.zeros(1) if along_w is None else along_w.weights
        table = np.empty(2 * self.most_taps, np.int64)
        ring = np.empty(height * parts * row_bytes // 8)
        buffer = np.empty(3 * row_bytes // 8)
        source_plane, source_row, _ = steps_of(self.voxels)
        certainty = self.certainty
        certainty_plane, certainty_row, _ = (0, 0, 0) if certainty is None else steps_of(certainty)
        out_plane, out_row, _ = steps_of(out)
        own_plane, own_row, _ = steps_of(self.own)
        counts = self.first[0] * certainty_plane + (self.first[1] + top) * certainty_row
        counts += self.first[2] * channels + left
        arguments = MomentsArguments(
            planes=len(out),
            rows=bottom - top,
            columns=right - left,
            channels=channels,
            positions=across,
            height=height,
            apart=apart,
            source=address_of(self.voxels),
            source_plane=source_plane,
            source_row=source_row,
            certainty=address_of(certainty),
            certainty_plane=certainty_plane,
            certainty_row=certainty_row,
            outside=address_of(self.beyond),
            outside_counts=address_of(self.beyond_counts),
            counts_h=self.rules.outside_counts[1],
            counts_w=self.rules.outside_counts[2],
            own=address_of(self.own) + itemsize * (top * own_row + left),
            own_plane=own_plane,
            own_row=own_row,
            own_counts=address_of(certainty) + itemsize * counts,
            told_inside=self.rules.told_inside,
            statistic=(*STATISTICS, CORRELATION).index(self.statistic),
            planes_at=address_of(self.planes),
            rows_at=address_of(self.rows) + 8 * top,
            segments=address_of(segments),
            segment_count=len(segments),
            profiles=address_of(self.profiles),
            profile_count=len(self.profiles),
            reach_d=address_of(self.reach_d),
            weights_d=address_of(self.weights_d),
            taps_h=len(weights_h),
            pivot_h=along_h.pivot,
            reach_h=address_of(reach_h),
            weights_h=address_of(weights_h),
            taps_w=0 if along_w is None else len(weights_w),
            pivot_w=0 if along_w is None else along_w.pivot,
            reach_w=address_of(reach_w),
            weights_w=address_of(weights_w),
            block_h=window.blocks[0],
            block_weights_h=address_of(block_weights[0]),
            block_w=window.blocks[1],
            block_weights_w=address_of(block_weights[1]),
            parts=parts,
            scalars=address_of(self.scalars),
            table=address_of(table),
            ring=address_of(ring),
            buffer=address_of(buffer),
            out=address_of(out) + itemsize * (top * out_row + left),
            out_plane=out_plane,
            out_row=out_row,
        )
        parameters = np.array(arguments, np.int64)
        self.code(StepRecord(AlgorithmData(parameters=parameters)))
        return int(parameters[MOMENTS_AT.lost])
