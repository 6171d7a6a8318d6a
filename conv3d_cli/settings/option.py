"""A row of the table in `options.py`: one option of `conv3d apply`, and the kinds of its values.

This module imports neither Click nor NumPy, so that --help is quick.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

# Titles of the groups of options in the help, in order.
SECTIONS = (
    "Options",
    "Operation",
    "Kernel",
    "Edges and steps",
    "Many volumes",
    "Data",
    "Masks and missing voxels",
    "Checks and provenance",
    "Running",
    "Formats of outputs",
    "Cluster",
    "Layer, in Keras' words",
)
# Order of the sections in a recorded command.
RECORDED_SECTIONS = (
    "Kernel",
    "Edges and steps",
    "Layer, in Keras' words",
    "Data",
    "Masks and missing voxels",
    "Running",
    "Formats of outputs",
    "Checks and provenance",
)


class Place(Enum):
    """The object that an option configures."""

    STAGE = "one convolution"
    JOB = "one volume's job"
    MISSING = "a job's missing voxels"
    COMMAND = "the whole command"


class File(Enum):
    """The kind of file that an option's value may name."""

    READ = "an input file"
    MASK = "an input file, or a rule that finds one for each volume"
    WRITTEN = "an output file"
    FOLDER = "a folder"
    KERNEL = "a built-in kernel or an input file"
    BIAS = "numbers or an input file"


class Unit(Enum):
    """The unit of an option's numbers."""

    VOXELS = "voxels"
    LENGTH = "the value names its unit: nm, um, mm, cm, m, or vox"
    BYTES = "bytes; the value may end in K, M, G or T"
    BYTES_PER_SECOND = "bytes per second; the value may end in K, M, G or T"
    SECONDS = "seconds"
    FRACTION = "a fraction of 1"
    VOXEL_VALUES = "the unit of the volume's values"


@dataclass(frozen=True)
class Value:
    """The rule for an option's value in a config.

    types : tuple of types      allowed types; bool does not count as int; object allows any value
    words : str                 the rule in words, for messages: "threads must be <words>"
    """

    types: tuple[type, ...]
    words: str

    def allows(self, value: object) -> bool:
        """Whether a value has one of the allowed types.

        >>> Value((int,), "a whole number").allows(True), Value((int,), "a whole number").allows(2)
        (False, True)
        """
        if isinstance(value, bool):
            return bool in self.types or object in self.types
        return isinstance(value, self.types)


@dataclass(frozen=True)
class Kind(Generic[T]):
    """The kind of value that an option takes on the command line.

    name : str              "text", "flag", "switch" (--x/--no-x), "integer", "number", "triple"
                            or "choice"; a key of `KINDS`
    value : Value           rule for a config's value, unless the option has its own
    choices : tuple of str  all allowed values
    low, high : int         range of an integer, both ends included
    repeats : bool          the option may be given several times; its value is a tuple
    """

    name: str
    value: Value
    choices: tuple[str, ...] = ()
    low: int | None = None
    high: int | None = None
    repeats: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value on the command line."""
        return self.name in ("flag", "switch")

    def in_range(self, value: object) -> bool:
        """Whether a config's value lies within `low` and `high`; True if it is no integer."""
        if not isinstance(value, int):
            return True
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


KINDS = {
    "text": "any text",
    "flag": "takes no value",
    "switch": "takes no value; negative_flags turn it off",
    "integer": "a whole number",
    "number": "a number",
    "triple": "a whole number, or three in depth,height,width order, as in 2,1,1",
    "choice": "one of the choices",
}
"""What the kinds of values are, in words."""

TEXT: Kind[str] = Kind("text", Value((str,), "a string"))
TEXTS: Kind[tuple[str, ...]] = Kind("text", Value((list,), "a list of strings"), repeats=True)
COUNT_OR_WORD: Kind[int | str] = Kind(
    "text", Value((int, str), 'a whole number of at least 1, "all" or "off"')
)
FLAG: Kind[bool] = Kind("flag", Value((bool,), "true or false"))
SWITCH: Kind[bool] = Kind("switch", Value((bool,), "true or false"))
NUMBER: Kind[float] = Kind("number", Value((int, float), "a number"))
TRIPLE: Kind[int | Sequence[int]] = Kind(
    "triple", Value((int, list), "a whole number, or a list of three")
)


def integer(low: int | None = None, high: int | None = None) -> Kind[int]:
    """The kind of integers within a range.

    >>> integer(0, 3).value.words, integer(low=1).value.words
    ('a whole number from 0 to 3', 'a whole number of at least 1')
    """
    words = "a whole number"
    if low is not None:
        words += f" of at least {low}" if high is None else f" from {low} to {high}"
    return Kind("integer", Value((int,), words), low=low, high=high)


def choice(*names: str) -> Kind[str]:
    """The kind of values that are one of a few words.

    >>> choice("voxel", "world").value.words
    'voxel or world'
    """
    words = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return Kind("choice", Value((str,), words), names)


