"""The kernel of a stage: read or drawn, made to fit the volume, flipped, normalized, constrained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.lengths import MAX_WEIGHTS, require_memory
from conv3d_cli.layer import get_constraint, get_initializer, get_regularizer
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import triple
from conv3d_cli.pipeline.kernel_adaptation import adapt_kernel
from conv3d_cli.pipeline.request import DRAWN_KERNEL, Stage

if TYPE_CHECKING:
    pass


def resolve_kernel(
    stage: Stage, shape: tuple[int, int, int, int, int], grid: Grid, notes: list[str], number: int
) -> tuple[Kernel, dict[str, float]]:
    """The stage's kernel for a volume (N, D, H, W, C) with its options applied, and the penalties of its weights.

    number : int        of the stage; the seed of a drawn kernel that has none
    In order: read or drawn, made to fit, flipped, normalized, bias set, constraints. What a constraint changed is noted.
    """
    if stage.kernel is None:
        seed = number if stage.seed is None else stage.seed
        kernel = draw_kernel(stage, shape[4], seed)
        if stage.seed is None:
            notes.append(
                f"kernel {kernel.name} is drawn by its initializer with seed {seed}; --seed N draws another"
            )
    else:
        given = stage.kernel if isinstance(stage.kernel, Kernel) else None
        kernel = given or read_kernel(str(stage.kernel), grid)
        kernel, found = adapt_kernel(
            kernel, None if given else str(stage.kernel), grid, stage.adaptation, stage.normalize
        )
        notes += found
    if stage.kernel_size is not None and kernel.size != triple(stage.kernel_size, "kernel_size"):
        raise ShapeError(
            f"kernel_size={stage.kernel_size} was asked for, but the kernel {kernel.name} is {kernel.size}"
        )
    if stage.magnitude and not kernel.is_bank:
        raise SpecError(
            f"magnitude is of several derivatives, as in sobel:axis=xyz, and {kernel.name} is one kernel; name its axes, or "
            "leave magnitude out"
        )
    if stage.flip:
        kernel = kernel.flipped()
    if stage.normalize:
        kernel = kernel.normalized()
    if not stage.use_bias:
        kernel = replace(kernel, bias=None)
    elif stage.bias is not None:
        kernel = replace(kernel, bias=np.asarray(stage.bias, np.float64))

    def layer_shaped(weights: np.ndarray) -> np.ndarray:
        return (
            weights
            if weights.ndim == 5
            else weights[..., None, :]
            if weights.ndim == 4
            else weights[..., None, None]
        )

    constrain, constrain_bias = (
        get_constraint(stage.kernel_constraint),
        get_constraint(stage.bias_constraint),
    )
    if constrain is not None:
        constrained = constrain(layer_shaped(kernel.weights))
        kernel = replace(kernel, weights=constrained.reshape(kernel.weights.shape))
        notes.append(
            f"kernel_constraint {_named(stage.kernel_constraint)} applied to kernel {kernel.name}"
        )
    if constrain_bias is not None and kernel.bias is not None:
        kernel = replace(kernel, bias=constrain_bias(kernel.bias))
        notes.append(
            f"bias_constraint {_named(stage.bias_constraint)} applied to the bias of {kernel.name}"
        )
    losses = {}
    penalty, bias_penalty = (
        get_regularizer(stage.kernel_regularizer),
        get_regularizer(stage.bias_regularizer),
    )
    if penalty is not None:
        losses["kernel"] = float(penalty(layer_shaped(kernel.weights)))
    if bias_penalty is not None and kernel.bias is not None:
        losses["bias"] = float(bias_penalty(kernel.bias))
    return kernel, losses


def _named(identifier: Any) -> str:
    """What messages call an initializer or constraint: its name as given, or its class."""
    if isinstance(identifier, Mapping):
        return str(identifier.get("class_name", identifier))
    return identifier if isinstance(identifier, str) else type(identifier).__name__


def draw_kernel(stage: Stage, channels: int, seed: int) -> Kernel:
    """A kernel drawn by the stage's initializers for a volume of `channels`: the same for the same seed.

    Raises: ShapeError if groups do not divide the channels; SpecError for more weights than any kernel may have.
    """
    from conv3d_cli.layer.initializers import derived_seed

    assert stage.kernel_size is not None
    assert stage.filters is not None
    if channels % stage.groups:
        raise ShapeError(
            f"groups must divide the input channels, received groups={stage.groups} and {channels} channels"
        )
    shape = (*triple(stage.kernel_size, "kernel_size"), channels // stage.groups, stage.filters)
    if math.prod(shape) > MAX_WEIGHTS:
        raise SpecError(
            f"a drawn kernel of shape {shape} would have more than {MAX_WEIGHTS:,} weights; give a smaller kernel_size or "
            "fewer filters"
        )
    require_memory(math.prod(shape), "drawn by its initializer")

    def draw(identifier: Any, which: str, shape: tuple[int, ...]) -> np.ndarray:
        # The same numbers as a Conv3D of this seed; None draws glorot_uniform, as in Keras. There is always a seed, where
        # Keras would draw one: the same input and options must give the same bytes.
        own = derived_seed(seed, which)
        initializer = get_initializer(DRAWN_KERNEL if identifier is None else identifier, seed=own)
        assert initializer is not None
        with np.errstate(over="ignore"):
            drawn = initializer(shape)
        if not np.isfinite(drawn).all():
            raise SpecError(
                f"{which}_initializer {_named(identifier)} gives numbers beyond float32, in which Keras draws; lower its "
                "parameters"
            )
        return drawn

    weights = draw(stage.kernel_initializer, "kernel", shape)
    bias = None
    if stage.use_bias and stage.bias is None:
        bias = draw(stage.bias_initializer, "bias", (stage.filters,))
    return Kernel(weights, bias, name=stage.name or _named(stage.kernel_initializer))
