"""Whole networks from the command line: right numbers, the same bits in any memory, places, messages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import networks
import nibabel as nib
import numpy as np
import pytest
from blocking import in_boxes_of
from networks import Draw, Layer, functional, layer, sequential, volume, write_h5, write_keras

from conv3d_cli.model.box import Box
from conv3d_cli.network.graph import Network, Node
from conv3d_cli.network.keras import read_keras_network
from conv3d_cli.network.keras_weights import read_here
from conv3d_cli.network.operations.base import Shape, Window
from conv3d_cli.network.operations.catalogue import LAYERS, OPERATIONS, make_operation
from conv3d_cli.pipeline import held
from conv3d_cli.pipeline.flow import Tee
from conv3d_cli.pipeline.held import count_held, nodes_to_spool
from conv3d_cli.pipeline.lowering import lower_network
from conv3d_cli.pipeline.prepare import prepare_job
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

pytest.importorskip("h5py")
Array = np.ndarray[Any, Any]
SAMPLE = Path(__file__).parents[2] / "sample_data"


def evaluated(network: Network, x: Array) -> Array:
    """The network's output for a volume (d, h, w, c), node by node, by the definitions in float64.

    test_every_operation.py holds the definitions to plain loops.
    """
    (name,) = network.inputs
    values = {name: x.astype(np.float64)}
    for node in network.nodes:
        taken = [values[source] for source in node.inputs]
        operation = make_operation(node, [Shape(*one.shape) for one in taken])
        box = Box.whole(operation.shape.size)
        values[node.name] = operation.define([Window(one, (0, 0, 0)) for one in taken], box)
    (output,) = network.outputs.values()
    return values[output]


def network_of(path: Path) -> Network:
    with zipfile.ZipFile(path) as archive:
        model = json.loads(archive.read("config.json"))
    return read_keras_network(model, read_here(str(path)))


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    return write_keras(tmp_path / "unet.keras", *networks.unet())


def saved(path: Path, *shape: int, seed: int = 4) -> Array:
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    np.save(path, x)
    return x


def test_a_unet_is_what_its_nodes_define(unet: Path, tmp_path: Path, run: Any) -> None:
    x = saved(tmp_path / "x.npy", 2, 12, 8, 16, 1)
    run("apply", tmp_path / "x.npy", "-c", unet, "-o", tmp_path / "y.npy", "--verify", 5)
    got = np.load(tmp_path / "y.npy")
    for own, expected in zip(got, x, strict=True):
        np.testing.assert_allclose(own, evaluated(network_of(unet), expected), atol=3e-6)


def test_bits_do_not_depend_on_threads_memory_and_boxes(
    unet: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "x.npy", 48, 40, 44)
    job = ["apply", tmp_path / "x.npy", "--axes", "zyx", "-c", unet, "-q", "--overwrite"]
    run(*job, "-o", tmp_path / "one.npy", "-j", 1)
    refused = run(*job, "-o", tmp_path / "two.npy", "-j", 3, "--max-memory", "1M", code=6)
    least = re.search(r"--max-memory (\d+M)", refused.output)
    assert least, refused.output
    run(*job, "-o", tmp_path / "two.npy", "-j", 3, "--max-memory", least[1])
    bits = (tmp_path / "one.npy").read_bytes()
    assert (tmp_path / "two.npy").read_bytes() == bits
    monkeypatch.setattr("conv3d_cli.pipeline.prepare.choose_blocking", in_boxes_of(20, 16, 24))
    run(*job, "-o", tmp_path / "boxes.npy")
    assert (tmp_path / "boxes.npy").read_bytes() == bits


def test_a_concatenation_takes_planes_where_they_stand(tmp_path: Path, run: Any) -> None:
    """Of the stored volume, of a node that others take too, and of nodes that compute there."""
    draw = Draw(3)
    model = functional(
        [
            volume(2),
            layer("Conv3D", "a", "volume", filters=3, kernel_size=3, padding="same"),
            layer("MaxPooling3D", "p", "a", pool_size=2),
            layer("UpSampling3D", "u", "p", size=2),
            layer("Conv3D", "b", "a", filters=2, kernel_size=3, padding="same"),
            layer("Concatenate", "all", "volume", "u", "a", "b"),
        ],
        "all",
    )
    weights = {"a": draw.conv(3, 2, 3), "b": draw.conv(3, 3, 2)}
    path = write_keras(tmp_path / "m.keras", model, weights)
    x = np.random.default_rng(5).integers(-9, 9, (1, 12, 6, 8, 2)).astype(np.int16)
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy")
    got = np.load(tmp_path / "y.npy")[0]
    expected = evaluated(network_of(path), x[0])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got[..., :2], x[0])


@pytest.mark.parametrize("norm", ["BatchNormalization", "GroupNormalization"])
def test_readers_hold_the_planes_that_were_counted(
    tmp_path: Path, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_keras(tmp_path / "u.keras", *networks.unet(norm=norm))
    saved(tmp_path / "x.npy", 64, 8, 8)
    waiting: dict[int, int] = {}
    read = Tee.read

    def spied(self: Tee, number: int, n: int, depth: slice) -> Array:
        planes = read(self, number, n, depth)
        now = sum(len(block) for _, block in self._blocks)
        waiting[id(self)] = max(waiting.get(id(self), 0), now)
        kept.append(self)
        return planes

    kept: list[Any] = []
    monkeypatch.setattr(Tee, "read", spied)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", 1)
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.DEEP_SLAB_BYTES", 1)
    network = network_of(model)
    stages = lower_network(network)
    job = Job(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), stages, axes="zyx", network=network)
    with prepare_job(job) as prepared:
        counted = count_held(
            prepared.graph, 1, prepared.stream_plan.slab_depth, prepared.spooled
        ).most
        assert prepared.passes == (1 if norm == "BatchNormalization" else 8)
    run_job(job)
    assert sorted(waiting.values()) == sorted(counted.values())
    if norm == "BatchNormalization":
        assert len(counted) == 2  # both skips, and not the whole volume
        assert max(counted.values()) < 64


@pytest.mark.parametrize("seed", range(12))
def test_what_waits_in_any_case_is_spooled_at_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same nodes as if one after another was found."""
    draw = np.random.default_rng(seed)
    names, nodes = ["x"], []
    for number in range(14):
        kind = ("GroupNormalization", "Add", "Add", "AveragePooling3D")[draw.integers(4)]
        taken = [names[max(0, len(names) - 1 - int(draw.integers(4)))] for _ in "ab"]
        if kind == "GroupNormalization":
            vectors = {"gamma": np.ones(1), "beta": np.zeros(1)}
            node = Node(f"n{number}", kind, (taken[0],), {"groups": 1}, vectors)
        elif kind == "Add":
            node = Node(f"n{number}", kind, (names[-1], taken[1]))
        else:
            pool = {"pool_size": 3, "strides": 1, "padding": "same"}
            node = Node(f"n{number}", kind, (taken[0],), pool)
        nodes.append(node)
        names.append(node.name)
    nodes.append(Node("all", "Average", tuple(names)))
    network = Network(nodes, {"x": 1}, {"y": "all"})
    saved(tmp_path / "x.npy", 12, 4, 4)
    stages = lower_network(network)
    job = Job(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), stages, axes="zyx", network=network)
    with prepare_job(job) as prepared:
        graph = prepared.graph
    found = nodes_to_spool(graph)
    monkeypatch.setattr(held, "_waited_for", lambda graph: set())
    assert nodes_to_spool(graph) == found


