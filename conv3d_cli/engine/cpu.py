"""The CPU that the loops are compiled for: all that is known of a class of CPUs is one row of `CPU_CLASSES`.

Widths are in float32 numbers; float64 vectors hold half as many. Any row gives right results on any machine,
since LLVM splits vectors that are too wide; the row that fits gives the speed. `CONV3D_CPU=avx2` (or neon,
baseline, avx512) forces a narrower one, for tests and comparisons.

An algorithm's `seconds` counts flops and bytes at rates of its own; the row's factors make these comparable on
a kind of CPU. Nothing is timed while a job runs, so the choice of an algorithm depends on the problem, the
weights and the CPU class alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from conv3d_cli.engine.team import run_in_thread
from conv3d_cli.errors import unknown_name


@dataclass(frozen=True)
class CpuClass:
    """One class of CPUs: how it is recognised, how its loops are shaped, and what was measured on it.

    name : str              for $CONV3D_CPU, `explain` and the records
    needs : tuple of str    the CPU features, by LLVM's names, that a machine of this class has
    lanes : int             float32 numbers in a vector
    registers : int         vector registers
    spatial : (int, int)    register tile of the spatial kernel: output rows x vectors along the width
    channel : (int, int)    register tile of the channel kernel: output voxels x vectors of filters
    llvm_cpu : str          the CPU that LLVM compiles for when the class is forced on a wider machine
    llvm_features : str     the features that LLVM uses then, beside those of `llvm_cpu`
    factors : dict          by algorithm: what its predicted time is multiplied by; 1 where none was measured.
                            `conv3d bench --calibrate` prints them
    limits : (float, float) or None     the most that one thread reaches: flops a second, and bytes read
                            and written a second (`conv3d bench` measures both); None if not measured
    """

    name: str
    needs: tuple[str, ...]
    lanes: int
    registers: int
    spatial: tuple[int, int]
    channel: tuple[int, int]
    llvm_cpu: str
    llvm_features: str = ""
    factors: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[float, float] | None = None

    def factor(self, algorithm: str) -> float:
        """What an algorithm's predicted time is multiplied by, so that times on this CPU compare.

        >>> CPU_CLASSES[-1].factor("direct")
        1.0
        """
        return self.factors.get(algorithm, 1.0)

    def limit_seconds(self, flops: float, moved: float, threads: int) -> tuple[float, str] | None:
        """The least seconds for so many flops and so many bytes moved, and what binds; None if not measured.

        >>> CPU_CLASSES[0].limit_seconds(115e9, 21e9, threads=1)
        (1.0, 'arithmetic')
        """
        if self.limits is None:
            return None
        rate, bandwidth = self.limits
        return max((flops / rate / threads, "arithmetic"), (moved / bandwidth / threads, "memory"))


# A machine belongs to the first class whose needs it meets; the last one needs nothing.
# A register tile holds rows x columns accumulators, and needs a register a column (or row) for loaded values
# and one for a broadcast: 6 x 4 + 4 + 1 = 29 of 32. On 16 registers 3 x 3 + 3 + 1 = 13.
CPU_CLASSES = (
    # 32 registers of 64 bytes, two FMAs a cycle of latency 4: at least 8 accumulators; 24 make loads rarer
    # than FMAs. Factors and limits: Zen 4, 2026-11, where FMAs of 512 bits go in two halves.
    CpuClass(
        "avx512",
        needs=("avx512f",),
        lanes=16,
        registers=32,
        spatial=(6, 4),
        channel=(12, 2),
        llvm_cpu="skylake-avx512",
        factors={"separable": 1.15},
        limits=(115e9, 42e9),
    ),
    # 16 registers of 32 bytes: 12 accumulators at most.
    CpuClass(
        "avx2",
        needs=("avx2", "fma"),
        lanes=8,
        registers=16,
        spatial=(4, 3),
        channel=(6, 2),
        llvm_cpu="haswell",
        llvm_features="+fma,+avx2",
    ),
    # 32 registers of 16 bytes.
    CpuClass(
        "neon",
        needs=("neon",),
        lanes=4,
        registers=32,
        spatial=(6, 4),
        channel=(8, 3),
        llvm_cpu="generic",
    ),
    # 16 registers of 16 bytes (SSE2), and whatever else there is; FMA may be two operations.
    CpuClass(
        "baseline",
        needs=(),
        lanes=4,
        registers=16,
        spatial=(4, 3),
        channel=(6, 2),
        llvm_cpu="x86-64",
    ),
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

    found: dict[str, bool] = run_in_thread(ask)
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
    return detect(host_features())


def detect(features: Mapping[str, bool]) -> CpuClass:
    """The first class whose needs a machine with these features meets.

    >>> detect({"avx2": True, "fma": True}).name, detect({"avx2": True}).name
    ('avx2', 'baseline')
    """
    return next(row for row in CPU_CLASSES if all(features.get(name) for name in row.needs))
