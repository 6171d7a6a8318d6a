"""Zarr stores in folders and at URLs: their names, opening their nodes, and writing new stores.

A store's name is a folder, or a URL that fsspec understands (`https://`, `s3://`, `memory://`);
`file://` is a folder. os.path is never used on URLs. A new store appears complete or not at all.
zarr is imported late.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import stat
import threading
import warnings
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from traceback import walk_tb
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    MemoryLimitError,
    OutputExistsError,
    SpecError,
    WriteError,
    setting,
)
from conv3d_cli.formats.zarr import remote
from conv3d_cli.formats.zarr.chunks import FolderArray
from conv3d_cli.formats.zarr.codecs import (
    READ_ENTRY_BYTES,
    bound_codecs,
    check_codecs,
    most_in_an_index,
)
from conv3d_cli.formats.zarr.names import (
    LARGEST_METADATA,
    MARKERS,
    archive_of,
    is_node,
    is_url,
    listing,
    local_folder,
)
from conv3d_cli.system.atomic import (
    AtomicFolder,
    cause_of,
    check_target,
    how_to_replace,
    new_hidden_folder,
    output_file,
    remove_folder,
    write_errors,
)
from conv3d_cli.system.faults import explained, raise_fault
from conv3d_cli.system.inputs import (
    check_input,
    check_regular,
    near_names,
    walk,
    why_unreadable,
)
from conv3d_cli.system.room import require_room

READ_ONLY_SCHEMES = ("http", "https")
CURE = "pip install 'conv3d[zarr]'"
# of the file systems of fsspec that come in packages of their own
PACKAGES = {
    **dict.fromkeys(("http", "https"), "'conv3d[zarr]'"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}


def import_zarr(path: str, error: type[Conv3DError] = FormatError) -> Any:
    """The zarr package, version 3.1 or newer. Raises: `error` with the cure if it is missing."""
    verb = "read" if error is FormatError else "write"
    try:
        import zarr
    except ImportError as cause:
        raise error(f"cannot {verb} {path}: Zarr needs the zarr package: {CURE}") from cause
    # 3.0 reads big-endian voxels wrongly
    if tuple(int(part) for part in zarr.__version__.split(".")[:2]) < (3, 1):
        raise error(
            f"cannot {verb} {path}: Zarr needs zarr 3.1 or newer, not {zarr.__version__}: {CURE}"
        )
    logging.getLogger("asyncio").addFilter(_is_not_of_a_read)  # once: a filter is not added twice
    return zarr


def _is_not_of_a_read(record: logging.LogRecord) -> bool:
    """False if asyncio tells of an error in one of zarr's reads.

    The first error of several reads ends a command, and zarr's loop with it; what the others found
    is then asked for by nobody, and asyncio prints a traceback beside the command's own line.
    """
    error = record.exc_info[1] if record.exc_info else None
    frames = walk_tb(error.__traceback__ if error else None)
    names = (str(frame.f_globals.get("__name__")) for frame, _ in frames)
    return all(name.partition(".")[0] != "zarr" for name in names)


@contextmanager
def zarr_errors(
    path: str, what: str = "", error: type[Conv3DError] = FormatError
) -> Iterator[None]:
    """Turn whatever zarr and file systems raise in the body into an `error` of one line.

    path : str      of the store
    what : str      what is read or written, such as "planes 0 to 31", for the message
    error : class   FormatError when reading, WriteError when writing
    Raises: `error`; MemoryLimitError for a MemoryError.
    """
    try:
        yield
    except Conv3DError:
        raise
    except Exception as cause:  # zarr, numcodecs, fsspec and aiohttp each raise their own kinds
        what = f"{what}: " if what else ""
        start = f"cannot {'read' if error is FormatError else 'write'} {path}: {what}"
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        if isinstance(cause, remote.SilentServerError):
            raise error(f"{start}{cause}") from cause
        if isinstance(cause, TimeoutError):
            raise error(
                f"{start}the server did not answer in time; try again, or pass "
                f"{setting('timeout')} with more seconds"
            ) from cause
        if isinstance(cause, MemoryError):
            raise MemoryLimitError(f"{start}it does not fit into memory ({words})") from cause
        if isinstance(cause, ImportError):  # of one of fsspec's file systems
            scheme = urlsplit(path).scheme
            package = PACKAGES.get(scheme)
            cure = words if package is None else f"pip install {package}"
            raise error(f"{start}its file system needs a package: {cure}") from cause
        if isinstance(cause, FileNotFoundError):
            raise error(f"{start}no such file or folder; correct the address") from cause
        if type(cause).__name__ == "UnknownCodecError" or "codec not available" in words:
            raise error(f"{start}it is compressed by an unknown codec ({words})") from cause
        if "Protocol not known" in words:
            raise error(f"{start}no file system is known for {urlsplit(path).scheme}://") from cause
        if isinstance(cause, OSError) and cause.strerror and "://" not in path:
            reason = why_unreadable(cause) if error is FormatError else cause_of(cause)
            raise error(f"{start}{reason}") from cause
        if (fault := explained(cause)) is not None and not isinstance(cause, OSError):
            raise type(fault)(f"{start}{fault}") from cause
        if isinstance(cause, OSError) and cause.strerror:
            raise error(f"{start}{cause.strerror}; correct the address, or try again") from cause
        if type(cause).__module__.partition(".")[0] in ("aiohttp", "fsspec", "botocore", "s3fs"):
            raise error(f"{start}the server refuses or cannot be reached ({words})") from cause
        raise error(f"{start}damaged, or of a kind that cannot be read ({words})") from cause


# --------------------------------------------------------------------------------------------------
# Reading


class ChunkWatch:
    """Watches the chunks that a store passes to zarr.

    missing : int       number of requests for chunks that are not in the store
    retries : int       number of times that a server was asked again
    """

    def __init__(self) -> None:
        self.missing = self.retries = 0
        self._lock = threading.Lock()

    def see(self, key: str, found: Any) -> None:
        """Count the answer to a request for a chunk.

        key : str               name of the chunk in the store
        found : buffer or None  zarr's; None if the chunk is missing
        """
        if found is None:
            with self._lock:
                self.missing += 1

    def asked_again(self) -> None:
        """Count another request for the same answer."""
        with self._lock:
            self.retries += 1


METADATA = (*MARKERS, ".zmetadata")


@lru_cache(maxsize=1)
def _watched_store() -> Any:
    from zarr.storage import LocalStore, WrapperStore, ZipStore

    class WatchedStore(WrapperStore):  # type: ignore[type-arg, unused-ignore]
        """A store whose answers are checked, and shown to `watch`.

        `path` is the store's for messages, `most` the most bytes of a chunk. (Defined here because
        zarr is imported late.)
        """

        path = ""
        most = LARGEST_METADATA

        def __init__(self, inner: Any, watch: ChunkWatch | None = None) -> None:
            super().__init__(inner)
            self.watch, self.seconds = watch or ChunkWatch(), remote.timeout()

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            told = PurePosixPath(key).name in METADATA  # zarr tries several names
            most = LARGEST_METADATA if told else self.most
            inner = self._store
            if isinstance(inner, LocalStore | ZipStore):
                if isinstance(inner, LocalStore):
                    _check_regular(f"{inner.root}/{key}")
                if byte_range is None:
                    remote.check_size(key, await self._size(key), most)
                found = await super().get(key, prototype, byte_range)
            else:
                found = await remote.patiently(
                    lambda: inner.get(key, prototype, byte_range),
                    most,
                    self.seconds,
                    self.watch.asked_again,
                )
            if told and found is not None:
                check_codecs(self.path, key, found.to_bytes())
            elif not told:
                self.watch.see(key, found)
            return found

        async def _size(self, key: str) -> int:
            """Bytes of a file in a folder or a zip file; 0 if it is missing."""
            inner = self._store
            try:
                if isinstance(inner, LocalStore):
                    return os.stat(f"{inner.root}/{key}").st_size
                if not inner._is_open:
                    await inner._open()
                return int(inner._zf.getinfo(key).file_size)
            except (OSError, KeyError):
                return 0

    return WatchedStore


def _check_regular(path: str) -> None:
    """Raise FormatError for what is there, and no file or folder: zarr would wait for a pipe."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # such as: it is missing, which may be right
        return
    if not stat.S_ISDIR(mode):
        check_regular(mode, path)