def test_many_blocks_with_skips_are_counted_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = {"gamma": np.ones(1), "beta": np.zeros(1)}
    nodes, last = [], "x"
    for number in range(8):
        nodes.append(Node(f"n{number}", "GroupNormalization", (last,), {"groups": 1}, vectors))
        nodes.append(Node(f"s{number}", "Add", (last, f"n{number}")))
        last = f"s{number}"
    network = Network(nodes, {"x": 1}, {"y": last})
    saved(tmp_path / "x.npy", 4, 4, 4)
    stages = lower_network(network)
    job = Job(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), stages, axes="zyx", network=network)
    with prepare_job(job) as prepared:
        graph = prepared.graph
    counted: list[Any] = []

    def spied(*arguments: Any) -> Any:
        counted.append(arguments)
        return count_held(*arguments)

    monkeypatch.setattr(held, "count_held", spied)
    assert len(nodes_to_spool(graph)) == 8
    assert len(counted) <= 3


def test_group_normalization_takes_as_many_passes_as_it_says(tmp_path: Path, run: Any) -> None:
    model = write_keras(tmp_path / "u.keras", *networks.unet(norm="GroupNormalization"))
    x = saved(tmp_path / "x.npy", 12, 8, 16)
    job = [tmp_path / "x.npy", "--axes", "zyx", "-c", model]
    assert "8 passes" in run("explain", *job).output
    run("apply", *job, "-o", tmp_path / "y.npy")
    expected = evaluated(network_of(model), x[..., None])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    refused = run("apply", *job, "-o", tmp_path / "z.npy", "--verify", 3, code=2)
    assert "needs the whole volume" in refused.output


