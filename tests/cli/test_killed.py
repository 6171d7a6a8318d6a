"""A run that is killed at every step of its writing in turn: each target is old or whole.

A shim counts the calls that change the disk, and kills the process at the nth: half of the data of
a write are written then, and any other call is not made. The table `CASES` says what is tried.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.formats import FORMATS
from conv3d_cli.system import leftovers

pytestmark = pytest.mark.skipif(leftovers.fcntl is None, reason="locks tell what is left over")

# Runs in a process of its own: it is killed in a fork, once for each step, so that the imports and
# the machine code are loaded once.
DRIVER = """
import io, json, os, shutil, signal, sys, time
from pathlib import Path
from conv3d_cli.cli import main
from conv3d_cli.system import atomic, leftovers

case = json.loads(sys.argv[1])
work = Path(case["folder"])
leftovers.LISTING_SECONDS = 0
if not case["exchange"]:
    atomic.exchange = leftovers.exchange = lambda *_: False
steps, last = 0, 0


occurrences = {}


def step(name, half=None):
    global steps
    # a store has many files: of each kind of step, the first are tried, and then some
    occurrences[name] = occurrences.get(name, 0) + 1
    if occurrences[name] > 7 and occurrences[name] % 9:
        return
    steps += 1
    if steps == last:
        os.write(told, name.encode())
        if half is not None:
            half()
        os.kill(os.getpid(), signal.SIGKILL)


def counted(module, name):
    usual = getattr(module, name, None)
    if usual is not None:
        def call(*arguments, **options):
            step(name)
            return usual(*arguments, **options)
        setattr(module, name, call)


