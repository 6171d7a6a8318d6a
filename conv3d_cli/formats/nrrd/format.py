"""NRRD: `.nrrd`, and `.nhdr` with voxels in a file of their own.

Raw or gzip voxels of either byte order and every real type. Raw voxels are memory-mapped; packed
ones are unpacked forward only, slab by slab. An output keeps its input's space and key/value pairs.
`.nhdr` outputs are raw.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError, SpecError, WriteError, setting
from conv3d_cli.formats.base import (
    DEFAULT_OPTIONS,
    OutputOptions,
    PairWriter,
    RawReader,
    RawWriter,
    entries_of,
    real_dtype,
)
from conv3d_cli.formats.codecs import codec_named
from conv3d_cli.formats.nrrd import FORMAT
from conv3d_cli.formats.nrrd.axes import AxisFacts, axis_letters, kind_of, read_axes
from conv3d_cli.formats.nrrd.grid import (
    UNSAMPLED,
    Sampling,
    Space,
    grid_fields,
    read_grid,
    read_space,
)
from conv3d_cli.formats.nrrd.header import (
    NrrdHeader,
    header_text,
    number,
    quoted,
    read_header,
    type_name,
)
from conv3d_cli.formats.nrrd.keys import PLACE, SEGMENT, SEGMENTATION, keys_of_channels
from conv3d_cli.formats.packed import PackedStream, PackedWriter, open_packed
from conv3d_cli.formats.stored import beside
from conv3d_cli.model.volume import (
    CHANNEL,
    SPATIAL,
    Axes,
    Facts,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    is_history,
)
from conv3d_cli.system.atomic import output_file, suffix_of, write_errors
from conv3d_cli.system.inputs import check_input
from conv3d_cli.system.portable import write_at

CHANNELS = "conv3d_channels"  # key of a JSON list: name and color of each channel
HISTORY = "conv3d_history"  # key of the history, a line for each step
OWN_FIELDS = ("sample units", "measurement frame", "thicknesses")  # that no other format holds
KEPT_FIELDS = ("content", "sample units", "measurement frame")  # they remain true of an output
GZIP = codec_named(".gz")


@dataclass(frozen=True)
class NrrdSource:
    """What a volume keeps of its NRRD file for an output in NRRD.

    axes : Axes         of the file
    facts : dict        letter -> what the file says about the axis
    space : Space       that the file names
    fields, keys : dict     texts that an output repeats
    """

    axes: Axes
    facts: Mapping[str, AxisFacts]
    space: Space
    fields: Mapping[str, str]
    keys: Mapping[str, str]


# --------------------------------------------------------------------------------------------------
# Reading


def open_nrrd(path: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a NRRD file, or a detached header with its voxels.

    axes : str or None      axis letters in storage order (slowest first), in place of the file's
    Raises: FormatError if it is missing, truncated or damaged, or if its encoding is not raw or
        gzip; WriteError if it has to be unpacked into $TMPDIR and does not fit.
    """
    header = _read_header_of(path)
    facts = read_axes(header)
    if axes is None:
        letters, notes = axis_letters(header, facts, channels_first)
        stored = Axes(letters[::-1], header.sizes()[::-1])
    else:
        stored, notes = Axes(axes, header.sizes()[::-1]), []
    places = {a: len(stored.letters) - 1 - i for i, a in enumerate(stored.letters) if a in SPATIAL}
    grid, more = read_grid(header, places)
    for name in header.unknown:
        more.append(f"NRRD has no field '{name}': it is left out")
    if "old min" in header.fields:
        more.append(
            "its values were rescaled ('old min', 'old max'): they are used as they are stored"
        )
    keys = dict(header.keys)
    history = tuple(line for line in keys.get(HISTORY, "").split("\n") if is_history(line))
    own = dict(zip(reversed(stored.letters), facts, strict=True))
    source = NrrdSource(
        stored,
        own,
        read_space(header),
        {name: header.fields[name] for name in KEPT_FIELDS if name in header.fields},
        keys,
    )
    _encoding(header)
    dtype = header.dtype()
    volume = VolumeHeader(
        stored,
        real_dtype(dtype, path),
        grid,
        format=FORMAT.name,
        metadata=source if axes is None else None,
        history=history,
        facts=_read_facts(header, keys, own),
    )
    reader = _open_voxels(header, volume, dtype)
    reader.notes = (*reader.notes, *notes, *more)
    return reader


