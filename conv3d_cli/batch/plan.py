"""Plans the jobs of a command: its volumes and their outputs. Opens no volume."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from conv3d_cli.batch.names import check_outputs, identity, made_before, output_name
from conv3d_cli.errors import ConfigError, Conv3DError, SpecError, setting, unknown_name
from conv3d_cli.pipeline.files import check_nothing_read_is_replaced
from conv3d_cli.pipeline.outputs import ROLES
from conv3d_cli.settings.config import located_bias, located_kernel
from conv3d_cli.settings.mask_rules import is_rule, located_mask
from conv3d_cli.settings.option import File
from conv3d_cli.settings.options import COPYING, OPTION, Settings
from conv3d_cli.system.atomic import suffix_of, takes_many
from conv3d_cli.system.parts import with_part
from conv3d_cli.system.portable import true_path
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.batch.discover import InputPath
    from conv3d_cli.batch.discrete import LeftOut
    from conv3d_cli.batch.manifest import Row
    from conv3d_cli.pipeline.request import Job
    from conv3d_cli.provenance.bids import Dataset


@dataclass(frozen=True)
class BatchRequest:
    """Which volumes a command takes, and how it names their outputs.

    inputs : tuple of str       volumes and folders of volumes
    manifest : str or None      table of volumes and outputs, instead of inputs
    output : str or None        output of a single volume; "-" is a pipe
    out_dir : str or None       folder of the outputs; None: the folder of each input
    suffix, prefix : str        parts to add to the outputs' names
    ending : str                file suffix of the outputs; "" for that of each input
    recursive : bool            see `discover.find_volumes`
    patterns : tuple of str     see `discover.find_volumes`
    stack : bool                each folder is one volume, of planes in files
    include_discrete : bool     take masks and label maps, too
    allow_outside : bool        a manifest may name outputs outside `out_dir`
    bids : bool                 make a BIDS derivative dataset in `out_dir`
    history : bool              store the command in each output
    """

    inputs: tuple[str, ...] = ()
    manifest: str | None = None
    output: str | None = None
    out_dir: str | None = None
    suffix: str = ""
    prefix: str = ""
    ending: str = ""
    recursive: bool = False
    patterns: tuple[str, ...] = ()
    stack: bool = False
    include_discrete: bool = False
    allow_outside: bool = False
    bids: bool = False
    history: bool = False

    @property
    def name_parts(self) -> dict[str, str]:
        """What changes the outputs' names, by the option."""
        return {"--suffix": self.suffix, "--prefix": self.prefix, "--format": self.ending}


class JobTemplate(Protocol):
    """All settings of a job but its volumes, read and checked; makes a job for each volume."""

    @property
    def overwrite(self) -> bool:
        """Whether outputs may replace existing files."""

    @property
    def mask(self) -> str | None:
        """The mask of every volume, or a rule that finds a mask for each; None without a mask."""

    @property
    def writes_labels(self) -> bool:
        """Whether the outputs are labels."""

    @property
    def used_files(self) -> Sequence[str]:
        """Files that jobs use besides inputs and outputs: configs, kernels, a mask, a coverage."""

    def job(self, source: str, target: str, mask: str | None = None) -> Job:
        """The job of one volume.

        mask : str or None      the mask that the rule found for it
        Raises: SpecError.
        """


class JobOptions(Protocol):
    """The options of a command: the values given, and how to parse others."""

    @property
    def given(self) -> Settings:
        """The options given on the command line."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the options that a manifest may have a column for."""

    def settings(self, given: Settings, files: Sequence[str] = ()) -> JobTemplate:
        """Merge given options with their config and preset.

        given : Settings            options of the command line, and of a manifest's row
        files : sequence of str     paths of files that the options come from, such as a manifest
        Raises: SpecError, ConfigError, FormatError.
        """

    def parse(self, column: str, text: str) -> Any:
        """Parse an option's value from a manifest. Raises: ValueError, with the reason."""


@dataclass
class JobPlan:
    """The jobs of a command.

    jobs : list of Job          one per volume, in the order of the inputs or of the manifest
    given : list of Settings    options given for each job: on the command line and in its row; a
                                rule for masks is replaced by the mask that it found
    notes : list of str         notes on volumes that are left out or need care
    dataset : Dataset or None   the dataset that --bids makes of the outputs
    left_out : list of str      paths of masks, label maps and the like that are left out
    """

    jobs: list[Job]
    given: list[Settings]
    notes: list[str] = field(default_factory=list)
    dataset: Dataset | None = None
    left_out: list[str] = field(default_factory=list)


