"""The grid of a NIfTI volume: sform, qform, voxel sizes and units, read and written.

This module uses some of nibabel's header methods, but not its choice of codes (nibabel resets them)
nor its test for a changed affine (it would lose a shift of half a voxel far from the origin).

Source: nifti1.h, "3D image (volume) orientation and location in space", methods 1 to 3.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats.deviations import deviation_note
from conv3d_cli.model.grid import Affine, Grid, affine_from_spacing, shear, spacing_of_affine
from conv3d_cli.model.units import UNITS

SPATIAL_UNITS = {1: "m", 2: "mm", 3: "um"}  # xyzt_units & 7
ALIGNED = 2  # NIFTI_XFORM_ALIGNED_ANAT: coordinates are those of another file
LARGEST = 1e38  # allowed magnitude: a vector of three such numbers has a length that fits a float32

LONGEST_AXIS = 1.001  # of a quaternion's (b, c, d): more than this over 1 is no rounding
SAME_SIZE = 1e-3  # relative difference between sform and pixdim that counts as rounding

# --------------------------------------------------------------------------------------------------
# Reading


def read_grid(header: Any, path: str, notes: list[str]) -> Grid:
    """The grid that a header describes: its sform, else its qform, else its voxel sizes.

    If it has both, `Grid.qform` is the qform. Lengths are in the header's unit, or mm if it names
    none. An axis without a voxel size gets 1, which `Grid.assumed` tells.

    notes : list of str     gets the notes on deviations
    Raises: FormatError if the matrix is not finite.
    """
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    qform, assumed, guesses = None, set(), []
    if has_sform:
        affine = _sform_matrix(header, path)
        if has_qform:
            try:
                qform = _qform_matrix(header, _voxel_sizes(header), path)
            except FormatError:  # readers prefer the sform, so it does no harm
                notes.append(deviation_note("qform"))
    else:
        voxel_sizes = _voxel_sizes(header)
        assumed = {letter for n, letter in enumerate("whd", 1) if not _has_size(header, n)}
        guesses = [
            deviation_note("no-pixdim", dimension=n, size=f"{float(header['pixdim'][n]):g}")
            for n in (1, 2, 3)
            if not _has_size(header, n) and _length(header, n) > 1
        ]
        affine = (
            _qform_matrix(header, voxel_sizes, path)
            if has_qform
            else _default_matrix(header, voxel_sizes)
        )
    notes += [*guesses, *_sign_notes(header)]
    if has_qform and not has_sform:
        notes += _quaternion_notes(header)
    other = _other_spacing(header, affine) if has_sform else None
    if other is not None:
        used, stated = (
            ",".join(f"{size:.4g}" for size in sizes[::-1])
            for sizes in (spacing_of_affine(affine), other)
        )
        notes.append(deviation_note("pixdim-against-sform", used=used, other=stated))
    unit = SPATIAL_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        unit, assumed = "mm", assumed | {"unit"}
    return Grid(
        spacing_of_affine(affine),
        unit,
        affine,
        qform,
        anatomical=has_sform or has_qform,
        assumed=frozenset(assumed),
        guesses=tuple(guesses),
        other_spacing=other,
    )


def _quaternion_notes(header: Any) -> list[str]:
    """A note on a quaternion that is longer than any rotation's."""
    length = math.hypot(*(float(header[f"quatern_{a}"]) for a in "bcd"))
    return [deviation_note("long-quaternion", length=length)] if length > LONGEST_AXIS else []


def _sign_notes(header: Any) -> list[str]:
    """Notes on voxel sizes (pixdim) below 0."""
    return [
        deviation_note("negative-pixdim", dimension=n, size=f"{size:g}")
        for n, size in enumerate(map(float, header["pixdim"][1:4]), 1)
        if size < 0
    ]


def _other_spacing(header: Any, sform: Affine) -> tuple[float, float, float] | None:
    """The spacing (D, H, W) by pixdim, if it contradicts the sform's; else None.

    An axis without a pixdim counts as 1, as FSL reads it; one of a single voxel contradicts none.
    """
    used = spacing_of_affine(sform)[::-1]
    w, h, d = (
        size if _length(header, n) > 1 else step
        for n, (size, step) in enumerate(zip(_voxel_sizes(header), used, strict=True), 1)
    )
    agrees = all(abs(a - b) <= SAME_SIZE * b for a, b in zip((w, h, d), used, strict=True))
    return None if agrees else (d, h, w)


def _sform_matrix(header: Any, path: str) -> Affine:
    affine = np.eye(4)
    with np.errstate(invalid="ignore"):  # raised by a signalling NaN, which is refused below
        affine[:3] = [header["srow_x"], header["srow_y"], header["srow_z"]]
    if not _in_range(affine) or min(spacing_of_affine(affine)) == 0:
        raise FormatError(
            f"cannot read {path}: its sform has no meaning: rows {affine[:3].tolist()}; "
            "repair it, or set sform_code to 0"
        )
    return affine


def _has_size(header: Any, dimension: int) -> bool:
    """Whether a dimension (1 to 3) has a voxel size."""
    size = abs(float(header["pixdim"][dimension]))
    return _in_range(size) and size > 0


