"""Shows a batch of `conv3d apply` on the terminal: messages, progress, records, page, table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from conv3d_cli.cli.messages import echo
from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.cli.table import plan_line, show_table
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.batch.results import JobResult, Say, TableRow
    from conv3d_cli.pictures.page import Report


@dataclass
class TerminalReporter:
    """The `Reporter` of the command line.

    as_json : bool              print a line of JSON per job on stdout
    quiet : bool                show no progress, no messages and no table
    verbose : bool              show the notes of every volume, also if others have the same ones
    lists_plans : bool          show a plan as a line, "input -> output", and no row in the table
    page : Report or None       page that gets an entry per job; the caller opens and finishes it
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    lists_plans: bool = False
    page: Report | None = None
    _noted: Counter[str] = field(default_factory=Counter)  # volumes by note

    def progress(self, label: str, volumes: bool = False) -> ProgressBar:
        """Show a bar if stderr is a terminal."""
        return ProgressBar(label, self.quiet, volumes)

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        echo(text)

    def show(self, result: JobResult, say: Say) -> None:
        """Print a job's messages and its record, and add it to the page."""
        if not self.quiet:
            self._show_messages(result, say)
        if self.as_json:
            click.echo(json.dumps({"status": result.status, **result.record}))
        if self.page is not None:
            from conv3d_cli.batch.page import page_entry

            self.page.add(page_entry(result))
        result.preview = None

    def _show_messages(self, result: JobResult, say: Say) -> None:
        """Print a job's messages and notes; a note that others have, too, is counted instead."""
        if self.lists_plans and result.status == "planned":
            say(plan_line(result.job))
        for text in result.messages:
            say(text)
        for note in result.notes:
            self._noted[note] += 1
            if self.verbose or self._noted[note] == 1:
                say(f"note: {result.job.source}: {note}")

    def finish(self, rows: Sequence[TableRow], seconds: float) -> None:
        """Print the table of several jobs."""
        if len(rows) > 1 and not self.quiet:
            for note, count in self._noted.items() if not self.verbose else ():
                if count > 1:
                    echo(f"note: {count_of(count - 1, 'more volume')}: {note}")
            show_table(rows, seconds, ("planned",) if self.lists_plans else ())
