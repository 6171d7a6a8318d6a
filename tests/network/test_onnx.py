"""ONNX graphs: every operator by a definition in NumPy, constants folded, sizes that follow from sizes, refusals."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import evaluate, graph_of, save_graph
from onnx import TensorProto, helper, numpy_helper
from oracle import conv3d
from scipy import special

from conv3d_cli.errors import Conv3DError, FormatError, MemoryLimitError, ShapeError, SpecError
from conv3d_cli.network.onnx import read_onnx_network
from conv3d_cli.system.room import ceiling_of_memory

Array = np.ndarray
node = helper.make_node


def read(folder: Path, *args: Any, **kwargs: Any) -> Any:
    return read_onnx_network(save_graph(folder, *args, **kwargs))


def output_of(folder: Path, x: Array, *args: Any, **kwargs: Any) -> Array:
    """The output of a graph for x (n, c, d, h, w)."""
    kwargs.setdefault("shape", ("n", x.shape[1], "d", "h", "w"))
    (found,) = evaluate(read(folder, *args, **kwargs), x).values()
    return found


@pytest.fixture
def x(rng: np.random.Generator) -> Array:
    return rng.normal(size=(2, 4, 5, 6, 7)).astype(np.float32)


def last(array: Array) -> Array:
    return np.moveaxis(array, 1, -1)


def first(array: Array) -> Array:
    return np.moveaxis(array, -1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions


@pytest.mark.parametrize(
    ("given", "padding"),
    [
        ({}, "valid"),
        ({"pads": [1, 0, 2, 0, 1, 1]}, [(1, 0), (0, 1), (2, 1)]),
        ({"pads": [1, 0, 2, 0, 1, 1], "strides": [2, 1, 3]}, [(1, 0), (0, 1), (2, 1)]),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2, 1]}, "same"),
        ({"auto_pad": "VALID", "dilations": [1, 2, 3]}, "valid"),
        ({"group": 2, "pads": [1, 1, 1, 1, 1, 1]}, [(1, 1)] * 3),
        ({"strides": [2, 1, 1], "dilations": [1, 2, 1]}, "valid"),
    ],
)
def test_conv(given, padding, x, rng, tmp_path):
    groups = given.get("group", 1)
    weights = rng.normal(size=(6, 4 // groups, 2, 3, 2)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    found = output_of(
        tmp_path, x, [node("Conv", ["x", "w", "b"], ["y"], **given)], {"w": weights, "b": bias}
    )
    want = conv3d(
        last(x), weights.transpose(2, 3, 4, 1, 0), bias, padding=padding, groups=groups,
        strides=tuple(given.get("strides", (1, 1, 1))), dilation_rate=tuple(given.get("dilations", (1, 1, 1))),
    )  # fmt: skip
    np.testing.assert_allclose(found, first(want), rtol=1e-12)


def test_auto_pad_same_lower_puts_the_odd_voxel_before(x, tmp_path):
    weights = np.zeros((1, 4, 1, 1, 2), np.float32)
    weights[0, 0, 0, 0, 0] = 1  # the voxel to the left
    found = output_of(
        tmp_path, x, [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_LOWER")], {"w": weights}
    )
    np.testing.assert_array_equal(found[:, 0, :, :, 1:], x[:, 0, :, :, :-1])
    assert not found[..., 0].any()


def scattered(
    x: Array, weights: Array, strides: Any, dilations: Any, pads: Any, more: Any, groups: int
) -> Array:
    """A transposed convolution: each input voxel adds its kernel to the output. (n, c, d, h, w)"""
    n, count, *size = x.shape
    each, taps = weights.shape[1], weights.shape[2:]
    full = [
        (size[a] - 1) * strides[a] + (taps[a] - 1) * dilations[a] + 1 + more[a] for a in range(3)
    ]
    out = np.zeros((n, each * groups, *full))
    for place in itertools.product(*map(range, size)):
        for tap in itertools.product(*map(range, taps)):
            to = tuple(
                p * s + t * r for p, s, t, r in zip(place, strides, tap, dilations, strict=True)
            )
            for c in range(count):
                g = c // (count // groups)
                out[(slice(None), slice(g * each, (g + 1) * each), *to)] += (
                    x[(slice(None), c, *place)].astype(np.float64)[:, None]
                    * weights[(c, slice(None), *tap)]
                )
    cut = tuple(slice(pads[a], full[a] - pads[a + 3]) for a in range(3))
    return out[(slice(None), slice(None), *cut)]


@pytest.mark.parametrize(
    "given",
    [
        {"strides": [2, 2, 2]},
        {"strides": [2, 1, 3], "pads": [1, 0, 0, 0, 1, 1], "output_padding": [1, 0, 2]},
        {"strides": [1, 2, 1], "dilations": [2, 1, 1], "group": 2},
        {"strides": [3, 2, 2], "kernel_shape": [2, 2, 3]},
    ],
)
def test_conv_transpose(given, x, rng, tmp_path):
    groups = given.get("group", 1)
    weights = rng.normal(size=(4, 3, 2, 2, 3)).astype(np.float32)
    found = output_of(
        tmp_path, x, [node("ConvTranspose", ["x", "w"], ["y"], **given)], {"w": weights}
    )
    want = scattered(
        x, weights, given["strides"], given.get("dilations", [1] * 3), given.get("pads", [0] * 6),
        given.get("output_padding", [0] * 3), groups,
    )  # fmt: skip
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "pads", "more"),
    [
        ({"auto_pad": "SAME_UPPER"}, [0, 0, 0, 0, 1, 1], [0, 0, 0]),
        ({"auto_pad": "SAME_LOWER"}, [0, 1, 1, 0, 0, 0], [0, 0, 0]),
        ({"output_shape": [9, 12, 14]}, [1, 1, 1, 0, 0, 0], [0, 0, 0]),
        ({"output_shape": [13, 13, 15]}, [0, 0, 0, 0, 0, 0], [3, 0, 0]),
    ],
)
def test_conv_transpose_to_a_shape(given, pads, more, x, rng, tmp_path):
    """As ONNX tells: the odd one is cut before, unless auto_pad is SAME_UPPER."""
    weights = rng.normal(size=(4, 2, 2, 3, 3)).astype(np.float32)
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2, 2], **given)]
    found = output_of(tmp_path, x, nodes, {"w": weights}, shape=x.shape)
    want = scattered(x, weights, [2] * 3, [1] * 3, pads, more, 1)
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Pooling


def pooled(x: Array, k: int, s: int, before: int, ceil: bool, what: str) -> Array:
    """Pooling along the width alone, window by window; what: max, mean, or all (padding counts)."""
    n = x.shape[-1]
    after = before
    count = (math.ceil if ceil else math.floor)((n + before + after - k) / s) + 1
    columns = []
    for o in range(count):
        start = o * s - before
        inside = [x[..., i] for i in range(start, start + k) if 0 <= i < n]
        padded = sum(-before <= i < n + after for i in range(start, start + k))
        values = np.stack(inside, -1).astype(np.float64)
        columns.append(
            values.max(-1)
            if what == "max"
            else values.sum(-1) / (padded if what == "all" else len(inside))
        )
    return np.stack(columns, -1)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("k", "s", "before"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 3, 1)])
@pytest.mark.parametrize("what", ["max", "mean", "all"])
def test_pooling(what, k, s, before, ceil, x, tmp_path):
    operator = "MaxPool" if what == "max" else "AveragePool"
    given = {
        "kernel_shape": [1, 1, k],
        "strides": [1, 1, s],
        "pads": [0, 0, before] * 2,
        "ceil_mode": int(ceil),
    }
    if what == "all":
        given["count_include_pad"] = 1
    for width in (6, 7):
        part = x[..., :width]
        found = output_of(tmp_path, part, [node(operator, ["x"], ["y"], **given)])
        np.testing.assert_allclose(found, pooled(part, k, s, before, ceil, what), rtol=1e-12)


@pytest.mark.parametrize(("k", "s", "rate", "before"), [(2, 1, 2, 0), (3, 2, 2, 1), (2, 3, 4, 1)])
@pytest.mark.parametrize("what", ["max", "mean", "all"])
def test_dilated_pooling(what, k, s, rate, before, run, x, tmp_path):
    given = {
        "kernel_shape": [k, 1, 1],
        "strides": [s, 1, 1],
        "pads": [before, 0, 0] * 2,
        "dilations": [rate, 1, 1],
    }
    if what != "max":
        given["count_include_pad"] = int(what == "all")
    planes = []
    for start in range(-before, 5 + before - (k - 1) * rate, s):
        inside = [
            x[:, :, at].astype(np.float64)
            for at in range(start, start + k * rate, rate)
            if 0 <= at < 5
        ]
        planes.append(
            np.max(inside, 0)
            if what == "max"
            else np.sum(inside, 0) / (k if what == "all" else len(inside))
        )
    nodes = [node("MaxPool" if what == "max" else "AveragePool", ["x"], ["y"], **given)]
    path = save_graph(tmp_path, nodes, shape=("n", 4, "d", "h", "w"))
    (found,) = evaluate(read_onnx_network(path), x).values()
    np.testing.assert_allclose(found, np.stack(planes, 2), rtol=1e-12)
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.stack(planes, 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("operator", "function"),
    [("GlobalAveragePool", np.mean), ("GlobalMaxPool", np.max), ("ReduceMean", np.mean)],
)
def test_global_pooling(operator, function, x, tmp_path):
    given = {"axes": [2, -2, 4]} if operator == "ReduceMean" else {}
    found = output_of(tmp_path, x, [node(operator, ["x"], ["y"], **given)])
    np.testing.assert_allclose(
        found, function(x.astype(np.float64), axis=(2, 3, 4), keepdims=True), rtol=1e-12
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def between(line: Array, at: list[float], nearest: Any = None) -> Array:
    """Values along the last axis at positions, clipped to the line, between neighbours or by rounding."""
    n = line.shape[-1]
    columns = []
    for position in at:
        if nearest is not None:
            columns.append(line[..., min(max(int(nearest(position)), 0), n - 1)])
            continue
        place = min(max(position, 0.0), n - 1.0)
        low = math.floor(place)
        high = min(low + 1, n - 1)
        columns.append(line[..., low] * (1 - (place - low)) + line[..., high] * (place - low))
    return np.stack(columns, -1)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("new", [3, 14, 10, 1])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
def test_resize_to_sizes(coordinates, new, mode, x, tmp_path):
    if (mode, new, coordinates) == ("nearest", 1, "half_pixel"):
        pytest.skip("a tie, which float32 decides")
    scale = new / 7
    at = {
        "half_pixel": [(o + 0.5) / scale - 0.5 for o in range(new)],
        "pytorch_half_pixel": [(o + 0.5) / scale - 0.5 if new > 1 else 0.0 for o in range(new)],
        "align_corners": [o * 6 / (new - 1) if new > 1 else 0.0 for o in range(new)],
        "asymmetric": [o / scale for o in range(new)],
    }[coordinates]
    given = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": "floor"}
    sizes = np.array([*x.shape[:4], new], np.int64)
    found = output_of(
        tmp_path,
        x,
        [node("Resize", ["x", "", "", "s"], ["y"], **given)],
        {"s": sizes},
        shape=x.shape,
    )
    nearest = (lambda p: math.floor(p + 1e-6)) if mode == "nearest" else None
    np.testing.assert_allclose(
        found, between(x.astype(np.float64), at, nearest), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("rounding", "want"),
    [("round_prefer_floor", [0, 0, 1, 1, 2]), ("round_prefer_ceil", [0, 1, 1, 2, 2]), ("floor", [0, 0, 1, 1, 2]), ("ceil", [0, 1, 1, 2, 2])],
)  # fmt: skip
def test_halves_are_rounded_as_told(rounding, want, tmp_path):
    line = np.arange(3, dtype=np.float32).reshape(1, 1, 1, 1, 3)
    given = {"coordinate_transformation_mode": "align_corners", "nearest_mode": rounding}
    sizes = np.array([1, 1, 1, 1, 5], np.int64)
    found = output_of(
        tmp_path,
        line,
        [node("Resize", ["x", "", "", "s"], ["y"], **given)],
        {"s": sizes},
        shape=line.shape,
    )
    assert found.reshape(-1).tolist() == want


def test_ties_that_runtimes_round_in_other_ways_are_refused(tmp_path):
    """The middle of an odd line lies at a voxel only up to the rounding of scales."""
    line = np.arange(7, dtype=np.float32).reshape(1, 1, 1, 1, 7)
    given = {"coordinate_transformation_mode": "half_pixel_symmetric", "nearest_mode": "floor"}
    for scale, mode, words in (
        (1.7, "nearest", "no whole sizes"),
        (1.7, "linear", ""),
        (2.0, "nearest", ""),
    ):
        scales = np.array([1, 1, 1, 1, scale], np.float32)
        resize = node("Resize", ["x", "", "s"], ["y"], mode=mode, **given)
        job = (tmp_path, line, [resize], {"s": scales})
        if not words:
            assert output_of(*job, shape=line.shape).shape[-1] == int(7 * scale)
            continue
        with pytest.raises(ShapeError, match=words):
            output_of(*job, shape=line.shape)


def test_upsample_of_opset_9(x, tmp_path):
    scales = np.array([1, 1, 2, 1, 3], np.float32)
    found = output_of(tmp_path, x, [node("Upsample", ["x", "s"], ["y"])], {"s": scales}, opset=9)
    np.testing.assert_array_equal(found, x.repeat(2, 2).repeat(3, 4))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad(mode, x, tmp_path):
    pads = np.array([0, 0, 2, 0, 3, 0, 0, 1, 4, 0], np.int64)
    inputs, stored = ["x", "p"], {"p": pads}
    if mode == "constant":
        inputs, stored = ["x", "p", "v"], {**stored, "v": np.float32(1.5)}
    found = output_of(tmp_path, x, [node("Pad", inputs, ["y"], mode=mode)], stored)
    fill = {"constant_values": 1.5} if mode == "constant" else {}
    want = np.pad(x, [(0, 0), (0, 0), (2, 1), (0, 4), (3, 0)], mode=mode, **fill)
    np.testing.assert_array_equal(found, want)


def test_pad_by_attributes_of_opset_9(x, tmp_path):
    nodes = [
        node("Pad", ["x"], ["y"], mode="constant", pads=[0, 0, 1, 0, 0, 0, 0, 0, 2, 0], value=-1.0)
    ]
    want = np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 2), (0, 0)], constant_values=-1)
    np.testing.assert_array_equal(output_of(tmp_path, x, nodes, opset=9), want)


def test_negative_pads_crop(x, tmp_path):
    pads = {"p": np.array([0, 0, -1, 2, 0, 0, 0, -2, 0, -3], np.int64)}
    found = output_of(tmp_path, x, [node("Pad", ["x", "p"], ["y"])], pads)
    np.testing.assert_array_equal(
        found, np.pad(x[:, :, 1:-2, :, :-3], [(0, 0)] * 3 + [(2, 0), (0, 0)])
    )


def test_slices_crop_and_take_channels(x, tmp_path):
    stored = {
        "starts": np.array([1, 3, 3], np.int64), "ends": np.array([-1, 2**62, -(2**62)], np.int64),
        "axes": np.array([2, -1, 1], np.int64), "steps": np.array([1, 1, -2], np.int64),
    }  # fmt: skip
    found = output_of(tmp_path, x, [node("Slice", ["x", *stored], ["y"])], stored)
    np.testing.assert_array_equal(found, x[:, ::-2, 1:-1, :, 3:])


# ---------------------------------------------------------------------------------------------------------------------
# Voxels


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


VOXELWISE = {
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "LeakyRelu": ({}, lambda x: np.where(x < 0, np.float32(0.01) * x, x)),
    "LeakyRelu.alpha": ({"alpha": 0.3}, lambda x: np.where(x < 0, 0.3 * x, x)),
    "Elu": ({"alpha": 1.5}, lambda x: np.where(x > 0, x, 1.5 * (np.exp(x) - 1))),
    "Celu": ({"alpha": 2.0}, lambda x: np.maximum(x, 0) + np.minimum(0, 2 * (np.exp(x / 2) - 1))),
    "Selu": ({}, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1))),
    "Selu.other": ({"alpha": 2.0, "gamma": 3.0}, lambda x: 3 * np.where(x > 0, x, 2 * (np.exp(x) - 1))),
    "Sigmoid": ({}, sigmoid),
    "Tanh": ({}, np.tanh),
    "Softplus": ({}, lambda x: np.log1p(np.exp(x))),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "HardSigmoid": ({}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    "HardSigmoid.sixth": ({"alpha": 1 / 6}, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    "HardSigmoid.other": ({"alpha": 0.4, "beta": 0.3}, lambda x: np.clip(0.4 * x + 0.3, 0, 1)),
    "HardSwish": ({}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Mish": ({}, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "Exp": ({}, np.exp),
    "Abs": ({}, np.abs),
    "Neg": ({}, np.negative),
    "ThresholdedRelu": ({}, lambda x: np.where(x > 1, x, 0)),
    "ThresholdedRelu.negative": ({"alpha": -0.5}, lambda x: np.where(x > -0.5, x, 0)),
    "Shrink": ({"lambd": 0.6}, lambda x: np.where(np.abs(x) > 0.6, x, 0)),
    "Shrink.soft": ({"lambd": 0.6, "bias": 0.6}, lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.6, 0)),
    "Gelu": ({}, lambda x: x * special.ndtr(x)),
    "Gelu.tanh": ({"approximate": "tanh"}, lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    "Softmax": ({"axis": 1}, lambda x: special.softmax(x, axis=1)),
    "Softmax.negative": ({"axis": -4}, lambda x: special.softmax(x, axis=1)),
    "LogSoftmax": ({"axis": 1}, lambda x: special.log_softmax(x, axis=1)),
    "ArgMax": ({"axis": 1}, lambda x: x.argmax(1)[:, None]),
    "Identity": ({}, lambda x: x),
    "Dropout": ({}, lambda x: x),
}  # fmt: skip


@pytest.mark.parametrize("case", VOXELWISE)
def test_voxelwise(case, x, tmp_path):
    given, function = VOXELWISE[case]
    operator = case.partition(".")[0]
    found = output_of(tmp_path, x, [node(operator, ["x"], ["y"], **given)], opset=20)
    np.testing.assert_allclose(found, function(x.astype(np.float64)), rtol=2e-6, atol=1e-7)


def test_equal_channels_give_the_first_or_the_last(tmp_path):
    x = np.array([3, 7, 7, 1], np.float32).reshape(1, 4, 1, 1, 1)
    for index, want in ((0, 1), (1, 2)):
        found = output_of(
            tmp_path, x, [node("ArgMax", ["x"], ["y"], axis=1, select_last_index=index)]
        )
        assert found.item() == want


@pytest.mark.parametrize(
    ("inputs", "want"),
    [(["lo", "hi"], (-0.5, 0.25)), (["lo"], (-0.5, None)), (["", "hi"], (None, 0.25)), ([], None)],
)
def test_clip_of_inputs(inputs, want, x, tmp_path):
    stored = {"lo": np.float32(-0.5), "hi": np.float32(0.25)}
    found = output_of(tmp_path, x, [node("Clip", ["x", *inputs], ["y"])], stored)
    np.testing.assert_array_equal(found, x if want is None else np.clip(x, *want))


def test_clip_of_attributes_and_of_limits_that_cross(x, tmp_path):
    found = output_of(tmp_path, x, [node("Clip", ["x"], ["y"], min=0.0, max=0.5)], opset=9)
    np.testing.assert_array_equal(found, np.clip(x, 0, 0.5))
    crossed = {"lo": np.float32(2), "hi": np.float32(1)}
    assert (output_of(tmp_path, x, [node("Clip", ["x", "lo", "hi"], ["y"])], crossed) == 1).all()


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (1,), (1, 4, 1, 1, 1)])
def test_prelu(shape, x, rng, tmp_path):
    slope = rng.normal(size=shape).astype(np.float32)
    found = output_of(tmp_path, x, [node("PRelu", ["x", "s"], ["y"])], {"s": slope})
    np.testing.assert_allclose(found, np.where(x < 0, slope.astype(np.float64) * x, x), rtol=1e-12)


GELU = {
    "x·0.5·(1 + erf)": [("Mul", "x", "half", "h"), ("Mul", "h", "e1", "y")],
    "x·(1 + erf)·0.5": [("Mul", "e1", "x", "h"), ("Mul", "h", "half", "y")],
    "0.5·(1 + erf)·x": [("Mul", "half", "e1", "h"), ("Mul", "x", "h", "y")],
}


@pytest.mark.parametrize("order", GELU)
def test_gelu_in_parts(order, x, tmp_path):
    stored = {"root": np.float32(math.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    nodes = [
        node("Div", ["x", "root"], ["s"]),
        node("Erf", ["s"], ["e"]),
        node("Add", ["e", "one"], ["e1"]),
    ]
    nodes += [node(operator, [a, b], [to]) for operator, a, b, to in GELU[order]]
    network = read(tmp_path, nodes, stored, ("n", 4, "d", "h", "w"))
    assert [one.operation for one in network.nodes] == ["Activation"]
    (found,) = evaluate(network, x).values()
    np.testing.assert_allclose(found, x * special.ndtr(x.astype(np.float64)), rtol=1e-6, atol=1e-9)


def test_erf_of_another_tensor_is_no_gelu(x, tmp_path):
    stored = {"root": np.float32(math.sqrt(2)), "one": np.float32(1)}
    nodes = [
        node("Div", ["x", "root"], ["s"]), node("Erf", ["s"], ["e"]), node("Add", ["e", "one"], ["e1"]),
        node("Relu", ["x"], ["r"]), node("Mul", ["r", "e1"], ["y"]),
    ]  # fmt: skip
    with pytest.raises(SpecError, match=r"\(Erf\) is taken only as a part of GELU"):
        read(tmp_path, nodes, stored)


def test_silu_needs_the_same_tensor(x, tmp_path):
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])]
    network = read(tmp_path, nodes)
    assert [one.operation for one in network.nodes] == ["Activation"]
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Sigmoid", ["r"], ["s"]),
        node("Mul", ["s", "x"], ["y"]),
    ]
    np.testing.assert_allclose(
        output_of(tmp_path, x, nodes), x * sigmoid(np.maximum(x, 0)), rtol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------
# Sums and products


CONSTANTS = [(), (1,), (4, 1, 1, 1), (1, 4, 1, 1, 1), (1, 1, 1, 1, 1, 1)]


@pytest.mark.parametrize("shape", CONSTANTS)
@pytest.mark.parametrize(
    ("operator", "function"), [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide), ("Max", np.maximum), ("Min", np.minimum)]
)  # fmt: skip
def test_joins_with_constants(operator, function, shape, x, rng, tmp_path):
    if shape == (1, 1, 1, 1, 1, 1):
        shape = (1, 4, 1, 1, 1)
        x = x[:, :1]  # one channel, which becomes four
    constant = rng.uniform(0.5, 2, size=shape).astype(np.float32)
    found = output_of(tmp_path, x, [node(operator, ["x", "k"], ["y"])], {"k": constant})
    np.testing.assert_allclose(found, function(x.astype(np.float64), constant), rtol=1e-7)
    if operator in ("Add", "Sub", "Mul"):
        found = output_of(tmp_path, x, [node(operator, ["k", "x"], ["y"])], {"k": constant})
        np.testing.assert_allclose(found, function(constant, x.astype(np.float64)), rtol=1e-7)


def test_joins_of_tensors(x, tmp_path):
    a, b = np.maximum(x, 0).astype(np.float64), np.abs(x).astype(np.float64)
    parts = [node("Relu", ["x"], ["a"]), node("Abs", ["x"], ["b"]), node("Tanh", ["x"], ["c"])]
    c = np.tanh(x.astype(np.float64))
    for operator, want in {
        "Sum": a + b + c, "Mean": (a + b + c) / 3, "Max": np.maximum(np.maximum(a, b), c), "Min": np.minimum(np.minimum(a, b), c),
    }.items():  # fmt: skip
        found = output_of(tmp_path, x, [*parts, node(operator, ["a", "b", "c"], ["y"])])
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)
    found = output_of(tmp_path, x, [*parts, node("Concat", ["b", "a"], ["y"], axis=-4)])
    np.testing.assert_array_equal(found, np.concatenate([b, a], 1))
    found = output_of(tmp_path, x, [*parts, node("Div", ["a", "b"], ["y"])])
    np.testing.assert_allclose(found, a / b)


def test_channels_are_split_and_gathered(x, tmp_path):
    nodes = [
        node("Split", ["x", "parts"], ["a", "b"], axis=1), node("Gather", ["x", "at"], ["g"], axis=1),
        node("Concat", ["b", "g", "a"], ["y"], axis=1),
    ]  # fmt: skip
    found = output_of(tmp_path, x, nodes, {"parts": np.array([1, 3]), "at": np.array([-1, 0])})
    np.testing.assert_array_equal(found, x[:, [1, 2, 3, 3, 0, 0]])


# ---------------------------------------------------------------------------------------------------------------------
# Normalizations


def standard(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def channelwise(values: Array) -> Array:
    return values.astype(np.float64).reshape(-1, 1, 1, 1)


def test_batch_normalization(x, rng, tmp_path):
    stored = {
        name: rng.uniform(0.5, 2, size=4).astype(np.float32)
        for name in ("scale", "bias", "mean", "var")
    }
    found = output_of(
        tmp_path, x, [node("BatchNormalization", ["x", *stored], ["y"], epsilon=0.01)], stored
    )
    scale, bias, mean, var = map(channelwise, stored.values())
    np.testing.assert_allclose(
        found, (x - mean) / np.sqrt(var + 0.01) * scale + bias, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("opset", [18, 21])
def test_normalization_of_groups(opset, x, rng, tmp_path):
    count = 2 if opset == 18 else 4
    stored = {
        name: rng.uniform(0.5, 2, size=count).astype(np.float32) for name in ("scale", "bias")
    }
    nodes = [node("GroupNormalization", ["x", *stored], ["y"], num_groups=2)]
    found = output_of(tmp_path, x, nodes, stored, opset=opset)
    want = standard(x.reshape(2, 2, -1), (2,), 1e-5).reshape(x.shape)
    scale, bias = (channelwise(np.repeat(values, 4 // count)) for values in stored.values())
    np.testing.assert_allclose(found, want * scale + bias, rtol=1e-9, atol=1e-12)


def test_instance_normalization_of_a_reshape_is_that_of_groups(x, rng, tmp_path):
    """As PyTorch writes GroupNorm."""
    stored = {
        "groups": np.array([0, 2, -1]), "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32),
        "gamma": rng.normal(size=(4, 1, 1, 1)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("Reshape", ["x", "groups"], ["r"]), node("InstanceNormalization", ["r", "one", "zero"], ["i"], epsilon=1e-3),
        node("Shape", ["x"], ["s"]), node("Reshape", ["i", "s"], ["b"]), node("Mul", ["b", "gamma"], ["y"]),
    ]  # fmt: skip
    found = output_of(tmp_path, x, nodes, stored)
    want = standard(x.reshape(2, 2, -1), (2,), 1e-3).reshape(x.shape) * stored["gamma"].astype(
        np.float64
    )
    np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)


def test_instance_normalization(x, rng, tmp_path):
    stored = {name: rng.normal(size=4).astype(np.float32) for name in ("scale", "bias")}
    found = output_of(tmp_path, x, [node("InstanceNormalization", ["x", *stored], ["y"])], stored)
    scale, bias = map(channelwise, stored.values())
    np.testing.assert_allclose(
        found, standard(x, (2, 3, 4), 1e-5) * scale + bias, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("in_parts", [False, True])
def test_layer_normalization_over_the_channels(in_parts, x, rng, tmp_path):
    gamma = rng.normal(size=4).astype(np.float32)
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 4, 1])]
    stored = {"g": gamma, "two": np.float32(2), "e": np.float32(1e-5)}
    if in_parts:
        nodes += [
            node("ReduceMean", ["t"], ["m"], axes=[-1]), node("Sub", ["t", "m"], ["d"]), node("Pow", ["d", "two"], ["q"]),
            node("ReduceMean", ["q"], ["v"], axes=[-1]), node("Add", ["v", "e"], ["ve"]), node("Sqrt", ["ve"], ["r"]),
            node("Div", ["d", "r"], ["n"]), node("Mul", ["n", "g"], ["l"]),
        ]  # fmt: skip
    else:
        nodes += [node("LayerNormalization", ["t", "g"], ["l"])]
    nodes += [node("Transpose", ["l"], ["y"], perm=[0, 4, 1, 2, 3])]
    want = standard(x, (1,), 1e-5) * channelwise(gamma)
    np.testing.assert_allclose(output_of(tmp_path, x, nodes, stored), want, rtol=1e-6, atol=1e-9)


def test_squeeze_and_excitation(x, rng, tmp_path):
    stored = {
        "w": rng.normal(size=(3, 4)).astype(np.float32), "v": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=3).astype(np.float32), "axes": np.array([2, 3, 4]),
    }  # fmt: skip
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]), node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "w", "b"], ["g"], transB=1),
        node("Relu", ["g"], ["r"]), node("MatMul", ["r", "v"], ["m"]), node("Sigmoid", ["m"], ["s"]),
        node("Unsqueeze", ["s", "axes"], ["u"]), node("Mul", ["x", "u"], ["y"]),
    ]  # fmt: skip
    w, v, b = (stored[name].astype(np.float64) for name in "wvb")
    gate = sigmoid(np.maximum(x.astype(np.float64).mean((2, 3, 4)) @ w.T + b, 0) @ v)
    np.testing.assert_allclose(
        output_of(tmp_path, x, nodes, stored), x * gate[:, :, None, None, None], rtol=1e-9
    )


# ---------------------------------------------------------------------------------------------------------------------
# Constants, sizes, axes


def test_weights_are_folded(x, rng, tmp_path):
    """DequantizeLinear, Cast, Transpose and arithmetic between a convolution and its weights."""
    codes = rng.integers(-9, 9, size=(4, 3, 1, 1, 1)).astype(np.int8)
    halves = rng.normal(size=3).astype(np.float16)
    stored = {
        "codes": codes,
        "scale": np.float32(0.25),
        "zero": np.int8(1),
        "halves": halves,
        "two": np.float32(2),
    }
    nodes = [
        node("DequantizeLinear", ["codes", "scale", "zero"], ["d"]), node("Transpose", ["d"], ["t"], perm=[1, 0, 2, 3, 4]),
        node("Mul", ["t", "two"], ["w"]), node("Cast", ["halves"], ["c"], to=TensorProto.FLOAT), node("Identity", ["c"], ["b"]),
        node("Conv", ["x", "w", "b"], ["y"]),
    ]  # fmt: skip
    weights = (codes.astype(np.float64) - 1) * 0.25 * 2
    want = np.einsum("ncdhw,cf->nfdhw", x, weights[..., 0, 0, 0]) + channelwise(halves)
    np.testing.assert_allclose(output_of(tmp_path, x, nodes, stored), want, rtol=1e-9, atol=1e-12)


def sized() -> list[Any]:
    """Nodes that resize `small` to the size of x: Shape, Slice, Concat, as exporters write it."""
    return [
        node("Shape", ["x"], ["sx"]), node("Slice", ["sx", "two", "five", "zero"], ["tail"]),
        node("Shape", ["small"], ["ss"]), node("Slice", ["ss", "zero", "two", "zero"], ["head"]),
        node("Concat", ["head", "tail"], ["sizes"], axis=0),
        node("Resize", ["small", "", "", "sizes"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]  # fmt: skip


NUMBERS = {"zero": np.array([0]), "two": np.array([2]), "five": np.array([5])}
HALVED = node("MaxPool", ["x"], ["small"], kernel_shape=[2, 2, 2], strides=[2, 2, 2])


@pytest.mark.parametrize("size", [(4, 6, 8), (5, 7, 9), (8, 6, 5)])
def test_sizes_follow_from_sizes(size, rng, tmp_path):
    """Resized to another tensor's size, at even and odd sizes."""
    x = rng.normal(size=(1, 2, *size)).astype(np.float32)
    found = output_of(tmp_path, x, [HALVED, *sized()], NUMBERS)
    halves = [n // 2 for n in size]
    small = x[:, :, : 2 * halves[0], : 2 * halves[1], : 2 * halves[2]]
    small = small.reshape(1, 2, halves[0], 2, halves[1], 2, halves[2], 2).max((3, 5, 7))
    at = [[o * h // n for o in range(n)] for h, n in zip(halves, size, strict=True)]
    np.testing.assert_array_equal(found, small[:, :, *np.ix_(*at)])


def test_a_model_for_one_size_is_refused_for_others(x, tmp_path):
    """A size that is stored as a number does not follow the volume's."""
    sizes = np.array([2, 4, 10, 12, 14], np.int64)
    network = read(tmp_path, [node("Resize", ["x", "", "", "s"], ["up"], mode="linear"), node("Relu", ["up"], ["y"])],
        {"s": sizes}, x.shape)  # fmt: skip
    assert evaluate(network, x)["y"].shape == (2, 4, 10, 12, 14)
    with pytest.raises(
        ShapeError,
        match=r"node 'up' \(Resize\) has other arguments for a volume of 4x6x7 with 4 ch",
    ):
        evaluate(network, x[:, :, :4])


def test_a_size_that_follows_in_no_known_way_is_refused(tmp_path):
    nodes = [
        node("Shape", ["x"], ["s"]), node("Add", ["s", "more"], ["sizes"]),
        node("Resize", ["x", "", "", "sizes"], ["y"]),
    ]  # fmt: skip
    with pytest.raises(
        SpecError, match=r"node 'y' \(Resize\) has other arguments for other sizes.*sizes=.*becomes"
    ):
        read(tmp_path, nodes, {"more": np.array([0, 0, 1, 1, 1])})


def test_a_unet_without_padding_is_cropped_as_computed(rng, tmp_path):
    """Sizes 6 + 4 n: the skip is cropped by what the graph computes of sizes, as 2 before and after."""
    x = rng.normal(size=(1, 1, 10, 6, 14)).astype(np.float32)
    weights = {
        "w": rng.normal(size=(1, 1, 3, 3, 3)).astype(np.float32),
        "two": np.array(2),
        "from": np.array([2]),
        "to": np.array([5]),
    }
    scales = {"s": np.array([1, 1, 2, 2, 2], np.float32), "axes": np.array([2, 3, 4])}
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("MaxPool", ["a"], ["p"], kernel_shape=[2] * 3, strides=[2] * 3), node("Resize", ["p", "", "s"], ["u"]),
        node("Conv", ["u", "w"], ["v"]), node("Shape", ["x"], ["sx"]), node("Slice", ["sx", "from", "to"], ["big"]),
        node("Shape", ["v"], ["sv"]), node("Slice", ["sv", "from", "to"], ["small"]), node("Sub", ["big", "small"], ["d"]),
        node("Div", ["d", "two"], ["begin"]), node("Add", ["begin", "small"], ["end"]), node("Slice", ["x", "begin", "end", "axes"], ["c"]),
        node("Concat", ["v", "c"], ["y"], axis=1),
    ]  # fmt: skip
    found = output_of(tmp_path, x, nodes, {**weights, **scales})
    assert found.shape == (1, 2, 6, 2, 10)
    np.testing.assert_array_equal(found[:, 1:], x[:, :, 2:-2, 2:-2, 2:-2])


def test_a_network_is_sent_to_other_processes(x, rng, tmp_path):
    small = rng.normal(size=(1, 2, 5, 7, 9)).astype(np.float32)
    network = read(tmp_path, [HALVED, *sized()], NUMBERS, ("n", 2, "d", "h", "w"))
    sent = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(evaluate(sent, small)["y"], evaluate(network, small)["y"])


def test_constants_of_the_volumes_size_take_no_memory(x, tmp_path):
    nodes = [
        node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["z"], value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Mul", ["z", "two"], ["k"]), node("Add", ["x", "k"], ["y"]),
    ]  # fmt: skip
    np.testing.assert_allclose(
        output_of(tmp_path, x, nodes, {"two": np.float32(2)}), x + 1.0, rtol=1e-7
    )


def test_a_graph_of_channels_last(x, rng, tmp_path):
    """As tf2onnx writes Keras models: a Transpose before the first convolution tells it."""
    weights = rng.normal(size=(3, 4, 1, 1, 1)).astype(np.float32)
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 4, 1, 2, 3]), node("Conv", ["t", "w"], ["c"]),
        node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 4, 1]),
    ]  # fmt: skip
    network = read(tmp_path, nodes, {"w": weights}, ("n", "d", "h", "w", 4))
    assert network.data_format == "channels_last"
    want = np.einsum("ncdhw,fc->nfdhw", x.astype(np.float64), weights[..., 0, 0, 0])
    np.testing.assert_allclose(evaluate(network, x)["y"], want, rtol=1e-9, atol=1e-12)


