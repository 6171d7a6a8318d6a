"""SHA-256 digests of results: the same on every machine, under every class of CPUs.

    python tests/golden/digests.py                      compare all rows with digests.json
    python tests/golden/digests.py --part plans         compare one part; --quick: its first rows
    python tests/golden/digests.py --write "why"        write digests.json anew, with the reason

`make golden WHY="..."` does the last. $CONV3D_CPU names the class of CPUs; each must give the same.
A digest covers the voxels (dtype, shape, little-endian bytes in C order), never a compressed file;
every NaN counts as the same number, since CPUs give the NaNs that they make different signs.

This file needs NumPy, conv3d and what conv3d needs, no test library: it runs in a bare environment
of another machine, too.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from conv3d_cli import Grid, Volume, conv3d, read_volume, write_volume
from conv3d_cli.engine import ALGORITHMS, make_plan
from conv3d_cli.formats import FORMATS
from conv3d_cli.kernels import BUILTIN_KERNELS
from conv3d_cli.kernels.grammar import build_kernel
from conv3d_cli.model.spec import ConvSpec
from conv3d_cli.settings.presets import PRESETS

FILE = Path(__file__).with_name("digests.json")
Row = tuple[str, Callable[[], Any]]  # name, and what computes its array or text

BOUNDARIES = ("zeros", "nearest", "mirror", "symmetric", "wrap", "constant=2.5")
DTYPES = ("float32", "float64", "int16")
# algorithm -> voxels, channels, groups; kernel size, channels of a group, filters. No size is a
# multiple of a vector, and there are more taps or channels than one chunk of terms has.
PROBLEMS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...]]] = {
    "separable": ((6, 7, 19, 1), 1, (5, 3, 5, 1, 1)),
    "winograd": ((5, 6, 7, 37), 1, (3, 3, 3, 37, 9)),
    "few-filters": ((4, 5, 9, 37), 1, (3, 3, 3, 37, 2)),
    "depthwise": ((4, 5, 9, 24), 24, (3, 3, 5, 1, 24)),
    "channels": ((4, 5, 9, 70), 1, (3, 3, 5, 70, 33)),
    "fft-channels": ((5, 6, 7, 37), 1, (3, 5, 5, 37, 9)),
    "fft": ((6, 7, 19, 1), 1, (5, 5, 5, 1, 1)),
    "sparse": ((6, 7, 19, 1), 1, (5, 5, 5, 1, 1)),
    "direct": ((6, 7, 19, 1), 1, (5, 3, 5, 1, 1)),
}


def digest(values: Any) -> str:
    """The SHA-256 of an array, or of a text."""
    if isinstance(values, str):
        return hashlib.sha256(values.encode()).hexdigest()
    array = np.array(values, order="C")
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    found = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    found.update(array.tobytes())
    return found.hexdigest()


def numbers(*shape: int, seed: int = 1) -> np.ndarray[Any, Any]:
    """Multiples of 2^-20 in [-4, 4), not taken from a function that differs by machine."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (bits >> np.uint64(41)).astype(np.float64).reshape(shape) * 2.0**-20 - 4


def volume_of(algorithm: str, dtype: str) -> np.ndarray[Any, Any]:
    size = PROBLEMS[algorithm][0]
    values = numbers(*size)
    return (values * 1000).astype(np.int16) if dtype == "int16" else values.astype(dtype)


def weights_of(algorithm: str) -> np.ndarray[Any, Any]:
    """Weights of the kind that the algorithm is for."""
    size = PROBLEMS[algorithm][2]
    # a mean, which a mask asks of a filter, needs positive weights
    weights = numbers(*size, seed=2) + (4.5 if is_filter(algorithm) else 0)
    if algorithm == "separable":  # a sum of two outer products
        d, h, w = (numbers(2, n, seed=n) + 4.5 for n in size[:3])
        planes = d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :]
        weights = (planes[0] + planes[1]).reshape(size)
    if algorithm == "sparse":
        weights[numbers(*size, seed=3) < 3] = 0
    return weights


def convolve(
    algorithm: str, dtype: str, has_nan: bool = False, **settings: Any
) -> np.ndarray[Any, Any]:
    """has_nan: one voxel is NaN. Which others are computed again depends on no CPU either."""
    volume, weights = volume_of(algorithm, dtype), weights_of(algorithm)
    if has_nan:
        volume[2, 3, 4, 0] = np.nan
    found = conv3d(
        volume[None],
        weights[..., 0, 0] if is_filter(algorithm) else weights,
        padding="same",
        groups=PROBLEMS[algorithm][1],
        algorithm=algorithm,
        threads=1,
        **settings,
    )
    return np.asarray(found)


