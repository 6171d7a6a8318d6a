"""--normalize-input: scale and shift the input by its own statistics, which a first pass gathers.

The statistics are of each channel, in float64, of pieces of planes, joined in order, so that they
have the same bits however the file is read. Percentiles are exact: passes narrow them down by the
bits of their floats, some at a time. What uses them is one more step of the job, before all others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, setting
from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.model.volume import VolumeReader
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.pipeline.request import (
    InputNormalization,
    Job,
    Stage,
    Step,
    inputs_of,
    read_normalization,
)
from conv3d_cli.system import elementary
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from conv3d_cli.convolution.masks import Mask

Reals = NDArray[np.float64]
NAME = "normalize_input"
PIECE = 1 << 18  # voxels of a channel that are looked at together
BYTES_EACH = 64  # of memory for such a voxel
# Bits of a float that one pass over the volume decides, of few channels and of many: for each of
# them up to four histograms count the digits.
DIGIT, SHORT_DIGIT, FEW_CHANNELS = 16, 8, 16
WORDS = {
    "mean": "mean",
    "deviation": "standard deviation",
    "minimum": "minimum",
    "maximum": "maximum",
    "low": "lower percentile",
    "high": "upper percentile",
}


@dataclass
class Moments:
    """Number, mean, sum of squares around it, and range of the values of a channel so far.

    >>> moments = Moments()
    >>> moments.join(Moments.of(np.array([1.0, 3.0])))
    >>> moments.join(Moments.of(np.array([5.0])))
    >>> moments.mean, round(moments.deviation, 6), moments.low, moments.high
    (3.0, 1.632993, 1.0, 5.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, values: Reals) -> Moments:
        """Those of finite values (one axis)."""
        if not values.size:
            return cls()
        with np.errstate(over="ignore", invalid="ignore"):  # values near the end of float64
            mean = elementary.total(values) / values.size
            squares = elementary.total(np.square(values - mean))
        return cls(values.size, mean, squares, float(values.min()), float(values.max()))

    def join(self, other: Moments) -> None:
        """Add the values of others.

        Source: T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise algorithm for
        computing sample variances, Stanford STAN-CS-79-773.
        """
        if not other.count:
            return
        apart, total = other.mean - self.mean, self.count + other.count
        self.mean += apart * other.count / total
        self.squares += other.squares + apart * apart * self.count * other.count / total
        self.count = total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def deviation(self) -> float:
        """The standard deviation of all values, as np.std computes it."""
        return math.sqrt(self.squares / self.count)


@dataclass(frozen=True)
class Normalized:
    """What was found of an input.

    method : str                as the option says it
    statistics : dict           name -> a number for each channel
    counts : tuple of int       voxels that they are of, for each channel
    left_out : int              voxels that are not finite
    scale, offset : tuples      value · scale + offset, for each channel
    """

    method: str
    statistics: dict[str, tuple[float, ...]]
    counts: tuple[int, ...]
    left_out: int
    scale: tuple[float, ...] = field(default=())
    offset: tuple[float, ...] = field(default=())

    def record(self) -> dict[str, Any]:
        """As a JSON object for the sidecar."""
        return {
            "Method": self.method,
            **{
                "".join(word.capitalize() for word in WORDS[name].split()): list(values)
                for name, values in self.statistics.items()
            },
            "Voxels": list(self.counts),
        }

    def note(self) -> str:
        """What was found, for the user."""
        told = []
        for name, values in self.statistics.items():
            shown = ", ".join(f"{value:.6g}" for value in values[:4])
            told.append(f"{WORDS[name]} {shown}{', ...' if len(values) > 4 else ''}")
        least = min(self.counts)
        text = f"the input is normalized by {self.method}: {', '.join(told)} of {least:,} voxels"
        if self.left_out:
            text += f"; {count_of(self.left_out, 'voxel')} of NaN or infinity left out"
        return text


