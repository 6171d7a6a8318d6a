"""The files that a job reads and writes.

`batch/depfile.py` lists them for make; `batch/resume.py` compares their contents.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from conv3d_cli.errors import Conv3DError, OutputExistsError
from conv3d_cli.formats import readable_files, volume_files, written_files
from conv3d_cli.kernels import is_builtin
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.portable import true_path


def input_files(job: Job) -> dict[str, tuple[str, ...]]:
    """The files that a running job reads, by role: "input", "mask",
    "normalization mask", "template mask", "label names", "kernel".

    A Zarr store counts as one folder. Files that were read to make the job (weights, biases,
    configs) are listed by `settings_files`.
    Raises: FormatError if one file of a pair is missing.
    """
    files = {} if job.source == "-" else {"input": volume_files(job.source)}
    if job.missing.mask is not None:
        files["mask"] = volume_files(job.missing.mask)
    if job.normalize_mask is not None:
        files["normalization mask"] = volume_files(job.normalize_mask)
    if job.template_mask is not None:
        files["template mask"] = volume_files(job.template_mask)
    if job.label_names is not None:
        files["label names"] = (job.label_names,)
    for number, stage in enumerate(job.given_stages, 1):
        if isinstance(stage, Stage) and (path := kernel_file(stage)) is not None:
            files["kernel" if len(job.given_stages) == 1 else f"kernel of layer {number}"] = (
                readable_files(path)
            )
    return files


def settings_files(job: Job) -> tuple[str, ...]:
    """The files that a job was made from: configs, a manifest, weights files, biases."""
    return tuple(
        dict.fromkeys([*job.files, *(path for stage in job.given_stages for path in stage.files)])
    )


def output_files(job: Job) -> tuple[str, ...]:
    """The files that a job writes; a Zarr store counts as one folder."""
    return tuple(file for output in job.outputs for file in written_files(output.path))


def check_nothing_read_is_replaced(jobs: Sequence[Job]) -> None:
    """Refuse an output that would replace a mask, a kernel or another such file of any of the jobs.

    One that replaces a volume is not looked at here: a volume may be replaced by its own output.
    Without `overwrite` nothing is replaced: an earlier row of a manifest may have made a mask.
    Raises: OutputExistsError.
    """
    written = {
        true_path(path): job.source
        for job in jobs
        if job.overwrite and job.target != "-"
        for path in written_files(job.target)
        if os.path.exists(path)
    }
    if not written:
        return
    for job in jobs:
        own = true_path(file_of(job.source))
        for role, path in files_besides(job):
            real = true_path(path)
            if real in written and real != own:
                raise OutputExistsError(
                    f"the output of {written[real]} would replace {path}, a {role} that is read "
                    "with it or with another input; name another file"
                )


def files_besides(job: Job) -> list[tuple[str, str]]:
    """(role, path) of the files that a job reads besides its volume, as far as they exist."""
    try:
        files = input_files(job)
    except Conv3DError:  # told when the job opens it
        files = {}
    found = [(role, path) for role, paths in files.items() if role != "input" for path in paths]
    return [*found, *(("file of weights or options", path) for path in settings_files(job))]


def kernel_file(stage: Stage) -> str | None:
    """The path of a stage's kernel; None for a built-in, a drawn kernel, or one in memory.

    >>> kernel_file(Stage("psf.tif")), kernel_file(Stage("box:size=3"))
    ('psf.tif', None)
    """
    return stage.kernel if isinstance(stage.kernel, str) and not is_builtin(stage.kernel) else None
