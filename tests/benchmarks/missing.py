"""What a mask or missing voxels cost: whole processes on float32 .npy, beside the plain convolution, in turn.

python tests/benchmarks/missing.py [--rounds 7] [--folder DIR] [--atlas]

256^3 voxels; with --atlas 181x217x181 in 116 regions (of points drawn in an ellipsoid, the voxels nearest to each).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from whole_process import run

SIZE = 256
ATLAS_SIZE, REGIONS = (181, 217, 181), 116
KERNELS = {"Gaussian of 2 voxels": "gaussian:sigma=2vox", "5^3": "k.npy"}


def make_files(folder: Path) -> None:
    """A volume, the same with a small hole and with a surrounding of NaN, a ball as a mask, a kernel."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SIZE,) * 3, np.float32)
    z, y, w = np.ogrid[:SIZE, :SIZE, :SIZE]
    ball = (z - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2 + (w - SIZE / 2) ** 2 < (0.4 * SIZE) ** 2
    hole = x.copy()
    hole[100:104, 100:110, 100:110] = np.nan
    scattered = np.where(rng.random((SIZE,) * 3, np.float32) < 0.05, np.float32(np.nan), x)
    for name, data in (
        ("x", x),
        ("hole", hole),
        ("scattered", scattered),
        ("ball", np.where(ball, x, np.float32(np.nan))),
        ("mask", ball.astype(np.uint8)),
    ):
        np.save(folder / f"{name}.npy", data)


def make_atlas(folder: Path) -> None:
    """A volume, and regions in an ellipsoid: each voxel's is the one whose point is nearest."""
    rng = np.random.default_rng(0)
    places = np.moveaxis(np.indices(ATLAS_SIZE, np.float32), 0, -1)
    centre = np.array(ATLAS_SIZE, np.float32) / 2
    inside = (((places - centre) / (0.45 * np.array(ATLAS_SIZE))) ** 2).sum(axis=-1) < 1
    points = rng.choice(places[inside], REGIONS, replace=False)
    nearest, labels = np.full(ATLAS_SIZE, np.inf, np.float32), np.zeros(ATLAS_SIZE, np.uint8)
    for label, point in enumerate(points, 1):
        apart = ((places - point) ** 2).sum(axis=-1)
        labels[apart < nearest] = label
        nearest = np.minimum(nearest, apart)
    np.save(folder / "regions.npy", labels * inside)
    np.save(folder / "inside.npy", inside.astype(np.uint8))
    np.save(folder / "x.npy", rng.standard_normal(ATLAS_SIZE, np.float32))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where files are made")
    parser.add_argument(
        "--atlas", action="store_true", help="masks of regions in place of missing voxels"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="conv3d-bench-", dir=options.folder) as name:
        folder = Path(name)
        np.save(folder / "k.npy", np.random.default_rng(1).random((5, 5, 5)))
        cases: dict[str, tuple[str, list[str]]] = {"plain": ("x", [])}
        if options.atlas:
            make_atlas(folder)
            regions = ["--mask", str(folder / "regions.npy"), "--mask-labels"]
            cases |= {
                "`--mask`, an ellipsoid": ("x", ["--mask", str(folder / "inside.npy")]),
                f"`--mask-labels`, {REGIONS} regions of it": ("x", regions),
            }
        else:
            make_files(folder)
            cases |= {
                "`--nan ignore`, no NaN": ("x", ["--nan", "ignore"]),
                "`--nan ignore`, 400 NaN in one place": ("hole", ["--nan", "ignore"]),
                "`--nan ignore`, 5 % NaN anywhere": ("scattered", ["--nan", "ignore"]),
                "`--nan ignore`, 73 % NaN": ("ball", ["--nan", "ignore"]),
                "`--mask`, a ball": ("x", ["--mask", str(folder / "mask.npy")]),
                "`--boundary renormalize`": ("x", ["--boundary", "renormalize"]),
            }
        print(
            "| case | "
            + " | ".join(f"{kernel}: whole process (compute alone)" for kernel in KERNELS)
            + " |"
        )
        print("|---|" + "---|" * len(KERNELS))
        columns: list[list[str]] = []
        for kernel in KERNELS.values():
            k = str(folder / kernel) if kernel.endswith(".npy") else kernel
            seconds: dict[str, list[float]] = {case: [] for case in cases}
            computing: dict[str, list[float]] = {case: [] for case in cases}
            for turn in range(options.rounds + 1):
                for case, (source, extra) in cases.items():
                    out = folder / "out.npy"
                    out.unlink(missing_ok=True)
                    arguments = [
                        "apply",
                        str(folder / f"{source}.npy"),
                        "-k",
                        k,
                        "-o",
                        str(out),
                        "-q",
                        *extra,
                    ]
                    command = [sys.executable, "-m", "conv3d_cli", *arguments]
                    took = run(command)[0]
                    out.unlink()
                    told = json.loads(
                        subprocess.run([*command, "--json"], capture_output=True, check=True).stdout
                    )
                    if turn:
                        seconds[case].append(took)
                        computing[case].append(told["compute_seconds"])
            whole, alone = (statistics.median(found["plain"]) for found in (seconds, computing))
            columns.append(
                [
                    f"{statistics.median(seconds[c]) / whole:.2f} ({statistics.median(computing[c]) / alone:.2f})"
                    for c in cases
                ]
            )
        for row, case in enumerate(cases):
            print(f"| {case} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main()
