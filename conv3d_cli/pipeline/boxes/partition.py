"""How the output of a job is cut into boxes, and what each of them reads and computes.

A box is a block of whole output chunks, so no two boxes write one chunk, and a box that is computed twice writes the same bytes.
It reads what its taps need (its halo included) from the input's chunks, each of which is decoded whole. A larger
block reads and computes less beside what it needs. Along one axis boxes may be walked: then
what the next one needs of chunks that are decoded is kept, and each chunk is decoded once along that axis.

All of it is done axis by axis: what a box reads is the product of runs of positions along depth, height and width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from conv3d_cli.model.spec import ConvProblem

Triple = tuple[int, int, int]
Span = tuple[int, int]  # (start, stop)
Runs = tuple[Span, ...]  # in order and apart

BOX_VOXELS = 1 << 18  # that are decoded or computed in the time that a box costs beside
LEAST_STEP = 1.25  # from one length that is tried to the next
GAP = 4  # positions between two runs that are read through


class Box(NamedTuple):
    """Output voxels: (start, stop) along depth, height and width."""

    depth: Span
    height: Span
    width: Span

    @property
    def shape(self) -> Triple:
        """Sizes along depth, height and width."""
        return (self.depth[1] - self.depth[0], self.height[1] - self.height[0], self.width[1] - self.width[0])


@dataclass(frozen=True, eq=False)
class Chain:
    """Convolutions from the input to the output, as cutting sees them.

    problems : of one part of a volume
    grains : the multiples at which what each computes begins and ends (`Plan.grain`)
    """

    problems: tuple[ConvProblem, ...]
    grains: tuple[Triple, ...]


@dataclass(frozen=True)
class Cutting:
    """The boxes of one part of a volume.

    size : output voxels, D, H, W
    chunk : of the output
    block : of a box, whole chunks
    walk : the axis (0, 1, 2) along which boxes follow one another, each with what the last one leaves; None: each on its own
    """

    size: Triple
    chunk: Triple
    block: Triple
    walk: int | None = None

    def boxes(self) -> Iterator[Box]:
        """Every box: in storage order, or row by row along `walk`.

        >>> list(Cutting((3, 4, 5), (2, 4, 4), (2, 4, 8)).boxes())
        [Box(depth=(0, 2), height=(0, 4), width=(0, 5)), Box(depth=(2, 3), height=(0, 4), width=(0, 5))]
        """
        order = [0, 1, 2] if self.walk is None else [*(a for a in range(3) if a != self.walk), self.walk]
        for spans in itertools.product(*(self.spans(axis) for axis in order)):
            yield Box(*(spans[order.index(axis)] for axis in range(3)))

    def spans(self, axis: int) -> list[Span]:
        """Where boxes lie along an axis."""
        return cut_axis(self.size[axis], self.block[axis])

    @property
    def count(self) -> int:
        """Number of boxes."""
        return math.prod(-(-size // step) for size, step in zip(self.size, self.block, strict=True))


def cut_axis(size: int, step: int) -> list[Span]:
    """An axis in spans of a step.

    >>> cut_axis(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + step, size)) for start in range(0, size, step)]


class Share(NamedTuple):
    """What all boxes together decode and compute, as multiples of the input's and the output's voxels: 1 where nothing is done
    twice."""

    decoded: float
    computed: float


def cut(
    chain: Chain,
    in_chunk: Triple,
    out_chunk: Triple,
    allowed: Callable[[Cutting], bool],
    walks: Sequence[int | None] = (None,),
) -> Cutting | None:
    """The cutting that decodes and computes least of those that are allowed; None if not even single chunks are.

    allowed : told a cutting; if it is not, none with larger blocks is
    walks : axes along which boxes may be walked
    """
    size = chain.problems[-1].out_size
    lengths = [block_lengths(n, chunk) for n, chunk in zip(size, out_chunk, strict=True)]
    best: tuple[float, Cutting] | None = None
    for walk, (depth, height) in itertools.product(walks, itertools.product(*lengths[:2])):
        for width in lengths[2]:
            cutting = Cutting(size, out_chunk, (depth, height, width), walk)
            if not allowed(cutting):
                break
            cost = sum(shares(chain, cutting, in_chunk)) + cutting.count * BOX_VOXELS / math.prod(size)
            if best is None or cost < best[0]:
                best = cost, cutting
    return None if best is None else best[1]


