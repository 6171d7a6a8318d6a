"""Batches without a command line: who is told what, in which order, and how a job goes through its steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.batch import steps
from conv3d_cli.batch.results import JobResult, Say, TableRow
from conv3d_cli.batch.resume import ResumeLog
from conv3d_cli.batch.runner import (
    AT_ONCE,
    SMALL_FILE_BYTES,
    BatchRunner,
    split_resources,
    volumes_at_once,
)
from conv3d_cli.batch.steps import STEPS, BatchOptions, FinishedOutputs, JobRun, run_steps
from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.system.room import PROCESS_BYTES


@dataclass
class Listener:
    """A reporter that keeps what it is told, in order."""

    told: list[tuple[str, str]] = field(default_factory=list)
    results: list[JobResult] = field(default_factory=list)
    rows: list[TableRow] = field(default_factory=list)
    progress_of: list[tuple[int, int]] = field(default_factory=list)

    @contextmanager
    def progress(self, label: str, volumes: bool = False) -> Iterator[Any]:
        listener = self

        class Progress:
            def __call__(self, done: int, total: int) -> None:
                listener.progress_of.append((done, total))

            def say(self, text: str) -> None:
                listener.say(text)

        self.told.append(("begin", label))
        yield Progress()
        self.told.append(("end", label))

    def say(self, text: str) -> None:
        self.told.append(("say", text))

    def show(self, result: JobResult, say: Say) -> None:
        self.told.append((result.status, Path(result.job.source).name))
        self.results.append(result)
        for text in result.messages:
            say(text)

    def finish(self, rows: Sequence[TableRow], seconds: float) -> None:
        self.rows = list(rows)
        assert seconds > 0


@pytest.fixture
def jobs(tmp_path: Path, rng: np.random.Generator) -> list[Job]:
    """Three good jobs with a broken one in their midst."""
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((4, 5, 6)).astype(np.float32))
    (tmp_path / "broken.npy").write_bytes(b"no volume")
    names = ("a", "broken", "b", "c")
    return [
        Job(str(tmp_path / f"{n}.npy"), str(tmp_path / f"out-{n}.npy"), (Stage("box:size=3"),))
        for n in names
    ]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_results_come_in_the_order_of_jobs(jobs: list[Job], at_once: int) -> None:
    listener = Listener()
    batch = BatchRunner(BatchOptions(), listener)
    batch.run(jobs, at_once)
    batch.finish()
    assert [result.job.source for result in listener.results] == [job.source for job in jobs]
    assert [row.status for row in listener.rows] == ["done", "failed", "done", "done"]
    assert [row.volume_bytes for row in listener.rows] == [480, 0, 480, 480]
    assert batch.exit_code == FormatError.exit_code == 3
    assert sorted(batch.finished.complete) == sorted(
        job.target for job in jobs if "broken" not in job.source
    )
    # the error's line stands after the job's own
    where = listener.told.index(("failed", "broken.npy"))
    kind, text = listener.told[where + 1]
    assert kind == "say"
    assert text.startswith("Error: ")
    assert "broken.npy" in text
    if at_once == 1:
        assert listener.told[0] == ("begin", "1/4 a.npy")
        assert (120, 120) in listener.progress_of  # voxels
    else:
        assert listener.told[0] == ("begin", "4 volumes")
        assert listener.progress_of == [(1, 4), (2, 4), (3, 4), (4, 4)]  # volumes
    expected = np.load(jobs[0].source)
    padded = np.pad(expected, 1, mode="symmetric")
    mean = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3)).mean(axis=(3, 4, 5))
    np.testing.assert_allclose(np.load(jobs[0].target), mean, atol=1e-6)


def test_the_error_of_an_only_job_is_raised(jobs: list[Job]) -> None:
    listener = Listener()
    with pytest.raises(FormatError, match=r"broken\.npy"):
        BatchRunner(BatchOptions(), listener).run([jobs[1]])
    # and no line of its own: who catches it has it
    assert [kind for kind, _ in listener.told] == [
        "begin",
        "end",
        "failed",
    ]


def test_fail_fast(jobs: list[Job]) -> None:
    listener = Listener()
    BatchRunner(BatchOptions(fail_fast=True), listener).run(jobs, 1)
    assert [result.status for result in listener.results] == [
        "done",
        "failed",
        "cancelled",
        "cancelled",
    ]


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (BatchOptions(), "; the same command with --skip-existing does the rest"),
        (BatchOptions(resume_log=ResumeLog()), "; the same command with --resume does the rest"),
    ],
)
def test_an_interrupt_says_what_is_complete(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, options: BatchOptions, end: str
) -> None:
    from conv3d_cli.pipeline import run

    original = run.run_job

    def interrupted(job: Job, *others: Any) -> Any:
        if job.source.endswith("b.npy"):
            raise KeyboardInterrupt
        return original(job, *others)

    monkeypatch.setattr(run, "run_job", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        BatchRunner(options, Listener()).run(jobs, 1)
    assert caught.value.__notes__ == [f"1 of 4 volumes is done and complete{end}"]


# ---------------------------------------------------------------------------------------------------------------------
# One job


def run_one(job: Job, **options: Any) -> tuple[JobResult, FinishedOutputs]:
    finished = FinishedOutputs()
    said: list[str] = []
    run = JobRun(
        job, BatchOptions(**options), finished, lambda done, total: None, said.append, said
    )
    return run_steps(run), finished


def test_steps_stand_in_their_order(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def noted(step: Any) -> Any:
        def call(run: JobRun) -> None:
            taken.append(step.__name__)
            step(run)

        return call

    monkeypatch.setattr(steps, "STEPS", tuple(map(noted, STEPS)))
    job = jobs[0]
    assert run_one(job, verify=10, details=True)[0].status == "done"
    assert taken == [step.__name__ for step in STEPS]
    assert taken.index("resume") < taken.index("match_smoothness") < taken.index("convolve")
    assert (
        taken.index("convolve")
        < taken.index("verify")
        < taken.index("record")
        < taken.index("picture")
    )
    taken.clear()
    result, finished = run_one(job, skip_existing=True)
    assert (result.status, result.remark, taken) == ("skipped", "output exists", ["skip_existing"])
    assert (finished.written, finished.complete) == ([], [job.target])


def test_a_plan_writes_nothing(jobs: list[Job], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result, finished = run_one(jobs[0], dry_run=True, make_folder=True)
    assert result.status == "planned"
    assert result.record["output_shape"] == [4, 5, 6]
    assert result.messages
    assert "box:size=3" in result.messages[0]
    assert run_one(jobs[0], dry_run=True, describe_plans=False)[0].messages == []
    assert (finished, sorted(tmp_path.iterdir())) == (FinishedOutputs(), before)


def test_an_error_is_a_result(jobs: list[Job]) -> None:
    log = ResumeLog()
    result, finished = run_one(jobs[1], resume_log=log)
    assert result.status == "failed"
    assert isinstance(result.error, FormatError)
    assert result.record["exit_code"] == 3
    assert result.record["error"] == result.remark
    assert finished == FinishedOutputs()


def test_verification_adds_to_the_record(jobs: list[Job]) -> None:
    result, finished = run_one(jobs[0], verify=20, details=True)
    assert result.record["verified"] == 20
    assert 0 <= result.record["verified_worst"] <= 1
    assert any(text.startswith("verified   20 voxels") for text in result.messages)
    assert finished.written == finished.complete == [jobs[0].target]


def test_previews_hold_both_volumes(jobs: list[Job]) -> None:
    preview = run_one(jobs[0], previews=True)[0].preview
    assert preview is not None
    assert preview.before is not None
    assert preview.after is not None
    assert preview.same_window
    assert preview.notes == []
    assert run_one(jobs[0], previews=False)[0].preview is None


# ---------------------------------------------------------------------------------------------------------------------
# How many at a time


def test_volumes_at_once(jobs: list[Job], tmp_path: Path) -> None:
    assert volumes_at_once(jobs[:1]) == 1
    assert volumes_at_once([Job(j.source, j.target, j.stages, threads=3) for j in jobs]) == 3
    assert (
        volumes_at_once([Job(j.source, j.target, j.stages, threads=64) for j in jobs * 3])
        == AT_ONCE
    )
    large = tmp_path / "large.npy"
    with open(large, "wb") as file:
        file.truncate(SMALL_FILE_BYTES + 1)
    assert volumes_at_once([*jobs, Job(str(large), "o.npy", jobs[0].stages)]) == 1
    assert volumes_at_once([*jobs, Job("https://host/a.zarr", "o.npy", jobs[0].stages)]) == 1


def test_resources_are_split(jobs: list[Job]) -> None:
    job = Job("a.npy", "b.npy", jobs[0].stages, threads=5, max_memory=PROCESS_BYTES + 1000)
    part = split_resources(job, 2)
    assert (part.threads, part.max_memory) == (2, PROCESS_BYTES + 500)
    assert split_resources(job, 8).threads == 1


def test_a_cluster_takes_one_volume_at_a_time(jobs: list[Job]) -> None:
    with pytest.raises(SpecError, match="--jobs runs volumes side by side on this machine"):
        BatchRunner(BatchOptions(scheduler="local:2"), Listener()).run(jobs, 2)


def test_a_failure_stops_what_runs_beside_it(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under fail_fast the job beside is told by its progress, and leaves nothing behind."""
    from conv3d_cli.pipeline import run

    failed = threading.Event()

    def stand_in(job: Job, progress: Any, *others: Any) -> Any:
        if job.source.endswith("broken.npy"):
            failed.set()
            raise FormatError("broken.npy")
        failed.wait(10)
        for _ in range(1000):
            progress(1, 2)
            threading.Event().wait(0.01)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(run, "run_job", stand_in)
    listener = Listener()
    batch = BatchRunner(BatchOptions(fail_fast=True), listener)
    batch.run(jobs[:2], 2)
    assert [result.status for result in listener.results] == ["cancelled", "failed"]
    assert batch.exit_code == 3
