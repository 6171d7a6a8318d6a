"""One contract for every volume format and every suffix: what goes in comes out, or nothing does.

A new format joins by standing in `FORMATS`. What it cannot hold by its nature its own facts say
(`VolumeFormat`), and each fact is held to what the format does.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import started

from conv3d_cli.errors import FormatError, OutputExistsError, SpecError, WriteError
from conv3d_cli.formats import (
    FORMATS,
    create_volume,
    find_format,
    is_stream,
    open_volume,
    output_access,
    read_volume,
    write_volume,
)
from conv3d_cli.formats.base import OutputOptions, VolumeFormat, real_dtype
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.volume import (
    Axes,
    Facts,
    Volume,
    VolumeHeader,
    VolumeReader,
    parts_in_storage_order,
)

CASES = [
    (found, suffix)
    for found in FORMATS
    if found.create is not None
    for suffix in found.suffixes
    if suffix != "-"
]


def way_of_storing(case: tuple[VolumeFormat, str]) -> tuple[Any, ...]:
    """The same for two suffixes whose files differ in their names alone."""
    found, suffix = case
    name = f"x{suffix}"
    packed = (word in suffix for word in ("ome", "nii.", "zst", "zip"))
    return found.name, len(found.written(name)), found.streamed(name, OutputOptions()), *packed


def marks(case: tuple[VolumeFormat, str], is_crossed: bool) -> list[pytest.MarkDecorator]:
    """Of a test for a suffix.

    is_crossed : bool       the test is run for each dtype, or each order of axes
    """
    return [pytest.mark.slow] if is_crossed and case in ALIASES else []


WAYS = [way_of_storing(case) for case in CASES]
ALIASES = {case for n, case in enumerate(CASES) if WAYS[n] in WAYS[:n]}

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
DTYPES = [*INTEGERS, "float16", "float32", "float64", "bool"]
LEAST_DTYPES = {"uint8", "uint16", "float32"}
AXES = {
    "zyx": (5, 4, 3),
    "tzyx": (2, 5, 4, 3),
    "czyx": (2, 5, 4, 3),
    "zcyx": (5, 2, 4, 3),
    "zyxc": (5, 4, 3, 2),
    "tzyxc": (3, 5, 4, 3, 2),
    "tczyx": (3, 2, 5, 4, 3),
    "ctzyx": (2, 3, 5, 4, 3),
    "tzcyx": (3, 5, 2, 4, 3),
    "xyz": (3, 4, 5),
    "cxyzt": (2, 3, 4, 5, 3),
    "tzyxs": (2, 5, 4, 6, 3),
}


@pytest.mark.parametrize("path", ["x.npy", "x.nii"])
def test_a_run_imports_the_formats_that_it_uses_alone(path: str, tmp_path: Path) -> None:
    write_volume(str(tmp_path / path), Volume(np.ones((2, 3, 4), np.float32), "zyx"))
    code = (
        "import sys; from conv3d_cli.formats import read_volume; read_volume(sys.argv[1])\n"
        "print(*(name for name in sys.modules if name.startswith('conv3d_cli.formats.')), "
        "*({'asyncio', 'zarr', 'tifffile'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / path)],
        capture_output=True,
        text=True,
        check=True,
    )
    rooms = {name.split(".")[2] for name in done.stdout.split() if name.count(".") > 2}
    assert rooms == ({"nifti", "zarr"} if path == "x.nii" else {"zarr"})  # names of stores
    assert "conv3d_cli.formats.zarr.names" in done.stdout
    assert not {"asyncio", "zarr", "tifffile", "conv3d_cli.formats.zarr.store"} & {
        *done.stdout.split()
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every suffix in every test; with each dtype and order of axes, aliases under `slow` alone."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "case" in metafunc.fixturenames and not any("case" in names for names in own):
        is_crossed = bool({"dtype", "letters"} & set(metafunc.fixturenames))
        cases = [pytest.param(case, id=case[1], marks=marks(case, is_crossed)) for case in CASES]
        metafunc.parametrize("case", cases)


@pytest.fixture
def path(case: tuple[VolumeFormat, str], tmp_path: Path) -> Iterator[str]:
    """A name in a folder that must hold no temporary file afterwards."""
    folder = tmp_path / "some folder.d"
    folder.mkdir()
    yield str(folder / f"sub-01.v2{case[1]}")
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []


def make(letters: str, dtype: str, rng: np.random.Generator) -> Volume:
    shape = AXES[letters]
    if dtype == "bool":
        data = rng.random(shape) < 0.5
    elif np.dtype(dtype).kind == "f":
        data = rng.normal(size=shape).astype(np.float32).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        data = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return Volume(data, letters)


def canonical(volume: Volume) -> np.ndarray:
    """(N, D, H, W, C), by transposing alone."""
    letters = volume.axes
    batch = [a for a in letters if a not in "zyxcs"]
    channel = [a for a in letters if a in "cs"]
    order = [letters.index(a) for a in [*batch, "z", "y", "x", *channel] if a in letters]
    return volume.data.transpose(order).reshape(volume.shape)


def named_sizes(volume: Volume) -> dict[str, int]:
    """Sizes of the axes that are longer than one voxel; c and s are both channels."""
    sizes = {a: n for a, n in zip(volume.axes, volume.data.shape, strict=True) if a not in "cs"}
    return {a: n for a, n in {**sizes, "channels": volume.shape[4]}.items() if n > 1}


def read_back(path: str, written: str) -> Volume:
    """Read a volume; a format that keeps no axis names is told them."""
    found = find_format(path)
    assert found is not None
    return read_volume(path, axes=None if found.names_axes else written)


def output_header(path: str, volume: Volume) -> VolumeHeader:
    """The header with which `volume` is written to `path`."""
    header = volume.header
    found = find_format(path)
    assert found is not None
    letters = found.output_letters(header.axes.letters, header.shape[4], header.dtype)
    channel = [a for a in letters if a in "cs"]
    sizes = {channel[0]: header.shape[4]} if len(channel) == 1 else {}
    return replace(header, axes=header.axes.renamed(letters, sizes))


def held(path: str, volume: Volume) -> Volume:
    """The volume. If the format does not hold its axes, writing it must say so, and the test ends."""
    found = find_format(path)
    assert found is not None
    if not found.holds_axes(output_header(path, volume).axes):
        with pytest.raises(WriteError, match="holds no volume with the axes"):
            write_volume(path, volume)
        assert os.listdir(Path(path).parent) == []
        pytest.skip("has too many axes for the format")
    return volume


def make_many(path: str, dtype: str, rng: np.random.Generator) -> Volume:
    """A volume with as many axes as the format holds, at most t, c and space."""
    found = find_format(path)
    assert found is not None
    volume = make("tczyx", dtype, rng)
    return (
        volume if found.holds_axes(output_header(path, volume).axes) else make("tzyx", dtype, rng)
    )


def write_slabs(path: str, volume: Volume, depth: int, backwards: bool = False) -> None:
    """Write in slabs of `depth` planes."""
    header = output_header(path, volume)
    planes = header.shape[1]
    whole = canonical(volume)
    with create_volume(path, header) as writer:
        slabs = [
            (n, start, channels)
            for n, channels in parts_in_storage_order(
                header.axes, channels_together=not writer.sequential
            )
            for start in range(0, planes, depth)
        ]
        if backwards:
            assert not writer.sequential
            slabs.reverse()
        for n, start, channels in slabs:
            block = writer.block(n, slice(start, min(start + depth, planes)), channels)
            block[...] = whole[n, start : start + depth, ..., channels]
            writer.write(n, start, channels.start, block)
        writer.commit()


def files_beside(path: str) -> dict[str, bytes]:
    """Every file of the folder, those in folders (a store is one) included."""
    folder = Path(path).parent
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def clear_folder_of(path: str) -> None:
    for entry in Path(path).parent.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def error_of(path: str) -> str:
    """The message of the FormatError that reading the whole file raises."""
    with pytest.raises(FormatError) as caught:
        read_volume(path)
    return str(caught.value)


def check_message(message: str, path: str) -> None:
    """One line that names the file, or the other one of a pair."""
    assert "\n" not in message
    assert (
        os.path.splitext(path)[0].removesuffix(".nii").removesuffix(".hdr").removesuffix(".img")
        in message
    )


# --------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
def test_voxels_and_dtype_come_back(path: str, dtype: str, rng: np.random.Generator) -> None:
    volume = make("zyx", dtype, rng)
    refusal = None
    try:
        write_volume(path, volume)
    except WriteError as error:
        refusal = str(error)
    if refusal:
        assert dtype not in LEAST_DTYPES
        assert dtype in refusal
        check_message(refusal, path)
        assert os.listdir(Path(path).parent) == []
        return
    back = read_back(path, "zyx")
    handed_out = real_dtype(volume.data.dtype, path)
    if back.data.dtype != handed_out:  # a wider one of the same kind; a mask may become 0 and 1
        assert np.can_cast(handed_out, back.data.dtype, "safe")
        assert (back.data.dtype.kind == "f") == (handed_out.kind == "f")
    assert back.axes == "zyx"
    np.testing.assert_array_equal(back.data, volume.data)


@pytest.mark.parametrize("letters", AXES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_axes_come_back(path: str, letters: str, dtype: str, rng: np.random.Generator) -> None:
    volume = held(path, make(letters, dtype, rng))
    write_volume(path, volume)
    back = read_back(path, output_header(path, volume).axes.letters)
    assert back.shape == volume.shape
    assert named_sizes(back) == named_sizes(volume)
    np.testing.assert_array_equal(canonical(back), canonical(volume))


@pytest.mark.parametrize("letters", AXES)
def test_a_second_round_trip_changes_nothing(
    path: str, letters: str, rng: np.random.Generator
) -> None:
    write_volume(path, held(path, make(letters, "uint8", rng)))
    before = files_beside(path)
    write_volume(path, read_volume(path), overwrite=True)
    assert files_beside(path) == before


@pytest.mark.parametrize("letters", AXES)
def test_output_letters_are_settled(case: tuple[VolumeFormat, str], letters: str) -> None:
    """Asked again with its own answer, a format answers the same; batch axes keep their order."""
    for dtype in ("uint8", "float32"):
        for channels in (1, 2, 3):
            once = case[0].output_letters(letters, channels, np.dtype(dtype))
            assert case[0].output_letters(once, channels, np.dtype(dtype)) == once
            sizes = dict.fromkeys("cs", channels)
            assert Axes(once, (2,) * len(once)).renamed(once, sizes).canonical_shape[4] in (
                channels,
                channels**2,
            )
            assert [a for a in once if a not in "zyxcs"] == [a for a in letters if a not in "zyxcs"]


def test_special_floats_come_back(path: str) -> None:
    data = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3.4e38, 1], np.float32).reshape(
        2, 2, 2
    )
    write_volume(path, Volume(data, "zyx"))
    back = read_back(path, "zyx").data
    np.testing.assert_array_equal(back.view(np.uint32), data.view(np.uint32))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 1), (7, 1, 2), (1, 64, 64)])
def test_axes_of_one_voxel(
    path: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    volume = Volume(rng.normal(size=shape).astype(np.float32), "zyx")
    write_volume(path, volume)
    np.testing.assert_array_equal(canonical(read_back(path, "zyx")), canonical(volume))


@pytest.mark.parametrize("unit", ["um", "mm", "nm"])
def test_spacing_comes_back(
    case: tuple[VolumeFormat, str], path: str, unit: str, rng: np.random.Generator
) -> None:
    spacing = (2.5, 0.75, 0.3)
    grid = Grid(spacing, unit, affine_from_spacing(spacing))
    volume = replace(make("zyx", "float32", rng), grid=grid)
    write_volume(path, volume)
    back = read_back(path, "zyx").grid
    if not case[0].holds_spacing:
        assert back.spacing is None
        return
    np.testing.assert_allclose(back.spacing_in("um"), grid.spacing_in("um"), rtol=1e-6)


def test_what_is_lost_is_said(
    case: tuple[VolumeFormat, str], path: str, rng: np.random.Generator
) -> None:
    grid = Grid((2.5, 0.75, 0.25), "um", affine_from_spacing((2.5, 0.75, 0.25)))
    header = output_header(path, replace(make("zyx", "float32", rng), grid=grid))
    with create_volume(path, header) as writer:
        assert bool(writer.notes) == (not case[0].holds_spacing)
        assert all("\n" not in note for note in writer.notes)


def test_an_origin_comes_back_or_is_said_to_be_lost(
    case: tuple[VolumeFormat, str], path: str, rng: np.random.Generator
) -> None:
    grid = Grid((2.0, 2.0, 2.0), "mm", affine_from_spacing((2, 2, 2), (10, -30, 50)))
    volume = replace(make("zyx", "float32", rng), grid=grid)
    with create_volume(path, output_header(path, volume)) as writer:
        notes = writer.notes
    write_volume(path, volume)
    back = read_back(path, "zyx").grid
    if notes:
        assert back.affine is None or (back.affine[:3, 3] == 0).all(), notes
    else:
        assert back.affine is not None
        factor = 1 if back.unit == "mm" else 1e6 if back.unit == "nm" else 1e3
        np.testing.assert_allclose(back.affine[:3, 3] / factor, [50, -30, 10], rtol=1e-6)


def test_facts_come_back_or_are_said_to_be_lost(
    case: tuple[VolumeFormat, str], path: str, rng: np.random.Generator
) -> None:
    facts = Facts("embryo 7", (2.5, "s"), ("DAPI", "GFP"), ("0000FF", "FF8000"))
    volume = replace(make("tczyx", "uint8", rng), facts=facts)
    header = output_header(path, volume)
    if not case[0].holds_axes(header.axes):
        facts = replace(facts, channel_names=(), channel_colors=())
        volume = replace(make("tzyx", "uint8", rng), facts=facts)
        header = output_header(path, volume)
    kept = case[0].keeps(path, header)
    names = {field.name for field in fields(Facts)} - {"others", "dropped", "provenance"}
    assert kept <= names
    with create_volume(path, header) as writer:
        lost = [note for note in writer.notes if "does not hold" in note]
    assert len(lost) == (kept != names)
    write_volume(path, volume)
    back = read_back(path, header.axes.letters).facts
    behind = path.endswith((".mgz", ".mgh.gz"))  # the packed voxels; notes tell what may be there
    if behind:
        names -= {"time_step"}
    for name in names:
        assert getattr(back, name) == (getattr(facts if name in kept else Facts(), name)), name
    write_volume(path, replace(volume, facts=Facts()), overwrite=True)
    back = read_back(path, header.axes.letters).facts
    assert (replace(back, provenance=()) if behind else back) == Facts()


def test_affine_comes_back(
    case: tuple[VolumeFormat, str], path: str, rng: np.random.Generator
) -> None:
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.5, 2, 3)
    affine[:3, 3] = (-90, 126.5, -72.25)
    grid = Grid((3.0, 2.0, 0.5), "mm", affine)
    volume = replace(make("zyx", "uint8", rng), grid=grid)
    with create_volume(path, output_header(path, volume)) as writer:
        assert bool(writer.notes) == (not case[0].holds_affine)
    write_volume(path, volume)
    back = read_volume(path).grid
    if not case[0].holds_affine:
        assert back.affine is None or not np.allclose(back.affine, affine)
        return
    assert back.affine is not None
    np.testing.assert_allclose(back.affine, affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back.spacing, (3, 2, 0.5), rtol=1e-6)
    assert back.unit == "mm"


# --------------------------------------------------------------------------------------------------
# Slabs


@pytest.mark.parametrize("letters", ["zyx", "tczyx", "tzyxc", "tzyxs"])
def test_bytes_do_not_depend_on_slabs(path: str, letters: str, rng: np.random.Generator) -> None:
    volume = held(path, make(letters, "uint8", rng))
    results = []
    for depth in (1, 3, 100):
        write_slabs(path, volume, depth)
        results.append(files_beside(path))
        clear_folder_of(path)
    write_volume(path, volume)
    assert results[0] == results[1] == results[2] == files_beside(path)


def test_slabs_in_any_order(path: str, rng: np.random.Generator) -> None:
    volume = make_many(path, "float32", rng)
    header = output_header(path, volume)
    with create_volume(path, header) as writer:
        sequential = writer.sequential
    assert sequential == is_stream(path) == (output_access(path, header) is None)
    if sequential:
        pytest.skip("a stream")
    write_slabs(path, volume, 2, backwards=True)
    np.testing.assert_array_equal(
        canonical(read_back(path, header.axes.letters)), canonical(volume)
    )


def parts(reader: VolumeReader) -> list[tuple[int, slice]]:
    return list(parts_in_storage_order(reader.header.axes, channels_together=not reader.sequential))


@pytest.mark.parametrize("letters", ["zyx", "tczyx", "tzyxc", "tzyxs"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_reading_in_slabs(path: str, letters: str, depth: int, rng: np.random.Generator) -> None:
    volume = held(path, make(letters, "uint8", rng))
    whole = canonical(volume)
    write_volume(path, volume)
    found = find_format(path)
    assert found is not None
    names = None if found.names_axes else output_header(path, volume).axes.letters
    with open_volume(path, axes=names) as reader:
        assert reader.header.shape == volume.shape
        assert np.can_cast(volume.data.dtype, reader.header.dtype, "safe")
        for n, channels in parts(reader):
            for start in range(0, 5, depth):
                stop = min(start + depth, 5)
                block = reader.read(n, slice(start, stop), channels)
                assert block.dtype.isnative
                np.testing.assert_array_equal(block, whole[n, start:stop, ..., channels])
                reader.release(n, stop)
        reader.finish()
        reader.close()  # harmless twice


def test_planes_may_be_skipped(path: str, rng: np.random.Generator) -> None:
    volume = make("zyx", "uint16", rng)
    write_volume(path, volume)
    with open_volume(path) as reader:
        for plane in (1, 4):
            block = reader.read(0, slice(plane, plane + 1), slice(0, 1))
            np.testing.assert_array_equal(block[0, ..., 0], volume.data[plane])
        reader.finish()


# --------------------------------------------------------------------------------------------------
# All or nothing


def test_abort_leaves_nothing(path: str, rng: np.random.Generator) -> None:
    volume = make("zyx", "float32", rng)
    header = output_header(path, volume)
    for planes in (0, 2, 5):
        with create_volume(path, header) as writer:
            if planes:
                writer.write(0, 0, 0, canonical(volume)[0, :planes])
        writer.abort()  # harmless twice
        assert os.listdir(Path(path).parent) == []


def test_an_output_is_not_replaced_unasked(path: str, rng: np.random.Generator) -> None:
    volume = make("zyx", "float32", rng)
    write_volume(path, volume)
    before = files_beside(path)
    with pytest.raises(OutputExistsError) as caught:
        write_volume(path, Volume(volume.data + 1, "zyx"))
    assert "overwrite=True" in str(caught.value)
    check_message(str(caught.value), path)
    with create_volume(path, output_header(path, volume), overwrite=True) as writer:
        writer.write(0, 0, 0, canonical(volume)[0, :2])
    assert files_beside(path) == before


def test_overwrite_replaces(path: str, rng: np.random.Generator) -> None:
    write_volume(path, make("tzyx", "float32", rng))
    volume = make("zyx", "uint8", rng)
    write_volume(path, volume, overwrite=True)
    np.testing.assert_array_equal(read_back(path, "zyx").data, volume.data)


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
def test_a_fifo_gets_the_bytes_of_a_file(path: str, rng: np.random.Generator) -> None:
    """Whatever writes at random, it is spooled; a store of many files cannot be sent."""
    volume = make("zyx", "float32", rng)
    if path.endswith(".zarr"):
        os.mkfifo(path)
        with pytest.raises(WriteError, match="it is a FIFO, but the output is a folder"):
            write_volume(path, volume)
        return
    write_volume(path, volume)
    expected = files_beside(path)
    clear_folder_of(path)
    os.mkfifo(path)
    with started(["cat", path], stdout=subprocess.PIPE) as reader:
        write_volume(path, volume)
        assert reader.stdout is not None
        sent = reader.stdout.read()
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    os.unlink(path)
    assert {**files_beside(path), os.path.basename(path): sent} == expected


def test_an_input_may_be_its_own_output(path: str, rng: np.random.Generator) -> None:
    volume = make("zyx", "float32", rng)
    write_volume(path, volume)
    with (
        open_volume(path) as reader,
        create_volume(path, output_header(path, volume), overwrite=True) as writer,
    ):
        for start in range(5):
            writer.write(0, start, 0, reader.read(0, slice(start, start + 1), slice(0, 1)) * 2)
        writer.commit()
    np.testing.assert_array_equal(read_back(path, "zyx").data, volume.data * 2)


def test_folders_are_not_made(path: str, rng: np.random.Generator) -> None:
    target = Path(path).parent / "missing" / Path(path).name
    with pytest.raises(WriteError, match="missing"):
        write_volume(str(target), make("zyx", "float32", rng))


# --------------------------------------------------------------------------------------------------
# Facts, each held to what the format does


def test_axis_names_come_back(
    case: tuple[VolumeFormat, str], path: str, rng: np.random.Generator
) -> None:
    """Unless the format says that it holds none: then channels that lie first are mistaken."""
    volume = make("czyx", "uint8", rng)
    write_volume(path, volume)
    back = read_volume(path)
    assert (named_sizes(back) == named_sizes(volume)) == case[0].names_axes


@pytest.mark.parametrize("option", ["chunks", "levels"])
def test_options_of_chunks(
    case: tuple[VolumeFormat, str], path: str, option: str, rng: np.random.Generator
) -> None:
    volume = make("zyx", "uint8", rng)
    options: dict[str, int] = {option: 2}
    if not case[0].chunked:
        with pytest.raises(
            SpecError, match=rf"{option}= is for [\w ,-]+, and {case[0].name} has none"
        ):
            write_volume(path, volume, **options)
        return
    write_volume(path, volume, **options)
    np.testing.assert_array_equal(read_volume(path).data, volume.data)


COMPRESSIONS = sorted({name for found in FORMATS for name in found.compressions})


@pytest.mark.parametrize(
    ("case", "compression", "letters"),
    [
        pytest.param(
            *(case, compression, letters),
            id=f"{case[1]}-{compression}-{letters}",
            marks=marks(case, letters != "zyx"),
        )
        for case in CASES
        for compression in COMPRESSIONS
        for letters in (AXES if compression in case[0].compressions else ["zyx"])
    ],
)
def test_compressions(
    case: tuple[VolumeFormat, str],
    path: str,
    compression: str,
    letters: str,
    rng: np.random.Generator,
) -> None:
    volume = held(path, make(letters, "uint16", rng))
    refusal = ""
    try:
        write_volume(path, volume, compression=compression)
    except SpecError as error:
        refusal = str(error)
    if refusal:  # of the format, or of this suffix of it
        assert "compression=" in refusal
        assert compression not in case[0].compressions or f"{case[1]} is written raw" in refusal
        return
    assert compression in case[0].compressions
    assert is_stream(path, compression)
    back = read_back(path, output_header(path, volume).axes.letters)
    np.testing.assert_array_equal(canonical(back), canonical(volume))


def test_boxes(path: str, rng: np.random.Generator) -> None:
    """Boxes in any order, where a format takes them: written, and read."""
    volume = make_many(path, "float32", rng)
    header, whole = output_header(path, volume), canonical(volume)
    if output_access(path, header) is None:
        pytest.skip("a stream")
    n, depth, height, _, channels = header.shape
    with create_volume(path, header) as writer:
        for part in reversed(range(n)):
            for c in range(channels):
                for d, h, w in ((2, 2, 0), (0, 2, 0), (2, 0, 0), (0, 0, 0)):
                    place = (
                        slice(d, d + 2 if d == 0 else depth),
                        slice(h, h + 2 if h == 0 else height),
                    )
                    writer.write_box(
                        part, (d, h, w), c, np.ascontiguousarray(whole[part][place][..., c : c + 1])
                    )
        writer.commit()
    found = find_format(path)
    assert found is not None
    with open_volume(path, axes=None if found.names_axes else header.axes.letters) as reader:
        assert reader.box_access() is not None
        box = reader.read_box(
            1, slice(1, 4), slice(1, 3), slice(0, 2), slice(channels - 1, channels)
        )
        np.testing.assert_array_equal(box, whole[1, 1:4, 1:3, 0:2, -1:])
    np.testing.assert_array_equal(canonical(read_back(path, header.axes.letters)), whole)


# --------------------------------------------------------------------------------------------------
# The command over every format


@pytest.fixture
def conv3d(run: Any) -> Any:
    """`conv3d ARGUMENTS...`, whose last line on stderr is the error, if it ends with one."""

    def call(*arguments: str, code: int = 0) -> Any:
        result = run(*arguments, code=code)
        assert code == 0 or result.stderr.strip().splitlines()[-1].startswith("Error: "), (
            result.stderr
        )
        return result

    return call


@pytest.fixture
def scan(path: str, rng: np.random.Generator) -> str:
    """A volume of this format that is convolved into `path`."""
    folder = Path(path).parent / "in"
    folder.mkdir()
    name = str(folder / f"scan{Path(path).name.removeprefix('sub-01.v2')}")
    spacing = (2.0, 1.5, 1.0)
    grid = Grid(spacing, "mm", affine_from_spacing(spacing, (1, 2, 3)), anatomical=True)
    write_volume(name, Volume(rng.normal(size=(7, 6, 5)).astype(np.float32), "zyx", grid))
    return name


def test_apply_with_a_sidecar(
    conv3d: Any, case: tuple[VolumeFormat, str], path: str, scan: str
) -> None:
    conv3d("apply", scan, "-k", "box:size=3", "-o", path, "--sidecar")
    sidecar = Path(path.removesuffix(case[1]) + ".json")
    record = json.loads(sidecar.read_text())
    versions = record["Conv3D"]["Versions"]
    used = [name for name in case[0].libraries if find_spec(name) is not None]  # some are extras
    assert {name: versions[name] for name in used} == {name: version(name) for name in used}
    conv3d("rerun", str(sidecar))


def test_apply_with_history(
    conv3d: Any, case: tuple[VolumeFormat, str], path: str, scan: str
) -> None:
    """It is kept, and carried on by the next run; or its loss is told."""
    told = conv3d("apply", scan, "-k", "box:size=3", "-o", path, "--history").stderr
    assert ("holds no history" in told) == (not case[0].holds_history)
    with open_volume(path) as reader:
        first = reader.header.history
    assert len(first) == case[0].holds_history
    again = path.replace("sub-01", "again")
    conv3d("apply", path, "-k", "gaussian:sigma=1vox", "-o", again, "--history")
    with open_volume(again) as reader:
        steps = [line.partition(": ")[2] for line in reader.header.history]
    assert len(steps) == 2 * case[0].holds_history
    assert all("apply" in step for step in steps)
    if case[0].holds_history:
        assert "gaussian" in steps[1]
        assert reader.header.history[0] == first[0]


@pytest.mark.parametrize("axes", ["zyx", "czyx"])
def test_apply_and_verify(
    conv3d: Any, path: str, scan: str, axes: str, rng: np.random.Generator
) -> None:
    if axes == "czyx":
        write_volume(scan, make("czyx", "float32", rng), overwrite=True)
    found = find_format(scan)
    assert found is not None
    named = [] if found.names_axes else ["--axes", axes]
    conv3d("apply", scan, *named, "-k", "gaussian:sigma=1vox", "-o", path, "--verify", "100")


def test_apply_with_a_scale(
    conv3d: Any, case: tuple[VolumeFormat, str], path: str, scan: str
) -> None:
    """Integers with a slope and an intercept, or a refusal before any work."""
    job = ["apply", scan, "-k", "box:size=3", "-o", path, "--dtype", "int16", "--scale", "auto"]
    if not case[0].holds_scale:
        assert "NIfTI (.nii.gz" in conv3d(*job, code=2).stderr
        assert not os.path.exists(path)
        return
    conv3d(*job)
    plain = str(Path(path).parent / "plain.npy")
    conv3d("apply", scan, "-k", "box:size=3", "-o", plain)
    with open_volume(path) as reader:
        assert reader.header.dtype == np.int16
        slope = reader.header.scale[0]
    assert 0 < slope < 1e-3
    np.testing.assert_allclose(read_volume(path).data, np.load(plain), atol=slope)


def test_apply_with_a_mask(
    conv3d: Any, case: tuple[VolumeFormat, str], path: str, scan: str, rng: np.random.Generator
) -> None:
    """A mask in this format does what the same mask in .npy does."""
    inside = (rng.random((7, 6, 5)) < 0.7).astype(np.uint8)
    folder = Path(scan).parent
    mask = str(folder / f"mask{case[1]}")
    write_volume(mask, Volume(inside, "zyx", read_volume(scan).grid))
    np.save(folder / "mask.npy", inside)
    conv3d("apply", scan, "-k", "box:size=3", "-o", path, "--mask", mask)
    conv3d(
        "apply",
        scan,
        "-k",
        "box:size=3",
        "-o",
        str(folder / "by_npy.npy"),
        "--mask",
        str(folder / "mask.npy"),
    )
    np.testing.assert_array_equal(read_volume(path).data, np.load(folder / "by_npy.npy"))


# --------------------------------------------------------------------------------------------------
# Files that are not what they should be


def test_missing_files(path: str) -> None:
    message = error_of(path)
    check_message(message, path)
    assert "no such file" in message


def test_folders_are_not_volumes(path: str) -> None:
    os.mkdir(path)
    check_message(error_of(path), path)


def test_empty_and_garbage_files(path: str, rng: np.random.Generator) -> None:
    write_volume(path, make("zyx", "float32", rng))
    names = list(files_beside(path))
    for content in (b"", b"\n", bytes(600), rng.bytes(1000), b"conv3d " * 200):
        for name in names:
            (Path(path).parent / name).write_bytes(content)
        check_message(error_of(path), path)


@pytest.mark.parametrize("letters", ["zyx", "tczyx"])
def test_truncated_files(path: str, letters: str, rng: np.random.Generator) -> None:
    """An error, or every voxel and the grid: the end may be a text that nothing needs."""
    write_volume(path, held(path, make(letters, "float32", rng)))
    whole = read_volume(path)
    for name, content in files_beside(path).items():
        file = Path(path).parent / name
        size = len(content)
        for length in sorted({1, 4, 40, size // 3, size // 2, size * 9 // 10, size - 9, size - 1}):
            if 0 < length < size:
                file.write_bytes(content[:length])
                try:
                    volume = read_volume(path)
                except FormatError as error:
                    check_message(str(error), path)
                else:
                    assert length >= size - 9
                    np.testing.assert_array_equal(volume.data, whole.data)
                    assert volume.axes == whole.axes
                    assert volume.grid.spacing == whole.grid.spacing
        file.write_bytes(content)


def test_axes_that_do_not_fit(path: str, rng: np.random.Generator) -> None:
    write_volume(path, make("zyx", "float32", rng))
    for axes in ("tzyx", "yx", "zyy", "abc"):
        with pytest.raises((SpecError, FormatError)):
            read_volume(path, axes=axes)
