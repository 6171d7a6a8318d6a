"""Compiles a Python function of a step record to object code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from conv3d_cli.engine.cpu import cpu_class

if os.environ.get("CONV3D_CPU"):  # set LLVM's target, too, before Numba reads its settings
    os.environ.setdefault("NUMBA_CPU_NAME", cpu_class().llvm_cpu)
    os.environ.setdefault("NUMBA_CPU_FEATURES", cpu_class().llvm_features)

# Numba would read settings from `.numba_config.yaml` in the working folder, which another user may
# have put there. It cannot without a module for YAML.
_yaml = sys.modules.get("yaml")
sys.modules["yaml"] = None  # type: ignore[assignment]
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it cannot
        from numba import cfunc, types
        from numba.core import config
finally:
    del sys.modules["yaml"]
    if _yaml is not None:
        sys.modules["yaml"] = _yaml
config._config_fname = os.devnull  # which Numba looks for again before it compiles

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
