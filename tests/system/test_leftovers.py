"""Hidden files of killed runs: found and removed, unless they are in use or another's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import started

from conv3d_cli.system import atomic, leftovers
from conv3d_cli.system.atomic import AtomicFile, AtomicFolder, check_target
from conv3d_cli.system.leftovers import Journal, Rename, cleanup_notes, hidden_name

pytestmark = pytest.mark.skipif(leftovers.fcntl is None, reason="locks tell what is left over")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "LISTING_SECONDS", 0)
    cleanup_notes()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def left(target: Path, mark: str = "tmp", data: bytes = b"x" * 2_000_000) -> Path:
    path = hidden_name(target, atomic.suffix_of(target), mark)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name", ["o.npy", "o.nii.gz", "O.NII.GZ", "o", "a.b.ome.zarr", "é" * 60 + ".npy"]
)
def test_what_is_left_of_a_target_is_removed_and_named(tmp_path: Path, name: str) -> None:
    file, folder = left(tmp_path / name), hidden_name(tmp_path / name, atomic.suffix_of(name))
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "chunk").write_bytes(b"abc")
    others = [left(tmp_path / other) for other in ("other.npy", f"x{name}")]
    check_target(tmp_path / name, overwrite=False)
    assert names(tmp_path) == sorted(path.name for path in others)
    assert sorted(cleanup_notes()) == sorted(
        f"removed {path} ({size} MB), left by a run that was killed"
        for path, size in ((file, "2.0"), (folder, "0.0"))
    )
    assert cleanup_notes() == []


def test_what_is_left_of_numbered_files_goes_with_their_output(tmp_path: Path) -> None:
    """Whatever numbers the next run has; a backup is the only copy, and is never theirs."""
    gone = [left(tmp_path / name) for name in ("o.npy", "o_iter05.npy", "o_iter5.npy")]
    kept = [left(tmp_path / name) for name in ("o_iter.npy", "o_iter5.tif", "o_5.npy", "po.npy")]
    kept.append(left(tmp_path / "o_iter5.npy", "old"))
    check_target(tmp_path / "o.npy", overwrite=False)
    assert names(tmp_path) == sorted(path.name for path in kept)
    assert sorted(note.split(" ")[1] for note in cleanup_notes()) == sorted(map(str, gone))
    check_target(tmp_path / "o_iter5.npy", overwrite=False)
    (note,) = cleanup_notes()
    assert note.startswith(f"{kept[-1]} is an old version of {tmp_path / 'o_iter5.npy'}, which is")


def test_an_output_removes_nothing_of_another_that_differs_in_its_number(tmp_path: Path) -> None:
    """Runs on two machines may write them, where no lock tells one of the other."""
    long = "n" * 90
    kept = [left(tmp_path / name) for name in ("o.npy", "o_iter1.npy", f"{long}_iter1.npy")]
    for name in ("o_iter2.npy", f"{long}_iter2.npy"):
        check_target(tmp_path / name, overwrite=False)
    assert names(tmp_path) == sorted(path.name for path in kept)
    assert cleanup_notes() == []


def test_numbered_files_of_an_output_with_a_number_go_with_it(tmp_path: Path) -> None:
    for output in ("o_iter5", f"{'n' * 60}_iter5"):
        left(tmp_path / f"{output}_iter2.npy")
        check_target(tmp_path / f"{output}.npy", overwrite=False)
        assert names(tmp_path) == []


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    script = """
import sys
from conv3d_cli.system.atomic import AtomicFile, AtomicFolder
held = [AtomicFile(sys.argv[1] + "/o.npy"), AtomicFolder(sys.argv[1] + "/o.zarr")]
print("ready", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = names(tmp_path)
        assert len(before) == 2
        for name in ("o.npy", "o.zarr"):
            check_target(tmp_path / name, overwrite=False)
        assert names(tmp_path) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name in ("o.npy", "o.zarr"):
            check_target(tmp_path / name, overwrite=False)
        assert names(tmp_path) == []


def test_own_files_in_use_stay(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "o.npy") as output, AtomicFolder(tmp_path / "o.zarr") as folder:
        output.file.write(b"abc")
        for name in ("o.npy", "o.zarr"):
            check_target(tmp_path / name, overwrite=False)
        with AtomicFile(tmp_path / "o.npy") as second:
            assert output.temporary.exists()
            assert second.temporary.exists()
        output.commit()
        folder.commit()
    assert names(tmp_path) == ["o.npy", "o.zarr"]
    assert cleanup_notes() == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two users"
)
def test_what_is_anothers_stays(tmp_path: Path) -> None:
    path = left(tmp_path / "o.npy")
    os.chown(path, 12002, 12002)
    (tmp_path / "o.npy").write_bytes(b"mine")
    journal = tmp_path / ".conv3d-00000000.renames"
    found = {"target": "o.npy", "temporary": path.name, "old": None}
    identity = leftovers._identity(tmp_path / "o.npy")
    journal.write_text(json.dumps({"renames": [{**found, "new": identity}], "also": []}))
    os.chown(journal, 12002, 12002)
    check_target(tmp_path / "o.npy", overwrite=True)
    assert path.exists()
    assert journal.exists()
    assert (tmp_path / "o.npy").read_bytes() == b"mine"