def open_node(path: str, watch: ChunkWatch | None = None) -> Any:
    """Open the zarr Group or Array of a name.

    watch : ChunkWatch or None      watches the chunks that are read
    Raises: FormatError if there is none, or if it cannot be read.
    """
    folder = local_folder(path)
    archive = archive_of(path)
    if archive is not None:
        _check_archive(path, archive[0])
    elif folder is not None:
        if not os.path.lexists(folder):
            near = _arrays_beside(folder) or near_names(folder)
            raise FormatError(f"cannot read {path}: no such file or folder{near}")
        if not os.path.isdir(folder):
            raise FormatError(f"cannot read {path}: it is a file; a Zarr store is a folder")
        if not is_node(folder):
            for marker in MARKERS:
                _check_regular(os.path.join(folder, marker))
            raise FormatError(
                f"cannot read {path}: it is not a Zarr store: "
                "the folder holds no zarr.json, .zgroup or .zarray"
            )
    zarr = import_zarr(path)
    with zarr_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as: the node has metadata of both formats
        from zarr.storage import FsspecStore, LocalStore, ZipStore

        inner: Any
        place = ""
        if archive is not None:
            inner = ZipStore(archive[0], read_only=True)
            place = "/".join(part for part in (listing(archive[0])[1], archive[1]) if part)
        elif folder is not None:
            inner = LocalStore(folder, read_only=True)
        else:
            options = remote.storage_options(path)
            inner = FsspecStore.from_url(path, storage_options=options, read_only=True)
        store = _watched_store()(inner, watch)
        store.path = path
        try:
            node = zarr.open(store=store, path=place, mode="r", use_consolidated=False)
        except FileNotFoundError:
            raise FormatError(f"cannot read {path}: no such Zarr store") from None
        if is_array(node):
            needed = READ_ENTRY_BYTES * most_in_an_index(node)
            require_room(needed, "the index of a shard", path)
            store.most = bound_codecs(node)
        return node


