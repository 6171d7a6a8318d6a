"""The step record: all arguments of one thread's compiled loops, as one array of 64-bit numbers.

Every compiled function has the same signature, `void(step)`, and reads its arguments from the
record by name. So a tile runs through pack → convolve → store without leaving machine code
(`loops/drive.py`), every packing works with every algorithm and every store, and a call from Python
passes one pointer.

The record consists of groups of fields, one class each below. A group fills its own fields and
references the arrays that its addresses point into, so the memory lives as long as the group. A
field is an `int`, a `float`, or `Memory`, which the record stores as an address. To add a field,
add one line to a group.

Terms: a *task* is a column of output voxels (a tile of height x width, swept along depth); a *step*
is the `step_depth` output planes of a task that are computed at once; the *window* is the input
planes that a step reads. Positions along an axis number the inputs that the taps of a slab span,
padding included, from 0 on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Bits of a step's flag: its window contains NaN, infinity or huge numbers; a certainty other than 1
HAS_NONFINITE, HAS_INCOMPLETE = 1, 2


class Pointer(NamedTuple):
    """An element of an array, by its offset from the first one, in elements."""

    array: NDArray[Any]
    offset: int = 0


# the first element of an array, another element of it, or no memory (address 0)
Memory = NDArray[Any] | Pointer | None

_real, _long = struct.Struct("d"), struct.Struct("q")


def address_of(memory: Memory) -> int:
    """The address of the first byte; 0 for None.

    >>> numbers = np.zeros(4, np.float32)
    >>> address_of(Pointer(numbers, 3)) - address_of(numbers), address_of(None)
    (12, 0)
    """
    if memory is None:
        return 0
    array, offset = memory if isinstance(memory, Pointer) else (memory, 0)
    first: int = array.__array_interface__["data"][0]  # half the time of `array.ctypes.data`
    return first + offset * array.itemsize


class FieldGroup:
    """Consecutive fields of a record; each subclass is a dataclass of these fields.

    >>> Geometry(stride_d=1, channels=3).numbers()
    [1, 0, 0, 0, 0, 0, 3, 0, 0]
    """

    place: ClassVar[slice]  # the group's fields within a record
    # (name, "int" | "float" | "Memory") of each field
    kinds: ClassVar[tuple[tuple[str, str], ...]]
    values: ClassVar[Callable[[FieldGroup], tuple[Any, ...]]]  # reads all fields of a group
    reals: ClassVar[tuple[int, ...]]  # indices within the group of the `float` fields
    memories: ClassVar[tuple[int, ...]]  # and of the `Memory` fields

    def numbers(self) -> list[int]:
        """The fields as int64, as the record stores them: bits of floats, addresses of memory."""
        found = list(type(self).values(self))
        for place in self.memories:
            found[place] = address_of(found[place])
        for place in self.reals:
            (found[place],) = _long.unpack(_real.pack(found[place]))
        return found


# Without `eq` and `repr`: dataclass would compile these methods at every start of the command.
@dataclass(eq=False, repr=False)
class Functions(FieldGroup):
    """Addresses of compiled functions; 0: not used."""

    pack: int = 0
    absorb: int = 0
    convolve: int = 0
    store: int = 0


@dataclass(eq=False, repr=False)
class Epilogue(FieldGroup):
    """The last operations on sums before the store: a bias, then an activation."""

    activate: int = 0  # address of a function that adds the bias and applies the activation
    bias: Memory = None
    has_bias: int = 0  # 1 if the store adds the bias
    bias_group_step: int = 0  # these are for `loops/ramp.py`; see `model.ramp.Ramp`
    threshold: float = 0.0
    floor: float = 0.0
    ceiling: float = 0.0
    ramp_slope: float = 0.0


@dataclass(eq=False, repr=False)
class Tasks(FieldGroup):
    """The tasks of a box of outputs, by (group, grid, depth block, height band, width band)."""

    first_task: int = 0  # the loops run the tasks first_task <= t < last_task
    last_task: int = 0
    first_group: int = 0
    depth_blocks: int = 0
    height_bands: int = 0
    width_bands: int = 0
    tile_depth: int = 0
    tile_height: int = 0
    tile_width: int = 0
    steps_per_task: int = 0
    out_depth: int = 0
    out_height: int = 0
    out_width: int = 0
    block_height: int = 0  # rows that are computed and then stored while they are in the cache


@dataclass(eq=False, repr=False)
class GridFields(FieldGroup):
    """The grids of a dilated convolution, see `engine/grids.py`.

    Tables are (grids along the axis, positions) int64. Distances are from one grid to the next, in
    bytes. From these the driver sets the tables, the addresses and `out_depth`, `out_height` and
    `out_width` for the grid of each task.
    """

    grids: int = 0  # 0: one grid, and all other fields are unused
    apart_d: int = 0
    apart_h: int = 0
    apart_w: int = 0
    all_depth: int = 0  # outputs of the region
    all_height: int = 0
    all_width: int = 0
    all_planes: Memory = None
    all_rows: Memory = None
    all_columns: Memory = None
    all_mask_planes: Memory = None
    all_mask_rows: Memory = None
    all_mask_columns: Memory = None
    positions_d: int = 0
    positions_h: int = 0
    positions_w: int = 0
    all_out: Memory = None
    out_apart_d: int = 0
    out_apart_h: int = 0
    out_apart_w: int = 0
    all_coverage: Memory = None
    coverage_apart_d: int = 0
    coverage_apart_h: int = 0
    coverage_apart_w: int = 0
    all_inside: Memory = None
    inside_apart_d: int = 0
    inside_apart_h: int = 0
    inside_apart_w: int = 0


@dataclass(eq=False, repr=False)
class Geometry(FieldGroup):
    """The geometry of the convolution; channels and filters of the groups packed together."""

    stride_d: int = 0
    stride_h: int = 0
    stride_w: int = 0
    extent_d: int = 0
    extent_h: int = 0
    extent_w: int = 0
    channels: int = 0
    filters: int = 0
    step_depth: int = 0


@dataclass(eq=False, repr=False)
class Source(FieldGroup):
    """The input: flat memory, and a table of offsets per position for depth, height and width."""

    source: Memory = None
    source_itemsize: int = 0
    source_channel_step: int = 0
    source_column_step: int = 0
    planes: Memory = None
    rows: Memory = None
    columns: Memory = None
    run_start: int = 0  # positions run_start <= p < run_stop read consecutive source columns
    run_stop: int = 0
    fill: float = 0.0  # the value outside the volume
    scaled: int = 0  # 1: a voxel's value is its stored number * slope + intercept
    slope: float = 0.0
    intercept: float = 0.0


@dataclass(eq=False, repr=False)
class InPlace(FieldGroup):
    """Whether rows of the source are read where they lie; see `loops/drive.py`."""

    reads_source: int = 0  # 1: they are, and packed only at their ends
    row_reach: int = 0  # positions of a row that vectors read beyond their own
    writes_out: int = 0  # 1: sums may go to the output as they are
    outside: Memory = None  # a row of `fill` in the source's dtype, as long as all positions


@dataclass(eq=False, repr=False)
class CertaintyFields(FieldGroup):
    """The voxels' certainty, for weighted packing; see `engine.weighting.Certainty`."""

    mask: Memory = None  # rows are contiguous
    mask_planes: Memory = None  # the mask's offset tables
    mask_rows: Memory = None
    mask_columns: Memory = None
    packs_certainty: int = 0  # 1: pack certainties instead of voxels times certainty
    labelled: int = 0  # 1: certainty is 1 where the mask equals `label`, else 0
    label: float = 0.0
    nonfinite_missing: int = 0  # 1: NaN and infinity are missing
    compares: int = 0  # 1: voxels whose stored number is `missing_value` are missing
    missing_value: float = 0.0
    flags_nonfinite: int = 0  # 1: search the packed numbers for huge ones


