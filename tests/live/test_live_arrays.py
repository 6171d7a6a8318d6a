"""conv3d() on real PyTorch tensors and xarray DataArrays: `make test-keras`."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
xarray = pytest.importorskip("xarray")

from conv3d_cli import Grid, Volume, conv3d  # noqa: E402 - after the guard
from conv3d_cli.errors import ShapeError, SpecError  # noqa: E402

pytestmark = [pytest.mark.keras, pytest.mark.filterwarnings("default")]

SPACING = (3.0, 1.5, 2.0)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch


def test_a_tensor_gives_a_tensor(rng: np.random.Generator) -> None:
    values, weights = rng.normal(size=(1, 2, 6, 7, 8)), rng.normal(size=(4, 2, 3, 3, 3))
    x, w, b = (torch.tensor(a) for a in (values, weights, rng.normal(size=4)))
    out = conv3d(x, w, b, data_format="channels_first", kernel_layout="torch", padding=1, strides=2)
    expected = torch.nn.functional.conv3d(x, w, b, padding=1, stride=2)
    assert torch.is_tensor(out)
    assert torch.allclose(out, expected)
    half = conv3d(x.to(torch.bfloat16), "box:size=1", data_format="channels_first")
    assert torch.equal(half, x.to(torch.bfloat16).float())
    layer = torch.nn.Conv3d(2, 4, 3)
    with pytest.raises(SpecError, match=r"requires gradients.*pass kernel\.detach\(\)"):
        conv3d(x, layer.weight, kernel_layout="torch", data_format="channels_first")
    with torch.no_grad():
        conv3d(x, layer.weight, kernel_layout="torch", data_format="channels_first")


# ---------------------------------------------------------------------------------------------------------------------
# xarray


def test_an_xarray_keeps_its_dimensions_and_coordinates(rng: np.random.Generator) -> None:
    values = rng.normal(size=(2, 6, 7, 8))
    x = xarray.DataArray(
        values,
        dims=("time", "Z", "Y", "X"),
        coords={
            "time": [0.5, 1.5],
            "Z": ("Z", np.arange(6) * 3.0, {"units": "micron"}),
            "Y": ("Y", 10 + np.arange(7) * 1.5, {"units": "um"}),
            "X": ("X", np.arange(8) * 2.0, {"units": "µm"}),
            "label": ("Z", list("abcdef")),
        },
        attrs={"sample": 7},
        name="density",
    )
    same = conv3d(x, "gaussian:fwhm=6um", padding="same", boundary="nearest")
    by_hand = conv3d(
        Volume(values, "tzyx", Grid(SPACING, "um")),
        "gaussian:fwhm=6um",
        padding="same",
        boundary="nearest",
    )
    assert same.dims == x.dims
    assert (same.name, same.attrs) == ("density", {"sample": 7})
    assert all(same.coords[name].equals(x.coords[name]) for name in x.coords)
    assert np.array_equal(same.values, by_hand.data)
    inner = conv3d(x, np.ones((3, 3, 3)), strides=(1, 2, 1))
    assert inner.coords["Z"].values.tolist() == [3.0, 6.0, 9.0, 12.0]
    assert inner.coords["Y"].values.tolist() == [11.5, 14.5, 17.5]
    assert "".join(inner.coords["label"].values) == "bcde"
    full = conv3d(x, np.ones((3, 2, 3)), padding=((1, 1), (0, 0), (1, 1)))
    assert "Y" not in full.coords  # between the voxels of x
    assert "X" in full.coords
    four = conv3d(x, np.ones((1, 1, 1, 1, 4)))
    assert four.dims == ("time", "Z", "Y", "X", "channel")


def test_dimensions_of_an_xarray_are_told_by_name() -> None:
    x = xarray.DataArray(np.zeros((2, 3, 4, 5)), dims=("time", "level", "lat", "lon"))
    with pytest.raises(SpecError, match=r"time, level, lat, lon .*rename\(lon='x'\)"):
        conv3d(x, "box:size=1")
    with pytest.raises(ShapeError, match=r"Dataset, .*one of them: 'a'"):
        conv3d(xarray.Dataset({"a": x}), "box:size=1")
    assert conv3d(x[0], "box:size=1").dims == ("level", "lat", "lon")
