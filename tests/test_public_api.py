"""The Python door: the names that are promised, and conv3d() on every kind of array against the
definition.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import LAYOUTS, REAL_DTYPES, Geometry, geometries, laid_out, small_numbers

import conv3d_cli
from conv3d_cli import (
    Conv3DError,
    Grid,
    Kernel,
    Volume,
    conv3d,
    read_kernel,
    read_volume,
    write_kernel,
    write_volume,
)
from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.model.spec import Boundary

# --------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("name", conv3d_cli.__all__)
def test_every_name_loads_and_is_documented(name: str) -> None:
    value = getattr(conv3d_cli, name)
    assert value.__name__ == name
    assert value.__module__.startswith("conv3d_cli")
    assert len(inspect.getdoc(value) or "") > 20


def test_names_are_listed_alike_everywhere() -> None:
    """For people (__all__), for dir(), for loading, and for type checkers."""
    assert sorted(conv3d_cli._HOMES) == sorted(conv3d_cli.__all__)
    assert set(conv3d_cli.__all__) < set(dir(conv3d_cli))
    tree = ast.parse(Path(conv3d_cli.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {
        a.name: n.module for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    assert homes == conv3d_cli._HOMES


def test_the_manual_names_them_all() -> None:
    page = (Path(conv3d_cli.__file__).parent / "manual" / "python.md").read_text("utf-8")
    told = " ".join(re.findall(r"`[^`]+`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)))
    missing = set(conv3d_cli.__all__) - set(re.findall(r"\w+", told))
    assert not missing


def test_unknown_names_and_version() -> None:
    with pytest.raises(AttributeError, match="'conv3d_cli' has no attribute 'conv2d'"):
        conv3d_cli.conv2d  # noqa: B018
    assert conv3d_cli.__version__ == importlib.metadata.version("conv3d")


def test_signature_of_conv3d() -> None:
    """Keras' words and defaults; everything after the bias is named."""
    keywords = {
        "strides": 1,
        "padding": "valid",
        "dilation_rate": 1,
        "groups": 1,
        "data_format": "channels_last",
        "kernel_layout": "keras",
        "kernel_spacing": "match",
        "activation": None,
        "magnitude": False,
        "boundary": "zeros",
        "mask": None,
        "mask_mode": "clip",
        "mask_labels": False,
        "nan": "propagate",
        "missing": None,
        "min_coverage": 1e-3,
        "out": None,
        "threads": None,
        "algorithm": "auto",
        "allow_strided_dilation": False,
    }
    parameters = inspect.signature(conv3d).parameters
    assert list(parameters) == ["x", "kernel", "bias", *keywords]
    assert {name: parameters[name].default for name in keywords} == keywords
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in keywords)
    assert parameters["bias"].default is None
    assert parameters["x"].default is parameters["kernel"].default is inspect.Parameter.empty


# --------------------------------------------------------------------------------------------------
# conv3d() against the definition


def convolve(
    geometry: Geometry, x: np.ndarray, kernel: Any, bias: Any = None, **keywords: Any
) -> np.ndarray:
    return conv3d(
        x,
        kernel,
        bias,
        strides=geometry.strides,
        padding=geometry.padding,
        dilation_rate=geometry.dilation_rate,
        groups=geometry.groups,
        boundary=geometry.boundary_text,
        threads=1,
        **keywords,
    )


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32", "float64")) -> dict[str, Any]:
    """A geometry with x, kernel and bias, x in any layout.

    And the answer by definition in (N, D, H, W, F).
    """
    geometry = draw(
        geometries(largest=5, largest_kernel=3, largest_stride=3, strided_dilation=False)
    )
    seed = draw(st.integers(0, 999))
    values = small_numbers(geometry.in_shape, draw(st.sampled_from(dtypes)), seed)
    kernel = small_numbers(geometry.kernel_shape, "float64", seed + 1)
    bias = draw(st.sampled_from([None, "one each", "one"]))
    numbers = (
        None
        if bias is None
        else small_numbers((geometry.filters if bias == "one each" else 1,), "float64", seed + 2)
    )
    expected = geometry.by_definition(values, kernel, numbers)
    x = laid_out(values, draw(st.sampled_from(LAYOUTS)), seed)
    return {"geometry": geometry, "x": x, "kernel": kernel, "bias": numbers, "expected": expected}


