"""PyTorch's exports and ONNX's own conformance cases against ONNX graphs that run as networks: `make test-keras`."""

from __future__ import annotations

import collections
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for library in ("torch", "onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library)

import onnx  # noqa: E402 - after the guard
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from graphs import evaluate  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from conv3d_cli.errors import Conv3DError  # noqa: E402
from conv3d_cli.network.onnx import read_onnx_network  # noqa: E402
from conv3d_cli.network.onnx.graph import TRANSLATORS  # noqa: E402

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]
Norm = Callable[[int], nn.Module]


def block(
    taken: int, given: int, norm: Norm, act: Callable[[], nn.Module], dilation: int = 1
) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(taken, given, 3, padding=dilation, dilation=dilation), norm(given), act()
    )


class UNet(nn.Module):
    """Two levels; `up` chooses how the deeper one comes back to the size of the other."""

    def __init__(
        self, up: str, norm: Norm = nn.BatchNorm3d, act: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.up = up
        self.a, self.b, self.c = (
            block(1, 8, norm, act),
            block(8, 8, norm, act),
            block(16, 8, norm, act),
        )
        self.last = nn.Conv3d(8, 3, 1)
        if up == "transpose":
            self.t = nn.ConvTranspose3d(8, 8, 2, 2)
        elif up == "transpose 3":
            self.t = nn.ConvTranspose3d(8, 8, 3, 2, 1, output_padding=1)

    def forward(self, x: Any) -> Any:
        a = self.a(x)
        b = self.b(F.max_pool3d(a, 2))
        if self.up in ("nearest", "trilinear"):
            b = F.interpolate(b, scale_factor=2, mode=self.up)
        elif self.up == "corners":
            b = F.interpolate(b, scale_factor=2, mode="trilinear", align_corners=True)
        elif self.up.startswith("to "):
            b = F.interpolate(b, size=a.shape[2:], mode=self.up[3:])
        else:
            b = self.t(b)
        return torch.softmax(self.last(self.c(torch.cat([b, a], 1))), 1)


class Residual(nn.Module):
    """Grouped and dilated convolutions around which the input goes."""

    def __init__(self, norm: Norm, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.act = nn.Conv3d(1, 8, 3, padding=1), act()
        self.a, self.m = nn.Conv3d(8, 8, 3, padding=1, groups=4), norm(8)
        self.b, self.n = nn.Conv3d(8, 8, 3, padding=2, dilation=2), norm(8)

    def forward(self, x: Any) -> Any:
        x = self.act(self.first(x))
        return self.act(x + self.n(self.b(self.act(self.m(self.a(x))))))


class VNet(nn.Module):
    """Windows of 5, halved by a convolution, with slopes of its own for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.p = nn.Conv3d(1, 8, 5, padding=2), nn.PReLU(8)
        self.d, self.q = nn.Conv3d(8, 16, 2, 2), nn.PReLU(1)
        self.c, self.n, self.u = (
            nn.Conv3d(16, 16, 5, padding=2),
            nn.BatchNorm3d(16),
            nn.ConvTranspose3d(16, 8, 2, 2),
        )
        self.o = nn.Conv3d(16, 2, 1)

    def forward(self, x: Any) -> Any:
        a = self.p(self.i(x) + x)
        b = self.q(self.d(a))
        return torch.log_softmax(self.o(torch.cat([a, self.u(self.n(self.c(b)) + b)], 1)), 1)


class Gated(nn.Module):
    """Squeeze and excitation, GELU, borders, parts of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv3d(1, 8, 3, padding=1, padding_mode="reflect")
        self.e = nn.Conv3d(8, 8, 3, padding=1, padding_mode="replicate")
        self.f = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())

    def forward(self, x: Any) -> Any:
        x = F.gelu(self.c(x))
        x = self.e(x * self.f(x.mean((2, 3, 4)))[:, :, None, None, None])
        a, b = x.chunk(2, 1)
        return torch.clamp(F.silu(a) + F.hardswish(b), -0.5, 0.7)


class Normed(nn.Module):
    """Layer normalization over the channels, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.n, self.a, self.b = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.LayerNorm(8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
        )

    def forward(self, x: Any) -> Any:
        x = self.c(x)
        return x + self.b(F.gelu(self.a(self.n(x.permute(0, 2, 3, 4, 1))))).permute(0, 4, 1, 2, 3)


class Pooled(nn.Module):
    """The mean of the volume at every voxel, and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.p, self.o = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.Conv3d(8, 8, 1),
            nn.Conv3d(16, 3, 1),
        )

    def forward(self, x: Any) -> Any:
        x = F.leaky_relu(self.i(x), 0.1)
        mean = F.interpolate(
            self.p(F.adaptive_avg_pool3d(x, 1)), size=x.shape[2:], mode="trilinear"
        )
        return self.o(torch.cat([x, mean], 1)).argmax(1, keepdim=True).float()


