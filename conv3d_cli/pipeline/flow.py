"""The graph of a job as readers: every node is a volume whose planes are computed on request.

All of them are read forward only. A `LayerReader` computes a convolution, an `OperationReader`
another operation, from the readers of their inputs, so each keeps only the planes that its next
outputs need. A `Tee` gives one reader to several nodes: it keeps the planes that the fastest has
read and the slowest has not. A `PatchReader` runs a graph of its own in patches. `held.py` counts
what all of them hold.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.losses import Rounding
from conv3d_cli.convolution.slabs import (
    HeldPlanes,
    RingPlanes,
    SlabInput,
    SlabSource,
    Steps,
    first_needed,
)
from conv3d_cli.engine.fields import Field, FileField
from conv3d_cli.formats.base import reserve_space, spool_reader
from conv3d_cli.formats.passes import MOST_PLANES
from conv3d_cli.model.box import Box
from conv3d_cli.model.grid import grid_after
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, ArrayReader, ArrayWriter, VolumeHeader, VolumeReader
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
from conv3d_cli.pipeline.stream import stream
from conv3d_cli.system.atomic import write_errors
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

if TYPE_CHECKING:
    from conv3d_cli.engine import Team

# Planes that an operation on the whole volume reads at once.
WHOLE_PLANES = 8


class _ComputedReader(VolumeReader):
    """A node's output as a volume to read: planes are computed on request, forward only.

    node : GraphNode    says how many planes are computed together and at once
    team : Team
    """

    sequential = True
    header: VolumeHeader
    node: GraphNode
    team: Team
    _n: int | None = None
    # the planes of the last step, some of them beyond the last request
    _step: Array | None = None
    _first = _computed = 0

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        planes = self.empty(depth.stop - depth.start)
        self.read_into(n, depth, planes)
        return planes[..., channels]

    def read_into(self, n: int, depth: slice, out: Array) -> None:
        self._begin_once(n)
        start, stop = depth.start, depth.stop
        while start < stop:
            if start < self._computed:
                assert self._step is not None
                end = min(stop, self._computed)
                part = self._step[start - self._first : end - self._first]
                out[start - depth.start : end - depth.start] = part
                start = end
                continue
            first, last = self.node.next_call(start, stop, self.team.threads)
            if first == start and last <= stop:
                self._compute(n, first, last, out[first - depth.start : last - depth.start])
                start = last
                continue
            if self._step is None:
                self._step = self.empty(self.node.step)
            self._compute(n, first, last, self._step[: last - first])
            self._first, self._computed = first, last

    def _begin_once(self, n: int) -> None:
        if n != self._n:
            self._n = n
            self._begin(n)
            self._step, self._first, self._computed = None, 0, 0

    def _begin(self, n: int) -> None:
        """Prepare for another volume."""
        raise NotImplementedError

    def _compute(self, n: int, start: int, stop: int, out: Array) -> None:
        """Fill `out` (d, H, W, C) with planes start to stop - 1."""
        raise NotImplementedError


def _steps_of(reader: VolumeReader) -> Steps:
    """Which planes of a reader are computed together."""
    step = reader.node.step if isinstance(reader, _ComputedReader) else 1
    return Steps(reader.header.shape[1], step)


class LayerReader(_ComputedReader):
    """A convolution's output.

    reader : VolumeReader       the convolution's input; the caller closes it
    """

    def __init__(self, reader: VolumeReader, node: ConvolutionNode, team: Team) -> None:
        self.reader, self.convolution, self.path = reader, node.convolution, reader.path
        self.team, self.node, convolution = team, node, node.convolution
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
        self._source: SlabSource | RingPlanes | None = None

    def _begin(self, n: int) -> None:
        reader, node = self.reader, self.node
        assert isinstance(node, ConvolutionNode)
        if not reader.sequential:
            all_channels = slice(0, reader.header.shape[4])
            self._source = SlabSource(reader, n, all_channels, self.convolution.problem)
            return
        steps = _steps_of(reader)
        planes = node.ring(steps.step, self.team.threads)
        self._source = None  # its memory is free for the next
        self._source = RingPlanes(reader.empty, partial(reader.read_into, n), steps, planes)

    def _compute(self, n: int, start: int, stop: int, out: Array) -> None:
        problem = self.convolution.problem
        slab = self._input(start, stop)
        outputs = slice(0, problem.filters)
        self.convolution.convolve(slab, out, self.team, self.reader.header.scale, outputs)
        needed = first_needed(problem)
        self.reader.release(n, needed[stop] if stop < len(needed) else problem.in_size[0])
        if stop == self.header.shape[1]:
            self._source = None

    def _input(self, start: int, stop: int) -> SlabInput:
        """The input of output planes start to stop - 1."""
        assert self._source is not None
        if isinstance(self._source, SlabSource):
            return self._source.read(start, stop)
        ring = self._source.read(*self.node.planes(0, start, stop))
        planes = self.convolution.problem.source_indices(0, start, stop)
        return SlabInput(ring, [p % len(ring) if p >= 0 else -1 for p in planes], start=start)

    def finish(self) -> None:
        self.reader.finish()


def derived_header(source: VolumeHeader, shape: Shape, dtype: np.dtype[Any]) -> VolumeHeader:
    """The header of a volume that is computed from another and never written.

    All channels of a plane are computed together, so they are stored together as well.
    """
    letters = source.axes.batch_letters + "zyxc"
    sizes = {**dict(zip("zyx", shape.size, strict=True)), "c": shape.channels}
    return VolumeHeader(source.axes.renamed(letters, sizes), dtype, format=source.format)


class _Views:
    """The planes of an input in memory, which are read again; as `HeldPlanes`."""

    def __init__(
        self, reader: VolumeReader, n: int, real: np.dtype[Any], rounding: Rounding
    ) -> None:
        self.reader, self.n, self.real, self.rounding = reader, n, real, rounding

    def read(self, start: int, stop: int) -> Array:
        header = self.reader.header
        block = self.reader.read(self.n, slice(start, stop), slice(0, header.shape[4]))
        return self.rounding.values(block, header.scale, self.real)

    def forget(self) -> None:
        """Hold no planes."""


class OperationReader(_ComputedReader):
    """The output of an operation other than a convolution.

    readers : of its inputs, in order; the caller closes them
    """

    def __init__(self, readers: list[VolumeReader], node: OperationNode, team: Team) -> None:
        self.readers, self.operation, self.team = readers, node.operation, team
        self.path, self.node, self.rounding = readers[0].path, node, node.rounding
        self.header = derived_header(readers[0].header, node.operation.shape, node.real)
        self._inputs: list[HeldPlanes | _Views] = []

    def empty(self, planes: int) -> Array:
        if not self.operation.channels_apart:
            return super().empty(planes)
        height, width, count = self.header.shape[2:]
        apart = np.empty((planes, count, height, width), self.header.dtype)
        return apart.transpose(0, 2, 3, 1)

    def _begin(self, n: int) -> None:
        real = self.header.dtype
        self._inputs = [
            _Views(reader, n, real, self.rounding)
            if reader.in_memory
            else HeldPlanes(
                partial(_room, reader, real),
                partial(_fill, reader, self.rounding, n),
                _steps_of(reader),
            )
            for reader in self.readers
        ]

    def read_at_once(self, n: int, depth: slice, out: Array) -> None:
        self._begin_once(n)
        self._compute(n, depth.start, depth.stop, out)

    def _compute(self, n: int, start: int, stop: int, out: Array) -> None:
        operation, (height, width) = self.operation, self.header.shape[2:4]
        if places := operation.places:
            for reader, channels in zip(self.readers, places, strict=True):
                _fill(reader, self.rounding, n, slice(start, stop), out[..., channels])
            return
        windows = []
        for number, planes in enumerate(self._inputs):
            first, last = operation.span(number, 0, (start, stop))
            windows.append(Window(planes.read(first, last), (first, 0, 0)))
        target = out if operation.takes(out) else self.empty(stop - start)
        operation.compute(windows, Box((start, stop), (0, height), (0, width)), target, self.team)
        if target is not out:
            out[...] = target
        if stop == self.header.shape[1]:
            windows.clear()
            for planes in self._inputs:
                planes.forget()

    def finish(self) -> None:
        for reader in self.readers:
            reader.finish()


def _room(reader: VolumeReader, real: np.dtype[Any], planes: int) -> Array:
    """An uninitialised array for `_fill`, of the arithmetic's dtype."""
    stored = reader.header.dtype
    return (
        reader.empty(planes)
        if stored == real
        else np.empty((planes, *reader.header.shape[2:]), real)
    )


