"""Which files a TIFF volume lies in, and which image of an OME-TIFF a file stands for.

The OME-XML of one file may describe many images (positions, wells of a plate), each with planes in this file or in others. A
file stands for the first image that has planes in it. tifffile is told of this image alone, so that its first series is the
image whose metadata are read, and of the image's files by their whole names: only those are opened that were looked at here.
Files named in OME-XML are taken from the folder of the file that was opened, never from elsewhere: a stranger's file would
otherwise put any TIFF of this machine into an output. Only tiff.py uses this module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.formats.tiff_ome import local_tag
from conv3d_cli.formats.tiff_pages import tiff_errors

NDTIFF_INDEX = "NDTiff.index"  # Micro-Manager's list of the planes in all files of a folder


@dataclass(frozen=True)
class OmeImage:
    """The image of an OME-TIFF that a file stands for.

    image, pixels : XML elements    its Image and the Pixels in it
    xml : str                       the OME-XML without the other images, for tifffile
    files : tuple                   the names of the files that its planes lie in
    described : int                 how many images have planes in TIFF files
    here : int                      how many of them have planes in the file that was opened
    """

    image: Any
    pixels: Any
    xml: str
    files: tuple[str, ...]
    described: int
    here: int


def find_image(text: str, path: str) -> OmeImage | None:
    """The image that a file with this OME-XML stands for: the first with planes in the file; in a file of descriptions alone,
    the first with planes. None if no image has any.

    Raises: ElementTree.ParseError; FormatError if its planes lie in files outside the folder, or without a name.
    """
    from xml.etree import ElementTree

    root = ElementTree.fromstring(text)
    found = []
    for image in root:
        for pixels in image if local_tag(image) == "Image" else ():
            parts = [part for part in pixels if local_tag(part) == "TiffData"]
            if local_tag(pixels) == "Pixels" and parts:
                found.append((image, pixels, parts))
                break
    if not found:
        return None
    own = (root.get("UUID") or "").strip().lower()
    here = [one for one in found if any(_lies_here(part, own, path) for part in one[2])]
    image, pixels, parts = (here or found)[0]
    files = _name_files(parts, own, path)
    for other in [part for part in root if local_tag(part) == "Image" and part is not image]:
        root.remove(other)
    xml = ElementTree.tostring(root, encoding="unicode")
    return OmeImage(image, pixels, xml, files, len(found), len(here))


def _uuid(part: Any) -> Any | None:
    """The element of a TiffData that says in which file its planes are."""
    return next((element for element in part if local_tag(element) == "UUID"), None)


def _lies_here(part: Any, own: str, path: str) -> bool:
    """Whether a TiffData's planes lie in the file itself. A UUID counts more than a name: files are renamed and copied.

    own : str       the UUID of the file, "" if it has none
    """
    uuid = _uuid(part)
    if uuid is None or (own and (uuid.text or "").strip().lower() == own):
        return True
    name = uuid.get("FileName") or ""
    if name.lower() == os.path.basename(path).lower():
        return True
    return any(os.path.realpath(file) == os.path.realpath(path) for file in _candidates(name, path))


def _name_files(parts: list[Any], own: str, path: str) -> tuple[str, ...]:
    """The files of TiffData elements; the elements are rewritten so that tifffile opens these files and no others.

    Raises: FormatError for a file without a name, outside the folder, or that is not a regular one.
    """
    files: dict[str, None] = {}
    known: dict[str, str] = {}  # UUID -> file: tifffile takes files with the same one for the same file
    for part in parts:
        uuid = _uuid(part)
        if uuid is None or _lies_here(part, own, path):
            if uuid is not None:
                part.remove(uuid)
            files[path] = None
            continue
        name = uuid.get("FileName")
        if not name:
            raise FormatError(
                f"cannot read {path}: its OME-XML names a file by its UUID alone ({(uuid.text or '').strip()}); "
                "give its UUID element a FileName"
            )
        candidates = _candidates(name, path)
        if not candidates:
            raise FormatError(
                f"cannot read {path}: its OME-XML names {name}, which lies outside the file's folder and is not followed; "
                "put the files of an OME-TIFF into one folder, and their names without a folder into the OME-XML"
            )
        file = next((candidate for candidate in candidates if os.path.exists(candidate)), candidates[0])
        if os.path.exists(file) and not os.path.isfile(file):
            raise FormatError(f"cannot read {path}: its OME-XML names {file}, which is no regular file")
        files[file] = None
        uuid.set("FileName", os.path.abspath(file))
        if not uuid.text or known.setdefault(uuid.text, file) != file:
            uuid.text = file
    return tuple(files)


def _candidates(name: str, path: str) -> list[str]:
    """Where a file that is named in the OME-XML of another may be: beside it, or beside what a link to it stands for.

    Empty if its name leads out of both folders. A link in the folder is followed, as one that is named by hand is.
    """
    found = []
    for folder in dict.fromkeys((os.path.dirname(path), os.path.dirname(os.path.realpath(path)))):
        inner = os.path.join(os.path.abspath(folder), "")
        whole = os.path.normpath(os.path.join(inner, name))
        if whole.startswith(inner):
            found.append(os.path.join(folder, whole[len(inner) :]))
    return found


def input_files(path: str) -> tuple[str, ...]:
    """The files that a volume is read from, the named one first; that one alone if it cannot be read, which opening it says."""
    others: tuple[str, ...] = ()
    try:
        with tiff_errors(path):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                if tiff.is_ome and not tiff.is_micromanager:
                    image = find_image(str(tiff.ome_metadata), path)
                    others = () if image is None else image.files
                elif tiff.is_micromanager:  # which knows its planes by lists of its own
                    series = tiff.series[0]
                    others = series_files(series, [page for page in series if page is not None], path)
    except Conv3DError:
        pass
    return tuple(dict.fromkeys((path, *others)))


def series_files(series: Any, pages: Sequence[Any], path: str) -> tuple[str, ...]:
    """The files that the pages of a series lie in, and the list that named them."""
    parents = {id(page.parent): page.parent for page in pages}.values()
    files = [path if parent is series.parent else _shown(parent.filehandle.path, path) for parent in parents]
    if series.kind == "ndtiff":
        files.append(os.path.join(os.path.dirname(path), NDTIFF_INDEX))
    return tuple(dict.fromkeys(files))


def check_beside(series: Any, pages: Sequence[Any], path: str) -> None:
    """Refuse a series some of whose pages lie in files outside the folder, where a list of Micro-Manager's names them.

    (The files of an OME-TIFF were looked at by the names that its XML gives them.)
    Raises: FormatError.
    """
    if series.kind == "ome":
        return
    inner = os.path.join(os.path.realpath(os.path.dirname(path)), "")
    for file in series_files(series, pages, path):
        if not os.path.realpath(file).startswith((inner, os.path.join(os.path.dirname(os.path.realpath(path)), ""))):
            raise FormatError(
                f"cannot read {path}: its list of planes names {file}, which lies outside the file's folder and is not followed"
            )


def _shown(file: str, path: str) -> str:
    """The name of a file as the user would give it: below the folder of the file that was named."""
    folder, real = os.path.dirname(path), os.path.join(os.path.realpath(os.path.dirname(path)), "")
    return os.path.join(folder, file[len(real) :]) if file.startswith(real) else file
