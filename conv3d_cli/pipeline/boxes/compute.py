"""One box of a job's output, computed from the voxels that it reads.

A worker of a cluster computes its tasks in this way, and so does this machine where planes are too large for
memory. The bits are those of a run over the whole volume: where an algorithm computes several voxels together,
the same ones are computed together here, and voxels beside the box are dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import SlabInput, places
from conv3d_cli.engine import Team
from conv3d_cli.model.box import Box, Runs, Slices, count_positions, intersect, subtract
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, VolumeReader
from conv3d_cli.pipeline.boxes.partition import (
    LayerChain,
    Partition,
    held_runs,
    needs,
)


class BoxInput(NamedTuple):
    """What is read for a box.

    voxels : (d, h, w, c)   of any dtype of a volume
    runs : the positions along depth, height and width that the voxels come from
    made : along each axis, the outputs that each convolution computes for the box (see `needs`)
    """

    voxels: Array
    runs: tuple[Runs, Runs, Runs]
    made: list[tuple[Runs, ...]]


def layer_chain(convolutions: Sequence[Convolution]) -> LayerChain:
    """What a partition depends on of convolutions."""
    return LayerChain(
        tuple(c.problem for c in convolutions), tuple(c.plan.block_alignment for c in convolutions)
    )


class BoxSource:
    """The inputs of the boxes of one part (a volume n and some of its channels).

    in_chunk : chunk shape of the input, D, H, W. When boxes are swept along an axis, the part of the chunks that
        the next box needs is kept
    """

    def __init__(
        self,
        reader: VolumeReader,
        n: int,
        channels: slice,
        chain: LayerChain,
        partition: Partition | None = None,
        in_chunk: Triple = (1, 1, 1),
    ) -> None:
        self.reader, self.n, self.channels, self.chain = reader, n, channels, chain
        self.sweep, self.in_chunk = None if partition is None else partition.sweep, in_chunk
        self._held: BoxInput | None = None

    def read(self, box: Box, following: Box | None = None) -> BoxInput:
        """What a box reads. `following` is the box that is asked for next, if there is one."""
        found = []
        for axis, span in enumerate(box):
            then = following[axis] if following is not None and axis == self.sweep else None
            then = None if then is None or then[0] != span[1] else then
            found.append(held_runs(self.chain, axis, span, then, self.in_chunk[axis]))
        runs = (found[0], found[1], found[2])
        voxels = self._read(runs)
        made = [needs(self.chain, axis, span)[1:] for axis, span in enumerate(box)]
        result = BoxInput(voxels, runs, made)
        self._held = result if self.sweep is not None and following is not None else None
        return result

    def _read(self, runs: tuple[Runs, Runs, Runs]) -> Array:
        missing, held, sweep = list(runs), self._held, self.sweep
        if held is not None and sweep is not None:
            if all(
                a == b
                for axis, (a, b) in enumerate(zip(runs, held.runs, strict=True))
                if axis != sweep
            ):
                missing[sweep] = subtract(runs[sweep], held.runs[sweep])
            else:
                held = None
        self._held = None
        wanted = list(itertools.product(*missing))
        if held is None and len(wanted) == 1:
            return self._read_box(Box(*wanted[0]))
        shape = (*(count_positions(one) for one in runs), self.channels.stop - self.channels.start)
        header = self.reader.header
        voxels = header.axes.empty(shape, header.dtype)
        if held is not None and sweep is not None:
            for run in intersect(runs[sweep], held.runs[sweep]):
                to, of = ([slice(None)] * 3 for _ in range(2))
                to[sweep], of[sweep] = (
                    _places_of(runs[sweep], run),
                    _places_of(held.runs[sweep], run),
                )
                voxels[tuple(to)] = held.voxels[tuple(of)]
        for spans in wanted:
            to = [_places_of(one, run) for one, run in zip(runs, spans, strict=True)]
            voxels[tuple(to)] = self._read_box(Box(*spans))
        return voxels

    def _read_box(self, box: Box) -> Array:
        return self.reader.read_box(self.n, *box.slices, self.channels)


def _places_of(runs: Runs, part: tuple[int, int]) -> slice:
    """Where a part of one of the runs is found in an array that holds the runs one after another."""
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
    """Fill `out` (d, h, w, c) with a box of the last convolution's output.

    scale : (slope, intercept) of the voxels that were read
    channels : the input channels that the first convolution's plan is made for
    progress : callable     gets the number of voxels finished, from any thread
    Returns how many voxels the output's dtype could not hold.
    """
    source, runs, _ = given
    for position, convolution in enumerate(convolutions[:-1]):
        made = tuple(of_axis[position] for of_axis in given.made)
        every = slice(0, convolution.problem.in_channels)
        width = convolutions[position + 1].problem.in_channels
        values = np.empty((*(count_positions(one) for one in made), width), convolution.plan.dtype)
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
        slab,
        out,
        team,
        scale,
        last.outputs(channels),
        around=(aligned.size, box.within(aligned).slices),
    )
    if progress is not None:
        progress(out.size)
    return clipped


def _parts(runs: Sequence[Runs]) -> Iterator[tuple[Box, Slices]]:
    """The boxes that runs along three axes make, and where each is found in an array that holds them all."""
    for spans in itertools.product(*runs):
        depth, height, width = (
            _places_of(one, span) for one, span in zip(runs, spans, strict=True)
        )
        yield Box(*spans), (depth, height, width)


def _slab(
    convolution: Convolution, source: Array, runs: tuple[Runs, Runs, Runs], box: Box
) -> SlabInput:
    """The input of a box of outputs, with the place in the source of each position that its taps read."""
    indices = [
        places(convolution.problem.source_indices(axis, *span), of_axis)
        for axis, (of_axis, span) in enumerate(zip(runs, box, strict=True))
    ]
    planes, rows, columns = indices
    return SlabInput(source, planes, rows, columns, start=box.depth[0])
