"""A batch speaks once: a fault that all volumes share, a failure, a note, a plan; and its table breaks no name."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, started, wait_until

BOX = ("-k", "box:size=3")


def here() -> str:
    """The end of a message on a file that is not in the current folder."""
    return f" in {os.getcwd()}; correct the name, or change the folder\n"


NAMES = ("a", "b", "c", "d")


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with four volumes in `in`; every second one is larger."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, name in enumerate(NAMES):
        np.save(f"in/{name}.npy", np.ones((4 + number % 2, 5, 6), np.float32))
    np.save("other_grid.npy", np.ones((2, 2, 2), np.uint8))
    Path("damaged.npy").write_bytes(b"\x93NUMPY is not this")
    return tmp_path


SHARED = [
    (["--mask", "none.npy", *BOX], 3, "cannot read none.npy: no such file"),
    (["--mask", "damaged.npy", *BOX], 3, "cannot read damaged.npy: "),
    (["--mask", "other_grid.npy", *BOX], 4, "the mask other_grid.npy has another grid"),
    (["-k", "none.npy"], 3, "cannot read none.npy: no such file"),
    (["-k", "damaged.npy"], 3, "cannot read damaged.npy: "),
    (["-k", "box:size=9", "--padding", "valid"], 4, "the kernel is larger than the volume"),
    (["-k", "gaussian:fwhm=6mm"], 4, "no voxel spacing"),
    (["--max-memory", "10M", *BOX], 6, "the ceiling is 10.0 MiB; pass --max-memory "),
    (["--bias", "none.npy", *BOX], 3, "cannot read none.npy: no such file"),
    (["-c", "none.toml"], 3, "cannot read config none.toml: no such file"),
    (["--scheduler", "local:0", *BOX], 2, "at least 1"),
    (["--scheduler", "local:2", "--nan", "ignore", *BOX], 2, "--scheduler does not take --mask"),
]


@pytest.mark.parametrize(
    "more", [["--jobs", 1], ["--jobs", 2], ["--dry-run"], ["--resume"], ["-q"]]
)
@pytest.mark.parametrize(("options", "code", "words"), SHARED)
def test_a_shared_fault_is_one_line_before_any_work(
    four: Path, run: Any, options: list[str], code: int, words: str, more: list[Any]
) -> None:
    if "--dry-run" in more and "--scheduler" in options and "--nan" not in options:
        more = []
    result = run("apply", "in", "--out-dir", "out", *options, *more, code=code)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert words in line
    assert not Path("out").exists()
    assert result.stdout == ""


def test_a_shared_fault_tells_programs_of_each_volume(four: Path, run: Any) -> None:
    result = run("apply", "in", "--out-dir", "out", "-k", "none.npy", "--json", code=3)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(r["status"], r["input"], r["exit_code"]) for r in records] == [
        ("failed", f"in/{name}.npy", 3) for name in NAMES
    ]
    assert result.stderr == "Error: cannot read none.npy: no such file" + here()


def test_the_ceiling_that_is_asked_for_serves_all(four: Path, run: Any) -> None:
    """The message is that of the volume that needs most, wherever it stands."""
    np.save("in/b.npy", np.ones((4, 900, 900), np.float32))
    asked = ["apply", "in", "--out-dir", "out", *BOX]
    line = run(*asked, "--max-memory", "10M", code=6).stderr
    enough = line.partition("pass --max-memory ")[2].split()[0]
    run(*asked, "--max-memory", enough)


def test_outputs_that_all_exist_are_one_line(four: Path, run: Any) -> None:
    asked = ["apply", "in", "--out-dir", "out", *BOX]
    run(*asked)
    assert run(*asked, code=5).stderr == (
        "Error: cannot write out/a.npy: file exists; pass --overwrite to replace it, "
        "or --skip-existing to keep it; the same holds for 3 other volumes\n"
    )
    # what needs no work has no fault
    result = run(*asked, "--skip-existing", "--mask", "none.npy", "--json")
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["skipped"] * 4
    Path("out/a.npy").unlink()
    Path("out/b.npy").unlink()
    result = run(*asked, "--skip-existing", "--mask", "none.npy", "--json", code=3)
    assert [json.loads(line)["input"] for line in result.stdout.splitlines()] == [
        "in/a.npy",
        "in/b.npy",
    ]


def test_a_damaged_volume_does_not_hide_a_shared_fault(four: Path, run: Any) -> None:
    Path("in/b.npy").write_bytes(b"no volume")
    result = run("apply", "in", "--out-dir", "out", "-k", "none.npy", code=3)
    assert result.stderr == "Error: cannot read none.npy: no such file" + here()


def test_faults_of_their_own_are_told_each(four: Path, run: Any) -> None:
    result = run("apply", "x.npy", "y.npy", "in/a.npy", "--out-dir", "out", *BOX, code=3)
    assert "Error: cannot read x.npy: no such file" + here() in result.stderr
    assert "Error: cannot read y.npy: no such file" + here() in result.stderr
    assert Path("out/a.npy").exists()
    result = run("apply", "x.npy", "y.npy", "--out-dir", "none", *BOX, code=3)
    assert result.stderr.count("no such file") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Failures and notes


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_stands_once(four: Path, run: Any, jobs: int) -> None:
    np.save("mask.npy", np.ones((4, 5, 6), np.uint8))
    options = ("--mask", "mask.npy", "--out-dir", "out", "--jobs", jobs)
    lines = run("apply", "in", *BOX, *options, code=4).stderr.splitlines()
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 2
    for name, line in zip("bd", errors, strict=True):
        assert f"in/{name}.npy" in line
        assert sum("another grid" in other for other in lines) == 2
    assert [line for line in lines if line.startswith("failed")] == [
        "failed  out/b.npy",
        "failed  out/d.npy",
    ]
    assert lines[-1].startswith("2 done, 2 failed in ")


def test_an_error_names_its_volume(four: Path, run: Any) -> None:
    """Also one whose words are about another file."""
    table = "input,mask\nin/a.npy,n/a\nin/b.npy,none.npy\nin/c.npy,damaged.npy\n"
    Path("m.csv").write_text(table)
    result = run("apply", "--manifest", "m.csv", "--out-dir", "out", *BOX, code=3)
    assert "Error: in/b.npy: cannot read none.npy: no such file" + here() in result.stderr
    assert "Error: in/c.npy: cannot read damaged.npy: " in result.stderr


def test_a_note_that_volumes_share_is_told_once_and_counted(four: Path, run: Any) -> None:
    np.save("in/e.npy", np.full((4, 5, 6), 300, np.float32))
    asked = ["apply", "in", *BOX, "--dtype", "uint8", "--flip", "--jobs", 1]
    asked += ["-k", "expr:exp(-r**2)*200:radius=1vox"]
    first = [line for line in run(*asked, "--out-dir", "o1").stderr.splitlines() if "note" in line]
    # a, c and e are of one size, b and d of another: so many voxels were clipped in each
    assert [re.split(r": 1[25]0 voxels", line)[0] for line in first] == [
        "note: in/a.npy",
        "note: in/b.npy",
        "note: 2 more volumes",
        "note: 1 more volume",
    ]
    told = run(*asked, "--out-dir", "o2", "-v").stderr.splitlines()
    assert sum(line.startswith("note: in/") for line in told) == 5


# ---------------------------------------------------------------------------------------------------------------------
# Plans


def test_a_dry_run_of_many_is_a_line_each(four: Path, run: Any) -> None:
    np.save("in/x_mask.npy", np.ones((4, 5, 6), np.uint8))
    Path("in/lh.white.surf.gii").write_text("<GIFTI/>")
    asked = ["apply", "in", *BOX, "--out-dir", "out", "--dry-run"]
    lines = run(*asked).stderr.splitlines()
    assert [line for line in lines if line.startswith("in/")] == [
        f"in/{name}.npy -> out/{name}.npy" for name in NAMES
    ]
    assert [line for line in lines if line.startswith("left out")] == [
        "left out in/x_mask.npy",
        "left out in/lh.white.surf.gii",
    ]
    assert [line[:21] for line in lines if line.startswith("note: ")] == [
        "note: left out 1 mask",
        "note: left out 1 surf",
    ]
    assert lines[-1].startswith("4 planned in ")
    assert len(lines) == 9
    assert not Path("out").exists()
    long = run(*asked, "-v").stderr
    assert long.count("algorithm  ") == 4
    assert "algorithm  " in run("apply", "in/a.npy", *BOX, "--out-dir", "out", "--dry-run").stderr
    assert run(*asked, "-q").stderr == ""


def test_a_dry_run_tells_masks_and_what_is_done_already(four: Path, run: Any) -> None:
    for name in NAMES:
        np.save(f"in/{name}_mask.npy", np.ones_like(np.load(f"in/{name}.npy"), np.uint8))
    asked = ["apply", "in", *BOX, "--out-dir", "out", "--mask", "{stem}_mask.npy"]
    run("apply", "in/a.npy", *BOX, "--out-dir", "out")
    lines = run(*asked, "--skip-existing", "--dry-run").stderr.splitlines()
    assert "in/d.npy -> out/d.npy (mask in/d_mask.npy)" in lines
    assert "skipped  out/a.npy  output exists" in lines
    assert lines[-1].startswith("3 planned, 1 skipped in ")


def test_what_is_left_out_is_told_by_kind(four: Path, run: Any) -> None:
    for name in ("x_mask", "y_mask", "y_dseg", "z_probseg"):
        np.save(f"in/{name}.npy", np.ones((4, 5, 6), np.uint8))
    told = run("apply", "in", *BOX, "--out-dir", "out").stderr
    assert "note: left out 3 masks and label maps (2 mask, 1 dseg: x_mask.npy, ...), " in told
    assert not {"x_mask.npy", "y_dseg.npy"} & set(os.listdir("out"))


# ---------------------------------------------------------------------------------------------------------------------
# The table


def on_a_terminal(arguments: list[str], columns: int) -> str:
    """Run a command with a terminal of so many columns as stderr; return what it shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "conv3d_cli", *arguments],
        stderr=slave,
        stdout=subprocess.DEVNULL,
        env={**environment, "TERM": "xterm"},
    )
    os.close(slave)
    text = b""
    try:
        while part := os.read(master, 65536):
            text += part
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(master)
    assert process.wait(LIMIT) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text.decode())


