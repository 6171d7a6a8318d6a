"""The config of a layer: what is refused and in which order, keras.json, Keras' dicts of layers and models."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conv3d_cli.errors import ConfigError, Conv3DError, ShapeError, SpecError, UnknownNameError
from conv3d_cli.layer import activations, config, constraints, initializers, regularizers
from conv3d_cli.layer.config import LayerConfig, read_model, standard_data_format, write_model


@pytest.fixture(autouse=True)
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A KERAS_HOME of its own, empty, for every test."""
    home = tmp_path / "keras_home"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    return home


def make(**arguments: Any) -> LayerConfig:
    return LayerConfig(**{"filters": 4, "kernel_size": 3, **arguments})


def test_defaults_are_keras() -> None:
    layer = make()
    assert layer.kernel_size == (3, 3, 3)
    assert layer.strides == layer.dilation_rate == (1, 1, 1)
    assert (layer.padding, layer.data_format, layer.groups, layer.use_bias) == (
        "valid",
        "channels_last",
        1,
        True,
    )
    assert layer.activation is not None
    assert layer.activation.is_linear
    assert layer.kernel_initializer == initializers.GlorotUniform()
    assert layer.bias_initializer == initializers.Zeros()
    assert (layer.name, layer.dtype, layer.seed, layer.then) == ("conv3d", "float32", None, ())


