"""MetaImage: `.mha`, and `.mhd` with voxels in a file of their own, or in one file for each slice.

Text lines "Key = value", of which the last names the voxels. Axes are listed from the fastest on;
channels are faster than all. Positions are left-posterior-superior in mm, as in ITK, which writes
and reads these files; this module turns them to the world of `Grid`.

Source: ITK's wiki, "MetaIO/Documentation", and MetaIO's metaImage.cxx where that is silent.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, SpecError, WriteError, setting
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    RawReader,
    entries_of,
    real_dtype,
    reserve_space,
)
from conv3d_cli.formats.codecs import CODECS, ZLIB, Codec
from conv3d_cli.formats.meta import FORMAT
from conv3d_cli.formats.packed import PackedWriter
from conv3d_cli.formats.stored import (
    Storage,
    beside,
    check_affine,
    create_stored,
    grid_in,
    lost_notes,
    open_stored,
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
from conv3d_cli.system.atomic import output_file, write_errors
from conv3d_cli.system.inputs import check_input, regular_file
from conv3d_cli.system.portable import write_at
from conv3d_cli.system.room import HEADER_BYTES, HEADER_ENTRIES, check_entries
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

GZIP = CODECS[0]
MAX_AXES = 10
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # always of four bytes in files
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
NAMES = {code: name for name, code in reversed(TYPES.items())}
BATCH = "tabdefg"  # letters of the axes after x, y, z
HISTORY = "conv3d_history"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from left-posterior-superior to the world of `Grid`
# fields that this module writes itself, or that are true of the input alone
OWN = {
    *("objecttype", "ndims", "binarydata", "binarydatabyteordermsb", "elementbyteordermsb"),
    *("compresseddata", "compresseddatasize", "compressionlevel", "dimsize", "elementtype"),
    *("transformmatrix", "rotation", "orientation", "offset", "position", "origin"),
    *("centerofrotation", "elementspacing", "elementsize", "elementnumberofchannels"),
    *("elementdatafile", "headersize", "elementmin", "elementmax", "sequenceid"),
    HISTORY,
}
# tell of no image, or stand in its grid; also what ITK notes of the files that it read
COMMON = ("anatomicalorientation", "distanceunits", "objectsubtype", "itk_inputfiltername")


@dataclass(frozen=True)
class MetaSource:
    """What a volume keeps of its MetaImage file for an output in MetaImage.

    fields : dict       key as written -> text, of the fields that an output repeats
    steps : dict        letter -> (spacing, offset) of an axis that is not spatial
    """

    fields: Mapping[str, str]
    steps: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class MetaHeader:
    """A header: its fields by their keys in lower case, and where the voxels begin.

    names : dict        key in lower case -> as written
    lines : tuple       the file's lines after "ElementDataFile = LIST"
    """

    path: str
    fields: Mapping[str, str]
    names: Mapping[str, str]
    size: int
    lines: tuple[str, ...] = ()

    def error(self, text: str) -> FormatError:
        """The error to raise for a damaged header."""
        return FormatError(f"cannot read {self.path}: {text}")

    def text(self, *keys: str) -> str:
        """The text of the first of these keys that the header has; "" without one."""
        return next((self.fields[key] for key in keys if key in self.fields), "")

    def numbers(self, count: int, *keys: str) -> list[float] | None:
        """The numbers of a field; None if it is missing. Raises: FormatError for another count."""
        words = self.text(*keys).split()
        if not words:
            return None
        try:
            found = [float(word) for word in words]
        except ValueError:
            found = []
        if len(found) != count or not all(abs(value) <= 1e38 for value in found):
            name = self.names[next(key for key in keys if key in self.fields)]
            raise self.error(f"'{name}' must be {count} numbers, received '{' '.join(words)[:60]}'")
        return found

    def integer(self, default: int, *keys: str) -> int:
        """The whole number of a field. Raises: FormatError."""
        text = self.text(*keys) or str(default)
        if not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise self.error(f"'{keys[0]}' must be a whole number, received '{text[:60]}'")
        return int(text)

    def truth(self, *keys: str) -> bool:
        """True if a field says so."""
        return self.text(*keys).lower() in ("true", "1", "t", "yes", "y")

    def sizes(self) -> tuple[int, ...]:
        """Sizes of the axes, the fastest first. Raises: FormatError."""
        rank = self.integer(0, "ndims")
        if not 2 <= rank <= MAX_AXES:
            raise self.error(f"'NDims' must be 2 to {MAX_AXES}, received {rank}")
        found = self.numbers(rank, "dimsize")
        if found is None or not all(n >= 1 and n == int(n) and n < 2**53 for n in found):
            raise self.error(
                f"'DimSize' must be {rank} whole numbers of at least 1, "
                f"received '{self.text('dimsize')[:60]}'"
            )
        return tuple(map(int, found))

    def dtype(self) -> np.dtype[Any]:
        """The dtype of the stored voxels, in the file's byte order. Raises: FormatError."""
        name = self.text("elementtype").upper().removesuffix("_ARRAY")
        if name not in TYPES:
            raise self.error(f"MetaImage has no ElementType '{name[:60]}' of real numbers")
        big = self.truth("binarydatabyteordermsb", "elementbyteordermsb")
        return np.dtype(TYPES[name]).newbyteorder(">" if big else "<")


