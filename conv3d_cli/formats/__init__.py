"""Volume formats: one file each, one line each in `FORMATS`.

A format is claimed by its file's suffix. To add one, write a module with a `FORMAT = VolumeFormat(...)` whose `open`
returns a `VolumeReader` and whose `create` returns a `VolumeWriter`, and put it into `FORMATS`; the contract test in
tests/formats/test_every_format.py then runs over it. Third-party libraries are imported inside `open` and `create`.
"""

from __future__ import annotations

import os

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import nifti, npy, tiff
from conv3d_cli.formats.base import VolumeFormat
from conv3d_cli.model.volume import Volume, VolumeHeader, VolumeReader, VolumeWriter, parts_in_storage_order

FORMATS: tuple[VolumeFormat, ...] = (nifti.FORMAT, tiff.FORMAT, npy.FORMAT)


def find_format(path: str) -> VolumeFormat | None:
    """The format that claims a file name by its suffix; "-" is .npy on a pipe. None if no format does.

    >>> find_format("brain.nii.gz").name, find_format("-").name, find_format("x.jpg")
    ('NIfTI', 'NumPy', None)
    """
    return next((f for f in FORMATS if f.claims(path)), None)


def known_suffixes() -> str:
    """All suffixes, for messages."""
    return " ".join(suffix for f in FORMATS for suffix in f.suffixes if suffix != "-") + ", and - for a .npy pipe"


def is_stream(path: str) -> bool:
    """Whether a volume of this name can only be read and written forward: a pipe or a compressed file."""
    return path == "-" or path.lower().endswith(".gz")


def open_volume(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a volume for reading.

    axes : str or None          letters in storage order that replace what the file says (see `Axes`)
    channels_first : bool       how a 4-D or 5-D array without axis names is read: czyx, tczyx
    Raises: FormatError if the file is missing, empty, of no known format, or corrupt.
    """
    found = find_format(path)
    if found is None:
        if os.path.isdir(path):
            raise FormatError(f"cannot read {path}: it is a folder; name the files in it")
        raise FormatError(f"cannot read {path}: no format has this suffix; known are {known_suffixes()}")
    return found.open(path, axes=axes, channels_first=channels_first)


def create_volume(
    path: str, header: VolumeHeader, *, overwrite: bool = False, gz_level: int = 1, threads: int | None = None
) -> VolumeWriter:
    """Start writing a volume; the file appears when the writer is committed.

    header : VolumeHeader       its axes must be in this format's storage order: see `VolumeFormat.output_letters`
    gz_level, threads           of compressed outputs; they do not change what is unpacked, threads not even the bytes
    Raises: SpecError for an unknown suffix; OutputExistsError; WriteError if the format cannot hold it.
    """
    return output_format(path).create(path, header, overwrite=overwrite, gz_level=gz_level, threads=threads)


def output_format(path: str) -> VolumeFormat:
    """The format an output name asks for.

    Raises: SpecError if its suffix is unknown.
    """
    found = find_format(path)
    if found is None:
        raise SpecError(f"cannot write {path}: no format has this suffix; known are {known_suffixes()}")
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
        for n, channels in parts_in_storage_order(header.axes, channels_together=not reader.sequential):
            for start in range(0, header.shape[1], 16):
                depth = slice(start, min(start + 16, header.shape[1]))
                block = reader.read(n, depth, channels)
                with np.errstate(over="ignore", invalid="ignore"):  # what a dtype cannot hold becomes infinite
                    header.axes.assign(data, n, depth, channels, block * slope + intercept if scaled else block)
        reader.finish()
    return Volume(data, header.axes.letters, header.grid, header.format, header.metadata)


def write_volume(path: str, volume: Volume, *, overwrite: bool = False, gz_level: int = 1) -> None:
    """Write a whole volume; the format is the suffix's, the file appears complete or not at all.

    Raises: OutputExistsError, WriteError, SpecError for an unknown suffix.
    """
    from dataclasses import replace

    header = volume.header
    target = output_format(path)
    letters = target.output_letters(header.axes.letters, header.shape[4], header.dtype)
    channel_letters = [a for a in letters if a in "cs"]  # a format may make one axis of two
    sizes = {channel_letters[0]: header.shape[4]} if len(channel_letters) == 1 else {}
    out_header = replace(header, axes=header.axes.renamed(letters, sizes))
    with create_volume(path, out_header, overwrite=overwrite, gz_level=gz_level) as writer:
        for n, channels in parts_in_storage_order(out_header.axes, channels_together=not writer.sequential):
            for start in range(0, header.shape[1], 16):
                depth = slice(start, min(start + 16, header.shape[1]))
                writer.write(n, start, channels.start, header.axes.block(volume.data, n, depth, channels))
        writer.commit()
