"""Cases timed: our engine and every peer in turn, warm, on the same volume and with as many threads.

Contestants take turns, round after round, so that a machine that slows down or a neighbour that wakes up hits all alike. The
median of a contestant's rounds counts. Before each turn there is a pause, in which threads that the last contestant left spinning
go to sleep (OpenMP's do so for some milliseconds), and an untimed call where calls are short, which wakes the contestant's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.api import conv3d
from conv3d_cli.bench.cases import Case
from conv3d_cli.bench.limits import Limits, measure_limits
from conv3d_cli.bench.peers import PEERS, Call, installed, threads_for_all
from conv3d_cli.engine import Team, make_plan

Array = NDArray[Any]
PAUSE = 0.02  # seconds before each turn
SHORT = 0.2  # seconds: calls up to here are made once untimed before the timed ones
LEAST = 0.005  # seconds: calls are repeated in a turn up to here, and their mean counts
LONG = 2.0  # seconds: of such calls the first one counts, too
BUDGET = (
    4.0  # seconds a contestant may take for all its rounds; a first and a second call in any case
)


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    repeats : int           rounds, where the budget allows
    patience : float        peers that would take more seconds a call are left out
    with_peers : bool
    """

    threads: int
    repeats: int = 9
    patience: float = 15.0
    with_peers: bool = True
    budget: float = BUDGET


@dataclass
class PeerTime:
    """What became of a peer: its median time, or why there is none.

    fills : bool            into an output at hand, as our `ms`; else it allocates one, as our `call_ms`
    error : float           largest difference from ours, as a part of sum|w| * max|x|
    """

    name: str
    fills: bool = False
    ms: float | None = None
    error: float | None = None
    note: str = ""


@dataclass
class Measured:
    """A case's figures; times in milliseconds, all numbers in float32 but where `dtype` says otherwise.

    ms, best_ms : float     our engine with its plan made and its output at hand: median, and the least
    call_ms : float         the function `conv3d()`, which plans and allocates as well
    predicted_ms : float    by the plan
    flops, bytes : float    what the limit counts; flops are those of the direct sum but for separable kernels (three passes)
    error : float           largest difference from float64 on sampled voxels, as a part of sum|w| * max|x|
    limits : Limits         the better of those just before and just after: memory is shared with whatever else runs, so
                            bandwidth changes from minute to minute
    peers : list            in the order of `PEERS`
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
        """The least time on this machine."""
        return 1e3 * self.limits.seconds(self.case.flops, self.case.bytes_moved)[0]

    @property
    def bound(self) -> str:
        """What binds: "fma" or "memory"."""
        return self.limits.seconds(self.case.flops, self.case.bytes_moved)[1]

    @property
    def share(self) -> float:
        """Part of the machine's limit."""
        return self.limit_ms / self.ms

    @property
    def gflops(self) -> float:
        """GFLOP/s of the counted operations."""
        return self.case.flops / self.ms / 1e6

    def ratio_to(self, peer: PeerTime) -> float:
        """How many times ours a peer takes: of the engine's time where both fill an output, of the call's where both allocate."""
        return math.inf if peer.ms is None else peer.ms / (self.ms if peer.fills else self.call_ms)

    @property
    def strongest(self) -> PeerTime | None:
        """The peer with the least ratio of those that computed the same."""
        return min(
            (peer for peer in self.peers if peer.ms is not None), key=self.ratio_to, default=None
        )

    @property
    def ratio(self) -> float | None:
        """How many times ours the strongest peer takes."""
        return None if self.strongest is None else self.ratio_to(self.strongest)

    def record(self) -> dict[str, Any]:
        """As JSON."""
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
    """What `Measured.record` gave."""
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
    """Something to be timed in turn with others."""

    def __init__(self, name: str, run: Callable[[], Any], settings: Settings) -> None:
        self.name, self.run, self.settings = name, run, settings
        self.times: list[float] = []
        self.spent = 0.0

    def first(self) -> Any:
        """The call that warms up; its result."""
        started = time.perf_counter()
        result = self.run()
        self._first = time.perf_counter() - started
        if self._first > LONG:
            self.times.append(self._first)
        self.spent += self._first
        return result

    def turn(self) -> None:
        """One timed call, unless there were enough."""
        if len(self.times) >= self.settings.repeats or (
            self.times and self.spent > self.settings.budget
        ):
            return
        time.sleep(PAUSE)
        started = begun = time.perf_counter()
        if self._first < SHORT:
            self.run()
            begun = time.perf_counter()
        calls = max(1, int(LEAST / max(begun - started, 1e-6))) if self._first < SHORT else 1
        for _ in range(calls):
            self.run()
        ended = time.perf_counter()
        self.times.append((ended - begun) / calls)
        self.spent += ended - started

    @property
    def ms(self) -> float:
        return 1e3 * statistics.median(self.times)