def test_one_form_of_many_spellings() -> None:
    layer = make(
        kernel_size=np.array([1, 2, 3]), strides=[2, 1, 1], padding="SAME", data_format="Channels_First", filters=4.0,
        dilation_rate=1, groups=np.int64(2), activation="swish", kernel_regularizer="l1_l2", bias_constraint="nonneg",
        dtype=np.float64,
    )  # fmt: skip
    assert (layer.kernel_size, layer.strides, layer.padding) == ((1, 2, 3), (2, 1, 1), "same")
    assert (layer.data_format, layer.filters, layer.groups) == ("channels_first", 4, 2)
    assert isinstance(layer.filters, int)
    assert layer.kernel_regularizer == regularizers.L1L2(0.01, 0.01)
    assert layer.bias_constraint == constraints.NonNeg()
    assert layer.dtype == "float64"
    assert json.dumps(layer.to_keras())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel_size": 0}, ["kernel_size", "at least 1", "0"]),
        ({"kernel_size": (3, 0, 3)}, ["kernel_size", "(3, 0, 3)"]),
        ({"kernel_size": (3, 3)}, ["kernel_size", "three", "(3, 3)"]),
        ({"kernel_size": None}, ["kernel_size", "None"]),
        ({"kernel_size": 3.0}, ["kernel_size", "3.0"]),
        ({"kernel_size": (3.0, 3, 3)}, ["kernel_size", "whole"]),
        ({"kernel_size": True}, ["kernel_size", "True"]),
        ({"strides": 0}, ["strides", "at least 1"]),
        ({"dilation_rate": -1}, ["dilation_rate", "at least 1"]),
        ({"padding": "causal"}, ["padding", "'valid', 'same'", "causal", "Conv1D"]),
        ({"padding": "CAUSAL"}, ["causal"]),
        ({"padding": "full"}, ["padding", "'valid', 'same'", "full"]),
        ({"padding": None}, ["padding", "None"]),
        ({"padding": [1, 1, 1]}, ["padding", "[1, 1, 1]"]),
        ({"data_format": "NCDHW"}, ["data_format", "'channels_first', 'channels_last'", "NCDHW"]),
        ({"activation": "rellu"}, ["activation", "did you mean 'relu'"]),
        ({"kernel_initializer": "he"}, ["initializer", "he_normal"]),
        ({"bias_initializer": "stft"}, ["stft"]),
        ({"kernel_regularizer": "l3"}, ["regularizer", "l1"]),
        ({"activity_regularizer": "foo"}, ["regularizer"]),
        ({"kernel_constraint": "max"}, ["constraint", "max_norm"]),
        ({"bias_constraint": "radial_constraint"}, ["rank 4"]),
        ({"filters": 0}, ["filters", "strictly positive", "filters=0"]),
        ({"filters": -3}, ["filters=-3"]),
        ({"filters": 2.5}, ["filters=2.5"]),
        ({"filters": None}, ["filters=None"]),
        ({"filters": True}, ["filters=True"]),
        ({"groups": 0}, ["number of groups must be a positive integer", "groups=0"]),
        ({"groups": None}, ["groups=None"]),
        ({"groups": 3}, ["number of filters must be evenly divisible", "groups=3", "filters=4"]),
        ({"strides": (2, 1, 1), "dilation_rate": (1, 2, 1)}, ["strides=(2, 1, 1)", "dilation_rate=(1, 2, 1)", "> 1"]),
        ({"use_bias": "no"}, ["use_bias", "'no'"]),
        ({"dtype": "int8"}, ["dtype", "float32", "int8"]),
        ({"seed": "one"}, ["seed", "'one'"]),
    ],
)  # fmt: skip
def test_refused(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        make(**arguments)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(type(caught.value)):
        LayerConfig.from_keras({"filters": 4, "kernel_size": 3, **arguments})


# Keras 3's order; each is wrong, and the first one is what the message is about
IN_ORDER: list[tuple[str, Any, str]] = [
    ("kernel_size", 0, "kernel_size"), ("strides", 0, "strides"), ("dilation_rate", 0, "dilation_rate"),
    ("padding", "causal", "padding"), ("data_format", "x", "data_format"), ("activation", "x", "activation"),
    ("kernel_initializer", "x", "initializer"), ("kernel_regularizer", "x", "regularizer"),
    ("kernel_constraint", "x", "constraint"), ("filters", 0, "filters"), ("groups", 0, "number of groups"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(IN_ORDER)))
def test_errors_come_in_keras_order(index: int) -> None:
    with pytest.raises(SpecError, match=IN_ORDER[index][2]):
        make(**{key: value for key, value, _ in IN_ORDER[index:]})


def test_groups_and_channels() -> None:
    with pytest.raises(
        ShapeError, match=r"input channels .* groups=2, but the input has 3 channels"
    ):
        make(groups=2).kernel_shape(3)
    assert make(groups=2).kernel_shape(6) == (3, 3, 3, 3, 4)


# ---------------------------------------------------------------------------------------------------------------------
# First weights


def test_a_seed_decides_kernel_and_bias() -> None:
    arguments = {
        "kernel_initializer": "he_normal",
        "bias_initializer": "he_normal",
        "kernel_size": 1,
        "filters": 8,
    }
    one, again, other = (
        make(seed=1, **arguments),
        make(seed=1, **arguments),
        make(seed=2, **arguments),
    )
    (kernel, bias), (kernel_again, bias_again) = one.initial_weights(1), again.initial_weights(1)
    np.testing.assert_array_equal(kernel, kernel_again)
    np.testing.assert_array_equal(bias, bias_again)
    assert not np.array_equal(kernel, other.initial_weights(1)[0])
    assert one.kernel_initializer != one.bias_initializer
    # the seeds are written, so the config read again makes the same weights
    read = LayerConfig.from_keras(json.loads(json.dumps(one.to_keras())))
    assert read == one
    np.testing.assert_array_equal(read.initial_weights(1)[0], kernel)


def test_without_a_seed_two_layers_differ() -> None:
    one, other = make(), make()
    assert one == other
    assert not np.array_equal(one.initial_weights(1)[0], other.initial_weights(1)[0])
    np.testing.assert_array_equal(one.initial_weights(1)[0], one.initial_weights(1)[0])


def test_initial_weights() -> None:
    kernel, bias = make(dtype="float64", use_bias=False).initial_weights(2)
    assert (kernel.shape, kernel.dtype, bias) == ((3, 3, 3, 2, 4), np.float64, None)
    kernel, bias = make(dtype="mixed_float16").initial_weights(2)
    assert kernel.dtype == np.float32
    # None is glorot_uniform for both, as in Keras
    kernel, bias = make(kernel_initializer=None, bias_initializer=None, seed=3).initial_weights(2)
    assert bias is not None
    assert np.abs(bias).max() > 0
    assert np.abs(bias).max() <= (6 / 8) ** 0.5
    assert make(kernel_initializer=None).to_keras()["kernel_initializer"] is None
    with pytest.raises(ShapeError, match="kernel_initializer: the identity initializer"):
        make(kernel_initializer="identity").initial_weights(1)
    with pytest.raises(ShapeError, match="bias_initializer: orthogonal"):
        make(bias_initializer="orthogonal").initial_weights(1)


# ---------------------------------------------------------------------------------------------------------------------
# keras.json


def test_keras_json_decides_what_is_left_open(keras_home: Path) -> None:
    file = keras_home / "keras.json"
    assert make().data_format == "channels_last"
    file.write_text(
        json.dumps({"image_data_format": "channels_first", "floatx": "float64", "foo": 1})
    )
    assert (make().data_format, make().dtype) == ("channels_first", "float64")
    assert make(data_format="channels_last").data_format == "channels_last"
    file.write_text(json.dumps({"image_data_format": "channels_last"}))
    os.utime(file, (1, 1))  # noticed by its time
    assert (make().data_format, make().dtype) == ("channels_last", "float32")
    file.write_text("{broken")
    assert standard_data_format(None) == "channels_last"
    file.unlink()
    assert standard_data_format(None) == "channels_last"
    assert not list(keras_home.iterdir())  # never written


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"image_data_format": "Channels_First"}, "invalid image_data_format configuration"),
        ({"image_data_format": None}, "invalid image_data_format configuration"),
        ({"floatx": "bfloat16"}, "invalid floatx configuration"),
        ({"epsilon": 1}, "invalid epsilon configuration"),
        ([1], "must hold a JSON object"),
        ({"floatx": ["float32"]}, "invalid floatx"),
    ],
)
def test_a_bad_keras_json(keras_home: Path, content: Any, words: str) -> None:
    (keras_home / "keras.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "keras.json" in str(caught.value)
    (keras_home / "keras.json").unlink()
    make()


def test_where_keras_json_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conv3d_cli.layer._keras_json import settings_path

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", "~/k")
    assert settings_path() == str(tmp_path / "k" / "keras.json")
    monkeypatch.setenv("KERAS_HOME", "")
    assert settings_path() == "keras.json"  # in the current folder
    monkeypatch.delenv("KERAS_HOME")
    assert settings_path() == str(tmp_path / ".keras" / "keras.json")
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"image_data_format": "channels_first"}')
    assert make().data_format == "channels_first"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert settings_path().endswith(os.path.join(".keras", "keras.json"))
    assert not settings_path().startswith(str(tmp_path / ".keras"))


