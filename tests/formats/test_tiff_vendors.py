"""Voxel sizes in the tags of microscopes and slide scanners."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from ometiff import planes

from conv3d_cli.formats import open_volume, read_volume
from conv3d_cli.formats.tiff.vendors import read_vendor
from conv3d_cli.model.volume import Array, Axes


def write_stk(path: Path, data: Array, steps: list[tuple[int, int]]) -> None:
    """A MetaMorph file: one directory, the planes behind it, and UIC tags 1 and 2.

    steps : pairs       the distance of each plane to the next, a rational
    Source: Molecular Devices, MetaMorph Stack (STK) Image File Format.
    """
    depth, height, width = data.shape
    size = height * width * 2
    start = 8
    voxels = data.astype("<u2").tobytes()
    after = start + len(voxels)
    # UIC1: numbers of facts, and their values or where these are
    texts = struct.pack("<I", 3) + b"um\0"  # counted with its end
    rational = struct.pack("<II", 1, 10)
    facts = [(4, after), (5, after), (6, after + 8), (1, 1)]
    uic1 = b"".join(struct.pack("<II", *fact) for fact in facts)
    uic1_at = after + 8 + len(texts)
    uic2 = b"".join(struct.pack("<6I", *step, 0, 0, 0, 0) for step in steps)
    uic2_at = uic1_at + len(uic1)
    end = uic2_at + len(uic2)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size),
        (33628, 4, len(facts), uic1_at), (33629, 5, depth, uic2_at),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, end)
        + voxels + rational + texts + uic1 + uic2 + directory + bytes(4)
    )  # fmt: skip


def test_metamorph(tmp_path: Path) -> None:
    path = tmp_path / "a.stk"
    write_stk(path, planes(2), [(1, 2)] * 4)
    with tifffile.TiffFile(path) as file:
        assert file.is_stk
    volume = read_volume(str(path))
    np.testing.assert_array_equal(volume.data, planes(2))
    assert (volume.grid.spacing, volume.grid.unit) == ((0.5, 0.1, 0.1), "um")
    with open_volume(str(path)) as reader:
        assert reader.notes == ()
    write_stk(path, planes(2), [(1, 2), (1, 3), (1, 2), (1, 2)])
    with open_volume(str(path)) as reader:
        assert reader.notes == ("the file gives no z spacing: it is taken as 1 um",)


def tags(**known: Any) -> Any:
    """A series with TIFF's tags of a resolution."""
    values = {282: known.get("x"), 283: known.get("y"), 296: known.get("unit")}
    page = SimpleNamespace(
        tags=SimpleNamespace(valueof=values.get), description=known.get("text", "")
    )
    return SimpleNamespace(keyframe=page)


@pytest.mark.parametrize(
    ("facts", "series", "spacing"),
    [
        ({"is_lsm": True, "lsm_metadata": {"VoxelSizeX": 2e-7, "VoxelSizeY": 2e-7, "VoxelSizeZ": 5e-7}}, tags(), (0.5, 0.2, 0.2)),
        ({"is_fluoview": True, "fluoview_metadata": {"Dimensions": [("X", 9, 0.0, 0.25, "um"), ("Y", 9, 0.0, 0.25, "um"), ("Z", 4, 0.0, 2.0, "um")]}}, tags(), (2, 0.25, 0.25)),
        ({"is_sis": True, "sis_metadata": {"pixelsizex": 1e-7, "pixelsizey": 3e-7}}, tags(), (1, 0.3, 0.1)),
        ({"is_micromanager": True, "micromanager_metadata": {"Summary": {"PixelSize_um": 0.65, "z-step_um": 2}}}, tags(), (2, 0.65, 0.65)),
        ({"is_svs": True}, tags(text="Aperio|AppMag = 20|MPP = 0.499"), (1, 0.499, 0.499)),
        ({"is_ndpi": True}, tags(x=(20000, 1), y=(40000, 1), unit=3), (1, 0.25, 0.5)),
        ({"is_scn": True}, tags(x=(20000, 1), y=(20000, 1), unit=2), None),  # inches: a default
        ({"is_micromanager": True, "micromanager_metadata": {"Summary": {"PixelSize_um": 0}}}, tags(), None),
        ({}, tags(x=(20000, 1), y=(20000, 1), unit=3), None),
    ],
)  # fmt: skip
def test_dialects(facts: dict[str, Any], series: Any, spacing: Any) -> None:
    found = read_vendor(SimpleNamespace(**facts), series, Axes("zyx", (4, 9, 9)))
    assert found.grid.spacing == spacing
    assert found.grid.unit == (None if spacing is None else "um")
