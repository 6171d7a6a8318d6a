"""Nikon ND2, read only, frame by frame through `nd2`.

The library maps the file and unpacks without bounds, so it runs in a process of its own.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import MICROSCOPE, real_dtype
from conv3d_cli.formats.microscope import ND2
from conv3d_cli.formats.microscope.images import chosen, file_errors, grid_of
from conv3d_cli.formats.planes import PlaneReader
from conv3d_cli.formats.tiff.images import Listed
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.parts import split_part

MAX_FRAMES = 1_000_000


def open_nd2(name: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a position of an ND2 file: the first, or that of FILE::NUMBER or FILE::NAME.

    axes : str or None      must be the file's own if it is given
    Raises: FormatError if it is missing or damaged, or if nd2 is not installed.
    """
    path, part = split_part(name)
    check_input(path)
    try:
        import nd2
    except ImportError as error:
        raise FormatError(
            f"cannot read {path}: ND2 needs the package nd2: pip install 'conv3d[nd2]'"
        ) from error
    with file_errors(path, "ND2"):
        file: Any = nd2.ND2File(path)
        try:
            return _open(file, name, path, part, axes)
        except BaseException:
            file.close()
            raise


def _open(file: Any, name: str, path: str, part: str, axes: str | None) -> VolumeReader:
    sizes = {str(d): int(n) for d, n in file.sizes.items()}
    if min(sizes.values()) < 1 or not set(sizes) <= set("TPZCYXS"):
        raise FormatError(
            f"cannot read {path}: its axes are {', '.join(f'{d} {n}' for d, n in sizes.items())}; "
            "those of t, p, z, c, y, x and s are read"
        )
    if math.prod(n for d, n in sizes.items() if d in "TPZ") > MAX_FRAMES:
        raise FormatError(f"cannot read {path}: damaged ND2: more than {MAX_FRAMES} frames")
    shape = tuple(n for d, n in sizes.items() if d != "P")
    names = _position_names(file, sizes.get("P", 1))
    listed = [Listed(names[k], shape) for k in range(sizes.get("P", 1))]
    number, notes = chosen(listed, part, path)
    together = "S" in sizes
    inner = {d: n for d, n in sizes.items() if d in "TCZYXS" and (d in "YX" or n > 1)}
    order = [d for d in "TCZYXS" if d in inner or d in "ZYX"]
    letters = "".join(order).lower()
    if axes is not None and axes != letters:
        raise FormatError(f"cannot read {name}: ND2 names its axes, {letters}; received {axes}")
    found = Axes(letters, tuple(inner.get(d, 1) for d in order))
    if together and found.size("c") > 1:
        raise FormatError(f"cannot read {path}: colours in several channels; save it new")
    header = VolumeHeader(
        found,
        real_dtype(np.dtype(file.dtype), path),
        grid_of(_spacing(file), found.size("z") > 1, notes),
        format=ND2.name,
        facts=Facts(
            time_step=_time_step(file) if "t" in letters else None,
            channel_names=_channel_names(file, found),
            provenance=(MICROSCOPE,),
        ),
    )
    coordinates = [d for d in sizes if d in "TPZ"]
    lengths = [sizes[d] for d in coordinates]
    notes += _check_frames(file, int(np.prod(lengths)), path)
    channels, samples = found.size("c"), found.size("s")

    def fetch(n: int, depth: int, channel: int) -> Array:
        where = {"T": n, "P": number, "Z": depth}
        index = np.ravel_multi_index([where[d] for d in coordinates], lengths) if lengths else 0
        with file_errors(path, "ND2"):
            frame: Array = np.array(file.read_frame(int(index)))
            _release(file)
            shape = (found.size("y"), found.size("x"))
            # a frame has all channels, or all colours of a pixel
            planes: Array = frame.reshape((*shape, samples) if together else (channels, *shape))
            return planes if together else planes[channel]

    frame = found.size("y") * found.size("x") * channels * samples * header.dtype.itemsize
    reader = PlaneReader(name, header, fetch, 3 * frame, together, file.close)
    reader.channels_together = channels * samples > 1
    reader.notes = tuple(notes)
    reader.read(0, slice(0, 1), slice(0, 1))  # a wrong layout shows before any work
    return reader


def _release(file: Any) -> None:
    """Give back the pages of the file that nd2 has mapped: they would count as memory."""
    mapped = getattr(getattr(file, "_rdr", None), "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _check_frames(file: Any, count: int, path: str) -> list[str]:
    """A note on frames that are not in the file, which nd2 hands out as zeros.

    Raises: FormatError if the file has fewer frames than its header says.
    """
    held = int(file.attributes.sequenceCount)
    if held < count:
        raise FormatError(
            f"cannot read {path}: truncated, or stopped early: it has {held} of {count} frames"
        )
    offsets = getattr(getattr(file, "_rdr", None), "_frame_offsets", None)
    absent = 0 if offsets is None else count - sum(k < count for k in offsets)
    return [f"{absent} of its {count} frames are missing: they are read as 0"] if absent else []


def _spacing(file: Any) -> list[float | None]:
    """(D, H, W) in um; None where the file is not calibrated."""
    channels = getattr(file.metadata, "channels", None)
    if not channels:
        return [None, None, None]
    volume = channels[0].volume
    pairs = list(zip(volume.axesCalibration, volume.axesCalibrated, strict=True))
    return [float(step) if known else None for step, known in pairs[::-1]]


def _position_names(file: Any, count: int) -> list[str]:
    for loop in file.experiment:
        if loop.type == "XYPosLoop":
            names = [str(point.name or "") for point in loop.parameters.points]
            return (names + [""] * count)[:count]
    return [""] * count


def _time_step(file: Any) -> tuple[float, str] | None:
    for loop in file.experiment:
        step = getattr(loop.parameters, "periodMs", None)
        if loop.type == "TimeLoop" and step and step > 0:
            return float(step), "ms"
    return None


def _channel_names(file: Any, axes: Axes) -> tuple[str, ...]:
    channels = getattr(file.metadata, "channels", None) or ()
    names = tuple(str(channel.channel.name) for channel in channels)
    return names if "c" in axes.letters and len(names) == axes.size("c") and any(names) else ()
