"""The NIfTI header: read with checks, and written for an output.

nibabel supplies the layout of the fields. Its checks are not used: they correct fields that must be
written back unchanged, and log to standard error. A volume read from NIfTI keeps its header, and
fields that do not change keep their bytes.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError, setting
from conv3d_cli.formats.base import real_dtype
from conv3d_cli.formats.deviations import deviation_note
from conv3d_cli.formats.nifti.grid import write_grid
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.units import TIME_UNITS as TIMES
from conv3d_cli.model.volume import CHANNEL, SPATIAL, Axes, Facts, VolumeHeader, is_history

LETTERS = "xyztcab"  # axis letters of dimensions 1 to 7
RGB_LETTERS = "xyztdab"  # of RGB volumes: `s` is the channel axis, and dimension 5 is batch
LARGEST_NIFTI1_SIZE = 32767
VECTOR_INTENT, MATRIX_INTENT, LABEL_INTENT = 1007, 1004, 1002
# Intents that filtered values do not have: statistics with their degrees of freedom, p-values, and
# numbers of labels. A mean of t values has no t distribution.
# Source: nifti1.h, INTERPRETATION OF VOXEL DATA.
MEANINGS = {
    2: "a correlation",
    3: "a t test",
    4: "an F test",
    5: "a z score",
    **dict.fromkeys(range(6, 22), "a statistic"),
    **dict.fromkeys(range(22, 25), "p-values"),
    LABEL_INTENT: "labels",
    1003: "names of neuroanatomy",
}
# what the values of a voxel are together, which some or others are not
TUPLES = {
    MATRIX_INTENT: "matrices",
    1005: "symmetric matrices",
    1006: "displacements",
    1010: "quaternions",
}
# Vertices of FreeSurfer's icospheres, 10 * 4^k + 2, that are too many for a NIfTI-1 axis or are
# folded to fit.
VERTICES = tuple(10 * 4**k + 2 for k in range(5, 8))

# datatype code -> NumPy type; the RGB codes below are uint8 with a sample axis
DATATYPES: dict[int, Any] = {
    2: np.uint8,
    4: np.int16,
    8: np.int32,
    16: np.float32,
    32: np.complex64,
    64: np.float64,
    256: np.int8,
    512: np.uint16,
    768: np.uint32,
    1024: np.int64,
    1280: np.uint64,
    1536: np.longdouble,
    1792: np.complex128,
    2048: np.clongdouble,
}
QUADRUPLE_MANTISSA = 112  # stored bits of the mantissa of IEEE's binary128
# Memory of all extensions of a file. The connectivity matrices of CIFTI, which is refused, have
# some of 10 MB. Each takes the objects of its entry besides its bytes.
LARGEST_EXTENSIONS, EXTENSION_BYTES = 16 << 20, 256
COMMENT_CODE = 6  # extension of plain text
# A program's name, its version and the day of its build; or a version alone, of three numbers.
VERSION = re.compile(
    r"(?:(?:FSL|MRtrix3?|FreeSurfer|ITK|ANTs|SPM|AFNI|niimath|nibabel|nilearn|Convert3D|c3d|elastix"
    r"|dcm2niix?|mrconvert|Workbench|BrainSuite|TORTOISE)[-_ :,]*(?:version)?[-_ :v]*"
    r"(?:\d[\w.+:-]*)?(?: ?[A-Z][a-z]{2} +\d{1,2} \d{4})?|v?\d+\.\d+\.\d+[\w.+:-]*)",
    re.IGNORECASE,
)
DESCRIP_BYTES = 79  # without the zero that ends the text
RGB_SAMPLES = {128: 3, 2304: 4}
WRITABLE = {np.dtype(DATATYPES[code]): code for code in (2, 4, 8, 16, 64, 256, 512, 768)}
# Written where the input is a NIfTI volume of this dtype, which its readers then know.
KEPT = {np.dtype(DATATYPES[code]): code for code in (1024, 1280)}

Extensions = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, eq=False)
class NiftiSource:
    """What a volume keeps of its NIfTI file for an output in NIfTI.

    header : nibabel Nifti1Header or Nifti2Header       as read, without corrections
    extensions : tuple of (code, bytes)                 content, byte for byte
    pair : bool                                         True if the file was a .hdr/.img pair
    grid : Grid                                         the grid that `header` describes
    channels : int                                      vector components or RGB samples
    """

    header: Any
    extensions: Extensions
    pair: bool
    grid: Grid
    channels: int

    @property
    def rgb(self) -> bool:
        """True if a voxel is an RGB or RGBA colour."""
        return int(self.header["datatype"]) in RGB_SAMPLES

    def size(self, dimension: int) -> int:
        """Size of a dimension (1 to 7); 1 if the file does not have it."""
        sizes = self.header["dim"]
        return int(sizes[dimension]) if dimension <= sizes[0] else 1


def header_class(version: int, pair: bool) -> Any:
    """nibabel's header class for NIfTI-1 or NIfTI-2, of a pair or of a single file."""
    if version == 1:
        from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader

        return Nifti1PairHeader if pair else Nifti1Header
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    return Nifti2PairHeader if pair else Nifti2Header


