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
from conv3d_cli.network.operations.base import Window, spans_of
from conv3d_cli.pipeline.boxes.partition import (
    BoxGraph,
    Partition,
    buffered_runs,
    required_runs,
)
from conv3d_cli.pipeline.graph import VOLUME, ConvolutionNode, Graph, GraphNode, OperationNode


class BoxInput(NamedTuple):
    """The input of a box.

    voxels : (d, h, w, c)       of the stored dtype
    runs : (Runs, Runs, Runs)   positions of the voxels in the volume along depth, height and width
    computed : list of tuples of Runs   along each axis, the outputs that each node computes for the
                                box, see `required_runs`
    """

    voxels: Array
    runs: tuple[Runs, Runs, Runs]
    computed: list[tuple[Runs, ...]]


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
        graph: BoxGraph,
        partition: Partition | None = None,
        in_chunk: Triple = (1, 1, 1),
    ) -> None:
        self.reader, self.n, self.channels, self.graph = reader, n, channels, graph
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
                buffered_runs(self.graph, axis, span, next_span, self.in_chunk[axis])
            )
        runs = (runs_by_axis[0], runs_by_axis[1], runs_by_axis[2])
        voxels = self._read(runs)
        computed = [required_runs(self.graph, axis, span)[1:] for axis, span in enumerate(box)]
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
    graph: Graph,
    box_input: BoxInput,
    scale: tuple[float, float],
    channels: slice,
    box: Box,
    out: Array,
    team: Team,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Fill `out` with a box of the graph's output.

    box_input : BoxInput            of the box, as `BoxSource.read` returns it
    scale : (slope, intercept)      of the stored voxels
    channels : slice                input channels of the part
    box : Box                       of the output
    out : (d, h, w, c)              of the output's dtype
    progress : callable or None     gets the number of values finished, from any thread
    Returns the number of values clipped to the dtype of `out`.
    """
    values: dict[int, tuple[Array, Runs3, tuple[float, float]]] = {
        VOLUME: (box_input.voxels, box_input.runs, scale)
    }
    uses = {source: len(taken) for source, taken in graph.consumers.items()}
    written = graph.written(out.dtype)
    for position, node in enumerate(graph.nodes[:-1]):
        runs = _runs_of(box_input, position)
        shape = (*(count_positions(axis_runs) for axis_runs in runs), node.channels)
        in_place = node is written and shape == out.shape and written.operation.takes(out)
        result = out if in_place else np.empty(shape, node.dtype)
        sources = [values[source] for source in node.inputs]
        for part, place in _boxes_of(runs):
            _compute_node(node, sources, part, result[place], team)
        values[position] = result, runs, (1.0, 0.0)
        for source in node.inputs:  # an array that nobody takes any more is freed
            uses[source] -= 1
            if not uses[source]:
                del values[source]
        del sources
    last = graph.last
    voxels, runs, scale = values.pop(graph.nodes[-1].inputs[0])
    if voxels is out:  # the last convolution would copy it
        if progress is not None:
            progress(out.size)
        return 0
    aligned = Box(*(of_axis[-1][0] for of_axis in box_input.computed))
    slab = _slab(last, voxels, runs, aligned)
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


Runs3 = tuple[Runs, Runs, Runs]


def _runs_of(box_input: BoxInput, position: int) -> Runs3:
    """The outputs of a node that are computed for a box, along D, H, W."""
    depth, height, width = (of_axis[position] for of_axis in box_input.computed)
    return depth, height, width


def _compute_node(
    node: GraphNode,
    sources: Sequence[tuple[Array, Runs3, tuple[float, float]]],
    box: Box,
    out: Array,
    team: Team,
) -> None:
    """Fill `out` with a box of a node's output.

    sources : for each input, its voxels at the positions of runs, and their scale
    """
    if isinstance(node, ConvolutionNode):
        convolution = node.convolution
        voxels, runs, scale = sources[0]
        filters = convolution.outputs(slice(0, convolution.problem.in_channels))
        convolution.convolve(_slab(convolution, voxels, runs, box), out, team, scale, filters)
        return
    assert isinstance(node, OperationNode)
    windows = []
    for number, (voxels, runs, scale) in enumerate(sources):
        taken = spans_of(node.operation, number, box)
        d, h, w = (_slice_of(along, span) for along, span in zip(runs, taken, strict=True))
        values = node.rounding.values(voxels[d, h, w], scale, node.real)
        windows.append(Window(values, taken.start))
    node.operation.compute(windows, box, out, team)


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
