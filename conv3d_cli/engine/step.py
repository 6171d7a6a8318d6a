"""The step record: everything that the compiled loops of one thread know, as one run of 64-bit numbers.

Every compiled function has the same signature, `void(step)`, and reads what it needs from the record by name. So
a tile runs through pack → convolve → store without leaving machine code (`loops/drive.py`), any packing goes with
any algorithm and any store, and a call from Python costs one pointer.

The record is made of groups, one class each below. A group fills its own fields and holds the arrays that its
addresses point into, so memory lives as long as the group does. A field is an `int`, a `float`, or `Memory`, which
the record holds as an address. Adding a field means adding one line to a group.

Words: a *task* is a column of output voxels (a tile of height x width, swept along depth); a *step* is the
`step_depth` output planes of a task that are computed at once; the *window* is the input planes that a step reads.
Positions along an axis count the places that taps span, padding included, from the slab's first one.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Bits of a step's flag: NaN, infinity or huge numbers in its window; voxels whose certainty is not 1.
HAS_NONFINITE, HAS_INCOMPLETE = 1, 2


class Pointer(NamedTuple):
    """An element of an array: the array, and the element's distance from the first one, in elements."""

    array: NDArray[Any]
    offset: int = 0


# an array's first element, another element, or nothing (address 0)
Memory = NDArray[Any] | Pointer | None

_real, _long = struct.Struct("d"), struct.Struct("q")


def _address(memory: Memory) -> int:
    """Where memory begins.

    >>> numbers = np.zeros(4, np.float32)
    >>> _address(Pointer(numbers, 3)) - _address(numbers), _address(None)
    (12, 0)
    """
    if memory is None:
        return 0
    array, offset = memory if isinstance(memory, Pointer) else (memory, 0)
    first: int = array.__array_interface__["data"][0]  # half the time of `array.ctypes.data`
    return first + offset * array.itemsize


class FieldGroup:
    """A run of a record's fields; subclasses are dataclasses of these fields.

    >>> Geometry(stride_d=1, channels=3).numbers()
    [1, 0, 0, 0, 0, 0, 3, 0, 0]
    """

    place: ClassVar[slice]  # in a record
    # of each field: its name, and "int", "float" or "Memory"
    kinds: ClassVar[tuple[tuple[str, str], ...]]
    values: ClassVar[Callable[[FieldGroup], tuple[Any, ...]]]  # of all fields
    reals: ClassVar[tuple[int, ...]]  # places of those that are floats, in the group
    memories: ClassVar[tuple[int, ...]]  # and of those that are memory

    def numbers(self) -> list[int]:
        """The fields as the record holds them: floats by their bits, memory by its address."""
        found = list(type(self).values(self))
        for place in self.memories:
            found[place] = _address(found[place])
        for place in self.reals:
            (found[place],) = _long.unpack(_real.pack(found[place]))
        return found


# Without methods that nobody calls: every command imports this, and each method is compiled when it is.
@dataclass(eq=False, repr=False)
class Functions(FieldGroup):
    """Compiled functions by their addresses; 0 where there is none."""

    pack: int = 0
    absorb: int = 0
    convolve: int = 0
    store: int = 0


@dataclass(eq=False, repr=False)
class Epilogue(FieldGroup):
    """What happens to sums before they are stored: a bias, then a function that was written in Python."""

    activate: int = 0  # its address; it adds the bias itself
    bias: Memory = None
    has_bias: int = 0  # 1 if the store adds the bias


@dataclass(eq=False, repr=False)
class Tasks(FieldGroup):
    """The tasks of a box of outputs, numbered over (group, depth block, height band, width band)."""

    first_task: int = 0  # first_task <= t < last_task are run
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
    block_height: int = 0  # rows that are computed, then stored, while they are in the cache


@dataclass(eq=False, repr=False)
class Geometry(FieldGroup):
    """The convolution, for the groups that are computed together."""

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
    """The input: flat memory, and tables of the offset of each position along depth, height and width."""

    source: Memory = None
    source_itemsize: int = 0
    source_channel_step: int = 0
    source_column_step: int = 0
    planes: Memory = None
    rows: Memory = None
    columns: Memory = None
    run_start: int = 0  # the positions along the width that follow one another in memory
    run_stop: int = 0
    fill: float = 0.0  # what stands outside
    scaled: int = 0  # 1 if values are stored * slope + intercept
    slope: float = 0.0
    intercept: float = 0.0


@dataclass(eq=False, repr=False)
class CertaintyFields(FieldGroup):
    """The certainty of the voxels, for packing that multiplies by it; see `engine.weighting.Certainty`."""

    mask: Memory = None  # its numbers side by side along the width
    mask_planes: Memory = None  # offset tables of its own
    mask_rows: Memory = None
    mask_columns: Memory = None
    packs_certainty: int = 0  # 1 to pack certainties in place of products
    labelled: int = 0  # 1 if voxels count where the mask is `label`
    label: float = 0.0
    nonfinite_missing: int = 0
    compares: int = 0  # 1 if a stored value, `missing_value`, is missing
    missing_value: float = 0.0
    flags_nonfinite: int = 0  # 1 to look for huge numbers among the products


