"""Classes of CPUs: one row holds all that is known of a class."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from conv3d_cli.engine import cpu
from conv3d_cli.engine.algorithms import direct
from conv3d_cli.engine.cpu import CPU_CLASSES, REFERENCE, CpuClass, detect

Told = Callable[[str, dict[str, bool]], None]

# What LLVM 15 to 20 say of machines of each class, of which only these features matter here.
MACHINES = [
    ("avx512", {"avx512f": True, "avx2": True, "fma": True, "sse2": True}),
    ("avx2", {"avx512f": False, "avx2": True, "fma": True, "sse2": True}),
    ("baseline", {"avx2": True, "fma": False, "sse2": True}),
    ("baseline", {"avx2": False, "fma": True, "sse2": True}),
    ("baseline", {"sse2": True}),
    ("neon", {"neon": True}),
    ("baseline", {}),  # LLVM could not tell
    ("baseline", {"avx512f": True}),  # a virtual machine that hides the FMA
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


@pytest.mark.parametrize("taps", range(1, direct.MOST_TAPS + 1))
def test_no_register_tile_is_larger_than_the_one_that_the_layout_is_made_for(taps: int) -> None:
    rows, vectors = direct.register_tile(taps, REFERENCE)
    for row in CPU_CLASSES:
        here = direct.register_tile(taps, row)
        assert here[0] <= rows
        assert here[1] * row.lanes <= vectors * REFERENCE.lanes


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, dict[str, bool]], None]]:
    """Sets what the machine is called and which features LLVM tells."""

    def tell(machine: str, features: dict[str, bool]) -> None:
        monkeypatch.delenv("CONV3D_CPU", raising=False)
        monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
        monkeypatch.setattr(cpu, "run_in_thread", lambda ask: features)
        forget()

    def forget() -> None:
        for function in (cpu.host_features, cpu.cpu_class, cpu.fuses):
            function.cache_clear()

    yield tell
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("machine", ["arm64", "aarch64", "ARM64"])
def test_an_arm_of_64_bits_has_neon_where_llvm_tells_nothing(told: Told, machine: str) -> None:
    told(machine, {})
    assert cpu.cpu_class().name == "neon"
    assert cpu.fuses()


@pytest.mark.parametrize(
    ("features", "name", "fuses"),
    [
        ({}, "baseline", False),
        ({"sse2": True, "avx": True}, "baseline", False),  # Sandy Bridge
        ({"avx": True, "fma": True}, "baseline", True),  # Piledriver
        ({"avx2": True, "fma": True}, "avx2", True),
        ({"avx512f": True, "avx2": True, "fma": True}, "avx512", True),
    ],
)
def test_the_class_and_the_fma_of_an_x86(
    told: Told, features: dict[str, bool], name: str, fuses: bool
) -> None:
    told("x86_64", features)
    assert (cpu.cpu_class().name, cpu.fuses()) == (name, fuses)


@pytest.mark.parametrize(
    ("name", "fuses"), [("avx512", True), ("avx2", True), ("neon", False), ("baseline", False)]
)
def test_a_forced_class_on_an_x86_has_the_fma_of_its_row(
    told: Told, monkeypatch: pytest.MonkeyPatch, name: str, fuses: bool
) -> None:
    told("x86_64", {"avx512f": True, "avx2": True, "fma": True})
    monkeypatch.setenv("CONV3D_CPU", name)
    assert cpu.fuses() is fuses


def test_the_limit_of_a_class() -> None:
    measured = next(row for row in CPU_CLASSES if row.limits is not None)
    assert measured.limits is not None
    rate, bandwidth = measured.limits
    assert measured.limit_seconds(rate, 0, threads=2) == (0.5, "arithmetic")
    assert measured.limit_seconds(0, 3 * bandwidth, threads=1) == (3.0, "memory")
    assert CPU_CLASSES[-1].limit_seconds(1, 1, 1) is None
