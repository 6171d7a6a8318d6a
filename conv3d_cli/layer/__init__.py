"""Keras' words for what stands around a convolution: activations, initializers, regularizers, constraints, and its JSON.

The functions here find one by its identifier, and load its catalogue only then: most jobs need none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conv3d_cli.layer.activations import Activation
    from conv3d_cli.layer.constraints import Constraint
    from conv3d_cli.layer.initializers import Initializer
    from conv3d_cli.layer.regularizers import Regularizer


def get_activation(identifier: Any) -> Activation:
    """See `activations.get`."""
    from conv3d_cli.layer import activations

    return activations.get(identifier)


def get_initializer(identifier: Any, seed: int | None = None) -> Initializer | None:
    """See `initializers.get`."""
    from conv3d_cli.layer import initializers

    return initializers.get(identifier, seed=seed)


def get_regularizer(identifier: Any) -> Regularizer | None:
    """See `regularizers.get`."""
    if identifier is None:
        return None
    from conv3d_cli.layer import regularizers

    return regularizers.get(identifier)


def get_constraint(identifier: Any) -> Constraint | None:
    """See `constraints.get`."""
    if identifier is None:
        return None
    from conv3d_cli.layer import constraints

    return constraints.get(identifier)
