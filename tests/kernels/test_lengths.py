"""Lengths with units, sizes, axes and numbers, as texts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli.errors import ShapeError, SpecError, UnknownNameError
from conv3d_cli.kernels import lengths
from conv3d_cli.kernels.lengths import parse_lengths, read_lengths, read_sizes, voxels
from conv3d_cli.model.grid import Grid


@pytest.mark.parametrize(
    ("text", "values", "unit"),
    [
        ("6mm", (6, 6, 6), "mm"),
        ("8,6,3mm", (8, 6, 3), "mm"),
        ("8mm,6mm,3mm", (8, 6, 3), "mm"),
        ("8, 6, 3 mm", (8, 6, 3), "mm"),
        ("1.5,1,1vox", (1.5, 1, 1), "vox"),
        ("2VOX", (2, 2, 2), "vox"),
        (".5um", (0.5, 0.5, 0.5), "um"),
        ("2.µm", (2, 2, 2), "um"),  # micro sign
        ("2μm", (2, 2, 2), "um"),  # Greek letter
        ("1e3nm", (1000, 1000, 1000), "nm"),
        ("0.6cm", (0.6, 0.6, 0.6), "cm"),
        ("1e-3m", (0.001, 0.001, 0.001), "m"),
        ("+2mm", (2, 2, 2), "mm"),
        ("0vox", (0, 0, 0), "vox"),
    ],
)
def test_lengths_are_read(text: str, values: tuple[float, ...], unit: str) -> None:
    assert parse_lengths(text, "sigma") == (values, unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "sigma=2 needs a unit: sigma=2mm or sigma=2vox"),
        ("8,6,3", "sigma=8,6,3 needs a unit: sigma=8,6,3mm or sigma=8,6,3vox"),
        ("8mm,6vox,3mm", "one unit for all axes, as in sigma=8,6,3mm, received sigma=8mm,6vox,3mm"),
        ("8mm,6um,3mm", "one unit for all axes"),
        ("8mm,6,3", "one unit for all axes"),
        ("8,6mm,3", "one unit for all axes"),
        ("8mm,6,3mm", "one unit for all axes"),
        ("1,5mm", "one length or three"),
        ("1,2,3,4mm", "one length or three"),
        ("mm", "one length or three"),
        ("", "one length or three"),
        ("2 mm mm", "one length or three"),
        ("nanmm", "one length or three"),
        ("inf", "one length or three"),
        ("0x10mm", "one length or three"),
        ("1_0mm", "one length or three"),
        ("-2mm", "must not be negative, received sigma=-2mm"),
        ("1,-2,3mm", "must not be negative"),
        ("1e999mm", "must be finite"),
    ],
)
def test_lengths_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_lengths(text, "sigma")


@pytest.mark.parametrize("unit", ["px", "pixel", "inch", "mmm", "mu"])
def test_unknown_units(unit: str) -> None:
    with pytest.raises(
        UnknownNameError,
        match=rf"unknown unit '{unit}'.*available: vox, nm, um, mm, cm, m \(in fwhm=2{unit}\)",
    ):
        parse_lengths(f"2{unit}", "fwhm")


@pytest.mark.parametrize(
    ("text", "grid", "expected"),
    [
        ("6mm", Grid((3.0, 1.5, 2.0), "mm"), (2, 4, 3)),
        ("8,6,3mm", Grid((2.0, 2.0, 2.0), "mm"), (4, 3, 1.5)),
        ("1um", Grid((0.5, 0.25, 0.25), "um"), (2, 4, 4)),
        ("300nm", Grid((0.3, 0.1, 0.1), "um"), (1, 3, 3)),
        ("0.6cm", Grid((3.0, 3.0, 3.0), "mm"), (2, 2, 2)),
        ("2vox", Grid((3.0, 1.5, 2.0), "mm"), (2, 2, 2)),
        ("0mm", Grid((3.0, 1.5, 2.0), "mm"), (0, 0, 0)),
    ],
)
def test_lengths_become_voxels(text: str, grid: Grid, expected: tuple[float, ...]) -> None:
    assert read_lengths(text, "sigma", grid) == pytest.approx(expected)


def test_voxels_need_no_grid() -> None:
    assert read_lengths("2vox", "sigma", None) == (2, 2, 2)
    assert read_lengths("2vox", "sigma", Grid()) == (2, 2, 2)


@pytest.mark.parametrize(
    "grid", [None, Grid(), Grid((0.0, 1.0, 1.0), "mm"), Grid((-1.0, 1.0, 1.0), "mm")]
)
def test_mm_without_a_usable_spacing(grid: Grid | None) -> None:
    with pytest.raises(ShapeError, match=r"sigma=2mm.*in vox"):
        read_lengths("2mm", "sigma", grid)


@settings(max_examples=examples(60))
@given(
    st.tuples(*[st.floats(0, 1e6).filter(lambda v: v == 0 or v > 1e-6)] * 3),
    st.sampled_from(["vox", "nm", "um", "mm", "cm", "m"]),
)
def test_what_python_prints_is_read_back(values: tuple[float, float, float], unit: str) -> None:
    assert parse_lengths(",".join(map(repr, values)) + unit, "sigma") == (values, unit)


@settings(max_examples=examples(150))
@given(st.text(alphabet="0123456789.,+-eE munµvoxc", max_size=14))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        values, _ = parse_lengths(text, "sigma")
    except SpecError:
        return
    assert all(math.isfinite(value) and value >= 0 for value in values)


def test_sizes() -> None:
    assert read_sizes("3", "size") == (3, 3, 3)
    assert read_sizes("1, 3, 5", "size") == (1, 3, 5)
    for wrong in ("3mm", "3,3,3vox", "", "a", "0", "-1", "2.0", "1,2", "1,,3", "٣", "9" * 5000):
        with pytest.raises(SpecError, match="size"):
            read_sizes(wrong, "size")


def test_voxels() -> None:
    assert (
        voxels(1, "sigma") == voxels((1, 1, 1), "sigma") == voxels([1, 1, 1], "sigma") == (1, 1, 1)
    )
    assert voxels(0, "sigma", zero=True) == (0, 0, 0)
    for wrong in (0, -1, math.nan, math.inf, (1, 2), (1, 2, 3, 4), (1, 2, None), "2"):
        with pytest.raises(SpecError, match="sigma"):
            voxels(wrong, "sigma")  # type: ignore[arg-type]


def test_numbers_and_counts() -> None:
    assert lengths.read_number("-1.5e2", "amount") == -150
    assert lengths.read_count("-3", "count") == -3
    for wrong in ("", "1,2", "1mm", "nan", "inf", "1e999", "0x1"):
        with pytest.raises(SpecError, match="amount"):
            lengths.read_number(wrong, "amount")
    for wrong in ("", "1.0", "1e3", "two"):
        with pytest.raises(SpecError, match="count"):
            lengths.read_count(wrong, "count")


def test_axes() -> None:
    assert [lengths.read_axes(letters, "axis") for letters in ("d", "H", "xYz")] == [
        "d",
        "h",
        "xyz",
    ]
    for wrong in ("i", "", "dd", "dz", "dhwx", "all"):
        with pytest.raises(SpecError, match=rf"axis is d, h or w .*received axis={wrong}"):
            lengths.axis_numbers(wrong)
