"""Names the outputs of a batch, and finds clashes before any work starts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.formats import target_suffix
from conv3d_cli.system.atomic import suffix_of, takes_many
from conv3d_cli.system.parts import file_of, split_part
from conv3d_cli.system.portable import slashes, true_path


def output_name(
    name: str,
    out_dir: str | None = None,
    suffix: str = "",
    prefix: str = "",
    below: str = "",
    ending: str = "",
) -> str:
    """The output path for an input: its name with prefix and suffix, in `out_dir` or beside it.

    An input inside a Zarr store gives an output with the store's name, and `FILE::PART` one with
    the names of both. A file whose suffix is only read, such as `.lsm`, gives one with another.

    out_dir : str or None       folder or URL of the outputs; None: the input's folder
    below : str                 subfolder of `out_dir`; "" for none
    ending : str                file suffix of the output; "" for that of the input
    Raises: SpecError if prefix or suffix contain a folder.

    >>> output_name("a/x.ome.zarr/1", "out", suffix="_sm")
    'out/x_sm.ome.zarr'
    >>> output_name("https://host/y.zarr", "out", below="raw")
    'out/raw/y.zarr'
    >>> output_name("a/plate.ome.tif::well A/1", "out")
    'out/plate_well_A_1.ome.tif'
    >>> output_name("a/cells.lsm", "out"), output_name("a/x.nii.gz", "out", ending=".ome.zarr")
    ('out/cells.ome.tif', 'out/x.ome.zarr')
    """
    for option, text in (("--suffix", suffix), ("--prefix", prefix)):
        if "/" in slashes(text) or "\0" in text:
            raise SpecError(
                f"{option} is part of a file name, received {text!r}; name a folder with --out-dir"
            )
    whole = whole_store(name)
    own = suffix_of(whole)
    parent, slash, file = whole.rpartition("/") if "://" in whole else ("", "", Path(whole).name)
    stem = file[: len(file) - len(own)]
    part = re.sub(r"[^\w.+-]+", "_", split_part(name)[1]).strip("_.")
    if os.path.isdir(whole):  # of planes: the pattern chooses among their files
        part = part.removesuffix(suffix_of(part)).strip("_.")
    ending = ending or target_suffix(name) or file[len(stem) :]
    new = f"{prefix}{stem}{'_' + part if part else ''}{suffix}{ending}"
    if out_dir is not None and "://" in out_dir:
        return "/".join(
            [out_dir.rstrip("/"), slashes(below), new] if below else [out_dir.rstrip("/"), new]
        )
    if slash and out_dir is None:
        return f"{parent}/{new}"
    return str((Path(out_dir, below) if out_dir is not None else Path(whole).parent) / new)


def check_outputs(
    inputs: Sequence[str],
    outputs: Sequence[str],
    overwrite: bool = False,
    labels: Sequence[str] | None = None,
    files: Callable[[str], Sequence[str]] = lambda name: (name,),
) -> None:
    """Refuse clashes of names before any work.

    inputs, outputs : sequence of str   paths or URLs, in the same order
    overwrite : bool                    an input may be replaced by its own output
    labels : sequence of str or None    names of the inputs in messages; None: their paths
    files : callable                    (input) -> the files it is read from; called only if outputs
                                        replace files in its folder
    Raises: SpecError if two inputs would write the same file; OutputExistsError if an output is an
    input.
    """
    labels = inputs if labels is None else labels
    sources = {
        identity(whole_store(name)): label for name, label in zip(inputs, labels, strict=True)
    }
    replaced = {
        os.path.dirname(identity(target))
        for target in outputs
        if "://" not in target and os.path.exists(target)
    }
    for name, label in zip(inputs, labels, strict=True):
        folder = os.path.dirname(identity(name))
        if "://" not in name and any(
            os.path.join(other, "").startswith(os.path.join(folder, "")) for other in replaced
        ):
            for file in files(name):
                sources.setdefault(identity(file), label)
    writers: dict[str, str] = {}
    for name, target, label in zip(inputs, outputs, labels, strict=True):
        real = identity(target)
        if real in writers and not takes_many(target):
            raise SpecError(
                f"two inputs would write {target}: {writers[real]} and {label}; "
                "use different folders (--out-dir), or run conv3d for each"
            )
        own = identity(whole_store(name)) == real
        if real in sources and not (own and overwrite):
            # --overwrite lets a volume replace itself; another job may not have read its input yet
            cure = "or --overwrite" if own else "or run conv3d for each"
            raise OutputExistsError(
                f"the output of {label} would replace the input {sources[real]}; "
                f"pass --suffix, --prefix, another --out-dir, {cure}"
            )
        writers[real] = label


def made_before(inputs: Sequence[str], outputs: Sequence[str]) -> set[int]:
    """Positions of inputs that are outputs of other inputs, left in a folder by an earlier run.

    >>> made_before(["a.npy", "a_sm.npy", "b.npy"], ["a_sm.npy", "a_sm_sm.npy", "b_sm.npy"])
    {1}
    >>> made_before(["a.nii", "a.npy"], ["a.npy", "a.npy"])
    {1}
    """
    sources = [identity(whole_store(name)) for name in inputs]
    makers: dict[str, list[int]] = {}
    for number, target in enumerate(outputs):
        makers.setdefault(identity(target), []).append(number)
    return {
        number
        for number, source in enumerate(sources)
        if any(maker != number for maker in makers.get(source, ()))
    }


def whole_store(name: str) -> str:
    """The file or Zarr store that an input names or lies in, without a slash at the end.

    >>> whole_store("a/x.zarr/1"), whole_store("a/b.nii"), whole_store("a/c.tif::1")
    ('a/x.zarr', 'a/b.nii', 'a/c.tif')
    """
    parts = slashes(file_of(name)).rstrip("/").split("/")
    stores = [i for i, part in enumerate(parts) if part.lower().endswith(".zarr")]
    if stores and suffix_of(parts[-1]) == "":
        parts = parts[: stores[-1] + 1]
    elif not stores and "://" not in name and os.path.isdir(name):
        # a store without its suffix; its output gets the suffix
        return "/".join(parts) + ".zarr"
    return "/".join(parts)


def identity(name: str) -> str:
    """The path of a volume's file, which all its names share; a URL stays as it is."""
    return name if "://" in name else true_path(file_of(name))