def _fill(reader: VolumeReader, rounding: Rounding, n: int, depth: slice, out: Array) -> None:
    """Fill `out` with the values of planes."""
    header = reader.header
    if header.dtype == out.dtype and header.scale == (1.0, 0.0):
        reader.read_into(n, depth, out)
    else:
        out[...] = rounding.values(
            reader.read(n, depth, slice(0, header.shape[4])), header.scale, out.dtype
        )


class WholeReader(VolumeReader):
    """The output of an operation on the whole volume, which takes it in a few planes at a time."""

    sequential = True

    def __init__(self, reader: VolumeReader, node: OperationNode, team: Team) -> None:
        self.reader, self.operation, self.team = reader, node.operation, team
        self.path, self.rounding = reader.path, node.rounding
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
                gathered, self.rounding.values(block, header.scale, self.header.dtype), self.team
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
        self.path, self.beside, self.rounding = reader.path, beside, node.rounding
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
            return self.rounding.values(block, header.scale, real)

        def new() -> Field:
            size = operation.shape.size
            if not operation.on_disk:
                return Field(np.zeros(size, real))
            file = unnamed_file(self.beside)  # the field closes it
            reserve_space(file, math.prod(size) * real.itemsize)
            return FileField(file, size, real)

        def told(channel: int, number: int, field: Field, data: Field) -> None:
            if operation.watch is not None:
                operation.watch(n, channel, number, field, data)

        with write_errors(where):
            return operation.iterate(read, new, real, self.team, told)

    def _forget(self) -> None:
        for field in self._fields:
            field.close()
        self._fields = []

    def finish(self) -> None:
        self._forget()
        self.reader.finish()


