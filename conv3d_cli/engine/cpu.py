"""The CPU the loops are written for: vector width and register tiles, one row a class of CPUs.

Widths are in float32 numbers; float64 vectors hold half as many. Any row gives right results on any machine, since LLVM
splits vectors that are too wide; a row that fits gives the speed. `CONV3D_CPU=avx2` (or neon, baseline, avx512) forces a
narrower one, for tests and comparisons.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

from conv3d_cli.engine.team import apart
from conv3d_cli.errors import unknown_name


@dataclass(frozen=True)
class CpuClass:
    """What the micro-kernels ask of a CPU.

    lanes : int             float32 numbers in a vector
    registers : int         vector registers
    spatial : (int, int)    register tile of the spatial kernel: output rows x vectors along the width
    channel : (int, int)    register tile of the channel kernel: output voxels x vectors of filters
    target : str            the CPU's name for LLVM when the class is forced on a wider machine
    """

    name: str
    lanes: int
    registers: int
    spatial: tuple[int, int]
    channel: tuple[int, int]
    target: str


# A register tile holds rows x columns accumulators, and needs a register a column (or row) for loaded values and one for a
# broadcast: 6 x 4 + 4 + 1 = 29 of 32. On 16 registers 3 x 3 + 3 + 1 = 13.
CPU_CLASSES = (
    # 32 registers of 64 bytes, two FMAs a cycle of latency 4: at least 8 accumulators; 24 make loads rarer than FMAs.
    CpuClass("avx512", lanes=16, registers=32, spatial=(6, 4), channel=(12, 2), target="skylake-avx512"),
    # 16 registers of 32 bytes: 12 accumulators at most.
    CpuClass("avx2", lanes=8, registers=16, spatial=(4, 3), channel=(6, 2), target="haswell"),
    # 32 registers of 16 bytes.
    CpuClass("neon", lanes=4, registers=32, spatial=(6, 4), channel=(8, 3), target="generic"),
    # 16 registers of 16 bytes (SSE2), and whatever else there is; FMA may be two operations.
    CpuClass("baseline", lanes=4, registers=16, spatial=(4, 3), channel=(6, 2), target="x86-64"),
)


@lru_cache(maxsize=1)
def host_features() -> dict[str, bool]:
    """The CPU's features by LLVM's names; empty where LLVM cannot tell."""

    def ask() -> dict[str, bool]:
        import llvmlite.binding as llvm

        try:
            return dict(llvm.get_host_cpu_features())
        except RuntimeError:
            return {}

    found: dict[str, bool] = apart(ask)
    return found


@lru_cache(maxsize=1)
def cpu_class() -> CpuClass:
    """The row of this machine, or the one $CONV3D_CPU names.

    Raises: UnknownNameError.
    """
    forced = os.environ.get("CONV3D_CPU")
    names = [row.name for row in CPU_CLASSES]
    if forced:
        if forced not in names:
            raise unknown_name("CPU class in CONV3D_CPU", forced, names)
        return CPU_CLASSES[names.index(forced)]
    features = host_features()
    if features.get("avx512f"):
        name = "avx512"
    elif features.get("avx2") and features.get("fma"):
        name = "avx2"
    elif features.get("neon"):
        name = "neon"
    else:
        name = "baseline"
    return CPU_CLASSES[names.index(name)]
