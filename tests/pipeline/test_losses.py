"""A copy changes no bit, and what arithmetic or an output's dtype loses is told.

nibabel and NumPy write the inputs and read the outputs: the right value is the input itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

ATLAS = np.resize(np.array([614454277, 614454303, 16777217, 0]), (5, 4, 3))  # the Allen atlas's ids


def nifti(path: Path, data: np.ndarray) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(data.dtype)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4), header), path)
    return path


def voxels(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.asarray(nibabel.load(path).dataobj)


def told(result: Any) -> str:
    return " ".join(result.stderr.split())


class TestCopies:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".npy"])
    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
    @pytest.mark.parametrize("kernel", ["identity", "gaussian:fwhm=0vox", "box:size=1"])
    def test_a_copy_has_the_bits_of_its_input(
        self, tmp_path: Path, kernel: str, dtype: str, suffix: str, run: Any
    ) -> None:
        kind = np.dtype(dtype)
        data = np.random.default_rng(0).integers(0, 256, 60 * kind.itemsize, np.uint8).view(kind)
        data = np.nan_to_num(data.reshape(5, 4, 3)) if kind.kind == "f" else data.reshape(5, 4, 3)
        source = tmp_path / f"v{suffix}"
        nifti(source, data) if suffix != ".npy" else np.save(source, data)
        for options in ([], ["--dtype", kind.name]):
            out = tmp_path / f"o{suffix}"
            result = run(
                "apply", source, "-k", kernel, *options, "--strict", "--overwrite", "-o", out
            )
            np.testing.assert_array_equal(voxels(out), data)
            assert "note" not in result.stderr
        assert voxels(out).dtype == kind

    @pytest.mark.parametrize("dtype", ["i8", "u8"])
    def test_64_bit_integers(self, tmp_path: Path, dtype: str, run: Any) -> None:
        data = np.array([0, 1, 2**62 + 1, 2**40 + 1]).astype(dtype).reshape(1, 2, 2)
        np.save(tmp_path / "v.npy", data)
        run("apply", tmp_path / "v.npy", "-k", "identity", "--dtype", np.dtype(dtype).name,
            "-o", tmp_path / "o.npy")  # fmt: skip
        np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), data)
        result = run("apply", tmp_path / "v.npy", "-k", "identity", "-o", tmp_path / "p.npy")
        assert f"integers up to {2**62 + 1}" in told(result)
        assert f"--dtype {np.dtype(dtype).name} keeps them" in told(result)

    def test_nan_and_infinity_are_copied(self, tmp_path: Path, run: Any) -> None:
        data = np.float32([[[np.nan, np.inf], [-np.inf, -0.0]]])
        np.save(tmp_path / "v.npy", data)
        run("apply", tmp_path / "v.npy", "-k", "identity", "--strict", "-o", tmp_path / "o.npy")
        assert np.load(tmp_path / "o.npy").tobytes() == data.tobytes()

    @pytest.mark.parametrize("ceiling", [None, "250M"])
    def test_strides_pick_voxels(self, tmp_path: Path, ceiling: str | None, run: Any) -> None:
        nifti(tmp_path / "v.nii", ATLAS.astype("u4"))
        limit = [] if ceiling is None else ["--max-memory", ceiling]
        run("apply", tmp_path / "v.nii", "-k", "identity", "--strides", "2", *limit,
            "-o", tmp_path / "o.nii")  # fmt: skip
        np.testing.assert_array_equal(voxels(tmp_path / "o.nii"), ATLAS[::2, ::2, ::2])

    def test_channels_and_time_points(self, tmp_path: Path, run: Any) -> None:
        data = np.random.default_rng(1).integers(0, 2**31, (2, 3, 4, 5, 3)).astype("i4")
        np.save(tmp_path / "v.npy", data)
        run("apply", tmp_path / "v.npy", "-k", "identity", "-o", tmp_path / "o.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), data)

    @pytest.mark.parametrize(
        ("values", "target"),
        [
            ([0.5, 1.5, 2.5, -0.4, 255.5, 300, -7], "uint8"),
            ([-(2.0**63), 2.0**63, 1e300, np.nan, 0.5, 3], "int64"),
            ([2**32, 2**31, -(2**31) - 1, 5], "int32"),
            ([2**64 - 1, 2**63, 5], "int64"),
        ],
    )
    def test_what_an_integer_cannot_hold_is_clipped_and_counted(
        self, tmp_path: Path, values: list[float], target: str, run: Any
    ) -> None:
        data = np.array(values)
        np.save(tmp_path / "v.npy", data.reshape(1, 1, -1))
        result = run("apply", tmp_path / "v.npy", "-k", "identity", "--dtype", target,
                     "-o", tmp_path / "o.npy")  # fmt: skip
        limits = np.iinfo(target)
        exact = [0 if v != v else round(v) for v in data.tolist()]  # Python's round: half to even
        expected = [min(max(v, limits.min), limits.max) for v in exact]
        np.testing.assert_array_equal(
            np.load(tmp_path / "o.npy").ravel(), np.array(expected, target)
        )
        lost = sum(a != b for a, b in zip(exact, expected, strict=True)) + int(np.isnan(data).sum())
        assert f"{lost} voxel" in told(result)

    def test_a_slope_is_applied_in_float64(self, tmp_path: Path, run: Any) -> None:
        """nibabel's values of the same file."""
        image = nibabel.Nifti1Image(ATLAS.astype("i4"), np.eye(4))
        image.header.set_slope_inter(0.5, 3)
        nibabel.save(image, tmp_path / "v.nii")
        run("apply", tmp_path / "v.nii", "-k", "identity", "-o", tmp_path / "o.nii")
        np.testing.assert_array_equal(
            nibabel.load(tmp_path / "o.nii").get_fdata(),
            nibabel.load(tmp_path / "v.nii").get_fdata(),
        )


