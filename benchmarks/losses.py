"""The section of the page on the rows in which hotloop is behind another loop, and why."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks import latency, tables
from benchmarks.growth_result import Growth
from benchmarks.loops import OURS
from benchmarks.notes import Notes
from benchmarks.results import Measured
from benchmarks.tables import Line, Quantity, number, ratio, rounded

UNKNOWN = "No reason known yet."
PROCESSOR_TIMES = {
    tables.processor: "processor time",
    tables.processor_keeping: f"processor time {tables.KEEPING_TITLE}",
}
IsChosen = Callable[[Growth], bool]
GROWTH_TIE = 0.01
"""Figures of growth have no spread. Up to this difference they are tied."""

INTRODUCTION = """\
Every row in which another loop is ahead of hotloop by more than a tie, with the ratio (below 1 hotloop is
behind)."""


@dataclass(frozen=True)
class Loss:
    """A figure in which hotloop is behind."""

    subject: str
    """The name of the row or growth."""
    title: str
    what: str
    """The quantity, if the list has several of them."""
    times: float
    """How many times as good hotloop is: below 1."""
    other: str
    ours: float
    best: float
    is_near_limit: bool = False
    unit: str = ""

    @property
    def text(self) -> str:
        figures = f"{number(rounded(self.ours))}, not {number(rounded(self.best))} {self.unit}".rstrip()
        near = f"; within {1 - tables.NEAR_LIMIT:.0%} of the limit" if self.is_near_limit else ""
        what = f"{self.what}: " if self.what else ""
        return f"{what}{ratio(self.times)} against {self.other} ({figures}{near})"


def section(measured: Measured, notes: Notes) -> str:
    """Three lists: rates and times, instructions, memory. Empty if hotloop is not compared."""
    if not any(OURS in run.loops and len(run.loops) > 1 for run in measured.runs):
        return ""
    lists: dict[str, list[Loss] | None] = {
        "Rates and times": of_times(measured) if has_any(tables.ALL_RATES, is_time, measured) else None,
        "Instructions": of_instructions(measured) if has_any(tables.ALL_USER, is_counted, measured) else None,
        "Memory": of_memory(measured) if has_any((), is_memory, measured) else None,
    }
    explained: set[str] = set()
    parts = ["## Where hotloop is behind, and why", INTRODUCTION]
    for title, losses in lists.items():
        parts.append(f"### {title}")
        parts.append("Not measured." if losses is None else listed(losses, notes, explained) or "None.")
    return "\n\n".join(parts)


def has_any(quantities: Iterable[Quantity], is_chosen: IsChosen, measured: Measured) -> bool:
    """Whether hotloop and another loop have any of these figures."""
    lines = [line for quantity in quantities for line in tables.lines(quantity, measured)]
    growths = [growth for growth in measured.growths if is_chosen(growth)]
    return bool(growths) or any(line.ours is not None and line.best_other for line in lines)


def of_times(measured: Measured) -> list[Loss]:
    losses = []
    for quantity in tables.ALL_RATES:
        losses += of_quantities([quantity], "time" if quantity.lowest_is_best else "rate", measured)
    losses += of_quantities(tables.ALL_KEEPING, f"rate {tables.KEEPING_TITLE}", measured)
    for measure, what in PROCESSOR_TIMES.items():
        quantities = [quantity for quantity in tables.QUANTITIES if quantity.measure is measure]
        losses += of_quantities(quantities, what, measured)
    losses += [
        of_line(line, f"latency at {line.title}") for line in latency.lines(measured) if line.is_behind
    ]
    losses += of_overload(measured)
    return [*losses, *of_growths(measured.growths, is_time)]


def of_overload(measured: Measured) -> list[Loss]:
    """The fixed rates with which hotloop does not keep up, but another loop does."""
    return [
        Loss(row.name, row.title, f"rate reached at {share} %", reached / wanted, other, reached, wanted)
        for row, share, other, reached, wanted in latency.overloads(measured)
    ]


def of_instructions(measured: Measured) -> list[Loss]:
    losses = of_quantities(tables.ALL_USER, "", measured)
    return [*losses, *of_growths(measured.growths, is_counted)]


def of_memory(measured: Measured) -> list[Loss]:
    return of_growths(measured.growths, is_memory)


def of_quantities(quantities: Iterable[Quantity], what: str, measured: Measured) -> list[Loss]:
    lines = [line for quantity in quantities for line in tables.lines(quantity, measured)]
    return [of_line(line, what) for line in lines if line.is_behind]


def of_line(line: Line, what: str) -> Loss:
    assert line.best_other is not None
    assert line.ours is not None
    other, best = line.best_other
    times = line.times_better(best)
    return Loss(line.row.name, line.row.title, what, times, other, line.ours, best, line.is_near_limit)


def is_memory(growth: Growth) -> bool:
    return growth.is_of_memory


def is_counted(growth: Growth) -> bool:
    return "instructions" in growth.y_label


def is_time(growth: Growth) -> bool:
    return not is_memory(growth) and not is_counted(growth)


def of_growths(growths: Iterable[Growth], is_chosen: IsChosen) -> list[Loss]:
    return [loss for growth in growths if is_chosen(growth) for loss in of_growth(growth)]


def of_growth(growth: Growth) -> list[Loss]:
    """A loss for each size at which hotloop is behind.

    Where a program that imports asyncio is the zero, there is nothing to compare with asyncio's figure."""
    found = []
    for index, x in enumerate(growth.x_values):
        figures = {name: values[index] for name, values in growth.series.items()}
        ours = figures.pop(OURS, None)
        others = {
            name: figure for name, figure in figures.items() if figure and figure > 0 and "+" not in name
        }
        if ours is None or not others:
            continue
        other = min(others, key=lambda name: others[name])
        if ours > 0 and ours > others[other] * (1 + GROWTH_TIE):
            at = f"at {x:,.10g} {growth.x_label}" if len(growth.x_values) > 1 else ""
            best = others[other]
            found.append(
                Loss(growth.name, growth.title, at, best / ours, other, ours, best, unit=growth.y_label)
            )
    return found


def listed(losses: list[Loss], notes: Notes, explained: set[str]) -> str:
    """A list with an entry for each row. A note that an earlier list has is not repeated."""
    items = []
    for subject in dict.fromkeys(loss.subject for loss in losses):
        of_subject = [loss for loss in losses if loss.subject == subject]
        texts = [loss.text for loss in of_subject]
        figures = f": {texts[0]}" if len(texts) == 1 else "".join(f"\n  - {text}" for text in texts)
        reason = "Why: see above." if subject in explained else notes.of(subject) or UNKNOWN
        if notes.of(subject):
            explained.add(subject)
        items.append(f"- **{of_subject[0].title}**{figures}\n\n{indented(reason)}")
    return "\n".join(items)


def indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())


def explained(measured: Measured) -> set[str]:
    """The rows whose notes the section has."""
    losses = [*of_times(measured), *of_instructions(measured), *of_memory(measured)]
    return {loss.subject for loss in losses}
