"""What an option of `conv3d apply` is: a row of the table in `options.py`, and kinds of values.

No Click and no NumPy here: help is printed without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

# the titles under which options stand in the help, in that order
SECTIONS = (
    "Options",
    "Kernel",
    "Edges and steps",
    "Many volumes",
    "Data",
    "Masks and missing voxels",
    "Checks and provenance",
    "Running",
    "Formats of outputs",
    "A cluster",
    "Layer, in Keras' words",
)
# the order of sections in a recorded command
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
    """What an option belongs to: the object that is made of it."""

    STAGE = "one convolution"
    JOB = "one volume's job"
    MISSING = "a job's missing voxels"
    COMMAND = "the whole command"


class File(Enum):
    """What kind of file an option's text may name."""

    READ = "a file that is read"
    WRITTEN = "a file that is written"
    FOLDER = "a folder"
    KERNEL = "a built-in kernel, or a file that is read"
    BIAS = "numbers, or a file that is read"


@dataclass(frozen=True)
class Value:
    """What a config's value must be.

    types : tuple of types      a bool is no int here; object allows everything
    words : str                 the rule, for messages: "threads must be <words>"
    """

    types: tuple[type, ...]
    words: str

    def allows(self, value: object) -> bool:
        """Whether a value has one of the types.

        >>> Value((int,), "a whole number").allows(True), Value((int,), "a whole number").allows(2)
        (False, True)
        """
        if isinstance(value, bool):
            return bool in self.types or object in self.types
        return isinstance(value, self.types)


@dataclass(frozen=True)
class Kind(Generic[T]):
    """The values that an option takes on the command line.

    name : str              for programs: "text", "flag", "switch" (--x/--no-x), "integer",
                            "number", "triple" or "choice"
    value : Value           what a config's value must be, unless the option says otherwise
    choices : tuple of str  all values there are
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
        """Whether the option stands alone on the command line, without a value."""
        return self.name in ("flag", "switch")

    def in_range(self, value: object) -> bool:
        """Whether a value of a config is not below `low` and not above `high`."""
        if not isinstance(value, int):
            return True
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


TEXT: Kind[str] = Kind("text", Value((str,), "a text"))
TEXTS: Kind[tuple[str, ...]] = Kind("text", Value((list,), "a list of texts"), repeats=True)
FLAG: Kind[bool] = Kind("flag", Value((bool,), "true or false"))
SWITCH: Kind[bool] = Kind("switch", Value((bool,), "true or false"))
NUMBER: Kind[float] = Kind("number", Value((int, float), "a number"))
TRIPLE: Kind[int | Sequence[int]] = Kind(
    "triple", Value((int, list), "a whole number, or a list of three")
)


def integer(low: int | None = None, high: int | None = None) -> Kind[int]:
    """Whole numbers of a range.

    >>> integer(0, 3).value.words, integer(low=1).value.words
    ('a whole number from 0 to 3', 'a whole number of at least 1')
    """
    words = "a whole number"
    if low is not None:
        words += f" of at least {low}" if high is None else f" from {low} to {high}"
    return Kind("integer", Value((int,), words), low=low, high=high)


def choice(*names: str) -> Kind[str]:
    """One of a few words.

    >>> choice("voxel", "world").value.words
    'voxel or world'
    """
    words = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return Kind("choice", Value((str,), words), names)


@dataclass(frozen=True)
class Option:
    """One option.

    name : str              the field of `Settings`, the config key, the column of a manifest
    place : Place           what it belongs to
    kind : Kind             the values it takes
    shapes : bool           whether the output's bytes depend on it: then a sidecar's command has it
    help : str              for the command line; "" for a key that only configs have
    section : str           its title in the help; "" for a key that only configs have
    letter : str            its short form, without the dash
    flag : str              its long form, where that is not the name
    metavar : str           what stands for its value in the help
    default : object        shown in the help; None where the help says it in words, or nothing
    file : File or None     what its text may name
    config : Value or None  what a config's value must be; None: configs have no such key
    manifest : bool         may be a column of a manifest
    explains : bool         also an option of `conv3d explain`
    field : str             the field of `Stage`, `Job` or `Missing` that it sets; "" if it sets
                            none by itself
    resumes : bool          whether --resume makes an output anew that was made under another value
    gives_kernel : bool     says where the kernel comes from; a recorded command begins with it
    makes_kernel : bool     has done its work when the kernel is made; a cluster's tasks get the
                            kernel and not the option
    stores : bool           says how the result is stored, or what happens if the format cannot
                            hold it
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
    config: Value | None
    manifest: bool
    explains: bool
    field: str
    resumes: bool
    gives_kernel: bool
    makes_kernel: bool
    stores: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is written on the command line; nothing for a key that only configs have."""
        if not self.section:
            return ()
        long = "--" + (self.flag or self.name).replace("_", "-")
        long = f"{long}/{long.replace('--', '--no-', 1)}" if self.kind.name == "switch" else long
        return (f"-{self.letter}", long) if self.letter else (long,)

    @property
    def written(self) -> str:
        """Its flag in a recorded command: -k, -c, else the long form without its negation."""
        return self.flags[0].partition("/")[0]

    def record(self) -> dict[str, Any]:
        """The option as JSON, for programs that build command lines."""
        return {
            "name": self.name,
            "flags": [part for flag in self.flags for part in flag.split("/")],
            "section": self.section,
            "type": self.kind.name,
            "choices": list(self.kind.choices) or None,
            "minimum": self.kind.low,
            "maximum": self.kind.high,
            "metavar": self.metavar,
            "default": self.default,
            "repeats": self.kind.repeats,
            "file": self.file.name.lower() if self.file is not None else None,
            "belongs_to": self.place.name.lower(),
            "shapes_result": self.shapes,
            "config_key": self.config is not None,
            "manifest_column": self.manifest,
            "help": self.help,
        }


ANY = Value((object,), "")  # of a config: checked where it is used


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
    config: Value | bool | None = None,
    manifest: bool | None = None,
    explains: bool | None = None,
    field: str | None = None,
    resumes: bool | None = None,
    gives_kernel: bool = False,
    makes_kernel: bool = False,
    stores: bool = False,
) -> T | None:
    """A field of `Settings`; see `Option` for what its row says.

    By default an option of a convolution or a job is also a config key, a manifest column and an
    option of `explain`; --resume compares an option that shapes the result; and an option sets the
    field of its own name.

    Raises: ValueError for a row without help, or with a section that the help does not have.
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
        "config": (kind.value if config else None) if isinstance(config, bool) else config,
        "manifest": inner if manifest is None else manifest,
        "explains": inner if explains is None else explains,
        "field": field,
        "resumes": shapes if resumes is None else resumes,
        "gives_kernel": gives_kernel,
        "makes_kernel": makes_kernel,
        "stores": stores,
    }
    # The class body gets a dataclass's field; a type checker sees the type of the values.
    return cast("T | None", dataclasses.field(default=None, metadata=values))
