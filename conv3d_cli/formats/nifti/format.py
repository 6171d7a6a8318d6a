"""NIfTI-1 and NIfTI-2: `.nii`, `.nii.gz`, `.nii.zst` and `.hdr`/`.img` pairs.

Reads and writes either byte order, scaled integers, vectors and RGB. Uncompressed voxels are
memory-mapped; compressed ones are unpacked forward only, slab by slab. No memory is allocated for a
header that promises more than its file can hold. header.py and grid.py interpret headers.

Dimensions 1 to 7 are the axes x y z t c a b, so a 4-D series is `tzyx` and a 5-D vector volume
`ctzyx`. The samples of an RGB voxel are the axis `s`, the fastest.
"""

from __future__ import annotations

import math
import os
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    PairWriter,
    RawReader,
    RawWriter,
    SpooledWriter,
    real_dtype,
)
from conv3d_cli.formats.codecs import Codec, codec_named, codec_within
from conv3d_cli.formats.nifti import FORMAT, cifti, is_nifti
from conv3d_cli.formats.nifti.grid import permuted, read_grid
from conv3d_cli.formats.nifti.header import (
    LABEL_INTENT,
    LETTERS,
    RGB_LETTERS,
    NiftiSource,
    add_history,
    header_bytes,
    magic_notes,
    output_header,
    read_extensions,
    read_header,
    read_history,
    read_layout,
    read_others,
    read_provenance,
    read_scale,
    read_time_step,
    read_voxel_offset,
    refuse_half,
    source_of,
    stored_axes,
    surface_notes,
)
from conv3d_cli.formats.packed import PackedStream, PackedWriter, open_packed, packed
from conv3d_cli.formats.signatures import read_start
from conv3d_cli.model.volume import SPATIAL, Axes, Facts, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.system.atomic import OutputFile, check_target, output_file, suffix_of, write_errors
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.portable import write_at

# --------------------------------------------------------------------------------------------------
# Names


def _is_pair(path: str) -> bool:
    return suffix_of(path) in (".hdr", ".img", ".hdr.gz", ".img.gz")


def _renamed(path: str, suffix: str) -> str:
    """The path with another suffix, in capitals if the old one is."""
    old = path[len(path) - len(suffix_of(path)) :]
    return path[: len(path) - len(old)] + (suffix.upper() if old.isupper() else suffix)


def _input_names(path: str) -> tuple[str, str]:
    """Header and voxel file of an input; the same name twice if it is one file.

    The two files of a pair may be compressed or not, each by itself.
    Raises: FormatError if one of them is missing.
    """
    if not _is_pair(path):
        return path, path
    check_input(path)
    suffix = suffix_of(path)
    kind, tail = (".img" if suffix.startswith(".hdr") else ".hdr"), suffix[4:]
    others = [_renamed(path, kind + tail), _renamed(path, kind + ("" if tail else ".gz"))]
    other = next((name for name in others if os.path.exists(name)), None)
    if other is None:
        start = read_start(path)
        if start is not None and is_nifti(start, single=True):
            return path, path  # one file with a pair's name
        what = "voxels" if kind == ".img" else "header"
        raise FormatError(
            f"cannot read {path}: the {what} of this pair must be in the same folder, "
            f"and there is no file {others[0]}"
        )
    return (path, other) if kind == ".img" else (other, path)


def input_files(path: str) -> tuple[str, ...]:
    """The files of an input: one, or the header and the voxels of a pair.

    Raises: FormatError if one of a pair is missing.
    """
    return tuple(dict.fromkeys(_input_names(path)))


def output_files(path: str) -> tuple[str, ...]:
    """The files of an output: one, or the header and the voxels of a pair."""
    if not _is_pair(path):
        return (path,)
    tail = suffix_of(path)[4:]
    return _renamed(path, ".hdr" + tail), _renamed(path, ".img" + tail)


# --------------------------------------------------------------------------------------------------
# Reading


