"""Run a job: one volume through one convolution or a stack of them, from file to file.

`prepare.py` decides everything that does not depend on voxels; then `stream.py` streams slabs, or
`boxes/` streams boxes. Memory depends on the size of a slab, not on that of the file.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from conv3d_cli.convolution.copying import Copy
from conv3d_cli.errors import Conv3DError, OutputExistsError, ShapeError, SpecError, setting
from conv3d_cli.formats import (
    check_output,
    create_volume,
    holds_more,
    lies_within,
    lost_facts,
    output_format,
    replaced_part,
    written_files,
)
from conv3d_cli.formats.base import ScaledWriter, SpooledWriter
from conv3d_cli.model.grid import length_scale
from conv3d_cli.model.volume import VolumeHeader, VolumeWriter
from conv3d_cli.pipeline.checks import CheckReport, check_notes, check_report
from conv3d_cli.pipeline.files import check_nothing_read_is_replaced, input_files
from conv3d_cli.pipeline.flow import reader_of_last
from conv3d_cli.pipeline.iterations import notes_on_others, watch_iterations
from conv3d_cli.pipeline.outputs import PEAKS, TABLE_SUFFIX, Output, role_of
from conv3d_cli.pipeline.prepare import (
    PreparedJob,
    PreparedStage,
    naming,
    open_job_mask,
    prepare_job,
)
from conv3d_cli.pipeline.request import SAME_DTYPE, Job
from conv3d_cli.pipeline.stream import load_loops, stream
from conv3d_cli.system.atomic import (
    check_target,
    committed_together,
    output_file,
    special_kind,
    suffix_of,
    takes_many,
    write_errors,
)
from conv3d_cli.system.leftovers import cleanup_notes
from conv3d_cli.system.maps import check_maps, faults_noticed
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.portable import POSIX, true_path
from conv3d_cli.system.words import count_of, percent

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask
    from conv3d_cli.pipeline.peaks import PeakWriter
    from conv3d_cli.pipeline.statistics import Statistics, StreamObserver


class KernelFwhm(NamedTuple):
    """The FWHM of a kernel.

    lengths : 3 floats or None      along D, H, W; None along an axis without a single bump
    unit : str                      "vox" if the grid has no spacing or no unit
    """

    lengths: tuple[float | None, float | None, float | None]
    unit: str

    def __str__(self) -> str:
        texts = ["-" if length is None else f"{length:.4g}" for length in self.lengths]
        return f"{texts[0] if len(set(texts)) == 1 else ','.join(texts)} {self.unit}"


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
    fwhm : KernelFwhm or None       see `kernel_fwhm`; None unless statistics were asked for
    statistics : Statistics or None mean and range before and after; None unless asked for
    checks : CheckReport or None    tiles checked by checksums; None: none was
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
    fwhm: KernelFwhm | None = None
    statistics: Statistics | None = None
    checks: CheckReport | None = None


def check_paths(job: Job, make_folder: bool = False) -> None:
    """Check that every output can be written, before any work.

    make_folder : bool      a missing folder is allowed if it can be created
    Raises: OutputExistsError for a path that exists (without --overwrite) or belongs to the input;
        WriteError for a folder that cannot be written; SpecError for an unknown suffix.
    """
    with job.limits():
        _check_paths(job, make_folder)


def _check_paths(job: Job, make_folder: bool) -> None:
    output_format(job.target)
    for output in job.outputs:
        if "-" not in (job.source, output.path) and lies_within(job.source, output.path):
            # a store is replaced as a whole, with its levels, labels and other images
            raise OutputExistsError(
                f"cannot write {output.path}: the input lies in it; name another store"
            )
    check_nothing_read_is_replaced([job])
    _check_target(job, make_folder)
    taken = {true_path(path) for path in (file_of(job.source), *written_files(job.target))}
    if job.beside:  # an estimate's name is made up, so it may meet a kernel's or a mask's
        taken |= {true_path(path) for files in input_files(job).values() for path in files}
    for output in job.beside:
        files = () if takes_many(output.path) else written_files(output.path)
        paths = {true_path(path) for path in files}
        if paths & taken or replaced_part(job.source, output.path):
            raise OutputExistsError(
                f"cannot write {output.path}: it is the input or the output, or the job reads it; "
                "name another file"
            )
        if role_of(output.role).is_table:
            _check_table(output, job.overwrite, make_folder)
        else:
            check_output(output.path, overwrite=job.overwrite, make_folder=make_folder)
        taken |= paths


def _check_table(output: Output, overwrite: bool, make_folder: bool) -> None:
    """Check the path of a table; see `check_paths`."""
    is_file = output.path != "-" and special_kind(output.path) is None
    if output.path == "-" or (is_file and suffix_of(output.path).lower() != TABLE_SUFFIX):
        raise SpecError(
            f"{role_of(output.role).flag} is a table of tab-separated values: name a file that "
            f"ends in {TABLE_SUFFIX}, received {output.path}"
        )
    check_target(output.path, overwrite, make_folder)


def _check_target(job: Job, make_folder: bool) -> None:
    """Check the path of the main output; see `check_paths`."""
    if job.target == "-":
        return
    source = file_of(job.source)
    with write_errors(job.target):
        same = (
            os.path.exists(source)
            and os.path.exists(job.target)
            and os.path.samefile(source, job.target)
        )
    if same and holds_more(job.source):
        raise OutputExistsError(
            f"cannot write {job.target}: the input is one of several images in it, and the others "
            "would be lost; name another file"
        )
    if same and not job.overwrite:
        raise OutputExistsError(
            f"cannot write {job.target}: it is the input; name another file, or pass "
            f"{setting('overwrite', True)} to replace it at the end"
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
        levels_by=job.levels_by,
        compression=job.compression,
    )


def run_job(
    job: Job,
    progress: Callable[[int, int], None] | None = None,
    decided: Callable[[PreparedJob], None] | None = None,
    statistics: bool = False,
) -> JobReport:
    """Convolve one volume, from file to file.

    progress : callable or None     called with (values finished, values in all), from any thread
    decided : callable or None      called with the prepared job before the first voxel is computed;
                                    a caller cannot prepare it again, as a pipe is read only once
    statistics : bool               also count the mean and range of voxels, for the report
    The output appears complete or not at all, also after KeyboardInterrupt.
    Raises: any Conv3DError.
    """
    from conv3d_cli.engine import Team

    started = time.perf_counter()
    check_paths(job)
    before = {path: _version_of(path) for path in _files_read(job)}
    with prepare_job(job) as prepared, ExitStack() as stack:
        if decided is not None:
            decided(prepared)
        team = stack.enter_context(Team(prepared.threads))
        reader, graph = prepared.reader, prepared.graph
        observer: StreamObserver | None = None
        output_mask = None
        if statistics:
            from conv3d_cli.pipeline.statistics import StreamObserver  # few jobs count

            observer, output_mask = StreamObserver(), stack.enter_context(_output_mask(prepared))
            if prepared.boxes is None:
                reader = observer.reader(reader, prepared.mask)
        if prepared.boxes is None:
            reader = reader_of_last(
                graph,
                reader,
                team,
                stack,
                prepared.spooled,
                [n for n, spooled in enumerate(prepared.spool_input) if spooled],
                job.target,
            )
        writer = _writer(job, prepared.header)
        if prepared.spool_output and job.scale != "auto":
            writer = SpooledWriter(writer)
        streamed: VolumeWriter = writer
        if observer is not None:
            streamed = observer.writer(writer, output_mask)
        peaks: PeakWriter | None = None
        if job.path_of(PEAKS) is not None and prepared.job.peak_rules is not None:
            from conv3d_cli.pipeline.peaks import PeakWriter  # few jobs look for peaks

            streamed = peaks = PeakWriter(streamed, prepared.job.peak_rules)
        with writer, naming(prepared.reader), faults_noticed():
            load_loops(graph, prepared.reader.header, writer.header.dtype)
            beside = [
                (role_of(o.role), stack.enter_context(_additional_writer(o.path, prepared)))
                for o in job.beside
                if not role_of(o.role).is_table
            ]
            streams = [(role, other) for role, other in beside if role.values is not None]
            saved = {role.iteration: other for role, other in beside if role.iteration}
            progress = watch_iterations(prepared, progress, saved)
            if prepared.boxes is None:
                times = stream(prepared.stream_plan, reader, streamed, team, progress, streams)
            else:
                from conv3d_cli.pipeline.boxes.stream import stream_boxes  # few jobs need boxes

                partition, parts = prepared.boxes.partition, prepared.stream_plan.parts
                times = stream_boxes(graph, partition, parts, reader, streamed, team, progress)
            reader.finish()
            check_maps(before)
            voxels = math.prod(prepared.header.shape)
            coverage_notes = _coverage_notes(prepared)
            clipped_notes = [
                *clipped_note(job, prepared.header, times.clipped, voxels),
                *loss_notes(prepared),
            ]
            changed_notes = [
                f"{'the input' if path == job.source else path} was modified while it was read; "
                "the output may be of both versions"
                for path, status in before.items()
                if _version_of(path) != status
            ]
            if job.strict:
                read_notes = prepared.reader.losses
                refuse_losses(
                    [
                        *clipped_notes,
                        *coverage_notes,
                        *read_notes,
                        *writer.notes,
                        *changed_notes,
                    ]
                )
            table = None if peaks is None else peaks.table()
            commit_started = time.perf_counter()
            if not POSIX:  # Windows replaces no file that is open, and an input may be the target
                prepared.reader.close()
            with committed_together():
                for _, other in beside:
                    other.commit()
                if table is not None:
                    _write_table(table, job)
                writer.commit()
            times.write += time.perf_counter() - commit_started
    checked = check_report(graph.all_convolutions)
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
        notes=[
            *cleanup_notes(),
            *prepared.notes,
            *late_notes,
            *writer.remarks,
            *writer.notes,
            *coverage_notes,
            *clipped_notes,
            *changed_notes,
            *check_notes(job, checked),
            *notes_on_others(job),
        ],
        fwhm=kernel_fwhm(prepared) if statistics else None,
        statistics=None if observer is None else observer.statistics(),
        checks=checked,
    )


def _write_table(text: str, job: Job) -> None:
    """Write the table of the peaks that were found. Raises: OutputExistsError, WriteError."""
    path = job.path_of(PEAKS)
    assert path is not None
    with output_file(path, job.overwrite) as output:
        with write_errors(path):
            output.file.write(text.encode())
        output.commit()


def _files_read(job: Job) -> list[str]:
    """The plain files that a job reads; a missing one is an error when it is opened."""
    try:
        found = [path for paths in input_files(job).values() for path in paths]
    except Conv3DError:
        return []
    return [path for path in found if os.path.isfile(path)]


def _version_of(path: str) -> tuple[int, int, int] | None:
    """Size, time of modification and inode of a file; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


