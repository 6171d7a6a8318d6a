"""Outputs that are devices, FIFOs or standard output by its name: bytes go through, nothing is replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import LINES
from processes import LIMIT, started

from conv3d_cli.cli import COMMANDS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="devices of POSIX")

BLUR = ("-k", "box:size=3")
SAID = "has no suffix of a format: it gets a .npy volume"


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A device like /dev/null, so that a fault harms none but this one."""
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices, and not in every container")
    return path


@pytest.fixture
def work(desk: Path, run: Any) -> Path:
    """The folder `desk`, with a record to repeat."""
    run("apply", "a.nii.gz", *BLUR, "-o", "recorded.nii.gz", "--sidecar", "-q")
    return desk


# The commands that write files, with each option that names one; NULL stands for the device.
WRITERS: dict[str, list[tuple[Any, ...]]] = {
    "apply": [
        ("a.nii.gz", *BLUR, "-o", "NULL"),
        ("a.nii.gz", *BLUR, "-o", "NULL", "--overwrite", "--depfile", "NULL"),
        ("a.nii.gz", *BLUR, "-o", "NULL", "--skip-existing"),
        ("a.nii.gz", *BLUR, "-o", "o.nii", "--depfile", "NULL", "--report", "NULL"),
        ("a.nii.gz", *BLUR, "-o", "NULL", "--mask", "mask.nii", "--coverage-out", "NULL"),
    ],
    "convert": [("a.nii.gz", "NULL")],
    "kernel": [("make", "k.npy", "-o", "NULL"), ("convert", "k.npy", "NULL")],
    "rerun": [("recorded.json", "-o", "NULL")],
    "view": [("a.nii.gz", "-o", "NULL")],
    **{name: [("a.nii.gz", *line[1:], "-o", "NULL")] for name, line in LINES.items()},
}
# `bench` has a test of its own.
NO_FILE = {
    "bench",
    "compare",
    "completion",
    "describe",
    "explain",
    "help",
    "info",
    "presets",
    "warmup",
}


def test_every_command_is_tried() -> None:
    assert {*WRITERS, *NO_FILE} == set(COMMANDS)


@pytest.mark.parametrize("command", WRITERS)
def test_a_device_stays_a_device(work: Path, null: Path, run: Any, command: str) -> None:
    for arguments in WRITERS[command]:
        before = set(work.iterdir())
        words = [null if word == "NULL" else word for word in arguments]
        run(command, *words)
        status = null.stat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == os.makedev(1, 3)
        assert {path.name for path in set(work.iterdir()) - before} <= {"o.nii"}


def test_the_benchmark_writes_through_a_device(null: Path, run: Any, tmp_path: Path) -> None:
    run("bench", "--case", "3^3", "--size", 4, "--repeat", 1, "--no-peers", "--json", null, "-q")
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_device_without_a_suffix_gets_npy_and_this_is_said(
    work: Path, null: Path, run: Any
) -> None:
    said = run("apply", "a.nii.gz", *BLUR, "-o", null).stderr
    assert said == f"note: a.nii.gz: {null} {SAID}\n"
    assert run("apply", "a.nii.gz", *BLUR, "-o", null, "-q").stderr == ""
    os.mkfifo("fifo")
    run("apply", "a.nii.gz", *BLUR, "-o", "file.npy", "-q")
    with started(["cat", "fifo"], stdout=subprocess.PIPE) as reader:
        said = run("apply", "a.nii.gz", *BLUR, "-o", "fifo").stderr
        assert reader.stdout is not None
        assert reader.stdout.read() == Path("file.npy").read_bytes()
    assert said.splitlines() == [
        f"note: a.nii.gz: fifo {SAID}",
        "note: a.nii.gz: .npy holds no voxel spacing and no affine: they are left out",
    ]


