"""`apply --resume`, `--fail-fast`, `--depfile` and JSON lines, as processes and as make sees them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from processes import LIMIT, started, wait_until

from conv3d_cli import Volume, write_volume
from conv3d_cli.batch.resume import LOG_NAME, ResumeLog, ResumeStatus
from conv3d_cli.errors import WriteError

EXAMPLE = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
COMMAND = [sys.executable, "-m", "conv3d_cli", "apply"]


@pytest.fixture
def scans(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of scans, nibabel's 4-D example among them, and a kernel beside it."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        path = folder / "deep" / f"s{number}.nii.gz"
        write_volume(str(path), Volume(rng.integers(0, 999, (9, 14, 17)).astype(np.int16), "zyx"))
    shutil.copy(EXAMPLE, folder)
    np.save(tmp_path / "k.npy", np.ones((3, 3, 3)) / 27)
    return folder


def statuses(text: str) -> dict[str, str]:
    return {os.path.basename(r["input"]): r["status"] for r in map(json.loads, text.splitlines())}


@pytest.mark.parametrize("jobs", [1, 3])
def test_only_what_changed_is_made_again(run: Any, scans: Path, tmp_path: Path, jobs: int) -> None:
    kernel, out = tmp_path / "k.npy", tmp_path / "out"
    arguments = [scans, "-r", "-k", kernel, "--out-dir", out, "--resume", "--jobs", jobs, "--json"]
    names = ["example4d.nii.gz", *(f"s{n}.nii.gz" for n in range(4))]
    assert statuses(run("apply", *arguments).stdout) == dict.fromkeys(sorted(names), "done")
    plain = {p.name: p.read_bytes() for p in out.rglob("*.nii.gz")}
    result = run("apply", *arguments)
    assert statuses(result.stdout) == dict.fromkeys(names, "skipped")
    assert all(json.loads(line)["reason"] == "done already" for line in result.stdout.splitlines())
    assert "5 skipped" in result.stderr
    assert (out / LOG_NAME).exists()
    assert (out / "deep" / LOG_NAME).exists()

    write_volume(
        str(scans / "deep/s1.nii.gz"), Volume(np.ones((9, 14, 17), np.int16), "zyx"), overwrite=True
    )
    (out / "deep/s2.nii.gz").unlink()
    os.utime(scans / "deep/s3.nii.gz")
    refused = run("apply", *arguments, code=5)
    assert statuses(refused.stdout) == {
        **dict.fromkeys(names, "skipped"),
        "s1.nii.gz": "failed",
        "s2.nii.gz": "done",
    }
    assert "its input changed since; pass --overwrite" in refused.stderr
    assert (out / "deep/s1.nii.gz").read_bytes() == plain["s1.nii.gz"]
    again = run("apply", *arguments, "--overwrite")
    assert statuses(again.stdout) == {**dict.fromkeys(names, "skipped"), "s1.nii.gz": "done"}
    assert (out / "deep/s2.nii.gz").read_bytes() == plain["s2.nii.gz"]
    assert (out / "deep/s1.nii.gz").read_bytes() != plain["s1.nii.gz"]

    np.save(kernel, np.ones((3, 3, 3)) / 3)  # same name, other bytes
    assert set(statuses(run("apply", *arguments, "--overwrite").stdout).values()) == {"done"}
    fresh = run("apply", *arguments[:-3], "--dry-run", "--dtype", "int16", code=5)
    # one line for all
    assert fresh.stderr.count("made with other settings (dtype)") == 1
    assert "; the same holds for 4 other volumes" in fresh.stderr


def test_rows_of_a_manifest_stand_by_themselves(run: Any, scans: Path, tmp_path: Path) -> None:
    table, arguments = (
        tmp_path / "m.csv",
        ["--manifest", tmp_path / "m.csv", "--out-dir", tmp_path / "o", "--resume", "--json"],
    )
    table.write_text("input,kernel\nin/deep/s0.nii.gz,box\nin/deep/s1.nii.gz,box\n")
    run("apply", *arguments)
    table.write_text(
        "input,kernel,strides\nin/deep/s0.nii.gz,box,\nin/deep/s1.nii.gz,box,2\nin/deep/s2.nii.gz,k.npy,\n"
    )
    assert list(statuses(run("apply", *arguments, code=5).stdout).values()) == [
        "skipped",
        "failed",
        "done",
    ]
    assert list(statuses(run("apply", *arguments, "--overwrite").stdout).values()) == [
        "skipped",
        "done",
        "skipped",
    ]


def test_after_a_kill_the_rest_is_done(tmp_path: Path) -> None:
    """SIGKILL in mid-run: what was finished stays, the rest is made, and the whole is as if nothing had happened."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        np.save(folder / f"l{number}.npy", np.full((48, 192, 192), number, np.float32))
    command = [
        *COMMAND,
        folder,
        "-k",
        "gaussian:sigma=2vox",
        "--algorithm",
        "direct",
        "--out-dir",
        out,
        "--resume",
        "--jobs",
        "2",
    ]
    with started(command, stderr=subprocess.PIPE) as process:
        wait_until(lambda: out.is_dir() and list(out.glob("l*.npy")), process)
        process.kill()
        process.communicate(timeout=LIMIT)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("l*.npy")}
    assert 0 < len(finished) < 6
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = statuses(done.stdout)
    assert len(found) == 6
    assert set(found.values()) <= {"done", "skipped"}
    for name, status in found.items():
        if status == "skipped":
            assert (out / name).stat().st_mtime_ns == finished[name]
        assert float(np.load(out / name).mean()) == pytest.approx(float(name[1]), abs=1e-5)


