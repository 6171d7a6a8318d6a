"""Rules for make and ninja that list the files each output was made from.

Each output gets a rule, `output: input kernel config ...`. Each file read also gets an empty rule,
so that make does not stop if the file has been removed since (`gcc -MP` does the same). Names are
written as they were given, and escaped as gcc escapes them; make and ninja both read that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from conv3d_cli.errors import OutputExistsError, SpecError
from conv3d_cli.formats import readable_files
from conv3d_cli.pipeline.files import files_besides, input_files, output_files, settings_files
from conv3d_cli.pipeline.outputs import VOLUME
from conv3d_cli.pipeline.request import Job
from conv3d_cli.system.atomic import check_target, output_file, takes_many, write_errors
from conv3d_cli.system.faults import reading
from conv3d_cli.system.inputs import walk
from conv3d_cli.system.portable import true_path

COLUMNS = 120


def escape(name: str) -> str:
    r"""A file name, escaped for make and ninja.

    Spaces, # and : get a backslash, as does each backslash before a space; $ is doubled.

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
    """Every file that a finished job's output depends on, each once; all files of a Zarr store.

    Raises: FormatError if a file cannot be found.
    """
    read = [path for paths in input_files(job).values() for path in paths]
    files: list[str] = []
    for path in [*read, *settings_files(job)]:
        files += _files_in(path) if os.path.isdir(path) else [path]
    return list(dict.fromkeys(files))


def _files_in(folder: str) -> list[str]:
    found = []
    with reading(folder):
        for where, names in walk(folder, follow_links=True):
            found += [os.path.join(where, name) for name in names]
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
    # a target with % would be a pattern rule of make
    return text + "".join(
        f"\n{escape(name)}:\n" for name in phony if name not in made and "%" not in name
    )


def check_depfile(path: str, jobs: Sequence[Job]) -> None:
    """Refuse a depfile that make could not use, before any work.

    Raises: SpecError for names that no rule can hold; OutputExistsError if the depfile is an input,
    an output or another file that a job reads; WriteError.
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
                    f"--depfile needs names of files, and the {role} {name} is {what}; "
                    "leave out --depfile"
                )
        read = readable_files(job.source)
        for name in (*read, *(path for _, path in outputs)):
            if any(character in name for character in "\t\r\n\\") or (
                "%" in name and name not in read
            ):
                raise SpecError(f"--depfile: a make rule cannot hold the name {name!r}; rename it")
    used: list[str] = []
    for job in jobs:
        besides = (name for _, name in files_besides(job))
        used += [job.source, *readable_files(job.source), *besides, *output_files(job)]
    if true_path(path) in map(true_path, used) and not takes_many(path):
        raise OutputExistsError(
            f"cannot write {path}: it is an input or an output, or a job reads it; "
            "name another file"
        )
    check_target(path, overwrite=True)


def write_depfile(path: str, jobs: Sequence[Job]) -> None:
    """Write the rules of finished jobs, atomically. Raises: WriteError, FormatError."""
    with output_file(path, overwrite=True) as output, write_errors(path):
        output.file.write(os.fsencode(rules(jobs)))
        output.commit()
