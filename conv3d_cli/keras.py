"""`Conv3D`: Keras' layer, argument for argument, on NumPy arrays and without Keras.

`layer/config.py` checks the arguments in Keras' order; `conv3d()` does the arithmetic. Any batch
shape works (as in Keras 2); an output without voxels is refused (as in Keras 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv3d_cli.api.arrays import conv3d
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import activations
from conv3d_cli.layer.config import LayerConfig
from conv3d_cli.model.spec import ConvProblem, ConvSpec, triple

Array = NDArray[Any]
Size = int | Sequence[int]


class Conv3D:
    """A 3-D convolution layer with Keras' arguments, defaults and errors.

    filters : int, output channels
    kernel_size, strides, dilation_rate : int or 3 ints, in D, H, W order
    padding : "valid" or "same"
    data_format : "channels_last", "channels_first" or None
        None: as keras.json says, else channels_last
    groups : int, divides the input channels and the filters
    activation : a name, a serialised dict, a callable or None; see `layer.activations`
    use_bias : bool
    kernel_initializer, bias_initializer : see `layer.initializers`
        `build` draws the weights from `seed`
    kernel_regularizer, bias_regularizer, activity_regularizer : see `layer.regularizers`
        `losses` returns the penalties
    kernel_constraint, bias_constraint : see `layer.constraints`
        `apply_constraints` applies them, as an optimizer would
    input_shape : tuple or None, without the batch axis; builds the layer at once
    name : str or None; None: "conv3d"
    dtype : "float32", "float64" or None, of weights and arithmetic; None: float32
    seed : int or None; None: drawn at random, so that two layers differ

    Raises: SpecError for arguments that Keras refuses, UnknownNameError (a SpecError) for unknown
        names, ShapeError if `input_shape` does not fit.
    Source: Keras 3, keras/src/layers/convolutional/conv3d.py; Keras 2 for several batch axes.

    >>> layer = Conv3D(2, 3, activation="relu", input_shape=(28, 28, 28, 1), seed=0)
    >>> layer(np.ones((4, 28, 28, 28, 1))).shape
    (4, 26, 26, 26, 2)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Size,
        strides: Size = (1, 1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Size = (1, 1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        input_shape: Sequence[int | None] | None = None,
        name: str | None = None,
        dtype: str | None = None,
        seed: int | None = None,
    ) -> None:
        self._set_up(
            LayerConfig(
                filters=filters,
                kernel_size=triple(kernel_size, "kernel_size"),
                strides=triple(strides, "strides"),
                padding=padding,
                data_format=data_format,
                dilation_rate=triple(dilation_rate, "dilation_rate"),
                groups=groups,
                activation=activation,
                use_bias=use_bias,
                kernel_initializer=kernel_initializer,
                bias_initializer=bias_initializer,
                kernel_regularizer=kernel_regularizer,
                bias_regularizer=bias_regularizer,
                activity_regularizer=activity_regularizer,
                kernel_constraint=kernel_constraint,
                bias_constraint=bias_constraint,
                name=name or "conv3d",
                dtype=dtype,
                seed=seed,
            )
        )
        if input_shape is not None:
            self.build((None, *input_shape))

    def _set_up(self, config: LayerConfig) -> None:
        self.config = config
        self.activation = activations.get(config.activation)
        self.kernel: Array | None = None
        self.bias: Array | None = None
        self._activity: float | None = None
        if config.dtype not in (None, "float32", "float64"):
            raise SpecError(f"dtype must be float32 or float64, received {config.dtype!r}")

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.config.name or "conv3d"

    @property
    def built(self) -> bool:
        """True once the weights exist."""
        return self.kernel is not None

    @property
    def channel_axis(self) -> int:
        """-1, or -4 under channels_first: counted from the end, since batch axes may be many."""
        return -4 if self.config.data_format == "channels_first" else -1

    # ----------------------------------------------------------------------------------------------
    # shapes

    def _problem(self, input_shape: Sequence[int | None]) -> ConvProblem:
        """The convolution of one volume of an input of this shape; batch axes are ignored."""
        space = tuple(input_shape)[-4:-1] if self.channel_axis == -1 else tuple(input_shape)[-3:]
        channels = input_shape[self.channel_axis]
        config = self.config
        spec = ConvSpec(
            config.strides, config.padding, config.dilation_rate, config.groups, config.filters
        )
        kernel_shape = (*config.kernel_size, (channels or 0) // config.groups, config.filters)
        return spec.resolve((1, *(n or 0 for n in space), channels or 0), kernel_shape)

    def _check_channels(self, input_shape: Sequence[int | None]) -> int:
        """The number of input channels. Raises: ShapeError, with the facts of Keras' messages."""
        shape = tuple(input_shape)
        if len(shape) < 5:
            raise ShapeError(
                f"input of layer {self.name} is incompatible: "
                f"expected min_ndim=5, found ndim={len(shape)}; full shape received: {shape}"
            )
        channels = shape[self.channel_axis]
        if channels is None:
            raise ShapeError(
                f"the channel axis of the input of layer {self.name} must be defined, "
                f"received {shape}"
            )
        groups = self.config.groups
        if channels % groups:
            raise ShapeError(
                "the number of input channels must be evenly divisible by the number of groups, "
                f"received groups={groups}, but the input has {channels} channels "
                f"(full input shape is {shape})"
            )
        if self.kernel is not None and self.kernel.shape[3] * groups != channels:
            raise ShapeError(
                f"input of layer {self.name} is incompatible: "
                f"expected axis {self.channel_axis} of input shape to have value "
                f"{self.kernel.shape[3] * groups}, but received input with shape {shape}"
            )
        return channels

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Draw the kernel and the bias for inputs of a shape.

        input_shape : with its batch axes; any size but that of the channels may be None
        Raises: ShapeError for fewer than 5 axes, channels that groups do not divide, or an output
            without voxels.
        >>> layer = Conv3D(2, 3)
        >>> layer.build((None, None, None, None, 4))
        >>> layer.kernel.shape, layer.bias.shape
        ((3, 3, 3, 4, 2), (2,))
        """
        channels = self._check_channels(input_shape)
        if None not in tuple(input_shape)[-4:]:
            self._problem(input_shape)
        self.kernel, self.bias = self.config.initial_weights(channels)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The output's shape; sizes that are None stay None.

        Raises: ShapeError if the input does not fit the layer or the output would have no voxels.
        >>> Conv3D(8, 3, strides=2, padding="same").compute_output_shape((None, 10, 11, 12, 3))
        (None, 5, 6, 6, 8)
        """
        channels = self._check_channels(input_shape)
        shape = tuple(input_shape)
        batch, space = (
            (shape[:-4], shape[-4:-1]) if self.channel_axis == -1 else (shape[:-4], shape[-3:])
        )
        known = [n if n is not None else 1 << 20 for n in space]  # any size that leaves an output
        stand_in = (*known, channels) if self.channel_axis == -1 else (channels, *known)
        sizes = self._problem((1, *stand_in)).out_size
        out = tuple(None if n is None else size for n, size in zip(space, sizes, strict=True))
        filters = self.config.filters
        whole = (*batch, *out, filters) if self.channel_axis == -1 else (*batch, filters, *out)
        last = whole[-1]
        return (*whole[:-1], last // 2) if self.activation.halves and last is not None else whole

    # ----------------------------------------------------------------------------------------------
    # the computation

    def __call__(self, x: ArrayLike, threads: int | None = None) -> Array:
        """The layer's output: activation(conv(x, kernel) + bias), in the layer's dtype.

        x : (..., D, H, W, C), or (..., C, D, H, W) under channels_first; cast to the layer's dtype
        threads : int or None; None: CONV3D_THREADS, else OMP_NUM_THREADS, else all usable CPUs
        Raises: ShapeError if x does not fit the layer.
        """
        x = np.asarray(x)
        self._check_channels(x.shape)
        if not self.built:
            self.build(x.shape)
        assert self.kernel is not None
        config = self.config
        x = x.astype(config.dtype or "float32", copy=False)
        y: Array = conv3d(
            x,
            self.kernel,
            self.bias,
            strides=config.strides,
            padding=config.padding,
            dilation_rate=config.dilation_rate,
            groups=config.groups,
            data_format=config.data_format or "channels_last",
            activation=self.activation,
            threads=threads,
        )
        if config.activity_regularizer is not None:
            penalty = float(config.activity_regularizer(y))
            self._activity = penalty / y.shape[0] if y.shape[0] else 0.0
        return y

    # ----------------------------------------------------------------------------------------------
    # weights

    def get_weights(self) -> list[Array]:
        """Copies of [kernel, bias]; [kernel] without a bias, [] before the layer is built."""
        return [w.copy() for w in (self.kernel, self.bias) if w is not None]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Set the kernel and the bias.

        weights : [kernel, bias], or [kernel] without a bias, in the shapes of `get_weights()`
        Raises: ShapeError before the layer is built, and for a wrong number of arrays or a wrong
            shape.
        """
        if self.kernel is None:
            raise ShapeError(f"layer {self.name} has no weights yet; call build(input_shape) first")
        current = [w for w in (self.kernel, self.bias) if w is not None]
        if len(weights) != len(current):
            raise ShapeError(
                f"layer {self.name} was passed a list of {len(weights)} weights, "
                f"but it expects {len(current)} weights"
            )
        arrays = [np.array(w, dtype=self.kernel.dtype) for w in weights]
        for array, old in zip(arrays, current, strict=True):
            if array.shape != old.shape:
                raise ShapeError(
                    f"layer {self.name} expects a weight of shape {old.shape}, "
                    f"received shape {array.shape}"
                )
        self.kernel = arrays[0]
        if len(arrays) > 1:
            self.bias = arrays[1]

    def apply_constraints(self) -> None:
        """Apply the constraints to the weights, as Keras does after each step of an optimizer."""
        if self.kernel is not None and self.config.kernel_constraint is not None:
            self.kernel = self.config.kernel_constraint(self.kernel)
        if self.bias is not None and self.config.bias_constraint is not None:
            self.bias = self.config.bias_constraint(self.bias)

    def count_params(self) -> int:
        """The number of weights, bias included.

        Raises: ShapeError before the layer is built.
        >>> Conv3D(2, 3, input_shape=(4, 4, 4, 1)).count_params()
        56
        """
        if self.kernel is None:
            raise ShapeError(f"layer {self.name} has no weights yet; call build(input_shape) first")
        return sum(math.prod(w.shape) for w in self.get_weights())

    @property
    def losses(self) -> list[float]:
        """Penalties in Keras' order: of the last output, of the kernel, of the bias.

        The penalty of the output is divided by the size of its first axis.
        >>> layer = Conv3D(1, 1, kernel_initializer="ones", kernel_regularizer="l2")
        >>> layer.build((None, 4, 4, 4, 3))
        >>> layer.losses
        [0.03]
        """
        result = [] if self._activity is None else [self._activity]
        for regularizer, weight in (
            (self.config.kernel_regularizer, self.kernel),
            (self.config.bias_regularizer, self.bias),
        ):
            if regularizer is not None and weight is not None:
                result.append(float(regularizer(weight)))
        return result

    # ----------------------------------------------------------------------------------------------
    # description

    def get_config(self) -> dict[str, Any]:
        """The layer's configuration as Keras 3 writes it, ready for JSON.

        Raises: SpecError if an argument is a Python function, which JSON cannot hold.
        """
        return self.config.to_keras()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Conv3D:
        """A layer, not yet built, from `get_config()` of Keras 2, Keras 3 or this class.

        config : the configuration, or {"class_name": "Conv3D", "config": configuration}
        Raises: SpecError for unknown or missing keys, and for arguments that the class refuses.
        >>> Conv3D.from_config(Conv3D(2, 3, padding="same").get_config()).config.padding
        'same'
        """
        layer = cls.__new__(cls)
        layer._set_up(LayerConfig.from_keras(dict(config)))
        return layer

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Print a description of the layer in a few lines.

        print_fn : called with each line
        """
        config = self.config
        kernel = "not built" if self.kernel is None else "x".join(map(str, self.kernel.shape))
        bias = "yes" if config.use_bias else "no"
        print_fn(
            f"{self.name} (Conv3D): {config.filters} filters of {config.kernel_size}, "
            f"groups {config.groups}"
        )
        print_fn(
            f"  strides {config.strides}, padding {config.padding}, "
            f"dilation {config.dilation_rate}, {config.data_format}"
        )
        print_fn(f"  activation {self.activation.name}, kernel {kernel}, bias {bias}")
        if self.built:
            print_fn(f"  {self.count_params()} parameters")

    def __repr__(self) -> str:
        return f"<Conv3D name={self.name}, built={self.built}>"
