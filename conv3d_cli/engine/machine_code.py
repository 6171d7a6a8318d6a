"""Machine code: loops that Numba compiled once, kept on disk, loaded without Numba afterwards.

A loop is named by its module in `engine/loops`, its factory there and the factory's constants: `machine_code("pack",
"pack_rows", "int16", "float32")`. Where its object code is on disk, llvmlite links it in a few milliseconds; else the module
is imported, Numba compiles, and the object code is kept. So a warm start does not import Numba at all, which would cost
more than most convolutions.

Object files lie in a folder named by a hash of the engine's own sources, of Numba's and llvmlite's versions and of the CPU, so
a changed file or another machine never runs stale code. The folder is the first that can be used of: $CONV3D_CACHE_DIR,
$NUMBA_CACHE_DIR, the user's cache folder, a private folder under the system's temporary directory. Without any, loops are
compiled in each process.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from conv3d_cli.engine.cpu import cpu_class, host_features

MAGIC = b"conv3d object 1\n"
Constant = int | str

_call_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class MachineCode:
    """A compiled function `void(step)`.

    address : int       of its first instruction
    compiled : bool     whether this process had to compile it
    Call it with the address of a step record; it runs without the GIL.
    """

    def __init__(self, address: int, compiled: bool, keep: object) -> None:
        self.address, self.compiled = address, compiled
        self._call, self._keep = _call_type(address), keep

    def __call__(self, step_address: int) -> None:
        self._call(step_address)


_loaded: dict[tuple[Any, ...], MachineCode] = {}
_lock = threading.Lock()


def machine_code(module: str, factory: str, *constants: Constant) -> MachineCode:
    """The loops that `engine/loops/<module>.<factory>(*constants)` describes, compiled or from disk; once a process."""
    key = (module, factory, *constants)
    found = _loaded.get(key)
    if found is None:
        with _lock:
            found = _loaded.get(key)
            if found is None:
                found = _loaded[key] = _load(key)
    return found


def compiled_here() -> list[str]:
    """What this process had to compile, for tests and `warmup`."""
    return [":".join(map(str, key)) for key, code in _loaded.items() if code.compiled]


def _load(key: tuple[Any, ...]) -> MachineCode:
    folder = cache_folder()
    path = None if folder is None else folder / (":".join(map(str, key)).replace(":", "-").replace("/", "_") + ".o")
    if path is not None:
        kept = _read(path)
        if kept is not None:
            return _link(*kept, compiled=False)
    from conv3d_cli.engine.loops.compiler import compile_object

    factory = getattr(importlib.import_module(f"conv3d_cli.engine.loops.{key[0]}"), key[1])
    symbol, code = compile_object(factory(*key[2:]))
    if path is not None:
        _write(path, symbol, code)
    return _link(symbol, code, compiled=True)


@lru_cache(maxsize=1)
def _linker() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _link(symbol: str, code: bytes, compiled: bool) -> MachineCode:
    import llvmlite.binding as llvm

    linker = _linker()
    linker.add_object_file(llvm.ObjectFileRef.from_data(code))
    linker.finalize_object()
    address = linker.get_function_address(symbol)
    if not address:
        raise RuntimeError(f"compiled loops hold no symbol {symbol}")
    return MachineCode(address, compiled, linker)


def _read(path: Path) -> tuple[str, bytes] | None:
    """Symbol and object code; None if the file is missing or not whole (linking a damaged one would end the process)."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[len(MAGIC) + 32 :]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : len(MAGIC) + 32]:
        return None
    symbol, _, code = body.partition(b"\n")
    return symbol.decode(), code


def _write(path: Path, symbol: str, code: bytes) -> None:
    """Keep it; a full disk costs the next process a compilation, never this job. Renamed, so that no one reads half."""
    body = symbol.encode() + b"\n" + code
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def source_key() -> str:
    """A hash of whatever the object code depends on: the name of the cache folder.

    >>> source_key() == source_key()
    True
    """
    digest = hashlib.sha256()
    engine = Path(__file__).parent
    for path in sorted(engine.rglob("*.py")):
        digest.update(str(path.relative_to(engine)).encode())
        digest.update(path.read_bytes())
    for package in ("numba", "llvmlite"):  # their versions, without the cost of importing them
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            version = Path(spec.origin).with_name("_version.py")
            digest.update(version.read_bytes() if version.exists() else spec.origin.encode())
    features = ",".join(sorted(name for name, present in host_features().items() if present))
    digest.update(f"{cpu_class().name} {features} {os.environ.get('NUMBA_CPU_NAME')}".encode())
    digest.update(f"{os.environ.get('NUMBA_CPU_FEATURES')} {os.environ.get('NUMBA_OPT')}".encode())
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
    """Whether the folder can be made and read, and no other user could have put code into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """Where object code is kept; None where no folder can be used."""
    key = source_key()
    return next((folder / key for folder in _candidates() if _usable(folder / key)), None)
