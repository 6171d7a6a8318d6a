"""`conv3d apply` over many inputs, and what it tells programs about each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import LIMIT, started, wait_until

from conv3d_cli import OutputExistsError, Volume, cli, convolve_file, write_volume


def records(text: str) -> list[dict[str, Any]]:
    """Every line of stdout is a JSON object."""
    return [json.loads(line) for line in text.splitlines()]


def test_json_tells_of_one_failed_volume_too(run: Any, tmp_path: Path) -> None:
    result = run(
        "apply", tmp_path / "no.npy", "-k", "identity", "-o", tmp_path / "out.npy", "--json", code=3
    )
    (record,) = records(result.stdout)
    assert record["status"] == "failed"
    assert record["exit_code"] == 3
    assert record["error"] in result.stderr


def test_json_has_one_object_for_each_volume(run: Any, volume: Path, tmp_path: Path) -> None:
    inputs = [volume, tmp_path / "no.npy", tmp_path / "empty.npy"]
    inputs[2].touch()
    result = run("apply", *inputs, "-k", "identity", "--suffix", "_i", "--json", code=3)
    assert [r["status"] for r in records(result.stdout)] == ["done", "failed", "failed"]
    assert [r["input"] for r in records(result.stdout)] == [str(i) for i in inputs]


def test_dry_run_with_a_folder_that_is_made_later(run: Any, volume: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    run("apply", volume, "-k", "identity", "--out-dir", folder, "--dry-run")
    assert not (tmp_path / "a").exists()
    run("apply", volume, "-k", "identity", "--out-dir", folder)
    assert (folder / volume.name).exists()
    run(
        "apply",
        volume,
        "-k",
        "identity",
        "--out-dir",
        volume,
        "--suffix",
        "_x",
        "--dry-run",
        code=1,
    )
    run("apply", volume, "-k", "identity", "-o", tmp_path / "none" / "o.npy", "--dry-run", code=1)


@pytest.mark.parametrize("option", ["--suffix", "--prefix"])
def test_a_folder_in_suffix_or_prefix(run: Any, error_line: Any, volume: Path, option: str) -> None:
    result = run("apply", volume, "-k", "identity", option, f"..{os.sep}x", code=2)
    assert "--out-dir" in error_line(result.stderr)


def test_a_name_that_becomes_too_long(
    run: Any, error_line: Any, volume: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("l" * 251 + ".npy")
    shutil.copy(volume, long)
    run("apply", long, "-k", "identity", "--out-dir", tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / long.name), np.load(volume))
    result = run("apply", long, "-k", "identity", "--suffix", "_more", code=1)
    assert "too long" in error_line(result.stderr)
    result = run("apply", long, volume, "-k", "identity", "--suffix", "_more", code=1)
    assert "1 done, 1 failed" in result.stderr


def test_a_folder_and_one_output(run: Any, error_line: Any, tmp_path: Path) -> None:
    result = run("apply", tmp_path, "-k", "identity", "-o", tmp_path / "o.npy", code=2)
    assert "is a folder; pass --out-dir" in error_line(result.stderr)


def test_an_input_without_a_suffix(run: Any, error_line: Any, tmp_path: Path) -> None:
    result = run("apply", "/dev/stdin", "-k", "identity", "-o", tmp_path / "o.npy", code=3)
    assert "it is no file; `-` reads .npy from a pipe" in error_line(result.stderr)


def test_verbose_on_a_pipe(shell: Any, volume: Path, tmp_path: Path) -> None:
    """What was decided is said without opening the input twice."""
    result = shell(
        "apply", "-", "-k", "identity", "-o", tmp_path / "o.npy", "-v", input=volume.read_bytes()
    )
    assert result.returncode == 0, result.stderr
    assert b"memory" in result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), np.load(volume))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--padding", "99999999999"], 4),
        (["--padding", "0:0,0:1000000000,0:0"], 4),
        (["--padding", "full", "--dilation-rate", "9000000"], 4),
        (["--strides", "9" * 20], 2),
        (["--dilation-rate", "9" * 20, "--padding", "same"], 2),
    ],
)
def test_numbers_beyond_reason(
    run: Any,
    error_line: Any,
    volume: Path,
    kernel: Path,
    tmp_path: Path,
    options: list[str],
    code: int,
) -> None:
    result = run("apply", volume, "-k", kernel, "-o", tmp_path / "o.npy", *options, code=code)
    assert "must be at most 16777216 voxels" in error_line(result.stderr)


@pytest.mark.parametrize("name", ["p.npy", "p.nii.gz", "p.hdr", "p.tif"])
def test_a_named_pipe_is_not_waited_for(
    run: Any, error_line: Any, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    result = run("apply", tmp_path / name, "-k", "identity", "-o", tmp_path / "o.npy", code=3)
    assert "it is a pipe" in error_line(result.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["info"], ["apply", "-k", "identity", "--json", "-o", "o.npy"]]
)
def test_stdout_is_full(volume: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "conv3d_cli", *arguments, str(volume)]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, check=False, cwd=volume.parent
        )
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert b"cannot write standard output" in result.stderr


def test_help_fits_a_terminal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ([], ["apply"], ["info"], ["explain"], ["compare"], ["warmup"], ["kernel"]):
        assert max(map(len, run(*command, "--help").stdout.splitlines())) <= 80


def test_verbose_stands_above_the_bar(volume: Path, tmp_path: Path) -> None:
    """On a terminal what was decided starts on a line of its own."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "conv3d_cli",
        "apply",
        volume,
        "-k",
        "identity",
        "-o",
        tmp_path / "o.npy",
        "-v",
    ]
    assert subprocess.run(command, stderr=theirs, check=False).returncode == 0
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            text += chunk
    except OSError:
        pass  # how a pty says that its other end is closed
    os.close(ours)
    before, found, _ = text.partition(b"input      ")
    assert found
    assert before.endswith((b"\n", b"\r", b"K")) or not before, text  # K: the bar's line was erased


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """Twelve small scans, one of which is no scan."""
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    paths = [tmp_path / "in" / f"s{number:02}.nii.gz" for number in range(12)]
    for number, path in enumerate(paths):
        write_volume(
            str(path), Volume(rng.integers(0, 999, (9 + number, 14, 17)).astype(np.int16), "zyx")
        )
    paths[4].write_bytes(b"not a scan")
    return paths


