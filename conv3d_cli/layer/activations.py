"""All activations of Keras 3, by name, alias, layer class or serialized dict.

An elementwise function changes an array in place; the engine applies it to a tile's sums while they
are in the cache. A function along an axis (softmax and the like) returns a new array. `get` makes
an `Activation` of either, which can be called like that of Keras. To add an activation, write a
function with its formula in the docstring and put it into `ACTIVATIONS`.

NaN stays NaN, except where Keras compares values and NaN is never larger (hard_shrink, soft_shrink,
threshold). Where Keras' formula gives NaN at an infinity although a limit exists (silu, hard_silu,
gelu, mish, squareplus at -inf, softsign), the result is this limit. No result depends on the place
of its value in the array: the docstring or the formula tells the sign of a zero.
Source of names, formulas and defaults: Keras 3, keras/src/activations/activations.py and
keras/src/backend/jax/nn.py.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Literal, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv3d_cli.errors import ShapeError, SpecError, unknown_name
from conv3d_cli.layer._catalogue import (
    check_keys,
    keras_dict,
    of_keras,
    plain,
    read_identifier,
    require_axis,
    require_number,
    write_text,
)
from conv3d_cli.model.ramp import Ramp
from conv3d_cli.system.normal import normal_cdf

Array = NDArray[Any]
P = ParamSpec("P")

BLOCK = 1 << 14  # voxels changed at once: the temporary arrays of a formula stay in the cache


def _blocks(x: Array) -> Iterator[Array]:
    """Views that cover x, each of at most about `BLOCK` voxels."""
    if x.size <= BLOCK:
        if x.size:
            yield x if x.ndim else x.reshape(1)
    elif x.flags.c_contiguous:
        flat = x.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK]
    else:
        rows = max(1, BLOCK * x.shape[0] // x.size)
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows]
            yield from _blocks(part if rows > 1 else part[0])


def elementwise(
    function: Callable[Concatenate[Array, P], None],
) -> Callable[Concatenate[Array, P], None]:
    """Decorate a formula to run in blocks, in float32 or float64, without overflow warnings."""

    @functools.wraps(function)
    def in_blocks(x: Array, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with np.errstate(all="ignore"):
            for block in _blocks(x):
                supported = block.dtype in (np.float32, np.float64) and block.dtype.isnative
                if supported and block.flags.c_contiguous:
                    function(block, *args, **kwargs)
                else:
                    # float16 overflows in between, normal_cdf has no polynomial for long double,
                    # and formulas need a contiguous array
                    wide = block.astype(
                        np.float32 if block.dtype.itemsize < 8 else np.float64, order="C"
                    )
                    function(wide, *args, **kwargs)
                    block[...] = wide

    return in_blocks


def _replace(x: Array, values: Array | float, where: Array) -> None:
    """Set elements of x to values where a mask is true."""
    np.copyto(x, values, where=where, casting="same_kind")


def _positive_zero(x: Array) -> None:
    """Turn -0 into +0. Whether max(-0, 0) is -0 depends on the place in a vector register."""
    x += 0.0


def _finite(x: Array, both: bool = False) -> None:
    """Replace -inf (and inf, if `both`) by the largest finite numbers.

    Otherwise inf / inf or inf · 0 within a formula would give NaN.
    """
    limit = np.finfo(x.dtype).max
    np.maximum(x, -limit, out=x)
    if both:
        np.minimum(x, limit, out=x)


# --------------------------------------------------------------------------------------------------
# Piecewise linear and algebraic functions


def linear(x: Array) -> None:
    """x

    >>> x = np.array([-1.0, 2.0]); linear(x); x.tolist()
    [-1.0, 2.0]
    """


@elementwise
def relu(
    x: Array, negative_slope: float = 0.0, max_value: float | None = None, threshold: float = 0.0
) -> None:
    """max(x, 0); with parameters f(x) - negative_slope · max(threshold - x, 0)

    f(x) is x if x > threshold else 0, clipped to 0...max_value if that is given; the second term is
    not clipped. Zeros become +0. Keras 2 calls the slope `alpha`.
    >>> x = np.array([-1.0, 2.0]); relu(x); x.tolist()
    [0.0, 2.0]
    >>> x = np.array([-1.0, 0.5, 2.0, 9.0])
    >>> relu(x, negative_slope=0.1, max_value=6, threshold=1); x.tolist()
    [-0.2, -0.05, 2.0, 6.0]
    """
    slope = np.maximum(threshold - x, 0) * negative_slope if negative_slope else None
    if threshold:
        _replace(x, 0, x <= threshold)
    else:
        np.maximum(x, 0, out=x)
    if max_value is not None:
        np.clip(x, 0, max_value, out=x)
    if slope is not None:
        x -= slope
    _positive_zero(x)


@elementwise
def leaky_relu(x: Array, negative_slope: float = 0.2) -> None:
    """x if x >= 0 else negative_slope · x

    The layer LeakyReLU has another default slope, 0.3.
    >>> x = np.array([-1.0, 2.0]); leaky_relu(x); x.tolist()
    [-0.2, 2.0]
    """
    if 0 < negative_slope <= 1:
        np.maximum(x, x * negative_slope, out=x)  # if both are zeros, they have the same sign
    else:
        _replace(x, x * negative_slope, x < 0)


@elementwise
def relu6(x: Array) -> None:
    """min(max(x, 0), 6)

    >>> x = np.array([-1.0, 2.0, 7.0]); relu6(x); x.tolist()
    [0.0, 2.0, 6.0]
    """
    np.clip(x, 0, 6, out=x)
    _positive_zero(x)


@elementwise
def hard_tanh(x: Array) -> None:
    """min(max(x, -1), 1)

    >>> x = np.array([-3.0, 0.5, 2.0]); hard_tanh(x); x.tolist()
    [-1.0, 0.5, 1.0]
    """
    np.clip(x, -1, 1, out=x)


@elementwise
def hard_sigmoid(x: Array, keras2: bool = False) -> None:
    """min(max(x + 3, 0), 6) / 6; with keras2 min(max(0.2 · x + 0.5, 0), 1), as in Keras 2

    >>> x = np.array([-3.0, 0.0, 2.4]); hard_sigmoid(x); x.round(3).tolist()
    [0.0, 0.5, 0.9]
    >>> x = np.array([-3.0, 0.0, 2.4]); hard_sigmoid(x, keras2=True); x.round(3).tolist()
    [0.0, 0.5, 0.98]
    """
    if keras2:
        x *= 0.2
        x += 0.5
        np.clip(x, 0, 1, out=x)
    else:
        x += 3
        np.clip(x, 0, 6, out=x)
        x /= 6
    _positive_zero(x)


@elementwise
def hard_silu(x: Array) -> None:
    """x · hard_sigmoid(x)

    >>> x = np.array([-4.0, 1.0, 5.0]); hard_silu(x); x.round(3).tolist()
    [-0.0, 0.667, 5.0]
    """
    _finite(x)
    gate = x + 3
    np.clip(gate, 0, 6, out=gate)
    gate /= 6
    _positive_zero(gate)
    x *= gate


@elementwise
def hard_shrink(x: Array, threshold: float = 0.5) -> None:
    """x if |x| > threshold else 0

    NaN becomes 0, as in Keras.
    >>> x = np.array([-1.0, 0.5, 0.6]); hard_shrink(x); x.tolist()
    [-1.0, 0.0, 0.6]
    """
    _replace(x, 0, ~(np.abs(x) > threshold))


@elementwise
def soft_shrink(x: Array, threshold: float = 0.5) -> None:
    """x - threshold if x > threshold, x + threshold if x < -threshold, else 0

    NaN becomes 0, as in Keras.
    >>> x = np.array([-1.0, 0.5, 2.0]); soft_shrink(x); x.tolist()
    [-0.5, 0.0, 1.5]
    """
    above, below = x > threshold, x < -threshold
    _replace(x, x - threshold, above)
    _replace(x, x + threshold, below & ~above)
    _replace(x, 0, ~(above | below))


@elementwise
def threshold(x: Array, threshold: float, default_value: float) -> None:
    """x if x > threshold else default_value

    NaN becomes default_value, as in Keras.
    >>> x = np.array([-1.0, 0.5, 2.0]); threshold(x, threshold=0.5, default_value=7); x.tolist()
    [7.0, 7.0, 2.0]
    """
    _replace(x, default_value, ~(x > threshold))


@elementwise
def sparse_sigmoid(x: Array) -> None:
    """min(max((x + 1) / 2, 0), 1)

    >>> x = np.array([-2.0, 0.5, 2.0]); sparse_sigmoid(x); x.tolist()
    [0.0, 0.75, 1.0]
    """
    x += 1
    x *= 0.5
    np.clip(x, 0, 1, out=x)
    _positive_zero(x)


@elementwise
def sparse_plus(x: Array) -> None:
    """0 if x <= -1, (x + 1)² / 4 if x < 1, else x

    >>> x = np.array([-2.0, 0.0, 3.0]); sparse_plus(x); x.tolist()
    [0.0, 0.25, 3.0]
    """
    bent = np.square(x + 1)
    bent *= 0.25
    low = x <= -1
    _replace(x, bent, x < 1)
    _replace(x, 0, low)


@elementwise
def softsign(x: Array) -> None:
    """x / (1 + |x|)

    >>> x = np.array([-3.0, 1.0, np.inf]); softsign(x); x.tolist()
    [-0.75, 0.5, 1.0]
    """
    _finite(x, both=True)
    denominator = np.abs(x)
    denominator += 1
    x /= denominator


@elementwise
def squareplus(x: Array, b: float = 4.0) -> None:
    """(x + √(x² + b)) / 2

    For negative x it is computed as b / (2 · (√(x² + b) - x)), which avoids cancellation.
    >>> x = np.array([-3.0, 0.0, 1.5]); squareplus(x); x.round(6).tolist()
    [0.302776, 1.0, 2.0]
    """
    total = np.square(x)
    total += b
    np.sqrt(total, out=total)
    total += np.abs(x)
    np.copyto(x, np.where(x < 0, 0.5 * b / total, 0.5 * total))


# --------------------------------------------------------------------------------------------------
# Exponential functions


@elementwise
def exponential(x: Array) -> None:
    """exp(x)

    >>> x = np.array([0.0, 1.0]); exponential(x); x.round(6).tolist()
    [1.0, 2.718282]
    """
    np.exp(x, out=x)


def _bend(x: Array, bent: Array) -> None:
    """Set x to max(x, 0) + bent, where `bent` is 0 wherever x is positive.

    This is 3 times as fast as a masked copy (0.7 against 2.2 ns per voxel, 2026-11).
    """
    np.maximum(x, 0, out=x)
    x += bent
    _positive_zero(x)


@elementwise
def elu(x: Array, alpha: float = 1.0) -> None:
    """x if x > 0 else alpha · (exp(x) - 1)

    >>> x = np.array([-1.0, 2.0]); elu(x); x.round(6).tolist()
    [-0.632121, 2.0]
    """
    bent = np.expm1(np.minimum(x, 0))
    bent *= alpha
    _bend(x, bent)


@elementwise
def celu(x: Array, alpha: float = 1.0) -> None:
    """max(x, 0) + alpha · (exp(min(x, 0) / alpha) - 1)

    >>> x = np.array([-1.0, 2.0]); celu(x, alpha=2); x.round(6).tolist()
    [-0.786939, 2.0]
    """
    bent = np.minimum(x, 0)
    bent /= alpha
    np.expm1(bent, out=bent)
    bent *= alpha
    _bend(x, bent)


@elementwise
def selu(x: Array) -> None:
    """1.0507009873554805 · (x if x > 0 else 1.6732632423543772 · (exp(x) - 1))

    >>> x = np.array([-1.0, 2.0]); selu(x); x.round(6).tolist()
    [-1.111331, 2.101402]
    """
    bent = np.expm1(np.minimum(x, 0))
    bent *= 1.6732632423543772
    _bend(x, bent)
    x *= 1.0507009873554805


@elementwise
def sigmoid(x: Array) -> None:
    """1 / (1 + exp(-x))

    >>> x = np.array([-1e4, 0.0]); sigmoid(x); x.tolist()
    [0.0, 0.5]
    """
    # exp overflows to infinity for very negative x, and 1 / infinity is 0 as it should be
    np.negative(x, out=x)
    np.exp(x, out=x)
    x += 1
    np.reciprocal(x, out=x)


@elementwise
def silu(x: Array) -> None:
    """x / (1 + exp(-x)), which is x · sigmoid(x); also called swish

    >>> x = np.array([-1.0, 0.0, 2.0]); silu(x); x.round(6).tolist()
    [-0.268941, 0.0, 1.761594]
    """
    _finite(x)
    denominator = np.exp(-x)
    denominator += 1
    x /= denominator


@elementwise
def gelu(x: Array, approximate: bool = False) -> None:
    """x · (1 + erf(x / √2)) / 2; approximate: x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2

    Neither cancels for negative x: (1 + tanh(z)) / 2 is computed as 1 / (1 + exp(-2z)).
    Source: D. Hendrycks and K. Gimpel, Gaussian Error Linear Units, arXiv:1606.08415; for erf see
    system/normal.py.
    >>> x = np.array([-1.0, 2.0]); gelu(x); x.round(6).tolist()
    [-0.158655, 1.9545]
    >>> x = np.array([-1.0, 2.0]); gelu(x, approximate=True); x.round(6).tolist()
    [-0.158808, 1.954598]
    """
    _finite(x)
    if not approximate:
        x *= normal_cdf(x)
        return
    denominator = np.square(x)
    denominator *= 0.044715
    denominator += 1
    denominator *= x
    denominator *= -2 * math.sqrt(2 / math.pi)
    np.exp(denominator, out=denominator)
    denominator += 1
    x /= denominator


def _softplus(x: Array) -> Array:
    """A new array of max(x, 0) + log(1 + exp(-|x|))."""
    log = np.abs(x)
    np.negative(log, out=log)
    np.exp(log, out=log)
    np.log1p(log, out=log)
    log += np.maximum(x, 0)
    return log


@elementwise
def softplus(x: Array) -> None:
    """log(1 + exp(x)), computed as max(x, 0) + log(1 + exp(-|x|))

    >>> x = np.array([-1.0, 0.0, 1000.0]); softplus(x); x.round(6).tolist()
    [0.313262, 0.693147, 1000.0]
    """
    np.copyto(x, _softplus(x))


@elementwise
def log_sigmoid(x: Array) -> None:
    """-softplus(-x)

    >>> x = np.array([-1000.0, 0.0, 1.0]); log_sigmoid(x); x.round(6).tolist()
    [-1000.0, -0.693147, -0.313262]
    """
    np.negative(_softplus(-x), out=x)


@elementwise
def mish(x: Array) -> None:
    """x · tanh(softplus(x))

    >>> x = np.array([-1.0, 2.0]); mish(x); x.round(6).tolist()
    [-0.303401, 1.943959]
    """
    _finite(x)
    x *= np.tanh(_softplus(x))


@elementwise
def tanh(x: Array) -> None:
    """tanh(x)

    >>> x = np.array([-1.0, 0.0]); tanh(x); x.round(6).tolist()
    [-0.761594, 0.0]
    """
    np.tanh(x, out=x)


@elementwise
def tanh_shrink(x: Array) -> None:
    """x - tanh(x)

    >>> x = np.array([-1.0, 0.0, 2.0]); tanh_shrink(x); x.round(6).tolist()
    [-0.238406, 0.0, 1.035972]
    """
    x -= np.tanh(x)


# --------------------------------------------------------------------------------------------------
# Functions along an axis. axis=-1 is the last one, as in Keras: the channels in channels_last, the
# width in channels_first.


def softmax(x: Array, axis: int | list[int] = -1) -> Array:
    """exp(x - max) / sum of exp(x - max), along an axis, or over all axes of a list together

    >>> softmax(np.array([[0.0, np.log(3.0)]])).round(6).tolist()
    [[0.25, 0.75]]
    """
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else axis
    with np.errstate(all="ignore"):
        y: Array = x - np.max(x, axis=axes, keepdims=True)
        np.exp(y, out=y)
        y /= np.sum(y, axis=axes, keepdims=True)
    return y


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - max - log(sum of exp(x - max)), along an axis

    >>> np.exp(log_softmax(np.array([[0.0, np.log(3.0)]]))).round(6).tolist()
    [[0.25, 0.75]]
    """
    with np.errstate(all="ignore"):
        y: Array = x - np.max(x, axis=axis, keepdims=True)
        y -= np.log(np.sum(np.exp(y), axis=axis, keepdims=True))
    return y


