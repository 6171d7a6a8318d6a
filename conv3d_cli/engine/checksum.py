"""Checksums: every step of a convolution is checked while it is computed.

The check is algorithm-based fault tolerance (Huang and Abraham, 1984): a sum over outputs is
compared with the same sum taken from the input, in float64. A step passes four checks:

- **packed input**: each plane is packed a second time elsewhere, and the bits of the first copy are
  added up when it leaves the ring, so after its last use; of rows that are read in place, this
  concerns their ends, and sums of inputs are those of the source itself;
- **packed weights**: their bits are added up when they are packed and after each run;
- **sums**: before bias and activation, the sums of a few rows of outputs, of all filters, each
  times a sign, are compared with what the second copy of the input and the given weights make them;
- **output**: each block is stored a second time elsewhere, and compared with the first, bit by bit.

So a flipped bit of the packed input, the weights or the output is found whatever its size, and a
fault in the arithmetic if it exceeds `TOLERANCE` times max|x| times the sum of |w|. Rounding errors
stay below: the signs, half of them negative, make the errors of equal voxels cancel.

With y(p) = sum over taps t of w(t) x(p + t), and signs s(p), the sum of s(p) y(p) is the sum over
rows and taps of w(t) times a signed sum of a row of x. Along a row the signs repeat after `LANES`
columns, so sums of every `LANES`th column give the signed sums for all taps along the width.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.step import CheckedRun, CheckTables, F, StepRecord

if TYPE_CHECKING:
    from conv3d_cli.engine.machine_code import MachineCode
    from conv3d_cli.engine.tile import PreparedAlgorithm
    from conv3d_cli.model.box import Size
    from conv3d_cli.model.spec import ConvProblem

LANES = 16  # columns after which the signs repeat
TAPS_AT_ONCE = 8  # sums that are written together, some beyond the last tap

# Bits of a step's verdict.
WRONG_SUMS, WRONG_INPUT, WRONG_OUTPUT, UNCHECKED, WRONG_WEIGHTS = 1, 2, 4, 8, 16
WRONG = WRONG_SUMS | WRONG_INPUT | WRONG_OUTPUT | WRONG_WEIGHTS
WHAT = {
    WRONG_INPUT: "packed input",
    WRONG_WEIGHTS: "packed weights",
    WRONG_SUMS: "sums",
    WRONG_OUTPUT: "output",
}

# In every four signs an odd number is negative: then no pattern that is constant or alternates over
# two or four voxels, as a fault within a transform makes, is a sum of zero.
SIGNS = (1, 1, 1, -1, -1, 1, -1, -1, 1, -1, 1, 1, -1, -1, 1, -1)

# Largest difference of two sums, of max|x| over the step's window times the sum of |w|.
TOLERANCE = {"float32": 5e-5, "float64": 1e-11}
UNDERFLOW = {"float32": 1e-33, "float64": 1e-300}  # sums below may have lost all their digits
OVERFLOW = {"float32": 1e36, "float64": 1e300}  # beyond, a sum may be infinite
LEAST_UNIT, MOST_UNIT = 8, 32  # rows that are summed together


class Fault(NamedTuple):
    """A step that failed its check, and was computed again.

    algorithm : str     that computed it first
    what : str          where the fault was: "packed input", "packed weights", "sums", "output"
    size : Size         of the outputs
    plane : int         their first output plane; of means, counted from a box of the slab
    deviation : float   of the sums, in units of max|x| times the sum of |w|; 0 if these agreed
    """

    algorithm: str
    what: str
    size: Size
    plane: int
    deviation: float

    def __str__(self) -> str:
        size = " x ".join(map(str, self.size))
        return (
            f"the {self.what} of a tile of {size} outputs at plane {self.plane} failed the "
            f"checksum (sums off by {as_words(self.deviation)}, {self.algorithm}); it was computed "
            "again by direct, and is right now: test the memory and the CPU of this machine"
        )


@dataclass
class CheckCounts:
    """The outcome of all checks so far.

    steps : int             steps computed
    unchecked : int         of these, steps whose sums could not be compared, because their windows
                            contain NaN, infinity or numbers near overflow
    worst : float           the largest deviation of a step that passed, as a fraction of what is
                            allowed
    faults : list of Fault  steps that were computed again
    """

    steps: int = 0
    unchecked: int = 0
    worst: float = 0.0
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()


class Checks:
    """The checks of one plan's steps.

    problem : ConvProblem
    weights : (kd, kh, kw, in_channels/groups, filters)     as given
    prepared : PreparedAlgorithm
    real : dtype        of the arithmetic
    """

    def __init__(
        self,
        problem: ConvProblem,
        weights: NDArray[Any],
        prepared: PreparedAlgorithm,
        real: np.dtype[Any],
    ) -> None:
        self.problem, self.weights, self.prepared, self.real = problem, weights, prepared, real
        self.counts = CheckCounts()
        self.first_plane = 0  # output plane at which the slab begins
        layout = prepared.layout
        block = layout.block_height or layout.tile.height
        wished = min(MOST_UNIT, max(LEAST_UNIT, -(-problem.kernel_size[1] // 8) * 8))
        self._unit = min(wished, block)
        self._tables: CheckTables | None = None
        self._digest: int | None = None

    def take_counts(self) -> CheckCounts:
        """The outcome of all checks since the last call."""
        counts, self.counts = self.counts, CheckCounts()
        return counts

    @property
    def _channels(self) -> int:
        return self.problem.channels_per_group * self.prepared.groups_together

    @property
    def _filters(self) -> int:
        return self.problem.filters_per_group * self.prepared.groups_together

    def _input_rows(self, rows: int) -> int:
        """The rows of input that so many rows of outputs span."""
        return (rows - 1) * self.problem.strides[1] + self.problem.extent[1]

    @property
    def _sizes(self) -> dict[str, int]:
        """Numbers of a thread's tables, by the field that holds their address."""
        layout, kw = self.prepared.layout, self.problem.kernel_size[2]
        planes = (layout.step_depth - 1) * self.problem.strides[0] + self.problem.extent[0]
        rows = self._input_rows(layout.tile.height)
        apart = self.prepared.layout.pack == "rows"
        return {
            "second_plane": (self._channels if apart else 1) * layout.plane_step,
            "second_out": max(layout.accumulator_size, 1),
            "held_planes": layout.ring,
            "held_bits": 2 * (layout.ring + 1),
            "plane_largest": planes,
            "plane_sums": planes * (rows * self._channels * kw + TAPS_AT_ONCE),
            "digest": 2 * LANES,
            "lane_sums": LANES * max(self._channels, 1) + self._filters,
        }

    @property
    def worker_bytes(self) -> int:
        """Bytes of a thread's tables."""
        sizes = self._sizes
        small = self.real.itemsize * sizes.pop("second_plane")
        return small + 8 * sum(sizes.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the summed weights."""
        rows = self._input_rows(self._unit) + self.problem.extent[1]
        kd, _, kw = self.problem.kernel_size
        blocks = self.problem.groups // self.prepared.groups_together
        return 8 * blocks * kd * rows * kw * self._channels

    @property
    def seconds(self) -> float:
        """CPU seconds that the checks of one part of a volume add, about.

        Measured on one CPU (Zen 4, 2026-11), in nanoseconds: for each packed number; for each
        packed row and pair of taps along it; for each output; for each product of `compare`.
        """
        problem, tile = self.problem, self.prepared.layout.tile
        (kd, _, kw), groups = problem.kernel_size, problem.groups
        rows, spans = 1.0, 1.0
        for axis, most in ((1, tile.height), (2, tile.width)):
            size = min(most, problem.out_size[axis])
            count = -(-problem.out_size[axis] // size)
            span = (size - 1) * problem.strides[axis] + problem.extent[axis]
            spans *= count * span
            rows *= count * (span if axis == 1 else 1)
        planes = problem.in_size[0] * groups * problem.channels_per_group
        out_rows = math.prod(problem.out_size[:2]) * -(-problem.out_size[2] // tile.width)
        products = kd * self._input_rows(self._unit) / self._unit * kw * self._channels
        blocks = groups // self.prepared.groups_together
        return 1e-9 * (
            0.55 * spans * planes
            + 0.7 * rows * planes * kw**2
            + 0.45 * math.prod(problem.out_shape)
            + 0.05 * out_rows * blocks * products
        )

    def codes(self, out: np.dtype[Any], divides: bool) -> tuple[MachineCode, ...]:
        """The functions around pack, activate and store; around a division there is none."""
        from conv3d_cli.engine.machine_code import machine_code

        name = self.real.name
        inspect = machine_code("checksum", "inspect", self.prepared.layout.pack, name)
        compare = machine_code("checksum", "compare", name)
        if divides:
            return inspect, compare
        copies = int(out == self.real)
        return inspect, compare, machine_code("checksum", "read_back", out.itemsize, copies)

    def tables(self) -> CheckTables:
        """The fields of a thread, with memory of its own; the weights are shared."""
        shared = self._shared()
        sizes = self._sizes
        real = {"second_plane": self.real}
        own = {
            name: np.zeros(size, real.get(name, np.dtype(np.int64))) for name, size in sizes.items()
        }
        return CheckTables(**{**vars(shared), **own})

    def _shared(self) -> CheckTables:
        """The fields that all threads share."""
        if self._tables is None:
            problem, name = self.problem, self.real.name
            (kd, _, kw), row_sums = problem.kernel_size, self._channels * problem.kernel_size[2]
            columns = np.array(SIGNS, np.float64)
            unit_weights, row_weights, sizes = self._sum_weights()
            layout = self.prepared.layout
            planes = (layout.step_depth - 1) * problem.strides[0] + problem.extent[0]
            self._tables = CheckTables(
                sum_planes=planes,
                plane_sums_step=self._input_rows(layout.tile.height) * row_sums + TAPS_AT_ONCE,
                row_sums=row_sums,
                taps_d=kd,
                taps_w=kw,
                dilation_d=problem.dilation_rate[0],
                dilation_w=problem.dilation_rate[2],
                **self._tap_tables(columns),
                column_signs=np.stack([np.roll(columns, turn) for turn in range(LANES)]),
                ones=np.ones(LANES),
                row_signs=_signs(self._unit),
                filter_signs=_signs(self._filters),
                unit_rows=self._unit,
                unit_length=self._input_rows(self._unit) * row_sums,
                row_length=problem.extent[1] * row_sums,
                unit_weights=unit_weights,
                row_weights=row_weights,
                sums_of_weights=sizes,
                tolerance=TOLERANCE[name],
                underflow=UNDERFLOW[name],
                overflow=OVERFLOW[name],
            )
        return self._tables

    @property
    def _tap_order(self) -> NDArray[np.int64]:
        """The taps along the width in the order of packed rows: by stride phase."""
        taps = np.arange(self.problem.kernel_size[2]) * self.problem.dilation_rate[2]
        return np.argsort(taps % self.problem.strides[2], kind="stable")

    def _tap_tables(self, signs: NDArray[Any]) -> dict[str, Any]:
        """The tables of taps along the width, by field; see `CheckTables`."""
        order, stride = self._tap_order, self.problem.strides[2]
        shifts, phases = np.divmod(order * self.problem.dilation_rate[2], stride)
        step = len(order) + TAPS_AT_ONCE
        table = np.zeros((LANES, step))
        table[:, : len(order)] = signs[(np.arange(LANES)[:, None] - shifts) % LANES]
        return {
            "tap_shifts": shifts,
            "phase_taps": np.searchsorted(phases, np.arange(stride + 1)),
            "tap_signs": table,
            "tap_signs_step": step,
        }

    def _sum_weights(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The weights summed over filters and rows with their signs, and the scales.

        Returns unit_weights, row_weights and sums_of_weights, see `CheckTables`.
        """
        problem, together = self.problem, self.prepared.groups_together
        kd, kh, kw = problem.kernel_size
        per_group, filters = problem.channels_per_group, problem.filters_per_group
        blocks = problem.groups // together
        # as the arithmetic sees them
        given = self.weights.astype(self.real, copy=False)
        signs = _signs(self._filters).reshape(together, filters)
        summed = np.zeros((blocks, kd, kh, kw, together, per_group))
        sizes = np.zeros(problem.groups)
        for group in range(problem.groups):
            own = given[..., group * filters : (group + 1) * filters]
            block, index = divmod(group, together)
            for f in range(filters):
                summed[block, ..., index, :] += signs[index, f] * own[..., f].astype(np.float64)
                size = float(np.abs(own[..., f]).sum(dtype=np.float64))
                sizes[group] = max(sizes[group], size)
        by_tap: NDArray[Any] = summed.reshape(blocks, kd, kh, kw, self._channels)
        if self.prepared.layout.pack == "rows":
            by_tap = by_tap[:, :, :, self._tap_order].swapaxes(3, 4)
        by_tap = by_tap.reshape(blocks, kd, kh, kw * self._channels)

        def spread(rows: int) -> NDArray[Any]:
            stride, dilation = problem.strides[1], problem.dilation_rate[1]
            result = np.zeros((blocks, kd, self._input_rows(rows), kw * self._channels))
            for row, sign in enumerate(_signs(rows)):
                for tap in range(kh):
                    result[:, :, row * stride + tap * dilation] += sign * by_tap[:, :, tap]
            return result

        return spread(self._unit), spread(1), sizes.reshape(blocks, together).max(axis=1)

    # ----------------------------------------------------------------------------------------------
    # A run

    def begin(self, steps: int) -> CheckedRun:
        """The fields of a run of so many steps."""
        if self._digest is None:
            self._digest = self._weights_digest()
        return CheckedRun(verdicts=np.zeros(steps, np.uint8), deviations=np.zeros(steps))

    def surround(self, step: StepRecord, codes: tuple[MachineCode, ...]) -> None:
        """Put the functions of `codes` around those that a filled record calls."""
        step[F.plain_pack], step[F.plain_activate] = step[F.pack], step[F.activate]
        step[F.plain_store] = step[F.store]
        step[F.pack], step[F.activate] = codes[0].address, codes[1].address
        if len(codes) > 2:
            step[F.store] = codes[2].address
            step[F.streaming] = 0  # what is read at once should be in the cache

    def weights_intact(self) -> bool:
        """Whether the packed weights are as they were when they were packed."""
        return self._digest == self._weights_digest()

    def _weights_digest(self) -> int:
        """The sum of the bits of all that an algorithm reads besides packed planes."""
        arrays = [self.prepared.weights, self.prepared.parameters, *self.prepared.keep]
        return sum(
            int(np.add.reduce(array.reshape(-1).view(np.uint32), dtype=np.uint64))
            for array in arrays
            if isinstance(array, np.ndarray) and array.size
        )


def _signs(count: int) -> NDArray[np.float64]:
    """The first `count` signs of the pattern, repeated."""
    return np.resize(np.array(SIGNS, np.float64), count) if count else np.zeros(0)


def name_of(verdict: int) -> str:
    """What a verdict says is wrong.

    >>> name_of(WRONG_SUMS | WRONG_INPUT)
    'packed input'
    """
    return next((name for bit, name in WHAT.items() if verdict & bit), "")


def as_words(deviation: float) -> str:
    """A deviation for messages.

    >>> as_words(0.00123), as_words(float("nan"))
    ('0.0012 of the scale', 'not a number')
    """
    return f"{deviation:.2g} of the scale" if math.isfinite(deviation) else "not a number"
