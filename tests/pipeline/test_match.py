"""conv3d match: scores against scikit-image's and the formula, and the table of peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from conv3d_cli import Grid, Kernel, Volume, operate, read_volume, write_volume
from conv3d_cli.pipeline.outputs import PeakRules
from conv3d_cli.pipeline.peaks import PlanePeaks

Array = np.ndarray[Any, Any]
GOLDEN = np.load(Path(__file__).parent.parent / "data" / "match_golden.npz")
numbers = np.random.default_rng(3)


def score(x: Array, template: Array, inside: Array, mode: str = "symmetric") -> Array:
    """The correlation coefficient of the template with each window, in float64."""
    pads = [((n - 1) // 2, n // 2) for n in template.shape]
    padded = np.pad(x.astype(np.float64), pads, mode)  # type: ignore[call-overload]
    windows = sliding_window_view(padded, template.shape)[..., inside]  # type: ignore[call-overload]
    windows = windows - windows.mean(-1, keepdims=True)
    own = template.astype(np.float64)[inside]
    own = own - own.mean()
    return np.asarray(windows @ own / np.sqrt((windows**2).sum(-1) * (own**2).sum()))


@pytest.mark.parametrize("name", ["odd", "large"])
def test_scores_are_those_of_scikit_image(name: str) -> None:
    x, template = GOLDEN["volume"], GOLDEN[f"{name}_template"]
    want = GOLDEN[f"{name}_scores"]
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-12)):
        got = operate(x.astype(dtype), "match", Kernel(template), boundary="zeros")
        np.testing.assert_allclose(got, want, atol=tolerance)


def test_voxels_that_are_left_out_do_not_matter() -> None:
    template = numbers.standard_normal((5, 5, 7))
    template[numbers.random(template.shape) < 0.4] = 0
    x = numbers.standard_normal((9, 10, 17)).astype(np.float32)
    for mode, boundary in (("symmetric", "symmetric"), ("wrap", "wrap")):
        got = operate(x, "match:ignore=0", Kernel(template), boundary=boundary)
        np.testing.assert_allclose(got, score(x, template, template != 0, mode), atol=1e-6)
    # where it fits, whatever lies at the places that are left out
    inside = template != 0
    x[2:7, 3:8, 5:12] = np.where(inside, 3 * template + 50, 1e3 * numbers.random(template.shape))
    assert operate(x, "match:ignore=0", Kernel(template))[4, 5, 8] == pytest.approx(1, abs=1e-4)
    assert operate(x, "match", Kernel(template))[4, 5, 8] < 0.5


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A folder with a volume, a template, and the part of it that counts."""
    np.save(tmp_path / "x.npy", GOLDEN["volume"])
    np.save(tmp_path / "t.npy", GOLDEN["odd_template"])
    np.save(tmp_path / "m.npy", GOLDEN["inside"].astype(np.uint8))
    return tmp_path


def with_mask(folder: Path) -> list[Any]:
    return ["match", folder / "x.npy", "-k", folder / "t.npy", "--template-mask", folder / "m.npy"]