# --------------------------------------------------------------------------------------------------
# Reading


def read_header(read: Callable[[int], bytes], path: str, pair: bool) -> Any:
    """Read a header as nibabel's, its fields unchanged.

    read : callable     (count) -> the next bytes, from the start of the file on
    pair : bool         True if the file is the .hdr of a pair
    Raises: FormatError if it is not a NIfTI header, or a pair's header holds its own voxels.
    """
    start = read(4)
    little, big = int.from_bytes(start, "little"), int.from_bytes(start, "big")
    if len(start) < 4 or (little not in (348, 540) and big not in (348, 540)):
        raise FormatError(
            f"cannot read {path}: not a NIfTI file: the first 4 bytes are the header's size, "
            f"348 or 540, received {start!r}; give it the suffix of its own format"
        )
    order, length = ("<", little) if little in (348, 540) else (">", big)
    block = start + read(length - 4)
    if len(block) < length:
        raise FormatError(
            f"cannot read {path}: truncated: a header has {length} bytes, the file {len(block)}"
        )
    version = 1 if length == 348 else 2
    magic = block[344:348] if version == 1 else block[4:8]
    single, half = f"n+{version}\0".encode(), f"ni{version}\0".encode()
    if magic not in (single, half):
        wanted = half if pair else single
        hint = (
            "; it may be Analyze 7.5: convert it, as by nibabel's nib-convert or mrconvert"
            if pair and version == 1
            else ""
        )
        raise FormatError(
            f"cannot read {path}: not NIfTI-{version}: its magic is {magic!r}, not {wanted!r}{hint}"
        )
    if version == 2 and block[8:12] not in (b"\r\n\x1a\n", bytes(4)):
        raise FormatError(
            f"cannot read {path}: corrupt: its line ends were changed, as by a copy in text mode"
        )
    if pair and magic == single:
        raise FormatError(
            f"cannot read {path}: by its magic {magic!r} it holds its own voxels: name it .nii"
        )
    return header_class(version, pair)(block, order, check=False)


def _has_pair_magic(header: Any) -> bool:
    return bytes(header["magic"].tobytes()).startswith(b"ni")


def refuse_half(header: Any, path: str, pair: bool) -> None:
    """Refuse a file without voxels that, by its magic, is one half of a pair. Raises: FormatError.

    pair : bool     it was opened as one
    """
    if not pair and _has_pair_magic(header):
        raise FormatError(
            f"cannot read {path}: by its magic {header['magic'].tobytes()!r} its voxels are in "
            "another file: name it .hdr, and that file .img"
        )


def magic_notes(header: Any, pair: bool) -> list[str]:
    """A note if a file with its own voxels has the magic of a pair, else none."""
    if pair or not _has_pair_magic(header):
        return []
    return [deviation_note("pair-magic", magic=repr(header["magic"].tobytes()))]


