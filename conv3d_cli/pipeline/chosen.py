"""A volume of which some channels are read: for copies, which have no step that selects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, setting, suggestion
from conv3d_cli.formats.base import random_access
from conv3d_cli.model.volume import Array, BoxAccess, VolumeHeader, VolumeReader
from conv3d_cli.system.words import count_of


def choose_channels(reader: VolumeReader, chosen: Sequence[int | str], target: str) -> VolumeReader:
    """A reader of some channels, in the order that is given; it closes `reader`.

    chosen : sequence       positions from 0, and names that the file gives to channels
    target : str            path of the output, beside which a temporary file may be made
    Raises: ShapeError for a position, and SpecError for a name that the volume does not have.
    """
    try:
        numbers = [_position(reader.header, one) for one in chosen]
        forward = all(a < b for a, b in pairwise(numbers))
        if not forward or len(reader.header.axes.channel_letters) > 1:
            reader = random_access(reader, target)  # a stream cannot go back
        return ChosenReader(reader, numbers)
    except BaseException:
        reader.close()
        raise


def places_of(numbers: Sequence[int], count: int) -> tuple[int, ...] | None:
    """`VolumeHeader.channel_places` of some of `count` channels.

    >>> places_of([2, 0], 3), places_of([0, 1, 2], 3)
    ((2, 0), None)
    """
    return None if list(numbers) == list(range(count)) else tuple(numbers)


def _position(header: VolumeHeader, chosen: int | str) -> int:
    """The position of a channel that is given by its position or its name."""
    count, names = header.shape[4], header.channel_names
    if isinstance(chosen, int):
        if chosen < count:
            return chosen
        held = f"channels 0 to {count - 1}" if count > 1 else "channel 0 only"
        raise ShapeError(f"{setting('channels', chosen)}: the input has {held}")
    found = [number for number, name in enumerate(names) if name == chosen]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(
            f"{setting('channels', chosen)}: channels {' and '.join(map(str, found))} have that "
            "name; write the number"
        )
    told = ", ".join(name or f"'' ({number})" for number, name in enumerate(names[:20]))
    alike = [name for name in names if name.casefold() == chosen.casefold()]
    hint = f"did you mean '{alike[0]}'?" if alike else suggestion(chosen, names).strip()
    raise SpecError(
        f"{setting('channels', chosen)}: the input has no channel of that name, but "
        + (told if names else f"{count_of(count, 'channel')} without names, counted from 0")
        + (f"; {hint}" if hint else "")
    )


class ChosenReader(VolumeReader):
    """A reader of some channels of another one, which it closes.

    numbers : ints      their positions there
    """

    def __init__(self, reader: VolumeReader, numbers: Sequence[int]) -> None:
        self.reader, self.numbers, self.path = reader, list(numbers), reader.path
        self.sequential, self.notes, self.losses = reader.sequential, reader.notes, reader.losses
        self.channels_together = reader.channels_together and len(numbers) > 1
        # several are read at once where they lie side by side
        self._spans = reader.channels_together or reader.header.axes.channels_within_plane
        header = reader.header
        names, colors = (
            tuple(own[n] for n in numbers) if own else ()
            for own in (header.channel_names, header.channel_colors)
        )
        self.header = replace(
            header,
            axes=header.axes.resized((*header.shape[:4], len(numbers))),
            facts=replace(header.facts, channel_names=names, channel_colors=colors),
            channel_places=places_of(numbers, header.shape[4]),
        )

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        return self.read_box(n, depth, slice(None), slice(None), channels)

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        whole = rows == slice(None) and columns == slice(None)

        def read(wanted: slice) -> Array:
            if whole:
                return self.reader.read(n, depth, wanted)
            return self.reader.read_box(n, depth, rows, columns, wanted)

        numbers = self.numbers[channels]
        first, stop = min(numbers), max(numbers) + 1
        if numbers == list(range(first, stop)) and (self._spans or len(numbers) == 1):
            return read(slice(first, stop))
        if self._spans:
            return read(slice(first, stop))[..., [number - first for number in numbers]]
        return np.concatenate([read(slice(one, one + 1)) for one in numbers], axis=3)

    def release(self, n: int, depth_stop: int) -> None:
        self.reader.release(n, depth_stop)

    def buffer_bytes(self, planes: int, channels: int) -> int:
        count = len(self.numbers)
        read = max(self.numbers) + 1 - min(self.numbers) if self._spans else count
        block = planes * int(np.prod(self.header.shape[2:4])) * read * self.header.dtype.itemsize
        return self.reader.buffer_bytes(planes, read) + (block if read > 1 else 0)

    def storage(self) -> dict[str, str]:
        return self.reader.storage()

    def box_access(self) -> BoxAccess | None:
        return self.reader.box_access()

    def finish(self) -> None:
        self.reader.finish()
        self.notes, self.losses = self.reader.notes, self.reader.losses

    def close(self) -> None:
        self.reader.close()
