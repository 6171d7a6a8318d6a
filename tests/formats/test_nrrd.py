"""NRRD: files of SimpleITK and pynrrd, and every part of the header, by files made by hand.

What every format must do is in test_every_format.py.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conv3d_cli.errors import FormatError, SpecError, WriteError
from conv3d_cli.formats import content_of, open_volume, read_volume, volume_files, write_volume
from conv3d_cli.formats.nrrd.header import TYPES
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Volume

GOLDEN = Path(__file__).parent.parent / "data" / "nrrd"  # made by data/make_nrrd_golden.py
EXPECTED = np.load(GOLDEN / "expected.npz")
NAMES = sorted({name.partition("/")[0] for name in EXPECTED})
STEPS = "(2,0,0) (0,3,0) (0,0,4)"


def nrrd_file(path: Path, data: np.ndarray, payload: bytes | None = None, **fields: Any) -> str:
    """A file with a header of these fields ("space_origin" is "space origin"; None leaves one out) around an array."""
    codes = {np.dtype(code): names[0] for code, names in TYPES.items()}
    known: dict[str, Any] = {
        "type": codes[data.dtype.newbyteorder("=")],
        "dimension": data.ndim,
        "sizes": " ".join(map(str, data.shape[::-1])),
        "endian": "big" if data.dtype.str.startswith(">") else "little",
        "encoding": "raw",
        **{key.replace("_", " "): value for key, value in fields.items()},
    }
    lines = [f"{key}: {value}" for key, value in known.items() if value is not None]
    text = "\n".join(["NRRD0005", "# a comment", *lines]) + "\n"
    detached = "data file" in known
    path.write_bytes(
        text.encode()
        + (b"" if detached else b"\n" + (data.tobytes() if payload is None else payload))
    )
    return str(path)


@pytest.fixture
def data(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-1000, 1000, (3, 4, 5)).astype(np.int16)


def error_of(path: str) -> str:
    with pytest.raises(FormatError) as caught:
        read_volume(path)
    text = str(caught.value)
    assert "\n" not in text
    assert path in text
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Other programs


@pytest.mark.parametrize("name", NAMES)
def test_files_of_other_programs(name: str) -> None:
    """Voxels and place as SimpleITK reads them, whichever world the file names."""
    volume = read_volume(str(GOLDEN / name))
    expected = EXPECTED[f"{name}/data"]
    assert volume.data.dtype == expected.dtype
    np.testing.assert_array_equal(volume.data, expected)
    assert volume.grid.unit == "mm"
    if (
        name == "spacings.nrrd"
    ):  # in nobody's world: SimpleITK lets it run left and back, nobody asked it to
        np.testing.assert_array_equal(volume.grid.affine, np.abs(EXPECTED[f"{name}/affine"]))
    else:
        np.testing.assert_allclose(volume.grid.affine, EXPECTED[f"{name}/affine"], atol=1e-12)
    assert volume.grid.anatomical == (name not in ("spacings.nrrd", "itk_series.nrrd"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_files_are_kept_as_they_are(name: str, compression: str, tmp_path: Path) -> None:
    source = read_volume(str(GOLDEN / name))
    target = str(tmp_path / f"{Path(name).stem}.nrrd")
    write_volume(target, source, compression=compression)
    back = read_volume(target)
    np.testing.assert_array_equal(back.data, source.data)
    assert back.axes == source.axes
    np.testing.assert_array_equal(back.grid.affine, source.grid.affine)
    assert back.grid.anatomical == source.grid.anatomical
    assert back.metadata.keys == source.metadata.keys
    # kinds are added
    assert repr(back.metadata.facts) == repr(source.metadata.facts) or name == "spacings.nrrd"


@pytest.mark.parametrize("name", NAMES)
def test_simpleitk_reads_what_is_written(name: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    write_volume(str(tmp_path / "a.nrrd"), read_volume(str(GOLDEN / name)))
    one, other = sitk.ReadImage(str(tmp_path / "a.nrrd")), sitk.ReadImage(str(GOLDEN / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
    assert one.GetOrigin() == other.GetOrigin()
    assert one.GetDirection() == other.GetDirection()


def test_key_value_pairs_pass_through(tmp_path: Path, data: np.ndarray) -> None:
    path = tmp_path / "a.nrrd"
    nrrd_file(path, data)
    text = path.read_bytes().replace(
        b"# a comment\n", b"# a comment\nDWMRI_b-value:=1000\nnote: 1:=x: y\\n\\\\z \n\xff:=\xe4\n"
    )
    path.write_bytes(text.replace(b"note: 1:=", b"note:="))
    volume = read_volume(str(path))
    assert volume.metadata.keys["DWMRI_b-value"] == "1000"
    assert volume.metadata.keys["note"] == "x: y\n\\z "
    write_volume(str(tmp_path / "b.nrrd"), volume)
    for line in (b"\nDWMRI_b-value:=1000\n", b"\nnote:=x: y\\n\\\\z \n", b"\n\xff:=\xe4\n"):
        assert line in (tmp_path / "b.nrrd").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Voxels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
def test_types(
    tmp_path: Path, code: str, order: str, encoding: str, rng: np.random.Generator
) -> None:
    data = rng.integers(0, 100, (3, 4, 5)).astype(np.dtype(code).newbyteorder(order))
    payload = data.tobytes() if encoding == "raw" else gzip.compress(data.tobytes())
    for name in TYPES[code]:
        path = nrrd_file(tmp_path / "a.nrrd", data, payload, type=name.upper(), encoding=encoding)
        back = read_volume(path)
        assert back.data.dtype == np.dtype(code)
        np.testing.assert_array_equal(back.data, data)


@pytest.mark.parametrize("packed", [False, True])
def test_skips(tmp_path: Path, data: np.ndarray, packed: bool) -> None:
    """Lines are skipped in the file, bytes in what is unpacked of it."""
    content = b"12345" + data.tobytes()
    payload = b"one\ntwo\n" + (gzip.compress(content) if packed else content)
    encoding = "gzip" if packed else "raw"
    path = nrrd_file(
        tmp_path / "a.nrrd", data, payload, line_skip=2, byte_skip=5, encoding=encoding
    )
    np.testing.assert_array_equal(read_volume(path).data, data)
    (tmp_path / "b.dat").write_bytes(payload)
    path = nrrd_file(
        tmp_path / "b.nhdr", data, lineskip=2, byteskip=5, encoding=encoding, data_file="b.dat"
    )
    np.testing.assert_array_equal(read_volume(path).data, data)


def test_voxels_at_the_end(tmp_path: Path, data: np.ndarray) -> None:
    path = nrrd_file(tmp_path / "a.nrrd", data, b"\0" * 77 + data.tobytes(), byte_skip=-1)
    np.testing.assert_array_equal(read_volume(path).data, data)
    assert "for raw voxels" in error_of(
        nrrd_file(tmp_path / "b.nrrd", data, byte_skip=-1, encoding="gzip")
    )


def test_detached_headers(tmp_path: Path, data: np.ndarray) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "voxels.raw").write_bytes(data.tobytes())
    path = nrrd_file(tmp_path / "a.nhdr", data, data_file="sub/voxels.raw")
    np.testing.assert_array_equal(read_volume(path).data, data)
    assert volume_files(path) == (path, str(tmp_path / "sub" / "voxels.raw"))
    assert "none.raw: no such file" in error_of(
        nrrd_file(tmp_path / "b.nhdr", data, data_file="none.raw")
    )
    for several in ("LIST\na.raw\nb.raw", "slice%03d.raw 1 3 1", "slice%03d.raw 1 3 1 2"):
        assert "are in several files" in error_of(
            nrrd_file(tmp_path / "c.nhdr", data, data_file=several)
        )
    assert "not in a file" in error_of(
        nrrd_file(tmp_path / "d.nhdr", data, data_file="https://x.org/a.raw")
    )
    write_volume(str(tmp_path / "o.nhdr"), read_volume(path))
    assert (tmp_path / "o.raw").read_bytes() == data.tobytes()
    with pytest.raises(SpecError, match=r"\.nhdr is written raw"):
        write_volume(str(tmp_path / "p.nhdr"), read_volume(path), compression="deflate")


# ---------------------------------------------------------------------------------------------------------------------
# The world


@pytest.mark.parametrize(
    ("space", "flip"),
    [
        ("right-anterior-superior", (1, 1, 1)), ("RAS", (1, 1, 1)), ("Left-Anterior-Superior", (-1, 1, 1)), ("LAS", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)), ("LPS", (-1, -1, 1)), ("scanner-xyz", (-1, -1, 1)),
        ("3D-left-handed", (-1, -1, 1)), (None, (-1, -1, 1)),
    ],
)  # fmt: skip
def test_spaces(tmp_path: Path, data: np.ndarray, space: str | None, flip: tuple[int, ...]) -> None:
    """x to the right, y to the front, z up, as ITK takes it; an output stays in the file's own world."""
    named = {"space": space} if space else {"space_dimension": 3}
    origin = "(10,20,30)"
    path = nrrd_file(
        tmp_path / "a.nrrd", data, **named, space_directions=STEPS, space_origin=origin
    )
    volume = read_volume(path)
    expected = np.diag([2.0, 3, 4, 1])
    expected[:3, 3] = (10, 20, 30)
    expected[:3] *= np.array(flip)[:, None]
    np.testing.assert_array_equal(volume.grid.affine, expected)
    assert volume.grid.anatomical == (
        space is not None and "S" in space.upper().replace("SCANNER", "") and "3D" not in space
    )
    assert volume.grid.spacing == (4, 3, 2)
    write_volume(str(tmp_path / "b.nrrd"), volume)
    header = (tmp_path / "b.nrrd").read_bytes().partition(b"\n\n")[0].decode()
    assert "space directions: (2,0,0) (0,3,0) (0,0,4)\n" in header
    assert "space origin: (10,20,30)\n" in header


