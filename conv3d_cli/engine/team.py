"""A team of threads that work through numbered tasks.

The loops run without the GIL, so plain threads use all CPUs. Tasks are handed out one by one, so a slow core does not hold
the others up. The calling thread only waits: there Ctrl-C and SIGTERM can raise at any moment without tearing foreign code
apart (an interrupt inside LLVM's bindings is swallowed, or leaves their lock taken). `prange` is about a tenth quicker on the
same blocks (tests/benchmarks/team_against_prange.py, 2026-11), but its threading layers are not safe to call from several
threads (workqueue) or after fork (OpenMP), which a library must be.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Team:
    """`threads` workers; use as a context manager.

    >>> with Team(2) as team:
    ...     seen = []
    ...     team.run(4, lambda worker, task: seen.append(task))
    >>> sorted(seen)
    [0, 1, 2, 3]
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="conv3d-compute")

    def workers(self, count: int) -> Iterable[int]:
        """The numbers of those that may be called for so many tasks."""
        return range(min(self.threads, count))

    def run(self, count: int, work: Callable[[int, int], None]) -> None:
        """Call `work(worker, task)` for every task below `count`; the first exception ends all and is raised here."""
        next_task = itertools.count()
        stop = False
        active = 0
        gate = threading.Condition()

        def labour(worker: int) -> None:
            nonlocal stop, active
            with gate:
                if stop:
                    return
                active += 1
            try:
                while not stop:
                    task = next(next_task)
                    if task >= count:
                        return
                    work(worker, task)
            except BaseException:
                stop = True
                raise
            finally:
                with gate:
                    active -= 1
                    gate.notify_all()

        try:
            workers = [
                self._pool.submit(labour, worker) for worker in range(min(self.threads, count))
            ]
            for future in workers:
                future.result()
        finally:
            # A worker in mid-task writes to the caller's memory. Counted rather than awaited by their futures, since an
            # interrupt may come between a worker's start and the return of its future.
            with gate:
                stop = True
                gate.wait_for(lambda: active == 0)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)


class SerialWorker(Team):
    """One worker of a team, for tasks within its task: it runs them one after another.

    >>> SerialWorker(3).run(2, lambda worker, task: print(worker, task))
    3 0
    3 1
    """

    def __init__(self, worker: int) -> None:
        self.threads, self.worker = 1, worker

    def workers(self, count: int) -> Iterable[int]:
        return (self.worker,)

    def run(self, count: int, work: Callable[[int, int], None]) -> None:
        for task in range(count):
            work(self.worker, task)


def run_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a thread of its own; the caller only waits, and may be interrupted.

    LLVM is used this way: an interrupt inside its bindings is swallowed, or leaves their lock taken. What was begun is done
    to its end even if the caller has gone.

    >>> run_in_thread(max, 1, 2)
    2
    """
    outcome: Any = None
    failure: BaseException | None = None

    done = threading.Event()

    def run() -> None:
        nonlocal outcome, failure
        try:
            outcome = function(*arguments)
        except BaseException as error:
            failure = error
        finally:
            done.set()

    threading.Thread(target=run, name="conv3d-llvm").start()
    # Not by join(): an interrupt there has Python 3.11 take the thread for ended (in _wait_for_tstate_lock), so that the
    # interpreter does not wait for it at exit and is taken apart under LLVM's feet.
    done.wait()
    if failure is not None:
        raise failure
    return outcome