def sparsemax(x: Array, axis: int = -1) -> Array:
    """max(x - tau, 0), the projection of x onto the probability simplex, along an axis

    tau is (s_1 + ... + s_k - 1) / k, where s are the values in falling order, and k is the largest
    number with s_k > (s_1 + ... + s_k - 1) / k. Keras up to 3.15.1 accumulates the sums once too
    often, so its result does not lie in the simplex (keras issue 23425).
    Source: A. Martins and R. Astudillo, From Softmax to Sparsemax, arXiv:1602.02068, algorithm 1.
    >>> sparsemax(np.array([[0.0, 0.5, 1.0]])).tolist()
    [[0.0, 0.25, 0.75]]
    """
    with np.errstate(all="ignore"):
        # a constant added to x changes tau, but not the projection
        y = np.moveaxis(x - np.max(x, axis=axis, keepdims=True), axis, -1)
        falling = np.sort(y, axis=-1)[..., ::-1]
        sums = np.cumsum(falling, axis=-1) - 1
        ranks = np.arange(1, y.shape[-1] + 1, dtype=y.dtype)
        support = np.maximum(np.sum(falling * ranks > sums, axis=-1, keepdims=True), 1)
        tau = np.take_along_axis(sums, support - 1, axis=-1) / support.astype(y.dtype)
        y = y - tau
        _replace(y, 0, y <= 0)
    return np.moveaxis(y, -1, axis)


