"""Time the cases: conv3d and every peer, warmed up, on the same volume and number of threads.

The contestants take turns for several rounds, so that a slow moment of the machine affects all of
them; the median of a contestant's rounds counts. Each turn begins with a pause, in which the
threads of the last contestant stop spinning (those of OpenMP spin for some milliseconds). If calls
are short, an untimed call follows, which wakes the contestant's own threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.api.arrays import conv3d
from conv3d_cli.bench.cases import Case
from conv3d_cli.bench.limits import Limits, measure_limits
from conv3d_cli.bench.peers import PEERS, Call, installed, threads_for_all
from conv3d_cli.engine import Team, make_plan

Array = NDArray[Any]
# All in seconds.
PAUSE = 0.02  # before each turn
SHORT = 0.2  # below this, a turn begins with an untimed call
MIN_TURN = 0.005  # below this, a turn repeats the call and takes the mean
LONG = 2.0  # above this, the warm-up call counts as a round
BUDGET = 4.0  # for all rounds of a contestant; one round is always timed


@dataclass(frozen=True)
class Settings:
    """How to measure.

    threads : int           for conv3d and the peers
    repeats : int           rounds, if the budget allows
    patience : float        seconds; peers that need more for one call are left out
    with_peers : bool       False: conv3d only
    budget : float          seconds for all rounds of a contestant
    """

    threads: int
    repeats: int = 9
    patience: float = 15.0
    with_peers: bool = True
    budget: float = BUDGET


@dataclass
class PeerTime:
    """The time of a peer, or why it was not timed.

    fills : bool            it fills a preallocated output, as for our `ms`; else it allocates one,
                            as for our `call_ms`
    ms : float or None      median milliseconds of a call
    error : float or None   largest difference from ours, as a fraction of sum|w| * max|x|
    note : str              why it was not timed; "" if it was
    """

    name: str
    fills: bool = False
    ms: float | None = None
    error: float | None = None
    note: str = ""


@dataclass
class Measured:
    """The measurements of a case; times in milliseconds.

    algorithm : str         that the planner chose
    ms, best_ms : float     the engine with a plan and a preallocated output: median and minimum
    call_ms : float         the function `conv3d()`, which also plans and allocates: median
    predicted_ms : float    by the plan
    error : float           largest difference from float64 on sampled voxels, as a fraction of
                            sum|w| * max|x|
    limits : Limits         the better of two measurements, just before and just after the case,
                            since other programs change the memory bandwidth from minute to minute
    peers : list            of PeerTime, in the order of `PEERS`
    """

    case: Case
    algorithm: str
    ms: float
    best_ms: float
    call_ms: float
    predicted_ms: float
    error: float
    limits: Limits
    peers: list[PeerTime] = field(default_factory=list)

    @property
    def limit_ms(self) -> float:
        """The lower bound of the time on this machine, in milliseconds."""
        return 1e3 * self.limits.seconds(self.case.flops, self.case.bytes_moved)[0]

    @property
    def bound(self) -> str:
        """The binding limit: "fma" or "memory"."""
        return self.limits.seconds(self.case.flops, self.case.bytes_moved)[1]

    @property
    def share(self) -> float:
        """The fraction of the machine's limit that the engine reaches."""
        return self.limit_ms / self.ms

    @property
    def gflops(self) -> float:
        """The engine's speed in GFLOP/s, from `Case.flops`."""
        return self.case.flops / self.ms / 1e6

    def ratio_to(self, peer: PeerTime) -> float:
        """A peer's time divided by ours: by `ms` if the peer fills an output, else by `call_ms`."""
        return math.inf if peer.ms is None else peer.ms / (self.ms if peer.fills else self.call_ms)

    @property
    def strongest(self) -> PeerTime | None:
        """The timed peer with the smallest ratio; None if no peer was timed."""
        return min(
            (peer for peer in self.peers if peer.ms is not None), key=self.ratio_to, default=None
        )

    @property
    def ratio(self) -> float | None:
        """The strongest peer's time divided by ours; None if no peer was timed."""
        return None if self.strongest is None else self.ratio_to(self.strongest)

    def record(self) -> dict[str, Any]:
        """The measurements as a JSON object; `measured_of_record` reads it."""
        case = asdict(self.case)
        return {
            "name": case.pop("name"),
            "case": case,
            "boundary": self.case.boundary,
            "algorithm": self.algorithm,
            "ms": self.ms,
            "best_ms": self.best_ms,
            "call_ms": self.call_ms,
            "predicted_ms": self.predicted_ms,
            "flops": self.case.flops,
            "flops_counted": "direct sum" if self.case.shape == "dense" else "three passes",
            "bytes": self.case.bytes_moved,
            "gflops": self.gflops,
            "limits": self.limits.record(),
            "limit_ms": self.limit_ms,
            "bound": self.bound,
            "share_of_limit": self.share,
            "error": self.error,
            "strongest_peer": None if self.strongest is None else self.strongest.name,
            "ratio": self.ratio,
            "peers": [asdict(peer) for peer in self.peers],
        }


