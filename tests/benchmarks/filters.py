"""One-channel filters in memory, beside scipy.ndimage, in the same run: `make bench`.

Prints milliseconds (median), million voxels a second, and how many times faster than SciPy. Results are compared first.

    python tests/benchmarks/filters.py [--size 256] [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.ndimage

from conv3d_cli import conv3d
from conv3d_cli.machine import usable_cpus


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median over `repeats` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    n = options.size
    print(f"{n}^3 voxels, one channel, {usable_cpus()} CPUs")
    print(f"{'kernel':>8} {'source':>8} {'conv3d ms':>10} {'Mvoxel/s':>9} {'Gflop/s':>8} {'scipy ms':>9} {'ratio':>7}")
    for dtype in ("float32", "int16"):
        volume = (100 * rng.standard_normal((n, n, n))).astype(dtype)
        as_float = volume.astype(np.float32)
        for k in (3, 5, 7):
            kernel = rng.standard_normal((k, k, k))

            def ours(volume: np.ndarray = volume, kernel: np.ndarray = kernel) -> np.ndarray:
                return conv3d(volume, kernel, padding="same", boundary="symmetric")

            def theirs(volume: np.ndarray = as_float, kernel: np.ndarray = kernel) -> np.ndarray:
                return scipy.ndimage.correlate(volume, kernel, mode="reflect")

            error = np.abs(ours() - theirs()).max() / (np.abs(kernel).sum() * np.abs(as_float).max())
            assert error < 2e-6, error
            mine, other = milliseconds(ours, options.repeats), milliseconds(theirs, 1)
            rate, flops = n**3 / mine / 1e3, 2 * k**3 * n**3 / mine / 1e6
            name = f"{k}x{k}x{k}"
            print(f"{name:>8} {dtype:>8} {mine:>10.1f} {rate:>9.0f} {flops:>8.0f} {other:>9.0f} {other / mine:>6.1f}x")


if __name__ == "__main__":
    main()
