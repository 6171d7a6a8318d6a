"""HDF5: one dataset of a file, which `FILE::GROUP/NAME` names.

Axes are read from ilastik's `axistags` and from HDF5's labels of dimensions, voxel sizes from
`element_size_um` (Fiji) and from the resolutions in `axistags`. An output is one dataset in one
piece, with `axistags` and `element_size_um`; it keeps the name of its input's dataset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conv3d_cli.errors import Conv3DError, FormatError, WriteError
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawWriter,
    entries_of,
    library_errors,
    real_dtype,
)
from conv3d_cli.formats.conventions import CONVENTIONS, convention_notes
from conv3d_cli.formats.hdf5 import FORMAT
from conv3d_cli.formats.hdf5.file import (
    MAX_TEXT,
    ChunkedReader,
    attribute,
    check_dataset,
    chunk_of,
    datasets,
    find,
    gaps_note,
    open_file,
    text_of,
)
from conv3d_cli.formats.npy import axis_names
from conv3d_cli.formats.stored import LARGEST, grid_in, lost_place
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.units import unit_name
from conv3d_cli.model.volume import (
    SPATIAL,
    Array,
    Axes,
    Facts,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
)
from conv3d_cli.system.atomic import output_file, write_errors
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.isolated import Isolated
from conv3d_cli.system.parts import split_part
from conv3d_cli.system.words import plain_text

NAME = "data"  # of an output's dataset
MAX_NAMED = 8  # datasets that a message names
KERAS = ("keras_version", "layer_names")  # attributes of weights files
WORDS = {"time": "t", "channel": "c", "channels": "c", "depth": "z", "height": "y", "width": "x"}
# vigra's numbers for kinds of axes
CHANNELS, SPACE, TIME, UNKNOWN = 1, 2, 8, 64
HISTORY = "history"
# Attributes that the reader uses, and HDF5's own on scales of dimensions.
USED = frozenset(
    {
        "axistags",
        "axes",
        "element_size_um",
        "history",
        "DIMENSION_LABELS",
        "DIMENSION_LIST",
        "REFERENCE_LIST",
        "CLASS",
        "NAME",
    }
)


@dataclass(frozen=True)
class Hdf5Source:
    """What a volume keeps of its HDF5 file: the name of its dataset."""

    name: str


# --------------------------------------------------------------------------------------------------
# Reading


def open_hdf5(name: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a dataset of an HDF5 file: the named one, or the only one with three axes or more.

    name : str              FILE, or FILE::GROUP/NAME
    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    channels_first : bool   read a 4-D or 5-D dataset without axis names as czyx or tczyx
    Raises: FormatError.
    """
    path, part = split_part(name)
    file = open_file(path)
    try:
        with library_errors(path, "HDF5"):
            if (not part or part.isdigit()) and find(file, "DataSet/ResolutionLevel 0", path):
                from conv3d_cli.formats.hdf5.imaris import open_imaris

                file.close()
                return open_imaris(name, axes=axes, channels_first=channels_first)
            key, dataset = _choose(file, part, path)
            shown = f"{path}::{key}"
            stored = check_dataset(dataset, key, path)
            shape = tuple(map(int, dataset.shape))
            if math.prod(shape) < 1:
                raise FormatError(f"cannot read {shown}: it is empty, shape {shape}")
            letters, notes = _letters(dataset, axes, channels_first, shown)
            found = Axes(letters, shape)
            header = VolumeHeader(
                found,
                real_dtype(stored, shown),
                Grid() if axes is not None and axes != letters else _grid(dataset, letters),
                format=FORMAT.name,
                file_dtype=stored,
                metadata=Hdf5Source(key),
                history=_history(dataset),
                facts=Facts(dropped=_attributes(file, dataset)),
            )
            chunk = chunk_of(dataset, letters)
            notes = [*notes, *filter(None, [gaps_note(dataset, key)]), *_value_notes(dataset)]
            reader = DatasetReader(shown, header, file, dataset, chunk)
            reader.notes = tuple(notes)
            return reader
    except BaseException:
        file.close()
        raise


def _attributes(file: Any, dataset: Any) -> tuple[str, ...]:
    """The attributes of the dataset and the file that are not used, in words."""
    names = [name for holder in (dataset, file) for name in holder.attrs if name not in USED]
    return entries_of("the attributes", [plain_text(name) for name in dict.fromkeys(names)])


def _value_notes(dataset: Any) -> tuple[str, ...]:
    """Notes on what its attributes say of its values."""
    return convention_notes({name: attribute(dataset, name) for name in CONVENTIONS})