def test_side_by_side_gives_the_same_bytes_and_account(
    run: Any, scans: list[Path], tmp_path: Path
) -> None:
    accounts = []
    for jobs in (1, 3):
        folder = tmp_path / f"out{jobs}"
        arguments = [
            "-k",
            "gaussian:sigma=1vox",
            "--out-dir",
            folder,
            "--jobs",
            jobs,
            "--json",
            "-v",
        ]
        result = run("apply", *scans, *arguments, code=3)
        assert "11 done, 1 failed" in result.stderr
        found = records(result.stdout)
        assert [r["input"] for r in found] == [str(path) for path in scans]
        assert [r["status"] for r in found] == ["done"] * 4 + ["failed"] + ["done"] * 7
        blocks = [
            line.split()[1] for line in result.stderr.splitlines() if line.startswith("input")
        ]
        assert blocks == [str(path) for path in scans if path != scans[4]]
        accounts.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert accounts[0] == accounts[1]
    assert len(accounts[0]) == 11


def test_what_does_not_fit_beside_another_runs_alone(
    run: Any, scans: list[Path], tmp_path: Path
) -> None:
    """One volume needs more than half of what the ceiling leaves: it waits for the others."""
    large = tmp_path / "in" / "large.nii.gz"
    write_volume(str(large), Volume(np.zeros((12, 1024, 1024), np.float32), "zyx"))
    refusal = run(
        "apply", large, "-k", "identity", "-o", tmp_path / "o.nii.gz", "--max-memory", "1M", code=6
    ).stderr
    # the least that one plane at a time needs
    ceiling = refusal.split("--max-memory ")[1].split()[0]
    paths = [*scans[:3], large, *scans[5:8]]
    arguments = ["--out-dir", tmp_path / "out", "--jobs", "4", "--max-memory", ceiling, "--json"]
    result = run("apply", *paths, "-k", "identity", *arguments)
    found = records(result.stdout)
    assert [r["status"] for r in found] == ["done"] * 7
    assert found[-1]["input"] == str(large)