@dataclass(eq=False, repr=False)
class Scratch(FieldGroup):
    """A ring of packed planes, and the window's planes in it; steps are in elements."""

    itemsize: int = 0
    scratch: Memory = None
    ring: int = 0
    pitch: int = 0
    row_step: int = 0
    plane_step: int = 0
    channel_step: int = 0
    window: Memory = None  # int64 offsets into `scratch`, in bytes
    # int64 (ring, lines_step): addresses of the first position of each packed row, and of each row
    # that is read in place
    packed_lines: Memory = None
    source_lines: Memory = None
    lines_step: int = 0


@dataclass(eq=False, repr=False)
class AlgorithmData(FieldGroup):
    """An algorithm's own memory: packed weights, int64 parameters, and a workspace."""

    weights: Memory = None
    parameters: Memory = None
    workspace: Memory = None


@dataclass(eq=False, repr=False)
class Sums(FieldGroup):
    """The accumulator of a step: (filters, depth, height, width); strides are in elements."""

    accumulator: Memory = None
    acc_filter_step: int = 0
    acc_plane_step: int = 0
    acc_row_step: int = 0
    acc_column_step: int = 0
    shared: Memory = None  # two lines of the cache for each plane, see `loops/store.py`


@dataclass(eq=False, repr=False)
class Output(FieldGroup):
    """The output: flat memory; strides are in elements."""

    out: Memory = None
    out_filter_step: int = 0
    out_plane_step: int = 0
    out_row_step: int = 0
    out_column_step: int = 0
    streaming: int = 0  # 1: use stores that bypass the caches