def test_every_use_of_a_layer_is_a_node(tmp_path: Path, run: Any) -> None:
    """A layer called twice, one inside of a model that is called twice; and a legacy file."""
    draw = Draw(2)
    inner = functional(
        [volume(2, "in"), layer("Conv3D", "c", "in", filters=2, kernel_size=3, padding="same")],
        "c",
        name="inner",
    )
    inner |= {"name": "inner"}
    inner["inbound_nodes"] = [
        {"args": [networks.tensor("volume")], "kwargs": {}},
        {"args": [networks.tensor("inner", 1)], "kwargs": {}},
    ]
    bent = layer("PReLU", "bent", shared_axes=[1, 2, 3])
    bent["inbound_nodes"] = [
        {"args": [networks.tensor("inner", 2)], "kwargs": {}},
        {"args": [networks.tensor("volume")], "kwargs": {}},
    ]
    join = layer("Subtract", "join")
    tensors = [networks.tensor("bent", 0), networks.tensor("bent", 1)]
    join["inbound_nodes"] = [{"args": [tensors], "kwargs": {}}]
    model = functional([volume(2), inner, bent, join], "join")
    kernel, bias = draw.conv(3, 2, 2)
    alpha = np.array([0.3, -0.5]).reshape(1, 1, 1, 2)
    path = write_keras(tmp_path / "m.keras", model, {"c": [kernel, bias], "bent": [alpha]})
    x = saved(tmp_path / "x.npy", 1, 6, 5, 7, 2)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy")

    import oracle

    def conv(y: Array) -> Array:
        return oracle.conv3d(y, kernel.astype("f4"), bias.astype("f4"), padding="same")

    def bend(y: Array) -> Array:
        return np.where(y > 0, y, y * alpha.astype("f4"))

    expected = bend(conv(conv(x))) - bend(x)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=3e-6)


