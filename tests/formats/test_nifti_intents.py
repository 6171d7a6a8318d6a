"""What a NIfTI's values mean, by its intent, is true of copies and not of filtered values.

nibabel sets and reads the intents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

INTENTS = {
    "t test": ((17.0,), "a t test"),
    "f test": ((2.0, 30.0), "an F test"),
    "z score": ((), "a z score"),
    "correlation": ((40.0,), "a correlation"),
    "p value": ((), "p-values"),
    "label": ((), "labels"),
    "neuroname": ((), "names of neuroanatomy"),
}
PARAMETERS = ("intent_p1", "intent_p2", "intent_p3")


def map_of(path: Path, intent: str, parameters: tuple[float, ...] = ()) -> Path:
    data = np.random.default_rng(0).integers(1, 40, (6, 5, 4)).astype("i2")
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_intent(intent, parameters, "the name")
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("kernel", ["gaussian:fwhm=2vox", "sobel:axis=x"])
def test_filtered_values_lose_a_statistics_intent(
    tmp_path: Path, kernel: str, dtype: str, intent: str, run: Any
) -> None:
    parameters, words = INTENTS[intent]
    source = map_of(tmp_path / "v.nii", intent, parameters)
    result = run("apply", source, "-k", kernel, "--dtype", dtype, "--strict",
                 "-o", tmp_path / "o.nii")  # fmt: skip
    assert f"the input's voxels are {words} by its header" in " ".join(result.stderr.split())
    header = nibabel.load(tmp_path / "o.nii").header
    assert header.get_intent() == ("none", (), "")
    assert not any(header[name] for name in PARAMETERS)


@pytest.mark.parametrize("intent", INTENTS)
@pytest.mark.parametrize("options", [[], ["--dtype", "int16"], ["--strides", "2"]])
def test_a_copy_keeps_it(tmp_path: Path, options: list[str], intent: str, run: Any) -> None:
    source = map_of(tmp_path / "v.nii", intent, INTENTS[intent][0])
    result = run("apply", source, "-k", "identity", *options, "-o", tmp_path / "o.nii")
    assert "intent" not in result.stderr
    before, after = (nibabel.load(tmp_path / name).header for name in ("v.nii", "o.nii"))
    assert before.get_intent() == after.get_intent()


@pytest.mark.parametrize("intent", ["none", "estimate", "dimensionless", "time series"])
def test_other_intents_stay(tmp_path: Path, intent: str, run: Any) -> None:
    source = map_of(tmp_path / "v.nii", intent)
    result = run("apply", source, "-k", "gaussian:fwhm=2vox", "-o", tmp_path / "o.nii")
    assert "intent" not in result.stderr
    assert nibabel.load(tmp_path / "o.nii").header.get_intent() == (intent, (), "the name")


def test_a_coverage_beside_a_t_map_is_no_t_map(tmp_path: Path, run: Any) -> None:
    source = map_of(tmp_path / "v.nii", "t test", (17.0,))
    run("apply", source, "-k", "gaussian:fwhm=2vox", "--boundary", "renormalize",
        "--coverage-out", tmp_path / "c.nii", "-o", tmp_path / "o.nii")  # fmt: skip
    assert nibabel.load(tmp_path / "c.nii").header.get_intent()[0] == "none"


@pytest.mark.parametrize(
    ("intent", "parameters", "channels", "words"),
    [
        ("symmetric matrix", (3,), 6, "symmetric matrices"),
        ("general matrix", (2, 3), 6, "matrices"),
        ("displacement vector", (), 3, "displacements"),
        ("quaternion", (), 4, "quaternions"),
    ],
)
def test_some_or_others_of_a_tuple_lose_its_intent(
    tmp_path: Path,
    intent: str,
    parameters: tuple[float, ...],
    channels: int,
    words: str,
    run: Any,
    rng: np.random.Generator,
) -> None:
    voxels = rng.random((5, 6, 7, 1, channels), np.float32)
    image = nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1]))
    image.header.set_intent(intent, parameters, "the name")
    nibabel.save(image, tmp_path / "v.nii")
    np.save(tmp_path / "w.npy", rng.random((3, 3, 3, channels, channels), np.float32))
    note = f"the input's voxels are {words} by its header (intent_code), and those of the output"

    def written(*arguments: Any, noted: bool) -> tuple[str, tuple[float, ...], str]:
        result = run(*arguments, "--overwrite")
        assert (note in " ".join(result.output.split())) == noted, result.output
        found: tuple[str, tuple[float, ...], str] = nibabel.load(
            tmp_path / "o.nii"
        ).header.get_intent()
        return found

    source, target = tmp_path / "v.nii", tmp_path / "o.nii"
    box = ("apply", source, "-k", "box:size=3", "-o", target)
    vectors = ("vector", (), "")
    kept = (intent, parameters, "the name")
    assert written(*box, noted=False) == kept  # a mean of displacements is a displacement
    assert written(*box, "--channels", "0,1", noted=True) == vectors
    assert written("convert", source, target, "--channels", "1,0", noted=True) == vectors
    every = ",".join(map(str, range(channels)))
    assert written("convert", source, target, "--channels", every, noted=False) == kept
    layer = ("apply", source, "-k", tmp_path / "w.npy", "-o", target)
    assert written(*layer, noted=True) == vectors
