"""Vectors of derivatives and their magnitudes beside SciPy: calls on 256^3 float32, in turn.

python tests/benchmarks/gradients.py [--rounds 5] [--size 256]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from conv3d_cli import conv3d, read_kernel

SIGMA = 2.0
KERNELS = {
    "Sobel": "sobel:axis=dhw",
    "derivative of a Gaussian": f"gaussian_derivative:sigma={SIGMA}vox:axis=dhw",
}


def by_scipy(x: np.ndarray, name: str, magnitude: bool) -> np.ndarray:
    """The same, by SciPy."""
    if name == "Sobel":
        if magnitude:
            return np.asarray(ndimage.generic_gradient_magnitude(x, ndimage.sobel))
        return np.stack([ndimage.sobel(x, axis) for axis in range(3)], axis=-1)
    if magnitude:
        return np.asarray(ndimage.gaussian_gradient_magnitude(x, SIGMA))
    orders = np.eye(3, dtype=int).tolist()
    return np.stack([ndimage.gaussian_filter(x, SIGMA, order=order) for order in orders], axis=-1)


def timed(call: Callable[[], np.ndarray], rounds: int) -> float:
    """Median milliseconds; the first call is not counted."""
    call()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    x = np.random.default_rng(0).standard_normal((options.size,) * 3).astype(np.float32)
    for name, text in KERNELS.items():
        kernel = read_kernel(text)
        for magnitude in (False, True):

            def ours(kernel: object = kernel, magnitude: bool = magnitude) -> np.ndarray:
                return conv3d(x, kernel, padding="same", boundary="symmetric", magnitude=magnitude)  # type: ignore[arg-type]

            theirs = by_scipy(x, name, magnitude)
            error = np.abs(ours() - theirs).max() / np.abs(theirs).max()
            mine = timed(ours, options.rounds)
            other = timed(lambda name=name, magnitude=magnitude: by_scipy(x, name, magnitude), 1)  # type: ignore[misc]
            what = "magnitude" if magnitude else "three components"
            print(
                f"{name}, {what}: {mine:.0f} ms; SciPy {other:.0f} ms; {other / mine:.1f} x; largest difference {error:.1e}"
            )


if __name__ == "__main__":
    main()
