"""Notes on options that were given and change nothing, as only the volume or its kernel tell.

`settings/needs.py` refuses those of which the settings alone tell it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conv3d_cli.convolution.assemble import ResolvedConvolution
from conv3d_cli.formats import open_volume, takes_gz_level
from conv3d_cli.formats.zarr.names import is_url
from conv3d_cli.layer import get_activation
from conv3d_cli.model.volume import VolumeHeader
from conv3d_cli.pipeline.request import Job, Stage
from conv3d_cli.settings.needs import no_effect


def unused_notes(job: Job, source: VolumeHeader, chain: Sequence[ResolvedConvolution]) -> list[str]:
    """A note for every option that was given and has no effect on this volume.

    source : VolumeHeader       of the input
    chain : sequence            its convolutions
    """
    return [
        no_effect(name, why)
        for name, reason in _REASONS.items()
        if name in job.given and (why := reason(job, source, chain))
    ]


def _idle_boundary(job: Job, source: VolumeHeader, chain: Sequence[ResolvedConvolution]) -> str:
    problems = [resolved.problem for resolved in chain]
    if job.operation is not None:  # whose steps have edges, too
        return ""
    if any(any(p.pad_before) or any(p.pad_after) for p in problems):
        return ""
    return "the kernel reaches no voxel beyond the edges"


def _idle_data_format(job: Job, source: VolumeHeader, chain: Sequence[ResolvedConvolution]) -> str:
    convolutions = [stage for stage in job.given_stages if isinstance(stage, Stage)]
    activations = [get_activation(one) for stage in convolutions for one in stage.activations]
    if any(activation.kind == "axis" for activation in activations) or job.source == "-":
        return ""
    if job.axes is None:
        other = not job.channels_first
        with open_volume(job.source, channels_first=other) as reader:
            if reader.header.axes.letters != source.axes.letters:
                return ""
    return f"the axes are known to be {source.axes.letters}"


def _idle_gz_level(job: Job, source: VolumeHeader, chain: Sequence[ResolvedConvolution]) -> str:
    if any(takes_gz_level(output.path, job.compression) for output in job.outputs):
        return ""
    return f"{job.target} is not packed by gzip or deflate"


def _idle_timeout(job: Job, source: VolumeHeader, chain: Sequence[ResolvedConvolution]) -> str:
    paths = [job.source, job.missing.mask or "", *(output.path for output in job.outputs)]
    return "" if any(map(is_url, paths)) else "no server is asked"


_REASONS: dict[str, Callable[[Job, VolumeHeader, Sequence[ResolvedConvolution]], str]] = {
    "boundary": _idle_boundary,
    "data_format": _idle_data_format,
    "gz_level": _idle_gz_level,
    "timeout": _idle_timeout,
}
"""Why an option has no effect on a volume; "" if it may have one."""
