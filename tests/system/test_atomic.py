"""Outputs appear complete or not at all, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from processes import started

from conv3d_cli.errors import FormatError, OutputExistsError, WriteError
from conv3d_cli.system import atomic, leftovers
from conv3d_cli.system.atomic import (
    AtomicFile,
    AtomicFolder,
    AtomicGroup,
    check_target,
    committed_together,
    output_file,
    placed_outputs,
    suffix_of,
    write_errors,
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's, which may have 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# commit and abort


def test_commit_makes_the_file_appear_whole(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "a.npy") as output:
        output.file.write(b"abc")
        assert not (tmp_path / "a.npy").exists()
        output.commit()
        assert (tmp_path / "a.npy").read_bytes() == b"abc"
        assert output.file.closed
    assert names(tmp_path) == ["a.npy"]


def test_what_is_still_buffered_is_written(tmp_path: Path) -> None:
    output = AtomicFile(tmp_path / "a.npy")
    output.file.write(b"x" * 1_000_003)
    output.commit()
    assert (tmp_path / "a.npy").stat().st_size == 1_000_003


def test_the_bytes_are_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could leave an empty file under the output's name."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        steps.append(("fsync", os.fstat(number).st_size))
        fsync(number)

    def noted_replace(*paths: Path) -> None:
        steps.append(("replace", os.path.getsize(paths[0])))
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    output = AtomicFile(tmp_path / "a.npy")
    output.file.write(b"abc")
    output.commit()
    assert steps == [("fsync", 3), ("replace", 3)]


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "a.npy") as output:
        output.file.write(b"abc")
    assert names(tmp_path) == []
    output.abort()  # harmless


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), AtomicFile(tmp_path / "a.npy") as output:  # noqa: PT012
        output.file.write(b"abc")
        raise error
    assert names(tmp_path) == []


def test_abort_after_commit_keeps_the_file(tmp_path: Path) -> None:
    output = AtomicFile(tmp_path / "a.npy")
    output.commit()
    output.abort()
    output.abort()
    assert names(tmp_path) == ["a.npy"]


def test_an_existing_target_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.npy"
    target.write_bytes(b"old")
    with AtomicFile(target, overwrite=True) as output:
        output.file.write(b"new")
        output.file.flush()
        assert target.read_bytes() == b"old"
        output.abort()
    assert target.read_bytes() == b"old"
    with AtomicFile(target, overwrite=True) as output:
        output.file.write(b"new")
        output.commit()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.npy"]


def test_who_reads_the_old_file_keeps_it(tmp_path: Path) -> None:
    """The input may be the output: its bytes stay readable after the rename."""
    target = tmp_path / "a.npy"
    target.write_bytes(b"old")
    with open(target, "rb") as reading, AtomicFile(target, overwrite=True) as output:
        output.file.write(b"new")
        output.commit()
        assert reading.read() == b"old"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "a.npy"
    output = AtomicFile(target)
    target.write_bytes(b"theirs")
    with pytest.raises(OutputExistsError, match=r"appeared meanwhile; pass overwrite=True"):
        output.commit()
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.npy"]


def test_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    """Each has a temporary file of its own; the last to commit wins, whole."""
    outputs = [AtomicFile(tmp_path / "a.npy", overwrite=True) for _ in range(8)]
    assert len({output.temporary for output in outputs}) == 8

    def write(number: int) -> None:
        outputs[number].file.write(bytes([number]) * 10_000)
        outputs[number].commit()

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (tmp_path / "a.npy").read_bytes()
    assert content in [bytes([i]) * 10_000 for i in range(8)]
    assert names(tmp_path) == ["a.npy"]


def test_the_temporary_file_stands_beside_the_target_with_its_suffix(tmp_path: Path) -> None:
    for name in ("a.npy", "b.nii.gz", "c.ome.tif", "noending"):
        with AtomicFile(tmp_path / name) as output:
            assert output.temporary.parent == tmp_path
            assert output.temporary.name.startswith(".")
            assert suffix_of(output.temporary) == (suffix_of(name) or ".tmp")


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".npy", "é" * 125 + ".npy", "🧠" * 62 + ".npy", "脳" * 82 + ".nii.gz"], ids=["x", "e", "brain", "kanji"]
)  # fmt: skip
def test_the_longest_names_a_disk_allows(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) > 245
    with AtomicFile(tmp_path / name) as output:
        output.commit()
    assert names(tmp_path) == [name]


def test_a_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.npy"
    real.write_bytes(b"old")
    link = tmp_path / "link.npy"
    link.symlink_to(real)
    with AtomicFile(link, overwrite=True) as output:
        # the rename must not cross file systems
        assert output.temporary.parent == tmp_path / "there"
        output.file.write(b"new")
        output.commit()
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    link = tmp_path / "link.npy"
    link.symlink_to(tmp_path / "nothing.npy")
    with pytest.raises(OutputExistsError):
        AtomicFile(link)
    with AtomicFile(link, overwrite=True) as output:
        output.commit()
    assert (tmp_path / "nothing.npy").is_file()
    assert link.is_symlink()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_honours_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with AtomicFile(tmp_path / "a.npy") as output:
            output.commit()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.npy").stat().st_mode) == 0o666 & ~mask


def test_relative_paths_survive_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with AtomicFile("a.npy") as output:
        monkeypatch.chdir(tmp_path / "elsewhere")
        output.commit()
    assert names(tmp_path) == ["a.npy", "elsewhere"]


# ---------------------------------------------------------------------------------------------------------------------
# Targets that cannot be


def test_an_existing_file_needs_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "a.npy"
    target.write_bytes(b"old")
    with pytest.raises(
        OutputExistsError, match=r"a\.npy: file exists; pass overwrite=True to replace it"
    ):
        check_target(target, overwrite=False)
    check_target(target, overwrite=True)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_and_missing_folders(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(WriteError, match="it is a folder"):
        check_target(tmp_path, overwrite)
    with pytest.raises(WriteError, match="does not exist; make it first"):
        check_target(tmp_path / "no" / "a.npy", overwrite)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="file is no folder"):
        check_target(tmp_path / "file" / "a.npy", overwrite)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match="is not writable"):
            AtomicFile(tmp_path / "a.npy")
    finally:
        tmp_path.chmod(0o700)


# ---------------------------------------------------------------------------------------------------------------------
# Disks that refuse


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    """A limit on the file size stands for the full disk: the system refuses the write in the same way."""
    program = f"""
