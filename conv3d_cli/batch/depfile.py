"""Rules for make and ninja: which files each output was made from.

One rule an output, `output: input kernel config ...`, and for every file read an empty rule, so that make does not stop
where one has been removed since (as `gcc -MP` writes them). Names stand as they were given. They are escaped as gcc does,
which make and ninja both read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.formats import readable_files
from conv3d_cli.pipeline.files import input_files, output_files, settings_files
from conv3d_cli.pipeline.outputs import VOLUME
from conv3d_cli.pipeline.request import Job
from conv3d_cli.system.atomic import check_target, text_output, write_errors

COLUMNS = 120


def escape(name: str) -> str:
    r"""A file's name as make and ninja read it.

    A backslash stands before spaces, # and :, and before each backslash in front of a space; $ is doubled.
    >>> print(escape("my scan #1 $x.nii"))
    my\ scan\ \#1\ $$x.nii
    """
    result = ""
    for character in name:
        if character == " ":
            backslashes = len(result) - len(result.rstrip("\\"))
            result += "\\" * backslashes + "\\ "
        else:
            result += {"#": "\\#", ":": "\\:", "$": "$$"}.get(character, character)
    return result


def prerequisites(job: Job) -> list[str]:
    """Every file that a finished job's output depends on, each once; of a Zarr store every file in it.

    Raises: FormatError if one cannot be found.
    """
    read = [path for paths in input_files(job).values() for path in paths]
    files: list[str] = []
    for path in [*read, *settings_files(job)]:
        files += _files_in(path) if os.path.isdir(path) else [path]
    return list(dict.fromkeys(files))


def _files_in(folder: str) -> list[str]:
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        found += [os.path.join(where, name) for name in sorted(names)]
    return found


def rules(jobs: Sequence[Job]) -> str:
    """The text of a depfile for finished jobs."""
    text, phony = "", dict[str, None]()
    for job in jobs:
        targets = [output.path for output in job.outputs]
        needed = prerequisites(job)
        phony |= dict.fromkeys(needed)
        line = " ".join(map(escape, targets)) + ":"
        for word in map(escape, needed):
            if len(line) + len(word) > COLUMNS:
                text, line = f"{text}{line} \\\n", " "
            line += f" {word}"
        text += f"{line}\n"
    made = {output.path for job in jobs for output in job.outputs}
    # make takes % in the name of a target for a pattern
    return text + "".join(
        f"\n{escape(name)}:\n" for name in phony if name not in made and "%" not in name
    )


def check_depfile(path: str, jobs: Sequence[Job]) -> None:
    """Refuse what make could not use, before any work.

    Raises: SpecError for names that no rule can hold; OutputExistsError if the file is an input or output; WriteError.
    """
    if path == "-" or "://" in path:
        raise SpecError(f"--depfile names a file, received {path}")
    for job in jobs:
        outputs = [
            ("output" if output.role == VOLUME else output.role, output.path)
            for output in job.outputs
        ]
        for role, name in (("input", job.source), *outputs):
            if "://" in name or (name == "-" and role != "input"):
                what = "a URL" if "://" in name else "a pipe"
                raise SpecError(
                    f"--depfile tells make about files, and the {role} {name} is {what}: leave it out"
                )
        read = readable_files(job.source)
        for name in (*read, *(path for _, path in outputs)):
            if any(character in name for character in "\t\r\n\\") or (
                "%" in name and name not in read
            ):
                raise SpecError(f"--depfile: make has no way to write the name {name!r}; rename it")
    used = [
        name
        for job in jobs
        for name in (job.source, *readable_files(job.source), *output_files(job))
    ]
    if os.path.realpath(path) in map(os.path.realpath, used):
        raise OutputExistsError(
            f"cannot write {path}: it is an input or an output; name another file"
        )
    check_target(path, overwrite=True, send=True)


def write_depfile(path: str, jobs: Sequence[Job]) -> None:
    """Write the rules of finished jobs; the file appears whole. Raises: WriteError, FormatError."""
    with text_output(path, overwrite=True) as output, write_errors(path):
        output.file.write(os.fsencode(rules(jobs)))
        output.commit()
