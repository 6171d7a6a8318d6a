"""The team of threads: every task once, failures come through, Ctrl-C ends it."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import time

import pytest
from processes import LIMIT

from conv3d_cli.engine import Team, kept_team


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


def test_a_kept_team_serves_the_next_call() -> None:
    with kept_team(3) as team:
        team.run(9, lambda worker, task: time.sleep(0.001))
        members = list(team._members)
    for _ in range(20):
        with kept_team(3) as again:
            assert again is team
            again.run(9, lambda worker, task: None)
    assert team._members[: len(members)] == members
    members = list(team._members)
    assert len(members) <= 3
    assert all(member.is_alive() for member in members)  # they wait
    with kept_team(2) as other:  # another size replaces it
        other.run(4, lambda worker, task: time.sleep(0.001))
    assert other is not team
    assert not any(member.is_alive() for member in members)


def test_a_kept_team_works_on_after_a_failure() -> None:
    def fail(worker: int, task: int) -> None:
        raise ValueError(task)

    with kept_team(2) as team, pytest.raises(ValueError, match="0"):
        team.run(1, fail)
    seen = []
    with kept_team(2) as again:
        again.run(3, lambda worker, task: seen.append(task))
    assert again is team
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_kept_team_stays_with_its_process() -> None:
    """A forked process makes threads of its own, and the interpreter ends without waiting.

    The forked one ends as multiprocessing's do, without the exit handlers of C libraries: OpenSSL's
    waits for ever for a lock that a thread of the parent held at the fork, when it was ending.
    """
    code = (
        "import os, numpy as np, warnings; warnings.simplefilter('ignore')\n"
        "from conv3d_cli import conv3d\n"
        "x = np.ones((64, 64, 64), np.float32); k = np.ones((5, 5, 5), np.float32)\n"
        "one = conv3d(x, k, threads=2)\n"
        "child = os.fork()\n"
        "two = conv3d(x, k, threads=2)\n"
        "assert (one == two).all()\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
        "print('done', flush=True)\n"
        "if not child: os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\ndone\n"), done.stderr
