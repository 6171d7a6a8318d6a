"""`python -m conv3d_cli` and the `conv3d` command."""

from conv3d_cli.cli import main

if __name__ == "__main__":
    main()
