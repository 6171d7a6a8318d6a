"""Compiles a Python function of a step record to object code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from conv3d_cli.engine.cpu import cpu_class

if os.environ.get("CONV3D_CPU"):  # set LLVM's target, too, before Numba reads its settings
    os.environ.setdefault("NUMBA_CPU_NAME", cpu_class().llvm_cpu)
    os.environ.setdefault("NUMBA_CPU_FEATURES", cpu_class().llvm_features)

from numba import cfunc, types

# "nsz" ignores the sign of zero. The rest of fastmath stays off: it would remove NaN tests, reorder
# sums, and ("contract") merge a multiplication and an addition only where the CPU has an FMA.
FASTMATH = {"nsz"}
SIGNATURE = types.void(types.CPointer(types.int64))


def compile_object(loops: Callable[[Any], None]) -> tuple[str, bytes]:
    """Compile a function of a step record. Returns (symbol, object code).

    The code is linked without Numba, so the function may not raise, allocate or use Python objects.
    Raises: RuntimeError if the code calls Numba or Python.
    """
    function: Any = cfunc(
        SIGNATURE, fastmath=FASTMATH, error_model="numpy", boundscheck=False, forceinline=True
    )(loops)
    code = function._library._get_compiled_object()
    foreign = [name for name in (b"numba_", b"NRT_", b"PyErr", b"PyGILState") if name in code]
    if foreign:
        raise RuntimeError(
            f"the loops call {foreign}: they may not raise, allocate or use Python objects"
        )
    return function._wrapper_name, code