def _check_archive(path: str, file: str) -> None:
    """Check that a zip file holds the node of a name. Raises: FormatError."""
    check_input(file)
    try:
        listing(file)
    except (OSError, BadZipFile, NotImplementedError) as error:
        raise_fault(error, path)
        raise FormatError(f"cannot read {path}: not a zip file, or truncated ({error})") from error
    if not is_node(file):
        raise FormatError(
            f"cannot read {path}: it is not a zipped Zarr store: it holds no zarr.json, .zgroup or "
            ".zarray at its top, nor in a single folder"
        )
    if not is_node(path):
        raise FormatError(f"cannot read {path}: no such group or array in {file}")


def _arrays_beside(folder: str) -> str:
    """What a store holds instead of a name, for messages; "" if it is no store, or holds nothing.

    folder : str    the path of a group or array that does not exist
    """
    store = os.path.dirname(folder.rstrip("/" + os.sep))
    if not is_node(store):
        return ""
    inside = sorted(name for name in os.listdir(store) if is_node(os.path.join(store, name)))
    return f"; {os.path.basename(store)} holds {', '.join(inside)}" if inside else ""


def is_array(node: Any) -> bool:
    """True if an opened node is an array, not a group."""
    return hasattr(node, "chunks")


def members(group: Any) -> list[str]:
    """Names of the groups and arrays in a group, sorted; [] if its store cannot list them."""
    try:
        return sorted(name for name, _ in group.members(max_depth=0))
    except Exception:  # of any kind: web servers list nothing
        return []


