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

    An input inside a Zarr store gives a store of that store's name.
    Raises: SpecError if two inputs would write the same file, or if prefix or suffix hold a folder; OutputExistsError if
    an output is an input (under `overwrite` only if it is another one's).
    >>> plan_outputs(["a/sub-01.nii.gz", "b/x.ome.tif"], "out", suffix="_sm")
    ['out/sub-01_sm.nii.gz', 'out/x_sm.ome.tif']
    >>> plan_outputs(["a/x.ome.zarr/1", "https://host/y.zarr"], "out", suffix="_sm")
    ['out/x_sm.ome.zarr', 'out/y_sm.zarr']
    """
    for option, text in (("--suffix", suffix), ("--prefix", prefix)):
        if os.sep in text or "\0" in text:
            raise SpecError(f"{option} is a part of a file's name, received {text!r}; name a folder with --out-dir")
    outputs: dict[str, str] = {}
    sources = {_identity(_whole(name)): name for name in inputs}
    result = []
    for name in inputs:
        whole = _whole(name)
        ending = suffix_of(whole)
        parent, slash, file = whole.rpartition("/") if "://" in whole else ("", "", Path(whole).name)
        stem = file[: len(file) - len(ending)]
        new = f"{prefix}{stem}{suffix}{file[len(stem) :]}"
        if out_dir is not None and "://" in out_dir:
            target = f"{out_dir.rstrip('/')}/{new}"
        elif slash and out_dir is None:
            target = f"{parent}/{new}"
        else:
            target = str((Path(out_dir) if out_dir is not None else Path(whole).parent) / new)
        real = _identity(target)
        if real in outputs:
            raise SpecError(
                f"two inputs would write {target}: {outputs[real]} and {name}; "
                "use different folders (--out-dir) or run them apart"
            )
        own = _identity(whole) == real
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


def _whole(name: str) -> str:
    """The file or store that an input names, or names a part of: up to the last .zarr, without a slash at the end."""
    parts = name.rstrip("/").split("/")
    stores = [i for i, part in enumerate(parts) if part.lower().endswith(".zarr")]
    if stores and suffix_of(parts[-1]) == "":
        parts = parts[: stores[-1] + 1]
    elif not stores and "://" not in name and os.path.isdir(name):
        return "/".join(parts) + ".zarr"  # a store under another name; what is made of it is named as a store
    return "/".join(parts)


def _identity(name: str) -> str:
    """A name that is the same for all names of a file; URLs stand for themselves."""
    return name if "://" in name else os.path.realpath(name)