def measured_of_record(record: dict[str, Any]) -> Measured:
    """The measurements of a JSON object that `Measured.record` made."""
    case: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in record["case"].items()
    }
    figures: dict[str, Any] = {
        name: record[name]
        for name in ("algorithm", "ms", "best_ms", "call_ms", "predicted_ms", "error")
    }
    peers = [PeerTime(**peer) for peer in record["peers"]]
    return Measured(
        Case(record["name"], **case), **figures, limits=Limits(**record["limits"]), peers=peers
    )


class _Contestant:
    """A function that is timed in turn with others.

    times : list of float   seconds of a call, one for each round
    """

    def __init__(self, name: str, run: Callable[[], Any], settings: Settings) -> None:
        self.name, self.run, self.settings = name, run, settings
        self.times: list[float] = []
        self._spent = 0.0  # seconds, of all calls

    def warm_up(self) -> Any:
        """Call the function once, before all turns, and return its result."""
        started = time.perf_counter()
        result = self.run()
        self._first = time.perf_counter() - started
        if self._first > LONG:
            self.times.append(self._first)
        self._spent += self._first
        return result

    def take_turn(self) -> None:
        """Time one round, unless all rounds are timed or the budget is spent."""
        out_of_budget = self.times and self._spent > self.settings.budget
        if len(self.times) >= self.settings.repeats or out_of_budget:
            return
        time.sleep(PAUSE)
        started = begun = time.perf_counter()
        if self._first < SHORT:
            self.run()
            begun = time.perf_counter()
        calls = max(1, int(MIN_TURN / max(begun - started, 1e-6))) if self._first < SHORT else 1
        for _ in range(calls):
            self.run()
        ended = time.perf_counter()
        self.times.append((ended - begun) / calls)
        self._spent += ended - started

    @property
    def ms(self) -> float:
        """The median time of a call in milliseconds."""
        return 1e3 * statistics.median(self.times)


def run_case(case: Case, settings: Settings, team: Team) -> Measured:
    """Measure one case, and the machine's limits before and after it."""
    limits = measure_limits(settings.threads, 7)
    volume, weights = case.volume(), case.weights()
    problem = case.problem
    plan = make_plan(problem, weights, threads=settings.threads)
    out = np.empty((*problem.out_size, problem.filters), np.float32)
    planes = problem.source_indices(0, 0, problem.out_size[0])
    kernel = weights[..., 0, 0] if case.is_filter else weights

    def run_engine() -> None:
        plan.convolve_slab(volume, out, planes, team)

    def call_conv3d() -> Array:
        return conv3d(
            volume,
            kernel,
            strides=case.strides,
            padding=case.padding,
            dilation_rate=case.dilation_rate,
            groups=case.groups,
            boundary=case.boundary,
            threads=settings.threads,
        )

    engine = _Contestant("conv3d", run_engine, settings)
    function = _Contestant("conv3d()", call_conv3d, settings)
    engine.warm_up()
    function.warm_up()
    error = sampled_error(case, volume, weights, out)
    contestants, peers, timed = [engine, function], [], []
    if settings.with_peers:
        scale = np.abs(weights).sum(axis=(0, 1, 2, 3)) * max(float(np.abs(volume).max()), 1e-30)
        for peer, contestant in _ready_peers(case, volume, weights, out, scale, settings):
            peers.append(peer)
            if contestant is not None:
                timed.append((peer, contestant))
                contestants.append(contestant)
    for _ in range(settings.repeats):
        for contestant in contestants:
            contestant.take_turn()
    for peer, contestant in timed:
        peer.ms = contestant.ms
    return Measured(
        case,
        plan.algorithm.name,
        ms=engine.ms,
        best_ms=1e3 * min(engine.times),
        call_ms=function.ms,
        predicted_ms=1e3 * plan.seconds[plan.algorithm.name],
        error=error,
        limits=limits.better(measure_limits(settings.threads, 7)),
        peers=peers,
    )