def test_a_scan_from_elsewhere_lies_where_it_lay(tmp_path: Path, data: np.ndarray) -> None:
    affine = np.array([[0.0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    write_volume(
        str(tmp_path / "a.nrrd"),
        Volume(data, "zyx", Grid((4, 2, 3), "mm", affine, anatomical=True)),
    )
    header = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")[0].decode()
    assert "space: left-posterior-superior\nspace directions: (0,-3,0) (2,0,0) (0,0,4)\n" in header
    assert "space origin: (-5,-6,7)" in header


def test_units(tmp_path: Path, data: np.ndarray) -> None:
    path = tmp_path / "a.nrrd"
    world = {"space": "LPS", "space_directions": STEPS}
    assert (
        read_volume(nrrd_file(path, data, **world, space_units='"um" "um" "um"')).grid.unit == "um"
    )
    mixed = read_volume(nrrd_file(path, data, spacings="2 3 4", units='"mm" "mm" "um"')).grid
    assert mixed.spacing == pytest.approx((0.004, 3, 2))
    with open_volume(nrrd_file(path, data, spacings="2 3 4", units='"px" "px" "px"')) as reader:
        assert reader.header.grid.unit is None
        assert "'px' is not a unit of length" in reader.notes[0]


@pytest.mark.parametrize(
    ("fields", "spacing", "origin"),
    [
        ({"spacings": "2 3 4"}, (4, 3, 2), (0, 0, 0)),
        (
            {"spacings": "2 3 4", "axis mins": "10 0 0", "centers": "node node node"},
            (4, 3, 2),
            (10, 0, 0),
        ),
        (
            {"spacings": "2 3 4", "axis mins": "10 0 0", "centers": "cell cell cell"},
            (4, 3, 2),
            (11, 1.5, 2),
        ),
        (
            {"axis mins": "0 0 0", "axis maxs": "5 8 9", "centers": "cell cell cell"},
            (3, 2, 1),
            (0.5, 1, 1.5),
        ),
        (
            {"axis mins": "0 0 0", "axis maxs": "4 6 8", "centers": "node node node"},
            (4, 2, 1),
            (0, 0, 0),
        ),
        ({"spacings": "2 3 nan"}, None, None),
        ({}, None, None),
    ],
)
def test_spacings(
    tmp_path: Path, data: np.ndarray, fields: dict[str, str], spacing: Any, origin: Any
) -> None:
    """A minimum is the edge of a cell, or a node: the voxel's own position."""
    if fields.get("spacings", "").endswith("nan"):
        fields = {**fields, "kinds": "domain domain domain"}
    path = nrrd_file(tmp_path / "a.nrrd", data, **fields)
    grid = read_volume(path).grid
    assert grid.spacing == spacing
    if spacing is None:
        return
    np.testing.assert_allclose(grid.affine[:3, 3], origin)
    write_volume(str(tmp_path / "b.nrrd"), read_volume(path))
    np.testing.assert_allclose(read_volume(str(tmp_path / "b.nrrd")).grid.affine, grid.affine)


# ---------------------------------------------------------------------------------------------------------------------
# Axes


@pytest.mark.parametrize(
    ("fields", "axes"),
    [
        ({"kinds": "vector domain domain domain"}, "zyxc"),
        ({"kinds": "domain domain domain time"}, "tzyx"),
        ({"kinds": "domain domain domain list"}, "czyx"),
        ({"kinds": "domain domain domain list", "labels": '"" "" "" "q"'}, "qzyx"),
        ({"kinds": "none domain domain domain"}, "zyxc"),
        ({"kinds": "RGB-color domain domain domain"}, "zyxc"),  # of 2 samples: no colour
        ({"kinds": "space space vector space"}, "zcyx"),
        ({}, "tzyx"),
        ({"spacings": "nan 1 1 1"}, "zyxc"),
        ({"space": "RAS", "space_directions": f"none {STEPS}"}, "zyxc"),
        ({"space": "RAS", "space_directions": f"{STEPS} none"}, "czyx"),
        ({"space": "RAST", "space_directions": "(1,0,0,0) (0,1,0,0) (0,0,1,0) (0,0,0,2)"}, "tzyx"),
    ],
)
def test_axes(tmp_path: Path, fields: dict[str, str], axes: str) -> None:
    data = np.zeros((2, 2, 2, 2), np.uint8)
    path = nrrd_file(tmp_path / "a.nrrd", data, **fields)
    with open_volume(path) as reader:
        assert reader.header.axes.letters == axes
        assert any("axes= overrides this" in note for note in reader.notes) == (not fields)
    assert read_volume(path, axes="czyx").axes == "czyx"
    with open_volume(path, channels_first=True) as reader:
        assert reader.header.axes.letters == (axes if fields else "czyx")


def test_colours(tmp_path: Path) -> None:
    data = np.zeros((3, 4, 5, 3), np.uint8)
    assert (
        read_volume(
            nrrd_file(tmp_path / "a.nrrd", data, kinds="RGB-color domain domain domain")
        ).axes
        == "zyxs"
    )
    write_volume(str(tmp_path / "b.nrrd"), Volume(data, "zyxs"))
    assert b"kinds: RGB-color domain domain domain" in (tmp_path / "b.nrrd").read_bytes()


def test_facts_of_axes_stay(tmp_path: Path, data: np.ndarray) -> None:
    fields = {
        "kinds": "space space space", "thicknesses": "nan nan 5", "centers": "cell cell node", "labels": '"R" "A" "S"',
        "content": "a scan", "space": "RAS", "space directions": STEPS, "measurement frame": "(1,0,0) (0,1,0) (0,0,1)",
    }  # fmt: skip
    write_volume(
        str(tmp_path / "b.nrrd"), read_volume(nrrd_file(tmp_path / "a.nrrd", data, **fields))
    )
    lines = (tmp_path / "b.nrrd").read_bytes().partition(b"\n\n")[0].decode().splitlines()
    assert lines[0] == "NRRD0005"
    for name in ("kinds", "thicknesses", "centers", "labels", "content", "measurement frame"):
        assert f"{name}: {fields[name]}" in lines


def test_segmentations_are_labels(tmp_path: Path, data: np.ndarray) -> None:
    path = tmp_path / "a.seg.nrrd"
    nrrd_file(path, data)
    assert content_of(str(path)) == ""
    path.write_bytes(path.read_bytes().replace(b"# a comment", b"Segment0_ID:=Segment_1"))
    assert content_of(str(path)) == "labels"


def test_filtered_segments_are_none(tmp_path: Path, data: np.ndarray, run: Any) -> None:
    """3D Slicer would show the means of labels as segments."""
    path = tmp_path / "a.seg.nrrd"
    nrrd_file(path, data)
    keys = b"Segment1_LabelValue:=7\nSegmentation_ConversionParameters:=x\nown:=kept"
    path.write_bytes(path.read_bytes().replace(b"# a comment", keys))
    result = run("apply", path, "-k", "box:size=3", "-o", tmp_path / "b.seg.nrrd")
    assert "the input's voxels are segments" in result.output
    head = (tmp_path / "b.seg.nrrd").read_bytes().partition(b"\n\n")[0]
    assert b"own:=kept" in head
    assert b"Segment" not in head
    assert content_of(str(path)) == "labels"
    result = run("convert", path, tmp_path / "c.seg.nrrd")
    assert "segments" not in result.output
    assert keys in (tmp_path / "c.seg.nrrd").read_bytes()


def test_places_of_segments_are_of_their_own_grid(
    tmp_path: Path, data: np.ndarray, run: Any
) -> None:
    path = tmp_path / "a.seg.nrrd"
    nrrd_file(path, data)
    places = b"Segment0_Extent:=0 4 0 3 0 2\nSegmentation_ReferenceImageExtentOffset:=1 2 3"
    keys = b"Segment0_LabelValue:=7\n" + places
    path.write_bytes(path.read_bytes().replace(b"# a comment", keys))

    def head(*options: Any) -> bytes:
        run("apply", path, "-k", "identity", "-o", tmp_path / "b.seg.nrrd", "--overwrite", *options)
        return (tmp_path / "b.seg.nrrd").read_bytes().partition(b"\n\n")[0]

    assert keys in head()
    smaller = head("--strides", "2")
    assert b"Segment0_LabelValue:=7" in smaller
    assert b"Extent" not in smaller


def test_channels_of_a_layer_have_no_gradients(
    tmp_path: Path, rng: np.random.Generator, run: Any
) -> None:
    """Each is a sum over the directions of the input's."""
    keys = "".join(f"DWMRI_gradient_{n:04d}:={n} 0 0\n" for n in range(3)).encode()
    path = tmp_path / "a.nrrd"
    nrrd_file(path, rng.random((3, 4, 5, 6), np.float32), kinds="space space space list")
    path.write_bytes(path.read_bytes().replace(b"# a comment\n", keys))
    np.save(tmp_path / "w.npy", rng.random((3, 3, 3, 3, 3), np.float32))

    def head(kernel: Any) -> bytes:
        run("apply", path, "-k", kernel, "-o", tmp_path / "b.nrrd", "--overwrite")
        return (tmp_path / "b.nrrd").read_bytes().partition(b"\n\n")[0]

    assert keys.strip() in head("box:size=3")
    assert b"DWMRI" not in head(tmp_path / "w.npy")


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "bzip2"}, "its encoding is bzip2, and only raw and gzip can be read; convert it: unu save"),
        ({"encoding": "ascii"}, "its encoding is ascii"),
        ({"encoding": "ascii", "endian": None}, "its encoding is ascii"),
        ({"encoding": "hex"}, "its encoding is hex"),
        ({"type": "block"}, "blocks of bytes"),
        ({"type": "quad"}, "NRRD has no type 'quad'"),
        ({"type": None}, "no field 'type'"),
        ({"endian": None}, "no field 'endian'"),
        ({"endian": "middle"}, "'endian' must be little or big"),
        ({"dimension": 4}, "'sizes' must be 4 whole numbers"),
        ({"dimension": 17}, "at most 16 axes"),
        ({"dimension": "x"}, "'dimension' must be a whole number"),
        ({"sizes": "5 4 0"}, "'sizes' must be 3 whole numbers of at least 1"),
        ({"sizes": "5 4 -3"}, "'sizes' must be"),
        ({"sizes": "5 4 4"}, "truncated"),
        ({"sizes": "999999999999999999 999999999999999999 4"}, "truncated"),
        ({"sizes": "99999999 99999999 4", "encoding": "gzip"}, "truncated or damaged"),
        ({"space": "here"}, "NRRD has no space 'here'"),
        ({"space directions": STEPS}, "no 'space'"),
        ({"space": "RAS", "space directions": "(1,0) (0,1)"}, "vectors of 3 numbers"),
        ({"space": "RAS", "space directions": "(1,0,0) (0,1,0)"}, "must have 3 values, received 2"),
        ({"space": "RAS", "space directions": "(1,0,0) (0,1,0) (0,0,x)"}, "must hold numbers, received 'x'"),
        ({"space": "RAS", "space directions": "1 2 3"}, "must be vectors"),
        ({"space": "RAS", "space directions": "(1,0,0) (0,1,0) (0,0,0)"}, "no meaning"),
        ({"space": "RAS", "space directions": "(1,0,0) (0,1,0) (0,0,1e300)"}, "no meaning"),
        ({"spacings": "1 1 0"}, "no meaning"),
        ({"units": "mm mm mm"}, "must be texts in quotes"),
        ({"kinds": "domain vector vector"}, "at least 2 axes must be spatial, received 1"),
        ({"line skip": 99}, "fewer lines"),
        ({"byte skip": -2}, "'byte skip' must be a whole number of at least -1"),
        ({"data file": "x.raw\nsizes: 1"}, "twice"),
        ({"a line": "x\nnothing"}, "'nothing' is not a field"),
    ],
)  # fmt: skip
def test_bad_headers(
    tmp_path: Path, data: np.ndarray, fields: dict[str, Any], message: str
) -> None:
    assert message in error_of(nrrd_file(tmp_path / "a.nrrd", data, **fields))


