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

from conv3d_cli.errors import FormatError, WriteError, setting
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawReader,
    RawWriter,
    real_dtype,
)
from conv3d_cli.formats.tiff import metadata as tiff_metadata
from conv3d_cli.formats.tiff import ome as tiff_ome
from conv3d_cli.formats.tiff.compressed import (
    PackedStackWriter,
    need_codec,
    packing_bytes,
)
from conv3d_cli.formats.tiff.files import check_beside
from conv3d_cli.formats.tiff.metadata import Description, TiffMetadata
from conv3d_cli.formats.tiff.pages import PagedArray
from conv3d_cli.formats.tiff.series import (
    OpenSeries,
    dialect_of,
    mapped_offset,
    open_series,
    tiff_errors,
    value_scale,
)
from conv3d_cli.model.volume import ArrayReader, Axes, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.system.atomic import AtomicFile, suffix_of, write_errors

IMAGEJ_DTYPES = ("uint8", "int16", "uint16", "float32")
CLASSIC_LIMIT = 2**32 - 2**25  # bytes of voxels and directories in a file with 32-bit offsets
DIRECTORY_BYTES = 400  # of one page, estimated high
MINISWHITE, PALETTE = 0, 3
# metadata that ImageJ stores in tags of their own, not in the description
IMAGEJ_BINARY = ("Info", "info", "Labels", "LUTs")
SPARE_LETTERS = "taburefghijklmnopqvwd"


# --------------------------------------------------------------------------------------------------
# Reading


class PagedReader(ArrayReader):
    """A reader of TIFF pages that are decoded when they are asked for.

    tiff : TiffFile         of tifffile; the reader closes it
    """

    def __init__(self, tiff: Any, array: PagedArray, header: VolumeHeader, path: str) -> None:
        super().__init__(array, header, path)  # type: ignore[arg-type]
        self._pages, self._tiff = array, tiff

    def buffer_bytes(self, planes: int, channels: int) -> int:
        return self._pages.buffer_bytes()

    def storage(self) -> dict[str, str]:
        return self._pages.storage()

    def close(self) -> None:
        self.array = np.empty(0)
        self._pages.close()
        self._tiff.close()


def open_tiff(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open the first image series of a TIFF file; of an OME-TIFF, see `images.find_image`.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    channels_first : bool   of two unnamed axes of pages, read the slower one as channels, not time
    Raises: FormatError.
    """
    opened = open_series(path, axes is not None)
    tiff, series = opened.tiff, opened.series
    try:
        check_beside(series, opened.pages, path)
        found, notes = _stored_axes(tiff, series, axes, channels_first, path)
        described = _describe(opened, found, path)
        header = VolumeHeader(
            found,
            real_dtype(series.dtype, path),
            described.grid,
            value_scale(opened),
            "TIFF",
            TiffMetadata(
                dialect_of(tiff, series),
                found,
                described.units,
                described.items,
            ),
            history=described.history,
            facts=described.facts,
        )
        offset = mapped_offset(opened, path)
        reader: RawReader | PagedReader
        if offset is None:
            array = PagedArray(opened.pages, found.shape, series.dtype, path, tiff.filehandle)
            reader = PagedReader(tiff, array, header, path)
        else:
            file = open(path, "rb")  # noqa: SIM115 - the reader closes it
            try:
                reader = RawReader(
                    file, header, path, series.dtype.newbyteorder(tiff.byteorder), offset
                )
            except BaseException:
                file.close()
                raise
            tiff.close()
        reader.notes = (*notes, *_series_notes(opened), *described.notes)
        return reader
    except BaseException:
        tiff.close()
        raise


def _stored_axes(
    tiff: Any, series: Any, given: str | None, channels_first: bool, path: str
) -> tuple[Axes, list[str]]:
    """Axes of the series, and notes on guesses.

    Raises: FormatError; SpecError for impossible letters in `given`.
    """
    letters, shape = series.axes.lower(), tuple(int(n) for n in series.shape)
    if given is not None:
        full = _full_shape(tiff, series)
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
    """The shape of the first series, including the axes of size 1 that tifffile leaves out."""
    # tifffile has `get_shape`; from 2026.5.2 on it has `squeeze` instead
    whole = (
        series.get_shape(False)
        if hasattr(series, "get_shape")
        else tiff.series(squeeze=False)[0].shape
    )
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
            return replace(found, history=tiff_ome.ome_history(tiff.ome_metadata))
        if dialect == "imagej":
            metadata = dict(tiff.imagej_metadata or {})
            if page.photometric == PALETTE and page.colormap is not None:
                metadata["LUTs"] = [(page.colormap >> 8).astype(np.uint8)]
            return tiff_metadata.read_imagej(metadata, resolution, unit_tag, axes)
        if dialect == "shaped":
            return tiff_metadata.read_shaped(
                (tiff.shaped_metadata or ({},))[0], resolution, unit_tag, axes
            )
    return Description()


def _series_notes(opened: OpenSeries) -> list[str]:
    tiff, image, series = opened.tiff, opened.image, opened.series
    notes = []
    count = image.here if image is not None and series.kind == "ome" else len(tiff.series)
    if count > 1:
        notes.append(
            f"the file holds {count} image series: the first is used, shape {series.shape}"
        )
    elif count == 0 and image is not None and image.described > 1:
        notes.append(
            f"the file describes {image.described} images in other files: "
            f"the first is used, shape {series.shape}"
        )
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
    """

    dialect: str
    axes: Axes
    dtype: np.dtype[Any]
    big: bool
    notes: tuple[str, ...]


class StackWriter(RawWriter):
    """A writer of uncompressed voxels, in any order of slabs, after the directories are written.

    offset : int            byte of the first voxel
    """

    def __init__(
        self, output: AtomicFile, header: VolumeHeader, path: str, offset: int, layout: FileLayout
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
    output = AtomicFile(path, overwrite)
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
    notes = [*layout.notes, *([note] if note else [])]
    if compression == "zstd" and layout.dialect == "imagej":
        notes.append(
            "ImageJ itself opens no zstd, other programs do; "
            f"{setting('compression', 'deflate')} suits all"
        )
    writer.notes = tuple(notes)
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
        raise WriteError(f"cannot write {path}: TIFF holds no {dtype}; use another dtype")

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
    big = math.prod(header.shape) * dtype.itemsize + directories > CLASSIC_LIMIT

    dialect, reason = "imagej", ""
    if suffix_of(path).startswith(".ome."):
        dialect = "ome"
        if dtype.name not in tiff_ome.OME_TYPES:
            raise WriteError(
                f"cannot write {path}: OME-TIFF holds no {dtype}; "
                "use another dtype, or name it .tif"
            )
    elif dtype.name not in IMAGEJ_DTYPES:
        reason = f"{dtype} does not fit ImageJ TIFF"
    elif big:
        reason = "a file above 4 GB does not fit ImageJ TIFF"
    elif len(batch) > 1:
        reason = f"axes {batch} do not fit ImageJ TIFF"
    if reason:
        dialect = "ome" if dtype.name in tiff_ome.OME_TYPES and len(batch) < 2 else "shaped"
        written = "OME-TIFF" if dialect == "ome" else "plain TIFF with its axes in the description"
        notes.append(f"{reason}: written as {written}{' (BigTIFF)' if big else ''}")

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
    return FileLayout(dialect, axes, dtype.newbyteorder("<"), big, tuple(notes))


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
    output: AtomicFile, header: VolumeHeader, layout: FileLayout, path: str
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
