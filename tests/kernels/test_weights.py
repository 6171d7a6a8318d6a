"""Weights files: those that Keras, PyTorch and ONNX saved give the numbers that their libraries
computed.

The files and the numbers beside them are made by tests/data/make_weights_files.py.
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.errors import FormatError, ShapeError, SpecError, UnknownNameError
from conv3d_cli.kernels import read_kernel, weights, write_kernel
from conv3d_cli.kernels.weights import (
    WEIGHTS_FILES,
    SavedLayer,
    choose_layer,
    find_weights_file,
    model_config,
    read_contents,
    read_layers,
    saved_layer,
    split_name,
)
from conv3d_cli.kernels.weights.layer import attributes_of, decode_floats
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system.isolated import Isolated

pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

DATA = Path(__file__).parent.parent / "data" / "weights"
LIBRARIES = {".keras": "h5py", ".h5": "h5py", ".hdf5": "h5py", ".onnx": "onnx"}
# weights alone: their attributes stand in the file that was saved with them
SIBLINGS = {"nested.weights.h5": "nested.keras", "keras2_weights_only.h5": "keras2.h5"}


def data(name: str) -> Path:
    """A file of tests/data/weights; skips where the library that reads it is missing."""
    if library := LIBRARIES.get(Path(name).suffix):
        pytest.importorskip(library)
    return DATA / name


held_by = functools.cache(read_layers)  # the files never change


def expected() -> list[Any]:
    cases = []
    for part in ("keras3", "keras2", "torch", "beside", "checkpoints"):
        with np.load(DATA / f"expected_{part}.npz") as held:
            for key in held.files:
                files, name, which = key.split("|")
                if which == "x":
                    for file in files.split(","):
                        x, y = held[key], held[f"{files}|{name}|y"]
                        cases.append(pytest.param(file, name, x, y, id=f"{file}::{name}"))
    return cases


def compute(
    layer: SavedLayer, config: SavedLayer, x: np.ndarray, data_format: str | None = None
) -> np.ndarray:
    """The output of a layer with the attributes of another."""
    attributes = attributes_of(config)
    data_format = data_format or attributes.data_format
    channels = x.shape[1 if data_format == "channels_first" else -1]
    if config.config is not None:
        assert attributes.groups * layer.kernel.shape[3] == channels
    padding: Any = attributes.padding
    steps: dict[str, Any] = {
        "strides": attributes.strides,
        "dilation_rate": attributes.dilation_rate,
    }
    if attributes.is_strided_dilation:  # not a Conv3D of Keras: every voxel, then every other
        y = compute_plain(layer, x, padding, data_format, channels, attributes.dilation_rate)
        space = tuple(slice(None, None, step) for step in attributes.strides)
        return y[(slice(None), slice(None), *space)]
    return conv3d(
        x,
        layer.kernel,
        bias=layer.bias,
        padding=padding,
        groups=channels // layer.kernel.shape[3],
        activation=attributes.activation,
        data_format=data_format,
        **steps,
    )


def compute_plain(
    layer: SavedLayer,
    x: np.ndarray,
    padding: Any,
    data_format: str,
    channels: int,
    dilation_rate: Any,
) -> np.ndarray:
    return conv3d(
        x,
        layer.kernel,
        bias=layer.bias,
        padding=padding,
        groups=channels // layer.kernel.shape[3],
        data_format=data_format,
        dilation_rate=dilation_rate,
    )


# --------------------------------------------------------------------------------------------------
# The real files


@pytest.mark.parametrize(("file", "name", "x", "y"), expected())
def test_layers_give_the_numbers_of_their_library(
    file: str, name: str, x: np.ndarray, y: np.ndarray
) -> None:
    layer = choose_layer(held_by(data(file)), file, name)
    config = choose_layer(held_by(DATA / SIBLINGS[file]), file, name) if file in SIBLINGS else layer
    data_format = None if file.endswith((".keras", ".h5", "tfjs.json")) else "channels_first"
    mine = compute(layer, config, x, data_format)
    assert mine.shape == y.shape
    np.testing.assert_allclose(mine, y, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("two.keras", ["conv3d_1", "narrow"]),
        ("nested.keras", ["conv3d_1", "inside", "last"]),
        (
            "nested.weights.h5",
            ["conv3d_1", "last", "inside"],
        ),  # by groups: the models' order stands in no weights file
        ("nested.h5", ["conv3d_1", "inside", "last"]),
        ("many.weights.h5", [f"step{i}" for i in range(11)]),
        ("special.keras", ["first", "half"]),
        ("keras2.keras", ["conv3d", "inside", "another"]),
        ("keras2.h5", ["conv3d", "inside", "another"]),
        ("keras2_weights_only.h5", ["conv3d", "inside", "another"]),
        ("net.safetensors", ["enc.conv", "mid", "out"]),
        ("state.pt", ["enc.conv", "mid", "out"]),
        ("checkpoint.pth", ["enc.conv", "mid", "out"]),
        ("dtypes.pt", ["float64", "float32", "float16", "bfloat16", "strided"]),
        ("net.onnx", ["node_conv3d", "node_Conv_16", "node_Conv_17"]),
        ("attributes.onnx", [f"Conv_{i}" for i in range(7)]),
        ("folded.onnx", ["per_axis", "per_tensor", "cast", "identity", "fused", "padded"]),
        (
            "norms.pt",
            [
                "normed",
                "normed_whole",
                "normed_inputs",
                "parametrized",
                "pruned",
                "spectral",
                "spectral2",
            ],
        ),
        ("before_1_6.pt", ["weight"]),
        ("module.pt", ["weight"]),
        ("script.pt", ["weight"]),
        ("whole.pt", ["conv", "mid"]),
        ("script_net.pt", ["conv", "mid"]),
        ("program.pt2", ["0.conv", "0.mid", "2"]),
        ("nnunet.pth", ["first", "last"]),
        ("lightning.ckpt", ["model.first", "model.last"]),
        ("hub.bin", ["first", "last"]),
        ("old.pth.tar", ["first", "last"]),
        ("sharded.safetensors.index.json", ["first", "last"]),
        ("sharded.bin.index.json", ["first", "last"]),
        ("quantized.pt", ["axis", "whole"]),
        ("flat_whole.pt", ["plane", "row"]),
        ("flat.keras", ["plane", "dilated", "row"]),
        ("flat.h5", ["plane", "dilated", "row"]),
        ("tfjs.json", ["one", "two"]),
    ],
)
def test_layers_come_in_order(file: str, names: list[str]) -> None:
    assert [layer.name for layer in held_by(data(file))] == names


@pytest.mark.parametrize("file", ["nested.keras", "keras2.h5"])
def test_a_process_of_its_own_hands_over_the_same(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As outside of these tests: the layers come through a pipe, and no HDF5 library is loaded."""
    here = read_contents(data(file))
    monkeypatch.setattr(weights, "Isolated", Isolated)
    monkeypatch.setitem(sys.modules, "h5py", None)
    there = read_contents(data(file))
    assert [type(one) for one in there] == [type(one) for one in here]
    for one, other in zip(there, here, strict=True):
        assert vars(one).keys() == vars(other).keys()
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_groups_are_numbered_as_numbers() -> None:
    layers = read_layers(data("many.weights.h5"))
    assert [float(layer.kernel.sum()) for layer in layers] == list(range(11))
    assert saved_layer(f"{DATA / 'many.weights.h5'}::conv3d_10").name == "step10"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("two.keras::conv3d_1", "conv3d_1"),  # the group of this name is the other layer's
        ("two.keras::conv3d", "conv3d_1"),
        ("two.keras::narrow", "narrow"),
        ("nested.weights.h5::sequential/conv3d", "inside"),
        ("nested.weights.h5::conv3d", "conv3d_1"),
        ("nested.h5::block/inside", "inside"),
        ("keras2.keras::sequential/conv3d", "inside"),
        ("net.onnx::mid", "node_Conv_16"),
        ("net.onnx::mid.weight", "node_Conv_16"),
        ("external.onnx::enc.conv", "node_conv3d"),
    ],
)
def test_a_layer_answers_to_its_other_names(text: str, name: str) -> None:
    file, _, called = text.partition("::")
    assert choose_layer(held_by(data(file)), file, called).name == name


