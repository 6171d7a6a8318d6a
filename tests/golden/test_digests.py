"""One result on every machine: digests under each class of CPUs, and with other libraries' loops.

Each class runs in a process of its own, with $CONV3D_CPU set. `digests.py` says what is computed.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from conv3d_cli.engine.cpu import CPU_CLASSES
from conv3d_cli.engine.machine_code import MAGIC, SEAL_BYTES

SCRIPT = Path(__file__).with_name("digests.py")
CLASSES = [row.name for row in CPU_CLASSES]
on_elf = pytest.mark.skipif(sys.platform != "linux", reason="object files are not ELF")


@lru_cache
def compared(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the script says under a class of CPUs."""
    hidden = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**environment, "CONV3D_CPU": name, **variables},
        capture_output=True,
        text=True,
    )


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, (
        f"{done.stdout}{done.stderr}\nIf the new results are right: make golden WHY='what changed'"
    )
    assert done.stdout.startswith("0 of "), done.stdout


@pytest.mark.parametrize("name", CLASSES)
def test_each_algorithm_and_the_plan_under_each_class_of_cpus(name: str) -> None:
    check(compared(name, "--part", "plans", "--part", "engine", "--quick"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_all_digests_under_each_class_of_cpus(name: str) -> None:
    check(compared(name))


def other_loops() -> dict[str, str]:
    """Variables that make NumPy, the C library and BLAS compute as on an old CPU."""
    try:
        from numpy._core import _multiarray_umath as umath
    except ImportError:  # NumPy 1.26
        from numpy.core import _multiarray_umath as umath
    found = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-AVX2_Usable,-FMA_Usable",
        "OPENBLAS_CORETYPE": "Nehalem",
    }


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables name x86 CPUs")
def test_results_where_numpy_and_the_c_library_take_other_loops() -> None:
    variables = other_loops()
    probe = "import numpy as np; print(np.exp(np.linspace(-3, 3, 999)).tobytes().hex())"
    here, there = (
        subprocess.run(
            [sys.executable, "-c", probe],
            env={**os.environ, **more},
            capture_output=True,
            check=True,
        ).stdout
        for more in ({}, variables)
    )
    if here == there:
        pytest.skip("on this CPU they take the same loops")
    parts = [word for name in ("kernels", "presets", "engine") for word in ("--part", name)]
    check(compared(CLASSES[0], *parts, "--quick", **variables))


def test_a_changed_bit_changes_a_digest_and_the_sign_of_nan_does_not() -> None:
    spec = importlib.util.spec_from_file_location("digests_of_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    digest = script.digest
    values = np.array([1.0, 2.0], np.float32)
    assert digest(values) != digest(np.nextafter(values, 9, dtype=np.float32))
    assert digest(values) != digest(values.astype(np.float64))
    assert digest(values[::-1]) == digest(values[::-1].copy())
    nan = np.array([np.nan], np.float32)
    assert digest(nan) == digest(-nan)


def undefined(code: bytes) -> set[str]:
    """Names that an ELF object of 64 bits takes from elsewhere."""
    assert code[:5] == b"\x7fELF\x02"
    (start,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, start + size * i) for i in range(count)]
    found = set()
    for _, kind, _, _, at, length, link, *_ in sections:
        if kind != 2:  # a table of symbols
            continue
        names = sections[link][4]
        for symbol in range(at, at + length, 24):
            name, _, _, section = struct.unpack_from("<IBBH", code, symbol)
            if section == 0 and name:
                begin = names + name
                found.add(code[begin : code.index(b"\0", begin)].decode())
    return found


@on_elf
@pytest.mark.parametrize("name", CLASSES)
def test_no_loop_calls_a_library_for_its_arithmetic(name: str) -> None:
    check(compared(name, "--part", "plans", "--part", "engine", "--quick"))  # it compiles them
    code = "from conv3d_cli.engine.machine_code import cache_folder; print(cache_folder())"
    folder = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CONV3D_CPU": name},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    objects = sorted(Path(folder).glob("*.o"))
    assert len(objects) >= 12
    for path in objects:
        data = path.read_bytes()
        assert data.startswith(MAGIC)
        body = data[len(MAGIC) + SEAL_BYTES :]
        calls = undefined(body[body.index(b"\n") + 1 :])
        # _GLOBAL_OFFSET_TABLE_ is no function: addresses of numbers are relative to it
        assert calls <= {"memset", "memcpy", "memmove", "_GLOBAL_OFFSET_TABLE_"}, (path.name, calls)