def test_the_refusal_is_that_of_the_axes_that_the_file_has(tmp_path):
    """Not that of channels last, which is tried next: there the weights would not fit, either."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Transpose", ["c"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Conv", ["t", "w"], ["y"]),
    ]
    with pytest.raises(
        SpecError,
        match=r"node 'y' \(Conv\) takes \(batch, channels, ...\), received axes N-D-C-H-W",
    ):
        read(tmp_path, nodes, {"w": np.ones((2, 1, 1, 1, 1), np.float32)})


def test_axes_in_another_order_turn_the_kernel(x, rng, tmp_path):
    weights = rng.normal(size=(1, 4, 1, 2, 3)).astype(np.float32)
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 1, 4, 2, 3]), node("Conv", ["t", "w"], ["c"], strides=[1, 2, 1]),
        node("Transpose", ["c"], ["y"], perm=[0, 1, 3, 4, 2]),
    ]  # fmt: skip
    kernel = weights.transpose(3, 4, 2, 1, 0)  # w, d, h of the file are d, h, w from the second on
    want = conv3d(last(x), kernel, strides=(2, 1, 1))
    np.testing.assert_allclose(
        output_of(tmp_path, x, nodes, {"w": weights}), first(want), rtol=1e-9, atol=1e-12
    )


def test_a_2d_network_acts_on_each_plane(x, rng, tmp_path):
    weights = rng.normal(size=(3, 4, 2, 3)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["c"], strides=[2, 1], auto_pad="SAME_UPPER"),
        node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2], strides=[1, 2]),
    ]  # fmt: skip
    network = read(tmp_path, nodes, {"w": weights}, ("n", 4, "h", "w"))
    assert network.notes == ("the network is 2-D: it is applied to each plane by itself",)
    sums = conv3d(last(x), weights.transpose(2, 3, 1, 0)[None], strides=(1, 2, 1), padding="same")
    want = np.maximum(sums[:, :, :-1], sums[:, :, 1:])
    want = np.maximum(want[:, :, :, 0:6:2], want[:, :, :, 1:7:2])
    np.testing.assert_allclose(evaluate(network, x)["y"], first(want), rtol=1e-9, atol=1e-12)


def test_channels_of_the_input_are_known_from_its_convolution(tmp_path):
    weights = {"w": np.ones((2, 3, 1, 1, 1), np.float32)}
    network = read(
        tmp_path, [node("Conv", ["x", "w"], ["y"], group=1)], weights, ("n", "c", "d", "h", "w")
    )
    assert network.inputs == {"x": 3}


def test_weights_in_a_file_beside_it(x, rng, tmp_path):
    weights = rng.normal(size=(3, 4, 1, 1, 1)).astype(np.float32)
    model = graph_of([node("Conv", ["x", "w"], ["y"])], {"w": weights}, ("n", 4, "d", "h", "w"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "4", "length": str(weights.nbytes)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (tmp_path / "w.bin").write_bytes(b"1234" + weights.tobytes())
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    network = read_onnx_network(str(tmp_path / "net.onnx"))
    np.testing.assert_array_equal(
        network.node("y").weights["kernel"][0, 0, 0], weights[..., 0, 0, 0].T
    )
    assert network.files == (str(tmp_path / "net.onnx"), str(tmp_path / "w.bin"))


# ---------------------------------------------------------------------------------------------------------------------
# Functions and branches


def function(name: str, inputs: str, outputs: str, nodes: list[Any], **more: Any) -> Any:
    """A function of the domain "own"; its tensors have names of one letter."""
    opsets = [helper.make_opsetid("", more.pop("opset", 17)), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, list(inputs), list(outputs), nodes, opsets, **more)


def save_functions(folder: Path, nodes: list[Any], functions: list[Any], **more: Any) -> str:
    """The path of a graph with functions."""
    model = graph_of(nodes, *more.values())
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend(functions)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return str(folder / "net.onnx")


def call(name: str, inputs: list[str], outputs: list[str], **more: Any) -> Any:
    return node(name, inputs, outputs, domain="own", **more)


def branch(*nodes: Any, output: str, stored: dict[str, Any] | None = None) -> Any:
    """A graph without inputs, for an If."""
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in (stored or {}).items()]
    value = helper.make_tensor_value_info(output, 1, None)
    return helper.make_graph(list(nodes), "branch", [], [value], tensors)


def told(attribute: str, by: str) -> Any:
    """An attribute of a node of a function that the call gives."""
    found = helper.make_attribute(attribute, 0.0)
    found.ClearField("f")
    found.ref_attr_name = by
    return found


def test_functions_stand_for_their_nodes(tmp_path: Path) -> None:
    bent = node("LeakyRelu", ["a"], ["t"])
    bent.attribute.append(told("alpha", "slope"))
    bend = function("Bend", "a", "b", [bent, node("Neg", ["t"], ["b"])], attributes=["slope"])
    twice = function(
        "Twice",
        "a",
        "b",
        [call("Bend", ["a"], ["t"], slope=0.5), call("Bend", ["t"], ["b"], slope=2.0)],
    )
    shift = function("Shift", "ak", "b", [node("Add", ["a", "k"], ["b"])])
    nodes = [
        call("Twice", ["x"], ["t"]),
        call("Shift", ["t", "k"], ["u"]),
        call("Twice", ["u"], ["y"]),
    ]
    path = save_functions(tmp_path, nodes, [bend, twice, shift], stored={"k": np.float32(0.25)})
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4))
    (found,) = evaluate(read_onnx_network(path), x).values()

    def double(z: Array) -> Array:
        for slope in (0.5, 2.0):
            z = -np.where(z > 0, z, slope * z)
        return z

    np.testing.assert_allclose(found, double(double(x) + 0.25), rtol=1e-6)


def test_attributes_of_functions_have_defaults(tmp_path: Path) -> None:
    bent = node("LeakyRelu", ["a"], ["b"])
    bent.attribute.append(told("alpha", "slope"))
    bend = function(
        "Bend", "a", "b", [bent], attribute_protos=[helper.make_attribute("slope", 0.5)]
    )
    x = -np.ones((1, 1, 1, 1, 2))
    for given, expected in ({}, -0.5), ({"slope": 0.25}, -0.25):
        path = save_functions(tmp_path, [call("Bend", ["x"], ["y"], **given)], [bend])
        (found,) = evaluate(read_onnx_network(path), x).values()
        assert found.ravel().tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([function("F", "a", "b", [call("F", ["a"], ["b"])])], r"'y' \(F\) is a function .* calls itself"),
        ([function("F", "a", "b", [node("Relu", ["a"], ["b"])], opset=9)], "of ONNX opset 9, and the file is of 17"),
        ([function("F" * (n + 1), "a", "b", [call("F" * (n + 2), ["a"], ["t"]), call("F" * (n + 2), ["t"], ["b"])]) for n in range(40)], "make more than 20,000 nodes"),
        ([function("F" * (n + 1), "a", "b", [call("F" * (n + 2), ["a"], ["t"]), call("F" * (n + 2), ["t"], ["b"])]) for n in range(40)] + [function("F" * 41, "a", "a", [])], "make more than 20,000 nodes"),
        ([function("F" * (n + 1), "a", "b", [call("F" * (n + 2), ["a"], []), call("F" * (n + 2), ["a"], [])]) for n in range(40)] + [function("F" * 41, "a", "b", [])], "make more than 20,000 nodes"),
        ([function("F" * (n + 1), "ac", "b", [node("If", ["c"], ["b"], then_branch=branch(call("F" * (n + 2), ["a", "c"], ["p"]), output="p"), else_branch=branch(output="a"))]) for n in range(60)], "more than 40 graphs within each other"),
    ],
    ids=["itself", "opset", "bomb", "bomb of nothing", "bomb without nodes", "deep"],
)  # fmt: skip
def test_functions_that_are_refused(functions: list[Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        read_onnx_network(save_functions(tmp_path, [call("F", ["x"], ["y"])], functions))


def test_a_branch_is_chosen_by_sizes_and_constants(tmp_path: Path) -> None:
    weights = np.full((1, 1, 1, 1, 1), 3, np.float32)
    constant = node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32(5)))
    choice = node(
        "If",
        ["c"],
        ["z"],
        then_branch=branch(node("Conv", ["x", "v"], ["p"]), output="p", stored={"v": weights}),
        else_branch=branch(constant, node("Mul", ["x", "k"], ["q"]), output="q"),
    )
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "one"], ["n"]),
        node("Equal", ["n", "count"], ["c"]),
        choice,
        node("Neg", ["z"], ["y"]),
    ]
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4))
    for count, by in ((1, -3), (2, -5)):
        stored = {"one": np.int64(1), "count": np.int64(count)}
        found = output_of(tmp_path, x, nodes, stored)
        np.testing.assert_allclose(found, by * x, rtol=1e-6)
    found = output_of(tmp_path, x, nodes[3:], {"c": np.array(False)})
    np.testing.assert_allclose(found, -5 * x, rtol=1e-6)


def test_branches_of_functions_take_the_tensors_and_attributes_of_the_call(tmp_path: Path) -> None:
    """The graph has tensors of the names of the function's, too."""
    bent = node("LeakyRelu", ["a"], ["p"])
    bent.attribute.append(told("alpha", "slope"))
    choice = node(
        "If",
        ["c"],
        ["b"],
        then_branch=branch(bent, output="p"),
        else_branch=branch(call("Twice", ["a"], ["q"]), output="q"),
    )
    bend = function("Bend", "ac", "b", [choice], attributes=["slope"])
    twice = function("Twice", "a", "b", [node("Add", ["a", "a"], ["b"])])
    nodes = [
        node("Neg", ["x"], ["a"]),
        node("Mul", ["a", "k"], ["h"]),
        call("Bend", ["h", "yes"], ["p"], slope=0.5),
        call("Bend", ["p", "no"], ["q"], slope=0.25),
        node("Add", ["q", "a"], ["y"]),
    ]
    stored = {"k": np.float32(3), "yes": np.array(True), "no": np.array(False)}
    path = save_functions(tmp_path, nodes, [bend, twice], stored=stored)
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4))
    (found,) = evaluate(read_onnx_network(path), x).values()
    h = -3 * x
    np.testing.assert_allclose(found, 2 * np.where(h > 0, h, 0.5 * h) - x, rtol=1e-6)


