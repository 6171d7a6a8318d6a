"""Input files before they are opened by anything that knows their format. Standard library only."""

from __future__ import annotations

import os
import stat

from conv3d_cli.errors import FormatError


def check_input(path: str) -> int:
    """Size of an input file in bytes.

    Raises: FormatError if it is missing, a folder, a pipe, unreadable or empty.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # to open it would wait for a writer
            raise FormatError(
                f"cannot read {path}: it is a pipe; pass - to read .npy from standard input"
            )
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise FormatError(f"cannot read {path}: no such file{near_names(path)}") from None
    except IsADirectoryError:
        raise FormatError(f"cannot read {path}: it is a folder; name a file in it") from None
    except FormatError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FormatError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if size == 0:
        raise FormatError(f"cannot read {path}: the file is empty")
    return size


def near_names(path: str) -> str:
    """What a path to nothing may have meant, for messages: "; did you mean scan.nii.gz?", or the folder that is missing.

    >>> near_names(os.path.join("no", "such", "folder", "x.npy"))
    "; there is no folder 'no'"
    """
    import difflib  # late, since most runs name nothing wrongly

    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        above = [folder]
        while (parent := os.path.dirname(above[-1])) not in ("", above[-1]):
            above.append(parent)
        first = next(part for part in reversed(above) if not os.path.isdir(part))
        return f"; there is no folder {first!r}"
    try:
        beside = os.listdir(folder or ".")
    except OSError:
        return ""
    close = difflib.get_close_matches(name, beside, n=1, cutoff=0.8)
    return f"; did you mean {os.path.join(folder, close[0])}?" if close else ""
