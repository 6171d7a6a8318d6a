"""Which image of an OME-TIFF a file name selects, and the files of its planes.

The OME-XML of one file may describe many images (positions, wells of a plate), each with planes in
this file or in others. A file name selects the first image that has planes in the file, and
`FILE::1` or `FILE::NAME` any image. tifffile gets an XML with this image alone, so that its first
series is the image whose metadata are read, and with absolute file names, so that it opens only
files that were checked here. Files named in the OME-XML must be in the folder of the file that was
opened: otherwise a stranger's file could copy any TIFF of this machine into an output.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.xml import PIECE, check_pieces, parse_xml

COMPANION = ".companion.ome"  # suffix of files of OME-XML that describe TIFF files
MAX_LISTED = 12  # images that a message names


@dataclass(frozen=True)
class OmeImage:
    """The image of an OME-TIFF that a file name selects.

    image, pixels : XML elements    Image, and the Pixels in it
    xml : str                       the OME-XML without the other images, for tifffile
    files : tuple                   names of the files with its planes
    listed : list                   all images with planes in TIFF files
    number : int                    the place of the image among them, from 0
    here : int                      number of images with planes in the file that was opened
    """

    image: Any
    pixels: Any
    xml: str
    files: tuple[str, ...]
    listed: list[Listed]
    number: int
    here: int


@dataclass(frozen=True)
class Listed:
    """One of the images or series of a file, which a user can select.

    name : str              "" for one without a name
    shape : tuple of int
    key : str               a second name that selects it: OME's ID
    """

    name: str
    shape: tuple[int, ...]
    key: str = ""


def choose(listed: Sequence[Listed], part: str, path: str) -> int:
    """The place of the image that `path::part` names: by its number from 0, its name, or its key.

    Raises: FormatError if there is none, or if several have the name.
    """
    if part.isascii() and part.isdigit() and int(part) < len(listed):
        return int(part)
    named = [k for k, one in enumerate(listed) if part in (one.name, one.key)]
    if len(named) == 1:
        return named[0]
    if named:
        raise FormatError(
            f"cannot read {path}::{part}: {len(named)} of its images have this name; "
            f"say its number, {path}::{named[0]} for the first"
        )
    raise FormatError(
        f"cannot read {path}::{part}: it has no such image; it has {list_images(listed)}"
    )


def list_images(listed: Sequence[Listed]) -> str:
    """The images of a file for messages.

    >>> list_images([Listed("nuclei", (4, 12, 14)), Listed("", (3, 4))])
    '0 (nuclei, 4 x 12 x 14), 1 (3 x 4)'
    """
    words = [
        f"{k} ({one.name + ', ' if one.name else ''}{' x '.join(map(str, one.shape))})"
        for k, one in enumerate(listed)
    ]
    return ", ".join(words if len(words) <= MAX_LISTED else [*words[:MAX_LISTED], "..."])


def find_image(text: str, path: str, part: str = "", implied: bool = False) -> OmeImage | None:
    """The image that a file name selects; None if no image has planes.

    It is the first image with planes in the file, or the first with planes anywhere if the file
    holds only descriptions.

    text : str      the file's OME-XML
    part : str      the number or name of another image; see `choose`
    implied : bool  a single image that says nothing of its planes has all pages of the file
    Raises: ElementTree.ParseError; FormatError if planes are in files outside the folder, or in
        files without a name, or if there is no image `part`; MemoryLimitError.
    """
    from xml.etree import ElementTree

    root = parse_xml(text, path)
    if implied:
        _imply_pages(root)
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
        root.attrib.pop("UUID", None)  # another file's, which tifffile would take for this file's
    here = [one for one in found if any(_is_in_file(part, own, path) for part in one[2])]
    listed = [_listed(*one[:2]) for one in found]
    number = choose(listed, part, path) if part else found.index((here or found)[0])
    image, pixels, parts = found[number]
    files = _name_files(parts, own, path)
    for other in [part for part in root if local_tag(part) == "Image" and part is not image]:
        root.remove(other)
    xml = ElementTree.tostring(root, encoding="unicode")
    return OmeImage(image, pixels, xml, files, listed, number, len(here))


def _imply_pages(root: Any) -> None:
    """Give a single image that says nothing of its planes all pages of the file, in order."""
    from xml.etree import ElementTree

    every = [e for e in root.iter() if local_tag(e) == "Pixels"]
    if len(every) == 1 and not {"TiffData", "BinData", "MetadataOnly"} & set(
        map(local_tag, every[0])
    ):
        space = str(every[0].tag).rpartition("}")[0]
        ElementTree.SubElement(every[0], f"{space}}}TiffData" if space else "TiffData")


def _listed(image: Any, pixels: Any) -> Listed:
    """An image in the list for the user; its shape without sizes of 1, as tifffile gives it."""
    order = reversed(pixels.get("DimensionOrder", "XYZCT"))
    sizes = [int(pixels.get(f"Size{a}", 1)) for a in order if a in "XYZCT"]
    shape = (*(n for n in sizes[:-2] if n > 1), *sizes[-2:])
    return Listed(image.get("Name") or "", shape, image.get("ID") or "")


def _own_uuid(root: Any, parts: list[Any], path: str) -> str:
    """The UUID of the file itself; "" if unknown.

    Some writers put the same OME-XML, with the UUID of one file, into all files.
    """
    own = (root.get("UUID") or "").strip().lower()
    named = [
        uuid
        for uuid in map(_uuid, parts)
        if uuid is not None and _is_name_of(uuid.get("FileName") or "", path)
    ]
    known = not named or any((uuid.text or "").strip().lower() == own for uuid in named)
    return own if known else ""


def _is_name_of(name: str, path: str) -> bool:
    return name.lower() == os.path.basename(path).lower()


def _uuid(part: Any) -> Any | None:
    """The element of a TiffData that names the file of its planes."""
    return next((element for element in part if local_tag(element) == "UUID"), None)


def _is_in_file(part: Any, own: str, path: str) -> bool:
    """True if the planes of a TiffData are in the file itself.

    A UUID counts more than a name, since files are renamed and copied.
    own : str       the UUID of the file; "" if unknown
    """
    uuid = _uuid(part)
    if uuid is None or (own and (uuid.text or "").strip().lower() == own):
        return True
    name = uuid.get("FileName") or ""
    if _is_name_of(name, path):
        return True
    real = os.path.realpath(path)
    return any(os.path.realpath(file) == real for file in _candidate_paths(name, path))


def _name_files(parts: list[Any], own: str, path: str) -> tuple[str, ...]:
    """The files of TiffData elements. Rewrites the elements, so that tifffile opens only these.

    Raises: FormatError for a file without a name, outside the folder, or not regular.
    """
    files: dict[str, None] = {}
    # UUID -> file: for tifffile, files with the same UUID are the same file
    known: dict[str, str] = {}
    for part in parts:
        uuid = _uuid(part)
        if uuid is None or _is_in_file(part, own, path):
            if uuid is not None:
                part.remove(uuid)
            files[path] = None
            continue
        name = uuid.get("FileName")
        if not name:
            raise FormatError(
                f"cannot read {path}: its OME-XML names a file by its UUID alone "
                f"({(uuid.text or '').strip()}); give its UUID element a FileName"
            )
        candidates = _candidate_paths(name, path)
        if not candidates:
            raise FormatError(
                f"cannot read {path}: its OME-XML names {name}, "
                "which is outside the file's folder and is not followed; put the files of an "
                "OME-TIFF into one folder, and their names without a folder into the OME-XML"
            )
        file = next(filter(os.path.exists, candidates), candidates[0])
        if os.path.exists(file) and not os.path.isfile(file):
            raise FormatError(
                f"cannot read {path}: its OME-XML names {file}, which is not a regular file"
            )
        files[file] = None
        uuid.set("FileName", os.path.abspath(file))
        if not uuid.text or known.setdefault(uuid.text, file) != file:
            uuid.text = file
    return tuple(files)


def _candidate_paths(name: str, path: str) -> list[str]:
    """Possible paths of a file that the OME-XML of `path` names.

    It is in the folder of `path`, or, if `path` is a link, in that of the link's target. The list
    is empty if the name leads out of both. A link inside the folder is followed, as one that the
    user names is.
    """
    found = []
    for folder in dict.fromkeys((os.path.dirname(path), os.path.dirname(os.path.realpath(path)))):
        inner = os.path.join(os.path.abspath(folder), "")
        whole = os.path.normpath(os.path.join(inner, name))
        if whole.startswith(inner):
            found.append(os.path.join(folder, whole[len(inner) :]))
    return found


def companion_of(text: str, path: str) -> str | None:
    """The file with the descriptions, if the OME-XML of a file is only a reference to one.

    None if it is no reference, or the file is not there.
    Raises: ElementTree.ParseError; FormatError if it is outside the folder; MemoryLimitError.
    """
    part = next((e for e in parse_xml(text, path) if local_tag(e) == "BinaryOnly"), None)
    name = None if part is None else part.get("MetadataFile")
    if not name:
        return None
    candidates = _candidate_paths(name, path)
    if not candidates:
        raise FormatError(
            f"cannot read {path}: its OME-XML names {name}, which is outside the file's folder "
            "and is not followed"
        )
    return next(filter(os.path.isfile, candidates), None)


def full_text(text: str, path: str) -> str:
    """The OME-XML that describes a file: its own, or that of the file that it refers to."""
    companion = companion_of(text, path)
    if companion is None:
        return text
    if companion.lower().endswith(COMPANION):
        return _read_xml(companion)
    import tifffile

    with tifffile.TiffFile(companion) as tiff:  # a TIFF file with the descriptions of all
        return str(tiff.ome_metadata or text)


def first_file(path: str, part: str) -> tuple[str, str | None]:
    """The TIFF file to open first for a name, and the OME-XML in place of its own; or None.

    path : str      a TIFF file, or a file of OME-XML alone (.companion.ome)
    part : str      see `find_image`
    Raises: as `find_image`; FormatError if there is no TIFF file.
    """
    if not path.lower().endswith(COMPANION):
        return path, None
    text = _read_xml(path)
    image = find_image(text, path, part)
    if image is None:
        raise FormatError(f"cannot read {path}: it describes no planes in TIFF files")
    found = next((file for file in image.files if os.path.isfile(file) and file != path), None)
    if found is None:
        raise FormatError(
            f"cannot read {path}: there is no file {image.files[0]}, which holds its planes"
        )
    return found, text


def _read_xml(path: str) -> str:
    from xml.etree import ElementTree

    with open(path, "rb") as file:  # in the encoding that it declares
        check_pieces(iter(lambda: file.read(PIECE), b""), os.path.getsize(path), path)
        file.seek(0)
        root = ElementTree.parse(file).getroot()
    return ElementTree.tostring(root, encoding="unicode")


def declared_planes(text: str) -> float:
    """Number of planes that an OME-XML declares; tifffile allocates memory for them at once."""
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
