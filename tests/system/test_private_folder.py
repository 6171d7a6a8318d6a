"""Folders that compiled code is read from: nobody but the user and root can have put anything there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conv3d_cli.system import private_folder
from conv3d_cli.system.private_folder import PrivateFolder

pytestmark = pytest.mark.skipif(not private_folder.POSIX, reason="users and permissions of POSIX")
two_users = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as two users"
)
ALICE, BOB = 12001, 12002


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder in /tmp whose name has no links in it, which everybody may enter."""
    with tempfile.TemporaryDirectory(dir=os.path.realpath(tempfile.gettempdir())) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def is_refused(path: Path, make: bool = False) -> str:
    """Why a folder is not opened; "" if it is."""
    try:
        PrivateFolder(path, make).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def test_what_is_written_is_read_and_private(top: Path) -> None:
    with PrivateFolder(top / "a" / "b", make=True) as folder:
        folder.write("x", b"one")
        folder.write("x", b"two")
        folder.write("x", b"three", replace=False)
        folder.write("y", b"new", replace=False)
        assert (folder.read("x"), folder.read("y"), folder.read("z")) == (b"two", b"new", None)
        assert (folder.exists("x"), folder.exists("z")) == (True, False)
        folder.check_writable()
    assert sorted(path.name for path in (top / "a" / "b").iterdir()) == ["x", "y"]
    for path, mode in (
        (top / "a", 0o700),
        (top / "a" / "b", 0o700),
        (top / "a" / "b" / "x", 0o600),
    ):
        assert path.stat().st_mode & 0o777 == mode


def test_missing_folders(top: Path) -> None:
    for path in (top / "none", top / "none" / "inner"):
        with pytest.raises(FileNotFoundError):
            PrivateFolder(path)
    (top / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        PrivateFolder(top / "file" / "inner", make=True)
    with pytest.raises(FileNotFoundError):
        PrivateFolder(Path("/proc/nothing"), make=True)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o770, 0o722])
@pytest.mark.parametrize("which", ["a", "a/b", "a/b/c"])
def test_a_folder_on_the_way_that_others_may_write(top: Path, which: str, mode: int) -> None:
    (top / "a" / "b" / "c").mkdir(parents=True)
    assert not is_refused(top / "a" / "b" / "c")
    (top / which).chmod(mode)
    assert is_refused(top / "a" / "b" / "c") == f"{top / which} may be written by others"


def test_under_a_sticky_folder(top: Path) -> None:
    """As /tmp: nobody moves what is another's. Yet files that lie in it themselves may be anybody's."""
    (top / "a" / "b").mkdir(parents=True)
    (top / "a").chmod(0o1777)
    assert not is_refused(top / "a" / "b")
    assert "may be written by others" in is_refused(top / "a")


@two_users
@pytest.mark.parametrize("which", ["a", "a/b", "a/b/c"])
def test_a_folder_on_the_way_that_is_anothers(top: Path, which: str) -> None:
    (top / "a" / "b" / "c").mkdir(parents=True)
    os.chown(top / which, BOB, BOB)
    assert is_refused(top / "a" / "b" / "c") == f"{top / which} is another user's"


def test_own_links_are_followed(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes are often links to other disks: relative, absolute, with .., one after another."""
    (top / "disk" / "home" / "cache").mkdir(parents=True)
    (top / "home").symlink_to("disk/home")
    (top / "again").symlink_to(top / "home")
    (top / "disk" / "back").symlink_to("../disk/../again/cache")
    (top / "home" / "cache" / "x").write_bytes(b"here")
    (top / "home" / "cache" / "x").chmod(0o600)
    for path in (top / "home" / "cache", top / "again" / "cache", top / "disk" / "back"):
        with PrivateFolder(path) as folder:
            assert folder.read("x") == b"here"
    monkeypatch.chdir(top / "disk")
    with PrivateFolder("home/cache") as folder:
        assert folder.read("x") == b"here"
    (top / "disk").chmod(0o777)
    # where the link leads to
    assert "may be written by others" in is_refused(top / "home" / "cache")
    (top / "loop").symlink_to("loop")
    assert is_refused(top / "loop" / "cache")


@two_users
@pytest.mark.parametrize("target", ["/usr", "{top}/mine"])
def test_a_link_that_is_anothers(top: Path, target: str) -> None:
    """Even to a folder that is trusted itself: the user may have unpacked a stranger's archive there."""
    (top / "mine").mkdir()
    (top / "shared").mkdir()
    (top / "shared").chmod(0o1777)
    (top / "shared" / "link").symlink_to(target.format(top=top))
    assert not is_refused(top / "shared" / "link")
    os.chown(top / "shared" / "link", BOB, BOB, follow_symlinks=False)
    assert (
        is_refused(top / "shared" / "link")
        == f"the link {top / 'shared' / 'link'} is another user's"
    )


def test_files_that_are_not_read(top: Path) -> None:
    """Links, FIFOs (without waiting for their writer), folders, what others may write."""
    (top / "good").write_bytes(b"good")
    (top / "good").chmod(0o644)
    (top / "link").symlink_to("good")
    os.mkfifo(top / "fifo", 0o600)
    (top / "folder").mkdir()
    with PrivateFolder(top) as folder:
        assert folder.read("good") == b"good"
        assert folder.read("good", secret=True) is None
        assert [folder.read(name) for name in ("link", "fifo", "folder")] == [None, None, None]
        for mode in (0o666, 0o664, 0o646):
            (top / "good").chmod(mode)
            assert folder.read("good") is None
        (top / "good").chmod(0o600)
        assert folder.read("good", secret=True) == b"good"
        if os.geteuid() == 0:
            os.chown(top / "good", BOB, BOB)
            assert folder.read("good") is None


def test_what_was_looked_at_is_what_is_read(top: Path) -> None:
    """Another folder that takes its name between the look and the reading is not read."""
    for name in ("mine", "evil"):
        (top / name).mkdir()
        (top / name / "x").write_bytes(name.encode())
        (top / name / "x").chmod(0o600)
    with PrivateFolder(top / "mine") as folder:
        (top / "mine").rename(top / "aside")
        (top / "evil").rename(top / "mine")
        assert folder.read("x") == b"mine"


@two_users
def test_another_user_with_root_above(top: Path) -> None:
    """Alice uses a folder of hers below root's; root's own folders are hers to read; Bob's are not, nor hers Bob's."""
    for name, owner in (("alice", ALICE), ("bob", BOB), ("root", 0)):
        (top / name).mkdir()
        (top / name / "x").write_bytes(name.encode())
        for path in (top / name, top / name / "x"):
            os.chown(path, owner, owner)
    script = """
import os, sys
from pathlib import Path
from conv3d_cli.system.private_folder import PrivateFolder
os.setgid(12001); os.setuid(12001)
for name in ("alice", "bob", "root"):
    try:
        with PrivateFolder(Path(sys.argv[1]) / name) as folder:
            print(folder.read("x"))
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, top], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["b'alice'", f"{top / 'bob'} is another user's", "b'root'"]


def test_roots_own_group_is_no_exception() -> None:
    """Whom a group that only the user is in may be trusted to is known of users who have one, by its name."""
    assert not private_folder._is_own_group(0)
    assert not private_folder._is_own_group(2**31 - 7)
