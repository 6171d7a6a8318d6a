"""The log of `apply --resume`: finished outputs, with the input bytes and settings that made them.

Each folder of outputs has one log, `.conv3d-resume.jsonl`. A run adds a line of JSON when it begins
a volume, and another when it has finished it. It adds lines under a lock, so that several runs can
share a folder, and ignores a line that a killed run left incomplete. An output that a run began but
did not finish was left by a killed run.

An output is done if this version made it, with the same settings, from the same bytes, and nobody
has changed it since. SHA-256 compares bytes. While a file's fingerprint (size, inode, times of last
modification and of last status change) stays the same, the file is not read again: no program can
set the time of status change, so a copy with old times is read. The fingerprint of a file that
changed a moment ago is not trusted, because the file may change again within one step of the clock.
The log calls fingerprints "stamp".
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, OutputExistsError, SpecError, WriteError, setting
from conv3d_cli.formats import lies_within, volume_files
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.network.graph import Node
from conv3d_cli.pipeline.files import input_files, kernel_file, output_files
from conv3d_cli.pipeline.request import Job, Stage, Step
from conv3d_cli.settings.option import Place
from conv3d_cli.settings.options import OPTIONS, fields_not_compared
from conv3d_cli.system.atomic import clean_up_output, sent_to, suffix_of, write_errors
from conv3d_cli.system.digests import FileFingerprint, array_digest, file_digest, fingerprint_of
from conv3d_cli.system.inputs import why_unreadable
from conv3d_cli.system.parts import file_of, split_part, with_part
from conv3d_cli.system.portable import byte_at, true_path

try:
    import fcntl
except ImportError:  # Windows: one run at a time
    fcntl = None  # type: ignore[assignment]

VERSION = version("conv3d")
LOG_NAME = ".conv3d-resume.jsonl"

# Nanoseconds in which a file may change twice without new times: file systems record times in steps
# of some milliseconds, or of up to two seconds.
STEP_NS, COARSE_STEP_NS = 20_000_000, 2_000_000_000

# Fields of `Job` and `Stage` that `_differing` does not compare, because no output depends on them
# or other code compares them.
NO_SETTINGS = {
    "source",
    "target",
    "stages",
    "missing",
    "beside",
    "preset",
    "files",
    "given",
    "checks",
    "share_of_start",
    "found",  # it follows from the input
    "network",  # its stages are compared
    "label_names",  # the bytes of its file are
    "normalize_mask",
    "template_mask",
    *fields_not_compared(Place.JOB),
}
NO_STAGE_SETTINGS = {"kernel", "notes", "files", *fields_not_compared(Place.STAGE)}
# Options of the whole command that change what counts as done, such as --verify.
RUN_OPTIONS = tuple(o for o in OPTIONS if o.place is Place.COMMAND and o.resumes and o.file is None)

Record = dict[str, Any]


@dataclass
class ResumeStatus:
    """What the resume log says about a job before it runs.

    job : Job               the job
    done : bool             its output exists and is what the job would write
    reason : str            why an existing output does not count as done
    interrupted : bool      a killed run may have left the output
    settings : dict         settings that shape the output, as JSON: see `settings_of`
    fingerprints : dict     fingerprint of each input file before the run, by path
    begun : bool            the log says that this run began the job, and not that it ended
    """

    job: Job
    done: bool
    reason: str = ""
    interrupted: bool = False
    settings: Record = field(default_factory=dict)
    fingerprints: dict[str, FileFingerprint] = field(default_factory=dict)
    begun: bool = False

    def allowed_job(self) -> Job:
        """The job, allowed to replace an output that a killed run has left.

        Raises: OutputExistsError if another output exists and the job may not overwrite it.
        """
        if self.interrupted:
            return replace(self.job, overwrite=True)
        if self.reason and not self.job.overwrite:
            raise OutputExistsError(
                f"cannot write {self.job.target}: file exists, and {self.reason}; "
                "pass --overwrite to make it again"
            )
        return self.job


class ResumeLog:
    """The logs of all folders that a batch writes to. Thread-safe.

    also : dict or None     settings of the run to compare besides each job's own, such as `verify`
    read_only : bool        write nothing
    beside : dict or None   from an output's path to the paths of its sidecar and the like
    """

    def __init__(
        self,
        also: Record | None = None,
        read_only: bool = False,
        beside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._also = also or {}
        self._beside = beside or {}
        self._read_only = read_only
        self._run = os.urandom(4).hex()
        self._folders: dict[str, FolderLog] = {}
        self._digests: dict[str, tuple[FileFingerprint, str]] = {}
        self._lock = threading.Lock()

    def status(self, job: Job) -> ResumeStatus:
        """Look up a job. Raises: FormatError if an input or the log cannot be read."""
        settings = {**settings_of(job), **self._also}
        status = ResumeStatus(job, False, settings=settings)
        inputs = input_files(job)
        status.fingerprints = {
            path: fingerprint_of(path) for paths in inputs.values() for path in paths
        }
        outputs = self._outputs(job)
        if not self._read_only:
            for path in (job.target, *outputs):
                clean_up_output(path)
        if not any(os.path.lexists(path) for path in (job.target, *outputs)):
            return status
        known = self._folder_log(job).find(_name(job))
        fresh: list[str] = []  # files that were read because their fingerprints did not suffice
        ours = known.done is not None and self._same(known.done["outputs"], outputs, fresh)
        if known.done is not None and ours:
            status.reason = self._change(known.done, settings, inputs, fresh)
            status.done = not status.reason
        elif any(not self._change(begun, settings, inputs, []) for begun in known.begun.values()):
            status.interrupted = True
            status.reason = "a killed run left it"
        elif known.done is not None:
            status.reason = _lost(known.done, outputs, settings)
        elif known.begun:
            status.reason = self._change(list(known.begun.values())[-1], settings, inputs, [])
        else:
            status.reason = f"{LOG_NAME} in its folder does not list it"
        if status.done and fresh and not self._read_only:
            # next time, the fingerprints will suffice
            self._folder_log(job).add(self._done_record(job, settings))
        return status

    def _change(
        self,
        record: Record,
        settings: Record,
        inputs: Mapping[str, tuple[str, ...]],
        fresh: list[str],
    ) -> str:
        """How a job differs from a record; "" if it does not. Adds files it reads to `fresh`."""
        changed = _first_difference(record, settings)
        for role, paths in inputs.items() if not changed else ():
            if not self._same(record["inputs"].get(role, []), paths, fresh):
                return f"its {role} changed since"
        return changed

    def begin(self, status: ResumeStatus) -> None:
        """Log that a job begins, so that a later run knows what a killed run left.

        Raises: WriteError.
        """
        job = status.job
        record = self._record("begun", job) | {"version": VERSION, "settings": status.settings}
        inputs = {
            role: [
                {"digest": None, "stamp": status.fingerprints[path]}
                if is_settled(status.fingerprints[path])
                else {"digest": self._digest(path), "stamp": None}
                for path in paths
            ]
            for role, paths in input_files(job).items()
        }
        self._folder_log(job).add({**record, "inputs": inputs})
        status.begun = True

    def finish(self, status: ResumeStatus) -> list[str]:
        """Log that a job is done. Returns notes for the user. Raises: WriteError."""
        job = status.job
        try:
            record = self._done_record(job, status.settings)
            unchanged = all(
                fingerprint_of(path) == before for path, before in status.fingerprints.items()
            )
        except FormatError:  # a file is gone
            unchanged = False
        if unchanged:
            self._folder_log(job).add(record)
            status.begun = False
            return []
        self.give_up(status)
        return ["an input changed during the run; --resume will not count this output as done"]

    def give_up(self, status: ResumeStatus) -> None:
        """Log that a job failed, if the log says that it began."""
        if not status.begun:
            return
        try:
            self._folder_log(status.job).add(self._record("failed", status.job))
        except WriteError:
            pass  # the user sees the job's own error, and "begun" is still true

    def _done_record(self, job: Job, settings: Record) -> Record:
        inputs = {
            role: [self._entry(path) for path in paths] for role, paths in input_files(job).items()
        }
        outputs = [self._entry(path) for path in self._outputs(job)]
        made = {"version": VERSION, "settings": settings, "inputs": inputs, "outputs": outputs}
        return self._record("done", job) | made

    def _record(self, state: str, job: Job) -> Record:
        return {"state": state, "output": _name(job), "run": self._run}

    def _outputs(self, job: Job) -> tuple[str, ...]:
        return (*output_files(job), *self._beside.get(job.target, ()))

    def _folder_log(self, job: Job) -> FolderLog:
        folder = os.path.dirname(os.path.realpath(job.target))
        with self._lock:
            return self._folders.setdefault(folder, FolderLog(os.path.join(folder, LOG_NAME)))

    def _entry(self, path: str) -> Record:
        fingerprint = fingerprint_of(path)
        digest = self._digest(path)
        settled = fingerprint == fingerprint_of(path) and is_settled(fingerprint)
        return {"digest": digest, "stamp": fingerprint if settled else None}

    def _digest(self, path: str) -> str:
        """The digest of a file's bytes, computed once as long as its fingerprint stays the same."""
        fingerprint = fingerprint_of(path)
        with self._lock:
            known = self._digests.get(path)
        if known is not None and known[0] == fingerprint:
            return known[1]
        digest = file_digest(path)
        if is_settled(fingerprint):
            with self._lock:
                self._digests[path] = fingerprint, digest
        return digest

    def _same(self, entries: list[Record], paths: Sequence[str], fresh: list[str]) -> bool:
        """Whether files hold the recorded bytes. Adds files that it reads to `fresh`."""
        if len(entries) != len(paths) or not all(map(os.path.exists, paths)):
            return False
        for entry, path in zip(entries, paths, strict=True):
            if entry["stamp"] is not None and entry["stamp"] == fingerprint_of(path):
                if entry["digest"] is not None:
                    with self._lock:
                        self._digests[path] = entry["stamp"], entry["digest"]
                continue
            if entry["digest"] is None or self._digest(path) != entry["digest"]:
                return False
            fresh.append(path)
        return True


