"""The image series of a TIFF file: found, checked, and the scale of its values.

tifffile decodes. This module refuses files that promise more than they hold (missing planes, pages
larger than their bytes can make), because tifffile fills such gaps with zeros and only logs them.
directories.py follows the chain of pages; images.py chooses among the images of an OME-TIFF.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from conv3d_cli.errors import Conv3DError, FormatError, MemoryLimitError, setting
from conv3d_cli.formats.tiff.directories import Directory, read_directories
from conv3d_cli.formats.tiff.images import (
    Listed,
    OmeImage,
    choose,
    declared_planes,
    find_image,
    first_file,
    full_text,
)
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.parts import split_part
from conv3d_cli.system.room import JSON_BYTES, check_tree
from conv3d_cli.system.words import plain_text

# of ImageJ: the first number that is no calibration by a curve, and that of the optical density
NO_FUNCTION, OPTICAL_DENSITY = 20, 21
MAX_NAMED = 3  # missing files that a message names
MAX_PLANES = 1 << 22  # that tifffile may allocate memory for
# Largest compression ratio of each codec. No memory is allocated for a page that claims more voxels
# than its bytes can hold.
MAX_RATIOS = {8: 1100, 32946: 1100, 5: 4096, 32773: 130}  # deflate (two numbers), LZW, PackBits
MAX_RATIO_OF_OTHERS = 1 << 16
UNCHECKED_PAGE_BYTES = 1 << 26  # smaller pages may claim any ratio


@dataclass(frozen=True)
class OpenSeries:
    """A file opened with tifffile, and the series to read. The owner closes `tiff`.

    path : str                  the TIFF file that was opened
    tiff : TiffFile             of tifffile
    image : OmeImage or None    the image of an OME-TIFF; None if none is described
    series : TiffPageSeries     of tifffile
    pages : list                pages of the series, all checked; they may be in other files
    shape : tuple               of the volume; without what is missing at its end
    directories : list          directories of the file that was opened
    listed : list               all series of the file, or all images that its OME-XML describes
    number : int                the place of `series` among them
    json : dict                 what tifffile's JSON says beside an OME-XML
    notes : tuple of str        what was not used
    """

    path: str
    tiff: Any
    image: OmeImage | None
    series: Any
    pages: list[Any]
    shape: tuple[int, ...]
    directories: Sequence[Directory]
    listed: Sequence[Listed]
    number: int
    json: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@contextmanager
def tiff_errors(path: str, what: str = "") -> Iterator[None]:
    """Turn whatever tifffile raises in the body into a FormatError of one line; hide its log.

    path : str      of the file
    what : str      what is read, such as "page 3", for the message
    Raises: FormatError; MemoryLimitError for a MemoryError.
    """
    import logging

    thread = threading.get_ident()

    def silence(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger("tifffile")
    logger.addFilter(silence)
    try:
        yield
    except Conv3DError:
        raise
    # tifffile raises a dozen kinds: struct.error, KeyError, zlib.error, RuntimeError, ...
    except Exception as error:
        what = f"{what}: " if what else ""
        if isinstance(error, MemoryError):
            raise MemoryLimitError(
                f"cannot read {path}: {what}it does not fit into memory ({error})"
            ) from error
        raise_fault(error, path)
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            cure = "its compression needs imagecodecs: pip install 'conv3d[tiff]'"
            raise FormatError(f"cannot read {path}: {what}{cure}") from error
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(
            f"cannot read {path}: {what}damaged, or of a kind that cannot be read ({cause})"
        ) from error
    finally:
        logger.removeFilter(silence)


# --------------------------------------------------------------------------------------------------
# Finding the series


def open_series(name: str, axes_given: bool = False, one_file: bool = False) -> OpenSeries:
    """Open a TIFF file and find an image series.

    It is the first one, or that of `FILE::PART`; of an OME-TIFF, see `find_image`.

    axes_given : bool       read a file page by page if its OME-XML describes none of its pages,
                            and leave out what is missing at the end of an acquisition
    one_file : bool         refuse planes in other files
    Raises: FormatError.
    """
    path, part = split_part(name)
    check_input(path)
    with tiff_errors(path):
        path, text = first_file(path, part)
    directories = {os.path.realpath(path): read_directories(path)}
    tiff, image = _open_file(path, part, axes_given, text)
    try:
        try:
            return _checked(tiff, image, directories, path, part, one_file, axes_given)
        except FormatError:
            if image is None or part or not tiff.pages.first.is_shaped:
                raise
        # its JSON may fit the pages
        tiff.close()
        with tiff_errors(path):
            import tifffile

            tiff = tifffile.TiffFile(path, is_ome=False)
        found = _checked(tiff, None, directories, path, part, one_file, axes_given)
        note = "the file's OME-XML does not fit its pages: only its JSON, from tifffile, is used"
        return replace(found, notes=(note,))
    except BaseException:
        tiff.close()
        raise


def _checked(
    tiff: Any,
    image: OmeImage | None,
    directories: dict[str, list[Directory]],
    path: str,
    part: str,
    one_file: bool,
    partial: bool,
) -> OpenSeries:
    """The series of an open file, after all checks. Raises: FormatError.

    directories : dict      real path of a file -> its directories; gets those of other files
    partial : bool          see `_usable_pages`
    """
    message = f"cannot read {path}: its planes are in other files; save them as one file"
    if one_file and image is not None and any(name != path for name in image.files):
        raise FormatError(message)
    absent = [] if image is None else [f for f in image.files if not os.path.exists(f)]
    for file in () if image is None else image.files:
        if file not in absent and os.path.realpath(file) not in directories:
            check_input(file)
            directories[os.path.realpath(file)] = read_directories(file)
    listed, number, series = _find_series(
        tiff, image, _no_files(absent), directories[os.path.realpath(path)], path, part
    )
    pages, shape = _usable_pages(tiff, series, directories, path, _no_files(absent), partial)
    # a list of Micro-Manager's may also name other files
    if one_file and any(page.parent is not tiff for page in pages):
        raise FormatError(message)
    own = directories[os.path.realpath(path)]
    notes: tuple[str, ...] = ()
    if shape != tuple(series.shape):
        letter = series.axes[0].lower()
        notes = (
            f"planes are missing{_no_files(absent)}: {letter} = 0 to {shape[0] - 1} of "
            f"{series.shape[0]} are read",
        )
    return OpenSeries(
        path,
        tiff,
        image,
        series,
        pages,
        shape,
        own,
        listed,
        number,
        _json_beside(tiff, image),
        notes,
    )


def _no_files(absent: Sequence[str]) -> str:
    """Why planes are missing, for messages: the names of files; "" without any."""
    if not absent:
        return ""
    names = ", ".join(absent[:MAX_NAMED])
    if len(absent) == 1:
        return f": there is no file {names}"
    more = f" and {len(absent) - MAX_NAMED} more" if len(absent) > MAX_NAMED else ""
    return f": there are no files {names}{more}"


def _json_beside(tiff: Any, image: OmeImage | None) -> dict[str, Any]:
    """What tifffile's JSON on the first page says, if an OME-XML is used in its place."""
    page = tiff.pages.first
    if image is None or not page.is_shaped:
        return {}
    for text in (page.description, page.description1):
        check_tree(text, JSON_BYTES, str(tiff.filehandle.path))
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict):
                return found
    return {}


