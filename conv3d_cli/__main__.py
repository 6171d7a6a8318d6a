"""`python -m conv3d_cli` and the `conv3d` command."""

import atexit
import gc

from conv3d_cli.system.standard_streams import standard_streams


def main() -> None:
    """Run the command line, as a process that is short and whose memory goes when it ends."""
    # Looking for reference cycles among what was imported, during the run and at its end, is an eighth of a short job. One
    # job makes fewer objects than this; in a batch of many files cycles are found all the same.
    gc.set_threshold(50_000, 5, 5)
    atexit.register(gc.freeze)
    with standard_streams():
        from conv3d_cli.cli import main as command

        command()


if __name__ == "__main__":
    main()
