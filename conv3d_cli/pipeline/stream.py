"""Stream slabs from a reader through a convolution to a writer.

`stream` overlaps three steps: a reader thread fetches the next slab while the team computes this
one and a writer thread stores the previous ones. The reader may be that of a file, or one that
computes all other nodes of a network (`flow.py`). Arrays take the same way, through a reader and a
writer of arrays.
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

from conv3d_cli.convolution.slabs import SlabInput, SlabSource
from conv3d_cli.model.volume import VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.pipeline.graph import (
    VOLUME,
    ConvolutionNode,
    Graph,
    OperationNode,
    StreamPlan,
)
from conv3d_cli.system.isolated import end_all

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.pipeline.outputs import OutputRole

WRITES_BEHIND = 2  # computed slabs that are being written or wait for it
FILLED_BEHIND = 1  # the same, of slabs that are as deep as an operation computes at once


def load_loops(graph: Graph, source: VolumeHeader, out: np.dtype[Any]) -> None:
    """Load the functions that the nodes of a job call, or compile all that are missing at once.

    source : VolumeHeader   of the volume
    out : dtype             of the last node's output
    """
    from conv3d_cli.engine.machine_code import load

    load(_loops_of(graph, source, out))


def _loops_of(graph: Graph, source: VolumeHeader, out: np.dtype[Any]) -> list[MachineCode]:
    stored = np.dtype(np.uint8) if source.dtype == bool else source.dtype.newbyteorder("=")
    codes: list[MachineCode] = []
    for body in graph.bodies:
        codes += _loops_of(body.graph, body.source, body.result.dtype)
    for position, node in enumerate(graph.nodes):
        if isinstance(node, ConvolutionNode):
            of_volume = node.inputs[0] == VOLUME
            result = out if position == len(graph.nodes) - 1 else node.dtype
            codes += node.convolution.loops_to_load(
                stored if of_volume else graph.nodes[node.inputs[0]].dtype,
                result.newbyteorder("="),
                source.scale if of_volume else (1.0, 0.0),
            )
        elif isinstance(node, OperationNode):
            codes += node.operation.loops(node.real)
    return codes


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
    beside : sequence               role and writer of each additional volume that has values
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

    def read(step: int) -> SlabInput | None:
        if stream_plan.is_filled:
            return None
        part, start, stop = steps[step]
        if part not in sources:
            sources[part] = SlabSource(reader, *stream_plan.parts[part], convolution.problem)
        return convolution.with_mask(sources[part].read(start, stop), stop)

    def compute(step: int, slab: SlabInput | None) -> Callable[[], None]:
        part, start, stop = steps[step]
        n, channels = stream_plan.parts[part]
        stored = convolution.stored(channels, writer.header.shape[4])
        block = writer.block(n, slice(start, stop), stored)
        started = time.perf_counter()
        if slab is None:
            reader.read_at_once(n, slice(start, stop), block)
            advance(block.size)
        else:
            scale, outputs = reader.header.scale, convolution.outputs(channels)
            times.clipped += convolution.convolve(slab, block, team, scale, outputs, advance)
            sources[part].release(stop)
            if stop == size:
                del sources[part]
        times.compute += time.perf_counter() - started
        values = [role.values(convolution) for role, _ in beside if role.values is not None]

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
        behind = FILLED_BEHIND if stream_plan.is_filled else WRITES_BEHIND
        overlap(len(steps), read, compute, times, behind)
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
