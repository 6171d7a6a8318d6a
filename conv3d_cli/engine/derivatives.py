"""Gaussian derivatives of a volume at several scales, and a formula of them at every voxel.

A bank (`loops/derivatives.py`) makes fields such as the six second derivatives, and a formula
(`loops/eigen.py`) makes numbers of them, of which the largest over all scales stays. A task is a
tile of rows and columns, swept along depth; only a ring of filtered planes of it is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.step import (
    AlgorithmData,
    Functions,
    Output,
    Pointer,
    Scratch,
    Source,
    StepRecord,
)
from conv3d_cli.engine.team import Team

Array = NDArray[Any]
Reals = NDArray[np.float64]

# Parameters of a task, int64; offsets and steps are in bytes, but those of the source and the
# output, which are in elements. Those from `first_of_scale` on change with the scale.
_FIELDS = (
    "fields field_step row column rows columns depth scales largest_d largest_h largest_w "
    "run_start run_stop fill out_plane out_row out_column out_number numbers "
    "scale position slot plane count block_row"
)
_OF_SCALE = (
    "radius_d radius_h radius_w weights weights_order packed_field packed_row half_at half_field "
    "ring_at ring ring_plane ring_field ring_row sums_at sums_field sums_plane found_at "
    "found_field lines_at"
)
AT: Any = ModuleType("AT")
_names = [*_FIELDS.split(), *_OF_SCALE.split()]
vars(AT).update({name: index for index, name in enumerate(_names)})
AT.first_of_scale, AT.scale_count = len(_FIELDS.split()), len(_OF_SCALE.split())

# The order of a symmetric matrix' entries, as the bank "hessian" makes them.
ENTRIES = ((0, 0), (0, 2), (2, 2), (0, 1), (1, 2), (1, 1))
# bank -> fields that come in, rows of fields along the height at a time, fields that come out
FIELD_COUNTS = {"hessian": (1, 3, 6), "gradient": (1, 2, 3), "window": (6, 1, 6)}
# Bytes that the ring of a tile may have, so that it stays in an L2 of 1 MiB, and the fewest rows
# and the most columns of a tile. Columns around a tile are packed and filtered along the height
# twice, which costs more than the cache where few fields are made of what is packed.
RING_BYTES, LEAST_ROWS = 640 << 10, 8
MOST_COLUMNS = {"hessian": 192, "gradient": 320, "window": 320}
LINE = 64


class Taps(NamedTuple):
    """The filters of a scale.

    weights : (3, 3, n)     of each axis and order at distances 0 to n - 1; see `loops/derivatives`
    radii : (D, H, W)       distances that each axis has
    """

    weights: Reals
    radii: tuple[int, int, int]


class Extended(NamedTuple):
    """Voxels and how a box of outputs and its surroundings read them.

    voxels : (d, h, w, c)
    indices : for each axis, the voxel at each position from the largest radius before the box to
        the largest radius after it; -1: the fill value
    fill : float
    """

    voxels: Array
    indices: tuple[Sequence[int], Sequence[int], Sequence[int]]
    fill: float = 0.0


def _planes_at_once() -> int:
    return 4 if cpu_class().registers >= 32 else 2


def _voxels_at_once() -> int:
    """Of a formula: two vectors of float64, since one waits for its own results."""
    return cpu_class().lanes


def _codes(bank: str, formula: str, real: np.dtype[Any], largest: bool) -> list[MachineCode]:
    lanes = cpu_class().lanes * 4 // real.itemsize
    wide = cpu_class().registers >= 32
    return [
        machine_code("derivatives", "sweep", _planes_at_once()),
        machine_code("derivatives", "pack", lanes, real.name),
        machine_code("derivatives", "filter_plane", bank, int(wide), lanes, real.name),
        machine_code("derivatives", "filter_depth", bank, _planes_at_once(), lanes, real.name),
        machine_code(
            "eigen",
            "store_largest" if largest else "store",
            formula,
            _voxels_at_once(),
            real.name,
        ),
    ]


def derivative_codes(
    bank: str, formula: str, real: np.dtype[Any], largest: bool = False
) -> list[MachineCode]:
    """The loops of `compute_formula`."""
    return _codes(bank, formula, real, largest)


class _Layout:
    """The sizes of tiles, and where everything lies in a worker's scratch memory."""

    def __init__(
        self,
        bank: str,
        numbers: int,
        taps: Sequence[Taps],
        size: tuple[int, int, int],
        itemsize: int,
    ) -> None:
        comes_in, half, comes_out = FIELD_COUNTS[bank]
        lanes = cpu_class().lanes * 4 // itemsize
        planes = _planes_at_once()
        self.largest = tuple(max(one.radii[axis] for one in taps) for axis in range(3))
        ring = 2 * self.largest[0] + planes
        bytes_of_voxel = comes_out * ring * itemsize
        widest = max(MOST_COLUMNS[bank], 4 * self.largest[2])
        bands = -(-size[2] // widest)
        self.columns = min(-(-size[2] // bands // lanes) * lanes, -(-size[2] // lanes) * lanes)
        # rows around a tile are packed twice, which costs more than the cache if there are many
        least = self.largest[1] * 2 if comes_in > 1 else self.largest[1] // 2
        rows = max(LEAST_ROWS, least, RING_BYTES // (bytes_of_voxel * self.columns))
        self.rows = min(rows, size[1])

        def pitch(columns: int) -> int:
            """Bytes of a row: an odd number of cache lines, a vector more than is read."""
            lines = -(-(columns + _voxels_at_once()) * itemsize // LINE) + 1
            return (lines | 1) * LINE

        order = max(one.weights.shape[2] for one in taps)
        self.bytes = 0
        tables = []
        for number, one in enumerate(taps):
            d, h, w = one.radii
            packed_row, ring_row = pitch(self.columns + 2 * w), pitch(self.columns)
            at: dict[str, int] = {
                "radius_d": d,
                "radius_h": h,
                "radius_w": w,
                "weights": number * 9 * order * itemsize,
                "weights_order": order * itemsize,
                "packed_row": packed_row,
                "packed_field": packed_row * (self.rows + 2 * h),
                "half_field": packed_row,
                "ring": 2 * d + planes,
                "ring_row": ring_row,
                "ring_field": ring_row * self.rows,
                "ring_plane": ring_row * self.rows * comes_out,
                "sums_field": ring_row,
                "sums_plane": ring_row * comes_out,
                "found_field": ring_row,
            }
            end = at["packed_field"] * comes_in
            for name, length in (
                ("half_at", at["half_field"] * half),
                ("ring_at", at["ring_plane"] * at["ring"]),
                ("sums_at", at["sums_plane"] * planes),
                ("found_at", at["found_field"] * numbers),
                ("lines_at", 8 * at["ring"]),
            ):
                at[name], end = end, end + -(-length // LINE) * LINE
            self.bytes = max(self.bytes, end + 2 * LINE)
            tables.append([at[name] for name in _OF_SCALE.split()])
        self.table = np.array(tables, np.int64)
        self.weights = np.zeros((len(taps), 3, 3, order))
        for mine, one in zip(self.weights, taps, strict=True):
            mine[..., : one.weights.shape[2]] = one.weights


def scratch_bytes(
    bank: str, numbers: int, taps: Sequence[Taps], size: tuple[int, int, int], itemsize: int
) -> int:
    """Bytes that `compute_formula` takes for each thread.

    size : (d, h, w)    of the outputs
    """
    return _Layout(bank, numbers, taps, size, itemsize).bytes


def compute_formula(
    bank: str,
    formula: str,
    source: Extended,
    taps: Sequence[Taps],
    parameters: Array,
    out: Array,
    team: Team,
) -> None:
    """Fill `out` with the numbers that a formula makes of the derivatives at each voxel.

    source : Extended       its channels are the fields that the bank takes
    taps : of each scale; where there are several, the largest number over all scales stays, and
        NaN if one is NaN; with "+scale" the number of the scale that comes after it stays, too
    parameters : (scales, n)        of the formula, float64
    out : (d, h, w, numbers)        of the dtype of the voxels
    """
    _run(bank, formula, source, taps, parameters, out, team, False)


def compute_largest(
    bank: str,
    formula: str,
    source: Extended,
    taps: Sequence[Taps],
    parameters: Array,
    size: tuple[int, int, int],
    team: Team,
) -> Array:
    """The largest number of each plane and scale, at least 0: (d, scales). NaN does not count.

    size : (d, h, w)    of the box of outputs
    """
    return _run(bank, formula, source, taps, parameters, np.empty((*size, 0)), team, True)


def _forward(source: Extended) -> tuple[Array, list[Array]]:
    """The voxels, aligned and with positive strides, and the indices of `source` in them.

    A negative offset means outside in the loops.
    """
    voxels = np.require(source.voxels, requirements="A")
    indices = [np.asarray(own, np.int64) for own in source.indices]
    for axis in range(3):
        if voxels.strides[axis] < 0:
            voxels, own = np.flip(voxels, axis), indices[axis]
            indices[axis] = np.where(own < 0, -1, voxels.shape[axis] - 1 - own)
    return voxels, indices


def _run(
    bank: str,
    formula: str,
    source: Extended,
    taps: Sequence[Taps],
    parameters: Array,
    out: Array,
    team: Team,
    largest: bool,
) -> Array:
    voxels, indices = _forward(source)
    itemsize = voxels.itemsize
    depth, height, width = out.shape[:3]
    fields = FIELD_COUNTS[bank][0]
    numbers = 1 if largest else out.shape[3]
    codes = _codes(bank, formula, voxels.dtype, largest)
    load(codes)
    layout = _Layout(bank, numbers, taps, (depth, height, width), itemsize)
    steps = [step // itemsize for step in voxels.strides]
    planes, rows, columns = (
        np.where(np.asarray(own, np.int64) < 0, -1, np.asarray(own, np.int64) * step)
        for own, step in zip(indices, steps, strict=False)
    )
    inside = _run_of(indices[2]) if steps[2] == 1 else (0, 0)
    weights = layout.weights.astype(voxels.dtype)
    parameters = np.ascontiguousarray(parameters, np.float64)
    tiles = [(y, x) for y in range(0, height, layout.rows) for x in range(0, width, layout.columns)]
    found = np.zeros((len(tiles), depth, len(taps)), voxels.dtype) if largest else out
    out_steps = [step // itemsize for step in found.strides]
    whole = np.zeros(AT.first_of_scale + AT.scale_count, np.int64)
    whole[AT.fill : AT.fill + 1].view(np.float64)[0] = source.fill
    for name, value in {
        "fields": fields,
        "field_step": steps[3],
        "depth": depth,
        "scales": len(taps),
        "largest_d": layout.largest[0],
        "largest_h": layout.largest[1],
        "largest_w": layout.largest[2],
        "run_start": inside[0],
        "run_stop": inside[1],
        "numbers": parameters.shape[1],
        "out_plane": out_steps[1] if largest else out_steps[0],
        "out_row": 0 if largest else out_steps[1],
        "out_column": 0 if largest else out_steps[2],
        "out_number": 0 if largest else out_steps[3] if numbers > 1 else 1,  # 0 of an axis added
    }.items():
        whole[getattr(AT, name)] = value
    memory: dict[int, Array] = {}
    sweep, *others = codes
    functions = Functions(*(code.address for code in others))

    def tile(worker: int, number: int) -> None:
        if worker not in memory:
            memory[worker] = np.empty(layout.bytes + LINE, np.uint8)
        own = memory[worker]
        aligned = -own.__array_interface__["data"][0] % LINE
        y, x = tiles[number]
        task = whole.copy()
        task[AT.row], task[AT.column] = y, x
        task[AT.rows] = min(layout.rows, height - y)
        task[AT.columns] = min(layout.columns, width - x)
        first = number * out_steps[0] if largest else y * out_steps[1] + x * out_steps[2]
        sweep(
            StepRecord(
                functions,
                Source(source=voxels, planes=planes, rows=rows, columns=columns),
                Scratch(scratch=Pointer(own, aligned), window=layout.table),
                AlgorithmData(weights=weights, parameters=task, workspace=parameters),
                Output(Pointer(found, first)),
            )
        )

    team.run(len(tiles), tile)
    if not largest:
        return out
    return np.asarray(found.max(axis=0))


def _run_of(at: Array) -> tuple[int, int]:
    """The first and last position of the longest run of neighbouring voxels."""
    breaks = np.flatnonzero((np.diff(at) != 1) | (at[:-1] < 0)) + 1
    edges = np.concatenate([[0], breaks, [len(at)]])
    longest = int(np.argmax(np.diff(edges)))
    return int(edges[longest]), int(edges[longest + 1])
