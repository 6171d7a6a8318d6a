"""Reports plans and results of jobs, in words and as JSON records.

`explain`, `-v`, `--dry-run` and `--json` print them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from conv3d_cli.convolution.copying import Copy
from conv3d_cli.model.box import Size
from conv3d_cli.model.grid import triple_text
from conv3d_cli.model.missing import NOTHING, Missing
from conv3d_cli.pipeline.outputs import ROLES, role_of
from conv3d_cli.pipeline.prepare import PreparedPatches, PreparedStage
from conv3d_cli.pipeline.request import stage_names
from conv3d_cli.pipeline.run import JobReport, KernelFwhm, kernel_fwhm
from conv3d_cli.system.machine import format_bytes
from conv3d_cli.system.words import count_of, percent

if TYPE_CHECKING:
    from conv3d_cli.cluster.forecast import Forecast
    from conv3d_cli.model.grid import Grid
    from conv3d_cli.pipeline.blocking import Boxes
    from conv3d_cli.pipeline.prepare import PreparedJob, PreparedStep
    from conv3d_cli.pipeline.statistics import Values


def grid_record(grid: Grid) -> dict[str, Any]:
    """A grid as JSON: spacing (D, H, W), unit, and the rows of the affine."""
    return {
        "spacing": None if grid.spacing is None else list(grid.spacing),
        "unit": grid.unit,
        "affine": None if grid.affine is None else grid.affine.tolist(),
    }


def stage_record(stage: PreparedStage, parts: int, at_once: Size) -> dict[str, Any]:
    """The plan of one convolution as JSON.

    parts : int     how many times it runs: once for each part of the volume
    at_once : Size  outputs of a slab or of a box, which the threads share
    """
    from conv3d_cli.engine.cpu import cpu_class

    problem, plan, kernel = stage.problem, stage.plan, stage.kernel
    at_once = Size(*map(min, at_once, problem.out_size))
    sharing = stage.convolution.sharing(at_once)
    return {
        "kernel": kernel.name,
        "kernel_shape": list(kernel.weights.shape),
        "kernel_sum": kernel.sum,
        "kind": "layer" if kernel.is_layer else "bank" if kernel.is_bank else "filter",
        "filters": list(kernel.filter_names) or None,
        "built": kernel.built or None,
        "magnitude": stage.stage.magnitude,
        "bias": None if kernel.bias is None else kernel.bias.size,
        "strides": list(problem.strides),
        "dilation_rate": list(problem.dilation_rate),
        "groups": problem.groups if kernel.is_layer else 1,
        "padding": [list(p) for p in zip(problem.pad_before, problem.pad_after, strict=True)],
        "boundary": str(problem.boundary),
        "activation": " then ".join(a.name for a in stage.convolution.activations) or "linear",
        "algorithm": plan.algorithm.name,
        "refused": dict(plan.refusals),
        "predicted_seconds": {name: seconds * parts for name, seconds in plan.seconds.items()},
        "flops": problem.flops,
        "bytes": plan.bytes_moved * parts,
        "limit": cpu_class().limit_seconds(problem.flops, plan.bytes_moved * parts, plan.threads),
        "scratch": plan.scratch_for(at_once),
        "tasks": sharing.tasks,
        "threads_at_work": sharing.at_work,
        "idle": round(sharing.idle, 4),
        "speedup": round(sharing.speedup, 2),
        "losses": stage.losses,
    }


def step_record(stage: PreparedStep) -> dict[str, Any]:
    """An operation other than a convolution as JSON."""
    node, operation = stage.step.node, stage.operation
    return {
        "operation": node.operation,
        "arguments": json.loads(json.dumps(dict(node.attributes), default=str)),
        "weights": {name: list(array.shape) for name, array in node.weights.items()},
        "output_size": list(operation.shape.size),
        "output_channels": operation.shape.channels,
        "needs_whole": operation.needs_whole,
    }


def patches_record(patches: PreparedPatches, parts: int) -> dict[str, Any]:
    """Patches, and the stages of each, as JSON.

    parts : int     see `stage_record`
    """
    layout = patches.layout
    return {
        "operation": patches.step.node.operation,
        "arguments": {
            "patch": list(layout.patch),
            "overlap": list(layout.overlap),
            "blend": layout.blend,
        },
        "weights": {},
        "output_size": list(layout.size),
        "output_channels": patches.node.channels,
        "needs_whole": False,
        "patches": layout.count,
        "on_disk": patches.body.on_disk,
        "layers": _stage_records(patches.inner, parts * layout.count),
    }


def _stage_records(prepared: PreparedJob, parts: int) -> list[dict[str, Any]]:
    """The stages of a job, or of a patch, as JSON.

    parts : int     see `stage_record`; the last convolution may have more
    """
    at_once, last = prepared.computed_at_once, prepared.stages[-1]
    stages = []
    for stage in prepared.stages:
        if isinstance(stage, PreparedStage):
            more = len(prepared.stream_plan.parts) // max(1, prepared.reader.header.shape[0])
            runs = parts * more if stage is last else parts
            stages.append(stage_record(stage, runs, at_once))
        elif isinstance(stage, PreparedPatches):
            stages.append(patches_record(stage, parts))
        else:
            stages.append(step_record(stage))
    if not prepared.job.is_chain:
        names = stage_names(prepared.job)
        for name, stage, found in zip(names, prepared.stages, stages, strict=True):
            found["name"] = name
            found["inputs"] = [names[n] if n >= 0 else "volume" for n in stage.inputs]
    return stages


def plan_record(prepared: PreparedJob) -> dict[str, Any]:
    """The plan of a job as JSON.

    The facts of a single convolution are keys of the record; those of a stack are in `layers`.
    """
    job, source = prepared.job, prepared.reader.header
    stages = _stage_records(prepared, source.shape[0])
    return {
        "input": job.source,
        "output": job.target,
        "input_axes": source.axes.letters,
        "input_shape": list(source.axes.shape),
        "input_dtype": str(source.dtype),
        "output_axes": prepared.header.axes.letters,
        "output_shape": list(prepared.header.axes.shape),
        "output_dtype": str(prepared.header.dtype),
        "operation": job.operation,
        "preset": None if job.preset is None else asdict(job.preset),
        **(stages[0] if len(stages) == 1 else {"layers": stages}),
        **fwhm_record(kernel_fwhm(prepared)),
        "precision": job.precision,
        "grid_before": grid_record(source.grid),
        "grid_after": grid_record(prepared.header.grid),
        "voxel_offset": list(prepared.header.transform.offset),
        "missing": asdict(job.missing) if job.missing != NOTHING else None,
        **{role: job.path_of(role) for role in ROLES},
        "estimates": [one.path for one in job.beside if role_of(one.role).iteration],
        "threads": prepared.threads,
        "passes": prepared.passes,
        "slab_depth": prepared.stream_plan.slab_depth,
        "boxes": None if prepared.boxes is None else _boxes_record(prepared.boxes),
        "memory": prepared.memory,
        "memory_terms": dict(prepared.memory_use.terms),
        "notes": prepared.notes,
    }


def fwhm_record(fwhm: KernelFwhm | None) -> dict[str, Any]:
    """The FWHM of a job's kernel as JSON: lengths along D, H, W, and their unit."""
    if fwhm is None:
        return {"kernel_fwhm": None, "kernel_fwhm_unit": None}
    return {"kernel_fwhm": list(fwhm.lengths), "kernel_fwhm_unit": fwhm.unit}