def wide_rows() -> Iterator[Row]:
    """Separable kernels on rows of several cache lines, at every kind of beginning in a line.

    Sums begin where the output's lines do, so that only wide rows have whole vectors of them.
    """
    sums = {"one outer product": 1, "a sum of two": 2}
    sizes = {"rows in whole lines": (9, 11, 96, 1), "rows beside lines": (9, 11, 83, 1)}
    for (kind, terms), (place, size) in itertools.product(sums.items(), sizes.items()):
        for dtype, first in itertools.product(("float32", "float64"), (0, 4, 13)):

            def compute(
                terms: int = terms,
                size: tuple[int, ...] = size,
                dtype: str = dtype,
                first: int = first,
            ) -> Any:
                d, h, w = (numbers(terms, n, seed=n) + 4.5 for n in (5, 3, 9))
                weights = (d[:, :, None, None] * h[:, None, :, None] * w[:, None, None, :]).sum(
                    axis=0
                )
                count = int(np.prod(size))
                memory = np.empty(count + 32, dtype)
                first += -memory.ctypes.data // memory.itemsize % 16
                out = memory[first : first + count].reshape(size)
                conv3d(
                    numbers(*size).astype(dtype)[None],
                    weights,
                    padding="same",
                    boundary="mirror",
                    algorithm="separable",
                    threads=1,
                    out=out[None],
                )
                return out

            yield f"separable {kind} {place} {dtype} from {first}", compute


def is_filter(algorithm: str) -> bool:
    """Whether the kernel is one filter for one channel, not a layer, which takes no mean."""
    return PROBLEMS[algorithm][2][3:] == (1, 1)


def engine_rows() -> Iterator[Row]:
    """Every algorithm x dtype x boundary x mask; first each algorithm once."""
    quick = [(name, "float32", "mirror", "") for name in PROBLEMS]
    every = itertools.product(PROBLEMS, DTYPES, BOUNDARIES, ("", "mask", "NaN", "NaN as 0"))
    for algorithm, dtype, boundary, missing in dict.fromkeys([*quick, *every]):
        if missing.startswith("NaN") and dtype == "int16":
            continue
        if missing == "mask" and not is_filter(algorithm):  # a layer takes no mask
            continue

        def compute(
            algorithm: str = algorithm,
            dtype: str = dtype,
            boundary: str = boundary,
            missing: str = missing,
        ) -> Any:
            settings: dict[str, Any] = {"boundary": boundary}
            if missing == "mask":
                size = PROBLEMS[algorithm][0][:3]
                settings |= {"mask": numbers(*size, seed=4) > -1, "mask_mode": "extend"}
            if missing == "NaN as 0":
                settings["nan"] = "zero"
            return convolve(algorithm, dtype, missing.startswith("NaN"), **settings)

        yield " ".join(filter(None, (algorithm, dtype, boundary, missing))), compute


