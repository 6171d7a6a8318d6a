"""Usage errors are one line with what to write instead, for every command and in other tools' words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import nibabel
import numpy as np
import pytest

from conv3d_cli.cli import COMMANDS, main
from conv3d_cli.cli.apply import apply
from conv3d_cli.kernels import describe_builtins
from conv3d_cli.model.missing import NAN_MODES
from conv3d_cli.model.patches import BLENDS
from conv3d_cli.model.spec import BOUNDARIES
from conv3d_cli.pipeline.request import NORMALIZATIONS, OUTPUT_DTYPES
from conv3d_cli.settings.options import OPTION, OPTIONS
from conv3d_cli.settings.presets import PRESETS
from conv3d_cli.vocabulary import ABSENT, VALUES
from conv3d_cli.vocabulary import COMMANDS as COMMAND_WORDS
from conv3d_cli.vocabulary import OPTIONS as OPTION_WORDS

FLAGS = {flag for row in OPTIONS for flags in row.flags for flag in flags.split("/")}


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


LEAVES = list(leaves(main))


def only_line(result: Any) -> str:
    """The message of a failed command: one line, on stderr."""
    assert result.stdout == ""
    assert result.stderr.endswith("\n")
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


# ---------------------------------------------------------------------------------------------------------------------
# One line, whatever is wrong


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_an_unknown_option_of_every_command_is_one_line(path: tuple[str, ...], run: Any) -> None:
    for name in ("--xyzzy", "--xyzzy=3", "-X", "-Xy"):
        said = only_line(run(*path, name, code=2))
        typed = name.partition("=")[0][: 2 if not name.startswith("--") else None]
        assert said.startswith(f"conv3d {' '.join(path)} has no option {typed}; ")
        assert "lists them" in said


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_too_many_words_are_one_line(path: tuple[str, ...], run: Any) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    if any(p.nargs == -1 for p in arguments):
        return
    required = [
        word
        for p in command.params
        if p.required and p not in arguments
        for word in (p.opts[0], "o.npy")
    ]
    words = ["bash" if path == ("completion",) else "w"] * len(arguments)
    said = only_line(run(*path, *required, *words, "surplus", code=2))
    assert "received 'surplus'" in said
    assert "as in `conv3d " in said or "see `conv3d " in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["info"], "conv3d info needs FILE..., as in `conv3d info brain.nii.gz`"),
        (["compare", "a.npy"], "conv3d compare needs B, as in `conv3d compare a.nii.gz b.nii.gz`"),
        (["kernel", "make", "box"], "conv3d kernel make needs -o OUT, as in `conv3d kernel make "),
        (["completion"], "conv3d completion needs one of bash, zsh, fish, as in `conv3d "),
        (["completion", "tcsh"], "SHELL must be bash, zsh or fish, received 'tcsh'"),
        (["apply", "a.npy", "-o"], "-o needs a value, -o OUT; `conv3d apply --help` says which"),
        (["apply", "--flip=3"], "--flip takes no value; write --flip alone"),
        (["apply", "-j", "0"], "--threads must be a whole number from 1 to 4096, received '0'"),
        (["apply", "--gz-level", "x"], "--gz-level must be a whole number from 0 to 3, received 'x'"),
        (["apply", "--missing", "x"], "--missing must be a number, received 'x'"),
        (["apply", "--strides", "2,x"], "--strides must be a whole number of at least 1, or three as in 2,1,1 "),
        (["compare", "a", "b", "--rtol", "-1"], "--rtol must be a number of at least 0, received '-1'"),
        (["apply", "--nan", "skip"], "--nan must be propagate, ignore, zero or error, received 'skip'; write 'ignore'"),
        (["apply", "x.npy", "-o=y.npy"], "'-o=y.npy' would mean the value '=y.npy'; write -o y.npy"),
        (["apply", "x.npy", "-vj=2"], "'-vj=2' would mean the value '=2'; write -vj 2"),
        (["aply"], "conv3d has no command 'aply'; did you mean 'apply'?"),
        (["smooth", "a.npy"], "conv3d has no command 'smooth'; write conv3d apply"),
        (["compute"], "conv3d has no command 'compute'; there are apply, bench, "),
        (["a.nii.gz"], "conv3d has no command 'a.nii.gz'; write conv3d apply a.nii.gz -k KERNEL -o OUT, or "),
        (["kernel", "shw"], "conv3d kernel has no command 'shw'; did you mean 'show'?"),
        (["-k", "box"], "conv3d has no option -k; it is an option of `conv3d apply`"),
        (["kernel", "show", "--fwhm", "6mm"], "conv3d kernel show has no option --fwhm; write the kernel as gaussian:"),
        (["apply"], "no input; name volumes or folders"),
        (["help", "masks", "--search", "x"], "--search WORD and TOPIC exclude one another"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_each_kind_of_usage_error(words: list[str], said: str, run: Any) -> None:
    assert only_line(run(*words, code=2)).startswith(said)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_an_option_is_no_value_of_another_one(path: tuple[str, ...], run: Any) -> None:
    """Every option of every command that has a value, before a flag and before one with a value."""
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    options = [p for p in command.get_params(click.Context(command)) if isinstance(p, click.Option)]
    for option in options:
        if option.is_flag or option.count:
            continue
        for flag in option.opts:
            for value in ("--help", options[0].opts[-1], f"{option.opts[-1]}=3"):
                said = only_line(run(*path, flag, value, "x.npy", code=2))
                assert said.startswith(f"{flag} needs a value, {flag} ")
                assert f", and the option {value} follows; " in said


def test_the_cure_for_an_option_as_a_value(volume: Path, tmp_path: Path, run: Any) -> None:
    said = only_line(run("apply", volume, "-k", "box:size=3", "--verify", "-o", "o.npy", code=2))
    assert said == (
        "--verify needs a value, --verify N|all|off, and the option -o follows; `conv3d apply "
        "--help` says which"
    )
    said = only_line(run("apply", volume, "-k", "box:size=3", "-vo", "--overwrite", code=2))
    assert said == (
        "-o needs a value, -o OUT, and the option --overwrite follows; if --overwrite is meant as "
        "the value, write --output=--overwrite; `conv3d apply --help` says which"
    )
    said = only_line(run("apply", volume, "-k", "box:size=3", "--suffix", "-o", code=2))
    assert "; if -o is meant as the value, write --suffix=-o; " in said
    run("apply", volume, "-k", "box:size=3", "--suffix=-o", "--out-dir", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["volume-o.npy"]
    run("apply", "--", "-o", "-k", "-v", code=2)  # names, after --


# ---------------------------------------------------------------------------------------------------------------------
# Words of other tools


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["-s", "3"], "write --sigma 3mm or --sigma 3vox (fslmaths and mrfilter count in mm, scipy in voxels)"),
        (["-stdev", "3"], "write --sigma 3mm or --sigma 3vox (fslmaths and mrfilter count in mm, scipy in voxels)"),
        (["-fwhm", "6"], "write --fwhm"),
        (["--force"], "write --overwrite"),
        (["-f"], "write --overwrite"),
        (["-force"], "write --overwrite"),
        (["-overwrite"], "write --overwrite"),
        (["--mode", "nearest"], "write --boundary nearest"),
        (["--mode=edge"], "write --boundary nearest"),
        (["--edge"], "write --boundary nearest"),
        (["--pad", "2"], "write --padding 2 or --boundary nearest (how many voxels, and what they hold)"),
        (["--output-dir", "x"], "write --out-dir x"),
        (["--out_dir", "x"], "write --out-dir"),
        (["-nthreads", "4"], "write -j 4"),
        (["--nthreads", "4"], "write -j 4"),
        (["--n_jobs", "4"], "write --jobs 4 or -j 4 (volumes at a time, and threads)"),
        (["-odt", "short"], "write --dtype int16"),
        (["--stride", "2"], "write --strides 2"),
        (["--channel", "1"], "write --channels 1"),
        (["--zscore"], "write --normalize-input zscore"),
        (["--Dilation_Rate", "2"], "write --dilation-rate"),
        (["-mask", "m.nii"], "write --mask"),
        (["--overw"], "did you mean '--overwrite'?"),
        (["--boundry", "wrap"], "did you mean '--boundary'?"),
        (["--median"], "`conv3d apply --help-all` lists them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_an_option_of_another_tool(words: list[str], cure: str, volume: Path, run: Any) -> None:
    flag = words[0].partition("=")[0]
    said = only_line(run("apply", volume, "-k", "box", "-o", "o.npy", *words, code=2))
    assert said == f"conv3d apply has no option {flag}; {cure}"
    assert not Path("o.npy").exists()


def test_a_value_that_looks_like_a_word_of_another_tool_is_a_value(
    volume: Path, tmp_path: Path, run: Any
) -> None:
    run("apply", volume, "-k", "box", "--suffix", "-mask", "--out-dir", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["volume-mask.npy"]


@pytest.mark.parametrize("word", OPTION_WORDS)
def test_every_cure_is_a_line_that_apply_takes(word: str) -> None:
    """Each alternative parses, and no word of another tool is an option here."""
    assert f"--{word}" not in FLAGS
    cure = re.sub(r"\{([^}|]+)(\|\w+)?\}", r"\1", OPTION_WORDS[word].partition(" (")[0])
    for line in cure.split(" or "):
        line = re.sub(r"\bN\b", "3", line)
        context = apply.make_context("apply", ["a.npy", *line.split()])
        given = [name for name, value in context.params.items() if value and name in OPTION]
        assert given, line


def test_the_words_for_values_are_not_values_here_and_stand_for_some() -> None:
    kernels = describe_builtins()
    known = {
        "boundary": set(BOUNDARIES),
        "padding": {"valid", "same", "same_lower", "full"},
        "normalize_input": set(NORMALIZATIONS),
        "blend": set(BLENDS),
        "preset": set(PRESETS),
        "kernel": {kernel.name for kernel in kernels},
        "parameter": {p.name for kernel in kernels for p in kernel.parameters},
        "dtype": {*OUTPUT_DTYPES, "same"},
        "precision": {"float32", "float64"},
        "compression": set(OPTION["compression"].kind.choices),
        "nan": set(NAN_MODES),
        "algorithm": {"auto", "fft"},
        "unit": {"vox", "um", "mm"},
    }
    assert set(VALUES) == set(known)
    for kind, words in VALUES.items():
        assert {value.partition("=")[0] for value in words.values()} <= known[kind], kind
        assert not set(words) & known[kind], kind


def test_the_words_for_commands_lead_to_commands() -> None:
    for cure in COMMAND_WORDS.values():
        command = cure.split()[0]
        assert command in COMMANDS or command in ("--version", "--cite")
    assert not set(COMMAND_WORDS) & set(COMMANDS)
    assert not set(ABSENT) & set(OPTION_WORDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--boundary", "edge"], "unknown boundary 'edge'; write 'nearest'; available: zeros, "),
        (["--boundary", "reflect"], "write 'symmetric' for scipy's (dcba|abcd) or 'mirror' for numpy's"),
        (["--like", "spm12"], "imagej or wb, received 'spm12'; write 'spm'"),
        (["--compression", "gzip"], "none, deflate or zstd, received 'gzip'; write 'deflate'"),
        (["--dtype", "float"], "received 'float'; write 'float32'"),
        (["-k", "gauss:sigma=1vox"], "unknown kernel 'gauss'; write 'gaussian'; "),
        (["-k", "gaussian:std=1vox"], "gaussian has no parameter 'std'; write 'sigma'; "),
        (["-k", "gaussian:sigma=1px"], "unknown unit 'px'; write 'vox'; "),
        (["-k", "median:size=3"], "unknown kernel 'median'; available: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_value_of_another_tool(words: list[str], said: str, volume: Path, run: Any) -> None:
    kernel = [] if "-k" in words else ["-k", "box"]
    assert said in only_line(run("apply", volume, *kernel, "-o", "o.npy", *words, code=2))


def test_keys_and_columns_of_other_tools(volume: Path, tmp_path: Path, run: Any) -> None:
    config = tmp_path / "c.toml"
    config.write_text('kernel = "box"\nmode = "edge"\n')
    said = only_line(run("apply", volume, "-c", config, "-o", "o.npy", code=2))
    assert "unknown key 'mode'; write 'boundary'; " in said
    table = tmp_path / "m.csv"
    table.write_text(f"input,output,stride\n{volume},o.npy,2\n")
    said = only_line(run("apply", "--manifest", table, "-k", "box", code=2))
    assert "unknown column 'stride'; write 'strides'; " in said


# ---------------------------------------------------------------------------------------------------------------------
# Names in any case


def test_names_in_any_case_give_the_same_bytes(scan: Path, tmp_path: Path, run: Any) -> None:
    lower = ["-k", "gaussian:fwhm=6mm:sampling=fsl", "--boundary", "nearest", "--like", "fsl"]
    upper = ["-k", "Gaussian:FWHM=6MM:Sampling=FSL", "--boundary", "Nearest", "--like", "FSL"]
    for name, words in (("a.nii", lower), ("b.nii", upper)):
        run("apply", scan, *words, "-o", tmp_path / name)
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()
    config = tmp_path / "c.toml"
    config.write_text(
        'kernel = "GAUSSIAN:Fwhm=6mm:sampling=fsl"\nlike = "Fsl"\nboundary = "NEAREST"\n'
    )
    run("apply", scan, "-c", config, "-o", tmp_path / "c.nii")
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "c.nii").read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# --dtype same


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "float32", "float64"])
def test_the_same_dtype_is_the_inputs(dtype: str, tmp_path: Path, run: Any) -> None:
    values = np.arange(105).reshape(3, 5, 7).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    run("apply", tmp_path / "a.npy", "-k", "identity", "--dtype", "Same", "-o", tmp_path / "o.npy")
    out = np.load(tmp_path / "o.npy")
    assert out.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(out, values)


def test_the_same_dtype_does_not_round_scaled_values_away(tmp_path: Path, run: Any) -> None:
    image = nibabel.Nifti1Image(np.arange(105, dtype=np.int16).reshape(3, 5, 7), np.eye(4))
    image.header.set_slope_inter(0.01, 0)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii").get_fdata()
    command = ["apply", tmp_path / "a.nii", "-k", "identity", "--dtype", "same", "-o"]
    said = only_line(run(*command, tmp_path / "o.nii", code=4))
    assert "would be rounded to whole numbers; pass --scale keep (NIfTI)" in said
    run(*command, tmp_path / "o.nii", "--scale", "auto")
    made = nibabel.load(tmp_path / "o.nii")
    assert made.get_data_dtype() == np.int16
    np.testing.assert_allclose(made.get_fdata(), stored, atol=1e-4)
