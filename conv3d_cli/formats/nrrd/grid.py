"""The grid of a NRRD volume: space, directions, origin, spacings and units, read and written.

The world of `Grid` is NIfTI's: x points to the right, y to the front, z up. A NRRD file names its
own space. ITK, SimpleITK and 3D Slicer write left-posterior-superior, and read every space that
does not say right or anterior as that one. So does this module, so that a volume gets the same
position whichever program converts it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conv3d_cli.formats.nrrd.header import NrrdHeader, number, quoted, vector
from conv3d_cli.model.grid import Grid, affine_from_spacing, spacing_of_affine
from conv3d_cli.model.units import UNITS, known_length

LARGEST = 1e38  # allowed magnitude of numbers, so that lengths do not overflow


@dataclass(frozen=True)
class Space:
    """The space (world) of a file.

    name : str              NRRD's name; "" if the file gives none
    dimension : int         numbers of a vector in it; 0 if the file has no space
    flip : 3 ints           1 or -1: factors from its x, y, z to NIfTI's
    anatomical : bool       True if its axes are directions of a subject's body
    """

    name: str
    dimension: int
    flip: tuple[int, int, int] = (-1, -1, 1)
    anatomical: bool = False

    @property
    def time(self) -> bool:
        """True if vectors have a fourth number, time. ITK writes series so, without a name."""
        return self.dimension == 4


class Sampling(NamedTuple):
    """Positions of the voxels along an axis without a direction.

    step, first : float     distance of voxels, and position of the first voxel, in `unit`; NaN if
                            unknown
    unit : str              as in the file; "" if it gives none
    """

    step: float = math.nan
    first: float = math.nan
    unit: str = ""


UNSAMPLED = Sampling()
_BODY = {
    "right-anterior-superior": ("RAS", (1, 1, 1)),
    "left-anterior-superior": ("LAS", (-1, 1, 1)),
    "left-posterior-superior": ("LPS", (-1, -1, 1)),
}
_ROOM = {"scanner-xyz": "scanner-xyz", "3D-right-handed": "3DR", "3D-left-handed": "3DL"}
SPACES = {
    word.lower(): Space(f"{name}-time" if time else name, 3 + time, flip, anatomical=True)
    for name, (short, flip) in _BODY.items()
    for time in (False, True)
    for word in (f"{name}-time" if time else name, short + "T" * time)
} | {
    word.lower(): Space(f"{name}-time" if time else name, 3 + time)
    for name, short in _ROOM.items()
    for time in (False, True)
    for word in (f"{name}-time" if time else name, short + "T" * time)
}


def read_space(header: NrrdHeader) -> Space:
    """The space that a file names. Raises: FormatError for a name that NRRD does not have."""
    name = header.fields.get("space", "")
    if not name:
        return Space("", header.integer("space dimension", 0))
    found = SPACES.get(name.lower())
    if found is None:
        raise header.error(f"NRRD has no space '{name[:60]}'; it has {', '.join(_BODY)} and others")
    return found


def read_directions(header: NrrdHeader, space: Space) -> list[list[float] | None] | None:
    """The vector from voxel to voxel along each axis, in the file's space.

    None for an axis that is not spatial. Returns None if the field is missing.
    Raises: FormatError.
    """
    if header.fields.get("space directions") and not space.dimension:
        raise header.error(
            "it has 'space directions', but no 'space' or 'space dimension' that they belong to"
        )
    found = header.vectors("space directions", space.dimension)
    if found is None:
        return None
    # some programs write vectors of NaN for "none"
    return [
        None if step is None or all(math.isnan(part) for part in step) else step for step in found
    ]


def read_grid(header: NrrdHeader, places: Mapping[str, int]) -> tuple[Grid, list[str]]:
    """The grid of a file, and notes on fields that are ignored.

    Lengths are in the file's unit, or in mm if it names none, as in ITK and 3D Slicer.

    places : dict       letter (z, y, x) -> position of its axis, in NRRD's order
    Raises: FormatError for impossible directions or spacings.
    """
    space = read_space(header)
    directions = read_directions(header, space)
    if directions is not None:
        return _grid_from_directions(header, space, directions, places)
    return _grid_from_spacings(header, places)


def _grid_from_directions(
    header: NrrdHeader,
    space: Space,
    directions: Sequence[Sequence[float] | None],
    places: Mapping[str, int],
) -> tuple[Grid, list[str]]:
    if space.dimension not in (2, 3) and not space.time:
        return Grid(), [
            f"its space has {space.dimension} dimensions: voxel sizes and positions are left out"
        ]
    steps = [directions[place] for place in places.values()]
    if any(step is None or any(step[3:]) for step in steps):
        return Grid(), [
            "a spatial axis has no direction in space: voxel sizes and positions are left out"
        ]
    size = min(space.dimension, 3)
    affine = np.eye(4)
    for letter, place in places.items():
        step = directions[place]
        assert step is not None
        affine[:size, "xyz".index(letter)] = step[:size]
        affine[size:3, "xyz".index(letter)] = 0
    if "z" not in places:
        affine[:3, 2] = _normal(affine[:3, 0], affine[:3, 1])
    elif size == 2:
        raise header.error("it has three spatial axes, but its space has two dimensions")
    origin = (header.vectors("space origin", space.dimension, 1) or [None])[0]
    if origin is not None and not all(math.isnan(part) for part in origin):
        affine[:size, 3] = origin[:size]
    affine[:3] *= np.array(space.flip, float)[:, None]
    affine += 0.0
    if not (np.abs(affine) <= LARGEST).all() or min(spacing_of_affine(affine)) == 0:
        raise header.error(
            f"its directions have no meaning: {header.fields['space directions'][:100]}, "
            f"origin {header.fields.get('space origin', 'none')[:60]}"
        )
    texts = header.texts("space units", space.dimension)
    unit, factors, notes = _common_unit(texts, range(size))
    affine[:3] *= np.array([*factors, 1.0][:3])[:, None]
    grid = Grid(
        spacing_of_affine(affine),
        unit,
        affine,
        anatomical=space.anatomical,
        assumed=_assumed(texts, range(size), places),
        guesses=tuple(notes),
    )
    return grid, notes


def _normal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The unit vector orthogonal to two: the step between planes, if a file has only one."""
    normal = np.cross(one, other)
    length = float(np.linalg.norm(normal))
    return normal / length if math.isfinite(length) and length > 0 else np.array([0.0, 0.0, 1.0])