def test_a_legacy_file_gives_the_same(tmp_path: Path, run: Any) -> None:
    model, weights = networks.unet()
    saved(tmp_path / "x.npy", 1, 8, 8, 8, 1)
    names = {4: ("gamma", "beta", "moving_mean", "moving_variance"), 2: ("kernel", "bias")}
    legacy = {
        name: dict(zip(names[len(arrays)], arrays, strict=True)) for name, arrays in weights.items()
    }
    run("apply", tmp_path / "x.npy", "-c", write_h5(tmp_path / "m.h5", model, legacy), "-o", tmp_path / "a.npy")  # fmt: skip
    run("apply", tmp_path / "x.npy", "-c", write_keras(tmp_path / "m.keras", model, weights), "-o", tmp_path / "b.npy")  # fmt: skip
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_json_and_weights_in_two_files_give_the_same(
    unet: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    saved(tmp_path / "x.npy", 1, 8, 8, 8, 1)
    with zipfile.ZipFile(unet) as archive:
        (tmp_path / "m.json").write_bytes(archive.read("config.json"))
        (tmp_path / "m.weights.h5").write_bytes(archive.read("model.weights.h5"))
    job = ["apply", tmp_path / "x.npy", "--overwrite", "-c"]
    run(*job, unet, "-o", tmp_path / "a.npy")
    both = [tmp_path / "m.json", "--weights", tmp_path / "m.weights.h5"]
    run(*job, *both, "-o", tmp_path / "b.npy", "--sidecar")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    record = json.loads((tmp_path / "b.json").read_text())["Conv3D"]
    assert [file["Role"] for file in record["Inputs"]] == ["volume", "config", "weights"]
    run("rerun", tmp_path / "b.json")
    for wrong, code, words in (
        ([tmp_path / "m.json"], 2, "the model comes without"),
        ([unet, "--weights", tmp_path / "m.weights.h5"], 2, "leave out --weights"),
        ([tmp_path / "m.json", "--weights", tmp_path / "x.npy"], 3, ".weights.h5 or .h5"),
    ):
        line = error_line(run(*job, *wrong, "-o", tmp_path / "c.npy", code=code).stderr)
        assert words in line, line
    lone = ["apply", tmp_path / "x.npy", "--weights", tmp_path / "m.weights.h5"]
    line = error_line(run(*lone, "-o", tmp_path / "c.npy", code=2).stderr)
    assert "pass its JSON" in line


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([layer("MaxPooling3D", "p"), layer("LSTM", "l", units=2)], "layer 'l' is of class LSTM"),
        ([layer("Conv3D", "c", filters=2, kernel_size=3), layer("ReLU", "r"), layer("MaxPooling3D", "p")], "layer 'c' (Conv3D) has weights, and the model comes without; pass --weights"),
        ([layer("Conv3D", "c", filters=2, kernel_size=3, strides=0)], "strides must be at least 1"),
    ],
    ids=["network", "without-weights", "chain"],
)  # fmt: skip
def test_json_that_cannot_be_run_tells_the_layer_at_fault(
    layers: list[Layer], words: str, tmp_path: Path, run: Any, error_line: Any
) -> None:
    saved(tmp_path / "x.npy", 1, 8, 8, 8, 1)
    (tmp_path / "m.json").write_text(json.dumps(sequential(layers)))
    job = ["apply", tmp_path / "x.npy", "-c", tmp_path / "m.json", "-o", tmp_path / "y.npy"]
    line = error_line(run(*job, code=2).stderr)
    assert words in line, line
    assert "m.json" in line


def test_a_normalization_whose_json_has_its_numbers_needs_no_weights(
    tmp_path: Path, run: Any
) -> None:
    x = saved(tmp_path / "x.npy", 1, 4, 4, 4, 2)
    model = sequential([layer("Normalization", "n", axis=-1, mean=[1, 2], variance=[4, 9])])
    (tmp_path / "m.json").write_text(json.dumps(model))
    run("apply", tmp_path / "x.npy", "-c", tmp_path / "m.json", "-o", tmp_path / "y.npy")
    expected = (x - [1, 2]) / [2, 3]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-6)


def test_every_file_of_a_network_is_recorded(tmp_path: Path, run: Any) -> None:
    """Rules for make and the record name the shards, too, though no option does."""
    model = Path(shutil.copytree(SAMPLE / "meshnet", tmp_path / "meshnet")) / "model.json"
    manifest = json.loads(model.read_text())["weightsManifest"]
    shards = [str(model.with_name(name)) for group in manifest for name in group["paths"]]
    assert shards
    saved(tmp_path / "x.npy", 8, 8, 8)
    job = ["apply", tmp_path / "x.npy", "--axes", "zyx", "-c", model, "-o", tmp_path / "y.npy"]
    run(*job, "--sidecar", "--depfile", tmp_path / "y.d")
    rules = (tmp_path / "y.d").read_text().split()
    record = (tmp_path / "y.json").read_text()
    for file in (str(model), *shards):
        assert file in rules
        assert sha256(Path(file).read_bytes()).hexdigest() in record


# --------------------------------------------------------------------------------------------------
# Places