def test_functions_are_told_by_domain_name_and_overload(tmp_path: Path) -> None:
    other = function("F", "a", "b", [node("Exp", ["a"], ["b"])])
    other.domain = "another"
    first = function("F", "a", "b", [node("F", ["a"], ["b"], domain="another")])
    second = function("F", "a", "b", [node("Neg", ["a"], ["b"])])
    nodes = [call("F", ["x"], ["t"]), call("F", ["t"], ["y"])]
    for number, one in enumerate((first, second)):
        one.overload = nodes[number].overload = f"variant {number}"
    path = save_functions(tmp_path, nodes, [first, second, other])
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4))
    (found,) = evaluate(read_onnx_network(path), x).values()
    np.testing.assert_allclose(found, -np.exp(x), rtol=1e-6)


def test_a_function_may_return_what_it_takes(tmp_path: Path) -> None:
    both = function("Both", "a", "ab", [node("Neg", ["a"], ["b"])])
    nodes = [call("Both", ["x"], ["s", "t"]), node("Mul", ["s", "t"], ["y"])]
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4))
    (found,) = evaluate(read_onnx_network(save_functions(tmp_path, nodes, [both])), x).values()
    np.testing.assert_allclose(found, -x * x, rtol=1e-6)


def test_functions_that_hold_much_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    numbers = numpy_helper.from_array(np.zeros(1 << 20, np.float32))
    held = function(
        "Held", "a", "b", [node("Constant", [], ["k"], value=numbers), node("Neg", ["a"], ["b"])]
    )
    nodes = [
        call("Held", [f"t{n}" if n else "x"], [f"t{n + 1}" if n < 99 else "y"]) for n in range(100)
    ]
    path = save_functions(tmp_path, nodes, [held])
    with (
        ceiling_of_memory(300 << 20),
        pytest.raises(MemoryLimitError, match="the nodes of its functions needs"),
    ):
        read_onnx_network(path)


