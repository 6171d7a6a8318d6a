"""--argmax and --channels: which part of the last output is written, of layers, stacks and networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networks
import nibabel as nib
import numpy as np
import oracle
import pytest
import tifffile
from blocking import in_boxes_of, plane_by_plane
from networks import functional, layer, sequential, volume, write_keras

from conv3d_cli import convolve_file, read_volume
from conv3d_cli.errors import SpecError

Array = np.ndarray[Any, Any]


@pytest.fixture
def cube(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Array:
    """The current folder: x.npy of 2 channels, and the layer k.npy of 2 channels and 5 filters."""
    monkeypatch.chdir(tmp_path)
    x = rng.standard_normal((9, 11, 13, 2)).astype(np.float32)
    np.save("x.npy", x)
    np.save("k.npy", rng.standard_normal((3, 3, 3, 2, 5)).astype(np.float32))
    return x


def scores(x: Array) -> Array:
    """The output of the layer k.npy by its definition."""
    return oracle.conv3d(x[None], np.load("k.npy"))[0]


def labels_agree(labels: Array, values: Array) -> None:
    """Labels are those of the largest of values (d, h, w, c), up to rounding of float32."""
    np.testing.assert_array_equal(labels, values.argmax(-1))


def test_argmax_writes_the_number_of_the_largest_channel(cube: Array, run: Any) -> None:
    run("apply", "x.npy", "-k", "k.npy", "--argmax", "-o", "y.npy", "--verify", 200)
    labels = np.load("y.npy")
    assert labels.dtype == np.uint8
    assert labels.shape == (7, 9, 11)
    labels_agree(labels, scores(cube))
    assert len(np.unique(labels)) == 5


def test_channels_are_written_in_the_order_that_is_given(cube: Array, run: Any) -> None:
    run("apply", "x.npy", "-k", "k.npy", "--channels", "3, 0", "-o", "y.npy", "--verify", 200)
    np.testing.assert_allclose(np.load("y.npy"), scores(cube)[..., [3, 0]], atol=1e-5)


@pytest.mark.parametrize(
    "suffix", [".nii.gz", ".tif", ".nrrd", ".npy", ".ome.zarr", ".mif", ".mha"]
)
@pytest.mark.parametrize("selection", [("--channels", 2), ("--argmax",)])
def test_one_channel_is_a_plain_volume(
    selection: tuple[Any, ...], suffix: str, cube: Array, run: Any
) -> None:
    run("apply", "x.npy", "-k", "k.npy", *selection, "-o", f"y{suffix}")
    found = read_volume(f"y{suffix}")
    assert sorted(found.axes) == ["x", "y", "z"]
    expected = scores(cube)
    expected = expected[..., 2] if "--channels" in selection else expected.argmax(-1)
    array = np.asarray(found.data).transpose([found.axes.index(a) for a in "zyx"])
    np.testing.assert_allclose(array, expected, atol=1e-5)
    assert array.dtype == (np.float32 if "--channels" in selection else np.uint8)


def test_a_series_keeps_the_axis_by_which_an_array_is_read(cube: Array, run: Any) -> None:
    # (t, z, y, x) would be read as (z, y, x, c)
    np.save("series.npy", np.stack([cube, -cube]))
    run("apply", "series.npy", "-k", "k.npy", "--argmax", "-o", "y.npy")
    labels = np.load("y.npy")
    assert labels.shape == (2, 7, 9, 11, 1)
    labels_agree(labels[1, ..., 0], scores(-cube))


def test_rgb_becomes_grey_by_its_channel(cube: Array, run: Any, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 255, (4, 16, 17, 3)).astype(np.uint8)
    tifffile.imwrite("rgb.tif", pixels, photometric="rgb", metadata={"axes": "ZYXS"})
    run("apply", "rgb.tif", "-k", "identity", "--channels", 1, "--dtype", "same", "-o", "green.tif")
    np.testing.assert_array_equal(tifffile.imread("green.tif"), pixels[..., 1])
    run("apply", "rgb.tif", "-k", "identity", "--argmax", "-o", "brightest.tif")
    np.testing.assert_array_equal(tifffile.imread("brightest.tif"), pixels.argmax(-1))


def test_a_stack_has_labels_and_channels_too(cube: Array, run: Any) -> None:
    Path("s.toml").write_text(
        '[[layers]]\nkernel = "k.npy"\nactivation = "relu"\n[[layers]]\nkernel = "box:size=3"\n'
    )
    hidden = np.maximum(scores(cube), 0)
    box = np.zeros((3, 3, 3, 5, 5))
    box[..., range(5), range(5)] = 1 / 27
    expected = oracle.conv3d(hidden[None], box, padding="same", boundary="symmetric")[0]
    run("apply", "x.npy", "-c", "s.toml", "-o", "y.npy", "--argmax", "--verify", 100)
    labels_agree(np.load("y.npy"), expected)
    run("apply", "x.npy", "-c", "s.toml", "-o", "z.npy", "--channels", "4,4,1", "--verify", 100)
    np.testing.assert_allclose(np.load("z.npy"), expected[..., [4, 4, 1]], atol=1e-5)


def test_a_config_may_select(cube: Array, run: Any) -> None:
    Path("c.toml").write_text('kernel = "k.npy"\nchannels = [4, 0]\n')
    run("apply", "x.npy", "-c", "c.toml", "-o", "y.npy")
    np.testing.assert_allclose(np.load("y.npy"), scores(cube)[..., [4, 0]], atol=1e-5)
    Path("m.csv").write_text("input,output,kernel,argmax,channels\nx.npy,l.npy,k.npy,true,\n")
    run("apply", "--manifest", "m.csv")
    labels_agree(np.load("l.npy"), scores(cube))
    convolve_file("x.npy", "p.npy", "k.npy", channels=1)
    np.testing.assert_allclose(np.load("p.npy"), scores(cube)[..., 1], atol=1e-5)
    with pytest.raises(SpecError, match="argmax=True writes one volume of labels"):
        convolve_file("x.npy", "q.npy", "k.npy", channels=1, argmax=True)


def test_a_network_has_labels_and_channels_too(cube: Array, tmp_path: Path, run: Any) -> None:
    pytest.importorskip("h5py")
    # a node of the name that the selection would have
    model = functional(
        [volume(2), layer("Rescaling", "argmax", "volume", scale=-1.0, offset=0.0)], "argmax"
    )
    net = write_keras(tmp_path / "n.keras", model, {})
    run("apply", "x.npy", "-c", net, "-o", "y.npy", "--argmax", "--verify", 100)
    np.testing.assert_array_equal(np.load("y.npy"), (-cube).argmax(-1))
    run("apply", "x.npy", "-c", net, "-o", "z.npy", "--channels", 1, "--verify", 100)
    np.testing.assert_array_equal(np.load("z.npy"), -cube[..., 1])


def test_a_network_in_a_file_that_computes_sizes_may_select(cube: Array, tmp_path: Path, run: Any) -> None:  # fmt: skip
    pytest.importorskip("onnx")
    from graphs import save_graph
    from onnx import helper

    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Neg", ["r"], ["y"]),
    ]
    net = save_graph(tmp_path, nodes, shape=[None, 2, None, None, None])
    np.save("first.npy", np.moveaxis(cube, -1, 0)[None])
    run("apply", "first.npy", "-c", net, "--argmax", "-o", "y.npy")
    labels = np.load("y.npy")
    np.testing.assert_array_equal(labels.reshape(cube.shape[:3]), (-cube).argmax(-1))


def test_a_network_that_ends_with_argmax_writes_labels_by_itself(cube: Array, tmp_path: Path, run: Any) -> None:  # fmt: skip
    pytest.importorskip("onnx")
    from graphs import save_graph
    from onnx import helper

    net = save_graph(
        tmp_path,
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1)],
        shape=[None, 2, None, None, None],
    )
    run("apply", "x.npy", "--axes", "zyxc", "-c", net, "-o", "y.nii")
    image = nib.load("y.nii")
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_intent()[0] == "label"
    np.testing.assert_array_equal(np.asarray(image.dataobj).squeeze().T, cube.argmax(-1))
    refused = run("apply", "x.npy", "--axes", "zyxc", "-c", net, "-o", "z.nii", "--argmax", code=4)
    assert "--argmax finds the largest of several channels, and the output has 1" in refused.stderr


def test_labels_have_the_same_bytes_at_any_memory(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    pytest.importorskip("h5py")
    net = write_keras(tmp_path / "u.keras", *networks.unet())
    np.save(tmp_path / "x.npy", rng.standard_normal((24, 20, 28)).astype(np.float32))
    job = ["apply", tmp_path / "x.npy", "-c", net, "--argmax", "-q"]
    run(*job, "-o", tmp_path / "one.npy", "-j", 1)
    found = (tmp_path / "one.npy").read_bytes()
    for name, choose in (("planes", plane_by_plane), ("boxes", in_boxes_of(8, 12, 16))):
        monkeypatch.setattr("conv3d_cli.pipeline.prepare.choose_blocking", choose)
        run(*job, "-o", tmp_path / f"{name}.npy", "-j", 2)
        assert (tmp_path / f"{name}.npy").read_bytes() == found


def test_many_channels_need_a_wider_dtype(cube: Array, run: Any) -> None:
    for channels, dtype in ((255, np.uint8), (256, np.uint16)):
        x = np.zeros((1, 2, 2, channels), np.float32)
        x[..., -1] = 1
        np.save("many.npy", x)
        run("apply", "many.npy", "-k", "identity", "--argmax", "-o", "y.npy", "--overwrite")
        labels = np.load("y.npy")
        assert labels.dtype == dtype
        assert (labels == channels - 1).all()
    run("apply", "x.npy", "-k", "k.npy", "--argmax", "--dtype", "float64", "-o", "z.npy")
    assert np.load("z.npy").dtype == np.float64


def test_the_first_of_equal_channels_is_taken(cube: Array, run: Any) -> None:
    np.save("flat.npy", np.ones((2, 3, 4, 3), np.float32))
    run("apply", "flat.npy", "-k", "identity", "--argmax", "-o", "y.npy")
    assert not np.load("y.npy").any()


def test_voxels_with_nan_are_counted(cube: Array, run: Any) -> None:
    x = cube.copy()
    x[4, 5, 6, 1] = np.nan
    x[0, 0, 0, 0] = np.inf  # no NaN, although a sum of infinities may be
    x[0, 0, 0, 1] = -np.inf
    np.save("nan.npy", x)
    job = ["apply", "nan.npy", "-k", "identity", "--argmax"]
    told = run(*job, "-o", "y.npy")
    assert "1 voxel had NaN among the channels" in told.stderr.replace("\n", " ")
    labels = np.load("y.npy")
    assert labels[4, 5, 6] == 1
    assert labels[0, 0, 0] == 0
    run(*job, "-o", "z.npy", "--strict", code=4)
    assert not Path("z.npy").exists()
    silent = run("apply", "x.npy", "-k", "identity", "--argmax", "-o", "w.npy")
    assert "NaN" not in silent.stderr


def test_nifti_says_that_voxels_are_labels(scan: Path, tmp_path: Path, run: Any) -> None:
    job = ["apply", scan, "-k", "sobel:axis=xyz"]
    run(*job, "--argmax", "-o", tmp_path / "l.nii")
    assert nib.load(tmp_path / "l.nii").header.get_intent()[0] == "label"
    # and such outputs are left out where a folder is smoothed
    told = run("apply", tmp_path / "l.nii", "-k", "box:size=3", "-o", tmp_path / "s.nii")
    assert nib.load(tmp_path / "s.nii").header.get_intent()[0] == "none"
    assert "labels" in told.stderr
    run(*job, "--channels", "2,0", "-o", tmp_path / "c.nii")
    header = nib.load(tmp_path / "c.nii").header
    assert header.get_intent()[0] == "vector"
    assert header["intent_name"].item() == b"z,x"


def test_channels_keep_their_names(cube: Array, run: Any, rng: np.random.Generator) -> None:
    values = rng.random((3, 4, 5, 6)).astype(np.float32)
    tifffile.imwrite(
        "c.ome.tif", values, metadata={"axes": "CZYX", "Channel": {"Name": ["a", "b", "c"]}}
    )
    run("apply", "c.ome.tif", "-k", "box:size=3", "--channels", "2,1", "-o", "y.ome.zarr")
    attributes = json.loads(Path("y.ome.zarr/zarr.json").read_text())["attributes"]
    assert [c["label"] for c in attributes["ome"]["omero"]["channels"]] == ["c", "b"]


def test_the_sidecar_and_its_command_tell_the_selection(cube: Array, run: Any) -> None:
    run("apply", "x.npy", "-k", "k.npy", "--argmax", "-o", "y.nii.gz", "--sidecar")
    record = json.loads(Path("y.json").read_text())
    assert record["Description"] == "Convolved with k.npy, then argmax"
    assert "--argmax" in record["Conv3D"]["Command"]
    assert record["Conv3D"]["Layers"][1]["Operation"] == "ArgMax"
    run("rerun", "y.json")
    run("apply", "x.npy", "-k", "k.npy", "--channels", "1,0", "-o", "z.npy", "--sidecar")
    record = json.loads(Path("z.json").read_text())
    assert record["Conv3D"]["Layers"][1]["Arguments"] == {"channels": [1, 0]}
    assert "--channels 1,0" in record["Conv3D"]["Command"]
    run("rerun", "z.json")


def test_explain_tells_the_selection(cube: Array, run: Any) -> None:
    told = run("explain", "x.npy", "-k", "k.npy", "--argmax").output
    assert "ArgMax -> 7x9x11 with 1 channel" in told
    assert "zyx 7x9x11 uint8" in told
    assert "layer 1    of the volume" in told
    told = run("explain", "x.npy", "-k", "k.npy", "--channels", "1,1,1").output
    assert "TakeChannels  channels [1, 1, 1] -> 7x9x11 with 3 channels" in told
    told = run("explain", "x.npy", "-k", "k.npy", "--channels", "4,3,2,1,0").output
    assert "TakeChannels  channels [4, 3, 2, 1, ...] -> 7x9x11 with 5 channels" in told


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--channels", 5], 4, "--channels 5: the output has channels 0 to 4"),
        (["--channels", -1], 2, "whole numbers, counted from 0"),
        (["--channels", "1,,2"], 2, "as in --channels 1,2; received '1,,2'"),
        (["--channels", ""], 2, "received ''"),
        (["--channels", "0", "--argmax"], 2, "leave one of them out"),
        (["--argmax", "--scale", "auto", "--dtype", "int16"], 2, "stored as they are"),
        (["--argmax", "--mask", "x.npy"], 2, "--argmax does not go with a mask"),
        (["--channels", "1", "--nan", "ignore"], 2, "--channels 1 does not go with a mask"),
        (["--channels", "1", "--missing", 0], 2, "--channels 1 does not go with a mask"),
    ],
)
def test_wrong_selections_are_refused(
    options: list[Any], code: int, words: str, cube: Array, run: Any, error_line: Any
) -> None:
    result = run("apply", "x.npy", "-k", "k.npy", "-o", "y.nii", *options, code=code)
    assert words in error_line(result.stderr)
    assert not Path("y.nii").exists()


@pytest.mark.parametrize(("channels", "held"), [(1, "channel 0 only"), (3, "channels 0 to 2")])
def test_a_channel_that_a_network_lacks_is_refused(
    channels: int, held: str, tmp_path: Path, run: Any, error_line: Any
) -> None:
    pool = {"class_name": "MaxPooling3D", "config": {"name": "pool", "pool_size": 2}}
    (tmp_path / "m.json").write_text(json.dumps(pool))
    np.save(tmp_path / "x.npy", np.zeros((4, 4, 4, channels), np.float32))
    job = ["apply", tmp_path / "x.npy", "-c", tmp_path / "m.json", "-o", tmp_path / "y.npy"]
    line = error_line(run(*job, "--channels", channels, code=4).stderr)
    assert f"takes channel {channels}, and its input has {held}" in line


def test_one_channel_has_no_labels(scan: Path, tmp_path: Path, run: Any, error_line: Any) -> None:
    out = tmp_path / "y.nii"
    result = run("apply", scan, "-k", "box:size=3", "--argmax", "-o", out, code=4)
    assert "finds the largest of several channels, and the output has 1" in error_line(
        result.stderr
    )
    result = run("apply", scan, "-k", "box:size=3", "--channels", 1, "-o", out, code=4)
    assert "--channels 1: the output has channel 0 only" in error_line(result.stderr)
    result = run("apply", scan, "--to-fwhm", "12mm", "--channels", 0, "-o", out, code=2)
    assert "leave out --channels 0" in error_line(result.stderr)


def test_a_chain_of_keras_layers_may_select(cube: Array, tmp_path: Path, run: Any) -> None:
    pytest.importorskip("h5py")
    weights = np.load("k.npy")
    conv = layer("Conv3D", "c", filters=5, kernel_size=[3, 3, 3], padding="valid", use_bias=False)
    net = write_keras(tmp_path / "s.keras", sequential([volume(2), conv]), {"c": [weights]})
    run("apply", "x.npy", "-c", net, "--argmax", "-o", "y.npy", "--verify", 50)
    labels_agree(np.load("y.npy"), scores(cube))


def test_a_cluster_writes_the_same_labels(cube: Array, run: Any) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("zarr")
    x = cube.copy()
    x[4, 5, 6, 1] = np.nan
    np.save("nan.npy", x)
    run("apply", "nan.npy", "-k", "identity", "-o", "x.ome.zarr", "--chunks", 4)
    job = ["apply", "x.ome.zarr", "-k", "k.npy", "--argmax"]
    here = run(*job, "-o", "y.ome.zarr")
    there = run(*job, "-o", "z.ome.zarr", "--scheduler", "local:1")
    for told in (here, there):
        assert "27 voxels had NaN among the channels" in told.stderr.replace("\n", " ")
    np.testing.assert_array_equal(read_volume("y.ome.zarr").data, read_volume("z.ome.zarr").data)


@pytest.fixture
def heads(cube: Array, tmp_path: Path) -> Path:
    """A model of two outputs, one of which another layer is needed for."""
    pytest.importorskip("h5py")
    layers = [
        volume(2),
        layer("Rescaling", "twice", "volume", scale=2.0, offset=0.0),
        layer("MaxPooling3D", "large", "twice", pool_size=[2, 2, 2], padding="valid"),
        layer("Activation", "positive", "large", activation="relu"),
    ]
    return write_keras(tmp_path / "h.keras", functional(layers, "twice", "positive"), {})


def test_one_of_several_outputs_is_written_by_its_name(heads: Path, cube: Array, run: Any) -> None:
    told = run("apply", "x.npy", "-c", heads, "--output-name", "twice", "-o", "y.npy", "--sidecar")
    np.testing.assert_array_equal(np.load("y.npy"), 2 * cube)
    assert "2 nodes of the network are left out, which no output needs" in told.stderr
    record = json.loads(Path("y.json").read_text())
    assert record["Description"] == "Convolved with the network h.keras (output twice)"
    run("rerun", "y.json")
    job = ["apply", "x.npy", "-c", heads, "--output-name", "positive"]
    told = run(*job, "--argmax", "-o", "z.npy", "--verify", 30)
    pooled = 2 * cube[:8, :10, :12].reshape(4, 2, 5, 2, 6, 2, 2).max((1, 3, 5))
    np.testing.assert_array_equal(np.load("z.npy"), np.maximum(pooled, 0).argmax(-1))
    assert "left out" not in told.stderr


def test_several_outputs_are_refused_with_their_names(
    heads: Path, cube: Array, run: Any, error_line: Any
) -> None:
    result = run("apply", "x.npy", "-c", heads, "-o", "y.npy", code=2)
    line = error_line(result.stderr)
    assert "has 2 outputs, twice, positive" in line
    assert line.endswith("as by --output-name twice")
    result = run("apply", "x.npy", "-c", heads, "--output-name", "twyce", "-o", "y.npy", code=2)
    line = error_line(result.stderr)
    assert "no such output, but twice, positive; did you mean 'twice'?" in line
    result = run("apply", "x.npy", "-k", "k.npy", "--output-name", "twice", "-o", "y.npy", code=2)
    assert "is for networks with several outputs" in error_line(result.stderr)
    assert not Path("y.npy").exists()


def test_an_output_of_an_onnx_graph_is_chosen(cube: Array, tmp_path: Path, run: Any) -> None:
    pytest.importorskip("onnx")
    from graphs import save_graph
    from onnx import helper

    nodes = [
        helper.make_node("Neg", ["x"], ["low"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["low", "s"], ["again"]),
        helper.make_node("Relu", ["again"], ["high"]),
    ]
    net = save_graph(tmp_path, nodes, shape=[None, 2, None, None, None], outputs=["low", "high"])
    job = ["apply", "x.npy", "--axes", "zyxc", "-c", net]
    run(*job, "--output-name", "high", "-o", "y.npy")
    np.testing.assert_array_equal(np.load("y.npy"), np.maximum(-cube, 0))
    run(*job, "--output-name", "low", "--channels", 1, "-o", "z.npy")
    np.testing.assert_array_equal(np.load("z.npy"), -cube[..., 1])


# ---------------------------------------------------------------------------------------------------------------------
# Names of labels

NAMES = {"0": "background", "1": "grey matter", "3": "csf"}
FILES = {
    "n.json": json.dumps(NAMES),
    "list.json": '["background", "grey matter", "white matter", "csf", "other"]',
    "dseg.tsv": "\ufeffindex\tname\tcolor\n0\tbackground\t#000\n1\tgrey matter\t#111\n3\tcsf\t#222\n",
    "crlf.tsv": "name\tindex\r\nbackground\t0\r\ngrey matter\t1\r\ncsf\t3\r\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_sidecar_has_the_names_of_labels(name: str, cube: Array, run: Any) -> None:
    Path(name).write_text(FILES[name], encoding="utf-8", newline="")
    job = ["apply", "x.npy", "-k", "k.npy", "--argmax", "--label-names", name]
    told = run(*job, "-o", "y.nii.gz", "--sidecar").stderr.replace("\n", " ")
    record = json.loads(Path("y.json").read_text())["Conv3D"]
    expected = dict(zip("01234", json.loads(FILES[name]), strict=True)) if "list" in name else NAMES
    assert record["Output"]["Labels"] == expected
    assert {"label names"} <= {one["Role"] for one in record["Inputs"]}
    assert (f"{name} has no name for labels 2, 4" in told) == ("list" not in name)
    run("rerun", "y.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"7": "x"}', "names label 7, and the labels of the output are 0 to 4"),
        ('{"0": "x", "0": "y"}', "label 0 has two names"),
        ('{"0": "x", "00": "y"}', "label 0 has two names"),
        ('{"-1": "x"}', "a whole number from 0, received '-1'"),
        ('{"0": {"name": "x"}}', "label 0 has no name"),
        ('{"0": ""}', "label 0 has no name"),
        ("[]", "it names no label"),
        ("{", "it is not valid JSON"),
        ("1\tbackground\n", "no columns index and name"),
        ("index\tname\n0\n", "row 2 has 1 of 2 columns"),
        ("index\tname\n", "it names no label"),
        ("index\tname\n0\t" + "x" * 140_000, "it is no table"),
        ("index\tname\n1.5\tx\n", "received '1.5'"),
    ],
)
def test_wrong_names_of_labels_are_refused(
    text: str, words: str, cube: Array, run: Any, error_line: Any
) -> None:
    Path("names").write_text(text)
    job = ["apply", "x.npy", "-k", "k.npy", "--argmax", "--label-names", "names", "-o", "y.nii"]
    line = error_line(run(*job, code=4 if "to 4" in words else 3).stderr)
    assert words in line
    assert "names" in line
    assert not Path("y.nii").exists()


def test_names_are_for_labels(cube: Array, run: Any, error_line: Any, tmp_path: Path) -> None:
    Path("n.json").write_text('{"0": "x", "1": "y"}')
    job = ["apply", "x.npy", "--label-names", "n.json", "-o", "y.npy"]
    line = error_line(run(*job, "-k", "k.npy", code=2).stderr)
    assert "--label-names n.json is for labels: pass --argmax, too" in line
    assert "no such file" in error_line(
        run("apply", "x.npy", "-k", "k.npy", "--argmax", "--label-names", "m.json", "-o", "y.npy", code=3).stderr
    )  # fmt: skip
    pytest.importorskip("h5py")
    model = functional([volume(2), layer("Rescaling", "r", "volume", scale=1.0)], "r")
    net = write_keras(tmp_path / "n.keras", model, {})
    assert "the network gives none" in error_line(run(*job, "-c", net, code=2).stderr)
    # a file beside the config, and an output that would replace it
    Path("sub").mkdir()
    Path("n.json").rename("sub/n.json")
    np.save("sub/k.npy", np.load("k.npy")[..., :2])
    Path("sub/c.toml").write_text('kernel = "k.npy"\nargmax = true\nlabel_names = "n.json"\n')
    run("apply", "x.npy", "-c", "sub/c.toml", "-o", "z.npy", "--sidecar")
    assert json.loads(Path("z.json").read_text())["Conv3D"]["Output"]["Labels"] == {
        "0": "x",
        "1": "y",
    }


def test_resume_sees_other_names(cube: Array, run: Any) -> None:
    Path("n.json").write_text('{"0": "x"}')
    job = ["apply", "x.npy", "-k", "k.npy", "--argmax", "--label-names", "n.json", "-o", "y.npy", "--resume"]  # fmt: skip
    run(*job)
    made = Path("y.npy").stat().st_ino
    run(*job)
    assert Path("y.npy").stat().st_ino == made
    Path("n.json").write_text('{"0": "y"}')
    run(*job, "--overwrite")
    assert Path("y.npy").stat().st_ino != made


# ---------------------------------------------------------------------------------------------------------------------
# A BIDS dataset


def test_labels_have_the_suffix_dseg_in_a_dataset(scan: Path, tmp_path: Path, monkeypatch: Any, run: Any) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("raw/sub-01/func").mkdir(parents=True)
    name = "raw/sub-01/func/sub-01_task-rest_bold.nii"
    scan.rename(name)
    Path("raw/dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.9.0"}')
    Path("a.toml").write_text('kernel = "sobel:axis=xyz"\nargmax = true\n')
    Path("m.csv").write_text(f"input,kernel,argmax\n{name},sobel:axis=xyz,true\n")
    for number, job in enumerate((
        [name, "-k", "sobel:axis=xyz", "--argmax"], [name, "-c", "a.toml"], ["--manifest", "m.csv"],
    )):  # fmt: skip
        run("apply", *job, "--bids", "--desc", "x", "--out-dir", f"out{number}")
        assert sorted(path.name for path in Path(f"out{number}/sub-01/func").iterdir()) == [
            "sub-01_task-rest_desc-x_dseg.json", "sub-01_task-rest_desc-x_dseg.nii",
        ]  # fmt: skip
    run("apply", name, "-k", "sobel:axis=xyz", "--bids", "--desc", "x", "--out-dir", "out")
    assert Path("out/sub-01/func/sub-01_task-rest_desc-x_bold.nii").exists()
