"""The machine's limits: FMA peak and copy bandwidth, measured with the engine's vector width."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from conv3d_cli.engine import Team
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import machine_code
from conv3d_cli.engine.step import Output, Pointer, Source, StepRecord, Tasks

COPY_BYTES = 64 << 20  # a volume of 256^3 float32, the most frequent size in `cases.py`
FMA_ROUNDS = 1_000_000
GROUP_VECTORS = 4  # vectors copied in one iteration of the loop


@dataclass(frozen=True)
class Limits:
    """Peak rates that `threads` threads reach together.

    fma : float             FLOP/s in float32; an FMA counts as two
    copy : float            bytes/s, read and written together; with non-temporal stores if faster
    plain_copy : float      bytes/s with ordinary stores, which first read the line they overwrite
    """

    threads: int
    fma: float
    copy: float
    plain_copy: float

    def seconds(self, flops: float, bytes_moved: float) -> tuple[float, str]:
        """The lower bound in seconds for this work, and the binding limit: "fma" or "memory".

        >>> Limits(1, fma=2e9, copy=1e9, plain_copy=1e9).seconds(1e9, 1e9)
        (1.0, 'memory')
        """
        compute, memory = flops / self.fma, bytes_moved / self.copy
        return max(compute, memory), "fma" if compute > memory else "memory"

    def better(self, other: Limits) -> Limits:
        """The higher of two measurements, for each rate."""
        return Limits(
            self.threads,
            max(self.fma, other.fma),
            max(self.copy, other.copy),
            max(self.plain_copy, other.plain_copy),
        )

    def record(self) -> dict[str, float]:
        """The rates as a JSON object."""
        return asdict(self)


def measure_limits(threads: int, repeats: int = 15) -> Limits:
    """Measure the limits from the best of `repeats` runs: the highest rates, not the usual ones."""
    with Team(threads) as team:
        streamed, plain = (_copy_rate(team, streaming, repeats) for streaming in (1, 0))
        return Limits(threads, _fma_rate(team, repeats), max(streamed, plain), plain)


def _fma_rate(team: Team, repeats: int) -> float:
    cpu = cpu_class()
    # two FMA units of latency 4 or 5 need 8 to 10 independent sums; factor and addend take two more
    # registers
    accumulators = min(12, cpu.registers - 4)
    code = machine_code("limits", "multiply_add", accumulators, cpu.lanes)
    steps = []
    for _ in range(team.threads):
        buffer = np.zeros(4 * cpu.lanes + 64, np.float32)
        buffer[:2] = 0.999, 0.001  # sums stay near 1: neither infinity nor subnormal numbers
        steps.append(StepRecord(Tasks(out_depth=FMA_ROUNDS), Output(buffer)))
    seconds = _best(team, lambda worker, task: code(steps[task]), repeats)
    return 2.0 * accumulators * cpu.lanes * FMA_ROUNDS * team.threads / seconds


def _copy_rate(team: Team, streaming: int, repeats: int) -> float:
    lanes = cpu_class().lanes
    code = machine_code("limits", "copy", lanes, streaming)
    group = 4 * lanes * GROUP_VECTORS
    groups = COPY_BYTES // group // team.threads
    per_thread = groups * group  # bytes
    # np.ones touches every page; the system does not allocate untouched ones
    source = np.ones(per_thread * team.threads + 4096, np.uint8)
    target = np.ones(per_thread * team.threads + 4096, np.uint8)
    # start both at a page boundary
    source_start, target_start = (-array.ctypes.data % 4096 for array in (source, target))
    steps = [
        StepRecord(
            Tasks(out_depth=groups),
            Source(Pointer(source, source_start + worker * per_thread)),
            Output(Pointer(target, target_start + worker * per_thread)),
        )
        for worker in range(team.threads)
    ]
    seconds = _best(team, lambda worker, task: code(steps[task]), repeats)
    return 2.0 * per_thread * team.threads / seconds


def _best(team: Team, work: Callable[[int, int], None], repeats: int) -> float:
    """Seconds of one task on every thread: the 20th percentile, as the minimum may be a fluke."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        team.run(team.threads, work)
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[repeats // 5]
