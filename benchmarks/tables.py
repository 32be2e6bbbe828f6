"""The tables: each loop's figure in each row, hotloop's rank, and its target."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Measured, Result
from benchmarks.row import LIMIT, Row
from benchmarks.rows import ROWS

OURS = "hotloop"
REFERENCE = "asyncio"

SMALL = 100
"""Figures below this are shown with decimals."""
NEAR_LIMIT = 0.97
"""A rate of at least this share of the limit counts as the first place."""

Measure = Callable[[Result], float | None]


@dataclass(frozen=True)
class Quantity:
    """The quantity that a table shows."""

    title: str
    measure: Measure
    groups: tuple[str, ...]
    lowest_is_best: bool = True
    target: str = ""
    """The field of Target for this quantity."""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    row: Row
    quantity: Quantity
    figures: dict[str, float | None]
    """Figures by loop; None where a loop has none."""
    limit: float | None
    target: float | None

    @functools.cached_property
    def shown(self) -> dict[str, float | None]:
        return {name: rounded(figure) for name, figure in self.figures.items()}

    @property
    def ours(self) -> float | None:
        return self.figures.get(OURS)

    @property
    def best(self) -> float | None:
        """The best figure as shown, so that equal figures in the table rank equally."""
        return self._best_of([figure for figure in self.shown.values() if figure is not None])

    @property
    def best_other(self) -> tuple[str, float] | None:
        others = {
            name: figure for name, figure in self.figures.items() if name != OURS and figure is not None
        }
        best = self._best_of(list(others.values()))
        return next(((name, figure) for name, figure in others.items() if figure == best), None)

    @property
    def is_first(self) -> bool:
        return self.ours is not None and self.shown[OURS] == self.best

    @property
    def is_near_limit(self) -> bool:
        return None not in (self.ours, self.limit) and self.times_better(self.limit, 0.0) >= NEAR_LIMIT

    @property
    def is_met(self) -> bool:
        return self.ours is not None and self.target is not None and self.ours <= self.target

    def times_better(self, other: float | None, unknown: float = float("nan")) -> float:
        """The factor by which hotloop is better than another loop; below 1, it is worse."""
        ours = self.ours
        if ours is None or other is None or rounded(ours) == 0 or rounded(other) == 0:
            return unknown
        return other / ours if self.quantity.lowest_is_best else ours / other

    def _best_of(self, figures: list[float]) -> float | None:
        return (min if self.quantity.lowest_is_best else max)(figures, default=None)


def lines(quantity: Quantity, measured: Measured) -> list[Line]:
    """The lines in which any loop has a figure."""
    found = [line(row, quantity, measured) for row in ROWS if row.group in quantity.groups]
    return [each for each in found if each.best is not None]


def line(row: Row, quantity: Quantity, measured: Measured) -> Line:
    figures = {name: quantity.measure(measured.of(row.name, name)) for name in measured.loops}
    limit = quantity.measure(measured.of(row.name, LIMIT))
    known = Line(row, quantity, figures, limit, None)
    return Line(row, quantity, figures, limit, target(known, measured))


def target(line: Line, measured: Measured) -> float | None:
    of_row = line.row.target
    if of_row.has_children and measured.of(line.row.name, OURS).count.kernel is None:
        return None  # Not counted with perf, so without the children.
    if line.quantity.target == "user":
        if of_row.below_best is not None and line.best_other:
            return line.best_other[1] * (1 - of_row.below_best)
        return of_row.user
    return of_row.kernel if line.quantity.target == "kernel" else None


def table(quantity: Quantity, measured: Measured) -> str:
    """The table as markdown; empty if it has no lines."""
    chosen = lines(quantity, measured)
    if not chosen:
        return ""
    columns: list[tuple[str, Callable[[Line], str]]] = [
        (name, functools.partial(cell, name=name, measured=measured))
        for name in measured.loops
        if any(not measured.of(line.row.name, name).is_empty for line in chosen)
    ]
    if any(line.limit is not None for line in chosen):
        columns.append(("limit", lambda line: number(rounded(line.limit))))
    if any(line.ours is not None for line in chosen):
        columns += comparing(chosen)
    head = ["| | " + " | ".join(name for name, _ in columns) + " |", "|---|" + "---:|" * len(columns)]
    body = [f"| {line.row.title} | " + " | ".join(of(line) for _, of in columns) + " |" for line in chosen]
    return "\n".join(head + body)


def comparing(chosen: list[Line]) -> list[tuple[str, Callable[[Line], str]]]:
    """The columns on hotloop's rank and target."""
    columns: list[tuple[str, Callable[[Line], str]]] = []
    if any(line.best_other for line in chosen):
        columns.append(("against the best other", against_best_other))
    if any(line.figures.get(REFERENCE) is not None for line in chosen):
        columns.append(
            ("against asyncio", lambda line: ratio(line.times_better(line.figures.get(REFERENCE))))
        )
    if any(line.target is not None for line in chosen):
        columns.append(("target", target_cell))
    return columns


