"""Usage errors as one line: what is wrong, and what to write instead.

Click prints four lines, and suggests options that are near by their letters. Here a word of another
tool comes first (`vocabulary.py`), then the nearest option of this command. Most runs have no such
error, so that functions import the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import click

from conv3d_cli.cli.values import MUST
from conv3d_cli.errors import one_line, suggestion
from conv3d_cli.settings.options import OPTIONS as TABLE
from conv3d_cli.settings.options import SHORTHANDS

_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
ARGUMENTS = "conv3d.arguments"
"""Key in a context's `meta` for the words that its command was called with."""

COMMAND = "conv3d.command"
"""Key in a context's `meta` for the context of the command that is called."""

ALIKE = 0.75  # from this likeness on, a name is a misspelt one and no other operation


class UsageLine(click.UsageError):
    """A usage error that prints one line, whatever prints it."""

    def show(self, file: Any = None) -> None:
        """Print the line on stderr."""
        click.echo(f"Error: {one_line(self)}", file=file, err=True)


class CommandGroup(click.Group):
    """A group whose usage errors, and those of its commands, are one line with the cure."""

    def make_context(self, *arguments: Any, **values: Any) -> click.Context:
        """Parse the group's own options. Raises: UsageLine."""
        try:
            return super().make_context(*arguments, **values)
        except click.UsageError as error:
            raise usage_line(error) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names. Raises: UsageLine."""
        command = self.get_command(ctx, args[0])
        if command is None:
            if ctx.resilient_parsing:
                return None, None, args[1:]
            raise unknown_command(ctx, args[0])
        called = click.Context(command, info_name=args[0], parent=ctx)
        ctx.meta[ARGUMENTS], ctx.meta[COMMAND] = args[1:], called
        if not ctx.resilient_parsing:  # a shell that asks for completions shows no errors
            check_dashes(called, args[1:])
        return args[0], command, args[1:]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises: UsageLine."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx.meta.get(COMMAND)  # Click's parser does not set it
            raise usage_line(error) from None


def usage_line(error: click.UsageError) -> click.UsageError:
    """The same error as one line with its cure; as it is where Click shows a whole help."""
    if isinstance(error, UsageLine) or type(error).__name__ == "NoArgsIsHelpError":
        return error
    return UsageLine(_words(error), error.ctx)


def _words(error: click.UsageError) -> str:
    ctx = error.ctx
    if ctx is None:
        return error.format_message()
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(ctx, error.option_name)
    if isinstance(error, click.MissingParameter):
        return _missing(ctx, error)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{_name(error.param)} {_said(error.message)}"
    if isinstance(error, click.BadOptionUsage):
        return _wrong_option_use(ctx, error.option_name)
    if surplus := re.search(r"unexpected extra arguments? \((.*)\)", error.message):
        return _surplus(ctx, surplus[1])
    return error.message


def _said(message: str) -> str:
    """A message after the name of its parameter."""
    return message if message.startswith(MUST) else f"is wrong: {message}"


def called(ctx: click.Context) -> str:
    """A command as it is typed, such as `conv3d kernel make`."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, ctx.info_name or "")
        ctx = ctx.parent
    return " ".join(["conv3d", *names])


def example_of(command: click.Command) -> str:
    """The first example in a command's help; "" if there is none."""
    found = re.search(r"^\s*(conv3d .*)$", command.help or "", re.MULTILINE)
    return found[1].strip() if found else ""


def _example(ctx: click.Context) -> str:
    found = example_of(ctx.command)
    return f"as in `{found}`" if found else f"see `{called(ctx)} --help`"


# --------------------------------------------------------------------------------------------------
# Options