@contextmanager
def _output_mask(prepared: PreparedJob) -> Iterator[Mask | None]:
    """The mask, opened once more, if it lies on the output's grid; else None.

    The writing thread reads it while the reading thread reads the job's own.
    """
    source = prepared.reader.header
    same = source.shape[1:4] == prepared.header.shape[1:4] and prepared.header.transform.is_identity
    if not same:
        yield None
        return
    with open_job_mask(prepared.job, source) as mask:
        yield mask


def kernel_fwhm(prepared: PreparedJob) -> KernelFwhm | None:
    """The FWHM of a job's kernel along D, H, W on the volume's grid.

    None for layers, banks and stacks, and for a kernel without a single bump along any axis.
    """
    stage = prepared.last
    if len(prepared.stages) > 1 or stage.kernel.is_layer or stage.kernel.is_bank:
        return None
    factors, unit = length_scale(prepared.reader.header.grid)
    scaled = zip(stage.kernel.fwhm(), stage.problem.dilation_rate, factors, strict=True)
    d, h, w = (None if width is None else width * step * s for width, step, s in scaled)
    return None if (d, h, w) == (None, None, None) else KernelFwhm((d, h, w), unit)


def _writer(job: Job, header: VolumeHeader) -> VolumeWriter:
    """The writer of the main output."""

    def create(header: VolumeHeader) -> VolumeWriter:
        with job.limits():
            return create_volume(
                job.target,
                header,
                overwrite=job.overwrite,
                gz_level=job.gz_level,
                threads=job.threads,
                chunks=job.chunks,
                levels=job.levels,
                levels_by=job.levels_by,
                compression=job.compression,
            )

    if job.scale != "auto":
        return create(header)
    # what is lost is known before the file is begun, so that --strict refuses it
    known = lost_facts(output_format(job.target), job.target, header)
    return ScaledWriter(
        header, job.target, lambda scale: create(replace(header, scale=scale)), known
    )


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


