"""conv3d(): kernels as people pass them, out=, kept plans, and the numbers of the command."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import oracle
import pytest
from scipy import ndimage

from conv3d_cli import (
    Conv3DError,
    Grid,
    Kernel,
    Volume,
    conv3d,
    convolve_file,
    read_kernel,
    read_volume,
    write_volume,
)
from conv3d_cli.api import arrays
from conv3d_cli.api.plans import MOST_PLANS
from conv3d_cli.errors import FormatError, ShapeError, SpecError, UnknownNameError
from conv3d_cli.pipeline.stream import stream

WEIGHTS = Path(__file__).parent.parent / "data" / "weights"

# ---------------------------------------------------------------------------------------------------------------------
# Kernels


def test_a_kernel_may_be_text_a_path_an_array_or_a_kernel(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights = rng.normal(size=(6, 7, 8)), rng.normal(size=(3, 3, 3))
    monkeypatch.chdir(tmp_path)
    np.save("k.npy", weights)
    np.save("box.npy", weights)
    expected = ndimage.correlate(x, weights, mode="constant")
    for kernel in (
        weights,
        weights.tolist(),
        Kernel(weights),
        "k.npy",
        tmp_path / "k.npy",
        Path("box.npy"),
    ):
        assert np.allclose(conv3d(x, kernel, padding="same"), expected)
    smooth = conv3d(x, "gaussian:sigma=1.5vox", padding="same", boundary="symmetric")
    assert np.allclose(smooth, ndimage.gaussian_filter(x, 1.5))


@pytest.mark.parametrize(
    ("kernel", "error", "words"),
    [
        ("gausian:sigma=1vox", UnknownNameError, "did you mean 'gaussian'"),
        ("gaussian:fwhm=6mm", ShapeError, "pass a Volume to conv3d()"),
        ("no.npy", FormatError, "no such file"),
        (Path("box"), FormatError, "cannot read ./box"),
        (np.array(["a"]), ShapeError, "the kernel must hold real numbers"),
    ],
)
def test_what_is_no_kernel(kernel: Any, error: type[Conv3DError], words: str) -> None:
    with pytest.raises(error) as caught:
        conv3d(np.ones((5, 5, 5)), kernel)
    assert words in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_layout_of_pytorch(groups: int, rng: np.random.Generator) -> None:
    x, weights = rng.normal(size=(6, 7, 8, 4)), rng.normal(size=(6, 4 // groups, 3, 2, 1))
    out = conv3d(x, weights, np.arange(6), groups=groups, kernel_layout="torch")
    # by definition, filter by filter
    for f in range(6):
        first = f // (6 // groups) * (4 // groups)
        expected = f + sum(
            ndimage.correlate(x[..., first + c], weights[f, c], mode="constant", origin=(0, -1, 0))
            for c in range(4 // groups)
        )
        assert np.allclose(out[..., f], expected[1:5, 0:6, :])
    cube = rng.normal(size=(3, 3, 3))
    assert np.array_equal(conv3d(x, cube, kernel_layout="torch"), conv3d(x, cube))


@pytest.mark.parametrize(
    ("shape", "bias"),
    [((8, 2, 3, 3, 3), None), ((8, 3, 3, 3, 3), np.zeros(8)), ((16, 2, 1, 2, 1), None)],
)
def test_the_layout_of_pytorch_is_recognised(shape: tuple[int, ...], bias: Any) -> None:
    with pytest.raises(ShapeError, match=r"it looks like PyTorch's .* pass kernel_layout='torch'"):
        conv3d(np.ones((6, 7, 8, shape[1])), np.ones(shape), bias)


def test_a_layout_is_for_arrays() -> None:
    x = np.ones((5, 5, 5))
    with pytest.raises(SpecError, match="kernel_layout='torch' is for arrays"):
        conv3d(x, Kernel(np.ones((3, 3, 3))), kernel_layout="torch")
    with pytest.raises(UnknownNameError, match="kernel_layout 'pytorch'; did you mean 'torch'"):
        conv3d(x, np.ones((3, 3, 3)), kernel_layout="pytorch")


def test_a_kernel_of_another_spacing_is_refused_unless_told(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """From a file, as a `Kernel` read from it, and as a `Volume`; in memory and from file to file."""
    x = Volume(rng.normal(size=(9, 9, 9)), "zyx", Grid((1.0, 1.0, 1.0), "mm"))
    weights = rng.random((3, 3, 3))
    weights /= weights.sum()
    psf = Volume(weights.transpose(2, 1, 0), "xyz", Grid((2.0, 2.0, 2.0), "mm"))
    path = tmp_path / "psf.ome.tif"
    write_volume(str(path), psf)
    write_volume(str(tmp_path / "x.npy"), Volume(x.data, "zyx"))
    write_volume(str(tmp_path / "x.nii"), x)
    for number, kernel in enumerate((path, str(path), read_kernel(str(path)), psf)):
        with pytest.raises(
            ShapeError,
            match=r"voxels of 2,2,2 mm, the volume of 1,1,1 mm; pass kernel_spacing='resample'",
        ):
            conv3d(x, kernel, padding="same")
        with pytest.raises(ShapeError, match="pass kernel_spacing='resample'"):
            convolve_file(tmp_path / "x.nii", tmp_path / "o.nii", kernel)
        plain = conv3d(x, kernel, padding="same", kernel_spacing="ignore")
        assert np.allclose(plain.data, ndimage.correlate(x.data, weights, mode="constant"))
        assert np.array_equal(conv3d(x.data, kernel, padding="same"), plain.data)
        wide = conv3d(x, kernel, padding="same", boundary="symmetric", kernel_spacing="resample")
        assert wide.data.std() < plain.data.std()
        target = tmp_path / f"{number}.nii"
        convolve_file(
            tmp_path / "x.nii", target, kernel, kernel_spacing="resample",
            precision="float64", dtype="float64",
        )  # fmt: skip
        assert np.array_equal(read_volume(str(target)).data, wide.data)
    with pytest.raises(SpecError, match="kernel_spacing is match, resample or ignore"):
        conv3d(x, psf, kernel_spacing="scale")
    series = Volume(np.ones((2, 3, 3, 3)), "tzyx")
    with pytest.raises(ShapeError, match="a Volume as a kernel has depth, height and width"):
        conv3d(x, series)
    nowhere = Volume(x.data, "zyx", Grid())
    with pytest.warns(
        UserWarning, match="the volume tells no voxel spacing: the kernel is applied voxel"
    ):
        conv3d(nowhere, psf)


def test_a_trained_layer_runs_with_its_own_settings_or_not_at_all() -> None:
    """A name of a file tells no strides: they must be those of the layer, as the command takes them."""
    x = np.random.default_rng(0).normal(size=(6, 7, 8, 2))
    layer = f"{WEIGHTS / 'two.keras'}::conv3d_1"
    with pytest.raises(
        SpecError, match=r"a layer with strides=\(1, 2, 1\), padding='same', activation='relu'"
    ):
        conv3d(x, layer)
    with pytest.raises(SpecError, match=r"a layer with activation='relu', and"):
        conv3d(x, layer, strides=(1, 2, 1), padding="same")
    out = conv3d(x, layer, strides=(1, 2, 1), padding="same", activation="relu")
    assert out.shape == (6, 4, 8, 4)
    assert out.min() == 0
    weights = read_kernel(layer)
    assert conv3d(x, weights).shape == (4, 5, 6, 4)
    assert conv3d(x, f"{WEIGHTS / 'net.onnx'}::node_conv3d", padding=1).shape == (6, 7, 8, 4)


# ---------------------------------------------------------------------------------------------------------------------
# out=


def test_out_is_filled_and_returned(rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(5, 6, 7, 2)), rng.normal(size=(3, 3, 3, 2, 4))
    expected = conv3d(x, kernel, activation="softmax")
    for out in (
        np.empty(expected.shape),
        np.empty((4, 5, 4, 3)).T,
        np.empty((6, 8, 10, 8))[::2, ::2, ::2, ::2],
    ):
        assert conv3d(x, kernel, activation="softmax", out=out) is out
        assert np.allclose(out, expected, atol=1e-12)
        assert conv3d(x, kernel, out=out) is out
        assert np.array_equal(out, conv3d(x, kernel))


def test_out_of_other_kinds(rng: np.random.Generator) -> None:
    data = rng.normal(size=(5, 6, 7))
    out = np.empty((3, 4, 5))
    smooth = conv3d(Volume(data, "zyx"), np.ones((3, 3, 3)), out=out)
    assert smooth.data is out
    masked = conv3d(np.ma.masked_less(data, 9), np.ones((3, 3, 3)) / 27, out=out)
    assert masked.mask.all()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (np.empty((3, 3, 4)), "shape (3, 3, 3), received float64 (3, 3, 4)"),
        (np.empty((3, 3, 3), np.float32), "received float32"),
        (np.broadcast_to(0.0, (3, 3, 3)), "read-only"),
        (np.zeros(27 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(3, 3, 3), "multiples of 8"),
        (np.empty((3, 3, 3), ">f8" if np.little_endian else "<f8"), "of float64"),
        (np.zeros((3, 3, 3)).tolist(), "a NumPy array, received a list"),
    ],
)
def test_an_out_that_does_not_fit(out: Any, words: str) -> None:
    with pytest.raises(ShapeError) as caught:
        conv3d(np.ones((5, 5, 5)), np.ones((3, 3, 3)), out=out)
    assert words in str(caught.value)


def test_out_must_not_be_the_input() -> None:
    x = np.ones((5, 5, 5))
    with pytest.raises(ShapeError, match="must not overlap x"):
        conv3d(x, np.ones((3, 3, 3)), padding="same", out=x)
    assert (x == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers as the command


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ("gaussian:sigma=1.2,1,2vox", []),
        ("laplacian", ["--boundary", "wrap", "--strides", "2,1,3"]),
        ("box:size=3", ["--boundary", "renormalize"]),
        ("sobel:axis=dhw", ["--magnitude", "--activation", "relu"]),
        ("k.npy", ["--padding", "full", "--boundary", "constant=2", "--dilation-rate", "2"]),
    ],
)
def test_numbers_equal_those_of_the_command(
    dtype: str, kernel: str, options: list[str], tmp_path: Path, run: Any,
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Bit for bit, whatever the slabs and threads."""
    monkeypatch.chdir(tmp_path)
    x = (rng.normal(size=(9, 20, 17)) * 50).astype(dtype)
    np.save("x.npy", x)
    np.save("k.npy", rng.normal(size=(3, 3, 3)))
    run("apply", "x.npy", "-k", kernel, *options, "-o", "y.npy", "-j", "2")
    words: dict[str, Any] = {"padding": "same", "boundary": "symmetric"}
    flags = [o[2:].replace("-", "_") for o in options if o.startswith("--")]
    values = dict.fromkeys(flags, True)
    for name, value in zip(options, [*options[1:], "--"][: len(options)], strict=True):
        if name.startswith("--") and not value.startswith("--"):
            values[name[2:].replace("-", "_")] = value  # type: ignore[assignment]
    for name in ("strides", "dilation_rate"):
        if name in values:
            numbers = [int(part) for part in str(values[name]).split(",")]
            values[name] = numbers[0] if len(numbers) == 1 else numbers  # type: ignore[assignment]
    for threads in (1, 2):
        got = conv3d(x, kernel, threads=threads, **{**words, **values})
        assert np.array_equal(got, np.load("y.npy")), (kernel, threads)


