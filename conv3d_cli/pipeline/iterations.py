"""What a job sees of operations that iterate: how far they are, and estimates to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from conv3d_cli.engine.fields import Field
from conv3d_cli.errors import SpecError, setting
from conv3d_cli.kernels.grammar import parse_parameters
from conv3d_cli.pipeline.operations import find_operation
from conv3d_cli.system.atomic import suffix_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conv3d_cli.model.volume import VolumeWriter
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job

Progress = Callable[[int, int], None]
MOST_SAVED = 1000  # files of estimates
PLANES = 8  # of an estimate that are written at once


def saved_paths(job: Job) -> dict[int, str]:
    """The files that estimates are written to, by iteration: `out_iter5.nii.gz`.

    Raises: SpecError if the output is no file, for too many estimates, and for wrong parameters.
    """
    if job.operation is None:
        return {}
    operation = find_operation(job.operation)
    if operation.saves is None:
        return {}
    numbers = operation.saves(parse_parameters(job.operation, operation.function))
    if numbers and job.target == "-":
        raise SpecError(
            f"{setting('save_every')} writes files beside the output: name an output file"
        )
    if len(numbers) > MOST_SAVED:
        raise SpecError(
            f"{setting('save_every')} would write {len(numbers):,} files, and at most "
            f"{MOST_SAVED:,} are written: pass a larger number"
        )
    suffix = suffix_of(job.target)
    name = Path(job.target).name
    stem = name[: len(name) - len(suffix)]
    digits = len(str(max(numbers, default=0)))
    return {
        number: str(Path(job.target).with_name(f"{stem}_iter{number:0{digits}d}{suffix}"))
        for number in numbers
    }


def watch_iterations(
    prepared: PreparedJob, progress: Progress | None, writers: Mapping[int, VolumeWriter]
) -> tuple[Progress | None, set[int]]:
    """Let a job's operations tell their iterations.

    progress : callable or None     called with (values finished, values in all)
    writers : mapping               iteration -> writer of its estimate
    Returns the progress for the values of the output, which come after those of the iterations, and
    a set that is filled with the numbers of the iterations that were written.
    """
    written: set[int] = set()
    iterated = [operation for operation in prepared.graph.operations if operation.iterates]
    count = prepared.reader.header.shape[0]
    own = math.prod(prepared.header.shape)
    all_rounds = sum(
        operation.rounds * math.prod(operation.shape) * count for operation in iterated
    )
    before = 0
    for operation in iterated:
        voxels, first = math.prod(operation.shape.size), before
        before += operation.rounds * math.prod(operation.shape) * count

        def watch(
            n: int,
            channel: int,
            number: int,
            field: Field,
            rounds: int = operation.rounds,
            channels: int = operation.shape.channels,
            voxels: int = voxels,
            first: int = first,
        ) -> None:
            if progress is not None:
                done = (n * channels + channel) * rounds + number
                progress(first + done * voxels, all_rounds + own)
            if number in writers:
                written.add(number)
                depth = prepared.header.shape[1]
                for start in range(0, depth, PLANES):
                    planes = field.read(start, min(start + PLANES, depth))
                    block = planes.astype("float32")[..., None]
                    writers[number].write(n, start, channel, block)

        operation.watch = watch
    if progress is None or not all_rounds:
        return progress, written
    return lambda done, total: progress(all_rounds + done, all_rounds + total), written