def test_a_unet_keeps_the_place_of_a_scan(unet: Path, tmp_path: Path, run: Any) -> None:
    affine = np.array([[2, 0.1, 0, -9], [-0.1, 2, 0, 5], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    x = np.random.default_rng(0).standard_normal((12, 8, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(x, affine), tmp_path / "x.nii.gz")
    run("apply", tmp_path / "x.nii.gz", "-c", unet, "-o", tmp_path / "y.nii.gz")
    out = nib.load(tmp_path / "y.nii.gz")
    np.testing.assert_allclose(out.affine, affine, atol=1e-6)
    expected = evaluated(network_of(unet), x.transpose(2, 1, 0)[..., None])
    np.testing.assert_allclose(out.get_fdata().squeeze().transpose(2, 1, 0, 3), expected, atol=3e-6)


@pytest.mark.parametrize(
    ("layers", "step", "first"),
    [
        ([layer("MaxPooling3D", "p", pool_size=2)], 2, 0.5),
        ([layer("UpSampling3D", "u", size=3)], 1 / 3, -1 / 3),
        ([layer("MaxPooling3D", "p", pool_size=3), layer("UpSampling3D", "u", size=3)], 1, 0),
        ([layer("Cropping3D", "c", cropping=2)], 1, 2),
        ([layer("ZeroPadding3D", "z", padding=2)], 1, -2),
        ([layer("GlobalMaxPooling3D", "g", keepdims=True)], 12, 5.5),
    ],
)
def test_voxels_lie_where_they_were_computed_from(
    layers: list[Layer], step: float, first: float, tmp_path: Path, run: Any
) -> None:
    path = write_keras(tmp_path / "m.keras", sequential([volume(1), *layers]), {})
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-9, 5, 1)
    nib.save(nib.Nifti1Image(np.ones((12, 12, 12), np.float32), affine), tmp_path / "x.nii")
    run("apply", tmp_path / "x.nii", "-c", path, "-o", tmp_path / "y.nii")
    out = nib.load(tmp_path / "y.nii")
    np.testing.assert_allclose(out.header.get_zooms()[:3], [2 * step] * 3, rtol=1e-6)
    np.testing.assert_allclose(out.affine[:3, 3], affine[:3, 3] + 2 * first, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# Joined nodes


def test_nodes_are_joined_only_where_nothing_else_takes_them() -> None:
    draw = Draw(1)
    kernel, bias = draw.conv(3, 2, 2)
    conv = {"kernel": kernel, "bias": bias}
    norm = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), draw.norm(2), strict=True))
    nodes = [
        Node("pads", "ZeroPadding3D", ("x",), {"padding": 1}),
        Node("conv", "Conv3D", ("pads",), {}, conv),
        Node("norm", "BatchNormalization", ("conv",), {}, norm),
        Node("same", "Identity", ("norm",)),
        Node("bent", "Activation", ("same",), {"activation": "relu"}),
    ]
    chain = lower_network(Network(nodes, {"x": 2}, {"out": "bent"}))
    assert len(chain) == 1
    assert isinstance(chain[0], Stage)
    x = draw.numbers.standard_normal((5, 6, 7, 2))
    for other in ("pads", "conv", "norm", "same"):
        joined = [*nodes, Node("more", "Concatenate", ("bent", other))]
        if other == "pads":
            joined[-1] = Node("more", "Concatenate", ("bent", "crop"))
            joined.append(Node("crop", "Cropping3D", ("pads",), {"cropping": 1}))
        network = Network(joined, {"x": 2}, {"out": "more"})
        stages = lower_network(network)
        assert len(stages) > 2
        expected = evaluated(network, x)
        names = [stage.name for stage in stages]
        assert ("norm" in names) == (other == "conv"), names
        assert expected.shape[3] == 4


@pytest.mark.parametrize(
    ("size", "strides"), [(1, 2), (2, 2), (3, 2), (4, 2), (5, 3), (2, 3), (3, 1)]
)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_transposed_convolutions_in_phases(
    size: int, strides: int, padding: str, tmp_path: Path, run: Any
) -> None:
    draw = Draw(3)
    first = layer("Conv3DTranspose", "t", filters=3, kernel_size=size, strides=strides, padding=padding, activation="tanh")  # fmt: skip
    model = sequential([volume(2), first, layer("BatchNormalization", "n", axis=-1)])
    weights = {"t": draw.transposed(size, 2, 3), "n": draw.norm(3)}
    path = write_keras(tmp_path / "m.keras", model, weights)
    x = saved(tmp_path / "x.npy", 1, 5, 4, 6, 2)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy")
    expected = evaluated(network_of(path), x[0])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[0], expected, atol=3e-6)


