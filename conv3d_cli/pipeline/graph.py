"""The graph of a job: its convolutions and other operations, in the order of computation.

A node takes the outputs of nodes before it, or the volume (-1). The last node is a convolution,
whose output is written. A chain of layers is the simplest graph: each node takes the one before it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import first_needed, last_needed
from conv3d_cli.model.box import Runs, merge
from conv3d_cli.model.patches import PatchLayout
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.network.operations.base import Operation
from conv3d_cli.pipeline.boxes.partition import GAP, BoxGraph, BoxNode, input_runs

VOLUME = -1  # the job's volume, as an input of a node


@dataclass(frozen=True, eq=False)
class GraphNode(abc.ABC):
    """A node of a graph.

    inputs : tuple of int   positions of nodes before it, or `VOLUME`
    """

    inputs: tuple[int, ...]

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
        return self.operation.planes_together

    @property
    def scratch_bytes(self) -> int:
        """Bytes that each thread takes."""
        return self.operation.scratch_bytes(self.real)

    def runs(self, number: int, axis: int, outputs: Runs) -> Runs:
        return merge((self.operation.span(number, axis, span) for span in outputs), GAP)

    def planes(self, number: int, start: int, stop: int) -> tuple[int, int]:
        return self.operation.span(number, 0, (start, stop))


@dataclass
class PatchBody:
    """What runs in each patch: a graph of its own, of a volume of the patch's size.

    graph : Graph
    parts : list                see `StreamPlan`
    source, result : VolumeHeader   of a patch, and of what is made of it
    spooled, spooled_inputs : see `flow.reader_of_last`
    slab_depth : int            output planes of a patch that are computed at once
    on_disk : bool              planes of the volume wait for their patches in temporary files
    """

    graph: Graph
    parts: list[tuple[int, slice]]
    source: VolumeHeader
    result: VolumeHeader
    spooled: frozenset[int]
    spooled_inputs: tuple[int, ...]
    slab_depth: int = 1
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

    def runs(self, number: int, axis: int, outputs: Runs) -> Runs:
        raise NotImplementedError("patches are not computed in boxes")

    def planes(self, number: int, start: int, stop: int) -> tuple[int, int]:
        starts = self.layout.covering(0, (start, stop))
        return self.layout.planes_of(starts[0])[0], self.layout.planes_of(starts[-1])[1]


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

    @property
    def last(self) -> Convolution:
        """The convolution whose output is written."""
        return self.convolutions[-1]

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
