"""Kernels by a formula: against NumPy, against the built-in kernels, and what a formula may not
hold.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from conv3d_cli import read_volume
from conv3d_cli.errors import Conv3DError, ShapeError, SpecError
from conv3d_cli.kernels import expressions, read_kernel
from conv3d_cli.kernels.expressions import FUNCTIONS, MAX_TEXT, expr, parse_formula
from conv3d_cli.kernels.lengths import MAX_WEIGHTS
from conv3d_cli.model.grid import Grid

GRID = Grid((3.0, 1.5, 1.0), "mm")


def places(spacing: tuple[float, float, float], reach: tuple[int, int, int]) -> list[np.ndarray]:
    axes = [np.arange(-n, n + 1) * s for n, s in zip(reach, spacing, strict=True)]
    return np.meshgrid(*axes, indexing="ij")


# --------------------------------------------------------------------------------------------------
# Values


def test_a_gaussian_in_mm() -> None:
    kernel = read_kernel('expr:"exp(-r**2/36)":radius=9mm', GRID)
    d, h, w = places((3.0, 1.5, 1.0), (3, 6, 9))
    squares = d**2 + h**2 + w**2
    expected = np.where(squares <= 81 * (1 + 1e-6), np.exp(-squares / 36), 0)
    assert kernel.size == (7, 13, 19)
    np.testing.assert_allclose(kernel.weights, expected, rtol=1e-14)
    assert kernel.weights[3, 6, 9] == 1
    assert kernel.symmetries() == (True, True, True)
    assert np.array_equal(kernel.weights, kernel.weights[::-1, ::-1, ::-1])


def test_the_unit_is_that_of_the_radius() -> None:
    in_cm = read_kernel('expr:"exp(-r**2/0.36)":radius=0.9cm', GRID)
    in_mm = read_kernel('expr:"exp(-r**2/36)":radius=9mm', GRID)
    np.testing.assert_allclose(in_cm.weights, in_mm.weights, rtol=1e-12)
    assert read_kernel('expr:"d + 10*h + 100*w":radius=1vox', GRID).weights[:, 1, 1].tolist() == [
        -1,
        0,
        1,
    ]
    with pytest.raises(ShapeError, match="radius=9mm needs a voxel spacing"):
        read_kernel('expr:"exp(-r)":radius=9mm')


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (
            'expr:"exp(-(d**2/2**2 + h**2/1.5**2 + w**2)/2)":radius=8,6,4vox:shape=box',
            "gaussian:sigma=2,1.5,1vox",
        ),
        ("expr:1:radius=4.5,3,2.5mm", "ball:radius=4.5,3,2.5mm"),
        ("expr:1:radius=0,3,2.9mm:shape=box", "box:size=1,5,5"),
    ],
)
def test_it_is_what_built_in_kernels_are(ours: str, builtin: str) -> None:
    kernel, expected = read_kernel(ours, GRID).normalized(), read_kernel(builtin, GRID)
    assert kernel.size == expected.size
    np.testing.assert_allclose(kernel.weights, expected.weights, rtol=1e-12, atol=1e-18)


def test_axes_go_by_both_names() -> None:
    assert np.array_equal(
        expr("d - 2*h + 3*w", radius=2).weights, expr("z - 2*y + 3*x", radius=2).weights
    )


def test_a_sheared_grid_measures_true_distances() -> None:
    """Steps along i that lean: what is within the radius, and how far, is told by the affine."""
    steps = np.array([[1.0, 0.0, 0.4], [0.0, 1.0, 0.2], [0.0, 0.0, 2.0]])  # of i, j, k, in columns
    affine = np.eye(4)
    affine[:3, :3] = steps
    grid = Grid((float(np.linalg.norm(steps[:, 2])), 1.0, 1.0), "mm", affine)
    kernel = read_kernel("expr:4-r:radius=3.5mm", grid)
    reach = [(k - 1) // 2 for k in kernel.size]
    d, h, w = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    r = np.linalg.norm(np.einsum("ab,bdhw->adhw", steps, np.stack([w, h, d])), axis=0)
    np.testing.assert_allclose(
        kernel.weights, np.where(r <= 3.5 * (1 + 1e-6), 4 - r, 0), atol=1e-12
    )
    wide = np.meshgrid(*(np.arange(-n - 1, n + 2) for n in reach), indexing="ij")
    beyond = np.linalg.norm(np.einsum("ab,bdhw->adhw", steps, np.stack(wide[::-1])), axis=0)
    beyond[1:-1, 1:-1, 1:-1] = np.inf
    assert beyond.min() > 3.5  # nothing within the radius is left out
    assert np.array_equal(kernel.weights, kernel.weights[::-1, ::-1, ::-1])


def test_slabs_of_a_large_kernel_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = expr("sinc(r/3) * (d > -2)", radius=(7, 5, 6)).weights
    monkeypatch.setattr(expressions, "_SLAB_WEIGHTS", 300)
    assert np.array_equal(expr("sinc(r/3) * (d > -2)", radius=(7, 5, 6)).weights, whole)


NUMPY = {
    "abs": np.abs,
    "cos": np.cos,
    "exp": np.exp,
    "floor": np.floor,
    "log": np.log,
    "max": np.maximum,
    "min": np.minimum,
    "sign": np.sign,
    "sin": np.sin,
    "sinc": np.sinc,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
    "where": np.where,
    "pi": np.float64(np.pi),
    "e": np.float64(np.e),
    "number": np.float64,
}
LEAVES = st.sampled_from(["d", "h", "w", "r", "pi", "e", "2", "0.5", "1e3", ".25"])


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    one = st.builds(
        "{}({})".format,
        st.sampled_from([name for name, (n, _) in FUNCTIONS.items() if n == 1]),
        inner,
    )
    two = st.builds(
        "({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "%", "**"]), inner
    )
    truth = st.builds("(1.0 * ({} {} {}))".format, inner, st.sampled_from(["<", ">=", "=="]), inner)
    least = st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), inner, inner)
    return st.one_of(one, two, truth, least, st.builds("-{}".format, inner))


@given(text=st.recursive(LEAVES, _larger, max_leaves=8))
@settings(max_examples=examples(200))
def test_formulas_are_what_numpy_computes(text: str) -> None:
    rng = np.random.default_rng(0)
    names = {name: rng.normal(size=20) for name in "dhwr"}
    with np.errstate(all="ignore"):
        # Python's own raise OverflowError
        numbers = re.sub(r"(?<![\w.])(\d[\d.]*(?:e\d+)?|\.\d+)", r"number(\1)", text)
        expected = np.asarray(eval(numbers, {"__builtins__": {}}, {**NUMPY, **names}), np.float64)
    received = np.asarray(parse_formula(text)(names), np.float64)
    np.testing.assert_allclose(
        np.broadcast_to(received, 20), np.broadcast_to(expected, 20), rtol=1e-12
    )


def test_conditions() -> None:
    names = {name: np.array([-2.0, 0.0, 2.0]) for name in "dhwr"}
    for text, expected in {
        "where(r > 0, 1, -1)": [-1, -1, 1],
        "-1 < d < 1": [0, 1, 0],
        "d and not h": [0, 0, 0],
        "d < 0 or d > 1": [1, 0, 1],
        "(d == 0) + (d != 2)": [1, 2, 0],
        "max(d, 0, 1)": [1, 1, 2],
        "where(d, 5, 6)": [5, 6, 5],
    }.items():
        assert np.broadcast_to(parse_formula(text)(names), 3).tolist() == expected, text


# --------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("__import__('os').system('x')", "contains the attribute .system; allowed are numbers"),
        ("r.real", "contains the attribute .real"),
        ("exp", "contains the name exp"),
        ("radius", "contains the name radius; allowed are"),
        ("sqr(r)", r"contains the function sqr\(\) \(did you mean 'sqrt'\?\)"),
        ("r^2", r"contains \^ \(write a power as \*\*\)"),
        ("exp('abc')", "contains the text 'abc'"),
        ("2j", "contains 2j, which is not a real number"),
        ("True", "contains True, which"),
        ("d // 2", "the operator FloorDiv"),
        ("d @ h", "the operator MatMult"),
        ("~d", "the operator Invert"),
        ("d is h", "the comparison Is"),
        ("[r][0]", "the Python construct Subscript"),
        ("(r := 2)", "the Python construct NamedExpr"),
        ("lambda: 1", "the Python construct Lambda"),
        ("{d for d in h}", "the Python construct SetComp"),
        ("exp(x=1)", "a call that is not of the form"),
        ("exp(*d)", "the Python construct Starred"),
        ("exp(r)(r)", "a call that is not of the form"),
        ("exp(d, h)", r"exp\(\) takes 1, received 2"),
        ("max(d)", r"max\(\) takes two or more, received 1"),
        ("1e999", "a number beyond float64"),
        ("9" * 400, "a number beyond float64"),
        ("import os", "not a formula: import os"),
        ("exp(-r", "never closed"),
        ("", "not a formula"),
        ("d; h", "not a formula"),
        ("1if d else 2", "not a formula|contains the Python construct IfExp"),
        ("d\x1b[2J", "one line without control characters"),
        ("(d +\n h)", "one line without control characters"),
        ("+" * (MAX_TEXT + 1) + "1", "at most 1000 characters"),
        ("-" * 900 + "1", "nested"),
        ("(" * 400 + "1" + ")" * 400, "nested|not a formula"),
        ("+".join(["1"] * 400), "nested more than"),
    ],
)
def test_what_is_no_formula(formula: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        expr(formula, radius=1)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "formula",
    ["9**9**9**9", "10.0**400", "(-8)**0.5", "1/r", "log(r)", "sin(r)/r", "0/0", "exp(900 - r)"],
)
def test_no_value_at_a_place(formula: str) -> None:
    begin = time.thread_time()
    with pytest.raises(
        SpecError, match=r"is (-?inf|nan) at d=-?\d+, h=-?\d+, w=-?\d+ vox; give it a value there"
    ):
        expr(formula, radius=2)
    assert time.thread_time() - begin < 1  # no number of a million digits was made


def test_values_outside_the_radius_do_not_matter() -> None:
    assert np.isfinite(expr("sqrt(4 - r**2)", radius=2).weights).all()
    with pytest.raises(SpecError, match="is nan at d=-2, h=-2"):
        expr("sqrt(4 - r**2)", radius=2, shape="box")


def test_radius_and_size() -> None:
    for text, says in {
        'expr:"exp(-r)":radius=2': "needs a unit",
        'expr:"exp(-r)"': "expr needs radius=LENGTH",
        "expr:radius=2vox": (
            'expr needs formula="FORMULA", as in expr:formula="exp[(]-r[)]":radius=2vox'
        ),
        'expr:"exp(-r)":radius=2m': "more than 100,000,000; give a smaller radius",
        'expr:"exp(-r)":radius=2e9m': "voxels to each side",
        'expr:"exp(-r)":radius=2vox:shape=cube': "shape is ball or box",
        'expr:"exp(-r):radius=2vox': 'a quote " is not closed',
        'expr:"r > 9":radius=2vox': "is 0 everywhere within the radius",
    }.items():
        with pytest.raises(Conv3DError, match=says):
            read_kernel(text, GRID)
    assert MAX_WEIGHTS == 100_000_000


# --------------------------------------------------------------------------------------------------
# From the command line


def test_a_real_scan_by_a_formula_and_by_the_built_in_gaussian(
    scan: Path, tmp_path: Path, run: Any
) -> None:
    """As far as truncate=4 goes, in a box, a formula is the Gaussian.

    So it is out of either kind of config.
    """
    formula = 'expr:"exp(-(d**2/2.2**2 + h**2/2**2 + w**2/2**2)/2)":radius=8.8,8,8mm:shape=box'
    (tmp_path / "a.toml").write_text(f"kernel = '{formula}'\nnormalize = true\n")
    (tmp_path / "b.json").write_text(json.dumps({"kernel": formula, "normalize": True}))
    outputs = {}
    for name, words in {
        "built": ["-k", "gaussian:sigma=2.2,2,2mm"],
        "formula": ["-k", formula, "--normalize"],
        "toml": ["-c", tmp_path / "a.toml"],
        "json": ["-c", tmp_path / "b.json"],
    }.items():
        run("apply", scan, *words, "-q", "-o", tmp_path / f"{name}.nii")
        outputs[name] = read_volume(str(tmp_path / f"{name}.nii")).data
    np.testing.assert_allclose(
        outputs["formula"], outputs["built"], rtol=0, atol=2e-6 * outputs["built"].max()
    )
    assert np.array_equal(outputs["formula"], outputs["toml"])
    assert np.array_equal(outputs["formula"], outputs["json"])


def test_quotes_survive_a_shell(tmp_path: Path) -> None:
    """With quotes around all of it, and with those that the shell takes away."""
    made = []
    for number, word in enumerate(
        ["""'expr:"exp(-r**2/2)":radius=2vox'""", 'expr:"exp(-r**2/2)":radius=2vox']
    ):
        path = tmp_path / f"{number}.npy"
        command = f"{sys.executable} -m conv3d_cli kernel make {word} -o {path}"
        subprocess.run(["sh", "-c", command], check=True)
        made.append(np.load(path))
    assert made[0].shape == (5, 5, 5)
    assert np.array_equal(made[0], made[1])


def test_a_wrong_formula_is_a_wrong_word(scan: Path, tmp_path: Path, run: Any) -> None:
    done = run("apply", scan, "-k", 'expr:"open(r)":radius=3mm', "-o", tmp_path / "o.nii", code=2)
    assert "contains the function open()" in done.output
    assert not (tmp_path / "o.nii").exists()