def _ready_peers(
    case: Case, volume: Array, weights: Array, out: Array, scale: Array, settings: Settings
) -> Iterator[tuple[PeerTime, _Contestant | None]]:
    """Prepare every installed peer that takes the case, and compare its result with ours.

    Yields None in place of a contestant that is not to be timed.
    """
    packages = installed()
    for peer in PEERS:
        if peer.package not in packages or not peer.takes(case):
            continue
        result = PeerTime(peer.name, peer.fills)
        seconds = peer.seconds(case, settings.threads)
        if seconds > settings.patience:
            result.note = f"left out: would take about {seconds:.0f} s"
            yield result, None
            continue
        try:
            call = peer.ready(case, volume, weights)
            contestant = _Contestant(peer.name, call.run, settings)
            result.error = _difference(call, contestant.warm_up(), out, scale)
        except Exception as error:  # no error of another library may end the run
            result.note = f"failed: {' '.join(str(error).split())[:200]}"
            yield result, None
            continue
        if not result.error <= call.tolerance:
            result.note = f"left out: differs from conv3d by {result.error:.1e} of sum|w| max|x|"
            yield result, None
            continue
        yield result, contestant


def _difference(call: Call, result: Any, out: Array, scale: Array) -> float:
    """The largest difference from ours, as a fraction of each filter's scale; inf for NaN.

    scale : (filters,)      sum|w| * max|x|
    """
    theirs = call.array(result)
    if theirs.shape != out.shape:
        return math.inf
    inner = tuple(slice(call.edge, n - call.edge) for n in out.shape[:3])
    if out[inner].size == 0:
        return 0.0
    worst = 0.0
    for plane, other in zip(out[inner], theirs[inner], strict=True):
        error = np.abs(plane - other).max(axis=(0, 1)) / scale
        worst = max(worst, float(error.max())) if np.isfinite(error).all() else math.inf
    return worst


def sampled_error(
    case: Case, volume: Array, weights: Array, out: Array, samples: int = 64
) -> float:
    """The largest error of an output, by a direct sum in float64 at random voxels and the corners.

    out : (D', H', W', filters)     the output to check
    samples : int                   random voxels, beside the eight corners

    Returns a fraction of sum|w| * max|x|; inf if a sampled voxel is NaN or infinite.

    >>> case = Case("small", "dense", (4, 4, 4), (3, 3, 3))
    >>> volume, weights = case.volume(), case.weights()
    >>> out = conv3d(volume, weights, padding=case.padding, boundary=case.boundary)
    >>> sampled_error(case, volume, weights, out) < 1e-6
    True
    """
    problem = case.problem
    rng = np.random.default_rng(2)
    corners = itertools.product(*([0, n - 1] for n in problem.out_size))
    voxels = [*corners, *rng.integers(0, problem.out_size, (samples, 3)).tolist()]
    tables = [
        np.array(problem.source_indices(axis, 0, problem.out_size[axis])) for axis in range(3)
    ]
    taps = [
        np.arange(k) * d for k, d in zip(problem.kernel_size, problem.dilation_rate, strict=True)
    ]
    exact = weights.astype(np.float64)
    scale = np.abs(exact).sum(axis=(0, 1, 2, 3)) * max(float(np.abs(volume).max()), 1e-30)
    channels, filters = problem.channels_per_group, problem.filters_per_group
    worst = 0.0
    for voxel in voxels:
        d, h, w = (
            table[o * s + tap]
            for table, o, s, tap in zip(tables, voxel, problem.strides, taps, strict=True)
        )
        patch = volume[np.ix_(d, h, w)].astype(np.float64)
        inside = (d >= 0)[:, None, None] & (h >= 0)[:, None] & (w >= 0)
        patch[~inside] = problem.boundary.value
        for group in range(problem.groups):
            own = slice(group * filters, (group + 1) * filters)
            read = slice(group * channels, (group + 1) * channels)
            sums = np.tensordot(patch[..., read], exact[..., own], 4)
            error = np.abs(out[tuple(voxel)][own] - sums) / scale[own]
            worst = max(worst, float(error.max())) if np.isfinite(error).all() else math.inf
    return worst


def run_cases(
    cases: list[Case], settings: Settings, progress: Callable[[str], None] = lambda text: None
) -> Iterator[Measured]:
    """Measure one case after another.

    progress : callable     is given the name of each case before it starts
    """
    packages = installed() if settings.with_peers else {}
    with threads_for_all(settings.threads, packages), Team(settings.threads) as team:
        for case in cases:
            progress(case.name)
            yield run_case(case, settings, team)
            gc.collect()


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for the next allocation; False if it cannot.

    Otherwise a large result is new memory in every call, and to touch it first costs more than a
    small convolution. Libraries that allocate results or large buffers in every call (PyTorch above
    all) become several times faster by this; conv3d does not need it.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        trim_threshold, most_mappings = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        return bool(
            library.mallopt(most_mappings, 0) and library.mallopt(trim_threshold, 2**31 - 1)
        )
    return False
