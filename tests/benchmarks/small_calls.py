"""How long a call of `conv3d()` on a small array takes, beside scipy.ndimage in the same run.

Prints the least microseconds of many calls with the same kernel, with one thread and with all.

    python tests/benchmarks/small_calls.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from conv3d_cli import conv3d

CALLS = 300


def least_microseconds(call: Callable[[], object]) -> float:
    call()
    call()
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1e6 * min(seconds)


def main() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3))
    print("voxels   conv3d, 1 thread   conv3d   scipy.ndimage.correlate")
    for side in (4, 8, 16, 32, 64):
        x = rng.normal(size=(side, side, side)).astype(np.float32)
        one, every = (
            least_microseconds(
                lambda x=x, n=n: conv3d(x, kernel, padding="same", boundary="symmetric", threads=n)
            )
            for n in (1, None)
        )
        theirs = least_microseconds(lambda x=x: ndimage.correlate(x, kernel, mode="reflect"))
        print(f"{side}^3  {one:.0f}  {every:.0f}  {theirs:.0f}")


if __name__ == "__main__":
    main()
