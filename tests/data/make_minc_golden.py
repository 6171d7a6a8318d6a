"""Makes minc_golden.npz: what mincmorph -convolve makes of a small volume. Run where minc-tools (a Debian package) is installed:

    python tests/data/make_minc_golden.py

Made with minc-tools 2.3.00. Axes are z, y, x. Where the kernel reaches over the edge mincmorph leaves the voxel as it was.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def main() -> None:
    """Write the file."""
    volume = np.random.default_rng(5).integers(-100, 1000, (7, 8, 9)).astype(np.float64)
    with tempfile.TemporaryDirectory() as name:
        source, result, raw = (Path(name) / file for file in ("x.mnc", "y.mnc", "x.raw"))
        volume.tofile(raw)
        sizes = [str(n) for n in volume.shape]
        steps = ["-xstep", "1", "-ystep", "2", "-zstep", "3"]
        _run("rawtominc", "-double", "-odouble", "-zyx", *steps, source, *sizes, "-input", raw)
        _run(
            "mincmorph", "-double", "-convolve", "-kernel", HERE / "asymmetric.kern", source, result
        )
        convolved = np.frombuffer(_run("minctoraw", "-nonormalize", "-double", result), np.float64)
    np.savez_compressed(
        HERE / "minc_golden.npz", volume=volume, convolved=convolved.reshape(volume.shape)
    )


def _run(*words: str | Path) -> bytes:
    return subprocess.run(words, check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