def counted_write(name):
    usual = getattr(os, name)
    def call(descriptor, data, *more):
        step(name, lambda: usual(descriptor, bytes(data)[: len(data) // 2], *more))
        return usual(descriptor, data, *more)
    setattr(os, name, call)


class Raw(io.FileIO):
    def write(self, data):
        step("write", lambda: io.FileIO.write(self, bytes(data)[: len(data) // 2]))
        return io.FileIO.write(self, data)


def opened(path, mode, opener=None, **options):
    if "b" not in mode or "r" in mode:
        return open(path, mode, opener=opener, **options)
    return io.BufferedRandom(Raw(path, "x+", opener=opener))


def shim():
    for name in ("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir", "fsync", "chmod"):
        counted(os, name)
    counted(atomic, "exchange")
    counted_write("pwrite")
    atomic.open = opened


def run(arguments, with_shim=False):
    os.chdir(work)
    try:
        if with_shim:
            shim()
        main(arguments)
    except SystemExit as end:
        return end.code or 0
    return 0


def in_fork(arguments, with_shim=False):
    process = os.fork()
    if process == 0:
        code = 99
        try:
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(case["folder"] + ".err", "w")
            code = run(arguments, with_shim)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def fresh():
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(case["before"], work)


def contents():
    found = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if path.is_file():
            found[name] = path.read_bytes().hex()
    return found


fresh()
assert run(case["command"]) == 0  # here, so that the forks need not import
fresh()
rows = []
while True:
    last += 1
    reading, told = os.pipe()
    ended = in_fork(case["command"], with_shim=True)
    os.close(told)
    name = os.read(reading, 99).decode()
    os.close(reading)
    row = {"step": name, "code": ended, "killed": contents()}
    if ended != -signal.SIGKILL:
        print(json.dumps([rows, row]))
        break
    row["again"] = in_fork(case["again"])
    row["error"] = open(case["folder"] + ".err").read()
    row["after"] = contents()
    rows.append(row)
    fresh()
"""

FIRST_SUFFIXES = [one.suffixes[0] for one in FORMATS if one.create is not None and one.suffixes]
OTHERS = [".hdr", ".nhdr", ".mhd", ".nii", ".tif", ".mih"]  # pairs, and voxels in one piece

COVERAGE = ["--nan", "ignore", "--coverage-out"]
COMPANIONS = [
    ["--sidecar"],
    [*COVERAGE, "c.npy"],
    [*COVERAGE, "d/c.npy", "--sidecar"],  # in two folders
    ["--report", "r.html"],
    ["--depfile", "o.d"],
    ["--depfile", "d/o.d", "--sidecar"],
    ["--resume"],
    ["--sidecar", "--resume"],
]
# output, further options, whether older files are replaced
CASES = [
    *((f"o{suffix}", [], True) for suffix in dict.fromkeys([*FIRST_SUFFIXES, *OTHERS])),
    *((f"o{suffix}", [], False) for suffix in (".npy", ".hdr", ".ome.zarr")),
    *(
        (f"o{suffix}", ["--depfile", "o.d"], old)
        for suffix in (".hdr", ".ome.zarr")
        for old in (False, True)
    ),
    ("o.hdr", ["--sidecar"], True),
    *(("o.npy", options, old) for options in COMPANIONS for old in (False, True)),
]


HEADERS = {"o.hdr", "o.nhdr", "o.mhd", "o.mih"}


def is_hidden(name: str) -> bool:
    return name.startswith(".") and name != ".conv3d-resume.jsonl"


# tried in every run of the tests; the others with `make test-all`
FIRST = {
    "o.nii.gz old",
    "o.hdr old",
    "o.ome.zarr old",
    "o.npy --sidecar old",
    "o.npy --sidecar new",
    "o.npy --nan ignore --coverage-out c.npy new",
    "o.npy --depfile o.d new",
    "o.npy --resume old",
}


def cases() -> Iterable[Any]:
    """The rows of `CASES`; stores also as on systems that cannot exchange two names."""
    for output, options, old in CASES:
        name = " ".join([output, *options, "old" if old else "new"])
        marks = [] if name in FIRST else [pytest.mark.slow]
        yield pytest.param(output, options, old, True, id=name, marks=marks)
        if "zarr" in output:
            yield pytest.param(
                output, options, old, False, id=f"{name}, no exchange", marks=pytest.mark.slow
            )


@pytest.mark.parametrize(("output", "options", "old", "exchange"), list(cases()))
def test_killed_at_every_step(
    output: str, options: list[str], old: bool, exchange: bool, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    (before / "d").mkdir(parents=True)
    np.save(before / "x.npy", np.arange(512, dtype=np.float32).reshape(8, 8, 8))
    np.save(before / "y.npy", np.arange(384, dtype=np.int16).reshape(6, 8, 8))
    conv3d = [sys.executable, "-m", "conv3d_cli"]
    command = ["apply", "x.npy", "-k", "box:size=3", "-o", output, "-q", *options]
    if old:
        made = [word for word in command if word != "--resume"]
        made[1] = "y.npy"
        subprocess.run([*conv3d, *made], cwd=before, check=True)
        command.append("--overwrite")
    case: dict[str, Any] = {
        "folder": str(tmp_path / "work"),
        "before": str(before),
        "command": command,
        "again": command,
        "exchange": exchange,
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(case)],
        capture_output=True,
        text=True,
        check=False,
        cwd=before,
    )
    assert done.returncode == 0, done.stderr
    rows, complete = json.loads(done.stdout)
    assert complete["code"] == 0
    whole = complete["killed"]
    assert not [name for name in whole if is_hidden(name)]
    kept = {
        path.relative_to(before).as_posix(): path.read_bytes().hex()
        for path in before.rglob("*")
        if path.is_file()
    }
    log = ".conv3d-resume.jsonl"
    changing = {name for name in whole if whole[name] != kept.get(name)} - {log}
    volume = output.split("/")[0]
    together = [name for name in changing if name != "r.html"]  # a page is written at the end
    assert any(name.split("/")[0] == volume for name in changing)
    assert {"fsync", "replace"} & {row["step"] for row in rows}

    def is_state(found: dict[str, str], state: dict[str, str], names: Iterable[str]) -> bool:
        return all(found.get(name) == state.get(name) for name in names)

    for number, row in enumerate(rows, 1):
        where, killed, after = (number, row["step"]), row["killed"], row["after"]
        for name in together:  # whole files, or none
            assert killed.get(name) in (whole[name], kept.get(name), None), (where, name)
        parts = [name for name in together if name.split("/")[0].startswith(volume[:2])]
        if any(name in killed for name in HEADERS):  # a header tells of voxels that are its own
            pair = [name for name in parts if name not in ("o.json", "o.d")]
            assert is_state(killed, whole, pair) or is_state(killed, kept, pair), (
                where,
                sorted(killed),
                pair,
            )
        if "zarr" in output and exchange:
            store = [name for name in parts if name.startswith(volume)]
            assert is_state(killed, whole, store) or is_state(killed, kept, store), where
        # the next run: the same command makes all, unless all that belongs together was there
        if row["again"] == 5:
            assert is_state(killed, whole, together), (where, row["error"])
            assert not old, where
            assert "--resume" not in options, where
        else:
            assert row["again"] == 0, (where, row["error"])
            same = changing - {"r.html"}  # it has times in it
            assert is_state(after, whole, same), (
                where,
                [n for n in same if after.get(n) != whole[n]],
            )
        assert not [name for name in after if is_hidden(name)], where
