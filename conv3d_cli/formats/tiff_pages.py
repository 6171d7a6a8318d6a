"""The pages of a TIFF file: finding them, distrusting them, decoding them when they are asked for.

tifffile decodes; this module sees to it that nothing is believed which the file cannot keep (planes that are not there, pages
larger than their bytes can make), because tifffile fills such gaps with zeros and a line in its log. The chain that leads
from page to page is `tiff_directories.py`'s. Only tiff.py uses this module.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby, product
from typing import Any

import numpy as np

from conv3d_cli.errors import Conv3DError, FormatError, MemoryLimitError
from conv3d_cli.formats.codecs import codec_threads
from conv3d_cli.formats.tiff_packed import segment_bytes, unpack_here
from conv3d_cli.model.volume import Array
from conv3d_cli.tiff_directories import Directory

# How far a codec can shrink voxels: nothing is allocated for a page that claims to hold more than its bytes can.
MOST_SHRUNK = {8: 1100, 32946: 1100, 5: 4096, 32773: 130}  # deflate (two numbers), LZW, PackBits
MOST_SHRUNK_BY_OTHERS = 1 << 16
UNSUSPECTED_PAGE = 1 << 26  # bytes
UNPACKED_IN_PLACE = (5, 8, 32946, 50000)  # LZW, deflate, zstd: tifffile puts their strips where they belong


@contextmanager
def tiff_errors(path: str, what: str = "") -> Iterator[None]:
    """Turn whatever tifffile raises in the body into a FormatError of one line, and keep its log off the screen."""
    import logging

    thread = threading.get_ident()

    def silence(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger("tifffile")
    logger.addFilter(silence)
    try:
        yield
    except Conv3DError:
        raise
    except Exception as error:  # tifffile raises a dozen kinds: struct.error, KeyError, zlib.error, RuntimeError, ...
        what = f"{what}: " if what else ""
        if isinstance(error, MemoryError):
            raise MemoryLimitError(f"cannot read {path}: {what}it does not fit into memory ({error})") from error
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            cure = "its compression needs imagecodecs: pip install 'conv3d[tiff]'"
            raise FormatError(f"cannot read {path}: {what}{cure}") from error
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(f"cannot read {path}: {what}damaged, or of a kind that cannot be read ({cause})") from error
    finally:
        logger.removeFilter(silence)


# ---------------------------------------------------------------------------------------------------------------------
# Pages of a series


def usable_pages(
    tiff: Any, series: Any, directories: Mapping[str, Sequence[Directory]], path: str, absent: str = ""
) -> list[Any]:
    """The series' pages, after a check that they are all there, alike, and within their files.

    (A volume above 4 GB in an ImageJ file has one page, with all its voxels behind it.)
    directories : dict      of each file, by its real path
    absent : str            why planes may be missing, for the message
    Raises: FormatError.
    """
    keyframe = series.keyframe
    with tiff_errors(path):
        if keyframe.parent is tiff:
            tiff.pages.useframes = True  # the light kind, for pages that were not needed so far
            tiff.pages.set_keyframe(keyframe.index)
        pages = list(series)
        missing = sum(page is None for page in pages)
        if missing:
            raise FormatError(f"cannot read {path}: {missing} of its {len(pages)} planes are missing{absent}")
        _check_alike(pages, series, directories, path)
        if not series.is_truncated and math.prod(series.shape) != len(pages) * math.prod(keyframe.shape):
            raise FormatError(
                f"cannot read {path}: truncated or damaged: its description speaks of shape {series.shape}, "
                f"the file holds {len(pages)} pages of {keyframe.shape}"
            )
        return [_usable_page(page, path, "" if page.parent is tiff else f" of {_file(page)}") for page in pages]


def _file(page: Any) -> str:
    return os.path.realpath(page.parent.filehandle.path)


def _check_alike(pages: Sequence[Any], series: Any, directories: Mapping[str, Sequence[Directory]], path: str) -> None:
    """Refuse pages that differ: within a file in whatever their directories say, between files in size and type.

    Raises: FormatError.
    """
    layouts = {file: {d.offset: d.layout for d in found} for file, found in directories.items()}
    groups: dict[int, list[Any]] = {}
    for page in pages:
        groups.setdefault(id(page.parent), []).append(page)
    keyframe = series.keyframe
    for group in groups.values():
        file = _file(group[0])
        known = layouts.get(file, {})
        own = [page for page in group if len(page.treeindex) == 1 and page.offset in known]
        for place, page in enumerate(own):
            follows = series.kind != "generic" or page.index == own[0].index + place
            if not follows or known[page.offset] != known[own[0].offset]:
                odd = page.index if follows else own[0].index + place
                of = "" if page.parent is series.parent else f" of {file}"
                raise FormatError(
                    f"cannot read {path}: page {odd + 1}{of} differs from page {own[0].index + 1} in size, type or "
                    "compression; a volume's pages must be alike"
                )
        models = {id(page.keyframe): page.keyframe for page in group}.values()  # by which tifffile decodes the pages
        alike = all((model.shape, model.dtype) == (keyframe.shape, keyframe.dtype) for model in models)
        for model in models:
            if own and model.parent is not own[0].parent:  # that of a file of the same name in another folder
                alike = alike and model.parent.byteorder == own[0].parent.byteorder
                alike = alike and layouts[_file(model)].get(model.offset) == known[own[0].offset]
        if not alike:
            raise FormatError(
                f"cannot read {path}: the planes in {file} differ from those in {_file(keyframe)} in size, type or "
                "compression; a volume's planes must be alike"
            )


def _usable_page(page: Any, path: str, of: str) -> Any:
    """The page itself, or a fuller reading of it, if what it claims is possible.

    of : str        its file, for messages
    Raises: FormatError.
    """
    name = f"page {page.index + 1}{of}"
    keyframe = page.keyframe
    offsets, counts = page.dataoffsets, page.databytecounts
    size = page.parent.filehandle.size
    voxels = math.prod(keyframe.shaped)
    bits = keyframe.bitspersample if isinstance(keyframe.bitspersample, int) else max(keyframe.bitspersample)
    if keyframe.dtype is None:
        raise FormatError(f"cannot read {path}: {name} holds voxels of an unknown type ({bits} bits)")
    if voxels == 0:
        raise FormatError(f"cannot read {path}: {name} is empty, shape {keyframe.shape}")
    segments = math.prod(keyframe.chunked)
    if min(len(offsets), len(counts)) < segments or (not keyframe.is_tiled and not all(offsets[:segments])):
        raise FormatError(
            f"cannot read {path}: truncated or damaged: {name} lacks some of its {segments} strips or tiles"
        )
    if any(offset + count > size for offset, count in zip(offsets, counts, strict=False)):
        raise FormatError(f"cannot read {path}: truncated: {name} lies beyond the end of the file ({size} bytes)")
    held = sum(counts)
    if keyframe.compression == 1:
        possible = held * 8 // bits
    else:
        ratio = MOST_SHRUNK.get(keyframe.compression, MOST_SHRUNK_BY_OTHERS)
        possible = max(held * ratio, UNSUSPECTED_PAGE) // keyframe.dtype.itemsize
    if voxels > possible:
        raise FormatError(
            f"cannot read {path}: truncated or damaged: {name} claims {voxels} voxels, its {held} bytes hold {possible} at most"
        )
    if keyframe.is_contiguous and any(offsets[i] + counts[i] != offsets[i + 1] for i in range(len(offsets) - 1)):
        return _whole_page(page)  # as a frame it would be believed to be in one piece because the first page is
    return page


def _whole_page(frame: Any) -> Any:
    handle = frame.parent.filehandle
    closed = handle.closed
    if closed:  # another file than the one that was opened
        handle.open()
    try:
        return frame.aspage()
    finally:
        if closed:
            handle.close()


def mapped_offset(
    tiff: Any, series: Any, pages: Sequence[Any], directories: Sequence[Directory], path: str
) -> int | None:
    """Where the series' voxels begin if they lie in the opened file in one piece, uncompressed; else None.

    directories : list      those of the file

    Raises: FormatError if page directories lie where voxels should be: the description promises more than there is.
    """
    with tiff_errors(path):
        # tifffile's number counts the bytes of whichever file the pages lie in
        offset = series.dataoffset if all(page.parent is tiff for page in pages) else None
    if offset is None:
        return None
    end = offset + math.prod(series.shape) * series.dtype.itemsize
    if any(offset <= directory.offset < end for directory in directories):
        raise FormatError(
            f"cannot read {path}: truncated or damaged: its description speaks of shape {series.shape}, "
            "but there are page directories where such voxels would lie"
        )
    return int(offset)


class PagedArray:
    """A series' voxels as an array that decodes pages when it is indexed: by integers and slices, one for each axis.

    Several pages are decoded side by side; of a single one, its strips or tiles are.

    pages : list            each holds the same number of voxels; one after the other they are the array
    shape : tuple           of the array
    dtype : numpy dtype     as decoded
    first : file handle     of the file that was opened; pages of an OME volume may lie in others
    """

    def __init__(
        self, pages: Sequence[Any], shape: tuple[int, ...], dtype: np.dtype[Any], path: str, first: Any
    ) -> None:
        self.pages, self.shape, self.dtype, self.path = pages, shape, dtype, path
        self._first = first
        # the axes before `_split` count pages, the others lie within a page
        self._split = next((k for k in range(len(shape) + 1) if math.prod(shape[:k]) == len(pages)), -1)
        if self._split < 0:
            raise FormatError(f"cannot read {path}: its {len(pages)} pages do not divide the shape {shape}")
        self._last: tuple[int, Array] | None = None
        # Whole pages of the last read, a slab that is still in use: those that the next one reads again are its halo.
        self._kept: dict[int, Array] = {}
        self._workers = codec_threads()
        self._pool = ThreadPoolExecutor(self._workers, "conv3d-tiff")
        self._lock = threading.RLock()  # of the file's position
        for keyframe in {id(page.keyframe): page.keyframe for page in pages}.values():
            unpack_here(keyframe)

    def held_bytes(self) -> int:
        """Memory beside what is handed out: packed pages and unpacked strips of the pages in work, and a page that is kept."""
        keyframe = self.pages[0].keyframe
        packed = 0 if keyframe.is_contiguous else max(sum(page.databytecounts) for page in self.pages)
        page = math.prod(keyframe.shaped) * keyframe.dtype.itemsize
        return self._workers * (packed + 2 * segment_bytes(keyframe)) + page

    def storage(self) -> dict[str, str]:
        """How pages are stored, for people."""
        import tifffile

        code = self.pages[0].keyframe.compression
        try:
            name = tifffile.COMPRESSION(code).name.lower().replace("_", " ")
        except ValueError:
            name = f"unknown ({code})"  # also several numbers, where one belongs
        return {"compression": name}

    def close(self) -> None:
        """End the threads; the files are the caller's."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept = {}

    def __getitem__(self, index: tuple[int | slice, ...]) -> Array:
        inner = index[self._split :]
        ranges = [
            range(*i.indices(size)) if isinstance(i, slice) else range(i, i + 1)
            for i, size in zip(index, self.shape, strict=True)
        ]
        kept = [len(r) for r, i in zip(ranges, index, strict=True) if isinstance(i, slice)]
        places = self.shape[: self._split]
        numbers = [
            int(np.ravel_multi_index(where, places)) if where else 0 for where in product(*ranges[: self._split])
        ]
        if len(numbers) == 1:
            return self._page(numbers[0])[inner].reshape(kept)
        within = [len(r) for r, i in zip(ranges[self._split :], inner, strict=True) if isinstance(i, slice)]
        result = np.empty((len(numbers), *within), self.dtype)
        decoded = []
        for position, number in enumerate(numbers):
            if number in self._kept:
                result[position] = self._kept[number][inner]
            else:
                decoded.append((number, result[position, ...]))
        # one file at a time is open; all pages of most volumes lie in one
        for _, together in groupby(decoded, key=lambda item: id(self.pages[item[0]].parent)):
            self._decode(list(together), inner)
        page = self.shape[self._split :]
        if result[:1].size == math.prod(page):
            self._kept = {number: result[i].reshape(page) for i, number in enumerate(numbers)}
        return result.reshape(kept)

    def _decode(self, targets: list[tuple[int, Array]], inner: tuple[int | slice, ...]) -> None:
        """Fill arrays with pages of one file, or with parts of them, side by side."""
        shape = self.shape[self._split :]

        def decode(item: tuple[int, Array]) -> None:
            number, target = item
            page = self.pages[number]
            with tiff_errors(self.path, f"page {page.index + 1}"):
                if target.size == math.prod(shape) and page.keyframe.compression in UNPACKED_IN_PLACE:
                    page.asarray(out=target, lock=self._lock, maxworkers=1)
                else:
                    target[...] = page.asarray(lock=self._lock, maxworkers=1).reshape(shape)[inner]

        with tiff_errors(self.path):
            self._open(self.pages[targets[0][0]].parent.filehandle)
        for _ in self._pool.map(decode, targets):
            pass  # raises what the page's thread raised

    def _page(self, number: int) -> Array:
        # One page may hold several planes or channels (samples stored apart), which are then asked for one by one.
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        self._last = None
        page = self.pages[number]
        with tiff_errors(self.path, f"page {page.index + 1}"):
            self._open(page.parent.filehandle)
            values = page.asarray(lock=self._lock, maxworkers=self._workers).reshape(self.shape[self._split :])
        self._last = (number, values)
        return values

    def _open(self, handle: Any) -> None:
        """Open the file of a page, and no more than one beside the first."""
        if handle.closed:
            for other in {id(page.parent): page.parent.filehandle for page in self.pages}.values():
                if other is not self._first:
                    other.close()
            handle.open()
