"""ONNX's operators on voxels, channels and axes: activations, normalizations, joins, reshapes.

To read another operator, write a function of the node that adds nodes to the network, and its line
in `OPERATORS`.

Source: ONNX, docs/Operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from conv3d_cli.network.onnx.flow import MOST_CHANNELS, SPATIAL, Array, Flow, OnnxNode, without_axes
from conv3d_cli.network.onnx.folding import reshaped, unrepeated
from conv3d_cli.network.operations.base import Shape

Translator = Callable[[OnnxNode], Flow | list[Flow]]
MOST_SCALINGS = 16  # one after another that are looked through for what they make together
# operators that are no operations of networks, and what they may be a part of
PARTS = {
    "Erf": "GELU, x · (1 + erf(x / √2)) / 2",
    "Sqrt": "layer normalization, (x - mean) / √(variance + epsilon), over the channels",
    "Greater": "softplus, x where x > 20 or so",
}


def _activation(text: str) -> Translator:
    def translate(op: OnnxNode) -> Flow:
        return op.add("Activation", [op.flow()], {"activation": text})

    return translate


def _bent(op: OnnxNode, source: Flow, text: str) -> Flow:
    return op.add("Activation", [source], {"activation": text})


def leaky_relu(op: OnnxNode) -> Flow:
    """x if x >= 0 else alpha · x"""
    alpha = op.number("alpha", 0.01)
    return _bent(op, op.flow(), f"leaky_relu:negative_slope={alpha!r}")


def elu(op: OnnxNode) -> Flow:
    """x if x > 0 else alpha · (exp(x) - 1)"""
    return _bent(op, op.flow(), f"elu:alpha={op.number('alpha', 1.0)!r}")


def celu(op: OnnxNode) -> Flow:
    """max(x, 0) + min(alpha · (exp(x / alpha) - 1), 0)"""
    return _bent(op, op.flow(), f"celu:alpha={op.number('alpha', 1.0)!r}")


def selu(op: OnnxNode) -> Flow:
    """gamma · (x if x > 0 else alpha · (exp(x) - 1))"""
    alpha = op.number("alpha", 1.6732632)
    gamma = op.number("gamma", 1.0507010)
    if abs(alpha - 1.6732632423543772) < 1e-6 and abs(gamma - 1.0507009873554805) < 1e-6:
        return _bent(op, op.flow(), "selu")
    return _scaled(op, _bent(op, op.flow(), f"elu:alpha={alpha!r}"), gamma, 0.0)


def thresholded_relu(op: OnnxNode) -> Flow:
    """x if x > alpha else 0"""
    alpha = op.number("alpha", 1.0)
    if alpha == 0:
        return _bent(op, op.flow(), "relu")
    return _bent(op, op.flow(), f"threshold:threshold={alpha!r}:default_value=0.0")


def hard_sigmoid(op: OnnxNode) -> Flow:
    """min(max(alpha · x + beta, 0), 1)"""
    alpha, beta = op.number("alpha", 0.2), op.number("beta", 0.5)
    if (alpha, beta) == (0.2, 0.5):
        return _bent(op, op.flow(), "hard_sigmoid:keras2=true")
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return _bent(op, op.flow(), "hard_sigmoid")
    return _bent(op, _scaled(op, op.flow(), alpha, beta), "relu:max_value=1.0")


def shrink(op: OnnxNode) -> Flow:
    """x + bias if x < -lambd, x - bias if x > lambd, else 0"""
    bias, lambd = op.number("bias", 0.0), op.number("lambd", 0.5)
    if lambd < 0 or bias not in (0.0, lambd):
        op.refuse(f"has bias={bias:g} and lambd={lambd:g}; it is taken with bias of 0 or lambd")
    name = "hard_shrink" if bias == 0 else "soft_shrink"
    return _bent(op, op.flow(), f"{name}:threshold={lambd!r}")


def gelu(op: OnnxNode) -> Flow:
    """x · Φ(x), exactly or by tanh."""
    approximate = op.attributes.text("approximate", "none")
    if approximate not in ("none", "tanh"):
        op.refuse(f"has approximate={approximate}; known are none and tanh")
    return _bent(op, op.flow(), "gelu" if approximate == "none" else "gelu:approximate=true")


def swish(op: OnnxNode) -> Flow:
    """x · sigmoid(alpha · x)"""
    if op.number("alpha", 1.0) != 1:
        op.refuse(f"has alpha={op.number('alpha', 1.0):g}; it is taken with 1")
    return _bent(op, op.flow(), "silu")


def prelu(op: OnnxNode) -> Flow:
    """x if x >= 0 else slope · x"""
    source = op.flow()
    slope = _per_channel(op, source, op.constant(1, "slopes"))
    return op.add("PReLU", [source], {}, {"alpha": slope.reshape(1, 1, 1, -1)})


def clip(op: OnnxNode) -> Flow:
    """min(max(x, least), largest)"""
    if op.opset < 11:
        least = op.attributes.number("min", -math.inf)
        largest = op.attributes.number("max", math.inf)
    else:
        least = _limit(op, 1, -math.inf)
        largest = _limit(op, 2, math.inf)
    if math.isnan(least) or math.isnan(largest):
        op.refuse("has NaN as a limit")
    # runtimes take the numbers of float32 for none
    far = float(np.finfo(np.float32).max)
    least, largest = (n if abs(n) < far else math.copysign(math.inf, n) for n in (least, largest))
    return _clipped(op, op.flow(), least, largest)


def _limit(op: OnnxNode, number: int, default: float) -> float:
    if not op.given(number):
        return default
    value = op.constant(number, "limits")
    if value.size != 1:
        op.refuse(f"has a limit of shape {value.shape}")
    return float(value.reshape(()))


def _clipped(op: OnnxNode, source: Flow, least: float, largest: float) -> Flow:
    if least == -math.inf and largest == math.inf:
        return source
    if least == 0 and largest > 0:
        return _bent(op, source, "relu" + (f":max_value={largest!r}" if largest < math.inf else ""))
    if (least, largest) == (-1, 1):
        return _bent(op, source, "hard_tanh")
    limits = {"least": least, "largest": largest}
    return op.add(
        "Clip", [source], {key: value for key, value in limits.items() if math.isfinite(value)}
    )


def softmax(op: OnnxNode) -> Flow:
    """Softmax and LogSoftmax over the channels. Before opset 13, over all axes from `axis` on."""
    source = op.flow()
    axis = op.axis(source, 1 if op.opset < 13 else -1)
    letters = source.layout[axis:] if op.opset < 13 else source.layout[axis]
    together = [x for n, x in enumerate(letters, axis) if source.shape[n] > 1 or x == "c"]
    if together != ["c"]:
        what = "-".join(letters.upper())
        op.refuse(f"runs over the axes {what} together; it is taken over the channels")
    return _bent(op, source, "softmax" if op.operator == "Softmax" else "log_softmax")


def arg_max(op: OnnxNode) -> Flow:
    """The number of the largest channel."""
    source = op.flow()
    axis = op.axis(source, 0)
    if source.layout[axis] != "c":
        op.refuse(f"runs over the axis {source.layout[axis].upper()}; it is taken over channels")
    last = {"last": True} if op.attributes.integer("select_last_index", 0) else {}
    flow = op.add("ArgMax", [source], last)
    return flow if op.attributes.integer("keepdims", 1) else without_axes(flow, [axis])


# --------------------------------------------------------------------------------------------------
# Sums and products


def _per_channel(op: OnnxNode, source: Flow, values: Array) -> Array:
    """A constant that is joined with a tensor, as one number or one for each channel, (c,)."""
    if values.dtype.kind not in "fiu":
        op.refuse(f"has constants of type {values.dtype}")
    if values.ndim > len(source.layout):
        if any(n != 1 for n in values.shape[: values.ndim - len(source.layout)]):
            op.refuse(f"joins a constant of shape {values.shape} with a tensor of fewer axes")
        values = values.reshape(values.shape[values.ndim - len(source.layout) :])
    whole = values.shape
    values = unrepeated(values)
    letters = source.layout[len(source.layout) - values.ndim :]
    for letter, length in zip(letters, whole, strict=True):
        if letter != "c" and length not in (1, source.length(letter)):
            op.refuse(f"has a constant of shape {whole}, larger than its tensor {source.shape}")
    if math.prod(n for x, n in zip(letters, whole, strict=True) if x == "c") > MOST_CHANNELS:
        op.refuse(f"has a constant of shape {whole}; channels are at most {MOST_CHANNELS:,}")
    if "c" in letters and values.shape[letters.index("c")] != whole[letters.index("c")]:
        values = np.repeat(values, whole[letters.index("c")], axis=letters.index("c"))
    for axis, (letter, length) in enumerate(zip(letters, values.shape, strict=True)):
        if letter == "c" or length == 1:
            continue
        first = np.take(values, [0], axis=axis)
        if not np.array_equal(np.broadcast_to(first, values.shape), values):
            op.refuse(
                f"has a constant of shape {whole}, other along the axis {letter.upper()}; "
                "it is taken of one number, or one for each channel"
            )
        values = first
    if not np.isfinite(values).all():
        op.refuse("has NaN or infinite constants")
    return values.reshape(-1).astype(np.float64)


def _wide_enough(op: OnnxNode, source: Flow, values: Array) -> Flow:
    """The tensor, its one channel repeated where a constant has one for several."""
    if values.size > 1 and source.volume.channels == 1:
        return op.add("TakeChannels", [source], {"channels": [0] * values.size})
    if values.size not in (1, source.volume.channels):
        op.refuse(f"joins {values.size} constants with {source.volume.channels} channels")
    return source


def _scaled(op: OnnxNode, source: Flow, scale: float | Array, offset: float | Array) -> Flow:
    """scale · x + offset"""
    scale, offset = np.atleast_1d(scale), np.atleast_1d(offset)
    if not np.isfinite(scale).all() or not np.isfinite(offset).all():
        op.refuse("divides by zero, or has constants that are not finite")
    for values in (scale, offset):
        source = _wide_enough(op, source, values)
    if np.all(scale == 1) and not offset.any():
        return source
    base, by, added = _straight(op, source)
    if scale.size == 1 and by * scale[0] == 1 and not added and not offset.any():
        return base  # 2 · 0.5
    attributes = {
        key: values.tolist() if values.size > 1 else float(values[0])
        for key, values in (("scale", scale), ("offset", offset))
    }
    return op.add("Rescaling", [source], attributes)


def _aligned(op: OnnxNode, flows: Sequence[Flow]) -> list[Flow]:
    """Tensors for a join: each axis is the same in all, or has the length 1."""
    rank = max(len(flow.layout) for flow in flows)
    padded = [
        replace(
            flow,
            layout="1" * (rank - len(flow.layout)) + flow.layout,
            shape=(1,) * (rank - len(flow.shape)) + flow.shape,
        )
        for flow in flows
    ]
    letters: list[str] = []
    for axis in range(rank):
        found = {flow.layout[axis] for flow in padded if flow.shape[axis] != 1}
        if not found:
            found = {flow.layout[axis] for flow in padded} - {"1"} or {"1"}
            found = {sorted(found)[0]} if len(found) > 1 else found
        if len(found) > 1:
            op.refuse_axes(
                "joins tensors whose axes differ: "
                + ", ".join("-".join(flow.layout.upper()) for flow in flows)
            )
        letters += found
    used = [letter for letter in letters if letter != "1"]
    if len(set(used)) != len(used):
        op.refuse_axes(
            "joins tensors whose axes differ: "
            + ", ".join("-".join(flow.layout.upper()) for flow in flows)
        )
    layout = "".join(letters)
    result = []
    for flow in padded:
        # an axis of several voxels must lie where the others have it, too
        lost = [x for x in flow.layout if x not in layout and flow.length(x) != 1 and x != "1"]
        if lost:
            op.refuse_axes(f"loses the axis {lost[0].upper()} of a tensor")
        result.append(replace(flow, layout=layout, shape=tuple(flow.shape[n] for n in range(rank))))
    return result


def _joined(op: OnnxNode, operation: str, flows: Sequence[Flow]) -> Flow:
    """A join of tensors; the output has the larger of their lengths."""
    aligned = _aligned(op, flows)
    shape = np.broadcast_shapes(*(flow.shape for flow in aligned))
    result = op.add(operation, aligned)
    return replace(result, layout=aligned[0].layout, shape=tuple(shape))


def _pair(op: OnnxNode) -> tuple[Flow, Array | None, bool]:
    """A tensor and a constant of two inputs, and whether the constant is the first."""
    if len(op.inputs) != 2:
        op.refuse(f"takes 2 inputs, received {len(op.inputs)}")
    first, second = op.inputs
    if isinstance(first, Flow) and isinstance(second, Flow):
        return op.flow(0), None, False
    number = 0 if isinstance(first, Flow) else 1
    source, other = op.flow(number), op.inputs[1 - number]
    if other is None or isinstance(other, Flow):
        op.refuse("lacks an input")
    return source, _per_channel(op, source, other), number == 1


def add(op: OnnxNode) -> Flow:
    """a + b"""
    source, values, _ = _pair(op)
    if values is None:
        return _joined(op, "Add", [op.flow(0), op.flow(1)])
    return _scaled(op, source, 1.0, values)


def subtract(op: OnnxNode) -> Flow:
    """a - b"""
    source, values, is_first = _pair(op)
    if values is None:
        return _joined(op, "Subtract", [op.flow(0), op.flow(1)])
    return _scaled(op, source, -1.0, values) if is_first else _scaled(op, source, 1.0, -values)


def multiply(op: OnnxNode) -> Flow:
    """a · b; x · sigmoid(x) is silu, and x · (1 + erf(x / √2)) / 2 is gelu."""
    source, values, _ = _pair(op)
    if values is not None:
        return _scaled(op, source, values, 0.0)
    first, second = op.flow(0), op.flow(1)
    if first.layout == second.layout:
        found = _gated(op, first, second) or _gated(op, second, first)
        if found is not None:
            return found
    return _joined(op, "Multiply", [first, second])


def _gated(op: OnnxNode, x: Flow, other: Flow) -> Flow | None:
    """x · sigmoid(x) as silu, and x · (1 + erf(x / √2)) as gelu; None if it is neither."""
    made = op.made(other)
    if made is not None and made.operation == "Activation" and made.inputs[0].source == x.source:
        bent = {"sigmoid": "silu", "hard_sigmoid": "hard_silu"}
        if (name := made.node.attributes["activation"]) in bent:
            return _bent(op, x, bent[name])
    return _gelu(op, x, other)


def divide(op: OnnxNode) -> Flow:
    """a / b"""
    source, values, is_first = _pair(op)
    if values is None:
        flows = [op.flow(0), op.flow(1)]
        same = flows[0].layout == flows[1].layout
        found = _normalized(op, *flows) if same else None
        return found or _joined(op, "Divide", flows)
    if is_first:
        op.refuse("divides a constant by a tensor; it is taken of tensors, or by a constant")
    if not values.all():
        op.refuse("divides by zero")
    return _scaled(op, source, 1 / values, 0.0)


def _many(operation: str) -> Translator:
    """Max, Min, Sum and Mean of tensors and constants."""

    def translate(op: OnnxNode) -> Flow:
        flows = [op.flow(n) for n, one in enumerate(op.inputs) if isinstance(one, Flow)]
        constants = [one for one in op.inputs if one is not None and not isinstance(one, Flow)]
        result = flows[0] if len(flows) == 1 else _joined(op, operation, flows)
        for one in constants:
            values = _per_channel(op, result, one)
            result = _wide_enough(op, result, values)
            given = values.tolist() if values.size > 1 else float(values[0])
            if operation in ("Maximum", "Minimum"):
                key = "least" if operation == "Maximum" else "largest"
                is_relu = key == "least" and given == 0.0
                result = (
                    _bent(op, result, "relu") if is_relu else op.add("Clip", [result], {key: given})
                )
            elif operation == "Add":
                result = _scaled(op, result, 1.0, values)
            else:
                op.refuse("takes the mean of constants")
        return result

    return translate


def power(op: OnnxNode) -> Flow:
    """x ** 1, 2 or 3"""
    source = op.flow(0)
    exponent = op.constant(1, "exponents")
    values = np.unique(exponent)
    if len(values) != 1 or values[0] not in (1, 2, 3):
        told = ", ".join(f"{value:g}" for value in values[:4])
        op.refuse(f"has the exponent {told}; it is taken with 1, 2 and 3")
    value = int(values[0])
    return source if value == 1 else op.add("Multiply", [source] * value)


def negate(op: OnnxNode) -> Flow:
    """-x"""
    return _scaled(op, op.flow(), -1.0, 0.0)


def absolute(op: OnnxNode) -> Flow:
    """|x|"""
    return _bent(op, op.flow(), "leaky_relu:negative_slope=-1.0")


# --------------------------------------------------------------------------------------------------
# Activations and normalizations in parts, as exporters write them


def part(op: OnnxNode) -> Flow:
    """An operator of `PARTS`; where it remains, it is refused at the end."""
    source, attributes = op.flow(), {}
    if op.given(1):
        values = np.unique(op.constant(1, "constants"))
        if len(values) != 1:
            op.refuse("compares with several constants")
        attributes["than"] = float(values[0])
    return op.add(op.operator, [source], attributes, shape=source.volume)


def _straight(op: OnnxNode, flow: Flow) -> tuple[Flow, float, float]:
    """A tensor as scale · x + offset of another: x, scale, offset."""
    scale, offset = 1.0, 0.0
    for _ in range(MOST_SCALINGS):
        if (made := op.made(flow)) is None or made.operation != "Rescaling":
            break
        own, added = (made.node.attributes[key] for key in ("scale", "offset"))
        if not isinstance(own, float) or not isinstance(added, float):
            break
        scale, offset = scale * own, scale * added + offset
        flow = replace(flow, source=made.inputs[0].source)  # its axes may lie otherwise
    return flow, scale, offset


def _gelu(op: OnnxNode, x: Flow, other: Flow) -> Flow | None:
    """x · (1 + erf(x / √2)), both perhaps scaled; None if two tensors are not that."""
    bent, scale, offset = _straight(op, other)
    made = op.made(bent)
    if made is None or made.operation != "Erf" or scale != offset:
        return None
    inner, by, added = _straight(op, made.inputs[0])
    source, times, more = _straight(op, x)
    if source.source != inner.source or added or more or abs(by * math.sqrt(2) - 1) > 1e-6:
        return None
    return _scaled(op, _bent(op, source, "gelu"), 2 * scale * times, 0.0)


def _mean_of(op: OnnxNode, flow: Flow) -> Flow | None:
    """The tensor of whose channels another is the mean; None if it is not that."""
    made = op.made(flow)
    if made is None or made.operation != "Conv3D" or set(made.node.weights) != {"kernel"}:
        return None
    kernel = made.node.weights["kernel"]
    is_mean = kernel.shape[:3] == (1, 1, 1) and kernel.shape[4] == 1 and not made.node.attributes
    return made.inputs[0] if is_mean and np.all(kernel == 1 / kernel.shape[3]) else None


def _normalized(op: OnnxNode, centred: Flow, deviation: Flow) -> Flow | None:
    """(x - mean) / √(mean of (x - mean)² + epsilon) over the channels; None if it is not that."""
    root, difference = op.made(deviation), op.made(centred)
    if root is None or root.operation != "Sqrt" or difference is None:
        return None
    variance, scale, epsilon = _straight(op, root.inputs[0])
    squares = _mean_of(op, variance)
    squared = None if squares is None else op.made(squares)
    if difference.operation != "Subtract" or squared is None or squared.operation != "Multiply":
        return None
    x, mean = difference.inputs
    of = _mean_of(op, mean)
    if (
        scale != 1
        or epsilon <= 0
        or of is None
        or of.source != x.source
        or [flow.source for flow in squared.inputs] != [centred.source] * 2
    ):
        return None
    count = x.volume.channels
    return op.add(
        "LayerNormalization",
        [replace(centred, source=x.source)],
        {"epsilon": epsilon},
        {"gamma": np.ones(count), "beta": np.zeros(count)},
    )


def where(op: OnnxNode) -> Flow:
    """Softplus that is x itself where x is large, as PyTorch computes it."""
    condition, x, bent = op.flow(0), op.flow(1), op.flow(2)
    greater, softplus = op.made(condition), op.made(bent)
    if (
        greater is not None
        and softplus is not None
        and greater.operation == "Greater"
        and greater.node.attributes["than"] >= 15
        and softplus.node.attributes.get("activation") == "softplus"
        and greater.inputs[0].source == softplus.inputs[0].source == x.source
        and condition.layout == x.layout == bent.layout
    ):
        return bent
    op.refuse("chooses between tensors, which is taken only as a part of softplus")


# --------------------------------------------------------------------------------------------------
# Normalizations


def batch_normalization(op: OnnxNode) -> Flow:
    """(x - mean) / √(variance + epsilon) · scale + bias, with trained statistics."""
    source = op.flow()
    if source.layout[1:2] != "c":
        op.refuse_axes(f"takes (batch, channels, ...), received {'-'.join(source.layout.upper())}")
    if op.attributes.integer("training_mode", 0):
        op.refuse("is in training mode, so it acts as in training; export the model for inference")
    count = source.volume.channels
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: op.vector(n, name, count) for n, name in enumerate(names, 1)}
    epsilon = op.number("epsilon", 1e-5)
    return op.add("BatchNormalization", [source], {"epsilon": epsilon}, weights)


def instance_normalization(op: OnnxNode) -> Flow:
    """Each channel by its own mean and variance over all voxels; or each group of a reshape."""
    source = op.inputs[0] if op.inputs else None
    epsilon = op.number("epsilon", 1e-5)
    if isinstance(source, Flow) and source.groups:
        own = replace(source, groups=0)
        each = own.volume.channels // source.groups
        gamma, beta = (
            np.repeat(op.vector(n, name, source.groups), each)
            for n, name in ((1, "scale"), (2, "bias"))
        )
        return replace(_grouped(op, own, source.groups, epsilon, gamma, beta), groups=source.groups)
    source = op.flow()
    op.spatial(source)
    count = source.volume.channels
    gamma, beta = op.vector(1, "scale", count), op.vector(2, "bias", count)
    return _grouped(op, source, -1, epsilon, gamma, beta)


def group_normalization(op: OnnxNode) -> Flow:
    """Each group of channels by its mean and variance; scale and bias for each channel or group."""
    source = op.flow()
    op.spatial(source)
    count, groups = source.volume.channels, op.attributes.integer("num_groups", 0)
    if groups < 1 or count % groups:
        op.refuse(f"has num_groups={groups}, which must divide its {count} channels")
    each = 1 if op.opset >= 21 else count // groups
    gamma, beta = (
        np.repeat(op.vector(n, name, count // each), each)
        for n, name in ((1, "scale"), (2, "bias"))
    )
    return _grouped(op, source, groups, op.number("epsilon", 1e-5), gamma, beta)


def _grouped(
    op: OnnxNode, source: Flow, groups: int, epsilon: float, gamma: Array, beta: Array
) -> Flow:
    op.require_volume(source, "normalizes by all voxels of a plane")
    return op.add(
        "GroupNormalization",
        [source],
        {"groups": groups, "epsilon": epsilon},
        {"gamma": gamma, "beta": beta},
    )


def layer_normalization(op: OnnxNode) -> Flow:
    """Each voxel by the mean and variance of its channels, which are the last axis."""
    source = op.flow()
    axis = op.axis(source, -1)
    if source.layout[axis:] != "c":
        op.refuse(
            f"normalizes over the axes {'-'.join(source.layout[axis:].upper())}; it is taken over "
            "the channels"
        )
    count = source.volume.channels
    weights = {"gamma": op.vector(1, "scale", count)}
    weights["beta"] = op.vector(2, "bias", count) if op.given(2) else np.zeros(count)
    return op.add("LayerNormalization", [source], {"epsilon": op.number("epsilon", 1e-5)}, weights)


def reduce(op: OnnxNode) -> Flow:
    """ReduceMean and ReduceMax over all voxels; ReduceMean and ReduceSum over the channels."""
    source = op.flow()
    rank = len(source.layout)
    axes = op.axes(rank, 1)
    if not axes:
        if op.attributes.integer("noop_with_empty_axes", 0):
            return source
        axes = list(range(rank))
    letters = {source.layout[n] for n in axes if source.shape[n] > 1 or source.layout[n] == "c"}
    voxels = {x for x in SPATIAL if source.length(x) > 1}
    if not letters:  # of one voxel
        flow = source
    elif letters == {"c"} and op.operator in ("ReduceMean", "ReduceSum"):
        count = source.volume.channels
        each = 1 / count if op.operator == "ReduceMean" else 1.0
        kernel = np.full((1, 1, 1, count, 1), each)
        shape = Shape(*source.volume.size, 1)
        flow = op.add("Conv3D", [source], {}, {"kernel": kernel}, shape)
    elif letters == voxels and letters and op.operator in ("ReduceMean", "ReduceMax"):
        op.require_volume(source, "takes all voxels of a plane")
        name = "Global" + ("Average" if op.operator == "ReduceMean" else "Max") + "Pooling3D"
        flow = op.add(name, [source])
    else:
        what = "-".join(source.layout[n] for n in sorted(axes)).upper()
        op.refuse(
            f"runs over the axes {what}; it is taken over all voxels, or their mean or sum "
            "over the channels"
        )
    return flow if op.attributes.integer("keepdims", 1) else without_axes(flow, axes)


# --------------------------------------------------------------------------------------------------
# Channels and axes


def gemm(op: OnnxNode) -> Flow:
    """alpha · x · weights + beta · bias, of a vector of channels."""
    source = op.flow()
    if source.layout != "nc" or op.attributes.integer("transA", 0):
        op.refuse_axes(f"takes (batch, channels), received {'-'.join(source.layout.upper())}")
    weights = op.constant(1, "weights") * op.number("alpha", 1.0)
    kernel = weights.T if op.attributes.integer("transB", 0) else weights
    given: dict[str, Array] = {"kernel": kernel}
    if op.given(2):
        bias = op.constant(2, "bias") * op.number("beta", 1.0)
        if kernel.ndim != 2 or bias.size not in (1, kernel.shape[1]):
            op.refuse(f"has a bias of shape {bias.shape}")
        given["bias"] = np.broadcast_to(bias.reshape(-1), kernel.shape[1:])
    return op.add("Dense", [source], {}, given)


def matrix_product(op: OnnxNode) -> Flow:
    """The channels of each voxel, which are the last axis, times a matrix."""
    source = op.flow()
    kernel = op.constant(1, "weights")
    if source.layout[-1:] != "c" or kernel.ndim != 2:
        op.refuse(
            f"multiplies axes {'-'.join(source.layout.upper())} by weights of shape "
            f"{kernel.shape}; it is taken where the channels are the last axis"
        )
    return op.add("Dense", [source], {}, {"kernel": kernel})


def concatenate(op: OnnxNode) -> Flow:
    """The channels of all inputs, one after another."""
    flows = [op.flow(n) for n in range(len(op.inputs))]
    if not flows:
        op.refuse("lacks its inputs")
    axis = op.axis(flows[0], 1)
    if any(flow.layout != flows[0].layout for flow in flows):
        op.refuse_axes("joins tensors whose axes differ")
    if flows[0].layout[axis] != "c":
        op.refuse(
            f"joins along the axis {flows[0].layout[axis].upper()}; it is taken along channels"
        )
    return flows[0] if len(flows) == 1 else op.add("Concatenate", flows)


def split(op: OnnxNode) -> list[Flow]:
    """Parts of the channels."""
    source = op.flow()
    axis = op.axis(source, 0)
    if source.layout[axis] != "c":
        op.refuse(f"divides the axis {source.layout[axis].upper()}; it is taken on channels")
    count = source.volume.channels
    parts = op.attributes.integers("split")
    if op.given(1):
        parts = op.integers(1, "sizes")
    if parts is None:
        number = op.attributes.integer("num_outputs", op.outputs_wanted)
        each = -(-count // max(1, number))
        parts = [min(each, count - n * each) for n in range(number)] if number <= count else []
    if sum(parts) != count or min(parts, default=0) < 1:
        op.refuse(f"divides {count} channels into {parts[:8]}")
    ends = np.cumsum(parts).tolist()
    return [
        op.add("TakeChannels", [source], {"channels": list(range(end - n, end))})
        for end, n in zip(ends, parts, strict=True)
    ]


def gather(op: OnnxNode) -> Flow:
    """Channels by their numbers."""
    source = op.flow()
    axis = op.axis(source, 0)
    chosen = op.constant(1, "indices")
    if source.layout[axis] != "c" or chosen.ndim > 1 or not chosen.size:
        op.refuse(
            f"takes places along the axis {source.layout[axis].upper()} by indices of shape "
            f"{chosen.shape}; it is taken of channels, by a list"
        )
    count = source.volume.channels
    taken = [n + count if n < 0 else n for n in op.integers(1, "indices")]
    flow = op.add("TakeChannels", [source], {"channels": taken})
    return flow if chosen.ndim else without_axes(flow, [axis])


def transpose(op: OnnxNode) -> Flow:
    """Axes in another order: no voxel moves."""
    source = op.flow()
    rank = len(source.layout)
    order = op.attributes.integers("perm") or list(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        op.refuse(f"has perm={order[:8]} for a tensor of {rank} axes")
    return replace(
        source,
        layout="".join(source.layout[n] for n in order),
        shape=tuple(source.shape[n] for n in order),
    )


def squeeze(op: OnnxNode) -> Flow:
    """Without axes of length 1."""
    source = op.flow()
    axes = op.axes(len(source.layout), 1)
    if axes is None:
        axes = [n for n, length in enumerate(source.shape) if length == 1]
    if any(source.shape[n] != 1 for n in axes):
        op.refuse(f"takes away axes {axes} of a tensor of shape {source.shape}")
    return without_axes(source, axes)


def unsqueeze(op: OnnxNode) -> Flow:
    """With more axes of length 1."""
    source = op.flow()
    places = sorted(op.axes(len(source.layout), 1, new=True) or [])
    if len(source.layout) + len(places) > 8:
        op.refuse(f"adds axes {places[:8]} to a tensor of {len(source.layout)} axes")
    letters, lengths = list(source.layout), list(source.shape)
    for place in places:
        letters.insert(place, "1")
        lengths.insert(place, 1)
    return replace(source, layout="".join(letters), shape=tuple(lengths))


def reshape(op: OnnxNode) -> Flow:
    """Reshape and Flatten, where they only add or take away axes of length 1, or make groups."""
    given = op.inputs[0] if op.inputs else None
    source = given if isinstance(given, Flow) else op.flow()
    if op.operator == "Flatten":
        rank = len(source.shape)
        axis = rank if op.attributes.integer("axis", 1) == rank else op.axis(source, 1)
        target: tuple[int, ...] = math.prod(source.shape[:axis]), math.prod(source.shape[axis:])
    else:
        wanted = op.integers(1, "shape")
        shape = source.shape
        if source.groups:
            whole = math.prod(shape)
            shape = (shape[0], source.groups, whole // (shape[0] * source.groups))
        try:
            target = reshaped(shape, wanted, bool(op.attributes.integer("allowzero", 0)))
        except (ValueError, IndexError) as error:
            op.refuse(f"has a shape that its input does not have: {error}")
    if source.groups:
        if target != source.shape:
            op.refuse(f"makes {target} of groups of a tensor {source.shape}; it is taken only back")
        return replace(source, groups=0)
    if (same := _same_voxels(source, target)) is not None:
        return same
    batch, channels = source.shape[0], source.volume.channels
    if (
        source.layout[:2] == "nc"
        and len(target) == 3
        and target[0] == batch
        and channels % target[1] == 0
    ):
        return replace(source, groups=target[1])
    op.refuse(
        f"makes {target} of a tensor {source.shape}, so that voxels change their axes; it is taken "
        "where it adds or takes away axes of length 1"
    )


def _same_voxels(source: Flow, target: tuple[int, ...]) -> Flow | None:
    """The tensor with other axes of length 1; None if others change, too."""
    if target == source.shape:
        return source
    letters, lengths = [], list(zip(source.layout, source.shape, strict=True))
    for wanted in target:
        # what is left out must have the length 1
        while lengths and lengths[0][1] == 1 and lengths[0][1] != wanted:
            lengths.pop(0)
        if lengths and lengths[0][1] == wanted:
            letters.append(lengths.pop(0)[0])
        elif wanted == 1:
            letters.append("1")
        else:
            return None
    if any(length != 1 for _, length in lengths):
        return None
    return replace(source, layout="".join(letters), shape=target)


def expand(op: OnnxNode) -> Flow:
    """A tensor repeated along axes: to its own shape, to more channels, or to a volume's sizes."""
    source = op.flow()
    wanted = op.integers(1, "shape")
    if len(wanted) > len(source.shape) or min(wanted, default=1) < 1:
        op.refuse(f"makes {tuple(wanted)} of a tensor {source.shape}")
    wanted = [1] * (len(source.shape) - len(wanted)) + wanted
    target = [length if n == 1 else n for n, length in zip(wanted, source.shape, strict=True)]
    flow = source
    for letter, length, n in zip(source.layout, source.shape, target, strict=True):
        if n != length and (length != 1 or letter not in "cdhw"):
            op.refuse(f"makes {tuple(target)} of a tensor {source.shape}")
        if n != length and letter == "c":
            if n > MOST_CHANNELS:
                op.refuse(f"makes {n:,} channels; they are at most {MOST_CHANNELS:,}")
            flow = op.add("TakeChannels", [flow], {"channels": [0] * n})
    by_letter = dict(zip(source.layout, target, strict=True))
    sizes = [by_letter.get(letter, 1) for letter in SPATIAL]
    if tuple(sizes) == flow.volume.size:
        return flow
    like = op.of_size(sizes)
    inputs = [flow] if like is None else [flow, like]
    told = {"sizes": sizes} if like is None else {}
    return op.add("Resize", inputs, {**told, "coordinates": "asymmetric", "rounding": "floor"})


