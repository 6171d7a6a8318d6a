"""Calls of the C library that fail in turn, for one command: `failing_calls(...)` tries them all.

`failing_calls.c` is compiled with `cc` and preloaded, so the calls of NumPy, zlib and HDF5 fail as
those of Python do. As a program, this file loads everything once, and then runs the command in a
fork for each call that is to fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
KINDS = (
    "open", "read", "write", "sync", "rename", "unlink", "mkdir", "map", "extend", "stat", "list",
    "memory", "thread", "access",
)  # fmt: skip
SHORT = "short"  # half of the bytes are read or written
# What each kind of call fails with; "+" goes on to fail from then on, as on a disk that stays full.
ERRORS = {
    "open": ["EIO", "EACCES", "EINTR", "EMFILE", "EMFILE+"],
    "read": ["EIO", "EINTR", SHORT],
    "write": ["ENOSPC", "ENOSPC+", "EIO", "EDQUOT", "EINTR", SHORT],
    "sync": ["EIO", "ENOSPC"],
    "rename": ["EIO", "EACCES", "ENOSPC"],
    "unlink": ["EIO", "EACCES"],
    "mkdir": ["ENOSPC", "EACCES"],
    "map": ["ENOMEM", "ENOMEM+"],
    "extend": ["ENOSPC", "EIO", "EINTR"],
    "stat": ["EIO", "EACCES"],
    "list": ["EIO", "EACCES"],
    "memory": ["ENOMEM", "ENOMEM+"],
    "thread": ["EAGAIN", "EAGAIN+"],
    "access": ["EPERM"],
}
HARMLESS = ("EINTR", SHORT)  # whoever makes the call, makes it again
# Calls without which libraries end the process, by its signal: LLVM ends it, and Blosc and HDF5
# write to memory that they did not get. What is left then is removed by the next run.
CRASHES = {signal.SIGABRT: ["aligned_alloc"], signal.SIGSEGV: ["posix_memalign"]}
# A page tells of outputs that failed, too, and a log of those that are not done.
APART = ("r.html", ".conv3d-resume.jsonl")
REPLACING = ["--overwrite"]
SECONDS = 60  # after which a run counts as one that hangs


@dataclass
class Tried:
    """One run in which a call failed.

    kind, error, number : str, str, int     which call of which kind failed, and how
    call : str                              its name, and the file; "" if there was none
    code : int                              the exit code; negative for a signal
    text : str                              standard error
    files : dict                            "old", "whole", "other" or "none", by file
    left : list of str                      hidden files, and those in $TMPDIR
    cleaned : bool                          the next run removed them
    """

    kind: str
    error: str
    number: int
    call: str
    code: int
    text: str
    files: dict[str, str]
    left: list[str] = field(default_factory=list)
    cleaned: bool = True

    def fault(self) -> str:
        """What is wrong about this run; "" if nothing is."""
        states = {state for name, state in self.files.items() if name not in APART}
        lines = [line for line in self.text.splitlines() if not line.startswith("note: ")]
        if not self.cleaned:
            return "the next run leaves it, too"
        if self.code < 0 and self.call.split()[0] in CRASHES.get(-self.code, ()):
            return "" if states - {"old", "none"} in (set(), {"whole"}) else "half"
        if self.code < 0:
            return "hangs" if self.code == -signal.SIGALRM else f"signal {-self.code}"
        if "Traceback" in self.text or "Exception ignored" in self.text:
            return "traceback"
        if self.code == 0:
            if lines:
                return "text without an error"
            # a library without its version goes into no record
            if states - {"whole"} and "dist-info" not in self.call:
                return "files are missing"
        else:
            if self.error in HARMLESS:
                return "nothing failed for good"
            if self.code not in codes(self.kind):
                return f"code {self.code}"
            if len(lines) != 1 or not lines[0].startswith("Error: "):
                return "not one line"
            if re.search(r"\[Errno|Error\(|\bNone\b", lines[0].partition("Error: ")[2]):
                return "words of a program"
            if states - {"old", "none"} and states != {"whole"}:
                return "half"
            if states == {"whole"} and self.kind != "stat" and " is written" not in lines[0]:
                return "the output is not told of"
        # removing a folder takes an open file and memory
        lasting = self.error.endswith("+") and self.kind in ("open", "memory")
        if self.left and self.kind not in ("unlink", "list") and not lasting:
            return "left behind"
        return ""

    def __str__(self) -> str:
        where = f"{self.kind} {self.number} {self.error} ({self.call})"
        return f"{where}: {self.fault()}: code {self.code}, {self.files}, {self.left}\n{self.text}"


def codes(kind: str) -> tuple[int, ...]:
    """Exit codes that tell of a call of a kind that failed."""
    return {
        "open": (1, 3),
        "read": (1, 3),
        "stat": (1, 3, 5),
        "list": (1, 3),
        "map": (1, 3, 6),
        "memory": (6,),
        "thread": (1,),
        "access": (1, 3),
    }.get(kind, (1,))


def build(folder: Path) -> Path | None:
    """Compile the calls that fail; None without a compiler or where they cannot be preloaded."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "failing_calls.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-w",
        "-o",
        library,
        SOURCE,
        "-ldl",
        "-lpthread",
    ]
    if not library.exists() and subprocess.run(command, check=False).returncode:
        return None
    return library


