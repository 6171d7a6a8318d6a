"""Activations by Keras' names: functions that change an array in place.

The engine applies them to a tile's sums while those are in the cache. NaN stays NaN. To add one, write a function of one
array with its formula in the docstring and put it into `ACTIVATIONS`.
Source of names and formulas: Keras 3, keras/src/activations/activations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import unknown_name

Activation = Callable[[NDArray[Any]], None]


def linear(x: NDArray[Any]) -> None:
    """x"""


def relu(x: NDArray[Any]) -> None:
    """max(x, 0)

    >>> x = np.array([-1.0, 2.0]); relu(x); x.tolist()
    [0.0, 2.0]
    """
    np.maximum(x, 0, out=x)


def sigmoid(x: NDArray[Any]) -> None:
    """1 / (1 + exp(-x))

    >>> x = np.array([-1e4, 0.0]); sigmoid(x); x.tolist()
    [0.0, 0.5]
    """
    # exp overflows to infinity for very negative x, and 1 / infinity is the right 0
    with np.errstate(over="ignore"):
        np.negative(x, out=x)
        np.exp(x, out=x)
        x += 1
        np.reciprocal(x, out=x)


def tanh(x: NDArray[Any]) -> None:
    """tanh(x)"""
    np.tanh(x, out=x)


ACTIVATIONS: tuple[Activation, ...] = (linear, relu, sigmoid, tanh)


def names() -> list[str]:
    """Names of all activations.

    >>> names()
    ['linear', 'relu', 'sigmoid', 'tanh']
    """
    return [function.__name__ for function in ACTIVATIONS]


def get(identifier: str | Activation | None) -> Activation:
    """The activation of a name; None is linear; a function stands for itself.

    Raises: UnknownNameError, with the nearest name suggested.
    """
    if identifier is None:
        return linear
    if callable(identifier):
        return identifier
    for function in ACTIVATIONS:
        if function.__name__ == identifier:
            return function
    raise unknown_name("activation", identifier, names())
