"""Keras' constraints: projections of weights, which Keras applies after each training step.

In the formulas n is the norm √(sum of w²) over `axis`, and e is Keras' epsilon (1e-7 unless
keras.json has another). axis=0 of a Conv3D kernel is its depth; the norm of a whole filter needs
axis=[0, 1, 2, 3]. Norms are computed in float64. To add a constraint, write a dataclass with
`__call__` and `get_config` and put it into `CONSTRAINTS`.
Source: Keras 3, keras/src/constraints/constraints.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv3d_cli.errors import ShapeError, SpecError, unknown_name
from conv3d_cli.layer._catalogue import (
    by_name,
    check_keys,
    keras_dict,
    of_keras,
    read_identifier,
    require_axis,
    require_number,
)
from conv3d_cli.layer._keras_json import settings

Array = NDArray[Any]


class Constraint:
    """The base class of constraints."""

    def __call__(self, w: ArrayLike) -> Array:
        """The constrained weights, a new array.

        w : array of any shape, of real numbers
        Returns the same shape; floats keep their dtype, other numbers become float32.
        Raises: ShapeError for other arrays, or an axis that they do not have.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The parameters in Keras 3's form. Raises: SpecError for a Python function."""
        raise NotImplementedError


def _weights(w: ArrayLike) -> Array:
    w = np.asarray(w)
    if w.dtype.kind not in "buif":
        raise ShapeError(f"weights must be real numbers, received dtype {w.dtype}")
    return w if w.dtype.kind == "f" else w.astype(np.float32)


def _norms(w: Array, axis: int | list[int]) -> Array:
    """The norms over axes, which are kept with length 1, in float64. Raises: ShapeError."""
    axes = tuple(axis) if isinstance(axis, list) else axis
    largest = float(np.abs(w).max(initial=0))
    unit = largest if largest > 1e150 else 1.0  # squares of larger numbers overflow
    try:
        squares: Array = np.sum(np.square(w / unit, dtype=np.float64), axis=axes, keepdims=True)
        return np.asarray(unit * np.sqrt(squares))
    except ValueError as error:  # AxisError, or a repeated axis
        raise ShapeError(f"axis={axis} does not fit weights of shape {w.shape}: {error}") from error


def _rescaled(w: Array, wanted: Array, norms: Array) -> Array:
    """The weights scaled from their norms to the wanted ones."""
    return (w * (wanted / (settings().epsilon + norms))).astype(w.dtype)


def _check(constraint: Any, *keys: str) -> None:
    """Check the parameters of a constraint: numbers, and the axis. Raises: SpecError."""
    name = type(constraint).__name__
    for key in keys:
        require_number(getattr(constraint, key), f"{key} of {name}")
    object.__setattr__(constraint, "axis", require_axis(constraint.axis, f"axis of {name}"))


@dataclass(frozen=True)
class MaxNorm(Constraint):
    """w · min(n, max_value) / (e + n)

    A vector within the bound is scaled as well, by n / (e + n).
    >>> MaxNorm(max_value=2)([[3.0], [4.0]]).round(6).tolist()
    [[1.2], [1.6]]
    """

    max_value: float = 2
    axis: int | list[int] = 0

    def __post_init__(self) -> None:
        _check(self, "max_value")

    def __call__(self, w: ArrayLike) -> Array:
        w = _weights(w)
        n = _norms(w, self.axis)
        return _rescaled(w, np.clip(n, 0, self.max_value), n)

    def get_config(self) -> dict[str, Any]:
        return {"max_value": self.max_value, "axis": self.axis}


@dataclass(frozen=True)
class UnitNorm(Constraint):
    """w / (e + n)

    >>> UnitNorm()([3.0, 4.0]).round(6).tolist()
    [0.6, 0.8]
    """

    axis: int | list[int] = 0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, w: ArrayLike) -> Array:
        w = _weights(w)
        n = _norms(w, self.axis)
        return _rescaled(w, np.ones_like(n), n)

    def get_config(self) -> dict[str, Any]:
        return {"axis": self.axis}