def check_dashes(ctx: click.Context, arguments: Sequence[str]) -> None:
    """Refuse words with dashes that Click would take for what nobody means.

    An option where the value of another one should stand: `--verify -o out.nii` is the value "-o"
    to Click. A long option written with one dash: `-overwrite` is `-o verwrite` to Click, and
    `-mask` is `-m`, `-a`, ... A short option with "=": `-o=out.nii` is the value "=out.nii".
    Raises: UsageLine.
    """
    valued = {
        flag: option
        for option in _options(ctx)
        if not option.is_flag and not option.count
        for flag in option.opts
    }
    known = {flag for o in _options(ctx) for flag in (*o.opts, *o.secondary_opts)}
    words = iter(arguments)
    for word in words:
        if word == "--":
            return
        flag = _last_of_cluster(word, known - valued.keys())
        if option := valued.get(flag):
            value = next(words, "")
            if value.partition("=")[0] in known:
                raise UsageLine(_swallowed(ctx, flag, option, value), ctx)
        elif joined := re.fullmatch(r"(-[A-Za-z]+)=(.*)", word, re.DOTALL):
            if _last_of_cluster(joined[1], known - valued.keys()) in valued:
                raise UsageLine(
                    f"'{word}' would mean the value '={joined[2]}'; write {joined[1]} {joined[2]}",
                    ctx,
                )
        elif re.match(r"-[A-Za-z]\w", word):
            name = word.partition("=")[0]
            if _known(ctx, name):
                raise UsageLine(_unknown_option(ctx, name), ctx)


def _last_of_cluster(word: str, alone: Container[str]) -> str:
    """The last of several short options in one word: `-o` of `-vo`; else the word itself.

    alone : container of str    options without a value

    >>> _last_of_cluster("-vo", {"-v"}), _last_of_cluster("-ov", {"-v"})
    ('-o', '-ov')
    """
    letters = re.fullmatch(r"-([A-Za-z]+)", word)
    if letters and all(f"-{letter}" in alone for letter in letters[1][:-1]):
        return f"-{word[-1]}"
    return word


def _swallowed(ctx: click.Context, name: str, option: click.Option, value: str) -> str:
    """The message for an option that stands where the value of another one should."""
    from conv3d_cli.cli.parameters import FileName

    long = max(option.opts, key=len)
    # names of files, and texts, may be any words
    takes_any = long.startswith("--") and isinstance(option.type, (FileName, type(click.STRING)))
    literal = f"; if {value} is meant as the value, write {long}={value}" if takes_any else ""
    return (
        f"{_needs_value(name, option)}, and the option {value} follows{literal}; "
        f"`{called(ctx)} --help` says which"
    )


def _options(ctx: click.Context) -> Iterator[click.Option]:
    for parameter in ctx.command.get_params(ctx):
        if isinstance(parameter, click.Option):
            yield parameter


def _flags(ctx: click.Context) -> list[str]:
    """All forms of a command's options, without those that its help hides."""
    shown = (option for option in _options(ctx) if not option.hidden)
    return [flag for option in shown for flag in (*option.opts, *option.secondary_opts)]


def _known(ctx: click.Context, name: str) -> bool:
    """Whether a word with one dash is a long option, here or of another tool."""
    from conv3d_cli.vocabulary import ABSENT, OPTIONS, plain_word

    return f"-{name}" in _flags(ctx) or plain_word(name) in OPTIONS or plain_word(name) in ABSENT


def _unknown_option(ctx: click.Context, name: str) -> str:
    """The message for an option that a command does not have."""
    name, value = _as_typed(ctx, name)
    head = f"{called(ctx)} has no option {name}"
    return f"{head}; {option_cure(name, _flags(ctx), value) or _elsewhere(ctx, name)}"


def _as_typed(ctx: click.Context, name: str) -> tuple[str, str]:
    """An option as it was typed, with its value or "". Click tells `-f` of `-force`."""
    words = [*map(str, ctx.meta.get(ARGUMENTS, ())), ""]
    for word, following in pairwise(words):
        typed, equals, value = word.partition("=")
        short = not name.startswith("--") and typed.startswith(name)
        if typed == name or (short and _known(ctx, typed)):
            if not equals and not following.startswith("-"):
                value = following
            return typed, value
    return name, ""


