"""What a weights file holds beside plain Conv3D layers is computed, or refused by name: never
passed over without a word.

The files are made by tests/data/make_weights_files.py beside; the numbers of what is computed are
held by test_weights.py.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import Conv3DError, FormatError, SpecError, UnknownNameError
from conv3d_cli.kernels.manifests import is_manifest
from conv3d_cli.kernels.weights import (
    OtherLayer,
    SavedLayer,
    choose_layer,
    find_weights_file,
    read_contents,
    read_layers,
    saved_layer,
)
from conv3d_cli.kernels.weights.convert import convert_layers
from conv3d_cli.kernels.weights.layer import attributes_of
from conv3d_cli.kernels.weights.state_dict import StateDict, read_state_dict

pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

DATA = Path(__file__).parent.parent / "data" / "weights"


# --------------------------------------------------------------------------------------------------
# The file alone, a name, and convert


@pytest.mark.parametrize(
    ("file", "library", "name", "why", "readable"),
    [
        ("custom.keras", "h5py", "mine", "it is of class My>MyConv", "plain"),
        ("custom.h5", "h5py", "mine", "it is of class My>MyConv", "plain"),
        ("nested.keras", "h5py", "up", "it is of class Conv3DTranspose", "inside"),
        ("nested.weights.h5", "h5py", "up", "it is a Conv3DTranspose", "inside"),
        ("folded.onnx", "onnx", "up", "it is a node ConvTranspose", "cast"),
        (
            "folded.onnx",
            "onnx",
            "turned",
            "its weights are computed by the graph, by Transpose 'turn'",
            "cast",
        ),
        ("transposed.pt", "json", "up", "its name suggests a transposed convolution", "conv"),
        ("transposed.pt", "json", "up_b", "its name suggests a transposed convolution", "conv"),
        (
            "transposed.pt",
            "json",
            "other",
            "its weights are 4x3x2x2x2 and its bias 3: it is a ConvTranspose3d",
            "conv",
        ),
        ("whole.pt", "json", "up", "it is of class ConvTranspose3d", "conv"),
        ("whole.pt", "json", "mirror", "it pads by padding_mode='reflect'", "conv"),
        (
            "whole.pt",
            "json",
            "mine",
            "it is of class __main__.Subclass, whose code is not in the file",
            "conv",
        ),
        ("flat_whole.pt", "json", "up", "it is of class ConvTranspose2d", "plane"),
        ("quantized.pt", "json", "codes", "its weight holds int8, not floats", "axis"),
        ("quantized.pt", "json", "complex", "its weight holds complex64, not floats", "axis"),
        ("flat.keras", "h5py", "up", "it is of class Conv1DTranspose", "plane"),
    ],
)
def test_what_is_not_read_is_told_by_name(
    file: str, library: str, name: str, why: str, readable: str, tmp_path: Path
) -> None:
    pytest.importorskip(library)
    path = str(DATA / file)
    with pytest.raises(FormatError) as refused:
        saved_layer(f"{path}::{name}")
    assert f"cannot read layer '{name}' of {path} as a Conv3D: {why}" in str(refused.value)
    with pytest.raises(SpecError) as alone:
        saved_layer(path)
    assert f"{name} ({why}" in str(alone.value)
    notes = convert_layers(path, tmp_path / "out.safetensors")
    assert any(
        "convolutions that are left out" in note and f"{name} ({why}" in note for note in notes
    )
    assert saved_layer(f"{path}::{readable}").name == readable


def test_a_name_that_is_nowhere_may_mean_what_is_not_read() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        saved_layer(f"{DATA / 'transposed.pt'}::othr")


def test_the_file_alone_is_no_name_for_one_layer_of_several() -> None:
    """A normalization or an activation of its own is part of what the file computes."""
    plain = SavedLayer("a", None, np.ones((1, 1, 1, 1, 1)))
    norm = OtherLayer("norm", "it has no weights of 5 axes", is_convolution=False)
    with pytest.raises(
        SpecError,
        match=r"1 layer: a .*, and 1 that is no Conv3D: norm; choose one, as in f\.pt::a$",
    ):
        choose_layer([plain, norm], "f.pt", None)
    assert choose_layer([plain, norm], "f.pt", "a") is plain
    assert choose_layer([plain], "f.pt", None) is plain


def test_a_file_of_what_is_not_read_says_why(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    path = tmp_path / "net.onnx"
    weights = numpy_helper.from_array(np.ones((2, 1, 3, 3), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="flat")],
        "g",
        [x],
        [x],
        [weights],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(
        FormatError,
        match=r"no Conv3D layer that can be read: flat \(it is a node ConvTranspose\)",
    ):
        read_layers(path)


# --------------------------------------------------------------------------------------------------
# State dicts


def state(**shapes: tuple[int, ...]) -> list[SavedLayer | OtherLayer]:
    """What a state dict of these shapes holds; `_` is a dot."""
    named = {key.replace("_", "."): shape for key, shape in shapes.items()}
    return read_state_dict(StateDict(named, lambda key: np.ones(named[key], np.float32)))


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        (
            {"conv.weight": (2, 1, 3, 3, 3), "conv.lora_A": (2, 9), "conv.lora_B": (6, 2)},
            "a LoRA adapter acts on it",
        ),
        (
            {"conv.conv.weight": (2, 1, 3, 3, 3), "conv.conv.bias": (2,), "conv.lora_A": (2, 9)},
            "a LoRA adapter acts on it",
        ),
        (
            {"c.base_layer.weight": (2, 1, 3, 3, 3), "c.lora_A.default.weight": (1, 1, 3, 3, 3)},
            "a LoRA adapter acts on it",
        ),
        ({"c.weight": (2, 1, 3, 3, 3), "c.weight_scale": ()}, "it also has c.weight_scale, so"),
        (
            {"c.weight": (2, 1, 3, 3, 3), "c.fake_quant.scale": (1,)},
            "it also has c.fake_quant.scale, so",
        ),
        (
            {"c.weight_v": (2, 1, 3, 3, 3), "c.weight_g": (2, 1, 3, 1, 1)},
            "computed by a parametrization",
        ),
        (
            {
                "c.parametrizations.weight.original": (2, 1, 3, 3, 3),
                "c.parametrizations.weight.0.x": (1,),
            },
            "computed by a parametrization",
        ),
        (
            {"c.weight": (2, 1, 3, 3, 3), "c.bias": (3,)},
            "it is a ConvTranspose3d, or no convolution",
        ),
        ({"pos_embed": (1, 8, 4, 4, 4)}, "a tensor of 5 axes, but no NAME.weight"),
        ({"stem.kernel": (3, 3, 3, 1, 8)}, "a tensor of 5 axes, but no NAME.weight"),
        ({"c.weight": (8, 4, 3, 3, 3, 3)}, "its weights have 6 axes, not 3 to 5"),
    ],
)
def test_modules_that_hold_more_than_a_conv3d(shapes: dict[str, tuple[int, ...]], why: str) -> None:
    held = read_state_dict(StateDict(shapes, lambda key: np.ones(shapes[key], np.float32)))
    assert not any(isinstance(each, SavedLayer) for each in held)
    reasons = [each.reason for each in held if isinstance(each, OtherLayer) and each.is_convolution]
    assert any(why in reason for reason in reasons), reasons


def test_a_name_of_a_transposed_convolution_is_believed_unless_the_bias_tells() -> None:
    (doubted,) = state(up_weight=(4, 4, 2, 2, 2), up_bias=(4,))
    assert isinstance(doubted, OtherLayer)
    # 4 of 8: no ConvTranspose3d has such a bias
    (certain,) = state(up_weight=(4, 8, 2, 2, 2), up_bias=(4,))
    assert isinstance(certain, SavedLayer)
    assert not certain.notes
    (depthwise,) = state(up_weight=(8, 1, 2, 2, 2), up_bias=(8,))  # with groups=8 it may be one
    assert isinstance(depthwise, OtherLayer)


def test_the_name_of_its_tensor_says_that_it_is_a_conv3d() -> None:
    contents = state(up_weight=(4, 4, 2, 2, 2))
    with pytest.raises(
        FormatError, match=r"as those of a Conv3D, name its tensor: net\.pt::up\.weight$"
    ):
        choose_layer(contents, "net.pt", "up")
    layer = choose_layer(contents, "net.pt", "up.weight")
    assert layer.kernel.shape == (2, 2, 2, 4, 4)
    assert "does not tell a Conv3d from a ConvTranspose3d" in layer.notes[0]
    with pytest.raises(SpecError, match=r"choose one, as in net\.pt::up\.weight$"):
        choose_layer(contents, "net.pt", None)


@pytest.mark.parametrize("shape", [(4, 4, 3, 3, 3), (4, 2, 3, 3, 3)])
def test_where_the_tensors_do_not_tell_a_note_says_how_they_are_read(
    shape: tuple[int, ...],
) -> None:
    (layer,) = state(mid_weight=shape)
    assert isinstance(layer, SavedLayer)
    assert "(filters, in_channels/groups, depth, height, width)" in layer.notes[0]
    (layer,) = state(mid_weight=(4, 2, 3, 3, 3), mid_bias=(4,))
    assert isinstance(layer, SavedLayer)
    assert not layer.notes


def test_only_the_layer_that_is_asked_for_is_read() -> None:
    """A checkpoint of gigabytes costs no more than its layer."""
    shapes = {
        "a.weight": (2, 1, 3, 3, 3), "b.weight_g": (2, 1, 1, 1), "b.weight_v": (2, 1, 3, 3),
        "c.weight": (2, 1, 3, 3, 3), "c.bias": (2,), "d.weight": (2, 1, 3, 3, 3), "d.bias": (2,),
    }  # fmt: skip
    tied = {"d.weight": "c.weight", "d.bias": "c.bias"}

    def read_by(only: str | None) -> tuple[list[str], list[SavedLayer | OtherLayer]]:
        asked: list[str] = []

        def read(key: str) -> np.ndarray:
            asked.append(key)
            return np.ones(shapes[key], np.float32)

        state = StateDict(shapes, read, identity=lambda key: tied.get(key, key))
        return asked, read_state_dict(state, "net.pt", only)

    for only, keys in (
        ("a", ["a.weight"]),
        ("b", ["b.weight_g", "b.weight_v"]),
        ("c.weight", ["c.weight", "c.bias"]),
        ("d", ["c.weight", "c.bias"]),
        ("", []),
    ):
        asked, contents = read_by(only)
        assert asked == keys
        assert list(map(str, contents)) == list(map(str, read_by(None)[1]))
    layer = choose_layer(read_by("d")[1], "net.pt", "d")
    assert layer.name == "c"
    assert layer.kernel.sum() == 54


def test_weight_norm_by_hand() -> None:
    rng = np.random.default_rng(0)
    v = rng.standard_normal((3, 2, 2, 2, 2)).astype(np.float32)
    g = rng.standard_normal((3, 1, 1, 1, 1)).astype(np.float32)
    tensors = {"c.weight_g": g, "c.weight_v": v, "c.bias": np.zeros(3, np.float32)}
    shapes = {key: value.shape for key, value in tensors.items()}
    (layer,) = read_state_dict(StateDict(shapes, tensors.__getitem__))
    assert isinstance(layer, SavedLayer)
    expected = np.stack([g[f].item() * v[f] / np.linalg.norm(v[f].ravel()) for f in range(3)])
    np.testing.assert_allclose(layer.kernel, expected.transpose(2, 3, 4, 1, 0), rtol=1e-6)
    assert "weight_norm" in layer.notes[0]


def test_tensors_of_a_dict_are_named_alike() -> None:
    """A bias belongs to the weights beside it, though another dict has such weights, too."""
    from conv3d_cli.kernels.weights.pickles import Storage, Tensor
    from conv3d_cli.kernels.weights.pytorch import state_dict_of

    tensor = Tensor(Storage("0", "float32", 1), 0, (1,), (1,))

    def keys(content: Any) -> list[str]:
        return list(state_dict_of(content, lambda *_: bytes(4), "<", "net.pt").shapes)

    assert keys(
        {"a": {"c.weight": tensor, "c.bias": tensor}, "b": {"c.weight": tensor}, "d": {"e": tensor}}
    ) == ["a.c.weight", "a.c.bias", "b.c.weight", "e"]
    assert keys([{"c.weight": tensor}, {"f.weight": tensor}]) == ["c.weight", "f.weight"]


# --------------------------------------------------------------------------------------------------
# Checkpoints and whole modules, pickled by hand


@dataclass
class Pickled:
    """An object of a class, named as in a pickle, with attributes."""

    name: str
    state: Any = None


def pickled(value: Any) -> bytes:
    """A value as pickle operations; arrays are tensors of the storage with the number of axes."""
    match value:
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"X" + struct.pack("<I", len(value)) + value.encode()
        case bytes():
            return value  # operations
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case list():
            return b"](" + b"".join(map(pickled, value)) + b"e"
        case dict():
            pairs = (pickled(part) for pair in value.items() for part in pair)
            return b"}(" + b"".join(pairs) + b"u"
        case Pickled():
            module, _, name = value.name.rpartition(".")
            return f"c{module}\n{name}\n".encode() + b")\x81" + pickled(value.state) + b"b"
        case np.ndarray():
            storage = pickled("storage") + b"ctorch\nFloatStorage\n"
            storage += pickled(f"{value.ndim}-{value.size}") + pickled("cpu") + pickled(value.size)
            strides = tuple(step // value.itemsize for step in value.strides)
            view = pickled(0) + pickled(value.shape) + pickled(strides)
            return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + view + b"\x89NtR"
    raise TypeError(value)


def saved(path: Path, content: Any) -> str:
    """A file of torch.save whose tensors are 0, 1, 2, ... in order."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + pickled(content) + b".")
        for rank in (1, 3, 4, 5):
            for size in range(1, 200):
                numbers = np.arange(size, dtype="<f4").tobytes()
                archive.writestr(f"net/data/{rank}-{size}", numbers)
    return str(path)


