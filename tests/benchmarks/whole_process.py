"""The command as a whole: seconds and peak memory of `conv3d apply`, on a small scan and on one of 2 GB.

python tests/benchmarks/whole_process.py [--gigabytes 2] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

HERE = Path(__file__).parent
SMALL = HERE.parent.parent / "sample_data" / "head.nii.gz"


def make_scan(path: Path, gigabytes: float) -> None:
    """A smooth int16 scan with noise, of planes of 1024 x 1024 voxels, written plane by plane."""
    depth = max(1, round(gigabytes * 2**30 / 2**21))
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, depth))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    rng = np.random.default_rng(0)
    wave = 1000 * np.sin(np.arange(1024) / 40)[:, None] * np.cos(np.arange(1024) / 31)
    noise = [rng.integers(-20, 20, (1024, 1024)) for _ in range(16)]
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for k in range(depth):
            file.write((wave + noise[k % 16] + k).astype(np.int16).tobytes())


def apply(source: Path, target: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of a whole process."""
    command = [
        sys.executable,
        "-m",
        "conv3d_cli",
        "apply",
        str(source),
        "-o",
        str(target),
        "--overwrite",
        "-q",
        *options,
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * scale / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", help="where the files are made (needs three times the size)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="conv3d-bench-", dir=options.folder))
    try:
        print(f"{'job':<58} {'seconds':>8} {'peak MB':>8}")
        for run in ("first run of the small scan", "second run", "third run"):
            seconds, memory = apply(SMALL, folder / "small.nii.gz", "-k", "gaussian:fwhm=6mm")
            print(f"{run:<58} {seconds:>8.2f} {memory:>8.0f}")
        big = folder / "big.nii.gz"
        make_scan(big, options.gigabytes)
        name = (
            f"{options.gigabytes:g} GB int16 .nii.gz ({big.stat().st_size / 1e9:.1f} GB compressed) -> float32 .nii.gz"
        )
        for kernel in ("box:size=3", "gaussian:sigma=1vox"):
            seconds, memory = apply(big, folder / "out.nii.gz", "-k", kernel)
            print(f"{name + ', ' + kernel:<58} {seconds:>8.2f} {memory:>8.0f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