def test_keras_json_that_cannot_be_read(keras_home: Path) -> None:
    (keras_home / "keras.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        make()


# ---------------------------------------------------------------------------------------------------------------------
# Keras' dicts

KERAS2: dict[str, Any] = {
    "name": "conv3d", "trainable": True, "batch_input_shape": [None, 8, 8, 8, 1], "dtype": "float32", "filters": 2,
    "kernel_size": [3, 3, 3], "strides": [1, 1, 1], "padding": "valid", "data_format": "channels_last",
    "dilation_rate": [1, 1, 1], "groups": 1, "activation": "swish", "use_bias": True,
    "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
    "bias_initializer": {"class_name": "Zeros", "config": {}},
    "kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.009999999776482582}},
    "bias_regularizer": None, "activity_regularizer": None, "kernel_constraint": None, "bias_constraint": None,
}  # fmt: skip


def test_keras_2_is_read_and_keras_3_written() -> None:
    layer = LayerConfig.from_keras(KERAS2)
    written = layer.to_keras()
    assert layer.activation == activations.get("silu")
    assert written["activation"] == "silu"
    assert written["dtype"]["config"] == {"name": "float32"}
    assert written["kernel_initializer"]["config"] == {
        "seed": None,
        "input_axes": None,
        "output_axes": None,
    }
    assert LayerConfig.from_keras(written) == layer
    assert LayerConfig.from_keras({"class_name": "Conv3D", "config": KERAS2}) == layer
    policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}, "shared_object_id": 3}
    assert LayerConfig.from_keras({**KERAS2, "dtype": policy}).dtype == "mixed_float16"


