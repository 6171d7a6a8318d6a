"""What the parameters of commands tell about their values: kinds of files, and units.

The options of the table in `settings/options.py` tell it by their rows. `cli/completion.py` and
`cli/description.py` read it.
"""

from __future__ import annotations

from typing import Any

import click

from conv3d_cli.settings.option import File, Unit


class FileName(click.ParamType):  # type: ignore[type-arg]  # Click 8.1 knows no argument
    """The type of a value that may name a file. It accepts any text.

    file : File     kind of the file
    """

    name = "text"

    def __init__(self, file: File) -> None:
        self.file = file


class UnitOption(click.Option):
    """An option of another command than `apply`, whose numbers have a unit.

    unit : Unit     the unit
    """

    def __init__(self, *arguments: Any, unit: Unit, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.unit = unit
