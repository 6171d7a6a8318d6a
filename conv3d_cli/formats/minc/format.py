"""MINC 1 and 2, read only, through nibabel: netCDF, and HDF5 by h5py.

Values are scaled by the range of each slice, and are handed out as real numbers. Only the slices
that are asked for are read.
"""

from __future__ import annotations

import math
import mmap
import warnings
from functools import partial
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import entries_of, library_errors
from conv3d_cli.formats.minc import MINC1, MINC2
from conv3d_cli.formats.signatures import HDF5
from conv3d_cli.formats.stored import check_affine
from conv3d_cli.model.grid import Grid, spacing_of_affine
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.maps import WatchedMap, unwatch_map, watch_map

ABOUT = ("patient", "study", "acquisition")  # variables of MINC, whose attributes tell of them
LETTERS = {"xspace": "x", "yspace": "y", "zspace": "z", "time": "t", "vector_dimension": "c"}
CACHE_BYTES = 1 << 20  # of HDF5, for chunks


def open_minc(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a MINC file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, damaged, or irregular, or if h5py is missing for MINC 2.
    """
    check_input(path)
    with open(path, "rb") as file:
        start = file.read(len(HDF5))
    with library_errors(path, "MINC"):
        found, close, release = _open_hdf5(path) if start == HDF5 else _open_netcdf(path)
        try:
            return _reader(path, found, close, release, axes, start == HDF5)
        except BaseException:
            close()
            raise


def _open_netcdf(path: str) -> tuple[Any, Any, Any]:
    from nibabel.externals.netcdf import netcdf_file
    from nibabel.minc1 import Minc1File

    file = open(path, "rb")  # noqa: SIM115 - `close` does
    try:
        content = netcdf_file(file, "r", mmap=True)
        mapped: Any = content._mm_buf  # of the whole file
        start = mapped.__array_interface__["data"][0]
        watched = watch_map(start, mapped.nbytes, path)
        try:
            return (
                Minc1File(content),
                partial(_close_netcdf, content, watched),
                partial(_release, content._mm),
            )
        except BaseException:
            unwatch_map(watched)
            raise
    except BaseException:
        file.close()  # also where netcdf_file fails in the middle
        raise


def _release(mapped: Any) -> None:
    """Give back the pages of a map: they would count as memory."""
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _close_netcdf(content: Any, watched: WatchedMap) -> None:
    """Close a file while arrays of it are still referenced, which it warns of."""
    unwatch_map(watched)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        content.close()


def _open_hdf5(path: str) -> tuple[Any, Any, Any]:
    from nibabel.minc2 import Minc2File

    try:
        import h5py
    except ImportError as error:
        raise FormatError(
            f"cannot read {path}: MINC 2 needs the package h5py: pip install 'conv3d[hdf5]'"
        ) from error
    file = h5py.File(path, "r")
    try:
        _check_links(file, path, h5py)
        return Minc2File(file), file.close, lambda: None
    except BaseException:
        file.close()
        raise


def _check_links(file: Any, path: str, h5py: Any) -> None:
    """Refuse data that lie in other files. Raises: FormatError."""
    names = ["minc-2.0", "minc-2.0/image", "minc-2.0/image/0", "minc-2.0/dimensions"]
    names += [f"minc-2.0/image/0/{part}" for part in ("image", "image-max", "image-min")]
    for name in names:
        link = file.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise FormatError(f"cannot read {path}: its '{name}' is a link, which is not followed")
        thing = file.get(name)
        if isinstance(thing, h5py.Dataset) and (thing.external or thing.is_virtual):
            raise FormatError(
                f"cannot read {path}: its '{name}' lies in other files, which are not read"
            )
    for name, _ in (file.get("minc-2.0/dimensions") or {}).items():
        if not isinstance(file["minc-2.0/dimensions"].get(name, getlink=True), h5py.HardLink):
            raise FormatError(f"cannot read {path}: its dimension {name[:40]} is a link")


def _reader(
    path: str, found: Any, close: Any, release: Any, axes: str | None, hdf5: bool
) -> VolumeReader:
    names = tuple(found._dim_names)
    shape = tuple(map(int, found.get_data_shape()))
    letters = "".join(LETTERS.get(name, "") for name in names)
    if len(letters) != len(shape) or len(set(letters)) != len(letters) or min(shape, default=0) < 1:
        raise FormatError(
            f"cannot read {path}: its dimensions are {', '.join(names)[:80]} of {shape}; "
            f"known are {', '.join(LETTERS)}"
        )
    dtype = np.dtype(found.get_data_dtype())
    if dtype.kind not in "iuf":
        raise FormatError(f"cannot read {path}: its voxels are not numbers ({dtype})")
    wide = dtype.itemsize > (4 if dtype.kind == "f" else 2)
    grid = Grid()
    spatial = [name for name in names if name.endswith("space")]
    if axes in (None, letters) and len(spatial) == 3:
        own = np.asarray(found.get_affine(), float)
        affine = np.eye(4)
        for column, name in enumerate(spatial):
            affine[:3, "xyz".index(LETTERS[name])] = own[:3, column]
        affine[:3, 3] = own[:3, 3]
        check_affine(affine, lambda text: FormatError(f"cannot read {path}: {text}"))
        grid = Grid(spacing_of_affine(affine), "mm", affine, anatomical=True)
    header = VolumeHeader(
        Axes(axes or letters, shape),
        np.dtype(np.float64 if wide else np.float32),
        grid,
        format=(MINC2 if hdf5 else MINC1).name,
        facts=Facts(provenance=_provenance(found, hdf5)),
    )
    reader = MincReader(path, header, found, close, release)
    reader.read(0, slice(0, 1), slice(0, 1))  # ranges and sizes are checked before any work
    return reader


def _provenance(found: Any, hdf5: bool) -> tuple[str, ...]:
    """The history, and what the file tells of patient and scan, in words."""
    if hdf5:
        holder = found._mincfile["minc-2.0"]
        has_history = "history" in holder.attrs or "history" in found._mincfile.attrs
        names = list(holder.get("info") or ())
    else:
        has_history = hasattr(found._mincfile, "history")
        names = list(found._mincfile.variables)
    told = [name for name in ABOUT if name in names]
    return (
        *(("the history",) if has_history else ()),
        *entries_of("the attributes of", told),
    )


class MincReader(VolumeReader):
    """A reader of scaled slices, in any order.

    found : nibabel's Minc1File or Minc2File
    close : callable        closes its file
    release : callable      gives back memory that reading took
    """

    def __init__(
        self, path: str, header: VolumeHeader, found: Any, close: Any, release: Any
    ) -> None:
        self.path, self.header = path, header
        self._found, self._close_file, self._release = found, close, release
        chunks = getattr(found._image, "chunks", None) or ()
        self._chunk_bytes = math.prod(chunks) * int(found.get_data_dtype().itemsize)

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        axes = self.header.axes
        _, _, height, width, _ = self.header.shape
        size = (depth.stop - depth.start, height, width, channels.stop - channels.start)
        place = axes.place(n, (depth.start, 0, 0), channels.start, size)
        with library_errors(self.path, "MINC"):
            values = np.asarray(self._found.get_scaled_data(place))
            self._release()
        part = Axes(axes.letters, values.shape)
        block = part.block(values, 0, slice(0, size[0]), slice(0, size[3]))
        with np.errstate(over="ignore"):  # values too large for the dtype become infinite
            return block.astype(self.header.dtype, copy=False)

    def buffer_bytes(self, planes: int, channels: int) -> int:
        _, _, height, width, _ = self.header.shape
        # stored voxels, clipped ones, and scaled ones, in float64 at most
        return planes * height * width * channels * 24 + self._chunk_bytes + CACHE_BYTES

    def close(self) -> None:
        if self._found is not None:
            self._found = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # netCDF: of arrays that are still mapped
                self._close_file()
