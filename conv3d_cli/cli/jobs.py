"""From the arguments of `conv3d apply` to jobs: files, folders or a manifest, and where each output goes. No volume is opened."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conv3d_cli.batch.names import check_outputs, identity, made_before, output_name
from conv3d_cli.errors import ConfigError, Conv3DError, SpecError
from conv3d_cli.settings.config import located_bias, located_kernel
from conv3d_cli.settings.option import File
from conv3d_cli.settings.options import MANIFEST_OPTIONS, OPTION, Settings
from conv3d_cli.system.atomic import suffix_of

if TYPE_CHECKING:
    from conv3d_cli.batch.discover import Found
    from conv3d_cli.batch.manifest import Row
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.bids import Dataset
    from conv3d_cli.settings.merge import JobSettings

Parse = Callable[[str, str], Any]


@dataclass
class Planned:
    """What a command asks for.

    jobs : list         one for each volume, in the order of the arguments or of the manifest's lines
    given : list        what was given for each, on the command line and in its row
    notes : list        on what was left out
    dataset : Dataset or None   that --bids makes of the outputs
    """

    jobs: list[Job]
    given: list[Settings]
    notes: list[str] = field(default_factory=list)
    dataset: Dataset | None = None


def plan_jobs(inputs: Sequence[str], asked: Settings, parse: Parse) -> Planned:
    """The jobs of a command.

    asked : Settings        what was given on the command line
    parse : callable        (option, text) -> the value that the text is of an option; ValueError tells why it is none

    Raises: Conv3DError for anything that is wrong before data are read: options, names, clashes between outputs, an output
    that is an input; FormatError if folders hold no volume, or config or manifest cannot be read.
    """
    if asked.desc is not None and not asked.bids:
        raise SpecError("--desc is the label of --bids: pass both")
    planned = _from_arguments(inputs, asked) if asked.manifest is None else _from_manifest(inputs, asked, parse)
    _check_coverage(planned.jobs)
    if asked.history:
        from conv3d_cli.provenance.command import with_history

        planned.jobs = [with_history(job, given) for job, given in zip(planned.jobs, planned.given, strict=True)]
    return planned


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


def _from_arguments(inputs: Sequence[str], asked: Settings) -> Planned:
    from conv3d_cli.pipeline.make import make_job

    settings = apply_settings(asked)
    _check_bids(asked)
    output, out_dir, suffix, prefix = asked.output, asked.out_dir, asked.suffix or "", asked.prefix or ""
    renamed = out_dir is not None or suffix or prefix
    if output is not None and renamed:
        raise SpecError("-o names one output; leave out --out-dir, --suffix and --prefix")
    if output is None and not renamed:
        raise SpecError(f"no output: {_output_options(inputs, asked)}")
    if renamed and "-" in inputs:
        raise SpecError("standard input has no name to make an output's from; pass -o")
    if output is not None and (folder := next((name for name in inputs if os.path.isdir(name)), None)) is not None:
        from conv3d_cli.batch.discover import is_folder

        if is_folder(folder):
            raise SpecError(f"-o names one output, and {folder} is a folder; pass --out-dir for the volumes in it")
    found, notes = _expand(inputs, asked, settings)
    sources = [volume.path for volume in found]
    dataset = _dataset(sources, asked, [asked] * len(sources))
    if output is not None:
        if len(sources) > 1:
            raise SpecError(f"-o names one output, received {len(sources)} inputs; pass --out-dir for many")
        targets = [output]
    elif dataset is not None:
        targets = dataset.targets
    else:
        targets = [output_name(v.path, out_dir, suffix, prefix, v.below) for v in found]
        old = {number for number in made_before(sources, targets) if found[number].in_folder}
        if old:
            notes.append(f"left out {len(old)} volume{'s' if len(old) > 1 else ''} that this command writes")
            sources, targets = ([x for i, x in enumerate(names) if i not in old] for names in (sources, targets))
        check_outputs(sources, targets, bool(settings.run.overwrite), files=_read_from)
    if asked.coverage_out and len(sources) > 1:
        raise SpecError(f"--coverage-out names one file, received {len(sources)} inputs; run them apart")
    jobs = [make_job(source, target, settings) for source, target in zip(sources, targets, strict=True)]
    return Planned(jobs, [asked] * len(jobs), notes, dataset)


def _output_options(inputs: Sequence[str], asked: Settings) -> str:
    """What to type for an output, for messages, with a name that it could have."""
    kernel = str(asked.kernel or "").partition(":")[0]
    word = kernel if kernel.isidentifier() else "out"
    source = inputs[0]
    if len(inputs) > 1 or (os.path.isdir(source) and not suffix_of(source)):
        return f"pass --out-dir DIR, as in --out-dir {word}, or --suffix or --prefix"
    name = f"{word}.npy" if source == "-" else os.path.basename(output_name(source, None, f"_{word}"))
    return f"pass -o OUT, as in -o {shlex.quote(name)}, or --out-dir, --suffix or --prefix for many inputs"


def _expand(inputs: Sequence[str], asked: Settings, settings: JobSettings) -> tuple[list[Found], list[str]]:
    """Inputs with folders replaced by the volumes in them."""
    from conv3d_cli.batch.discover import find_volumes

    used = [*settings.run.files, settings.run.mask, asked.coverage_out]
    for stage in settings.stages:
        used += [*stage.files, stage.kernel if isinstance(stage.kernel, str) else None]
    paths = [path for path in used if path is not None]
    return find_volumes(
        inputs,
        bool(asked.recursive),
        asked.glob or (),
        asked.out_dir,
        paths,
        bool(asked.include_discrete),
        bool(asked.bids),
    )


# ---------------------------------------------------------------------------------------------------------------------
# A manifest


def _from_manifest(inputs: Sequence[str], asked: Settings, parse: Parse) -> Planned:
    from conv3d_cli.batch.discover import check_left
    from conv3d_cli.batch.discrete import LeftOut, named_discrete
    from conv3d_cli.batch.manifest import read_manifest
    from conv3d_cli.pipeline.make import make_job

    _check_bids(asked)
    path = str(asked.manifest)
    for wrong, what in (
        (inputs, "INPUT"),
        (asked.output, "-o"),
        (asked.glob, "--glob"),
        (asked.recursive, "--recursive"),
    ):
        if wrong:
            raise SpecError(f"--manifest names the volumes and their outputs; leave out {what}")
    rows = read_manifest(path, ("input", "output", *MANIFEST_OPTIONS))
    folder = Path(path).parent
    left = LeftOut()
    kept, sources, labels, given = [], [], [], []
    for row in rows:
        where = f"manifest {path}, line {row.line}"
        source = _located(row.cells["input"], folder)
        if source == "-":
            raise ConfigError(f"{where}, column input: '-' is no file, and a manifest names files")
        if asked.bids and not left.sift(source, bool(asked.include_discrete)):
            continue
        kept.append(row)
        sources.append(source)
        labels.append(f"{source} (line {row.line})")
        given.append(replace(asked, **_options(parse, row, folder, asked, where)))
    rows = kept
    with _told_where(f"manifest {path}"):
        check_left(rows, left)
        dataset = _dataset(sources, asked, given)
    left.taken += [] if asked.bids else named_discrete(sources)
    targets = []
    for number, (row, source) in enumerate(zip(rows, sources, strict=True)):
        where = f"manifest {path}, line {row.line}"
        if dataset is None:
            targets.append(_target(row, source, asked, folder, where))
        elif "output" in row.cells:
            raise ConfigError(f"{where}, column output: --bids names the outputs; leave the column out")
        else:
            targets.append(dataset.targets[number])
    known: dict[str, JobSettings] = {}  # by what was given
    jobs = []
    for row, source, target, options in zip(rows, sources, targets, given, strict=True):
        with _told_where(f"manifest {path}, line {row.line}"):
            key = json.dumps(options.given(), sort_keys=True)
            if key not in known:
                settings = apply_settings(options)
                run = replace(settings.run, files=(*settings.run.files, path))
                known[key] = replace(settings, run=run)
            jobs.append(make_job(source, target, known[key]))
    with _told_where(f"manifest {path}"):
        check_outputs(sources, targets, any(job.overwrite for job in jobs), labels, _read_from)
    return Planned(jobs, given, left.notes(), dataset)


def _read_from(source: str) -> tuple[str, ...]:
    """The files that an input is read from."""
    from conv3d_cli.formats import readable_files

    return readable_files(source)


def _target(row: Row, source: str, asked: Settings, folder: Path, where: str) -> str:
    """Where a row's output goes: its own column, below --out-dir if there is one, else a name made of the input's."""
    out_dir, suffix, prefix = asked.out_dir, asked.suffix or "", asked.prefix or ""
    if "output" in row.cells:
        target = _located(row.cells["output"], folder if out_dir is None else Path(out_dir))
        if target == "-":
            raise ConfigError(f"{where}, column output: '-' is no file, and a manifest names files")
        return target
    if out_dir is None and not suffix and not prefix:
        raise ConfigError(f"{where}, column output: no output; name one, or pass --out-dir, --suffix or --prefix")
    return output_name(source, out_dir, suffix, prefix)


def _options(parse: Parse, row: Row, folder: Path, asked: Settings, where: str) -> dict[str, Any]:
    """A row's options, as they would be on the command line. Raises: ConfigError, which names line and column."""
    options: dict[str, Any] = {}
    for column, text in row.cells.items():
        if column in ("input", "output"):
            continue
        try:
            value = parse(column, text)
        except ValueError as error:
            raise ConfigError(f"{where}, column {column}: {error}") from None
        file = OPTION[column].file
        if file is File.KERNEL:
            value = located_kernel(value, folder)
        elif file is File.BIAS:
            value = located_bias(value, folder)
        elif file is File.READ:
            value = _located(value, folder)
        elif file is File.WRITTEN:
            value = _located(value, folder if asked.out_dir is None else Path(asked.out_dir))
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


