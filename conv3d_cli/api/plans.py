"""Plans of earlier calls, kept for the next call of the same convolution.

A small array takes less time to convolve than to plan. A plan has the memory that its loops write
to, so only one call at a time may use it: a call takes the plan out, and puts it back at its end.
Each thread has plans of its own.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

from conv3d_cli.convolution.assemble import ResolvedConvolution

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan

# Plans of larger convolutions are not kept: they take a small part of the time, and much memory.
MOST_PLANS, MOST_VOXELS, MOST_BYTES = 16, 1 << 17, 1 << 20


class KeptPlans(threading.local):
    """The plans that a thread keeps, the one that was used last at the end."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()

    def take(self, key: Hashable) -> Plan | None:
        """Take out the plan for a key, if it is here."""
        return None if key is None else self._plans.pop(key, None)

    def keep(self, key: Hashable, plan: Plan) -> None:
        """Keep a plan that no call uses any more, unless it is large; drop the oldest."""
        if key is None or plan.scratch_bytes + plan.weight_bytes.kept > MOST_BYTES:
            return
        self._plans[key] = plan
        if len(self._plans) > MOST_PLANS:
            self._plans.popitem(last=False)


def plan_key(
    resolved: ResolvedConvolution, source: str, precision: str, threads: int, algorithm: str
) -> Hashable:
    """What a plan and its loops depend on; None for a convolution whose plan is not kept.

    source : str        name of the input's dtype
    precision : str     name of the output's dtype
    Means are not kept: their plans belong together.
    """
    problem, weights = resolved.problem, resolved.kernel.weights
    if resolved.missing.applies_to(problem.boundary) or weights.nbytes > MOST_BYTES:
        return None
    if max(math.prod(problem.in_size), math.prod(problem.out_size)) > MOST_VOXELS:
        return None
    return problem, weights.shape, weights.tobytes(), source, precision, threads, algorithm
