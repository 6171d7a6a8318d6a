"""Parse `name:key=value:...`, as a built-in kernel is written, by the signature of its function.

A parameter's annotation defines how its value is written (`lengths.py`), and a parameter with a
default is optional. The name of the first parameter may be left out if its kind is `bare`. A
function that takes lengths but no `orient` (`world.py`) works along the voxel axes only, so lengths
in mm are refused for it on a sheared grid. Parameters before a `/` are not written. This module
knows no particular kernel; `pipeline/operations/` has other functions that are written so.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from conv3d_cli.errors import ShapeError, SpecError, name_hint, unknown_name
from conv3d_cli.kernels.lengths import COUNT, NUMBER, VOXEL, Kind, PhysicalLengths, choice_kind
from conv3d_cli.kernels.world import read_orient, shear_text
from conv3d_cli.model.grid import ORTHOGONAL, Grid, shear
from conv3d_cli.model.kernel import Kernel

T = TypeVar("T")
KernelFunction = Callable[..., Kernel]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function.

    default : object or None    None: required, or optional without a fixed default
    required : bool             whether the text must give it
    """

    name: str
    kind: Kind
    default: Any = None
    required: bool = False

    def __str__(self) -> str:
        """The parameter as help prints it; brackets mark optional ones.

        >>> str(Parameter("ratio", NUMBER, 1.6)), str(Parameter("n", COUNT, required=True))
        ('[ratio=1.6]', 'n=COUNT')
        """
        if self.required:
            return f"{self.name}={self.kind.form}"
        if self.default is None or "|" in self.kind.form:
            return f"[{self.name}={self.kind.form}]"
        return f"[{self.name}={self.default:g}]"


@dataclass(frozen=True)
class Described(Generic[T]):
    """A function that a text calls: its name, parameters, and the first line of its docstring."""

    name: str
    parameters: tuple[Parameter, ...]
    summary: str
    function: Callable[..., T]


BuiltinKernel = Described[Kernel]