def agree(got: np.ndarray, expected: np.ndarray) -> bool:
    """Sums of small whole numbers: a mistake is off by at least 1, rounding by far less."""
    return got.shape == expected.shape and bool(np.abs(got - expected).max(initial=0) < 1e-3)


@given(problems())
def test_channels_last(case: dict[str, Any]) -> None:
    got = convolve(case["geometry"], case["x"], case["kernel"], case["bias"])
    assert agree(got, case["expected"])
    assert got.dtype == case["x"].dtype.newbyteorder("=")


@given(problems())
def test_channels_first(case: dict[str, Any]) -> None:
    x = np.moveaxis(case["x"], -1, 1)
    got = convolve(case["geometry"], x, case["kernel"], case["bias"], data_format="channels_first")
    assert agree(got, np.moveaxis(case["expected"], -1, 1))


@given(
    problems(), st.sampled_from([(), (1,), (2,), (2, 1), (1, 2, 3), (2, 1, 1, 2)]), st.booleans()
)
def test_any_batch_axes(case: dict[str, Any], batch: tuple[int, ...], first: bool) -> None:
    """Extended batch shapes: every volume of them is convolved by itself."""
    count = int(np.prod(batch))
    pick = np.arange(count) % len(case["x"])
    x, expected = case["x"][pick], case["expected"][pick]
    x, expected = x.reshape(*batch, *x.shape[1:]), expected.reshape(*batch, *expected.shape[1:])
    keywords = {}
    if first:
        x, expected = np.moveaxis(x, -1, -4), np.moveaxis(expected, -1, -4)
        keywords = {"data_format": "channels_first"}
    assert agree(convolve(case["geometry"], x, case["kernel"], case["bias"], **keywords), expected)


@given(problems(dtypes=REAL_DTYPES))
def test_every_real_dtype_and_layout(case: dict[str, Any]) -> None:
    got = convolve(case["geometry"], case["x"], case["kernel"], case["bias"])
    assert agree(got, case["expected"])
    wide = case["x"].dtype.newbyteorder("=") in (np.float64, np.longdouble)
    assert got.dtype == (np.float64 if wide else np.float32)


@given(problems())
def test_three_axes(case: dict[str, Any]) -> None:
    """A 3-D x with a 3-D kernel: no channels anywhere."""
    geometry = case["geometry"]
    if geometry.per_group is not None:
        return
    for channel in range(geometry.channels):
        bias = None if case["bias"] is None else case["bias"][channel % case["bias"].size]
        got = convolve(geometry, case["x"][0, ..., channel], case["kernel"], bias)
        assert agree(got, case["expected"][0, ..., channel])


@given(problems(), st.sampled_from(["linear", "relu", "sigmoid", "tanh"]))
def test_activation_comes_after_the_bias(case: dict[str, Any], name: str) -> None:
    formulas = {
        "linear": lambda v: v,
        "relu": lambda v: np.where(v > 0, v, 0),
        "sigmoid": lambda v: 0.5 + 0.5 * np.tanh(v / 2),
        "tanh": np.tanh,
    }
    got = convolve(case["geometry"], case["x"], case["kernel"], case["bias"], activation=name)
    assert np.allclose(got, formulas[name](case["expected"]), rtol=1e-5, atol=1e-6)


def test_an_activation_may_be_a_function(rng: np.random.Generator) -> None:
    def square(values: np.ndarray) -> None:
        np.square(values, out=values)

    x, kernel = rng.normal(size=(4, 5, 6)), rng.normal(size=(3, 3, 3))
    assert np.allclose(conv3d(x, kernel, activation=square), conv3d(x, kernel) ** 2)


def test_float64_is_computed_in_float64(rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(5, 6, 7)), rng.normal(size=(3, 3, 3))
    expected = oracle.conv3d(x[None, ..., None], kernel[..., None, None])[0, ..., 0]
    for layout in LAYOUTS:
        assert np.allclose(conv3d(laid_out(x, layout), kernel), expected, rtol=0, atol=1e-13), (
            layout
        )


def test_values_beyond_float32(rng: np.random.Generator) -> None:
    """Whole numbers of 64 bits are taken as what they are, then rounded once."""
    x = rng.integers(-(2**62), 2**62, (3, 3, 3))
    assert np.array_equal(conv3d(x, np.ones((1, 1, 1))), x.astype(np.float32))


