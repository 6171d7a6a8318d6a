"""The types of a built-in kernel's parameters: lengths with a unit, sizes in voxels, axes, plain numbers.

A `Kind` says how the text of such a parameter becomes its value; a kernel function names it in its annotation (`sigma:
Lengths`), so that a new function is parsed without another line. Lengths arrive in the function as voxels: here, and only
here, millimetres meet the grid of a volume. Splitting `name:key=value` is `grammar.py`'s work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import (
    MemoryLimitError,
    ShapeError,
    SpecError,
    UnknownNameError,
    unknown_name,
)
from conv3d_cli.model.grid import UNITS, Grid, unit_name
from conv3d_cli.model.spec import Triple, triple
from conv3d_cli.system.machine import format_bytes

Floats = tuple[float, float, float]

MAX_WEIGHTS = 100_000_000  # 800 MB of float64; anything larger is a slip of the unit, not a kernel
READING_BYTES = 26  # of memory for each weight while a kernel is read or built: three copies in float64, and flags
# (of the whole process, of which is the interpreter's): see `memory_for_weights`
_ceiling: ContextVar[tuple[int, int] | None] = ContextVar("memory_for_weights", default=None)


@contextmanager
def memory_for_weights(ceiling: int, process: int) -> Iterator[None]:
    """Have kernels that are read or built within refused, as soon as their size is known, if they are too large.

    ceiling, process : int      bytes for the whole process, of which so many are taken without a kernel
    """
    token = _ceiling.set((ceiling, process))
    try:
        yield
    finally:
        _ceiling.reset(token)


def require_memory(weights: int, name: str) -> None:
    """That so many weights may be read or built here. Raises: MemoryLimitError.

    >>> with memory_for_weights(1000, 0):
    ...     require_memory(1000, "box")
    Traceback (most recent call last):
    ...
    conv3d_cli.errors.MemoryLimitError: kernel box has 1,000 weights, for which ...
    """
    ceiling, process = _ceiling.get() or (math.inf, 0)
    needed = process + weights * READING_BYTES
    if needed > ceiling:
        raise MemoryLimitError(
            f"kernel {name} has {weights:,} weights, for which the whole process needs at least {format_bytes(needed)} of "
            f"memory; the ceiling is {format_bytes(ceiling)}: pass --max-memory {-(-needed >> 20)}M or more, or a smaller kernel"
        )


VOXEL = "vox"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


# ---------------------------------------------------------------------------------------------------------------------
# Lengths


def parse_lengths(text: str, name: str) -> tuple[Floats, str]:
    """Read one length or three, D,H,W, with one unit: the numbers, and the unit's name in this package.

    name : str      of the parameter, for messages
    Raises: SpecError without a unit, with two different ones, for another count of numbers, or a negative or infinite one;
    UnknownNameError for a unit that is none.

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
            f"{name} is one length or three in depth,height,width order with a unit, as in {name}=2mm or "
            f"{name}=8,6,3mm, received {name}={text}"
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
    # the unit stands once, at the end, or with every number; "8mm,6,3" leaves open what 6 and 3 are
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


class PhysicalLengths(tuple[float, float, float]):
    """Voxels along D, H, W of lengths that were given in a unit, and what they were.

    lengths : 3 floats      as given, in the unit
    steps : (3, 3)          as `Grid.steps_in` has them, in the unit
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
    """One length or three as voxels along D, H, W of a grid; as `PhysicalLengths` if they have a unit of length.

    grid : Grid or None     of the volume the kernel is for; None if no volume is known
    Raises: as `parse_lengths`; ShapeError for a length in mm, um, ... without a voxel spacing.

    >>> read_lengths("6mm", "fwhm", Grid((3.0, 1.5, 1.5), "mm")), read_lengths("1.5,1,1vox", "sigma", None)
    ((2.0, 4.0, 4.0), (1.5, 1.0, 1.0))
    """
    values, unit = parse_lengths(text, name)
    if unit == VOXEL:
        return values
    if grid is None:
        raise ShapeError(
            f"{name}={text} needs a voxel spacing, and no volume is known; give it in {VOXEL}, or pass --like VOLUME or "
            "--spacing 2,1,1mm"
        )
    try:
        spacing = grid.spacing_in(unit)
    except ShapeError as error:
        raise ShapeError(f"{name}={text}: {error}") from None
    if not all(0 < step < math.inf for step in spacing):
        raise ShapeError(
            f"{name}={text} needs a positive voxel spacing, the volume has {spacing} {unit}; give it in {VOXEL}"
        )
    d, h, w = (value / step for value, step in zip(values, spacing, strict=True))
    steps = grid.steps_in(unit)
    assert steps is not None, spacing
    return PhysicalLengths((d, h, w), values, steps)


def voxels(value: float | Sequence[float], name: str, zero: bool = False) -> Floats:
    """A kernel function's lengths, in voxels: one for all axes or three.

    zero : bool     whether 0 is allowed on an axis
    Raises: SpecError if they are neither, not finite, or not positive.
    >>> voxels(2, "sigma"), voxels((0, 1, 1), "sigma", zero=True)
    ((2.0, 2.0, 2.0), (0.0, 1.0, 1.0))
    """
    values: Sequence[Any] = value if isinstance(value, Sequence) else [value] * 3
    try:
        if isinstance(value, str):  # three digits would pass for three numbers
            raise TypeError
        d, h, w = map(float, values)
    except (TypeError, ValueError):
        raise SpecError(
            f"{name} must be one number of voxels or three in depth,height,width order, received {value!r}"
        ) from None
    if not all(math.isfinite(v) and (v > 0 or (zero and v == 0)) for v in (d, h, w)):
        bound = "finite and not negative" if zero else "finite and positive"
        raise SpecError(f"{name} must be {bound} on every axis, received {d:g},{h:g},{w:g} voxels")
    return d, h, w


# ---------------------------------------------------------------------------------------------------------------------
# Sizes, axes, numbers


def read_sizes(text: str, name: str, grid: Grid | None = None) -> Triple:
    """One whole number of voxels or three.

    Raises: SpecError, for a unit too.
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
            f"{name} is one whole number of voxels or three in depth,height,width order, as in {name}=3 or "
            f"{name}=3,5,5, received {name}={text}"
        )
    values = [int(piece) for piece in pieces]
    return triple(values[0] if len(values) == 1 else values, name)


