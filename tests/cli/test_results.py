"""What `apply -v`, `--json` and `--report` say of a result: first what people look for, then how it was computed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from conv3d_cli.pictures.page import BINS, histogram, round_numbers


@pytest.fixture
def numbers(scan: Path, mask: Path) -> tuple[np.ndarray, np.ndarray]:
    return nibabel.load(scan).get_fdata(), nibabel.load(mask).get_fdata() > 0


def text_of(values: np.ndarray) -> str:
    return f"mean {values.mean():.6g}, range {values.min():.6g} to {values.max():.6g}"


def test_v_says_what_became_of_the_values(
    run: Any, scan: Path, mask: Path, numbers: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    data, inside = numbers
    out = tmp_path / "o.nii"
    said = run("apply", scan, "-k", "gaussian:fwhm=6mm", "--mask", mask, "-o", out, "-v").stderr
    result = nibabel.load(out).get_fdata()
    lines = [line for line in said.splitlines() if not line.startswith("checked ")]
    before, inner_before, after, inner_after = lines[-5:-1]
    assert before == f"before     {text_of(data)}"
    assert inner_before == f"           in the mask: {text_of(data[inside])}"
    assert after.startswith(f"after      mean {result.mean():.4g}"[:18])
    assert inner_after.startswith("           in the mask: mean ")
    found = float(inner_after.split("mean ")[1].split(",")[0])
    assert found == pytest.approx(result[inside].mean(), rel=1e-5)
    assert said.splitlines()[-1].startswith("done       ")


def test_v_tells_first_what_is_done_then_how(run: Any, scan: Path, tmp_path: Path) -> None:
    said = run("apply", scan, "-k", "gaussian:fwhm=6mm", "-o", tmp_path / "o.nii", "-v").stderr
    names = [line.split()[0] for line in said.splitlines() if line[:1].strip()]
    wanted = [
        "input",
        "kernel",
        "fwhm",
        "padding",
        "strides",
        "output",
        "grid",
        "algorithm",
        "work",
    ]
    assert [name for name in names if name in wanted[:-2] + wanted[-2:]][: len(wanted)] == wanted
    assert "declined" not in said[: said.index("\nalgorithm")]
    assert re.search(r"fwhm +\d[\d.,]* mm \(depth,height,width\), measured on", said)


def test_json_has_the_numbers(run: Any, scan: Path, mask: Path, tmp_path: Path) -> None:
    words = ["apply", scan, "-k", "gaussian:fwhm=6mm", "--mask", mask, "--json"]
    record = json.loads(run(*words, "-v", "-o", tmp_path / "o.nii").stdout)
    result, inside = (
        nibabel.load(tmp_path / "o.nii").get_fdata(),
        nibabel.load(mask).get_fdata() > 0,
    )
    found = record["statistics"]["after_in_mask"]
    assert found["mean"] == pytest.approx(result[inside].mean(), rel=1e-5)
    assert (found["minimum"], found["maximum"]) == (result[inside].min(), result[inside].max())
    assert record["kernel_fwhm_unit"] == "mm"
    assert record["kernel_fwhm"] == pytest.approx([6, 6, 6], rel=1e-3)
    assert json.loads(run(*words, "-o", tmp_path / "p.nii").stdout)["statistics"] is None


def test_a_volume_of_nan_has_no_mean(run: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((3, 3, 3), np.nan, np.float32))
    words = [
        "apply",
        tmp_path / "a.npy",
        "-k",
        "identity",
        "-o",
        tmp_path / "o.npy",
        "-v",
        "--json",
    ]
    result = run(*words)
    assert "before     no finite value; 27 values not finite" in result.stderr
    record = json.loads(result.stdout)
    expected = {"mean": None, "minimum": None, "maximum": None, "not_finite": 27}
    assert record["statistics"]["before"] == expected


def test_the_page_leads_with_the_result(
    run: Any, scan: Path, mask: Path, numbers: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    data, inside = numbers
    page = tmp_path / "p.html"
    run(
        "apply", scan, "-k", "gaussian:fwhm=6mm", "--mask", mask, "-o", tmp_path / "o.nii",
        "--dtype", "uint8", "--report", page,
    )  # fmt: skip
    text = page.read_text()
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", text)
    assert heads == [
        "", "input", "output", "FWHM", "mean before", "range before", "mean after", "range after",
        "mean before in mask", "range before in mask", "mean after in mask", "range after in mask",
        "clipped", "notes", "seconds",
    ]  # fmt: skip
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    for values in (data, data[inside]):
        assert f"{values.mean():.6g}" in cells
        assert f"{values.min():.6g} to {values.max():.6g}" in cells
    assert re.fullmatch(r"\d+\.\d\d", cells[-1])  # seconds, always to the hundredth
    blocks = re.findall(r"<pre>(.*?)</pre>", text, re.S)
    assert blocks[1].startswith("fwhm ")
    assert "algorithm" not in blocks[1]
    assert "MB/s" not in re.findall(r"<table>.*?</table>", text, re.S)[0]
    assert "algorithm" in blocks[2]


def test_the_page_names_channel_and_time_point(run: Any, sample_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    run(
        "apply", sample_data / "beads.tif", sample_data / "series.nii.gz", sample_data / "head.nii.gz",
        "-k", "box", "--out-dir", tmp_path / "o", "--report", page,
    )  # fmt: skip
    beads, series, head = page.read_text().split("<h2")[1:]
    assert beads.count("; channel 0 (of 2, from 0); ") == 2
    assert "time point 0" not in beads
    assert series.count("; time point 0 (of 8, from 0); ") == 2
    assert "(of " not in head


# ---------------------------------------------------------------------------------------------------------------------
# The histogram


def heights(text: str, name: str) -> list[float]:
    """Heights of a curve's bins above the axis."""
    points = re.findall(rf'<polyline class="{name}" points="([^"]*)"', text)[0].split()
    floor = float(points[0].split(",")[1])
    return [floor - float(point.split(",")[1]) for point in points[1:-1:2]]


