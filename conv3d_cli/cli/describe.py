"""`conv3d describe`: commands for other programs, as JSON, Boutiques descriptors or man pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from conv3d_cli.cli.values import OneOf

if TYPE_CHECKING:
    from conv3d_cli.cli.description import Description

FORMS = ("json", "boutiques", "man")


@click.command()
@click.argument("form", type=OneOf(FORMS), metavar="json|boutiques|man")
@click.argument("words", metavar="[COMMAND]", nargs=-1)
@click.pass_context
def describe(ctx: click.Context, form: str, words: tuple[str, ...]) -> None:
    """Describe commands as JSON, Boutiques descriptors or man pages.

    \b
      conv3d describe boutiques apply > conv3d-apply.json
      conv3d describe man kernel make > conv3d-kernel-make.1
      conv3d describe json > conv3d.json

    json is what --help-json of a command prints: its arguments and options with flags, types,
    choices, ranges, defaults, units and help. boutiques is a descriptor of one command (schema
    0.5). man is a man page; `pip install` puts all of them where `man conv3d-apply` finds them.
    Without a COMMAND, json describes all commands, and man the program.
    """
    described = _asked(ctx.find_root(), words)
    if form == "json":
        from conv3d_cli.cli.description import json_text

        click.echo(json_text(described))
    elif form == "man":
        from conv3d_cli.cli.man import man_page

        click.echo(man_page(described.commands[0], described.version), nl=False)
    else:
        import json

        from conv3d_cli.cli.boutiques import descriptor

        content = descriptor(described.commands[0], described.version)
        click.echo(json.dumps(content, indent=1))


def _asked(root: click.Context, words: tuple[str, ...]) -> Description:
    """The description of the command that the words name.

    Raises: UnknownNameError for an unknown command, SpecError for a word too many.
    """
    from conv3d_cli.cli.description import describe_command, typed_words
    from conv3d_cli.errors import SpecError, unknown_name

    ctx = root
    for word in words:
        command = ctx.command
        path = " ".join(typed_words(ctx))
        if not isinstance(command, click.Group):
            raise SpecError(f"`{path}` has no commands; leave out '{word}'")
        inner = command.get_command(ctx, word)
        if inner is None:
            raise unknown_name(f"command of {path}", word, command.list_commands(ctx))
        ctx = click.Context(inner, info_name=word, parent=ctx)
    return describe_command(ctx)
