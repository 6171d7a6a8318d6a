"""Finds the volumes in a folder, for `conv3d apply FOLDER`.

The volumes of a folder are its Zarr stores and its files of a known format, ordered by name. Left
out are hidden files (temporary files, version control), pipes and devices, the voxel file of a pair
whose header is there, too, files that the command uses otherwise (kernel, mask), and volumes that
are no scans (see `discrete`). A volume of which several files are there is taken once. Only these
last two checks open files, and read their headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from conv3d_cli.batch.discrete import OPTION, SURFACES, LeftOut, discrete_word, named_discrete
from conv3d_cli.errors import FormatError, SpecError
from conv3d_cli.formats import find_format, input_format, readable_files, recognize
from conv3d_cli.formats.signatures import Foreign
from conv3d_cli.system.inputs import check_input, why_unreadable
from conv3d_cli.system.parts import file_of, split_part
from conv3d_cli.system.words import count_of

# Folders of a BIDS dataset that hold no raw data. Users can name each of them as an input.
BIDS_MARK = "dataset_description.json"
BIDS_BESIDE = ("code", "derivatives", "sourcedata", "stimuli")
# BIDS' names for photographs of a sample, which are no volumes.
PICTURES = ("_photo.tif", "_photo.tiff")


@dataclass(frozen=True)
class InputPath:
    """One volume among the inputs.

    path : str          path to open
    below : str         subfolder of the output folder for its output; "" for none
    in_folder : bool    it was found in a folder rather than named
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
    left: LeftOut | None = None,
) -> tuple[list[InputPath], list[str]]:
    """Replace each folder by the volumes in it. Returns volumes, and notes on what was left out.

    The output folder gets the tree below the input folder; for several folders, the tree below
    their common parent.

    inputs : sequence of str    paths of volumes and folders, and URLs
    recursive : bool            search subfolders, too; a pattern with a slash implies it
    patterns : sequence of str  take only volumes that match one of them: by name, or by path below
                                the folder if the pattern has a slash; `**` matches any number of
                                folders
    out_dir : str or None       the output folder, which is not searched
    used : sequence of str      paths of files that the command uses otherwise
    discrete : bool             take masks and label maps, too; a pattern that names their word also
                                takes them
    dataset : bool              also leave out masks and label maps that are named: BIDS derives the
                                name of an output from its input (--bids)
    left : LeftOut or None      gets the files that are left out; the caller then takes its notes
    Raises: FormatError if no folder holds a volume, or one cannot be read; SpecError for options of
    folders without a folder, and for a dataset that nothing is left of.
    """
    folders = [name for name in inputs if is_folder(name)]
    for option, is_given, purpose in (
        ("--glob", patterns, "chooses among the volumes of a folder"),
        ("--recursive", recursive, "looks into the subfolders of a folder"),
        (OPTION, discrete and not dataset, "takes masks and label maps of a folder"),
    ):
        if is_given and not folders:
            raise SpecError(
                f"{option} {purpose}, and no input is a folder of volumes; name one, or leave "
                f"{option} out"
            )
    if any(not pattern.strip("/") for pattern in patterns):
        raise SpecError(
            "--glob needs a pattern, as in --glob '*_bold.nii.gz'; received an empty one"
        )
    deep = recursive or any("/" in pattern for pattern in patterns)
    root = None
    if len(folders) > 1:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in folders])
    excluded = (
        {os.path.realpath(out_dir)} if out_dir is not None and "://" not in out_dir else set()
    )
    used_paths = {os.path.realpath(file_of(path)) for path in used}
    result: list[InputPath] = []
    notes: list[str] = []
    empty_folders, used_count = [], 0
    own = left is None
    left = LeftOut() if left is None else left
    for name in inputs:
        if name not in folders:
            if (
                name != "-"
                and "://" not in name
                and find_format(name) is None
                and not os.path.exists(name)
            ):
                # neither a folder nor a volume: report that before its output gets a name
                check_input(name)
            if not dataset or left.sift(name, discrete):
                result.append(InputPath(name))
            continue
        found = []
        for inner in _volumes_in(name, deep, excluded, notes):
            if patterns and not any(matches(inner, pattern) for pattern in patterns):
                continue
            path = inner if name == "." else os.path.join(name, inner)
            if inner.lower().endswith(SURFACES):
                left.surfaces.append(path)
                continue
            if os.path.realpath(path) in used_paths:
                used_count += 1
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
        found = one_of_a_pair(found)
        if not found:
            empty_folders.append(name)
        result += found
    if empty_folders and not any(volume.in_folder for volume in result):
        what = f" that match {' or '.join(patterns)}" if patterns else ""
        cures = (
            left.words()
            or _strangers_in(empty_folders)
            or ([] if deep else ["pass --recursive to look into its subfolders"])
        )
        raise FormatError("; ".join([f"no volumes{what} in {', '.join(empty_folders)}", *cures]))
    result, joined = one_name_each(result)
    notes += joined
    check_left(result, left)
    if not dataset:
        left.taken += named_discrete([name for name in inputs if name not in folders])
    notes += [f"no volumes in {name}" for name in empty_folders]
    if used_count:
        notes.append(used_otherwise(used_count))
    return result, notes + (left.notes() if own else [])


def _strangers_in(folders: Sequence[str]) -> list[str]:
    """What the first known file of these folders is, if it is of a kind that is not read."""
    for folder in folders:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        for name in names[:20]:
            path = os.path.join(folder, name)
            found = None if name.startswith(".") else recognize(path)
            if isinstance(found, Foreign):
                return [f"{path} is {found.name}; {found.cure}"]
    return []


