"""MRtrix's `.mif`, `.mif.gz`, and `.mih` with voxels in a file of their own.

Text lines "key: value" up to END, then voxels. `layout` gives each axis its place in storage, and a
sign. Voxels are handed out as they are stored: an axis that is stored backwards gets the affine of
that order, as in what mrconvert writes as NIfTI. An output from MRtrix keeps the signs. A fourth
axis that is stored within the volume is the channel axis, one that is slower is time.

Source: MRtrix3's documentation, "Images and other file formats".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawReader,
    entries_of,
    real_dtype,
    reserve_space,
)
from conv3d_cli.formats.codecs import Codec, codec_named, codec_within
from conv3d_cli.formats.mif import FORMAT
from conv3d_cli.formats.packed import PackedStream
from conv3d_cli.formats.stored import (
    Storage,
    beside,
    check_affine,
    create_stored,
    grid_in,
    open_stored,
    read_head,
    storable,
)
from conv3d_cli.model.grid import Affine, Grid, spacing_of_affine
from conv3d_cli.model.volume import (
    SPATIAL,
    Axes,
    Facts,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    is_history,
)
from conv3d_cli.system.atomic import write_errors
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.portable import write_at
from conv3d_cli.system.room import HEADER_BYTES, check_entries
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

LETTERS = "xyztcabdefg"  # of the axes 1, 2, ...
HISTORY = "command_history"
OWN = {"dim", "vox", "layout", "datatype", "transform", "scaling", "file", HISTORY}
TYPES = {
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "int64": "i8",
    "uint64": "u8",
    "float16": "f2",
    "float32": "f4",
    "float64": "f8",
}
NAMES = {
    code: name.replace("ui", "UI").replace("int", "Int").replace("float", "Float")
    for name, code in TYPES.items()
}


@dataclass(frozen=True)
class MifSource:
    """What a volume keeps of its MRtrix file for an output in MRtrix.

    entries : dict      key -> lines, of the entries that an output repeats
    dimensions : str    letters of the axes 1, 2, ...
    backwards : str     letters of the axes that are stored backwards
    vox : dict          letter -> step of an axis that is not spatial
    """

    entries: Mapping[str, tuple[str, ...]]
    dimensions: str
    backwards: str
    vox: Mapping[str, float]


@dataclass(frozen=True)
class MifHeader:
    """A header: its entries, each with the lines that it has."""

    path: str
    entries: Mapping[str, tuple[str, ...]]

    def error(self, text: str) -> FormatError:
        """The error to raise for a damaged header."""
        return FormatError(f"cannot read {self.path}: {text}")

    def numbers(self, key: str, count: int | None = None) -> list[float]:
        """The numbers of an entry, from all its lines. Raises: FormatError."""
        text = ",".join(self.entries.get(key, ()))
        try:
            found = [float(word) for word in text.replace(",", " ").split()]
        except ValueError:
            found = []
        if not found or count not in (None, len(found)):
            wanted = "numbers" if count is None else f"{count} numbers"
            raise self.error(f"'{key}' must be {wanted}, received '{text[:60]}'")
        return found

    def sizes(self) -> tuple[int, ...]:
        """Sizes of the axes 1, 2, ... Raises: FormatError."""
        found = self.numbers("dim")
        if (
            not 2 <= len(found) <= len(LETTERS)
            or not all(n == int(n) and 1 <= n < 2**53 for n in found if math.isfinite(n))
            or not all(map(math.isfinite, found))
        ):
            raise self.error(
                f"'dim' must be 2 to {len(LETTERS)} whole numbers of at least 1, "
                f"received '{','.join(self.entries['dim'])[:60]}'"
            )
        return tuple(map(int, found))

    def layout(self, rank: int) -> list[tuple[int, bool]]:
        """For each axis: its place, 0 is the fastest, and whether it is stored backwards."""
        words = ",".join(self.entries.get("layout", ())).split(",")
        if words == [""]:
            words = [f"+{n}" for n in range(rank)]
        found = [re.fullmatch(r"\s*([+-]?)(\d{1,3})\s*", word) for word in words]
        places = [int(match[2]) for match in found if match]
        if None in found or sorted(places) != list(range(rank)):
            raise self.error(
                f"'layout' must give each of {rank} axes a place, as in -0,-1,+2, "
                f"received '{','.join(words)[:60]}'"
            )
        return [
            (place, match[1] == "-") for place, match in zip(places, found, strict=True) if match
        ]

    def dtype(self) -> tuple[np.dtype[Any], bool]:
        """The stored dtype, and whether 8 voxels share a byte. Raises: FormatError."""
        name = "".join(self.entries.get("datatype", ())).strip()
        key = name.lower()
        if key in ("bit",):
            return np.dtype(np.uint8), True
        order = {"le": "<", "be": ">"}.get(key[-2:], "=")
        code = TYPES.get(key.removesuffix("le").removesuffix("be"))
        if code is None:
            what = "complex" if key.startswith("c") else "not known"
            raise self.error(
                f"its datatype '{name[:40]}' is {what}; convert it: mrconvert -datatype float32"
            )
        return np.dtype(code).newbyteorder(order), False  # type: ignore[arg-type]


def read_mif(path: str) -> MifHeader:
    """Read the header of a file. Raises: FormatError if it is not MRtrix's, or damaged."""
    count = 1 << 16
    while True:
        head = read_head(path, count)
        end = re.search(rb"(?:^|\n)END[ \r]*\n", head)
        if end is not None or len(head) < count or count >= HEADER_BYTES:
            break
        count = min(16 * count, HEADER_BYTES)
    if not re.match(rb"mrtrix image[ \r]*\n", head):
        raise FormatError(f"cannot read {path}: not an MRtrix file: its first line is no magic")
    if end is None and path.lower().endswith(".mih"):
        text = head  # END may be left out where nothing follows
    elif end is None and len(head) >= HEADER_BYTES:
        raise FormatError(
            f"cannot read {path}: damaged: its header has no END within {HEADER_BYTES >> 20} MiB"
        )
    elif end is None:
        raise FormatError(f"cannot read {path}: truncated: its header has no END")
    else:
        text = head[: end.start()]
    entries: dict[str, list[str]] = {}
    check_entries(text.count(b"\n"), path)
    for line in text.decode("utf-8", "surrogateescape").splitlines()[1:]:
        line = line.partition("#")[0] if line.lstrip().startswith("#") else line
        key, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not key.strip():
            raise FormatError(
                f"cannot read {path}: its header is damaged: {line[:40]!a} is no line 'key: value'"
            )
        entries.setdefault(key.strip(), []).append(value.strip())
    return MifHeader(path, {key: tuple(lines) for key, lines in entries.items()})


