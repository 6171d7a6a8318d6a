"""Every operation of networks: its definition against plain loops, and its fast way against the definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest

from conv3d_cli.engine import Team
from conv3d_cli.engine.fields import Field
from conv3d_cli.errors import Conv3DError, ShapeError, SpecError
from conv3d_cli.model.box import Box
from conv3d_cli.network.graph import Node
from conv3d_cli.network.operations.base import Operation, Shape, Window, spans_of
from conv3d_cli.network.operations.catalogue import INNER, OPERATIONS, PARTS, make_operation
from conv3d_cli.network.operations.convolution import WeightedSum
from conv3d_cli.network.operations.missing import MaskCertainty

Array = np.ndarray[Any, Any]
numbers = np.random.default_rng(5)


def weights(*shape: int) -> Array:
    return numbers.standard_normal(shape)


def positive(*shape: int) -> Array:
    return numbers.uniform(0.5, 2, shape)


# --------------------------------------------------------------------------------------------------
# The definitions once more, voxel by voxel


def pooled(
    x: Array,
    size: Any,
    strides: Any,
    before: Any,
    out: Any,
    of: Callable[..., Any],
    rates: Any = (1, 1, 1),
) -> Array:
    y = np.empty((*out, x.shape[3]))
    for place in np.ndindex(*out):
        window = []
        for tap in np.ndindex(*size):
            at = [
                p * s - b + t * r
                for p, s, b, t, r in zip(place, strides, before, tap, rates, strict=True)
            ]
            if all(0 <= a < n for a, n in zip(at, x.shape[:3], strict=True)):
                window.append(x[tuple(at)])
        y[place] = of(window, axis=0)
    return y


def transposed(x: Array, kernel: Array, strides: Any, dilation: Any, cut: Any, out: Any) -> Array:
    """Every input voxel adds its kernel to the output."""
    full = np.zeros((*(o + c + 99 for o, c in zip(out, cut, strict=True)), kernel.shape[3]))
    for place in np.ndindex(*x.shape[:3]):
        for tap in np.ndindex(*kernel.shape[:3]):
            at = tuple(
                p * s + k * d for p, s, k, d in zip(place, strides, tap, dilation, strict=True)
            )
            full[at] += kernel[tap] @ x[place]
    d, h, w = (slice(c, c + o) for c, o in zip(cut, out, strict=True))
    return full[d, h, w]


def between(x: Array, positions: list[Array]) -> Array:
    """Linear between voxels; positions beyond the border are at it."""
    for axis, at in enumerate(positions):
        known = np.arange(x.shape[axis])
        x = np.apply_along_axis(
            lambda line, at=at, known=known: np.interp(at, known, line), axis, x
        )
    return x


def normalized(x: Array, axes: Any, gamma: Any, beta: Any, epsilon: float = 1e-3) -> Array:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def in_groups(x: Array, groups: int, gamma: Any, beta: Any) -> Array:
    parts = np.split(x, groups, axis=3)
    own = [normalized(part, (0, 1, 2, 3), 1, 0) for part in parts]
    return np.concatenate(own, axis=3) * gamma + beta


def in_windows(x: Array, window: Array, of: Callable[..., Any], certainty: Any = None) -> Array:
    """`of` the voxels (n,) in the window of each output, their weights, and the output's own voxel."""
    pads = [(n // 2, n // 2) for n in window.shape] + [(0, 0)]
    counts = np.broadcast_to(1.0 if certainty is None else certainty, x.shape)
    views = [
        np.lib.stride_tricks.sliding_window_view(
            np.pad(a, pads, "symmetric"), window.shape, (0, 1, 2)
        )  # type: ignore[call-overload]
        for a in (x, counts)
    ]
    y = np.empty(x.shape)
    for place in np.ndindex(*x.shape):
        w = (window * views[1][place]).ravel()
        v = views[0][place].ravel()[w > 0]
        y[place] = of(v, w[w > 0], x[place], counts[place])
    return y


def deviation(v: Array, w: Array) -> float:
    return float(np.sqrt(np.cov(v, aweights=w, ddof=0)))


def z_score(v: Array, w: Array, own: float, counts: float) -> float:
    return (own - np.average(v, weights=w)) / deviation(v, w) if counts > 0 else -5


def derivative(x: Array, sigma: Any, orders: Any) -> Array:
    """A Gaussian derivative of mirrored voxels (d, h, w), as one kernel of three axes."""
    profiles = []
    for s, order in zip(sigma, orders, strict=True):
        r = int(4 * s + 0.5)
        k = np.arange(-r, r + 1)
        g = np.exp(-(k**2) / (2 * s * s))
        own = [g / g.sum(), k * g, (k**2 / s**2 - 1) * g][order]
        own = own - own.mean() if order == 2 else own
        profiles.append(own if order == 0 else own * order / (own * k**order).sum())
    pads = [len(p) // 2 for p in profiles]
    padded = np.pad(x, [(n, n) for n in pads], mode="symmetric")
    found = np.zeros(x.shape)
    for (i, a), (j, b), (k, c) in itertools.product(*map(enumerate, profiles)):
        found += a * b * c * padded[i : i + x.shape[0], j : j + x.shape[1], k : k + x.shape[2]]
    return found


MATRIX = ((0, 0), (0, 2), (2, 2), (0, 1), (1, 2), (1, 1))


def hessians(x: Array, sigma: Any, per: Any) -> Array:
    """Second derivatives (d, h, w, 3, 3) of one channel, times factors of each axis."""
    found = np.empty((*x.shape, 3, 3))
    for a, b in itertools.product(range(3), repeat=2):
        orders = [int(n == a) + int(n == b) for n in range(3)]
        found[..., a, b] = derivative(x, sigma, orders) * per[a] * per[b]
    return found


def at_best_scale(
    x: Array, scales: Any, of: Callable[..., float], sign: int, *constants: Any
) -> Array:
    """The largest of a measure of three eigenvalues over all scales, for each channel and voxel."""
    found = np.zeros(x.shape)
    for channel, (number, sigma) in itertools.product(range(x.shape[3]), enumerate(scales)):
        values = np.linalg.eigvalsh(sign * hessians(x[..., channel], sigma, sigma))
        place = channel * len(scales) + number
        own = [c if np.ndim(c) == 0 else c[0, 0, 0, place] for c in constants]
        for at in np.ndindex(*x.shape[:3]):
            value = of(sorted(values[at], key=abs), *own)
            found[(*at, channel)] = max(found[(*at, channel)], value)
    return found


def and_best_scale(x: Array, scales: Any, of: Any, sign: int, lengths: list[float]) -> Array:
    """The largest of a measure and the length of its scale, channel by channel."""
    each = np.stack([at_best_scale(x, [scale], of, sign) for scale in scales])
    best = np.where(each.max(axis=0) > 0, np.array(lengths)[each.argmax(axis=0)], 0)
    return np.stack([each.max(axis=0), best], axis=-1).reshape(*x.shape[:3], -1)


def frangi(v: Any, largest: float) -> float:
    if v[1] <= 0 or v[2] <= 0:
        return 0.0
    a, b, s = (
        v[1] / v[2],
        abs(v[0]) / math.sqrt(v[1] * v[2]),
        math.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2),
    )
    c = largest / 2
    return (
        (1 - math.exp(-a * a / 0.5)) * math.exp(-b * b / 0.5) * (1 - math.exp(-s * s / (2 * c * c)))
    )


def jerman(v: Any, largest: float) -> float:
    if v[1] <= 0 or v[2] <= 0:
        return 0.0
    third = max(v[2], 0.75 * largest)
    return 1.0 if v[1] >= third / 2 else v[1] ** 2 * (third - v[1]) * (3 / (v[1] + third)) ** 3


def neurite(v: Any, largest: float) -> float:
    own = [v[n] - (v[(n + 1) % 3] + v[(n + 2) % 3]) / 4 for n in range(3)]
    best = max(own, key=abs)
    return max(best, 0.0) / largest


def sheet(v: Any, c: float) -> float:
    if v[2] <= 0:
        return 0.0
    return math.exp(-((v[1] / v[2]) ** 2) / 0.5) * (
        1 - math.exp(-sum(x * x for x in v) / (2 * c * c))
    )


def blob(v: Any, c: float) -> float:
    if min(v) <= 0:
        return 0.0
    ratio = v[0] ** 2 / (v[1] * v[2])
    return (1 - math.exp(-ratio / 0.5)) * (1 - math.exp(-sum(x * x for x in v) / (2 * c * c)))


def sato(v: Any) -> float:
    return math.sqrt(max(sorted(v)[1], 0) * max(sorted(v)[2], 0))


def maxima(x: Array, scales: Any, of: Callable[..., float], sign: int) -> Array:
    """The largest number in each plane, for each channel and scale."""
    found = np.zeros((len(x), 1, 1, x.shape[3] * len(scales)))
    for channel, (number, sigma) in itertools.product(range(x.shape[3]), enumerate(scales)):
        values = np.linalg.eigvalsh(sign * hessians(x[..., channel], sigma, sigma))
        for d, h, w in np.ndindex(*x.shape[:3]):
            value = max(of(sorted(values[d, h, w], key=abs)), 0.0)
            place = d, 0, 0, channel * len(scales) + number
            found[place] = max(found[place], value)
    return found


def slope_products(x: Array, sigma: Any, per: Any) -> Array:
    found = []
    for channel in range(x.shape[3]):
        slopes = [
            derivative(x[..., channel], sigma, [int(n == axis) for n in range(3)]) * per[axis]
            for axis in range(3)
        ]
        found += [slopes[a] * slopes[b] for a, b in MATRIX]
    return np.stack(found, 3)


def averaged(x: Array, sigma: Any) -> Array:
    """The matrices (d, h, w, 3, 3) of the first six channels."""
    found = np.empty((*x.shape[:3], 3, 3))
    for place, (a, b) in enumerate(MATRIX):
        found[..., a, b] = found[..., b, a] = derivative(x[..., place], sigma, (0, 0, 0))
    return found


def upward(vectors: Array) -> Array:
    """Vectors (d, h, w, 3), turned so that their first number is positive."""
    return vectors * np.sign(vectors[..., :1])


def features(matrices: Array, of_hessian: bool) -> Array:
    values, vectors = np.linalg.eigh(matrices)
    low, middle, high = np.moveaxis(values, 3, 0)
    found = [high, middle, low]
    if not of_hessian:
        found += [
            np.sqrt(1.5 * values.var(3) * 3 / (values**2).sum(3)),
            np.where(high > 0, (middle - low) / high, 0),
            np.where(high > 0, (high - middle) / high, 0),
        ]
    for largest in (False, True):
        size = np.abs(values) if of_hessian else values
        which = size.argmax(3) if largest else size.argmin(3)
        own = np.take_along_axis(vectors, which[..., None, None], 4)[..., 0]
        found += list(np.moveaxis(upward(own @ TURN.T), 3, 0))
    return np.stack(found, 3)


TURN = np.array([[0, 1, 0], [0.6, 0, -0.8], [0.8, 0, 0.6]])
FINE, COARSE = (0.6, 0.5, 0.7), (0.8, 0.9, 0.5)
SCALES = [list(FINE), list(COARSE)]
K, B = weights(3, 2, 3, 4, 6), weights(6)
T, TB = weights(3, 2, 4, 5, 4), weights(5)
G, H, MEAN, VARIANCE = positive(4), weights(4), weights(4), positive(4)
SIZE = (5, 6, 7, 4)
CROSS = (
    np.abs(np.indices((3, 3, 5)) - np.array([1, 1, 2])[:, None, None, None]).sum(0) < 3
) * positive(3, 3, 5)

# name -> (operation, attributes, weights, shapes of the inputs, the same by plain loops)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Array], list[Any], Callable[..., Array]]] = {
    "conv": ("Conv3D", {"padding": "same", "strides": [1, 2, 1]}, {"kernel": K, "bias": B}, [SIZE],
        lambda x: oracle.conv3d(x[None], K, B, padding="same", strides=(1, 2, 1))[0]),
    "conv, all": ("Conv3D", {"padding": [[1, 0], [0, 2], [1, 1]], "dilation_rate": 2, "groups": 2,
        "activation": "tanh", "filters": 6, "kernel_size": [3, 2, 3], "use_bias": False},
        {"kernel": K[..., :2, :]}, [SIZE],
        lambda x: np.tanh(oracle.conv3d(np.pad(x, ((1, 0), (0, 2), (1, 1), (0, 0)))[None], K[..., :2, :],
            None, padding="valid", dilation_rate=(2, 2, 2), groups=2)[0])),
    "transposed": ("Conv3DTranspose", {"strides": [2, 3, 1]}, {"kernel": T, "bias": TB}, [SIZE],
        lambda x: transposed(x, T, (2, 3, 1), (1, 1, 1), (0, 0, 0), (11, 18, 10)) + TB),
    "transposed, same": ("Conv3DTranspose", {"strides": 2, "padding": "same", "use_bias": False,
        "activation": "relu"}, {"kernel": T}, [SIZE],
        lambda x: np.maximum(transposed(x, T, (2, 2, 2), (1, 1, 1), (0, 0, 1), (10, 12, 14)), 0)),
    "transposed, dilated": ("Conv3DTranspose", {"dilation_rate": [2, 1, 3], "padding": "same"},
        {"kernel": T}, [SIZE],
        lambda x: transposed(x, T, (1, 1, 1), (2, 1, 3), (2, 0, 4), (5, 6, 7))),
    "transposed, cut": ("Conv3DTranspose", {"strides": 3, "padding": [[1, 2], [0, 1], [2, 2]],
        "output_padding": [0, 1, 2]}, {"kernel": T}, [SIZE],
        lambda x: transposed(x, T, (3, 3, 3), (1, 1, 1), (1, 0, 2), (12, 17, 20))),
    "dense": ("Dense", {"activation": "sigmoid"}, {"kernel": K[0, 0, 0], "bias": B}, [SIZE],
        lambda x: 1 / (1 + np.exp(-(x @ K[0, 0, 0] + B)))),
    "batch norm": ("BatchNormalization", {"epsilon": 0.01},
        {"gamma": G, "beta": H, "moving_mean": MEAN, "moving_variance": VARIANCE}, [SIZE],
        lambda x: (x - MEAN) / np.sqrt(VARIANCE + 0.01) * G + H),
    "batch norm, plain": ("BatchNormalization", {"center": False, "scale": False},
        {"moving_mean": MEAN, "moving_variance": VARIANCE}, [SIZE],
        lambda x: (x - MEAN) / np.sqrt(VARIANCE + 1e-3)),
    "group norm": ("GroupNormalization", {"groups": 2}, {"gamma": G, "beta": H}, [SIZE],
        lambda x: in_groups(x, 2, G, H)),
    "instance norm": ("GroupNormalization", {"groups": -1, "scale": False}, {"beta": H}, [SIZE],
        lambda x: in_groups(x, 4, 1, H)),
    "layer norm": ("LayerNormalization", {"epsilon": 0.1}, {"gamma": G, "beta": H}, [SIZE],
        lambda x: normalized(x, 3, G, H, 0.1)),
    "normalization": ("Normalization", {}, {"mean": MEAN, "variance": VARIANCE}, [SIZE],
        lambda x: (x - MEAN) / np.sqrt(VARIANCE)),
    "normalization undone": ("Normalization", {"invert": True, "mean": [2.0], "variance": [4.0]}, {}, [SIZE],
        lambda x: x * 2 + 2),
    "rescaling": ("Rescaling", {"scale": 0.5, "offset": [1, 2, 3, 4]}, {}, [SIZE],
        lambda x: x / 2 + [1, 2, 3, 4]),
    "activation": ("Activation", {"activation": "elu"}, {}, [SIZE], lambda x: np.where(x > 0, x, np.expm1(x))),
    "softmax": ("Activation", {"activation": "softmax"}, {}, [SIZE],
        lambda x: np.exp(x) / np.exp(x).sum(3, keepdims=True)),
    "glu": ("Activation", {"activation": "glu"}, {}, [SIZE],
        lambda x: x[..., :2] / (1 + np.exp(-x[..., 2:]))),
    "prelu": ("PReLU", {}, {"alpha": MEAN[None, None, None]}, [SIZE], lambda x: np.where(x > 0, x, x * MEAN)),
    "max": ("MaxPooling3D", {"pool_size": [2, 3, 1], "padding": "same"}, {}, [SIZE],
        lambda x: pooled(x, (2, 3, 1), (2, 3, 1), (0, 0, 0), (3, 2, 7), np.max)),
    "max, overlapping": ("MaxPooling3D", {"pool_size": 3, "strides": [1, 2, 3], "padding": "same"}, {}, [SIZE],
        lambda x: pooled(x, (3, 3, 3), (1, 2, 3), (1, 0, 1), (5, 3, 3), np.max)),
    "mean": ("AveragePooling3D", {"pool_size": 3, "strides": 2}, {}, [SIZE],
        lambda x: pooled(x, (3, 3, 3), (2, 2, 2), (0, 0, 0), (2, 2, 3), np.mean)),
    "mean, same": ("AveragePooling3D", {"pool_size": [3, 4, 2], "strides": 1, "padding": "same"}, {}, [SIZE],
        lambda x: pooled(x, (3, 4, 2), (1, 1, 1), (1, 1, 0), (5, 6, 7), np.mean)),
    "mean of zeros, too": ("AveragePooling3D",
        {"pool_size": 2, "padding": [[1, 0], [0, 0], [1, 1]], "count_include_pad": True}, {}, [SIZE],
        lambda x: pooled(np.pad(x, ((1, 0), (0, 0), (1, 1), (0, 0))), (2, 2, 2), (2, 2, 2), (0, 0, 0), (3, 3, 4), np.mean)),
    "global max": ("GlobalMaxPooling3D", {}, {}, [SIZE], lambda x: x.max((0, 1, 2), keepdims=True)),
    "global mean": ("GlobalAveragePooling3D", {}, {}, [SIZE], lambda x: x.mean((0, 1, 2), keepdims=True)),
    "up": ("UpSampling3D", {"size": [1, 2, 3]}, {}, [SIZE], lambda x: x.repeat(2, 1).repeat(3, 2)),
    "pads": ("ZeroPadding3D", {"padding": [[1, 0], [2, 3], [0, 1]]}, {}, [SIZE],
        lambda x: np.pad(x, ((1, 0), (2, 3), (0, 1), (0, 0)))),
    "border": ("BorderPadding3D", {"padding": [[1, 0], [2, 3], [0, 9]]}, {}, [SIZE],
        lambda x: np.pad(x, ((1, 0), (2, 3), (0, 9), (0, 0)), mode="edge")),
    "mirror": ("BorderPadding3D", {"padding": [[4, 3], [0, 5], [6, 1]], "mode": "reflect"}, {}, [SIZE],
        lambda x: np.pad(x, ((4, 3), (0, 5), (6, 1), (0, 0)), mode="reflect")),
    "clip": ("Clip", {"least": [-0.5, 0, 2, -9], "largest": 0.75}, {}, [SIZE],
        lambda x: np.minimum(np.maximum(x, [-0.5, 0, 2, -9]), 0.75)),
    "channels": ("TakeChannels", {"channels": [3, 0, 0]}, {}, [SIZE], lambda x: np.stack([x[..., 3], x[..., 0], x[..., 0]], 3)),
    "label": ("ArgMax", {}, {}, [SIZE],
        lambda x: np.array([max(range(4), key=list(v).__getitem__) for v in x.reshape(-1, 4)]).reshape(5, 6, 7, 1)),
    "last label": ("ArgMax", {"last": True}, {}, [SIZE],
        lambda x: np.array([list(v).index(max(v)) for v in x.reshape(-1, 4)]).reshape(5, 6, 7, 1)),
    "nearest": ("Resize", {"scales": [2.0, 0.5, 1.5], "coordinates": "asymmetric", "rounding": "floor"}, {}, [SIZE],
        lambda x: x[[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]][:, [0, 2, 4]][:, :, [0, 0, 1, 2, 2, 3, 4, 4, 5, 6]]),
    "linear": ("Resize", {"sizes": [10, 3, 21], "mode": "linear"}, {}, [SIZE],
        lambda x: between(x, [(np.arange(10) + 0.5) / 2 - 0.5, (np.arange(3) + 0.5) * 2 - 0.5, (np.arange(21) + 0.5) / 3 - 0.5])),
    "linear, corners": ("Resize", {"sizes": [9, 1, 4], "mode": "linear", "coordinates": "align_corners"}, {}, [SIZE],
        lambda x: between(x, [np.arange(9) / 2, np.zeros(1), np.arange(4) * 2.0])),
    "to the size of another": ("Resize", {"coordinates": "asymmetric", "rounding": "floor"}, {}, [SIZE, (10, 6, 14, 2)],
        lambda x, y: x.repeat(2, 0).repeat(2, 2)),
    "max, gaps": ("MaxPooling3D", {"pool_size": [2, 3, 2], "strides": [1, 1, 2], "padding": "same", "dilation_rate": [3, 2, 1]},
        {}, [SIZE], lambda x: pooled(x, (2, 3, 2), (1, 1, 2), (1, 2, 0), (5, 6, 4), np.max, (3, 2, 1))),
    "mean, gaps": ("AveragePooling3D", {"pool_size": 2, "strides": [2, 1, 1], "padding": [[1, 1], [0, 0], [2, 0]],
        "dilation_rate": [2, 1, 4]}, {}, [SIZE],
        lambda x: pooled(x, (2, 2, 2), (2, 1, 1), (1, 0, 2), (3, 5, 5), np.mean, (2, 1, 4))),
    "mean of all, gaps": ("AveragePooling3D", {"pool_size": 2, "strides": 1, "padding": [[1, 1], [0, 0], [2, 0]],
        "dilation_rate": [2, 1, 4], "count_include_pad": True}, {}, [SIZE],
        lambda x: pooled(np.pad(x, ((1, 1), (0, 0), (2, 0), (0, 0))), (2, 2, 2), (1, 1, 1), (0, 0, 0), (5, 5, 5), np.mean, (2, 1, 4))),
    "pads of a value": ("ZeroPadding3D", {"padding": 2, "value": 1.5}, {}, [SIZE],
        lambda x: np.pad(x, ((2, 2), (2, 2), (2, 2), (0, 0)), constant_values=1.5)),
    "crops": ("Cropping3D", {"cropping": [[1, 0], [0, 2], [1, 1]]}, {}, [SIZE], lambda x: x[1:, :-2, 1:-1]),
    "add": ("Add", {}, {}, [SIZE] * 3, lambda a, b, c: a + b + c),
    "add to each": ("Add", {}, {}, [SIZE, (1, 1, 1, 4)], lambda a, b: a + b),
    "subtract": ("Subtract", {}, {}, [SIZE] * 2, lambda a, b: a - b),
    "multiply": ("Multiply", {}, {}, [SIZE] * 3, lambda a, b, c: a * b * c),
    "multiply all channels": ("Multiply", {}, {}, [(5, 6, 7, 1), SIZE], lambda a, b: a * b),
    "divide": ("Divide", {}, {}, [SIZE] * 2, lambda a, b: a / b),
    "average": ("Average", {}, {}, [SIZE] * 3, lambda a, b, c: (a + b + c) / 3),
    "maximum": ("Maximum", {}, {}, [SIZE] * 2, np.maximum),
    "minimum": ("Minimum", {}, {}, [SIZE] * 2, np.minimum),
    "concatenate": ("Concatenate", {}, {}, [SIZE, (5, 6, 7, 1), SIZE], lambda *a: np.concatenate(a, 3)),
    "identity": ("Identity", {}, {}, [SIZE], lambda x: x),
    "flatten": ("Flatten", {}, {}, [(1, 1, 1, 4)], lambda x: x),
    "reshape": ("Reshape", {"target_shape": [1, 1, 1, -1]}, {}, [(1, 1, 1, 4)], lambda x: x),
    "permute": ("Permute", {"dims": [1, 2, 3, 4]}, {}, [SIZE], lambda x: x),
    "affine": ("Affine", {}, {"scale": G, "offset": H}, [SIZE], lambda x: x * G + H),
    "statistics": ("Statistics", {"groups": 2}, {}, [SIZE],
        lambda x: np.array([*(p.mean() for p in np.split(x, 2, 3)), *(p.var() for p in np.split(x, 2, 3))])[None, None, None]),
    "normalize": ("Normalize", {"epsilon": 0.1}, {"gamma": G, "beta": H}, [SIZE, (1, 1, 1, 4)],
        lambda x, s: (x - np.repeat(s[0, 0, 0, :2], 2)) / np.sqrt(np.repeat(s[0, 0, 0, 2:], 2) + 0.1) * G + H),
    "deviation": ("LocalStatistics", {"statistic": "std"}, {"window": np.ones((3, 5, 3))}, [SIZE],
        lambda x: in_windows(x, np.ones((3, 5, 3)), lambda v, w, own, counts: np.std(v))),
    "correlation": ("NormalizedCorrelation", {}, {"window": CROSS > 0}, [SIZE, SIZE],
        lambda x, s: np.clip(s / in_windows(x, CROSS > 0, lambda v, w, own, counts: np.std(v)), -1, 1)),
    "z-score": ("LocalStatistics", {"statistic": "zscore", "empty": -5}, {"window": CROSS}, [SIZE, (5, 6, 7, 1)],
        lambda x, c: in_windows(x, CROSS, z_score, c)),
    "sample": ("LocalStatistics", {"statistic": "variance", "ddof": 1, "empty": -5}, {"window": CROSS}, [SIZE, SIZE],
        lambda x, c: in_windows(x, CROSS, lambda v, w, own, counts: np.cov(v, aweights=w, ddof=1) if len(v) > 1 else -5, c)),
    "interleave": ("Interleave", {"strides": [1, 1, 2], "added": [0, 0, 1], "phases": [[[[0, 0]], [[0, 0]], [[0, 0], [1, 0]]]]},
        {"fill": np.zeros(2)}, [(5, 6, 7, 4)],
        lambda x: np.concatenate([x.reshape(5, 6, 14, 2), np.zeros((5, 6, 1, 2))], 2)),
    "present": ("Present", {"nan": True, "value": 0.0}, {}, [SIZE],
        lambda x: np.vectorize(lambda v: float(math.isfinite(v) and v != 0))(x)),
    "present, all": ("Present", {}, {}, [SIZE], np.ones_like),
    "replaced": ("ReplaceMissing", {"nan": True, "value": 1.0}, {}, [SIZE],
        lambda x: np.vectorize(lambda v: v if math.isfinite(v) and v != 1 else 0.0)(x)),
    "finite": ("OnlyFinite", {}, {}, [SIZE], np.copy),
    "mask": ("MaskCertainty", {}, {}, [SIZE], lambda x: np.abs(x)[..., :1]),
    "inside": ("Inside", {}, {}, [SIZE, (*SIZE[:3], 1)],
        lambda x, m: np.array([v * (m[place[:3]][0] > 0) for place, v in np.ndenumerate(x)]).reshape(x.shape)),
    "inside, kept": ("Inside", {}, {}, [SIZE, (*SIZE[:3], 1), SIZE],
        lambda x, m, y: np.array([v if m[p[:3]][0] > 0 else y[p] for p, v in np.ndenumerate(x)]).reshape(x.shape)),
    "tubes": ("Ridges", {"method": "frangi", "scales": SCALES}, {}, [(5, 6, 7, 2), (1, 1, 1, 4)],
        lambda x, m: at_best_scale(x, SCALES, frangi, -1, m)),
    "dark tubes": ("Ridges", {"method": "jerman", "scales": SCALES, "bright": False}, {}, [(5, 6, 7, 2), (1, 1, 1, 4)],
        lambda x, m: at_best_scale(x, SCALES, jerman, 1, m)),
    "neurites": ("Ridges", {"method": "meijering", "scales": SCALES}, {}, [(5, 6, 7, 2), (1, 1, 1, 4)],
        lambda x, m: at_best_scale(x, SCALES, neurite, -1, m)),
    "lines": ("Ridges", {"method": "sato", "scales": SCALES}, {}, [(5, 6, 7, 2)],
        lambda x: at_best_scale(x, SCALES, sato, -1)),
    "lines and scales": ("Ridges", {"method": "sato", "scales": SCALES, "lengths": [0.25, 3.5]}, {}, [(5, 6, 7, 2)],
        lambda x: and_best_scale(x, SCALES, sato, -1, [0.25, 3.5])),
    "sheets": ("Ridges", {"scales": SCALES, "shape": "plate", "c": 1.5}, {}, [(5, 6, 7, 2)],
        lambda x: at_best_scale(x, SCALES, sheet, -1, 1.5)),
    "blobs": ("Ridges", {"scales": SCALES, "shape": "blob", "c": 0.5}, {}, [(5, 6, 7, 2)],
        lambda x: at_best_scale(x, SCALES, blob, -1, 0.5)),
    "largest norms": ("RidgeMaxima", {"method": "frangi", "scales": SCALES}, {}, [(5, 6, 7, 2)],
        lambda x: maxima(x, SCALES, lambda v: math.sqrt(sum(n * n for n in v)), -1)),
    "largest eigenvalues": ("RidgeMaxima", {"method": "jerman", "scales": SCALES}, {}, [(5, 6, 7, 2)],
        lambda x: maxima(x, SCALES, lambda v: v[2], -1)),
    "largest neurites": ("RidgeMaxima", {"method": "meijering", "scales": SCALES}, {}, [(5, 6, 7, 2)],
        lambda x: maxima(x, SCALES, lambda v: neurite(v, 1), -1)),
    "products of slopes": ("SlopeProducts", {"sigma": list(COARSE), "per": [0.5, 1.0, 2.0]}, {}, [(5, 6, 7, 2)],
        lambda x: slope_products(x, COARSE, (0.5, 1, 2))),
    "structure": ("WindowedTensor", {"sigma": list(COARSE), "axes": TURN.tolist(), "outputs":
        ["eigenvalues", "coherence", "linearity", "planarity", "orientation", "normal"]}, {}, [(5, 6, 7, 6)],
        lambda x: features(averaged(x, COARSE), False)),
    "structure of slopes": ("StructureTensor", {"sigma": list(COARSE), "per": [0.5, 1.0, 2.0], "window":
        list(FINE), "axes": TURN.tolist(), "outputs":
        ["eigenvalues", "coherence", "linearity", "planarity", "orientation", "normal"]}, {}, [(5, 6, 7, 2)],
        lambda x: np.concatenate([features(averaged(slope_products(x[..., n:][..., :1], COARSE,
            (0.5, 1, 2)), FINE), False) for n in range(2)], 3)),
    "curvature": ("HessianTensor", {"sigma": list(COARSE), "per": [0.5, 1.0, 2.0], "axes": TURN.tolist(),
        "outputs": ["eigenvalues", "orientation", "normal"]}, {}, [(5, 6, 7, 1)],
        lambda x: features(hessians(x[..., 0], COARSE, (0.5, 1, 2)), True)),
    "deconvolved": ("RichardsonLucy", {"iterations": 2, "background": 0.1, "boundary": "symmetric"},
        {"kernel": np.array([[[0.2, 0.5, 0.3]]])}, [SIZE], lambda y: deconvolved(y)),
}  # fmt: skip
# phases that no input has, and another place for each input
CASES["interleave, filled"] = (
    "Interleave",
    {"strides": [3, 1, 1], "added": [0, 0, 0],
     "phases": [[[[0, 0]], [[0, 0]], [[0, 0]]], [[[2, 1]], [[0, 0]], [[0, 0]]]]},
    {"fill": H}, [SIZE, (6, 6, 7, 4)],
    lambda a, b: np.stack([a, np.broadcast_to(H, a.shape), b[1:]], 1).reshape(15, 6, 7, 4),
)  # fmt: skip
del CASES["interleave"]  # its last output has no voxel: see `test_interleaved_phases`


def deconvolved(y: Array) -> Array:
    """Two iterations of Richardson-Lucy along the width, with a matrix for the blur."""
    width = y.shape[2]
    blur = np.zeros((width, width))
    for place in range(width):
        for tap, weight in ((-1, 0.2), (0, 0.5), (1, 0.3)):
            blur[place, min(max(place + tap, 0), width - 1)] += weight
    x = np.broadcast_to(y.mean(axis=(0, 1, 2)) - 0.1, y.shape)
    for _ in range(2):
        ratio = y / (np.einsum("ij,dhjc->dhic", blur, x) + 0.1)
        x = x * np.einsum("ij,dhic->dhjc", blur, ratio) / blur.sum(axis=0)[:, None]
    return x


def made(name: str) -> tuple[Operation, list[Array], Array]:
    """An operation, inputs for it, and the right output."""
    operation, attributes, arrays, shapes, plain = CASES[name]
    own = np.random.default_rng(len(name))
    inputs = [own.standard_normal(shape).astype(np.float32).astype(np.float64) for shape in shapes]
    if operation == "Inside":
        inputs[1] = np.where(inputs[1] > 0, 1.0, 0.0)
    if operation in ("Present", "ReplaceMissing"):
        inputs[0][::3] = np.round(inputs[0][::3] * 0)
        inputs[0][1, 2] = [np.nan, np.inf, -np.inf, 1]
    if operation == "RichardsonLucy":
        inputs[0] = np.abs(inputs[0]) + 0.5
    if operation in ("Normalize", "Ridges"):
        inputs[1:] = [np.abs(x) for x in inputs[1:]]
    if operation == "LocalStatistics":  # certainties, of which a few are 0
        clipped = [np.clip(np.abs(x) - 0.2, 0, 1).astype(np.float32) for x in inputs[1:]]
        inputs[1:] = [x.astype(np.float64) for x in clipped]
    sources = tuple(f"x{n}" for n in range(len(shapes)))
    node = Node("it", operation, sources, attributes, arrays)
    operation_made = make_operation(node, [Shape(*shape) for shape in shapes])
    if isinstance(operation_made, MaskCertainty):
        operation_made.certainty_in = lambda box: np.abs(inputs[0])[box.slices][..., :1]
    return operation_made, inputs, plain(*inputs)


def windows(operation: Operation, inputs: list[Array], box: Box, dtype: Any) -> list[Window]:
    found = []
    for number, x in enumerate(inputs):
        taken = spans_of(operation, number, box)
        assert all(0 <= a < b <= n for (a, b), n in zip(taken, x.shape[:3], strict=True)), taken
        found.append(Window(x[taken.slices].astype(dtype), taken.start))
    return found


def random_boxes(size: tuple[int, ...], count: int) -> list[Box]:
    own = np.random.default_rng(1)
    boxes = [Box.whole(size)]
    for _ in range(count):
        spans = [sorted(own.choice(n + 1, 2, replace=False).tolist()) for n in size]
        boxes.append(Box(*(tuple(span) for span in spans)))
    return boxes


def test_every_operation_has_a_case() -> None:
    assert {case[0] for case in CASES.values()} == {*OPERATIONS, *INNER, *PARTS}


@pytest.mark.parametrize("name", CASES)
def test_the_definition_is_that_of_plain_loops(name: str) -> None:
    operation, inputs, expected = made(name)
    assert operation.shape == expected.shape
    for box in random_boxes(operation.shape.size, 12):
        got = operation.define(windows(operation, inputs, box, np.float64), box)
        np.testing.assert_allclose(got, expected[box.slices], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_fast_way_is_the_definition_and_has_its_bits_in_every_box(
    name: str, dtype: Any
) -> None:
    operation, inputs, expected = made(name)
    if isinstance(operation, WeightedSum) or operation.node.operation == "GroupNormalization":
        pytest.skip("it is run as others, see test_lowering.py")
    rounding = 4e-6 if dtype == np.float32 else 1e-13
    whole = np.empty(operation.shape, dtype)
    tops = windows(operation, inputs, Box.whole(operation.shape), np.float64)
    allowed = np.full(expected.shape, 10 * rounding) * (1 + np.abs(expected))
    if operation.node.operation not in INNER:  # of those nobody asks for bounds
        exact = [Window(np.zeros_like(w.voxels), w.start) for w in tops]
        allowed = operation.bounds(tops, exact, Box.whole(operation.shape), rounding)
    with Team(2) as team, Team(1) as one:
        if operation.iterates:
            fields = operation.iterate(
                lambda start, stop: inputs[0][start:stop].astype(dtype),
                lambda: Field(np.empty(operation.shape.size, dtype)),
                np.dtype(dtype),
                team,
                lambda channel, number, field, data: None,
            )
            found = np.stack([field.voxels for field in fields], axis=3)
            assert np.all(np.abs(found - expected) <= allowed)
            return
        if operation.needs_whole:
            results = []
            for count in (1, 3):  # planes at once
                gathered = operation.begin()
                for start in range(0, len(inputs[0]), count):
                    planes = inputs[0][start : start + count].astype(dtype)
                    gathered = operation.gather(gathered, planes, team)
                results.append(operation.result(gathered))
            np.testing.assert_array_equal(*results)
            assert np.all(np.abs(results[0] - expected) <= allowed + 1e-30)
            return
        for box in random_boxes(operation.shape.size, 12):
            for number, own in enumerate((team, one)):
                taken = windows(operation, inputs, box, dtype)
                if number:  # as a view of a larger array, whose rows are not contiguous
                    taken = [_within_larger(window) for window in taken]
                out = np.full((*box.size, operation.shape.channels), 7, dtype)
                operation.compute(taken, box, out, own)
                if box == Box.whole(operation.shape):
                    whole = out
                np.testing.assert_array_equal(out, whole[box.slices])
    assert np.all(np.abs(whole - expected) <= allowed + 1e-30)


def _within_larger(window: Window) -> Window:
    larger = np.full([n + 2 for n in window.voxels.shape], np.nan, window.voxels.dtype)
    larger[1:-1, 1:-1, 1:-1, 1:-1] = window.voxels
    return Window(larger[1:-1, 1:-1, 1:-1, 1:-1], window.start)


@pytest.mark.parametrize("name", CASES)
def test_errors_stay_within_the_bounds(name: str) -> None:
    """Inputs that are off by as much as is told change the output by no more than the bounds."""
    operation, inputs, expected = made(name)
    if operation.node.operation in INNER:
        pytest.skip("nobody asks for them")
    box = Box.whole(operation.shape)
    off = 1e-3
    own = np.random.default_rng(3)
    errors = [Window(np.full_like(x, off), (0, 0, 0)) for x in inputs]
    allowed = operation.bounds([Window(x, (0, 0, 0)) for x in inputs], errors, box, 1e-7)
    for _ in range(5):
        moved = [Window(x + off * own.choice([-1.0, 1.0], x.shape), (0, 0, 0)) for x in inputs]
        if operation.node.operation == "LocalStatistics":  # certainties are not below 0
            moved[1:] = [Window(np.maximum(window.voxels, 0), (0, 0, 0)) for window in moved[1:]]
        moves = np.abs(operation.define(moved, box) - expected)
        assert np.all(moves <= allowed * (1 + 1e-9) + 1e-12)


@pytest.mark.parametrize(
    "name", ["max", "mean", "add", "prelu", "pads", "batch norm", "global max", "maximum"]
)
def test_nan_stays_nan_and_where_it_was(name: str) -> None:
    operation, inputs, _ = made(name)
    for x in inputs:
        x[2, 3, 4, 1] = np.nan
    box = Box.whole(operation.shape)
    with np.errstate(invalid="ignore"):
        expected = np.isnan(operation.define([Window(x, (0, 0, 0)) for x in inputs], box))
    assert expected.any()
    assert not expected[..., 0].any()
    out = np.empty(operation.shape, np.float32)
    with Team(1) as team:
        if operation.needs_whole:
            out = operation.result(operation.gather(operation.begin(), inputs[0], team))
        else:
            operation.compute([Window(x.astype("f4"), (0, 0, 0)) for x in inputs], box, out, team)
    np.testing.assert_array_equal(np.isnan(out), expected)


def test_transforms_tell_where_voxels_lie() -> None:
    """The centre of what an output is computed from, along each axis."""
    for name in ("max", "mean", "up", "pads", "crops", "conv"):
        operation, _, _ = made(name)
        step, offset = operation.transform.step, operation.transform.offset
        for axis in range(3):
            middle = operation.shape[axis] // 2
            first, last = operation.span(0, axis, (middle, middle + 1))
            centre = step[axis] * middle + offset[axis]
            assert first - 0.5 <= centre <= last - 0.5, (name, axis)


WRONG: list[tuple[str, str, dict[str, Any], dict[str, Array], list[Any], type[Conv3DError], str]] = [
    ("unknown operation", "Convolution3D", {}, {}, [SIZE], SpecError, "unknown operation 'Convolution3D'"),
    ("other argument", "MaxPooling3D", {"size": 2}, {}, [SIZE], SpecError, "unknown argument 'size'"),
    ("no weights", "BatchNormalization", {}, {"gamma": G}, [SIZE], SpecError, "lacks its weights 'moving_variance'"),
    ("other weights", "PReLU", {}, {"alpha": MEAN, "beta": H}, [SIZE], SpecError, "weights 'beta', which this operation does not use"),
    ("weights of other channels", "Dense", {}, {"kernel": weights(3, 2)}, [SIZE], ShapeError, "of shape 4xany"),
    ("one input", "Add", {}, {}, [SIZE], SpecError, "takes 2 or more inputs, received 1"),
    ("two inputs", "MaxPooling3D", {}, {}, [SIZE, SIZE], SpecError, "takes 1 input, received 2"),
    ("sizes", "Concatenate", {}, {}, [SIZE, (5, 6, 6, 4)], ShapeError, "'x0' has 5x6x7, 'x1' has 5x6x6"),
    ("channels", "Add", {}, {}, [SIZE, (5, 6, 7, 3)], ShapeError, "'x0' has 4, 'x1' has 3"),
    ("no voxel left", "Cropping3D", {"cropping": 3}, {}, [SIZE], ShapeError, "leaves no voxel along depth"),
    ("pool too large", "AveragePooling3D", {"pool_size": 6}, {}, [SIZE], ShapeError, "leaves no voxel along depth"),
    ("a word", "MaxPooling3D", {"padding": "full"}, {}, [SIZE], SpecError, "needs valid or same or same_lower for padding"),
    ("zero", "UpSampling3D", {"size": 0}, {}, [SIZE], SpecError, "at least 1 for size"),
    ("groups", "GroupNormalization", {"groups": 3}, {}, [SIZE], ShapeError, "must divide the 4 channels"),
    ("a word of groups", "Conv3DTranspose", {"groups": True}, {"kernel": T}, [SIZE], SpecError, "whole number of at least 1 for groups, received True"),
    ("groups of no channel", "GroupNormalization", {"groups": 0}, {}, [SIZE], SpecError, "at least 1 for groups, received 0"),
    ("groups of a convolution", "Conv3D", {"groups": 3}, {"kernel": K}, [SIZE], ShapeError, "groups=3, which must divide the 4 channels"),
    ("slopes of voxels", "PReLU", {}, {"alpha": weights(5, 6, 7, 4)}, [SIZE], ShapeError, "shared_axes=[1, 2, 3]"),
    ("a vector", "Flatten", {}, {}, [SIZE], SpecError, "one vector of a volume"),
    ("moved voxels", "Reshape", {"target_shape": [6, 5, 7, 4]}, {}, [SIZE], SpecError, "moves voxels"),
    ("turned axes", "Permute", {"dims": [2, 1, 3, 4]}, {}, [SIZE], SpecError, "permutes the axes"),
    ("odd glu", "Activation", {"activation": "glu"}, {}, [(2, 2, 2, 3)], ShapeError, "odd number: 3"),
    ("axis", "Activation", {"activation": "softmax:axis=1"}, {}, [SIZE], SpecError, "axis of the channels"),
    ("no number", "ZeroPadding3D", {"value": "1"}, {}, [SIZE], SpecError, "needs a finite number for value, received '1'"),
    ("NaN epsilon", "BatchNormalization", {"epsilon": math.nan}, {}, [SIZE], SpecError, "needs a finite number for epsilon, received nan"),
    ("NaN weights", "PReLU", {}, {"alpha": np.full((1, 1, 1, 4), np.nan)}, [SIZE], ShapeError, "NaN or infinite"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[0])
def test_what_does_not_fit_names_the_node(case: Any) -> None:
    _, operation, attributes, arrays, shapes, error, words = case
    sources = tuple(f"x{n}" for n in range(len(shapes)))
    node = Node("it", operation, sources, attributes, arrays)
    with pytest.raises(error) as refused:
        make_operation(node, [Shape(*shape) for shape in shapes])
    assert "node 'it'" in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_transposed_size_is_that_of_the_plain_sum() -> None:
    """Along one axis, for all small kernels, strides, dilations and paddings that Keras takes."""
    for k, s, d, padding, more in itertools.product(
        (1, 2, 3, 4), (1, 2, 3), (1, 2), ("valid", "same"), (None, 0, 1)
    ):
        if (s > 1 and d > 1) or (more is not None and more >= s):
            continue
        kernel = weights(k, 1, 1, 1, 1)
        attributes = {"strides": [s, 1, 1], "dilation_rate": [d, 1, 1], "padding": padding}
        if more is not None:
            attributes["output_padding"] = [more, 0, 0]
        node = Node("t", "Conv3DTranspose", ("x",), attributes, {"kernel": kernel})
        operation = make_operation(node, [Shape(5, 1, 1, 1)])
        extent = (k - 1) * d + 1
        # Keras' documentation of output_padding, and of its absence
        if padding == "valid":
            length = 4 * s + extent + (max(s - extent, 0) if more is None else more)
        else:
            length = 5 * s if more is None else 4 * s + extent % 2 + more
        assert operation.shape.depth == length, (k, s, d, padding, more)
        assert math.prod(operation.shape.size) == length
