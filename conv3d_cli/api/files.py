"""`convolve_file()`: convolve one volume from file to file, as `conv3d apply` does."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.api.kernels import KernelLike, kernel_of_array
from conv3d_cli.batch.steps import BatchOptions, FinishedOutputs, JobRun, run_steps
from conv3d_cli.errors import SpecError, unknown_name
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.make import make_job
from conv3d_cli.pipeline.run import JobReport
from conv3d_cli.settings.merge import apply_settings
from conv3d_cli.settings.needs import check_needs
from conv3d_cli.settings.option import Option
from conv3d_cli.settings.options import PYTHON_OPTIONS, Settings

# options whose value names the kernel in a file beside or inside the output
_RECORDS = ("history", "sidecar")


def convolve_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kernel: KernelLike | None = None,
    *,
    kernel_layout: str = "keras",
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> JobReport:
    """Convolve a volume from file to file, in bounded memory, as `conv3d apply` does.

    source, target : paths of volumes of any format; the suffix of `target` chooses its format
    kernel : text as for `-k`, a path, an array, a `Kernel`; None if `config`, `to_fwhm` or the
        initializers give it
    kernel_layout : "keras", or "torch" for an array (filters, in_channels/groups, kd, kh, kw)
    progress : callable or None, called with (values finished, values in all), from any thread
    options : those of the command, with underscores and with its defaults: a 3-D kernel keeps the
        size of its input (padding="same", boundary="symmetric"). They are listed below
    Returns the report of the job: seconds, clipped values, penalties, and the notes that the
        command prints.
    Raises: any Conv3DError, before anything is written where that is possible. The output appears
        complete or not at all.

    >>> import tempfile
    >>> from conv3d_cli import Grid, Volume, read_volume, write_volume
    >>> scan = Volume(np.ones((6, 8, 8), np.int16), "zyx", Grid((3.0, 2.0, 2.0), "mm"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_volume(f"{folder}/in.nii", scan)
    ...     report = convolve_file(f"{folder}/in.nii", f"{folder}/out.nii", "gaussian:fwhm=6mm")
    ...     smooth = read_volume(f"{folder}/out.nii")
    >>> report.voxels, report.clipped, smooth.data.dtype.name, smooth.grid.spacing
    (384, 0, 'float32', (3.0, 2.0, 2.0))
    """
    given = _settings(kernel, kernel_layout, options)
    settings = apply_settings(given)
    job = make_job(os.fsdecode(source), os.fsdecode(target), settings)
    check_needs(settings)
    recordings = {}
    if given.history:
        from conv3d_cli.provenance.command import with_history

        job = with_history(job, given)
    if given.sidecar:
        from conv3d_cli.provenance.run import plan_recordings

        recordings = plan_recordings([job], [given], {}, {})
    asked = BatchOptions(verify=given.verify, to_fwhm=given.to_fwhm, recordings=recordings)
    run = JobRun(job, asked, FinishedOutputs(), progress or _ignore, _ignore)
    result = run_steps(run)
    if result.error is not None:
        raise result.error
    assert run.report is not None
    return replace(run.report, notes=[*run.notes, *run.report.notes])


def convert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> JobReport:
    """Copy a volume into another file or format, in bounded memory, as `conv3d convert` does.

    source, target : paths of volumes of any format; the suffix of `target` chooses its format
    progress : as of `convolve_file`
    options : those of `convolve_file` for jobs and formats, such as levels, chunks, compression,
        axes, spacing; dtype="same" and scale="keep" are the defaults: each voxel keeps its bits
    Returns the report of the job, whose notes tell what the format of `target` does not hold.
    Raises: as `convolve_file`.

    >>> import tempfile
    >>> from conv3d_cli import Volume, read_volume, write_volume
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_volume(f"{folder}/a.npy", Volume(np.full((2, 3, 4), 2**63, np.uint64), "zyx"))
    ...     report = convert_file(f"{folder}/a.npy", f"{folder}/b.nrrd")
    ...     int(read_volume(f"{folder}/b.nrrd").data.max())
    9223372036854775808
    """
    copying = {"dtype": "same", "scale": "keep"}
    return convolve_file(source, target, "identity", progress=progress, **{**copying, **options})


def _ignore(*_: object) -> None:
    pass


def _settings(kernel: Any, layout: str, options: dict[str, Any]) -> Settings:
    """The settings that arguments ask for. Raises: SpecError, UnknownNameError, ShapeError."""
    known = {option.name: option for option in PYTHON_OPTIONS}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise unknown_name("option", name, known)
        if value is not None:
            values[name] = _value(known[name], value)
    if isinstance(kernel, os.PathLike):
        kernel = os.fspath(kernel)
    if kernel is not None and not isinstance(kernel, (str, Kernel)):
        kernel = kernel_of_array(kernel, layout)
    elif layout != "keras":
        raise SpecError(
            f"kernel_layout={layout!r} is for arrays, whose layout nothing tells; leave it out"
        )
    for name in _RECORDS:
        if values.get(name) and isinstance(kernel, Kernel):
            raise SpecError(
                f"{name}=True records how the output was made, and a kernel in memory has no name; "
                "save it, as with np.save('kernel.npy', weights), and pass its path"
            )
    return Settings(kernel=kernel, **values)


def _value(option: Option, value: Any) -> Any:
    """A value as a config has it: plain numbers, texts and lists. Raises: SpecError."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, tuple):
        value = list(value)
    elif option.name == "dtype" and not isinstance(value, str):
        try:
            value = np.dtype(value).name
        except TypeError:
            raise SpecError(f"dtype must be a name such as 'int16', received {value!r}") from None
    kind = option.kind
    rule = option.config or kind.value
    if not (rule.allows(value) and kind.in_range(value)):
        raise SpecError(f"{option.name} must be {rule.words}, received {value!r}")
    if kind.choices and value not in kind.choices:
        raise unknown_name(option.name, value, kind.choices)
    return value


def _signature() -> inspect.Signature:
    """The signature with every option of the table, for help() and editors."""
    own = inspect.signature(convolve_file)
    named = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for option in PYTHON_OPTIONS
    ]
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    return own.replace(parameters=[*kept, *named])


def _options_text() -> str:
    """The options with their help, for help()."""
    lines = ["", "", "Options:"]
    for option in PYTHON_OPTIONS:
        text = re.sub(r"--([a-z][a-z-]+)", lambda found: found[1].replace("-", "_"), option.help)
        if option.default is not None:
            text += f"  [default: {option.default}]"
        text = f"{option.name} : {text}".replace("-k:", "a kernel:")
        lines.append(textwrap.fill(text, 96, subsequent_indent=" " * 4))
    return "\n".join(lines)


# From Python 3.13 on, docstrings have no indentation; before, `cleandoc` takes it away.
convolve_file.__doc__ = inspect.cleandoc(convolve_file.__doc__ or "") + _options_text()
convolve_file.__signature__ = _signature()  # type: ignore[attr-defined]
