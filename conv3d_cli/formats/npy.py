"""NumPy arrays: .npy files of every real dtype, in C or Fortran order; `-` is a pipe.

Files are memory-mapped, and pickles are never loaded. An array does not name its axes: 3-D is read
as zyx, 4-D as zyxc, 5-D as tzyxc (channels_first: czyx, tczyx), further leading axes as batch;
`axes` overrides this. The output keeps the input's axis order and memory order, and no voxel
spacing, which .npy cannot store.
"""

from __future__ import annotations

import errno
import io
import math
import shutil
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from conv3d_cli.errors import FormatError, setting
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawReader,
    RawWriter,
    VolumeFormat,
    real_dtype,
    reserve_space,
    write_block,
)
from conv3d_cli.model.volume import Array, Axes, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.system.atomic import open_sent, output_file, sent_to, takes_many, write_errors
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

NAME = "NumPy"
BATCH_LETTERS = "tabdefghijklmnopqruvw"  # every letter but those of space and channels


@dataclass(frozen=True)
class NpySource:
    """What a volume keeps of its .npy file: True if the first axis is the fastest."""

    fortran_order: bool


def open_npy(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a .npy file, or standard input for "-": see `conv3d_cli.formats.open_volume`.

    Raises: FormatError; WriteError if a copy of standard input does not fit into $TMPDIR.
    """
    shown = "standard input" if path == "-" else path
    file: BinaryIO
    if path == "-":
        file = _standard_input()
    else:
        check_input(path)
        file = open(path, "rb")  # noqa: SIM115 - the reader closes it
    try:
        shape, fortran, stored = read_array_header(file, shown)
        names = axes or axis_names(len(shape), channels_first, shown)
        source = NpySource(fortran)
        header = VolumeHeader(
            Axes(names, shape),
            real_dtype(stored, shown),
            format=NAME,
            metadata=source,
            file_dtype=stored,
        )
        start = file.tell()
        reader = RawReader(file, header, shown, stored, start, fortran)
        reader.losses = _others(file, start + math.prod(shape) * stored.itemsize)
        reader.notes = (*reader.notes, *reader.losses)
        return reader
    except BaseException:
        file.close()
        raise


def _others(file: BinaryIO, end: int) -> tuple[str, ...]:
    """A note if another array follows the first, as `numpy.save` appends it to an open file.

    end : int       where the first one ends
    """
    place = file.tell()
    file.seek(end)
    follows = file.read(len(npy_format.MAGIC_PREFIX)) == npy_format.MAGIC_PREFIX
    file.seek(place)
    return ("another array follows in it, and only the first one is read",) if follows else ()


def _standard_input() -> BinaryIO:
    """A copy of standard input in a temporary file. Raises: FormatError; WriteError if full."""
    file = unnamed_file()
    try:
        with write_errors(f"a copy of standard input in {temporary_folder()}"):
            while block := _read_input(1 << 20):
                file.write(block)
            size = file.tell()
            file.seek(0)
        if not size:
            raise FormatError("cannot read standard input: it is empty; a .npy file is expected")
    except BaseException:
        file.close()
        raise
    return file


def _read_input(count: int) -> bytes:
    try:
        return sys.stdin.buffer.read(count)
    except OSError as error:
        cause = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise FormatError(f"cannot read standard input: {cause}; a .npy file is expected") from None


def read_array_header(file: BinaryIO, path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a .npy array: (shape, Fortran order?, dtype).

    The file is left at the first value.
    Raises: FormatError if the header is damaged, or if the values are pickled objects.
    """
    try:
        version = npy_format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} is not known")
        read = (
            npy_format.read_array_header_1_0
            if version == (1, 0)
            else npy_format.read_array_header_2_0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as: Python 2 wrote the file
            shape, fortran, dtype = read(file)
    # of a damaged header, NumPy's parser raises nearly anything (tokenize.TokenError, ...)
    except Exception as error:
        raise_fault(error, path)
        reason = " ".join(str(error).split())[:200]
        raise FormatError(
            f"cannot read {path}: not a .npy file, or its header is damaged ({reason})"
        ) from error
    if dtype.hasobject:
        raise FormatError(
            f"cannot read {path}: it holds pickled Python objects, which are never loaded; "
            "save numbers"
        )
    if any(n < 0 for n in shape):
        raise FormatError(f"cannot read {path}: its header holds a negative size, shape {shape}")
    return shape, fortran, dtype


def axis_names(rank: int, channels_first: bool = False, path: str = "array") -> str:
    """The axis letters assumed for an array without axis names.

    rank : int              number of axes
    channels_first : bool   channels come before z, y, x, not after
    path : str              for the error message
    Raises: FormatError below rank 3.
    >>> axis_names(3), axis_names(4), axis_names(5, channels_first=True), axis_names(6)
    ('zyx', 'zyxc', 'tczyx', 'tazyxc')
    """
    if rank < 3:
        raise FormatError(
            f"cannot read {path}: a volume has at least 3 axes, the array has {rank}; "
            f"name them with {setting('axes')} (yx)"
        )
    if rank == 3:
        return "zyx"
    space = "czyx" if channels_first else "zyxc"
    return BATCH_LETTERS[: rank - 4] + space


def output_letters(letters: str, channels: int, dtype: np.dtype[Any]) -> str:
    """The input's order; a new channel axis comes last.

    >>> output_letters("tzyx", 2, np.dtype("f4")), output_letters("czyx", 2, np.dtype("f4"))
    ('tzyxc', 'czyx')
    """
    has_channels = any(a in "cs" for a in letters)
    return letters if has_channels or channels == 1 else letters + "c"


def _needs_no_axes(axes: Axes) -> bool:
    """True if an array with these axes is read correctly without --axes, channels last or first."""
    kinds = "".join("c" if a in "cs" else a if a in "zyx" else "t" for a in axes.letters)
    if len(kinds) < 3:
        return False
    usual = [axis_names(len(kinds), channels_first) for channels_first in (False, True)]
    return kinds in ["".join(a if a in "czyx" else "t" for a in names) for names in usual]


def create_npy(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start a .npy file; a stream for "-", a device and a FIFO: see `formats.create_volume`.

    Raises: OutputExistsError, WriteError.
    """
    source = header.metadata if isinstance(header.metadata, NpySource) else None
    fortran = source is not None and source.fortran_order
    prefix = _header_bytes(header.axes.shape, fortran, header.dtype)
    notes: tuple[str, ...] = ()
    if header.grid.spacing is not None:
        notes += (".npy holds no voxel spacing and no affine: they are left out",)
    if source is None and not _needs_no_axes(header.axes):
        notes += (f".npy holds no axis names: read it with {setting('axes', header.axes.letters)}",)
    if header.history:
        notes += (
            f".npy holds no history: it is left out; {setting('sidecar', True)} writes it to a "
            "sidecar",
        )
    if sent_to(path):
        if path != "-" and not path.lower().endswith(".npy"):
            said = f"{path} has no suffix of a format: it gets a .npy volume"
            notes = (said,) if takes_many(path) else (said, *notes)
        return PipeWriter(path, header, prefix, notes, fortran)
    output = output_file(path, overwrite)
    try:
        with write_errors(path):
            output.file.write(prefix)
            output.file.flush()
        writer = RawWriter(output, header, path, len(prefix), fortran=fortran)
    except BaseException:
        output.abort()
        raise
    writer.notes = notes
    return writer


def _header_bytes(shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    description = {
        "descr": npy_format.dtype_to_descr(dtype),
        "fortran_order": fortran,
        "shape": shape,
    }
    npy_format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


class PipeWriter(VolumeWriter):
    """Write a .npy volume to standard output or a device, slab after slab in storage order.

    If planes are not contiguous in that order, a temporary file holds the voxels until `commit`.

    path : str              "-", or what `sent_to` describes
    prefix : bytes          the .npy header
    fortran : bool          True if the first of the header's axes is the fastest
    """

    sequential = True

    def __init__(
        self,
        path: str,
        header: VolumeHeader,
        prefix: bytes,
        notes: tuple[str, ...],
        fortran: bool,
    ) -> None:
        self.header, self.notes = header, notes
        self.path = "standard output" if path == "-" else path
        self._fortran = fortran
        self._waiting: BinaryIO | None = None
        with write_errors(self.path):
            self._file = open_sent(path)
        self._closes = path != "-"  # standard output stays open
        try:
            with write_errors(self.path):
                if fortran or not header.axes.planes_follow:
                    self._waiting = unnamed_file()  # closed by abort
                    reserve_space(self._waiting, header.nbytes)
                self._file.write(prefix)
        except BaseException:
            self.abort()
            raise

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        axes, dtype = self.header.axes, self.header.dtype
        with write_errors(self.path):
            if self._waiting is not None:
                write_block(
                    self._waiting,
                    axes,
                    dtype,
                    0,
                    n,
                    (depth_start, 0, 0),
                    channel_start,
                    block,
                    self._fortran,
                )
            else:
                values = np.ascontiguousarray(axes.storage_order(block), dtype)
                self._file.write(values.reshape(-1).view(np.uint8).data)

    def commit(self) -> None:
        with write_errors(self.path):
            if self._waiting is not None:
                self._waiting.seek(0)
                shutil.copyfileobj(self._waiting, self._file, 1 << 20)
            self._file.flush()
        self.abort()

    def abort(self) -> None:
        """Delete the temporary file. Bytes in the pipe stay; the exit code reports the failure."""
        if self._waiting is not None:
            self._waiting.close()
        if self._closes:
            with suppress(OSError):  # its reader has ended
                self._file.close()


FORMAT = VolumeFormat(
    name=NAME,
    suffixes=(".npy", "-"),
    summary="arrays of every real dtype; `-` reads and writes a pipe",
    open=open_npy,
    create=create_npy,
    output_letters=output_letters,
    signature=lambda start: start.begins(b"\x93NUMPY"),
    names_axes=False,
    holds_spacing=False,
    holds_history=False,
    streamed=lambda path, options: bool(sent_to(path)),
)
