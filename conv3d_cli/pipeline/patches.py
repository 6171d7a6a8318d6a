"""--patch: run a network, or any stages, in overlapping patches, and blend their outputs.

A step of the job has the stages as its body. A patch is a volume of its own: it goes through the
body as a volume goes through a job, slab by slab. Rows of patches are computed from the first plane
to the last, and the planes that they share wait until all of them are done, in memory or in
temporary files. Patches are added in one order, so the bits depend on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from conv3d_cli.engine.fields import Field, FileField
from conv3d_cli.errors import SpecError, setting
from conv3d_cli.formats.base import reserve_space
from conv3d_cli.formats.passes import MOST_PLANES
from conv3d_cli.model.box import Box
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, ArrayReader, ArrayWriter, VolumeReader
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.network.operations.base import Shape
from conv3d_cli.pipeline.blocking import slab_depths
from conv3d_cli.pipeline.flow import ComputedReader, derived_header, reader_of_last, real_values
from conv3d_cli.pipeline.graph import PatchBody, PatchedNode
from conv3d_cli.pipeline.memory import PROCESS, SlabJob
from conv3d_cli.pipeline.request import Body, Job, Stage, Step
from conv3d_cli.pipeline.selection import selecting_node
from conv3d_cli.pipeline.stream import StreamPlan, stream
from conv3d_cli.system.atomic import write_errors
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.settings.merge import JobSettings
    from conv3d_cli.settings.options import Settings

NAME = "patches"

# --------------------------------------------------------------------------------------------------
# The request


def check_patched(settings: JobSettings) -> None:
    """Refuse settings of a job that do not go with patches. Raises: SpecError."""
    run = settings.run
    asked = setting("patch", run.patch)
    other = None
    if run.operation is not None:
        other = setting("operation", run.operation)
    elif settings.preset is not None:
        other = setting("like", settings.preset.name)
    elif run.mask is not None:
        other = setting("mask", run.mask)
    elif run.missing is not None:
        other = setting("missing", run.missing)
    elif run.nan == "ignore":
        other = setting("nan", run.nan)
    if other is not None:
        raise SpecError(f"{asked} does not go with {other}: leave one of them out")


def in_patches(
    stages: Sequence[Stage | Step], network: Network | None, run: Settings
) -> tuple[Stage | Step, ...]:
    """The stages of a job that runs others in patches, and then selects what is written.

    stages : sequence           that run in patches
    network : Network or None   that they were made of
    run : Settings              of the job
    Raises: SpecError for a network whose output is labels; as `selecting_node`.
    """
    if network is not None:
        (output,) = network.outputs.values()
        last = next((node for node in network.nodes if node.name == output), None)
        if last is not None and last.operation == "ArgMax":
            raise SpecError(
                f"{last.title} ends the network, and labels of patches cannot be blended: save the "
                f"model without it, and pass {setting('argmax', True)} with {setting('patch')}"
            )
    made: list[Stage | Step] = []
    treated = {"zero": ("ReplaceMissing", {"nan": True}), "error": ("OnlyFinite", {})}
    if run.nan in treated:
        operation, attributes = treated[run.nan]
        made.append(Step(Node("nan", operation, (), attributes), (-1,)))
    node = Node(NAME, "Patches", (), {"patch": run.patch})
    made.append(Step(node, (len(made) - 1,), body=Body(tuple(stages), network)))
    selecting = selecting_node(run, [stage.name or "" for stage in made])
    if selecting is not None:
        made.append(Step(selecting, (len(made) - 1,)))
    return (*made, Stage("identity"))  # what is written is the output of a convolution


def inner_job(job: Job, body: Body) -> Job:
    """The job of one patch. What is done before and after the patches is left to the outer one."""
    return replace(
        job,
        stages=body.stages,
        network=body.network,
        patch=None,
        normalize_input="none",
        normalize_mask=None,
        output_name=None,
        channels=None,
        argmax=False,
        label_names=None,
        dtype=None,
        missing=NOTHING
        if job.missing == NOTHING
        else Missing(min_coverage=job.missing.min_coverage),
        beside=(),
        scale="none",
    )


# --------------------------------------------------------------------------------------------------
# The memory


def slab_job(body: PatchBody) -> SlabJob:
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


def fit_patches(job: SlabJob, body: PatchBody, limit: int) -> None:
    """Choose the slabs of a patch, and whether rows of patches wait in files, for a ceiling.

    job : SlabJob       of the volume
    limit : int         bytes of the whole process
    The largest useful slabs are chosen with which the rest of the job fits, first in memory.
    """
    step = job.last.plan.depth_step
    depths = list(slab_depths(slab_job(body)))
    for body.on_disk in (False, True):
        for body.slab_depth in depths:
            if job.memory(step).total <= limit:
                return


def held_bytes(node: PatchedNode, threads: int) -> int:
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
    return own + slab_job(body).memory(body.slab_depth).total - PROCESS.total


# --------------------------------------------------------------------------------------------------
# The run


class PatchReader(ComputedReader):
    """The blended outputs of patches.

    beside : str or None    see `spool_reader`
    """

    step = 1

    def __init__(
        self, reader: VolumeReader, node: PatchedNode, team: Team, beside: str | None
    ) -> None:
        self.reader, self.layout, self.body = reader, node.layout, node.body
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

    def _compute(self, n: int, start: int, stop: int) -> Array:
        assert self._sums is not None
        starts, size = self.layout.starts(0), self.layout.size[0]
        out = np.empty((stop - start, *self.header.shape[2:]), self.header.dtype)
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
        return out

    def _add_row(self, n: int, depth: int) -> None:
        """Add the outputs of the patches that begin at a depth."""
        assert self._inputs is not None
        assert self._sums is not None
        layout = self.layout
        _, last = layout.planes_of(depth)
        for start in range(self._read, last, MOST_PLANES):
            stop = min(start + MOST_PLANES, last)
            header = self.reader.header
            block = self.reader.read(n, slice(start, stop), slice(0, header.shape[4]))
            self._inputs.store(start, real_values(block, header.scale, self.header.dtype))
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
            plan = StreamPlan(body.graph.last, body.parts, body.slab_depth)
            stream(plan, reader, ArrayWriter(out, body.result), self.team, in_turn=True)
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
