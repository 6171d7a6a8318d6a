"""What a job loses in its arithmetic and in the dtype of its output, slab by slab.

Clipped voxels are counted by the engine. Here is the rest: integers that the arithmetic rounds,
finite input that becomes infinite or NaN, and an output that rounds to 0 everywhere. `Losses` are
those of a convolution, `Rounding` those of stored voxels on their way into another operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import setting, words
from conv3d_cli.model.volume import Array
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.engine import Team


MEAN_GAIN = 1 + 1e-6  # sum of the magnitudes of weights that make means, with their rounding


def exact_integers(real: np.dtype[Any]) -> int:
    """Up to here a float type holds every integer.

    >>> exact_integers(np.dtype(np.float32))
    16777216
    """
    return int(2 ** (np.finfo(real).nmant + 1))


@dataclass
class Losses:
    """The losses of one convolution so far.

    sums_weights : bool     the weights' sum is not 0: a constant input makes outputs, too
    is_linear : bool        nothing but weights and a bias makes the output
    gain : float            an output is at most this often the largest input; infinite if unknown
    largest : int           largest magnitude of an integer that was read, if it may be too large
    spoiled : int           outputs that are infinite or NaN, of slabs whose input is finite
    only_zeros : bool       all outputs so far are 0
    has_input : bool        some input so far should have made outputs other than 0
    """

    sums_weights: bool = True
    is_linear: bool = True
    gain: float = math.inf
    largest: int = 0
    spoiled: int = 0
    only_zeros: bool = True
    has_input: bool = False

    def see(
        self,
        source: Array,
        out: Array,
        scale: tuple[float, float],
        real: np.dtype[Any],
        team: Team,
        inside: Array | None = None,
        has_missing: bool = False,
    ) -> None:
        """Look at a slab.

        source : (planes, rows, W, C)       stored voxels
        out : (d, h, w, c)                  what became of them
        scale : (slope, intercept)          of the stored voxels
        real : dtype                        in which integers were computed or stored; an integer
                                            dtype rounds none
        inside : (planes, rows, W, 1)       a mask's certainties, or None
        has_missing : bool                  outputs may be NaN by request
        """
        if not source.size or not out.size:
            return
        kind = source.dtype.kind
        if (
            kind in "iu"
            and real.kind == "f"
            and scale == (1.0, 0.0)
            and np.iinfo(source.dtype).max > exact_integers(real)
        ):
            ends = _of_planes(source, lambda plane: (int(plane.min()), int(plane.max())), team)
            self.largest = max(self.largest, *(max(-low, high) for low, high in ends))
        # Integers are far from the limits of floats, and a mean is within the range of its input.
        is_bounded = (
            self.is_linear
            and scale == (1.0, 0.0)
            and (kind in "bui" or (self.gain <= MEAN_GAIN and source.itemsize <= out.itemsize))
        )
        if (
            out.dtype.kind == "f"
            and not (is_bounded or has_missing)
            and not _is_finite(out, team)
            and _is_finite(source, team)
        ):
            self.spoiled += out.size - int(np.isfinite(out).sum())
        if self.only_zeros and self.is_linear:
            self.only_zeros = not any(plane.any() for plane in out)  # mostly the first one has some
            if self.only_zeros and not self.has_input:
                if inside is not None and inside.shape[:3] == source.shape[:3]:
                    source = source[inside[..., 0] > 0]
                self.has_input = _makes_output(source, scale, self.sums_weights)

    def plus(self, other: Losses) -> Losses:
        """The losses of two parts of a volume together.

        >>> Losses(spoiled=1, only_zeros=False).plus(Losses(spoiled=2, largest=5)).spoiled
        3
        """
        return replace(
            self,
            largest=max(self.largest, other.largest),
            spoiled=self.spoiled + other.spoiled,
            only_zeros=self.only_zeros and other.only_zeros,
            has_input=self.has_input or other.has_input,
        )

    def plus_rounding(self, roundings: Iterable[Rounding]) -> Losses:
        """The losses with the largest integer that other operations were given."""
        return replace(self, largest=max([self.largest, *(one.largest for one in roundings)]))

    def notes(self, real: np.dtype[Any], out: np.dtype[Any], cure: str) -> list[str]:
        """Notes on the losses of a whole volume.

        real : dtype    as of `see`
        out : dtype     of the output
        cure : str      what keeps integers exact
        """
        notes = []
        if real.kind == "f" and self.largest > exact_integers(real):
            notes.append(
                f"the input has integers up to {self.largest}, and {real} holds each of them only "
                f"up to {exact_integers(real)}, so larger ones were rounded; {cure} keeps them"
            )
        if self.spoiled:
            wider = "" if out.itemsize == 8 else f"; {_doubles()} holds more"
            notes.append(
                f"{count_of(self.spoiled, 'voxel')} became infinite or NaN, though the input is "
                f"finite: the results are beyond the range of {out}{wider}"
            )
        if self.only_zeros and self.has_input:
            least, keeps = "results below 0.5", setting("dtype", "float32")
            if out.kind == "f":
                least, keeps = "results so small", _doubles()
            notes.append(
                f"all voxels of the output are 0, though the input's are not: {out} rounds {least} "
                f"to 0; {keeps} keeps them"
            )
        return notes


@dataclass
class Rounding:
    """What stored voxels lost so far when they became values of an operation's arithmetic.

    largest : int       largest magnitude of an integer, if it may be too large for the arithmetic
    beyond : float      largest magnitude of a finite value that became infinite; 0: none did
    """

    largest: int = 0
    beyond: float = 0.0

    def values(self, block: Array, scale: tuple[float, float], real: np.dtype[Any]) -> Array:
        """Stored voxels as values of the arithmetic's dtype; those that are such are not copied.

        scale : (slope, intercept)      of the stored voxels
        >>> rounding = Rounding()
        >>> rounding.values(np.array([-16777217]), (1.0, 0.0), np.dtype(np.float32)).tolist()
        [-16777216.0]
        >>> rounding.largest
        16777217
        """
        kind = block.dtype.kind
        is_scaled = scale != (1.0, 0.0)
        if not is_scaled and block.dtype == real:
            return block
        may_round = kind in "iu" and np.iinfo(block.dtype).max > exact_integers(real)
        if may_round and not is_scaled and block.size:
            self.largest = max(self.largest, -int(block.min()), int(block.max()))
        with np.errstate(over="ignore"):
            exact = block.astype(np.float64) * scale[0] + scale[1] if is_scaled else block
            values: Array = exact.astype(real)
        if exact.dtype.kind == "f" and exact.dtype.itemsize > real.itemsize:
            infinite = np.isinf(values)
            if infinite.any():
                lost = exact[infinite & np.isfinite(exact)]
                self.beyond = max(self.beyond, float(np.abs(lost).max(initial=0)))
        return values

    def add(self, other: Rounding) -> None:
        """Add what another part of the volume lost."""
        self.largest, self.beyond = max(self.largest, other.largest), max(self.beyond, other.beyond)

    def forget(self) -> None:
        """Begin again."""
        self.largest, self.beyond = 0, 0.0

    def note(self, real: np.dtype[Any]) -> str:
        """A note on values that became infinite, or ""."""
        if not self.beyond:
            return ""
        return (
            f"the input has values up to {self.beyond:.6g}, which became infinite in {real}; "
            f"{_doubles()} holds them"
        )


def _doubles() -> str:
    """The settings that compute and store float64, for messages."""
    return f"{setting('precision', 'float64')} {words('', 'and ')}{setting('dtype', 'float64')}"


def _makes_output(source: Array, scale: tuple[float, float], sums_weights: bool) -> bool:
    """Whether exact arithmetic would make some output other than 0."""
    if not source.size:
        return False
    low, high = (float(end) * scale[0] + scale[1] for end in (source.min(), source.max()))
    return low != high if not sums_weights else (low, high) != (0.0, 0.0)


def _of_planes(voxels: Array, measure: Callable[[Array], Any], team: Team) -> list[Any]:
    """A measure of each plane, by all threads."""
    found: list[Any] = [None] * len(voxels)

    def work(worker: int, plane: int) -> None:
        found[plane] = measure(voxels[plane])

    team.run(len(voxels), work)
    return found


def _is_finite(voxels: Array, team: Team) -> bool:
    """Whether no voxel is infinite or NaN: so are the smallest and the largest then."""
    if voxels.dtype.kind != "f":
        return True
    return all(_of_planes(voxels, _plane_is_finite, team))


def _plane_is_finite(plane: Array) -> bool:
    return bool(np.isfinite(plane.max()) and np.isfinite(plane.min()))
