"""What the formats of microscopes share: errors, one image of many, grids in micrometres."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.formats.stored import LARGEST
from conv3d_cli.formats.tiff.images import Listed, choose
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.system.faults import raise_fault


@contextmanager
def file_errors(path: str, what: str) -> Iterator[None]:
    """Whatever a library raises for a damaged file becomes a FormatError; no warnings, no logs.

    what : str      name of the format
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Conv3DError:
        raise
    except MemoryError as error:  # sizes that libraries believe
        raise FormatError(f"cannot read {path}: damaged {what}, or too large for memory") from error
    except ImportError as error:
        raise FormatError(
            f"cannot read {path}: its compression needs imagecodecs: pip install 'conv3d[tiff]'"
        ) from error
    except Exception as error:
        raise_fault(error, path)
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(f"cannot read {path}: damaged {what}: {text}") from error
    finally:
        logging.disable(before)


def chosen(listed: Sequence[Listed], part: str, path: str) -> tuple[int, list[str]]:
    """The number of the image that a name gives, the first without one, and a note on others.

    Raises: FormatError if there is no such image.
    """
    number = choose(listed, part, path) if part else 0
    if part or len(listed) < 2:
        return number, []
    return number, [
        f"the file holds {len(listed)} images: number 0 is used, shape {listed[0].shape}; "
        f"{path}::1 names another"
    ]


def grid_of(
    spacing: Sequence[float | None], deep: bool, notes: list[str], unit: str = "um"
) -> Grid:
    """The grid of a plain image; empty if its pixels have no known size.

    spacing : (D, H, W)     in `unit`; None, 0 or 1 number that is no length if unknown
    deep : bool             more than one plane; else an unknown D is that of H
    """
    d, h, w = (s if s is not None and 0 < s < LARGEST else None for s in spacing)
    if h is None or w is None:
        return Grid()
    assumed: frozenset[str] = frozenset()
    guesses: tuple[str, ...] = ()
    if d is None:
        d, assumed = h, frozenset({"d"})
        if deep:
            guesses = (f"the file tells no z spacing: it is taken as {d:g} {unit}",)
            notes += guesses
    found = (round_off(d), round_off(h), round_off(w))
    return Grid(found, unit, affine_from_spacing(found), assumed=assumed, guesses=guesses)


def round_off(length: float) -> float:
    """A length without the last digits, which a conversion of units has changed.

    >>> round_off(2.9999999999999996e-07 * 1e6)
    0.3
    """
    return float(f"{length:.12g}")