class TestRoundedIntegers:
    @pytest.mark.parametrize("dtype", ["u4", "i4", "i8"])
    def test_larger_ones_than_float32_holds(self, tmp_path: Path, dtype: str, run: Any) -> None:
        source = nifti(tmp_path / "v.nii", ATLAS.astype(dtype))
        arguments = ["apply", source, "-k", "box:size=3", "-o", tmp_path / "o.nii"]
        words = "integers up to 614454303, and float32 holds each of them only up to 16777216"
        result = run(*arguments, "--strict", code=4)
        assert words in told(result)
        assert not (tmp_path / "o.nii").exists()
        assert words in told(run(*arguments))
        result = run(*arguments, "--precision", "float64", "--overwrite", "--strict")
        assert "note" not in result.stderr

    def test_negative_ones(self, tmp_path: Path, run: Any) -> None:
        source = nifti(tmp_path / "v.nii", -ATLAS.astype("i4"))
        assert "up to 614454303" in told(
            run("apply", source, "-k", "box:size=3", "-o", tmp_path / "o.nii")
        )

    def test_smaller_ones_need_no_word(self, tmp_path: Path, run: Any) -> None:
        source = nifti(tmp_path / "v.nii", np.full((5, 4, 3), 2**24, "i4"))
        result = run("apply", source, "-k", "box:size=3", "--strict", "-o", tmp_path / "o.nii")
        assert "note" not in result.stderr

    def test_a_copy_into_float32(self, tmp_path: Path, run: Any) -> None:
        source = nifti(tmp_path / "v.nii", ATLAS.astype("u4"))
        arguments = ["apply", source, "-k", "identity", "--dtype", "float32"]
        result = run(*arguments, "--strict", "-o", tmp_path / "o.nii", code=4)
        assert "--dtype uint32 keeps them" in told(result)