def first_array(group: Any, depth: int = 3) -> str:
    """The path, in a group, of the first image or array in it; "" without one.

    depth : int     levels of groups to search
    """
    for name in members(group):
        if is_array(group[name]) or is_image(group, name):
            return name
        inside = first_array(group[name], depth - 1) if depth > 1 else ""
        if inside:
            return f"{name}/{inside}"
    return ""


def is_image(group: Any, path: str) -> bool:
    """True if a node in a group is described as an OME image."""
    attributes = group[path].attrs.asdict()
    inner = attributes.get("ome")
    return "multiscales" in {*attributes, *(inner if isinstance(inner, dict) else ())}


def joined(path: str, *parts: str) -> str:
    """The name of a node inside a store.

    >>> joined("s3://bucket/a.zarr/", "0")
    's3://bucket/a.zarr/0'
    """
    return "/".join([path.rstrip("/" + os.sep), *parts])


# --------------------------------------------------------------------------------------------------
# On one thread


class _OneThreadLoop(asyncio.SelectorEventLoop):
    """An event loop without other threads: it runs what would go to an executor itself."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class OneThread:
    """Reads and writes arrays of stores in folders on the calling thread, with reused memory.

    By itself, zarr passes each chunk from the thread of its event loop to a pool of threads, both
    shared by the whole process: a worker with one thread takes more than a core, and eight threads
    of a worker wait for one. The system also zeroes new memory page by page, which took as long as
    decoding. So the memory of one box is reused for the next: a read from `array` overwrites the
    result of the one before. It cannot be used after `close`.
    """

    def __init__(self) -> None:
        self._loop = _OneThreadLoop()
        self._buffers: dict[str, np.ndarray[Any, Any]] = {}

    def buffer(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An uninitialized array; all arrays of the same name share their memory."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)
            self._buffers[name] = np.empty(size, np.uint8)
        return self._buffers[name][:size].view(dtype).reshape(shape)

    def array(self, array: Any, path: str) -> Any:
        """The array at a path, zarr's or a `FolderArray`, read and written on this thread.

        Arrays at URLs and in zip files are returned unchanged: they wait for others, not for a CPU.
        """
        if isinstance(array, FolderArray):
            return _OneThreadFolderArray(array, self)
        far = local_folder(path) is None or archive_of(path) is not None
        return array if far else _OneThreadArray(array, self)

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
        """The result of one of zarr's coroutines."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Release the memory and close the event loop."""
        self._buffers = {}
        self._loop.close()


class _OneThreadFolderArray:
    """A FolderArray that a `OneThread` reads and writes."""

    def __init__(self, array: FolderArray, thread: OneThread) -> None:
        self._array, self._thread = array.with_workers(1), thread

    def __getitem__(self, selection: Any) -> Any:
        dtype = self._array.dtype
        return self._array.read(selection, lambda shape: self._thread.buffer("read", shape, dtype))

    def __setitem__(self, selection: Any, values: Any) -> None:
        self._array[selection] = values


class _OneThreadArray:
    """A zarr Array that a `OneThread` reads and writes."""

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
        values: Any = self._thread.buffer("read", shape, self._array.dtype)
        # For slices and integers, zarr's orthogonal selection is basic indexing; it also takes an
        # output array.
        self._thread.run(self._array.get_orthogonal_selection(selection, out=cpu.NDBuffer(values)))
        return values

    def __setitem__(self, selection: Any, values: Any) -> None:
        self._thread.run(self._array.setitem(selection, values))


# --------------------------------------------------------------------------------------------------
# Writing


