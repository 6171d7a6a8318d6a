"""Finds the mask of each volume of a batch, before any work.

Three rules can stand for a mask's name (`settings/mask_rules.py`). `auto` takes the BIDS brain mask
with the volume's entities. A template is filled in for each volume. A pattern names a pool of
masks, and each volume gets the one that belongs to it: by its BIDS entities, else by its name, else
by its folder. A volume for which a rule finds no mask, or several, is an error.

Source: the BIDS specification 1.10, "Common data types for derivatives" (masks: the entities of
their source, then space, res, den, label and desc) and "The Inheritance Principle".
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from string import Formatter

from conv3d_cli.batch.discover import InputPath, one_of_a_pair
from conv3d_cli.batch.discrete import WORD
from conv3d_cli.batch.names import identity, whole_store
from conv3d_cli.errors import FormatError, SpecError, unknown_name
from conv3d_cli.formats import find_format
from conv3d_cli.provenance.bids import entities_of, read_name
from conv3d_cli.settings.mask_rules import AUTO, has_fields, has_wildcards, is_rule
from conv3d_cli.system.atomic import suffix_of
from conv3d_cli.system.portable import slashes
from conv3d_cli.system.words import count_of

# Fields of a template besides the entities of a volume's name.
FIELDS = ("stem", "name", "dir", "entities", "datatype", "suffix")
# Entities that describe the mask itself; its volume has none of them, or others.
OF_MASK = ("desc", "label", "atlas", "seg", "scale")
# Entities that describe the grid; a mask in another space does not belong to a volume.
OF_GRID = ("space", "cohort", "res", "den")
WILDCARD = re.compile(r"(\*+|\?|\[[^\]]+\])")
SEPARATORS = "_-. "  # between the words of a name
SHOWN = 1000  # characters of the names of volumes in an error

Entities = frozenset[tuple[str, str]]


@dataclass
class Choice:
    """What a rule found for one volume.

    masks : list of str     the masks that belong to it: one, unless something is wrong
    sought : str            what is missing, for the message if there is none
    """

    masks: list[str]
    sought: str = ""


Rule = Callable[[Sequence[str]], list[Choice]]
"""(paths of volumes) -> the choice for each."""


def masks_of(text: str, volumes: Sequence[str]) -> list[str]:
    """The mask of each volume by a rule.

    text : str                  a rule; see `settings.mask_rules.is_rule`
    volumes : sequence of str   paths or URLs
    Raises: SpecError if the rule cannot be understood, or finds several masks for a volume;
    FormatError if it finds none for a volume. Both name the volumes.
    """
    return _settled(text, volumes, rule_of(text)(volumes))


def mask_of(text: str | None, volume: str) -> str | None:
    """The mask that a rule finds for one volume; None for a file, or no mask.

    Raises: as `masks_of`.
    """
    return masks_of(text, [volume])[0] if text is not None and is_rule(text) else None


def without_masks(text: str, volumes: Sequence[InputPath]) -> list[InputPath]:
    """The volumes, without those found in a folder that are the masks of others by a rule."""
    choices = rule_of(text)([volume.path for volume in volumes])
    chosen = {identity(choice.masks[0]) for choice in choices if len(choice.masks) == 1}
    return [v for v in volumes if not (v.in_folder and identity(v.path) in chosen)]


def rule_of(text: str) -> Rule:
    """The rule that a text stands for. Raises: SpecError; FormatError if a pattern is in vain."""
    if text == AUTO:
        return by_entities
    return Template(text) if has_fields(text) else Pattern(text)


def note_on(text: str, masks: Sequence[str]) -> str:
    """A note that tells which masks a rule found.

    >>> note_on("{stem}_m.nii", ["a/x_m.nii", "a/y_m.nii"])
    "--mask '{stem}_m.nii' found 2 masks for 2 volumes (x_m.nii, ...)"
    """
    different = list(dict.fromkeys(masks))
    others = ", ..." if len(different) > 1 else ""
    return (
        f"--mask '{text}' found {count_of(len(different), 'mask')} for "
        f"{count_of(len(masks), 'volume')} ({os.path.basename(different[0].rstrip('/'))}{others})"
    )


def _settled(text: str, volumes: Sequence[str], choices: Sequence[Choice]) -> list[str]:
    """The only mask of each choice. Raises: as `masks_of`."""
    pairs = list(zip(volumes, choices, strict=True))
    lacking = [(name, choice.sought) for name, choice in pairs if not choice.masks]
    unclear = [
        (name, ", ".join(os.path.basename(mask) for mask in choice.masks))
        for name, choice in pairs
        if len(choice.masks) > 1
    ]
    total = f" of {len(volumes)}" if len(volumes) > 1 else ""
    words = []
    for found, what in ((lacking, "no mask"), (unclear, "several masks")):
        if found:
            number = f"{len(found)}{total} volume{'s' if len(volumes) > 1 else ''}"
            words.append(f"{what} for {number}: {_listed(found)}")
    if not words:
        return [choice.masks[0] for choice in choices]
    cure = (
        "add what is missing, or list volumes and masks in a table (--manifest)"
        if lacking
        else f"make the rule narrower, as in {_narrower(unclear[0][0])}"
    )
    kind = FormatError if lacking else SpecError
    raise kind(f"--mask '{text}' finds {'; '.join(words)}; {cure}")


def _listed(found: Sequence[tuple[str, str]]) -> str:
    """The volumes, as many as `SHOWN` characters hold but one at least, and the first remark."""
    names = [name for name, _ in found]
    lengths = itertools.accumulate(len(name) + 2 for name in names)
    count = max(1, sum(length <= SHOWN for length in lengths))
    more = [f"and {len(names) - count} more"] if count < len(names) else []
    remarks = list(dict.fromkeys(remark for _, remark in found))
    others = ", ..." if len(remarks) > 1 else ""
    return f"{', '.join([*names[:count], *more])} ({remarks[0]}{others})"


def _narrower(volume: str) -> str:
    """An example of a rule that finds fewer masks."""
    return "'{entities}_desc-brain_mask.nii.gz'" if entities_of(volume) else "'{stem}_mask.nii.gz'"


# --------------------------------------------------------------------------------------------------
# Templates


class Template:
    """A rule such as '{stem}_mask.nii.gz', filled in for each volume.

    A relative name starts from the volume's folder, or from the current one if {dir} is in it.
    With wildcards, the filled-in template is a pattern for the masks of this volume. Where it finds
    no mask for a BIDS name, {stem} stands for its {entities}, which a mask has in common with it.

    Raises: SpecError for braces that do not match, and for a format within them.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            self._parts = list(Formatter().parse(text))
        except ValueError:
            raise SpecError(
                f"--mask '{text}': braces hold a field, as in '{{stem}}_mask.nii.gz'; "
                "write {{ or }} for a brace"
            ) from None
        for _, name, layout, conversion in self._parts:
            if name is not None and (layout or conversion or not name.isidentifier()):
                raise SpecError(
                    f"--mask '{text}': braces hold the name of a field, received "
                    f"'{name}{'!' if conversion else ''}{conversion or ''}"
                    f"{':' if layout else ''}{layout or ''}'; the fields are {_field_names()}"
                )
        self._fields = {name for _, name, _, _ in self._parts if name is not None}

    def __call__(self, volumes: Sequence[str]) -> list[Choice]:
        values = [fields_of(name) for name in volumes]
        known = {*FIELDS, *(key for found in values for key in found)}
        for name in sorted(self._fields - known):
            if name not in ENTITY_NAMES.split():
                names = [*FIELDS, *ENTITY_NAMES.split()]
                raise unknown_name(f"field in --mask '{self._text}':", name, names)
        return [
            self._choice(name, found, (found.get("stem", ""), found.get("entities", "")))
            for name, found in zip(volumes, values, strict=True)
        ]

    def _choice(self, volume: str, values: dict[str, str], stems: Sequence[str]) -> Choice:
        """The masks of a volume, with the first of the stems that finds one."""
        lacking = sorted(name for name in self._fields if not values.get(name))
        if volume == "-":
            return Choice([], "standard input has no name")
        if lacking:
            return Choice([], f"its name has no {' and no '.join(lacking)}")
        choices = [self._filled(volume, {**values, "stem": stem}) for stem in stems if stem]
        return next((choice for choice in choices if choice.masks), choices[0])

    def _filled(self, volume: str, values: dict[str, str]) -> Choice:
        pattern = has_wildcards("".join(literal for literal, *_ in self._parts))
        folder = "" if "dir" in self._fields else values["dir"]
        text = ""
        for literal, name, _, _ in self._parts:
            value = "" if name is None else values[name]
            text += literal + (glob.escape(value) if pattern else value)
        if "://" in text or "://" in folder:
            return Choice([text if "://" in text or not folder else f"{folder}/{text}"])
        if pattern:
            found = _volumes(os.path.join(glob.escape(folder), text))
            others = [path for path in found if identity(path) != identity(volume)]
            return Choice(others, f"no {text}")
        path = os.path.normpath(os.path.join(folder, text))
        return Choice([path] if os.path.exists(path) else [], f"no {text}")


