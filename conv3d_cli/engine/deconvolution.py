"""Iterations with a kernel and its adjoint on a whole volume, as deconvolution needs them.

The kernel acts as H: the volume is continued beyond its border by the boundary mode, and correlated
with the kernel; so the boundary is a part of H. The adjoint H' correlates back, and adds what falls
outside to the voxels that the boundary had read there. Both are computed by Fourier transforms of
*bricks*, boxes with a halo of one kernel, and so are exact wherever a brick ends. The bricks follow
from the sizes of volume and kernel alone. A volume of one brick is transformed in place: between
two transforms along depth, each plane is transformed back, changed and transformed again while it
is in the cache.

Along width, 2n real numbers are n complex ones, z[k] = (x[k] + i x[k + n]) exp(i pi k / 2n): their
transform has every second frequency of a negacyclic transform of x, which determine the others. So
what wraps around the end is subtracted, and is never kept.

Source: W. H. Richardson, J. Opt. Soc. Am. 62 (1972) 55-59; L. B. Lucy, Astron. J. 79 (1974)
745-754; Oppenheim & Schafer, Discrete-Time Signal Processing, 8.7.3 (overlap-save); H. J.
Nussbaumer, Fast Fourier Transform and Convolution Algorithms, 1982 (negacyclic convolution).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.engine.algorithms.fft import (
    DEPTH_SIZES,
    PLANE_SIZES,
    line_instructions,
    stage_table,
)
from conv3d_cli.engine.cpu import cpu_class
from conv3d_cli.engine.fields import Field, Lent
from conv3d_cli.engine.machine_code import MachineCode, load, machine_code
from conv3d_cli.engine.mapping import names
from conv3d_cli.engine.step import AlgorithmData, F, StepRecord, address_of
from conv3d_cli.engine.team import Team
from conv3d_cli.engine.views import OUTSIDE, aligned_zeros, inner_run
from conv3d_cli.model.box import Span
from conv3d_cli.model.spec import Boundary, Triple
from conv3d_cli.system.elementary import by_quarters

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]

# Indices of the loops' int64 parameters. Tables and volumes are given by their addresses, parts of
# the workspace by their offsets in bytes; `fill`, `background`, `floor` and `scale` by the bits of
# a float64.
PLANES_AT = names(
    "PLANES",
    "first last inverts transforms spectra slots rows columns stages_h stages_w twist "
    # parts of the workspace: the plane's rows, a line of transforms, and rows of voxels
    "plane plane_row buffer lines "
    # what is done after the transform back: see `change`
    "changes data data_planes data_row out out_planes out_row extra table class_planes class_rows "
    "background floor sums_out sums_planes own_columns "
    # where its results are, and what is folded into them before
    "first_row row_pairs row_pair_count first_column column_pairs column_pair_count "
    # what is transformed: see `pass_rows` and `add_rows`
    "source source_planes source_row row_reads row_read_count row_copies row_copy_count "
    "row_blanks row_blank_count blanks run_at run_from run_count column_reads column_read_count",
)
LINES_AT = names(
    "LINES",
    "first last spectra planes stages kernel sources targets first_output outputs pairs pair_count "
    "back prepares scale",
)
# Codes in tables of rows and columns: the boundary's constant, and nothing.
FILL, ZERO = -1, -2
# What happens to the voxels of a plane: data / known blur, data / blur, voxel · blurred ratio.
FLAT, RATIO, UPDATE = range(3)

# The largest spectrum of a brick in bytes. Larger bricks repeat less of their halo.
MOST_SPECTRUM_BYTES = 112 << 20
# What several bricks take in proportion, since their passes are not joined.
SEVERAL = 1.15
# Rows of a plane that are changed before they are placed.
LINES = 8
# Bytes of the widest vectors.
VECTOR_BYTES = 64
# Bytes of a file's planes that a task reads at once.
LENT_BYTES = 4 << 20
# Chunks of planes or lines for each thread of a pass.
CHUNKS = 64

LENGTHS = {
    **PLANE_SIZES, 480: (2, 5, 6, 8), 512: (8, 8, 8), 640: (2, 5, 8, 8), 768: (2, 6, 8, 8),
    1024: (2, 8, 8, 8),
}  # fmt: skip
DEPTHS = {**DEPTH_SIZES, 480: (2, 5, 6, 8), 512: (8, 8, 8), 640: (2, 5, 8, 8)}


class Piece(NamedTuple):
    """A brick's part of an axis.

    own : Span          outputs, which make up the volume with those of other pieces
    outputs : Span      positions that are computed: `own`, and for the adjoint those beyond the
                        volume that are folded into it
    sources : list      for each position from the first one read: input index, or FILL, or ZERO
    pairs : Pairs       (outside, inside) positions among `outputs`, in the order of addition
    offset : int        the first of `outputs` in the transform
    """

    own: Span
    outputs: Span
    sources: tuple[int, ...]
    pairs: Pairs
    offset: int

    @property
    def first_own(self) -> int:
        """The position of the first of `own` in the transform."""
        return self.offset + self.own[0] - self.outputs[0]


class _Placed(NamedTuple):
    """What stands where before the transform of an axis.

    run : Span          the longest run of positions with consecutive source indices
    reads : dict        source index -> the position where it is read
    copies : Pairs      (position, position of the same source)
    blanks : Pairs      (position, FILL or ZERO)
    """

    run: Span
    reads: dict[int, int]
    copies: Pairs
    blanks: Pairs


def _placed(sources: Sequence[int], length: int) -> _Placed:
    """What a transform of this length reads of a piece's sources; zeros follow them."""
    codes = [*sources, *[ZERO] * (length - len(sources))]
    run = inner_run([max(code, OUTSIDE) for code in codes])
    reads: dict[int, int] = {}
    for place in (*range(*run), *range(length)):
        if codes[place] >= 0:
            reads.setdefault(codes[place], place)
    copies = [
        (place, reads[code])
        for place, code in enumerate(codes)
        if code >= 0 and reads[code] != place
    ]
    blanks = [(place, code) for place, code in enumerate(codes) if code < 0]
    return _Placed(run, reads, tuple(copies), tuple(blanks))


