"""Stores read and written by the thread that asks, in memory that is kept: the same voxels, and nothing on other threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.formats.zarr import store as zarr_store
from conv3d_cli.formats.zarr.store import OneThread, open_node

zarr = pytest.importorskip("zarr")


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1000, (20, 33, 40)).astype(np.uint16)


@pytest.mark.parametrize(
    "options", [{}, {"shards": (16, 16, 32)}, {"zarr_format": 2, "order": "F"}], ids=str
)
def test_boxes_are_those_of_the_library(
    tmp_path: Path, voxels: np.ndarray, options: dict[str, Any]
) -> None:
    path = str(tmp_path / "x.zarr")
    zarr.create_array(path, data=voxels, chunks=(8, 16, 16), **options)
    with OneThread() as thread:
        here = thread.array(open_node(path), path)
        for box in (
            np.s_[2:9, 3:30, 10:40],
            np.s_[8:16, 16:32, 0:16],
            np.s_[0:20, 0:33, 0:40],
            np.s_[19:20, 5, 1:3],
        ):
            np.testing.assert_array_equal(here[box], voxels[box])


def test_the_memory_of_a_box_serves_the_next(tmp_path: Path, voxels: np.ndarray) -> None:
    path = str(tmp_path / "x.zarr")
    array = zarr.create_array(
        path, shape=voxels.shape, dtype=np.uint16, chunks=(8, 16, 16), fill_value=7
    )
    array[:8] = voxels[:8]
    with OneThread() as thread:
        here = thread.array(open_node(path), path)
        first = here[0:8]
        second = here[4:12]  # half of it is missing chunks, which are not what the memory held
        assert np.may_share_memory(first, second)
        np.testing.assert_array_equal(second[:4], voxels[4:8])
        assert (second[4:] == 7).all()


def test_all_is_done_by_the_calling_thread(
    tmp_path: Path, voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "x.zarr")
    zarr.create_array(
        path,
        shape=voxels.shape,
        dtype=np.uint16,
        chunks=(8, 16, 16),
        compressors=zarr.codecs.ZstdCodec(),
    )
    codec = type(zarr.codecs.ZstdCodec()._zstd_codec)
    threads = set()

    def watched(name: str) -> Any:
        work = getattr(codec, name)

        def call(*arguments: Any) -> Any:
            threads.add((name, threading.get_ident()))
            return work(*arguments)

        return call

    for name in ("encode", "decode"):
        monkeypatch.setattr(codec, name, watched(name))
    with OneThread() as thread:
        array = zarr.open_array(zarr_store.folder_to_write(path), mode="r+")
        here = thread.array(array, path)
        here[:] = voxels
        np.testing.assert_array_equal(here[:], voxels)
    assert threads == {("encode", threading.get_ident()), ("decode", threading.get_ident())}