def used_otherwise(count: int) -> str:
    """A note on files of a folder that are no inputs, because the command uses them otherwise.

    >>> used_otherwise(1)
    'left out 1 file that this command uses otherwise (kernel, mask, ...)'
    """
    return (
        f"left out {count_of(count, 'file')} that this command uses otherwise (kernel, mask, ...)"
    )


def check_left(volumes: Sequence[object], left: LeftOut) -> None:
    """Refuse an empty dataset.

    volumes : sequence      what is left to convolve
    left : LeftOut          what was left out
    Raises: FormatError if all inputs are CIFTI; SpecError if some are masks or label maps.
    """
    if volumes:
        return
    if not left.discrete:
        raise FormatError(
            f"--bids: {left.cifti[0]} is CIFTI, not a volume; "
            "wb_command -cifti-smoothing smooths it"
        )
    raise SpecError(
        f"--bids: {left.discrete[0]} is a mask or a label map, and convolving it mixes its values; "
        f"pass {OPTION} to convolve it all the same"
    )


def asks_for(inner: str, pattern: str) -> bool:
    """Whether a pattern asks for a mask or a label map, rather than matching it by chance.

    It does if it has no wildcard, or if the file would not match without its word (mask, dseg).

    >>> asks_for("sub-1_desc-brain_mask.nii", "*_mask.nii*")
    True
    >>> asks_for("sub-1_desc-brain_mask.nii", "sub-1_*")
    False
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
    """Whether an input is a folder of volumes, and not a Zarr store, which is one volume."""
    return name != "-" and "://" not in name and os.path.isdir(name) and find_format(name) is None


def matches(inner: str, pattern: str) -> bool:
    """Whether a path below a folder matches a pattern.

    A pattern without a slash is matched against the file's name, one with a slash against the path.

    >>> matches("sub-01/anat/sub-01_T1w.nii.gz", "*_T1w.nii*")
    True
    >>> matches("sub-01/anat/a.nii", "sub-*/a.nii")
    False
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


def _volumes_in(root: str, deep: bool, excluded: set[str], notes: list[str]) -> list[str]:
    """Paths, below a folder, of volumes and surfaces by their suffix, sorted folder by folder."""
    found = []
    for inner, folder in _entries(root, deep, excluded, notes):
        name = inner.lower()
        is_volume = find_format(os.path.join(root, inner)) is not None
        if folder or (is_volume and not name.endswith(PICTURES)) or name.endswith(SURFACES):
            found.append(inner)
    return sorted(found, key=lambda inner: inner.split(os.sep))


def _entries(
    root: str, deep: bool, excluded: set[str], notes: list[str]
) -> Iterator[tuple[str, bool]]:
    """Files and Zarr stores below a folder: pairs (path, is it a folder).

    Each folder is searched once, however many links lead to it: first the tree itself, then the
    links. So a link to one of its own parents ends.
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
            raise FormatError(f"cannot read folder {folder}: {why_unreadable(error)}") from None
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
                if not deep or real in excluded:
                    continue
                if dataset and entry.name in BIDS_BESIDE:
                    notes.append(
                        f"{os.path.join(folder, entry.name)} is not raw data of the dataset "
                        "and is not searched"
                    )
                elif entry.is_symlink():
                    links.append(path)
                elif real not in seen:
                    seen.add(real)
                    waiting.append(path)


def _kind(entry: os.DirEntry[str]) -> str | None:
    """ "file", "folder", or None for pipes and devices.

    A dangling link is a file, so that the user is told of it when it cannot be opened.
    """
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not os.path.exists(entry.path) else None
    except OSError:  # a link to itself
        return "file"


def one_name_each(volumes: list[InputPath]) -> tuple[list[InputPath], list[str]]:
    """The volumes, each once, if several of its files were named or found; and notes on that.

    So for slices of DICOM, files of one OME-TIFF, and headers with their voxels, as a shell's `*`
    names them. The first name of each volume is kept.
    """
    if len(volumes) < 2:
        return volumes, []
    kept: list[InputPath] = []
    names: dict[tuple[frozenset[str], str], list[str]] = {}
    known: dict[str, list[str]] = {}  # the names of the volume of a file that is of no other
    for volume in volumes:
        if known and (same := known.get(os.path.realpath(volume.path))):
            same.append(volume.path)
            continue
        found = input_format(volume.path)
        files = () if found is None or found.chunked else readable_files(volume.path)
        if len(files) < 2:
            kept.append(volume)
            continue
        key = frozenset(map(os.path.realpath, files)), split_part(volume.path)[1]
        if key not in names:
            names[key] = []
            kept.append(volume)
        names[key].append(volume.path)
        if found is not None and found.whole_files:
            known.update(dict.fromkeys(key[0], names[key]))
    return kept, [
        f"{' and '.join(same) if len(same) == 2 else f'{same[0]} and {len(same) - 1} more names'} "
        f"give one volume, of {len(files)} files: it is read once"
        for (files, _), same in names.items()
        if len(same) > 1
    ]


def one_of_a_pair(found: list[InputPath]) -> list[InputPath]:
    """Drop each file of voxels whose header was found, too: the pair is one volume."""
    paths = {volume.path for volume in found}
    return [volume for volume in found if _header_of(volume.path) not in paths - {volume.path}]


def _header_of(path: str) -> str:
    volume_format = find_format(path)
    return path if volume_format is None else volume_format.header_file(path)
