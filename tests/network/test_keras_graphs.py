"""Graphs of Keras' JSON: how models take and give several tensors, operations on tensors, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import evaluate
from networks import (
    Draw,
    Layer,
    functional,
    layer,
    sequential,
    tensor,
    volume,
    write_h5,
    write_keras,
)

from conv3d_cli.errors import SpecError
from conv3d_cli.network.keras import read_keras_network, require_unquantized

Array = np.ndarray[Any, Any]
X = np.random.default_rng(3).standard_normal((1, 2, 2, 3, 2))


def computed(*layers: Layer, output: str) -> Array:
    """The output of a functional model without weights for `X`."""
    network = read_keras_network(functional([volume(2), *layers], output), None)
    (found,) = evaluate(network, X).values()
    return found


def inner(inputs: Any, outputs: Any, *layers: Layer) -> Layer:
    """A model of two inputs p and q, for another."""
    model = functional([volume(2, "p"), volume(2, "q"), *layers], "none", name="inner")
    model["config"] |= {"input_layers": inputs, "output_layers": outputs}
    return model | {"name": "inner"}


P, Q = ["p", 0, 0], ["q", 0, 0]


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        ([P, Q], [tensor("twice"), tensor("volume")]),
        ({"q": Q, "p": P}, {"q": tensor("volume"), "p": tensor("twice")}),
        ({"z": Q, "a": P}, {"z": tensor("volume"), "a": tensor("twice")}),
        ({"z": P, "a": Q}, {"z": tensor("twice"), "a": tensor("volume")}),
        ([P, Q], {"q": tensor("volume"), "p": tensor("twice")}),
        ([Q, P], {"p": tensor("twice"), "q": tensor("volume")}),
        ([P, {"b": Q}], [tensor("twice"), {"b": tensor("volume")}]),
    ],
)
def test_inputs_of_a_model_go_by_their_keys(inputs: Any, given: Any) -> None:
    model = inner(inputs, [["minus", 0, 0]], layer("Subtract", "minus", "p", "q"))
    twice = layer("Rescaling", "twice", "volume", scale=2.0)
    for args, kwargs in (([given], {"mask": None}), ([], {"inputs": given, "training": False})):
        model["inbound_nodes"] = [{"args": args, "kwargs": kwargs}]
        np.testing.assert_allclose(computed(twice, model, output="inner"), X)


def test_a_chain_within_a_model_takes_what_it_is_called_with() -> None:
    chain = sequential([layer("Rescaling", "twice", scale=2.0)], "chain") | {"name": "chain"}
    chain["inbound_nodes"] = [
        {"args": [tensor("volume")], "kwargs": {}},
        {"args": [tensor("chain")], "kwargs": {}},
    ]
    twice = layer("Identity", "out") | {
        "inbound_nodes": [{"args": [tensor("chain", 1)], "kwargs": {}}]
    }
    np.testing.assert_allclose(computed(chain, twice, output="out"), 4 * X)


def test_outputs_in_a_dict_have_its_keys() -> None:
    layers = [volume(2)] + [
        layer("Rescaling", name, "volume", scale=by) for name, by in (("p", 2.0), ("q", 3.0))
    ]
    model = functional(layers, "none")
    model["config"]["output_layers"] = {"z": ["p", 0, 0], "a": ["q", 0, 0]}
    found = evaluate(read_keras_network(model, None), X)
    assert list(found) == ["a", "z"]
    np.testing.assert_allclose(found["a"], 3 * X)
    np.testing.assert_allclose(found["z"], 2 * X)


def test_outputs_of_a_model_are_in_the_order_of_their_keys() -> None:
    model = inner(
        [P],
        {"z": ["twice", 0, 0], "a": ["thrice", 0, 0]},
        layer("Rescaling", "twice", "p", scale=2.0),
        layer("Rescaling", "thrice", "p", scale=3.0),
    )
    model["inbound_nodes"] = [{"args": [tensor("volume")], "kwargs": {}}]
    first, second = tensor("inner"), tensor("inner")
    second["config"]["keras_history"] = ["inner", 0, 1]
    minus = layer("Subtract", "minus") | {
        "inbound_nodes": [{"args": [[first, second]], "kwargs": {}}]
    }
    np.testing.assert_allclose(computed(model, minus, output="minus"), X)


def operation(class_name: str, *arguments: Any, **config: Any) -> Layer:
    """One of Keras' operations on tensors."""
    made = layer(class_name, "op", **config)
    made["config"] = {"name": "op", **config}
    return made | {
        "module": "keras.src.ops.numpy",
        "inbound_nodes": [{"args": list(arguments), "kwargs": {}}],
    }


