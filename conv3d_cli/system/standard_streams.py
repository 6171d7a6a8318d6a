"""Standard input, output and error of the process, as whoever started it left them: closed, full, or read by nobody.

What was computed decides the exit code, not whether a message about it found a reader. Standard library only.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# In the order of their descriptors. /dev/null stands in for a closed one: the other way round for input and output, so that
# reading and writing still fail and are told; messages may go.
STREAMS = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))


class _Messages(io.FileIO):
    """Standard error that takes every message, whether it arrives or not: a log whose disk is full ends no job."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
            while written is None:  # the descriptor does not wait: whoever reads is slow
                select.select((), (self,), ())
                written = super().write(data)
            return written
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def standard_streams() -> Iterator[None]:
    """Give a command all three standard streams, before it opens any file.

    A descriptor that is closed goes to the next file that is opened: an output would be file 2, and messages would be written
    into its voxels. `sys.stdin`, `sys.stdout` and `sys.stderr` are streams in the body, never None; what `sys.stderr` cannot
    deliver is dropped without an error. What `sys.stdout` could not take and a command has told is dropped at the end.
    """
    for name, mode, flags in STREAMS:
        if getattr(sys, name) is None:  # Python found its descriptor closed
            # the lowest number that is free: the stream's own
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)  # processes started from here need all three, too
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
            setattr(sys, name, stream)
    before = sys.stderr
    raw = io.BufferedWriter(_Messages(before.fileno(), "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, before.encoding, "backslashreplace", line_buffering=True)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # else Python tries once more, complains, and ends with a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