def test_several_volumes_and_a_cluster(
    run: Any, error_line: Any, scans: list[Path], tmp_path: Path
) -> None:
    result = run(
        "apply",
        *scans[:2],
        "-k",
        "identity",
        "--out-dir",
        tmp_path / "o",
        "--jobs",
        "2",
        "--scheduler",
        "local:1",
        code=2,
    )
    assert "--jobs" in error_line(result.stderr)


def test_an_interrupt_ends_all_that_run_side_by_side(scans: list[Path], tmp_path: Path) -> None:
    """SIGINT in mid-run: nothing half-written, the code of an interrupt."""
    large = []
    for number in range(8):
        path = tmp_path / f"l{number}.npy"
        np.save(path, np.zeros((64, 256, 256), np.float32))
        large.append(path)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "conv3d_cli",
        "apply",
        *large,
        "-k",
        "gaussian:sigma=4vox",
        "--out-dir",
        out,
    ]
    command += ["--jobs", "2", "--algorithm", "direct"]
    with started(command, stderr=subprocess.PIPE) as process:
        wait_until(lambda: out.is_dir() and any(out.iterdir()), process)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, stderr
    assert b"interrupted" in stderr
    assert b"Traceback" not in stderr
    left = {path.name for path in out.iterdir()}
    assert left <= {path.name for path in large}
    for name in left:
        assert np.load(out / name).shape == (64, 256, 256)


def test_seconds_and_rates_of_the_stages(run: Any, volume: Path, tmp_path: Path) -> None:
    result = run("apply", volume, "-k", "box:size=3", "-o", tmp_path / "o.npy", "--json", "-v")
    (record,) = records(result.stdout)
    size_in, size_out = np.load(volume).nbytes, np.load(tmp_path / "o.npy").nbytes
    for stage, size in (("read", size_in), ("compute", size_out), ("write", size_out)):
        seconds = record[f"{stage}_seconds"]
        assert 0 <= seconds <= record["seconds"] + 1e-3
        # both are rounded: on a busy machine a rate may be 0.0
        least, most = (size / 1e6 / max(seconds + rounding, 1e-9) for rounding in (5e-5, -5e-5))
        assert least - 0.1 <= record[f"{stage}_mb_per_s"] <= most + 0.1
    assert result.stderr.count("MB/s") == 3


# ---------------------------------------------------------------------------------------------------------------------
# Interrupts


def interrupted_at(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: type[BaseException],
    *values: Any,
    where: str = "pipeline.run.run_job",
    after: Sequence[Path] = (),
) -> None:
    """The job of this input is interrupted before its first voxel, or where another function is called with it.

    after : paths       outputs that are waited for before the first voxel
    """
    from importlib import import_module

    module, _, function = where.rpartition(".")
    home = import_module(f"conv3d_cli.{module}")
    original = getattr(home, function)

    def call(job: Any, *others: Any) -> Any:
        if Path(job.source).name == name:
            if function == "run_job":
                wait_until(lambda: all(path.exists() for path in after))
                time.sleep(0.5)  # what is written is told as well
            raise error(*values)
        return original(job, *others)

    monkeypatch.setattr(home, function, call)


@pytest.fixture
def five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in "abcde":
        np.save(tmp_path / f"{name}.npy", np.ones((4, 5, 6), np.float32))
    return tmp_path


