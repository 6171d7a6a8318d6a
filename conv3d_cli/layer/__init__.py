"""Keras' activations, initializers, regularizers and constraints, and Keras' JSON of a layer.

The functions below find an entry by its identifier. They import its catalogue only when called,
since most jobs need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conv3d_cli.layer.activations import Activation
    from conv3d_cli.layer.constraints import Constraint
    from conv3d_cli.layer.initializers import Initializer
    from conv3d_cli.layer.regularizers import Regularizer


def get_activation(identifier: Any) -> Activation:
    """The activation that an identifier names: see `activations.get`.

    >>> get_activation("relu").text
    'relu'
    """
    from conv3d_cli.layer import activations

    return activations.get(identifier)


def get_initializer(identifier: Any, seed: int | None = None) -> Initializer | None:
    """The initializer that an identifier names: see `initializers.get`.

    >>> get_initializer("zeros")((2,)).tolist()
    [0.0, 0.0]
    """
    from conv3d_cli.layer import initializers

    return initializers.get(identifier, seed=seed)


def get_regularizer(identifier: Any) -> Regularizer | None:
    """The regularizer that an identifier names: see `regularizers.get`.

    >>> get_regularizer("l2:l2=0.5")([1.0, -2.0])
    2.5
    """
    if identifier is None:
        return None
    from conv3d_cli.layer import regularizers

    return regularizers.get(identifier)


def get_constraint(identifier: Any) -> Constraint | None:
    """The constraint that an identifier names: see `constraints.get`.

    >>> get_constraint("non_neg")([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """
    if identifier is None:
        return None
    from conv3d_cli.layer import constraints

    return constraints.get(identifier)
