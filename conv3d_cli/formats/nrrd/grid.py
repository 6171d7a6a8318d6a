"""The place of a NRRD volume in the world: space, directions, origin, spacings and units, read and written.

The world of `Grid` is NIfTI's: x to the right, y to the front, z up. Files say which world is theirs; ITK, SimpleITK and
3D Slicer write left-posterior-superior, and take every world for it that does not say right or anterior. So does this module,
so that a volume lies in the same place whichever program converts it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conv3d_cli.formats.nrrd.header import NrrdHeader, number, quoted, vector
from conv3d_cli.model.grid import UNITS, Grid, affine_from_spacing, spacing_of_affine, unit_name

LARGEST = 1e38  # of any number here, so that lengths do not overflow


@dataclass(frozen=True)
class Space:
    """The world of a file.

    name : str              as NRRD writes it; "" without one
    dimension : int         numbers of a vector in it; 0 if the file has none
    flip : 3 numbers        by which they become NIfTI's x, y, z
    anatomical : bool       the axes point into a subject's directions
    """

    name: str
    dimension: int
    flip: tuple[int, int, int] = (-1, -1, 1)
    anatomical: bool = False

    @property
    def time(self) -> bool:
        """Whether a vector has a fourth number, which is time (ITK writes series in such a space, without a name)."""
        return self.dimension == 4


class Sampling(NamedTuple):
    """Where the voxels along an axis lie, for axes that have no direction: step and first position (NaN: unknown), unit."""

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
    """The world that a file names. Raises: FormatError for one that NRRD does not have."""
    name = header.fields.get("space", "")
    if not name:
        return Space("", header.whole("space dimension", 0))
    found = SPACES.get(name.lower())
    if found is None:
        raise header.error(f"its space '{name[:60]}' is none of NRRD's, such as {', '.join(_BODY)}")
    return found


def read_directions(header: NrrdHeader, space: Space) -> list[list[float] | None] | None:
    """The step in the world along each axis, None for one that is not space; None without the field.

    Raises: FormatError.
    """
    if header.fields.get("space directions") and not space.dimension:
        raise header.error(
            "it has 'space directions' and no 'space' or 'space dimension' that they lie in"
        )
    found = header.vectors("space directions", space.dimension)
    if found is None:
        return None
    # some programs write vectors of NaN for "none"
    return [
        None if step is None or all(math.isnan(part) for part in step) else step for step in found
    ]


def read_grid(header: NrrdHeader, places: Mapping[str, int]) -> tuple[Grid, list[str]]:
    """The grid of a file, and notes on what it says in vain.

    places : dict       the position, in NRRD's order, of the axes that are z, y, x
    Lengths are in the file's unit, mm if it names none, as ITK and 3D Slicer take it.
    Raises: FormatError for directions or spacings without meaning.
    """
    space = read_space(header)
    directions = read_directions(header, space)
    if directions is not None:
        return _oriented(header, space, directions, places)
    return _spaced(header, places)


def _oriented(
    header: NrrdHeader,
    space: Space,
    directions: Sequence[Sequence[float] | None],
    places: Mapping[str, int],
) -> tuple[Grid, list[str]]:
    if space.dimension not in (2, 3) and not space.time:
        return Grid(), [
            f"its space has {space.dimension} dimensions: voxel sizes and places are left out"
        ]
    steps = [directions[place] for place in places.values()]
    if any(step is None or any(step[3:]) for step in steps):
        return Grid(), [
            "some axis of space has no direction in space: voxel sizes and places are left out"
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
        raise header.error("three axes of space cannot lie in a space of two dimensions")
    origin = (header.vectors("space origin", space.dimension, 1) or [None])[0]
    if origin is not None and not all(math.isnan(part) for part in origin):
        affine[:size, 3] = origin[:size]
    affine[:3] *= np.array(space.flip, float)[:, None]
    affine += 0.0
    if not (np.abs(affine) <= LARGEST).all() or min(spacing_of_affine(affine)) == 0:
        raise header.error(
            f"its directions have no meaning: {header.fields['space directions'][:100]}, origin "
            f"{header.fields.get('space origin', 'none')[:60]}"
        )
    unit, factors, notes = _units(header.texts("space units", space.dimension), range(size))
    affine[:3] *= np.array([*factors, 1.0][:3])[:, None]
    return Grid(spacing_of_affine(affine), unit, affine, anatomical=space.anatomical), notes


def _normal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A vector of length 1 that is orthogonal to two: the step to the next plane where a file has one."""
    normal = np.cross(one, other)
    length = float(np.linalg.norm(normal))
    return normal / length if math.isfinite(length) and length > 0 else np.array([0.0, 0.0, 1.0])


