"""Streaming: slabs from a reader through one convolution or several to a writer.

`stream` overlaps three things: a reader thread fetches the next slab while the team computes this one and a writer thread
stores the last. A stack of layers is a chain of readers: a `LayerReader` computes the planes it is asked for from the
reader before it, so each layer holds only its halo. Arrays go the same way, by a reader and a writer over arrays.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import SlabInput, SlabSource
from conv3d_cli.model.grid import grid_after
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader, VolumeWriter

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.pipeline.outputs import OutputRole

WRITES_BEHIND = 2  # slabs


class LayerReader(VolumeReader):
    """The output of a convolution as a volume that is read: planes are computed when they are asked for, forward only.

    reader : VolumeReader       what the convolution reads; it stays the caller's to close
    """

    sequential = True

    def __init__(self, reader: VolumeReader, convolution: Convolution, team: Team) -> None:
        self.reader, self.convolution, self.path = reader, convolution, reader.path
        self.team = team
        source, problem = reader.header, convolution.problem
        # Channels lie within a plane here, whatever the file's order: they are computed together.
        letters = source.axes.batch_letters + "zyxc"
        sizes = {**dict(zip("zyx", problem.out_size, strict=True)), "c": convolution.channels_out}
        self.header = VolumeHeader(
            source.axes.renamed(letters, sizes),
            convolution.plan.dtype,
            grid_after(source.grid, problem),
            format=source.format,
            metadata=source.metadata,
            transform=source.transform.then(problem.voxel_transform),
        )
        self._source: SlabSource | None = None
        # computed beyond what was asked for
        self._spare = np.empty((0, *self.header.shape[2:]), self.header.dtype)
        self._spare_from = 0

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if self._source is None or self._source.n != n:
            every = slice(0, self.reader.header.shape[4])
            self._source = SlabSource(self.reader, n, every, self.convolution.problem)
            self._spare, self._spare_from = self._spare[:0], 0
        kept = self._spare[max(depth.start - self._spare_from, 0) :]
        if len(kept) < depth.stop - depth.start:
            # whole steps of the plan, so that the same planes are computed together whatever is asked for
            first, computed = self._compute(
                max(depth.start, self._spare_from + len(self._spare)), depth.stop
            )
            kept = (
                np.concatenate([kept, computed]) if len(kept) else computed[depth.start - first :]
            )
        planes = depth.stop - depth.start
        self._spare, self._spare_from = kept[planes:].copy(), depth.stop
        return kept[:planes, ..., channels]

    def _compute(self, start: int, stop: int) -> tuple[int, Array]:
        """The whole steps that planes start..stop-1 lie in: (first plane, planes)."""
        assert self._source is not None
        step, (size, height, width, count) = self.convolution.plan.depth_step, self.header.shape[1:]
        start, stop = start - start % step, min(-(-stop // step) * step, size)
        slab = self._source.read(start, stop)
        out = np.empty((stop - start, height, width, count), self.header.dtype)
        outputs = slice(0, self.convolution.problem.filters)
        self.convolution.convolve(slab, out, self.team, self.reader.header.scale, outputs)
        self._source.release(stop)
        return start, out

    def finish(self) -> None:
        self.reader.finish()


@dataclass
class StreamPlan:
    """How voxels move from a reader through the last convolution to a writer.

    parts : list            (n, input channels) in the order they are streamed
    slab_depth : int        output planes computed at once, a multiple of the plan's `depth_step`
    """

    convolution: Convolution
    parts: list[tuple[int, slice]]
    slab_depth: int


@dataclass
class StageTimes:
    """Seconds in each stage (they overlap) and voxels clipped."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    clipped: int = 0


