"""Peaks of an output, found as its planes are written, and the table that lists them.

A voxel is a candidate if no neighbour is higher and no earlier one is equal, so that of equal ones
the first counts. The highest candidate is a peak, and leaves out those within its reach; and so on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeWriter
from conv3d_cli.pipeline.outputs import PeakRules

LEAST_REACH = 1e-9  # of an axis along which no distance is too small


class Peak(NamedTuple):
    """A peak of an output.

    score : float       its value
    at : (D, H, W)      its voxel
    volume, channel : int   those in which it lies, from 0
    """

    score: float
    at: Triple
    volume: int = 0
    channel: int = 0


@dataclass
class PlanePeaks:
    """Finds the candidates of one volume and channel; planes come in order.

    rules : PeakRules

    >>> found = PlanePeaks(PeakRules(0.5, (2, 2, 2)))
    >>> found.add(np.array([[0.1, 0.9, 0.9], [0.2, 0.8, 0.1]]))
    >>> found.add(np.array([[0.1, 0.9, 0.2], [0.2, 0.8, 0.6]]))
    >>> found.end()
    >>> found.peaks()
    [(0.9, (0, 0, 1))]
    """

    rules: PeakRules
    _planes: list[Array] = field(default_factory=list)  # the last two
    _number: int = 0
    _scores: list[Array] = field(default_factory=list)
    _places: list[Array] = field(default_factory=list)

    def add(self, plane: Array) -> None:
        """Take the next plane (h, w)."""
        self._planes.append(np.array(plane))
        self._number += 1
        if len(self._planes) > 1:
            self._look(len(self._planes) - 2)
        self._planes = self._planes[-2:]

    def end(self) -> None:
        """The last plane was taken."""
        if self._planes:
            self._look(len(self._planes) - 1)
        self._planes = []

    def _look(self, which: int) -> None:
        """Find the candidates of one of the planes at hand."""
        plane = self._planes[which]
        height, width = plane.shape
        with np.errstate(invalid="ignore"):
            rows, columns = np.nonzero(plane >= self.rules.threshold)
        scores = plane[rows, columns]
        for step in itertools.product((-1, 0, 1), repeat=3):
            if step == (0, 0, 0) or not 0 <= which + step[0] < len(self._planes) or not rows.size:
                continue
            other = self._planes[which + step[0]]
            h, w = rows + step[1], columns + step[2]
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
            near = other[np.where(inside, h, 0), np.where(inside, w, 0)]
            with np.errstate(invalid="ignore"):
                higher = near >= scores if step < (0, 0, 0) else near > scores
            keep = ~(higher & inside)
            rows, columns, scores = rows[keep], columns[keep], scores[keep]
        depth = self._number - len(self._planes) + which
        self._scores.append(scores.astype(np.float64))
        self._places.append(np.stack([np.full_like(rows, depth), rows, columns], axis=1))

    def peaks(self) -> list[tuple[float, Triple]]:
        """Value and voxel of each peak, the highest first, and of equal ones the first."""
        if not self._scores:
            return []
        scores, places = np.concatenate(self._scores), np.concatenate(self._places)
        found: list[tuple[float, Triple]] = []
        taken: dict[Triple, list[NDArray[np.float64]]] = {}
        reach = np.maximum(self.rules.reach, LEAST_REACH)
        for place in np.argsort(-scores, kind="stable").tolist():
            d, h, w = places[place].tolist()
            scaled = places[place] / reach
            a, b, c = (math.floor(part) for part in scaled)
            near = itertools.chain.from_iterable(
                taken.get((a + i, b + j, c + k), ())
                for i, j, k in itertools.product((-1, 0, 1), repeat=3)
            )
            if all(float(np.square(scaled - other).sum()) >= 1 for other in near):
                taken.setdefault((a, b, c), []).append(scaled)
                found.append((float(scores[place]), (d, h, w)))
        return found


class PeakWriter(VolumeWriter):
    """A writer whose planes are searched for peaks as they are written.

    writer : VolumeWriter   the caller commits or aborts it
    """

    def __init__(self, writer: VolumeWriter, rules: PeakRules) -> None:
        self.writer, self.header, self.path = writer, writer.header, writer.path
        self.sequential, self.rules = writer.sequential, rules
        self._found: dict[tuple[int, int], PlanePeaks] = {}

    def block(self, n: int, depth: slice, channels: slice) -> Array:
        return self.writer.block(n, depth, channels)

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        slope, intercept = self.header.scale
        for channel in range(block.shape[3]):
            key = n, channel_start + channel
            own = self._found.setdefault(key, PlanePeaks(self.rules))
            for plane in block[..., channel]:
                own.add(plane if self.header.scale == (1.0, 0.0) else plane * slope + intercept)
        self.writer.write(n, depth_start, channel_start, block)

    def peaks(self) -> list[Peak]:
        """The peaks of all that was written, the highest of each volume and channel first."""
        found = []
        for (volume, channel), own in sorted(self._found.items()):
            own.end()
            found += [Peak(score, at, volume, channel) for score, at in own.peaks()]
        return found

    def table(self) -> str:
        """The table of the peaks."""
        return table_of(self.peaks(), self.header)

    def commit(self) -> None:
        self.writer.commit()

    def abort(self) -> None:
        self.writer.abort()


def table_of(peaks: list[Peak], header: VolumeHeader) -> str:
    """The peaks as a table of tab-separated values, with a line of names.

    Columns: rank (from 1), score, where there are several also volume and channel (from 0), the
    voxel (d, h, w), and world coordinates in the grid's unit, if it has any.

    >>> from conv3d_cli.model.volume import Axes
    >>> header = VolumeHeader(Axes("zyx", (4, 5, 6)), np.dtype("f4"), Grid((2.0, 1.0, 1.0), "mm"))
    >>> print(table_of([Peak(0.75, (1, 2, 3))], header), end="")  # doctest: +NORMALIZE_WHITESPACE
    rank  score  d  h  w  x_mm  y_mm  z_mm
    1     0.75   1  2  3  3     2     2
    """
    several_volumes, several_channels = header.shape[0] > 1, header.shape[4] > 1
    unit = f"_{header.grid.unit}" if header.grid.unit else ""
    has_world = header.grid.affine is not None or header.grid.spacing is not None
    names = ["rank", "score"]
    names += ["volume"] * several_volumes + ["channel"] * several_channels
    names += ["d", "h", "w"] + [f"{axis}{unit}" for axis in "xyz"] * has_world
    lines = ["\t".join(names)]
    ranks: dict[tuple[int, int], Iterator[int]] = {}
    for peak in peaks:
        rank = next(ranks.setdefault((peak.volume, peak.channel), itertools.count(1)))
        cells: list[object] = [rank, f"{peak.score:.7g}"]
        cells += [peak.volume] * several_volumes + [peak.channel] * several_channels
        cells += peak.at
        if has_world:
            cells += [f"{number:.7g}" for number in _world(header.grid, peak.at)]
        lines.append("\t".join(map(str, cells)))
    return "\n".join(lines) + "\n"


def _world(grid: Grid, at: Triple) -> list[float]:
    """World coordinates x, y, z of a voxel; without an affine, distances from the first voxel."""
    if grid.affine is not None:
        return [float(number) + 0.0 for number in grid.world(at)]
    assert grid.spacing is not None
    return [number * step for number, step in zip(at[::-1], grid.spacing[::-1], strict=True)]
