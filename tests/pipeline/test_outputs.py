"""Volumes beside a job's output: whoever looks at a job's files sees each of them, whatever its role."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from conv3d_cli import Volume, write_volume
from conv3d_cli.batch.depfile import check_depfile, rules
from conv3d_cli.batch.plan import _check_beside
from conv3d_cli.batch.report import plan_record
from conv3d_cli.batch.resume import ResumeLog, check_resumable, settings_of
from conv3d_cli.errors import MemoryLimitError, OutputExistsError, SpecError
from conv3d_cli.model.missing import Missing
from conv3d_cli.pipeline.files import output_files
from conv3d_cli.pipeline.outputs import ROLES, Output, OutputRole, outputs_beside
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import check_paths, run_job
from conv3d_cli.provenance.record import Record, read_sidecar
from conv3d_cli.provenance.rerun import judge
from conv3d_cli.provenance.run import plan_recordings, run_recorded
from conv3d_cli.settings.options import Settings
from conv3d_cli.system.digests import file_digest
from conv3d_cli.system.room import PROCESS_BYTES


@pytest.fixture
def sevens(monkeypatch: pytest.MonkeyPatch) -> OutputRole:
    """A role that no part of the program knows: a volume of sevens, of any job."""

    def values(convolution: Any) -> np.ndarray:
        _depth, height, width = convolution.problem.out_size
        return np.full((1, height, width, 1), 7.0)

    role = OutputRole("sevens", values, of_means=False, purpose="is a test's")
    monkeypatch.setitem(ROLES, "sevens", role)
    return role


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, sevens: OutputRole
) -> Job:
    """A job with a mask, and both a coverage and sevens beside its output."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", rng.standard_normal((5, 6, 7)).astype(np.float32))
    mask = np.ones((5, 6, 7), np.float32)
    mask[:2] = 0
    np.save("m.npy", mask)
    beside = (Output("coverage", "c.npy"), Output("sevens", "s.npy"))
    return Job(
        "x.npy", "y.npy", (Stage("box:size=3"),), missing=Missing(mask="m.npy"), beside=beside
    )


def test_outputs_of_a_job(job: Job) -> None:
    assert [(output.role, output.path) for output in job.outputs] == [
        ("volume", "y.npy"),
        ("coverage", "c.npy"),
        ("sevens", "s.npy"),
    ]
    assert job.path_of("volume") == "y.npy"
    assert job.path_of("sevens") == "s.npy"
    assert replace(job, beside=()).path_of("sevens") is None
    assert job.needs_coverage
    assert not replace(job, beside=job.beside[1:]).needs_coverage
    assert outputs_beside({"sevens_out": "s.npy", "coverage_out": None}) == (
        Output("sevens", "s.npy"),
    )
    assert output_files(job) == ("y.npy", "c.npy", "s.npy")


def test_all_are_written_with_their_values(job: Job) -> None:
    run_job(job)
    mask = np.pad(np.load("m.npy"), 1, mode="symmetric")
    coverage = np.lib.stride_tricks.sliding_window_view(mask, (3, 3, 3)).mean(axis=(3, 4, 5))
    np.testing.assert_allclose(np.load("c.npy"), coverage, atol=1e-6)
    np.testing.assert_array_equal(np.load("s.npy"), np.full((5, 6, 7), 7, np.float32))
    assert np.load("s.npy").dtype == np.float32


def test_a_role_of_means_needs_means(job: Job) -> None:
    plain = replace(job, missing=Missing(), beside=job.beside[1:])
    run_job(plain)
    np.testing.assert_array_equal(np.load("s.npy"), np.full((5, 6, 7), 7))
    words = "coverage_out= writes the coverage of means, and this job takes none; pass mask="
    with pytest.raises(SpecError, match=words):
        replace(plain, beside=job.beside)


def test_none_of_them_is_left_by_a_job_that_fails(job: Job) -> None:
    with pytest.raises(Exception, match="did not fit"):
        run_job(replace(job, dtype="uint8", strict=True, scale="none"))
    assert sorted(os.listdir()) == ["m.npy", "x.npy"]


