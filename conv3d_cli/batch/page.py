"""Makes the entry of one job on the page of `apply --report`."""

from __future__ import annotations

import os
from typing import Any

from conv3d_cli.batch.preview import Preview
from conv3d_cli.batch.results import JobResult
from conv3d_cli.pictures.page import Entry

# Columns of the page's table, and the keys of a job's record that fill them.
COLUMNS = {
    "seconds": "seconds",
    "read MB/s": "read_mb_per_s",
    "compute MB/s": "compute_mb_per_s",
    "write MB/s": "write_mb_per_s",
    "clipped": "clipped",
}


def page_entry(result: JobResult) -> Entry:
    """The page's entry for the result of one job."""
    job, record, preview = result.job, result.record, result.preview or Preview(result.job)
    row: dict[str, str] = {"input": _name(job.source), "output": _name(job.target)}
    row |= {column: _number(record.get(key)) for column, key in COLUMNS.items()}
    notes = record.get("notes", [])
    row["notes"] = str(len(notes)) if notes else ""
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


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
