"""Compressed TIFF: what is written (against tifffile), and what is done about strips that are not what they should be."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from processes import LIMIT

from conv3d_cli.errors import FormatError, SpecError, WriteError
from conv3d_cli.formats import create_volume, open_volume, read_volume, write_volume
from conv3d_cli.formats.tiff import compressed as tiff_packed
from conv3d_cli.formats.tiff import format as tiff
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import Array, Axes, Volume, VolumeHeader

zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

GRID = Grid((1.0, 0.5, 0.5), "um", affine_from_spacing((1.0, 0.5, 0.5), (2, 1, 1)))


def smooth(shape: tuple[int, ...], dtype: Any = np.uint16) -> Array:
    return np.random.default_rng(1).integers(-3, 4, shape).cumsum(axis=-1).astype(dtype)


def canonical(data: Array, letters: str) -> Array:
    """(N, D, H, W, C)."""
    axes = Axes(letters, data.shape)
    n, depth, _, _, channels = axes.canonical_shape
    return np.stack([axes.block(data, i, slice(0, depth), slice(0, channels)) for i in range(n)])


@pytest.mark.parametrize("compression", ["deflate", "zstd"])
@pytest.mark.parametrize(
    ("name", "dtype", "letters", "shape", "kind", "predictor"),
    [
        ("a.tif", np.uint8, "zyx", (3, 700, 900), "imagej", 2),
        ("a.tif", np.int16, "tzcyx", (2, 3, 2, 7, 6), "imagej", 2),
        ("a.tif", np.float32, "ctzyx", (2, 2, 3, 7, 6), "imagej", 1),
        ("a.tif", np.uint8, "zyxs", (3, 7, 6, 3), "imagej", 2),
        ("a.tif", np.int32, "zyx", (3, 7, 6), "ome", 2),
        ("a.tif", np.int64, "tazyx", (2, 2, 3, 7, 6), "shaped", 1),
        ("a.ome.tif", np.uint16, "ctzyx", (2, 2, 3, 7, 6), "ome", 2),
        ("a.ome.tif", np.float64, "zyx", (3, 7, 6), "ome", 1),
        ("a.ome.tif", np.uint8, "zyxs", (3, 7, 6, 3), "ome", 2),
        ("a.ome.tif", np.uint8, "cyxs", (2, 7, 6, 3), "ome", 2),
        ("a.tif", np.uint16, "yx", (7, 1), "imagej", 2),
    ],
)
def test_what_is_written(
    tmp_path: Path,
    compression: str,
    name: str,
    dtype: Any,
    letters: str,
    shape: tuple[int, ...],
    kind: str,
    predictor: int,
) -> None:
    data, path = smooth(shape, dtype), str(tmp_path / name)
    write_volume(path, Volume(data, letters, GRID), compression=compression)
    read = read_volume(path)
    assert read.data.dtype == data.dtype
    np.testing.assert_array_equal(canonical(read.data, read.axes), canonical(data, letters))
    assert (read.grid.spacing, read.grid.unit) == (GRID.spacing, GRID.unit)
    np.testing.assert_allclose(read.grid.affine, GRID.affine)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert (file.series[0].kind, page.compression, page.predictor) == (
            kind, tiff_packed.COMPRESSIONS[compression], predictor,
        )  # fmt: skip
        if (
            compression == "deflate"
        ):  # tifffile alone reads it; its RGB and several samples need imagecodecs for the predictor
            needs_imagecodecs = letters == "zyxs" and "imagecodecs" not in sys.modules
            assert needs_imagecodecs or file.asarray().size == data.size
    write_volume(str(tmp_path / f"plain_{name}"), Volume(data, letters, GRID))
    plain = read_volume(str(tmp_path / f"plain_{name}"))
    np.testing.assert_array_equal(
        canonical(plain.data, plain.axes), canonical(read.data, read.axes)
    )


def test_tifffile_reads_it_to_the_bit(tmp_path: Path) -> None:
    data = smooth((3, 700, 900))
    write_volume(str(tmp_path / "a.tif"), Volume(data, "zyx"), compression="deflate")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), data)
    assert os.path.getsize(tmp_path / "a.tif") < data.nbytes / 2


@pytest.mark.parametrize("compression", ["deflate", "zstd"])
def test_64_bit_offsets(tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "CLASSIC_LIMIT", 1000)
    data = smooth((3, 70, 90))
    write_volume(str(tmp_path / "a.tif"), Volume(data, "zyx"), compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    np.testing.assert_array_equal(read_volume(str(tmp_path / "a.tif")).data, data)


@pytest.mark.parametrize("compression", ["deflate", "zstd"])
def test_bytes_do_not_depend_on_threads_or_slabs(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = smooth((24, 300, 500, 2), np.float32)
    header = VolumeHeader(Axes("zcyx", (24, 2, 300, 500)), np.dtype(np.float32), GRID)
    contents = set()
    for threads, depth in (("1", 24), ("2", 1), ("7", 5)):
        monkeypatch.setenv("CONV3D_THREADS", threads)
        path = tmp_path / f"{threads}.tif"
        with create_volume(str(path), header, compression=compression) as writer:
            assert writer.sequential
            for start in range(0, 24, depth):
                block = data[start : start + depth].copy()
                writer.write(0, start, 0, block)
                block[...] = 0  # the caller's again
            writer.commit()
        contents.add(path.read_bytes())
    assert len(contents) == 1
    np.testing.assert_array_equal(read_volume(str(path)).data, data.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_noise_does_not_grow(tmp_path: Path, level: int, rng: np.random.Generator) -> None:
    data = rng.normal(size=(3, 400, 500)).astype(np.float32)
    write_volume(
        str(tmp_path / "a.tif"), Volume(data, "zyx"), compression="deflate", gz_level=level
    )
    assert os.path.getsize(tmp_path / "a.tif") < data.nbytes * 1.001 + 4000
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), data)


def test_slabs_out_of_order_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    header = VolumeHeader(Axes("zyx", (4, 30, 20)), np.dtype(np.float32))
    with create_volume(str(tmp_path / "a.tif"), header, compression="deflate") as writer:
        block = np.zeros((2, 30, 20, 1), np.float32)
        with pytest.raises(RuntimeError, match="order"):
            writer.write(0, 2, 0, block)
        writer.write(0, 0, 0, block)
        with pytest.raises(RuntimeError, match="2 of 4 pages"):
            writer.commit()
    assert os.listdir(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("conv3d-pack")]


def test_full_disk(tmp_path: Path) -> None:
    script = """
        import resource, sys, threading
        import numpy as np
        from conv3d_cli.errors import WriteError
        from conv3d_cli.formats import write_volume
        from conv3d_cli.model.volume import Volume
        data = np.random.default_rng(0).integers(0, 255, (60, 256, 256), np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            write_volume(sys.argv[1] + "/a.tif", Volume(data, "zyx"), compression="deflate")
        except WriteError as error:
            assert "ulimit" in str(error), error
            assert threading.active_count() == 1
        else:
            raise SystemExit("no error")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_compression_is_refused_where_there_is_none(tmp_path: Path) -> None:
    volume = Volume(smooth((3, 4, 5)), "zyx")
    for name in ("a.nii.gz", "a.npy", "a.zarr"):
        with pytest.raises(SpecError, match=r"compression='(deflate|zstd)' is for TIFF"):
            write_volume(str(tmp_path / name), volume, compression="deflate")
    with pytest.raises(SpecError, match="none, deflate or zstd, received 'lzw'"):
        write_volume(str(tmp_path / "a.tif"), volume, compression="lzw")
    assert list(tmp_path.iterdir()) == []


def test_without_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(smooth((3, 4, 5)), "zyx")
    write_volume(str(tmp_path / "a.tif"), volume, compression="zstd")
    monkeypatch.setitem(sys.modules, zstd.__name__, None)
    if "." in zstd.__name__:
        parent = sys.modules[zstd.__name__.split(".")[0]]
        monkeypatch.delattr(parent, "zstd", raising=False)
    with pytest.raises(WriteError, match=r"pip install 'conv3d\[zstd\]'"):
        write_volume(str(tmp_path / "b.tif"), volume, compression="zstd")
    if tifffile.tifffile.imagecodecs.__name__ != "imagecodecs":
        with pytest.raises(FormatError, match="pip install 'conv3d"):
            read_volume(str(tmp_path / "a.tif"))
    assert os.listdir(tmp_path) == ["a.tif"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("predictor", [None, 2])
def test_threads_and_halos_change_no_voxel(
    tmp_path: Path, predictor: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = smooth((20, 300, 200))
    options = {
        "compression": "zlib",
        "predictor": predictor,
        "rowsperstrip": 64,
        "metadata": {"axes": "ZYX"},
    }
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", **options)
    for threads in ("1", "4"):
        monkeypatch.setenv("CONV3D_THREADS", threads)
        with open_volume(str(tmp_path / "a.tif")) as reader:
            assert reader.storage() == {"compression": "adobe deflate"}
            for start, stop in (
                (0, 6),
                (4, 12),
                (11, 20),
                (3, 5),
                (4, 5),
                (4, 4),
            ):  # runs that share planes
                block = reader.read(0, slice(start, stop), slice(0, 1))
                np.testing.assert_array_equal(block[..., 0], data[start:stop])
            packed = sum(map(len, [zlib.compress(data[0].tobytes())]))
            assert reader.buffer_bytes(6, 1) > packed


def test_planes_that_two_slabs_share_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = smooth((20, 30, 20))
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": "ZYX"},
    )
    decoded = []
    original = tifffile.TiffPage.asarray

    def asarray(page: Any, **options: Any) -> Array:
        decoded.append(page.index)
        return np.asarray(original(page, **options))

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with open_volume(str(tmp_path / "a.tif")) as reader:
        for start in range(0, 16, 4):
            reader.read(0, slice(start, start + 8), slice(0, 1))
    assert sorted(decoded) == list(range(20))


def strips_file(
    path: Path, strips: list[bytes], compression: int, predictor: int | None = None
) -> str:
    """A volume of two pages 8 x 16 of uint16 with any bytes in their strips."""
    with tifffile.TiffWriter(path) as writer:
        for strip in strips:
            writer.write(
                iter([strip]), shape=(8, 16), dtype=np.uint16, compression=compression, predictor=predictor,
                photometric="minisblack", rowsperstrip=8, metadata=None,
            )  # fmt: skip
    return str(path)


def packed_page(compression: int, data: bytes) -> bytes:
    return zlib.compress(data) if compression == 8 else bytes(zstd.compress(data))


@pytest.mark.parametrize("compression", [8, 50000])
def test_strips_that_are_damaged(tmp_path: Path, compression: str) -> None:
    code = int(compression)
    page = np.arange(128, dtype=np.uint16).tobytes()
    good = packed_page(code, page)
    path = strips_file(tmp_path / "a.tif", [good, good], code)
    assert read_volume(path).data.tobytes() == page * 2
    for bad in (good[:-6], good[:10], b"\0" * len(good), packed_page(code, page[:100]), b"x"):
        with pytest.raises(FormatError, match="page 2") as caught:
            read_volume(strips_file(tmp_path / "b.tif", [good, bad], code))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3
    if code == 8:  # a wrong checksum
        with pytest.raises(FormatError, match="page 2"):
            read_volume(
                strips_file(tmp_path / "b.tif", [good, good[:-1] + bytes([good[-1] ^ 1])], code)
            )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("conv3d-tiff")]


@pytest.mark.parametrize("compression", [8, 50000])
def test_a_strip_never_becomes_more_than_its_voxels(tmp_path: Path, compression: int) -> None:
    page = np.arange(128, dtype=np.uint16).tobytes()
    bomb = packed_page(compression, page + bytes(1 << 27))
    path = strips_file(tmp_path / "a.tif", [bomb, bomb], compression)
    tracemalloc.start()
    assert read_volume(path).data.tobytes() == page * 2
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_packbits_runs_beyond_the_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left out, by imagecodecs (of which newer versions refuse them) and without it."""
    page = np.arange(128, dtype=np.uint16).tobytes()
    packed = b"\x7f" + page[:128] + b"\x80\x7f" + page[128:]  # two runs of 128 bytes, between
    strips = [packed, packed + b"\x81\0"]
    installed = tiff_packed.find_spec("imagecodecs") is not None
    path = Path(strips_file(tmp_path / "a.tif", strips, 8))
    entry = (259).to_bytes(2, "little") + b"\3\0\1\0\0\0"  # the codec's number
    content = path.read_bytes().replace(entry + b"\x08\0", entry + (32773).to_bytes(2, "little"))
    path.write_bytes(content)
    for found in {installed, False}:
        monkeypatch.setattr(tiff_packed, "find_spec", lambda name, found=found: found or None)
        assert read_volume(str(path)).data.tobytes() == page * 2


def test_unknown_codecs_and_predictors(tmp_path: Path) -> None:
    good = zlib.compress(bytes(256))
    for tag, value, old in ((259, 4711, 8), (317, 77, 2)):
        path = strips_file(tmp_path / "a.tif", [good, good], 8, predictor=2)
        content = Path(path).read_bytes()
        entry = tag.to_bytes(2, "little") + b"\3\0\1\0\0\0"
        assert content.count(entry + old.to_bytes(4, "little")) == 2
        changed = content.replace(
            entry + old.to_bytes(4, "little"), entry + value.to_bytes(4, "little")
        )
        (tmp_path / "b.tif").write_bytes(changed)
        with pytest.raises(FormatError) as caught:
            read_volume(str(tmp_path / "b.tif"))
        assert str(tmp_path / "b.tif") in str(caught.value)
        assert "\n" not in str(caught.value)