def glu(x: Array, axis: int = -1) -> Array:
    """a · sigmoid(b), where a and b are the halves of x along an axis, which becomes half as long

    Raises: ShapeError for an axis of odd length.
    Source: Y. Dauphin and others, Language Modeling with Gated Convolutional Networks,
    arXiv:1612.08083.
    >>> glu(np.array([[2.0, 4.0, 0.0, 0.0]])).tolist()
    [[1.0, 2.0]]
    """
    if x.shape[axis] % 2:
        raise ShapeError(
            f"glu halves axis {axis}, whose length must be even, received {x.shape[axis]} (shape "
            f"{x.shape})"
        )
    a, b = np.split(x, 2, axis=axis)
    y = np.array(b)
    sigmoid(y)
    with np.errstate(all="ignore"):
        y *= a
    return y


# --------------------------------------------------------------------------------------------------
# The catalogue

ACTIVATIONS: tuple[Callable[..., Any], ...] = (
    linear,
    relu,
    leaky_relu,
    relu6,
    elu,
    celu,
    selu,
    gelu,
    silu,
    hard_silu,
    sigmoid,
    hard_sigmoid,
    log_sigmoid,
    tanh,
    tanh_shrink,
    hard_tanh,
    softplus,
    softsign,
    soft_shrink,
    hard_shrink,
    threshold,
    squareplus,
    sparse_plus,
    sparse_sigmoid,
    mish,
    exponential,
    softmax,
    log_softmax,
    sparsemax,
    glu,
)
AXIS_ACTIVATIONS: tuple[Callable[..., Any], ...] = (softmax, log_softmax, sparsemax, glu)
ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}
_BY_NAME = {function.__name__: function for function in ACTIVATIONS}