def describe(function: Callable[..., T]) -> Described[T]:
    """Describe a function by its signature and docstring.

    Raises: TypeError if the function has an annotation that no text can be parsed into.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        parameters.append(Parameter(name, _kind(hints[name]), default, required))
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    return Described(function.__name__, tuple(parameters), summary, function)


def _kind(annotation: Any) -> Kind:
    if get_origin(annotation) in (Union, types.UnionType):  # sigma: Lengths | None
        (annotation,) = (
            argument for argument in get_args(annotation) if argument is not type(None)
        )
    if get_origin(annotation) is Annotated:
        return next(extra for extra in annotation.__metadata__ if isinstance(extra, Kind))
    if get_origin(annotation) is Literal:
        return choice_kind(get_args(annotation))
    if annotation in (int, float):
        return COUNT if annotation is int else NUMBER
    raise TypeError(f"no way to read a parameter of type {annotation} from text")


def build_kernel(
    text: str, functions: Sequence[KernelFunction], grid: Grid | None = None
) -> Kernel:
    """Build the kernel that `name:key=value:...` describes; the text becomes the kernel's name.

    functions : sequence        the kernel functions to choose from
    grid : Grid or None         grid of the volume; lengths in mm, um, ... need its voxel spacing

    Raises: UnknownNameError for the name; SpecError for a parameter; ShapeError for a length in mm
    without a voxel spacing, or on a sheared grid if the function has no parameter `orient`.

    >>> import numpy as np
    >>> def line(length: int = 3) -> Kernel:
    ...     return Kernel(np.ones((1, 1, length)))
    >>> build_kernel("line:length=5", [line]).size
    (1, 1, 5)
    """
    text = lower_names(text)
    name = _split_at_colons(text)[0]
    function = next((f for f in functions if f.__name__ == name), None)
    if function is None:
        raise unknown_name("kernel", name, [f.__name__ for f in functions])
    return replace(function(**parse_parameters(text, function, grid)), name=text.strip())


def parse_parameters(
    text: str,
    function: Callable[..., Any],
    grid: Grid | None = None,
    called: Callable[[str], str] = str,
) -> dict[str, Any]:
    """The arguments that `name:key=value:...` gives to a function.

    text : str              with names in lower case, see `lower_names`
    grid : Grid or None     see `build_kernel`
    called : callable       (name of a parameter) -> what messages call it

    Raises: as `build_kernel`, but for the name.

    >>> def line(length: int = 3, width: int = 1) -> None: ...
    >>> parse_parameters("line:length=5", line)
    {'length': 5}
    """
    described = describe(function)
    name, texts = described.name, check_parameters(text, described)
    values = {
        p.name: p.kind.read(texts[p.name], called(p.name), grid)
        for p in described.parameters
        if p.name in texts
    }
    if not any(parameter.kind.read is read_orient for parameter in described.parameters):
        _refuse_sheared_lengths(name, texts, values, called)
    return values


def check_parameters(text: str, described: Described[Any]) -> dict[str, str]:
    """The text of each parameter that `name:key=value:...` gives, by name.

    Raises: SpecError for a pair that is not key=value, for an unknown or repeated key, and for a
        required one that is missing.
    """
    _, *pairs = _split_at_colons(text)
    texts = _parameter_texts(pairs, described)
    for parameter in described.parameters:
        if parameter.required and parameter.name not in texts:
            example = ":".join(
                f"{p.name}={p.kind.example}" for p in described.parameters if p.required
            )
            raise SpecError(
                f"{described.name} needs {parameter.name}={parameter.kind.form}, as in "
                f"{described.name}:{example}"
            )
    return texts


def _refuse_sheared_lengths(
    name: str, texts: dict[str, str], values: dict[str, Any], called: Callable[[str], str]
) -> None:
    """Refuse lengths in mm on a sheared grid, where the kernel would be sheared too.

    Raises: ShapeError.
    """
    for parameter, value in values.items():
        several = isinstance(value, tuple) and not isinstance(value, PhysicalLengths)
        for one in value if several else (value,):
            if isinstance(one, PhysicalLengths) and shear(one.steps) > ORTHOGONAL:
                d, h, w = (f"{length:.4g}" for length in one)
                example = d if several else f"{d},{h},{w}"
                raise ShapeError(
                    f"{name} measures along the voxel axes only, and here "
                    f"{shear_text(one.steps)}; give {called(parameter)} in voxels, as in "
                    f"{called(parameter)}={example}{VOXEL}, received "
                    f"{called(parameter)}={texts[parameter]}"
                )


def lower_names(text: str) -> str:
    """The text of a built-in with its name, and those of its parameters, in lower case.

    >>> lower_names("Sobel:Axis=X"), lower_names('EXPR:"D*W":Radius=2vox')
    ('sobel:axis=X', 'expr:"D*W":radius=2vox')
    """
    name, *pairs = _split_at_colons(text)
    return ":".join([function_name(name), *map(_lower_key, pairs)])


def function_name(name: str) -> str:
    """A name as its function has it: in lower case, and with _ for -.

    >>> function_name("Born-Wolf")
    'born_wolf'
    """
    return name.strip().lower().replace("-", "_")


def _lower_key(pair: str) -> str:
    key, equals, value = pair.partition("=")
    return f"{key.lower()}={value}" if equals and key.strip().isidentifier() else pair


def _split_at_colons(text: str) -> list[str]:
    """Split a text at its colons, except those in quotes.

    Raises: SpecError for a quote that is not closed.
    >>> _split_at_colons('expr:"a:b" : radius=2vox')
    ['expr', '"a:b"', 'radius=2vox']
    """
    parts, quote = [""], ""
    for character in text:
        if character == ":" and not quote:
            parts.append("")
            continue
        if character in "'\"":
            quote = "" if character == quote else quote or character
        parts[-1] += character
    if quote:
        raise SpecError(f"a quote {quote} is not closed in {text.strip()}")
    return [part.strip() for part in parts]


def _parameter_texts(pairs: Sequence[str], described: Described[Any]) -> dict[str, str]:
    """The text of each given parameter, by name. Raises: as `check_parameters`."""
    known = {parameter.name: parameter for parameter in described.parameters}
    texts: dict[str, str] = {}
    for number, pair in enumerate(pairs):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if (
            number == 0
            and pair
            and key not in known
            and described.parameters
            and described.parameters[0].kind.bare
        ):
            key, equals, value = described.parameters[0].name, "=", pair
        if not equals or not key or not value:
            raise SpecError(
                f"parameters are key=value, joined by ':'; received '{pair}'; {_usage(described)}"
            )
        if key not in known:
            hint = name_hint("parameter", key, list(known))
            raise SpecError(f"{described.name} has no parameter '{key}'; {hint}{_usage(described)}")
        if key in texts:
            raise SpecError(
                f"{key} is given twice: {key}={texts[key]} and {key}={value}; leave one out"
            )
        texts[key] = value
    return texts


def _usage(described: Described[Any]) -> str:
    if not described.parameters:
        return f"{described.name} takes none"
    return f"{described.name} takes {' '.join(map(str, described.parameters))}"
