"""The voxels of DICOM images; a process of its own unpacks those that are packed.

What an image unpacks to is only known to the library that does it: a decoder of JPEG takes what the
size in its stream asks for, and that of RLE writes until its segments end.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import library_errors
from conv3d_cli.formats.dicom.series import DEFLATED, Frame
from conv3d_cli.model.volume import Array
from conv3d_cli.system.isolated import PIPE_BYTES, PROCESS_BYTES, Isolated, bounded_memory

DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
LIBRARY_BYTES = 4 << 20  # headers and buffers of pydicom
COPIES = 3  # of an image, while pydicom reads it
# The same where it is packed: as packed, at most twice its size, and in the buffers of a decoder.
PACKED_COPIES, DECODER_BYTES = 8, 16 << 20


class Images:
    """Reads the images of a series.

    name : str              of the series, for messages
    stored : dtype          of the voxels
    samples : int           of a voxel
    syntaxes : collection   the transfer syntaxes of its files
    voxels : int            of an image
    """

    def __init__(
        self,
        name: str,
        stored: np.dtype[Any],
        samples: int,
        syntaxes: Collection[str],
        voxels: int,
    ) -> None:
        from pydicom.uid import UID

        self._name, self._stored, self._samples = name, stored, samples
        self._deflated = DEFLATED in syntaxes
        self._packed = any(UID(syntax).is_encapsulated for syntax in syntaxes)
        self._process: Isolated | None = None
        size = voxels * samples * stored.itemsize
        self._bound = PACKED_COPIES * size + DECODER_BYTES
        self.held = COPIES * size + LIBRARY_BYTES
        """Bytes of memory that an image takes while it is read."""
        if self._packed:
            self.held = self._bound + size + PROCESS_BYTES + PIPE_BYTES

    def image(self, frame: Frame) -> Array:
        """The voxels of a frame, (H, W) or (H, W, samples). Raises: FormatError."""
        if not self._packed:
            return _pixels(frame, self._stored, self._samples, self._deflated)
        if self._process is None:
            self._process = Isolated(self._name, "a decoder of DICOM images")
        found: Array = self._process.call(
            f"{__name__}:unpacked",
            *(frame, self._stored, self._samples, self._deflated, self._bound),
        )
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()


def unpacked(
    frame: Frame, stored: np.dtype[Any], samples: int, deflated: bool, bound: int
) -> Array:
    """The voxels of a frame, in the process that unpacks it. Raises: FormatError."""
    import pydicom.pixels.utils  # noqa: F401 - before what it takes is bounded

    with bounded_memory(bound, frame.file):
        return _pixels(frame, stored, samples, deflated)


def _pixels(frame: Frame, stored: np.dtype[Any], samples: int, deflated: bool) -> Array:
    """The voxels of a frame, (H, W) or (H, W, samples). Raises: FormatError."""
    from pydicom import dcmread
    from pydicom.pixels.utils import pixel_array

    with library_errors(frame.file, "DICOM"):
        source: Any = frame.file
        if deflated:  # the whole file is one stream
            source = dcmread(frame.file, force=True)
        try:
            found: Array = np.asarray(pixel_array(source, index=frame.index))
        except RuntimeError as error:  # of a decoder
            cause = " ".join(str(error).split()).rpartition("plugins: ")[2][:120]
            if cause.endswith(":"):  # only a MemoryError has no text
                raise MemoryError from error
            raise FormatError(
                f"cannot read {frame.file}: its image is damaged, or packed in a way that the "
                f"installed decoders lack ({cause}); {DECODERS}, or gdcmconv --raw FILE NEW"
            ) from error
    rows, columns, _, bits, used, high = frame.kind[:6]
    expected = (rows, columns, samples) if samples > 1 else (rows, columns)
    if found.shape != expected:
        raise FormatError(f"cannot read {frame.file}: damaged DICOM: an image of {found.shape}")
    if stored.kind in "iu" and found.dtype == stored and used and high and used < bits:
        # bits above those in use may hold an overlay
        left, right = bits - 1 - high, bits - used
        if 0 <= left <= right < bits:
            found = (found << left) >> right
    return found.astype(stored, copy=False)
