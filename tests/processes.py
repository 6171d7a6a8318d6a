"""Child processes of a test, and waiting for conditions: slow machines fail no test.

A test waits until its condition is true, however long that takes; LIMIT only ends a test that would
hang. No process outlives its test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Seconds. No process or condition of a test takes longer on a machine that works.
LIMIT = 600


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a process; at the end of the block, kill it if it still runs, and wait for its end.

    command, options    as for `subprocess.Popen`

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
    """Wait until `condition()` is true.

    process : Popen or None     the process that makes it true; if it ends first, the test fails
    """
    begin = time.monotonic()
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended and not condition():
            errors = process.stderr if process is not None else None
            message = b"" if errors is None else errors.read()
            raise AssertionError(f"the process ended before the condition was true: {message!r}")
        assert time.monotonic() - begin < LIMIT, f"the condition is not true after {LIMIT} s"
        time.sleep(0.005)


UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss's unit
LAUNCHER = """
import os, sys
child = os.posix_spawn(sys.executable, sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def peak_memory(folder: Path, *arguments: object) -> tuple[int, int, str]:
    """The exit code of a `conv3d`, the most resident memory of it or a process of its, and stderr.

    folder : Path       where it runs
    """
    command = [sys.executable, "-m", "conv3d_cli", *map(str, arguments)]
    # by a small process: the system counts the memory of the one that forks, too
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    code, most = map(int, done.stdout.split()[-2:])
    return code, most * UNIT, done.stderr


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children, whatever else the machine does."""
    return sum(os.times()[:4])


def on_a_terminal(
    command: list[str], environment: dict[str, str], rows: int = 24, columns: int = 80
) -> str:
    """What a command writes to a terminal of this size; it must end with 0."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True
    ) as process:
        os.close(slave)
        written = b""
        try:
            while part := os.read(master, 65536):
                written += part
        except OSError:  # Linux says so when the last writer has closed it
            pass
        process.wait(LIMIT)
    os.close(master)
    assert process.returncode == 0
    return written.decode().replace("\r\n", "\n")
