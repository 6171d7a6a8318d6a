"""Standard input, output and error, in case the parent process closed them or nobody reads them.

The exit code depends on the results, not on whether anybody could read the messages. Standard
library only.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conv3d_cli.system.spelling import SPELLED, spelling_encoding, spelling_errors

# Name, mode and flags, in the order of the descriptors. /dev/null replaces a closed stream. It is
# opened for writing as input and for reading as output, so that using these still fails and is
# reported; messages may be lost.
STREAMS = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))


class _Messages(io.FileIO):
    """Standard error that never fails: a log on a full disk must not end a job."""

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them after an error; their number."""
        try:
            written = super().write(data)
            while written is None:  # a non-blocking descriptor whose reader is slow
                select.select((), (self,), ())
                written = super().write(data)
            return written
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def standard_streams() -> Iterator[None]:
    """Open all three standard streams before a command opens any file.

    The next file that is opened gets the number of a closed descriptor: an output could become
    file 2, and messages would be written into its voxels. In the body `sys.stdin`, `sys.stdout` and
    `sys.stderr` are never None. Messages that `sys.stderr` cannot deliver are dropped silently.
    Text that `sys.stdout` could not take is dropped at the end; the command has reported that. Both
    spell what their encoding lacks (`spelling.py`).
    """
    for name, mode, flags in STREAMS:
        if getattr(sys, name) is None:  # Python found its descriptor closed
            # the lowest free number, which is that of the stream
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)  # child processes need all three, too
            # never closed: it lives as long as the process
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    before = sys.stderr
    raw = io.BufferedWriter(_Messages(before.fileno(), "w", closefd=False))
    encoding = spelling_encoding(before.encoding)
    sys.stderr = io.TextIOWrapper(raw, encoding, SPELLED, line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            encoding=spelling_encoding(sys.stdout.encoding),
            errors=spelling_errors(sys.stdout.errors),
        )
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # else Python would try again, complain, and exit with its own code
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