def cell(line: Line, name: str, measured: Measured) -> str:
    figure = line.shown[name]
    if figure is None:
        return "fails" if measured.of(line.row.name, name).failure else "-"
    return f"**{number(figure)}**" if figure == line.best else number(figure)


def against_best_other(line: Line) -> str:
    return ratio(line.times_better(line.best_other[1] if line.best_other else None))


def target_cell(line: Line) -> str:
    if line.target is None:
        return "-"
    verdict = "" if line.ours is None else " met" if line.is_met else " missed"
    return f"{line.target:,.0f}{verdict}"


def ratio(times: float) -> str:
    return f"{times:.2f}" if times == times else "-"


def rounded(value: float | None) -> float | None:
    """Rounded as in the table."""
    if value is None:
        return None
    return float(round(value)) if value >= SMALL else max(round(value, 2), 0.0)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= SMALL else f"{value:.2f}"


def facts(of_run: dict[str, str]) -> str:
    """Time, machine and versions of a run, as a table."""
    return "\n".join(["| | |", "|---|---|", *[f"| {name} | {fact} |" for name, fact in of_run.items()]])


def rate(result: Result) -> float | None:
    return result.best.rate if result.best else None


def microseconds(result: Result) -> float | None:
    return 1e6 / result.best.rate if result.best else None


def p99(result: Result) -> float | None:
    return result.best.p99 if result.best else None


def processor(result: Result) -> float | None:
    """The least of all rounds: it depends less on the machine's mood than rates do."""
    found = [outcome.processor for outcome in result.outcomes if outcome.processor is not None]
    return min(found, default=None)


def user(result: Result) -> float | None:
    return result.count.user


def kernel(result: Result) -> float | None:
    return result.count.kernel


def calls(result: Result) -> float | None:
    return result.count.calls


SCHEDULING = ("scheduling",)
SERVERS = ("echo", "http", "programs")
BOTH = (*SERVERS, "client", "databases")
BULK = ("bulk",)
TLS = ("tls",)

TIMES = Quantity("Scheduling: microseconds an iteration, best round", microseconds, SCHEDULING)
RATES = Quantity("Servers and clients: requests a second, best round", rate, BOTH, lowest_is_best=False)
SCHEDULING_USER = Quantity("Scheduling: user instructions an iteration", user, SCHEDULING, target="user")
SERVERS_USER = Quantity("Servers and clients: user instructions a request", user, BOTH, target="user")
TLS_RATES = Quantity("TLS: requests or connections a second, best round", rate, TLS, lowest_is_best=False)
TLS_USER = Quantity("TLS: user instructions a request or connection", user, TLS, target="user")
BULK_RATES = Quantity("Bulk transfers: MB a second, best round", rate, BULK, lowest_is_best=False)
ALL_RATES = (TIMES, RATES, TLS_RATES, BULK_RATES)
ALL_USER = (SCHEDULING_USER, SERVERS_USER, TLS_USER)
QUANTITIES = [
    TIMES,
    SCHEDULING_USER,
    Quantity("Scheduling: kernel instructions an iteration", kernel, SCHEDULING, target="kernel"),
    Quantity("Scheduling: system calls an iteration", calls, SCHEDULING),
    RATES,
    Quantity("Servers: 99th percentile of latency in that round, microseconds", p99, SERVERS),
    SERVERS_USER,
    Quantity("Servers and clients: kernel instructions a request", kernel, BOTH, target="kernel"),
    Quantity("Servers and clients: system calls a request", calls, BOTH),
    Quantity("Servers and clients: microseconds of processor time a request, best round", processor, BOTH),
    TLS_RATES,
    Quantity("TLS: microseconds of processor time a request or connection, best round", processor, TLS),
    TLS_USER,
    Quantity("TLS: system calls a request or connection", calls, TLS),
    BULK_RATES,
    Quantity("Bulk transfers: microseconds of processor time a MB, best round", processor, BULK),
]
