"""Machine code: Numba compiles each loop once; later processes load its object code without Numba.

A module in `engine/loops`, a factory in it and the factory's constants name a loop:
`machine_code("pack", "pack_rows", "int16", "float32", 0)`. If its object code is on disk, llvmlite
links it in a few milliseconds. Otherwise the module is imported, Numba compiles the loop, and its
object code is written to disk. So a warm start does not import Numba at all, which would take
longer than most convolutions.

A hash of the engine's sources, the versions of Numba and llvmlite and the CPU names the folder of
the object files, so a changed source or another machine never runs stale code. Its parent is one of
$CONV3D_CACHE_DIR, $NUMBA_CACHE_DIR, the user's cache folder and $XDG_RUNTIME_DIR: object code is
read from all of them and written to the first writable one. If none is writable, every process
compiles.

Whoever can write these files can run code as the user who reads them. So they are read only from a
`PrivateFolder`, and each file begins with a seal: an HMAC with a key that is stored in the folder
and that only its owner can read.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from conv3d_cli.engine.compiling import (
    Constant,
    Key,
    ObjectCode,
    compile_in_workers,
    compile_loop,
    worker_count,
)
from conv3d_cli.engine.cpu import cpu_class, host_features
from conv3d_cli.engine.step import StepRecord
from conv3d_cli.engine.team import run_in_thread
from conv3d_cli.system.private_folder import PrivateFolder

MAGIC = b"conv3d object 3\n"
SEAL_BYTES = KEY_BYTES = 32
KEY_FILE = "key"
# A process waits for another one that compiles at most so long, and looks so often (seconds).
TURN_SECONDS, TURN_POLL = 120, 0.1

_call_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class MachineCode:
    """A compiled function `void(step)`, loaded or compiled when its address is first read.

    key : tuple             (module, factory, *constants)
    compiled : bool         whether this process compiled it
    Call it with a `StepRecord`; it runs without the GIL.
    """

    def __init__(self, key: Key) -> None:
        self.key, self.compiled = key, False
        self._address = 0
        self._call: Callable[[int], None] | None = None

    @property
    def address(self) -> int:
        """The address of the function's first instruction."""
        if not self._address:
            load([self])
        return self._address

    def __call__(self, step: StepRecord) -> None:
        if self._call is None:
            self._call = _call_type(self.address)
        self._call(step.address)


_known: dict[Key, MachineCode] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that does not exist here may have held the other one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def machine_code(module: str, factory: str, *constants: Constant) -> MachineCode:
    """The loops that `loops.<module>.<factory>(*constants)` returns; one object per process."""
    key = (module, factory, *constants)
    return _known.setdefault(key, MachineCode(key))


def load(codes: Iterable[MachineCode]) -> None:
    """Load or compile functions in a thread, and wait for it (see `team.run_in_thread`)."""
    missing = [code for code in codes if not code._address]
    if missing:
        interrupted = threading.Event()
        try:
            run_in_thread(_load, missing, interrupted)
        except BaseException:
            interrupted.set()  # the thread goes on otherwise: no further loop
            raise


@contextmanager
def watch_compilation(watcher: Callable[[int, int], None]) -> Iterator[None]:
    """In the body, call `watcher(loops compiled, loops to compile)` from a thread while it lasts.

    It is called with 0 before the first loop is compiled, and not at all where all are on disk.
    """
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


_watchers: list[Callable[[int, int], None]] = []


def compiled_here() -> list[str]:
    """The names of the loops that this process compiled, for tests and `warmup`."""
    return [_name(code.key) for code in _known.values() if code.compiled]


def _name(key: Key) -> str:
    return "-".join(map(str, key)).replace("/", "_")


def _load(codes: list[MachineCode], interrupted: threading.Event) -> None:
    with _lock:
        missing = {code.key: code for code in codes if not code._address}
        _link_kept(missing)
        if not missing:
            return
        total = len(missing)
        _tell(0, total)
        with (
            _turn(missing, interrupted),
            closing(_compile(list(missing), interrupted)) as results,
        ):
            for key, compiled in results:
                code = missing.pop(key)
                code.compiled, code._address = True, _link(*compiled)
                _write(key, *compiled)
                _tell(total - len(missing), total)


def _link_kept(missing: dict[Key, MachineCode]) -> None:
    """Link the functions whose object code is on disk, and take them out of `missing`."""
    for key in list(missing):
        if (cached := _read(key)) is not None:
            missing.pop(key)._address = _link(*cached)


