"""Commands and their parameters as plain data, read from Click and from the table of options.

--help-json, Boutiques descriptors and man pages are made from this description alone. It does not
import NumPy.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from conv3d_cli.cli.options import TableOption, Triple, file_of, unit_of
from conv3d_cli.errors import EXIT_CODES
from conv3d_cli.settings.option import KINDS, File, Unit

SCHEMA_VERSION = 1
"""Version of the JSON; it grows when a key is renamed, removed, or gets another meaning."""

_DEFAULT = re.compile(r"\s*\[default: (?P<words>[^]]*)\]$")


@dataclass(frozen=True)
class Argument:
    """A value that a command takes without a flag.

    name : str                  as in Click's parameters
    metavar : str               placeholder for its value, as in the help
    type : str                  a key of `KINDS`
    choices : tuple of str      all allowed values; () for any
    minimum, maximum            least and greatest number, both included; None without a limit
    unit : str or None          unit of its numbers: a member of `Unit`, in lower case
    file : str or None          kind of file that it may name: a member of `File`, in lower case
    required : bool             the command refuses to run without it
    repeats : bool              it may be given several times
    """

    name: str
    metavar: str | None
    type: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    unit: str | None
    file: str | None
    required: bool
    repeats: bool


@dataclass(frozen=True)
class Option(Argument):
    """An option of a command, with the fields of an argument and these.

    flags : tuple of str            its forms, the short one first
    negative_flags : tuple of str   the forms that turn a switch off
    section : str                   title of its group in the help
    help : str                      help text, without the default
    default : object                its default value; None if there is none, or words tell it
    default_words : str or None     its default in words, if it is not a plain value
    exits : bool                    it prints something instead of running the command
    table : dict or None            its role in `apply`, if it is an option of the table
    """

    flags: tuple[str, ...]
    negative_flags: tuple[str, ...]
    section: str
    help: str
    default: Any
    default_words: str | None
    exits: bool
    table: dict[str, Any] | None


@dataclass(frozen=True)
class Command:
    """A command or a group of commands.

    words : tuple of str        what is typed: ("conv3d", "kernel", "make")
    summary : str               what it does, in a sentence
    usage : str                 its words and the placeholders of its parameters
    examples : tuple of str     lines to type
    description : tuple of str  paragraphs; one with line breaks is shown as it stands
    arguments, options          in the order of the help
    commands : tuple of str     names of a group's commands
    """

    words: tuple[str, ...]
    summary: str
    usage: str
    examples: tuple[str, ...]
    description: tuple[str, ...]
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in files: "conv3d-kernel-make"."""
        return "-".join(self.words)


@dataclass(frozen=True)
class Description:
    """Some commands of one version of the program.

    version : str               of the program
    commands : tuple of Command groups before their commands
    """

    version: str
    commands: tuple[Command, ...]


def installed_version() -> str:
    """The version of the installed package."""
    from importlib.metadata import version

    return version("conv3d")


def describe_command(ctx: click.Context) -> Description:
    """Describe the command of a context and, if it is a group, those in it."""
    return Description(installed_version(), tuple(_commands(ctx)))


def describe_program(program: click.Command, version: str) -> Description:
    """Describe a program and all its commands.

    >>> @click.command()
    ... @click.option("--size", type=click.IntRange(min=1), help="Size.  [default: all]")
    ... def shrink(): "Shrink volumes."
    >>> described = describe_program(shrink, "1.0").commands[0]
    >>> described.summary, described.options[0].minimum, described.options[0].default_words
    ('Shrink volumes', 1, 'all')
    """
    ctx = click.Context(program, info_name="conv3d", **program.context_settings)
    return Description(version, tuple(_commands(ctx)))


def json_text(described: Description) -> str:
    """The description as JSON, with the words for exit codes, types, units and kinds of files.

    >>> list(json.loads(json_text(Description("1.0", ()))))
    ['schema_version', 'version', 'exit_codes', 'types', 'units', 'files', 'commands']
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "version": described.version,
        "exit_codes": EXIT_CODES,
        "types": KINDS,
        "units": {unit.name.lower(): unit.value for unit in Unit},
        "files": {file.name.lower(): file.value for file in File},
        "commands": [asdict(command) for command in described.commands],
    }
    return json.dumps(content, indent=1)  # in ASCII, which every pipe takes


def typed_words(ctx: click.Context) -> tuple[str, ...]:
    """What is typed to run a context's command, however the program was started this time."""
    if ctx.parent is None:
        return ("conv3d",)
    return (*typed_words(ctx.parent), str(ctx.info_name))


# --------------------------------------------------------------------------------------------------
# Commands


