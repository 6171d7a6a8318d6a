"""Parameter types of built-in kernels: lengths with a unit, sizes in voxels, axes, plain numbers.

A `Kind` parses the text of a parameter. A kernel function names it in an annotation
(`sigma: Lengths`), so that a new function needs no parser of its own. Lengths reach the function in
voxels: `read_lengths` converts millimetres by the grid of the volume. `grammar.py`
splits `name:key=value`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import (
    ShapeError,
    SpecError,
    UnknownNameError,
    setting,
    unknown_name,
    words,
)
from conv3d_cli.model.grid import Grid, Spacing
from conv3d_cli.model.spec import Triple, triple
from conv3d_cli.model.units import UNITS, unit_name

Floats = tuple[float, float, float]

MAX_WEIGHTS = 100_000_000  # 800 MB of float64; a larger kernel is a mistake in a unit

VOXEL = "vox"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


# --------------------------------------------------------------------------------------------------
# Lengths


def parse_lengths(text: str, name: str) -> tuple[Floats, str]:
    """Parse one length or three (D,H,W) with a unit: three numbers and the unit's standard name.

    name : str      of the parameter, for messages
    Raises: SpecError if there is no unit or more than one, if the numbers are not one or three, or
    if one is negative or infinite; UnknownNameError for an unknown unit.

    >>> parse_lengths("8,6,3mm", "fwhm"), parse_lengths("2 µm", "sigma")
    (((8.0, 6.0, 3.0), 'mm'), ((2.0, 2.0, 2.0), 'um'))
    >>> parse_lengths("2", "sigma")
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.SpecError: sigma=2 needs a unit: sigma=2mm or sigma=2vox
    """
    pieces = [re.fullmatch(rf"\s*({_NUMBER})\s*([^\W\d_]*)\s*", piece) for piece in text.split(",")]
    matches = [piece for piece in pieces if piece]
    if len(matches) != len(pieces) or len(pieces) not in (1, 3):
        raise SpecError(
            f"{name} is one length or three in depth,height,width order with a unit, as in "
            f"{name}=2mm or {name}=8,6,3mm, received {name}={text}"
        )
    values = [float(match[1]) for match in matches]
    if not all(math.isfinite(value) for value in values):
        raise SpecError(f"{name} must be finite, received {name}={text}")
    if min(values) < 0:
        raise SpecError(f"{name} must not be negative, received {name}={text}")
    written = [match[2] for match in matches]
    if not any(written):
        raise SpecError(f"{name}={text} needs a unit: {name}={text}mm or {name}={text}{VOXEL}")
    units = {_unit(unit, name, text) for unit in written if unit}
    # The unit comes once, at the end, or with every number: in "8mm,6,3" the units of 6 and 3 are
    # ambiguous.
    if len(units) != 1 or (not all(written) and (any(written[:-1]) or not written[-1])):
        numbers = ",".join(match[1] for match in matches)
        raise SpecError(
            f"{name} takes one unit for all axes, as in {name}={numbers}mm, received {name}={text}"
        )
    d, h, w = values * 3 if len(values) == 1 else values
    return (d, h, w), units.pop()


def _unit(text: str, name: str, value: str) -> str:
    unit = VOXEL if text.lower() == VOXEL else unit_name(text)
    if unit is None:
        raise UnknownNameError(f"{unknown_name('unit', text, [VOXEL, *UNITS])} (in {name}={value})")
    return unit


def read_spacing(text: str) -> Spacing:
    """Parse a voxel spacing: one length or three (D,H,W), positive, in a unit of length.

    Raises: as `parse_lengths`; SpecError for voxels, or a length that is not positive.
    >>> read_spacing("0.3,0.1,0.1um")
    Spacing(lengths=(0.3, 0.1, 0.1), unit='um')
    """
    name = setting("spacing")
    example = (
        f"as in {setting('spacing', '2,1,1mm')} or {setting('spacing', '0.5um')} "
        f"(depth,height,width), received '{text}'"
    )
    try:
        lengths, unit = parse_lengths(text, "spacing")
    except UnknownNameError:
        raise
    except SpecError:
        raise SpecError(f"{name} is one length or three with a unit, {example}") from None
    if unit == VOXEL or min(lengths) <= 0:
        raise SpecError(f"{name} must be positive, with a unit such as mm or um, {example}")
    return Spacing(lengths, unit)


class PhysicalLengths(tuple[float, float, float]):
    """Lengths in voxels along D, H, W that were given in a unit of length.

    lengths : 3 floats      as given, in that unit
    steps : (3, 3)          steps of the grid in that unit (`Grid.steps_in`)
    """

    lengths: Floats
    steps: NDArray[np.float64]

    def __new__(
        cls, voxels: Floats, lengths: Floats, steps: NDArray[np.float64]
    ) -> PhysicalLengths:
        made = super().__new__(cls, voxels)
        made.lengths, made.steps = lengths, steps
        return made


def read_lengths(text: str, name: str, grid: Grid | None) -> Floats:
    """Parse one length or three into voxels along D, H, W; lengths in mm, ... as `PhysicalLengths`.

    grid : Grid or None     grid of the volume; None if no volume is known
    Raises: as `parse_lengths`; ShapeError for a length in mm, um, ... without a voxel spacing.

    >>> read_lengths("6mm", "fwhm", Grid((3.0, 1.5, 1.5), "mm"))
    (2.0, 4.0, 4.0)
    >>> read_lengths("1.5,1,1vox", "sigma", None)
    (1.5, 1.0, 1.0)
    """
    values, unit = parse_lengths(text, name)
    if unit == VOXEL:
        return values
    if grid is None:
        raise ShapeError(
            f"{name}={text} needs a voxel spacing, and no volume is known; give it in {VOXEL}, or "
            f"{spacing_cure()}"
        )
    try:
        spacing = grid.spacing_in(unit)
    except ShapeError as error:
        raise ShapeError(f"{name}={text}: {error}") from None
    if not all(0 < step < math.inf for step in spacing):
        raise ShapeError(
            f"{name}={text} needs a positive voxel spacing, the volume has {spacing} {unit}; "
            f"give it in {VOXEL}"
        )
    d, h, w = (value / step for value, step in zip(values, spacing, strict=True))
    steps = grid.steps_in(unit)
    assert steps is not None, spacing
    return PhysicalLengths((d, h, w), values, steps)


def read_scales(text: str, name: str, grid: Grid | None) -> tuple[Floats, ...]:
    """Parse any number of lengths with a unit: each in voxels along D, H, W.

    The unit comes once, at the end, or with every number.
    Raises: as `read_lengths`.

    >>> read_scales("1,2mm", "scales", Grid((2.0, 1.0, 1.0), "mm"))
    ((0.5, 1.0, 1.0), (1.0, 2.0, 2.0))
    """
    pieces = [re.fullmatch(rf"\s*({_NUMBER})\s*([^\W\d_]*)\s*", piece) for piece in text.split(",")]
    matches = [piece for piece in pieces if piece]
    if len(matches) < len(pieces):
        raise SpecError(
            f"{name} is one length or several with a unit, as in {name}=2mm or {name}=1,2,4mm, "
            f"received {name}={text}"
        )
    unit = matches[-1][2]
    if not unit:
        raise SpecError(f"{name}={text} needs a unit: {name}={text}mm or {name}={text}{VOXEL}")
    if any(match[2] not in ("", unit) for match in matches):
        numbers = ",".join(match[1] for match in matches)
        raise SpecError(
            f"{name} takes one unit for all, as in {name}={numbers}mm, received {name}={text}"
        )
    return tuple(read_lengths(match[1] + unit, name, grid) for match in matches)


def spacing_cure() -> str:
    """What to pass where a voxel spacing is needed and no volume is known, for messages."""
    return words(
        "pass --like VOLUME or --spacing 2,1,1mm",
        "pass a Volume to conv3d(), or grid= to read_kernel()",
    )


def voxels(value: float | Sequence[float], name: str, zero: bool = False) -> Floats:
    """Check the lengths, in voxels, of a kernel function: one number for all axes, or three.

    zero : bool     whether 0 is allowed on an axis
    Raises: SpecError for another count of numbers, or one that is not finite and positive.

    >>> voxels(2, "sigma"), voxels((0, 1, 1), "sigma", zero=True)
    ((2.0, 2.0, 2.0), (0.0, 1.0, 1.0))
    """
    values: Sequence[Any] = value if isinstance(value, Sequence) else [value] * 3
    try:
        if isinstance(value, str):  # a text of three digits would unpack into three numbers
            raise TypeError
        d, h, w = map(float, values)
    except (TypeError, ValueError):
        raise SpecError(
            f"{name} must be one number of voxels or three in depth,height,width order, received "
            f"{value!r}"
        ) from None
    if not all(math.isfinite(v) and (v > 0 or (zero and v == 0)) for v in (d, h, w)):
        bound = "finite and not negative" if zero else "finite and positive"
        raise SpecError(f"{name} must be {bound} on every axis, received {d:g},{h:g},{w:g} voxels")
    return d, h, w


# --------------------------------------------------------------------------------------------------
# Sizes, axes, numbers


def read_sizes(text: str, name: str, grid: Grid | None = None) -> Triple:
    """Parse one whole number of voxels or three.

    Raises: SpecError for another text, or a unit.
    >>> read_sizes("3,5,5", "size")
    (3, 5, 5)
    """
    pieces = [piece.strip() for piece in text.split(",")]
    numbers = [re.match(_NUMBER, piece) for piece in pieces]
    if all(numbers) and re.search(r"[^\W\d_]$", text.strip()):
        bare = ",".join(number[0] for number in numbers if number)
        raise SpecError(
            f"{name} counts voxels and takes no unit: {name}={bare}, received {name}={text}"
        )
    if len(pieces) not in (1, 3) or not all(
        re.fullmatch(r"[+-]?[0-9]{1,18}", piece) for piece in pieces
    ):
        raise SpecError(
            f"{name} is one whole number of voxels or three in depth,height,width order, as in "
            f"{name}=3 or {name}=3,5,5, received {name}={text}"
        )
    values = [int(piece) for piece in pieces]
    return triple(values[0] if len(values) == 1 else values, name)


AXIS_LETTERS = {"d": 0, "z": 0, "h": 1, "y": 1, "w": 2, "x": 2}


def axis_numbers(axis: str) -> tuple[int, ...]:
    """Convert axis letters to numbers: d or z (depth) 0, h or y (height) 1, w or x (width) 2.

    Raises: SpecError for other letters, or an axis that is named twice.
    >>> axis_numbers("d"), axis_numbers("xyz")
    ((0,), (2, 1, 0))
    """
    numbers = (
        tuple(AXIS_LETTERS.get(letter, -1) for letter in axis) if isinstance(axis, str) else ()
    )
    if not numbers or -1 in numbers or len(set(numbers)) < len(numbers):
        raise SpecError(
            "axis is d, h or w (depth, height, width; z, y, x mean the same), or several of them "
            f"for a channel each, as in axis=xyz, received axis={axis}"
        )
    return numbers


def read_axes(text: str, name: str, grid: Grid | None = None) -> str:
    """Parse axis letters, in lower case.

    Raises: as `axis_numbers`.
    """
    axis_numbers(text.lower())
    return text.lower()


def read_number(text: str, name: str, grid: Grid | None = None) -> float:
    """Parse a finite number without a unit.

    Raises: SpecError.
    """
    if not re.fullmatch(_NUMBER, text) or not math.isfinite(float(text)):
        raise SpecError(f"{name} is a number without a unit, received {name}={text}")
    return float(text)


def read_count(text: str, name: str, grid: Grid | None = None) -> int:
    """Parse a whole number.

    Raises: SpecError.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise SpecError(f"{name} is a whole number, received {name}={text}")
    return int(text)


