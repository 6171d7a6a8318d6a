"""The images of a DICOM series: which files they are in, and what each header says.

A frame of an enhanced object and a file with one image become the same `Frame`, so that one place
puts them together.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.formats.base import library_errors
from conv3d_cli.formats.dicom import folder_files, is_dicom_file
from conv3d_cli.system.inputs import check_input, dangling, regular_file, why_unreadable
from conv3d_cli.system.parts import split_part
from conv3d_cli.system.room import require_room

CURE = "convert it: dcm2niix -z y -o OUT FOLDER"
MAX_FRAMES = 1_000_000
MAX_NAMED = 8  # series that a message names

# Attributes by which images of one place differ, and the letter of the axis that they make. Those
# of enhanced objects are in functional groups.
AXIS_KEYS = {
    "TemporalPositionIdentifier": "t",
    "TemporalPositionIndex": "t",
    "TriggerTime": "t",
    "NominalCardiacTriggerDelayTime": "t",
    "AcquisitionNumber": "t",
    "EchoTime": "e",
    "EffectiveEchoTime": "e",
    "DiffusionBValue": "b",
}
PADDING = "PixelPaddingValue"
_IMAGE = (
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PhotometricInterpretation", "ImageType", "NumberOfFrames"),
)
_PLACE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"),
    *("SliceThickness", "GridFrameOffsetVector", "DoseGridScaling", "FrameIncrementPointer"),
    *("RescaleSlope", "RescaleIntercept", "FrameTime", "TemporalResolution", "RescaleType"),
    PADDING,
)
_NAMES = ("SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "InstanceNumber")
_GROUPS = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ModalityLUTSequence",
)
TAGS = [*_IMAGE, *_PLACE, *_NAMES, *_GROUPS, *AXIS_KEYS]


@dataclass(frozen=True)
class Frame:
    """One image.

    file : str                  that holds it
    index : int                 of the frame in the file
    order : tuple               by which frames without a place are sorted
    position : 3 floats or None     of its first voxel, in mm, to the patient's left, back and head
    directions : 6 floats or None   cosines of a row, and of a column
    steps : 2 floats or None        mm between rows, and between columns
    between : float or None         mm between slices, as the header says
    slope, intercept : float
    keys : dict                 attributes of `AXIS_KEYS` that it has
    kind : tuple                values of `_IMAGE`, which all images of a volume have in common
    """

    file: str
    index: int
    order: tuple[float, ...]
    position: tuple[float, ...] | None
    directions: tuple[float, ...] | None
    steps: tuple[float, ...] | None
    between: float | None
    slope: float
    intercept: float
    keys: dict[str, float]
    kind: tuple[Any, ...]


@dataclass
class Series:
    """The images with one SeriesInstanceUID.

    number, description : str   as the headers say
    notes : list                on what is left out
    facts : dict                of the first file: "syntax", "FrameTime", "TemporalResolution",
                                "lut", "padding"
    """

    uid: str
    number: str
    description: str
    frames: list[Frame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    syntaxes: set[str] = field(default_factory=set)

    @property
    def files(self) -> list[str]:
        """The files of the images, each once."""
        return list(dict.fromkeys(frame.file for frame in self.frames))

    @property
    def title(self) -> str:
        """Name and size for messages."""
        about = f"{self.description}, " if self.description else ""
        return f"({about}{len(self.frames)} images)"


def require_pydicom(path: str) -> None:
    """Raises: FormatError if pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise FormatError(
            f"cannot read {path}: DICOM needs the package pydicom: pip install 'conv3d[dicom]', or "
            "convert its folder: dcm2niix -z y -o OUT FOLDER"
        ) from error


# --------------------------------------------------------------------------------------------------
# Headers

DEFLATED = "1.2.840.10008.1.2.1.99"
PIECE = 1 << 20
DEFLATED_COPIES = 3  # of an unpacked file, while pydicom reads it
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")


def _check_deflated(path: str) -> None:
    """Check what a file that is one deflate stream unpacks to: pydicom unpacks all of it at once.

    Raises: FormatError for a pipe or device; MemoryLimitError.
    """
    with open(path, "rb", opener=regular_file) as file:
        file.seek(132)
        syntax, start = b"", 132
        while len(head := file.read(12)) == 12 and head[:2] == b"\2\0":
            long = head[4:6] in _LONG
            size = int.from_bytes(head[8:12] if long else head[6:8], "little")
            file.seek(start + (12 if long else 8))
            if head[2:4] == b"\x10\0":  # TransferSyntaxUID
                syntax = file.read(min(size, 64)).rstrip(b"\0 ")
            start += (12 if long else 8) + size
            file.seek(start)
        if syntax != DEFLATED.encode():
            return
        file.seek(start)
        stream, unpacked, packed = zlib.decompressobj(-zlib.MAX_WBITS), 0, b""
        while not stream.eof and (packed := packed or file.read(PIECE)):
            try:
                unpacked += len(stream.decompress(packed, PIECE))
            except zlib.error:
                return  # pydicom tells
            packed = stream.unconsumed_tail
        require_room(DEFLATED_COPIES * unpacked, "what it unpacks to", path)