def cast(op: OnnxNode) -> Flow:
    """Casts between floats, and of the numbers of channels to integers."""
    source = op.flow()
    made = op.made(source)
    to = op.attributes.integer("to", 0)
    if to in (10, 16):
        op.note("casts to half floats are left out: conv3d computes in float32")
    if to in (1, 10, 11, 16) or (made is not None and made.operation == "ArgMax" and to in (6, 7)):
        return source
    op.refuse(f"casts to ONNX data type {to}; it is taken to floats, and of ArgMax to integers")


def dropout(op: OnnxNode) -> Flow:
    """Nothing, unless it acts as in training."""
    if op.given(2) and op.constant(2, "training mode").any():
        op.refuse("is in training mode; export the model for inference")
    return op.flow()


def identity(op: OnnxNode) -> Flow:
    """x"""
    found = op.inputs[0] if op.inputs else None
    return found if isinstance(found, Flow) else op.flow()


OPERATORS: dict[str, Translator] = {
    "Relu": _activation("relu"),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "HardSwish": _activation("hard_silu"),
    "Mish": _activation("mish"),
    "Exp": _activation("exponential"),
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Elu": elu,
    "Celu": celu,
    "Selu": selu,
    "ThresholdedRelu": thresholded_relu,
    "HardSigmoid": hard_sigmoid,
    "Shrink": shrink,
    "Gelu": gelu,
    "Swish": swish,
    "Erf": part,
    "Sqrt": part,
    "Greater": part,
    "Where": where,
    "Clip": clip,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "ArgMax": arg_max,
    "Add": add,
    "Sub": subtract,
    "Mul": multiply,
    "Div": divide,
    "Max": _many("Maximum"),
    "Min": _many("Minimum"),
    "Sum": _many("Add"),
    "Mean": _many("Average"),
    "Pow": power,
    "Neg": negate,
    "Abs": absolute,
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    "ReduceMax": reduce,
    "Gemm": gemm,
    "MatMul": matrix_product,
    "Concat": concatenate,
    "Split": split,
    "Gather": gather,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Reshape": reshape,
    "Flatten": reshape,
    "Expand": expand,
    "Cast": cast,
    "Dropout": dropout,
    "Identity": identity,
}