# The entities of BIDS 1.10, for messages. {dir} is the folder, not the entity of that name.
ENTITY_NAMES = (
    "sub ses sample task tracksys acq nuc voi ce trc stain rec run mod echo flip inv mt part proc "
    "hemi space cohort split recording chunk atlas seg scale res den label desc"
)


def _field_names() -> str:
    return f"{', '.join(FIELDS)}, and BIDS entities such as sub and run"


def fields_of(volume: str) -> dict[str, str]:
    """The fields of a template for one volume; a name outside BIDS has no entities.

    >>> fields_of("scans/a.ome.tif")
    {'stem': 'a', 'name': 'a.ome.tif', 'dir': 'scans'}
    >>> found = fields_of("ds/sub-1/func/sub-1_task-rest_desc-preproc_bold.nii.gz")
    >>> found["entities"], found["datatype"], found["suffix"], found["task"]
    ('sub-1_task-rest', 'func', 'bold', 'rest')
    """
    if volume == "-":
        return {}
    folder, _, name = whole_store(volume).rpartition("/")
    stem = name[: len(name) - len(suffix_of(name))]
    fields = {"stem": stem, "name": name, "dir": folder or ("/" if volume[:1] == "/" else ".")}
    entities = entities_of(name)
    if entities:
        shared = [f"{key}-{value}" for key, value in entities.items() if key not in OF_MASK]
        fields = {
            **{key: value for key, value in entities.items() if key not in FIELDS},
            **fields,
            "entities": "_".join(shared),
            "datatype": os.path.basename(os.path.abspath(folder)),
            "suffix": stem.rpartition("_")[2],
        }
    return fields


