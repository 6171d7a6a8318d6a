"""Processes and conditions that a test waits for: no test fails because a machine is slow, and no process outlives its test.

Waiting ends when what is waited for is there, however long that takes; `LIMIT` only ends a test that would hang.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Seconds that no process or condition of a test takes on any machine that still works.
LIMIT = 600


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process beside the test; at the end of the block it is killed, if it still runs, and waited for.

    command, options    as `subprocess.Popen` takes them

    >>> import sys
    >>> with started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
    ...     print(process.poll())
    None
    >>> process.returncode
    -9
    """
    with subprocess.Popen([str(word) for word in command], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[Any] | None = None
) -> None:
    """Wait until `condition()` is true. With a process that brings it about, the test fails if that ends before."""
    begin = time.monotonic()
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended and not condition():
            said = (
                process.stderr.read() if process is not None and process.stderr is not None else b""
            )
            raise AssertionError(f"the process ended before: {said!r}")
        assert time.monotonic() - begin < LIMIT, "what the test waits for does not come"
        time.sleep(0.005)


def cpu_seconds() -> float:
    """Seconds of CPU time that this process and its ended children have used; others on the machine do not count."""
    return sum(os.times()[:4])