def _voxel_sizes(header: Any) -> list[float]:
    """Voxel sizes along x, y, z: |pixdim|, or 1 where there is none."""
    return [abs(float(header["pixdim"][n])) if _has_size(header, n) else 1.0 for n in (1, 2, 3)]


def _in_range(numbers: Any) -> bool:
    """True if numbers are finite, and too small to overflow in later arithmetic."""
    return bool((np.abs(numbers) <= LARGEST).all())


def _length(header: Any, dimension: int) -> int:
    sizes = header["dim"]
    return max(1, int(sizes[dimension])) if dimension <= sizes[0] else 1


def _qform_matrix(header: Any, voxel_sizes: list[float], path: str) -> Affine:
    """The (4, 4) affine of a header's quaternion, offsets and voxel sizes.

    Raises: FormatError if a number is not finite or too large.
    """
    from nibabel.quaternions import quat2mat

    axis = np.array([float(header[f"quatern_{a}"]) for a in "bcd"])
    offset = np.array([float(header[f"qoffset_{a}"]) for a in "xyz"])
    if not _in_range([*axis, *offset]):
        raise FormatError(
            f"cannot read {path}: its qform has no meaning: "
            f"quaternion {axis.tolist()}, offset {offset.tolist()}"
        )
    length = float(axis @ axis)
    # If (b, c, d) has length 1, up to rounding, it is the axis of a rotation by 180 degrees:
    # nifti1_io.c, nifti_quatern_to_mat44.
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


def _default_matrix(header: Any, voxel_sizes: list[float]) -> Affine:
    """The affine of a header without sform and qform, as in nibabel.

    x points to the left, and the origin is the centre of the volume.
    """
    steps = np.array(voxel_sizes) * [-1, 1, 1]
    matrix = np.diag([*steps, 1.0])
    matrix[:3, 3] = -steps * (np.array([_length(header, d) for d in (1, 2, 3)]) - 1) / 2
    return matrix


def permuted(grid: Grid, dimensions: dict[str, int]) -> Grid:
    """The grid of a volume whose z, y, x are other dimensions than the header's.

    dimensions : dict       letter -> dimension of the file (1 to 7), of z, y, x; z may be absent
    Returns an empty grid if one of them is not a spatial dimension (1 to 3).
    """
    if max(dimensions.values()) > 3 or grid.affine is None:
        return Grid()
    absent = [d for d in (1, 2, 3) if d not in dimensions.values()]
    columns = [(dimensions[a] if a in dimensions else absent.pop()) - 1 for a in "xyz"] + [3]
    affine = grid.affine[:, columns]
    qform = None if grid.qform is None else grid.qform[:, columns]
    assumed = {new for new, old in zip("whd", columns, strict=False) if "whd"[old] in grid.assumed}
    return replace(
        grid,
        spacing=spacing_of_affine(affine),
        affine=affine,
        qform=qform,
        other_spacing=None,
        assumed=frozenset(assumed | (grid.assumed & {"unit"})),
    )


# --------------------------------------------------------------------------------------------------
# Writing


def write_grid(header: Any, grid: Grid, source: Grid | None) -> list[str]:
    """Write a grid into a header; fields whose value does not change keep their bytes.

    header : nibabel header     a copy of the source's header, or an empty one
    source : Grid or None       the grid that `read_grid` found in the source's header

    sform and qform keep their codes, and each gets its own matrix. If the source has neither, only
    voxel sizes are written. An empty header gets both, with the code "aligned" (coordinates of
    another file), so that no reader has to guess the orientation; without spacing it gets neither.

    Returns notes on what NIfTI cannot store.
    Raises: WriteError for an affine that is not finite or has no inverse.
    """
    grid, unit_code = _in_nifti_unit(grid)
    stated = source is not None and "unit" in source.assumed and "unit" not in grid.assumed
    if source is None or grid.unit != source.unit or stated:
        header["xyzt_units"] = (int(header["xyzt_units"]) & ~7) | unit_code
    # in another unit, every number changes
    kept = source if source is not None and grid.unit == source.unit else Grid()
    affine = grid.affine
    if affine is None and grid.spacing is not None:
        affine = affine_from_spacing(grid.spacing)
    if affine is None:
        header["sform_code"] = header["qform_code"] = 0
        header["pixdim"][1:4] = 1
        return []
    for matrix in (affine, grid.qform):
        if matrix is not None and not (_in_range(matrix) and np.linalg.det(matrix[:3, :3])):
            raise WriteError(f"its affine is not finite or has no inverse: {matrix[:3].tolist()}")

    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    neither = sform_code <= 0 and qform_code <= 0
    if source is None or grid.affine is None or (neither and not _has_default_axes(affine)):
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
                    "a qform cannot hold a shear: "
                    "the affine is written as sform, under the same code"
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
    """The grid in a unit of NIfTI's, and the unit's code; nm become um, cm become mm."""
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


def _has_default_axes(affine: Affine) -> bool:
    """True if the axes point as those of a header without sform and qform do."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return np.allclose(directions, np.diag([-1, 1, 1]))


def _is_sheared(affine: Affine) -> bool:
    """True if the columns are not orthogonal, beyond the rounding of a float32 header."""
    return shear(affine[:3, :3]) > 1e-5