def test_outer_bins_hold_only_their_own_values(rng: np.random.Generator) -> None:
    values = rng.uniform(0, 1, 200_000)
    values[:1000], values[-1000:] = -50, 50  # as many as the window leaves out
    text = histogram([("before", values)])
    bins = heights(text, "before")
    assert len(bins) == BINS
    assert max(bins) < 1.15 * min(bins), "no false peak at an end"
    assert len(re.findall('<rect class="before beyond"', text)) == 2
    low, high = np.percentile(values, (0.5, 99.5), method="nearest")
    below, above = (values < low).mean(), (values > high).mean()
    caption = re.findall("<figcaption>(.*?)</figcaption>", text)[0]
    assert f"all voxels below {low:.6g} and above {high:.6g}" in caption
    assert f"(before {100 * below:.2g} % and {100 * above:.2g} %)" in caption


def test_bars_beyond_the_window_are_as_high_as_their_count() -> None:
    values = np.concatenate([np.linspace(0, 1, 990), np.full(4, -9.0), np.full(4, 9.0)])
    text = histogram([("before", values)])
    bars = [float(n) for n in re.findall(r'<rect [^>]*height="([\d.]+)"', text)]
    assert len(bars) == 2
    low, high = np.percentile(values, (0.5, 99.5), method="nearest")
    counts, _ = np.histogram(values, BINS, (low, high))
    beyond = [np.count_nonzero(values < low), np.count_nonzero(values > high)]
    expected = max(heights(text, "before")) * np.sqrt(np.array(beyond) / counts.max())
    assert bars == pytest.approx(expected, abs=0.2)


def test_the_axes_have_numbers() -> None:
    text = histogram([("before", np.arange(1000.0)), ("after", np.arange(1000.0) / 2)])
    labels = re.findall(r"<text [^>]*>([^<]*)</text>", text)
    assert [label for label in labels if "%" not in label] == ["200", "400", "600", "800"]
    assert sum("%" in label for label in labels) == 2


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3e-9, 7e-9), (12345, 12346), (-1e30, 1e31), (0.1, 0.95)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = round_numbers(low, high)
    assert 2 <= len(ticks) <= 5
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
