"""Volumes whose numbers are names: masks and label maps. A batch does not mix them unasked; nor does it take CIFTI for volumes.

Files tell it by their names, as BIDS has it (`mask` and `dseg` are the suffixes of what is discrete; `probseg` is not), or by
their headers: NIfTI's intent 1002, NGFF's `image-label`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from conv3d_cli.formats import content_of
from conv3d_cli.formats.nifti.cifti import has_cifti_name
from conv3d_cli.system.atomic import suffix_of

# BIDS' suffixes (roi and dtissue of before it had dseg), and what else people call them
WORD = re.compile(
    r"(?:.*_)?((?:brain|lesion)?mask|dseg|dtissue|roi|labels?|seg|segmentation|parcellation)",
    re.IGNORECASE,
)
# FreeSurfer's segmentations, which have these names in a subject's folder, too
SEGMENTATION = re.compile(r"(?:.*[_.])?(?:aparc[\w.]*\+aseg|aseg|wmparc)(?:\..*)?", re.IGNORECASE)
SUBJECT = re.compile(r"sub-[0-9a-zA-Z+]+")
DISCRETE, CIFTI, PROBABILITY = "discrete", "cifti", "probability"
DISCRETE_NAMES = "mask or label map", "masks and label maps"
OPTION = "--include-discrete"


def discrete_word(path: str) -> str:
    """The word at the end of a name that makes its file a mask or a label map; "" where there is none.

    >>> discrete_word("sub-01/anat/sub-01_desc-brain_mask.nii.gz"), discrete_word("a_dseg.ome.tif"), discrete_word("brain.nii")
    ('mask', 'dseg', '')
    """
    match = WORD.fullmatch(_stem(path))
    return match[1] if match else ""


def kind_of(path: str, look: bool = True) -> str:
    """What a file is beside a scan: DISCRETE, CIFTI, PROBABILITY, or "" for nothing of these.

    look : bool     into the header, where the name says nothing; what cannot be read is nothing of these
    """
    name = os.path.basename(path.rstrip("/"))
    if has_cifti_name(name):
        return CIFTI
    of_subject = any(SUBJECT.fullmatch(part) for part in os.path.abspath(path).split(os.sep)[:-1])
    if discrete_word(path) or (of_subject and SEGMENTATION.fullmatch(_stem(path))):
        return DISCRETE
    content = content_of(path) if look else ""
    if content:
        return {"labels": DISCRETE, "cifti": CIFTI}[content]
    return PROBABILITY if _stem(path).lower().endswith("_probseg") else ""


def _stem(path: str) -> str:
    name = os.path.basename(path.rstrip("/"))
    return name[: len(name) - len(suffix_of(name))]


def named_discrete(paths: Sequence[str]) -> list[str]:
    """Those of named inputs whose names say that they are masks or label maps: BIDS names, and among several any, since a shell's
    pattern may have named them. Whoever names one file and its output wants it."""
    return [
        path
        for path in paths
        if kind_of(path, look=False) == DISCRETE
        and (len(paths) > 1 or os.path.basename(path).startswith("sub-"))
    ]


@dataclass
class LeftOut:
    """What a batch does without, and what it has that is worth a word.

    discrete, cifti : paths         left out
    probability, taken : paths      probability maps; masks and label maps that are in it all the same
    """

    discrete: list[str] = field(default_factory=list)
    cifti: list[str] = field(default_factory=list)
    probability: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def sift(self, path: str, wanted: bool = False) -> bool:
        """Whether a volume is one for a batch, and note it down if it is anything but a scan.

        wanted : bool       it was asked for, if it is discrete
        """
        kind = kind_of(path)
        if kind in ("", PROBABILITY):
            self.probability += [path] if kind else []
            return True
        if kind == DISCRETE and wanted:
            self.taken.append(path)
            return True
        (self.discrete if kind == DISCRETE else self.cifti).append(path)
        return False

    def words(self) -> list[str]:
        """What was left out, with the cure."""
        words = []
        if self.discrete:
            words.append(
                f"left out {_count(self.discrete, *DISCRETE_NAMES)}, whose values are not to be mixed; {OPTION} takes "
                f"{'it' if len(self.discrete) == 1 else 'them'}, or a --glob that names the word, as in '*_mask.nii*'"
            )
        if self.cifti:
            words.append(
                f"left out {_count(self.cifti, 'CIFTI file', 'CIFTI files')}: no volume{'s' * (len(self.cifti) > 1)}; "
                f"wb_command -cifti-smoothing smooths {'it' if len(self.cifti) == 1 else 'them'}"
            )
        return words

    def notes(self) -> list[str]:
        """Notes on what was left out, and on what is in it."""
        notes = self.words()
        if self.taken:
            taken = _count(self.taken, *DISCRETE_NAMES)
            notes.append(f"the values of {taken} are mixed by the kernel: the output is neither")
        if self.probability:
            notes.append(
                f"among the volumes: {_count(self.probability, 'probability map', 'probability maps')}"
            )
        return notes


def _count(paths: Sequence[str], one: str, many: str) -> str:
    """How many files of a kind, with a name.

    >>> _count(["a/x_mask.nii", "y_mask.nii"], "mask", "masks")
    '2 masks (x_mask.nii, ...)'
    """
    first = os.path.basename(paths[0].rstrip("/"))
    return f"{len(paths)} {one if len(paths) == 1 else many} ({first}{', ...' if len(paths) > 1 else ''})"
