"""Makes tests/data/weights/: small files saved by the real Keras, PyTorch and ONNX, and what their layers compute.

Each part runs where its libraries are installed (they are no dependency of the package) and rewrites its own files:

    python make_weights_files.py keras3     # keras, jax, h5py
    python make_weights_files.py keras2     # tf-keras, tensorflow-cpu
    python make_weights_files.py torch      # torch, safetensors, onnx, onnxscript
    python make_weights_files.py beside     # keras, jax, h5py, torch, onnx, onnxruntime
    python make_weights_files.py checkpoints # keras, jax, h5py, torch, safetensors, onnx, onnxruntime

Beside the weights stands expected_PART.npz: under "FILE,FILE|LAYER|x" an input and under "FILE,FILE|LAYER|y" the output of that
layer alone (activation and bias included) as the library computed it; channels last in the files of Keras unless the layer
says otherwise, channels first in those of PyTorch and ONNX. What weights files hold without attributes is computed with the
defaults of a plain convolution.
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np

FOLDER = Path(__file__).parent / "weights"
RNG = np.random.default_rng(20260101)


def noise(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Keras 3


def keras3():
    import keras
    from keras import layers

    expected = {}

    def keep(files, model):
        """The outputs of every Conv3D of a model, nested ones included."""
        for layer in model._flatten_layers(include_self=False):
            if isinstance(layer, layers.Conv3D):
                first = layer.data_format == "channels_first"
                channels = layer.kernel.shape[3] * layer.groups
                x = noise(1, channels, 3, 5, 4) if first else noise(1, 3, 5, 4, channels)
                expected[f"{files}|{layer.name}|x"] = x
                expected[f"{files}|{layer.name}|y"] = np.asarray(layer(x)).astype(np.float32)

    def randomize(model):
        for weight in model.weights:
            weight.assign(noise(*weight.shape) / 3)
        return model

    # every attribute off its default; the first is named as the second's group
    two = keras.Sequential(
        [
            keras.Input((None, None, None, 2)),
            layers.Conv3D(
                4, 3, strides=(1, 2, 1), padding="same", activation="relu", name="conv3d_1"
            ),
            layers.Activation("tanh"),
            layers.Conv3D(
                6, (2, 3, 1), dilation_rate=(1, 1, 2), groups=2, use_bias=False, name="narrow"
            ),
        ],
        name="two",
    )
    randomize(two)
    two.save(FOLDER / "two.keras")
    keep("two.keras", two)

    inner = keras.Sequential(
        [keras.Input((None, None, None, 3)), layers.Conv3D(3, 2, name="inside")], name="block"
    )
    inputs = keras.Input((None, None, None, 1))
    x = layers.Conv3D(3, 3, padding="same", activation="swish", name="conv3d_1")(inputs)
    y = inner(x)
    y = layers.Conv3DTranspose(3, 2, name="up")(y)
    outputs = layers.Conv3D(1, 1, activation="leaky_relu", name="last")(layers.Add()([x, y]))
    nested = randomize(keras.Model(inputs, outputs, name="nested"))
    nested.save(FOLDER / "nested.keras")
    nested.save_weights(FOLDER / "nested.weights.h5")
    nested.save(FOLDER / "nested.h5")
    keep("nested.keras,nested.weights.h5,nested.h5", nested)

    steps = [layers.Conv3D(1, 1, use_bias=False, name=f"step{i}") for i in range(11)]
    many = keras.Sequential([keras.Input((1, 1, 1, 1)), *steps])
    many.set_weights([np.full((1, 1, 1, 1, 1), float(i)) for i in range(11)])
    many.save_weights(FOLDER / "many.weights.h5")

    first = layers.Conv3D(3, 2, data_format="channels_first", name="first")
    half = layers.Conv3D(2, 2, data_format="channels_first", dtype="bfloat16", name="half")
    special = randomize(keras.Sequential([keras.Input((2, 3, 5, 4)), first, half]))
    special.save(FOLDER / "special.keras")
    wide = layers.Conv3D(2, 2, data_format="channels_first", name="half")
    wide.build((None, 3, 3, 5, 4))
    wide.set_weights([np.asarray(w).astype(np.float32) for w in half.get_weights()])
    keep("special.keras", keras.Sequential([first, wide]))  # its weights, in float32 arithmetic
    np.savez_compressed(FOLDER / "expected_keras3.npz", **expected)


# ---------------------------------------------------------------------------------------------------------------------
# Keras 2


def keras2():
    import tf_keras as keras
    from tf_keras import layers

    expected = {}

    def keep(files, model):
        for layer in model._flatten_layers(include_self=False):
            if isinstance(layer, layers.Conv3D):
                x = noise(1, 3, 5, 4, layer.kernel.shape[3])
                expected[f"{files}|{layer.name}|x"] = x
                expected[f"{files}|{layer.name}|y"] = np.asarray(layer(x))

    inner = keras.Sequential(
        [layers.Conv3D(3, 2, name="inside", input_shape=(None, None, None, 3))], name="block"
    )
    model = keras.Sequential(
        [
            layers.Conv3D(
                3,
                3,
                strides=(1, 2, 1),
                padding="same",
                activation="relu",
                input_shape=(None, None, None, 2),
            ),
            inner,
            layers.Conv3D(
                2, (2, 1, 1), dilation_rate=2, padding="same", use_bias=False, name="another"
            ),
        ]
    )
    model.set_weights([noise(*weight.shape) / 3 for weight in model.get_weights()])
    model.save(FOLDER / "keras2.h5", include_optimizer=False)
    model.save_weights(FOLDER / "keras2_weights_only.h5")
    model.save(FOLDER / "keras2.keras")
    keep("keras2.h5,keras2_weights_only.h5,keras2.keras", model)
    np.savez_compressed(FOLDER / "expected_keras2.npz", **expected)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch, safetensors, ONNX


def torch():
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(1)
    expected = {}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = nn.ModuleDict({"conv": nn.Conv3d(2, 4, 3, padding=1)})
            self.mid = nn.Conv3d(
                4, 6, (2, 3, 1), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 1, 2), groups=2
            )
            self.norm = nn.BatchNorm3d(6)
            self.out = nn.Conv3d(6, 1, 1, bias=False)

        def forward(self, x):
            return self.out(self.norm(self.mid(torch.relu(self.enc["conv"](x)))))

    net = Net().eval()
    convolutions = {"enc.conv": net.enc["conv"], "mid": net.mid, "out": net.out}

    def keep(files, name, layer, compute):
        x = torch.from_numpy(noise(1, layer.in_channels, 3, 5, 4))
        with torch.no_grad():
            expected[f"{files}|{name}|x"], expected[f"{files}|{name}|y"] = (
                x.numpy(),
                compute(x).numpy(),
            )

    def plain(layer):
        """A convolution without the attributes that a state dict does not hold."""
        return lambda x: nn.functional.conv3d(x, layer.weight, layer.bias, groups=layer.groups)

    state = net.state_dict()
    torch.save(state, FOLDER / "state.pt")
    torch.save(
        {"epoch": 3, "lr": 1e-3, "model_state_dict": state, "notes": [None, True, ("a", 2)]},
        FOLDER / "checkpoint.pth",
    )
    save_file(state, FOLDER / "net.safetensors", metadata={"format": "pt"})
    for name, layer in convolutions.items():
        keep("state.pt,checkpoint.pth,net.safetensors", name, layer, plain(layer))

    mixed = {}
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        layer = nn.Conv3d(2, 3, 2).to(getattr(torch, dtype))
        mixed |= {f"{dtype}.{key}": value for key, value in layer.state_dict().items()}
        keep("dtypes.pt,dtypes.safetensors", dtype, layer, plain(layer.float()))
    strided = nn.Conv3d(2, 3, 2)
    strided.weight = nn.Parameter(
        strided.weight.detach().permute(2, 3, 4, 1, 0).contiguous().permute(4, 3, 0, 1, 2)
    )
    mixed |= {
        "strided.weight": strided.weight,
        "strided.bias": torch.cat([torch.zeros(5), strided.bias.detach()])[5:],
    }
    keep("dtypes.pt", "strided", strided, plain(strided))
    torch.save(mixed, FOLDER / "dtypes.pt")
    save_file(
        {k: v.detach().contiguous() for k, v in mixed.items() if "strided" not in k},
        FOLDER / "dtypes.safetensors",
    )

    # what is refused: a pickled module, the format before torch 1.6, TorchScript
    small = nn.Conv3d(1, 1, 1)
    torch.save(small, FOLDER / "module.pt")
    torch.save(small.state_dict(), FOLDER / "before_1_6.pt", _use_new_zipfile_serialization=False)
    torch.jit.trace(small, torch.zeros(1, 1, 2, 2, 2)).save(str(FOLDER / "script.pt"))

    x = torch.zeros(1, 2, 3, 5, 4)
    torch.onnx.export(net, (x,), FOLDER / "net.onnx", external_data=False)
    torch.onnx.export(net, (x,), FOLDER / "external.onnx", external_data=True)
    for file in ("net.onnx", "external.onnx"):
        without_traces(FOLDER / file)
    # the exporter folds the normalization into the convolution before it, and names nodes as it likes
    folded = {"enc.conv": net.enc["conv"], "mid": lambda x: net.norm(net.mid(x)), "out": net.out}
    for name, compute in folded.items():
        keep("net.onnx,external.onnx", name, convolutions[name], compute)
    onnx_by_hand(expected)
    np.savez_compressed(FOLDER / "expected_torch.npz", **expected)


def without_traces(path):
    """Take out the exporter's stack traces, which name this machine's folders."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for part in [
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
        graph,
    ]:
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString(deterministic=True))


