"""Commands with nothing but what Windows has: same bytes, same exit codes, nothing left over.

`tests/windows/sitecustomize.py` takes away the rest, and says what it cannot show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.formats import FORMATS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")

SHIM = Path(__file__).parent.parent / "windows"
# runs commands, each a list of words, in one process: their exit codes, and what went wrong
PROGRAM = """
import contextlib, io, json, sys
from conv3d_cli.system.standard_streams import standard_streams
from conv3d_cli.cli import main
found = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main(words, prog_name="conv3d")
            code = 0
        except SystemExit as end:
            code = end.code or 0
    found.append([code, said.getvalue()])
json.dump(found, sys.stdout)
"""
FIRST = [one.suffixes[0] for one in FORMATS if one.create and one.suffixes[0] != "-"]
EVERY = [suffix for one in FORMATS if one.create for suffix in one.suffixes if suffix != "-"]
APPLY = ["apply", "-k", "box:size=3", "-q"]
Commands = Callable[..., list[tuple[int, str]]]


@pytest.fixture
def windows(tmp_path: Path) -> Commands:
    """Run commands there; each must end with 0, unless `code` is given for all."""

    def run(*commands: list[str], code: int = 0) -> list[tuple[int, str]]:
        return run_in(tmp_path, commands, {"PYTHONPATH": str(SHIM)}, code)

    return run


@pytest.fixture
def unix(tmp_path: Path) -> Commands:
    """As `windows`, with all that this system has."""
    return lambda *commands, code=0: run_in(tmp_path, commands, {}, code)


def run_in(folder: Path, commands: Any, environment: dict[str, str], code: int) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for (ended, said), words in zip(found, commands, strict=True):
        assert ended == code, (words, said)
    return found


@pytest.fixture
def x(tmp_path: Path) -> Path:
    volume = np.random.default_rng(7).random((9, 20, 24), np.float32)
    np.save(tmp_path / "x.npy", volume)
    return tmp_path / "x.npy"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in a folder and below, by name, and by members for zip files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_windows_lacks_is_taken_away(tmp_path: Path) -> None:
    """A module of the package sees it, and the library `pathlib` as well where it must."""
    program = """
import os, pathlib, conv3d_cli.system.portable as portable, conv3d_cli.system.leftovers as leftovers
assert portable.POSIX is False and leftovers.fcntl is None
assert not hasattr(portable.os, "pwrite") and hasattr(os, "pwrite")
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
pathlib.Path("a").write_text("a"); pathlib.Path("b").write_text("b")
assert refused(os.open, ".", os.O_RDONLY)
with open("a") as file:
    assert refused(os.replace, "b", "a") and refused(os.unlink, "a") and refused(os.fsync, file)
    assert refused(pathlib.Path("a").rename, "c")
