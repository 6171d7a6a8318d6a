"""Makes the entry of one job on the page of `apply --report`."""

from __future__ import annotations

import os
from typing import Any

from conv3d_cli.batch.preview import Preview
from conv3d_cli.batch.report import fwhm_text
from conv3d_cli.batch.results import JobResult
from conv3d_cli.pictures.page import Entry


def page_entry(result: JobResult) -> Entry:
    """The page's entry for the result of one job."""
    job, record, preview = result.job, result.record, result.preview or Preview(result.job)
    row: dict[str, str] = {"input": _name(job.source), "output": _name(job.target)}
    row |= _result_columns(record)
    notes = record.get("notes", [])
    row["notes"] = str(len(notes)) if notes else ""
    row["seconds"] = f"{record['seconds']:.2f}" if "seconds" in record else ""
    return Entry(
        title=f"{job.source} → {job.target}",
        status=result.status,
        row=row,
        decided=preview.decided,
        done=preview.done,
        notes=[*notes, *preview.notes, *([result.remark] if result.status == "skipped" else [])],
        error=record.get("error", ""),
        before=preview.before,
        after=preview.after,
        same_window=preview.same_window,
    )


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or path


def _result_columns(record: dict[str, Any]) -> dict[str, str]:
    """Columns on the result: FWHM of the kernel, mean and range before and after, clipped values.

    Mean and range are those of all voxels, and of those in the mask. Columns for what the record
    does not hold are empty.
    """
    found = record.get("statistics") or {}
    row = {"FWHM": fwhm_text(record)}
    for where in ("", "_in_mask"):
        for side in ("before", "after"):
            values, name = found.get(f"{side}{where}", {}), f"{side}{where}".replace("_", " ")
            row[f"mean {name}"] = _number(values.get("mean"))
            ends = [values.get("minimum"), values.get("maximum")]
            row[f"range {name}"] = "" if None in ends else " to ".join(map(_number, ends))
    clipped = record.get("clipped")
    row["clipped"] = "" if clipped is None else f"{clipped:,}"
    return row


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