def apply_settings(given: Settings) -> JobSettings:
    """The settings of `apply`'s jobs; under --to-fwhm the kernel is found later.

    given : Settings        what was given on the command line, and in a manifest's row
    Raises: as `merge_settings`; SpecError for --to-fwhm beside a kernel.
    """
    from conv3d_cli.settings.merge import merge_settings

    settings = merge_settings(given)
    if given.to_fwhm:
        if len(settings.stages) > 1 or settings.stages[0].kernel is not None:
            raise SpecError("--to-fwhm finds its kernel: leave out -k, and the config's")
        settings = replace(settings, stages=(replace(settings.stages[0], kernel="identity"),))
    return settings


def _check_bids(asked: Settings) -> None:
    """Refuse options that would name what --bids names."""
    if not asked.bids:
        return
    if asked.out_dir is None:
        raise SpecError("--bids writes a dataset: name its folder, as in --out-dir derivatives/conv3d")
    for name, value in (("output", asked.output), ("suffix", asked.suffix), ("prefix", asked.prefix)):
        if value:
            raise SpecError(f"--bids names the outputs: leave out --{name}")


def _dataset(sources: Sequence[str], asked: Settings, given: Sequence[Settings]) -> Dataset | None:
    """The derivative dataset that --bids asks for."""
    if not asked.bids or asked.out_dir is None:
        return None
    from conv3d_cli.provenance.bids import plan_dataset

    return plan_dataset(sources, asked.out_dir, given)


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
