"""The place of a NIfTI volume in the world: sform, qform, voxel sizes and units, read from a header and written to one.

nibabel's header methods are used where they say what is meant; its choice of codes is not (it resets them), nor its test
whether an affine has changed (it would lose a shift of half a voxel far from the origin).

Source: nifti1.h, "3D image (volume) orientation and location in space", methods 1 to 3.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.model.grid import UNITS, Affine, Grid, affine_from_spacing, shear, spacing_of_affine

SPATIAL_UNITS = {1: "m", 2: "mm", 3: "um"}  # xyzt_units & 7
ALIGNED = 2  # NIFTI_XFORM_ALIGNED_ANAT: coordinates are those of another file
LARGEST = 1e38  # of any number here: a float32 holds the length of a vector of three such

# --------------------------------------------------------------------------------------------------
# Reading


def read_grid(header: Any, path: str) -> Grid:
    """The grid a header describes: sform, else qform, else voxel sizes; the qform apart where it has both.

    Lengths stay in the header's unit, mm if it names none.
    Raises: FormatError if the matrix is not finite or a voxel has no size.
    """
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    qform = None
    if has_sform:
        affine = _sform_matrix(header, path)
        if has_qform:
            try:
                qform = _qform_matrix(header, _voxel_sizes(header, path), path)
            except FormatError:
                pass  # every reader takes the sform first, so a spoilt qform spoils nothing
    else:
        voxel_sizes = _voxel_sizes(header, path)
        affine = (
            _qform_matrix(header, voxel_sizes, path)
            if has_qform
            else _plain_matrix(header, voxel_sizes)
        )
    unit = SPATIAL_UNITS.get(int(header["xyzt_units"]) & 7, "mm")
    return Grid(spacing_of_affine(affine), unit, affine, qform, anatomical=has_sform or has_qform)


def _sform_matrix(header: Any, path: str) -> Affine:
    affine = np.eye(4)
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is refused below
        affine[:3] = [header["srow_x"], header["srow_y"], header["srow_z"]]
    if not _meaningful(affine) or min(spacing_of_affine(affine)) == 0:
        raise FormatError(
            f"cannot read {path}: its sform has no meaning: rows {affine[:3].tolist()}; repair it, or set sform_code to 0"
        )
    return affine


def _voxel_sizes(header: Any, path: str) -> list[float]:
    """Voxel sizes along x, y, z: |pixdim|; 1 for an axis of one voxel that has none.

    Raises: FormatError for a longer axis without a size.
    """
    sizes = []
    for dimension in (1, 2, 3):
        size = abs(float(header["pixdim"][dimension]))
        known = _meaningful(size) and size > 0
        if not known and _length(header, dimension) > 1:
            raise FormatError(
                f"cannot read {path}: it has no voxel size: pixdim[{dimension}] is {size:g} and there is no sform; "
                f"set it to the size along {'xyz'[dimension - 1]}"
            )
        sizes.append(size if known else 1.0)
    return sizes


def _meaningful(numbers: Any) -> bool:
    """Finite, and not so large that arithmetic with them overflows."""
    return bool((np.abs(numbers) <= LARGEST).all())


def _length(header: Any, dimension: int) -> int:
    sizes = header["dim"]
    return int(sizes[dimension]) if dimension <= sizes[0] else 1


def _qform_matrix(header: Any, voxel_sizes: list[float], path: str) -> Affine:
    """The (4, 4) matrix of quaternion, offsets and voxel sizes.

    Raises: FormatError if its numbers are none.
    """
    from nibabel.quaternions import quat2mat

    axis = np.array([float(header[f"quatern_{a}"]) for a in "bcd"])
    offset = np.array([float(header[f"qoffset_{a}"]) for a in "xyz"])
    if not _meaningful([*axis, *offset]):
        raise FormatError(
            f"cannot read {path}: its qform has no meaning: quaternion {axis.tolist()}, offset {offset.tolist()}"
        )
    length = float(axis @ axis)
    # (b, c, d) of length 1, up to rounding, is half a turn about it: nifti1_io.c, nifti_quatern_to_mat44
    rounding = 1e-7 if header["quatern_b"].dtype.itemsize == 4 else 1e-15
    quaternion = (
        [math.sqrt(1 - length), *axis]
        if 1 - length >= rounding
        else [0.0, *(axis / math.sqrt(length))]
    )
    handedness = -1.0 if float(header["pixdim"][0]) < 0 else 1.0
    matrix = np.eye(4)
    matrix[:3, :3] = quat2mat(quaternion) * (np.array(voxel_sizes) * [1, 1, handedness])
    matrix[:3, 3] = offset
    return matrix


def _plain_matrix(header: Any, voxel_sizes: list[float]) -> Affine:
    """The matrix of a header without sform and qform, as nibabel has it: x runs left, the origin lies in the middle."""
    steps = np.array(voxel_sizes) * [-1, 1, 1]
    matrix = np.diag([*steps, 1.0])
    matrix[:3, 3] = -steps * (np.array([_length(header, d) for d in (1, 2, 3)]) - 1) / 2
    return matrix


def permuted(grid: Grid, dimensions: dict[str, int]) -> Grid:
    """The grid where other axes than the header's are space.

    dimensions : dict       the dimension (1 to 7) that z, y, x are; z may be absent
    An empty grid if one of them is not a dimension of space.
    """
    if max(dimensions.values()) > 3 or grid.affine is None:
        return Grid()
    absent = [d for d in (1, 2, 3) if d not in dimensions.values()]
    columns = [(dimensions[a] if a in dimensions else absent.pop()) - 1 for a in "xyz"] + [3]
    affine = grid.affine[:, columns]
    qform = None if grid.qform is None else grid.qform[:, columns]
    return replace(grid, spacing=spacing_of_affine(affine), affine=affine, qform=qform)


# --------------------------------------------------------------------------------------------------
# Writing


def write_grid(header: Any, grid: Grid, source: Grid | None) -> list[str]:
    """Write a grid into a header; what the header says already keeps its bytes.

    header : nibabel header     a copy of the source's where there is one, else empty
    source : Grid or None       what `read_grid` found in the header this is a copy of

    sform and qform keep their codes: each takes its own matrix, and where the source has neither, voxel sizes alone are
    written. An empty header gets both, under the code "aligned" (coordinates are another file's), so that no reader has to
    guess an orientation; without any spacing it gets neither.
    Returns notes on what could not be held. Raises: WriteError for an affine that is not one.
    """
    grid, unit_code = _in_nifti_unit(grid)
    if source is None or grid.unit != source.unit:
        header["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | unit_code
    # another unit: no number stays
    kept = source if source is not None and grid.unit == source.unit else Grid()
    affine = grid.affine
    if affine is None and grid.spacing is not None:
        affine = affine_from_spacing(grid.spacing)
    if affine is None:
        header["sform_code"] = header["qform_code"] = 0
        header["pixdim"][1:4] = 1
        return []
    for matrix in (affine, grid.qform):
        if matrix is not None and not (_meaningful(matrix) and np.linalg.det(matrix[:3, :3])):
            raise WriteError(f"its affine is not finite or has no inverse: {matrix[:3].tolist()}")

    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    neither = sform_code <= 0 and qform_code <= 0
    if source is None or grid.affine is None or (neither and not _is_plain(affine)):
        sform_code = qform_code = ALIGNED
    own_qform = sform_code > 0 and grid.qform is not None
    qform, qform_before = (grid.qform, kept.qform) if own_qform else (affine, kept.affine)
    assert qform is not None
    notes = []
    if qform_code > 0 and not _same(qform, qform_before):
        if _is_sheared(qform) and own_qform:
            notes.append(
                "a qform cannot hold a shear: it is the nearest rotation; the sform is exact"
            )
        elif _is_sheared(qform):
            if sform_code <= 0:
                notes.append(
                    "a qform cannot hold a shear: the affine is written as sform, under the same code"
                )
                sform_code = qform_code
            qform_code = 0
        if qform_code > 0:
            header.set_qform(qform)
    spacing = spacing_of_affine(affine)
    if qform_code <= 0 and (kept.affine is None or spacing != spacing_of_affine(kept.affine)):
        header["pixdim"][1:4] = spacing[::-1]
    if sform_code > 0 and not _same(affine, kept.affine):
        header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    header["sform_code"], header["qform_code"] = sform_code, qform_code
    return notes


def _in_nifti_unit(grid: Grid) -> tuple[Grid, int]:
    """The grid in a unit that NIfTI has, with its code: nm become um, cm become mm."""
    codes = {unit: code for code, unit in SPATIAL_UNITS.items()}
    if grid.unit is None:
        return grid, 0
    if grid.unit in codes:
        return grid, codes[grid.unit]
    unit = {"nm": "um", "cm": "mm"}[grid.unit]
    factor = UNITS[grid.unit] / UNITS[unit]
    scaling = np.diag([factor, factor, factor, 1.0])
    spacing = grid.spacing
    if spacing is not None:
        spacing = (spacing[0] * factor, spacing[1] * factor, spacing[2] * factor)
    affine, qform = (
        None if matrix is None else scaling @ matrix for matrix in (grid.affine, grid.qform)
    )
    return Grid(spacing, unit, affine, qform), codes[unit]


def _same(one: Affine, other: Affine | None) -> bool:
    return other is not None and np.array_equal(one, other)


def _is_plain(affine: Affine) -> bool:
    """Whether a header without sform and qform says this orientation."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(directions, np.diag([-1, 1, 1]))


def _is_sheared(affine: Affine) -> bool:
    """Whether the columns stand oblique on one another, beyond the rounding of a float32 header."""
    return shear(affine[:3, :3]) > 1e-5
