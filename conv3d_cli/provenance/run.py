"""Run a job so that its output and its sidecar appear together, or neither does."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conv3d_cli.errors import FormatError, OutputExistsError, SpecError, setting
from conv3d_cli.formats import written_files
from conv3d_cli.pipeline.outputs import VOLUME, role_of
from conv3d_cli.pipeline.prepare import PreparedJob
from conv3d_cli.pipeline.request import Job
from conv3d_cli.pipeline.run import JobReport
from conv3d_cli.provenance.command import Rename, command_line, relative_to
from conv3d_cli.provenance.inputs import InputFile, files_of
from conv3d_cli.provenance.record import (
    KEY,
    RECORD_VERSION,
    FileRecord,
    decided,
    description,
    sidecar_name,
    sidecar_text,
)
from conv3d_cli.settings.options import Settings
from conv3d_cli.system.atomic import (
    AtomicFile,
    AtomicFolder,
    AtomicGroup,
    check_target,
    sent_to,
)
from conv3d_cli.system.digests import FileFingerprint, file_digest, fingerprint_of
from conv3d_cli.system.inputs import check_input, regular_file, why_unreadable
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.portable import true_path

Decided = Callable[[PreparedJob], None]
Fields = Callable[[PreparedJob, Sequence[InputFile], Rename], dict[str, Any]]
Run = Callable[[Job, Decided], JobReport]


def own_fields(
    prepared: PreparedJob, inputs: Sequence[InputFile], rename: Rename
) -> dict[str, Any]:
    """The BIDS fields for an output outside a BIDS dataset; sources are relative to the sidecar."""
    from importlib.metadata import version

    return {
        "Description": description(prepared, rename),
        "Sources": [rename(file.path) for file in inputs if file.role in ("volume", "mask")],
        "GeneratedBy": [{"Name": "conv3d", "Version": version("conv3d")}],
    }


@dataclass(frozen=True)
class Recording:
    """The files to write beside an output.

    sidecar : str       its path
    given : Settings    the options of the command line and of a manifest's row
    fields : callable   (prepared, inputs, rename) -> the BIDS fields, which precede the record
    copies : sequence   files to copy, unless an identical copy exists: (path, path of the copy)
    """

    sidecar: str
    given: Settings = field(default_factory=Settings)
    fields: Fields = own_fields
    copies: Sequence[tuple[str, str]] = ()

    @property
    def rename(self) -> Rename:
        """Converts the path of a file to its name in the sidecar."""
        return relative_to(os.path.dirname(self.sidecar))


def plan_recordings(
    jobs: Sequence[Job],
    given: Sequence[Settings],
    fields: Mapping[str, Fields],
    copies: Mapping[str, Sequence[tuple[str, str]]],
) -> dict[str, Recording]:
    """Plan the sidecar of each job, before any of them runs; by output.

    given : sequence of Settings    the options of each job
    fields : mapping                see `Recording`; by output, `own_fields` for the others
    copies : mapping                see `Recording`; by output

    Raises: SpecError for a job that cannot be recorded, and for two jobs with the same sidecar;
    OutputExistsError if a sidecar would replace an input.
    """
    found: dict[str, Recording] = {}
    writers: dict[str, str] = {}
    for job, options in zip(jobs, given, strict=True):
        name = sidecar_name(job.target)
        real = true_path(name)
        if real in writers:
            raise SpecError(
                f"two outputs would have the sidecar {name}: {writers[real]} and {job.target}; "
                "use different folders (--out-dir) or run them separately"
            )
        writers[real] = job.target
        found[job.target] = Recording(
            name, options, fields.get(job.target, own_fields), copies.get(job.target, ())
        )
    for job, options in zip(jobs, given, strict=True):
        for file in check_recordable(job, options):
            if (real := true_path(file.path)) in writers:
                raise OutputExistsError(
                    f"the sidecar of {writers[real]} would replace {file.path}, which is read; "
                    "name another output"
                )
    return found


def check_recordable(job: Job, given: Settings) -> list[InputFile]:
    """The files that a job reads, if it can be repeated from its record. Raises: SpecError."""
    if job.source == "-":
        raise SpecError(
            f"{setting('sidecar')} names the input, and a pipe has no name: pass a file"
        )
    for output in job.beside:
        if what := sent_to(output.path):
            flag = role_of(output.role).flag
            raise SpecError(
                f"{setting('sidecar')} records the {output.role}, and {what} leaves no file: pass "
                f"{flag} FILE"
            )
    if true_path(file_of(job.source)) == true_path(job.target):
        raise SpecError(
            f"{setting('sidecar')} names the input {job.source}, which this output replaces: "
            "name another output"
        )
    try:
        files = files_of(job, given)
    except FormatError:
        return []  # the volume is damaged, which is an error when the job runs
    for file in files:
        if "://" in file.path:
            raise SpecError(
                f"{setting('sidecar')} records digests of files, and {file.path} is a URL: name a "
                "local copy"
            )
    return files


def check_sidecar(recording: Recording, overwrite: bool, make_folder: bool = False) -> None:
    """Check, before any work, that the sidecar and the copies can be written.

    overwrite : bool        they may replace existing files
    make_folder : bool      their folders may be missing, if they can be created

    Raises: OutputExistsError, WriteError.
    """
    for path in (recording.sidecar, *_new_copies(recording)):
        check_target(path, overwrite, make_folder)


def run_recorded(
    job: Job, recording: Recording, run: Run, on_decided: Decided | None = None
) -> JobReport:
    """Run a job; its output and its sidecar appear together.

    run : callable          (job, decided) -> report; it writes its outputs with `system.atomic`
    on_decided : callable   is called with the prepared job, before the first voxel

    Raises: the errors of `run`; FormatError if an input changes while it is read; OutputExistsError
    and WriteError for the sidecar.
    """
    check_sidecar(recording, job.overwrite)
    rename = recording.rename
    files = files_of(job, recording.given)
    fingerprints = [_fingerprint(file) for file in files]
    for file in files:
        if not os.path.isdir(file.path):
            check_input(file.path)
    inputs = [FileRecord(file.role, rename(file.path), file_digest(file.path)) for file in files]
    facts: dict[str, Any] = {}
    fields: dict[str, Any] = {}

    def record_decisions(prepared: PreparedJob) -> None:
        facts.update(decided(prepared, rename))
        fields.update(recording.fields(prepared, files, rename))
        if on_decided is not None:
            on_decided(prepared)

    with AtomicGroup() as group:
        report = run(job, record_decisions)
        for file, before in zip(files, fingerprints, strict=True):
            if _fingerprint(file) != before:
                raise FormatError(
                    f"{file.path} was modified while it was read; nothing was written: run again"
                )
        outputs = [_output_record(output, job, rename) for output in group.staged]
        values = {
            **fields,
            KEY: {
                "RecordVersion": RECORD_VERSION,
                "Command": command_line(job.source, recording.given, rename, job.target),
                "Inputs": [entry.as_json() for entry in inputs],
                "Outputs": [entry.as_json() for entry in outputs],
                **facts,
                "ClippedVoxels": report.clipped,
                **_checks_record(report),
            },
        }
        volumes = len(group.staged)
        metadata = {**_new_copies(recording), recording.sidecar: sidecar_text(values)}
        for path, contents in metadata.items():
            with AtomicFile(path, job.overwrite) as file_output:
                file_output.file.write(contents)
                file_output.commit()
        # The metadata take their places first, so that they exist wherever the output is seen.
        group.staged = [*group.staged[volumes:], *group.staged[:volumes]]
        group.commit()
    return report


def _checks_record(report: JobReport) -> dict[str, Any]:
    """What checksums found, without the number of tiles, which depends on memory."""
    if report.checks is None:
        return {}
    return {
        "Checked": "all tiles" if not report.checks.unchecked else "tiles of finite numbers",
        "RepairedTiles": report.checks.repaired,
    }


def _new_copies(recording: Recording) -> dict[str, bytes]:
    """The contents of the copies to write, by path; those that exist already are left out."""
    contents = {target: _bytes_of(source) for source, target in recording.copies}
    return {
        path: wanted
        for path, wanted in contents.items()
        if not (os.path.isfile(path) and _bytes_of(path) == wanted)
    }


def _bytes_of(path: str) -> bytes:
    try:
        with open(path, "rb", opener=regular_file) as file:
            return file.read()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {why_unreadable(error)}") from None


def _fingerprint(file: InputFile) -> FileFingerprint | None:
    try:
        return fingerprint_of(file.path)
    except FormatError:
        return None  # reading the file is an error later


def _output_record(output: AtomicFile | AtomicFolder, job: Job, rename: Rename) -> FileRecord:
    real = true_path(output.path)
    roles = {true_path(file): one.role for one in job.outputs for file in written_files(one.path)}
    return FileRecord(
        roles.get(real, VOLUME), rename(os.fspath(output.path)), file_digest(output.temporary)
    )
