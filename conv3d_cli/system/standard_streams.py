"""Standard input, output and error, in case the parent process closed them or nobody reads them.

The exit code depends on the work, not on whether anybody could read the texts:

- What standard error cannot take (it is closed, its disk is full, its reader has gone) is dropped.
- Standard output that is closed, or whose reader has gone (`| head`), is as good as /dev/null:
  nobody waits for the text. If it refuses the text for another reason, such as a full disk,
  somebody would miss it: the rest is dropped, and `lost_output` tells.
- A volume on standard output is an output as any file: `output_bytes` raises every error.

Standard library only.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from conv3d_cli.system.spelling import SPELLED, spelling_encoding, spelling_errors

# Name, mode and flags, in the order of the descriptors. /dev/null replaces a closed stream. It is
# opened for writing as input and for reading as output, so that using these still fails.
STREAMS = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))
# Errors of a stream that is closed, or whose reader has gone.
UNREAD = (errno.EBADF, errno.EPIPE)


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
        except OSError as error:
            return self._drop(data, error)

    def _drop(self, data: Any, error: OSError) -> int:
        return memoryview(data).nbytes


class _Results(_Messages):
    """Standard output that never fails. After an error it drops everything: no text with a hole.

    error : OSError or None     the first one
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them after an error; their number."""
        return super().write(data) if self.error is None else memoryview(data).nbytes

    def _drop(self, data: Any, error: OSError) -> int:
        self.error = error
        return super()._drop(data, error)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Open all three standard streams before a command opens any file.

    The next file that is opened gets the number of a closed descriptor: an output could become
    file 2, and messages would be written into its voxels. In the body `sys.stdin`, `sys.stdout` and
    `sys.stderr` are never None, and texts that cannot be delivered raise no error; see the module.
    Both outputs spell what their encoding lacks (`spelling.py`).
    """
    for name, mode, flags in STREAMS:
        if getattr(sys, name) is None:  # Python found its descriptor closed
            # the lowest free number, which is that of the stream
            descriptor = os.open(os.devnull, flags)
            os.set_inheritable(descriptor, True)  # child processes need all three, too
            # never closed: it lives as long as the process
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Results(before.fileno(), "w", closefd=False)),
        spelling_encoding(before.encoding),
        spelling_errors(before.errors),
        line_buffering=bool(before.line_buffering),
    )
    before = sys.stderr
    raw = io.BufferedWriter(_Messages(before.fileno(), "w", closefd=False))
    encoding = spelling_encoding(before.encoding)
    sys.stderr = io.TextIOWrapper(raw, encoding, SPELLED, line_buffering=True)
    try:
        yield
    finally:
        sys.stdout.flush()


def lost_output() -> OSError | None:
    """Why standard output refused a text that somebody would have read; None if it did not."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Results) else None
    return error if error is not None and error.errno not in UNREAD else None


def output_bytes() -> BinaryIO:
    """Standard output for bytes of which none may be lost: writing them raises every error."""
    buffer = sys.stdout.buffer
    if not isinstance(getattr(buffer, "raw", None), _Results):
        return buffer
    sys.stdout.flush()
    return open(buffer.fileno(), "wb", closefd=False)