def test_other_files(tmp_path: Path, data: np.ndarray) -> None:
    path = tmp_path / "a.nrrd"
    for content, message in (
        (b"NRRD0009\n", "it is NRRD version 9"),
        (b"NRRD00.01\n", "not a NRRD file"),
        (b"NRRD0004\ntype: short", "no field"),
    ):
        path.write_bytes(content)
        assert message in error_of(str(path))
    with open_volume(nrrd_file(path, data, modality="MR", old_min="0")) as reader:
        assert "NRRD has no field 'modality'" in reader.notes[0]
        assert "used as they are stored" in reader.notes[1]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for values, message in (
        (np.zeros((2, 2, 2), np.float16), "float16"),
        (np.zeros((0, 2, 2), np.uint8), "empty"),
    ):
        with pytest.raises(WriteError, match=message):
            write_volume(str(tmp_path / "a.nrrd"), Volume(values, "zyx"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../secret.raw", "{top}/secret.raw", "link.raw"])
def test_data_files_outside_the_folder_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(24))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    (folder / "a.nhdr").write_text(
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"
        f"data file: {name.format(top=tmp_path)}\n"
    )
    with pytest.raises(FormatError, match="outside the file's folder and is not followed"):
        read_volume(str(folder / "a.nhdr"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample units", '"HU"'),
        ("measurement frame", "(0,1,0) (1,0,0) (0,0,1)"),
        ("thicknesses", "nan nan 5"),
    ],
)
def test_fields_that_no_other_format_holds_are_told(
    tmp_path: Path, field: str, value: str, run: Any
) -> None:
    lines = [
        "NRRD0005", "type: uchar", "dimension: 3", "sizes: 4 3 2", "encoding: raw",
        "space: LPS", "space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)",
        f"{field}: {value}", "", "",
    ]  # fmt: skip
    path = tmp_path / "a.nrrd"
    path.write_bytes("\n".join(lines).encode() + bytes(24))
    told = " ".join(run("convert", path, tmp_path / "o.nii").stderr.split())
    assert f"does not hold the fields {field}" in told
    run("convert", path, tmp_path / "strict.nii", "--strict", code=4)
    assert "note" not in run("convert", path, tmp_path / "o.nrrd", "--strict").stderr
    assert f"{field}: {value}".encode() in (tmp_path / "o.nrrd").read_bytes()