def run_case(case: Case, settings: Settings, team: Team) -> Measured:
    """Measure one case, with the machine's limits before and after."""
    limits = measure_limits(settings.threads, 7)
    volume, weights = case.volume(), case.weights()
    problem = case.problem
    plan = make_plan(problem, weights, threads=settings.threads)
    out = np.empty((*problem.out_size, problem.filters), np.float32)
    planes = problem.source_indices(0, 0, problem.out_size[0])
    kernel = weights[..., 0, 0] if case.is_filter else weights

    def ours() -> None:
        plan.convolve_slab(volume, out, planes, team)

    def call() -> Array:
        return conv3d(
            volume, kernel, strides=case.strides, padding=case.padding, dilation_rate=case.dilation_rate,
            groups=case.groups, boundary=case.boundary, threads=settings.threads,
        )  # fmt: skip

    engine = _Contestant("conv3d", ours, settings)
    engine.first()
    contestants = [engine, _Contestant("conv3d()", call, settings)]
    contestants[1].first()
    error = sampled_error(case, volume, weights, out)
    peers, timed = [], []
    if settings.with_peers:
        scale = np.abs(weights).sum(axis=(0, 1, 2, 3)) * max(float(np.abs(volume).max()), 1e-30)
        for peer, entrant in _ready_peers(case, volume, weights, out, scale, settings):
            peers.append(peer)
            if entrant is not None:
                timed.append((peer, entrant))
                contestants.append(entrant)
    for _ in range(settings.repeats):
        for contestant in contestants:
            contestant.turn()
    for peer, entrant in timed:
        peer.ms = entrant.ms
    return Measured(
        case, plan.algorithm.name, engine.ms, 1e3 * min(engine.times), contestants[1].ms,
        1e3 * plan.seconds[plan.algorithm.name], error, limits.better(measure_limits(settings.threads, 7)), peers,
    )  # fmt: skip


def _ready_peers(
    case: Case, volume: Array, weights: Array, out: Array, scale: Array, settings: Settings
) -> Iterator[tuple[PeerTime, _Contestant | None]]:
    """Every installed peer of a case, compared with our result; None for those that are not to be timed."""
    packages = installed()
    for peer in PEERS:
        if peer.package not in packages or not peer.takes(case):
            continue
        result = PeerTime(peer.name, peer.fills)
        about = peer.seconds(case, settings.threads)
        if about > settings.patience:
            result.note = f"left out: would take about {about:.0f} s"
            yield result, None
            continue
        try:
            call = peer.ready(case, volume, weights)
            entrant = _Contestant(peer.name, call.run, settings)
            result.error = _difference(call, entrant.first(), out, scale)
        except Exception as error:  # whatever another library raises must not end the run
            result.note = f"failed: {' '.join(str(error).split())[:200]}"
            yield result, None
            continue
        if not result.error <= call.tolerance:
            result.note = f"left out: differs from conv3d by {result.error:.1e} of sum|w| max|x|"
            yield result, None
            continue
        yield result, entrant


def _difference(call: Call, result: Any, out: Array, scale: Array) -> float:
    """Largest difference from ours, as a part of each filter's scale."""
    theirs = call.array(result)
    if theirs.shape != out.shape:
        return math.inf
    inner = tuple(slice(call.edge, n - call.edge) for n in out.shape[:3])
    if out[inner].size == 0:
        return 0.0
    worst = 0.0
    for plane, other in zip(out[inner], theirs[inner], strict=True):
        gap = np.abs(plane - other).max(axis=(0, 1)) / scale
        worst = max(worst, float(gap.max())) if np.isfinite(gap).all() else math.inf
    return worst


def sampled_error(
    case: Case, volume: Array, weights: Array, out: Array, samples: int = 64
) -> float:
    """Largest difference from the definition in float64, on random voxels and the corners, as a part of sum|w| * max|x|."""
    problem = case.problem
    rng = np.random.default_rng(2)
    places = [[corner >> axis & 1 for axis in range(3)] for corner in range(8)]
    voxels = [
        [bit * (n - 1) for bit, n in zip(place, problem.out_size, strict=True)] for place in places
    ]
    voxels += rng.integers(0, problem.out_size, (samples, 3)).tolist()
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
        at = [t[o * s + k] for t, o, s, k in zip(tables, voxel, problem.strides, taps, strict=True)]
        patch = volume[np.ix_(*at)].astype(np.float64)
        inside = (at[0] >= 0)[:, None, None] & (at[1] >= 0)[:, None] & (at[2] >= 0)
        patch[~inside] = problem.boundary.value
        for group in range(problem.groups):
            own = slice(group * filters, (group + 1) * filters)
            sums = np.tensordot(
                patch[..., group * channels : (group + 1) * channels], exact[..., own], 4
            )
            gap = np.abs(out[tuple(voxel)][own] - sums) / scale[own]
            worst = max(worst, float(gap.max())) if np.isfinite(gap).all() else math.inf
    return worst


def run_cases(
    cases: list[Case], settings: Settings, said: Callable[[str], None] = lambda text: None
) -> Iterator[Measured]:
    """Measure cases one after another; `said` is told the name of each before it begins."""
    packages = installed() if settings.with_peers else {}
    with threads_for_all(settings.threads, packages), Team(settings.threads) as team:
        for case in cases:
            said(case.name)
            yield run_case(case, settings, team)
            gc.collect()


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed for the next allocation; False where it cannot be asked.

    A large result is new memory at every call, and its first touch costs more than a small convolution. Libraries that
    allocate their result or large buffers at each call (PyTorch above all) gain several times from this; ours does not need it.
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
