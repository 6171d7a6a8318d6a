"""Which volumes a folder holds: what `conv3d apply FOLDER` works on.

A folder's volumes are the files in it whose format is known, and Zarr stores, in the order of their names. Left out are what
is hidden (temporary files and version control), pipes and devices, the voxel file of a pair whose header is there too, and
files that the command uses otherwise (kernel, mask), and what is no scan (see `discrete`), for which headers are looked into;
else nothing is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conv3d_cli.batch.discrete import OPTION, LeftOut, discrete_word, named_discrete
from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import find_format
from conv3d_cli.system.inputs import check_input

# What a BIDS dataset holds beside its raw data, at its top; each can be named as a folder of its own.
BIDS_MARK = "dataset_description.json"
BIDS_BESIDE = ("code", "derivatives", "sourcedata", "stimuli")
# Photographs of a sample, which BIDS keeps beside its stacks.
PICTURES = ("_photo.tif", "_photo.tiff")


@dataclass(frozen=True)
class InputPath:
    """One volume among the inputs.

    path : str          as it is opened
    below : str         the folder that its output gets below the output folder, "" for none
    in_folder : bool    found in a folder, not named
    """

    path: str
    below: str = ""
    in_folder: bool = False


def find_volumes(
    inputs: Sequence[str],
    recursive: bool = False,
    patterns: Sequence[str] = (),
    out_dir: str | None = None,
    used: Sequence[str] = (),
    discrete: bool = False,
    dataset: bool = False,
) -> tuple[list[InputPath], list[str]]:
    """Inputs with each folder replaced by the volumes in it, and notes on what was left out.

    recursive : bool    subfolders, too; a pattern with a slash looks there by itself
    patterns : texts    only volumes that match one: by their name, or, with a slash, by their path below the folder, where
                        `**` stands for any number of folders
    out_dir             is not looked into
    used : paths        files that the command uses otherwise
    discrete : bool     masks and label maps, too; a pattern that names their word asks for them as well
    dataset : bool      named ones are left out as those in folders are: what becomes of them has a place by its name (--bids)
    Below the output folder stands the tree below the folder; of several folders, the tree below what holds them all.
    Raises: FormatError if folders hold no volume or cannot be read; SpecError for patterns where there is no folder, and where
    nothing is left of a dataset.
    """
    folders = [name for name in inputs if is_folder(name)]
    if patterns and not folders:
        raise SpecError(
            "--glob chooses among the volumes of a folder, and no input is one; name a folder"
        )
    if any(not pattern.strip("/") for pattern in patterns):
        raise SpecError(
            "--glob needs a pattern, as in --glob '*_bold.nii.gz'; received an empty one"
        )
    deep = recursive or any("/" in pattern for pattern in patterns)
    root = None
    if len(folders) > 1:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in folders])
    closed = {os.path.realpath(out_dir)} if out_dir is not None and "://" not in out_dir else set()
    others = {os.path.realpath(path) for path in used}
    result: list[InputPath] = []
    notes: list[str] = []
    bare, among = [], 0
    left = LeftOut()
    for name in inputs:
        if name not in folders:
            if (
                name != "-"
                and "://" not in name
                and find_format(name) is None
                and not os.path.exists(name)
            ):
                # neither a folder nor a volume: said before its output gets a name
                check_input(name)
            if not dataset or left.sift(name, discrete):
                result.append(InputPath(name))
            continue
        found = []
        for inner in _volumes_in(name, deep, closed, notes):
            if patterns and not any(matches(inner, pattern) for pattern in patterns):
                continue
            path = inner if name == "." else os.path.join(name, inner)
            if os.path.realpath(path) in others:
                among += 1
                continue
            if not left.sift(
                path, discrete or any(asks_for(inner, pattern) for pattern in patterns)
            ):
                continue
            tree = (
                inner
                if root is None
                else os.path.relpath(os.path.join(os.path.abspath(name), inner), root)
            )
            found.append(InputPath(path, os.path.dirname(tree), in_folder=True))
        found = _one_of_a_pair(found)
        if not found:
            bare.append(name)
        result += found
    if bare and not any(volume.in_folder for volume in result):
        what = f" that match {' or '.join(patterns)}" if patterns else ""
        cures = left.words() or ([] if deep else ["pass --recursive to look into its subfolders"])
        raise FormatError("; ".join([f"no volumes{what} in {', '.join(bare)}", *cures]))
    check_left(result, left)
    if not dataset:
        left.taken += named_discrete([name for name in inputs if name not in folders])
    notes += [f"no volumes in {name}" for name in bare]
    if among:
        notes.append(
            f"left out {among} file{'s' if among > 1 else ''} that this command uses otherwise (kernel, mask, ...)"
        )
    return result, notes + left.notes()


def check_left(volumes: Sequence[object], left: LeftOut) -> None:
    """Refuse a dataset of nothing. Raises: FormatError where CIFTI alone was named; else SpecError."""
    if volumes:
        return
    if not left.discrete:
        raise FormatError(
            f"--bids: {left.cifti[0]} is CIFTI, no volume; wb_command -cifti-smoothing smooths it"
        )
    raise SpecError(
        f"--bids: {left.discrete[0]} is a mask or a label map, and with its values mixed it is none; pass {OPTION} to "
        "convolve it all the same"
    )


def asks_for(inner: str, pattern: str) -> bool:
    """Whether a pattern that matches a mask or a label map means it: it names the file, or would not match without its word.

    >>> asks_for("sub-1_desc-brain_mask.nii", "*_mask.nii*"), asks_for("sub-1_desc-brain_mask.nii", "sub-1_*")
    (True, False)
    """
    if not matches(inner, pattern):
        return False
    folder, name = os.path.split(inner)
    if not set("*?[") & set(pattern.rpartition("/")[2]):
        return True
    word = discrete_word(name)
    start = name.rfind(word)
    return bool(word) and not matches(
        os.path.join(folder, name[:start] + "x" + name[start + len(word) :]), pattern
    )


def is_folder(name: str) -> bool:
    """Whether an input is a folder of volumes, and not a volume that is a folder: a Zarr store."""
    return name != "-" and "://" not in name and os.path.isdir(name) and find_format(name) is None


def matches(inner: str, pattern: str) -> bool:
    """Whether a path below a folder matches a pattern: its name alone, or, for a pattern with a slash, all of it.

    >>> matches("sub-01/anat/sub-01_T1w.nii.gz", "*_T1w.nii*"), matches("sub-01/anat/a.nii", "sub-*/a.nii")
    (True, False)
    >>> matches("sub-01/anat/a.nii", "sub-*/**/*.nii"), matches("sub-01/a.nii", "sub-*/**/*.nii")
    (True, True)
    """
    parts = inner.split(os.sep)
    if "/" not in pattern:
        return fnmatchcase(parts[-1], pattern)
    return _match_parts(parts, [part for part in pattern.split("/") if part not in ("", ".")])


def _match_parts(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match_parts(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return (
        bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match_parts(parts[1:], patterns[1:])
    )


def _volumes_in(root: str, deep: bool, closed: set[str], notes: list[str]) -> list[str]:
    """Paths below a folder of what is named as a volume, in the order of their parts."""
    found = []
    for inner, folder in _entries(root, deep, closed, notes):
        name = inner.lower()
        is_volume = find_format(os.path.join(root, inner)) is not None
        if folder or (is_volume and not name.endswith(PICTURES)):
            found.append(inner)
    return sorted(found, key=lambda inner: inner.split(os.sep))


def _entries(
    root: str, deep: bool, closed: set[str], notes: list[str]
) -> Iterator[tuple[str, bool]]:
    """Files and stores below a folder, with whether each is a folder.

    Each folder is looked into once, however many links lead there: what stands in the tree itself first, then what links
    add. So a link to a folder that holds it ends.
    """
    seen, waiting = {os.path.realpath(root)}, [""]
    links: list[str] = []
    while waiting or links:
        if not waiting:
            link = links.pop(0)
            real = os.path.realpath(os.path.join(root, link))
            if real in seen:
                continue
            seen.add(real)
            waiting.append(link)
        inner = waiting.pop()
        folder = os.path.join(root, inner)
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise FormatError(f"cannot read folder {folder}: {error.strerror or error}") from None
        dataset = any(entry.name == BIDS_MARK for entry in entries)
        for entry in entries:
            path = os.path.join(inner, entry.name)
            kind = None if entry.name.startswith(".") else _kind(entry)
            if kind == "file":
                yield path, False
            elif kind == "folder":
                if find_format(os.path.join(root, path)) is not None:
                    yield path, True
                    continue
                real = os.path.realpath(os.path.join(root, path))
                if not deep or real in closed:
                    continue
                if dataset and entry.name in BIDS_BESIDE:
                    notes.append(
                        f"{os.path.join(folder, entry.name)} is beside the dataset's raw data: not looked into"
                    )
                elif entry.is_symlink():
                    links.append(path)
                elif real not in seen:
                    seen.add(real)
                    waiting.append(path)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """ "file", "folder", or None for pipes and devices. A link that leads nowhere is a file: that it is missing is told."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not os.path.exists(entry.path) else None
    except OSError:  # a link to itself
        return "file"


def _one_of_a_pair(found: list[InputPath]) -> list[InputPath]:
    """Without voxel files (.img) whose header (.hdr) is there, too: the pair is one volume."""
    headers = {_pair_stem(volume.path) for volume in found if _half(volume.path) == "hdr"}
    return [
        volume
        for volume in found
        if not (_half(volume.path) == "img" and _pair_stem(volume.path) in headers)
    ]


def _half(path: str) -> str:
    return path.lower().removesuffix(".gz")[-3:]


def _pair_stem(path: str) -> str:
    return path[: len(path.lower().removesuffix(".gz")) - len(".hdr")]