def test_an_old_version_without_a_new_one_is_kept(tmp_path: Path) -> None:
    path = left(tmp_path / "o.zarr", "old")
    check_target(tmp_path / "o.zarr", overwrite=False, folder=True)
    assert path.exists()
    (note,) = cleanup_notes()
    assert note == (
        f"{path} is an old version of {tmp_path / 'o.zarr'}, which is missing; rename it"
    )


def test_special_files_of_such_a_name_stay(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    for number, make in enumerate([os.mkfifo, lambda path: os.symlink("precious", path)]):
        make(tmp_path / f".o.0000000{number}.tmp.npy")
    check_target(tmp_path / "o.npy", overwrite=False)
    assert len(names(tmp_path)) == 3


def dead_journal(folder: Path, renames: list[Rename]) -> None:
    """A journal of a process that was killed."""
    Journal(renames).leave()
    assert [name for name in names(folder) if name.endswith(".renames")]


def replaced(target: Path) -> Rename:
    """A target, its new version in a hidden file, and a hidden second name of the old one."""
    target.write_bytes(b"old")
    rename = Rename(target, left(target, data=b"new"), hidden_name(target, target.suffix, "old"))
    assert rename.old is not None
    os.link(target, rename.old)
    return rename


@pytest.mark.parametrize("made", [0, 1, 2])
def test_renames_are_undone_or_finished(tmp_path: Path, made: int) -> None:
    (tmp_path / "there").mkdir()
    renames = [replaced(tmp_path / "a.npy"), replaced(tmp_path / "there" / "b.npy")]
    dead_journal(tmp_path, renames)
    for rename in renames[:made]:
        os.replace(rename.temporary, rename.target)
    check_target(tmp_path / "there" / "b.npy", overwrite=True)
    check_target(tmp_path / "a.npy", overwrite=True)
    expected = b"new" if made == 2 else b"old"
    for rename in renames:
        assert rename.target.read_bytes() == expected
    assert names(tmp_path) == ["a.npy", "there"]
    assert names(tmp_path / "there") == ["b.npy"]
    notes = [
        f"{tmp_path / 'a.npy'} is again as it was before a run that was killed while it replaced "
        "several files together"
    ]
    assert cleanup_notes() == (notes if made == 1 else [])


def test_new_files_without_those_that_belong_to_them_are_removed(tmp_path: Path) -> None:
    renames = [
        Rename(tmp_path / name, left(tmp_path / name, data=b"new"), None) for name in ("a", "b")
    ]
    dead_journal(tmp_path, renames)
    os.replace(renames[0].temporary, renames[0].target)
    check_target(tmp_path / "a", overwrite=False)
    assert names(tmp_path) == []
    assert [note.split(":")[0] for note in cleanup_notes()] == [f"removed {tmp_path / 'a'}"]


def test_a_file_that_was_made_since_is_kept(tmp_path: Path) -> None:
    rename = Rename(tmp_path / "a", left(tmp_path / "a", data=b"new"), None)
    other = Rename(tmp_path / "b", left(tmp_path / "b", data=b"new"), None)
    dead_journal(tmp_path, [rename, other])
    rename.temporary.unlink()
    (tmp_path / "a").write_bytes(b"the user's own")
    check_target(tmp_path / "a", overwrite=True)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"the user's own"


def test_renames_of_a_living_process_stay(tmp_path: Path) -> None:
    renames = [replaced(tmp_path / "a.npy"), replaced(tmp_path / "b.npy")]
    journal = Journal(renames)
    os.replace(renames[0].temporary, renames[0].target)
    before = names(tmp_path)
    check_target(tmp_path / "a.npy", overwrite=True)
    assert names(tmp_path) == before
    journal.remove()


@pytest.mark.parametrize(
    "entry",
    [
        {"target": "../precious", "temporary": ".precious.00000000.tmp", "old": None},
        {"target": "precious", "temporary": "../precious", "old": None},
        {"target": "precious", "temporary": "other", "old": None},
        {"target": "precious", "temporary": ".precious.00000000.tmp", "old": "other"},
        {"target": "..", "temporary": "....00000000.tmp", "old": None},
        {"target": 3, "temporary": [], "old": {}},
        {},
    ],
)
def test_a_journal_out_of_an_archive_moves_nothing_else(tmp_path: Path, entry: object) -> None:
    """It may hold anything."""
    inner = tmp_path / "archive"
    inner.mkdir()
    for path in (tmp_path / "precious", inner / "precious", inner / "other"):
        path.write_bytes(path.parent.name.encode())
    for contents in ({"renames": [entry], "also": ["..", "/"]}, [entry], entry, 7):
        (inner / ".conv3d-00000000.renames").write_text(json.dumps(contents))
        check_target(inner / "precious", overwrite=True)
        assert (tmp_path / "precious").read_bytes() == tmp_path.name.encode()
        for name in ("precious", "other"):
            assert (inner / name).read_bytes() == b"archive"


def test_a_batch_lists_its_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "LISTING_SECONDS", 60)
    listed, usual = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or usual(path))
    for number in range(9):
        check_target(tmp_path / f"{number}.npy", overwrite=False)
    assert listed == [str(tmp_path)]
    shutil.rmtree(tmp_path)