@pytest.mark.parametrize("role", ["coverage", "sevens"])
def test_paths_are_checked(job: Job, role: str) -> None:
    others = tuple(output for output in job.beside if output.role != role)
    for wrong in ("x.npy", "m.npy", "y.npy", others[0].path):
        with pytest.raises(
            OutputExistsError, match=f"cannot write {wrong}: it is the input or the output"
        ):
            check_paths(replace(job, beside=(*others, Output(role, wrong)), overwrite=True))
    np.save("old.npy", np.zeros(1))
    with pytest.raises(OutputExistsError, match=r"cannot write old\.npy: file exists"):
        check_paths(replace(job, beside=(Output(role, "old.npy"),)))
    with pytest.raises(SpecError, match=r"cannot write c\.doc: no volume has the suffix"):
        check_paths(replace(job, beside=(Output(role, "c.doc"),)))


def test_halves_and_stores_are_checked(job: Job) -> None:
    volume = Volume(np.load("x.npy"), "zyx")
    write_volume("x.nii", volume)
    pair = replace(
        job, source="x.nii", target="y.hdr", beside=(Output("sevens", "y.img"),), missing=Missing()
    )
    with pytest.raises(
        OutputExistsError, match=r"cannot write y\.img: it is the input or the output"
    ):
        check_paths(pair)
    write_volume("x.zarr", volume)
    within = replace(
        pair,
        source="x.zarr/0",
        target="y.nii",
        beside=(Output("sevens", "x.zarr"),),
        overwrite=True,
    )
    with pytest.raises(OutputExistsError, match=r"cannot write x\.zarr: the input lies in it"):
        check_paths(within)


def test_two_jobs_do_not_write_one_file(job: Job) -> None:
    other = replace(job, target="z.npy", beside=(Output("sevens", "./s.npy"),))
    with pytest.raises(
        SpecError,
        match=r"the sevens \./s\.npy is also an input, an output or the sevens of another output",
    ):
        _check_beside([job, other])


def test_rules_name_all(job: Job) -> None:
    assert rules([job]).splitlines()[0] == "y.npy c.npy s.npy: x.npy m.npy"
    for output in job.outputs:
        with pytest.raises(
            OutputExistsError, match=f"cannot write {output.path}: it is an input or an output"
        ):
            check_depfile(output.path, [job])
    with pytest.raises(SpecError, match="the sevens - is a pipe"):
        check_depfile("d.mk", [replace(job, beside=(Output("sevens", "-"),))])


def test_the_resume_log_looks_at_all(job: Job) -> None:
    def reason() -> str:
        status = ResumeLog().status(job)
        assert status.done == (not status.reason)
        return status.reason

    assert settings_of(job)["sevens"] == "s.npy"
    log = ResumeLog()
    status = log.status(job)
    run_job(job, decided=lambda prepared: log.begin(status))
    assert log.finish(status) == []
    assert reason() == ""
    np.save("s.npy", np.zeros((5, 6, 7), np.float32))
    assert reason() == "it was changed since it was made"
    os.unlink("s.npy")
    assert reason() == "s.npy is missing"
    job = replace(job, beside=job.beside[:-1])
    assert reason().startswith("it was made with other settings (")
    with pytest.raises(SpecError, match="- is a pipe"):
        check_resumable(replace(job, beside=(Output("sevens", "-"),)))


def test_records_and_reruns_look_at_all(job: Job) -> None:
    given = Settings(kernel="box:size=3", mask="m.npy")
    (recording,) = plan_recordings([job], [given], {}, {}).values()
    run_recorded(job, recording, lambda job, decided: run_job(job, None, decided))
    outputs = json.loads(Path("y.json").read_text())["Conv3D"]["Outputs"]
    assert {entry["Path"]: entry["Role"] for entry in outputs} == {
        "y.npy": "volume",
        "c.npy": "coverage",
        "s.npy": "sevens",
    }
    assert {entry["Path"]: entry["Digest"] for entry in outputs} == {
        path: file_digest(path) for path in ("y.npy", "c.npy", "s.npy")
    }
    record: Record = read_sidecar("y.json")
    assert judge(record, "y.npy", "y.npy", job.beside).status == "same"
    np.save("other.npy", np.zeros((5, 6, 7), np.float32))
    verdict = judge(record, "y.npy", "y.npy", (job.beside[0], Output("sevens", "other.npy")))
    assert verdict.status == "different"
    assert verdict.words == "the volume was reproduced, but its sevens differs from the record"