def normalize(
    job: Job,
    reader: VolumeReader,
    reopened: Callable[[], AbstractContextManager[VolumeReader]],
    mask: Mask | None,
) -> tuple[Job, Normalized]:
    """Gather the statistics of a job's input. Returns the job whose first step uses them, and them.

    reader : VolumeReader   of the input, which is not read here
    reopened : callable     opens the input once more
    mask : Mask or None     whose voxels count
    Raises: ShapeError for several volumes, no voxel, and constant ones.
    """
    wanted = read_normalization(job.normalize_input)
    asked = setting("normalize_input", wanted.text)
    count, channels = reader.header.shape[0], reader.header.shape[4]
    if count != 1:
        raise ShapeError(
            f"{asked} is for one volume, whose statistics it takes, and the input has {count}: "
            "normalize them one by one"
        )

    def every() -> Iterator[_Piece]:
        with reopened() as again:
            yield from _pieces(again, mask, wanted.nonzero)

    moments = [Moments() for _ in range(channels)]
    begun: dict[tuple[int, int], Moments] = {}  # of planes that boxes pass through side by side
    left_out = 0
    for channel, plane, ends_plane, values in every():
        finite = values[np.isfinite(values)]
        left_out += values.size - finite.size
        of_plane = begun.setdefault((channel, plane), Moments())
        of_plane.join(Moments.of(finite))
        if ends_plane:
            moments[channel].join(begun.pop((channel, plane)))
    for channel, found in enumerate(moments):
        if not found.count:
            which = " that are not 0" if wanted.nonzero else ""
            where = f" in channel {channel}" if channels > 1 else ""
            within = f" in {job.normalize_mask}" if mask is not None else ""
            raise ShapeError(f"{asked} finds no finite voxels{which}{where}{within}: leave it out")
    statistics = _statistics(wanted, moments, every)
    zero, span = list(statistics.values())
    if wanted.method != "zscore":
        span = tuple(high - low for low, high in zip(zero, span, strict=True))
    for channel, width in enumerate(span):
        if not (width > 0 and math.isfinite(width) and math.isfinite(1 / width)):
            where = f"channel {channel}" if channels > 1 else "the input"
            names = " and ".join(WORDS[name] for name in statistics)
            shown = ", ".join(f"{values[channel]:.6g}" for values in statistics.values())
            raise ShapeError(
                f"{asked} cannot scale {where}, whose {names} are {shown}: leave it out, or take "
                "other voxels"
            )
    scale = tuple(1 / width for width in span)
    offset = tuple(-low / width for low, width in zip(zero, span, strict=True))
    counts = tuple(found.count for found in moments)
    done = Normalized(wanted.text, statistics, counts, left_out, scale, offset)
    return _with_first_step(job, done), done


def _statistics(
    wanted: InputNormalization,
    moments: Sequence[Moments],
    every: Callable[[], Iterator[_Piece]],
) -> dict[str, tuple[float, ...]]:
    """Two statistics of each channel, by name."""
    if wanted.method == "zscore":
        return {
            "mean": tuple(found.mean for found in moments),
            "deviation": tuple(found.deviation for found in moments),
        }
    if wanted.method == "minmax":
        return {
            "minimum": tuple(found.low for found in moments),
            "maximum": tuple(found.high for found in moments),
        }
    counts = [found.count for found in moments]
    ranks: list[set[int]] = []
    for count in counts:
        places = [q / 100 * (count - 1) for q in wanted.percentiles]
        ranks.append({round_(place) for place in places for round_ in (math.floor, math.ceil)})
    found = _of_ranks(ranks, every)
    low, high = (
        tuple(_between(values, q / 100 * (n - 1)) for values, n in zip(found, counts, strict=True))
        for q in wanted.percentiles
    )
    return {"low": low, "high": high}


