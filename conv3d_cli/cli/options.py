"""Makes Click's options from the table in `settings/options.py`, and reads those that were given.

The help has the sections of the table. This module does not import NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from conv3d_cli.cli.parameters import FileName, UnitOption
from conv3d_cli.settings.option import SECTIONS, File, Option, Unit
from conv3d_cli.settings.options import OPTION, OPTIONS, Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])


class Triple(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of one whole number, or of three in D,H,W order."""

    name = "N|N,N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An int, or a list of three. Fails with a usage error for anything else."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.lstrip("+-").isdigit() for part in parts):
            self.fail(
                f"'{value}' is not a whole number, or three as in 2,1,1 (depth,height,width)",
                param,
                ctx,
            )
        numbers = [int(part) for part in parts]
        return numbers[0] if len(numbers) == 1 else numbers


def options(title: str, *declared: Any) -> Callable[[Command], Command]:
    """A decorator that adds several options, under a title in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(declared):
            command = option(command)
        for parameter in command.__click_params__[-len(declared) :]:  # type: ignore[attr-defined]
            parameter.section = title
        return command

    return decorate


class SectionedCommand(click.Command):
    """A command whose help lists its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section, those without a section first, such as --help.

        Sections are in the order of `SECTIONS`; others follow in the order of their options.
        """
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        known = {title: number for number, title in enumerate(SECTIONS)}
        for title, records in sorted(
            sections.items(), key=lambda item: known.get(item[0], len(known))
        ):
            with formatter.section(title):
                formatter.write_dl(records)


# --------------------------------------------------------------------------------------------------
# The options of the table


def apply_options(command: Command) -> Command:
    """Add every option of `apply` to a command."""
    return _declared(option for option in OPTIONS if option.section)(command)


def explain_options(command: Command) -> Command:
    """Add the options that `explain` shares with `apply`: those of convolutions and jobs."""
    return _declared(option for option in OPTIONS if option.section and option.explains)(command)


def table_options(*names: str) -> Callable[[Command], Command]:
    """A decorator that adds some options of `apply` to another command, without their sections."""
    return _declared((OPTION[name] for name in names), titled=False)


def _declared(rows: Iterable[Option], titled: bool = True) -> Callable[[Command], Command]:
    """A decorator that adds options of the table; `titled` puts each into its section."""
    listed = list(rows)

    def decorate(command: Command) -> Command:
        for row in reversed(listed):
            command = click_option(row)(command)
            if titled:
                command.__click_params__[-1].section = row.section  # type: ignore[attr-defined]
        return command

    return decorate


def click_option(row: Option) -> Callable[[Command], Command]:
    """A decorator that adds the option of one row of the table."""
    values: dict[str, Any] = {"help": row.help, "metavar": row.metavar}
    if row.kind.is_flag:
        values |= {"is_flag": True, "default": False}
        del values["metavar"]
    else:
        values |= {"type": _click_type(row), "multiple": row.kind.repeats}
        if row.default is not None:
            values |= {"default": row.default, "show_default": True}
    return click.option(*row.flags, row.name, cls=TableOption, row=row, **values)


class TableOption(click.Option):
    """An option of the table.

    row : Option        its row
    """

    def __init__(self, *arguments: Any, row: Option, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.row = row

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completions of the text typed so far."""
        from conv3d_cli.cli.completion import BY_NAME

        find = BY_NAME.get(self.row.name)
        return super().shell_complete(ctx, incomplete) if find is None else find(incomplete)


def file_of(parameter: click.Parameter) -> File | None:
    """The kind of file that the value of an option or argument may name; None if it names none."""
    return parameter.type.file if isinstance(parameter.type, FileName) else None


def unit_of(parameter: click.Parameter) -> Unit | None:
    """The unit of an option's numbers; None if they have none."""
    if isinstance(parameter, TableOption):
        return parameter.row.unit
    return parameter.unit if isinstance(parameter, UnitOption) else None


def _click_type(row: Option) -> Any:
    kind = row.kind
    if row.file is not None:
        return FileName(row.file)
    if kind.choices:
        return click.Choice(kind.choices)
    if kind.low is not None or kind.high is not None:
        return click.IntRange(kind.low, kind.high)
    return {"triple": Triple(), "integer": click.INT, "number": click.FLOAT}.get(
        kind.name, click.STRING
    )


def given_settings(ctx: click.Context) -> Settings:
    """The options of the table that were given on the command line."""
    return Settings(
        **{
            name: value
            for name, value in ctx.params.items()
            if name in OPTION
            and ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        }
    )


def text_parser(ctx: click.Context) -> Callable[[str, str], Any]:
    """Make a function (option, text) -> value that parses a text as the command line does.

    The text of a flag is true or false. The function raises ValueError, with the reason, if the
    text is not a value of the option.
    """
    parameters = {parameter.name: parameter for parameter in ctx.command.params}

    def parse(name: str, text: str) -> Any:
        parameter = parameters[name]
        try:
            return (click.BOOL if OPTION[name].kind.is_flag else parameter.type).convert(
                text, parameter, ctx
            )
        except click.BadParameter as error:
            raise ValueError(error.message) from None

    return parse
