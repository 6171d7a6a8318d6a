"""Names of input files that are not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.system.inputs import check_input, walk


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scan.nii", "no such file; did you mean {0}/scan.nii.gz?"),
        ("scna.nii.gz", "no such file; did you mean {0}/scan.nii.gz?"),
        ("other.npy", "no such file in {0}; correct the name, or change the folder"),
        ("*.npy", "no such file; nothing in {0} matches the pattern"),
        ("sub/scan.nii.gz", "no such file; there is no folder '{0}/sub'"),
        ("sub/more/scan.nii.gz", "no such file; there is no folder '{0}/sub'"),
        ("scan.nii.gz/x.npy", "a part of its path is a file, and no folder; correct the path"),
    ],
)
def test_a_missing_file_is_told_with_what_is_near(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    with pytest.raises(FormatError) as caught:
        check_input(str(tmp_path / name))
    assert str(caught.value) == f"cannot read {tmp_path / name}: {says.format(tmp_path)}"


def test_a_missing_file_beside_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scan.nii.gz").write_bytes(b"x")
    for name, says in {
        "scam.nii.gz": "did you mean scan.nii.gz?",
        "data/x.npy": "there is no folder 'data'",
    }.items():
        with pytest.raises(FormatError, match="no such file; ") as caught:
            check_input(name)
        assert str(caught.value).endswith(says)


def test_a_walk_leaves_nothing_out_that_it_cannot_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is packed or flushed would lose chunks without a word, as `Path.rglob` does."""
    (tmp_path / "c" / "d").mkdir(parents=True)
    for name in ("b", "a", "c/e", "c/d/f"):
        (tmp_path / name).touch()
    found = [(os.path.relpath(where, tmp_path), names) for where, names in walk(tmp_path)]
    assert found == [(".", ["a", "b"]), ("c", ["e"]), (os.path.join("c", "d"), ["f"])]
    usual = os.scandir

    def refused(path: Any) -> Any:
        if os.fspath(path).endswith("d"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return usual(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        list(walk(tmp_path))
