"""Convolutions without arithmetic: each output is one input voxel, and is copied bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.convolution.prepared import Convolution
from conv3d_cli.convolution.slabs import SlabInput
from conv3d_cli.model.box import Slices
from conv3d_cli.model.spec import Triple
from conv3d_cli.model.volume import Array

if TYPE_CHECKING:
    from conv3d_cli.engine import Team
    from conv3d_cli.engine.division import Sharing
    from conv3d_cli.engine.machine_code import MachineCode


@dataclass
class Copy(Convolution):
    """A convolution by one weight of 1, with nothing before or after it.

    Strides pick voxels. Values change only where the output's dtype cannot hold them.

    keeps_scale : bool      stored numbers are copied, not their values: the output has the slope
                            and the intercept of the input
    """

    runs_plan_alone = False
    keeps_scale: bool = False

    @property
    def takes_all(self) -> bool:
        """Whether the output has all values of the input, at the same places."""
        return self.problem.strides == (1, 1, 1) and not self.keeps_scale

    def memory(self, planes: int, computed: int) -> dict[str, int]:
        height, width = self.problem.out_size[1:]
        # float64 copies of a plane in each thread
        plane = height * width * self.problem.filters * 8
        return {"sums": 4 * plane * min(self.plan.threads, computed)}

    def tasks_for(self, size: Triple) -> int:
        return size[0]

    def sharing(self, size: Triple) -> Sharing:
        from conv3d_cli.engine.division import Sharing  # imports Numba

        planes, threads = size[0], self.plan.threads
        turns = max(1, -(-planes // threads))
        idle = 1 - planes / (threads * turns)
        return Sharing(planes, min(threads, planes), idle, planes / turns)

    def loops_to_load(
        self, source: np.dtype[Any], out: np.dtype[Any], scale: tuple[float, float]
    ) -> list[MachineCode]:
        return []  # NumPy copies

    def exact_dtype(self, out: np.dtype[Any]) -> np.dtype[Any]:
        return out

    def _results(
        self,
        slab: SlabInput,
        out: Array,
        team: Team,
        scale: tuple[float, float],
        outputs: slice,
        progress: Callable[[int], None] | None = None,
        around: tuple[Triple, Slices] | None = None,
    ) -> int:
        whole = [slice(None)] * 3 if around is None else around[1]
        axes = (
            positions[:: self.problem.strides[axis]][whole[axis]]
            for axis, positions in enumerate(
                (
                    slab.planes,
                    slab.rows or range(slab.source.shape[1]),
                    slab.columns or range(slab.source.shape[2]),
                )
            )
        )
        planes, rows, columns = axes
        of_plane = _slice(rows[: out.shape[1]]), _slice(columns[: out.shape[2]])
        clipped = [0] * len(out)
        scale = (1.0, 0.0) if self.keeps_scale else scale

        def work(worker: int, plane: int) -> None:
            values = slab.source[planes[plane]][of_plane[0]][:, of_plane[1]]
            clipped[plane] = copy_values(values, out[plane], scale)
            if progress is not None:
                progress(out[plane].size)

        team.run(len(out), work)
        return sum(clipped)


def _slice(positions: Sequence[int]) -> slice | list[int]:
    """Positions as a slice, where they are evenly spaced."""
    if len(positions) < 2:
        return list(positions)
    step = positions[1] - positions[0]
    if step > 0 and list(positions) == list(range(positions[0], positions[-1] + 1, step)):
        return slice(positions[0], positions[-1] + 1, step)
    return list(positions)


def copy_values(values: Array, out: Array, scale: tuple[float, float] = (1.0, 0.0)) -> int:
    """Fill `out` with values, rounded half to even and saturated if its dtype is an integer.

    values, out : arrays of one shape and any real dtypes
    scale : (slope, intercept)      value = stored * slope + intercept, in float64
    Returns the number of values that an integer dtype cannot hold; NaN is one of them.

    >>> out = np.empty(4, np.uint8)
    >>> copy_values(np.array([614454277, 7, -1, 255]), out), out.tolist()
    (2, [255, 7, 0, 255])
    >>> copy_values(np.array([0.5, 1.5, np.nan, 300.0]), out), out.tolist()
    (2, [0, 2, 0, 255])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if scale != (1.0, 0.0):
            values = values.astype(np.float64) * scale[0] + scale[1]
        if out.dtype.kind == "f" or np.can_cast(values.dtype, out.dtype):
            out[...] = values
            return 0
        limits = np.iinfo(out.dtype)
        if values.dtype.kind == "f":
            values = np.rint(values)
            too_high = values >= float(limits.max) + 1  # 2^63 where 2^63 - 1 has no float
        else:
            too_high = values > limits.max
        too_low = values < limits.min
        lost = too_low | too_high | (values != values)
        out[...] = np.where(lost, 0, values)
        out[too_low], out[too_high] = limits.min, limits.max
        return int(lost.sum())