def _read_facts(header: NrrdHeader, keys: Mapping[str, str], own: Mapping[str, AxisFacts]) -> Facts:
    """What a file tells besides: its content, the step of time, and our key of the channels."""
    try:
        found = json.loads(keys.get(CHANNELS, "[]"))
    except ValueError:
        found = []
    channels = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
    names, colors = (tuple(str(c.get(k) or "") for c in channels) for k in ("name", "color"))
    return Facts(
        header.fields.get("content", ""),
        own["t"].time_step if "t" in own else None,
        names if any(names) else (),
        colors if any(colors) else (),
        (
            *entries_of("the fields", [name for name in OWN_FIELDS if name in header.fields]),
            *entries_of("the keys", [key for key in keys if key not in (CHANNELS, HISTORY)]),
        ),
    )


def _read_header_of(path: str) -> NrrdHeader:
    check_input(path)
    with open(path, "rb") as file:
        return read_header(file, path)


def input_files(path: str) -> tuple[str, ...]:
    """The files of an input: one, or a header and its voxels.

    Raises: FormatError if the header cannot be read.
    """
    return tuple(dict.fromkeys((path, _voxel_file(_read_header_of(path)))))


def _voxel_file(header: NrrdHeader) -> str:
    """The file with the voxels. Raises: FormatError if there are several, or none."""
    name = header.fields.get("data file", "")
    if not name or name == "LOCAL":
        if not header.attached:
            raise header.error(
                "truncated: its header has no end, and names no 'data file'"
                + _missing_name_hint(header.path)
            )
        return header.path
    words = name.split()
    if words[0] == "LIST" or ("%" in words[0] and len(words) in (4, 5)):
        raise header.error(
            "its voxels are in several files ('data file' is a list or a pattern); "
            "make one file of them: "
            f"unu save -f nrrd -i {os.path.basename(header.path)} -o one.nrrd"
        )
    if "://" in name or name == "-":
        raise header.error(
            f"its voxels are not in a file, but at {name[:80]}; save header and voxels as one file"
        )
    return beside(header.path, name, "data file")


def _missing_name_hint(path: str) -> str:
    return "" if suffix_of(path) == ".nrrd" else "; add the line 'data file: NAME'"


def _encoding(header: NrrdHeader) -> str:
    """How the voxels are stored: "raw", "gzip" or "gz". Raises: FormatError for another way."""
    encoding = header.require("encoding").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise header.error(
            f"its encoding is {encoding[:40]}, and only raw and gzip can be read; "
            "convert it: unu save -f nrrd -e gzip"
        )
    return encoding


def _open_voxels(header: NrrdHeader, volume: VolumeHeader, stored: np.dtype[Any]) -> VolumeReader:
    encoding = _encoding(header)
    path = _voxel_file(header)
    try:
        size = check_input(path)
    except FormatError as error:  # names a file that the user did not name
        raise header.error(str(error).removeprefix("cannot read ") + " (its 'data file')") from None
    with ExitStack() as opened:
        file: BinaryIO = opened.enter_context(open(path, "rb"))
        file.seek(header.size if path == header.path else 0)
        for _ in range(header.integer("line skip", 0, 0)):
            if not file.readline():
                raise header.error(f"truncated: {path} has fewer lines than 'line skip' says")
        start, skip = file.tell(), header.integer("byte skip", 0, -1)
        nbytes = math.prod(volume.axes.shape) * stored.itemsize
        if encoding == "raw":
            offset = size - nbytes if skip == -1 else start + skip
            if offset < 0:
                raise header.error(
                    f"truncated: its header promises {nbytes} bytes of voxels, {path} has {size}"
                )
            reader: VolumeReader = RawReader(file, volume, path, stored, offset)
            opened.pop_all()
            return reader
    if skip == -1:
        raise header.error("'byte skip' is -1, which is for raw voxels, but these are gzip")
    assert GZIP is not None
    if skip + nbytes > (size - start) * GZIP.largest_inflation:
        raise header.error(
            f"truncated or damaged: its header promises {skip + nbytes} bytes "
            f"(shape {volume.axes.shape}, {stored}), "
            f"more than {size - start} packed bytes can hold"
        )
    return open_packed(PackedStream(path, GZIP, start), volume, stored, skip)


