"""The page of results, as markdown."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from benchmarks import charts, latency, losses, malloc, notes, quiet, split, tables
from benchmarks.growth_result import Growth
from benchmarks.loops import CONTROL, OURS
from benchmarks.results import Measured, Run
from benchmarks.rows import ROWS
from benchmarks.spread import Spread
from benchmarks.tables import NEAR_LIMIT, Line, Quantity, facts
from benchmarks.threads import section as threads

NOTES = notes.PATH
TITLES = {row.name: row.title for row in ROWS}

INTRODUCTION = """\
# Benchmarks

<!-- Written by `make bench`, with the charts. The words are in benchmarks/report.py and, where they are about
single rows, in benchmarks/notes.md. -->

hotloop and other event loops in what servers and schedulers do. [benchmarks/](../benchmarks/README.md) says
how to repeat it."""

METHOD = """\
- Rates come in interleaved rounds, each loop once a round, in a random order, and each time in a new process.
  Figures are medians of the rounds; "±" is half of the interquartile range, in per cent of the median. A
  server has one processor and its clients another, where there are two. The clients check every byte.
- **A tie**: the interquartile ranges of two loops overlap, or their medians differ by no more than those of
  hotloop's two measurements in the row. Counts of instructions and calls that differ by up to 1 % are tied.
- "against itself" is hotloop's median divided by that of "hotloop again": hotloop, measured a second time as
  if it were another loop. The difference from 1 is the measurement's own.
- Instructions hardly depend on the load of the machine, and are what to compare. Two runs of different
  length are subtracted, so that starting Python is not in the figure. A server is counted in lockstep: all
  clients make their next requests when all are answered.
- "limit" is a server in Rust that reads all sockets that are ready, then answers, and does nothing else; over
  TLS, with the OpenSSL that the interpreter uses.
- TLS is version 1.3 with AES-256-GCM, the key of the server's certificate is on the curve P-256. A row of
  handshakes makes a connection for each request.
- A loop with "+aiofastnet" has the transports of that package in the place of its own.
- Processor time is the server's, with connecting and the warm-up, or in the rows of clients and of bulk
  transfers that of the loop's process, without. It is from the kernel's accounting. The sum is exact. Its
  division into user mode and kernel is coarse: the kernel samples it, a hundred times a second.
- In the rows of databases, of aiohttp's and httpx's client and of bulk transfers, the other end is the same
  for all loops, and has a processor of its own. Where it takes turns with the loop (single requests) or is as
  busy (bulk that is sent, datagrams that are received), processor time is what to compare.
