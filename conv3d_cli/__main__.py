"""`python -m conv3d_cli` and the `conv3d` command."""

import atexit
import gc

from conv3d_cli.system.interrupts import leave_on_interrupt
from conv3d_cli.system.standard_streams import standard_streams


def main() -> None:
    """Run the command line with the garbage collector tuned for a short process."""
    leave_on_interrupt()
    # Searching the imported objects for reference cycles, during the run and at exit, takes an
    # eighth of a short job. One job makes fewer objects than this threshold; a batch of many files
    # makes more, so its cycles are still collected.
    gc.set_threshold(50_000, 5, 5)
    atexit.register(gc.freeze)
    with standard_streams():
        from conv3d_cli.cli import main as command

        command()


if __name__ == "__main__":
    main()