def test_a_link_to_a_device_has_its_own_suffix(work: Path, null: Path, run: Any) -> None:
    (work / "o.nii.gz").symlink_to(null)
    assert run("apply", "a.nii.gz", *BLUR, "-o", "o.nii.gz", "--overwrite").stderr == ""
    assert (work / "o.nii.gz").is_symlink()
    assert stat.S_ISCHR(null.stat().st_mode)


def test_many_volumes_may_go_to_one_device(work: Path, null: Path, run: Any) -> None:
    Path("t.tsv").write_text(f"input\toutput\na.nii.gz\t{null}\nmask.nii\t{null}\n")
    run("apply", "--manifest", "t.tsv", *BLUR)
    os.mkfifo("fifo")
    Path("t.tsv").write_text("input\toutput\na.nii.gz\tfifo\nmask.nii\tfifo\n")
    assert "two inputs would write" in run("apply", "--manifest", "t.tsv", *BLUR, code=2).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sidecar"], "has no local folder"),
        (["--resume"], "is a character device; leave out --resume"),
        (["--verify", "5"], "--verify reads the input and the output again"),
        (["--levels", "2"], "--levels is for NIfTI-Zarr, zipped OME-Zarr and OME-Zarr"),
    ],
)
def test_what_needs_a_file_says_so(
    work: Path, null: Path, run: Any, options: list[str], words: str
) -> None:
    before = sorted(path.name for path in work.iterdir())
    assert words in run("apply", "a.nii.gz", *BLUR, "-o", null, *options, code=2).stderr
    assert sorted(path.name for path in work.iterdir()) == before


def test_a_report_has_no_picture_of_what_was_sent(work: Path, null: Path, run: Any) -> None:
    run("apply", "a.nii.gz", *BLUR, "-o", null, "--report", "r.html", "-q")
    assert "no picture: the volume passes through a character device" in Path("r.html").read_text()


def test_a_folder_is_no_device(work: Path, null: Path, run: Any) -> None:
    said = run("apply", "a.nii.gz", *BLUR, "--out-dir", null, code=1).stderr
    assert "a file of that name is in the way" in said
    said = run("apply", "a.nii.gz", *BLUR, "-o", null / "o.nii", code=1).stderr
    assert f"{null} is no folder" in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["-o", "--depfile", "--report", "--coverage-out"])
def test_a_full_device_is_an_error(work: Path, run: Any, option: str) -> None:
    more = [] if option == "-o" else ["-o", "o.nii"]
    said = run(
        "apply", "a.nii.gz", *BLUR, "--mask", "mask.nii", *more, option, "/dev/full", "-q", code=1
    ).stderr
    assert said.startswith("Error: cannot write /dev/full: no space left")


def conv3d(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "conv3d_cli", *arguments]
    return subprocess.run(command, check=True, timeout=LIMIT, **options)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "-"])
def test_standard_output_by_its_names(work: Path, run: Any, name: str) -> None:
    """A file that others have begun goes on, and gets what a named file gets."""
    run("apply", "a.nii.gz", *BLUR, "-o", "file.npy", "-q")
    with open("out", "wb") as out:
        out.write(b"before")
        out.flush()
        conv3d("apply", "a.nii.gz", *BLUR, "-o", name, "-q", stdout=out)
        out.write(b"after")
    # the last bytes stand behind the volume only where the descriptor was shared
    assert Path("out").read_bytes() == b"before" + Path("file.npy").read_bytes() + b"after"


def test_process_substitution(work: Path) -> None:
    """`-o >(gzip > o.npy.gz)` of bash: a pipe that is named /dev/fd/N."""
    reader, writer = os.pipe()
    with open("got.npy", "wb") as got, started(["cat"], stdin=reader, stdout=got) as child:
        os.close(reader)
        conv3d("apply", "a.nii.gz", *BLUR, "-o", f"/dev/fd/{writer}", "-q", pass_fds=(writer,))
        os.close(writer)
        assert child.wait(LIMIT) == 0
    assert np.load("got.npy").shape == (7, 9, 8)
