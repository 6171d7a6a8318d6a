"""Point spread functions by theory, held to formulas and to another library."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from conv3d_cli import Grid, SpecError, read_kernel
from conv3d_cli.kernels.microscope import _bessel

GRID = Grid((0.2, 0.08, 0.08), "um")

# psfmodels 0.3.3, without the integral over a pixel:
#   p = dict(NA=1.3, ng0=1.518, ng=1.518, ni0=1.518, ni=1.518, ns=1.33, sf=1)
#   psf = psfmodels.scalar_psf(zv=depth + 0.2 * np.arange(-3, 4), nx=15, dxy=0.08, pz=depth,
#                              wvl=0.52, params=p)
#   (psf[:, 7, 7:12:2] / psf.max()).round(5)
GIBSON_LANNI = {
    0.0: [
        [0.04627, 0.06093, 0.04566],
        [0.32306, 0.10246, 0.04829],
        [0.77128, 0.13959, 0.02985],
        [1.0, 0.1544, 0.01728],
        [0.77128, 0.13959, 0.02985],
        [0.32306, 0.10246, 0.04829],
        [0.04627, 0.06093, 0.04566],
    ],
    2.0: [
        [0.08725, 0.0604, 0.03416],
        [0.17038, 0.09381, 0.03482],
        [0.30219, 0.14063, 0.02835],
        [0.54948, 0.18531, 0.01587],
        [0.86816, 0.20106, 0.01073],
        [1.0, 0.17412, 0.03273],
        [0.74917, 0.1187, 0.07578],
    ],
}


def test_the_bessel_function() -> None:
    x = np.linspace(0, 400, 2001)
    np.testing.assert_allclose(_bessel(x), special.j0(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("depth", GIBSON_LANNI)
def test_gibson_lanni_is_that_of_psfmodels(depth: float) -> None:
    text = "gibson-lanni:na=1.3:ri=1.518:wavelength=520nm:size=7,15,15"
    psf = read_kernel(f"{text}:sample=1.33:depth={depth}um", GRID).weights
    np.testing.assert_allclose(
        psf[:, 7, 7:12:2] / psf.max(), GIBSON_LANNI[depth], rtol=0, atol=4e-4
    )


def test_born_wolf_in_focus_is_the_airy_pattern() -> None:
    psf = read_kernel("born-wolf:na=0.9:ri=1.33:wavelength=520nm:size=1,31,31", GRID).weights[0]
    y, x = np.meshgrid(np.arange(-15, 16), np.arange(-15, 16), indexing="ij")
    v = 2 * np.pi / 0.52 * 0.9 * 0.08 * np.hypot(y, x)
    airy = np.where(v == 0, 1.0, (2 * special.j1(v) / np.where(v == 0, 1, v)) ** 2)
    np.testing.assert_allclose(psf, airy / airy.sum(), rtol=0, atol=1e-9)


def test_born_wolf_along_the_axis_is_a_sinc() -> None:
    psf = read_kernel("born-wolf:na=0.9:ri=1.33:wavelength=520nm:size=41,1,1", GRID).weights
    u = 2 * np.pi / 0.52 * 0.81 / 1.33 * 0.2 * np.arange(-20, 21)
    expected = np.sinc(u / 4 / np.pi) ** 2
    np.testing.assert_allclose(psf[:, 0, 0], expected / expected.sum(), rtol=0, atol=1e-9)


def test_without_depth_the_sample_does_not_matter() -> None:
    text = "gibson-lanni:na=1.3:ri=1.518:wavelength=520nm"
    one, other = (read_kernel(f"{text}:sample={n}", GRID).weights for n in (1.33, 1.47))
    np.testing.assert_array_equal(one, other)


def test_a_small_aperture_is_that_of_born_wolf() -> None:
    given = "na=0.2:ri=1:wavelength=520nm:size=9,9,9"
    born, gibson = (
        read_kernel(f"{name}:{given}", GRID).weights for name in ("born_wolf", "gibson_lanni")
    )
    np.testing.assert_allclose(gibson, born, rtol=0, atol=1e-4 * born.max())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("born-wolf:na=1.4:ri=1.33:wavelength=520nm", "na must be above 0 and below ri=1.33"),
        ("born-wolf:na=0.5:ri=0.5:wavelength=520nm", "ri is a refractive index of at least 1"),
        ("born-wolf:na=0.5:ri=1:wavelength=520", "needs a unit"),
        ("born-wolf:na=0.5:ri=1:wavelength=520nm:size=4", "size must be odd"),
        ("born-wolf:na=0.5:ri=1:wavelength=520m", "give a smaller wavelength"),
        ("gibson-lanni:na=0.5:ri=1:wavelength=520nm:sample=0.5", "sample is a refractive index"),
        ("gibson-lanni:na=0.5:ri=1:wavelength=520nm:depth=1m", "give a smaller one"),
    ],
)  # fmt: skip
def test_impossible_optics_are_refused(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        read_kernel(text, GRID)


def test_the_default_size_shows_rings() -> None:
    psf = read_kernel("born-wolf:na=0.9:ri=1.33:wavelength=520nm", GRID).weights
    ring = 0.61 * 0.52 / 0.9 / 0.08  # voxels to the first dark ring
    assert psf.shape[2] // 2 >= 5 * ring - 1
    assert psf.shape[0] // 2 >= 3 * 2 * 1.33 * 0.52 / 0.81 / 0.2 - 1
    assert abs(psf.sum() - 1) < 1e-12
