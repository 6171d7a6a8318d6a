"""The team of threads: every task once, failures come through, Ctrl-C ends it."""

from __future__ import annotations

import threading

import pytest

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
@pytest.mark.parametrize("bad_worker", ["main", "helper"])
def test_a_failure_in_any_worker_is_raised_and_ends_the_work(error: type[BaseException], bad_worker: str) -> None:
    main = threading.current_thread()
    both = threading.Barrier(2, timeout=10)
    done: list[int] = []

    def work(worker: int, task: int) -> None:
        if task < 2:
            both.wait()  # two workers hold a task each
            if (threading.current_thread() is main) == (bad_worker == "main"):
                raise error("stop")
        done.append(task)

    with Team(2) as team, pytest.raises(error):
        team.run(10_000, work)
    assert len(done) < 10_000
    with Team(2) as again:  # nothing is left running
        again.run(3, lambda worker, task: done.append(task))
