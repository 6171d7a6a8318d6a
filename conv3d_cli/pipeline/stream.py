"""Stream slabs from a reader through one convolution or a stack of them to a writer.

`stream` overlaps three steps: a reader thread fetches the next slab while the team computes this
one and a writer thread stores the previous ones. A stack of layers is a chain of readers: a
`LayerReader` computes the requested planes from the previous layer's reader, so each layer keeps
only its halo in memory. Arrays take the same way, through a reader and a writer of arrays.
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
from conv3d_cli.system.isolated import end_all

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.pipeline.outputs import OutputRole

WRITES_BEHIND = 2  # computed slabs that are being written or wait for it


class LayerReader(VolumeReader):
    """A convolution's output as a volume to read: planes are computed on request, forward only.

    reader : VolumeReader       the convolution's input; the caller closes it
    """

    sequential = True

    def __init__(self, reader: VolumeReader, convolution: Convolution, team: Team) -> None:
        self.reader, self.convolution, self.path = reader, convolution, reader.path
        self.team = team
        source, problem = reader.header, convolution.problem
        # All channels of a plane are computed together, so they are stored together as well.
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
        self._surplus = np.empty((0, *self.header.shape[2:]), self.header.dtype)
        self._surplus_start = 0  # planes computed beyond the last request, and their first one

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if self._source is None or self._source.n != n:
            all_channels = slice(0, self.reader.header.shape[4])
            self._source = SlabSource(self.reader, n, all_channels, self.convolution.problem)
            self._surplus, self._surplus_start = self._surplus[:0], 0
        planes = self._surplus[max(depth.start - self._surplus_start, 0) :]
        count = depth.stop - depth.start
        if len(planes) < count:
            # whole steps of the plan, so that any requests group planes in the same way
            computed_to = self._surplus_start + len(self._surplus)
            first, computed = self._compute(max(depth.start, computed_to), depth.stop)
            if len(planes):
                planes = np.concatenate([planes, computed])
            else:
                planes = computed[depth.start - first :]
        self._surplus, self._surplus_start = planes[count:].copy(), depth.stop
        return planes[:count, ..., channels]

    def _compute(self, start: int, stop: int) -> tuple[int, Array]:
        """Compute the whole steps that contain planes start to stop - 1.

        Returns the first plane computed, and the planes (d, H, W, C).
        """
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


def load_loops(
    convolutions: Sequence[Convolution], source: VolumeHeader, out: np.dtype[Any]
) -> None:
    """Load the functions that the layers of a job call, or compile all that are missing at once.

    source : VolumeHeader   of the first layer's input
    out : dtype             of the last layer's output
    """
    from conv3d_cli.engine.machine_code import load

    dtype = np.dtype(np.uint8) if source.dtype == bool else source.dtype.newbyteorder("=")
    codes: list[MachineCode] = []
    scale = source.scale
    for convolution in convolutions:
        real = convolution.plan.dtype
        stored = out if convolution is convolutions[-1] else real
        codes += convolution.loops_to_load(dtype, stored.newbyteorder("="), scale)
        dtype, scale = real, (1.0, 0.0)
    load(codes)


@dataclass
class StreamPlan:
    """The schedule by which voxels move from a reader through the last convolution to a writer.

    parts : list            (n, input channels) of each part, in the order of streaming
    slab_depth : int        output planes computed at once, a multiple of the plan's `depth_step`
    """

    convolution: Convolution
    parts: list[tuple[int, slice]]
    slab_depth: int


@dataclass
class StageTimes:
    """Seconds spent in each step (they overlap), and the number of clipped values."""

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
    in_turn: bool = False,
) -> StageTimes:
    """Move every slab from reader to writer through the engine: one read ahead, two writes behind.

    progress : callable or None     called with (values finished, values in all), from any thread
    beside : sequence               role and writer of each additional volume
    in_turn : bool                  read, compute and write in the calling thread, one after another
    Returns the times. Raises: whatever reader, convolution or writer raise.
    """
    convolution = stream_plan.convolution
    depth, size = stream_plan.slab_depth, convolution.problem.out_size[0]
    assert depth % convolution.plan.depth_step == 0 or depth >= size, (
        depth,
        convolution.plan.depth_step,
    )
    times = StageTimes()
    advance = progress_counter(
        progress, len(stream_plan.parts) * math.prod(convolution.problem.out_shape)
    )
    # Sources of the parts being streamed only: each buffers planes, and a series has many parts.
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
            for (_, other), array in zip(beside, values, strict=True):
                other.write(
                    n, start, stored.start, np.broadcast_to(array.astype(np.float32), block.shape)
                )

        return write

    if in_turn:
        for step in range(len(steps)):
            compute(step, read(step))()
    else:
        overlap(len(steps), read, compute, times, behind=WRITES_BEHIND)
    return times


def progress_counter(
    progress: Callable[[int, int], None] | None, total: int
) -> Callable[[int], None]:
    """A function that adds up finished values, from any thread, and reports the sum.

    progress : callable or None     called with (values finished, total)
    total : int                     values in all

    >>> advance = progress_counter(lambda done, total: print(done, "of", total), 8)
    >>> advance(2)
    2 of 8
    >>> advance(4)
    6 of 8
    """
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
    """Read one step ahead of the computation, and write behind it.

    read : callable         (step) -> input; called in one background thread, in order
    compute : callable      (step, input) -> a function that writes the result, called in another
                            background thread; `compute` itself runs in the calling thread
    times : StageTimes      the seconds of reads and writes are added
    behind : int            unfinished writes at most, besides the step being computed
    """

    def timed_read(step: int) -> Any:
        started = time.perf_counter()
        data = read(step)
        times.read += time.perf_counter() - started
        return data

    def timed_write(write: Callable[[], None]) -> None:
        started = time.perf_counter()
        write()
        times.write += time.perf_counter() - started

    with ExitStack() as stack:
        reading = stack.enter_context(_one_thread("conv3d-read"))
        writing = stack.enter_context(_one_thread("conv3d-write"))
        writes: deque[Future[None]] = deque()
        ahead = reading.submit(timed_read, 0) if steps else None
        for step in range(steps):
            assert ahead is not None
            data = ahead.result()
            ahead = reading.submit(timed_read, step + 1) if step + 1 < steps else None
            write = compute(step, data)
            while len(writes) >= behind:
                writes.popleft().result()
            writes.append(writing.submit(timed_write, write))
        for future in writes:
            future.result()


@contextmanager
def _one_thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """A background thread. Leaving the context waits for its current task and drops the others."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield pool
    except Exception:
        raise
    except BaseException:  # an interrupt: the task may wait for a library that does not finish
        end_all()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