- In the rows of bulk transfers, bytes are counted but not checked. A MB is a million bytes.
- gRPC's client is its own, on uvloop if that is installed, and takes as long as the server.
- "against" says how many times as good hotloop is: above 1 hotloop is ahead, in every table.
- Loops on io_uring (blazio, talyn) make few system calls; the kernel's work is not less for that.
- The best of the loops is bold, and so is what is tied with it. "fails" has its reason under Failures."""


DISTURBED = f"""\
- Another guest of the machine's host can slow its processors. So a fixed computation is timed on each of
  them before and after each round of a loop. If it took over {quiet.SLOW:g} times its shortest time, the
  round is repeated, {quiet.TRIES - 1} times at most. All waiting and repeating takes at most half as long as
  the rounds themselves."""

SPLIT = f"""\
User instructions an iteration or a request, by who executes them: two runs of different length under
`{split.Callgrind.name}`, subtracted. What the interpreter, asyncio's C module and others execute is the
floor: what the program's own Python code, tasks and futures cost on any loop. (The interpreter's share has in
it what hotloop makes it do, such as creating objects.)"""


def page(measured: Measured, drawn: list[str]) -> str:
    """The whole page, with the charts that were drawn."""
    parts = [INTRODUCTION, summary(measured), losses.section(measured, notes.read(NOTES))]
    parts += [chart(charts.OVERVIEW, "Rates of the loops, relative", drawn)]
    parts += ["## How it was measured", *provenance(measured.runs)]
    parts += ["**The run was interrupted**: these are its results so far." if measured.steps else ""]
    parts += [no_time_for(measured), method(measured), best_rounds(measured)]
    for quantity in tables.QUANTITIES:
        parts.append(section(quantity, measured, drawn))
        if quantity is tables.PROCESSOR_KEEPING:
            parts += [malloc.section(measured), latency.section(measured)]
    parts += [split_section(measured), failures(measured)]
    parts += [notes_section(measured), memory_section(measured.growths)]
    parts += [growth_section([one for one in measured.growths if not one.is_of_memory], drawn)]
    return "\n\n".join(part for part in parts if part) + "\n"


def method(measured: Measured) -> str:
    return f"{METHOD}\n{DISTURBED}" if any(run.watched for run in measured.runs) else METHOD


def summary(measured: Measured) -> str:
    points = [
        standing("Rate", lines_of(tables.ALL_RATES, measured)),
        standing(f"Rate {tables.KEEPING_TITLE}", lines_of(tables.ALL_KEEPING, measured)),
        standing("Latency at fixed rates", latency.lines(measured)),
        standing("User instructions", lines_of(tables.ALL_USER, measured)),
        malloc.summary(measured),
        control(measured),
    ]
    with_target = [
        line
        for line in lines_of(tables.QUANTITIES, measured)
        if line.target is not None and line.ours is not None
    ]
    if with_target:
        met = sum(line.is_met for line in with_target)
        points.append(f"- Targets: {met} of {len(with_target)} are met.")
    points = [point for point in points if point]
    return "## Summary\n\n" + "\n".join(points) if points else ""


def lines_of(quantities: Iterable[Quantity], measured: Measured) -> list[Line]:
    return [line for quantity in quantities for line in tables.lines(quantity, measured)]


def standing(what: str, lines: list[Line]) -> str:
    """In how many rows hotloop is first, tied and behind, and in which it is furthest behind."""
    compared = [line for line in lines if line.best_other and line.ours is not None]
    if not compared:
        return ""
    first, tied = (sum(getattr(line, name) for line in compared) for name in ("is_first", "is_tied"))
    behind = [line for line in compared if line.is_behind]
    text = f"- {what}: of {len(compared)} rows, hotloop is first in {first}, tied with the best other loop"
    text += f" in {tied} and behind in {len(behind)}"
    near = sum(line.is_near_limit for line in behind)
    text += f" ({near} of these within {1 - NEAR_LIMIT:.0%} of the limit)" if near else ""
    failing = sum(line.ours is None for line in lines)
    text += f"; it has no figure in {failing}" if failing else ""
    return f"{text}. {worst(behind)}".rstrip()


def worst(behind: list[Line]) -> str:
    def against_best(line: Line) -> float:
        times = line.times_better(line.best_other[1] if line.best_other else None)
        return math.inf if math.isnan(times) else times

    line = min(behind, key=against_best, default=None)
    if line is None or line.best_other is None or math.isinf(against_best(line)):
        return ""
    return f"Its worst ratio is {against_best(line):.2f} against {line.best_other[0]}, in “{line.row.title}”."


def control(measured: Measured) -> str:
    """How far hotloop's two measurements differ."""
    lines = [line for line in lines_of((*tables.ALL_RATES, *tables.ALL_KEEPING), measured) if line.control]
    differences = [abs(line.times_better(line.control.median) - 1) for line in lines if line.control]
    if not differences:
        return ""
    overlapping = sum(line.is_control_tied for line in lines)
    return (
        f"- The measurement itself: the rates of hotloop and {CONTROL} differ by {median(differences):.1%} "
        f"in the median row, by {max(differences):.1%} at most, and their interquartile ranges overlap in "
        f"{overlapping} of {len(lines)} rows.{slowed(measured)}"
    )


