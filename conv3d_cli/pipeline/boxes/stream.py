"""Run a job box by box on this machine if whole planes do not fit into memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from conv3d_cli.convolution.prepared import SLAB_COPIES, Convolution
from conv3d_cli.engine import Team
from conv3d_cli.model.volume import BoxAccess, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.pipeline.boxes.compute import BoxInput, BoxSource, compute_box
from conv3d_cli.pipeline.boxes.partition import (
    BoxGraph,
    Partition,
    Redundancy,
    choose_partition,
    redundancy,
    work_by_axis,
)
from conv3d_cli.pipeline.graph import ConvolutionNode, Graph, OperationNode
from conv3d_cli.pipeline.memory import PROCESS, SLABS_READ, MemoryUse
from conv3d_cli.pipeline.stream import StageTimes, overlap, progress_counter
from conv3d_cli.system.machine import give_back_at_once

BOXES_BEHIND = 1  # computed boxes that are being written or wait for it
# Larger arrays return to the system as soon as they are freed. In the allocator's pools of several
# threads, 1.15 GB from Zarr to .npy in boxes of 29 MB under 500 MB took 520 MB; this way it takes
# 343 MB in the same time (2026-11).
POOLED_BYTES = 1 << 20


@dataclass(frozen=True)
class BoxJob:
    """A job that can be computed box by box.

    graph : Graph                       its nodes
    source, output : VolumeHeader       of input and output
    reading, writing : BoxAccess        of the input's reader and the output's writer
    channels : int                      output channels written for one part of the volume
    weights : dict                      see `memory.weight_memory`
    """

    graph: Graph
    source: VolumeHeader
    output: VolumeHeader
    reading: BoxAccess
    writing: BoxAccess
    channels: int
    weights: Mapping[str, int]

    @property
    def convolutions(self) -> Sequence[Convolution]:
        """The convolutions, in order."""
        return self.graph.convolutions

    @cached_property
    def nodes(self) -> BoxGraph:
        """The graph, as far as a partition depends on it."""
        return self.graph.boxes(self.source.axes.canonical_shape[1:4])

    @cached_property
    def chunk(self) -> tuple[int, int, int]:
        """The unit of blocks (D, H, W): a chunk of the output, or a tile of the last convolution.

        The tile is used along axes on which the output has no chunks.
        """
        plan = self.convolutions[-1].plan
        tile = plan.tile._replace(depth=plan.depth_step)
        depth, height, width = (
            min(t if n == 1 else n, size)
            for n, t, size in zip(self.writing.unit, tile, plan.problem.out_size, strict=True)
        )
        if any(
            a.kind == "axis" for c in self.convolutions for a in c.activations if c.channels_first
        ):
            width = plan.problem.out_size[2]  # such an activation runs along the width
        return depth, height, width

    def memory(self, partition: Partition) -> MemoryUse:
        """The peak of the process."""
        axes = work_by_axis(self.nodes, partition, self.reading.unit)
        in_voxels = math.prod(axis.most_buffered for axis in axes)
        in_voxel_bytes = self.source.shape[4] * self.source.dtype.itemsize
        if len(self.graph.nodes) == 1:
            in_voxel_bytes = self.graph.last.problem.in_channels * self.source.dtype.itemsize
        box_voxels = math.prod(partition.block)
        scratch = 0
        layers = 0  # the most that arrays of nodes take at a time
        held: dict[
            int, int
        ] = {}  # node -> bytes of its array, until the last that takes it is done
        final = {source: max(taken)[0] for source, taken in self.graph.consumers.items() if taken}
        for position, node in enumerate(self.graph.nodes):
            depth, height, width = (axis.most_computed[position] for axis in axes)
            result = depth * height * width * node.channels * node.dtype.itemsize
            more = 0
            if isinstance(node, ConvolutionNode):
                convolution = node.convolution
                scratch += convolution.plan.scratch_for((depth, height, width))
                voxel_bytes = convolution.problem.filters * convolution.plan.dtype.itemsize
                sums = depth * height * width * voxel_bytes
                is_last = position == len(self.graph.nodes) - 1
                result = 0 if is_last else max(sums, result)
                if convolution.on_slabs:
                    more = SLAB_COPIES * sums
                elif is_last and not self._is_aligned(partition):
                    # an aligned larger box, and the box
                    more = sums + box_voxels * voxel_bytes
            elif isinstance(node, OperationNode):
                scratch += node.scratch_for(depth, self.convolutions[-1].plan.threads)
            layers = max(layers, sum(held.values()) + result + more)
            held[position] = result
            held = {
                source: count for source, count in held.items() if final.get(source, -1) > position
            }
        return PROCESS.plus(
            **self.weights,
            scratch=scratch,
            input=SLABS_READ * in_voxels * in_voxel_bytes,
            layers=layers,
            output=(1 + BOXES_BEHIND) * box_voxels * self.channels * self.output.dtype.itemsize,
            reader=self.reading.buffer_bytes,
            writer=self.writing.buffer_bytes,
        )

    def _is_aligned(self, partition: Partition) -> bool:
        """Whether the last convolution computes exactly the boxes, and no larger ones."""
        alignment = self.convolutions[-1].plan.block_alignment
        return all(
            n % unit == 0 or n == size
            for n, unit, size in zip(partition.block, alignment, partition.size, strict=True)
        )

    def smallest_partition(self) -> Partition:
        """The partition into boxes of one chunk."""
        return Partition(self.convolutions[-1].problem.out_size, self.chunk, self.chunk)

    def choose_partition(self, limit: int) -> Partition | None:
        """The partition within `limit` bytes that decodes and computes least; None if none fits."""
        return choose_partition(
            self.nodes,
            self.reading.unit,
            self.chunk,
            lambda partition: self.memory(partition).total <= limit,
            (None, 0, 1, 2),
        )

    def redundancy(self, partition: Partition) -> Redundancy:
        """How often boxes decode an input voxel and compute an output voxel on average."""
        return redundancy(self.nodes, partition, self.reading.unit)


def stream_boxes(
    graph: Graph,
    partition: Partition,
    parts: Sequence[tuple[int, slice]],
    reader: VolumeReader,
    writer: VolumeWriter,
    team: Team,
    progress: Callable[[int, int], None] | None = None,
) -> StageTimes:
    """Move every box from reader to writer through the graph: one read ahead, one written.

    reader, writer : with `box_access`
    parts : sequence                (n, input channels of the last convolution) of each part, in
                                    the order of streaming
    progress : callable or None     called with (values finished, values in all), from any thread
    Returns the times. Raises: whatever reader, nodes or writer raise.
    """
    give_back_at_once(POOLED_BYTES)
    last = graph.last
    access = reader.box_access()
    assert access is not None, reader.path
    nodes, boxes = graph.boxes(reader.header.shape[1:4]), list(partition.boxes())
    steps = [(part, number) for part in range(len(parts)) for number in range(len(boxes))]
    times = StageTimes()
    advance = progress_counter(progress, len(parts) * math.prod(last.problem.out_shape))
    sources: dict[int, BoxSource] = {}

    def read(step: int) -> BoxInput:
        part, number = steps[step]
        n, channels = parts[part]
        if part not in sources:
            sources.clear()
            if len(graph.nodes) > 1:
                channels = slice(0, reader.header.shape[4])
            sources[part] = BoxSource(reader, n, channels, nodes, partition, access.unit)
        following = boxes[number + 1] if number + 1 < len(boxes) else None
        return sources[part].read(boxes[number], following)

    def compute(step: int, box_input: BoxInput) -> Callable[[], None]:
        part, number = steps[step]
        (n, channels), box = parts[part], boxes[number]
        stored = last.stored(channels, writer.header.shape[4])
        out = writer.header.axes.empty((*box.size, stored.stop - stored.start), writer.header.dtype)
        started = time.perf_counter()
        times.clipped += compute_box(
            graph, box_input, reader.header.scale, channels, box, out, team, advance
        )
        times.compute += time.perf_counter() - started
        return lambda: writer.write_box(n, box.start, stored.start, out)

    overlap(len(steps), read, compute, times, behind=BOXES_BEHIND)
    return times
