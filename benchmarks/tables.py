"""The tables: each loop's figure in each row, hotloop's rank, and its target."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.loops import CONTROL, OURS
from benchmarks.results import Measured, Result
from benchmarks.row import LIMIT, Row
from benchmarks.rows import ROWS
from benchmarks.spread import Spread, are_tied, difference

REFERENCE = "asyncio"

SMALL = 100
"""Figures below this are shown with decimals."""
NEAR_LIMIT = 0.97
"""A rate of at least this share of the limit is near it."""
COUNTS_TIE = 0.01
"""Counts of instructions and calls that differ by no more than this are tied."""

Measure = Callable[[Result], Sequence[float]]
"""Returns the samples of a result: one for each round, or one count."""


def missing(result: Result) -> str:
    """What a table has in place of a figure."""
    return "fails" if result.failure else "-"


@dataclass(frozen=True)
class Quantity:
    """The quantity that a table shows."""

    title: str
    measure: Measure
    groups: tuple[str, ...]
    lowest_is_best: bool = True
    target: str = ""
    """The field of Target for this quantity."""
    missing: Callable[[Result], str] = missing
    parts: tuple[Measure, ...] = ()
    """What the figure consists of, shown below it."""

    @property
    def is_counted(self) -> bool:
        """Whether the figure is a count, not a median of rounds."""
        return self.measure in COUNTS


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    row: Row
    quantity: Quantity
    spreads: dict[str, Spread | None]
    """The median and quartiles by loop; None where a loop has none."""
    limit: float | None
    target: float | None
    control: Spread | None = None
    """hotloop's, measured a second time."""
    title: str = ""
    tolerance: float = 0.0
    """The difference of medians up to which loops are tied."""

    def titled(self, title: str) -> "Line":
        return replace(self, title=title)

    @property
    def figures(self) -> dict[str, float | None]:
        """Medians by loop."""
        return {name: spread.median if spread else None for name, spread in self.spreads.items()}

    @functools.cached_property
    def shown(self) -> dict[str, float | None]:
        return {name: rounded(figure) for name, figure in self.figures.items()}

    @property
    def ours(self) -> float | None:
        return self.figures.get(OURS)

    @property
    def best(self) -> float | None:
        return self._best_of([figure for figure in self.figures.values() if figure is not None])

    @property
    def best_other(self) -> tuple[str, float] | None:
        others = {
            name: figure for name, figure in self.figures.items() if name != OURS and figure is not None
        }
        best = self._best_of(list(others.values()))
        return next(((name, figure) for name, figure in others.items() if figure == best), None)

    def is_among_best(self, name: str) -> bool:
        """Whether the loop's figure is the best one, or tied with it."""
        best = [other for other, figure in self.figures.items() if figure is not None and figure == self.best]
        return any(name == other or self.are_tied(name, other) for other in best)

    def are_tied(self, one: str, other: str) -> bool:
        shown = self.shown.get(one)
        if self.quantity.is_counted and shown is not None and shown == self.shown.get(other):
            return True
        return are_tied(self.spreads.get(one), self.spreads.get(other), self.tolerance)

    @property
    def is_tied(self) -> bool:
        """Whether hotloop is tied with the best other loop."""
        return self.best_other is not None and self.are_tied(OURS, self.best_other[0])

    @property
    def is_first(self) -> bool:
        """Whether hotloop is ahead of all other loops, by more than a tie."""
        return self.ours is not None and self.ours == self.best and not self.is_tied

    @property
    def is_behind(self) -> bool:
        return self.ours is not None and not self.is_first and not self.is_tied

    @property
    def is_near_limit(self) -> bool:
        return None not in (self.ours, self.limit) and self.times_better(self.limit, 0.0) >= NEAR_LIMIT

    @property
    def is_met(self) -> bool:
        return self.ours is not None and self.target is not None and self.ours <= self.target

    @property
    def is_control_tied(self) -> bool:
        """Whether the interquartile ranges of hotloop's two measurements overlap."""
        return are_tied(self.spreads.get(OURS), self.control)

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
    def spread(name: str) -> Spread | None:
        return Spread.of(quantity.measure(measured.of(row.name, name)))

    limit, control = spread(LIMIT), spread(CONTROL)
    spreads = {name: spread(name) for name in measured.loops}
    tolerance = difference(spreads.get(OURS), control) or 0.0
    if quantity.is_counted:
        tolerance = COUNTS_TIE
    known = Line(
        row,
        quantity,
        spreads,
        limit.median if limit else None,
        None,
        control,
        title=row.title,
        tolerance=tolerance,
    )
    return replace(known, target=target(known, measured))


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
    return of_lines(lines(quantity, measured), measured)


