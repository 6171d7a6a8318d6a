"""Local statistics and template matching beside SciPy, SimpleITK and scikit-image: CPU time, in turn.

python tests/benchmarks/windows.py [--rounds 5] [--size 128,256,256] [--peers FOLDER]

Arrays in memory, one thread each; the smallest CPU time of the rounds counts. Peers that are not installed are left out;
--peers names the site-packages of another environment that has them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from conv3d_cli import Kernel, operate

Array = np.ndarray[Any, Any]
Call = Callable[[], Array]
TARGETS = {
    ("std 7^3", "SciPy"): 5,
    ("std 7^3", "SimpleITK"): 100,
    ("match 15^3", "scikit-image"): 8,
}


def of_scipy(x: Array, of: Callable[[Array], Array]) -> Call:
    """The standard deviation by the means of x and of its square, which cancels for large x."""

    def call() -> Array:
        mean = of(x)
        return np.asarray(np.sqrt(np.maximum(of(x * x) - mean * mean, 0)))

    return call


def cases(x: Array) -> dict[str, dict[str, Call]]:
    """Case -> who computes it -> how."""
    found: dict[str, dict[str, Call]] = {}
    ramp = np.linspace(-1, 1, 15)
    template = np.random.default_rng(1).standard_normal((15, 15, 15)).astype(np.float32)
    template += (3 * ramp).astype(np.float32)

    def local(text: str) -> Call:
        return lambda: np.asarray(operate(x, f"local:statistic=std:{text}", threads=1))

    for name, text in {
        "std 7^3": "size=7",
        "std 15^3": "size=15",
        "std 31^3": "size=31",
        "std Gaussian 2": "sigma=2vox",
        "std ball 3": "radius=3vox",
        "std 7^3, sample": "size=7:ddof=1",
    }.items():
        found[name] = {"conv3d": local(text)}
    found["match 15^3"] = {
        "conv3d": lambda: np.asarray(
            operate(x, "match", Kernel(template), boundary="zeros", threads=1)
        )
    }
    if find_spec("scipy"):
        from scipy import ndimage

        for size in (7, 15, 31):
            found[f"std {size}^3"]["SciPy"] = of_scipy(
                x,
                lambda a, size=size: ndimage.uniform_filter(a, size),  # type: ignore[misc]
            )
        found["std Gaussian 2"]["SciPy"] = of_scipy(x, lambda a: ndimage.gaussian_filter(a, 2.0))
    if find_spec("SimpleITK"):
        import SimpleITK

        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

        def noise() -> Array:
            image = SimpleITK.Noise(SimpleITK.GetImageFromArray(x), [3, 3, 3])
            return np.asarray(SimpleITK.GetArrayFromImage(image))

        found["std 7^3"]["SimpleITK"] = found["std 7^3, sample"]["SimpleITK"] = noise
    if find_spec("skimage"):
        from skimage.feature import match_template

        found["match 15^3"]["scikit-image"] = lambda: np.asarray(
            match_template(x, template, pad_input=True)
        )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="128,256,256")
    parser.add_argument("--peers", help="a folder with more libraries")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    size = tuple(map(int, options.size.split(",")))
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    best: dict[tuple[str, str], float] = {}
    outputs: dict[tuple[str, str], Array] = {}
    every = cases(x)
    for number in range(options.rounds):
        for name, calls in every.items():
            for who, call in calls.items():
                if number > 1 and best[name, who] > 5:
                    continue  # twice is enough
                began = time.process_time()
                outputs[name, who] = call()
                took = time.process_time() - began
                if number or who != "conv3d":  # the first call may compile
                    best[name, who] = min(best.get((name, who), took), took)
    inner = tuple(slice(16, -16) for _ in size)
    print(
        f"{'case':18} {'who':14} {'CPU ms':>9} {'ratio':>7} {'target':>7} {'largest difference':>19}"
    )
    for (name, who), seconds in best.items():
        ratio = seconds / best[name, "conv3d"]
        target = TARGETS.get((name, who))
        differs = np.abs(outputs[name, who][inner] - outputs[name, "conv3d"][inner]).max()
        print(
            f"{name:18} {who:14} {1e3 * seconds:9.0f} {ratio:7.1f} {target or '':>7} "
            f"{'' if who == 'conv3d' else f'{differs:.1e}':>19}"
        )


if __name__ == "__main__":
    main()
