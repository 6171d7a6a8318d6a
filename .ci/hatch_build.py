"""Build hook: makes the man pages, which the wheel installs into share/man/man1."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):
    """Makes the pages from the commands themselves, which need nothing but Click to be read."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages into a temporary folder, and tell Hatch where to install them."""
        sys.path.insert(0, self.root)
        try:
            from conv3d_cli.cli import main
            from conv3d_cli.cli.description import describe_program
            from conv3d_cli.cli.man import man_pages

            pages = man_pages(describe_program(main, self.metadata.version))
        finally:
            sys.path.remove(self.root)
        self._folder = tempfile.TemporaryDirectory()
        for name, text in pages.items():
            page = Path(self._folder.name, name)
            page.write_text(text, encoding="ascii", newline="\n")
            build_data["shared_data"][str(page)] = f"share/man/man1/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        self._folder.cleanup()
