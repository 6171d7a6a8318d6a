"""Imaris 5.5 (.ims), read only: HDF5 with a dataset for each level, time point and channel.

The datasets are padded to whole chunks, and are cropped to the size of the image. `FILE::1` reads
a level of resolution; 0 is the full one.

Source: Oxford Instruments, "Imaris File Format Description (IMS)".
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import MICROSCOPE, library_errors, real_dtype
from conv3d_cli.formats.hdf5 import IMARIS
from conv3d_cli.formats.hdf5.file import (
    ChunkedReader,
    attribute,
    check_dataset,
    chunk_of,
    find,
    gaps_note,
    open_file,
    text_of,
)
from conv3d_cli.formats.stored import LARGEST
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.units import unit_name
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.parts import split_part

MAX_PARTS = 1_000_000  # datasets of a level


def open_imaris(
    name: str, *, axes: str | None = None, channels_first: bool = False
) -> VolumeReader:
    """Open a level of an Imaris file: the full one, or that of FILE::NUMBER.

    axes : str or None      axis letters in place of the file's, tczyx without axes of one
    Raises: FormatError if it is missing, damaged, or has no such level.
    """
    path, part = split_part(name)
    file = open_file(path)
    try:
        with library_errors(path, "HDF5"):
            level = _level(file, part, path)
            steps = _names(level, "TimePoint")
            channels = _names(level[steps[0]], "Channel") if steps else []
            if not steps or not channels or len(steps) * len(channels) > MAX_PARTS:
                raise FormatError(f"cannot read {path}: damaged Imaris file: no channels in it")
            whole = str(level.name).strip("/")
            first = f"{whole}/{steps[0]}/{channels[0]}"
            dataset = _dataset(file, f"{first}/Data", path)
            sizes = _sizes(find(file, first, path), file, dataset, path)
            stored = check_dataset(dataset, f"{first}/Data", path)
            shape = (len(steps), len(channels), *sizes)
            letters = "".join(a for a, n in zip("tczyx", shape, strict=True) if a in "zyx" or n > 1)
            full = dict(zip("tczyx", shape, strict=True))
            if axes is not None and axes != letters:
                raise FormatError(
                    f"cannot read {path}: Imaris names its axes, {letters}; received {axes}"
                )
            header = VolumeHeader(
                Axes(letters, tuple(full[a] for a in letters)),
                real_dtype(stored, path),
                _grid(file, sizes, path),
                format=IMARIS.name,
                facts=Facts(
                    time_step=_time_step(file, len(steps)),
                    channel_names=_channel_names(file, channels),
                    provenance=(MICROSCOPE,),
                ),
            )
            chunk = chunk_of(dataset, "zyx")
            parts = [[f"{whole}/{t}/{c}/Data" for c in channels] for t in steps]
            reader = ImarisReader(name, header, file, parts, chunk, stored)
            levels = len(_names(file["DataSet"], "ResolutionLevel"))
            notes = [gaps_note(dataset, f"{first}/Data")]
            if levels > 1 and not part:
                notes.append(
                    f"the file holds {levels} levels of resolution: the full one is used; "
                    f"{path}::1 names another"
                )
            reader.notes = tuple(filter(None, notes))
            return reader
    except BaseException:
        file.close()
        raise


def _level(file: Any, part: str, path: str) -> Any:
    """The group of a level. Raises: FormatError."""
    import h5py

    data = find(file, "DataSet", path)
    levels = _names(data, "ResolutionLevel") if isinstance(data, h5py.Group) else []
    if not levels:
        raise FormatError(
            f"cannot read {path}: no Imaris file, or damaged: it has no DataSet/ResolutionLevel 0"
        )
    number = int(part) if part.isascii() and part.isdigit() and len(part) < 9 else -1
    if part and f"ResolutionLevel {number}" not in levels:
        raise FormatError(
            f"cannot read {path}: it has no level {part!r}; its levels are 0 to {len(levels) - 1}"
        )
    found = find(file, f"DataSet/ResolutionLevel {max(number, 0)}", path)
    if not isinstance(found, h5py.Group):
        raise FormatError(f"cannot read {path}: damaged: its level {max(number, 0)} is no group")
    return found


def _names(group: Any, word: str) -> list[str]:
    """Members "WORD 0", "WORD 1", ..., as far as their numbers go without a gap.

    >>> _names({"Channel 1": 0, "Channel 0": 0, "Channel 3": 0, "Other": 0}, "Channel")
    ['Channel 0', 'Channel 1']
    """
    found: list[str] = []
    while f"{word} {len(found)}" in group:
        found.append(f"{word} {len(found)}")
    return found


def _dataset(file: Any, name: str, path: str) -> Any:
    """A dataset of three axes. Raises: FormatError."""
    import h5py

    found = find(file, name, path)
    if not isinstance(found, h5py.Dataset) or found.shape is None or len(found.shape) != 3:
        raise FormatError(f"cannot read {path}: damaged Imaris file: {name} is no dataset")
    return found


def _sizes(channel: Any, file: Any, dataset: Any, path: str) -> tuple[int, int, int]:
    """(D, H, W) of the image in a padded dataset. Raises: FormatError."""
    held = (int(dataset.shape[0]), int(dataset.shape[1]), int(dataset.shape[2]))
    texts = [text_of(attribute(channel, f"ImageSize{a}")) for a in "ZYX"]
    if not all(texts) and "ResolutionLevel 0/" in dataset.name:
        image = find(file, "DataSetInfo/Image", path)
        texts = [text_of(attribute(image, a)) for a in "ZYX"] if image is not None else []
    if not texts or not all(texts):
        return held
    if not all(re.fullmatch(r"\d{1,9}", text) for text in texts):
        raise FormatError(f"cannot read {path}: damaged: its image sizes are {texts}")
    d, h, w = map(int, texts)
    if not all(0 < n <= m for n, m in zip((d, h, w), held, strict=True)):
        raise FormatError(
            f"cannot read {path}: damaged: its image of {(d, h, w)} does not fit into its dataset "
            f"of {held}"
        )
    return d, h, w


def _number(thing: Any, name: str) -> float:
    try:
        return float(text_of(attribute(thing, name)))
    except ValueError:
        return np.nan


def _grid(file: Any, sizes: tuple[int, int, int], path: str) -> Grid:
    """The grid from the extent of the image: its borders, not the centres of its voxels."""
    image = find(file, "DataSetInfo/Image", path)
    if image is None:
        return Grid()
    low = [_number(image, f"ExtMin{i}") for i in (2, 1, 0)]
    high = [_number(image, f"ExtMax{i}") for i in (2, 1, 0)]
    d, h, w = ((b - a) / n for a, b, n in zip(low, high, sizes, strict=True))
    if not all(0 < step < LARGEST for step in (d, h, w)):
        return Grid()
    z, y, x = (a + step / 2 for a, step in zip(low, (d, h, w), strict=True))
    unit = unit_name(text_of(attribute(image, "Unit")))
    return Grid((d, h, w), unit, affine_from_spacing((d, h, w), (z, y, x)))


def _time_step(file: Any, count: int) -> tuple[float, str] | None:
    """Seconds between time points, from the dates of the first and the last."""
    info = file.get("DataSetInfo/TimeInfo") if count > 1 else None
    if info is None:
        return None
    dates = []
    for number in (1, count):
        try:
            dates.append(datetime.fromisoformat(text_of(attribute(info, f"TimePoint{number}"))))
        except ValueError:
            return None
    try:
        step = (dates[1] - dates[0]).total_seconds() / (count - 1)
    except TypeError:  # one with a time zone, and one without
        return None
    return (step, "s") if step > 0 else None


def _channel_names(file: Any, channels: list[str]) -> tuple[str, ...]:
    info = file.get("DataSetInfo")
    names = []
    for channel in channels:
        thing = None if info is None else info.get(channel)
        names.append("" if thing is None else text_of(attribute(thing, "Name")))
    return tuple(names) if any(names) else ()


class ImarisReader(ChunkedReader):
    """A reader of a level.

    parts : list of list of str     names of the datasets, [time point][channel]
    """

    def __init__(
        self,
        path: str,
        header: VolumeHeader,
        file: Any,
        parts: list[list[str]],
        chunk: dict[str, int],
        stored: np.dtype[Any],
    ) -> None:
        super().__init__(path, header, file, chunk, stored)
        self._parts = parts
        self._open: dict[str, Any] = {}

    def part(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        shape = tuple(s.stop - s.start for s in (depth, rows, columns, channels))
        found = self.header.axes.empty(shape, self.header.dtype)
        for place, c in enumerate(range(channels.start, channels.stop)):
            found[..., place] = self._dataset(self._parts[n][c])[depth, rows, columns]
        return found

    def _dataset(self, name: str) -> Any:
        if name not in self._open:
            dataset = _dataset(self._file, name, self.path)
            if check_dataset(dataset, name, self.path) != self._stored or any(
                n < m for n, m in zip(dataset.shape, self.header.shape[1:4], strict=True)
            ):
                raise FormatError(
                    f"cannot read {self.path}: damaged: {name} differs from its first channel"
                )
            self._open = {name: dataset}  # the others' chunks are freed
        return self._open[name]

    def storage(self) -> dict[str, str]:
        return {
            "levels": str(len(_names(self._file["DataSet"], "ResolutionLevel"))),
            "chunks": " x ".join(str(self._chunk[a]) for a in "zyx"),
        }

    def close(self) -> None:
        self._open = {}
        super().close()