AXIS_LETTERS = {"d": 0, "z": 0, "h": 1, "y": 1, "w": 2, "x": 2}


def axis_numbers(axis: str) -> tuple[int, ...]:
    """For each letter 0, 1, 2 for d or z (depth), h or y (height), w or x (width).

    Raises: SpecError for other letters, and for an axis that is named twice.
    >>> axis_numbers("d"), axis_numbers("xyz")
    ((0,), (2, 1, 0))
    """
    numbers = (
        tuple(AXIS_LETTERS.get(letter, -1) for letter in axis) if isinstance(axis, str) else ()
    )
    if not numbers or -1 in numbers or len(set(numbers)) < len(numbers):
        raise SpecError(
            "axis is d, h or w (depth, height, width; z, y, x mean the same), or several of them for a channel each, as in "
            f"axis=xyz, received axis={axis}"
        )
    return numbers


def read_axes(text: str, name: str, grid: Grid | None = None) -> str:
    """Axis letters, checked."""
    axis_numbers(text.lower())
    return text.lower()


def read_number(text: str, name: str, grid: Grid | None = None) -> float:
    """A finite number without a unit.

    Raises: SpecError.
    """
    if not re.fullmatch(_NUMBER, text) or not math.isfinite(float(text)):
        raise SpecError(f"{name} is a number without a unit, received {name}={text}")
    return float(text)


def read_count(text: str, name: str, grid: Grid | None = None) -> int:
    """A whole number.

    Raises: SpecError.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise SpecError(f"{name} is a whole number, received {name}={text}")
    return int(text)


# ---------------------------------------------------------------------------------------------------------------------
# What annotations are made of


@dataclass(frozen=True)
class Kind:
    """A type of parameter.

    read : callable     (text, name, grid) -> value
    form : str          how help writes what it stands for
    example : str       a value that every parameter of this kind takes, for messages
    words : tuple       values to offer where one is typed; () for numbers
    bare : bool         whether it may stand without its name, as the first parameter
    """

    read: Callable[[str, str, Grid | None], Any]
    form: str
    example: str
    words: tuple[str, ...] = ()
    bare: bool = False


Lengths = Annotated[float | Sequence[float], Kind(read_lengths, "LENGTH", "2vox")]
Sizes = Annotated[int | Sequence[int], Kind(read_sizes, "VOXELS", "3")]
Axes = Annotated[str, Kind(read_axes, "AXES", "d", ("d", "h", "w", "dhw", "xyz"))]
NUMBER = Kind(read_number, "NUMBER", "1")
COUNT = Kind(read_count, "COUNT", "1")


def choice_kind(choices: tuple[Any, ...]) -> Kind:
    """The kind of a `Literal`: one of these values, written as they print.

    >>> choice_kind((6, 18, 26)).read("18", "neighbours", None)
    18
    """
    by_text = {str(choice): choice for choice in choices}

    def read(text: str, name: str, grid: Grid | None) -> Any:
        if text not in by_text:
            *most, last = by_text
            raise SpecError(f"{name} is {', '.join(most)} or {last}, received {name}={text}")
        return by_text[text]

    return Kind(read, "|".join(by_text), next(iter(by_text)), tuple(by_text))