def onnx_by_hand(expected):
    """Nodes that exporters write rarely: auto_pad, Constant weights, typed fields, float16; computed by onnxruntime."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    file = "attributes.onnx"
    nodes, inits, outputs = [], [], []

    def add(name, attributes, channels=2, filters=4, size=(2, 3, 2), stored="raw"):
        groups = attributes.get("group", 1)
        w, b = noise(filters, channels // groups, *size) / 3, noise(filters)
        if stored == "typed":
            inits.append(
                helper.make_tensor(f"{name}_w", TensorProto.FLOAT, w.shape, w.ravel().tolist())
            )
        elif stored == "constant":
            nodes.append(
                helper.make_node("Constant", [], [f"{name}_w"], value=numpy_helper.from_array(w))
            )
        else:
            inits.append(numpy_helper.from_array(w, f"{name}_w"))
        inits.append(numpy_helper.from_array(b, f"{name}_b"))
        nodes.append(
            helper.make_node(
                "Conv", ["x", f"{name}_w", f"{name}_b"], [f"{name}_y"], name=name, **attributes
            )
        )
        outputs.append(helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [None] * 5))

    add("Conv_0", {})
    add("Conv_1", {"auto_pad": "SAME_UPPER", "strides": [2, 1, 2]}, stored="typed")
    add("Conv_2", {"auto_pad": "SAME_LOWER"}, stored="constant")
    add("Conv_3", {"auto_pad": "VALID", "group": 2})
    add("Conv_4", {"pads": [0, 1, 2, 1, 0, 0], "strides": [1, 2, 1]})
    add("Conv_5", {"strides": [2, 2, 2], "dilations": [1, 2, 2]})
    add("Conv_6", {"pads": [0, 1, 0, 1, 1, 1]})
    graph = helper.make_graph(
        nodes, "attributes", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2, None, None, None])], outputs,
        inits,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, FOLDER / file)
    x = noise(1, 2, 3, 5, 4)
    session = onnxruntime.InferenceSession(str(FOLDER / file))
    for output, y in zip(session.get_outputs(), session.run(None, {"x": x}), strict=True):
        name = output.name.removesuffix("_y")
        expected[f"{file}|{name}|x"], expected[f"{file}|{name}|y"] = x, y


# ---------------------------------------------------------------------------------------------------------------------
# What files hold beside plain layers


def beside():
    """Adapters, subclasses, padding layers, constraints, parametrizations, transposed convolutions, folded weights."""
    expected = {}
    beside_keras(expected)
    beside_torch(expected)
    beside_onnx(expected)
    np.savez_compressed(FOLDER / "expected_beside.npz", **expected)


def beside_keras(expected):
    import keras
    from keras import layers

    def save(name, *stack):
        """A Sequential model, both as .keras and as .h5; its output is its only Conv3D's."""
        model = keras.Sequential([keras.Input((None, None, None, 2)), *stack])
        for weight in model.weights:
            weight.assign(noise(*weight.shape) / 3)
        for suffix in (".keras", ".h5"):
            model.save(FOLDER / f"{name}{suffix}")
        x = noise(1, 5, 6, 7, 2)
        files = f"{name}.keras,{name}.h5"
        expected[f"{files}|conv|x"], expected[f"{files}|conv|y"] = x, np.asarray(model(x))
        return model

    adapted = layers.Conv3D(4, 3, name="conv")
    adapted.build((None, None, None, None, 2))
    adapted.enable_lora(2, lora_alpha=3)
    save("lora", adapted)

    padder = keras.Sequential(
        [layers.ZeroPadding3D(((1, 0), (2, 1), (0, 3)), name="pad")], name="padder"
    )
    save("padded", padder, layers.Dropout(0.5), layers.Conv3D(3, (3, 2, 2), strides=2, name="conv"))

    @keras.saving.register_keras_serializable(package="My")
    class Penalty(keras.regularizers.Regularizer):
        def __call__(self, x):
            return 0.5 * keras.ops.sum(keras.ops.abs(x))

        def get_config(self):
            return {}

    trained = layers.Conv3D(
        2, 3, name="conv",
        kernel_constraint=keras.constraints.MinMaxNorm(0, 1, rate=0.5, axis=[0, 1, 2, 3]), bias_constraint="non_neg",
        kernel_regularizer=Penalty(), bias_regularizer="l2", bias_initializer=keras.initializers.Constant([1, 2]),
    )  # fmt: skip
    save("constrained", trained)

    @keras.saving.register_keras_serializable(package="My")
    class MyConv(layers.Conv3D):
        pass

    custom = keras.Sequential(
        [
            keras.Input((None, None, None, 2)),
            MyConv(4, 3, strides=2, activation="relu", name="mine"),
            layers.Conv3D(2, 1, name="plain"),
        ]
    )
    custom.save(FOLDER / "custom.keras")
    custom.save(FOLDER / "custom.h5")

    twice = keras.Sequential(
        [
            keras.Input((None, None, None, 2)),
            keras.Sequential(
                [keras.Input((None, None, None, 2)), layers.Conv3D(2, 2, name="conv")], name="a"
            ),
            keras.Sequential(
                [keras.Input((None, None, None, 2)), layers.Conv3D(2, 2, name="conv")], name="b"
            ),
        ]
    )
    for weight in twice.weights:
        weight.assign(noise(*weight.shape) / 3)
    twice.save(FOLDER / "twice.keras")
    x = noise(1, 5, 6, 7, 2)
    np.savez_compressed(FOLDER / "model_twice.npz", x=x, y=np.asarray(twice(x)))


