"""Names of input files that are not there, and files that other files name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ometiff import write_split

from conv3d_cli.errors import FormatError, MemoryLimitError
from conv3d_cli.formats import read_volume, write_volume
from conv3d_cli.model.volume import Volume
from conv3d_cli.system.inputs import check_input, lies_beside, read_text, walk
from conv3d_cli.system.room import ceiling_of_memory


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

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        with pytest.raises(PermissionError):
            list(walk(tmp_path))


class TestFilesThatAFileNames:
    """In the folder, below it, or git-annex's objects of the same repository."""

    def repository(self, folder: Path, name: str = "scan.raw") -> tuple[Path, Path]:
        """A header, and a link beside it to an object, as git-annex lays them out."""
        place = folder / ".git" / "annex" / "objects" / "Xx" / "9q" / "MD5E-s4--1.raw"
        place.mkdir(parents=True)
        (place / place.name).write_bytes(b"1234")
        (folder / "sub").mkdir(exist_ok=True)
        link = folder / "sub" / name
        link.symlink_to(os.path.relpath(place / place.name, folder / "sub"))
        return folder / "sub" / "scan.mhd", link

    def test_objects_of_the_repository(self, tmp_path: Path) -> None:
        head, link = self.repository(tmp_path / "repo")
        assert lies_beside(str(link), str(head))
        below, link = self.repository(tmp_path / "other", "below.raw")
        assert lies_beside(str(link), str(below.parent.parent / "scan.mhd"))
        assert not lies_beside(str(link), str(head)), "of another repository"

    def test_links_that_leave_the_repository(self, tmp_path: Path) -> None:
        head, _ = self.repository(tmp_path / "repo")
        secret = tmp_path / "secret.raw"
        secret.write_bytes(b"1234")
        (head.parent / "out.raw").symlink_to(secret)
        assert not lies_beside(str(head.parent / "out.raw"), str(head))
        # an object that is itself a link to elsewhere
        within = tmp_path / "repo" / ".git" / "annex" / "objects" / "evil"
        within.symlink_to(secret)
        (head.parent / "evil.raw").symlink_to(within)
        assert not lies_beside(str(head.parent / "evil.raw"), str(head))
        # objects of a repository that the folder is not in
        _, foreign = self.repository(tmp_path / "private")
        (head.parent / "foreign.raw").symlink_to(foreign)
        assert not lies_beside(str(head.parent / "foreign.raw"), str(head))
        assert not lies_beside(str(head.parent / ".." / ".." / "secret.raw"), str(head))

    @pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".mih", ".hdr", ".nii"])
    def test_volumes_of_an_annex_are_read(self, suffix: str, tmp_path: Path) -> None:
        values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
        (tmp_path / "made").mkdir()
        write_volume(str(tmp_path / "made" / f"a{suffix}"), Volume(values, "zyx"))
        (tmp_path / "repo" / "sub").mkdir(parents=True)
        for number, file in enumerate(sorted((tmp_path / "made").iterdir())):
            place = tmp_path / "repo" / ".git" / "annex" / "objects" / "zZ" / str(number)
            place.mkdir(parents=True)
            file.rename(place / f"MD5E-{number}{file.suffix}")
            target = os.path.relpath(
                place / f"MD5E-{number}{file.suffix}", tmp_path / "repo" / "sub"
            )
            (tmp_path / "repo" / "sub" / file.name).symlink_to(target)
        volume = read_volume(str(tmp_path / "repo" / "sub" / f"a{suffix}"))
        np.testing.assert_array_equal(volume.data, values)

    def test_a_set_of_ome_tiffs_in_an_annex(self, tmp_path: Path, run: Any) -> None:
        """The files of a set name each other: their links lie side by side, their objects not."""
        values = write_split(tmp_path)
        for name in ("a.ome.tif", "b.ome.tif"):
            place = tmp_path / "repo" / ".git" / "annex" / "objects" / name[0] / f"MD5E-{name}"
            place.parent.mkdir(parents=True)
            (tmp_path / name).rename(place)
            (tmp_path / "repo" / name).symlink_to(os.path.relpath(place, tmp_path / "repo"))
        np.testing.assert_array_equal(
            read_volume(str(tmp_path / "repo" / "b.ome.tif")).data, values
        )

    def test_content_that_was_not_fetched(self, tmp_path: Path, run: Any, error_line: Any) -> None:
        for name, target in (
            ("a.nii", ".git/annex/objects/x/K1"),
            ("b.nii", "../gone/b.nii"),
        ):
            (tmp_path / name).symlink_to(target)
        line = error_line(run("info", tmp_path / "a.nii", code=3).stderr)
        assert "its content is not here" in line
        assert f"git annex get {tmp_path / 'a.nii'}" in line
        line = error_line(run("info", tmp_path / "b.nii", code=3).stderr)
        assert line.endswith("gone/b.nii, which does not exist; correct the link")


def test_a_text_without_an_end_meets_the_ceiling(tmp_path: Path) -> None:
    """A device and a pipe do not tell their size beforehand."""
    if not Path("/dev/zero").exists():
        pytest.skip("there is no such device")
    (tmp_path / "c.toml").symlink_to("/dev/zero")
    with (
        ceiling_of_memory(300 << 20),
        pytest.raises(MemoryLimitError, match="its text"),
    ):
        read_text(str(tmp_path / "c.toml"))


def test_a_text_behind_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.toml").symlink_to("nowhere")
    with pytest.raises(FormatError, match=r"it is a link to .*nowhere, which does not exist"):
        read_text(str(tmp_path / "c.toml"), "config")