# --------------------------------------------------------------------------------------------------
# Patterns


def _volumes(pattern: str) -> list[str]:
    """The volumes that match a pattern, sorted; a header and its voxel file are one."""
    found = sorted(
        path
        for path in glob.glob(pattern, recursive=True)
        if find_format(path) is not None and not os.path.basename(path).startswith(".")
    )
    return [volume.path for volume in one_of_a_pair(list(map(InputPath, found)))]


@dataclass
class MaskFile:
    """A mask that a pattern matches.

    path : str              its path
    entities : Entities     BIDS entities, without those that describe the mask itself
    grid : tuple            values of the entities in `OF_GRID`
    names : set of str      stems of the volumes that it may belong to
    folders : list of str   names of the folders that a wildcard of the pattern matched
    """

    path: str
    entities: Entities
    grid: tuple[str | None, ...]
    names: set[str] = field(default_factory=set)
    folders: list[str] = field(default_factory=list)


class Pattern:
    """A rule such as 'sub-*/func/*_mask.nii.gz': a pool of masks.

    A mask belongs to a volume if it has no BIDS entity that the volume lacks, and the same space
    and resolution; of several, those with most entities. If either name is not a BIDS name, it
    belongs to the volume after which it is named ("a_mask.nii", "masks/a.nii"; what a wildcard
    matches counts as a name). If it is named after no volume, it belongs to the volumes of its
    folder. Folders that a wildcard matched must also be those of the volume.

    Raises: FormatError if no volume matches.
    """

    def __init__(self, text: str) -> None:
        found = _volumes(text)
        if not found:
            raise FormatError(f"--mask '{text}' matches no volume; name a file, or correct it")
        parts = [part for part in slashes(text).split("/") if part not in ("", ".")]
        self._base = slashes(text[: WILDCARD.search(text).start()]).rpartition("/")[0]  # type: ignore[union-attr]
        self._folders = [_expression(part) for part in parts[:-1]]
        self._searches_folders = any(has_wildcards(part) for part in parts[:-1])
        name = _expression(parts[-1])
        self._pool = [self._mask(path, name, parts[-1]) for path in found]
        # a space that no mask's name tells is not compared
        told = [any(mask.grid[i] is not None for mask in self._pool) for i in range(len(OF_GRID))]
        self._compares = [i for i, is_told in enumerate(told) if is_told]

    def _mask(self, path: str, expression: re.Pattern[str], pattern: str) -> MaskFile:
        stem = _stem(path)
        word = WORD.fullmatch(stem)
        names = {stem, re.sub(r"^(?:brain)?mask[_.-]", "", stem, flags=re.IGNORECASE)}
        names |= {stem[: word.start(1)]} if word else set()
        match = expression.fullmatch(os.path.basename(path))
        if match is not None and match.groups():
            starts, ends = zip(*match.regs[1:], strict=True)
            names |= {stem[i:j] for i in (0, *starts) for j in (*ends, len(stem)) if i < j}
        names = {name.strip(SEPARATORS) for name in names} - {""}
        return MaskFile(path, *_bids_parts(path), names, self._matched_folders(path))

    def _matched_folders(self, path: str) -> list[str]:
        """The names of folders that wildcards matched; those of ** can have any depth."""
        parts = [part for part in slashes(path).split("/")[:-1] if part not in ("", ".")]
        if len(parts) != len(self._folders):
            return []
        return [
            part
            for part, expression in zip(parts, self._folders, strict=True)
            if expression.groups and expression.fullmatch(part)
        ]

    def __call__(self, volumes: Sequence[str]) -> list[Choice]:
        of_subject: dict[str | None, list[MaskFile]] = defaultdict(list)
        of_name: dict[str, list[MaskFile]] = defaultdict(list)
        for mask in self._pool:
            subject = dict(mask.entities).get("sub")
            of_subject[subject].append(mask)
            for name in mask.names:
                of_name[name].append(mask)
        found = [self._named(name, of_subject, of_name) for name in volumes]
        taken = {mask.path for masks in found for mask in masks}
        rest = [mask for mask in self._pool if mask.path not in taken]
        chosen = [
            masks or self._in_folder(name, rest) for name, masks in zip(volumes, found, strict=True)
        ]
        stems = Counter(_stem(name) for name in volumes)
        return [
            Choice(
                [mask.path for mask in masks],
                f"none of {count_of(len(self._pool), 'match', 'matches')} has its entities or name",
            )
            for masks in self._undisputed(volumes, chosen, stems)
        ]

    def _named(
        self,
        volume: str,
        of_subject: dict[str | None, list[MaskFile]],
        of_name: dict[str, list[MaskFile]],
    ) -> list[MaskFile]:
        """The masks that belong to a volume by BIDS entities, or else by name."""
        entities, grid = _bids_parts(volume)
        own = identity(volume)
        if entities:
            masks = [
                mask
                for mask in of_subject[dict(entities)["sub"]]
                if mask.entities <= entities
                and all(mask.grid[i] == grid[i] for i in self._compares)
                and identity(mask.path) != own
            ]
            if masks:
                return _nearest(volume, _most(masks, lambda mask: len(mask.entities)))
        masks = [
            mask
            for mask in of_name[_stem(volume)]
            if not (entities and mask.entities)
            and identity(mask.path) != own
            and self._shares_folders(volume, mask)
        ]
        return _nearest(volume, masks)

    def _in_folder(self, volume: str, masks: Iterable[MaskFile]) -> list[MaskFile]:
        """Masks named after no volume that belong to a volume by their folder."""
        if not self._searches_folders:
            return []
        entities, _ = _bids_parts(volume)
        folder = os.path.dirname(identity(volume))
        return [
            mask
            for mask in masks
            if identity(mask.path) != identity(volume)
            and not (entities and mask.entities)
            and (
                os.path.dirname(identity(mask.path)) == folder
                or (mask.folders and self._shares_folders(volume, mask))
            )
        ]

    def _shares_folders(self, volume: str, mask: MaskFile) -> bool:
        """Whether a volume lies in folders of the names that wildcards matched for a mask."""
        if not mask.folders or "://" in volume:
            return not mask.folders
        path = os.path.abspath(volume)
        above = os.path.commonpath([path, os.path.abspath(self._base or ".")])
        return {*mask.folders} <= {*os.path.relpath(path, above).split(os.sep)[:-1]}

    def _undisputed(
        self, volumes: Sequence[str], chosen: list[list[MaskFile]], stems: Counter[str]
    ) -> Iterator[list[MaskFile]]:
        """The choices, without masks that are nearer to another volume of the same name."""
        claims: dict[str, int] = defaultdict(int)
        for name, masks in zip(volumes, chosen, strict=True):
            for mask in masks if stems[_stem(name)] > 1 else ():
                claims[mask.path] = max(claims[mask.path], _nearness(name, mask.path))
        for name, masks in zip(volumes, chosen, strict=True):
            yield [mask for mask in masks if _nearness(name, mask.path) >= claims[mask.path]]