def stream(
    stream_plan: StreamPlan,
    reader: VolumeReader,
    writer: VolumeWriter,
    team: Team,
    progress: Callable[[int, int], None] | None = None,
    beside: Sequence[tuple[OutputRole, VolumeWriter]] = (),
) -> StageTimes:
    """Move every slab from reader to writer through the engine: one read ahead, two writes behind.

    progress : callable     told (voxels finished, voxels in all), from any thread
    beside : roles and their writers      that take other values of each slab, of the output's shape
    """
    convolution = stream_plan.convolution
    depth, size = stream_plan.slab_depth, convolution.problem.out_size[0]
    assert depth % convolution.plan.depth_step == 0 or depth >= size, (
        depth,
        convolution.plan.depth_step,
    )
    times = StageTimes()
    advance = counted(progress, len(stream_plan.parts) * math.prod(convolution.problem.out_shape))
    # Made when a part is begun and dropped when it is done: each holds planes, and a series has many parts.
    sources: dict[int, SlabSource] = {}
    steps = [
        (part, start, min(start + depth, size))
        for part in range(len(stream_plan.parts))
        for start in range(0, size, depth)
    ]

    def read(step: int) -> SlabInput:
        part, start, stop = steps[step]
        if part not in sources:
            sources[part] = SlabSource(reader, *stream_plan.parts[part], convolution.problem)
        return convolution.with_mask(sources[part].read(start, stop), stop)

    def compute(step: int, slab: SlabInput) -> Callable[[], None]:
        part, start, stop = steps[step]
        n, channels = stream_plan.parts[part]
        stored = convolution.stored(channels, writer.header.shape[4])
        block = writer.block(n, slice(start, stop), stored)
        started = time.perf_counter()
        scale, outputs = reader.header.scale, convolution.outputs(channels)
        times.clipped += convolution.convolve(slab, block, team, scale, outputs, advance)
        times.compute += time.perf_counter() - started
        sources[part].release(stop)
        if stop == size:
            del sources[part]
        values = [role.values(convolution) for role, _ in beside]

        def write() -> None:
            writer.write(n, start, stored.start, block)
            for (_, other), part in zip(beside, values, strict=True):
                other.write(
                    n, start, stored.start, np.broadcast_to(part.astype(np.float32), block.shape)
                )

        return write

    overlap(len(steps), read, compute, times, behind=WRITES_BEHIND)
    return times


def counted(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    """What is to be told of voxels finished, from any thread; it sums them up for `progress`."""
    lock, done = threading.Lock(), 0

    def advance(voxels: int) -> None:
        nonlocal done
        if progress is not None:
            with lock:
                done += voxels
            progress(done, total)

    return advance


def overlap(
    steps: int,
    read: Callable[[int], Any],
    compute: Callable[[int, Any], Callable[[], None]],
    times: StageTimes,
    behind: int,
) -> None:
    """Run steps so that one is read while the one before is computed and those before it are written.

    read : callable         (step) -> what `compute` takes; in a thread of its own, in order
    compute : callable      (step, read) -> the write to do; in this thread
    behind : int            writes, being done or waiting, beside the step that is computed
    """

    def timed_read(step: int) -> Any:
        started = time.perf_counter()
        found = read(step)
        times.read += time.perf_counter() - started
        return found

    def timed_write(write: Callable[[], None]) -> None:
        started = time.perf_counter()
        write()
        times.write += time.perf_counter() - started

    with ExitStack() as stack:
        reading = stack.enter_context(_one_thread("conv3d-read"))
        writing = stack.enter_context(_one_thread("conv3d-write"))
        written: deque[Future[None]] = deque()
        ahead = reading.submit(timed_read, 0) if steps else None
        for step in range(steps):
            assert ahead is not None
            found = ahead.result()
            ahead = reading.submit(timed_read, step + 1) if step + 1 < steps else None
            write = compute(step, found)
            while len(written) >= behind:
                written.popleft().result()
            written.append(writing.submit(timed_write, write))
        for future in written:
            future.result()


@contextmanager
def _one_thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """A background thread for one stage. Leaving waits for what it does just now and drops the rest."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
