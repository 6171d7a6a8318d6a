"""`conv3d warmup`: compile and cache the engine's loops before the first job."""

from __future__ import annotations

import time

import click

from conv3d_cli.cli.progress import ProgressBar
from conv3d_cli.system.words import count_of


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def warmup(quiet: bool) -> None:
    """Compile the loops that common jobs need and keep them on disk.

    \b
      conv3d warmup

    For containers and clusters: run it once while $CONV3D_CACHE_DIR (or the user's cache folder)
    is writable. Later processes load the compiled loops, even if the folder has become
    read-only. The cache is separate for each CPU model, conv3d version and Numba version. Jobs
    compile the other loops that they need.
    """
    from conv3d_cli.engine import cache_folder, refused_folders, warm_up

    started = time.perf_counter()
    with ProgressBar("loops", quiet, volumes=True):
        compiled, ready = warm_up()
    if quiet:
        return
    where = (
        f"kept in {cache_folder()}"
        if cache_folder()
        else "kept for this process only, because no cache folder is writable"
    )
    click.echo(
        f"{count_of(ready, 'loop')} ready in {time.perf_counter() - started:.1f} s, "
        f"{compiled} of them compiled, {where}",
        err=True,
    )
    if not cache_folder():
        for reason in refused_folders():
            click.echo(f"note: {reason}", err=True)
        click.echo("note: set CONV3D_CACHE_DIR to a folder that only you can write to", err=True)
