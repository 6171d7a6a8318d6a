"""Classes of CPUs: one row holds all that is known of a class."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conv3d_cli.engine import ALGORITHMS
from conv3d_cli.engine.cpu import CPU_CLASSES, CpuClass, detect

# What LLVM 15 to 20 say of machines of each class, of which only these features matter here.
MACHINES = [
    ("avx512", {"avx512f": True, "avx2": True, "fma": True, "sse2": True}),
    ("avx2", {"avx512f": False, "avx2": True, "fma": True, "sse2": True}),
    ("baseline", {"avx2": True, "fma": False, "sse2": True}),
    ("baseline", {"avx2": False, "fma": True, "sse2": True}),
    ("baseline", {"sse2": True}),
    ("neon", {"neon": True}),
    ("baseline", {}),  # LLVM could not tell
]


@pytest.mark.parametrize(("name", "features"), MACHINES)
def test_a_machine_belongs_to_the_first_class_whose_needs_it_meets(
    name: str, features: dict[str, bool]
) -> None:
    assert detect(features).name == name


def test_the_last_class_takes_every_machine() -> None:
    assert CPU_CLASSES[-1].needs == ()


@pytest.mark.parametrize("row", CPU_CLASSES, ids=lambda row: row.name)
def test_a_row_is_sound(row: CpuClass) -> None:
    rows, vectors = row.spatial
    assert rows * vectors < row.registers, "accumulators leave a register for what is loaded"
    voxels, vectors = row.channel
    assert voxels * vectors < row.registers
    assert set(row.factors) <= {a.name for a in ALGORITHMS}
    assert all(factor > 0 for factor in row.factors.values())
    assert detect(dict.fromkeys(row.needs, True)) == row


@pytest.mark.parametrize("row", CPU_CLASSES, ids=lambda row: row.name)
def test_a_forced_class_tells_llvm_its_own_cpu_and_features(row: CpuClass) -> None:
    code = (
        "import os, conv3d_cli.engine.loops.compiler; "
        "print(os.environ['NUMBA_CPU_NAME'] + '|' + os.environ['NUMBA_CPU_FEATURES'])"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
    }
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "CONV3D_CPU": row.name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == f"{row.llvm_cpu}|{row.llvm_features}"


def test_the_limit_of_a_class() -> None:
    measured = next(row for row in CPU_CLASSES if row.limits is not None)
    assert measured.limits is not None
    rate, bandwidth = measured.limits
    assert measured.limit_seconds(rate, 0, threads=2) == (0.5, "arithmetic")
    assert measured.limit_seconds(0, 3 * bandwidth, threads=1) == (3.0, "memory")
    assert CPU_CLASSES[-1].limit_seconds(1, 1, 1) is None
