"""The team of threads: every task once, failures come through, Ctrl-C ends it."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
import time

import pytest
from processes import LIMIT

from conv3d_cli.engine import Team


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_every_task_is_done_once(threads: int, count: int) -> None:
    seen: list[int] = []
    workers: set[int] = set()
    with Team(threads) as team:
        for _ in range(3):
            team.run(count, lambda worker, task: (seen.append(task), workers.add(worker)))  # type: ignore[func-returns-value]
    assert sorted(seen) == sorted(list(range(count)) * 3)
    assert workers <= set(range(threads))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("bad_worker", [0, 1])
def test_a_failure_in_any_worker_is_raised_and_ends_the_work(
    error: type[BaseException], bad_worker: int
) -> None:
    both = threading.Barrier(2, timeout=LIMIT)
    done: list[int] = []

    def work(worker: int, task: int) -> None:
        if task < 2:
            both.wait()  # two workers hold a task each
            if worker == bad_worker:
                raise error("stop")
        done.append(task)

    with Team(2) as team, pytest.raises(error):
        team.run(100_000, work)
    assert len(done) < 100_000
    with Team(2) as again:  # nothing is left running
        again.run(3, lambda worker, task: done.append(task))


def test_an_interrupt_of_the_caller_waits_for_the_workers() -> None:
    """Ctrl-C raises in the thread that called `run`; when it comes out, no worker touches memory any more."""
    busy: list[int] = []

    def work(worker: int, task: int) -> None:
        busy.append(worker)
        if task == 1:
            _thread.interrupt_main()
        time.sleep(0.02)
        busy.remove(worker)

    with Team(2) as team:
        with pytest.raises(KeyboardInterrupt):
            team.run(1000, work)
        assert not busy


INTERRUPTED = """
import os, signal, threading, time
from conv3d_cli.engine.team import run_in_thread

signal.signal(signal.SIGINT, signal.default_int_handler)

left = threading.Event()

def slow():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    left.wait()
    time.sleep(0.5)  # while the interpreter ends
    print("finished", flush=True)

try:
    run_in_thread(slow)
except KeyboardInterrupt:
    print("left", flush=True)
    left.set()
"""


def test_the_process_does_not_end_under_what_was_begun_apart() -> None:
    """The caller leaves at once, but an interpreter that is taken apart while LLVM works ends in a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=LIMIT
    )
    assert (done.returncode, done.stdout.split()) == (0, ["left", "finished"]), done.stderr


def test_a_worker_is_one_thread_which_starts_when_it_is_needed() -> None:
    """So memory that a worker touches first stays near the CPU that works on it."""
    threads: dict[int, set[int]] = {}
    all_at_once = threading.Barrier(3, timeout=LIMIT)

    def work(worker: int, task: int) -> None:
        all_at_once.wait()
        threads.setdefault(worker, set()).add(threading.get_ident())

    before = threading.active_count()
    with Team(64) as team:
        for _ in range(20):
            team.run(3, work)
        assert threading.active_count() == before + 3
    assert threading.active_count() == before
    assert sorted(threads) == [0, 1, 2]
    assert all(len(of_worker) == 1 for of_worker in threads.values())