def voxel_place(header: MifHeader) -> tuple[str, int]:
    """The file with the voxels, and bytes before the first. Raises: FormatError."""
    files = header.entries.get("file", ())
    if len(files) != 1:
        many = f"{len(files)} files" if files else "no file"
        raise header.error(
            f"its voxels are in {many}; make one file of them: "
            f"mrconvert {os.path.basename(header.path)} NAME.mif"
        )
    match = re.fullmatch(r"(.+?)(?:\s+(\d{1,18}))?", files[0])
    name, offset = (match[1], int(match[2] or 0)) if match else ("", 0)
    if re.search(r"\[[\d:,]*\]", name):
        raise header.error(
            f"its voxels are in several files ('{name[:60]}'); make one file of them: "
            f"mrconvert {os.path.basename(header.path)} NAME.mif"
        )
    return (header.path if name == "." else beside(header.path, name, "file")), offset


def input_files(path: str) -> tuple[str, ...]:
    """The files of an input: one, or a header and its voxels. Raises: FormatError."""
    return tuple(dict.fromkeys((path, voxel_place(read_mif(path))[0])))


# --------------------------------------------------------------------------------------------------
# Reading


def open_mif(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open an MRtrix file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, truncated or damaged, if its voxels are in several files
        or outside its folder; WriteError if voxels of one bit do not fit into $TMPDIR.
    """
    header = read_mif(path)
    sizes = header.sizes()
    rank = len(sizes)
    layout = header.layout(rank)
    stored, bits = header.dtype()
    order = sorted(range(rank), key=lambda axis: -layout[axis][0])  # the slowest first
    dimensions = LETTERS[:rank]
    # volumes stored voxel by voxel, as MRtrix stores vectors and coefficients, are channels
    within = rank > 3 and layout[3][0] < max(layout[axis][0] for axis in range(3))
    if rank == 4 and (channels_first or within):
        dimensions = "xyzc"
    own = "".join(dimensions[axis] for axis in order)
    volume_axes = Axes(axes or own, tuple(sizes[axis] for axis in order))
    named = "".join(volume_axes.letters[order.index(axis)] for axis in range(rank))
    back = "".join(named[axis] for axis in range(rank) if layout[axis][1] and sizes[axis] > 1)
    if set(back) - set(SPATIAL):
        raise header.error(
            "an axis that is not spatial is stored backwards; "
            f"convert it: mrconvert -strides 1,2,3,4 {os.path.basename(path)} NAME.mif"
        )
    natural = {a for a in named[:3] if a in SPATIAL} == {a for a in named if a in SPATIAL}
    in_place = natural and named[: min(3, rank)] == "xyz"[: min(3, rank)]
    vox = header.numbers("vox") if "vox" in header.entries else [math.nan] * rank
    grid = _read_grid(header, sizes, vox, back) if in_place else Grid()
    history = tuple(line for line in header.entries.get(HISTORY, ()) if is_history(line))
    entries = {key: lines for key, lines in header.entries.items() if key not in OWN}
    entries[HISTORY] = tuple(
        line for line in header.entries.get(HISTORY, ()) if not is_history(line)
    )
    steps = {a: vox[i] for i, a in enumerate(named) if i < len(vox) and a not in SPATIAL}
    volume = VolumeHeader(
        volume_axes,
        real_dtype(stored, path),
        grid,
        _read_scale(header),
        format=FORMAT.name,
        file_dtype=stored,
        metadata=MifSource(entries, named, back, steps) if in_place else None,
        history=history,
        facts=Facts(
            time_step=(step, "s") if (step := steps.get("t", 0.0)) > 0 else None,
            others=entries_of("the entries", [key for key, lines in entries.items() if lines]),
        ),
    )
    return _open_voxels(header, volume, stored, bits)


def _open_voxels(
    header: MifHeader, volume: VolumeHeader, stored: np.dtype[Any], bits: bool
) -> VolumeReader:
    path, offset = voxel_place(header)
    try:
        check_input(path)
    except FormatError as error:
        told = str(error).removeprefix("cannot read ")
        raise header.error(f"{told} (its 'file')") from None
    codec = codec_within(path)
    if codec is not None and path != header.path and codec_named(path) is None:
        codec = None  # voxels that happen to begin like a stream
    if bits:
        return _unpacked_bits(path, volume, offset, codec)
    return open_stored(path, volume, stored, offset, codec)


def _unpacked_bits(
    path: str, volume: VolumeHeader, offset: int, codec: Codec | None
) -> VolumeReader:
    """A reader of voxels of one bit, through a copy of one byte each in $TMPDIR."""
    count = math.prod(volume.axes.shape)
    packed = (count + 7) // 8
    largest = os.path.getsize(path) * (codec.largest_inflation if codec else 1)
    if offset + packed > largest:
        raise FormatError(
            f"cannot read {path}: truncated: its header promises {offset + packed} bytes "
            f"(shape {volume.axes.shape}, 8 voxels in a byte), the file has {largest}"
        )
    source: Any = (
        open(path, "rb")  # noqa: SIM115 - closed below
        if codec is None
        else PackedStream(path, codec)
    )
    file = unnamed_file()
    try:
        with source, write_errors(f"an unpacked copy of {path} in {temporary_folder()}"):
            reserve_space(file, count)
            if codec is None:
                source.seek(offset)
            else:
                source.skip_to(offset)
            done = 0
            while done < packed:
                data = source.read(min(1 << 17, packed - done))
                if not data:
                    raise FormatError(f"cannot read {path}: truncated after {done} bytes of voxels")
                voxels = np.unpackbits(np.frombuffer(data, np.uint8))[: count - done * 8]
                write_at(file, voxels.data, done * 8)
                done += len(data)
        reader = RawReader(file, volume, path, np.dtype(np.uint8), 0)
    except BaseException:
        file.close()
        raise
    reader.notes = (f"its voxels of one bit are unpacked into {temporary_folder()} first",)
    return reader


def _read_scale(header: MifHeader) -> tuple[float, float]:
    """Slope and intercept. Raises: FormatError."""
    if "scaling" not in header.entries:
        return 1.0, 0.0
    intercept, slope = header.numbers("scaling", 2)
    if not (math.isfinite(intercept) and math.isfinite(slope)) or slope == 0:
        raise header.error(f"'scaling' has no meaning: offset {intercept:g}, scale {slope:g}")
    return slope, intercept


def _read_grid(header: MifHeader, sizes: Sequence[int], vox: Sequence[float], back: str) -> Grid:
    """The grid of the voxels as they are stored."""
    steps = [*vox[:3], *[math.nan] * 3][:3]
    assumed = frozenset("whd"[i] for i in range(3) if not abs(steps[i]) > 0)
    steps = [abs(step) if abs(step) > 0 else 1.0 for step in steps]
    matrix = np.eye(4)
    anatomical = "transform" in header.entries
    if anatomical:
        # some programs write the fourth row, too
        rows = header.numbers("transform", 16 if len(header.entries["transform"]) == 4 else 12)
        matrix[:3] = np.reshape(rows[:12], (3, 4))
    else:  # the centre of the volume is the origin, as in MRtrix
        if all("whd"[i] in assumed for i in range(3)):
            return Grid()
        matrix[:3, 3] = [-(n - 1) / 2 * s for n, s in zip([*sizes, 1, 1], steps, strict=False)]
    matrix[:3, :3] *= steps
    affine = turned(matrix, back, dict(zip("xyz", [*sizes, 1, 1], strict=False)))
    check_affine(affine, header.error)
    return Grid(spacing_of_affine(affine), "mm", affine, anatomical=anatomical, assumed=assumed)


def turned(affine: Affine, back: str, sizes: Mapping[str, int]) -> Affine:
    """The affine of voxels that are counted from the other end along some axes.

    >>> turned(np.diag([2.0, 1, 1, 1]), "x", {"x": 5})[0].tolist()
    [-2.0, 0.0, 0.0, 8.0]
    """
    affine = affine.copy()
    for letter in back:
        column = "xyz".index(letter)
        affine[:3, 3] += affine[:3, column] * (sizes[letter] - 1)
        affine[:3, column] *= -1
    return affine + 0.0


# --------------------------------------------------------------------------------------------------
# Writing


def output_names(path: str) -> tuple[str, ...]:
    """The files of an output: one, or a header and its voxels.

    >>> output_names("a.mif"), output_names("a.mih")
    (('a.mif',), ('a.mih', 'a.dat'))
    """
    if not path.lower().endswith(".mih"):
        return (path,)
    return path, path[:-4] + (".DAT" if path[-4:].isupper() else ".dat")


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """Batch axes first, then z, y, x in this order; all channels are one axis.

    Channels keep their position; a new channel axis is the fastest.

    >>> output_letters("xyz", 1), output_letters("tzcyx", 2), output_letters("zyx", 4)
    ('zyx', 'tzcyx', 'zyxc')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + "cs")
    own = "".join(a for a in letters if a in SPATIAL + "cs").replace("cs", "c").replace("sc", "c")
    if "c" in own and "s" in own:
        own = own.replace("s", "")
    own = own.replace("s", "c")
    space = iter(a for a in SPATIAL if a in own)
    ordered = "".join(next(space) if a in SPATIAL else a for a in own)
    return batch + ordered + ("c" if channels > 1 and "c" not in ordered else "")


