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


def assert_calls_nothing(name: str, code: bytes) -> None:
    # _GLOBAL_OFFSET_TABLE_ is no function: addresses of numbers are relative to it
    calls = undefined(code) - {"memset", "memcpy", "memmove", "_GLOBAL_OFFSET_TABLE_"}
    assert not calls, f"{name} calls {calls}"


def of_class(name: str, code: str) -> str:
    """What a Python text writes under a class of CPUs."""
    hidden = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "CONV3D_CPU": name},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@on_elf
@pytest.mark.parametrize("name", CLASSES)
def test_no_kept_loop_calls_a_library(name: str) -> None:
    check(compared(name, "--part", "plans", "--part", "engine", "--quick"))  # it compiles them
    code = "from conv3d_cli.engine.machine_code import cache_folder; print(cache_folder())"
    objects = sorted(Path(of_class(name, code).strip()).glob("*.o"))
    assert len(objects) >= 12
    for path in objects:
        data = path.read_bytes()
        assert data.startswith(MAGIC)
        body = data[len(MAGIC) + SEAL_BYTES :]
        assert_calls_nothing(path.name, body[body.index(b"\n") + 1 :])


# Loops of few lines, which the compiler might leave to the C library: rounding, roots, conversions.
SMALL = [
    *(
        ("store", "store", real, out)
        for real in ("float32", "float64")
        for out in ("uint8", "int16", "int32", "uint64", "float32")
    ),
    ("magnitude", "magnitude", 3, "float32"),
    ("pack", "pack_rows", "uint64", "float32", 1),
    ("pack", "pack_voxels", "int64", "float64", 0),
    ("weighted_pack", "pack_weighted_rows", "float32", "float32", "float64"),
    ("weighting", "divide", "float32", "uint8"),
    ("weighting", "label_extents", "float64"),
]


@on_elf
@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_no_other_loop_calls_a_library(name: str) -> None:
    code = (
        "from conv3d_cli.engine.compiling import compile_loop\n"
        f"for key in {SMALL}: print(compile_loop(key)[1].hex())"
    )
    for key, line in zip(SMALL, of_class(name, code).splitlines(), strict=True):
        assert_calls_nothing(str(key), bytes.fromhex(line))


ROUNDED = """
import numpy as np
from conv3d_cli.engine import make_plan
from conv3d_cli.model.spec import ConvSpec
halves = np.arange(-40.5, 41, 0.5)
near = np.nextafter(halves, 0), np.nextafter(halves, 99)
large = 2.0 ** np.arange(20, 70)
values = np.concatenate([halves, *near, large, -large, large / 3, [np.inf, -np.inf, np.nan]])
problem = ConvSpec(padding="same").resolve((1, 3, 3, 3, 1), (1, 1, 1, 1, 1))
for real in "float32", "float64":
    plan = make_plan(problem, np.ones((1, 1, 1, 1, 1)), dtype=real)
    numbers = values.astype(real).reshape(1, 1, -1, 1)
    for dtype in "int8", "uint16", "int32", "int64":
        out = np.empty(numbers.shape, dtype)
        clipped = plan.store(numbers, out)
        limits = np.iinfo(dtype)
        with np.errstate(invalid="ignore"):
            whole = np.rint(numbers.astype(np.longdouble))
            held = np.clip(whole, np.longdouble(limits.min), np.longdouble(limits.max))
            expected = np.where(np.isnan(whole), 0, held).astype(dtype)
        assert (out == expected).all(), (real, dtype)
        assert clipped == (held != whole).sum(), (real, dtype)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avx2", "baseline"])
def test_whole_numbers_are_rounded_half_to_even(name: str) -> None:
    assert of_class(name, ROUNDED) == ""
