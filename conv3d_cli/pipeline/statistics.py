"""Mean and range of a job's voxels before and after, in the mask too, counted as they stream by.

`ObservedReader` and `ObservedWriter` stand before a job's own reader and writer. Input planes are
read again for halos, and are counted once. They cost time, so a job counts only if it is asked to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.model.volume import Array, BoxAccess, VolumeReader, VolumeWriter

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask


@dataclass
class Values:
    """Count, sum and range of the finite values among those added.

    count : int         finite values
    total : float       their sum
    low, high : float   the smallest and the largest; infinite without values
    not_finite : int    NaN and infinities
    """

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    not_finite: int = 0

    @property
    def mean(self) -> float | None:
        """The mean of the finite values; None without any."""
        return self.total / self.count if self.count else None

    def add(self, values: Array, scale: tuple[float, float] = (1.0, 0.0)) -> None:
        """Add stored values; a value is stored · slope + intercept.

        >>> values = Values()
        >>> values.add(np.array([1.0, np.nan, 3.0]), (2.0, 1.0))
        >>> values.mean, values.low, values.high, values.not_finite
        (5.0, 3.0, 7.0, 1)
        """
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                self.not_finite += int(values.size - np.count_nonzero(finite))
                values = values[finite]
        if not values.size:
            return
        slope, intercept = scale
        self.count += values.size
        self.total += float(values.sum(dtype=np.float64)) * slope + intercept * values.size
        ends = sorted(float(end) * slope + intercept for end in (values.min(), values.max()))
        self.low, self.high = min(self.low, ends[0]), max(self.high, ends[1])

    def record(self) -> dict[str, Any]:
        """The values as a JSON object; mean, minimum and maximum are null without finite values."""
        known = self.count > 0
        return {
            "mean": self.mean,
            "minimum": self.low if known else None,
            "maximum": self.high if known else None,
            "not_finite": self.not_finite,
        }


@dataclass
class Statistics:
    """The values of a job's input and output.

    before, after : Values or None          None if they were not counted: boxes overlap
    before_in_mask, after_in_mask : Values or None      None without a mask
    """

    before: Values | None = None
    after: Values | None = None
    before_in_mask: Values | None = None
    after_in_mask: Values | None = None

    def record(self) -> dict[str, Any]:
        """The values as a JSON object."""
        found = {
            "before": self.before,
            "after": self.after,
            "before_in_mask": self.before_in_mask,
            "after_in_mask": self.after_in_mask,
        }
        return {name: values.record() for name, values in found.items() if values is not None}


class StreamObserver:
    """Counts the voxels of a job: it wraps the job's reader and writer."""

    def __init__(self) -> None:
        self._reader: ObservedReader | None = None
        self._writer: ObservedWriter | None = None

    def reader(self, reader: VolumeReader, mask: Mask | None) -> VolumeReader:
        """A reader that counts; `mask` is the volume's."""
        self._reader = ObservedReader(reader, mask)
        return self._reader

    def writer(self, writer: VolumeWriter, mask: Mask | None) -> VolumeWriter:
        """A writer that counts; `mask` lies on the output's grid."""
        self._writer = ObservedWriter(writer, mask)
        return self._writer

    def statistics(self) -> Statistics:
        """What was counted."""
        before, after = self._reader, self._writer
        return Statistics(
            None if before is None else before.values,
            None if after is None else after.values,
            None if before is None else before.in_mask,
            None if after is None else after.in_mask,
        )


@dataclass
class _MaskPlanes:
    """Where a mask is above 0, read plane by plane.

    values : Values     of the voxels inside
    """

    mask: Mask
    values: Values = field(default_factory=Values)

    def add(self, depth: slice, block: Array, scale: tuple[float, float]) -> None:
        stored = self.mask.reader.read(0, depth, slice(0, 1))[..., 0]
        for plane, inside in zip(block, self.mask.inside(stored), strict=True):
            self.values.add(plane[inside], scale)


class ObservedReader(VolumeReader):
    """A reader whose planes are counted as they are read, each one once.

    reader : VolumeReader   the caller closes it
    mask : Mask or None     of the volume
    """

    def __init__(self, reader: VolumeReader, mask: Mask | None) -> None:
        self.reader, self.header, self.path = reader, reader.header, reader.path
        self.sequential, self.channels_together = reader.sequential, reader.channels_together
        self.values = Values()
        self._inside = None if mask is None else _MaskPlanes(mask)
        self._seen: dict[tuple[int, int], NDArray[np.bool_]] = {}

    @property
    def in_mask(self) -> Values | None:
        """The values in the mask; None without a mask."""
        return None if self._inside is None else self._inside.values

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        block = self.reader.read(n, depth, channels)
        seen = self._seen.setdefault((n, channels.start), np.zeros(self.header.shape[1], bool))
        new = np.flatnonzero(~seen[depth])
        if new.size:  # they are adjacent, but for planes that were read for another end of the axis
            runs = np.split(new, np.flatnonzero(np.diff(new) > 1) + 1)
            for first, last in ((int(run[0]), int(run[-1]) + 1) for run in runs):
                planes = slice(depth.start + first, depth.start + last)
                for plane in block[first:last]:
                    self.values.add(plane, self.header.scale)
                if self._inside is not None:
                    self._inside.add(planes, block[first:last], self.header.scale)
            seen[depth] = True
        return block

    def release(self, n: int, depth_stop: int) -> None:
        self.reader.release(n, depth_stop)

    def buffer_bytes(self, planes: int, channels: int) -> int:
        return self.reader.buffer_bytes(planes, channels)

    def box_access(self) -> BoxAccess | None:
        return None

    def finish(self) -> None:
        self.reader.finish()

    def close(self) -> None:
        self.reader.close()


class ObservedWriter(VolumeWriter):
    """A writer whose blocks are counted as they are written.

    writer : VolumeWriter   the caller commits or aborts it
    mask : Mask or None     on the output's grid
    """

    def __init__(self, writer: VolumeWriter, mask: Mask | None) -> None:
        self.writer, self.header, self.path = writer, writer.header, writer.path
        self.sequential = writer.sequential
        self.values = Values()
        self._inside = None if mask is None else _MaskPlanes(mask)

    @property
    def in_mask(self) -> Values | None:
        """The values in the mask; None without a mask."""
        return None if self._inside is None else self._inside.values

    def block(self, n: int, depth: slice, channels: slice) -> Array:
        return self.writer.block(n, depth, channels)

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        scale = self.header.scale
        for plane in block:  # copies of one plane at a time
            self.values.add(plane, scale)
        if self._inside is not None:
            self._inside.add(slice(depth_start, depth_start + len(block)), block, scale)
        self.writer.write(n, depth_start, channel_start, block)

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        for plane in block:
            self.values.add(plane, self.header.scale)
        self.writer.write_box(n, starts, channel_start, block)

    def commit(self) -> None:
        self.writer.commit()

    def abort(self) -> None:
        self.writer.abort()
