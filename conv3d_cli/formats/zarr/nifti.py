"""NIfTI-Zarr: OME-Zarr with a NIfTI header in the array `nifti` of its group.

The header counts more than the OME metadata: its affine, units, scale and time step are used. Of a
coarser level, the affine follows the level's scale and translation.

Source: https://github.com/neuroscales/nifti-zarr, version 1.0.rc1, sections 2 and 3.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.errors import WriteError
from conv3d_cli.formats.nifti.grid import read_grid
from conv3d_cli.formats.nifti.header import (
    LABEL_INTENT,
    NiftiSource,
    add_history,
    header_bytes,
    output_header,
    read_extensions,
    read_header,
    read_history,
    read_scale,
    read_time_step,
    source_of,
    stored_axes,
)
from conv3d_cli.formats.zarr import NIFTI, names
from conv3d_cli.formats.zarr.codecs import bound_codecs
from conv3d_cli.formats.zarr.names import LARGEST_METADATA
from conv3d_cli.formats.zarr.ome import Dataset, OmeImage
from conv3d_cli.formats.zarr.store import is_array, open_node, zarr_errors
from conv3d_cli.model.grid import Affine, spacing_of_affine
from conv3d_cli.model.volume import SPATIAL, Axes, VolumeHeader

NODE = "nifti"  # the array with the header
DIMENSIONS = "xyztc"  # axis letters of dimensions 1 to 5
# magic of single files and pairs, and of drafts of NIfTI-Zarr -> of a single file
MAGIC = {
    f"{kind}{version}\0".encode(): f"n+{version}\0".encode()
    for kind in ("n+", "ni", "nz")
    for version in (1, 2)
}


def read_nifti(group: Any, path: str, notes: list[str]) -> NiftiSource | None:
    """The NIfTI header of a group; None if it has none.

    group : zarr Group
    notes : list of str     gets the notes on deviations
    Raises: FormatError if it is damaged.
    """
    draft = group.attrs.asdict().get(NODE)
    with zarr_errors(path, "its NIfTI header"):
        if NODE in group and hasattr(group[NODE], "chunks"):
            array = group[NODE]
            if array.nbytes > LARGEST_METADATA:
                raise ValueError(f"it has {array.nbytes:,} bytes; {LARGEST_METADATA:,} are read")
            bound_codecs(array)
            content = np.asarray(array[...]).tobytes()
        elif isinstance(draft, dict) and "base64" in draft:
            content = base64.b64decode(draft["base64"])
        else:
            return None
    where = 344 if content[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") else 4
    magic = MAGIC.get(content[where : where + 4], content[where : where + 4])
    stream = io.BytesIO(content[:where] + magic + content[where + 4 :])
    header = read_header(stream.read, path, pair=False)
    extensions = read_extensions(stream.read, header, len(content), False, notes)
    sizes = header["dim"]
    channels = int(sizes[5]) if sizes[0] > 4 else 1
    return NiftiSource(header, extensions, False, read_grid(header, path, notes), channels)


def applied(
    volume: VolumeHeader, source: NiftiSource, image: OmeImage, dataset: Dataset, path: str
) -> tuple[VolumeHeader, str]:
    """The header of a level as its NIfTI header tells it, and a note if that is of another image.

    image : OmeImage        with all levels; `dataset` is the one that is read
    """
    finest = dataset == image.datasets[0]
    sizes = {a: source.size(1 + i) for i, a in enumerate(DIMENSIONS)}
    fits = all(sizes[a] == volume.axes.size(a) for a in DIMENSIONS)
    if (finest and not fits) or not set(volume.axes.letters) <= set(DIMENSIONS):
        return volume, "its NIfTI header describes other axes: it is left out"
    grid = source.grid
    told = grid.anatomical or "unit" not in grid.assumed or grid.spacing != (1, 1, 1)
    if not told:  # the header of a volume of which nothing is known
        grid = volume.grid
    elif not finest and grid.affine is not None:
        step = np.linalg.inv(_physical(image, image.datasets[0])) @ _physical(image, dataset)
        affine = grid.affine @ step
        qform = None if grid.qform is None else grid.qform @ step
        grid = replace(grid, spacing=spacing_of_affine(affine), affine=affine, qform=qform)
    step_of_time = read_time_step(source.header) or volume.facts.time_step
    return (
        replace(
            volume,
            format=NIFTI.name,
            grid=grid,
            scale=read_scale(source.header, path),
            facts=replace(volume.facts, time_step=step_of_time),
            history=volume.history or read_history(source.extensions),
            metadata=replace(volume.metadata, nifti=source),
        ),
        "",
    )


def _physical(image: OmeImage, dataset: Dataset) -> Affine:
    """The affine (4, 4) of a level by its scale and translation alone."""
    matrix = np.eye(4)
    for letter, scale, shift in zip(image.letters, dataset.scale, dataset.translation, strict=True):
        if letter in SPATIAL:
            row = "xyz".index(letter)
            matrix[row, row], matrix[row, 3] = scale or 1.0, shift
    return matrix


def nifti_header(volume: VolumeHeader, path: str) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of an output's NIfTI header with its extensions, and notes.

    Raises: WriteError for a dtype or axes that NIfTI does not have.
    """
    source = source_of(volume)
    axes: Axes = stored_axes(volume.axes, np.dtype(np.float32))  # channels are never RGB samples
    try:
        fields, notes = output_header(volume, axes, pair=False)
        extensions = () if source is None else source.extensions
        return header_bytes(fields, add_history(fields, extensions, volume.history)), tuple(notes)
    except WriteError as error:
        raise WriteError(f"cannot write {path}: {error}") from None


def content(path: str) -> str:
    """ "labels" if a store's NIfTI header or NGFF metadata say so, else "". Raises: FormatError."""
    if names.content(path):
        return "labels"
    node = open_node(path)
    found = None if is_array(node) else read_nifti(node, path, [])
    return "labels" if found and int(found.header["intent_code"]) == LABEL_INTENT else ""
