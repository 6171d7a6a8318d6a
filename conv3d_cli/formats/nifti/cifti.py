"""CIFTI: values of a brain's surfaces and nuclei, kept in NIfTI files that are no volumes. What tells one, by name and header.

Their six dimensions are 1, 1, 1, 1, and two lists; neighbours in a list are not neighbours in the brain. Followed is the CIFTI-2
specification: "File Name Extensions", and "NIfTI-2 Header" (intents from 3000, the XML as an extension of code 32).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from conv3d_cli.errors import FormatError

# .dscalar.nii, .dtseries.nii, .dlabel.nii, .dconn.nii, .ptseries.nii, .pdconn.nii, .pconnseries.nii, .sdseries.nii, ...
NAME = re.compile(
    r".+\.(?:[dps]|dp|pd)(?:conn(?:series|scalar)?|scalar|[td]?series|label|fan|fansamp|fibersamp)\.nii(?:\.gz)?"
)
INTENTS = range(3000, 3100)
EXTENSION_CODE = 32


def has_cifti_name(path: str) -> bool:
    """Whether a file's name is that of CIFTI.

    >>> [has_cifti_name(f"sub-1_bold.{kind}.nii") for kind in ("dtseries", "pconn", "pdconn", "series", "d")]
    [True, True, True, False, False]
    """
    return NAME.fullmatch(path.lower()) is not None


def is_cifti(intent: int, extensions: Iterable[int] = ()) -> bool:
    """Whether a NIfTI header is that of CIFTI, by its intent and the codes of its extensions."""
    return intent in INTENTS or EXTENSION_CODE in extensions


def refuse_cifti(path: str, intent: int, extensions: Iterable[int] = ()) -> None:
    """Refuse a NIfTI file that is CIFTI. Raises: FormatError."""
    if is_cifti(intent, extensions):
        raise FormatError(
            f"cannot read {path}: it is CIFTI, no volume: its values stand in a list, where neighbours are not neighbours in the "
            "brain; smooth it with wb_command -cifti-smoothing"
        )