def test_nan_poisons_only_the_outputs_of_its_windows(tmp_path: Path, run: Any) -> None:
    draw = Draw(4)
    up = layer("Conv3DTranspose", "t", filters=2, kernel_size=3, strides=2, padding="same")
    path = write_keras(tmp_path / "m.keras", sequential([volume(1), up]), {"t": draw.transposed(3, 1, 2)})  # fmt: skip
    x = saved(tmp_path / "x.npy", 1, 5, 5, 5, 1)
    x[0, 2, 2, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    run("apply", tmp_path / "x.npy", "-c", path, "-o", tmp_path / "y.npy")
    poisoned = np.isnan(np.load(tmp_path / "y.npy")[0, ..., 0])
    assert poisoned.sum() == 27
    assert poisoned[4:7, 4:7, 4:7].all()


# --------------------------------------------------------------------------------------------------
# Messages


def refused(tmp_path: Path, run: Any, error_line: Any, model: Layer, weights: Any, shape: Any = (8, 8, 8), code: int = 2) -> str:  # fmt: skip
    path = write_keras(tmp_path / "m.keras", model, weights)
    saved(tmp_path / "x.npy", *shape)
    result = run("apply", tmp_path / "x.npy", "--axes", "zyx", "-c", path, "-o", tmp_path / "y.npy", code=code)  # fmt: skip
    assert not (tmp_path / "y.npy").exists()
    line: str = error_line(result.stderr)
    return line


def test_odd_sizes_at_a_skip(tmp_path: Path, run: Any, error_line: Any) -> None:
    line = refused(tmp_path, run, error_line, *networks.unet(), shape=(12, 13, 16), code=4)
    assert "node 'skip_a' (Concatenate)" in line
    assert "'up_a' has 12x12x16, 'a_relu' has 12x13x16" in line
    assert "12 or 16 along height; pad or crop" in line
    line = refused(tmp_path, run, error_line, *networks.unet(), shape=(12, 14, 18), code=4)
    assert "'up_b' has 6x6x8, 'b_relu' has 6x7x9" in line
    assert "12 or 16 along height, 16 or 20 along width" in line


def test_channels_of_another_volume(tmp_path: Path, run: Any, error_line: Any) -> None:
    line = refused(tmp_path, run, error_line, *networks.unet(channels=2), code=4)
    assert "takes 2 channels, but the volume has 1" in line


def test_models_that_are_not_understood(tmp_path: Path, run: Any, error_line: Any) -> None:
    conv = layer("Conv3D", "c", "volume", filters=2, kernel_size=3)
    weights = {"c": Draw().conv(3, 1, 2)}

    def of(*layers: Layer, outputs: tuple[str, ...] = ("last",), own: Any = weights) -> str:
        return refused(tmp_path, run, error_line, functional([volume(1), conv, *layers], *outputs), own)  # fmt: skip

    line = of(layer("LSTM", "last", "c"))
    assert "layer 'last' is of class LSTM; understood are Conv3D, Conv3DTranspose" in line
    assert "m.keras::c" in line
    pool = layer("MaxPooling3D", "last", "c")
    line = of(pool, layer("ReLU", "other", "c"), outputs=("last", "other"))
    assert "2 outputs, last, other" in line
    a, b = layer("Add", "last", "c", "b"), layer("ReLU", "b", "last")
    assert "cycle" in of(a, b)
    assert "no layer 'nowhere'" in of(layer("Add", "last", "c", "nowhere"))
    norm = layer("BatchNormalization", "last", "c", axis=-1)
    line = refused(
        tmp_path, run, error_line, functional([volume(1), conv, norm], "last"), weights, code=3
    )
    assert "layer 'last' (BatchNormalization) has 0 variables" in line
    assert "gamma, beta, moving_mean, moving_variance" in line
    line = of(layer("BatchNormalization", "last", "c", axis=1), own={**weights, "last": Draw().norm(2)})  # fmt: skip
    assert "normalizes along axis 1" in line
    dropout = layer("Dropout", "last", "c")
    dropout["inbound_nodes"][0]["kwargs"] = {"training": True}
    assert "training=True" in of(dropout, layer("MaxPooling3D", "p", "last"), outputs=("p",))


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - LAYERS.keys()))
def test_a_layer_is_no_operation_of_other_formats_by_its_name(
    name: str, tmp_path: Path, run: Any, error_line: Any
) -> None:
    """Keras 2 saves a user's own class Clip by this bare name."""
    own = layer(name, "last", "volume", minimum=0.5)
    line = refused(tmp_path, run, error_line, functional([volume(1), own], "last"), {})
    assert f"layer 'last' is of class {name}; understood are Conv3D, Conv3DTranspose" in line
    assert f" {name}," not in line