def read_layout(
    header: Any, path: str, notes: list[str]
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Sizes of dimensions 1, 2, ..., the stored dtype, and the samples of an RGB voxel, else 0.

    notes : list of str     gets the notes on deviations
    Raises: FormatError if these fields are damaged, or if the voxels are not real numbers.
    """
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7:
        raise FormatError(
            f"cannot read {path}: its header is damaged: dim[0], the number of axes, is {rank}, "
            "not 1 to 7"
        )
    sizes = tuple(int(n) for n in header["dim"][1 : rank + 1])
    if sizes[0] == -1:  # FreeSurfer's way around the largest size, 32767: the length is in glmin
        raise FormatError(
            f"cannot read {path}: it is FreeSurfer's list of a surface's vertices (dim[1] is -1), "
            "not a volume; smooth it with mri_surf2surf"
        )
    if sizes[0] < 1 or min(sizes) < 0:
        raise FormatError(
            f"cannot read {path}: its header is damaged: an axis has at least 1 voxel, "
            f"dim is {sizes}"
        )
    notes += [
        deviation_note("zero-size", dimension=dimension)
        for dimension, size in enumerate(sizes, 1)
        if size == 0
    ]
    sizes = tuple(max(1, size) for size in sizes)
    if rank == 1:
        raise FormatError(
            f"cannot read {path}: it has 1 axis of {sizes[0]} values; "
            "a volume has 2 or 3 axes of space"
        )
    code, bits = int(header["datatype"]), int(header["bitpix"])
    samples = RGB_SAMPLES.get(code, 0)
    if not samples and code not in DATATYPES:
        name = {0: " (unknown)", 1: " (binary)"}.get(code, "")
        raise FormatError(
            f"cannot read {path}: its datatype {code}{name} is not supported; convert it to float32"
        )
    stored = np.dtype(np.uint8 if samples else DATATYPES[code])
    if code == 1536 and np.finfo(np.longdouble).nmant != QUADRUPLE_MANTISSA:
        raise FormatError(
            f"cannot read {path}: its datatype 1536 is IEEE's float of 128 bits, which this "
            "machine's processor does not have; write it as float64 where it was made"
        )
    real_dtype(stored, path)
    expected = 8 * stored.itemsize * max(1, samples)
    if bits != expected:
        notes.append(deviation_note("bitpix", bitpix=bits, datatype=code, bits=expected))
    return sizes, stored.newbyteorder(header.endianness), samples


def surface_notes(sizes: Sequence[int]) -> tuple[str, ...]:
    """A note if the voxels seem to be a list, such as the vertices of a surface.

    They do if only one axis is longer than 1, or if FreeSurfer folded its vertices to this shape.

    sizes : ints        of dimensions 1, 2, ...
    >>> [len(surface_notes(sizes)) for sizes in ((27307, 1, 6), (10242, 1, 1), (1, 1, 1, 7))]
    [1, 1, 1]
    >>> [len(surface_notes(sizes)) for sizes in ((256, 1, 256), (9, 1), (1, 1, 1))]
    [0, 1, 0]
    """
    x, y, z = (*sizes, 1, 1)[:3]
    line = sum(n > 1 for n in (x, y, z)) < 2 and math.prod(sizes) > 1
    if not line and not (y == 1 and x * z in VERTICES):
        return ()
    return (
        f"its {x} x {y} x {z} voxels are a list rather than a volume: if they are the vertices of "
        "a surface, as FreeSurfer stores them, neighbours in it are not neighbours in the brain "
        "(mri_surf2surf smooths along the surface)",
    )


def read_voxel_offset(header: Any, path: str, pair: bool) -> int:
    """Bytes before the first voxel (vox_offset).

    Raises: FormatError if the number is not possible.
    """
    value = float(header["vox_offset"])
    least = 0 if pair else header.single_vox_offset
    if value < least:
        refuse_half(header, path, pair)
    if not math.isfinite(value) or value != int(value) or value < least:
        raise FormatError(
            f"cannot read {path}: its header is damaged: vox_offset, where voxels start, "
            f"is {value:g}, not a whole number from {least} on"
        )
    return int(value)


TIME_UNITS = {8: "s", 16: "ms", 24: "us"}  # xyzt_units & 56


def read_time_step(header: Any) -> tuple[float, str] | None:
    """The step along dimension 4 (TR) and its unit, "" without one; None if there is none.

    1 without a unit is what programs write that know nothing. Other units are not of time.
    """
    step, code = float(header["pixdim"][4]), int(header["xyzt_units"]) & 56
    unit = TIME_UNITS.get(code, "")
    known = 0 < step < math.inf and (unit or (code == 0 and step != 1))
    return (step, unit) if known else None


def kept_facts(path: str, volume: VolumeHeader) -> frozenset[str]:
    """What of `Facts` an output holds: a time step along dimension 4, see `VolumeFormat.keeps`."""
    dimension = _dimensions(stored_axes(volume.axes, volume.dtype)).get("t")
    facts = volume.facts
    writable = facts.time_step is not None and (facts.seconds is not None or not facts.time_step[1])
    same = source_of(volume) is not None
    step = {"time_step"} if same or (writable and dimension == 4) else set()
    return frozenset(step | ({*facts.others, *facts.provenance} if same else set()))


def is_version(text: str) -> bool:
    """True if a description is no more than a program and its version, which programs overwrite.

    FSL writes "6.0.4:ddd0a010" or "FSL5.0", MRtrix "MRtrix version: 3.0.4", FreeSurfer its name and
    the day of its build.

    >>> is_version("FSL5.0"), is_version("6.0.7.1:a1b2"), is_version("FreeSurfer Aug 12 2022")
    (True, True, True)
    >>> is_version("TE=30;Time=1200"), is_version("spm - realigned"), is_version("5.0 mm")
    (False, False, False)
    """
    return VERSION.fullmatch(text) is not None


def read_others(header: Any, extensions: Extensions) -> tuple[str, ...]:
    """What a header tells that only another one can hold, in words: see `Facts.others`."""
    found = []
    for field, what in (
        ("descrip", "the description"),
        ("aux_file", "the name of an auxiliary file"),
        ("intent_name", "the name of the intent"),
    ):
        text = bytes(header[field].tobytes()).partition(b"\0")[0].decode("utf-8", "replace").strip()
        if text and not (field == "descrip" and is_version(text)):
            found.append(f"{what} ({text[:40]})")
    first = float(header["toffset"])
    if first and math.isfinite(first):
        found.append(f"the time of the first volume ({first:g})")
    if int(header["slice_code"]) and int(header["dim"][0]) > 3:
        found.append("the order of the slices in time")
    strange = [code for code, text in extensions if not read_history(((code, text),))]
    if strange:
        found.append(f"{len(strange)} extension{'s' if len(strange) > 1 else ''} of the header")
    return tuple(found)


def read_provenance(header: Any) -> tuple[str, ...]:
    """The version of the program that wrote a header, in words: see `Facts.provenance`."""
    text = bytes(header["descrip"].tobytes()).partition(b"\0")[0].decode("utf-8", "replace").strip()
    return (f"the program's version ({text[:40]})",) if is_version(text) else ()


def _write_time_step(header: Any, facts: Facts) -> None:
    """Write a time step into a header of a volume from another format, in s, ms or us."""
    if facts.time_step is None or (facts.seconds is None and facts.time_step[1]):
        return
    step, unit = facts.time_step
    codes = {name: code for code, name in TIME_UNITS.items()}
    if unit and unit not in codes:
        unit = "us" if unit == "ns" else "s"
        step = float(f"{(facts.seconds or 0.0) / TIMES[unit].seconds:.12g}")
    header["pixdim"][4] = step
    header["xyzt_units"] = (int(header["xyzt_units"]) & ~56) | codes.get(unit, 0)


def read_scale(header: Any, path: str) -> tuple[float, float]:
    """Slope and intercept; (1, 0) where the header has none.

    Raises: FormatError for a slope without an intercept.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise FormatError(
            f"cannot read {path}: its header is damaged: "
            f"scl_slope is {slope:g}, scl_inter is {intercept}"
        )
    return slope, intercept


def read_extensions(
    read: Callable[[int], bytes], header: Any, end: int, pair: bool, notes: list[str]
) -> Extensions:
    """The extensions after a header, as (code, content with padding).

    nibabel's reader is not used: it strips trailing zeros and trusts any size.

    read : callable     (count) -> the next bytes, from the end of the header on
    end : int           byte of the file where extensions end at the latest
    notes : list of str gets the note on one of an impossible size, or beyond what is kept; it and
                        those after it are left out
    """
    found: list[tuple[int, bytes]] = []
    extender = read(4)
    if len(extender) < 4 or not extender[0]:
        return ()
    room, left = end - header.sizeof_hdr - 4, LARGEST_EXTENSIONS
    while room >= 16:
        head = read(8)
        if pair and not head:
            break
        size, code = struct.unpack(header.endianness + "ii", head) if len(head) == 8 else (-1, 0)
        if size == 0:
            break  # zeros between the last extension and the voxels
        left -= max(size, 0) + EXTENSION_BYTES
        if 8 <= size <= room and left < 0:
            limit = f"{LARGEST_EXTENSIONS >> 20} MiB"
            notes.append(deviation_note("extension-bytes", number=len(found) + 1, limit=limit))
            break
        content = read(size - 8) if 8 <= size <= room else b""
        if size < 8 or len(content) < size - 8:
            notes.append(
                deviation_note("extension-size", number=len(found) + 1, size=size, room=room)
            )
            break
        found.append((code, content))
        room -= size
    return tuple(found)


# --------------------------------------------------------------------------------------------------
# Axes


def output_letters(letters: str, channels: int, dtype: np.dtype[Any]) -> str:
    """NIfTI's order, slowest first: batch, c, the fastest batch axis (t), z, y, x.

    s comes last if 3 or 4 uint8 samples are a colour. Batch axes keep their order, so that volume n
    of the input is volume n of the output.

    >>> byte, real = np.dtype(np.uint8), np.dtype(np.float32)
    >>> [output_letters(*a, real) for a in (("tzyxc", 2), ("zyx", 4), ("xyz", 1), ("tzyxs", 3))]
    ['ctzyx', 'czyx', 'zyx', 'ctzyx']
    >>> output_letters("tzyxs", 3, byte), output_letters("tczyxs", 6, byte)
    ('tzyxs', 'ctzyx')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + CHANNEL)
    space = "".join(a for a in SPATIAL if a in letters)
    if "s" in letters and "c" not in letters and channels in (3, 4) and dtype == np.uint8:
        return batch + space + "s"
    vector = "c" if "c" in letters or channels > 1 else ""
    return batch[:-1] + vector + batch[-1:] + space


def stored_axes(axes: Axes, dtype: np.dtype[Any]) -> Axes:
    """The axes that a volume with these has in the file; all channels are one axis."""
    channels = axes.canonical_shape[4]
    letters = output_letters(axes.letters, channels, dtype)
    return axes.renamed(letters, {"c": channels, "s": channels})


def _dimensions(axes: Axes) -> dict[str, int]:
    """The dimension (1 to 7) of each letter of `stored_axes`, without s.

    Raises: WriteError if there are more axes than dimensions.
    """
    places = (7, 6, 5, 4) if axes.letters.endswith("s") else (7, 6, 4)
    batch = axes.batch_letters
    if len(batch) > len(places):
        raise WriteError(
            f"NIfTI has {len(places)} axes besides space and channels, "
            f"received {len(batch)} ('{batch}'); write .npy"
        )
    dimensions = {a: 1 + "xyz".index(a) for a in axes.letters if a in SPATIAL}
    dimensions |= zip(batch, places[len(places) - len(batch) :], strict=True)
    return dimensions | ({"c": 5} if "c" in axes.letters else {})


# --------------------------------------------------------------------------------------------------
# Writing


def output_header(volume: VolumeHeader, axes: Axes, pair: bool) -> tuple[Any, list[str]]:
    """The nibabel header of an output, and notes on what NIfTI cannot store.

    The header is little-endian; `header_bytes` sets its vox_offset.

    axes : Axes     `stored_axes` of the volume
    pair : bool     True for a .hdr/.img pair
    Raises: WriteError, without the path, for a dtype or axes that NIfTI cannot store.
    """
    notes: list[str] = []
    source = source_of(volume)
    codes = WRITABLE
    if source is not None and volume.dtype == DATATYPES.get(int(source.header["datatype"])):
        codes = {**WRITABLE, **KEPT}
    if volume.dtype not in codes:
        raise _dtype_error(volume.dtype)
    dimensions = _dimensions(axes)
    sizes = [max(dimensions.values())] + [1] * 7
    for letter, dimension in dimensions.items():
        sizes[dimension] = axes.size(letter)
    version = 2 if source is not None and int(source.header["sizeof_hdr"]) == 540 else 1
    if version == 1 and max(sizes) > LARGEST_NIFTI1_SIZE:
        version = 2
        notes.append(f"an axis has more than {LARGEST_NIFTI1_SIZE} voxels: written as NIfTI-2")
    batch = axes.batch_letters
    if batch not in ("", "t") and source is None:
        places = ", ".join(str(dimensions[a]) for a in batch)
        notes.append(f"NIfTI has no names for axes: '{batch}' are its dimensions {places}")

    header = header_class(version, pair)(endianness="<")
    if source is not None:
        for field in header:
            if field in source.header and field not in (
                "sizeof_hdr",
                "magic",
                "eol_check",
                "vox_offset",
            ):
                header[field] = source.header[field]
    if (
        source is None
        or source.header["dim"][0] != sizes[0]
        or any(source.size(d) != sizes[d] for d in range(1, 8))
    ):
        header["dim"] = sizes
    rgb = axes.letters.endswith("s")
    samples = axes.size("s")
    rgb_codes = {count: code for code, count in RGB_SAMPLES.items()}
    header["datatype"] = rgb_codes[samples] if rgb else codes[volume.dtype]
    header["bitpix"] = 8 * volume.dtype.itemsize * samples
    header["scl_slope"], header["scl_inter"] = volume.scale
    stored = float(header["scl_slope"]), float(header["scl_inter"])
    if stored != volume.scale:
        notes.append(
            "NIfTI-1 stores slope and intercept in float32: "
            f"{volume.scale[0]!r} and {volume.scale[1]!r} become {stored[0]!r} and {stored[1]!r}"
        )
    if not volume.is_copy:
        header["cal_min"], header["cal_max"] = 0, 0
    others = volume.channel_places == ()  # channels that are none of the input's
    if others:
        header["intent_name"] = b""
    if (
        volume.components
        or volume.channel_places
        or (others and int(header["intent_code"]) in TUPLES)
        or source is None
        or (axes.canonical_shape[4], rgb) != (source.channels, source.rgb)
    ):
        header["intent_code"] = VECTOR_INTENT if axes.size("c") > 1 else 0
        header["intent_name"] = b""
        header["intent_p1"] = header["intent_p2"] = header["intent_p3"] = 0
    if volume.is_filtered and int(header["intent_code"]) in MEANINGS:
        header["intent_code"] = 0
        header["intent_name"] = b""
        header["intent_p1"] = header["intent_p2"] = header["intent_p3"] = 0
    if volume.is_labels:
        header["intent_code"] = LABEL_INTENT
    if volume.components and not rgb:
        notes += _write_components(header, volume.components, axes.size("c"))
    if source is not None and _slices_changed(volume, source, sizes):
        for field in ("slice_start", "slice_end", "slice_duration", "slice_code"):
            header[field] = 0
        header["dim_info"] = int(header["dim_info"]) & 0b1111  # frequency and phase stay
    notes += write_grid(header, volume.grid, None if source is None else source.grid)
    if source is None and dimensions.get("t") == 4:
        _write_time_step(header, volume.facts)
    return header, notes


def lost_meaning(volume: VolumeHeader) -> str:
    """A note if an output's values no longer are what its input's intent says, else "".

    volume : VolumeHeader       of the output
    """
    source = source_of(volume)
    intent = 0 if source is None else int(source.header["intent_code"])
    if volume.channel_places is not None and intent in TUPLES:
        return (
            f"the input's voxels are {TUPLES[intent]} by its header (intent_code), and those of "
            "the output are not: it has no such intent"
        )
    meaning = MEANINGS.get(intent)
    if meaning is None or not volume.is_filtered:
        return ""
    if volume.is_labels:
        return (
            f"the input's voxels are {meaning} by its header (intent_code); those of the output "
            "are labels of their own"
        )
    return (
        f"the input's voxels are {meaning} by its header (intent_code), and filtered ones are not: "
        "the output has no such intent"
    )


def _write_components(header: Any, components: tuple[str, ...], channels: int) -> list[str]:
    """Set the intent of an output of derivatives. Returns notes.

    The intent is a vector. With several input channels it is a matrix, stored row by row, one row
    for each input channel. Its name lists the axes.
    """
    letters = [name.rpartition(" ")[2] for name in components]
    header["intent_name"] = ",".join(letters).encode("ascii", "replace")[:15]
    if channels > len(components):
        header["intent_code"] = MATRIX_INTENT
        header["intent_p1"], header["intent_p2"] = channels // len(components), len(components)
    places = ["wxhydz".find(letter) // 2 for letter in letters]
    if places != sorted(places):
        return [
            "readers of NIfTI take components in the order x, y, z, "
            f"and these are {', '.join(letters)}: see axis="
        ]
    return []


def source_of(volume: VolumeHeader) -> NiftiSource | None:
    """What a volume keeps of its NIfTI file, or of the NIfTI header in its store; else None."""
    found = getattr(volume.metadata, "nifti", volume.metadata)
    return found if isinstance(found, NiftiSource) else None


def _dtype_error(dtype: np.dtype[Any]) -> WriteError:
    cures = {
        "bool": ("NIfTI has no bool", "uint8"),
        "float16": ("NIfTI has no float16", "float32"),
        "int64": ("most readers of NIfTI refuse int64", "int32"),
        "uint64": ("most readers of NIfTI refuse uint64", "uint32"),
    }
    other = (f"NIfTI volumes of {dtype.name} are not written", "float64")
    what, cure = cures.get(dtype.name, other)
    wider = " or float64" if dtype.itemsize == 8 and cure != "float64" else ""
    return WriteError(f"{what}; pass {setting('dtype', cure)}{wider}")


def _slices_changed(volume: VolumeHeader, source: NiftiSource, sizes: list[int]) -> bool:
    """True if the output's slices are not those that the slice timing describes."""
    dimension = (int(source.header["dim_info"]) >> 4) & 3 or 3
    axis = 3 - dimension  # of D, H, W
    transform, spacing = volume.transform, volume.grid.spacing
    return (
        sizes[dimension] != source.size(dimension)
        or transform.step[axis] != 1
        or transform.offset[axis] != 0
        or spacing is None
        or source.grid.spacing is None
        or spacing[axis] != source.grid.spacing[axis]
    )


def read_history(extensions: Extensions) -> tuple[str, ...]:
    """The lines of history in the comments after a header."""
    texts = (
        content.rstrip(b"\0").decode(errors="replace")
        for code, content in extensions
        if code == COMMENT_CODE
    )
    return tuple(text for text in texts if is_history(text))


def add_history(header: Any, extensions: Extensions, history: Sequence[str]) -> Extensions:
    """Extensions with the history's new lines, each a comment.

    The step of the last new line also goes into the header's `descrip`: after the text that is
    there, or in its place if both do not fit.
    """
    known = read_history(extensions)
    new = [line for line in history if line not in known]
    if new:
        step = new[-1].partition(": ")[0].encode()
        before = bytes(header["descrip"].tobytes()).rstrip(b"\0 ")
        both = before + b"; " + step if before else step
        fitting = both if len(both) <= DESCRIP_BYTES else step
        header["descrip"] = _truncated_utf8(fitting, DESCRIP_BYTES)
    return (*extensions, *((COMMENT_CODE, line.encode()) for line in new))


def _truncated_utf8(text: bytes, size: int) -> bytes:
    """At most `size` bytes of UTF-8, without half a character at the end."""
    return text[:size].decode(errors="ignore").encode()


def header_bytes(header: Any, extensions: Extensions) -> bytes:
    """The bytes before the voxels (of a pair: the .hdr file). Sets the header's vox_offset.

    Raises: WriteError, without the path, if the extensions are too long.
    """
    parts = []
    for code, content in extensions:
        padded = content + bytes(-(len(content) + 8) % 16)
        parts.append(struct.pack("<ii", len(padded) + 8, code) + padded)
    tail = b"".join(parts)
    extender = bytes([1 if tail else 0, 0, 0, 0])
    if not header.is_single:
        header["vox_offset"] = 0
        return bytes(header.binaryblock) + (extender + tail if tail else b"")
    offset = header.single_vox_offset + len(tail)
    header["vox_offset"] = offset
    if int(header["vox_offset"]) != offset:  # NIfTI-1 stores a float32
        raise WriteError(f"its extensions of {len(tail)} bytes are too long for NIfTI-1")
    return bytes(header.binaryblock) + extender + tail
