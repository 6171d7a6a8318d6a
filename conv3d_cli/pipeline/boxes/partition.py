"""How the output of a job is divided into boxes, and what each box reads and computes.

A box is a block of whole output chunks. So no two boxes write to one chunk, and a box that is computed twice
writes the same bytes. A box reads the voxels under its taps (its halo included) from the input's chunks, each of
which is decoded whole. Larger blocks read and compute less that other blocks read and compute, too. Boxes may
sweep along one axis: each box then keeps the part of its decoded chunks that the next box needs, so that each
chunk is decoded only once along that axis.

All of this is worked out axis by axis: what a box reads is the product of runs of positions along depth, height
and width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from conv3d_cli.model.box import (
    Box,
    Runs,
    Span,
    align_runs,
    count_positions,
    intersect,
    merge,
    split,
    subtract,
)
from conv3d_cli.model.spec import ConvProblem, Triple

# the fixed cost of a box, as the voxels that are decoded or computed in the same time
BOX_VOXELS = 1 << 18
LEAST_STEP = 1.25  # from one block length that is tried to the next
GAP = 4  # positions between two runs that are read through


@dataclass(frozen=True, eq=False)
class LayerChain:
    """The convolutions from the input to the output, as far as a partition depends on them.

    problems : of one part of a volume
    alignments : what each convolution computes begins and ends at multiples of these (`Plan.block_alignment`)
    """

    problems: tuple[ConvProblem, ...]
    alignments: tuple[Triple, ...]


@dataclass(frozen=True)
class Partition:
    """The boxes that the output of one part of a volume is divided into.

    size : output voxels, D, H, W
    chunk : of the output
    block : size of a box, in whole chunks
    sweep : the axis (0, 1, 2) along which each box keeps what the next one needs; None: boxes are independent
    """

    size: Triple
    chunk: Triple
    block: Triple
    sweep: int | None = None

    def boxes(self) -> Iterator[Box]:
        """Every box: in storage order, or row by row along `sweep`.

        >>> list(Partition((3, 4, 5), (2, 4, 4), (2, 4, 8)).boxes())
        [Box(depth=(0, 2), height=(0, 4), width=(0, 5)), Box(depth=(2, 3), height=(0, 4), width=(0, 5))]
        """
        order = (
            [0, 1, 2]
            if self.sweep is None
            else [*(a for a in range(3) if a != self.sweep), self.sweep]
        )
        for spans in itertools.product(*(self.spans(axis) for axis in order)):
            yield Box(*(spans[order.index(axis)] for axis in range(3)))

    def spans(self, axis: int) -> list[Span]:
        """The spans of the boxes along an axis."""
        return split(self.size[axis], self.block[axis])

    @property
    def count(self) -> int:
        """Number of boxes."""
        return math.prod(-(-size // step) for size, step in zip(self.size, self.block, strict=True))


class Redundancy(NamedTuple):
    """How often all boxes together decode the input's voxels and compute the output's; 1 if each only once."""

    decoded: float
    computed: float


def choose_partition(
    chain: LayerChain,
    in_chunk: Triple,
    out_chunk: Triple,
    allowed: Callable[[Partition], bool],
    sweeps: Sequence[int | None] = (None,),
) -> Partition | None:
    """The allowed partition that decodes and computes least; None if not even boxes of one chunk are allowed.

    allowed : callable      (partition) -> bool; if it refuses a partition, it refuses all with larger blocks
    sweeps : axes along which boxes may sweep
    """
    size = chain.problems[-1].out_size
    lengths = [block_lengths(n, chunk) for n, chunk in zip(size, out_chunk, strict=True)]
    best: tuple[float, Partition] | None = None
    for sweep, (depth, height) in itertools.product(sweeps, itertools.product(*lengths[:2])):
        for width in lengths[2]:
            partition = Partition(size, out_chunk, (depth, height, width), sweep)
            if not allowed(partition):
                break
            fixed = partition.count * BOX_VOXELS / math.prod(size)
            cost = sum(redundancy(chain, partition, in_chunk)) + fixed
            if best is None or cost < best[0]:
                best = cost, partition
    return None if best is None else best[1]


def block_lengths(size: int, chunk: int) -> list[int]:
    """The lengths of blocks to try along an axis: whole chunks, the shortest for each number of blocks.

    Lengths that differ by less than `LEAST_STEP` from a shorter one are left out.

    >>> block_lengths(100, 8)
    [8, 16, 24, 32, 40, 56, 100]
    """
    chunks = -(-size // chunk)
    found: list[int] = []
    for number in sorted({-(-chunks // count) for count in range(1, chunks + 1)}):
        if not found or number >= LEAST_STEP * found[-1] or number == chunks:
            found.append(number)
    return [min(number * chunk, size) for number in found]


# ---------------------------------------------------------------------------------------------------------------------
# What a box reads and computes, along one axis


def input_runs(problem: ConvProblem, axis: int, outputs: Runs) -> Runs:
    """The input positions that outputs read, with gaps of up to `GAP` filled; (0, 1) if they read none.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> input_runs(ConvSpec(padding="same", boundary="wrap").resolve((1, 29, 9, 9, 1), (3, 3, 3, 1, 1)), 0, ((25, 29),))
    ((0, 1), (24, 29))
    """
    size, found = problem.in_size[axis], []
    for start, stop in outputs:
        first = start * problem.strides[axis] - problem.pad_before[axis]
        last = (stop - 1) * problem.strides[axis] - problem.pad_before[axis] + problem.extent[axis]
        if max(first, 0) < min(last, size):
            found.append((max(first, 0), min(last, size)))
        beside = itertools.chain(range(first, min(last, 0)), range(max(first, size), last))
        found += [
            (i, i + 1) for i in {problem.boundary.source_index(p, size) for p in beside} if i >= 0
        ]
    return merge(found, GAP) or ((0, 1),)


@lru_cache(maxsize=4096)
def needs(chain: LayerChain, axis: int, span: Span) -> tuple[Runs, ...]:
    """What a box needs along an axis: the input positions it reads, then the outputs of each convolution."""
    made: list[Runs] = [(span,)]
    for problem, alignment in zip(
        reversed(chain.problems), reversed(chain.alignments), strict=True
    ):
        made[0] = align_runs(made[0], alignment[axis], problem.out_size[axis])
        made.insert(0, input_runs(problem, axis, made[0]))
    return tuple(made)


def held_runs(chain: LayerChain, axis: int, span: Span, following: Span | None, unit: int) -> Runs:
    """What is read for a box along an axis.

    It is what the box needs, and what the following box needs of the same chunks of `unit` positions.
    """
    needed = needs(chain, axis, span)[0]
    if following is None:
        return needed
    size = chain.problems[0].in_size[axis]
    kept = intersect(needs(chain, axis, following)[0], align_runs(needed, unit, size))
    return merge((*needed, *kept))


class AxisWork(NamedTuple):
    """What boxes do along an axis, in positions.

    held : the most that one box reads
    made : the most that each convolution computes for one box
    decoded : what all boxes together decode of the input
    computed : what each convolution computes for all boxes together
    """

    held: int
    made: tuple[int, ...]
    decoded: int
    computed: tuple[int, ...]


@lru_cache(maxsize=4096)
def axis_work(chain: LayerChain, axis: int, step: int, unit: int, swept: bool) -> AxisWork:
    """What boxes of `step` outputs do along an axis of an input in chunks of `unit`."""
    size = chain.problems[0].in_size[axis]
    spans = split(chain.problems[-1].out_size[axis], step)
    held, decoded = 0, 0
    before: Runs = ()
    lengths = []
    for span, following in zip(spans, [*spans[1:], None], strict=True):
        runs = held_runs(chain, axis, span, following if swept else None, unit)
        decoded += count_positions(align_runs(subtract(runs, before), unit, size))
        held, before = max(held, count_positions(runs)), runs if swept else ()
        lengths.append([count_positions(made) for made in needs(chain, axis, span)[1:]])
    made, computed = zip(*((max(one), sum(one)) for one in zip(*lengths, strict=True)), strict=True)
    return AxisWork(held, made, decoded, computed)


def work_by_axis(chain: LayerChain, partition: Partition, in_chunk: Triple) -> list[AxisWork]:
    """What boxes do along depth, height and width."""
    return [
        axis_work(chain, axis, partition.block[axis], in_chunk[axis], axis == partition.sweep)
        for axis in range(3)
    ]


def redundancy(chain: LayerChain, partition: Partition, in_chunk: Triple) -> Redundancy:
    """How often all boxes together decode the input, and how often the last convolution computes its output."""
    axes = work_by_axis(chain, partition, in_chunk)
    size, out_size = chain.problems[0].in_size, chain.problems[-1].out_size
    return Redundancy(
        math.prod(one.decoded / n for one, n in zip(axes, size, strict=True)),
        math.prod(one.computed[-1] / n for one, n in zip(axes, out_size, strict=True)),
    )


def decoded_sizes(chain: LayerChain, box: Box, chunk: Triple) -> Triple:
    """Sizes of what is decoded for an independent box: whole chunks of the input."""
    sizes = [
        count_positions(
            align_runs(needs(chain, axis, span)[0], chunk[axis], chain.problems[0].in_size[axis])
        )
        for axis, span in enumerate(box)
    ]
    return sizes[0], sizes[1], sizes[2]