def plan_jobs(request: BatchRequest, options: JobOptions) -> JobPlan:
    """Plan the jobs of a command.

    Raises: Conv3DError for every fault that shows before data are read: wrong options or names, two
    outputs with one name, an output that is an input; FormatError if folders hold no volume, or if
    config or manifest cannot be read.
    """
    if request.ending:
        request = replace(request, ending=_known_ending(request.ending))
    plan = (_plan_inputs if request.manifest is None else _plan_manifest)(request, options)
    _make_levels_of_labels(plan)
    _check_beside(plan.jobs)
    check_nothing_read_is_replaced(plan.jobs)
    if request.history:
        from conv3d_cli.provenance.command import with_history

        plan.jobs = [
            with_history(job, given) for job, given in zip(plan.jobs, plan.given, strict=True)
        ]
    return plan


def _known_ending(text: str) -> str:
    """A file suffix that is written, with its dot. Raises: UnknownNameError."""
    from conv3d_cli.formats import written_suffixes

    ending = text.lower() if text.startswith(".") else f".{text.lower()}"
    if ending not in written_suffixes():
        raise unknown_name("format", text, written_suffixes())
    return ending


def _make_levels_of_labels(plan: JobPlan) -> None:
    """Copies of volumes whose names mark labels get levels of resolution by the mode."""
    from conv3d_cli.batch.discrete import DISCRETE, kind_of

    named = []
    for number, job in enumerate(plan.jobs):
        is_copy = [getattr(stage, "kernel", None) for stage in job.stages] == [COPYING]
        if not (is_copy and job.levels > 1 and job.levels_by is None):
            continue
        if kind_of(job.source, look=False) == DISCRETE:
            plan.jobs[number] = replace(job, levels_by="mode")
            plan.given[number] = replace(plan.given[number], levels_by="mode")
            named.append(job.source)
    if named:
        plan.notes.append(
            f"the levels of {count_of(len(named), 'volume')} whose names mark labels "
            f"({os.path.basename(named[0].rstrip('/'))}{', ...' if len(named) > 1 else ''}) are "
            f"made by the mode; {setting('levels_by', 'mean')} averages"
        )


# --------------------------------------------------------------------------------------------------
# Files and folders


def _stacked(request: BatchRequest) -> BatchRequest:
    """The request with each folder of planes as the name of one volume (--stack).

    Raises: SpecError.
    """
    from conv3d_cli.batch.discover import is_folder

    if len(request.patterns) > 1 or request.recursive or any("/" in p for p in request.patterns):
        raise SpecError(
            "--stack takes the planes of one folder, by one --glob at most and without --recursive"
        )
    if not any(map(is_folder, request.inputs)):
        raise SpecError("--stack reads a folder as one volume, and no input is a folder; name one")
    pattern = request.patterns[0] if request.patterns else "*"
    names = (
        with_part(name.rstrip("/") or "/", pattern) if is_folder(name) else name
        for name in request.inputs
    )
    return replace(request, inputs=tuple(names), patterns=(), stack=False)