@dataclass(frozen=True)
class ActivationLayer:
    """A layer class of Keras that is an activation.

    function : str      name of the activation
    defaults : dict     the layer's defaults that differ from those of the function
    renamed : dict      Keras 2's key -> the function's parameter
    """

    function: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


LAYERS = {
    "ReLU": ActivationLayer("relu"),
    "LeakyReLU": ActivationLayer(
        "leaky_relu", {"negative_slope": 0.3}, {"alpha": "negative_slope"}
    ),
    "ELU": ActivationLayer("elu"),
    "Softmax": ActivationLayer("softmax"),
    "ThresholdedReLU": ActivationLayer(
        "threshold", {"threshold": 1.0, "default_value": 0.0}, {"theta": "threshold"}
    ),
}
# layers that Keras 3 has, and the order of keys in their configs
_LAYER_KEYS = {
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "LeakyReLU": ("negative_slope",),
    "ELU": ("alpha",),
    "Softmax": ("axis",),
}
_NEVER_NEGATIVE = ("ReLU", "LeakyReLU")
_LAYER_NAMES = {"ReLU": "re_lu", "LeakyReLU": "leaky_re_lu", "ELU": "elu", "Softmax": "softmax"}
_LAYER_WORDS = (
    "name",
    "trainable",
    "dtype",
    "activity_regularizer",
    "batch_input_shape",
    "batch_shape",
    "input_shape",
)


