"""Slabs: how a volume is cut along depth, and the planes each slab needs.

A slab is a run of output planes computed at once. Its input is the planes its taps read, which overlap those of the next
slab (the halo). `SlabSource` hands them out in order; from a stream it reads every plane once, forward, and keeps the
ones still needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from conv3d_cli.model.spec import ConvProblem
from conv3d_cli.model.volume import Array, VolumeReader


class Slab(NamedTuple):
    """Output planes start..stop-1, and the input plane of every depth position their taps span (-1: a constant)."""

    start: int
    stop: int
    planes: list[int]


def cut_slabs(problem: ConvProblem, depth: int) -> list[Slab]:
    """All slabs of a volume, `depth` output planes each but the last.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> problem = ConvSpec(padding="same").resolve((1, 5, 4, 4, 1), (3, 3, 3, 1, 1))
    >>> [(s.start, s.stop, s.planes) for s in cut_slabs(problem, 3)]
    [(0, 3, [-1, 0, 1, 2, 3]), (3, 5, [2, 3, 4, -1])]
    """
    size = problem.out_size[0]
    starts = range(0, size, depth)
    return [
        Slab(
            start,
            min(start + depth, size),
            problem.source_indices(0, start, min(start + depth, size)),
        )
        for start in starts
    ]


@dataclass(frozen=True)
class SlabInput:
    """The input of a slab, as the engine takes it.

    source : (planes, rows, W, C)   the input planes that were read
    planes : list of int            for each depth position that taps span, its plane in `source`; -1: a constant
    rows, columns : list or None    the same for the height and width positions of a box; None: whole planes
    start : int                     the first output plane
    mask : SlabInput or None        the same of a mask: its certainties (planes, rows, W, 1), or numbers of regions
    """

    source: Array
    planes: list[int]
    rows: list[int] | None = None
    columns: list[int] | None = None
    start: int = 0
    mask: SlabInput | None = None


class SlabSource:
    """Reads the inputs of the slabs of one part (a volume n and some of its channels), in order.

    reader : VolumeReader       if it is sequential, it is read forward only, and planes that later slabs need are kept
    """

    def __init__(self, reader: VolumeReader, n: int, channels: slice, problem: ConvProblem) -> None:
        self.reader, self.n, self.channels, self.problem = reader, n, channels, problem
        self._held: Array | None = None
        self._held_from = 0

    def read(self, start: int, stop: int) -> SlabInput:
        """The input of output planes start..stop-1; from a sequential reader, each run after the one before."""
        planes = self.problem.source_indices(0, start, stop)
        runs = plane_runs(planes)
        if not runs:  # the slab lies wholly outside: any plane will do, none is read
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
        kept: list[Array] = []
        held_to = start
        if self._held is not None:
            held_to = self._held_from + len(self._held)
            if held_to > start:
                kept = [self._held[start - self._held_from :]]
            held_to = max(held_to, start)
        if stop > held_to:
            kept.append(self.reader.read(self.n, slice(held_to, stop), self.channels))
        self._held = kept[0] if len(kept) == 1 else np.concatenate(kept)
        self._held_from = start
        return SlabInput(self._held, [p - start if p >= 0 else -1 for p in planes])

    def release(self, stop: int) -> None:
        """Output planes before `stop` are computed: the reader may drop what only they needed."""
        needed = first_needed(self.problem)
        self.reader.release(self.n, needed[stop] if stop < len(needed) else self.problem.in_size[0])


@lru_cache(maxsize=64)
def first_needed(problem: ConvProblem) -> tuple[int, ...]:
    """For every output plane, the first input plane that it or any later one spans; the input's size if none is.

    Planes between the taps of two outputs (strides larger than the kernel) count: a slab of both spans them.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> first_needed(ConvSpec(padding="same").resolve((1, 5, 4, 4, 1), (3, 3, 3, 1, 1)))
    (0, 0, 1, 2, 3)
    """
    lowest, size = problem.in_size[0], problem.out_size[0]
    result = []
    for plane in reversed(range(size)):
        spanned = problem.source_indices(0, plane, min(plane + 2, size))
        lowest = min([lowest, *(p for p in spanned if p >= 0)])
        result.append(lowest)
    return tuple(reversed(result))


@lru_cache(maxsize=64)
def last_needed(problem: ConvProblem) -> tuple[int, ...]:
    """For every output plane, the input plane after the last one that it or any earlier one spans; 0 if none is.

    >>> from conv3d_cli.model.spec import ConvSpec
    >>> last_needed(ConvSpec(padding="same").resolve((1, 5, 4, 4, 1), (3, 3, 3, 1, 1)))
    (2, 3, 4, 5, 5)
    """
    indices = problem.source_indices(0, 0, problem.out_size[0])
    highest = list(itertools.accumulate(indices, max))
    last_tap, stride = problem.extent[0] - 1, problem.strides[0]
    return tuple(highest[plane * stride + last_tap] + 1 for plane in range(problem.out_size[0]))


def plane_runs(planes: Sequence[int], gap: int = 4) -> list[tuple[int, int]]:
    """The planes that are needed as (start, stop) runs in order; gaps of up to `gap` planes are read through.

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
    """Where indices stand when runs of them lie one after another; -1 stays.

    >>> places([-1, 0, 2, 98], [(0, 3), (98, 100)])
    [-1, 0, 2, 3]
    """
    place: dict[int, int] = {}
    for run in runs:
        for index in range(*run):
            place[index] = len(place)
    return [place[i] if i >= 0 else -1 for i in indices]


def most_planes(problem: ConvProblem, slabs: Sequence[Slab], sequential: bool) -> int:
    """The largest number of input planes that a slab holds in memory at once."""
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