def _open_file(
    path: str, part: str, axes_given: bool, text: str | None
) -> tuple[Any, OmeImage | None]:
    """A file opened with tifffile, and its OME image; None if no image is described.

    text : str or None      OME-XML in place of the file's own
    An OME-XML counts more than the JSON that tifffile writes beside it unless told not to.
    Raises: FormatError.
    """
    with tiff_errors(path):
        import tifffile

        tiff = tifffile.TiffFile(path)
        if not tiff.is_ome and text is None:
            return tiff, None
        try:
            text = text or full_text(str(tiff.ome_metadata), path)
            shaped = bool(tiff.is_shaped)
            image = find_image(text, path, part, implied=shaped)
            xml = text if image is None else image.xml
            if declared_planes(xml) > MAX_PLANES:
                raise FormatError(
                    f"cannot read {path}: damaged: its OME-XML declares more than {MAX_PLANES} "
                    "planes"
                )
            if image is None and not axes_given and not shaped:
                raise FormatError(
                    f"cannot read {path}: its OME-XML describes no planes of this file; "
                    "open the file that holds the description, or name the axes with "
                    f"{setting('axes')}"
                )
        finally:
            tiff.close()
        if image is None:
            return tifffile.TiffFile(path, omexml=xml), None
        return tifffile.TiffFile(path, omexml=xml, is_shaped=False), image