class PatchReader(_ComputedReader):
    """The blended outputs of patches.

    beside : str or None    see `spool_reader`
    """

    def __init__(
        self, reader: VolumeReader, node: PatchedNode, team: Team, beside: str | None
    ) -> None:
        self.reader, self.node, self.layout, self.body = reader, node, node.layout, node.body
        self.team, self.beside, self.path = team, beside, reader.path
        shape = Shape(*node.size, node.channels)
        self.header = derived_header(reader.header, shape, node.dtype)
        self._inputs: _Ring | None = None
        self._sums: _Ring | None = None

    def _begin(self, n: int) -> None:
        self._forget()
        depth = min(self.layout.size[0], self.layout.patch[0])
        plane = self.layout.size[1:]
        self._inputs = self._ring(depth, plane, self.reader.header.shape[4])
        self._sums = self._ring(depth, plane, self.header.shape[4])
        self._row = 0  # the next row of patches
        self._read = 0  # planes of the volume that were read
        self._cleared = 0  # planes whose sums were begun

    def _ring(self, depth: int, plane: tuple[int, ...], channels: int) -> _Ring:
        size = (depth, plane[0], plane[1] * channels)
        real = self.header.dtype
        with self._errors():
            if not self.body.on_disk:
                return _Ring(Field(np.zeros(size, real)), size, channels)
            file = unnamed_file(self.beside)  # the field closes it
            reserve_space(file, math.prod(size) * real.itemsize)
            return _Ring(FileField(file, size, real), size, channels)

    def _errors(self) -> write_errors:
        return write_errors(f"temporary files in {temporary_folder(self.beside)}")

    def _compute(self, n: int, start: int, stop: int, out: Array) -> None:
        assert self._sums is not None
        starts, size = self.layout.starts(0), self.layout.size[0]
        done = start
        while done < stop:
            while self._row < len(starts) and starts[self._row] <= done:
                with self._errors():
                    self._add_row(n, starts[self._row])
                self._row += 1
            known = starts[self._row] if self._row < len(starts) else size
            known = min(known, stop)
            self._finish(done, out[done - start : known - start])
            done = known

    def _add_row(self, n: int, depth: int) -> None:
        """Add the outputs of the patches that begin at a depth."""
        assert self._inputs is not None
        assert self._sums is not None
        layout = self.layout
        last = min(layout.size[0], depth + layout.patch[0])
        for start in range(self._read, last, MOST_PLANES):
            stop = min(start + MOST_PLANES, last)
            header = self.reader.header
            block = self.reader.read(n, slice(start, stop), slice(0, header.shape[4]))
            values = self.node.rounding.values(block, header.scale, self.header.dtype)
            self._inputs.store(start, values)
            self.reader.release(n, start)
        self._read = last
        for plane in range(self._cleared, last):
            self._sums.clear(plane)
        self._cleared = last
        for height in layout.starts(1):
            for width in layout.starts(2):
                self._add_patch((depth, height, width))

    def _add_patch(self, starts: Triple) -> None:
        """Add the output of a patch, times its weights."""
        layout, sums = self.layout, self._sums
        assert sums is not None
        found = self._run(self._patch_at(starts))
        inside, own = self._places(starts)

        def add(_: int, d: int) -> None:
            place = own.depth[0] + d
            weights = layout.weights(Box((place, place + 1), *own[1:]))[0]
            weighted = found[place][own.slices[1:]]
            with np.errstate(invalid="ignore", over="ignore"):
                weighted *= weights[..., None].astype(weighted.dtype)
                sums.add(inside.depth[0] + d, inside, weighted)

        self.team.run(inside.size.depth, add)

    def _patch_at(self, starts: Triple) -> Array:
        """The voxels of a patch, (d, h, w, c), with zeros beyond the volume."""
        inputs = self._inputs
        assert inputs is not None
        patch = np.zeros(self.body.source.axes.shape, self.header.dtype)
        inside, own = self._places(starts)

        def fill(_: int, d: int) -> None:
            plane = patch[own.depth[0] + d]
            plane[own.slices[1:]] = inputs.part(inside.depth[0] + d, inside)

        self.team.run(inside.size.depth, fill)
        return patch

    def _places(self, starts: Triple) -> tuple[Box, Box]:
        """The part of a patch in the volume: its place in the volume, and in the patch."""
        inside = self.layout.inside(starts)
        return inside, inside.shift([-start for start in starts])

    def _run(self, patch: Array) -> Array:
        """The output of a patch, (d, h, w, c)."""
        body = self.body
        out = np.empty(body.result.axes.shape, body.result.dtype)
        with ExitStack() as stack:
            reader = reader_of_last(
                body.graph,
                ArrayReader(patch, body.source, self.path),
                self.team,
                stack,
                body.spooled,
                body.spooled_inputs,
                self.beside,
            )
            stream(body.plan, reader, ArrayWriter(out, body.result), self.team, in_turn=True)
        return out

    def _finish(self, start: int, out: Array) -> None:
        """Divide the sums in planes by the sums of weights."""
        sums, layout = self._sums, self.layout
        assert sums is not None
        whole = Box.whole(layout.size)

        def divide(_: int, d: int) -> None:
            total = layout.total(start + d)[..., None]
            with np.errstate(invalid="ignore", over="ignore"):
                np.divide(sums.part(start + d, whole), total, out=out[d], casting="same_kind")

        self.team.run(len(out), divide)

    def _forget(self) -> None:
        for ring in (self._inputs, self._sums):
            if ring is not None:
                ring.field.close()
        self._inputs = self._sums = None

    def finish(self) -> None:
        self._forget()
        self.reader.finish()


