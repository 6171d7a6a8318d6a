"""Types of values on the command line: numbers, one of a few words, triples.

Each says in one way what it takes and what it received: "must be a whole number of at least 1,
received '0'". `usage.py` puts the option's name before it. This module does not import NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from conv3d_cli.errors import name_hint
from conv3d_cli.settings.option import choice, integer

MUST = "must be "
"""How a message of these types begins."""


def refusal(words: str, value: object, hint: str = "") -> str:
    """The message of a value that is not what `words` say."""
    return f"{MUST}{words}, received '{value}'" + (f"; {hint.rstrip('; ')}" if hint else "")


class Whole(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of a whole number within a range, both ends included.

    low, high : int or None     ends of the range; None: no end
    """

    name = "integer"

    def __init__(self, low: int | None = None, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An int. Fails with a usage error for anything else."""
        kind = integer(self.low, self.high)
        try:
            number = int(value)
        except (TypeError, ValueError):
            self.fail(refusal(kind.value.words, value), param, ctx)
        if not kind.in_range(number):
            self.fail(refusal(kind.value.words, value), param, ctx)
        return number


class Real(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of a number.

    low : float or None     smallest one allowed; None: any
    """

    name = "number"

    def __init__(self, low: float | None = None) -> None:
        self.low = low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A float. Fails with a usage error for anything else."""
        words = "a number" if self.low is None else f"a number of at least {self.low:g}"
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(refusal(words, value), param, ctx)
        if self.low is not None and number < self.low:
            self.fail(refusal(words, value), param, ctx)
        return number


class OneOf(click.Choice):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of one of a few words, in any case.

    names : sequence    the words
    kind : str          what they name, for hints: see `vocabulary.VALUES`
    """

    def __init__(self, names: Sequence[str], kind: str = "") -> None:
        super().__init__(names, case_sensitive=False)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word as the list has it. Fails with a usage error for another one."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            names = list(self.choices)
            hint = name_hint(self.kind, value, names)
            self.fail(refusal(choice(*names).value.words, value, hint), param, ctx)


class Triple(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of one whole number, or of three in D,H,W order, of at least 1."""

    name = "N|N,N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An int, or a list of three, of at least 1. Fails with a usage error for anything else."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        whole = all(part.isdecimal() and int(part) > 0 for part in parts)
        if not whole or len(parts) not in (1, 3):
            words = "a whole number of at least 1, or three as in 2,1,1 (depth,height,width)"
            self.fail(refusal(words, value), param, ctx)
        numbers = [int(part) for part in parts]
        return numbers[0] if len(numbers) == 1 else numbers
