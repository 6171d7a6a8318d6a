"""Makes Click's options from the table in `settings/options.py`, and reads those that were given.

The help has the sections of the table. This module does not import NumPy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from conv3d_cli.cli.parameters import FileName, Text, UnitOption
from conv3d_cli.cli.values import OneOf, Real, Triple, Whole
from conv3d_cli.settings.option import SECTIONS, File, Option, Unit
from conv3d_cli.settings.options import OPTION, OPTIONS, Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])


def options(title: str, *declared: Any) -> Callable[[Command], Command]:
    """A decorator that adds several options, under a title in the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(declared):
            command = option(command)
        for parameter in command.__click_params__[-len(declared) :]:  # type: ignore[attr-defined]
            parameter.section = title
        return command

    return decorate


# The section of options that only one command has, which are in its short help.
OWN = "Operation"
# What the value of an option names, where that has another name: see `vocabulary.VALUES`.
_HINTS = {"like": "preset"}


class SectionedCommand(click.Command):
    """A command whose --help lists its options in sections.

    Sections are in the order of `SECTIONS`; others follow in the order of their options.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section, those without a section first, such as --help."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title in _in_order(sections):
            with formatter.section(title):
                formatter.write_dl(sections[title])


class ShortHelpCommand(SectionedCommand):
    """A command whose --help shows its common options, and whose --help-all lists all in sections.

    The options of the table say which are common; options without a section are. --help also leaves
    out all but the first paragraph below the examples.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters, with --help-all before --help."""
        *params, last = super().get_params(ctx)
        return [*params, _help_all(self), last]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summary, the examples and a paragraph; with --help-all, the whole text."""
        whole = self.help
        if not ctx.meta.get(FULL_HELP):
            self.help = "\n\n".join(inspect.cleandoc(whole or "").split("\n\n")[:3])
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = whole

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: the common ones in one list, or all of them section by section."""
        if ctx.meta.get(FULL_HELP):
            super().format_options(ctx, formatter)
            return
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = _brief_record(parameter, ctx) if _is_common(parameter) else None
            if record is not None:
                title = getattr(parameter, "section", "Options")
                if title == "Options" and file_of(parameter) is File.WRITTEN:
                    title = "Output"
                sections.setdefault(title, []).append(record)
        # the kernel comes first, then -o, and --help last
        own, *others = _in_order(title for title in sections if title != "Output")
        order = (*others[:1], "Output", *others[1:], own)
        with formatter.section("Options"):
            formatter.write_dl([record for title in order for record in sections.get(title, ())])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Completions: options that most people need come first."""
        common = {
            flag
            for parameter in self.get_params(ctx)
            if _is_common(parameter)
            for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        found = super().shell_complete(ctx, incomplete)
        return sorted(found, key=lambda item: item.value not in common)


def _in_order(titles: Iterable[str]) -> list[str]:
    """Titles of sections in the order of `SECTIONS`; others behind them, as they come."""
    known = {title: number for number, title in enumerate(SECTIONS)}
    return sorted(titles, key=lambda title: known.get(title, len(known)))


FULL_HELP = "conv3d.full_help"
"""Key in a context's `meta`: the help shows all options."""

HELP_OPTIONS = ("-h", "--help", "--help-all", "--help-json")
"""Options of `apply` that print something instead of running it."""


def _help_all(command: click.Command) -> click.Option:
    """The option --help-all."""

    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.meta[FULL_HELP] = True
            click.echo(command.get_help(ctx))
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show all options by section, and exit.",
    )


def _is_common(parameter: click.Parameter) -> bool:
    """Whether --help shows a parameter: a common option of the table, or one without a section."""
    if isinstance(parameter, TableOption):
        return parameter.row.common
    return getattr(parameter, "section", OWN) == OWN


def _brief_record(parameter: click.Parameter, ctx: click.Context) -> tuple[str, str] | None:
    """The two columns of an option in the short help: its first sentence, and no --no-x.

    None for an argument or a hidden option.
    """
    if not isinstance(parameter, click.Option):
        return None
    record = parameter.get_help_record(ctx)
    if record is None or not isinstance(parameter, TableOption):
        return record
    row = OPTION[parameter.name or ""]
    default = "" if row.default is None else f"  [default: {row.default}]"
    return record[0].partition(" / ")[0], row.brief + default


# --------------------------------------------------------------------------------------------------
# The options of the table


def apply_options(command: Command) -> Command:
    """Add every option of `apply` to a command."""
    return _declared(option for option in OPTIONS if option.section)(command)


def options_of_table(wanted: Callable[[Option], bool]) -> Callable[[Command], Command]:
    """A decorator that adds the options of `apply` that are wanted, in their sections."""
    return _declared(option for option in OPTIONS if option.section and wanted(option))


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
        return OneOf(kind.choices, _HINTS.get(row.name, row.name))
    if kind.name == "integer":
        return Whole(kind.low, kind.high)
    free = click.STRING if row.metavar == "TEXT" else Text()  # any text, or a value in words
    return {"triple": Triple(), "number": Real()}.get(kind.name, free)


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option or argument was given, rather than left at its default."""
    return ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)


def given_settings(ctx: click.Context) -> Settings:
    """The options of the table that were given on the command line."""
    return Settings(
        **{
            name: value
            for name, value in ctx.params.items()
            if name in OPTION and is_given(ctx, name)
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
