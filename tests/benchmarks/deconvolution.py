"""Richardson-Lucy deconvolution beside other libraries: seconds of CPU time, in turn.

    python -m pip install RedLionfish scikit-image SimpleITK
    python tests/benchmarks/deconvolution.py [--rounds 3] [--size 128,256,256]
    python tests/benchmarks/deconvolution.py --large 512,1024,1024 [--dtype float32]

Each library deconvolves the same volume by 5 iterations with a kernel of 31x15x15 weights that is
not separable, round after round; what is printed is the least time of each and its ratio to ours.
Estimates are compared inside first, where borders do not matter. Ours is the function `operate()`,
which reads the kernel, plans and allocates, as the others do.

--large measures ours alone, as a whole process from a TIFF of this size to another one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from processes_measured import conv3d_command, measured, stack_of

from conv3d_cli import Kernel, operate

ITERATIONS = 5
TARGETS = {"RedLionfish": 3, "scikit-image": 8, "SimpleITK": 30}


def problem(size: tuple[int, int, int]) -> tuple[Any, Any]:
    """Blurred points with noise, and the kernel: float32."""
    rng = np.random.default_rng(0)
    d, h, w = np.meshgrid(*(np.linspace(-3, 3, n) for n in (31, 15, 15)), indexing="ij")
    psf = np.exp(-(d * d + h * h + w * w) / 2) * (1 + 0.3 * np.cos(3 * d * h + w))
    psf = (psf / psf.sum()).astype(np.float32)
    return (rng.random(size, dtype=np.float32) ** 6 + np.float32(0.05)), psf


def ours(y: Any, psf: Any) -> Any:
    return operate(y, f"deconvolve:iterations={ITERATIONS}", Kernel(psf))


def redlionfish() -> Callable[[Any, Any], Any]:
    import RedLionfishDeconv

    def run(y: Any, psf: Any) -> Any:
        return RedLionfishDeconv.doRLDeconvolutionFromNpArrays(
            y, psf, niter=ITERATIONS, method="cpu"
        )

    return run


def scikit_image() -> Callable[[Any, Any], Any]:
    from skimage.restoration import richardson_lucy

    return lambda y, psf: richardson_lucy(y, psf, num_iter=ITERATIONS, clip=False)


def simpleitk() -> Callable[[Any, Any], Any]:
    import SimpleITK

    def run(y: Any, psf: Any) -> Any:
        image, kernel = SimpleITK.GetImageFromArray(y), SimpleITK.GetImageFromArray(psf)
        found = SimpleITK.RichardsonLucyDeconvolution(image, kernel, ITERATIONS)
        return SimpleITK.GetArrayFromImage(found)

    return run


def whole(size: tuple[int, int, int], dtype: str) -> None:
    """Print the CPU time and the memory of `conv3d deconvolve`, from file to file."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        source, psf, target = (f"{folder}/{name}" for name in ("y.tif", "psf.npy", "x.tif"))

        def plane(_: int) -> Any:
            return 1000 * rng.random(size[1:], dtype=np.float32) ** 6 + np.float32(50)

        stack_of(source, size, dtype, plane)
        np.save(psf, problem((1, 1, 1))[1])
        command = [conv3d_command(), "deconvolve", source, "-k", psf, "-o", target]
        cpu, memory = measured([*command, "--iterations", str(ITERATIONS), "-q"])
        gigabytes = os.path.getsize(source) / 1e9
        print(f"{gigabytes:.2f} GB of {dtype}: {cpu:.1f} s CPU, {memory:.0f} MB")


PEERS = {"RedLionfish": redlionfish, "scikit-image": scikit_image, "SimpleITK": simpleitk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="128,256,256")
    parser.add_argument("--large", metavar="SIZE")
    parser.add_argument("--dtype", default="uint16")
    given = parser.parse_args()
    if given.large:
        d, h, w = map(int, given.large.split(","))
        whole((d, h, w), given.dtype)
        return
    d, h, w = map(int, given.size.split(","))
    y, psf = problem((d, h, w))
    runs: dict[str, Callable[[Any, Any], Any]] = {"conv3d": ours}
    for name, make in PEERS.items():
        try:
            runs[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    best: dict[str, float] = {}
    estimates = {}
    for _ in range(given.rounds):
        for name, run in runs.items():
            started = time.process_time()
            estimates[name] = run(y, psf)
            best[name] = min(best.get(name, np.inf), time.process_time() - started)
    inside = tuple(slice(n // 4, n - n // 4) for n in y.shape)
    for name, seconds in best.items():
        # SimpleITK begins with the volume instead of a constant
        off = np.abs(estimates[name] - estimates["conv3d"])[inside].max()
        off /= np.abs(estimates["conv3d"][inside]).max()
        target = f" (target {TARGETS[name]})" if name in TARGETS else ""
        ratio = seconds / best["conv3d"]
        print(f"{name:13s} {seconds:8.3f} s CPU {ratio:6.2f}{target}  differs inside by {off:.1e}")


if __name__ == "__main__":
    main()