def test_hard_sigmoid_of_keras_2() -> None:
    x = np.array([1.0])
    for keras2, expected in ((False, 4 / 6), (True, 0.7)):
        layer = LayerConfig.from_keras({**KERAS2, "activation": "hard_sigmoid"}, keras2=keras2)
        assert layer.activation is not None
        assert layer.activation(x) == pytest.approx(expected)
        assert LayerConfig.from_keras(json.loads(json.dumps(layer.to_keras()))) == layer
    conv = {"class_name": "Conv3D", "config": {**KERAS2, "activation": "hard_sigmoid"}}
    hard = {"class_name": "Activation", "config": {"activation": "hard_sigmoid"}}
    (layer,) = read_model(
        {"class_name": "Sequential", "config": [conv, hard], "keras_version": "2.4.0"}
    )
    for activation in (layer.activation, *layer.then):
        assert activation is not None
        assert activation(x) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("given_config", "words"),
    [
        ({"filters": 2}, "needs kernel_size"),
        ({}, "needs filters and kernel_size"),
        (
            {"filters": 2, "kernel_size": 3, "foo": 1},
            "unrecognized keyword arguments passed to Conv3D: 'foo'",
        ),
        ({"filters": 2, "kernel_size": 3, "stride": 1}, "did you mean 'strides'"),
        ({"filters": 2, "kernel_size": 3, "then": []}, "unrecognized keyword"),
        ({"class_name": "Conv2D", "config": {}}, "Conv2D is no Conv3D"),
        ({"class_name": "Conv3D", "config": 3}, "must be a table"),
        ([1], "must be a table"),
        ({"filters": 2, "kernel_size": 3, "dtype": {"config": {}}}, "dtype must be one of"),
    ],
)
def test_wrong_dicts(given_config: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        LayerConfig.from_keras(given_config)


TRIPLES = st.tuples(*(st.integers(1, 4) for _ in range(3)))
LAYERS = st.builds(
    lambda groups, per_group, stretch, strided, **rest: LayerConfig(
        filters=groups * per_group, groups=groups, **{"strides" if strided else "dilation_rate": stretch}, **rest
    ),
    groups=st.integers(1, 3), per_group=st.integers(1, 3), stretch=TRIPLES, strided=st.booleans(), kernel_size=TRIPLES,
    padding=st.sampled_from(["valid", "same"]), data_format=st.sampled_from(config.DATA_FORMATS),
    dtype=st.sampled_from(list(config.DTYPES)), use_bias=st.booleans(), name=st.text(max_size=5),
    seed=st.none() | st.integers(0, 2**32),
    activation=st.sampled_from([
        None, "relu", "gelu", "gelu:approximate=true", "LeakyReLU", "elu:alpha=0.5", "relu:max_value=6", "softmax",
        "softmax:axis=1", "threshold:threshold=1:default_value=0", "relu:threshold=-1", "hard_sigmoid:keras2=true",
    ]),
    kernel_initializer=st.sampled_from([None, "he_normal", "variance_scaling:scale=2", "constant:value=0.5"]),
    bias_initializer=st.sampled_from([None, "zeros", "random_uniform:seed=3"]),
    kernel_regularizer=st.sampled_from([None, "l1", "l2:l2=0.5", "l1_l2"]),
    kernel_constraint=st.sampled_from([None, "max_norm", "unit_norm:axis=0,1", "min_max_norm:rate=0.5", "non_neg"]),
    then=st.lists(st.sampled_from(["relu", "LeakyReLU", "gelu:approximate=true", "softmax"]), max_size=3),
)  # fmt: skip


@given(st.lists(LAYERS, min_size=1, max_size=3))
def test_any_config_comes_back(layers: list[LayerConfig]) -> None:
    for layer in layers:
        read = LayerConfig.from_keras(json.loads(json.dumps(layer.to_keras())))
        assert read.to_keras() == layer.to_keras()
        assert {**vars(read), "then": ()}.keys() == vars(layer).keys()
    assert read_model(json.loads(json.dumps(write_model(layers)))) == layers


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["class_name", "config", "layers", "name", "inbound_nodes", *KERAS2]), inner, max_size=5)
)))  # fmt: skip
def test_any_other_json_is_an_error_of_ours(value: Any) -> None:
    for read in (LayerConfig.from_keras, read_model):
        with contextlib.suppress(Conv3DError):
            read(value)