def test_two_runs_at_once(scans: Path, tmp_path: Path) -> None:
    """Both end well, or find that the other was there first; the record is whole, and a third has nothing to do."""
    command = [
        *COMMAND,
        scans,
        "-r",
        "-k",
        "gaussian:sigma=1vox",
        "--out-dir",
        tmp_path / "out",
        "--resume",
        "-q",
    ]
    both = started(command, stderr=subprocess.PIPE), started(command, stderr=subprocess.PIPE)
    with both[0] as first, both[1] as second:
        for process in (first, second):
            _, stderr = process.communicate(timeout=LIMIT)
            assert process.returncode in (0, 5), stderr
            assert b"Traceback" not in stderr
    third = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert set(statuses(third.stdout).values()) == {"skipped"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "-o", "o.npy"], "--resume compares the bytes of files, and - is a pipe"),
        (["x.npy", "-o", "-"], "- is a pipe"),
        (["https://h/x.zarr", "-o", "o.zarr"], "is a URL"),
        (["x.npy", "-o", "x.npy", "--overwrite"], "it replaces its input"),
        (["x.npy", "-o", "o.npy", "--skip-existing"], "pass one of them"),
    ],
)
def test_mistakes_with_resume(
    run: Any,
    error_line: Any,
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(volume, "x.npy")
    result = run("apply", *arguments, "-k", "identity", "--resume", code=2)
    assert words in error_line(result.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# --fail-fast


@pytest.mark.parametrize("jobs", [1, 2])
def test_fail_fast(run: Any, scans: Path, tmp_path: Path, jobs: int) -> None:
    (scans / "deep/s1.nii.gz").write_bytes(b"not a scan")
    (scans / "deep/s3.nii.gz").write_bytes(b"")
    paths = sorted((scans / "deep").iterdir())
    arguments = [
        *paths,
        "-k",
        "box:size=3",
        "--out-dir",
        tmp_path / "out",
        "--jobs",
        jobs,
        "--json",
    ]
    result = run("apply", *arguments, "--fail-fast", code=3)
    found = statuses(result.stdout)
    assert found["s1.nii.gz"] == "failed"
    assert list(found) == [path.name for path in paths]
    if jobs == 1:
        assert list(found.values()) == ["done", "failed", "cancelled", "cancelled"]
        assert "1 done, 1 failed, 2 cancelled" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        n for n, s in found.items() if s == "done"
    ]
    shutil.rmtree(tmp_path / "out")
    slow = run("apply", *arguments, code=3)
    assert list(statuses(slow.stdout).values()) == ["done", "failed", "done", "failed"]


def test_what_runs_beside_a_failure_is_cancelled(tmp_path: Path) -> None:
    """A large volume is under way when the small one turns out to be none: nothing of it is left."""
    np.save(tmp_path / "large.npy", np.zeros((96, 256, 256), np.float32))
    (tmp_path / "none.npy").write_bytes(b"nothing")
    command = [
        *COMMAND, tmp_path / "large.npy", tmp_path / "none.npy", "-k", "gaussian:sigma=6vox", "--algorithm", "direct",
        "--out-dir", tmp_path / "out", "--jobs", "2", "--fail-fast", "--json", "--resume",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert statuses(done.stdout) == {"large.npy": "cancelled", "none.npy": "failed"}
    assert [path.name for path in (tmp_path / "out").iterdir()] in ([], [LOG_NAME])
    assert "1 failed, 1 cancelled" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# JSON lines, the table


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_json_lines_come_as_it_goes(tmp_path: Path, jobs: str) -> None:
    """Through a pipe, the first volume is told while the last is still computed."""
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 6), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((96, 256, 256), np.float32))
    command = [
        *COMMAND, tmp_path / "a.npy", tmp_path / "b.npy", "-k", "gaussian:sigma=6vox", "--algorithm", "direct",
        "--out-dir", tmp_path / "out", "--jobs", jobs, "--json",
    ]  # fmt: skip
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = json.loads(process.stdout.readline())
        assert (os.path.basename(first["input"]), first["status"]) == ("a.npy", "done")
        assert process.poll() is None
        assert not (tmp_path / "out/b.npy").exists()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
    assert process.returncode == 130


