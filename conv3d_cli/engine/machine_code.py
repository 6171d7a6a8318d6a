"""Machine code: loops that Numba compiled once, kept on disk, loaded without Numba afterwards.

A loop is named by its module in `engine/loops`, its factory there and the factory's constants: `machine_code("pack",
"pack_rows", "int16", "float32")`. Where its object code is on disk, llvmlite links it in a few milliseconds; else the module
is imported, Numba compiles, and the object code is kept. So a warm start does not import Numba at all, which would cost
more than most convolutions.

Object files lie in a folder named by a hash of the engine's own sources, of Numba's and llvmlite's versions and of the CPU, so
a changed file or another machine never runs stale code. Its parent is one of $CONV3D_CACHE_DIR, $NUMBA_CACHE_DIR, the user's
cache folder, and $XDG_RUNTIME_DIR: all are read, the first that can be written keeps what is new. Without any, loops are
compiled in each process.

Whoever writes these files runs code as whoever reads them. So they are read only from a `PrivateFolder`, and each carries a
seal made with a key that stands in the folder and that only its owner may read.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import hmac
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from conv3d_cli.engine.cpu import cpu_class, host_features
from conv3d_cli.engine.step import StepRecord
from conv3d_cli.engine.team import run_in_thread
from conv3d_cli.system.private_folder import PrivateFolder

MAGIC = b"conv3d object 3\n"
SEAL_BYTES = KEY_BYTES = 32
KEY_FILE = "key"
Constant = int | str

_call_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class MachineCode:
    """A compiled function `void(step)`, loaded or compiled when its address is first asked for.

    key : tuple             module, factory, constants
    compiled : bool         whether this process had to compile it
    Call it with a step record; it runs without the GIL.
    """

    def __init__(self, key: tuple[Constant, ...]) -> None:
        self.key, self.compiled = key, False
        self._address = 0
        self._call: Callable[[int], None] | None = None

    @property
    def address(self) -> int:
        """Of its first instruction."""
        if not self._address:
            load([self])
        return self._address

    def __call__(self, step: StepRecord) -> None:
        if self._call is None:
            self._call = _call_type(self.address)
        self._call(step.address)


_known: dict[tuple[Constant, ...], MachineCode] = {}
_lock = threading.Lock()


def machine_code(module: str, factory: str, *constants: Constant) -> MachineCode:
    """The loops that `engine/loops/<module>.<factory>(*constants)` describes; one object a process."""
    key = (module, factory, *constants)
    return _known.setdefault(key, MachineCode(key))


def load(codes: Iterable[MachineCode]) -> None:
    """Have them ready to run, in a thread that the caller waits for: see `team.run_in_thread`."""
    missing = [code for code in codes if not code._address]
    if missing:
        run_in_thread(_load, missing)


def compiled_here() -> list[str]:
    """What this process had to compile, for tests and `warmup`."""
    return [_name(code.key) for code in _known.values() if code.compiled]


def _name(key: tuple[Constant, ...]) -> str:
    return "-".join(map(str, key)).replace("/", "_")


def _load(codes: list[MachineCode]) -> None:
    for code in codes:
        with _lock:
            if not code._address:
                kept = _read(code.key)
                symbol, object_code = _compile(code.key) if kept is None else kept
                code.compiled = kept is None
                code._address = _link(symbol, object_code)


def _compile(key: tuple[Constant, ...]) -> tuple[str, bytes]:
    usual = gc.get_threshold()
    # A compiler leaves cycles behind: looked for as rarely as `__main__` has it, they take 40 MB more.
    gc.set_threshold(700, 10, 10)
    try:
        from conv3d_cli.engine.loops.compiler import compile_object

        factory = getattr(importlib.import_module(f"conv3d_cli.engine.loops.{key[0]}"), str(key[1]))
        symbol, object_code = compile_object(factory(*key[2:]))
    finally:
        gc.set_threshold(*usual)
    _write(key, symbol, object_code)
    return symbol, object_code


@lru_cache(maxsize=1)
def _linker() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _link(symbol: str, code: bytes) -> int:
    """The address of a function in object code, which becomes part of this process."""
    import llvmlite.binding as llvm

    linker = _linker()
    linker.add_object_file(llvm.ObjectFileRef.from_data(code))
    linker.finalize_object()
    address: int = linker.get_function_address(symbol)
    if not address:
        raise RuntimeError(f"compiled loops hold no symbol {symbol}")
    return address


# ---------------------------------------------------------------------------------------------------------------------
# On disk: MAGIC, a seal (HMAC-SHA-256), the symbol, a line feed, the object code


def _seal(secret: bytes, key: tuple[Constant, ...], body: bytes) -> bytes:
    """A digest of the code and of what it is: no damaged file passes for it, nor another loop's, machine's or author's."""
    return hmac.digest(secret, f"{source_key()} {key}\n".encode() + body, "sha256")


def _secret(folder: PrivateFolder) -> bytes | None:
    """The key of a folder's seals; None if there is none that is whole and this user's secret."""
    secret = folder.read(KEY_FILE, secret=True)
    return secret if secret is not None and len(secret) == KEY_BYTES else None


def _read(key: tuple[Constant, ...]) -> tuple[str, bytes] | None:
    """Symbol and object code; None if no file is there and whole (linking a damaged one would end the process)."""
    for path in _folders():
        try:
            with PrivateFolder(path) as folder:
                secret, data = _secret(folder), folder.read(f"{_name(key)}.o")
        except OSError:
            continue
        if secret is None or data is None:
            continue
        head, body = data[: len(MAGIC) + SEAL_BYTES], data[len(MAGIC) + SEAL_BYTES :]
        if hmac.compare_digest(head, MAGIC + _seal(secret, key, body)):
            symbol, _, code = body.partition(b"\n")
            return symbol.decode(), code
    return None


def _write(key: tuple[Constant, ...], symbol: str, code: bytes) -> None:
    """Keep it; a full disk costs the next process a compilation, never this job. It appears whole, so no one reads half."""
    path = cache_folder()
    if path is None:
        return
    body = symbol.encode() + b"\n" + code
    try:
        with PrivateFolder(path) as folder:
            damaged = folder.exists(KEY_FILE)  # if the next line finds no key
            if _secret(folder) is None:  # of processes that start at once, the first one's stays
                folder.write(KEY_FILE, os.urandom(KEY_BYTES), replace=damaged)
            if (secret := _secret(folder)) is not None:
                folder.write(f"{_name(key)}.o", MAGIC + _seal(secret, key, body) + body)
    except OSError:
        pass


@lru_cache(maxsize=1)
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


def _parents() -> Iterator[Path]:
    for variable in ("CONV3D_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "conv3d"
    try:
        yield Path.home() / ".cache" / "conv3d"
    except RuntimeError:
        pass  # no home at all
    if os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(os.environ["XDG_RUNTIME_DIR"]) / "conv3d"


def _folders() -> Iterator[Path]:
    """Where object code may lie, in order."""
    return (parent / source_key() for parent in _parents())


def _refusal(path: Path) -> str:
    """Why no object code can be kept in a folder, which is made if it is missing; "" if it can."""
    try:
        with PrivateFolder(path, make=True) as folder:
            folder.check_writable()
    except OSError as error:
        return f"{path.parent}: {error.strerror or error}"
    return ""


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """Where new object code is kept; None where no folder can be written."""
    return next((path for path in _folders() if not _refusal(path)), None)


def refused_folders() -> list[str]:
    """The folders that object code might be kept in and cannot be, each with the reason."""
    return [reason for path in _folders() if (reason := _refusal(path))]
