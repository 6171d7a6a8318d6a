"""Every call of the system fails in turn: one line and the right code, and the target is old or whole.

`failing_calls.py` makes the calls fail, those of compiled libraries, too. Its table `ERRORS` and
the table `CASES` here are what is tried. A call that others can do without may fail unnoticed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from failing_calls import ERRORS, HARMLESS, KINDS, build, failing_calls

from conv3d_cli.formats import FORMATS
from conv3d_cli.system import leftovers

pytestmark = pytest.mark.skipif(leftovers.fcntl is None, reason="locks tell what is left over")

WRITTEN = [one.suffixes[0] for one in FORMATS if one.create is not None and one.suffixes]
OTHERS = [".hdr", ".nhdr", ".mhd", ".nii", ".tif", ".mih", ".zarr.zip", ".nii.zst"]
SUFFIXES = list(dict.fromkeys([*WRITTEN, *OTHERS]))
COMPANIONS = [
    ["--sidecar"],
    ["--nan", "ignore", "--coverage-out", "d/c.npy", "--sidecar"],
    ["--report", "r.html"],
    ["--depfile", "o.d"],
    ["--resume"],
    ["--verify", "100"],
    ["--to-fwhm", "6vox"],
    ["--mask", "m.npy"],
    ["--threads", "1"],
    ["-k", "k.npy"],
]
# input, output, further options, whether an older output is replaced
CASES = [
    *(("x.npy", f"o{suffix}", [], True) for suffix in SUFFIXES),
    *((f"i{suffix}", "o.npy", [], False) for suffix in SUFFIXES),
    *(("x.npy", "o.npy", options, True) for options in COMPANIONS),
    ("x.npy", "o.nii", ["--dtype", "int16", "--scale", "auto"], True),
    ("x.npy", "o.tif", ["--compression", "deflate"], True),
    ("x.npy", "o.ome.zarr", ["--levels", "2"], False),
]
COMMAND = ["apply", "-k", "box:size=3", "-q"]
# The HDF5 library makes no call again that a signal interrupted, and needs its memory.
HDF5 = (".h5", ".mnc", ".ims")
WITHOUT_HDF5 = {
    kind: [e for e in errors if e != "EINTR" and (e, kind) != ("ENOMEM+", "memory")]
    for kind, errors in ERRORS.items()
}
MOST = 12  # calls of one kind, spread over all; `None` tries each, in hours


def prepared(folder: Path, source: str, target: str, options: list[str], old: bool) -> list[str]:
    """Fill a folder with what a case needs; its command."""
    (folder / "d").mkdir(parents=True)
    rng = np.random.default_rng(0)
    x = rng.random((24, 24, 24), np.float32)  # large enough for memory to be counted
    np.save(folder / "x.npy", x)
    np.save(folder / "m.npy", x > 0.3)
    np.save(folder / "k.npy", np.full((3, 3, 3), 1 / 27, np.float32))
    np.save(folder / "y.npy", rng.integers(0, 99, (20, 24, 24)).astype(np.int16))

    def run(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "conv3d_cli", *words], cwd=folder, check=True)

    if source != "x.npy":
        run(*COMMAND, "x.npy", "-o", source)
    command = [*COMMAND, source, "-o", target, *options]
    if {"-k", "--to-fwhm"} & {*options}:
        command = [command[0], *command[3:]]
    if old and not {"--resume", "--mask"} & set(options):
        run(*["y.npy" if word == source else word for word in command])
        command.append("--overwrite")
    return command


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = build(tmp_path_factory.mktemp("library"))
    if found is None:
        pytest.skip("no C compiler, or no GNU C library: calls cannot be made to fail")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "options", "old"),
    [pytest.param(*case, id=" ".join([case[0], case[1], *case[2]])) for case in CASES],
)
def test_every_call_fails_once(
    source: str, target: str, options: list[str], old: bool, library: Path, tmp_path: Path
) -> None:
    command = prepared(tmp_path / "before", source, target, options, old)
    errors = WITHOUT_HDF5 if source.endswith(HDF5) or target.endswith(HDF5) else ERRORS
    if "--to-fwhm" in options:  # NumPy's own sums end the process without memory
        errors = {kind: found for kind, found in errors.items() if kind != "memory"}
    tried = failing_calls(library, tmp_path / "before", command, errors, MOST)
    assert {one.kind for one in tried} >= {"open", "read", "sync", "stat"}
    assert not [str(one) for one in tried if one.fault()]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["o.npy", "o.nii.gz"])
def test_machine_code_that_cannot_be_loaded_is_compiled(
    target: str, library: Path, tmp_path: Path
) -> None:
    """A failure of the cache makes the run slower, and nothing else."""
    command = prepared(tmp_path / "before", "x.npy", target, [], old=False)
    errors = {kind: ERRORS[kind] for kind in ("open", "read", "stat", "map", "list")}
    tried = failing_calls(library, tmp_path / "before", command, errors, most=25, cold=True)
    # what fails while the interpreter looks for modules is no matter of the cache
    cached = [one for one in tried if "conv3d" in one.call and "cache" in one.call]
    assert cached
    assert not [str(one) for one in cached if one.fault()]
    assert not [str(one) for one in cached if one.code and not one.error.endswith("+")]


# kinds and errors that every run of the tests tries, and the most calls of each kind
FIRST: list[tuple[str, str, list[str], bool, dict[str, list[str]], int]] = [
    (
        "i.nii.gz",
        "o.ome.zarr",
        [],
        False,
        {
            "open": ["EMFILE"],
            "read": ["EIO", "short"],
            "write": ["ENOSPC+"],
            "mkdir": ["ENOSPC"],
            "rename": ["EIO"],
            "memory": ["ENOMEM"],
            "thread": ["EAGAIN+"],
        },
        6,
    ),
    (
        "x.npy",
        "o.npy",
        ["--nan", "ignore", "--coverage-out", "d/c.npy", "--sidecar"],
        True,
        {
            "write": ["EIO"],
            "sync": ["EIO"],
            "rename": ["EACCES"],
            "stat": ["EIO"],
            "map": ["ENOMEM"],
        },
        8,
    ),
]


@pytest.mark.parametrize(
    ("source", "target", "options", "old", "errors", "most"),
    [pytest.param(*case, id=" ".join([case[0], case[1], *case[2]])) for case in FIRST],
)
def test_some_calls_fail_once(
    source: str,
    target: str,
    options: list[str],
    old: bool,
    errors: dict[str, list[str]],
    most: int,
    library: Path,
    tmp_path: Path,
) -> None:
    command = prepared(tmp_path / "before", source, target, options, old)
    tried = failing_calls(library, tmp_path / "before", command, errors, most)
    assert {one.kind for one in tried if one.code} == errors.keys()
    assert not [str(one) for one in tried if one.fault()]


def test_the_table_names_every_kind_of_call() -> None:
    assert tuple(ERRORS) == KINDS
    assert {error for errors in ERRORS.values() for error in errors} >= set(HARMLESS)
