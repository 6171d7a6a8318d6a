"""Run a job: one volume through one convolution or a stack of them, from file to file.

`prepare.py` decides everything that does not depend on voxels; then `stream.py` streams slabs, or
`boxes/` streams boxes. Memory depends on the size of a slab, not on that of the file.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

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
from conv3d_cli.system.atomic import committed_together, takes_many
from conv3d_cli.system.machine import thread_count


@dataclass
class JobReport:
    """The result of a job.

    voxels : int                    values of the output
    bytes_in, bytes_out : int       size of all voxels of input and output, uncompressed
    clipped : int                   values that the output's dtype could not hold
    seconds : float                 of the whole job
    read_seconds, compute_seconds, write_seconds : float    of each step; the steps overlap
    losses : dict                   penalties by name, see `all_losses`
    notes : list of str             for the user
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
    """Check that every output can be written, before any work.

    make_folder : bool      a missing folder is allowed if it can be created
    Raises: OutputExistsError for a path that exists (without --overwrite) or belongs to the input;
        WriteError for a folder that cannot be written; SpecError for an unknown suffix.
    """
    output_format(job.target)
    for output in job.outputs:
        if "-" not in (job.source, output.path) and lies_within(job.source, output.path):
            # a store is replaced as a whole, with its levels, labels and other images
            raise OutputExistsError(
                f"cannot write {output.path}: the input lies in it; name another store"
            )
    _check_target(job, make_folder)
    taken = {os.path.realpath(path) for path in (job.source, *written_files(job.target))}
    for output in job.beside:
        files = () if takes_many(output.path) else written_files(output.path)
        paths = {os.path.realpath(path) for path in files}
        if paths & taken or replaced_part(job.source, output.path):
            raise OutputExistsError(
                f"cannot write {output.path}: it is the input or the output; name another file"
            )
        check_output(output.path, overwrite=job.overwrite, make_folder=make_folder)
        taken |= paths


def _check_target(job: Job, make_folder: bool) -> None:
    """Check the path of the main output; see `check_paths`."""
    if job.target == "-":
        return
    if (
        os.path.exists(job.source)
        and os.path.exists(job.target)
        and os.path.samefile(job.source, job.target)
        and not job.overwrite
    ):
        raise OutputExistsError(
            f"cannot write {job.target}: it is the input; name another file, or pass --overwrite "
            "to replace it at the end"
        )
    if part := replaced_part(job.source, job.target):
        raise OutputExistsError(
            f"cannot write {job.target}: {part} is one of the files that the input {job.source} is "
            "read from; name another file"
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

    progress : callable or None     called with (values finished, values in all), from any thread
    decided : callable or None      called with the prepared job before the first voxel is computed;
                                    a caller cannot prepare it again, as a pipe is read only once
    The output appears complete or not at all, also after KeyboardInterrupt.
    Raises: any Conv3DError.
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
                    reader = stack.enter_context(spool_reader(reader, job.target))
                if position < len(stages) - 1:
                    reader = LayerReader(reader, stages[position].convolution, team)
        writer = _writer(job, prepared.header)
        if prepared.spool_output and job.scale == "none":
            writer = SpooledWriter(writer)
        with writer, naming(prepared.reader):
            beside = [
                (ROLES[o.role], stack.enter_context(_additional_writer(o.path, prepared)))
                for o in job.beside
            ]
            if prepared.boxes is None:
                times = stream(prepared.stream_plan, reader, writer, team, progress, beside)
            else:
                from conv3d_cli.pipeline.boxes.stream import stream_boxes  # few jobs need boxes

                convolutions = [stage.convolution for stage in stages]
                partition, parts = prepared.boxes.partition, prepared.stream_plan.parts
                times = stream_boxes(convolutions, partition, parts, reader, writer, team, progress)
            reader.finish()
            voxels = math.prod(prepared.header.shape)
            coverage_notes = _coverage_notes(prepared)
            clipped_notes = clipped_note(job, times.clipped, voxels)
            if job.strict:
                _refuse_losses([*clipped_notes, *coverage_notes, *writer.notes])
            commit_started = time.perf_counter()
            with committed_together():
                for _, other in beside:
                    other.commit()
                writer.commit()
            times.write += time.perf_counter() - commit_started
    late_notes = [note for note in prepared.reader.notes if note not in prepared.notes]
    return JobReport(
        source=job.source,
        target=job.target,
        voxels=voxels,
        bytes_in=prepared.reader.header.nbytes,
        bytes_out=prepared.header.nbytes,
        clipped=times.clipped,
        seconds=time.perf_counter() - started,
        read_seconds=times.read,
        compute_seconds=times.compute,
        write_seconds=times.write,
        losses=all_losses(prepared),
        notes=[*prepared.notes, *late_notes, *writer.notes, *coverage_notes, *clipped_notes],
    )


def _writer(job: Job, header: VolumeHeader) -> VolumeWriter:
    """The writer of the main output."""

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


def _additional_writer(path: str, prepared: PreparedJob) -> VolumeWriter:
    """The writer of an additional volume: float32, with the main output's shape and grid."""
    job, header, float32 = prepared.job, prepared.header, np.dtype(np.float32)
    channels = header.shape[4]
    letters = output_format(path).output_letters(header.axes.letters, channels, float32)
    channel_letters = [letter for letter in letters if letter in "cs"]
    sizes = {channel_letters[0]: channels} if len(channel_letters) == 1 else {}
    writer = create_volume(
        path,
        replace(header, axes=header.axes.renamed(letters, sizes), dtype=float32),
        overwrite=job.overwrite,
        gz_level=job.gz_level,
        threads=job.threads,
    )
    return SpooledWriter(writer) if writer.sequential else writer


def _refuse_losses(notes: list[str]) -> None:
    """Raises: ShapeError under --strict if there are notes on losses."""
    if notes:
        raise ShapeError(f"--strict: {'; '.join(notes)}; nothing was written")


def _coverage_notes(prepared: PreparedJob) -> list[str]:
    """Notes on outputs below the minimal coverage. Raises: ShapeError if no output is above it."""
    missing, first = prepared.job.missing, prepared.stages[0].convolution
    if missing.mask is not None:
        if not first.below_min_coverage:
            return []
        condition = (
            f"inside the mask had less than {missing.min_coverage:g} of the kernel's weight "
            "(--min-coverage)"
        )
        if not first.any_mean:
            raise ShapeError(f"no voxel is left: all {first.below_min_coverage} voxels {condition}")
        return [f"{first.below_min_coverage} voxels {condition} and are 0"]
    counts = [
        (stage.convolution.below_min_coverage, math.prod(stage.problem.out_shape))
        for stage in prepared.stages
    ]
    if any(count == total for count, total in counts):
        raise ShapeError("no voxel is left: all of them are missing")
    return [
        f"{count} voxels ({100 * count / total:.2g} %) had too little of the kernel's "
        "weight (--min-coverage) and are NaN"
        for count, total in counts
        if count
    ]


def clipped_note(job: Job, clipped: int, voxels: int) -> list[str]:
    """A note on clipped values, or none.

    clipped : int       values that the output's dtype could not hold
    voxels : int        values of the output
    """
    if not clipped:
        return []
    percent = 100 * clipped / max(1, voxels)
    return [f"{clipped} voxels ({percent:.2g} %) did not fit {job.dtype} and were clipped"]


def all_losses(prepared: PreparedJob) -> dict[str, float]:
    """Penalties of weights and outputs after a run, by name; in a stack the layer's name precedes.

    The activity penalty is summed over the slabs in float64 and divided by the size of the first
    batch axis, as in Keras.
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
