"""The kernel of a stage: read or drawn, adapted to the volume, flipped, normalized, constrained."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, named, setting
from conv3d_cli.kernels import read_kernel
from conv3d_cli.kernels.lengths import MAX_WEIGHTS
from conv3d_cli.layer import get_constraint, get_initializer, get_regularizer
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.spec import triple
from conv3d_cli.pipeline.kernel_adaptation import adapt_kernel
from conv3d_cli.pipeline.request import DRAWN_KERNEL, Stage
from conv3d_cli.settings.needs import no_effect
from conv3d_cli.system.room import require_weights
from conv3d_cli.system.words import count_of


def resolve_kernel(
    stage: Stage,
    shape: tuple[int, int, int, int, int],
    grid: Grid,
    notes: list[str],
    number: int,
    asked: Collection[str] = (),
) -> tuple[Kernel, dict[str, float]]:
    """Read or draw a stage's kernel and apply the stage's options to it.

    shape : (N, D, H, W, C)     of the stage's input
    grid : Grid                 of the stage's input
    notes : list of str         extended by what the user should know
    number : int                position of the stage in its job, from 0; the seed of a drawn kernel
                                without one
    asked : collection of str   names of the options that were given
    The order is: read or draw, adapt to the grid, flip, normalize, set the bias, constrain.
    Returns the kernel, and the penalties of its weights by name ("kernel", "bias").
    Raises: FormatError, UnknownNameError, SpecError, ShapeError.
    """
    if stage.kernel is None:
        seed = number if stage.seed is None else stage.seed
        kernel = draw_kernel(stage, shape[4], seed)
        if stage.seed is None:
            notes.append(
                f"{kernel.title} is drawn by its initializer with seed {seed}; "
                f"{setting('seed')} draws another"
            )
    else:
        given = stage.kernel if isinstance(stage.kernel, Kernel) else None
        text = str(stage.kernel) if given is None else given.name if given.grid else None
        kernel = given or read_kernel(str(stage.kernel), grid)
        kernel, adaptation_notes = adapt_kernel(
            kernel, text, grid, stage.adaptation, stage.normalize
        )
        notes += [*(f"kernel {kernel.name}: {note}" for note in kernel.notes), *adaptation_notes]
    if stage.kernel_size is not None and kernel.size != triple(stage.kernel_size, "kernel_size"):
        raise ShapeError(
            f"{named('kernel_size')} must be the size of {kernel.title}, {kernel.size}, received "
            f"{stage.kernel_size}; correct it or leave it out"
        )
    if stage.magnitude and not kernel.is_bank:
        raise SpecError(
            f"{named('magnitude')} is for several derivatives, as in sobel:axis=xyz, but "
            f"{kernel.name} is one kernel; name its axes, or leave {named('magnitude')} out"
        )
    if stage.flip:
        kernel = kernel.flipped()
    if stage.normalize:
        kernel = kernel.normalized()
    if "no_bias" in asked and kernel.bias is None and stage.kernel is not None:
        notes.append(no_effect("no_bias", f"{kernel.title} has no bias"))
    if not stage.use_bias:
        kernel = replace(kernel, bias=None)
    elif stage.bias is not None:
        kernel = replace(kernel, bias=np.asarray(stage.bias, np.float64))
    if kernel.bias is None:
        idle = [name for name in ("bias_constraint", "bias_regularizer") if name in asked]
        notes += [no_effect(name, f"{kernel.title} has no bias") for name in idle]
    kernel = _constrained(kernel, stage, notes)
    return kernel, _penalties(kernel, stage)


def _constrained(kernel: Kernel, stage: Stage, notes: list[str]) -> Kernel:
    """Apply the stage's constraints to weights and bias, and note each."""
    constraint = get_constraint(stage.kernel_constraint)
    bias_constraint = get_constraint(stage.bias_constraint)
    if constraint is not None:
        weights = constraint(_as_layer_weights(kernel.weights))
        kernel = replace(kernel, weights=weights.reshape(kernel.weights.shape))
        notes.append(
            f"kernel_constraint {_describe(stage.kernel_constraint)} applied to kernel "
            f"{kernel.name}"
        )
    if bias_constraint is not None and kernel.bias is not None:
        kernel = replace(kernel, bias=bias_constraint(kernel.bias))
        notes.append(
            f"bias_constraint {_describe(stage.bias_constraint)} applied to the bias of "
            f"{kernel.name}"
        )
    return kernel