def create_mif(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start an MRtrix file, or a header with its voxels.

    Raises: OutputExistsError; WriteError for a dtype that MRtrix does not have.
    """
    if math.prod(header.shape) == 0:
        raise WriteError(f"cannot write {path}: MRtrix holds no empty volume, shape {header.shape}")
    stored, notes = storable(header.dtype, list(NAMES), FORMAT.name, path)
    names = output_names(path)
    text = _header_text(path, header, stored)
    if len(names) == 2:
        body = f"{text}file: {os.path.basename(names[1])} 0\nEND\n"
        head = (path, body.encode("utf-8", "surrogateescape"))
        storage = Storage(stored.newbyteorder("<"), head=head)
    else:
        # the offset is in the text that it is the length of
        size = len(text.encode("utf-8", "surrogateescape")) + len("file: . 0000000\nEND\n")
        offset = -(-size // 16) * 16
        prefix = f"{text}file: . {offset:07}\nEND\n".encode("utf-8", "surrogateescape")
        storage = Storage(stored.newbyteorder("<"), prefix.ljust(offset, b"\0"))
    writer = create_stored(names[-1], header, storage, codec_named(path), overwrite, options)
    writer.notes = (*writer.notes, *notes)
    return writer


def _header_text(path: str, header: VolumeHeader, stored: np.dtype[Any]) -> str:
    axes = header.axes
    source = header.metadata if isinstance(header.metadata, MifSource) else None
    dimensions = _dimensions(axes, source)
    back = "" if source is None else source.backwards
    letters = axes.letters
    layout = ",".join(
        f"{'-' if a in back else '+'}{len(letters) - 1 - letters.index(a)}" for a in dimensions
    )
    spacing, affine = grid_in(header.grid, "mm")
    vox = dict.fromkeys(dimensions, math.nan)
    if source is not None:
        vox |= {a: step for a, step in source.vox.items() if a in vox}
    if "t" in vox and header.facts.time_step is not None:
        vox["t"] = header.facts.seconds or header.facts.time_step[0]
    if spacing is not None:
        vox |= {a: s for a, s in zip(SPATIAL, spacing, strict=True) if a in vox}
    name = NAMES[f"{stored.kind}{stored.itemsize}"]
    lines = [
        "mrtrix image",
        "dim: " + ",".join(str(axes.size(a)) for a in dimensions),
        # 15 digits: a step that comes from an affine is rounded in the last
        "vox: " + ",".join(_number(float(f"{vox[a]:.15g}")) for a in dimensions),
        f"layout: {layout}",
        f"datatype: {name}{'LE' if stored.itemsize > 1 else ''}",
    ]
    if affine is not None:
        whole = turned(affine, back, {a: axes.size(a) for a in "xyz"})
        matrix = whole[:3].copy()
        matrix[:, :3] /= np.linalg.norm(matrix[:, :3], axis=0)
        lines += ["transform: " + ",".join(map(_number, row)) for row in (matrix + 0.0).tolist()]
    if header.scale != (1.0, 0.0):
        lines.append(f"scaling: {_number(header.scale[1])},{_number(header.scale[0])}")
    entries = {} if source is None else dict(source.entries)
    entries[HISTORY] = (*entries.get(HISTORY, ()), *header.history)
    lines += [f"{key}: {line}" for key, found in entries.items() for line in found]
    return "\n".join(lines) + "\n"


def _dimensions(axes: Axes, source: MifSource | None) -> str:
    """Letters of the axes 1, 2, ... of an output: x, y, z, those of the file, then the rest."""
    own = "" if source is None else source.dimensions
    rest = sorted(
        (a for a in axes.letters if a not in SPATIAL),
        key=lambda a: (own + LETTERS).index(a) if a in own + LETTERS else 99,
    )
    return "".join(a for a in "xyz" if a in axes.letters) + "".join(rest)


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else repr(float(value) + 0.0).removesuffix(".0")
