"""Merges the command line, a config and a preset into the settings of one job.

The first of the three that sets a value wins. Values that none of them sets keep the defaults of
`Stage`, `Job` and `Missing`. `pipeline/make.py` makes the job from these settings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conv3d_cli.errors import SpecError, setting, words
from conv3d_cli.settings.config import Config, layer_settings, read_config
from conv3d_cli.settings.option import Place
from conv3d_cli.settings.options import OPTION, OPTIONS, SHORTHANDS, Settings, overlay
from conv3d_cli.settings.presets import Applied, find_preset
from conv3d_cli.system.machine import byte_size
from conv3d_cli.system.words import count_of

if TYPE_CHECKING:
    from conv3d_cli.network.graph import Network

# Options whose value may be JSON: a Keras object in its serialised form.
LAYER_VALUES = tuple(
    o for o in OPTIONS if o.name.endswith(("initializer", "regularizer", "constraint"))
)
# Settings of a config that belong to its kernel, and are dropped if another kernel is given.
_OF_KERNEL = ("kernel", *SHORTHANDS, "kernel_size", "filters", "bias", "files")


@dataclass(frozen=True)
class JobSettings:
    """All settings of a job but the names of its input and output.

    stages : tuple of Settings      one per convolution, in order, with its files read; none of a
                                    network
    run : Settings                  settings of the job and of missing voxels; its `files` are
                                    configs and manifests
    preset : Applied or None        which values a preset set, and which it did not
    given : frozenset of str        names of the options that were given, not read from a config
    network : Network or None       a model that is no chain of convolutions
    """

    stages: tuple[Settings, ...]
    run: Settings
    preset: Applied | None = None
    given: frozenset[str] = frozenset()
    network: Network | None = None

    @property
    def is_one(self) -> bool:
        """Whether there is one convolution and nothing else."""
        return len(self.stages) == 1


def merge_settings(given: Settings) -> JobSettings:
    """Merge given settings with the config and the preset that they name.

    Raises: SpecError, ConfigError, FormatError, UnknownNameError.

    >>> given = Settings(kernel="box:size=3", padding="full", like="fsl", threads=2)
    >>> merged = merge_settings(given)
    >>> merged.stages[0].given()
    {'kernel': 'box:size=3', 'padding': 'full', 'boundary': 'renormalize'}
    >>> merged.run.threads, str(merged.preset)
    (2, 'fsl: boundary renormalize; yours instead: padding full')
    """
    if given.weights and not given.config:
        raise SpecError(
            f"{setting('weights', given.weights)} is for a Keras model: pass its JSON, too, as "
            f"{setting('config', 'model.json')}; a kernel, or one trained layer, is passed as "
            f"{setting('kernel', given.weights)}"
        )
    config = (
        read_config(given.config, given.named_kernel is not None, given.weights)
        if given.config
        else Config()
    )
    stages = _stages(given, config)
    run = overlay(config.job, given.only(Place.JOB, Place.MISSING))
    if config.path:
        read = () if config.network is None else config.network.files
        run = replace(run, files=tuple(dict.fromkeys((config.path, *read))))
    if isinstance(run.max_memory, str):
        run = replace(run, max_memory=byte_size(run.max_memory))
    names = frozenset(given.given())
    if run.like is None:
        return JobSettings(stages, run, given=names, network=config.network)
    if len(stages) != 1:
        raise SpecError(
            f"{setting('like', run.like)} is for one convolution, received {_called(config)}; "
            "leave it out"
        )
    stage, run, applied = apply_preset(run.like.lower(), stages[0], run)
    return JobSettings((stage,), run, applied, names)


def apply_settings(given: Settings) -> JobSettings:
    """Merge as `merge_settings` does; with --to-fwhm, the kernel is chosen later.

    given : Settings        options given on the command line and in a manifest's row, or in Python
    Raises: as `merge_settings`; SpecError for --to-fwhm together with a kernel.
    """
    settings = merge_settings(given)
    if given.to_fwhm is not None:
        if not settings.is_one or settings.stages[0].kernel is not None:
            kernel = words("-k, --fwhm, --sigma", "the kernel, fwhm= and sigma=")
            raise SpecError(
                f"{setting('to_fwhm')} chooses the kernel; leave out {kernel} and a config's kernel"
            )
        settings = replace(settings, stages=(replace(settings.stages[0], kernel="identity"),))
    return settings


def _stages(given: Settings, config: Config) -> tuple[Settings, ...]:
    """Settings of each convolution: given values over those of the config.

    Raises: SpecError if options other than --seed are given for a stack; else as
    `layer_settings`.
    """
    own = given.only(Place.STAGE)
    if own.no_bias and own.bias is not None:
        raise SpecError(
            f"{setting('bias')} and {setting('no_bias', True)} contradict each other; leave one out"
        )
    if not own.no_bias:
        own = own.without("no_bias")
    names = own.given()
    if not names:
        return tuple(config.stages)
    if len(config.stages) != 1:
        if config.stages and own.seed is not None and len(names) == 1:
            # each layer of a stack draws other numbers from one seed
            return tuple(
                replace(stage, seed=own.seed + number) for number, stage in enumerate(config.stages)
            )
        flags = ", ".join(setting(o.name) for o in OPTIONS if o.name in names and o.name != "seed")
        raise SpecError(
            f"{flags or setting('seed')} cannot be given for {_called(config)}; "
            + (f"set it in the config {config.path}" if config.stages else "leave it out")
        )
    stage = config.stages[0]
    if own.named_kernel is not None and stage.kernel is not None:
        short = [name for name in SHORTHANDS if getattr(own, name) is not None]
        if short and not any(getattr(stage, name) is not None for name in SHORTHANDS):
            raise SpecError(
                f"{OPTION[short[0]].written} chooses a Gaussian, and config {config.path} has a "
                "kernel of its own; leave one of them out"
            )
        stage = stage.without(*_OF_KERNEL, "notes")
    if own.bias is not None:
        # a given bias is used even if the config says use_bias = false
        stage = stage.without("use_bias")
    parsed = {
        o.name: _layer_value(setting(o.name), names[o.name])
        for o in LAYER_VALUES
        if o.name in names
    }
    return (overlay(stage, layer_settings(replace(own, **parsed))),)


def _called(config: Config) -> str:
    """The convolutions of a config in messages."""
    if config.network is not None:
        return f"a network of {count_of(len(config.network.nodes), 'node')}"
    return f"a stack of {count_of(len(config.stages), 'layer')}"


def _layer_value(flag: str, value: Any) -> Any:
    """An initializer, regularizer or constraint: its name, or the dict that its JSON holds."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError as error:
            raise SpecError(
                f"{flag} must be a name or a JSON object, received {value!r} ({error})"
            ) from None
    return value


