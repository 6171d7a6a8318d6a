"""Standard input, output and error that are closed, full or read by nobody.

The work decides the exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import LINES
from processes import LIMIT

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")

BLUR = ["-k", "box:size=3"]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
# what the shell does before the command starts
STDERR = {"closed": "2>&-", "full": "2>/dev/full", "gone": "2>gone", "all closed": "<&- >&- 2>&-"}
STDOUT = {"closed": ">&-", "full": ">/dev/full", "gone": ">gone"}


def ways(names: Iterable[str], commands: list[Any], often: Container[int]) -> list[Any]:
    """(way, *command) for all pairs; slow but for the last way, and for the codes in `often`."""
    *rare, last = names
    return [
        pytest.param(
            way,
            code,
            arguments,
            id=f"{way} {code} {' '.join(arguments)}",
            marks=[pytest.mark.slow] if way in rare and code not in often else [],
        )
        for code, arguments in commands
        for way in (*rare, last)
    ]


@pytest.fixture
def start(tmp_path: Path) -> Run:
    """Call `conv3d ARGS...`, or another program, with redirections in the shell's words.

    To `gone` means: to a pipe whose reader has ended.
    """

    def call(
        redirections: str, *arguments: object, program: tuple[str, ...] = ("-m", "conv3d_cli")
    ) -> object:
        streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        reader, writer = os.pipe()
        os.close(reader)
        if redirections.endswith(">gone"):
            streams["stderr" if redirections.startswith("2") else "stdout"] = writer
            redirections = ""
        command = [
            "sh",
            "-c",
            f'exec "$@" {redirections}',
            "sh",
            sys.executable,
            *program,
            *map(str, arguments),
        ]
        try:
            return subprocess.run(  # type: ignore[call-overload]
                command, check=False, cwd=tmp_path, timeout=LIMIT, **streams
            )
        finally:
            os.close(writer)

    return call  # type: ignore[return-value]


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Volumes with values below 0, which uint8 does not hold: a note."""
    rng = np.random.default_rng(3)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", (100 * rng.standard_normal((6, 7, 8))).astype(np.float32))
    np.save(tmp_path / "other.npy", np.zeros((2, 3, 4), np.float32))
    return tmp_path


# --------------------------------------------------------------------------------------------------
# Messages


@pytest.mark.parametrize("jobs", [None, 2])
def test_no_message_is_worth_a_volume(start: Run, volumes: Path, jobs: int | None) -> None:
    inputs, outputs = (
        (["a.npy"], ["-o", "out/a.npy"])
        if jobs is None
        else (["a.npy", "b.npy"], ["--out-dir", "out"])
    )
    command = [
        "apply",
        *inputs,
        *BLUR,
        "--dtype",
        "uint8",
        "-v",
        *outputs,
        *([] if jobs is None else ["--jobs", jobs]),
    ]
    (volumes / "out").mkdir()
    told = start("", *command, "--overwrite")
    assert b"clipped" in told.stderr
    expected = {name: (volumes / "out" / name).read_bytes() for name in inputs}
    for way, redirection in STDERR.items():
        for name in inputs:
            (volumes / "out" / name).unlink()
        assert start(redirection, *command).returncode == 0, way
        made = {path.name: path.read_bytes() for path in (volumes / "out").iterdir()}
        assert made == expected, way


@pytest.mark.parametrize(
    ("way", "code", "arguments"),
    ways(
        ("closed", "full"),
        [
            (1, ["apply", "a.npy", *BLUR, "-o", "nowhere/o.npy"]),
            (2, ["apply", "a.npy", "-k", "bxo:size=3", "-o", "o.npy"]),
            (2, ["apply", "--no-such-option"]),
            (3, ["apply", "none.npy", *BLUR, "-o", "o.npy"]),
            (3, ["apply", "a.npy", "none.npy", *BLUR, "--out-dir", "out"]),
            (3, ["info", "none.npy"]),
            (4, ["apply", "a.npy", *BLUR, "--mask", "other.npy", "-o", "o.npy"]),
            (5, ["apply", "a.npy", *BLUR, "-o", "b.npy"]),
            (6, ["apply", "a.npy", *BLUR, "--max-memory", "10M", "-o", "o.npy"]),
            (7, ["compare", "-q", "a.npy", "b.npy"]),
            (0, ["kernel", "make", "gaussian:sigma=1vox", "-o", "o.npy"]),
        ],
        often=(0, 1, 7),
    ),
)
def test_an_error_keeps_its_code(
    start: Run, volumes: Path, way: str, code: int, arguments: list[str]
) -> None:
    assert start(STDERR[way], *arguments).returncode == code


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["view"], ["compare", "a.npy"], ["explain", *BLUR], ["apply", *BLUR, "-o", "-"]],
)
def test_results_come_without_stderr(start: Run, volumes: Path, arguments: list[str]) -> None:
    whole = start("", *arguments, "a.npy")
    assert whole.stdout
    for way in ("closed", "full"):
        alone = start(STDERR[way], *arguments, "a.npy")
        assert (alone.returncode, alone.stdout) == (0, whole.stdout), way


