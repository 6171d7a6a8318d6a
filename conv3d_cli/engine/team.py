"""A team of threads that run numbered tasks.

The loops run without the GIL, so plain threads use all CPUs. A thread takes its next task when it
has finished one, so a slow core does not delay the others. The calling thread only waits, so Ctrl-C
and SIGTERM can raise there at any time: an interrupt inside LLVM's bindings would be swallowed, or
would leave their lock taken. `prange` is about 10 % faster on the same blocks
(tests/benchmarks/team_against_prange.py, 2026-11), but a library must be callable from several
threads and after fork: Numba's workqueue layer fails the first, its OpenMP layer the second.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any


class Team:
    """A team of worker threads, to be used as a context manager.

    threads : int       number of workers
    kept : bool         its threads may outlive the context, see `kept_team`
    A worker's number belongs to one thread, which starts when a run first needs it. So the memory
    that a worker allocates and writes first stays near the CPU that works on it. Leaving the
    context waits for the threads to end.

    >>> with Team(2) as team:
    ...     seen = []
    ...     team.run(4, lambda worker, task: seen.append(task))
    >>> sorted(seen)
    [0, 1, 2, 3]
    """

    def __init__(self, threads: int, kept: bool = False) -> None:
        self.threads, self.kept = threads, kept
        self._members: list[_Member] = []

    def workers(self, count: int) -> Iterable[int]:
        """The numbers of the workers that `run` may use for `count` tasks."""
        return range(min(self.threads, count))

    def run(self, count: int, work: Callable[[int, int], None]) -> None:
        """Call `work(worker, task)` once for every task from 0 to `count` - 1, in any order.

        An exception in a task ends the run: no further task starts, and it is raised here.
        """
        next_task = itertools.count()
        stop = False
        active = waiting = 0
        failures: list[BaseException] = []
        state_changed = threading.Condition()

        def take_tasks(worker: int) -> None:
            nonlocal active, stop, waiting
            with state_changed:
                waiting -= 1
                if stop:
                    state_changed.notify_all()
                    return
                active += 1
            try:
                while not stop:
                    task = next(next_task)
                    if task >= count:
                        return
                    work(worker, task)
            except BaseException as error:
                stop = True
                failures.append(error)
            finally:
                with state_changed:
                    active -= 1
                    state_changed.notify_all()

        try:
            for worker in self.workers(count):
                if worker == len(self._members):
                    member = _Member(worker, daemon=self.kept)
                    self._members.append(member)  # before an interrupt can come out of `start`
                    member.start()
                with state_changed:
                    waiting += 1
                self._members[worker].orders.put(take_tasks)
            with state_changed:
                state_changed.wait_for(lambda: active + waiting == 0)
        finally:
            # Wait for all workers, since a task writes to the caller's memory. They are counted: an
            # interrupt may come before all have begun, and those who find `stop` do nothing.
            with state_changed:
                stop = True
                state_changed.wait_for(lambda: active == 0)
        if failures:
            error = failures[0]
            failures.clear()  # its traceback leads back to the list
            try:
                raise error
            finally:
                del error

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Wait for the threads to end."""
        for member in self._members:
            member.orders.put(None)
        for member in self._members:
            if member.is_alive():
                member.join()
        self._members.clear()


class _Kept:
    """The team that the process keeps, while no call uses it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keep no team; for a forked process, which has the object but not its threads."""
        self.team: Team | None = None
        self.lock = threading.Lock()

    def take(self, threads: int) -> Team | None:
        with self.lock:
            if self.team is None or self.team.threads != threads:
                return None
            team, self.team = self.team, None
            return team

    def put(self, team: Team) -> Team | None:
        """Keep a team. Returns the one that has to end instead, if there is one."""
        with self.lock:
            former, self.team = self.team, team
            return former


_kept = _Kept()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.forget)


@contextlib.contextmanager
def kept_team(threads: int) -> Iterator[Team]:
    """A team whose threads stay for the next call of the process, as long as it wants as many.

    Calls at the same time have teams of their own; the one that ends last is kept.

    >>> with kept_team(2) as first, kept_team(2) as second:
    ...     first is second
    False
    >>> with kept_team(2) as third:
    ...     third is first
    True
    """
    team = _kept.take(threads) or Team(threads, kept=True)
    try:
        yield team
    finally:
        former = _kept.put(team)
        if former is not None:
            former.end()


class _Member(threading.Thread):
    """The thread of one worker of a team; it carries out orders, `order(number)`, until None."""

    def __init__(self, number: int, daemon: bool) -> None:
        # a kept thread waits for orders when the interpreter ends, which must not wait for it
        super().__init__(name=f"conv3d-compute-{number}", daemon=daemon)
        self.number = number
        self.orders: SimpleQueue[Callable[[int], None] | None] = SimpleQueue()

    def run(self) -> None:
        while (order := self.orders.get()) is not None:
            order(self.number)
            del order  # it holds the memory of the run


class SerialWorker(Team):
    """A team of one that runs tasks in turn in the calling thread.

    For work within a task of a larger team, and for work that takes less time than a thread.

    worker : int        the number that `work` receives, and so the memory that it uses

    >>> SerialWorker(3).run(2, lambda worker, task: print(worker, task))
    3 0
    3 1
    """

    def __init__(self, worker: int) -> None:
        self.threads, self.worker = 1, worker

    def workers(self, count: int) -> Iterable[int]:
        """The number of the one worker."""
        return (self.worker,)

    def run(self, count: int, work: Callable[[int, int], None]) -> None:
        """Call `work(worker, task)` for the tasks from 0 to `count` - 1, in order."""
        for task in range(count):
            work(self.worker, task)

    def __exit__(self, *_: object) -> None:
        pass


def run_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call function(*arguments) in a new thread and return its result; the caller only waits.

    All calls into LLVM go this way, because an interrupt inside its bindings is swallowed, or
    leaves their lock taken. The function runs to its end even if an interrupt ends the wait.

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
    # Not join(): after an interrupt there, Python 3.11 regards the thread as ended (in
    # _wait_for_tstate_lock), so the interpreter would shut down while LLVM still runs.
    done.wait()
    if failure is not None:
        raise failure
    return outcome
