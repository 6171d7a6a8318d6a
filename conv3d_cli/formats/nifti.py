"""NIfTI: being written."""

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import VolumeFormat


def _missing(path, *_, **__):
    raise FormatError(f"cannot handle {path}")


FORMAT = VolumeFormat(
    "NIfTI",
    (".nii.gz", ".nii", ".hdr", ".img", ".hdr.gz", ".img.gz"),
    "",
    _missing,
    _missing,
    lambda letters, channels: letters,
)