def beside_torch(expected):
    import torch
    from torch import nn
    from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

    torch.manual_seed(2)
    pruned = nn.Conv3d(3, 2, 2)
    prune.random_unstructured(pruned, "weight", 0.5)
    layers = {
        "normed": weight_norm(nn.Conv3d(3, 2, 2)),
        "normed_whole": weight_norm(nn.Conv3d(3, 2, 2), dim=None),
        "normed_inputs": weight_norm(nn.Conv3d(3, 2, 2), dim=1),
        "parametrized": parametrizations.weight_norm(nn.Conv3d(3, 2, 2)),
        "pruned": pruned,
    }
    refused = {
        "spectral": spectral_norm(nn.Conv3d(3, 2, 2)),
        "spectral2": parametrizations.spectral_norm(nn.Conv3d(3, 2, 2)),
    }
    with torch.no_grad():
        for layer in list(layers.values())[
            :4
        ]:  # sizes that are not what the directions already have
            sizes = (
                layer.parametrizations.weight.original0
                if layer is layers["parametrized"]
                else layer.weight_g
            )
            sizes.mul_(1.7)
    net = nn.ModuleDict({**layers, **refused}).eval()
    torch.save(net.state_dict(), FOLDER / "norms.pt")
    for name, layer in layers.items():
        x = torch.from_numpy(noise(1, 3, 4, 5, 6))
        with torch.no_grad():
            expected[f"norms.pt|{name}|x"], expected[f"norms.pt|{name}|y"] = (
                x.numpy(),
                layer(x).numpy(),
            )

    net = nn.ModuleDict(
        {
            "conv": nn.Conv3d(1, 4, 3),
            "up": nn.ConvTranspose3d(4, 4, 2, stride=2, bias=False),
            "up_b": nn.ConvTranspose3d(4, 4, 2, stride=2),
            "other": nn.ConvTranspose3d(4, 3, 2),
            "norm": nn.BatchNorm3d(3),
        }
    )
    torch.save(net.state_dict(), FOLDER / "transposed.pt")