def _grid_from_spacings(header: NrrdHeader, places: Mapping[str, int]) -> tuple[Grid, list[str]]:
    """The grid of a file without directions: from spacings, or from axis mins and maxs."""
    spacings, mins = header.numbers("spacings"), header.numbers("axis mins")
    maxs, centers = header.numbers("axis maxs"), header.words("centers")
    steps, firsts = {"z": 1.0}, {"z": 0.0}
    for letter, place in places.items():
        count = header.sizes()[place]
        node = centers is not None and centers[place].lower() == "node"
        low = math.nan if mins is None else mins[place]
        step = math.nan if spacings is None else spacings[place]
        if math.isnan(step) and maxs is not None:
            step = (maxs[place] - low) / max(1, count - 1 if node else count)
        if math.isnan(step):
            return Grid(), []
        if not 0 < abs(step) <= LARGEST or abs(low) > LARGEST:
            raise header.error(
                f"its spacing along {letter} has no meaning: {step:g}, from {low:g} on"
            )
        steps[letter] = step
        # the axis min is the edge of the first voxel; with centers "node", it is its centre
        firsts[letter] = 0.0 if math.isnan(low) else low if node else low + step / 2
    along, texts = [places[a] for a in "xyz" if a in places], header.texts("units")
    unit, factors, notes = _common_unit(texts, along)
    for letter, factor in zip((a for a in "xyz" if a in places), factors, strict=True):
        steps[letter], firsts[letter] = steps[letter] * factor, firsts[letter] * factor
    d, h, w = (steps[a] for a in "zyx")
    affine = affine_from_spacing((d, h, w), (firsts["z"], firsts["y"], firsts["x"]))
    assumed = _assumed(texts, along, places)
    spacing = abs(d), abs(h), abs(w)
    return Grid(spacing, unit, affine, assumed=assumed, guesses=tuple(notes)), notes


