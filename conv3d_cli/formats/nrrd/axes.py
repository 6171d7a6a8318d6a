"""What the axes of a NRRD file stand for: its kinds, directions and labels as axis letters, and letters as kinds.

NRRD counts axes from the fastest on; `Axes` has the slowest first. Here positions are NRRD's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conv3d_cli.formats.nrrd.grid import UNSAMPLED, Sampling, read_directions, read_space
from conv3d_cli.formats.nrrd.header import NrrdHeader
from conv3d_cli.model.volume import CHANNEL, SPATIAL, Axes

DOMAIN = ("domain", "space")
# samples of a pixel, where they are the fastest axis
COLORS = {
    "rgb-color": 3,
    "rgba-color": 4,
    "3-color": 3,
    "4-color": 4,
}
UNKNOWN = ("", "none", "???", "list")  # of these a label or the place decides
BATCH = "tabdefghijklmnopqruvw"


@dataclass(frozen=True)
class AxisFacts:
    """What a file says of one axis, beside its size and place, kept for an output.

    kind, label, center : str       as in the file; "" if it says nothing
    thickness : float               NaN if it says nothing
    sampling : Sampling             of an axis that is not space
    """

    kind: str = ""
    label: str = ""
    center: str = ""
    thickness: float = math.nan
    sampling: Sampling = UNSAMPLED


def read_axes(header: NrrdHeader) -> list[AxisFacts]:
    """What a file says of each axis, the fastest first. Raises: FormatError."""
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
        kind, sampling = (
            words["kinds"][i],
            Sampling(numbers["spacings"][i], numbers["axis mins"][i], texts["units"][i]),
        )
        direction = None if directions is None else directions[i]
        if space.time and direction is not None and not any(direction[:3]) and direction[3]:
            kind = kind if kind.lower() == "time" else "time"
            unit = (header.texts("space units", space.dimension) or [""] * 4)[3]
            origin = (header.vectors("space origin", space.dimension, 1) or [None])[0]
            sampling = Sampling(direction[3], math.nan if origin is None else origin[3], unit)
        elif words["centers"][i].lower() != "node":
            # of the voxel, not of its edge
            sampling = sampling._replace(first=sampling.first + sampling.step / 2)
        facts.append(
            AxisFacts(
                "" if kind == "???" else kind, texts["labels"][i], words["centers"][i].replace("???", ""),
                numbers["thicknesses"][i], sampling,
            )
        )  # fmt: skip
    return facts


def axis_letters(
    header: NrrdHeader, facts: Sequence[AxisFacts], channels_first: bool
) -> tuple[str, list[str]]:
    """A letter for each axis, the fastest first, and notes on what had to be guessed.

    Axes of space are x, y, z in the order in which they stand. A fourth without a kind is time, channels under
    `channels_first`; lists are channels where nothing else is.
    Raises: FormatError if fewer than two axes are space.
    """
    rank = len(facts)
    directions = read_directions(header, read_space(header))
    letters = [""] * rank
    guessed = False

    def is_space(i: int) -> bool | None:
        kind = facts[i].kind.lower()
        if kind in DOMAIN:
            return True
        if kind not in ("", "none"):
            return False
        if directions is not None:
            return directions[i] is not None
        if any(not math.isnan(fact.sampling.step) for fact in facts):
            return not math.isnan(facts[i].sampling.step)
        return None

    spatial = [is_space(i) for i in range(rank)]
    named, unnamed = (
        [i for i in range(rank) if spatial[i] is is_known] for is_known in (True, None)
    )
    space = sorted((named + unnamed)[:3])
    for letter, i in zip("xyz", space, strict=False):
        letters[i] = letter
    if len(space) < 2:
        raise header.error(
            f"it has {len(space)} axes of space, and two at least are needed; name its axes with --axes"
        )
    for i in range(rank):
        if not letters[i] and facts[i].kind.lower() not in (*UNKNOWN, *DOMAIN, "time"):
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
    note = f"the file does not say what its axes beyond space are: read as {shown}; --axes says otherwise"
    return "".join(letters), [note] if guessed else []


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """Batch axes first; z, y, x in this order; channels where they were among them, new ones fastest.

    >>> output_letters("xyz", 1), output_letters("cxyzt", 2), output_letters("zyx", 4)
    ('zyx', 'tczyx', 'zyxc')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + CHANNEL)
    own = [a for a in letters if a in SPATIAL + CHANNEL]
    channel = "".join(a for a in own if a in CHANNEL)
    if len(channel) == 2:  # side by side, so that planes can follow one another
        own = [*(a for a in own if a in SPATIAL), *channel]
    space = iter(a for a in SPATIAL if a in own)
    ordered = "".join(next(space) if a in SPATIAL else a for a in own)
    return batch + ordered + ("c" if channels > 1 and not channel else "")


def kind_of(letter: str, axes: Axes) -> str:
    """NRRD's kind for an axis that comes from no NRRD file."""
    if letter in SPATIAL:
        return "domain"
    if letter == "s" and axes.letters.endswith("s"):
        return {3: "RGB-color", 4: "RGBA-color"}.get(axes.size("s"), "vector")
    return {"t": "time", "c": "vector", "s": "vector"}.get(letter, "list")