def nrrd_content(path: str) -> str:
    """ "labels" for a segmentation of 3D Slicer, else "". Raises: FormatError."""
    return "labels" if any(map(SEGMENT.match, _read_header_of(path).keys)) else ""


def lost_meaning(volume: VolumeHeader) -> str:
    """A note if an output is no longer the segmentation that its input is, else "".

    volume : VolumeHeader       of the output
    """
    source = volume.metadata
    if not isinstance(source, NrrdSource) or not volume.is_filtered:
        return ""
    if not any(map(SEGMENT.match, source.keys)):
        return ""
    return (
        "the input's voxels are segments by its header (Segment0_...), and those of the output are "
        "not: it has no such keys"
    )


# --------------------------------------------------------------------------------------------------
# Writing


def output_names(path: str) -> tuple[str, ...]:
    """The files of an output: one, or a detached header and its voxels.

    >>> output_names("a.nrrd"), output_names("A.NHDR")
    (('a.nrrd',), ('A.NHDR', 'A.RAW'))
    """
    suffix = path[len(path) - len(".nhdr") :]
    if suffix.lower() != ".nhdr":
        return (path,)
    return path, path[: len(path) - len(suffix)] + (".RAW" if suffix.isupper() else ".raw")


def create_nrrd(
    path: str,
    header: VolumeHeader,
    *,
    overwrite: bool = False,
    options: OutputOptions = DEFAULT_OPTIONS,
) -> VolumeWriter:
    """Start a NRRD file, or a detached header with its voxels.

    Raises: OutputExistsError; WriteError for a dtype or a shape that NRRD cannot store; SpecError
        for a compressed .nhdr.
    """
    packs = options.compression != "none"
    names = output_names(path)
    if packs and len(names) == 2:
        raise SpecError(
            f"cannot write {path}: {setting('compression')} is for .nrrd, and .nhdr is written "
            "raw; leave it out"
        )
    fields, keys, notes = output_fields(path, header, "gzip" if packs else "raw")
    if len(names) == 2:
        fields["data file"] = os.path.basename(names[1])
    text = header_text(fields, keys) + (b"" if len(names) == 2 else b"\n")
    stored = np.dtype(np.uint8) if header.dtype == np.bool_ else header.dtype.newbyteorder("<")
    opened = [output_file(names[-1], overwrite)]
    try:
        if len(names) == 2:
            opened.append(output_file(path, overwrite, is_header=True))
        with write_errors(path):
            if packs:
                opened[0].file.write(text)
            else:
                write_at(opened[-1].file, memoryview(text), 0)
        writer: VolumeWriter
        if packs:
            assert GZIP is not None
            writer = PackedWriter(
                opened[0], header, path, b"", stored, GZIP, options.gz_level, options.threads
            )
        else:
            writer = RawWriter(
                opened[0], header, names[-1], 0 if len(names) == 2 else len(text), stored
            )
        if len(names) == 2:
            writer = PairWriter(writer, opened[1])
    except BaseException:
        for output in opened:
            output.abort()
        raise
    writer.notes = tuple(notes)
    return writer