@pytest.mark.parametrize("shape", [(0, 4, 4, 4, 2), (2, 0, 4, 4, 4, 2), (0, 0, 4, 4, 4, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_an_empty_batch_gives_an_empty_result(shape: tuple[int, ...], dtype: str) -> None:
    got = conv3d(np.zeros(shape, dtype), np.ones((3, 3, 3, 2, 5)))
    assert got.shape == (*shape[:-4], 2, 2, 2, 5)
    assert got.dtype == (np.float64 if dtype == "float64" else np.float32)


def test_nested_lists_and_kernels() -> None:
    assert conv3d([[[1, 2, 3]]], [[[1, 1]]]).tolist() == [[[3, 5]]]
    kernel = Kernel(np.array([[[1.0, 1.0]]]), bias=np.array([10.0]))
    assert conv3d([[[1, 2, 3]]], kernel).tolist() == [[[13, 15]]]
    assert conv3d([[[1, 2, 3]]], kernel, 1).tolist() == [[[4, 6]]]  # the argument's bias counts


def test_a_boundary_may_be_an_object() -> None:
    x = np.ones((1, 1, 2))
    assert conv3d(
        x, np.ones((1, 1, 3)), padding="same", boundary=Boundary("constant", 5.0)
    ).tolist() == [[[7, 7]]]


def test_as_many_axes_as_there_are_letters() -> None:
    assert conv3d(np.ones((1,) * 24 + (2,)), np.ones((1, 1, 1, 2, 3))).shape == (1,) * 24 + (3,)


def test_an_array_that_repeats_itself() -> None:
    """Strides of 0, as np.broadcast_to makes them."""
    x = np.broadcast_to(np.arange(3.0), (4, 4, 3))
    assert np.array_equal(conv3d(x, np.ones((2, 2, 2))), conv3d(x.copy(), np.ones((2, 2, 2))))


# --------------------------------------------------------------------------------------------------
# What it leaves alone


@given(problems())
def test_arguments_are_never_written_to(case: dict[str, Any]) -> None:
    x, kernel = case["x"], case["kernel"]
    before = [np.array(x), kernel.copy(), None if case["bias"] is None else case["bias"].copy()]
    got = convolve(case["geometry"], x, kernel, case["bias"], activation="relu")
    assert not np.may_share_memory(got, x)
    for now, then in zip([x, kernel, case["bias"]], before, strict=True):
        assert then is None or np.array_equal(now, then)
    assert got.flags.writeable


def test_several_threads_at_once_get_the_same_bits(rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, 20, 40, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 2, 3))
    expected = conv3d(x, kernel, padding="same", threads=1)
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = conv3d(x, kernel, padding="same", threads=1 + number % 3)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(np.array_equal(result, expected) for result in results.values())


# --------------------------------------------------------------------------------------------------
# What it refuses

X, FILTER, LAYER = np.ones((4, 4, 4)), np.ones((3, 3, 3)), np.ones((3, 3, 3, 2, 4))
X5 = np.ones((1, 4, 4, 4, 2))

REFUSED: list[tuple[Any, Any, dict[str, Any], type[Conv3DError], list[str]]] = [
    (X.astype(complex), FILTER, {}, ShapeError, ["x must hold real numbers", "complex128"]),
    (np.full((4, 4, 4), "a"), FILTER, {}, ShapeError, ["real numbers"]),
    (X.astype(object), FILTER, {}, ShapeError, ["real numbers", "object"]),
    (X[0], FILTER, {}, ShapeError, ["(D, H, W)", "received 2 axes"]),
    (1.0, FILTER, {}, ShapeError, ["received 0 axes"]),
    (np.ones((1,) * 26), FILTER, {}, ShapeError, ["received 26 axes"]),
    (X, LAYER, {}, ShapeError, ["channel axis", "x[..., None]"]),
    (np.ones((4, 4, 4, 3)), LAYER, {}, ShapeError, ["takes 2 channels", "has 3"]),
    (X5, LAYER, {"data_format": "channels_first"}, ShapeError, ["the volume has 4"]),
    (X5, LAYER, {"data_format": "NCDHW"}, SpecError, ["data_format", "'NCDHW'"]),
    (X5, LAYER, {"groups": 3}, ShapeError, ["groups=3"]),
    (X5, LAYER, {"groups": 0}, SpecError, ["groups", "received 0"]),
    (X, FILTER, {"groups": 2}, ShapeError, ["takes no groups"]),
    (X, FILTER, {"strides": 0}, SpecError, ["strides must be at least 1"]),
    (X, FILTER, {"strides": (1, 2)}, SpecError, ["strides must be one whole number or three"]),
    (
        X,
        FILTER,
        {"strides": 2, "dilation_rate": 2},
        SpecError,
        ["strides=(2, 2, 2)", "dilation_rate=(2, 2, 2)"],
    ),
    (X, FILTER, {"dilation_rate": 1.5}, SpecError, ["dilation_rate"]),
    (X, FILTER, {"dilation_rate": 2}, ShapeError, ["larger than the volume along depth"]),
    (X, np.ones((5, 3, 3)), {}, ShapeError, ["larger than the volume along depth"]),
    (X, FILTER, {"padding": "causal"}, SpecError, ["Conv1D"]),
    (X, FILTER, {"padding": "reflect"}, SpecError, ["'same_lower'", "boundary='mirror'"]),
    (X, FILTER, {"padding": "edge"}, SpecError, ["the boundary: boundary='nearest'"]),
    (X, FILTER, {"padding": "constant"}, SpecError, ["boundary='constant=0'"]),
    (X, FILTER, {"padding": "none"}, SpecError, ["received 'none'; write 'valid'"]),
    (X, FILTER, {"boundary": "reflect"}, SpecError, ["scipy's", "numpy's"]),
    (X, FILTER, {"boundary": "neerest"}, UnknownNameError, ["did you mean 'nearest'"]),
    (X, FILTER, {"activation": "rellu"}, UnknownNameError, ["did you mean 'relu'"]),
    (X, FILTER, {"algorithm": "fast"}, UnknownNameError, ["unknown algorithm 'fast'", "auto"]),
    (X, FILTER, {"threads": 0}, SpecError, ["threads"]),
    (X, FILTER, {"threads": 1.5}, SpecError, ["threads"]),
    (X, FILTER, {"bias": [1, 2]}, ShapeError, ["2 values for 1 output channel"]),
    (X5, LAYER, {"bias": [1, 2, 3]}, ShapeError, ["one number for each filter (4)", "(3,)"]),
    (X5, LAYER, {"bias": "a"}, ShapeError, ["bias", "real numbers"]),
    (X5, LAYER, {"bias": [1, 2, 3, np.nan]}, ShapeError, ["finite"]),
    (X, np.ones((3, 3)), {}, ShapeError, ["give it the shape (1, 3, 3)"]),
    (X, np.full((3, 3, 3), np.nan), {}, ShapeError, ["finite"]),
    (X[:0], FILTER, {}, ShapeError, ["no voxels"]),
    (X5[..., :0], FILTER, {"padding": "same"}, ShapeError, ["no voxels"]),
]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grid((3.0, 1.0, 1.0), "mmm"), "unit must be one of nm, um, mm, cm, m"),
        (lambda: Grid(3.0, "mm"), "spacing must be three numbers in D, H, W order"),  # type: ignore[arg-type]
        (lambda: Grid(affine=np.eye(3)), "affine must be an array of 4 x 4 numbers"),
        (lambda: Volume(X, "zyx", (3, 1, 1)), "must be a Grid"),  # type: ignore[arg-type]
        (lambda: write_volume("x.npy", X), "takes a Volume, received ndarray"),  # type: ignore[arg-type]
        (
            lambda: read_kernel("gaussian:fwhm=6mm", Volume(X, "zyx")),  # type: ignore[arg-type]
            "takes a Grid, received Volume",
        ),
    ],
)
def test_another_type_is_told_with_an_example(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        make()


def test_paths_are_text_or_path_objects(tmp_path: Path) -> None:
    volume = Volume(np.ones((3, 4, 5), np.float32), "zyx", Grid((3.0, 1.0, 1.0), "mm"))
    write_volume(tmp_path / "a.nii.gz", volume)
    assert read_volume(tmp_path / "a.nii.gz").grid.spacing == (3.0, 1.0, 1.0)
    write_kernel(tmp_path / "k.npy", Kernel(FILTER))
    np.testing.assert_array_equal(read_kernel(tmp_path / "k.npy").weights, FILTER)


@pytest.mark.parametrize(("x", "kernel", "keywords", "error", "facts"), REFUSED)
def test_what_is_refused(
    x: Any, kernel: Any, keywords: dict[str, Any], error: type[Conv3DError], facts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        conv3d(x, kernel, **keywords)
    assert isinstance(caught.value, ValueError)
    for fact in facts:
        assert fact in str(caught.value)