class _BoundedFile(io.BufferedReader):
    """A file of which no more bytes are asked for than it has.

    Python makes a buffer for all that is asked for, and a damaged element declares 4 GB.
    """

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > PIECE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


def _numbers(thing: Any, name: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers of an element; None if it does not have them."""
    value = thing.get(name) if thing is not None else None
    if value is None or isinstance(value, str):
        return None
    try:
        found = tuple(float(v) for v in (value if count > 1 else [value]))
    except (TypeError, ValueError):
        return None
    good = len(found) == count and all(abs(v) < 1e12 for v in found)
    return found if good else None


def _number(thing: Any, name: str) -> float | None:
    found = _numbers(thing, name, 1)
    return None if found is None else found[0]


def _first(thing: Any, name: str) -> Any:
    """The first item of a sequence; None if there is none."""
    found = thing.get(name) if thing is not None else None
    return found[0] if found else None


def read_frames(path: str) -> tuple[Series, list[Frame]] | None:
    """The series of a file, without frames, and its images; None if it holds no image.

    Raises: FormatError.
    """
    import pydicom

    with library_errors(path, "DICOM"):
        _check_deflated(path)
        with _BoundedFile(path) as file:
            data: Any = pydicom.dcmread(
                file, stop_before_pixels=True, force=True, specific_tags=TAGS
            )
        rows, columns = _number(data, "Rows"), _number(data, "Columns")
        if not rows or not columns or _number(data, "BitsAllocated") is None:
            return None
        meta = data.file_meta
        syntax = str(meta.get("TransferSyntaxUID", "") or "1.2.840.10008.1.2")
        series = Series(
            str(data.get("SeriesInstanceUID", "")),
            str(data.get("SeriesNumber", "") or ""),
            str(data.get("SeriesDescription", "") or "")[:64],
            syntaxes={syntax},
        )
        series.facts = {
            "FrameTime": _number(data, "FrameTime"),
            "TemporalResolution": _number(data, "TemporalResolution"),
            "lut": bool(data.get("ModalityLUTSequence")),
            "padding": _number(data, PADDING),
            "cine": "FrameTime" in data or "FrameIncrementPointer" in data,
        }
        count = int(_number(data, "NumberOfFrames") or 1)
        if not 0 < count <= MAX_FRAMES:
            raise FormatError(f"cannot read {path}: damaged DICOM: it declares {count} frames")
        kind = tuple(_value(path, data, name) for name in _IMAGE[:-1])
        offsets = _numbers(data, "GridFrameOffsetVector", count) if count > 1 else None
        each = data.get("PerFrameFunctionalGroupsSequence") or [None] * count
        if len(each) != count:
            raise FormatError(
                f"cannot read {path}: damaged DICOM: it declares {count} frames and describes "
                f"{len(each)}"
            )
        shared = _first(data, "SharedFunctionalGroupsSequence")
        many = count > 1 and shared is None and each[0] is None
        found = []
        for index in range(count):
            frame = _frame(path, index, data, shared, each[index], kind)
            if many:
                frame = _plain_frame(frame, None if offsets is None else offsets[index], offsets)
            found.append(frame)
        return series, found


def _value(path: str, data: Any, name: str) -> Any:
    """What an element says of the image: its words, else a whole number; None without one."""
    value = data.get(name)
    if value is None or value == "":
        return None
    if name == "ImageType":
        return tuple(map(str, value))
    if name == "PhotometricInterpretation":
        return str(value)
    if isinstance(value, (int, float)) and value == value // 1:
        return int(value)
    raise FormatError(
        f"cannot read {path}: damaged DICOM: {name} is {str(value)[:40]!r}, not a whole number"
    )


def _frame(path: str, index: int, data: Any, shared: Any, own: Any, kind: tuple[Any, ...]) -> Frame:
    """A frame: what its own group says, else the shared one, else the file."""

    def group(name: str) -> Any:
        found = _first(own, name)
        found = _first(shared, name) if found is None else found
        return data if found is None else found

    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    content = group("FrameContentSequence")
    keys = {}
    for name, holder in (
        *((key, data) for key in AXIS_KEYS),
        ("TemporalPositionIndex", content),
        ("NominalCardiacTriggerDelayTime", group("CardiacSynchronizationSequence")),
        ("EffectiveEchoTime", group("MREchoSequence")),
        ("DiffusionBValue", group("MRDiffusionSequence")),
    ):
        value = _number(holder, name)
        if value is not None:
            keys[name] = value
    slope = _number(values, "RescaleSlope")
    slope = _number(data, "DoseGridScaling") if slope is None else slope
    between = _number(measures, "SpacingBetweenSlices") or _number(measures, "SliceThickness")
    return Frame(
        path,
        index,
        (_number(data, "InstanceNumber") or 0.0, float(index)),
        _numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        _numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        _numbers(measures, "PixelSpacing", 2),
        abs(between) if between else None,
        1.0 if slope is None or slope == 0 else slope,
        _number(values, "RescaleIntercept") or 0.0,
        keys,
        kind,
    )


def _plain_frame(frame: Frame, offset: float | None, offsets: Sequence[float] | None) -> Frame:
    """A frame of a file with many that describes none of them: its place by the offset of a dose.

    Source: DICOM PS3.3, C.8.8.3.2, "Grid Frame Offset Vector".
    """
    from dataclasses import replace

    place = frame.position
    if place is None or frame.directions is None or offset is None or not offsets:
        return replace(frame, position=None, keys={})
    if offsets[0] == 0:
        (a, b, c), (d, e, f) = frame.directions[:3], frame.directions[3:]
        normal = (b * f - c * e, c * d - a * f, a * e - b * d)
        place = tuple(p + offset * n for p, n in zip(place, normal, strict=True))
    else:  # the patient's z of each plane
        place = (*place[:2], offset)
    return replace(frame, position=place, keys={})


# --------------------------------------------------------------------------------------------------
# Files


def _scan(folder: str) -> tuple[dict[str, Series], list[str]]:
    """The series in a folder by UID, and files that hold no image. Raises: FormatError."""
    files = folder_files(folder)
    try:
        state = tuple((file, os.stat(file).st_mtime_ns, os.path.getsize(file)) for file in files)
    except OSError as error:
        raise FormatError(f"cannot read {folder}: {why_unreadable(error)}") from None
    return _scan_files(state)


@lru_cache(maxsize=2)
def _scan_files(
    state: tuple[tuple[str, int, int], ...],
) -> tuple[dict[str, Series], list[str]]:
    found: dict[str, Series] = {}
    others = []
    for file, _, _ in state:
        entry = read_frames(file) if is_dicom_file(file) else None
        if entry is None:
            others.append(file)
            continue
        one, frames = entry
        series = found.setdefault(one.uid, one)
        series.frames += frames
        series.syntaxes |= one.syntaxes
        if len(series.frames) > MAX_FRAMES:
            raise FormatError(f"cannot read {file}: its series has more than {MAX_FRAMES} images")
    return found, others


def find_series(name: str) -> Series:
    """The series that a name gives: of a folder, of FOLDER::SERIES, or that of a file.

    A file of many frames is a volume by itself.
    Raises: FormatError.
    """
    path, part = split_part(name)
    require_pydicom(path)
    if not os.path.isdir(path):
        check_input(path)
        entry = read_frames(path)
        if entry is None:
            raise FormatError(
                f"cannot read {path}: this DICOM file holds no image; name a folder of images"
            )
        series, frames = entry
        if part:
            raise FormatError(
                f"cannot read {name}: ::{part} names a series of a folder, and this is a file; "
                "leave it out"
            )
        if len(frames) > 1 or not series.uid:
            series.frames = frames
            return series
        folder = os.path.dirname(path) or "."
        whole = _scan(folder)[0].get(series.uid)
        if whole is None or len(whole.frames) < 2:
            series.frames = frames
            return series
        note = f"it is read with the {len(whole.files) - 1} other files of its series in {folder}"
        return _copy(whole, [note, *_no_files(folder)])
    found, others = _scan(path)
    if not found:
        raise FormatError(f"cannot read {path}: no DICOM file in it holds an image")
    notes = _no_files(path)
    if others:
        kept = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"files that hold no image are left out: {os.path.basename(others[0])}{kept}")
    if part:
        named = [s for s in found.values() if part in (s.number, s.uid, s.description)]
        if len(named) == 1:
            return _copy(named[0], notes)
        what = "names several" if named else "is none"
        raise FormatError(
            f"cannot read {path}: {part} {what} of its series; {_listed(found, path)}"
        )
    if len(found) > 1:
        raise FormatError(
            f"cannot read {path}: it holds {len(found)} series; {_listed(found, path)}"
        )
    return _copy(next(iter(found.values())), notes)


def _no_files(folder: str) -> list[str]:
    """A note of what a folder names that can be no file of a series: links to nothing, and pipes.

    An image may be behind such a link, where DataLad has not fetched it.
    """
    found = [
        path
        for name in sorted(os.listdir(folder))
        if not name.startswith(".")
        and not os.path.isfile(path := os.path.join(folder, name))
        and not os.path.isdir(path)
    ]
    if not found:
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    why = dangling(found[0]) or "it is a pipe, or a device"
    return [f"{os.path.basename(found[0])}{more} left out: {why}"]


def _copy(series: Series, notes: list[str]) -> Series:
    from dataclasses import replace

    return replace(series, notes=notes)


def _listed(found: dict[str, Series], path: str) -> str:
    """The series to choose from, for messages."""
    numbers = [series.number for series in found.values()]
    names = [
        f"::{s.number if s.number and numbers.count(s.number) == 1 else s.uid} {s.title}"
        for s in sorted(found.values(), key=lambda s: (len(s.number), s.number))
    ]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"name one: {', '.join(names[:MAX_NAMED])}{more}"


def volume_files(name: str) -> tuple[str, ...]:
    """The files that a volume is read from, the named one first."""
    path, _ = split_part(name)
    try:
        files = find_series(name).files
    except Conv3DError:
        return (path,)
    return tuple(files) if os.path.isdir(path) else tuple(dict.fromkeys((path, *files)))
