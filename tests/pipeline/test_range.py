"""Numbers that float32 cannot hold: refused with the cure wherever a user gives them, or computed in the range there is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli import Kernel, conv3d
from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.layer import get_constraint

X = np.random.default_rng(0).uniform(0.5, 1, (12, 13, 14)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "k.npy", np.full((3, 3, 3), -1e300))
    np.save(tmp_path / "small.npy", np.full((3, 3, 3), 1e-46))
    np.savez(tmp_path / "layer.npz", kernel=np.full((3, 3, 3, 1, 2), 1e39), bias=np.zeros(2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("-k k.npy", "kernel k.npy has weights of up to 1e+300"),
        ("-k k.npy --flip", "kernel k.npy"),
        ("-k small.npy", "kernel small.npy has weights of 1e-46 at most"),
        ("-k layer.npz", "kernel layer.npz has weights of up to 1e+39"),
        ("-k expr:formula=1e300*x**2:radius=1vox", "1e+300"),
        ("-k box:size=3 --bias 1e300", "the bias, with 1e+300, is beyond float32"),
        ("-k box:size=3 --boundary constant=-1e300", "boundary constant=-1e+300 is beyond float32"),
        ("-k box:size=3 --activation leaky_relu:negative_slope=1e300", "negative_slope of activation leaky_relu is beyond"),
        ("-k box:size=3 --activation elu:alpha=1e39", "alpha of activation elu"),
        ("-k box:size=3 --activation threshold:threshold=1:default_value=1e39", "default_value of activation threshold"),
    ],
)  # fmt: skip
def test_what_float32_cannot_hold_is_refused(
    folder: Path, options: str, words: str, run: Any
) -> None:
    text = run(*f"apply x.npy {options} -o o.npy".split(), code=2).stderr
    assert words in text
    assert "--precision float64 --dtype float64" in text
    assert len(text.splitlines()) == 1
    assert not (folder / "o.npy").exists()
    run(*f"apply x.npy {options} --precision float64 --dtype float64 -o o.npy".split())
    assert np.isfinite(np.load(folder / "o.npy")).all()


@pytest.mark.parametrize("what", ["kernel", "bias"])
def test_what_initializers_draw_is_finite(folder: Path, what: str, run: Any) -> None:
    options = f"--{what}-initializer random_normal:stddev=1e60 --kernel-size 3 --filters 2 --seed 1"
    text = run(*f"apply x.npy {options} -o o.npy".split(), code=2).stderr
    assert f"{what}_initializer random_normal:stddev=1e60 gives numbers beyond float32" in text


def test_the_cure_computes_it(folder: Path, run: Any) -> None:
    run(
        "apply",
        "x.npy",
        "-k",
        "k.npy",
        "--precision",
        "float64",
        "--dtype",
        "float64",
        "-o",
        "o.npy",
    )
    expected = (
        ndimage.correlate(X.astype(np.float64), np.full((3, 3, 3), -1.0), mode="reflect") * 1e300
    )
    np.testing.assert_allclose(np.load(folder / "o.npy"), expected, rtol=1e-13)


def test_in_python(folder: Path) -> None:
    with pytest.raises(SpecError, match="float64 arrays"):
        conv3d(X, np.full((3, 3, 3), 1e300))
    with pytest.raises(SpecError, match="alpha of activation elu"):
        conv3d(X, np.ones((3, 3, 3)), activation="elu:alpha=1e300")
    found = conv3d(X.astype(np.float64), np.full((3, 3, 3), 1e300))
    assert np.isfinite(found).all()


def test_infinity_is_no_limit(folder: Path, run: Any) -> None:
    """It is held by float32 as it is."""
    run("apply", "x.npy", "-k", "box:size=3", "--activation", "relu:max_value=inf", "-o", "o.npy")
    run("apply", "x.npy", "-k", "box:size=3", "-o", "plain.npy")
    np.testing.assert_array_equal(np.load("o.npy"), np.load("plain.npy"))


def test_subnormal_weights_that_float32_holds_are_taken() -> None:
    """As of a layer that has died: they lose nothing."""
    weights = np.full((3, 3, 3), np.float32(1e-40))
    x = X * np.float32(1e10)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3, 3))
    expected = (windows * weights.astype(np.float64)).sum(axis=(3, 4, 5))
    np.testing.assert_allclose(conv3d(x, weights, algorithm="direct"), expected, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["auto", "direct", "channels", "separable"])
@pytest.mark.parametrize("size", [(3, 3, 3), (5, 5, 5)])
@pytest.mark.parametrize("largest", [1e35, 1e38, 3.4e38])
def test_large_weights_overflow_nowhere(
    algorithm: str, size: tuple[int, int, int], largest: float
) -> None:
    """Products of outer factors whose sums stay within float32: each algorithm is right, or declines."""
    line = np.hanning(size[0] + 2)[1:-1]
    weights = largest * np.einsum("i,j,k->ijk", line, line, line) / line.max() ** 3
    x = X / np.float32(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if algorithm == "separable" and largest > 1e35:
            with pytest.raises(ShapeError, match=r"a factor of them, .*, overflows float32"):
                conv3d(x, weights, padding="same", algorithm=algorithm)
            return
        found = conv3d(x, weights, padding="same", algorithm=algorithm)
    expected = ndimage.correlate(x.astype(np.float64), weights, mode="constant")
    assert expected.max() < np.finfo(np.float32).max
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1.7e308, 1e-310])
def test_sums_beyond_float64_are_normalized(size: float) -> None:
    """And means are taken with such weights."""
    weights = np.full((3, 3, 3), size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(Kernel(weights).normalized().weights, 1 / 27, rtol=1e-9)
        mean = conv3d(X, weights, padding="same", boundary="renormalize")
    wanted = conv3d(X, np.ones((3, 3, 3)), padding="same", boundary="renormalize")
    np.testing.assert_allclose(mean, wanted, rtol=1e-6)


def test_normalized_keeps_its_bits() -> None:
    weights = np.random.default_rng(1).random((5, 4, 3))
    np.testing.assert_array_equal(
        Kernel(weights).normalized().weights, weights / weights.sum(axis=(0, 1, 2))
    )


def test_a_kernel_of_long_doubles_is_refused_in_words() -> None:
    if np.finfo(np.longdouble).max == np.finfo(np.float64).max:
        pytest.skip("long double is double here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ShapeError, match="finite"):
            Kernel(np.full((3, 3, 3), np.longdouble("1e4000")))


def test_constraints_and_penalties_of_large_weights(folder: Path, run: Any) -> None:
    """Lengths are right, sums of squares infinite, and nobody sees a warning of NumPy's."""
    constrain = get_constraint("unit_norm:axis=0,1,2")
    assert constrain is not None
    np.testing.assert_allclose(constrain(np.full((3, 3, 3, 1, 1), 1e300)), 27**-0.5, rtol=1e-6)
    run(
        *[
            "apply",
            "x.npy",
            "-k",
            "k.npy",
            "--kernel-regularizer",
            "l2",
            "--precision",
            "float64",
            "--dtype",
            "float64",
            "-o",
            "o.npy",
        ]
    )


def test_onnx_holds_float32(folder: Path, run: Any) -> None:
    text = run("kernel", "convert", "layer.npz", "layer.onnx", code=1).stderr
    assert "beyond float32" in text
    assert not (folder / "layer.onnx").exists()