def _plan_inputs(request: BatchRequest, options: JobOptions) -> JobPlan:
    if request.stack:
        request = _stacked(request)
    if request.allow_outside:
        raise SpecError("--allow-outside is for the outputs that a --manifest names; leave it out")
    inputs, output, out_dir, given = request.inputs, request.output, request.out_dir, options.given
    settings = options.settings(given)
    from conv3d_cli.batch.discrete import LeftOut

    _check_bids(request)
    renamed = out_dir is not None or request.suffix or request.prefix or request.ending
    if output is not None and renamed:
        raise SpecError("-o names one output; leave out --out-dir, --suffix, --prefix and --format")
    if output is None and not renamed:
        raise SpecError(f"no output: {_output_options(inputs, given)}")
    if renamed and "-" in inputs:
        raise SpecError("standard input has no name that an output could get; pass -o")
    folder = next((name for name in inputs if os.path.isdir(name)), None)
    if output is not None and folder is not None:
        from conv3d_cli.batch.discover import is_folder

        if is_folder(folder):
            raise SpecError(
                f"-o names one output, and {folder} is a folder; "
                "pass --out-dir for the volumes in it"
            )
    left = LeftOut()
    found, notes = _expand(request, settings, left)
    rule = settings.mask if settings.mask is not None and is_rule(settings.mask) else None
    if rule is not None:
        from conv3d_cli.batch.discover import used_otherwise
        from conv3d_cli.batch.masks import without_masks

        masks_in_folders = {v.path for v in found} - {v.path for v in without_masks(rule, found)}
        if masks_in_folders:
            found = [volume for volume in found if volume.path not in masks_in_folders]
            left.taken = [path for path in left.taken if path not in masks_in_folders]
            notes.append(used_otherwise(len(masks_in_folders)))
    notes += left.notes(mixes=options.given.kernel != COPYING)
    sources = [volume.path for volume in found]
    dataset = _dataset(sources, request, [given] * len(sources), [settings] * len(sources))
    if output is not None:
        if len(sources) > 1:
            raise SpecError(
                f"-o names one output, received {len(sources)} inputs; pass --out-dir for many"
            )
        targets = [output]
    elif dataset is not None:
        targets = dataset.targets
    else:
        targets = [
            output_name(v.path, out_dir, request.suffix, request.prefix, v.below, request.ending)
            for v in found
        ]
        old = {number for number in made_before(sources, targets) if found[number].in_folder}
        if old:
            notes.append(f"left out {count_of(len(old), 'volume')} that this command writes")
            sources, targets = (
                [x for i, x in enumerate(names) if i not in old] for names in (sources, targets)
            )
        check_outputs(sources, targets, settings.overwrite, files=_read_from)
    for role in ROLES.values():
        if getattr(given, role.option, None) and len(sources) > 1:
            raise SpecError(
                f"{role.flag} names one file, received {len(sources)} inputs; run conv3d for each"
            )
    masks = _masks([rule] * len(sources), sources, notes)
    jobs = [
        settings.job(source, target, mask)
        for source, target, mask in zip(sources, targets, masks, strict=True)
    ]
    given_each = [_with_mask(given, mask) for mask in masks]
    return JobPlan(jobs, given_each, notes, dataset, left.paths)


def _masks(
    rules: Sequence[str | None], sources: Sequence[str], notes: list[str]
) -> list[str | None]:
    """The mask that each volume's rule finds for it; None without a rule. Adds a note for each.

    Raises: as `masks.masks_of`.
    """
    found: list[str | None] = [None] * len(sources)
    for rule in dict.fromkeys(rule for rule in rules if rule is not None):
        from conv3d_cli.batch.masks import masks_of, note_on

        places = [number for number, other in enumerate(rules) if other == rule]
        masks = masks_of(rule, [sources[number] for number in places])
        notes.append(note_on(rule, masks))
        for number, mask in zip(places, masks, strict=True):
            found[number] = mask
    return found


def _with_mask(given: Settings, mask: str | None) -> Settings:
    return given if mask is None else replace(given, mask=mask)


def _output_options(inputs: Sequence[str], given: Settings) -> str:
    """The options that name an output, with an example, for messages."""
    kernel = str(given.named_kernel or "").partition(":")[0]
    word = kernel if kernel.isidentifier() else "out"
    source = inputs[0]
    if len(inputs) > 1 or (os.path.isdir(source) and not suffix_of(source)):
        meant = ""
        if len(inputs) == 2 and not os.path.isdir(inputs[1]):  # many tools take INPUT OUTPUT
            meant = f"; if {inputs[1]} is the output, pass -o {shlex.quote(inputs[1])}"
        return (
            f"pass --out-dir DIR, as in --out-dir {word}, or --suffix, --prefix or --format{meant}"
        )
    name = (
        f"{word}.npy" if source == "-" else os.path.basename(output_name(source, None, f"_{word}"))
    )
    return (
        f"pass -o OUT, as in -o {shlex.quote(name)}, "
        "or --out-dir, --suffix, --prefix or --format for many inputs"
    )


