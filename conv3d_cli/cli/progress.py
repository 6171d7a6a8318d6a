"""Progress on stderr: a Rich bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from conv3d_cli.cli.layout import facts
from conv3d_cli.cli.messages import echo
from conv3d_cli.system.words import TERMINAL, count_of, plain_text

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
        self._label, self._quiet, self._volumes = plain_text(label, TERMINAL), quiet, volumes
        self._watch = ExitStack()
        self._compiled = self._to_compile = 0  # loops of all groups so far
        self._compiles = False
        self._counts_loops = False  # the bar shows loops until the first voxel is computed
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

            outer = self

            class Rate(ProgressColumn):
                def render(self, task: Any) -> Text:
                    speed = None if outer._counts_loops else task.finished_speed or task.speed
                    return Text(
                        f"{speed / 1e6:7.1f} Mvoxel/s" if speed else "", style="progress.data.speed"
                    )

            class Count(MofNCompleteColumn):
                def render(self, task: Any) -> Text:
                    return Text() if outer._counts_loops else super().render(task)

            done = (Count(),) if self._volumes else (TaskProgressColumn(), Rate())
            columns = (TextColumn("{task.description}"), BarColumn(), *done, TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None)
        self._watch.enter_context(watch_compilation(self._compiling))
        return self

    def _compiling(self, done: int, total: int) -> None:
        """Show that loops are compiled: the first run takes seconds longer than the next.

        done, total : int   of a group; a job that finds later what it needs has several groups
        """
        first = self._to_compile == 0
        if not self._compiles:
            self._compiled, self._to_compile = self._to_compile, self._to_compile + total
        self._compiles = done < total
        if self._bar is not None and self._compiles:
            if self._bar.tasks[0].total is None:
                self._counts_loops = True
            ready = self._compiled + done
            loops = count_of(self._to_compile, "loop")
            counts = {"completed": ready, "total": self._to_compile} if self._counts_loops else {}
            text = f"compiling for this CPU, once: {ready} of {loops}"
            self._bar.update(self._task, description=text, **counts)
        elif self._bar is not None:
            self._bar.update(self._task, description=self._label)
            self._end_loops()
        elif first and not self._quiet and os.environ.get(COMPILE_NOTE) != "off":
            from conv3d_cli.engine import cache_folder

            then = "once; the next run loads them"
            if cache_folder() is None:
                then = "for this run alone: no folder can keep them; `conv3d warmup` says why"
            self.say(f"note: compiling {count_of(total, 'loop')} for this CPU, {then}")

    def _end_loops(self) -> None:
        """Let the bar show again what it shows while nothing is compiled."""
        if self._counts_loops:
            self._counts_loops = False
            self._bar.tasks[0].total = None  # `reset` takes None for no change
            self._bar.reset(self._task)

    def say(self, text: str) -> None:
        """Print a message on stderr, above the bar if there is one."""
        if self._bar is not None:
            text = facts(text, sys.stderr)
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            echo(text)

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._end_loops()
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