def test_a_template_mask_is_that_of_padfield(masked: Path, run: Any) -> None:
    run(*with_mask(masked), "-o", masked / "o.npy", "--verify", 100)
    found = np.load(masked / "o.npy")
    x, template, inside = GOLDEN["volume"], GOLDEN["odd_template"], GOLDEN["inside"]
    np.testing.assert_allclose(found, score(x, template, inside), rtol=0, atol=1e-6)
    # scikit-image leaves out what is beyond the edges
    inner = tuple(slice(n // 2, -(n // 2)) for n in template.shape)
    expected = GOLDEN["masked_scores"]
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=1e-6)


def test_a_template_mask_and_a_number_that_is_left_out(masked: Path, run: Any) -> None:
    template, inside = np.rint(GOLDEN["odd_template"]), GOLDEN["inside"]
    np.save(masked / "t.npy", template)
    run(*with_mask(masked), "--ignore", 0, "-o", masked / "o.npy")
    both = score(GOLDEN["volume"], template, inside & (template != 0))
    np.testing.assert_allclose(np.load(masked / "o.npy"), both, rtol=0, atol=1e-6)


def test_a_template_mask_is_an_input(masked: Path, run: Any) -> None:
    (masked / "o").mkdir()
    out, record = masked / "o" / "o.npy", masked / "o" / "o.json"
    line = [*with_mask(masked), "-o", out, "--sidecar", "--resume"]
    run(*line, "--depfile", masked / "o.d")
    assert str(masked / "m.npy") in (masked / "o.d").read_text()
    assert '"template mask"' in record.read_text()
    assert "every byte" in run("rerun", record).output
    np.save(masked / "m.npy", ~GOLDEN["inside"])
    run(*line, code=5)
    assert "template mask" in run("rerun", record, code=None).stderr


@pytest.mark.parametrize(
    ("mask", "options", "told"),
    [
        (np.ones((5, 3, 6)), [], "has 5x3x6 voxels, and the template"),
        (np.zeros((5, 3, 7)), [], "is above 0, so nothing of the template is left"),
        (np.ones((5, 3, 7)), ["--crop-kernel", "0"], "leave one of them out"),
    ],
    ids=["shape", "empty", "crop"],
)
def test_a_template_mask_that_does_not_fit(
    mask: Array, options: list[str], told: str, masked: Path, run: Any, error_line: Any
) -> None:
    np.save(masked / "m.npy", mask)
    result = run(*with_mask(masked), *options, "-o", masked / "o.npy", code=None)
    assert result.exit_code in (2, 4)
    assert told in error_line(result.stderr)
    assert not (masked / "o.npy").exists()


def test_only_templates_have_a_mask(masked: Path, run: Any, error_line: Any) -> None:
    line = ["apply", masked / "x.npy", "--template-mask", masked / "m.npy", "-o", masked / "o.npy"]
    for given in (["-k", "box:size=3"], ["--operation", "local:size=3"]):
        told = error_line(run(*line, *given, code=2).stderr)
        assert "belongs to the template of conv3d match" in told


@pytest.mark.parametrize("threshold", ["2", "-1.5"])
def test_a_threshold_is_a_score(threshold: str, masked: Path, run: Any, error_line: Any) -> None:
    line = ["match", masked / "x.npy", "-k", masked / "t.npy", "-o", masked / "o.npy"]
    result = run(*line, "--peaks", masked / "p.tsv", "--threshold", threshold, code=2)
    assert f"--threshold {threshold}: scores are from -1 to 1" in error_line(result.stderr)
    assert not (masked / "p.tsv").exists()


def test_an_even_template_lies_between_voxels() -> None:
    template = numbers.standard_normal((2, 4, 3))
    x = Volume(
        numbers.standard_normal((7, 8, 9)),
        "zyx",
        Grid((2.0, 1.0, 1.0), "mm", np.diag([1.0, 1, 2, 1])),
    )
    with pytest.warns(UserWarning, match="half a voxel along depth,height"):
        found = operate(x, "match", Kernel(template))
    inside = np.ones(template.shape, bool)
    np.testing.assert_allclose(found.data, score(x.data, template, inside), atol=1e-12)
    np.testing.assert_allclose(found.grid.world((0, 0, 0)), [0, 0.5, 1])


def test_scores_do_not_leave_their_range() -> None:
    """Copies of the template in constant surroundings, and a volume that varies little."""
    template = numbers.random((5, 5, 5)).astype(np.float32)
    x = np.full((15, 16, 30), 1000.0, np.float32)
    x[5:10, 5:10, 5:10] += template
    x[5:10, 5:10, 20:25] -= template
    found = operate(x.astype(np.float64), "match", Kernel(template))
    assert found[7, 7, 7] == pytest.approx(1, abs=1e-3)  # float32 voxels near 1000
    assert found[7, 7, 22] == pytest.approx(-1, abs=1e-3)
    assert np.abs(found).max() <= 1
    assert (found[:, :2, :2] == 0).all(), "nothing varies there"


def test_what_float32_cannot_tell_is_0_and_told(tmp_path: Path, run: Any) -> None:
    """Noise of 1 around a million: a score of float32 would be anything."""
    template = numbers.standard_normal((3, 3, 3))
    x = 1e6 + numbers.standard_normal((8, 9, 10))
    write_volume(str(tmp_path / "x.npy"), Volume(x, "zyx"))
    write_volume(str(tmp_path / "t.npy"), Volume(template, "zyx"))
    line = [
        "match",
        tmp_path / "x.npy",
        "-k",
        tmp_path / "t.npy",
        "-o",
        tmp_path / "o.npy",
        "--overwrite",
    ]
    told = run(*line)
    assert "around 720 voxels the volume varies by less than 2e-05 of its mean" in told.stderr
    assert "--precision float64" in told.stderr
    assert not np.load(tmp_path / "o.npy").any()
    assert "varies" not in run(*line, "--precision", "float64", "--verify", 30).stderr
    want = score(x, template, np.ones(template.shape, bool))
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), want, atol=1e-6)


# --------------------------------------------------------------------------------------------------
# Peaks


