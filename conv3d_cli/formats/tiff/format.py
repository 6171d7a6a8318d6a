"""TIFF volumes: ImageJ hyperstacks, OME-TIFF, tifffile's own and plain stacks; also BigTIFF.

Files of either byte order. Contiguous voxels are memory-mapped; otherwise (compressed, tiled,
scattered) pages are decoded when they are asked for. Pages along an unnamed axis are read as z. The
print resolution of a plain TIFF is not used as voxel size: the size along z is not given, and
programs write 72 or 300 dots per inch by default.

The output's name decides what is written: OME-TIFF for .ome.tif; else an ImageJ hyperstack if
ImageJ can read the volume (uint8, int16, uint16, float32, below 4 GB); else OME-XML in a .tif, with
a note. An uncompressed output takes slabs in any order, a compressed one in storage order. The same
volume always gives the same bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli.errors import Conv3DError, FormatError, WriteError, setting
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawReader,
    RawWriter,
    real_dtype,
)
from conv3d_cli.formats.conventions import missing_note
from conv3d_cli.formats.tiff import BIG_SUFFIXES, is_stack_name
from conv3d_cli.formats.tiff import metadata as tiff_metadata
from conv3d_cli.formats.tiff import ome as tiff_ome
from conv3d_cli.formats.tiff import vendors as tiff_vendors
from conv3d_cli.formats.tiff.compressed import (
    PackedStackWriter,
    need_codec,
    packing_bytes,
)
from conv3d_cli.formats.tiff.files import check_beside
from conv3d_cli.formats.tiff.images import list_images
from conv3d_cli.formats.tiff.metadata import Description, TiffMetadata
from conv3d_cli.formats.tiff.pages import PagedArray
from conv3d_cli.formats.tiff.planes import PlaneArray, series_planes
from conv3d_cli.formats.tiff.series import (
    OpenSeries,
    curve_notes,
    dialect_of,
    mapped_offset,
    open_series,
    tiff_errors,
    value_scale,
)
from conv3d_cli.formats.tiff.stack import read_stack, stack_files
from conv3d_cli.formats.xml import parse_xml
from conv3d_cli.model.volume import ArrayReader, Axes, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.system.atomic import OutputFile, output_file, suffix_of, write_errors
from conv3d_cli.system.parts import split_part
from conv3d_cli.system.words import plain_text

IMAGEJ_DTYPES = ("uint8", "int16", "uint16", "float32")
NODATA = "GDAL_NODATA"  # tag with the number that marks missing voxels
CLASSIC_LIMIT = 2**32 - 2**25  # bytes of voxels and directories in a file with 32-bit offsets
DIRECTORY_BYTES = 400  # of one page, estimated high
MINISWHITE, PALETTE = 0, 3
# metadata that ImageJ stores in tags of their own, not in the description
IMAGEJ_BINARY = ("Info", "info", "Labels", "LUTs")
SPARE_LETTERS = "taburefghijklmnopqvwd"


# --------------------------------------------------------------------------------------------------
# Reading


class MappedReader(RawReader):
    """A reader of voxels in one piece. Arguments as `RawReader`, whose `offset` is positional.

    contents : dict         see `_contents`
    """

    def __init__(self, contents: dict[str, str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._contents = contents

    def storage(self) -> dict[str, str]:
        return self._contents


class PagedReader(ArrayReader):
    """A reader of TIFF pages that are decoded when they are asked for.

    contents : dict         see `_contents`
    tiff : TiffFile         of tifffile; the reader closes it
    """

    def __init__(
        self,
        contents: dict[str, str],
        tiff: Any,
        array: PagedArray,
        header: VolumeHeader,
        path: str,
    ) -> None:
        super().__init__(array, header, path)  # type: ignore[arg-type]
        self._contents, self._pages, self._tiff = contents, array, tiff

    def buffer_bytes(self, planes: int, channels: int) -> int:
        return self._pages.buffer_bytes()

    def storage(self) -> dict[str, str]:
        return self._pages.storage() | self._contents

    def close(self) -> None:
        self.array = np.empty(0)
        self._pages.close()
        self._tiff.close()


class PlaneReader(ArrayReader):
    """A reader of single planes, independent of the other readers; see planes.py."""

    def __init__(self, array: PlaneArray, header: VolumeHeader, path: str) -> None:
        super().__init__(array, header, path)  # type: ignore[arg-type]
        self._planes = array

    def buffer_bytes(self, planes: int, channels: int) -> int:
        # a plane that is kept, the next one, its packed bytes, and the planes before they are one
        return (planes + 3) * self._planes.plane_bytes

    def close(self) -> None:
        self.array = np.empty(0)
        self._planes.close()


def open_again(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a volume as `open_tiff` does, with voxels that are found and read by another way."""
    if is_stack_name(path):
        return _open_stack(path, axes)
    opened = open_series(path, axes is not None)
    with opened.tiff:
        header, _ = _read_header(opened, path, axes, channels_first)
        planes = series_planes(opened, header.axes.shape, opened.path)
    return PlaneReader(planes, header, path)