class _Ring:
    """Some consecutive planes of a volume: a plane takes the place of one that is done."""

    def __init__(self, field: Field, size: Triple, channels: int) -> None:
        self.field, self.size, self.channels = field, size, channels

    def _place(self, plane: int) -> int:
        return plane % self.size[0]

    def store(self, start: int, planes: Array) -> None:
        """Store planes (d, H, W, c)."""
        for d, plane in enumerate(planes, start):
            self.field.write(self._place(d), plane.reshape(1, len(plane), -1))

    def clear(self, plane: int) -> None:
        """Begin a plane of zeros."""
        _, height, width = self.size
        self.field.write(self._place(plane), np.zeros((1, height, width)))

    def part(self, plane: int, box: Box) -> Array:
        """Rows and columns of a plane, (h, w, c)."""
        return self._columns(self.field.rows(self._place(plane), box.height), box)

    def add(self, plane: int, box: Box, values: Array) -> None:
        """Add values (h, w, c) to rows and columns of a plane."""
        rows = self.field.rows(self._place(plane), box.height)
        self._columns(rows, box)[...] += values
        self.field.put_rows(self._place(plane), box.height, rows)

    def _columns(self, rows: Array, box: Box) -> Array:
        first, last = box.width
        part = rows[:, first * self.channels : last * self.channels]
        return part.reshape(len(rows), last - first, self.channels)


