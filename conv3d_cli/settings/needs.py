"""What options need to have an effect: one that was given and cannot have any is refused.

`NEEDS` is for what the settings alone tell. What only the files tell, such as axes or a bias, is
looked at in `pipeline/unused.py`, which writes notes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conv3d_cli.errors import SpecError, named
from conv3d_cli.settings.merge import JobSettings
from conv3d_cli.settings.options import Settings


@dataclass(frozen=True)
class Need:
    """What some options need.

    options : tuple of str      names of the options
    met : callable              (settings of the job, of one convolution) -> bool: they may have an
                                effect on it
    purpose : str               "it is for PURPOSE", in messages
    """

    options: tuple[str, ...]
    met: Callable[[JobSettings, Settings], bool]
    purpose: str


def _is_drawn(job: JobSettings, stage: Settings) -> bool:
    return stage.kernel is None


def _draws_bias(job: JobSettings, stage: Settings) -> bool:
    return stage.kernel is None and stage.bias is None and stage.use_bias is not False


def _is_read(job: JobSettings, stage: Settings) -> bool:
    from conv3d_cli.kernels import is_builtin  # late: it imports NumPy, which --help does without

    kernel: Any = stage.kernel
    return kernel is not None and not (isinstance(kernel, str) and is_builtin(kernel))


def _takes_means(job: JobSettings, stage: Settings) -> bool:
    run = job.run
    return (
        run.mask is not None
        or run.missing is not None
        or run.nan == "ignore"
        or str(stage.boundary).lower().startswith("renormalize")
    )


NEEDS: tuple[Need, ...] = (
    Need(("seed", "kernel_initializer"), _is_drawn, "a kernel drawn by its initializer"),
    Need(("bias_initializer",), _draws_bias, "a bias drawn by its initializer"),
    Need(("kernel_spacing",), _is_read, "kernels from files"),
    Need(("crop_kernel",), lambda job, stage: stage.kernel is not None, "kernels that are given"),
    Need(
        ("min_coverage",),
        _takes_means,
        "means: of a mask, of missing voxels, or at a boundary that renormalizes",
    ),
    Need(
        ("levels_by",),
        lambda job, stage: (job.run.levels or 1) > 1,
        "levels of resolution after the first, and this output has one",
    ),
    Need(("overlap", "blend"), lambda job, stage: job.run.patch is not None, "patches"),
)


def no_effect(name: str, why: str) -> str:
    """The words on an option that was given and changes nothing.

    >>> no_effect("seed", "it is for a kernel drawn by its initializer")
    'seed has no effect: it is for a kernel drawn by its initializer'
    """
    return f"{named(name)} has no effect: {why}"


def check_needs(job: JobSettings) -> None:
    """Refuse settings with an option that was given and cannot have an effect.

    Raises: SpecError.

    >>> from conv3d_cli.settings.merge import merge_settings
    >>> check_needs(merge_settings(Settings(kernel="box:size=3", seed=1)))
    Traceback (most recent call last):
        ...
    conv3d_cli.errors.SpecError: seed has no effect: it is for a kernel drawn by its initializer; \
leave it out
    """
    stages = job.stages or (Settings(),)  # a network has none, and its job has settings
    for need in NEEDS:
        for name in need.options:
            if name in job.given and not any(need.met(job, stage) for stage in stages):
                raise SpecError(f"{no_effect(name, f'it is for {need.purpose}')}; leave it out")