def _common_unit(
    texts: Sequence[str] | None, chosen: Sequence[int]
) -> tuple[str | None, list[float], list[str]]:
    """The unit of the first chosen entry, the factor that converts each to it, and notes.

    texts : list or None    a unit for each axis; None if the file names none
    chosen : ints           entries of `texts` to use
    The unit is None, with a note, if one of them is not a length.
    """
    if not _names_units(texts, chosen):
        return "mm", [1.0] * len(chosen), []
    named = [] if texts is None else [texts[i] for i in chosen]
    units = [known_length(text) for text in named]
    first = units[0]
    if first is None or None in units:
        odd = next(text for text, unit in zip(named, units, strict=True) if unit is None)
        return (
            None,
            [1.0] * len(chosen),
            [f"its unit '{odd[:30]}' is not a unit of length: voxel sizes have no unit"],
        )
    own, _ = first
    factors = [
        count if unit == own else count * UNITS[unit] / UNITS[own]
        for unit, count in filter(None, units)
    ]
    return own, factors, []


def _names_units(texts: Sequence[str] | None, chosen: Sequence[int]) -> bool:
    """Whether one of the chosen entries names a unit."""
    return texts is not None and any(texts[i] for i in chosen)


def _assumed(
    texts: Sequence[str] | None, chosen: Sequence[int], places: Mapping[str, int]
) -> frozenset[str]:
    """What the file does not tell, see `Grid.assumed`: the unit, or the distance of planes."""
    missing = {"d"} if "z" not in places else set()
    return frozenset(missing if _names_units(texts, chosen) else missing | {"unit"})


# --------------------------------------------------------------------------------------------------
# Writing


def grid_fields(
    grid: Grid,
    letters: str,
    space: Space | None,
    others: Mapping[str, Sampling],
    nodes: Container[str],
) -> dict[str, str]:
    """The fields that describe a grid: space, directions and origin, or spacings.

    letters : str           of the axes, the fastest first
    space : Space or None   of the file that the volume comes from; None: left-posterior-superior
                            for anatomical grids, as in ITK
    others : dict           letter -> sampling of an axis that is not spatial
    nodes : letters         of axes whose voxels are points (centers "node"), not cells
    """
    fields: dict[str, str] = {}
    samplings = {a: known for a, known in others.items() if a in letters}
    if grid.affine is not None and not _is_aligned(grid, space):
        if space is None or not space.dimension or space.anatomical != grid.anatomical:
            space = SPACES["lps" if grid.anatomical else "3dr"]
        matrix = np.array(space.flip, float)[:, None] * grid.affine[:3]
        columns = dict(zip("xyz", matrix.T.tolist(), strict=False))
        origin, units = matrix[:, 3].tolist(), [grid.unit] * 3
        timed = "t" in letters  # ITK reads no series in a space of three dimensions
        if timed:
            time = samplings.pop("t", UNSAMPLED)
            columns = {a: [*step, 0.0] for a, step in columns.items()}
            columns["t"] = [0.0, 0.0, 0.0, 1.0 if math.isnan(time.step) else time.step]
            origin.append(0.0 if math.isnan(time.first) else time.first)
            units.append(time.unit)
        name = space.name.removesuffix("-time")
        if name:
            fields["space"] = f"{name}-time" if timed else name
        else:
            fields["space dimension"] = str(3 + timed)
        fields["space directions"] = " ".join(vector(columns.get(a)) for a in letters)
        if grid.unit is not None:
            fields["space units"] = quoted(unit or "" for unit in units)
        fields["space origin"] = vector(origin)
    elif grid.spacing is not None:
        steps = grid.spacing[::-1] if grid.affine is None else np.diag(grid.affine)[:3].tolist()
        firsts = (math.nan,) * 3 if grid.affine is None else grid.affine[:3, 3].tolist()
        own = zip("xyz", steps, firsts, strict=True)
        samplings |= {
            a: Sampling(step, first, grid.unit or "") for a, step, first in own if a in letters
        }
    if samplings:
        known = [samplings.get(a, UNSAMPLED) for a in letters]
        fields["spacings"] = " ".join(number(one.step) for one in known)
        if any(one.first and not math.isnan(one.first) for one in known):
            edges = [
                one.first if a in nodes else one.first - one.step / 2
                for a, one in zip(letters, known, strict=True)
            ]
            fields["axis mins"] = " ".join(map(number, edges))
        if any(one.unit for one in known):
            fields["units"] = quoted(one.unit for one in known)
    return fields


def _is_aligned(grid: Grid, space: Space | None) -> bool:
    """True if spacings and positions along the axes are enough to describe the grid.

    That is so for grids without rotation in no named space, such as those of microscopes.
    """
    if grid.affine is None or grid.anatomical or (space is not None and space.dimension):
        return False
    return np.array_equal(grid.affine[:3, :3], np.diag(np.diag(grid.affine)[:3]))
