"""A command for each operation that is made of convolutions: `conv3d local`, `conv3d ridges`.

Its own options are the parameters of the operation, and its help is the docstring of the
operation's function. The others are those of `apply`, without those that belong to a convolution:
`conv3d local a.nii --size 7` runs as `conv3d apply a.nii --operation local:size=7`.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from functools import cached_property
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

import click

from conv3d_cli.cli.help_json import help_json_option
from conv3d_cli.cli.options import (
    OWN,
    ShortHelpCommand,
    given_settings,
    is_given,
    options_of_table,
)
from conv3d_cli.cli.parameters import FileName, Text, UnitOption
from conv3d_cli.cli.running import keep_blas_quiet, run_volumes
from conv3d_cli.cli.values import OneOf
from conv3d_cli.pipeline.operations import SUMMARIES, find_operation
from conv3d_cli.pipeline.outputs import OUTPUT_OPTIONS, ROLES
from conv3d_cli.settings.option import File, Option, Place, Unit
from conv3d_cli.settings.options import OF_NETWORKS

if TYPE_CHECKING:
    from conv3d_cli.kernels.grammar import Parameter
    from conv3d_cli.pipeline.operations.base import ComposedOperation

# Options of jobs that operations do not have, and those of means.
_NOT_TAKEN = (
    "config",
    "operation",
    "weights",
    "like",
    "to_fwhm",
    "algorithm",
    *OF_NETWORKS,
    "mask_labels",
)
_OF_MEANS = ("missing", "min_coverage")
_MASK_RULES = (
    "For many volumes, MASK is a pattern ('sub-*/func/*_mask.nii.gz'), a template "
    "('{stem}_mask.nii.gz' in the volume's folder), or auto, the BIDS brain mask with the volume's "
    "entities; see `conv3d help masks`."
)
# Options of the table whose help speaks of convolutions.
_OWN_HELP = {
    "boundary": {
        "help": "What lies beyond the edges, as nearest or zeros. All are zeros, nearest, "
        "symmetric, mirror, wrap, renormalize, renormalize-depth, mirror-one, constant=V.  "
        "[default: symmetric]"
    },
    "dtype": {
        "help": "Data type of the output, or same. With `same` it is the input's. Integers are "
        "rounded half to even and clipped to their range; clipped voxels are counted.  "
        "[default: float32]"
    },
    "mask": {"help": f"Compute within this mask; 0 outside. {_MASK_RULES}"},
    "mask_mode": {
        "help": "Outputs outside the mask: 0 (clip), what is computed there (extend), or the input "
        "voxel (keep)."
    },
}
# placeholder of a parameter -> the unit of its numbers
_UNITS = {"LENGTH": Unit.LENGTH, "VOXELS": Unit.VOXELS}
_PARAMETER = re.compile(r"(\w+(?:, \w+)*) : (?:.*?)(?:\s{2,}(.*))?$", re.MULTILINE)


class OperationCommand(ShortHelpCommand):
    """The command of an operation.

    The operation is imported when its help is asked for or it is run, and not to list the commands.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, short_help=SUMMARIES[name], callback=self._run)
        del self.params, self.help

    @cached_property
    def params(self) -> list[click.Parameter]:  # type: ignore[override]
        """Its argument and options."""
        keep_blas_quiet()
        operation = find_operation(str(self.name))
        documented = _documented(operation)
        made = options_of_table(lambda row: _takes(operation, row), _OWN_HELP)(lambda: None)
        own = [_option(p, documented[p.name]) for p in operation.described.parameters]
        inputs = click.Argument(["inputs"], nargs=-1, metavar="INPUT...", type=FileName(File.READ))
        table = list(reversed(made.__click_params__))  # type: ignore[attr-defined]
        for option in table:
            # its own, which the short help shows
            if option.name in (*OUTPUT_OPTIONS, "template_mask"):
                option.row = replace(option.row, common=True)
        return [inputs, *own, *table, help_json_option(hidden=True)]

    @cached_property
    def help(self) -> str:  # type: ignore[override]
        """The docstring of its function up to the parameters, with its examples as they are."""
        blocks = []
        operation = find_operation(str(self.name))
        for block in (inspect.getdoc(operation.function) or "").split("\n\n"):
            if _PARAMETER.match(block):
                break
            is_example = block.lstrip().startswith("conv3d ")
            blocks.append("\b\n" + indent(dedent(block), "  ") if is_example else block)
        return "\n\n".join(blocks)

    def _run(self, /, inputs: tuple[str, ...], **values: Any) -> None:
        ctx = click.get_current_context()
        own = [p.name for p in find_operation(str(self.name)).described.parameters]
        parts = [f"{name}={values[name]}" for name in own if is_given(ctx, name)]
        text = ":".join([str(self.name), *parts])
        run_volumes(ctx, inputs, replace(given_settings(ctx), operation=text))


def _takes(operation: ComposedOperation, row: Option) -> bool:
    """Whether the command of an operation has an option of the table."""
    if row.place is Place.STAGE:
        from conv3d_cli.pipeline.composing import options_taken  # late: it imports NumPy

        return row.name in options_taken(operation)
    if row.name in OUTPUT_OPTIONS:
        return ROLES[operation.table].option == row.name if operation.table else False
    if row.name == "template_mask":
        return operation.takes_template_mask
    return row.name not in _NOT_TAKEN + (() if operation.takes_missing else _OF_MEANS)


def _option(parameter: Parameter, text: str) -> click.Option:
    """The option of a parameter."""
    kind = parameter.kind
    default = "" if parameter.default is None else f"  [default: {parameter.default}]"
    values: dict[str, Any] = {"type": Text(), "metavar": kind.form}
    if kind.words == ("no", "yes"):  # a flag
        default, values = "", {"type": Text(), "is_flag": True, "flag_value": "yes"}
    elif kind.words and kind.form == "|".join(kind.words):  # nothing but one of them
        values = {"type": OneOf(kind.words, parameter.name)}
    unit = _UNITS.get(kind.form)
    if unit is not None:
        values["unit"] = unit
    made = (click.Option if unit is None else UnitOption)(
        ["--" + parameter.name.replace("_", "-"), parameter.name],
        required=parameter.required,
        help=text + default,
        **values,
    )
    made.section = OWN  # type: ignore[attr-defined]
    return made


def _documented(operation: ComposedOperation) -> dict[str, str]:
    """What the docstring says of each parameter, as one sentence."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.getdoc(operation.function) or "").splitlines():
        if told := _PARAMETER.match(line):
            names = told[1].split(", ")
            found.update(dict.fromkeys(names, (told[2] or "").strip()))
        elif names and line.startswith("    "):
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
        else:
            names = []
    return {name: _sentence(text) for name, text in found.items()}


def _sentence(text: str) -> str:
    """A text with its first letter in upper case and a full stop, before its default if it ends so.

    >>> _sentence("smaller leaves out more [default: 0.5]")
    'Smaller leaves out more.  [default: 0.5]'
    """
    text, default = (f"{text[:1].upper()}{text[1:]}", "")
    if text.count("[default: ") == 1 and text.endswith("]"):
        text, _, default = text.partition(" [default: ")
        default = f"  [default: {default}"
    return f"{text}.{default}"
