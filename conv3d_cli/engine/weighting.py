"""Weighted sums, as masked convolution needs them: the certainty of voxels, and the division by its coverage.

y = numerator / coverage, where the kernel's weights w sum w·c·x and w·c over a window (x: voxels, c: certainty). Two
plans compute both sums; here stand the arguments of packing (`Certainty`) and of the store (`Division`), and the
loops beside them: where certainty is 0 or 1 block by block, the division of sums that are held already, clearing
outside a mask, and the extents of labels.
Source: H. Knutsson and C.-F. Westin, Normalized and differential convolution, CVPR 1993.
"""

from __future__ import annotations

from collections import namedtuple
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

# What the loops get as int64 `parameters`: addresses, steps in elements, counts.
FlagArguments: Any = namedtuple(
    "FlagArguments",
    "source source_plane source_row source_column found planes height width bands blocks",
)
ExtentArguments: Any = namedtuple(
    "ExtentArguments", "labels labels_plane labels_row found planes height width"
)
ClearArguments: Any = namedtuple(
    "ClearArguments",
    "sums sums_plane sums_row sums_column sums_channel mask mask_plane mask_row mask_column planes height width channels",
)
# Their places: Numba takes the members of a namedtuple as constants.
FLAG_AT, EXTENT_AT, CLEAR_AT = (
    kind(*range(len(kind._fields))) for kind in (FlagArguments, ExtentArguments, ClearArguments)
)

# A coverage this near to 1, in units of the last place, is 1: so much rounding does to a sum of all weights. Sums stay
# as they are there, so a voxel far from anything missing has the bits of the plain convolution.
WHOLE_ULPS = 32
# Flags of a block of voxels: some certainty is not 1; some is above 0; the mask is above 0 somewhere.
INCOMPLETE, PRESENT, IN_MASK = 1, 2, 4
BLOCK_ROWS, BLOCK_COLUMNS = 8, 16  # of such a block; it is one plane deep


class Certainty(NamedTuple):
    """The certainty of a source's voxels: the mask's number, and 0 where a voxel is missing.

    mask : (planes, rows, columns) or None  of any real dtype, at least 0, rows contiguous; None: all 1
    positions : lists                   for each position of the taps along depth, height and width, its place in the mask
    label : float or None               certainty is 1 where the mask is this number, else 0
    nonfinite_missing : bool            NaN and infinity are missing
    missing_value : float or None       a stored value that is missing
    replaces_source : bool              certainties are convolved in place of products
    """

    mask: NDArray[Any] | None = None
    positions: tuple[list[int], list[int], list[int]] = ([], [], [])
    label: float | None = None
    nonfinite_missing: bool = False
    missing_value: float | None = None
    replaces_source: bool = False

    def changes_nothing(self, source: np.dtype[Any], scale: tuple[float, float]) -> bool:
        """True if voxels of this dtype and (slope, intercept) are convolved as they are.

        >>> Certainty(nonfinite_missing=True).changes_nothing(np.dtype("int16"), (1.0, 0.0))
        True
        """
        finite = source.kind != "f" and scale == (1.0, 0.0)
        unmasked = self.mask is None and not self.replaces_source
        return (
            unmasked
            and (finite or not self.nonfinite_missing)
            and _held(self.missing_value, source) is None
        )

    def fields(
        self,
        source: np.dtype[Any],
        planes: NDArray[np.int64] | None = None,
        rows: NDArray[np.int64] | None = None,
        columns: NDArray[np.int64] | None = None,
    ) -> CertaintyFields:
        """The fields of a step record for a source of this dtype, with offset tables of the mask."""
        missing = _held(self.missing_value, source)
        return CertaintyFields(
            self.mask, planes, rows, columns,
            packs_certainty=self.replaces_source,
            labelled=self.label is not None, label=0.0 if self.label is None else self.label,
            nonfinite_missing=self.nonfinite_missing,
            compares=missing is not None, missing_value=0.0 if missing is None else missing,
        )  # fmt: skip


