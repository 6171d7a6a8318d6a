"""Volume formats: one file each, one line each in `FORMATS`.

A format claims files by their suffix. To add one, write a module with a `FORMAT = VolumeFormat(...)`
whose `open` returns a `VolumeReader` and whose `create` returns a `VolumeWriter`, and put it into
`FORMATS`. The fields of `VolumeFormat` say what it can hold and how it stores it; nothing else in
the package knows it by name. The contract test in tests/formats/test_every_format.py then runs over
it, and kernels are read from it.

Every run imports every `FORMAT`, so this must be quick: a format of several modules has its
`FORMAT` in the `__init__.py` of its folder and names its functions by `late`. Third-party libraries
are imported inside `open` and `create`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from conv3d_cli.errors import Conv3DError, FormatError, OutputExistsError, SpecError
from conv3d_cli.formats import nifti, npy, nrrd, tiff, zarr
from conv3d_cli.formats.base import OutputOptions, VolumeFormat
from conv3d_cli.formats.zarr.names import is_url, local_folder
from conv3d_cli.model.spec import triple
from conv3d_cli.model.volume import (
    BoxAccess,
    Volume,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    parts_in_storage_order,
)

# in this order, since a name such as volumes.zarr/head.nii.gz is claimed by two
FORMATS: tuple[VolumeFormat, ...] = (
    nifti.FORMAT,
    tiff.FORMAT,
    npy.FORMAT,
    nrrd.FORMAT,
    zarr.FORMAT,
)


def find_format(path: str) -> VolumeFormat | None:
    """The format that claims a name by its suffix; "-" is .npy on a pipe. None if no format does.

    Folders with Zarr metadata and other URLs are Zarr stores.
    >>> find_format("brain.nii.gz").name, find_format("-").name, find_format("s3://b/x.zarr/1").name, find_format("x.jpg")
    ('NIfTI', 'NumPy', 'OME-Zarr', None)
    """
    return next((f for f in FORMATS if f.claims(path)), None)


def known_suffixes() -> str:
    """All suffixes, for messages."""
    return (
        " ".join(suffix for f in FORMATS for suffix in f.suffixes if suffix != "-")
        + ", and - for a .npy pipe"
    )


def is_stream(path: str, compression: str = "none") -> bool:
    """Whether a volume of this name can only be written forward: a pipe or a compressed file.

    Raises: SpecError for an unknown suffix.
    """
    return output_format(path).streamed(path, OutputOptions(compression=compression))


def open_volume(
    path: str, *, axes: str | None = None, channels_first: bool = False
) -> VolumeReader:
    """Open a volume for reading.

    axes : str or None          letters in storage order that replace what the file says (see `Axes`)
    channels_first : bool       how a 4-D or 5-D array without axis names is read: czyx, tczyx
    Raises: FormatError if the file is missing, empty, of no known format, or corrupt.
    """
    found = find_format(path)
    if found is None:
        if os.path.isdir(path):
            raise FormatError(f"cannot read {path}: it is a folder; name the files in it")
        raise FormatError(
            f"cannot read {path}: no format has this suffix; known are {known_suffixes()}"
        )
    _check_url(found, path, "read")
    return found.open(path, axes=axes, channels_first=channels_first)


def _check_url(found: VolumeFormat, path: str, verb: str) -> None:
    if is_url(path) and not found.reads_urls:
        raise (FormatError if verb == "read" else SpecError)(
            f"cannot {verb} {path}: {found.name} is read and written in files, and only "
            f"{_names(lambda f: f.reads_urls)} at URLs; name a file"
        )


def create_volume(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    gz_level: int = 1,
    threads: int | None = None,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    compression: str = "none",
) -> VolumeWriter:
    """Start writing a volume; the file appears when the writer is committed.

    header : VolumeHeader       its axes must be in this format's storage order: see `VolumeFormat.output_letters`
    gz_level, threads           of compressed outputs; they do not change what is unpacked, threads not even the bytes
    chunks : int or 3 ints      D, H, W of a chunk, for a format that has chunks; None leaves them to it
    levels : int                of resolution, for such a format
    compression : str           "none", or one of the format's `compressions`
    Raises: SpecError for an unknown suffix; OutputExistsError; WriteError if the format cannot hold it.
    """
    found = output_format(path)
    options = _options(found, path, chunks, levels, compression)
    return found.create(
        path,
        header,
        overwrite=overwrite,
        options=replace(options, gz_level=gz_level, threads=threads),
    )


def _options(
    found: VolumeFormat,
    path: str,
    chunks: int | Sequence[int] | None,
    levels: int,
    compression: str,
) -> OutputOptions:
    """The options of an output. Raises: SpecError for one that its format does not have."""
    check_compression(compression)
    if not found.chunked and (chunks is not None or levels != 1):
        option = "--chunks" if chunks is not None else "--levels"
        able = _names(lambda f: f.chunked)
        raise SpecError(
            f"cannot write {path}: {option} is for {able}, and {found.name} has none; leave it out"
        )
    if compression not in ("none", *found.compressions):
        able = _names(lambda f: compression in f.compressions)
        own = " or ".join(found.compressions) or "none"
        raise SpecError(
            f"cannot write {path}: --compression {compression} is for {able}, and {found.name} has {own}"
            + ("" if found.compressions else "; leave it out")
        )
    return OutputOptions(
        chunks=None if chunks is None else triple(chunks, "chunks"),
        levels=levels,
        compression=compression,
    )


def _names(holds: Callable[[VolumeFormat], bool]) -> str:
    """The formats of which something holds, for messages: "TIFF and NRRD"."""
    return " and ".join(found.name for found in FORMATS if holds(found))


def scaled_formats() -> str:
    """The formats that hold a slope and an intercept, with their suffixes, for messages.

    >>> scaled_formats()
    'NIfTI (.nii.gz .nii.zst .nii .hdr.gz .img.gz .hdr .img)'
    """
    return " and ".join(
        f"{found.name} ({' '.join(found.suffixes)})" for found in FORMATS if found.holds_scale
    )


def check_compression(compression: str) -> None:
    """Refuse what is no compression of any format. Raises: SpecError."""
    known = sorted({name for found in FORMATS for name in found.compressions})
    if compression not in ("none", *known):
        raise SpecError(f"compression must be none, {' or '.join(known)}, received {compression!r}")


def check_output(
    path: str,
    *,
    overwrite: bool = False,
    make_folder: bool = False,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    compression: str = "none",
) -> None:
    """Refuse an output that exists (unless `overwrite`), or cannot be written where its name says, before any work.

    make_folder : bool      its folder may be missing as long as it can be made
    Raises: OutputExistsError, WriteError, SpecError.
    """
    found = output_format(path)
    _options(found, path, chunks, levels, compression)
    if path != "-":
        found.check_target(path, overwrite, make_folder)


def lies_within(source: str, target: str) -> bool:
    """Whether a volume is the store `target`, or in it: an array or a level.

    >>> lies_within("s3://b/a.zarr/1", "s3://b/a.zarr/"), lies_within("a.npy", "a.npy")
    (True, False)
    """
    inner, outer = local_folder(source), local_folder(target)
    if inner is None or outer is None:
        return f"{source.rstrip('/')}/".startswith(f"{target.rstrip('/')}/")
    return os.path.isdir(outer) and os.path.join(os.path.realpath(inner), "").startswith(
        os.path.join(os.path.realpath(outer), "")
    )


def volume_files(path: str) -> tuple[str, ...]:
    """The files that a volume is read from: one, both of a pair, all of an OME-TIFF, or the folder of a whole Zarr store.

    Raises: FormatError if one of a pair is missing.
    >>> volume_files("a.nii.gz"), volume_files("a.zarr/1")
    (('a.nii.gz',), ('a.zarr',))
    """
    found = find_format(path)
    return (path,) if found is None or path == "-" else found.files(path)


def content_of(path: str) -> str:
    """What a file's header says that its values are, if they are no image: "labels" or "cifti"; else, and of URLs, "".

    What cannot be read is "", too: it is told when the volume is opened.
    """
    found = find_format(path)
    if found is None or path == "-" or is_url(path):
        return ""
    try:
        return found.content(path)
    except (Conv3DError, OSError):
        return ""


def written_files(path: str) -> tuple[str, ...]:
    """The files that an output of this name consists of, whether it is there or not, or the folder of a Zarr store.

    >>> written_files("a.ome.tif"), written_files("a.img")
    (('a.ome.tif',), ('a.hdr', 'a.img'))
    """
    found = find_format(path)
    return (path,) if found is None or path == "-" else found.written(path)


def readable_files(path: str) -> tuple[str, ...]:
    """As `volume_files`, and the name alone where half a pair is missing, which opening it says."""
    try:
        return volume_files(path)
    except FormatError:
        return (path,)


def replaced_part(source: str, target: str) -> str:
    """The file of a volume that an output would replace while others of its files stay; "" if there is none.

    (A volume that is replaced as a whole is its user's to replace.)
    """
    if source == "-" or "://" in source or "://" in target:
        return ""
    read = {os.path.realpath(name): name for name in readable_files(source)}
    written = {os.path.realpath(name) for name in written_files(target)}
    return (
        ""
        if set(read) <= written
        else next((name for real, name in read.items() if real in written), "")
    )


def output_exists(path: str) -> bool:
    """Whether there is an output of this name already."""
    try:
        check_output(path)
    except OutputExistsError:
        return True
    except Conv3DError:
        pass  # what else is wrong is said when the output is written
    return False


def output_bytes(
    path: str,
    header: VolumeHeader,
    channels: int,
    *,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    compression: str = "none",
) -> int:
    """Memory that writing a volume takes, beside the blocks (d, h, w, channels) that are handed to the writer."""
    found = output_format(path)
    return found.output_bytes(header, channels, _options(found, path, chunks, levels, compression))


def output_access(
    path: str,
    header: VolumeHeader,
    *,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    compression: str = "none",
) -> BoxAccess | None:
    """How the writer of a volume takes boxes; None if it takes only whole planes: a stream."""
    found = output_format(path)
    options = _options(found, path, chunks, levels, compression)
    return None if found.streamed(path, options) else found.box_access(header, options)


def output_format(path: str) -> VolumeFormat:
    """The format an output name asks for.

    Raises: SpecError if its suffix is unknown.
    """
    found = find_format(path)
    if found is None:
        raise SpecError(
            f"cannot write {path}: no format has this suffix; known are {known_suffixes()}"
        )
    _check_url(found, path, "write")
    return found


def read_volume(path: str, *, axes: str | None = None, dtype: str | None = None) -> Volume:
    """Read a whole volume into memory.

    axes : str or None      letters in storage order that replace what the file says
    dtype : str or None     of the result; None keeps the file's, float32 if the file scales its values
    Returns a Volume whose `data` is in storage order: (z, y, x) for a 3-D scan, (t, z, y, x) for a series.
    Raises: FormatError.
    """
    import numpy as np

    with open_volume(path, axes=axes) as reader:
        header = reader.header
        slope, intercept = header.scale
        scaled = header.scale != (1.0, 0.0)
        target = np.dtype(dtype) if dtype else (np.dtype(np.float32) if scaled else header.dtype)
        data = np.empty(header.axes.shape, target)
        for n, channels in parts_in_storage_order(
            header.axes, channels_together=not reader.sequential
        ):
            for start in range(0, header.shape[1], 16):
                depth = slice(start, min(start + 16, header.shape[1]))
                block = reader.read(n, depth, channels)
                with np.errstate(
                    over="ignore", invalid="ignore"
                ):  # what a dtype cannot hold becomes infinite
                    header.axes.assign(
                        data, n, depth, channels, block * slope + intercept if scaled else block
                    )
        reader.finish()
    return Volume(data, header.axes.letters, header.grid, header.format, header.metadata)


def write_volume(
    path: str,
    volume: Volume,
    *,
    overwrite: bool = False,
    gz_level: int = 1,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    compression: str = "none",
) -> None:
    """Write a whole volume; the format is the suffix's, the file appears complete or not at all.

    chunks, levels, compression     see `create_volume`
    Raises: OutputExistsError, WriteError, SpecError for an unknown suffix.
    """
    header = volume.header
    target = output_format(path)
    letters = target.output_letters(header.axes.letters, header.shape[4], header.dtype)
    channel_letters = [a for a in letters if a in "cs"]  # a format may make one axis of two
    sizes = {channel_letters[0]: header.shape[4]} if len(channel_letters) == 1 else {}
    out_header = replace(header, axes=header.axes.renamed(letters, sizes))
    with create_volume(
        path,
        out_header,
        overwrite=overwrite,
        gz_level=gz_level,
        chunks=chunks,
        levels=levels,
        compression=compression,
    ) as writer:
        for n, channels in parts_in_storage_order(
            out_header.axes, channels_together=not writer.sequential
        ):
            for start in range(0, header.shape[1], 16):
                depth = slice(start, min(start + 16, header.shape[1]))
                writer.write(
                    n, start, channels.start, header.axes.block(volume.data, n, depth, channels)
                )
        writer.commit()
