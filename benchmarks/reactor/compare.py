"""hotloop's reactor beside mio's, as a table: python -m benchmarks.reactor.compare [CASE...]

Nanoseconds are the best of interleaved rounds; instructions and system calls come from the counters of this
machine. `cargo bench` measures these cases with criterion.
"""

import json
import subprocess
import sys
import tempfile

from benchmarks import counters
from benchmarks.children import ROOT, run
from benchmarks.counters import Count, Counter

PACKAGE = ROOT / "benchmarks" / "reactor"
SIDES = ("mio", "hotloop")
ROUNDS = 7
PATIENCE = 120.0

CASES = {
    "ready_1_of_1": 50_000,
    "ready_64_of_64": 1_000,
    "ready_100_of_10000": 600,
    "wake_same_thread": 100_000,
    "wake_round_trip": 10_000,
    "wait_zero": 500_000,
    "wait_zero_of_10000": 500_000,
    "wait_1_ms": 100,
    "register": 50_000,
    "register_among_10000": 50_000,
    "change_interest": 100_000,
}
"""How many times a round does each case."""
COUNTED = 200
"""How many times a case is done to count it."""


def main(cases: list[str]) -> None:
    program = build()
    counting = counters.available()
    print("| | ns: mio | hotloop | ratio | user instructions: mio | hotloop | system calls: mio | hotloop |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases or CASES:
        best = nanoseconds(program, case, CASES[case])
        counts = {side: count(program, side, case, counting) for side in SIDES}
        cells = [f"{best[side]:,.0f}" for side in SIDES]
        cells.append(f"{best['hotloop'] / best['mio']:.2f}")
        cells += [shown(counts[side].user, 0) for side in SIDES]
        cells += [shown(counts[side].calls, 1) for side in SIDES]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


def build() -> str:
    subprocess.run(["cargo", "build", "--release", "--quiet", "-j1"], cwd=PACKAGE, check=True)
    metadata = ["cargo", "metadata", "--no-deps", "--format-version=1"]
    printed = subprocess.run(metadata, cwd=PACKAGE, capture_output=True, check=True).stdout
    return f"{json.loads(printed)['target_directory']}/release/reactor-benchmark"


def nanoseconds(program: str, case: str, times: int) -> dict[str, float]:
    rounds = [
        {side: float(run([program, side, case, str(times)], timeout=PATIENCE)) for side in SIDES}
        for _ in range(ROUNDS)
    ]
    return {side: min(taken[side] for taken in rounds) for side in SIDES}


def count(program: str, side: str, case: str, counting: list[Counter]) -> Count:
    """Counts doing it once: the difference between a long run and a short one."""
    counted = Count()
    for counter in counting:
        start, whole = (
            whole_count([program, side, case, str(times)], counter) for times in (COUNTED, 2 * COUNTED)
        )
        counted = counted.merged_with(whole.per_request(start, COUNTED))
    return counted


def whole_count(command: list[str], counter: Counter) -> Count:
    with tempfile.NamedTemporaryFile() as output:
        run(counter.wrap(command, output.name), timeout=PATIENCE)
        return counter.read(output.name)


def shown(figure: float | None, digits: int) -> str:
    return "" if figure is None else f"{figure:,.{digits}f}"


if __name__ == "__main__":
    main(sys.argv[1:])