def test_names_of_a_branch_are_its_own(tmp_path: Path) -> None:
    scaled = branch(node("Mul", ["x", "w"], ["p"]), output="p", stored={"w": np.float32(3)})
    choice = node("If", ["c"], ["u"], then_branch=scaled, else_branch=scaled)
    later = node("Constant", [], ["w"], value=numpy_helper.from_array(np.float32(7)))
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4))
    nodes = [choice, later, node("Mul", ["u", "w"], ["y"])]
    found = output_of(tmp_path, x, nodes, {"c": np.array(True)})
    np.testing.assert_allclose(found, 21 * x, rtol=1e-6)


def test_an_output_that_a_branch_gives_for_some_sizes_is_refused_for_these(tmp_path: Path) -> None:
    choice = node(
        "If",
        ["c"],
        ["y"],
        then_branch=branch(node("Neg", ["z"], ["p"]), output="p"),
        else_branch=branch(node("Identity", ["z"], ["q"]), output="q"),
    )
    nodes = [
        node("Abs", ["x"], ["z"]),
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "axis"], ["n"]),
        node("Equal", ["n", "three"], ["c"]),
        choice,
    ]
    stored = {"axis": np.int64(3), "three": np.int64(3)}
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 4, 4))
    np.testing.assert_allclose(output_of(tmp_path, x, nodes, stored), np.abs(x), rtol=1e-6)
    with pytest.raises(ShapeError, match="output 'y' is that of other nodes for a volume"):
        output_of(tmp_path, x[:, :, :, :3], nodes, stored)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def subgraph() -> Any:
    return helper.make_graph(
        [node("Relu", ["x"], ["z"])], "inner", [], [helper.make_tensor_value_info("z", 1, None)]
    )


