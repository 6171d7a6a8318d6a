"""`Conv3D`: Keras' layer, argument for argument, on NumPy arrays and without Keras.

`layer/config.py` checks the arguments in Keras' order; `conv3d()` does the arithmetic. Any batch
shape works (as in Keras 2); an output without voxels is refused (as in Keras 3).
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conv3d_cli.api.arrays import conv3d
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import activations
from conv3d_cli.layer.config import DTYPES, LayerConfig
from conv3d_cli.model.spec import ConvProblem, ConvSpec, triple

Array = NDArray[Any]
Size = int | Sequence[int]


class Variable(np.ndarray):
    """A weight of a layer: an array that answers to Keras' names, too.

    It shares its numbers with the layer. What is computed from it is a plain array.
    name, path : str        such as "kernel" and "conv3d/kernel"
    trainable : bool        of its layer
    """

    name: str = ""
    path: str = ""
    trainable: bool = True

    @classmethod
    def of(cls, array: Array, name: str, layer: Conv3D) -> Variable:
        """A weight of a layer."""
        variable = array.view(cls)
        variable.name, variable.path = name, f"{layer.path}/{name}"
        variable.trainable = layer.trainable
        return variable

    def __array_wrap__(self, array: Array, context: Any = None, return_scalar: bool = False) -> Any:
        """Results of functions of NumPy as plain arrays and scalars."""
        plain = np.asarray(array)
        # NumPy before 2.0 never says that a scalar is wanted: it means any array without axes
        return plain[()] if return_scalar or (context is None and not plain.ndim) else plain

    @property
    def value(self) -> Array:
        """The numbers as a plain array, not a copy."""
        return np.asarray(self)

    def numpy(self) -> Array:
        """A copy of the numbers."""
        return np.array(self)

    def assign(self, value: ArrayLike) -> Variable:
        """Set all numbers of the weight, and of its layer.

        Raises: ShapeError for another shape, and for what is no real number.
        >>> layer = Conv3D(1, 1, input_shape=(2, 2, 2, 1))
        >>> float(layer.kernel.assign(np.full((1, 1, 1, 1, 1), 3)).sum())
        3.0
        """
        self[...] = _numbers_of(value, f"the weight {self.path}", self.shape)
        return self


def _numbers_of(value: ArrayLike, what: str, shape: Sequence[int] | None = None) -> Array:
    """An array of real numbers. Raises: ShapeError.

    what : str              of what, for messages
    shape : tuple or None   that it must have; None: any
    """
    array = np.asarray(value)
    if array.dtype.kind in "OSUmMc":
        cure = "take its real part or magnitude" if array.dtype.kind == "c" else "convert it first"
        raise ShapeError(f"{what} must hold real numbers, received dtype {array.dtype}; {cure}")
    if shape is not None and array.shape != tuple(shape):
        raise ShapeError(f"{what} has the shape {tuple(shape)}, received {array.shape}")
    return array


def _sizes_of(input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """The shape of an input, whose sizes may be None. Raises: ShapeError if it is none."""
    try:
        return tuple(None if n is None else operator.index(n) for n in input_shape)
    except TypeError:
        told = np.shape(input_shape) if isinstance(input_shape, np.ndarray) else input_shape
        raise ShapeError(
            "the shape of an input is a tuple of whole numbers, such as (None, 28, 28, 28, 1), "
            f"received {told!r:.60}"
        ) from None


@dataclass(frozen=True)
class DTypePolicy:
    """The dtypes of a layer's weights and arithmetic, by Keras' name of both.

    >>> policy = DTypePolicy("mixed_float16")
    >>> policy.variable_dtype, policy.compute_dtype
    ('float32', 'float16')
    """

    name: str

    @property
    def variable_dtype(self) -> str:
        """Of the weights."""
        return DTYPES[self.name]

    @property
    def compute_dtype(self) -> str:
        """Of the inputs, which are cast to it, of the arithmetic, and of the output."""
        return self.name.removeprefix("mixed_")

    def rounded(self, array: Array) -> Array:
        """Numbers as the arithmetic takes them: rounded to `compute_dtype`, in float32 or float64.

        >>> DTypePolicy("bfloat16").rounded(np.array([1.005859375, np.nan])).tolist()
        [1.0078125, nan]
        """
        if self.compute_dtype == "float64":
            return array.astype(np.float64, copy=False)
        with np.errstate(over="ignore"):
            single = array.astype(np.float32, copy=False)
            if self.compute_dtype == "float16":
                return single.astype(np.float16).astype(np.float32)
        if self.compute_dtype == "bfloat16":  # to the nearest, of two to the even one
            bits = np.ascontiguousarray(single).view(np.uint32).astype(np.uint64)
            even = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
            short = even.astype(np.uint32).view(np.float32)
            return np.where(np.isfinite(single), short, single)
        return single

    def get_config(self) -> dict[str, str]:
        """The name, in a dict."""
        return {"name": self.name}


@dataclass(frozen=True)
class InputSpec:
    """What inputs a layer takes, in Keras' words.

    min_ndim : int      least number of axes
    axes : dict         axis -> its length
    """

    min_ndim: int = 5
    axes: dict[int, int] = field(default_factory=dict)


_numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)


def _numbered(name: str) -> str:
    """The name of the next layer without a name: conv3d, conv3d_1, conv3d_2, ..."""
    number = next(_numbers[name])
    return f"{name}_{number}" if number else name


def _checked_name(name: str | None) -> str | None:
    """A name that a layer may have. Raises: SpecError."""
    if name is not None and (not isinstance(name, str) or "/" in name):
        raise SpecError(
            f"the argument name must be a string without the character '/', received {name!r}"
        )
    return name


# what Keras' layer has for training, or as a part of a model
_OF_TRAINING = (
    "add_loss", "add_metric", "add_weight", "compile", "enable_lora", "fit", "input",
    "load_weights", "output", "predict", "quantize", "quantized_call", "save", "save_weights",
    "stateless_call",
)  # fmt: skip


def _argument(name: str, text: str) -> Any:
    """A property of a layer that is an argument of its config."""

    def get(layer: Conv3D) -> Any:
        return getattr(layer.config, name)

    return property(get, doc=text)


class Conv3D:
    """A 3-D convolution layer with Keras' arguments, defaults and errors.

    filters : int, output channels
    kernel_size, strides, dilation_rate : int or 3 ints, in D, H, W order
    padding : "valid" or "same"
    data_format : "channels_last", "channels_first" or None
        None: as keras.json says, else channels_last
    groups : int, divides the input channels and the filters
    activation : a name, a serialised dict, a callable or None; see `conv3d_cli.layer.activations`
    use_bias : bool
    kernel_initializer, bias_initializer : see `conv3d_cli.layer.initializers`
        `build` draws the weights from `seed`
    kernel_regularizer, bias_regularizer, activity_regularizer : see `conv3d_cli.layer.regularizers`
        `losses` returns the penalties
    kernel_constraint, bias_constraint : see `conv3d_cli.layer.constraints`
        `apply_constraints` applies them, as an optimizer would
    input_shape : tuple or None, without the batch axis; builds the layer at once
    name : str or None; None: "conv3d", "conv3d_1", "conv3d_2", ... in turn
    dtype : a dtype or a dtype policy of Keras, such as "float64" or "mixed_float16"; None: float32
        with bfloat16, arrays are float32 with numbers rounded to bfloat16, which NumPy lacks
    seed : int or None; None: drawn at random, so that two layers differ
    trainable : bool; False: its weights are among `non_trainable_weights`

    Every argument is an attribute, too.

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
        dtype: Any = None,
        seed: int | None = None,
        trainable: bool = True,
    ) -> None:
        snake = re.sub("([a-z])([A-Z])", r"\1_\2", type(self).__name__).lower()
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
                name=_checked_name(name) or _numbered(snake),
                dtype=dtype,
                seed=seed,
                trainable=trainable,
            )
        )
        if input_shape is not None:
            self.build((None, *input_shape))

    def _set_up(self, config: LayerConfig) -> None:
        self.config = config
        self.activation = activations.get(config.activation)
        self._kernel: Array | None = None
        self._bias: Array | None = None
        self._activity: float | None = None
        self._built_for: tuple[int | None, ...] | None = None

    # ----------------------------------------------------------------------------------------------
    # attributes

    filters = _argument("filters", "Output channels.")
    kernel_size = _argument("kernel_size", "(kd, kh, kw).")
    strides = _argument("strides", "Along D, H, W.")
    padding = _argument("padding", '"valid" or "same".')
    data_format = _argument("data_format", '"channels_last" or "channels_first".')
    dilation_rate = _argument("dilation_rate", "Along D, H, W.")
    groups = _argument("groups", "Groups of channels.")
    use_bias = _argument("use_bias", "Whether there is a bias.")
    kernel_initializer = _argument("kernel_initializer", "Draws the kernel.")
    bias_initializer = _argument("bias_initializer", "Draws the bias.")
    kernel_regularizer = _argument("kernel_regularizer", "Penalty of the kernel, or None.")
    bias_regularizer = _argument("bias_regularizer", "Penalty of the bias, or None.")
    activity_regularizer = _argument("activity_regularizer", "Penalty of the output, or None.")
    kernel_constraint = _argument("kernel_constraint", "Constraint of the kernel, or None.")
    bias_constraint = _argument("bias_constraint", "Constraint of the bias, or None.")
    rank = 3  # axes in space

    def __getattr__(self, name: str) -> Any:
        # Names that the class does not have come here (copy and pickle ask for some), and weights
        # of a layer that is not built.
        if name in ("kernel", "bias"):
            raise AttributeError(f"you must build the layer before accessing its {name}")
        more = ""
        if name in _OF_TRAINING:
            more = (
                "; it belongs to training, and this class applies weights: use the layer of Keras "
                "for it, keras.layers.Conv3D.from_config(layer.get_config()), and bring its "
                "weights back by set_weights()"
            )
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{more}")

    @property
    def name(self) -> str:
        """The layer's name; it can be set."""
        return self.config.name or "conv3d"

    @name.setter
    def name(self, value: str) -> None:
        self.config = replace(self.config, name=_checked_name(value))

    @property
    def path(self) -> str:
        """The layer's name, since it is in no model."""
        return self.name

    @property
    def built(self) -> bool:
        """True once the weights exist."""
        return self._kernel is not None

    @property
    def trainable(self) -> bool:
        """Whether an optimizer would change the weights; it can be set."""
        return self.config.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self.config = replace(self.config, trainable=bool(value))

    @property
    def dtype_policy(self) -> DTypePolicy:
        """The dtypes of weights and arithmetic."""
        return DTypePolicy(str(self.config.dtype))

    @property
    def dtype(self) -> str:
        """The dtype of the weights."""
        return self.dtype_policy.variable_dtype

    variable_dtype = dtype

    @property
    def compute_dtype(self) -> str:
        """The dtype of the arithmetic and of the output."""
        return self.dtype_policy.compute_dtype

    input_dtype = compute_dtype

    @property
    def input_spec(self) -> InputSpec:
        """What inputs the layer takes; it knows the channels once it is built.

        >>> Conv3D(2, 3, input_shape=(4, 4, 4, 1)).input_spec
        InputSpec(min_ndim=5, axes={-1: 1})
        """
        if self._kernel is None:
            return InputSpec()
        return InputSpec(axes={self.channel_axis: self._kernel.shape[3] * self.config.groups})

    @property
    def kernel(self) -> Variable:
        """The kernel (kd, kh, kw, in_channels / groups, filters).

        Raises: AttributeError before the layer is built, as in Keras.
        """
        if self._kernel is None:
            raise AttributeError("kernel")  # see `__getattr__`
        return Variable.of(self._kernel, "kernel", self)

    @kernel.setter
    def kernel(self, value: ArrayLike) -> None:
        self.kernel.assign(value)

    @property
    def bias(self) -> Variable | None:
        """The bias (filters,); None without one.

        Raises: AttributeError before the layer is built, as in Keras.
        """
        if self._kernel is None:
            raise AttributeError("bias")
        return None if self._bias is None else Variable.of(self._bias, "bias", self)

    @bias.setter
    def bias(self, value: ArrayLike | None) -> None:
        bias = self.bias
        if (value is None) != (bias is None):
            raise ShapeError(
                f"layer {self.name} has use_bias={self.config.use_bias}, so its bias "
                + ("cannot be taken away" if value is None else "is None")
                + f"; make it with use_bias={not self.config.use_bias}"
            )
        if bias is not None and value is not None:
            bias.assign(value)

    @property
    def weights(self) -> list[Variable]:
        """[kernel, bias], [kernel] without a bias, [] before the layer is built.

        >>> layer = Conv3D(2, 3, input_shape=(4, 4, 4, 1), name="first")
        >>> [(weight.path, weight.shape) for weight in layer.weights]
        [('first/kernel', (3, 3, 3, 1, 2)), ('first/bias', (2,))]
        """
        named = (("kernel", self._kernel), ("bias", self._bias))
        return [Variable.of(array, name, self) for name, array in named if array is not None]

    variables = weights

    @property
    def trainable_weights(self) -> list[Variable]:
        """The weights, or none if the layer is not trainable."""
        return self.weights if self.trainable else []

    trainable_variables = trainable_weights

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The weights if the layer is not trainable, else none."""
        return [] if self.trainable else self.weights

    non_trainable_variables = non_trainable_weights

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
        shape = _sizes_of(input_shape)
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
        if self._kernel is not None and self._kernel.shape[3] * groups != channels:
            raise ShapeError(
                f"input of layer {self.name} is incompatible: "
                f"expected axis {self.channel_axis} of input shape to have value "
                f"{self._kernel.shape[3] * groups}, but received input with shape {shape}"
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
        shape = _sizes_of(input_shape)
        if None not in shape[-4:]:
            self._problem(shape)
        kernel, bias = self.config.initial_weights(channels)
        # copies, since an initializer may return an array that its user keeps
        self._kernel, self._bias = np.array(kernel), None if bias is None else np.array(bias)
        self._built_for = shape

    def get_build_config(self) -> dict[str, Any] | None:
        """What `build_from_config` takes; None before the layer is built."""
        return None if self._built_for is None else {"input_shape": self._built_for}

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Build the layer for the inputs of another, by its `get_build_config()`.

        >>> layer = Conv3D(2, 3)
        >>> layer.build_from_config(Conv3D(2, 3, input_shape=(8, 8, 8, 1)).get_build_config())
        >>> layer.kernel.shape
        (3, 3, 3, 1, 2)
        """
        if not isinstance(config, Mapping) or "input_shape" not in config:
            raise SpecError(
                f"a build config is a dict with input_shape, as of get_build_config(), received "
                f"{config!r:.60}"
            )
        self.build(config["input_shape"])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The output's shape; sizes that are None stay None.

        Raises: ShapeError if the input does not fit the layer or the output would have no voxels.
        >>> Conv3D(8, 3, strides=2, padding="same").compute_output_shape((None, 10, 11, 12, 3))
        (None, 5, 6, 6, 8)
        """
        channels = self._check_channels(input_shape)
        shape = _sizes_of(input_shape)
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

    def _taken(self, inputs: ArrayLike) -> Array:
        """The inputs as an array. Raises: ShapeError if they do not fit the layer."""
        array = _numbers_of(inputs, f"the input of layer {self.name}")
        self._check_channels(array.shape)
        return array

    def __call__(
        self,
        inputs: ArrayLike,
        threads: int | None = None,
        *,
        training: bool | None = None,
        mask: object = None,
    ) -> Array:
        """The layer's output: activation(conv(inputs, kernel) + bias), in `compute_dtype`.

        inputs : (..., D, H, W, C), or (..., C, D, H, W) under channels_first; cast to
            `compute_dtype`. The first call builds the layer
        threads : int or None; None: CONV3D_THREADS, else OMP_NUM_THREADS, else all usable CPUs
        training, mask : without effect, as on Keras' Conv3D
        Raises: ShapeError if the inputs do not fit the layer.
        """
        inputs = self._taken(inputs)
        if not self.built:
            self.build(inputs.shape)
        y = self.call(inputs, threads)
        regularizer = self.config.activity_regularizer
        if regularizer is not None:
            penalty = float(regularizer(y))
            self._activity = penalty / y.shape[0] if y.shape[0] else 0.0
        return y

    def call(self, inputs: ArrayLike, threads: int | None = None) -> Array:
        """The output of a layer that is built; `losses` stay as they are.

        Parameters as of a call of the layer itself.
        Raises: AttributeError before the layer is built; ShapeError.
        """
        inputs = self._taken(inputs)
        if self._kernel is None:
            raise AttributeError("you must build the layer before calling it")
        config, policy, bias = self.config, self.dtype_policy, self._bias
        y: Array = conv3d(
            policy.rounded(inputs),
            policy.rounded(self._kernel),
            None if bias is None else policy.rounded(bias),
            strides=config.strides,
            padding=config.padding,
            dilation_rate=config.dilation_rate,
            groups=config.groups,
            data_format=config.data_format or "channels_last",
            activation=self.activation,
            threads=threads,
        )
        y = policy.rounded(y)
        return y.astype(np.float16) if policy.compute_dtype == "float16" else y

    # ----------------------------------------------------------------------------------------------
    # weights

    def get_weights(self) -> list[Array]:
        """Copies of [kernel, bias]; [kernel] without a bias, [] before the layer is built."""
        return [weight.numpy() for weight in self.weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Set the kernel and the bias.

        weights : [kernel, bias], or [kernel] without a bias, in the shapes of `get_weights()`
        Raises: ShapeError before the layer is built, and for a wrong number of arrays or a wrong
            shape.
        """
        current = self.weights
        if not isinstance(weights, (list, tuple)):
            raise ShapeError(
                f"layer {self.name} takes a list of its weights, as of get_weights(), received "
                f"an object of type {type(weights).__name__}"
            )
        if not current and weights:
            raise ShapeError(f"layer {self.name} has no weights yet; call build(input_shape) first")
        if len(weights) != len(current):
            raise ShapeError(
                f"layer {self.name} was passed a list of {len(weights)} weights, "
                f"but it expects {len(current)} weights"
            )
        arrays = [
            _numbers_of(weight, f"the weight {old.path}", old.shape)
            for weight, old in zip(weights, current, strict=True)
        ]
        for array, old in zip(arrays, current, strict=True):
            old.assign(array)

    def apply_constraints(self) -> None:
        """Apply the constraints to the weights, as Keras does after each step of an optimizer."""
        constraints = {"kernel": self.kernel_constraint, "bias": self.bias_constraint}
        for weight in self.weights:
            constraint = constraints[weight.name]
            if constraint is not None:
                weight.assign(constraint(weight.value))

    def count_params(self) -> int:
        """The number of weights, bias included.

        Raises: ShapeError before the layer is built.
        >>> Conv3D(2, 3, input_shape=(4, 4, 4, 1)).count_params()
        56
        """
        if not self.built:
            raise ShapeError(f"layer {self.name} has no weights yet; call build(input_shape) first")
        return sum(math.prod(w.shape) for w in self.get_weights())

    @property
    def losses(self) -> list[float]:
        """Penalties in Keras' order: of the last output, of the kernel, of the bias.

        The penalty of the output is divided by the size of its first axis. Weights that are not
        trainable have none.
        >>> layer = Conv3D(1, 1, kernel_initializer="ones", kernel_regularizer="l2")
        >>> layer.build((None, 4, 4, 4, 3))
        >>> layer.losses
        [0.03]
        """
        result = [] if self._activity is None else [self._activity]
        for regularizer, weight in (
            (self.config.kernel_regularizer, self._kernel),
            (self.config.bias_regularizer, self._bias),
        ):
            if regularizer is not None and weight is not None and self.trainable:
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
        if not isinstance(config, Mapping):
            raise SpecError(
                "a config is a dict, as of get_config(), received an object of type "
                f"{type(config).__name__}; read a JSON text by json.loads() first"
            )
        layer = cls.__new__(cls)
        layer._set_up(LayerConfig.from_keras(dict(config)))
        return layer

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Print a description of the layer in a few lines.

        print_fn : called with each line
        """
        config = self.config
        kernel = "not built" if self._kernel is None else "x".join(map(str, self._kernel.shape))
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
