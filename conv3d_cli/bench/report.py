"""The results of a benchmark run: as JSON, as the rows of a table, and as Markdown."""

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
    """The results of a benchmark run, with date, machine and versions.

    limits : list of Limits     for one thread, and for the number of threads that the cases used:
                                the best of the run (each case has its own, too)
    """

    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    limits: list[Limits]
    cases: list[Measured] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The report as a JSON object; `report_of_record` reads it."""
        return {
            "date": self.date,
            "machine": self.machine,
            "versions": self.versions,
            "limits": [limits.record() for limits in self.limits],
            "cases": [case.record() for case in self.cases],
        }

    def add(self, measured: Measured) -> None:
        """Add a case, and raise the machine's limits if those of the case are higher."""
        self.cases.append(measured)
        if measured.limits.threads == self.used.threads:
            self.limits[-1] = self.used.better(measured.limits)

    @property
    def used(self) -> Limits:
        """The limits for the number of threads that the cases used."""
        return self.limits[-1]


def new_report(limits: list[Limits], kept_memory: bool) -> BenchReport:
    """A report of this machine, without cases.

    limits : list of Limits     see `BenchReport`
    kept_memory : bool          freed memory was kept for the next allocation (--keep-memory)
    """
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
    """The report of a JSON object that `BenchReport.record` made.

    path : str      the file that it was read from, for the message

    Raises: FormatError if it is no such object.
    """
    try:
        limits = [Limits(**limits) for limits in record["limits"]]
        cases = [measured_of_record(case) for case in record["cases"]]
        return BenchReport(record["date"], record["machine"], record["versions"], limits, cases)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is no record of `conv3d bench --json`: {error!r}") from None


def merged(reports: Iterable[BenchReport]) -> BenchReport:
    """Merge several runs: each case's last measurement, the last run's date and machine."""
    reports = list(reports)
    cases = {case.case.name: case for report in reports for case in report.cases}
    last = reports[-1]
    whole = BenchReport(last.date, last.machine, last.versions, list(last.limits))
    for case in cases.values():
        whole.add(case)
    return whole


def cpu_model() -> str:
    """The model name of the CPU, as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def number(value: float) -> str:
    """A number as text with about three digits, without an exponent.

    >>> number(0.01234), number(3.14159), number(42.42), number(8192.5)
    ('0.012', '3.14', '42.4', '8192')
    """
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3}f}"


def cells(measured: Measured) -> list[str]:
    """The cells of a table row, in the order of `COLUMNS`; targets in brackets."""
    case, peer = measured.case, measured.strongest
    share = f"{100 * measured.share:.0f}" + (f" ({100 * case.share:.0f})" if case.share else "")
    ratio = "" if measured.ratio is None else number(measured.ratio)
    ratio += f" ({case.ratio:g})" if case.ratio and ratio else ""
    return [
        case.name,
        number(measured.ms),
        number(measured.call_ms),
        share,
        f"{measured.gflops:.0f}",
        number(measured.predicted_ms),
        peer.name if peer else "",
        number(peer.ms) if peer and peer.ms else "",
        ratio,
        f"{measured.error:.0e}",
    ]


def is_missed(measured: Measured) -> bool:
    """Whether the case misses one of its targets."""
    case = measured.case
    too_slow = measured.ratio is not None and measured.ratio < case.ratio
    return too_slow or measured.share < case.share


def heading(report: BenchReport) -> list[str]:
    """The lines above the table: the machine, its limits, and the versions of the libraries."""
    machine = report.machine
    lines = [
        f"{machine['cpu']} ({machine['cpu_class']}), {machine['threads']} threads, "
        f"{machine['system']}, {report.date[:10]}"
    ]
    for limits in report.limits:
        lines.append(
            f"limits, {limits.threads} thread{'s' * (limits.threads > 1)}: "
            f"{limits.fma / 1e9:.0f} GFLOP/s, copy {limits.copy / 1e9:.1f} GB/s read and written "
            f"(plain stores {limits.plain_copy / 1e9:.1f})"
        )
    one, used = report.limits[0], report.used
    if used.fma < 0.75 * used.threads * one.fma:
        lines.append(
            f"note: {used.threads} threads reach only {used.fma / one.fma:.1f} times the FMA peak "
            "of one: another program is running, or the CPUs share execution units"
        )
    lines.append(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    if machine.get("peers_keep_freed_memory"):
        lines.append("--keep-memory: freed memory was kept for the next call, for conv3d and peers")
    return lines


def left_out(report: BenchReport) -> list[str]:
    """The peers that were not timed and why, one line for each peer and case."""
    return [
        f"{case.case.name}: {peer.name} {peer.note}"
        for case in report.cases
        for peer in case.peers
        if peer.note
    ]


def markdown(report: BenchReport) -> str:
    """The table of `tests/benchmarks/README.md`, in Markdown."""
    rule = ["---", *["---:"] * 5, "---", *["---:"] * 3]
    rows = [list(COLUMNS), rule, *(cells(case) for case in report.cases)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n\n".join(["\n".join(f"- {line}" for line in heading(report)), "\n".join(lines)])