def fwhm_text(record: dict[str, Any]) -> str:
    """The FWHM in a record of `fwhm_record`, for a table; "" without one.

    >>> fwhm_text({"kernel_fwhm": [6.0, 6.0, None], "kernel_fwhm_unit": "mm"})
    '6,6,- mm'
    """
    lengths = record.get("kernel_fwhm")
    return str(KernelFwhm(tuple(lengths), record["kernel_fwhm_unit"])) if lengths else ""


def table_columns(record: dict[str, Any]) -> dict[str, str]:
    """What the table of a batch tells of a job's values: texts by the heads of their columns.

    FWHM and mean are there if the run counted them (-v), clipped values if there are any. With a
    mask, the mean is that of the voxels in it.

    >>> table_columns({"clipped": 1200, "kernel_fwhm": [6, 6, 6], "kernel_fwhm_unit": "mm"})
    {'FWHM': '6 mm', 'clipped': '1,200'}
    """
    found = record.get("statistics") or {}
    where = "_in_mask" if "before_in_mask" in found else ""
    means = [found.get(f"{side}{where}", {}).get("mean") for side in ("before", "after")]
    columns = {
        "FWHM": fwhm_text(record),
        "mean" + where.replace("_", " "): ""
        if None in means
        else " -> ".join(f"{mean:.6g}" for mean in means),
        "clipped": f"{record['clipped']:,}" if record.get("clipped") else "",
    }
    return {head: text for head, text in columns.items() if text}


