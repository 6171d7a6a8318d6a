"""Picture files written by Matplotlib: their suffixes, and early checks that one can be written."""

from __future__ import annotations

from typing import Any

from conv3d_cli.errors import SpecError
from conv3d_cli.system.atomic import check_target, output_file, sent_to, suffix_of

# suffix -> metadata to leave out, since a time or a version would change the bytes
SUFFIXES: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Producer": None},
}


def check_plotting(path: str, option: str, overwrite: bool) -> None:
    """Refuse a picture that cannot be written, before any work.

    option : str        that asks for it, for messages
    overwrite : bool    an existing file may be replaced
    Raises: SpecError for an unknown suffix and without Matplotlib; OutputExistsError, WriteError.
    """
    if _format_of(path) not in SUFFIXES:
        raise SpecError(f"a picture is written as {', '.join(SUFFIXES)}, received '{path}'")
    check_target(path, overwrite)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SpecError(f"{option} needs Matplotlib: pip install 'conv3d[plot]'") from None


def _format_of(path: str) -> str:
    """The suffix of a picture; .png for a device or a FIFO that has none of them."""
    suffix = suffix_of(path)
    return ".png" if suffix not in SUFFIXES and sent_to(path) else suffix


def save_figure(figure: Any, path: str, overwrite: bool) -> None:
    """Write a figure of Matplotlib; equal figures give equal bytes.

    path : its suffix chooses the format, as in `SUFFIXES`
    overwrite : bool    an existing file may be replaced
    Raises: OutputExistsError, WriteError.
    """
    import matplotlib

    suffix = _format_of(path)
    with matplotlib.rc_context({"svg.hashsalt": "conv3d"}), output_file(path, overwrite) as output:
        figure.savefig(output.file, format=suffix[1:], metadata=SUFFIXES[suffix])
        output.commit()
