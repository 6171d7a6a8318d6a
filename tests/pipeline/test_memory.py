"""What a job is forecast to hold: what child processes take, the planes of a chain, weights, and threads that have work."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d as convolve
from conv3d_cli.convolution.slabs import RingPlanes, SlabInput, SlabSource
from conv3d_cli.engine.plan import ALGORITHMS, make_plan, planning_bytes
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import ConvSpec
from conv3d_cli.pipeline.held import count_held
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job
from conv3d_cli.system.room import PROCESS_BYTES

MIB = 1 << 20
PROCESS_LEAST = 85 * MIB  # the interpreter with its libraries and compiled loops


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, numbers = tmp_path_factory.mktemp("memory"), np.random.default_rng(0)
    np.save(folder / "small.npy", np.ones((16, 16, 16), np.float32))
    np.save(folder / "x.npy", numbers.standard_normal((120, 160, 160)).astype(np.float32))
    np.save(folder / "bytes.npy", numbers.integers(0, 256, (120, 160, 160), np.uint8))
    np.save(folder / "mask.npy", (numbers.random((120, 160, 160)) > 0.3).astype(np.uint8))
    np.save(folder / "wide.npy", np.ones((8, 8, 8, 512), np.float32))
    np.save(folder / "layer.npy", np.ones((3, 3, 3, 512, 1024), np.float32))
    np.save(folder / "k17.npy", numbers.standard_normal((17, 17, 17)))
    np.save(folder / "k60.npy", numbers.standard_normal((60, 60, 60)))
    return folder


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def conv3d(folder: Path, *arguments: str) -> tuple[int, str, int]:
    """A process of its own: exit code, the last line on stderr, peak memory in bytes."""
    # A process starts with its parent's peak, and the tests' is large: a small one starts it.
    command = [sys.executable, "-c", MEASURED, sys.executable, "-m", "conv3d_cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split())
    return code, done.stderr.strip(), peak


JOBS = {
    "filter": "x.npy -k gaussian:sigma=2vox",
    "fft": "x.npy -k k17.npy",
    "mask": "x.npy -k gaussian:sigma=2vox --mask mask.npy",
    "kernel": "small.npy -k k60.npy",
    "wide layer": "wide.npy --axes zyxc -k layer.npy --padding same",
    "local": "x.npy --operation local:statistic=std:size=7",
    "hessian": "bytes.npy --operation tensor:of=hessian:sigma=2vox",
    "structure": "x.npy --operation tensor:sigma=1vox:window=2vox",
    "ridges": "bytes.npy --operation ridges:scales=1,3vox",
    "ridges whole": "x.npy --operation ridges:scales=2vox --dtype float64",
    "match": "x.npy --operation match -k expr:d-h:radius=3vox",
}


@pytest.mark.parametrize("name", JOBS)
def test_the_forecast_is_above_the_peak_and_not_far(folder: Path, name: str) -> None:
    arguments = [
        *JOBS[name].split(),
        "-o",
        f"{name.split()[0]}_out.npy",
        "--overwrite",
        "--threads",
        "2",
    ]
    planned = subprocess.run(
        [sys.executable, "-m", "conv3d_cli", "apply", *arguments, "--dry-run", "--json"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    record = json.loads(planned.stdout)
    assert record["memory"] == sum(record["memory_terms"].values())
    code, message, peak = conv3d(folder, "apply", *arguments)
    assert code == 0, message
    assert peak <= record["memory"]
    beside = record["memory"] - record["memory_terms"]["process"]
    assert beside <= 1.5 * max(0, peak - PROCESS_LEAST) + 40 * MIB, record["memory_terms"]


@pytest.mark.parametrize(
    ("ceiling", "arguments"),
    [
        (240, "wide.npy --axes zyxc -k layer.npy --padding same"),
        (300, "small.npy -k box:size=250"),
        (300, "small.npy -k gaussian:sigma=30vox --algorithm direct"),
        (300, "small.npy -k expr:exp(-r):radius=110vox"),
        (600, "small.npy -k box:size=250"),
    ],
)
def test_a_kernel_too_large_for_the_ceiling_is_refused_below_it(
    folder: Path, ceiling: int, arguments: str
) -> None:
    code, message, peak = conv3d(
        folder, "apply", *arguments.split(), "-o", "never.npy", "--max-memory", f"{ceiling}M"
    )
    assert code == 6, message
    assert "weights" in message
    assert "pass --max-memory" in message
    assert message.count("\n") == 0
    assert peak <= ceiling * MIB
    assert not (folder / "never.npy").exists()


def test_a_refusal_names_memory_that_does(folder: Path) -> None:
    job = Job(str(folder / "small.npy"), "y.npy", (Stage(str(folder / "k60.npy")),), max_memory=1)
    with pytest.raises(MemoryError) as refused, prepare_job(job):
        pass
    least = int(str(refused.value).partition("max_memory='")[2].partition("M")[0]) * MIB
    job = Job(
        str(folder / "small.npy"), "y.npy", (Stage(str(folder / "k60.npy")),), max_memory=least
    )
    with prepare_job(job) as prepared:
        assert prepared.memory <= least


def test_threads_without_work_take_no_memory(folder: Path) -> None:
    np.save(folder / "cube.npy", np.ones((31, 31, 31), np.float32))
    found = {}
    for threads in (8, 128):
        stages = (Stage(str(folder / "k17.npy")),)
        job = Job(str(folder / "cube.npy"), "y.npy", stages, algorithm="fft", threads=threads)
        with prepare_job(job) as prepared:
            found[threads] = prepared.memory
    assert found[8] < PROCESS_BYTES + 40 * MIB
    assert found[128] < found[8] + 4 * MIB  # the tasks of more threads have no more planes in all


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(40, 40, 40, 1, 1), (3, 3, 3, 96, 128), (3, 3, 3, 1, 512), (5, 5, 5, 64, 2)]
)
def test_packed_weights_take_what_was_said(
    shape: tuple[int, int, int, int, int], dtype: str
) -> None:
    import tracemalloc

    groups = shape[4] if shape[3] == 1 else 1
    spec = ConvSpec(padding="same", groups=groups)
    problem = spec.resolve((1, 16, 16, 16, shape[3] * groups), shape)
    weights = np.random.default_rng(1).standard_normal(shape)
    for algorithm in ALGORITHMS:
        if algorithm.declines(problem, weights) is not None:
            continue
        make_plan(problem, weights, dtype=dtype, algorithm=algorithm.name).prepared.weights  # noqa: B018 - loads loops
        tracemalloc.start()
        try:
            plan = make_plan(problem, weights, dtype=dtype, algorithm=algorithm.name)
            assert (
                tracemalloc.get_traced_memory()[1] <= planning_bytes(problem, np.dtype(dtype)) + MIB
            )
            tracemalloc.reset_peak()
            plan.prepared.weights  # noqa: B018 - packed now
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept <= plan.prepared.weight_bytes.kept + MIB, algorithm.name
        assert peak <= sum(plan.prepared.weight_bytes) + MIB, algorithm.name


def planes_of_windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """What tells, for each input that is read in slabs or kept in a ring, its most planes."""
    found: dict[int, tuple[Any, int]] = {}
    of_slab, of_ring = SlabSource.read, RingPlanes.read

    def remember(owner: Any, planes: int) -> None:
        found[id(owner)] = owner, max(planes, found.get(id(owner), (None, 0))[1])

    def slab(self: SlabSource, start: int, stop: int) -> SlabInput:
        result = of_slab(self, start, stop)
        remember(self, len(result.source))
        return result

    def ring(self: RingPlanes, start: int, stop: int) -> Any:
        result = of_ring(self, start, stop)
        remember(self, len(result))
        return result

    monkeypatch.setattr(SlabSource, "read", slab)
    monkeypatch.setattr(RingPlanes, "read", ring)
    return lambda: [planes for _, planes in found.values()]


@pytest.mark.parametrize("dilations", [(1, 2, 4, 2, 1), (4,), (1, 1), (3, 1, 2)])
@pytest.mark.parametrize("strides", [1, 2])
def test_chains_hold_the_planes_that_were_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dilations: tuple[int, ...], strides: int
) -> None:
    np.save(tmp_path / "x.npy", np.ones((64, 6, 6), np.float32))
    weights = np.random.default_rng(2).standard_normal((3, 3, 3, 1, 1))
    stages = tuple(
        Stage(
            Kernel(weights),
            padding="same",
            dilation_rate=d,
            strides=strides if d == 1 and n == 0 else 1,
        )
        for n, d in enumerate(dilations)
    )
    windows = planes_of_windows(monkeypatch)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.DEEP_SLAB_BYTES", 1)
    job = Job(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), stages)
    with prepare_job(job) as prepared:
        graph = prepared.graph
        depth = prepared.stream_plan.slab_depth
    run_job(job)
    counted = sorted(count_held(graph, 1, depth).window_planes)
    if len(stages) > 1:
        assert sorted(windows()) == counted
        assert math.prod(counted) < 64 ** len(stages)  # less than whole volumes


def test_a_deep_slab_leaves_the_windows_before_it_shallow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last node asks for all planes at once; the others compute a few at a time."""
    x = np.random.default_rng(1).standard_normal((64, 6, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    weights = np.random.default_rng(2).standard_normal((3, 3, 3, 1, 1))
    windows = planes_of_windows(monkeypatch)
    stages = tuple(Stage(Kernel(weights), padding="same") for _ in range(4))
    job = Job(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), stages, threads=1)
    with prepare_job(job) as prepared:
        graph, depth = prepared.graph, prepared.stream_plan.slab_depth
    assert depth == 64
    run_job(job)
    assert sorted(windows()) == sorted(count_held(graph, 1, depth).window_planes)
    assert sorted(windows())[-1] == 64
    assert sorted(windows())[-2] <= 10
    expected = x[None, ..., None]
    for _ in range(4):
        expected = convolve(expected, weights, padding="same", boundary="zeros")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected[0, ..., 0])