import resource, sys
from conv3d_cli.system.atomic import AtomicFile, write_errors
from conv3d_cli.errors import WriteError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
output = AtomicFile("a.npy")
try:
    with output:
        output.file.write(b"x" * 5000)  # still in the buffer: the refusal comes with the flush of commit
        output.commit()
except WriteError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (
        "cannot write a.npy: the file system or a limit (ulimit -f) refuses a file of this size"
        in ran.stdout
    )
    assert ran.stderr == ""
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_no_space_left_says_so() -> None:
    with pytest.raises(WriteError, match="no space left on the disk"), write_errors("a.npy"):  # noqa: PT012
        full = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        try:
            full.write(b"x")
        finally:
            full.close()


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only"),
     (errno.EFBIG, "size"), (errno.EIO, os.strerror(errno.EIO))],
)  # fmt: skip
def test_system_errors_in_plain_words(number: int, words: str) -> None:
    with pytest.raises(WriteError, match=words) as caught, write_errors("out/a.npy"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("cannot write out/a.npy: ")
    assert caught.value.exit_code == 1


def test_a_system_error_without_a_number() -> None:
    with pytest.raises(WriteError, match="cannot write a: the plug was pulled"), write_errors("a"):
        raise OSError("the plug was pulled")


@pytest.mark.parametrize(
    "error", [FormatError("in"), WriteError("out"), OutputExistsError("there"), ValueError("no")]
)
def test_other_errors_pass(error: Exception) -> None:
    """Also an input's own error, though it is an OSError too: it names the input."""
    with pytest.raises(type(error)) as caught, write_errors("out/a.npy"):
        raise error
    assert caught.value is error


def test_a_rename_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.npy"
    target.write_bytes(b"old")

    def refuse(*paths: object) -> None:
        raise OSError(errno.EIO, "no")

    output = AtomicFile(target, overwrite=True)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WriteError):
        output.commit()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.npy"]


# ---------------------------------------------------------------------------------------------------------------------
# Suffixes