def refuse_losses(notes: list[str]) -> None:
    """Raises: ShapeError under --strict if there are notes on losses."""
    if notes:
        raise ShapeError(f"{setting('strict', True)}: {'; '.join(notes)}; nothing was written")


def _coverage_notes(prepared: PreparedJob) -> list[str]:
    """Notes on outputs below the minimal coverage. Raises: ShapeError if no output is above it."""
    missing, first = prepared.job.missing, prepared.convolutions[0].convolution
    if missing.mask is not None:
        if not first.below_min_coverage:
            return []
        condition = (
            f"inside the mask had less than {missing.min_coverage:g} of the kernel's weight "
            f"({setting('min_coverage')})"
        )
        if not first.any_mean:
            raise ShapeError(f"no voxel is left: all {first.below_min_coverage} voxels {condition}")
        return [f"{first.below_min_coverage} voxels {condition} and are 0"]
    counts = [
        (stage.convolution.below_min_coverage, math.prod(stage.problem.out_shape))
        for stage in prepared.convolutions
    ]
    if any(0 < count == total for count, total in counts):  # an empty batch misses nothing
        raise ShapeError("no voxel is left: all of them are missing")
    return [
        f"{count} voxels ({percent(count, total)}) had too little of the kernel's "
        f"weight ({setting('min_coverage')}) and are NaN"
        for count, total in counts
        if count
    ]


