"""Where Zarr stores lie: folders and URLs, opening what is in them, and new stores that appear whole or not at all.

A store's name is a folder, or a URL that fsspec understands (`https://`, `s3://`, `memory://`); `file://` is a folder.
Names of URLs are never touched by os.path. zarr is imported here, late; only formats/zarr*.py use this module.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    MemoryLimitError,
    OutputExistsError,
    SpecError,
    WriteError,
)
from conv3d_cli.system.atomic import AtomicFolder, check_target, write_errors
from conv3d_cli.system.inputs import near_names

# a folder that holds one of them is a Zarr node
MARKERS = (
    "zarr.json",
    ".zgroup",
    ".zarray",
    ".zattrs",
)
READ_ONLY_SCHEMES = ("http", "https")
CURE = "pip install 'conv3d[zarr]'"


def is_url(path: str) -> bool:
    """Whether a name is a URL and no path.

    >>> is_url("s3://bucket/a.zarr"), is_url("a.zarr/1")
    (True, False)
    """
    return "://" in path


def local_folder(path: str) -> str | None:
    """The folder or file that a name means on this machine; None if it lies elsewhere.

    >>> local_folder("a.zarr/"), local_folder("file:///data/a.zarr"), local_folder("s3://bucket/a.zarr")
    ('a.zarr', '/data/a.zarr', None)
    """
    if path.lower().startswith("file://"):
        path = url2pathname(urlsplit(path).path)
    elif is_url(path):
        return None
    return path.rstrip("/" + os.sep) or os.sep


def claims(path: str) -> bool:
    """Whether a name is a Zarr store's: it or a folder above ends in .zarr, it is a URL, or a folder with Zarr metadata.

    >>> claims("a.zarr"), claims("a.ome.zarr/1"), claims("https://host/store"), claims("a.npz")
    (True, True, True, False)
    """
    if path == "-":
        return False
    if is_url(path) or any(
        part.lower().endswith(".zarr") for part in path.replace(os.sep, "/").split("/")
    ):
        return True
    return is_node(path)


def is_node(folder: str) -> bool:
    """Whether a folder holds Zarr metadata."""
    return os.path.isdir(folder) and any(
        os.path.isfile(os.path.join(folder, name)) for name in MARKERS
    )


def content(path: str) -> str:
    """ "labels" where a store in a folder is a label image by its attributes (NGFF's `image-label`), else ""."""
    for name in (".zattrs", "zarr.json"):
        try:
            with open(os.path.join(local_folder(path) or "", name), encoding="utf-8") as file:
                found = json.load(file)
            attributes = found.get("attributes", {}) if name == "zarr.json" else found
            if "image-label" in {**attributes, **attributes.get("ome", {})}:
                return "labels"
        except (OSError, ValueError, RecursionError, TypeError, AttributeError):
            pass  # not there, or damaged, which is told when it is opened
    return ""


def import_zarr(path: str, error: type[Conv3DError] = FormatError) -> Any:
    """The zarr library, version 3.1 or newer. Raises: `error` with the cure if it is missing."""
    verb = "read" if error is FormatError else "write"
    try:
        import zarr
    except ImportError as cause:
        raise error(f"cannot {verb} {path}: Zarr needs the zarr package: {CURE}") from cause
    if tuple(int(part) for part in zarr.__version__.split(".")[:2]) < (
        3,
        1,
    ):  # 3.0 reads big-endian voxels wrongly
        raise error(
            f"cannot {verb} {path}: Zarr needs zarr 3.1 or newer, not {zarr.__version__}: {CURE}"
        )
    return zarr


@contextmanager
def zarr_errors(
    path: str, what: str = "", error: type[Conv3DError] = FormatError
) -> Iterator[None]:
    """Turn whatever zarr and file systems raise in the body into one line of kind `error`."""
    try:
        yield
    except Conv3DError:
        raise
    except Exception as cause:  # zarr, numcodecs, fsspec and aiohttp each raise their own kinds
        what = f"{what}: " if what else ""
        start = f"cannot {'read' if error is FormatError else 'write'} {path}: {what}"
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        if isinstance(cause, MemoryError):
            raise MemoryLimitError(f"{start}it does not fit into memory ({words})") from cause
        if isinstance(cause, ImportError):  # a file system of fsspec's
            scheme = urlsplit(path).scheme
            package = {
                "http": CURE,
                "https": CURE,
                "s3": "pip install s3fs",
                "gs": "pip install gcsfs",
            }.get(scheme)
            raise error(f"{start}its file system needs a package: {package or words}") from cause
        if isinstance(cause, FileNotFoundError):
            raise error(f"{start}no such file or folder") from cause
        if type(cause).__name__ == "UnknownCodecError" or "codec not available" in words:
            raise error(
                f"{start}it is compressed by a codec that is not known here ({words})"
            ) from cause
        if "Protocol not known" in words:
            raise error(f"{start}no file system is known for {urlsplit(path).scheme}://") from cause
        if isinstance(cause, OSError) and cause.strerror:
            raise error(f"{start}{cause.strerror}") from cause
        if type(cause).__module__.partition(".")[0] in ("aiohttp", "fsspec", "botocore", "s3fs"):
            raise error(f"{start}the server refuses or cannot be reached ({words})") from cause
        raise error(f"{start}damaged, or of a kind that cannot be read ({words})") from cause


# --------------------------------------------------------------------------------------------------
# Reading


class ChunkWatch:
    """What is seen of chunks on their way from a store to the library.

    missing : int       how many were asked for and are not in the store
    blosc : bool        whether each is one Blosc buffer: its decoder trusts the header, and reads beyond a truncated buffer
    """

    def __init__(self) -> None:
        self.missing = 0
        self.blosc = False
        self._lock = threading.Lock()

    def see(self, key: str, found: Any, whole: bool) -> None:
        """Look at the answer to a request; `whole` if all bytes were asked for. Raises: ValueError if it is cut off."""
        if PurePosixPath(key).name in (*MARKERS, ".zmetadata"):
            return  # looked for in several places
        if found is None:
            with self._lock:
                self.missing += 1
        elif self.blosc and whole:
            header = bytes(found.as_numpy_array()[:16])
            size = int.from_bytes(header[12:], "little")
            if len(header) < 16 or size != len(found):
                raise ValueError(
                    f"chunk {key} has {len(found)} bytes, where its header promises {size}"
                )


@lru_cache(maxsize=1)
def _watched_store() -> Any:
    from zarr.storage import WrapperStore

    class WatchedStore(WrapperStore):  # type: ignore[type-arg, unused-ignore]
        """A store that shows `watch` what it hands out. (It cannot be a class of this module: zarr comes late.)"""

        watch: ChunkWatch | None = None

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            found = await super().get(key, prototype, byte_range)
            if self.watch is not None:
                self.watch.see(key, found, byte_range is None)
            return found

    return WatchedStore


def open_node(path: str, watch: ChunkWatch | None = None) -> Any:
    """The zarr Group or Array of a name.

    watch : ChunkWatch or None      sees the chunks that are read
    Raises: FormatError if there is none, or it cannot be understood.
    """
    folder = local_folder(path)
    if folder is not None:
        if not os.path.lexists(folder):
            raise FormatError(f"cannot read {path}: no such file or folder{near_names(folder)}")
        if not os.path.isdir(folder):
            raise FormatError(f"cannot read {path}: it is a file; a Zarr store is a folder")
        if not is_node(folder):
            raise FormatError(
                f"cannot read {path}: it is no Zarr store: the folder holds no zarr.json, .zgroup or .zarray"
            )
    zarr = import_zarr(path)
    with zarr_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as: it holds metadata of both formats
        from zarr.storage import FsspecStore, LocalStore

        inner: Any = (
            LocalStore(folder, read_only=True)
            if folder is not None
            else FsspecStore.from_url(path, read_only=True)
        )
        store = _watched_store()(inner)
        store.watch = watch
        try:
            return zarr.open(store=store, mode="r", use_consolidated=False)
        except FileNotFoundError:
            raise FormatError(f"cannot read {path}: no such Zarr store") from None


def is_array(node: Any) -> bool:
    """Whether an opened node is an array and no group."""
    return hasattr(node, "chunks")


def joined(path: str, *parts: str) -> str:
    """The name of a node inside a store.

    >>> joined("s3://bucket/a.zarr/", "0")
    's3://bucket/a.zarr/0'
    """
    return "/".join([path.rstrip("/" + os.sep), *parts])


def ancestors(path: str) -> Iterator[tuple[str, str]]:
    """Names of the groups above a node with its path in each, nearest first, no more than three.

    >>> list(ancestors("a.zarr/s/1"))
    [('a.zarr/s', '1'), ('a.zarr', 's/1')]
    """
    above, inner = path.rstrip("/" + os.sep), ""
    for _ in range(3):
        above, _, name = above.rpartition("/")
        if not above or not name or above.endswith(":/"):
            return
        inner = f"{name}/{inner}" if inner else name
        yield above, inner


def outermost(path: str) -> str:
    """The whole store that a name means a part of; URLs stay as they are.

    >>> outermost("a.zarr/s/1"), outermost("a.zarr"), outermost("https://host/a.zarr/1")
    ('a.zarr', 'a.zarr', 'https://host/a.zarr/1')
    """
    folder = local_folder(path)
    if folder is None:
        return path
    above = [
        name for name, _ in ancestors(folder) if name.lower().endswith(".zarr") or is_node(name)
    ]
    return above[-1] if above else folder


# --------------------------------------------------------------------------------------------------
# On one thread


class _CallingThread(asyncio.SelectorEventLoop):
    """An event loop that hands nothing to other threads: what waits for a file or a codec does it itself."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class OneThread:
    """Arrays of stores in folders, read and written by the thread that asks, and in memory that is kept from read to read.

    By itself the library passes each chunk from its event loop's thread to those of a pool, both shared by all that a process
    does: a worker of one thread takes more than a core, and eight threads of a worker wait for one. Memory that is new is
    zeroed by the system page by page, which took as long as decoding: that of a box that was read serves the next, so what
    `array` gave before is then overwritten. One that is closed is of no further use.
    """

    def __init__(self) -> None:
        self._loop = _CallingThread()
        self._rooms: dict[str, np.ndarray[Any, Any]] = {}

    def room(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An array of this shape, not initialized: the same memory whenever the name is the same."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self._rooms or self._rooms[name].size < size:
            self._rooms.pop(name, None)
            self._rooms[name] = np.empty(size, np.uint8)
        return self._rooms[name][:size].view(dtype).reshape(shape)

    def array(self, array: Any, path: str) -> Any:
        """What reads and writes like the zarr Array of that name: itself if it is no folder's, since servers are waited for."""
        return array if local_folder(path) is None else _ArrayHere(array, self)

    def __enter__(self) -> OneThread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine of the library's."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Give the memory back."""
        self._rooms = {}
        self._loop.close()


class _ArrayHere:
    """A zarr Array on a thread."""

    def __init__(self, array: Any, thread: OneThread) -> None:
        self._array, self._thread = array.async_array, thread

    def __getitem__(self, selection: Any) -> Any:
        from zarr.core.buffer import cpu

        selection = selection if isinstance(selection, tuple) else (selection,)
        selection += (slice(None),) * (self._array.ndim - len(selection))
        shape = [
            len(range(*index.indices(size)))
            for index, size in zip(selection, self._array.shape, strict=True)
            if isinstance(index, slice)
        ]
        room: Any = self._thread.room("read", shape, self._array.dtype)
        # of slices and numbers, the library's orthogonal selection is the plain one; and it takes the place to read to
        self._thread.run(self._array.get_orthogonal_selection(selection, out=cpu.NDBuffer(room)))
        return room

    def __setitem__(self, selection: Any, values: Any) -> None:
        self._thread.run(self._array.setitem(selection, values))


# --------------------------------------------------------------------------------------------------
# Writing


class NewStore(Protocol):
    """A store being written: its nodes appear under their names on `commit`, and vanish on `abort`."""

    def node(self, name: str) -> Any:
        """Where the node of this name is written ("" is the store itself), as zarr takes it."""

    def address(self, name: str) -> str:
        """The same as a name that other processes open."""

    def commit(self) -> None:
        """Put the store in its place."""

    def abort(self) -> None:
        """Leave nothing behind. Harmless after `commit` and when called twice."""


def new_store(path: str, overwrite: bool) -> NewStore:
    """Start a store. Raises: OutputExistsError, WriteError, SpecError."""
    check_store_target(path, overwrite)
    folder = local_folder(path)
    return RemoteStore(path, overwrite) if folder is None else StoreFolder(folder, overwrite)


@lru_cache(maxsize=1)
def _flowing_store() -> Any:
    from zarr.storage import LocalStore

    class FlowingStore(LocalStore):
        """A folder whose files go to the disk as they are written: `commit`, which waits for them, has little left."""

        async def set(self, key: str, value: Any) -> None:
            await super().set(key, value)
            await asyncio.to_thread(_start_flushing, self.root / key)

    return FlowingStore if hasattr(os, "posix_fadvise") else LocalStore


def _start_flushing(file: Path) -> None:
    number = os.open(file, os.O_RDONLY)
    try:
        # of what is not on the disk yet, it starts the writing
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(number)


def folder_to_write(folder: str) -> Any:
    """A node in a folder, as zarr takes it."""
    return _flowing_store()(folder)


def check_store_target(path: str, overwrite: bool, make_folder: bool = False) -> None:
    """Refuse a store's name that cannot be written to, before any work.

    make_folder : bool      its folder may be missing as long as it can be made
    Raises: SpecError if it is no name for a store; OutputExistsError, WriteError.
    """
    if not path.rstrip("/" + os.sep).lower().endswith(".zarr"):
        raise SpecError(
            f"cannot write {path}: an OME-Zarr store has a name that ends in .zarr, and is written as a whole"
        )
    folder = local_folder(path)
    if folder is not None:
        check_target(folder, overwrite, make_folder, folder=True)
        # a folder of something else is not ours to delete, whatever it is called
        if os.path.isdir(folder) and os.listdir(folder) and not is_node(folder):
            raise WriteError(
                f"cannot write {path}: the folder exists and is no Zarr store; remove it first"
            )
        return
    if urlsplit(path).scheme in READ_ONLY_SCHEMES:
        raise WriteError(
            f"cannot write {path}: a web server can only be read from; write to a folder or to s3://"
        )
    import_zarr(path, WriteError)
    if not overwrite and RemoteStore(path, overwrite).exists():
        raise OutputExistsError(f"cannot write {path}: it exists; pass --overwrite to replace it")


@contextmanager
def unless_given_up(node: str) -> Iterator[None]:
    """Write into a node of an unfinished store only while it is there: another process may remove it, or put it in its place,
    and a late chunk would make its folder anew. Raises: WriteError.
    """
    if is_url(node):
        yield
        return
    if not is_node(node):
        raise WriteError("the unfinished store is gone: its job has ended")
    try:
        yield
    finally:
        if not is_node(node):
            shutil.rmtree(os.path.dirname(node), ignore_errors=True)
            raise WriteError("the unfinished store is gone: its job has ended")


class StoreFolder(AtomicFolder):
    """A new store in a folder of this machine."""

    def node(self, name: str) -> Any:
        """The store of a node in the temporary folder."""
        return folder_to_write(os.fspath(self.temporary / name if name else self.temporary))

    def commit(self) -> None:
        """As any folder, without what processes left that were killed while they wrote a chunk."""
        for left in self.temporary.rglob("*.partial"):
            left.unlink(missing_ok=True)
        super().commit()

    def address(self, name: str) -> str:
        """The node's folder, from the root."""
        return os.path.abspath(self.temporary / name)


class RemoteStore:
    """A new store at a URL. Nothing can be renamed there: chunks go to their places, and only the metadata of the group,
    which the writer creates last, make an image of them. What was there before goes first."""

    def __init__(self, path: str, overwrite: bool) -> None:
        self.path, self._overwrite = path.rstrip("/"), overwrite
        with zarr_errors(path, error=WriteError):
            from fsspec.core import url_to_fs

            self._files, self._inner = url_to_fs(self.path)
        self._begun = False

    def exists(self) -> bool:
        """Whether there is a node of this name."""
        with zarr_errors(self.path, error=WriteError):
            return any(self._files.exists(f"{self._inner}/{name}") for name in MARKERS)

    def node(self, name: str) -> Any:
        """The store of a node at its final place."""
        from zarr.storage import FsspecStore

        with zarr_errors(self.path, error=WriteError):
            if not self._begun:
                self._begun = True
                self._remove()
            return FsspecStore.from_url(joined(self.path, name) if name else self.path)

    def address(self, name: str) -> str:
        """The node's URL."""
        return joined(self.path, name)

    def _remove(self) -> None:
        # Metadata first: a store that is half gone must not look like an image. File by file: rm() takes a name such as
        # a[1].zarr for a pattern, and removes what it fits.
        first = [f"{self._inner}/{marker}" for marker in MARKERS]
        for file in [name for name in first if self._files.exists(name)]:
            self._files.rm_file(file)
        if self._files.exists(self._inner):
            for file in self._files.find(self._inner):
                self._files.rm_file(file)

    def commit(self) -> None:
        """Everything is in its place already."""
        self._begun = False

    def abort(self) -> None:
        """Remove what was written."""
        if self._begun:
            self._begun = False
            with zarr_errors(self.path, "while removing the unfinished store", WriteError):
                self._remove()


@contextmanager
def store_write_errors(path: str) -> Iterator[None]:
    """Whatever is raised while a store is written becomes a WriteError: the plain causes in plain words."""
    with zarr_errors(path, error=WriteError), write_errors(path):
        yield
