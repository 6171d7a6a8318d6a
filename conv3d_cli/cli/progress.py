"""Progress on stderr: a Rich bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import click

from conv3d_cli.system.words import count_of

# "off": no note that loops are compiled, for logs that are compared
COMPILE_NOTE = "CONV3D_COMPILE_NOTE"


class ProgressBar:
    """A progress bar for the voxels of one volume, or for many volumes.

    For a volume it shows the percentage, voxels per second and the time left; for many volumes, how
    many are done and the time left. Use it as a context manager, and call it with (finished, total)
    from any thread.

    label : str         text before the bar
    quiet : bool        show nothing, as when stderr is not a terminal
    volumes : bool      count volumes instead of voxels
    """

    def __init__(self, label: str, quiet: bool = False, volumes: bool = False) -> None:
        self._label, self._quiet, self._volumes = label, quiet, volumes
        self._watch = ExitStack()
        self._shown = not quiet and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        from conv3d_cli.engine.machine_code import watch_compilation

        if self._shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                ProgressColumn,
                TaskProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.text import Text

            class Rate(ProgressColumn):
                def render(self, task: Any) -> Text:
                    speed = task.finished_speed or task.speed
                    return Text(
                        f"{speed / 1e6:7.1f} Mvoxel/s" if speed else "", style="progress.data.speed"
                    )

            done = (MofNCompleteColumn(),) if self._volumes else (TaskProgressColumn(), Rate())
            columns = (TextColumn("{task.description}"), BarColumn(), *done, TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None)
        self._watch.enter_context(watch_compilation(self._compiling))
        return self

    def _compiling(self, done: int, total: int) -> None:
        """The loops of this CPU are compiled: the first run takes seconds longer than the next."""
        if self._bar is not None:
            left = f"compiling loops for this CPU, once: {done} of {total}"
            self._bar.update(self._task, description=left if done < total else self._label)
        elif done == 0 and not self._quiet and os.environ.get(COMPILE_NOTE) != "off":
            from conv3d_cli.engine import cache_folder

            then = "once; the next run loads them"
            if cache_folder() is None:
                then = "for this run alone: no folder can keep them; `conv3d warmup` says why"
            self.say(f"note: compiling {count_of(total, 'loop')} for this CPU, {then}")

    def say(self, text: str) -> None:
        """Print a message on stderr, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.close()
        if self._bar is not None:
            self._bar.stop()
