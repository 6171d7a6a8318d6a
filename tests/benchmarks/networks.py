"""Whole networks beside onnxruntime and PyTorch: whole processes, in turn, on the same ONNX file.

python tests/benchmarks/networks.py [meshnet] [unet] [--size 128] [--rounds 3] [--threads 1]
    [--peers PYTHON] [--beside onnxruntime] [--folder DIR] [--terms]

`meshnet` has ten convolutions of 21 channels with dilations up to 16; `unet` has three levels of
16, 32 and 64 channels, with max pooling, transposed convolutions and skips. Both have random
weights. PYTHON is an interpreter that has onnx, onnxruntime and torch (`pip install onnx
onnxruntime torch`), or only those that `--beside` names. Every process reads the volume from a .npy file and writes its result to one.
CPU seconds are the least of all rounds and peaks the largest; ratios are the other's to ours.
`--terms` prints the memory that was forecast, term by term.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PEERS = ("onnxruntime", "torch")


class Net:
    """An ONNX graph that is made node by node; every method returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def _node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _weight(self, values: Array) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def convolution(self, x: str, before: int, after: int, size: int = 3, dilation: int = 1) -> str:
        """A convolution whose output has the size of its input."""
        scale = (2 / (before * size**3)) ** 0.5
        kernel = self.rng.standard_normal((after, before, size, size, size)) * scale
        weights = [self._weight(kernel), self._weight(self.rng.standard_normal(after) * 0.1)]
        reach = dilation * (size // 2)
        return self._node(
            "Conv",
            [x, *weights],
            kernel_shape=[size] * 3,
            dilations=[dilation] * 3,
            pads=[reach] * 6,
        )

    def normalized(self, x: str, channels: int) -> str:
        """Batch normalization and ReLU."""
        draw = self.rng.uniform
        bounds = [(0.8, 1.2), (-0.1, 0.1), (-0.1, 0.1), (0.8, 1.2)]
        weights = [self._weight(draw(low, high, channels)) for low, high in bounds]
        return self._node("Relu", [self._node("BatchNormalization", [x, *weights])])

    def block(self, x: str, before: int, after: int) -> str:
        """Two convolutions, each with batch normalization and ReLU."""
        x = self.normalized(self.convolution(x, before, after), after)
        return self.normalized(self.convolution(x, after, after), after)

    def halved(self, x: str) -> str:
        """Max pooling."""
        return self._node("MaxPool", [x], kernel_shape=[2] * 3, strides=[2] * 3)

    def doubled(self, x: str, before: int, after: int) -> str:
        """A transposed convolution whose stride is its size."""
        kernel = self.rng.standard_normal((before, after, 2, 2, 2)) * (1 / before) ** 0.5
        weights = [self._weight(kernel), self._weight(np.zeros(after))]
        return self._node("ConvTranspose", [x, *weights], kernel_shape=[2] * 3, strides=[2] * 3)

    def joined(self, *inputs: str) -> str:
        """The channels of all inputs."""
        return self._node("Concat", list(inputs), axis=1)

    def save(self, path: Path, output: str) -> None:
        """Write the graph, whose input is one channel of any size."""
        from onnx import TensorProto, helper, save

        sides = ["D", "H", "W"]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *sides])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, path.stem, [x], [y], self.weights)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))


def meshnet(path: Path) -> None:
    """Ten layers of 21 channels; the last one gives three classes."""
    net, x, before = Net(), "x", 1
    for dilation in (1, 2, 4, 8, 16, 8, 4, 2, 1):
        x, before = net.normalized(net.convolution(x, before, 21, 3, dilation), 21), 21
    net.save(path, net.convolution(x, before, 3, 1))


def unet(path: Path) -> None:
    """Three levels of 16, 32 and 64 channels; the output has four classes."""
    net = Net()
    first = net.block("x", 1, 16)
    second = net.block(net.halved(first), 16, 32)
    deep = net.block(net.halved(second), 32, 64)
    up = net.block(net.joined(second, net.doubled(deep, 64, 32)), 64, 32)
    up = net.block(net.joined(first, net.doubled(up, 32, 16)), 32, 16)
    net.save(path, net.convolution(up, 16, 4, 1))


NETWORKS: dict[str, Callable[[Path], None]] = {"meshnet": meshnet, "unet": unet}


# --------------------------------------------------------------------------------------------------
# The others, each in a process of its own


