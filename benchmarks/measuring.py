"""Measuring rows on loops: rates in turn, counts side by side."""

import concurrent.futures
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.children import Failed, end_all
from benchmarks.counters import Counter
from benchmarks.results import Result, Results
from benchmarks.row import LIMIT, Row
from benchmarks.tables import OURS


@dataclass(frozen=True)
class Plan:
    rows: list[Row]
    loops: list[str]
    rounds: int
    """Rounds of rates; 0 for none."""
    seconds: float
    counters: list[Counter]
    splitter: Counter | None = None
    """Splits hotloop's instructions; None to leave that out."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Rows that are not measured, and what they need that is not installed."""


def measure(plan: Plan, results: Results, after_each: Callable[[], None]) -> None:
    """Adds to `results` row by row, so that an interruption loses only one row."""
    for name, needs in plan.left_out.items():
        progress(f"{name}: left out, needs {needs}")
    for number, row in enumerate(plan.rows, 1):
        progress(f"[{number}/{len(plan.rows)}] {row.title}")
        names = [name for name in plan.loops if row.compares(name)]
        time_in_turn(row, plan, names, results)
        for counter in plan.counters if row.is_counted else []:
            count_together(row, [*names, LIMIT] if row.is_limit_counted else names, results, counter)
        if plan.splitter and row.is_counted and row.is_steady:
            split(row, results, plan.splitter)
        after_each()


def time_in_turn(row: Row, plan: Plan, names: list[str], results: Results) -> None:
    """Interleaves the rounds, so that a slow spell of the machine affects every loop."""
    for number in range(1, plan.rounds + 1):
        for name in [*names, LIMIT] if row.has_limit else names:
            result = results.setdefault((row.name, name), Result())
            if result.failure:
                continue
            progress(f"{row.name}: {name}, round {number} of {plan.rounds}")
            try:
                result.outcomes.append(row.rate(name, plan.seconds))
            except Exception as error:
                fail(row, name, result, error, f"in round {number}")
                # A loop that fails in one round has no rate.
                result.outcomes.clear()


def count(row: Row, name: str, results: Results, counter: Counter) -> None:
    """Adds a tool's count of one loop, unless the loop has failed before."""
    result = results.setdefault((row.name, name), Result())
    if result.failure:
        return
    progress(f"{row.name}: {name}, {counter.name}")
    result.count = result.count.merged_with(row.count(name, counter))


def count_together(row: Row, names: list[str], results: Results, counter: Counter) -> None:
    """Counts on all processors at once: instructions do not depend on the load."""
    interrupted = threading.Event()

    def count_or_fail(name: str) -> None:
        try:
            count(row, name, results, counter)
        except Exception as error:
            if not interrupted.is_set():
                fail(row, name, results[row.name, name], error, f"under {counter.name}")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = [pool.submit(count_or_fail, name) for name in names]
        try:
            concurrent.futures.wait(counts)
        except KeyboardInterrupt:
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    for counted in counts:
        counted.result()


def split(row: Row, results: Results, splitter: Counter) -> None:
    """Splits the instructions of hotloop. An error does not count as the loop's failure."""
    try:
        count(row, OURS, results, splitter)
    except Exception as error:
        progress(f"{row.name}: not split: {error}")


def fail(row: Row, name: str, result: Result, error: Exception, when: str) -> None:
    """Records a failure. The loop is not measured further in this row; the run goes on."""
    reason = str(error) if isinstance(error, Failed) else f"cannot be measured: {error!r}"
    # The reason may be any output of a loop.
    legible = "".join(letter if letter.isprintable() and letter != "|" else "?" for letter in reason)
    result.failure = f"{when}: {legible[:200]}"
    progress(f"{row.name}: {name} FAILS {result.failure}")


def progress(text: str) -> None:
    sys.stderr.write(text + "\n")