def pieces(
    size: int, taps: int, boundary: Boundary, parts: int, adjoint: bool, back: bool
) -> list[Piece]:
    """The pieces of an axis.

    adjoint : bool      of H' rather than H
    back : bool         the product is with the conjugate spectrum, so the kernel reaches backward
    """
    before, after = (taps - 1) // 2, taps // 2
    folds = adjoint and boundary.mode != "wrap"
    found = []
    for part in range(parts):
        own = size * part // parts, size * (part + 1) // parts
        first, last = own
        if folds and part == 0:
            first -= before
        if folds and part == parts - 1:
            last += after
        offset = taps - 1 if back else 0
        if adjoint:
            reads = range(first - after, last + before)
            if back and folds and parts == 1:
                # zeros on both sides are the same ones, since what leaves at one end comes back at
                # the other, along width with another sign
                reads, offset = range(first + before, last + before), 0
            inside = Boundary(boundary.mode if boundary.mode == "wrap" else "zeros")
            codes = [inside.source_index(q, size) for q in reads]
            sources = [ZERO if code < 0 else code for code in codes]
        else:
            sources = [boundary.source_index(q, size) for q in range(first - before, last + after)]
        pairs = []
        for q in (*range(first, own[0]), *range(own[1], last)):
            target = boundary.source_index(q, size)
            if target >= 0:
                assert own[0] <= target < own[1], "a piece is longer than the kernel's halo"
                pairs.append((q - first, target - first))
        found.append(Piece(own, (first, last), tuple(sources), tuple(pairs), offset))
    return found


Brick = tuple[Piece, Piece, Piece]


class Bricks(NamedTuple):
    """How a volume is divided: bricks along D, H, W, and the sizes of their complex transforms.

    A row of a brick has twice `lengths[2]` numbers.
    """

    parts: Triple
    lengths: Triple


