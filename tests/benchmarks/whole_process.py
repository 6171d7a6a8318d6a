"""The command as a whole: seconds, CPU seconds and peak memory of `conv3d apply`, on a scan beside niimath and on one of 2 GB.

python tests/benchmarks/whole_process.py [--scan T1.nii.gz] [--rounds 9] [--gigabytes 2] [--folder DIR]

The scan is the MNI152 1 mm T1 where nilearn is installed, else one of its size made here. Commands run in turn, round after
round; niimath takes part where it is installed (`pip install niimath`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from conv3d_cli import Grid, Volume, write_volume

MNI = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


def find_scan(folder: Path) -> Path:
    """The MNI152 T1 of nilearn; else a smooth scan of that size."""
    nilearn = importlib.util.find_spec("nilearn")
    if (
        nilearn is not None
        and nilearn.origin is not None
        and (found := Path(nilearn.origin).parent / MNI).exists()
    ):
        return found
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in (189, 233, 197)), indexing="ij"
    )
    inside = np.maximum(0, 1 - x * x - y * y - z * z)
    data = (200 * inside * (1 + 0.05 * rng.standard_normal(x.shape))).astype(np.float32)
    path = folder / "scan.nii.gz"
    write_volume(str(path), Volume(data, "zyx", Grid((1.0, 1.0, 1.0), "mm")))
    return path


def make_series(path: Path, gigabytes: float) -> None:
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
        file.write(header.binaryblock + bytes(4))
        for k in range(depth):
            file.write((wave + noise[k % 16] + k).astype(np.int16).tobytes())


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory in MB of a whole process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (command, status)
    scale = 1 if sys.platform == "darwin" else 1024
    return (
        time.perf_counter() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * scale / 1e6,
    )


def apply(source: Path, target: Path, kernel: str) -> list[str]:
    """The command that convolves."""
    conv3d = [sys.executable, "-m", "conv3d_cli", "apply"]
    return [*conv3d, str(source), "-k", kernel, "-o", str(target), "--overwrite", "-q"]


def report(name: str, runs: list[tuple[float, float, float]]) -> None:
    """One row: median and least seconds, least CPU seconds, peak memory."""
    seconds, cpu, memory = zip(*runs, strict=True)
    print(
        f"{name:<46} {statistics.median(seconds):>8.3f} {min(seconds):>8.3f} {min(cpu):>8.2f} {max(memory):>8.0f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="a small .nii.gz")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the large scan; 0: none")
    parser.add_argument("--folder", help="where files are made (needs three times the size)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="conv3d-bench-", dir=options.folder))
    try:
        scan = options.scan or find_scan(folder)
        kernel = folder / "k.npy"
        np.save(kernel, np.random.default_rng(0).random((5, 5, 5)))
        commands = {
            "python, no program": [sys.executable, "-c", "pass"],
            "python, import numpy and click": [sys.executable, "-c", "import numpy, click"],
            "conv3d apply, 5x5x5 kernel": apply(scan, folder / "a.nii.gz", str(kernel)),
            "conv3d apply, Gaussian of sigma 2": apply(
                scan, folder / "b.nii.gz", "gaussian:sigma=2vox"
            ),
        }
        niimath = shutil.which(
            "niimath", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        )
        if niimath:
            commands["niimath -s 2"] = [niimath, str(scan), "-s", "2", str(folder / "c.nii.gz")]
        else:
            print("niimath is not installed: pip install niimath")
        print(f"{scan.name}, {scan.stat().st_size / 1e6:.1f} MB")
        print(f"{'process':<46} {'median s':>8} {'least s':>8} {'CPU s':>8} {'peak MB':>8}")
        for command in commands.values():
            run(command)  # compiles, and fills the disk's cache
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                runs[name].append(run(command))
        for name, times in runs.items():
            report(name, times)
        if options.gigabytes:
            big = folder / "big.nii.gz"
            make_series(big, options.gigabytes)
            print(
                f"{options.gigabytes:g} GB int16 .nii.gz ({big.stat().st_size / 1e9:.1f} GB packed) to float32 .nii.gz"
            )
            for text in ("box:size=3", "gaussian:sigma=1vox"):
                report(f"conv3d apply, {text}", [run(apply(big, folder / "out.nii.gz", text))])
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
