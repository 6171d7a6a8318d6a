"""Weighted sums for masked convolution: the certainty of voxels, and the division by the coverage.

y = numerator / coverage = sum(w·c·x) / sum(w·c) over a window (w: kernel weights, x: voxels,
c: certainty). Two plans compute the two sums. This module defines the arguments of their packing
(`Certainty`) and of their store (`Division`), and runs the other loops of masked convolution: flags
of blocks whose certainty is 0 or 1, division of existing sums, clearing outside a mask, and extents
of labels.
Source: H. Knutsson and C.-F. Westin, Normalized and differential convolution, CVPR 1993.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.step import (
    AlgorithmData,
    CertaintyFields,
    DivisionFields,
    Geometry,
    Output,
    Pointer,
    Progress,
    Source,
    StepRecord,
    StepResults,
    Sums,
    fill,
)
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.views import flat_view, is_flattenable
from conv3d_cli.model.missing import stored_value


class FlagArguments(NamedTuple):
    """The int64 `parameters` of `certainty_flags`: addresses, strides in elements, counts."""

    source: int
    source_plane: int
    source_row: int
    source_column: int
    found: int
    planes: int
    height: int
    width: int
    bands: int  # rows of blocks
    blocks: int  # in a row of blocks


class ExtentArguments(NamedTuple):
    """The int64 `parameters` of `label_extents`: addresses, strides in elements, counts."""

    labels: int
    labels_plane: int
    labels_row: int
    found: int
    planes: int
    height: int
    width: int


class ClearArguments(NamedTuple):
    """The int64 `parameters` of `clear`: addresses, strides in elements, counts."""

    sums: int
    sums_plane: int
    sums_row: int
    sums_column: int
    sums_channel: int
    mask: int
    mask_plane: int
    mask_row: int
    mask_column: int
    planes: int
    height: int
    width: int
    channels: int


# The indices in `parameters`: Numba treats the members of a namedtuple as constants.
FLAG_AT = FlagArguments(*range(len(FlagArguments._fields)))
EXTENT_AT = ExtentArguments(*range(len(ExtentArguments._fields)))
CLEAR_AT = ClearArguments(*range(len(ClearArguments._fields)))

# A coverage within this many units in the last place of 1 counts as 1: rounding moves a sum of all
# weights that far. Such sums are not divided, so voxels far from missing ones are bitwise equal to
# those of the plain convolution.
WHOLE_ULPS = 32
# Flags of a block of voxels: some certainty is not 1; some is above 0; some mask value is above 0
INCOMPLETE, PRESENT, IN_MASK = 1, 2, 4
BLOCK_ROWS, BLOCK_COLUMNS = 8, 16  # the size of such a block, which is one plane deep


class Certainty(NamedTuple):
    """The certainty of a source's voxels: the mask's value, and 0 for missing voxels.

    mask : (planes, rows, columns) or None  any real dtype, not negative, rows contiguous; None: 1
    positions : three lists of int      index in the mask of each position that the taps span, along
                                        depth, height and width; -1 outside
    label : float or None               certainty is 1 where the mask equals this number, else 0
    nonfinite_missing : bool            NaN and infinity are missing
    missing_value : float or None       voxels whose stored number is this are missing
    replaces_source : bool              convolve the certainties instead of voxels times certainty
    """

    mask: NDArray[Any] | None = None
    positions: tuple[list[int], list[int], list[int]] = ([], [], [])
    label: float | None = None
    nonfinite_missing: bool = False
    missing_value: float | None = None
    replaces_source: bool = False

    def changes_nothing(self, source: np.dtype[Any], scale: tuple[float, float]) -> bool:
        """True if no voxel of this dtype and (slope, intercept) can have a certainty other than 1.

        False in any case with `replaces_source`.

        >>> Certainty(nonfinite_missing=True).changes_nothing(np.dtype("int16"), (1.0, 0.0))
        True
        """
        finite = source.kind != "f" and scale == (1.0, 0.0)
        unmasked = self.mask is None and not self.replaces_source
        nothing_missing = finite or not self.nonfinite_missing
        return unmasked and nothing_missing and stored_value(self.missing_value, source) is None

    def fields(
        self,
        source: np.dtype[Any],
        planes: NDArray[np.int64] | None = None,
        rows: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> CertaintyFields:
        """The fields of a step record for a source of this dtype.

        planes, rows, columns : (n,) int64 or None  the mask's offset tables, in elements
        """
        missing = stored_value(self.missing_value, source)
        return CertaintyFields(
            mask=self.mask,
            mask_planes=planes,
            mask_rows=rows,
            mask_columns=columns,
            packs_certainty=self.replaces_source,
            labelled=self.label is not None,
            label=0.0 if self.label is None else self.label,
            nonfinite_missing=self.nonfinite_missing,
            compares=missing is not None,
            missing_value=0.0 if missing is None else missing,
        )


class Division(NamedTuple):
    """A division by the coverage instead of a store: it replaces the numerators in `out` by means.

    min_coverage : float                outputs with less coverage become `empty_value`
    empty_value : float                 for example 0 or NaN
    coverage : (d, h, w, c) or None     receives the coverage, in the sums' dtype
    inside : (d, h, w, 1) or None       any real dtype; outputs below `min_coverage` are counted
                                        where it is above 0. None: everywhere
    """

    min_coverage: float
    empty_value: float
    coverage: NDArray[Any] | None = None
    inside: NDArray[Any] | None = None

    def code(self, real: np.dtype[Any]) -> MachineCode:
        """The loop that divides sums of dtype `real`."""
        inside = "none" if self.inside is None else self.inside.dtype.name
        return machine_code("weighting", "divide", real.name, inside)

    def check_shapes(self, sums: tuple[int, ...], filters: int) -> None:
        """Check the shapes of the arrays.

        sums : (int, int, int, int)     shape of the sums, (d, h, w, c)
        filters : int                   channels of coverage
        Raises: ValueError if `coverage` or `inside` does not fit them.
        """
        coverage, inside = self.coverage, self.inside
        if coverage is not None:
            wanted = (*sums[:3], filters)
            if coverage.shape != wanted:
                raise ValueError(f"the coverage must be {wanted}, received {coverage.shape}")
            if filters > 1 and coverage.strides[3] != coverage.itemsize:
                raise ValueError(
                    "the coverage's channels must be contiguous, "
                    f"received strides {coverage.strides}"
                )
        if inside is not None and inside.shape != (*sums[:3], 1):
            raise ValueError(
                f"the mask of outputs must be {(*sums[:3], 1)}, received {inside.shape}"
            )

    def check_memory(self, real: np.dtype[Any]) -> None:
        """Check that the loops can read and write the arrays, for sums of dtype `real`.

        Raises: ValueError for another dtype, byte order or alignment, or a read-only coverage.
        """
        if self.coverage is not None:
            if self.coverage.dtype != real:
                raise ValueError(
                    f"the coverage of {real} sums must be {real}, received {self.coverage.dtype}"
                )
            if not (self.coverage.flags.writeable and is_flattenable(self.coverage)):
                raise ValueError("the coverage must be a writable array of aligned numbers")
        if self.inside is not None and not is_flattenable(self.inside):
            raise ValueError("the mask of outputs must be aligned numbers in native byte order")

    def fields(self, real: np.dtype[Any], repeat: int) -> DivisionFields:
        """The fields of a step record.

        real : dtype        of the sums
        repeat : int        channels of sums per channel of coverage
        """
        coverage_steps, inside_steps = _steps(self.coverage), _steps(self.inside)
        return DivisionFields(
            repeat,
            near_one(real),
            self.min_coverage,
            self.empty_value,
            self.coverage,
            *coverage_steps,
            self.inside,
            *inside_steps,
        )


def near_one(real: np.dtype[Any]) -> float:
    """The largest distance from 1 at which a coverage of this dtype counts as 1."""
    return WHOLE_ULPS * float(np.finfo(real).eps)


def _steps(array: NDArray[Any] | None) -> tuple[int, int, int]:
    """The strides of planes, rows and columns, in elements; zeros for None."""
    if array is None:
        return 0, 0, 0
    plane, row, column = (stride // array.itemsize for stride in array.strides[:3])
    return plane, row, column


def divide(
    pieces: Sequence[tuple[NDArray[Any], NDArray[Any]]], division: Division, team: Team
) -> int:
    """Divide sums by their coverage in place. Returns the number of outputs below `min_coverage`.

    pieces : list of (sums, coverage)   sums (d, h, w, c), all of one dtype; coverage of the same
                                        dtype and (d, h, w, n), where n divides c. An axis d, h or w
                                        of length 1 is repeated
    division : Division                 without `inside` and `coverage`
    Raises: ValueError for other shapes or dtypes.
    """
    if not pieces:
        return 0
    if division.inside is not None or division.coverage is not None:
        raise ValueError("a division of pieces takes neither `inside` nor `coverage`")
    real, channels, filters = pieces[0][0].dtype, pieces[0][0].shape[3], pieces[0][1].shape[3]
    for sums, coverage in pieces:
        sizes = zip(coverage.shape[:3], sums.shape[:3], strict=True)
        fits = (
            sums.shape[3] == channels and coverage.shape[3] == filters and channels % filters == 0
        )
        if not fits or any(n not in (1, size) for n, size in sizes):
            raise ValueError(f"coverage {coverage.shape} does not fit sums {sums.shape}")
        if sums.dtype != real or coverage.dtype != real:
            raise ValueError(
                "sums and coverages must have one dtype, "
                f"received {sums.dtype} and {coverage.dtype}"
            )
    code = division.code(real)
    load([code])
    # few tasks, since each one runs some Python code
    tasks = [
        (*piece, *run)
        for piece in pieces
        if piece[0].size
        for run in _plane_runs(len(piece[0]), team)
    ]
    below = np.zeros(len(tasks), np.int64)

    shared = Geometry(filters=filters), division.fields(real, channels // filters)
    steps = {worker: StepRecord(*shared) for worker in team.workers(len(tasks))}

    def work(worker: int, task: int) -> None:
        sums, coverage, first, last = tasks[task]
        plane, row, column, channel = (stride // real.itemsize for stride in sums.strides)
        # strides of the coverage, 0 along axes that are repeated
        part_plane, part_row, part_column, part_channel = (
            0 if n == 1 else stride // real.itemsize
            for n, stride in zip(coverage.shape, coverage.strides, strict=True)
        )
        parts = Pointer(coverage, first * part_plane)
        groups = (
            Progress(step_planes=last - first, block_rows=sums.shape[1], width=sums.shape[2]),
            Sums(parts, part_channel, part_plane, part_row, part_column),
            Output(Pointer(sums, first * plane), channel, plane, row, column),
            StepResults(Pointer(below, task)),
        )
        fill([steps[worker]], *groups)
        code(steps[worker])

    team.run(len(tasks), work)
    return int(below.sum())


def clear_code(real: np.dtype[Any], mask: np.dtype[Any]) -> MachineCode:
    """The loop of `clear` for sums and a mask of these dtypes."""
    return machine_code("weighting", "clear", real.name, mask.name)


def clear(sums: NDArray[Any], inside: NDArray[Any], team: Team) -> None:
    """Set sums to 0 in place where a mask is not above 0.

    sums : (d, h, w, c)         float32 or float64
    inside : (d, h, w, 1)       the mask, of any real dtype
    Raises: ValueError for a mask of another shape.
    """
    real, mask_dtype = sums.dtype, inside.dtype
    wanted = (*sums.shape[:3], 1)
    if inside.shape != wanted:
        raise ValueError(f"the mask of outputs must be {wanted}, received {inside.shape}")
    code = clear_code(real, mask_dtype)
    load([code])
    depth, height, width, channels = sums.shape
    sums_plane, sums_row, sums_column, sums_channel = (n // real.itemsize for n in sums.strides)
    mask_plane, mask_row, mask_column, _ = (n // mask_dtype.itemsize for n in inside.strides)
    runs = _plane_runs(max(depth, 1), team)

    def work(_: int, number: int) -> None:
        first, last = runs[number]
        arguments = ClearArguments(
            sums=sums[first].ctypes.data,
            sums_plane=sums_plane,
            sums_row=sums_row,
            sums_column=sums_column,
            sums_channel=sums_channel if channels > 1 else 0,
            mask=inside[first].ctypes.data,
            mask_plane=mask_plane,
            mask_row=mask_row,
            mask_column=mask_column,
            planes=last - first,
            height=height,
            width=width,
            channels=channels,
        )
        code(StepRecord(AlgorithmData(parameters=np.array(arguments, np.int64))))

    if sums.size:
        team.run(len(runs), work)


def _plane_runs(planes: int, team: Team) -> list[tuple[int, int]]:
    """Split planes into runs (start, stop) for a team: few, since each runs some Python code."""
    size = -(-planes // (2 * team.threads if team.threads > 1 else 1))
    return [(start, min(start + size, planes)) for start in range(0, planes, size)]


def flags_code(source: np.dtype[Any], real: np.dtype[Any], is_mask: bool) -> MachineCode:
    """The loop of `certainty_flags` for voxels, or a mask, of dtype `source`."""
    return machine_code("weighting", "certainty_flags", source.name, real.name, int(is_mask))


def certainty_flags(
    source: NDArray[Any],
    certainty: Certainty | None,
    scale: tuple[float, float],
    real: np.dtype[Any],
    team: Team,
) -> NDArray[np.uint8]:
    """Flags of each block of voxels: `INCOMPLETE`, `PRESENT` and `IN_MASK`, combined by bitwise or.

    source : (planes, rows, columns, c)     voxels or mask values; a block covers all channels
    certainty : Certainty or None           which voxels are missing (its mask is ignored);
                                            None: the source is itself a mask
    scale : (slope, intercept)              of the source
    real : dtype                            of the arithmetic
    Returns uint8 (planes, row blocks, column blocks); blocks are BLOCK_ROWS x BLOCK_COLUMNS voxels.
    """
    if not is_flattenable(source):
        source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
    if source.dtype == bool:
        source = source.view(np.uint8)
    depth, height, width, channels = source.shape
    code = flags_code(source.dtype, real, is_mask=certainty is None)
    load([code])
    shape = (depth, -(-height // BLOCK_ROWS), -(-width // BLOCK_COLUMNS))
    found = np.zeros(shape, np.uint8)
    view = flat_view(source)
    unmasked = Certainty() if certainty is None else certainty._replace(mask=None)
    fields = unmasked.fields(source.dtype)
    scaling = Source(scaled=scale != (1.0, 0.0), slope=scale[0], intercept=scale[1])

    def work(_: int, number: int) -> None:
        first, last = runs[number]
        for channel in range(channels):
            at = view.start + first * view.strides[0] + channel * view.strides[3]
            arguments = FlagArguments(
                source=view.flat.ctypes.data + at * source.itemsize,
                source_plane=view.strides[0],
                source_row=view.strides[1],
                source_column=view.strides[2],
                found=found[first].ctypes.data,
                planes=last - first,
                height=height,
                width=width,
                bands=shape[1],
                blocks=shape[2],
            )
            data = AlgorithmData(parameters=np.array(arguments, np.int64))
            code(StepRecord(data, scaling, fields))

    runs = _plane_runs(depth, team)
    team.run(len(runs), work)
    return found


def extents_code(labels: np.dtype[Any]) -> MachineCode:
    """The loop of `label_extents` for labels of this dtype."""
    return machine_code("weighting", "label_extents", labels.name)


def label_extents(labels: NDArray[Any]) -> NDArray[np.int64]:
    """The bounding box of each label: its first and last plane, row and column.

    labels : (planes, rows, columns)    whole numbers of any dtype, rows contiguous; 0: background
    Returns int64 (largest label + 1, 3, 2), indexed by label. If a label does not occur, its first
    index is greater than its last.
    Raises: ValueError if rows are not contiguous.
    """
    if labels.size and labels.shape[2] > 1 and labels.strides[2] != labels.itemsize:
        raise ValueError(f"rows of labels must be contiguous, received strides {labels.strides}")
    code = extents_code(labels.dtype)
    load([code])
    found = np.empty((int(labels.max(initial=0)) + 1, 3, 2), np.int64)
    found[:, :, 0], found[:, :, 1] = 1 << 40, -1
    arguments = ExtentArguments(
        labels=labels.ctypes.data,
        labels_plane=labels.strides[0] // labels.itemsize,
        labels_row=labels.strides[1] // labels.itemsize,
        found=found.ctypes.data,
        planes=labels.shape[0],
        height=labels.shape[1],
        width=labels.shape[2],
    )
    code(StepRecord(AlgorithmData(parameters=np.array(arguments, np.int64))))
    return found
