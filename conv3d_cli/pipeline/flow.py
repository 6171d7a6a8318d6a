"""The graph of a job as readers: every node is a volume whose planes are computed on request.

All of them are read forward only. A `LayerReader` computes a convolution, an `OperationReader`
another operation, from the readers of their inputs, so each keeps only the planes that its next
outputs need. A `Tee` gives one reader to several nodes: it keeps the planes that the fastest has
read and the slowest has not. `held.py` counts what all of them hold.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import SlabSource, shrunk
from conv3d_cli.engine.fields import Field, FileField
from conv3d_cli.formats.base import reserve_space, spool_reader
from conv3d_cli.model.box import Box
from conv3d_cli.model.grid import grid_after
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader
from conv3d_cli.network.operations.base import Shape, Window
from conv3d_cli.network.operations.statistics import GATHERING
from conv3d_cli.pipeline.graph import (
    VOLUME,
    ConvolutionNode,
    Graph,
    GraphNode,
    OperationNode,
    PatchedNode,
)
from conv3d_cli.system.atomic import write_errors
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

if TYPE_CHECKING:
    from conv3d_cli.engine import Team

# Planes that an operation on the whole volume reads at once.
WHOLE_PLANES = 8


class ComputedReader(VolumeReader):
    """A node's output as a volume to read: planes are computed on request, forward only.

    step : int      planes that are computed together, so that any requests group them alike
    """

    sequential = True
    header: VolumeHeader
    step: int
    _n: int | None = None

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if n != self._n:
            self._n = n
            self._begin(n)
            # planes computed beyond the last request, and their first one
            self._surplus = np.empty((0, *self.header.shape[2:]), self.header.dtype)
            self._surplus_start = 0
        planes = self._surplus[max(depth.start - self._surplus_start, 0) :]
        count = depth.stop - depth.start
        if len(planes) < count:
            step, size = self.step, self.header.shape[1]
            start = max(depth.start, self._surplus_start + len(self._surplus))
            first, last = start - start % step, min(-(-depth.stop // step) * step, size)
            computed = self._compute(n, first, last)
            if len(planes):
                planes = np.concatenate([planes, computed])
            else:
                planes = computed[depth.start - first :]
        self._surplus, self._surplus_start = planes[count:].copy(), depth.stop
        return planes[:count, ..., channels]

    def _begin(self, n: int) -> None:
        """Prepare for another volume."""
        raise NotImplementedError

    def _compute(self, n: int, start: int, stop: int) -> Array:
        """Planes start to stop - 1, (d, H, W, C)."""
        raise NotImplementedError


class LayerReader(ComputedReader):
    """A convolution's output.

    reader : VolumeReader       the convolution's input; the caller closes it
    """

    def __init__(self, reader: VolumeReader, convolution: Convolution, team: Team) -> None:
        self.reader, self.convolution, self.path = reader, convolution, reader.path
        self.team, self.step = team, convolution.plan.depth_step
        source, problem = reader.header, convolution.problem
        shape = Shape(*problem.out_size, convolution.channels_out)
        self.header = VolumeHeader(
            derived_header(source, shape, convolution.plan.dtype).axes,
            convolution.plan.dtype,
            grid_after(source.grid, problem),
            format=source.format,
            metadata=source.metadata,
            transform=source.transform.then(problem.voxel_transform),
        )
        self._source: SlabSource | None = None

    def _begin(self, n: int) -> None:
        all_channels = slice(0, self.reader.header.shape[4])
        self._source = SlabSource(self.reader, n, all_channels, self.convolution.problem)

    def _compute(self, n: int, start: int, stop: int) -> Array:
        assert self._source is not None
        _, _, height, width, count = self.header.shape
        slab = self._source.read(start, stop)
        out = np.empty((stop - start, height, width, count), self.header.dtype)
        outputs = slice(0, self.convolution.problem.filters)
        self.convolution.convolve(slab, out, self.team, self.reader.header.scale, outputs)
        del slab
        self._source.release(stop)
        self._source.shrink(stop)
        return out

    def finish(self) -> None:
        self.reader.finish()


def derived_header(source: VolumeHeader, shape: Shape, dtype: np.dtype[Any]) -> VolumeHeader:
    """The header of a volume that is computed from another and never written.

    All channels of a plane are computed together, so they are stored together as well.
    """
    letters = source.axes.batch_letters + "zyxc"
    sizes = {**dict(zip("zyx", shape.size, strict=True)), "c": shape.channels}
    return VolumeHeader(source.axes.renamed(letters, sizes), dtype, format=source.format)


class _Planes:
    """The planes of an input that an operation holds, of the arithmetic's dtype."""

    def __init__(self, reader: VolumeReader, real: np.dtype[Any]) -> None:
        self.reader, self.real = reader, real
        self._kept: Array | None = None
        self._start = 0

    def forget(self) -> None:
        self._kept, self._start = None, 0

    def read(self, n: int, start: int, stop: int) -> Array:
        """Planes start to stop - 1, of which some may be kept; neither ever falls."""
        pieces: list[Array] = []
        have = start
        if self._kept is not None and (end := self._start + len(self._kept)) > start:
            pieces, have = [self._kept[start - self._start : stop - self._start]], min(end, stop)
        if stop > have:
            header = self.reader.header
            block = self.reader.read(n, slice(have, stop), slice(0, header.shape[4]))
            pieces.append(real_values(block, header.scale, self.real))
            del block
        planes = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if self._kept is None or stop > self._start + len(self._kept):
            self._kept, self._start = planes, start
        return planes

    def drop(self, start: int) -> None:
        """Let go of the planes before `start`."""
        if self._kept is None:
            return
        left = self._kept[max(0, start - self._start) :]
        self._start = max(start, self._start)
        self._kept = shrunk(left, self._kept) if len(left) else None


