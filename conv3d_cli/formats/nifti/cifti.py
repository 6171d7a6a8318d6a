"""Recognize CIFTI files by their name and header: NIfTI files that are not volumes.

CIFTI stores values of the brain's surfaces and nuclei. Its six dimensions are 1, 1, 1, 1 and two
lists; neighbours in a list are not neighbours in the brain.

Source: CIFTI-2 specification, "File Name Extensions" and "NIfTI-2 Header" (intents from 3000, the
XML as an extension of code 32).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from conv3d_cli.errors import FormatError

# .dscalar.nii, .dtseries.nii, .dlabel.nii, .dconn.nii, .ptseries.nii, .pdconn.nii,
# .pconnseries.nii, .sdseries.nii, ...
NAME = re.compile(
    r".+\.(?:[dps]|dp|pd)"
    r"(?:conn(?:series|scalar)?|scalar|[td]?series|label|fan|fansamp|fibersamp)"
    r"\.nii(?:\.gz)?"
)
INTENTS = range(3000, 3100)
EXTENSION_CODE = 32


def has_cifti_name(path: str) -> bool:
    """True if a file has the name of a CIFTI file.

    >>> [has_cifti_name(f"a.{kind}.nii") for kind in ("dtseries", "pconn", "pdconn", "series", "d")]
    [True, True, True, False, False]
    """
    return NAME.fullmatch(path.lower()) is not None


def is_cifti(intent: int, extensions: Iterable[int] = ()) -> bool:
    """True if a NIfTI header is CIFTI's, by its intent and the codes of its extensions.

    >>> is_cifti(3002), is_cifti(0, [6, 32]), is_cifti(1002, [6])
    (True, True, False)
    """
    return intent in INTENTS or EXTENSION_CODE in extensions


def refuse_cifti(path: str, intent: int, extensions: Iterable[int] = ()) -> None:
    """Refuse a CIFTI file. Raises: FormatError."""
    if is_cifti(intent, extensions):
        raise FormatError(
            f"cannot read {path}: it is CIFTI, not a volume: its values are a list, where "
            "neighbours are not neighbours in the brain; smooth it with wb_command -cifti-smoothing"
        )
