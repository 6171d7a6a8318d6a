"""What Windows and macOS do otherwise, one call after another; `cli/test_windows.py` runs commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conv3d_cli.batch.names import check_outputs, output_name, whole_store
from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.formats.zarr.names import ancestors, archive_of, claims
from conv3d_cli.system import portable
from conv3d_cli.system.machine import usable_memory
from conv3d_cli.system.portable import byte_at, flush_to_disk, ignores_case, true_path, write_at


@pytest.fixture(params=["Unix", "Windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Calls of either system."""
    if request.param == "Windows":
        for name in ("pwrite", "pread", "sysconf"):
            monkeypatch.delattr(os, name)
        monkeypatch.setattr(portable, "POSIX", False)
    return str(request.param)


@pytest.fixture
def backslash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sep", "\\")


def test_short_writes_are_continued(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may write fewer bytes than it was given."""
    name = "pwrite" if system == "Unix" else "write"
    usual = getattr(os, name)
    monkeypatch.setattr(os, name, lambda number, data, *at: usual(number, data[:7], *at))
    with open(tmp_path / "x", "w+b", buffering=0) as file:
        file.seek(3)
        write_at(file, memoryview(bytes(range(100))), 5)
        assert file.tell() == 3
        file.seek(0)
        assert file.read() == bytes(5) + bytes(range(100))


def test_one_byte_is_read_where_it_is(system: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with open(tmp_path / "x", "a+b", buffering=0) as file:
        file.seek(1)
        assert [byte_at(file, place) for place in range(4)] == [b"a", b"b", b"c", b""]
        assert file.tell() == 1


def test_files_and_folders_are_flushed(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    flush = os.fsync

    def call(number: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{number}"))
        flush(number)

    monkeypatch.setattr(os, "fsync", call)
    (tmp_path / "x").write_bytes(b"abc")
    flush_to_disk(str(tmp_path / "x"))
    flush_to_disk(str(tmp_path), folder=True)
    folders = [str(tmp_path)] if system == "Unix" else []  # Windows opens none
    assert flushed == [str(tmp_path / "x"), *folders]
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_windows_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    class Kernel:
        @staticmethod
        def GlobalMemoryStatusEx(reference: Any) -> int:
            status = reference._obj
            assert status.length == ctypes.sizeof(status) == 64
            status.total = 3 << 30
            return 1

    class Libraries:
        kernel32 = Kernel

    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr("conv3d_cli.system.machine._cgroup_memory", lambda *_: None)
    assert usable_memory() == 4 << 30  # no system call: a small machine
    monkeypatch.setattr(ctypes, "windll", Libraries, raising=False)
    assert usable_memory() == 3 << 30


# --------------------------------------------------------------------------------------------------
# Backslashes


@pytest.mark.usefixtures("backslash")
def test_a_backslash_parts_names() -> None:
    assert whole_store("C:\\a\\x.ome.zarr\\1") == "C:/a/x.ome.zarr"
    assert list(ancestors("a.zarr\\s\\1")) == [("a.zarr/s", "1"), ("a.zarr", "s/1")]
    assert claims("a.zarr\\1")
    assert archive_of("x\\a.ozx\\1") == ("x/a.ozx", "1")


@pytest.mark.usefixtures("backslash")
@pytest.mark.parametrize("text", ["a\\b", "a/b"])
def test_a_suffix_holds_no_folder(text: str) -> None:
    with pytest.raises(SpecError, match="part of a file name"):
        output_name("x.npy", "out", suffix=text)


def test_on_unix_a_backslash_is_a_letter() -> None:
    assert whole_store("a\\x.zarr/1") == "a\\x.zarr"
    assert output_name("x.npy", "out", suffix="a\\b") == "out/xa\\b.npy"


# --------------------------------------------------------------------------------------------------
# Names that differ in case


def test_this_system_tells_whether_it_ignores_case(tmp_path: Path) -> None:
    folder = tmp_path / "Abc"
    folder.mkdir()
    assert ignores_case(str(folder)) == (tmp_path / "aBC").is_dir()


def test_a_folder_whose_other_spelling_is_the_same_ignores_case(tmp_path: Path) -> None:
    """Both spellings lead to one folder there; a link makes one here."""
    (tmp_path / "Abc").mkdir()
    (tmp_path / "aBC").symlink_to("Abc")
    assert ignores_case(str(tmp_path / "Abc"))
    one, other = (true_path(tmp_path / "Abc" / name) for name in ("NEW/É.npy", "new/e\u0301.npy"))
    assert one == other
    assert true_path(tmp_path / "Abc" / "new" / "e.npy") != one


def test_case_counts_where_it_does(tmp_path: Path) -> None:
    (tmp_path / "Abc").mkdir()
    assert not ignores_case(str(tmp_path / "Abc"))
    assert true_path(tmp_path / "Abc" / "X") == os.path.realpath(tmp_path / "Abc" / "X")


@pytest.fixture
def ignoring(tmp_path: Path) -> Path:
    (tmp_path / "Abc").mkdir()
    (tmp_path / "aBC").symlink_to("Abc")
    return tmp_path / "Abc"


def test_two_outputs_may_not_differ_in_case_alone(ignoring: Path) -> None:
    outputs = [str(ignoring / name) for name in ("S1.nii", "s1.nii")]
    with pytest.raises(SpecError, match="two inputs would write"):
        check_outputs(["a/S1.nii", "b/s1.nii"], outputs)


def test_an_output_may_not_replace_an_input_of_another_case(ignoring: Path) -> None:
    (ignoring / "a.npy").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="would replace the input"):
        check_outputs(
            [str(ignoring / "a.npy"), "b.npy"],
            [str(ignoring / "x.npy"), str(ignoring / "A.npy")],
        )
