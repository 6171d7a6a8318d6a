"""From inputs or a manifest to jobs, with options that come from no command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.batch.plan import BatchRequest, plan_jobs
from conv3d_cli.errors import ConfigError, OutputExistsError, SpecError
from conv3d_cli.model.missing import Missing
from conv3d_cli.pipeline.outputs import Output, outputs_beside
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.settings.options import Settings


@dataclass
class Merged:
    """A kernel, a number of threads, and whether to overwrite."""

    values: dict[str, Any]

    @property
    def overwrite(self) -> bool:
        return bool(self.values.get("overwrite"))

    @property
    def mask(self) -> str | None:
        return self.values.get("mask")

    @property
    def writes_labels(self) -> bool:
        return False

    @property
    def used_files(self) -> Sequence[str]:
        return [path for path in (self.values.get("mask"), self.values.get("coverage_out")) if path]

    def job(self, source: str, target: str, mask: str | None = None) -> Job:
        value = self.values
        return Job(
            source,
            target,
            (Stage(value.get("kernel", "box:size=3")),),
            threads=value.get("threads"),
            overwrite=self.overwrite,
            files=value["files"],
            missing=Missing(mask=mask or self.mask),
            beside=outputs_beside(value),
        )


@dataclass
class Options:
    """Options that are given as a dict; a manifest may set the kernel, the threads and two files."""

    values: dict[str, Any] = field(default_factory=dict)
    columns: Sequence[str] = ("kernel", "threads", "mask", "coverage_out")

    @property
    def given(self) -> Settings:
        return Settings(**self.values)

    def settings(self, given: Settings, files: Sequence[str] = ()) -> Merged:
        return Merged({**given.given(), "files": tuple(files)})

    def parse(self, column: str, text: str) -> Any:
        if column == "threads" and not text.isdigit():
            raise ValueError(f"{text!r} is no number")
        return int(text) if column == "threads" else text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.npy", "in/b.npy", "in/deep/c.npy", "mask.npy"):
        np.save(tmp_path / name, np.ones((2, 3, 4), np.float32))
    return tmp_path


def pairs(request: BatchRequest, **given: Any) -> list[tuple[str, str]]:
    return [(job.source, job.target) for job in plan_jobs(request, Options(given)).jobs]


def test_one_output(folder: Path) -> None:
    assert pairs(BatchRequest(("in/a.npy",), output="x.npy")) == [("in/a.npy", "x.npy")]
    with pytest.raises(SpecError, match="-o names one output, received 2 inputs"):
        pairs(BatchRequest(("in/a.npy", "in/b.npy"), output="x.npy"))
    with pytest.raises(SpecError, match="in is a folder; pass --out-dir"):
        pairs(BatchRequest(("in",), output="x.npy"))
    with pytest.raises(SpecError, match="leave out --out-dir"):
        pairs(BatchRequest(("in/a.npy",), output="x.npy", out_dir="out"))
    with pytest.raises(SpecError, match=r"no output: pass -o OUT, as in -o a_gaussian\.npy"):
        pairs(BatchRequest(("in/a.npy",)), kernel="gaussian:sigma=1")
    with pytest.raises(SpecError, match=r"; if x\.npy is the output, pass -o x\.npy"):
        pairs(BatchRequest(("in/a.npy", "x.npy")))


def test_folders(folder: Path) -> None:
    assert pairs(BatchRequest(("in",), out_dir="out", suffix="_s")) == [
        ("in/a.npy", "out/a_s.npy"),
        ("in/b.npy", "out/b_s.npy"),
    ]
    deep = BatchRequest(("in",), out_dir="out", recursive=True)
    assert pairs(deep)[-1] == ("in/deep/c.npy", "out/deep/c.npy")
    assert pairs(BatchRequest(("in",), out_dir="out", patterns=("b*",))) == [
        ("in/b.npy", "out/b.npy")
    ]
    # the mask is no volume of the folder, nor is what the command wrote before
    np.save("in/a_s.npy", np.ones((2, 3, 4), np.float32))
    plan = plan_jobs(BatchRequest(("in",), suffix="_s"), Options({"mask": "in/b.npy"}))
    assert [(job.source, job.target) for job in plan.jobs] == [("in/a.npy", "in/a_s.npy")]
    assert sorted(note.split(" that")[0] for note in plan.notes) == [
        "left out 1 file",
        "left out 1 volume",
    ]


def test_an_output_must_not_replace_an_input(folder: Path) -> None:
    request = BatchRequest(("in/a.npy", "in/b.npy"), out_dir="in")
    with pytest.raises(OutputExistsError, match="would replace the input"):
        pairs(request)
    assert pairs(request, overwrite=True) == [("in/a.npy", "in/a.npy"), ("in/b.npy", "in/b.npy")]


def test_a_manifest(folder: Path) -> None:
    (folder / "in" / "m.csv").write_text(
        "input,output,kernel,threads\na.npy,x.npy,,3\nb.npy,deep/y.npy,identity,\n"
    )
    request = BatchRequest(manifest="in/m.csv", out_dir="out")
    plan = plan_jobs(request, Options({"kernel": "box:size=5"}))
    assert [(job.source, job.target) for job in plan.jobs] == [
        ("in/a.npy", "out/x.npy"),
        ("in/b.npy", "out/deep/y.npy"),
    ]
    assert [job.stages[0].kernel for job in plan.jobs] == ["box:size=5", "identity"]
    assert [job.threads for job in plan.jobs] == [3, None]
    assert [job.files for job in plan.jobs] == [("in/m.csv",)] * 2
    assert plan.given == [Settings(kernel="box:size=5", threads=3), Settings(kernel="identity")]
    # without a folder for outputs, names start from the manifest's
    assert pairs(BatchRequest(manifest="in/m.csv"))[1] == ("in/b.npy", "in/deep/y.npy")


@pytest.mark.parametrize("output", ["../x.npy", "{}/x.npy", "deep/../../x.npy", "link/x.npy"])
def test_a_manifest_writes_into_its_folder_alone(folder: Path, output: str) -> None:
    """It may be a stranger's. tar and unzip refuse such names, too."""
    (folder / "out").mkdir()
    (folder / "out" / "link").symlink_to(folder / "in")
    output = output.format(folder)
    (folder / "in" / "m.csv").write_text(f"input,output\na.npy,{output}\n")
    outside = BatchRequest(manifest="in/m.csv", out_dir="out")
    words = f"line 2, column output: {output} lies outside out_dir='out'; name a file in it"
    with pytest.raises(ConfigError, match=re.escape(words)):
        plan_jobs(outside, Options({"kernel": "box:size=5"}))
    assert len(pairs(replace(outside, allow_outside=True), kernel="identity")) == 1
    assert len(pairs(replace(outside, out_dir=None), kernel="identity")) == 1
    (folder / "in" / "m.csv").write_text(f"input,coverage_out\na.npy,{output}\n")
    with pytest.raises(ConfigError, match=r"column coverage_out: .* lies outside"):
        plan_jobs(outside, Options({"kernel": "box:size=5"}))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("input,threads\na.npy,two\n", "column threads: 'two' is no number"),
        ("input\n-\n", "column input: a manifest names files, received '-'"),
        ("input,output\na.npy,-\n", "column output: a manifest names files, received '-'"),
        ("input,sigma\na.npy,1\n", "unknown column 'sigma'"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_said_with_its_place(
    folder: Path, table: str, words: str
) -> None:
    (folder / "in" / "m.csv").write_text(table)
    with pytest.raises(ConfigError, match=f"manifest in/m.csv, line .*{words}"):
        pairs(BatchRequest(manifest="in/m.csv", suffix="_s"))


def test_a_coverage_is_one_jobs_own(folder: Path) -> None:
    one = {"mask": "mask.npy", "coverage_out": "c.npy"}
    assert plan_jobs(BatchRequest(("in/a.npy",), output="x.npy"), Options(one)).jobs[0].beside == (
        Output("coverage", "c.npy"),
    )
    with pytest.raises(SpecError, match="coverage_out= names one file, received 2 inputs"):
        pairs(BatchRequest(("in",), out_dir="out"), **one)
    (folder / "m.csv").write_text(
        "input,output,coverage_out\nin/a.npy,x.npy,c.npy\nin/b.npy,y.npy,c.npy\n"
    )
    with pytest.raises(
        SpecError,
        match=r"the coverage c\.npy is also an input, an output or the coverage of another output",
    ):
        pairs(BatchRequest(manifest="m.csv"), mask="mask.npy")
