"""Keras' JSON: whose class an entry is, and the padding layers before a Conv3D."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conv3d_cli import conv3d
from conv3d_cli.errors import SpecError
from conv3d_cli.model.keras_json import class_of, joined_padding, pads_of


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"class_name": "Conv3D"}, "Conv3D"),
        ({"class_name": "Conv3D", "module": "keras.layers", "registered_name": None}, "Conv3D"),
        (
            {"class_name": "Conv3D", "module": "tf_keras.layers", "registered_name": "Conv3D"},
            "Conv3D",
        ),
        ({"class_name": "Functional", "module": "keras.src.models.functional"}, "Functional"),
        ({"class_name": "Conv3D", "module": "keras_contrib.layers"}, "keras_contrib.layers.Conv3D"),
        (
            {"class_name": "Conv3D", "module": "__main__", "registered_name": "Conv3D"},
            "__main__.Conv3D",
        ),
        ({"class_name": "My>Conv3D"}, "My>Conv3D"),
    ],
)
def test_whose_class_it_is(entry: dict[str, Any], name: str) -> None:
    assert class_of(entry) == name


def pad(padding: Any, **more: Any) -> dict[str, Any]:
    return {"class_name": "ZeroPadding3D", "config": {"name": "pad", "padding": padding, **more}}


def crop(cropping: Any) -> dict[str, Any]:
    return {"class_name": "Cropping3D", "config": {"name": "crop", "cropping": cropping}}


@pytest.mark.parametrize(
    ("entries", "pads"),
    [
        ([], ((0, 0), (0, 0), (0, 0))),
        ([pad(2)], ((2, 2), (2, 2), (2, 2))),
        ([pad([1, 2, 3])], ((1, 1), (2, 2), (3, 3))),
        ([pad(1), pad([[1, 0], [0, 2], [0, 0]])], ((2, 1), (1, 3), (1, 1))),
        ([pad(2), crop([[0, 1], [2, 0], [1, 1]])], ((2, 1), (0, 2), (1, 1))),
    ],
)
def test_what_layers_add(entries: list[Any], pads: Any) -> None:
    assert pads_of(entries) == pads


@pytest.mark.parametrize(
    "entries",
    [
        [crop(1)],
        [crop(1), pad(2)],
        [pad(1), crop(2)],
        [pad(-1)],
        [pad([1, 2])],
        [pad("same")],
        [pad(True)],
    ],
)
def test_what_is_no_padding_of_a_conv3d(entries: list[Any]) -> None:
    with pytest.raises(SpecError, match=r"the (ZeroPadding|Cropping)3D layer '(pad|crop)'"):
        pads_of(entries)


def test_other_axes_are_not_joined() -> None:
    assert pads_of([pad(1, data_format="channels_first")], "channels_first")[0] == (1, 1)
    with pytest.raises(SpecError, match="pads other axes"):
        pads_of([pad(1, data_format="channels_first")], "channels_last")


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("dilation_rate", [(1, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_joined_padding_is_padding_first(strides: Any, dilation_rate: Any, padding: str) -> None:
    """NumPy's pad and then the layer, against the layer with both."""
    if max(strides) > 1 and max(dilation_rate) > 1:
        pytest.skip("Keras refuses the two together")
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 5, 6, 7, 2)), rng.standard_normal((3, 2, 2, 2, 3))
    pads = ((1, 0), (0, 2), (3, 1))
    if padding == "same" and max(strides) > 1:
        with pytest.raises(SpecError, match="depends on the volume's size"):
            joined_padding(pads, padding, (3, 2, 2), strides, dilation_rate)
        return
    joined: Any = joined_padding(pads, padding, (3, 2, 2), strides, dilation_rate)
    words: dict[str, Any] = {"strides": strides, "dilation_rate": dilation_rate}
    first = conv3d(np.pad(x, ((0, 0), *pads, (0, 0))), kernel, padding=padding, **words)
    np.testing.assert_allclose(
        conv3d(x, kernel, padding=joined, **words), first, rtol=1e-5, atol=1e-5
    )