def of_lines(chosen: list[Line], measured: Measured) -> str:
    """A table of these lines; empty if there are none."""
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
    body = [f"| {line.title} | " + " | ".join(of(line) for _, of in columns) + " |" for line in chosen]
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
    if any(line.control for line in chosen):
        columns.append(("against itself", against_itself))
    if any(line.target is not None for line in chosen):
        columns.append(("target", target_cell))
    return columns


def cell(line: Line, name: str, measured: Measured) -> str:
    figure, spread = line.shown[name], line.spreads[name]
    result = measured.of(line.row.name, name)
    if figure is None or spread is None:
        return line.quantity.missing(result)
    text = number(figure)
    if line.is_among_best(name):
        text = f"**{text}**"
    if spread.relative is not None:
        text += f" ±{spread.relative:.1%}"
    parts = [Spread.of(part(result)) for part in line.quantity.parts]
    known = [number(rounded(part.median)) for part in parts if part]
    return f"{text}<br>{' + '.join(known)}" if known else text


def against_best_other(line: Line) -> str:
    times = ratio(line.times_better(line.best_other[1] if line.best_other else None))
    return f"{times} tie" if line.is_tied and line.ours is not None and times != "-" else times


def against_itself(line: Line) -> str:
    return ratio(line.times_better(line.control.median if line.control else None))


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
    return float(round(value)) if value >= SMALL else max(round(value, 2 if value >= 1 else 3), 0.0)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= SMALL:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 or value == 0 else f"{value:.3f}"


def facts(of_run: dict[str, str]) -> str:
    """Time, machine and versions of a run, as a table."""
    return "\n".join(["| | |", "|---|---|", *[f"| {name} | {fact} |" for name, fact in of_run.items()]])


def each(figure: str, *, keeping: bool = False) -> Callable[[Result], list[float]]:
    """A figure of each round that has it, with default malloc or with one that keeps freed memory."""

    def of(result: Result) -> list[float]:
        figures = (getattr(one, figure) for one in (result.keeping if keeping else result.outcomes))
        return [found for found in figures if found is not None]

    return of


rate, rate_keeping = each("rate"), each("rate", keeping=True)
p99 = each("p99")
processor, processor_keeping = each("processor"), each("processor", keeping=True)
user_time, user_time_keeping = each("user"), each("user", keeping=True)
kernel_time, kernel_time_keeping = each("kernel"), each("kernel", keeping=True)


def microseconds(result: Result) -> list[float]:
    return [1e6 / outcome.rate for outcome in result.outcomes]


def user(result: Result) -> list[float]:
    return [] if result.count.user is None else [result.count.user]


def kernel(result: Result) -> list[float]:
    return [] if result.count.kernel is None else [result.count.kernel]


def calls(result: Result) -> list[float]:
    return [] if result.count.calls is None else [result.count.calls]


COUNTS: tuple[Measure, ...] = (user, kernel, calls)

SCHEDULING = ("scheduling",)
SERVERS = ("echo", "http", "programs")
BOTH = (*SERVERS, "client", "databases")
BULK = ("bulk",)
TLS = ("tls",)

KEEPING_TITLE = "with malloc that keeps memory"
TIME_PARTS = (user_time, kernel_time)
TIME_PARTS_KEEPING = (user_time_keeping, kernel_time_keeping)

