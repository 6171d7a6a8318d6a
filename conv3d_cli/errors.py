"""Every error that the package raises on purpose, each with the exit code of the command.

Each class also derives from the built-in error that a Python caller expects (ValueError, OSError,
...). A message is one line: the rule, what was received, where, and the cure. This module does not
depend on Click; `cli/` prints the messages and sets the exit codes.

A cure must fit its reader: `setting` and `words` give it as an option on the command line, and as
an argument in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LONGEST_MESSAGE = 2000
"""Most characters of a message; the middle of a longer one is left out."""

EXIT_CODES = {
    0: "done",
    1: "runtime fault",
    2: "usage",
    3: "input unreadable",
    4: "kernel and volume do not fit",
    5: "output exists",
    6: "over --max-memory",
    7: "volumes differ, or a checksum fails twice",
    129: "hung up",
    130: "interrupted",
    143: "terminated",
}
"""What each exit code of the command means."""


class Conv3DError(Exception):
    """Base class of the package's errors.

    exit_code : int     the exit code of the command

    Its text is one printable line, whatever characters a file's names and values contain.
    >>> str(FormatError("unknown key 'a\\nb\\x1b[2J'"))
    "unknown key 'a b\\\\x1b[2J'"
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        text = text if text.isprintable() else "".join(map(_printable, text))
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE // 2]} [...] {text[-LONGEST_MESSAGE // 2 :]}"
        return text


class SpecError(Conv3DError, ValueError):
    """An argument is not allowed, whatever the data (strides=0, a length without a unit)."""

    exit_code = 2


class UnknownNameError(SpecError):
    """A name is not in its catalogue (kernel, activation, algorithm, boundary)."""


class ConfigError(SpecError):
    """A config file cannot be understood; the message names file, key and expectation."""


class FormatError(Conv3DError, OSError):
    """An input file is missing, empty, truncated, corrupt or of an unknown kind."""

    exit_code = 3


class ShapeError(Conv3DError, ValueError):
    """Kernel, volume and geometry do not fit each other, or leave an empty output."""

    exit_code = 4


class ChangedInputError(Conv3DError, ValueError):
    """An input differs from the one that a record describes (`rerun`)."""

    exit_code = 4


class OutputExistsError(Conv3DError, FileExistsError):
    """The output exists already, or is one of the inputs."""

    exit_code = 5


class MemoryLimitError(Conv3DError, MemoryError):
    """The work does not fit under the memory ceiling; the message says how much it needs.

    needed : int    bytes of the ceiling that would do; 0 if that is not known
    """

    exit_code = 6
    needed = 0


class ClusterError(Conv3DError, ConnectionError):
    """A scheduler cannot be reached, or its workers fail."""


class SystemLimitError(Conv3DError, RuntimeError):
    """The system gives this process no more threads or open files."""


class DifferenceError(Conv3DError, ValueError):
    """Two volumes that should agree do not (`compare`)."""

    exit_code = 7


class FaultError(Conv3DError, ArithmeticError):
    """Sums of an output do not agree with its input, computed twice: memory or CPU are faulty."""

    exit_code = 7


class WriteError(Conv3DError, OSError):
    """An output cannot be written: disk full, no permission, a dtype that its format lacks, ..."""

    exit_code = 1


# --------------------------------------------------------------------------------------------------
# Words for the reader

_reader = {"types commands": False}  # one for all threads: those of a batch write messages, too


@contextmanager
def for_command_line() -> Iterator[None]:
    """A context whose messages are read by somebody who types commands.

    >>> with for_command_line():
    ...     setting("nan", "ignore")
    '--nan ignore'
    """
    before = _reader["types commands"]
    _reader["types commands"] = True
    try:
        yield
    finally:
        _reader["types commands"] = before


def reader_types_commands() -> bool:
    """True within `for_command_line`: another process that writes messages should know."""
    return _reader["types commands"]


def words(command: str, python: str) -> str:
    """The words of a message for its reader: one who types commands, or writes Python.

    >>> words("pass --like VOLUME", "pass grid=")
    'pass grid='
    """
    return command if reader_types_commands() else python


def setting(name: str, value: object = None) -> str:
    """An option of `conv3d apply`, or the argument of that name in Python.

    name : str          name of the option, with underscores
    value : object      its value; True or False for a flag; None: the name alone

    >>> setting("max_memory", "2G"), setting("overwrite", True), setting("mask")
    ("max_memory='2G'", 'overwrite=True', 'mask=')
    >>> with for_command_line():
    ...     setting("max_memory", "2G"), setting("normalize", False), setting("mask")
    ('--max-memory 2G', '--no-normalize', '--mask')
    """
    if not _reader["types commands"]:
        return f"{name}=" if value is None else f"{name}={value!r}"
    flag = ("--no-" if value is False else "--") + name.replace("_", "-")
    return flag if value is None or isinstance(value, bool) else f"{flag} {value}"


def named(name: str) -> str:
    """An option of `conv3d apply`, or the argument in Python, as the subject of a sentence.

    >>> with for_command_line():
    ...     named("min_coverage")
    '--min-coverage'
    """
    return words(f"--{name.replace('_', '-')}", name)


def _printable(character: str) -> str:
    """A character as a terminal may show it: itself, a space, or its escape."""
    if character.isprintable():
        return character
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":  # spaces to Python only
        return " "
    return character.encode("unicode_escape").decode("ascii")


def one_line(error: BaseException) -> str:
    """An error's message on one line.

    >>> one_line(ValueError("a\\n  b"))
    'a b'
    """
    return " ".join(str(error).split())


def suggestion(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """A hint at the known name nearest to a misspelt one, for messages; "" if none is near.

    likeness : float    of the two names, from 0 to 1, that makes one near
    >>> suggestion("sigam", ["sigma", "fwhm"])
    "did you mean 'sigma'? "
    """
    import difflib  # imported here because most runs need no suggestion

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"did you mean '{close[0]}'? " if close else ""


def name_hint(kind: str, name: object, known: Sequence[str]) -> str:
    """A hint at the name that is meant: that of another tool's word, else the nearest one.

    kind : str      what is named: a "key", a "column", or see `vocabulary.VALUES`

    >>> name_hint("boundary", "edge", ["nearest", "edges"])
    "write 'nearest'; "
    >>> name_hint("boundary", "zeroes", ["nearest", "zeros"])
    "did you mean 'zeros'? "
    """
    from conv3d_cli.vocabulary import own_key, own_value  # here, because most runs need no hint

    own = own_key(name, known) if kind in ("key", "column") else own_value(kind, name, known)
    return f"write '{own}'; " if own else suggestion(str(name).lower(), known)


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not in its catalogue; the message suggests the nearest name.

    >>> str(unknown_name("activation", "rellu", ["linear", "relu"]))
    "unknown activation 'rellu'; did you mean 'relu'? available: linear, relu"
    """
    names = list(available)
    hint = name_hint(kind, name, names)
    return UnknownNameError(f"unknown {kind} '{name}'; {hint}available: {', '.join(names)}")