def test_plans_name_all(job: Job) -> None:
    with prepare_job(job) as prepared:
        record = plan_record(prepared)
    assert (record["coverage"], record["sevens"]) == ("c.npy", "s.npy")


def test_boxes_do_not_pass_over_it(job: Job) -> None:
    """Boxes write the output alone: a job with more to write goes by slabs, or is refused for its memory."""
    np.save("wide.npy", np.ones((3, 2000, 2000), np.float32))
    plain = Job("wide.npy", "y.npy", job.stages, max_memory=PROCESS_BYTES + (48 << 20), threads=1)
    with prepare_job(plain) as prepared:
        assert prepared.boxes is not None
    with (
        pytest.raises(MemoryLimitError),
        prepare_job(replace(plain, beside=(Output("sevens", "s.npy"),))),
    ):
        pass
    with prepare_job(
        replace(plain, beside=(Output("sevens", "s.npy"),), max_memory=None)
    ) as prepared:
        assert prepared.boxes is None


def test_a_cluster_refuses_it(job: Job) -> None:
    pytest.importorskip("distributed")
    from conv3d_cli.cluster.run import check_suited

    write_volume("x.zarr", Volume(np.load("x.npy"), "zyx"))
    beside = (Output("sevens", "s.zarr"),)
    remote = Job("x.zarr", "y.zarr", job.stages, beside=beside, on_cluster=True)
    with (
        prepare_job(remote) as prepared,
        pytest.raises(SpecError, match="--scheduler does not take sevens_out= yet"),
    ):
        check_suited(prepared)


# ---------------------------------------------------------------------------------------------------------------------
# --coverage-out on the command line

Apply = Callable[..., Result]


@pytest.fixture
def apply(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> Apply:
    """`conv3d apply` of a scan and its mask in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    write_volume("v.nii", Volume(rng.standard_normal((6, 7, 8)).astype(np.float32), "zyx"))
    write_volume("m.nii", Volume((rng.random((6, 7, 8)) > 0.3).astype(np.float32), "zyx"))

    def call(*arguments: str, code: int = 0) -> Result:
        result: Result = run(
            "apply", "v.nii", "-k", "box:size=3", "--mask", "m.nii", *arguments, code=code
        )
        return result

    return call


def test_both_files_of_a_coverage_are_recorded_as_such(run: Any, apply: Apply) -> None:
    apply("-o", "o.nii", "--coverage-out", "c.hdr", "--sidecar")
    outputs = json.loads(Path("o.json").read_text())["Conv3D"]["Outputs"]
    assert {entry["Path"]: entry["Role"] for entry in outputs} == {
        "o.nii": "volume",
        "c.hdr": "coverage",
        "c.img": "coverage",
    }
    assert run("rerun", "o.json").stdout == "the same: every byte of o.nii was reproduced\n"


def test_rules_do_not_replace_a_coverage(apply: Apply) -> None:
    result = apply("-o", "o.npy", "--coverage-out", "c.npy", "--depfile", "c.npy", code=5)
    assert (
        result.stderr
        == "Error: cannot write c.npy: it is an input or an output, or a job reads it; "
        "name another file\n"
    )
    assert not Path("c.npy").exists()


def test_the_folder_of_a_coverage_is_made(apply: Apply) -> None:
    apply("--out-dir", "out", "--coverage-out", "seen/c.nii")
    assert sorted(path.name for path in Path("seen").iterdir()) == ["c.nii"]
    assert (
        "does not exist" in apply("-o", "o.nii", "--coverage-out", "nowhere/c.nii", code=1).stderr
    )


@pytest.mark.parametrize("option", ["--json", "--resume", "--depfile", "--sidecar"])
def test_a_coverage_on_a_pipe_goes_with_no_account_of_it(apply: Apply, option: str) -> None:
    value = ["d.mk"] if option == "--depfile" else []
    result = apply("-o", "o.nii", "--coverage-out", "-", option, *value, code=2)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not Path("o.nii").exists()
    assert apply("-o", "o.nii", "--coverage-out", "-").stdout_bytes.startswith(b"\x93NUMPY")