# ---------------------------------------------------------------------------------------------------------------------
# Kept plans


def test_a_kept_plan_changes_no_bit(rng: np.random.Generator) -> None:
    """The same call twice, and other weights, shapes and dtypes in between."""
    problems = []
    for shape in ((4, 4, 4), (5, 6, 7), (5, 6, 7, 3)):
        for dtype in ("float32", "float64", "int16"):
            for kernel in (
                rng.normal(size=(3, 3, 3)),
                np.ones((3, 3, 3)),
                rng.normal(size=(1, 3, 1)),
            ):
                problems.append(((rng.normal(size=shape) * 9).astype(dtype), kernel))
    first = [conv3d(x, kernel, padding="same", bias=[1.0]) for x, kernel in problems]
    arrays._plans._plans.clear()
    for (x, kernel), expected in zip(problems, first, strict=True):
        arrays._plans._plans.clear()
        fresh = conv3d(x, kernel, padding="same", bias=[1.0])
        kept = conv3d(x, kernel, padding="same", bias=[1.0])
        assert np.array_equal(fresh, expected)
        assert np.array_equal(kept, expected)


def test_plans_are_few_and_small(rng: np.random.Generator) -> None:
    arrays._plans._plans.clear()
    for number in range(2 * MOST_PLANS):
        conv3d(np.ones((4, 4, 4)), np.full((3, 3, 3), float(number)))
    assert len(arrays._plans._plans) == MOST_PLANS
    arrays._plans._plans.clear()
    conv3d(np.ones((90, 90, 90), np.float32), np.ones((1, 1, 1)))
    conv3d(np.ones((4, 4, 4)), np.ones((1, 1, 1)), boundary="renormalize")
    assert not arrays._plans._plans


