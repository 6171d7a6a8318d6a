"""Deviations from the specifications of formats that readers forgive, each with a note.

A deviation is forgiven only if what deviates is redundant: the place and the meaning of every voxel
are still certain. All else is refused. The manual's list of these is `conv3d help formats`.
"""

from __future__ import annotations

from typing import NamedTuple


class Deviation(NamedTuple):
    """One deviation.

    formats : str       whose files may deviate so
    found : str         what deviates; words in braces are filled in by `deviation_note`
    done : str          what the reader does
    source : str        the rule that is broken, and who reads such files in the same way
    """

    formats: str
    found: str
    done: str
    source: str


DEVIATIONS = {
    "bitpix": Deviation(
        "NIfTI",
        "its bitpix is {bitpix}, and a voxel of its datatype {datatype} has {bits} bits",
        "the datatype is believed",
        "nifti1.h, DATA DIMENSIONALITY; nifti1_io.c and ITK compute it from the datatype",
    ),
    "zero-size": Deviation(
        "NIfTI",
        "its dim[{dimension}] is 0",
        "read as 1",
        "nifti1.h: dim[1] to dim[dim[0]] are positive; nifti1_io.c, nifti_convert_nhdr2nim",
    ),
    "pair-magic": Deviation(
        "NIfTI",
        "its magic {magic} is that of a .hdr file, but the voxels are here",
        "read as one file",
        "nifti1.h, MAGIC STRING; nibabel, ITK and MRtrix go by the name",
    ),
    "extension-size": Deviation(
        "NIfTI",
        "its extension {number} says it has {size} bytes, of at most {room}",
        "it and all after it are left out",
        "nifti1.h, EXTENDED HEADER; nifti1_io.c, nifti_read_extensions, stops there, too",
    ),
    "extension-bytes": Deviation(
        "NIfTI",
        "its extensions are more than {limit} from number {number} on",
        "that one and all after it are left out",
        "a limit of this program: a header of a megabyte may unpack to gigabytes",
    ),
    "negative-pixdim": Deviation(
        "NIfTI",
        "its pixdim[{dimension}] is {size}",
        "read without the sign",
        "nifti1.h: pixdim[1] to pixdim[7] are positive; nibabel takes the absolute value",
    ),
    "no-pixdim": Deviation(
        "NIfTI",
        "its pixdim[{dimension}] is {size}, which is no voxel size",
        "read as 1, as long as no spacing is given",
        "nifti1.h, as above; nifti1_io.c, nifti_convert_nhdr2nim, sets it to 1",
    ),
    "pixdim-against-sform": Deviation(
        "NIfTI",
        "its voxel sizes contradict each other: {used} by the sform, {other} by pixdim (x,y,z)",
        "the sform is believed, while FSL believes pixdim",
        "nifti1.h, METHOD 3; nibabel, ITK and MRtrix prefer the sform",
    ),
    "qform": Deviation(
        "NIfTI",
        "its qform has no meaning",
        "the sform beside it is used",
        "nifti1.h, METHOD 2 and 3; nibabel and ITK prefer the sform",
    ),
    "long-quaternion": Deviation(
        "NIfTI",
        "its quaternion (b,c,d) has the length {length:.4g}, which no rotation has",
        "read as a rotation by 180 degrees around it",
        "nifti1.h, METHOD 2: b*b+c*c+d*d <= 1; nifti1_io.c, nifti_quatern_to_mat44",
    ),
    "after-gzip": Deviation(
        "gzip",
        "bytes that are no gzip stream follow its gzip stream",
        "ignored",
        "RFC 1952, 2.2: a file is a series of members; gzip ignores trailing garbage, too",
    ),
}


def deviation_note(name: str, **values: object) -> str:
    """The note on a deviation that a reader found.

    name : str      its key in `DEVIATIONS`
    values          the words in braces of its `found`

    >>> deviation_note("bitpix", bitpix=32, datatype=2, bits=8)
    'its bitpix is 32, and a voxel of its datatype 2 has 8 bits: the datatype is believed'
    """
    deviation = DEVIATIONS[name]
    return f"{deviation.found.format(**values)}: {deviation.done}"
