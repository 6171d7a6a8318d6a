"""Compile loops: in this process, or side by side in others, since Numba holds the GIL.

A worker process says that it is ready, reads keys of loops, one JSON list a line, and answers each
with a line: its symbol and object code, or null if the loop failed. It writes no file. Whatever
happens to a worker (it cannot start, it is killed, it fails on a loop), the caller compiles the
loop itself, and meets an error where a caller can handle it.
"""

from __future__ import annotations

import base64
import gc
import importlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

from conv3d_cli.errors import SpecError
from conv3d_cli.system.machine import thread_count, usable_cpus, usable_memory
from conv3d_cli.system.portable import POSIX

Constant = int | str
Key = tuple[Constant, ...]  # (module, factory, *constants) of a loop
ObjectCode = tuple[str, bytes]  # the symbol of the function, and the code

WORKER_BYTES = 400 << 20  # of memory: twice what Numba and a compilation take
START_SECONDS = 60  # a worker that is not ready by then is no worker
POLL_SECONDS = 0.1  # between two looks whether to stop
LONGEST_LINE = 64 << 20  # bytes of an answer
READY = b"conv3d: ready"
# With -P and the parent's own path: a file in the current folder must not become a module. Ctrl-C
# reaches all processes of a terminal; the parent ends its workers.
START = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from conv3d_cli.engine.compiling import work
work()
"""
# What this process does not read (the environment, the user's folder), its workers do not, either.
FLAGS = {
    "isolated": "-I",
    "ignore_environment": "-E",
    "no_user_site": "-s",
    "no_site": "-S",
    "dont_write_bytecode": "-B",
}


def worker_count(loops: int) -> int:
    """Processes for so many loops, at most one for each; 0 if this process cannot start any.

    They may use the CPUs that the environment allows for threads, and the machine's memory.
    """
    if _interpreter() is None or not POSIX:
        return 0
    cpus = usable_cpus()
    with suppress(SpecError):  # a variable that is no number; whoever takes threads from it says so
        cpus = min(cpus, thread_count(None))
    return min(loops, cpus, usable_memory() // WORKER_BYTES)


def _interpreter() -> str | None:
    """The Python that runs this process; None if that is another program.

    A frozen program, or one with a Python inside (a server, an editor of images), would not run the
    workers' text but itself once more.
    """
    path = sys.executable or ""
    is_python = os.path.basename(path).lower().startswith(("python", "pypy"))
    return path if is_python and not getattr(sys, "frozen", False) else None


def compile_loop(key: Key) -> ObjectCode:
    """The symbol and the object code of a loop, compiled by Numba in this process."""
    usual = gc.get_threshold()
    # Compiling leaves reference cycles: 40 MB if collections stay as rare as `__main__` makes them.
    gc.set_threshold(700, 10, 10)
    try:
        from conv3d_cli.engine.loops.compiler import compile_object

        factory = getattr(importlib.import_module(f"conv3d_cli.engine.loops.{key[0]}"), str(key[1]))
        return compile_object(factory(*key[2:]))
    finally:
        gc.set_threshold(*usual)


def compile_in_workers(
    keys: Sequence[Key], workers: int, stop: Callable[[], bool]
) -> Iterator[tuple[Key, ObjectCode | None]]:
    """Compile loops in so many processes; yields each when it is ready, None if it failed.

    stop : callable     asked often; once it returns True, the processes are ended
    """
    waiting = deque(keys)
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(workers):
            with suppress(OSError, ValueError):  # no process, file or memory is left for it
                worker = _Worker()
                stack.callback(worker.close)
                selector.register(worker.answers, selectors.EVENT_READ, worker)
        started = time.monotonic()
        while selector.get_map() and not stop():
            for place, _ in selector.select(POLL_SECONDS):
                worker = place.data
                try:
                    answered = worker.receive()
                except (OSError, ValueError, EOFError):
                    answered = [None] if worker.key is not None else []
                    selector.unregister(worker.answers)
                    worker.close()
                for compiled in answered:
                    assert worker.key is not None
                    yield worker.key, compiled
                    worker.key = None
                if worker.idle and waiting:
                    worker.send(waiting.popleft())
            busy = [place.data for place in selector.get_map().values() if not place.data.idle]
            if not waiting and not any(worker.key for worker in busy):
                return
            if time.monotonic() - started > START_SECONDS:
                for worker in busy:
                    if not worker.ready:
                        selector.unregister(worker.answers)
                        worker.close()
    for key in waiting if not stop() else ():
        yield key, None


class _Worker:
    """A process that compiles.

    ready : bool            it has said that it is
    key : tuple or None     the loop that it compiles
    answers : BinaryIO      its end of a pipe, unbuffered
    Raises: OSError, ValueError if it cannot be started.
    """

    def __init__(self) -> None:
        self.ready = False
        self.key: Key | None = None
        self._received = b""
        flags = [letter for flag, letter in FLAGS.items() if getattr(sys.flags, flag)]
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
        self._process = subprocess.Popen(
            [_interpreter() or "", "-P", *flags, "-c", START, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads would only take memory
        )
        assert self._process.stdout is not None
        self.answers = self._process.stdout

    @property
    def idle(self) -> bool:
        """True while it waits for a loop."""
        return self.ready and self.key is None

    def send(self, key: Key) -> None:
        """Let it compile a loop. If it has ended, `receive` says so."""
        self.key = key
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(key).encode() + b"\n")

    def receive(self) -> list[ObjectCode | None]:
        """What it has answered, at most one result.

        Raises: EOFError if it has ended; OSError; ValueError for nonsense.
        """
        data = self.answers.read(1 << 16)
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > LONGEST_LINE:
            raise ValueError("the answer does not end")
        results: list[ObjectCode | None] = []
        for line in lines:
            if self.key is not None and not results:
                results.append(_decoded(line))
            elif self.ready:
                raise ValueError("nobody asked")
            else:  # what the start of Python prints precedes it
                self.ready = line == READY
        return results

    def close(self) -> None:
        """End the process, whatever it does. Does nothing when called again."""
        self.ready = False
        self._process.kill()
        with suppress(OSError), self._process:  # closes the pipes and waits
            pass


def _encoded(compiled: ObjectCode | None) -> bytes:
    """A result as a line.

    >>> _decoded(_encoded(("symbol", b"code"))), _decoded(_encoded(None))
    (('symbol', b'code'), None)
    """
    if compiled is None:
        return b"null\n"
    symbol, code = compiled
    return json.dumps([symbol, base64.b64encode(code).decode()]).encode() + b"\n"


def _decoded(line: bytes) -> ObjectCode | None:
    """A result out of its line. Raises: ValueError."""
    found = json.loads(line)
    if found is None:
        return None
    try:
        symbol, code = found
        return str(symbol), base64.b64decode(code, validate=True)
    except TypeError as error:
        raise ValueError(str(error)) from None


def work() -> None:
    """A worker's life: compile what stdin names until it ends."""
    with _answers_alone() as answers:
        answers.write(READY + b"\n")
        answers.flush()
        for number, line in enumerate(sys.stdin.buffer):
            compiled: ObjectCode | None
            try:
                compiled = compile_loop(tuple(json.loads(line)))
            except Exception:  # the parent compiles it again, and reports it
                compiled = None
            answers.write(_encoded(compiled))
            answers.flush()
            if number == 0:
                gc.freeze()  # Numba's own objects stay: no collection need look at them


@contextmanager
def _answers_alone() -> Iterator[BinaryIO]:
    """stdout for answers alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with answers:
        yield answers
