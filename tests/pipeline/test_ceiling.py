"""The whole process stays below --max-memory: what the system measured of each command."""

from __future__ import annotations

import gzip
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from processes import peak_memory

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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_a_random_command(seed: int, folder: Path) -> None:
    draw = random.Random(seed)
    size = draw.choice([1, 2, 3, 7, 31, 80, 120, 160, 220])
    kernel = draw.choice(
        [
            f"box:size={size}",
            f"gaussian:sigma={1 + size / 8}vox",
            f"ball:radius={1 + size // 2}vox",
            f"expr:exp(-r):radius={1 + size // 2}vox",
        ]
    )
    options = draw.choice(
        [(), ("--padding", "full"), ("--boundary", "wrap"), ("--precision", "float64")]
    )
    source = folder / "large.npy"
    if not source.exists():
        np.save(source, np.random.default_rng(1).random((160, 200, 220), np.float32))
    given = str(draw.choice([source, "x.npy"]))
    ended, memory = peak(folder, given, "-k", kernel, *options)
    assert memory <= CEILING
    assert ended in (0, 2, 6)
