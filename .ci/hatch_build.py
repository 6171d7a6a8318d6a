"""Build hook: the date of a build, the man pages of the wheel, and its bill of materials.

The same sources and the same build tools make the same bytes, whenever and wherever they run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DATE = "SOURCE_DATE_EPOCH"  # seconds; what Hatch dates the files of an archive with


class WheelHook(BuildHookInterface):
    """Adds to the wheel what is made from the sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Set the date; write the other files into a temporary folder, and tell Hatch of them."""
        os.environ.setdefault(DATE, str(date_of_sources(Path(self.root))))
        if self.target_name != "wheel":
            return
        self._folder = tempfile.TemporaryDirectory()
        for name, text in self._man_pages().items():
            page = Path(self._folder.name, name)
            page.write_text(text, encoding="ascii", newline="\n")
            build_data["shared_data"][str(page)] = f"share/man/man1/{name}"
        materials = Path(self._folder.name, f"{self.metadata.name}.cdx.json")
        text = json.dumps(bill_of_materials(self.metadata.core), indent=1, sort_keys=True)
        materials.write_text(text + "\n", encoding="ascii", newline="\n")
        build_data["sbom_files"].append(str(materials))

    def _man_pages(self) -> dict[str, str]:
        """The pages, from the commands themselves, which need nothing but Click to be read."""
        sys.path.insert(0, self.root)
        try:
            from conv3d_cli.cli import main
            from conv3d_cli.cli.description import describe_program
            from conv3d_cli.cli.man import man_pages

            return man_pages(describe_program(main, self.metadata.version))
        finally:
            sys.path.remove(self.root)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        if self.target_name == "wheel":
            self._folder.cleanup()


def date_of_sources(root: Path) -> int:
    """The date of the last commit. In an unpacked sdist, the date that its files were given."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "log", "-1", "--format=%ct"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.stdout.strip().isdigit():
                return int(done.stdout)
        except OSError:
            pass  # no git
    return int((root / "pyproject.toml").stat().st_mtime)


def bill_of_materials(project: Any) -> dict[str, Any]:
    """CycloneDX 1.7: what the wheel holds, which is conv3d alone, and what it needs beside it.

    project : hatchling's metadata of pyproject.toml

    A library that pip will install is external, with the versions that are accepted; one of an
    extra is optional. The serial number depends on the contents.
    """
    me = f"pkg:pypi/{canonicalize_name(project.name)}@{project.version}"
    groups = {"": project.dependencies, **project.optional_dependencies}
    libraries: dict[str, dict[str, Any]] = {}
    for extra, requirements in groups.items():
        if extra == "dev":
            continue  # to work on the sources, which the wheel does not hold
        for text in requirements:
            known = libraries.setdefault(text, library(Requirement(text)))
            if extra:
                known["properties"].append(
                    {"name": "cdx:python:package:required-extra", "value": extra}
                )
            else:
                known["scope"] = "required"
    components = [{**libraries[text], "bom-ref": text} for text in sorted(libraries)]
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(int(os.environ[DATE]), UTC).isoformat(),
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "application",
                "bom-ref": me,
                "name": project.name,
                "version": project.version,
                "description": project.description,
                "licenses": [{"expression": project.license_expression}],
                "purl": me,
            },
        },
        "components": components,
        "dependencies": [{"ref": me, "dependsOn": [part["bom-ref"] for part in components]}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))
    return {**bill, "serialNumber": serial.urn}


def library(needed: Requirement) -> dict[str, Any]:
    """The component of one requirement."""
    name = canonicalize_name(needed.name)
    bounds = sorted(f"{bound.operator}{bound.version}" for bound in needed.specifier)
    properties = []
    if needed.marker is not None:
        properties.append({"name": "conv3d:marker", "value": str(needed.marker)})
    return {
        "type": "library",
        "name": name,
        "purl": f"pkg:pypi/{name}",
        "isExternal": True,
        "scope": "optional",
        "versionRange": f"vers:pypi/{'|'.join(bounds) or '*'}",
        "properties": properties,
    }