def _choose(file: Any, part: str, path: str) -> tuple[str, Any]:
    """The name and the dataset to read. Raises: FormatError that lists what there is."""
    import h5py

    if part:
        found = find(file, part, path)
        if isinstance(found, h5py.Dataset) and found.shape is not None and len(found.shape) > 1:
            return part.strip("/"), found
        what = "is a group" if isinstance(found, h5py.Group) else "is no dataset of two axes"
        what = "is not in it" if found is None else what
        inner = _volumes(file, path)
        if isinstance(found, h5py.Group):
            start = part.strip("/") + "/"
            inner = {key: one for key, one in inner.items() if key.startswith(start)} or inner
        raise FormatError(f"cannot read {path}: {part} {what}; {_listed(inner, path)}")
    volumes = _volumes(file, path)
    if any(name in file.attrs for name in KERAS):
        raise FormatError(
            f"cannot read {path}: it holds the weights of Keras' layers, which are a kernel and "
            f"not a volume; a dataset of it has a name, as {path}::DATASET"
        )
    if len(volumes) == 1:
        return next(iter(volumes.items()))
    count = f"it holds {len(volumes)} datasets of three axes or more" if volumes else (
        "it holds no dataset of three axes or more"
    )  # fmt: skip
    raise FormatError(f"cannot read {path}: {count}; {_listed(volumes, path)}")


def _volumes(file: Any, path: str) -> dict[str, Any]:
    """Datasets of real numbers with three axes or more, by name."""
    found = datasets(file, path)
    return {
        name: one for name, one in found.items() if len(one.shape) > 2 and one.dtype.kind in "buif"
    }


def _listed(found: dict[str, Any], path: str) -> str:
    """The datasets to choose from, for messages."""
    if not found:
        return f"name a flat one, as {path}::NAME, or see `h5ls -r`"
    names = [f"::{key} {tuple(one.shape)}" for key, one in found.items()]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"name one: {', '.join(names[:MAX_NAMED])}{more}"


def holds_more(name: str) -> bool:
    """True if a file holds datasets besides the named one; False if it cannot be read."""
    path, _ = split_part(name)
    try:
        check_input(path)
        with Isolated(path, "the HDF5 library") as process:
            return int(process.call(f"{__name__}:count_datasets", path)) > 1
    except Conv3DError:
        return False


def count_datasets(path: str) -> int:
    """The number of datasets in a file, read in this process. Raises: FormatError."""
    with open_file(path) as file, library_errors(path, "HDF5"):
        return len(datasets(file, path))


def _letters(
    dataset: Any, axes: str | None, channels_first: bool, path: str
) -> tuple[str, list[str]]:
    """The axis letters of a dataset, and notes."""
    rank = len(dataset.shape)
    if axes is not None:
        return axes, []
    notes = []
    # read as a plain attribute: HDF5's own function crashes on damaged ones
    labels = _names_of(dataset, "DIMENSION_LABELS")
    for source, names in (
        ("axistags", [str(tag.get("key", "")) for tag in _tags(dataset)]),
        ("labels of dimensions", labels if any(labels) else []),
        ("axes", _names_of(dataset, "axes")),
    ):
        if not names:
            continue
        short = [WORDS.get(name.lower(), name.lower()) for name in names]
        letters = "".join(short)
        fits = len(short) == rank == len(letters) == len(set(letters))
        if fits and letters.isascii() and letters.isalpha() and {"y", "x"} <= set(letters):
            return letters, []
        notes.append(f"its {source} ({', '.join(names)[:60]}) do not name its {rank} axes: ignored")
    if rank == 2:
        return "yx", notes
    letters = axis_names(rank, channels_first, path)
    if rank > 3:
        notes.append(f"it does not name its axes: they are read as {letters}")
    return letters, notes


def _tags(dataset: Any) -> list[dict[str, Any]]:
    """The axes in ilastik's `axistags`; [] without them."""
    try:
        found = json.loads(text_of(attribute(dataset, "axistags")) or "{}")
    except (ValueError, RecursionError):
        return []
    tags = found.get("axes") if isinstance(found, dict) else None
    return (
        [tag for tag in tags if isinstance(tag, dict)]
        if isinstance(tags, list) and len(tags) <= 32
        else []
    )


def _names_of(dataset: Any, name: str) -> list[str]:
    """Names in an attribute: a string of letters, or a list of names."""
    found = attribute(dataset, name)
    if isinstance(found, str | bytes):
        return list(text_of(found))
    if isinstance(found, np.ndarray) and found.ndim == 1 and len(found) <= 32:
        return [text_of(one) for one in found.tolist()]
    return []


