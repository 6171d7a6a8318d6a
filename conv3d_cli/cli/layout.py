"""Text of the terminal's width: words are wrapped with hanging indents, names are never broken.

Facts, as `explain` and -v print them, are wrapped on a terminal only: in a pipe a fact is a line,
for grep. Lists, as `conv3d presets`, are wrapped everywhere.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import Any

from conv3d_cli.system.words import TERMINAL, plain_text

PLAIN_COLUMNS = 80
MOST_COLUMNS = 100  # longer lines are hard to read, however wide the terminal is
FACT_INDENT = 11  # of the text of a fact, behind its name

# Beginnings of messages that stay one line, to be copied and searched for.
_ONE_LINE = ("note: ", "Error: ", "Warning: ")


def list_columns() -> int:
    """Columns for a list or a page on stdout: the terminal's, at most 100; 80 in a pipe."""
    if not sys.stdout.isatty():
        return PLAIN_COLUMNS
    return min(shutil.get_terminal_size().columns, MOST_COLUMNS)


def hung(text: str, columns: int, indent: int = FACT_INDENT) -> str:
    """Wrap each line that is too long; what follows is indented.

    >>> print(hung("kernel     gaussian:fwhm=6mm  7x7x7, sum 1; a filter", 40))
    kernel     gaussian:fwhm=6mm  7x7x7, sum
               1; a filter
    """
    return "\n".join(
        line
        if len(line) <= columns
        else textwrap.fill(
            line,
            columns,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )


def facts(text: str, stream: Any, indent: int = FACT_INDENT) -> str:
    """Facts, a line each, as they are shown on a stream: wrapped if it is a terminal.

    Control characters, which names of files may hold, are escaped.
    """
    text = plain_text(text, TERMINAL)
    stream = getattr(
        stream, "rich_proxied_file", stream
    )  # Rich's while a bar is shown, no terminal
    if not stream.isatty() or text.startswith(_ONE_LINE):
        return text
    return hung(text, shutil.get_terminal_size().columns, indent)