def test_configs_are_in_keras_words() -> None:
    two = {layer.name: layer.config for layer in read_layers(data("two.keras"))}
    first, second = two["conv3d_1"], two["narrow"]
    assert first is not None
    assert second is not None
    assert (first["strides"], first["padding"], first["activation"], first["use_bias"]) == (
        [1, 2, 1],
        "same",
        "relu",
        True,
    )
    assert (second["dilation_rate"], second["groups"], second["use_bias"]) == ([1, 1, 2], 2, False)
    assert second["data_format"] == "channels_last"
    config = saved_layer(f"{DATA / 'special.keras'}::first").config
    assert config is not None
    assert config["data_format"] == "channels_first"
    for file in ("keras2.keras", "keras2.h5"):
        config = saved_layer(f"{DATA / file}::another").config
        assert config is not None
        assert (config["dilation_rate"], config["padding"]) == ([2, 2, 2], "same")
    for file in ("nested.weights.h5", "keras2_weights_only.h5", "net.safetensors", "state.pt"):
        assert all(layer.config is None for layer in read_layers(DATA / file)), file


def test_onnx_attributes_are_in_keras_words() -> None:
    layers = {layer.name: layer for layer in read_layers(data("attributes.onnx"))}
    paddings = {name: layer.config["padding"] for name, layer in layers.items() if layer.config}
    assert paddings == {
        "Conv_0": "valid",
        "Conv_1": "same",
        "Conv_2": [[1, 0], [1, 1], [1, 0]],  # SAME_LOWER: the odd voxel before
        "Conv_3": "valid",
        "Conv_4": [[0, 1], [1, 0], [2, 0]],
        "Conv_5": "valid",
        "Conv_6": [[0, 1], [1, 1], [0, 1]],
    }
    assert "Keras refuses" in layers["Conv_5"].notes[0]
    assert layers["Conv_3"].config["groups"] == 2  # type: ignore[index]
    assert all(
        layer.config["data_format"] == "channels_first" for layer in layers.values() if layer.config
    )