def functional(
    *edges: tuple[str, str], layers: dict[str, str] | None = None, output: str = "c"
) -> dict[str, Any]:
    """A functional model of Keras 2 over conv layers named by letters; edges are (from, to)."""
    names = layers or {"i": "InputLayer", "a": "Conv3D", "b": "Conv3D", "c": "Conv3D"}
    listed = [
        {
            "class_name": class_name,
            "name": name,
            "config": {"filters": 1, "kernel_size": 1, "name": name}
            if class_name == "Conv3D"
            else {},
            "inbound_nodes": [[[source, 0, 0, {}] for source, to in edges if to == name]],
        }
        for name, class_name in names.items()
    ]
    return {
        "class_name": "Functional",
        "config": {"layers": listed, "output_layers": [[output, 0, 0]]},
    }


def test_a_functional_chain_in_any_order_of_its_list() -> None:
    model = functional(("i", "b"), ("b", "a"), ("a", "c"))
    assert [layer.name for layer in read_model(model)] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("edges", "output", "words"),
    [
        ([("i", "a"), ("i", "b"), ("b", "c")], "c", "'a' and 'b' both follow 'i'"),
        ([("i", "a"), ("a", "b"), ("a", "c"), ("b", "c")], "c", "layer 'c' has 2 inputs, a, b"),
        ([("i", "a"), ("b", "c")], "c", "begins with 2 layers i, b"),
        ([("i", "a"), ("a", "b"), ("b", "c")], "b", "no chain from 'i' to its output b"),
        ([("i", "a"), ("b", "c"), ("c", "b")], "a", "no chain from 'i'"),
    ],
)
def test_no_chain(edges: list[tuple[str, str]], output: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_model(functional(*edges, output=output))


CONV = {"class_name": "Conv3D", "config": {"filters": 2, "kernel_size": 3}}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            [CONV, {"class_name": "Dense", "config": {"name": "d"}}],
            "'d' is of class Dense; understood are Conv3D, Activation",
        ),
        ([CONV, {"class_name": "PReLU", "config": {}}], "of class PReLU"),
        ([{"class_name": "ReLU", "config": {"name": "r"}}, CONV], "begins with ReLU 'r'"),
        ([{"class_name": "Dropout", "config": {}}], "no Conv3D layer"),
        ([], "no Conv3D layer"),
        ([CONV, 3], "list of layers"),
        ([CONV, {"config": {}}], "list of layers"),
    ],
)
def test_models_not_understood(model: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_model({"class_name": "Sequential", "config": {"layers": model}})


def test_models_of_one_layer_and_of_none() -> None:
    assert len(read_model(CONV)) == 1
    for bad in (
        None,
        3,
        {},
        {"config": {}},
        {"class_name": 3},
        {"class_name": "Sequential", "config": 3},
    ):
        with pytest.raises(SpecError):
            read_model(bad)  # type: ignore[arg-type]
    unknown = {"class_name": "Activation", "config": {"activation": "x"}}
    with pytest.raises(UnknownNameError):
        read_model({"class_name": "Sequential", "config": {"layers": [CONV, unknown]}})


def test_functions_cannot_be_written() -> None:
    for key in ("activation", "kernel_initializer", "kernel_regularizer", "kernel_constraint"):
        with pytest.raises(SpecError, match="cannot be written to a config"):
            make(**{key: lambda *_, **__: np.zeros(1)}).to_keras()


# ---------------------------------------------------------------------------------------------------------------------
# Configs alone, padding layers, and weights that come from elsewhere


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


def entry(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": class_name.lower(), **config}}


def test_a_get_config_alone_is_a_layer_or_a_model() -> None:
    layer = make(filters=3, strides=2, padding="same")
    assert read_model(layer.to_keras()) == [layer]
    assert read_model(sequential(entry("Conv3D", **layer.to_keras()))["config"])[0].strides == (
        2,
        2,
        2,
    )
    chain = functional(("i", "b"), ("b", "a"), ("a", "c"))
    assert [layer.name for layer in read_model(chain["config"])] == ["b", "a", "c"]


def test_a_get_config_that_may_be_a_transposed_convolutions_is_refused() -> None:
    config = make().to_keras()
    del config["groups"]
    with pytest.raises(SpecError, match=r"Conv3DTranspose's get_config\(\); write"):
        read_model(config)


def test_padding_layers_go_into_the_layer_after_them() -> None:
    pad = entry("ZeroPadding3D", padding=[[1, 0], [0, 2], [1, 1]])
    conv = entry("Conv3D", filters=1, kernel_size=3, strides=2)
    (layer,) = read_model(sequential(pad, entry("Dropout"), sequential(conv)))
    assert layer.padding == "valid"
    assert layer.spec().padding == ((1, 0), (0, 2), (1, 1))
    assert read_model(write_model([layer])) == [layer]
    first, second = read_model(sequential(conv, pad, entry("ReLU"), conv))
    assert (first.then[0].name, first.spec().padding, second.spec().padding) == (
        "relu",
        "valid",
        layer.spec().padding,
    )


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([entry("ZeroPadding3D"), entry("Conv3D", filters=1, kernel_size=3, strides=2, padding="same")],
         "layer 'conv3d' cannot be joined with 'zeropadding3d' before it: its padding 'same' with strides > 1"),
        ([entry("Cropping3D"), CONV], "'cropping3d' crops voxels of the volume"),
        ([CONV, entry("ZeroPadding3D")], "'zeropadding3d' is of class ZeroPadding3D and no Conv3D layer follows it"),
        ([CONV, entry("ZeroPadding3D"), entry("Activation", activation="sigmoid"), CONV],
         "'activation', sigmoid, makes other numbers of the zeros that layer 'zeropadding3d' adds"),
        ([CONV, entry("ZeroPadding3D"), entry("Softmax"), CONV], "makes other numbers of the zeros"),
        ([{**CONV, "registered_name": "My>Conv3D"}], "is of class My>Conv3D; understood are"),
    ],
)  # fmt: skip
def test_padding_that_is_no_conv3ds_is_refused_by_name(
    layers: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        read_model(sequential(*layers))


def test_what_acts_in_training_only_is_left_out_where_weights_are_given() -> None:
    config = {
        **make().to_keras(),
        "kernel_initializer": {"class_name": "function", "config": "mine"},
        "bias_initializer": {"class_name": "Constant", "config": {"value": [1, 2]}},
        "kernel_constraint": {"class_name": "My>Sphere", "config": {}},
        "bias_constraint": "non_neg",
        "kernel_regularizer": {"class_name": "My>Penalty", "config": {}},
        "bias_regularizer": "l2",
        "activity_regularizer": {"class_name": "OrthogonalRegularizer", "config": {}},
    }
    layer = LayerConfig.from_keras(config, trained=True)
    assert layer.kernel_constraint is layer.bias_constraint is layer.kernel_regularizer is None
    assert layer.activity_regularizer is None
    assert layer.bias_regularizer is not None
    assert [note.partition(" is left out")[0].rpartition(" ")[2] for note in layer.notes] == [
        "kernel_regularizer",
        "activity_regularizer",
    ]
    assert "unknown regularizer 'My>Penalty'" in layer.notes[0]
    with pytest.raises(SpecError):
        LayerConfig.from_keras(config)
