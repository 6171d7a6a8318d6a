"""Count the planes and bytes that the readers of a graph hold, by a run without voxels.

Each class here does what its namesake in `flow.py` or `convolution/slabs.py` does to planes, and
only counts them. What is alive at the same time is added up, and the largest sum is the forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from conv3d_cli.convolution.slabs import Steps
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


def count_held(
    graph: Graph,
    volume_plane: int,
    depth: int,
    spooled: Collection[int] = (),
    is_filled: bool = False,
) -> Held:
    """What the readers hold while slabs of `depth` planes are written.

    volume_plane : int      bytes of a plane of the volume
    spooled : collection    see `flow.reader_of_last`
    is_filled : bool        see `StreamPlan`
    """
    count = _Count(graph, volume_plane, spooled)
    count.run(depth, is_filled)
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
        self.threads = graph.last.plan.threads
        self.computed = [0] * len(nodes)  # planes up to here were computed, as steps, or gathered
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

    def run(self, depth: int, is_filled: bool) -> None:
        """Let the last node's slabs be read, one ahead of the one that is computed.

        is_filled : bool    the node before it fills the blocks that are written
        """
        nodes = self.graph.nodes
        for position in sorted(self.spooled - {VOLUME}):
            size = nodes[position].size[0]
            for start in range(0, size, MOST_PLANES):
                with self.pass_by(MOST_PLANES * self.plane[position]):
                    self._compute(position, start, min(start + MOST_PLANES, size))
        last = len(nodes) - 1
        size, plane = nodes[last].size[0], self.plane[nodes[last].inputs[0]]
        computed = held_to = 0  # bytes of the slab that is computed meanwhile, and its last plane
        for start in range(0, size, depth):
            stop = min(start + depth, size)
            if is_filled:
                self.note(last, stop - start)
                self._compute_together(nodes[last].inputs[0], start, stop)
                continue
            first, end = nodes[last].planes(0, start, stop)
            have = max(first, held_to)
            slab = (end - first) * plane
            with self.pass_by(computed + max(0, end - have) * plane):
                if end > have:
                    self.requests[last, 0](have, end)
                with self.pass_by(slab if first < have < end else 0):
                    pass
            computed, held_to = slab, max(end, held_to)
            self.held.windows = max(self.held.windows, slab)
            self.note(last, stop - start, end - first)

    def note(self, position: int, computed: int, window: int = 0) -> None:
        """Remember the planes that a node computes at once, and those of a window."""
        held = self.held
        held.computed[position] = max(held.computed[position], computed)
        held.window_planes[position] = max(held.window_planes[position], window)

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

    def computes(self, source: int) -> bool:
        """Whether planes are computed where they are wanted; others are read, and copied there."""
        if source == VOLUME or source in self.spooled:
            return False
        node = self.graph.nodes[source]
        return not (isinstance(node, OperationNode) and node.operation.needs_whole)

    def steps(self, source: int) -> Steps:
        """See `flow._steps_of`."""
        if source == VOLUME:
            return Steps(self.depth)
        node = self.graph.nodes[source]
        return Steps(node.size[0], node.step if self.computes(source) else 1)

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

        def compute(first: int, last: int) -> None:
            window.read(*node.planes(0, first, last))
            self.note(position, last - first)
            with self.pass_by(
                sum(node.convolution.memory(window.stop - window.start, last - first).values())
            ):
                pass
            if last == node.size[0]:
                window.forget()

        self._in_steps(position, start, stop, compute)

    def _in_steps(
        self, position: int, start: int, stop: int, compute: Callable[[int, int], None]
    ) -> None:
        """See `flow._ComputedReader`."""
        node = self.graph.nodes[position]
        while start < stop:
            if start < self.computed[position]:
                start = min(stop, self.computed[position])
                continue
            first, last = node.next_call(start, stop, self.threads)
            if first == start and last <= stop:
                compute(first, last)
                start = last
                continue
            if not self.computed[position]:
                self.kept += node.step * self.plane[position]
                self.look()
            compute(first, last)
            self.computed[position] = last

    def _operation(self, position: int, node: OperationNode, start: int, stop: int) -> None:
        """See `OperationReader`, `WholeReader` and `IteratedReader`."""
        operation = node.operation
        windows = self.windows[position]
        if operation.needs_whole:
            whole = operation.inputs[0].depth
            if not self.computed[position]:
                self.computed[position] = whole
                if operation.iterates:
                    own = operation.held_bytes(node.real, self.threads, operation.on_disk)
                    self.kept += own
                    self.look()
                for first in range(0, whole, WHOLE_PLANES):
                    last = min(first + WHOLE_PLANES, whole)
                    with self.pass_by(2 * (last - first) * windows[0].plane):
                        self.requests[position, 0](first, last)
                self.held.gathered |= {tee.source for tee in self.tees if tee.is_behind}
            if operation.iterates:
                self.note(position, stop - start)
                with self.pass_by(2 * (stop - start) * self.plane[position]):
                    pass
            return

        self._in_steps(position, start, stop, partial(self._compute_together, position))

    def _compute_together(self, position: int, first: int, last: int) -> None:
        """See `OperationReader`; the output is in memory that is counted elsewhere."""
        node, windows = self.graph.nodes[position], self.windows[position]
        assert isinstance(node, OperationNode)
        self.note(position, last - first)
        for number, window in enumerate(windows):
            if node.operation.places:
                window.fill(first, last)
            else:
                window.read(*node.operation.span(number, 0, (first, last)))
        if last == node.size[0]:
            for window in windows:
                window.forget()

    def _patches(self, position: int, node: PatchedNode, start: int, stop: int) -> None:
        """See `flow.PatchReader`; what it keeps does not depend on requests."""
        (window,) = self.windows[position]
        _, last = node.planes(0, start, stop)
        for first in range(window.stop, last, MOST_PLANES):
            until = min(first + MOST_PLANES, last)
            self.requests[position, 0](first, until)
            with self.pass_by(2 * (until - first) * window.plane):
                pass
        window.stop = max(window.stop, last)
        self.note(position, stop - start)


def _depth_taken(graph: Graph, consumer: tuple[int, int]) -> int:
    """The depth of what a node takes: the planes of an input up to the last that it needs."""
    position, number = consumer
    node = graph.nodes[position]
    return node.planes(number, 0, node.size[0])[1]


class _Window:
    """The planes of an input that a reader holds: see `HeldPlanes`.

    plane : int     bytes of a plane as it is held
    """

    def __init__(self, count: _Count, position: int, number: int, source: int) -> None:
        self.count, self.position, self.number = count, position, number
        node = count.graph.nodes[position]
        self.plane = self.copied = count.plane[source]  # `copied`: of a plane on its way
        if isinstance(node, OperationNode):
            _, height, width, channels = node.operation.inputs[number]
            self.plane = height * width * channels * node.real.itemsize
        computes = count.computes(source) or len(count.graph.consumers[source]) > 1
        if computes and self.plane == count.plane[source]:
            self.copied = 0
        self.start = self.stop = self.room = 0  # `room`: planes of the memory
        self.steps = count.steps(source)
        if len(count.graph.consumers[source]) > 1:  # `Branch` gives planes one by one
            self.steps = self.steps._replace(step=1)
        self.of_volume = source == VOLUME  # which may be read in any order, into new memory
        self.ring = 0  # planes, of a layer's
        if isinstance(node, ConvolutionNode):
            self.ring = node.ring(self.steps.step, count.threads)

    def read(self, start: int, stop: int) -> None:
        """Get planes start to stop - 1."""
        count = self.count
        if stop > self.stop:
            first, end = self.steps.around(start, stop)
            have, former = max(first, self.stop), 0
            first = min(start, have)
            if self.room < max(self.ring, end - first):
                former = self.room * self.plane
                self.room = max(self.ring, end - first)
                count.kept += self.room * self.plane - former
            with count.pass_by(former):  # until its planes are copied
                pass
            while have < end:  # a ring's planes, until its memory ends and begins again
                until = min(end, have - have % self.ring + self.ring) if self.ring else end
                self.fill(have, until)
                have = until
            self.start, self.stop = first, end
        count.note(self.position, 0, stop - start if self.of_volume else self.ring or stop - start)

    def fill(self, start: int, stop: int) -> None:
        """Request planes, and copy them if their reader cannot fill this memory."""
        with self.count.pass_by((stop - start) * self.copied):
            self.count.requests[self.position, self.number](start, stop)

    def forget(self) -> None:
        """Hold no memory; a new volume of the batch begins with none."""
        self.count.kept -= self.room * self.plane
        self.room = 0


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
                self.count.waiting += (stop - first) * plane
                self.count.look()
                self.whole(first, stop)
                self.blocks.append((first, stop))
                self.stop = stop
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
