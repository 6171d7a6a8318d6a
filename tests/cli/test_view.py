"""`conv3d view` on the terminal and in files, and the page of `apply --report`."""

from __future__ import annotations

import base64
import re
import struct
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import Result

from conv3d_cli.cli import drawing, main
from conv3d_cli.pictures.panels import Panel

Run = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[bytes]"]
SAMPLES = Path(__file__).parents[2] / "sample_data"
HEAD = SAMPLES / "head.nii.gz"


def scan(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    """A NIfTI file of data (i, j, k)."""
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Text


def test_a_known_picture(run: Run, tmp_path: Path) -> None:
    """One bright voxel at the subject's right, front and top; voxels twice as long along z; i runs to the left."""
    data = np.zeros((4, 4, 2), np.float32)
    data[0, 3, 1] = 1
    path = scan(tmp_path / "x.nii.gz", data, np.diag([-1.0, 1, 2, 1]))
    lines = run("view", path, "--at", "1,3,0", "--window", "0,1").output.splitlines()
    assert lines[0] == "x.nii.gz"
    assert lines[1].split("  ")[0] == "d = 1, axial"
    side = 7  # cells of a voxel, as many as 100 columns hold; between the letters each picture has four of them
    panels = [
        [line.ljust(120)[start : start + 4 * side + 4] for line in lines[2:19]]
        for start in (0, 34, 68)
    ]
    for number, (panel_lines, rows) in enumerate(zip(panels, (4, 7, 7), strict=True)):
        letters = "LRAP" if number == 0 else "LRSI" if number == 1 else "PASI"
        assert "".join(panel_lines).replace("@", "").split() == [
            letters[2],
            letters[0],
            letters[1],
            letters[3],
        ]
        bright = [line[2:-2].rstrip() for line in panel_lines if "@" in line]
        assert bright == [" " * 3 * side + "@" * side] * len(bright), "on the right"
        assert len(bright) in (rows, rows - 1)
        assert "@" in panel_lines[1], "on top, under the letter"
    assert lines[-3:] == [
        "black 0, white 1",
        "d: height up, width leftwards; h: depth up, width leftwards; w: depth up, height to the right",
        "voxels of 2,1,1 mm (depth,height,width)",
    ]


def test_two_volumes_share_a_window_and_have_a_difference(run: Run, tmp_path: Path) -> None:
    first, second = np.zeros((4, 4, 4)), np.full((4, 4, 4), 10.0)
    second[2, 2, 2] = 30
    np.save(tmp_path / "a.npy", first)
    np.save(tmp_path / "b.npy", second)
    text = run("view", tmp_path / "a.npy", tmp_path / "b.npy").output
    assert "a: a.npy\nb: b.npy\nc: difference\n" in text
    assert "black 0, white 10 (0.5 to 99.5 % of the voxels drawn)" in text or "white 30" in text
    assert "second - first, in these slices; largest +30 at voxel 2,2,2" in text


def test_no_difference_between_grids(run: Run, tmp_path: Path) -> None:
    a = scan(tmp_path / "a.nii", np.zeros((4, 4, 4), np.float32), np.eye(4))
    b = scan(tmp_path / "b.nii", np.zeros((4, 4, 4), np.float32), np.diag([1.0, 1, 1.5, 1]))
    c = scan(tmp_path / "c.nii", np.zeros((4, 4, 5), np.float32), np.eye(4))
    assert "note: no difference is drawn: grid: corners are up to" in run("view", a, b).stderr
    assert "note: no difference is drawn: 4x4x4 and 5x4x4 voxels" in run("view", a, c).stderr
    assert "difference" not in run("view", a, b, c).output


def test_constant_empty_of_numbers_and_tiny(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.full((1, 1, 1), 3.0))
    np.save(tmp_path / "nan.npy", np.full((2, 3, 4), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros((1, 1, 3000), np.uint8))
    assert "grey: 3, the only value" in run("view", tmp_path / "one.npy").output
    text = run("view", tmp_path / "nan.npy").output
    assert "????" in text
    assert "NaN is violet, or ?" in text
    text = run("view", tmp_path / "flat.npy").output
    assert "every 1,1,3th voxel along depth,height,width is drawn" in text
    assert max(map(len, text.splitlines())) < 120


def test_series_and_channels(run: Run) -> None:
    one, other = (run("view", SAMPLES / "series.nii.gz", "-n", n).output for n in (0, 7))
    assert one != other
    assert (
        run("view", SAMPLES / "beads.tif", "-c", 0).output
        != run("view", SAMPLES / "beads.tif", "-c", 1).output
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.nii"], 3, "cannot read missing.nii: no such file"),
        ([HEAD, "--at", "1,2"], 2, "a place is a voxel D,H,W in whole numbers"),
        ([HEAD, "--at", "32,0,0"], 4, "voxel 32,0,0 lies outside"),
        ([HEAD, "-n", "1"], 4, "has 1 time point, counted from 0, received -n 1"),
        ([HEAD, "--window", "5,5"], 2, "--window must be two numbers LO,HI with LO < HI"),
        ([HEAD, "--window", "nan,5"], 2, "--window must be two numbers"),
        ([HEAD, "-o", "x.jpg"], 2, "a picture is written as .png, .svg, .pdf"),
        ([HEAD, "-o", "nowhere/x.png"], 1, "folder"),
    ],
)
def test_errors(
    run: Run, error_line: object, arguments: list[object], code: int, message: str
) -> None:
    result = run("view", *arguments, code=code)
    assert message in error_line(result.output)  # type: ignore[operator]


def test_an_existing_picture_is_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"mine")
    assert "pass --overwrite" in run("view", HEAD, "-o", tmp_path / "x.png", code=5).output
    assert (tmp_path / "x.png").read_bytes() == b"mine"