def beside_onnx(expected):
    """Convolutions whose weights lie behind other nodes, computed by onnxruntime without its optimizer."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, inits, outputs = [], [], []
    node, save = helper.make_node, numpy_helper.from_array

    def add(name, x="x", op="Conv", domain="", **attributes):
        inputs = [x, f"{name}_w", f"{name}_b"]
        nodes.append(
            node(
                op,
                inputs,
                [f"{name}_y"],
                name=name,
                domain=domain,
                pads=[1, 0, 0, 0, 1, 0],
                **attributes,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [None] * 5))

    def plain(name, **attributes):
        inits.extend([save(noise(3, 2, 2, 3, 2) / 3, f"{name}_w"), save(noise(3), f"{name}_b")])
        add(name, **attributes)

    codes = RNG.integers(-128, 128, (3, 2, 2, 3, 2)).astype(np.int8)
    inits += [
        save(codes, "per_axis_q"), save(np.float32([0.01, 0.02, 0.005]), "per_axis_s"), save(np.int8([0, 3, -7]), "per_axis_z"),
        save(np.int32([100, -50, 7]), "per_axis_bq"), save(np.float32(0.01), "per_axis_bs"),
        save((codes.astype(int) + 128).astype(np.uint8), "per_tensor_q"), save(np.float32(0.013), "per_tensor_s"),
        save(np.uint8(120), "per_tensor_z"), save(noise(3), "per_tensor_b"),
        save((noise(3, 2, 2, 3, 2) / 3).astype(np.float16), "cast_h"), save(noise(3).astype(np.float64), "cast_d"),
        save(noise(3, 2, 2, 3, 2) / 3, "shared"), save(np.int64([0, 0, 1, 0, 2, 0, 0, 0, 3, 1]), "pads"),
        save(noise(2, 2, 2, 2, 2), "up_w"), save(noise(3, 2, 2, 3, 2) / 3, "turned"), save(noise(3), "turned_b"),
    ]  # fmt: skip
    nodes += [
        node(
            "DequantizeLinear", ["per_axis_q", "per_axis_s", "per_axis_z"], ["per_axis_w"], axis=0
        ),
        node("DequantizeLinear", ["per_axis_bq", "per_axis_bs"], ["per_axis_b"]),
        node(
            "DequantizeLinear", ["per_tensor_q", "per_tensor_s", "per_tensor_z"], ["per_tensor_w"]
        ),
        node("Cast", ["cast_h"], ["cast_w"], to=TensorProto.FLOAT),
        node("Cast", ["cast_d"], ["cast_b"], to=TensorProto.FLOAT),
        node("Identity", ["shared"], ["identity_w"]),
        node("Constant", [], ["identity_b"], value_floats=noise(3).tolist()),
        node("Pad", ["x", "pads"], ["padded_x"], name="pad"),
        node("ConvTranspose", ["x", "up_w"], ["up_y"], name="up"),
        node("Transpose", ["turned"], ["turned_w"], name="turn", perm=[0, 1, 2, 3, 4]),
    ]
    for name in ("per_axis", "per_tensor", "cast", "identity", "turned"):
        add(name)
    plain(
        "fused",
        op="FusedConv",
        domain="com.microsoft",
        activation="LeakyRelu",
        activation_params=[0.05],
    )
    plain("padded", x="padded_x", strides=[2, 1, 2])
    graph = helper.make_graph(
        nodes, "folded", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2, None, None, None])], outputs, inits
    )  # fmt: skip
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    onnx.save(model, FOLDER / "folded.onnx")
    x = noise(1, 2, 4, 5, 6)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(FOLDER / "folded.onnx"), options)
    for output, y in zip(session.get_outputs(), session.run(None, {"x": x}), strict=True):
        name = output.name.removesuffix("_y")
        if name != "turned":  # which is refused
            expected[f"folded.onnx|{name}|x"], expected[f"folded.onnx|{name}|y"] = x, y


def checkpoints():
    """Checkpoints of trainers, whole modules, programs, models in several files, layers of 1 and 2 axes in space."""
    expected = {}
    checkpoints_torch(expected)
    checkpoints_flat(expected)
    np.savez_compressed(FOLDER / "expected_checkpoints.npz", **expected)


class Subclass:
    """Made a subclass of PyTorch's Conv3d below: its code is in no file."""


