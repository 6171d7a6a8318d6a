"""`conv3d kernel convert`: the numbers survive, attributes where they can, and a note says what
could not.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import OutputExistsError, ShapeError, SpecError, WriteError
from conv3d_cli.kernels import read_kernel, write_kernel
from conv3d_cli.kernels.weights import (
    SavedLayer,
    model_config,
    read_layers,
    saved_layer,
    write_layers,
)
from conv3d_cli.kernels.weights.convert import convert_layers
from conv3d_cli.kernels.weights.layer import attributes_of
from conv3d_cli.model.kernel import Kernel

pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

DATA = Path(__file__).parent.parent / "data" / "weights"
SOURCES = [
    "two.keras",
    "nested.keras",
    "keras2.h5",
    "net.onnx",
    "attributes.onnx",
    "state.pt",
    "net.safetensors",
]
TARGETS = [".keras", ".weights.h5", ".safetensors", ".onnx", ".npz"]


@pytest.fixture(autouse=True)
def libraries() -> None:
    for library in ("h5py", "onnx"):
        pytest.importorskip(library)


@pytest.fixture
def convert(run: Any) -> Any:
    """`conv3d kernel convert`, which writes nothing to stdout."""

    def call(*arguments: object, code: int = 0) -> Any:
        result = run("kernel", "convert", *arguments, code=code)
        assert not result.stdout
        return result

    return call


def layer_of(name: str = "a", **config: object) -> SavedLayer:
    rng = np.random.default_rng(3)
    kernel = rng.standard_normal((2, 3, 1, 2, 4)).astype(np.float32)
    return SavedLayer(name, config or None, kernel, rng.standard_normal(4).astype(np.float32))


@functools.cache
def one_of(file: str) -> str:
    """A layer of the file that Keras has, too."""
    plain = [
        layer for layer in read_layers(DATA / file) if not attributes_of(layer).is_strided_dilation
    ]
    return f"{DATA / file}::{plain[0].name}"


# --------------------------------------------------------------------------------------------------
# Numbers and attributes


@pytest.mark.parametrize(("source", "suffix"), list(itertools.product(SOURCES, TARGETS)))
def test_numbers_and_bytes_survive_every_pair(source: str, suffix: str, tmp_path: Path) -> None:
    text, first, second = one_of(source), tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    convert_layers(text, first)
    convert_layers(text, second)
    assert first.read_bytes() == second.read_bytes()
    # beside the layer an .onnx holds its activation, a node of its own
    name = f"::{read_layers(first)[0].name}" if suffix == ".onnx" else ""
    before, after = saved_layer(text).as_kernel("before"), read_kernel(f"{first}{name}")
    np.testing.assert_array_equal(after.weights, before.weights)
    np.testing.assert_array_equal(after.bias, before.bias)


@pytest.mark.parametrize(
    "source", ["two.keras", "keras2.h5", "net.safetensors", "state.pt", "many.weights.h5"]
)
@pytest.mark.parametrize("suffix", [".weights.h5", ".safetensors"])
def test_all_layers_are_converted_in_order(source: str, suffix: str, tmp_path: Path) -> None:
    convert_layers(str(DATA / source), tmp_path / f"all{suffix}")
    before, after = read_layers(DATA / source), read_layers(tmp_path / f"all{suffix}")
    assert [layer.name for layer in after] == [layer.name for layer in before]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.kernel, other.kernel)


@pytest.mark.parametrize("suffix", [".keras", ".onnx"])
def test_attributes_are_kept_where_the_target_holds_them(suffix: str, tmp_path: Path) -> None:
    convert_layers(str(DATA / "two.keras"), tmp_path / f"out{suffix}")
    for before, after in zip(
        read_layers(DATA / "two.keras"), read_layers(tmp_path / f"out{suffix}"), strict=True
    ):
        one, other = attributes_of(before), attributes_of(after)
        assert (one.strides, one.dilation_rate, one.groups) == (
            other.strides,
            other.dilation_rate,
            other.groups,
        )
        size = before.kernel.shape[:3]
        assert one.explicit_pads(size) == other.explicit_pads(size)
        if suffix == ".keras":
            assert one == other


def test_onnx_pads_become_keras_words_or_a_layer(tmp_path: Path) -> None:
    convert_layers(f"{DATA / 'attributes.onnx'}::Conv_6", tmp_path / "same.keras")
    assert attributes_of(saved_layer(str(tmp_path / "same.keras"))).padding == "same"
    notes = convert_layers(f"{DATA / 'attributes.onnx'}::Conv_4", tmp_path / "pads.keras")
    assert any("ZeroPadding3D" in note for note in notes)
    classes = [
        entry["class_name"] for entry in model_config(tmp_path / "pads.keras")["config"]["layers"]
    ]  # type: ignore[index]
    assert classes == ["InputLayer", "ZeroPadding3D", "Conv3D"]


def test_what_gets_lost_is_told(tmp_path: Path, convert: Any) -> None:
    told = convert(DATA / "two.keras", tmp_path / "net.safetensors").stderr.splitlines()
    assert f"note: {DATA / 'two.keras'} has other layers, which are left out: activation" in told
    assert (
        "note: conv3d_1: safetensors holds weights only, without strides=1,2,1, padding=same, "
        "activation=relu"
    ) in told
    assert (
        "note: narrow: safetensors holds weights only, without dilation_rate=1,1,2, groups=2"
        in told
    )
    told = convert(f"{DATA / 'two.keras'}::narrow", tmp_path / "narrow.npy").stderr.splitlines()
    assert told == ["note: narrow: .npy holds weights only, without dilation_rate=1,1,2, groups=2"]
    told = convert(f"{DATA / 'state.pt'}::mid", tmp_path / "mid.keras").stderr.splitlines()
    assert told == [
        (
            "note: mid: the file holds weights only; strides, padding, ... are Keras' defaults "
            "unless they are given"
        )
    ]
    told = convert(
        f"{DATA / 'nested.keras'}::conv3d_1", tmp_path / "first.onnx"
    ).stderr.splitlines()
    assert told[-1] == "note: conv3d_1: ONNX is written without activation=silu"


def test_a_filter_becomes_a_layer(tmp_path: Path, convert: Any) -> None:
    write_kernel(tmp_path / "psf.json", Kernel(np.arange(6.0).reshape(1, 2, 3), np.array([2.0])))
    told = convert(tmp_path / "psf.json", tmp_path / "psf.keras").stderr
    assert "psf: the filter becomes a layer with one input channel and one filter" in told
    layer = saved_layer(f"{tmp_path / 'psf.keras'}::psf")
    assert layer.kernel.shape == (1, 2, 3, 1, 1)
    assert layer.kernel.dtype == np.float32  # nothing is lost
    assert layer.bias.tolist() == [2.0]  # type: ignore[union-attr]


def test_float64_stays_where_it_matters(tmp_path: Path) -> None:
    exact = np.full((1, 1, 1, 1, 1), 0.1)
    for suffix in (".keras", ".weights.h5", ".safetensors"):
        write_layers(tmp_path / f"k{suffix}", [SavedLayer("a", None, exact)])
        assert saved_layer(str(tmp_path / f"k{suffix}")).kernel == 0.1
    notes = write_layers(tmp_path / "k.onnx", [SavedLayer("a", None, exact)])
    assert any("rounded to float32" in note for note in notes)
    assert saved_layer(str(tmp_path / "k.onnx")).kernel == np.float32(0.1)


def test_halves_stay_halves_in_safetensors(tmp_path: Path) -> None:
    convert_layers(f"{DATA / 'dtypes.pt'}::float16", tmp_path / "half.safetensors")
    assert saved_layer(str(tmp_path / "half.safetensors")).kernel.dtype == np.float16


def test_names_that_keras_refuses_are_changed(tmp_path: Path) -> None:
    layers = [layer_of("/enc/Conv", strides=1), layer_of("enc_Conv", strides=1)]
    write_layers(tmp_path / "a.weights.h5", layers)
    assert [layer.name for layer in read_layers(tmp_path / "a.weights.h5")] == [
        "enc_Conv",
        "enc_Conv_1",
    ]


# --------------------------------------------------------------------------------------------------
# Refusals


def test_layers_that_do_not_follow_one_another(tmp_path: Path) -> None:
    for suffix in (".keras", ".onnx"):
        with pytest.raises(
            WriteError, match=r"enc\.conv gives 4 channels and mid takes 2; choose one with ::NAME"
        ):
            convert_layers(str(DATA / "state.pt"), tmp_path / f"out{suffix}")
    assert not list(tmp_path.iterdir())


def test_several_layers_for_a_file_of_one(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds 3 layers"):
        convert_layers(str(DATA / "state.pt"), tmp_path / "out.npz")


def test_keras_has_no_strided_dilation_and_no_same_lower(tmp_path: Path) -> None:
    with pytest.raises(
        WriteError, match="Keras refuses strides > 1 together with dilation_rate > 1"
    ):
        convert_layers(f"{DATA / 'net.onnx'}::mid", tmp_path / "mid.keras")
    with pytest.raises(WriteError, match="no padding same_lower with strides > 1"):
        write_layers(tmp_path / "low.keras", [layer_of(strides=2, padding="same_lower")])
    write_layers(tmp_path / "low.onnx", [layer_of(strides=2, padding="same_lower")])
    layer = saved_layer(str(tmp_path / "low.onnx"))
    assert attributes_of(layer).padding == "same_lower"
    assert "depends on the volume's size" in layer.notes[0]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "net.pt",
            "PyTorch files are only read; write .keras .weights.h5 .safetensors .onnx instead",
        ),
        ("net.h5", "legacy Keras files are only read"),
        ("net.xyz", "no kernel file has the suffix"),
    ],
)
def test_targets_that_are_not_written(target: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        convert_layers(str(DATA / "state.pt"), tmp_path / target)
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(tmp_path: Path, convert: Any) -> None:
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        convert_layers(str(DATA / "state.pt"), target)
    assert convert(DATA / "state.pt", target, code=5).stderr.startswith("Error: ")
    assert target.read_bytes() == b"mine"
    convert(DATA / "state.pt", target, "--overwrite")
    assert len(read_layers(target)) == 3


def test_nan_weights_are_not_written(tmp_path: Path) -> None:
    for suffix in (".keras", ".safetensors"):
        with pytest.raises(ShapeError, match="finite"):
            write_layers(
                tmp_path / f"a{suffix}", [SavedLayer("a", None, np.full((1, 1, 1, 1, 1), np.nan))]
            )
    assert not list(tmp_path.iterdir())


def test_a_builtin_is_made_not_converted(tmp_path: Path) -> None:
    (tmp_path / "k.toml").write_text('kernel = "box"\n')
    with pytest.raises(SpecError, match="conv3d kernel make"):
        convert_layers(str(tmp_path / "k.toml"), tmp_path / "k.keras")


def test_a_name_for_a_file_without_layers(tmp_path: Path) -> None:
    write_kernel(tmp_path / "psf.npy", Kernel(np.ones((1, 2, 3))))
    with pytest.raises(SpecError, match="leave out ::a"):
        convert_layers(f"{tmp_path / 'psf.npy'}::a", tmp_path / "k.keras")
