"""The only way from a `ConvSpec` and a kernel to a `Convolution`.

`resolve_convolution` computes every integer from the volume's shape; `assemble` then plans the
arithmetic, for all channels or for one channel at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conv3d_cli.convolution.copying import Copy
from conv3d_cli.convolution.losses import Losses
from conv3d_cli.convolution.prepared import Convolution, Penalty, channels_after
from conv3d_cli.model.kernel import Kernel, require_finite_in
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.model.spec import ConvProblem, ConvSpec

if TYPE_CHECKING:
    from conv3d_cli.convolution.masks import Mask
    from conv3d_cli.engine import Plan
    from conv3d_cli.layer.activations import Activation


@dataclass(frozen=True)
class ResolvedConvolution:
    """A convolution of a volume of known shape, before its arithmetic is planned.

    kernel : Kernel             the kernel to apply, normalized to sum 1 if means are taken
    problem : ConvProblem       every integer of the convolution of the whole volume
    activations : sequence      applied in order
    channels_first : bool       softmax then runs along the width, the last axis, as in Keras
    magnitude : bool            replace the filters of a channel by the root of the sum of their
                                squares
    missing : Missing           policy for missing voxels
    channels_out : int          channels of the output
    notes : tuple of str        changes made to the kernel, for the user
    """

    kernel: Kernel
    problem: ConvProblem
    activations: Sequence[Activation]
    channels_first: bool
    magnitude: bool
    missing: Missing
    channels_out: int
    notes: tuple[str, ...] = ()

    @property
    def is_copy(self) -> bool:
        """Whether each output is one input voxel, without any arithmetic."""
        kernel, problem = self.kernel, self.problem
        return (
            kernel.weights.shape == (1, 1, 1)
            and float(kernel.weights[0, 0, 0]) == 1
            and kernel.bias is None
            and all(activation.is_linear for activation in self.activations)
            and not self.magnitude
            and problem.pad_before == problem.pad_after == (0, 0, 0)
            and not self.missing.has_weights
            and self.missing.nan == "propagate"
        )


def resolve_convolution(
    spec: ConvSpec,
    kernel: Kernel,
    shape: Sequence[int],
    *,
    activations: Sequence[Activation] = (),
    channels_first: bool = False,
    magnitude: bool = False,
    missing: Missing = NOTHING,
) -> ResolvedConvolution:
    """Compute every integer of a convolution from the volume's shape.

    spec : ConvSpec             strides, padding, dilation rate, groups, boundary
    shape : (N, D, H, W, C)     of the volume
    The other parameters are those of `ResolvedConvolution`.
    Raises: ShapeError if kernel and volume do not fit each other, or if means are needed and the
        kernel has no mean (see `mean_kernel`).

    >>> kernel = Kernel(np.ones((3, 3, 3)))
    >>> resolve_convolution(ConvSpec(), kernel, (1, 5, 5, 5, 2)).problem.out_shape
    (1, 3, 3, 3, 2)
    """
    notes: tuple[str, ...] = ()
    if missing.takes_means(spec.boundary):
        from conv3d_cli.convolution.masked import mean_kernel  # imports Numba

        if abs(kernel.sum - 1) > 1e-6 and kernel.sum > 0:
            whose = kernel.title.removeprefix("kernel ")
            notes = (
                f"the result is a mean: the weights of {whose} are divided by their sum, "
                f"{kernel.sum:.6g}",
            )
        kernel = mean_kernel(kernel)
    problem = spec.resolve(shape, kernel.weights.shape, kernel.centre)
    filters = problem.filters // (kernel.filters_per_channel if magnitude else 1)
    channels = channels_after(filters, activations, channels_first)
    return ResolvedConvolution(
        kernel, problem, activations, channels_first, magnitude, missing, channels, notes
    )


def assemble(
    resolved: ResolvedConvolution,
    channels: int,
    *,
    precision: str,
    threads: int,
    algorithm: str = "auto",
    activity: Penalty | None = None,
    mask: Mask | None = None,
    several_parts: bool = False,
    reports_coverage: bool = False,
    watches_losses: bool = False,
    plan: Plan | None = None,
) -> Convolution:
    """Plan the arithmetic of a convolution.

    channels : int              channels computed at once: one, or all of them
    precision : str             of the arithmetic, "float32" or "float64"
    threads : int               to plan for
    algorithm : str             name of an algorithm, or "auto" for the fastest
    activity : callable or None     penalty of the output
    mask : Mask or None         already checked against the volume (`check_mask`)
    several_parts : bool        the convolution will run over several volumes or channels, which may
                                share their coverage
    reports_coverage : bool     the caller reads `Convolution.coverage` after each slab
    watches_losses : bool       the caller reads `Convolution.losses` at the end
    plan : Plan or None         the plan of an earlier convolution that was the same and has ended
    Raises: SpecError for weights beyond the range of the precision; UnknownNameError for an unknown
        algorithm; ShapeError for an algorithm that cannot compute this, or a kernel of even size
        where the mask is read at the kernel's centre.

    >>> resolved = resolve_convolution(ConvSpec(), Kernel(np.ones((3, 3, 3))), (1, 5, 5, 5, 2))
    >>> convolution = assemble(resolved, channels=1, precision="float32", threads=1)
    >>> convolution.problem.in_shape, convolution.channels_out
    ((1, 5, 5, 5, 1), 1)
    """
    kernel, problem, missing = resolved.kernel, resolved.problem, resolved.missing
    copies = resolved.is_copy and activity is None
    convolution = (Copy if copies else Convolution)(
        plan or _plan(kernel, problem.part(channels), precision, threads, algorithm),
        kernel.is_layer,
        kernel.bias_for(problem.filters),
        resolved.activations,
        resolved.channels_first,
        activity,
        filters_per_channel=kernel.filters_per_channel,
        magnitude=resolved.magnitude,
        losses=_no_losses(resolved) if watches_losses else None,
    )
    if copies or not missing.applies_to(problem.boundary):
        return convolution
    from conv3d_cli.convolution.masked import check_centre, masked_convolution  # imports Numba

    check_centre(missing, convolution.problem, kernel)
    return masked_convolution(convolution, missing, kernel, mask, several_parts, reports_coverage)


def _no_losses(resolved: ResolvedConvolution) -> Losses:
    """The losses of a convolution before its first slab."""
    kernel = resolved.kernel
    return Losses(
        sums_weights=abs(kernel.sum) > 1e-6 * float(np.abs(kernel.weights).sum()),
        is_linear=all(activation.is_linear for activation in resolved.activations),
        gain=_gain(kernel),
    )


def _gain(kernel: Kernel) -> float:
    """The largest output of an input within -1 to 1; infinite for layers, and with a bias."""
    if kernel.is_layer or kernel.bias is not None:
        return math.inf
    magnitudes = np.abs(kernel.weights).reshape(math.prod(kernel.size), -1)
    return float(magnitudes.sum(axis=0).max())


def _plan(
    kernel: Kernel, problem: ConvProblem, precision: str, threads: int, algorithm: str
) -> Plan:
    """The engine's plan for one part of a volume; all parts have the same shape."""
    from conv3d_cli.engine import make_plan  # imports Numba, which `info` and errors do not need

    real = np.dtype(precision)
    kernel.check_range(real)
    boundary = problem.boundary
    require_finite_in(boundary.value, real, f"boundary {boundary.mode}={boundary.value:g} is")
    weights = kernel.for_channels(problem.in_channels)
    return make_plan(problem, weights, dtype=precision, threads=threads, algorithm=algorithm)
