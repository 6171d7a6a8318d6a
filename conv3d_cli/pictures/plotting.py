"""Files of Matplotlib: what names they have, that the library is there, and that they appear whole."""

from __future__ import annotations

from typing import Any

from conv3d_cli.errors import SpecError
from conv3d_cli.system.atomic import AtomicFile, check_target, suffix_of

# of each kind of file, what would hold a time or a version
SUFFIXES: dict[str, dict[str, None]] = {
    ".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}, ".pdf": {"CreationDate": None, "Producer": None},
}  # fmt: skip


def check_plotting(path: str, option: str, overwrite: bool) -> None:
    """Refuse a file that could not be drawn, before any work.

    option : str        by which it was asked for
    Raises: SpecError if Matplotlib is missing or the name ends in no format of pictures; OutputExistsError, WriteError.
    """
    if suffix_of(path) not in SUFFIXES:
        raise SpecError(f"a picture is written as {', '.join(SUFFIXES)}, received '{path}'")
    check_target(path, overwrite)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SpecError(f"{option} needs Matplotlib: pip install 'conv3d[plot]'") from None


def save_figure(figure: Any, path: str, overwrite: bool) -> None:
    """Write a figure; its name chooses the format, the same figure gives the same bytes. Raises: WriteError."""
    import matplotlib

    suffix = suffix_of(path)
    with matplotlib.rc_context({"svg.hashsalt": "conv3d"}), AtomicFile(path, overwrite) as output:
        figure.savefig(output.file, format=suffix[1:], metadata=SUFFIXES[suffix])
        output.commit()
