"""The command that made an output, to be typed again: only the options that affect the result.

Options for threads, memory, number of volumes and messages are left out: the result has the same
bits whatever they are.
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
from conv3d_cli.system.parts import split_part, with_part
from conv3d_cli.system.words import plain_text

Rename = Callable[[str], str]


def names_file(option: Option, value: object) -> bool:
    """True if the value of an option is the name of a file.

    >>> names_file(OPTION["kernel"], "psf.tif"), names_file(OPTION["kernel"], "box:size=3")
    (True, False)
    >>> names_file(OPTION["bias"], "1.5"), names_file(OPTION["mask"], "m.nii")
    (False, True)
    """
    if option.file is File.KERNEL:
        return is_kernel_file(value)
    if option.file is File.BIAS:
        return is_bias_file(value)
    return value is not None and option.file in (File.READ, File.MASK, File.WRITTEN)


def named_files(given: Settings) -> dict[str, str]:
    """The files that the options of a recorded command name, by option.

    >>> named_files(Settings(kernel="box:size=3", mask="m.nii", report="page.html"))
    {'mask': 'm.nii'}
    """
    return {
        name: value
        for name, value in given.given(SHAPING).items()
        if names_file(OPTION[name], value)
    }


def option_words(given: Settings, rename: Rename) -> list[str]:
    """Options as words of a command line, without those that do not affect the result.

    rename : callable       converts the path of a file to its name in the command

    >>> given = Settings(kernel="k/psf.npy", strides=[2, 1, 1], flip=True, threads=2)
    >>> option_words(given, os.path.basename)
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
            is_kernel = option.file is File.KERNEL
            file, colons, layer = value.partition("::") if is_kernel else (value, "", "")
            words += [flag, rename(file) + colons + layer]
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [flag, ",".join(map(str, values))]
    return words


def command_line(source: str, given: Settings, rename: Rename, target: str | None = None) -> str:
    """The command, quoted for a shell.

    rename : callable       see `option_words`
    target : str or None    the output; None leaves out -o

    >>> command_line("in/a b.nii", Settings(kernel="box:size=3"), os.path.basename, "out/c.nii")
    "conv3d apply 'a b.nii' -k box:size=3 -o c.nii"
    """
    words = ["conv3d", "apply", rename(source), *option_words(given, rename)]
    return shlex.join([*words, "-o", rename(target)] if target is not None else words)


def relative_to(folder: str) -> Rename:
    """A function that converts paths to paths relative to a folder.

    They have "/" and no symbolic links to folders. A file on another drive gets an absolute path.

    >>> relative_to("/data/out")("/data/in/a.nii"), relative_to("/data/out")("/data/out/-a.nii")
    ('../in/a.nii', './-a.nii')
    """
    start = os.path.realpath(folder or ".")

    def rename(path: str) -> str:
        path, part = split_part(path)
        parent, name = os.path.split(local_folder(path) or path)
        # a link to a file keeps its name: the file may be named after a hash of its contents
        absolute = os.path.join(os.path.realpath(parent or "."), name)
        try:
            relative = os.path.relpath(absolute, start).replace(os.sep, "/")
        except ValueError:  # another drive
            return with_part(absolute, part)
        return with_part(f"./{relative}" if relative.startswith("-") else relative, part)

    return rename


def history_line(source: str, given: Settings, version: str) -> str:
    """The line for the history in the output's header: version, kernel and command.

    The command has file names without folders, and does not name the output, so that the line is
    the same wherever the files are. It is one line of text, whatever the names of the files.

    >>> history_line("raw/head.nii.gz", Settings(kernel="gaussian:fwhm=6mm", overwrite=True), "1.0")
    'conv3d 1.0 gaussian:fwhm=6mm: conv3d apply head.nii.gz -k gaussian:fwhm=6mm'
    """
    given = given.without("history", *OUTPUT_OPTIONS)
    drawn = "drawn" if given.to_fwhm is None else f"to-fwhm {given.to_fwhm}"
    kernel = given.named_kernel or given.config or drawn
    step = bare_name(kernel) if isinstance(kernel, str) and is_kernel_file(kernel) else kernel
    return plain_text(f"conv3d {version} {step}: {command_line(source, given, bare_name)}")


def bare_name(path: str) -> str:
    """The name of a file or folder, without the folders above it.

    >>> bare_name("data/a.zarr/"), bare_name("data/b.tif::1")
    ('a.zarr', 'b.tif::1')
    """
    file, part = split_part(path)
    return with_part(os.path.basename(file.rstrip("/")), part)


def with_history(job: Job, given: Settings) -> Job:
    """The job with a line for the history in its output's header; see `history_line`."""
    from importlib.metadata import version

    return replace(job, history=history_line(job.source, given, version("conv3d")))
