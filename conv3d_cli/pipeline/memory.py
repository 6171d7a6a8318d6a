"""Predict a job's peak memory as a table of named terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conv3d_cli.convolution.slabs import Slab, cut_slabs, first_needed, last_needed, most_planes
from conv3d_cli.errors import MemoryLimitError, setting
from conv3d_cli.pipeline.stream import WRITES_BEHIND
from conv3d_cli.system.machine import format_bytes, memory_ceiling
from conv3d_cli.system.room import PROCESS_BYTES, READING_BYTES

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.model.kernel import Kernel
    from conv3d_cli.model.spec import ConvProblem

UNLIMITED = 1 << 62  # bytes
# Slabs in memory. Input of a random-access reader: one being computed, one being read. Output: one
# being computed, others being written or waiting for it.
SLABS_READ, SLABS_WRITTEN = 2, 1 + WRITES_BEHIND
# Copies of the planes that a sequential reader delivers for one slab: as read, and joined to the
# planes of the previous slab.
STREAM_COPIES = 2


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of memory at the peak of a job, by name. All terms are allocated at the same time.

    >>> use = MemoryUse({"process": 100, "input": 20}).plus(output=5, input=1)
    >>> use.terms, use.total
    ({'process': 100, 'input': 21, 'output': 5}, 126)
    """

    terms: Mapping[str, int] = field(default_factory=dict)

    def plus(self, **more: int) -> MemoryUse:
        """A copy with bytes added to terms; 0 bytes add no term."""
        terms = dict(self.terms)
        for name, count in more.items():
            if count:
                terms[name] = terms.get(name, 0) + count
        return MemoryUse(terms)

    @property
    def total(self) -> int:
        """The peak of the whole process in bytes."""
        return sum(self.terms.values())

    def __str__(self) -> str:
        """The terms for messages, the largest first.

        >>> str(MemoryUse({"output": 1 << 20, "process": 3 << 20}))
        'process 3.0 MiB, output 1.0 MiB'
        """
        largest_first = sorted(self.terms.items(), key=lambda term: -term[1])
        return ", ".join(
            f"{name.replace('_', ' ')} {format_bytes(count)}" for name, count in largest_first
        )


PROCESS = MemoryUse({"process": PROCESS_BYTES})


def weight_memory(kernels: Sequence[Kernel], convolutions: Sequence[Convolution]) -> dict[str, int]:
    """Bytes of the weights of all convolutions while they run, by name.

    kernels : sequence      as given and as applied; an array that two of them share counts once
    Returns "weights" (float64, as read) and "packed_weights" (in the layout of the loops).
    """
    arrays = {id(kernel.weights): kernel.weights.nbytes for kernel in kernels}
    plans = [plan for convolution in convolutions for plan in convolution.plans]
    for plan in plans:
        owner = plan.weights
        while isinstance(owner.base, np.ndarray):  # a view takes no memory
            owner = owner.base
        arrays[id(owner)] = owner.nbytes
    packed = [plan.weight_bytes for plan in plans]
    return {
        "weights": sum(arrays.values()),
        "packed_weights": sum(one.kept for one in packed) + max(one.packing for one in packed),
    }


def check_planning(
    kernels: Sequence[Kernel], problem: ConvProblem, dtype: np.dtype[Any], max_memory: int | None
) -> MemoryUse:
    """The memory for choosing an algorithm for the last kernel, before any voxel is read.

    kernels : sequence          all kernels read so far
    problem : ConvProblem       of the part of the volume that is computed at once
    max_memory : int or None    ceiling of the whole process in bytes; None: see `memory_ceiling`
    Raises: MemoryLimitError if planning needs more than the ceiling; the message names a ceiling
        that would do.
    """
    from conv3d_cli.engine.plan import planning_bytes  # imports Numba

    use = MemoryUse({"process": READING_BYTES}).plus(
        weights=sum(kernel.weights.nbytes for kernel in kernels),
        planning=planning_bytes(problem, dtype),
    )
    limit = memory_ceiling(max_memory)
    # no job runs below PROCESS_BYTES; `choose_blocking` refuses such a ceiling
    if use.total > max(limit, PROCESS_BYTES):
        kernel = kernels[-1]
        raise MemoryLimitError(
            f"the {kernel.weights.size:,} weights of {kernel.title} need "
            f"{format_bytes(use.total)} of memory for the whole process ({use}), the ceiling is "
            f"{format_bytes(limit)}; pass {setting('max_memory', megabytes(use.total))} or more, "
            "or a smaller kernel"
        )
    return use


def megabytes(count: int) -> str:
    """A size in bytes as a value of `--max-memory`, rounded up.

    >>> megabytes(300 << 20), megabytes((300 << 20) + 1)
    ('300M', '301M')
    """
    return f"{-(-count >> 20)}M"


class LayerPlanes(NamedTuple):
    """The most planes of one convolution of a chain in any slab.

    window : input planes in memory
    read : input planes read that the previous slab did not have
    computed : output planes computed
    """

    window: int
    read: int
    computed: int