def slowed(measured: Measured) -> str:
    """During how much of it something else slowed the processors."""
    timed, so_many = (sum(run.watched.get(what, 0) for run in measured.runs) for what in ("timed", "slowed"))
    if not timed:
        return ""
    return f" Something else slowed the processors during {so_many / timed:.1%} of the rounds of a loop."


def no_time_for(measured: Measured) -> str:
    """What did not fit into the time."""
    lines = []
    for run in measured.runs:
        for part, rows in run.no_time_for.items():
            titles = "all" if not set(run.rows) - set(rows) else named(rows)
            lines.append(f"- {part}: {titles}" if rows else f"- {part}")
    return "\n".join(["Left out, as the time did not suffice:\n", *lines]) if lines else ""


def best_rounds(measured: Measured) -> str:
    """How far the best round of hotloop is above its median one."""
    found = []
    for row in ROWS:
        rates = [outcome.rate for outcome in measured.of(row.name, OURS).outcomes]
        spread = Spread.of(rates)
        if spread and len(rates) > 1 and spread.median > 0:
            found.append(max(rates) / spread.median - 1)
    if not found:
        return ""
    return (
        f"The best of hotloop's rounds is {median(found):.1%} above its median one, in the median row. The "
        "JSON beside the page has every round."
    )


def provenance(runs: list[Run]) -> list[str]:
    """Time and machine of the first run; of later ones, only the differences."""
    parts = [facts(run.facts) for run in runs[:1]]
    for run in runs[1:]:
        titles = named(run.rows) or "growth"
        changed = {name: fact for name, fact in run.facts.items() if fact != runs[0].facts.get(name)}
        parts.append(f"Measured anew ({' and '.join(run.parts)}) on {', '.join(run.loops)}: {titles}.")
        parts.append(facts(changed) if changed else "")
    return parts


def named(rows: list[str]) -> str:
    """Names of groups that are complete, and titles of other rows."""
    names = []
    for group in dict.fromkeys(row.group for row in ROWS):
        of_group = [row.name for row in ROWS if row.group == group]
        if set(of_group) <= set(rows):
            names.append(f"all rows of {group}")
        else:
            names += [TITLES[name] for name in of_group if name in rows]
    return ", ".join(names)


def section(quantity: Quantity, measured: Measured, drawn: list[str]) -> str:
    text = tables.table(quantity, measured)
    if not text:
        return ""
    picture = chart(charts.OF_QUANTITIES.get(quantity.title, ""), quantity.title, drawn)
    return "\n\n".join(part for part in (f"## {quantity.title}", picture, text) if part)


def chart(name: str, title: str, drawn: list[str]) -> str:
    return f"![{title}](charts/{name}.svg)" if name in drawn else ""


def failures(measured: Measured) -> str:
    found = [
        f"- {loop}, {TITLES.get(row, row)}: {result.failure}"
        for (row, loop), result in measured.results.items()
        if result.failure
    ]
    return "## Failures\n\n" + "\n".join(found) if found else ""


def split_section(measured: Measured) -> str:
    splits = {row.title: measured.of(row.name, OURS).count.split for row in ROWS}
    lines = [split_line(title, parts) for title, parts in splits.items() if parts]
    if not lines:
        return ""
    columns = [*split.PARTS, "all"]
    head = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return "\n\n".join(["## Where hotloop's instructions go", SPLIT, "\n".join(head + lines)])


def split_line(title: str, parts: dict[str, float]) -> str:
    figures = [*(parts[name] for name in split.PARTS), sum(parts.values())]
    return f"| {title} | " + " | ".join(tables.number(tables.rounded(figure)) for figure in figures) + " |"