class Division(NamedTuple):
    """A division by coverage, in place of storing it: `out` holds the numerators and takes the means.

    min_coverage : float                outputs of less coverage take `empty_value`
    coverage : (d, h, w, c) or None     takes the coverage, of the sums' dtype
    inside : (d, h, w, 1) or None       of any real dtype; outputs below `min_coverage` are counted where it is above 0;
                                        None: everywhere
    """

    min_coverage: float
    empty_value: float
    coverage: NDArray[Any] | None = None
    inside: NDArray[Any] | None = None

    def code(self, real: np.dtype[Any]) -> MachineCode:
        """The loop that divides."""
        inside = "none" if self.inside is None else self.inside.dtype.name
        return machine_code("weighting", "divide", real.name, inside)

    def check_shapes(self, sums: tuple[int, ...], filters: int) -> None:
        """Check that the arrays fit sums (d, h, w, c) and a coverage of so many filters. Raises: ValueError."""
        coverage, inside = self.coverage, self.inside
        if coverage is not None:
            if coverage.shape != (*sums[:3], filters):
                raise ValueError(
                    f"the coverage is {(*sums[:3], filters)}, received {coverage.shape}"
                )
            if filters > 1 and coverage.strides[3] != coverage.itemsize:
                raise ValueError(
                    f"a voxel's coverages lie side by side, received strides {coverage.strides}"
                )
        if inside is not None and inside.shape != (*sums[:3], 1):
            raise ValueError(f"the mask of outputs is {(*sums[:3], 1)}, received {inside.shape}")

    def check_memory(self, real: np.dtype[Any]) -> None:
        """Check that the arrays are laid out as the loops assume, for sums of a dtype. Raises: ValueError."""
        if self.coverage is not None:
            if self.coverage.dtype != real:
                raise ValueError(
                    f"the coverage of {real} sums is {real}, received {self.coverage.dtype}"
                )
            if not (self.coverage.flags.writeable and is_flattenable(self.coverage)):
                raise ValueError("the coverage is a writable array of aligned numbers")
        if self.inside is not None and not is_flattenable(self.inside):
            raise ValueError("the mask of outputs holds aligned numbers in native byte order")

    def fields(self, real: np.dtype[Any], repeat: int) -> DivisionFields:
        """The fields of a step record; `repeat`: channels of sums for one of coverage."""
        return DivisionFields(
            repeat, near_one(real), self.min_coverage, self.empty_value,
            self.coverage, *_steps(self.coverage), self.inside, *_steps(self.inside),
        )  # fmt: skip


def near_one(real: np.dtype[Any]) -> float:
    """How near to 1 a coverage counts as 1."""
    return WHOLE_ULPS * float(np.finfo(real).eps)


