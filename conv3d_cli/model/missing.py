"""`Missing`: how to treat voxels that are missing or have a low certainty.

`convolution/masked.py` computes what it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import SpecError, named, setting, unknown_name
from conv3d_cli.model.spec import Boundary

if TYPE_CHECKING:
    import numpy as np

NAN_MODES = ("propagate", "ignore", "zero", "error")
MASK_MODES = ("clip", "extend", "keep")
# Fraction of the kernel's weight. A mean over less depends on the kernel's tail alone, and on
# rounding errors where a transform computes it.
MIN_COVERAGE = 1e-3
EXACT = 2.0**53  # up to here float64 holds every integer


@dataclass(frozen=True)
class Missing:
    """How to treat voxels that are missing or have a low certainty.

    nan : str               NaN and infinity: "propagate" to all outputs that see them, "ignore"
                            (leave them out of the mean), "zero" (read them as 0), "error" (refuse)
    value : float or None   the stored value that marks a voxel as missing
    mask : str or None      a volume of certainties on the same grid, at least 0; only their ratios
                            matter
    mask_mode : str         outputs outside the mask: "clip" (0), "extend" (their mean), "keep" (the
                            input's voxel)
    labels : bool           the mask numbers regions, and an output sees its own region only; 0 is
                            outside
    min_coverage : float    outputs that see less than this fraction of the kernel's weight are set
                            to 0 (with a mask) or NaN

    Raises: SpecError for values and combinations that are not allowed.
    >>> Missing(mask="brain.nii.gz", mask_mode="extend").has_weights
    True
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
                f"{named('min_coverage')} must be a fraction of the kernel's weight, above 0 and "
                f"at most 1, received {self.min_coverage}"
            )
        if self.value is not None and math.isnan(self.value):
            raise SpecError(
                f"{named('missing')} must be a number that voxels can equal, received nan: to "
                f"leave NaN out, pass {setting('nan', 'ignore')}"
            )
        if self.value is not None and self.nan in ("zero", "error"):
            raise SpecError(
                f"{setting('missing', self.value)} leaves voxels out, and "
                f"{setting('nan', self.nan)} does not: pass {setting('nan', 'ignore')} or "
                f"{setting('nan', 'propagate')}"
            )
        if self.labels and self.value is not None and self.nan != "ignore":
            raise SpecError(
                "a missing value within labels leaves NaN out as well: pass "
                f"{setting('nan', 'ignore')}, too"
            )
        if self.mask is None and (self.labels or self.mask_mode != "clip"):
            raise SpecError(
                f"{setting('mask_mode')} and {setting('mask_labels')} need a mask: pass "
                f"{setting('mask')}"
            )

    @property
    def has_weights(self) -> bool:
        """True if every voxel has a certainty: a plain convolution is not tried first."""
        return self.mask is not None or self.value is not None

    def applies_to(self, boundary: Boundary) -> bool:
        """True unless a plain convolution does all that is asked for."""
        return self.has_weights or self.nan != "propagate" or boundary.renormalizes

    def takes_means(self, boundary: Boundary) -> bool:
        """True if outputs are weighted means, which need a kernel without negative weights."""
        return self.has_weights or self.nan == "ignore" or boundary.renormalizes


def stored_value(value: float | None, stored: np.dtype[Any]) -> float | None:
    """The number by which voxels of a stored dtype are missing; None if none of them can be.

    A float is the one nearest to `value`, since files and messages give few digits of it.

    >>> import numpy as np
    >>> stored_value(0.1, np.dtype(np.float32))
    0.10000000149011612
    >>> stored_value(-0.5, np.dtype(np.int16)), stored_value(-1, np.dtype(bool))
    (None, None)
    """
    import numpy as np  # late: help and completion do without it

    if value is None:
        return None
    if stored.kind == "f":
        with np.errstate(over="ignore"):
            nearest = float(stored.type(value))
        return nearest if math.isfinite(nearest) or math.isinf(value) else None
    limits = np.iinfo(np.uint8 if stored.kind == "b" else stored)
    return value if float(value).is_integer() and limits.min <= value <= limits.max else None


def missing_value_notes(missing: Missing, stored: np.dtype[Any]) -> list[str]:
    """A note if no voxel of a stored dtype can have the missing value, or if it stands for several.

    >>> import numpy as np
    >>> missing_value_notes(Missing(value=-0.5), np.dtype(np.int16))
    ["missing='-0.5' marks no voxel: it is compared with what the file stores, which is int16"]
    >>> missing_value_notes(Missing(value=-1), np.dtype(np.int16))
    []
    """
    if missing.value is None:
        return []
    asked = setting("missing", repr(missing.value).removesuffix(".0"))
    if stored_value(missing.value, stored) is None:
        return [
            f"{asked} marks no voxel: it is compared with what the file stores, which is {stored}"
        ]
    if stored.kind in "iu" and EXACT <= abs(missing.value) < 2.0**63:
        return [
            f"{asked} is the nearest number that float64 holds: another integer close by may have "
            "been meant"
        ]
    return []


NOTHING = Missing()  # a plain convolution