@pytest.mark.parametrize("way", ["2>&-", "2>/dev/full", "2>/dev/null"])
def test_what_python_says_by_itself(start: Run, way: str) -> None:
    """Warnings, log lines, and what is left when the process ends."""
    program = (
        "import logging, sys, warnings\n"
        "from conv3d_cli.system.standard_streams import standard_streams\n"
        "with standard_streams():\n"
        "    warnings.warn('old')\n"
        "    logging.getLogger('x').error('lost')\n"
        "    print('half a line', file=sys.stderr, end='')\n"
        "    sys.exit(5)\n"
    )
    assert start(way, program=("-W", "always", "-c", program)).returncode == 5


def test_files_get_no_descriptor_of_a_standard_stream(start: Run) -> None:
    """Processes that are started from here find all three open, too."""
    program = (
        "import os, subprocess, sys\n"
        "from conv3d_cli.system.standard_streams import standard_streams\n"
        "with standard_streams():\n"
        "    assert None not in (sys.stdin, sys.stdout, sys.stderr)\n"
        "    number = os.open('/dev/null', os.O_RDONLY)\n"
        "    program = 'import os; [os.fstat(n) for n in range(3)]'\n"
        "    child = subprocess.run([sys.executable, '-c', program])\n"
        "    os._exit(10 * number + child.returncode)\n"
    )
    for closed in ("", "2>&-", ">&-", "<&-", "<&- 2>&-", "<&- >&- 2>&-"):
        number, child = divmod(start(closed, program=("-c", program)).returncode, 10)
        assert number >= 3, closed
        assert child == 0, closed


