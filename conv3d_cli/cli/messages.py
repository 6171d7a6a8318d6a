"""How all commands report to the user: lines on stderr."""

from __future__ import annotations

import click

COMPLETE_VAR = "_CONV3D_COMPLETE"
"""The shell's script sets it while it asks for completions, whatever the command is called."""


def echo(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)
