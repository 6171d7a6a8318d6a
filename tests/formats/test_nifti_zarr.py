"""NIfTI-Zarr: the NIfTI header of a store counts, and is written. Read and written by nibabel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import content_of, open_volume, read_volume
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job

zarr = pytest.importorskip("zarr")

IDENTITY = (Stage(Kernel(np.ones((1, 1, 1)))),)
DATA = np.random.default_rng(1).integers(0, 1000, (9, 8, 7, 3)).astype(np.int16)  # x, y, z, t


def image(kind: Any = nibabel.Nifti1Image) -> Any:
    """Oblique, left-handed, scaled, with a repetition time."""
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.linalg.det(turn)) * (-1.9, 1.8, 2.2)
    affine[:3, 3] = (90, -120, -70)
    found = kind(DATA, affine)
    found.set_sform(affine, 1)
    found.set_qform(affine, 1)
    found.header.set_xyzt_units("mm", "sec")
    found.header["pixdim"][4] = 2.5
    found.header["descrip"] = b"a brain"
    return found


def store(path: Path, image: Any, magic: bytes = b"n+1\0", zarr_format: int = 3) -> Path:
    """A store as nifti-zarr 1.0.rc1 lays it out, with two levels."""
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"], header["magic"] = 2, 5, magic
    sizes = [1.0, *map(float, image.header["pixdim"][3:0:-1])]
    axes = [{"name": "t", "type": "time", "unit": "second"}]
    axes += [{"name": a, "type": "space", "unit": "millimeter"} for a in "zyx"]
    scales = [sizes, [1.0, *(2 * s for s in sizes[1:])]]
    datasets = [
        {
            "path": str(n),
            "coordinateTransformations": [
                {"type": "scale", "scale": scale},
                {
                    "type": "translation",
                    "translation": [n / 2 * (s if i else 0) for i, s in enumerate(sizes)],
                },
            ],
        }
        for n, scale in enumerate(scales)
    ]
    multiscales = [{"axes": axes, "datasets": datasets, "version": "0.4"}]
    attributes = (
        {"ome": {"version": "0.5", "multiscales": multiscales}}
        if zarr_format == 3
        else {"multiscales": multiscales}
    )
    group = zarr.create_group(str(path), zarr_format=zarr_format, attributes=attributes)
    data = DATA.transpose(3, 2, 1, 0)
    group.create_array("0", data=data)
    group.create_array("1", data=data[:, 1::2, ::2, ::2][:, :3])
    head = np.frombuffer(header.structarr.tobytes() + bytes(4), np.uint8)
    group.create_array("nifti", data=head)
    return path


def header_of(path: Path) -> Any:
    """The NIfTI header of a store, by zarr and nibabel."""
    content = zarr.open_array(str(path / "nifti"), mode="r")[...].tobytes()
    return nibabel.Nifti1Header.from_fileobj(io.BytesIO(content))


@pytest.mark.parametrize("magic", [b"n+1\0", b"ni1\0", b"nz1\0"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_header_counts(tmp_path: Path, magic: bytes, zarr_format: int) -> None:
    told = image()
    path = store(tmp_path / "a.nii.zarr", told, magic, zarr_format)
    with open_volume(str(path)) as reader:
        header = reader.header
    np.testing.assert_allclose(header.grid.affine, told.affine, atol=1e-5)
    assert header.grid.unit == "mm"
    assert header.scale == (2, 5)
    assert header.facts.time_step == (2.5, "s")
    np.testing.assert_array_equal(read_volume(str(path)).data, DATA.transpose(3, 2, 1, 0) * 2.0 + 5)


def test_a_coarser_level_lies_where_its_translation_says(tmp_path: Path) -> None:
    told = image()
    path = store(tmp_path / "a.nii.zarr", told)
    grid = read_volume(f"{path}/1").grid
    # twice the steps; its first voxel is the centre of eight
    expected = told.affine @ np.diag([2.0, 2, 2, 1])
    expected[:3, 3] = (told.affine @ (0.5, 0.5, 0.5, 1))[:3]
    np.testing.assert_allclose(grid.affine, expected, atol=1e-5)


def test_to_nifti_and_back(tmp_path: Path) -> None:
    told = image()
    path = store(tmp_path / "a.nii.zarr", told)
    run_job(Job(str(path), str(tmp_path / "b.nii.gz"), IDENTITY))
    found = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(found.affine, told.affine, atol=1e-5)
    np.testing.assert_array_equal(found.get_fdata(), DATA * 2.0 + 5)
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (1, 1)
    assert bytes(found.header["descrip"].tobytes()).rstrip(b"\0") == b"a brain"
    notes = run_job(Job(str(tmp_path / "b.nii.gz"), str(tmp_path / "c.nii.zarr"), IDENTITY)).notes
    assert notes == []
    back = header_of(tmp_path / "c.nii.zarr")
    np.testing.assert_allclose(back.get_best_affine(), told.affine, atol=1e-5)
    assert back.get_data_shape() == DATA.shape
    assert back.get_data_dtype() == np.float32
    assert back.get_zooms()[3] == 2.5
    values = zarr.open_array(str(tmp_path / "c.nii.zarr" / "0"), mode="r")
    np.testing.assert_array_equal(values[...], DATA.transpose(3, 2, 1, 0) * 2.0 + 5)


def test_a_plain_zarr_says_that_it_holds_no_rotation(tmp_path: Path) -> None:
    path = store(tmp_path / "a.nii.zarr", image())
    notes = run_job(Job(str(path), str(tmp_path / "b.zarr"), IDENTITY)).notes
    assert any("no rotation or flip" in note for note in notes)
    assert not (tmp_path / "b.zarr" / "nifti").exists()


def test_a_header_of_another_image_is_left_out(tmp_path: Path) -> None:
    told = image()
    told.header.set_data_shape((9, 8, 6, 3))
    path = store(tmp_path / "a.nii.zarr", told)
    with open_volume(str(path)) as reader:
        assert any("describes other axes" in note for note in reader.notes)
        assert reader.header.scale == (1, 0)
    told.header.set_data_shape(DATA.shape)
    group = zarr.open_group(str(store(tmp_path / "b.nii.zarr", told)))
    group["nifti"][...] = 0
    with pytest.raises(FormatError, match="not a NIfTI file"):
        read_volume(str(tmp_path / "b.nii.zarr"))


def test_labels_are_known_by_the_header(tmp_path: Path) -> None:
    told = image()
    assert content_of(str(store(tmp_path / "a.nii.zarr", told))) == ""
    told.header.set_intent("label")
    assert content_of(str(store(tmp_path / "b.nii.zarr", told))) == "labels"
