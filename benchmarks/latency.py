"""Latency at fixed rates: every loop gets the same number of requests per second.

The rates are shares of the capacity of the slowest loop, which is its median rate in the closed loop with the
default settings of malloc.
"""

from collections.abc import Callable, Iterable
from statistics import median

from benchmarks import tables
from benchmarks.generator import Paced
from benchmarks.loops import CONTROL, OURS
from benchmarks.results import Measured, Result, Results
from benchmarks.row import LIMIT, Row, ServerRow
from benchmarks.rows import ROWS
from benchmarks.spread import Spread
from benchmarks.tables import Line, Quantity

NAMES = ("echo_64", "http_bare", "http_uvicorn")
"""The rows in which latency is measured at fixed rates."""
SHARES = (25, 50, 75)
"""Per cent of the capacity of the slowest loop."""
PERCENTILES = {"p50": "median", "p99": "99 %", "p999": "99.9 %"}
LEAST = {"p50": 2, "p99": 100, "p999": 1000}
"""Requests of a round that a percentile needs."""
OUTLIER = 0.1
"""A loop with less than this share of the median loop's rate does not set the rates for the others."""
KEPT_UP = 0.95
"""A loop keeps up with a rate if it answers at least this share of the requests in time."""

EXPLANATION = """\
An open loop: requests are due at a fixed rate, evenly spaced, on 64 connections in turn, and latency counts
from when a request was due, whether or not the connection was free. So the wait for a slow answer counts for
every request behind it. The rates are 25, 50 and 75 % of the capacity of the slowest loop, which is its
median rate above; a loop with less than a tenth of the median loop's rate is not considered. Microseconds;
the lowest is the best. "behind" is a loop that answers less than 95 % of the requests in time, and the rate
that it reaches instead."""


def is_measured(row: Row) -> bool:
    return row.name in NAMES and isinstance(row, ServerRow)


def capacity(rates: dict[str, list[float]]) -> tuple[str, float] | None:
    """The slowest loop by its median rate, and that rate. None if no loop has a rate.

    A loop that is far slower than the others is not considered."""
    medians = {name: spread.median for name, found in rates.items() if (spread := Spread.of(found))}
    if not medians:
        return None
    least = OUTLIER * median(medians.values())
    slowest = min((name for name in medians if medians[name] >= least), key=lambda name: medians[name])
    return slowest, medians[slowest]


def capacity_in(row: str, names: Iterable[str], results: Results) -> tuple[str, float] | None:
    """As capacity(), of these loops."""
    compared = [name for name in names if name not in (CONTROL, LIMIT)]
    return capacity({name: rates(results.get((row, name), Result())) for name in compared})


def rates(result: Result) -> list[float]:
    return [outcome.rate for outcome in result.outcomes] if not result.failure else []


def rate_of(capacity: float, share: int) -> int:
    """Whole requests per second, at least one."""
    return max(1, int(capacity * share / 100))


def keeps_up(rounds: list[Paced]) -> bool:
    return median(paced.rate / paced.wanted for paced in rounds) >= KEPT_UP


def measure_of(share: int, percentile: str) -> Callable[[Result], list[float]]:
    """A percentile's samples at a share of the capacity: none if the loop does not keep up."""

    def samples(result: Result) -> list[float]:
        rounds = result.paced.get(str(share), [])
        if not rounds or not keeps_up(rounds) or min(paced.requests for paced in rounds) < LEAST[percentile]:
            return []
        return [getattr(paced, percentile) for paced in rounds]

    return samples


def missing_at(share: int) -> Callable[[Result], str]:
    def missing(result: Result) -> str:
        rounds = result.paced.get(str(share), [])
        if rounds and not keeps_up(rounds):
            return f"behind: {median(paced.rate for paced in rounds):,.0f}"
        return "fails" if result.paced_failure else tables.missing(result)

    return missing


def quantity(share: int, percentile: str) -> Quantity:
    title = f"latency at {share} % of the slowest loop's capacity, {PERCENTILES[percentile]}"
    return Quantity(
        title,
        measure_of(share, percentile),
        tuple(dict.fromkeys(row.group for row in ROWS if row.name in NAMES)),
        missing=missing_at(share),
    )


def lines_of(row: Row, measured: Measured) -> list[Line]:
    """A line for each rate and percentile in which any loop has a figure."""
    found = []
    for share in SHARES:
        wanted = [
            paced.wanted
            for name in measured.loops
            for paced in measured.of(row.name, name).paced.get(str(share), [])
        ]
        for percentile, title in PERCENTILES.items():
            line = tables.line(row, quantity(share, percentile), measured)
            if line.best is not None:
                found.append(line.titled(f"{share} %: {median(wanted):,.0f} a second, {title}"))
    return found


def lines(measured: Measured) -> list[Line]:
    return [line for row in ROWS if is_measured(row) for line in lines_of(row, measured)]


def overloads(measured: Measured) -> list[tuple[Row, int, str, float, float]]:
    """Where hotloop does not keep up: row, share, a loop that does, the rate reached and the rate wanted."""
    found = []
    for row in ROWS:
        for share in SHARES:
            rounds = {name: measured.of(row.name, name).paced.get(str(share)) for name in measured.loops}
            ours = rounds.pop(OURS, None)
            others = [name for name, of_loop in rounds.items() if of_loop and keeps_up(of_loop)]
            if ours and others and not keeps_up(ours):
                reached = median(paced.rate for paced in ours)
                found.append((row, share, others[0], reached, median(paced.wanted for paced in ours)))
    return found


def section(measured: Measured) -> str:
    parts = [of_row(row, measured) for row in ROWS if is_measured(row)]
    parts = [part for part in parts if part]
    if not parts:
        return ""
    return "\n\n".join(["## Latency at fixed rates", EXPLANATION, lateness(measured), *parts])


def of_row(row: Row, measured: Measured) -> str:
    found = lines_of(row, measured)
    if not found:
        return ""
    slowest = capacity_in(row.name, measured.loops, measured.results)
    of_slowest = f"The slowest loop is {slowest[0]}, with {slowest[1]:,.0f} a second." if slowest else ""
    failures = "\n".join(
        f"- {name} fails {reason}"
        for name in measured.loops
        if (reason := measured.of(row.name, name).paced_failure)
    )
    parts = [f"### {row.title}", of_slowest, tables.of_lines(found, measured), failures]
    return "\n\n".join(part for part in parts if part)


def lateness(measured: Measured) -> str:
    """How late the load generator itself was."""
    late = [
        paced.late
        for result in measured.results.values()
        for rounds in result.paced.values()
        for paced in rounds
    ]
    if not late:
        return ""
    return (
        f"The load generator itself dealt with 99 % of a round's requests within {median(late):,.1f} µs of "
        f"when they were due, in the median round, and within {max(late):,.1f} µs in the worst one."
    )