W = {"w": np.ones((2, 1, 1, 1, 1), np.float32)}
REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "unknown": ([node("LRN", ["x"], ["y"], name="norm", size=3)], {}, r"node 'norm' \(LRN\) is not understood; understood are Abs, Add, "),
    "domain": ([node("FusedConv", ["x"], ["y"], domain="com.microsoft")], {}, "is an operator of the domain com.microsoft; give the model as it was before"),
    "quantized": ([node("QuantizeLinear", ["x", "s"], ["y"])], {"s": np.float32(1)}, "not understood; give the model as it was before it was quantized"),
    "subgraph": ([node("If", ["x"], ["y"], name="choice", then_branch=subgraph(), else_branch=subgraph())], {}, r"node 'choice' \(If\) holds graphs .* whose condition does not"),
    "no output": ([node("Relu", ["x"], ["z"])], {}, "output 'y' takes 'y', which no node"),
    "weights of the volume": ([node("Relu", ["x"], ["w2"]), node("Conv", ["x", "w2"], ["y"])], {}, "computed from the volume, by node 'w2'"),
    "weights of 4 axes": ([node("Conv", ["x", "w4"], ["y"])], {"w4": np.ones((2, 1, 1, 1), np.float32)}, "has 3 spatial axes"),
    "other channels": ([node("Conv", ["x", "w3"], ["y"])], {"w3": np.ones((2, 3, 1, 1, 1), np.float32)}, "and takes 1 channels"),
    "bias of other size": ([node("Conv", ["x", "w", "b"], ["y"])], {**W, "b": np.ones(3, np.float32)}, r"bias of shape \(3,\) for 2 channels"),
    "auto_pad": ([node("Conv", ["x", "w"], ["y"], auto_pad="SAME")], W, "auto_pad=SAME"),
    "strides": ([node("Conv", ["x", "w"], ["y"], strides=[0, 1, 1])], W, r"strides=\[0, 1, 1\]"),
    "pads": ([node("Conv", ["x", "w"], ["y"], pads=[1, 1])], W, r"pads=\[1, 1\] for 6"),
    "indices": ([node("MaxPool", ["x"], ["z", "i"], kernel_shape=[2] * 3), node("Relu", ["i"], ["y"])], {}, "an output of node 'z'"),
    "ceil beyond": ([node("MaxPool", ["x"], ["y"], kernel_shape=[2] * 3, strides=[2] * 3, pads=[1] * 6, ceil_mode=1)], {}, "may lie outside"),
    "cubic": ([node("Resize", ["x", "", "s"], ["y"], mode="cubic")], {"s": np.ones(5, np.float32)}, "mode=cubic; known are nearest and linear"),
    "antialias": ([node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1)], {"s": np.ones(5, np.float32)}, "antialias"),
    "crop and resize": ([node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="tf_crop_and_resize")], {"s": np.ones(5, np.float32)}, "tf_crop_and_resize; known are"),
    "halves of TensorFlow": ([node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="tf_half_pixel_for_nn")], {"s": np.ones(5, np.float32)}, "tf_half_pixel_for_nn, which is taken with mode=nearest and nearest_mode=floor"),
    "resized channels": ([node("Resize", ["x", "", "s"], ["y"])], {"s": np.array([1, 2, 1, 1, 1], np.float32)}, "the batch or the channels"),
    "wrapped": ([node("Pad", ["x", "p"], ["y"], mode="wrap")], {"p": np.zeros(10, np.int64)}, "mode=wrap"),
    "padded channels": ([node("Pad", ["x", "p"], ["y"])], {"p": np.eye(10, dtype=np.int64)[1]}, "pads the batch or the channels"),
    "softmax of width": ([node("Softmax", ["x"], ["y"])], {}, "runs over the axes W together"),
    "softmax of all": ([node("Softmax", ["x"], ["y"], axis=1)], {"opset": 11}, "runs over the axes C-D-H-W together"),
    "argmax of depth": ([node("ArgMax", ["x"], ["y"], axis=2)], {}, "runs over the axis D"),
    "joined along depth": ([node("Concat", ["x", "x"], ["y"], axis=2)], {}, "joins along the axis D"),
    "other axes": ([node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2, 4]), node("Add", ["x", "t"], ["y"])], {}, "whose axes differ"),
    "output turned": ([node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2, 4])], {}, "order N-C-H-D-W; volumes have theirs"),
    "moved voxels": ([node("Reshape", ["x", "s"], ["y"])], {"s": np.array([0, -1])}, "so that voxels change their axes"),
    "constant of voxels": ([node("Add", ["x", "k"], ["y"])], {"k": np.arange(3, dtype=np.float32)}, "larger than its tensor"),
    "division by zero": ([node("Div", ["x", "k"], ["y"])], {"k": np.float32(0)}, "divides by zero"),
    "constant by tensor": ([node("Div", ["k", "x"], ["y"])], {"k": np.float32(1)}, "divides a constant by a tensor"),
    "training": ([node("BatchNormalization", ["x", *"abcd"], ["y"], training_mode=1)], {n: np.ones(1, np.float32) for n in "abcd"}, "training mode"),
    "cast to integers": ([node("Cast", ["x"], ["y"], to=TensorProto.INT32)], {}, "casts to ONNX data type 6"),
    "old": ([node("Relu", ["x"], ["y"])], {"opset": 8}, "opset 8, read are 9 and later"),
    "integers": ([node("Relu", ["x"], ["y"])], {"dtype": TensorProto.INT8}, "before it is quantized"),
    "constant output": ([node("Relu", ["w"], ["y"])], W, "no input that its outputs follow from"),
    "mean over no axis": ([node("ReduceMean", ["x"], ["y"], axes=[2, 3, 5])], {}, r"has axes=\[2, 3, 5\] for a tensor of 5 axes; each must be one of its axes"),
    "axes that come twice": ([node("Unsqueeze", ["x", "a"], ["y"])], {"a": np.array([0, -7])}, r"axes=\[0, -7\] for a tensor of 7 axes; each must be one"),
    "squeezed axes": ([node("Squeeze", ["x", "a"], ["y"])], {"a": np.array([6])}, "each must be one of its axes"),
    "resized axes": ([node("Resize", ["x", "", "s"], ["y"], axes=[7])], {"s": np.full(1, 2, np.float32), "opset": 18}, "each must be one of its axes"),
    "padded axes": ([node("Pad", ["x", "p", "", "a"], ["y"])], {"p": np.array([1, 1]), "a": np.array([7]), "opset": 18}, "each must be one of its axes"),
    "parts of axes": ([node("ReduceSum", ["x", "a"], ["y"])], {"a": np.array([2.5], np.float32)}, "has axes of type float32 instead of whole numbers"),
    "parts of pads": ([node("Pad", ["x", "p"], ["y"])], {"p": np.full(10, 0.5, np.float32)}, "has pads of type float32 instead of"),
    "parts of channels": ([node("Split", ["x", "p"], ["y"], axis=1)], {"p": np.array([np.nan], np.float32)}, r"node 'y' \(Split\) has sizes of type float32"),
    "parts of places": ([node("Gather", ["x", "p"], ["y"], axis=1)], {"p": np.array([0.5])}, "has indices of type float64"),
    "parts of sizes": ([node("Resize", ["x", "", "", "s"], ["y"])], {"s": np.full(5, 1.5)}, "has sizes of type float64"),
    "a shape of parts": ([node("Reshape", ["x", "s"], ["y"])], {"s": np.full(5, np.inf, np.float32)}, "has shape of type float32"),
    "an expanded shape of parts": ([node("Expand", ["x", "s"], ["y"])], {"s": np.full(5, np.inf, np.float32)}, "has shape of type float32"),
    "a slope that is none": ([node("LeakyRelu", ["x"], ["y"], alpha=math.nan)], {}, r"node 'y' \(LeakyRelu\) has alpha=nan; it must be a finite number"),
    "an epsilon without end": ([node("InstanceNormalization", ["x", "a", "a"], ["y"], epsilon=math.inf)], {"a": np.ones(1, np.float32)}, "has epsilon=inf"),
    "flattened at no axis": ([node("Flatten", ["x"], ["y"], axis=9)], {}, r"^node 'y' \(Flatten\) has axis=9 for a tensor of 5 axes$"),
    "plane statistics": ([node("GlobalAveragePool", ["x"], ["y"])], {"shape": ("n", 1, "h", "w")}, "fewer than three spatial axes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_node(case, tmp_path):
    nodes, given, words = REFUSED[case]
    settings = {key: given[key] for key in ("opset", "dtype", "shape") if key in given}
    stored = {key: value for key, value in given.items() if key not in settings}
    with pytest.raises(Conv3DError, match=words):
        read(tmp_path, nodes, stored, **settings)


def test_weights_that_are_no_numbers(tmp_path):
    """A NaN that signals would warn where it is widened."""
    weights = np.frombuffer(bytes.fromhex("0100a07f") * 2, np.float32).reshape(2, 1, 1, 1, 1)
    network = read(tmp_path, [node("Conv", ["x", "w"], ["y"])], {"w": weights})
    with pytest.raises(
        ShapeError, match=r"node 'y' \(Conv3D\) has NaN or infinite weights 'kernel'"
    ):
        evaluate(network, np.zeros((1, 1, 2, 2, 2)))


def test_several_inputs_are_refused_by_name(tmp_path):
    model = graph_of([node("Add", ["x", "z"], ["y"])])
    model.graph.input.append(helper.make_tensor_value_info("z", 1, ["n", 1, "d", "h", "w"]))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SpecError, match="the graph has 2 inputs, x, z; a job has one volume"):
        read_onnx_network(str(tmp_path / "net.onnx"))