def _lengths(values: Sequence[Any]) -> list[float] | None:
    """Positive lengths, or None if one is not."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return found if all(0 < value < LARGEST for value in found) else None


def _grid(dataset: Any, letters: str) -> Grid:
    """The voxel sizes of a dataset; an empty grid if it tells none."""
    sizes = np.atleast_1d(np.asarray(attribute(dataset, "element_size_um")))
    if sizes.dtype.kind in "iuf":
        if sizes.shape == (len(letters),):  # one for each axis
            sizes = np.array([sizes[letters.index(a)] if a in letters else 1.0 for a in SPATIAL])
        lengths = _lengths(sizes.tolist()) if sizes.shape == (3,) else None
        if lengths is not None:
            return _plain_grid(lengths, "um")
    tags = {str(tag.get("key")): tag for tag in _tags(dataset)}
    space = [a for a in SPATIAL if a in letters]
    lengths = _lengths([tags.get(a, {}).get("resolution") for a in space])
    if lengths is None:
        return Grid()
    units = {str(tags[a].get("unit") or tags[a].get("units") or "") for a in space}
    unit = unit_name(units.pop()) if len(units) == 1 else None
    return _plain_grid([1.0] * (3 - len(space)) + lengths, unit)


def _plain_grid(lengths: Sequence[float], unit: str | None) -> Grid:
    d, h, w = lengths
    return Grid((d, h, w), unit, affine_from_spacing((d, h, w)))


def _history(dataset: Any) -> tuple[str, ...]:
    return tuple(filter(None, text_of(attribute(dataset, HISTORY)).splitlines()))


class DatasetReader(ChunkedReader):
    """A reader of one dataset."""

    def __init__(
        self,
        path: str,
        header: VolumeHeader,
        file: Any,
        dataset: Any,
        chunk: dict[str, int],
    ) -> None:
        super().__init__(path, header, file, chunk, np.dtype(dataset.dtype.str))
        self._dataset = dataset

    def part(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        return self.header.axes.block(self._dataset, n, depth, channels, rows, columns)

    def storage(self) -> dict[str, str]:
        found = {"dataset": self.header.metadata.name}
        with library_errors(self.path, "HDF5"):
            if self._dataset.chunks:
                found["chunks"] = " x ".join(map(str, self._dataset.chunks))
                found["codec"] = str(self._dataset.compression or "none")
        return found

    def close(self) -> None:
        self._dataset = None
        super().close()


# --------------------------------------------------------------------------------------------------
# Writing


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """The same order; samples of a pixel (s) become channels, and a new channel axis is last.

    >>> output_letters("cxyzt", 2), output_letters("tzyxs", 3), output_letters("zyx", 2)
    ('cxyzt', 'tzyxc', 'zyxc')
    """
    found = letters.replace("s", "" if "c" in letters else "c")
    return found + ("c" if channels > 1 and "c" not in found else "")


def create_hdf5(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start an HDF5 file with one dataset in one piece.

    Raises: OutputExistsError; WriteError for an empty volume, or if h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise WriteError(
            f"cannot write {path}: HDF5 needs the package h5py: pip install 'conv3d[hdf5]'"
        ) from error
    if math.prod(header.shape) == 0:
        raise WriteError(f"cannot write {path}: HDF5 holds no empty volume, shape {header.shape}")
    source = header.metadata if isinstance(header.metadata, Hdf5Source) else Hdf5Source(NAME)
    history = "\n".join(header.history)
    notes = lost_place(header.grid, "HDF5", origin=False)
    if header.dtype == np.bool_:
        notes = (*notes, "truth values are stored as 0 and 1 (uint8)")
    if len(history.encode("utf-8", "surrogateescape")) > MAX_TEXT - 1024:
        notes = (*notes, "its history is left out: an attribute of HDF5 holds 64 KB")
        history = ""
    output = output_file(path, overwrite)
    try:
        with write_errors(path):
            offset = _write_header(output.file, header, source.name, history, h5py)
        writer = RawWriter(output, header, path, offset, _stored(header.dtype))
    except BaseException:
        output.abort()
        raise
    writer.notes = notes
    return writer


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in the file: little-endian; truth values as uint8, as 0 and 1."""
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("<")


def _write_header(file: Any, header: VolumeHeader, name: str, history: str, h5py: Any) -> int:
    """Write all but the voxels. Returns their place in the file. Raises: OSError."""
    axes = header.axes
    with h5py.File(file, "w") as content:
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_layout(h5py.h5d.CONTIGUOUS)
        created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        created.set_obj_track_times(False)
        linked = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        linked.set_create_intermediate_group(True)
        kind = h5py.h5t.py_create(_stored(header.dtype))
        space = h5py.h5s.create_simple(axes.shape)
        stored = h5py.h5d.create(content.id, name.encode(), kind, space, created, linked)
        dataset = h5py.Dataset(stored)
        spacing, _ = grid_in(header.grid, "um")
        steps = dict(zip(SPATIAL, spacing or (0.0,) * 3, strict=True))
        if spacing is not None and header.grid.unit is not None:
            dataset.attrs["element_size_um"] = np.array(spacing, "<f8")
        tags = [_tag(a, steps.get(a, 0.0), header.grid.unit is not None) for a in axes.letters]
        dataset.attrs["axistags"] = np.bytes_(json.dumps({"axes": tags}, indent=2).encode())
        if history:
            dataset.attrs[HISTORY] = np.bytes_(history.encode("utf-8", "surrogateescape"))
        return int(stored.get_offset())


def _tag(letter: str, step: float, has_unit: bool) -> dict[str, Any]:
    """An axis as vigra's AxisTags list it."""
    kinds = {**dict.fromkeys(SPATIAL, SPACE), "c": CHANNELS, "t": TIME}
    tag = {"key": letter, "typeFlags": kinds.get(letter, UNKNOWN), "resolution": step}
    tag["description"] = ""
    return {**tag, "unit": "um"} if step and has_unit else tag