# --------------------------------------------------------------------------------------------------
# Kinds of parameters, used in annotations


@dataclass(frozen=True)
class Kind:
    """A type of parameter.

    read : callable     (text, name, grid) -> value
    form : str          placeholder of the value in help, as in sigma=LENGTH
    example : str       a value that every parameter of this kind accepts, for messages
    words : tuple       values that the shell completes; () for numbers
    bare : bool         whether the name may be left out if the parameter is the first one
    """

    read: Callable[[str, str, Grid | None], Any]
    form: str
    example: str
    words: tuple[str, ...] = ()
    bare: bool = False


Lengths = Annotated[float | Sequence[float], Kind(read_lengths, "LENGTH", "2vox")]
Scales = Annotated[Sequence[Sequence[float]], Kind(read_scales, "LENGTHS", "1,2,4vox")]
Sizes = Annotated[int | Sequence[int], Kind(read_sizes, "VOXELS", "3")]
Axes = Annotated[str, Kind(read_axes, "AXES", "d", ("d", "h", "w", "dhw", "xyz"))]
NUMBER = Kind(read_number, "NUMBER", "1")
COUNT = Kind(read_count, "COUNT", "1")


def choice_kind(choices: tuple[Any, ...]) -> Kind:
    """The kind of a `Literal`: the text must be one of these values, as `str` prints them.

    >>> choice_kind((6, 18, 26)).read("18", "neighbours", None)
    18
    """
    by_text = {str(choice): choice for choice in choices}

    def read(text: str, name: str, grid: Grid | None) -> Any:
        if text.lower() not in by_text:
            *most, last = by_text
            raise SpecError(f"{name} is {', '.join(most)} or {last}, received {name}={text}")
        return by_text[text.lower()]

    return Kind(read, "|".join(by_text), next(iter(by_text)), tuple(by_text))
