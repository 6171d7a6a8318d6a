"""A box of a job's output, computed from what it reads: by a worker of a cluster, or where planes are too large for memory.

The bits are those of a run over the whole volume: where an algorithm computes several voxels together, the same ones are
computed together here, and what lies beside the box is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import SlabInput, places
from conv3d_cli.engine import Team
from conv3d_cli.model.volume import Array, VolumeReader
from conv3d_cli.pipeline.boxes.partition import (
    Box,
    Chain,
    Cutting,
    Runs,
    Triple,
    common,
    count_of,
    held_runs,
    needs,
    without,
)

Slices = tuple[slice, slice, slice]


class BoxInput(NamedTuple):
    """What is read for a box: voxels (d, h, w, c), and the positions along depth, height and width that they stand for.

    made : along each axis, what each convolution computes for the box (see `needs`)
    """

    voxels: Array
    runs: tuple[Runs, Runs, Runs]
    made: list[tuple[Runs, ...]]


def chain_of(convolutions: Sequence[Convolution]) -> Chain:
    """What cutting must know of convolutions."""
    grains = [c.plan.grain for c in convolutions]
    return Chain(tuple(c.problem for c in convolutions), tuple((g.depth, g.height, g.width) for g in grains))


class BoxSource:
    """The inputs of the boxes of one part (a volume n and some of its channels).

    in_chunk : of the input, D, H, W; of those that are decoded what the next box needs is kept, if `cutting` walks
    """

    def __init__(
        self,
        reader: VolumeReader,
        n: int,
        channels: slice,
        chain: Chain,
        cutting: Cutting | None = None,
        in_chunk: Triple = (1, 1, 1),
    ) -> None:
        self.reader, self.n, self.channels, self.chain = reader, n, channels, chain
        self.walk, self.in_chunk = None if cutting is None else cutting.walk, in_chunk
        self._held: BoxInput | None = None

    def read(self, box: Box, following: Box | None = None) -> BoxInput:
        """What a box reads; `following` is asked for next."""
        found = []
        for axis, span in enumerate(box):
            then = following[axis] if following is not None and axis == self.walk else None
            then = None if then is None or then[0] != span[1] else then
            found.append(held_runs(self.chain, axis, span, then, self.in_chunk[axis]))
        runs = (found[0], found[1], found[2])
        voxels = self._read(runs)
        made = [needs(self.chain, axis, span)[1:] for axis, span in enumerate(box)]
        result = BoxInput(voxels, runs, made)
        self._held = result if self.walk is not None and following is not None else None
        return result

    def _read(self, runs: tuple[Runs, Runs, Runs]) -> Array:
        missing, held, walk = list(runs), self._held, self.walk
        if held is not None and walk is not None:
            if all(a == b for axis, (a, b) in enumerate(zip(runs, held.runs, strict=True)) if axis != walk):
                missing[walk] = without(runs[walk], held.runs[walk])
            else:
                held = None
        self._held = None
        wanted = list(itertools.product(*missing))
        if held is None and len(wanted) == 1:
            return self._read_box(Box(*wanted[0]))
        shape = (*(count_of(one) for one in runs), self.channels.stop - self.channels.start)
        header = self.reader.header
        voxels = header.axes.empty(shape, header.dtype)
        if held is not None and walk is not None:
            for run in common(runs[walk], held.runs[walk]):
                to, of = ([slice(None)] * 3 for _ in range(2))
                to[walk], of[walk] = _places_of(runs[walk], run), _places_of(held.runs[walk], run)
                voxels[tuple(to)] = held.voxels[tuple(of)]
        for spans in wanted:
            to = [_places_of(one, run) for one, run in zip(runs, spans, strict=True)]
            voxels[tuple(to)] = self._read_box(Box(*spans))
        return voxels

    def _read_box(self, box: Box) -> Array:
        depth, rows, columns = (slice(*span) for span in box)
        return self.reader.read_box(self.n, depth, rows, columns, self.channels)


def _places_of(runs: Runs, part: tuple[int, int]) -> slice:
    """Where a part of one of the runs stands when they lie one after another."""
    start = places([part[0]], runs)[0]
    return slice(start, start + part[1] - part[0])


def compute_box(
    convolutions: Sequence[Convolution],
    given: BoxInput,
    scale: tuple[float, float],
    channels: slice,
    box: Box,
    out: Array,
    team: Team,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Fill `out` (d, h, w, c) with a box of the last convolution's output; how many voxels its dtype could not hold.

    scale : (slope, intercept) of what was read
    channels : of the input, which the first convolution's plan is made for
    progress : told the voxels finished, from any thread
    """
    source, runs, _ = given
    for position, convolution in enumerate(convolutions[:-1]):
        made = tuple(of_axis[position] for of_axis in given.made)
        every = slice(0, convolution.problem.in_channels)
        width = convolutions[position + 1].problem.in_channels
        values = np.empty((*(count_of(one) for one in made), width), convolution.plan.dtype)
        for part, place in _parts(made):
            slab = _slab(convolution, source, runs, part)
            convolution.convolve(slab, values[place], team, scale, convolution.outputs(every))
        source, runs, scale = values, (made[0], made[1], made[2]), (1.0, 0.0)
    last = convolutions[-1]
    aligned = Box(*(of_axis[-1][0] for of_axis in given.made))
    slab = _slab(last, source, runs, aligned)
    if aligned == box:
        return last.convolve(slab, out, team, scale, last.outputs(channels), progress)
    clipped = last.convolve(
        slab, out, team, scale, last.outputs(channels), around=(aligned.shape, _within(box, aligned))
    )
    if progress is not None:
        progress(out.size)
    return clipped


def _parts(runs: Sequence[Runs]) -> Iterator[tuple[Box, Slices]]:
    """The boxes that runs along three axes make, and where each stands among all of them."""
    for spans in itertools.product(*runs):
        depth, height, width = (_places_of(one, span) for one, span in zip(runs, spans, strict=True))
        yield Box(*spans), (depth, height, width)


def _slab(convolution: Convolution, source: Array, runs: tuple[Runs, Runs, Runs], box: Box) -> SlabInput:
    """A box of outputs as the engine takes it: for each position of its taps, where it stands in the source."""
    indices = [
        places(convolution.problem.source_indices(axis, *span), of_axis)
        for axis, (of_axis, span) in enumerate(zip(runs, box, strict=True))
    ]
    planes, rows, columns = indices
    return SlabInput(source, planes, rows, columns, start=box.depth[0])


def _within(box: Box, around: Box) -> Slices:
    depth, height, width = (
        slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, around, strict=True)
    )
    return depth, height, width