def open_tiff(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open an image series of a TIFF file: the first, or that of `FILE::PART`.

    Of an OME-TIFF, see `images.find_image`.

    path : str              the file, or `FILE::NUMBER` (from 0), or `FILE::NAME`
    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    channels_first : bool   of two unnamed axes of pages, read the slower one as channels, not time
    Raises: FormatError.
    """
    if is_stack_name(path):
        return _open_stack(path, axes)
    opened = open_series(path, axes is not None)
    file_name = opened.path
    tiff, series = opened.tiff, opened.series
    try:
        header, notes = _read_header(opened, path, axes, channels_first)
        offset = mapped_offset(opened, path)
        contents = _contents(opened)
        reader: MappedReader | PagedReader
        if offset is None:
            array = PagedArray(opened.pages, header.axes.shape, series.dtype, path, tiff.filehandle)
            reader = PagedReader(contents, tiff, array, header, path)
        else:
            file = open(file_name, "rb")  # noqa: SIM115 - the reader closes it
            try:
                stored = series.dtype.newbyteorder(tiff.byteorder)
                reader = MappedReader(contents, file, header, path, stored, offset)
            except BaseException:
                file.close()
                raise
            tiff.close()
        reader.notes = notes
        return reader
    except BaseException:
        tiff.close()
        raise


def _open_stack(path: str, axes: str | None) -> VolumeReader:
    """Open the stack `FOLDER::PATTERN`. Raises: FormatError."""
    name = stack_files(path)[0]
    with open_tiff(name) as first:
        opened = open_series(name)
        opened.tiff.close()
        array, header, notes = read_stack(path, first, opened.series.dtype)
        notes = (*first.notes, *notes)
    if axes is not None:
        if len(axes) != len(header.axes.letters):
            raise FormatError(
                f"cannot read {path}: {setting('axes', axes)} names {len(axes)} axes, "
                f"it has {len(header.axes.letters)}: shape {header.axes.shape}"
            )
        header = replace(header, axes=Axes(axes, header.axes.shape))
    reader = PlaneReader(array, header, path)
    reader.notes = notes
    return reader


def _read_header(
    opened: OpenSeries, path: str, axes: str | None, channels_first: bool
) -> tuple[VolumeHeader, tuple[str, ...]]:
    """The header of a series, and the notes of its reader. Arguments and errors as `open_tiff`."""
    tiff, series = opened.tiff, opened.series
    check_beside(series, opened.pages, opened.path)
    found, notes = _stored_axes(opened, axes, channels_first, path)
    described = _describe(opened, found, path)
    kept = TiffMetadata(dialect_of(tiff, series), found, described.units, described.items)
    header = VolumeHeader(
        found,
        real_dtype(series.dtype, path),
        described.grid,
        value_scale(opened),
        "TIFF",
        kept,
        history=described.history,
        facts=described.facts,
        file_dtype=series.dtype,
    )
    nodata = series.keyframe.tags.get(NODATA)
    more = (*_series_notes(opened, path), *described.notes, *curve_notes(opened))
    more += missing_note(None if nodata is None else nodata.value, NODATA)
    return header, (*notes, *opened.notes, *more)


def _stored_axes(
    opened: OpenSeries, given: str | None, channels_first: bool, path: str
) -> tuple[Axes, list[str]]:
    """Axes of the series, and notes on guesses.

    Raises: FormatError; SpecError for impossible letters in `given`.
    """
    series, shape = opened.series, opened.shape
    letters = series.axes.lower()
    if given is not None:
        full = _full_shape(opened.tiff, series)
        if shape != tuple(series.shape):  # planes are missing
            slowest = next(k for k, n in enumerate(full) if n > 1)
            full = (*full[:slowest], shape[0], *full[slowest + 1 :])
        shape = full if len(given) == len(full) else shape
        if len(given) != len(shape):
            raise FormatError(
                f"cannot read {path}: {setting('axes', given)} names {len(given)} axes, "
                f"it has {len(shape)}: shape {shape} ({letters})"
            )
        return Axes(given, shape), []
    notes = []
    unnamed = [i for i, a in enumerate(letters) if a in "iq"]
    if unnamed and "z" not in letters:
        names = list(letters)
        names[unnamed[-1]] = "z"
        if len(unnamed) > 1:
            # slower than z: time, or channels under channels_first
            names[unnamed[-2]] = (
                "c" if channels_first and "c" not in letters and "s" not in letters else "i"
            )
        letters = "".join(names)
    named = _distinct_letters(letters)
    if "y" not in named or "x" not in named:
        raise FormatError(
            f"cannot read {path}: its axes are '{series.axes}', shape {shape}; "
            f"name them with {setting('axes')}"
        )
    if len(unnamed) > 1:
        notes.append(
            f"the file does not name its axes: read as {named}; {setting('axes')} overrides this"
        )
    return Axes(named, shape), notes


def _full_shape(tiff: Any, series: Any) -> tuple[int, ...]:
    """The shape of a series, including the axes of size 1 that tifffile leaves out."""
    # tifffile has `get_shape`; from 2026.5.2 on it has `squeeze` instead
    if hasattr(series, "get_shape"):
        whole = series.get_shape(False)
    else:
        place = next(k for k, one in enumerate(tiff.series) if one is series)
        whole = tiff.series(squeeze=False)[place].shape
    return tuple(int(n) for n in whole)


def _distinct_letters(letters: str) -> str:
    """Replace unnamed (i, q), repeated and impossible axis letters by spare ones.

    >>> _distinct_letters("iqzyx"), _distinct_letters("tttyx")
    ('tazyx', 'tabyx')
    """
    named = ""
    for position, letter in enumerate(letters):
        if letter in "iq" or letter in named or not ("a" <= letter <= "z"):
            letter = next(a for a in SPARE_LETTERS if a not in named + letters[position + 1 :])
        named += letter
    return named


def _describe(opened: OpenSeries, axes: Axes, path: str) -> Description:
    """What the file says besides its axes."""
    found = _describe_dialect(opened, axes, path)
    with tiff_errors(path):
        dropped, made = tiff_metadata.unused_tags(opened.series.keyframe)
    text = plain_text(" ".join(str(opened.series.keyframe.description or "").split()))[:40]
    if text and dialect_of(opened.tiff, opened.series) == "plain":
        by_maker = found.grid.spacing is not None
        words = (f"the description ({text})",)
        dropped, made = (dropped, (*words, *made)) if by_maker else ((*words, *dropped), made)
    facts = replace(
        found.facts,
        dropped=(*found.facts.dropped, *dropped),
        provenance=(*found.facts.provenance, *made),
    )
    return replace(found, facts=facts)


def _describe_dialect(opened: OpenSeries, axes: Axes, path: str) -> Description:
    tiff, image, page = opened.tiff, opened.image, opened.series.keyframe
    dialect = dialect_of(tiff, opened.series)
    with tiff_errors(path):
        resolution = [page.tags.valueof(code) for code in (282, 283)]
        unit_tag = page.tags.valueof(296)
        if dialect == "ome":
            found = (
                Description()
                if image is None
                else tiff_ome.read_ome(image.image, image.pixels, axes)
            )
            if found.grid.spacing is None and opened.json:
                found = replace(
                    found,
                    grid=tiff_metadata.read_shaped(opened.json, resolution, unit_tag, axes).grid,
                )
            root = parse_xml(tiff.ome_metadata, path)
            dropped, made = tiff_ome.unused_elements(root)
            facts = replace(found.facts, dropped=dropped, provenance=made)
            return replace(found, facts=facts, history=tiff_ome.ome_history(root))
        if dialect == "imagej":
            metadata = dict(tiff.imagej_metadata or {})
            if page.photometric == PALETTE and page.colormap is not None:
                metadata["LUTs"] = [(page.colormap >> 8).astype(np.uint8)]
            return tiff_metadata.read_imagej(metadata, resolution, unit_tag, axes)
        if dialect == "shaped":
            return tiff_metadata.read_shaped(
                (tiff.shaped_metadata or ({},))[0], resolution, unit_tag, axes
            )
        return tiff_vendors.read_vendor(tiff, opened.series, axes)


def _contents(opened: OpenSeries) -> dict[str, str]:
    """The series and levels of a file in words, where it has several: {"series": ...}."""
    found = {}
    if len(opened.listed) > 1:
        found["series"] = f"{opened.number} is read, of {list_images(opened.listed)}"
    levels = opened.series.levels if opened.series.is_pyramidal else ()
    if levels:
        shapes = (" x ".join(map(str, level.shape)) for level in levels)
        found["levels"] = f"the first is read, of {', '.join(shapes)}"
    return found


def holds_more(path: str) -> bool:
    """True if a file holds images besides the one that its name selects; False if unreadable."""
    if is_stack_name(path):
        return False
    try:
        opened = open_series(path, axes_given=True)
    except Conv3DError:
        return False
    opened.tiff.close()
    return len(opened.listed) > 1


def _series_notes(opened: OpenSeries, name: str) -> list[str]:
    """What the file holds and its reader leaves out, in words; not what the user chose to leave.

    name : str      the file, or `FILE::PART`
    """
    tiff, image, series = opened.tiff, opened.image, opened.series
    path, part = split_part(name)
    notes = []
    is_ome = image is not None and series.kind == "ome"
    count = image.here if is_ome and image is not None else len(opened.listed)
    others = [k for k in range(len(opened.listed)) if k != opened.number and not part]
    if count > 1 and others:
        notes.append(
            f"the file holds {count} image series: number {opened.number} is used, shape "
            f"{series.shape}; {path}::{others[0]} names another"
        )
    elif count == 0 and is_ome and others:
        notes.append(
            f"the file describes {len(opened.listed)} images in other files: "
            f"number {opened.number} is used, shape {series.shape}; {path}::{others[0]} names "
            "another"
        )
    if not is_ome or count <= 1:
        notes += _unused_pages(opened)
    if series.is_pyramidal:
        notes.append(
            f"the file holds {len(series.levels)} levels of resolution: the full one is used"
        )
    if series.keyframe.photometric == PALETTE and not tiff.is_imagej:
        notes.append(
            "the file's voxels are indices into a table of colours; they are used as plain numbers"
        )
    if series.keyframe.photometric == MINISWHITE:
        notes.append(
            "the file shows 0 as white; its values are used unchanged, "
            "and the output shows 0 as black"
        )
    return notes


def _unused_pages(opened: OpenSeries) -> list[str]:
    """A note on pages of the file that belong to no series; small versions of others aside."""
    if any(page.parent is not opened.tiff for page in opened.pages) or (
        opened.image is None and len(opened.tiff.series) > 1
    ):
        return []
    levels = opened.series.levels if opened.series.is_pyramidal else ()
    used = {page.offset for page in opened.pages}
    used |= {page.offset for level in levels for page in level.pages if page is not None}
    count = sum(not (d.beside or d.offset in used) for d in opened.directories)
    if not count or (opened.series.is_truncated and len(opened.pages) == 1):
        return []
    of = f"{count} of the file's {len(opened.directories)} pages"
    return [
        f"{of} {'belongs' if count == 1 else 'belong'} to no image of its description: left out"
    ]


# --------------------------------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class FileLayout:
    """How a volume is stored in an output.

    dialect : str           "imagej" | "ome" | "shaped"
    axes : Axes             storage order; the same volumes, planes and channels as the header's
    dtype : numpy dtype     as stored, little-endian
    big : bool              64-bit offsets (BigTIFF)
    notes : tuple of str    what the file cannot store unchanged
    remarks : tuple of str  what it stores unchanged in another dialect
    """

    dialect: str
    axes: Axes
    dtype: np.dtype[Any]
    big: bool
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()


class StackWriter(RawWriter):
    """A writer of uncompressed voxels, in any order of slabs, after the directories are written.

    offset : int            byte of the first voxel
    """

    def __init__(
        self, output: OutputFile, header: VolumeHeader, path: str, offset: int, layout: FileLayout
    ) -> None:
        super().__init__(output, header, path, offset, layout.dtype)
        self.stored_axes = layout.axes


def output_letters(letters: str, channels: int, dtype: np.dtype[Any] | None = None) -> str:
    """Batch axes first, then z, c, y, x; samples of a pixel (s) last.

    In ImageJ's and OME's dialects the file's order and letters may differ; see `choose_layout`.
    >>> output_letters("xyz", 1), output_letters("ctzyx", 2), output_letters("zyxs", 3)
    ('zyx', 'tzcyx', 'zyxs')
    """
    batch = "".join(a for a in letters if a not in "zyxcs")
    channel = "".join(a for a in letters if a in "cs") or ("c" if channels > 1 else "")
    depth = "z" if "z" in letters else ""
    # c before s numbers the channels as the input does; so does s alone, wherever it is
    last = "s" if channel.endswith("s") else ""
    return batch + depth + channel.removesuffix("s") + "yx" + last


def create_tiff(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start a TIFF file.

    An uncompressed file begins with all directories and descriptions, and voxels follow. A
    compressed one is written page after page.
    Raises: OutputExistsError; WriteError for a dtype or a shape that the file cannot store.
    """
    compression = options.compression
    need_codec(path, compression)
    layout = choose_layout(path, header, compression != "none")
    output = output_file(path, overwrite)
    writer: VolumeWriter
    try:
        if compression == "none":
            with write_errors(path):
                offset, note = _write_directories(output, header, layout, path)
            writer = StackWriter(output, header, path, offset, layout)
        else:
            page, first, note = _page_arguments(header, layout)
            writer = PackedStackWriter(
                output,
                header,
                path,
                layout.axes,
                layout.dtype,
                big=layout.big,
                page=page,
                first=first,
                compression=compression,
                level=options.gz_level,
                threads=options.threads,
            )
    except BaseException:
        output.abort()
        raise
    writer.notes = (*layout.notes, *([note] if note else []))
    writer.remarks = layout.remarks
    if compression == "zstd" and layout.dialect == "imagej":
        deflate = setting("compression", "deflate")
        remark = f"ImageJ itself opens no zstd, other programs do; {deflate} suits all"
        writer.remarks = (*writer.remarks, remark)
    return writer


def choose_layout(path: str, header: VolumeHeader, compressed: bool = False) -> FileLayout:
    """The dialect and storage order of an output.

    path : str              OME-TIFF if the name asks for it
    compressed : bool       pages are written one after another, in the header's order
    Raises: WriteError if TIFF, or the dialect that the name asks for, cannot store the volume.
    """
    dtype = np.dtype(np.uint8) if header.dtype == np.bool_ else header.dtype
    notes = ["truth values are stored as 0 and 1 (uint8)"] if header.dtype == np.bool_ else []
    if math.prod(header.shape) == 0:
        raise WriteError(f"cannot write {path}: TIFF holds no empty volume, shape {header.shape}")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise WriteError(
            f"cannot write {path}: TIFF holds no {dtype}; pass {setting('dtype', 'float32')}"
        )

    frames, depth, height, width, channels = header.shape
    rgb = (
        dtype == np.uint8 and header.axes.letters.endswith("s") and header.axes.size("s") in (3, 4)
    )
    if compressed and not header.axes.channels_within_plane:
        rgb = False  # the samples of a pixel come one by one, so each becomes a channel
    samples = header.axes.size("s") if rgb else 1
    sizes = {
        "t": frames,
        "z": depth,
        "c": channels // samples,
        "y": height,
        "x": width,
        "s": samples,
    }
    batch = header.axes.batch_letters
    directories = DIRECTORY_BYTES * frames * depth * sizes["c"]
    asked = path.lower().endswith(BIG_SUFFIXES)
    big = asked or math.prod(header.shape) * dtype.itemsize + directories > CLASSIC_LIMIT

    dialect, reason = "imagej", ""
    remarks: tuple[str, ...] = ()
    if suffix_of(path).startswith(".ome."):
        dialect = "ome"
        if dtype.name not in tiff_ome.OME_TYPES:
            raise WriteError(
                f"cannot write {path}: OME-TIFF holds no {dtype}; "
                f"pass {setting('dtype', 'float32')}, or name it .tif"
            )
    elif dtype.name not in IMAGEJ_DTYPES:
        reason = f"{dtype} does not fit ImageJ TIFF"
    elif big and not asked:
        reason = "a file above 4 GB does not fit ImageJ TIFF"
    elif len(batch) > 1:
        reason = f"axes {batch} do not fit ImageJ TIFF"
    if reason or (asked and dialect == "imagej"):
        dialect = "ome" if dtype.name in tiff_ome.OME_TYPES and len(batch) < 2 else "shaped"
        written = "OME-TIFF" if dialect == "ome" else "plain TIFF with its axes in the description"
    if reason:
        remarks = (f"{reason}: written as {written}{' (BigTIFF)' if big else ''}",)

    letters = "tzcyx"
    if dialect == "shaped":
        letters = batch + "z" * ("z" in header.axes.letters) + "c" * (sizes["c"] > 1) + "yx"
        sizes.update((a, header.axes.size(a)) for a in batch)
    elif dialect == "ome":
        letters = ("tzc" if compressed else _ome_order(header)) + "yx"
    letters += "s" if rgb else ""
    if dialect != "shaped" and batch not in ("", "t"):
        notes.append(f"axes {batch} are stored as t")
    axes = Axes(letters, tuple(sizes[a] for a in letters))
    return FileLayout(dialect, axes, dtype.newbyteorder("<"), big, tuple(notes), remarks)


def kept_facts(path: str, header: VolumeHeader) -> frozenset[str]:
    """What of `Facts` an output holds; its dialect decides: see `VolumeFormat.keeps`.

    ImageJ has no name of an image, and its times are in seconds.
    """
    dialect, facts = choose_layout(path, header).dialect, header.facts
    source = header.metadata if isinstance(header.metadata, TiffMetadata) else None
    kept = {"name", "time_step", "channel_names", "channel_colors"}
    if source is not None and source.dialect == dialect:
        kept |= set(facts.others)
    elif dialect != "shaped" and facts.seconds is None:
        kept -= {"time_step"}
    if "s" in header.axes.letters and dialect != "shaped":
        kept -= {"channel_names", "channel_colors"}
    return frozenset(kept - {"name"} if dialect == "imagej" else kept)


def _ome_order(header: VolumeHeader) -> str:
    """t, z and c in the order of the volume's OME file; "tzc" if it comes from none."""
    source = header.metadata
    if isinstance(source, TiffMetadata) and source.dialect == "ome":
        own = [a for a in source.axes.letters if a in "tzc"]
        if len(own) == 3:
            return "".join(own)
        if own == ["c", "z"]:
            return "tcz"
    return "tzc"


def _write_directories(
    output: OutputFile, header: VolumeHeader, layout: FileLayout, path: str
) -> tuple[int, str]:
    """Write everything but the voxels. Returns the byte of the first voxel, and a note."""
    import tifffile

    shape = layout.axes.shape
    arguments: dict[str, Any] = {}
    if layout.dialect == "imagej":
        items, resolution, note = tiff_metadata.imagej_items(header, layout.axes)
        shape = _imagej_shape(layout.axes)
        arguments = {"metadata": {"axes": "TZCYXS", **items}, "resolution": resolution}
    elif layout.dialect == "ome":
        xml, note = tiff_ome.ome_xml(header, layout.axes, layout.dtype)
        arguments = {"metadata": None, "description": xml.encode()}
    else:
        items, note = tiff_metadata.shaped_items(header)
        arguments = {"metadata": {"axes": layout.axes.letters.upper(), **items}}
    arguments |= _colours(layout.axes)
    try:
        with tifffile.TiffWriter(
            output.file,
            bigtiff=layout.big,
            byteorder="<",
            imagej=layout.dialect == "imagej",
            ome=False,
        ) as writer:
            place: Any = writer.write(
                shape=shape, dtype=layout.dtype, software="conv3d", returnoffset=True, **arguments
            )
    except (ValueError, RuntimeError) as error:
        raise WriteError(f"cannot write {path}: {error}") from error
    output.file.flush()
    return place[0], note


def _page_arguments(
    header: VolumeHeader, layout: FileLayout
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Arguments of tifffile's `write`: for each page, and for the first alone; and a note."""
    import tifffile

    page: dict[str, Any] = _colours(layout.axes)
    first: dict[str, Any] = {"software": "conv3d"}
    if layout.dialect == "imagej":
        items, resolution, note = tiff_metadata.imagej_items(header, layout.axes)
        binary = {key: items.pop(key) for key in IMAGEJ_BINARY if key in items}
        rgb = "s" in layout.axes.letters
        text = tifffile.imagej_description(
            _imagej_shape(layout.axes), axes="TZCYXS", rgb=rgb, **items
        )
        page |= {"resolution": resolution, "resolutionunit": "none"}
        first |= {"description": text, "extratags": tifffile.imagej_metadata_tag(binary, "<")}
    elif layout.dialect == "ome":
        xml, note = tiff_ome.ome_xml(header, layout.axes, layout.dtype)
        first["description"] = xml.encode()
    else:
        items, note = tiff_metadata.shaped_items(header)
        shaped = {"shape": list(layout.axes.shape), "axes": layout.axes.letters.upper(), **items}
        first["description"] = json.dumps(shaped)
    return page, first, note


def _imagej_shape(axes: Axes) -> tuple[int, ...]:
    return axes.shape if "s" in axes.letters else (*axes.shape, 1)


def _colours(axes: Axes) -> dict[str, Any]:
    return (
        {"photometric": "rgb", "planarconfig": "contig"}
        if "s" in axes.letters
        else {"photometric": "minisblack"}
    )


def output_bytes(header: VolumeHeader, channels: int, options: OutputOptions) -> int:
    """Memory that writing takes besides the blocks: see `VolumeFormat.output_bytes`."""
    return packing_bytes(header, options.compression)
