"""Checks of input files before a format opens them. Standard library only."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from conv3d_cli.errors import FormatError
from conv3d_cli.system.room import TEXT_COPIES, require_room

TEXT_BLOCK = 1 << 20  # bytes of a text that are read before its size is looked at again


def check_input(path: str) -> int:
    """The size of an input file in bytes.

    Raises: FormatError if it is missing, a folder, a pipe, unreadable or empty.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # opening it would wait for a writer
            raise FormatError(
                f"cannot read {path}: it is a pipe; pass - to read .npy from standard input"
            )
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        why = dangling(path) or f"no such file{near_names(path)}"
        raise FormatError(f"cannot read {path}: {why}") from None
    except IsADirectoryError:
        raise FormatError(f"cannot read {path}: it is a folder; name a file in it") from None
    except FormatError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FormatError(f"cannot read {path}: {why_unreadable(error)}") from None
    if size == 0:
        raise FormatError(f"cannot read {path}: the file is empty; copy it again")
    return size


def regular_file(path: str, flags: int) -> int:
    """Open a regular file, as the `opener` of `open`; a pipe is not waited for, nor a device read.

    path : str      of a file that a folder or another file names, or that a stranger may replace
    Raises: FormatError for anything else than a file; IsADirectoryError; OSError.

    >>> open(os.devnull, "rb", opener=regular_file)
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.FormatError: cannot read /dev/null: it is a device; replace it by ...
    """
    number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        check_regular(mode, path)
    except BaseException:
        os.close(number)
        raise
    return number


def check_regular(mode: int, path: str) -> None:
    """Raise FormatError unless a file with this `st_mode` is a regular one."""
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device"
        if stat.S_ISSOCK(mode):
            kind = "a socket"
        raise FormatError(f"cannot read {path}: it is {kind}; replace it by a regular file")


def walk(
    folder: str | os.PathLike[str], follow_links: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Each folder in a folder, itself included, with the names of its files, both sorted.

    Python's own walks leave out, without a word, what they cannot list.
    Raises: OSError.

    >>> list(walk(os.path.join("no", "such", "folder")))
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] No such file or directory: 'no/such/folder'
    """

    def fail(error: OSError) -> None:
        raise error

    for where, folders, names in os.walk(folder, onerror=fail, followlinks=follow_links):
        folders.sort()
        yield where, sorted(names)


ANNEX = os.sep + os.path.join(".git", "annex", "objects", "")


def lies_beside(file: str, path: str) -> bool:
    """True if a file that another one names is in its folder or below, so that it may be followed.

    file, path : str        the named file, and the one that names it
    Links count by where they lead, so that a stranger's file reads nothing else. A link may also
    lead to git-annex's objects of the repository that it stands in, as DataLad makes them.
    """
    folders = (os.path.realpath(os.path.dirname(path)), os.path.dirname(os.path.realpath(path)))
    inner = tuple(os.path.join(folder, "") for folder in folders)
    real = os.path.realpath(file)
    if real.startswith(inner):
        return True
    place = os.path.join(os.path.realpath(os.path.dirname(file)), "")
    repository, annex, _ = real.partition(ANNEX)
    return bool(annex) and place.startswith(inner) and place.startswith(f"{repository}{os.sep}")


def read_text(path: str, what: str = "", cure: str = "") -> str:
    """The text of a UTF-8 file or pipe; a byte order mark before it is left out.

    what : str      what the file is, for messages, as in "config"; "" says nothing
    cure : str      what to do if it is no text
    Raises: FormatError if it is missing, a folder, unreadable, or not UTF-8 text.
    """
    name = f"{what} {path}" if what else path
    try:
        with open(path, "rb") as file:
            require_room(TEXT_COPIES * os.fstat(file.fileno()).st_size, "its text", path)
            content = bytearray()
            while block := file.read(TEXT_BLOCK):  # a pipe does not tell its size, nor a device
                content += block
                require_room(TEXT_COPIES * len(content), "its text", path)
        # spreadsheets put a byte order mark before UTF-8; newlines stay as they are
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        why = dangling(path) or f"no such file{near_names(path)}"
        raise FormatError(f"cannot read {name}: {why}") from None
    except IsADirectoryError:
        raise FormatError(f"cannot read {name}: it is a folder; name a file in it") from None
    except UnicodeDecodeError:
        raise FormatError(
            f"cannot read {name}: it is not UTF-8 text" + (f"; {cure}" if cure else "")
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FormatError(f"cannot read {name}: {why_unreadable(error)}") from None


def why_unreadable(error: Exception) -> str:
    """The reason why a file cannot be opened or read, in plain words, with a cure if there is one.

    >>> why_unreadable(NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    'a part of its path is a file, and no folder; correct the path'
    """
    number = getattr(error, "errno", None)
    known = {
        errno.EACCES: "permission denied; its owner can allow it, as by chmod +r",
        errno.EPERM: "permission denied; its owner can allow it, as by chmod +r",
        errno.ENOTDIR: "a part of its path is a file, and no folder; correct the path",
        errno.ENAMETOOLONG: "no file has a name as long as this; correct the path",
        errno.ELOOP: "it is a link that leads to itself; name the file",
        errno.EIO: "the disk or the network cannot deliver it; copy it again",
        errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
        errno.ENFILE: "too many files are open on this machine; end other programs",
        errno.ENOMEM: "out of memory",
        errno.ESTALE: "the network folder has changed; mount it again",
    }
    return known.get(number or 0) or getattr(error, "strerror", None) or str(error)


def dangling(path: str) -> str:
    """What to say of a link to a file that is not there; "" for all else.

    DataLad and git-annex leave such links where a file's content was not fetched.
    """
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    if ANNEX in f"{os.sep}{target}":
        return (
            "its content is not here, but in another clone of the repository: fetch it by git "
            f"annex get {path}, or datalad get {path}"
        )
    return f"it is a link to {target}, which does not exist; correct the link"


def near_names(path: str) -> str:
    """A hint for messages about a path that does not exist; "" if there is none.

    It names a similar file, as in "; did you mean scan.nii.gz?", or the folder that is missing.
    Without either, it says where the file was looked for.

    >>> near_names(os.path.join("no", "such", "folder", "x.npy"))
    "; there is no folder 'no'"
    """
    import difflib  # imported here because most runs need no suggestion

    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        above = [folder]
        while (parent := os.path.dirname(above[-1])) not in ("", above[-1]):
            above.append(parent)
        first = next(part for part in reversed(above) if not os.path.isdir(part))
        return f"; there is no folder {first!r}"
    try:
        entries = os.listdir(folder or ".")
    except OSError:
        return ""
    close = difflib.get_close_matches(name, entries, n=1, cutoff=0.8)
    if close:
        return f"; did you mean {os.path.join(folder, close[0])}?"
    if any(sign in name for sign in "*?["):  # the shell leaves a pattern that nothing matches
        return f"; nothing in {os.path.abspath(folder)} matches the pattern"
    return f" in {os.path.abspath(folder)}; correct the name, or change the folder"
