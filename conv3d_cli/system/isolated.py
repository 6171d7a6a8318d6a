"""Call functions in a process of their own: for libraries that crash or loop on damaged files.

HDF5's library does both. Of files with randomly changed bytes, 1 in 300 made it loop and 1 in 3000
crashed it. Here either becomes a FormatError, and an interrupt ends the call at once. The process
has the rights of this one: it protects from damaged files, not from programs.

A chunk of a few kilobytes can unpack to gigabytes before a library notices. `bounded_memory` limits
what a function may allocate there, where the system can.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import IO, Any

from conv3d_cli import errors
from conv3d_cli.errors import Conv3DError, FormatError, MemoryLimitError
from conv3d_cli.system.maps import shorter_words

SECONDS = 30.0  # of CPU time for a call; reading a header takes about 0.1
MIN_SPEED = 5e6  # bytes per second of CPU time, which extend the limit of large files
PROCESS_BYTES = 56 << 20  # of an idle process: Python, NumPy and h5py take 41 to 54 MiB
CONTROL_C_EXIT = 0xC000013A  # of Windows: the code of a process that Ctrl-C ended
PIPE_BYTES = 1 << 20  # in flight, where the system has pipes of that size
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from conv3d_cli.system import isolated; "
    "isolated.serve()"
)
_HEAD = struct.Struct("<Q")

# those whose end an interrupt must bring about, because a thread may wait for them
_running: weakref.WeakSet[Isolated] = weakref.WeakSet()


class Isolated:
    """A process that calls functions, one after another.

    path : str      of the file that they read, for messages
    library : str   that reads it, for messages: "the HDF5 library"

    A function that computes without end is stopped after `SECONDS` of CPU time, and more if the
    file is large: waiting for a slow disk does not count.

    >>> with Isolated("a.h5", "the HDF5 library") as process:
    ...     process.call("os.path:basename", "folder/a.h5")
    'a.h5'
    """

    def __init__(self, path: str, library: str) -> None:
        import subprocess  # imported here because most runs start no process

        self.path, self.library = path, library
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        self._seconds = SECONDS + size / MIN_SPEED
        self._lock = threading.Lock()
        self._ended = self._too_long = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _running.add(self)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function there, and return what it returns; large arrays are moved, not copied.

        function : str      "package.module:name"
        Raises: the function's Conv3DError or MemoryError; FormatError if the process crashes or
            computes without end; RuntimeError, with its traceback, for any other error.
        """
        with self._lock:
            process = self._process
            if self._ended:
                raise FormatError(f"cannot read {self.path}: it was closed")
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with self._time_limit():
                    _send(
                        process.stdin,
                        (self._seconds, errors.reader_types_commands(), function, arguments),
                    )
                    kind, result = _receive(process.stdout)
            except (EOFError, OSError):
                raise self._failure() from None
            except BaseException:  # an interrupt: what is left in the pipe belongs to no call
                self.end()
                raise
        if kind == "":
            return result
        if kind == "MemoryError":
            raise MemoryError(result)
        raise getattr(errors, kind, RuntimeError)(result)

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """End the process if the body takes too long, where it cannot measure its own CPU time."""
        if hasattr(signal, "setitimer"):
            yield
            return
        timer = threading.Timer(self._seconds, self._overrun)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _overrun(self) -> None:
        self._too_long = True
        self._process.kill()

    def _failure(self) -> BaseException:
        """The error for a process that ended in the middle of a call."""
        process = self._process
        assert process.stderr is not None
        lines = [
            line for line in process.stderr.read().decode(errors="replace").split("\n") if line
        ]
        code = process.wait()
        if self._ended or code in (-signal.SIGINT, CONTROL_C_EXIT):
            return KeyboardInterrupt()
        start = f"cannot read {self.path}: damaged: {self.library}"
        try:
            how = signal.Signals(-code).name
        except ValueError:  # on Windows, which has no such signals, always
            how = f"exit code {code}"
        if how == "SIGBUS":
            return FormatError(shorter_words(self.path))
        if self._too_long or how == "SIGPROF":
            return FormatError(f"{start} did not finish in {self._seconds:.0f} seconds")
        return FormatError(f"{start} crashed ({lines[-1].strip()[:200] if lines else how})")

    def end(self) -> None:
        """Kill the process, also in the middle of a call of another thread."""
        self._ended = True
        _running.discard(self)
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the process, and close the pipes to it."""
        self.end()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with suppress(OSError):  # a request that it did not read
                pipe.close()

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end_all() -> None:
    """Kill all processes, so that no thread waits for one; its call raises KeyboardInterrupt."""
    for process in list(_running):
        process.end()


# --------------------------------------------------------------------------------------------------
# Messages: pickled, with the bytes of large arrays behind them


def _send(pipe: IO[bytes], message: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(head), len(views), *(view.nbytes for view in views)]
    pipe.write(b"".join(map(_HEAD.pack, sizes[:2])) + b"".join(map(_HEAD.pack, sizes[2:])) + head)
    for view in views:
        pipe.write(view)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """The next message. Raises: EOFError if the other side has ended."""
    length, count = (_HEAD.unpack(_bytes(pipe, _HEAD.size))[0] for _ in range(2))
    sizes = [_HEAD.unpack(_bytes(pipe, _HEAD.size))[0] for _ in range(count)]
    head = _bytes(pipe, length)
    return pickle.loads(head, buffers=[_bytes(pipe, size) for size in sizes])


def _bytes(pipe: IO[bytes], count: int) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        done += got
    return data


# --------------------------------------------------------------------------------------------------
# In the process


def serve() -> None:
    """Main function of the process: answer requests until there are no more."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it also within a library
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    if hasattr(os, "set_blocking"):
        os.set_blocking(2, False)  # nor does it wait for somebody to read it
    _enlarge(answers.fileno())
    requests = sys.stdin.buffer
    try:
        while True:
            seconds, types_commands, function, arguments = _receive(requests)
            limit_cpu_time(seconds)
            with errors.for_command_line() if types_commands else nullcontext():
                answer = answer_to(function, arguments)
            limit_cpu_time(0)
            _send(answers, answer)
            del answer
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without flushing to a pipe that nobody reads


