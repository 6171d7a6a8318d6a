"""The texts of --mask: a file, or a rule that finds a mask for each volume of a batch.

A rule is `auto`, a pattern with wildcards, or a template with fields in braces. A text that is the
name of a file is that file, whatever its characters. `batch/masks.py` finds the masks.
"""

from __future__ import annotations

import os
from pathlib import Path

from conv3d_cli.system.parts import file_of

AUTO = "auto"


def is_rule(text: str) -> bool:
    """Whether a text is a rule rather than the name of a file.

    >>> is_rule("auto"), is_rule("sub-*/*_mask.nii"), is_rule("{stem}_mask.nii")
    (True, True, True)
    >>> is_rule("brain.nii"), is_rule("https://host/mask.zarr?version=2")
    (False, False)
    """
    if text == AUTO:
        return True
    if not (has_fields(text) or has_wildcards(text)):
        return False
    file = file_of(text)  # FOLDER::PATTERN and FILE::PART name one volume
    return not (os.path.exists(file) or (file != text and not has_wildcards(file)))


def has_fields(text: str) -> bool:
    """Whether a text has braces, as a template has."""
    return "{" in text or "}" in text


def has_wildcards(text: str) -> bool:
    """Whether a text has wildcards; those of a URL are no wildcards."""
    return "://" not in text and any(character in text for character in "*?[")


def located_mask(text: str, folder: Path) -> str:
    """A mask, or a rule for masks, that a file in `folder` names.

    A file and a pattern are joined to the folder. A template is not: it is relative to the folder
    of each volume, unless it names that folder itself, behind another one.

    >>> located_mask("m.nii", Path("a")), located_mask("*_m.nii", Path("a"))
    ('a/m.nii', 'a/*_m.nii')
    >>> located_mask("{stem}_m.nii", Path("a")), located_mask("masks/{dir}/m.nii", Path("a"))
    ('{stem}_m.nii', 'a/masks/{dir}/m.nii')
    """
    if text == AUTO or "://" in text:
        return text
    whole = str(folder / text)
    of_volume = text.startswith("{dir}") or "{dir}" not in text
    return text if has_fields(text) and of_volume and not os.path.exists(whole) else whole
