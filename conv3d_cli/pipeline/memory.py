"""Predict a job's peak memory as a table of named terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.slabs import Slab, cut_slabs, most_planes
from conv3d_cli.errors import MemoryLimitError, setting
from conv3d_cli.formats.passes import MOST_PLANES
from conv3d_cli.pipeline.graph import (
    VOLUME,
    ConvolutionNode,
    Graph,
    OperationNode,
    PatchBody,
    PatchedNode,
)
from conv3d_cli.pipeline.held import count_held
from conv3d_cli.pipeline.stream import FILLED_BEHIND, WRITES_BEHIND
from conv3d_cli.system.machine import format_bytes, memory_ceiling
from conv3d_cli.system.room import PROCESS_BYTES, READING_BYTES

if TYPE_CHECKING:
    from conv3d_cli.convolution.prepared import Convolution
    from conv3d_cli.model.kernel import Kernel
    from conv3d_cli.model.spec import ConvProblem

UNLIMITED = 1 << 62  # bytes
# Slabs of input in memory from a random-access reader: one being computed, one being read.
SLABS_READ = 2
# Copies of the planes that a sequential reader delivers for one slab: as read, and joined to the
# planes of the previous slab.
STREAM_COPIES = 2


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of memory at the peak of a job, by name. All terms are allocated at the same time.

    >>> use = MemoryUse({"process": 100, "input": 20}).plus(output=5, input=1)
    >>> use.terms, use.total
    ({'process': 100, 'input': 21, 'output': 5}, 126)
    """

    terms: Mapping[str, int] = field(default_factory=dict)

    def plus(self, **more: int) -> MemoryUse:
        """A copy with bytes added to terms; 0 bytes add no term."""
        terms = dict(self.terms)
        for name, count in more.items():
            if count:
                terms[name] = terms.get(name, 0) + count
        return MemoryUse(terms)

    @property
    def total(self) -> int:
        """The peak of the whole process in bytes."""
        return sum(self.terms.values())

    def __str__(self) -> str:
        """The terms for messages, the largest first.

        >>> str(MemoryUse({"output": 1 << 20, "process": 3 << 20}))
        'process 3.0 MiB, output 1.0 MiB'
        """
        largest_first = sorted(self.terms.items(), key=lambda term: -term[1])
        return ", ".join(
            f"{name.replace('_', ' ')} {format_bytes(count)}" for name, count in largest_first
        )


PROCESS = MemoryUse({"process": PROCESS_BYTES})


def weight_memory(kernels: Sequence[Kernel], convolutions: Sequence[Convolution]) -> dict[str, int]:
    """Bytes of the weights of all convolutions while they run, by name.

    kernels : sequence      as given and as applied; an array that two of them share counts once
    Returns "weights" (float64, as read) and "packed_weights" (in the layout of the loops).
    """
    arrays = {id(kernel.weights): kernel.weights.nbytes for kernel in kernels}
    plans = [plan for convolution in convolutions for plan in convolution.plans]
    for plan in plans:
        owner = plan.weights
        while isinstance(owner.base, np.ndarray):  # a view takes no memory
            owner = owner.base
        arrays[id(owner)] = owner.nbytes
    packed = [plan.weight_bytes for plan in plans]
    return {
        "weights": sum(arrays.values()),
        "packed_weights": sum(one.kept for one in packed) + max(one.packing for one in packed),
    }


def check_planning(
    kernels: Sequence[Kernel], problem: ConvProblem, dtype: np.dtype[Any], max_memory: int | None
) -> MemoryUse:
    """The memory for choosing an algorithm for the last kernel, before any voxel is read.

    kernels : sequence          all kernels read so far
    problem : ConvProblem       of the part of the volume that is computed at once
    max_memory : int or None    ceiling of the whole process in bytes; None: see `memory_ceiling`
    Raises: MemoryLimitError if planning needs more than the ceiling; the message names a ceiling
        that would do.
    """
    from conv3d_cli.engine.plan import planning_bytes  # imports Numba

    use = MemoryUse({"process": READING_BYTES}).plus(
        weights=sum(kernel.weights.nbytes for kernel in kernels),
        planning=planning_bytes(problem, dtype),
    )
    limit = memory_ceiling(max_memory)
    # no job runs below PROCESS_BYTES; `choose_blocking` refuses such a ceiling
    if use.total > max(limit, PROCESS_BYTES):
        kernel = kernels[-1]
        raise MemoryLimitError(
            f"the {kernel.weights.size:,} weights of {kernel.title} need "
            f"{format_bytes(use.total)} of memory for the whole process ({use}), the ceiling is "
            f"{format_bytes(limit)}; pass {setting('max_memory', megabytes(use.total))} or more, "
            "or a smaller kernel"
        )
    return use


def megabytes(count: int) -> str:
    """A size in bytes as a value of `--max-memory`, rounded up.

    >>> megabytes(300 << 20), megabytes((300 << 20) + 1)
    ('300M', '301M')
    """
    return f"{-(-count >> 20)}M"


