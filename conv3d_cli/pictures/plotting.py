"""Picture files written by Matplotlib: their suffixes, and early checks that one can be written."""

from __future__ import annotations

import logging
from typing import Any

from conv3d_cli.errors import SpecError
from conv3d_cli.system.atomic import check_target, output_file, sent_to, suffix_of
from conv3d_cli.system.scratch import libraries_use, temporary_folder

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
        _import_matplotlib(path)
    except ImportError:
        raise SpecError(f"{option} needs Matplotlib: pip install 'conv3d[plot]'") from None


def _import_matplotlib(path: str) -> None:
    """Import Matplotlib, also where it cannot keep its settings and its list of fonts.

    It makes a folder for them then, warns of it, and removes it at the end: not in the current one.
    """
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with libraries_use(temporary_folder(path)):
            import matplotlib

            matplotlib.get_cachedir()
    finally:
        log.setLevel(before)


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