def limit_cpu_time(seconds: float) -> None:
    """End this process by a signal after so much CPU time, where there are such signals; 0: never.

    On Windows `Isolated` measures the time instead, that of the clock.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer_to(function: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Call a function: ("", its result), or the name of an error and its text."""
    module, _, name = function.partition(":")
    try:
        called: Callable[..., Any] = getattr(import_module(module), name)
        return "", called(*arguments)
    except Conv3DError as error:
        return type(error).__name__, str(error)
    except MemoryError as error:
        return "MemoryError", str(error)
    except Exception:
        import traceback

        return "RuntimeError", traceback.format_exc()


@contextmanager
def bounded_memory(count: int, path: str) -> Iterator[None]:
    """In the body, this process may allocate no more than `count` bytes on top of what it has.

    It limits the whole process, all of whose threads should be in the body. Linux does it; other
    systems have no such limit.
    path : str      of the file that is read, for the message
    Raises: FormatError if the body needs more.

    >>> with bounded_memory(1 << 20, "a.h5"):
    ...     bytes(1000)[:2]
    b'\\x00\\x00'
    """
    try:
        import resource

        with open("/proc/self/statm", "rb") as file:
            held = int(file.read().split()[5]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held + count
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except Exception as error:
        words = str(error).lower()
        if isinstance(error, MemoryError | MemoryLimitError) or "allocat" in words:
            raise FormatError(
                f"cannot read {path}: a part of it took more than the {count >> 20} MiB of memory "
                "that its header accounts for: it is damaged, or its library needs more; if "
                "another program reads it, save it there as another format, such as NIfTI"
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _enlarge(pipe: int) -> None:
    """Make a pipe larger, where the system can: larger pieces move faster."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
