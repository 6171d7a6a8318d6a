"""DICOM, read only: the images of a series become one volume.

Slices are sorted by their positions along the normal of the planes, and the distance between them
is that of the positions, whatever the tags say. The world of DICOM points to the patient's left and
back, and is turned to right and front. Images of the same place are a series in time, or echoes.

Source: DICOM PS3.3, C.7.6.2 "Image Plane Module" and C.7.6.16 "Multi-frame Functional Groups".
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import library_errors
from conv3d_cli.formats.conventions import missing_note
from conv3d_cli.formats.dicom import FORMAT
from conv3d_cli.formats.dicom.images import DECODERS, Images
from conv3d_cli.formats.dicom.series import (
    AXIS_KEYS,
    CURE,
    PADDING,
    Frame,
    Series,
    find_series,
)
from conv3d_cli.formats.planes import PlaneReader
from conv3d_cli.formats.stored import scaled_by
from conv3d_cli.model.grid import Affine, Grid, affine_from_spacing, spacing_of_affine
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, VolumeReader

SAME_DIRECTION = 1e-3  # difference of cosines
SAME_PLACE = 1e-3  # difference of positions, in voxels of a plane
EVEN = 0.01  # deviation of a slice from its place, in slices
MODALITY_WORDS = {"MONOCHROME1": "the file shows 0 as white; its values are used unchanged"}


def open_dicom(name: str, *, axes: str | None = None, channels_first: bool = False) -> VolumeReader:
    """Open a series: a folder, FOLDER::SERIES, or a file of it.

    axes : str or None      must be the file's own if it is given
    Raises: FormatError.
    """
    series = find_series(name)
    frames = series.frames
    _check_alike(name, frames)
    kind = frames[0].kind
    rows, columns, samples = int(kind[0]), int(kind[1]), int(kind[2] or 1)
    notes = list(series.notes)
    if any(frame.position is None or frame.directions is None for frame in frames):
        letters, ordered, grid = _by_number(name, series, notes)
    else:
        letters, ordered, grid = _by_place(name, frames, notes)
    shape = (*ordered.shape, rows, columns, *([samples] if samples > 1 else []))
    letters += "yx" + ("s" if samples > 1 else "")
    if axes is not None and axes != letters:
        raise FormatError(f"cannot read {name}: DICOM names its axes, {letters}; received {axes}")
    stored = _stored_dtype(name, series)
    _check_syntax(name, series)
    if note := MODALITY_WORDS.get(str(kind[7])):
        notes.append(note)
    if kind[7] == "PALETTE COLOR":
        notes.append("its voxels are indices into a table of colours; used as plain numbers")
    if series.facts.get("lut"):
        notes.append("its values go through a table (Modality LUT): the stored values are used")
    notes += missing_note(series.facts.get("padding"), PADDING)
    header = VolumeHeader(
        Axes(letters, shape),
        stored,
        grid,
        format=FORMAT.name,
        facts=Facts(
            time_step=_time_step(series, ordered, letters),
            provenance=("the tags of patient, study and acquisition",),
        ),
    )
    count = header.shape[0]
    table = ordered.reshape(count, header.shape[1])

    images = Images(name, stored, samples, series.syntaxes, rows * columns)

    def fetch(n: int, depth: int, channel: int) -> Array:
        return images.image(table[n, depth])

    reader: VolumeReader = PlaneReader(
        name,
        header,
        fetch,
        images.held,
        samples > 1,
        images.close,
        stored_as={"series": f"{series.number} {series.title}".strip()},
    )
    reader.notes = tuple(notes)
    if samples > 1:
        return reader
    slopes = np.array([[frame.slope for frame in row] for row in table])
    intercepts = np.array([[frame.intercept for frame in row] for row in table])
    return scaled_by(reader, slopes, intercepts)


# --------------------------------------------------------------------------------------------------
# Order and place


def _check_alike(name: str, frames: list[Frame]) -> None:
    """Raises: FormatError if the images cannot be one volume."""
    first = frames[0].kind
    if "MOSAIC" in (first[8] or ()):
        raise FormatError(
            f"cannot read {name}: each image is a mosaic of slices, as Siemens writes them; {CURE}"
        )
    for frame in frames:
        if frame.kind[:8] != first[:8]:
            if frame.kind[:2] != first[:2]:
                what = f"{first[0]} x {first[1]} and {frame.kind[0]} x {frame.kind[1]} voxels"
            else:
                what = "different types of voxels"
            raise FormatError(
                f"cannot read {name}: its images have {what} ({frame.file}); put those of one "
                f"volume into a folder, or {CURE}"
            )


def _by_place(name: str, frames: list[Frame], notes: list[str]) -> tuple[str, Array, Grid]:
    """Letters, frames with an axis for each letter, and the grid, by positions."""
    first = frames[0]
    if first.directions is None or first.steps is None or min(first.steps) <= 0:
        raise FormatError(f"cannot read {name}: its images have positions and no PixelSpacing")
    directions = np.array(first.directions).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if not np.allclose(lengths, 1, atol=0.01) or abs(directions[0] @ directions[1]) > 0.01:
        raise FormatError(
            f"cannot read {name}: damaged DICOM: the directions of its rows and columns are no "
            f"unit vectors at right angles: {first.directions}"
        )
    for frame in frames:
        same = frame.directions is not None and np.allclose(
            frame.directions, first.directions, atol=SAME_DIRECTION
        )
        if not same or frame.steps is None or not np.allclose(frame.steps, first.steps, rtol=1e-3):
            raise FormatError(
                f"cannot read {name}: its images have different directions or voxel sizes "
                f"({first.file} and {frame.file}); put those of one volume into a folder, or {CURE}"
            )
    normal = np.cross(directions[0], directions[1])
    positions = np.array([frame.position for frame in frames], float)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    cuts = np.flatnonzero(np.diff(along[order]) > SAME_PLACE * min(first.steps)) + 1
    groups = np.split(order, cuts)
    sizes = {len(group) for group in groups}
    if len(sizes) > 1:
        raise FormatError(
            f"cannot read {name}: its {len(groups)} places of slices have {min(sizes)} to "
            f"{max(sizes)} images each: some are missing, or doubled; {CURE}"
        )
    letters, table = _by_keys(name, [[frames[k] for k in group] for group in groups])
    places = np.array([positions[group[0]] for group in groups])
    step = _even_step(name, places, along[[group[0] for group in groups]])
    assumed: frozenset[str] = frozenset()
    guesses: tuple[str, ...] = ()
    if step is None:
        length = first.between
        if length is None:
            length = 1.0
            assumed = frozenset({"d"})
            guesses = ("a single slice tells no thickness: its z spacing is taken as 1 mm",)
            notes += guesses
        step = normal * length
    elif np.linalg.norm(np.cross(step / np.linalg.norm(step), normal)) > SAME_DIRECTION:
        angle = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        notes.append(
            f"its slices are not stacked at right angles (a gantry tilted by {angle:.1f} degrees): "
            "the affine is sheared, and the voxels stay as they are"
        )
    affine = _to_ras(directions, first.steps, step, places[0])
    grid = Grid(
        spacing_of_affine(affine), "mm", affine, None, True, assumed=assumed, guesses=guesses
    )
    return f"{letters}z", table, grid


def _to_ras(directions: Array, steps: tuple[float, ...], step: Array, origin: Array) -> Affine:
    """The affine from (column, row, slice) to right, front, head."""
    affine = np.eye(4)
    affine[:3, 0] = directions[0] * steps[1]  # along a row, to the next column
    affine[:3, 1] = directions[1] * steps[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    affine[:2] *= -1
    return affine + 0.0


def _even_step(name: str, places: Array, along: Array) -> Array | None:
    """The displacement (3,) from slice to slice; None for a single one. Raises: FormatError."""
    if len(places) < 2:
        return None
    step = (places[-1] - places[0]) / (len(places) - 1)
    expected = places[0] + np.arange(len(places))[:, None] * step
    if np.abs(places - expected).max() <= EVEN * np.linalg.norm(step):
        return np.asarray(step)
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    where = int(np.argmax(gaps))
    times = gaps[where] / usual
    if times > 1.5 and abs(times - round(times)) < 0.05:
        raise FormatError(
            f"cannot read {name}: slices are missing: {round(times) - 1} after slice {where + 1} "
            f"of {len(places)}, in a gap of {gaps[where]:.6g} mm where others have {usual:.6g} mm; "
            "find their files"
        )
    raise FormatError(
        f"cannot read {name}: its slices are {gaps.min():.6g} to {gaps.max():.6g} mm apart, and a "
        f"volume has one distance; {CURE}"
    )


def _by_keys(name: str, groups: list[list[Frame]]) -> tuple[str, Array]:
    """Sort the images of each place by what tells them apart: time, echo, diffusion weight.

    Returns the letters of these axes, and frames with an axis for each, and the slices last.
    Raises: FormatError if nothing tells them apart.
    """
    count = len(groups[0])
    if count == 1:
        return "", np.array([group[0] for group in groups], object)
    keys = [key for key in AXIS_KEYS if all(key in f.keys for group in groups for f in group)]
    for number in (1, 2):
        for chosen in combinations(keys, number):
            letters = "".join(AXIS_KEYS[key] for key in chosen)
            if len(set(letters)) < number:
                continue
            lists = [{tuple(f.keys[key] for key in chosen): f for f in group} for group in groups]
            values = [sorted({value[k] for value in lists[0]}) for k in range(number)]
            sizes = tuple(map(len, values))
            whole = int(np.prod(sizes)) == count
            if not whole or any(set(one) != set(lists[0]) or len(one) != count for one in lists):
                continue
            table = np.empty((*sizes, len(groups)), object)
            for index in np.ndindex(*sizes):
                key_values = tuple(values[k][i] for k, i in enumerate(index))
                for place, one in enumerate(lists):
                    table[(*index, place)] = one[key_values]
            return letters, table
    names = " and ".join(dict.fromkeys(frame.file for frame in groups[0][:2]))
    raise FormatError(
        f"cannot read {name}: each place has {count} images, and neither time nor echo tells them "
        f"apart ({names}): slices are doubled, or of several kinds; {CURE}"
    )


def _by_number(name: str, series: Series, notes: list[str]) -> tuple[str, Array, Grid]:
    """Letters, frames and grid of images without positions or directions, by their numbers.

    Raises: FormatError if two images have the same number: their order is unknown then.
    """
    frames = sorted(series.frames, key=lambda frame: frame.order)
    table = np.array(frames, object)
    what = "positions" if any(frame.position is None for frame in frames) else "directions"
    same = next((pair for pair in pairwise(frames) if pair[0].order == pair[1].order), None)
    if same is not None:
        raise FormatError(
            f"cannot read {name}: nothing tells the order of its images: they have no {what}, "
            f"and the same number ({same[0].file} and {same[1].file}); {CURE}"
        )
    if len(frames) > 1 and series.facts.get("cine") and len({frame.file for frame in frames}) == 1:
        return "t", table, _flat_grid(frames[0], notes)
    if len(frames) > 1:
        notes.append(
            f"its images have no {what}: they are stacked by their numbers, and which side is left "
            "is unknown"
        )
    return "z", table, _flat_grid(frames[0], notes)


def _flat_grid(frame: Frame, notes: list[str]) -> Grid:
    """The grid of images without positions: voxel sizes, if they are told."""
    if frame.steps is None or min(frame.steps) <= 0:
        return Grid()
    depth = frame.between
    assumed: frozenset[str] = frozenset()
    guesses: tuple[str, ...] = ()
    if depth is None:
        depth, assumed = frame.steps[0], frozenset({"d"})
        guesses = (f"its images give no z spacing: it is taken as {depth:g} mm",)
        notes += guesses
    spacing = (depth, frame.steps[0], frame.steps[1])
    return Grid(spacing, "mm", affine_from_spacing(spacing), assumed=assumed, guesses=guesses)


def _time_step(series: Series, table: Array, letters: str) -> tuple[float, str] | None:
    """Time between volumes, if the headers tell it."""
    if not letters.startswith("t") or len(table) < 2:
        return None
    resolution = series.facts.get("TemporalResolution") or series.facts.get("FrameTime")
    first, second = (np.atleast_1d(table[k]).reshape(-1)[0] for k in (0, 1))
    for key in ("TriggerTime", "NominalCardiacTriggerDelayTime"):
        if key in first.keys and second.keys[key] > first.keys[key]:
            resolution = second.keys[key] - first.keys[key]
    return (float(resolution), "ms") if resolution and resolution > 0 else None


# --------------------------------------------------------------------------------------------------
# Voxels


def _stored_dtype(name: str, series: Series) -> np.dtype[Any]:
    """The dtype of the voxels that pydicom hands out. Raises: FormatError."""
    bits, signed = series.frames[0].kind[3], series.frames[0].kind[6]
    if bits == 1:
        return np.dtype(np.uint8)
    if bits not in (8, 16, 32, 64):
        raise FormatError(f"cannot read {name}: its voxels have {bits} bits; {CURE}")
    if signed is None:  # float or double pixel data
        return np.dtype(f"f{max(bits // 8, 4)}")
    return np.dtype(f"{'i' if signed else 'u'}{bits // 8}")


def _check_syntax(name: str, series: Series) -> None:
    """Raises: FormatError for a compression that the installed packages do not decode."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    for syntax in sorted(series.syntaxes):
        with library_errors(name, "DICOM"):
            uid = UID(syntax)
            shown = (uid.name if uid.is_transfer_syntax else syntax)[:80]
            cure = f"gdcmconv --raw FILE NEW, or {CURE}"
            try:
                decoder = get_decoder(uid)
            except NotImplementedError:
                raise FormatError(
                    f"cannot read {name}: pydicom does not decode {shown!r}; {cure}"
                ) from None
            if not decoder.is_available:
                raise FormatError(
                    f"cannot read {name}: {shown} needs a decoder: {DECODERS}; or {cure}"
                )