def _penalties(kernel: Kernel, stage: Stage) -> dict[str, float]:
    """The penalties of the stage's regularizers, by name ("kernel", "bias")."""
    regularizer = get_regularizer(stage.kernel_regularizer)
    bias_regularizer = get_regularizer(stage.bias_regularizer)
    penalties = {}
    if regularizer is not None:
        penalties["kernel"] = float(regularizer(_as_layer_weights(kernel.weights)))
    if bias_regularizer is not None and kernel.bias is not None:
        penalties["bias"] = float(bias_regularizer(kernel.bias))
    return penalties


def _as_layer_weights(weights: np.ndarray) -> np.ndarray:
    """Weights (kd, kh, kw), (kd, kh, kw, filters) or of a layer as (kd, kh, kw, in, filters)."""
    if weights.ndim == 4:
        return weights[..., None, :]
    return weights[..., None, None] if weights.ndim == 3 else weights


def _describe(identifier: Any) -> str:
    """The name of an initializer or constraint in messages: as given, or its class."""
    if isinstance(identifier, Mapping):
        return str(identifier.get("class_name", identifier))
    return identifier if isinstance(identifier, str) else type(identifier).__name__


def draw_kernel(stage: Stage, channels: int, seed: int) -> Kernel:
    """Draw a kernel by the stage's initializers; the same seed gives the same weights.

    channels : int      of the stage's input
    Raises: ShapeError if groups do not divide the channels; SpecError for more weights than a
        kernel may have; MemoryLimitError for more than fit under the ceiling.

    >>> draw_kernel(Stage(kernel_size=3, filters=2), channels=4, seed=1).weights.shape
    (3, 3, 3, 4, 2)
    """
    from conv3d_cli.layer.initializers import derived_seed

    assert stage.kernel_size is not None
    assert stage.filters is not None
    if channels % stage.groups:
        raise ShapeError(
            f"groups must divide the input channels, received groups={stage.groups} and "
            f"{count_of(channels, 'channel')}; choose a divisor"
        )
    shape = (*triple(stage.kernel_size, "kernel_size"), channels // stage.groups, stage.filters)
    if math.prod(shape) > MAX_WEIGHTS:
        raise SpecError(
            f"a drawn kernel must have at most {MAX_WEIGHTS:,} weights, received the shape "
            f"{shape}; give a smaller kernel_size or fewer filters"
        )
    require_weights(math.prod(shape), "drawn by its initializer")

    def draw(identifier: Any, which: str, shape: tuple[int, ...]) -> np.ndarray:
        # The same numbers as a `Conv3D` with this seed; None draws glorot_uniform, as in Keras.
        # Keras draws a random seed where none is given; here it is fixed, so that the same input
        # and options give the same bytes.
        initializer = get_initializer(
            DRAWN_KERNEL if identifier is None else identifier, seed=derived_seed(seed, which)
        )
        assert initializer is not None
        with np.errstate(over="ignore"):
            drawn = initializer(shape)
        if not np.isfinite(drawn).all():
            raise SpecError(
                f"{which}_initializer {_describe(identifier)} gives numbers beyond float32, in "
                "which Keras draws; lower its parameters"
            )
        return drawn

    weights = draw(stage.kernel_initializer, "kernel", shape)
    bias = None
    if stage.use_bias and stage.bias is None:
        bias = draw(stage.bias_initializer, "bias", (stage.filters,))
    return Kernel(weights, bias, name=stage.name or _describe(stage.kernel_initializer))
