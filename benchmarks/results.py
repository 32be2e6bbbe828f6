"""Results as JSON, from which the page can be written again, and a part measured anew."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import loops
from benchmarks.counters import Count
from benchmarks.generator import Outcome, Paced
from benchmarks.growth_result import Growth
from benchmarks.loops import CONTROL
from benchmarks.row import LIMIT


@dataclass
class Result:
    """The result of one loop in one row."""

    outcomes: list[Outcome] = field(default_factory=list)
    """One for each round."""
    count: Count = field(default_factory=Count)
    failure: str = ""
    keeping: list[Outcome] = field(default_factory=list)
    """One for each round with malloc that keeps freed memory."""
    paced: dict[str, list[Paced]] = field(default_factory=dict)
    """Latency at fixed rates: for each share of the capacity, in per cent, one for each round."""
    paced_failure: str = ""

    @property
    def is_empty(self) -> bool:
        measured = self.outcomes or self.keeping or self.paced or self.paced_failure or self.failure
        return not measured and self.count == Count()

    def updated_with(self, new: "Result") -> "Result":
        """Replaces what `new` has; what it does not have, as with --no-rates, stays."""
        if new.is_empty:
            return self
        if self.failure or new.failure:
            return new
        paced = new if new.paced or new.paced_failure else self
        return Result(
            new.outcomes or self.outcomes,
            self.count.merged_with(new.count),
            "",
            new.keeping or self.keeping,
            paced.paced,
            paced.paced_failure,
        )


Results = dict[tuple[str, str], Result]
"""Results by the names of row and loop."""


@dataclass(frozen=True)
class Run:
    """A run of the benchmarks: time, machine, rows and loops."""

    facts: dict[str, str]
    rows: list[str]
    loops: list[str]
    parts: list[str]
    """Measured parts: rates, counts, the split, latency at fixed rates."""
    seed: int | None = None
    """Decides the order of the loops in each round."""
    key: str = ""
    """What must be equal for another run to go on with this one: see resume.py."""
    no_time_for: dict[str, list[str]] = field(default_factory=dict)
    """The rows that did not fit into the time, by what is measured of them."""
    watched: dict[str, int] = field(default_factory=dict)
    """How many rounds of a loop were "timed", and how many of these while something else "slowed" the
    processors, although they were repeated."""

    def is_covered_by(self, later: "Run") -> bool:
        return (
            set(self.rows) <= set(later.rows)
            and set(self.loops) <= set(later.loops)
            and set(self.parts) <= set(later.parts)
        )


@dataclass
class Measured:
    """The results of one run, or of several that measured a part each."""

    runs: list[Run]
    results: Results
    growths: list[Growth] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    """The steps that are done, of a run that is not complete."""

    @property
    def loops(self) -> list[str]:
        """The loops with a result, in the order of all tables."""
        found = {name for _, name in self.results} - {LIMIT, CONTROL}
        known = [name for name in loops.FACTORIES if name in found]
        return known + sorted(found.difference(known))

    def of(self, row: str, loop: str) -> Result:
        return self.results.get((row, loop), Result())

    def has(self, row: str) -> bool:
        return any(name == row and not result.is_empty for (name, _), result in self.results.items())

    def updated_with(self, new: "Measured") -> "Measured":
        runs = [run for run in self.runs if not any(run.is_covered_by(later) for later in new.runs)]
        results = self.results | {key: self.of(*key).updated_with(new.of(*key)) for key in new.results}
        growths = {growth.name: growth for growth in [*self.growths, *new.growths]}
        return Measured(runs + new.runs, results, list(growths.values()), new.steps)

    def write(self, path: Path) -> None:
        """Replaces the file atomically: an interruption does not lose its content."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".new")
        unfinished.write_text(json_of(self.as_json(), levels=3) + "\n")
        unfinished.replace(path)

    def as_json(self) -> dict[str, Any]:
        results: dict[str, dict[str, Any]] = {}
        for (row, loop), result in self.results.items():
            if not result.is_empty:
                results.setdefault(row, {})[loop] = asdict(result)
        return {
            "runs": [asdict(run) for run in self.runs],
            "results": results,
            "growths": [asdict(growth) for growth in self.growths],
            **({"steps": self.steps} if self.steps else {}),
        }


def json_of(value: Any, levels: int) -> str:
    """JSON, with a line for each value that is so many levels deep: for each loop of each row, here."""
    if levels == 0 or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{json.dumps(name)}: {json_of(each, levels - 1)}" for name, each in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    return "[\n" + ",\n".join(json_of(each, levels - 1) for each in value) + "\n]"


def read(path: Path) -> Measured:
    kept = json.loads(path.read_text())
    return Measured(
        [Run(**run) for run in kept["runs"]],
        {
            (row, loop): result_from_json(result)
            for row, of_loops in kept["results"].items()
            for loop, result in of_loops.items()
        },
        list(growths_from_json(kept["growths"])),
        kept.get("steps", []),
    )


def result_from_json(kept: dict[str, Any]) -> Result:
    outcomes, keeping = ([Outcome(**each) for each in kept.get(part, [])] for part in ("outcomes", "keeping"))
    paced = {share: [Paced(**each) for each in rounds] for share, rounds in kept.get("paced", {}).items()}
    failures = kept["failure"], kept.get("paced_failure", "")
    return Result(outcomes, Count(**kept["count"]), failures[0], keeping, paced, failures[1])


def growths_from_json(kept: Iterable[dict[str, Any]]) -> Iterable[Growth]:
    for growth in kept:
        series = {loop: tuple(figures) for loop, figures in growth["series"].items()}
        yield Growth(**growth | {"x_values": tuple(growth["x_values"]), "series": series})
