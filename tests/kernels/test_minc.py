"""MINC's kernel files, held to what mincmorph itself makes of one; and the kernels that ImageJ's Convolve saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy.ndimage import correlate

from conv3d_cli import read_volume
from conv3d_cli.errors import Conv3DError, FormatError, ShapeError, SpecError
from conv3d_cli.kernels import read_kernel, write_kernel
from conv3d_cli.model.kernel import Kernel

DATA = Path(__file__).parent.parent / "data"
START = "MNI Morphology Kernel File\nKernel_Type = Normal_Kernel;\nKernel =\n"


def written(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# MINC


def test_as_mincmorph_convolves(tmp_path: Path, run: Any) -> None:
    """Axis order, direction and the sum of repeated offsets; mincmorph leaves the voxels at the edges alone."""
    with np.load(DATA / "minc_golden.npz") as file:
        golden = dict(file)
    np.save(tmp_path / "x.npy", golden["volume"])
    words = [
        "-k",
        DATA / "asymmetric.kern",
        "--precision",
        "float64",
        "--dtype",
        "float64",
        "-o",
        tmp_path / "y.npy",
    ]
    run("apply", tmp_path / "x.npy", *words)
    inside = (slice(1, 5), slice(1, 7), slice(1, 8))
    result, expected = np.load(tmp_path / "y.npy")[inside], golden["convolved"][inside]
    assert np.ptp(expected) > 1000
    # it computes in float32
    np.testing.assert_allclose(result, expected, atol=1e-6 * np.abs(expected).max())


def test_what_a_file_means() -> None:
    kernel = read_kernel(str(DATA / "asymmetric.kern"))
    assert kernel.size == (5, 3, 3)  # z, y, x, with the offset 0,0,0 in the middle
    assert kernel.centre is None
    held = {
        tuple(index - np.array([2, 1, 1])): kernel.weights[tuple(index)]
        for index in np.argwhere(kernel.weights)
    }
    assert held == {
        (0, 0, 0): 0.5,
        (0, 0, 1): -1.5,
        (0, -1, 0): 3.25,
        (2, 0, 0): 0.1,
        (-1, 1, -1): 4.0,
    }


@pytest.mark.parametrize(
    "text",
    [
        START + "1 0 0 0 0 2;",
        START.replace("\n", "\r\n") + "1 0 0 0 0 2;\r\n",
        START.replace(" = ", "=") + "\t1.0\t0.\t.0 0 0\n2e0\n;\nwhatever follows",
        "# first\n% of all\n"
        + START.replace("Kernel_Type", "%\n\n Kernel_Type")
        + "% x y z\n 1 0 0 0 0 2 % ; \n;",
    ],
)
def test_forms_that_mincmorph_reads(tmp_path: Path, text: str) -> None:
    for suffix in (".kern", ".KERN", ".kernel"):
        assert read_kernel(written(tmp_path / f"k{suffix}", text)).weights.tolist() == [[[0, 0, 2]]]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "1 2 1\n2 4 2\n1 2 1\n",
            FormatError,
            "a MINC kernel file begins with the line 'MNI Morphology Kernel File'",
        ),
        ("MNI Morphology Kernel File; version 2\n", FormatError, "begins with the line"),
        (
            START.replace("Normal", "Other") + "0 0 0 0 0 1;",
            FormatError,
            "'Kernel_Type = Normal_Kernel;' must follow",
        ),
        (START.replace("Kernel =", "Kernel"), FormatError, "'Kernel =' must follow its type"),
        (START + "0 0 0 0 0 1\n", FormatError, "truncated: no ';' ends its numbers"),
        (START + "% 0 0 0 0 0 1;\n;", FormatError, "it holds no weights"),
        (
            START + "0 0 0 0 0 1\n1 0 0 0 1;",
            FormatError,
            "line 5: a weight is six numbers: .* received '1 0 0 0 1'",
        ),
        (
            START + "0 0 0 0 0 1\n1 0 0 0 0 one;",
            FormatError,
            "line 5: a weight is six numbers: .* '1 0 0 0 0 one'",
        ),
        (START + "0 0 0 0 0 nan;", FormatError, "line 4: offsets and coefficients must be finite"),
        (START + "0 0 0 0 0 1e999;", FormatError, "must be finite"),
        (START + "0.5 0 0 0 0 1;", FormatError, "offsets must be whole voxels"),
        (
            START + "1e300 0 0 0 0 1;",
            FormatError,
            "offsets must be whole voxels, at most 1,048,576",
        ),
        (
            START + "0 0 0 1 0 1;",
            FormatError,
            "offsets along t and v must be 0, since a kernel is spatial",
        ),
        (START + "0 0 0 0 -1 1;", FormatError, "offsets along t and v must be 0"),
        (
            START + "99 99 99 0 0 1;",
            ShapeError,
            "its offsets reach over 199 x 199 x 199 voxels, more than 1,048,576",
        ),
        (START + "0 0 0 0 0 1e308\n0 0 0 0 0 1e308;", ShapeError, "must hold finite numbers"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, error: type[Conv3DError], message: str) -> None:
    path = written(tmp_path / "k.kern", text)
    with pytest.raises(error, match=message) as caught:
        read_kernel(path)
    assert path in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_it_is_only_read(tmp_path: Path, run: Any) -> None:
    message = r"MINC kernels are only read; write \.npz, \.json, \.nii\.gz or another"
    with pytest.raises(SpecError, match=message):
        write_kernel(tmp_path / "k.kern", Kernel(np.ones((3, 3, 3))))
    assert (
        "MINC kernels are only read"
        in run("kernel", "make", "box", "-o", tmp_path / "k.kern", code=2).output
    )
    assert not list(tmp_path.iterdir())
    run("kernel", "make", DATA / "asymmetric.kern", "-o", tmp_path / "k.npy")
    assert np.array_equal(
        np.load(tmp_path / "k.npy"), read_kernel(str(DATA / "asymmetric.kern")).weights
    )
    assert "5 x 3 x 3" in run("kernel", "show", DATA / "asymmetric.kern").output


# ---------------------------------------------------------------------------------------------------------------------
# ImageJ

ROWS = [[-1.0, -2.0, 0.5], [0.0, 24.0, 1e-3], [3.0, 0.25, -7.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize("between", [" ", "\t", ",", ", ", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_kernels_that_imagej_saves(tmp_path: Path, between: str, end: str) -> None:
    """Convolve's Save... writes what stands in the dialog and an end of line; a text image has tabs or commas."""
    text = end.join(between.join(map(str, row)) for row in ROWS)
    for tail in ("", end, end * 3, f"{end} {end}"):
        kernel = read_kernel(written(tmp_path / "kernel.txt", text + tail))
        assert kernel.weights.tolist() == [ROWS]


def test_as_imagej_convolves(tmp_path: Path, run: Any) -> None:
    """Each plane by itself, not flipped, edges repeated, scaled to sum 1: ij.plugin.filter.Convolver."""
    planes = np.random.default_rng(3).integers(0, 4096, (4, 11, 13)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    kernel = written(
        tmp_path / "kernel.txt", "\n".join("\t".join(map(str, row)) for row in ROWS) + "\n\n"
    )
    run("apply", tmp_path / "x.tif", "-k", kernel, "--like", "imagej", "-o", tmp_path / "y.tif")
    scaled = np.array([ROWS]) / np.sum(ROWS)
    expected = correlate(planes.astype(np.float64), scaled, mode="nearest")
    np.testing.assert_allclose(
        read_volume(str(tmp_path / "y.tif")).data, expected, atol=1e-6 * np.abs(expected).max()
    )