def test_the_table_is_aligned(run: Any, scans: Path, tmp_path: Path) -> None:
    (scans / "deep/s0.nii.gz").write_bytes(b"not a scan")
    result = run("apply", scans, "-r", "-k", "box", "--out-dir", tmp_path / "out", code=3)
    head, *lines, total = result.stderr.splitlines()[1:]
    assert head.split() == ["output", "seconds"]
    assert len(lines) == 5
    assert all(line[: len("failed")].strip() in ("done", "failed") for line in lines)
    assert lines[-1].startswith("failed")
    assert len({line.index(str(tmp_path)) for line in lines}) == 1
    end = head.index("seconds") + len("seconds")
    assert all(float(line.split()[-1]) >= 0 and len(line) == end for line in lines[:-1])
    assert total.startswith("4 done, 1 failed in ")
    assert total.endswith(" MB/s")


def test_many_skipped_volumes_are_one_row(run: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(12):
        np.save(tmp_path / "in" / f"{number:02}.npy", np.zeros((3, 4, 5), np.float32))
    arguments = [tmp_path / "in", "-k", "identity", "--out-dir", tmp_path / "out", "--resume"]
    assert run("apply", *arguments).stderr.count(".npy") == 12
    lines = run("apply", *arguments).stderr.splitlines()
    assert lines[0].split() == ["skipped", "12", "volumes", "done", "already"]
    assert lines[1].startswith("12 skipped in ")


# ---------------------------------------------------------------------------------------------------------------------
# --depfile


MAKEFILE = """
all: out/deep/s0.nii.gz
out/%.nii.gz: in/%.nii.gz
\t@echo making $@
\t@$(CONV3D) $< -c conf/c.toml --mask conf/mask.nii.gz -o $@ --overwrite --depfile $@.d
-include $(wildcard out/*.d out/*/*.d)
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_knows_what_an_output_was_made_from(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/c.toml").write_text('kernel = "my psf.npy"\nbias = "bias.txt"\n')
    shutil.copy(tmp_path / "k.npy", tmp_path / "conf/my psf.npy")
    (tmp_path / "conf/bias.txt").write_text("1\n")
    write_volume(str(tmp_path / "conf/mask.nii.gz"), Volume(np.ones((9, 14, 17), np.uint8), "zyx"))

    def make() -> str:
        command = ["make", f"CONV3D={' '.join(COMMAND)}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    target = tmp_path / "out/deep/s0.nii.gz"
    assert make() == "making out/deep/s0.nii.gz\n"
    assert "making" not in make()
    later = time.time()
    for name in (
        "in/deep/s0.nii.gz",
        "conf/my psf.npy",
        "conf/bias.txt",
        "conf/c.toml",
        "conf/mask.nii.gz",
    ):
        later += 10
        os.utime(tmp_path / name, (later, later))
        assert "making" in make(), name
        os.utime(target, (later + 1, later + 1))
        assert "making" not in make(), name


def test_one_depfile_for_a_batch(
    run: Any, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["in/deep", "-k", "k.npy", "--out-dir", "out", "--depfile", "x.d"]
    run("apply", *arguments)
    text = Path("x.d").read_text()
    for number in range(4):
        assert f"out/s{number}.nii.gz: in/deep/s{number}.nii.gz k.npy\n" in text
    assert text.count("\nk.npy:\n") == 1
    Path("in/deep/s1.nii.gz").write_bytes(b"not a scan")
    Path("x.d").write_text("as it was")
    run("apply", *arguments, "--overwrite", code=3)
    assert Path("x.d").read_text() == "as it was"
    run(
        "apply", "in/deep/s0.nii.gz", "-k", "k.npy", "-o", "y.nii.gz", "--depfile", "no/x.d", code=1
    )
    assert not Path("y.nii.gz").exists()
    run(
        "apply",
        "in/deep/s0.nii.gz",
        "-k",
        "k.npy",
        "-o",
        "y.nii.gz",
        "--depfile",
        "x.d",
        "--dry-run",
        code=2,
    )
    run(
        "apply",
        "in/deep/s0.nii.gz",
        "-k",
        "k.npy",
        "-o",
        "y.nii.gz",
        "--depfile",
        "https://h/x.d",
        code=2,
    )


def test_an_output_that_was_made_with_a_sidecar_is_not_called_changed(
    run: Any, volume: Path, tmp_path: Path, error_line: Any
) -> None:
    command = ("apply", volume, "-k", "box:size=3", "-o", tmp_path / "o.npy", "--resume")
    run(*command, "--sidecar")
    line = error_line(run(*command, code=5).stderr)
    assert "it was made as one of 2 files, as with a sidecar, and would be one of 1" in line
    run(*command, "--sidecar")


def test_a_sidecar_belongs_to_its_output(run: Any, volume: Path, tmp_path: Path) -> None:
    command = [
        "apply",
        volume,
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "o.npy",
        "--resume",
        "--sidecar",
    ]
    run(*command)
    assert json.loads(run(*command, "--json").stdout)["status"] == "skipped"
    sidecar = (tmp_path / "o.json").read_bytes()
    (tmp_path / "o.json").unlink()
    run(*command, "--overwrite")
    assert (tmp_path / "o.json").read_bytes() == sidecar
    (tmp_path / "o.json").write_text("{}")
    run(*command, "--overwrite")
    assert (tmp_path / "o.json").read_bytes() == sidecar


def test_rows_of_a_manifest_have_records_of_their_own(
    run: Any, volume: Path, tmp_path: Path
) -> None:
    """Each row's sidecar holds the command with the row's options, from which it can be made again."""
    (tmp_path / "t.csv").write_text(
        f"input,output,kernel,strides\n{volume.name},a.npy,,2\n{volume.name},b.npy,gradient:axis=dh,\n"
    )
    run(
        "apply",
        "--manifest",
        tmp_path / "t.csv",
        "-k",
        "sobel:axis=xyz",
        "--magnitude",
        "--sidecar",
        "--threads",
        1,
    )
    commands = [
        json.loads((tmp_path / name).read_text())["Conv3D"]["Command"]
        for name in ("a.json", "b.json")
    ]
    assert commands == [
        f"conv3d apply {volume.name} -k sobel:axis=xyz --magnitude --strides 2 -o a.npy",
        f"conv3d apply {volume.name} -k gradient:axis=dh --magnitude -o b.npy",
    ]
    run("rerun", tmp_path / "a.json")
    np.save(volume, np.load(volume) + 1)
    assert "--force" in run("rerun", tmp_path / "b.json", code=4).stderr


def test_a_kept_log_is_understood(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/data/resume/kept.jsonl was written by an earlier state of the program: its format stays.

    It tells of two outputs that were done, one of them with its coverage; of one that a killed run had begun; and of one that
    had failed. What it says of this machine (the version, and the file times and inode of an input) is set to what holds here.
    """
    monkeypatch.chdir(tmp_path)
    volume = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    mask = np.ones((3, 4, 5), np.float32)
    mask[0] = 0
    np.save("x.npy", volume)
    np.save("late.npy", volume + 1)
    np.save("mask.npy", mask)
    # what the run of then has written: copies, and 0 outside the mask, where the coverage is 0
    np.save("plain.npy", volume)
    np.save("masked.npy", volume * mask)
    np.save("coverage.npy", mask)
    np.save("late_out.npy", volume - 1)  # the killed run's
    text = (Path(__file__).parents[1] / "data" / "resume" / "kept.jsonl").read_text()
    status = os.stat("late.npy")
    here = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    text = text.replace('"version": "0.1.0"', f'"version": "{version("conv3d")}"')
    text = text.replace("[368, 2163461, 1795981329538426461, 1795981329538426461]", str(here))
    Path(LOG_NAME).write_text(text)

    def status_of(*arguments: str, code: int = 0) -> str:
        result = run("apply", *arguments, "-k", "identity", "--resume", "--json", code=code)
        return str(json.loads(result.stdout)["status"])

    masked = ("x.npy", "--mask", "mask.npy", "--coverage-out", "coverage.npy", "-o", "masked.npy")
    assert status_of("x.npy", "-o", "plain.npy") == "skipped"
    assert status_of(*masked) == "skipped"
    # what a killed run left may be replaced
    assert status_of("late.npy", "-o", "late_out.npy") == "done"
    np.testing.assert_array_equal(np.load("late_out.npy"), volume + 1)
    assert status_of("x.npy", "-o", "failed.npy") == "done"
    assert status_of("x.npy", "-o", "plain.npy", "--dtype", "float64", code=5) == "failed"
    np.save("coverage.npy", mask / 2)
    assert status_of(*masked, code=5) == "failed"
    assert Path(LOG_NAME).read_text().startswith(text)


# Each run waits until all have begun the volume, so that only one of them finds its place free.
MEET = """
import sys, time
from pathlib import Path
from conv3d_cli.batch.resume import ResumeLog
from conv3d_cli.cli import main

begin, number = ResumeLog.begin, sys.argv.pop(1)

def meet(self, status):
    begin(self, status)
    Path(f"begun{number}").touch()
    while len(list(Path().glob("begun*"))) < 3:
        time.sleep(0.01)

ResumeLog.begin = meet
main(sys.argv[1:])
"""


@pytest.mark.parametrize("options", [[], ["--sidecar"]], ids=" ".join)
def test_runs_of_the_same_volume_at_once_share_its_output(
    options: list[str], tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    np.save(tmp_path / "x.npy", rng.random((9, 10, 11), np.float32))
    words = ["apply", "x.npy", "-k", "box:size=3", "-o", "o.npy", "--resume", "--json", *options]
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                started(
                    [sys.executable, "-c", MEET, number, *words],
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(3)
        ]
        ends = [one.communicate(timeout=LIMIT) for one in runs]
    assert [one.returncode for one in runs] == [0, 0, 0], ends
    run("apply", tmp_path / "x.npy", "-k", "box:size=3", "-o", tmp_path / "alone.npy")
    assert (tmp_path / "o.npy").read_bytes() == (tmp_path / "alone.npy").read_bytes()
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == {LOG_NAME}
    again = subprocess.run(
        [*COMMAND, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert statuses(again.stdout) == {"x.npy": "skipped"}


def test_a_file_that_appears_meanwhile_is_not_taken_for_that_of_another_run(
    tmp_path: Path, rng: np.random.Generator, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", rng.random((5, 6, 7), np.float32))
    begin = ResumeLog.begin

    def appears(self: ResumeLog, status: ResumeStatus) -> None:
        begin(self, status)
        (tmp_path / "o.npy").write_bytes(b"mine")

    monkeypatch.setattr(ResumeLog, "begin", appears)
    arguments = ["-k", "box:size=3", "-o", tmp_path / "o.npy", "--resume"]
    run("apply", tmp_path / "x.npy", *arguments, code=5)
    assert (tmp_path / "o.npy").read_bytes() == b"mine"


def test_a_log_that_cannot_be_written_disowns_no_output(
    tmp_path: Path, rng: np.random.Generator, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the output is complete: it is told of, and the next run may go on."""
    np.save(tmp_path / "x.npy", rng.random((5, 6, 7), np.float32))
    arguments = ["-k", "box:size=3", "-o", tmp_path / "o.npy", "--resume"]

    def full(self: ResumeLog, status: ResumeStatus) -> list[str]:
        raise WriteError("cannot write the log: no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(ResumeLog, "finish", full)
        result = run("apply", tmp_path / "x.npy", *arguments, code=1)
    assert f"no space left on the disk; {tmp_path / 'o.npy'} is written" in result.stderr
    assert result.stderr.count(" is written") == 1
    whole = (tmp_path / "o.npy").read_bytes()
    run("apply", tmp_path / "x.npy", *arguments)
    assert (tmp_path / "o.npy").read_bytes() == whole