def _find_series(
    tiff: Any,
    image: OmeImage | None,
    absent: str,
    directories: Sequence[Directory],
    path: str,
    part: str,
) -> tuple[Sequence[Listed], int, Any]:
    """All series of a file, the number of the one to read, and this one itself.

    absent : str            why planes may be missing, for the message
    directories : list      of the file
    Raises: FormatError if its description does not fit its pages.
    """
    with tiff_errors(path):
        described = image is not None or not tiff.is_ome
        if not tiff.series:
            raise FormatError(f"cannot read {path}: it holds no image")
        beside = {directory.offset for directory in directories if directory.beside}
        usual = [s for s in tiff.series if s.keyframe.offset not in beside] or list(tiff.series)
        if image is not None and usual[0].kind == "ome":
            return image.listed, image.number, usual[0]
        listed = [Listed(str(s.name or ""), tuple(map(int, s.shape))) for s in usual]
        number = choose(listed, part, path) if part else 0
        series = usual[number]
        dialect = next((d for d in ("shaped", "ome", "imagej") if getattr(tiff, f"is_{d}")), None)
        if series.kind in ("generic", "uniform") and dialect is not None and described:
            # tifffile falls back to bare pages if a description cannot be true
            if absent:
                raise FormatError(f"cannot read {path}: its planes are missing{absent}")
            raise FormatError(
                f"cannot read {path}: truncated or damaged: its description ({dialect}) "
                "does not fit its pages"
            )
        for other in usual:
            if (
                series.kind == "generic"
                and other is not series
                and (other.keyframe.shape, other.dtype) == (series.keyframe.shape, series.dtype)
            ):
                raise FormatError(
                    f"cannot read {path}: its pages are stored in different ways "
                    "(compression, strips); save them again in one way"
                )
        return listed, number, series


# --------------------------------------------------------------------------------------------------
# Pages of a series


