"""How loops are compiled and where the compiled code is kept.

`@compiled` is the only way a loop meets Numba. Compiled code is cached on disk in a folder named by the package version
and a hash of the engine's own source files, since Numba's cache notices a change only in the function's own file. The
folder is the first that can be used of: $CONV3D_CACHE_DIR, $NUMBA_CACHE_DIR, the user's cache folder, a private folder
under the system's temporary directory. Without any, loops are compiled in each process.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numba.core.config

config: Any = numba.core.config  # its settings are made at run time, out of a type checker's sight

# "contract" lets a multiplication and an addition become one FMA, "nsz" ignores the sign of zero. The rest of fastmath
# stays off: it would remove NaN tests and reorder sums.
FASTMATH = {"contract", "nsz"}


def source_key() -> str:
    """Package version and a hash of every source file of the engine: the name of the cache folder.

    >>> source_key() == source_key()
    True
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _candidates() -> Iterator[Path]:
    for variable in ("CONV3D_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "conv3d"
    try:
        yield Path.home() / ".cache" / "conv3d"
    except RuntimeError:
        pass  # no home at all
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"conv3d-cache-{user}"


def _usable(folder: Path) -> bool:
    """Whether the folder can be made and written, and no other user could have put code into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _choose_folder() -> Path | None:
    key = source_key()
    return next((folder / key for folder in _candidates() if _usable(folder / key)), None)


CACHE_FOLDER = _choose_folder()


def compiled(loops: Callable[..., Any]) -> Any:
    """Decorate a loop function: compiled by Numba on its first call, without the GIL, cached on disk if possible."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy", "boundscheck": False}
    if CACHE_FOLDER is None:
        return numba.njit(**options)(loops)
    # The folder is looked up while decorating; set for that moment only, so that a caller's own functions keep theirs.
    before, config.CACHE_DIR = config.CACHE_DIR, str(CACHE_FOLDER)
    try:
        function = numba.njit(cache=True, **options)(loops)
    except RuntimeError:  # "no locator available": the folder vanished meanwhile
        return numba.njit(**options)(loops)
    finally:
        config.CACHE_DIR = before
    _tolerate_cache_faults(function)
    return function


def _tolerate_cache_faults(function: Any) -> None:
    """A full disk or a damaged cache file must cost a compilation, never the job."""
    cache = getattr(function, "_cache", None)
    if cache is None:
        return
    save, load = cache.save_overload, cache.load_overload

    def save_overload(signature: Any, result: Any) -> None:
        try:
            save(signature, result)
        except Exception:  # a damaged index can raise nearly anything while unpickling: begin a new one
            try:
                cache.flush()
                save(signature, result)
            except Exception:
                return  # not kept (a full disk): the next process compiles again

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception:  # a truncated or foreign file can raise nearly anything while unpickling
            return None

    cache.save_overload, cache.load_overload = save_overload, load_overload