class TestOverflow:
    @pytest.mark.parametrize(
        ("data", "options"),
        [
            (np.full((3, 4, 5), 1e300), []),  # float64 read in float32
            (np.full((3, 4, 5), 3e38, "f4"), []),
            (np.full((3, 4, 5), 100, "u1"), ["--activation", "exponential"]),
        ],
    )
    def test_finite_input_that_becomes_infinite(
        self, tmp_path: Path, data: np.ndarray, options: list[str], run: Any
    ) -> None:
        np.save(tmp_path / "v.npy", data)
        np.save(tmp_path / "k.npy", np.ones((3, 3, 3)))
        arguments = ["apply", tmp_path / "v.npy", "-k", tmp_path / "k.npy", *options,
                     "-o", tmp_path / "o.npy"]  # fmt: skip
        result = run(*arguments, "--strict", code=4)
        assert "became infinite or NaN, though the input is finite" in told(result)
        result = run(*arguments)
        count = int((~np.isfinite(np.load(tmp_path / "o.npy"))).sum())
        assert count
        assert f"{count} voxels became infinite or NaN" in told(result)

    def test_a_copy_of_a_large_float64_into_float32(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "v.npy", np.array([[[1e300, 1.0]]]))
        result = run("apply", tmp_path / "v.npy", "-k", "identity", "--dtype", "float32",
                     "-o", tmp_path / "o.npy")  # fmt: skip
        assert "1 voxel became infinite or NaN" in told(result)

    def test_infinite_input_is_no_loss(self, tmp_path: Path, run: Any) -> None:
        data = np.ones((3, 4, 5), "f4")
        data[1, 1, 1], data[2, 3, 4] = np.inf, np.nan
        np.save(tmp_path / "v.npy", data)
        result = run("apply", tmp_path / "v.npy", "-k", "box:size=3", "--strict",
                     "-o", tmp_path / "o.npy")  # fmt: skip
        assert "infinite" not in result.stderr

    def test_missing_voxels_are_no_loss(self, tmp_path: Path, run: Any) -> None:
        data = np.full((9, 9, 9), -1, "f4")
        data[0] = 1
        np.save(tmp_path / "v.npy", data)
        result = run("apply", tmp_path / "v.npy", "-k", "box:size=3", "--missing", "-1",
                     "-o", tmp_path / "o.npy")  # fmt: skip
        assert np.isnan(np.load(tmp_path / "o.npy")).any()
        assert "infinite" not in result.stderr


class TestOutputsOfZeroAlone:
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32"])
    @pytest.mark.parametrize("kernel", ["identity", "gaussian:fwhm=2vox", "sobel:axis=x"])
    def test_results_that_all_round_to_0(
        self, tmp_path: Path, kernel: str, dtype: str, run: Any
    ) -> None:
        data = np.random.default_rng(0).uniform(0, 0.04, (9, 9, 9)).astype("f4")
        source = nifti(tmp_path / "v.nii", data)
        arguments = ["apply", source, "-k", kernel, "--dtype", dtype, "--boundary", "nearest"]
        result = run(*arguments, "--strict", "-o", tmp_path / "o.nii", code=4)
        assert f"are 0, though the input's are not: {dtype} rounds" in told(result)
        assert not (tmp_path / "o.nii").exists()
        assert "--dtype float32 keeps them" in told(run(*arguments, "-o", tmp_path / "o.nii"))
        assert not voxels(tmp_path / "o.nii").any()

    def test_a_float64_map_too_small_for_float32(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "v.npy", np.full((4, 4, 4), 1e-60))
        result = run("apply", tmp_path / "v.npy", "-k", "box:size=3", "-o", tmp_path / "o.npy")
        assert "--precision float64 --dtype float64 keeps them" in told(result)

    @pytest.mark.parametrize(
        ("fill", "kernel", "options"),
        [
            (0.0, "gaussian:fwhm=2vox", []),  # nothing was there
            (7.0, "sobel:axis=x", ["--boundary", "nearest"]),  # a constant has no gradient
            (-7.0, "box:size=3", ["--activation", "relu"]),  # cut off by request
        ],
    )
    def test_zeros_that_are_right(
        self, tmp_path: Path, fill: float, kernel: str, options: list[str], run: Any
    ) -> None:
        source = nifti(tmp_path / "v.nii", np.full((5, 5, 5), fill, "f4"))
        result = run("apply", source, "-k", kernel, "--dtype", "int16", "--strict", *options,
                     "-o", tmp_path / "o.nii")  # fmt: skip
        assert "are 0" not in result.stderr

    def test_zeros_outside_a_mask_are_right(self, tmp_path: Path, run: Any) -> None:
        data, mask = np.zeros((6, 6, 6), "f4"), np.zeros((6, 6, 6), "u1")
        data[:3], mask[4:] = 9, 1
        nifti(tmp_path / "v.nii", data)
        nifti(tmp_path / "m.nii", mask)
        result = run("apply", tmp_path / "v.nii", "-k", "identity", "--mask", tmp_path / "m.nii",
                     "--dtype", "uint8", "--strict", "-o", tmp_path / "o.nii")  # fmt: skip
        assert "are 0" not in result.stderr