def names() -> list[str]:
    """Names of all activations, aliases last.

    >>> names()[:3], names()[-2:]
    (['linear', 'relu', 'leaky_relu'], ['swish', 'hard_swish'])
    """
    return [*_BY_NAME, *ALIASES]


@dataclass(frozen=True)
class Activation:
    """An activation with its parameters; called on an array it returns a new one.

    name : str              Keras 3's name (silu, not swish), or that of a Python function
    function : callable     of the catalogue, or any function of an array
    config : dict           parameters that differ from the defaults
    layer : dict or None    class name and config of the Keras layer it was read from, to write it
                            back

    >>> get("relu:max_value=6")(np.array([-1, 2, 8])).tolist()
    [0.0, 2.0, 6.0]
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layer: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def kind(self) -> Literal["voxel", "axis", "tensor"]:
        """The input of one result: one voxel, the whole last axis, or the whole array.

        Activations along other axes, and unknown Python functions, need the whole array ("tensor").
        """
        if self.function in AXIS_ACTIVATIONS:
            return "axis" if self.config.get("axis", -1) in (-1, [-1]) else "tensor"
        return "voxel" if self.function in ACTIVATIONS else "tensor"

    @property
    def is_linear(self) -> bool:
        """Whether this is the identity function."""
        return self.function is linear

    @property
    def ramp(self) -> Ramp | None:
        """The numbers of relu, leaky_relu and relu6, which the engine computes; None for others.

        >>> get("relu:max_value=6").ramp == get("relu6").ramp
        True
        """
        slope = self.config.get("negative_slope")
        if self.function is leaky_relu:
            return Ramp(slope=0.2 if slope is None else slope, signs_zeros=True)
        if self.function not in (relu, relu6):
            return None
        ceiling = 6.0 if self.function is relu6 else self.config.get("max_value")
        bounds = (-math.inf, math.inf) if ceiling is None else (0.0, ceiling)
        return Ramp(self.config.get("threshold", 0.0), *bounds, slope or 0.0)

    @property
    def halves(self) -> bool:
        """Whether the output is half as long along its axis (glu)."""
        return self.function is glu

    @property
    def text(self) -> str:
        """The text of the activation on the command line, which `get` reads back.

        For a Python function it is only the function's name.
        >>> get({"class_name": "LeakyReLU", "config": {"alpha": 0.1}}).text
        'leaky_relu:negative_slope=0.1'
        """
        return write_text(self.name, self.config)

    def __call__(self, x: ArrayLike) -> Array:
        """The activation of an array of real numbers of any shape, a new array.

        Floats keep their dtype; other numbers become float32.
        Raises: ShapeError for other arrays, an activation along an axis of a single number, and glu
            along an axis of odd length.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "buif":
            raise ShapeError(f"an activation takes real numbers, received dtype {x.dtype}")
        y = x.astype(x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.float32, order="C")
        if self.function in AXIS_ACTIVATIONS:
            if y.ndim == 0:
                raise ShapeError(f"{self.name} needs an axis, received a single number")
            wide = y.astype(np.float32) if y.dtype.itemsize < 4 else y
            return np.asarray(self.function(wide, **self.config)).astype(y.dtype, copy=False)
        if self.kind == "voxel":
            self.function(y, **self.config)
            return y
        result = self.function(y)
        # a Python function may change its argument in place and return None
        return y if result is None else np.asarray(result)

    def in_place(self, x: Array) -> None:
        """Apply a voxelwise activation to a float array in place, as the engine does to a tile.

        Raises: SpecError for an activation of another kind.
        """
        if self.kind != "voxel":
            raise SpecError(f"activation '{self.name}' cannot be computed voxel by voxel")
        self.function(x, **self.config)


