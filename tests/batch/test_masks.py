"""Rules for masks: which mask belongs to which volume, and what is said if none or several do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from conv3d_cli.batch.discover import InputPath
from conv3d_cli.batch.masks import ENTITY_NAMES, FIELDS, mask_of, masks_of, without_masks
from conv3d_cli.errors import FormatError, SpecError, UnknownNameError
from conv3d_cli.settings.mask_rules import is_rule


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(*names: str) -> None:
    """Make empty files: rules go by names alone."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(rule: str, *volumes: str) -> list[str]:
    return masks_of(rule, volumes)


REST = "ds/sub-{}/func/sub-{}_task-rest_space-MNI_res-2"


def bids(subject: str, *ends: str) -> list[str]:
    return [f"{REST.format(subject, subject)}_{end}" for end in ends]


# ---------------------------------------------------------------------------------------------------------------------
# Patterns


def test_a_pattern_goes_by_bids_entities(desk: Path) -> None:
    volumes, masks = [], []
    for subject in ("01", "02", "10"):
        names = bids(subject, "desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz")
        put(*names, f"ds/sub-{subject}/func/sub-{subject}_task-rest_desc-brain_mask.nii.gz")
        volumes.append(names[0])
        masks.append(names[1])
    # the masks of another space lie beside them, and sub-1 is no part of sub-10
    assert found("ds/sub-*/func/*_mask.nii.gz", *volumes) == masks
    native = "ds/sub-02/func/sub-02_task-rest_bold.nii.gz"
    assert found("ds/sub-*/func/*_mask.nii.gz", native) == [
        "ds/sub-02/func/sub-02_task-rest_desc-brain_mask.nii.gz"
    ]
    assert found("ds/**/*_mask.nii.gz", *volumes[::-1]) == masks[::-1]


def test_a_mask_of_another_space_or_run_is_no_mask(desk: Path) -> None:
    volume, mask = bids("01", "desc-preproc_bold.nii.gz", "desc-brain_mask.nii.gz")
    put(volume, mask, "ds/sub-02/func/sub-02_task-rest_desc-brain_mask.nii.gz")
    for other in (
        "ds/sub-02/func/sub-02_task-rest_space-MNI_res-2_bold.nii.gz",
        "ds/sub-01/func/sub-01_task-rest_space-MNI_res-1_bold.nii.gz",
        "ds/sub-01/func/sub-01_task-rest_space-T1w_res-2_bold.nii.gz",
        "ds/sub-01/func/sub-01_task-nback_space-MNI_res-2_bold.nii.gz",
        "ds/sub-1/func/sub-1_task-rest_space-MNI_res-2_bold.nii.gz",
    ):
        with pytest.raises(FormatError, match="finds no mask for 1 volume: " + re.escape(other)):
            found("ds/sub-*/func/*_mask.nii.gz", other)


def test_runs_have_their_own_mask_and_share_one_otherwise(desk: Path) -> None:
    runs = [f"s/sub-1_run-{run}_bold.nii" for run in (1, 2, 3)]
    put(*runs, "m/sub-1_run-1_mask.nii", "m/sub-1_run-2_mask.nii", "m/sub-1_mask.nii")
    assert found("m/*.nii", *runs) == [
        "m/sub-1_run-1_mask.nii",
        "m/sub-1_run-2_mask.nii",
        "m/sub-1_mask.nii",
    ]


def test_masks_without_a_space_are_for_all_spaces(desk: Path) -> None:
    (volume,) = bids("01", "desc-preproc_bold.nii.gz")
    put(volume, "m/sub-01_mask.nii.gz", "m/sub-02_mask.nii.gz")
    assert found("m/*_mask.nii.gz", volume) == ["m/sub-01_mask.nii.gz"]


@pytest.mark.parametrize(
    ("rule", "masks"),
    [
        ("masks/*.nii", ["masks/a.nii", "masks/b.nii"]),
        ("in/*_mask.nii", ["in/a_mask.nii", "in/b_mask.nii"]),
        ("in/mask_*.nii", ["in/mask_a.nii", "in/mask_b.nii"]),
        ("in/*_m?.nii", ["in/a_m1.nii", "in/b_m1.nii"]),
        ("./in/[ab]_m1.nii", ["./in/a_m1.nii", "./in/b_m1.nii"]),
        ("**/*.roi.nii", ["in/a.roi.nii", "in/b.roi.nii"]),
    ],
)
def test_a_pattern_goes_by_names(desk: Path, rule: str, masks: list[str]) -> None:
    put("in/a.nii", "in/b.nii", "in/aa.nii", *masks)
    put(*(mask.replace("a", "aa", 1) if "/a" in mask else mask for mask in masks))
    assert found(rule, "in/a.nii", "in/b.nii") == masks


