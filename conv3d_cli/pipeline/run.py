"""A job, run: one volume through one convolution or a stack of them, from file to file.

What can be known without voxels is settled first (`prepare.py`); then slabs or boxes are streamed (`stream.py`, `boxes/`). Memory
depends on the slab, not on the file.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from conv3d_cli.errors import OutputExistsError, ShapeError
from conv3d_cli.formats import (
    check_output,
    create_volume,
    lies_within,
    output_format,
    replaced_part,
    written_files,
)
from conv3d_cli.formats.base import ScaledWriter, SpooledWriter, spool_reader
from conv3d_cli.model.volume import VolumeHeader, VolumeWriter
from conv3d_cli.pipeline.outputs import ROLES
from conv3d_cli.pipeline.prepare import PreparedJob, naming, prepare_job
from conv3d_cli.pipeline.request import Job
from conv3d_cli.pipeline.stream import LayerReader, stream
from conv3d_cli.system.atomic import committed_together
from conv3d_cli.system.machine import thread_count

if TYPE_CHECKING:
    pass


@dataclass
class JobReport:
    """What was done: voxels computed, how many an integer dtype could not hold, seconds by stage, losses, notes.

    bytes_in, bytes_out : int       of the input's and the output's voxels, unpacked
    """

    source: str
    target: str
    voxels: int
    bytes_in: int
    bytes_out: int
    clipped: int
    seconds: float
    read_seconds: float
    compute_seconds: float
    write_seconds: float
    losses: dict[str, float]
    notes: list[str]


def check_paths(job: Job, make_folder: bool = False) -> None:
    """Refuse an output that exists or is the input, before any work.

    make_folder : bool      folders may be missing as long as they can be made
    Raises: OutputExistsError, WriteError, SpecError for an unknown suffix.
    """
    output_format(job.target)
    for output in job.outputs:
        if "-" not in (job.source, output.path) and lies_within(job.source, output.path):
            # a store is replaced as a whole, with what else it holds: levels, labels, other images
            raise OutputExistsError(
                f"cannot write {output.path}: the input lies in it; name another store"
            )
    _check_target(job, make_folder)
    taken = {os.path.realpath(path) for path in (job.source, *written_files(job.target))}
    for output in job.beside:
        own = {os.path.realpath(path) for path in written_files(output.path)}
        if own & taken or replaced_part(job.source, output.path):
            raise OutputExistsError(
                f"cannot write {output.path}: it is the input or the output; name another file"
            )
        check_output(output.path, overwrite=job.overwrite, make_folder=make_folder)
        taken |= own


def _check_target(job: Job, make_folder: bool) -> None:
    """Refuse the main output; see `check_paths`."""
    if job.target == "-":
        return
    if (
        os.path.exists(job.source)
        and os.path.exists(job.target)
        and os.path.samefile(job.source, job.target)
        and not job.overwrite
    ):
        raise OutputExistsError(
            f"cannot write {job.target}: it is the input; name another file, or pass --overwrite to replace it at the end"
        )
    if part := replaced_part(job.source, job.target):
        raise OutputExistsError(
            f"cannot write {job.target}: {part} is one of the files that the input {job.source} is read from; "
            "name another file"
        )
    check_output(
        job.target,
        overwrite=job.overwrite,
        make_folder=make_folder,
        chunks=job.chunks,
        levels=job.levels,
        compression=job.compression,
    )


def run_job(
    job: Job,
    progress: Callable[[int, int], None] | None = None,
    decided: Callable[[PreparedJob], None] | None = None,
) -> JobReport:
    """Convolve one volume, from file to file.

    progress : callable     told (voxels finished, voxels in all), from any thread
    decided : callable      told what was decided, before the first voxel (a pipe cannot be opened once more to look)
    The output appears complete or not at all. Raises: any Conv3DError; KeyboardInterrupt leaves nothing behind.
    """
    from conv3d_cli.engine import Team

    started = time.perf_counter()
    check_paths(job)
    with prepare_job(job) as prepared, ExitStack() as stack:
        if decided is not None:
            decided(prepared)
        team = stack.enter_context(Team(thread_count(job.threads)))
        reader, stages = prepared.reader, prepared.stages
        if prepared.boxes is None:
            for position, spooled in enumerate(prepared.spool_input):
                if spooled:
                    reader = stack.enter_context(spool_reader(reader))
                if position < len(stages) - 1:
                    reader = LayerReader(reader, stages[position].convolution, team)
        writer = _writer(job, prepared.header)
        if prepared.spool_output and job.scale == "none":
            writer = SpooledWriter(writer)
        with writer, naming(prepared.reader):
            beside = [
                (ROLES[o.role], stack.enter_context(_writer_beside(o.path, prepared)))
                for o in job.beside
            ]
            if prepared.boxes is None:
                times = stream(prepared.stream_plan, reader, writer, team, progress, beside)
            else:
                from conv3d_cli.pipeline.boxes.stream import stream_boxes  # late: few jobs need it

                convolutions, parts = (
                    [stage.convolution for stage in stages],
                    prepared.stream_plan.parts,
                )
                times = stream_boxes(
                    convolutions, prepared.boxes.partition, parts, reader, writer, team, progress
                )
            reader.finish()
            too_little = _coverage_note(prepared)
            if job.strict:
                _refuse_losses(
                    [
                        *clipped_note(job, times.clipped, math.prod(prepared.header.shape)),
                        *too_little,
                        *writer.notes,
                    ]
                )
            finish = time.perf_counter()
            with committed_together():
                for _, other in beside:
                    other.commit()
                writer.commit()
            times.write += time.perf_counter() - finish
    notes = [
        *prepared.notes,
        *(note for note in prepared.reader.notes if note not in prepared.notes),
        *writer.notes,
        *too_little,
    ]
    voxels = math.prod(prepared.header.shape)
    notes += clipped_note(job, times.clipped, voxels)
    seconds = time.perf_counter() - started
    return JobReport(
        job.source, job.target, voxels, prepared.reader.header.nbytes, prepared.header.nbytes, times.clipped, seconds,
        times.read, times.compute, times.write, all_losses(prepared), notes,
    )  # fmt: skip


def _writer(job: Job, header: VolumeHeader) -> VolumeWriter:
    """The output's writer."""

    def create(header: VolumeHeader) -> VolumeWriter:
        return create_volume(
            job.target,
            header,
            overwrite=job.overwrite,
            gz_level=job.gz_level,
            threads=job.threads,
            chunks=job.chunks,
            levels=job.levels,
            compression=job.compression,
        )

    if job.scale == "none":
        return create(header)
    return ScaledWriter(header, job.target, lambda scale: create(replace(header, scale=scale)))


