"""The parts formats share: temporary copies for streams that must go back, and checks of inputs."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import small_numbers

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats.base import SpooledWriter, real_dtype, reserve_space, spool_reader
from conv3d_cli.model.volume import (
    Array,
    ArrayReader,
    Axes,
    VolumeHeader,
    VolumeWriter,
    parts_in_storage_order,
)
from conv3d_cli.system.inputs import check_input


class Stream(ArrayReader):
    """An array read forward only; broken where the plane `broken_at` is asked for, or at its checksum."""

    sequential = True

    def __init__(
        self, array: Array, axes: Axes, broken_at: int | None = None, checksum: bool = True
    ) -> None:
        super().__init__(array, VolumeHeader(axes, array.dtype, scale=(2.0, 1.0)), "stream.nii.gz")
        self.broken_at, self.checksum = broken_at, checksum
        self.position, self.closed = -1, False

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        if self.broken_at is not None and depth.stop > self.broken_at:
            raise FormatError("stream.nii.gz: truncated")
        wanted = self.header.axes.block(
            np.arange(self.array.size).reshape(self.array.shape), n, depth, channels
        )
        assert wanted.min() > self.position, "went back"
        self.position = int(wanted.max())
        return super().read(n, depth, channels)

    def finish(self) -> None:
        if not self.checksum:
            raise FormatError("stream.nii.gz: wrong checksum")

    def close(self) -> None:
        self.closed = True


class Sink(VolumeWriter):
    """Takes slabs in storage order without gaps."""

    sequential = True

    def __init__(self, axes: Axes) -> None:
        self.header, self.path = VolumeHeader(axes, np.dtype("int16")), "sink.nii.gz"
        self.pieces: list[np.ndarray] = []
        self.position, self.committed, self.aborted = 0, False, False

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        axes = self.header.axes
        where = axes.storage_start(n, depth_start, channel_start)
        assert np.ravel_multi_index(where, axes.shape) == self.position, "not the next slab"
        self.position += block.size
        self.pieces.append(axes.storage_order(block).ravel())

    def commit(self) -> None:
        self.committed = True

    def abort(self) -> None:
        self.aborted = True


streaming = st.sampled_from(
    ["zyx", "tzyx", "czyx", "tczyx", "ctzyx", "zyxc", "tzyxs", "zcyx"]
).flatmap(
    lambda letters: st.tuples(
        *[st.integers(1, 3) if a != "z" else st.integers(1, 20) for a in letters]
    ).map(lambda shape: Axes(letters, shape))
)


@given(streaming)
def test_a_copy_of_a_stream_may_be_read_in_any_order(axes: Axes) -> None:
    values = small_numbers(axes.shape, "int16", 1)
    stream = Stream(values, axes)
    stream.notes, stream.losses = ("a note",), ("a loss",)
    count, depth, *_, channels = axes.canonical_shape
    with spool_reader(stream) as copy:
        assert not copy.sequential
        assert (copy.notes, copy.losses) == (("a note",), ("a loss",))
        assert stream.closed
        assert copy.path == "stream.nii.gz"  # messages name the file, not the copy
        assert copy.header.scale == (2.0, 1.0)  # stored numbers are copied, not values
        for n in reversed(range(count)):
            got = copy.read(n, slice(0, depth), slice(0, channels))
            assert np.array_equal(got, axes.block(values, n, slice(0, depth), slice(0, channels)))


@pytest.mark.parametrize("stream", [{"broken_at": 3}, {"checksum": False}])
def test_a_damaged_stream_stays_the_inputs_error(stream: dict[str, int]) -> None:
    """Exit code 3, not 1: it is not the temporary copy that cannot be written."""
    reader = Stream(np.zeros((20, 3, 4), np.int16), Axes("zyx", (20, 3, 4)), **stream)
    with pytest.raises(FormatError, match=r"^stream\.nii\.gz: ") as caught:
        spool_reader(reader)
    assert caught.value.exit_code == 3
    assert reader.closed


def test_no_room_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    axes = Axes("zyx", (4, 3, 4))
    with pytest.raises(
        WriteError, match=rf"copy of stream\.nii\.gz in {tempfile.gettempdir()}: no space left"
    ):
        spool_reader(Stream(np.zeros(axes.shape, np.int16), axes))
    sink = Sink(axes)
    with pytest.raises(WriteError, match=r"copy of sink\.nii\.gz .* no space left"):
        SpooledWriter(sink)
    assert sink.aborted  # else its own temporary file would stay


def test_no_folder_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    sink = Sink(Axes("zyx", (2, 3, 4)))
    with pytest.raises(WriteError, match="No usable temporary directory"):
        SpooledWriter(sink)
    assert sink.aborted


@given(streaming, st.integers(1, 4), st.randoms())
def test_slabs_in_any_order_reach_a_stream_in_its_own(
    axes: Axes, depth: int, order: object
) -> None:
    values = small_numbers(axes.shape, "int16", 2)
    slabs = [
        (n, slice(start, min(start + depth, axes.size("z"))), channels)
        for n, channels in parts_in_storage_order(axes, channels_together=True)
        for start in range(0, axes.size("z"), depth)
    ]
    order.shuffle(slabs)  # type: ignore[attr-defined]
    sink = Sink(axes)
    with SpooledWriter(sink) as writer:
        for n, planes, channels in slabs:
            writer.write(n, planes.start, channels.start, axes.block(values, n, planes, channels))
        assert not sink.pieces
        writer.commit()
    assert sink.committed
    assert np.array_equal(np.concatenate(sink.pieces), values.ravel())


def test_an_abandoned_copy_abandons_the_output() -> None:
    sink = Sink(Axes("zyx", (2, 3, 4)))
    with pytest.raises(KeyboardInterrupt), SpooledWriter(sink):
        raise KeyboardInterrupt
    assert sink.aborted
    assert not sink.committed


def test_reserving_space_never_shortens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cannot in (False, True):
        if cannot:  # a file system that does not know how

            def refuse(*arguments: object) -> None:
                raise OSError(errno.EOPNOTSUPP, "no")

            monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
        with open(tmp_path / "x", "w+b") as file:
            reserve_space(file, 0)
            reserve_space(file, 1000)
            assert os.fstat(file.fileno()).st_size == 1000
            reserve_space(file, 10)
            assert os.fstat(file.fileno()).st_size == 1000


@pytest.mark.parametrize(
    ("stored", "given_out"),
    [
        ("<f4", "f4"),
        (">f4", "f4"),
        (">i2", "i2"),
        ("|u1", "u1"),
        ("?", "?"),
        ("<f2", "f4"),
        (">f2", "f4"),
        ("longdouble", "f8"),
    ],
)
def test_dtypes_as_they_are_handed_out(stored: str, given_out: str) -> None:
    assert real_dtype(np.dtype(stored), "x") == np.dtype(given_out)
    assert real_dtype(np.dtype(stored), "x").isnative


@pytest.mark.parametrize(
    ("stored", "fact"),
    [("c8", "complex"), ("S3", "not numbers"), ("O", "not numbers"), ("M8[s]", "not numbers")],
)
def test_dtypes_that_are_no_voxels(stored: str, fact: str) -> None:
    with pytest.raises(FormatError, match=f"cannot read x: .*{fact}"):
        real_dtype(np.dtype(stored), "x")


def test_inputs_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(FormatError, match="no such file"):
        check_input(str(path))
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        check_input(str(path))
    path.write_bytes(b"abc")
    assert check_input(str(path)) == 3
    with pytest.raises(FormatError, match="folder"):
        check_input(str(tmp_path))