@dataclass(eq=False, repr=False)
class DivisionFields(FieldGroup):
    """A division instead of a store: `out` contains the sums, the accumulator their coverage.

    See `engine.weighting.Division`.
    """

    repeat: int = 0  # channels of sums per channel of coverage
    near_one: float = 0.0  # a coverage this close to 1 counts as 1
    min_coverage: float = 0.0
    empty_value: float = 0.0
    coverage: Memory = None  # receives the coverage
    coverage_plane_step: int = 0
    coverage_row_step: int = 0
    coverage_column_step: int = 0
    inside: Memory = None  # outputs below `min_coverage` are counted where this is above 0
    inside_plane_step: int = 0
    inside_row_step: int = 0
    inside_column_step: int = 0


@dataclass(eq=False, repr=False)
class StepResults(FieldGroup):
    """Results with one element per step of every task."""

    # int64: values that the output's dtype cannot represent; in a division, outputs below
    # `min_coverage`
    clipped: Memory = None
    flags: Memory = None  # uint8: `HAS_NONFINITE` and `HAS_INCOMPLETE` of the window


@dataclass(eq=False, repr=False)
class CheckTables(FieldGroup):
    """What the checksums of a thread's steps need; see `engine/checksum.py`."""

    second_plane: Memory = None  # receives the copy of a packed plane
    second_out: Memory = None  # receives the copy of a stored block
    held_planes: Memory = None  # int64, the position of the plane in each slot of the ring, or -1
    held_bits: Memory = None  # sum of its bits and largest magnitude, 16 bytes a slot
    plane_largest: Memory = None  # bits of the largest magnitude of each plane of the window
    plane_sums: Memory = None  # float64, (planes of the window, rows, channels x taps)
    sum_planes: int = 0
    plane_sums_step: int = 0
    row_sums: int = 0  # sums of one row
    lane_sums: Memory = None  # float64, a workspace
    digest: Memory = None  # a workspace: sums of bits and largest magnitudes, by lane
    ones: Memory = None  # float64 (LANES,)
    taps_d: int = 0
    taps_w: int = 0
    dilation_d: int = 0
    dilation_w: int = 0
    tap_shifts: Memory = None  # int64, of rows: whole strides from the first position to a tap
    phase_taps: Memory = None  # int64, of rows: the first tap of each stride phase, and the end
    tap_signs: Memory = None  # float64, of rows: the sign of a column for each tap
    tap_signs_step: int = 0
    column_signs: Memory = None  # float64, turned by 0 to LANES - 1 lanes
    row_signs: Memory = None  # float64, of the rows of a unit; the first is 1
    filter_signs: Memory = None  # float64
    unit_rows: int = 0  # rows of outputs that are summed together
    unit_length: int = 0  # sums of the input that they take, for each tap along depth
    row_length: int = 0  # the same for one row
    unit_weights: Memory = None  # float64, (groups, taps along depth, unit_length)
    row_weights: Memory = None
    sums_of_weights: Memory = None  # float64, the largest sum of |w| of a filter, by group
    tolerance: float = 0.0  # of a sum, in units of max|x| times the sum of |w|
    underflow: float = 0.0  # the same for sums near 0
    overflow: float = 0.0  # sums may not be representable from this scale on


