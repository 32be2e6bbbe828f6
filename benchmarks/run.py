"""The command: python -m benchmarks"""

import argparse
import concurrent.futures
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks import counters, generator, loops
from benchmarks.children import Failed, end_all
from benchmarks.counters import Counter
from benchmarks.report import Result, Results, markdown
from benchmarks.rows import ROWS, Row


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{row.name:24} {row.group:12} {row.title}" for row in ROWS))
        return 0
    rows, names = chosen_rows(options.rows), chosen_loops(options.loops)
    counting = [] if options.no_counts else counters.available()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: Results = {(row.name, name): Result() for row in rows for name in names}
    try:
        if any(row.group != "scheduling" for row in rows):
            generator.build()
        for row in rows:
            if not options.no_rates:
                time_in_turn(row, names, results, options.rounds, options.seconds)
            for counter in counting:
                count_together(row, names, results, counter)
    except KeyboardInterrupt:
        progress("interrupted: the tables have what was measured so far")
    text = markdown(rows, names, results, settings(options, counting))
    print(text)
    if options.output:
        options.output.write_text(text)
    return 0


def parser() -> argparse.ArgumentParser:
    installed = [name for name in loops.FACTORIES if loops.is_installed(name)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare event loops.")
    add = parser.add_argument
    add(
        "--loops", default=",".join(installed), help="comma-separated (default: those installed, %(default)s)"
    )
    add("--rows", default="scheduling,echo,http", help="groups or rows (default: %(default)s)")
    add("--rounds", type=int, default=5, help="timed rounds of each loop, in turn (default: 5)")
    add("--seconds", type=float, default=1, help="length of a server's round (default: 1)")
    add("--no-rates", action="store_true", help="count instructions only")
    add("--no-counts", action="store_true", help="measure rates only")
    add("--output", type=Path, help="write the tables to this file, too")
    add("--list", action="store_true", help="list the rows and stop")
    return parser


def chosen_rows(text: str) -> list[Row]:
    wanted = text.split(",")
    for name in wanted:
        if not any(row.is_named(name) for row in ROWS):
            raise SystemExit(f"no such row: {name} (--list shows them)")
    return [row for row in ROWS if any(row.is_named(name) for name in wanted)]


def chosen_loops(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if not loops.is_installed(name):
            raise SystemExit(f"not installed: {name}")
    return names


def time_in_turn(row: Row, names: list[str], results: Results, rounds: int, seconds: float) -> None:
    """Rounds are interleaved, so that a slow spell of the machine hits every loop."""
    for number in range(1, rounds + 1):
        for name in names:
            result = results[row.name, name]
            if result.failure:
                continue
            progress(f"{row.name}: {name}, round {number} of {rounds}")
            try:
                result.outcomes.append(row.rate(name, seconds))
            except Failed as failure:
                fail(row, name, result, str(failure))


def count_together(row: Row, names: list[str], results: Results, counter: Counter) -> None:
    """Instructions do not depend on what else runs, so all processors count."""
    interrupted = threading.Event()

    def count(name: str) -> None:
        result = results[row.name, name]
        if result.failure:
            return
        progress(f"{row.name}: {name}, {counter.name}")
        try:
            result.count = result.count.merged_with(row.count(name, counter))
        except Failed as failure:
            if not interrupted.is_set():
                fail(row, name, result, f"under {counter.name}: {failure}")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = [pool.submit(count, name) for name in names]
        try:
            concurrent.futures.wait(counts)
        except KeyboardInterrupt:
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    for counted in counts:
        counted.result()


def fail(row: Row, name: str, result: Result, reason: str) -> None:
    result.failure = reason
    progress(f"{row.name}: {name} FAILS: {reason}")


def settings(options: argparse.Namespace, counting: list[Counter]) -> list[str]:
    lines = []
    if not options.no_rates:
        lines.append(f"Rates: {options.rounds} interleaved rounds; a server's lasts {options.seconds:g} s")
    if not options.no_counts:
        lines.append("Counted with " + (" and ".join(counter.name for counter in counting) or "nothing"))
        if not any(isinstance(counter, counters.Perf) for counter in counting):
            lines.append("Kernel instructions: not measured (perf counts no instructions on this machine)")
    return lines


def progress(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