def read_meta(path: str) -> MetaHeader:
    """Read the header of a file. Raises: FormatError if it is not MetaImage, or damaged."""
    check_input(path)
    fields: dict[str, str] = {}
    names: dict[str, str] = {}
    with open(path, "rb") as file:
        while line := file.readline(HEADER_BYTES):
            text = line.decode("utf-8", "surrogateescape").strip()
            match = re.match(r"([A-Za-z_][\w.\- ]*?)\s*[=:]\s*(.*)", text)
            if file.tell() > HEADER_BYTES:
                raise FormatError(
                    f"cannot read {path}: damaged: its header has no end within "
                    f"{HEADER_BYTES >> 20} MiB"
                )
            if not match and text:
                raise FormatError(
                    f"cannot read {path}: not a MetaImage file, or damaged: "
                    f"{text[:40]!a} is no line 'Key = value'"
                )
            if not match:
                continue
            key = match[1].lower()
            fields[key], names[key] = match[2].strip(), match[1]
            check_entries(len(fields), path)
            if key == "elementdatafile":
                break
        header = MetaHeader(path, fields, names, file.tell())
        if "elementdatafile" not in fields:
            raise header.error("damaged or cut off: its header has no 'ElementDataFile'")
        if fields["elementdatafile"].split()[:1] == ["LIST"]:
            rest = file.read(HEADER_BYTES).decode("utf-8", "surrogateescape")
            lines = tuple(rest.split("\n", HEADER_ENTRIES + 1))
            check_entries(len(lines), path)
            return MetaHeader(path, fields, names, file.tell(), lines)
    return header


# --------------------------------------------------------------------------------------------------
# The files of the voxels


def voxel_files(header: MetaHeader) -> list[str]:
    """The files with the voxels: one, or one for each slice. Raises: FormatError."""
    name = header.text("elementdatafile")
    if name.upper() in ("LOCAL", "LOCAL "):
        return [header.path]
    what = "ElementDataFile"
    if name.split()[:1] == ["LIST"]:
        found = [line.strip() for line in header.lines if line.strip()]
        if not found:
            raise header.error("its 'ElementDataFile' is a LIST, but no files follow")
    elif match := re.fullmatch(r"(.*%0?(\d*)[di].*?)((?:\s+\d+){2,3})", name):
        first, last, *step = map(int, match[3].split())
        stride = step[0] if step else 1
        if not stride >= 1 or not 0 <= last - first <= 10**6 or match[1].count("%") != 1:
            raise header.error(f"its 'ElementDataFile' is no pattern of files: '{name[:80]}'")
        form = re.compile(r"%(0?\d*)[di]")
        width = int(match[2] or 0)
        if width > 20:
            raise header.error(f"its 'ElementDataFile' is no pattern of files: '{name[:80]}'")
        found = [
            form.sub(lambda m, i=n: format(i, m[1] + "d"), match[1])
            for n in range(first, last + 1, stride)
        ]
    else:
        found = [name]
    return [beside(header.path, each, what) for each in found]


def input_files(path: str) -> tuple[str, ...]:
    """The files of an input: the header, and those with voxels.

    Raises: FormatError if the header cannot be read.
    """
    return tuple(dict.fromkeys((path, *voxel_files(read_meta(path)))))


