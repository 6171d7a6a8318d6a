"""Leica LIF, read only, frame by frame through `liffile`."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import MICROSCOPE, real_dtype
from conv3d_cli.formats.microscope import LIF
from conv3d_cli.formats.microscope.images import chosen, file_errors, grid_of
from conv3d_cli.formats.planes import PlaneReader
from conv3d_cli.formats.tiff.images import Listed
from conv3d_cli.formats.xml import HARMLESS, PIECE, check_pieces
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.units import UNITS, unit_name
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.parts import split_part

LETTERS = {"T": "t", "C": "c", "Z": "z", "Y": "y", "X": "x", "S": "s", "M": "m", "L": "l"}


def open_lif(name: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open an image of a LIF file: the first, or that of FILE::NUMBER or FILE::NAME.

    axes : str or None      must be the file's own if it is given
    Raises: FormatError if it is missing or damaged, or if liffile is not installed.
    """
    path, part = split_part(name)
    size = check_input(path)
    with open(path, "rb") as start:
        head = start.read(13).ljust(13, b"\0")
        length = 2 * int.from_bytes(head[9:13], "little")
        if length > size - 13:
            raise FormatError(f"cannot read {path}: truncated or damaged LIF: its XML ends early")
        if length > HARMLESS:
            check_pieces(_texts(start, length), length // 2, path)
    try:
        import liffile
    except ImportError as error:
        raise FormatError(
            f"cannot read {path}: LIF needs the package liffile: pip install 'conv3d[lif]'"
        ) from error
    if not hasattr(liffile.LifImage, "frames"):
        raise FormatError(
            f"cannot read {path}: LIF needs liffile 2026.2.16 or newer, and {liffile.__version__} "
            "is installed: pip install -U liffile"
        )
    with file_errors(path, "LIF"):
        file: Any = liffile.LifFile(path, squeeze=False)
        try:
            if file.type != liffile.LifFileType.LIF:
                raise FormatError(
                    f"cannot read {path}: a Leica file of the kind {file.type.name}; save it as LIF"
                )
            return _open(file, name, path, part, axes)
        except BaseException:
            file.close()
            raise


def _texts(file: BinaryIO, length: int) -> Iterator[str]:
    """The text of the next `length` bytes, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-16-le")("replace")
    for at in range(0, length, PIECE):
        yield decoder.decode(file.read(min(PIECE, length - at)))


def _open(file: Any, name: str, path: str, part: str, axes: str | None) -> VolumeReader:
    images = [image for image in file.images if hasattr(image, "frame")]
    if not images:
        raise FormatError(f"cannot read {path}: it holds no image")
    listed = [Listed(str(one.name), tuple(map(int, one.shape)), str(one.path)) for one in images]
    number, notes = chosen(listed, part, path)
    image = images[number]
    frames = image.frames
    dims = [str(d) for d in image.dims]
    within = [str(d) for d in frames.frame_dims]
    sizes = {d: int(image.sizes[d]) for d in dims}
    if within not in (["Y", "X"], ["Y", "X", "S"]) or not set(dims) <= LETTERS.keys():
        raise FormatError(
            f"cannot read {path}::{number}: its frames have the axes {', '.join(within)} of "
            f"{', '.join(dims)}; those of y and x are read"
        )
    _check_inside(image, path)
    together = "S" in within
    kept = [d for d in dims if d in "ZYX" or sizes[d] > 1]
    letters = "".join(LETTERS[d] for d in kept)
    if axes is not None and axes != letters:
        raise FormatError(f"cannot read {name}: LIF names its axes, {letters}; received {axes}")
    if together and "C" in kept:
        raise FormatError(f"cannot read {path}::{number}: colours in several channels; save it new")
    found = Axes(letters, tuple(sizes[d] for d in kept))
    if "m" in letters:
        notes.append(
            f"it is a mosaic of {sizes['M']} tiles, which are not stitched: each is a volume of "
            "its own, along the axis m"
        )
    header = VolumeHeader(
        found,
        real_dtype(np.dtype(image.dtype), path),
        _grid(image, sizes, notes),
        format=LIF.name,
        facts=Facts(
            time_step=_time_step(image),
            channel_names=_channel_names(image, found),
            provenance=(MICROSCOPE,),
        ),
    )

    def fetch(n: int, depth: int, channel: int) -> Array:
        batch = np.unravel_index(n, found.batch_shape) if found.batch_shape else ()
        where = {a.upper(): int(k) for a, k in zip(found.batch_letters, batch, strict=True)}
        where |= {d: k for d, k in (("Z", depth), ("C", channel)) if d in sizes}
        with file_errors(path, "LIF"):
            return np.asarray(image.frame(**where))

    plane = int(np.prod(frames.frame_shape)) * header.dtype.itemsize
    reader = PlaneReader(
        name, header, fetch, 3 * plane, together, file.close, {"image": str(image.path)}
    )
    reader.notes = tuple(notes)
    with file_errors(path, "LIF"):
        reader.read(0, slice(0, 1), slice(0, 1))  # a wrong layout shows before any work
    return reader


def _check_inside(image: Any, path: str) -> None:
    """Raises: FormatError if the voxels are not in the file, or if it is truncated."""
    block = image.memory_block
    if block.frames or block.offset < 0:
        raise FormatError(
            f"cannot read {path}: the voxels of {image.name!r} are in other files, which are not "
            "read; save it as one LIF file"
        )
    # liffile places frames by increments that the header gives
    last = sum((d.number_elements - 1) * d.bytes_inc for d in image._dimensions)
    if image._channels:
        last += max(channel.bytes_inc + channel.dtype.itemsize for channel in image._channels)
    if min(d.number_elements for d in image._dimensions) < 1 or last > block.size:
        raise FormatError(
            f"cannot read {path}: truncated or damaged LIF: {image.name!r} needs {last} bytes, its "
            f"memory block has {block.size}"
        )


def _steps(image: Any) -> dict[str, tuple[float, str]]:
    """Distance of neighbours along each dimension, and its unit; Length is from first to last."""
    return {
        d.label: (abs(d.length) / (d.number_elements - 1), str(d.unit))
        for d in image._dimensions
        if d.number_elements > 1 and d.length
    }


def _grid(image: Any, sizes: dict[str, int], notes: list[str]) -> Grid:
    steps = _steps(image)
    lengths: list[float | None] = []
    for axis in "ZYX":
        step, unit = steps.get(axis, (None, ""))
        known = unit_name(unit)
        usable = step is not None and known is not None
        lengths.append(step * UNITS[known] / UNITS["um"] if usable else None)  # type: ignore[index, operator]
    return grid_of(lengths, sizes.get("Z", 1) > 1, notes)


def _time_step(image: Any) -> tuple[float, str] | None:
    step, unit = _steps(image).get("T", (0.0, ""))
    return (step, "s") if step > 0 and unit == "s" else None


def _channel_names(image: Any, axes: Axes) -> tuple[str, ...]:
    names = tuple(str(channel.lut_name) for channel in image._channels)
    return names if "c" in axes.letters and len(names) == axes.size("c") and any(names) else ()
