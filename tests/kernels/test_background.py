"""Which kernels are suspected of a background and which are not, and what subtracting one leaves."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.kernels import describe_builtins, read_kernel
from conv3d_cli.kernels.background import check_background, find_pedestal, subtract_background
from conv3d_cli.model.kernel import Kernel

SIZES = [(5, 5, 5), (7, 9, 9), (11, 17, 17), (12, 16, 16), (1, 15, 15), (21, 31, 31)]


def offsets(size: tuple[int, ...]) -> list[np.ndarray]:
    return list(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))


def gaussian(size: tuple[int, ...], *sigma: float) -> np.ndarray:
    return np.exp(-sum((o / s) ** 2 for o, s in zip(offsets(size), sigma, strict=True)) / 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("level", [0.01, 0.09, 0.3])
@pytest.mark.parametrize("noise", [0, 0.01])
def test_a_psf_on_a_pedestal_is_found(
    size: tuple[int, ...], level: float, noise: float, rng: np.random.Generator
) -> None:
    weights = gaussian(size, *(max(0.6, n / 12) for n in size))
    weights = np.rint(1000 * (weights + level * (1 + noise * rng.normal(size=size))))
    found = find_pedestal(Kernel(weights))
    assert found is not None
    assert found.level == pytest.approx(1000 * level, rel=0.1, abs=2)
    assert found.share == pytest.approx(found.level * weights.size / weights.sum())
    assert found.peak == weights.max()


@pytest.mark.parametrize("size", [*SIZES, (3, 3, 3), (1, 1, 9), (33, 33, 33)], ids=str)
def test_gaussians_cut_off_anywhere_are_not_accused(size: tuple[int, ...]) -> None:
    for sigma in product([0.5, 1, 2, 4, 8, 24], repeat=3):
        assert find_pedestal(Kernel(gaussian(size, *sigma))) is None, sigma


SHAPES: dict[str, Any] = {
    "box": lambda r, size: np.ones(size),
    "ball": lambda r, size: r <= 4,
    "large ball": lambda r, size: r <= max(size) / 2,
    "cone": lambda r, size: np.clip(1 - r / 6, 0, None),
    "exponential": lambda r, size: np.exp(-r / 3),
    "lorentzian": lambda r, size: 1 / (1 + (r / 2) ** 2),
    "inverse": lambda r, size: 1 / np.maximum(r, 0.5),
    "laplacian of gaussian": lambda r, size: (r**2 - 6) * np.exp(-(r**2) / 4),
    "mexican hat": lambda r, size: (6 - r**2) * np.exp(-(r**2) / 4),
    "noise": lambda r, size: np.random.default_rng(1).random(size),
    "trained": lambda r, size: np.random.default_rng(2).normal(size=size),
    "sharpening": lambda r, size: np.where(r < 0.1, r.size, -1.0),
    "zeros": lambda r, size: np.zeros(size),
    "padded": lambda r, size: r < 2,
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_other_kernels_are_not_accused(name: str, size: tuple[int, ...]) -> None:
    r = np.sqrt(sum(o**2 for o in offsets(size)))
    assert find_pedestal(Kernel(np.asarray(SHAPES[name](r, size), float))) is None


@pytest.mark.parametrize("name", [kernel.name for kernel in describe_builtins()])
def test_saved_builtins_are_not_accused(name: str) -> None:
    parameters = {
        "ball": ":radius=4vox", "gaussian": ":fwhm=5vox", "log": ":sigma=2vox", "unsharp": ":sigma=2vox",
        "dog": ":sigma=1vox:sigma2=2vox", "gaussian_derivative": ":sigma=2vox:axis=d",
        "expr": ':"exp(-r/2)":radius=6vox', "box": ":size=9",
        "born_wolf": ":na=0.5:ri=1:wavelength=2vox", "gibson_lanni": ":na=0.5:ri=1:wavelength=2vox",
        "sobel": ":axis=d", "prewitt": ":axis=d", "scharr": ":axis=d", "gradient": ":axis=d",
    }  # fmt: skip
    assert find_pedestal(read_kernel(name + parameters.get(name, ""))) is None


def test_layers_have_no_pedestal() -> None:
    weights = gaussian((7, 7, 7), 1, 1, 1) + 0.1
    assert find_pedestal(Kernel(weights)) is not None
    assert find_pedestal(Kernel(weights[..., None, None])) is None


def test_the_border_is_subtracted_from_every_weight(rng: np.random.Generator) -> None:
    weights = 1000 * gaussian((11, 17, 17), 2, 1.5, 1.5) + 100 + rng.normal(size=(11, 17, 17))
    inside = np.zeros(weights.shape, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    median = np.median(weights[~inside])
    kernel, note = subtract_background(Kernel(weights, name="psf"), "border")
    np.testing.assert_allclose(kernel.weights, weights - median)
    assert f"a background of {median:.4g}, the median of {int((~inside).sum())} weights" in note
    assert f"{int((weights < median).sum())} weights are below 0 now, and are kept" in note


def test_noise_adds_up_to_nothing_as_negative_weights_are_kept(rng: np.random.Generator) -> None:
    psf = 1000 * gaussian((21, 31, 31), 1.5, 1.5, 1.5)
    noisy = psf + 100 + rng.normal(scale=5, size=psf.shape)
    kernel, _ = subtract_background(Kernel(noisy), "border")
    assert kernel.sum == pytest.approx(psf.sum(), rel=0.1)
    assert np.clip(kernel.weights, 0, None).sum() > 1.6 * psf.sum()  # what clipping would leave


def test_in_a_plane_the_border_is_its_rim() -> None:
    weights = np.zeros((1, 5, 5))
    weights[0, 1:-1, 1:-1] = 9
    weights[0, 2, 2] = 20
    kernel, _ = subtract_background(Kernel(weights + 3), "border")
    np.testing.assert_array_equal(kernel.weights, weights)


def test_each_filter_of_a_bank_has_its_own_border() -> None:
    one = gaussian((5, 5, 5), 0.4, 0.4, 0.4)
    bank = Kernel(np.stack([one + 1, one + 2], axis=-1), filter_names=("a", "b"))
    kernel, note = subtract_background(bank, "border")
    np.testing.assert_allclose(kernel.weights, np.stack([one, one], axis=-1), atol=1e-4)
    assert "a background of 1,2, the median" in note


def test_a_number_is_subtracted_and_0_is_not() -> None:
    weights = np.arange(27.0).reshape(3, 3, 3)
    kernel, note = subtract_background(Kernel(weights), "2.5")
    np.testing.assert_array_equal(kernel.weights, weights - 2.5)
    assert "a background of 2.5 is subtracted" in note
    same, note = subtract_background(Kernel(weights), 0)
    assert (same.weights == weights).all()
    assert note == ""


@pytest.mark.parametrize("value", ["median", "", "nan", "inf", True, "psf.tif"])
def test_a_wrong_background(value: Any) -> None:
    with pytest.raises(SpecError, match=r"must be border .* or a number, received '"):
        check_background(value)


@pytest.mark.parametrize(
    ("kernel", "value", "message"),
    [
        (Kernel(np.ones((5, 5, 5)), name="b.npy"), "border", "leaves nothing of kernel b.npy"),
        (Kernel(np.ones((5, 5, 5)), name="b.npy"), 2, "largest weight is 1; give a smaller"),
        (Kernel(np.ones((5, 5, 5, 1, 1)), name="l.npz"), "border", "l.npz is a layer"),
    ],
)
def test_what_has_no_background(kernel: Kernel, value: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        subtract_background(kernel, value)


def test_a_measured_psf_has_a_width_despite_its_noise(rng: np.random.Generator) -> None:
    clean = gaussian((21, 21, 21), 2, 2, 2)
    noisy = Kernel(clean + rng.normal(scale=0.003, size=clean.shape))
    assert noisy.fwhm() == pytest.approx((4.71, 4.71, 4.71), rel=0.03)
    assert Kernel(clean - np.roll(clean, 8, axis=0)).fwhm()[0] is None  # two peaks are not noise
