"""The voxels that are picked: the right ones, from every kind of file, without the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conv3d_cli import Volume, write_volume
from conv3d_cli.errors import Conv3DError, FormatError, ShapeError, SpecError
from conv3d_cli.formats import open_volume
from conv3d_cli.formats.base import RawReader
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.pictures.slices import Position, read_slices

SHAPE = (2, 3, 6, 7, 8)  # t c z y x


def numbered() -> np.ndarray:
    """Every voxel another number."""
    return np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy", ".tif", ".ome.tif", ".ome.zarr"])
def test_known_voxels_of_every_format(tmp_path: Path, suffix: str) -> None:
    if suffix == ".ome.zarr":
        pytest.importorskip("zarr")
    path, data = str(tmp_path / f"x{suffix}"), numbered().astype(np.uint16)
    spacing = (3.0, 1.0, 2.0)
    write_volume(path, Volume(data, "tczyx", Grid(spacing, "mm", affine_from_spacing(spacing))))
    axes = "tczyx" if suffix == ".npy" else None
    for n, c, place in ((0, 0, (3, 3, 4)), (1, 2, (5, 0, 7)), (1, 0, (0, 6, 0))):
        slices = read_slices(path, Position(tuple(map(float, place))), n, c, axes)
        d, h, w = place
        assert slices.at == place
        np.testing.assert_array_equal(slices.planes[0], data[n, c, d])
        np.testing.assert_array_equal(slices.planes[1], data[n, c, :, h])
        np.testing.assert_array_equal(slices.planes[2], data[n, c, :, :, w])
    assert read_slices(path, axes=axes).at == (3, 3, 4), "the middle"


def test_a_compressed_tiff_is_decoded_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile")
    data = numbered()[0, 0].astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "x.tif",
        data,
        compression="zlib",
        photometric="minisblack",
        metadata={"axes": "ZYX"},
    )
    slices = read_slices(str(tmp_path / "x.tif"))
    np.testing.assert_array_equal(slices.planes[2], data[:, :, 4])


def test_scaled_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "x.nii")
    assert read_slices(str(tmp_path / "x.nii")).planes[0][0, 0] == 2 * 0.5 - 3  # i, j, k = 0, 0, 2


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz"])
def test_long_axes_are_thinned(tmp_path: Path, suffix: str) -> None:
    data = np.arange(5 * 9 * 30, dtype=np.float32).reshape(5, 9, 30)
    path = str(tmp_path / f"x{suffix}")
    write_volume(path, Volume(data, "zyx"))
    slices = read_slices(path, Position((3.0, 5.0, 7.0)), max_samples=4)
    assert slices.steps == (2, 3, 8)
    np.testing.assert_array_equal(slices.planes[0], data[3, ::3, ::8])
    np.testing.assert_array_equal(slices.planes[1], data[::2, 5, ::8])
    np.testing.assert_array_equal(slices.planes[2], data[::2, ::3, 7])


def test_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", numbered()[0, 0])
    whole = read_slices(str(tmp_path / "x.npy"), max_samples=3)
    monkeypatch.setattr("conv3d_cli.pictures.slices.PIECE_BYTES", 1)
    for a, b in zip(
        whole.planes, read_slices(str(tmp_path / "x.npy"), max_samples=3).planes, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_only_the_planes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", numbered()[0, 0])
    asked = []
    original = RawReader.read_box

    def read_box(self: RawReader, *box: object) -> np.ndarray:
        block = original(self, *box)  # type: ignore[arg-type]
        asked.append(block.size)
        return block

    monkeypatch.setattr(RawReader, "read_box", read_box)
    read_slices(str(tmp_path / "x.npy"))
    assert sum(asked) == 7 * 8 + 6 * 8 + 6 * 7


def test_a_point_of_the_world(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -2.0, 10], [-3.0, 0, 0, 20], [0, 4.0, 0, -5], [0, 0, 0, 1]])
    nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine).to_filename(tmp_path / "x.nii.gz")
    i, j, k = 3, 1, 2
    x, y, z = (affine @ [i, j, k, 1])[:3]
    assert read_slices(str(tmp_path / "x.nii.gz"), Position.parse(f"{x},{y},{z}mm")).at == (k, j, i)
    assert read_slices(
        str(tmp_path / "x.nii.gz"), Position.parse(f"{x / 10},{y / 10 + 0.01},{z / 10}cm")
    ).at == (k, j, i)
    with pytest.raises(ShapeError, match=r"100,0,0 mm, voxel .* lies outside"):
        read_slices(str(tmp_path / "x.nii.gz"), Position.parse("100,0,0mm"))


@pytest.mark.parametrize(
    "text",
    ["", "1,2", "1,2,3,4", "a,b,c", "1.5,2,3", "nan,1,2", "1,2,3vox", "inf,1,2mm", "1,2,infmm"],
)
def test_wrong_places(text: str) -> None:
    with pytest.raises(SpecError, match="a place is a voxel D,H,W"):
        Position.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2}, "has 2 time points, counted from 0, received -n 2"),
        ({"n": -1}, "received -n -1"),
        ({"channel": 3}, "has 3 channels, counted from 0, received -c 3"),
        (
            {"at": Position((6.0, 0.0, 0.0))},
            "voxel 6,0,0 lies outside .*, whose depth,height,width is 6,7,8",
        ),
        ({"at": Position((1e300, 0.0, 0.0))}, "lies outside"),
        ({"at": Position((0.0, 0.0, 0.0), "mm")}, "has no world coordinates"),
    ],
)
def test_places_that_are_not_there(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    np.save(tmp_path / "x.npy", numbered())
    with pytest.raises(ShapeError, match=message):
        read_slices(str(tmp_path / "x.npy"), axes="tczyx", **arguments)  # type: ignore[arg-type]


def test_no_voxels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 3, 4)))
    with pytest.raises(Conv3DError):
        read_slices(str(tmp_path / "x.npy"))


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    write_volume(str(path), Volume(np.random.default_rng(0).standard_normal((9, 9, 9)), "zyx"))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # its checksum
    path.write_bytes(content)
    with pytest.raises(FormatError):
        read_slices(str(path))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("suffix", [".nii.gz", ".npy"])
def test_memory_does_not_follow_the_file(tmp_path: Path, suffix: str) -> None:
    """400 MB of voxels; the process with its libraries takes less than half of that."""
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(400, 500, 500)).flush()
    else:
        small = Volume(np.zeros((1, 500, 500), np.float32), "zyx")
        from conv3d_cli.formats import create_volume

        header = Volume(np.broadcast_to(np.float32(0), (400, 500, 500)), "zyx").header
        with create_volume(str(path), header) as writer:
            for depth in range(400):
                writer.write(0, depth, 0, small.data[..., None])
            writer.commit()
    program = (
        "import re, sys\n"
        "from conv3d_cli.pictures.slices import read_slices\n"
        "read_slices(sys.argv[1])\n"
        # not getrusage, which begins with what the process that started this one held
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) * 1024 < 200e6


def test_anatomy_is_what_a_nifti_says(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.diag([2.0, 2, 2, 1]))
    image.to_filename(tmp_path / "x.nii")
    with open_volume(str(tmp_path / "x.nii")) as reader:
        assert reader.header.grid.anatomical
    image.header["sform_code"] = image.header["qform_code"] = 0
    content = bytearray(image.to_bytes())
    content[252:256] = bytes(4)  # both codes, which nibabel sets again
    (tmp_path / "y.nii").write_bytes(content)
    with open_volume(str(tmp_path / "y.nii")) as reader:
        assert not reader.header.grid.anatomical
