"""Count the planes and bytes that the readers of a graph hold, by a run without voxels.

Each class here does what its namesake in `flow.py` or `convolution/slabs.py` does to planes, and
only counts them. What is alive at the same time is added up, and the largest sum is the forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from conv3d_cli.convolution.slabs import SHRINKS, first_needed
from conv3d_cli.formats.passes import MOST_PLANES
from conv3d_cli.pipeline.flow import WHOLE_PLANES
from conv3d_cli.pipeline.graph import VOLUME, ConvolutionNode, Graph, OperationNode, PatchedNode


@dataclass
class Held:
    """What the readers of a graph hold at most.

    windows : int           bytes of the input window of the last node
    layers : int            bytes of all else but `skips`, when the sum of all is largest
    skips : int             bytes that wait for the slowest of several nodes, at that time
    computed : list of int  output planes that each node computes at once, at most
    read : int              planes of the volume that are read at once, at most
    most : dict             node, or `VOLUME` -> planes that wait for the slowest reader, at most
    gathered : set          nodes, or `VOLUME`, whose planes an operation on the whole volume takes
                            to the last before others take theirs
    window_planes : list of int     input planes that each node has at once, at most
    """

    windows: int = 0
    layers: int = 0
    skips: int = 0
    computed: list[int] = field(default_factory=list)
    read: int = 0
    most: dict[int, int] = field(default_factory=dict)
    gathered: set[int] = field(default_factory=set)
    window_planes: list[int] = field(default_factory=list)


def count_held(graph: Graph, volume_plane: int, depth: int, spooled: Collection[int] = ()) -> Held:
    """What the readers hold while slabs of `depth` planes are written.

    volume_plane : int      bytes of a plane of the volume
    spooled : collection    see `flow.reader_of_last`
    """
    count = _Count(graph, volume_plane, spooled)
    count.run(depth)
    return count.held


def nodes_to_spool(graph: Graph) -> frozenset[int]:
    """The nodes, or `VOLUME`, whose output goes into a temporary file.

    Where several nodes take a volume, and one of them needs all of it before another takes its
    first plane, it would be held in memory as a whole.
    """
    if not graph.needs_whole:
        return frozenset()
    sure, spooled = _waited_for(graph), frozenset[int]()
    while True:
        found = count_held(graph, 1, 1, spooled).gathered - spooled
        if not found:
            return spooled
        # what comes after the first may be taken in time then, unless it waits in any case
        spooled |= {min(found)} | (found & sure)


def _waited_for(graph: Graph) -> set[int]:
    """Nodes, or `VOLUME`, that a node takes together with what all of their planes go into."""
    # sets of nodes as bits, since a network may have thousands
    before, whole = {VOLUME: 1}, {VOLUME: 0}
    found = set()
    for position, node in enumerate(graph.nodes):
        before[position], whole[position] = 1 << (position + 1), 0
        for source in node.inputs:
            before[position] |= before[source]
            whole[position] |= whole[source]
        found |= {one for one in node.inputs if whole[position] >> (one + 1) & 1}
        if isinstance(node, OperationNode) and node.operation.needs_whole:
            whole[position] |= before[position]
    return found


class _Count:
    """A run of a graph, in planes and bytes."""

    def __init__(self, graph: Graph, volume_plane: int, spooled: Collection[int]) -> None:
        self.graph, self.spooled, self.volume_plane = graph, frozenset(spooled), volume_plane
        nodes = graph.nodes
        self.held = Held(computed=[0] * len(nodes), window_planes=[0] * len(nodes))
        self.kept = 0  # bytes that readers keep between requests, without those of tees
        self.passing = 0  # bytes that requests under way hold
        self.waiting = 0  # bytes in tees
        self.plane = {VOLUME: volume_plane}
        self.depth = max(
            (_depth_taken(graph, consumer) for consumer in graph.consumers[VOLUME]), default=0
        )
        for position, node in enumerate(nodes):
            self.plane[position] = int(np.prod(node.size[1:])) * node.channels * node.dtype.itemsize
        self.windows = [
            [_Window(self, position, number, source) for number, source in enumerate(node.inputs)]
            for position, node in enumerate(nodes)
        ]
        self.requests: dict[tuple[int, int], Callable[[int, int], None]] = {}
        self.tees: list[_Tee] = []
        for source, consumers in graph.consumers.items():
            whole = self._computer(source)
            tee = _Tee(self, source, whole, len(consumers))
            many = len(consumers) > 1 and source not in self.spooled
            self.tees += [tee] if many else []
            for number, consumer in enumerate(consumers):
                self.requests[consumer] = tee.reader(number) if many else whole

    def run(self, depth: int) -> None:
        """Let the last node's slabs be read, one ahead of the one that is computed."""
        nodes = self.graph.nodes
        for position in sorted(self.spooled - {VOLUME}):
            size = nodes[position].size[0]
            for start in range(0, size, MOST_PLANES):
                with self.pass_by(MOST_PLANES * self.plane[position]):
                    self._compute(position, start, min(start + MOST_PLANES, size))
        last = len(nodes) - 1
        window, size = self.windows[last][0], nodes[last].size[0]
        for start in range(0, size, depth):
            stop = min(start + depth, size)
            with self.pass_by(window.bytes):  # the slab that is being computed meanwhile
                self.kept -= window.bytes
                self.held.computed[last] = max(self.held.computed[last], stop - start)
                held = window.bytes
                window.read(*nodes[last].planes(0, start, stop), from_slab=held)
            self.held.windows = max(self.held.windows, window.bytes)

    def look(self) -> None:
        """Remember the bytes if they are more than ever."""
        own = self.kept + self.passing
        if own + self.waiting > self.held.layers + self.held.skips:
            self.held.layers, self.held.skips = own, self.waiting

    @contextmanager
    def pass_by(self, count: int) -> Iterator[None]:
        """In the body, a request holds so many bytes."""
        self.passing += count
        self.look()
        try:
            yield
        finally:
            self.passing -= count

    def _computer(self, source: int) -> Callable[[int, int], None]:
        """What happens when planes of a node are requested of its own reader."""
        if source == VOLUME:
            return self._read_volume
        if source in self.spooled:
            return lambda start, stop: None
        return lambda start, stop: self._compute(source, start, stop)

    def _read_volume(self, start: int, stop: int) -> None:
        self.held.read = max(self.held.read, stop - start)

    def _compute(self, position: int, start: int, stop: int) -> None:
        node = self.graph.nodes[position]
        if isinstance(node, ConvolutionNode):
            self._layer(position, node, start, stop)
        elif isinstance(node, PatchedNode):
            self._patches(position, node, start, stop)
        else:
            assert isinstance(node, OperationNode)
            self._operation(position, node, start, stop)

    def _layer(self, position: int, node: ConvolutionNode, start: int, stop: int) -> None:
        """See `LayerReader`."""
        (window,) = self.windows[position]
        problem, size, plane = node.convolution.problem, node.size[0], self.plane[position]

        def compute(first: int, last: int) -> None:
            window.read(*node.planes(0, first, last))
            self.held.computed[position] = max(self.held.computed[position], last - first)
            more = sum(node.convolution.memory(window.planes, last - first).values())
            with self.pass_by((last - first) * plane + more):
                if last == size:
                    window.drop_all()
                else:
                    window.shrink(first_needed(problem)[last])

        self._steps(position, start, stop, compute)

    def _steps(
        self, position: int, start: int, stop: int, compute: Callable[[int, int], None]
    ) -> None:
        """See `flow._ComputedReader`."""
        node, plane = self.graph.nodes[position], self.plane[position]
        step, size, window = node.step, node.size[0], self.windows[position][0]
        # planes start to window.computed - 1 are the surplus of the last request
        left = max(0, window.computed - start)
        if left < stop - start:
            first = max(start, window.computed)
            first, last = first - first % step, min(-(-stop // step) * step, size)
            compute(first, last)
            surplus = max(0, last - stop)
            with self.pass_by((last - first + left + surplus) * plane):
                pass
            self.kept += (surplus - window.surplus) * plane
            window.surplus, window.computed = surplus, last

    def _operation(self, position: int, node: OperationNode, start: int, stop: int) -> None:
        """See `OperationReader`, `WholeReader` and `IteratedReader`."""
        operation, size = node.operation, node.size[0]
        windows = self.windows[position]
        if operation.needs_whole:
            whole = operation.inputs[0].depth
            if not windows[0].computed:
                windows[0].computed = whole
                if operation.iterates:
                    threads = self.graph.last.plan.threads
                    self.kept += operation.held_bytes(node.real, threads, operation.on_disk)
                    self.look()
                for first in range(0, whole, WHOLE_PLANES):
                    last = min(first + WHOLE_PLANES, whole)
                    self.requests[position, 0](first, last)
                    with self.pass_by(2 * (last - first) * windows[0].plane):
                        pass
                self.held.gathered |= {tee.source for tee in self.tees if tee.is_behind}
            if operation.iterates:
                self.held.computed[position] = max(self.held.computed[position], stop - start)
                with self.pass_by(2 * (stop - start) * self.plane[position]):
                    pass
            return

        def compute(first: int, last: int) -> None:
            for number, window in enumerate(windows):
                window.read(*operation.span(number, 0, (first, last)))
            self.held.computed[position] = max(self.held.computed[position], last - first)
            with self.pass_by((last - first) * self.plane[position]):
                for number, window in enumerate(windows):
                    if last < size:
                        window.shrink(operation.span(number, 0, (last, last + 1))[0])
                    else:
                        window.drop_all()

        self._steps(position, start, stop, compute)

    def _patches(self, position: int, node: PatchedNode, start: int, stop: int) -> None:
        """See `flow.PatchReader`; what it keeps does not depend on requests."""
        (window,) = self.windows[position]
        _, last = node.planes(0, start, stop)
        for first in range(window.computed, last, MOST_PLANES):
            until = min(first + MOST_PLANES, last)
            self.requests[position, 0](first, until)
            with self.pass_by(2 * (until - first) * window.plane):
                pass
        window.computed = max(window.computed, last)
        self.held.computed[position] = max(self.held.computed[position], stop - start)
        with self.pass_by(2 * (stop - start) * self.plane[position]):
            pass


def _depth_taken(graph: Graph, consumer: tuple[int, int]) -> int:
    """The depth of what a node takes: the planes of an input up to the last that it needs."""
    position, number = consumer
    node = graph.nodes[position]
    return node.planes(number, 0, node.size[0])[1]


class _Window:
    """The planes of an input that a reader keeps: see `SlabSource` and `flow._Planes`."""

    def __init__(self, count: _Count, position: int, number: int, source: int) -> None:
        self.count, self.position, self.number = count, position, number
        self.plane = count.plane[source]  # bytes
        self.start = self.stop = 0
        self.block = 0  # planes of the array that the kept ones are a part of
        self.surplus = self.computed = 0  # of the planes of its node

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return self.block * self.plane

    @property
    def planes(self) -> int:
        """Planes that are kept."""
        return self.stop - self.start

    def read(self, start: int, stop: int, from_slab: int = 0) -> None:
        """Get planes start to stop - 1.

        from_slab : int     bytes of the kept planes that something else holds, too
        """
        count, position = self.count, self.position
        have = max(start, self.stop) if self.planes else start
        before = self.bytes - from_slab
        if stop > have:
            count.requests[position, self.number](have, stop)
            new = (stop - have) * self.plane
            joins = self.planes > 0 and self.stop > start
            with count.pass_by(new + ((stop - start) * self.plane if joins else 0)):
                pass
            count.kept += (stop - start) * self.plane - before
            self.start, self.stop, self.block = start, stop, stop - start
        else:
            count.kept += from_slab
        most = count.held.window_planes
        most[position] = max(most[position], stop - start)
        count.look()

    def shrink(self, start: int) -> None:
        """Let go of the planes before `start`; see `slabs.shrunk`."""
        first = max(start, self.start)
        left = max(0, self.stop - first)
        block = left if SHRINKS * left <= self.block else self.block
        self.count.kept -= (self.block - block) * self.plane
        self.start, self.block = first, block
        if not left:
            self.stop = self.start

    def drop_all(self) -> None:
        """Let go of all planes; a new volume of the batch begins with none."""
        self.count.kept -= self.bytes
        self.start = self.stop
        self.block = 0


class _Tee:
    """The planes that wait for the slowest of several nodes: see `flow.Tee`."""

    def __init__(
        self, count: _Count, source: int, whole: Callable[[int, int], None], branches: int
    ) -> None:
        self.count, self.source, self.whole = count, source, whole
        self.positions = [0] * branches
        self.blocks: list[tuple[int, int]] = []
        self.stop = 0

    @property
    def is_behind(self) -> bool:
        """Whether planes wait for the slowest, and the fastest has read the last one."""
        nodes = self.count.graph.nodes
        depth = self.count.depth if self.source == VOLUME else nodes[self.source].size[0]
        return max(self.positions) == depth > min(self.positions)

    def reader(self, number: int) -> Callable[[int, int], None]:
        """What a request of one branch does."""

        def read(start: int, stop: int) -> None:
            others = [p for other, p in enumerate(self.positions) if other != number]
            plane = self.count.plane[self.source]
            if stop > self.stop:
                first = max(self.stop, min(start, *others))
                self.whole(first, stop)
                self.blocks.append((first, stop))
                self.stop = stop
                self.count.waiting += (stop - first) * plane
                self.count.look()
            self.positions[number] = max(self.positions[number], stop)
            lowest = min(self.positions)
            most = self.count.held.most
            most[self.source] = max(
                most.get(self.source, 0), sum(b - a for a, b in self.blocks if b > lowest)
            )
            kept = [(a, b) for a, b in self.blocks if b > lowest]
            self.count.waiting -= plane * (
                sum(b - a for a, b in self.blocks) - sum(b - a for a, b in kept)
            )
            self.blocks = kept

        return read