@lru_cache(maxsize=64)
def choose_bricks(size: Triple, taps: Triple, itemsize: int) -> Bricks | None:
    """The bricks that take the least arithmetic; None if the kernel is too large for any.

    The sizes suit H and H'. Equal sizes on every machine, so that results are the same.
    """
    options = [_divisions(size[axis], taps[axis], axis) for axis in range(3)]
    best: tuple[float, float, Bricks] | None = None
    for depth, height, width in itertools.product(*options):
        lengths = depth.length, height.length, width.length
        # a large kernel may leave no brick below the limit: the smallest one then
        above = max(0, 2 * itemsize * math.prod(lengths) - MOST_SPECTRUM_BYTES)
        work = (
            math.prod(lengths)
            * depth.parts
            * height.parts
            * width.parts
            * (
                2 * line_instructions(DEPTHS[lengths[0]])
                + line_instructions(LENGTHS[lengths[1]])
                + line_instructions(LENGTHS[lengths[2]])
            )
        )
        if depth.parts * height.parts * width.parts > 1:
            work *= SEVERAL
        found = Bricks((depth.parts, height.parts, width.parts), lengths)
        if best is None or (above, work) < best[:2]:
            best = above, work, found
    return None if best is None else best[2]


class _Division(NamedTuple):
    """Parts of an axis, and the length of their transforms."""

    parts: int
    length: int