def test_a_cycle_or_a_later_node_is_refused(tmp_path):
    with pytest.raises(FormatError, match="takes 'b', which no node before it gives"):
        read(tmp_path, [node("Add", ["x", "b"], ["y"]), node("Relu", ["y"], ["b"])])


@pytest.mark.parametrize(
    "nodes",
    [
        [
            node("ConstantOfShape", ["huge"], ["k"]),
            node("Tile", ["k", "huge"], ["z"]),
            node("Add", ["x", "z"], ["y"]),
        ],
        [
            node("Expand", ["one", "huge"], ["k"]),
            node("Reshape", ["k", "all"], ["z"]),
            node("Add", ["x", "z"], ["y"]),
        ],
        [node("Range", ["start", "end", "step"], ["k"]), node("Add", ["x", "k"], ["y"])],
    ],
)
def test_constants_that_would_fill_the_memory_are_not_made(nodes, tmp_path):
    stored = {
        "huge": np.array([1 << 30, 1 << 30]), "one": np.ones((1, 1), np.float32), "all": np.array([-1]),
        "start": np.int64(0), "end": np.int64(1 << 60), "step": np.int64(1),
    }  # fmt: skip
    with pytest.raises(ShapeError, match="numbers of constants, more than weights"):
        read(tmp_path, nodes, stored)


