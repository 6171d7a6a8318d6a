"""What a job sees of operations that iterate: how far they are, and estimates to write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.fields import Field
from conv3d_cli.errors import Conv3DError, SpecError, setting
from conv3d_cli.pipeline.files import input_files
from conv3d_cli.pipeline.operations import find_operation
from conv3d_cli.pipeline.outputs import Output, estimate_output
from conv3d_cli.system.atomic import sent_to, suffix_of
from conv3d_cli.system.numbered import numbered_files, numbered_name
from conv3d_cli.system.portable import true_path
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conv3d_cli.model.volume import VolumeWriter
    from conv3d_cli.pipeline.prepare import PreparedJob
    from conv3d_cli.pipeline.request import Job

Progress = Callable[[int, int], None]
MOST_SAVED = 1000  # files of estimates
PLANES = 8  # of an estimate that are written at once


def saved_numbers(text: str) -> Sequence[int]:
    """The iterations whose estimates an operation writes. Raises: SpecError for its parameters."""
    operation = find_operation(text)
    if operation.saves is None:
        return ()
    return operation.saves(operation.values(text))


def saved_outputs(text: str, target: str) -> tuple[Output, ...]:
    """The files that an operation's estimates are written to, in order: `out_iter5.nii.gz`.

    target : str    the path of the output
    Raises: SpecError if the output is no file, for too many estimates, and for wrong parameters.

    >>> [one.path for one in saved_outputs("deconvolve:iterations=12:save_every=5", "o.tif")]
    ['o_iter05.tif', 'o_iter10.tif']
    """
    numbers = saved_numbers(text)
    if numbers and sent_to(target):
        raise SpecError(
            f"{setting('save_every')} writes files beside the output: name an output file"
        )
    if len(numbers) > MOST_SAVED:
        raise SpecError(
            f"{setting('save_every')} would write {len(numbers):,} files, and at most "
            f"{MOST_SAVED:,} are written: pass a larger number"
        )
    name = target.rstrip("/")
    suffix, digits = suffix_of(name), len(str(max(numbers, default=0)))
    return tuple(
        estimate_output(number, numbered_name(name, suffix, number, digits)) for number in numbers
    )


def notes_on_others(job: Job) -> list[str]:
    """What to say of files beside the output that have names of its estimates, and are none.

    They stay, as nothing proves who wrote them.
    """
    operation = job.operation and find_operation(job.operation)
    if not operation or operation.saves is None or sent_to(job.target):
        return []
    name = job.target.rstrip("/")
    files = [one.path.rstrip("/") for one in job.outputs]
    with suppress(Conv3DError):  # an input that is gone by now
        files += [path for paths in input_files(job).values() for path in paths]
    own = set(map(true_path, files))
    others = [path for path in numbered_files(name, suffix_of(name)) if true_path(path) not in own]
    if not others:
        return []
    verb = "is named" if len(others) == 1 else "are named"
    which = others[0] if len(others) == 1 else f"{others[0]} to {os.path.basename(others[-1])}"
    return [
        f"{count_of(len(others), 'file')} beside the output {verb} as its estimates are, and this "
        f"run did not write {'it' if len(others) == 1 else 'them'}: {which}"
    ]


def watch_iterations(
    prepared: PreparedJob, progress: Progress | None, writers: Mapping[int, VolumeWriter]
) -> Progress | None:
    """Let a job's operations tell their iterations.

    progress : callable or None     called with (values finished, values in all)
    writers : mapping               iteration -> writer of its estimate
    Estimates are limited to the job's mask as its output is.
    Returns the progress for the values of the output, which come after those of the iterations.
    """
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
            data: Field,
            rounds: int = operation.rounds,
            channels: int = operation.shape.channels,
            voxels: int = voxels,
            first: int = first,
        ) -> None:
            if progress is not None:
                done = (n * channels + channel) * rounds + number
                progress(first + done * voxels, all_rounds + own)
            if number in writers:
                depth = prepared.header.shape[1]
                for start in range(0, depth, PLANES):
                    stop = min(start + PLANES, depth)
                    planes = _limited(prepared, start, stop, field, data)
                    block = planes.astype("float32")[..., None]
                    writers[number].write(n, start, channel, block)

        operation.watch = watch
    if progress is None or not all_rounds:
        return progress
    return lambda done, total: progress(all_rounds + done, all_rounds + total)


def _limited(
    prepared: PreparedJob, start: int, stop: int, estimate: Field, data: Field
) -> NDArray[np.floating]:
    """Planes (d, H, W) of an estimate, and what the mask rules want outside the mask."""
    planes, missing = estimate.read(start, stop), prepared.job.missing
    if prepared.mask is None or missing.mask_mode == "extend":
        return planes
    _, height, width = planes.shape
    box = slice(start, stop), slice(0, height), slice(0, width)
    inside = prepared.mask.inside(prepared.mask.reader.read_box(0, *box, slice(0, 1))[..., 0])
    return np.where(inside, planes, data.read(start, stop) if missing.mask_mode == "keep" else 0)
