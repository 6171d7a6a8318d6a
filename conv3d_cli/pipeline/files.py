"""Which files a job reads and writes: what makes its output out of date when it changes.

`batch/depfile.py` lists them for make, `batch/resume.py` compares their bytes.
"""

from __future__ import annotations

from conv3d_cli.formats import readable_files, volume_files, written_files
from conv3d_cli.kernels import is_builtin
from conv3d_cli.pipeline.request import Job, Stage


def input_files(job: Job) -> dict[str, tuple[str, ...]]:
    """The files that are read while a job runs, by what they are to it: "input", "mask", "kernel".

    A Zarr store is a folder here. What was read before, while the job was put together (weights files, biases, configs), is
    in the job itself; `settings_files` names those files.
    Raises: FormatError if one of a pair is missing.
    """
    files = {} if job.source == "-" else {"input": volume_files(job.source)}
    if job.missing.mask is not None:
        files["mask"] = volume_files(job.missing.mask)
    for number, stage in enumerate(job.stages, 1):
        if (path := kernel_file(stage)) is not None:
            files["kernel" if len(job.stages) == 1 else f"kernel of layer {number}"] = (
                readable_files(path)
            )
    return files


def settings_files(job: Job) -> tuple[str, ...]:
    """The files that a job's settings came from: configs, a manifest, weights files, biases."""
    return tuple(
        dict.fromkeys([*job.files, *(path for stage in job.stages for path in stage.files)])
    )


def output_files(job: Job) -> tuple[str, ...]:
    """The files that a job writes; a Zarr store is a folder here."""
    return tuple(file for output in job.outputs for file in written_files(output.path))


def kernel_file(stage: Stage) -> str | None:
    """The file that a stage's kernel will be read from; None for a built-in, a drawn one, or one that is read already."""
    return stage.kernel if isinstance(stage.kernel, str) and not is_builtin(stage.kernel) else None
