"""A run of the bench as a record (JSON), as lines of a table, and as Markdown for the benchmarks."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conv3d_cli.bench.limits import Limits
from conv3d_cli.bench.peers import installed
from conv3d_cli.bench.run import Measured, measured_of_record
from conv3d_cli.errors import FormatError

COLUMNS = (
    "case",
    "ms",
    "call",
    "% limit",
    "GFLOP/s",
    "plan",
    "strongest peer",
    "its ms",
    "ratio",
    "error",
)


@dataclass
class BenchReport:
    """What was measured, where and when.

    limits : list           for one thread and for as many as the cases ran on: the best of the run (each case has its own)
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    limits: list[Limits]
    cases: list[Measured] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "limits": [limits.record() for limits in self.limits],
            "cases": [case.record() for case in self.cases],
        }

    def add(self, measured: Measured) -> None:
        """Add a case; its limits count for the machine's if they are better."""
        self.cases.append(measured)
        if measured.limits.threads == self.used.threads:
            self.limits[-1] = self.used.better(measured.limits)

    @property
    def used(self) -> Limits:
        """The limits of as many threads as the cases ran on."""
        return self.limits[-1]


def new_report(limits: list[Limits], kept_memory: bool) -> BenchReport:
    """A report without cases yet."""
    from conv3d_cli.engine.cpu import cpu_class

    machine = {
        "cpu": cpu_model(),
        "cpu_class": cpu_class().name,
        "threads": limits[-1].threads,
        "system": f"{platform.system()} {platform.machine()}",
        "peers_keep_freed_memory": kept_memory,
    }
    versions = {"conv3d": "", "numba": "", "numpy": ""}
    versions = {name: importlib.metadata.version(name) for name in versions} | installed()
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return BenchReport(date, machine, {"python": platform.python_version(), **versions}, limits)


def report_of_record(record: dict[str, Any], path: str) -> BenchReport:
    """What `BenchReport.record` gave.

    Raises: FormatError.
    """
    try:
        return BenchReport(
            record["date"], record["machine"], record["versions"],
            [Limits(**limits) for limits in record["limits"]], [measured_of_record(case) for case in record["cases"]],
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is no record of `conv3d bench --json`: {error!r}") from None


def merged(reports: Iterable[BenchReport]) -> BenchReport:
    """Several runs as one, the last measurement of a case counting; date and machine are the last run's."""
    reports = list(reports)
    cases = {case.case.name: case for report in reports for case in report.cases}
    last = reports[-1]
    whole = BenchReport(last.date, last.machine, last.versions, list(last.limits))
    for case in cases.values():
        whole.add(case)
    return whole


def cpu_model() -> str:
    """The CPU's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def number(value: float) -> str:
    """Three digits, without an exponent.

    >>> number(0.01234), number(3.14159), number(42.42), number(8192.5)
    ('0.012', '3.14', '42.4', '8192')
    """
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3}f}"


def cells(measured: Measured) -> list[str]:
    """A line of the table, in the order of `COLUMNS`; targets in brackets."""
    case, peer = measured.case, measured.strongest
    share = f"{100 * measured.share:.0f}" + (f" ({100 * case.share:.0f})" if case.share else "")
    ratio = "" if measured.ratio is None else number(measured.ratio)
    ratio += f" ({case.ratio:g})" if case.ratio and ratio else ""
    return [
        case.name, number(measured.ms), number(measured.call_ms), share, f"{measured.gflops:.0f}", number(measured.predicted_ms),
        peer.name if peer else "", number(peer.ms) if peer and peer.ms else "", ratio, f"{measured.error:.0e}",
    ]  # fmt: skip


def is_missed(measured: Measured) -> bool:
    """Whether a target was missed."""
    case = measured.case
    return (case.share > measured.share) or (
        measured.ratio is not None and case.ratio > measured.ratio
    )


def heading(report: BenchReport) -> list[str]:
    """The machine, its limits and the versions, in lines."""
    machine = report.machine
    lines = [
        f"{machine['cpu']} ({machine['cpu_class']}), {machine['threads']} threads, {machine['system']}, {report.date[:10]}"
    ]
    for limits in report.limits:
        lines.append(
            f"limits, {limits.threads} thread{'s' * (limits.threads > 1)}: {limits.fma / 1e9:.0f} GFLOP/s, "
            f"copy {limits.copy / 1e9:.1f} GB/s read and written (plain stores {limits.plain_copy / 1e9:.1f})"
        )
    one, used = report.limits[0], report.used
    if used.fma < 0.75 * used.threads * one.fma:
        lines.append(
            f"note: {used.threads} threads reach only {used.fma / one.fma:.1f} times the FMA peak of one: "
            "something else runs here, or the CPUs share their units"
        )
    lines.append(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    if machine.get("peers_keep_freed_memory"):
        lines.append("freed memory was kept for the next call (--keep-memory), for everyone")
    return lines


def left_out(report: BenchReport) -> list[str]:
    """What was not timed and why, a line for each peer and case."""
    return [
        f"{case.case.name}: {peer.name} {peer.note}"
        for case in report.cases
        for peer in case.peers
        if peer.note
    ]


def markdown(report: BenchReport) -> str:
    """The table of `tests/benchmarks/README.md`."""
    rule = ["---", *["---:"] * 5, "---", *["---:"] * 3]
    rows = [list(COLUMNS), rule, *(cells(case) for case in report.cases)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n\n".join(["\n".join(f"- {line}" for line in heading(report)), "\n".join(lines)])
