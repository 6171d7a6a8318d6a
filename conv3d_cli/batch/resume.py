"""The record behind `apply --resume`: which outputs are done, from which bytes, with which settings.

In each folder of outputs stands one file, `.conv3d-resume.jsonl`, to which a line of JSON is added as a volume is begun and
again as it is done. Lines are added under a lock, so that several runs at once can share a folder; a line that a killed run
did not finish is passed over. An output that no run is known to have done, but one is known to have begun, was left by a
run that was killed.

An output counts as done if it was made by this version, with the same settings, from the same bytes, and is still what
was written. Bytes are compared by SHA-256. A file whose size, inode, and times of last modification and change are as they
were is not read again: no program can set the time of change, so a copy with its times kept is read. Where the clock may
not have moved on between a change and our look, nothing is concluded from it.
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

from conv3d_cli.errors import FormatError, OutputExistsError, SpecError, WriteError
from conv3d_cli.formats import lies_within, volume_files
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.files import input_files, kernel_file, output_files
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.settings.option import Place
from conv3d_cli.settings.options import OPTIONS, fields_not_compared
from conv3d_cli.system.atomic import suffix_of, write_errors
from conv3d_cli.system.digests import Stamp, array_digest, file_digest, stamp_of

try:
    import fcntl
except ImportError:  # Windows: one run at a time
    fcntl = None  # type: ignore[assignment]

VERSION = version("conv3d")
LEDGER_NAME = ".conv3d-resume.jsonl"

# A file changed within this time before it is looked at may change once more without its times telling: they move in steps of
# some milliseconds, and on file systems that count in seconds, of up to two.
STEP_NS, COARSE_STEP_NS = 20_000_000, 2_000_000_000

# Fields of `Job` and of `Stage` that are not compared: those that no output depends on, and those that are looked at apart.
NO_SETTINGS = {"source", "target", "stages", "missing", "coverage", "preset", "files", *fields_not_compared(Place.JOB)}
NO_STAGE_SETTINGS = {"kernel", "notes", "files", *fields_not_compared(Place.STAGE)}
# Options of the whole command that decide what "done" means.
RUN_OPTIONS = tuple(o for o in OPTIONS if o.place is Place.COMMAND and o.resumes and o.file is None)

Record = dict[str, Any]


@dataclass
class Standing:
    """How a job stands before it is run.

    done : bool             its output is what it would write
    why : str               why an output that is there does not count as done
    left : bool             a run that was killed may have left that output behind
    """

    job: Job
    done: bool
    why: str = ""
    left: bool = False
    settings: Record = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    begun: bool = False

    def allow(self) -> Job:
        """The job, which may replace what a killed run left. Raises: OutputExistsError for an output that is something else."""
        if self.left:
            return replace(self.job, overwrite=True)
        if self.why and not self.job.overwrite:
            raise OutputExistsError(
                f"cannot write {self.job.target}: file exists, and {self.why}; pass --overwrite to make it again"
            )
        return self.job


class Ledger:
    """What is known of outputs, folder by folder; used by several threads.

    also : dict         settings of the run that decide what "done" means, beside each job's own
    read_only : bool    nothing is written
    beside : dict       files that are written beside an output and belong to it, by its name
    """

    def __init__(
        self, also: Record | None = None, read_only: bool = False, beside: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._also = also or {}
        self._beside = beside or {}
        self._read_only = read_only
        self._run = os.urandom(4).hex()
        self._books: dict[str, _Book] = {}
        self._digests: dict[str, tuple[Stamp, str]] = {}
        self._lock = threading.Lock()

    def standing(self, job: Job) -> Standing:
        """Whether a job is done. Raises: FormatError if an input cannot be read."""
        settings = {**settings_of(job), **self._also}
        standing = Standing(job, False, settings=settings)
        inputs = input_files(job)
        standing.stamps = {path: stamp_of(path) for paths in inputs.values() for path in paths}
        outputs = self._outputs(job)
        if not any(os.path.lexists(path) for path in (job.target, *outputs)):
            return standing
        known = self._book(job).find(_name(job))
        fresh: list[str] = []  # files that had to be read
        ours = known.done is not None and self._same(known.done["outputs"], outputs, fresh)
        if known.done is not None and ours:
            standing.why = self._change(known.done, settings, inputs, fresh)
            standing.done = not standing.why
        elif any(not self._change(begun, settings, inputs, []) for begun in known.begun.values()):
            standing.left = True
            standing.why = "a run that was ended left it"
        elif known.done is not None:
            standing.why = "it was changed since it was made"
        elif known.begun:
            standing.why = self._change(list(known.begun.values())[-1], settings, inputs, [])
        else:
            standing.why = f"{LEDGER_NAME} beside it does not know it"
        if standing.done and fresh and not self._read_only:  # the next time their stamps will tell
            self._book(job).add(self._done_record(job, settings))
        return standing

    def _change(self, record: Record, settings: Record, inputs: Mapping[str, tuple[str, ...]], fresh: list[str]) -> str:
        """In what a job differs from one that was written down; "" if in nothing."""
        changed = _first_difference(record, settings)
        for role, paths in inputs.items() if not changed else ():
            if not self._same(record["inputs"].get(role, []), paths, fresh):
                return f"its {role} changed since"
        return changed

    def begin(self, standing: Standing) -> None:
        """Write down that a job is begun: what a killed run leaves behind is known by it."""
        job = standing.job
        record = self._record("begun", job) | {"version": VERSION, "settings": standing.settings}
        stamps = {role: [standing.stamps[path] for path in paths] for role, paths in input_files(job).items()}
        inputs = {
            role: [{"digest": None, "stamp": stamp if is_settled(stamp) else None} for stamp in found]
            for role, found in stamps.items()
        }
        self._book(job).add({**record, "inputs": inputs})
        standing.begun = True

    def finish(self, standing: Standing) -> list[str]:
        """Write down that a job is done; notes on it. Raises: WriteError."""
        job = standing.job
        try:
            record = self._done_record(job, standing.settings)
            unchanged = all(stamp_of(path) == stamp for path, stamp in standing.stamps.items())
        except FormatError:  # gone
            unchanged = False
        if unchanged:
            self._book(job).add(record)
            return []
        self.give_up(standing)
        return ["a file that was read changed meanwhile: --resume will not count this output as done"]

    def give_up(self, standing: Standing) -> None:
        """Write down that a job that was begun came to nothing."""
        if not standing.begun:
            return
        try:
            self._book(standing.job).add(self._record("failed", standing.job))
        except WriteError:
            pass  # what the job failed of is told, and "begun" claims no more than it did

    def _done_record(self, job: Job, settings: Record) -> Record:
        inputs = {role: [self._entry(path) for path in paths] for role, paths in input_files(job).items()}
        outputs = [self._entry(path) for path in self._outputs(job)]
        made = {"version": VERSION, "settings": settings, "inputs": inputs, "outputs": outputs}
        return self._record("done", job) | made

    def _record(self, state: str, job: Job) -> Record:
        return {"state": state, "output": _name(job), "run": self._run}

    def _outputs(self, job: Job) -> tuple[str, ...]:
        return (*output_files(job), *self._beside.get(job.target, ()))

    def _book(self, job: Job) -> _Book:
        folder = os.path.dirname(os.path.realpath(job.target))
        with self._lock:
            return self._books.setdefault(folder, _Book(os.path.join(folder, LEDGER_NAME)))

    def _entry(self, path: str) -> Record:
        stamp = stamp_of(path)
        digest = self._digest(path)
        return {"digest": digest, "stamp": stamp if stamp == stamp_of(path) and is_settled(stamp) else None}

    def _digest(self, path: str) -> str:
        """The digest of a file's bytes, taken once while its stamp stays."""
        stamp = stamp_of(path)
        with self._lock:
            known = self._digests.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        digest = file_digest(path)
        if is_settled(stamp):
            with self._lock:
                self._digests[path] = stamp, digest
        return digest

    def _same(self, entries: list[Record], paths: Sequence[str], fresh: list[str]) -> bool:
        """Whether files hold the bytes that were written down; those that had to be read for it are added to `fresh`."""
        if len(entries) != len(paths) or not all(map(os.path.exists, paths)):
            return False
        for entry, path in zip(entries, paths, strict=True):
            if entry["stamp"] is not None and entry["stamp"] == stamp_of(path):
                if entry["digest"] is not None:
                    with self._lock:
                        self._digests[path] = entry["stamp"], entry["digest"]
                continue
            if entry["digest"] is None or self._digest(path) != entry["digest"]:
                return False
            fresh.append(path)
        return True


