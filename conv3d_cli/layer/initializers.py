"""Keras' initializers: the first weights of a layer, with Keras' distributions, bounds and fans.

The numbers depend on seed and shape alone. PCG64, seeded by SeedSequence((seed, *shape)), yields
64-bit words, which NumPy keeps the same from version to version. A uniform number is the
upper 53 bits of a word divided by 2^53. Two of them, u and v, yield two normal numbers,
√(-2 log(1 - u)) · (cos, sin)(2πv) (Box and Muller). A truncated normal distribution takes those
within two standard deviations, in order. Keras' own bits differ, also between its backends.
To add an initializer, write a dataclass with `__call__` and `get_config` and put it into
`INITIALIZERS`.
Source: Keras 3, keras/src/initializers/random_initializers.py and constant_initializers.py.
"""

from __future__ import annotations

import inspect
import math
import numbers
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, unknown_name
from conv3d_cli.layer._catalogue import (
    by_name,
    check_keys,
    keras_dict,
    of_keras,
    plain,
    read_identifier,
    require_number,
)

Array = NDArray[Any]
# the standard deviation of the standard normal distribution truncated at ±2
TRUNCATED_STDDEV = 0.87962566103423978


class Initializer:
    """The base class of initializers."""

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        """Weights, a new array.

        shape : sequence of int     of a kernel (kd, kh, kw, in_channels / groups, filters), or any
        dtype : dtype               of the array
        Raises: ShapeError for a shape that is none, or that the initializer cannot fill.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The parameters in Keras 3's form. Raises: SpecError for a Python function."""
        raise NotImplementedError


# --------------------------------------------------------------------------------------------------
# Constants