@contextmanager
def _turn(missing: dict[Key, MachineCode], interrupted: threading.Event) -> Iterator[None]:
    """In the body, no other process compiles for the same cache folder.

    Many first jobs may start at once: one compiles, and the others wait for its object code, which
    is taken out of `missing`. A process that waits for too long compiles all the same.
    """
    path, total = cache_folder(), len(missing)

    def look() -> None:
        before = len(missing)
        _link_kept(missing)
        if len(missing) < before:
            _tell(total - len(missing), total)

    with ExitStack() as stack:
        if path is not None:
            with suppress(OSError):
                folder = stack.enter_context(PrivateFolder(path))
                deadline = time.monotonic() + TURN_SECONDS
                while not folder.lock() and missing and not interrupted.is_set():
                    if time.monotonic() > deadline:
                        break
                    time.sleep(TURN_POLL)
                    look()
                look()
        yield


def _tell(done: int, total: int) -> None:
    for watcher in list(_watchers):
        watcher(done, total)


def _compile(
    keys: list[Key], interrupted: threading.Event
) -> Generator[tuple[Key, ObjectCode], None, None]:
    """Loops and their object code, in the order in which they are ready; fewer if interrupted."""
    workers = worker_count(len(keys))
    results: Iterator[tuple[Key, ObjectCode | None]] = (
        compile_in_workers(keys, workers, interrupted.is_set)
        if workers > 1
        else ((key, None) for key in keys)
    )
    for key, compiled in results:
        if interrupted.is_set():
            return
        yield key, compile_loop(key) if compiled is None else compiled


@lru_cache(maxsize=1)
def _linker() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


def _link(symbol: str, code: bytes) -> int:
    """Link object code into this process. Returns the address of the function of this symbol."""
    import llvmlite.binding as llvm

    linker = _linker()
    linker.add_object_file(llvm.ObjectFileRef.from_data(code))
    linker.finalize_object()
    address: int = linker.get_function_address(symbol)
    if not address:
        raise RuntimeError(f"compiled loops hold no symbol {symbol}")
    return address


# --------------------------------------------------------------------------------------------------
# Object files: MAGIC, a seal (HMAC-SHA-256), the symbol, a line feed, the object code


def _seal(secret: bytes, key: Key, body: bytes) -> bytes:
    """A digest of the object code and its identity.

    So damaged files are rejected, and files of another loop, another machine or another user.
    """
    return hmac.digest(secret, f"{source_key()} {key}\n".encode() + body, "sha256")


def _secret(folder: PrivateFolder) -> bytes | None:
    """The key of a folder's seals; None unless it is complete and only this user can read it."""
    secret = folder.read(KEY_FILE, secret=True)
    return secret if secret is not None and len(secret) == KEY_BYTES else None


def _read(key: Key) -> tuple[str, bytes] | None:
    """Symbol and object code from disk; None if no folder has an intact file.

    Linking a damaged file would crash the process.
    """
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


def _write(key: Key, symbol: str, code: bytes) -> None:
    """Write object code to the cache folder; readers never see an incomplete file.

    A failure, such as a full disk, is ignored: the next process compiles again.
    """
    path = cache_folder()
    if path is None:
        return
    body = symbol.encode() + b"\n" + code
    try:
        with PrivateFolder(path) as folder:
            damaged = folder.exists(KEY_FILE)  # if the next line finds no valid key
            # if several processes start at once, the first key that is written stays
            if _secret(folder) is None:
                folder.write(KEY_FILE, os.urandom(KEY_BYTES), replace=damaged)
            if (secret := _secret(folder)) is not None:
                folder.write(f"{_name(key)}.o", MAGIC + _seal(secret, key, body) + body)
    except OSError:
        pass


@lru_cache(maxsize=1)
def source_key() -> str:
    """A hash of everything that the object code depends on; it names the cache folder.

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
        pass  # the user has no home folder
    if os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(os.environ["XDG_RUNTIME_DIR"]) / "conv3d"


def _folders() -> Iterator[Path]:
    """The folders that may contain object code, in the order in which they are read."""
    return (parent / source_key() for parent in _parents())


def _refusal(path: Path) -> str:
    """Why object code cannot be written to a folder; "" if it can. Makes a missing folder."""
    try:
        with PrivateFolder(path, make=True) as folder:
            folder.check_writable()
    except OSError as error:
        return f"{path.parent}: {error.strerror or error}"
    return ""


@lru_cache(maxsize=1)
def cache_folder() -> Path | None:
    """The folder for new object code; None if no folder is writable."""
    return next((path for path in _folders() if not _refusal(path)), None)


def refused_folders() -> list[str]:
    """The folders that cannot be written, as "folder: reason"."""
    return [reason for path in _folders() if (reason := _refusal(path))]