def test_weights_that_change_in_place_are_other_weights() -> None:
    x, weights = np.ones((4, 4, 4)), np.ones((3, 3, 3))
    kernel = Kernel(weights)
    assert conv3d(x, weights)[0, 0, 0] == conv3d(x, kernel)[0, 0, 0] == 27
    weights *= 2
    kernel.weights[...] = 3
    assert conv3d(x, weights)[0, 0, 0] == 54
    assert conv3d(x, kernel)[0, 0, 0] == 81


def test_weights_changed_in_place_do_not_reach_a_kept_plan() -> None:
    """Steps with NaN are computed again by a plan that is made when it is needed first."""
    kernel = Kernel(np.random.default_rng(0).normal(size=(5, 5, 5)))
    before = Kernel(kernel.weights.copy())
    x = np.random.default_rng(1).normal(size=(9, 9, 9))
    conv3d(x, kernel, algorithm="fft")
    kernel.weights[...] = 0
    x[4, 4, 8] = np.nan
    out = conv3d(x, before, algorithm="fft")
    expected = oracle.conv3d(x[None, ..., None], before.weights[..., None, None])[0, ..., 0]
    assert np.isnan(out).any()
    assert np.allclose(out, expected, equal_nan=True)


@pytest.mark.usefixtures("nothing_kept")
def test_an_interrupted_call_leaves_no_plan_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops may have stopped anywhere, so its memory is in no known state."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    x, kernel = np.ones((4, 4, 4)), np.ones((3, 3, 3))
    conv3d(x, kernel)
    kept = len(arrays._plans._plans)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "stream", interrupt)
        with pytest.raises(KeyboardInterrupt):
            conv3d(x, kernel)
    assert len(arrays._plans._plans) == kept - 1
    assert conv3d(x, kernel)[0, 0, 0] == 27


@pytest.mark.usefixtures("nothing_kept")
def test_a_call_within_a_call_has_its_own_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes its plan out, so that another one in the same thread makes its own."""
    x, kernel = np.ones((4, 4, 4)), np.ones((3, 3, 3))
    conv3d(x, kernel)
    plans = []

    def again(plan: Any, *arguments: Any, **keywords: Any) -> None:
        plans.append(plan.convolution.plan)
        if len(plans) == 1:
            assert conv3d(x, kernel)[0, 0, 0] == 27
        stream(plan, *arguments, **keywords)

    monkeypatch.setattr(arrays, "stream", again)
    assert conv3d(x, kernel)[0, 0, 0] == 27
    assert plans[0] is not plans[1]


def test_small_arrays_start_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel = np.ones((6, 6, 6)), np.ones((3, 3, 3))
    conv3d(x, kernel)  # loads machine code, in a thread

    def start(_: threading.Thread) -> None:
        raise AssertionError("a thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert conv3d(x, kernel, threads=4)[0, 0, 0] == 27


def test_type_checkers_know_the_same_arguments() -> None:
    import inspect

    parameters = inspect.signature(conv3d).parameters.values()
    named = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert list(get_type_hints(arrays.Keywords)) == named