@dataclass(frozen=True)
class SlabJob:
    """A job in slabs of whole planes, as far as its memory depends on it.

    graph : Graph                   its nodes
    in_dtype, out_dtype : dtype     of the voxels that are read and written
    sequential : bool               the last convolution's input is read forward only
    channels : int                  channels written for one part of the volume
    weights : dict                  see `weight_memory`
    reader : callable               (input planes read at once) -> bytes of the reader, without them
    writer : int                    bytes of the writer, without the blocks passed to it
    in_channels : int or None       channels of the volume that are read at once; None: those of the
                                    only convolution
    in_plane_voxels : int or None   voxels of a plane of the volume; None: see `in_channels`
    spooled : frozenset of int      see `flow.reader_of_last`
    in_memory : bool                the volume and the output are arrays in memory
    """

    graph: Graph
    in_dtype: np.dtype[Any]
    out_dtype: np.dtype[Any]
    sequential: bool
    channels: int
    weights: Mapping[str, int]
    reader: Callable[[int], int] = lambda planes: 0
    writer: int = 0
    in_channels: int | None = None
    in_plane_voxels: int | None = None
    spooled: frozenset[int] = frozenset()
    in_memory: bool = False

    @property
    def last(self) -> Convolution:
        """The convolution whose output is written."""
        return self.graph.last

    @cached_property
    def written(self) -> OperationNode | None:
        """The operation that fills the blocks to write, if one does: see `Graph.written`."""
        return self.graph.written(self.out_dtype)

    def use_threads(self, threads: int) -> None:
        """Plan all convolutions for another number of threads."""
        self.graph.use_threads(threads)

    @property
    def volume_plane(self) -> int:
        """Bytes of a plane of the volume."""
        problem = self.last.problem
        voxels = self.in_plane_voxels or math.prod(problem.in_size[1:])
        return voxels * (self.in_channels or problem.in_channels) * self.in_dtype.itemsize

    @property
    def in_plane(self) -> int:
        """Bytes of a plane of the last convolution's input."""
        source = self.graph.nodes[-1].inputs[0]
        if source == VOLUME:
            return self.volume_plane
        node = self.graph.nodes[source]
        return math.prod(node.size[1:]) * node.channels * node.dtype.itemsize

    @property
    def out_plane(self) -> int:
        """Bytes of an output plane."""
        return math.prod(self.last.problem.out_size[1:]) * self.channels * self.out_dtype.itemsize

    def memory(self, depth: int) -> MemoryUse:
        """The peak of the process with slabs of `depth` output planes."""
        depth = min(depth, self.last.problem.out_size[0])
        is_filled = self.written is not None
        held = count_held(self.graph, self.volume_plane, depth, self.spooled, is_filled)
        blocks = 1 + (FILLED_BEHIND if is_filled else WRITES_BEHIND)
        use = PROCESS.plus(
            **self.weights, output=blocks * depth * self.out_plane, writer=self.writer
        )
        nodes = list(zip(self.graph.nodes, held.computed, strict=True))
        for node, computed in nodes[:-1] if is_filled else nodes:
            if isinstance(node, ConvolutionNode):
                size = (computed, *node.size[1:])
                use = use.plus(scratch=node.convolution.plan.scratch_for(size))
            elif isinstance(node, OperationNode):
                use = use.plus(scratch=node.scratch_for(computed, self.last.plan.threads))
            elif isinstance(node, PatchedNode):
                use = use.plus(patches=_patches_held(node, self.last.plan.threads))
        window = held.window_planes[-1]
        if not is_filled:
            use = use.plus(**self.last.memory(window, held.computed[-1]))
        if not self.sequential:
            window = most_planes(
                self.last.problem, _slabs(self.last.problem, depth), sequential=False
            )
            use = use.plus(input=SLABS_READ * window * self.in_plane)
            if len(self.graph.nodes) > 1:
                # the other nodes fill a temporary file first, a few planes at a time
                filling = count_held(self.graph, self.volume_plane, MOST_PLANES, self.spooled)
                use = use.plus(layers=filling.layers, skips=filling.skips)
        elif len(self.graph.nodes) == 1:
            # the window of the slab that is computed, the next one, and planes on their way into it
            planes = 2 * window + STREAM_COPIES * held.read
            use = use.plus(input=planes * self.in_plane)
        else:
            use = use.plus(input=held.windows, layers=held.layers - held.windows, skips=held.skips)
        is_first = self.graph.nodes[-1].inputs[0] == VOLUME and not self.sequential
        return use.plus(reader=self.reader(window if is_first else held.read))


def patch_job(body: PatchBody) -> SlabJob:
    """A patch as far as its memory depends on it."""
    channels, real = body.source.shape[4], body.source.dtype
    return SlabJob(
        body.graph,
        real,
        real,
        sequential=len(body.graph.nodes) > 1,
        channels=body.result.shape[4],
        weights={},
        in_channels=channels,
        in_plane_voxels=math.prod(body.source.shape[2:4]),
        spooled=body.spooled,
    )


def _patches_held(node: PatchedNode, threads: int) -> int:
    """What a node's reader and the stages of a patch hold at most."""
    layout, body = node.layout, node.body
    size, channels = body.source.dtype.itemsize, (body.source.shape[4], node.channels)
    patch = math.prod(layout.patch) * sum(channels)
    row_planes = min(layout.size[0], layout.patch[0]) if not body.on_disk else 0
    rows = row_planes * math.prod(layout.size[1:]) * sum(channels)
    # of each thread: a plane of a patch times its weights, rows of a file, and a plane of weights
    products = math.prod(layout.patch[1:]) * (node.channels + 2)
    strips = layout.patch[1] * layout.size[2] * max(channels) * 2 if body.on_disk else 0
    plane = math.prod(layout.size[1:])
    totals = plane * (2 * 8 + node.channels * size * (2 if body.on_disk else 1))
    own = size * (patch + rows) + threads * max(size * (products + strips), totals)
    return own + patch_job(body).memory(body.plan.slab_depth).total - PROCESS.total


@lru_cache(maxsize=16)
def _slabs(problem: ConvProblem, depth: int) -> list[Slab]:
    """The slabs of `cut_slabs`, cached."""
    return cut_slabs(problem, depth)
