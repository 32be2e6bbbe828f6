"""The command: python -m benchmarks"""

import argparse
import datetime
import random
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import counters, generator, loops, machine, quiet, report, results, resume, split, steps, tls
from benchmarks.children import ROOT
from benchmarks.growth_result import Growth
from benchmarks.loops import OURS
from benchmarks.measuring import measure, progress
from benchmarks.results import Measured, Run
from benchmarks.row import LIMIT, ClientRow, Row
from benchmarks.rows import ROWS
from benchmarks.steps import Plan

KEPT = ROOT / "docs" / "benchmarks.json"
"""The results of whole runs. The page and the charts are beside it."""
PART = ROOT / "target" / "benchmarks" / "benchmarks.json"
"""The results of partial runs, and of those that were interrupted."""
UNFINISHED = PART.with_name("unfinished.json")
"""A run that is not complete, with which the next one goes on."""

GROWTH = "growth"
"""The group of growth measurements, which has no rows."""
GROWTH_OF_TLS = "growth of TLS"
SECONDS_TO_GROW = {GROWTH: 150.0, GROWTH_OF_TLS: 10.0}
"""About how long they take for each loop."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{row.name:24} {row.group:12} {row.title}" for row in ROWS))
        return 0
    if options.render:
        report.write(results.read(options.render), options.render, progress)
        return 0
    before = results.read(options.update) if options.update else Measured([], {})
    plan, with_growth = plan_of(options), wants_growth(options)
    build(plan, with_growth)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan, measured = begun(plan, options)
    name_missing(options)
    path = PART
    try:
        growing = growing_takes(plan, options, measured)
        measure(plan, measured, lambda: measured.write(UNFINISHED), afterwards=growing)
        if with_growth:
            grow(GROWTH, measured, lambda: growths(plan))
        if wants_growth_of_tls(options):
            grow(GROWTH_OF_TLS, measured, lambda: growths_of_tls(plan))
        if plan.minutes is not None and not with_growth:
            measured.runs[-1].no_time_for[GROWTH] = []
        measured.steps.clear()
        UNFINISHED.unlink(missing_ok=True)
        path = destination(options)
    except KeyboardInterrupt:
        progress("INTERRUPTED: what was measured so far is kept, and the same command goes on with it")
        return 1
    finally:
        keep(before, measured, path)
    return 0


def begun(plan: Plan, options: argparse.Namespace) -> tuple[Plan, Measured]:
    """The plan and what is measured of it: nothing, or what an interrupted run has."""
    run = run_of(plan)
    with_growth = {GROWTH: wants_growth(options), GROWTH_OF_TLS: wants_growth_of_tls(options)}
    key = resume.key(plan, run.facts, with_growth)
    kept = None if options.fresh else resume.unfinished(UNFINISHED, key)
    if kept is None:
        return plan, Measured([replace(run, key=key)], {})
    return replace(plan, seed=kept.runs[0].seed or 0), kept


def growing_takes(plan: Plan, options: argparse.Namespace, measured: Measured) -> float:
    """About how many seconds the measurements of growth take."""
    wanted = {GROWTH: wants_growth(options), GROWTH_OF_TLS: wants_growth_of_tls(options)}
    names = [name for name in wanted if wanted[name] and name not in measured.steps]
    return sum(SECONDS_TO_GROW[name] * len(plan.loops) for name in names)


def grow(step: str, measured: Measured, measure: Callable[[], list[Growth]]) -> None:
    """Adds growths, unless an interrupted run has them."""
    if step in measured.steps:
        return
    measured.growths += measure()
    measured.steps.append(step)
    measured.write(UNFINISHED)


def not_installed() -> list[str]:
    return [name for name in loops.FACTORIES if not loops.is_installed(name)]


def name_missing(options: argparse.Namespace) -> None:
    """Says which loops are left out because they are not installed."""
    if not options.loops and (missing := not_installed()):
        progress(f"not installed, and left out: {', '.join(missing)}")


def build(plan: Plan, with_growth: bool) -> None:
    if with_growth or any(row.group != "scheduling" for row in plan.rows):
        generator.build()
    if any(row.has_limit or isinstance(row, ClientRow) for row in plan.rows):
        generator.build(LIMIT)


def keep(before: Measured, measured: Measured, path: Path) -> None:
    """Writes the results, also of a run that was interrupted or failed."""
    rows = [row.name for row in ROWS if measured.has(row.name)]
    measured.runs = [
        replace(run, rows=rows + [GROWTH] * (len(measured.growths) > 1)) for run in measured.runs
    ]
    print(report.write(before.updated_with(measured), path, progress))
    failed = [f"{row} on {loop}" for (row, loop), result in measured.results.items() if result.failure]
    if failed:
        progress(f"{len(failed)} FAILED: {', '.join(failed)}")
    progress(f"written: {path.with_suffix('.md')}, and the results and charts beside it")


def growths(plan: Plan) -> list[Growth]:
    from benchmarks.growth import measure as measure_growth

    return measure_growth([name for name in plan.loops if "+" not in name], quick=plan.rounds <= 1)


def growths_of_tls(plan: Plan) -> list[Growth]:
    from benchmarks.growth import measure_tls

    return measure_tls(plan.loops, quick=plan.rounds <= 1)


def parser() -> argparse.ArgumentParser:
    installed = [name for name in loops.FACTORIES if loops.is_installed(name)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare event loops.")
    groups = dict.fromkeys(row.group for row in ROWS)
    add = parser.add_argument
    add("--loops", help=f"comma-separated (default: those installed, {','.join(installed)})")
    add("--rows", help=f"groups or rows (default: {','.join([*groups, GROWTH])})")
    add("--growth", action=argparse.BooleanOptionalAction, help="how cost grows (default: with all rows)")
    add("--rounds", type=int, default=7, help="timed rounds of each loop, in turn (default: 7)")
    add("--seconds", type=float, default=1, help="length of a server's round (default: 1)")
    add("--no-rates", action="store_true", help="count instructions only")
    add("--no-counts", action="store_true", help="measure rates only")
    add("--no-split", action="store_true", help="don't find out where hotloop's instructions go")
    add(
        "--minutes", type=float, help="measure only what fits into this time, the rows that matter most first"
    )
    add("--seed", type=int, help="decides the order of the loops in each round (default: a random one)")
    add("--fresh", action="store_true", help="don't go on with an interrupted run")
    add("--output", type=Path, metavar="JSON", help="where the results go, the page and the charts beside it")
    add("--update", type=Path, metavar="JSON", help="measure anew what is chosen, in these results")
    add("--render", type=Path, metavar="JSON", help="write the page and the charts again, measure nothing")
    add("--list", action="store_true", help="list the rows and stop")
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    installed = [name for name in loops.FACTORIES if loops.is_installed(name)]
    chosen = chosen_rows(options.rows.split(",")) if options.rows else ROWS
    rows = [row for row in chosen if not row.missing]
    left_out = {row.name: " and ".join(row.missing) for row in chosen if row.missing}
    names = chosen_loops(options.loops.split(",")) if options.loops else installed
    rounds = 0 if options.no_rates else options.rounds
    counting = [] if options.no_counts else counters.available()
    splits = OURS in names and not (options.no_split or options.no_counts)
    splitter = split.available() if splits else None
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    watch = quiet.Watch()
    return Plan(
        rows, names, rounds, options.seconds, counting, splitter, seed, options.minutes, left_out, watch
    )


def chosen_rows(wanted: list[str]) -> list[Row]:
    for name in wanted:
        if name != GROWTH and not any(row.is_named(name) for row in ROWS):
            raise SystemExit(f"no such row: {name} (--list shows them)")
    return [row for row in ROWS if any(row.is_named(name) for name in wanted)]


def chosen_loops(names: list[str]) -> list[str]:
    for name in names:
        if not loops.is_installed(name):
            raise SystemExit(f"not installed: {name}")
    return names


def wants_growth(options: argparse.Namespace) -> bool:
    if options.growth is not None:
        return bool(options.growth)
    if options.minutes is not None:
        return False
    return is_whole(options) or bool(options.rows and GROWTH in options.rows.split(","))


def wants_growth_of_tls(options: argparse.Namespace) -> bool:
    """With all rows over TLS, too."""
    return wants_growth(options) or (
        options.growth is None
        and options.minutes is None
        and bool(options.rows and tls.GROUP in options.rows.split(","))
    )


def is_whole(options: argparse.Namespace) -> bool:
    leaves_out = options.no_rates or options.no_counts or options.no_split or options.growth is False
    return not (options.rows or options.loops or leaves_out or options.minutes is not None)


def destination(options: argparse.Namespace) -> Path:
    chosen: Path | None = options.output or options.update
    return chosen or (KEPT if is_whole(options) else PART)


def is_of_all_loops(plan: Plan) -> bool:
    """Whether only loops that are not installed are left out."""
    return {*plan.loops, *not_installed()} >= set(loops.FACTORIES)


def run_of(plan: Plan) -> Run:
    how = []
    if plan.rounds:
        how.append(f"{plan.rounds} round{'s' * (plan.rounds > 1)}; a server's lasts {plan.seconds:g} s")
    has_http = any(row.group == "http" for row in plan.rows)
    if has_http and plan.rounds and plan.seconds < 1 and generator.has_wrk():
        how.append("HTTP without wrk, which takes whole seconds")
    if plan.minutes is not None:
        how.append(f"in {plan.minutes:g} minutes")
    if plan.counters:
        how.append("counted with " + " and ".join(f"`{counter.name}`" for counter in plan.counters))
    if plan.counters and not any(isinstance(counter, counters.Perf) for counter in plan.counters):
        how.append("kernel instructions not measured, because perf counts none on this machine")
    if plan.splitter:
        how.append(f"split with `{plan.splitter.name}`")
    facts = {
        "Date": datetime.date.today().isoformat(),
        **machine.machine(),
        **machine.versions(plan.loops),
        **(
            {"Not installed": ", ".join(not_installed())} if is_of_all_loops(plan) and not_installed() else {}
        ),
        "Measured": "; ".join(how),
        **({"Order": f"random in each round, seed {plan.seed}"} if plan.rounds else {}),
    }
    if plan.left_out:
        facts["Left out"] = "; ".join(f"{name} needs {needs}" for name, needs in plan.left_out.items())
    parts = [steps.RATES] * (plan.rounds > 0) + [steps.COUNTS] * bool(plan.counters)
    parts += [steps.SPLIT] * bool(plan.splitter)
    return Run(facts, [row.name for row in plan.rows], plan.loops, parts, plan.seed)


if __name__ == "__main__":
    sys.exit(main())