def _steps(array: NDArray[Any] | None) -> tuple[int, int, int]:
    """From one plane, row and column to the next, in elements."""
    if array is None:
        return 0, 0, 0
    plane, row, column = (stride // array.itemsize for stride in array.strides[:3])
    return plane, row, column


def _held(missing: float | None, source: np.dtype[Any]) -> float | None:
    """The missing value, if voxels of that dtype can have it."""
    if missing is None:
        return None
    if source.kind == "f":
        with np.errstate(over="ignore"):
            return missing if float(source.type(missing)) == missing else None
    limits = np.iinfo(np.uint8 if source.kind == "b" else source)
    return missing if float(missing).is_integer() and limits.min <= missing <= limits.max else None


def divide(
    pieces: Sequence[tuple[NDArray[Any], NDArray[Any]]], division: Division, team: Team
) -> int:
    """Divide sums by their coverage in place. Returns how many outputs have less than `min_coverage`.

    pieces : (sums, coverage) each      sums (d, h, w, c); coverage of the same dtype and shape, or 1 long along axes where
                                        it is the same for all planes, rows, columns or channels
    Raises: ValueError for other shapes or dtypes.
    """
    if not pieces:
        return 0
    if division.inside is not None or division.coverage is not None:
        raise ValueError(
            "pieces have no place in a slab, so neither `inside` nor `coverage` belongs to them"
        )
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
                f"sums and coverages have one dtype, received {sums.dtype} and {coverage.dtype}"
            )
    code = division.code(real)
    load([code])
    # few tasks, since each costs some Python
    tasks = [
        (*piece, *run)
        for piece in pieces
        if piece[0].size
        for run in _plane_runs(len(piece[0]), team)
    ]
    below = np.zeros(len(tasks), np.int64)

    same = Geometry(filters=filters), division.fields(real, channels // filters)
    steps = {worker: StepRecord(*same) for worker in team.workers(len(tasks))}

    def work(worker: int, task: int) -> None:
        sums, coverage, first, last = tasks[task]
        plane, row, column, channel = (stride // real.itemsize for stride in sums.strides)
        own = [
            0 if n == 1 else stride // real.itemsize
            for n, stride in zip(coverage.shape, coverage.strides, strict=True)
        ]
        groups = (
            Progress(step_planes=last - first, block_rows=sums.shape[1], width=sums.shape[2]),
            Sums(Pointer(coverage, first * own[0]), own[3], own[0], own[1], own[2]),
            Output(Pointer(sums, first * plane), channel, plane, row, column),
            StepResults(Pointer(below, task)),
        )
        fill([steps[worker]], *groups)
        code(steps[worker])

    team.run(len(tasks), work)
    return int(below.sum())


def clear(sums: NDArray[Any], inside: NDArray[Any], team: Team) -> None:
    """Set sums (d, h, w, c) to 0 where a mask (d, h, w, 1), of any real dtype, is not above 0.

    Raises: ValueError for a mask of another shape.
    """
    real, given = sums.dtype, inside.dtype
    if inside.shape != (*sums.shape[:3], 1):
        raise ValueError(f"the mask of outputs is {(*sums.shape[:3], 1)}, received {inside.shape}")
    code = machine_code("weighting", "clear", real.name, given.name)
    load([code])
    depth, height, width, channels = sums.shape
    steps = [stride // real.itemsize for stride in sums.strides]
    own = [stride // given.itemsize for stride in inside.strides]
    if channels == 1:
        steps[3] = 0
    runs = _plane_runs(max(depth, 1), team)

    def work(_: int, number: int) -> None:
        first, last = runs[number]
        parameters = np.array(
            ClearArguments(
                sums=sums[first].ctypes.data, sums_plane=steps[0], sums_row=steps[1], sums_column=steps[2],
                sums_channel=steps[3], mask=inside[first].ctypes.data, mask_plane=own[0], mask_row=own[1],
                mask_column=own[2], planes=last - first, height=height, width=width, channels=channels,
            ),
            np.int64,
        )  # fmt: skip
        code(StepRecord(AlgorithmData(parameters=parameters)))

    if sums.size:
        team.run(len(runs), work)


def _plane_runs(planes: int, team: Team) -> list[tuple[int, int]]:
    """Planes in runs for a team's threads: few, since each costs some Python."""
    size = -(-planes // (2 * team.threads if team.threads > 1 else 1))
    return [(start, min(start + size, planes)) for start in range(0, planes, size)]


def certainty_flags(
    source: NDArray[Any],
    certainty: Certainty | None,
    scale: tuple[float, float],
    real: np.dtype[Any],
    team: Team,
) -> NDArray[np.uint8]:
    """`INCOMPLETE`, `PRESENT` and `IN_MASK` of each block of voxels: (planes, row blocks, column blocks).

    source : (planes, rows, columns, c)     voxels, or the numbers of a mask. A block covers all channels
    certainty : Certainty or None           which voxels are missing (its mask is not read); None: the source is a mask
    scale : (slope, intercept)              of the source
    real : dtype                            that voxels are computed in
    """
    if not is_flattenable(source):
        source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
    if source.dtype == bool:
        source = source.view(np.uint8)
    depth, height, width, channels = source.shape
    code = machine_code(
        "weighting", "certainty_flags", source.dtype.name, real.name, int(certainty is None)
    )
    load([code])
    shape = (depth, -(-height // BLOCK_ROWS), -(-width // BLOCK_COLUMNS))
    found = np.zeros(shape, np.uint8)
    view = flat_view(source)
    fields = (Certainty() if certainty is None else certainty._replace(mask=None)).fields(
        source.dtype
    )
    scaling = Source(scaled=scale != (1.0, 0.0), slope=scale[0], intercept=scale[1])

    def work(_: int, number: int) -> None:
        first, last = runs[number]
        for channel in range(channels):
            at = view.start + first * view.strides[0] + channel * view.strides[3]
            parameters = np.array(
                FlagArguments(
                    source=view.flat.ctypes.data + at * source.itemsize, source_plane=view.strides[0],
                    source_row=view.strides[1], source_column=view.strides[2], found=found[first].ctypes.data,
                    planes=last - first, height=height, width=width, bands=shape[1], blocks=shape[2],
                ),
                np.int64,
            )  # fmt: skip
            code(StepRecord(AlgorithmData(parameters=parameters), scaling, fields))

    runs = _plane_runs(depth, team)
    team.run(len(runs), work)
    return found


def label_extents(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Where each label from 0 to the largest lies: (labels, 3, 2), its first and last plane, row and column.

    labels : (planes, rows, columns)    whole numbers, rows contiguous; 0 is no label
    The first is above the last where there is no such label. Raises: ValueError for other strides.
    """
    if labels.size and labels.shape[2] > 1 and labels.strides[2] != labels.itemsize:
        raise ValueError(f"rows of labels are contiguous, received strides {labels.strides}")
    code = machine_code("weighting", "label_extents", labels.dtype.name)
    load([code])
    found = np.empty((int(labels.max(initial=0)) + 1, 3, 2), np.int64)
    found[:, :, 0], found[:, :, 1] = 1 << 40, -1
    parameters = np.array(
        ExtentArguments(
            labels=labels.ctypes.data, labels_plane=labels.strides[0] // labels.itemsize,
            labels_row=labels.strides[1] // labels.itemsize, found=found.ctypes.data, planes=labels.shape[0],
            height=labels.shape[1], width=labels.shape[2],
        ),
        np.int64,
    )  # fmt: skip
    code(StepRecord(AlgorithmData(parameters=parameters)))
    return found
