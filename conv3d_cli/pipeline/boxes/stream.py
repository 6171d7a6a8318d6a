"""A job done box by box on this machine, where whole planes do not fit: the size of its boxes, and the loop over them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from conv3d_cli.convolution.prepared import SLAB_COPIES, Convolution
from conv3d_cli.engine import Team
from conv3d_cli.model.volume import BoxAccess, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.pipeline.boxes.compute import BoxInput, BoxSource, compute_box, layer_chain
from conv3d_cli.pipeline.boxes.partition import (
    LayerChain,
    Partition,
    Redundancy,
    choose_partition,
    redundancy,
    work_by_axis,
)
from conv3d_cli.pipeline.memory import PROCESS, SLABS_READ, MemoryUse
from conv3d_cli.pipeline.stream import StageTimes, progress_counter, overlap
from conv3d_cli.system.machine import give_back_at_once

BOXES_BEHIND = 1  # boxes that are written, or wait for it, beside the one that is computed
# Larger arrays go back to the system when they are dropped. Else they stay in pools of several threads: 1.15 GB from Zarr to
# .npy in boxes of 29 MB under 500 MB took 520 MB, and takes 343 MB, in the same time (2026-11).
KEPT_BYTES = 1 << 20


@dataclass(frozen=True)
class BoxJob:
    """A job that may be done box by box.

    channels : that are written of a part
    weights : see `memory.weight_memory`
    """

    convolutions: Sequence[Convolution]
    source: VolumeHeader
    output: VolumeHeader
    reading: BoxAccess
    writing: BoxAccess
    channels: int
    weights: Mapping[str, int]

    @cached_property
    def chain(self) -> LayerChain:
        """What a partition depends on of the convolutions."""
        return layer_chain(self.convolutions)

    @cached_property
    def chunk(self) -> tuple[int, int, int]:
        """The unit of blocks: a chunk of the target, or a tile of the last convolution where the target has no chunks."""
        plan = self.convolutions[-1].plan
        tile = (plan.depth_step, *plan.prepared.layout.tile[1:])
        found = [
            min(t if n == 1 else n, size)
            for n, t, size in zip(self.writing.unit, tile, plan.problem.out_size, strict=True)
        ]
        if any(
            a.kind == "axis" for c in self.convolutions for a in c.activations if c.channels_first
        ):
            found[2] = plan.problem.out_size[2]  # which such an activation runs along
        return found[0], found[1], found[2]

    def memory(self, partition: Partition) -> MemoryUse:
        """The peak of the process."""
        axes = work_by_axis(self.chain, partition, self.reading.unit)
        first, last = self.convolutions[0], self.convolutions[-1]
        held = (
            math.prod(one.held for one in axes)
            * first.problem.in_channels
            * self.source.dtype.itemsize
        )
        box = math.prod(partition.block)
        most = made = scratch = 0  # what a convolution holds of its own and the one before's
        for position, convolution in enumerate(self.convolutions):
            size = axes[0].made[position], axes[1].made[position], axes[2].made[position]
            scratch += convolution.plan.scratch_for(size)
            values = convolution.problem.filters * convolution.plan.dtype.itemsize
            sums = math.prod(size) * values
            copies = 0 if convolution is last else sums
            if convolution.on_slabs:
                copies += SLAB_COPIES * sums
            elif convolution is last and not self._fits(partition):
                copies += sums + box * values  # what is computed beside the box, then the box alone
            most, made = max(most, made + copies), sums
        return PROCESS.plus(
            **self.weights,
            scratch=scratch,
            input=SLABS_READ * held,
            layers=most,
            output=(1 + BOXES_BEHIND) * box * self.channels * self.output.dtype.itemsize,
            reader=self.reading.held,
            writer=self.writing.held,
        )

    def _fits(self, partition: Partition) -> bool:
        """Whether all boxes are aligned as the last convolution asks, so that nothing beside them is computed."""
        alignment = self.convolutions[-1].plan.block_alignment
        return all(
            n % unit == 0 or n == size
            for n, unit, size in zip(partition.block, alignment, partition.size, strict=True)
        )

    def smallest_partition(self) -> Partition:
        """The partition into the smallest boxes."""
        return Partition(self.convolutions[-1].problem.out_size, self.chunk, self.chunk)

    def choose_partition(self, limit: int) -> Partition | None:
        """The partition under a limit of bytes that decodes and computes least; None if no box is small enough."""
        return choose_partition(
            self.chain,
            self.reading.unit,
            self.chunk,
            lambda partition: self.memory(partition).total <= limit,
            (None, 0, 1, 2),
        )

    def redundancy(self, partition: Partition) -> Redundancy:
        """How often boxes decode the input and compute the output."""
        return redundancy(self.chain, partition, self.reading.unit)


def stream_boxes(
    convolutions: Sequence[Convolution],
    partition: Partition,
    parts: Sequence[tuple[int, slice]],
    reader: VolumeReader,
    writer: VolumeWriter,
    team: Team,
    progress: Callable[[int, int], None] | None = None,
) -> StageTimes:
    """Move every box from reader to writer through the convolutions: one is read ahead, one written behind.

    parts : (n, input channels) of the last convolution, in the order they are streamed
    progress : callable     gets (voxels finished, voxels in all), from any thread
    """
    give_back_at_once(KEPT_BYTES)
    first, last = convolutions[0], convolutions[-1]
    access = reader.box_access()
    assert access is not None, reader.path
    chain, boxes = layer_chain(convolutions), list(partition.boxes())
    steps = [(part, number) for part in range(len(parts)) for number in range(len(boxes))]
    times = StageTimes()
    advance = progress_counter(progress, len(parts) * math.prod(last.problem.out_shape))
    sources: dict[int, BoxSource] = {}

    def read(step: int) -> BoxInput:
        part, number = steps[step]
        n, channels = parts[part]
        if part not in sources:
            sources.clear()
            given = channels if len(convolutions) == 1 else slice(0, first.problem.in_channels)
            sources[part] = BoxSource(reader, n, given, chain, partition, access.unit)
        return sources[part].read(
            boxes[number], boxes[number + 1] if number + 1 < len(boxes) else None
        )

    def compute(step: int, given: BoxInput) -> Callable[[], None]:
        part, number = steps[step]
        (n, channels), box = parts[part], boxes[number]
        stored = last.stored(channels, writer.header.shape[4])
        out = writer.header.axes.empty((*box.size, stored.stop - stored.start), writer.header.dtype)
        started = time.perf_counter()
        times.clipped += compute_box(
            convolutions, given, reader.header.scale, channels, box, out, team, advance
        )
        times.compute += time.perf_counter() - started
        return lambda: writer.write_box(n, box.start, stored.start, out)

    overlap(len(steps), read, compute, times, behind=BOXES_BEHIND)
    return times