# Voxels of 3 x 1.5 x 2 mm; the same turned, and with axes that are not orthogonal.
TURN = np.array([[0.8, -0.6, 0.0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
SHEAR = np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])
STEPS = np.diag([2.0, 1.5, 3.0])
KERNELS = (
    "identity", "box:size=3", "gaussian:sigma=1.3vox", "gaussian:fwhm=6mm",
    "gaussian:sigma=3,4,5mm:orient=world", "ball:radius=5mm", "ball:radius=2.5vox", "laplacian",
    "log:sigma=1.2vox", "log:sigma=3mm:per=mm", "dog:sigma=1vox", "sobel:axis=w",
    "sobel:axis=xyz:orient=world", "prewitt:axis=h", "scharr:axis=d", "gradient:axis=xyz",
    "gradient:axis=d:per=mm", "gaussian_derivative:sigma=1.1vox:axis=d",
    "gaussian_derivative:sigma=3mm:axis=xyz:per=mm", "gaussian_derivative:sigma=1vox:axis=w:order=2",
    "gaussian_derivative:sigma=3mm:axis=z:order=2:per=mm", "sharpen:amount=0.7",
    "unsharp:sigma=1.5vox:amount=2", "born_wolf:na=0.5:ri=1.1:wavelength=2vox",
    "gibson_lanni:na=0.5:ri=1.1:wavelength=2vox:sample=1.05:depth=3vox", 'expr:"exp(-r**2/9)":radius=4mm',
    'expr:"sinc(d) * cos(h)**3 + tanh(w / 3) ** 2":radius=3vox',
    'expr:"log(1 + r)**1.7 + sin(40*d) * tan(h/5)":radius=2,3,3vox:shape=box',
    *(f"gaussian:sigma=1.7vox:sampling={name}"
      for name in ("fsl", "spm", "afni", "mrtrix", "itk", "imagej", "wb")),
)  # fmt: skip


def grids() -> dict[str, Grid]:
    found = {}
    for name, matrix in {"plain": STEPS, "turned": TURN @ STEPS, "sheared": SHEAR @ STEPS}.items():
        affine = np.eye(4)
        affine[:3, :3] = np.round(matrix, 6)
        found[name] = Grid((3.0, 1.5, 2.0), "mm", affine, anatomical=True)
    return found


def kernel_rows() -> Iterator[Row]:
    """Weights of every built-in kernel, on three grids."""
    missing = {function.__name__ for function in BUILTIN_KERNELS} - {
        text.split(":")[0] for text in KERNELS
    }
    if missing:
        raise SystemExit(f"KERNELS lacks {', '.join(sorted(missing))}")
    for (name, grid), text in itertools.product(grids().items(), KERNELS):
        yield (
            f"{text} {name}",
            lambda text=text, grid=grid: build_kernel(text, BUILTIN_KERNELS, grid).weights,
        )


SIZES = ((16, 16, 16), (91, 109, 91), (256, 256, 256), (1, 1024, 1024))
CHANNELS = ((1, 1, 1), (1, 4, 1), (4, 1, 1), (16, 16, 1), (32, 32, 1), (32, 32, 32), (64, 2, 1))


def plan_rows() -> Iterator[Row]:
    """The planner's choice, by problem and weights; computes nothing."""
    grid = grids()["plain"]

    def chosen(size: tuple[int, int, int], weights: np.ndarray[Any, Any], groups: int) -> str:
        shape = (1, *size, weights.shape[3] * groups)
        problem = ConvSpec(padding="same", groups=groups).resolve(shape, weights.shape)
        plans = [make_plan(problem, weights, dtype=dtype) for dtype in ("float32", "float64")]
        return " ".join(
            f"{plan.algorithm.name} {plan.block_alignment} {sorted(plan.seconds.items())}"
            for plan in plans
        )

    for size in SIZES:
        for text in KERNELS[:13]:
            kernel = build_kernel(text, BUILTIN_KERNELS, grid).weights
            weights = kernel.reshape(*kernel.shape[:3], 1, -1)
            yield f"{size} {text}", lambda s=size, w=weights: chosen(s, w, 1)
        for (channels, filters, groups), k in itertools.product(CHANNELS, (1, 3, 5, 11)):
            if channels * filters * k**3 > 200_000:
                continue
            weights = numbers(k, k, k, channels // groups, filters)
            name = f"{size} {channels}->{filters} groups={groups} {k}^3"
            yield name, lambda s=size, w=weights, g=groups: chosen(s, w, g)


def preset_rows() -> Iterator[Row]:
    """What `apply --like` gives, for every preset."""
    for name in PRESETS:
        yield name, lambda name=name: with_preset(name)


def with_preset(name: str) -> np.ndarray[Any, Any]:
    from conv3d_cli.cli import main

    with tempfile.TemporaryDirectory() as folder:
        source, kernel, out = (f"{folder}/{part}" for part in ("in.nii", "k.npy", "out.npy"))
        values = (numbers(7, 8, 9) * 100).astype(np.float32)
        write_volume(source, Volume(values, "zyx", grid=grids()["plain"]))
        np.save(kernel, numbers(3, 3, 3))
        text = kernel if name in ("keras", "torch") else "gaussian:fwhm=5mm"
        arguments = ["apply", source, "-o", out, "-k", text, "--like", name, "-q", "-j", "1"]
        try:
            main(arguments, standalone_mode=False)
        except SystemExit as end:
            if end.code:
                raise
        return np.load(out)


def format_rows() -> Iterator[Row]:
    """Voxels out of each format that can be written, after the way through a file."""
    for found in FORMATS:
        for suffix in found.suffixes if found.create is not None else ():
            if suffix != "-":
                yield f"{found.name} {suffix}", lambda suffix=suffix: through_file(suffix)


def through_file(suffix: str) -> np.ndarray[Any, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x{suffix}"
        values = convolve("direct", "float32")[0, ..., 0]
        write_volume(path, Volume(np.ascontiguousarray(values), "zyx"))
        read = read_volume(path)
        return np.asarray(read.data)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "engine": engine_rows,
    "wide": wide_rows,
    "kernels": kernel_rows,
    "plans": plan_rows,
    "presets": preset_rows,
    "formats": format_rows,
}


def compute(parts: list[str], quick: bool) -> dict[str, dict[str, str]]:
    """The digests of parts; quick: of each algorithm once."""
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        rows = PARTS[part]()
        if quick and part == "engine":
            rows = itertools.islice(rows, len(PROBLEMS))
        found[part] = {name: digest(make()) for name, make in rows}
    return found


def main_of_script() -> int:
    parser = argparse.ArgumentParser(description="Compare digests of results with digests.json.")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--quick", action="store_true", help="each algorithm once")
    parser.add_argument("--write", metavar="WHY", help="write them, and why they changed")
    given = parser.parse_args()
    parts = given.part or list(PARTS)
    if given.part is None and find_spec("h5py") is None:
        sys.stderr.write("h5py is not here: formats are not compared\n")
        parts.remove("formats")
    if set(PROBLEMS) != {a.name for a in ALGORITHMS}:
        raise SystemExit("PROBLEMS does not name every algorithm")
    found = compute(parts, given.quick)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if given.write:
        FILE.write_text(json.dumps({**kept, **found, "why": given.write}, indent=1) + "\n")
        return 0
    wrong = [
        f"{part}: {name}"
        for part, rows in found.items()
        for name in {**rows, **({} if given.quick else kept.get(part, {}))}
        if rows.get(name) != kept.get(part, {}).get(name)
    ]
    count = sum(map(len, found.values()))
    lines = [f"{len(wrong)} of {count} digests differ", *wrong[:20]]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main_of_script())
