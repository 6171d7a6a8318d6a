"""The command that makes an output, as it could be typed again: of the options that were given those that shape the result.

How many threads, how much memory, how many volumes and what is told are no part of it, since the result has the same bits
whatever they are.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace

from conv3d_cli.formats.zarr.names import local_folder
from conv3d_cli.pipeline.outputs import OUTPUT_OPTIONS
from conv3d_cli.pipeline.request import Job
from conv3d_cli.settings.config import is_bias_file, is_kernel_file
from conv3d_cli.settings.option import File, Option
from conv3d_cli.settings.options import OPTION, SHAPING, Settings

Rename = Callable[[str], str]


def names_file(option: Option, value: object) -> bool:
    """Whether an option's value is the name of a file.

    >>> names_file(OPTION["kernel"], "psf.tif"), names_file(OPTION["kernel"], "box:size=3")
    (True, False)
    >>> names_file(OPTION["bias"], "1.5"), names_file(OPTION["mask"], "m.nii"), names_file(OPTION["flip"], True)
    (False, True, False)
    """
    if option.file is File.KERNEL:
        return is_kernel_file(value)
    if option.file is File.BIAS:
        return is_bias_file(value)
    return value is not None and option.file in (File.READ, File.WRITTEN)


def named_files(given: Settings) -> dict[str, str]:
    """The files that the options of a recorded command name, by the options.

    >>> named_files(Settings(kernel="box:size=3", mask="m.nii", report="page.html"))
    {'mask': 'm.nii'}
    """
    return {
        name: value
        for name, value in given.given(SHAPING).items()
        if names_file(OPTION[name], value)
    }


def option_words(given: Settings, rename: Rename) -> list[str]:
    """Options as words of a command line; those that do not shape the result are left out.

    rename : callable       what a file is called there

    >>> option_words(Settings(kernel="k/psf.npy", strides=[2, 1, 1], flip=True, threads=2), os.path.basename)
    ['-k', 'psf.npy', '--flip', '--strides', '2,1,1']
    """
    words = []
    for name, value in given.given(SHAPING).items():
        option = OPTION[name]
        flag = option.written
        if option.kind.is_flag:
            if value:
                words.append(flag)
            elif option.kind.name == "switch":
                words.append(flag.replace("--", "--no-", 1))
        elif names_file(option, value):
            file, colons, layer = (
                value.partition("::") if option.file is File.KERNEL else (value, "", "")
            )
            words += [flag, rename(file) + colons + layer]
        else:
            words += [
                flag,
                ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value),
            ]
    return words


def command_line(source: str, given: Settings, rename: Rename, target: str | None = None) -> str:
    """The command, with quotes where a shell needs them.

    >>> command_line("in/a b.nii", Settings(kernel="box:size=3"), os.path.basename, "out/c.nii")
    "conv3d apply 'a b.nii' -k box:size=3 -o c.nii"
    """
    words = ["conv3d", "apply", rename(source), *option_words(given, rename)]
    return shlex.join([*words, "-o", rename(target)] if target is not None else words)


def relative_to(folder: str) -> Rename:
    """What files are called in a folder: relative to it, with "/", through no link to a folder; absolute where there is no way.

    >>> relative_to("/data/out")("/data/in/a.nii"), relative_to("/data/out")("/data/out/-a.nii")
    ('../in/a.nii', './-a.nii')
    """
    here = os.path.realpath(folder or ".")

    def rename(path: str) -> str:
        parent, name = os.path.split(local_folder(path) or path)
        # a link that is a file keeps its name: what it leads to may be called after its contents
        whole = os.path.join(os.path.realpath(parent or "."), name)
        try:
            found = os.path.relpath(whole, here).replace(os.sep, "/")
        except ValueError:  # another drive
            return whole
        return f"./{found}" if found.startswith("-") else found

    return rename


def history_line(source: str, given: Settings, version: str) -> str:
    """Version, kernel and command in a line, which goes into the output itself: with bare names and without the output's, so
    that it is the same wherever they lie.

    >>> history_line("raw/head.nii.gz", Settings(kernel="gaussian:fwhm=6mm", overwrite=True), "1.0")
    'conv3d 1.0 gaussian:fwhm=6mm: conv3d apply head.nii.gz -k gaussian:fwhm=6mm'
    """
    given = given.without("history", *OUTPUT_OPTIONS)
    drawn = "drawn" if given.to_fwhm is None else f"to-fwhm {given.to_fwhm}"
    kernel = given.kernel or given.config or drawn
    step = bare_name(kernel) if isinstance(kernel, str) and is_kernel_file(kernel) else kernel
    return f"conv3d {version} {step}: {command_line(source, given, bare_name)}"


def bare_name(path: str) -> str:
    """A file's name without its folder."""
    return os.path.basename(path.rstrip("/"))


def with_history(job: Job, given: Settings) -> Job:
    """A job whose output tells how it was made; see `history_line`."""
    from importlib.metadata import version

    return replace(job, history=history_line(job.source, given, version("conv3d")))
