"""Ridges and tensors beside scikit-image and bioimage-cpp: CPU time of each, in turn, on one core.

python tests/benchmarks/ridges.py [--rounds 3] [--size 128,256,256] [--sigma 2] [--skip skimage]
python tests/benchmarks/ridges.py --large 828,882,871 [--dtype uint8] [--scales 1,2,3,4vox]

Libraries that are not installed are left out. Times are CPU seconds of the process, the least of
all rounds; scikit-image runs once, since it takes so long. Ours are whole calls of `operate()`,
with reading, slabs and the output. --large measures `conv3d ridges` alone, as a whole process from
a TIFF of this size to another one, with all cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from processes_measured import conv3d_command, measured, stack_of, tubes

from conv3d_cli import operate

Array = np.ndarray[Any, Any]


def ours(text: str) -> Callable[[Array], Array]:
    """A call of ours on one thread."""
    return lambda x: np.asarray(operate(x, text, threads=1))


def peers(sigma: float) -> dict[str, tuple[str, dict[str, Callable[[Array], Any]]]]:
    """What is compared: name -> (our text, the calls of others)."""
    calls: dict[str, tuple[str, dict[str, Callable[[Array], Any]]]] = {
        "Hessian eigenvalues": (f"tensor:of=hessian:sigma={sigma}vox", {}),
        "structure tensor eigenvalues": (f"tensor:sigma={sigma}vox:window=3vox", {}),
        "frangi": (f"ridges:scales={sigma}vox", {}),
        "sato": (f"ridges:scales={sigma}vox:method=sato", {}),
        "meijering": (f"ridges:scales={sigma}vox:method=meijering", {}),
    }
    if importlib.util.find_spec("bioimage_cpp"):
        from bioimage_cpp import filters

        calls["Hessian eigenvalues"][1]["bioimage-cpp"] = lambda x: (
            filters.hessian_of_gaussian_eigenvalues(x, sigma)
        )
        calls["structure tensor eigenvalues"][1]["bioimage-cpp"] = lambda x: (
            filters.structure_tensor_eigenvalues(x, sigma, 3.0)
        )
    if importlib.util.find_spec("skimage"):
        from skimage import feature
        from skimage import filters as ridges

        options: dict[str, Any] = {"sigmas": [sigma], "black_ridges": False}
        calls["Hessian eigenvalues"][1]["scikit-image"] = lambda x: feature.hessian_matrix_eigvals(
            feature.hessian_matrix(x, sigma, mode="reflect", use_gaussian_derivatives=True)
        )
        calls["structure tensor eigenvalues"][1]["scikit-image"] = lambda x: (
            feature.structure_tensor_eigenvalues(feature.structure_tensor(x, sigma, mode="reflect"))
        )
        for name in ("frangi", "sato", "meijering"):
            function = getattr(ridges, name)
            calls[name][1]["scikit-image"] = lambda x, function=function: function(x, **options)
    return calls


def seconds(call: Callable[[Array], Any], x: Array) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    started = time.process_time()
    result = call(x)
    return time.process_time() - started, result


def whole(size: tuple[int, int, int], dtype: str, scales: str) -> None:
    """Print the CPU time and the memory of `conv3d ridges`, from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/x.tif", f"{folder}/ridges.tif"
        stack_of(source, size, dtype, tubes(size))
        command = [conv3d_command(), "ridges", source, "--scales", scales, "-o", target, "-q"]
        cpu, memory = measured(command)
        print(f"{size} of {dtype}, scales {scales}: {cpu:.1f} s CPU, {memory:.0f} MB")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="128,256,256")
    parser.add_argument("--sigma", type=float, default=2.0)
    parser.add_argument("--skip", default="")
    parser.add_argument("--large", metavar="SIZE")
    parser.add_argument("--dtype", default="uint8")
    parser.add_argument("--scales", default="1,2,3,4vox")
    options = parser.parse_args()
    if options.large:
        d, h, w = map(int, options.large.split(","))
        whole((d, h, w), options.dtype, options.scales)
        return
    size = tuple(int(n) for n in options.size.split(","))
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    for name, (text, others) in peers(options.sigma).items():
        call = ours(text)
        call(x)  # the loops are compiled
        calls = {key: other for key, other in others.items() if key != options.skip}
        times: dict[str, float] = {}
        own, found = np.inf, None
        for number in range(options.rounds):
            taken, found = seconds(call, x)
            own = min(own, taken)
            for key, other in calls.items():
                if key == "scikit-image" and number:
                    continue
                taken, result = seconds(other, x)
                times[key] = min(times.get(key, np.inf), taken)
                if key == "scikit-image" and name in ("sato",) and number == 0:
                    inner = (slice(int(4 * options.sigma) + 1, -int(4 * options.sigma) - 1),) * 3
                    apart = np.abs(result - found)[inner].max() / np.abs(found).max()
                    print(f"  {name}: inside, scikit-image differs by {apart:.1e} of the largest")
        told = ", ".join(f"{key} {t:.2f} s ({t / own:.1f} x)" for key, t in times.items())
        print(f"{name:30} {own:.3f} s; {told}")


if __name__ == "__main__":
    main()