def chain_planes(
    problems: Sequence[ConvProblem], depth_steps: Sequence[int], depth: int
) -> list[LayerPlanes]:
    """The most planes that each convolution of a chain has in any slab.

    problems : sequence         of the chain, in order; each reads the output of the one before as
                                `stream.LayerReader` does, forward only
    depth_steps : sequence      output planes that each convolution computes at once
    depth : int                 output planes of a slab of the last convolution

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec(padding="same").resolve((1, 100, 4, 4, 1), (3, 3, 3))
    >>> chain_planes([problem, problem], [1, 1], 10)
    [LayerPlanes(window=12, read=12, computed=11), LayerPlanes(window=12, read=11, computed=10)]
    """
    most = [LayerPlanes(1, 0, 0) for _ in problems]
    read_to, computed_to = [0] * len(problems), [0] * len(problems)
    size = problems[-1].out_size[0]
    for start in range(0, size, depth):
        first, stop = start, min(start + depth, size)
        for layer in reversed(range(len(problems))):
            problem = problems[layer]
            if layer < len(problems) - 1:  # whole steps, without planes computed before
                step = depth_steps[layer]
                first = max(first, computed_to[layer])
                first -= first % step
                stop = min(-(-stop // step) * step, problem.out_size[0])
            if first >= stop:
                break
            low, high = first_needed(problem)[first], last_needed(problem)[stop - 1]
            begin = max(low, read_to[layer])
            planes = (high - low, high - begin, stop - first)
            most[layer] = LayerPlanes(*map(max, most[layer], planes))
            computed_to[layer], read_to[layer] = stop, max(high, read_to[layer])
            first, stop = begin, high
            if first >= stop:
                break
    return most


@dataclass(frozen=True)
class SlabJob:
    """A job in slabs of whole planes, as far as its memory depends on it.

    convolutions : sequence         in order
    in_dtype, out_dtype : dtype     of the voxels that are read and written
    sequential : bool               the last convolution's input is read forward only
    channels : int                  channels written for one part of the volume
    weights : dict                  see `weight_memory`
    reader : callable               (input planes read at once) -> bytes of the reader, without them
    writer : int                    bytes of the writer, without the blocks passed to it
    """

    convolutions: Sequence[Convolution]
    in_dtype: np.dtype[Any]
    out_dtype: np.dtype[Any]
    sequential: bool
    channels: int
    weights: Mapping[str, int]
    reader: Callable[[int], int] = lambda planes: 0
    writer: int = 0

    @property
    def last(self) -> Convolution:
        """The convolution whose output is written."""
        return self.convolutions[-1]

    def use_threads(self, threads: int) -> None:
        """Plan all convolutions for another number of threads."""
        for convolution in self.convolutions:
            convolution.use_threads(threads)

    def in_plane(self, layer: int) -> int:
        """Bytes of a plane of a convolution's input; `layer` counts from 0."""
        problem = self.convolutions[layer].problem
        dtype = self.in_dtype if layer == 0 else self.convolutions[layer - 1].plan.dtype
        return math.prod(problem.in_size[1:]) * problem.in_channels * dtype.itemsize

    @property
    def out_plane(self) -> int:
        """Bytes of an output plane."""
        return math.prod(self.last.problem.out_size[1:]) * self.channels * self.out_dtype.itemsize

    def memory(self, depth: int) -> MemoryUse:
        """The peak of the process with slabs of `depth` output planes."""
        depth = min(depth, self.last.problem.out_size[0])
        planes = chain_planes(
            [c.problem for c in self.convolutions],
            [c.plan.depth_step for c in self.convolutions],
            depth,
        )
        use = PROCESS.plus(
            **self.weights, output=SLABS_WRITTEN * depth * self.out_plane, writer=self.writer
        )
        for convolution, (window, _, computed) in zip(self.convolutions, planes, strict=True):
            size = (computed, *convolution.problem.out_size[1:])
            use = use.plus(scratch=convolution.plan.scratch_for(size))
            use = use.plus(**convolution.memory(window, computed))
        if self.sequential:
            use = use.plus(**self._stream_memory(planes))
        else:
            window = most_planes(
                self.last.problem, _slabs(self.last.problem, depth), sequential=False
            )
            use = use.plus(input=SLABS_READ * window * self.in_plane(len(planes) - 1))
            if len(planes) > 1:
                # the other layers fill a temporary file first, 8 planes at a time
                use = use.plus(layers=sum(self._window_bytes(planes)[:-1]))
        return use.plus(reader=self.reader(planes[0].read if self.sequential else planes[0].window))

    def _window_bytes(self, planes: Sequence[LayerPlanes]) -> list[int]:
        return [one.window * self.in_plane(layer) for layer, one in enumerate(planes)]

    def _stream_memory(self, planes: Sequence[LayerPlanes]) -> dict[str, int]:
        """Bytes of the input windows of a chain that is read forward.

        Every layer keeps its window; one at a time also joins it with new planes to the next one.
        """
        windows = self._window_bytes(planes)
        joined = [
            window + STREAM_COPIES * one.read * self.in_plane(layer)
            for layer, (window, one) in enumerate(zip(windows, planes, strict=True))
        ]
        return {"input": windows[-1] + max(joined), "layers": sum(windows[:-1])}


@lru_cache(maxsize=16)
def _slabs(problem: ConvProblem, depth: int) -> list[Slab]:
    """The slabs of `cut_slabs`, cached."""
    return cut_slabs(problem, depth)
