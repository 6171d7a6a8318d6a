"""What was decided about a job and what came of it, in words and as JSON records: `explain`, `-v`, `--dry-run`, `--json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from conv3d_cli.machine import format_bytes

if TYPE_CHECKING:
    from conv3d_cli.job import JobReport, PreparedJob
    from conv3d_cli.model.grid import Grid


def triple_text(values: Iterable[float]) -> str:
    """Three numbers with commas; one if they are the same.

    >>> triple_text((2, 2, 2)), triple_text((1, 0.5, 0.5))
    ('2', '1,0.5,0.5')
    """
    texts = [f"{v:.6g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


def pads_text(prepared: PreparedJob) -> str:
    """Resolved padding as `--padding` takes it."""
    problem = prepared.problem
    return ",".join(f"{lo}:{hi}" for lo, hi in zip(problem.pad_before, problem.pad_after, strict=True))


def grid_record(grid: Grid) -> dict[str, Any]:
    """A grid as JSON: spacing (D, H, W), unit, affine rows."""
    return {
        "spacing": None if grid.spacing is None else list(grid.spacing),
        "unit": grid.unit,
        "affine": None if grid.affine is None else grid.affine.tolist(),
    }


def plan_record(prepared: PreparedJob) -> dict[str, Any]:
    """Everything that was decided, as JSON."""
    job, problem, passage = prepared.job, prepared.problem, prepared.passage
    plan = passage.plan
    source = prepared.reader.header
    return {
        "input": job.source,
        "output": job.target,
        "kernel": prepared.kernel.name,
        "kernel_shape": list(prepared.kernel.weights.shape),
        "kind": "layer" if prepared.kernel.is_layer else "filter",
        "input_axes": source.axes.letters,
        "input_shape": list(source.axes.shape),
        "input_dtype": str(source.dtype),
        "output_axes": prepared.header.axes.letters,
        "output_shape": list(prepared.header.axes.shape),
        "output_dtype": str(prepared.header.dtype),
        "strides": list(problem.strides),
        "dilation_rate": list(problem.dilation_rate),
        "groups": problem.groups if prepared.kernel.is_layer else 1,
        "padding": [list(p) for p in zip(problem.pad_before, problem.pad_after, strict=True)],
        "boundary": str(problem.boundary),
        "activation": job.activation or "linear",
        "precision": job.precision,
        "grid_before": grid_record(source.grid),
        "grid_after": grid_record(prepared.header.grid),
        "voxel_offset": list(problem.voxel_transform.offset),
        "algorithm": plan.algorithm.name,
        "refused": dict(plan.refusals),
        "predicted_seconds": {name: seconds * len(passage.parts) for name, seconds in plan.seconds.items()},
        "flops": problem.flops,
        "bytes": plan.bytes_moved * len(passage.parts),
        "threads": plan.threads,
        "slab_depth": passage.slab_depth,
        "memory": prepared.memory,
        "notes": prepared.notes,
    }


def describe(prepared: PreparedJob) -> str:
    """Everything that was decided, in aligned lines."""
    record = plan_record(prepared)
    problem, kernel = prepared.problem, prepared.kernel
    before, after = prepared.reader.header.grid, prepared.header.grid
    kind = "a layer, over channels together" if kernel.is_layer else "a filter, over every channel and time point"
    seconds = record["predicted_seconds"][record["algorithm"]]
    named = record["output"] if record["output"] != record["input"] else f"as {prepared.header.format}"
    rows = [
        ("input", f"{record['input']}  {_shape(record, 'input')} {record['input_dtype']}"),
        ("kernel", f"{kernel.name}  {'x'.join(map(str, kernel.weights.shape))}, sum {kernel.sum:.6g}; {kind}"),
        ("padding", f"{pads_text(prepared)} (before:after along depth,height,width), boundary {record['boundary']}"),
        ("strides", f"{triple_text(problem.strides)}, dilation rate {triple_text(problem.dilation_rate)}, "
                    f"groups {record['groups']}"),
        ("output", f"{named}  {_shape(record, 'output')} {record['output_dtype']}"),
        ("grid", _grid_text(before, after, record["voxel_offset"])),
        ("algorithm", f"{record['algorithm']} ({prepared.passage.plan.algorithm.summary}), {record['precision']}"),
        *((f"  {name}", f"declined: {reason}") for name, reason in record["refused"].items()),
        ("work", f"{record['flops'] / 1e9:.3g} Gflop, {format_bytes(record['bytes'])} through memory, about {seconds:.2g} s "
                 f"on {record['threads']} threads"),
        ("memory", f"{format_bytes(record['memory'])} for the process, slabs of {record['slab_depth']} planes"),
        *(("note", note) for note in record["notes"]),
    ]  # fmt: skip
    if record["activation"] != "linear" or kernel.bias is not None:
        bias = "no bias" if kernel.bias is None else f"bias of {kernel.bias.size}"
        rows.insert(4, ("epilogue", f"{bias}, activation {record['activation']}"))
    return "\n".join(f"{name:<10} {text}" for name, text in rows)


def _shape(record: dict[str, Any], which: str) -> str:
    return f"{record[which + '_axes']} {'x'.join(map(str, record[which + '_shape']))}"


def _grid_text(before: Grid, after: Grid, offset: list[float]) -> str:
    moved = f"first voxel at input voxel {triple_text(offset)}" if any(offset) else "origin unchanged"
    if before.spacing is None or after.spacing is None:
        return f"no spacing; {moved}"
    return f"spacing {triple_text(before.spacing)} -> {triple_text(after.spacing)} {before.unit}; {moved}"


def run_record(report: JobReport) -> dict[str, Any]:
    """What was done, as JSON."""
    return {
        "input": report.source,
        "output": report.target,
        "voxels": report.voxels,
        "clipped": report.clipped,
        "seconds": round(report.seconds, 4),
        "read_seconds": round(report.read_seconds, 4),
        "compute_seconds": round(report.compute_seconds, 4),
        "write_seconds": round(report.write_seconds, 4),
        "notes": report.notes,
    }


def describe_run(report: JobReport) -> str:
    """What was done, in one line."""
    return (
        f"done       {report.voxels} voxels in {report.seconds:.2f} s; stages overlap: read {report.read_seconds:.2f}, "
        f"compute {report.compute_seconds:.2f}, write {report.write_seconds:.2f} s"
    )
