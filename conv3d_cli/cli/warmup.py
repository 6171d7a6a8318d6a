"""`conv3d warmup`: compile and cache the loops ahead of the first job."""

from __future__ import annotations

import time

import click


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
    from conv3d_cli.engine import cache_folder, warm_up

    started = time.perf_counter()
    compiled, ready = warm_up()
    if not quiet:
        where = cache_folder() or "no folder (none can be written): they last for this process only"
        click.echo(
            f"{ready} loops ready in {time.perf_counter() - started:.1f} s, {compiled} of them compiled, kept in {where}",
            err=True,
        )