@dataclass(frozen=True)
class MinMaxNorm(Constraint):
    """w · (rate · min(max(n, min_value), max_value) + (1 - rate) · n) / (e + n)

    A vector of zeros is unchanged.
    >>> MinMaxNorm(min_value=10, max_value=20, rate=0.5)([3.0, 4.0]).round(6).tolist()
    [4.5, 6.0]
    """

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: int | list[int] = 0

    def __post_init__(self) -> None:
        _check(self, "min_value", "max_value", "rate")

    def __call__(self, w: ArrayLike) -> Array:
        w = _weights(w)
        n = _norms(w, self.axis)
        wanted = self.rate * np.clip(n, self.min_value, self.max_value) + (1 - self.rate) * n
        return _rescaled(w, wanted, n)

    def get_config(self) -> dict[str, Any]:
        return {
            "min_value": self.min_value,
            "max_value": self.max_value,
            "rate": self.rate,
            "axis": self.axis,
        }


@dataclass(frozen=True)
class NonNeg(Constraint):
    """max(w, 0)

    >>> NonNeg()([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """

    def __call__(self, w: ArrayLike) -> Array:
        return np.maximum(_weights(w), 0) + 0  # -0 becomes 0

    def get_config(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class FunctionConstraint(Constraint):
    """A Python function of weights as a constraint; it cannot be written to a config.

    >>> FunctionConstraint(np.abs)([-1.0]).tolist()
    [1.0]
    """

    function: Callable[[Any], Any]

    def __call__(self, w: ArrayLike) -> Array:
        w = _weights(w)
        result = np.asarray(self.function(w.copy()))
        if result.shape != w.shape:
            raise ShapeError(
                f"the constraint made shape {result.shape} of weights of shape {w.shape}; return "
                "an array of the same shape"
            )
        return result.astype(w.dtype, copy=False)

    def get_config(self) -> dict[str, Any]:
        raise SpecError("a constraint that is a Python function cannot be written to a config")


CONSTRAINTS: tuple[type[Constraint], ...] = (MaxNorm, UnitNorm, MinMaxNorm, NonNeg)
ALIASES = {
    "maxnorm": "max_norm",
    "unitnorm": "unit_norm",
    "nonneg": "non_neg",
    "minmaxnorm": "min_max_norm",
}
_BY_NAME = by_name(CONSTRAINTS)


def names() -> list[str]:
    """Names of all constraints.

    >>> names()
    ['max_norm', 'unit_norm', 'min_max_norm', 'non_neg']
    """
    return [name for name in _BY_NAME if name.islower()]


def get(identifier: Any) -> Constraint | None:
    """The constraint that an identifier names, as `keras.constraints.get` finds it.

    identifier : None, which gives None; the name of a class, also in snake case, perhaps with
        parameters (`max_norm:max_value=1:axis=0,1,2,3`); Keras' dict; a constraint or its class; a
        Python function of weights
    Raises: UnknownNameError, which suggests the nearest name; SpecError for wrong parameters, and
        for radial_constraint.

    >>> get("max_norm"), get("nonneg"), get({"class_name": "UnitNorm", "config": {"axis": [0, 1]}})
    (MaxNorm(max_value=2, axis=0), NonNeg(), UnitNorm(axis=[0, 1]))
    """
    identifier = of_keras(identifier)
    if identifier is None or isinstance(identifier, Constraint):
        return identifier
    if isinstance(identifier, (str, Mapping)):
        name, config = read_identifier(identifier, "constraint")
        if name in ("radial_constraint", "RadialConstraint"):
            raise SpecError(
                f"{name} is for Conv2D: the weights must have rank 4, and the kernel of a Conv3D "
                "has rank 5; use another constraint"
            )
        cls = _BY_NAME.get(ALIASES.get(name, name))
        if cls is None:
            raise unknown_name("constraint", name, names())
        check_keys(name, config, cls)
        constraint: Constraint = cls(**config)
        return constraint
    if inspect.isclass(identifier) and issubclass(identifier, Constraint):
        return identifier()
    if callable(identifier):
        return FunctionConstraint(identifier)
    raise unknown_name("constraint", identifier, names())


def serialize(constraint: Constraint | None) -> dict[str, Any] | None:
    """Keras 3's dict of a constraint; None for None. Raises: SpecError for a Python function.

    >>> serialize(UnitNorm())["config"]
    {'axis': 0}
    """
    if constraint is None:
        return None
    return keras_dict("keras.constraints", type(constraint).__name__, constraint.get_config())
