"""Temporary files lie in a temporary folder, and never among the data of the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import LIMIT

from conv3d_cli.errors import WriteError
from conv3d_cli.system import scratch


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No temporary folder is writable; the current folder is."""
    for variable in scratch.VARIABLES:
        monkeypatch.setenv(variable, "/proc/nothing")
    monkeypatch.setattr(scratch, "FOLDERS", ("/proc/none",))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_writable_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/nothing")
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert scratch.temporary_folder("out/a.nii") == str(tmp_path)
    with scratch.scratch_folder() as folder:
        assert Path(folder).parent == tmp_path


def test_without_one_nothing_is_dropped_into_the_current_folder(nowhere: Path) -> None:
    for attempt in (
        scratch.temporary_folder,
        scratch.unnamed_file,
        scratch.scratch_folder().__enter__,
    ):
        with pytest.raises(WriteError, match=r"no temporary folder is writable .* set TMPDIR"):
            attempt()
    assert list(nowhere.iterdir()) == []


def test_an_output_is_spooled_in_its_own_folder(nowhere: Path) -> None:
    (nowhere / "out").mkdir()
    assert scratch.temporary_folder("out/a.nii") == str(nowhere / "out")
    with scratch.unnamed_file("out/a.nii") as file:
        file.write(b"abc")
        assert list((nowhere / "out").iterdir()) == []
    with scratch.scratch_folder(beside="out/a.nii") as folder:
        assert Path(folder).name.startswith(".conv3d-")  # no run takes it for a volume
    for sent in ("-", os.devnull):
        with pytest.raises(WriteError, match="no temporary folder"):
            scratch.temporary_folder(sent)


@pytest.mark.skipif(os.name != "posix", reason="folders of POSIX")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["apply", "a.npy", "-k", "box:size=3", "-o", "out/o.nii.gz"], 0),
        (["apply", "f.npy", "-k", "box:size=3", "-o", "out/o.nii.gz"], 0),
        (["apply", "a.npy", "-k", "box:size=3", "-o", "out/o.nii", "--scale", "auto", "--dtype", "int16"], 0),
        (["apply", "a.npy", "-k", "box:size=3", "-o", "out/o.nii", "--report", "out/r.html"], 0),
        (["apply", "a.npy", "--to-fwhm", "3vox", "-o", "out/o.nii"], 0),
        (["apply", "f.npy", "-k", "box:size=3", "-o", "out/o.nii.gz", "--verify", "5"], 0),
        (["apply", "f.npy", "-k", "box:size=3", "-o", "-", "--scale", "auto", "--dtype", "int16"], 2),
        (["view", "a.npy", "-o", "out/v.png"], 0),
        (["rerun", "s.json"], 1),
    ],
)  # fmt: skip
def test_jobs_without_a_temporary_folder(tmp_path: Path, arguments: list[str], code: int) -> None:
    rng = np.random.default_rng(5)
    volume = rng.standard_normal((6, 7, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", volume)
    np.save(tmp_path / "f.npy", np.asfortranarray(volume))
    (tmp_path / "out").mkdir()
    blur = [sys.executable, "-m", "conv3d_cli", "apply", "a.npy", "-k", "box:size=3"]
    subprocess.run([*blur, "-o", "s.npy", "--sidecar"], cwd=tmp_path, check=True)
    before = {path.name for path in tmp_path.iterdir()}
    script = (
        "import conv3d_cli.system.scratch as scratch\n"
        "scratch.FOLDERS = ()\n"
        "from conv3d_cli.__main__ import main; main()"
    )
    environment = dict.fromkeys((*scratch.VARIABLES, "HOME"), "/proc/nothing")
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == code, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == before
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.split("/")[1] for p in arguments if p.startswith("out/")}  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    if code == 0:
        assert errors == []
    if code == 1:
        assert errors[0].startswith("Error: no temporary folder is writable (/proc/nothing): ")
