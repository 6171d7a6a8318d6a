"""The planes of a TIFF volume, found and read by another way than `pages.py` and memory maps.

`--verify` reads so: an error in finding voxels then shows as a difference. Each plane is read by
itself, from the file that it is in, which is opened as a plain TIFF. Which plane is which follows
from the OME-XML or from the order of the directories, not from tifffile's series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from conv3d_cli.formats.tiff.compressed import unpack_here
from conv3d_cli.formats.tiff.images import local_tag
from conv3d_cli.formats.tiff.series import OpenSeries, tiff_errors
from conv3d_cli.model.volume import Array

KEPT_BYTES = 1 << 26  # planes that are kept for the next read

Place = tuple[str, int]  # a file, and the number of a page in it


class PlaneArray:
    """The voxels of a series as an array that reads planes when it is indexed.

    An index has an integer or a slice for each axis.

    places : sequence       the file and page of each plane; in sequence, the whole array
    shape : tuple           of the array
    split : int             the axes before it number the planes, the others are those of a plane
    dtype : numpy dtype     of the decoded voxels
    path : str              for error messages
    kept_bytes : int        planes that are kept for the next read, at least one
    after_page : bool       the first page of a file is followed by the voxels of all planes
    """

    def __init__(
        self,
        places: Sequence[Place],
        shape: tuple[int, ...],
        split: int,
        dtype: np.dtype[Any],
        path: str,
        kept_bytes: int = KEPT_BYTES,
        after_page: bool = False,
    ) -> None:
        self.shape, self.dtype, self.path = shape, dtype, path
        self._places, self._split = places, split
        self._kept_bytes, self._after_page = kept_bytes, after_page
        self._kept: dict[int, Array] = {}
        self._file: Any = None

    @property
    def plane_bytes(self) -> int:
        """Bytes of a decoded plane."""
        return math.prod(self.shape[self._split :]) * self.dtype.itemsize

    def __getitem__(self, index: tuple[int | slice, ...]) -> Array:
        ranges = [
            range(*i.indices(size)) if isinstance(i, slice) else range(i, i + 1)
            for i, size in zip(index, self.shape, strict=True)
        ]
        kept = [len(r) for r, i in zip(ranges, index, strict=True) if isinstance(i, slice)]
        places = self.shape[: self._split]
        parts = [
            self._plane(int(np.ravel_multi_index(where, places)) if where else 0)[
                index[self._split :]
            ]
            for where in product(*ranges[: self._split])
        ]
        return np.stack(parts).reshape(kept)

    def _plane(self, number: int) -> Array:
        if number not in self._kept:
            plane = self._read(number)
            while self._kept and (len(self._kept) + 1) * plane.nbytes > self._kept_bytes:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = plane
        return self._kept[number]

    def _read(self, number: int) -> Array:
        import tifffile

        file, page_number = self._places[number]
        shape = self.shape[self._split :]
        with tiff_errors(self.path, f"page {page_number + 1} of {file}"):
            if self._file is None or self._file[0] != file:
                self.close()
                # a plain TIFF: no description is followed
                self._file = (file, tifffile.TiffFile(file, _multifile=False))
            page = self._file[1].pages[page_number]
            if self._after_page:
                offset = page.dataoffsets[0] + number * math.prod(shape) * self.dtype.itemsize
                stored = self.dtype.newbyteorder(page.parent.byteorder)
                values = np.fromfile(file, stored, math.prod(shape), offset=offset)
                return values.astype(self.dtype).reshape(shape)
            unpack_here(page.keyframe)
            plane: Array = page.asarray().reshape(shape)
            return plane

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file[1].close()
            self._file = None


def series_planes(opened: OpenSeries, shape: tuple[int, ...], path: str) -> PlaneArray:
    """The planes of a series.

    opened : OpenSeries     supplies the OME-XML, the directories and the type of the voxels
    shape : tuple           of the volume
    path : str              the file that was opened
    """
    split = next(
        k
        for k in range(len(shape) + 1)
        if math.prod(shape[k:]) == math.prod(opened.series.keyframe.shape)
    )
    count = math.prod(shape[:split])
    # an ImageJ file above 4 GB has one page, and all voxels after it
    one_page = len(opened.pages) == 1 and bool(opened.series.is_truncated)
    places = [(path, 0)] * count if one_page else _find_places(opened, count, path)
    return PlaneArray(places, shape, split, opened.series.dtype, path, after_page=one_page)


def _find_places(opened: OpenSeries, count: int, path: str) -> list[Place]:
    found: list[Place | None] = []
    if opened.image is not None and opened.series.kind == "ome":
        total = math.prod(opened.series.shape) // math.prod(opened.series.keyframe.shape)
        places = ome_places(opened.image.pixels, total, len(opened.directories), path)
        found = list(places[:count])
    elif opened.series.kind in ("generic", "uniform", "shaped", "imagej"):
        full = [k for k, d in enumerate(opened.directories) if not d.beside]
        found = [(path, k) for k in full] if len(opened.listed) == 1 else []
    if len(found) == count and all(found):
        return [place for place in found if place is not None]
    # pages in dialects with lists of their own, in directories below others, or among series
    own = opened.tiff.filehandle.path
    files = [page.parent.filehandle.path for page in opened.pages]
    return [
        (path if file == own else file, page.index)
        for file, page in zip(files, opened.pages, strict=True)
    ]


def ome_places(pixels: Any, count: int, pages: int, path: str) -> Sequence[Place | None]:
    """The place of each plane by the TiffData elements of an OME-XML; None for a plane without.

    The planes are in the order of DimensionOrder, the first of its letters fastest.

    pixels : XML element    Pixels; the names of files in it are those of `images.find_image`
    count : int             number of planes
    pages : int             number of pages of the file itself
    Source: https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
    """
    order = [a for a in pixels.get("DimensionOrder", "XYZCT") if a in "ZCT"]
    sizes = {a: int(pixels.get(f"Size{a}", 1)) for a in order}
    sizes["C"] = max(1, count // max(1, sizes["Z"] * sizes["T"]))  # samples of a pixel share a page
    samples = max(1, int(pixels.get("SizeC", 1)) // sizes["C"])
    found: list[Place | None] = [None] * count
    for part in pixels:
        if local_tag(part) != "TiffData":
            continue
        first = {a: int(part.get(f"First{a}", 0)) for a in order}
        first["C"] //= samples
        start, step = 0, 1
        for letter in order:
            start, step = start + first[letter] * step, step * sizes[letter]
        uuid = next((e for e in part if local_tag(e) == "UUID"), None)
        file = path if uuid is None else uuid.get("FileName", path)
        page = int(part.get("IFD", 0))
        planes = part.get("PlaneCount", part.get("NumPlanes"))
        number = int(planes) if planes else 1 if "IFD" in part.attrib else count - start
        if file == path:
            number = min(number, pages - page)
        for k in range(number):
            if 0 <= start + k < count and all(first[a] < sizes[a] for a in order):
                found[start + k] = (file, page + k)
    return found
