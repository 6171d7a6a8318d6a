"""Every error that the package raises on purpose, each with the exit code of the command.

Each class also derives from the built-in error that a Python caller expects (ValueError, OSError,
...). A message is one line: the rule, what was received, where, and the cure. This module does not
depend on Click; `cli/` prints the messages and sets the exit codes.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    7: "volumes differ",
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


class DifferenceError(Conv3DError, ValueError):
    """Two volumes that should agree do not (`compare`)."""

    exit_code = 7


class WriteError(Conv3DError, OSError):
    """An output cannot be written: disk full, no permission, a dtype that its format lacks, ..."""

    exit_code = 1


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


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint at the known name nearest to a misspelt one, for messages; "" if none is near.

    >>> suggestion("sigam", ["sigma", "fwhm"])
    "did you mean 'sigma'? "
    """
    import difflib  # imported here because most runs need no suggestion

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not in its catalogue; the message suggests the nearest name.

    >>> str(unknown_name("activation", "rellu", ["linear", "relu"]))
    "unknown activation 'rellu'; did you mean 'relu'? available: linear, relu"
    """
    names = list(available)
    hint = suggestion(str(name).lower(), names)
    return UnknownNameError(f"unknown {kind} '{name}'; {hint}available: {', '.join(names)}")