def test_many_scalings_are_read_in_time_that_grows_with_their_number(tmp_path):
    names = ["x", *(f"n{number}" for number in range(1999)), "y"]
    nodes = [node("Mul", [a, "k"], [b]) for a, b in itertools.pairwise(names)]
    started = time.process_time()
    network = read(tmp_path, nodes, {"k": np.float32(1.01)})
    assert time.process_time() - started < 6  # 14 s if each looks through all before it
    assert len(network.nodes) == len(nodes)


# ---------------------------------------------------------------------------------------------------------------------
# From the command line


def small_unet(rng: np.random.Generator) -> tuple[list[Any], dict[str, Array]]:
    """Convolution, pooling, transposed convolution, padding by the border, a skip, softmax."""

    def draw(*shape: int) -> Array:
        return (rng.normal(size=shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)

    stored = {
        "w1": draw(6, 2, 3, 3, 3), "b1": draw(6), "w2": draw(8, 6, 3, 3, 3), "w3": draw(8, 6, 2, 2, 2), "w4": draw(3, 12, 3, 3, 3),
        "p": np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1]), "lo": np.float32(-0.4), "hi": np.float32(0.9), "s": np.array([1, 1, 2, 2, 2], np.float32),
        "w5": draw(6, 6, 1, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Pad", ["x", "p"], ["xp"], mode="reflect"), node("Conv", ["xp", "w1", "b1"], ["c1"]), node("LeakyRelu", ["c1"], ["a1"], alpha=0.1),
        node("MaxPool", ["a1"], ["m"], kernel_shape=[2, 2, 2], strides=[2, 2, 2]), node("Conv", ["m", "w2"], ["c2"], pads=[1] * 6),
        node("Clip", ["c2", "lo", "hi"], ["a2"]), node("ConvTranspose", ["a2", "w3"], ["u"], strides=[2, 2, 2]),
        node("Conv", ["m", "w5"], ["c5"]), node("Resize", ["c5", "", "s"], ["r"], mode="linear"), node("Add", ["u", "r"], ["ur"]),
        node("Concat", ["ur", "a1"], ["j"], axis=1), node("Pad", ["j", "p"], ["jp"], mode="edge"), node("Conv", ["jp", "w4"], ["c4"]),
        node("Softmax", ["c4"], ["y"], axis=1),
    ]  # fmt: skip
    return nodes, stored