def get(identifier: str | Mapping[str, Any] | Activation | Callable[..., Any] | None) -> Activation:
    """The activation that an identifier names, as `keras.activations.get` finds it.

    identifier : None, for linear; a name or an alias, perhaps with parameters (`elu:alpha=0.5`);
        the class name of an activation layer of Keras; the serialized dict of a function or a layer
        of Keras 2 or 3; a function of this module; any other function of an array, which returns
        the result, or changes the array in place and returns None
    Raises: UnknownNameError, which suggests the nearest name; SpecError for wrong parameters.

    >>> get(None).name, get("swish").name, get("LeakyReLU").config
    ('linear', 'silu', {'negative_slope': 0.3})
    >>> get({"module": "builtins", "class_name": "function", "config": "relu"}).kind
    'voxel'
    """
    identifier = of_keras(identifier)
    if identifier is None:
        return Activation("linear", linear)
    if isinstance(identifier, Activation):
        return identifier
    if isinstance(identifier, (str, Mapping)):
        name, config = read_identifier(identifier, "activation")
        if name == "function" and isinstance(config, str):
            name, config = config, {}
        if name == "Activation" and isinstance(config, Mapping):
            return get(config.get("activation"))
        if name in LAYERS or name == "PReLU":
            return _from_layer(name, config, keep=isinstance(identifier, Mapping))
        return _from_function(name, config)
    if callable(identifier):
        if identifier in ACTIVATIONS:
            return _from_function(identifier.__name__, {})
        return Activation(getattr(identifier, "__name__", type(identifier).__name__), identifier)
    raise unknown_name("activation", identifier, names())