def _expand(
    request: BatchRequest, settings: JobTemplate, left: LeftOut
) -> tuple[list[InputPath], list[str]]:
    """Replace the folders among the inputs by the volumes in them."""
    from conv3d_cli.batch.discover import find_volumes

    return find_volumes(
        request.inputs,
        recursive=request.recursive,
        patterns=request.patterns,
        out_dir=request.out_dir,
        used=settings.used_files,
        discrete=request.include_discrete,
        dataset=request.bids,
        left=left,
    )


# --------------------------------------------------------------------------------------------------
# A manifest


def _plan_manifest(request: BatchRequest, options: JobOptions) -> JobPlan:
    from conv3d_cli.batch.discover import check_left
    from conv3d_cli.batch.discrete import LeftOut, named_discrete
    from conv3d_cli.batch.manifest import read_manifest

    path = request.manifest
    assert path is not None
    _check_bids(request)
    for wrong, what in (
        (request.inputs, "INPUT"),
        (request.output, "-o"),
        (request.patterns, "--glob"),
        (request.recursive, "--recursive"),
        (request.stack, "--stack"),
    ):
        if wrong:
            raise SpecError(f"--manifest names the volumes and their outputs; leave out {what}")
    if request.allow_outside and request.out_dir is None:
        raise SpecError("--allow-outside is for --out-dir, which keeps outputs inside; pass both")
    if request.include_discrete and not request.bids:
        raise SpecError(
            "--include-discrete is for folders and --bids, and a manifest names each volume; leave "
            "it out"
        )
    rows = read_manifest(path, ("input", "output", *options.columns))
    folder = Path(path).parent
    own = options.given
    left = LeftOut()
    kept, sources, labels, given = [], [], [], []
    for row in rows:
        where = f"manifest {path}, line {row.line}"
        source = _located(row.cells["input"], folder)
        if source == "-":
            raise ConfigError(f"{where}, column input: a manifest names files, received '-'")
        if request.bids and not left.sift(source, request.include_discrete):
            continue
        kept.append(row)
        sources.append(source)
        labels.append(f"{source} (line {row.line})")
        given.append(replace(own, **_row_options(options, row, folder, request, where)))
    rows = kept
    with _errors_at(f"manifest {path}"):
        check_left(rows, left)
    known: dict[str, JobTemplate] = {}  # by their options, as JSON
    templates = []
    for row, row_options in zip(rows, given, strict=True):
        with _errors_at(f"manifest {path}, line {row.line}"):
            key = json.dumps(row_options.given(), sort_keys=True)
            if key not in known:
                known[key] = options.settings(row_options, (path,))
            templates.append(known[key])
    with _errors_at(f"manifest {path}"):
        dataset = _dataset(sources, request, given, templates)
    left.taken += [] if request.bids else named_discrete(sources)
    targets = []
    for number, (row, source) in enumerate(zip(rows, sources, strict=True)):
        where = f"manifest {path}, line {row.line}"
        if dataset is None:
            targets.append(_target(row, source, request, folder, where))
        elif "output" in row.cells:
            raise ConfigError(
                f"{where}, column output: --bids names the outputs; leave out the column"
            )
        else:
            targets.append(dataset.targets[number])
    for flag, value in request.name_parts.items():
        if value and rows and all("output" in row.cells for row in rows):
            raise SpecError(
                f"manifest {path} names every output; leave out {flag}, or the column output"
            )
    notes = left.notes(mixes=options.given.kernel != COPYING)
    with _errors_at(f"manifest {path}"):
        rules = [one.mask if one.mask and is_rule(one.mask) else None for one in templates]
        masks = _masks(rules, sources, notes)
    jobs = []
    for row, source, target, template, mask in zip(
        rows, sources, targets, templates, masks, strict=True
    ):
        with _errors_at(f"manifest {path}, line {row.line}"):
            jobs.append(template.job(source, target, mask))
    with _errors_at(f"manifest {path}"):
        check_outputs(sources, targets, any(job.overwrite for job in jobs), labels, _read_from)
    return JobPlan(jobs, list(map(_with_mask, given, masks)), notes, dataset, left.paths)


def _read_from(source: str) -> tuple[str, ...]:
    """The files that an input is read from."""
    from conv3d_cli.formats import readable_files

    return readable_files(source)