@dataclass
class _Known:
    """What is written down of an output.

    done : dict or None     how it was made last
    begun : dict            what each run set out to make it, and has not said to have done or failed
    """

    done: Record | None = None
    begun: dict[str, Record] = field(default_factory=dict)


class _Book:
    """One folder's file: what its lines say of each output."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: dict[str, _Known] = {}
        self._read = 0
        self._inode = 0
        self._lock = threading.Lock()

    def find(self, output: str) -> _Known:
        """What is written down of an output, by other runs, too."""
        with self._lock:
            self._read_on()
            known = self._known.get(output, _Known())
            return _Known(known.done, dict(known.begun))

    def add(self, record: Record) -> None:
        """Add a line. Raises: WriteError."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock, write_errors(self.path), open(self.path, "a+b", buffering=0) as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, however the process ends
                except OSError:
                    pass  # some network file systems have no locks; lines are added at the end all the same
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = b"\n" + line  # a killed run did not finish its line
            written = 0
            while written < len(line):
                written += file.write(line[written:])

    def _read_on(self) -> None:
        """Read what was added since the last time."""
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
            raise FormatError(f"cannot read {self.path}: {error.strerror or error}") from None
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_record(record):
                known = self._known.setdefault(record["output"], _Known())
                if record["state"] == "begun":
                    known.begun[record["run"]] = record
                else:
                    known.begun.pop(record["run"], None)
                if record["state"] == "done":
                    known.done = record


