"""The files that a TIFF volume is read from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.formats.tiff import is_stack_name
from conv3d_cli.formats.tiff.images import companion_of, find_image, first_file, full_text
from conv3d_cli.formats.tiff.series import open_series, tiff_errors
from conv3d_cli.formats.tiff.stack import stack_files
from conv3d_cli.system.inputs import check_input, lies_beside
from conv3d_cli.system.parts import split_part

NDTIFF_INDEX = "NDTiff.index"  # Micro-Manager's list of the planes in all files of a folder


def input_files(name: str) -> tuple[str, ...]:
    """The files that a volume is read from, the named one first.

    Only the named one if it cannot be read: opening it reports the error.

    name : str      the file, or `FILE::PART`
    """
    if is_stack_name(name):
        return tuple(stack_files(name))
    path, part = split_part(name)
    others: tuple[str, ...] = ()
    try:
        check_input(path)  # opening a pipe would wait for a writer
        with tiff_errors(path):
            import tifffile

            first, text = first_file(path, part)
            with tifffile.TiffFile(first) as tiff:
                listed = tiff.is_micromanager  # Micro-Manager lists planes in a file of its own
                own = str(tiff.ome_metadata) if tiff.is_ome else ""
                if text is None and own and not listed:
                    companion = companion_of(own, first)
                    others = () if companion is None else (companion,)
                    text = full_text(own, first)
                if text is not None:
                    image = find_image(text, first, part, implied=True)
                    others = (*others, first, *(() if image is None else image.files))
        if listed:
            found = open_series(name, axes_given=True)
            with found.tiff:
                others = series_files(found.series, found.pages, path)
    except Conv3DError:
        pass
    return tuple(dict.fromkeys((path, *others)))


def series_files(series: Any, pages: Sequence[Any], path: str) -> tuple[str, ...]:
    """The files of a series' pages, and of the list that named them."""
    parents = {id(page.parent): page.parent for page in pages}.values()
    files = [
        path if parent is series.parent else _user_path(parent.filehandle.path, path)
        for parent in parents
    ]
    if series.kind == "ndtiff":
        files.append(os.path.join(os.path.dirname(path), NDTIFF_INDEX))
    return tuple(dict.fromkeys(files))


def check_beside(series: Any, pages: Sequence[Any], path: str) -> None:
    """Refuse pages outside the folder of the file, as a list of Micro-Manager may name them.

    (For an OME-TIFF, `find_image` has checked the names that the XML gives.)
    Raises: FormatError.
    """
    if series.kind == "ome":
        return
    for file in series_files(series, pages, path):
        if not lies_beside(file, path):
            raise FormatError(
                f"cannot read {path}: its list of planes names {file}, "
                "which is outside the file's folder and is not followed"
            )


def _user_path(file: str, path: str) -> str:
    """A file's path as the user would write it: with the folder of `path`, if it is in it."""
    folder, real = os.path.dirname(path), os.path.join(os.path.realpath(os.path.dirname(path)), "")
    return os.path.join(folder, file[len(real) :]) if file.startswith(real) else file
