""".npy files of every kind NumPy writes, and those that nobody should have written."""

from __future__ import annotations

import errno
import io
import itertools
import math
import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import REAL_DTYPES, small_numbers

from conv3d_cli.analysis import smoothness
from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    OutputExistsError,
    ShapeError,
    SpecError,
    WriteError,
)
from conv3d_cli.formats import npy, read_volume, write_volume
from conv3d_cli.formats.npy import NpySource, create_npy, open_npy
from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Axes, Volume, VolumeHeader, VolumeWriter, parts_in_storage_order
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.pipeline.run import run_job


def npy_bytes(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file with this text for a header."""
    text = header.encode("latin1" if version < (3, 0) else "utf8") + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def header_of(shape: object, descr: object = "<f4", fortran: object = False) -> str:
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape})


def read_all(path: Path, **keywords: Any) -> np.ndarray:
    """(N, D, H, W, C)."""
    with open_npy(str(path), **keywords) as reader:
        count, depth, *_, channels = reader.header.shape
        blocks = [reader.read(n, slice(0, depth), slice(0, channels)) for n in range(count)]
        return np.stack(blocks)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npy"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("bytes_", ["<", ">"])
@pytest.mark.parametrize("dtype", REAL_DTYPES)
def test_every_dtype_byte_order_and_memory_order(
    path: Path, dtype: str, bytes_: str, order: Any
) -> None:
    values = small_numbers((3, 4, 5), dtype, 1)
    np.save(path, np.asarray(values.astype(values.dtype.newbyteorder(bytes_)), order=order))
    got = read_all(path)
    assert np.array_equal(got[0, ..., 0], values)
    assert got.dtype.isnative
    # half precision is computed on as float32, long double as float64; all else keeps its dtype
    assert got.dtype == {"float16": "float32", "longdouble": "float64"}.get(dtype, dtype)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_header_version(path: Path, version: tuple[int, int]) -> None:
    values = small_numbers((2, 3, 4), "float32", 2)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, values, version=version)
    assert np.array_equal(read_all(path)[0, ..., 0], values)


def test_a_header_written_by_python_2(path: Path) -> None:
    path.write_bytes(
        npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 2L, 3L), }", bytes(24))
    )
    assert read_all(path).shape == (1, 1, 2, 3, 1)


# rank -> letters, and under channels_first
LETTERS = {
    3: ("zyx", "zyx"),
    4: ("zyxc", "czyx"),
    5: ("tzyxc", "tczyx"),
    6: ("tazyxc", "taczyx"),
    7: ("tabzyxc", "tabczyx"),
}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("rank", LETTERS)
def test_letters_by_rank(path: Path, rank: int, first: bool, order: Any) -> None:
    letters = LETTERS[rank][first]
    values = small_numbers((2, 3, 4, 5, 2, 3, 2)[:rank], "int16", 3)
    np.save(path, np.asarray(values, order=order))
    with open_npy(str(path), channels_first=first) as reader:
        assert reader.header.axes == Axes(letters, values.shape)
        assert reader.header.format == "NumPy"
        assert not reader.sequential
        assert reader.header.grid.spacing is None
    canonical = (
        "".join(a for a in letters if a not in "zyxc") + "zyx" + ("c" if "c" in letters else "")
    )
    moved = np.einsum(f"{letters}->{canonical}", values)
    assert np.array_equal(read_all(path, channels_first=first).ravel(), moved.ravel())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("letters", ["xyz", "yxz", "tyx", "yxt", "cyx"])
def test_axes_name_the_array_as_numpy_shows_it(path: Path, letters: str, order: Any) -> None:
    values = small_numbers((2, 3, 4), "int16", 4)
    np.save(path, np.asarray(values, order=order))
    volume = read_volume(str(path), axes=letters)
    assert volume.axes == letters
    assert np.array_equal(volume.data, values)


def test_two_axes_need_names(path: Path) -> None:
    np.save(path, np.zeros((3, 4)))
    with pytest.raises(
        FormatError, match=r"at least 3 axes, the array has 2; name them with axes= \(yx\)"
    ):
        open_npy(str(path))
    assert read_all(path, axes="yx").shape == (1, 1, 3, 4, 1)


@pytest.mark.parametrize("axes", ["zy", "zyxc", "zyy", "zyc", "ZYX"])
def test_axes_that_do_not_fit(path: Path, axes: str) -> None:
    np.save(path, np.zeros((3, 4, 5)))
    with pytest.raises(SpecError, match="axes"):
        open_npy(str(path), axes=axes)


def test_bytes_behind_the_array_do_not_matter(path: Path) -> None:
    np.save(path, np.arange(24.0).reshape(2, 3, 4))
    with open(path, "ab") as file:
        file.write(b"more")
    assert np.array_equal(read_all(path).ravel(), np.arange(24.0))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_file_is_mapped_not_copied(path: Path, order: str) -> None:
    """64 MB: opening and reading allocate next to nothing, and what was released leaves the process."""
    sparse(path, (64, 512, 512), fortran=order == "F")
    before = mapped_bytes()
    tracemalloc.start()
    try:
        with open_npy(str(path)) as reader:
            for plane in range(0, 64, 4):
                block = reader.read(0, slice(plane, plane + 4), slice(0, 1))
                if order == "C":
                    assert not block.any()  # which brings its pages in
                    reader.release(0, plane + 4)
                    assert mapped_bytes() - before < 16 << 20
            del block
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # `any` needs a mask of four planes
    finally:
        tracemalloc.stop()


def sparse(path: Path, shape: tuple[int, ...], fortran: bool = False) -> None:
    """A file of zeros that takes no space."""
    with open(path, "wb") as file:
        file.write(npy_bytes(header_of(shape, fortran=fortran)))
        file.truncate(file.tell() + 4 * math.prod(shape))


def mapped_bytes() -> int:
    """Resident bytes of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssFile")).split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tzyx"])
