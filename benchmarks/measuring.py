"""Measuring rows on loops: rates in turn, counts side by side."""

import concurrent.futures
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from benchmarks import latency, malloc, steps
from benchmarks.children import Failed, end_all
from benchmarks.counters import Counter
from benchmarks.loops import CONTROL, OURS
from benchmarks.quiet import Found
from benchmarks.results import Measured, Result, Results
from benchmarks.row import LIMIT, Row, ServerRow
from benchmarks.steps import Estimates, Plan, Step


def measure(
    plan: Plan, measured: Measured, after_each: Callable[[], None], *, afterwards: float = 0.0
) -> None:
    """Adds to `measured` step by step, so that an interruption loses only one step.

    Steps that are done are left out. `after_each` is called after each of the others. Those that there was no
    time for, also because of an interruption, are noted. What is measured after all of them takes about
    `afterwards` seconds, which are added to the time that is left."""
    began = time.monotonic()
    planned = [step for step in steps.steps(plan) if step.name not in measured.steps]
    estimates = Estimates()

    def within_time(left: list[Step]) -> list[Step]:
        if plan.minutes is None:
            return left
        seconds = plan.minutes * 60 - (time.monotonic() - began)
        return steps.without_rates(steps.fitting(left, seconds, estimates), left) if seconds > 0 else []

    for name, needs in plan.left_out.items():
        progress(f"{name}: left out, needs {needs}")
    begun: set[tuple[str, str]] = set()
    done: set[tuple[str, str]] = set()
    """Blocks of which at least a step is done."""

    def not_begun() -> list[Step]:
        return within_time([step for step in planned if step.block not in begun])

    left = not_begun()
    if measured.steps:
        progress(f"going on with an interrupted run: {len(measured.steps)} steps are done")
    progress(f"{len(left)} steps, about {steps.duration(estimates.of(left) + afterwards)}")
    try:
        # A block that has begun is completed. Then others may fit than before, as estimates are corrected.
        while left := not_begun():
            block = left[0].block
            begun.add(block)
            of_all = steps.duration(estimates.of(left) + afterwards)
            progress(f"[{left[0].row.title}: {left[0].part}] about {of_all} left")
            for step in [step for step in left if step.block == block]:
                started = time.monotonic()
                take(step, plan, measured)
                estimates.add(step, time.monotonic() - started)
                done.add(block)
                measured.steps.append(step.name)
                after_each()
    finally:
        # Also of a run that is interrupted.
        for run in measured.runs[-1:]:
            run.no_time_for.clear()
            run.no_time_for.update(steps.no_time_for(step for step in planned if step.block not in done))


def take(step: Step, plan: Plan, measured: Measured) -> None:
    row, results = step.row, measured.results
    if step.part == steps.RATES:
        time_round(row, plan, step.number, measured)
    elif step.part == steps.LATENCY:
        pace_round(row, plan, step.number, measured)
    elif step.part == steps.COUNTS:
        names = plan.names(row)
        counter = plan.counters[step.number - 1]
        count_together(row, [*names, LIMIT] if row.is_limit_counted else names, results, counter)
    elif plan.splitter:
        split(row, results, plan.splitter)


def undisturbed(plan: Plan, measured: Measured, measure: Callable[[], Found]) -> Found:
    """Measures, and repeats that if something else slowed the processors."""
    if plan.watch is None:
        return measure()
    found, slowed = plan.watch.measure(measure)
    for run in measured.runs[-1:]:
        for what, is_so in ("timed", True), ("slowed", slowed):
            run.watched[what] = run.watched.get(what, 0) + is_so
    return found


def time_round(row: Row, plan: Plan, number: int, measured: Measured) -> None:
    """Each loop once with each setting of malloc, in a random order, so that a slow spell of the machine
    affects any of them."""
    results = measured.results
    turns = plan.turns(row)
    random.Random(f"{plan.seed}: {row.name}, rates {number}").shuffle(turns)
    found = []
    for name, setting in turns:
        result = results.setdefault((row.name, name), Result())
        if result.failure:
            continue
        described = f"{name}, malloc {setting}" if setting else name
        progress(f"{row.name}: {described}, round {number} of {plan.rounds}")
        try:
            with malloc.set_to(setting):
                rate = partial(row.rate, measured_as(name), plan.seconds)
                found.append((name, setting, undisturbed(plan, measured, rate)))
        except Exception as error:
            fail(row, name, result, error, f"in round {number}")
            # A loop that fails in one round has no rate.
            result.outcomes.clear()
            result.keeping.clear()
    for name, setting, outcome in found:
        result = results[row.name, name]
        if not result.failure:
            (result.keeping if setting else result.outcomes).append(outcome)


def pace_round(row: Row, plan: Plan, number: int, measured: Measured) -> None:
    """Each loop once at each rate, in a random order."""
    results = measured.results
    slowest = latency.capacity_in(row.name, plan.names(row), results)
    if slowest is None or not isinstance(row, ServerRow):
        progress(f"{row.name}: no latency at fixed rates, as no loop has a rate")
        return
    turns = plan.paced(row)
    random.Random(f"{plan.seed}: {row.name}, latency {number}").shuffle(turns)
    found = []
    for name, share in turns:
        result = results.setdefault((row.name, name), Result())
        if result.failure or result.paced_failure:
            continue
        rate = latency.rate_of(slowest[1], share)
        progress(f"{row.name}: {name}, {rate:,} requests a second, round {number} of {plan.rounds}")
        try:
            pace = partial(row.latency, measured_as(name), rate, plan.seconds)
            found.append((name, share, undisturbed(plan, measured, pace)))
        except Exception as error:
            result.paced_failure = reason_of(error, f"at {rate:,} a second in round {number}")
            result.paced.clear()
            progress(f"{row.name}: {name} FAILS {result.paced_failure}")
    for name, share, paced in found:
        result = results[row.name, name]
        if not result.paced_failure:
            result.paced.setdefault(str(share), []).append(paced)


def measured_as(name: str) -> str:
    """The loop that is measured under a name."""
    return OURS if name == CONTROL else name


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
    result.failure = reason_of(error, when)
    progress(f"{row.name}: {name} FAILS {result.failure}")


def reason_of(error: Exception, when: str) -> str:
    reason = str(error) if isinstance(error, Failed) else f"cannot be measured: {error!r}"
    # The reason may be any output of a loop.
    legible = "".join(letter if letter.isprintable() and letter != "|" else "?" for letter in reason)
    return f"{when}: {legible[:200]}"


def progress(text: str) -> None:
    sys.stderr.write(text + "\n")
