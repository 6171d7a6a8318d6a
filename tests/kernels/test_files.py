"""Kernel files: every suffix round trip, and every way a file can be wrong ends as one line of
ours.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import sys
import tomllib
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from ometiff import write_positions, write_split
from profiles import examples

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    OutputExistsError,
    ShapeError,
    SpecError,
    UnknownNameError,
    WriteError,
)
from conv3d_cli.formats import (
    FORMATS,
    create_volume,
    find_format,
    read_volume,
    write_volume,
    written_files,
)
from conv3d_cli.kernels import KERNEL_FILES, find_kernel_file, read_bias, read_kernel, write_kernel
from conv3d_cli.kernels import files as kernel_files
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.volume import Axes, Volume, VolumeHeader

SUFFIXES = [suffix for kind in KERNEL_FILES for suffix in kind.suffixes]
WRITTEN = [suffix for kind in KERNEL_FILES for suffix in kind.suffixes if kind.written]
STORES = [suffix for found in FORMATS if found.chunked for suffix in found.suffixes]  # are folders
ONE_FILE = [
    suffix
    for suffix in WRITTEN
    if suffix not in STORES and written_files(f"k{suffix}") == (f"k{suffix}",)
]
EVERYTHING = [".npz", ".json", ".toml"]  # hold 5-D weights, bias and centre
LAYERS = [".npy", *EVERYTHING]
ANY_FLOAT = st.floats(allow_nan=False, allow_infinity=False)


def write_bytes(path: Path, content: bytes | str) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def npy_bytes(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_header(descr: str, shape: str, order: str = "False") -> bytes:
    """A .npy header that says whatever it is told."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def nifti_bytes(array: np.ndarray, kind: type = nibabel.Nifti1Image) -> bytearray:
    return bytearray(kind(array, np.eye(4)).to_bytes())


