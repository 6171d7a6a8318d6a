"""How the output of a job is cut into tasks for a cluster, and what they read and compute.

A task is a block of whole output chunks, so no two tasks write one chunk, and a task that runs twice writes the same bytes. It
reads what its taps need (its halo included) from the input's chunks, each of which it decodes whole. Blocks are grown from the
chunk while they are small: a larger block reads less beside what it needs, a smaller one spreads and repeats better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from conv3d_cli.model.spec import ConvProblem

Triple = tuple[int, int, int]
Span = tuple[int, int]  # (start, stop)

# Voxels of input and output that a task holds, in bytes: a second or two of work, and what a worker's thread may well hold. Of
# chunks of 64 x 128 x 128 and a Gaussian of 25 taps, tasks of 96 MB decode each chunk 8.4 times, of 384 MB 2.7 times.
TASK_BYTES = 384 << 20
TASKS_A_THREAD = 4  # at least, so that the last one is not waited for long


class Box(NamedTuple):
    """Output voxels: (start, stop) along depth, height and width."""

    depth: Span
    height: Span
    width: Span

    @property
    def shape(self) -> Triple:
        """Sizes along depth, height and width."""
        return (self.depth[1] - self.depth[0], self.height[1] - self.height[0], self.width[1] - self.width[0])


@dataclass(frozen=True)
class Cutting:
    """The tasks of one part of a volume.

    size : output voxels, D, H, W
    chunk : of the output
    block : of a task, whole chunks
    """

    size: Triple
    chunk: Triple
    block: Triple

    def boxes(self) -> Iterator[Box]:
        """Every task's box, in storage order.

        >>> list(Cutting((3, 4, 5), (2, 4, 4), (2, 4, 8)).boxes())
        [Box(depth=(0, 2), height=(0, 4), width=(0, 5)), Box(depth=(2, 3), height=(0, 4), width=(0, 5))]
        """
        spans = [
            [(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in zip(self.size, self.block, strict=True)
        ]
        for depth, height, width in itertools.product(*spans):
            yield Box(depth, height, width)

    @property
    def count(self) -> int:
        """Number of tasks."""
        return math.prod(-(-size // step) for size, step in zip(self.size, self.block, strict=True))


def cut(
    problems: Sequence[ConvProblem],
    in_chunk: Triple,
    out_chunk: Triple,
    voxel_bytes: int,
    threads: int,
    parts: int = 1,
    task_bytes: float = TASK_BYTES,
) -> Cutting:
    """Blocks of whole output chunks, of at most `task_bytes` unless one chunk is more, and enough for all threads of the cluster.

    problems : the convolutions, first to last
    voxel_bytes : of an input voxel and an output voxel together, all channels
    """
    size = problems[-1].out_size
    block = tuple(min(n, whole) for n, whole in zip(out_chunk, size, strict=True))
    while True:
        wider = []
        for axis in range(3):
            if block[axis] >= size[axis]:
                continue
            longer = list(block)
            longer[axis] = min(-(-2 * block[axis] // out_chunk[axis]) * out_chunk[axis], size[axis])
            new = Cutting(size, out_chunk, (longer[0], longer[1], longer[2]))
            if (
                task_size(problems, new.block, voxel_bytes) <= task_bytes
                and new.count * parts >= TASKS_A_THREAD * threads
            ):
                wider.append((read_share(problems, new, in_chunk), axis, new.block))
        if not wider:
            return Cutting(size, out_chunk, (block[0], block[1], block[2]))
        block = min(wider)[2]


def task_size(problems: Sequence[ConvProblem], block: Triple, voxel_bytes: int) -> float:
    """Bytes of the input and output voxels that a task holds; see `cut`."""
    whole = [(0, n) for n in block]
    return (math.prod(input_box(problems[-1], Box(*whole)).shape) + math.prod(block)) * voxel_bytes / 2


def input_span(problem: ConvProblem, axis: int, span: Span) -> Span:
    """The input positions that lie between the first and the last that outputs start..stop-1 read; (0, 1) if they read none.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> input_span(ConvSpec(padding="same").resolve((1, 9, 9, 9, 1), (3, 3, 3, 1, 1)), 0, (4, 9))
    (3, 9)
    """
    found = [i for i in problem.source_indices(axis, *span) if i >= 0]
    return (min(found), max(found) + 1) if found else (0, 1)


def input_box(problem: ConvProblem, box: Box) -> Box:
    """What a box of outputs reads of its input."""
    return Box(*(input_span(problem, axis, span) for axis, span in enumerate(box)))


def whole_chunks(problems: Sequence[ConvProblem], box: Box, chunk: Triple) -> Triple:
    """Sizes of what is decoded for a box of the last output: whole chunks of the first input."""
    for problem in reversed(problems):
        box = input_box(problem, box)
    return tuple(  # type: ignore[return-value]
        min(-(-stop // n) * n, size) - start // n * n
        for (start, stop), n, size in zip(box, chunk, problems[0].in_size, strict=True)
    )


def read_share(problems: Sequence[ConvProblem], cutting: Cutting, in_chunk: Triple) -> float:
    """Voxels decoded by all tasks together, as a multiple of the input's: 1 where nothing is read twice."""
    spans: list[dict[int, int]] = []
    for axis in range(3):
        lengths: dict[int, int] = {}
        step, size = cutting.block[axis], cutting.size[axis]
        for start in range(0, size, step):
            span = (start, min(start + step, size))
            for problem in reversed(problems):
                span = input_span(problem, axis, span)
            n = in_chunk[axis]
            length = min(-(-span[1] // n) * n, problems[0].in_size[axis]) - span[0] // n * n
            lengths[start] = length
        spans.append(lengths)
    return math.prod(sum(lengths.values()) / n for lengths, n in zip(spans, problems[0].in_size, strict=True))
