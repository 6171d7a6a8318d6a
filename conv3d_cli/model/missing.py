"""Missing: the policy for voxels that are missing, or count less than others; convolution/masked.py computes with it."""

from __future__ import annotations

from dataclasses import dataclass

from conv3d_cli.errors import SpecError, unknown_name
from conv3d_cli.model.spec import Boundary

NAN_MODES = ("propagate", "ignore", "zero", "error")
MASK_MODES = ("clip", "extend", "keep")
# Of the kernel's weight: below it a mean hangs on a tail, and on rounding where a transform computes it.
MIN_COVERAGE = 1e-3


@dataclass(frozen=True)
class Missing:
    """What is done about voxels that are missing, or count less than others.

    nan : str               NaN and infinity: "propagate" into their windows, "ignore" (left out of the mean), "zero", "error"
    value : float or None   the stored value of a missing voxel
    mask : str or None      a volume of certainties on the same grid, at least 0; only their ratios matter
    mask_mode : str         outputs outside the mask: "clip" (0), "extend" (their mean), "keep" (the voxel as it was)
    labels : bool           the mask's numbers are regions, which are not mixed; 0 is outside
    min_coverage : float    outputs that see less than this fraction of the kernel's weight are set to 0 (with a mask)
                            or NaN

    Raises: SpecError.
    """

    nan: str = "propagate"
    value: float | None = None
    mask: str | None = None
    mask_mode: str = "clip"
    labels: bool = False
    min_coverage: float = MIN_COVERAGE

    def __post_init__(self) -> None:
        if self.nan not in NAN_MODES:
            raise unknown_name("nan", self.nan, NAN_MODES)
        if self.mask_mode not in MASK_MODES:
            raise unknown_name("mask_mode", self.mask_mode, MASK_MODES)
        if not 0 < self.min_coverage <= 1:
            raise SpecError(
                f"min_coverage is a part of the kernel's weight, above 0 and up to 1, received {self.min_coverage}"
            )
        if self.value is not None and self.nan in ("zero", "error"):
            raise SpecError(
                f"missing={self.value} leaves voxels out, and nan={self.nan} does not: use nan=ignore or propagate"
            )
        if self.labels and self.value is not None and self.nan != "ignore":
            raise SpecError(
                "a missing value within labels leaves NaN out as well: pass nan=ignore, too"
            )
        if self.mask is None and (self.labels or self.mask_mode != "clip"):
            raise SpecError(
                "mask_mode and labels are of a mask, and there is none: name one with --mask"
            )

    @property
    def has_weights(self) -> bool:
        """Whether each voxel has a certainty, so that the plain convolution need not be tried first."""
        return self.mask is not None or self.value is not None

    def applies_to(self, boundary: Boundary) -> bool:
        """Whether there is anything to do at all."""
        return self.has_weights or self.nan != "propagate" or boundary.renormalizes

    def takes_means(self, boundary: Boundary) -> bool:
        """Whether means are taken, which a kernel of mixed signs has none of."""
        return self.has_weights or self.nan == "ignore" or boundary.renormalizes


NOTHING = Missing()