def notes_section(measured: Measured) -> str:
    """The notes on rows in which hotloop is not behind, under the rows' titles."""
    read = notes.read(NOTES)
    above = losses.explained(measured)
    texts = [read.introduction]
    texts += [
        f"### {TITLES.get(name, name)}\n\n{text}" for name, text in read.of_rows.items() if name not in above
    ]
    texts = [text for text in texts if text]
    return "\n\n".join(["## Why some targets are missed", *texts]) if texts else ""


def memory_section(growths: list[Growth]) -> str:
    """One table of all that is bytes of memory."""
    found = [growth for growth in growths if growth.is_of_memory]
    if not found:
        return ""
    names = [*dict.fromkeys(name for growth in found for name in (*growth.series, *growth.failures))]
    rows = ["| bytes | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for growth in found:
        figures = {name: tables.rounded(of_loop[-1]) for name, of_loop in growth.series.items()}
        best = min((figure for figure in figures.values() if figure is not None), default=None)
        cells = [growth_cell(name, growth, figures.get(name), best) for name in names]
        rows.append(f"| {growth.title} | " + " | ".join(cells) + " |")
    how = [f"- {growth.title}, of {growth.x_values[-1]:,.0f}: {growth.note}" for growth in found]
    how += [
        f"- {growth.title}: {loop} fails: {why}" for growth in found for loop, why in growth.failures.items()
    ]
    return "\n\n".join(["## Memory", "\n".join(rows), "\n".join(how)])


def growth_section(growths: list[Growth], drawn: list[str]) -> str:
    if not growths:
        return ""
    return "\n\n".join(["## Growth", *[of_growth(growth, drawn) for growth in growths]])


def of_growth(growth: Growth, drawn: list[str]) -> str:
    picture = chart(charts.of_growth(growth), growth.title, drawn)
    missing = "\n".join(f"- {loop} fails: {reason}" for loop, reason in growth.failures.items())
    parts = [f"### {growth.title}", growth.note, picture, growth_table(growth), missing]
    return "\n\n".join(part for part in parts if part)


def growth_table(growth: Growth) -> str:
    """A table with a line per size and a column per loop."""
    shown = {name: [tables.rounded(figure) for figure in figures] for name, figures in growth.series.items()}
    names = [*shown, *[name for name in growth.failures if name not in shown]]
    grows = len(growth.x_values) > 1
    head = f"{growth.x_label}: {growth.y_label}" if grows else ""
    rows = ["| " + " | ".join([head, *names]) + " |", "|---|" + "---:|" * len(names)]
    for index, x in enumerate(growth.x_values):
        known = [figures[index] for figures in shown.values()]
        best = min((figure for figure in known if figure is not None), default=None)
        cells = [
            growth_cell(name, growth, shown[name][index] if name in shown else None, best) for name in names
        ]
        rows.append(f"| {f'{x:,.10g}' if grows else growth.y_label} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def growth_cell(name: str, growth: Growth, figure: float | None, best: float | None) -> str:
    if figure is None:
        return "fails" if name in growth.failures else "-"
    return f"**{tables.number(figure)}**" if figure == best else tables.number(figure)


def write(measured: Measured, path: Path, warn: Callable[[str], None]) -> str:
    """Writes the results, the page and the charts, and returns the page.

    The page ends with the section on threads, if its figures are there."""
    measured.write(path)
    drawn = charts.draw_all(measured, path.parent / "charts", warn)
    of_threads = threads.kept_for(path)
    text = "\n".join(part for part in (page(measured, drawn), of_threads) if part)
    path.with_suffix(".md").write_text(text)
    for name in without_note(measured):
        warn(f"{NOTES.name} does not say why the target of {name} is missed")
    return text


def without_note(measured: Measured) -> list[str]:
    """Rows that miss their target and have no note."""
    headings = notes.read(NOTES).of_rows
    missed = [
        line.row.name
        for quantity in tables.QUANTITIES
        for line in tables.lines(quantity, measured)
        if line.target is not None and line.ours is not None and not line.is_met
    ]
    return [name for name in dict.fromkeys(missed) if name not in headings]
