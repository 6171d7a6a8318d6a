"""The CPU that the loops are compiled for: one row of `CPU_CLASSES` describes a class of CPUs.

Vector widths are in float32 elements; a float64 vector has half as many. Every row gives the same
bits on every machine, because LLVM splits vectors that are too wide; the matching row is the
fastest. `CONV3D_CPU=avx2` (or neon, baseline, avx512) forces a row, for tests and comparisons.

The same bits on every CPU need three things. The algorithm and the order of its sums follow from
the problem and the weights alone: whatever decides about them (predicted times, lanes that are
summed, chunks of terms, tiles that are recomputed as a whole) asks `REFERENCE`, never the machine.
What the machine decides (register tiles, lanes that are not summed) changes no sum. And a product
is added with one rounding everywhere (`loops.simd.Vec.fma`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from conv3d_cli.engine.team import run_in_thread
from conv3d_cli.errors import unknown_name


@dataclass(frozen=True)
class CpuClass:
    """One class of CPUs: the features that it requires, the shape of its loops, and measurements.

    name : str              name in $CONV3D_CPU, `explain` and provenance records
    needs : tuple of str    required CPU features, by LLVM's names
    lanes : int             float32 elements of a vector
    registers : int         number of vector registers
    spatial : (int, int)    register tile of the spatial micro-kernel: rows x vectors of columns
    channel : (int, int)    register tile of the channel micro-kernel: voxels x vectors of filters
    llvm_cpu : str          LLVM's target CPU when the class is forced on a machine of another class
    llvm_features : str     LLVM's target features then, in addition to those of `llvm_cpu`
    limits : (float, float) or None     peak of one thread: flops per second, and bytes read and
                            written per second (`conv3d bench` measures both); None if not measured
    """

    name: str
    needs: tuple[str, ...]
    lanes: int
    registers: int
    spatial: tuple[int, int]
    channel: tuple[int, int]
    llvm_cpu: str
    llvm_features: str = ""
    limits: tuple[float, float] | None = None

    def runs_natively(self) -> bool:
        """Whether this machine has the features that the class requires, an FMA among them."""
        return "fma" in self.needs and all(host_features().get(name) for name in self.needs)

    def limit_seconds(self, flops: float, moved: float, threads: int) -> tuple[float, str] | None:
        """The shortest possible time and the bottleneck: (seconds, "arithmetic" or "memory").

        flops : float       floating-point operations
        moved : float       bytes read and written
        Returns None if the limits of this class were not measured.

        >>> CPU_CLASSES[0].limit_seconds(115e9, 21e9, threads=1)
        (1.0, 'arithmetic')
        """
        if self.limits is None:
            return None
        rate, bandwidth = self.limits
        return max((flops / rate / threads, "arithmetic"), (moved / bandwidth / threads, "memory"))


# A machine belongs to the first class whose needs it meets; the last class needs nothing.
# A register tile of rows x columns accumulators also needs one register per column (or row) for
# loaded values and one for a broadcast value: 6 x 4 + 4 + 1 = 29 of 32 registers, or
# 3 x 3 + 3 + 1 = 13 of 16.
CPU_CLASSES = (
    # 32 registers of 64 bytes. Two FMAs per cycle with a latency of 4 keep 8 accumulators busy;
    # with 24, loads are rarer than FMAs. Limits: Zen 4, 2026-11, which splits FMAs of 512 bits in
    # two.
    CpuClass(
        "avx512",
        needs=("avx512f", "fma"),
        lanes=16,
        registers=32,
        spatial=(6, 4),
        channel=(12, 2),
        llvm_cpu="skylake-avx512",
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
    # 16 registers of 16 bytes (SSE2), and every other CPU. An FMA may be many operations.
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

# The class that planning assumes on every machine.
REFERENCE = CPU_CLASSES[0]
# Where every CPU has NEON, although LLVM may not tell any feature (macOS).
ARM_MACHINES = ("arm64", "aarch64")


@lru_cache(maxsize=1)
def host_features() -> dict[str, bool]:
    """The CPU's features by LLVM's names; empty if LLVM and the machine's name tell none."""

    def ask() -> dict[str, bool]:
        import llvmlite.binding as llvm

        try:
            return dict(llvm.get_host_cpu_features())
        except RuntimeError:
            return {}

    found: dict[str, bool] = run_in_thread(ask)
    if not found and platform.machine().lower() in ARM_MACHINES:
        return {"neon": True}
    return found


@lru_cache(maxsize=1)
def cpu_class() -> CpuClass:
    """The class of this machine, or the class that $CONV3D_CPU names.

    Raises: UnknownNameError if $CONV3D_CPU names no class.
    """
    forced = os.environ.get("CONV3D_CPU")
    names = [row.name for row in CPU_CLASSES]
    if forced:
        if forced not in names:
            raise unknown_name("CPU class in CONV3D_CPU", forced, names)
        return CPU_CLASSES[names.index(forced)]
    return detect(host_features())


@lru_cache(maxsize=1)
def fuses() -> bool:
    """Whether the code that is compiled may count on an instruction a * b + c that rounds once.

    A class that is forced has what its row says; NEON on an x86 machine has nothing.
    """
    if platform.machine().lower() in ARM_MACHINES:
        return True
    has = host_features() if not os.environ.get("CONV3D_CPU") else dict.fromkeys(cpu_class().needs)
    return "fma" in cpu_class().needs or bool(has.get("fma"))


def detect(features: Mapping[str, bool]) -> CpuClass:
    """The first class that requires no other features than these.

    >>> detect({"avx2": True, "fma": True}).name, detect({"avx2": True}).name
    ('avx2', 'baseline')
    """
    return next(row for row in CPU_CLASSES if all(features.get(name) for name in row.needs))