def _writer_beside(path: str, prepared: PreparedJob) -> VolumeWriter:
    """The writer of a volume like the output, of float32."""
    job, header = prepared.job, prepared.header
    letters = output_format(path).output_letters(
        header.axes.letters, header.shape[4], np.dtype(np.float32)
    )
    sizes = {
        a: header.shape[4]
        for a in letters
        if a in "cs" and len([c for c in letters if c in "cs"]) == 1
    }
    own = replace(header, axes=header.axes.renamed(letters, sizes), dtype=np.dtype(np.float32))
    writer = create_volume(
        path, own, overwrite=job.overwrite, gz_level=job.gz_level, threads=job.threads
    )
    return SpooledWriter(writer) if writer.sequential else writer


def _refuse_losses(notes: list[str]) -> None:
    if notes:
        raise ShapeError(f"--strict: {'; '.join(notes)}; nothing was written")


def _coverage_note(prepared: PreparedJob) -> list[str]:
    """A note on outputs without enough coverage. Raises: ShapeError if none has enough."""
    missing, first = prepared.job.missing, prepared.stages[0].convolution
    if missing.mask is not None:
        if not first.below_min_coverage:
            return []
        too_little = f"inside the mask had less than {missing.min_coverage:g} of the kernel's weight (--min-coverage)"
        if not first.any_mean:
            raise ShapeError(
                f"no voxel is left: all {first.below_min_coverage} voxels {too_little}"
            )
        return [f"{first.below_min_coverage} voxels {too_little} and are 0"]
    counts = [
        (stage.convolution.below_min_coverage, math.prod(stage.problem.out_shape))
        for stage in prepared.stages
    ]
    if any(count == total for count, total in counts):
        raise ShapeError("no voxel is left: all of them are missing")
    return [
        f"{count} voxels ({100 * count / total:.2g} %) had too little of the kernel's weight and are NaN"
        for count, total in counts
        if count
    ]


def clipped_note(job: Job, clipped: int, voxels: int) -> list[str]:
    """A note on voxels that the output's dtype could not hold, if there were any."""
    share = 100 * clipped / max(1, voxels)
    return (
        [f"{clipped} voxels ({share:.2g} %) did not fit {job.dtype} and were clipped"]
        if clipped
        else []
    )


def all_losses(prepared: PreparedJob) -> dict[str, float]:
    """Penalties of weights and outputs after a run, by name; with the layer's name where there are several.

    The activity penalty is summed in float64 over the slabs and divided by the first batch axis, as Keras does.
    """
    batch_shape = prepared.reader.header.axes.batch_shape
    batch = batch_shape[0] if batch_shape else 1
    losses = {}
    for number, stage in enumerate(prepared.stages):
        prefix = f"{stage.stage.name or number + 1}." if len(prepared.stages) > 1 else ""
        if stage.convolution.activity is not None:
            losses[f"{prefix}activity"] = stage.convolution.activity_sum / max(1, batch)
        losses.update({f"{prefix}{name}": value for name, value in stage.losses.items()})
    return losses
