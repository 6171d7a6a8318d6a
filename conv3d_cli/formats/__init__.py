"""Volume formats: one file each, one line each in `FORMATS`.

An input's content selects its format, and its suffix where the content does not tell; an output's
suffix selects its format. To add a format, write a module with a
`FORMAT = VolumeFormat(...)` whose `open` returns a `VolumeReader` and whose `create` returns a
`VolumeWriter`, and put it into `FORMATS`. Fields of `VolumeFormat` say what the format can store
and how; no other part of the package refers to it by name. The contract test in
tests/formats/test_every_format.py then covers it, and kernels can be read from it.

Every run imports every `FORMAT`, so this must be quick: a format of several modules has its
`FORMAT` in the `__init__.py` of its folder and names its functions by `late`. Import third-party
libraries inside `open` and `create`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from conv3d_cli.errors import (
    Conv3DError,
    FormatError,
    OutputExistsError,
    ShapeError,
    SpecError,
    WriteError,
    setting,
    unknown_name,
    words,
)
from conv3d_cli.formats import (
    afni,
    analyze,
    dicom,
    hdf5,
    meta,
    mgh,
    microscope,
    mif,
    minc,
    mrc,
    nifti,
    npy,
    nrrd,
    parrec,
    tiff,
    zarr,
)
from conv3d_cli.formats.base import OutputOptions, VolumeFormat
from conv3d_cli.formats.signatures import FOREIGN, Foreign, packed_kind, read_start
from conv3d_cli.formats.zarr.names import is_url, local_folder
from conv3d_cli.model.grid import Spacing, complete_grid
from conv3d_cli.model.spec import triple
from conv3d_cli.model.volume import (
    BoxAccess,
    Volume,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    parts_in_storage_order,
)
from conv3d_cli.system.atomic import sent_to
from conv3d_cli.system.faults import reading
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.parts import file_of, split_part
from conv3d_cli.system.portable import true_path
from conv3d_cli.system.words import unknown_suffix

# The order matters: two formats claim a name such as volumes.zarr/head.nii.gz, or scan.rec.
FORMATS: tuple[VolumeFormat, ...] = (
    nifti.FORMAT,
    tiff.FORMAT,
    npy.FORMAT,
    nrrd.FORMAT,
    meta.FORMAT,
    mgh.FORMAT,
    mif.FORMAT,
    parrec.FORMAT,
    mrc.FORMAT,
    analyze.FORMAT,
    afni.FORMAT,
    minc.MINC1,
    minc.MINC2,
    zarr.NIFTI,
    zarr.ZIP,
    hdf5.IMARIS,
    hdf5.FORMAT,
    dicom.FORMAT,
    microscope.CZI,
    microscope.ND2,
    microscope.LIF,
    zarr.FORMAT,
)


def find_format(path: str) -> VolumeFormat | None:
    """The format that claims a file name, most often by its suffix; None if no format does.

    The format of an output; for that of an input, see `input_format`.

    "-" is .npy on a pipe. Folders with Zarr metadata, and URLs, are Zarr stores.
    >>> find_format("brain.nii.gz").name, find_format("-").name, find_format("s3://b/x.zarr/1").name
    ('NIfTI', 'NumPy', 'OME-Zarr')
    >>> find_format("x.jpg") is None
    True
    """
    return next((f for f in FORMATS if f.claims(path)), None) or next(
        (f for f in FORMATS if f.only_reads(path)), None
    )


def target_suffix(path: str) -> str | None:
    """The suffix of an output that is named after an input, if not that of the input; or None.

    So for an input of a format or suffix that is only read, or a folder of planes.

    >>> target_suffix("a.lsm"), target_suffix("a.nii.gz")
    ('.ome.tif', None)
    """
    found = input_format(path)
    stack = "::" in path and os.path.isdir(file_of(path))
    if found is None or (found.create is not None and found.claims(path) and not stack):
        return None
    return found.target_suffix or None


def recognize(path: str) -> VolumeFormat | Foreign | None:
    """What an input is: by its content, and by its name where the content does not tell.

    The kinds that claim the name come first, so that a name decides what two kinds have in common.
    Returns None if neither name nor content is known.
    """
    if path == "-" or is_url(path):
        return find_format(path)
    kinds: tuple[VolumeFormat | Foreign, ...] = (*FORMATS, *FOREIGN)
    file = file_of(path)
    named: list[VolumeFormat | Foreign] = [f for f in FORMATS if f.claims(path)]
    named += [f for f in FORMATS if f.only_reads(path)]
    named += [kind for kind in FOREIGN if kind.claims(file)]
    first = named[0] if named else None
    start = read_start(first.header_file(file) if isinstance(first, VolumeFormat) else file)
    if start is None:  # a folder, or missing
        return first
    for kind in (*named, *kinds):
        if kind.signature is None or not kind.signature(start):
            continue
        if isinstance(kind, VolumeFormat) and start.codec is not None and not kind.reads_packed:
            return packed_kind(kind.name, start.codec)
        return kind
    return first


def input_format(path: str) -> VolumeFormat | None:
    """The format that an input is read in, by its content first; None if it is not read.

    >>> input_format("missing.nii.gz").name, input_format("missing.dm4") is None
    ('NIfTI', True)
    """
    found = recognize(path)
    return found if isinstance(found, VolumeFormat) else None


def written_suffixes() -> tuple[str, ...]:
    """The suffixes of all formats that are written.

    >>> ".nii.gz" in written_suffixes(), ".czi" in written_suffixes()
    (True, False)
    """
    written = (found.suffixes for found in FORMATS if found.create is not None)
    return tuple(suffix for suffixes in written for suffix in suffixes if suffix != "-")


def refusal(path: str) -> FormatError:
    """The error for an input that no format reads (`input_format` is None).

    Raises: FormatError for a file that is missing or empty.
    """
    found = recognize(path)
    if isinstance(found, Foreign):
        if not os.path.isdir(path):
            check_input(path)  # a missing file is nothing yet
        return FormatError(f"cannot read {path}: it is {found.name}; {found.cure}")
    if os.path.isdir(path):
        return FormatError(f"cannot read {path}: it is a folder; name the files in it")
    if os.path.exists(path) and not os.path.isfile(path):
        return FormatError(f"cannot read {path}: it is no file; `-` reads .npy from a pipe")
    check_input(path)
    start = read_start(path)
    if start is not None and start.is_text:
        return FormatError(f"cannot read {path}: it is text, and no volume ({FORMATS_PAGE})")
    return FormatError(
        f"cannot read {path}: neither its content nor its name is of a known format "
        f"({FORMATS_PAGE})"
    )


def is_stream(path: str, compression: str = "none") -> bool:
    """True if an output of this name is written forward only: a pipe or a compressed file.

    Raises: SpecError for an unknown suffix.
    >>> is_stream("a.nii.gz"), is_stream("a.nii"), is_stream("a.tif", "deflate")
    (True, False, True)
    """
    return output_format(path).streamed(path, OutputOptions(compression=compression))


FORMATS_PAGE = "see conv3d help formats"
"""Where messages send a reader who wants the list of all formats."""

MOST_BYTES = 1 << 60
"""A volume with more bytes of voxels is a damaged header: planning it would not end."""


def open_volume(
    path: str,
    *,
    axes: str | None = None,
    channels_first: bool = False,
    spacing: Spacing | None = None,
    again: bool = False,
) -> VolumeReader:
    """Open a volume for reading.

    axes : str or None      axis letters in storage order, in place of the file's own (see `Axes`)
    channels_first : bool   read a 4-D or 5-D array without axis names as czyx or tczyx, not as
                            zyxc or tzyxc
    spacing : Spacing or None   for what the file does not tell (see `complete_grid`)
    again : bool            read voxels by another way than otherwise, if the format has one
    Raises: FormatError if the file is missing, empty, of no known format, or corrupt; ShapeError if
        it tells another spacing.
    """
    found = input_format(path)
    if found is None:
        raise refusal(path)
    part = "" if found.has_parts else split_part(path)[1]
    if part and not found.claims(path):
        raise FormatError(
            f"cannot read {path}: a file of {found.name} holds one volume; leave out ::{part}"
        )
    _check_url(found, path, "read")
    opener = (again and found.open_again) or found.open
    with reading(path):
        reader = opener(path, axes=axes, channels_first=channels_first)
    if reader.header.nbytes > MOST_BYTES:
        shape = " x ".join(map(str, reader.header.axes.shape))
        reader.close()
        raise FormatError(
            f"cannot read {path}: its header promises {shape} voxels, "
            f"{reader.header.nbytes:.1e} bytes, more than any disk holds"
        )
    stored = reader.header.file_dtype
    if stored is not None and stored.kind == "f" and stored.itemsize > 8:
        lost = f"its voxels are {stored.name}: they are read as float64, to 16 digits"
        reader.losses, reader.notes = (*reader.losses, lost), (*reader.notes, lost)
    if not (found.claims(path) or found.only_reads(path)) and path != "-":
        named = find_format(path)
        says = "no format's" if named is None else f"{named.name}'s"
        reader.notes = (
            f"its name is {says}, but its content is {found.name}: read as {found.name}",
            *reader.notes,
        )
    if spacing is not None:
        header = reader.header
        try:
            grid, note = complete_grid(header.grid, spacing, header.axes.letters)
        except ShapeError as error:
            reader.close()
            raise ShapeError(f"{path}: {error}") from None
        reader.header = replace(header, grid=grid)
        kept = tuple(text for text in reader.notes if text not in header.grid.guesses)
        reader.notes = (*kept, note) if note else kept
    return reader


def _check_url(found: VolumeFormat, path: str, verb: str) -> None:
    if is_url(path) and not found.reads_urls:
        raise (FormatError if verb == "read" else SpecError)(
            f"cannot {verb} {path}: {found.name} is read and written in files, and only "
            f"{_names(lambda f: f.reads_urls)} at URLs; name a file"
        )


def create_volume(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    gz_level: int = 1,
    threads: int | None = None,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    levels_by: str | None = None,
    compression: str = "none",
) -> VolumeWriter:
    """Start writing a volume; the file appears when the writer is committed.

    header : VolumeHeader   its axes must be in this format's storage order: see
                            `VolumeFormat.output_letters`
    gz_level : int          level of gzip and deflate, 0 to 3 (isal's scale)
    threads : int or None   threads that compress; their number changes no byte of the output
    chunks : int or 3 ints or None
                            (D, H, W) of a chunk, if the format has chunks; None: it chooses
    levels : int            number of resolution levels, if the format has them
    levels_by : str or None how a level is made of the one before: "mean", "gaussian", "mode" or
                            "nearest"; None: by the mean, and of labels by the mode
    compression : str       "none", or one of the format's `compressions`
    Raises: SpecError for an unknown suffix or an option that the format does not have;
        OutputExistsError; WriteError if the format cannot store the volume.
    """
    found = output_format(path)
    options = _options(found, path, chunks, levels, levels_by, compression)
    if not found.holds_axes(header.axes):
        raise WriteError(
            f"cannot write {path}: {found.name} holds no volume with the axes "
            f"{header.axes.letters} {header.axes.shape}; write .nii.gz, .nrrd or .ome.tif"
        )
    assert found.create is not None  # as `output_format` sees to
    writer = found.create(
        path,
        header,
        overwrite=overwrite,
        options=replace(options, gz_level=gz_level, threads=threads),
    )
    writer.notes = (*writer.notes, *lost_facts(found, path, header))
    return writer


def lost_facts(found: VolumeFormat, path: str, header: VolumeHeader) -> tuple[str, ...]:
    """A note on what a file tells that an output of a format cannot hold; () if it is nothing.

    >>> import numpy as np
    >>> from conv3d_cli.model.volume import Axes, Facts
    >>> facts = Facts("embryo", channel_names=("DAPI", "GFP"))
    >>> header = VolumeHeader(Axes("czyx", (2, 1, 1, 1)), np.dtype(np.float32), facts=facts)
    >>> lost_facts(find_format("a.nii"), "a.nii", header)[0]
    "this NIfTI output does not hold the image's name (embryo), the names of channels (DAPI, GFP)"
    """
    facts, kept = header.facts, found.keeps(path, header)
    told = {"name": f"the image's name ({facts.name})" if facts.name else ""}
    if facts.time_step is not None and header.axes.size("t") > 1:
        step, unit = facts.time_step
        told["time_step"] = f"the time step ({step:.6g} {unit or 'without a unit'})"
    if facts.channel_names and any(header.channel_names):
        told["channel_names"] = f"the names of channels ({', '.join(header.channel_names)})"
    if header.channel_colors:
        told["channel_colors"] = "the colours of channels"
    told |= {word: word for word in facts.others}
    lost = [words for fact, words in told.items() if words and fact not in kept]
    return _not_held(found, [*lost, *facts.dropped])


def lost_provenance(path: str, header: VolumeHeader) -> tuple[str, ...]:
    """A note on what a file tells of its making that an output does not hold; () without any.

    Unlike what `lost_facts` tells of, this is no loss under --strict.
    Raises: SpecError for an unknown suffix.
    """
    found = output_format(path)
    kept = found.keeps(path, header)
    return _not_held(found, [words for words in header.facts.provenance if words not in kept])


def _not_held(found: VolumeFormat, lost: Sequence[str]) -> tuple[str, ...]:
    return (f"this {found.name} output does not hold {', '.join(lost)}",) if lost else ()


def _options(
    found: VolumeFormat,
    path: str,
    chunks: int | Sequence[int] | None,
    levels: int,
    levels_by: str | None,
    compression: str,
) -> OutputOptions:
    """The options of an output, checked. Raises: SpecError for one that its format lacks."""
    check_compression(compression)
    check_levels_by(levels_by)
    given = {"chunks": chunks is not None, "levels": levels != 1, "levels_by": bool(levels_by)}
    if not found.chunked and any(given.values()):
        option = setting(next(name for name, is_given in given.items() if is_given))
        able = _names(lambda f: f.chunked)
        raise SpecError(
            f"cannot write {path}: {option} is for {able}, and {found.name} has none; leave it out"
        )
    if compression not in ("none", *found.compressions):
        able = _names(lambda f: compression in f.compressions)
        own = " or ".join(found.compressions) or "none"
        raise SpecError(
            f"cannot write {path}: {setting('compression', compression)} is for {able}, "
            f"and {found.name} has {own}" + ("" if found.compressions else "; leave it out")
        )
    return OutputOptions(
        chunks=None if chunks is None else triple(chunks, "chunks"),
        levels=levels,
        levels_by=levels_by,
        compression=compression,
    )


def _names(condition: Callable[[VolumeFormat], bool]) -> str:
    """Names of the formats that meet a condition, for messages: "TIFF, NRRD and NumPy"."""
    *first, last = [found.name for found in FORMATS if condition(found)]
    return f"{', '.join(first)} and {last}" if first else last


def takes_gz_level(path: str, compression: str) -> bool:
    """True if an output of this name and compression is packed by gzip or deflate.

    >>> takes_gz_level("a.nii.gz", "none"), takes_gz_level("a.tif", "deflate")
    (True, True)
    >>> takes_gz_level("a.nii", "none"), takes_gz_level("a.tif", "zstd")
    (False, False)
    """
    return compression == "deflate" or path.lower().endswith((".gz", ".mgz"))


def scaled_formats() -> str:
    """Names and suffixes of the formats that store a slope and an intercept, for messages.

    >>> scaled_formats()
    'NIfTI (.nii.gz .nii.zst .nii .hdr.gz .img.gz .hdr .img) and MRtrix (.mif.gz .mif .mih)'
    """
    return " and ".join(
        f"{found.name} ({' '.join(found.suffixes)})" for found in FORMATS if found.holds_scale
    )


def check_compression(compression: str) -> None:
    """Refuse a compression that no format has. Raises: SpecError."""
    known = sorted({name for found in FORMATS for name in found.compressions})
    if compression not in ("none", *known):
        raise SpecError(f"compression must be none, {' or '.join(known)}, received {compression!r}")


def check_levels_by(method: str | None) -> None:
    """Refuse a method of making levels that does not exist. Raises: UnknownNameError."""
    if method is not None:
        from conv3d_cli.formats.zarr.downsampling import DOWNSAMPLINGS

        if method not in DOWNSAMPLINGS:
            raise unknown_name("levels_by", method, DOWNSAMPLINGS)


def check_output(
    path: str,
    *,
    overwrite: bool = False,
    make_folder: bool = False,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    levels_by: str | None = None,
    compression: str = "none",
) -> None:
    """Check, before any work, that an output can be written under its name and with its options.

    overwrite : bool        accept an output that exists
    make_folder : bool      accept a missing folder that can be made
    chunks, levels, levels_by, compression
                            see `create_volume`
    Raises: OutputExistsError, WriteError, SpecError.
    """
    found = output_format(path)
    _options(found, path, chunks, levels, levels_by, compression)
    if path != "-":
        found.check_target(path, overwrite, make_folder)


def lies_within(source: str, target: str) -> bool:
    """True if a volume is the folder or store `target`, or an array or level inside it.

    >>> lies_within("s3://b/a.zarr/1", "s3://b/a.zarr/"), lies_within("a.npy", "a.npy")
    (True, False)
    """
    inner, outer = local_folder(source), local_folder(target)
    if inner is None or outer is None:
        return f"{source.rstrip('/')}/".startswith(f"{target.rstrip('/')}/")
    return os.path.isdir(outer) and os.path.join(true_path(inner), "").startswith(
        os.path.join(true_path(outer), "")
    )


def volume_files(path: str) -> tuple[str, ...]:
    """Names of the files that a volume is read from.

    One file, both of a pair, all of an OME-TIFF, or the folder of the whole Zarr store.
    Raises: FormatError if a file of a pair is missing.
    >>> volume_files("a.nii.gz"), volume_files("a.zarr/1")
    (('a.nii.gz',), ('a.zarr',))
    """
    found = input_format(path)
    return (path,) if found is None or path == "-" else found.files(path)


def holds_more(path: str) -> bool:
    """True if the file of a volume holds others, too: an output in its place would lose them."""
    found = input_format(path)
    return found is not None and path != "-" and found.holds_more(path)


def content_of(path: str) -> str:
    """ "labels" or "cifti" if a file's header says that its values are not an image, else "".

    "" for URLs, and for files that cannot be read: opening them reports the error.
    """
    found = input_format(path)
    if found is None or path == "-" or is_url(path):
        return ""
    try:
        return found.content(path)
    except (Conv3DError, OSError):
        return ""


def written_files(path: str) -> tuple[str, ...]:
    """Names of the files that an output consists of, or of its folder, whether it exists or not.

    >>> written_files("a.ome.tif"), written_files("a.img")
    (('a.ome.tif',), ('a.hdr', 'a.img'))
    """
    found = find_format(path)
    return (path,) if found is None or path == "-" else found.written(path)


def readable_files(path: str) -> tuple[str, ...]:
    """As `volume_files`, but only the name itself if a file of a pair is missing.

    Opening the volume reports the missing file.
    """
    try:
        return volume_files(path)
    except FormatError:
        return (path,)


def replaced_part(source: str, target: str) -> str:
    """The file of volume `source` that output `target` would replace, leaving its other files.

    "" if there is none: a user may replace a volume as a whole.
    """
    if source == "-" or "://" in source or "://" in target:
        return ""
    read = {true_path(name): name for name in readable_files(source)}
    written = {true_path(name) for name in written_files(target)}
    return (
        ""
        if set(read) <= written
        else next((name for real, name in read.items() if real in written), "")
    )


def output_exists(path: str) -> bool:
    """True if an output of this name exists."""
    try:
        check_output(path)
    except OutputExistsError:
        return True
    except Conv3DError:
        pass  # writing the output reports any other error
    return False


def output_bytes(
    path: str,
    header: VolumeHeader,
    channels: int,
    *,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    levels_by: str | None = None,
    compression: str = "none",
) -> int:
    """Bytes of memory that writing a volume takes.

    Not counted are the blocks (d, h, w, channels) that the caller passes to the writer.
    """
    found = output_format(path)
    return found.output_bytes(
        header, channels, _options(found, path, chunks, levels, levels_by, compression)
    )


def output_access(
    path: str,
    header: VolumeHeader,
    *,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    levels_by: str | None = None,
    compression: str = "none",
) -> BoxAccess | None:
    """How the writer of a volume takes boxes; None if it takes whole planes only: a stream."""
    found = output_format(path)
    options = _options(found, path, chunks, levels, levels_by, compression)
    return None if found.streamed(path, options) else found.box_access(header, options)


def output_format(path: str) -> VolumeFormat:
    """The format that an output's name asks for; .npy for a device or a FIFO that names none.

    Raises: SpecError if no format has its suffix, or if that format is only read.
    """
    found = find_format(path)
    if found is None and sent_to(path):
        return npy.FORMAT
    if found is None and (os.path.isdir(path) or path.endswith(("/", os.sep))):
        cure = words(f"pass it as --out-dir {path}", "add a file's name")
        raise SpecError(f"cannot write {path}: it names a folder; {cure}")
    if found is None or found.create is None:
        foreign = next((kind for kind in FOREIGN if kind.claims(path)), None)
        name = foreign.name if foreign is not None else "" if found is None else found.name
        if name:
            raise SpecError(
                f"cannot write {path}: {name} is not written; write .nii.gz, .nrrd, .mha, "
                f".ome.tif, .ome.zarr or another ({FORMATS_PAGE})"
            )
        fault = unknown_suffix(path, written_suffixes(), "volume")
        raise SpecError(f"cannot write {path}: {fault} ({FORMATS_PAGE})")
    if not found.claims(path):
        raise SpecError(
            f"cannot write {path}: files of this suffix are read, and not written; "
            f"name it {found.target_suffix}"
        )
    _check_url(found, path, "write")
    file, part = split_part(path)
    if part and found.has_parts and not is_url(path):
        raise SpecError(
            f"cannot write {path}: an output is a whole file; leave out ::{part}, and name {file}"
        )
    return found


def read_volume(
    path: str | os.PathLike[str], *, axes: str | None = None, dtype: str | None = None
) -> Volume:
    """Read a whole volume into memory.

    path : of a file or store, or a URL; FILE::PART is one of several images in a file
    axes : str or None      axis letters in storage order, in place of the file's own
    dtype : str or None     of the result; None: the file's, or float32 if the file scales values
    Returns a Volume whose `data` is in storage order: (z, y, x) for a 3-D scan, (t, z, y, x) for a
    series. Slope and intercept are applied.
    Raises: FormatError.
    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_volume(f"{folder}/a.npy", Volume(np.ones((2, 3, 4), np.uint8), "zyx"))
    ...     read_volume(f"{folder}/a.npy").data.shape
    (2, 3, 4)
    """
    import numpy as np

    with open_volume(os.fsdecode(path), axes=axes) as reader:
        header = reader.header
        slope, intercept = header.scale
        scaled = header.scale != (1.0, 0.0)
        target = np.dtype(dtype) if dtype else (np.dtype(np.float32) if scaled else header.dtype)
        data = np.empty(header.axes.shape, target)
        for n, channels in parts_in_storage_order(
            header.axes, channels_together=not reader.sequential
        ):
            for start in range(0, header.shape[1], 16):
                depth = slice(start, min(start + 16, header.shape[1]))
                block = reader.read(n, depth, channels)
                # values too large for the dtype become infinite
                with np.errstate(over="ignore", invalid="ignore"):
                    header.axes.assign(
                        data, n, depth, channels, block * slope + intercept if scaled else block
                    )
                reader.release(n, depth.stop)
        reader.finish()
    return Volume(
        data,
        header.axes.letters,
        header.grid,
        header.format,
        header.metadata,
        facts=header.facts,
    )


def write_volume(
    path: str | os.PathLike[str],
    volume: Volume,
    *,
    overwrite: bool = False,
    gz_level: int = 1,
    chunks: int | Sequence[int] | None = None,
    levels: int = 1,
    levels_by: str | None = None,
    compression: str = "none",
) -> None:
    """Write a whole volume in the format of the path's suffix; no partial file is ever left.

    volume : Volume         `data` in the order of its `axes`; see `read_volume` for an example
    overwrite : bool        replace an output that exists
    gz_level, chunks, levels, levels_by, compression
                            see `create_volume`
    Raises: OutputExistsError, WriteError; SpecError for an unknown suffix or option, and for what
    is no Volume.
    """
    if not isinstance(volume, Volume):
        raise SpecError(
            f"write_volume() takes a Volume, received {type(volume).__name__}; make one of an "
            "array, as in Volume(array, 'zyx', Grid((3.0, 1.0, 1.0), 'mm'))"
        )
    path = os.fsdecode(path)
    header = volume.header
    target = output_format(path)
    letters = target.output_letters(header.axes.letters, header.shape[4], header.dtype)
    # a format may merge two channel axes into one
    channel_letters = [a for a in letters if a in "cs"]
    sizes = {channel_letters[0]: header.shape[4]} if len(channel_letters) == 1 else {}
    out_header = replace(header, axes=header.axes.renamed(letters, sizes))
    with create_volume(
        path,
        out_header,
        overwrite=overwrite,
        gz_level=gz_level,
        chunks=chunks,
        levels=levels,
        levels_by=levels_by,
        compression=compression,
    ) as writer:
        for n, channels in parts_in_storage_order(
            out_header.axes, channels_together=not writer.sequential
        ):
            for start in range(0, header.shape[1], 16):
                depth = slice(start, min(start + 16, header.shape[1]))
                writer.write(
                    n, start, channels.start, header.axes.block(volume.data, n, depth, channels)
                )
        writer.commit()