def _boxes_record(boxes: Boxes) -> dict[str, Any]:
    partition, repeated = boxes
    return {
        "count": partition.count,
        "block": list(partition.block),
        "decoded": round(repeated.decoded, 4),
        "computed": round(repeated.computed, 4),
    }


def describe(prepared: PreparedJob) -> str:
    """The plan of a job in aligned lines: what it does, then how it is computed."""
    record = plan_record(prepared)
    layers, depth = record.get("layers", [record]), record["slab_depth"]
    before, after = prepared.reader.header.grid, prepared.header.grid
    named = (
        record["output"] if record["output"] != record["input"] else f"as {prepared.header.format}"
    )
    rows = [("input", f"{record['input']}  {_shape(record, 'input')} {record['input_dtype']}")]
    rows += [] if prepared.job.preset is None else [("like", str(prepared.job.preset))]
    rows += [] if prepared.job.operation is None else [("operation", prepared.job.operation)]
    more, planned = _stage_rows(prepared, layers, record, kernel_fwhm(prepared))
    rows += more
    rows += [("missing", text) for text in _missing_words(prepared.job.missing)]
    rows += [
        ("output", f"{named}  {_shape(record, 'output')} {record['output_dtype']}"),
        ("grid", _grid_text(before, after, record["voxel_offset"])),
        *(("note", note) for note in record["notes"]),
        *planned,
    ]
    if not prepared.job.on_cluster:
        rows += [("memory", _memory_text(record, depth)), ("", str(prepared.memory_use))]
    return aligned(rows)


