"""Divide the output of a job into boxes, and find the voxels that each box reads and computes.

A box is a block of whole output chunks, so no chunk is written by two boxes, and a box that is
computed again writes the same bytes. A box reads the voxels of its windows (with its halo) from the
input's chunks, which are decoded whole. The larger the boxes, the fewer voxels several of them read
and compute. Boxes may sweep along one axis: each box then keeps the voxels of its decoded chunks
that the next box needs, so that every chunk is decoded once along that axis.

Each axis is treated on its own: the voxels of a box are the product of runs of positions along
depth, height and width.
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

# the fixed cost of a box, in voxels decoded or computed in the same time
BOX_VOXELS = 1 << 18
LEAST_STEP = 1.25  # smallest ratio of one block length to try to the next shorter one
GAP = 4  # two runs with at most this many positions between them are read as one


@dataclass(frozen=True, eq=False)
class BoxNode:
    """A convolution or another operation, as far as a partition depends on it.

    inputs : tuple of int       positions of nodes before it in the graph; -1: the volume
    size : (D, H, W)            voxels of its output
    alignment : (D, H, W)       the multiples to which it aligns its blocks
    runs : callable             (number of an input, axis, outputs) -> the positions of that input
                                that the outputs are computed from
    """

    inputs: tuple[int, ...]
    size: Triple
    alignment: Triple
    runs: Callable[[int, int, Runs], Runs]


@dataclass(frozen=True, eq=False)
class BoxGraph:
    """The nodes from input to output, as far as a partition depends on them.

    nodes : tuple of BoxNode    each after those that it takes from; the last gives the output
    in_size : (D, H, W)         voxels of the volume
    """

    nodes: tuple[BoxNode, ...]
    in_size: Triple

    @property
    def size(self) -> Triple:
        """Voxels of the output along D, H, W."""
        return self.nodes[-1].size


@dataclass(frozen=True)
class Partition:
    """The boxes of the output of one part of a volume.

    size : (D, H, W)        voxels of the output
    chunk : (D, H, W)       voxels of an output chunk
    block : (D, H, W)       voxels of a box, in whole chunks
    sweep : int or None     the axis (0, 1, 2) along which each box keeps the voxels that the next
                            one needs; None: boxes are independent
    """

    size: Triple
    chunk: Triple
    block: Triple
    sweep: int | None = None

    def boxes(self) -> Iterator[Box]:
        """All boxes, with `sweep` as the fastest axis; in storage order without one.

        >>> for box in Partition((3, 4, 5), (2, 4, 4), (2, 4, 8)).boxes():
        ...     print(*box)
        (0, 2) (0, 4) (0, 5)
        (2, 3) (0, 4) (0, 5)
        """
        order = [0, 1, 2]
        if self.sweep is not None:
            order.remove(self.sweep)
            order.append(self.sweep)
        for spans in itertools.product(*(self.spans(axis) for axis in order)):
            yield Box(*(spans[order.index(axis)] for axis in range(3)))

    def spans(self, axis: int) -> list[Span]:
        """The spans of the boxes along an axis."""
        return split(self.size[axis], self.block[axis])

    @property
    def count(self) -> int:
        """The number of boxes."""
        return math.prod(-(-size // step) for size, step in zip(self.size, self.block, strict=True))


class Redundancy(NamedTuple):
    """How often all boxes together process a voxel on average; 1 if only once.

    decoded : of the input
    computed : of the output
    """

    decoded: float
    computed: float


def choose_partition(
    graph: BoxGraph,
    in_chunk: Triple,
    out_chunk: Triple,
    allowed: Callable[[Partition], bool],
    sweeps: Sequence[int | None] = (None,),
) -> Partition | None:
    """The allowed partition that decodes and computes the fewest voxels.

    in_chunk, out_chunk : (D, H, W)     voxels of a chunk of input and output
    allowed : callable                  (partition) -> bool; if it refuses a partition, it must
                                        refuse all with larger blocks
    sweeps : sequence                   the sweep axes to try; None for independent boxes
    Returns None if not even boxes of one chunk are allowed.
    """
    size = graph.size
    lengths = [block_lengths(n, chunk) for n, chunk in zip(size, out_chunk, strict=True)]
    best: tuple[float, Partition] | None = None
    for sweep, (depth, height) in itertools.product(sweeps, itertools.product(*lengths[:2])):
        for width in lengths[2]:
            partition = Partition(size, out_chunk, (depth, height, width), sweep)
            if not allowed(partition):
                break
            fixed = partition.count * BOX_VOXELS / math.prod(size)
            cost = sum(redundancy(graph, partition, in_chunk)) + fixed
            if best is None or cost < best[0]:
                best = cost, partition
    return None if best is None else best[1]


def block_lengths(size: int, chunk: int) -> list[int]:
    """The block lengths to try along an axis: whole chunks, the shortest for each number of blocks.

    Lengths less than `LEAST_STEP` times the next shorter one are left out.

    >>> block_lengths(100, 8)
    [8, 16, 24, 32, 40, 56, 100]
    """
    chunks = -(-size // chunk)
    lengths: list[int] = []  # in chunks
    for length in sorted({-(-chunks // count) for count in range(1, chunks + 1)}):
        if not lengths or length >= LEAST_STEP * lengths[-1] or length == chunks:
            lengths.append(length)
    return [min(length * chunk, size) for length in lengths]


# --------------------------------------------------------------------------------------------------
# The positions that a box reads and computes along one axis


def input_runs(problem: ConvProblem, axis: int, outputs: Runs) -> Runs:
    """The input positions in the windows of outputs, with gaps of up to `GAP` filled.

    Returns ((0, 1),) if no window holds an input position.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> spec = ConvSpec(padding="same", boundary="wrap")
    >>> input_runs(spec.resolve((1, 29, 9, 9, 1), (3, 3, 3, 1, 1)), 0, ((25, 29),))
    ((0, 1), (24, 29))
    """
    size, spans = problem.in_size[axis], []
    for start, stop in outputs:
        first = start * problem.strides[axis] - problem.pad_before[axis]
        last = (stop - 1) * problem.strides[axis] - problem.pad_before[axis] + problem.extent[axis]
        if max(first, 0) < min(last, size):
            spans.append((max(first, 0), min(last, size)))
        outside = itertools.chain(range(first, min(last, 0)), range(max(first, size), last))
        sources = {problem.boundary.source_index(position, size) for position in outside}
        spans += [(source, source + 1) for source in sources if source >= 0]
    return merge(spans, GAP) or ((0, 1),)


@lru_cache(maxsize=4096)
def required_runs(graph: BoxGraph, axis: int, span: Span) -> tuple[Runs, ...]:
    """The positions that a box requires along an axis.

    span : (start, stop)    outputs of the box
    Returns the input positions to read, then the outputs that each node computes.
    """
    wanted: list[list[Span]] = [[] for _ in graph.nodes]
    volume: list[Span] = []
    computed: list[Runs] = [() for _ in graph.nodes]
    wanted[-1].append(span)
    for position in reversed(range(len(graph.nodes))):
        node = graph.nodes[position]
        # what several nodes take is computed once, with small gaps, as one takes it
        runs = merge(wanted[position], GAP if len(wanted[position]) > 1 else 0)
        computed[position] = align_runs(runs, node.alignment[axis], node.size[axis])
        for number, source in enumerate(node.inputs):
            taken = node.runs(number, axis, computed[position])
            (volume if source < 0 else wanted[source]).extend(taken)
    return merge(volume, GAP) or ((0, 1),), *computed


def buffered_runs(
    graph: BoxGraph, axis: int, span: Span, following: Span | None, unit: int
) -> Runs:
    """The input positions that a box has in memory along an axis.

    span : (start, stop)                outputs of the box
    following : (start, stop) or None   outputs of the next box, if it keeps voxels of this one
    unit : int                          positions of a chunk
    Returns the positions that the box requires, and those that the next box requires of the same
    chunks.
    """
    required = required_runs(graph, axis, span)[0]
    if following is None:
        return required
    size = graph.in_size[axis]
    kept = intersect(required_runs(graph, axis, following)[0], align_runs(required, unit, size))
    return merge((*required, *kept))


class AxisWork(NamedTuple):
    """Numbers of positions that boxes process along an axis.

    most_buffered : input positions in memory for one box, at most
    most_computed : outputs that each node computes for one box, at most
    decoded : input positions that all boxes together decode
    computed : outputs that each node computes for all boxes together
    """

    most_buffered: int
    most_computed: tuple[int, ...]
    decoded: int
    computed: tuple[int, ...]


@lru_cache(maxsize=4096)
def axis_work(graph: BoxGraph, axis: int, step: int, unit: int, swept: bool) -> AxisWork:
    """The work of boxes along an axis.

    step : int      outputs of a box
    unit : int      input positions of a chunk
    swept : bool    whether boxes sweep along this axis
    """
    size = graph.in_size[axis]
    spans = split(graph.size[axis], step)
    most_buffered, decoded = 0, 0
    kept: Runs = ()
    counts = []
    for span, following in zip(spans, [*spans[1:], None], strict=True):
        runs = buffered_runs(graph, axis, span, following if swept else None, unit)
        decoded += count_positions(align_runs(subtract(runs, kept), unit, size))
        most_buffered = max(most_buffered, count_positions(runs))
        kept = runs if swept else ()
        counts.append([count_positions(runs) for runs in required_runs(graph, axis, span)[1:]])
    by_node = list(zip(*counts, strict=True))
    most_computed, computed = tuple(map(max, by_node)), tuple(map(sum, by_node))
    return AxisWork(most_buffered, most_computed, decoded, computed)


def work_by_axis(graph: BoxGraph, partition: Partition, in_chunk: Triple) -> list[AxisWork]:
    """The work of boxes along depth, height and width; `in_chunk`: voxels of an input chunk."""
    return [
        axis_work(graph, axis, partition.block[axis], in_chunk[axis], axis == partition.sweep)
        for axis in range(3)
    ]


def redundancy(graph: BoxGraph, partition: Partition, in_chunk: Triple) -> Redundancy:
    """How often all boxes together decode an input voxel and compute an output voxel on average.

    Only outputs of the last node count. `in_chunk`: voxels of an input chunk.
    """
    axes = work_by_axis(graph, partition, in_chunk)
    return Redundancy(
        math.prod(one.decoded / n for one, n in zip(axes, graph.in_size, strict=True)),
        math.prod(one.computed[-1] / n for one, n in zip(axes, graph.size, strict=True)),
    )


def decoded_sizes(graph: BoxGraph, box: Box, chunk: Triple) -> Triple:
    """Voxels decoded for an independent box along depth, height and width: whole input chunks."""
    depth, height, width = (
        count_positions(
            align_runs(required_runs(graph, axis, span)[0], chunk[axis], graph.in_size[axis])
        )
        for axis, span in enumerate(box)
    )
    return depth, height, width