class NewStore(Protocol):
    """A store being written: `commit` makes its nodes appear, `abort` removes them."""

    def node(self, name: str) -> Any:
        """The zarr store to write the node `name` to; "" is the whole store."""

    def address(self, name: str) -> str:
        """The folder or URL where other processes can open the node `name`."""

    def commit(self) -> None:
        """Put the store in its place."""

    def abort(self) -> None:
        """Leave nothing behind. Harmless after `commit` and when called twice."""


def new_store(path: str, overwrite: bool) -> NewStore:
    """Start a store: see `check_store_target`. Raises: OutputExistsError, WriteError, SpecError."""
    if archive_of(path) is not None:
        return StoreArchive(path, overwrite)
    check_store_target(path, overwrite)
    folder = local_folder(path)
    return RemoteStore(path, overwrite) if folder is None else StoreFolder(folder, overwrite)


def folder_to_write(folder: str) -> Any:
    """The zarr store to write a node in a folder to."""
    from zarr.storage import LocalStore

    return LocalStore(folder)


def check_store_target(path: str, overwrite: bool, make_folder: bool = False) -> None:
    """Check, before any work, that a store can be written under its name.

    overwrite : bool        accept a store that exists
    make_folder : bool      accept a missing folder that can be made
    Raises: SpecError if the name does not end in .zarr; OutputExistsError, WriteError.
    """
    if not path.rstrip("/" + os.sep).lower().endswith(".zarr"):
        raise SpecError(
            f"cannot write {path}: the name of an OME-Zarr store ends in .zarr, "
            "and a store is written as a whole"
        )
    folder = local_folder(path)
    if folder is not None:
        check_target(folder, overwrite, make_folder, folder=True)
        # never delete a folder of something else, whatever its name
        if os.path.isdir(folder) and os.listdir(folder) and not is_node(folder):
            raise WriteError(
                f"cannot write {path}: the folder exists and is not a Zarr store; remove it first"
            )
        return
    if urlsplit(path).scheme in READ_ONLY_SCHEMES:
        raise WriteError(
            f"cannot write {path}: a web server can only be read from; "
            "write to a folder or to s3://"
        )
    import_zarr(path, WriteError)
    if not overwrite and RemoteStore(path, overwrite).exists():
        raise OutputExistsError(f"cannot write {path}: it exists; {how_to_replace()}")


@contextmanager
def unless_given_up(node: str) -> Iterator[None]:
    """Write into a node of an unfinished store only while the node exists.

    Another process may remove the store or put it in its place; a late chunk would then create its
    folder again. This removes such a folder.
    Raises: WriteError if the node is gone.
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
        """The zarr store of a node in the temporary folder."""
        return folder_to_write(os.fspath(self.temporary / name if name else self.temporary))

    def commit(self) -> None:
        """Remove half-written chunks of killed processes, and put the folder in its place."""
        try:
            with write_errors(self.path):
                for where, names in walk(self.temporary):
                    for name in names:
                        if name.endswith(".partial"):
                            Path(where, name).unlink(missing_ok=True)
        except BaseException:
            self.abort()
            raise
        super().commit()

    def address(self, name: str) -> str:
        """The absolute path of the node's folder."""
        return os.path.abspath(self.temporary / name)


