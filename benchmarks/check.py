"""Fails when hotloop's scheduling costs more instructions than it did: python -m benchmarks.check [--update]

baseline.json has the committed costs by counting tool and version of Python, whose figures differ. Rows
without a steady count are left out.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import counters
from benchmarks.children import Failed
from benchmarks.counters import Counter
from benchmarks.loops import OURS
from benchmarks.row import SchedulingRow
from benchmarks.rows import ROWS

BASELINE = Path(__file__).parent / "baseline.json"
TOLERANCE = 0.03
AT_A_TIME = 2
# A row that costs more is counted with other layouts of memory, too: at certain addresses, two names displace
# each other from the interpreter's cache of methods, which costs a tenth of a row.
LAYOUTS = range(12)

Baseline = dict[str, dict[str, int]]
"""Instructions by tool and version of Python, then by row."""


@dataclass(frozen=True)
class Comparison:
    row: str
    committed: int | None
    now: int | None
    failure: str = ""

    @property
    def difference(self) -> float | None:
        return self.now / self.committed - 1 if self.now is not None and self.committed else None

    @property
    def is_worse(self) -> bool:
        return bool(self.failure) or (self.difference is not None and self.difference > TOLERANCE)

    @property
    def is_better(self) -> bool:
        return self.difference is not None and self.difference < -TOLERANCE


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.check", description=__doc__)
    parser.add_argument("--update", action="store_true", help="keep what is counted now as the baseline")
    update = parser.parse_args(arguments).update
    counter = next((tool for tool in counters.available() if tool.counts_instructions), None)
    if counter is None:
        print("not checked: neither perf nor valgrind counts instructions on this machine")
        return 0
    kept, key = read(), key_of(counter)
    if key not in kept and not update:
        print(f"not checked: {BASELINE.name} has no figures for {key}; make bench-check UPDATE=1 writes them")
        return 0
    compared = count_all(counter, kept.get(key, {}))
    print(table(compared))
    if update:
        return write(kept, key, compared)
    print("\n".join(verdict(compared)))
    return int(any(comparison.is_worse for comparison in compared))


def key_of(counter: Counter) -> str:
    tool = "perf" if isinstance(counter, counters.Perf) else "valgrind"
    return f"{tool}, Python {sys.version_info.major}.{sys.version_info.minor}"


def read() -> Baseline:
    kept: Baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return kept


def write(kept: Baseline, key: str, compared: list[Comparison]) -> int:
    """Updates baseline.json, unless a row failed; returns the exit status."""
    failures = [f"{each.row} fails: {each.failure}" for each in compared if each.failure]
    if failures:
        print("\n".join([*failures, f"{BASELINE.name} is left as it is"]))
        return 1
    kept[key] = {each.row: each.now for each in compared if each.now is not None}
    BASELINE.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    print(f"{BASELINE.name} has these figures now, for {key}")
    return 0


def rows() -> list[SchedulingRow]:
    return [row for row in ROWS if isinstance(row, SchedulingRow) and row.case.is_steady]


def count_all(counter: Counter, committed: dict[str, int]) -> list[Comparison]:
    def compare(row: SchedulingRow) -> Comparison:
        before = committed.get(row.name)
        comparisons = []
        for layout in LAYOUTS:
            try:
                now = dataclasses.replace(row, layout=layout).count(OURS, counter).user
            except Failed as failure:
                return Comparison(row.name, before, None, str(failure))
            comparisons.append(Comparison(row.name, before, None if now is None else round(now)))
            if not comparisons[-1].is_worse:
                break
        return min(comparisons, key=lambda comparison: comparison.now or 0)

    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(compare, rows()))


def table(compared: list[Comparison]) -> str:
    lines = [f"{'user instructions':26} {'committed':>10} {'now':>10} {'difference':>11}"]
    for each in compared:
        difference = "" if each.difference is None else f"{each.difference:+.1%}"
        now = "fails" if each.failure else number(each.now)
        lines.append(f"{each.row:26} {number(each.committed):>10} {now:>10} {difference:>11}")
    return "\n".join(lines)


def number(figure: int | None) -> str:
    return "-" if figure is None else f"{figure:,}"


def verdict(compared: list[Comparison]) -> list[str]:
    """Lines on failures and higher costs, then on lower costs and new rows."""
    lines = [f"{each.row} FAILS: {each.failure}" for each in compared if each.failure]
    worse = [each.row for each in compared if each.is_worse and not each.failure]
    if worse:
        lines.append(f"COSTS MORE, by over {TOLERANCE:.0%}: {', '.join(worse)}")
    if any(each.is_better for each in compared):
        better = ", ".join(each.row for each in compared if each.is_better)
        lines.append(f"costs less, by over {TOLERANCE:.0%}: {better}; make bench-check UPDATE=1 keeps that")
    new = [each.row for each in compared if each.committed is None]
    if new:
        lines.append(f"not in {BASELINE.name}: {', '.join(new)}; make bench-check UPDATE=1 adds them")
    return lines or [f"all within {TOLERANCE:.0%} of {BASELINE.name}"]


if __name__ == "__main__":
    sys.exit(main())