def _stage_rows(
    prepared: PreparedJob,
    layers: list[dict[str, Any]],
    record: dict[str, Any],
    fwhm: KernelFwhm | None = None,
    within: str = "",
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What the stages of a job, or of a patch, do; and how the convolutions are computed.

    layers : list       records of the stages
    record : dict       of the job
    within : str        before the numbers of the stages: those of a patch
    """
    rows: list[tuple[str, str]] = []
    planned: list[tuple[str, str]] = []
    for number, (layer, stage) in enumerate(zip(layers, prepared.stages, strict=True)):
        heading = (f"layer {within}{number + 1}", _heading(prepared, number))
        if len(layers) > 1:
            rows.append(heading)
        if isinstance(stage, PreparedPatches):
            rows.append(("operation", _patches_text(layer)))
            inner = _stage_rows(stage.inner, layer["layers"], record, within=f"{number + 1}.")
            rows, planned = rows + inner[0], planned + inner[1]
            continue
        if not isinstance(stage, PreparedStage):
            rows.append(("operation", _step_text(layer)))
            continue
        if len(layers) > 1:
            planned.append(heading)
        rows += _layer_rows(layer, fwhm)
        if not isinstance(stage.convolution, Copy):  # which no algorithm computes
            planned += _plan_rows(layer, stage, record, prepared.job.on_cluster)
    return rows, planned


def _patches_text(layer: dict[str, Any]) -> str:
    """Patches in words."""
    given = layer["arguments"]
    size, overlap = "x".join(map(str, given["patch"])), triple_text(given["overlap"])
    waits = "; what they share waits in temporary files" if layer["on_disk"] else ""
    return (
        f"{count_of(layer['patches'], 'patch', 'patches')} of {size} voxels, overlap {overlap}, "
        f"blended by {given['blend']} weights{waits}"
    )


def _heading(prepared: PreparedJob, number: int) -> str:
    """The name of a stage of several, and what it takes where that is not the one before."""
    name = prepared.job.stages[number].name or ""
    if prepared.job.is_chain:
        return name
    names = stage_names(prepared.job)
    taken = [names[n] if n >= 0 else "the volume" for n in prepared.stages[number].inputs]
    return f"{name and f'{name}, '}of {', '.join(taken)}"


# arguments that are not told: how phases are interleaved is of no use to people
_UNTOLD = ("added", "phases")
# arguments whose numbers are not along depth, height, width
_NO_SIZES = ("channels", "dims", "target_shape")


def _step_text(layer: dict[str, Any]) -> str:
    """An operation in words."""
    arguments = ", ".join(
        f"{key} {_argument_text(value, key not in _NO_SIZES)}"
        for key, value in layer["arguments"].items()
        if key not in _UNTOLD
    )
    size = "x".join(map(str, layer["output_size"]))
    whole = "; it needs the whole volume" if layer["needs_whole"] else ""
    shape = f"{size} with {count_of(layer['output_channels'], 'channel')}"
    return f"{layer['operation']}{arguments and f'  {arguments}'} -> {shape}{whole}"


def _argument_text(value: Any, is_size: bool) -> str:
    """A value of an operation's argument; of a list for many channels the beginning.

    is_size : bool      three whole numbers are along D, H, W, and written as by --strides
    """
    if not isinstance(value, list):
        return str(value)
    if is_size and len(value) == 3 and all(isinstance(n, int) for n in value):
        return triple_text(value)
    return f"[{', '.join(map(str, value[:4]))}{', ...' if len(value) > 4 else ''}]"


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Lines of names and texts; the texts begin in one column."""
    return "\n".join(f"{name:<10} {text}".rstrip() for name, text in rows)


def _missing_words(missing: Missing) -> list[str]:
    """How missing voxels are treated, in one line; no line if they need no treatment."""
    words = []
    if missing.mask is not None:
        outside = {
            "clip": "0 outside",
            "extend": "means outside, too",
            "keep": "input voxels outside",
        }
        regions = "regions of " if missing.labels else "weights from "
        words.append(f"{regions}{missing.mask}, {outside[missing.mask_mode]}")
    if missing.nan != "propagate":
        treatments = {"ignore": "NaN left out", "zero": "NaN taken as 0", "error": "NaN refused"}
        words.append(treatments[missing.nan])
    if missing.value is not None:
        words.append(f"{missing.value:g} left out")
    if not words:
        return []
    words.append(f"means need at least {missing.min_coverage:g} of the kernel's weight")
    return ["; ".join(words)]


def _memory_text(record: dict[str, Any], depth: int) -> str:
    total, boxes = f"{format_bytes(record['memory'])} for the process", record["boxes"]
    if boxes is None:
        return f"{total}, slabs of {count_of(depth, 'plane')}"
    block = "x".join(map(str, boxes["block"]))
    return (
        f"{total}, boxes of {block} voxels (whole planes are too large): "
        f"each voxel is read {boxes['decoded']:.3g} times "
        f"and computed {boxes['computed']:.3g} times"
    )


def _layer_rows(layer: dict[str, Any], fwhm: KernelFwhm | None) -> list[tuple[str, str]]:
    """What one convolution does: pairs (name, text)."""
    filters = ", ".join(layer["filters"] or ())
    kind = {
        "layer": "a layer, which mixes channels",
        "filter": "a filter, applied to every channel and time point",
        "bank": f"filters {filters}, each applied to every channel and time point",
    }[layer["kind"]]
    shape = "x".join(map(str, layer["kernel_shape"]))
    pads = ",".join(f"{lo}:{hi}" for lo, hi in layer["padding"])
    strides, dilation = triple_text(layer["strides"]), triple_text(layer["dilation_rate"])
    rows = [
        ("kernel", f"{layer['kernel']}  {shape}, sum {layer['kernel_sum']:.6g}; {kind}"),
        *(
            []
            if fwhm is None
            else [("fwhm", f"{fwhm} (depth,height,width), measured on the kernel's samples")]
        ),
        (
            "padding",
            f"{pads} (before:after along depth,height,width), boundary {layer['boundary']}",
        ),
        ("strides", f"{strides}, dilation rate {dilation}, groups {layer['groups']}"),
    ]
    rows += [("built", layer["built"])] if layer["built"] else []
    if layer["activation"] != "linear" or layer["bias"] is not None or layer["magnitude"]:
        bias = "no bias" if layer["bias"] is None else f"bias of {count_of(layer['bias'], 'value')}"
        magnitude = ", magnitude of the filters" if layer["magnitude"] else ""
        rows.append(("epilogue", f"{bias}{magnitude}, activation {layer['activation']}"))
    rows += [(f"{name} loss", f"{value:.9g}") for name, value in layer["losses"].items()]
    return rows


def _threads_text(layer: dict[str, Any], record: dict[str, Any]) -> str:
    """How the threads share a slab or a box."""
    threads, at_work = record["threads"], layer["threads_at_work"]
    of_these = "" if threads == at_work else f" of {threads}"
    piece = "slab" if record["boxes"] is None else "box"
    text = f"{at_work}{of_these} at work, on {count_of(layer['tasks'], 'task')} of a {piece}"
    if threads == 1:
        return text
    return (
        f"{text}; predicted {layer['speedup']:.3g} times as fast as one thread, "
        f"idle {percent(layer['idle'])} of the time"
    )


def _plan_rows(
    layer: dict[str, Any], stage: PreparedStage, record: dict[str, Any], on_cluster: bool
) -> list[tuple[str, str]]:
    """How one convolution is computed: pairs (name, text)."""
    seconds = layer["predicted_seconds"][layer["algorithm"]]
    others = {name: s for name, s in layer["predicted_seconds"].items() if s != seconds}
    algorithm = stage.plan.algorithm.summary
    rows = [("algorithm", f"{layer['algorithm']} ({algorithm}), {record['precision']}")]
    rows += [(f"  {name}", f"declined: {reason}") for name, reason in layer["refused"].items()]
    if stage.plan.prepared.spreads_nonfinite:
        rows.append(("  nonfinite", "direct computes steps with NaN or infinity again"))
    rows += [(f"  {name}", f"about {time:.2g} s") for name, time in others.items()]
    work = (
        f"{layer['flops'] / 1e9:.3g} Gflop as a direct sum",
        f"{format_bytes(layer['bytes'])} through memory",
        f"about {seconds * record['threads'] / layer['speedup']:.2g} s",
        f"{format_bytes(layer['scratch'])} of scratch",
    )
    rows.append(("work", ", ".join(work)))
    if not on_cluster:
        rows.append(("threads", _threads_text(layer, record)))
    if layer["limit"] is not None:
        least, bound = layer["limit"]
        limit = f"a direct sum takes at least {least:.2g} s on a CPU of this kind; {bound} binds"
        rows.append(("limit", limit))
    return rows


def _shape(record: dict[str, Any], which: str) -> str:
    return f"{record[which + '_axes']} {'x'.join(map(str, record[which + '_shape']))}"


def _grid_text(before: Grid, after: Grid, offset: list[float]) -> str:
    moved = (
        f"first voxel at input voxel {triple_text(offset)}" if any(offset) else "origin unchanged"
    )
    if before.spacing is None or after.spacing is None:
        return f"no spacing; {moved}"
    return f"spacing {triple_text(before.spacing)} -> {after.spacing_words}; {moved}"


def describe_forecast(forecast: Forecast) -> str:
    """The forecast of a job on a cluster, in aligned lines."""
    block, chunk = (
        "x".join(map(str, sizes)) for sizes in (forecast.partition.block, forecast.partition.chunk)
    )
    each = forecast.threads // forecast.workers
    rates = forecast.rates
    rows = [
        (
            "cluster",
            f"{count_of(forecast.workers, 'worker')} with {count_of(each, 'thread')} each: "
            f"{count_of(forecast.tasks, 'task')} of {block} voxels, whole chunks of {chunk}",
        ),
        (
            "reads",
            f"{format_bytes(int(forecast.bytes_read))} for {format_bytes(forecast.bytes_in)} of "
            f"voxels ({forecast.bytes_read / max(1, forecast.bytes_in):.2f} x: halos, whole "
            f"chunks), {format_bytes(int(rates.read))}/s per thread",
        ),
        (
            "computes",
            f"{forecast.computed:.2f} voxels for each output voxel, "
            f"{1e-6 / rates.voxel_seconds:.3g} Mvoxel/s per thread",
        ),
        (
            "writes",
            f"{format_bytes(forecast.bytes_out)}, {format_bytes(int(rates.write))}/s per thread",
        ),
        (
            "takes",
            f"read {_time(forecast.read_seconds)} + compute {_time(forecast.compute_seconds)} + "
            f"write {_time(forecast.write_seconds)}, summed over threads: "
            f"about {_time(forecast.seconds)} on the cluster",
        ),
    ]
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def _time(seconds: float) -> str:
    """A time in seconds, minutes or hours.

    >>> _time(3.14159), _time(4000), _time(200000)
    ('3.1 s', '67 min', '56 h')
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def stages_of(report: JobReport) -> dict[str, tuple[float, int]]:
    """Seconds and bytes of voxels of each stage of a run: reading, computing, writing.

    Reading counts the input's voxels, computing and writing count the output's.
    """
    return {
        "read": (report.read_seconds, report.bytes_in),
        "compute": (report.compute_seconds, report.bytes_out),
        "write": (report.write_seconds, report.bytes_out),
    }


def run_record(report: JobReport) -> dict[str, Any]:
    """The result of a run as JSON: voxels, losses, notes, and each stage's seconds and rate.

    Rates are in megabytes (1e6 bytes) of unpacked voxels per second.
    """
    stages: dict[str, Any] = {}
    for name, (seconds, count) in stages_of(report).items():
        stages[f"{name}_seconds"] = round(seconds, 4)
        stages[f"{name}_mb_per_s"] = round(count / 1e6 / seconds, 1) if seconds > 0 else None
    return {
        "input": report.source,
        "output": report.target,
        "voxels": report.voxels,
        "clipped": report.clipped,
        "seconds": round(report.seconds, 4),
        **stages,
        "losses": report.losses,
        **fwhm_record(report.fwhm),
        "statistics": None if report.statistics is None else report.statistics.record(),
        "checks": None if report.checks is None else report.checks.record(),
        "notes": report.notes,
    }


def describe_run(report: JobReport) -> str:
    """The result of a run in aligned lines: values before and after, losses, times."""
    rows = _result_rows(report)
    rows += [("loss", f"{name} {value:.9g}") for name, value in report.losses.items()]
    stages = ", ".join(
        f"{name} {seconds:.2f} s" + (f" ({count / 1e6 / seconds:.0f} MB/s)" if seconds > 0 else "")
        for name, (seconds, count) in stages_of(report).items()
    )
    rows += [] if report.checks is None else [("checked", report.checks.words())]
    done = f"{count_of(report.voxels, 'voxel')} in {report.seconds:.2f} s"
    return aligned([*rows, ("done", f"{done}; stages overlap: {stages}")])


def _result_rows(report: JobReport) -> list[tuple[str, str]]:
    """FWHM, mean and range before and after, and clipped values: pairs (name, text)."""
    found = report.statistics
    if found is None:
        return []
    rows = (
        []
        if report.fwhm is None
        else [("fwhm", f"{report.fwhm}, measured on the kernel's samples")]
    )
    for name, values, inside in (
        ("before", found.before, found.before_in_mask),
        ("after", found.after, found.after_in_mask),
    ):
        if values is not None:
            rows.append((name, values_text(values)))
        if inside is not None:
            rows.append(("", f"in the mask: {values_text(inside)}"))
    if report.clipped:
        part = percent(report.clipped, report.voxels)
        rows.append(("clipped", f"{count_of(report.clipped, 'voxel')} ({part})"))
    return rows


def values_text(values: Values) -> str:
    """Mean and range of values in words.

    >>> from conv3d_cli.pipeline.statistics import Values
    >>> values_text(Values(2, 3.0, -1.0, 4.0, not_finite=1)), values_text(Values())
    ('mean 1.5, range -1 to 4; 1 value not finite', 'no finite value')
    """
    words = "no finite value"
    if values.mean is not None:
        words = f"mean {values.mean:.6g}, range {values.low:.6g} to {values.high:.6g}"
    odd = f"; {count_of(values.not_finite, 'value')} not finite" if values.not_finite else ""
    return words + odd
