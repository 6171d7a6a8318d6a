"""CPU time and memory of whole processes, and large files for them to read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# A process that is started counts the memory of the one that starts it, so that is a small one.
STARTER = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds and MB of resident memory of a process."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", STARTER, *command],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    status, seconds, memory = map(float, done.stdout.splitlines()[-1].split())
    if status:
        raise SystemExit(f"{' '.join(command[:4])} failed")
    return seconds, memory


def conv3d_command() -> str:
    """The command of the interpreter that runs this."""
    return os.path.join(os.path.dirname(sys.executable), "conv3d")


def stack_of(
    path: str, shape: tuple[int, int, int], dtype: str, plane: Callable[[int], Array]
) -> None:
    """Write a plain TIFF plane by plane, so that it may be larger than memory."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        planes = (plane(z).astype(dtype) for z in range(shape[0]))
        file.write(planes, shape=shape, dtype=dtype, photometric="minisblack", contiguous=True)


def tubes(shape: tuple[int, int, int]) -> Callable[[int], Array]:
    """Planes of bright tubes that wind through a noisy ground, 0 to 255: number -> (H, W)."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape[1:]), indexing="ij")

    def plane(z: int) -> Array:
        wave = np.sin((x + 9 * np.sin(z / 17)) / 11) * np.sin((y + 9 * np.cos(z / 13)) / 9)
        noise = rng.standard_normal(shape[1:], dtype=np.float32)
        return np.asarray((60 + 150 * np.maximum(wave - 0.6, 0) / 0.4 + 8 * noise).clip(0, 255))

    return plane
