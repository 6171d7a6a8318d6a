"""Slabs: runs of output planes computed at once, and the input planes that each one needs.

The input planes of two consecutive slabs overlap (the halo). `SlabSource` reads the inputs of slabs
in order; from a sequential reader it reads every plane once and keeps those that the next slabs
need.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from conv3d_cli.model.box import split
from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.model.volume import Array, VolumeReader


class Slab(NamedTuple):
    """Output planes start to stop - 1.

    planes : list of int    the input plane at every depth position that their taps span; -1 for a
                            constant
    """

    start: int
    stop: int
    planes: list[int]


def cut_slabs(problem: ConvProblem, depth: int) -> list[Slab]:
    """All slabs of a volume: `depth` output planes each, the last one perhaps fewer.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec(padding="same").resolve((1, 5, 4, 4, 1), (3, 3, 3, 1, 1))
    >>> [(s.start, s.stop, s.planes) for s in cut_slabs(problem, 3)]
    [(0, 3, [-1, 0, 1, 2, 3]), (3, 5, [2, 3, 4, -1])]
    """
    return [
        Slab(start, stop, problem.source_indices(0, start, stop))
        for start, stop in split(problem.out_size[0], depth)
    ]


@dataclass(frozen=True)
class SlabInput:
    """The input of a slab or of a box, as `Plan.convolve_slab` takes it.

    source : (planes, rows, W, C)   the input planes that were read, of the stored dtype
    planes : list of int            for every depth position that taps span, its plane in `source`;
                                    -1 for a constant
    rows, columns : list or None    the same for the height and width positions of a box; None for
                                    whole planes
    start : int                     the first output plane
    mask : SlabInput or None        the same planes of a mask, as certainties or numbers of regions
                                    (planes, rows, W, 1)
    """

    source: Array
    planes: list[int]
    rows: list[int] | None = None
    columns: list[int] | None = None
    start: int = 0
    mask: SlabInput | None = None


class Steps(NamedTuple):
    """The planes of an input, which are computed several together.

    size : int      all planes
    step : int      planes of a step; steps begin at multiples of it

    Requests of whole steps are computed where they are wanted. Others are copied from there.
    """

    size: int
    step: int = 1

    def around(self, start: int, stop: int) -> tuple[int, int]:
        """The planes of all steps that planes start to stop - 1 belong to.

        >>> Steps(10, 4).around(3, 6), Steps(10, 4).around(8, 9)
        ((0, 8), (8, 10))
        """
        return start - start % self.step, min(-(-stop // self.step) * self.step, self.size)


class RingPlanes:
    """Consecutive planes of an input, in a ring: plane p lies at p % planes, and none is moved.

    room, fill : callable   as of `HeldPlanes`
    planes : int            of the ring: whole steps, at least those around any planes of a `read`

    >>> fill = lambda depth, out: np.copyto(out, range(99)[depth])
    >>> ring = RingPlanes(np.empty, fill, Steps(9), 4)
    >>> ring.read(0, 3).tolist(), ring.read(2, 6).tolist()
    ([0.0, 1.0, 2.0, 0.0], [4.0, 5.0, 2.0, 3.0])
    """

    def __init__(
        self,
        room: Callable[[int], Array],
        fill: Callable[[slice, Array], None],
        steps: Steps,
        planes: int,
    ) -> None:
        self.fill, self.steps, self.stop = fill, steps, 0
        self._memory = room(planes)
        self._memory.fill(0)  # who looks at all of it finds nothing that was never written

    def read(self, start: int, stop: int) -> Array:
        """The ring with planes start to stop - 1; neither is less than in the read before.

        Raises: ValueError if the ring is too small for the steps around them.
        """
        memory = self._memory
        first, end = self.steps.around(start, stop)
        if end - first > len(memory):
            raise ValueError(f"a ring of {len(memory)} planes cannot hold {end - first}")
        have = max(first, self.stop)
        while have < end:
            place = have % len(memory)
            until = min(end, have - place + len(memory))
            self.fill(slice(have, until), memory[place : place + until - have])
            self.stop = have = until
        return memory


class HeldPlanes:
    """Consecutive planes of an input, in memory that is used again: fresh pages cost much time.

    room : callable     (planes) -> an uninitialised array for so many
    fill : callable     (slice, array) -> None; fills the array with these planes of the input
    start, stop : int   the planes that are held

    >>> fill = lambda depth, out: np.copyto(out, range(99)[depth])
    >>> held = HeldPlanes(np.zeros, fill, Steps(9))
    >>> held.read(0, 3).tolist(), held.read(2, 5).tolist()
    ([0.0, 1.0, 2.0], [2.0, 3.0, 4.0])
    """

    def __init__(
        self,
        room: Callable[[int], Array],
        fill: Callable[[slice, Array], None],
        steps: Steps,
    ) -> None:
        self.room, self.fill, self.steps = room, fill, steps
        self.forget()

    def forget(self) -> None:
        """Hold no planes, and no memory."""
        self.start = self.stop = 0
        self._memory: Array | None = None

    def read(self, start: int, stop: int) -> Array:
        """Planes start to stop - 1, in memory that the next call changes; neither ever falls."""
        memory = self._memory
        if stop > self.stop:
            first, end = self.steps.around(start, stop)
            have = max(first, self.stop)
            first, target = min(start, have), memory
            if target is None or len(target) < end - first:
                target = self._memory = self.room(end - first)
            if memory is not None and (target is not memory or first > self.start):
                for plane in range(first, self.stop):  # one by one, since they may overlap
                    target[plane - first] = memory[plane - self.start]
            memory = None
            self.start, self.stop = first, end
            self.fill(slice(have, end), target[have - first : end - first])
        assert self._memory is not None
        return self._memory[start - self.start : stop - self.start]


class SlabSource:
    """Reads the inputs of the slabs of one part of a volume, in order.

    reader : VolumeReader       a sequential one is read forward once; planes that the next slab
                                needs are kept in memory
    n, channels : int, slice    the part: volume n of the batch, and some of its channels
    """

    def __init__(self, reader: VolumeReader, n: int, channels: slice, problem: ConvProblem) -> None:
        self.reader, self.n, self.channels, self.problem = reader, n, channels, problem
        self._buffer: Array | None = None
        self._buffer_start = 0

    def read(self, start: int, stop: int) -> SlabInput:
        """The input of output planes start to stop - 1; a sequential reader takes them in order."""
        planes = self.problem.source_indices(0, start, stop)
        runs = plane_runs(planes)
        if not runs:  # the whole slab lies outside: every tap reads the constant
            _, _, height, width, _ = self.reader.header.shape
            shape = (1, height, width, self.channels.stop - self.channels.start)
            return SlabInput(np.zeros(shape, self.reader.header.dtype), planes, start=start)
        if self.reader.sequential:
            slab = self._read_forward(planes, first_needed(self.problem)[start], runs[-1][1])
            return replace(slab, start=start)
        blocks = [self.reader.read(self.n, slice(*run), self.channels) for run in runs]
        source = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return SlabInput(source, places(planes, runs), start=start)

    def _read_forward(self, planes: list[int], start: int, stop: int) -> SlabInput:
        """The input planes start to stop - 1, of which the buffer may hold the first ones."""
        pieces: list[Array] = []
        buffered_to = start
        if self._buffer is not None:
            buffered_to = self._buffer_start + len(self._buffer)
            if buffered_to > start:
                pieces = [self._buffer[start - self._buffer_start :]]
            buffered_to = max(buffered_to, start)
        if stop > buffered_to:
            pieces.append(self.reader.read(self.n, slice(buffered_to, stop), self.channels))
        self._buffer = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._buffer_start = start
        return SlabInput(self._buffer, [p - start if p >= 0 else -1 for p in planes])

    def release(self, stop: int) -> None:
        """Let the reader drop the input planes that only output planes before `stop` need."""
        needed = first_needed(self.problem)
        self.reader.release(self.n, needed[stop] if stop < len(needed) else self.problem.in_size[0])


def first_needed(problem: ConvProblem) -> tuple[int, ...]:
    """For every output plane, the first input plane that it or a later output plane spans.

    The input's depth stands for none. Planes between the taps of two outputs (strides larger than
    the kernel) count, since a slab with both outputs spans them.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> first_needed(ConvSpec(padding="same").resolve((1, 5, 4, 4, 1), (3, 3, 3, 1, 1)))
    (0, 0, 1, 2, 3)
    """
    return _first_needed(problem.along_depth)


@lru_cache(maxsize=64)
def _first_needed(problem: ConvProblem) -> tuple[int, ...]:
    lowest, size = problem.in_size[0], problem.out_size[0]
    result = []
    for plane in reversed(range(size)):
        spanned = problem.source_indices(0, plane, min(plane + 2, size))
        lowest = min([lowest, *(p for p in spanned if p >= 0)])
        result.append(lowest)
    return tuple(reversed(result))


def last_needed(problem: ConvProblem) -> tuple[int, ...]:
    """For every output plane, the end of the input planes that it and earlier output planes span.

    The end is the last such plane + 1, or 0 if there is none.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> last_needed(ConvSpec(padding="same").resolve((1, 5, 4, 4, 1), (3, 3, 3, 1, 1)))
    (2, 3, 4, 5, 5)
    """
    return _last_needed(problem.along_depth)


@lru_cache(maxsize=64)
def _last_needed(problem: ConvProblem) -> tuple[int, ...]:
    indices = problem.source_indices(0, 0, problem.out_size[0])
    highest = list(itertools.accumulate(indices, max))
    last_tap, stride = problem.extent[0] - 1, problem.strides[0]
    return tuple(highest[plane * stride + last_tap] + 1 for plane in range(problem.out_size[0]))


def plane_runs(planes: Sequence[int], gap: int = 4) -> list[tuple[int, int]]:
    """The planes to read, as ordered (start, stop) runs; gaps of up to `gap` planes are included.

    Planes of -1 (constants) are skipped.

    >>> plane_runs([-1, 0, 1, 2, 98, 99])
    [(0, 3), (98, 100)]
    """
    runs: list[tuple[int, int]] = []
    for plane in sorted({p for p in planes if p >= 0}):
        if runs and plane - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], plane + 1)
        else:
            runs.append((plane, plane + 1))
    return runs


def places(indices: Sequence[int], runs: Sequence[tuple[int, int]]) -> list[int]:
    """The position of each index in the concatenation of runs; -1 stays -1.

    >>> places([-1, 0, 2, 98], [(0, 3), (98, 100)])
    [-1, 0, 2, 3]
    """
    place: dict[int, int] = {}
    for run in runs:
        for index in range(*run):
            place[index] = len(place)
    return [place[i] if i >= 0 else -1 for i in indices]


def most_planes(problem: ConvProblem, slabs: Sequence[Slab], sequential: bool) -> int:
    """The largest number of input planes that any slab needs in memory at once."""
    most = 1
    lowest: int | None = None
    for slab in reversed(slabs):
        runs = plane_runs(slab.planes)
        if not runs:
            continue
        lowest = runs[0][0] if lowest is None else min(lowest, runs[0][0])
        most = max(
            most, runs[-1][1] - lowest if sequential else sum(stop - start for start, stop in runs)
        )
    return most
