"""OME-NGFF metadata (versions 0.4 and 0.5): the attributes of a group, read and written.

Attributes are dictionaries: this module does not import zarr. Metadata that remain true of a
convolved volume are kept: the image's name, the channels with their names and colours, the steps
and unit of time.

Source: https://ngff.openmicroscopy.org, sections "axes", "coordinateTransformations", "multiscales"
and "omero".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError, WriteError, setting
from conv3d_cli.formats.base import entries_of
from conv3d_cli.formats.zarr.downsampling import DOWNSAMPLINGS, Downsampling
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.units import NGFF_LENGTHS, TIME_UNITS, UNITS, known_length, time_unit
from conv3d_cli.model.volume import CHANNEL, SPATIAL, Axes, Facts, VolumeHeader
from conv3d_cli.system.words import plain_text

AXIS_TYPES = {
    **dict.fromkeys(SPATIAL, "space"),
    **dict.fromkeys(CHANNEL, "channel"),
    "t": "time",
}
# the type of an axis without one: 0.4 and 0.5 only say that axes should have types
KINDS_BY_NAME = {
    **{a: kind for a, kind in AXIS_TYPES.items() if a != "s"},
    "channel": "channel",
    "time": "time",
}
SPARE_LETTERS = "taburefghijklmnopqvwd"
VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6")
OLD_AXES = "tczyx"  # implied by versions 0.1 and 0.2


@dataclass(frozen=True)
class Axis:
    """An axis as NGFF describes it.

    type : str      "space", "time", "channel", another, or "" if it has none
    unit : str      "" if it has none
    """

    name: str
    type: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Dataset:
    """A resolution level: its path in the group, and its position in the world.

    Along each axis, world = scale · index + translation.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class OmeImage:
    """A multiscale image.

    version : str       of NGFF, as the file says
    axes : tuple        in storage order
    datasets : tuple    levels, the finest first
    name : str          "" if it has none
    omero : dict        rendering: channels with label, color, window
    images : int        number of images in the group; this is the first
    systems : tuple     names of its coordinate systems (0.6), the one of `axes` first
    history : tuple     lines of `VolumeHeader.history`, from "history" in the attribute "conv3d"
    others : tuple      names of attributes that are not NGFF's
    label : dict        "image-label" of an image of labels: their colours and properties
    """

    version: str
    axes: tuple[Axis, ...]
    datasets: tuple[Dataset, ...]
    name: str = ""
    omero: dict[str, Any] = field(default_factory=dict)
    images: int = 1
    systems: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    label: dict[str, Any] = field(default_factory=dict)

    @property
    def letters(self) -> str:
        """The axis letters: see `axis_letters`."""
        return axis_letters(self.axes)


# --------------------------------------------------------------------------------------------------
# Reading


# Attributes of a group that are NGFF's own or this package's.
KNOWN = frozenset(
    {"ome", "multiscales", "omero", "labels", "image-label", "conv3d", "bioformats2raw.layout"}
)


class _Unsupported(ValueError):
    """What is described may be legal, but is not read."""