def _usable_pages(
    tiff: Any,
    series: Any,
    directories: Mapping[str, Sequence[Directory]],
    path: str,
    absent: str,
    partial: bool,
) -> tuple[list[Any], tuple[int, ...]]:
    """The pages of a series and its shape, after checks.

    All pages exist, are alike, and lie within their files.

    (A volume above 4 GB in an ImageJ file has one page, followed by all voxels.)
    directories : dict      real path of a file -> its directories
    absent : str            why planes may be missing, for the message
    partial : bool          leave out what is not complete at the end of the slowest axis
    Raises: FormatError.
    """
    keyframe = series.keyframe
    with tiff_errors(path):
        if keyframe.parent is tiff:
            tiff.pages.useframes = True  # lightweight pages, for those not yet read
            tiff.pages.set_keyframe(keyframe.index)
        pages = list(series)
        shape = tuple(map(int, series.shape))
        missing = sum(page is None for page in pages)
        if missing:
            kept, message = _complete(pages, shape, series.axes.lower(), absent, path)
            if not (partial and kept):
                raise FormatError(message)
            pages = pages[: len(pages) // shape[0] * kept]
            shape = (kept, *shape[1:])
        _check_alike(pages, series, directories, path)
        if not series.is_truncated and math.prod(shape) != len(pages) * math.prod(keyframe.shape):
            raise FormatError(
                f"cannot read {path}: truncated or damaged: its description gives the shape "
                f"{shape}, the file holds {len(pages)} pages of {keyframe.shape}"
            )
        return [
            _usable_page(page, path, "" if page.parent is tiff else f" of {_file(page)}")
            for page in pages
        ], shape


def _complete(
    pages: Sequence[Any], shape: tuple[int, ...], letters: str, absent: str, path: str
) -> tuple[int, str]:
    """How many parts along the slowest axis have all their planes, and the message on the others.

    An acquisition that was stopped lacks planes at the end.
    pages : list            None for a plane that is missing
    letters : str           of the axes
    absent : str            why planes are missing
    """
    missing = sum(page is None for page in pages)
    each = len(pages) // shape[0]
    first = next(k for k, page in enumerate(pages) if page is None)
    kept = first // each if len(shape) > 2 and each * shape[0] == len(pages) else 0
    cure = (
        f"; {setting('axes', letters)} reads {letters[0]} = 0 to {kept - 1} of {shape[0]}, which "
        "are complete"
        if kept
        else ""
    )
    return kept, (
        f"cannot read {path}: {missing} of its {len(pages)} planes are missing{absent}{cure}"
    )


def _file(page: Any) -> str:
    return os.path.realpath(str(page.parent.filehandle.path))


def _check_alike(
    pages: Sequence[Any], series: Any, directories: Mapping[str, Sequence[Directory]], path: str
) -> None:
    """Refuse pages that differ: within a file in any layout tag, between files in size and type.

    Raises: FormatError.
    """
    layouts = {file: {d.offset: d.layout for d in found} for file, found in directories.items()}
    places = {file: _places(found) for file, found in directories.items()}
    groups: dict[int, list[Any]] = {}
    for page in pages:
        groups.setdefault(id(page.parent), []).append(page)
    keyframe = series.keyframe
    for group in groups.values():
        file = _file(group[0])
        known = layouts.get(file, {})
        own = [page for page in group if len(page.treeindex) == 1 and page.offset in known]
        for place, page in enumerate(own):
            order = places[file]
            beside, first = order[own[0].offset]
            expected = (beside, first + place)
            follows = series.kind != "generic" or order[page.offset] == expected
            if not follows or known[page.offset] != known[own[0].offset]:
                missed = (
                    [] if follows else [k for k, p in enumerate(order.values()) if p == expected]
                )
                odd = missed[0] if missed else page.index
                of = "" if page.parent is series.parent else f" of {file}"
                raise FormatError(
                    f"cannot read {path}: page {odd + 1}{of} differs from page "
                    f"{own[0].index + 1} in size, type or compression; "
                    "a volume's pages must be alike"
                )
        # the pages by which tifffile decodes the others
        models = {id(page.keyframe): page.keyframe for page in group}.values()
        alike = all(
            (model.shape, model.dtype) == (keyframe.shape, keyframe.dtype) for model in models
        )
        for model in models:
            # it may be in a file of the same name in another folder
            if own and model.parent is not own[0].parent:
                alike = alike and model.parent.byteorder == own[0].parent.byteorder
                alike = alike and layouts[_file(model)].get(model.offset) == known[own[0].offset]
        if not alike:
            raise FormatError(
                f"cannot read {path}: the planes in {file} differ from those in "
                f"{_file(keyframe)} in size, type or compression; a volume's planes must be alike"
            )


def _places(directories: Sequence[Directory]) -> dict[int, tuple[bool, int]]:
    """For the offset of each page: is it `beside` another, and its place among those alike in this.

    Pages of full size may have small versions between them.
    """
    counts = {True: 0, False: 0}
    found = {}
    for directory in directories:
        found[directory.offset] = (directory.beside, counts[directory.beside])
        counts[directory.beside] += 1
    return found


def _usable_page(page: Any, path: str, of: str) -> Any:
    """The page, or tifffile's full version of it, after a check that what it claims is possible.

    of : str        " of FILE", for messages
    Raises: FormatError.
    """
    name = f"page {page.index + 1}{of}"
    keyframe = page.keyframe
    offsets, counts = page.dataoffsets, page.databytecounts
    size = page.parent.filehandle.size
    voxels = math.prod(keyframe.shaped)
    bits = (
        keyframe.bitspersample
        if isinstance(keyframe.bitspersample, int)
        else max(keyframe.bitspersample)
    )
    if keyframe.dtype is None:
        raise FormatError(
            f"cannot read {path}: {name} holds voxels of an unknown type ({bits} bits)"
        )
    if voxels == 0:
        raise FormatError(f"cannot read {path}: {name} is empty, shape {keyframe.shape}")
    segments = math.prod(keyframe.chunked)
    if min(len(offsets), len(counts)) < segments or (
        not keyframe.is_tiled and not all(offsets[:segments])
    ):
        raise FormatError(
            f"cannot read {path}: truncated or damaged: {name} lacks some of its {segments} "
            "strips or tiles"
        )
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
        raise FormatError(
            f"cannot read {path}: truncated: {name} reaches beyond the end of the file "
            f"({size} bytes)"
        )
    held = sum(counts)
    if keyframe.compression == 1:
        possible = held * 8 // bits
    else:
        ratio = MAX_RATIOS.get(keyframe.compression, MAX_RATIO_OF_OTHERS)
        possible = max(held * ratio, UNCHECKED_PAGE_BYTES) // keyframe.dtype.itemsize
    if voxels > possible:
        raise FormatError(
            f"cannot read {path}: truncated or damaged: {name} claims {voxels} voxels, "
            f"its {held} bytes hold {possible} at most"
        )
    if keyframe.is_contiguous and any(
        offsets[i] + counts[i] != offsets[i + 1] for i in range(len(offsets) - 1)
    ):
        # tifffile takes a frame for contiguous if the first page is
        return _full_page(page)
    return page


def _full_page(frame: Any) -> Any:
    """The full version of one of tifffile's lightweight pages (frames)."""
    handle = frame.parent.filehandle
    closed = handle.closed
    if closed:  # a file other than the one that was opened
        handle.open()
    try:
        return frame.aspage()
    finally:
        if closed:
            handle.close()


def mapped_offset(found: OpenSeries, path: str) -> int | None:
    """Byte of the first voxel if all are in the opened file, contiguous and uncompressed; or None.

    Raises: FormatError if page directories are among the voxels, so that the description promises
        more voxels than there are.
    """
    series = found.series
    with tiff_errors(path):
        # tifffile's offset may be one in another file
        offset = (
            series.dataoffset if all(page.parent is found.tiff for page in found.pages) else None
        )
    if offset is None:
        return None
    end = offset + math.prod(found.shape) * series.dtype.itemsize
    if any(offset <= directory.offset < end for directory in found.directories):
        raise FormatError(
            f"cannot read {path}: truncated or damaged: its description gives the shape "
            f"{series.shape}, but page directories are where such voxels would be"
        )
    return int(offset)


# --------------------------------------------------------------------------------------------------
# Scale of its values


def dialect_of(tiff: Any, series: Any) -> str:
    """The dialect of a series: "imagej", "ome", "shaped" (tifffile's JSON) or "plain"."""
    # Micro-Manager files have kinds of their own, besides OME's or ImageJ's description
    if series.kind in ("shaped", "ome", "imagej"):
        return str(series.kind)
    return "ome" if tiff.is_ome else "imagej" if tiff.is_imagej else "plain"


def value_scale(found: OpenSeries) -> tuple[float, float]:
    """Slope and intercept of ImageJ's linear calibration of values; (1, 0) without one.

    The calibration is function 0, which ImageJ uses only with a value unit. In this way ImageJ
    stores signed 16-bit voxels: unsigned, with c0=-32768.
    """
    metadata = _calibrated(found)
    if metadata.get("cf") != 0:
        return 1.0, 0.0
    slope, intercept = to_number(metadata.get("c1")), to_number(metadata.get("c0"))
    return (slope, intercept) if slope else (1.0, 0.0)


def _calibrated(found: OpenSeries) -> Mapping[str, Any]:
    """ImageJ's metadata, if it would calibrate the values of these voxels; else {}."""
    dtype = found.series.dtype.name
    if dialect_of(found.tiff, found.series) != "imagej" or dtype not in ("uint8", "uint16"):
        return {}
    metadata = found.tiff.imagej_metadata or {}
    return metadata if "vunit" in metadata else {}


def curve_notes(found: OpenSeries) -> tuple[str, ...]:
    """A note if ImageJ's calibration of values is a curve, which is not applied."""
    metadata = _calibrated(found)
    number = int(to_number(metadata.get("cf")))
    if number != OPTICAL_DENSITY and not (0 < number < NO_FUNCTION and "c0" in metadata):
        return ()
    return (
        f"ImageJ shows its values by a curve (calibration function {number}, in "
        f"{plain_text(str(metadata['vunit']))[:40]}), which is not applied: the stored values are "
        "used",
    )


def to_number(value: Any) -> float:
    """A metadata value as a finite number; 0 if it is not one.

    >>> to_number("2.5"), to_number("nan"), to_number(None)
    (2.5, 0.0, 0.0)
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0
