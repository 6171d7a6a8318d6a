"""Zip files are read as zipfile reads them, and the list of their files fits into memory."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path

import pytest

from conv3d_cli.errors import FormatError, MemoryLimitError
from conv3d_cli.kernels import weights
from conv3d_cli.system import zips
from conv3d_cli.system.room import READING_BYTES, ceiling_of_memory
from conv3d_cli.system.zips import ZipReader


def listed(path: Path, count: int, comment: bytes = b"") -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number:04}", b"content")
        archive.comment = comment
    return str(path)


@pytest.mark.parametrize("comment", [b"", b"a comment, behind which no size stands"])
@pytest.mark.parametrize("zip64", [False, True])
def test_a_list_that_does_not_fit(
    comment: bytes, zip64: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry has 46 bytes and the name's."""
    monkeypatch.setattr(zips, "HARMLESS_DIRECTORY", 1000)
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    path, room = listed(tmp_path / "a.zip", 4000, comment), 4000 * 50 * zips.DIRECTORY_COPIES
    assert (b"PK\x06\x06" in Path(path).read_bytes()) == zip64
    monkeypatch.setattr("conv3d_cli.system.room.PROCESS_BYTES", 0)
    with ceiling_of_memory(READING_BYTES + room), ZipReader(path) as archive:
        assert archive.namelist() == [f"{number:04}" for number in range(4000)]
        assert archive.read("0123") == b"content"
        assert archive.comment == comment
    with (
        ceiling_of_memory(READING_BYTES + room - 1),
        pytest.raises(MemoryLimitError, match=r"a\.zip: the list of its files needs"),
    ):
        ZipReader(path)


def test_a_size_that_lies_is_no_larger_than_the_file(tmp_path: Path) -> None:
    path = Path(listed(tmp_path / "a.zip", 2))
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 12 : end + 16] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile):
        ZipReader(str(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(FormatError, match="it is a pipe; replace it by a regular file"):
        ZipReader(str(tmp_path / "a.zip"))


def test_members_are_read_by_threads_and_the_file_is_closed(tmp_path: Path) -> None:
    archive = ZipReader(listed(tmp_path / "a.zip", 50))
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(archive.read(name)))
        for name in archive.namelist()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"content"] * 50
    file = archive.fp
    archive.close()
    assert file is not None
    assert file.closed


def test_a_command_looks_into_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it is the same."""
    opened: list[str] = []

    class Counted(ZipReader):
        def __init__(self, path: str) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(weights, "ZipReader", Counted)
    path = listed(tmp_path / "net", 2)
    for _ in range(3):
        assert weights.find_weights_file(path) is None
    assert opened == [path]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"")
    for _ in range(3):
        found = weights.find_weights_file(path)
        assert found is not None
        assert "PyTorch" in found.name
    assert opened == [path] * 2
    Path(path).write_bytes(b"PK\3\4 damaged")
    for _ in range(2):
        assert weights.find_weights_file(path) is None
    assert opened == [path] * 4  # what went wrong may have passed