def _open_voxels(header: MetaHeader, volume: VolumeHeader, stored: np.dtype[Any]) -> VolumeReader:
    if not header.truth("binarydata") and "binarydata" in header.fields:
        raise header.error("its voxels are text (BinaryData = False); save them as binary")
    files = voxel_files(header)
    for name in files:
        try:
            check_input(name)
        except FormatError as error:
            told = str(error).removeprefix("cannot read ")
            raise header.error(f"{told} (its 'ElementDataFile')") from None
    nbytes = math.prod(volume.axes.shape) * stored.itemsize
    skip = header.integer(0, "headersize")
    packed = header.truth("compresseddata")
    if len(files) > 1:
        if packed:
            raise header.error("its files are packed each by itself; save it as one file")
        return _gathered(header, files, volume, stored, skip)
    path, start = files[0], 0
    if path == header.path:
        start = header.size
    if skip == -1:
        start = os.path.getsize(path) - nbytes
        if start < 0 or packed:
            raise header.error(f"truncated: its header promises {nbytes} bytes of voxels")
    elif skip > 0:
        start += skip
    if not packed:
        return open_stored(path, volume, stored, start)
    return open_stored(path, volume, stored, 0, _codec_at(path, start), start)


def _codec_at(path: str, start: int) -> Codec:
    """zlib, as MetaIO writes, or gzip, which it reads, too."""
    with open(path, "rb") as file:
        file.seek(start)
        magic = file.read(2)
    return GZIP if magic in GZIP.magics else ZLIB


def _gathered(
    header: MetaHeader, files: list[str], volume: VolumeHeader, stored: np.dtype[Any], skip: int
) -> VolumeReader:
    """A reader of the slices of several files, through one copy in $TMPDIR."""
    nbytes = math.prod(volume.axes.shape) * stored.itemsize
    each, rest = divmod(nbytes, len(files))
    slices = volume.axes.shape[0]
    if rest or slices % len(files):
        raise header.error(f"it names {len(files)} files for {slices} slices")
    file = unnamed_file()
    try:
        with write_errors(f"a copy of the slices of {header.path} in {temporary_folder()}"):
            for number, name in enumerate(files):
                size = os.path.getsize(name)
                start = size - each if skip == -1 else max(skip, 0)
                if start < 0 or size < start + each:
                    raise header.error(f"truncated: {name} has {size} bytes of {each}")
                if number == 0:
                    reserve_space(file, nbytes)
                with open(name, "rb", opener=regular_file) as one:
                    one.seek(start)
                    done = 0
                    while done < each and (data := one.read(min(1 << 20, each - done))):
                        write_at(file, memoryview(data), number * each + done)
                        done += len(data)
        reader = RawReader(file, volume, header.path, stored, 0)
    except BaseException:
        file.close()
        raise
    reader.notes = (f"its {len(files)} files are copied into one in {temporary_folder()} first",)
    return reader


# --------------------------------------------------------------------------------------------------
# Reading