assert refused(os.rename, "a", "b") and refused(open, "a:b", "w")
os.replace("b", "a")
"""
    environment = {**os.environ, "PYTHONPATH": str(SHIM)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("suffixes", [FIRST, pytest.param(EVERY, marks=pytest.mark.slow)])
def test_every_format_is_written_replaced_and_read(
    suffixes: list[str], windows: Commands, unix: Commands, x: Path, tmp_path: Path
) -> None:
    (tmp_path / "u").mkdir()
    (tmp_path / "w").mkdir()

    def commands(folder: str) -> list[list[str]]:
        found = []
        for suffix in suffixes:
            name = f"{folder}/o{suffix.replace('.', '_')}{suffix}"
            found += [
                [*APPLY, "x.npy", "-o", name],
                [*APPLY, "x.npy", "-o", name, "--overwrite"],
                [*APPLY, name, "-o", f"{name}.npy"],
            ]
        return found

    windows(*commands("w"))
    unix(*commands("u"))
    mine, theirs = contents(tmp_path / "w"), contents(tmp_path / "u")
    assert set(mine) == set(theirs)
    assert len(mine) >= 2 * len(suffixes)
    # a zip file tells when its members were made
    assert [n for n in mine if mine[n] != theirs[n] and not n.endswith((".zip", ".ozx"))] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u", "w", "x.npy"]


def test_an_output_takes_the_place_of_its_input(windows: Commands, x: Path, tmp_path: Path) -> None:
    """The input is open, and mapped, until just before; nothing open can be replaced."""
    suffixes = (".npy", ".nii", ".nii.gz", ".tif", ".mgh", ".mrc", ".nrrd")
    windows(
        *(
            command
            for suffix in suffixes
            for command in (
                ["apply", "x.npy", "-k", "identity", "-o", f"a{suffix}", "-q"],
                [*APPLY, f"a{suffix}", "-o", f"expected{suffix}"],
                [*APPLY, f"a{suffix}", "-o", f"a{suffix}", "--overwrite"],
            )
        )
    )
    for suffix in suffixes:
        expected = (tmp_path / f"expected{suffix}").read_bytes()
        assert (tmp_path / f"a{suffix}").read_bytes() == expected


def test_all_companions_and_a_batch(
    windows: Commands, unix: Commands, x: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.npy", "b.npy"):
        (tmp_path / "in" / name).write_bytes(x.read_bytes())

    def commands(folder: str) -> list[list[str]]:
        resumed = [*APPLY, "in", "--out-dir", f"{folder}/r", "--resume"]
        beside = ["--report", f"{folder}/s.html", "--depfile", f"{folder}/s.d", "--sidecar"]
        coverage = ["--nan", "ignore", "--coverage-out", f"{folder}/c.npy", "--verify", "20"]
        packed = ["--dtype", "int16", "--scale", "auto"]
        return [
            [*APPLY, "in", "--out-dir", f"{folder}/b", "-j", "2", "--jobs", "2"],
            resumed,
            resumed,
            [*APPLY, "x.npy", "-o", f"{folder}/s.npy", *beside],
            [*APPLY, "x.npy", "-o", f"{folder}/s.npy", *beside, "--overwrite"],
            [*APPLY, "x.npy", "-o", f"{folder}/v.npy", *coverage],
            [*APPLY, "x.npy", "-o", f"{folder}/p.nii.gz", *packed],
            ["apply", "x.npy", "--to-fwhm", "6vox", "-o", f"{folder}/f.npy", "-q"],
            ["rerun", f"{folder}/s.json", "-q"],
            ["info", "x.npy", f"{folder}/p.nii.gz"],
            ["compare", "in/a.npy", "in/b.npy"],
            ["explain", "x.npy", "-k", "box:size=3"],
            ["view", f"{folder}/p.nii.gz", "-o", f"{folder}/v.png"],
            ["kernel", "make", "gaussian:sigma=1vox", "-o", f"{folder}/k.npy"],
            ["help", "masks"],
        ]

    windows(*commands("w"))
    unix(*commands("u"))
    mine, theirs = contents(tmp_path / "w"), contents(tmp_path / "u")
    assert set(mine) == set(theirs)
    same = [name for name in mine if name.endswith((".npy", ".gz", ".png"))]
    assert len(same) == 11
    assert [name for name in same if mine[name] != theirs[name]] == []


def test_a_damaged_file_of_hdf5_is_refused_there(windows: Commands, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a"] = np.ones((3, 4, 5), np.float32)
    whole = (tmp_path / "v.h5").read_bytes()
    (tmp_path / "bad.h5").write_bytes(whole[: len(whole) // 2])
    windows([*APPLY, "v.h5", "-o", "o.npy"])
    ((_, said),) = windows([*APPLY, "bad.h5", "-o", "p.npy"], code=3)
    assert said.startswith("Error: cannot read bad.h5")
    assert said.count("\n") == 1


def test_a_name_that_windows_does_not_take_is_one_line(windows: Commands, x: Path) -> None:
    ((_, said),) = windows([*APPLY, "x.npy", "-o", "a:b.npy"], code=1)
    assert said.startswith("Error: cannot write a:b.npy")
    assert said.count("\n") == 1