def test_a_pass_over_a_large_file_releases_what_it_has_read(
    path: Path, axes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 MB; the smoothness of a series reads the same planes of all time points together."""
    sparse(path, (3, 32, 256, 256)[4 - len(axes) :])
    monkeypatch.setattr(smoothness, "BLOCK_BYTES", 1)  # a plane at once
    size, before = path.stat().st_size, mapped_bytes()
    with open_npy(str(path), axes=axes) as reader:
        for block in blocks_of([reader], 1):
            assert not block.stored[0].any()
        assert mapped_bytes() - before < size // 2
    with open_npy(str(path), axes=axes) as reader:
        with pytest.raises(ShapeError, match="same value"):
            smoothness.estimate_fwhm(reader)
        assert mapped_bytes() - before < size // 2


def test_released_planes_can_be_read_again(path: Path) -> None:
    values = np.arange(16 * 256 * 256, dtype=np.float32).reshape(16, 256, 256)
    np.save(path, values)
    with open_npy(str(path)) as reader:
        for _ in range(2):
            for plane in range(16):
                block = reader.read(0, slice(plane, plane + 1), slice(0, 1))
                assert np.array_equal(block[0, ..., 0], values[plane])
                reader.release(0, plane + 1)


def test_release_without_depth(path: Path) -> None:
    np.save(path, np.ones((3, 4)))
    with open_npy(str(path), axes="yx") as reader:
        reader.release(0, 1)
        assert reader.read(0, slice(0, 1), slice(0, 1)).sum() == 12


def test_a_view_outlives_its_reader(path: Path) -> None:
    np.save(path, np.arange(24.0).reshape(2, 3, 4))
    with open_npy(str(path)) as reader:
        block = reader.read(0, slice(0, 2), slice(0, 1))
    assert block.sum() == 276


def test_voxels_cannot_be_written_to(path: Path) -> None:
    np.save(path, np.zeros((2, 3, 4)))
    with open_npy(str(path)) as reader, pytest.raises(ValueError, match="read-only"):
        reader.read(0, slice(0, 2), slice(0, 1))[...] = 1


# ---------------------------------------------------------------------------------------------------------------------
# Files that lie


def test_missing_empty_and_folder(path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        open_npy(str(path))
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        open_npy(str(path))
    with pytest.raises(FormatError, match="it is a folder"):
        open_npy(str(path.parent))


def test_truncated_anywhere(path: Path) -> None:
    whole = io.BytesIO()
    np.save(whole, np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    content = whole.getvalue()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError) as caught:
            open_npy(str(path))
        assert str(path) in str(caught.value)
        if length >= len(content) - 240:
            assert f"truncated: its header promises {len(content)} bytes" in str(caught.value)
            assert f"the file has {length}" in str(caught.value)


LIES = [
    header_of((1 << 20, 1 << 20, 1 << 20)),
    header_of((1 << 62, 1 << 62, 1 << 62)),
    header_of((1 << 80, 1, 1)),
    header_of((0, 1 << 62, 1 << 62)),
    header_of((0, 1 << 80, 1)),
    header_of((2, 3, 5)),
    header_of((-2, -3, 4)),
    header_of((2, 3, -4)),
    header_of((-1, 0, 1)),
    header_of((2.0, 3, 4)),
    header_of([2, 3, 4]),
    header_of("234"),
    header_of(None),
    header_of(24),
    header_of((2, 3, 4), fortran="no"),
    header_of((2, 3, 4), "<f3"),
    header_of((2, 3, 4), "float"),
    header_of((2, 3, 4), ""),
    header_of((2, 3, 4), None),
    header_of((2, 3, 4), []),
    header_of((2, 3, 4), "<c8"),
    header_of((2, 3, 4), "|S4"),
    header_of((2, 3, 4), "<U1"),
    header_of((2, 3, 4), "|V4"),
    header_of((2, 3, 4), "<M8[s]"),
    header_of((2, 3, 4), "<m8[s]"),
    header_of((2, 3, 4), [("a", "<f4")]),
    header_of((2, 3, 4), ("<f4", (2,))),
    header_of((2, 3, 4), "|O"),
    header_of((2, 3, 4), [("a", "|O")]),
    "{'descr': '<f4', 'fortran_order': False}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), 'more': 1}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4)",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, ",
    "'''",
    "",
    "[]",
    "(" * 500,
    "\0\0\0",
    "  x\n y",
    "1 +",
]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), (9, 9)])
@pytest.mark.parametrize("header", LIES)
def test_headers_that_cannot_be_true(path: Path, header: str, version: tuple[int, int]) -> None:
    """With 96 bytes of voxels behind them, which would do for (2, 3, 4) of float32."""
    path.write_bytes(npy_bytes(header, bytes(96), version))
    with pytest.raises(FormatError) as caught:
        open_npy(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("version", [(0, 1), (1, 1), (4, 0), (255, 255)])
def test_versions_that_are_not_known(path: Path, version: tuple[int, int]) -> None:
    path.write_bytes(npy_bytes(header_of((2, 3, 4)), bytes(96), version))
    with pytest.raises(FormatError, match="version"):
        open_npy(str(path))


@given(st.integers(0, 127), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_never_crash(
    tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes
) -> None:
    whole = io.BytesIO()
    np.save(whole, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    content = bytearray(whole.getvalue())
    content[place : place + len(damage)] = damage
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(content)
    try:
        read_all(path)
    except Conv3DError:
        pass  # what remains legal is read; else this is the only error


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1,), ()])
def test_pickles_are_never_loaded(path: Path, shape: tuple[int, ...]) -> None:
    mark = path.with_name("mark")
    bomb = np.empty(shape, object)
    bomb[...] = Bomb(mark)
    np.save(path, bomb, allow_pickle=True)
    with pytest.raises(FormatError, match="pickled Python objects, which are never loaded"):
        open_npy(str(path))
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(FormatError):
        open_npy(str(path))
    path.write_bytes(npy_bytes(f"__import__('os').mkdir({str(mark)!r})"))
    with pytest.raises(FormatError):
        open_npy(str(path))
    assert not mark.exists()


def test_no_file_stays_open_after_an_error(path: Path) -> None:
    """A file left open would be a ResourceWarning, and that an error; but count them, too."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for header in LIES:
        path.write_bytes(npy_bytes(header))
        with pytest.raises(FormatError):
            open_npy(str(path))
    after = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    assert len(after) == len(before)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@st.composite
def axes(draw: st.DrawFn) -> Axes:
    """Axes in any order, two channel axes among them."""
    letters = "".join(
        draw(st.permutations(sorted({"y", "x", *draw(st.sets(st.sampled_from("zcstr")))})))
    )
    return Axes(letters, tuple(draw(st.integers(1, 3)) for _ in letters))


def write_slabs(
    writer: VolumeWriter, values: np.ndarray, axes: Axes, slabs: list[tuple[int, slice, slice]]
) -> None:
    for n, depth, channels in slabs:
        writer.write(n, depth.start, channels.start, axes.block(values, n, depth, channels))


def slabs_of(axes: Axes, depth: int, together: bool) -> list[tuple[int, slice, slice]]:
    planes = axes.canonical_shape[1]
    return [
        (n, slice(start, min(start + depth, planes)), channels)
        for n, channels in parts_in_storage_order(axes, channels_together=together)
        for start in range(0, planes, depth)
    ]


@given(
    axes(),
    st.sampled_from(["uint8", "int16", "float32", "float64"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.randoms(),
)
def test_slabs_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    axes: Axes,
    dtype: str,
    fortran: bool,
    together: bool,
    depth: int,
    order: Any,
) -> None:
    values = small_numbers(axes.shape, dtype, 5)
    header = VolumeHeader(axes, values.dtype, format="NumPy", metadata=NpySource(fortran))
    path = tmp_path_factory.getbasetemp() / "slabs.npy"
    slabs = slabs_of(axes, depth, together)
    order.shuffle(slabs)
    with create_npy(str(path), header, overwrite=True) as writer:
        write_slabs(writer, values, axes, slabs)
        writer.commit()
    written = np.load(path)
    assert written.dtype == dtype
    assert np.array_equal(written, values)
    assert written.flags.f_contiguous if fortran else written.flags.c_contiguous


@given(axes(), st.booleans(), st.integers(1, 3))
def test_a_pipe_of_any_axes(axes: Axes, fortran: bool, depth: int) -> None:
    """Slab after slab in the order they are computed, though the axes may lie across slabs."""
    values = small_numbers(axes.shape, "int16", 6)
    header = VolumeHeader(axes, values.dtype, format="NumPy", metadata=NpySource(fortran))
    pipe = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
        with create_npy("-", header) as writer:
            assert writer.sequential
            write_slabs(writer, values, axes, slabs_of(axes, depth, together=False))
            if (
                axes.planes_follow and not fortran
            ):  # who reads the pipe need not wait for the last slab
                assert len(pipe.getvalue()) >= values.nbytes
            writer.commit()
    written = np.load(io.BytesIO(pipe.getvalue()))
    assert np.array_equal(written, values)
    assert written.flags.f_contiguous if fortran else written.flags.c_contiguous


def test_a_full_disk_shows_before_the_first_voxel(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    header = VolumeHeader(Axes("xyz", (2, 3, 4)), np.dtype("int16"))
    with pytest.raises(WriteError, match=r"a\.npy: no space left"):
        create_npy(str(path), header)
    assert list(path.parent.iterdir()) == []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(WriteError, match="standard output: no space left"):
        create_npy("-", header)


def test_an_aborted_pipe_leaves_no_temporary_file_open() -> None:
    header = VolumeHeader(Axes("xyz", (2, 3, 4)), np.dtype("int16"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=io.BytesIO()))
        with create_npy("-", header):
            pass


def test_same_voxels_same_bytes(path: Path) -> None:
    volume = Volume(small_numbers((2, 3, 4), "float32", 7), "zyx")
    write_volume(str(path), volume)
    first = path.read_bytes()
    write_volume(str(path), volume, overwrite=True)
    assert path.read_bytes() == first
    as_numpy = io.BytesIO()
    np.save(as_numpy, volume.data)
    assert first == as_numpy.getvalue()


def test_nothing_appears_without_commit(path: Path) -> None:
    header = VolumeHeader(Axes("zyx", (2, 3, 4)), np.dtype("float32"))
    with create_npy(str(path), header) as writer:
        writer.write(0, 0, 0, np.ones((2, 3, 4, 1), np.float32))
    assert list(path.parent.iterdir()) == []


def test_an_existing_file_stays(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        create_npy(str(path), VolumeHeader(Axes("zyx", (2, 3, 4)), np.dtype("float32")))
    assert path.read_bytes() == b"old"


def test_spacing_that_is_lost_is_told(path: Path) -> None:
    axes, dtype = Axes("zyx", (2, 3, 4)), np.dtype("float32")
    with create_npy(str(path), VolumeHeader(axes, dtype, Grid((1, 1, 1), "mm"))) as writer:
        assert "no voxel spacing" in writer.notes[0]
    with create_npy(str(path), VolumeHeader(axes, dtype)) as writer:
        assert writer.notes == ()


@pytest.mark.parametrize(
    ("letters", "channels", "expected"),
    [
        ("zyx", 1, "zyx"),
        ("zyx", 3, "zyxc"),
        ("tzyx", 2, "tzyxc"),
        ("zyxc", 1, "zyxc"),
        ("czyx", 5, "czyx"),
        ("zyxs", 3, "zyxs"),
    ],
)
def test_channels_that_are_new_come_last(letters: str, channels: int, expected: str) -> None:
    assert npy.output_letters(letters, channels, np.dtype("float32")) == expected


@given(axes(), st.sampled_from(["int8", ">i4", "float32", ">f8", "bool"]), st.sampled_from("CF"))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, axes: Axes, dtype: str, order: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    values = np.asarray(
        small_numbers(axes.shape, np.dtype(dtype).name, 8).astype(dtype), order=order
    )
    np.save(folder / "in.npy", values)
    volume = read_volume(str(folder / "in.npy"), axes=axes.letters)
    assert (volume.axes, volume.shape) == (axes.letters, axes.canonical_shape)
    write_volume(str(folder / "out.npy"), volume, overwrite=True)
    written = np.load(folder / "out.npy")
    assert np.array_equal(written, values)
    assert written.dtype == values.dtype.newbyteorder("=")
    assert written.flags.f_contiguous or values.flags.c_contiguous


# ---------------------------------------------------------------------------------------------------------------------
# Whole jobs


@pytest.mark.parametrize(
    ("order", "first", "rank"), list(itertools.product("CF", [False, True], [3, 4, 5, 6]))
)
def test_a_layer_keeps_numpys_axis_order(
    tmp_path: Path, order: Any, first: bool, rank: int
) -> None:
    """Filters replace the channels in their place, or come last where there were none; in either memory order."""
    letters = LETTERS[rank][first]
    values = small_numbers((2, 3, 4, 5, 2, 3)[:rank], "float32", 9)
    channels = values.shape[letters.index("c")] if "c" in letters else 1
    weights = small_numbers((1, 1, 1, channels, 3), "float64", 10)
    np.save(tmp_path / "in.npy", np.asarray(values, order=order))
    job = Job(
        str(tmp_path / "in.npy"), str(tmp_path / "out.npy"), (Stage(Kernel(weights)),),
        data_format="channels_first" if first else "channels_last", threads=1,
    )  # fmt: skip
    run_job(job)
    mixed = np.tensordot(
        values if "c" in letters else values[..., None],
        weights[0, 0, 0],
        ([letters.find("c")], [0]),
    )
    expected = np.moveaxis(mixed, -1, letters.find("c"))
    written = np.load(tmp_path / "out.npy")
    assert np.array_equal(written, expected)
    assert written.flags.f_contiguous if order == "F" else written.flags.c_contiguous


@pytest.mark.parametrize(
    ("letters", "told"),
    [("zyx", False), ("zyxc", False), ("czyx", False), ("tzyxs", False), ("tczyx", False), ("tazyxc", False),
     ("tzyx", True), ("ctzyx", True), ("tzcyx", True), ("yx", True)],
)  # fmt: skip
def test_axes_that_another_format_named_are_told(tmp_path: Path, letters: str, told: bool) -> None:
    """A series out of NIfTI (tzyx) would be read back as zyxc."""
    axes = Axes(letters, tuple(range(2, 2 + len(letters))))
    for source, metadata in (("NIfTI", None), ("NumPy", NpySource(fortran_order=False))):
        header = VolumeHeader(axes, np.dtype(np.float32), format=source, metadata=metadata)
        with npy.create_npy(str(tmp_path / f"{source}.npy"), header) as writer:
            notes = " ".join(writer.notes)
        assert (f"axes={letters!r}" in notes) == (told and source == "NIfTI")


@pytest.mark.parametrize("order", "CF")
def test_a_second_array_is_told(
    tmp_path: Path, order: str, run: Any, shell: Any, error_line: Any
) -> None:
    """numpy.save appends to an open file; numpy.load then reads one array after the other."""
    first = np.asarray(np.arange(24.0).reshape(2, 3, 4), order=order)
    with open(tmp_path / "v.npy", "wb") as file:
        np.save(file, first)
        np.save(file, first + 1)
    command = ("convert", tmp_path / "v.npy", tmp_path / "o.npy")
    assert "another array follows in it" in error_line(run(*command, "--strict", code=4).stderr)
    assert "another array follows in it" in run(*command).stderr
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), first)
    with open(tmp_path / "v.npy", "rb") as file:
        piped = shell("convert", "-", tmp_path / "p.npy", stdin=file)
    assert b"another array follows in it" in piped.stderr
    np.save(tmp_path / "v.npy", first)
    assert "follows" not in run(*command, "--overwrite").stderr
