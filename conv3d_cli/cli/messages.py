"""How all commands report to the user: lines on stderr."""

from __future__ import annotations

import sys

import click

from conv3d_cli.cli.layout import facts

COMPLETE_VAR = "_CONV3D_COMPLETE"
"""The shell's script sets it while it asks for completions, whatever the command is called."""


def echo(text: str) -> None:
    """Print a message or facts on stderr, wrapped on a terminal (see `layout.facts`)."""
    click.echo(facts(text, sys.stderr), err=True)
