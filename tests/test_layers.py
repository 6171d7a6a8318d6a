"""Imports go strictly down: read from the source of every module, imports inside functions and for type checkers included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import conv3d_cli
from conv3d_cli import Volume, write_volume
from conv3d_cli.formats import FORMATS

ROOT = Path(conv3d_cli.__file__).parent

# The floors of the house, from the roof down. A room may import rooms of the floors below its own, never one beside it.
# A new room must find its place here.
FLOORS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"bench", "keras", "napari"},
    {"api"},
    {"batch"},
    {"provenance", "pictures", "cluster"},
    {"analysis"},
    {"pipeline"},
    {"settings"},
    {"network"},
    {"convolution"},
    {"kernels"},
    {"formats", "layer", "engine"},
    {"model"},
    {"system"},
    {"errors"},
    {"vocabulary"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# third-party library -> the only places that may know it
HOMES = {
    "click": ["cli/*.py"],
    "rich": ["cli/*.py"],
    "numba": ["engine/loops/*.py"],
    "llvmlite": ["engine/machine_code.py", "engine/cpu.py", "engine/loops/*.py"],
    "nibabel": [
        "formats/nifti/*.py",
        "formats/minc/*.py",
        "formats/parrec/*.py",
        "kernels/files.py",
    ],
    "tifffile": ["formats/tiff/*.py", "kernels/files.py"],
    "imagecodecs": ["formats/tiff/*.py", "formats/microscope/czi.py"],
    "isal": ["formats/*.py", "formats/*/*.py"],
    "zarr": ["formats/zarr/*.py"],
    "numcodecs": ["formats/zarr/*.py"],
    "google_crc32c": ["formats/zarr/*.py"],
    "fsspec": ["formats/zarr/*.py"],
    "aiohttp": ["formats/zarr/remote.py"],
    "distributed": ["cluster/scheduler.py"],
    "dask": ["cluster/run.py"],
    "compression": ["formats/codecs.py"],  # zstd, in the standard library from Python 3.14 on
    "backports": ["formats/codecs.py"],
    "h5py": ["formats/minc/*.py", "formats/hdf5/*.py", "kernels/weights/*.py"],
    "pydicom": ["formats/dicom/*.py"],
    "nd2": ["formats/microscope/nd2.py"],
    "liffile": ["formats/microscope/lif.py"],
    "hdf5plugin": ["formats/hdf5/file.py"],  # if it is installed: filters of HDF5
    "safetensors": ["kernels/weights/*.py"],
    "onnx": ["bench/peers.py", "kernels/weights/*.py"],
    "numpy": ["*.py"],
    "torch": ["bench/peers.py"],
    "scipy": ["bench/peers.py"],
    "SimpleITK": ["bench/peers.py"],
    "diplib": ["bench/peers.py"],
    "onnxruntime": ["bench/peers.py"],
    "bioimage_cpp": ["bench/peers.py"],
    "napari": ["napari.py"],
    "matplotlib": ["bench/plot.py", "pictures/plotting.py", "pictures/figure.py"],
}
# what `conv3d --help` passes through
WITHOUT_NUMPY = [
    "__init__.py",
    "__main__.py",
    "errors.py",
    "batch/names.py",
    "cli/__init__.py",
    "cli/options.py",
    "model/__init__.py",
    "model/spec.py",
    "pipeline/outputs.py",
    "settings/config.py",
    "settings/merge.py",
    "settings/option.py",
    "settings/options.py",
    "settings/presets.py",
    "system/atomic.py",
    "system/interrupts.py",
    "system/leftovers.py",
    "system/machine.py",
    "system/standard_streams.py",
]

MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, full name) of everything a module imports, wherever in it."""
    package = ("conv3d_cli", *path.parent.parts)
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            # `from conv3d_cli import job` names a module, too
            found += [
                (node.lineno, f"{base}.{alias.name}" if base == "conv3d_cli" else base)
                for alias in node.names
            ]
    return found


def part_of(name: str) -> str:
    return name.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path: Path) -> None:
    part = path.parts[0].removesuffix(".py")
    if part == "__init__":
        return  # its names are loaded on first use: see test_public_api.py, and below
    assert part in FLOOR_OF, f"{path} is new: give {part} its place in FLOORS"
    for line, name in imported(path):
        if name.split(".")[0] == "conv3d_cli" and (room := part_of(name)) != part:
            assert FLOOR_OF[room] > FLOOR_OF[part], f"{path}:{line}: {part} must not import {name}"


def test_the_map_names_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert {room for rooms_of_floor in FLOORS for room in rooms_of_floor} >= rooms
    assert not [room for room in rooms if f"`{room}/`" not in text]


def name_of(path: Path) -> str:
    """`cli/apply.py` -> "conv3d_cli.cli.apply", `cli/__init__.py` -> "conv3d_cli.cli"."""
    return ".".join(("conv3d_cli", *path.with_suffix("").parts)).removesuffix(".__init__")


