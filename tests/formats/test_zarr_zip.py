"""Zipped OME-Zarr (.ozx, .zarr.zip): read by and compared with zarr's own store and zipfile."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import content_of, open_volume, read_volume, volume_files, write_volume
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Volume

zarr = pytest.importorskip("zarr")


def large(rng: np.random.Generator) -> Volume:
    data = rng.normal(size=(8, 40, 48)).astype(np.float32)
    return Volume(data, "zyx", Grid((2.0, 0.5, 0.5), "um"))


def zipped(path: Path, data: np.ndarray, top: str = "", **more: Any) -> Path:
    """A zip file that zarr and zipfile make, its store at the top or in a folder."""
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2, 0.5, 0.5]}]}
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}], **more}
    folder = path.with_suffix(".folder")
    group = zarr.create_group(str(folder), attributes={"ome": ome})
    group.create_array("0", data=data, chunks=(2, *data.shape[1:]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{top}{file.relative_to(folder).as_posix()}")
    return path


@pytest.mark.parametrize("top", ["", "image.zarr/"])
@pytest.mark.parametrize("name", ["a.ozx", "a.ome.zarr.zip", "A.ZARR.ZIP"])
def test_reading(tmp_path: Path, name: str, top: str, rng: np.random.Generator) -> None:
    data = rng.integers(0, 9000, (7, 8, 9), dtype=np.uint16)
    path = zipped(tmp_path / name, data, top)
    for given in (f"{path}", f"{path}/0"):
        back = read_volume(given)
        np.testing.assert_array_equal(back.data, data)
        assert (back.grid.spacing, back.grid.unit) == ((2, 0.5, 0.5), "um")
    assert volume_files(f"{path}/0") == (str(path),)
    assert content_of(str(path)) == ""
    assert content_of(str(zipped(tmp_path / "l.ozx", data, top, **{"image-label": {}}))) == "labels"


def test_missing_chunks_are_counted(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.ozx", np.ones((4, 3, 4), np.uint8))
    part = tmp_path / "b.ozx"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(part, "w") as less:
        for name in whole.namelist():
            if name != "0/c/1/0/0":
                less.writestr(name, whole.read(name))
    with open_volume(str(part)) as reader:
        reader.read(0, slice(0, 4), slice(0, 1))
        reader.finish()
        assert any("1 of 2" in note for note in reader.notes)


def test_what_is_written_follows_rfc_9(tmp_path: Path, rng: np.random.Generator) -> None:
    volume = large(rng)
    write_volume(str(tmp_path / "a.ozx"), volume, levels=3, chunks=16)
    with zipfile.ZipFile(tmp_path / "a.ozx") as archive:
        names = archive.namelist()
        assert names[:4] == ["zarr.json", "0/zarr.json", "1/zarr.json", "2/zarr.json"]
        assert all(not name.endswith("zarr.json") for name in names[4:])
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(archive.comment) == {"ome": {"version": "0.5"}}
    store = zarr.storage.ZipStore(tmp_path / "a.ozx", read_only=True)
    group = zarr.open_group(store=store, mode="r")
    np.testing.assert_array_equal(group["0"][...], volume.data)
    assert group.attrs["ome"]["multiscales"][0]["name"] == "/"
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ozx"]


def test_format_2_becomes_3_as_rfc_9_asks(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.random((3, 4, 5)).astype(np.float32)
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    group.create_array("0", data=data)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": a, "type": "space"} for a in "zyx"],
            "datasets": [{"path": "0"}],
        }
    ]
    write_volume(str(tmp_path / "b.ozx"), read_volume(str(tmp_path / "a.zarr")))
    with zipfile.ZipFile(tmp_path / "b.ozx") as archive:
        assert archive.namelist()[0] == "zarr.json"
    np.testing.assert_array_equal(read_volume(str(tmp_path / "b.ozx")).data, data)
    write_volume(str(tmp_path / "b.zarr.zip"), read_volume(str(tmp_path / "a.zarr")))
    with zipfile.ZipFile(tmp_path / "b.zarr.zip") as archive:
        assert ".zgroup" in archive.namelist()


def test_what_is_no_zipped_store(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "a.ozx").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(FormatError, match="not a zip file, or truncated"):
        read_volume(str(tmp_path / "a.ozx"))
    with zipfile.ZipFile(tmp_path / "b.ozx", "w") as archive:
        archive.writestr("notes.txt", "none")
    with pytest.raises(FormatError, match="not a zipped Zarr store"):
        read_volume(str(tmp_path / "b.ozx"))
    with pytest.raises(FormatError, match="no such file"):
        read_volume(str(tmp_path / "c.ozx"))
    path = zipped(tmp_path / "d.ozx", np.ones((4, 3, 4), np.uint8))
    with pytest.raises(FormatError, match="no such group or array"):
        read_volume(f"{path}/9")
    with pytest.raises(SpecError, match="written as a whole"):
        write_volume(str(tmp_path / "e.ozx/0"), large(rng))
