"""`conv3d convert`: every bit of a volume in every format, read by other programs."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile

from conv3d_cli import Volume, convert_file, read_volume, write_volume
from conv3d_cli.errors import WriteError
from conv3d_cli.formats import FORMATS, find_format
from conv3d_cli.model.grid import Grid, affine_from_spacing

pytestmark = pytest.mark.usefixtures("hdf5_in_this_process")

SHAPE = (5, 6, 7)
GRID = Grid((3.0, 2.0, 0.5), "mm", affine_from_spacing((3.0, 2.0, 0.5), (9.0, -4.0, 1.5)))

# --------------------------------------------------------------------------------------------------
# Readers that are not ours


def by_nibabel(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj.get_unscaled()).transpose()


def by_mgh(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).transpose()


def by_tifffile(path: Path) -> np.ndarray:
    import tifffile

    return tifffile.imread(path)


def by_zarr(path: Path) -> np.ndarray:
    import zarr

    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
    return zarr.open_group(store, mode="r")["0"][...]


def by_h5py(path: Path) -> np.ndarray:
    import h5py

    with h5py.File(path, "r") as file:
        found: list[Any] = []
        file.visititems(lambda _, node: found.append(node[...]) if hasattr(node, "dtype") else None)
        return max(found, key=np.size)


def raw(content: bytes, offset: int, dtype: str) -> np.ndarray:
    return np.frombuffer(content, dtype, math.prod(SHAPE), offset).reshape(SHAPE)


NRRD_TYPES = {
    "signed char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "longlong": "i8", "ulonglong": "u8", "float": "f4", "double": "f8",
}  # fmt: skip
META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
MRC_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def by_nrrd(path: Path) -> np.ndarray:
    content = path.read_bytes()
    end = content.index(b"\n\n") + 2
    fields = dict(
        line.split(": ", 1) for line in content[:end].decode().splitlines() if ": " in line
    )
    assert fields["encoding"] == "raw"
    name = fields["type"].replace("unsigned ", "u").replace("long long int", "longlong")
    return raw(content, end, f"<{NRRD_TYPES[name]}")


def by_meta(path: Path) -> np.ndarray:
    content = path.read_bytes()
    end = content.index(b"ElementDataFile = LOCAL\n") + len(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(" = ", 1) for line in content[:end].decode().splitlines())
    return raw(content, end, f"<{META_TYPES[fields['ElementType']]}")


def by_mif(path: Path) -> np.ndarray:
    content = path.read_bytes()
    text = content[: content.index(b"\nEND")].decode()
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    signs = [part[0] for part in fields["layout"].split(",")]
    order = [int(part[1:]) for part in fields["layout"].split(",")]
    assert (signs, order) == (["+"] * 3, [0, 1, 2])
    stored = np.dtype(fields["datatype"].removesuffix("LE").lower()).newbyteorder("<")
    return raw(content, int(fields["file"].split()[1]), stored.str)


def by_mrc(path: Path) -> np.ndarray:
    content = path.read_bytes()
    mode, extended = (int.from_bytes(content[n : n + 4], "little") for n in (12, 92))
    return raw(content, 1024 + extended, f"<{MRC_TYPES[mode]}")


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".nii.gz": by_nibabel,
    ".hdr": by_nibabel,
    ".tif": by_tifffile,
    ".ome.tif": by_tifffile,
    ".npy": np.load,
    ".nrrd": by_nrrd,
    ".mha": by_meta,
    ".mgz": by_mgh,
    ".mif": by_mif,
    ".mrc": by_mrc,
    ".nii.zarr": by_zarr,
    ".ozx": by_zarr,
    ".h5": by_h5py,
    ".ome.zarr": by_zarr,
}


def values_of(dtype: str, rng: np.random.Generator) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return rng.normal(0, 1e3, SHAPE).astype(dtype)
    if kind.kind == "b":
        return rng.random(SHAPE) < 0.5
    limits = np.iinfo(dtype)
    data = rng.integers(limits.min, limits.max, SHAPE, dtype, endpoint=True)
    data[0, 0, :2] = limits.min, limits.max
    return data


def test_every_format_has_another_reader() -> None:
    written = {found.name for found in FORMATS if found.create is not None}
    named = {find_format(f"a{suffix}") for suffix in READERS}
    assert {found.name for found in named if found is not None} == written


def pairs() -> list[Any]:
    """Every pair of formats. Those of neighbours in the list are in the fast suite, too."""
    names = list(READERS)
    return [
        pytest.param(one, other, marks=() if (j - i) % len(names) < 4 else pytest.mark.slow)
        for (i, one), (j, other) in itertools.product(enumerate(names), enumerate(names))
    ]


@pytest.mark.parametrize(("source", "target"), pairs())
def test_every_format_into_every_other(
    source: str, target: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    data = values_of("int16", rng)
    first, second = tmp_path / f"a{source}", tmp_path / f"b{target}"
    write_volume(str(first), Volume(data, "zyx", GRID))
    np.testing.assert_array_equal(np.squeeze(READERS[source](first)), data)
    report = convert_file(first, second)
    found = np.squeeze(READERS[target](second))
    assert found.dtype.newbyteorder("=") == data.dtype
    np.testing.assert_array_equal(found, data)
    kept = find_format(first.name), find_format(second.name)
    if all(one is not None and one.holds_spacing for one in kept):
        grid = read_volume(str(second)).grid
        np.testing.assert_allclose(grid.spacing_in("mm"), GRID.spacing, rtol=1e-6)
    else:
        assert (
            kept[0] == kept[1]
            or any("spacing" in note for note in report.notes)
            or source == ".npy"
        )


DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "uint64",
        "float16",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "uint8",
                "int8",
                "uint16",
                "uint32",
                "int32",
                "int64",
                "float32",
                "float64",
            )
        ),
    ],
)
@pytest.mark.parametrize("target", READERS)
def test_every_dtype_into_every_format(
    target: str, dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """The same dtype, or a wider one of its kind and a note, or a refusal that names a cure."""
    data = values_of(dtype, rng)
    np.save(tmp_path / "a.npy", data)
    path = tmp_path / f"b{target}"
    refusal = ""
    try:
        report = convert_file(tmp_path / "a.npy", path)
    except WriteError as error:
        refusal = str(error)
    if refusal:
        assert dtype in refusal
        assert "dtype='" in refusal
        assert not path.exists()
        return
    found = np.squeeze(READERS[target](path))
    np.testing.assert_array_equal(found, data)
    if found.dtype.newbyteorder("=") != data.dtype:
        assert np.can_cast(data.dtype, found.dtype, "safe")
        assert (found.dtype.kind == "f") == (data.dtype.kind == "f")
        assert any(
            f"stored as {found.dtype.name}" in note or "(uint8)" in note for note in report.notes
        )


# --------------------------------------------------------------------------------------------------
# Slope and intercept


@pytest.fixture
def scaled(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, np.ndarray]:
    """A NIfTI volume of int16 with a slope, an intercept and a range to show, and its numbers."""
    stored = values_of("int16", rng)
    image = nibabel.Nifti1Image(stored.transpose(), np.diag([0.5, 2, 3, 1]))
    image.header["scl_slope"], image.header["scl_inter"] = 0.1, -1024
    image.header["cal_max"], image.header["intent_code"] = 80, 3
    path = tmp_path / "scaled.nii"
    content = bytearray(352) + stored.tobytes()
    image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
    content[:348] = image.header.binaryblock
    path.write_bytes(bytes(content))
    return path, stored


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
def test_numbers_slope_and_header_are_kept(
    suffix: str, scaled: tuple[Path, np.ndarray], tmp_path: Path, run: Any
) -> None:
    path = tmp_path / f"b{suffix}"
    done = run("convert", scaled[0], path)
    assert done.stderr == ""
    before, after = nibabel.load(scaled[0]), nibabel.load(path)
    np.testing.assert_array_equal(after.dataobj.get_unscaled().transpose(), scaled[1])
    for field in before.header:
        if field not in ("vox_offset", "magic"):
            assert before.header[field].tobytes() == after.header[field].tobytes(), field
    np.testing.assert_array_equal(after.affine, before.affine)


def test_a_slope_goes_from_nifti_to_mrtrix_and_back(
    scaled: tuple[Path, np.ndarray], tmp_path: Path, run: Any
) -> None:
    run("convert", scaled[0], tmp_path / "b.mif")
    np.testing.assert_array_equal(by_mif(tmp_path / "b.mif"), scaled[1])
    run("convert", tmp_path / "b.mif", tmp_path / "c.nii")
    back = nibabel.load(tmp_path / "c.nii")
    np.testing.assert_array_equal(back.dataobj.get_unscaled().transpose(), scaled[1])
    assert (back.dataobj.slope, back.dataobj.inter) == (float(np.float32(0.1)), -1024)


def test_a_slope_that_nifti_rounds_is_said(tmp_path: Path, run: Any) -> None:
    write_volume(str(tmp_path / "a.mif"), Volume(np.zeros(SHAPE, np.int16), "zyx", GRID))
    text = (tmp_path / "a.mif").read_bytes()
    end = text.index(b"\nfile: ")
    (tmp_path / "a.mif").write_bytes(text[:end] + b"\nscaling: 0,0.1" + text[end:])
    done = run("convert", tmp_path / "a.mif", tmp_path / "b.nii")
    assert "0.1 and 0.0 become 0.10000000149011612 and 0.0" in " ".join(done.stderr.split())


def test_values_replace_numbers_where_there_is_no_slope(
    scaled: tuple[Path, np.ndarray], tmp_path: Path, run: Any, error_line: Any
) -> None:
    done = run("convert", scaled[0], tmp_path / "b.nrrd")
    words = " ".join(done.stderr.split())
    assert "NRRD does not hold: the output has the values, in float32" in words
    slope = float(np.float32(0.1))
    want = (scaled[1].astype(np.float64) * slope - 1024).astype(np.float32)
    np.testing.assert_array_equal(by_nrrd(tmp_path / "b.nrrd"), want)
    failed = run("convert", scaled[0], tmp_path / "c.nrrd", "--strict", code=4)
    assert "NRRD does not hold" in error_line(failed.stderr)
    assert not (tmp_path / "c.nrrd").exists()


@pytest.mark.parametrize(
    ("options", "dtype"), [(["--dtype", "float64"], "f8"), (["--dtype", "int32"], "i4")]
)
def test_another_dtype_of_scaled_numbers(
    options: list[str], dtype: str, scaled: tuple[Path, np.ndarray], tmp_path: Path, run: Any
) -> None:
    """Floats that were asked for are values; wider integers keep the numbers and their slope."""
    run("convert", scaled[0], tmp_path / "b.nii", *options)
    image = nibabel.load(tmp_path / "b.nii")
    assert image.get_data_dtype() == np.dtype(dtype)
    want = scaled[1].astype(np.float64) * float(np.float32(0.1)) - 1024
    np.testing.assert_allclose(image.get_fdata().transpose(), want, rtol=1e-14)
    if dtype == "i4":
        np.testing.assert_array_equal(image.dataobj.get_unscaled().transpose(), scaled[1])


def test_means_are_of_values(scaled: tuple[Path, np.ndarray], tmp_path: Path, run: Any) -> None:
    done = run("convert", scaled[0], tmp_path / "b.nii", "-v")
    before, after = (
        line.split(maxsplit=1)[1]
        for line in done.stderr.splitlines()
        if line.startswith(("before", "after"))
    )
    assert before == after
    assert "algorithm" not in done.stderr


def test_keep_is_for_copies(
    scaled: tuple[Path, np.ndarray], tmp_path: Path, run: Any, error_line: Any
) -> None:
    failed = run(
        "apply", scaled[0], "-k", "box:size=3", "--scale", "keep", "-o", tmp_path / "b.nii", code=4
    )
    assert "which only a copy has" in error_line(failed.stderr)


# --------------------------------------------------------------------------------------------------
# Dtypes with a story


def test_long_doubles_are_said_to_lose_digits(tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "a.npy", np.full(SHAPE, 1, np.longdouble) / 3)
    if np.dtype(np.longdouble).itemsize <= 8:
        pytest.skip("long double is float64 here")
    done = run("convert", tmp_path / "a.npy", tmp_path / "b.npy")
    assert "read as float64, to 16 digits" in " ".join(done.stderr.split())
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.full(SHAPE, 1 / 3))
    failed = run("convert", tmp_path / "a.npy", tmp_path / "c.npy", "--strict", code=4)
    assert "16 digits" in error_line(failed.stderr)


def test_complex_voxels_are_refused(tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros(SHAPE, np.complex64))
    failed = run("convert", tmp_path / "a.npy", tmp_path / "b.nii", code=3)
    assert "two volumes" in error_line(failed.stderr)


def test_64_bits_stay_in_nifti_that_had_them(tmp_path: Path, run: Any) -> None:
    data = np.full(SHAPE, 2**62 + 1, np.int64)
    data[0] = -(2**63)
    nibabel.save(
        nibabel.Nifti1Image(data.transpose(), np.eye(4), dtype=np.int64), tmp_path / "a.nii"
    )
    run("convert", tmp_path / "a.nii", tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(by_nibabel(tmp_path / "b.nii.gz"), data)


def test_rgb_stays_rgb(tmp_path: Path, run: Any, rng: np.random.Generator) -> None:
    import tifffile

    data = rng.integers(0, 255, (4, 5, 6, 3), np.uint8, endpoint=True)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", metadata={"axes": "ZYXS"})
    run("convert", tmp_path / "a.tif", tmp_path / "b.nii.gz")
    image = nibabel.load(tmp_path / "b.nii.gz")
    assert image.get_data_dtype().names == ("R", "G", "B")
    run("convert", tmp_path / "b.nii.gz", tmp_path / "c.ome.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "c.ome.tif"), data)


def test_channels_time_and_their_names_go_along(
    tmp_path: Path, run: Any, rng: np.random.Generator
) -> None:
    import tifffile

    data = rng.integers(0, 65535, (3, 4, 2, 5, 6), np.uint16, endpoint=True)  # t z c y x
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        data,
        metadata={
            "axes": "TZCYX",
            "Channel": {"Name": ["DAPI", "GFP"]},
            "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm",
            "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": "µm",
            "TimeIncrement": 3.0, "TimeIncrementUnit": "s",
        },
    )  # fmt: skip
    run("convert", tmp_path / "a.ome.tif", tmp_path / "b.ome.zarr")
    np.testing.assert_array_equal(by_zarr(tmp_path / "b.ome.zarr"), data.transpose(0, 2, 1, 3, 4))
    ome = json.loads((tmp_path / "b.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == ["DAPI", "GFP"]
    (level,) = ome["multiscales"][0]["datasets"]
    assert level["coordinateTransformations"][0]["scale"] == [3.0, 1.0, 2.0, 0.5, 0.5]
    run("convert", tmp_path / "b.ome.zarr", tmp_path / "c.ome.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "c.ome.tif"), data)


# --------------------------------------------------------------------------------------------------
# Labels


def label_map(path: Path, rng: np.random.Generator) -> np.ndarray:
    blocks = rng.integers(0, 60000, (6, 6, 6)).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    labels = blocks[:17, :18, :17].astype(np.uint16)
    image = nibabel.Nifti1Image(labels.transpose(), np.eye(4))
    image.header.set_intent(1002)
    nibabel.save(image, path)
    return labels


def test_labels_stay_labels(tmp_path: Path, run: Any, rng: np.random.Generator) -> None:
    zarr = pytest.importorskip("zarr")
    labels = label_map(tmp_path / "a.nii.gz", rng)
    done = run("convert", tmp_path / "a.nii.gz", tmp_path / "b.ome.zarr", "--levels", 2)
    assert "--levels-by mode" in " ".join(done.stderr.split())
    group = zarr.open_group(str(tmp_path / "b.ome.zarr"), mode="r")
    np.testing.assert_array_equal(group["0"][...], labels)
    assert set(group["1"][...].ravel()) <= set(labels.ravel())
    assert "image-label" in group.attrs["ome"]
    run("convert", tmp_path / "b.ome.zarr", tmp_path / "c.nii.gz")
    assert int(nibabel.load(tmp_path / "c.nii.gz").header["intent_code"]) == 1002
    np.testing.assert_array_equal(by_nibabel(tmp_path / "c.nii.gz"), labels)


def test_colours_of_labels_are_kept(tmp_path: Path, run: Any, rng: np.random.Generator) -> None:
    zarr = pytest.importorskip("zarr")
    write_volume(str(tmp_path / "a.zarr"), Volume(np.ones(SHAPE, np.uint8), "zyx"))
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r+")
    colors = [{"label-value": 1, "rgba": [255, 0, 0, 255]}]
    label = {"colors": colors, "source": {"image": "../../"}}
    group.attrs["ome"] = {**group.attrs["ome"], "image-label": label}
    run("convert", tmp_path / "a.zarr", tmp_path / "b.zarr")
    group = zarr.open_group(str(tmp_path / "b.zarr"), mode="r")
    assert group.attrs["ome"]["image-label"] == {"colors": colors}
    run("apply", tmp_path / "a.zarr", "-k", "box:size=3", "-o", tmp_path / "c.zarr")
    group = zarr.open_group(str(tmp_path / "c.zarr"), mode="r")
    assert "image-label" not in group.attrs["ome"]


def test_names_mark_labels(tmp_path: Path, run: Any, rng: np.random.Generator) -> None:
    zarr = pytest.importorskip("zarr")
    (tmp_path / "in").mkdir()
    data = rng.integers(0, 200, (16, 16, 16), np.uint8)
    for name in ("sub-01_dseg.nii.gz", "sub-01_T1w.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(data.transpose(), np.eye(4)), tmp_path / "in" / name)
    done = run(
        "convert", tmp_path / "in", "--out-dir", tmp_path / "out", "--format", "ome.zarr",
        "--levels", 2, "--sidecar",
    )  # fmt: skip
    words = " ".join(done.stderr.split())
    assert "1 volume whose names mark labels (sub-01_dseg.nii.gz)" in words
    assert "mixes" not in words
    kinds = {}
    for name in ("sub-01_dseg", "sub-01_T1w"):
        group = zarr.open_group(str(tmp_path / "out" / f"{name}.ome.zarr"), mode="r")
        kinds[name] = group.attrs["ome"]["multiscales"][0]["type"]
        run("rerun", tmp_path / "out" / f"{name}.json")
    assert kinds == {"sub-01_dseg": "mode", "sub-01_T1w": "local mean"}


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def stack(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "a.npy"
    np.save(path, values_of("uint16", rng))
    return path


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["a.npy"], 2, "no output: name it after a.npy"),
        (["a.npy", "b.npy", "c.npy"], 2, "received 3 names"),
        (["a.npy", "a.npy", "--overwrite"], 5, "it is the input"),
        (["./a.npy", "a.npy", "--overwrite"], 5, "it is the input"),
        (["in", "b.npy"], 2, "pass --out-dir for the volumes in it"),
        (["a.npy", "b.npy", "--out-dir", "out", "-o", "c.npy"], 2, "leave out --out-dir"),
        (["a.npy", "--out-dir", "out", "--format", ".foo"], 2, "unknown format '.foo'"),
        (["a.npy", "b.nii", "--levels", "2"], 2, "--levels is for"),
        (["a.npy", "b.czi"], 2, "is not written"),
        (["a.npy", "b.nii", "-k", "box:size=3"], 2, "has no option -k"),
        (["missing.npy", "b.nii"], 3, "missing.npy"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str],
    code: int,
    message: str,
    stack: Path,
    tmp_path: Path,
    run: Any,
    error_line: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    before = stack.read_bytes()
    failed = run("convert", *words, code=code)
    assert message in error_line(failed.stderr)
    assert stack.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "in"]


def test_many_volumes_get_another_format(stack: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "in").mkdir()
    for name in ("x.npy", "y.npy", "z_mask.npy"):
        shutil.copy(stack, tmp_path / "in" / name)
    out = tmp_path / "out"
    command = ("convert", tmp_path / "in", "--out-dir", out, "--format", ".nrrd", "--resume")
    run(*command)
    assert sorted(p.name for p in out.glob("*.nrrd")) == ["x.nrrd", "y.nrrd", "z_mask.nrrd"]
    for path in out.glob("*.nrrd"):
        np.testing.assert_array_equal(by_nrrd(path), np.load(stack))
    again = run(*command)
    assert "3 skipped" in " ".join(again.stderr.split())


def test_outputs_beside_their_inputs_are_not_inputs_of_the_next_run(
    stack: Path, tmp_path: Path, run: Any
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(stack, tmp_path / "in" / "x.npy")
    for _ in range(2):
        run("convert", tmp_path / "in", "--format", "nrrd", "--overwrite")
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["x.npy", "x.nrrd"]


def test_apply_takes_a_format_of_many_outputs_too(stack: Path, tmp_path: Path, run: Any) -> None:
    run("apply", stack, "-k", "box:size=3", "--out-dir", tmp_path / "out", "--format", "mha")
    assert (tmp_path / "out" / "a.mha").exists()


def test_a_manifest_names_volumes(stack: Path, tmp_path: Path, run: Any, error_line: Any) -> None:
    (tmp_path / "t.tsv").write_text("input\toutput\tdtype\na.npy\tb.nii\tint32\n")
    run("convert", "--manifest", tmp_path / "t.tsv")
    assert nibabel.load(tmp_path / "b.nii").get_data_dtype() == np.int32
    (tmp_path / "t.tsv").write_text("input\toutput\tkernel\na.npy\tc.nii\tbox:size=3\n")
    failed = run("convert", "--manifest", tmp_path / "t.tsv", code=2)
    assert "kernel" in error_line(failed.stderr)


def test_a_record_is_repeated(stack: Path, tmp_path: Path, run: Any) -> None:
    run("convert", stack, tmp_path / "b.nii.gz", "--sidecar", "--history", "--verify", 50)
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["Description"] == "Copied"
    done = run("rerun", tmp_path / "b.json")
    assert "every byte" in done.stdout


def test_axes_and_spacing_that_a_file_does_not_tell(
    tmp_path: Path, run: Any, rng: np.random.Generator
) -> None:
    data = rng.integers(0, 255, (2, 4, 5, 6), np.uint8)
    np.save(tmp_path / "a.npy", data)
    run(
        "convert", tmp_path / "a.npy", tmp_path / "b.ome.zarr", "--axes", "czyx",
        "--spacing", "2,0.5,0.5um", "--chunks", "2,4,4",
    )  # fmt: skip
    back = read_volume(str(tmp_path / "b.ome.zarr"))
    assert (back.axes, back.grid.spacing, back.grid.unit) == ("czyx", (2.0, 0.5, 0.5), "um")
    np.testing.assert_array_equal(back.data, data)


# ---------------------------------------------------------------------------------------------------------------------
# Channels


LAYOUTS = [
    ("czyx", "a.ome.zarr"),
    ("czyx", "a.ome.tif"),
    ("zyxc", "a.npy"),
    ("czyx", "a.nrrd"),
    ("zyxc", "a.nii.gz"),
]


@pytest.mark.parametrize(("letters", "name"), LAYOUTS)
@pytest.mark.parametrize("chosen", ["1", "0,2", "3,1,1", "2,3"])
def test_channels_are_copied_bit_for_bit(
    letters: str, name: str, chosen: str, tmp_path: Path, run: Any, rng: np.random.Generator
) -> None:
    """Whatever lies between them in the file, and in whichever order: float32 would round these."""
    data = rng.integers(2**25, 2**31, (4, 5, 6, 7)).astype(np.uint32)
    taken = data[[int(number) for number in chosen.split(",")]]
    stored = data if letters == "czyx" else np.moveaxis(data, 0, -1)
    write_volume(str(tmp_path / name), Volume(stored, letters))
    for target in ("o.nrrd", "o.ome.zarr", "o.nii.gz"):
        run("convert", tmp_path / name, tmp_path / target, "--channels", chosen, "--verify", 50)
        found = read_volume(str(tmp_path / target))
        assert found.data.dtype == np.uint32
        at = found.axes.find("c")
        got = found.data if at < 0 else np.moveaxis(found.data, at, 0)
        np.testing.assert_array_equal(got.squeeze(), taken.squeeze())


@pytest.fixture
def named(tmp_path: Path) -> Path:
    path = tmp_path / "named.ome.tif"
    data = np.arange(3 * 4 * 5 * 6, dtype=np.uint16).reshape(3, 4, 5, 6)
    names = {"Name": ["DAPI", "GFP", "7"]}
    tifffile.imwrite(path, data, metadata={"axes": "CZYX", "Channel": names})
    return path


def test_channels_are_copied_by_their_names(named: Path, tmp_path: Path, run: Any) -> None:
    data = tifffile.imread(named)
    told = tmp_path / "o.json"
    run("convert", named, tmp_path / "o.ome.zarr", "--channels", "GFP, 0", "--sidecar")
    found = read_volume(str(tmp_path / "o.ome.zarr"))
    np.testing.assert_array_equal(found.data, data[[1, 0]])
    attributes = json.loads((tmp_path / "o.ome.zarr" / "zarr.json").read_text())["attributes"]
    assert [c["label"] for c in attributes["ome"]["omero"]["channels"]] == ["GFP", "DAPI"]
    record = json.loads(told.read_text())
    assert record["Description"] == "Copied channels GFP, 0"
    assert "--channels 'GFP, 0'" in record["Conv3D"]["Command"]
    assert "every byte" in run("rerun", told).output
    convert_file(named, tmp_path / "p.tif", channels=["DAPI"])
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tif"), data[0])


@pytest.mark.parametrize(
    ("channels", "code", "words"),
    [
        ("3", 4, "--channels 3: the input has channels 0 to 2"),
        ("gfp", 2, "--channels gfp: the input has no channel of that name, but DAPI, GFP, 7; did you mean 'GFP'?"),
        ("7", 4, "the input has channels 0 to 2"),
        ("1,,2", 2, "received '1,,2'"),
        ("-1", 2, "counted from 0"),
    ],
)  # fmt: skip
def test_channels_that_the_input_lacks_are_refused(
    channels: str, code: int, words: str, named: Path, tmp_path: Path, run: Any, error_line: Any
) -> None:
    result = run("convert", named, tmp_path / "o.tif", f"--channels={channels}", code=code)
    assert words in error_line(result.stderr)
    assert not (tmp_path / "o.tif").exists()


@pytest.mark.parametrize("command", [["convert"], ["apply", "-k", "box:size=1"]])
@pytest.mark.parametrize("chosen", [(2, 1, 0), (2, 0), (1,)])
def test_what_a_file_says_of_each_channel_goes_with_it(
    command: list[str], chosen: tuple[int, ...], tmp_path: Path, run: Any
) -> None:
    """Where the output has as many channels as the input, what it says must still be of these."""

    def copy(source: Path, target: Path) -> None:
        listed = ",".join(map(str, chosen))
        run(command[0], source, *command[1:], "-o", target, "--channels", listed)

    tables = [np.outer(np.arange(3) == n, np.arange(256)).astype(np.uint8) for n in range(3)]
    labels = [f"slice {z}, channel {c}" for z in range(4) for c in range(3)]
    shown = {"axes": "ZCYX", "mode": "composite", "LUTs": tables, "Labels": labels}
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((4, 3, 5, 6), np.float32), imagej=True, metadata=shown
    )
    copy(tmp_path / "a.tif", tmp_path / "o.tif")
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        found = file.imagej_metadata
    assert found is not None
    luts = found["LUTs"] if isinstance(found["LUTs"], list) else [found["LUTs"]]
    np.testing.assert_array_equal(luts, [tables[n] for n in chosen])
    assert found["Labels"] == [f"slice {z}, channel {c}" for z in range(4) for c in chosen]

    gradients = ["0 0 0", "1 0 0", "0 1 0"]
    keys = "".join(f"DWMRI_gradient_{n:04d}:={text}\n" for n, text in enumerate(gradients))
    head = "NRRD0004\ntype: float\ndimension: 4\nsizes: 3 6 5 4\nkinds: 3-vector domain domain domain\n"
    head += "endian: little\nencoding: raw\n"
    (tmp_path / "a.nrrd").write_bytes(f"{head}{keys}\n".encode() + bytes(3 * 6 * 5 * 4 * 4))
    copy(tmp_path / "a.nrrd", tmp_path / "o.nrrd")
    told = (tmp_path / "o.nrrd").read_bytes().split(b"\n\n")[0].decode().splitlines()
    numbered = sorted(line for line in told if line.startswith("DWMRI"))
    assert numbered == [f"DWMRI_gradient_{n:04d}:={gradients[c]}" for n, c in enumerate(chosen)]
    assert not any("3-vector" in line for line in told)


def test_components_of_a_tensor_in_another_order_are_no_tensor(tmp_path: Path, run: Any) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5, 1, 6), np.float32), np.eye(4))
    image.header.set_intent("symmetric matrix", (3,))
    nibabel.save(image, tmp_path / "a.nii")
    for chosen, intent in (("5,4,3,2,1,0", "vector"), ("0,1,2,3,4,5", "symmetric matrix")):
        run("convert", tmp_path / "a.nii", tmp_path / "o.nii", "--channels", chosen, "--overwrite")
        assert nibabel.load(tmp_path / "o.nii").header.get_intent()[0] == intent


def test_a_volume_without_names_says_so(tmp_path: Path, run: Any, error_line: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4), np.uint8))
    job = ["convert", tmp_path / "x.npy", tmp_path / "o.npy", "--channels"]
    assert "the input has channel 0 only" in error_line(run(*job, "1", code=4).stderr)
    told = error_line(run(*job, "DAPI", code=2).stderr)
    assert "no channel of that name, but 1 channel without names, counted from 0" in told
