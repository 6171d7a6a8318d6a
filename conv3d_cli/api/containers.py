"""The kinds of arrays that `conv3d()` takes: how to get their numbers, and give back the same kind.

They are a `Volume`, a masked array, a PyTorch tensor, an xarray or a Dask array.

PyTorch, xarray and Dask are recognised by their classes, and never imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import MemoryLimitError, ShapeError, SpecError, one_line
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.model.units import unit_name
from conv3d_cli.model.volume import SPATIAL, Axes, Volume
from conv3d_cli.system.machine import format_bytes, memory_ceiling

Array = NDArray[Any]

BATCH_LETTERS = "tabdefghijklmnopqruvw"
# names of xarray dimensions, in lower case -> letters of `Axes`
_DIMENSIONS = {
    "z": "z", "depth": "z", "plane": "z", "slice": "z",
    "y": "y", "height": "y", "row": "y",
    "x": "x", "width": "x", "column": "x", "col": "x",
    "c": "c", "channel": "c", "channels": "c",
}  # fmt: skip
_NEW_DIMENSIONS = {"c": "channel", "z": "depth"}
# Coordinates whose steps differ by more than this fraction have no spacing.
_EVEN = 1e-3


@dataclass(frozen=True)
class Result:
    """The result of a convolution, before it goes into a container.

    values : array              in the order of `axes`
    missing : array or None     bool of the same shape: values that rest on too few voxels
    axes : Axes                 of the result
    grid : Grid                 of the result
    transform : VoxelTransform  from voxels of the result to those of the input
    components : tuple of str   names of the channels that one input channel became, or ()
    """

    values: Array
    missing: Array | None
    axes: Axes
    grid: Grid
    transform: VoxelTransform
    components: tuple[str, ...] = ()


def plain(result: Result) -> Array:
    """The result as an array of its own."""
    return result.values


@dataclass(frozen=True)
class Contents:
    """The numbers of an array of any kind.

    values : array
    wrap : callable             puts a `Result` into a container of the same kind
    letters : str or None       letters of its axes as in `Axes`; None: their positions tell
    grid : Grid or None         None: the container knows no world
    missing : array or None     bool of the same shape: voxels that are masked out, if any are
    """

    values: Array
    wrap: Callable[[Result], Any] = plain
    letters: str | None = None
    grid: Grid | None = None
    missing: Array | None = None


def contents(x: Any, what: str = "x") -> Contents:
    """The numbers in an array of any kind.

    what : str      name of the argument, for messages
    Raises: ShapeError, SpecError, MemoryLimitError, each with the cure.

    >>> contents([[1, 2]]).values.shape
    (1, 2)
    >>> contents(np.ma.masked_less([1, 2], 2)).missing.tolist()
    [True, False]
    """
    if type(x) is np.ndarray:
        return Contents(x)
    for kind in type(x).__mro__:
        unpack = _KINDS.get((kind.__module__.partition(".")[0], kind.__name__))
        if unpack is not None:
            return unpack(x, what)
    if isinstance(x, (str, os.PathLike)):
        cure = ""
        if what == "x":
            cure = "; read a file with read_volume(), or pass its path to convolve_file()"
        raise ShapeError(
            f"{what} must be an array of real numbers, received the text {str(x)!r}{cure}"
        )
    try:
        return Contents(np.asarray(x))
    except ValueError as error:  # nested lists of unequal lengths
        raise ShapeError(f"{what} is not an array: {one_line(error)}") from None


def _volume(x: Volume, what: str) -> Contents:
    inner = contents(x.data, what)

    def wrap(result: Result) -> Volume:
        return Volume(
            inner.wrap(result),
            result.axes.letters,
            result.grid,
            x.format,
            x.metadata,
            x.transform.then(result.transform),
            result.components or (x.components if result.axes.letters == x.axes else ()),
            x.facts,
        )

    return Contents(inner.values, wrap, x.axes, x.grid, inner.missing)


def _masked(x: Any, what: str) -> Contents:
    missing = np.ma.getmaskarray(x)

    def wrap(result: Result) -> Any:
        mask = np.ma.nomask if result.missing is None else result.missing
        return np.ma.MaskedArray(result.values, mask)

    return Contents(np.asarray(x.data), wrap, missing=missing if missing.any() else None)


def _dataset(x: Any, what: str) -> Contents:
    raise ShapeError(
        f"{what} is an xarray Dataset, which holds several arrays; pass one of them: "
        f"{', '.join(map(repr, x.data_vars))}"
    )


# --------------------------------------------------------------------------------------------------
# PyTorch and Dask


def _tensor(x: Any, what: str) -> Contents:
    torch = sys.modules["torch"]
    if x.requires_grad and torch.is_grad_enabled():
        raise SpecError(
            f"{what} requires gradients, which conv3d() does not compute; pass {what}.detach()"
        )
    if x.is_floating_point() and x.dtype not in (torch.float16, torch.float32, torch.float64):
        x = x.float()  # NumPy has no bfloat16
    try:
        values = x.numpy(force=True)
    except (RuntimeError, TypeError) as error:
        raise ShapeError(f"{what} is no array of numbers: {one_line(error)}") from None
    return Contents(values, lambda result: torch.from_numpy(result.values))


def _dask(x: Any, what: str) -> Contents:
    real = 8 if x.dtype == np.float64 else 4
    needed, limit = x.size * (x.dtype.itemsize + real), memory_ceiling(None)
    if not needed <= limit:  # also if the size is unknown (NaN)
        size = format_bytes(int(needed)) if needed == needed else "unknown"
        raise MemoryLimitError(
            f"{what} is a Dask array, and conv3d() computes it in memory: it and the result need "
            f"{size}, the ceiling is {format_bytes(limit)}; write it with {what}.to_zarr() and "
            "pass the path to convolve_file(), which needs a few slabs at a time"
        )

    def wrap(result: Result) -> Any:
        shape = result.values.shape
        chunks = [
            x.chunks[axis] if len(shape) == x.ndim and sum(x.chunks[axis]) == size else (size,)
            for axis, size in enumerate(shape)
        ]
        return sys.modules["dask.array"].from_array(result.values, chunks=tuple(chunks))

    return Contents(np.asarray(x), wrap)


# --------------------------------------------------------------------------------------------------
# xarray


def _data_array(x: Any, what: str) -> Contents:
    inner = contents(x.data, what)
    letters = _letters_of(tuple(map(str, x.dims)), what)
    grid = _grid_of_coordinates(x, letters)

    def wrap(result: Result) -> Any:
        dims, kept = [], {}
        short = all(len(str(dim)) == 1 for dim in x.dims)
        for letter, size in zip(result.axes.letters, result.axes.shape, strict=True):
            if letter not in letters:
                dims.append(letter if short else _NEW_DIMENSIONS[letter])
                continue
            at = letters.index(letter)
            dims.append(x.dims[at])
            if letter in SPATIAL:
                axis = SPATIAL.index(letter)
                step, first = result.transform.step[axis], result.transform.offset[axis]
                last = first + step * (size - 1)
                if first == int(first) and first >= 0 and last < x.shape[at]:
                    kept[x.dims[at]] = slice(int(first), int(last) + 1, step)
            elif size == x.shape[at]:
                kept[x.dims[at]] = slice(None)
        coords = {
            name: coordinate.isel({dim: kept[dim] for dim in coordinate.dims})
            for name, coordinate in x.coords.items()
            if all(dim in kept for dim in coordinate.dims)
        }
        return type(x)(inner.wrap(result), coords, dims, name=x.name, attrs=x.attrs)

    return Contents(inner.values, wrap, letters, grid, inner.missing)


def _letters_of(dims: Sequence[str], what: str) -> str:
    """Letters of named dimensions; three whose names tell nothing are depth, height and width.

    Raises: SpecError for more dimensions whose names tell no height and width.

    >>> _letters_of(("time", "Z", "Y", "X"), "x"), _letters_of(("a", "b", "c"), "x")
    ('tzyx', 'zyx')
    """
    known = [_DIMENSIONS.get(dim.lower(), "") for dim in dims]
    if known.count("y") == known.count("x") == 1 and max(map(known.count, "zc")) <= 1:
        free = iter(BATCH_LETTERS)
        return "".join(letter or next(free) for letter in known)
    if len(dims) == 3:
        return SPATIAL
    raise SpecError(
        f"the dimensions {', '.join(dims)} of {what} do not tell depth, height and width; name "
        f"them z, y, x, as in {what}.rename({dims[-1]}='x')"
    )


def _grid_of_coordinates(x: Any, letters: str) -> Grid | None:
    """The grid that evenly spaced coordinates along depth, height and width tell, or None."""
    spacing, units = [], set()
    for letter in SPATIAL:
        dim = x.dims[letters.index(letter)] if letter in letters else None
        if dim is None or dim not in x.coords:
            return None
        places = np.asarray(x.coords[dim])
        if places.dtype.kind not in "iuf" or len(places) < 2:
            return None
        steps = np.diff(places.astype(np.float64))
        mean = float(steps.mean())
        if mean == 0 or not np.allclose(steps, mean, rtol=_EVEN, atol=0):
            return None
        spacing.append(abs(mean))
        units.add(unit_name(x.coords[dim].attrs.get("units")))
    d, h, w = spacing
    return Grid((d, h, w), units.pop() if len(units) == 1 else None)


# (library, class) -> its reader
_KINDS: dict[tuple[str, str], Callable[[Any, str], Contents]] = {
    ("conv3d_cli", "Volume"): _volume,
    ("numpy", "MaskedArray"): _masked,
    ("torch", "Tensor"): _tensor,
    ("dask", "Array"): _dask,
    ("xarray", "DataArray"): _data_array,
    ("xarray", "Dataset"): _dataset,
}
