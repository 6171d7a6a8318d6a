"""CPU time of reading and writing sharded Zarr arrays, beside the bare codecs and zarr's pipelines.

    python tests/benchmarks/zarr_chunks.py [--rounds 9] [--side 256]

Voxels are float32, chunks 32^3 in shards of 128^3 (a second table: without shards). All ways take
their turn in every round; the table has the least CPU milliseconds of the process, user and system.

bare        numcodecs alone: chunks in memory to bytes in memory, and back into one chunk's memory
moved       the same bytes without codecs: to files and back, voxels cut out and put in their place
conv3d      the arrays that conv3d reads from and writes to
zarr        zarr's own, at a path
fused       zarr's fused pipeline, from zarr 3.3 on
zarrs       the pipeline of the package zarrs, where it is installed
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numcodecs
import numpy as np
import zarr

from conv3d_cli.formats.zarr.chunks import direct
from conv3d_cli.formats.zarr.store import folder_to_write, open_node

CHUNK, SHARD = 32, 128
CODECS: dict[str, tuple[Any, Any]] = {
    "zstd, level 0": (zarr.codecs.ZstdCodec(level=0), numcodecs.Zstd(level=0)),
    "blosc, lz4": (
        zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4),
        numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
    ),
    "blosc, zstd": (
        zarr.codecs.BloscCodec(cname="zstd", clevel=5, shuffle="shuffle", typesize=4),
        numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE),
    ),
}
PIPELINES = {
    "zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}
Array = np.ndarray[Any, Any]


def image(side: int) -> dict[str, Array]:
    """A smooth image with noise, and the same as a camera's whole numbers."""
    rng = np.random.default_rng(0)
    grid = np.indices((side,) * 3, np.float32) - side / 2
    ball = 1000 / (1 + np.exp((np.sqrt((grid**2).sum(0)) - 0.3 * side) / 5))
    noisy = ball + 10 * rng.normal(size=ball.shape)
    return {"noise": noisy.astype(np.float32), "whole numbers": np.rint(noisy).astype(np.float32)}


def cubes(side: int) -> list[tuple[slice, ...]]:
    steps = [slice(at, at + CHUNK) for at in range(0, side, CHUNK)]
    return list(product(steps, repeat=3))


class Bare:
    """The codec alone."""

    def __init__(self, voxels: Array, codec: Any, folder: str, sharded: bool) -> None:
        self.codec, self.out = codec, np.empty((CHUNK,) * 3, np.float32)
        self.parts = [np.ascontiguousarray(voxels[cube]) for cube in cubes(len(voxels))]

    def write(self) -> None:
        self.packed = [self.codec.encode(part) for part in self.parts]

    def read(self) -> None:
        for part in self.packed:
            self.codec.decode(part, self.out)


class Moved:
    """All but the codec."""

    def __init__(self, voxels: Array, codec: Any, folder: str, sharded: bool) -> None:
        self.voxels, self.folder = voxels, folder
        self.chunk = np.empty((CHUNK,) * 3, np.float32)
        chunks = cubes(len(voxels))
        sizes = [len(codec.encode(np.ascontiguousarray(voxels[cube]))) for cube in chunks]
        self.data = [np.ones(size, np.uint8) for size in sizes]
        per_file = (SHARD // CHUNK) ** 3 if sharded else 1
        self.files = [
            range(at, min(at + per_file, len(chunks))) for at in range(0, len(chunks), per_file)
        ]

    def write(self) -> None:
        chunks = cubes(len(self.voxels))
        for number, which in enumerate(self.files):
            with open(f"{self.folder}/{number}", "wb") as file:
                for one in which:
                    self.chunk[...] = self.voxels[chunks[one]]
                    file.write(self.data[one])

    def read(self) -> None:
        chunks = cubes(len(self.voxels))
        found = np.empty(self.voxels.shape, np.float32)
        for number, which in enumerate(self.files):
            with open(f"{self.folder}/{number}", "rb", buffering=0) as file:
                for one in which:
                    file.readinto(self.data[one])
                    found[chunks[one]] = self.chunk


class Library:
    """An array of zarr's, or conv3d's."""

    def __init__(self, voxels: Array, codec: Any, folder: str, sharded: bool, way: str) -> None:
        self.voxels, self.codec, self.folder, self.way = voxels, codec, folder, way
        self.shards = (SHARD,) * 3 if sharded else None

    def _configured(self) -> Any:
        return zarr.config.set({"codec_pipeline.path": PIPELINES.get(self.way, PIPELINES["zarr"])})

    def prepare(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        ours = self.way == "conv3d"
        with self._configured():
            array = zarr.create_array(
                folder_to_write(self.folder) if ours else self.folder,
                shape=self.voxels.shape, dtype="f4", chunks=(CHUNK,) * 3, shards=self.shards,
                compressors=self.codec, config={"write_empty_chunks": True},
            )  # fmt: skip
        self.array = direct(array) if ours else array

    def write(self) -> None:
        with self._configured():
            self.array[:, :, :] = self.voxels

    def read(self) -> None:
        with self._configured():
            if self.way == "conv3d":
                array = direct(open_node(self.folder))
            else:
                array = zarr.open_array(self.folder, mode="r")
            found = array[:, :, :]
        assert found[-1, -1, -1] == self.voxels[-1, -1, -1]


def ways() -> list[str]:
    found = ["bare", "moved", "conv3d", "zarr"]
    found += ["fused"] if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline") else []
    try:
        import zarrs  # noqa: F401
    except ImportError:
        return found
    return [*found, "zarrs"]


def cpu_ms(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", type=int, default=256)
    given = parser.parse_args()
    numcodecs.blosc.use_threads = False
    print(f"zarr {zarr.__version__}, numcodecs {numcodecs.__version__}, {os.cpu_count()} CPUs")
    names = ways()
    with tempfile.TemporaryDirectory() as top:
        for sharded in (True, False):
            print(
                f"\n| {'shards' if sharded else 'chunks'}: read, write (ms) | "
                + " | ".join(names)
                + " |"
            )
            print("|---|" + "---|" * len(names))
            for (kind, voxels), (title, pair) in product(image(given.side).items(), CODECS.items()):
                tried: dict[str, Any] = {}
                for name in names:
                    folder = f"{top}/{name}"
                    os.makedirs(folder, exist_ok=True)
                    if name in ("bare", "moved"):
                        tried[name] = (Bare if name == "bare" else Moved)(
                            voxels, pair[1], folder, sharded
                        )
                    else:
                        tried[name] = Library(voxels, pair[0], folder, sharded, name)
                least = {name: [np.inf, np.inf] for name in names}
                for _ in range(given.rounds):
                    for name, way in tried.items():
                        getattr(way, "prepare", lambda: None)()
                        times = cpu_ms(way.write), cpu_ms(way.read)
                        least[name] = [min(a, b) for a, b in zip(least[name], times, strict=True)]
                cells = [f"{least[name][1]:.0f}, {least[name][0]:.0f}" for name in names]
                print(f"| {kind}, {title} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