def _between(values: dict[int, float], place: float) -> float:
    """The value at a place between two ranks, as NumPy's percentiles are interpolated."""
    low, high = values[math.floor(place)], values[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def _of_ranks(
    ranks: Sequence[set[int]], every: Callable[[], Iterator[_Piece]]
) -> list[dict[int, float]]:
    """The values at ranks (from 0) of each channel, exactly.

    A float's bits, with the sign turned, are in the order of its values. Each pass counts the next
    digit of those that begin as a wanted one does.
    """
    # for each channel: rank -> (the digits that are known, the rank among those that begin so)
    known = [{rank: (0, rank) for rank in own} for own in ranks]
    bits = DIGIT if len(ranks) <= FEW_CHANNELS else SHORT_DIGIT
    for shift in range(64 - bits, -1, -bits):
        counted: list[dict[int, NDArray[np.int64]]] = [
            {start: np.zeros(1 << bits, np.int64) for start, _ in own.values()} for own in known
        ]
        for piece in every():
            keys = _keys(piece.values[np.isfinite(piece.values)])
            for start, histogram in counted[piece.channel].items():
                is_first = shift == 64 - bits
                same = keys if is_first else keys[keys >> np.uint64(shift + bits) == start]
                digits = (same >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
                histogram += np.bincount(digits.astype(np.int64), minlength=1 << bits)
        for own, histograms in zip(known, counted, strict=True):
            for rank, (start, within) in own.items():
                sums = np.cumsum(histograms[start])
                digit = int(np.searchsorted(sums, within, side="right"))
                before = int(sums[digit - 1]) if digit else 0
                own[rank] = (start << bits) | digit, within - before
    return [{rank: _value(key) for rank, (key, _) in own.items()} for own in known]


_SIGN = np.uint64(1 << 63)


def _keys(values: Reals) -> NDArray[np.uint64]:
    """Numbers in the order of values; 0 and -0 are the same."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(key: int) -> float:
    """The value of a key."""
    bits = key & ~(1 << 63) if key >> 63 else ~key & ((1 << 64) - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])


class _Piece(NamedTuple):
    """The values that count, of a piece of a plane of a channel; the last piece ends the plane."""

    channel: int
    plane: int
    ends_plane: bool
    values: Reals


def _pieces(reader: VolumeReader, mask: Mask | None, nonzero: bool) -> Iterator[_Piece]:
    """The pieces of every plane of each channel.

    They depend on the size of planes alone, and those of a plane come in order, as do the ends of
    planes: neither depends on the memory.
    """
    slope, intercept = reader.header.scale
    _, _, height, width, _ = reader.header.shape
    rows = max(1, PIECE // max(1, width))
    for block in blocks_of([reader], BYTES_EACH, rows, reader.channels_together):
        (stored,), (depth, top, _) = block.stored, block.starts
        planes, lines, _, channels = stored.shape
        inside = None
        if mask is not None:
            box = slice(depth, depth + planes), slice(top, top + lines), slice(0, width)
            inside = mask.inside(mask.reader.read_box(0, *box, slice(0, 1))[..., 0])
        for plane, start in itertools.product(range(planes), range(0, lines, rows)):
            part = plane, slice(start, start + rows)
            ends_plane = top + start + rows >= height
            for number in range(channels):
                values = stored[part][..., number].astype(np.float64) * slope + intercept
                chosen = values.reshape(-1) if inside is None else values[inside[part]]
                chosen = chosen[chosen != 0] if nonzero else chosen
                yield _Piece(block.channel + number, depth + plane, ends_plane, chosen)


def _with_first_step(job: Job, found: Normalized) -> Job:
    """The job in which a step scales the volume before everything else takes it."""
    attributes = {"scale": list(found.scale), "offset": list(found.offset)}
    if job.network is None:
        node = Node(NAME, "Rescaling", (), attributes)
        stages: list[Stage | Step] = [Step(node, (-1,))]
        for number, stage in enumerate(job.stages):
            taken = tuple(place + 1 for place in inputs_of(stage, number))
            stages.append(replace(stage, inputs=taken))
        return replace(job, stages=tuple(stages), is_normalized=True)
    from conv3d_cli.pipeline.lowering import lower_network  # few jobs have a network

    network = _network_after(job.network, attributes)
    return replace(job, stages=lower_network(network), network=network, is_normalized=True)


def _network_after(network: Network, attributes: dict[str, Any]) -> Network:
    """The network whose nodes take the scaled volume."""
    (source,) = network.inputs
    name = NAME
    while name in (source, *(node.name for node in network.nodes)):
        name += "_"

    def after(other: Network) -> Network:
        nodes = [
            replace(node, inputs=tuple(name if one == source else one for one in node.inputs))
            for node in other.nodes
        ]
        return replace(other, nodes=(Node(name, "Rescaling", (source,), attributes), *nodes))

    return network.changed(after)