def conv3d(name: str = "torch.nn.modules.conv.Conv3d", **more: Any) -> Pickled:
    """A whole module with weights 2x1x1x2x3 and a bias."""
    weight, bias = np.zeros((2, 1, 1, 2, 3), np.float32), np.zeros(2, np.float32)
    state = {
        "_parameters": {"weight": weight, "bias": bias}, "_buffers": {}, "_modules": {},
        "stride": (1, 2, 1), "padding": (0, 1, 2), "dilation": (1, 1, 1), "groups": 1,
        "padding_mode": "zeros",
    }  # fmt: skip
    return Pickled(name, {**state, **more})


def module(name: str = "my.Net", **inner: Pickled) -> Pickled:
    return Pickled(name, {"_parameters": {}, "_buffers": {}, "_modules": inner})


def reasons(path: str) -> dict[str, str]:
    return {each.name: each.reason for each in read_contents(path) if isinstance(each, OtherLayer)}


def test_a_whole_module_tells_its_arguments(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"epoch": 3, "model": module(enc=module(conv=conv3d()))})
    layer = saved_layer(path)
    attributes = attributes_of(layer)
    assert (layer.name, layer.notes) == ("enc.conv", ())
    assert attributes.strides == (1, 2, 1)
    assert attributes.padding == ((0, 0), (1, 1), (2, 2))
    np.testing.assert_array_equal(
        layer.kernel, np.arange(12).reshape(2, 1, 1, 2, 3).transpose(2, 3, 4, 1, 0)
    )