@dataclass(eq=False, repr=False)
class CheckedRun(FieldGroup):
    """The functions that checks are made around, and the results of the checks of a run."""

    plain_pack: int = 0
    plain_activate: int = 0
    plain_store: int = 0
    verdicts: Memory = None  # uint8, one for each step of every task
    deviations: Memory = None  # float64, in units of the scale, one for each step
    inspected_task: int = -1  # the task whose planes `held_planes` tells of


@dataclass(eq=False, repr=False)
class Progress(FieldGroup):
    """The progress of the loops, which write these fields themselves."""

    # the task: its number, group, first voxel and size
    task: int = 0
    group: int = 0
    plane: int = 0
    row: int = 0
    column: int = 0
    depth: int = 0
    height: int = 0
    width: int = 0
    # the block of rows: its first row within the task, and how many rows it has
    block_row: int = 0
    block_rows: int = 0
    # the step: its number over all tasks, its first output plane in the slab, and how many planes
    step_number: int = 0
    step_plane: int = 0
    step_planes: int = 0
    # the depth position being packed, and its slot in the ring
    position: int = 0
    slot: int = 0
    # the last depth positions at which NaN or infinity, and a certainty other than 1, were packed;
    # -1: none
    last_nonfinite: int = 0
    last_incomplete: int = 0
    # positions of a row that are packed, relative to the task: those before `packed_stop` and from
    # `packed_start` on; the others are read in place. 0: all are packed
    packed_stop: int = 0
    packed_start: int = 0
    # output columns that read no others
    inner_column: int = 0
    inner_column_stop: int = 0
    # whether sums may go to the output before the `store`; then also the first column that begins a
    # line of the cache, if all rows of the output are aligned alike, else 0
    stores_sums: int = 0
    line_column: int = 0
    # of the block of rows: output columns that are in the output already
    stored_column: int = 0
    stored_column_stop: int = 0


GROUPS: tuple[type[FieldGroup], ...] = (
    Functions,
    Epilogue,
    Tasks,
    GridFields,
    Geometry,
    Source,
    InPlace,
    CertaintyFields,
    Scratch,
    AlgorithmData,
    Sums,
    Output,
    DivisionFields,
    StepResults,
    CheckTables,
    CheckedRun,
    Progress,
)


def _lay_out() -> tuple[str, ...]:
    """Assign each group its place in a record. Returns the names of all fields, in order."""
    names: list[str] = []
    for group in GROUPS:
        own_fields = fields(group)  # type: ignore[arg-type]
        group.kinds = tuple((field.name, str(field.type)) for field in own_fields)
        group.place = slice(len(names), len(names) + len(group.kinds))
        own = [name for name, _ in group.kinds]
        group.values = attrgetter(*own)
        group.reals, group.memories = (
            tuple(place for place, (_, kind) in enumerate(group.kinds) if kind == wanted)
            for wanted in ("float", "Memory")
        )
        names += own
    return tuple(names)


FIELDS = _lay_out()
# F.name is the index of a field. It is a module, because Numba takes single numbers of a module as
# constants. Of a namedtuple it makes a constant of all fields at each use: a third of compiling.
F: Any = ModuleType("F")
vars(F).update({name: index for index, name in enumerate(FIELDS)})


class StepRecord:
    """A record and the groups that filled it, which keep alive the memory that it points to.

    address : int           address of the record, the argument of compiled functions
    numbers : (fields,)     int64, the record itself
    record[F.name] reads or sets a field as int64.

    >>> step = StepRecord(Geometry(channels=3), Source(source=np.ones(3), fill=0.5))
    >>> step[F.channels], step[F.filters], float(step.numbers.view(float)[F.fill])
    (3, 0, 0.5)
    """

    __slots__ = ("address", "groups", "numbers")

    def __init__(self, *groups: FieldGroup) -> None:
        self.numbers = np.zeros(len(FIELDS), np.int64)
        self.address = address_of(self.numbers)
        self.groups = groups
        fill([self], *groups)

    def __getitem__(self, field: int) -> int:
        return int(self.numbers[field])

    def __setitem__(self, field: int, value: int) -> None:
        self.numbers[field] = value


def fill(steps: Sequence[StepRecord], *groups: FieldGroup) -> None:
    """Fill the groups' fields in several records, for one run.

    The records do not reference these groups, because a slab's memory would then live until the
    next slab is computed. The caller must keep the groups alive while the loops run.
    """
    for group in groups:
        numbers = group.numbers()
        for step in steps:
            step.numbers[group.place] = numbers
