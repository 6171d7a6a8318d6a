"""`conv3d warmup`: compile and cache the loops ahead of the first job."""

from __future__ import annotations

import time

import click

from conv3d_cli.cli.progress import ProgressBar


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
def warmup(quiet: bool) -> None:
    """Compile the loops that common jobs need and keep them on disk.

    \b
      conv3d warmup

    For containers and clusters: run it once where $CONV3D_CACHE_DIR (or the user's cache folder) is writable; later
    processes load the compiled loops, also from a folder that is read-only by then. They are kept per CPU model, conv3d
    version and Numba version. What a job needs beyond them is compiled when it runs.
    """
    from conv3d_cli.engine import cache_folder, refused_folders, warm_up

    started = time.perf_counter()
    with ProgressBar("loops", quiet, volumes=True) as progress:
        compiled, ready = warm_up(progress=progress)
    if quiet:
        return
    where = (
        f"kept in {cache_folder()}"
        if cache_folder()
        else "kept for this process only: no folder can be written"
    )
    click.echo(
        f"{ready} loops ready in {time.perf_counter() - started:.1f} s, {compiled} of them compiled, {where}",
        err=True,
    )
    if not cache_folder():
        for reason in refused_folders():
            click.echo(f"note: {reason}", err=True)
        click.echo(
            "note: set CONV3D_CACHE_DIR to a folder that you, and nobody else, may write", err=True
        )
