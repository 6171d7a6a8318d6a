"""From a Python function over a step record to object code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from conv3d_cli.engine.cpu import cpu_class

if os.environ.get("CONV3D_CPU"):  # a forced class: also tell LLVM, before Numba reads its settings
    os.environ.setdefault("NUMBA_CPU_NAME", cpu_class().llvm_cpu)
    os.environ.setdefault("NUMBA_CPU_FEATURES", cpu_class().llvm_features)

from numba import cfunc, types

# "contract" lets a multiplication and an addition become one FMA, "nsz" ignores the sign of zero. The rest of fastmath
# stays off: it would remove NaN tests and reorder sums.
FASTMATH = {"contract", "nsz"}
SIGNATURE = types.void(types.CPointer(types.int64))


def compile_object(loops: Callable[[Any], None]) -> tuple[str, bytes]:
    """(symbol, object code) of a function over a step record.

    The code must stand alone, since it is linked without Numba: nothing in it may raise or create Python objects.
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
