"""From the arguments of `conv3d apply` to jobs: files, folders or a manifest, and where each output goes. No volume is opened."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.batch.names import check_outputs, identity, made_before, output_name
from conv3d_cli.cli.options import MANIFEST_OPTIONS, given_options, job_settings, make_job
from conv3d_cli.errors import ConfigError, Conv3DError, SpecError
from conv3d_cli.settings.config import located_bias, located_kernel
from conv3d_cli.system.atomic import suffix_of

if TYPE_CHECKING:
    from conv3d_cli.batch.discover import Found
    from conv3d_cli.batch.manifest import Row
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.bids import Dataset

# columns whose texts are paths
_READ_PATHS, _WRITTEN_PATHS = ("input", "mask", "config"), ("output", "coverage_out")


@dataclass
class Planned:
    """What a command asks for.

    jobs : list         one for each volume, in the order of the arguments or of the manifest's lines
    given : list        the options that shape each, by their parameters' names: of the command line and of its row
    notes : list        on what was left out
    dataset : Dataset or None   that --bids makes of the outputs
    """

    jobs: list[Job]
    given: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    dataset: Dataset | None = None


def plan_jobs(ctx: click.Context, inputs: Sequence[str]) -> Planned:
    """The jobs of a command.

    Raises: Conv3DError for anything that is wrong before data are read: options, names, clashes between outputs, an output
    that is an input; FormatError if folders hold no volume, or config or manifest cannot be read.
    """
    if ctx.params["desc"] is not None and not ctx.params["bids"]:
        raise SpecError("--desc is the label of --bids: pass both")
    planned = (_from_arguments if ctx.params["manifest"] is None else _from_manifest)(ctx, inputs)
    _check_coverage(planned.jobs)
    if ctx.params["history"]:
        from conv3d_cli.provenance.command import with_history

        planned.jobs = [with_history(job, given) for job, given in zip(planned.jobs, planned.given, strict=True)]
    return planned


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


def _from_arguments(ctx: click.Context, inputs: Sequence[str]) -> Planned:
    if not inputs:
        raise click.UsageError("no input: name volumes or folders, or a table of them with --manifest", ctx)
    params, settings, given = ctx.params, apply_settings(ctx), given_options(ctx)
    _check_bids(params)
    output, out_dir = params["output"], params["out_dir"]
    renamed = out_dir is not None or params["suffix"] or params["prefix"]
    if output is not None and renamed:
        raise SpecError("-o names one output; leave out --out-dir, --suffix and --prefix")
    if output is None and not renamed:
        raise SpecError(f"no output: {_output_options(inputs, given)}")
    if renamed and "-" in inputs:
        raise SpecError("standard input has no name to make an output's from; pass -o")
    if output is not None and (folder := next((name for name in inputs if os.path.isdir(name)), None)) is not None:
        from conv3d_cli.batch.discover import is_folder

        if is_folder(folder):
            raise SpecError(f"-o names one output, and {folder} is a folder; pass --out-dir for the volumes in it")
    found, notes = _expand(inputs, params, settings)
    sources = [volume.path for volume in found]
    dataset = _dataset(sources, params, [given] * len(sources))
    if output is not None:
        if len(sources) > 1:
            raise SpecError(f"-o names one output, received {len(sources)} inputs; pass --out-dir for many")
        targets = [output]
    elif dataset is not None:
        targets = dataset.targets
    else:
        targets = [output_name(v.path, out_dir, params["suffix"], params["prefix"], v.below) for v in found]
        old = {number for number in made_before(sources, targets) if found[number].in_folder}
        if old:
            notes.append(f"left out {len(old)} volume{'s' if len(old) > 1 else ''} that this command writes")
            sources, targets = ([x for i, x in enumerate(names) if i not in old] for names in (sources, targets))
        check_outputs(sources, targets, bool(settings.get("overwrite")), files=_read_from)
    if params["coverage_out"] and len(sources) > 1:
        raise SpecError(f"--coverage-out names one file, received {len(sources)} inputs; run them apart")
    jobs = [make_job(source, target, settings) for source, target in zip(sources, targets, strict=True)]
    return Planned(jobs, [given] * len(jobs), notes, dataset)


def _output_options(inputs: Sequence[str], given: dict[str, Any]) -> str:
    """What to type for an output, for messages, with a name that it could have."""
    kernel = str(given.get("kernel", "")).partition(":")[0]
    word = kernel if kernel.isidentifier() else "out"
    source = inputs[0]
    if len(inputs) > 1 or (os.path.isdir(source) and not suffix_of(source)):
        return f"pass --out-dir DIR, as in --out-dir {word}, or --suffix or --prefix"
    name = f"{word}.npy" if source == "-" else os.path.basename(output_name(source, None, f"_{word}"))
    return f"pass -o OUT, as in -o {shlex.quote(name)}, or --out-dir, --suffix or --prefix for many inputs"


def _expand(inputs: Sequence[str], params: dict[str, Any], settings: dict[str, Any]) -> tuple[list[Found], list[str]]:
    """Inputs with folders replaced by the volumes in them."""
    from conv3d_cli.batch.discover import find_volumes

    used = [*settings.get("files", ()), settings.get("mask"), params["coverage_out"]]
    for stage in settings["stages"]:
        used += [*stage.get("files", ()), stage.get("kernel")]
    used = [path for path in used if isinstance(path, str)]
    return find_volumes(
        inputs, params["recursive"], params["glob"], params["out_dir"], used, params["include_discrete"], params["bids"]
    )


# ---------------------------------------------------------------------------------------------------------------------
# A manifest


def _from_manifest(ctx: click.Context, inputs: Sequence[str]) -> Planned:
    from conv3d_cli.batch.discover import check_left
    from conv3d_cli.batch.discrete import LeftOut, named_discrete
    from conv3d_cli.batch.manifest import read_manifest

    params = ctx.params
    _check_bids(params)
    path = params["manifest"]
    for wrong, what in (
        (inputs, "INPUT"),
        (params["output"], "-o"),
        (params["glob"], "--glob"),
        (params["recursive"], "--recursive"),
    ):
        if wrong:
            raise SpecError(f"--manifest names the volumes and their outputs; leave out {what}")
    rows = read_manifest(path, ("input", "output", *MANIFEST_OPTIONS))
    folder = Path(path).parent
    own = given_options(ctx)
    left = LeftOut()
    kept, sources, labels, given = [], [], [], []
    for row in rows:
        where = f"manifest {path}, line {row.line}"
        source = _located(row.cells["input"], folder)
        if source == "-":
            raise ConfigError(f"{where}, column input: '-' is no file, and a manifest names files")
        if params["bids"] and not left.sift(source, params["include_discrete"]):
            continue
        kept.append(row)
        sources.append(source)
        labels.append(f"{source} (line {row.line})")
        given.append({**own, **_options(ctx, row, folder, where)})
    rows = kept
    with _told_where(f"manifest {path}"):
        check_left(rows, left)
        dataset = _dataset(sources, params, given)
    left.taken += [] if params["bids"] else named_discrete(sources)
    targets = []
    for number, (row, source) in enumerate(zip(rows, sources, strict=True)):
        where = f"manifest {path}, line {row.line}"
        if dataset is None:
            targets.append(_target(row, source, params, folder, where))
        elif "output" in row.cells:
            raise ConfigError(f"{where}, column output: --bids names the outputs; leave the column out")
        else:
            targets.append(dataset.targets[number])
    known: dict[str, dict[str, Any]] = {}  # settings by what was given
    jobs = []
    for row, source, target, options in zip(rows, sources, targets, given, strict=True):
        with _told_where(f"manifest {path}, line {row.line}"):
            key = json.dumps(options, sort_keys=True)
            if key not in known:
                settings = apply_settings(ctx, options)
                known[key] = {**settings, "files": (*settings.get("files", ()), path)}
            jobs.append(make_job(source, target, known[key]))
    with _told_where(f"manifest {path}"):
        check_outputs(sources, targets, any(job.overwrite for job in jobs), labels, _read_from)
    return Planned(jobs, given, left.notes(), dataset)


def _read_from(source: str) -> tuple[str, ...]:
    """The files that an input is read from."""
    from conv3d_cli.formats import readable_files

    return readable_files(source)


def _target(row: Row, source: str, params: dict[str, Any], folder: Path, where: str) -> str:
    """Where a row's output goes: its own column, below --out-dir if there is one, else a name made of the input's."""
    out_dir = params["out_dir"]
    if "output" in row.cells:
        target = _located(row.cells["output"], folder if out_dir is None else Path(out_dir))
        if target == "-":
            raise ConfigError(f"{where}, column output: '-' is no file, and a manifest names files")
        return target
    if out_dir is None and not params["suffix"] and not params["prefix"]:
        raise ConfigError(f"{where}, column output: no output; name one, or pass --out-dir, --suffix or --prefix")
    return output_name(source, out_dir, params["suffix"], params["prefix"])


def _options(ctx: click.Context, row: Row, folder: Path, where: str) -> dict[str, Any]:
    """A row's options, as they would be on the command line. Raises: ConfigError, which names line and column."""
    parameters = {parameter.name: parameter for parameter in ctx.command.params}
    options: dict[str, Any] = {}
    for column, text in row.cells.items():
        if column in ("input", "output"):
            continue
        parameter = parameters[column]
        kind = click.BOOL if getattr(parameter, "is_flag", False) else parameter.type
        value: Any
        try:
            value = kind.convert(text, parameter, ctx)
        except click.BadParameter as error:
            raise ConfigError(f"{where}, column {column}: {error.message}") from None
        if column == "kernel":
            value = located_kernel(value, folder)
        elif column == "bias":
            value = located_bias(value, folder)
        elif column in _READ_PATHS:
            value = _located(value, folder)
        elif column in _WRITTEN_PATHS:
            out_dir = ctx.params["out_dir"]
            value = _located(value, folder if out_dir is None else Path(out_dir))
        options[column] = value
    return options