def tiff_bytes(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


@pytest.fixture
def weights(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(2, 3, 4))


# --------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("suffix", WRITTEN)
@settings(max_examples=examples(12))
@given(
    array=numpy_strategies.arrays(
        np.float64,
        numpy_strategies.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=ANY_FLOAT,
    )
)
def test_3d_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, array: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("k") / f"kernel{suffix}"
    write_kernel(path, Kernel(array))
    back = read_kernel(str(path))
    assert back.weights.shape == array.shape
    assert np.array_equal(back.weights, array)
    assert np.array_equal(np.signbit(back.weights), np.signbit(array))
    assert back.bias is None
    assert back.centre is None
    assert back.name == str(path)


@pytest.mark.parametrize("suffix", LAYERS)
@settings(max_examples=examples(8))
@given(
    array=numpy_strategies.arrays(
        np.float64, st.tuples(*[st.integers(1, 3)] * 5), elements=ANY_FLOAT
    )
)
def test_5d_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, array: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("k") / f"kernel{suffix}"
    write_kernel(path, Kernel(array))
    assert np.array_equal(read_kernel(str(path)).weights, array)


@pytest.mark.parametrize("suffix", EVERYTHING)
def test_bias_and_centre_round_trip(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    kernel = Kernel(rng.normal(size=(3, 2, 4, 2, 3)), bias=rng.normal(size=3), centre=(0, 0.5, 3))
    write_kernel(tmp_path / f"k{suffix}", kernel)
    back = read_kernel(str(tmp_path / f"k{suffix}"))
    assert np.array_equal(back.weights, kernel.weights)
    assert back.bias is not None
    assert np.array_equal(back.bias, kernel.bias)
    assert back.centre == (0, 0.5, 3)


@pytest.mark.parametrize("suffix", ONE_FILE)
def test_same_bytes_each_time(
    tmp_path: Path, weights: np.ndarray, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kernel(tmp_path / f"a{suffix}", Kernel(weights, name="one"))
    monkeypatch.setattr("time.time", lambda: 1234567890.0)
    # the middle, spelt out
    write_kernel(tmp_path / f"b{suffix}", Kernel(weights, name="other", centre=(0.5, 1, 1.5)))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert sorted(os.listdir(tmp_path)) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize("suffix", [s for s in WRITTEN if s not in LAYERS])
def test_what_cannot_be_held_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(
        WriteError, match=r"cannot hold 5-D weights; write \.npz \.json \.toml instead"
    ):
        write_kernel(tmp_path / f"k{suffix}", Kernel(np.ones((1, 1, 1, 2, 2))))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [s for s in WRITTEN if s not in EVERYTHING])
def test_bias_and_centre_are_not_lost_silently(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(WriteError, match="cannot hold a bias"):
        write_kernel(tmp_path / f"k{suffix}", Kernel(np.ones((1, 1, 3)), bias=np.array([1.0])))
    with pytest.raises(WriteError, match="cannot hold a centre off the middle"):
        write_kernel(tmp_path / f"k{suffix}", Kernel(np.ones((1, 1, 3)), centre=(0, 0, 0)))
    assert not list(tmp_path.iterdir())


def test_write_refuses_unknown_suffixes_and_existing_files(
    tmp_path: Path, weights: np.ndarray
) -> None:
    with pytest.raises(
        SpecError, match=r"cannot write .*k\.mat: no kernel file has the suffix \.mat"
    ):
        write_kernel(tmp_path / "k.mat", Kernel(weights))
    write_kernel(tmp_path / "k.npy", Kernel(weights))
    with pytest.raises(OutputExistsError, match="pass overwrite=True"):
        write_kernel(tmp_path / "k.npy", Kernel(weights * 2))
    write_kernel(tmp_path / "k.npy", Kernel(weights * 2), overwrite=True)
    assert np.array_equal(read_kernel(str(tmp_path / "k.npy")).weights, weights * 2)
    with pytest.raises(WriteError, match="NIfTI-1 cannot hold"):
        write_kernel(tmp_path / "k.nii", Kernel(np.ones((1, 1, 40000))))
    assert os.listdir(tmp_path) == ["k.npy"]


def test_other_programs_read_what_is_written(tmp_path: Path, weights: np.ndarray) -> None:
    for suffix in ONE_FILE:
        write_kernel(tmp_path / f"k{suffix}", Kernel(weights))
    assert np.array_equal(np.load(tmp_path / "k.npy", allow_pickle=False), weights)
    with np.load(tmp_path / "k.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["kernel"], weights)
    assert json.loads((tmp_path / "k.json").read_text())["kernel"] == weights.tolist()
    assert tomllib.loads((tmp_path / "k.toml").read_text())["kernel"] == weights.tolist()
    assert np.array_equal(np.loadtxt(tmp_path / "k.txt"), weights.reshape(-1, 4))
    for suffix in (".nii", ".nii.gz"):
        image = nibabel.load(tmp_path / f"k{suffix}")
        assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), weights)
    with tifffile.TiffFile(tmp_path / "k.tif") as tif:
        assert tif.series[0].axes == "ZYX"
        assert np.array_equal(tif.asarray(), weights)


# --------------------------------------------------------------------------------------------------
# Names and folders


def test_suffixes_in_any_case(tmp_path: Path, weights: np.ndarray) -> None:
    write_kernel(tmp_path / "K.NII.GZ", Kernel(weights))
    assert np.array_equal(read_kernel(str(tmp_path / "K.NII.GZ")).weights, weights)
    assert (tmp_path / "K.NII.GZ").read_bytes()[:2] == b"\x1f\x8b"
    assert find_kernel_file("K.OME.TIF") is find_kernel_file("k.ome.tif")


def test_paths_are_relative_to_a_folder(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    write_kernel(tmp_path / "sub" / "k.npy", Kernel(weights))
    assert np.array_equal(read_kernel("k.npy", folder=tmp_path / "sub").weights, weights)
    assert np.array_equal(
        read_kernel(str(tmp_path / "sub/k.npy"), folder=Path("/nowhere")).weights, weights
    )
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_kernel("sub/k.npy").weights, weights)
    assert read_kernel("identity", folder=tmp_path).size == (1, 1, 1)


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = f" in {os.path.realpath(tmp_path)}; correct the name, or change the folder"
    hints = {"k.npy": here, "sub/k": "; there is no folder 'sub'", "./gaussian": here}
    for text, hint in hints.items():
        with pytest.raises(FormatError) as caught:
            read_kernel(text)
        assert str(caught.value) == f"cannot read {text}: no such file{hint}"
        assert caught.value.exit_code == 3
    with pytest.raises(FormatError, match="no such file"):
        read_kernel("k.npy", folder=tmp_path)
    with pytest.raises(UnknownNameError):
        read_kernel("kernel")


def test_files_that_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes(tmp_path / "notes", "1 2 3")
    with pytest.raises(
        FormatError,
        match=r"cannot read notes: neither its content nor its name is of a kernel",
    ):
        read_kernel("notes")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FormatError, match="it is a folder"):
        read_kernel("folder.npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(
        FormatError, match=r"cannot read .*: (the file is empty|it is a file; a Zarr store)"
    ):
        read_kernel(write_bytes(tmp_path / f"k{suffix}", b""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "k.npy", b"x")
    os.chmod(path, 0)
    with pytest.raises(FormatError, match="Permission denied"):
        read_kernel(path)


# --------------------------------------------------------------------------------------------------
# Damage: whatever is in the file, one line of ours, little memory, no warning


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_noise_of_any_kind(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    for content in (
        b"\0",
        b"x",
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"II*\0",
        b"{",
        b"[[",
        b"\x1f\x8b",
        rng.bytes(700),
        b"\0" * 700,
    ):
        check_refused(write_bytes(tmp_path / f"k{suffix}", content))


@pytest.mark.parametrize("suffix", ONE_FILE)
def test_every_truncation(tmp_path: Path, weights: np.ndarray, suffix: str) -> None:
    write_kernel(tmp_path / f"whole{suffix}", Kernel(weights))
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    for length in {
        *range(1, min(len(whole), 400), 7),
        *range(1, len(whole), len(whole) // 25 + 1),
        len(whole) - 1,
    }:
        try:
            kernel = read_kernel(write_bytes(tmp_path / f"k{suffix}", whole[:length]))
        except (FormatError, ShapeError) as error:
            check_message(error, str(tmp_path / f"k{suffix}"))
        else:
            # only texts may end early and still say something; binary files may lose bytes that
            # mean nothing
            assert suffix == ".txt" or np.array_equal(kernel.weights, weights)


@pytest.mark.parametrize("suffix", ONE_FILE)
def test_any_byte_changed(
    tmp_path: Path, weights: np.ndarray, suffix: str, rng: np.random.Generator
) -> None:
    write_kernel(tmp_path / f"whole{suffix}", Kernel(weights))
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            damaged[
                rng.integers(len(damaged) if rng.random() < 0.3 else min(len(damaged), 420))
            ] = rng.integers(256)
        path = write_bytes(tmp_path / f"k{suffix}", bytes(damaged))
        try:
            read_kernel(path)
        except (FormatError, ShapeError) as error:
            check_message(error, path)


def check_message(error: Conv3DError, path: str) -> None:
    assert path in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 300 + 3 * len(path)


def check_refused(
    path: str,
    message: str = "",
    error: type[Conv3DError] | tuple[type[Conv3DError], ...] = (FormatError, ShapeError),
) -> None:
    """Reading ends with this error, in one line with the path, whatever the file promises."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=message or None) as caught:
            read_kernel(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000
    check_message(caught.value, path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            npy_bytes(np.ones(3)),
            ShapeError,
            r"must be 3-D .* received 1-D with shape \(3,\); give it the shape \(1, 1, 3\)",
        ),
        (npy_bytes(np.ones((3, 4))), ShapeError, r"received 2-D .* give it the shape \(1, 3, 4\)"),
        (npy_bytes(np.float64(1)), ShapeError, r"received 0-D .* give it the shape \(1, 1, 1\)"),
        (npy_bytes(np.ones((1, 2, 3, 4))), ShapeError, "received 4-D"),
        (npy_bytes(np.ones((1,) * 6)), ShapeError, "received 6-D"),
        (npy_bytes(np.ones((3, 0, 3))), ShapeError, "is empty"),
        (
            npy_bytes(np.ones((1, 1, 2)) * 1j),
            ShapeError,
            "must hold real numbers, received dtype complex128",
        ),
        (npy_bytes(np.array([[["a"]]])), ShapeError, "must hold real numbers"),
        (npy_bytes(np.zeros((1, 1, 1), "M8[s]")), ShapeError, "must hold real numbers"),
        (npy_bytes(np.zeros((1, 1, 1), [("a", "f4")])), ShapeError, "must hold real numbers"),
        (
            npy_bytes(np.array([[[1.0, np.nan]]])),
            ShapeError,
            r"1 NaN or infinite \(the first at \(0, 0, 1\)\)",
        ),
        (npy_bytes(np.array([[[np.inf, 1.0]]])), ShapeError, "must hold finite numbers"),
        (
            npy_bytes(np.array([[[None]]]), allow_pickle=True),
            FormatError,
            "pickled Python objects, which are never loaded",
        ),
        (
            npy_header("'<f8'", "(1000, 1000, 90)"),
            FormatError,
            "its header promises 720000128 bytes, the file has 128",
        ),
        (
            npy_header("'<f8'", "(100000, 100000, 100000)"),
            ShapeError,
            "at most 100,000,000 are allowed",
        ),
        (npy_header("'<f8'", "(-1, 3, 3)"), FormatError, "negative size"),
        (npy_header("'<f8'", "(3, 3, 'x')"), FormatError, "header is damaged"),
        (npy_header("'S999999999'", "(1, 1, 1)"), ShapeError, "must hold real numbers"),
        (npy_header("'<f8'", "(1, 1, 1"), FormatError, "header is damaged"),
        (npy_header("__import__('os')", "(1, 1, 1)"), FormatError, "header is damaged"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 200, FormatError, "header is damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"\0" * 200, FormatError, "header is damaged"),
    ],
)
def test_bad_npy(tmp_path: Path, content: bytes, error: type[Conv3DError], message: str) -> None:
    check_refused(write_bytes(tmp_path / "k.npy", content), message, error)


@pytest.mark.parametrize("dtype", ["?", "u1", ">i2", "i8", "f2", "<f4", ">f4", ">f8", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_every_real_dtype_and_order(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=dtype, order=order)
    np.save(tmp_path / "k.npy", array)
    assert np.array_equal(read_kernel(str(tmp_path / "k.npy")).weights, array)


# --------------------------------------------------------------------------------------------------
# npz


@pytest.mark.parametrize("name", ["kernel", "weights", "arr_0", "anything"])
def test_npz_names(tmp_path: Path, weights: np.ndarray, name: str) -> None:
    np.savez(
        tmp_path / "k.npz",
        **{name: weights, "bias": np.array([2.0]), "centre": np.array([0, 1, 2])},
    )
    kernel = read_kernel(str(tmp_path / "k.npz"))
    assert np.array_equal(kernel.weights, weights)
    assert kernel.bias == pytest.approx([2.0])
    assert kernel.centre == (0, 1, 2)


def test_npz_with_other_arrays(tmp_path: Path, weights: np.ndarray) -> None:
    np.savez_compressed(tmp_path / "k.npz", kernel=weights, notes=np.zeros(3))
    assert np.array_equal(read_kernel(str(tmp_path / "k.npz")).weights, weights)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"a": np.ones((1, 1, 1)), "b": np.ones((1, 1, 1))},
            "one array must be the kernel, by the name 'kernel'; it holds a, b",
        ),
        (
            {"kernel": np.ones((1, 1, 1)), "weights": np.ones((1, 1, 1))},
            "one array must be the kernel",
        ),
        ({"bias": np.ones(1)}, "one array must be the kernel, by the name 'kernel'; it holds bias"),
        ({}, "it holds nothing"),
        ({"kernel": np.ones((3, 3))}, "must be 3-D"),
        ({"kernel": np.array([[[np.nan]]])}, "must hold finite numbers"),
        ({"kernel": np.array([[[None]]], dtype=object)}, "pickled Python objects"),
        (
            {"kernel": np.ones((1, 1, 1)), "bias": np.ones((2, 2))},
            "the bias of kernel .* received shape",
        ),
        (
            {"kernel": np.ones((1, 1, 1)), "bias": np.ones(0)},
            "the bias of kernel .* received shape",
        ),
        ({"kernel": np.ones((1, 1, 1)), "bias": np.array(["a"])}, "real numbers"),
        ({"kernel": np.ones((1, 1, 1)), "bias": np.array([np.inf])}, "finite"),
        ({"kernel": np.ones((1, 1, 1, 1, 2)), "bias": np.ones(3)}, "one number for each filter"),
        ({"kernel": np.ones((1, 1, 1)), "centre": np.ones(2)}, "the centre is three numbers"),
        ({"kernel": np.ones((1, 1, 1)), "centre": np.array([0, 0, 1])}, "must lie inside"),
        ({"kernel": np.ones((1, 1, 1)), "centre": np.array([0, 0, np.nan])}, "must lie inside"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "k.npz", **arrays)
    check_refused(str(tmp_path / "k.npz"), message)


def test_npz_that_lies(tmp_path: Path) -> None:
    def archive(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> str:
        with zipfile.ZipFile(tmp_path / "k.npz", "w", compression) as file:
            file.writestr(name, content)
        return str(tmp_path / "k.npz")

    check_refused(archive("kernel.npy", npy_header("'<f8'", "(400, 400, 400)")), "truncated")
    check_refused(
        archive("kernel.npy", npy_header("'<f8'", "(4000, 4000, 4000)")),
        "at most 100,000,000",
        ShapeError,
    )
    check_refused(archive("kernel.npy", b"\0" * 30_000_000), "header is damaged")
    check_refused(archive("kernel.txt", b"1 2 3"), "header is damaged")

    content = npy_header("'<f8'", "(400, 400, 400)")
    path = archive("kernel.npy", content, zipfile.ZIP_STORED)
    size, claim = struct.pack("<I", len(content)), struct.pack("<I", 512_000_128)
    check_refused(write_bytes(Path(path), Path(path).read_bytes().replace(size, claim)))

    path = archive("kernel.npy", npy_bytes(np.arange(24.0).reshape(2, 3, 4)), zipfile.ZIP_STORED)
    check_refused(
        write_bytes(
            Path(path), Path(path).read_bytes().replace(struct.pack("<d", 7), struct.pack("<d", 8))
        ),
        "CRC",
    )


# --------------------------------------------------------------------------------------------------
# JSON and TOML

ONES = "[[[1, 1, 1]]]"


def table(tmp_path: Path, suffix: str, **items: str) -> str:
    """A .json or .toml file of items given as text that is the same in both."""
    if suffix == ".json":
        content = "{" + ", ".join(f'"{key}": {text}' for key, text in items.items()) + "}"
    else:
        content = "\n".join(f"{key} = {text}" for key, text in items.items())
    return write_bytes(tmp_path / f"k{suffix}", content)


@pytest.mark.parametrize("suffix", [".json", ".toml"])
class TestTables:
    def test_every_key(self, tmp_path: Path, suffix: str) -> None:
        path = table(
            tmp_path,
            suffix,
            kernel="[[[1, 2], [3, 4.5]]]",
            bias="-1",
            centre="[0, 1, 0]",
            axes='"dhw"',
            name='"mine"',
            flip="true",
            normalize="true",
        )
        kernel = read_kernel(path)
        assert kernel.weights.tolist() == [[[4.5 / 10.5, 3 / 10.5], [2 / 10.5, 1 / 10.5]]]
        assert kernel.centre == (0, 0, 1)
        assert kernel.bias == pytest.approx([-1])
        assert kernel.name == f"{path} (mine)"

    def test_weights_is_another_word(self, tmp_path: Path, suffix: str) -> None:
        assert read_kernel(table(tmp_path, suffix, weights=ONES)).weights.tolist() == [[[1, 1, 1]]]

    def test_ijk_is_nibabels_order(
        self, tmp_path: Path, suffix: str, rng: np.random.Generator
    ) -> None:
        array = rng.normal(size=(2, 3, 4))
        path = table(tmp_path, suffix, kernel=str(array.tolist()), axes='"ijk"')
        assert np.array_equal(read_kernel(path).weights, array.transpose(2, 1, 0))
        array = rng.normal(size=(2, 3, 4, 1, 2))
        path = table(tmp_path, suffix, kernel=str(array.tolist()), axes='"ijk"', bias="[1, 2]")
        assert np.array_equal(read_kernel(path).weights, array.transpose(2, 1, 0, 3, 4))

    def test_a_builtin(self, tmp_path: Path, suffix: str) -> None:
        path = table(tmp_path, suffix, kernel='"gaussian:fwhm=6mm"', bias="2")
        grid = Grid((3.0, 1.5, 1.5), "mm")
        kernel = read_kernel(path, grid)
        assert np.array_equal(kernel.weights, read_kernel("gaussian:fwhm=6mm", grid).weights)
        assert kernel.bias == pytest.approx([2])
        assert kernel.name == path
        with pytest.raises(
            ShapeError, match=r"the volume tells no voxel spacing.* \(in .*k\.(json|toml)\)"
        ):
            read_kernel(path, Grid())

    def test_a_wrong_builtin(self, tmp_path: Path, suffix: str) -> None:
        for text, error, message in (
            ("gaussian:sigma=2", SpecError, "sigma=2 needs a unit"),
            ("gausian:sigma=2vox", UnknownNameError, "did you mean 'gaussian'"),
            ("other.npy", UnknownNameError, "unknown kernel 'other.npy'"),
        ):
            check_refused(table(tmp_path, suffix, kernel=f'"{text}"'), message, error)

    @pytest.mark.parametrize(
        ("items", "error", "message"),
        [
            (
                {"kernel": ONES, "biass": "1"},
                FormatError,
                "unknown key 'biass'; did you mean 'bias'. known are kernel, ",
            ),
            (
                {"kernel": ONES, "strides": "2"},
                FormatError,
                "unknown key 'strides'; known are kernel",
            ),
            ({"bias": "1"}, FormatError, "it has no key 'kernel'"),
            ({"kernel": ONES, "weights": ONES}, FormatError, "it has both 'kernel' and 'weights'"),
            ({"kernel": ONES, "axes": '"xyz"'}, FormatError, "axes is 'dhw' or 'ijk'"),
            ({"kernel": ONES, "axes": "[1]"}, FormatError, "axes is 'dhw' or 'ijk'"),
            ({"kernel": '"box"', "axes": '"ijk"'}, FormatError, "axes orders a nested list"),
            ({"kernel": ONES, "flip": "1"}, FormatError, "flip is true or false, received 1"),
            ({"kernel": ONES, "normalize": '"yes"'}, FormatError, "normalize is true or false"),
            ({"kernel": ONES, "name": "1"}, FormatError, "name is a text"),
            ({"kernel": "1"}, FormatError, "kernel must be a nested list of numbers, received 1"),
            ({"kernel": "true"}, FormatError, "kernel must be a nested list"),
            ({"kernel": "[]"}, ShapeError, "received 1-D with shape"),
            ({"kernel": "[[[]]]"}, ShapeError, "is empty"),
            ({"kernel": "[1, 2]"}, ShapeError, r"received 1-D .* give it the shape \(1, 1, 2\)"),
            ({"kernel": "[[[[[[1]]]]]]"}, ShapeError, "received lists nested 6 deep"),
            ({"kernel": "[[[[1]]]]"}, ShapeError, "received 4-D"),
            (
                {"kernel": "[[[1, 2], [3]]]"},
                ShapeError,
                r"kernel\[0\]\[1\] must be a list of 2, received a list of 1",
            ),
            (
                {"kernel": "[[[1, 2], 3]]"},
                ShapeError,
                r"kernel\[0\]\[1\] must be a list of 2, received 3",
            ),
            (
                {"kernel": "[[[1, [2]]]]"},
                ShapeError,
                r"kernel\[0\]\[0\]\[1\] must be a number, received \[2\]",
            ),
            ({"kernel": '[[[1, "2"]]]'}, ShapeError, r"must be a number, received '2'"),
            ({"kernel": "[[[1, true]]]"}, ShapeError, "must be a number, received True"),
            ({"kernel": f"[[[1, 1{'0' * 400}]]]"}, (FormatError, ShapeError), "finite|not TOML"),
            ({"kernel": f"[[[1, 1{'0' * 6000}]]]"}, (FormatError, ShapeError), ""),
            ({"kernel": ONES, "bias": '"1"'}, ShapeError, r"bias\[0\] must be a number"),
            ({"kernel": ONES, "bias": "[]"}, ShapeError, "the bias of kernel"),
            ({"kernel": ONES, "bias": "[[1]]"}, ShapeError, "the bias of kernel"),
            ({"kernel": ONES, "centre": "1"}, ShapeError, "the centre is three numbers"),
            ({"kernel": ONES, "centre": '["a", 1, 1]'}, ShapeError, "the centre is three numbers"),
            ({"kernel": ONES, "centre": "[[0], 0, 0]"}, (FormatError, ShapeError), ""),
            ({"kernel": ONES, "centre": "[0, 0, 3]"}, ShapeError, "must lie inside"),
            ({"kernel": "[[[-1, 0, 1]]]", "normalize": "true"}, ShapeError, "sums to 0"),
        ],
    )
    def test_bad_tables(
        self, tmp_path: Path, suffix: str, items: dict[str, str], error: Any, message: str
    ) -> None:
        check_refused(table(tmp_path, suffix, **items), message, error)

    def test_text_that_is_no_table(self, tmp_path: Path, suffix: str) -> None:
        check_refused(
            write_bytes(tmp_path / f"k{suffix}", "kernel: [1]"),
            f"not {suffix[1:].upper()}",
            FormatError,
        )
        check_refused(
            write_bytes(tmp_path / f"k{suffix}", b"\xff\xfe{\0"),
            r"not UTF-8 text \(byte 0\)",
            FormatError,
        )
        deep = "[" * 200_000
        check_refused(
            write_bytes(tmp_path / f"k{suffix}", deep if suffix == ".json" else f"kernel = {deep}"),
            "",
            FormatError,
        )

    def test_text_of_absurd_length(self, tmp_path: Path, suffix: str) -> None:
        with open(tmp_path / f"k{suffix}", "wb") as file:
            file.truncate(1 << 32)
        check_refused(str(tmp_path / f"k{suffix}"), "save it as .npy", FormatError)


def test_json_that_is_only_a_list(tmp_path: Path) -> None:
    assert read_kernel(write_bytes(tmp_path / "k.json", "\ufeff" + ONES)).weights.tolist() == [
        [[1, 1, 1]]
    ]


def test_json_and_toml_nan(tmp_path: Path) -> None:
    check_refused(write_bytes(tmp_path / "k.json", "[[[NaN, 1]]]"), "1 NaN or infinite", ShapeError)
    check_refused(
        write_bytes(tmp_path / "k.toml", "kernel = [[[inf, 1]]]"), "1 NaN or infinite", ShapeError
    )


# --------------------------------------------------------------------------------------------------
# Plain text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2 3", [[[1, 2, 3]]]),
        ("1 2\n3 4\n", [[[1, 2], [3, 4]]]),
        ("1 2\n3 4\n\n5 6\n7 8\n", [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        (
            "# a kernel\n\n\n1\n# between rows\n2 # a row\n   \t\n\n3\n4\n\n\n",
            [[[1], [2]], [[3], [4]]],
        ),
        ("1, 2,3\r\n4\t5 6e-1\r\n", [[[1, 2, 3], [4, 5, 0.6]]]),
        ("-1 +.5 2.", [[[-1, 0.5, 2]]]),
    ],
)
def test_text_blocks(tmp_path: Path, text: str, expected: list[Any]) -> None:
    assert read_kernel(write_bytes(tmp_path / "k.txt", text)).weights.tolist() == expected


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("# only a comment\n", FormatError, "it holds no numbers"),
        ("1 2\nthree 4", FormatError, "line 2 is not a row of numbers"),
        ("1 2\n3\n", ShapeError, "received 1 numbers in line 2 after rows of 2"),
        ("1 2\n3 4\n\n5 6", ShapeError, "must have equally many rows, received 2, 1"),
        ("1 2\n\n5 6 7", ShapeError, "in line 3 after rows of 2"),
        ("1 nan", ShapeError, "1 NaN or infinite"),
        ("1 1e999", ShapeError, "1 NaN or infinite"),
        ("\x00", FormatError, "not a row of numbers"),
    ],
)
def test_bad_text(tmp_path: Path, text: str, error: type[Conv3DError], message: str) -> None:
    check_refused(write_bytes(tmp_path / "k.txt", text), message, error)


# --------------------------------------------------------------------------------------------------
# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", ">u1"])
def test_nifti_axes_go_by_name(tmp_path: Path, suffix: str, kind: type, dtype: str) -> None:
    array = np.arange(24, dtype=dtype).reshape(4, 3, 2)  # i, j, k
    header = kind.header_class(endianness=dtype[0])
    nibabel.save(kind(array, np.diag([2.0, 3.0, 4.0, 1.0]), header), tmp_path / f"k{suffix}")
    assert np.array_equal(
        read_kernel(str(tmp_path / f"k{suffix}")).weights, array.transpose(2, 1, 0)
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 3, 2, 1), (2, 3, 4)),
        ((4, 3, 1), (1, 3, 4)),
        ((4, 3), (1, 3, 4)),
        ((4, 3, 2, 1, 1), (2, 3, 4)),
    ],
)
def test_nifti_axes_of_size_1(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    path = write_bytes(
        tmp_path / "k.nii",
        bytes(nifti_bytes(np.arange(np.prod(shape), dtype=float).reshape(shape))),
    )
    kernel = read_kernel(path)
    assert kernel.size == expected
    assert kernel.weights[0, 0, 1] == shape[1] * (shape[2] if len(shape) > 2 else 1)


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -1)
    content = bytearray(image.to_bytes())
    content[112:120] = struct.pack("<ff", 0.5, -1)
    kernel = read_kernel(write_bytes(tmp_path / "k.nii", bytes(content)))
    assert np.array_equal(
        kernel.weights, np.arange(8).reshape(2, 2, 2).transpose(2, 1, 0) * 0.5 - 1
    )


def test_nifti_compression_goes_by_content(tmp_path: Path, weights: np.ndarray) -> None:
    content = bytes(nifti_bytes(weights))
    assert read_kernel(write_bytes(tmp_path / "a.nii.gz", content)).size == (4, 3, 2)
    assert read_kernel(write_bytes(tmp_path / "b.nii", gzip.compress(content))).size == (4, 3, 2)


def damaged_nifti(change: Callable[[bytearray], None], array: np.ndarray | None = None) -> bytes:
    content = nifti_bytes(np.ones((2, 3, 4)) if array is None else array)
    change(content)
    return bytes(content)


def put(offset: int, layout: str, *values: Any) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[offset : offset + struct.calcsize(layout)] = struct.pack(layout, *values)

    return change


BAD_NIFTI = [
    (
        damaged_nifti(put(40, "<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1)),
        "truncated.*: its header promises 262144000000352 bytes",
    ),
    (
        damaged_nifti(put(40, "<8h", 3, 300, 300, 300, 1, 1, 1, 1)),
        "truncated.*: its header promises 216000352 bytes",
    ),
    (damaged_nifti(put(40, "<8h", 3, -2, 3, 4, 1, 1, 1, 1)), "an axis has at least 1 voxel"),
    (damaged_nifti(put(40, "<8h", 3, 0, 3, 4, 1, 1, 1, 1)), "an axis has at least 1 voxel"),
    (damaged_nifti(put(40, "<8h", 0, 2, 3, 4, 1, 1, 1, 1)), ""),
    (damaged_nifti(put(70, "<h", 9999)), ""),
    (damaged_nifti(put(108, "<f", float("nan"))), "vox_offset, where voxels start, is nan"),
    (damaged_nifti(put(108, "<f", -5)), "vox_offset, where voxels start, is -5"),
    (
        damaged_nifti(put(108, "<f", 348)),
        "vox_offset, where voxels start, is 348",
    ),  # among the extensions
    (damaged_nifti(put(108, "<f", 352.5)), "vox_offset, where voxels start, is 352.5"),
    (damaged_nifti(put(108, "<f", 1e30)), "truncated"),
    (damaged_nifti(put(108, "<f", 1e6)), "truncated"),
    (damaged_nifti(put(344, "<4s", b"abc\0")), "not NIfTI-1"),
    (damaged_nifti(put(0, "<i", 349)), "not a NIfTI file"),
    (damaged_nifti(put(112, "<ff", 1, float("inf"))), ""),
    (
        damaged_nifti(lambda c: None, np.ones((2, 3, 4, 5))),
        r"stack zyx of one channel, received axes tzyx with shape \(5, 4, 3, 2\)",
    ),
    (damaged_nifti(lambda c: None, np.full((2, 3, 4), np.nan)), "24 NaN or infinite"),
    (damaged_nifti(lambda c: None, np.ones((2, 3, 4), np.complex64)), "complex"),
    (
        damaged_nifti(lambda c: None, np.zeros((2, 3, 4), [(c, "u1") for c in "RGB"])),
        "stack zyx of one channel",
    ),
]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("content", "message"), BAD_NIFTI)
def test_bad_nifti(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    stored = gzip.compress(content) if suffix == ".nii.gz" else content
    check_refused(write_bytes(tmp_path / f"k{suffix}", stored), message)


def test_bad_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(bytes(nifti_bytes(np.ones((2, 3, 4))))))
    content[-6] ^= 1
    check_refused(write_bytes(tmp_path / "k.nii.gz", bytes(content)), "checksum", FormatError)
    check_refused(write_bytes(tmp_path / "k.nii.gz", bytes(content[:-12])), "", FormatError)
    bomb = gzip.compress(
        damaged_nifti(put(40, "<8h", 3, 1, 1, 1, 1, 1, 1, 1)) + b"\0" * 100_000_000, compresslevel=1
    )
    path = write_bytes(tmp_path / "k.nii.gz", bomb)
    assert read_kernel(path).size == (1, 1, 1)


# --------------------------------------------------------------------------------------------------
# TIFF


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4", "f8"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"imagej": True},
        {"metadata": None},
        {"ome": True},
        {"compression": "zlib"},
        {"byteorder": ">"},
    ],
)
def test_tiff_stacks(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    if options.get("imagej") and dtype in ("f8", "i2"):
        pytest.skip("ImageJ has no such pixels")
    array = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    if "metadata" not in options:
        options = {**options, "metadata": {"axes": "ZYX"}}
    path = write_bytes(tmp_path / "k.tif", tiff_bytes(array, **options))
    assert np.array_equal(read_kernel(path).weights, array)


@pytest.mark.parametrize(
    "shape", [(1, 4, 5), (4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (3, 4, 3), (3, 3, 4), (40, 1, 1)]
)
def test_tiff_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = write_bytes(tmp_path / "k.tif", tiff_bytes(array, metadata=None))
    assert np.array_equal(read_kernel(path).weights, array.reshape((1,) * (3 - len(shape)) + shape))


def pages_pointing_nowhere() -> bytes:
    content = bytearray(
        tiff_bytes(np.ones((3, 4, 5), np.float32), metadata=None, compression="zlib")
    )
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as tif:
        offset = tif.pages[1].tags["StripOffsets"].valueoffset
    content[offset : offset + 4] = struct.pack("<I", 1 << 30)
    return bytes(content)


def larger_than_it_is(side: int, **options: Any) -> bytes:
    content = bytearray(tiff_bytes(np.ones((4, 5), np.float32), metadata=None, **options))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as tif:
        tags = [tif.pages[0].tags[name] for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    for tag in tags:
        layout = "<I" if tag.dtype == 4 else "<H"
        content[tag.valueoffset : tag.valueoffset + struct.calcsize(layout)] = struct.pack(
            layout, side
        )
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            tiff_bytes(np.ones((4, 5, 3), np.uint8), photometric="rgb"),
            ShapeError,
            "stack zyx of one channel, received axes yxs",
        ),
        (
            tiff_bytes(np.ones((2, 3, 4, 5), np.float32), metadata={"axes": "CZYX"}),
            ShapeError,
            "received axes czyx",
        ),
        (
            tiff_bytes(np.ones((2, 3, 4, 5), np.float32), metadata={"axes": "TZYX"}),
            ShapeError,
            "received axes tzyx",
        ),
        (tiff_bytes(np.full((3, 4, 5), np.nan, np.float32)), ShapeError, "60 NaN or infinite"),
        (tiff_bytes(np.ones((3, 4, 5), np.complex64)), FormatError, "complex"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", FormatError, ""),
        (b"MM\0*" + b"\xff" * 40, FormatError, ""),
        (b"not a tiff at all", FormatError, ""),
        (pages_pointing_nowhere(), FormatError, "truncated"),
        (
            larger_than_it_is(60000),
            FormatError,
            "claims 3600000000 voxels, its 80 bytes hold 20 at most",
        ),
        (larger_than_it_is(9000), FormatError, "truncated"),
        (larger_than_it_is(9000, compression="zlib"), FormatError, "claims 81000000 voxels"),
    ],
)
def test_bad_tiff(tmp_path: Path, content: bytes, error: type[Conv3DError], message: str) -> None:
    check_refused(write_bytes(tmp_path / "k.tif", content), message, error)


LAPLACIAN = np.zeros((3, 3, 3))
LAPLACIAN[[0, 2, 1, 1, 1, 1], [1, 1, 0, 2, 1, 1], [1, 1, 1, 1, 0, 2]] = -1
LAPLACIAN[1, 1, 1] = 6


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": "<"}])
def test_tiff_values_are_calibrated_as_imagej_does(tmp_path: Path, options: dict[str, Any]) -> None:
    """Signed 16 bits are unsigned ones with c0=-32768 in ImageJ's files.

    A volume of the file has the same values.
    """
    path = tmp_path / "k.tif"

    def write(stored: np.ndarray, **calibration: Any) -> str:
        metadata = {"axes": "ZYX", **calibration}
        tifffile.imwrite(path, stored, imagej=True, metadata=metadata, **options)
        return str(path)

    signed = {"cf": 0, "c0": -32768.0, "c1": 1.0, "vunit": "gray value"}
    kernel = read_kernel(write((LAPLACIAN + 32768).astype(np.uint16), **signed))
    assert np.array_equal(kernel.weights, LAPLACIAN)
    assert kernel.sum == 0
    steps = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    halves = write(steps, cf=0, c0=-3.0, c1=0.5, vunit="kg")
    assert np.array_equal(read_kernel(halves).weights, steps * 0.5 - 3)
    assert np.array_equal(read_volume(halves).data, steps * 0.5 - 3)
    for without in (
        {"cf": 0, "c0": 1.0, "c1": 0.5},
        {"cf": 3, "c0": 1.0, "c1": 0.5, "vunit": "kg"},
    ):
        # as ImageJ shows them
        assert np.array_equal(read_kernel(write(steps, **without)).weights, steps)
    assert np.array_equal(read_kernel(write(steps.astype(np.float32), **signed)).weights, steps)


def test_tiff_strips_out_of_place(tmp_path: Path) -> None:
    array = np.arange(48, dtype=np.uint16).reshape(2, 6, 4)
    content = bytearray(tiff_bytes(array, metadata=None, rowsperstrip=2))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as tif:
        tag = tif.pages[1].tags["StripOffsets"]
        first, second, third = tag.value
    one, two = content[first : first + 16], content[second : second + 16]
    content[first : first + 16], content[second : second + 16] = two, one
    swapped = np.array([second, first, third], "<u4" if tag.dtype == 4 else "<u2").tobytes()
    content[tag.valueoffset : tag.valueoffset + len(swapped)] = swapped
    assert np.array_equal(
        read_kernel(write_bytes(tmp_path / "k.tif", bytes(content))).weights, array
    )


def test_tiff_descriptions_that_promise_too_much(tmp_path: Path) -> None:
    content = tiff_bytes(np.ones((5, 4, 6), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    for slices in (b"slices=6", b"slices=9"):
        check_refused(
            write_bytes(tmp_path / "k.tif", content.replace(b"slices=5", slices)), "", FormatError
        )


def test_tiff_of_an_ome_set(tmp_path: Path) -> None:
    positions = write_positions(tmp_path / "set")
    for number, data in enumerate(positions):
        assert np.array_equal(
            read_kernel(str(tmp_path / "set" / f"p{number}.ome.tif")).weights, data
        )
    write_split(tmp_path / "split")
    check_refused(
        str(tmp_path / "split" / "a.ome.tif"),
        "are in other files; save them as one file",
        FormatError,
    )


def test_tiff_never_opens_other_files(tmp_path: Path) -> None:
    other = tiff_bytes(np.ones((3, 4, 5), np.float32), ome=True, metadata={"axes": "ZYX"})
    write_bytes(tmp_path / "secret.ome.tif", other)
    text = tifffile.TiffFile(io.BytesIO(other)).ome_metadata
    assert text
    uuid = '<UUID FileName="secret.ome.tif">urn:uuid:0</UUID>'
    text = re.sub(r"<TiffData ([^>]*)/>", rf"<TiffData \1>{uuid}</TiffData>", text)
    assert uuid in text
    content = tiff_bytes(np.zeros((1, 4, 5), np.float32), description=text, metadata=None)
    path = write_bytes(tmp_path / "k.ome.tif", content)
    check_refused(path, "are in other files", FormatError)


# --------------------------------------------------------------------------------------------------
# A bias in a file of its own


@pytest.mark.parametrize("suffix", EVERYTHING)
def test_the_bias_of_a_kernel_file(tmp_path: Path, suffix: str) -> None:
    write_kernel(
        tmp_path / f"k{suffix}", Kernel(np.ones((1, 1, 1, 1, 2)), bias=np.array([0.1, -2]))
    )
    assert read_bias(str(tmp_path / f"k{suffix}")) == [0.1, -2]


def test_bias_files(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.array([1, 2], np.int16))
    np.save(tmp_path / "one.npy", np.float32(3))
    np.savez(tmp_path / "b.npz", anything=np.array([1.0, 2.0]))
    write_bytes(tmp_path / "b.json", "[1, 2]")
    write_bytes(tmp_path / "b.toml", "bias = [1, 2]")
    write_bytes(tmp_path / "b.txt", "# two\n1\n\n2\n")
    for suffix in (".npy", ".npz", ".json", ".toml", ".txt"):
        assert read_bias(str(tmp_path / f"b{suffix}")) == [1, 2]
    assert read_bias(str(tmp_path / "one.npy")) == [3]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("b.npy", b"", FormatError, "the file is empty"),
        (
            "b.npy",
            npy_bytes(np.ones((2, 2))),
            ShapeError,
            "must be one row of numbers, received shape",
        ),
        ("b.npy", npy_bytes(np.ones(0)), ShapeError, "must be one row of numbers"),
        ("b.npy", npy_bytes(np.array([1, np.nan])), ShapeError, "must hold finite numbers"),
        ("b.npy", npy_bytes(np.array([None]), allow_pickle=True), FormatError, "never loaded"),
        ("b.npz", b"PK", FormatError, "cannot read"),
        ("b.json", b"{}", FormatError, "it has no key 'bias'"),
        ("b.json", b'"x"', ShapeError, r"bias\[0\] must be a number"),
        ("b.json", b"[[1], [2, 3]]", ShapeError, "equally long"),
        ("b.toml", b"bias", FormatError, "not TOML"),
        ("b.txt", b"# nothing", ShapeError, "must be one row of numbers"),
        ("b.txt", b"one", FormatError, "line 1 is not a row of numbers"),
        (
            "b.nii",
            b"x",
            FormatError,
            "no bias file has this suffix; known are .npy .npz .json .toml .txt",
        ),
    ],
)
def test_bad_bias_files(
    tmp_path: Path, name: str, content: bytes, error: type[Conv3DError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read_bias(write_bytes(tmp_path / name, content))
    check_message(caught.value, str(tmp_path / name))


def test_a_missing_bias_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_bias(str(tmp_path / "b.npy"))
    np.savez(tmp_path / "b.npz", kernel=np.ones(1), other=np.ones(1))
    with pytest.raises(FormatError, match="it holds no array 'bias', but kernel, other"):
        read_bias(str(tmp_path / "b.npz"))


# --------------------------------------------------------------------------------------------------
# Manners


def test_log_handlers_and_warnings_are_left_as_they_were(tmp_path: Path) -> None:
    import logging

    loggers = [logging.getLogger(name) for name in ("tifffile", "nibabel.global")]
    before = [list(logger.filters) for logger in loggers], list(warnings.filters)
    for content in (b"II*\0garbage", tiff_bytes(np.ones((3, 4, 5), np.float32))):
        try:
            read_kernel(write_bytes(tmp_path / "k.tif", content))
        except FormatError:
            pass
    assert ([list(logger.filters) for logger in loggers], list(warnings.filters)) == before


def test_libraries_are_imported_only_when_needed() -> None:
    import subprocess

    code = (
        "import sys; from conv3d_cli.kernels import read_kernel; read_kernel('box');"
        "print([m for m in ('nibabel', 'tifffile', 'scipy', 'numba', 'click') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_every_kind_is_listed() -> None:
    """Every format of volumes is one of kernels, unless its suffixes are of weights."""
    own = ".npy .npz .json .toml .txt"
    volumes = " ".join(
        suffix
        for found in FORMATS
        for suffix in found.suffixes
        if suffix not in (".npy", "-") and found.kernels
    )
    assert kernel_files.known_suffixes() == tuple(f"{own} .kern .kernel {volumes}".split())
    written = " ".join(
        suffix
        for found in FORMATS
        if found.create is not None and found.holds_float64 and found.kernels
        for suffix in found.suffixes
        if suffix not in (".npy", "-")
    )
    assert kernel_files.known_suffixes(written=True) == tuple(f"{own} {written}".split())


# --------------------------------------------------------------------------------------------------
# Every format of volumes

VOLUMES = [
    suffix
    for found in FORMATS
    if found.create is not None and found.kernels
    for suffix in found.suffixes
    if suffix not in (".npy", "-")
]


@pytest.mark.parametrize("suffix", VOLUMES)
def test_a_volume_as_a_kernel(tmp_path: Path, suffix: str, rng: np.random.Generator) -> None:
    """Weights, and the grid that it tells, in one reading."""
    path = str(tmp_path / f"k{suffix}")
    data = rng.integers(0, 200, (3, 4, 5)).astype(np.uint8)
    spacing = (3.0, 2.0, 1.5)
    write_volume(path, Volume(data, "zyx", Grid(spacing, "mm", affine_from_spacing(spacing))))
    kernel = read_kernel(path)
    assert np.array_equal(kernel.weights, data)
    assert kernel.grid is not None
    assert kernel.grid.spacing_in("mm") == pytest.approx(spacing)
    assert kernel.flipped().normalized().grid is kernel.grid


@pytest.mark.parametrize("suffix", VOLUMES)
@pytest.mark.parametrize("axes", ["tzyx", "czyx", "tczyx"])
def test_several_volumes_are_no_kernel(tmp_path: Path, suffix: str, axes: str) -> None:
    path = str(tmp_path / f"k{suffix}")
    volume = Volume(np.ones((2, 3, 4, 5, 6)[-len(axes) :], np.float32), axes)
    found = find_format(path)
    assert found is not None
    if not found.holds_axes(volume.header.axes):
        pytest.skip("the format holds no such volume")
    write_volume(path, volume)
    check_refused(
        path,
        "must be a stack zyx of one channel, received axes .*; save one volume of it",
        ShapeError,
    )


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".tif"])
def test_the_limit_of_a_volume(tmp_path: Path, suffix: str) -> None:
    """Before anything is read: the file has no blocks on the disk."""
    path = tmp_path / f"k{suffix}"
    header = VolumeHeader(Axes("zyx", (101, 1000, 1000)), np.dtype(np.uint8))

    def sparse(file: Any, size: int) -> None:
        file.truncate(max(size, os.fstat(file.fileno()).st_size))

    with (
        mock.patch("conv3d_cli.formats.base.reserve_space", sparse),
        create_volume(str(path), header) as writer,
    ):
        writer.commit()
    check_refused(str(path), "has 101,000,000 weights.*at most 100,000,000 are allowed", ShapeError)
