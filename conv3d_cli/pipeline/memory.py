"""Memory: what a job holds at its peak, as a table of named terms, slab by slab."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conv3d_cli.convolution.slabs import Slab, cut_slabs, first_needed, last_needed, most_planes
from conv3d_cli.errors import MemoryLimitError
from conv3d_cli.kernels.lengths import memory_for_weights
from conv3d_cli.pipeline.stream import WRITES_BEHIND
from conv3d_cli.system.machine import format_bytes, memory_ceiling

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.model.kernel import Kernel
    from conv3d_cli.model.spec import ConvProblem

UNLIMITED = 1 << 62  # bytes
# The interpreter with its libraries, before the first voxel: 89 to 99 MiB, and 209 to 221 where loops are compiled, which is
# done after kernels are read.
PROCESS_BYTES, PROCESS_READING_BYTES = 222 << 20, 100 << 20
# Slabs of input held at once where planes may be read again: one is computed, one read. Of output: one is computed, others
# are written or wait for it.
SLABS_READ, SLABS_WRITTEN = 2, 1 + WRITES_BEHIND
# Of the planes that a stream gives for one slab: as they are read, and converted or joined to those that are kept.
STREAM_COPIES = 2


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a job holds at its peak, by what holds them. The terms are alive together; each part of a job adds its own.

    >>> use = MemoryUse({"process": 100, "input": 20}).plus(output=5, input=1)
    >>> use.terms, use.total
    ({'process': 100, 'input': 21, 'output': 5}, 126)
    """

    terms: Mapping[str, int] = field(default_factory=dict)

    def plus(self, **more: int) -> MemoryUse:
        """The same with bytes added; terms of 0 bytes are left out."""
        terms = dict(self.terms)
        for name, count in more.items():
            if count:
                terms[name] = terms.get(name, 0) + count
        return MemoryUse(terms)

    @property
    def total(self) -> int:
        """The peak of the whole process."""
        return sum(self.terms.values())

    def __str__(self) -> str:
        """For people, the largest first.

        >>> str(MemoryUse({"output": 1 << 20, "process": 3 << 20}))
        'process 3.0 MiB, output 1.0 MiB'
        """
        largest_first = sorted(self.terms.items(), key=lambda term: -term[1])
        return ", ".join(
            f"{name.replace('_', ' ')} {format_bytes(count)}" for name, count in largest_first
        )


PROCESS = MemoryUse({"process": PROCESS_BYTES})


def weights_held(kernels: Sequence[Kernel], convolutions: Sequence[Convolution]) -> dict[str, int]:
    """What the weights of all convolutions take while they run: as read (float64), and as the loops want them.

    kernels : sequence      as given and as applied; arrays that they share are counted once
    """
    arrays = {id(kernel.weights): kernel.weights.nbytes for kernel in kernels}
    plans = [plan for convolution in convolutions for plan in convolution.plans]
    for plan in plans:
        whole = plan.weights
        while isinstance(whole.base, np.ndarray):  # a view takes no memory
            whole = whole.base
        arrays[id(whole)] = whole.nbytes
    packed = [plan.weight_bytes for plan in plans]
    return {
        "weights": sum(arrays.values()),
        "packed_weights": sum(one.kept for one in packed) + max(one.packing for one in packed),
    }


def check_planning(
    kernels: Sequence[Kernel], problem: ConvProblem, dtype: np.dtype[Any], max_memory: int | None
) -> MemoryUse:
    """What it takes to choose an algorithm for the last of some kernels, before the first voxel is read.

    problem : ConvProblem   of what is computed at once
    Raises: MemoryLimitError if its weights are too many to be looked at; the message says what would do.
    """
    from conv3d_cli.engine.plan import planning_bytes  # late: it knows the compiler

    use = MemoryUse({"process": PROCESS_READING_BYTES}).plus(
        weights=sum(kernel.weights.nbytes for kernel in kernels),
        planning=planning_bytes(problem, dtype),
    )
    limit = memory_ceiling(max_memory)
    # below PROCESS_BYTES no job can run, and `choose_blocking` says so
    if use.total > max(limit, PROCESS_BYTES):
        kernel = kernels[-1]
        raise MemoryLimitError(
            f"the {kernel.weights.size:,} weights of kernel {kernel.name} need {format_bytes(use.total)} of memory for the "
            f"whole process ({use}), the ceiling is {format_bytes(limit)}; pass --max-memory {megabytes(use.total)} or "
            "more, or a smaller kernel"
        )
    return use


@contextmanager
def reading_kernels(max_memory: int | None) -> Iterator[None]:
    """Have kernels refused, before they are read or built, that are too large for the ceiling."""
    with memory_for_weights(max(memory_ceiling(max_memory), PROCESS_BYTES), PROCESS_READING_BYTES):
        yield


def megabytes(count: int) -> str:
    """A size that `--max-memory` takes, rounded up.

    >>> megabytes(300 << 20), megabytes((300 << 20) + 1)
    ('300M', '301M')
    """
    return f"{-(-count >> 20)}M"