def open_meta(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a MetaImage file.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, truncated or damaged, or names files outside its folder.
    """
    header = read_meta(path)
    sizes, dtype = header.sizes(), header.dtype()
    channels = header.integer(1, "elementnumberofchannels")
    if channels < 1:
        raise header.error(f"'ElementNumberOfChannels' must be at least 1, received {channels}")
    letters = ("xyz" + BATCH)[: len(sizes)]
    own = letters[::-1] + ("c" if channels > 1 else "")
    shape = sizes[::-1] + ((channels,) if channels > 1 else ())
    volume_axes = Axes(axes or own, shape)
    grid, steps, notes = _read_grid(header, letters)
    fields = {header.names[k]: v for k, v in header.fields.items() if k not in OWN}
    history = tuple(line for line in header.text(HISTORY).split("\\n") if is_history(line))
    natural = axes is None or axes == own
    volume = VolumeHeader(
        volume_axes,
        real_dtype(dtype, path),
        grid if natural else Grid(),
        format=FORMAT.name,
        metadata=MetaSource(fields, steps) if natural else None,
        history=history,
        facts=Facts(
            # 1 is what ITK writes if it knows of no step; MetaImage has no unit of time
            time_step=(step, "") if 0 < (step := steps.get("t", (1.0, 0.0))[0]) != 1 else None,
            others=entries_of("the fields", [key for key in fields if key.lower() not in COMMON]),
        ),
    )
    reader = _open_voxels(header, volume, dtype)
    reader.notes = (*reader.notes, *notes)
    return reader


def _read_grid(
    header: MetaHeader, letters: str
) -> tuple[Grid, dict[str, tuple[float, float]], list[str]]:
    """The grid, spacing and offset of the axes that are not spatial, and notes."""
    rank = len(letters)
    steps = header.numbers(rank, "elementspacing", "elementsize")
    offset = header.numbers(rank, "offset", "position", "origin") or [0.0] * rank
    matrix = header.numbers(rank * rank, "transformmatrix", "rotation", "orientation")
    directions = np.eye(rank) if matrix is None else np.reshape(matrix, (rank, rank)).T
    others = {
        a: (1.0 if steps is None else steps[i], offset[i]) for i, a in enumerate(letters) if i >= 3
    }
    placed = not np.array_equal(directions, np.eye(rank)) or any(offset[:3])
    if steps is None and not placed:
        return Grid(), others, []
    assumed, guesses = {"unit"}, []
    if steps is None:
        steps = [1.0] * rank
        assumed |= {"d", "h", "w"}
        guesses = ["the file gives no ElementSpacing: it is taken as 1, as ITK does"]
    space = min(rank, 3)
    affine = np.eye(4)
    affine[:space, :space] = directions[:space, :space] * steps[:space]
    affine[:space, 3] = offset[:space]
    if rank == 2:
        assumed |= {"d"}
    affine = LPS @ affine
    if rank == 2:
        affine[2, 2] = 1.0
    affine += 0.0
    check_affine(affine, header.error)
    notes = [*guesses]
    mixed = rank > 3 and (directions[3:, :3].any() or directions[:3, 3:].any())
    if mixed:
        notes.append("its TransformMatrix turns space into time: only its part in space is used")
    unit = {"um": "um", "mm": "mm", "cm": "cm", "m": "m"}.get(
        header.text("distanceunits").lower(), "mm"
    )
    if header.text("distanceunits") and header.text("distanceunits") != "?":
        assumed -= {"unit"}
    # ITK writes "???" where it knows nothing of a body
    anatomical = header.text("anatomicalorientation").strip("? ") != ""
    grid = Grid(
        spacing_of_affine(affine),
        unit,
        affine,
        anatomical=anatomical,
        assumed=frozenset(assumed),
        guesses=tuple(guesses),
    )
    return grid, others, notes


# --------------------------------------------------------------------------------------------------
# Writing


def output_names(path: str) -> tuple[str, ...]:
    """The files of an output: one, or a header and its voxels.

    >>> output_names("a.mha"), output_names("A.MHD")
    (('a.mha',), ('A.MHD', 'A.RAW'))
    """
    suffix = path[len(path) - len(".mhd") :]
    if suffix.lower() != ".mhd":
        return (path,)
    return path, path[: len(path) - len(suffix)] + (".RAW" if suffix.isupper() else ".raw")


def output_letters(letters: str, channels: int, dtype: object = None) -> str:
    """Batch axes first, then z, y, x, then the channels.

    >>> output_letters("xyz", 1), output_letters("tczyx", 2), output_letters("zyx", 4)
    ('zyx', 'tzyxc', 'zyxc')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + "cs")
    depth = "z" if "z" in letters or batch else ""
    many = channels > 1 or "c" in letters or "s" in letters
    return batch + depth + "yx" + ("c" if many else "")


class _SizedWriter(PackedWriter):
    """A packed writer that writes the size of its stream into the header before it.

    place : (int, int)      byte of the header where the size goes, and of the stream's first byte
    """

    place: tuple[int, int]

    def commit(self) -> None:
        with write_errors(self.path):
            self.finish_stream()
            self.output.file.flush()
            at, start = self.place
            size = self.output.file.tell() - start
            write_at(self.output.file, memoryview(b"%015d" % size), at)
        self.output.commit()