def _divisions(size: int, taps: int, axis: int) -> list[_Division]:
    """The divisions of an axis that are worth a look: the fewest parts for each length."""
    found: dict[int, _Division] = {}
    for parts in range(1, size // taps + 1):
        ends = [size * part // parts for part in range(parts + 1)]
        sizes = [last - first for first, last in itertools.pairwise(ends)]
        if parts > 1:
            # the adjoint's outputs: what lies beyond the border is folded back
            sizes[0] += (taps - 1) // 2
            sizes[-1] += taps // 2
        known = DEPTHS if axis == 0 else LENGTHS
        least = -(-(max(sizes) + taps - 1) // (2 if axis == 2 else 1))
        length = min((n for n in known if n >= least), default=0)
        if length and length not in found:
            found[length] = _Division(parts, length)
        if length == min(known):
            break
    return list(found.values())


def blur_bytes(
    size: Triple, taps: Triple, real: np.dtype[Any], threads: int, backward: bool, on_disk: bool
) -> int:
    """Memory of a `Blur`, without fields in memory."""
    bricks = choose_bricks(size, taps, real.itemsize)
    assert bricks is not None, "refused before"
    depth, rows, columns = bricks.lengths
    spectrum = 2 * real.itemsize * math.prod(bricks.lengths)
    planes = (min(depth, max(size[0], taps[0])) + 2) * (2 * real.itemsize * rows * columns + 192)
    worker = sum(_workspace_parts(bricks, real.itemsize).values()) + 128 * depth
    if on_disk:
        worker += 3 * max(LENT_BYTES, rows * size[2] * real.itemsize)
    return planes + (2 if backward else 1) * spectrum + threads * worker


def _workspace_parts(bricks: Bricks, itemsize: int) -> dict[str, int]:
    """The parts of a worker's memory for planes, in bytes."""
    _, rows, columns = bricks.lengths
    parts = {
        "plane": rows * _plane_row(columns, itemsize),
        "buffer": max(rows, columns) * 2 * VECTOR_BYTES,
        "lines": LINES * 2 * columns * itemsize,
    }
    # not a multiple of a page apart: else what is read and written at once would share cache sets
    return {name: -(-count // 64) * 64 + 64 for name, count in parts.items()}


def _plane_row(columns: int, itemsize: int) -> int:
    """Bytes of a row: an odd number of cache lines, otherwise lines would share cache sets."""
    return (columns * 2 * itemsize // 64 | 1) * 64


def blur_codes(real: np.dtype[Any]) -> list[MachineCode]:
    """The loops of `Blur`: of planes, and of lines along depth."""
    lanes = cpu_class().lanes * 4 // real.itemsize
    return [machine_code("deconvolution", name, lanes, real.name) for name in ("planes", "lines")]


# --------------------------------------------------------------------------------------------------
# The operator


@dataclass(frozen=True)
class Change:
    """What is done to the voxels of a plane between two transforms.

    kind : int          FLAT, RATIO or UPDATE
    data : Field        y of ratios, or x that is updated
    out : Field or None the result; None: it is only transformed further
    extra : Field or None   further factors of an update
    background, floor : float   added to what ratios are divided by, and the least that they are
    sums : (D, 2) or None       float64; of an update, receives for each plane the sums of
                                |out - data| and of |data|, added to what stands there
    """

    kind: int
    data: Field
    out: Field | None
    extra: Field | None = None
    background: float = 0.0
    floor: float = 0.0
    sums: Array | None = None


class _Chunk(NamedTuple):
    """Planes that one task goes through: their record, what it points to, what is to be stored."""

    record: StepRecord
    keep: list[Any]
    returns: list[tuple[Field, Lent, Sequence[int], Span]]


class _Placement(NamedTuple):
    """How planes are filled before they are transformed.

    rows : Span         of the volume that are read
    values : dict       the loops' parameters
    """

    rows: Span
    values: dict[str, int]


class Coverage:
    """Factors of voxels that depend on how near the border is: H1, H'1 or numbers made of them.

    table : (classes along D, classes along H, W)   of the arithmetic's dtype
    planes, rows : bytes into the table for each plane, and for each row
    """

    def __init__(
        self,
        counts: Sequence[NDArray[np.float64]],
        weights: NDArray[np.float64],
        change: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        real: np.dtype[Any],
    ) -> None:
        """counts : for each axis (positions, taps), how often a tap counts at a position."""
        classes = [np.unique(along, axis=0, return_inverse=True) for along in counts]
        sums = weights
        for rows, _ in classes:  # from (kd, kh, kw) to (classes D, H, W), an axis at a time
            sums = np.tensordot(sums, rows, axes=(0, 1))
        depth, height, width = (inverse.reshape(-1) for _, inverse in classes)
        self.table = np.ascontiguousarray(change(sums)[:, :, width], real)
        step = self.table.shape[2] * real.itemsize
        self.planes = (depth * self.table.shape[1] * step).tolist()
        self.rows = (height * step).tolist()

    def planes_of(self, start: int, stop: int) -> Array:
        """The factors of planes start to stop - 1, (d, H, W)."""
        step = self.table.shape[2] * self.table.itemsize
        depth = [n // step // self.table.shape[1] for n in self.planes[start:stop]]
        return np.asarray(self.table[depth][:, [n // step for n in self.rows]])


def tap_counts(size: int, taps: int, boundary: Boundary, adjoint: bool) -> NDArray[np.float64]:
    """How often each tap counts at each position of an axis, if all voxels are 1: (size, taps).

    adjoint : bool      of H', the sum of all that H takes from the position; else of H, what it
                        reads inside the volume
    """
    before = (taps - 1) // 2
    reads = range(-before, size + taps - 1 - before)
    read = np.array([boundary.source_index(position, size) for position in reads])
    positions, along = np.arange(size)[:, None], np.arange(taps)[None, :]
    sources = read[positions + along]
    counts = np.zeros((size, taps))
    own = sources if adjoint else np.broadcast_to(positions, sources.shape)
    np.add.at(counts, (own[sources >= 0], np.nonzero(sources >= 0)[1]), 1)
    return counts


class Blur:
    """A kernel with a boundary mode on volumes of one size: H and its adjoint.

    size : (D, H, W)            of the volume, for which `choose_bricks` finds bricks
    weights : (kd, kh, kw)      float64; applied as a correlation, as all kernels
    boundary : Boundary
    real : dtype                float32 or float64
    backward : (kd, kh, kw) or None     another kernel in place of the adjoint's, as it is to be
                                correlated
    """

    def __init__(
        self,
        size: Triple,
        weights: NDArray[np.float64],
        boundary: Boundary,
        real: np.dtype[Any],
        team: Team,
        backward: NDArray[np.float64] | None = None,
    ) -> None:
        self.size, self.weights, self.boundary, self.real = size, weights, boundary, real
        self.team, self.backward = team, backward
        taps = weights.shape[0], weights.shape[1], weights.shape[2]
        bricks = choose_bricks(size, taps, real.itemsize)
        assert bricks is not None, "refused before"
        self.bricks = bricks
        self.lanes = cpu_class().lanes * 4 // real.itemsize
        self.codes = blur_codes(real)
        load(self.codes)
        self._tables: list[Any] = []
        self._lay_out()
        self._records: dict[Any, list[StepRecord]] = {}
        self._placements: dict[Any, _Placement] = {}
        back = self.backward is None
        self.forward_pieces = self._pieces(adjoint=False, back=False)
        # another kernel is applied as a filter, with the same boundary
        self.backward_pieces = self._pieces(adjoint=back, back=back)
        slots = max(
            max(len(set(piece.sources)), piece.own[1] - piece.own[0])
            for piece in (*self.forward_pieces[0], *self.backward_pieces[0])
        )
        slots = max(slots, taps[0])
        # two more planes: of the boundary's constant, and of zeros
        self.fill_slot, self.zero_slot = slots * self.plane_bytes, (slots + 1) * self.plane_bytes
        self.spectra = aligned_zeros((slots + 2) * self.plane_bytes // real.itemsize, real)
        self.kernel = self._spectrum(weights)
        self.back_kernel = self.kernel if self.backward is None else self._spectrum(self.backward)
        if boundary.value:
            self._fill_plane()

    # ----------------------------------------------------------------------------------------------
    # Layout and tables

    def _lay_out(self) -> None:
        """The sizes of a plane and a worker's memory, and the tables of the transforms' stages."""
        size, lanes = self.real.itemsize, self.lanes
        depth, rows, columns = self.bricks.lengths
        # an odd number of cache lines apart: otherwise lines would share cache sets
        self.plane_bytes = rows * columns * 2 * size + 192
        places: dict[str, int] = {}
        at = 0
        for name, count in _workspace_parts(self.bricks, size).items():
            places[name] = at
            at += count
        self.workspace_bytes = max(at, depth * 2 * lanes * size)
        self._workspaces: dict[int, Array] = {}
        self.stages = []
        for length, known in zip(self.bricks.lengths, (DEPTHS, LENGTHS, LENGTHS), strict=True):
            table, twiddles = stage_table(known[length], self.real)
            self._tables += [table, twiddles]
            self.stages.append(table.ctypes.data)
        angles = by_quarters(np.arange(columns), 4 * columns)
        # (column block, re | im, lane)
        twist = np.stack([wave.reshape(-1, lanes) for wave in angles], axis=1)
        twist = np.ascontiguousarray(twist, self.real)
        self._tables.append(twist)
        self.common = {
            "rows": rows,
            "columns": columns,
            "stages_h": self.stages[1],
            "stages_w": self.stages[2],
            "twist": address_of(twist),
            "plane_row": _plane_row(columns, size),
            **places,
        }

    def _pieces(self, adjoint: bool, back: bool) -> list[list[Piece]]:
        return [
            pieces(size, taps, self.boundary, parts, adjoint, back)
            for size, taps, parts in zip(
                self.size, self.weights.shape, self.bricks.parts, strict=True
            )
        ]

    def _table(self, values: Sequence[int]) -> int:
        """The address of an int64 table, which stays as long as the operator."""
        table = np.array(values, np.int64)
        self._tables.append(table)
        return address_of(table) if len(values) else 0

    def _workspace(self, worker: int) -> Array:
        if worker not in self._workspaces:
            self._workspaces[worker] = aligned_zeros(self.workspace_bytes, np.dtype(np.uint8))
        return self._workspaces[worker]

    # ----------------------------------------------------------------------------------------------
    # Passes

    def _run(self, code: MachineCode, records: Sequence[StepRecord]) -> None:
        """Run records on the team, each with the memory of its worker."""

        def work(worker: int, task: int) -> None:
            record = records[task]
            record[F.workspace] = address_of(self._workspace(worker))
            code(record)

        self.team.run(len(records), work)

    def _parameters(self, place: Any, **values: int | float) -> Array:
        numbers = np.zeros(place.count, np.int64)
        for name, value in values.items():
            number = np.array(value).view(np.int64) if isinstance(value, float) else value
            numbers[getattr(place, name)] = number
        return numbers

    def lines(self, along: Piece, kernel: Array, back: bool) -> None:
        """Convolve the lines of the transformed planes along depth."""
        key = "lines", along, address_of(kernel), back
        if key not in self._records:
            self._records[key] = self._line_records(along, kernel, back)
        self._run(self.codes[1], self._records[key])

    def _line_records(
        self, along: Piece, kernel: Array, back: bool, prepares: bool = False
    ) -> list[StepRecord]:
        depth, rows, columns = self.bricks.lengths
        slots = {plane: n for n, plane in enumerate(sorted(set(along.sources) - {FILL, ZERO}))}
        sources = [
            slots[code] * self.plane_bytes
            if code >= 0
            else self.fill_slot
            if code == FILL and self.boundary.value
            else self.zero_slot
            for code in along.sources
        ]
        sources += [self.zero_slot] * (depth - len(sources))
        count = along.own[1] - along.own[0]
        pairs = [along.offset + place for pair in along.pairs for place in pair]
        common = {
            "spectra": address_of(self.spectra),
            "planes": depth,
            "stages": self.stages[0],
            "kernel": address_of(kernel),
            "sources": self._table(sources),
            "targets": self._table([n * self.plane_bytes for n in range(count)]),
            "first_output": along.first_own,
            "outputs": count,
            "pairs": self._table(pairs),
            "pair_count": len(along.pairs),
            "back": int(back),
            "prepares": int(prepares),
            "scale": 1.0 / math.prod(self.bricks.lengths),
        }
        elements = rows // self.lanes * columns
        chunk = max(1, -(-elements // CHUNKS))
        return [
            StepRecord(
                AlgorithmData(
                    parameters=self._parameters(
                        LINES_AT, first=first, last=min(first + chunk, elements), **common
                    )
                )
            )
            for first in range(0, elements, chunk)
        ]

    def _spectrum(self, weights: NDArray[np.float64]) -> Array:
        """The conjugate spectrum of a kernel: (row block, column, depth, re | im, lane)."""
        taps = weights.shape
        kernel = aligned_zeros(2 * math.prod(self.bricks.lengths), self.real)
        field = Field(np.ascontiguousarray(weights, self.real))
        along = [Piece((0, n), (0, n), tuple(range(n)), (), 0) for n in taps]
        self._planes(None, None, along, field, list(range(taps[0])))
        self._run(self.codes[1], self._line_records(along[0], kernel, False, prepares=True))
        return kernel

    def _fill_plane(self) -> None:
        """Transform a plane of the boundary's constant into its slot."""
        height, width = self.forward_pieces[1][0], self.forward_pieces[2][0]
        everywhere = [
            Piece((0, 1), (0, 1), (FILL,), (), 0),
            height._replace(sources=(FILL,) * self.bricks.lengths[1]),
            width._replace(sources=(FILL,) * 2 * self.bricks.lengths[2]),
        ]
        self._planes(None, None, everywhere, None, [FILL], slots=[self.fill_slot])

    def _planes(
        self,
        inverts: Sequence[Piece] | None,
        change: Change | None,
        transforms: Sequence[Piece] | None,
        source: Field | None,
        planes: Sequence[int],
        tables: Coverage | None = None,
        slots: Sequence[int] | None = None,
    ) -> None:
        """One pass over planes: transform back, change, transform; each may be left out.

        planes : of the volume, or FILL
        source : Field or None      what is transformed; None: the result of `change`, or FILL
        slots : of the planes' spectra in bytes; None: one after another
        """
        fields = [source] if source is not None else []
        if change is not None:
            fields += [one for one in (change.data, change.out, change.extra) if one is not None]
        steady = all(field.steady for field in fields)
        slots = [n * self.plane_bytes for n in range(len(planes))] if slots is None else slots
        chunk = max(1, -(-len(planes) // (CHUNKS // 4)))
        if not steady:
            band = self.bricks.lengths[1] * self.size[2] * self.real.itemsize
            chunk = max(1, min(chunk, LENT_BYTES // band))
        chunks = [
            (planes[first : first + chunk], slots[first : first + chunk])
            for first in range(0, len(planes), chunk)
        ]

        def chunk_of(task: int) -> _Chunk:
            return self._chunk(inverts, change, transforms, source, *chunks[task], tables)

        if steady:
            made = [chunk_of(task) for task in range(len(chunks))]
            self._run(self.codes[0], [one.record for one in made])
            return

        def work(worker: int, task: int) -> None:
            one = chunk_of(task)
            one.record[F.workspace] = address_of(self._workspace(worker))
            self.codes[0](one.record)
            for field, lent, of_planes, rows in one.returns:
                field.give_back(lent, of_planes, rows)

        self.team.run(len(chunks), work)

    def _chunk(
        self,
        inverts: Sequence[Piece] | None,
        change: Change | None,
        transforms: Sequence[Piece] | None,
        source: Field | None,
        planes: Sequence[int],
        slots: Sequence[int],
        tables: Coverage | None,
    ) -> _Chunk:
        """The record of a chunk of planes."""
        size = self.real.itemsize
        keep: list[Any] = []
        values: dict[str, int | float] = dict(self.common)
        returns: list[tuple[Field, Lent, Sequence[int], Span]] = []

        def table(numbers: Sequence[int]) -> int:
            array = np.array(numbers, np.int64)
            keep.append(array)
            return address_of(array) if len(numbers) else 0

        def lend(field: Field, rows: Span, fresh: bool = False) -> Lent:
            lent = field.lend(planes, rows, fresh)
            keep.append(lent.keep)
            return lent

        values |= {
            "last": len(planes),
            "inverts": int(inverts is not None),
            "transforms": int(transforms is not None),
            "spectra": address_of(self.spectra),
            "slots": table(slots),
        }
        own = inverts if inverts is not None else transforms
        assert own is not None
        out: Lent | None = None
        if inverts is not None:
            _, height, width = inverts
            values |= {
                "first_row": height.first_own,
                "row_pairs": table([height.offset + n for pair in height.pairs for n in pair]),
                "row_pair_count": len(height.pairs),
                "first_column": width.first_own,
                "column_pairs": table([width.offset + n for pair in width.pairs for n in pair]),
                "column_pair_count": len(width.pairs),
            }
        if change is not None:
            assert tables is not None
            _, height, width = own
            rows, first = height.own, width.own[0] * size
            lent = lend(change.data, rows)
            values |= {
                "changes": change.kind,
                "data": lent.address + first,
                "data_planes": table(lent.planes),
                "data_row": lent.row,
                "own_columns": width.own[1] - width.own[0],
                "background": float(change.background),
                "floor": float(change.floor),
                "table": address_of(tables.table) + first,
                "class_planes": table([tables.planes[d] for d in planes]),
                "class_rows": table(tables.rows[rows[0] : rows[1]]),
            }
            if change.sums is not None:
                step = change.sums.strides[0]
                values |= {"sums_out": address_of(change.sums)}
                values |= {"sums_planes": table([d * step for d in planes])}
            if change.extra is not None:
                values["extra"] = lend(change.extra, rows).address + first
            if change.out is not None:
                fresh = width.own == (0, self.size[2])
                out = lent if change.out is change.data else lend(change.out, rows, fresh)
                values |= {
                    "out": out.address + first,
                    "out_planes": table(out.planes),
                    "out_row": out.row,
                }
                returns.append((change.out, out, planes, rows))
        if transforms is not None:
            _, height, width = transforms
            first_own = None if inverts is None else inverts[1].first_own
            placement = self._placement(height, width, first_own, source is not None)
            values |= placement.values
            if source is not None:
                lent = lend(source, placement.rows)
                values |= {
                    "source": lent.address,
                    "source_planes": table(lent.planes),
                    "source_row": lent.row,
                }
        else:
            assert own is inverts
            count = own[1].own[1] - own[1].own[0]
            values |= {
                "row_reads": table([n for row in range(count) for n in (row, 0)]),
                "row_read_count": count,
            }
        record = StepRecord(AlgorithmData(parameters=self._parameters(PLANES_AT, **values)))
        return _Chunk(record, keep, returns)

    def _placement(
        self, height: Piece, width: Piece, first_own: int | None, from_source: bool
    ) -> _Placement:
        """What stands where in planes of a brick before they are transformed.

        first_own : int or None     row of the plane that has the first row that is read, if rows
                                    are moved within the plane
        from_source : bool          rows are those of a field that is lent, from the first one read
        """
        key = height, width, first_own, from_source
        if key not in self._placements:
            self._placements[key] = self._place(*key)
        return self._placements[key]

    def _place(
        self, height: Piece, width: Piece, first_own: int | None, from_source: bool
    ) -> _Placement:
        """The same, found anew."""
        _, lengths_h, lengths_w = self.bricks.lengths
        placed = _placed(height.sources, lengths_h)
        # a plane of the boundary's constant reads no rows
        rows = (min(placed.reads), max(placed.reads) + 1) if placed.reads else (0, 0)
        first_read = rows[0] if from_source else 0
        reads = [(code - first_read, place) for code, place in sorted(placed.reads.items())]
        # a row that moves up in the plane must not overwrite one that has not been read
        if first_own is not None and reads[0][1] > first_own:
            reads.reverse()
        across = _placed(width.sources, 2 * lengths_w)
        start, stop = across.run
        edges = [
            (place, code)
            for place, code in enumerate(width.sources)
            if code >= 0 and not start <= place < stop
        ]
        blanks = self._blanks(across.blanks)
        self._tables.append(blanks)
        values = {
            "row_reads": self._table([n for read in reads for n in read]),
            "row_read_count": len(reads),
            "row_copies": self._table([n for copy in placed.copies for n in copy]),
            "row_copy_count": len(placed.copies),
            "row_blanks": self._table(
                [n for place, code in placed.blanks for n in (place, blanks.strides[0] * -code)]
            ),
            "row_blank_count": len(placed.blanks),
            "blanks": address_of(blanks),
            "run_at": start,
            "run_from": width.sources[start],
            "run_count": stop - start,
            "column_reads": self._table([n for edge in edges for n in edge]),
            "column_read_count": len(edges),
        }
        return _Placement(rows, values)

    def _blanks(self, across: Pairs) -> Array:
        """What stands in a plane's rows where nothing is read.

        across : (column, FILL or ZERO) of the columns beyond the volume
        Returns (3, columns): beyond the ends of a row that is read; a row of the constant; zeros.
        """
        blanks = np.zeros((3, 2 * self.bricks.lengths[2]), self.real)
        blanks[-FILL] = self.boundary.value
        for place, code in across:
            blanks[[0, -FILL], place] = self.boundary.value if code == FILL else 0
        return blanks

    # ----------------------------------------------------------------------------------------------
    # H, H' and iterations

    def bricks_of(self, adjoint: bool) -> list[Brick]:
        """The bricks of H, or of H'."""
        along = self.backward_pieces if adjoint else self.forward_pieces
        depth, height, width = along
        return list(itertools.product(depth, height, width))

    def coverage(
        self, adjoint: bool, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> Coverage:
        """What H or H' makes of a volume of ones, with zeros for a constant, through a function."""
        axes = zip(self.size, self.weights.shape, strict=True)
        counts = [tap_counts(size, taps, self.boundary, adjoint) for size, taps in axes]
        return Coverage(counts, self.weights, change, self.real)

    def first(self, change: Change, tables: Coverage) -> None:
        """For one brick: change the data by `tables`, and transform the result for H'."""
        (brick,) = self.bricks_of(adjoint=True)
        self._planes(None, change, brick, None, range(self.size[0]), tables)

    def transform(self, source: Field, adjoint: bool, brick: Brick) -> None:
        """Transform what a brick of H or H' reads."""
        read = sorted(set(brick[0].sources) - {FILL, ZERO})
        self._planes(None, None, brick, source, read)

    def convolve(self, adjoint: bool, brick: Brick) -> None:
        """Multiply a brick's spectrum with that of the kernel."""
        kernel = self.back_kernel if adjoint else self.kernel
        self.lines(brick[0], kernel, adjoint and self.backward is None)

    def finish(
        self, adjoint: bool, brick: Brick, change: Change, tables: Coverage, joins: bool = False
    ) -> None:
        """Transform a brick back and change it.

        joins : bool    for one brick, transform the result at once for the other operator
        """
        following = self.bricks_of(not adjoint)[0] if joins else None
        self._planes(brick, change, following, None, range(*brick[0].own), tables)

    def apply(self, source: Field, adjoint: bool, change: Change, tables: Coverage) -> None:
        """H or H' of a volume, and a change of the result, brick by brick."""
        for brick in self.bricks_of(adjoint):
            self.transform(source, adjoint, brick)
            self.convolve(adjoint, brick)
            self.finish(adjoint, brick, change, tables)

    @property
    def is_whole(self) -> bool:
        """Whether one brick holds the volume, so that passes can be joined."""
        return self.bricks.parts == (1, 1, 1)
