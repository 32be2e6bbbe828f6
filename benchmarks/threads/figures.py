"""The figures of all rows, as JSON, from which the section can be written again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.spread import Spread
from benchmarks.threads.rows import Row, Sample, Workers


@dataclass(frozen=True)
class Figure:
    """The result of a loop in a row, in so many threads or processes."""

    cost: float | None = None
    """Nanoseconds of processor time per operation or request, as the row chooses among all."""
    rate: float | None = None
    """Operations or requests per second of all workers, the median of the rounds."""
    failure: str = ""
    rate_spread: float | None = None
    """Half of the rates' interquartile range, as a share of the median."""

    @classmethod
    def of(cls, samples: Sequence[Sample], row: Row) -> "Figure":
        """The figure of all rounds. It has no cost if they found fewer costs than the row needs."""
        costs = [cost for sample in samples for cost in sample.costs]
        cost = row.choose(costs) if len(costs) >= row.least else None
        rates = Spread.of([sample.rate for sample in samples if sample.rate is not None])
        if rates is None:
            return cls(cost)
        return cls(cost, rates.median, rate_spread=rates.relative)


Key = tuple[str, str, str]
"""The names of row and loop, and the title of the workers."""


@dataclass
class Figures:
    facts: dict[str, str]
    has_gil: bool
    workers: list[Workers]
    """A single one is the first."""
    loops: list[str]
    left_out: dict[str, str]
    """Why loops are not measured."""
    take_gil: list[str]
    """Loops that enable the GIL when they are imported."""
    found: dict[Key, Figure] = field(default_factory=dict)

    def of(self, row: str, loop: str, workers: Workers) -> Figure:
        return self.found.get((row, loop, workers.title), Figure())

    def factor(self, row: str, loop: str, workers: Workers) -> float | None:
        """How many times as much work these workers do with as much processor time each as one alone has.

        None for threads that take turns, which never have that."""
        alone = self.of(row, loop, self.workers[0]).cost
        together = self.of(row, loop, workers).cost
        take_turns = workers.threads > 1 and (self.has_gil or loop in self.take_gil)
        if take_turns or alone is None or together is None:
            return None
        return workers.number * alone / together

    def write(self, path: Path) -> None:
        found = [[*key, asdict(figure)] for key, figure in self.found.items()]
        path.parent.mkdir(parents=True, exist_ok=True)
        workers = [asdict(each) for each in self.workers]
        path.write_text(json.dumps(vars(self) | {"workers": workers, "found": found}, indent=1) + "\n")


def read(path: Path) -> Figures:
    kept = json.loads(path.read_text())
    found = {(row, loop, workers): Figure(**figure) for row, loop, workers, figure in kept["found"]}
    workers = [Workers(**each) for each in kept["workers"]]
    return Figures(**kept | {"workers": workers, "found": found})