def groups(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def instances(channels: int) -> nn.Module:
    return nn.InstanceNorm3d(channels, affine=True)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"unet, {up}": (lambda up=up: UNet(up)) for up in ("transpose", "transpose 3", "nearest", "trilinear", "corners", "to trilinear", "to nearest")},
    "unet, instances": lambda: UNet("transpose", instances, lambda: nn.LeakyReLU(0.01)),
    "unet, groups": lambda: UNet("nearest", groups, nn.SiLU),
    "residual": lambda: Residual(nn.BatchNorm3d, nn.ReLU),
    "residual, instances": lambda: Residual(nn.InstanceNorm3d, nn.PReLU),
    "residual, groups": lambda: Residual(groups, nn.GELU),
    "vnet": VNet,
    "gated": Gated,
    "normed": Normed,
    "pooled": Pooled,
    "meshnet": lambda: nn.Sequential(*[block(1 if n == 0 else 5, 5, nn.BatchNorm3d, nn.ELU, d) for n, d in enumerate([1, 2, 4, 8, 1])], nn.Conv3d(5, 3, 1)),
}  # fmt: skip


def exported(network: nn.Module, x: Any, path: Path, exporter: str) -> None:
    axes = {0: "n", 2: "d", 3: "h", 4: "w"}
    given: dict[str, Any] = {"dynamo": False, "dynamic_axes": {"x": axes}, "opset_version": 17}
    if exporter == "opset 11":
        given["opset_version"] = 11
    elif exporter == "one size":
        del given["dynamic_axes"]
    elif exporter == "dynamo":
        open_axes = dict.fromkeys((2, 3, 4), torch.export.Dim.DYNAMIC)
        given = {
            "dynamo": True,
            "dynamic_shapes": (open_axes,),
            "external_data": False,
            "verbose": False,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), input_names=["x"], output_names=["y"], **given)


