"""Every error the package raises on purpose, each with the exit code the command ends with.

Each class also descends from the builtin a Python caller would expect (ValueError, OSError, ...). A message is one
line: the rule, what was received, where, and the cure. This module knows no Click; `cli/` does the translating.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_MESSAGE = 2000
"""Characters of a message; what is between its ends is left out."""


class Conv3DError(Exception):
    """Root of the package's errors. `exit_code` is what the command line ends with.

    Its text is one line that a terminal can show, whatever names and values from a file stand in it.
    >>> str(FormatError("unknown key 'a\\nb\\x1b[2J'"))
    "unknown key 'a b\\\\x1b[2J'"
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        text = text if text.isprintable() else "".join(map(_shown, text))
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE // 2]} [...] {text[-LONGEST_MESSAGE // 2 :]}"
        return text


class SpecError(Conv3DError, ValueError):
    """An option or argument is not allowed, whatever the data (strides=0, a length without a unit)."""

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
    """An input is no longer what a record says that it was (`rerun`)."""

    exit_code = 4


class OutputExistsError(Conv3DError, FileExistsError):
    """The output exists already, or is one of the inputs."""

    exit_code = 5


class MemoryLimitError(Conv3DError, MemoryError):
    """The work cannot fit under the memory ceiling; the message says how much would do."""

    exit_code = 6


class ClusterError(Conv3DError, ConnectionError):
    """A scheduler cannot be reached, or its workers fail."""


class DifferenceError(Conv3DError, ValueError):
    """Two volumes that should agree do not (`compare`)."""

    exit_code = 7


class WriteError(Conv3DError, OSError):
    """An output cannot be written (disk full, no permission, a dtype or size the format cannot hold)."""

    exit_code = 1


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":  # which Python takes for spaces
        return " "
    return character.encode("unicode_escape").decode("ascii")


def one_line(error: BaseException) -> str:
    """An error's message on one line.

    >>> one_line(ValueError("a\\n  b"))
    'a b'
    """
    return " ".join(str(error).split())


def suggestion(name: str, known: Iterable[str]) -> str:
    """What a wrong name may have meant, for messages; "" if nothing is near.

    >>> suggestion("sigam", ["sigma", "fwhm"])
    "did you mean 'sigma'? "
    """
    import difflib  # late, since most runs name nothing wrongly

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def unknown_name(kind: str, name: object, available: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not in its catalogue, with the nearest one suggested.

    >>> str(unknown_name("activation", "rellu", ["linear", "relu"]))
    "unknown activation 'rellu'; did you mean 'relu'? available: linear, relu"
    """
    names = list(available)
    hint = suggestion(str(name).lower(), names)
    return UnknownNameError(f"unknown {kind} '{name}'; {hint}available: {', '.join(names)}")