V = tensor("volume")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (operation("Maximum", V, 0), lambda x: np.maximum(x, 0)),
        (operation("Maximum", 0.3, V), lambda x: np.maximum(x, 0.3)),
        (operation("Minimum", V, -0.5), lambda x: np.minimum(x, -0.5)),
        (operation("Clip", V, x_min=-0.5, x_max=0.25), lambda x: np.clip(x, -0.5, 0.25)),
        (operation("Negative", V), lambda x: -x),
        (operation("Concatenate", [V, V], axis=-1), lambda x: np.concatenate([x, x], 1)),
        (operation("Relu", V), lambda x: np.maximum(x, 0)),
        (operation("LeakyRelu", V, negative_slope=0.3), lambda x: np.where(x > 0, x, 0.3 * x)),
        (operation("Elu", V, alpha=0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
        (operation("Softmax", V, axis=-1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    ],
    ids=lambda value: value["class_name"] if isinstance(value, dict) else "",
)
def test_operations_on_tensors(made: Layer, expected: Callable[[Array], Array]) -> None:
    np.testing.assert_allclose(computed(made, output="op"), expected(X), atol=1e-7)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (operation("Power", V, 2), "Keras' operation Power on tensors; understood are Add, "),
        (operation("Maximum", V, True), "of a tensor and True"),
        (operation("Softmax", V, axis=1), r"'op' \(Softmax\) runs along axis 1"),
        (operation("Concatenate", [V, V], axis=1), "concatenates along axis 1"),
        (
            layer("Add", "op", "volume"),
            r"'op' \(Add\) joins one tensor .* save the model as .keras",
        ),
        (operation("Clip", V, x_min=None, x_max=1.0), "Keras' operation Clip on tensors"),
    ],
)
def test_operations_that_are_refused(made: Layer, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        computed(made, output="op")


@pytest.mark.parametrize("policy", ["QuantizedDTypePolicy", "Int4DTypePolicy"])
def test_a_quantized_layer_is_refused_with_the_cure(policy: str) -> None:
    mode = {"mode": "int8", "source_name": "float32"}
    dense = layer("Dense", "d", "volume", units=3)
    dense["config"]["dtype"] = {"class_name": policy, "config": mode}
    with pytest.raises(SpecError, match=r"'d' \(Dense\) is quantized \(int8\).*before Keras'"):
        require_unquantized(functional([volume(2), dense], "d"))


def test_lora_in_a_legacy_file_is_merged(tmp_path: Path, run: Any) -> None:
    """Keras merges it when it saves .keras, but not in .h5."""
    pytest.importorskip("h5py")
    draw, numbers = Draw(5), np.random.default_rng(6)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    model = functional(
        [
            volume(2),
            layer("Conv3D", "c", "volume", filters=3, kernel_size=[2, 2, 2], lora_alpha=5),
            layer("BatchNormalization", "b", "c", axis=-1, epsilon=1e-3),
            layer("Dense", "d", "b", units=4, lora_rank=2),
        ],
        "d",
    )
    kernel, bias = draw.conv(2, 2, 3)
    low, high = numbers.standard_normal((2, 2, 2, 2, 2)), numbers.standard_normal((2, 3))
    dense, own = numbers.standard_normal((3, 4)), numbers.standard_normal(4)
    down, up = numbers.standard_normal((3, 2)), numbers.standard_normal((2, 4))
    norm = draw.norm(3)
    merged = {
        "c": [kernel + 2.5 * np.tensordot(low, high, 1), bias],
        "b": norm,
        "d": [dense + down @ up, own],
    }
    stored: dict[str, dict[str, Array]] = {
        "c": {"kernel": kernel, "bias": bias, "lora_kernel_a": low, "lora_kernel_b": high},
        "b": dict(zip(names, norm, strict=True)),
        "d": {"kernel": dense, "bias": own, "lora_kernel_a": down, "lora_kernel_b": up},
    }
    x = tmp_path / "x.npy"
    np.save(x, numbers.standard_normal((1, 4, 5, 6, 2)).astype(np.float32))
    run(
        "apply", x, "-c", write_keras(tmp_path / "m.keras", model, merged), "-o", tmp_path / "a.npy"
    )
    run("apply", x, "-c", write_h5(tmp_path / "m.h5", model, stored), "-o", tmp_path / "b.npy")
    expected = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(
        np.load(tmp_path / "b.npy"), expected, atol=2e-6 * np.abs(expected).max()
    )
