"""TIFF volumes: ImageJ hyperstacks, OME-TIFF, tifffile's own and plain stacks; BigTIFF, either byte order.

Voxels stored in one piece are memory-mapped; otherwise (compressed, tiled, scattered) pages are decoded one by one as they
are asked for. Pages whose axis has no name lie along z. The print resolution of a plain TIFF is not taken for a voxel
size: nothing tells the size along z, and programs write 72 or 300 dots per inch without being asked.

Written is what the name asks for: OME-TIFF under .ome.tif; else an ImageJ hyperstack where ImageJ can hold the volume
(uint8, int16, uint16, float32, below 4 GB), else OME-XML in a .tif, and a note says so. Slabs of an uncompressed output may
come in any order, those of a compressed one in storage order; the same volume always gives the same bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawReader,
    RawWriter,
    VolumeFormat,
    real_dtype,
)
from conv3d_cli.formats.tiff import metadata as tiff_metadata
from conv3d_cli.formats.tiff import ome as tiff_ome
from conv3d_cli.formats.tiff.compressed import (
    COMPRESSIONS,
    PackedStackWriter,
    need_codec,
    packing_bytes,
)
from conv3d_cli.formats.tiff.files import check_beside, input_files
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
DIRECTORY_BYTES = 400  # of one page, generously
MINISWHITE, PALETTE = 0, 3
# metadata in tags of their own, not in the description
IMAGEJ_BINARY = (
    "Info",
    "info",
    "Labels",
    "LUTs",
)
SPARE_LETTERS = "taburefghijklmnopqvwd"


# --------------------------------------------------------------------------------------------------
# Reading


class PagedReader(ArrayReader):
    """A TIFF volume whose pages are decoded as they are asked for."""

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
    """Open the first image series of a TIFF file; of an OME-TIFF the image that the file stands for (`tiff_images.py`)."""
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
                described.interval,
                described.items,
            ),
            history=described.history,
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
    """Axes of the series, and notes about what had to be guessed.

    Raises: FormatError; SpecError for axes given that are none.
    """
    letters, shape = series.axes.lower(), tuple(int(n) for n in series.shape)
    if given is not None:
        full = _full_shape(tiff, series)
        shape = full if len(given) == len(full) else shape
        if len(given) != len(shape):
            raise FormatError(
                f"cannot read {path}: --axes {given} names {len(given)} axes, it has {len(shape)}: shape {shape} ({letters})"
            )
        return Axes(given, shape), []
    notes = []
    unnamed = [i for i, a in enumerate(letters) if a in "iq"]
    if unnamed and "z" not in letters:
        names = list(letters)
        names[unnamed[-1]] = "z"
        if len(unnamed) > 1:
            # slower than z: time, or channels where they are said to come first
            names[unnamed[-2]] = (
                "c" if channels_first and "c" not in letters and "s" not in letters else "i"
            )
        letters = "".join(names)
    named = _different(letters)
    if "y" not in named or "x" not in named:
        raise FormatError(
            f"cannot read {path}: its axes are '{series.axes}', shape {shape}; name them with --axes"
        )
    if len(unnamed) > 1:
        notes.append(f"the file does not name its axes: read as {named}; --axes says otherwise")
    return Axes(named, shape), notes


def _full_shape(tiff: Any, series: Any) -> tuple[int, ...]:
    """The shape of the first series with its axes of size 1, which tifffile leaves out."""
    # tifffile has either the one or, from 2026.5.2 on, the other
    whole = (
        series.get_shape(False)
        if hasattr(series, "get_shape")
        else tiff.series(squeeze=False)[0].shape
    )
    return tuple(int(n) for n in whole)


def _different(letters: str) -> str:
    """Axis letters with those that are unnamed, none, or repeated replaced by spare ones.

    >>> _different("iqzyx"), _different("tttyx")
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
            f"the file describes {image.described} images in other files: the first is used, shape {series.shape}"
        )
    if series.is_pyramidal:
        notes.append(
            f"the file holds {len(series.levels)} levels of resolution: the full one is used"
        )
    if series.keyframe.photometric == PALETTE and not tiff.is_imagej:
        notes.append(
            "the file's voxels are numbers of colours in a table; they are used as plain numbers"
        )
    if series.keyframe.photometric == MINISWHITE:
        notes.append(
            "the file shows 0 as white; its values are used as they are, and written to be shown as black"
        )
    return notes


