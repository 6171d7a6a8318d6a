"""Plans of earlier calls, kept for the next call of the same convolution.

A small array takes less time to convolve than to plan. The second call of a convolution takes the
plan of the first one. From the third call on, if all arguments but the numbers of `x` are the same,
even the arguments are not checked again: the second call has left a `Repetition`. Plans and
repetitions have the memory that their loops write to, so only one call at a time may use one: a
call takes it out, and puts it back at its end. Each thread has its own.
"""

from __future__ import annotations

import marshal
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.convolution.assemble import ResolvedConvolution
from conv3d_cli.kernels import is_builtin

if TYPE_CHECKING:
    from conv3d_cli.engine import Plan
    from conv3d_cli.engine.repetition import Repetition

# Plans of larger convolutions are not kept: they take a small part of the time, and much memory.
MOST_PLANS, MOST_VOXELS, MOST_BYTES = 16, 1 << 19, 1 << 20
# of weights and of biases that are compared with those of the last calls
MOST_WEIGHTS_BYTES = 1 << 17


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


class KeptCall(NamedTuple):
    """A call that can be repeated.

    shape, dtype            of its result
    """

    repetition: Repetition
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class KeptCalls(threading.local):
    """The calls that a thread keeps, the one that was used last at the end."""

    def __init__(self) -> None:
        self._calls: OrderedDict[Hashable, KeptCall] = OrderedDict()

    def repeat(self, key: Hashable, x: NDArray[Any], out: Any) -> NDArray[Any] | None:
        """The result of a call, in `out` if that is not None; None if the call is not kept.

        None, too, if `out` does not fit, or if the result must be computed in another way.
        """
        call = self._calls.pop(key, None)
        if call is None:
            return None
        result = np.empty(call.shape, call.dtype) if out is None else out
        fits = out is None or (
            type(out) is np.ndarray
            and out.shape == call.shape
            and out.dtype == call.dtype
            and out.flags.carray
            and not np.may_share_memory(out, x)
        )
        done = fits and call.repetition.run(x, result)
        self._calls[key] = call
        return result if done else None

    def holds(self, key: Hashable) -> bool:
        """Whether this call is kept."""
        return key in self._calls

    def keep(self, key: Hashable, call: KeptCall) -> None:
        """Keep a call, unless it has much memory; drop the oldest."""
        if call.repetition.bytes > MOST_BYTES:
            return
        self._calls[key] = call
        if len(self._calls) > MOST_PLANS:
            self._calls.popitem(last=False)


def call_key(x: Any, kernel: Any, bias: Any, options: tuple[Any, ...]) -> Hashable:
    """What the result of a call depends on, but for the numbers of `x`; None if it is not kept.

    options : the other arguments, which must be numbers, texts and tuples or lists of them. 1, 1.0
        and True differ
    """
    if type(x) is not np.ndarray or x.size > MOST_VOXELS or not x.flags.carray:
        return None
    if isinstance(kernel, str):
        if not is_builtin(kernel):
            return None  # a file may change
        weights: Any = kernel
    elif type(kernel) is np.ndarray and kernel.nbytes <= MOST_WEIGHTS_BYTES:
        weights = kernel.shape, kernel.dtype, kernel.tobytes()
    else:
        return None
    if type(bias) is np.ndarray and bias.nbytes <= MOST_WEIGHTS_BYTES:
        bias = bias.shape, bias.dtype.str, bias.tobytes()
    try:
        return x.shape, x.dtype, weights, marshal.dumps((bias, *options), 2)
    except ValueError:  # an object
        return None