TIMES = Quantity("Scheduling: microseconds an iteration", microseconds, SCHEDULING)
RATES = Quantity("Servers and clients: requests a second", rate, BOTH, lowest_is_best=False)
RATES_KEEPING = Quantity(
    f"Servers and clients: requests a second, {KEEPING_TITLE}", rate_keeping, BOTH, lowest_is_best=False
)
PROCESSOR = Quantity(
    "Servers and clients: microseconds of processor time a request (user + kernel)",
    processor,
    BOTH,
    parts=TIME_PARTS,
)
PROCESSOR_KEEPING = Quantity(
    f"Servers and clients: microseconds of processor time a request (user + kernel), {KEEPING_TITLE}",
    processor_keeping,
    BOTH,
    parts=TIME_PARTS_KEEPING,
)
SCHEDULING_USER = Quantity("Scheduling: user instructions an iteration", user, SCHEDULING, target="user")
SERVERS_USER = Quantity("Servers and clients: user instructions a request", user, BOTH, target="user")
TLS_RATES = Quantity("TLS: requests or connections a second", rate, TLS, lowest_is_best=False)
TLS_RATES_KEEPING = Quantity(
    f"TLS: requests or connections a second, {KEEPING_TITLE}", rate_keeping, TLS, lowest_is_best=False
)
TLS_PROCESSOR = Quantity(
    "TLS: microseconds of processor time a request or connection (user + kernel)",
    processor,
    TLS,
    parts=TIME_PARTS,
)
TLS_PROCESSOR_KEEPING = Quantity(
    f"TLS: microseconds of processor time a request or connection (user + kernel), {KEEPING_TITLE}",
    processor_keeping,
    TLS,
    parts=TIME_PARTS_KEEPING,
)
TLS_USER = Quantity("TLS: user instructions a request or connection", user, TLS, target="user")
BULK_RATES = Quantity("Bulk transfers: MB a second", rate, BULK, lowest_is_best=False)
BULK_RATES_KEEPING = Quantity(
    f"Bulk transfers: MB a second, {KEEPING_TITLE}", rate_keeping, BULK, lowest_is_best=False
)
BULK_PROCESSOR = Quantity(
    "Bulk transfers: microseconds of processor time a MB (user + kernel)", processor, BULK, parts=TIME_PARTS
)
BULK_PROCESSOR_KEEPING = Quantity(
    f"Bulk transfers: microseconds of processor time a MB (user + kernel), {KEEPING_TITLE}",
    processor_keeping,
    BULK,
    parts=TIME_PARTS_KEEPING,
)
ALL_RATES = (TIMES, RATES, TLS_RATES, BULK_RATES)
ALL_KEEPING = (RATES_KEEPING, TLS_RATES_KEEPING, BULK_RATES_KEEPING)
ALL_USER = (SCHEDULING_USER, SERVERS_USER, TLS_USER)
QUANTITIES = [
    TIMES,
    SCHEDULING_USER,
    Quantity("Scheduling: kernel instructions an iteration", kernel, SCHEDULING, target="kernel"),
    Quantity("Scheduling: system calls an iteration", calls, SCHEDULING),
    RATES,
    RATES_KEEPING,
    PROCESSOR,
    PROCESSOR_KEEPING,
    Quantity("Servers: 99th percentile of latency at these rates, microseconds", p99, SERVERS),
    SERVERS_USER,
    Quantity("Servers and clients: kernel instructions a request", kernel, BOTH, target="kernel"),
    Quantity("Servers and clients: system calls a request", calls, BOTH),
    TLS_RATES,
    TLS_RATES_KEEPING,
    TLS_PROCESSOR,
    TLS_PROCESSOR_KEEPING,
    TLS_USER,
    Quantity("TLS: system calls a request or connection", calls, TLS),
    BULK_RATES,
    BULK_RATES_KEEPING,
    BULK_PROCESSOR,
    BULK_PROCESSOR_KEEPING,
]
