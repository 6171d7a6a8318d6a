"""Read untrusted HDF5 files: only data in the file itself, and no more than its length allows.

Soft and external links are ignored. External and virtual datasets, plug-in filters, datasets larger
than their storage, and groups that contain themselves are refused. `keras.py` and `legacy.py`
interpret the groups.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from typing import Any

from conv3d_cli.errors import FormatError
from conv3d_cli.kernels.weights.layer import (
    Array,
    decode_floats,
    natural_sort_key,
    require_library,
    require_shape,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_DEPTH = 32  # nested groups
_MAX_GROUPS = 100_000
_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, fletcher32, lzf: built in, without plug-ins
_MAX_COMPRESSION = 1100  # factor; deflate reaches 1032


@contextlib.contextmanager
def open_hdf5(source: str | bytes, path: str) -> Iterator[Any]:
    """Open an HDF5 file, or the bytes of one, for reading, as a context.

    source : str or bytes       path or content
    path : str                  for messages
    Raises: FormatError if h5py is not installed, or the source is not HDF5.
    """
    with require_library("h5py", f"read {path}"):
        import h5py
    if isinstance(source, str):
        with open(source, "rb") as file:
            start = file.read(len(SIGNATURE))
    else:
        start = source[: len(SIGNATURE)]
    if start != SIGNATURE:
        raise FormatError(f"cannot read {path}: not an HDF5 file")
    with h5py.File(source if isinstance(source, str) else io.BytesIO(source), "r") as file:
        yield file


def members(group: Any) -> dict[str, Any]:
    """Groups and datasets of a group by name, in natural order: conv3d_2 before conv3d_10."""
    found = {name: _member(group, name) for name in sorted(group, key=natural_sort_key)}
    return {name: member for name, member in found.items() if member is not None}


def find_member(group: Any, name: str) -> Any:
    """The group or dataset at NAME/NAME/... below a group; None if there is none."""
    for part in filter(None, name.split("/")):
        group = _member(group, part) if is_group(group) and part in group else None
        if group is None:
            return None
    return group


def _member(group: Any, name: str) -> Any:
    """A member stored in the group; None for soft and external links, which may lead anywhere."""
    import h5py

    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def is_group(thing: Any) -> bool:
    """Whether a member is a group, not a dataset."""
    return hasattr(thing, "keys")


def is_dataset(thing: Any, rank: int | None = None) -> bool:
    """Whether a member is a dataset, and has `rank` axes if that is given."""
    return (
        hasattr(thing, "shape")
        and thing.shape is not None
        and (rank is None or len(thing.shape) == rank)
    )


def walk_groups(root: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the root and every group below it, with its name A/B/C, in natural order.

    path : str      for messages
    Raises: FormatError for groups that contain themselves, and for too many or too deep ones.
    """
    import h5py

    seen = 0

    def walk(name: str, group: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
        nonlocal seen
        seen += 1
        address = h5py.h5o.get_info(group.id).addr
        if address in above or len(above) > _MAX_DEPTH or seen > _MAX_GROUPS:
            raise FormatError(
                f"cannot read {path}: its groups contain one another, or are nested too deeply"
            )
        yield name, group
        for part, inner in members(group).items():
            if is_group(inner):
                yield from walk(f"{name}/{part}" if name else part, inner, (*above, address))

    yield from walk("", root, ())


def text_attribute(thing: Any, name: str) -> str | None:
    """An attribute as text; None if it is missing."""
    value = thing.attrs.get(name)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)


def list_attribute(thing: Any, name: str) -> list[str] | None:
    """An attribute as a list of texts; None if it is missing.

    Keras splits long lists into attributes NAME0, NAME1, ...
    Source: Keras, legacy_h5_format.py load_attributes_from_hdf5_group.
    """
    chunks = [thing.attrs[name]] if name in thing.attrs else []
    if not chunks:
        while f"{name}{len(chunks)}" in thing.attrs:
            chunks.append(thing.attrs[f"{name}{len(chunks)}"])
    if not chunks:
        return None
    return [
        text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        for chunk in chunks
        for text in chunk
    ]


def read_dataset(dataset: Any, size: int, what: str, path: str) -> Array:
    """Read a dataset of floats.

    size : int      bytes of the file
    what : str      name of the dataset in messages
    Returns an array of the dataset's shape, in its dtype; float32 for bfloat16, float64 for wider
    ones.
    Raises: FormatError if the data are not floats, not stored in this file, or more than fit in it.
    """
    shape = tuple(int(n) for n in dataset.shape)
    require_shape(shape, what, path)
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if dataset.external or dataset.is_virtual:
        raise FormatError(
            f"cannot read {path}: {what} is stored in another file, which is never opened"
        )
    if not set(filters) <= _FILTERS:
        raise FormatError(
            f"cannot read {path}: {what} is compressed by an HDF5 plug-in (filter {filters}), "
            "which is never run"
        )
    stored = dataset.id.get_storage_size()
    promised = dataset.dtype.itemsize * max(math.prod(shape), math.prod(dataset.chunks or ()))
    if stored > size or promised > stored * (_MAX_COMPRESSION if filters else 1):
        raise FormatError(
            f"cannot read {path}: truncated: {what} promises {promised:,} bytes, {stored:,} are "
            "stored"
        )
    if (
        dataset.dtype.kind == "V"
        and dataset.dtype.itemsize == 2
        and text_attribute(dataset, "dtype") == "bfloat16"
    ):
        return decode_floats(dataset[()].tobytes(), "bfloat16").reshape(shape)
    if dataset.dtype.kind != "f":
        raise FormatError(f"cannot read {path}: {what} holds {dataset.dtype}, not floats")
    values: Array = dataset[()]
    return values.astype("=f8" if values.dtype.itemsize > 8 else f"=f{values.dtype.itemsize}")
