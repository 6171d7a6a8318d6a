"""The axes of a NRRD file: letters from kinds, directions and labels, and kinds from letters.

NRRD lists axes from the fastest on; `Axes` lists the slowest first. Positions in this module are
NRRD's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conv3d_cli.errors import setting
from conv3d_cli.formats.nrrd.grid import UNSAMPLED, Sampling, read_directions, read_space
from conv3d_cli.formats.nrrd.header import NrrdHeader
from conv3d_cli.model.units import time_unit
from conv3d_cli.model.volume import CHANNEL, SPATIAL, Axes

SPATIAL_KINDS = ("domain", "space")
# kind -> samples of a pixel, if the axis is the fastest
COLORS = {"rgb-color": 3, "rgba-color": 4, "3-color": 3, "4-color": 4}
VAGUE_KINDS = ("", "none", "???", "list")  # the label or the position decides
BATCH = "tabdefghijklmnopqruvw"


@dataclass(frozen=True)
class AxisFacts:
    """What a file says about one axis besides its size and position; kept for an output.

    kind, label, center : str       as in the file; "" if missing
    thickness : float               NaN if missing
    sampling : Sampling             of an axis that is not spatial
    """

    kind: str = ""
    label: str = ""
    center: str = ""
    thickness: float = math.nan
    sampling: Sampling = UNSAMPLED

    @property
    def time_step(self) -> tuple[float, str] | None:
        """The step along a time axis and its unit, "" without one; None without a step."""
        step, unit = self.sampling.step, self.sampling.unit
        known = math.isfinite(step) and step > 0 and (unit or step != 1)
        return (step, time_unit(unit) or unit) if known else None


def read_axes(header: NrrdHeader) -> list[AxisFacts]:
    """What a file says about each axis, the fastest first. Raises: FormatError."""
    rank = len(header.sizes())
    space = read_space(header)
    directions = read_directions(header, space)
    facts = []
    texts = {name: header.texts(name) or [""] * rank for name in ("labels", "units")}
    words = {name: header.words(name) or [""] * rank for name in ("kinds", "centers")}
    numbers = {
        name: header.numbers(name) or [math.nan] * rank
        for name in ("thicknesses", "spacings", "axis mins")
    }
    for i in range(rank):
        kind, center = words["kinds"][i], words["centers"][i]
        sampling = Sampling(numbers["spacings"][i], numbers["axis mins"][i], texts["units"][i])
        direction = None if directions is None else directions[i]
        if space.time and direction is not None and not any(direction[:3]) and direction[3]:
            kind = kind if kind.lower() == "time" else "time"
            unit = (header.texts("space units", space.dimension) or [""] * 4)[3]
            origin = (header.vectors("space origin", space.dimension, 1) or [None])[0]
            sampling = Sampling(direction[3], math.nan if origin is None else origin[3], unit)
        elif center.lower() != "node":
            # the axis min is the edge of the first voxel
            sampling = sampling._replace(first=sampling.first + sampling.step / 2)
        facts.append(
            AxisFacts(
                kind="" if kind == "???" else kind,
                label=texts["labels"][i],
                center=center.replace("???", ""),
                thickness=numbers["thicknesses"][i],
                sampling=sampling,
            )
        )
    return facts


def axis_letters(
    header: NrrdHeader, facts: Sequence[AxisFacts], channels_first: bool
) -> tuple[str, list[str]]:
    """The letter of each axis, the fastest first, and notes on guesses.

    Spatial axes are x, y, z in the file's order. A fourth axis without a kind is time, or channels
    under `channels_first`. A list is the channel axis if no other axis is.
    Raises: FormatError if fewer than two axes are spatial.
    """
    rank = len(facts)
    directions = read_directions(header, read_space(header))
    letters = [""] * rank
    guessed = False

    def is_spatial(i: int) -> bool | None:
        """None if the file does not tell."""
        kind = facts[i].kind.lower()
        if kind in SPATIAL_KINDS:
            return True
        if kind not in ("", "none"):
            return False
        if directions is not None:
            return directions[i] is not None
        if any(not math.isnan(fact.sampling.step) for fact in facts):
            return not math.isnan(facts[i].sampling.step)
        return None

    spatial = [is_spatial(i) for i in range(rank)]
    certain = [i for i in range(rank) if spatial[i] is True]
    possible = [i for i in range(rank) if spatial[i] is None]
    space = sorted((certain + possible)[:3])
    for letter, i in zip("xyz", space, strict=False):
        letters[i] = letter
    if len(space) < 2:
        raise header.error(
            f"at least 2 axes must be spatial, received {len(space)}; name its axes "
            f"with {setting('axes')}"
        )
    for i in range(rank):
        if not letters[i] and facts[i].kind.lower() not in (*VAGUE_KINDS, *SPATIAL_KINDS, "time"):
            color = COLORS.get(facts[i].kind.lower()) == header.sizes()[i] and i == 0
            letter = "s" if color else "c"
            letters[i] = letter if letter not in letters else ""
    for i in range(rank):
        if letters[i]:
            continue
        label = facts[i].label
        if (
            facts[i].kind.lower() == "list"
            and len(label) == 1
            and label in BATCH
            and label not in letters
        ):
            letters[i] = label
        elif facts[i].kind.lower() in ("list", "none") or (
            spatial[i] is False and facts[i].kind == ""
        ):
            channel = not any(a in letters for a in CHANNEL)
            letters[i] = "c" if channel else next(a for a in BATCH[1:] if a not in letters)
        else:
            first = "c" if channels_first and spatial[i] is None and "c" not in letters else "t"
            letters[i] = next(a for a in first + BATCH if a not in letters)
            guessed = guessed or spatial[i] is not False
    shown = "".join(reversed(letters))
    note = (
        f"the file does not say what its non-spatial axes are: read as {shown}; "
        f"{setting('axes')} overrides this"
    )
    return "".join(letters), [note] if guessed else []


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """Batch axes first, then z, y, x in this order.

    Channels keep their position among z, y, x; a new channel axis is the fastest.

    >>> output_letters("xyz", 1), output_letters("cxyzt", 2), output_letters("zyx", 4)
    ('zyx', 'tczyx', 'zyxc')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + CHANNEL)
    own = [a for a in letters if a in SPATIAL + CHANNEL]
    channel = "".join(a for a in own if a in CHANNEL)
    if len(channel) == 2:  # next to each other, so that planes are contiguous
        own = [*(a for a in own if a in SPATIAL), *channel]
    space = iter(a for a in SPATIAL if a in own)
    ordered = "".join(next(space) if a in SPATIAL else a for a in own)
    return batch + ordered + ("c" if channels > 1 and not channel else "")


def kind_of(letter: str, axes: Axes) -> str:
    """NRRD's kind for an axis that does not come from a NRRD file.

    >>> [kind_of(letter, Axes("btzyxs", (1, 1, 1, 1, 1, 3))) for letter in "btzs"]
    ['list', 'time', 'domain', 'RGB-color']
    """
    if letter in SPATIAL:
        return "domain"
    if letter == "s" and axes.letters.endswith("s"):
        return {3: "RGB-color", 4: "RGBA-color"}.get(axes.size("s"), "vector")
    return {"t": "time", "c": "vector", "s": "vector"}.get(letter, "list")