class StoreArchive:
    """A new store in a zip file, as NGFF's RFC-9 describes it.

    The store is made in a hidden folder beside the file; `commit` packs it without compressing it
    again: first the metadata, breadth first, so that a reader finds them together.

    Raises: SpecError for a node in a zip file; OutputExistsError, WriteError.
    """

    def __init__(self, path: str, overwrite: bool) -> None:
        archive = archive_of(path)
        if archive is None or archive[1]:
            raise SpecError(f"cannot write {path}: a zipped store is written as a whole")
        self.path = path
        self._output = output_file(path, overwrite)
        try:
            with write_errors(path):
                self._folder, self._hold = new_hidden_folder(Path(os.path.realpath(path)), "store")
        except BaseException:
            self._output.abort()
            raise

    def node(self, name: str) -> Any:
        """The zarr store of a node in the temporary folder."""
        return folder_to_write(os.fspath(self._folder / name if name else self._folder))

    def address(self, name: str) -> str:
        """The absolute path of the node's folder."""
        return os.path.abspath(self._folder / name)

    def commit(self) -> None:
        """Pack the store, put the file in its place and remove the folder."""
        with write_errors(self.path):
            files = [Path(where, name) for where, names in walk(self._folder) for name in names]
        names = [file.relative_to(self._folder).as_posix() for file in files]
        names = [name for name in names if not name.endswith(".partial")]
        names.sort(key=lambda n: (PurePosixPath(n).name not in MARKERS, n.count("/"), n))
        with write_errors(self.path), ZipFile(self._output.file, "w") as archive:
            for name in names:
                # a fixed date: the same volume gives the same bytes
                entry = ZipInfo(name)
                entry.external_attr = 0o644 << 16
                source = self._folder / name
                with open(source, "rb") as given, archive.open(entry, "w", force_zip64=True) as to:
                    shutil.copyfileobj(given, to, 1 << 20)
            if "zarr.json" in names:
                archive.comment = b'{"ome": {"version": "0.5"}}'
        self._output.commit()
        self._remove()

    def abort(self) -> None:
        """Remove the unfinished file and the folder."""
        self._output.abort()
        self._remove()

    def _remove(self) -> None:
        remove_folder(self._folder)
        self._hold.release()


class RemoteStore:
    """A new store at a URL, where nothing can be renamed.

    Chunks are written to their final places. Only the metadata of the group, which the writer
    creates last, make an image of them. An old store is removed first.

    overwrite : bool    replace a store that exists
    Raises: WriteError.
    """

    def __init__(self, path: str, overwrite: bool) -> None:
        self.path, self._overwrite = path.rstrip("/"), overwrite
        with zarr_errors(path, error=WriteError):
            from fsspec.core import url_to_fs

            self._options = remote.storage_options(self.path)
            self._files, self._inner = url_to_fs(self.path, **self._options)
        self._begun = False

    def exists(self) -> bool:
        """True if there is a node at the URL. Raises: WriteError."""
        with zarr_errors(self.path, error=WriteError):
            return any(self._files.exists(f"{self._inner}/{name}") for name in MARKERS)

    def node(self, name: str) -> Any:
        """The zarr store of a node at its final place. Raises: WriteError."""
        from zarr.storage import FsspecStore

        with zarr_errors(self.path, error=WriteError):
            if not self._begun:
                self._begun = True
                self._remove()
            url = joined(self.path, name) if name else self.path
            return FsspecStore.from_url(url, storage_options=self._options)

    def address(self, name: str) -> str:
        """The node's URL."""
        return joined(self.path, name)

    def _remove(self) -> None:
        # Metadata first: a half-removed store must not look like an image. File by file: rm() takes
        # a name such as a[1].zarr for a pattern, and removes whatever matches it.
        first = [f"{self._inner}/{marker}" for marker in MARKERS]
        for file in [name for name in first if self._files.exists(name)]:
            self._files.rm_file(file)
        if self._files.exists(self._inner):
            for file in self._files.find(self._inner):
                self._files.rm_file(file)

    def commit(self) -> None:
        """Do nothing: all files are in their places."""
        self._begun = False

    def abort(self) -> None:
        """Remove what was written. Raises: WriteError."""
        if self._begun:
            self._begun = False
            with zarr_errors(self.path, "while removing the unfinished store", WriteError):
                self._remove()


@contextmanager
def store_write_errors(path: str) -> Iterator[None]:
    """Turn whatever is raised while a store is written into a WriteError of one line."""
    with zarr_errors(path, error=WriteError), write_errors(path):
        yield
