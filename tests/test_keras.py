"""The Conv3D class: Keras' page, shapes, weights, losses, config."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import oracle
import pytest

from conv3d_cli import Conv3D


def test_the_reference_pages_examples() -> None:
    """The two examples of Keras' Conv3D page: 28x28x28 volumes with a single channel; extended batch shape [4, 7]."""
    x = np.random.default_rng(0).standard_normal((4, 28, 28, 28, 1))
    y = Conv3D(2, 3, activation="relu", input_shape=x.shape[1:])(x)
    assert y.shape == (4, 26, 26, 26, 2)
    x = np.random.default_rng(1).standard_normal((4, 7, 28, 28, 28, 1))
    y = Conv3D(2, 3, activation="relu", input_shape=x.shape[2:])(x)
    assert y.shape == (4, 7, 26, 26, 26, 2)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("strides", "dilation_rate"), [(1, 1), ((2, 1, 3), 1), (1, (2, 1, 2))])
@pytest.mark.parametrize("padding", ["valid", "SAME"])
def test_against_the_oracle(
    data_format: str, groups: int, strides: object, dilation_rate: object, padding: str
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 6, 7, 8, 4)).astype(np.float32)
    layer = Conv3D(
        6,
        (3, 2, 3),
        strides,
        padding,
        data_format,
        dilation_rate,
        groups,
        seed=1,
        bias_initializer="ones",
    )
    given = x if data_format == "channels_last" else np.moveaxis(x, -1, -4)
    y = layer(given)
    assert y.dtype == np.float32
    assert y.shape == layer.compute_output_shape(given.shape)
    y = y if data_format == "channels_last" else np.moveaxis(y, -4, -1)
    triple = lambda v: (v,) * 3 if isinstance(v, int) else v  # noqa: E731
    kernel, bias = layer.get_weights()
    assert kernel.shape == (3, 2, 3, 4 // groups, 6)
    expected = oracle.conv3d(
        x.reshape(6, 6, 7, 8, 4), kernel, bias, strides=triple(strides), padding=padding.lower(),
        dilation_rate=triple(dilation_rate), groups=groups,
    )  # fmt: skip
    np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=1e-5)


