"""A team of threads that work through numbered tasks.

The loops run without the GIL, so plain threads use all CPUs; the calling thread is one of them, which lets Ctrl-C and
SIGTERM take effect between tasks. Tasks are handed out one by one, so a slow core does not hold the others up. Compared
with `prange` (tests/benchmarks/team_against_prange.py): as fast, safe to call from several threads and after fork,
no threading layer to choose, and it compiles in half the time.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


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
        self._pool: ThreadPoolExecutor | None = None

    def run(self, count: int, work: Callable[[int, int], None]) -> None:
        """Call `work(worker, task)` for every task below `count`; the first exception ends all and is raised here."""
        next_task = itertools.count()
        failed = threading.Event()

        def labour(worker: int) -> None:
            try:
                while not failed.is_set():
                    task = next(next_task)
                    if task >= count:
                        return
                    work(worker, task)
            except BaseException:
                failed.set()
                raise

        helpers: list[Future[None]] = []
        if self.threads > 1 and count > 1:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="conv3d-compute")
            helpers = [self._pool.submit(labour, worker) for worker in range(1, min(self.threads, count))]
        try:
            labour(0)
        finally:
            failures = [helper.exception() for helper in helpers]  # waits for each
        for failure in failures:
            if failure is not None:
                raise failure

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