def _spaced(header: NrrdHeader, places: Mapping[str, int]) -> tuple[Grid, list[str]]:
    """The grid of a file without directions: spacings, or the positions of the first and the last voxel."""
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
        # a minimum is the edge of the first voxel, unless voxels are points
        firsts[letter] = 0.0 if math.isnan(low) else low if node else low + step / 2
    along = [places[a] for a in "xyz" if a in places]
    unit, factors, notes = _units(header.texts("units"), along)
    for letter, factor in zip((a for a in "xyz" if a in places), factors, strict=True):
        steps[letter], firsts[letter] = steps[letter] * factor, firsts[letter] * factor
    d, h, w = (steps[a] for a in "zyx")
    affine = affine_from_spacing((d, h, w), (firsts["z"], firsts["y"], firsts["x"]))
    return Grid((abs(d), abs(h), abs(w)), unit, affine), notes


def _units(
    texts: Sequence[str] | None, chosen: Sequence[int]
) -> tuple[str | None, list[float], list[str]]:
    """The unit of the chosen entries, the factors that bring each to the first one's, and a note where it is none of ours."""
    named = [] if texts is None else [texts[i] for i in chosen]
    if not any(named):
        return "mm", [1.0] * len(chosen), []
    units = [unit_name(text) for text in named]
    first = units[0]
    if first is None or None in units:
        odd = next(text for text, unit in zip(named, units, strict=True) if unit is None)
        return (
            None,
            [1.0] * len(chosen),
            [f"its unit '{odd[:30]}' is no unit of length: voxel sizes have none"],
        )
    return (
        first,
        [1.0 if u == first else UNITS[u] / UNITS[first] for u in units if u is not None],
        [],
    )


# --------------------------------------------------------------------------------------------------
# Writing


def grid_fields(
    grid: Grid,
    letters: str,
    space: Space | None,
    others: Mapping[str, Sampling],
    nodes: Container[str],
) -> dict[str, str]:
    """The fields that say where voxels lie.

    letters : str           of the axes, the fastest first
    space : Space or None   of the file the volume comes from; None: a subject's is left-posterior-superior, as ITK has it
    others : dict           what is known of axes that are not space
    nodes : letters         of axes whose voxels are points, not cells
    """
    fields: dict[str, str] = {}
    samplings = {a: known for a, known in others.items() if a in letters}
    if grid.affine is not None and not _is_aligned(grid, space):
        if space is None or not space.dimension or space.anatomical != grid.anatomical:
            space = SPACES["lps" if grid.anatomical else "3dr"]
        matrix = np.array(space.flip, float)[:, None] * grid.affine[:3]
        columns, origin, units = (
            dict(zip("xyz", matrix.T.tolist(), strict=False)),
            matrix[:, 3].tolist(),
            [grid.unit] * 3,
        )
        timed = "t" in letters  # in a space of three dimensions ITK reads no series
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
    """Whether spacings and positions along the axes say all that is known: of volumes in nobody's world, as microscopes make."""
    if grid.affine is None or grid.anatomical or (space is not None and space.dimension):
        return False
    return np.array_equal(grid.affine[:3, :3], np.diag(np.diag(grid.affine)[:3]))