def checkpoints_torch(expected):
    import argparse
    import collections
    import functools
    import json
    import pathlib

    import safetensors.torch
    import torch
    from torch import nn
    from torch.nn.utils import parametrizations, spectral_norm

    global Subclass
    Subclass = type("Subclass", (nn.Conv3d,), {})
    torch.manual_seed(3)

    def keep(file, name, layer, channels, rank=3):
        """The output of a layer, for data of 3 axes in space."""
        x = torch.from_numpy(noise(1, channels, *(5, 6, 7)[3 - rank :]))
        with torch.no_grad():
            y = layer(x).numpy()
        for which, array in (("x", x.numpy()), ("y", y)):
            flat = array.reshape(*array.shape[:2], *[1] * (3 - rank), *array.shape[2:])
            expected[f"{file}|{name}|{which}"] = flat

    def network():
        parts = {
            "conv": nn.Conv3d(1, 4, (2, 3, 3), stride=(1, 2, 1), padding=(0, 1, 2)),
            "norm": nn.BatchNorm3d(4),
            "act": nn.LeakyReLU(0.1),
            "drop": nn.Dropout3d(),
            "mid": nn.Conv3d(4, 4, 3, padding="same", dilation=(1, 2, 1), groups=2, bias=False),
        }
        return nn.Sequential(collections.OrderedDict(parts)).eval()

    net = network()
    whole = network()
    whole.add_module("up", nn.ConvTranspose3d(4, 4, 2, stride=2, bias=False))
    whole.add_module("mirror", nn.Conv3d(4, 2, 3, padding=1, padding_mode="reflect"))
    whole.add_module("mine", Subclass(4, 2, 1))
    whole.add_module("again", whole.conv)
    torch.save(whole, FOLDER / "whole.pt")
    torch.jit.script(net).save(FOLDER / "script_net.pt")
    for name, channels in (("conv", 1), ("mid", 4)):
        keep("whole.pt", name, getattr(whole, name), channels)
        keep("script_net.pt", name, getattr(net, name), channels)
        keep("program.pt2", f"0.{name}", getattr(net, name), channels)

    program = nn.Sequential(net, nn.ZeroPad3d((1, 0, 2, 1, 0, 0)), nn.Conv3d(4, 2, 2)).eval()
    torch.export.save(
        torch.export.export(program, (torch.zeros(1, 1, 5, 6, 7),)), FOLDER / "program.pt2"
    )
    without_sources(FOLDER / "program.pt2")
    keep("program.pt2", "2", nn.Sequential(program[1], program[2]), 4)

    # a state dict alone: plain convolutions, so that they can be computed without their arguments
    plain = nn.Sequential(
        collections.OrderedDict(
            first=nn.Conv3d(2, 3, 2), act=nn.ReLU(), last=nn.Conv3d(3, 2, (1, 3, 2))
        )
    )
    state = plain.state_dict()
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3, 2, 2, 2, 2)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save(
        {
            "network_weights": state,
            "optimizer_state": optimizer,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)]},
            "_best_ema": np.float64(0.5),
            "init_args": {"device": torch.device("cpu"), "sizes": np.arange(3)},
        },
        FOLDER / "nnunet.pth",
    )
    torch.save(
        {
            "state_dict": collections.OrderedDict(
                (f"model.{key}", each) for key, each in state.items()
            ),
            "optimizer_states": [optimizer],
            "callbacks": {
                "ModelCheckpoint": {
                    "dirpath": pathlib.PurePosixPath("runs"),
                    "best": torch.tensor(1.0),
                }
            },
            "hyper_parameters": argparse.Namespace(lr=0.1),
        },
        FOLDER / "lightning.ckpt",
    )
    torch.save(state, FOLDER / "hub.bin")
    torch.save(
        {"epoch": 1, "state_dict": state},
        FOLDER / "old.pth.tar",
        _use_new_zipfile_serialization=False,
    )
    shards = {"": list(state)[:1], "2": list(state)[1:]}  # the weights apart from their bias
    for suffix, save in (("safetensors", safetensors.torch.save_file), ("bin", torch.save)):
        table = {}
        for number, keys in shards.items():
            name = f"sharded{number}.{suffix}"
            save({key: state[key] for key in keys}, FOLDER / name)
            table |= dict.fromkeys(keys, name)
        index = {"metadata": {"total_size": 1}, "weight_map": table}
        (FOLDER / f"sharded.{suffix}.index.json").write_text(json.dumps(index))
    for name, layer, channels in (("first", plain.first, 2), ("last", plain.last, 3)):
        for file in (
            "nnunet.pth",
            "hub.bin",
            "old.pth.tar",
            "sharded.safetensors.index.json",
            "sharded.bin.index.json",
        ):
            keep(file, name, layer, channels)
        keep("lightning.ckpt", f"model.{name}", layer, channels)

    norms = nn.ModuleDict(
        {
            "spectral": spectral_norm(nn.Conv3d(2, 3, 2)),
            "parametrized": parametrizations.spectral_norm(nn.Conv3d(2, 3, 2)),
        }
    ).eval()
    torch.save(norms.state_dict(), FOLDER / "spectral.pt")
    for name, layer in norms.items():
        keep("spectral.pt", name, layer, 2)

    weight, scales = torch.randn(3, 2, 2, 2, 2), torch.tensor([0.02, 0.01, 0.03])
    codes = {
        "axis": torch.quantize_per_channel(
            weight, scales.double(), torch.tensor([0, 3, -2]), 0, torch.qint8
        ),
        "whole": torch.quantize_per_tensor(weight, 0.02, 120, torch.quint8),
    }
    others = {
        "codes.weight": codes["axis"].int_repr(),
        "complex.weight": weight.to(torch.complex64),
    }
    torch.save(
        {f"{name}.weight": code for name, code in codes.items()} | others, FOLDER / "quantized.pt"
    )
    for name, code in codes.items():
        keep(
            "quantized.pt",
            name,
            functools.partial(nn.functional.conv3d, weight=code.dequantize()),
            2,
        )

    flat = nn.ModuleDict(
        {
            "plane": nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1),
            "row": nn.Conv1d(2, 3, 3, padding=2, dilation=2),
            "up": nn.ConvTranspose2d(2, 3, 2),
            "dense": nn.Linear(3, 2),
        }
    )
    torch.save(flat, FOLDER / "flat_whole.pt")
    keep("flat_whole.pt", "plane", flat["plane"], 2, 2)
    keep("flat_whole.pt", "row", flat["row"], 2, 1)