class Tee:
    """Gives one reader to several nodes, each of which reads it forward."""

    def __init__(self, reader: VolumeReader, count: int) -> None:
        self.reader = reader
        self.branches = [Branch(self, number) for number in range(count)]
        self._positions = [0] * count
        self._blocks: list[tuple[int, Array]] = []  # first plane and planes, in order
        self._stop = 0  # planes read so far
        self._n = -1

    def read(self, number: int, n: int, depth: slice) -> list[Array]:
        """Planes for one branch, with all channels, in pieces."""
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
        self._positions[number] = max(self._positions[number], depth.stop)
        lowest = min(self._positions)
        self._blocks = [
            (first, block) for first, block in self._blocks if first + len(block) > lowest
        ]
        return pieces

    def _others(self, number: int) -> list[int]:
        return [p for other, p in enumerate(self._positions) if other != number] or [self._stop]


class Branch(VolumeReader):
    """One of the readers that a `Tee` gives; planes are read forward only."""

    sequential = True

    def __init__(self, tee: Tee, number: int) -> None:
        self.tee, self.number = tee, number
        self.header, self.path = tee.reader.header, tee.reader.path

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        pieces = self.tee.read(self.number, n, depth)
        planes = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return planes[..., channels]

    def read_into(self, n: int, depth: slice, out: Array) -> None:
        start = 0
        for piece in self.tee.read(self.number, n, depth):
            out[start : start + len(piece)] = piece
            start += len(piece)

    def empty(self, planes: int) -> Array:
        return self.tee.reader.empty(planes)

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
        if count > 1 and source not in spooled and not own.in_memory:
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
            provide(position, LayerReader(taken[0], node, team))
        else:
            provide(position, _reader_of(node, taken, team, beside))
    raise AssertionError("a graph ends with a convolution")


def _reader_of(
    node: GraphNode, taken: list[VolumeReader], team: Team, beside: str | None
) -> VolumeReader:
    """The reader of an operation other than a convolution."""
    if isinstance(node, PatchedNode):
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
