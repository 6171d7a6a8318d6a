"""What --resume counts as done, and what it does not."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, started

from conv3d_cli.batch import resume as resume_module
from conv3d_cli.batch.resume import (
    LOG_NAME,
    ResumeLog,
    check_resumable,
    fingerprint_of,
    is_settled,
    settings_of,
)
from conv3d_cli.errors import FormatError, OutputExistsError, SpecError
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job


@pytest.fixture
def job(tmp_path: Path, rng: np.random.Generator) -> Job:
    """A job with a kernel file and a mask."""
    np.save(tmp_path / "x.npy", rng.standard_normal((5, 6, 7)).astype(np.float32))
    np.save(tmp_path / "k.npy", np.ones((3, 3, 3)))
    np.save(tmp_path / "m.npy", np.ones((5, 6, 7), np.float32))
    stage = Stage(str(tmp_path / "k.npy"))
    return Job(
        str(tmp_path / "x.npy"),
        str(tmp_path / "y.npy"),
        (stage,),
        missing=Missing(mask=str(tmp_path / "m.npy")),
    )


def run(job: Job, **options: Any) -> None:
    log = ResumeLog(**options)
    status = log.status(job)
    run_job(status.allowed_job(), decided=lambda prepared: log.begin(status))
    assert not log.finish(status)


def why(job: Job, **options: Any) -> str:
    """Why a job is not done; "" if it is."""
    status = ResumeLog(**options).status(job)
    assert status.done == (not status.reason)
    return status.reason


def change(path: str, keep_times: bool = False) -> None:
    """Other bytes, as many."""
    data, status = bytearray(Path(path).read_bytes()), os.stat(path)
    data[-1] ^= 1
    Path(path).write_bytes(data)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_done_once_it_is_done(job: Job) -> None:
    assert not ResumeLog().status(job).done
    run(job)
    assert why(job) == ""
    # these do not change the bits
    assert why(replace(job, threads=1, max_memory=1 << 30, overwrite=True)) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.npy", "its input changed"), ("k.npy", "its kernel"), ("m.npy", "its mask")],
)
@pytest.mark.parametrize("keep_times", [False, True])
def test_other_bytes_in(job: Job, tmp_path: Path, name: str, words: str, keep_times: bool) -> None:
    run(job)
    time.sleep(0.03)
    assert why(job) == ""  # from now on by their stamps
    change(str(tmp_path / name), keep_times)
    assert words in why(job)
    with pytest.raises(OutputExistsError, match=f"{words}.*pass --overwrite"):
        ResumeLog().status(job).allowed_job()
    run(replace(job, overwrite=True))
    assert why(job) == ""


@pytest.mark.parametrize("keep_times", [False, True])
def test_another_output(job: Job, keep_times: bool) -> None:
    run(job)
    time.sleep(0.03)
    assert why(job) == ""
    change(job.target, keep_times)
    assert why(job) == "it was changed since it was made"
    os.unlink(job.target)
    status = ResumeLog().status(job)
    assert not status.done
    assert status.allowed_job() == job


def test_same_bytes_elsewhere_are_the_same(job: Job, tmp_path: Path) -> None:
    """A folder that was copied or moved with its record, and inputs that were touched."""
    run(job)
    os.utime(job.source)
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    moved = replace(
        job,
        source=str(tmp_path.with_name("moved") / "x.npy"),
        target=str(tmp_path.with_name("moved") / "y.npy"),
    )
    assert why(moved) == ""
    assert why(job) == ""


def test_bytes_are_read_only_where_stamps_differ(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = resume_module.file_digest
    monkeypatch.setattr(
        resume_module,
        "file_digest",
        lambda path: (read.append(os.path.basename(path)), digest(path))[1],
    )
    time.sleep(0.03)
    run(job)
    assert sorted(read) == ["k.npy", "m.npy", "x.npy", "y.npy"]
    time.sleep(0.03)
    assert why(job) == ""  # the output was too new for its stamp to be believed: read once more
    read.clear()
    assert why(job) == ""
    assert read == []
    os.utime(job.source)
    time.sleep(0.03)
    assert why(job) == ""
    assert read == ["x.npy"]
    assert why(job) == ""
    assert read == ["x.npy"]


def test_a_stamp_is_believed_when_the_clock_has_moved_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x")
    assert not is_settled(fingerprint_of(str(path)))
    time.sleep(0.03)
    assert is_settled(fingerprint_of(str(path)))
    coarse = (time.time_ns() // 10**9 - 1) * 10**9  # a file system that counts in seconds
    assert not is_settled([1, 1, coarse, coarse])
    assert is_settled([1, 1, coarse - 2 * 10**9, coarse - 2 * 10**9])


OTHERS: list[tuple[str, Callable[[Job], Job]]] = [
    ("strides", lambda job: replace(job, stages=(replace(job.stages[0], strides=2),))),
    ("padding", lambda job: replace(job, stages=(replace(job.stages[0], padding="valid"),))),
    ("kernel", lambda job: replace(job, stages=(Stage("box:size=3"),))),
    ("bias", lambda job: replace(job, stages=(replace(job.stages[0], bias=(1.0,)),))),
    (
        "activations",
        lambda job: replace(job, stages=(replace(job.stages[0], activations=("relu",)),)),
    ),
    ("stages", lambda job: replace(job, stages=job.stages * 2, missing=Missing())),
    ("dtype", lambda job: replace(job, dtype="int16")),
    ("precision", lambda job: replace(job, precision="float64")),
    ("axes", lambda job: replace(job, axes="zyx")),
    ("algorithm", lambda job: replace(job, algorithm="direct")),
    ("strict", lambda job: replace(job, strict=True)),
    ("missing", lambda job: replace(job, missing=Missing())),
    ("missing", lambda job: replace(job, missing=replace(job.missing, mask_mode="extend"))),
]


@pytest.mark.parametrize(
    ("name", "other"), OTHERS, ids=[f"{name}{i}" for i, (name, _) in enumerate(OTHERS)]
)
def test_other_settings_are_named(job: Job, name: str, other: Callable[[Job], Job]) -> None:
    run(job)
    words = why(other(job))
    assert "made with other settings" in words
    assert name in words


def test_verification_is_part_of_done(job: Job) -> None:
    run(job)
    assert "verify" in why(job, also={"verify": 5})


def test_another_version(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job)
    monkeypatch.setattr(resume_module, "VERSION", "99.0")
    assert why(job).startswith("it was made by version ")


def test_kernels_in_memory_count_by_their_numbers() -> None:
    def settings(value: float, bias: float = 0.0) -> Any:
        return settings_of(
            Job("a.npy", "b.npy", (Stage(Kernel(np.full((3, 3, 3), value), np.array([bias]))),))
        )

    assert settings(1) == settings(1)
    assert settings(1) != settings(2)
    assert settings(1) != settings(1, bias=1)
    assert json.loads(json.dumps(settings(1))) == settings(1)


def test_what_is_not_known(job: Job) -> None:
    run_job(job)
    assert f"{LOG_NAME} in its folder does not list it" in why(job)
    with pytest.raises(OutputExistsError, match="does not list it; pass --overwrite"):
        ResumeLog().status(job).allowed_job()


def test_what_belongs_to_an_output_is_part_of_it(job: Job, tmp_path: Path) -> None:
    beside = tmp_path / "y.json"
    beside.write_text("{}")
    run(replace(job, overwrite=True), beside={job.target: [str(beside)]})
    assert why(job, beside={job.target: [str(beside)]}) == ""
    beside.write_text("[]")
    assert why(job, beside={job.target: [str(beside)]}) == "it was changed since it was made"


def test_what_a_killed_run_left_may_be_replaced(job: Job, tmp_path: Path) -> None:
    time.sleep(0.03)
    log = ResumeLog()
    log.begin(log.status(job))
    # it was renamed into place, and the run killed before it could say so
    np.save(job.target, np.zeros(3))
    status = ResumeLog().status(job)
    assert (status.done, status.interrupted) == (False, True)
    assert status.allowed_job().overwrite
    change(str(tmp_path / "k.npy"))
    with pytest.raises(OutputExistsError, match="its kernel changed"):
        ResumeLog().status(job).allowed_job()


def test_what_came_to_nothing_gives_no_leave(job: Job) -> None:
    log = ResumeLog()
    status = log.status(job)
    log.begin(status)
    log.give_up(status)
    np.save(job.target, np.zeros(3))
    with pytest.raises(OutputExistsError, match="does not list it"):
        ResumeLog().status(job).allowed_job()


def test_a_run_that_comes_too_late_takes_nothing_back(job: Job) -> None:
    """Two runs begin the same volume; one is done, the other finds that a file appeared meanwhile."""
    late = ResumeLog()
    status = late.status(job)
    late.begin(status)
    run(replace(job, overwrite=True))
    late.give_up(status)
    assert why(job) == ""


def test_what_is_known_to_be_done_otherwise_was_not_left(job: Job) -> None:
    """A run with other options was killed before it replaced the output: that is still what the first one made."""
    run(job)
    other = replace(job, dtype="float64")
    log = ResumeLog()
    log.begin(log.status(other))
    assert why(job) == ""
    with pytest.raises(OutputExistsError, match=r"other settings \(dtype\)"):
        ResumeLog().status(other).allowed_job()


def test_an_input_that_changes_during_the_run_is_not_written_down(job: Job) -> None:
    log = ResumeLog()
    status = log.status(job)
    run_job(job, decided=lambda prepared: log.begin(status))
    change(job.source)
    (note,) = log.finish(status)
    assert "changed during the run" in note
    assert "does not list it" in why(job)


def test_lines_that_are_not_ours_are_passed_over(job: Job, tmp_path: Path) -> None:
    run(job)
    path = tmp_path / LOG_NAME
    whole = path.read_bytes()
    assert b'"run": ' in whole
    nonsense = [
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"output": "y.npy"}',
        b'{"output": "y.npy", "run": "r", "state": "done"}',
        b"[" * 100_000,
    ]
    nonsense += [
        b'{"output": "y.npy", "run": "r", "state": "done", "settings": {}, "inputs": {"input": 3}, "outputs": []}'
    ]
    path.write_bytes(
        b"\n".join(nonsense) + b"\n" + whole + b"\n".join(nonsense) + b'\n{"state": "done", "out'
    )
    assert why(job) == ""
    change(job.source)
    run(replace(job, overwrite=True))  # behind a line that a killed run did not finish
    assert why(job) == ""
    path.unlink()
    assert "does not list it" in why(job)


ADD = """
import sys
from conv3d_cli.batch.resume import FolderLog
log = FolderLog(sys.argv[1])
for number in range(200):
    log.add({"state": "failed", "run": "r", "output": f"{sys.argv[2]}-{number}" + "x" * 5000})