@dataclass(frozen=True)
class Zeros(Initializer):
    """0 everywhere

    >>> Zeros()((2,)).tolist()
    [0.0, 0.0]
    """

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        return np.zeros(_shape(shape), dtype)

    def get_config(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Ones(Initializer):
    """1 everywhere

    >>> Ones()((2,)).tolist()
    [1.0, 1.0]
    """

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        return np.ones(_shape(shape), dtype)

    def get_config(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Constant(Initializer):
    """One value everywhere

    >>> Constant(0.5)((2,)).tolist()
    [0.5, 0.5]
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        require_number(self.value, "value of Constant")

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        return np.full(_shape(shape), self.value, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"value": self.value}


@dataclass(frozen=True)
class Identity(Initializer):
    """gain · the identity matrix

    Raises: ShapeError when called with another rank than 2, such as that of a Conv3D kernel.
    >>> Identity()((2, 2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        require_number(self.gain, "gain of Identity")

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        if len(shape) != 2:
            raise ShapeError(
                "the identity initializer can only be used for 2D matrices, received "
                f"shape={shape} of rank {len(shape)}"
            )
        return (self.gain * np.eye(*shape)).astype(dtype)

    def get_config(self) -> dict[str, Any]:
        return {"gain": self.gain}


# --------------------------------------------------------------------------------------------------
# Random numbers


def derived_seed(seed: int, purpose: str) -> int:
    """The seed of a layer's kernel or bias, derived from the layer's seed so that the two differ.

    It is the first word of SeedSequence((seed, number of letters, *letters of `purpose`)).

    >>> derived_seed(1, "kernel") == derived_seed(1, "kernel") != derived_seed(1, "bias")
    True
    """
    letters = purpose.encode()
    sequence = np.random.SeedSequence((_non_negative(seed), len(letters), *letters))
    return int(sequence.generate_state(1)[0])


def _non_negative(seed: int) -> int:
    return seed % (1 << 64)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(shape)
    if not all(
        isinstance(n, numbers.Integral) and not isinstance(n, bool) and n >= 0 for n in sizes
    ):
        raise ShapeError(f"a shape is whole numbers of at least 0, received {sizes!r}")
    return tuple(int(n) for n in sizes)


class _RandomStream:
    """The random numbers of a seed and a shape; see the module's docstring."""

    def __init__(self, seed: int, shape: Sequence[int]) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence((_non_negative(seed), *shape)))

    def uniform(self, count: int) -> Array:
        """Uniform numbers in [0, 1), float64."""
        return (self.bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> Array:
        """Normal numbers of mean 0 and standard deviation 1, float64."""
        pairs = self.uniform(2 * -(-count // 2)).reshape(-1, 2)
        radius = np.sqrt(-2 * np.log1p(-pairs[:, 0]))
        angle = 2 * math.pi * pairs[:, 1]
        drawn = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return drawn.reshape(-1)[:count]

    def truncated_normal(self, count: int) -> Array:
        """Numbers of `normal` without those beyond ±2, float64."""
        values = np.empty(count)
        filled = 0
        while filled < count:
            drawn = self.normal(2 * (count - filled) + 16)
            kept = drawn[np.abs(drawn) <= 2][: count - filled]
            values[filled : filled + kept.size] = kept
            filled += kept.size
        return values


def _round_within(values: Array, low: float, high: float, dtype: Any, half_open: bool) -> Array:
    """Values rounded to a dtype without leaving [low, high], or [low, high) if `half_open`.

    The bounds hold also where the dtype cannot represent them.
    """
    rounded = values.astype(dtype)
    if rounded.dtype.kind != "f":
        return rounded
    least, most = rounded.dtype.type(low), rounded.dtype.type(high)
    # compare Python floats: NumPy would round the bounds first
    least = np.nextafter(least, np.inf, dtype=rounded.dtype) if float(least) < low else least
    if float(most) > high or (half_open and float(most) >= high):
        most = np.nextafter(most, -np.inf, dtype=rounded.dtype)
    return np.clip(rounded, least, most) if low < high else rounded


@dataclass(frozen=True)
class RandomInitializer(Initializer):
    """The base class of initializers with a seed.

    seed : int or None      None: the object draws a seed when it is made, so every call gives the
                            same weights, and another object other ones
    """

    seed: int | None = field(default=None, kw_only=True)
    drawn: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _read_seed(self.seed))
        object.__setattr__(self, "drawn", secrets.randbits(32) if self.seed is None else self.seed)
        for entry in fields(self):
            if entry.type == "float":
                require_number(getattr(self, entry.name), f"{entry.name} of {type(self).__name__}")

    def numbers(self, shape: Sequence[int]) -> _RandomStream:
        """The random numbers for weights of a shape."""
        return _RandomStream(self.drawn, shape)


def _read_seed(seed: Any) -> int | None:
    """The seed of an identifier: an int, None, or Keras' dict of a SeedGenerator.

    Raises: SpecError for anything else.
    """
    if isinstance(seed, Mapping) and seed.get("class_name") == "SeedGenerator":
        config = seed.get("config")
        seed = config.get("seed") if isinstance(config, Mapping) else None
    if seed is None:
        return None
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
        raise SpecError(f"seed must be a whole number, received {seed!r}")
    return int(seed)


@dataclass(frozen=True)
class RandomNormal(RandomInitializer):
    """Normal distribution with a mean and a standard deviation

    >>> round(RandomNormal(stddev=2, seed=1)((3, 3, 3, 4, 8)).std().item(), 1)
    2.0
    """

    mean: float = 0.0
    stddev: float = 0.05

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        values = self.numbers(shape).normal(math.prod(shape))
        return (self.mean + self.stddev * values).reshape(shape).astype(dtype)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "mean": self.mean, "stddev": self.stddev}


@dataclass(frozen=True)
class RandomUniform(RandomInitializer):
    """Uniform distribution in [minval, maxval)

    >>> w = RandomUniform(minval=1, maxval=2, seed=1)((3, 3, 3))
    >>> bool((w >= 1).all() and (w < 2).all())
    True
    """

    minval: float = -0.05
    maxval: float = 0.05

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        uniform = self.numbers(shape).uniform(math.prod(shape))
        values = self.minval + (self.maxval - self.minval) * uniform
        return _round_within(values.reshape(shape), self.minval, self.maxval, dtype, half_open=True)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "minval": self.minval, "maxval": self.maxval}


@dataclass(frozen=True)
class TruncatedNormal(RandomInitializer):
    """Normal distribution, redrawn beyond mean ± 2 · stddev

    The truncation reduces the standard deviation to 0.8796 · stddev.
    >>> w = TruncatedNormal(seed=1)((3, 3, 3, 4, 8))
    >>> bool(abs(w).max() <= 0.1), round(w.std().item(), 3)
    (True, 0.044)
    """

    mean: float = 0.0
    stddev: float = 0.05

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        values = self.mean + self.stddev * self.numbers(shape).truncated_normal(math.prod(shape))
        spread = 2 * abs(self.stddev)
        low, high = self.mean - spread, self.mean + spread
        return _round_within(values.reshape(shape), low, high, dtype, half_open=False)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "mean": self.mean, "stddev": self.stddev}


def compute_fans(
    shape: Sequence[int],
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> tuple[int, int]:
    """The numbers of inputs and outputs of a weight array, (fan_in, fan_out), as Keras counts them.

    shape : (kd, kh, kw, in_channels / groups, filters), or any
    input_axes, output_axes : axes whose sizes are multiplied; None for Keras' rule
    With groups, fan_in is kernel voxels · in_channels / groups, while fan_out is kernel voxels ·
    all filters.
    Raises: ShapeError for axes that the shape does not have.
    >>> compute_fans((3, 3, 3, 4, 8)), compute_fans((8,))
    ((108, 216), (8, 8))
    """
    if input_axes is not None and output_axes is not None:
        try:
            return math.prod(shape[a] for a in input_axes), math.prod(shape[a] for a in output_axes)
        except (IndexError, TypeError) as error:
            raise ShapeError(
                f"input_axes={input_axes} and output_axes={output_axes} do not fit weights of "
                f"shape {tuple(shape)}"
            ) from error
    if len(shape) < 1:
        return 1, 1
    if len(shape) == 1:
        return shape[0], shape[0]
    taps = math.prod(shape[:-2])
    return shape[-2] * taps, shape[-1] * taps


MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")


@dataclass(frozen=True)
class VarianceScaling(RandomInitializer):
    """Distribution of variance scale / n, where n is fan_in, fan_out or their mean

    scale : float           above 0
    mode : str              "fan_in", "fan_out" or "fan_avg"
    distribution : str      "truncated_normal" (or "normal"), truncated at ±2.2737 · √(scale / n)
                            so that its standard deviation is √(scale / n); "untruncated_normal";
                            or "uniform" in ±√(3 · scale / n)
    input_axes, output_axes : lists of axes or None, see `compute_fans`

    >>> w = VarianceScaling(scale=3, distribution="uniform", seed=1)((3, 3, 3, 1, 8))
    >>> bool(abs(w).max() < (9 / 27) ** 0.5)
    True
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    input_axes: Sequence[int] | None = None
    output_axes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise SpecError(
                f"argument scale must be a positive float, received scale={self.scale!r}"
            )
        if self.mode not in MODES:
            raise SpecError(f"invalid mode argument: {self.mode!r}; use one of {', '.join(MODES)}")
        distribution = str(self.distribution).lower()
        distribution = "truncated_normal" if distribution == "normal" else distribution
        if distribution not in DISTRIBUTIONS:
            raise SpecError(
                f"invalid distribution argument: {self.distribution!r}; use one of "
                f"{', '.join(DISTRIBUTIONS)}"
            )
        object.__setattr__(self, "distribution", distribution)
        for key in ("input_axes", "output_axes"):
            axes = getattr(self, key)
            object.__setattr__(self, key, list(axes) if isinstance(axes, tuple) else axes)

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        fan_in, fan_out = compute_fans(shape, self.input_axes, self.output_axes)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, n)
        stream, count = self.numbers(shape), math.prod(shape)
        if self.distribution == "untruncated_normal":
            return (math.sqrt(variance) * stream.normal(count)).reshape(shape).astype(dtype)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            values = limit * (2 * stream.uniform(count) - 1)
        else:
            stddev = math.sqrt(variance) / TRUNCATED_STDDEV
            limit = 2 * stddev
            values = stddev * stream.truncated_normal(count)
        half_open = self.distribution == "uniform"
        return _round_within(values.reshape(shape), -limit, limit, dtype, half_open)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"seed": self.seed}
        if type(self) is VarianceScaling:
            config |= {"scale": self.scale, "mode": self.mode, "distribution": self.distribution}
        return config | {
            "input_axes": plain(self.input_axes),
            "output_axes": plain(self.output_axes),
        }


def _fixed(value: Any) -> Any:
    """A field with a value that the constructor does not take."""
    return field(default=value, init=False, repr=False)


@dataclass(frozen=True)
class GlorotUniform(VarianceScaling):
    """Uniform distribution in ±√(6 / (fan_in + fan_out))

    Source: X. Glorot and Y. Bengio, Understanding the difficulty of training deep feedforward
    neural networks, 2010.
    >>> w = GlorotUniform(seed=1)((3, 3, 3, 1, 1)); bool(abs(w).max() < (6 / 54) ** 0.5)
    True
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_avg")
    distribution: str = _fixed("uniform")


@dataclass(frozen=True)
class GlorotNormal(VarianceScaling):
    """Truncated normal distribution of standard deviation √(2 / (fan_in + fan_out))

    Source: that of GlorotUniform.
    >>> round(GlorotNormal(seed=1)((3, 3, 3, 8, 8)).std().item(), 2)
    0.07
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_avg")
    distribution: str = _fixed("truncated_normal")


@dataclass(frozen=True)
class HeUniform(VarianceScaling):
    """Uniform distribution in ±√(6 / fan_in)

    Source: K. He and others, Delving Deep into Rectifiers, arXiv:1502.01852.
    >>> w = HeUniform(seed=1)((3, 3, 3, 1, 1)); bool(abs(w).max() < (6 / 27) ** 0.5)
    True
    """

    scale: float = _fixed(2.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("uniform")


@dataclass(frozen=True)
class HeNormal(VarianceScaling):
    """Truncated normal distribution of standard deviation √(2 / fan_in)

    Source: that of HeUniform.
    >>> round(HeNormal(seed=1)((3, 3, 3, 8, 8)).std().item(), 2)
    0.1
    """

    scale: float = _fixed(2.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("truncated_normal")


@dataclass(frozen=True)
class LecunUniform(VarianceScaling):
    """Uniform distribution in ±√(3 / fan_in)

    Source: G. Klambauer and others, Self-Normalizing Neural Networks, arXiv:1706.02515.
    >>> w = LecunUniform(seed=1)((3, 3, 3, 1, 1)); bool(abs(w).max() < (3 / 27) ** 0.5)
    True
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("uniform")


@dataclass(frozen=True)
class LecunNormal(VarianceScaling):
    """Truncated normal distribution of standard deviation √(1 / fan_in)

    Source: that of LecunUniform.
    >>> round(LecunNormal(seed=1)((3, 3, 3, 8, 8)).std().item(), 2)
    0.07
    """

    scale: float = _fixed(1.0)
    mode: str = _fixed("fan_in")
    distribution: str = _fixed("truncated_normal")


@dataclass(frozen=True)
class Orthogonal(RandomInitializer):
    """gain · a matrix with orthonormal columns, or orthonormal rows if it has fewer rows

    The rows of the matrix are all axes of the weights but the last one. It is the Q of a QR
    decomposition of normal numbers, with the signs of its columns from R's diagonal.
    Raises: ShapeError when called for a single axis (a bias).
    Source: A. Saxe and others, Exact solutions to the nonlinear dynamics of learning in deep linear
    networks, arXiv:1312.6120.
    >>> w = Orthogonal(seed=1)((3, 3, 3, 1, 4)).reshape(27, 4)
    >>> bool(np.allclose(w.T @ w, np.eye(4), atol=1e-6))
    True
    """

    gain: float = 1.0

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        if len(shape) < 2:
            raise ShapeError(
                "orthogonal: the tensor to initialize must be at least two-dimensional, "
                f"received shape={shape} of rank {len(shape)}"
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = max(rows, columns), min(rows, columns)
        q, r = np.linalg.qr(self.numbers(shape).normal(rows * columns).reshape(tall))
        q = q * np.sign(np.diagonal(r))
        if rows < columns:
            q = q.T
        drawn: Array = (self.gain * q).reshape(shape).astype(dtype)
        return drawn

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "gain": self.gain}


@dataclass(frozen=True)
class FunctionInitializer(Initializer):
    """A Python function of shape and dtype as an initializer; it cannot be written to a config.

    >>> FunctionInitializer(lambda shape, dtype: np.full(shape, 3, dtype))((2,)).tolist()
    [3.0, 3.0]
    """

    function: Callable[..., Any]

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> Array:
        shape = _shape(shape)
        values = np.asarray(self.function(shape, dtype=dtype))
        if values.shape != shape:
            raise ShapeError(
                f"the initializer made shape {values.shape}, expected {shape}; return an array of "
                "this shape"
            )
        return values.astype(dtype, copy=False)

    def get_config(self) -> dict[str, Any]:
        raise SpecError(
            "an initializer that is a Python function or an array cannot be written to a config"
        )


INITIALIZERS: tuple[type[Initializer], ...] = (
    Zeros,
    Ones,
    Constant,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
    GlorotUniform,
    GlorotNormal,
    HeUniform,
    HeNormal,
    LecunUniform,
    LecunNormal,
    Orthogonal,
    Identity,
)
ALIASES = {
    "zero": "zeros",
    "one": "ones",
    "normal": "random_normal",
    "uniform": "random_uniform",
    "IdentityInitializer": "Identity",
    "OrthogonalInitializer": "Orthogonal",
}
_BY_NAME = by_name(INITIALIZERS)


def names() -> list[str]:
    """Names of all initializers.

    >>> names()[:4]
    ['zeros', 'ones', 'constant', 'random_normal']
    """
    return [name for name in _BY_NAME if name.islower()]


def get(identifier: Any, seed: int | None = None) -> Initializer | None:
    """The initializer that an identifier names, as `keras.initializers.get` finds it.

    identifier : None, which gives None; the name of a class, also in snake case, perhaps with
        parameters (`random_normal:stddev=0.1:seed=3`); Keras' dict; an initializer or its class; a
        Python function of (shape, dtype); an array, whose shape is then the only possible one
    seed : int or None      for a random initializer whose identifier has no seed
    Raises: UnknownNameError, which suggests the nearest name; SpecError for wrong parameters, and
        for stft.

    >>> get("he_normal", seed=3), get("zero")
    (HeNormal(seed=3, input_axes=None, output_axes=None), Zeros())
    >>> get({"class_name": "Constant", "config": {"value": 2}})
    Constant(value=2)
    """
    initializer = _find(of_keras(identifier))
    if seed is not None and isinstance(initializer, RandomInitializer) and initializer.seed is None:
        return replace(initializer, seed=seed)
    return initializer


def _find(identifier: Any) -> Initializer | None:
    """See `get`; the seed is that of the identifier."""
    if identifier is None or isinstance(identifier, Initializer):
        return identifier
    if isinstance(identifier, (str, Mapping)):
        name, config = read_identifier(identifier, "initializer")
        if name in ("stft", "STFT", "STFTInitializer"):
            raise SpecError(
                f"{name} makes kernels of three axes (Conv1D); the kernel of a Conv3D has five"
            )
        plain_name = name.removesuffix("V2")  # Keras 2 has names such as glorot_uniformV2
        cls = _BY_NAME.get(ALIASES.get(plain_name, plain_name))
        if cls is None:
            raise unknown_name("initializer", name, names())
        if isinstance(identifier, Mapping) and isinstance(config, Mapping):
            # older versions of Keras 2 added a dtype
            config = {key: value for key, value in config.items() if key != "dtype"}
        check_keys(name, config, cls)
        initializer: Initializer = cls(**config)
        return initializer
    if isinstance(identifier, (np.ndarray, np.generic)):
        values = np.asarray(identifier)
        return FunctionInitializer(lambda shape, dtype: values)
    if inspect.isclass(identifier) and issubclass(identifier, Initializer):
        return identifier()
    if callable(identifier):
        return FunctionInitializer(identifier)
    raise unknown_name("initializer", identifier, names())


def serialize(initializer: Initializer | None) -> dict[str, Any] | None:
    """Keras 3's dict of an initializer; None for None. A seed that was not given is None.

    Raises: SpecError for a Python function or an array.
    >>> serialize(get("zeros"))["class_name"]
    'Zeros'
    """
    if initializer is None:
        return None
    return keras_dict("keras.initializers", type(initializer).__name__, initializer.get_config())