def test_model_config_is_the_whole_model() -> None:
    assert model_config(data("two.keras"))["class_name"] == "Sequential"  # type: ignore[index]
    assert model_config(data("nested.h5"))["class_name"] == "Functional"  # type: ignore[index]
    assert model_config(data("keras2.h5"))["config"]["name"] == "sequential"  # type: ignore[index]
    for file in (
        "keras2_weights_only.h5",
        "nested.weights.h5",
        "net.onnx",
        "state.pt",
        "net.safetensors",
        "psf.npy",
    ):
        assert model_config(DATA / file) is None, file


def test_dtypes_are_kept() -> None:
    wanted = {
        "float64": "float64",
        "float32": "float32",
        "float16": "float16",
        "bfloat16": "float32",
    }
    for file in ("dtypes.pt", "dtypes.safetensors"):
        for name, dtype in wanted.items():
            assert str(saved_layer(f"{DATA / file}::{name}").kernel.dtype) == dtype
    torch, tensors = (
        saved_layer(f"{DATA / file}::bfloat16") for file in ("dtypes.pt", "dtypes.safetensors")
    )
    np.testing.assert_array_equal(torch.kernel, tensors.kernel)


def test_short_floats_are_decoded() -> None:
    assert decode_floats(np.array([0x3F80, 0xC049], "<u2").tobytes(), "bfloat16").tolist() == [
        1.0,
        -3.140625,
    ]
    assert decode_floats(np.array([0x3F80], ">u2").tobytes(), "bfloat16", ">").tolist() == [1.0]
    assert decode_floats(bytes([0x3C, 0xC0, 0x01]), "float8_e5m2").tolist() == [1.0, -2.0, 2.0**-16]
    assert decode_floats(bytes([0x01, 0x08, 0xB8, 0x7E, 0x00]), "float8_e4m3fn").tolist() == [
        2**-9,
        2**-6,
        -1,
        448,
        0,
    ]
    assert np.isnan(decode_floats(bytes([0x7F, 0xFF]), "float8_e4m3fn")).all()
    assert decode_floats(np.array([1.5], ">f8").tobytes(), "float64", ">").tolist() == [1.5]


# --------------------------------------------------------------------------------------------------
# FILE::NAME


def test_read_kernel_takes_a_layer() -> None:
    text = f"{DATA / 'net.safetensors'}::enc.conv"
    kernel = read_kernel(text)
    assert kernel.weights.shape == (3, 3, 3, 2, 4)
    assert kernel.bias is not None
    assert kernel.bias.shape == (4,)
    assert kernel.name == text
    assert read_kernel("net.safetensors::mid", folder=DATA).weights.shape == (2, 3, 1, 2, 6)