def test_weights() -> None:
    layer = Conv3D(2, 3, input_shape=(5, 5, 5, 3))
    assert layer.built
    assert layer.count_params() == 27 * 3 * 2 + 2
    kernel = np.ones((3, 3, 3, 3, 2))
    layer.set_weights([kernel, [1, 2]])
    np.testing.assert_array_equal(layer(np.ones((1, 5, 5, 5, 3)))[0, 0, 0, 0], [82, 83])
    with pytest.raises(ValueError, match="expects 2 weights"):
        layer.set_weights([kernel])
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3, 3, 2\)"):
        layer.set_weights([kernel[:2], [1, 2]])
    assert len(Conv3D(2, 3, use_bias=False, input_shape=(5, 5, 5, 3)).get_weights()) == 1
    assert Conv3D(2, 3).get_weights() == []
    one, same, other = (
        Conv3D(2, 3, seed=s, input_shape=(5, 5, 5, 3)).get_weights()[0] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_losses_and_constraints() -> None:
    layer = Conv3D(
        2, 1, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l1", bias_initializer="ones",
        kernel_constraint="non_neg", input_shape=(2, 2, 2, 1), seed=0,
    )  # fmt: skip
    assert len(layer.losses) == 2
    y = layer(np.ones((4, 2, 2, 2, 1)))
    activity, kernel, bias = layer.losses
    assert activity == pytest.approx(0.01 * np.abs(y).sum() / 4, rel=1e-6)
    assert kernel == pytest.approx(0.01 * (layer.get_weights()[0] ** 2).sum(), rel=1e-6)
    assert bias == pytest.approx(0.02, rel=1e-6)
    layer.apply_constraints()
    assert (layer.get_weights()[0] >= 0).all()


def test_config_round_trip() -> None:
    layer = Conv3D(
        4, (3, 1, 3), 2, "same", "channels_first", groups=2, activation="gelu", kernel_initializer="he_normal",
        kernel_regularizer="l2", kernel_constraint="max_norm", name="enc",
    )  # fmt: skip
    config = json.loads(json.dumps(layer.get_config()))
    again = Conv3D.from_config(config)
    assert again.get_config() == layer.get_config()
    assert again.name == "enc"
    wrapped = {
        "module": "keras.layers",
        "class_name": "Conv3D",
        "config": config,
        "registered_name": None,
    }
    assert Conv3D.from_config(wrapped).get_config() == layer.get_config()


def test_errors_have_keras_key_facts() -> None:
    for arguments, words in (
        ({"padding": "causal"}, "causal"),
        ({"strides": 2, "dilation_rate": 2}, "not supported in conjunction"),
        ({"strides": (2, 1, 1), "dilation_rate": (1, 2, 1)}, "not supported in conjunction"),
        ({"filters": 0}, "filters"),
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": (3, 3)}, "kernel_size"),
        ({"activation": "rellu"}, "relu"),
        ({"kernel_initializer": "glorot"}, "glorot"),
        ({"data_format": "first"}, "data_format"),
    ):
        with pytest.raises(ValueError, match=words):
            Conv3D(**{"filters": 4, "kernel_size": 3, **arguments})
    with pytest.raises(ValueError, match=r"min_ndim=5, found ndim=4"):
        Conv3D(4, 3)(np.ones((5, 5, 5, 1)))
    with pytest.raises(ValueError, match=r"groups=2, but the input has 3 channels"):
        Conv3D(4, 3, groups=2)(np.ones((1, 5, 5, 5, 3)))
    layer = Conv3D(4, 3, input_shape=(5, 5, 5, 3))
    with pytest.raises(ValueError, match="to have value 3"):
        layer(np.ones((1, 5, 5, 5, 2)))
    with pytest.raises(ValueError, match="larger than the volume"):
        Conv3D(4, 7)(np.ones((1, 5, 5, 5, 2)))
    assert Conv3D(4, 3)(np.ones((0, 5, 5, 5, 2))).shape == (0, 3, 3, 3, 4)


def test_dtype_and_integers() -> None:
    assert Conv3D(1, 1)(np.ones((1, 2, 2, 2, 1), np.float64)).dtype == np.float32
    assert Conv3D(1, 1)(np.ones((1, 2, 2, 2, 1), np.int32)).dtype == np.float32
    layer = Conv3D(1, 1, dtype="float64", input_shape=(2, 2, 2, 1))
    assert layer(np.ones((1, 2, 2, 2, 1), np.float32)).dtype == np.float64
    assert layer.get_weights()[0].dtype == np.float64


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    Conv3D(2, 3, input_shape=(5, 5, 5, 3)).summary()
    assert "164 parameters" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# Attributes


def test_every_argument_is_an_attribute() -> None:
    layer = Conv3D(
        4, (1, 2, 3), 2, "SAME", "channels_first", 1, 2, "relu", False,
        kernel_regularizer="l2", kernel_constraint="non_neg", name="mine", trainable=False,
    )  # fmt: skip
    for name, value in {
        "filters": 4, "kernel_size": (1, 2, 3), "strides": (2, 2, 2), "padding": "same",
        "data_format": "channels_first", "dilation_rate": (1, 1, 1), "groups": 2, "use_bias": False,
        "name": "mine", "path": "mine", "trainable": False, "built": False, "rank": 3,
        "dtype": "float32", "variable_dtype": "float32", "compute_dtype": "float32",
        "bias_regularizer": None, "activity_regularizer": None, "bias_constraint": None,
    }.items():  # fmt: skip
        assert getattr(layer, name) == value, name
    assert layer.activation.name == "relu"
    assert layer.kernel_regularizer([1.0, 2.0]) == pytest.approx(0.05)
    assert layer.kernel_constraint([-1.0]).tolist() == [0]
    assert type(layer.kernel_initializer).__name__ == "GlorotUniform"
    assert type(layer.bias_initializer).__name__ == "Zeros"


def test_weights_share_their_numbers_with_the_layer() -> None:
    layer = Conv3D(2, 1, name="a", kernel_regularizer="l2")
    assert layer.weights == layer.trainable_weights == layer.non_trainable_weights == []
    for name in ("kernel", "bias"):
        with pytest.raises(AttributeError, match=f"build the layer before accessing its {name}"):
            getattr(layer, name)
    assert layer.input_spec.axes == {}
    layer.build((None, 2, 2, 2, 3))
    assert layer.input_spec.axes == {-1: 3}
    assert layer.input_spec.min_ndim == 5
    kernel, bias = layer.weights
    assert (kernel.name, bias.path) == ("kernel", "a/bias")
    kernel.assign(np.ones((1, 1, 1, 3, 2)))
    bias[0] = 5
    np.testing.assert_array_equal(layer(np.ones((1, 1, 1, 1, 3))).ravel(), [8, 3])
    layer.set_weights([np.zeros((1, 1, 1, 3, 2)), [1, 2]])
    np.testing.assert_array_equal(kernel.numpy(), np.zeros((1, 1, 1, 3, 2)))  # the same variable
    np.testing.assert_array_equal(bias.value, [1, 2])
    with pytest.raises(ValueError, match=r"a/bias has the shape \(2,\), received \(3,\)"):
        bias.assign([1, 2, 3])
    assert type(kernel + 1) is np.ndarray
    assert type(kernel.sum()) is np.float32
    layer.trainable = False
    assert layer.losses == []
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == len(layer.non_trainable_variables) == 2
    assert not layer.weights[0].trainable
    assert layer.get_config()["trainable"] is False
    assert not Conv3D.from_config(layer.get_config()).trainable


def test_set_weights_changes_all_or_nothing() -> None:
    layer = Conv3D(2, 1, input_shape=(2, 2, 2, 3))
    before = layer.get_weights()
    with pytest.raises(ValueError, match=r"has the shape \(2,\)"):
        layer.set_weights([np.ones((1, 1, 1, 3, 2)), [1, 2, 3]])
    np.testing.assert_array_equal(layer.get_weights()[0], before[0])
    for bias in (["a", "b"], [1j, 2], [None, 1]):
        with pytest.raises(ValueError, match="bias must hold real numbers, received dtype"):
            layer.set_weights([np.ones((1, 1, 1, 3, 2)), bias])
        np.testing.assert_array_equal(layer.get_weights()[0], before[0])
    for weights in (None, np.ones(2), "ab"):
        with pytest.raises(ValueError, match="takes a list of its weights"):
            layer.set_weights(weights)  # type: ignore[arg-type]
    Conv3D(2, 1).set_weights([])


def test_a_weight_that_is_set_must_fit_the_layer() -> None:
    layer = Conv3D(2, 3, input_shape=(5, 5, 5, 3))
    y = layer(np.ones((1, 5, 5, 5, 3)))
    for wrong in (np.ones((5, 5, 5, 3, 2)), np.ones((3, 3, 3, 3, 4)), np.ones(3)):
        with pytest.raises(ValueError, match=r"kernel has the shape \(3, 3, 3, 3, 2\), received"):
            layer.kernel = wrong
    with pytest.raises(ValueError, match=r"bias has the shape \(2,\), received \(1, 2\)"):
        layer.bias = np.ones((1, 2))
    with pytest.raises(ValueError, match="cannot be taken away; make it with use_bias=False"):
        layer.bias = None
    with pytest.raises(ValueError, match="so its bias is None; make it with use_bias=True"):
        Conv3D(2, 3, use_bias=False, input_shape=(5, 5, 5, 3)).bias = np.ones(2)
    np.testing.assert_array_equal(layer(np.ones((1, 5, 5, 5, 3))), y)
    for name in ("kernel", "bias"):
        with pytest.raises(AttributeError, match=f"build the layer before accessing its {name}"):
            setattr(Conv3D(2, 3), name, np.ones((3, 3, 3, 3, 2)))
    layer.kernel, layer.bias = np.ones((3, 3, 3, 3, 2)), [1, 2]  # type: ignore[assignment]
    np.testing.assert_array_equal(layer(np.ones((1, 5, 5, 5, 3)))[0, 0, 0, 0], [82, 83])


@pytest.mark.parametrize("dtype", ["complex64", object, "U1", "m8[s]"])
def test_inputs_must_be_real_numbers(dtype: str) -> None:
    layer = Conv3D(2, 1, input_shape=(2, 2, 2, 3))
    x = np.zeros((1, 2, 2, 2, 3), dtype)
    for call in (layer, layer.call):
        with pytest.raises(ValueError, match="must hold real numbers, received dtype"):
            call(x)


@pytest.mark.parametrize("shape", [None, 5, "abcde", (1, 5, 5, 5, 2.0), np.ones((1, 5, 5, 5, 2))])
def test_shapes_are_whole_numbers(shape: object) -> None:
    for call in (Conv3D(2, 3).build, Conv3D(2, 3).compute_output_shape):
        with pytest.raises(ValueError, match="shape of an input is a tuple of whole numbers"):
            call(shape)  # type: ignore[arg-type]


def test_what_belongs_to_training_is_said() -> None:
    layer = Conv3D(2, 3)
    for name in ("add_loss", "quantize", "enable_lora", "fit"):
        with pytest.raises(AttributeError, match=rf"'{name}'; it belongs to training.*set_weights"):
            getattr(layer, name)
    with pytest.raises(AttributeError, match=r"no attribute 'sgape'$"):
        layer.sgape  # noqa: B018 - the access is what fails
    for config in (None, "{}", [1]):
        with pytest.raises(ValueError, match="a config is a dict"):
            Conv3D.from_config(config)  # type: ignore[arg-type]


def test_build_configs() -> None:
    layer, other = Conv3D(2, 3, input_shape=(5, 6, 7, 3)), Conv3D(2, 3)
    assert other.get_build_config() is None
    other.build_from_config(json.loads(json.dumps(layer.get_build_config())))
    assert other.kernel.shape == layer.kernel.shape
    with pytest.raises(ValueError, match="a build config is a dict with input_shape"):
        other.build_from_config({"shape": (1, 5, 6, 7, 3)})
    assert copy.deepcopy(layer).get_weights()[0].shape == layer.kernel.shape


def test_a_layer_keeps_no_array_of_its_user() -> None:
    given = np.ones((1, 1, 1, 1, 1), np.float32)
    layer = Conv3D(1, 1, kernel_initializer=given, input_shape=(2, 2, 2, 1))
    layer.kernel.assign(given * 3)
    assert given.item() == 1


def test_names_are_numbered() -> None:
    class OtherLayer(Conv3D):
        pass

    first, second = Conv3D(1, 1), Conv3D(1, 1)
    number = int(first.name.partition("_")[2] or 0)
    assert second.name == f"conv3d_{number + 1}"
    assert [OtherLayer(1, 1).name, OtherLayer(1, 1).name] == ["other_layer", "other_layer_1"]
    assert Conv3D(1, 1, name="mine").name == "mine"
    assert Conv3D.from_config(first.get_config()).name == first.name
    second.name = "other"
    assert (second.name, second.get_config()["name"], second.path) == ("other",) * 3
    with pytest.raises(ValueError, match="string without the character '/'"):
        second.name = "a/b"
    for name in ("a/b", 3):
        with pytest.raises(ValueError, match="string without the character '/'"):
            Conv3D(1, 1, name=name)


def test_training_and_call() -> None:
    layer = Conv3D(1, 2, activity_regularizer="l2", seed=1)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 4, 1)).astype(np.float32)
    with pytest.raises(AttributeError, match="build the layer"):
        layer.call(x)
    y = layer(x, training=False)
    np.testing.assert_array_equal(layer(inputs=x, training=True, mask=None), y)
    losses = layer.losses
    np.testing.assert_array_equal(layer.call(2 * x), layer.call(2 * x))
    assert layer.losses == losses


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Rounded to 8 significant bits, halves to even."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256), exponent - 8)