def real_values(block: Array, scale: tuple[float, float], real: np.dtype[Any]) -> Array:
    """Stored voxels as values of the arithmetic's dtype; those that are such are not copied."""
    if scale != (1.0, 0.0):
        return (block.astype(np.float64) * scale[0] + scale[1]).astype(real)
    return block if block.dtype == real else block.astype(real)


class OperationReader(ComputedReader):
    """The output of an operation other than a convolution.

    readers : of its inputs, in order; the caller closes them
    """

    def __init__(self, readers: list[VolumeReader], node: OperationNode, team: Team) -> None:
        self.readers, self.operation, self.team = readers, node.operation, team
        self.path, self.step = readers[0].path, node.step
        self.header = derived_header(readers[0].header, node.operation.shape, node.real)
        self._inputs = [_Planes(reader, node.real) for reader in readers]

    def _begin(self, n: int) -> None:
        for planes in self._inputs:
            planes.forget()

    def _compute(self, n: int, start: int, stop: int) -> Array:
        operation = self.operation
        windows = []
        for number, planes in enumerate(self._inputs):
            first, last = operation.span(number, 0, (start, stop))
            windows.append(Window(planes.read(n, first, last), (first, 0, 0)))
        size, height, width, count = self.header.shape[1:]
        out = np.empty((stop - start, height, width, count), self.header.dtype)
        if operation.channels_apart:
            apart = np.empty((stop - start, count, height, width), self.header.dtype)
            out = apart.transpose(0, 2, 3, 1)
        operation.compute(windows, Box((start, stop), (0, height), (0, width)), out, self.team)
        windows.clear()
        for number, planes in enumerate(self._inputs):
            more = stop < size
            needed = operation.span(number, 0, (stop, stop + 1))[0] if more else size
            planes.drop(needed if more else planes.reader.header.shape[1])
        return out

    def finish(self) -> None:
        for reader in self.readers:
            reader.finish()


class WholeReader(VolumeReader):
    """The output of an operation on the whole volume, which takes it in a few planes at a time."""

    sequential = True

    def __init__(self, reader: VolumeReader, node: OperationNode, team: Team) -> None:
        self.reader, self.operation, self.team = reader, node.operation, team
        self.path = reader.path
        self.header = derived_header(reader.header, node.operation.shape, node.real)
        self._n, self._result = -1, np.empty(0)

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if n != self._n:
            self._n, self._result = n, self._gather(n)
        return self._result[depth, ..., channels]

    def _gather(self, n: int) -> Array:
        header = self.reader.header
        gathered = self.operation.begin()
        for start in range(0, header.shape[1], WHOLE_PLANES):
            stop = min(start + WHOLE_PLANES, header.shape[1])
            block = self.reader.read(n, slice(start, stop), slice(0, header.shape[4]))
            gathered = self.operation.gather(
                gathered, real_values(block, header.scale, self.header.dtype), self.team
            )
        return self.operation.result(gathered).astype(self.header.dtype)

    def finish(self) -> None:
        self.reader.finish()


class IteratedReader(VolumeReader):
    """The output of an operation that iterates: its volumes are in memory, or in temporary files.

    beside : str or None    see `spool_reader`
    """

    sequential = False

    def __init__(
        self, reader: VolumeReader, node: OperationNode, team: Team, beside: str | None
    ) -> None:
        self.reader, self.operation, self.team = reader, node.operation, team
        self.path, self.beside = reader.path, beside
        self.header = derived_header(reader.header, node.operation.shape, node.real)
        self._n, self._fields = -1, list[Field]()

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if n != self._n:
            self._forget()
            self._n, self._fields = n, self._iterate(n)
        found = [field.read(depth.start, depth.stop) for field in self._fields[channels]]
        return found[0][..., None] if len(found) == 1 else np.stack(found, axis=3)

    def _iterate(self, n: int) -> list[Field]:
        operation, header, real = self.operation, self.reader.header, self.header.dtype
        where = f"temporary files in {temporary_folder(self.beside)}"

        def read(start: int, stop: int) -> Array:
            block = self.reader.read(n, slice(start, stop), slice(0, header.shape[4]))
            self.reader.release(n, start)
            return real_values(block, header.scale, real)

        def new() -> Field:
            size = operation.shape.size
            if not operation.on_disk:
                return Field(np.zeros(size, real))
            file = unnamed_file(self.beside)  # the field closes it
            reserve_space(file, math.prod(size) * real.itemsize)
            return FileField(file, size, real)

        def told(channel: int, number: int, field: Field) -> None:
            if operation.watch is not None:
                operation.watch(n, channel, number, field)

        with write_errors(where):
            return operation.iterate(read, new, real, self.team, told)

    def _forget(self) -> None:
        for field in self._fields:
            field.close()
        self._fields = []

    def finish(self) -> None:
        self._forget()
        self.reader.finish()


