"""CPUs, memory and thread counts, under the containers and variables people set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conv3d_cli.errors import SpecError
from conv3d_cli.system import machine
from conv3d_cli.system.machine import (
    byte_size,
    format_bytes,
    memory_ceiling,
    thread_count,
    usable_cpus,
    usable_memory,
)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variables, 16 CPUs, and a control group folder to fill."""
    # what is remembered of a folder, whose name may be that of an earlier test's
    machine._cgroup_quota.cache_clear()
    machine._cgroup_memory.cache_clear()
    for variable in ("CONV3D_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000"}, 2),  # one and a half CPUs keep two threads busy
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 16),
        ({"cpu.max": "nonsense"}, 16),
        ({"cpu.max": ""}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "0\n"}, 16),
        # a batch system's job lies deep in the tree; the tightest of the groups around it binds
        (
            {
                "own": "0::/slurm/job_7\n",
                "slurm/cpu.max": "400000 100000",
                "slurm/job_7/cpu.max": "max 100000",
            },
            4,
        ),
        (
            {
                "own": "0::/slurm/job_7\n",
                "slurm/cpu.max": "400000 100000",
                "slurm/job_7/cpu.max": "300000 100000",
            },
            3,
        ),
        ({"own": "4:memory:/a\n3:cpu,cpuacct:/b\n0::/\n", "cpu/b/cpu.cfs_quota_us": "500000"}, 5),
        ({"own": "4:memory:/a\n", "cpu/a/cpu.cfs_quota_us": "500000"}, 16),
        ({"own": "0::/gone\n"}, 16),
    ],
)
def test_cpus_of_a_container(bare_machine: Path, files: dict[str, str], cpus: int) -> None:
    for name, text in files.items():
        (bare_machine / name).parent.mkdir(exist_ok=True, parents=True)
        (bare_machine / name).write_text(text)
    assert usable_cpus() == cpus


def test_affinity_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert usable_cpus() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, 8 << 30),
        ({"memory.max": "max\n"}, 8 << 30),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "2147483648\n"}, 2 << 30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 8 << 30),
        (
            {
                "own": "0::/slurm/job_7\n",
                "slurm/memory.max": "max",
                "slurm/job_7/memory.max": "1073741824",
            },
            1 << 30,
        ),
        ({"own": "4:memory:/job\n", "memory/job/memory.limit_in_bytes": "1073741824"}, 1 << 30),
    ],
)
def test_memory_of_a_container(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], memory: int
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
    for name, text in files.items():
        (bare_machine / name).parent.mkdir(exist_ok=True, parents=True)
        (bare_machine / name).write_text(text)
    assert usable_memory() == memory
    assert memory_ceiling(None) == int(0.8 * memory)


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", refuse)
    assert usable_memory() == 4 << 30


@pytest.mark.parametrize(
    ("wish", "variables", "count"),
    [
        (None, {}, 16),
        (1, {}, 1),
        (3, {}, 3),
        (100, {}, 100),
        (3, {"CONV3D_THREADS": "5", "OMP_NUM_THREADS": "6"}, 3),
        (None, {"CONV3D_THREADS": "5", "OMP_NUM_THREADS": "6"}, 5),
        (None, {"OMP_NUM_THREADS": "6"}, 6),
        (None, {"OMP_NUM_THREADS": "4,2"}, 4),
        (None, {"CONV3D_THREADS": "1"}, 1),
        (None, {"CONV3D_THREADS": " 2 "}, 2),
        (None, {"CONV3D_THREADS": "", "OMP_NUM_THREADS": "7"}, 7),
    ],
)
def test_thread_counts(
    monkeypatch: pytest.MonkeyPatch, wish: Any, variables: dict[str, str], count: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert thread_count(wish) == count


@pytest.mark.parametrize("wish", [0, -1, 2.5, 2.0, "2", True])
def test_thread_counts_that_are_none(wish: Any) -> None:
    with pytest.raises(SpecError, match="threads must be a whole number from 1 to 4096, received"):
        thread_count(wish)


@pytest.mark.parametrize("variable", ["CONV3D_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("text", ["0", "-2", "many", "1.5", "²"])
def test_variables_that_are_none(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(
        SpecError, match=f"{variable} must be a whole number from 1 to 4096, received '{text}'"
    ):
        thread_count(None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 1 << 20), ("500M", 500 << 20), ("2G", 2 << 30), ("2g", 2 << 30), ("2GB", 2 << 30), ("2GiB", 2 << 30),
     ("1.5GiB", 3 << 29), ("64k", 64 << 10), ("1T", 1 << 40), (" 3 M ", 3 << 20), ("100b", 100), ("0.5K", 512)],
)  # fmt: skip
def test_sizes_in_bytes(text: str, size: int) -> None:
    assert byte_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1G", "1e3", "2 GG", "2P", "1.5.2M", "nan", "1,5G", "0x10"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(SpecError, match="such as 500M or 2G"):
        byte_size(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"),
     (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB"), (9999 << 40, "9999.0 TiB")],
)  # fmt: skip
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_this_machine_has_something() -> None:
    assert usable_memory() > 64 << 20
