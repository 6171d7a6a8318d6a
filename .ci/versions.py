"""Run the tests on every Python found, at the lowest and at the newest versions of all libraries.

    python .ci/versions.py                  all of them
    python .ci/versions.py 3.12 lowest      one of them
    python .ci/versions.py --print          print the lowest versions, of all extras

The lowest versions are the bounds in pyproject.toml, exactly; the newest are what pip finds. An
environment is made for each in .venv-versions and kept for the next time. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
BOUNDS = ("lowest", "newest")


def main() -> None:
    """Run the tests for the versions that the arguments name."""
    if sys.argv[1:] == ["--print"]:
        print("\n".join(lowest(sys.executable, *PROJECT["optional-dependencies"])))
        return
    chosen = [word for word in sys.argv[1:] if word in PYTHONS]
    bounds = [word for word in sys.argv[1:] if word in BOUNDS] or BOUNDS
    if unknown := set(sys.argv[1:]) - {*PYTHONS, *BOUNDS}:
        sys.exit(
            f"expected {', '.join((*PYTHONS, *BOUNDS))}, received {', '.join(sorted(unknown))}"
        )
    results = {}
    for version in chosen or PYTHONS:
        python = find_python(version)
        for bound in bounds if python else ():
            results[version, bound] = run_tests(python, version, bound)
        if python is None:
            print(f"Python {version} is not installed", flush=True)
    for (version, bound), result in results.items():
        print(f"Python {version}, {bound} versions: {result}")
    if not results or any(result != "passed" for result in results.values()):
        sys.exit(1)


def find_python(version: str) -> str | None:
    """The path of a Python, on the PATH or among those of pyenv; None if there is none."""
    found = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found += map(str, sorted(pyenv.glob(f"{version}.*/bin/python{version}")))
    for path in found:
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def run_tests(python: str, version: str, bound: str) -> str:
    """Run the fast tests in an environment of these versions. Returns how it ended, in words."""
    folder = ROOT / ".venv-versions" / f"{version}-{bound}"
    own = str(folder / "bin" / "python")
    print(f"== Python {version}, {bound} versions", flush=True)
    if not folder.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [own, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip", "packaging"], check=True)
    wanted = ["--upgrade", "--upgrade-strategy", "eager"] if bound == "newest" else []
    if bound == "lowest":
        constraints = folder / "lowest.txt"
        constraints.write_text("".join(f"{line}\n" for line in lowest(own)), encoding="utf-8")
        wanted = ["--constraint", str(constraints)]
    installed = subprocess.run([*pip, *wanted, "--editable", f"{ROOT}[dev]"])
    if installed.returncode:
        return "the libraries cannot be installed"
    command = [
        own,
        "-m",
        "pytest",
        "-q",
        "-n",
        "auto",
        "--dist",
        "worksteal",
        "-p",
        "no:cacheprovider",
    ]
    return "failed" if subprocess.run(command, cwd=ROOT).returncode else "passed"


def lowest(python: str, *extras: str) -> list[str]:
    """A line `name==bound` for each requirement with a lower bound that holds for a Python."""
    requirements = list(PROJECT["dependencies"])
    for extra in extras or ("dev",):
        requirements += PROJECT["optional-dependencies"][extra]
    pinned = []
    for text in requirements:
        requirement, _, marker = text.partition(";")
        found = re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\w.]+)", requirement)
        if found and (not marker or holds(python, marker.strip())):
            pinned.append(f"{found[1]}=={found[2]}")
    return sorted(set(pinned))


def holds(python: str, marker: str) -> bool:
    """Whether an environment marker holds for a Python."""
    check = (
        "import sys; from packaging.markers import Marker; "
        "sys.exit(not Marker(sys.argv[1]).evaluate())"
    )
    return subprocess.run([python, "-c", check, marker]).returncode == 0


if __name__ == "__main__":
    main()
