"""Keras' regularizers: penalties of weights or of a layer's output.

Sums are computed in float64. To add a regularizer, write a dataclass with `__call__` and
`get_config` and put it into `REGULARIZERS`.
Source: Keras 3, keras/src/regularizers/regularizers.py.
"""

from __future__ import annotations

import inspect
import math
import numbers
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
)


class Regularizer:
    """The base class of regularizers.

    additive : bool     the penalty of an array is the sum of the penalties of its parts, so that it
                        can be summed slab by slab
    """

    additive = True

    def __call__(self, x: ArrayLike) -> float:
        """The penalty of an array of real numbers. Raises: ShapeError for a rank it cannot take."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The parameters in Keras 3's form. Raises: SpecError for a Python function."""
        raise NotImplementedError


def _factor(value: Any, name: str) -> float:
    """The value as a factor. Raises: SpecError unless it is a finite number of at least 0."""
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value < 0
    ):
        raise SpecError(
            f"invalid value for argument {name}: expected a non-negative float, received "
            f"{name}={value!r}"
        )
    return float(value)


def _sum(x: NDArray[Any]) -> float:
    with np.errstate(over="ignore"):  # the sum is infinity then
        return float(np.sum(x, dtype=np.float64))


def _squares(x: ArrayLike) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.square(np.asarray(x, np.float64))


@dataclass(frozen=True)
class L1(Regularizer):
    """l1 · sum of |w|

    l1 : float      at least 0; rounded to float32, as in Keras (0.01 becomes 0.009999999776482582)

    >>> round(L1(0.5)([1.0, -2.0]), 6)
    1.5
    """

    l1: float = 0.01

    def __post_init__(self) -> None:
        value = 0.01 if self.l1 is None else self.l1
        object.__setattr__(self, "l1", float(np.float32(_factor(value, "l1"))))

    def __call__(self, x: ArrayLike) -> float:
        return self.l1 * _sum(np.abs(x))

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1}


@dataclass(frozen=True)
class L2(Regularizer):
    """l2 · sum of w²

    l2 : float      at least 0

    >>> L2(0.5)([1.0, -2.0])
    2.5
    """

    l2: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "l2", _factor(0.01 if self.l2 is None else self.l2, "l2"))

    def __call__(self, x: ArrayLike) -> float:
        return self.l2 * _sum(_squares(x))

    def get_config(self) -> dict[str, Any]:
        return {"l2": self.l2}


