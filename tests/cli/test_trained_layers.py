"""Trained layers from the command line: padding layers, constraints, adapters, bare configs, and
the notes on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

DATA = Path(__file__).parent.parent / "data" / "weights"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """What Keras, PyTorch and onnxruntime computed: file -> its input and its output, for files of
    one layer.
    """
    with np.load(DATA / "expected_beside.npz") as held:
        return {
            f"{file}|{which}": held[key]
            for key in held.files
            for files, _, which in [key.split("|")]
            for file in files.split(",")
        }


def assert_close(got: Path, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.load(got).reshape(expected.shape), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("option", ["-k", "-c"])
@pytest.mark.parametrize("name", ["padded", "constrained", "lora"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_gives_keras_numbers(
    run: Any, tmp_path: Path, golden: Any, option: str, name: str, suffix: str
) -> None:
    """As a model and as its only layer: ZeroPadding3D, constraints of trained weights, a LoRA
    adapter.
    """
    pytest.importorskip("h5py")
    file = f"{name}{suffix}"
    np.save(tmp_path / "x.npy", golden[f"{file}|x"])
    result = run("apply", tmp_path / "x.npy", option, DATA / file, "-o", tmp_path / "y.npy")
    assert_close(tmp_path / "y.npy", golden[f"{file}|y"])
    assert "constraint" not in result.stderr
    assert ("unknown regularizer 'Penalty'" in result.stderr) == (
        name == "constrained" and option == "-c"
    )


def test_known_penalties_of_a_model_are_told(run: Any, tmp_path: Path, golden: Any) -> None:
    h5py = pytest.importorskip("h5py")
    np.save(tmp_path / "x.npy", golden["constrained.h5|x"])
    result = run(
        "apply",
        tmp_path / "x.npy",
        "-c",
        DATA / "constrained.h5",
        "-o",
        tmp_path / "y.npy",
        "--json",
    )
    with h5py.File(DATA / "constrained.h5") as file:
        bias = next(
            file[f"model_weights/conv/{n}"][()]
            for n in file["model_weights/conv"].attrs["weight_names"]
            if "bias" in n
        )
    assert json.loads(result.stdout)["losses"] == pytest.approx(
        {"bias": 0.01 * float((bias**2).sum())}, rel=1e-6
    )


def test_constraints_of_options_are_applied(run: Any, tmp_path: Path) -> None:
    """What is asked for on the command line acts on any weights."""
    pytest.importorskip("h5py")
    np.save(tmp_path / "x.npy", np.ones((4, 4, 4, 2), np.float32))
    words = [
        "apply",
        tmp_path / "x.npy",
        "-c",
        DATA / "constrained.keras",
        "--kernel-constraint",
        "max_norm:max_value=0",
    ]
    result = run(*words, "--no-bias", "-o", tmp_path / "y.npy")
    assert "kernel_constraint" in result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), 0, atol=1e-4)


def test_models_in_a_model_may_name_their_layers_alike(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with np.load(DATA / "model_twice.npz") as held:
        np.save(tmp_path / "x.npy", held["x"])
        run("apply", tmp_path / "x.npy", "-c", DATA / "twice.keras", "-o", tmp_path / "y.npy")
        assert_close(tmp_path / "y.npy", held["y"])


@pytest.mark.parametrize("option", ["-k", "-c"])
def test_padding_survives_convert(run: Any, tmp_path: Path, option: str) -> None:
    """ONNX' pads with strides become a ZeroPadding3D in .keras, and are read back from there."""
    pytest.importorskip("h5py")
    pytest.importorskip("onnx")
    source = f"{DATA / 'attributes.onnx'}::Conv_4"
    with np.load(DATA / "expected_torch.npz") as held:
        x, y = held["attributes.onnx|Conv_4|x"], held["attributes.onnx|Conv_4|y"]
    np.save(tmp_path / "x.npy", x)
    run("kernel", "convert", source, tmp_path / "out.keras")
    first = ["apply", tmp_path / "x.npy", "--data-format", "channels_first"]
    result = run(*first, option, tmp_path / "out.keras", "-o", tmp_path / "y.npy")
    assert_close(tmp_path / "y.npy", y)
    assert (
        "its padding includes that of the layers before it in the model: Conv_4_pad"
        in result.stderr
    ) == (option == "-k")
    run("kernel", "convert", tmp_path / "out.keras", tmp_path / "back.onnx")
    run(*first, "-k", tmp_path / "back.onnx", "-o", tmp_path / "z.npy")
    assert_close(tmp_path / "z.npy", y)