@pytest.mark.parametrize(
    ("dtype", "variables", "output", "rounded"),
    [
        ("float64", np.float64, np.float64, lambda x: x),
        ("float16", np.float16, np.float16, lambda x: x.astype(np.float16).astype(np.float64)),
        ("mixed_float16", np.float32, np.float16, lambda x: x.astype(np.float16).astype(float)),
        ("mixed_bfloat16", np.float32, np.float32, bfloat16),
        ("bfloat16", np.float32, np.float32, bfloat16),
        (np.float64, np.float64, np.float64, lambda x: x),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dtype_policies(
    dtype: object, variables: type, output: type, rounded: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Inputs and weights are rounded to the compute dtype, the output once more."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 4, 5, 6, 2))
    layer = Conv3D(3, 2, dtype=dtype)  # type: ignore[arg-type]
    layer.build(x.shape)
    layer.set_weights([rng.standard_normal((2, 2, 2, 2, 3)), rng.standard_normal(3)])
    assert layer.kernel.dtype == variables
    y = layer(x)
    assert y.dtype == output
    kernel, bias = (rounded(weight.astype(np.float64)) for weight in layer.get_weights())
    exact = oracle.conv3d(rounded(x), kernel, bias)
    error = {"float64": 1e-13, "float16": 6e-4, "bfloat16": 5e-3}[layer.compute_dtype]
    np.testing.assert_allclose(y.astype(np.float64), exact, rtol=error, atol=1e-6)
    if "float16" in layer.compute_dtype:
        np.testing.assert_array_equal(rounded(y.astype(np.float64)), y)
    assert layer.dtype_policy.name == (dtype if isinstance(dtype, str) else "float64")


def test_classes_stand_for_their_instances() -> None:
    from conv3d_cli.layer import constraints, initializers, regularizers

    layer = Conv3D(
        2, 1,
        kernel_initializer=initializers.HeNormal, bias_initializer=initializers.Ones,
        kernel_regularizer=regularizers.L2, kernel_constraint=constraints.NonNeg,
    )  # fmt: skip
    same = Conv3D(
        2, 1, kernel_initializer="he_normal", bias_initializer="ones", kernel_regularizer="l2",
        kernel_constraint="non_neg",
    )  # fmt: skip
    config, expected = layer.get_config(), same.get_config()
    assert {**config, "name": ""} == {**expected, "name": ""}