def loss_notes(prepared: PreparedJob) -> list[str]:
    """Notes on values that the arithmetic or the output's dtype lost, apart from clipped ones."""
    job, convolutions = prepared.job, prepared.graph.all_convolutions
    first, last, source = convolutions[0], convolutions[-1], prepared.reader.header.dtype
    out = np.dtype(np.float32) if job.scale == "auto" else prepared.header.dtype
    graph = prepared.graph
    is_copy = isinstance(first, Copy) and first is last and not graph.all_operations
    watched = [convolution.losses for convolution in convolutions if convolution.losses is not None]
    losses = replace(
        watched[-1],
        largest=watched[0].largest,
        spoiled=max(losses.spoiled for losses in watched),
    ).plus_rounding(graph.roundings)
    if scale_note := _dropped_scale_note(prepared):
        return [scale_note]
    real = out if is_copy else first.plan.dtype
    cure = setting("dtype", source.name) if is_copy else setting("precision", "float64")
    notes = losses.notes(real, out, cure)
    beyond = {one.note(np.dtype(job.precision)) for one in graph.roundings}
    notes += filter(None, (*sorted(beyond), *(one.lost_note() for one in graph.all_operations)))
    if out == np.float64 and job.precision == "float32" and not is_copy:
        notes.append(
            "the output is float64, but the arithmetic float32: its voxels are exact to 7 digits; "
            f"{setting('precision', 'float64')} computes 15"
        )
    return notes


def _dropped_scale_note(prepared: PreparedJob) -> str:
    """A note if a copy that should keep its numbers has their values instead; "" if not."""
    job, source, header = prepared.job, prepared.reader.header, prepared.header
    held = job.scale != "keep" or source.scale in ((1.0, 0.0), header.scale)
    if held or job.dtype not in (None, SAME_DTYPE):
        return ""
    slope, intercept = source.scale
    return (
        f"the input stores {source.dtype.name} with a slope and an intercept (value = stored * "
        f"{slope:.9g} + {intercept:.9g}), which {output_format(job.target).name} does not hold: "
        f"the output has the values, in {header.dtype.name}"
    )


def clipped_note(job: Job, header: VolumeHeader, clipped: int, voxels: int) -> list[str]:
    """A note on clipped values with the cure, or none.

    header : VolumeHeader   of the output
    clipped : int       values that the output's dtype could not hold
    voxels : int        values of the output
    """
    if not clipped:
        return []
    limits = np.iinfo(header.dtype)
    cures = [f"{setting('dtype', 'float32')} keeps all values"]
    if limits.min == 0:
        cures.append("int16 negative ones")
    if output_format(job.target).holds_scale and job.scale != "auto":
        cures.append(f"{setting('scale', 'auto')} fits them in")
    return [
        f"{count_of(clipped, 'voxel')} ({percent(clipped, voxels)}) did not fit "
        f"{header.dtype.name} ({limits.min} to {limits.max}) and were clipped; {', '.join(cures)}"
    ]


def all_losses(prepared: PreparedJob) -> dict[str, float]:
    """Penalties of weights and outputs after a run, by name; in a stack the layer's name precedes.

    The activity penalty is summed over the slabs in float64 and divided by the size of the first
    batch axis, as in Keras.
    """
    batch_shape = prepared.reader.header.axes.batch_shape
    batch = batch_shape[0] if batch_shape else 1
    losses = {}
    stages = prepared.stages if prepared.patches is None else prepared.patches.inner.stages
    for number, stage in enumerate(stages):
        if not isinstance(stage, PreparedStage):
            continue
        prefix = f"{stage.stage.name or number + 1}." if len(stages) > 1 else ""
        if stage.convolution.activity is not None:
            losses[f"{prefix}activity"] = stage.convolution.activity_sum / max(1, batch)
        losses.update({f"{prefix}{name}": value for name, value in stage.losses.items()})
    return losses
