"""--help-json of every command: its description as JSON, for programs that build command lines."""

from __future__ import annotations

from typing import Any

import click

FLAG = "--help-json"


def _print_description(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from conv3d_cli.cli.description import describe_command, json_text

        click.echo(json_text(describe_command(ctx)))
        ctx.exit()


def help_json_option(hidden: bool) -> click.Option:
    """The option of one command.

    hidden : bool       leave it out of the help
    """
    values: dict[str, Any] = {"is_flag": True, "is_eager": True, "expose_value": False}
    return click.Option(
        [FLAG],
        hidden=hidden,
        callback=_print_description,
        help="Describe commands and options as JSON, and exit.",
        **values,
    )


def add_help_json(command: click.Command) -> None:
    """Add the option to a command and its subcommands, unless they have it; their help hides it."""
    if not any(FLAG in parameter.opts for parameter in command.params):
        command.params.append(help_json_option(hidden=True))
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        add_help_json(inner)
