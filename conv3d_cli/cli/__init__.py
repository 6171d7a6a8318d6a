"""The command line: one file per command, options declared once in `options.py`, errors translated here.

Click and Rich live only in this folder. Command modules import NumPy, Numba and the formats inside the command bodies, so
that help is quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from conv3d_cli.cli.apply import apply
from conv3d_cli.cli.bench import bench
from conv3d_cli.cli.compare import compare
from conv3d_cli.cli.completion import COMPLETE_VAR, completion, prepare, register_shells
from conv3d_cli.cli.explain import explain
from conv3d_cli.cli.help import help
from conv3d_cli.cli.info import info
from conv3d_cli.cli.kernel import kernel
from conv3d_cli.cli.messages import EXIT_CODE
from conv3d_cli.cli.presets import presets
from conv3d_cli.cli.rerun import rerun
from conv3d_cli.cli.view import view
from conv3d_cli.cli.warmup import warmup
from conv3d_cli.errors import Conv3DError, one_line
from conv3d_cli.system.atomic import cause_of, placed_outputs


class Terminated(BaseException):
    """SIGTERM, or SIGHUP, arrived; like KeyboardInterrupt it passes through every `except Exception`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def _terminate(signum: int, frame: FrameType | None) -> None:
    # once is enough: a terminal that closes sends it twice, and we must tidy up
    signal.signal(signum, signal.SIG_IGN)
    raise Terminated(signum)


def _tell_lost_output(error: OSError) -> None:
    """Say that results could not be printed; nothing where their reader has gone, which is how `| head` ends."""
    if not isinstance(error, BrokenPipeError):
        click.echo(
            f"Error: cannot write {error.filename or 'standard output'}: {cause_of(error)}",
            err=True,
        )


def _what_stands(error: BaseException, placed: Sequence[str]) -> str:
    """What an interrupt left behind: in the words of a batch, which knows what is complete, or the outputs that were placed."""
    written = [f"{path} is written" for path in placed]
    return "; ".join(getattr(error, "__notes__", written or ["no output was left behind"]))


class ErrorTranslator(click.Group):
    """A group whose commands end with one line and the right exit code, never a traceback for a user's mistake."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, or tell the shell that asks how one goes on."""
        if COMPLETE_VAR in os.environ:
            register_shells()
            prepare(self)
        try:
            return super().main(*arguments, **{"complete_var": COMPLETE_VAR, **options})
        except (
            OSError
        ) as error:  # of --help and --version, which are printed before a command is invoked
            _tell_lost_output(error)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see errors.py for the exit codes."""
        placed: list[str] = []
        try:
            with placed_outputs() as placed:
                return super().invoke(ctx)
        except Conv3DError as error:
            click.echo(f"Error: {one_line(error)}", err=True)
            code = error.exit_code
        except MemoryError:
            click.echo(
                "Error: out of memory; pass a smaller --max-memory, or work on a machine with more",
                err=True,
            )
            code = 6
        except OSError as error:
            # Files' errors are Conv3DErrors by now: what is left is our own output, `conv3d info > /dev/full`.
            _tell_lost_output(error)
            code = ctx.meta.get(EXIT_CODE) or 1
        except KeyboardInterrupt as error:
            click.echo(f"interrupted; {_what_stands(error, placed)}", err=True)
            code = 130
        except Terminated as error:
            click.echo(f"terminated; {_what_stands(error, placed)}", err=True)
            code = 128 + error.signum
        ctx.exit(code)


def _print_citation(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from conv3d_cli.cli.cite import citation

        click.echo(citation())
        ctx.exit()


@click.group(
    cls=ErrorTranslator,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
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

    The output has the input's format and place in the world. Results go to stdout, messages and progress to stderr.
    `conv3d help` lists the pages of the manual.

    \b
    Exit codes: 0 done, 1 runtime fault, 2 usage, 3 input unreadable,
    4 kernel and volume do not fit, 5 output exists, 6 over --max-memory,
    7 volumes differ, 129 hung up, 130 interrupted, 143 terminated.
    """
    try:
        signal.signal(signal.SIGTERM, _terminate)
        if (
            hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        ):  # else nohup
            signal.signal(signal.SIGHUP, _terminate)
    except ValueError:
        pass  # not in the main thread (embedded in another program): its signals are not ours


for command in (
    apply,
    info,
    view,
    explain,
    kernel,
    presets,
    compare,
    rerun,
    warmup,
    bench,
    completion,
    help,
):
    main.add_command(command)