def _from_function(name: str, config: Any) -> Activation:
    """The activation of a function's name and config. Raises: see `get`."""
    function = _BY_NAME.get(ALIASES.get(name, name))
    if function is None:
        raise unknown_name("activation", name, names())
    if isinstance(config, Mapping) and name in ("relu", "leaky_relu") and "alpha" in config:
        config = {
            "negative_slope" if key == "alpha" else key: value for key, value in config.items()
        }
    check_keys(name, config, function, skip=1)
    parameters = inspect.signature(function).parameters
    values = {
        key: _checked(name, key, value, parameters[key].default) for key, value in config.items()
    }
    differing = {key: value for key, value in values.items() if value != parameters[key].default}
    return Activation(function.__name__, function, differing)


def _checked(name: str, key: str, value: Any, default: Any) -> Any:
    """The value of a parameter, checked against the type of its default. Raises: SpecError."""
    what = f"{key} of {name}"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise SpecError(f"{what} must be true or false, received {value!r}")
        return value
    if key == "axis":
        axis = require_axis(value, what)
        if isinstance(axis, list) and name not in ("softmax", "Softmax"):
            raise SpecError(f"{what} must be a whole number, received {value!r}")
        return axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if value is None and default is None:
        return None
    return require_number(value, what)


def _from_layer(class_name: str, config: Any, keep: bool) -> Activation:
    """The activation of a Keras layer. Raises: SpecError for a config that Keras refuses.

    keep : bool     keep the config, to write the layer back
    """
    if class_name == "PReLU":
        raise SpecError(
            "PReLU has trained weights of its own, so it is not an activation here; use LeakyReLU "
            "with a fixed slope"
        )
    layer = LAYERS[class_name]
    if not isinstance(config, Mapping):
        raise SpecError(
            f"the config of {class_name} must be a table of parameters, received {config!r}"
        )
    given = {
        layer.renamed.get(key, key): value
        for key, value in config.items()
        if key not in _LAYER_WORDS
    }
    for key, value in given.items():
        # Keras' layers refuse values that its functions accept.
        if class_name in _NEVER_NEGATIVE and not (key == "max_value" and value is None):
            bad = not isinstance(value, numbers.Real) or isinstance(value, bool) or value < 0
            if bad and key in ("max_value", "negative_slope", "threshold"):
                raise SpecError(
                    f"{key} of a {class_name} layer cannot be None or negative, received {value!r}"
                )
    activation = _from_function(layer.function, {**layer.defaults, **given})
    words = {key: value for key, value in config.items() if key in ("name", "trainable", "dtype")}
    kept = {"class_name": class_name, **words} if keep and class_name in _LAYER_KEYS else None
    return Activation(activation.name, activation.function, activation.config, kept)