@pytest.mark.parametrize(
    ("path", "suffix"),
    [("a.npy", ".npy"), ("A.NPY", ".npy"), ("a.nii.gz", ".nii.gz"), ("a.b.NII.gz", ".nii.gz"), ("a.gz", ".gz"), ("a.b.gz", ".gz"),
     ("x.ome.tif", ".ome.tif"), ("x.OME.TIFF", ".ome.tiff"), ("x.home.tif", ".tif"), ("a.img.gz", ".img.gz"), ("README", ""),
     (".nii.gz", ".gz"), ("dir.nii.gz/a.npy", ".npy"), ("dir.d/README", ""), ("a.", ""), (".hidden", "")],
)  # fmt: skip
def test_suffixes(path: str, suffix: str) -> None:
    assert suffix_of(path) == suffix
    assert suffix_of(Path(path)) == suffix


def test_a_known_double_suffix() -> None:
    assert suffix_of("a.tar.gz", known=(".tar.gz",)) == ".tar.gz"


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def fill(output: AtomicFolder, text: str) -> None:
    (output.temporary / "deep").mkdir()
    (output.temporary / "deep" / "file").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with AtomicFolder(tmp_path / "a.zarr") as output:
        fill(output, "new")
        assert suffix_of(output.temporary) == ".zarr"
        assert not (tmp_path / "a.zarr").exists()
        output.commit()
    assert content(tmp_path) == {"a.zarr/deep/file": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), AtomicFolder(tmp_path / "a.zarr") as output:  # noqa: PT012
        fill(output, "new")
        raise error
    output.abort()
    assert names(tmp_path) == []


def test_an_existing_folder_is_replaced_with_all_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "old").write_text("old")
    with pytest.raises(OutputExistsError, match="folder exists; pass overwrite=True"):
        AtomicFolder(tmp_path / "a.zarr")
    with AtomicFolder(tmp_path / "a.zarr", overwrite=True) as output:
        fill(output, "new")
    assert content(tmp_path) == {"a.zarr/old": "old"}
    with AtomicFolder(tmp_path / "a.zarr", overwrite=True) as output:
        fill(output, "new")
        output.commit()
    assert content(tmp_path) == {"a.zarr/deep/file": "new"}
    assert names(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_swap_that_fails_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "old").write_text("old")
    rename, calls = os.rename, []

    def failing(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == call:
            raise error
        rename(*paths)

    monkeypatch.setattr(atomic, "exchange", lambda *_: False)  # a system that cannot
    with AtomicFolder(tmp_path / "a.zarr", overwrite=True) as output:
        fill(output, "new")
        monkeypatch.setattr(os, "rename", failing)
        with pytest.raises((WriteError, KeyboardInterrupt)):
            output.commit()
    assert content(tmp_path) == {"a.zarr/old": "old"}
    assert names(tmp_path) == ["a.zarr"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="names that can be exchanged")
@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_two_names_of_folders_are_exchanged_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    """No moment without a folder of the name; in a group, what fails after it undoes it."""
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "old").write_text("old")

    def never(*paths: Path) -> None:
        raise AssertionError(paths)

    def failing(*paths: Path) -> None:
        raise error or AssertionError

    monkeypatch.setattr(os, "rename", never)
    with ExitStack() as stack:
        if error is not None:
            monkeypatch.setattr(os, "replace", failing)
            stack.enter_context(pytest.raises((WriteError, KeyboardInterrupt)))
        group = stack.enter_context(AtomicGroup())
        with AtomicFolder(tmp_path / "a.zarr", overwrite=True) as output:
            fill(output, "new")
            output.commit()
        if error is not None:
            with AtomicFile(tmp_path / "b") as file:
                file.commit()
        group.commit()
    kept = {"a.zarr/deep/file": "new"} if error is None else {"a.zarr/old": "old"}
    assert content(tmp_path) == kept
    assert names(tmp_path) == ["a.zarr"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with AtomicFolder(tmp_path / "a.zarr") as output:
        fill(output, "new")
        (tmp_path / "a.zarr").mkdir()
        with pytest.raises(OutputExistsError, match="appeared meanwhile"):
            output.commit()
    assert names(tmp_path) == ["a.zarr"]
    assert content(tmp_path) == {}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").write_text("a file")
    with pytest.raises(WriteError, match="it is a file"):
        AtomicFolder(tmp_path / "a.zarr", overwrite=True)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.zarr").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "there" / "real.zarr")
    with AtomicFolder(tmp_path / "link.zarr", overwrite=True) as output:
        fill(output, "new")
        output.commit()
    assert (tmp_path / "link.zarr").is_symlink()
    assert content(tmp_path / "there") == {"real.zarr/deep/file": "new"}


def test_files_of_a_folder_are_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    fsync, rename = os.fsync, os.rename

    def noted(number: int) -> None:
        flushed.append(os.fstat(number).st_ino)
        fsync(number)

    def checked(*paths: Path) -> None:
        assert (paths[0] / "deep" / "file").stat().st_ino in flushed
        rename(*paths)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", checked)
    with AtomicFolder(tmp_path / "a.zarr") as output:
        fill(output, "new")
        output.commit()
    assert names(tmp_path) == ["a.zarr"]


# ---------------------------------------------------------------------------------------------------------------------
# groups


def test_a_group_takes_its_places_together(tmp_path: Path) -> None:
    with AtomicGroup() as group:
        with AtomicFile(tmp_path / "a") as output, AtomicFolder(tmp_path / "b") as folder:
            output.file.write(b"abc")
            (folder.temporary / "x").write_bytes(b"x")
            output.commit()
            folder.commit()
        assert [output.path for output in group.staged] == [tmp_path / "a", tmp_path / "b"]
        assert not {"a", "b"} & set(names(tmp_path))
        assert group.staged[0].temporary.read_bytes() == b"abc"
        group.commit()
    assert names(tmp_path) == ["a", "b"]


def test_a_group_without_a_commit_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), AtomicGroup():  # noqa: PT012
        with (
            AtomicFile(tmp_path / "a", overwrite=True) as output,
            AtomicFolder(tmp_path / "b") as folder,
        ):
            output.commit()
            folder.commit()
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_one_that_cannot_take_its_place_keeps_those_behind_it_from_theirs(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError), AtomicGroup() as group:  # noqa: PT012
        for name in ("a", "b"):
            with AtomicFile(tmp_path / name) as output:
                output.commit()
        (tmp_path / "a").write_bytes(b"another's")
        group.commit()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"another's"