def test_a_unet_streams_with_the_same_bytes(run, rng, tmp_path):
    nodes, stored = small_unet(rng)
    path = save_graph(tmp_path, nodes, stored, ("n", 2, "d", "h", "w"))
    x = rng.normal(size=(1, 2, 48, 40, 44)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    written = []
    for ceiling in ("2G", "232M"):
        run(
            "apply",
            tmp_path / "x.npy",
            "-c",
            path,
            "-o",
            tmp_path / "y.npy",
            "--max-memory",
            ceiling,
            "--overwrite",
        )
        written.append((tmp_path / "y.npy").read_bytes())
    assert written[0] == written[1]
    want = evaluate(read_onnx_network(path), x)["y"]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, atol=2e-6)


def test_labels_of_a_network(run, rng, tmp_path):
    nodes, stored = small_unet(rng)
    path = save_graph(
        tmp_path,
        [*nodes[:-1], node("ArgMax", ["c4"], ["y"], axis=1)],
        stored,
        ("n", 2, "d", "h", "w"),
    )
    x = rng.normal(size=(1, 2, 8, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy", "--dtype", "uint8")
    labels = np.load(tmp_path / "y.npy")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, evaluate(read_onnx_network(path), x)["y"])


@pytest.mark.parametrize(
    ("nodes", "shape", "code", "words"),
    [
        ([node("LSTM", ["x"], ["y"], name="memory")], (1, 1, 4, 4, 4), 2, "node 'memory' (LSTM) is not understood"),
        ([node("Relu", ["x"], ["y"])], (1, 3, 4, 4, 4), 4, "the network takes 1 channel, but the volume has 3"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[9] * 3)], (1, 1, 4, 4, 4), 4, "node 'y' (MaxPooling3D) leaves no voxel"),
    ],
)  # fmt: skip
def test_one_line_and_nothing_written(nodes, shape, code, words, run, error_line, tmp_path):
    path = save_graph(tmp_path, nodes)
    np.save(tmp_path / "x.npy", np.zeros(shape, np.float32))
    result = run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy", code=code)
    assert words in error_line(result.output)
    assert not (tmp_path / "y.npy").exists()


def test_a_refused_graph_offers_the_layers_that_run_alone(run, error_line, rng, tmp_path):
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first"),
        node("LRN", ["a"], ["y"], name="norm", size=3),
    ]
    stored = {"w": rng.normal(size=(2, 1, 3, 3, 3)).astype(np.float32)}
    path = save_graph(tmp_path, nodes, stored)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 4, 5, 6), np.float32))
    job = ["apply", tmp_path / "x.npy", "-o", tmp_path / "y.npy"]
    line = error_line(run(*job, "-c", path, code=2).output)
    name = line.partition(f"; run a layer alone, as in -k {path}::")[2].partition(" (it holds ")[0]
    assert name, line
    run(*job, "-k", f"{path}::{name}", "--data-format", "channels_first")
    assert np.load(tmp_path / "y.npy").shape == (1, 2, 2, 3, 4)
    alone = save_graph(tmp_path, [node("LRN", ["x"], ["y"], name="norm", size=3)])
    assert "alone" not in run(*job, "-c", alone, code=2).output


def test_channels_along_another_axis_are_told(run, error_line, tmp_path):
    path = save_graph(tmp_path, [node("Relu", ["x"], ["y"])])
    np.save(tmp_path / "x.npy", np.zeros((1, 4, 5, 6, 1), np.float32))
    result = run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy", code=4)
    assert (
        "if its channels are the last axis, pass --data-format channels_last; else"
        in error_line(result.output)
    )
    run(
        "apply",
        tmp_path / "x.npy",
        "-c",
        path,
        "-o",
        tmp_path / "y.npy",
        "--data-format",
        "channels_last",
    )
    assert np.load(tmp_path / "y.npy").shape == (1, 4, 5, 6, 1)


def test_explain_tells_the_nodes(run, rng, tmp_path):
    nodes, stored = small_unet(rng)
    path = save_graph(tmp_path, nodes, stored, ("n", 2, "d", "h", "w"))
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 8, 8, 8), np.float32))
    assert "c4" in run("explain", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy").output
