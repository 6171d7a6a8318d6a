"""Stacks of layers in one pass: the same as one layer after another, whatever the format, boundary, strides and slab."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import oracle
import pytest

from conv3d_cli import Conv3D, conv3d

STACK = """
[[layers]]
kernel = "a.npy"
padding = "same"
boundary = "{boundary}"
strides = {strides}
activation = "relu"
bias = [0.5, -0.5, 0.1]

[[layers]]
kernel = "b.npz"
padding = "{padding}"
boundary = "nearest"
activation = "tanh"

[[layers]]
kernel = "gaussian:sigma=0.7vox"
"""


def stack(
    folder: Path, rng: np.random.Generator, channels: int = 1, **values: Any
) -> tuple[Path, list[np.ndarray]]:
    """A config of two layers and a filter, with its kernels."""
    a, b = rng.standard_normal((3, 2, 3, channels, 3)), rng.standard_normal((2, 3, 3, 3, 2))
    np.save(folder / "a.npy", a)
    np.savez(folder / "b.npz", kernel=b, bias=[0.2, -0.1])
    config = folder / "stack.toml"
    config.write_text(
        STACK.format(**{"boundary": "zeros", "strides": 1, "padding": "valid", **values})
    )
    return config, [a, b]


def one_after_another(
    x: np.ndarray, kernels: list[np.ndarray], boundary: str, strides: int, padding: str
) -> np.ndarray:
    """The stack by the float64 oracle."""
    same = {"padding": "same", "boundary": boundary, "strides": (strides,) * 3}
    y = np.maximum(oracle.conv3d(x, kernels[0], np.array([0.5, -0.5, 0.1]), **same), 0)
    y = np.tanh(
        oracle.conv3d(y, kernels[1], np.array([0.2, -0.1]), padding=padding, boundary="nearest")
    )
    radius = int(4 * 0.7 + 0.5)
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 0.7) ** 2)
    line /= line.sum()
    gauss = np.zeros((*(line.size,) * 3, 1, 2))
    gauss[...] = np.einsum("i,j,k->ijk", line, line, line)[..., None, None]
    return oracle.conv3d(y, gauss, padding="same", boundary="symmetric", groups=2)


@pytest.mark.parametrize("boundary", ["zeros", "symmetric", "wrap"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["valid", "full"])
def test_a_stack_is_its_layers_in_turn(
    tmp_path: Path, rng: np.random.Generator, boundary: str, strides: int, padding: str, run: Any
) -> None:
    x = rng.standard_normal((2, 9, 7, 8, 1)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    config, kernels = stack(tmp_path, rng, boundary=boundary, strides=strides, padding=padding)
    run("apply", tmp_path / "x.npy", "-c", config, "-o", tmp_path / "y.npy")
    expected = one_after_another(x, kernels, boundary, strides, padding)
    got = np.load(tmp_path / "y.npy")
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=3e-5)


def test_bits_do_not_depend_on_threads_and_memory(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    np.save(tmp_path / "x.npy", rng.standard_normal((1, 60, 70, 80, 1)).astype(np.float32))
    config, _ = stack(tmp_path, rng)
    run("apply", tmp_path / "x.npy", "-c", config, "-o", tmp_path / "one.npy", "-j", 1)
    arguments = [
        "apply",
        str(tmp_path / "x.npy"),
        "-c",
        str(config),
        "-o",
        str(tmp_path / "two.npy"),
        "-j",
        "3",
    ]
    refused = run(*arguments, "--max-memory", "1M", code=6)
    least = re.search(r"--max-memory (\d+M)", refused.output)
    assert least, refused.output
    run("apply", *arguments[1:], "--max-memory", least[1])  # so that slabs are as thin as can be
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


def test_a_scan_through_a_stack_keeps_its_place(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    """The affine after two layers is that of both voxel transforms in turn; a stream is read once, forward."""
    affine = np.array([[2, 0.1, 0, -9], [-0.1, 2, 0, 5], [0, 0, 3, 1], [0, 0, 0, 1.0]])
    x = rng.standard_normal((10, 9, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(x, affine), tmp_path / "x.nii.gz")
    config = tmp_path / "c.json"
    layer = {"kernel": np.ones((3, 3, 3, 1, 1)).tolist(), "padding": "same", "strides": 2}
    config.write_text(json.dumps([layer, {**layer, "strides": 1, "padding": "valid"}]))
    result = run("apply", tmp_path / "x.nii.gz", "-c", config, "-o", tmp_path / "y.nii.gz", "-v")
    assert "layer 2" in result.stderr
    out = nib.load(tmp_path / "y.nii.gz")
    assert out.shape[:3] == (3, 3, 4)
    # even sizes start one voxel in, then the valid layer one step of two
    offset = np.array([1 + 2, 0 + 2, 1 + 2, 1])
    np.testing.assert_allclose(out.affine[:3, 3], affine[:3] @ offset, atol=1e-5)
    ones = np.ones((3, 3, 3, 1, 1))
    y = oracle.conv3d(
        x.transpose(2, 1, 0)[None, ..., None], ones, padding="same", strides=(2, 2, 2)
    )
    expected = oracle.conv3d(y, ones)[0, ..., 0].transpose(2, 1, 0)
    np.testing.assert_allclose(out.get_fdata().reshape(expected.shape), expected, atol=1e-3)


def test_softmax_runs_over_channels_or_width_as_in_keras(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    x = rng.standard_normal((1, 4, 5, 6, 2)).astype(np.float32)
    k = rng.standard_normal((1, 3, 3, 2, 4))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "f.npy", x.transpose(0, 4, 1, 2, 3))
    np.save(tmp_path / "k.npy", k)
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "k.npy",
        "--activation",
        "softmax",
        "-o",
        tmp_path / "y.npy",
    )
    y = oracle.conv3d(x, k)
    expected = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    run("apply", tmp_path / "f.npy", "-k", tmp_path / "k.npy", "--activation", "softmax", "--data-format", "channels_first", "-o",
          tmp_path / "g.npy")  # fmt: skip
    y = y.transpose(0, 4, 1, 2, 3)
    expected = np.exp(y) / np.exp(y).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), expected, atol=1e-5)
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "k.npy",
        "--activation",
        "softmax",
        "--dtype",
        "uint8",
        "-o",
        tmp_path / "u.npy",
    )
    assert set(np.unique(np.load(tmp_path / "u.npy"))) <= {0, 1}


def test_glu_halves_the_channels(tmp_path: Path, rng: np.random.Generator, run: Any) -> None:
    x = rng.standard_normal((1, 4, 5, 6, 2)).astype(np.float32)
    k = rng.standard_normal((1, 1, 1, 2, 4))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "k.npy", k)
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "k.npy",
        "--activation",
        "glu",
        "-o",
        tmp_path / "y.npy",
    )
    y = oracle.conv3d(x, k)
    expected = y[..., :2] / (1 + np.exp(-y[..., 2:]))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    np.testing.assert_allclose(conv3d(x, k, activation="glu"), expected, atol=1e-5)
    np.save(tmp_path / "odd.npy", k[..., :3])
    result = run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "odd.npy",
        "--activation",
        "glu",
        "-o",
        tmp_path / "z.npy",
        code=4,
    )
    assert "odd" in result.stderr


@pytest.mark.parametrize("activation", ["softmax", "glu"])
def test_a_filter_with_a_whole_axis_activation_sees_all_channels(
    tmp_path: Path, rng: np.random.Generator, activation: str, run: Any
) -> None:
    """Also where the channels of a file lie one after another and would be streamed one by one."""
    x = rng.standard_normal((4, 5, 6, 7)).astype(np.float32)  # c z y x
    np.save(tmp_path / "x.npy", x)
    nib.save(
        nib.Nifti1Image(x.transpose(3, 2, 1, 0)[:, :, :, None], np.eye(4)), tmp_path / "x.nii.gz"
    )
    expected = np.moveaxis(
        Conv3D(1, 1, activation=activation).activation(np.moveaxis(x, 0, -1)), -1, 0
    )
    options = ["-k", "identity", "--activation", activation]
    run("apply", tmp_path / "x.npy", "--axes", "czyx", *options, "-o", tmp_path / "y.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-6)
    run("apply", tmp_path / "x.nii.gz", *options, "-o", tmp_path / "y.nii.gz")
    got = nib.load(tmp_path / "y.nii.gz").get_fdata()[:, :, :, 0].transpose(3, 2, 1, 0)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_what_cannot_be_streamed_is_refused(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    np.save(tmp_path / "x.npy", rng.standard_normal((4, 5, 6)).astype(np.float32))
    arguments = [tmp_path / "x.npy", "-k", "identity", "-o", tmp_path / "y.npy"]
    assert "last axis" in run("apply", *arguments, "--activation", "softmax:axis=1", code=2).stderr
    assert (
        "plain sum"
        in run(
            "apply", *arguments, "--activity-regularizer", "orthogonal_regularizer", code=2
        ).stderr
    )


def test_losses_constraints_and_initializers(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    x = rng.standard_normal((3, 5, 5, 5, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--filters", 4, "--kernel-size", 3, "--seed", 7, "--kernel-regularizer", "l2", "--activity-regularizer",
               '{"class_name": "L1", "config": {"l1": 0.5}}', "--kernel-constraint", "non_neg", "--json"]  # fmt: skip
    result = run("apply", tmp_path / "x.npy", *options, "-o", tmp_path / "y.npy")
    record = json.loads(result.stdout)
    y = np.load(tmp_path / "y.npy")
    assert y.shape == (3, 3, 3, 3, 4)
    assert record["losses"]["activity"] == pytest.approx(
        0.5 * np.abs(y.astype(float)).sum() / 3, rel=1e-6
    )
    kernel = np.maximum(Conv3D(4, 3, seed=7, input_shape=(5, 5, 5, 2)).get_weights()[0], 0)
    np.testing.assert_allclose(y, oracle.conv3d(x, kernel), atol=1e-5)
    assert record["losses"]["kernel"] == pytest.approx(
        0.01 * (kernel.astype(float) ** 2).sum(), rel=1e-6
    )
    assert "non_neg applied" in result.stderr
    run("apply", tmp_path / "x.npy", *options, "-o", tmp_path / "z.npy")
    assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "z.npy").read_bytes()


def test_wrong_stacks(tmp_path: Path, rng: np.random.Generator, run: Any) -> None:
    np.save(tmp_path / "x.npy", rng.standard_normal((5, 5, 5)).astype(np.float32))
    config, _ = stack(tmp_path, rng)
    out = tmp_path / "y.npy"
    assert (
        "stack of 3 layers"
        in run("apply", tmp_path / "x.npy", "-c", config, "--strides", 2, "-o", out, code=2).stderr
    )
    (tmp_path / "b.json").write_text(
        json.dumps([{"kernel": "a.npy"}, {"kernel": "a.npy", "padding": "same"}])
    )
    message = run("apply", tmp_path / "x.npy", "-c", tmp_path / "b.json", "-o", out, code=4).stderr
    assert "layer 2" in message
    (tmp_path / "c.toml").write_text("[[layers]]\nkernel = 'a.npy'\nstride = 2\n")
    assert (
        "unknown key 'stride'; write 'strides'"
        in run("apply", tmp_path / "x.npy", "-c", tmp_path / "c.toml", "-o", out, code=2).stderr
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "boundaries", [("zeros", "renormalize"), ("renormalize", "zeros"), ("renormalize",) * 2]
)
def test_min_coverage_is_obeyed_by_every_layer(
    boundaries: tuple[str, str], tmp_path: Path, run: Any, rng: np.random.Generator
) -> None:
    """Counted by SciPy: where less than half of a box lies inside, a mean becomes NaN."""
    ndimage = pytest.importorskip("scipy.ndimage")
    x = rng.random((5, 6, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    layer = '[[layers]]\nkernel = "box:size=3"\nboundary = "{}"\n'
    (tmp_path / "c.toml").write_text("".join(map(layer.format, boundaries)))
    options = ("-c", tmp_path / "c.toml", "--min-coverage", "0.5", "-o", tmp_path / "o.npy")
    told = run("apply", tmp_path / "x.npy", *options).stderr
    box = np.full((3, 3, 3), 1 / 27)
    inside = ndimage.convolve(np.ones(x.shape), box, mode="constant")
    expected = x.astype(float)
    for boundary in boundaries:
        expected = ndimage.convolve(expected, box, mode="constant")
        if boundary == "renormalize":
            expected = np.where(inside < 0.5, np.nan, expected / inside)
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), expected, rtol=1e-5)
    assert "had too little of the kernel's weight" in told