STOPS = [
    ((KeyboardInterrupt,), "interrupted", 130),
    ((cli.Terminated, signal.SIGTERM), "terminated", 143),
]


@pytest.mark.parametrize(("stop", "word", "code"), STOPS)
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ([], "; the same command with --skip-existing does the rest"),
        (["--resume"], "; the same command with --resume does the rest"),
        (["--overwrite"], ""),  # there is no telling which of the old outputs were replaced
    ],
)
def test_an_interrupted_batch_tells_what_stands(
    run: Any, five: Path, monkeypatch: pytest.MonkeyPatch, stop: Any, word: str, code: int, jobs: int,
    options: list[str], cure: str,
) -> None:  # fmt: skip
    inputs = [f"{name}.npy" for name in "abcde"]
    command = ["apply", *inputs, "-k", "box:size=3", "--out-dir", "out", "--json", *options]
    with monkeypatch.context() as patch:
        interrupted_at(
            patch, "c.npy", *stop, after=[five / "out" / "a.npy", five / "out" / "b.npy"]
        )
        result = run(*command, "--jobs", jobs, code=code)
    done = sorted(path.name for path in (five / "out").glob("*.npy"))
    assert done[:2] == ["a.npy", "b.npy"]
    assert result.stderr == f"{word}; {len(done)} of 5 volumes are done and complete{cure}\n"
    assert sorted(os.path.basename(record["output"]) for record in records(result.stdout)) == done
    # the cure cures
    again = run(*command, *(["--skip-existing"] if not options else []))
    assert [record["status"] for record in records(again.stdout)].count("done") == 5 - (
        len(done) if cure else 0
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "o.npy is complete"), (["--verify", "5"], "o.npy is written but not verified")],
)
def test_an_interrupt_while_the_output_takes_its_place(
    five: Path, shell: Any, options: list[str], words: str
) -> None:
    """Ctrl-C waits for the rename: what stands is told, and --resume knows it."""
    script = """
import os, signal, sys
from conv3d_cli.__main__ import main
replace = os.replace
def interrupted(*paths):
    replace(*paths)
    if str(paths[1]).endswith("o.npy"):
        os.kill(os.getpid(), signal.SIGINT)
os.replace = interrupted
sys.argv = ["conv3d", *sys.argv[1:]]
main()
"""
    command = ["apply", "a.npy", "-k", "box:size=3", "-o", "o.npy", "--resume", *options]
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        cwd=five,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (130, f"interrupted; {words}")
    np.testing.assert_allclose(np.load(five / "o.npy"), 1, rtol=1e-6)
    assert not [path for path in five.iterdir() if path.name.endswith(".tmp.npy")]
    again = shell(*command, "--json", cwd=five)
    assert (again.returncode, again.stderr) == (0, b"")


def test_what_an_interrupt_left_is_told_once(
    run: Any, five: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: str) -> str:
        text: str = run("apply", *arguments, "-k", "box:size=3", code=130).stderr
        return text.strip()

    with monkeypatch.context() as patch:
        interrupted_at(patch, "b.npy", KeyboardInterrupt)
        assert told("a.npy", "b.npy", "--suffix", "_1", "--jobs", "1") == (
            "interrupted; 1 of 2 volumes is done and complete; the same command with --skip-existing does the rest"
        )
        assert (
            told("b.npy", "a.npy", "--suffix", "_2", "--jobs", "1")
            == "interrupted; no output was left behind"
        )
        assert told("b.npy", "-o", "o.npy") == "interrupted; no output was left behind"
        assert told("b.npy", "a.npy", "--suffix", "_1", "--skip-existing", "--jobs", "1").endswith(
            "left behind"
        )
        assert told(
            "a.npy", "b.npy", "--suffix", "_1", "--skip-existing", "--jobs", "1"
        ).startswith("interrupted; 1 of 2")
    interrupted_at(monkeypatch, "b.npy", KeyboardInterrupt, where="analysis.verify.verify_output")
    assert told("a.npy", "b.npy", "--suffix", "_3", "--verify", "9", "--jobs", "1") == (
        "interrupted; b_3.npy is written but not verified; 1 of 2 volumes is done and complete"
    )
    assert (
        told("b.npy", "-o", "o.npy", "--verify", "9")
        == "interrupted; o.npy is written but not verified"
    )