class LayerPlanes(NamedTuple):
    """Planes that a convolution of a chain has at most in a slab: of its input at hand, read anew, and of its output."""

    window: int
    read: int
    made: int


def chain_planes(
    problems: Sequence[ConvProblem], depth_steps: Sequence[int], depth: int
) -> list[LayerPlanes]:
    """The planes that each convolution of a chain has at most, as `stream.LayerReader` asks for them, forward only.

    depth_steps : sequence      output planes that each computes at once
    depth : int                 output planes of a slab of the last one

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec(padding="same").resolve((1, 100, 4, 4, 1), (3, 3, 3))
    >>> chain_planes([problem, problem], [1, 1], 10)
    [LayerPlanes(window=12, read=12, made=11), LayerPlanes(window=12, read=11, made=10)]
    """
    most = [[1, 0, 0] for _ in problems]
    read_to, made_to = [0] * len(problems), [0] * len(problems)
    size = problems[-1].out_size[0]
    for start in range(0, size, depth):
        first, stop = start, min(start + depth, size)
        for layer in reversed(range(len(problems))):
            problem = problems[layer]
            if layer < len(problems) - 1:  # whole steps, and none that is made already
                step = depth_steps[layer]
                first = max(first, made_to[layer])
                first, stop = (
                    first - first % step,
                    min(-(-stop // step) * step, problem.out_size[0]),
                )
            if first >= stop:
                break
            low, high = first_needed(problem)[first], last_needed(problem)[stop - 1]
            begin = max(low, read_to[layer])
            found = (high - low, high - begin, stop - first)
            most[layer] = [max(a, b) for a, b in zip(most[layer], found, strict=True)]
            made_to[layer], read_to[layer] = stop, max(high, read_to[layer])
            first, stop = begin, high
            if first >= stop:
                break
    return [LayerPlanes(*planes) for planes in most]


@dataclass(frozen=True)
class SlabJob:
    """A job that is done in slabs of whole planes: its convolutions, and what its two ends hold.

    in_dtype, out_dtype : dtype     of the voxels that are read and written
    sequential : bool               the last convolution's input is read forward only
    channels : int                  that are written of a part
    weights : dict                  see `weights_held`
    reader : callable               (input planes read at once) -> bytes the reader holds beside them
    writer : int                    bytes the writer holds beside what it is given
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

    def in_plane(self, layer: int) -> int:
        """Bytes of a plane of a convolution's input."""
        problem = self.convolutions[layer].problem
        dtype = self.in_dtype if layer == 0 else self.convolutions[layer - 1].plan.dtype
        return math.prod(problem.in_size[1:]) * problem.in_channels * dtype.itemsize

    @property
    def out_plane(self) -> int:
        """Bytes of a plane that is written."""
        return math.prod(self.last.problem.out_size[1:]) * self.channels * self.out_dtype.itemsize

    def memory(self, depth: int) -> MemoryUse:
        """The peak of the process in slabs of `depth` output planes."""
        depth = min(depth, self.last.problem.out_size[0])
        planes = chain_planes(
            [c.problem for c in self.convolutions],
            [c.plan.depth_step for c in self.convolutions],
            depth,
        )
        use = PROCESS.plus(
            **self.weights, output=SLABS_WRITTEN * depth * self.out_plane, writer=self.writer
        )
        for convolution, (window, _, made) in zip(self.convolutions, planes, strict=True):
            size = (made, *convolution.problem.out_size[1:])
            use = use.plus(scratch=convolution.plan.scratch_for(size)).plus(
                **convolution.memory(window, made)
            )
        if self.sequential:
            use = use.plus(**self._stream(planes))
        else:
            window = most_planes(
                self.last.problem, _slabs(self.last.problem, depth), sequential=False
            )
            use = use.plus(input=SLABS_READ * window * self.in_plane(len(planes) - 1))
            if (
                len(planes) > 1
            ):  # the last one's input was computed into a file first, with 8 planes at a time
                use = use.plus(layers=sum(self._windows(planes)[:-1]))
        return use.plus(reader=self.reader(planes[0].read if self.sequential else planes[0].window))

    def _windows(self, planes: Sequence[LayerPlanes]) -> list[int]:
        return [one.window * self.in_plane(layer) for layer, one in enumerate(planes)]

    def _stream(self, planes: Sequence[LayerPlanes]) -> dict[str, int]:
        """Every convolution keeps its window; one of them at a time has the next one joined from it and new planes."""
        windows = self._windows(planes)
        joined = [
            window + STREAM_COPIES * one.read * self.in_plane(layer)
            for layer, (window, one) in enumerate(zip(windows, planes, strict=True))
        ]
        return {"input": windows[-1] + max(joined), "layers": sum(windows[:-1])}


@lru_cache(maxsize=16)
def _slabs(problem: ConvProblem, depth: int) -> list[Slab]:
    return cut_slabs(problem, depth)