@dataclass
class OutputHistory:
    """What the log says about an output.

    done : dict or None     record of the last run that made it
    begun : dict            records of runs that began it and did not end, by run
    """

    done: Record | None = None
    begun: dict[str, Record] = field(default_factory=dict)


class FolderLog:
    """The log of one folder. Thread-safe.

    path : str      path of the log
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: dict[str, OutputHistory] = {}
        self._read = 0
        self._inode = 0
        self._lock = threading.Lock()

    def find(self, output: str) -> OutputHistory:
        """What the log says about an output, including lines that other runs have added since.

        output : str        file name of the output
        Raises: FormatError if the log cannot be read.
        """
        with self._lock:
            self._read_on()
            known = self._known.get(output, OutputHistory())
            return OutputHistory(known.done, dict(known.begun))

    def add(self, record: Record) -> None:
        """Add a line. Raises: WriteError."""
        line = json.dumps(record).encode() + b"\n"
        self._require_plain_file()
        with self._lock, write_errors(self.path), open(self.path, "a+b", buffering=0) as file:
            if fcntl is not None:
                try:
                    # released when the file is closed, however the process ends
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError:
                    pass  # some network file systems have no locks; appending still adds the line
            end = file.seek(0, os.SEEK_END)
            if end and byte_at(file, end - 1) != b"\n":
                line = b"\n" + line  # a killed run did not finish its line
            written = 0
            while written < len(line):
                written += file.write(line[written:])

    def _require_plain_file(self) -> None:
        """Raises: FormatError if something else is in its place, such as a FIFO, which waits."""
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise FormatError(
                f"cannot read {self.path}: the log of {setting('resume', True)} must be a plain "
                "file; remove what is in its place"
            )

    def _read_on(self) -> None:
        """Read the lines added since the last call."""
        self._require_plain_file()
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._read:
                    self._known, self._read, self._inode = {}, 0, status.st_ino
                if status.st_size == self._read:
                    return
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            self._known, self._read = {}, 0
            return
        except OSError as error:
            raise FormatError(f"cannot read {self.path}: {why_unreadable(error)}") from None
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_record(record):
                known = self._known.setdefault(record["output"], OutputHistory())
                if record["state"] == "begun":
                    known.begun[record["run"]] = record
                else:
                    known.begun.pop(record["run"], None)
                if record["state"] == "done":
                    known.done = record


def _is_record(record: Any) -> bool:
    """Whether a line has the form that this program writes; others may write to the file."""
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), str) for key in ("output", "run")
    ):
        return False
    if record.get("state") == "failed":
        return True

    def are_entries(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(e, dict) and {"digest", "stamp"} <= e.keys() for e in value
        )

    inputs = record.get("inputs")
    return (
        record.get("state") in ("begun", "done")
        and isinstance(record.get("settings"), dict)
        and isinstance(inputs, dict)
        and all(map(are_entries, inputs.values()))
        and (record["state"] == "begun" or are_entries(record.get("outputs")))
    )


def check_resumable(job: Job) -> None:
    """Refuse a job whose files cannot be compared. Raises: SpecError."""
    for path in (job.source, *(output.path for output in job.outputs)):
        if what := "a URL" if "://" in path else sent_to(path):
            raise SpecError(
                f"--resume compares the bytes of files, and {path} is {what}; "
                "leave out --resume, or name a file"
            )
    same = true_path(file_of(job.source)) == true_path(job.target)
    if same or lies_within(job.source, job.target):
        raise SpecError(
            f"--resume cannot tell whether {job.target} is done, because it replaces its input; "
            "name another output"
        )


def settings_of(job: Job) -> Record:
    """The settings that shape a job's output and differ from their defaults, as JSON.

    Input files are compared by their bytes, so the settings do not contain their paths.

    >>> settings_of(Job("a.npy", "b.npy", (Stage("box:size=3", strides=2),), threads=3))
    {'stages': [{'strides': 2, 'kernel': 'box:size=3'}]}
    """
    result = _differing(job, NO_SETTINGS)
    result["stages"] = [_stage_settings(stage) for stage in job.stages]
    if job.patched is not None:
        result["stages"] += [_stage_settings(stage) for stage in job.patched.stages]
    missing = _differing(job.missing, {"mask"})
    if missing or job.missing.mask is not None:
        result["missing"] = {**missing, "mask": _part(job.missing.mask)}
    for name in ("label_names", "normalize_mask", "template_mask"):
        if getattr(job, name) is not None:
            result[name] = _part(getattr(job, name)) or True
    if (part := _part(job.source)) is not None:
        result["part"] = part
    result |= {output.role: os.path.basename(output.path) for output in job.beside}
    found: Record = json.loads(json.dumps(result, default=_plain))
    return found


def _stage_settings(stage: Stage | Step) -> Record:
    if isinstance(stage, Stage):
        return {**_differing(stage, NO_STAGE_SETTINGS), "kernel": _kernel_words(stage)}
    return {"inputs": list(stage.inputs), "node": _plain(stage.node)}


def _part(path: str | None) -> str | None:
    """The part of a file or Zarr store that a path names; None if it names a whole volume."""
    if path is None:
        return None
    if part := split_part(path)[1]:
        return part
    files = volume_files(path)
    inner = os.path.relpath(path, files[0]) if len(files) == 1 and path != files[0] else "."
    return None if inner == "." else inner


def _differing(value: Any, but: set[str]) -> Record:
    """The fields of a dataclass that differ from their defaults."""
    found = {
        f.name: (getattr(value, f.name), f.default) for f in fields(value) if f.name not in but
    }
    return {name: own for name, (own, default) in found.items() if own != default}


def _kernel_words(stage: Stage) -> Any:
    """A kernel without its path: a built-in's text, a file's suffix, or its weights' digests."""
    if isinstance(stage.kernel, Kernel):
        return _plain(stage.kernel)
    path = kernel_file(stage)
    if path is None:
        return stage.kernel
    file, part = split_part(path)
    return with_part(f"*{suffix_of(file)}", part)


