"""Compile loops: in this process, or side by side in others, since Numba holds the GIL.

A worker process reads keys of loops, one JSON list a line, and answers each with its symbol and
object code. It writes no file. A worker that cannot start, or that fails on a loop, answers nothing
for it: the caller then compiles the loop itself and meets the error where a caller can handle it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, BinaryIO

from conv3d_cli.system.machine import usable_cpus, usable_memory

Constant = int | str
Key = tuple[Constant, ...]  # (module, factory, *constants) of a loop
ObjectCode = tuple[str, bytes]  # the symbol of the function, and the code

WORKER_BYTES = 400 << 20  # of memory: twice what Numba and a compilation take
# With -P and the parent's own path: a file in the current folder must not become a module.
START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from conv3d_cli.engine.compiling import work
work()
"""
_sizes = struct.Struct("<qq")  # bytes of the symbol and of the code; -1, 0: the loop failed


def worker_count(loops: int) -> int:
    """Processes that this machine has CPUs and memory for, at most one for each loop."""
    return min(loops, usable_cpus(), usable_memory() // WORKER_BYTES)


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
    keys: Sequence[Key], workers: int
) -> Iterator[tuple[Key, ObjectCode | None]]:
    """Compile loops in so many processes; yields each when it is ready, None if it failed."""
    with ThreadPoolExecutor(workers, thread_name_prefix="conv3d-compile") as pool:
        idle: SimpleQueue[_Worker] = SimpleQueue()
        started = [_Worker() for _ in range(workers)]
        for worker in started:
            idle.put(worker)

        def compile_one(key: Key) -> ObjectCode | None:
            worker = idle.get()
            try:
                return worker.compile(key)
            finally:
                idle.put(worker)

        try:
            futures = {pool.submit(compile_one, key): key for key in keys}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in started:
                worker.close()


class _Worker:
    """A process that compiles; None takes its place once it has failed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable or "",
                    "-P",
                    "-c",
                    START,
                    json.dumps([p for p in sys.path if isinstance(p, str)]),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, ValueError):
            pass  # no interpreter of its own (embedded in a program), or no process left

    def compile(self, key: Key) -> ObjectCode | None:
        """The object code of a loop; None if the worker has failed, now or before."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(key).encode() + b"\n")
            self._process.stdin.flush()
            return _receive(self._process.stdout)
        except (OSError, ValueError, EOFError, UnicodeDecodeError):
            self.close()
            return None

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:  # closes the pipes and waits
                pass


def _receive(pipe: Any) -> ObjectCode | None:
    head = pipe.read(_sizes.size)
    if len(head) < _sizes.size:
        raise EOFError
    symbol_size, code_size = _sizes.unpack(head)
    if symbol_size < 0:
        return None
    body = pipe.read(symbol_size + code_size)
    if len(body) < symbol_size + code_size:
        raise EOFError
    return body[:symbol_size].decode(), body[symbol_size:]


def work() -> None:
    """A worker's life: compile what stdin names until it ends."""
    with _answers_alone() as answers:
        for line in sys.stdin:
            _answer(answers, tuple(json.loads(line)))


def _answer(answers: BinaryIO, key: Key) -> None:
    try:
        symbol, code = compile_loop(key)
    except Exception:  # the parent compiles it again, and reports it
        answers.write(_sizes.pack(-1, 0))
    else:
        answers.write(_sizes.pack(len(symbol.encode()), len(code)) + symbol.encode() + code)
    answers.flush()


@contextmanager
def _answers_alone() -> Iterator[BinaryIO]:
    """stdout for answers alone: what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with answers:
        yield answers