"""


def test_runs_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    a, b = (started([sys.executable, "-c", ADD, path, name]) for name in "ab")
    with a as first, b as second:
        assert [process.wait(LIMIT) for process in (first, second)] == [0, 0]
    lines = [json.loads(line)["output"].rstrip("x") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name}-{number}" for name in "ab" for number in range(200))


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("-", "b.npy", "- is a pipe"),
        ("a.npy", "-", "- is a pipe"),
        ("https://h/a.zarr", "b.zarr", "https://h/a.zarr is a URL"),
        ("a.npy", "./a.npy", "it replaces its input"),
    ],
)
def test_what_cannot_be_resumed(source: str, target: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_resumable(Job(source, target, (Stage("identity"),)))


def test_stores_and_pairs(tmp_path: Path, rng: np.random.Generator) -> None:
    """Every file of a volume counts, and the level that is read."""
    pytest.importorskip("zarr")
    from conv3d_cli import Volume, write_volume

    volume = Volume(rng.standard_normal((6, 32, 32)).astype(np.float32), "zyx")
    store = str(tmp_path / "x.zarr")
    write_volume(store, volume, levels=2)
    job = Job(f"{store}/0", str(tmp_path / "y.hdr"), (Stage("box:size=3"),))
    run(job)
    assert why(job) == ""
    assert why(replace(job, source=store)) == "it was made with other settings (part)"
    change(str(tmp_path / "y.img"))
    assert why(job) == "it was changed since it was made"
    run(replace(job, overwrite=True))
    chunk = next(
        path for path in sorted(Path(store).rglob("*")) if path.is_file() and path.name.isdigit()
    )
    change(str(chunk))
    assert why(job) == "its input changed since"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")
def test_a_log_that_is_no_file_is_refused_at_once(job: Job, tmp_path: Path) -> None:
    """To open a FIFO waits for somebody who writes."""
    run(job)
    os.remove(tmp_path / LOG_NAME)
    os.mkfifo(tmp_path / LOG_NAME)
    for action in (lambda: run(job), lambda: why(job)):
        with pytest.raises(FormatError, match="the log of resume=True must be a plain file"):
            action()
    assert (tmp_path / LOG_NAME).is_fifo()