def _plain(value: Any) -> Any:
    """Convert a value that JSON cannot hold to one that it can."""
    if isinstance(value, Kernel):
        bias = None if value.bias is None else array_digest(value.bias)
        return {"weights": array_digest(value.weights), "bias": bias, "centre": value.centre}
    if isinstance(value, np.ndarray):
        return array_digest(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Node):
        weights = {name: array_digest(array) for name, array in value.weights.items()}
        return {
            "name": value.name,
            "operation": value.operation,
            "attributes": dict(value.attributes),
            "weights": weights,
        }
    if is_dataclass(value):
        return _differing(value, set())
    raise TypeError(f"--resume cannot record a value of type {type(value).__name__}")


def _first_difference(record: Record, settings: Record) -> str:
    """How a record's version or settings differ from the present ones; "" if they do not."""
    if record.get("version") != VERSION:
        return f"it was made by version {record.get('version')}"
    before = record["settings"]
    names = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    if (
        "stages" in names
        and isinstance(before.get("stages"), list)
        and len(before["stages"]) == len(settings["stages"])
    ):
        names.remove("stages")
        for old, new in zip(before["stages"], settings["stages"], strict=True):
            old = old if isinstance(old, dict) else {}
            names += sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return f"it was made with other settings ({', '.join(dict.fromkeys(names))})" if names else ""


def _lost(record: Record, outputs: Sequence[str], settings: Record) -> str:
    """Why outputs are not those of a record."""
    if len(record["outputs"]) != len(outputs) and (changed := _first_difference(record, settings)):
        return changed
    missing = [os.path.basename(path) for path in outputs if not os.path.exists(path)]
    if missing:
        return f"{missing[0]} is missing"
    before, now = len(record["outputs"]), len(outputs)
    if before != now:
        return f"it was made as one of {before} files, as with a sidecar, and would be one of {now}"
    return "it was changed since it was made"


def is_settled(fingerprint: FileFingerprint) -> bool:
    """Whether every later change of the file will change its fingerprint."""
    last: int = max(fingerprint[2:])
    return time.time_ns() - last > (STEP_NS if last % 1_000_000_000 else COARSE_STEP_NS)


def _name(job: Job) -> str:
    return os.path.basename(os.path.realpath(job.target))