def serialize(activation: Any) -> str | dict[str, Any]:
    """The value of an activation in Keras 3's `get_config`: a name, or a dict if it has parameters.

    The dict is that of a Keras layer. Parameters that no Keras layer has (gelu:approximate=true)
    give a dict of the same form that `get` can read, but Keras cannot.
    Raises: SpecError for a Python function.
    >>> serialize("swish"), serialize(None), serialize("LeakyReLU")["class_name"]
    ('silu', 'linear', 'LeakyReLU')
    """
    activation = get(activation)
    if activation.function not in ACTIVATIONS:
        raise SpecError(
            f"activation '{activation.name}' is a Python function, which cannot be written to a "
            "config"
        )
    class_name = activation.layer["class_name"] if activation.layer is not None else None
    if class_name is None:
        if not activation.config:
            return str(activation.name)
        class_name = next((c for c in _LAYER_KEYS if LAYERS[c].function == activation.name), None)
        refused = class_name in _NEVER_NEGATIVE and any(
            (v or 0) < 0 for v in activation.config.values()
        )
        if class_name is None or refused:
            return keras_dict("keras.activations", activation.name, plain(activation.config))
    parameters = inspect.signature(activation.function).parameters
    values = {
        key: plain(activation.config.get(key, parameters[key].default))
        for key in _LAYER_KEYS[class_name]
    }
    words = {"name": _LAYER_NAMES[class_name], "trainable": True, "dtype": dtype_policy("float32")}
    words |= {key: value for key, value in (activation.layer or {}).items() if key != "class_name"}
    return keras_dict("keras.layers", class_name, {**words, **values})


def dtype_policy(name: str) -> dict[str, Any]:
    """Keras 3's serialized dtype policy; `name` is float32 or the like.

    >>> dtype_policy("float32")["config"]
    {'name': 'float32'}
    """
    return keras_dict("keras", "DTypePolicy", {"name": name})
