"""Rules for make and ninja, read by make and ninja themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from conv3d_cli.batch.depfile import check_depfile, rules, write_depfile
from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.model.missing import Missing
from conv3d_cli.pipeline.outputs import Output
from conv3d_cli.pipeline.request import Job, Stage

NAMES = [
    "plain.npy",
    "my scan.npy",
    "cost $5.npy",
    "a#b.npy",
    "two  spaces.npy",
    "t~x.npy",
    "c+d,e@f=g.npy",
    "ü é.npy",
    "a:b.npy",
]


def make(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_reads_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target is made again after any prerequisite changed, whatever its name, and after none did it is not."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).touch()
    job = Job("plain.npy", "out put.npy", tuple(Stage(name) for name in NAMES[1:]))
    write_depfile("x.d", [job])
    (tmp_path / "Makefile").write_text('out\\ put.npy:\n\t@echo made; touch "$@"\ninclude x.d\n')
    goal = "out put.npy"
    assert make(tmp_path, goal) == "made\n"
    assert "up to date" in make(tmp_path, goal)
    for number, name in enumerate(NAMES):
        later = os.stat("out put.npy").st_mtime + 10 + number
        os.utime(name, (later, later))
        assert make(tmp_path, goal) == "made\n", name
        os.utime("out put.npy", (later + 1, later + 1))
        assert "up to date" in make(tmp_path, goal)
    Path(NAMES[1]).unlink()  # a file that went is no error: make makes the target again
    assert make(tmp_path, goal) == "made\n"


@pytest.mark.skipif(shutil.which("ninja") is None, reason="needs ninja")
def test_ninja_reads_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).touch()
    job = Job("plain.npy", "out put.npy", tuple(Stage(name) for name in NAMES[1:]))
    write_depfile("x.d", [job])
    Path("build.ninja").write_text(
        "rule r\n  command = touch 'out put.npy'; cp x.d y.d\n  depfile = y.d\nbuild out$ put.npy: r plain.npy\n"
    )

    def ninja() -> str:
        return subprocess.run(
            ["ninja", "-d", "explain"], capture_output=True, text=True, check=True
        ).stdout

    ninja()
    assert "no work to do" in ninja()
    for number, name in enumerate(NAMES):
        later = os.stat("out put.npy").st_mtime + 10 + number
        os.utime(name, (later, later))
        assert "no work to do" not in ninja(), name


def test_everything_that_is_read_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.hdr").write_text("x")
    Path("a.img").write_text("x")
    Path("m.zarr/c/0").mkdir(parents=True)
    for name in ("m.zarr/zarr.json", "m.zarr/c/0/0"):
        Path(name).touch()
    stage = Stage("psf.npy", bias=(1.0,), files=("bias.npy",))
    job = Job(
        "a.hdr",
        "o.npy",
        (stage,),
        missing=Missing(mask="m.zarr"),
        beside=(Output("coverage", "c.npy"),),
        files=("c.toml", "m.csv"),
    )
    first, *others = rules([job]).split("\n\n")
    assert (
        first
        == "o.npy c.npy: a.hdr a.img m.zarr/zarr.json m.zarr/c/0/0 psf.npy c.toml m.csv bias.npy"
    )
    assert [text.strip() for text in others] == [f"{name}:" for name in first.split()[2:]]


def test_an_output_that_another_is_made_from_has_one_rule() -> None:
    chain = [
        Job("a.npy", "b.npy", (Stage("identity"),)),
        Job("b.npy", "c.npy", (Stage("identity"),)),
    ]
    assert rules(chain) == "b.npy: a.npy\nc.npy: b.npy\n\na.npy:\n"


def test_long_rules_are_folded() -> None:
    job = Job("a.npy", "b.npy", tuple(Stage(f"{'k' * 60}{number}.npy") for number in range(5)))
    text = rules([job]).partition("\n\n")[0]
    assert max(map(len, text.splitlines())) <= 122
    assert text.count("\\\n") == text.count("\n") > 1


@pytest.mark.parametrize(
    ("path", "source", "target", "words"),
    [
        ("-", "a.npy", "b.npy", "names a file, received -"),
        ("s3://b/x.d", "a.npy", "b.npy", "names a file, received s3://b/x.d"),
        ("x.d", "https://h/a.zarr", "b.zarr", "the input https://h/a.zarr is a URL"),
        ("x.d", "a.zarr", "s3://b/b.zarr", "the output s3://b/b.zarr is a URL"),
        ("x.d", "a.npy", "-", "the output - is a pipe"),
        ("x.d", "a.npy", "50%.npy", "a make rule cannot hold the name '50%.npy'"),
        ("x.d", "a\nb.npy", "b.npy", "cannot hold the name"),
    ],
)
def test_what_make_cannot_use(path: str, source: str, target: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_depfile(path, [Job(source, target, (Stage("identity"),))])
    assert words in str(caught.value)


def test_a_depfile_is_no_volume(tmp_path: Path) -> None:
    source = str(tmp_path / "a.npy")
    np.save(source, np.zeros(3))
    with pytest.raises(OutputExistsError, match="it is an input or an output"):
        check_depfile(source, [Job(source, "b.npy", (Stage("identity"),))])