def test_what_a_whole_module_does_beside_its_layer(tmp_path: Path) -> None:
    """Classes and hooks whose code is elsewhere, loose tensors, layers without weights."""
    hooked = conv3d(_forward_hooks={0: Pickled("my.Hook")})
    loose = Pickled("my.Net", {**module().state, "w": np.zeros((2, 1, 1, 2, 3), np.float32)})
    net = module(
        conv=conv3d(), mine=conv3d("my.Conv3d"), hooked=hooked, loose=loose,
        act=module("torch.nn.modules.activation.ReLU"),
        drop=module("torch.nn.modules.dropout.Dropout3d"),
        up=conv3d("torch.nn.modules.conv.ConvTranspose3d"),
        reflected=conv3d(padding_mode="reflect"),
        bilinear=conv3d("torch.nn.modules.linear.Bilinear"),
    )  # fmt: skip
    path = saved(tmp_path / "net.pt", net)
    assert reasons(path) == {
        "mine": "it is of class my.Conv3d, whose code is not in the file",
        "hooked": "it calls my.Hook, whose code is not in the file",
        "loose.w": "it is a tensor of 5 axes, but no NAME.weight",
        "act": "it is of class ReLU",
        "up": "it is of class ConvTranspose3d",
        "reflected": "it pads by padding_mode='reflect', and layers are padded by zeros",
        "bilinear": "it is of class Bilinear",
    }
    with pytest.raises(FormatError, match=r"name its tensor: .*net\.pt::mine\.weight$"):
        saved_layer(f"{path}::mine")
    assert saved_layer(f"{path}::mine.weight").kernel.shape == (1, 2, 3, 1, 2)


