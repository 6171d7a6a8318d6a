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
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError
from conv3d_cli.model.grid import grid_after
from conv3d_cli.model.kernel import require_held
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.slabs import SlabInput, SlabSource

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan, Team
    from conv3d_cli.engine.normalize import Weighing
    from conv3d_cli.engine.plan import Part
    from conv3d_cli.layer.activations import Activation

Penalty = Callable[[Array], float]

WRITES_BEHIND = 2  # slabs


@dataclass
class Convolution:
    """One convolution made ready: the engine's plan, and what happens to its sums.

    plan : Plan                     of one part of a volume: all channels, or one where channels are streamed one by one
    is_layer : bool                 whether a part gives all filters, or (a 3-D kernel, a bank) those of its own channels
    bias : (filters,) or None
    activations : list              in order; those that look at one voxel run in the engine's tiles, from the first that
                                    needs a whole axis on they run on the slab
    channels_first : bool           the last axis of a softmax is then the width, as in Keras
    activity : callable or None     penalty of the output, summed over slabs in `activity_sum`
    per_channel : int               filters of each channel, where it is no layer
    magnitude : bool                the filters of a channel become one number: the root of the sum of their squares, taken after
                                    the bias and before the activations
    """

    plan: Plan
    is_layer: bool
    bias: NDArray[Any] | None = None
    activations: Sequence[Activation] = ()
    channels_first: bool = False
    activity: Penalty | None = None
    activity_sum: float = 0.0
    per_channel: int = 1
    magnitude: bool = False

    takes_boxes: ClassVar[bool] = True  # whether parts of planes may be computed by themselves

    @property
    def coverage(self) -> Array | None:
        """What the last slab's means hold of the kernel's weight, (d, h, w, c or 1); None where no means are taken."""
        return None

    @property
    def bare(self) -> int:
        """How many means so far, under a mask of voxels inside it, held too little of the kernel's weight to be one."""
        return 0

    @property
    def any_mean(self) -> bool:
        """Whether some voxel inside the mask, if there is one, has a mean."""
        return True

    def held_bytes(self, planes: int) -> int:
        """Memory taken beside input, output and the plan's scratch, in slabs of so many input planes."""
        return self._sums_bytes(planes) if self.magnitude else 0

    def _sums_bytes(self, planes: int) -> int:
        problem = self.problem
        made = min(planes // problem.strides[0] + 1, problem.out_size[0])
        return made * math.prod(problem.out_size[1:]) * problem.filters * self.plan.dtype.itemsize

    def with_mask(self, slab: SlabInput, stop: int) -> SlabInput:
        """The input of output planes up to `stop`, with a mask's beside it if there is one; called where slabs are read."""
        return slab

    def __post_init__(self) -> None:
        real = self.plan.dtype
        if self.bias is not None:
            largest = float(max(self.bias, key=abs))
            require_held(largest, real, f"the bias, with {largest:.3g}, is")
            self.bias = self.bias.astype(real)
        for activation in self.activations:
            for key, value in activation.config.items():
                if isinstance(value, int | float):
                    require_held(value, real, f"{key} of activation {activation.name} is")
        if self.magnitude:
            from conv3d_cli.engine.magnitude import VectorRoom  # late: it knows the compiler's loops

            self._vectors = VectorRoom()
        useful = [a for a in self.activations if not a.is_linear]
        split = next((i for i, a in enumerate(useful) if a.kind != "voxel" or self.magnitude), len(useful))
        self._in_tiles, self._on_slabs = useful[:split], useful[split:]

    @property
    def problem(self) -> ConvProblem:
        return self.plan.problem

    def outputs(self, channels: slice) -> slice:
        """The filters that these input channels go through."""
        if self.is_layer:
            return slice(0, self.problem.filters)
        return slice(channels.start * self.per_channel, channels.stop * self.per_channel)

    def stored(self, channels: slice, count: int) -> slice:
        """Where the output of these input channels belongs in a volume of `count` channels."""
        every = self.is_layer or any(activation.halves for activation in self.activations)
        if every:
            return slice(0, count)
        return channels if self.magnitude else self.outputs(channels)

    @property
    def channels_out(self) -> int:
        """Channels of the output. Raises: ShapeError, see `channels_after`."""
        filters = self.problem.filters // (self.per_channel if self.magnitude else 1)
        return channels_after(filters, self.activations, self.channels_first)

    def convolve(
        self,
        slab: SlabInput,
        out: Array,
        team: Team,
        scale: tuple[float, float],
        outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[tuple[int, int, int], tuple[slice, slice, slice]] | None = None,
    ) -> int:
        """Fill out (d, h, w, c) with a slab's result; how many voxels its dtype could not hold.

        around : (sizes, place) or None     what is computed where that is more than `out`, and where `out` lies in it
        """
        return self._plain(slab, out, team, scale, outputs, progress, around)

    def _plain(
        self, slab: SlabInput, out: Array, team: Team, scale: tuple[float, float], outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[tuple[int, int, int], tuple[slice, slice, slice]] | None = None, noted: list[Part] | None = None,
        weighing: Weighing | None = None,
    ) -> int:  # fmt: skip
        """See `convolve`; noted, weighing: see `Plan.convolve_slab`."""
        bias = None if self.bias is None else self.bias[outputs]
        whole = self.on_slabs or around is not None
        size = out.shape[:3] if around is None else around[0]
        sums = out
        if self.magnitude:
            sums = self._vectors.array(size, self.problem.filters, self.plan.dtype)
        elif whole:
            sums = np.empty((*size, self.problem.filters), self.plan.dtype)
        clipped = self.plan.convolve_slab(
            slab.source, sums, slab.planes, team, rows=slab.rows, columns=slab.columns,
            scale=scale, bias=bias, activation=self._activate if self._in_tiles else None, progress=progress,
            noted=noted, weighing=weighing,
        )  # fmt: skip
        if not whole:
            return clipped
        return self._finish(sums if around is None else sums[around[1]], out, team)

    def _finish(self, sums: Array, out: Array, team: Team) -> int:
        """What is left to do with a slab's activated sums; how many voxels the output's dtype could not hold."""
        if self.magnitude:
            from conv3d_cli.engine.magnitude import magnitudes

            sums = magnitudes(sums, self.per_channel, team)
        for activation in self._on_slabs:
            if self.channels_first and activation.kind == "axis":
                sums = np.moveaxis(activation(np.moveaxis(sums, 2, -1)), -1, 2)
            else:
                sums = activation(sums)
        if self.activity is not None:
            self.activity_sum += self.activity(sums)
        return self.plan.store(sums, out)

    @property
    def on_slabs(self) -> bool:
        """Whether something runs on whole slabs after the sums: then they are held in the arithmetic's dtype first."""
        return bool(self._on_slabs) or self.magnitude or self.activity is not None

    def _activate(self, tile: NDArray[Any]) -> None:
        for activation in self._in_tiles:
            activation.in_place(tile)


def channels_after(channels: int, activations: Sequence[Activation], channels_first: bool) -> int:
    """Channels that are left after activations: a glu halves them.

    Raises: ShapeError if there is an odd number to halve.
    """
    for activation in activations:
        if activation.halves:
            if channels_first:
                raise ShapeError(
                    "activation 'glu' halves the last axis, which under channels_first is the width: a volume has no place "
                    "for that; use data_format channels_last"
                )
            if channels % 2:
                raise ShapeError(f"activation 'glu' halves the channels, received an odd number of them: {channels}")
            channels //= 2
    return channels


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
        self._spare = np.empty((0, *self.header.shape[2:]), self.header.dtype)  # computed beyond what was asked for
        self._spare_from = 0

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if self._source is None or self._source.n != n:
            every = slice(0, self.reader.header.shape[4])
            self._source = SlabSource(self.reader, n, every, self.convolution.problem)
            self._spare, self._spare_from = self._spare[:0], 0
        kept = self._spare[max(depth.start - self._spare_from, 0) :]
        if len(kept) < depth.stop - depth.start:
            # whole steps of the plan, so that the same planes are computed together whatever is asked for
            first, computed = self._compute(max(depth.start, self._spare_from + len(self._spare)), depth.stop)
            kept = np.concatenate([kept, computed]) if len(kept) else computed[depth.start - first :]
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
class Passage:
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
    passage: Passage,
    reader: VolumeReader,
    writer: VolumeWriter,
    team: Team,
    progress: Callable[[int, int], None] | None = None,
    coverage: VolumeWriter | None = None,
) -> StageTimes:
    """Move every slab from reader to writer through the engine: one read ahead, two writes behind.

    progress : callable     told (voxels finished, voxels in all), from any thread
    coverage : writer       takes the convolution's coverage; of the output's shape
    """
    convolution = passage.convolution
    depth, size = passage.slab_depth, convolution.problem.out_size[0]
    assert depth % convolution.plan.depth_step == 0 or depth >= size, (depth, convolution.plan.depth_step)
    times = StageTimes()
    advance = counted(progress, len(passage.parts) * math.prod(convolution.problem.out_shape))
    # Made when a part is begun and dropped when it is done: each holds planes, and a series has many parts.
    sources: dict[int, SlabSource] = {}
    steps = [
        (part, start, min(start + depth, size)) for part in range(len(passage.parts)) for start in range(0, size, depth)
    ]

    def read(step: int) -> SlabInput:
        part, start, stop = steps[step]
        if part not in sources:
            sources[part] = SlabSource(reader, *passage.parts[part], convolution.problem)
        return convolution.with_mask(sources[part].read(start, stop), stop)

    def compute(step: int, slab: SlabInput) -> Callable[[], None]:
        part, start, stop = steps[step]
        n, channels = passage.parts[part]
        stored = convolution.stored(channels, writer.header.shape[4])
        block = writer.block(n, slice(start, stop), stored)
        started = time.perf_counter()
        scale, outputs = reader.header.scale, convolution.outputs(channels)
        times.clipped += convolution.convolve(slab, block, team, scale, outputs, advance)
        times.compute += time.perf_counter() - started
        sources[part].release(stop)
        if stop == size:
            del sources[part]
        told = convolution.coverage

        def write() -> None:
            writer.write(n, start, stored.start, block)
            if coverage is not None:
                part = np.ones((), np.float32) if told is None else told.astype(np.float32)
                coverage.write(n, start, stored.start, np.broadcast_to(part, block.shape))

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
