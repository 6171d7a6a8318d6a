"""CPU time and memory of an OME-Zarr pyramid made by `conv3d convert`, beside ngff-zarr.

    python tests/benchmarks/levels.py [--rounds 3] [--shape 256,512,512] [--peer PYTHON]

Each run is a process of its own, from a .npy of uint8 to a store with 5 levels in chunks of 64^3;
all take their turn in every round. The table has the least CPU seconds, user and system, of the
process and its children, and the largest resident memory. PYTHON is an interpreter that has
ngff-zarr with dask-image; without --peer, only conv3d is measured.

"mean" and "gaussian" are of an image, "mode" and "nearest" of labels. ngff-zarr makes most of them
in two ways. The last column is the
largest difference of the second level from ngff-zarr's, as part of the range of values: methods of
the same name are not always the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

import numpy as np
import zarr
from processes_measured import conv3d_command, measured

LEVELS = 5
CHUNK = 64
PEERS = (
    ("mean", "itkwasm_bin_shrink"),
    ("mean", "dask_bin_shrink"),
    ("gaussian", "itkwasm_gaussian"),
    ("gaussian", "dask_image_gaussian"),
    ("mode", "itkwasm_label_image"),
    ("mode", "dask_image_mode"),
    ("nearest", "dask_image_nearest"),
)
PEER = """
import sys
import numpy as np
import ngff_zarr
source, target, method, levels, chunk = sys.argv[1:]
image = ngff_zarr.to_ngff_image(np.load(source, mmap_mode="r"), dims=["z", "y", "x"])
factors = [2**n for n in range(1, int(levels))]
scales = ngff_zarr.to_multiscales(
    image, factors, method=ngff_zarr.Methods(method), chunks=int(chunk)
)
ngff_zarr.to_ngff_zarr(target, scales, version="0.5")
"""


def image(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A smooth ball with noise, as a camera sees it."""
    rng = np.random.default_rng(0)
    planes = []
    for z in np.linspace(-1, 1, shape[0]):
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
        ball = 150 / (1 + np.exp((np.sqrt(x**2 + y**2 + z**2) - 0.7) * 20)) + 30
        planes.append((ball + rng.normal(0, 5, ball.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(planes)


def labels(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Cells of about 20 voxels."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 200, [n // 19 + 2 for n in shape], np.uint8)
    at = [np.arange(n) // 19 for n in shape]
    return numbers[np.ix_(*at)]


def best(runs: list[tuple[float, float]]) -> tuple[float, float]:
    """The least CPU seconds, and the most memory."""
    return min(seconds for seconds, _ in runs), max(memory for _, memory in runs)


def second_level(path: str) -> np.ndarray[Any, Any]:
    """The voxels of a store's second level."""
    group = zarr.open_group(path, mode="r")
    attributes: Any = group.attrs.get("ome") or group.attrs
    level = attributes["multiscales"][0]["datasets"][1]["path"]
    return np.asarray(group[level][...])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="256,512,512")
    parser.add_argument("--peer", default="")
    parser.add_argument("--methods", default="mean,gaussian,mode,nearest")
    asked = parser.parse_args()
    shape = tuple(map(int, asked.shape.split(",")))
    conv3d = conv3d_command()
    print("| method | conv3d CPU s | its MB | ngff-zarr | its CPU s | its MB | ratio | differ |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for name, make in (("image", image), ("labels", labels)):
            sources[name] = os.path.join(folder, f"{name}.npy")
            np.save(sources[name], make(shape))
        for method, peer in PEERS:
            if method not in asked.methods.split(","):
                continue
            source = sources["labels" if method in ("mode", "nearest") else "image"]
            ours, theirs = (os.path.join(folder, f"{who}.zarr") for who in ("ours", "theirs"))
            commands = {
                "ours": [
                    conv3d, "convert", source, ours, "--levels", str(LEVELS), "--levels-by",
                    method, "--chunks", str(CHUNK), "--overwrite", "-q",
                ],
                "theirs": [
                    asked.peer, "-c", PEER, source, theirs, peer, str(LEVELS), str(CHUNK),
                ],
            }  # fmt: skip
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
            for _ in range(asked.rounds):
                for who, command in commands.items():
                    if command[0]:
                        found[who].append(measured(command))
            cpu, memory = best(found["ours"])
            row = [method, f"{cpu:.2f}", f"{memory:.0f}"]
            if found["theirs"]:
                its_cpu, its_memory = best(found["theirs"])
                one, other = (second_level(path).astype(float) for path in (ours, theirs))
                differ = np.abs(one - other).max() / np.ptp(one)
                row += [peer, f"{its_cpu:.2f}", f"{its_memory:.0f}"]
                row += [f"{its_cpu / cpu:.1f}", f"{differ:.3f}"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
