"""The size of a packed picture, read from its header before it is decoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bombs import jpeg_head

from conv3d_cli.formats.tiff.pictures import check_picture

# what imagecodecs writes of 53 x 37 voxels (1024 x 512, where it says so), from the first byte on
JPEG_XL = "ff0a20016880a0b8110804010018004b188b158201"
JPEG_XL_RATIO = "ff0af87f1014370208020100180000004000044000044000"
JPEG_LS = "ffd8fff7000b100025003501011100ff"
JPEG_XR = (
    "4949bc012000000024c3dd6f034efe4bb1853d77768dc90b0000000000000000080001bc01001000000008000000"
    "02bc0400010000000000000080bc0400010000003500000081bc0400010000002500000082bc0b00010000000000"
    "c04283bc0b00010000000000c042c0bc04000100000086000000c1bc0400010000004200000000000000574d5048"
    "4f544f001100c0020034002400008020080000046fff00010000010085bff0080000"
)


def check_at_the_edge(data: bytes, size: int) -> None:
    """It is let through at its own size, and refused one byte below that."""
    check_picture(data, size)
    with pytest.raises(ValueError, match="more than its strip or tile"):
        check_picture(data, size - 1)


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "JPEG2000", "JPEG2000 stream", "WEBP", "WEBP lossless"]
)
@pytest.mark.parametrize("samples", [1, 3])
def test_what_pillow_writes(form: str, samples: int) -> None:
    image = pytest.importorskip("PIL.Image")
    values = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    picture = image.fromarray(values if samples == 3 else values[..., 0])
    written = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if "lossless" in form else {}
    options |= {"no_jp2": True} if "stream" in form else {}
    picture.save(written, form.split()[0], **options)
    stored = 3 if form.startswith("WEBP") else samples  # WebP knows no grey
    check_at_the_edge(written.getvalue(), 37 * 53 * stored)


@pytest.mark.parametrize(
    ("data", "size"),
    [(JPEG_XL, 37 * 53), (JPEG_XL_RATIO, 512 * 1024), (JPEG_LS, 37 * 53 * 2), (JPEG_XR, 37 * 53 * 2)],
    ids=["JPEG XL", "JPEG XL, a ratio", "JPEG-LS", "JPEG XR"],
)  # fmt: skip
def test_what_imagecodecs_writes(data: str, size: int) -> None:
    check_at_the_edge(bytes.fromhex(data), size)


def test_a_header_that_breaks_off() -> None:
    for data in (bytes.fromhex(JPEG_XR), bytes.fromhex(JPEG_XL), jpeg_head()):
        for length in range(4, 12):
            with pytest.raises(ValueError, match=r"breaks off|no voxels"):
                check_picture(data[:length], 1 << 40)


@pytest.mark.parametrize("name", ["j.tif", "j.czi"])
def test_a_picture_larger_than_its_page_is_not_decoded(
    name: str, tmp_path: Path, run: Any, error_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bombs import BOMBS

    if name == "j.czi":
        pytest.importorskip("imagecodecs")
    monkeypatch.chdir(tmp_path)
    file = BOMBS["TIFF JPEG" if name == "j.tif" else "CZI JPEG"](tmp_path)
    text = error_line(run("apply", file, "-k", "identity", "-o", "o.npy", code=3).stderr)
    assert "its picture has 65500 x 65500 voxels, more than its strip or tile" in text