def failing_calls(
    library: Path,
    before: Path,
    command: list[str],
    errors: dict[str, list[str]] = ERRORS,
    most: int | None = None,
    cold: bool = False,
) -> list[Tried]:
    """Run a command of conv3d once for each call that fails.

    before : Path           a folder with all that the command needs; it runs in copies of it
    errors : dict           what fails, and how
    most : int or None      how many calls of each kind to try at most, spread over all
    cold : bool             the machine code is not loaded yet
    """
    case: dict[str, Any] = {
        "before": str(before),
        "folder": str(before.with_name("work")),
        "rows": str(before.with_name("rows.json")),
        "command": command,
        "errors": errors,
        "most": most,
        "cold": cold,
    }
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONWARNINGS": "error"}
    environment["TMPDIR"] = str(before.with_name("tmp"))
    (before.with_name("tmp")).mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(case)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=before,
    )
    assert done.returncode == 0, done.stderr
    return [Tried(**row) for row in json.loads(Path(case["rows"]).read_text())]


# --------------------------------------------------------------------------------------------------
# In a process of its own


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files in a folder, by name."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            found[os.path.relpath(path, folder)] = hashlib.sha256(
                Path(path).read_bytes()
            ).hexdigest()
    return found


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts) and "resume" not in name


def try_all(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each run as a dictionary for `Tried`."""
    import ctypes
    import errno

    from conv3d_cli.cli import main
    from conv3d_cli.system import leftovers

    leftovers.LISTING_SECONDS = 0
    calls = ctypes.CDLL(None)
    work, temporary = Path(case["folder"]), Path(os.environ["TMPDIR"])
    os.environ.pop("LD_PRELOAD")

    def fresh() -> None:
        os.chdir("/")
        for folder in (work, temporary):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(case["before"], work)
        temporary.mkdir()

    def run(arguments: list[str]) -> int:
        os.chdir(work)
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def forked(arguments: list[str], *arm: int) -> tuple[int, str, str, list[int]]:
        """Exit code, standard error, the call that failed, and the number of calls by kind."""
        errors = os.memfd_create("errors")
        reading, telling = os.pipe()
        counting, counted = os.pipe()
        process = os.fork()
        if process == 0:
            code = 99
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(SECONDS)
                os.dup2(errors, 2)
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the process ends by _exit
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                calls.faults_arm(*arm, telling)
                try:
                    code = run(arguments)
                finally:
                    calls.faults_disarm()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                calls.faults_disarm()
                sys.stderr.flush()
                numbers = [calls.faults_count(kind) for kind in range(len(KINDS))]
                os.write(counted, json.dumps(numbers).encode())
                os._exit(code)
        os.close(telling)
        os.close(counted)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        told, numbers = os.read(reading, 9999), os.read(counting, 9999)
        text = os.pread(errors, 1 << 20, 0).decode(errors="replace")
        for descriptor in (errors, reading, counting):
            os.close(descriptor)
        return code, text, told.decode(errors="replace").strip(), json.loads(numbers or b"[]")

    command = case["command"]
    fresh()
    old = contents(work)
    # here, so that the forks need not import
    assert run([*command, "--dry-run"] if case["cold"] else command) == 0

    def tried(*arm: int) -> tuple[int, str, str, list[int]]:
        """As `forked`, in a fresh folder. What hangs by another thread's lock at the fork does not
        hang again."""
        for _ in range(2):
            fresh()
            found = forked(command, *arm)
            if found[0] != -signal.SIGALRM:
                break
        return found

    code, text, _, numbers = tried(-1, 0, 0, 0)
    assert code == 0, (code, text)
    whole = contents(work)
    same = {name for name in whole if whole[name] == old.get(name)}
    tried(-1, 0, 0, 0)
    second = contents(work)
    # pages and logs have times in them
    timed = {name for name in whole if whole[name] != second.get(name)}
    for kind, errors in case["errors"].items():
        total = numbers[KINDS.index(kind)]
        chosen = range(1, total + 1)
        if case["most"] is not None and total > case["most"]:
            chosen = sorted(
                {round(1 + i * (total - 1) / (case["most"] - 1)) for i in range(case["most"])}
            )
        for error in errors:
            number = -1 if error == SHORT else getattr(errno, error.rstrip("+"))
            for nth in chosen:
                arm = (KINDS.index(kind), nth, number, int(error.endswith("+")))
                code, text, call, _ = tried(*arm)
                after = contents(work)
                files = {
                    name: "none"
                    if name not in after
                    else "old"
                    if after[name] == old.get(name)
                    else "whole"
                    if after[name] == whole.get(name) or name in timed
                    else "other"
                    for name in {*whole, *after} - same
                    if not is_hidden(name)
                }
                left = [name for name in after if is_hidden(name)]
                hidden = list(left)
                left += [f"$TMPDIR/{name}" for name in contents(temporary)]
                if hidden:
                    forked([*command, *REPLACING], -1, 0, 0, 0)
                    hidden = [name for name in contents(work) if is_hidden(name)]
                yield {
                    "kind": kind,
                    "error": error,
                    "number": nth,
                    "call": call,
                    "code": code,
                    "text": text,
                    "files": files,
                    "left": left,
                    "cleaned": not hidden,
                }


if __name__ == "__main__":
    what = json.loads(sys.argv[1])
    Path(what["rows"]).write_text(json.dumps(list(try_all(what))))