def test_explain_prints_the_terms(folder: Path) -> None:
    text = subprocess.run(
        [sys.executable, "-m", "conv3d_cli", "explain", "x.npy", "-k", "k17.npy"],
        cwd=folder, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = text.splitlines()
    memory = next(number for number, line in enumerate(lines) if line.startswith("memory"))
    for term in (
        "process 222.0 MiB",
        "input ",
        "output ",
        "scratch ",
        "weights ",
        "packed weights ",
    ):
        assert term in lines[memory + 1]


def planned(folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "conv3d_cli", "explain", *arguments, "--json"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_threads_that_would_have_no_task_take_no_memory(folder: Path) -> None:
    """A kernel whose volume has 8 tiles is planned on 128 threads with the scratch of 8."""
    few, many = (
        planned(folder, "x.npy", "-k", "k60.npy", "--algorithm", "fft", "-j", threads)
        for threads in ("16", "128")
    )
    assert few["tasks"] == many["tasks"] < 16
    assert few["scratch"] == many["scratch"]
    assert few["memory"] == many["memory"]
    assert (many["threads"], many["threads_at_work"]) == (128, many["tasks"])


def test_fewer_threads_compute_where_the_memory_of_all_does_not_fit(folder: Path) -> None:
    """They did nothing but stop the job; the result is the same, and the note's ceiling is enough."""
    job = ["x.npy", "-k", "k17.npy", "--algorithm", "fft", "--overwrite"]
    code, said, _ = conv3d(folder, "apply", *job, "-j", "1", "-o", "one.npy")
    assert (code, said) == (0, "")
    code, said, peak = conv3d(
        folder, "apply", *job, "-j", "128", "--max-memory", "260M", "-o", "few.npy"
    )
    assert code == 0
    assert peak <= 260 * MIB
    found = re.fullmatch(
        r"note: x.npy: (\d+) of 128 threads compute, since the memory of more is above the "
        r"ceiling of 260.0 MiB; all would with --max-memory (\d+M)",
        said,
    )
    assert found, said
    assert 1 <= int(found[1]) < 128
    assert (folder / "few.npy").read_bytes() == (folder / "one.npy").read_bytes()
    enough = planned(folder, "x.npy", "-k", "k17.npy", "-j", "128", "--max-memory", found[2])
    assert (enough["threads"], enough["notes"]) == (128, [])


def test_explain_tells_how_threads_share_the_work(folder: Path) -> None:
    before = 0
    for threads in (1, 2, 8, 32):
        record = planned(
            folder, "x.npy", "-k", "k17.npy", "--algorithm", "direct", "-j", f"{threads}"
        )
        assert record["tasks"] >= 4 * threads
        assert record["threads_at_work"] == threads
        assert before < record["speedup"] <= threads
        assert 0 <= record["idle"] < 0.25
        before = record["speedup"]
