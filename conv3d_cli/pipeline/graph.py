"""The graph of a job: its convolutions and other operations, in the order of computation.

A node takes the outputs of nodes before it, or the volume (-1). The last node is a convolution,
whose output is written; where it would only copy an operation's, that computes what is written. A
chain of layers is the simplest graph: each node takes the one before it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from conv3d_cli.convolution.copying import Copy
from conv3d_cli.convolution.losses import Rounding
from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import Steps, first_needed, last_needed
from conv3d_cli.model.box import Runs, merge
from conv3d_cli.model.patches import PatchLayout
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.network.operations.base import Operation
from conv3d_cli.pipeline.boxes.partition import GAP, BoxGraph, BoxNode, input_runs

VOLUME = -1  # the job's volume, as an input of a node
# Planes that a node computes at once, unless fewer are asked for: at least this many, and so many
# for each plane of the halo, which every call packs again; tasks for each thread.
LEAST_AT_ONCE, HALOS_AT_ONCE, TASKS_AT_ONCE = 4, 4, 2


@dataclass(frozen=True, eq=False)
class GraphNode(abc.ABC):
    """A node of a graph.

    inputs : tuple of int   positions of nodes before it, or `VOLUME`
    """

    inputs: tuple[int, ...]

    @cached_property
    def rounding(self) -> Rounding:
        """What the volume's voxels lose on their way into this node, unless it is a convolution."""
        return Rounding()

    @property
    @abc.abstractmethod
    def size(self) -> Triple:
        """Voxels of the output along D, H, W."""

    @property
    @abc.abstractmethod
    def channels(self) -> int:
        """Channels of the output."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of the output, unless it is written."""

    @property
    def alignment(self) -> Triple:
        """A box that begins and ends at multiples of this has the bits of the whole volume."""
        return 1, 1, 1

    @property
    def step(self) -> int:
        """Output planes that are computed together."""
        return 1

    def at_once(self, start: int, threads: int) -> int:
        """The most output planes, in whole steps, that are computed at once from `start` on."""
        return self.step

    def next_call(self, start: int, stop: int, threads: int) -> tuple[int, int]:
        """The planes that are computed first where planes start to stop - 1 are asked for.

        Steps stay whole: where these begin before `start` or end after `stop`, they are one step.
        """
        step, size = self.step, self.size[0]
        first = start - start % step
        if first < start:
            return first, min(first + step, size)
        end = size if stop == size else max(stop - stop % step, first + step)
        return first, min(first + self.at_once(first, threads), end, size)

    @abc.abstractmethod
    def runs(self, number: int, axis: int, outputs: Runs) -> Runs:
        """The positions of an input that outputs are computed from, along an axis."""

    @abc.abstractmethod
    def planes(self, number: int, start: int, stop: int) -> tuple[int, int]:
        """The planes of an input that output planes start to stop - 1 are computed from.

        In a forward pass: from the first plane that these or later outputs need.
        """


