"""The command: python -m benchmarks.threads"""

import argparse
import datetime
import os
import signal
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import loops, machine, run
from benchmarks.children import Failed
from benchmarks.children import run as run_command
from benchmarks.measuring import progress
from benchmarks.threads import section
from benchmarks.threads.figures import Figure, Figures, read
from benchmarks.threads.rows import ROWS, Row, Sample, Workers
from benchmarks.threads.work_servers import GRANIAN

PATIENCE = 20.0
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
ASK_FOR_GIL = "import sys, {module}; print(getattr(sys, '_is_gil_enabled', lambda: True)())"


@dataclass(frozen=True)
class Plan:
    rows: list[Row]
    loops: list[str]
    workers: list[Workers]
    rounds: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.render:
        text = section.section(read(options.render))
        keep(text, options.render)
        return 0
    left_out: dict[str, str] = dict(options.without)
    take_gil: list[str] = []
    plan = plan_of(options, usable(chosen_loops(options), left_out, take_gil))
    has_gil = not IS_FREE_THREADED or getattr(sys, "_is_gil_enabled", lambda: True)()
    figures = Figures(facts_of(plan, has_gil), has_gil, plan.workers, plan.loops, left_out, take_gil)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    path = section.of_page(run.PART)
    status = 1
    try:
        measure(plan, figures)
        path, status = destination(options), 0
    except KeyboardInterrupt:
        progress("INTERRUPTED: what was measured so far is kept")
    finally:
        figures.write(path)
        keep(section.section(figures), path)
        progress(f"written: {path}")
    return status


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads", description="Compare several event loops in one process."
    )
    add = parser.add_argument
    add("--loops", help="comma-separated (default: those installed, and granian)")
    add("--without", type=reason, action="append", default=[], metavar="LOOP=REASON", help="leave a loop out")
    add("--rows", help=f"comma-separated (default: {','.join(row.name for row in ROWS)})")
    add("--threads", type=int, default=2, help="threads or processes that are compared with one (default: 2)")
    add("--rounds", type=int, default=7, help="rounds of each loop, in turn (default: 7)")
    add("--seconds", type=float, default=1.2, help="length of a round (default: 1.2)")
    add("--quick", action="store_true", help="one short round, to try it")
    add(
        "--output",
        type=Path,
        metavar="JSON",
        help="where the figures go; the page beside it has the section",
    )
    add("--render", type=Path, metavar="JSON", help="write the section again, measure nothing")
    return parser


def reason(text: str) -> tuple[str, str]:
    loop, _, why = text.partition("=")
    return loop, why or "left out"


def chosen_loops(options: argparse.Namespace) -> list[str]:
    if options.loops:
        return options.loops.split(",")
    return [*(name for name in loops.FACTORIES if "+" not in name), GRANIAN]


def usable(names: list[str], left_out: dict[str, str], take_gil: list[str]) -> list[str]:
    """The loops that can be measured. Adds the others to `left_out`, and those that enable the GIL."""
    found = []
    for name in names:
        if name in left_out:
            continue
        if not loops.is_installed(name):
            left_out[name] = "not installed"
        elif name == GRANIAN and not IS_FREE_THREADED:
            left_out[name] = "its workers are processes where there is a GIL"
        else:
            try:
                enabled = run_command(
                    [sys.executable, "-c", ASK_FOR_GIL.format(module=loops.package(name))], timeout=PATIENCE
                )
            except Failed as failure:
                left_out[name] = str(failure)
                continue
            found.append(name)
            if IS_FREE_THREADED and enabled.strip() == "True":
                take_gil.append(name)
    return found


def plan_of(options: argparse.Namespace, names: list[str]) -> Plan:
    workers = [Workers(), Workers(threads=options.threads), Workers(processes=options.threads)]
    rounds, seconds = (1, 0.1) if options.quick else (options.rounds, options.seconds)
    return Plan(chosen_rows(options.rows), names, workers, rounds, seconds)


def chosen_rows(wanted: str | None) -> list[Row]:
    if not wanted:
        return ROWS
    names = wanted.split(",")
    for name in names:
        if not any(row.name == name for row in ROWS):
            raise SystemExit(f"no such row: {name}")
    return [row for row in ROWS if row.name in names]


def destination(options: argparse.Namespace) -> Path:
    """As for the other benchmarks, only a whole run goes to docs/."""
    is_whole = not (options.loops or options.rows or options.quick)
    return options.output or section.of_page(run.KEPT if is_whole else run.PART)


def measure(plan: Plan, figures: Figures) -> None:
    for row in plan.rows:
        samples: dict[tuple[str, Workers], list[Sample]] = {
            (loop, workers): [] for loop in plan.loops for workers in plan.workers if row.fits(loop, workers)
        }
        for number in range(1, plan.rounds + 1):
            for (loop, workers), found in samples.items():
                key = row.name, loop, workers.title
                if figures.of(row.name, loop, workers).failure:
                    continue
                when = f"round {number} of {plan.rounds}"
                progress(f"{row.name}: {loop}, {workers.title}, {when}")
                try:
                    found.append(row.measure(loop, workers, plan.seconds))
                except Failed as failure:
                    figures.found[key] = Figure(failure=str(failure))
                    progress(f"{row.name}: {loop} FAILS: {failure}")
                else:
                    figures.found[key] = Figure.of(found, row)


def facts_of(plan: Plan, has_gil: bool) -> dict[str, str]:
    versions = machine.versions([name for name in plan.loops if name != GRANIAN])
    tools = machine.version_of_tool("wrk")
    rounds = f"{plan.rounds} round{'s' * (plan.rounds > 1)}"
    return {
        "Date": datetime.date.today().isoformat(),
        **machine.machine(),
        "Python": f"{versions['Python']}{', free-threaded' if IS_FREE_THREADED else ''}",
        "GIL": "enabled: threads take turns" if has_gil else "disabled",
        "Loops": versions["Loops"],
        "HTTP servers": f"granian {loops.version(GRANIAN)}" if GRANIAN in plan.loops else "none",
        "Tools": f"wrk {tools}" if tools else "none",
        "Other load": f"{os.getloadavg()[0]:.1f} runnable processes on average when it began",
        "Measured": f"{rounds} of {plan.seconds:g} s; a server's last a second or more",
    }


def keep(text: str, path: Path) -> None:
    """Prints the section, and puts it into the page whose figures these are, if it is there."""
    print(text)
    page = path.with_name(path.name.replace("-threads.json", ".md"))
    if page.exists() and page.suffix == ".md":
        section.put_into(page, text)


if __name__ == "__main__":
    sys.exit(main())
