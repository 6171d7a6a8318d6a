"""Calls of `conv3d` that repeat an earlier call on other numbers."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.api import arrays
from conv3d_cli.errors import ShapeError, SpecError
from tests import oracle

RANDOM = np.random.default_rng(5)
KERNEL = RANDOM.normal(size=(3, 3, 3)).astype(np.float32)
LAYER = RANDOM.normal(size=(3, 3, 3, 4, 6)).astype(np.float32)


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    if dtype.startswith("float"):
        return RANDOM.normal(size=shape).astype(dtype)
    return RANDOM.integers(0, 200, shape).astype(dtype)


pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `conv3d` so often that the last call repeats, and is not checked and planned again."""

    def call(x: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        for _ in range(2):
            conv3d(np.zeros_like(x), *arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(arrays, "resolve_convolution", None)
            return conv3d(x, *arguments, **options)

    return call


@pytest.mark.parametrize(
    ("shape", "kernel", "bias", "options"),
    [
        ((8, 9, 10), KERNEL, None, {}),
        ((8, 9, 10), KERNEL, 0.5, {"padding": "same", "boundary": "mirror"}),
        ((8, 9, 10), KERNEL, None, {"padding": [(1, 2), (0, 1), (2, 0)], "strides": [2, 1, 3]}),
        ((8, 9, 10), KERNEL, None, {"dilation_rate": (2, 1, 3), "padding": "full"}),
        ((8, 9, 10), KERNEL, None, {"padding": "same", "activation": "relu"}),
        ((8, 9, 10), "gaussian:sigma=1vox", None, {"padding": "same", "boundary": "nearest"}),
        ((8, 9, 10), "gradient:axis=dhw", None, {}),
        ((6, 7, 8, 4), LAYER, np.arange(6.0), {"padding": "same", "activation": "elu"}),
        ((1, 6, 7, 8, 4), LAYER, None, {"strides": 2}),
        ((6, 7, 8, 4), LAYER[..., :2, :], None, {"groups": 2}),
        ((16, 17, 18, 4), LAYER, None, {"padding": "same"}),
        ((4, 6, 7, 8), LAYER, None, {"data_format": "channels_first"}),
        ((6, 7, 8, 4), LAYER.transpose(4, 3, 0, 1, 2), None, {"kernel_layout": "torch"}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
def test_a_repeated_call_computes_the_same_bits(
    repeated: Any,
    shape: tuple[int, ...],
    kernel: Any,
    bias: Any,
    options: dict[str, Any],
    dtype: str,
) -> None:
    x = numbers(shape, dtype)
    first = conv3d(x, kernel, bias, **options)
    again = repeated(x, kernel, bias, **options)
    assert again.dtype == first.dtype
    np.testing.assert_array_equal(again, first)


def test_a_repeated_call_is_right(repeated: Any) -> None:
    x = numbers((8, 9, 10))
    expected = oracle.conv3d(x[None, ..., None], KERNEL[..., None, None])[0, ..., 0]
    np.testing.assert_allclose(repeated(x, KERNEL), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["direct", "winograd", "fft", "separable", "channels"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -3e38])
def test_numbers_that_spread_are_kept_to_their_windows(
    algorithm: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = np.ones((5, 5, 5, 1, 1), np.float32)
    if algorithm in ("winograd", "channels"):
        kernel = RANDOM.normal(size=(3, 3, 3, 8, 8)).astype(np.float32)
    x = numbers((12, 13, 14, kernel.shape[3]))
    for _ in range(3):
        conv3d(x, kernel, algorithm=algorithm)
    x[5, 6, 7, 0] = bad
    repeated = conv3d(x, kernel, algorithm=algorithm)
    monkeypatch.setattr(arrays, "_calls", arrays.KeptCalls())
    np.testing.assert_array_equal(repeated, conv3d(x, kernel, algorithm=algorithm))


def test_other_numbers_in_kernel_or_bias_are_another_call() -> None:
    x, kernel, bias = numbers((8, 9, 10)), KERNEL.copy(), np.zeros(1)
    for _ in range(3):
        first = conv3d(x, kernel, bias)
    kernel[1, 1, 1] += 1
    np.testing.assert_allclose(conv3d(x, kernel, bias), first + x[1:-1, 1:-1, 1:-1], atol=1e-5)
    kernel[1, 1, 1] -= 1
    bias[0] = 2
    np.testing.assert_allclose(conv3d(x, kernel, bias), first + 2, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"strides": 1.0}, {"strides": (1.0, 1, 1)}, {"groups": True}, {"strides": "1"}],
)
def test_arguments_that_are_equal_and_not_legal_are_refused(
    repeated: Any, options: dict[str, Any]
) -> None:
    x = numbers((8, 9, 10))
    repeated(x, KERNEL, strides=1, groups=1)
    repeated(x, KERNEL, strides=(1, 1, 1))
    with pytest.raises(SpecError):
        conv3d(x, KERNEL, **options)


def test_a_result_is_a_new_array_or_the_given_one(repeated: Any) -> None:
    x = numbers((8, 9, 10))
    first = repeated(x, KERNEL)
    kept = first.copy()
    second = conv3d(numbers((8, 9, 10)), KERNEL)
    assert not np.may_share_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    out = np.empty_like(first)
    assert conv3d(x, KERNEL, out=out) is out
    np.testing.assert_array_equal(out, first)


def test_an_output_that_does_not_fit_is_refused_as_ever(repeated: Any) -> None:
    x = numbers((8, 9, 10))
    first = repeated(x, KERNEL, padding="same")
    turned = np.empty((10, 9, 8), np.float32).T  # fits, in another order
    assert conv3d(x, KERNEL, padding="same", out=turned) is turned
    np.testing.assert_array_equal(turned, first)
    frozen = np.empty_like(x)
    frozen.flags.writeable = False
    for wrong in (x, np.empty(x.shape), np.empty((8, 9, 9), np.float32), frozen):
        with pytest.raises(ShapeError, match="out must"):
            conv3d(x, KERNEL, padding="same", out=wrong)


def test_arrays_of_another_layout_are_other_calls(repeated: Any) -> None:
    x = numbers((9, 9, 9))
    first = repeated(x, KERNEL)
    big = x.astype(">f4")
    np.testing.assert_array_equal(conv3d(big, KERNEL), first)
    np.testing.assert_array_equal(conv3d(np.asfortranarray(x), KERNEL), first)
    wide = np.zeros((9, 9, 18), np.float32)
    wide[..., ::2] = x
    np.testing.assert_array_equal(conv3d(wide[..., ::2], KERNEL), first)


def test_no_array_of_a_call_is_kept() -> None:
    x, out = numbers((8, 9, 10)), np.empty((6, 7, 8), np.float32)
    for _ in range(4):
        conv3d(x, KERNEL, out=out)
    watched = weakref.ref(x), weakref.ref(out)
    del x, out
    gc.collect()
    assert [w() for w in watched] == [None, None]


def test_many_calls_leave_no_thread_and_no_memory_behind() -> None:
    for size in range(4, 40):  # more shapes than are kept
        for _ in range(3):
            conv3d(numbers((size, 5, 6)), KERNEL)
    assert len(arrays._calls._calls) <= 16
    before = threading.active_count()
    for _ in range(1000):
        conv3d(numbers((8, 9, 10)), KERNEL)
    assert threading.active_count() == before


def test_threads_repeat_calls_of_their_own() -> None:
    x = [numbers((16, 17, 18)) for _ in range(4)]
    expected = [conv3d(one, KERNEL) for one in x]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not np.array_equal(conv3d(x[i], KERNEL), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert not wrong
