"""What shells are told, asked by the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import LIMIT

from conv3d_cli.cli.completion import BY_FILE, activations, kernels
from conv3d_cli.kernels import BUILTIN_KERNELS
from conv3d_cli.layer.activations import ACTIVATIONS
from conv3d_cli.settings.option import File


@pytest.fixture
def desk(tmp_path: Path, commands: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """A folder with files, and an environment in which `conv3d` is this one."""
    folder = tmp_path / "desk"
    (folder / "prepared").mkdir(parents=True)
    for name in ("psf.npy", "a scan.nii"):
        (folder / name).touch()
    return folder, {**commands, "HOME": str(tmp_path), "TERM": "dumb"}


# bash asks a function with COMP_LINE and COMP_POINT, and takes the answers from COMPREPLY; compopt works only in completion.
BASH = """
compopt() { echo "$2" >> options; }
eval "$(conv3d completion bash)"
complete -p conv3d
COMP_LINE="$1" COMP_POINT=${#1}
_conv3d_completion conv3d
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected", "options"),
    [
        ("conv3d ap", ["apply"], []),
        ("conv3d apply --output-n", ["--output-name"], []),
        ("conv3d apply -k gau", ["gaussian:", "gaussian_derivative:"], ["nospace"] * 2),
        (
            "conv3d apply -k gaussian:",
            ["fwhm=", "sigma=", "truncate=", "sampling=", "orient="],
            ["nospace"] * 5,
        ),
        ("conv3d apply -k gaussian:fwhm=6mm:sa", ["sampling="], ["nospace"]),
        ("conv3d apply -k sobel:axis=", ["d", "h", "w", "dhw", "xyz"], []),
        ("conv3d apply --kernel=box:si", ["size="], ["nospace"]),
        ("conv3d apply -k p", ["prewitt:", "psf.npy", "prepared/"], ["nospace", "nospace"]),
        ("conv3d apply --like f", ["fsl"], []),
        ("conv3d apply --like=f", ["fsl"], []),
        ("conv3d apply a.npy --activation le", ["leaky_relu"], []),
        (
            "conv3d apply 'a scan.nii' -k box --boundary x --nan ",
            ["propagate", "ignore", "zero", "error"],
            [],
        ),
        ("conv3d kernel show lapl", ["laplacian"], []),
        ("conv3d apply a", [""], ["default"]),
        ("conv3d apply x --mask ", [""], ["default"]),
        ("conv3d apply x --out-dir ", [""], ["dirnames"]),
        ("conv3d completion ", ["bash", "zsh", "fish"], []),
        ("conv3d apply -k nothing:", [""], ["default"]),
    ],
)
def test_bash(
    desk: tuple[Path, dict[str, str]], line: str, expected: list[str], options: list[str]
) -> None:
    folder, environment = desk
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    registered, *answers = done.stdout.splitlines()
    assert "-F _conv3d_completion conv3d" in registered
    assert sorted(answers) == sorted(expected)
    told = folder / "options"
    assert (told.read_text().split() if told.exists() else []) == options


FISH = """
conv3d completion fish | source
complete -C "conv3d apply -k gau"; complete -C "conv3d apply --like f"; complete -C "conv3d apply -k gaussian:fwhm=6mm:t"
"""


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    done = subprocess.run(
        ["fish", "-c", FISH],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"gaussian:", "fsl", "gaussian:fwhm=6mm:truncate="} <= set(done.stdout.split())


# zsh completes only at a terminal of its own, which zpty gives.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; autoload -Uz compinit; compinit -u -D; eval "$(conv3d completion zsh)"; echo rea""dy'
zpty -r shell output '*ready*'
zpty -w -n shell "$1"$'\\t'
zpty -r shell output "*$2*" && print found
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("conv3d apply -k gau", "gaussian:"),
        ("conv3d apply -k gaussian:fwhm=6mm:tr", "truncate="),
        ("conv3d ap", "apply "),
    ],
)
def test_zsh(desk: tuple[Path, dict[str, str]], line: str, expected: str) -> None:
    folder, environment = desk
    done = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", line, expected], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert "found" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_scripts_are_sound(run: Any, shell_name: str, tmp_path: Path) -> None:
    script = run("completion", shell_name).stdout
    assert "_CONV3D_COMPLETE" in script
    if shutil.which(shell_name):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell_name, "-n", tmp_path / "script"], check=True)


def test_another_shell(run: Any) -> None:
    assert (
        "SHELL must be bash, zsh or fish, received 'tcsh'"
        in run("completion", "tcsh", code=2).stderr
    )


def test_everything_in_the_catalogues_is_offered() -> None:
    assert {item.value.rstrip(":") for item in kernels("")} == {
        f.__name__ for f in BUILTIN_KERNELS
    } | {""}
    assert len(activations("")) == len(ACTIVATIONS)
    assert kernels("sobel:axis=h:axis=")[0].value == "sobel:axis=h:axis=d"
    assert not kernels("gaussian:fwhm=6mm:fw")  # given already


def test_asking_loads_nothing_heavy() -> None:
    """A shell waits at every key: commands and options are completed without NumPy."""
    program = "import sys; from conv3d_cli.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    environment = {
        **os.environ,
        "_CONV3D_COMPLETE": "bash_complete",
        "COMP_WORDS": "conv3d apply --overw",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "plain,--overwrite"
    assert not {"numpy", "numba", "rich", "nibabel"} & set(done.stderr.split())


def test_every_kind_of_file_in_the_table_is_completed() -> None:
    assert set(BY_FILE) == set(File)