def run_onnxruntime(model: str, source: str, target: str, threads: int) -> None:
    """Apply the model as onnxruntime does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    np.save(target, session.run(None, {"x": np.load(source)})[0])


def run_torch(model: str, source: str, target: str, threads: int) -> None:
    """Apply the model with PyTorch's functions; what no node needs any more is freed."""
    import onnx
    import torch
    from onnx import numpy_helper

    torch.set_num_threads(threads)
    f, graph = torch.nn.functional, onnx.load(model).graph
    known = {
        one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer
    }
    known["x"] = torch.from_numpy(np.load(source))
    last = {name: place for place, node in enumerate(graph.node) for name in node.input}
    with torch.inference_mode():
        for place, node in enumerate(graph.node):
            given = [known[name] for name in node.input]
            if node.op_type == "Conv":
                (rate,) = {n for a in node.attribute if a.name == "dilations" for n in a.ints}
                reach = rate * (given[1].shape[2] // 2)
                result = f.conv3d(*given, padding=reach, dilation=rate)
            elif node.op_type == "ConvTranspose":
                result = f.conv_transpose3d(*given, stride=2)
            elif node.op_type == "BatchNormalization":
                x, scale, shift, mean, variance = given
                result = f.batch_norm(x, mean, variance, scale, shift)
            elif node.op_type == "Relu":
                result = f.relu_(given[0])
            elif node.op_type == "MaxPool":
                result = f.max_pool3d(given[0], 2)
            else:
                result = torch.cat(given, 1)
            given.clear()
            for name in [name for name in known if last[name] == place]:
                del known[name]
            known[node.output[0]] = result
    np.save(target, result.numpy())


# --------------------------------------------------------------------------------------------------


def commands(
    folder: Path, network: str, peers: str, beside: Sequence[str], threads: int
) -> dict[str, list[str]]:
    """The command of each program."""
    model, source = folder / f"{network}.onnx", folder / "x.npy"
    conv3d = [sys.executable, "-m", "conv3d_cli", "apply", str(source), "-c", str(model), "-q"]
    conv3d += ["--data-format", "channels_first", "-j", str(threads), "--overwrite"]
    found = {"conv3d": [*conv3d, "-o", str(folder / "conv3d.npy")]}
    for peer in beside if peers else []:
        given = ["--as", peer, str(model), str(source), str(folder / f"{peer}.npy"), str(threads)]
        found[peer] = [peers, __file__, *given]
    return found


def forecast(command: list[str]) -> str:
    """The terms of the forecast of memory, in MB, the largest first."""
    told = subprocess.run(
        [*command, "--dry-run", "--json"], capture_output=True, text=True, check=True
    )
    terms = json.loads(told.stdout)["memory_terms"]
    listed = sorted(terms.items(), key=lambda term: -term[1])
    return ", ".join(f"{name} {count / 1e6:.0f}" for name, count in listed)


def measure(folder: Path, network: str, options: argparse.Namespace) -> None:
    """Print the rows of a network."""
    from whole_process import run  # what it imports, the others do not have

    beside = options.beside or PEERS
    programs = commands(folder, network, options.peers, beside, options.threads)
    run(programs["conv3d"])  # compiles, and fills the disk's cache
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, command in programs.items():
            runs[name].append(run(command))
    best = {
        name: (min(r[0] for r in all_), min(r[1] for r in all_), max(r[2] for r in all_))
        for name, all_ in runs.items()
    }
    ours = best["conv3d"]
    result = np.load(folder / "conv3d.npy")
    for name, (wall, cpu, peak) in best.items():
        line = f"{network:<8} {name:<12} {wall:>8.2f} {cpu:>8.2f} {peak:>8.0f}"
        if name != "conv3d":
            other = np.load(folder / f"{name}.npy")
            same = float((result.argmax(1) == other.argmax(1)).mean())
            off = float(np.abs(result - other).max() / np.abs(other).max())
            line += f"   {cpu / ours[1]:>5.2f} {peak / ours[2]:>6.2f}   {off:.1e} {same:.5%}"
        print(line)
    if options.terms:
        print(" ", forecast(programs["conv3d"]))


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--as"]:
        peer, model, source, target, threads = sys.argv[2:]
        {"onnxruntime": run_onnxruntime, "torch": run_torch}[peer](
            model, source, target, int(threads)
        )
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="meshnet, unet")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", default="", help="a Python with onnx, onnxruntime and torch")
    parser.add_argument("--beside", action="append", choices=PEERS, help="one of these; all")
    parser.add_argument("--folder", help="where files are made")
    parser.add_argument("--terms", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="conv3d-bench-", dir=options.folder))
    try:
        x = np.random.default_rng(1).standard_normal((1, 1, *[options.size] * 3))
        np.save(folder / "x.npy", x.astype(np.float32))
        print(f"{options.size}^3, {options.threads} threads")
        print(
            f"{'network':<8} {'program':<12} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}   "
            "CPU x  MB x   difference, same classes"
        )
        for network in options.networks or NETWORKS:
            NETWORKS[network](folder / f"{network}.onnx")
            measure(folder, network, options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
