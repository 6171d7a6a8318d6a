"""The table of options: each list that is made of it agrees with what uses it, whatever options are added."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from conv3d_cli.batch.resume import RUN_OPTIONS, settings_of
from conv3d_cli.cli.apply import apply
from conv3d_cli.cli.explain import explain
from conv3d_cli.cli.options import FULL_HELP, given_settings
from conv3d_cli.cli.values import Real, Whole
from conv3d_cli.errors import ConfigError
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.model.missing import Missing
from conv3d_cli.pipeline.outputs import OUTPUT_OPTIONS, Output
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.provenance.command import option_words
from conv3d_cli.settings.config import read_config
from conv3d_cli.settings.option import (
    ANY,
    FLAG,
    RECORDED_SECTIONS,
    TEXT,
    File,
    Place,
    Value,
    option,
)
from conv3d_cli.settings.options import OPTION, OPTIONS, SHAPING, Option, Settings, overlay

MADE_OF: dict[Place, type[Any]] = {Place.STAGE: Stage, Place.JOB: Job, Place.MISSING: Missing}
# fields that no option sets by itself
NO_OPTIONS = {
    Stage: {"activations", "inputs", "notes", "files"},
    Job: {
        "source",
        "target",
        "stages",
        "missing",
        "network",
        "is_normalized",
        "composed_from",
        "channel_names",
        "peak_rules",
        "found",
        "making",
        "beside",
        "preset",
        "history",
        "on_cluster",
        "checks",
        "share_of_start",
        "files",
        "given",
    },
    Missing: set[str](),
}
# values that differ from the default and mean something; others are taken by their kind
VALUES: dict[str, Any] = {
    "kernel": "box:size=5",
    "fwhm": "6mm",
    "sigma": "2vox",
    "boundary": "nearest",
    "padding": "valid",
    "crop_kernel": 0.1,
    "subtract_background": "border",
    "bias": [2.0],
    "use_bias": False,
    "kernel_size": 3,
    "filters": 1,
    "kernel_initializer": "ones",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l2",
    "activity_regularizer": "l2",
    "kernel_constraint": "non_neg",
    "bias_constraint": "non_neg",
    "channels": "1,2",
    "normalize_input": "zscore",
    "patch": "4",
    "dtype": "int16",
    "precision": "float64",
    "scale": "auto",
    "spacing": "2,1,1mm",
    "max_memory": 1 << 30,
    "mask": "m.npy",
    "nan": "ignore",
    "min_coverage": 0.5,
}


def value_of(row: Option) -> Any:
    """A value of an option that is not its default."""
    if row.name in VALUES:
        return VALUES[row.name]
    if row.kind.choices:
        return next(word for word in reversed(row.kind.choices) if word != row.default)
    return {
        "flag": True,
        "switch": True,
        "integer": 2,
        "number": 0.25,
        "triple": [2, 1, 1],
        "text": ("x", "y") if row.kind.repeats else "x",
    }[row.kind.name]


def job_with(row: Option) -> tuple[Job, Job]:
    """A job as it is without an option and with it."""
    stage = Stage("box:size=3")
    missing = Missing(mask="m.npy") if row.name in ("mask_mode", "mask_labels") else Missing()
    job = Job(
        "a.npy",
        "b.nii",
        (stage,),
        argmax=row.name == "label_names",
        normalize_input="zscore" if row.name == "normalize_mask" else "none",
        dtype="int16" if row.name == "scale" else "float32",
        missing=missing,
    )
    value = {row.field: value_of(row)}
    if row.place is Place.STAGE:
        return job, replace(job, stages=(replace(stage, **value),))
    if row.place is Place.MISSING:
        return job, replace(job, missing=replace(missing, **value))
    return job, replace(job, **value)


SETTING = [row for row in OPTIONS if row.field]


def names(rows: list[Option]) -> list[str]:
    return [row.name for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_a_commands_options_are_those_of_the_table() -> None:
    assert [p.name for p in apply.params] == [
        "inputs",
        *(row.name for row in OPTIONS if row.section),
        "help_json",
    ]
    shared = {row.name for row in OPTIONS if row.explains}
    assert shared <= {p.name for p in explain.params}
    assert "strides" in shared
    assert "out_dir" not in shared


@pytest.mark.parametrize("row", SHAPING, ids=names(list(SHAPING)))
def test_a_recorded_command_gives_the_same_settings_again(row: Option) -> None:
    value = value_of(row)
    if row.name == "bias":
        value = "1,2"
    given = Settings(**{row.name: value})
    words = option_words(given, os.path.basename)
    assert words
    context = apply.make_context("apply", ["a.npy", *words])
    assert given_settings(context) == given


def test_switches_and_defaults_that_were_given_are_recorded() -> None:
    words = ["--no-flip", "--strides", "1", "--nan", "propagate", "--gz-level", "1"]
    given = given_settings(apply.make_context("apply", ["a.npy", *words]))
    assert given.given() == {"flip": False, "strides": 1, "nan": "propagate", "gz_level": 1}
    assert option_words(given, os.path.basename) == words


def test_what_was_not_given_is_none() -> None:
    assert given_settings(apply.make_context("apply", ["a.npy"])).given() == {}


def test_the_table_as_json(run: Any) -> None:
    (command,) = json.loads(run("apply", "--help-json").output)["commands"]
    rows = {row["name"]: row for row in command["options"] if row["table"] is not None}
    assert list(rows) == [row.name for row in OPTIONS if row.section]
    assert rows["nan"]["choices"] == ["propagate", "ignore", "zero", "error"]
    assert rows["gz_level"] == {
        "name": "gz_level",
        "flags": ["--gz-level"],
        "negative_flags": [],
        "section": "Formats of outputs",
        "type": "integer",
        "choices": [],
        "minimum": 0,
        "maximum": 3,
        "unit": None,
        "metavar": "N",
        "default": 1,
        "default_words": None,
        "required": False,
        "repeats": False,
        "exits": False,
        "file": None,
        "help": OPTION["gz_level"].help,
        "table": {
            "belongs_to": "job",
            "shapes_result": True,
            "config_key": True,
            "manifest_column": True,
            "common": False,
        },
    }
    assert rows["kernel"]["table"]["common"]
    assert (rows["flip"]["flags"], rows["flip"]["negative_flags"]) == (["--flip"], ["--no-flip"])
    assert rows["kernel"]["flags"] == ["-k", "--kernel"]
    assert rows["jobs"]["default_words"] == "up to 4 if every file is small, else 1"
    files = (rows["mask"]["file"], rows["coverage_out"]["file"], rows["kernel"]["file"])
    assert files == ("mask", "written", "kernel")
    context = apply.make_context("apply", ["a.npy"], terminal_width=5000, max_content_width=5000)
    context.meta[FULL_HELP] = True
    text = " ".join(apply.get_help(context).split())
    for row in rows.values():
        assert " ".join(row["help"].split()) in text, row["name"]
        assert all(flag in text for flag in row["flags"] + row["negative_flags"]), row["name"]
    assert "--help-json" not in text


@pytest.mark.parametrize("row", [row for row in OPTIONS if row.section], ids=lambda row: row.name)
def test_an_options_help_is_a_sentence_that_states_unit_and_default(row: Option) -> None:
    sentence, _, default = row.help.partition("  [default: ")
    assert sentence.endswith("."), sentence
    assert sentence[0].isupper(), sentence
    assert not sentence.startswith("Of "), "a fragment"
    assert not (default and row.default is not None), "the help would show two defaults"
    # a reader does not know Click's "INTEGER RANGE", nor what a PART is a part of
    assert row.kind.name != "integer" or row.metavar, "name its value"
    assert row.metavar != "PART"


def test_apply_says_what_its_options_are_without_an_input(run: Any) -> None:
    # as --help would: what is wrong is said first
    run("apply", "--help-json", "--nonsense", code=2)


# ---------------------------------------------------------------------------------------------------------------------
# What is made of them


@pytest.mark.parametrize("row", SETTING, ids=names(SETTING))
def test_an_option_sets_a_field_with_the_default_that_help_shows(row: Option) -> None:
    found = {f.name: f.default for f in fields(MADE_OF[row.place])}
    assert row.field in found
    if row.default is not None:
        assert found[row.field] == row.default


@pytest.mark.parametrize("kind", NO_OPTIONS, ids=lambda kind: kind.__name__)
def test_every_field_is_set_by_an_option_or_known_not_to_be(kind: type[Any]) -> None:
    place = next(place for place, made in MADE_OF.items() if made is kind)
    by_options = {row.field for row in SETTING if row.place is place}
    assert by_options | NO_OPTIONS[kind] == {f.name for f in fields(kind)}
    assert not by_options & NO_OPTIONS[kind]


@pytest.mark.parametrize("row", SETTING, ids=names(SETTING))
def test_resume_compares_what_outputs_depend_on(row: Option) -> None:
    without, with_it = job_with(row)
    assert (settings_of(without) != settings_of(with_it)) == row.resumes
    assert row.resumes or not row.shapes


def test_resume_compares_these_options_of_the_command() -> None:
    assert {row.name for row in RUN_OPTIONS} == {"verify", "to_fwhm"}


def test_a_log_of_before_still_says_the_same() -> None:
    """Written by the version before options stood in one table."""
    stage = Stage(
        "box:size=3", name="blur", kernel_size=3, strides=(2, 1, 1), padding="valid", boundary="nearest",
        activations=("relu",), bias=(1.0,), flip=True, normalize=True, seed=3, kernel_constraint="non_neg",
        kernel_spacing="ignore", crop_kernel=0.1, notes=("n",), files=("f",),
    )  # fmt: skip
    job = Job(
        "a.npy", "b.nii", (stage,), axes="zyx", dtype="int16", precision="float64", threads=3, max_memory=1 << 30,
        algorithm="direct", overwrite=True, gz_level=2, chunks=16, levels=2, compression="zstd",
        missing=Missing(nan="ignore", mask="m.npy", labels=True), beside=(Output("coverage", "out/c.nii"),), scale="auto",
        strict=True, history="h", files=("c.toml",),
    )  # fmt: skip
    assert settings_of(job) == {
        "algorithm": "direct", "axes": "zyx", "chunks": 16, "compression": "zstd", "coverage": "c.nii",
        "dtype": "int16", "gz_level": 2, "history": "h", "levels": 2, "precision": "float64", "scale": "auto",
        "missing": {"labels": True, "mask": None, "nan": "ignore"}, "strict": True,
        "stages": [
            {
                "activations": ["relu"], "bias": [1.0], "boundary": "nearest", "crop_kernel": 0.1, "flip": True,
                "kernel": "box:size=3", "kernel_constraint": "non_neg", "kernel_size": 3, "kernel_spacing": "ignore",
                "normalize": True, "padding": "valid", "seed": 3, "strides": [2, 1, 1],
            }
        ],
    }  # fmt: skip


STAGE_ROWS = [row for row in SETTING if row.place is Place.STAGE and row.name != "kernel"]


@pytest.mark.parametrize("row", STAGE_ROWS, ids=names(STAGE_ROWS))
def test_a_stage_with_its_kernel_made_keeps_what_is_still_to_be_done(row: Option) -> None:
    stage = Stage("box:size=3", files=("k.npy",), notes=("a note",), **{row.field: value_of(row)})
    kernel = Kernel(np.ones((3, 3, 3)))
    made = stage.with_made_kernel(kernel)
    plain = Stage(kernel)
    assert getattr(made, row.field) == getattr(plain if row.makes_kernel else stage, row.field)
    assert (made.kernel, made.files, made.notes) == (kernel, (), ())


def test_a_trial_keeps_what_is_computed_and_not_how_it_is_stored() -> None:
    job = Job(
        "a.npy", "b.nii", (Stage("box:size=3"),), dtype="int16", scale="auto", strict=True, gz_level=3, levels=2,
        chunks=8, compression="zstd", beside=(Output("coverage", "c.nii"),),
        missing=Missing(nan="ignore"), precision="float64", axes="zyx",
        threads=2, max_memory=1 << 30, algorithm="direct",
    )  # fmt: skip
    assert job.as_trial("t.npy") == Job(
        "a.npy", "t.npy", job.stages, missing=job.missing, precision="float64", axes="zyx", threads=2,
        max_memory=1 << 30, algorithm="direct", overwrite=True,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Configs and manifests

KEYS = [row for row in OPTIONS if row.config is not None]


@pytest.mark.parametrize("row", OPTIONS, ids=names(list(OPTIONS)))
def test_a_config_has_the_keys_of_the_table_and_checks_them(tmp_path: Path, row: Option) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({row.name: {"no": "such value"}}))
    if row.config is None:
        with pytest.raises(Exception, match=f"unknown key '{row.name}'"):
            read_config(str(path))
    elif row.config is not ANY:
        with pytest.raises(
            ConfigError, match=rf"^config \S*c\.json: {row.name} must be .+, received {{'no'"
        ):
            read_config(str(path))


@pytest.mark.parametrize("row", KEYS, ids=names(KEYS))
def test_a_config_says_what_an_option_would(tmp_path: Path, row: Option) -> None:
    value = value_of(row)
    (tmp_path / "c.json").write_text(json.dumps({row.name: value}))
    config = read_config(str(tmp_path / "c.json"))
    found = getattr(config.stages[0] if row.place is Place.STAGE else config.job, row.name)
    assert found == (
        str(tmp_path / value)
        if row.name in ("mask", "label_names", "normalize_mask", "template_mask")
        else value
    )


def test_a_boolean_is_no_number_and_a_range_is_that_of_the_option(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    for text, words in [
        ("threads = true", "threads must be a whole number from 1 to 4096, received True"),
        ("threads = 0", "threads must be a whole number from 1 to 4096, received 0"),
        ("levels = 0", "levels must be a whole number of at least 1, received 0"),
        ("gz_level = 4", "gz_level must be a whole number from 0 to 3, received 4"),
        ("crop_kernel = true", "crop_kernel must be a number such as 1e-6, received True"),
        ("missing = true", "missing must be a number, received True"),
        ("chunks = true", "chunks must be a whole number, or three as in .*, received True"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_config(str(path))
    path.write_text("threads = 1\ngz_level = 3\nlevels = 1\nmissing = 0\n")
    assert read_config(str(path)).job == Settings(threads=1, gz_level=3, levels=1, missing=0)


@pytest.mark.parametrize("row", OPTIONS, ids=names(list(OPTIONS)))
def test_a_manifest_has_the_columns_of_the_table(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Option
) -> None:
    if row.name == "output":
        return  # a column of every manifest
    monkeypatch.chdir(tmp_path)
    Path("m.tsv").write_text(f"input\toutput\t{row.name}\nno.npy\to.npy\tn/a\n")
    result = run("apply", "--manifest", "m.tsv", "-k", "box", code=None)
    assert (f"unknown column '{row.name}'" in result.output) == (not row.manifest)
    assert result.exit_code


# ---------------------------------------------------------------------------------------------------------------------
# A row


def test_a_row_without_help_kind_or_shapes_is_refused() -> None:
    with pytest.raises(TypeError, match="shapes"):
        option(TEXT, Place.STAGE, "Kernel", help="A text.")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="help"):
        option(TEXT, Place.STAGE, "Kernel", shapes=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="section"):
        option(TEXT, Place.STAGE, shapes=True, help="A text.")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="needs a help text"):
        option(FLAG, Place.STAGE, "Kernel", shapes=True, help="")
    with pytest.raises(ValueError, match="no section 'Kernels'"):
        option(FLAG, Place.STAGE, "Kernels", shapes=True, help="A flag.")


def test_every_shaping_option_has_its_place_in_recorded_commands() -> None:
    assert {row.section for row in SHAPING} <= set(RECORDED_SECTIONS)
    sources = [row.name for row in SHAPING if row.gives_kernel]
    assert sources == ["kernel", "fwhm", "sigma", "config", "operation", "to_fwhm"]
    assert [row.name for row in SHAPING][: len(sources)] == sources


def test_the_files_beside_an_output_are_those_of_the_roles() -> None:
    written = {o.name for o in OPTIONS if o.place is Place.JOB and o.file is File.WRITTEN}
    assert written == set(OUTPUT_OPTIONS)


def test_words_of_a_config_say_what_is_allowed() -> None:
    for row in KEYS:
        assert isinstance(row.config, Value)
        assert row.config is ANY or row.config.words, row.name


def test_the_table_is_typed() -> None:
    """Every field of Settings has None for not given, but what is found while files are read."""
    given = {f.name for f in dataclasses.fields(Settings) if f.metadata}
    assert given == set(OPTION)
    assert {f.name for f in dataclasses.fields(Settings)} - given == {
        "activations",
        "notes",
        "files",
    }
    assert Settings().given() == {}


def test_overlay_keeps_both_files_and_notes() -> None:
    below = Settings(kernel="a.npy", files=("a",), notes=("x",), activations=("relu",))
    above = Settings(strides=2, files=("b",), notes=("y",))
    both = overlay(below, above)
    assert (both.kernel, both.strides, both.files, both.notes) == (
        "a.npy",
        2,
        ("a", "b"),
        ("x", "y"),
    )
    assert both.activations == ("relu",)
    assert overlay(below, Settings(activations=("gelu",))).activations == ("gelu",)
    # given is not None, false or not
    assert overlay(Settings(flip=True), Settings(flip=False)).flip is False


def test_a_click_option_of_each_kind() -> None:
    parameters = {p.name: p for p in apply.params if isinstance(p, click.Option)}
    assert isinstance(parameters["nan"].type, click.Choice)
    assert (parameters["gz_level"].type.low, parameters["gz_level"].type.high) == (0, 3)
    assert parameters["glob"].multiple
    assert parameters["sidecar"].is_flag
    assert parameters["flip"].secondary_opts == ["--no-flip"]
    assert isinstance(parameters["seed"].type, Whole)
    assert isinstance(parameters["missing"].type, Real)