@dataclass(frozen=True)
class Option:
    """One option.

    name : str              field of `Settings`, key in a config, column of a manifest
    place : Place           object that it configures
    kind : Kind             kind of its values
    shapes : bool           the output's bytes depend on it; a sidecar's command then includes it
    help : str              help text; "" for a key that only configs have
    section : str           title of its group in the help; "" for a key that only configs have
    letter : str            short form, without the dash
    flag : str              long form, if it differs from the name
    metavar : str           placeholder for its value in the help
    default : object        default to show in the help; None if the help text states it, or if
                            there is none
    file : File or None     kind of file that its value may name
    unit : Unit or None     unit of its numbers
    config : Value or None  rule for its value in a config; None: configs have no such key
    manifest : bool         a manifest may have a column for it
    explains : bool         it is also an option of `conv3d explain`
    python : bool           it is also an argument of `convolve_file()`
    field : str             field of `Stage`, `Job` or `Missing` that it sets; "" if none
    resumes : bool          --resume makes an output again if this value has changed
    gives_kernel : bool     it names the kernel's source; recorded commands begin with it
    makes_kernel : bool     it is used up in making the kernel; a cluster's tasks get the kernel
                            instead of the option
    stores : bool           it decides how the result is stored, or what happens if the format
                            cannot hold it
    common : bool           most people need it: --help shows it, by the first sentence of its help;
                            the others are in --help-all
    """

    name: str
    place: Place
    kind: Kind[Any]
    shapes: bool
    help: str
    section: str
    letter: str
    flag: str
    metavar: str | None
    default: object
    file: File | None
    unit: Unit | None
    config: Value | None
    manifest: bool
    explains: bool
    python: bool
    field: str
    resumes: bool
    gives_kernel: bool
    makes_kernel: bool
    stores: bool
    common: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """Its forms on the command line; empty for a key that only configs have."""
        if not self.section:
            return ()
        long = "--" + (self.flag or self.name).replace("_", "-")
        long = f"{long}/{long.replace('--', '--no-', 1)}" if self.kind.name == "switch" else long
        return (f"-{self.letter}", long) if self.letter else (long,)

    @property
    def brief(self) -> str:
        """The first sentence of its help, with its default if the help states one.

        >>> made = option(FLAG, Place.JOB, "Data", shapes=True, help="Kept. Or not.  [default: 1]")
        >>> Option(name="x", **made.metadata).brief
        'Kept.  [default: 1]'
        """
        text, bracket, default = self.help.partition("  [default: ")
        return re.split(r"(?<=\.) (?=[A-Z`])", text)[0] + bracket + default

    @property
    def written(self) -> str:
        """Its flag in a recorded command: -k or -c, else the long form without its negation."""
        return self.flags[0].partition("/")[0]

    def record(self) -> dict[str, Any]:
        """Its role in `apply` as a JSON object, for programs that build command lines."""
        return {
            "belongs_to": self.place.name.lower(),
            "shapes_result": self.shapes,
            "config_key": self.config is not None,
            "manifest_column": self.manifest,
            "common": self.common,
        }


ANY = Value((object,), "")  # any value; the code that uses it checks it


def option(
    kind: Kind[T],
    place: Place,
    section: str,
    *,
    shapes: bool,
    help: str,
    letter: str = "",
    flag: str = "",
    metavar: str | None = None,
    default: object = None,
    file: File | None = None,
    unit: Unit | None = None,
    config: Value | bool | None = None,
    manifest: bool | None = None,
    explains: bool | None = None,
    python: bool | None = None,
    field: str | None = None,
    resumes: bool | None = None,
    gives_kernel: bool = False,
    makes_kernel: bool = False,
    stores: bool = False,
    common: bool = False,
) -> T | None:
    """Declare a field of `Settings`; the parameters are those of `Option`.

    By default, an option of a convolution or a job is also a config key, a manifest column and an
    option of `explain`; `convolve_file()` takes these and all that shape the result; --resume
    compares the options that shape the result; and an option sets the field of its own name.

    Raises: ValueError if the section is unknown, or an option with a section has no help.
    """
    if section not in SECTIONS and section:
        raise ValueError(f"no section {section!r} of the help: {SECTIONS}")
    if not help and section:
        raise ValueError("an option needs a help text")
    inner = place is not Place.COMMAND
    config = inner if config is None else config
    values: dict[str, Any] = {
        "kind": kind,
        "place": place,
        "section": section,
        "shapes": shapes,
        "help": help,
        "letter": letter,
        "flag": flag,
        "metavar": metavar,
        "default": default,
        "file": file,
        "unit": unit,
        "config": (kind.value if config else None) if isinstance(config, bool) else config,
        "manifest": inner if manifest is None else manifest,
        "explains": inner if explains is None else explains,
        "python": inner or shapes if python is None else python,
        "field": field,
        "resumes": shapes if resumes is None else resumes,
        "gives_kernel": gives_kernel,
        "makes_kernel": makes_kernel,
        "stores": stores,
        "common": common,
    }
    # At run time this is a dataclass field; for a type checker it has the type of the values.
    return cast("T | None", dataclasses.field(default=None, metadata=values))