def peaks(x: Array, threshold: float, reach: tuple[float, float, float]) -> list[Any]:
    found = PlanePeaks(PeakRules(threshold, reach))
    for plane in x:
        found.add(plane)
    found.end()
    return found.peaks()


def plain_peaks(x: Array, threshold: float, reach: tuple[float, float, float]) -> list[Any]:
    """By the rule, voxel by voxel."""
    candidates = []
    for place in np.ndindex(*x.shape):
        around = tuple(slice(max(p - 1, 0), p + 2) for p in place)
        equal = [
            tuple(np.add(at, [s.start for s in around]))
            for at in np.argwhere(x[around] == x[place])
        ]
        if x[place] >= threshold and x[place] == x[around].max() and min(equal) == place:
            candidates.append((float(x[place]), place))
    found: list[Any] = []
    for value, place in sorted(candidates, key=lambda item: (-item[0], item[1])):
        if all(
            sum(((a - b) / r) ** 2 for a, b, r in zip(place, other, reach, strict=True)) >= 1
            for _, other in found
        ):
            found.append((value, place))
    return found


@pytest.mark.parametrize("reach", [(1.0, 1.0, 1.0), (1.5, 3.0, 6.5), (4.0, 0.5, 2.0)])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_peaks_are_local_maxima_the_highest_first(reach: Any, levels: int) -> None:
    """With few levels most neighbours are equal."""
    for shape in ((6, 7, 9), (1, 9, 9), (5, 1, 1)):
        x = numbers.integers(0, levels, shape).astype(np.float32) / levels
        assert peaks(x, 0.4, reach) == plain_peaks(x, 0.4, reach)