# --------------------------------------------------------------------------------------------------
# Presets


def apply_preset(name: str, stage: Settings, run: Settings) -> tuple[Settings, Settings, Applied]:
    """Fill in values from a preset; return the settings of convolution and job, and an account.

    A preset sets padding, boundary, --nan, the sampling of a Gaussian, and flip, normalize and
    kernel_spacing of a kernel file, each only if it is not given.
    Raises: UnknownNameError.

    >>> given = Settings(kernel="gaussian:fwhm=6mm", padding="valid")
    >>> stage, run, applied = apply_preset("fsl", given, Settings())
    >>> stage.kernel, stage.padding, stage.boundary
    ('gaussian:fwhm=6mm:sampling=fsl', 'valid', 'renormalize')
    >>> applied.yours
    {'padding': 'valid'}
    """
    preset = find_preset(name)
    kernel = stage.kernel
    wishes: dict[str, Any] = {"padding": preset.padding, "boundary": preset.boundary}
    remark = ""
    missing = run.mask is not None or run.missing is not None or run.nan == "ignore"
    if preset.boundary == "renormalize-depth" and missing and stage.boundary is None:
        wishes["boundary"] = "renormalize"
        remark = "with a mask, edges are renormalized along all axes"
    builtin = _is_builtin(kernel)
    if not builtin:
        # none of these tools reads the spacing in a kernel file
        wishes |= {"flip": preset.flip, "normalize": preset.normalize, "kernel_spacing": "ignore"}
    given = stage.given()
    yours = {key: given[key] for key, value in wishes.items() if given.get(key, value) != value}
    added = {key: value for key, value in wishes.items() if key not in given}
    settings = {key: value for key, value in added.items() if value is not False}
    parameters = _gaussian_parameters(kernel)
    if builtin and preset.sampling != "scipy" and parameters is not None:
        kept = {key: value for key, value in parameters.items() if key in ("truncate", "sampling")}
        yours |= kept
        if not kept:
            settings["sampling"] = preset.sampling
            added["kernel"] = f"{kernel}:sampling={preset.sampling}"
    if run.nan is not None:
        if run.nan != preset.nan:
            yours["nan"] = run.nan
    elif preset.nan != "propagate" and run.missing is None:
        settings["nan"] = preset.nan
        run = replace(run, nan=preset.nan)
    if not preset.gaussian and parameters is not None:
        remark = f"{name} has no Gaussian and no mm; this one is sampled as conv3d samples it"
    return replace(stage, **added), run, Applied(name, settings, yours, remark)


def _is_builtin(kernel: Any) -> bool:
    from conv3d_cli.kernels import is_builtin  # late: it imports NumPy, which --help does without

    return isinstance(kernel, str) and is_builtin(kernel)


def _gaussian_parameters(kernel: Any) -> dict[str, str] | None:
    """Parameters of a `gaussian:...` kernel as they are written; None for another kernel."""
    if not isinstance(kernel, str):
        return None
    name, *pairs = (part.strip() for part in kernel.split(":"))
    if name != "gaussian":
        return None
    split = (pair.partition("=") for pair in pairs)
    return {key.strip(): value.strip() for key, _, value in split}