def without_sources(path):
    """Take the traces of the source, with this machine's paths, and the example out of a program."""
    import json
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if "sample_inputs" in name:
                continue
            if name.endswith("models/model.json"):
                model = json.loads(content)
                for node in model["graph_module"]["graph"]["nodes"]:
                    node["metadata"] = {}
                content = json.dumps(model).encode()
            archive.writestr(zipfile.ZipInfo(name), content)


def checkpoints_flat(expected):
    """Layers with 1 and 2 axes in space of Keras and ONNX, and a model in the layout of TensorFlow.js."""
    import json

    import keras
    import onnx
    import onnxruntime
    from keras import layers
    from onnx import TensorProto, helper, numpy_helper

    def lifted(array, axis):
        return np.expand_dims(array, tuple(range(axis, axis + 5 - array.ndim)))

    inputs = keras.Input((8, 6, 2))
    y = layers.ZeroPadding2D(((1, 0), (2, 1)), name="pad")(inputs)
    y = layers.Conv2D(3, (3, 2), strides=(2, 1), activation="relu", name="plane")(y)
    y = layers.Conv2D(4, 3, padding="same", dilation_rate=(1, 2), use_bias=False, name="dilated")(y)
    y = layers.Reshape((-1, 4), name="rows")(y)
    y = layers.ZeroPadding1D((2, 1), name="pad1")(y)
    y = layers.Conv1D(2, 3, padding="causal", dilation_rate=2, name="row")(y)
    y = layers.Conv1DTranspose(2, 3, name="up")(y)
    model = keras.Model(inputs, y)
    for weight in model.weights:
        weight.assign(noise(*weight.shape) / 3)
    model.save(FOLDER / "flat.keras")
    model.save(FOLDER / "flat.h5")
    x = noise(1, 8, 6, 2)
    files = "flat.keras,flat.h5"
    outputs = keras.Model(
        inputs, [model.get_layer(name).output for name in ("plane", "dilated", "rows", "row")]
    )(x)
    values = dict(zip(("plane", "dilated", "rows", "row"), map(np.asarray, outputs), strict=True))
    for name, given in (("plane", x), ("dilated", values["plane"]), ("row", values["rows"])):
        expected[f"{files}|{name}|x"], expected[f"{files}|{name}|y"] = (
            lifted(given, 1),
            lifted(values[name], 1),
        )

    over_time = keras.Sequential(
        [keras.Input((4, 8, 6, 2)), layers.TimeDistributed(layers.Conv2D(2, 3, name="each"))]
    )
    over_time.save(FOLDER / "each.keras")
    x = noise(1, 4, 8, 6, 2)
    expected["each.keras|each|x"], expected["each.keras|each|y"] = x, np.asarray(over_time(x))

    # TensorFlow.js: its converter's layout, with one tensor quantized and another across two files
    net = keras.Sequential(
        [
            keras.Input((5, 6, 7, 1)),
            layers.Conv3D(3, 3, padding="same", dilation_rate=2, name="one"),
            layers.Activation("elu", name="act"),
            layers.Conv3D(2, (1, 2, 3), strides=(1, 2, 1), activation="relu", name="two"),
        ]
    )
    for weight in net.weights:
        weight.assign(noise(*weight.shape) / 3)
    codes = RNG.integers(0, 256, net.get_layer("two").kernel.shape).astype(np.uint8)
    net.get_layer("two").kernel.assign(codes * np.float32(0.01) - np.float32(1.2))
    entries, raw = [], b""
    for layer in ("one", "two"):
        for leaf in ("kernel", "bias"):
            array = np.asarray(getattr(net.get_layer(layer), leaf))
            entry = {"name": f"{layer}/{leaf}", "shape": list(array.shape), "dtype": "float32"}
            if (layer, leaf) == ("two", "kernel"):
                entry["quantization"] = {
                    "dtype": "uint8",
                    "scale": 0.01,
                    "min": -1.2,
                    "original_dtype": "float32",
                }
            raw += codes.tobytes() if "quantization" in entry else array.astype("<f4").tobytes()
            entries.append(entry)
    (FOLDER / "tfjs1.bin").write_bytes(raw[:100])
    (FOLDER / "tfjs2.bin").write_bytes(raw[100:])
    config = {"class_name": "Sequential", "config": json.loads(net.to_json())["config"]}
    topology = {"keras_version": keras.__version__, "backend": "jax", "model_config": config}
    manifest = [{"paths": ["tfjs1.bin", "tfjs2.bin"], "weights": entries}]
    table = {"format": "layers-model", "modelTopology": topology, "weightsManifest": manifest}
    (FOLDER / "tfjs.json").write_text(json.dumps(table))
    x = noise(1, 5, 6, 7, 1)
    one, two = keras.Model(net.inputs, [net.get_layer(name).output for name in ("one", "two")])(x)
    expected["tfjs.json|one|x"], expected["tfjs.json|one|y"] = x, np.asarray(one)
    activated = np.asarray(keras.activations.elu(one))
    expected["tfjs.json|two|x"], expected["tfjs.json|two|y"] = activated, np.asarray(two)

    def graph(rank, inits, nodes):
        shape = [None, 2, *[None] * rank]
        value = helper.make_tensor_value_info
        made = helper.make_graph(
            nodes, "flat", [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, [None] * (rank + 2))],
            [numpy_helper.from_array(array, name) for name, array in inits.items()],
        )  # fmt: skip
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    node = helper.make_node
    flat = {
        "plane": graph(
            2,
            {"w": noise(3, 2, 3, 2) / 3, "b": noise(3), "pads": np.int64([0, 0, 1, 0, 0, 0, 0, 2])},
            [
                node("Pad", ["x", "pads"], ["padded"], name="pad"),
                node(
                    "Conv",
                    ["padded", "w", "b"],
                    ["y"],
                    name="plane",
                    strides=[2, 1],
                    pads=[0, 1, 1, 0],
                    kernel_shape=[3, 2],
                ),
            ],
        ),
        "row": graph(
            1,
            {"w": noise(4, 1, 4) / 3},
            [node("Conv", ["x", "w"], ["y"], name="row", auto_pad="SAME_LOWER", group=2)],
        ),
    }
    for name, made in flat.items():
        onnx.save(made, FOLDER / f"{name}.onnx")
        x = noise(1, 2, *(5, 6)[: 2 if name == "plane" else 1])
        (y,) = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": x})
        expected[f"{name}.onnx|{name}|x"], expected[f"{name}.onnx|{name}|y"] = (
            lifted(x, 2),
            lifted(y, 2),
        )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    {
        "keras3": keras3,
        "keras2": keras2,
        "torch": torch,
        "beside": beside,
        "checkpoints": checkpoints,
    }[sys.argv[1]]()
