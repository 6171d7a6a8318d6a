"""Operations on missing voxels and masks, which jobs add around an operation of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, setting
from conv3d_cli.model.box import Box
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window

if TYPE_CHECKING:
    from conv3d_cli.engine import Team


class _Missing(Operation):
    """An operation on voxels that may be missing.

    nan : bool              NaN and infinities are
    value : number or None  voxels that equal it are
    """

    attributes = ("nan", "value")

    def resolve(self) -> Shape:
        self.nan = bool(self.argument("nan", False))
        value = self.argument("value")
        self.value = None if value is None else float(value)
        return self.inputs[0]

    def is_missing(self, voxels: Array) -> NDArray[np.bool_]:
        """Whether each voxel is missing."""
        found = np.zeros(voxels.shape, np.bool_)
        if self.nan:
            found |= ~np.isfinite(voxels)
        if self.value is not None:
            with np.errstate(over="ignore"):  # as of the voxels themselves
                found |= voxels == voxels.dtype.type(self.value)
        return found

    def unless_close(self, allowed: Reals, window: Window, error: Window, box: Box) -> Reals:
        """Errors allowed, without a bound where the input's error may decide what is missing."""
        if self.value is None:
            return allowed
        off = error.box(*box)
        with np.errstate(invalid="ignore"):
            close = (off > 0) & (np.abs(window.box(*box) - self.value) <= off)
        return np.where(close, np.inf, allowed)


class Present(_Missing):
    """1 for each voxel that is there, 0 for each that is missing."""

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.where(self.is_missing(windows[0].box(*box)), 0.0, 1.0)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        view = windows[0].box(*box)

        def plane(_: int, d: int) -> None:
            out[d] = ~self.is_missing(view[d])

        team.run(len(out), plane)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        none = np.zeros((*box.size, self.shape.channels))
        return self.unless_close(none, windows[0], errors[0], box)


class ReplaceMissing(_Missing):
    """The volume with 0 in place of missing voxels."""

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        voxels = windows[0].box(*box)
        return np.where(self.is_missing(voxels), 0.0, voxels)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        view = windows[0].box(*box)

        def plane(_: int, d: int) -> None:
            np.copyto(out[d], view[d])
            out[d][self.is_missing(view[d])] = 0

        team.run(len(out), plane)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return self.unless_close(errors[0].box(*box), windows[0], errors[0], box)


class OnlyFinite(Operation):
    """The volume, which is refused if it has NaN or infinities. Raises: ShapeError."""

    def resolve(self) -> Shape:
        return self.inputs[0]

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return windows[0].box(*box).copy()

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        view = windows[0].box(*box)
        counts = np.zeros(len(out), np.int64)

        def plane(_: int, d: int) -> None:
            np.copyto(out[d], view[d])
            counts[d] = view[d].size - int(np.isfinite(view[d]).sum())

        team.run(len(out), plane)
        if counts.any():
            raise ShapeError(
                f"{setting('nan', 'error')} allows no NaN or infinity among the voxels, received "
                f"{counts.sum()} in the planes from {box.depth[0] + int(counts.argmax())} on; use "
                f"{setting('nan', 'zero')}"
            )

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return errors[0].box(*box).copy()


class MaskCertainty(Operation):
    """The certainty of each voxel by the job's mask: one channel, fractions of 1.

    certainty_in : callable     box -> certainties (d, h, w, 1); the job sets it when its mask is
                                open, and a verification by a way of its own
    """

    certainty_in: Callable[[Box], Array] | None = None

    def resolve(self) -> Shape:
        return Shape(*self.inputs[0].size, 1)

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        return np.asarray(self._read(box), np.float64)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        out[...] = self._read(box)

    def _read(self, box: Box) -> Array:
        assert self.certainty_in is not None, "the job of this operation has no mask"
        return self.certainty_in(box)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        return rounding * self.define(windows, box)


class Inside(Operation):
    """The first input where the second, a mask, is above 0; elsewhere the third, or 0."""

    arity: ClassVar[tuple[int, int | None]] = (2, 3)

    def resolve(self) -> Shape:
        result, _, *other = self.inputs
        if other and other[0].channels != result.channels:
            raise ShapeError(
                f"{setting('mask_mode', 'keep')} keeps the input's voxels outside the mask, and "
                f"the output has {result.channels} channels for {other[0].channels} of the input; "
                f"pass {setting('mask_mode', 'clip')}"
            )
        return result

    def define(self, windows: Sequence[Window], box: Box) -> Reals:
        result, mask, *other = (window.box(*box) for window in windows)
        return np.where(mask > 0, result, other[0] if other else 0.0)

    def compute(self, windows: Sequence[Window], box: Box, out: Array, team: Team) -> None:
        result, mask, *other = (window.box(*box) for window in windows)

        def plane(_: int, d: int) -> None:
            outside: Any = other[0][d] if other else out.dtype.type(0)
            out[d] = np.where(mask[d] > 0, result[d], outside)

        team.run(len(out), plane)

    def bounds(
        self, windows: Sequence[Window], errors: Sequence[Window], box: Box, rounding: float
    ) -> Reals:
        mask = windows[1].box(*box)
        result, off, *other = (window.box(*box) for window in errors)
        allowed = np.where(mask > 0, result, other[0] if other else 0.0)
        return np.where((off > 0) & (np.abs(mask) <= off), np.inf, allowed)