# ---------------------------------------------------------------------------------------------------------------------
# Colour


def panel(values: object, signed: bool = False, extent: tuple[float, float] | None = None) -> Panel:
    array = np.array(values, np.float64)
    size = extent or (float(array.shape[0]), float(array.shape[1]))
    return Panel("t", array, size, (-1, 1) if signed else (0, 1), signed=signed)


def test_half_blocks_hold_two_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, "in_colour", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawing.draw([[panel([[0, 1], [1, 0], [1, 1]])]], voxel=1, most=1)
    lines = capsys.readouterr().out.splitlines()
    black, white = "0;0;0", "255;255;255"
    assert (
        lines[1]
        == f"\x1b[38;2;{black};48;2;{white}m▀\x1b[0m\x1b[38;2;{white};48;2;{black}m▀\x1b[0m"
    )
    assert lines[2] == f"\x1b[38;2;{white}m▀▀\x1b[0m", "an odd row has nothing below it"


def test_fewer_colours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(drawing, "in_colour", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawing.draw([[panel([[0.5], [0.5]])]], voxel=1, most=1)
    assert re.search(r"\x1b\[38;5;\d+;48;5;\d+m▀", capsys.readouterr().out)


def test_proportions_and_width() -> None:
    wide = [
        [panel(np.zeros((4, 4)), extent=(4.0, 12.0)), panel(np.zeros((4, 4)), extent=(4.0, 6.0))]
    ]
    assert drawing.fitting_scale(wide, columns=200, voxel=1.0, most=8) == 8
    assert drawing.fitting_scale(wide, columns=44, voxel=1.0, most=8) == 2, "whole cells"
    assert drawing.fitting_scale(wide, columns=11, voxel=1.0, most=8) == 0.5
    assert drawing.fitting_scale(wide, columns=200, voxel=1.0, most=8, lines=6) == 3
    assert len(drawing.text_lines(wide[0], 1.0, [12, 6])[1:]) == 2


def test_signed_characters() -> None:
    assert drawing.text_lines(
        [panel([[-1, -1, 0, 0, 1, 1], [-1, -1, 0, 0, 1, 1]], signed=True)], 1, [6]
    ) == [
        "t",
        "@-  @@",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_pictures_in_files(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("apply", HEAD, "-k", "gaussian:fwhm=6mm", "-o", tmp_path / "s.nii.gz", "-q")
    for suffix in ("png", "svg", "pdf"):
        for name in ("a", "b"):
            run("view", HEAD, tmp_path / "s.nii.gz", "-o", tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    run("kernel", "show", "log:sigma=1,1,2vox", "-o", tmp_path / "k.png")
    assert (tmp_path / "k.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob(".*"))


# ---------------------------------------------------------------------------------------------------------------------
# The page


class Page(HTMLParser):
    """Tags, attributes and text of a page, which must be well formed."""

    EMPTY = ("meta", "img", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_page_of_a_batch(run: Run, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&'x.npy"
    np.save(odd, np.random.default_rng(0).standard_normal((5, 6, 7)))
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"nothing")
    page = tmp_path / "page.html"
    result = run(
        "apply",
        HEAD,
        odd,
        bad,
        "-k",
        "box:size=3",
        "--out-dir",
        tmp_path / "out",
        "--report",
        page,
        "-q",
        code=3,
    )
    assert "bad.npy" in result.output
    text = page.read_text()
    read = Page(text)
    assert "<b>&'x.npy" in read.words
    assert not any(tag == "b" and not attributes.get("class") for tag, attributes in read.tags), (
        "text is escaped"
    )
    links = [
        value
        for _, attributes in read.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert all(
        link is not None and link.startswith(("data:image/png;base64,", "#")) for link in links
    )
    images = [a["src"] for tag, a in read.tags if tag == "img"]
    assert len(images) == 4
    for tag, attributes in read.tags:
        if tag == "img":
            data = base64.b64decode(str(attributes["src"]).split(",")[1])
            assert struct.unpack(">II", data[16:24]) == (
                int(attributes["width"] or 0),
                int(attributes["height"] or 0),
            )
    assert sum(tag == "svg" for tag, _ in read.tags) == 2
    assert "cannot read" in read.words
    assert "algorithm  " in read.words
    assert "done       147456 voxels" in read.words
    assert [a["href"] for tag, a in read.tags if tag == "a"] == ["#v1", "#v2", "#v3"]
    assert run("apply", odd, "-k", "box:size=3", "-o", tmp_path / "y.npy", "--report", page, code=5)
    assert page.read_text() == text
    assert not (tmp_path / "y.npy").exists()


def test_a_page_of_an_output_that_replaces_its_input(run: Run, tmp_path: Path) -> None:
    """What it shows as before was read before."""
    for name in ("x.npy", "y.npy"):
        np.save(
            tmp_path / name, np.random.default_rng(0).standard_normal((8, 8, 8)).astype(np.float32)
        )
    run(
        "apply",
        tmp_path / "x.npy",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "x.npy",
        "--overwrite",
        "--report",
        tmp_path / "x.html",
    )
    run(
        "apply",
        tmp_path / "y.npy",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "z.npy",
        "--report",
        tmp_path / "y.html",
    )
    pictures = [
        [a["src"] for t, a in Page((tmp_path / f"{n}.html").read_text()).tags if t == "img"]
        for n in "xy"
    ]
    assert pictures[0] == pictures[1]
    assert pictures[0][0] != pictures[0][1]


def test_a_page_of_one_that_failed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    run(
        "apply",
        tmp_path / "bad.npy",
        "-k",
        "box:size=3",
        "-o",
        tmp_path / "y.npy",
        "--report",
        tmp_path / "p.html",
        code=3,
    )
    assert "cannot read" in Page((tmp_path / "p.html").read_text()).words


def test_a_page_of_pipes(shell: Shell, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 4, 4), np.float32))
    done = shell(
        "apply", "-", "-k", "box:size=3", "-o", "-", "--report", tmp_path / "p.html", "-q",
        input=(tmp_path / "x.npy").read_bytes(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = Page((tmp_path / "p.html").read_text()).words
    assert words.count("no picture: the volume passes through a pipe") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--report", "p.txt"],
            2,
            "a report is an HTML page, as in --report report.html, received 'p.txt'",
        ),
        (
            ["--report", "p.html", "--dry-run"],
            2,
            "--dry-run writes nothing, and --report is a file",
        ),
        (["--report", "nowhere/p.html"], 1, "does not exist"),
    ],
)
def test_pages_that_cannot_be(
    run: Run, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = run("apply", HEAD, "-k", "box:size=3", "-o", tmp_path / "y.nii", *arguments, code=code)
    assert message in result.output
    assert not (tmp_path / "y.nii").exists()


def test_pages_show_clipped_voxels_and_nan(run: Run, tmp_path: Path) -> None:
    data = np.full((4, 4, 4), 300.0)
    data[0, 0, 0] = data[2, 2, 2] = np.nan
    np.save(tmp_path / "x.npy", data)
    run(
        "apply", tmp_path / "x.npy", "-k", "identity", "--dtype", "uint8", "-o", tmp_path / "y.npy",
        "--report", tmp_path / "p.html",
    )  # fmt: skip
    words = Page((tmp_path / "p.html").read_text()).words
    assert "clipped" in words
    assert "64" in words


def test_help_names_the_views() -> None:
    assert "conv3d view brain.nii.gz smooth.nii.gz" in (main.commands["view"].help or "")