class TestFilesThatAJobReads:
    """No output replaces a kernel or a mask: another job may not have read it yet."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        for number, name in enumerate(("a", "b", "c")):
            np.save(tmp_path / f"{name}.npy", np.full((4, 4, 4), number + 1.0))
        np.save(tmp_path / "kernel.npy", np.ones((3, 3, 3)))
        np.save(tmp_path / "mask.npy", np.ones((4, 4, 4), np.uint8))
        return tmp_path

    @pytest.mark.parametrize(
        ("rows", "replaced"),
        [
            ("a.npy,x.npy,kernel.npy,\nb.npy,kernel.npy,box:size=3,\n", "kernel.npy, a kernel"),
            ("b.npy,kernel.npy,box:size=3,\na.npy,x.npy,kernel.npy,\n", "kernel.npy, a kernel"),
            ("a.npy,x.npy,box:size=3,mask.npy\nb.npy,mask.npy,box:size=3,\n", "mask.npy, a mask"),
            ("a.npy,./mask.npy,box:size=3,mask.npy\n", "mask.npy, a mask"),
        ],
    )
    def test_of_a_manifest(
        self, files: Path, rows: str, replaced: str, run: Any, error_line: Any
    ) -> None:
        (files / "m.csv").write_text(f"input,output,kernel,mask\n{rows}")
        before = {path: path.read_bytes() for path in files.iterdir()}
        result = run("apply", "--manifest", files / "m.csv", "--overwrite", code=5)
        assert replaced in error_line(result.stderr)
        assert before == {path: path.read_bytes() for path in files.iterdir()}

    @pytest.mark.parametrize("option", ["--skip-existing", "--resume"])
    def test_a_row_may_have_made_the_mask_of_another(
        self, files: Path, option: str, run: Any
    ) -> None:
        (files / "m.csv").write_text("input,output,mask\na.npy,made.npy,\nb.npy,x.npy,made.npy\n")
        asked = ("apply", "--manifest", files / "m.csv", "-k", "box:size=3", "--jobs", 1, option)
        run(*asked)
        before = {path: path.read_bytes() for path in files.glob("*.npy")}
        assert before.keys() >= {files / "made.npy", files / "x.npy"}
        run(*asked)
        assert before == {path: path.read_bytes() for path in files.glob("*.npy")}

    @pytest.mark.parametrize("option", ["-o", "--depfile"])
    @pytest.mark.parametrize("name", ["kernel.npy", "mask.npy"])
    def test_of_one_volume(self, files: Path, option: str, name: str, run: Any) -> None:
        before = (files / name).read_bytes()
        outputs = {"-o": files / "o.npy", option: files / name}
        run("apply", files / "a.npy", "-k", files / "kernel.npy", "--mask", files / "mask.npy",
            *(word for pair in outputs.items() for word in pair), "--overwrite", code=5)  # fmt: skip
        assert (files / name).read_bytes() == before
        assert not (files / "o.npy").exists()

    def test_of_python(self, files: Path) -> None:
        kernel = files / "kernel.npy"
        with pytest.raises(OutputExistsError, match="a kernel that is read"):
            convolve_file(files / "a.npy", kernel, kernel=kernel, overwrite=True)

    def test_a_volume_may_still_replace_itself(self, files: Path, run: Any) -> None:
        run("apply", files / "a.npy", "-k", files / "kernel.npy", "--mask", files / "a.npy",
            "--overwrite", "-o", files / "a.npy")  # fmt: skip