@pytest.mark.parametrize("exporter", ["opset 17", "opset 11", "one size", "dynamo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_pytorch_exports(name: str, exporter: str, run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
        if getattr(module, "weight", None) is not None and module.weight.ndim == 1:
            nn.init.uniform_(module.weight, 0.2, 1.5)
    x = torch.randn(1, 1, 16, 12, 20)
    path = tmp_path / "net.onnx"
    exported(network, x, path, exporter)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sizes = [(16, 12, 20), (24, 16, 28)] if exporter != "one size" else [(16, 12, 20)]
    if name in ("unet, to trilinear", "unet, to nearest", "pooled") and exporter != "one size":
        sizes.append((17, 13, 21))
    for size in sizes:
        volume = torch.randn(1, 1, *size).numpy()
        (want,) = session.run(None, {"x": volume})
        np.save(tmp_path / "x.npy", volume)
        written = []
        for ceiling in ("2G", "240M"):
            run(
                "apply",
                tmp_path / "x.npy",
                "-c",
                path,
                "-o",
                tmp_path / "y.npy",
                "--overwrite",
                "--max-memory",
                ceiling,
            )
            written.append((tmp_path / "y.npy").read_bytes())
        assert written[0] == written[1]
        found = np.load(tmp_path / "y.npy")
        assert found.shape == want.shape
        assert np.abs(found - want).max() <= 2e-6 * max(1.0, float(np.abs(want).max()))
        assert (found.argmax(1) == want.argmax(1)).mean() >= 0.99999


# ---------------------------------------------------------------------------------------------------------------------
# ONNX's own cases

# of which the first input is the volume, and the others become stored tensors
LIFTED = ("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "GroupNormalization")
# of which all inputs become channels of one
JOINS = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Concat"}
# read as of opset 9, since their operators have not changed from opset 6 on
UNCHANGED = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "Elu", "LeakyRelu", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "Pad", "Clip"}  # fmt: skip


def conformance() -> Iterator[tuple[str, Any, list[Any], list[Any]]]:
    from onnx.backend.test import data
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            if case.model is not None:
                yield case.name, case.model, *case.data_sets[0]
    (root,) = data.__path__
    for folder in sorted(Path(root, "pytorch-converted").iterdir()) + sorted(
        Path(root, "pytorch-operator").iterdir()
    ):
        pairs = [
            [
                numpy_helper.to_array(onnx.load_tensor(path))
                for path in sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"))
            ]
            for kind in ("input", "output")
        ]
        yield folder.name, onnx.load(folder / "model.onnx"), *pairs


def prepared(model: Any, inputs: list[Any]) -> tuple[Any, np.ndarray]:
    """A model of one input, of three spatial axes if its operator asks for them; and that input."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    operators = {node.op_type for node in model.graph.node}
    if model.opset_import[0].version < 9 and operators <= UNCHANGED:
        model.opset_import[0].version = 9
    shapes = {np.shape(one) for one in inputs}
    if operators <= JOINS and len(inputs) > 1 and len(shapes) == 1 and np.ndim(inputs[0]) > 1:
        return joined(model, inputs)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    for value, array in zip(given[1:], inputs[1:], strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    del model.graph.output[1:]
    x = np.asarray(inputs[0])
    if operators & set(LIFTED) and x.ndim in (3, 4):
        dims = model.graph.input[0].type.tensor_type.shape.dim
        while x.ndim < 5:
            x = np.expand_dims(x, 2)
            dims.insert(2, onnx.TensorShapeProto.Dimension(dim_value=1))
    return model, x


def joined(model: Any, inputs: list[Any]) -> tuple[Any, np.ndarray]:
    """A model whose one input has the channels of all, which a Split divides."""
    names = [value.name for value in model.graph.input]
    x = np.concatenate(inputs, axis=1)
    sizes = numpy_helper.from_array(np.full(len(names), np.shape(inputs[0])[1], np.int64), "sizes")
    split = onnx.helper.make_node("Split", ["all", "sizes"], names, axis=1)
    if model.opset_import[0].version < 13:
        split = onnx.helper.make_node("Split", ["all"], names, axis=1)
    nodes = [split, *model.graph.node]
    dtype = model.graph.input[0].type.tensor_type.elem_type
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("all", dtype, x.shape)], list(model.graph.output)[:1], [sizes]
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=list(model.opset_import)), x


def test_the_conformance_cases(tmp_path: Path) -> None:
    """What is read is right; what is not is refused in one line. Both are counted."""
    told: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong: list[str] = []
    refusals: list[str] = []
    for name, model, inputs, outputs in conformance():
        operators = [node.op_type for node in model.graph.node]
        known = set(operators) <= {*TRANSLATORS, "Constant"} - {
            "Transpose"
        }  # an output may be turned
        arrays = all(isinstance(one, (np.ndarray, np.generic)) for one in (*inputs, *outputs))
        if not known or not arrays or not inputs or len(inputs) > len(model.graph.input):
            continue
        ready, x = prepared(model, inputs)
        (tmp_path / "net.onnx").write_bytes(ready.SerializeToString())
        kind = operators[0] if len(operators) == 1 else "several"
        try:
            network = read_onnx_network(str(tmp_path / "net.onnx"))
            missing = {2: (2, 3, 4), 3: (2, 3), 4: (2,), 5: ()}[x.ndim]
            (found,) = evaluate(network, np.expand_dims(x, missing)).values()
        except Conv3DError as error:
            told[kind]["refused"] += 1
            refusals.append(str(error))
            continue
        want = np.asarray(outputs[0], np.float64)
        near = 2e-3 if outputs[0].dtype.itemsize < 4 else 2e-6
        if found.size != want.size or np.abs(found.reshape(want.shape) - want).max() > near * max(
            1, np.abs(want).max()
        ):
            wrong.append(name)
        told[kind]["right"] += 1
    assert not wrong
    assert all(len(text.splitlines()) == 1 for text in refusals)
    for operator, least in {
        "Conv": 33, "ConvTranspose": 14, "MaxPool": 26, "AveragePool": 24, "Resize": 17, "Upsample": 1, "Pad": 8,
        "BatchNormalization": 2, "InstanceNormalization": 2, "GroupNormalization": 2, "LayerNormalization": 2, "GlobalAveragePool": 2,
        "GlobalMaxPool": 2, "ReduceMean": 6, "Softmax": 3, "LogSoftmax": 3, "ArgMax": 10, "PRelu": 3, "Gemm": 8, "Slice": 5, "Split": 5,
        "Add": 1, "Sub": 1, "Mul": 1, "Div": 1, "Concat": 2,
    }.items():  # fmt: skip
        assert told[operator]["right"] >= least, (operator, told[operator])


def test_resizing_as_onnxruntime_does(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4, 7)).astype(np.float32)
    onnxruntime.set_default_logger_severity(4)
    for coordinates in (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "half_pixel_symmetric",
    ):
        for mode, rounding in (
            ("linear", "floor"),
            ("nearest", "floor"),
            ("nearest", "round_prefer_floor"),
            ("nearest", "ceil"),
        ):
            for new in (1, 2, 3, 5, 10, 14, 23):
                sizes = np.array([1, 2, 3, 4, new], np.int64)
                node = onnx.helper.make_node(
                    "Resize", ["x", "", "", "s"], ["y"], mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=rounding,
                )  # fmt: skip
                graph = onnx.helper.make_graph(
                    [node], "g", [onnx.helper.make_tensor_value_info("x", 1, x.shape)], [onnx.helper.make_tensor_value_info("y", 1, None)],
                    [numpy_helper.from_array(sizes, "s")],
                )  # fmt: skip
                model = onnx.helper.make_model(
                    graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9
                )
                (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
                session = onnxruntime.InferenceSession(
                    os.fspath(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"]
                )
                (want,) = session.run(None, {"x": x})
                (found,) = evaluate(read_onnx_network(str(tmp_path / "net.onnx")), x).values()
                np.testing.assert_allclose(
                    found, want, atol=3e-6, err_msg=f"{coordinates}, {mode}, {rounding}, {new}"
                )
