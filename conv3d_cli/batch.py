"""Many inputs: the name of each output, and clashes found before any work starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from conv3d_cli.atomic import suffix_of
from conv3d_cli.errors import OutputExistsError, SpecError


def plan_outputs(
    inputs: Sequence[str], out_dir: str | None = None, suffix: str = "", prefix: str = "", overwrite: bool = False
) -> list[str]:
    """The output of each input: its name with prefix and suffix, in `out_dir` or beside it.

    Raises: SpecError if two inputs would write the same file, or if prefix or suffix hold a folder; OutputExistsError if
    an output is an input (under `overwrite` only if it is another one's).
    >>> plan_outputs(["a/sub-01.nii.gz", "b/x.ome.tif"], "out", suffix="_sm")
    ['out/sub-01_sm.nii.gz', 'out/x_sm.ome.tif']
    """
    for option, text in (("--suffix", suffix), ("--prefix", prefix)):
        if os.sep in text or "\0" in text:
            raise SpecError(f"{option} is a part of a file's name, received {text!r}; name a folder with --out-dir")
    outputs: dict[str, str] = {}
    sources = {os.path.realpath(name): name for name in inputs}
    result = []
    for name in inputs:
        ending = suffix_of(name)
        file = Path(name).name
        stem = file[: len(file) - len(ending)]
        folder = Path(out_dir) if out_dir is not None else Path(name).parent
        target = str(folder / f"{prefix}{stem}{suffix}{file[len(stem) :]}")
        real = os.path.realpath(target)
        if real in outputs:
            raise SpecError(
                f"two inputs would write {target}: {outputs[real]} and {name}; "
                "use different folders (--out-dir) or run them apart"
            )
        own = os.path.realpath(name) == real
        if real in sources and not (own and overwrite):
            # --overwrite lets a volume replace itself; another's input may not have been read yet
            cure = "or --overwrite" if own else "or run them apart"
            raise OutputExistsError(
                f"the output of {name} would replace the input {sources[real]}; pass --suffix, --prefix, another --out-dir, "
                f"{cure}"
            )
        outputs[real] = name
        result.append(target)
    return result