# --------------------------------------------------------------------------------------------------
# State dicts


def test_a_state_dict_says_that_it_has_no_strides(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 5, 5, 2), np.float32))
    note = (
        "layer enc.conv: the file holds weights only; strides, padding, ... are Keras' "
        "defaults unless they are given"
    )
    words = [
        "apply",
        tmp_path / "x.npy",
        "-k",
        f"{DATA / 'state.pt'}::enc.conv",
        "--overwrite",
        "-o",
        tmp_path / "y.npy",
    ]
    assert note in run(*words).stderr
    assert note in run(*words, "--padding", "same").stderr
    assert note not in run(*words, "--padding", "same", "--strides", "2").stderr
    assert note not in run(*words, "-q").stderr
    (tmp_path / "c.toml").write_text(
        f'kernel = "{DATA / "net.safetensors"}::enc.conv"\npadding = "same"\n'
    )
    assert note in run(*words[:2], "-c", tmp_path / "c.toml", *words[4:]).stderr


def test_a_note_on_a_configs_kernel_goes_with_it(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 5, 5, 2), np.float32))
    (tmp_path / "c.toml").write_text(f'kernel = "{DATA / "net.safetensors"}::enc.conv"\n')
    result = run(
        "apply",
        tmp_path / "x.npy",
        "-c",
        tmp_path / "c.toml",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "y.npy",
    )
    assert "weights only" not in result.stderr


def test_a_transposed_convolution_is_refused(run: Any, error_line: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 5, 5, 4), np.float32))
    text = f"{DATA / 'transposed.pt'}::up"
    for command in (
        ["apply", tmp_path / "x.npy", "-k", text, "-o", tmp_path / "y.npy"],
        ["kernel", "show", text],
        ["kernel", "convert", text, tmp_path / "y.npz"],
    ):
        message = error_line(run(*command, code=3).stderr)
        assert "ConvTranspose3d" in message
        assert f"name its tensor: {text}.weight" in message
    result = run("apply", tmp_path / "x.npy", "-k", f"{text}.weight", "-o", tmp_path / "y.npy")
    assert "layer up: the file does not tell a Conv3d from a ConvTranspose3d" in result.stderr


# --------------------------------------------------------------------------------------------------
# A layer's own config

CONFIG = {
    "name": "conv3d_3",
    "trainable": True,
    "filters": 3,
    "kernel_size": [2, 2, 2],
    "strides": [2, 1, 2],
    "padding": "valid",
    "dtype": {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": "float32"},
        "registered_name": None,
    },
    "data_format": "channels_last",
    "dilation_rate": [1, 1, 1],
    "groups": 1,
    "activation": "relu",
    "use_bias": True,
    "kernel_constraint": {
        "module": "keras.constraints",
        "class_name": "NonNeg",
        "config": {},
        "registered_name": None,
    },
}