def test_what_stands_in_place_of_a_module_is_searched(tmp_path: Path) -> None:
    """A function that makes the module, as of torch.fx, or an object around it."""
    net = module(a=conv3d(), made=Pickled("my.Holder", {"body": conv3d()}))
    layers = read_layers(saved(tmp_path / "net.pt", net))
    assert sorted(layer.name for layer in layers) == ["a", "weight"]


def test_modules_in_plain_lists_are_found(tmp_path: Path) -> None:
    """PyTorch's own state dict lacks them, but they are in the file."""
    net = module(a=conv3d())
    net.state["extra"] = [conv3d(), Pickled("my.Holder", {"conv": conv3d("my.Conv3d")})]
    path = saved(tmp_path / "net.pt", net)
    assert [layer.name for layer in read_layers(path)] == ["a", "extra.0"]
    assert list(reasons(path)) == ["extra.1.conv"]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"stride": (1, 2)}, r"layer weight has stride=\(1, 2\)"),
        ({"padding": "x" * 500}, "has padding='xxx"),
        ({"groups": "2"}, "has groups='2'"),
        ({"dilation": -1}, "has dilation=-1"),
        ({"groups": 5}, "groups must divide"),
    ],
)
def test_attributes_that_lie(attributes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", conv3d(**attributes))
    with pytest.raises(FormatError, match=rf"cannot read {path}: .*{words}"):
        read_layers(path)


@pytest.mark.parametrize("name", ["padding_mode", "stride", "groups", "padding"])
def test_nested_tuples_are_never_spelt_out(name: str, tmp_path: Path) -> None:
    """A pickle of 400 bytes may hold a tuple of 2^60 parts; to print or compare it takes for ever."""
    nested = b")q\x00" + b"".join(
        b"0h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60)
    )  # fmt: skip
    path = tmp_path / "net.pt"
    saved(path, conv3d(**{name: "HERE"}))
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    text = pickled("HERE")
    assert text in members["net/data.pkl"]
    members["net/data.pkl"] = members["net/data.pkl"].replace(text, nested)
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    with pytest.raises(Conv3DError, match=f"{name}=a tuple"):
        saved_layer(str(path))


def test_what_no_layer_is_in_a_checkpoint(tmp_path: Path) -> None:
    """Moments of an optimizer and counters are not taken for layers, whatever their names."""
    weight, bias = np.zeros((2, 1, 1, 2, 3), np.float32), np.zeros(2, np.float32)
    content = {
        "optimizer": {"state": {"c.weight": {"exp_avg": weight}}, "param_groups": []},
        "loops": [{"best": np.zeros((), np.float32)}],
        "hyper_parameters": Pickled("argparse.Namespace", {"lr": 1}),
        "state_dict": {"c.weight": weight, "c.bias": bias},
        "ema": {"c.weight": weight, "c.bias": bias},  # the same storages
    }
    path = saved(tmp_path / "net.ckpt", content)
    assert saved_layer(path).name == "state_dict.c"
    assert saved_layer(f"{path}::ema.c").name == "state_dict.c"
    content["ema"] = {"c.weight": np.zeros((2, 1, 1, 2, 4), np.float32), "c.bias": bias}
    with pytest.raises(SpecError, match=r"holds 2 layers: state_dict\.c .*, ema\.c "):
        saved_layer(saved(tmp_path / "net.ckpt", content))


def test_objects_in_place_of_weights_are_told(tmp_path: Path) -> None:
    tensor = Pickled("torchao.dtypes.QuantizedTensor", {"data": 1})
    path = saved(tmp_path / "net.pt", {"c.weight": tensor, "c.bias": np.zeros(2, np.float32)})
    with pytest.raises(
        FormatError, match=r"c \(its weights are stored as torchao\.dtypes\.QuantizedTensor, which"
    ):
        read_layers(path)


def test_views_of_negated_numbers_are_negated(tmp_path: Path) -> None:
    """PyTorch tells so in the last argument of the tensor."""
    plain = pickled(np.zeros((2, 1, 1, 2, 3), np.float32))
    negated = plain.removesuffix(b"NtR") + b"N" + pickled({"neg": True}) + b"tR"
    for content, sign in ((plain, 1), (negated, -1)):
        kernel = saved_layer(saved(tmp_path / "net.pt", {"c.weight": content})).kernel
        np.testing.assert_array_equal(kernel[0, 1, 2], sign * np.array([[5, 11]]))


def test_a_tensor_that_repeats_its_numbers_tells_the_cure(tmp_path: Path) -> None:
    repeats = np.broadcast_to(np.zeros((2, 1, 1, 1, 3), np.float32), (2, 1, 1, 2, 3))
    content = pickled(repeats).replace(pickled(12), pickled(6))
    with pytest.raises(FormatError, match=r"repeats some of its 6 numbers; .*contiguous\(\)"):
        saved_layer(saved(tmp_path / "net.pt", {"c.weight": content}))


def traced(path: Path, *lines: str) -> str:
    """TorchScript of a Conv3d whose forward method has these lines."""
    state = {"weight": np.zeros((2, 1, 1, 2, 3), np.float32), "bias": None, "training": False}
    source = "class Conv3d(Module):\n  weight : Tensor\n  def forward(self, input):\n"
    with zipfile.ZipFile(
        saved(path, Pickled("__torch__.torch.nn.modules.conv.Conv3d", state)), "a"
    ) as archive:
        text = source + "".join(f"    {line}\n" for line in lines)
        archive.writestr("net/code/__torch__/torch/nn/modules/conv.py", text)
    return str(path)


def test_a_traced_convolution_has_its_arguments_in_its_call(tmp_path: Path) -> None:
    call = "_0 = torch._convolution(input, weight, None, [2, 1, 3], [0, 1, 0], [1, 1, 1], False, [0, 0, 0], 1, False)"
    config = saved_layer(traced(tmp_path / "a.pt", call, "return _0")).config
    assert config is not None
    assert config["strides"] == [2, 1, 3]
    assert config["padding"] == [[0, 0], [1, 1], [0, 0]]
    call = '_0 = torch._convolution_mode(input, weight, None, [1, 1, 1], "same", [1, 2, 1], 1)'
    config = saved_layer(traced(tmp_path / "b.pt", call, "return _0")).config
    assert config is not None
    assert (config["padding"], config["dilation_rate"]) == ("same", [1, 2, 1])


def test_a_traced_convolution_of_a_volume_without_a_batch_or_used_twice(tmp_path: Path) -> None:
    call = (
        "torch._convolution(_1, weight, None, [2, 1, 3], [0, 1, 0], [1, 1, 1], False, [0, 0, 0], 1)"
    )
    batch = ["_1 = torch.unsqueeze(input, 0)", f"_2 = {call}", "return torch.squeeze(_2, 0)"]
    other = f"_3 = {call.replace('[2, 1, 3]', '[1, 1, 1]')}"
    for lines, strides in ((batch, [2, 1, 3]), ([f"_2 = {call}", f"_3 = {call}"], [2, 1, 3])):
        config = saved_layer(traced(tmp_path / "a.pt", *lines)).config
        assert config is not None
        assert config["strides"] == strides
    assert saved_layer(traced(tmp_path / "b.pt", f"_2 = {call}", other)).config is None


def test_a_traced_convolution_that_does_more_is_refused(tmp_path: Path) -> None:
    padded = '_0 = torch.pad(input, [1, 1, 1, 1, 1, 1], "circular")'
    call = "_1 = torch._convolution(_0, weight, None, [1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1)"
    path = traced(tmp_path / "a.pt", padded, call, "return _1")
    with pytest.raises(SpecError, match=r"holds 1 layer that cannot be read: .*torch\.pad"):
        saved_layer(path)


def test_a_model_of_a_class_of_its_own_tells_its_other_layers(tmp_path: Path) -> None:
    """Its config lists no layers, but its weights have a group for each."""
    h5py = pytest.importorskip("h5py")
    shapes = {"c": [(1, 1, 1, 2, 3), (3,)], "b": [(3,)] * 4}
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for group, arrays in shapes.items():
            for number, shape in enumerate(arrays):
                file[f"{group}/vars/{number}"] = np.ones(shape, np.float32)
    config = {"module": "net", "class_name": "Net", "config": {}, "registered_name": "my>Net"}
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.write(tmp_path / "w.h5", "model.weights.h5")
    path = str(tmp_path / "net.keras")
    with pytest.raises(
        SpecError, match=r"1 layer: c \(.*\), and 1 that is no Conv3D: b; choose one"
    ):
        saved_layer(path)
    assert saved_layer(f"{path}::c").kernel.shape == (1, 1, 1, 2, 3)


def test_a_tensor_alone_is_a_layer(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", np.zeros((2, 1, 1, 2, 3), np.float32))
    assert saved_layer(path).name == "weight"


def test_files_before_pytorch_1_6_may_hold_modules(tmp_path: Path) -> None:
    """A class is a persistent id there, beside the text of its source."""
    weight = np.zeros((2, 1, 1, 2, 3), np.float32)
    cls = b"(" + pickled("module") + b"ctorch.nn.modules.conv\nConvTranspose3d\n"
    cls += pickled("conv.py") + pickled("class ConvTranspose3d: ...") + b"tQ"
    state = pickled({"_parameters": {"weight": weight}, "_modules": {}, "stride": (1, 1, 1)})
    transposed = cls + b")\x81" + state + b"b"
    parts = [
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
        pickle.dumps(1001, protocol=2),
        pickle.dumps({"little_endian": True}, protocol=2),
        b"\x80\x02](" + transposed + pickled({"c.weight": weight}) + b"e.",
        pickle.dumps(["5-12"], protocol=2),
    ]
    path = tmp_path / "net.pth"
    numbers = struct.pack("<q", 12) + np.arange(12, dtype="<f4").tobytes()
    path.write_bytes(b"".join(parts) + numbers)
    assert reasons(str(path)) == {"weight": "it is of class ConvTranspose3d"}
    assert saved_layer(f"{path}::c").kernel[0, 1, 2, 0, 1] == 11
    path.write_bytes(b"".join(parts) + numbers[:-1])
    with pytest.raises(FormatError, match="truncated: storage 5-12 needs 48 bytes"):
        read_layers(path)
    parts[4] = pickle.dumps(["5-13"], protocol=2)
    path.write_bytes(b"".join(parts) + numbers)
    with pytest.raises(FormatError, match="its storages are not those named"):
        read_layers(path)


def test_constants_of_a_program_are_told(tmp_path: Path) -> None:
    """torch.jit.freeze makes weights constants, which have no names."""
    path = tmp_path / "frozen.pt"
    program = Pickled("__torch__.Net", {"training": False})
    with zipfile.ZipFile(saved(path, program), "a") as archive:
        held = pickled((np.zeros((2, 1, 1, 2, 3), np.float32),))
        archive.writestr("net/constants.pkl", b"\x80\x02" + held + b".")
    with pytest.raises(FormatError, match=r"constants\.0 \(it is a tensor of 5 axes"):
        read_layers(path)


# --------------------------------------------------------------------------------------------------
# Suffixes are hints


@pytest.mark.parametrize(
    ("file", "name", "library"),
    [
        ("two.keras", "model.zip", "h5py"),
        ("two.keras", "model.h5", "h5py"),
        ("keras2.h5", "model.keras", "h5py"),
        ("net.safetensors", "net.pt", "json"),
        ("net.safetensors", "net", "json"),
        ("state.pt", "state.bin", "json"),
        ("state.pt", "state.model", "json"),
        ("state.pt", "state.safetensors", "json"),
        ("before_1_6.pt", "weights.pth.tar", "json"),
        ("program.pt2", "program.pt", "json"),
        ("tfjs.json", "model.json", "json"),
        ("sharded.bin.index.json", "model.json", "json"),
    ],
)
def test_the_content_tells_the_kind(
    file: str, name: str, library: str, tmp_path: Path, run: Any
) -> None:
    pytest.importorskip(library)
    for other in ("tfjs1.bin", "tfjs2.bin", "sharded.bin", "sharded2.bin"):
        shutil.copy(DATA / other, tmp_path / other)
    path = shutil.copy(DATA / file, tmp_path / name)
    layers = read_layers(DATA / file)
    assert [layer.name for layer in read_layers(path)] == [layer.name for layer in layers]
    shown = run("kernel", "show", f"{path}::{layers[0].name}")
    assert "x".join(map(str, layers[0].kernel.shape)) in shown.stdout.replace(" ", "")


def test_the_suffix_tells_what_is_written(tmp_path: Path) -> None:
    """Whatever a file of that name held before."""
    path = tmp_path / "out.safetensors"
    shutil.copy(DATA / "state.pt", path)
    convert_layers(str(DATA / "net.safetensors"), path, overwrite=True)
    assert find_weights_file(path) is find_weights_file("a.safetensors")
    target = tmp_path / "out.npz"
    shutil.copy(DATA / "state.pt", target)
    convert_layers(f"{DATA / 'net.safetensors'}::mid", target, overwrite=True)
    assert np.load(target)["kernel"].ndim == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs of POSIX")
def test_a_pipe_is_never_opened_to_look_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would wait for its writer."""

    def refuse(*_: object) -> None:
        raise AssertionError

    os.mkfifo(tmp_path / "k.json")
    monkeypatch.setattr("builtins.open", refuse)
    for name in (str(tmp_path / "k.json"), str(tmp_path), "a\0.json"):
        assert not is_manifest(name)


def test_an_index_of_keras_names_the_files(tmp_path: Path) -> None:
    path = tmp_path / "model.weights.json"
    table = {"/layers/conv3d/vars": ["model_00000.weights.h5"]}
    path.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    with pytest.raises(FormatError, match=r"pass the one with the layer, as in model_00000"):
        read_layers(path)


# --------------------------------------------------------------------------------------------------
# Layers of fewer axes in space


@pytest.mark.parametrize(
    ("file", "name", "library", "rank"),
    [
        ("flat.keras", "plane", "h5py", 2),
        ("flat.h5", "row", "h5py", 1),
        ("each.keras", "each", "h5py", 2),
        ("flat_whole.pt", "plane", "json", 2),
        ("flat_whole.pt", "row", "json", 1),
        ("plane.onnx", "plane", "onnx", 2),
        ("row.onnx", "row", "onnx", 1),
    ],
)
def test_a_note_says_that_a_layer_acts_on_planes(
    file: str, name: str, library: str, rank: int
) -> None:
    pytest.importorskip(library)
    layer = saved_layer(f"{DATA / file}::{name}")
    assert layer.kernel.shape[: 3 - rank] == (1,) * (3 - rank)
    part = "plane" if rank == 2 else "row"
    assert f"it is {rank}-D: it acts on each {part} of a volume by itself" in layer.notes


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kernel_size": [3]}, "kernel_size of a 2-D layer has 2 numbers"),
        ({"strides": [1, 2, 3]}, "strides of a 2-D layer has 2 numbers"),
    ],
)
def test_a_flat_config_that_lies(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with zipfile.ZipFile(DATA / "each.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    model = json.loads(members["config.json"])
    (layer,) = (each for each in model["config"]["layers"] if "layer" in each["config"])
    layer["config"]["layer"]["config"] |= config
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"config.json": json.dumps(model).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(FormatError, match=words):
        read_layers(path)


def test_an_activation_of_ones_own_is_told(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with zipfile.ZipFile(DATA / "padded.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    model = json.loads(members["config.json"])
    function = {"module": "builtins", "class_name": "function", "config": "My>act"}
    model["config"]["layers"][-1]["config"]["activation"] = function
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"config.json": json.dumps(model).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(
        FormatError,
        match=r"its activation is My>act, whose code is not in the file; .*::conv\.kernel$",
    ):
        saved_layer(f"{path}::conv")
    assert "its activation My>act is left out" in saved_layer(f"{path}::conv.kernel").notes


# --------------------------------------------------------------------------------------------------
# Keras


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_padding_layers_belong_to_the_conv3d_after_them(suffix: str) -> None:
    pytest.importorskip("h5py")
    layer = saved_layer(str(DATA / f"padded{suffix}"))
    attributes = attributes_of(layer)
    assert attributes.padding == ((1, 0), (2, 1), (0, 3))
    assert attributes.strides == (2, 2, 2)
    assert layer.notes == ("its padding includes that of the layers before it in the model: pad",)


def test_lora_by_hand() -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(DATA / "lora.h5") as file:
        group = file["model_weights/conv"]
        arrays: dict[str, Any] = {}
        group.visititems(
            lambda name, item: (
                arrays.update({name.rpartition("/")[2]: item[()]})
                if hasattr(item, "shape")
                else None
            )
        )
        config = json.loads(file.attrs["model_config"])["config"]["layers"][-1]["config"]
    scale = config["lora_alpha"] / config["lora_rank"]
    assert scale == 1.5
    expected = arrays["kernel"] + scale * np.einsum(
        "dhwcr,rf->dhwcf", arrays["lora_kernel_a"], arrays["lora_kernel_b"]
    )
    layer = saved_layer(str(DATA / "lora.h5"))
    np.testing.assert_allclose(layer.kernel, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(layer.kernel - arrays["kernel"]).max() > 0.1


def test_lora_without_its_alpha_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "weights.h5"
    with h5py.File(DATA / "lora.h5") as file, h5py.File(path, "w") as copy:
        file.copy("model_weights", copy)
        copy["model_weights"].attrs["keras_version"] = "3.15.1"
    with pytest.raises(
        FormatError, match=r"conv \(its LoRA weights need the lora_alpha of a model config"
    ):
        read_layers(path)


def test_a_class_called_conv3d_is_not_keras_own(tmp_path: Path) -> None:
    """Whoever registers a class may call it Conv3D."""
    pytest.importorskip("h5py")
    from zipfile import ZipFile

    with ZipFile(DATA / "padded.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    conv = config["config"]["layers"][-1]
    assert conv["class_name"] == "Conv3D"
    conv.update(module="unet", registered_name="My>Conv3D")
    path = tmp_path / "mine.keras"
    with ZipFile(path, "w") as archive:
        for name, content in (members | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, content)
    with pytest.raises(
        FormatError, match=r"conv \(it is of class My>Conv3D, whose code is not in the file\)"
    ):
        read_layers(path)


def padded_model(
    pad: dict[str, Any], conv: dict[str, Any], class_name: str = "ZeroPadding3D"
) -> dict[str, Any]:
    layers = [
        {"class_name": class_name, "config": {"name": "pad", **pad}},
        {
            "class_name": "Conv3D",
            "config": {"name": "conv", "filters": 1, "kernel_size": [2, 2, 2], **conv},
        },
    ]
    return {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            padded_model({"padding": 1}, {"padding": "same", "strides": 2}),
            "'same' with strides > 1 depends on the volume",
        ),
        (
            padded_model(
                {"padding": 1, "data_format": "channels_first"}, {"data_format": "channels_last"}
            ),
            "other axes",
        ),
        (padded_model({"padding": [1, 2]}, {}), r"takes N, \[N, N, N\] or three"),
    ],
)
def test_padding_that_cannot_be_joined_is_refused_by_name(model: dict[str, Any], why: str) -> None:
    from conv3d_cli.kernels.weights.keras import merge_config

    saved: dict[str, SavedLayer | OtherLayer] = {
        "conv3d": SavedLayer("conv", None, np.ones((2, 2, 2, 1, 1)))
    }
    (held,) = merge_config(saved, model, "3.0", "f.keras")
    assert isinstance(held, OtherLayer)
    with pytest.raises(FormatError, match=rf"layer 'conv' of f\.keras as a Conv3D: .*pad.*{why}"):
        choose_layer([held], "f.keras", "conv")


def test_padding_of_a_functional_model_is_found_by_its_connections() -> None:
    """Two branches, listed one after another: each Conv3D has the padding that feeds it, and no
    other.
    """
    from conv3d_cli.kernels.weights.keras import walk_config

    def layer(name: str, class_name: str, source: str | None, **config: Any) -> dict[str, Any]:
        nodes = [] if source is None else [[[source, 0, 0, {}]]]
        return {
            "class_name": class_name,
            "name": name,
            "config": {"name": name, **config},
            "inbound_nodes": nodes,
        }

    layers = [
        layer("in", "InputLayer", None),
        layer("pad_a", "ZeroPadding3D", "in", padding=1),
        layer("pad_b", "ZeroPadding3D", "in", padding=2),
        layer("plain", "Conv3D", "in"),
        layer("b", "Conv3D", "drop"),
        layer("a", "Conv3D", "pad_a"),
        layer("drop", "Dropout", "pad_b"),
    ]
    model = {
        "class_name": "Functional",
        "config": {"name": "f", "layers": layers, "output_layers": [["a", 0, 0]]},
    }
    before = {
        entry.name: [pad["config"]["name"] for pad in entry.padding] for entry in walk_config(model)
    }
    assert (before["a"], before["b"], before["plain"]) == (["pad_a"], ["pad_b"], [])


# --------------------------------------------------------------------------------------------------
# ONNX


def onnx_graph(path: Path, nodes: list[Any], tensors: dict[str, np.ndarray], **more: Any) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    inits = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], inits)
    path.write_bytes(helper.make_model(graph, **more).SerializeToString())
    return path


W = np.arange(8, dtype=np.int8).reshape(1, 1, 2, 2, 2)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([("DequantizeLinear", ["q", "s2"], ["w"], {})], "do not fit the 2 scales"),
        ([("DequantizeLinear", ["q", "s"], ["w"], {"block_size": 2})], "in blocks"),
        ([("Cast", ["q"], ["w"], {"to": 9})], "computed by the graph, by Cast"),
        ([("Identity", ["x"], ["w"], {})], "are an input of the graph"),
        ([("Identity", ["w"], ["w"], {})], "are behind more than"),
        ([("Identity", ["nothing"], ["w"], {})], "are nowhere in the graph"),
        ([("Mul", ["q", "q"], ["w"], {})], "computed by the graph, by Mul"),
        ([("Identity", ["q"], ["w"], {})], "are int8, not floats"),
    ],
)
def test_weights_that_are_not_known(nodes: list[Any], why: str, tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx").helper
    made = [
        helper.make_node(op, inputs, outputs, **attributes)
        for op, inputs, outputs, attributes in nodes
    ]
    made.append(helper.make_node("Conv", ["x", "w"], ["y"], name="conv"))
    tensors = {"q": W, "s": np.float32(0.5), "s2": np.float32([1, 2])}
    with pytest.raises(FormatError, match=rf"conv \(its weights {why}|conv \(its weights .*{why}"):
        read_layers(onnx_graph(tmp_path / "net.onnx", made, tensors))


def test_a_pad_node_that_adds_no_zeros_refuses_its_layer(tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx").helper
    tensors = {
        "w": np.ones((1, 1, 2, 2, 2), np.float32),
        "p": np.int64([0, 0, 1, 1, 1, 0, 0, 1, 1, 1]),
    }
    tensors |= {
        "one": np.float32(1),
        "channels": np.int64([0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        "less": np.int64([0] * 9 + [-1]),
    }
    for inputs, attributes, why in (
        (["x", "p"], {"mode": "reflect"}, "its mode is reflect"),
        (["x", "p", "one"], {}, "it adds 1, not zeros"),
        (["x", "channels"], {}, "other axes"),
        (["x", "less"], {}, "it crops voxels"),
        (["x", "x"], {}, "its pads are an input of the graph"),
    ):
        nodes = [helper.make_node("Pad", inputs, ["z"], name="pad", **attributes)]
        nodes.append(helper.make_node("Conv", ["z", "w"], ["y"], name="conv"))
        path = onnx_graph(tmp_path / "net.onnx", nodes, tensors)
        for name in ("", "::conv"):
            with pytest.raises(
                FormatError,
                match=rf"conv.*the Pad node pad before it is not zero padding: .*{why}",
            ):
                saved_layer(f"{path}{name}")
    # a Pad that is understood does not hide one before it
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["z"], name="far", mode="reflect"),
        helper.make_node("Pad", ["z", "p"], ["n"], name="near"),
        helper.make_node("Conv", ["n", "w"], ["y"], name="conv"),
    ]
    with pytest.raises(
        FormatError, match="the Pad node far before it is not zero padding: its mode is reflect"
    ):
        saved_layer(f"{onnx_graph(tmp_path / 'two.onnx', nodes, tensors)}::conv")


def test_convolutions_in_branches_and_functions_are_told(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    weights = {"w": np.ones((1, 1, 2, 2, 2), np.float32), "c": np.array(True)}
    value = helper.make_tensor_value_info("t", 1, None)
    inner = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["t"], name="inner")], "then", [], [value]
    )
    nodes = [
        helper.make_node("If", ["c"], ["z"], name="branch", then_branch=inner, else_branch=inner),
        helper.make_node("Conv", ["z", "w"], ["y"], name="outer"),
    ]
    with pytest.raises(
        SpecError, match=r"inner \(it is inside the node If 'branch', which is not searched\)"
    ):
        saved_layer(str(onnx_graph(tmp_path / "net.onnx", nodes, weights)))
