"""OME-Zarr as other programs describe it: axes, units, systems, flips, plates; and what we write.

The stores are made by the zarr library alone, and outputs are read by it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, ShapeError
from conv3d_cli.formats import open_volume, read_volume, write_volume
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Volume
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

zarr = pytest.importorskip("zarr")

IDENTITY = (Stage(Kernel(np.ones((1, 1, 1)))),)
SCALE = {"z": 2.0, "y": 0.5, "x": 0.25}


def axis(name: str, kind: str = "", unit: str = "") -> dict[str, str]:
    found = {"name": name, "type": kind, "unit": unit}
    return {key: value for key, value in found.items() if value}


def space(unit: str = "micrometer") -> list[dict[str, str]]:
    return [axis(a, "space", unit) for a in "zyx"]


def make(path: Path, data: np.ndarray, multiscale: dict[str, Any], **ome: Any) -> Path:
    """A store of version 0.5, or of the version in `ome`."""
    described = {"version": "0.5", "multiscales": [multiscale], **ome}
    group = zarr.create_group(str(path), attributes={"ome": described})
    group.create_array("0", data=data, chunks=data.shape)
    return path


def image(axes: list[Any], *transformations: dict[str, Any], **more: Any) -> dict[str, Any]:
    scale = [SCALE.get(str(a["name"]).lower(), 1.0) for a in axes]
    steps = list(transformations) or [{"type": "scale", "scale": scale}]
    return {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}], **more}


def attributes(path: Path) -> dict[str, Any]:
    return zarr.open_group(str(path), mode="r").attrs.asdict()["ome"]


def convert(source: Path, target: Path, **options: Any) -> list[str]:
    """Copy a volume as `apply -k identity` does. Returns the notes."""
    return run_job(Job(str(source), str(target), IDENTITY, **options)).notes


# --------------------------------------------------------------------------------------------------
# Axes and units


@pytest.mark.parametrize(
    ("axes", "letters"),
    [
        ([axis("z"), axis("y", "space"), axis("x", "space")], "zyx"),
        ([axis("z", "space"), axis("y"), axis("x")], "zyx"),
        ([axis("z"), axis("y"), axis("x")], "zyx"),
        ([axis("Z"), axis("Y", "Space"), axis("X", "SPACE")], "zyx"),
        ([axis("t"), axis("c"), *space()], "tczyx"),
        ([axis("time"), axis("channel"), axis("z"), axis("y", "space"), axis("x")], "tczyx"),
        ([axis("t", "space"), axis("y"), axis("x")], "zyx"),  # a type counts more than a name
    ],
)
def test_names_tell_what_types_do_not(
    tmp_path: Path, axes: list[dict[str, str]], letters: str, rng: np.random.Generator
) -> None:
    """NGFF 0.4 and 0.5: an axis SHOULD have a type."""
    data = rng.random((2, 3, 4, 5, 6)[-len(axes) :])
    back = read_volume(str(make(tmp_path / "a.zarr", data, image(axes))))
    assert back.axes == letters
    np.testing.assert_array_equal(back.data, data)


@pytest.mark.parametrize("word", ["micron", "µm", "μm", "micrometre", "Micrometers", "um"])
def test_other_spellings_of_units(tmp_path: Path, word: str) -> None:
    data = np.zeros((2, 3, 4), np.uint8)
    path = make(tmp_path / "a.zarr", data, image(space(word)))
    assert read_volume(str(path)).grid.spacing_in("nm") == (2000, 500, 250)
    convert(path, tmp_path / "b.zarr")
    axes = attributes(tmp_path / "b.zarr")["multiscales"][0]["axes"]
    assert [a["unit"] for a in axes] == ["micrometer"] * 3


def test_a_scale_of_zero_is_told(tmp_path: Path) -> None:
    steps = [{"type": "scale", "scale": [0, 0.5, 0.25]}, {"type": "translation",
             "translation": [1, 2, 3]}]  # fmt: skip
    store = make(tmp_path / "a.zarr", np.zeros((2, 3, 4), np.uint8), image(space(), *steps))
    with open_volume(str(store)) as reader:
        assert reader.header.grid.spacing is None
        assert any("its scale along z is 0" in note for note in reader.notes)


def test_an_axis_without_a_unit_takes_that_of_another(tmp_path: Path) -> None:
    data = np.zeros((2, 3, 4), np.uint8)
    mixed = [axis("z", "space", "micron"), axis("y", "space"), axis("x", "space")]
    grid = read_volume(str(make(tmp_path / "a.zarr", data, image(mixed)))).grid
    assert (grid.spacing, grid.unit) == ((2.0, 0.5, 0.25), "um")
    mixed[2]["unit"] = "pixel"
    grid = read_volume(str(make(tmp_path / "b.zarr", data, image(mixed)))).grid
    assert (grid.spacing, grid.unit) == ((2.0, 0.5, 0.25), None)


# --------------------------------------------------------------------------------------------------
# Versions


def systems(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "axes": space()} for name in names]


def to_system(name: Any, *steps: dict[str, Any]) -> dict[str, Any]:
    """A dataset of 0.6, whose transformations lead to a coordinate system."""
    step = steps[0] if len(steps) == 1 else {"type": "sequence", "transformations": list(steps)}
    way = {**step, "input": {"path": "0"}, "output": name}
    return {"path": "0", "coordinateTransformations": [way]}


@pytest.mark.parametrize("version", ["0.6", "0.6.dev3"])
@pytest.mark.parametrize("output", ["physical", {"name": "physical"}])
def test_coordinate_systems(
    tmp_path: Path, version: str, output: Any, rng: np.random.Generator
) -> None:
    """0.6: levels lead to the intrinsic system; what leads further is another view."""
    data = rng.random((3, 4, 5)).astype(np.float32)
    scale = {"type": "scale", "scale": [2.0, 0.5, 0.25]}
    shift = {"type": "translation", "translation": [10.0, 20.0, 30.0]}
    described = {
        "coordinateSystems": systems("atlas", "physical"),
        "datasets": [to_system(output, scale, shift)],
        "coordinateTransformations": [
            {"type": "scale", "scale": [7, 7, 7], "input": "physical", "output": "atlas"}
        ],
    }
    path = make(tmp_path / "a.zarr", data, described, version=version)
    for name in (path, path / "0"):
        with open_volume(str(name)) as reader:
            grid = reader.header.grid
            assert (grid.spacing, grid.unit) == ((2.0, 0.5, 0.25), "um")
            np.testing.assert_array_equal(grid.world((0, 0, 0)), [30, 20, 10])
            assert any("others are left out: atlas" in note for note in reader.notes)
    convert(path, tmp_path / "b.zarr")
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "b.zarr" / "0"))[...], data)
    assert attributes(tmp_path / "b.zarr")["version"] == "0.5"


def test_what_is_newer_or_not_supported_is_not_called_damaged(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.random((3, 4, 5))
    future = make(tmp_path / "a.zarr", data, {"datasets": []}, version="0.9")
    turned = {"type": "rotation", "rotation": np.eye(3).tolist()}
    described = {"coordinateSystems": systems("p"), "datasets": [to_system("p", turned)]}
    known = make(tmp_path / "b.zarr", data, described, version="0.6")
    for path, fact in ((future, "of version 0.9, and 0.6 is the newest"), (known, "'rotation'")):
        with pytest.raises(FormatError) as caught:
            read_volume(str(path))
        assert fact in str(caught.value)
        assert "are damaged" not in str(caught.value)
        assert f"the array {path}/0 can be read without them" in str(caught.value)
        with open_volume(f"{path}/0", axes="xyz") as reader:
            assert reader.header.axes.letters == "xyz"
            assert "without its OME metadata" in reader.notes[0]
            np.testing.assert_array_equal(
                reader.read(0, slice(0, 5), slice(0, 1))[..., 0], data.transpose(2, 1, 0)
            )


def test_an_array_is_read_by_its_own_name_whatever_is_said_of_it(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.random((2, 3, 4, 5))
    short = {"type": "scale", "scale": [2.0, 0.5, 0.25]}
    path = make(tmp_path / "a.zarr", data, image([axis("c", "channel"), *space()], short))
    with pytest.raises(FormatError, match="3 numbers for 4 axes"):
        read_volume(str(path))
    np.testing.assert_array_equal(read_volume(f"{path}/0", axes="czyx").data, data)


def test_an_image_without_a_version_and_axes_is_the_oldest(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.random((1, 2, 3, 4, 5))
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    group.create_array("0", data=data)
    group.attrs["multiscales"] = [{"datasets": [{"path": "0"}]}]
    assert read_volume(str(tmp_path / "a.zarr")).axes == "tczyx"


# --------------------------------------------------------------------------------------------------
# Flips


def test_flips_and_translations_of_a_store_are_kept(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    flipped = [
        {"type": "scale", "scale": [2.0, -0.5, 0.25]},
        {"type": "translation", "translation": [5.0, 6.0, 7.0]},
    ]
    data = rng.random((8, 32, 64)).astype(np.float32)
    path = make(tmp_path / "a.zarr", data, image(space(), *flipped))
    assert convert(path, tmp_path / "b.zarr", levels=3) == []
    first, _, third = attributes(tmp_path / "b.zarr")["multiscales"][0]["datasets"]
    assert first["coordinateTransformations"] == flipped
    # the mean of rows 0 and 1 lies at 6 - 0.25, of columns 0 to 3 at 7 + 0.375
    assert [list(step.values())[1] for step in third["coordinateTransformations"]] == [
        [2.0, -1.0, 1.0],
        [5.0, 5.75, 7.375],
    ]


# --------------------------------------------------------------------------------------------------
# Plates, wells, groups, levels


def test_hints_name_what_is_there(tmp_path: Path) -> None:
    data = np.zeros((2, 3, 4), np.uint8)
    plate = {"version": "0.5", "plate": {"wells": [{"path": "B/1"}]}}
    zarr.create_group(str(tmp_path / "p.zarr"), attributes={"ome": plate})
    well = {"ome": {"version": "0.5", "well": {"images": [{"path": "fov_a"}]}}}
    zarr.create_group(str(tmp_path / "p.zarr" / "B" / "1"), attributes=well)
    make(tmp_path / "p.zarr" / "B" / "1" / "fov_a", data, image(space()))
    root = zarr.create_group(str(tmp_path / "g.zarr"))
    root.create_group("raw").create_array("s0", data=data)
    several = {"ome": {"version": "0.5", "bioformats2raw.layout": 3}}
    zarr.create_group(str(tmp_path / "s.zarr"), attributes=several)
    make(tmp_path / "s.zarr" / "first", data, image(space()))
    for name, inside in (
        ("p.zarr", "B/1/fov_a"),
        ("p.zarr/B/1", "fov_a"),
        ("g.zarr", "raw/s0"),
        ("s.zarr", "first"),
    ):
        with pytest.raises(FormatError, match=f"such as {tmp_path}/{name}/{inside}$"):
            read_volume(f"{tmp_path}/{name}")
        assert read_volume(f"{tmp_path}/{name}/{inside}").data.shape == data.shape


def test_a_missing_coarser_level_hides_nothing(tmp_path: Path) -> None:
    described = image(space())
    described["datasets"] *= 2
    described["datasets"][1] = {**described["datasets"][1], "path": "1"}
    path = make(tmp_path / "a.zarr", np.zeros((2, 3, 4), np.uint8), described)
    with open_volume(str(path)) as reader:
        assert reader.storage()["levels"] == "0: 2 x 3 x 4; 1: missing"


def test_a_sparse_store_is_valid_and_an_empty_one_an_error_if_asked(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.random((4, 3, 4))
    path = make(tmp_path / "a.zarr", data, image(space()))
    array = zarr.create_array(
        str(path / "0"), data=data, chunks=(2, 3, 4), overwrite=True, fill_value=0
    )
    assert array.nchunks == 2
    assert convert(path, tmp_path / "b.zarr", strict=True) == []
    shutil.rmtree(path / "0" / "c" / "1")
    told = "chunks that are not in the store: 1 of 2; they are read as its fill value, 0.0"
    assert told in convert(path, tmp_path / "c.zarr")
    assert told in convert(path, tmp_path / "strict.zarr", strict=True)
    shutil.rmtree(path / "0" / "c")
    with pytest.raises(ShapeError, match=r"2 of 2.*nothing was written"):
        convert(path, tmp_path / "d.zarr", strict=True)
    assert not (tmp_path / "d.zarr").exists()
    assert "2 of 2" in (text := convert(path, tmp_path / "e.zarr")[-1])
    assert "separator of chunk names" in text


# --------------------------------------------------------------------------------------------------
# Windows


@pytest.mark.parametrize("value", [0.0, 7.0, -3e38, 1e-30, np.nan])
def test_constant_channels_have_a_window(tmp_path: Path, value: float) -> None:
    """napari refuses a window whose end is not above its start."""
    window = {"min": 0, "max": 1, "start": 0, "end": 1}
    channels = [{"label": a, "color": "FF0000", "window": window} for a in "ab"]
    data = np.full((2, 2, 3, 4), value, np.float32)
    described = image([axis("c", "channel"), *space()])
    path = make(tmp_path / "a.zarr", data, described, omero={"channels": channels})
    convert(path, tmp_path / "b.zarr")
    for channel in attributes(tmp_path / "b.zarr")["omero"]["channels"]:
        found = json.loads(json.dumps(channel["window"]))
        assert found["start"] < found["end"]
        assert np.float32(found["start"]) < np.float32(found["end"])
        assert found["min"] < found["max"]
        assert np.isnan(value) or found["start"] <= np.float32(value) <= found["end"]


def test_bare_volumes_have_no_window(tmp_path: Path) -> None:
    write_volume(str(tmp_path / "a.zarr"), Volume(np.zeros((2, 3, 4), np.float32), "zyx"))
    assert "omero" not in attributes(tmp_path / "a.zarr")


def test_labels_in_a_store_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_volume(str(path), Volume(np.zeros((2, 3, 4), np.uint8), "zyx"))
    group = zarr.open_group(str(path), mode="r+")
    group.create_group("labels").attrs["ome"] = {"version": "0.5", "labels": ["nuclei"]}
    with open_volume(str(path)) as reader:
        assert reader.notes == (
            f"the store also holds labels (nuclei), which are images of their own: "
            f"{path}/labels/nuclei",
        )