def _target(row: Row, source: str, request: BatchRequest, folder: Path, where: str) -> str:
    """The output of a row: the text in its column, else a name made from the input's."""
    if "output" in row.cells:
        if row.cells["output"] == "-":
            raise ConfigError(f"{where}, column output: a manifest names files, received '-'")
        return _written(row.cells["output"], request, folder, f"{where}, column output")
    if request.out_dir is None and not (request.suffix or request.prefix or request.ending):
        raise ConfigError(
            f"{where}, column output: no output; name one, or pass --out-dir, --suffix, --prefix "
            "or --format"
        )
    return output_name(
        source, request.out_dir, request.suffix, request.prefix, ending=request.ending
    )


def _row_options(
    options: JobOptions, row: Row, folder: Path, request: BatchRequest, where: str
) -> dict[str, Any]:
    """Parse a row's options. Raises: ConfigError, which names the column."""
    found: dict[str, Any] = {}
    for column, text in row.cells.items():
        if column in ("input", "output"):
            continue
        try:
            value = options.parse(column, text)
        except ValueError as error:
            raise ConfigError(f"{where}, column {column}: {error}") from None
        file = OPTION[column].file
        if file is File.KERNEL:
            value = located_kernel(value, folder)
        elif file is File.BIAS:
            value = located_bias(value, folder)
        elif file is File.MASK:
            value = located_mask(value, folder)
        elif file is File.READ:
            value = _located(value, folder)
        elif file is File.WRITTEN:
            value = _written(value, request, folder, f"{where}, column {column}")
        found[column] = value
    return found


def _written(text: str, request: BatchRequest, folder: Path, where: str) -> str:
    """The path of an output that a manifest names, relative to `out_dir`, else to the manifest.

    Raises: ConfigError for a path that leaves `out_dir`, unless that is allowed.
    """
    out_dir = request.out_dir
    if out_dir is None:
        return _located(text, folder)
    path = _located(text, Path(out_dir))
    if "://" in path:
        inside = path.startswith(f"{out_dir.rstrip('/')}/") and ".." not in path.split("/")
    else:
        top, place = true_path(out_dir), true_path(os.path.dirname(path) or ".")
        inside = os.path.commonpath((top, place)) == top
    if not inside and path != "-" and not request.allow_outside:
        raise ConfigError(
            f"{where}: {text} lies outside {setting('out_dir', out_dir)}; name a file in it, or "
            f"pass {setting('allow_outside', True)}"
        )
    return path


def _located(text: str, folder: Path) -> str:
    """The path of a file that is named relative to `folder`; URLs stay as they are."""
    return text if "://" in text or text == "-" else str(folder / text)


@contextmanager
def _errors_at(place: str) -> Iterator[None]:
    """Prefix the errors raised in the body with a place."""
    try:
        yield
    except Conv3DError as error:
        raise type(error)(f"{place}: {error}") from error


# --------------------------------------------------------------------------------------------------
# Checks for both


def _check_bids(request: BatchRequest) -> None:
    """Refuse options that name outputs if --bids names them, and --bids without a folder."""
    if not request.bids:
        return
    if request.out_dir is None:
        raise SpecError(
            "--bids writes a dataset; name its folder, as in --out-dir derivatives/conv3d"
        )
    for flag, value in {"--output": request.output, **request.name_parts}.items():
        if value:
            raise SpecError(f"--bids names the outputs; leave out {flag}")


def _dataset(
    sources: Sequence[str],
    request: BatchRequest,
    given: Sequence[Settings],
    templates: Sequence[JobTemplate],
) -> Dataset | None:
    """The derivative dataset that --bids asks for."""
    if not request.bids:
        return None
    from conv3d_cli.provenance.bids import plan_dataset

    assert request.out_dir is not None
    of_labels = [template.writes_labels for template in templates]
    return plan_dataset(sources, request.out_dir, given, of_labels)


def _check_beside(jobs: Sequence[Job]) -> None:
    """Refuse a volume beside an output, such as a coverage, whose path has another use."""
    others = {identity(name) for job in jobs for name in (job.source, job.target)}
    for role, path in ((output.role, output.path) for job in jobs for output in job.beside):
        real = identity(path)
        if real in others and not takes_many(path):
            raise SpecError(
                f"the {role} {path} is also an input, an output or the {role} of another output; "
                "rename it"
            )
        others.add(real)