def test_a_pattern_goes_by_folders(desk: Path) -> None:
    volumes = [f"scans/{n}/bold.nii" for n in ("01", "02")]
    beside = [f"scans/{n}/brain.nii" for n in ("01", "02")]
    apart = [f"masks/{n}/bold.nii" for n in ("01", "02")]
    put(*volumes, *beside, *apart, "masks/03/bold.nii")
    assert found("scans/*/brain.nii", *volumes) == beside
    assert found("masks/*/bold.nii", *volumes) == apart
    assert found("masks/**/*.nii", *volumes) == apart
    # sub-01's mask is not sub-02's, though the names are equal
    Path("masks/02/bold.nii").unlink()
    for rule in ("masks/*/bold.nii", "masks/**/*.nii"):
        with pytest.raises(FormatError, match=r"no mask for 1 of 2 volumes: scans/02/bold\.nii"):
            found(rule, *volumes)


def test_a_mask_that_is_named_after_another_volume_is_not_taken(desk: Path) -> None:
    put("in/a.nii", "in/b.nii", "in/a_mask.nii")
    for rule in ("in/*_mask.nii", "*/*_mask.nii"):
        with pytest.raises(FormatError, match=r"no mask for 1 of 2 volumes: in/b\.nii \("):
            found(rule, "in/a.nii", "in/b.nii")


def test_several_masks_are_an_error(desk: Path) -> None:
    volume, *masks = bids("01", "bold.nii.gz", "desc-brain_mask.nii.gz", "desc-lesion_mask.nii.gz")
    put(volume, *masks)
    with pytest.raises(SpecError, match="finds several masks for 1 volume") as caught:
        found("ds/*/*/*_mask.nii.gz", volume)
    assert all(Path(mask).name in str(caught.value) for mask in masks)
    assert found("ds/*/*/*_desc-lesion_mask.nii.gz", volume) == [masks[1]]


def test_an_error_counts_the_volumes_it_does_not_name(desk: Path) -> None:
    put("m/x_mask.nii")
    volumes = [f"in/a-volume-with-a-long-name-{n:03}.nii" for n in range(200)]
    with pytest.raises(FormatError) as caught:
        found("m/*_mask.nii", *volumes)
    text = str(caught.value)
    named = sum(volume in text for volume in volumes)
    assert 10 < named < 40
    assert f"no mask for 200 of 200 volumes: {volumes[0]}, " in text
    assert f", and {200 - named} more (none of 1 match " in text


def test_a_pattern_in_vain(desk: Path) -> None:
    put("a_mask.json", ".hidden_mask.nii")
    with pytest.raises(FormatError, match=r"'\*_mask\.\*' matches no volume"):
        found("*_mask.*", "a.nii")


def test_a_pair_is_one_mask(desk: Path) -> None:
    put("m/a.hdr", "m/a.img", "m/a.json")
    assert found("m/*", "a.nii") == ["m/a.hdr"]


# ---------------------------------------------------------------------------------------------------------------------
# Templates


@pytest.mark.parametrize(
    ("rule", "volume", "mask"),
    [
        ("{stem}_m.nii", "in/a.ome.tif", "in/a_m.nii"),
        ("../masks/{name}", "in/a.nii.gz", "masks/a.nii.gz"),
        ("{dir}/{stem}_m.nii", "in/a.nii", "in/a_m.nii"),
        ("masks/{dir}/m.nii", "in/a.nii", "masks/in/m.nii"),
        ("{stem}_m.nii", "a.nii", "a_m.nii"),
        ("{stem}_m.nii", "in/a.zarr/1", "in/a_m.nii"),
        ("{stem}_m*.nii", "in/a[1].nii", "in/a[1]_m7.nii"),
        ("sub-{sub}_x.nii", "in/sub-7_run-1_T1w.nii", "in/sub-7_x.nii"),
        ("{entities}_{suffix}.m.nii", "in/sub-7_desc-p_T1w.nii", "in/sub-7_T1w.m.nii"),
        ("../../m/{datatype}.nii", "ds/sub-7/anat/sub-7_T1w.nii", "ds/m/anat.nii"),
        ("m{{1}}.nii", "in/a.nii", "in/m{1}.nii"),
        # a mask has a BIDS volume's entities, not its desc and suffix
        (
            "{stem}_desc-brain_mask.nii.gz",
            "in/sub-7_task-a_desc-preproc_bold.nii.gz",
            "in/sub-7_task-a_desc-brain_mask.nii.gz",
        ),
    ],
)
def test_a_template(desk: Path, rule: str, volume: str, mask: str) -> None:
    Path(volume).parent.mkdir(parents=True, exist_ok=True)
    put(mask)
    assert found(rule, volume) == [mask]
    if "masks/{dir}" not in rule:
        assert mask_of(rule, str(desk / volume)) == str(desk / mask)