def option_cure(name: str, flags: Iterable[str], value: str = "") -> str:
    """What to write instead of an unknown option; "" if nothing of `flags` is meant.

    flags : iterable of str     options of the command, with their dashes
    value : str                 the value that was typed with it; "" if there was none

    >>> option_cure("--force", ["--overwrite", "--orient"])
    'write --overwrite'
    >>> option_cure("--stridse", ["--strict", "--strides"]), option_cure("--out_dir", ["--out-dir"])
    ("did you mean '--strides'?", 'write --out-dir')
    """
    from conv3d_cli.vocabulary import ABSENT, own_option, plain_word

    flags = list(flags)
    word = plain_word(name)
    long = [flag for flag in flags if flag.startswith("--")]
    if f"--{word}" in long:
        return f"write --{word}"
    if word in ABSENT:
        return ABSENT[word]
    own = own_option(word, value)
    if own and set(_FLAG.findall(own.partition("(")[0])) <= set(flags):
        return f"write {own}"
    begun = [flag for flag in long if len(word) > 2 and flag.startswith(f"--{word}")]
    if len(begun) == 1:
        return f"did you mean '{begun[0]}'?"
    near = suggestion(word, [flag.removeprefix("--") for flag in long], ALIKE)
    return near.rstrip("; ").replace("'", "'--", 1)


def _elsewhere(ctx: click.Context, name: str) -> str:
    """Where an option stands, if it is one of `apply`; else where the options are listed."""
    from conv3d_cli.vocabulary import plain_word

    of_apply = [flag for row in TABLE for flags in row.flags for flag in flags.split("/")]
    if plain_word(name) in SHORTHANDS and any(p.metavar == "KERNEL" for p in ctx.command.params):
        return f"write the kernel as gaussian:{plain_word(name)}=6mm"
    if name in of_apply and ctx.command.name != "apply":
        return f"it is an option of `conv3d apply`; `{called(ctx)} --help` lists those here"
    everything = "--help-all" if "--help-all" in _flags(ctx) else "--help"
    return f"`{called(ctx)} {everything}` lists them"


def _wrong_option_use(ctx: click.Context, name: str) -> str:
    option = next((o for o in _options(ctx) if name in (*o.opts, *o.secondary_opts)), None)
    if option is None or option.is_flag:
        return f"{name} takes no value; write {name} alone"
    return f"{_needs_value(name, option)}; `{called(ctx)} --help` says which"


def _needs_value(name: str, option: click.Option) -> str:
    return f"{name} needs a value, {name} {option.metavar or name_of_type(option)}"


def name_of_type(option: click.Option) -> str:
    """The placeholder for an option's value, where it has no metavar of its own."""
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.type.name.upper()


def _name(parameter: click.Parameter) -> str:
    """A parameter as messages name it: its long form, or the word for an argument."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.metavar or parameter.human_readable_name


# --------------------------------------------------------------------------------------------------
# Arguments and commands


def _missing(ctx: click.Context, error: click.MissingParameter) -> str:
    parameter = error.param
    if parameter is None:
        return error.format_message()
    name = parameter.metavar or parameter.human_readable_name.upper()
    if isinstance(parameter, click.Option):
        name = f"{parameter.opts[0]} {name}"
    elif isinstance(parameter.type, click.Choice):
        name = f"one of {', '.join(map(str, parameter.type.choices))}"
    return f"{called(ctx)} needs {name}, {_example(ctx)}"


def _surplus(ctx: click.Context, words: str) -> str:
    taken = [p.metavar or "" for p in ctx.command.params if not isinstance(p, click.Option)]
    takes = (
        f"takes {' '.join(taken)}, and received '{words}', too"
        if taken
        else (f"takes no arguments, received '{words}'")
    )
    return f"{called(ctx)} {takes}; {_example(ctx)}"


def unknown_command(ctx: click.Context, name: str) -> UsageLine:
    """The error for a word that is no command of a group."""
    from conv3d_cli.vocabulary import COMMANDS, plain_word

    group = ctx.command
    assert isinstance(group, click.Group)
    if name.startswith("-"):
        return UsageLine(_unknown_option(ctx, name.partition("=")[0]), ctx)
    at_root = ctx.parent is None
    word = COMMANDS.get(plain_word(name), "") if at_root else ""
    if word:
        cure = f"write conv3d {word}"
    elif near := suggestion(plain_word(name), group.commands, ALIKE):
        cure = near.rstrip()
    elif at_root and _looks_like_a_volume(name):
        cure = f"write conv3d apply {name} -k KERNEL -o OUT, or conv3d info {name}"
    else:
        cure = f"there are {', '.join(group.commands)}"
    return UsageLine(f"{called(ctx)} has no command '{name}'; {cure}", ctx)


def _looks_like_a_volume(name: str) -> bool:
    import os

    return "." in name or os.path.exists(name)