def _commands(ctx: click.Context) -> Iterator[Command]:
    command = ctx.command
    yield _described(ctx)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            yield from _commands(click.Context(inner, info_name=name, parent=ctx))


def _described(ctx: click.Context) -> Command:
    command = ctx.command
    words = typed_words(ctx)
    summary, examples, description = _help_parts(command.help or "")
    parameters = [p for p in command.get_params(ctx) if _is_described(p)]
    return Command(
        words=words,
        summary=summary,
        usage=" ".join([*words, *command.collect_usage_pieces(ctx)]),
        examples=examples,
        description=description,
        arguments=tuple(
            Argument(**_common(p, ctx)) for p in parameters if isinstance(p, click.Argument)
        ),
        options=tuple(_option(p, ctx) for p in parameters if isinstance(p, click.Option)),
        commands=tuple(command.list_commands(ctx)) if isinstance(command, click.Group) else (),
    )


def _is_described(parameter: click.Parameter) -> bool:
    """Whether a parameter is for users: the table's always, others unless the help hides them."""
    return isinstance(parameter, TableOption) or not getattr(parameter, "hidden", False)


def _help_parts(text: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The summary without its full stop, the examples, and the other paragraphs of a help text.

    >>> _help_parts("Do it.\\n\\n\\b\\n  conv3d do\\n\\nIt is\\ndone.")
    ('Do it', ('conv3d do',), ('It is done.',))
    """
    examples: list[str] = []
    paragraphs: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if first.strip() != "\b":
            paragraphs.append(" ".join(paragraph.split()))
            continue
        lines = inspect.cleandoc(rest).splitlines()
        if all(line.startswith("conv3d ") for line in lines):
            examples += lines
        else:
            paragraphs.append("\n".join(lines))
    summary, *others = paragraphs
    return summary.removesuffix("."), tuple(examples), tuple(others)


# --------------------------------------------------------------------------------------------------
# Parameters


def _option(option: click.Option, ctx: click.Context) -> Option:
    found = _DEFAULT.search(option.help or "")
    common = _common(option, ctx)
    flags = tuple(sorted(option.opts, key=len))  # Click 8.1 has those of --help in any order
    if not option.expose_value:  # Click's own name of --help is not for others
        common["name"] = flags[-1].lstrip("-").replace("-", "_")
    return Option(
        **common,
        flags=flags,
        negative_flags=tuple(option.secondary_opts),
        section=getattr(option, "section", "Options"),
        help=_DEFAULT.sub("", option.help or ""),
        default=option.default if option.show_default else None,
        default_words=found["words"] if found else None,
        exits=not option.expose_value,
        table=option.row.record() if isinstance(option, TableOption) else None,
    )


def _common(parameter: click.Parameter, ctx: click.Context) -> dict[str, Any]:
    """The fields that arguments and options share."""
    kind = parameter.type
    low, high = (
        (kind.min, kind.max)
        if isinstance(kind, click.IntRange | click.FloatRange)
        else (None, None)
    )
    file, unit = file_of(parameter), unit_of(parameter)
    takes_value = not getattr(parameter, "is_flag", False)
    return {
        "name": parameter.name,
        "metavar": _metavar(parameter, ctx) if takes_value else None,
        "type": _type_name(parameter),
        "choices": tuple(map(str, kind.choices)) if isinstance(kind, click.Choice) else (),
        "minimum": low,
        "maximum": high,
        "unit": None if unit is None else unit.name.lower(),
        "file": None if file is None else file.name.lower(),
        "required": parameter.required,
        "repeats": parameter.nargs == -1 or bool(getattr(parameter, "multiple", False)),
    }


def _metavar(parameter: click.Parameter, ctx: click.Context) -> str:
    """The placeholder of a value; an argument's without the brackets that say it is optional."""
    try:
        metavar = parameter.make_metavar(ctx)
    except TypeError:  # Click 8.1 takes no context
        metavar = parameter.make_metavar()  # type: ignore[call-arg]
    if isinstance(parameter, click.Argument) and metavar[:1] == "[" and metavar[-1:] == "]":
        return metavar[1:-1]
    return metavar


def _type_name(parameter: click.Parameter) -> str:
    """The key of `KINDS` that says what a parameter's values are."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "switch" if parameter.secondary_opts else "flag"
    kinds: dict[str, type[Any] | tuple[type[Any], ...]] = {
        "choice": click.Choice,
        "triple": Triple,
        "integer": (type(click.INT), click.IntRange),
        "number": (type(click.FLOAT), click.FloatRange),
    }
    return next((name for name, of in kinds.items() if isinstance(parameter.type, of)), "text")