def read_image(attributes: Mapping[str, Any], path: str) -> OmeImage | None:
    """The first multiscale image that a group's attributes describe; None if they describe none.

    path : str      for the error message
    Raises: FormatError if the description is damaged, newer, or holds what is not read.
    >>> axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    >>> scale = {"type": "scale", "scale": [2, 0.5, 0.5]}
    >>> level = {"path": "0", "coordinateTransformations": [scale]}
    >>> ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    >>> image = read_image({"ome": ome}, "a.zarr")
    >>> image.letters, image.datasets[0].scale
    ('zyx', (2.0, 0.5, 0.5))
    """
    found: Any = attributes.get("ome")
    if not isinstance(found, Mapping) or "multiscales" not in found:
        found = attributes
    if "multiscales" not in found:
        return None
    version = ""
    try:
        multiscale = found["multiscales"][0]
        version = _version_of(found, multiscale, attributes)
        systems, entries = _coordinate_system(multiscale)
        if entries is None and version in VERSIONS[:2]:
            entries = list(OLD_AXES)
        if entries is None:
            raise ValueError(f"version {version} without axes")
        axes = tuple(_read_axis(entry) for entry in entries)
        if len({axis.name for axis in axes}) != len(axes):
            raise ValueError("two axes have the same name")
        # up to 0.5, these apply to all levels; from 0.6 on, they lead to other systems
        whole = [] if systems else multiscale.get("coordinateTransformations") or []
        datasets = tuple(
            Dataset(
                _inside(str(d["path"])),
                *_compose([*(d.get("coordinateTransformations") or []), *whole], len(axes)),
            )
            for d in multiscale["datasets"]
        )
        if not datasets:
            raise ValueError("it has no datasets")
        omero = found.get("omero")
        return OmeImage(
            version,
            axes,
            datasets,
            str(multiscale.get("name") or ""),
            dict(omero) if isinstance(omero, Mapping) else {},
            len(found["multiscales"]),
            systems,
            _read_history(attributes.get("conv3d")),
            tuple(name for name in map(str, attributes) if name not in KNOWN),
            dict(label) if isinstance(label := found.get("image-label"), Mapping) else {},
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else error
        what = "hold what is not read" if isinstance(error, _Unsupported) else "are damaged"
        if _is_newer(version):
            what = f"are of version {version}, and {VERSIONS[-1]} is the newest that is read"
        raise FormatError(f"cannot read {path}: its OME metadata {what} ({cause})") from error


def _version_of(
    found: Mapping[str, Any], multiscale: Mapping[str, Any], attributes: Mapping[str, Any]
) -> str:
    """The version that metadata give; without one, what their keys tell: 0.5, 0.4 or 0.1."""
    version = found.get("version") or multiscale.get("version")
    if version:
        return str(version)
    if "ome" in attributes:
        return "0.5"
    return "0.4" if "axes" in multiscale else "0.1"


def is_known(version: str) -> bool:
    """True for a version of NGFF that is read, or a draft of one.

    >>> is_known("0.5"), is_known("0.6.dev3"), is_known("0.7")
    (True, True, False)
    """
    return ".".join(version.split(".")[:2]) in VERSIONS


def _is_newer(version: str) -> bool:
    """True for a version after the last of `VERSIONS`."""
    numbers = [part for part in version.split(".")[:2] if part.isdigit()]
    return len(numbers) == 2 and [int(n) for n in numbers] > [
        int(n) for n in VERSIONS[-1].split(".")
    ]


def _coordinate_system(multiscale: Mapping[str, Any]) -> tuple[tuple[str, ...], Any]:
    """Names of an image's coordinate systems, the intrinsic one first, and the axes of that one.

    The intrinsic system is the one to which its levels lead. Before 0.6 there are no names.
    """
    if "coordinateSystems" not in multiscale:
        return (), multiscale.get("axes")
    axes = {str(system["name"]): system["axes"] for system in multiscale["coordinateSystems"]}
    steps = multiscale["datasets"][0].get("coordinateTransformations") or [{}]
    output = steps[-1].get("output", next(iter(axes)))
    own = str(output["name"] if isinstance(output, Mapping) else output)
    if own not in axes:
        raise ValueError(f"no coordinate system '{own}'")
    return (own, *(name for name in axes if name != own)), axes[own]


def _read_history(own: Any) -> tuple[str, ...]:
    lines = own.get("history") if isinstance(own, Mapping) else None
    return tuple(line for line in lines if isinstance(line, str)) if isinstance(lines, list) else ()


def _inside(path: str) -> str:
    """The path of a node, if it lies in its group. Raises: ValueError.

    >>> _inside("scale0/image")
    'scale0/image'
    """
    if ".." in path.replace("\\", "/").split("/") or "://" in path:
        raise ValueError(f"the path {path!r} of a dataset leaves the store")
    return path


def _read_axis(entry: Any) -> Axis:
    if isinstance(entry, str):  # version 0.3, and the axes that older versions imply
        return Axis(entry)
    kind, unit = (str(entry.get(key) or "") for key in ("type", "unit"))
    return Axis(str(entry["name"]), kind.lower(), unit)


def _compose(
    transformations: Sequence[Any], count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and translation of several transformations, applied in sequence. Raises: ValueError."""
    scale, translation = np.ones(count), np.zeros(count)
    for entry in transformations:
        kind = entry["type"]
        if kind == "identity":
            continue
        if kind == "sequence":
            more, shift = _compose(entry["transformations"], count)
            scale, translation = scale * more, translation * more + shift
            continue
        if kind not in ("scale", "translation"):
            raise _Unsupported(f"transformation '{kind}' is not scale or translation")
        if kind not in entry:
            raise _Unsupported(
                f"the numbers of a {kind} are in a file of their own, which is not supported"
            )
        numbers = np.array(entry[kind], np.float64)
        if numbers.shape != (count,):
            raise ValueError(f"a {kind} has {numbers.size} numbers for {count} axes")
        if not np.isfinite(numbers).all():
            raise ValueError(f"a {kind} is not finite")
        if kind == "scale":
            scale, translation = scale * numbers, translation * numbers
        else:
            translation = translation + numbers
    return tuple(map(float, scale)), tuple(map(float, translation))


def axis_letters(axes: Sequence[Axis]) -> str:
    """One letter for each axis: c for channels, t for time, and z, y, x for space.

    Spatial axes with other names are z, y, x in the order of the axes.

    >>> space = [Axis(name, "space") for name in "zyx"]
    >>> axis_letters([Axis("t", "time"), Axis("c", "channel"), *space])
    'tczyx'
    >>> axis_letters([Axis("row", "space"), Axis("column", "space"), Axis("lambda", "channel")])
    'yxc'
    >>> axis_letters([Axis("z"), Axis("y", "space"), Axis("x", "space")])
    'zyx'
    """
    names = [axis.name.lower() for axis in axes]
    kinds = axis_kinds(axes)
    space = [i for i, kind in enumerate(kinds) if kind == "space"]
    letters: dict[int, str] = {}
    known = [names[i] for i in space]
    if set(known) <= set(SPATIAL) and {"y", "x"} <= set(known):
        letters.update(zip(space, known, strict=True))
    else:
        last = space[-len(SPATIAL) :]
        letters.update(zip(last, SPATIAL[len(SPATIAL) - len(last) :], strict=True))
    for i in range(len(axes)):
        if i in letters:
            continue
        wish = {"channel": "c", "time": "t"}.get(kinds[i], names[i] if len(names[i]) == 1 else "")
        taken = {*letters.values(), *SPATIAL}
        if kinds[i] != "channel":
            taken |= set(CHANNEL) if kinds[i] else set()
        if not wish.isascii() or not wish.isalpha() or wish in taken:
            wish = next(a for a in SPARE_LETTERS if a not in taken)
        letters[i] = wish
    return "".join(letters[i] for i in range(len(axes)))


def axis_kinds(axes: Sequence[Axis]) -> list[str]:
    """The type of each axis; where the file gives none, what its name says, or "" if it says none.

    >>> axis_kinds([Axis("z"), Axis("y", "space"), Axis("x", "space"), Axis("angle")])
    ['space', 'space', 'space', '']
    """
    return [axis.type or KINDS_BY_NAME.get(axis.name.lower(), "") for axis in axes]


def read_grid(axes: Sequence[Axis], dataset: Dataset, letters: str, notes: list[str]) -> Grid:
    """The grid of a level, in the unit of x. It is empty if all scales are 1 and have no unit.

    letters : str           one for each axis
    notes : list of str     gets a note on scales that have no meaning
    """
    place = {a: letters.index(a) for a in SPATIAL if a in letters}
    if not all(a in place for a in "yx"):
        return Grid()
    units = {a: known_length(axes[i].unit) or (None, 1.0) for a, i in place.items()}
    scale = {a: dataset.scale[i] for a, i in place.items()}
    start = {a: dataset.translation[i] for a, i in place.items()}
    # an axis without a unit takes that of another one; one whose unit is no length does not
    unit = next((units[a][0] for a in "xyz" if a in place and axes[place[a]].unit), None)
    if not all(scale.values()):
        zeros = ", ".join(a for a in SPATIAL if scale.get(a) == 0)
        notes.append(f"its scale along {zeros} is 0: its voxel sizes and its place are left out")
        return Grid()
    if unit is None and all(s == 1 for s in scale.values()) and not any(start.values()):
        return Grid()
    if unit is not None:
        for a, (own, count) in units.items():
            factor = 1.0 if own is None else count * UNITS[own] / UNITS[unit]
            if factor != 1:  # rounded, so that decimal numbers stay decimal: 500 nm is 0.5 um
                scale[a] = float(f"{scale[a] * factor:.14g}")
                start[a] = float(f"{start[a] * factor:.14g}")
    assumed = {
        letter
        for letter, a in zip("dhw", SPATIAL, strict=True)
        if a not in place or (unit is not None and units[a][0] is None)
    }
    d, h, w = (float(scale.get(a, 1.0)) for a in SPATIAL)
    z, y, x = (float(start.get(a, 0.0)) for a in SPATIAL)
    affine = affine_from_spacing((d, h, w), (z, y, x))
    return Grid((abs(d), abs(h), abs(w)), unit, affine, assumed=frozenset(assumed))


# --------------------------------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class Level:
    """A level of an output.

    path : str          in the group
    factors : dict      axis letter -> number of voxels of the finest level that one voxel covers
    """

    path: str
    factors: Mapping[str, int]


def image_attributes(
    letters: str,
    grid: Grid,
    version: str,
    levels: Sequence[Level],
    source: OmeImage | None,
    channels: Sequence[Mapping[str, Any]] = (),
    windows: Sequence[tuple[float, float]] = (),
    history: Sequence[str] = (),
    facts: Facts | None = None,
    name: str = "",
    method: Downsampling = DOWNSAMPLINGS["mean"],
    is_label: bool = False,
) -> dict[str, Any]:
    """The attributes of the group of an output image.

    letters : str       axes in storage order, as `output_letters` gives them
    grid : Grid         of the finest level
    version : str       of NGFF, "0.4" or "0.5"
    levels : list       the finest first
    source : OmeImage or None
                        the image of the input; its time axis is kept
    channels : list     see `output_channels`
    windows : list      smallest and largest value of each channel, if there are `channels`
    history : list      see `OmeImage`
    facts : Facts       of the volume; its time step is written where `source` has none
    name : str          of the image
    method : Downsampling   that made the levels after the first
    is_label : bool     the image is a copy of labels; what `source` tells of them is kept
    """
    facts = facts or Facts()
    place, _ = scale_and_translation(grid, is_flipped(source))
    times = _kept_axes(source)
    axes, base = [], {}
    for letter in letters:
        axis: dict[str, str] = {"name": letter}
        if letter in AXIS_TYPES:
            axis["type"] = AXIS_TYPES[letter]
        base[letter] = (1.0, 0.0)
        if letter in SPATIAL:
            base[letter] = place.get(letter, (1.0, 0.0))
            if grid.unit is not None and letter in place:
                axis["unit"] = NGFF_LENGTHS[grid.unit]
        elif letter in times:
            old, base[letter] = times[letter]
            if old.unit:
                axis["unit"] = old.unit
        elif letter == "t" and facts.time_step is not None:
            step, unit = facts.time_step
            base[letter] = (step, 0.0)
            if unit:
                axis["unit"] = TIME_UNITS[unit].word if unit in TIME_UNITS else unit
        axes.append(axis)
    datasets = []
    for level in levels:
        scale, translation = [], []
        for letter in letters:
            step, start = base[letter]
            count = level.factors.get(letter, 1)
            scale.append(step * count)
            middle = (count - 1) / 2 if method.is_centred else 0.0  # of `count` voxels
            translation.append(float(f"{start + step * middle:.15g}"))
        transformations: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(translation):
            transformations.append({"type": "translation", "translation": translation})
        datasets.append({"path": level.path, "coordinateTransformations": transformations})
    multiscale: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    if len(levels) == 1:
        multiscale |= {"type": "none", "metadata": {"description": "a single level"}}
    else:
        made = {"description": method.description, "method": "conv3d"}
        multiscale |= {"type": method.kind, "metadata": made}
    omero = _rendering(source, channels, windows)
    extra = {"omero": omero} if omero else {}
    own = {"conv3d": {"history": list(history)}} if history else {}
    if is_label:
        # the image that they belong to lies beside the input's store
        kept = {} if source is None else {k: v for k, v in source.label.items() if k != "source"}
        kept.pop("version", None)
        extra["image-label"] = {**kept, **({"version": version} if version == "0.4" else {})}
    if version == "0.4":
        return {"multiscales": [{"version": version, **multiscale}], **extra, **own}
    return {"ome": {"version": version, "multiscales": [multiscale], **extra}, **own}


def is_flipped(source: OmeImage | None) -> bool:
    """True if the image of the input has a negative scale; its output may then have one, too.

    Other outputs have none: some viewers refuse them.
    """
    if source is None:
        return False
    pairs = zip(source.letters, source.datasets[0].scale, strict=True)
    return any(letter in SPATIAL and step < 0 for letter, step in pairs)


def scale_and_translation(
    grid: Grid, signed: bool = False
) -> tuple[dict[str, tuple[float, float]], str]:
    """(step, start) of z, y, x in the grid's unit, and a note if NGFF cannot store all of the grid.

    signed : bool       steps may be negative

    >>> grid = Grid((3.0, 1.0, 1.0), "mm", affine_from_spacing((3, 1, 1), (9, 0, 0)))
    >>> scale_and_translation(grid)
    ({'z': (3.0, 9.0), 'y': (1.0, 0.0), 'x': (1.0, 0.0)}, '')
    """
    if grid.spacing is None:
        return {}, ""
    steps, start, note = grid.spacing, (0.0, 0.0, 0.0), ""
    if grid.affine is not None:
        matrix = grid.affine[:3, :3]
        along = matrix.diagonal()
        turned = np.any(np.abs(matrix - np.diag(along)) > 1e-6 * np.abs(along).max())
        if turned or not all(along) or (np.any(along < 0) and not signed):
            note = (
                "OME-Zarr holds voxel spacing and translation but no rotation or flip: "
                "the affine is left out"
            )
        else:
            x, y, z = (float(f"{v:.14g}") + 0.0 for v in grid.affine[:3, 3])
            start = (z, y, x)
            d, h, w = (math.copysign(s, a) for s, a in zip(steps, along[::-1], strict=True))
            steps = (d, h, w)
    return {a: (float(s), o) for a, s, o in zip(SPATIAL, steps, start, strict=True)}, note


def _kept_axes(source: OmeImage | None) -> dict[str, tuple[Axis, tuple[float, float]]]:
    """Batch axes of the source: letter -> (axis, (scale, translation))."""
    if source is None:
        return {}
    finest = source.datasets[0]
    entries = zip(source.letters, source.axes, finest.scale, finest.translation, strict=True)
    return {
        letter: (axis, (s, t)) for letter, axis, s, t in entries if letter not in SPATIAL + CHANNEL
    }


NO_NAME = "/"
"""Name of an image without one, since NGFF wants a name: as ome-zarr-py writes it. The name of the
store would make two outputs of the same job differ."""


def read_facts(image: OmeImage | None, axes: Axes, path: str) -> Facts:
    """What an image tells besides: its name, the step of time, names and colours of channels.

    axes : Axes     of the array
    path : str      of the store; a name that is that of the folder tells nothing
    """
    if image is None:
        return Facts()
    found = image.omero.get("channels")
    channels = [c for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []
    fits = len(channels) == axes.canonical_shape[4]
    names = tuple(str(channel.get("label") or "") for channel in channels)
    colors = tuple(_read_color(channel.get("color")) for channel in channels)
    return Facts(
        "" if image.name in (NO_NAME, store_stem(path)) else image.name,
        _time_step(image),
        names if fits and any(names) else (),
        colors if fits and any(colors) else (),
        dropped=entries_of("the attributes", [plain_text(name) for name in image.others]),
    )


def store_stem(path: str) -> str:
    """The name of a store without its folder and suffixes.

    >>> store_stem("x/a.ome.zarr/"), store_stem("s3://b/c.zarr"), store_stem("a.nii.zarr/1")
    ('a', 'c', 'a')
    """
    parts = path.replace("\\", "/").rstrip("/").split("/")
    ends = (".ome.zarr.zip", ".zarr.zip", ".ozx", ".ome.zarr", ".nii.zarr", ".zarr")
    for part in parts:
        end = next((end for end in ends if part.lower().endswith(end)), "")
        if end:
            return part[: len(part) - len(end)]
    return parts[-1]


def _time_step(image: OmeImage) -> tuple[float, str] | None:
    """The step along the time axis and its unit, "" without one; None without a step."""
    kinds = axis_kinds(image.axes)
    for kind, axis, step in zip(kinds, image.axes, image.datasets[0].scale, strict=True):
        if kind == "time" and 0 < step < math.inf and (axis.unit or step != 1):
            return step, time_unit(axis.unit) or axis.unit
    return None


def _read_color(text: Any) -> str:
    """A colour "RRGGBB", or "" if the text is none.

    >>> _read_color("#00ff00"), _read_color("00FF00FF"), _read_color("green")
    ('00FF00', '00FF00', '')
    """
    digits = str(text or "").strip().removeprefix("#").upper()
    good = len(digits) in (6, 8) and set(digits) <= set("0123456789ABCDEF")
    return digits[:6] if good else ""


def output_channels(source: OmeImage | None, header: VolumeHeader) -> list[dict[str, Any]]:
    """Channels of an output for omero: label and color, and what the source says of the same ones.

    [] if no channel has a name or a colour.
    """
    found = source.omero.get("channels") if source is not None else None
    known = [dict(c) for c in found if isinstance(c, Mapping)] if isinstance(found, list) else []
    count, names, colors = header.shape[4], header.channel_names, header.channel_colors
    told = tuple(str(channel.get("label") or "") for channel in known)
    same = not header.components and (told if any(told) else ()) == header.facts.channel_names
    kept = known if same and len(known) == count else [{} for _ in range(count)]
    if not names and not colors and not any(kept):
        return []
    for channel, name, color in zip(
        kept, names or [""] * count, colors or [""] * count, strict=True
    ):
        channel.update({k: text for k, text in (("label", name), ("color", color)) if text})
    return kept


def _rendering(
    source: OmeImage | None,
    given: Sequence[Mapping[str, Any]],
    windows: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """The omero of an output: its channels, shown from their smallest to their largest value."""
    channels = [dict(channel) for channel in given]
    if not channels:
        return {}
    for channel, (low, high) in zip(channels, windows, strict=True):
        channel.setdefault("color", "FFFFFF")  # 0.4 and 0.5 require a colour and a window
        channel["window"] = {"min": low, "max": high, "start": low, "end": high}
    omero = {} if source is None else source.omero
    kept: dict[str, Any] = {key: omero[key] for key in ("name",) if key in omero}
    kept["channels"] = channels
    rendering = omero.get("rdefs")
    if isinstance(rendering, Mapping) and "model" in rendering:
        kept["rdefs"] = {"model": rendering["model"]}
    return kept


def output_letters(letters: str, channels: int, dtype: np.dtype[Any] | None = None) -> str:
    """The order that NGFF requires: time and other axes, then channels as one axis, then z, y, x.

    >>> output_letters("xyz", 1), output_letters("tzyxs", 3), output_letters("zyx", 4)
    ('zyx', 'tczyx', 'czyx')
    """
    batch = "".join(a for a in letters if a not in SPATIAL + CHANNEL)
    channel = "c" if any(a in CHANNEL for a in letters) or channels > 1 else ""
    return batch + channel + "".join(a for a in SPATIAL if a in letters)


def check_axes(letters: str, path: str) -> None:
    """Check that NGFF can store these axes: time, one of channels or another kind, and space.

    Raises: WriteError.
    """
    others = [a for a in letters if a not in SPATIAL and a != "t"]
    if len(others) > 1 or (len(others) == 1 and "t" in letters and letters.index("t") != 0):
        raise WriteError(
            f"cannot write {path}: OME-Zarr holds time (t), one axis of channels or another kind, "
            f"and space, received {letters}; write .npy, or name the axes with {setting('axes')}"
        )


def finite_window(low: float, high: float) -> tuple[float, float]:
    """A window that JSON can store and viewers accept: finite, and the end above the start.

    It is (low, high); (0, 1) for a channel without finite values; a constant channel gets an end
    above its value.

    >>> finite_window(-2.0, 5.0), finite_window(math.inf, -math.inf), finite_window(7.0, 7.0)
    ((-2.0, 5.0), (0.0, 1.0), (7.0, 8.0))
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        return 0.0, 1.0
    return low, high if low < high else low + max(1.0, abs(low) * 1e-6)
