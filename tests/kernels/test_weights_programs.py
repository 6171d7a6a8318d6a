"""Files of JSON with weights beside it that lie: programs of torch.export, TensorFlow.js models."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import Conv3DError, FormatError, ShapeError
from conv3d_cli.kernels.weights import (
    OtherLayer,
    model_config,
    read_contents,
    read_layers,
    saved_layer,
)
from conv3d_cli.kernels.weights.layer import attributes_of

DATA = Path(__file__).parent.parent / "data" / "weights"
Change = Callable[[Any], object]


# --------------------------------------------------------------------------------------------------
# Programs


def program(folder: Path, change: Change, member: str = "models/model.json") -> str:
    """The program of the data with one member of JSON changed."""
    path = folder / "net.pt2"
    with zipfile.ZipFile(DATA / "program.pt2") as archive, zipfile.ZipFile(path, "w") as out:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(member):
                table = json.loads(content)
                change(table)
                content = json.dumps(table).encode()
            out.writestr(name, content)
    return str(path)


def nodes(table: Any) -> list[Any]:
    found: list[Any] = table["graph_module"]["graph"]["nodes"]
    return found


def argument(node: Any, name: str, value: Any) -> None:
    """Set an argument of a node, or add it."""
    for entry in node["inputs"]:
        if entry["name"] == name:
            entry["arg"] = value
            return
    node["inputs"].append({"name": name, "arg": value, "kind": 1})


def test_a_program_tells_the_arguments() -> None:
    first, second, padded = read_layers(DATA / "program.pt2")
    assert attributes_of(first).strides == (1, 2, 1)
    assert attributes_of(first).padding == ((0, 0), (1, 1), (2, 2))
    assert attributes_of(second).dilation_rate == (1, 2, 1)
    assert (attributes_of(second).groups, attributes_of(second).padding) == (2, "same")
    assert attributes_of(padded).padding == ((0, 0), (2, 1), (1, 0))
    others = [each for each in read_contents(DATA / "program.pt2") if isinstance(each, OtherLayer)]
    assert [(each.name, each.is_convolution) for each in others] == [
        ("batch_norm", False),
        ("leaky_relu", False),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda node: node.update(target="torch.ops.aten.conv_transpose3d.input"),
            "it is an operation aten.conv_transpose3d.input",
        ),
        (
            lambda node: (
                node.update(target="torch.ops.aten.convolution.default"),
                argument(node, "transposed", {"as_bool": True}),
            ),
            "it is a transposed convolution",
        ),
        (
            lambda node: argument(node, "weight", {"as_tensor": {"name": "leaky_relu"}}),
            "its weights are computed by the operation leaky_relu",
        ),
        (
            lambda node: node["inputs"].append({"name": "f", "arg": {"as_graph": {}}, "kind": 1}),
            "it holds graphs of its own, which are not searched",
        ),
    ],
)
def test_operations_that_are_not_read(change: Change, words: str, tmp_path: Path) -> None:
    path = program(tmp_path, lambda table: change(nodes(table)[0]))
    first = read_contents(path)[0]
    assert isinstance(first, OtherLayer)
    assert first.is_convolution
    assert first.reason == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"as_string": "circular"}, "pads by mode circular and"),
        ({"as_string": "constant"}, ""),
    ],
)
def test_padding_by_other_values_is_refused(
    value: dict[str, str], words: str, tmp_path: Path
) -> None:
    def change(table: Any) -> None:
        pad = next(node for node in nodes(table) if node["target"].endswith("aten.pad.default"))
        argument(pad, "mode", value)

    path = program(tmp_path, change)
    last = next(each for each in read_contents(path) if each.name == "2")
    assert isinstance(last, OtherLayer) == bool(words)
    if isinstance(last, OtherLayer):
        assert words in last.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.pop("graph_module"), "damaged: its program lacks 'graph_module'"),
        (lambda table: nodes(table)[0].pop("inputs"), "damaged: its program lacks 'inputs'"),
        (
            lambda table: argument(nodes(table)[0], "stride", {"as_ints": [1, 2]}),
            r"0.conv has stride=\[1, 2\]",
        ),
        (
            lambda table: argument(nodes(table)[0], "stride", {"as_ints": [1, 2, 2**40]}),
            "0.conv has stride=",
        ),
        (
            lambda table: argument(nodes(table)[0], "groups", {"as_int": 3}),
            "groups must divide the 4 filters",
        ),
        (
            lambda table: nodes(table)[0].update(target="torch.ops.aten.conv2d.default"),
            "of weights with 5 axes",
        ),
    ],
)
def test_programs_that_lie(change: Change, words: str, tmp_path: Path) -> None:
    path = program(tmp_path, change)
    with pytest.raises(FormatError, match=words) as refused:
        read_layers(path)
    assert path in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words", "kind"),
    [
        ({"sizes": [{"as_int": 9}] * 5}, "truncated", FormatError),
        ({"sizes": [{"as_int": 10**6}] * 5}, "at most", ShapeError),
        ({"sizes": [{"as_int": -1}] * 5}, "has the shape", FormatError),
        ({"sizes": [{"as_expr": "s0"}] * 5}, "damaged", FormatError),
        ({"dtype": 5}, "stored as torch's type 5", None),
        ({"strides": [{"as_int": n} for n in (1, 2, 3, 4, 5)]}, "stored as a view", None),
    ],
)
def test_weights_of_programs_that_lie(
    change: dict[str, Any], words: str, kind: type[Conv3DError] | None, tmp_path: Path
) -> None:
    def lie(table: Any) -> None:
        table["config"]["0.conv.weight"]["tensor_meta"] |= change
        if change.get("sizes") == [{"as_int": 9}] * 5:
            steps = [{"as_int": 9**power} for power in (4, 3, 2, 1, 0)]
            table["config"]["0.conv.weight"]["tensor_meta"]["strides"] = steps

    path = program(tmp_path, lie, "weights_config.json")
    if kind is None:
        first = read_contents(path)[0]
        assert isinstance(first, OtherLayer)
        assert words in first.reason
    else:
        with pytest.raises(kind, match=words):
            read_layers(path)


def test_programs_of_older_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(FormatError, match=r"it holds no models/NAME.json; .*PyTorch 2.8 or later"):
        read_layers(path)


# --------------------------------------------------------------------------------------------------
# TensorFlow.js


def model(folder: Path, change: Change = lambda table: None) -> str:
    """The TensorFlow.js model of the data, with its JSON changed."""
    for shard in ("tfjs1.bin", "tfjs2.bin"):
        shutil.copy(DATA / shard, folder / shard)
    table = json.loads((DATA / "tfjs.json").read_text())
    change(table)
    path = folder / "model.json"
    path.write_text(json.dumps(table))
    return str(path)


def test_a_tensorflow_js_model(tmp_path: Path) -> None:
    path = model(tmp_path)
    layer = saved_layer(f"{path}::two")
    assert attributes_of(layer).strides == (1, 2, 1)
    assert layer.config is not None
    assert layer.config["activation"] == "relu"
    config = model_config(path)
    assert config is not None
    assert config["class_name"] == "Sequential"
    halves = np.linspace(-1, 1, 81, dtype=np.float16)
    raw = b"".join((tmp_path / f"tfjs{i}.bin").read_bytes() for i in (1, 2))
    first = 81 * 4  # bytes of the first kernel, which become halves

    def quantize(table: Any) -> None:
        table["weightsManifest"][0]["weights"][0]["quantization"] = {"dtype": "float16"}
        table["weightsManifest"][0]["paths"] = ["halves.bin"]

    path = model(tmp_path, quantize)
    (tmp_path / "halves.bin").write_bytes(halves.tobytes() + raw[first:])
    kernel = saved_layer(f"{path}::one").kernel
    np.testing.assert_array_equal(kernel.ravel(), halves.astype(np.float32))


def weights_of(table: Any) -> Any:
    return table["weightsManifest"][0]["weights"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.pop("weightsManifest"), "it has no weightsManifest"),
        (lambda table: table.update(weightsManifest=[3]), "has a group 3"),
        (lambda table: table.update(modelTopology={"node": []}), "it is a graph model"),
        (lambda table: table.update(modelTopology=[]), "its modelTopology is no JSON object"),
        (
            lambda table: table["weightsManifest"][0].update(paths=["../tfjs1.bin"]),
            "only from its own folder",
        ),
        (
            lambda table: table["weightsManifest"][0].update(paths=["gone.bin"]),
            "its weights are in gone.bin: it is not in its folder; copy it there",
        ),
        (lambda table: table["weightsManifest"][0]["paths"].pop(), "its tensors need"),
        (lambda table: weights_of(table).pop(), r"its tensors need [\d,]+ bytes, and its shards"),
        (lambda table: weights_of(table)[0].update(shape=[-1] * 5), "has the shape"),
        (lambda table: weights_of(table)[0].update(shape=3), "has the shape 3"),
        (lambda table: weights_of(table)[0].update(dtype="string"), "has the dtype 'string'"),
        (lambda table: weights_of(table)[0].update(dtype="int32"), "holds int32, not floats"),
        (
            lambda table: weights_of(table)[2].update(quantization={"dtype": "uint8"}),
            "two/kernel is quantized with scale=None",
        ),
        (
            lambda table: weights_of(table)[2].update(quantization=3),
            "quantized as None",
        ),
    ],
)
def test_tensorflow_js_models_that_lie(change: Change, words: str, tmp_path: Path) -> None:
    path = model(tmp_path, change)
    with pytest.raises(FormatError, match=words) as refused:
        read_layers(path)
    assert path in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_giant_of_tensorflow_js_is_refused(tmp_path: Path) -> None:
    path = model(tmp_path, lambda table: weights_of(table)[0].update(shape=[10**5] * 5))
    with pytest.raises(ShapeError, match="at most"):
        read_layers(path)