@dataclass(frozen=True, eq=False)
class ConvolutionNode(GraphNode):
    """A convolution in a graph."""

    convolution: Convolution

    @property
    def size(self) -> Triple:
        return self.convolution.problem.out_size

    @property
    def channels(self) -> int:
        return self.convolution.channels_out

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.convolution.plan.dtype

    @property
    def alignment(self) -> Triple:
        return self.convolution.plan.block_alignment

    @property
    def step(self) -> int:
        return self.convolution.plan.depth_step

    def at_once(self, start: int, threads: int) -> int:
        if threads not in self._at_once:
            self._at_once[threads] = self._useful_depth(threads)
        return self._at_once[threads]

    @cached_property
    def _at_once(self) -> dict[int, int]:
        return {}  # by the number of threads

    def _useful_depth(self, threads: int) -> int:
        """Planes whose halo is not much beside them, and that give all threads something to do.

        Tasks are no deeper in a deeper slab than in one of their depth, and pack their own halos.
        """
        plan, problem, step = self.convolution.plan, self.convolution.problem, self.step
        halo = -(-max(0, problem.extent[0] - problem.strides[0]) // problem.strides[0])
        wish = max(LEAST_AT_ONCE, min(HALOS_AT_ONCE * halo, plan.prepared.layout.tile.depth))
        depth = -(-wish // step) * step
        plane = problem.out_size[1:]
        while (
            depth < problem.out_size[0]
            and threads > 1
            and self.convolution.tasks_for((depth, *plane)) < TASKS_AT_ONCE * threads
        ):
            depth += step
        return depth

    def ring(self, step: int, threads: int) -> int:
        """Planes of a ring that holds the input of every call, in whole steps of `step` planes."""
        if (step, threads) not in self._rings:
            most, size, steps = 1, self.size[0], Steps(self.convolution.problem.in_size[0], step)
            for start in range(0, size, self.step):
                stop = min(start + self.at_once(start, threads), size)
                first, end = steps.around(*self.planes(0, start, stop))
                most = max(most, -(-(end - first) // step))
            self._rings[step, threads] = most * step
        return self._rings[step, threads]

    @cached_property
    def _rings(self) -> dict[tuple[int, int], int]:
        return {}  # by step and threads

    def runs(self, number: int, axis: int, outputs: Runs) -> Runs:
        return input_runs(self.convolution.problem, axis, outputs)

    def planes(self, number: int, start: int, stop: int) -> tuple[int, int]:
        problem = self.convolution.problem
        return first_needed(problem)[start], last_needed(problem)[stop - 1]


@dataclass(frozen=True, eq=False)
class OperationNode(GraphNode):
    """Another operation in a graph.

    real : dtype        of its output
    """

    operation: Operation
    real: np.dtype[Any]

    @property
    def size(self) -> Triple:
        return self.operation.shape.size

    @property
    def channels(self) -> int:
        return self.operation.shape.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.real

    @property
    def step(self) -> int:
        return self.operation.step

    def at_once(self, start: int, threads: int) -> int:
        operation, size = self.operation, self.size[0]
        if start + 1 < size and not operation.needs_whole:
            shared = max(
                operation.span(number, 0, (start, start + 1))[1]
                - operation.span(number, 0, (start + 1, start + 2))[0]
                for number in range(len(operation.inputs))
            )
            if shared > 1:  # what several outputs have in common would be computed again
                return -(-size // self.step) * self.step
        return -(-max(LEAST_AT_ONCE, threads) // self.step) * self.step

    def scratch_for(self, planes: int, threads: int) -> int:
        """Bytes that it takes besides its inputs and outputs, for so many output planes."""
        shared = self.operation.shared_bytes(self.real, planes, threads)
        return threads * self.operation.scratch_bytes(self.real) + shared

    def runs(self, number: int, axis: int, outputs: Runs) -> Runs:
        return merge((self.operation.span(number, axis, span) for span in outputs), GAP)

    def planes(self, number: int, start: int, stop: int) -> tuple[int, int]:
        return self.operation.span(number, 0, (start, stop))


@dataclass
class StreamPlan:
    """The schedule by which voxels move from a reader through the last convolution to a writer.

    parts : list            (n, input channels) of each part, in the order of streaming
    slab_depth : int        output planes computed at once, a multiple of the plan's `depth_step`
    is_filled : bool        the convolution would only copy what its reader computes, which
                            therefore fills the writer's blocks: see `Graph.written`
    """

    convolution: Convolution
    parts: list[tuple[int, slice]]
    slab_depth: int
    is_filled: bool = False


@dataclass
class PatchBody:
    """What runs in each patch: a graph of its own, of a volume of the patch's size.

    graph : Graph
    plan : StreamPlan           of a patch
    source, result : VolumeHeader   of a patch, and of what is made of it
    spooled, spooled_inputs : see `flow.reader_of_last`
    on_disk : bool              planes of the volume wait for their patches in temporary files
    """

    graph: Graph
    plan: StreamPlan
    source: VolumeHeader
    result: VolumeHeader
    spooled: frozenset[int]
    spooled_inputs: tuple[int, ...]
    on_disk: bool = False


@dataclass(frozen=True, eq=False)
class PatchedNode(GraphNode):
    """Patches of a volume, each of which a graph computes, in a graph. They are blended."""

    layout: PatchLayout
    body: PatchBody

    @property
    def size(self) -> Triple:
        return self.layout.size

    @property
    def channels(self) -> int:
        return self.body.result.shape[4]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.body.result.dtype

    def at_once(self, start: int, threads: int) -> int:
        return self.size[0]  # it divides sums that are there

    def runs(self, number: int, axis: int, outputs: Runs) -> Runs:
        return merge((self.layout.needed(axis, span) for span in outputs), GAP)

    def planes(self, number: int, start: int, stop: int) -> tuple[int, int]:
        return self.layout.needed(0, (start, stop))


@dataclass(frozen=True, eq=False)
class Graph:
    """The nodes of a job. Its last node is a convolution.

    >>> Graph(()).convolutions
    []
    """

    nodes: tuple[GraphNode, ...]

    @classmethod
    def chain(cls, convolutions: Sequence[Convolution]) -> Graph:
        """The graph in which each convolution takes the output of the one before."""
        return cls(
            tuple(ConvolutionNode((position - 1,), c) for position, c in enumerate(convolutions))
        )

    @cached_property
    def convolutions(self) -> list[Convolution]:
        """All convolutions, in order."""
        return [node.convolution for node in self.nodes if isinstance(node, ConvolutionNode)]

    @cached_property
    def operations(self) -> list[Operation]:
        """All other operations, in order."""
        return [node.operation for node in self.nodes if isinstance(node, OperationNode)]

    @cached_property
    def bodies(self) -> list[PatchBody]:
        """What runs in patches."""
        return [node.body for node in self.nodes if isinstance(node, PatchedNode)]

    @cached_property
    def all_convolutions(self) -> list[Convolution]:
        """All convolutions, those that run in patches first."""
        inner = [one for body in self.bodies for one in body.graph.all_convolutions]
        return [*inner, *self.convolutions]

    @cached_property
    def all_operations(self) -> list[Operation]:
        """All other operations, those that run in patches first."""
        inner = [one for body in self.bodies for one in body.graph.all_operations]
        return [*inner, *self.operations]

    @cached_property
    def roundings(self) -> list[Rounding]:
        """What voxels lose on their way into each node, and into those that run in patches."""
        inner = [one for body in self.bodies for one in body.graph.roundings]
        return [*inner, *(node.rounding for node in self.nodes)]

    @property
    def last(self) -> Convolution:
        """The convolution whose output is written."""
        return self.convolutions[-1]

    def written(self, out: np.dtype[Any]) -> OperationNode | None:
        """The operation that computes straight into what is written, if one does.

        out : dtype     of what is written
        The last convolution has nothing to do then but to copy its output.
        """
        last = self.nodes[-1]
        if not (isinstance(last, ConvolutionNode) and isinstance(last.convolution, Copy)):
            return None
        source = last.inputs[0]
        node = self.nodes[source] if source != VOLUME else None
        if not isinstance(node, OperationNode) or node.operation.needs_whole:
            return None
        alone = len(self.consumers[source]) == 1
        return node if alone and node.real == out and last.convolution.takes_all else None

    @cached_property
    def consumers(self) -> dict[int, list[tuple[int, int]]]:
        """For every node and `VOLUME`, the (node, number of its input) that take its output."""
        found: dict[int, list[tuple[int, int]]] = {n: [] for n in range(-1, len(self.nodes))}
        for position, node in enumerate(self.nodes):
            for number, source in enumerate(node.inputs):
                found[source].append((position, number))
        return found

    @property
    def needs_whole(self) -> bool:
        """Whether a node needs its whole input at once."""
        return any(operation.needs_whole for operation in self.operations)

    def use_threads(self, threads: int) -> None:
        """Plan all convolutions for another number of threads."""
        for convolution in self.all_convolutions:
            convolution.use_threads(threads)

    @property
    def most_together(self) -> int:
        """The most planes that an operation computes at once."""
        return max((operation.step for operation in self.operations), default=1)

    def compute_together(self, planes: int | None) -> None:
        """Let operations compute so many planes at once at most; None: as many as they wish."""
        for operation in self.operations:
            operation.most_together = planes

    def boxes(self, in_size: Triple) -> BoxGraph:
        """The graph, as far as a partition into boxes depends on it.

        in_size : (D, H, W)     of the volume
        """
        return BoxGraph(
            tuple(
                BoxNode(node.inputs, node.size, node.alignment, node.runs) for node in self.nodes
            ),
            in_size,
        )