def _is_record(record: Any) -> bool:
    """Whether a line is one of ours: the file lies where anyone may write."""
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("output", "run")):
        return False
    if record.get("state") == "failed":
        return True

    def are_entries(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(e, dict) and {"digest", "stamp"} <= e.keys() for e in value)

    inputs = record.get("inputs")
    return (
        record.get("state") in ("begun", "done")
        and isinstance(record.get("settings"), dict)
        and isinstance(inputs, dict)
        and all(map(are_entries, inputs.values()))
        and (record["state"] == "begun" or are_entries(record.get("outputs")))
    )


def check_resumable(job: Job) -> None:
    """Refuse a job whose bytes are not at hand. Raises: SpecError."""
    for path in (job.source, job.target):
        if path == "-" or "://" in path:
            what = "a pipe" if path == "-" else "a URL"
            raise SpecError(f"--resume compares the bytes of files, and {path} is {what}: leave it out, or name a file")
    same = os.path.realpath(job.source) == os.path.realpath(job.target)
    if same or lies_within(job.source, job.target):
        raise SpecError(
            f"--resume cannot tell whether {job.target} is done: it replaces its input; name another output"
        )


def settings_of(job: Job) -> Record:
    """What shapes a job's output beside the files it reads, as JSON: what differs from the defaults.

    >>> settings_of(Job("a.npy", "b.npy", (Stage("box:size=3", strides=2),), threads=3))
    {'stages': [{'strides': 2, 'kernel': 'box:size=3'}]}
    """
    result = _differing(job, NO_SETTINGS)
    result["stages"] = [
        {**_differing(stage, NO_STAGE_SETTINGS), "kernel": _kernel_words(stage)} for stage in job.stages
    ]
    missing = _differing(job.missing, {"mask"})
    if missing or job.missing.mask is not None:
        result["missing"] = {**missing, "mask": _part(job.missing.mask)}
    if (part := _part(job.source)) is not None:
        result["part"] = part
    if job.coverage is not None:
        result["coverage"] = os.path.basename(job.coverage)
    return json.loads(json.dumps(result, default=_plain))


def _part(path: str | None) -> str | None:
    """Which part of its files a volume is: a level or array in a Zarr store; None for all."""
    if path is None:
        return None
    files = volume_files(path)
    inner = os.path.relpath(path, files[0]) if len(files) == 1 and path != files[0] else "."
    return None if inner == "." else inner


def _differing(value: Any, but: set[str]) -> Record:
    """The fields of a dataclass that differ from their defaults."""
    found = {f.name: (getattr(value, f.name), f.default) for f in fields(value) if f.name not in but}
    return {name: own for name, (own, default) in found.items() if own != default}


def _kernel_words(stage: Stage) -> Any:
    """A kernel wherever it lies: a built-in's text, a file's kind (its bytes count by themselves), or digests."""
    if isinstance(stage.kernel, Kernel):
        return _plain(stage.kernel)
    path = kernel_file(stage)
    return stage.kernel if path is None else f"*{suffix_of(path)}"


def _plain(value: Any) -> Any:
    """What JSON does not hold, as something it does."""
    if isinstance(value, Kernel):
        bias = None if value.bias is None else array_digest(value.bias)
        return {"weights": array_digest(value.weights), "bias": bias, "centre": value.centre}
    if isinstance(value, np.ndarray):
        return array_digest(value)
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value):
        return _differing(value, set())
    raise TypeError(f"no way to write down {type(value).__name__} for --resume")


def _first_difference(record: Record, settings: Record) -> str:
    """Why a record does not stand for these settings; "" if it does."""
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


def is_settled(stamp: Stamp) -> bool:
    """Whether a change from now on would show in the stamp."""
    last = max(stamp[2:])
    return time.time_ns() - last > (STEP_NS if last % 1_000_000_000 else COARSE_STEP_NS)


def _name(job: Job) -> str:
    return os.path.basename(os.path.realpath(job.target))
