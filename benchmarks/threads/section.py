"""The section of the page, as markdown."""

from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.tables import facts, number, ratio, rounded
from benchmarks.threads.figures import Figures, read
from benchmarks.threads.rows import ROWS
from benchmarks.threads.work_servers import GRANIAN

HEADING = "## Several loops in one process"

INTRODUCTION = """\
<!-- Written by `make bench-threads`. The words are in benchmarks/threads/section.py. -->

Each thread runs a loop of its own. Without a GIL, the threads of a process can run at the same time, and are
held up only where they share something: a lock, or an object whose references both count."""

WITH_GIL = """\
**This Python has a GIL**: the threads of a process take turns, and several have the rate of one. As they
never run at the same time, they have no factor."""

METHOD = """\
- Each thread does its work in pieces of about 0.5 ms. "ns" is the processor time of an operation, in
  nanoseconds: the lower decile of the pieces that ran undisturbed while the other threads, or the other
  processes, did so, too. It hardly depends on what else the machine does. "-" means that there were too few
  such pieces.
- "factor" is how many times as much work the threads, or processes, do together as one thread does in the
  same processor time: their number times the cost of one thread alone, divided by the cost of each of them.
  Their number is the ideal. Processes share no Python object, and show what the processors themselves allow.
- "per second" is what all do together: the median of the rounds, and after "±" half of the interquartile
  range, in per cent of the median. It depends on what else the machine does.
- Rounds are interleaved, each in new processes. Threads are started together, and processes, too.
- Callbacks are of the thread that schedules them. A function that several threads schedule costs more, on any
  loop, because handles count references to it.
- HTTP: each thread has a listening socket of its own, with SO_REUSEPORT. "ns" is the processor time of the
  server's processes for a request, the kernel's part included, the median of the rounds. Two loops have half
  of the connections each, and find fewer requests at a time than one does: compare threads with processes.
  The client needs processors of its own: where there are two in all, it is what limits the requests per
  second of two threads.
- The best of the loops is bold."""

GRANIAN_NOTE = """\
- granian is a server whose HTTP and TLS are in Rust, in threads of their own. It runs an RSGI application on
  asyncio's loop; "threads" are its workers."""

Cells = dict[str, list[str]]


def section(figures: Figures) -> str:
    parts = [HEADING, INTRODUCTION, WITH_GIL if figures.has_gil else "", facts(figures.facts)]
    parts += [METHOD + (f"\n{GRANIAN_NOTE}" if GRANIAN in figures.loops else "")]
    tables = [(row.title, table(row.name, figures)) for row in ROWS]
    parts += [f"### {title}\n\n{text}" for title, text in tables if text]
    parts += [listed("### Not measured", left_out(figures))]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(row: str, figures: Figures) -> str:
    """A line per loop; empty if no loop was measured."""
    measured = [name for name in figures.loops if any(key[:2] == (row, name) for key in figures.found)]
    if not measured:
        return ""
    columns: Cells = {}
    for workers in figures.workers:
        costs = {name: figures.of(row, name, workers).cost for name in measured}
        columns[f"{workers.title}, ns"] = cells(costs, min)
        if workers.number > 1:
            factors = [figures.factor(row, name, workers) for name in measured]
            columns[f"factor of {workers.title}"] = ["-" if each is None else ratio(each) for each in factors]
    for workers in figures.workers:
        of_loops = {name: figures.of(row, name, workers) for name in measured}
        rates = cells({name: figure.rate for name, figure in of_loops.items()}, max)
        spreads = [figure.rate_spread for figure in of_loops.values()]
        columns[f"{workers.title}, per second"] = [
            rate if spread is None else f"{rate} ±{spread:.1%}"
            for rate, spread in zip(rates, spreads, strict=True)
        ]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, *shown in zip(measured, *columns.values(), strict=True):
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def cells(of_loops: dict[str, float | None], best: Callable[[Iterable[float]], float]) -> list[str]:
    shown = [rounded(figure) for figure in of_loops.values()]
    known = [figure for figure in shown if figure is not None]
    return [
        f"**{number(figure)}**" if known and figure == best(known) else number(figure) for figure in shown
    ]


def left_out(figures: Figures) -> list[str]:
    titles = {row.name: row.title for row in ROWS}
    lines = [f"{name}: {reason}" for name, reason in figures.left_out.items()]
    failing: dict[tuple[str, str, str], list[str]] = {}
    for (row, loop, workers), figure in figures.found.items():
        if figure.failure:
            failing.setdefault((loop, titles.get(row, row), figure.failure), []).append(workers)
    lines += [
        f"{loop}, {title}, {', '.join(workers)}: {failure}"
        for (loop, title, failure), workers in failing.items()
    ]
    lines += [f"{loop} enables the GIL: its threads take turns" for loop in figures.take_gil]
    return lines


def listed(heading: str, lines: list[str]) -> str:
    return "\n\n".join([heading, "\n".join(f"- {line}" for line in lines)]) if lines else ""


def of_page(results: Path) -> Path:
    """Where the figures are kept whose section belongs to the page beside these results."""
    return results.with_name(f"{results.stem}-threads.json")


def kept_for(results: Path) -> str:
    """The section of the page beside these results; empty if there is none."""
    path = of_page(results)
    return section(read(path)) if path.exists() else ""


def put_into(page: Path, text: str) -> None:
    """Writes the section at the end of the page, in place of the one that is there."""
    before = page.read_text().partition(HEADING)[0].rstrip("\n")
    page.write_text(f"{before}\n\n{text}")
