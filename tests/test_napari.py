"""The widgets for napari: on stand-ins for layers, and on napari's own where it is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from inspect import signature
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli import napari as widgets
from conv3d_cli.errors import Conv3DError, ShapeError, SpecError
from conv3d_cli.settings.options import OPTION


def layer(data: np.ndarray, **more: Any) -> Any:
    count = data.ndim
    facts = {
        "name": "beads",
        "scale": np.ones(count),
        "translate": np.zeros(count),
        "units": ("um",) * count,
    }
    return SimpleNamespace(data=data, **{**facts, **more})


def convolved(source: Any, kernel: str, padding: str = "same", **missing: Any) -> Any:
    chosen = widgets._kernel(source, kernel, flip=False, normalize=False)
    return widgets.convolved(source, chosen, padding, "mirror", missing)


def test_each_time_point_is_smoothed_with_the_layers_spacing(rng: np.random.Generator) -> None:
    data = rng.standard_normal((2, 7, 9, 11)).astype(np.float32)
    source = layer(
        data, scale=np.array([1, 0.2, 0.1, 0.1]), units=("s", "micrometer", "micrometer", "um")
    )
    ((result, facts, kind),) = convolved(source, "gaussian:sigma=0.2um")
    expected = [
        ndimage.gaussian_filter(one.astype(float), (1, 2, 2), mode="mirror") for one in data
    ]
    assert np.allclose(result, expected, atol=1e-4)
    assert kind == "image"
    assert facts["name"] == "beads, gaussian:sigma=0.2um"
    assert facts["scale"] is source.scale


def test_spacings_of_several_units_are_converted() -> None:
    grid = widgets.grid_of(layer(np.zeros((1, 1, 1)), scale=(2.0, 1, 1), units=("um", "nm", "nm")))
    assert (grid.spacing, grid.unit) == ((2000.0, 1.0, 1.0), "nm")


def test_a_layer_in_pixels_has_no_length() -> None:
    source = layer(np.zeros((3, 3, 3)), units=("pixel",) * 3)
    with pytest.raises(ShapeError, match="no voxel spacing"):
        convolved(source, "gaussian:sigma=1um")
    assert convolved(source, "gaussian:sigma=1vox")


def test_each_derivative_is_a_layer_that_lies_where_its_voxels_do() -> None:
    data = np.zeros((5, 6, 7), np.float32)
    data += 3 * np.arange(7)
    source = layer(data, scale=(2.0, 1.0, 0.5), translate=(10.0, 0.0, 0.0))
    results = convolved(source, "gradient:axis=dw", padding="valid")
    assert [facts["name"] for _, facts, _ in results] == ["beads, gradient d", "beads, gradient w"]
    assert [float(values.max()) for values, *_ in results] == [0.0, 3.0]
    assert [values.shape for values, *_ in results] == [(3, 6, 5), (3, 6, 5)]
    assert [facts["translate"].tolist() for _, facts, _ in results] == [[12.0, 0.0, 0.5]] * 2


def test_a_mask_keeps_its_zeros(rng: np.random.Generator) -> None:
    data = rng.standard_normal((4, 5, 6)) + 5
    inside = np.zeros(data.shape, bool)
    inside[1:3] = True
    ((result, *_),) = convolved(layer(data), "box:size=3", mask=inside)
    means = ndimage.uniform_filter(data * inside, 3, mode="mirror")
    weights = ndimage.uniform_filter(inside.astype(float), 3, mode="mirror")
    assert np.allclose(result[inside], (means / weights)[inside])
    assert not result[~inside].any()


@pytest.mark.parametrize(
    ("source", "kernel", "words"),
    [
        (layer(np.zeros((3, 3, 3)), rgb=True), "box:size=3", "split its channels"),
        (layer(np.zeros((3, 3, 3)), multiscale=True), "box:size=3", "add one of them as a layer"),
        (layer(np.zeros((3, 3))), "box:size=3", "needs three axes"),
        (layer(np.zeros((3, 3, 3))), "gaussian:fwhm=6", "needs a unit"),
    ],
)
def test_what_cannot_be_convolved_says_why(source: Any, kernel: str, words: str) -> None:
    with pytest.raises(Conv3DError, match=words):
        convolved(source, kernel)


def test_a_layer_of_keras_is_refused(tmp_path: Any) -> None:
    np.save(tmp_path / "layer.npy", np.ones((3, 3, 3, 2, 4)))
    with pytest.raises(SpecError, match="filters of three axes"):
        convolved(layer(np.zeros((3, 3, 3))), str(tmp_path / "layer.npy"))


def test_two_layers_share_a_window_and_their_difference_is_signed() -> None:
    first = layer(np.arange(27, dtype=np.float32).reshape(3, 3, 3))
    second = layer(first.data[::-1].copy(), name="other")
    values, facts, _ = widgets.view(first, second)
    assert np.array_equal(values, second.data - first.data)
    assert facts["contrast_limits"] == (-18.0, 18.0)
    assert first.contrast_limits == second.contrast_limits == (0.0, 26.0)
    colours = facts["colormap"]["colors"]
    assert not colours[len(colours) // 2].any()  # 0 is black
    same, facts, _ = widgets.view(first, first)
    assert not same.any()
    assert facts["contrast_limits"][1] > facts["contrast_limits"][0]


def test_layers_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(ShapeError, match="one shape and scale"):
        widgets.view(layer(np.zeros((3, 3, 3))), layer(np.zeros((3, 3, 4))))


# ---------------------------------------------------------------------------------------------------------------------
# What napari is told


def manifest() -> str:
    return files("conv3d_cli").joinpath("napari.yaml").read_text("utf-8")


def test_the_manifest_names_functions_that_are_there() -> None:
    named = [
        line.split(":")[-1].strip() for line in manifest().splitlines() if "python_name" in line
    ]
    assert named == ["apply", "view"]
    assert all(callable(getattr(widgets, name)) for name in named)


def test_the_form_shows_the_help_and_the_choices_of_the_table() -> None:
    parameters = signature(widgets.apply).parameters
    shown = {name: p.annotation.__metadata__[0] for name, p in parameters.items() if name in OPTION and name != "mask"}  # fmt: skip
    assert set(parameters) - set(shown) == {"layer", "mask"}
    for name, form in shown.items():
        assert form["tooltip"] == OPTION[name].help
        if OPTION[name].kind.choices:
            assert tuple(form["choices"]) == OPTION[name].kind.choices
        if OPTION[name].default is not None:
            assert parameters[name].default == OPTION[name].default


def test_the_module_needs_no_napari() -> None:
    program = (
        "import sys, conv3d_cli.napari; print({'napari', 'magicgui', 'qtpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_npe2_takes_the_manifest(tmp_path: Any) -> None:
    npe2 = pytest.importorskip("npe2", reason="needs npe2")
    (tmp_path / "napari.yaml").write_text(manifest())
    found = npe2.PluginManifest.from_file(tmp_path / "napari.yaml")
    assert [widget.display_name for widget in found.contributions.widgets] == [
        "Convolve",
        "Compare",
    ]
    found.validate_imports()


def test_napari_makes_layers_of_the_results() -> None:
    layers = pytest.importorskip("napari.layers", reason="needs napari")
    source = layers.Image(
        np.zeros((5, 6, 7), np.float32), scale=(2, 1, 1), shear=[0.1, 0, 0], units=["um"] * 3
    )
    ((values, facts, kind),) = convolved(source, "gaussian:fwhm=2um")
    made = layers.Layer.create(values, facts, kind)
    assert np.allclose(made.data_to_world((1, 2, 3)), source.data_to_world((1, 2, 3)))
    ((values, facts, kind),) = convolved(source, "box:size=3", padding="valid")
    made = layers.Layer.create(values, facts, kind)
    assert np.allclose(made.data_to_world((1, 2, 3)), source.data_to_world((2, 3, 4)))
    other = layers.Layer.create(*widgets.view(source, source))
    assert other.colormap.name == "conv3d difference"