def create_meta(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start a MetaImage file, or a header with its voxels.

    Raises: OutputExistsError; WriteError for a dtype that MetaImage does not have; SpecError for a
        compressed .mhd.
    """
    names, packs = output_names(path), options.compression != "none"
    if packs and len(names) == 2:
        raise SpecError(
            f"cannot write {path}: {setting('compression')} is for .mha, and .mhd is written raw; "
            "leave it out"
        )
    if math.prod(header.shape) == 0:
        raise WriteError(
            f"cannot write {path}: MetaImage holds no empty volume, shape {header.shape}"
        )
    stored, notes = storable(header.dtype, list(NAMES), FORMAT.name, path)
    source = header.metadata if isinstance(header.metadata, MetaSource) else None
    text = "".join(
        f"{key} = {value}\n" for key, value in _fields(header, stored, source, packs).items()
    )
    local = names[-1] if len(names) == 2 else "LOCAL"
    prefix = f"{text}ElementDataFile = {os.path.basename(local)}\n".encode(
        "utf-8", "surrogateescape"
    )
    if packs:
        writer: VolumeWriter = _packed_writer(path, header, stored, prefix, overwrite, options)
    else:
        head = (path, prefix) if len(names) == 2 else None
        storage = Storage(stored.newbyteorder("<"), b"" if head else prefix, head=head)
        writer = create_stored(names[-1], header, storage, None, overwrite, options)
    writer.notes = (*writer.notes, *notes, *lost_notes(header, FORMAT))
    return writer


def _packed_writer(
    path: str,
    header: VolumeHeader,
    stored: np.dtype[Any],
    prefix: bytes,
    overwrite: bool,
    options: OutputOptions,
) -> VolumeWriter:
    output = output_file(path, overwrite)
    try:
        with write_errors(path):
            output.file.write(prefix)
        writer = _SizedWriter(
            output,
            header,
            path,
            b"",
            stored.newbyteorder("<"),
            ZLIB,
            options.gz_level,
            options.threads,
        )
    except BaseException:
        output.abort()
        raise
    key = b"CompressedDataSize = "
    writer.place = prefix.index(key) + len(key), len(prefix)
    return writer


def _fields(
    header: VolumeHeader, stored: np.dtype[Any], source: MetaSource | None, packs: bool
) -> dict[str, str]:
    """The fields of an output in MetaIO's order, without ElementDataFile."""
    axes = header.axes
    letters = [a for a in axes.letters[::-1] if a not in "cs"]
    rank = len(letters)
    matrix, steps, offset = np.eye(rank), [1.0] * rank, [0.0] * rank
    if source is not None:
        for i, letter in enumerate(letters):
            steps[i], offset[i] = source.steps.get(letter, (1.0, 0.0))
    elif "t" in letters and header.facts.time_step is not None:
        steps[letters.index("t")] = header.facts.seconds or header.facts.time_step[0]
    _, affine = grid_in(header.grid, "mm")
    if affine is not None:
        _place(LPS @ affine, matrix, steps, offset, min(rank, 3))
    fields = {
        "ObjectType": "Image",
        "NDims": str(rank),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(packs),
    }
    if packs:
        fields["CompressedDataSize"] = "0" * 15
    fields["TransformMatrix"] = _row(matrix.T.ravel())
    fields["Offset"] = _row(offset)
    fields["CenterOfRotation"] = _row([0.0] * rank)
    if affine is not None and header.grid.anatomical:
        fields["AnatomicalOrientation"] = orientation(LPS @ affine)
    if affine is not None:
        fields["ElementSpacing"] = _row(steps)
    fields["DimSize"] = " ".join(str(axes.size(a)) for a in letters)
    if axes.channel_letters:
        fields["ElementNumberOfChannels"] = str(header.shape[4])
    if source is not None:
        own = {key.lower() for key in fields}
        fields |= {
            k: v
            for k, v in source.fields.items()
            if k.lower() not in own and k.lower() not in ("distanceunits", "anatomicalorientation")
        }
    if header.history:
        fields[HISTORY] = "\\n".join(header.history)
    if header.grid.unit is not None and "unit" not in header.grid.assumed and affine is not None:
        fields["DistanceUnits"] = "mm"
    fields["ElementType"] = NAMES[f"{stored.kind}{stored.itemsize}"]
    return fields


def _place(
    affine: Affine, matrix: Affine, steps: list[float], offset: list[float], space: int
) -> None:
    """Set the spatial part of a header's matrix, spacings and offset."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    matrix[:space, :space] = affine[:space, :space] / lengths[:space]
    steps[:space] = lengths[:space].tolist()
    offset[:space] = affine[:space, 3].tolist()


def orientation(affine: Affine) -> str:
    """The letters of the directions that the axes come from, as ITK writes them.

    affine : (4, 4) in left-posterior-superior
    >>> orientation(np.eye(4))
    'RAI'
    """
    letters = []
    for column in affine[:3, :3].T:
        row = int(np.argmax(np.abs(column)))
        letters.append(("RL", "AP", "IS")[row][int(column[row] < 0)])
    return "".join(letters)


def _row(values: Any) -> str:
    return " ".join(repr(float(value) + 0.0).removesuffix(".0") for value in values)