def test_a_group_is_its_own_threads_alone(tmp_path: Path) -> None:
    def work() -> None:
        with AtomicFile(tmp_path / "a") as output:
            output.commit()

    with AtomicGroup() as group:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not group.staged
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("fails", range(3))
def test_a_group_that_fails_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Those that had their places already give them back: a new file goes, an old one returns."""
    (tmp_path / "b").write_bytes(b"old b")
    (tmp_path / "c").write_bytes(b"old c")
    replace, calls = os.replace, []

    def failing(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == fails + 1:
            raise OSError(errno.EIO, "broken")
        replace(*paths)

    with pytest.raises(WriteError, match="broken"), AtomicGroup() as group:  # noqa: PT012
        for name in ("a", "b", "c"):
            with AtomicFile(tmp_path / name, overwrite=True, is_header=name == "c") as output:
                output.file.write(b"new")
                output.commit()
        monkeypatch.setattr(os, "replace", failing)
        group.commit()
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == {
        "b": b"old b",
        "c": b"old c",
    }


def test_what_cannot_be_put_back_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").write_bytes(b"old b")

    def failing(*paths: Path) -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(WriteError, match="broken") as caught, AtomicGroup() as group:  # noqa: PT012
        for name in ("a", "b"):
            with AtomicFile(tmp_path / name, overwrite=True, is_header=name == "b") as output:
                output.commit()
        monkeypatch.setattr(os, "replace", failing)
        group.commit()
    (kept,) = (path for path in tmp_path.iterdir() if path.suffix != ".renames")
    restore = f"cannot restore {tmp_path / 'b'} (broken): its old version is now {kept}; rename it"
    assert restore in str(caught.value)
    assert kept.read_bytes() == b"old b"
    # the next run can, and nothing else is lost
    monkeypatch.undo()
    monkeypatch.setattr(leftovers, "LISTING_SECONDS", 0)
    check_target(tmp_path / "b", overwrite=True)
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old b"


def test_a_new_file_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was there before, so no old version is spoken of."""
    unlink, replace = Path.unlink, os.replace

    def failing_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "a":
            raise OSError(errno.EIO, "broken")
        unlink(path, missing_ok)

    def failing_replace(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(errno.EIO, "failing")
        replace(source, target)

    with pytest.raises(WriteError, match="failing") as caught, AtomicGroup() as group:  # noqa: PT012
        for name in ("a", "b"):
            with AtomicFile(tmp_path / name) as output:
                output.commit()
        monkeypatch.setattr(Path, "unlink", failing_unlink)
        monkeypatch.setattr(os, "replace", failing_replace)
        group.commit()
    assert f"cannot remove the new {tmp_path / 'a'} (broken); remove it" in str(caught.value)
    assert "None" not in str(caught.value)
    assert "a" in names(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(leftovers, "LISTING_SECONDS", 0)
    check_target(tmp_path / "b", overwrite=False)  # the next run can remove it
    assert names(tmp_path) == []


def test_without_hard_links_a_group_does_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*paths: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    for text in (b"first", b"second"):
        with committed_together():
            for name in ("a", "b"):
                with AtomicFile(tmp_path / name, overwrite=True) as output:
                    output.file.write(text)
                    output.commit()
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == {
            "a": text,
            "b": text,
        }


def test_together_within_a_group_waits_for_it(tmp_path: Path) -> None:
    with AtomicGroup() as group:
        with committed_together(), AtomicFile(tmp_path / "a") as output:
            output.commit()
        assert len(group.staged) == 1
        assert "a" not in names(tmp_path)
        group.commit()
    assert names(tmp_path) == ["a"]


# ---------------------------------------------------------------------------------------------------------------------
# signals and sudden ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_wait_until_all_have_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    class Told(BaseException):
        pass

    def tell(number: int, frame: object) -> None:
        raise Told

    replace = os.replace

    def interrupted(*paths: Path) -> None:
        signal.raise_signal(number)
        replace(*paths)

    before = signal.signal(number, tell)
    try:
        with pytest.raises(Told), committed_together():  # noqa: PT012
            for name in ("a", "b"):
                with AtomicFile(tmp_path / name) as output:
                    output.commit()
            monkeypatch.setattr(os, "replace", interrupted)
        assert signal.getsignal(number) is tell
    finally:
        signal.signal(number, before)
    assert names(tmp_path) == ["a", "b"]


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with AtomicFile(tmp_path / "a") as output:
            output.commit()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_knows_what_took_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the last moment: the old file is tidied up, and the new one is known to stand."""
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a.zarr").mkdir()
    replace, rename = os.replace, os.rename

    def interrupted(step: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*paths: Path) -> Any:
            signal.raise_signal(signal.SIGINT)
            return step(*paths)

        return stopped

    monkeypatch.setattr(os, "replace", interrupted(replace))
    monkeypatch.setattr(os, "rename", interrupted(rename))
    monkeypatch.setattr(atomic, "exchange", interrupted(atomic.exchange))
    with placed_outputs() as outer:
        for make, name in ((AtomicFile, "a"), (AtomicFolder, "a.zarr")):
            output = make(tmp_path / name, overwrite=True)
            with placed_outputs() as placed, pytest.raises(KeyboardInterrupt):
                output.commit()
            assert placed == [str(tmp_path / name)]
        assert outer == [str(tmp_path / "a"), str(tmp_path / "a.zarr")]
    assert names(tmp_path) == ["a", "a.zarr"]
    assert (tmp_path / "a").read_bytes() == b""
    with placed_outputs() as placed, pytest.raises(OutputExistsError), AtomicFile(tmp_path / "a"):
        pass
    assert placed == []


# ---------------------------------------------------------------------------------------------------------------------
# permissions


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o755])
@pytest.mark.parametrize("grouped", [False, True])
def test_who_may_read_and_write_the_old_file_may_the_new_one(
    tmp_path: Path, mode: int, grouped: bool
) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")
    target.chmod(mode)
    with AtomicGroup() if grouped else nullcontext() as group:
        with AtomicFile(target, overwrite=True) as output:
            output.file.write(b"new")
            # nobody else reads it while it is written
            assert permissions(output.temporary) == 0o600
            output.commit()
        if group is not None:
            with AtomicFile(tmp_path / "b") as output:
                output.commit()
            group.commit()
    assert (target.read_bytes(), permissions(target)) == (b"new", mode)


def test_permissions_are_kept_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    (tmp_path / "link").symlink_to("a")
    with AtomicFile(tmp_path / "link", overwrite=True) as output:
        output.commit()
    assert permissions(tmp_path / "a") == 0o600


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o775])
def test_permissions_of_a_folder_are_kept(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "a.zarr"
    target.mkdir()
    target.chmod(mode)
    with AtomicFolder(target, overwrite=True) as output:
        assert permissions(output.temporary) == 0o700
        fill(output, "new")
        output.commit()
    assert permissions(target) == mode


def test_what_is_in_a_folder_is_as_private_as_before(tmp_path: Path) -> None:
    target = tmp_path / "a.zarr"
    (target / "0").mkdir(parents=True)
    (target / "zarr.json").write_text("{}")
    (target / "zarr.json").chmod(0o640)
    (target / "0").chmod(0o750)
    target.chmod(0o2775)
    with AtomicFolder(target, overwrite=True) as output:
        (output.temporary / "0" / "1").mkdir(parents=True)
        for name in ("zarr.json", "0/zarr.json", "0/1/c"):
            (output.temporary / name).write_text("{}")
        output.commit()
    assert permissions(target) == 0o2775
    found = {str(path.relative_to(target)): permissions(path) for path in target.rglob("*")}
    assert found == {
        "0": 0o750,
        "0/1": 0o750,
        "zarr.json": 0o640,
        "0/zarr.json": 0o640,
        "0/1/c": 0o640,
    }


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl")
def test_access_lists_are_kept_and_none_is_inherited(tmp_path: Path) -> None:
    """A folder's default list would let others read what the old file did not."""

    def readers(path: Path) -> str:
        return subprocess.run(
            ["getfacl", "-cpn", path], capture_output=True, text=True, check=True
        ).stdout

    for name in ("plain", "listed"):
        (tmp_path / name).write_bytes(b"old")
        (tmp_path / name).chmod(0o640)
    try:
        subprocess.run(
            ["setfacl", "-m", "u:12002:r", tmp_path / "listed"], check=True, capture_output=True
        )
    except subprocess.CalledProcessError:
        pytest.skip("a file system without access lists")
    subprocess.run(["setfacl", "-d", "-m", "u:12002:rwx", tmp_path], check=True)
    before = {name: readers(tmp_path / name) for name in ("plain", "listed")}
    for name in before:
        with AtomicFile(tmp_path / name, overwrite=True) as output:
            output.commit()
    assert {name: readers(tmp_path / name) for name in before} == before
    assert "12002" not in before["plain"]
    assert "12002" in before["listed"]


two_users = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two users"
)
ALICE, BOB = 12001, 12002


@two_users
def test_root_keeps_the_owner(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b.zarr" / "inner").mkdir(parents=True)
    for path in (tmp_path / "a", tmp_path / "b.zarr"):
        os.chown(path, ALICE, BOB)
    with AtomicFile(tmp_path / "a", overwrite=True) as output:
        output.commit()
    with AtomicFolder(tmp_path / "b.zarr", overwrite=True) as folder:
        fill(folder, "new")
        folder.commit()
    for path in (tmp_path / "a", tmp_path / "b.zarr", *(tmp_path / "b.zarr").rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (ALICE, BOB), path


@two_users
@pytest.mark.parametrize(
    ("mode", "expected"), [(0o640, 0o600), (0o660, 0o600), (0o664, 0o644), (0o606, 0o666)]
)
def test_what_a_group_might_do_is_not_for_another(
    short_path: Path, mode: int, expected: int
) -> None:
    """Bob replaces Alice's file in a folder that is everybody's, and cannot give it to her."""
    short_path.chmod(0o777)
    target = short_path / "a"
    target.write_bytes(b"old")
    os.chown(target, ALICE, ALICE)
    target.chmod(mode)
    script = f"""
import os
from conv3d_cli.system.atomic import AtomicFile
os.setgid({BOB}); os.setuid({BOB})
with AtomicFile({str(target)!r}, overwrite=True) as output:
    output.commit()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (target.stat().st_uid, target.stat().st_gid) == (BOB, BOB)
    assert permissions(target) == expected


# ---------------------------------------------------------------------------------------------------------------------
# devices, FIFOs


def special_files(folder: Path) -> dict[str, Path]:
    """One of each kind that can be made here, and links to them."""
    made = {"fifo": folder / "fifo.npy", "socket": folder / "socket.npy"}
    os.mkfifo(made["fifo"])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(made["socket"]))
    with suppress(OSError):  # not root, or a container without devices
        for name, kind, number in (
            ("null", stat.S_IFCHR, (1, 3)),
            ("disk", stat.S_IFBLK, (7, 250)),
        ):
            os.mknod(folder / f"{name}.npy", kind | 0o666, os.makedev(*number))
            made[name] = folder / f"{name}.npy"
    for name, path in list(made.items()):
        (folder / f"link-{name}.npy").symlink_to(path)
        made[f"link to {name}"] = folder / f"link-{name}.npy"
    return made


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_file_takes_the_place_of_a_device(short_path: Path, overwrite: bool) -> None:
    for name, path in special_files(short_path).items():
        before = path.stat()
        with pytest.raises(WriteError, match="which a file would replace; name a plain file"):
            AtomicFile(path, overwrite)
        with pytest.raises(WriteError, match="but the output is a folder; name another"):
            AtomicFolder(path, overwrite)
        if "null" in name or "fifo" in name:
            check_target(path, overwrite)
        else:
            with pytest.raises(WriteError, match="name a plain file"):
                check_target(path, overwrite)
        assert os.path.samestat(path.stat(), before), name


def test_a_device_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "a", overwrite=True) as output:
        os.mkfifo(tmp_path / "a")
        with pytest.raises(WriteError, match="link or device appeared there meanwhile"):
            output.commit()
    assert stat.S_ISFIFO((tmp_path / "a").stat().st_mode)
    assert names(tmp_path) == ["a"]


def test_text_is_sent_into_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "got", "wb") as got:
        reading = subprocess.Popen(["cat", str(tmp_path / "fifo")], stdout=got)
    with reading, output_file(tmp_path / "fifo") as output:
        output.file.write(b"x" * 300_000)
        output.commit()
    assert (tmp_path / "got").read_bytes() == b"x" * 300_000
    assert names(tmp_path) == ["fifo", "got"]
    with output_file(tmp_path / "fifo") as output:  # nobody reads, and nothing is sent: no wait
        output.file.write(b"x")


def test_text_is_sent_into_devices_and_not_into_what_takes_none(short_path: Path) -> None:
    for name, path in special_files(short_path).items():
        before = path.stat()
        if "null" in name:
            with output_file(path) as output:
                output.file.write(b"abc")
                output.commit()
        elif "fifo" not in name:
            with pytest.raises(
                WriteError, match=r"it is a (socket|block device); name a plain file"
            ):
                output_file(path)
        assert os.path.samestat(path.stat(), before), name


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_text_for_standard_output_joins_what_is_there(tmp_path: Path, name: str) -> None:
    """Also where it is a plain file, which others are writing to."""
    script = f"""
from conv3d_cli.system.atomic import output_file
print("before", flush=True)
with output_file({name!r}) as output:
    output.file.write(b"text\\n")
    output.commit()
"""
    with open(tmp_path / "log", "ab") as log:
        subprocess.run([sys.executable, "-c", script], check=True, stdout=log)
    assert (tmp_path / "log").read_text() == "before\ntext\n"
    assert names(tmp_path) == ["log"]


def test_what_is_sent_to_standard_output_goes_on_where_it_is(tmp_path: Path) -> None:
    """Not from the start of the file, and what follows does not overwrite it."""
    script = """
from conv3d_cli.system.atomic import output_file
print("before")
with output_file("/dev/stdout") as output:
    output.file.write(b"sent\\n")
    output.commit()
print("after")
"""
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", script], check=True, stdout=log)
    assert (tmp_path / "log").read_text() == "before\nsent\nafter\n"


def test_what_is_sent_is_sent_once_and_files_wait_for_the_group(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (
        started(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reading,
        AtomicGroup() as group,
    ):
        for name in ("file", "fifo"):
            with output_file(tmp_path / name) as output:
                output.file.write(b"abc")
                output.commit()
        assert reading.stdout is not None
        assert reading.stdout.read() == b"abc"
        assert not (tmp_path / "file").exists()
        group.commit()
    assert names(tmp_path) == ["fifo", "file"]


def test_a_plain_output_is_atomic(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        output_file(tmp_path / "a")
    with output_file(tmp_path / "a", overwrite=True) as output:
        output.file.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
        output.commit()
    assert (tmp_path / "a").read_bytes() == b"new"