def test_a_template_takes_the_whole_name_first(desk: Path) -> None:
    put("sub-1_desc-p_T1w_m.nii", "sub-1_m.nii")
    assert found("{stem}_m.nii", "sub-1_desc-p_T1w.nii") == ["sub-1_desc-p_T1w_m.nii"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("{stem_m.nii", "braces hold a field"),
        ("stem}_m.nii", "braces hold a field"),
        ("{}_m.nii", "braces hold the name of a field, received ''"),
        ("{0}_m.nii", "braces hold the name of a field, received '0'"),
        ("{stem:>9}_m.nii", "braces hold the name of a field, received 'stem:>9'"),
        ("{stem!r}_m.nii", "braces hold the name of a field, received 'stem!r'"),
        ("{stem.__class__}", "braces hold the name of a field"),
    ],
)
def test_wrong_braces(desk: Path, rule: str, words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        found(rule, "a.nii")


def test_wrong_fields(desk: Path) -> None:
    with pytest.raises(UnknownNameError, match="'stemm'; did you mean 'stem'"):
        found("{stemm}_m.nii", "a.nii")
    put("m-3.nii")
    with pytest.raises(FormatError, match=r"for 1 of 2 volumes: a\.nii \(its name has no run\)"):
        found("m-{run}.nii", "a.nii", "sub-1_run-3_bold.nii")
    assert not {*FIELDS} & {*ENTITY_NAMES.split()}


def test_a_pipe_has_no_name() -> None:
    with pytest.raises(FormatError, match="standard input has no name"):
        found("{stem}_m.nii", "-")


# ---------------------------------------------------------------------------------------------------------------------
# auto


def test_auto_takes_the_brain_mask(desk: Path) -> None:
    volume, brain, *others = bids(
        "01",
        "desc-preproc_bold.nii.gz",
        "desc-brain_mask.nii.gz",
        "desc-lesion_mask.nii.gz",
        "label-GM_mask.nii.gz",
        "desc-aparc_dseg.nii.gz",
        "desc-brain_mask.json",
    )
    put(volume, brain, *others, "ds/sub-01/func/sub-01_task-rest_desc-brain_mask.nii.gz")
    assert found("auto", volume) == [brain]
    # a lesion is no brain: smoothing one subject in it would go unnoticed
    Path(brain).unlink()
    with pytest.raises(FormatError, match=r"no brain mask, only .*desc-lesion_mask"):
        found("auto", volume)
    for name in others:
        Path(name).unlink()
    with pytest.raises(FormatError, match="no sub-01_task-rest_space-MNI_res-2_desc-brain_mask"):
        found("auto", volume)


def test_auto_searches_the_derivatives_of_raw_data(desk: Path) -> None:
    raw = "ds/sub-1/ses-a/func/sub-1_ses-a_task-x_run-2_bold.nii.gz"
    masks = [
        f"ds/derivatives/{tool}/sub-1/ses-a/func/sub-1_ses-a_task-x{run}_desc-brain_mask.nii.gz"
        for tool, run in (("fmriprep", "_run-2"), ("fmriprep", "_run-1"), ("other", ""))
    ]
    put(raw, *masks[:2])
    assert found("auto", raw) == masks[:1]
    put(masks[2])  # it has fewer entities: the one of the run is nearer
    assert found("auto", raw) == masks[:1]
    twice = masks[0].replace("fmriprep", "other")
    put(twice)
    with pytest.raises(SpecError, match="finds several masks"):
        found("auto", raw)


def test_auto_needs_a_bids_name(desk: Path) -> None:
    put("a_desc-brain_mask.nii")
    with pytest.raises(FormatError, match="auto goes by BIDS names"):
        found("auto", "a.nii")


# ---------------------------------------------------------------------------------------------------------------------
# All rules


def test_a_file_is_no_rule_whatever_its_name(desk: Path) -> None:
    put("a[1]*.nii", "{stem}.nii")
    names: Sequence[str] = ("a[1]*.nii", "{stem}.nii", "mask.nii")
    assert not any(map(is_rule, names))
    assert [mask_of(name, "a.nii") for name in names] == [None, None, None]


def test_masks_in_a_folder_are_no_volumes(desk: Path) -> None:
    put("a.nii", "b.nii", "a_in.nii", "b_in.nii")
    volumes = [InputPath(n, in_folder=True) for n in ("a.nii", "a_in.nii", "b.nii", "b_in.nii")]
    for rule in ("{stem}_in.nii", "*_in.nii"):
        assert [v.path for v in without_masks(rule, volumes)] == ["a.nii", "b.nii"]
    named = [InputPath(volume.path) for volume in volumes]
    assert without_masks("{stem}_in.nii", named) == named


def test_many_volumes_are_quick(desk: Path) -> None:
    """The time grows with the number of volumes, not with its square."""
    import time

    volumes = [f"sub-{n:04}_task-a_bold.nii" for n in range(1500)]
    put(*volumes, *(name.replace("bold", "mask") for name in volumes))
    started = time.process_time()
    masks = found("*_mask.nii", *volumes)
    assert masks == [name.replace("bold", "mask") for name in volumes]
    assert time.process_time() - started < 10
    assert np.unique(masks).size == 1500