def test_float64_output_of_float32_arithmetic_is_told(tmp_path: Path, run: Any) -> None:
    source = nifti(tmp_path / "v.nii", np.ones((4, 4, 4)))
    arguments = ["apply", source, "-k", "box:size=3", "--dtype", "float64"]
    result = run(*arguments, "--strict", "-o", tmp_path / "o.nii", code=4)
    assert "--precision float64 computes 15" in told(result)
    run(*arguments, "--precision", "float64", "--strict", "-o", tmp_path / "o.nii")


class TestOperations:
    """Operations other than convolutions read the volume themselves: `local`, a normalization."""

    COMMANDS = (
        ("local", "--size", "3"),
        ("deconvolve", "-k", "box:size=3", "--iterations", "2"),
        ("tensor", "--sigma", "1vox", "--window", "1vox"),
        ("apply", "-k", "box:size=3", "--normalize-input", "zscore"),
        ("apply", "-k", "box:size=3", "--normalize-input", "minmax", "--max-memory", "400M"),
    )

    @pytest.mark.parametrize("command", COMMANDS)
    def test_large_integers(self, tmp_path: Path, command: tuple[str, ...], run: Any) -> None:
        data = np.full((6, 5, 5), 2**24, np.int32)
        data[2, 2, 2] += 1
        np.save(tmp_path / "v.npy", data)
        command = (command[0], tmp_path / "v.npy", *command[1:])
        out = tmp_path / "o.npy"
        assert "integers up to 16777217" in told(run(*command, "-o", out))
        run(*command, "-o", tmp_path / "strict.npy", "--strict", code=4)
        assert not (tmp_path / "strict.npy").exists()
        exact = run(*command, "--precision", "float64", "--overwrite", "-o", out)
        assert "integers up to" not in told(exact)

    @pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[2]])
    def test_values_beyond_float32(
        self, tmp_path: Path, command: tuple[str, ...], run: Any, recwarn: Any
    ) -> None:
        data = np.ones((6, 5, 5))
        data[2, 2, 2] = -1e300
        np.save(tmp_path / "v.npy", data)
        result = run(command[0], tmp_path / "v.npy", *command[1:], "-o", tmp_path / "o.npy")
        assert "values up to 1e+300, which became infinite in float32" in told(result)
        assert not recwarn.list

    def test_infinite_input_is_no_loss(self, tmp_path: Path, run: Any) -> None:
        data = np.ones((6, 5, 5))
        data[2, 2, 2] = np.inf
        np.save(tmp_path / "v.npy", data)
        result = run("local", tmp_path / "v.npy", "--size", "3", "-o", tmp_path / "o.npy")
        assert "became infinite in" not in told(result)

    def test_small_integers_are_exact(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "v.npy", np.full((6, 5, 5), 2**24, np.int32))
        result = run("local", tmp_path / "v.npy", "--size", "3", "-o", tmp_path / "o.npy")
        assert "integers up to" not in told(result)
