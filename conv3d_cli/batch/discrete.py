"""Recognizes masks and label maps, whose values a convolution must not mix, CIFTI and surfaces.

A batch leaves them out unless the user asks for them. A file is recognized by its name, as in BIDS
(the suffixes `mask` and `dseg` are discrete, `probseg` is not), or by its header: NIfTI's intent
1002, NGFF's `image-label`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from conv3d_cli.formats import content_of
from conv3d_cli.formats.nifti.cifti import has_cifti_name
from conv3d_cli.system.atomic import suffix_of
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.words import count_of

# BIDS' suffixes (roi and dtissue are older than dseg), and other words that people use
WORD = re.compile(
    r"(?:.*_)?((?:brain|lesion)?mask|dseg|dtissue|roi|labels?|seg|segmentation|parcellation)",
    re.IGNORECASE,
)
# FreeSurfer's names of segmentations, which other tools keep in a subject's folder
SEGMENTATION = re.compile(r"(?:.*[_.])?(?:aparc[\w.]*\+aseg|aseg|wmparc)(?:\..*)?", re.IGNORECASE)
SUBJECT = re.compile(r"sub-[0-9a-zA-Z+]+")
DISCRETE, CIFTI, PROBABILITY = "discrete", "cifti", "probability"
SURFACES = (".gii", ".gii.gz")  # GIFTI: surfaces, and values on them
DISCRETE_NAMES = "mask or label map", "masks and label maps"
OPTION = "--include-discrete"


def discrete_word(path: str) -> str:
    """The word at the end of a file name that marks a mask or a label map; "" if there is none.

    >>> discrete_word("sub-01/anat/sub-01_desc-brain_mask.nii.gz"), discrete_word("a_dseg.ome.tif")
    ('mask', 'dseg')
    >>> discrete_word("brain.nii")
    ''
    """
    match = WORD.fullmatch(_stem(path))
    return match[1] if match else ""


def kind_of(path: str, look: bool = True) -> str:
    """The kind of a file: DISCRETE, CIFTI, PROBABILITY, or "" for a scan.

    look : bool     read the header if the name does not tell; a file that cannot be read is a scan

    >>> kind_of("a_mask.nii", look=False), kind_of("a_probseg.nii", look=False)
    ('discrete', 'probability')
    """
    name = os.path.basename(file_of(path).rstrip("/"))
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
    name = os.path.basename(file_of(path).rstrip("/"))
    return name[: len(name) - len(suffix_of(name))]


def named_discrete(paths: Sequence[str]) -> list[str]:
    """Named inputs whose names mark masks or label maps.

    Among several inputs any such name counts, since a shell's pattern may have named them. A single
    input counts only if it has a BIDS name: whoever names one file wants it.

    >>> named_discrete(["a.nii", "a_mask.nii"]), named_discrete(["a_mask.nii"])
    (['a_mask.nii'], [])
    """
    return [
        path
        for path in paths
        if kind_of(path, look=False) == DISCRETE
        and (len(paths) > 1 or os.path.basename(path).startswith("sub-"))
    ]


@dataclass
class LeftOut:
    """The files that a batch leaves out, and those it takes that deserve a note.

    discrete : list of str          masks and label maps that are left out
    cifti : list of str             CIFTI files, which are left out
    surfaces : list of str          GIFTI files of a folder, which are left out
    probability : list of str       probability maps, which are taken
    taken : list of str             masks and label maps that are taken because they were asked for
    """

    discrete: list[str] = field(default_factory=list)
    cifti: list[str] = field(default_factory=list)
    surfaces: list[str] = field(default_factory=list)
    probability: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def sift(self, path: str, wanted: bool = False) -> bool:
        """Record a file unless it is a scan. Returns whether the batch takes it.

        wanted : bool       take it even if it is a mask or a label map
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

    @property
    def paths(self) -> list[str]:
        """The paths of all files that are left out."""
        return [*self.discrete, *self.cifti, *self.surfaces]

    def words(self) -> list[str]:
        """Notes on the files left out, each with its cure."""
        words = []
        if self.discrete:
            words.append(
                f"left out {_count(self.discrete, *DISCRETE_NAMES, _words_of(self.discrete))}, "
                f"whose values must not be mixed; {OPTION} takes {_pronoun(self.discrete)}, "
                "or a --glob that names the word, as in '*_mask.nii*'"
            )
        if self.cifti:
            words.append(
                f"left out {_count(self.cifti, 'CIFTI file', 'CIFTI files')}: not volumes; "
                f"wb_command -cifti-smoothing smooths {_pronoun(self.cifti)}"
            )
        if self.surfaces:
            words.append(
                f"left out {_count(self.surfaces, 'surface file', 'surface files')}: not volumes; "
                "wb_command -metric-smoothing smooths values on a surface"
            )
        return words

    def notes(self, mixes: bool = True) -> list[str]:
        """Notes on the files left out, and on masks, label maps and probability maps taken.

        mixes : bool    False if their values are copied
        """
        notes = self.words()
        if not mixes:
            return notes
        if self.taken:
            taken = _count(self.taken, *DISCRETE_NAMES)
            notes.append(
                f"the kernel mixes the values of {taken}: outputs are no longer masks or label maps"
            )
        if self.probability:
            notes.append(
                "among the volumes: "
                f"{_count(self.probability, 'probability map', 'probability maps')}"
            )
        return notes


def _count(paths: Sequence[str], one: str, many: str, kinds: str = "") -> str:
    """A count of files of a kind, with the name of the first one.

    kinds : str     counts of what is among them; left out if there is a single file

    >>> _count(["a/x_mask.nii", "y_mask.nii"], "mask", "masks")
    '2 masks (x_mask.nii, ...)'
    """
    first = os.path.basename(paths[0].rstrip("/"))
    others = ", ..." if len(paths) > 1 else ""
    kinds = f"{kinds}: " if kinds and len(paths) > 1 else ""
    return f"{count_of(len(paths), one, many)} ({kinds}{first}{others})"


def _words_of(paths: Sequence[str]) -> str:
    """How many masks and label maps each word marks.

    >>> _words_of(["a_mask.nii", "b_dseg.nii", "b_mask.nii", "atlas.nii"])
    '2 mask, 1 dseg, 1 by header or folder'
    """
    words = Counter(discrete_word(path).lower() or "by header or folder" for path in paths)
    return ", ".join(f"{count} {word}" for word, count in words.most_common())


def _pronoun(paths: Sequence[str]) -> str:
    return "it" if len(paths) == 1 else "them"