def _expression(pattern: str) -> re.Pattern[str]:
    """A regular expression with a group for each wildcard of one part of a path."""
    text = ""
    for piece in WILDCARD.split(pattern):
        if piece.startswith("*"):
            text += "(.*)"
        elif piece == "?":
            text += "(.)"
        elif WILDCARD.fullmatch(piece):
            text += f"([{'^' if piece[1] == '!' else ''}{piece[1:-1].lstrip('!')}])"
        else:
            text += re.escape(piece)
    return re.compile(text, re.DOTALL)


def _stem(path: str) -> str:
    """The name of a volume without its suffix, and without separators at its ends."""
    name = os.path.basename(whole_store(path))
    return name[: len(name) - len(suffix_of(name))].strip(SEPARATORS)


def _bids_parts(path: str) -> tuple[Entities, tuple[str | None, ...]]:
    """The entities of a name but those that describe a mask, and those of the grid."""
    entities = entities_of(whole_store(path))
    shared = frozenset((key, value) for key, value in entities.items() if key not in OF_MASK)
    return shared, tuple(entities.get(key) for key in OF_GRID)


def _most(masks: Sequence[MaskFile], measure: Callable[[MaskFile], int]) -> list[MaskFile]:
    best = max(map(measure, masks), default=0)
    return [mask for mask in masks if measure(mask) == best]