def test_a_slow_reader_of_a_pipe_that_does_not_wait_gets_everything() -> None:
    program = (
        "import os, sys\n"
        "from conv3d_cli.system.standard_streams import standard_streams\n"
        "os.set_blocking(2, False)\n"
        "with standard_streams():\n"
        "    for number in range(40000): print(f'{number:9}', file=sys.stderr)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it waits for us
        assert process.stderr is not None
        assert [int(line) for line in process.stderr] == list(range(40000))
    assert process.returncode == 0


# --------------------------------------------------------------------------------------------------
# Results


# What prints a result: code and arguments, by command; `None` are options without one.
RESULTS: dict[str | None, list[tuple[int, list[object]]]] = {
    None: [(0, ["--help"]), (0, ["--version"]), (0, ["--cite"])],
    "apply": [
        (0, ["apply", "a.npy", *BLUR, "-o", "o.npy", "--json"]),
        (0, ["apply", "a.npy", *BLUR, "-o", "o.npy", "--dry-run", "--json"]),
        (0, ["apply", "--help"]),
        (0, ["apply", "--help-json"]),
    ],
    "bench": [(0, ["bench", "--help"])],
    "compare": [(0, ["compare", "a.npy", "a.npy"]), (7, ["compare", "a.npy", "b.npy"])],
    "completion": [(0, ["completion", "bash"])],
    "convert": [(0, ["convert", "a.npy", "o.nrrd", "--json"])],
    "describe": [(0, ["describe", "json"]), (0, ["describe", "man", "apply"])],
    "explain": [(0, ["explain", "a.npy", *BLUR]), (0, ["explain", "a.npy", *BLUR, "--json"])],
    "help": [(0, ["help"]), (0, ["help", "masks"]), (0, ["help", "--search", "NaN"])],
    "info": [(0, ["info", "a.npy"]), (3, ["info", "none.npy", "a.npy"])],
    "kernel": [(0, ["kernel", "show", "box:size=3"]), (0, ["kernel", "list"])],
    "presets": [(0, ["presets"])],
    "rerun": [(0, ["rerun", "r.json"]), (0, ["rerun", "r.json", "--json"])],
    "view": [(0, ["view", "a.npy"]), (0, ["view", "a.npy", "a.npy"])],
    "warmup": [(0, ["warmup", "--help"])],
    **{name: [(0, [name, "--help"])] for name in LINES},
}


def test_every_command_is_tried() -> None:
    from conv3d_cli.cli import COMMANDS

    assert {name for name in RESULTS if name} == set(COMMANDS)


@pytest.mark.parametrize("way", STDOUT)
@pytest.mark.parametrize("command", RESULTS)
def test_a_result_that_nobody_reads_changes_no_code(
    start: Run, volumes: Path, way: str, command: str | None
) -> None:
    """A closed stdout and a reader that has gone are as good as /dev/null; a full disk is not."""
    if command == "rerun":
        assert start("", "apply", "a.npy", *BLUR, "-o", "r.npy", "--sidecar").returncode == 0
    for code, arguments in RESULTS[command]:
        (volumes / "o.npy").unlink(missing_ok=True)
        done = start(STDOUT[way], *arguments)
        assert done.returncode == (code or 1 if way == "full" else code), done.stderr
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
        lines = [line for line in done.stderr.decode().splitlines() if "standard output" in line]
        lost = "Error: cannot write standard output: no space left"
        assert [line[: len(lost)] for line in lines] == [lost] * (way == "full")
        assert (volumes / "o.npy").exists() == (arguments[-1] == "--json" and "o.npy" in arguments and "--dry-run" not in arguments)  # fmt: skip


@pytest.mark.parametrize("command", RESULTS)
def test_all_three_streams_are_closed(start: Run, volumes: Path, command: str | None) -> None:
    if command == "rerun":
        assert start("", "apply", "a.npy", *BLUR, "-o", "r.npy", "--sidecar").returncode == 0
    for code, arguments in RESULTS[command]:
        (volumes / "o.npy").unlink(missing_ok=True)
        assert start("<&- >&- 2>&-", *arguments).returncode == code


@pytest.mark.parametrize("way", STDOUT)
@pytest.mark.parametrize("more", [[], ["--coverage-out", "c.npy", "--boundary", "renormalize"]])
def test_a_volume_that_nobody_reads_is_lost(
    start: Run, volumes: Path, way: str, more: list[str]
) -> None:
    """On stdout it is an output like a file."""
    done = start(STDOUT[way], "apply", "a.npy", *BLUR, "-o", "-", "-q", *more)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert done.stderr.decode().startswith("Error: cannot write standard output: ")
    assert not (volumes / "c.npy").exists()


@pytest.mark.parametrize("way", STDOUT)
@pytest.mark.parametrize("more", [[], ["none.npy"]])
def test_a_batch_goes_on_without_a_reader(
    start: Run, volumes: Path, way: str, more: list[str]
) -> None:
    done = start(
        STDOUT[way],
        "apply",
        "a.npy",
        *more,
        "b.npy",
        *BLUR,
        "--out-dir",
        "out",
        "--json",
        "--jobs",
        1,
        "--depfile",
        "d.d",
    )
    assert done.returncode == (3 if more else 1 if way == "full" else 0), done.stderr
    assert sorted(path.name for path in (volumes / "out").iterdir()) == ["a.npy", "b.npy"]
    assert (volumes / "d.d").exists() == (not more)
    assert b"2 done" in done.stderr


def test_records_end_at_the_first_that_is_lost(start: Run, volumes: Path) -> None:
    """A full disk that has room again later would hold records with a hole."""
    program = (
        "import os, sys\n"
        "from conv3d_cli.system.standard_streams import lost_output, standard_streams\n"
        "with standard_streams():\n"
        "    print('first', flush=True)\n"
        "    kept = os.dup(1); os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "    print('second', flush=True)\n"
        "    os.dup2(kept, 1)\n"
        "    print('third', flush=True)\n"
        "    sys.exit(9 if lost_output().errno == 28 else 0)\n"
    )
    done = start("", program=("-c", program))
    assert (done.returncode, done.stdout, done.stderr) == (9, b"first\n", b"")


def test_a_rerun_that_differs_says_so_by_its_code(start: Run, volumes: Path) -> None:
    assert start("", "apply", "a.npy", *BLUR, "-o", "o.npy", "--sidecar").returncode == 0
    sidecar = volumes / "o.json"
    record = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(record).replace("box:size=3", "box:size=5"))
    expected = start("", "rerun", "o.json", "--json").returncode
    assert expected == 7
    assert start(">/dev/full", "rerun", "o.json", "--json").returncode == 7


# --------------------------------------------------------------------------------------------------
# Input


@pytest.mark.parametrize(
    ("redirection", "cause"), [("<&-", "it is closed"), ("</dev/null", "it is empty")]
)
def test_nothing_to_read(start: Run, tmp_path: Path, redirection: str, cause: str) -> None:
    done = start(redirection, "apply", "-", *BLUR, "-o", "o.npy")
    assert done.returncode == 3
    assert done.stderr.decode().count("\n") == 1
    assert "Error: cannot read standard input: " in done.stderr.decode()
    assert cause in done.stderr.decode()
