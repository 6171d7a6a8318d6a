"""Why the engine runs its loops on a team of plain threads and not with `prange`: both, in the same run.

The same loop over blocks that take some hundred microseconds each, as a packed tile does: once as `prange`, once handed out
block by block to threads. Prints the time of a warm call, and of the first call (compilation) in this process.

    python tests/benchmarks/team_against_prange.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numba
import numpy as np

from conv3d_cli.engine import Team
from conv3d_cli.system.machine import usable_cpus

OPTIONS = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
BLOCKS, NUMBERS, SWEEPS = 256, 1 << 16, 16


@numba.njit(parallel=True, **OPTIONS)
def prange_loops(x, out):
    # x, out: (blocks, n)
    for block in numba.prange(x.shape[0]):
        for _ in range(SWEEPS):
            for i in range(1, x.shape[1] - 1):
                out[block, i] += 0.25 * x[block, i - 1] + 0.5 * x[block, i] + 0.25 * x[block, i + 1]


@numba.njit(**OPTIONS)
def block_loops(x, out):
    # x, out: (n,)
    for _ in range(SWEEPS):
        for i in range(1, x.size - 1):
            out[i] += 0.25 * x[i - 1] + 0.5 * x[i] + 0.25 * x[i + 1]


def timed(call: Callable[[], object], repeats: int = 20) -> tuple[float, float]:
    """Milliseconds of the first call, and the median of the others."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times[0], statistics.median(times[1:])


def main() -> None:
    """Print both."""
    x = np.random.default_rng(0).standard_normal((BLOCKS, NUMBERS)).astype(np.float32)
    one, two = np.zeros_like(x), np.zeros_like(x)
    threads = usable_cpus()
    numba.set_num_threads(threads)
    with Team(threads) as team:
        team_first, team_warm = timed(
            lambda: team.run(BLOCKS, lambda worker, block: block_loops(x[block], one[block]))
        )
    prange_first, prange_warm = timed(lambda: prange_loops(x, two))
    assert np.array_equal(one, two)
    print(
        f"{threads} threads, {BLOCKS} blocks of {1e3 * team_warm * threads / BLOCKS:.0f} microseconds each; milliseconds"
    )
    print(f"{'':>8} {'first call':>11} {'warm call':>10}")
    print(f"{'team':>8} {team_first:>11.0f} {team_warm:>10.2f}")
    print(
        f"{'prange':>8} {prange_first:>11.0f} {prange_warm:>10.2f}   (threading layer: {numba.threading_layer()})"
    )


if __name__ == "__main__":
    main()
