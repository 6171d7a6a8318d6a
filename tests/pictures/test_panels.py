"""What is drawn: shades of known voxels, windows, orientation."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest

from conv3d_cli.model.grid import Grid
from conv3d_cli.model.volume import Axes, VolumeHeader
from conv3d_cli.pictures.orientation import orientations, tilt
from conv3d_cli.pictures.panels import (
    GREY,
    NOT_A_NUMBER,
    SIGNED,
    Panel,
    difference_panels,
    geometry_words,
    panels_of,
    resize,
    robust_window,
    signed_window,
    window_words,
)
from conv3d_cli.pictures.png import encode_png
from conv3d_cli.pictures.slices import Slices


def slices_of(
    data: np.ndarray, grid: Grid | None = None, at: tuple[int, int, int] | None = None
) -> Slices:
    """Slices of an array (D, H, W)."""
    d, h, w = at or (data.shape[0] // 2, data.shape[1] // 2, data.shape[2] // 2)
    header = VolumeHeader(Axes("zyx", data.shape), data.dtype, grid or Grid())
    return Slices("x", header, 0, 0, (d, h, w), (data[d], data[:, h], data[:, :, w]))


def panel(values: object, window: tuple[float, float], **more: object) -> Panel:
    array = np.array(values, np.float64)
    return Panel("", array, (float(array.shape[0]), float(array.shape[1])), window, **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Shades


def test_shades_of_known_values() -> None:
    shades = panel([[-5, 0, 5, 10, 99, np.nan, np.inf, -np.inf]], (0, 10)).paint(1, 8)
    assert shades.tolist() == [[0, 0, 127, 254, 254, NOT_A_NUMBER, 254, 0]]
    assert GREY[[0, 127, 254]].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_signed_shades_are_black_at_zero_and_keep_peaks() -> None:
    drawn = panel([[-4, 0, 4, 1]], (-4, 4), signed=True)
    assert drawn.paint(1, 4).tolist() == [[0, 127, 254, 159]]
    assert drawn.paint(1, 2).tolist() == [[0, 254]]
    assert SIGNED[127].tolist() == [0, 0, 0]
    assert SIGNED[0].tolist() == [70, 150, 255]
    assert SIGNED[254].tolist() == [255, 170, 60]


def test_bent_shades() -> None:
    assert panel([[-0.25, 0, 0.25, 1]], (-1, 1), signed=True, gamma=0.5).paint(1, 4).tolist() == [
        [64, 127, 190, 254]
    ]


@pytest.mark.parametrize("value", [0.0, 7.0, -1e300])
def test_a_constant_volume_is_grey(value: float) -> None:
    window = robust_window([np.full((3, 3), value)])
    assert window == (value, value)
    assert (panel(np.full((3, 3), value), window).paint(3, 3) == 127).all()
    assert "the only value" in window_words(window)


def test_a_volume_of_nan_is_drawn_as_such() -> None:
    window = robust_window([np.full((3, 3), np.nan)])
    assert window == (0, 0)
    assert (panel(np.full((3, 3), np.nan), window).paint(6, 1) == NOT_A_NUMBER).all()
    assert signed_window([np.full(3, np.nan)]) == (0, 0)


def test_the_largest_numbers() -> None:
    high = float(np.finfo(np.float64).max)
    assert panel([[-high, 0, high]], (-high, high)).paint(1, 3).tolist() == [[0, 127, 254]]


def test_windows_leave_outliers_out() -> None:
    values = np.concatenate([np.arange(1000.0), [1e9, np.nan, np.inf]])
    assert robust_window([values]) == (5, 995)
    assert robust_window([values[:500], values[500:]]) == (5, 995), "shared by all"
    assert robust_window([np.array([0.0] * 999 + [3.0])]) == (0, 3), (
        "where nearly all voxels are the same"
    )
    assert signed_window([np.array([-2.0, 1.0])]) == (-2, 2)


def test_cells_repeat_voxels_or_average_them() -> None:
    plane = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert resize(plane, 4, 2).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert resize(plane, 1, 1).tolist() == [[2.5]]
    assert resize(plane, 1, 4).tolist() == [[2, 2, 3, 3]]
    assert resize(np.array([[1.0, np.nan, np.nan, np.nan]]), 1, 2).tolist()[0][0] == 1
    assert resize(np.arange(10.0)[None], 1, 10).tolist() == [list(range(10))]


@pytest.mark.parametrize("shape", list(itertools.product((1, 2, 7, 100), repeat=2)))
def test_every_voxel_is_in_one_cell(shape: tuple[int, int]) -> None:
    ones = np.ones((11, 13))
    for peak in (False, True):
        cells = resize(ones, *shape, peak=peak)
        assert cells.shape == shape
        assert (cells == 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# Orientation


def anatomical(codes: str) -> Grid:
    """A grid whose i, j, k run towards these letters."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, letter in enumerate(codes):
        row = next(r for r, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[row, column] = 1 if letter in "RAS" else -1
    return Grid((1.0, 1.0, 1.0), "mm", affine, anatomical=True)


PAIRS = ("LR", "PA", "IS")
CODES = [
    "".join(letters)
    for axes in itertools.permutations(PAIRS)
    for letters in itertools.product(*axes)
]


@pytest.mark.parametrize("codes", CODES)
def test_letters_stand_where_the_voxels_lie(codes: str) -> None:
    """A marked voxel farthest towards R, A or S is drawn at the edge that bears the letter, in all 48 storage orders."""
    for letter in "RLASPI":
        data = np.zeros((5, 5, 5))  # k, j, i
        pair = next(pair for pair in PAIRS if letter in pair)
        position = next(p for p, code in enumerate(codes) if code in pair)
        index = [2, 2, 2]
        index[2 - position] = 4 if codes[position] == letter else 0
        data[tuple(index)] = 1
        for drawn in panels_of(slices_of(data, anatomical(codes)), (0, 1)):
            if letter not in drawn.letters:
                continue
            row, column = (int(i) for i in np.unravel_index(drawn.values.argmax(), (5, 5)))
            edge = drawn.letters.index(letter)
            assert (row, column) == [(2, 0), (2, 4), (0, 2), (4, 2)][edge], (
                codes,
                letter,
                drawn.title,
            )


def test_names_and_edges_of_the_three_planes() -> None:
    for codes in CODES:
        turns = {turn.name: turn for turn in orientations(anatomical(codes))}
        assert turns["axial"].letters == ("L", "R", "A", "P")
        assert turns["coronal"].letters == ("L", "R", "S", "I")
        assert turns["sagittal"].letters == ("P", "A", "S", "I")


def test_without_anatomy_rows_are_as_stored() -> None:
    data = np.arange(24.0).reshape(2, 3, 4)
    grid = Grid((1.0, 1.0, 1.0), "um", np.diag([-1.0, 1, 1, 1]))
    for drawn, plane in zip(
        panels_of(slices_of(data, grid), (0, 1)), (data[1], data[:, 1], data[:, :, 2]), strict=True
    ):
        np.testing.assert_array_equal(drawn.values, plane)
        assert not any(drawn.letters)
    assert [p.directions for p in panels_of(slices_of(data), (0, 1))][
        2
    ] == "depth down, height to the right"


def test_oblique_grids_say_so() -> None:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    grid = Grid((3.0, 2.0, 2.0), "mm", turn @ np.diag([2.0, 2, 3, 1]), anatomical=True)
    assert tilt(grid) == pytest.approx(20)
    assert any(
        "up to 20 degrees off" in words
        for words in geometry_words(slices_of(np.zeros((2, 2, 2)), grid))
    )
    assert tilt(anatomical("RAS")) == 0
    assert not any(
        "oblique" in words
        for words in geometry_words(slices_of(np.zeros((2, 2, 2)), anatomical("LAS")))
    )


def test_an_affine_without_volume_bears_no_letters() -> None:
    grid = Grid(
        (1.0, 1.0, 1.0),
        "mm",
        np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        anatomical=True,
    )
    assert not any(orientations(grid)[0].letters)


def test_voxels_keep_their_proportions() -> None:
    grid = Grid((3.0, 1.0, 2.0), "mm")
    extents = [p.extent for p in panels_of(slices_of(np.zeros((2, 4, 5)), grid), (0, 1))]
    assert extents == [(4, 10), (6, 10), (6, 4)]


# ---------------------------------------------------------------------------------------------------------------------
# Differences


def test_differences() -> None:
    first = np.zeros((3, 4, 5))
    second = first.copy()
    second[1, 0, 2], second[1, 2, 3] = -7, 2  # both in a slice through the middle
    panels, words = difference_panels(slices_of(first), slices_of(second))
    assert words == "largest -7 at voxel 1,0,2"
    assert panels[0].values[0, 2] == -7
    assert all(p.signed and p.window[0] == -p.window[1] for p in panels)
    assert difference_panels(slices_of(first), slices_of(first))[1] == "none: all equal"
    assert "no difference" in difference_panels(slices_of(first), slices_of(first * np.nan))[1]
    second[0, 2, 4] = 9  # across h = 2
    assert difference_panels(slices_of(first), slices_of(second))[1] == "largest +9 at voxel 0,2,4"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_png_is_read_back() -> None:
    image = pytest.importorskip("matplotlib.image")
    shades = np.arange(15, dtype=np.uint8).reshape(3, 5)
    read = image.imread(io.BytesIO(encode_png(shades, GREY)))
    np.testing.assert_array_equal(np.rint(read[..., :3] * 255), GREY[shades])


def test_png_by_its_definition() -> None:
    import struct
    import zlib

    shades = np.array([[1, 2], [3, 255]], np.uint8)
    data = encode_png(shades, GREY)
    assert data == encode_png(shades, GREY)
    place, chunks = 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(
            name + body
        )
        chunks[name], place = body, place + 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (2, 2, 8, 3, 0, 0, 0)
    assert chunks[b"PLTE"] == GREY.tobytes()
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 1, 2, 0, 3, 255])


def test_plotting_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from conv3d_cli.errors import OutputExistsError, SpecError
    from conv3d_cli.pictures.plotting import check_plotting

    with pytest.raises(SpecError, match=r"\.png, \.svg, \.pdf, received 'a.jpg'"):
        check_plotting("a.jpg", "-o", False)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(OutputExistsError):
        check_plotting(str(tmp_path / "a.png"), "-o", False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpecError, match=r"-o needs Matplotlib: pip install 'conv3d\[plot\]'"):
        check_plotting(str(tmp_path / "b.png"), "-o", False)