def open_nifti(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a NIfTI file, or a pair by the name of either file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, truncated or corrupt, or if its header cannot be true;
        WriteError if it has to be unpacked into $TMPDIR and does not fit.
    """
    header_path, voxel_path = _input_names(path)
    pair = header_path != voxel_path
    header_size, voxel_size = check_input(header_path), check_input(voxel_path)
    # the content decides, not the name, wherever it can
    header_codec = codec_within(header_path)
    voxel_codec = codec_named(voxel_path) if pair else header_codec
    with ExitStack() as opened:
        head = _open_bytes(header_path, header_codec)
        opened.callback(head.close)
        header = read_header(head.read, header_path, pair)
        intent = int(header["intent_code"])
        cifti.refuse_cifti(header_path, intent)
        notes: list[str] = []
        sizes, stored, samples = read_layout(header, header_path, notes)
        offset = read_voxel_offset(header, header_path, pair)
        promised = offset + math.prod(sizes) * max(1, samples) * stored.itemsize
        what = f"its header promises {promised} bytes (shape {sizes[::-1]}, {stored})"
        if voxel_codec is None and promised > voxel_size:
            refuse_half(header, header_path, pair)
            raise FormatError(
                f"cannot read {voxel_path}: truncated: {what}, the file has {voxel_size}; copy it "
                "again"
            )
        if voxel_codec is not None and promised > voxel_size * voxel_codec.largest_inflation:
            raise FormatError(
                f"cannot read {voxel_path}: truncated or damaged: {what}, "
                f"more than {voxel_size} packed bytes can hold; copy it again"
            )
        header_end = (
            header_size * (header_codec.largest_inflation if header_codec else 1)
            if pair
            else offset
        )
        notes += magic_notes(header, pair)
        extensions = read_extensions(head.read, header, header_end, pair, notes)
        cifti.refuse_cifti(header_path, intent, (code for code, _ in extensions))
        channels = samples or (sizes[4] if len(sizes) > 4 else 1)
        grid = read_grid(header, header_path, notes)
        source = NiftiSource(header, extensions, pair, grid, channels)
        volume = _volume_header(source, sizes, stored, samples, axes, header_path)
        voxels = head
        if pair:
            voxels = _open_bytes(voxel_path, voxel_codec)
            opened.callback(voxels.close)
        if isinstance(voxels, PackedStream):
            reader: VolumeReader = open_packed(voxels, volume, stored, offset)
        else:
            reader = RawReader(voxels, volume, voxel_path, stored, offset)
        reader.notes = (*reader.notes, *notes, *(surface_notes(sizes) if axes is None else ()))
        opened.pop_all()
        if pair:
            head.close()
        return reader


def nifti_content(path: str) -> str:
    """ "labels" or "cifti" if the header says that the values are not an image, else "".

    Raises: FormatError.
    """
    header_path, voxel_path = _input_names(path)
    pair = header_path != voxel_path
    check_input(header_path)
    with closing(_open_bytes(header_path, codec_within(header_path))) as head:
        header = read_header(head.read, header_path, pair)
        intent = int(header["intent_code"])
        if intent == LABEL_INTENT:
            return "labels"
        codes: list[int] = []
        if not cifti.is_cifti(intent) and not pair and header.sizeof_hdr == 540:
            end = read_voxel_offset(header, header_path, pair)
            codes = [code for code, _ in read_extensions(head.read, header, end, pair, [])]
        return "cifti" if cifti.is_cifti(intent, codes) else ""


def _open_bytes(path: str, codec: Codec | None) -> BinaryIO | PackedStream:
    return open(path, "rb") if codec is None else PackedStream(path, codec)


def _volume_header(
    source: NiftiSource,
    sizes: tuple[int, ...],
    stored: np.dtype[Any],
    samples: int,
    axes: str | None,
    path: str,
) -> VolumeHeader:
    letters = (RGB_LETTERS if samples else LETTERS)[: len(sizes)][::-1] + ("s" if samples else "")
    volume_axes = Axes(axes or letters, sizes[::-1] + ((samples,) if samples else ()))
    scale = (1.0, 0.0) if samples else read_scale(source.header, path)
    history = read_history(source.extensions)
    volume = VolumeHeader(
        volume_axes,
        real_dtype(stored, path),
        source.grid,
        scale,
        FORMAT.name,
        source,
        file_dtype=stored,
        history=history,
        facts=Facts(
            time_step=read_time_step(source.header) if volume_axes.size("t") > 1 else None,
            others=read_others(source.header, source.extensions),
            provenance=read_provenance(source.header),
        ),
    )
    dimensions = {a: len(sizes) - i for i, a in enumerate(volume_axes.letters) if a in SPATIAL}
    if any(dimensions[a] != 1 + "xyz".index(a) for a in dimensions):
        # `axes` makes other dimensions space: the header's slices and orientation do not apply
        return replace(volume, grid=permuted(source.grid, dimensions), metadata=None)
    return volume


# --------------------------------------------------------------------------------------------------
# Writing


def create_nifti(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start a NIfTI file, or a pair by the name of either file.

    header : VolumeHeader   of any axis order; the writer's own header has the file's order
    Raises: OutputExistsError; WriteError for a dtype or a shape that NIfTI cannot store.
    """
    files = output_files(path)
    header_path, voxel_path, pair = files[0], files[-1], len(files) == 2
    codec = codec_named(path)
    if codec is not None:
        codec.require(path, WriteError)
    if math.prod(header.shape) == 0:
        raise WriteError(
            f"cannot write {path}: NIfTI holds no empty volume, shape {header.shape}; write .npy"
        )
    source = source_of(header)
    axes = stored_axes(header.axes, header.dtype)
    try:
        fields, notes = output_header(header, axes, pair)
        prefix = header_bytes(
            fields, add_history(fields, () if source is None else source.extensions, header.history)
        )
    except WriteError as error:
        raise WriteError(f"cannot write {path}: {error}") from None
    opened = [output_file(voxel_path, overwrite)]
    try:
        if pair:
            opened.append(output_file(header_path, overwrite, is_header=True))
        with write_errors(header_path):
            head = packed(prefix, codec, options.gz_level) if pair and codec is not None else prefix
            if pair or codec is None:
                write_at(opened[-1].file, memoryview(head), 0)
        writer = _voxel_writer(
            opened[0],
            replace(header, axes=axes),
            voxel_path,
            b"" if pair else prefix,
            codec,
            options,
        )
        if pair:
            writer = PairWriter(writer, opened[1])
        writer.notes = tuple(notes)
        # The caller writes in the order of its own axes. If the file's order differs, a stream can
        # begin only when all voxels are there.
        return SpooledWriter(writer) if writer.sequential and axes != header.axes else writer
    except BaseException:
        for output in opened:
            output.abort()
        raise


def _voxel_writer(
    output: OutputFile,
    header: VolumeHeader,
    path: str,
    prefix: bytes,
    codec: Codec | None,
    options: OutputOptions,
) -> VolumeWriter:
    stored = header.dtype.newbyteorder("<")
    if codec is None:
        return RawWriter(output, header, path, len(prefix), stored)
    return PackedWriter(
        output, header, path, prefix, stored, codec, options.gz_level, options.threads
    )


def check_nifti_target(path: str, overwrite: bool, make_folder: bool = False) -> None:
    """As `check_target`, and check that the codec is installed.

    Raises: OutputExistsError, WriteError.
    """
    check_target(path, overwrite, make_folder)
    codec = codec_named(path)
    if codec is not None:
        codec.require(path, WriteError)