# --------------------------------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class FileLayout:
    """How a volume lies in the file to be written.

    dialect : str           "imagej" | "ome" | "shaped"
    axes : Axes             storage order; counts the same volumes, planes and channels as the header's
    dtype : numpy dtype     as stored, little-endian
    big : bool              64-bit offsets
    notes : tuple           what the file cannot hold as it is
    """

    dialect: str
    axes: Axes
    dtype: np.dtype[Any]
    big: bool
    notes: tuple[str, ...]


class StackWriter(RawWriter):
    """A TIFF volume whose directories are written already; voxels go to their places in any order of slabs."""

    def __init__(
        self, output: AtomicFile, header: VolumeHeader, path: str, offset: int, layout: FileLayout
    ) -> None:
        super().__init__(output, header, path, offset, layout.dtype)
        self.stored_axes = layout.axes


def output_letters(letters: str, channels: int, dtype: np.dtype[Any] | None = None) -> str:
    """Time and the like first, then z, c, y, x; samples of a pixel (s) last.

    A file in ImageJ's or OME's dialect may order or name its axes otherwise; see `choose_layout`.
    >>> output_letters("xyz", 1), output_letters("ctzyx", 2), output_letters("zyxs", 3), output_letters("zyx", 4)
    ('zyx', 'tzcyx', 'zyxs', 'zcyx')
    """
    batch = "".join(a for a in letters if a not in "zyxcs")
    channel = "".join(a for a in letters if a in "cs") or ("c" if channels > 1 else "")
    depth = "z" if "z" in letters else ""
    # c before s keeps counting channels as the input does; so does a lone s, wherever it is
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

    Uncompressed, its directories and descriptions are written and voxels follow; else page after page is.
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
                output, header, path, layout.axes, layout.dtype, big=layout.big, page=page, first=first,
                compression=compression, level=options.gz_level, threads=options.threads,
            )  # fmt: skip
    except BaseException:
        output.abort()
        raise
    notes = [*layout.notes, *([note] if note else [])]
    if compression == "zstd" and layout.dialect == "imagej":
        notes.append(
            "ImageJ itself opens no zstd, other programs do; --compression deflate suits both"
        )
    writer.notes = tuple(notes)
    return writer


def choose_layout(path: str, header: VolumeHeader, compressed: bool = False) -> FileLayout:
    """The dialect and storage order for a volume under a file name; that of the header, if slabs are to come in it.

    Raises: WriteError if TIFF, or the dialect the name asks for, cannot hold it.
    """
    dtype = np.dtype(np.uint8) if header.dtype == np.bool_ else header.dtype
    notes = ["truth values are stored as 0 and 1 (uint8)"] if header.dtype == np.bool_ else []
    if math.prod(header.shape) == 0:
        raise WriteError(f"cannot write {path}: TIFF holds no empty volume, shape {header.shape}")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise WriteError(f"cannot write {path}: TIFF holds no {dtype}; choose another --dtype")

    frames, depth, height, width, channels = header.shape
    rgb = (
        dtype == np.uint8 and header.axes.letters.endswith("s") and header.axes.size("s") in (3, 4)
    )
    if compressed and not header.axes.channels_within_plane:
        rgb = False  # samples of a pixel come one by one: each becomes a channel
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
                f"cannot write {path}: OME-TIFF holds no {dtype}; choose another --dtype, or name it .tif"
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


def _ome_order(header: VolumeHeader) -> str:
    """t, z and c in the order of the OME file the volume comes from."""
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
    """Write all of the file but the voxels: (where they begin, a note)."""
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
    """What tifffile is told of every page, and of the first alone, where pages are written one by one; and a note."""
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


FORMAT = VolumeFormat(
    name="TIFF",
    suffixes=(".ome.tiff", ".ome.tif", ".tiff", ".tif"),
    summary="ImageJ hyperstacks, OME-TIFF, BigTIFF and plain stacks, with their voxel sizes",
    open=open_tiff,
    create=create_tiff,
    output_letters=output_letters,
    files=input_files,
    compressions=tuple(COMPRESSIONS),
    libraries=("tifffile", "imagecodecs"),
    output_bytes=lambda header, channels, options: packing_bytes(header, options.compression),
)
