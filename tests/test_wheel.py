"""The wheel: the same bytes from every build, what is in it, and that it runs where it is put.

`make check-wheel` runs all of these; `make test` those that install nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from conv3d_cli.cli import main
from conv3d_cli.cli.description import describe_program
from conv3d_cli.cli.man import man_pages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.skipif(
    find_spec("hatchling") is None, reason="needs hatchling, which builds the wheel"
)


def build(kind: str, source: Path, folder: Path, **environment: str) -> Path:
    """The wheel or sdist of a source tree."""
    kept = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder],
        cwd=source,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        umask=0o077 if environment else 0o022,
    )
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this checkout."""
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def opened(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as file:
        yield file


def text_of(opened: zipfile.ZipFile, ending: str) -> str:
    (name,) = [name for name in opened.namelist() if name.endswith(ending)]
    return opened.read(name).decode()


def test_a_second_build_elsewhere_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    source = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    other = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "COLUMNS": "33"}
    again = build("wheel", unpacked, tmp_path / "wheel", **other)
    assert again.name == wheel.name
    assert (
        hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_files_have_the_date_of_the_last_commit_or_of_the_environment(
    opened: zipfile.ZipFile, tmp_path: Path
) -> None:
    command = ["git", "log", "-1", "--format=%cd", "--date=format-local:%Y %m %d %H %M"]
    environment = {**os.environ, "TZ": "UTC"}
    last = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    expected = tuple(map(int, last.stdout.split()))
    assert {entry.date_time[:5] for entry in opened.infolist()} == {expected}
    given = build("wheel", ROOT, tmp_path / "wheel", SOURCE_DATE_EPOCH="1600000000")
    with zipfile.ZipFile(given) as file:
        assert {entry.date_time for entry in file.infolist()} == {(2020, 9, 13, 12, 26, 40)}
        assert json.loads(text_of(file, ".cdx.json"))["metadata"]["timestamp"].startswith(
            "2020-09-13T12:26:40"
        )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_it_holds_the_package_and_nothing_else(opened: zipfile.ZipFile) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "conv3d_cli"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    about = f"{PROJECT['name']}-{PROJECT['version']}.dist-info/"
    metadata = {
        f"{about}{name}"
        for name in (
            "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
            f"sboms/{PROJECT['name']}.cdx.json",
        )
    }  # fmt: skip
    files = set(opened.namelist())
    pages = {name for name in files if "/share/man/man1/" in name}
    assert files - pages - metadata == set(listed.stdout.splitlines())
    assert metadata <= files
    # the name of the machine, its folders and people are in no file
    for name in files:
        assert str(ROOT).encode() not in opened.read(name)


def test_the_record_names_every_file_with_its_digest(opened: zipfile.ZipFile) -> None:
    assert opened.testzip() is None
    rows = [line.rsplit(",", 2) for line in text_of(opened, "/RECORD").splitlines()]
    assert sorted(name for name, _, _ in rows) == sorted(opened.namelist())
    assert [name for name, digest, _ in rows if not digest] == [rows[-1][0]]  # itself


def test_it_has_the_man_pages_and_both_entry_points(opened: zipfile.ZipFile) -> None:
    version = re.search(r"^Version: (.*)$", text_of(opened, "/METADATA"), re.MULTILINE)
    assert version is not None
    pages = {
        name.rpartition("/")[2]: opened.read(name).decode()
        for name in opened.namelist()
        if "/share/man/man1/" in name
    }
    assert pages == man_pages(describe_program(main, version[1]))
    points = text_of(opened, "/entry_points.txt")
    assert "[console_scripts]\nconv3d = conv3d_cli.__main__:main\n" in points
    assert "[napari.manifest]\nconv3d = conv3d_cli:napari.yaml\n" in points


def test_the_bill_of_materials_names_all_that_is_needed(opened: zipfile.ZipFile) -> None:
    bill = json.loads(text_of(opened, f".dist-info/sboms/{PROJECT['name']}.cdx.json"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.7")
    me = bill["metadata"]["component"]
    assert (me["name"], me["version"]) == (PROJECT["name"], PROJECT["version"])
    assert me["licenses"] == [{"expression": PROJECT["license"]}]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])

    extras = PROJECT["optional-dependencies"].items()
    expected = {("required", "", text) for text in PROJECT["dependencies"]}
    expected |= {("optional", e, text) for e, texts in extras if e != "dev" for text in texts}
    found = set()
    for part in bill["components"]:
        name, bound = part["name"], part["versionRange"].removeprefix("vers:pypi/")
        assert part["purl"] == f"pkg:pypi/{name}"
        assert part["isExternal"] is True
        properties = [(p["name"], p["value"]) for p in part["properties"]]
        wanted = [v for n, v in properties if n == "cdx:python:package:required-extra"]
        marker = "".join(v for n, v in properties if n == "conv3d:marker")
        for extra in wanted or [""]:
            found.add((part["scope"], extra, name, bound.replace("*", ""), marker))

    def row(scope: str, extra: str, text: str) -> tuple[str, ...]:
        requirement, _, marker = text.partition(";")
        parts = re.fullmatch(r"([\w.-]+)(.*)", requirement.strip())
        assert parts is not None
        name = re.sub(r"[-_.]+", "-", parts[1]).lower()
        return scope, extra, name, parts[2].strip(), marker.strip().replace("'", '"')

    assert found == {row(*entry) for entry in expected}
    references = [part["bom-ref"] for part in bill["components"]]
    assert bill["dependencies"] == [{"ref": me["bom-ref"], "dependsOn": references}]
    assert len(set(references)) == len(references)


@pytest.mark.slow
def test_it_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def call(*command: Any, pip: bool = False) -> str:
        settings = {**os.environ, **environment} if pip else environment
        done = subprocess.run(
            [str(programs / command[0]), *map(str, command[1:])],
            cwd=tmp_path,
            env={name: value for name, value in settings.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("python", "-m", "pip", "install", "--quiet", wheel, pip=True)
    call("python", "-m", "pip", "check", pip=True)
    assert call("conv3d", "--version") == f"conv3d, version {PROJECT['version']}\n"
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "conv3d.1").is_file()
    volume = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7) % 11
    np.save(tmp_path / "in.npy", volume)
    call("conv3d", "apply", "in.npy", "-k", "box:size=3", "-o", "out.npy", "--boundary", "zeros")
    expected = ndimage.uniform_filter(volume.astype(np.float64), 3, mode="constant")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    call("conv3d", "help", "masks")