def test_nan_is_no_peak_and_hides_none() -> None:
    x = np.zeros((3, 3, 5))
    x[1, 1, 1], x[1, 1, 2] = 0.9, np.nan
    assert peaks(x, 0.5, (1, 1, 1)) == [(0.9, (1, 1, 1))]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Three copies of a template in noise, the third one weaker and beside the second."""
    template = numbers.standard_normal((5, 5, 5)).astype(np.float32)
    x = 0.1 * numbers.standard_normal((20, 24, 30))
    for (d, h, w), scale in (((5, 6, 7), 1.0), ((12, 15, 20), 0.7)):
        x[d - 2 : d + 3, h - 2 : h + 3, w - 2 : w + 3] += scale * template
    affine = np.array([[-1.0, 0, 0, 10], [0, 1.5, 0, -5], [0, 0, 2.0, 3], [0, 0, 0, 1]])
    grid = Grid((2.0, 1.5, 1.0), "mm", affine)
    write_volume(str(tmp_path / "x.nii"), Volume(x.astype(np.float32), "zyx", grid))
    write_volume(str(tmp_path / "t.nii"), Volume(template, "zyx", Grid((2.0, 1.5, 1.0), "mm")))
    return tmp_path


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_the_table_has_voxels_and_places_in_the_world(planted: Path, run: Any) -> None:
    out, listed = planted / "o.nii", planted / "p.tsv"
    run("match", planted / "x.nii", "-k", planted / "t.nii", "-o", out, "--peaks", listed)
    rows = table(listed)
    assert rows[0] == ["rank", "score", "d", "h", "w", "x_mm", "y_mm", "z_mm"]
    assert [row[2:5] for row in rows[1:]] == [["5", "6", "7"], ["12", "15", "20"]]
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    assert rows[1][5:] == ["3", "4", "13"]
    scores = read_volume(str(out)).data
    assert float(rows[2][1]) == pytest.approx(float(scores[12, 15, 20]), abs=1e-7)
    for slabs in ("1", "2"):
        run("match", planted / "x.nii", "-k", planted / "t.nii", "-o", planted / "again.nii", "--peaks",
            planted / "again.tsv", "--overwrite", "--threads", slabs)  # fmt: skip
        assert (planted / "again.tsv").read_bytes() == listed.read_bytes()


def test_a_distance_in_mm_leaves_out_the_lower_one(planted: Path, run: Any) -> None:
    line = [
        "match",
        planted / "x.nii",
        "-k",
        planted / "t.nii",
        "-o",
        planted / "o.nii",
        "--overwrite",
    ]
    apart = float(np.linalg.norm(np.array([7 * 2.0, 9 * 1.5, 13 * 1.0])))  # of the two places
    for length, count in ((apart - 0.1, 2), (apart + 0.1, 1)):
        run(*line, "--peaks", planted / "p.tsv", "--min-distance", f"{length}mm")
        assert len(table(planted / "p.tsv")) == 1 + count


def test_a_series_has_the_peaks_of_each_volume(planted: Path, run: Any) -> None:
    x = read_volume(str(planted / "x.nii"))
    write_volume(
        str(planted / "s.npy"), Volume(np.stack([x.data, x.data * 0, x.data[:, ::-1]]), "tzyx")
    )
    np.save(planted / "t.npy", read_volume(str(planted / "t.nii")).data)
    run("match", planted / "s.npy", "--axes", "tzyx", "-k", planted / "t.npy", "-o", planted / "o.npy",
        "--peaks", planted / "p.tsv", "--threshold", "0.9")  # fmt: skip
    rows = table(planted / "p.tsv")
    assert rows[0] == ["rank", "score", "volume", "d", "h", "w"]
    assert [(row[0], row[2]) for row in rows[1:]] == [("1", "0"), ("2", "0")]


def test_neither_output_appears_without_the_other(planted: Path, run: Any, error_line: Any) -> None:
    out, listed = planted / "o.nii", planted / "p.tsv"
    line = ["match", planted / "x.nii", "-k", planted / "t.nii", "-o", out]
    listed.write_text("mine")
    result = run(*line, "--peaks", listed, code=5)
    assert "p.tsv: file exists; pass --overwrite" in error_line(result.stderr)
    assert not out.exists()
    assert listed.read_text() == "mine"
    result = run(*line, "--peaks", planted / "p.csv", code=2)
    assert "ends in .tsv" in error_line(result.stderr)
    result = run(*line, "--peaks", "-", code=2)
    assert "ends in .tsv" in error_line(result.stderr)
    result = run(
        "apply",
        planted / "x.nii",
        "-k",
        "box:size=3",
        "-o",
        out,
        "--peaks",
        planted / "q.tsv",
        code=2,
    )
    assert "which only conv3d match computes" in error_line(result.stderr)
    assert not out.exists()


def test_rules_for_make_and_resume_know_the_table(planted: Path, run: Any) -> None:
    out, listed = planted / "o.nii", planted / "p.tsv"
    line = ["match", planted / "x.nii", "-k", planted / "t.nii", "-o", out, "--peaks", listed,
            "--resume"]  # fmt: skip
    run(*line, "--depfile", planted / "o.d")
    assert (planted / "o.d").read_text().startswith(f"{out} {listed}:")
    made, before = out.stat().st_mtime_ns, listed.read_bytes()
    run(*line)
    assert out.stat().st_mtime_ns == made
    listed.unlink()
    run(*line, "--overwrite")
    assert listed.read_bytes() == before
    run(*line, "--threshold", "0.4", code=5)  # another table


def test_a_record_repeats_the_table(planted: Path, run: Any) -> None:
    out, listed = planted / "o.nii", planted / "p.tsv"
    run(
        "match",
        planted / "x.nii",
        "-k",
        planted / "t.nii",
        "-o",
        out,
        "--peaks",
        listed,
        "--sidecar",
    )
    assert "every byte" in run("rerun", planted / "o.json").output
    told = (planted / "o.json").read_text()
    listed.write_text("changed")
    assert '"Role": "peaks"' in told


REFUSED: list[tuple[str, Array, list[str], str]] = [
    ("constant", np.full((3, 3, 3), 0.25), [], "is 0.25 everywhere"),
    ("large", numbers.random((3, 40, 3)), [], "larger than the volume of 20x24x30 along height"),
    ("all ignored", np.zeros((3, 3, 3)), ["--ignore", "0"], "are 0, which --ignore 0"),
    (
        "one voxel left",
        np.eye(3)[None] * 0 + np.array([[[0, 2, 0]]]),
        ["--ignore", "0"],
        "is 2 wherever it counts",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case[0])
def test_a_template_that_matches_nothing_is_refused(
    case: Any, planted: Path, run: Any, error_line: Any
) -> None:
    _, template, options, words = case
    np.save(planted / "k.npy", template)
    line = ["match", planted / "x.nii", "-k", planted / "k.npy", "-o", planted / "o.nii", *options]
    result = run(*line, "--peaks", planted / "p.tsv", code=None)
    assert result.exit_code
    assert words in error_line(result.stderr)
    assert not (planted / "o.nii").exists()
    assert not (planted / "p.tsv").exists()


def test_options_of_a_table_without_one_are_told(planted: Path, run: Any) -> None:
    line = ["match", planted / "x.nii", "-k", planted / "t.nii", "-o", planted / "o.nii"]
    told = run(*line, "--threshold", "0.3", "--min-distance", "4mm")
    assert "--threshold has no effect: it is for the table that --peaks writes" in told.stderr
    assert "--min-distance has no effect" in told.stderr