def circle_among(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, from one back to itself; [] if there is none."""
    finished: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in finished:
            for other in sorted(arrows.get(module, ())):
                if found := walk(other, [*way, module]):
                    return found
            finished.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := walk(module, []))), [])


def arrows_inside(room: str) -> dict[str, set[str]]:
    """Which modules of a room each of its modules imports: at its top, in functions, and for type checkers."""
    arrows: dict[str, set[str]] = {
        name_of(path): set() for path in MODULES if path.parts[0] == room
    }
    for path in MODULES:
        if (module := name_of(path)) not in arrows:
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                package = ("conv3d_cli", *path.parent.parts)
                start = package[: len(package) - node.level + 1] if node.level else ()
                base = ".".join([*start, *([node.module] if node.module else [])])
                # `from conv3d_cli.cli import apply` names a module; COMMANDS is in the package's own
                names = [
                    f"{base}.{a.name}" if f"{base}.{a.name}" in arrows else base for a in node.names
                ]
            else:
                continue
            arrows[module] |= {name for name in names if name in arrows and name != module}
    return arrows


@pytest.mark.parametrize("room", sorted({path.parts[0] for path in MODULES if len(path.parts) > 1}))
def test_no_circle_inside_a_room(room: str) -> None:
    circle = circle_among(arrows_inside(room))
    assert not circle, f"a circle of imports: {' -> '.join(circle)}"


def test_a_circle_is_found() -> None:
    assert circle_among({"a": {"b", "c"}, "b": set(), "c": {"d"}, "d": {"b", "c"}}) == [
        "c",
        "d",
        "c",
    ]
    assert circle_among({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_libraries_stay_at_home(path: Path) -> None:
    for line, name in imported(path):
        library = name.split(".")[0]
        if library in sys.stdlib_module_names or library == "conv3d_cli":
            continue
        assert library in HOMES, f"{path}:{line}: {library} is no dependency"
        assert any(path.match(home) for home in HOMES[library]), (
            f"{path}:{line}: {library} is known only in {HOMES[library]}"
        )


@pytest.mark.parametrize("path", WITHOUT_NUMPY)
def test_no_numpy_where_help_passes(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    at_import = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert "numpy" not in at_import


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nobody_asks_for_a_format_by_its_name(path: Path) -> None:
    """A format's facts say what it can do; its display name is for people, and stands in its own module."""
    names = {found.name for found in FORMATS}
    if path.parts[0] != "formats":
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in names, (
                    f"{path}:{node.lineno}: '{node.value}' is a format's name"
                )


def test_the_walk_sees_every_kind_of_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "new.py").write_text(
        "import numba.core\n"
        "def f():\n"
        "    from ..engine import plan\n"
        "    from . import grid\n"
        "    from conv3d_cli import api\n"
        "if False:\n"
        "    from conv3d_cli.cli.apply import apply\n"
    )
    assert [name for _, name in sorted(imported(Path("model/new.py")))] == [
        "numba.core", "conv3d_cli.engine", "conv3d_cli.model", "conv3d_cli.api", "conv3d_cli.cli.apply",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# What a command loads


def loaded_by(*arguments: str) -> set[str]:
    """Modules in a fresh process after `conv3d ARGUMENTS`, which must succeed."""
    program = """
import sys
from conv3d_cli.cli import main
try:
    main(sys.argv[1:], prog_name="conv3d")
except SystemExit as end:
    assert not end.code, end.code
print(*sorted(sys.modules), file=sys.stderr)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip(), "the command said nothing"
    return set(ran.stderr.split())


HEAVY = {"numba", "llvmlite", "scipy", "nibabel", "tifffile", "zarr", "numcodecs", "fsspec", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["apply", "--help"],
        ["info", "--help"],
        ["bench", "--help"],
        ["describe", "boutiques", "apply"],
        ["describe", "man", "apply"],
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_by(*arguments)
    assert "click" in loaded
    assert not loaded & {*HEAVY, "numpy"}


@pytest.mark.parametrize("arguments", [["--help-json"], ["local", "--help"]], ids=" ".join)
def test_operations_are_described_without_the_engine(arguments: list[str]) -> None:
    """The signatures of operations need NumPy."""
    assert not loaded_by(*arguments) & HEAVY


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts threads there")
@pytest.mark.parametrize("arguments", [["local", "--help"], ["convert", "x"]], ids=" ".join)
def test_blas_starts_no_threads(arguments: list[str]) -> None:
    program = (
        "import os, sys\n"
        "os.environ.pop('OPENBLAS_NUM_THREADS', None)\n"
        "from conv3d_cli.cli import main\n"
        "try: main(sys.argv[1:], prog_name='conv3d')\n"
        "except SystemExit: pass\n"
        "import numpy\n"
        "print(open('/proc/self/status').read().split('Threads:')[1].split()[0], file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert ran.stderr.split()[-1] == "1"


def test_info_loads_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 3, 4)))
    assert not loaded_by("info", str(path)) & HEAVY
    assert not loaded_by("info", "--json", str(path)) & HEAVY


def test_kernels_load_no_engine() -> None:
    assert not loaded_by("kernel", "list") & HEAVY
    assert not loaded_by("kernel", "show", "box:size=3") & HEAVY


def test_a_warm_job_loads_no_compiler(tmp_path: Path) -> None:
    """Its loops come from disk: importing Numba takes longer than the job. Nor what only other jobs need."""
    path = tmp_path / "x.nii.gz"
    write_volume(str(path), Volume(np.ones((5, 6, 7), np.float32), "zyx"))
    job = [
        "apply",
        str(path),
        "-k",
        "box:size=3",
        "-o",
        str(tmp_path / "y.nii.gz"),
        "--json",
        "--overwrite",
    ]
    loaded_by(*job)  # compiles what is not there yet
    others = {
        "conv3d_cli.kernels.weights",
        "conv3d_cli.layer.activations",
        "conv3d_cli.layer.initializers",
        "tomllib",
    }
    assert not loaded_by(*job) & {"numba", "tifffile", "rich", *others}


def test_importing_the_package_loads_nothing() -> None:
    program = "import sys; before = set(sys.modules); import conv3d_cli; print(*sorted(set(sys.modules) - before))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    ours = {name for name in ran.stdout.split() if name.startswith("conv3d_cli")}
    assert ours == {"conv3d_cli"}
    assert "numpy" not in ran.stdout.split()
