"""The steps of a run: how long they take, and which of them fit into a time."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from benchmarks import latency, malloc
from benchmarks.counters import Counter
from benchmarks.loops import CONTROL, OURS
from benchmarks.quiet import Watch
from benchmarks.row import LIMIT, Row, SchedulingRow
from benchmarks.rows import rank

RATES, LATENCY, COUNTS, SPLIT = "rates", "latency", "counts", "split"
PARTS = (RATES, LATENCY, COUNTS, SPLIT)

SECONDS_TO_COUNT = {"perf": 3.0, "valgrind": 10.0, "strace": 2.0}
"""About how long a tool takes to count one loop in a row, by its command."""
SECONDS_TO_SPLIT = 16.0
SCHEDULING_SHARE = 0.6
"""How long counting takes in a row of scheduling, as a share of the others."""


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
    seed: int = 0
    """Decides the order of the loops in each round."""
    minutes: float | None = None
    """How long the run may take; None for as long as it takes."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Rows that are not measured, and what they need that is not installed."""
    watch: Watch | None = None
    """Repeats what was measured while something else slowed the processors; None to measure once."""

    def names(self, row: Row) -> list[str]:
        """The loops that are measured in a row."""
        return [name for name in self.loops if row.compares(name)]

    def timed(self, row: Row) -> list[str]:
        """The loops with a rate in a row, hotloop's control, and the limit."""
        names = self.names(row)
        control = [CONTROL] if OURS in names and len(names) > 1 else []
        return [*names, *control, *([LIMIT] if row.has_limit else [])]

    def turns(self, row: Row) -> list[tuple[str, str]]:
        """What each round of rates has: a loop and a setting of malloc. The limit does not depend on it."""
        settings = malloc.settings(row.group)
        return [(name, each) for name in self.timed(row) for each in settings if name != LIMIT or not each]

    def paced(self, row: Row) -> list[tuple[str, int]]:
        """What each round of latency has: a loop and a share of the slowest one's capacity."""
        names = [name for name in self.timed(row) if name != LIMIT]
        return [(name, share) for name in names for share in latency.SHARES]


@dataclass(frozen=True)
class Step:
    """What is measured and saved at a time."""

    row: Row
    part: str
    number: int
    """Of the round or the counting tool."""
    takes: float
    """About how many seconds."""

    @property
    def name(self) -> str:
        return f"{self.row.name}: {self.part} {self.number}"

    @property
    def kind(self) -> tuple[str, str]:
        """Steps of a kind are estimated equally well."""
        return self.row.group, self.part

    @property
    def block(self) -> tuple[str, str]:
        """Steps that are measured all, or not at all."""
        return self.row.name, self.part


def steps(plan: Plan) -> list[Step]:
    """All steps in order: row by row or, if time is limited, part by part, with the rows by rank."""
    found = [step for row in plan.rows for step in of_row(row, plan)]
    if plan.minutes is not None:
        found.sort(key=lambda step: (PARTS.index(step.part), rank(step.row.name)))
    return found


def of_row(row: Row, plan: Plan) -> Iterator[Step]:
    for number in range(1, plan.rounds + 1):
        yield Step(row, RATES, number, len(plan.turns(row)) * row.round_takes(plan.seconds))
    if latency.is_measured(row):
        for number in range(1, plan.rounds + 1):
            yield Step(row, LATENCY, number, len(plan.paced(row)) * row.round_takes(plan.seconds))
    if not row.is_counted:
        return
    share = SCHEDULING_SHARE if isinstance(row, SchedulingRow) else 1.0
    for number, counter in enumerate(plan.counters, 1):
        each = SECONDS_TO_COUNT.get(counter.name.split()[0], SECONDS_TO_COUNT["valgrind"])
        yield Step(row, COUNTS, number, share * each * len(plan.names(row)) / (os.cpu_count() or 1))
    if plan.splitter and row.is_steady:
        yield Step(row, SPLIT, 1, share * SECONDS_TO_SPLIT)


@dataclass
class Estimates:
    """How long steps take, corrected by how long steps of their kind took."""

    _estimated: dict[tuple[str, str], float] = field(default_factory=dict)
    _taken: dict[tuple[str, str], float] = field(default_factory=dict)

    def add(self, step: Step, seconds: float) -> None:
        self._estimated[step.kind] = self._estimated.get(step.kind, 0.0) + step.takes
        self._taken[step.kind] = self._taken.get(step.kind, 0.0) + seconds

    def of(self, steps: Iterable[Step]) -> float:
        return sum(step.takes * self._factor(step.kind) for step in steps)

    def _factor(self, kind: tuple[str, str]) -> float:
        """Steps of a kind that was not measured yet take as long as estimated."""
        estimated = self._estimated.get(kind, 0.0)
        return self._taken[kind] / estimated if estimated > 0 else 1.0


def fitting(steps: list[Step], seconds: float, estimates: Estimates) -> list[Step]:
    """The blocks that fit into the time: each in turn, unless it alone takes more than what is left."""
    chosen = []
    for block in dict.fromkeys(step.block for step in steps):
        of_block = [step for step in steps if step.block == block]
        takes = estimates.of(of_block)
        if takes <= seconds:
            seconds -= takes
            chosen += of_block
    return chosen


def without_rates(chosen: list[Step], all_steps: list[Step]) -> list[Step]:
    """Leaves out the latency of rows whose rates are planned, but not chosen: it depends on them."""
    planned = {step.row.name for step in all_steps if step.part == RATES}
    rated = {step.row.name for step in chosen if step.part == RATES}
    return [
        step
        for step in chosen
        if step.part != LATENCY or step.row.name in rated or step.row.name not in planned
    ]


def no_time_for(steps: Iterable[Step]) -> dict[str, list[str]]:
    """The names of the rows of steps that do not fit into the time, by part."""
    names: dict[str, list[str]] = {}
    for part, row in dict.fromkeys((step.part, step.row.name) for step in steps):
        names.setdefault(part, []).append(row)
    return names


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
