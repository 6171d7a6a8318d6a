"""How all commands report to the user: lines on stderr, and the exit code."""

from __future__ import annotations

import click

EXIT_CODE = "conv3d.exit_code"
"""Key in a context's `meta` for the exit code, if it is known before the result is printed."""

COMPLETE_VAR = "_CONV3D_COMPLETE"
"""The shell's script sets it while it asks for completions, whatever the command is called."""


def echo(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)
