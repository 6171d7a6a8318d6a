"""The pages of a TIFF volume, decoded when they are asked for.

series.py has checked them: they exist, are alike, and lie within their files.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, product
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.codecs import codec_threads
from conv3d_cli.formats.tiff.compressed import segment_bytes, unpack_here
from conv3d_cli.formats.tiff.series import tiff_errors
from conv3d_cli.model.volume import Array

# LZW, deflate (two numbers), zstd: tifffile decodes their strips into the output array
DECODED_IN_PLACE = (5, 8, 32946, 50000)


class PagedArray:
    """The voxels of a series as an array that decodes pages when it is indexed.

    An index has an integer or a slice for each axis. Several pages are decoded in parallel; of a
    single page, its strips or tiles are.

    pages : list            pages with the same number of voxels each; in sequence, the whole array
    shape : tuple           of the array
    dtype : numpy dtype     of the decoded voxels
    path : str              for error messages
    first : file handle     of the file that was opened; pages of an OME volume may be in others
    Raises: FormatError if the pages do not divide the shape.
    """

    def __init__(
        self,
        pages: Sequence[Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        path: str,
        first: Any,
    ) -> None:
        self.pages, self.shape, self.dtype, self.path = pages, shape, dtype, path
        self._first = first
        # the axes before `_split` number the pages, the others are those of a page
        self._split = next(
            (k for k in range(len(shape) + 1) if math.prod(shape[:k]) == len(pages)), -1
        )
        if self._split < 0:
            raise FormatError(
                f"cannot read {path}: its {len(pages)} pages do not divide the shape {shape}"
            )
        self._last: tuple[int, Array] | None = None
        # Whole pages of the last slab; the next slab's halo reads some of them again.
        self._kept: dict[int, Array] = {}
        self._workers = codec_threads()
        self._pool = ThreadPoolExecutor(self._workers, "conv3d-tiff")
        self._lock = threading.RLock()  # guards the file's position
        for keyframe in {id(page.keyframe): page.keyframe for page in pages}.values():
            unpack_here(keyframe)

    def buffer_bytes(self) -> int:
        """Memory besides the arrays returned.

        Packed bytes and unpacked strips of the pages being decoded, and the last page.
        """
        keyframe = self.pages[0].keyframe
        packed = (
            0 if keyframe.is_contiguous else max(sum(page.databytecounts) for page in self.pages)
        )
        page: int = math.prod(keyframe.shaped) * keyframe.dtype.itemsize
        return self._workers * (packed + 2 * segment_bytes(keyframe)) + page

    def storage(self) -> dict[str, str]:
        """How the pages are stored, in words: {"compression": name}."""
        import tifffile

        code = self.pages[0].keyframe.compression
        try:
            name = tifffile.COMPRESSION(code).name.lower().replace("_", " ")
        except ValueError:
            name = f"unknown ({code})"  # a damaged tag may also hold several numbers
        return {"compression": name}

    def close(self) -> None:
        """End the threads and close the other files; the one that was opened is the caller's."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept = {}
        self._close_others()

    def __getitem__(self, index: tuple[int | slice, ...]) -> Array:
        inner = index[self._split :]
        ranges = [
            range(*i.indices(size)) if isinstance(i, slice) else range(i, i + 1)
            for i, size in zip(index, self.shape, strict=True)
        ]
        kept = [len(r) for r, i in zip(ranges, index, strict=True) if isinstance(i, slice)]
        places = self.shape[: self._split]
        numbers = [
            int(np.ravel_multi_index(where, places)) if where else 0
            for where in product(*ranges[: self._split])
        ]
        if len(numbers) == 1:
            return self._page(numbers[0])[inner].reshape(kept)
        within = [
            len(r)
            for r, i in zip(ranges[self._split :], inner, strict=True)
            if isinstance(i, slice)
        ]
        result = np.empty((len(numbers), *within), self.dtype)
        decoded = []
        for position, number in enumerate(numbers):
            if number in self._kept:
                result[position] = self._kept[number][inner]
            else:
                decoded.append((number, result[position, ...]))
        # one file is open at a time; most volumes have all pages in one
        for _, together in groupby(decoded, key=lambda item: id(self.pages[item[0]].parent)):
            self._decode(list(together), inner)
        page = self.shape[self._split :]
        if result[:1].size == math.prod(page):
            self._kept = {number: result[i].reshape(page) for i, number in enumerate(numbers)}
        return result.reshape(kept)

    def _decode(self, targets: list[tuple[int, Array]], inner: tuple[int | slice, ...]) -> None:
        """Fill arrays with pages of one file, or with parts of them, in parallel."""
        shape = self.shape[self._split :]

        def decode(item: tuple[int, Array]) -> None:
            number, target = item
            page = self.pages[number]
            with tiff_errors(self.path, f"page {page.index + 1}"):
                whole = target.size == math.prod(shape)
                if whole and page.keyframe.compression in DECODED_IN_PLACE:
                    page.asarray(out=target, lock=self._lock, maxworkers=1)
                else:
                    target[...] = page.asarray(lock=self._lock, maxworkers=1).reshape(shape)[inner]

        with tiff_errors(self.path):
            self._open(self.pages[targets[0][0]].parent.filehandle)
        for _ in self._pool.map(decode, targets):
            pass  # raises what the page's thread raised

    def _page(self, number: int) -> Array:
        # One page may hold several planes or channels (separate samples), which are then read one
        # by one.
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        self._last = None
        page = self.pages[number]
        with tiff_errors(self.path, f"page {page.index + 1}"):
            self._open(page.parent.filehandle)
            values: Array = page.asarray(lock=self._lock, maxworkers=self._workers)
            values = values.reshape(self.shape[self._split :])
        self._last = (number, values)
        return values

    def _open(self, handle: Any) -> None:
        """Open the file of a page; at most one is open besides the first."""
        if handle.closed:
            self._close_others()
            handle.open()

    def _close_others(self) -> None:
        for other in {id(page.parent): page.parent.filehandle for page in self.pages}.values():
            if other is not self._first:
                other.close()
