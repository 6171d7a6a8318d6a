"""Click's options out of the table in `settings/options.py`, and what was given of them.

The titles of the help are the sections of the table. No NumPy at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from conv3d_cli.settings.option import SECTIONS, File, Kind, Option
from conv3d_cli.settings.options import OPTION, OPTIONS, Settings

Command = TypeVar("Command", bound=Callable[..., Any])


class Triple(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """One whole number or three, in D,H,W order."""

    name = "N|N,N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
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
    """One decorator out of several options, which stand under a title in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(declared):
            command = option(command)
        for parameter in command.__click_params__[-len(declared) :]:  # type: ignore[attr-defined]
            parameter.section = title
        return command

    return decorate


class SectionedCommand(click.Command):
    """A command whose help lists its options under titles."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section, those without a title first, --help among them.

        Sections have the order of `SECTIONS`; others follow in the order of their options.
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


# ---------------------------------------------------------------------------------------------------------------------
# The options of the table


def apply_options(command: Command) -> Command:
    """Every option of `apply`, as `settings/options.py` says them."""
    return _declared(option for option in OPTIONS if option.section)(command)


def explain_options(command: Command) -> Command:
    """The options that `explain` shares with `apply`: those of a convolution and of its job."""
    return _declared(option for option in OPTIONS if option.section and option.explains)(command)


def table_options(*names: str) -> Callable[[Command], Command]:
    """Some options of `apply`, for another command, which lists them among its own."""
    return _declared((OPTION[name] for name in names), titled=False)


def _declared(rows: Iterable[Option], titled: bool = True) -> Callable[[Command], Command]:
    """One decorator out of rows of the table; `titled` puts each under its section of the help."""
    listed = list(rows)

    def decorate(command: Command) -> Command:
        for row in reversed(listed):
            command = click_option(row)(command)
            if titled:
                command.__click_params__[-1].section = row.section  # type: ignore[attr-defined]
        return command

    return decorate


def click_option(row: Option) -> Callable[[Command], Command]:
    """Click's option of a row."""
    values: dict[str, Any] = {"help": row.help, "metavar": row.metavar}
    if row.kind.is_flag:
        values |= {"is_flag": True, "default": False}
        del values["metavar"]
    else:
        values |= {"type": _click_type(row.kind), "multiple": row.kind.repeats}
        if row.default is not None:
            values |= {"default": row.default, "show_default": True}
    return click.option(*row.flags, row.name, cls=TableOption, file=row.file, **values)


class TableOption(click.Option):
    """An option that knows what kind of file its text may name, which a shell can complete."""

    def __init__(self, *arguments: Any, file: File | None = None, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.file = file


def _click_type(kind: Kind[Any]) -> Any:
    if kind.choices:
        return click.Choice(kind.choices)
    if kind.low is not None or kind.high is not None:
        return click.IntRange(kind.low, kind.high)
    return {"triple": Triple(), "integer": click.INT, "number": click.FLOAT}.get(
        kind.name, click.STRING
    )


def help_json_option(command: Command) -> Command:
    """--help-json: the table as JSON, for programs that build command lines."""

    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            rows = [row.record() for row in OPTIONS if row.section]
            click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
            ctx.exit()

    return click.option(
        "--help-json",
        is_flag=True,
        hidden=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Print these options as JSON.",
    )(command)


def given_settings(ctx: click.Context) -> Settings:
    """What was given on the command line of a command that has options of the table."""
    return Settings(
        **{
            name: value
            for name, value in ctx.params.items()
            if name in OPTION
            and ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        }
    )


def text_parser(ctx: click.Context) -> Callable[[str, str], Any]:
    """A function (option, text) -> value, which reads a text as the command line does.

    A flag is read from true or false.
    The function raises ValueError, with the reason, for a text that is no value of the option.
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