def test_one_layer_needs_no_name(tmp_path: Path) -> None:
    from conv3d_cli.kernels.weights import write_layers

    path = tmp_path / "one.safetensors"
    write_layers(path, read_layers(DATA / "state.pt")[:1])
    assert read_kernel(str(path)).weights.shape == (3, 3, 3, 2, 4)
    assert read_kernel(f"{path}::enc.conv").bias is not None


def test_several_layers_are_listed_with_the_way_to_choose() -> None:
    with pytest.raises(SpecError) as error:
        read_kernel(str(DATA / "state.pt"))
    text = str(error.value)
    assert "3 layers: enc.conv (3x3x3x2x4 + bias), mid (2x3x1x2x6 + bias), out (1x1x1x6x1)" in text
    assert text.endswith("state.pt::enc.conv")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no layer 'enc\.con'; did you mean 'enc\.conv'\?"):
        read_kernel(f"{DATA / 'state.pt'}::enc.con")


def test_a_name_that_two_layers_have_is_not_guessed() -> None:
    one = np.ones((1, 1, 1, 1, 1))
    layers = [
        SavedLayer("a", None, one, aliases=("x/a",)),
        SavedLayer("a", None, one, aliases=("y/a",)),
    ]
    with pytest.raises(SpecError, match="2 layers 'a'; write x/a or y/a"):
        choose_layer(layers, "f.h5", "a")
    assert choose_layer(layers, "f.h5", "y/a") is layers[1]


def test_colons_in_a_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / "state.pt", "a::b.pt")
    write_kernel("psf::1.npy", Kernel(np.ones((1, 2, 3))))
    assert split_name("a::b.pt") == ("a::b.pt", None)
    assert split_name("a::b.pt::mid") == ("a::b.pt", "mid")
    assert read_kernel("a::b.pt::mid").weights.shape == (2, 3, 1, 2, 6)
    assert read_kernel("psf::1.npy").size == (1, 2, 3)
    assert split_name("net.onnx::a::b") == ("net.onnx", "a::b")


def test_a_plain_kernel_file_has_no_layers(tmp_path: Path) -> None:
    write_kernel(tmp_path / "psf.npy", Kernel(np.ones((1, 2, 3))))
    with pytest.raises(SpecError, match=r"holds one kernel.*leave out ::a"):
        read_kernel(f"{tmp_path / 'psf.npy'}::a")


def test_missing_files_are_named() -> None:
    for text in ("none.keras", "none.safetensors::a", "none.pt", "none.h5::conv3d"):
        with pytest.raises(FormatError, match=r"cannot read none\.\w+: no such file"):
            read_kernel(text)


def test_suffixes_claim_files() -> None:
    suffixes = [suffix for kind in WEIGHTS_FILES for suffix in kind.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert find_weights_file("A.KERAS") is WEIGHTS_FILES[0]
    assert find_weights_file("a.weights.h5").encode is not None  # type: ignore[union-attr]
    assert find_weights_file("a.h5").encode is None  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------------------
# Libraries


@pytest.mark.parametrize(
    ("library", "file"),
    [
        ("h5py", "two.keras"),
        ("h5py", "nested.weights.h5"),
        ("h5py", "keras2.h5"),
        ("onnx", "net.onnx"),
    ],
)
def test_a_missing_library_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, library: str, file: str, tmp_path: Path
) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)  # HDF5 is read in another process
    monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(
        FormatError, match=rf"{library} is not installed; pip install 'conv3d\[weights\]'"
    ):
        read_layers(DATA / file)


def test_safetensors_and_pytorch_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torch", "safetensors", "h5py", "onnx"):
        monkeypatch.setitem(sys.modules, library, None)
    assert len(read_layers(DATA / "net.safetensors")) == len(read_layers(DATA / "state.pt")) == 3


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    raw = bytearray((DATA / "net.safetensors").read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "nan.safetensors").write_bytes(raw)
    name = next(
        n.name for n in read_layers(tmp_path / "nan.safetensors") if np.isnan(n.kernel).any()
    )
    with pytest.raises(ShapeError, match="finite"):
        read_kernel(f"{tmp_path / 'nan.safetensors'}::{name}")
