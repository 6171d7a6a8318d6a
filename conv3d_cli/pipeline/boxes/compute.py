"""Compute one box of a job's output from the voxels in its windows.

A cluster's workers compute their tasks in this way, and so does this machine if planes do not fit
into memory. The result is bit for bit that of slabs: where an algorithm computes several voxels
together, the same ones are computed together here, and those outside the box are discarded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import SlabInput, places
from conv3d_cli.engine import Team
from conv3d_cli.model.box import Box, Runs, Slices, Span, count_positions, intersect, subtract
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, VolumeReader
from conv3d_cli.pipeline.boxes.partition import (
    LayerChain,
    Partition,
    buffered_runs,
    required_runs,
)


class BoxInput(NamedTuple):
    """The input of a box.

    voxels : (d, h, w, c)       of the stored dtype
    runs : (Runs, Runs, Runs)   positions of the voxels in the volume along depth, height and width
    computed : list of tuples of Runs   along each axis, the outputs that each convolution computes
                                for the box, see `required_runs`
    """

    voxels: Array
    runs: tuple[Runs, Runs, Runs]
    computed: list[tuple[Runs, ...]]


def layer_chain(convolutions: Sequence[Convolution]) -> LayerChain:
    """The chain of some convolutions, in order."""
    return LayerChain(
        tuple(c.problem for c in convolutions), tuple(c.plan.block_alignment for c in convolutions)
    )


class BoxSource:
    """Reads the inputs of the boxes of one part of a volume.

    reader : VolumeReader           with `box_access`
    n, channels : int, slice        the part: volume n of the batch, and some of its channels
    partition : Partition or None   with a sweep axis, the voxels that the next box needs of the
                                    same chunks are kept; None: boxes are independent
    in_chunk : (D, H, W)            voxels of a chunk of the input
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
        self._buffer: BoxInput | None = None

    def read(self, box: Box, following: Box | None = None) -> BoxInput:
        """The input of a box.

        following : Box or None     the next box to be read
        Raises: FormatError if the file is truncated or corrupt.
        """
        runs_by_axis = []
        for axis, span in enumerate(box):
            next_span = following[axis] if following is not None and axis == self.sweep else None
            if next_span is not None and next_span[0] != span[1]:
                next_span = None  # the next box begins another sweep
            runs_by_axis.append(
                buffered_runs(self.chain, axis, span, next_span, self.in_chunk[axis])
            )
        runs = (runs_by_axis[0], runs_by_axis[1], runs_by_axis[2])
        voxels = self._read(runs)
        computed = [required_runs(self.chain, axis, span)[1:] for axis, span in enumerate(box)]
        result = BoxInput(voxels, runs, computed)
        self._buffer = result if self.sweep is not None and following is not None else None
        return result

    def _read(self, runs: tuple[Runs, Runs, Runs]) -> Array:
        """The voxels of runs, from the buffer where it has them."""
        missing, buffer, sweep = list(runs), self._buffer, self.sweep
        if buffer is not None and sweep is not None:
            if all(
                a == b
                for axis, (a, b) in enumerate(zip(runs, buffer.runs, strict=True))
                if axis != sweep
            ):
                missing[sweep] = subtract(runs[sweep], buffer.runs[sweep])
            else:
                buffer = None
        self._buffer = None
        boxes = [Box(*spans) for spans in itertools.product(*missing)]
        if buffer is None and len(boxes) == 1:
            return self._read_box(boxes[0])
        sizes = (count_positions(axis_runs) for axis_runs in runs)
        header = self.reader.header
        shape = (*sizes, self.channels.stop - self.channels.start)
        voxels = header.axes.empty(shape, header.dtype)
        if buffer is not None and sweep is not None:
            for run in intersect(runs[sweep], buffer.runs[sweep]):
                to, source = [slice(None)] * 3, [slice(None)] * 3
                to[sweep] = _slice_of(runs[sweep], run)
                source[sweep] = _slice_of(buffer.runs[sweep], run)
                voxels[tuple(to)] = buffer.voxels[tuple(source)]
        for box in boxes:
            to = [_slice_of(axis_runs, span) for axis_runs, span in zip(runs, box, strict=True)]
            voxels[tuple(to)] = self._read_box(box)
        return voxels

    def _read_box(self, box: Box) -> Array:
        return self.reader.read_box(self.n, *box.slices, self.channels)


def _slice_of(runs: Runs, span: Span) -> slice:
    """The slice of a span, which lies in one of the runs, in an array of all runs concatenated."""
    start = places([span[0]], runs)[0]
    return slice(start, start + span[1] - span[0])


def compute_box(
    convolutions: Sequence[Convolution],
    box_input: BoxInput,
    scale: tuple[float, float],
    channels: slice,
    box: Box,
    out: Array,
    team: Team,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Fill `out` with a box of the last convolution's output.

    box_input : BoxInput            of the box, as `BoxSource.read` returns it
    scale : (slope, intercept)      of the stored voxels
    channels : slice                input channels of the part
    box : Box                       of the output
    out : (d, h, w, c)              of the output's dtype
    progress : callable or None     gets the number of values finished, from any thread
    Returns the number of values clipped to the dtype of `out`.
    """
    source, runs, _ = box_input
    for position, convolution in enumerate(convolutions[:-1]):
        depth, height, width = (of_axis[position] for of_axis in box_input.computed)
        outputs = depth, height, width
        filters = convolution.outputs(slice(0, convolution.problem.in_channels))
        channels_out = convolutions[position + 1].problem.in_channels
        sizes = (count_positions(axis_runs) for axis_runs in outputs)
        values = np.empty((*sizes, channels_out), convolution.plan.dtype)
        for part, place in _boxes_of(outputs):
            slab = _slab(convolution, source, runs, part)
            convolution.convolve(slab, values[place], team, scale, filters)
        source, runs, scale = values, outputs, (1.0, 0.0)
    last = convolutions[-1]
    aligned = Box(*(of_axis[-1][0] for of_axis in box_input.computed))
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


def _boxes_of(runs: Sequence[Runs]) -> Iterator[tuple[Box, Slices]]:
    """The boxes of all combinations of runs along three axes.

    Yields each box with its slices in an array of all of them.
    """
    for spans in itertools.product(*runs):
        depth, height, width = (
            _slice_of(axis_runs, span) for axis_runs, span in zip(runs, spans, strict=True)
        )
        yield Box(*spans), (depth, height, width)


def _slab(
    convolution: Convolution, source: Array, runs: tuple[Runs, Runs, Runs], box: Box
) -> SlabInput:
    """The input of a box of outputs.

    source : (d, h, w, c)   input voxels at the positions of `runs`
    """
    planes, rows, columns = (
        places(convolution.problem.source_indices(axis, *span), axis_runs)
        for axis, (axis_runs, span) in enumerate(zip(runs, box, strict=True))
    )
    return SlabInput(source, planes, rows, columns, start=box.depth[0])