def test_the_table_breaks_no_names_on_a_terminal(four: Path) -> None:
    stems = [
        f"sub-01_task-rest_run-{run}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold"
        for run in range(1, 5)
    ]
    for name, stem in zip(NAMES, stems, strict=True):
        Path(f"in/{name}.npy").rename(f"in/{stem}.npy")
    shown = on_a_terminal(["apply", "in", *BOX, "--out-dir", "out"], 80).splitlines()
    rows = [line for line in shown if line.startswith("done")]
    assert len(rows) == 4
    assert all(any(f"{stem}.npy" in row for row in rows) for stem in stems)
    shown = on_a_terminal(["apply", "in", *BOX, "--out-dir", "out2"], 200).splitlines()
    assert all(any(f"{stem}.npy" in line for line in shown) for stem in stems)


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_batch_goes_on_with_resume(
    four: Path, run: Any, signal_sent: int, jobs: str
) -> None:
    """A real signal to a real process, while the last of its volumes is computed."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("these tests run under nohup, which conv3d respects")
    np.save("in/z.npy", np.ones((400, 400, 400), np.float32))
    asked = ["apply", "in", "-k", "expr:exp(-(d+2*h*w)**2):radius=9vox", "--out-dir", "out"]
    asked += ["--resume", "--jobs", jobs, "--algorithm", "direct"]
    command = [sys.executable, "-m", "conv3d_cli", *asked]
    with started(command, stderr=subprocess.PIPE) as process:
        wait_until(lambda: all(Path(f"out/{name}.npy").exists() for name in NAMES), process)
        wait_until(lambda: Path("out/.conv3d-resume.jsonl").read_text().count("done") == 4, process)
        process.send_signal(signal_sent)
        _, told = process.communicate(timeout=LIMIT)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[signal.Signals(signal_sent)]
    assert process.returncode == 128 + signal_sent
    assert told.decode().splitlines()[-1] == (
        f"{word}; 4 of 5 volumes are done and complete; the same command with --resume does the rest"
    )
    Path("in/z.npy").unlink()
    result = run(*asked, "--json")
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["skipped"] * 4
