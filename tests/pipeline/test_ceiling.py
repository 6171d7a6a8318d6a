"""The whole process stays below --max-memory: what the system measured of each command."""

from __future__ import annotations

import gzip
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import peak_memory

from conv3d_cli.formats import write_volume
from conv3d_cli.model.volume import Volume

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")
CEILING = 300 << 20


def peak(folder: Path, *arguments: str) -> tuple[int, int]:
    """The exit code and the largest resident memory in bytes of an `apply` with the ceiling."""
    rest = ("-o", "o.npy", "--overwrite", "-q", "--max-memory", CEILING)
    return peak_memory(folder, "apply", *arguments, *rest)[:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ceiling")
    np.save(made / "x.npy", np.ones((16, 16, 16), np.float32))
    np.save(made / "k.npy", np.random.default_rng(0).random((200, 200, 200), np.float32))
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, 8, 8, 8, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 16, 32)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<3f", head, 108, 1 << 29, 0, 0)
    head[344:349] = b"n+1\0\1"
    with gzip.open(made / "x.nii.gz", "wb", 1) as file:
        file.write(bytes(head) + struct.pack("<ii", (1 << 29) - 352, 6))
        file.write(bytes((1 << 20) - 360))
        for _ in range(511):
            file.write(bytes(1 << 20))
        file.write(bytes(2048))
    return made


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("x.npy", "-k", "box:size=250"), 6),
        pytest.param(("x.npy", "-k", "box:size=200"), 6, marks=pytest.mark.slow),
        pytest.param(
            ("x.npy", "-k", "gaussian:sigma=30vox", "--algorithm", "direct"),
            6,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("x.npy", "-k", "expr:exp(-r):radius=100vox"), 6, marks=pytest.mark.slow
        ),
        (("x.npy", "-k", "k.npy"), 6),
        (("x.nii.gz", "-k", "box:size=3"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_once_went_above(arguments: tuple[str, ...], code: int, folder: Path) -> None:
    ended, memory = peak(folder, *arguments)
    assert memory <= CEILING
    assert ended == code


# name of a file, and options of the writer; some need a library
SOURCES: dict[str, dict[str, Any]] = {
    "v.npy": {},
    "v.nii.gz": {},
    "v.nii.zst": {},
    "v.tif": {"compression": "deflate"},
    "v.ome.tif": {"compression": "zstd"},
    "v.zarr": {"chunks": 48},
    "v.nrrd": {"compression": "deflate"},
    "v.mha": {"compression": "deflate"},
    "v.mgz": {},
    "v.mif.gz": {},
    "v.mrc": {},
    "v.h5": {},
}
TARGETS = ("o.npy", "o.nii.gz", "o.tif", "o.zarr", "o.mgz", "o.h5")


@pytest.fixture(scope="module")
def source(folder: Path) -> Callable[[str], str]:
    """A volume of 28 MB in a format, and one of 4 x 5 x 6 voxels: `small-` and the name."""

    def make(name: str) -> str:
        if not (folder / name).exists():
            shape = (4, 5, 6) if name.startswith("small-") else (160, 200, 220)
            values = np.random.default_rng(1).random(shape, np.float32)
            options = SOURCES[name.removeprefix("small-")]
            write_volume(str(folder / name), Volume(values, "zyx"), **options)
        return name

    def chunked(name: str) -> str:
        """HDF5 in packed chunks, which this package does not write."""
        import h5py

        if not (folder / name).exists():
            values = np.random.default_rng(1).random((160, 200, 220), np.float32)
            with h5py.File(folder / name, "w") as file:
                file.create_dataset("x", data=values, chunks=(32, 200, 220), compression="gzip")
        return name

    return lambda name: chunked(name) if name == "v.h5" else make(name)


def a_command(draw: random.Random, source: Callable[[str], str]) -> tuple[str, ...]:
    """An input, a kernel, an output and options, but for the ceiling."""
    name = draw.choice(list(SOURCES))
    if draw.random() < 0.25 and name != "v.h5":
        name = f"small-{name}"
    size = draw.choice([1, 2, 3, 5, 7, 9, 15, 31, 80, 160])
    triple = ",".join(str(draw.choice([1, 3, size])) for _ in range(3))
    kernel = draw.choice(
        [
            f"box:size={size}",
            f"box:size={triple}",
            f"gaussian:sigma={1 + size / 8}vox",
            f"ball:radius={1 + size // 4}vox",
            f"expr:exp(-r):radius={1 + size // 4}vox",
            "sobel:axis=d",
        ]
    )
    options: list[str] = []
    for chance, choice in (
        (0.3, ("--padding", draw.choice(["full", "valid", "same"]))),
        (0.3, ("--boundary", draw.choice(["wrap", "nearest", "zeros", "reflect"]))),
        (0.2, ("--precision", "float64")),
        (0.2, ("--strides", "2")),
        (0.2, ("--dtype", draw.choice(["float64", "uint8", "int16"]))),
        (0.2, ("--nan", "ignore")),
        (0.2, ("--mask", source("v.npy"))),
        (0.2, ("--threads", draw.choice(["1", "2", "8"]))),
        (0.2, ("--algorithm", draw.choice(["direct", "fft", "separable", "sparse"]))),
        (0.2, ("--activation", "relu")),
        (0.2, ("--verify", draw.choice(["10", "all"]))),
        (0.2, ("--compression", draw.choice(["deflate", "zstd"]))),
    ):
        if draw.random() < chance:
            options += choice
    return (source(name), "-k", kernel, "-o", draw.choice(TARGETS), *options)


@pytest.mark.parametrize(
    "seed", [n if n < 5 else pytest.param(n, marks=pytest.mark.slow) for n in range(150)]
)
def test_a_random_command(seed: int, folder: Path, source: Callable[[str], str]) -> None:
    for library in ("h5py", "zarr"):
        pytest.importorskip(library)
    draw = random.Random(seed)
    ceiling = draw.choice([230, 260, 300, 400]) << 20
    command = a_command(draw, source)
    code, memory, text = peak_memory(
        folder, "apply", *command, "--overwrite", "-q", "--max-memory", ceiling
    )
    shown = " ".join(command)
    assert memory <= ceiling, f"{memory >> 20} of {ceiling >> 20} MiB: {shown}"
    assert code in (0, 2, 4, 5, 6), f"{code}: {shown}: {text}"
