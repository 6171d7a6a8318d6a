"""CZI, LIF and ND2: files written by hand from the published layouts, and read by other libraries, too.

No file of a microscope is small enough to be kept here, so that what only the vendors' own programs
write is not seen, such as ND2 before version 3.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import microscopes
import numpy as np
import pytest

from conv3d_cli.errors import FormatError
from conv3d_cli.formats import input_format, open_volume, read_volume


def error_of(path: str) -> str:
    with pytest.raises(FormatError) as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


XML = """<ImageDocument><Metadata><Information><Image><Dimensions><Channels>
<Channel Id="Channel:0" Name="DAPI"/><Channel Id="Channel:1" Name="GFP"/></Channels>
<T><Positions><Interval><Start>0</Start><Increment>1.5</Increment></Interval></Positions></T>
<S><Scenes><Scene Index="0" Name="A1"/><Scene Index="1" Name="B2"/></Scenes></S>
</Dimensions></Image></Information><Scaling><Items>
<Distance Id="X"><Value>2.5e-07</Value></Distance><Distance Id="Y"><Value>3e-07</Value></Distance>
<Distance Id="Z"><Value>1e-06</Value></Distance></Items></Scaling></Metadata></ImageDocument>"""


class TestCzi:
    values = np.arange(2 * 2 * 3 * 5 * 6, dtype=np.uint16).reshape(2, 2, 3, 5, 6)  # t, c, z, y, x

    def tiles(self, scene: int = 0) -> list[tuple[dict[str, int], np.ndarray]]:
        return [
            ({"X": 100, "Y": -20, "C": c, "Z": z, "T": t, "S": scene}, self.values[t, c, z])
            for t, c, z in np.ndindex(2, 2, 3)
        ][::-1]  # in any order

    def by_czifile(self, path: str) -> np.ndarray:
        czifile = pytest.importorskip("czifile")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.squeeze(czifile.imread(path))

    @pytest.mark.parametrize("name", ["a.czi", "a.dat"])
    def test_all_is_read(self, tmp_path: Path, name: str) -> None:
        path = microscopes.czi(tmp_path / name, self.tiles(), XML)
        found = input_format(path)
        assert found is not None
        assert found.name == "Zeiss CZI"
        with open_volume(path) as reader:
            header = reader.header
            assert header.facts.channel_names == ("DAPI", "GFP")
            assert header.facts.time_step == (1.5, "s")
            assert (header.grid.spacing, header.grid.unit) == ((1.0, 0.3, 0.25), "um")
        volume = read_volume(path)
        assert volume.axes == "tczyx"
        np.testing.assert_array_equal(volume.data, self.values)
        other = self.by_czifile(path)  # T, Z, C, Y, X: in the order of the first tile
        np.testing.assert_array_equal(volume.data, other.transpose(0, 2, 1, 3, 4))

    def test_scenes(self, tmp_path: Path, run: Any) -> None:
        second = [(s, v + 1000) for s, v in self.tiles(1)]
        path = microscopes.czi(tmp_path / "a.czi", self.tiles() + second, XML)
        with open_volume(path) as reader:
            assert "the file holds 2 images: number 0 is used" in reader.notes[0]
        np.testing.assert_array_equal(read_volume(path).data, self.values)
        for part in ("1", "B2"):
            np.testing.assert_array_equal(read_volume(f"{path}::{part}").data, self.values + 1000)
        assert "it has 0 (A1, 3 x 5 x 6), 1 (B2, 3 x 5 x 6)" in error_of(f"{path}::C3")
        run("apply", f"{path}::B2", "-k", "identity", "--out-dir", str(tmp_path / "o"))
        assert os.listdir(tmp_path / "o") == ["a_B2.ome.tif"]

    def test_tiles_are_put_side_by_side(self, tmp_path: Path) -> None:
        one, other = np.full((4, 5), 7, np.uint8), np.full((4, 5), 9, np.uint8)
        path = microscopes.czi(
            tmp_path / "a.czi",
            [({"X": 4, "Y": 1, "M": 1, "Z": 0}, other), ({"X": 0, "Y": 0, "M": 0, "Z": 0}, one)],
        )
        expected = np.zeros((5, 9), np.uint8)
        expected[:4, :5] = 7
        expected[1:, 4:] = 9
        with open_volume(path) as reader:
            assert any("up to 2 tiles" in note for note in reader.notes)
        np.testing.assert_array_equal(read_volume(path).data[0], expected)
        np.testing.assert_array_equal(self.by_czifile(path), expected)

    def test_missing_planes_are_said(self, tmp_path: Path) -> None:
        path = microscopes.czi(tmp_path / "a.czi", self.tiles()[:-1], XML)
        with open_volume(path) as reader:
            assert "1 of its 12 planes are missing: they are read as 0" in reader.notes
        expected = self.values.copy()
        expected[0, 0, 0] = 0
        np.testing.assert_array_equal(read_volume(path).data, expected)

    def test_colours_are_stored_backwards(self, tmp_path: Path) -> None:
        rgb = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)
        path = microscopes.czi(tmp_path / "a.czi", [({"X": 0, "Y": 0, "C": 0}, rgb[..., ::-1])])
        volume = read_volume(path)
        assert volume.axes == "zyxs"
        np.testing.assert_array_equal(volume.data[0], rgb)
        np.testing.assert_array_equal(self.by_czifile(path), rgb)

    @pytest.mark.parametrize("kind", [5, 6, "hi-lo"])
    def test_zstd(self, tmp_path: Path, kind: Any) -> None:
        zstd = pytest.importorskip("backports.zstd")

        def pack(data: bytes) -> bytes:
            if kind == "hi-lo":
                return b"\3\1\1" + zstd.compress(data[::2] + data[1::2])
            return (b"\1" if kind == 6 else b"") + zstd.compress(data)

        path = microscopes.czi(
            tmp_path / "a.czi", self.tiles(), XML, pack, 6 if kind == "hi-lo" else kind
        )
        np.testing.assert_array_equal(read_volume(path).data, self.values)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_jpeg_xr(self, dtype: Any, tmp_path: Path) -> None:
        """Without loss, packed by imagecodecs, which also decodes what ZEN packs."""
        imagecodecs = pytest.importorskip("imagecodecs")
        planes = np.random.default_rng(0).integers(0, 255, (3, 32, 48)).astype(dtype)
        left = iter(planes)
        path = microscopes.czi(
            tmp_path / "a.czi",
            [({"X": 0, "Y": 0, "Z": z, "M": 0}, plane) for z, plane in enumerate(planes)],
            pack=lambda _: imagecodecs.jpegxr_encode(next(left), level=None),
            compression=4,
        )
        np.testing.assert_array_equal(read_volume(path).data, planes)

    def test_compressions_are_named(self, tmp_path: Path) -> None:
        path = microscopes.czi(tmp_path / "a.czi", self.tiles(), XML, compression=99)
        assert "packed in an unknown way (number 99)" in error_of(path)
        path = microscopes.czi(tmp_path / "a.czi", self.tiles(), XML, compression=4)
        try:
            import imagecodecs  # noqa: F401
        except ImportError:
            assert "compression (JPEG XR) needs imagecodecs: pip install" in error_of(path)

    def test_pyramids_alone_are_no_image(self, tmp_path: Path) -> None:
        path = microscopes.czi(tmp_path / "a.czi", self.tiles(), XML, zoom=2)
        assert "no image at the full resolution" in error_of(path)

    def test_damage(self, tmp_path: Path) -> None:
        path = Path(microscopes.czi(tmp_path / "a.czi", self.tiles(), XML))
        whole = path.read_bytes()
        for length in (20, 100, 600, 2000, len(whole) // 2):
            path.write_bytes(whole[:length])
            assert "truncated or damaged" in error_of(str(path)) or "damaged" in error_of(str(path))
        path.write_bytes(whole.replace(b"ZISRAWSUBBLOCK", b"ZISRAWDELETED\0"))
        assert "no segment" in error_of(str(path))


class TestLif:
    values = np.arange(2 * 3 * 2 * 4 * 5, dtype=np.uint16).reshape(2, 3, 2, 4, 5)  # t, z, c, y, x
    steps = {"X": 2.5e-7, "Y": 2.5e-7, "Z": 1e-6, "T": 3.0}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("liffile")

    def test_all_is_read(self, tmp_path: Path) -> None:
        path = microscopes.lif(tmp_path / "a.lif", {"cells": ("TZCYX", self.values)}, self.steps)
        with open_volume(path) as reader:
            header = reader.header
            assert header.format == "Leica LIF"
            assert header.facts.channel_names == ("dye 0", "dye 1")
            assert header.facts.time_step == (3.0, "s")
            # Length is from the first to the last: liffile's coordinates are the check
            assert (header.grid.spacing, header.grid.unit) == ((1.0, 0.25, 0.25), "um")
            assert reader.notes == ()
        volume = read_volume(path)
        assert volume.axes == "tzcyx"
        np.testing.assert_array_equal(volume.data, self.values)
        import liffile

        with liffile.LifFile(path) as file:
            np.testing.assert_array_equal(file.images[0].asarray(), self.values)
            assert np.diff(file.images[0].coords["X"])[0] == pytest.approx(2.5e-7)

    def test_images(self, tmp_path: Path, run: Any) -> None:
        plain = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
        images = {"cells": ("TZCYX", self.values), "control": ("ZYX", plain)}
        path = microscopes.lif(tmp_path / "a.lif", images, self.steps)
        with open_volume(path) as reader:
            assert "holds 2 images: number 0 is used" in reader.notes[0]
        for part in ("1", "control"):
            np.testing.assert_array_equal(read_volume(f"{path}::{part}").data, plain)
        assert "no such image" in error_of(f"{path}::2")
        out = str(tmp_path / "o.npy")
        run("apply", f"{path}::control", "-k", "identity", "-o", out, "--verify", "60")
        np.testing.assert_array_equal(np.load(out), plain)

    def test_a_flat_image(self, tmp_path: Path) -> None:
        path = microscopes.lif(tmp_path / "a.lif", {"x": ("YX", self.values[0, 0, 0])}, self.steps)
        volume = read_volume(path)
        assert volume.grid.spacing is not None
        assert volume.grid.spacing[1:] == (0.25, 0.25)
        np.testing.assert_array_equal(np.squeeze(volume.data), self.values[0, 0, 0])

    def test_tiles_of_a_mosaic_are_not_stitched(self, tmp_path: Path) -> None:
        tiles = np.arange(3 * 2 * 4 * 5, dtype=np.uint16).reshape(3, 2, 4, 5)
        path = microscopes.lif(tmp_path / "a.lif", {"x": ("MZYX", tiles)}, self.steps)
        with open_volume(path) as reader:
            assert reader.header.axes.letters == "mzyx"
            assert "a mosaic of 3 tiles, which are not stitched" in reader.notes[0]
        np.testing.assert_array_equal(read_volume(path).data, tiles)

    def test_damage(self, tmp_path: Path) -> None:
        path = Path(microscopes.lif(tmp_path / "a.lif", {"x": ("TZCYX", self.values)}, self.steps))
        whole = path.read_bytes()
        for length in (12, 100, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:length])
            error_of(str(path))
        grown = whole.replace("NumberOfElements=\"3\"".encode("utf-16-le"), "NumberOfElements=\"9\"".encode("utf-16-le"))  # fmt: skip
        path.write_bytes(grown)
        assert "damaged LIF" in error_of(str(path))


class TestNd2:
    values = np.arange(2 * 2 * 3 * 2 * 4 * 6, dtype=np.uint16).reshape(2, 2, 3, 2, 4, 6)

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("nd2")

    def test_all_is_read(self, tmp_path: Path) -> None:
        path = microscopes.nd2(tmp_path / "a.nd2", self.values[:, :1])
        with open_volume(path) as reader:
            header = reader.header
            assert header.format == "Nikon ND2"
            assert header.facts.channel_names == ("dye 0", "dye 1")
            assert header.facts.time_step == (2000.0, "ms")
            assert (header.grid.spacing, header.grid.unit) == ((1.5, 0.25, 0.25), "um")
            assert reader.notes == ()
        volume = read_volume(path)
        assert volume.axes == "tczyx"
        np.testing.assert_array_equal(volume.data, self.values[:, 0].transpose(0, 2, 1, 3, 4))

    def test_positions(self, tmp_path: Path, run: Any) -> None:
        path = microscopes.nd2(tmp_path / "a.nd2", self.values, ("left", "right"))
        with open_volume(path) as reader:
            assert "holds 2 images: number 0 is used" in reader.notes[0]
        for part, number in (("", 0), ("::1", 1), ("::right", 1), ("::left", 0)):
            np.testing.assert_array_equal(
                read_volume(path + part).data, self.values[:, number].transpose(0, 2, 1, 3, 4)
            )
        out = str(tmp_path / "o.ome.tif")
        run("apply", f"{path}::right", "-k", "identity", "-o", out, "--verify", "60")

    def test_frames_that_are_missing_are_said(self, tmp_path: Path) -> None:
        path = microscopes.nd2(tmp_path / "a.nd2", self.values[:, :1], missing=4)
        with open_volume(path) as reader:
            assert "1 of its 6 frames are missing: they are read as 0" in reader.notes

    def test_damage(self, tmp_path: Path) -> None:
        path = Path(microscopes.nd2(tmp_path / "a.nd2", self.values))
        whole = path.read_bytes()
        for length in (4, 60, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:length])
            error_of(str(path))


def test_an_older_liffile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    liffile = pytest.importorskip("liffile")
    values = np.zeros((2, 3, 4, 5), np.uint16)
    microscopes.lif(tmp_path / "a.lif", {"a": ("CZYX", values)}, {"X": 1e-7, "Y": 1e-7})
    for kind in (liffile.LifImage, liffile.LifImageABC):
        monkeypatch.delattr(kind, "frames")
    with pytest.raises(FormatError, match=r"needs liffile 2026.2.16 or newer, and .* is installed"):
        open_volume(str(tmp_path / "a.lif"))