@dataclass(frozen=True)
class L1L2(Regularizer):
    """l1 · sum of |w| + l2 · sum of w²

    l1, l2 : float      at least 0; the name `l1_l2`, Keras 2's function, sets both to 0.01
    >>> L1L2(l1=1, l2=0.5)([1.0, -2.0])
    5.5
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("l1", "l2"):
            value = getattr(self, name)
            object.__setattr__(self, name, _factor(0.0 if value is None else value, name))

    def __call__(self, x: ArrayLike) -> float:
        x = np.asarray(x, np.float64)
        return self.l1 * _sum(np.abs(x)) + self.l2 * _sum(_squares(x))

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1, "l2": self.l2}


@dataclass(frozen=True)
class OrthogonalRegularizer(Regularizer):
    """factor · mean of |cosine| over all pairs of rows (or columns) of a matrix

    factor : float      at least 0; rounded to float32
    mode : "rows" | "columns"
    Raises: ShapeError when called on an array of another rank, such as a Conv3D kernel.
    >>> round(OrthogonalRegularizer(factor=1)([[1.0, 0.0], [1.0, 1.0]]), 6)
    0.707107
    """

    factor: float = 0.01
    mode: str = "rows"
    additive = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", float(np.float32(_factor(self.factor, "factor"))))
        if self.mode not in ("rows", "columns"):
            raise SpecError(
                "invalid value for argument mode: expected 'rows' or 'columns', received "
                f"{self.mode!r}"
            )

    def __call__(self, x: ArrayLike) -> float:
        x = np.asarray(x, np.float64)
        if x.ndim != 2:
            raise ShapeError(
                f"inputs to OrthogonalRegularizer must have rank 2, received shape {x.shape}; the "
                "kernel of a Conv3D layer has rank 5"
            )
        vectors = x if self.mode == "rows" else x.T
        lengths = np.sqrt(np.sum(np.square(vectors), axis=1, keepdims=True))
        vectors = vectors / np.where(lengths > 0, lengths, 1)
        cosines = np.abs(vectors @ vectors.T)
        np.fill_diagonal(cosines, 0)
        pairs = len(vectors) * (len(vectors) - 1) / 2
        return self.factor * 0.5 * _sum(cosines) / pairs if pairs else 0.0

    def get_config(self) -> dict[str, Any]:
        return {"factor": self.factor, "mode": self.mode}


@dataclass(frozen=True)
class FunctionRegularizer(Regularizer):
    """A Python function of an array as a regularizer; it cannot be written to a config.

    >>> FunctionRegularizer(np.ptp)([1.0, 4.0])
    3.0
    """

    function: Callable[[Any], Any]
    additive = False

    def __call__(self, x: ArrayLike) -> float:
        return float(self.function(np.asarray(x)))

    def get_config(self) -> dict[str, Any]:
        raise SpecError("a regularizer that is a Python function cannot be written to a config")


REGULARIZERS: tuple[type[Regularizer], ...] = (L1, L2, L1L2, OrthogonalRegularizer)
_BY_NAME = by_name(REGULARIZERS)
_L1_L2 = "l1_l2"


def names() -> list[str]:
    """Names of all regularizers.

    >>> names()
    ['l1', 'l2', 'l1l2', 'l1_l2', 'orthogonal_regularizer']
    """
    snake_case = [name for name in _BY_NAME if name.islower()]
    return [*snake_case[:-1], _L1_L2, snake_case[-1]]


def get(identifier: Any) -> Regularizer | None:
    """The regularizer that an identifier names, as `keras.regularizers.get` finds it.

    identifier : None, which gives None; the name of a class, also in snake case, perhaps with
        parameters (`l1l2:l1=0.1:l2=0.2`); Keras' dict; a regularizer or its class; a Python
        function of an array
    Raises: UnknownNameError, which suggests the nearest name; SpecError for wrong parameters.

    >>> get("l2"), get("l1_l2"), get({"class_name": "L2", "config": {"l2": 0.5}})
    (L2(l2=0.01), L1L2(l1=0.01, l2=0.01), L2(l2=0.5))
    """
    identifier = of_keras(identifier)
    if identifier is None or isinstance(identifier, Regularizer):
        return identifier
    if isinstance(identifier, (str, Mapping)):
        name, config = read_identifier(identifier, "regularizer")
        if name == "function" and isinstance(config, str):
            name, config = config, {}
        cls = L1L2 if name == _L1_L2 else _BY_NAME.get(name)
        if cls is None:
            raise unknown_name("regularizer", name, names())
        check_keys(name, config, cls)
        defaults = {"l1": 0.01, "l2": 0.01} if name == _L1_L2 else {}
        regularizer: Regularizer = cls(**{**defaults, **config})
        return regularizer
    if inspect.isclass(identifier) and issubclass(identifier, Regularizer):
        return identifier()
    if callable(identifier):
        return FunctionRegularizer(identifier)
    raise unknown_name("regularizer", identifier, names())


def serialize(regularizer: Regularizer | None) -> dict[str, Any] | None:
    """Keras 3's dict of a regularizer; None for None. Raises: SpecError for a Python function.

    >>> serialize(L2())["config"]
    {'l2': 0.01}
    """
    if regularizer is None:
        return None
    return keras_dict("keras.regularizers", type(regularizer).__name__, regularizer.get_config())
