"""Activations that are straight on both sides of a bend, as numbers that compiled loops read."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple


class Ramp(NamedTuple):
    """An activation such as ReLU.

    threshold : float       values above it stay, others become 0
    floor, ceiling : float  what is then clipped to
    slope : float           this times (threshold - x) is then subtracted below the threshold
    signs_zeros : bool      x if x >= 0 else slope · x instead, where a zero has the sign of x;
                            otherwise zeros are +0

    >>> Ramp().form, Ramp(slope=0.1, signs_zeros=True).form, Ramp(ceiling=6.0).form
    ('plain', 'leaky', 'bounded')
    """

    threshold: float = 0.0
    floor: float = -math.inf
    ceiling: float = math.inf
    slope: float = 0.0
    signs_zeros: bool = False

    @property
    def form(self) -> Literal["plain", "leaky", "bounded"]:
        """Which of the formulas computes it."""
        if self.signs_zeros:
            return "leaky"
        is_plain = self.slope == 0 and self.floor == -math.inf and self.ceiling == math.inf
        return "plain" if is_plain else "bounded"