def test_options_of_one_convolution(unet: Path, tmp_path: Path, run: Any, error_line: Any) -> None:
    saved(tmp_path / "x.npy", 8, 8, 8)
    job = ["apply", tmp_path / "x.npy", "--axes", "zyx", "-c", unet, "-o", tmp_path / "y.npy"]
    for options in (["--strides", "2"], ["--like", "fsl"], ["--activation", "relu"], ["--seed", 1]):
        line = error_line(run(*job, *options, code=2).stderr)
        assert "a network of 23 nodes" in line, line
    assert "a network of 23 nodes" in error_line(run(*job, "--mask", tmp_path / "x.npy", code=2).stderr)  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Records


def test_a_sidecar_tells_the_graph_and_repeats_it(unet: Path, tmp_path: Path, run: Any) -> None:
    saved(tmp_path / "x.npy", 8, 8, 8)
    run("apply", tmp_path / "x.npy", "--axes", "zyx", "-c", unet, "-o", tmp_path / "y.npy", "--sidecar")  # fmt: skip
    record = json.loads((tmp_path / "y.json").read_text())["Conv3D"]
    layers = {one["Name"]: one for one in record["Layers"]}
    assert layers["a_conv"]["Inputs"] == ["volume"]
    assert layers["pool_a"] == {
        "Name": "pool_a",
        "Inputs": ["a_conv"],
        "Operation": "MaxPooling3D",
        "Arguments": {"pool_size": [2, 2, 2]},
    }
    assert layers["skip_a"]["Inputs"] == ["up_a", "a_conv"]
    assert [file["Role"] for file in record["Inputs"]] == ["volume", "config"]
    run("rerun", tmp_path / "y.json")


def test_explain_tells_the_graph(
    unet: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conv3d_cli.pipeline.blocking.SLAB_BYTES", 1)  # a few planes at a time
    saved(tmp_path / "x.npy", 48, 40, 40)
    job = [tmp_path / "x.npy", "--axes", "zyx", "-c", unet]
    text = run("explain", *job).output
    assert "skip_a, of up_a, a_conv" in text
    assert re.search(r"operation +MaxPooling3D +pool_size 2 -> 24x20x20 with 4 channels", text)
    record = json.loads(run("explain", *job, "--json").output)
    names = [one["name"] for one in record["layers"]]
    assert names[:2] == ["a_conv", "pool_a"]
    assert record["memory_terms"]["skips"] > 0


def test_a_finished_network_is_not_run_again(unet: Path, tmp_path: Path, run: Any) -> None:
    saved(tmp_path / "x.npy", 1, 8, 8, 8, 1)
    job = ["apply", tmp_path / "x.npy", "-c", unet, "-o", tmp_path / "y.npy", "--resume", "--json"]
    assert json.loads(run(*job).stdout)["status"] == "done"
    assert json.loads(run(*job).stdout)["status"] == "skipped"
    write_keras(unet, *networks.unet(widths=(4, 4, 8)))
    again = json.loads(run(*job, "--overwrite").stdout)
    assert again["status"] == "done"


def test_a_batch_of_scans(unet: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        saved(tmp_path / "in" / f"{number}.npy", 1, 8, 8, 12, 1, seed=number)
    run("apply", tmp_path / "in", "-c", unet, "--out-dir", tmp_path / "out")
    for number in range(3):
        x, y = (np.load(tmp_path / folder / f"{number}.npy") for folder in ("in", "out"))
        np.testing.assert_allclose(y[0], evaluated(network_of(unet), x[0]), atol=3e-6)


@pytest.mark.slow
def test_the_forecast_is_above_the_peak_and_not_far(unet: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((96, 96, 96), np.float32))
    command = [sys.executable, "-m", "conv3d_cli"]
    job = [tmp_path / "x.npy", "--axes", "zyx", "-c", unet]
    write_keras(unet, *networks.unet(widths=(16, 16, 16)))
    planned = subprocess.run([*command, "explain", *job, "--json"], capture_output=True, check=True)
    forecast = json.loads(planned.stdout)["memory"]
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "apply", *job, "-o", tmp_path / "y.npy", "-q"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert peak <= forecast <= 2.2 * peak
