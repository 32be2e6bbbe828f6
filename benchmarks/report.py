"""The comparison as markdown."""

import datetime
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import loops
from benchmarks.counters import Count
from benchmarks.generator import Outcome
from benchmarks.rows import Row


@dataclass
class Result:
    """What one loop did in one row."""

    outcomes: list[Outcome] = field(default_factory=list)
    count: Count = field(default_factory=Count)
    failure: str = ""

    @property
    def best(self) -> Outcome | None:
        return max(self.outcomes, key=lambda outcome: outcome.rate, default=None)


Results = dict[tuple[str, str], Result]
Measure = Callable[[Result], float | None]


def markdown(rows: list[Row], names: list[str], results: Results, settings: Iterable[str]) -> str:
    parts = [heading(names, settings)]
    for title, measure, groups, lowest in TABLES:
        chosen = [row for row in rows if row.group in groups]
        if any(measure(results[row.name, name]) is not None for row in chosen for name in names):
            parts.append(f"## {title}\n\n" + table(chosen, names, results, measure, lowest))
    failures = [
        f"- {name}, {row.title}: {results[row.name, name].failure}"
        for row in rows
        for name in names
        if results[row.name, name].failure
    ]
    if failures:
        parts.append("## Failures\n\n" + "\n".join(failures))
    return "\n\n".join(parts) + "\n"


def heading(names: list[str], settings: Iterable[str]) -> str:
    versions = ", ".join(f"{name} {loops.version(name)}" for name in names if name != "asyncio")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    lines = [
        f"- Date: {datetime.date.today().isoformat()}",
        f"- Machine: {processor()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}",
        f"- Versions: {python}" + (f", {versions}" if versions else ""),
        *[f"- {setting}" for setting in settings],
    ]
    return "# Event loops compared\n\n" + "\n".join(lines)


def processor() -> str:
    """The processor's name as the kernel gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(rows: list[Row], names: list[str], results: Results, measure: Measure, lowest: bool) -> str:
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for row in rows:
        values = {name: rounded(measure(results[row.name, name])) for name in names}
        known = [value for value in values.values() if value is not None]
        best = (min if lowest else max)(known, default=None)
        cells = [cell(value, value == best, results[row.name, name]) for name, value in values.items()]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rounded(value: float | None) -> float | None:
    """As it is shown, so that what looks the same is equally good."""
    if value is None:
        return None
    return float(round(value)) if value >= SMALL else max(round(value, 2), 0.0)


def cell(value: float | None, is_best: bool, result: Result) -> str:
    if value is None:
        return "fails" if result.failure else "-"
    text = f"{value:,.0f}" if value >= SMALL else f"{value:.2f}"
    return f"**{text}**" if is_best else text


def rate(result: Result) -> float | None:
    return result.best.rate if result.best else None


def microseconds(result: Result) -> float | None:
    return 1e6 / result.best.rate if result.best else None


def p99(result: Result) -> float | None:
    return result.best.p99 if result.best else None


def user(result: Result) -> float | None:
    return result.count.user


def kernel(result: Result) -> float | None:
    return result.count.kernel


def calls(result: Result) -> float | None:
    return result.count.calls


SMALL = 100
"""Figures below this are shown with decimals."""

SCHEDULING = ("scheduling",)
SERVERS = ("echo", "http")

# Title, measure, groups of rows, whether the lowest is the best.
TABLES: list[tuple[str, Measure, tuple[str, ...], bool]] = [
    ("Scheduling: microseconds an iteration, best round", microseconds, SCHEDULING, True),
    ("Scheduling: user instructions an iteration", user, SCHEDULING, True),
    ("Scheduling: kernel instructions an iteration", kernel, SCHEDULING, True),
    ("Scheduling: system calls an iteration", calls, SCHEDULING, True),
    ("Servers: requests a second, best round", rate, SERVERS, False),
    ("Servers: 99th percentile of latency in that round, microseconds", p99, SERVERS, True),
    ("Servers: user instructions a request", user, SERVERS, True),
    ("Servers: kernel instructions a request", kernel, SERVERS, True),
    ("Servers: system calls a request", calls, SERVERS, True),
]