def output_fields(
    path: str, header: VolumeHeader, encoding: str
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The fields and key/value pairs of an output, and notes.

    encoding : str      "raw" or "gzip"
    Raises: WriteError for an empty volume, or a dtype that NRRD does not have.
    """
    if math.prod(header.shape) == 0:
        raise WriteError(f"cannot write {path}: NRRD holds no empty volume, shape {header.shape}")
    notes = []
    dtype = header.dtype
    if dtype == np.bool_:
        dtype = np.dtype(np.uint8)
        notes.append("truth values are stored as 0 and 1 (uint8)")
    source = header.metadata if isinstance(header.metadata, NrrdSource) else None
    letters = header.axes.letters[::-1]
    facts = [_facts_of(letter, header, source) for letter in letters]
    known = dict(zip(letters, facts, strict=True))
    others = {
        a: fact.sampling
        for a, fact in known.items()
        if a not in SPATIAL and not math.isnan(fact.sampling.step)
    }
    nodes = {a for a, fact in known.items() if fact.center.lower() == "node"}
    fields = {
        "type": type_name(dtype, path),
        "dimension": str(len(letters)),
        "sizes": " ".join(map(str, header.axes.shape[::-1])),
    }
    fields |= grid_fields(
        header.grid, letters, None if source is None else source.space, others, nodes
    )
    fields["kinds"] = " ".join(fact.kind or "???" for fact in facts)
    if any(fact.label for fact in facts):
        fields["labels"] = quoted(fact.label for fact in facts)
    if any(fact.center for fact in facts):
        fields["centers"] = " ".join(fact.center or "???" for fact in facts)
    if any(not math.isnan(fact.thickness) for fact in facts):
        fields["thicknesses"] = " ".join(number(fact.thickness) for fact in facts)
    if source is not None:
        same_world = "space origin" in fields and fields.get("space", "") == source.space.name
        fields |= {k: v for k, v in source.fields.items() if k != "measurement frame" or same_world}
    if dtype.itemsize > 1:
        fields["endian"] = "little"
    fields["encoding"] = encoding
    keys = {} if source is None else dict(source.keys)
    if header.is_filtered:
        keys = {key: text for key, text in keys.items() if not SEGMENTATION.match(key)}
    if source is not None and any(header.axes.size(a) != source.axes.size(a) for a in SPATIAL):
        keys = {key: text for key, text in keys.items() if not PLACE.fullmatch(key)}  # other voxels
    if header.channel_places is not None:
        keys = keys_of_channels(keys, header.channel_places)
    if header.facts.name:
        fields["content"] = " ".join(header.facts.name.split())
    keys |= _channel_keys(header)
    if header.history:
        keys[HISTORY] = "\n".join(header.history)
    return fields, keys, notes


def _channel_keys(header: VolumeHeader) -> dict[str, str]:
    """The key of names and colours of channels, as JSON; empty to replace one that is not true."""
    count, known = header.shape[4], len(header.facts.channel_names + header.facts.channel_colors)
    names, colors = header.channel_names or [""] * count, header.channel_colors or [""] * count
    told = [
        {key: text for key, text in (("name", name), ("color", color)) if text}
        for name, color in zip(names, colors, strict=True)
    ]
    text = json.dumps(told, ensure_ascii=False) if any(told) else ""
    return {CHANNELS: text} if text or known else {}


def _facts_of(letter: str, header: VolumeHeader, source: NrrdSource | None) -> AxisFacts:
    """What an output says about an axis: what its file said, as far as it is still true."""
    axes, facts = header.axes, header.facts
    if source is None or letter not in source.facts:
        kind = kind_of(letter, axes)
        step, unit = facts.time_step or (math.nan, "")
        sampling = Sampling(step, math.nan, unit) if kind == "time" else UNSAMPLED
        return AxisFacts(kind, letter if kind == "list" else "", sampling=sampling)
    own = source.facts[letter]
    if letter in SPATIAL:
        return own if own.kind else replace(own, kind="domain")
    changed = letter in CHANNEL and header.channel_places is not None
    if changed or axes.size(letter) != source.axes.size(letter) or not own.kind:
        kind = kind_of(letter, axes)
        label = own.label or (letter if kind == "list" else "")
        return replace(own, kind=kind, label=label)
    return own