def test_a_bare_get_config_with_its_weights(run: Any, tmp_path: Path) -> None:
    """Keras' layer.get_config() as JSON, and the weights as -k: no constraint is applied to them
    again.
    """
    rng = np.random.default_rng(5)
    x, kernel = (
        rng.standard_normal((5, 6, 7, 2)).astype("f4"),
        rng.standard_normal((2, 2, 2, 2, 3)).astype("f4"),
    )
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", kernel)
    (tmp_path / "layer.json").write_text(json.dumps(CONFIG))
    result = run(
        "apply",
        tmp_path / "x.npy",
        "-c",
        tmp_path / "layer.json",
        "-k",
        tmp_path / "w.npy",
        "-o",
        tmp_path / "y.npy",
    )
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2, 2), (0, 1, 2))[::2, ::1, ::2]
    expected = np.maximum(np.einsum("xyzcdhw,dhwcf->xyzf", windows, kernel), 0)
    assert_close(tmp_path / "y.npy", expected)
    assert "constraint" not in result.stderr
    (tmp_path / "wrapped.json").write_text(json.dumps({"class_name": "Conv3D", "config": CONFIG}))
    run(
        "apply",
        tmp_path / "x.npy",
        "-c",
        tmp_path / "wrapped.json",
        "-k",
        tmp_path / "w.npy",
        "-o",
        tmp_path / "z.npy",
    )
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(tmp_path / "z.npy"))


def test_a_bare_get_config_without_weights_is_drawn_and_constrained(
    run: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 6, 7, 2), np.float32))
    (tmp_path / "layer.json").write_text(json.dumps(CONFIG))
    result = run(
        "apply", tmp_path / "x.npy", "-c", tmp_path / "layer.json", "-o", tmp_path / "y.npy"
    )
    assert "drawn by its initializer" in result.stderr
    assert "kernel_constraint NonNeg applied" in result.stderr
    assert np.load(tmp_path / "y.npy").shape == (2, 5, 3, 3)


def test_the_weights_must_fit_the_config(run: Any, error_line: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 6, 7, 2), np.float32))
    np.save(tmp_path / "w.npy", np.ones((2, 2, 2, 1, 3), np.float32))
    (tmp_path / "layer.json").write_text(json.dumps(CONFIG))
    words = ["-c", tmp_path / "layer.json", "-k", tmp_path / "w.npy", "-o", tmp_path / "y.npy"]
    assert "2" in error_line(run("apply", tmp_path / "x.npy", *words, code=4).stderr)


@pytest.mark.parametrize(
    ("file", "layer", "library"),
    [
        ("whole.pt", "conv", "json"),
        ("script_net.pt", "mid", "json"),
        ("program.pt2", "2", "json"),
        ("lightning.ckpt", "model.first", "json"),
        ("nnunet.pth", "last", "json"),
        ("old.pth.tar", "first", "json"),
        ("hub.bin", "first", "json"),
        ("sharded.safetensors.index.json", "last", "json"),
        ("flat_whole.pt", "plane", "json"),
        ("row.onnx", "row", "onnx"),
        ("flat.keras", "row", "h5py"),
        ("tfjs.json", "two", "json"),
    ],
)
def test_a_layer_of_a_checkpoint_gives_its_librarys_numbers(
    run: Any, tmp_path: Path, file: str, layer: str, library: str
) -> None:
    """Without an option: the file tells strides, padding and activation."""
    pytest.importorskip(library)
    with np.load(DATA / "expected_checkpoints.npz") as held:
        (files,) = {
            key.rpartition("|")[0]
            for key in held.files
            if file in key.split("|")[0].split(",") and key.split("|")[1] == layer
        }
        x, y = held[f"{files}|x"], held[f"{files}|y"]
    last = file in ("flat.keras", "tfjs.json")
    np.save(tmp_path / "x.npy", x)
    run(
        "apply", tmp_path / "x.npy", "-k", f"{DATA / file}::{layer}", "-o", tmp_path / "y.npy",
        "--data-format", "channels_last" if last else "channels_first",
    )  # fmt: skip
    got = np.load(tmp_path / "y.npy")
    assert got.shape == y.shape
    np.testing.assert_allclose(got, y, rtol=2e-5, atol=2e-6)
