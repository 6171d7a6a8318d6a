"""Which image of an OME-TIFF a file stands for, and in which files its planes lie.

The OME-XML of one file may describe many images (positions, wells of a plate), each with planes in this file or in others. A
file stands for the first image that has planes in it. tifffile is told of this image alone, so that its first series is the
image whose metadata are read, and of the image's files by their whole names: only those are opened that were looked at here.
Files named in OME-XML are taken from the folder of the file that was opened, never from elsewhere: a stranger's file would
otherwise put any TIFF of this machine into an output.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import FormatError


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
    own = _own_uuid(root, [part for one in found for part in one[2]], path)
    if not own:
        root.attrib.pop("UUID", None)  # tifffile would take another's for this file's
    here = [one for one in found if any(_lies_here(part, own, path) for part in one[2])]
    image, pixels, parts = (here or found)[0]
    files = _name_files(parts, own, path)
    for other in [part for part in root if local_tag(part) == "Image" and part is not image]:
        root.remove(other)
    xml = ElementTree.tostring(root, encoding="unicode")
    return OmeImage(image, pixels, xml, files, len(found), len(here))


def _own_uuid(root: Any, parts: list[Any], path: str) -> str:
    """The UUID of the file itself, "" if it is not known: some writers put the same OME-XML, with one file's UUID, into all."""
    own = (root.get("UUID") or "").strip().lower()
    named = [
        uuid
        for uuid in map(_uuid, parts)
        if uuid is not None and _is_name_of(uuid.get("FileName") or "", path)
    ]
    return (
        own if not named or any((uuid.text or "").strip().lower() == own for uuid in named) else ""
    )


def _is_name_of(name: str, path: str) -> bool:
    return name.lower() == os.path.basename(path).lower()


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
    if _is_name_of(name, path):
        return True
    return any(os.path.realpath(file) == os.path.realpath(path) for file in _candidates(name, path))


def _name_files(parts: list[Any], own: str, path: str) -> tuple[str, ...]:
    """The files of TiffData elements; the elements are rewritten so that tifffile opens these files and no others.

    Raises: FormatError for a file without a name, outside the folder, or that is not a regular one.
    """
    files: dict[str, None] = {}
    known: dict[
        str, str
    ] = {}  # UUID -> file: tifffile takes files with the same one for the same file
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
        file = next(
            (candidate for candidate in candidates if os.path.exists(candidate)), candidates[0]
        )
        if os.path.exists(file) and not os.path.isfile(file):
            raise FormatError(
                f"cannot read {path}: its OME-XML names {file}, which is no regular file"
            )
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


def promised_planes(text: str) -> float:
    """Planes that an OME description speaks of: tifffile makes room for them before it looks for them."""
    from xml.etree import ElementTree

    most = 0.0
    for element in ElementTree.fromstring(text).iter():
        tag = local_tag(element)
        if tag == "Pixels":
            most = max(most, math.prod(int(element.get(f"Size{a}", 1)) for a in "ZCT"))
        elif tag == "TiffData":
            most = max(most, *(int(element.get(key, 0)) for key in ("PlaneCount", "NumPlanes")))
        elif tag.startswith("ModuloAlong") and "Start" in element.attrib:
            steps = (float(element.get("End", 0)) - float(element.get("Start", 0))) / float(
                element.get("Step", 1)
            )
            most = max(most, abs(steps))
    return most


def local_tag(element: Any) -> str:
    """The name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]