@dataclass(eq=False, repr=False)
class Scratch(FieldGroup):
    """A ring of packed planes, in numbers of `itemsize` bytes, and where the window's planes lie in it."""

    itemsize: int = 0
    scratch: Memory = None
    ring: int = 0
    pitch: int = 0
    row_step: int = 0
    plane_step: int = 0
    channel_step: int = 0
    window: Memory = None  # int64 offsets into `scratch`, in bytes


@dataclass(eq=False, repr=False)
class AlgorithmData(FieldGroup):
    """An algorithm's own memory: packed weights, int64 parameters, and room to work in."""

    weights: Memory = None
    parameters: Memory = None
    workspace: Memory = None


@dataclass(eq=False, repr=False)
class Sums(FieldGroup):
    """The accumulator of a step: (filters, depth, height, width) in these steps."""

    accumulator: Memory = None
    acc_filter_step: int = 0
    acc_plane_step: int = 0
    acc_row_step: int = 0
    acc_column_step: int = 0


@dataclass(eq=False, repr=False)
class Output(FieldGroup):
    """The output: flat memory."""

    out: Memory = None
    out_filter_step: int = 0
    out_plane_step: int = 0
    out_row_step: int = 0
    out_column_step: int = 0
    streaming: int = 0  # 1 to store past the caches


@dataclass(eq=False, repr=False)
class DivisionFields(FieldGroup):
    """A division in place of a store: `out` holds the sums, the accumulator their coverage.

    See `engine.weighting.Division`.
    """

    repeat: int = 0  # channels of sums for one of coverage
    near_one: float = 0.0  # a coverage this near to 1 is 1
    min_coverage: float = 0.0
    empty_value: float = 0.0
    coverage: Memory = None  # takes the coverage
    coverage_plane_step: int = 0
    coverage_row_step: int = 0
    coverage_column_step: int = 0
    inside: Memory = None  # above 0 where outputs below `min_coverage` are counted
    inside_plane_step: int = 0
    inside_row_step: int = 0
    inside_column_step: int = 0


@dataclass(eq=False, repr=False)
class StepResults(FieldGroup):
    """One number for each step of every task."""

    clipped: Memory = (
        None  # int64: voxels that the output could not hold; outputs below `min_coverage`
    )
    flags: Memory = None  # uint8: `HAS_NONFINITE` and `HAS_INCOMPLETE` of the window


@dataclass(eq=False, repr=False)
class Progress(FieldGroup):
    """Where the loops are; they write these fields themselves."""

    # the task: its number, group, first voxel and size
    task: int = 0
    group: int = 0
    plane: int = 0
    row: int = 0
    column: int = 0
    depth: int = 0
    height: int = 0
    width: int = 0
    # the block of rows: its first row within the task, and its rows
    block_row: int = 0
    block_rows: int = 0
    # the step: its number over all tasks, its first output plane within the slab, and its planes
    step_number: int = 0
    step_plane: int = 0
    step_planes: int = 0
    # the position that is packed, its place in the ring, and the task's first position
    position: int = 0
    slot: int = 0
    task_position: int = 0
    # the last positions where NaN or infinity, and a certainty other than 1, were packed; below 0: nowhere
    last_nonfinite: int = 0
    last_incomplete: int = 0


GROUPS: tuple[type[FieldGroup], ...] = (
    Functions,
    Epilogue,
    Tasks,
    Geometry,
    Source,
    CertaintyFields,
    Scratch,
    AlgorithmData,
    Sums,
    Output,
    DivisionFields,
    StepResults,
    Progress,
)


def _lay_out() -> tuple[str, ...]:
    """Give each group its place in a record; the names of all fields."""
    names: list[str] = []
    for group in GROUPS:
        group.kinds = tuple((field.name, str(field.type)) for field in fields(group))  # type: ignore[arg-type]
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
_Fields = namedtuple("_Fields", FIELDS)  # type: ignore[misc]  # a namedtuple, since Numba takes its members as constants
F: Any = _Fields(*range(len(FIELDS)))


class StepRecord:
    """A record, and the groups that it was made of: whatever their addresses point to lives as long as it does.

    address : int       of the record, for compiled functions

    >>> step = StepRecord(Geometry(channels=3), Source(source=np.ones(3), fill=0.5))
    >>> step[F.channels], step[F.filters], float(step.numbers.view(float)[F.fill])
    (3, 0, 0.5)
    """

    __slots__ = ("address", "groups", "numbers")

    def __init__(self, *groups: FieldGroup) -> None:
        self.numbers = np.zeros(len(FIELDS), np.int64)
        self.address = _address(self.numbers)
        self.groups = groups
        fill([self], *groups)

    def __getitem__(self, field: int) -> int:
        return int(self.numbers[field])

    def __setitem__(self, field: int, value: int) -> None:
        self.numbers[field] = value


def fill(steps: Sequence[StepRecord], *groups: FieldGroup) -> None:
    """Fill the fields of groups in some records, for one run.

    The records do not hold these groups, or a slab's memory would live until the next one is computed: the caller
    holds them while the loops run.
    """
    for group in groups:
        numbers = group.numbers()
        for step in steps:
            step.numbers[group.place] = numbers