def _nearest(volume: str, masks: Sequence[MaskFile]) -> list[MaskFile]:
    return _most(masks, lambda mask: _nearness(volume, mask.path)) if len(masks) > 1 else [*masks]


def _nearness(volume: str, mask: str) -> int:
    """The number of equal folder names, from the files upwards; most for the same folder."""
    one, other = (os.path.dirname(identity(path)).split(os.sep)[::-1] for path in (volume, mask))
    if one == other:
        return 1 << 16
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count


# --------------------------------------------------------------------------------------------------
# BIDS


def by_entities(volumes: Sequence[str]) -> list[Choice]:
    """The rule `auto`: the brain mask of each volume, in its folder.

    A brain mask has the suffix mask, and `desc-brain` or neither desc nor label. It has the
    volume's space, cohort, res and den, and no other entity that the volume lacks; of several,
    those with most entities. For raw data without one, the same folder of each dataset in
    `derivatives` is searched.
    """
    listed = cache(_masks_in)
    return [_brain_mask(name, listed) for name in volumes]


def _masks_in(folder: str) -> list[tuple[MaskFile, dict[str, str]]]:
    """The BIDS masks in a folder, with all entities."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    masks = [
        os.path.join(folder, name) if folder != "." else name
        for name in names
        if _stem(name).endswith("_mask") and entities_of(name) and find_format(name) is not None
    ]
    return [(MaskFile(path, *_bids_parts(path)), entities_of(path)) for path in masks]


def _brain_mask(
    volume: str, listed: Callable[[str], list[tuple[MaskFile, dict[str, str]]]]
) -> Choice:
    entities, grid = _bids_parts(volume)
    if not entities or "://" in volume:
        return Choice([], "auto goes by BIDS names of files, and this is none")
    others: list[str] = []
    for folders in _mask_folders(volume):
        fitting = [
            (mask, of_mask)
            for folder in folders
            for mask, of_mask in listed(folder)
            if mask.entities <= entities
            and mask.grid == grid
            and identity(mask.path) != identity(volume)
        ]
        brain = [
            mask
            for mask, of_mask in fitting
            if of_mask.get("desc", "brain") == "brain" and of_mask.get("label", "brain") == "brain"
        ]
        if brain:
            best = _most(brain, lambda mask: len(mask.entities))
            described = [mask for mask in best if entities_of(mask.path).get("desc")]
            return Choice([mask.path for mask in described or best])
        others += [os.path.basename(mask.path) for mask, _ in fitting]
    if others:
        return Choice([], f"no brain mask, only {', '.join(others[:3])}")
    wanted = fields_of(volume)["entities"]
    return Choice([], f"no {wanted}_desc-brain_mask")


def _mask_folders(volume: str) -> Iterator[list[str]]:
    """The folders to search for a mask, place by place: the volume's own, then derivatives.

    The same folder in all datasets of `derivatives` is one place: masks in two of them are two.
    """
    yield [os.path.dirname(volume) or "."]
    try:
        file = read_name(volume)
    except SpecError:
        return
    above = glob.glob(os.path.join(glob.escape(file.root), "derivatives", "*"))
    yield [os.path.join(folder, *file.folders) for folder in sorted(above)]
