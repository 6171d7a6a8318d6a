"""Tasks: all threads have some wherever the problem allows it, and their sizes never change a bit.

`pytest -s` prints how many tasks each number of threads gets, and how busy it is predicted to be.
"""

from __future__ import annotations

import heapq
import itertools
import math
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.engine import Plan, Team, make_plan
from conv3d_cli.engine.division import LEAST_TASK_SECONDS, MOST_REPEATED, TASKS_PER_THREAD
from conv3d_cli.model.box import Size
from conv3d_cli.model.spec import ConvSpec
from conv3d_cli.pipeline.blocking import choose_blocking
from conv3d_cli.pipeline.graph import Graph
from conv3d_cli.pipeline.memory import UNLIMITED, SlabJob

FLOAT32 = np.dtype(np.float32)


def numbers(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal(shape)


def gaussian(size: int) -> NDArray[np.float64]:
    line = np.exp(-0.5 * ((np.arange(size) - size // 2) / (size / 6)) ** 2)
    return np.einsum("i,j,k->ijk", line, line, line)[..., None, None]


def ball(radius: int) -> NDArray[np.float64]:
    places = np.indices((2 * radius + 1,) * 3) - radius
    inside = (places**2).sum(axis=0) <= radius**2
    return (inside * numbers(*inside.shape))[..., None, None]


def two_terms(size: int) -> NDArray[np.float64]:
    return gaussian(size) + np.linspace(-1, 1, size)[:, None, None, None, None] * gaussian(size)


class Case(NamedTuple):
    """A volume (D, H, W, C), weights, an algorithm, and the least tasks that it can be cut into."""

    name: str
    volume: tuple[int, int, int, int]
    weights: NDArray[np.float64]
    algorithm: str = "auto"
    tasks: int = 1 << 30

    def plan(self, threads: int = 1) -> Plan:
        groups = self.volume[3] // self.weights.shape[3]
        spec = ConvSpec(padding="same", groups=groups)
        problem = spec.resolve((1, *self.volume), self.weights.shape)
        return make_plan(problem, self.weights, threads=threads, algorithm=self.algorithm)


CASES = [
    Case("256^3, 3^3", (256, 256, 256, 1), numbers(3, 3, 3, 1, 1), "direct"),
    Case("128x256x256, 3^3", (128, 256, 256, 1), numbers(3, 3, 3, 1, 1), "direct"),
    Case("8x1024x1024, 3^3", (8, 1024, 1024, 1), numbers(3, 3, 3, 1, 1), "direct"),
    Case("4x64x8192, 3^3", (4, 64, 8192, 1), numbers(3, 3, 3, 1, 1), "direct", tasks=128),
    Case("256^3, gaussian", (256, 256, 256, 1), gaussian(17), "separable"),
    Case("128x256x256, gaussian", (128, 256, 256, 1), gaussian(17), "separable"),
    Case("91x109x91, gaussian", (91, 109, 91, 1), gaussian(17), "separable", tasks=64),
    Case("256^3, two terms", (256, 256, 256, 1), two_terms(9), "separable"),
    Case("91x109x91, 11^3", (91, 109, 91, 1), numbers(11, 11, 11, 1, 1), "fft", tasks=30),
    Case("256^3, 15^3", (256, 256, 256, 1), numbers(15, 15, 15, 1, 1), "fft", tasks=56),
    Case("512^3, 31^3", (512, 512, 512, 1), numbers(31, 31, 31, 1, 1), "fft", tasks=8),
    Case("256^3, ball", (256, 256, 256, 1), ball(5), "sparse"),
    Case("64^3, 32 to 32", (64, 64, 64, 32), numbers(3, 3, 3, 32, 32), "winograd"),
    Case("64^3, 32 to 32", (64, 64, 64, 32), numbers(3, 3, 3, 32, 32), "channels"),
    Case("64^3, 32 groups", (64, 64, 64, 32), numbers(3, 3, 3, 1, 32), "depthwise"),
    Case("128^3, 16 to 1", (128, 128, 128, 16), numbers(3, 3, 3, 16, 1), "few-filters"),
]
USUAL = [*range(1, 17), 20, 24, 32, 40, 48, 64, 96, 128]


def slab(case: Case, plan: Plan) -> Size:
    """The slab that a stream of this volume computes at once."""
    convolution = Convolution(plan, case.volume[3] > 1, None, [], False, None)
    job = SlabJob(Graph.chain([convolution]), FLOAT32, FLOAT32, False, plan.problem.filters, {})
    depth = choose_blocking(job, UNLIMITED).depth
    return Size(min(depth, case.volume[0]), *case.volume[1:3])


def scheduled(plan: Plan, size: Size) -> tuple[int, float]:
    """Count the tasks, and schedule their outputs: the share of time without work."""
    blocks = plan.problem.groups // plan.prepared.groups_together
    grid = plan._task_grid(size, plan.problem.groups, plan.threads)
    loads, tasks = [0] * plan.threads, 0
    for _, d, h, w in itertools.product(range(blocks), *map(range, grid.counts)):
        ends = zip((d, h, w), grid.tile, size, strict=True)
        voxels = math.prod(min(n, whole - place * n) for place, n, whole in ends)
        assert voxels > 0
        heapq.heapreplace(loads, loads[0] + voxels)
        tasks += 1
    assert sum(loads) == blocks * size.voxels, "each output belongs to one task"
    return tasks, 1 - sum(loads) / (plan.threads * max(loads))


def check(case: Case, counts: list[int]) -> None:
    plan, before = case.plan(), 0
    shown = [f"{case.name} ({plan.algorithm.name})"]
    for threads in counts:
        plan.use_threads(threads)
        size = slab(case, plan)
        tasks, idle = scheduled(plan, size)
        shown.append(
            f"  -j {threads:<3} {tasks:4} tasks of a slab of {size.depth:3} planes, "
            f"{size.voxels // tasks:8} voxels each, idle {100 * idle:3.0f} %"
        )
        at_work = min(threads, tasks)
        assert plan.tasks_for(size) == tasks
        assert at_work >= before, "fewer threads work because there are more"
        assert at_work >= min(threads, case.tasks), shown[-1]
        sharing = plan.sharing(size)
        assert (sharing.tasks, sharing.at_work) == (tasks, at_work)
        if tasks >= TASKS_PER_THREAD * threads:
            assert idle < 0.3, shown[-1]
        before = at_work
    sys.stdout.write("\n".join([*shown, ""]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.algorithm}")
def test_all_threads_have_work_wherever_the_problem_allows(case: Case) -> None:
    check(case, USUAL)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.algorithm}")
def test_no_number_of_threads_has_less_work_than_a_smaller_one(case: Case) -> None:
    check(case, list(range(1, 129)))


@pytest.mark.parametrize("threads", [2, 4, 8, 16, 32, 64, 128])
def test_a_plain_kernel_has_four_tasks_for_each_thread(threads: int) -> None:
    for case in CASES[:2]:
        plan = case.plan(threads)
        assert plan.tasks_for(slab(case, plan)) >= 4 * threads


def test_python_s_one_slab_has_four_tasks_for_each_thread() -> None:
    for threads in (2, 8, 64, 128):
        assert CASES[1].plan(threads).tasks_for((128, 256, 256)) >= 4 * threads


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.algorithm}")
@pytest.mark.parametrize("threads", [8, 64])
def test_no_task_is_useless(case: Case, threads: int) -> None:
    """A task that is smaller than a tile computes for some time, and not mostly its halo."""
    plan = case.plan(threads)
    size = slab(case, plan)
    grid = plan._task_grid(size, plan.problem.groups, threads)
    alone = plan._task_grid(size, plan.problem.groups, 1)
    if grid.tile == alone.tile:
        return
    seconds = plan.seconds[plan.algorithm.name] * threads
    volume, blocks = math.prod(case.volume[:3]), grid.tasks / grid.counts.voxels
    assert grid.tile.voxels * seconds / volume / blocks >= 0.99 * LEAST_TASK_SECONDS
    packed = [
        count * (extent - 1) + whole
        for count, extent, whole in zip(grid.counts, plan.problem.extent, size, strict=True)
    ]
    packed_alone = [
        count * (extent - 1) + whole
        for count, extent, whole in zip(alone.counts, plan.problem.extent, size, strict=True)
    ]
    # packing is at most half of a tile's time; the rest never grows by more
    assert math.prod(packed) <= (2 * MOST_REPEATED - 1) * 2 * math.prod(packed_alone)


@pytest.mark.parametrize(
    ("algorithm", "weights"),
    [
        pytest.param("separable", two_terms(7), id="separable"),
        pytest.param("direct", numbers(3, 3, 3, 1, 1), id="direct"),
        pytest.param("sparse", ball(3), id="sparse", marks=pytest.mark.slow),
        pytest.param("fft", numbers(7, 7, 7, 1, 1), id="fft", marks=pytest.mark.slow),
    ],
)
def test_same_bits_where_tiles_are_cut_for_many_threads(
    algorithm: str, weights: NDArray[Any]
) -> None:
    """NaN, infinity and huge numbers, too: the same voxels are computed again by the direct sum."""
    case = Case("", (32, 70, 200, 1), weights, algorithm)
    volume = np.random.default_rng(1).standard_normal(case.volume).astype(np.float32)
    volume[3, 5, 7], volume[30, 40, 150], volume[20, 69, 199] = np.nan, np.inf, 1e30
    results, clipped, tiles = [], [], set()
    for threads in (1, 2, 32):
        plan = case.plan(threads)
        planes = plan.problem.source_indices(0, 0, 32)
        out, whole = np.empty(case.volume, np.float32), np.empty(case.volume, np.uint8)
        with Team(threads) as team:
            plan.convolve_slab(volume, out, planes, team)
            clipped.append(plan.convolve_slab(volume, whole, planes, team).clipped)
        results.append(out.view(np.uint32))
        tiles.add(plan._task_grid(Size(32, 70, 200), 1, threads).tile)
    assert len(tiles) > 1
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    assert len(set(clipped)) == 1


def test_a_worker_allocates_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the system places it near the CPU that works on it."""
    made: list[str] = []
    make = Plan._make_worker

    def recorded(plan: Plan) -> Any:
        made.append(threading.current_thread().name)
        return make(plan)

    monkeypatch.setattr(Plan, "_make_worker", recorded)
    plan = Case("", (64, 64, 64, 1), numbers(3, 3, 3, 1, 1), "direct").plan(4)
    volume = np.ones((64, 64, 64, 1), np.float32)
    with Team(4) as team:
        for _ in range(3):
            planes = plan.problem.source_indices(0, 0, 64)
            plan.convolve_slab(volume, np.empty_like(volume), planes, team)
    assert 0 < len(made) <= 4
    assert len(set(made)) == len(made), "one allocation in each thread"
    assert all(name.startswith("conv3d-compute") for name in made)
