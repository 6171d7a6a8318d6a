"""Shows a batch of `conv3d apply` on the terminal: messages, progress, records, page, table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.cli.table import show_table

if TYPE_CHECKING:
    from conv3d_cli.batch.results import JobResult, Say, TableRow
    from conv3d_cli.pictures.page import Report


@dataclass
class TerminalReporter:
    """The `Reporter` of the command line.

    as_json : bool              print a line of JSON per job on stdout
    quiet : bool                show no progress, no messages and no table
    page : Report or None       page that gets an entry per job; the caller opens and finishes it
    """

    as_json: bool = False
    quiet: bool = False
    page: Report | None = None

    def progress(self, label: str, volumes: bool = False) -> ProgressBar:
        """Show a bar if stderr is a terminal."""
        return ProgressBar(label, self.quiet, volumes)

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        echo(text)

    def show(self, result: JobResult, say: Say) -> None:
        """Print a job's messages and its record, and add it to the page."""
        for text in result.messages if not self.quiet else ():
            say(text)
        if self.as_json:
            click.echo(json.dumps({"status": result.status, **result.record}))
        if self.page is not None:
            from conv3d_cli.batch.page import page_entry

            self.page.add(page_entry(result))
        result.preview = None

    def finish(self, rows: Sequence[TableRow], seconds: float) -> None:
        """Print the table of several jobs."""
        if len(rows) > 1 and not self.quiet:
            show_table(rows, seconds)
