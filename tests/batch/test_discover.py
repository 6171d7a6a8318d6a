"""What a folder of volumes is taken to hold."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from conv3d_cli import Volume, write_volume
from conv3d_cli.batch.discover import InputPath, find_volumes, matches
from conv3d_cli.errors import FormatError, SpecError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with volumes and much else; nothing in it is opened, so the files are empty."""
    names = [
        "b.npy", "a.nii.gz", "notes.txt", "a.json", ".hidden.npy", "pair.hdr", "pair.img", "lone.img", "shot_photo.tif",
        "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/func/sub-01_bold.nii", "sub-02/anat/sub-02_T1w.nii.gz", ".git/x.npy",
        "s.zarr/zarr.json", "s.zarr/inner.npy", "bare/.zarray", "bare/0.npy", "sub-10/z.TIF",
    ]  # fmt: skip
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.mkfifo(tmp_path / "in" / "pipe.npy")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*arguments: object, **options: object) -> list[str]:
    return [volume.path for volume in find_volumes(*arguments, **options)[0]]  # type: ignore[arg-type]


def test_a_folder_stands_for_the_volumes_in_it(tree: Path) -> None:
    flat = ["a.nii.gz", "b.npy", "bare", "lone.img", "pair.hdr", "s.zarr"]
    assert paths(["in"]) == [f"in/{name}" for name in flat]
    assert paths(["in/"]) == [f"in/{name}" for name in flat]


def test_and_for_the_tree_below_it(tree: Path) -> None:
    found, notes = find_volumes(["in"], recursive=True)
    deep = [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/func/sub-01_bold.nii",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-10/z.TIF",
    ]
    assert [v.path for v in found][-4:] == [f"in/{name}" for name in deep]
    assert [v.below for v in found][-4:] == ["sub-01/anat", "sub-01/func", "sub-02/anat", "sub-10"]
    assert not notes
    os.chdir("in")
    assert [v.path for v in find_volumes(["."], recursive=True)[0]][-4:] == deep


def test_several_folders_keep_the_tree_below_what_holds_them(tree: Path) -> None:
    found = find_volumes(["in/sub-01", "in/b.npy", "in/sub-02"], recursive=True)[0]
    assert [v.below for v in found] == ["sub-01/anat", "sub-01/func", "", "sub-02/anat"]
    assert found[2] == InputPath("in/b.npy")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.npy", "a*"], ["in/a.nii.gz", "in/b.npy"]),
        (
            ["sub-*/anat/*"],
            ["in/sub-01/anat/sub-01_T1w.nii.gz", "in/sub-02/anat/sub-02_T1w.nii.gz"],
        ),
        (["**/*_bold.nii"], ["in/sub-01/func/sub-01_bold.nii"]),
        (["**/b.npy"], ["in/b.npy"]),
        (["./b.npy"], ["in/b.npy"]),
        (["*.img"], ["in/lone.img", "in/pair.img"]),
        (["pair.*"], ["in/pair.hdr"]),
        (["*.[zZ]arr"], ["in/s.zarr"]),
    ],
)
def test_patterns(tree: Path, patterns: list[str], expected: list[str]) -> None:
    assert paths(["in"], patterns=patterns) == expected


def test_patterns_are_of_whole_names() -> None:
    assert not matches("xa.npy", "a*")
    assert not matches("d/a.npy", "a.npy/*")
    assert matches("d/e/a.npy", "d/**")
    assert matches("a,b [1].npy", "a,b [[]1].npy")


def test_links_are_followed_and_loops_end(tree: Path) -> None:
    (tree / "in/sub-01/up").symlink_to(tree / "in")
    (tree / "in/self").symlink_to("self")
    # named as a volume: that it cannot be read is told when it is
    (tree / "in/again.npy").symlink_to("again.npy")
    (tree / "other").mkdir()
    (tree / "other/far.npy").touch()
    (tree / "in/link").symlink_to(tree / "other")
    (tree / "in/a_link").symlink_to(tree / "in/sub-02")  # the tree itself comes first
    (tree / "in/absent.nii").symlink_to("/nowhere/x.nii")
    before = paths(["in"], recursive=True)
    assert "in/link/far.npy" in before
    assert "in/absent.nii" in before
    assert "in/again.npy" in before
    assert "in/sub-02/anat/sub-02_T1w.nii.gz" in before
    real = [os.path.realpath(path) for path in before]
    assert len(set(real)) == len(real)


def test_outputs_and_other_inputs_are_left_out(tree: Path) -> None:
    (tree / "in/out/deep").mkdir(parents=True)
    (tree / "in/out/deep/x.npy").touch()
    assert "in/out/deep/x.npy" in paths(["in"], recursive=True)
    found, notes = find_volumes(
        ["in"], recursive=True, out_dir="in/out", used=["in/b.npy", "gaussian:fwhm=6mm"]
    )
    assert not {"in/out/deep/x.npy", "in/b.npy"} & {v.path for v in found}
    assert notes == ["left out 1 file that this command uses otherwise (kernel, mask, ...)"]


def test_what_stands_beside_the_raw_data_of_a_bids_dataset(tree: Path) -> None:
    (tree / "in/dataset_description.json").touch()
    for name in ("derivatives/tool", "sourcedata", "sub-01/derivatives"):
        (tree / "in" / name).mkdir(parents=True)
        (tree / "in" / name / "x.npy").touch()
    found, notes = find_volumes(["in"], recursive=True)
    assert [v.path for v in found if v.path.endswith("x.npy")] == ["in/sub-01/derivatives/x.npy"]
    assert [note.split(" is not raw data")[0] for note in notes] == [
        "in/derivatives",
        "in/sourcedata",
    ]
    assert paths(["in/derivatives"], recursive=True) == ["in/derivatives/tool/x.npy"]


def test_nothing_found_is_an_error(tree: Path) -> None:
    (tree / "empty/deep").mkdir(parents=True)
    with pytest.raises(FormatError, match="no volumes in empty; pass --recursive"):
        find_volumes(["empty"])
    with pytest.raises(
        FormatError, match=r"no volumes that match \*.tif or x\* in empty, in/sub-01$"
    ):
        find_volumes(["empty", "in/sub-01"], recursive=True, patterns=["*.tif", "x*"])
    found, notes = find_volumes(["empty", "in"])
    assert len(found) == 6
    assert notes == ["no volumes in empty"]
    with pytest.raises(SpecError, match="--glob chooses among the volumes of a folder"):
        find_volumes(["in/b.npy"], patterns=["*"])
    with pytest.raises(SpecError, match="empty one"):
        find_volumes(["in"], patterns=[""])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tree: Path) -> None:
    (tree / "in/sub-01").chmod(0)
    try:
        with pytest.raises(FormatError, match="cannot read folder in/sub-01: Permission denied"):
            find_volumes(["in"], recursive=True)
    finally:
        (tree / "in/sub-01").chmod(0o755)


def test_the_files_of_one_volume_are_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.hdr", "b.nii", "c.mhd"):
        write_volume(name, Volume(np.ones((2, 3, 4), np.float32), "zyx"))
    found, notes = find_volumes(["a.img", "a.hdr", "b.nii", "c.mhd"])
    assert [volume.path for volume in found] == ["a.img", "b.nii", "c.mhd"]
    assert notes == ["a.img and a.hdr give one volume, of 2 files: it is read once"]