class Tee:
    """Gives one reader to several nodes, each of which reads it forward."""

    def __init__(self, reader: VolumeReader, count: int) -> None:
        self.reader = reader
        self.branches = [Branch(self, number) for number in range(count)]
        self._positions = [0] * count
        self._blocks: list[tuple[int, Array]] = []  # first plane and planes, in order
        self._stop = 0  # planes read so far
        self._n = -1

    def read(self, number: int, n: int, depth: slice) -> Array:
        """Planes for one branch, with all channels."""
        if n != self._n:
            self._n, self._blocks, self._stop = n, [], 0
            self._positions = [0] * len(self._positions)
        if depth.stop > self._stop:
            first = max(self._stop, min(depth.start, *self._others(number)))
            block = self.reader.read(
                n, slice(first, depth.stop), slice(0, self.reader.header.shape[4])
            )
            self._blocks.append((first, block))
            self._stop = depth.stop
        pieces = [
            block[max(depth.start - first, 0) : depth.stop - first]
            for first, block in self._blocks
            if first < depth.stop and first + len(block) > depth.start
        ]
        planes = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._positions[number] = max(self._positions[number], depth.stop)
        lowest = min(self._positions)
        self._blocks = [
            (first, block) for first, block in self._blocks if first + len(block) > lowest
        ]
        return planes

    def _others(self, number: int) -> list[int]:
        return [p for other, p in enumerate(self._positions) if other != number] or [self._stop]


class Branch(VolumeReader):
    """One of the readers that a `Tee` gives; planes are read forward only."""

    sequential = True

    def __init__(self, tee: Tee, number: int) -> None:
        self.tee, self.number = tee, number
        self.header, self.path = tee.reader.header, tee.reader.path

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        return self.tee.read(self.number, n, depth)[..., channels]

    def finish(self) -> None:
        self.tee.reader.finish()


def reader_of_last(
    graph: Graph,
    reader: VolumeReader,
    team: Team,
    stack: ExitStack,
    spooled: Collection[int] = (),
    spooled_inputs: Collection[int] = (),
    beside: str | None = None,
) -> VolumeReader:
    """The reader of the last node's input, which computes all nodes before it.

    reader : VolumeReader           of the volume
    stack : ExitStack               closes the temporary files
    spooled : collection            nodes, or `VOLUME`, whose output goes into a temporary file,
                                    since those that take it read it at different times
    spooled_inputs : collection     nodes whose input goes into a temporary file
    beside : str or None            see `spool_reader`
    """
    ready: dict[int, list[VolumeReader]] = {}  # readers that are left for the nodes that take it

    def provide(source: int, own: VolumeReader) -> None:
        count = len(graph.consumers[source])
        if source in spooled and own.sequential:
            own = stack.enter_context(spool_reader(own, beside))
        if count > 1 and source not in spooled:
            ready[source] = list(Tee(own, count).branches)
        else:
            ready[source] = [own] * count

    provide(VOLUME, reader)
    for position, node in enumerate(graph.nodes):
        taken = [ready[source].pop(0) for source in node.inputs]
        if position in spooled_inputs:
            taken = [stack.enter_context(spool_reader(one, beside)) for one in taken]
        if position == len(graph.nodes) - 1:
            return taken[0]
        if isinstance(node, ConvolutionNode):
            provide(position, LayerReader(taken[0], node.convolution, team))
        else:
            provide(position, _reader_of(node, taken, team, beside))
    raise AssertionError("a graph ends with a convolution")


def _reader_of(
    node: GraphNode, taken: list[VolumeReader], team: Team, beside: str | None
) -> VolumeReader:
    """The reader of an operation other than a convolution."""
    if isinstance(node, PatchedNode):
        from conv3d_cli.pipeline.patches import PatchReader  # few jobs have patches

        return PatchReader(taken[0], node, team, beside)
    assert isinstance(node, OperationNode)
    if node.operation.iterates:
        return IteratedReader(taken[0], node, team, beside)
    if node.operation.needs_whole:
        return WholeReader(taken[0], node, team)
    return OperationReader(taken, node, team)


def whole_nodes(graph: Graph) -> list[str]:
    """The names of the network's nodes that need their whole input before their first output."""
    return [
        node.operation.node.name.removesuffix(GATHERING)
        for node in graph.nodes
        if isinstance(node, OperationNode) and node.operation.needs_whole
    ]
