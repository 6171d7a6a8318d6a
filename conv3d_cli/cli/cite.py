"""`conv3d --cite`: how to cite this version, as text and as BibTeX."""

from __future__ import annotations

AUTHORS = "The conv3d authors"  # as LICENSE has them, and the year
YEAR = 2026
TITLE = "conv3d: convolution of 3-D volumes from the command line"


def citation() -> str:
    """The citation of this version: a sentence, and an entry for BibTeX.

    >>> print(citation().splitlines()[0])
    The conv3d authors (2026). conv3d: convolution of 3-D volumes from the command line.
    """
    from importlib.metadata import metadata

    about = metadata("conv3d")
    version, licence = about["Version"], about["License-Expression"]
    return f"""\
{AUTHORS} ({YEAR}). {TITLE}.
Version {version}. Software, licence {licence}.

@software{{conv3d,
  author  = {{{{{AUTHORS}}}}},
  title   = {{{TITLE}}},
  version = {{{version}}},
  year    = {{{YEAR}}},
  license = {{{licence}}}
}}"""
