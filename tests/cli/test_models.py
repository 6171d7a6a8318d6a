"""Whole saved models from the command line: a `.keras` file of real Keras on a scan gives Keras'
own output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

MODELS = Path(__file__).parent.parent / "data" / "models"


@pytest.fixture
def golden() -> Any:
    with np.load(MODELS / "small.npz") as file:
        return dict(file)


@pytest.fixture
def scan(tmp_path: Path, golden: Any) -> Path:
    """The model's input as a NIfTI volume: D, H, W are k, j, i."""
    path = tmp_path / "scan.nii.gz"
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(golden["x"][0, ..., 0].transpose(2, 1, 0), affine), path)
    return path


def test_a_saved_model_on_a_scan(run: Any, tmp_path: Path, scan: Path, golden: Any) -> None:
    """Two Conv3D layers, a dropout, a leaky ReLU and a softmax, in one pass over the file."""
    result = run(
        "apply", scan, "-c", MODELS / "small.keras", "-o", tmp_path / "out.nii.gz", "--json"
    )
    out = nib.load(tmp_path / "out.nii.gz")
    got = out.get_fdata()[:, :, :, 0].transpose(2, 1, 0, 3)
    np.testing.assert_allclose(got, golden["y"][0], rtol=0, atol=1e-6)  # of a softmax
    # The first layer keeps D and W and halves H from voxel 0.5; the second takes 2, 1, 1 voxels off
    # its ends.
    np.testing.assert_allclose(np.diag(out.affine)[:3], [2, 4, 3], atol=1e-6)
    np.testing.assert_allclose(out.affine[:3, 3], [2 * 1, 2 * (0.5 + 2 * 1), 3 * 2], atol=1e-5)
    assert json.loads(result.stdout)["losses"]["mix.kernel"] == pytest.approx(
        float(golden["losses"][0]), rel=1e-6
    )


def test_layer_by_layer_is_the_same(run: Any, tmp_path: Path, scan: Path, golden: Any) -> None:
    """FILE::NAME takes strides, padding, groups, dilation and activation from the file."""
    model = MODELS / "small.keras"
    run("apply", scan, "-k", f"{model}::edges", "-o", tmp_path / "a.npy")
    run(
        "apply",
        tmp_path / "a.npy",
        "-k",
        f"{model}::mix",
        "--activation",
        "leaky_relu:negative_slope=0.1",
        "-o",
        tmp_path / "b.npy",
    )
    logits = np.load(tmp_path / "b.npy")
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        expected.reshape(golden["y"][0].shape), golden["y"][0], rtol=1e-5, atol=1e-6
    )


def test_a_models_json_draws_weights_by_seed(run: Any, tmp_path: Path, scan: Path) -> None:
    """`model.to_json()` has no weights: they are drawn by the layers' initializers, the same in
    each run.
    """
    for name, options in (("a", []), ("b", []), ("c", ["--seed", 5]), ("d", ["--seed", 5])):
        result = run(
            "apply", scan, "-c", MODELS / "small.json", "-o", tmp_path / f"{name}.npy", *options
        )
        assert ("seed 0" in result.stderr) == (not options)
    a, b, c, d = (np.load(tmp_path / f"{name}.npy") for name in "abcd")
    assert a.shape == (5, 3, 6, 4)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, d)
    assert (a != c).any()


def test_a_model_is_not_a_kernel(run: Any, error_line: Any, tmp_path: Path, scan: Path) -> None:
    result = run("apply", scan, "-k", MODELS / "small.keras", "-o", tmp_path / "a.npy", code=2)
    message = error_line(result.stderr)
    assert "edges" in message
    assert "mix" in message
    assert "-c" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kernel-initializer", "glorot"], "did you mean 'glorot"),
        (["--kernel-regularizer", "l3"], "l2"),
        (["--kernel-constraint", "maxnrm"], "max"),
        (["--kernel-regularizer", "{bad"], "JSON"),
        (["--filters", "2"], "no kernel"),
        (["--seed", "x"], "seed"),
    ],
    ids=str,
)
def test_bad_layer_options(
    run: Any, error_line: Any, tmp_path: Path, scan: Path, options: list[str], words: str
) -> None:
    kernel = [] if "--filters" in options else ["-k", "identity"]
    result = run("apply", scan, *kernel, *options, "-o", tmp_path / "a.npy", code=2)
    assert words in error_line(result.stderr)
