"""What a normalised convolution asks of the engine beside two plans: weights, a division, and a look at where weights are."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.step import new_step, set_fields
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.views import flat_view, is_flattenable

# What the loops are told, as int64 `parameters`. Addresses; steps in elements; counts.
S: Any = namedtuple("S", "source source_plane source_row source_column found planes height width bands blocks")
E: Any = namedtuple("E", "labels labels_plane labels_row found planes height width")
C: Any = namedtuple(
    "C",
    "sums sums_plane sums_row sums_column sums_channel mask mask_plane mask_row mask_column planes height width channels",
)
# Their places: Numba takes the members of a namedtuple as constants.
SURVEY_AT, EXTENTS_AT, CLEAR_AT = (kind(*range(len(kind._fields))) for kind in (S, E, C))

# A coverage this near to 1, in units of the last place, is whole: what rounding makes of a sum of all weights. Sums are then
# left as they are, so that a voxel far from anything missing has the bits of the plain convolution.
WHOLE_ULPS = 32
# What a survey tells of a block of voxels: some weight in it is not 1; some is above 0; the mask is, somewhere.
LACKING, HOLDING, INSIDE = 1, 2, 4
BLOCK_ROWS, BLOCK_COLUMNS = 8, 16  # of a survey


class Weighing(NamedTuple):
    """The weights of a source's voxels: the mask's, and 0 where a voxel is missing.

    mask : (planes, rows, columns) or None  at least 0, rows contiguous; None: all 1
    positions : lists                   for every position of the taps along depth, height and width its place in the mask
    label : float or None               the mask's number that weighs 1, where all others weigh 0
    finite : bool                       NaN and infinity are missing
    missing : float or None             a stored value that is missing
    weights : bool                      the weights themselves are convolved, not the products
    """

    mask: NDArray[Any] | None = None
    positions: tuple[list[int], list[int], list[int]] = ([], [], [])
    label: float | None = None
    finite: bool = False
    missing: float | None = None
    weights: bool = False

    def is_idle(self, source: np.dtype[Any], scale: tuple[float, float]) -> bool:
        """Whether all voxels of a dtype weigh 1, and are themselves what is convolved."""
        finite = source.kind != "f" and scale == (1.0, 0.0)
        alone = self.mask is None and not self.weights
        return alone and (finite or not self.finite) and _held(self.missing, source) is None

    def fields(self, source: np.dtype[Any]) -> dict[str, Any]:
        """For a step record; `source`: dtype of what is stored."""
        missing = _held(self.missing, source)
        return {
            "packs_weights": self.weights, "labelled": self.label is not None,
            "label": 0.0 if self.label is None else self.label, "finite": self.finite,
            "compare": missing is not None, "missing": 0.0 if missing is None else missing,
            "mask": 0 if self.mask is None else self.mask.ctypes.data,
        }  # fmt: skip


class Division(NamedTuple):
    """What is done with coverage in place of storing it: the sums in `out` are divided by it.

    least : float       the coverage below which `fill` stands in place of a mean
    coverage : (d, h, w, c) or None     takes it, of the sums' dtype
    inside : (d, h, w, 1) or None       of any real dtype, above 0 where too little coverage is counted; None: everywhere
    """

    least: float
    fill: float
    coverage: NDArray[Any] | None = None
    inside: NDArray[Any] | None = None

    def code(self, real: np.dtype[Any]) -> MachineCode:
        """The loop that divides."""
        return machine_code("normalize", "divide", real.name, "none" if self.inside is None else self.inside.dtype.name)

    def check_shapes(self, sums: tuple[int, ...], filters: int) -> None:
        """That its arrays fit sums (d, h, w, c) divided by coverage of so many filters. Raises: ValueError."""
        coverage, inside = self.coverage, self.inside
        if coverage is not None:
            if coverage.shape != (*sums[:3], filters):
                raise ValueError(f"the coverage is {(*sums[:3], filters)}, received {coverage.shape}")
            if filters > 1 and coverage.strides[3] != coverage.itemsize:
                raise ValueError(f"a voxel's coverages lie side by side, received strides {coverage.strides}")
        if inside is not None and inside.shape != (*sums[:3], 1):
            raise ValueError(f"the mask of outputs is {(*sums[:3], 1)}, received {inside.shape}")

    def fields(self, real: np.dtype[Any], repeat: int) -> dict[str, Any]:
        """For a step record; `repeat`: channels of sums for one of coverage."""
        told = self.coverage
        steps = (0, 0, 0) if told is None else [stride // real.itemsize for stride in told.strides[:3]]
        inside = self.inside
        own = (0, 0, 0) if inside is None else [stride // inside.itemsize for stride in inside.strides[:3]]
        return {
            "near": near_one(real), "least": self.least, "void": self.fill, "repeat": repeat,
            "coverage": 0 if told is None else told.ctypes.data,
            "coverage_plane_step": steps[0], "coverage_row_step": steps[1], "coverage_column_step": steps[2],
            "inside": 0 if inside is None else inside.ctypes.data,
            "inside_plane_step": own[0], "inside_row_step": own[1], "inside_column_step": own[2],
        }  # fmt: skip


def near_one(real: np.dtype[Any]) -> float:
    """How near to 1 a coverage is whole."""
    return WHOLE_ULPS * float(np.finfo(real).eps)


def _held(missing: float | None, source: np.dtype[Any]) -> float | None:
    """The missing value, if voxels of that dtype can have it."""
    if missing is None:
        return None
    if source.kind == "f":
        with np.errstate(over="ignore"):
            return missing if float(source.type(missing)) == missing else None
    limits = np.iinfo(np.uint8 if source.kind == "b" else source)
    return missing if float(missing).is_integer() and limits.min <= missing <= limits.max else None


def divide(pieces: Sequence[tuple[NDArray[Any], NDArray[Any]]], division: Division, team: Team) -> int:
    """Divide sums by their coverage in place: how many means had too little of it.

    pieces : (sums, coverage) each      sums (d, h, w, c); coverage of the same dtype and shape, or 1 long where it is the same
                                        for all planes, rows, columns or channels
    """
    if not pieces:
        return 0
    if division.inside is not None or division.coverage is not None:
        raise ValueError("pieces have no place in a slab, so neither `inside` nor `coverage` belongs to them")
    real = pieces[0][0].dtype
    for sums, coverage in pieces:
        sizes = zip(coverage.shape[:3], sums.shape[:3], strict=True)
        if any(n not in (1, size) for n, size in sizes) or sums.shape[3] % coverage.shape[3]:
            raise ValueError(f"coverage {coverage.shape} does not fit sums {sums.shape}")
        if sums.dtype != real or coverage.dtype != real:
            raise ValueError(f"sums and coverages have one dtype, received {sums.dtype} and {coverage.dtype}")
    code = division.code(real)
    load([code])
    # in shares, since a task costs some Python
    tasks = [(*piece, *share) for piece in pieces if piece[0].size for share in _shares(len(piece[0]), team)]
    bare = np.zeros(len(tasks), np.int64)

    def run(_: int, task: int) -> None:
        sums, coverage, first, last = tasks[task]
        steps = [stride // real.itemsize for stride in sums.strides]
        parts = [
            0 if n == 1 else stride // real.itemsize for n, stride in zip(coverage.shape, coverage.strides, strict=True)
        ]
        own = coverage.shape[3]
        step = new_step()
        set_fields(
            step, filters=own, step_planes=last - first, block_rows=sums.shape[1], width=sums.shape[2],
            accumulator=coverage.ctypes.data + first * parts[0] * real.itemsize, acc_plane_step=parts[0],
            acc_row_step=parts[1], acc_column_step=parts[2], acc_filter_step=parts[3],
            out=sums[first].ctypes.data, out_plane_step=steps[0], out_row_step=steps[1], out_column_step=steps[2],
            out_filter_step=steps[3], clipped=bare[task:].ctypes.data, **division.fields(real, sums.shape[3] // own),
        )  # fmt: skip
        code(step.ctypes.data)

    team.run(len(tasks), run)
    return int(bare.sum())


def clear(sums: NDArray[Any], inside: NDArray[Any], team: Team) -> None:
    """Make sums (d, h, w, c) 0 where a mask (d, h, w, 1), of any real dtype, is not above 0."""
    real, given = sums.dtype, inside.dtype
    if inside.shape != (*sums.shape[:3], 1):
        raise ValueError(f"the mask of outputs is {(*sums.shape[:3], 1)}, received {inside.shape}")
    code = machine_code("normalize", "clear", real.name, given.name)
    load([code])
    depth, height, width, channels = sums.shape
    steps = [stride // real.itemsize for stride in sums.strides]
    own = [stride // given.itemsize for stride in inside.strides]
    if channels == 1:
        steps[3] = 0
    shares = _shares(max(depth, 1), team)

    def run(_: int, share: int) -> None:
        first, last = shares[share]
        parameters = np.array(
            C(
                sums=sums[first].ctypes.data, sums_plane=steps[0], sums_row=steps[1], sums_column=steps[2],
                sums_channel=steps[3], mask=inside[first].ctypes.data, mask_plane=own[0], mask_row=own[1], mask_column=own[2],
                planes=last - first, height=height, width=width, channels=channels,
            ),
            np.int64,
        )  # fmt: skip
        step = new_step()
        set_fields(step, parameters=parameters.ctypes.data)
        code(step.ctypes.data)

    if sums.size:
        team.run(len(shares), run)


def _shares(planes: int, team: Team) -> list[tuple[int, int]]:
    """Planes in shares for a team's threads: few, since each costs some Python."""
    size = -(-planes // (2 * team.threads if team.threads > 1 else 1))
    return [(start, min(start + size, planes)) for start in range(0, planes, size)]


def survey(
    source: NDArray[Any], weighing: Weighing | None, scale: tuple[float, float], real: np.dtype[Any], team: Team
) -> NDArray[np.uint8]:
    """Where the weights are: (planes, row blocks, column blocks), `LACKING`, `HOLDING`, `INSIDE` of the voxels in each.

    source : (planes, rows, columns, c)     voxels; or a mask, which is all weights. A block tells of all channels
    weighing : Weighing or None             which voxels are missing, whatever its mask; None: the source is a mask
    """
    if not is_flattenable(source):
        source = np.ascontiguousarray(source, dtype=source.dtype.newbyteorder("="))
    if source.dtype == bool:
        source = source.view(np.uint8)
    depth, height, width, channels = source.shape
    code = machine_code("normalize", "survey", source.dtype.name, real.name, int(weighing is None))
    load([code])
    shape = (depth, -(-height // BLOCK_ROWS), -(-width // BLOCK_COLUMNS))
    found = np.zeros(shape, np.uint8)
    view = flat_view(source)
    fields = (Weighing() if weighing is None else weighing._replace(mask=None)).fields(source.dtype)

    def run(_: int, share: int) -> None:
        first, last = shares[share]
        for channel in range(channels):
            at = view.start + first * view.strides[0] + channel * view.strides[3]
            parameters = np.array(
                S(
                    source=view.flat.ctypes.data + at * source.itemsize, source_plane=view.strides[0],
                    source_row=view.strides[1], source_column=view.strides[2], found=found[first].ctypes.data,
                    planes=last - first, height=height, width=width, bands=shape[1], blocks=shape[2],
                ),
                np.int64,
            )  # fmt: skip
            step = new_step()
            set_fields(
                step, parameters=parameters.ctypes.data, scaled=scale != (1.0, 0.0), slope=scale[0], intercept=scale[1], **fields
            )  # fmt: skip
            code(step.ctypes.data)

    shares = _shares(depth, team)
    team.run(len(shares), run)
    return found


def label_extents(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Where each label from 0 to the largest lies: (labels, 3, 2), its first and last plane, row and column.

    labels : (planes, rows, columns)    whole numbers, rows contiguous; 0 is no label
    The first is above the last where there is no such label.
    """
    if labels.size and labels.shape[2] > 1 and labels.strides[2] != labels.itemsize:
        raise ValueError(f"rows of labels are contiguous, received strides {labels.strides}")
    count = int(labels.max(initial=0)) + 1
    code = machine_code("normalize", "label_extents", labels.dtype.name)
    load([code])
    found = np.empty((count, 3, 2), np.int64)
    found[:, :, 0], found[:, :, 1] = 1 << 40, -1
    parameters = np.array(
        E(
            labels=labels.ctypes.data, labels_plane=labels.strides[0] // labels.itemsize,
            labels_row=labels.strides[1] // labels.itemsize, found=found.ctypes.data, planes=labels.shape[0],
            height=labels.shape[1], width=labels.shape[2],
        ),
        np.int64,
    )  # fmt: skip
    step = new_step()
    set_fields(step, parameters=parameters.ctypes.data)
    code(step.ctypes.data)
    return found