def block_lengths(size: int, chunk: int) -> list[int]:
    """Lengths of blocks worth a trial along an axis: whole chunks, the least for each number of blocks, none close to another.

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


def merged(runs: Iterable[Span], gap: int = 0) -> Runs:
    """Runs in order, those that meet (or lie no more than `gap` apart) made one.

    >>> merged([(5, 7), (0, 3), (3, 4)])
    ((0, 4), (5, 7))
    """
    found: list[Span] = []
    for start, stop in sorted(runs):
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return tuple(found)


def common(first: Runs, second: Runs) -> Runs:
    """The positions that lie in both.

    >>> common(((0, 4), (8, 9)), ((2, 20),))
    ((2, 4), (8, 9))
    """
    both = ((max(a[0], b[0]), min(a[1], b[1])) for a in first for b in second)
    return merged(run for run in both if run[0] < run[1])


def without(runs: Runs, others: Runs) -> Runs:
    """The positions of runs that lie in none of the others.

    >>> without(((0, 4), (8, 9)), ((2, 3),))
    ((0, 2), (3, 4), (8, 9))
    """
    left = list(runs)
    for start, stop in others:
        pieces = [(max(run[0], at), min(run[1], to)) for run in left for at, to in ((0, start), (stop, run[1]))]
        left = [run for run in pieces if run[0] < run[1]]
    return tuple(sorted(left))


def count_of(runs: Runs) -> int:
    """How many positions there are."""
    return sum(stop - start for start, stop in runs)


def whole_units(runs: Runs, unit: int, size: int) -> Runs:
    """The chunks (or other units) that positions lie in, whole.

    >>> whole_units(((3, 4), (9, 10)), 4, 10)
    ((0, 4), (8, 10))
    """
    return merged((start // unit * unit, min(-(-stop // unit) * unit, size)) for start, stop in runs)


def input_runs(problem: ConvProblem, axis: int, outputs: Runs) -> Runs:
    """The input positions that outputs read, and few between them; (0, 1) if they read none.

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
        found += [(i, i + 1) for i in {problem.boundary.source_index(p, size) for p in beside} if i >= 0]
    return merged(found, GAP) or ((0, 1),)


@lru_cache(maxsize=4096)
def needs(chain: Chain, axis: int, span: Span) -> tuple[Runs, ...]:
    """What a box needs along an axis: the input positions it reads, then what each convolution computes for it."""
    made: list[Runs] = [(span,)]
    for problem, grain in zip(reversed(chain.problems), reversed(chain.grains), strict=True):
        made[0] = whole_units(made[0], grain[axis], problem.out_size[axis])
        made.insert(0, input_runs(problem, axis, made[0]))
    return tuple(made)


def held_runs(chain: Chain, axis: int, span: Span, following: Span | None, unit: int) -> Runs:
    """What is read for a box along an axis: what it needs, and of the chunks that it decodes what the following one needs."""
    needed = needs(chain, axis, span)[0]
    if following is None:
        return needed
    size = chain.problems[0].in_size[axis]
    kept = common(needs(chain, axis, following)[0], whole_units(needed, unit, size))
    return merged((*needed, *kept))


class AxisShare(NamedTuple):
    """What boxes do along an axis. held, made: the most positions that one reads, and that each convolution computes for it;
    decoded, computed: positions of all boxes together, of the input and of each convolution."""

    held: int
    made: tuple[int, ...]
    decoded: int
    computed: tuple[int, ...]


@lru_cache(maxsize=4096)
def axis_share(chain: Chain, axis: int, step: int, unit: int, walked: bool) -> AxisShare:
    """What boxes of `step` outputs do along an axis of an input in chunks of `unit`."""
    size = chain.problems[0].in_size[axis]
    spans = cut_axis(chain.problems[-1].out_size[axis], step)
    held, decoded = 0, 0
    before: Runs = ()
    lengths = []
    for span, following in zip(spans, [*spans[1:], None], strict=True):
        runs = held_runs(chain, axis, span, following if walked else None, unit)
        decoded += count_of(whole_units(without(runs, before), unit, size))
        held, before = max(held, count_of(runs)), runs if walked else ()
        lengths.append([count_of(made) for made in needs(chain, axis, span)[1:]])
    made, computed = zip(*((max(one), sum(one)) for one in zip(*lengths, strict=True)), strict=True)
    return AxisShare(held, made, decoded, computed)


def axis_shares(chain: Chain, cutting: Cutting, in_chunk: Triple) -> list[AxisShare]:
    """What boxes do along depth, height and width."""
    return [
        axis_share(chain, axis, cutting.block[axis], in_chunk[axis], axis == cutting.walk) for axis in range(3)
    ]  # fmt: skip


def shares(chain: Chain, cutting: Cutting, in_chunk: Triple) -> Share:
    """What all boxes together decode, and what the last convolution computes for them."""
    axes = axis_shares(chain, cutting, in_chunk)
    size, out_size = chain.problems[0].in_size, chain.problems[-1].out_size
    return Share(
        math.prod(one.decoded / n for one, n in zip(axes, size, strict=True)),
        math.prod(one.computed[-1] / n for one, n in zip(axes, out_size, strict=True)),
    )


def decoded_sizes(chain: Chain, box: Box, chunk: Triple) -> Triple:
    """Sizes of what is decoded for a box on its own: whole chunks of the input."""
    sizes = [
        count_of(whole_units(needs(chain, axis, span)[0], chunk[axis], chain.problems[0].in_size[axis]))
        for axis, span in enumerate(box)
    ]
    return sizes[0], sizes[1], sizes[2]