def _located(text: str, folder: Path) -> str:
    """A path out of a file in `folder`, which it is relative to; URLs stay."""
    return text if "://" in text or text == "-" else str(folder / text)


@contextmanager
def _told_where(where: str) -> Iterator[None]:
    """Errors of the body begin with a place."""
    try:
        yield
    except Conv3DError as error:
        raise type(error)(f"{where}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Both


def apply_settings(ctx: click.Context, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments for `make_job` but source and target; under --to-fwhm the kernel is found later.

    given : dict or None    options by their parameters' names; None: those of the command line
    Raises: as `job_settings`.
    """
    settings = job_settings(given_options(ctx) if given is None else given)
    if ctx.params["to_fwhm"]:
        if len(settings["stages"]) > 1 or "kernel" in settings["stages"][0]:
            raise SpecError("--to-fwhm finds its kernel: leave out -k, and the config's")
        settings["stages"] = [{**settings["stages"][0], "kernel": "identity"}]
    return settings


def _check_bids(params: dict[str, Any]) -> None:
    """Refuse options that would name what --bids names."""
    if not params["bids"]:
        return
    if params["out_dir"] is None:
        raise SpecError("--bids writes a dataset: name its folder, as in --out-dir derivatives/conv3d")
    for name in ("output", "suffix", "prefix"):
        if params[name]:
            raise SpecError(f"--bids names the outputs: leave out --{name}")


def _dataset(sources: Sequence[str], params: dict[str, Any], given: Sequence[dict[str, Any]]) -> Dataset | None:
    """The derivative dataset that --bids asks for."""
    if not params["bids"]:
        return None
    from conv3d_cli.provenance.bids import plan_dataset

    return plan_dataset(sources, params["out_dir"], given)


def _check_coverage(jobs: Sequence[Job]) -> None:
    """Refuse a coverage that two jobs would write, or that another's output or input is."""
    others = {identity(name) for job in jobs for name in (job.source, job.target)}
    for job in jobs:
        if job.coverage is not None:
            real = identity(job.coverage)
            if real in others:
                raise SpecError(
                    f"the coverage {job.coverage} is also an input, an output or another's coverage; rename it"
                )
            others.add(real)
