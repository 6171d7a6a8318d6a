"""The command line: one file per command, and one line each in `COMMANDS`.

This file also turns errors into messages and exit codes. Only this folder uses Click and Rich. A
run imports the module of its own command alone, and command modules import NumPy, Numba and the
formats inside the command bodies, so that --help is quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Any

import click

from conv3d_cli.cli.help_json import add_help_json, help_json_option
from conv3d_cli.cli.messages import COMPLETE_VAR
from conv3d_cli.cli.usage import CommandGroup
from conv3d_cli.errors import EXIT_CODES, Conv3DError, DifferenceError, for_command_line, one_line
from conv3d_cli.pipeline.operations import SUMMARIES as OPERATIONS
from conv3d_cli.system.atomic import abandon_outputs, cause_of, placed_outputs
from conv3d_cli.system.faults import explained
from conv3d_cli.system.interrupts import handle_interrupts, limit_cleaning_up, told
from conv3d_cli.system.standard_streams import lost_output
from conv3d_cli.system.words import TERMINAL, plain_text

COMMANDS = tuple(
    sorted(
        (
            "apply",
            "bench",
            "compare",
            "completion",
            "describe",
            "explain",
            "help",
            "info",
            "kernel",
            "presets",
            "rerun",
            "view",
            "warmup",
            *OPERATIONS,
        )
    )
)


class LateCommands(MutableMapping[str, click.Command]):
    """Commands by name: the command `x` is `x` of the module `cli/x.py`, imported when needed.

    Those of operations are made of them.

    >>> LateCommands(["info"])["info"].name
    'info'
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._commands: dict[str, click.Command | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> click.Command:
        command = self._commands[name]
        if command is None:
            if name in OPERATIONS:
                from conv3d_cli.cli.operations import OperationCommand

                command = OperationCommand(name)
            else:
                command = getattr(import_module(f"{__name__}.{name}"), name)
                add_help_json(command)
            self._commands[name] = command
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._commands[name] = command

    def __delitem__(self, name: str) -> None:
        del self._commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt, it passes every `except Exception`.

    signum : int    number of the signal
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _interrupt(signum: int, frame: FrameType | None) -> None:
    limit_cleaning_up("interrupted", 130, abandon_outputs)
    raise KeyboardInterrupt


def _terminate(signum: int, frame: FrameType | None) -> None:
    limit_cleaning_up("terminated", 128 + signum, abandon_outputs)
    # ignore further ones while we clean up: a terminal that closes sends it twice
    signal.signal(signum, signal.SIG_IGN)
    raise Terminated(signum)


def _outputs_left(error: BaseException, placed: Sequence[str]) -> str:
    """Which outputs an interrupt left: the note of a batch, or the outputs put in place."""
    written = [f"{path} is written" for path in placed]
    left = "; ".join(getattr(error, "__notes__", written or ["no output was left behind"]))
    return plain_text(left, TERMINAL)


def _tell(error: Conv3DError, placed: Sequence[str]) -> int:
    """Print an error, and which outputs are complete nevertheless; its exit code."""
    text = one_line(error)
    if not isinstance(error, DifferenceError):  # which is about an output
        words = [f"{path} is written" for path in placed if os.path.lexists(path)]
        text = "; ".join([text, *(one for one in words if one not in text)])
    click.echo(f"Error: {plain_text(text, TERMINAL)}", err=True)
    return error.exit_code


class ErrorTranslator(CommandGroup):
    """A group whose commands end with a one-line error and an exit code, never with a traceback.

    Errors that are not the user's but bugs keep their traceback.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, or answer a shell that asks for completions."""
        if COMPLETE_VAR in os.environ:
            from conv3d_cli.cli.completion import register_shells

            register_shells()
        try:
            with for_command_line():
                return super().main(*arguments, **{"complete_var": COMPLETE_VAR, **options})
        except SystemExit as end:
            if error := lost_output():
                click.echo(f"Error: cannot write standard output: {cause_of(error)}", err=True)
                sys.exit(end.code or 1)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and end with its exit code; see errors.py for the codes."""
        placed: list[str] = []
        try:
            with placed_outputs() as placed:
                return super().invoke(ctx)
        except Conv3DError as error:
            code = _tell(error, placed)
        except KeyboardInterrupt as error:
            click.echo(f"interrupted; {_outputs_left(error, placed)}", err=True)
            code = 130
        except Terminated as error:
            click.echo(f"terminated; {_outputs_left(error, placed)}", err=True)
            code = 128 + error.signum
        except Exception as error:
            fault = explained(error)
            if fault is None:
                raise
            code = _tell(fault, placed)
        if code > 128:
            told()
        ctx.exit(code)


def _print_citation(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from conv3d_cli.cli.cite import citation

        click.echo(citation())
        ctx.exit()


@click.group(
    cls=ErrorTranslator,
    commands=LateCommands(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: " + ", ".join(f"{code} {word}" for code, word in EXIT_CODES.items()) + ".",
)
@click.version_option(package_name="conv3d", prog_name="conv3d")
@click.option(
    "--cite",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_citation,
    help="Show how to cite this version, and exit.",
)
def main() -> None:
    """Convolve 3-D volumes: NIfTI scans, TIFF stacks, OME-Zarr images, NumPy arrays.

    \b
      conv3d apply brain.nii.gz -k gaussian:fwhm=6mm -o smooth.nii.gz
      conv3d apply stack.tif -k psf.tif --flip -o blurred.tif
      conv3d apply image.ome.zarr -k gaussian:sigma=1um -o smooth.ome.zarr
      conv3d apply *.nii.gz -c layer.toml --out-dir results --suffix _conv

    The output has the input's place in the world, and the format of its name. Results go to
    stdout, messages and progress to stderr. `conv3d help` lists the pages of the manual.
    """
    try:
        handle_interrupts(_interrupt)
        signal.signal(signal.SIGTERM, _terminate)
        # under nohup, SIGHUP stays ignored
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, _terminate)
    except ValueError:
        pass  # not the main thread (embedded in another program), which owns the signals


main.params.append(help_json_option(hidden=False))
