"""What the parameters of commands tell about their values: kinds of files, and units.

`cli/completion.py` and `cli/description.py` need it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.values import Real, refusal
from conv3d_cli.errors import SpecError
from conv3d_cli.settings.option import File, Unit

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


# What a value names, if it is no plain file.
_NAMED = {
    File.FOLDER: "the name of a folder",
    File.KERNEL: "the name of a kernel or of a file",
    File.MASK: "the name of a file, or a rule",
    File.BIAS: "numbers, or the name of a file",
}


def empty_refusal(what: str) -> str:
    """The message of an empty value, which "$UNSET" is, too; `what` should stand there."""
    return refusal(what, "", "write it, or leave it out (is a variable unset?)")


class Text(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of a value that is any text but an empty one."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value itself. Raises: click.BadParameter if it is empty."""
        if value == "":
            self.fail(empty_refusal("a value"), param, ctx)
        return value


class FileName(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of a value that may name a file. It takes any text but an empty one.

    file : File     kind of the file
    """

    name = "text"

    def __init__(self, file: File) -> None:
        self.file = file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value itself. Raises: click.BadParameter if it is empty, as "$UNSET" is."""
        if value == "":
            self.fail(empty_refusal(_NAMED.get(self.file, "the name of a file")), param, ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Completions of the text typed so far."""
        from conv3d_cli.cli.completion import BY_FILE

        return BY_FILE[self.file](incomplete)


class UnitOption(click.Option):
    """An option of another command than `apply`, whose numbers have a unit.

    unit : Unit     the unit
    """

    def __init__(self, *arguments: Any, unit: Unit, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.unit = unit


def timeout_option() -> Callable[[Any], Any]:
    """A decorator that adds --timeout to another command than `apply`, and obeys it."""

    def limit(seconds: float | None) -> AbstractContextManager[None]:
        from conv3d_cli.formats.zarr.remote import waiting

        return waiting(seconds)

    return _limiting_option("timeout", Real(), limit)


def memory_option() -> Callable[[Any], Any]:
    """A decorator that adds --max-memory to another command than `apply`, and obeys it."""

    def limit(size: str | None) -> AbstractContextManager[None]:
        from conv3d_cli.system.machine import byte_size
        from conv3d_cli.system.room import ceiling_of_memory

        return ceiling_of_memory(None if size is None else byte_size(size))

    return _limiting_option("max_memory", Text(), limit)


def _limiting_option(
    name: str, kind: Any, limit: Callable[[Any], AbstractContextManager[None]]
) -> Callable[[Any], Any]:
    """A decorator that adds an option of the table, in whose limit the command runs.

    kind : click.ParamType      the type of its value
    limit : callable            value -> the limit, as a context manager
    """
    from conv3d_cli.settings.options import OPTION

    option = OPTION[name]

    def decorate(command: Callable[..., Any]) -> Any:
        @wraps(command)
        def obeying(*arguments: Any, **values: Any) -> Any:
            with limit(values.pop(name)):
                return command(*arguments, **values)

        return click.option(
            *option.flags,
            cls=UnitOption,
            unit=option.unit,
            type=kind,
            metavar=option.metavar,
            help=option.help,
        )(obeying)

    return decorate


def spacing_option(
    text: str = (
        "Voxel spacing with its unit, e.g. 0.3,0.1,0.1um, for files that store none or no unit."
    ),
) -> Callable[[Any], Any]:
    """A decorator that adds --spacing to another command than `apply`; `text` is its help."""
    return click.option("--spacing", cls=UnitOption, unit=Unit.LENGTH, metavar="D,H,W", help=text)


def refuse_both(first: object, second: object, contradiction: str) -> None:
    """Refuse two options of which each takes the other's effect. Raises: SpecError."""
    if first and second:
        raise SpecError(f"{contradiction}; pass one of them")


def check_overwrite(overwrite: bool, output: str | None) -> None:
    """Refuse --overwrite where no file is written. Raises: SpecError."""
    if overwrite and output is None:
        raise SpecError("--overwrite is for -o, which names a file; pass both, or neither")
