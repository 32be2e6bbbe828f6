"""`python -m hotloop top`: a live view of a process that was started with --watch."""

from __future__ import annotations

import os
import re
import select
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from . import delays
from .accounts_view import ORDERS, accounts_table
from .asking import TIMEOUT, Process, State, Unavailable, begin_accounts, find, find_only, have_saved
from .growth_view import GrowthPage
from .summaries import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from ..metrics import Histogram, Metrics

# Seconds shown by the curves.
HISTORY = 60
LEVELS = "▁▂▃▄▅▆▇█"
# Columns that the wide layout needs.
WIDE = 98
# What can be pressed, but for the keys that quit.
KEYS = (b"r", b"a", b"f", b"s", b"g")
# Limits of healthy values: see docs/observability.md. Ten times LATE is shown in red.
BUSY = 0.7
LATE = 0.01


def watch(target: str | None, interval: float, *, once: bool, picture: str | None) -> None:
    """Show a process, by its number or the path of its socket, until it ends or the user quits.

    Without a target, show the only process that answers. Raise Unavailable if there is no such process, or
    the picture can't be written.
    """
    path = find(target) if target else find_only()
    process = Process(path)
    view = None
    console = Console(record=picture is not None, width=100 if picture else None)
    try:
        view = View(process, interval)
        if once or picture or not console.is_terminal:
            time.sleep(interval)
            view.update()
            console.print(view.render(console.width))
            if view.accountings:
                console.print(accounts_table(view.accountings, view.order, rows=10))
            if picture:
                _save(console, picture)
            return
        view.growth = GrowthPage(path)
        with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
            ended = None
            while ended is None:
                key = pressed(interval)
                if key == "q":
                    break
                if key == "r":
                    view.save("record", path)
                elif key == "f":
                    view.save("flame", path)
                elif key == "a":
                    view.show_accounts(path)
                elif key == "s":
                    view.sort_by_next()
                elif key == "g":
                    view.growth.toggle()
                try:
                    view.update()
                except Unavailable as error:
                    ended = error
                else:
                    live.update(view.render(console.width), refresh=True)
        # The last state stays on the terminal.
        console.print(view.render(console.width))
        if ended is not None:
            console.print(f"hotloop: {ended}")
    finally:
        process.close()
        if view is not None and view.growth is not None:
            view.growth.close()


def _save(console: Console, picture: str) -> None:
    """Save the console's output as SVG, without references to fonts on other hosts."""
    image = re.sub(r"@font-face\s*{.*?}\s*", "", console.export_svg(title="hotloop top"), flags=re.DOTALL)
    try:
        with open(picture, "w", encoding="utf-8") as file:
            file.write(image)
    except OSError as error:
        raise Unavailable(f"{picture}: {error.strerror}") from None


@contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """Yield a function that waits for up to some seconds, and returns "q" to quit, another key, or None."""
    import termios
    import tty

    if not sys.stdin.isatty():

        def never(seconds: float) -> str | None:
            time.sleep(seconds)
            return None

        yield never
        return
    terminal = sys.stdin.fileno()
    former = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> str | None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                keys = os.read(terminal, 64)
                # No bytes: the terminal is closed. \x03, \x04 and \x1b: Ctrl-C, Ctrl-D and Escape.
                if keys in (b"", b"q", b"Q", b"\x03", b"\x04", b"\x1b"):
                    return "q"
                if keys.lower() in KEYS:
                    return keys.decode().lower()
        return None

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, former)


class View:
    """The display of a process: its state, the changes since the last query, and the last minute."""

    def __init__(self, process: Process, interval: float) -> None:
        self.process = process
        first = process.ask()
        if first is None:
            raise Unavailable(f"the process did not answer within {TIMEOUT:g} s")
        self.state: State = first
        self.changes = first.since(first)
        # Of the time since the last query. The page is shown by a key.
        self.accountings = first.accountings
        self.shows_accounts = False
        self.order = next(iter(ORDERS))
        self.interval = interval
        self.silent_since: float | None = None
        self.history: dict[str, deque[tuple[float, float]]] = {}
        # The page about what piles up, if keys can be pressed.
        self.growth: GrowthPage | None = None
        # What became of the last file that was asked for.
        self.recorded = ""

    def update(self) -> None:
        """Query the process."""
        if self.growth is not None:
            self.growth.update()
        asked = time.monotonic()
        state = self.process.ask(self.interval)
        if state is None:
            if self.silent_since is None:
                self.silent_since = asked
            return
        self.silent_since = None
        self.changes = state.since(self.state)
        self.accountings = state.accountings_since(self.state)
        self.state = state
        for name, (metrics, _) in self.changes.items():
            past = self.history.setdefault(name, deque(maxlen=max(1, round(HISTORY / self.interval))))
            past.append((metrics.utilization, metrics.delay.percentile(99)))

    def save(self, what: str, path: str) -> None:
        """Have the process save a "record" or a "flame", and tell what became of it when it has."""
        self.recorded = "saving"

        def save() -> None:
            try:
                self.recorded = f"saved {have_saved(what, path)}"
            except Unavailable as error:
                self.recorded = str(error)

        threading.Thread(target=save, daemon=True).start()

    def show_accounts(self, path: str) -> None:
        """Show who uses the loops, or no longer. The process keeps accounts from the first time on."""
        self.shows_accounts = not self.shows_accounts
        if self.shows_accounts and not self.accountings:
            begin_accounts(path)

    def sort_by_next(self) -> None:
        """Sort the accounts by another column."""
        orders = list(ORDERS)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]

    def render(self, width: int) -> RenderableType:
        """Draw the state for a terminal *width* columns wide."""
        fields = self.state.fields
        title = Text.assemble(
            ("hotloop top", "bold"),
            f"  process {fields['process']}, Python {fields['python']}, ",
            time.strftime("%H:%M:%S", time.localtime(fields["time"])),
            ("  q: quit, a: accounts, g: growth, r: record", "dim"),
        )
        parts: list[RenderableType] = [title, Text(fields["command"], style="dim", overflow="ellipsis")]
        if self.recorded:
            parts.append(Text(self.recorded, style="green"))
        if self.silent_since is not None:
            silent = time.monotonic() - self.silent_since
            parts.append(
                Text(
                    f"no answer for {duration(silent)}: stopped, or something holds the GIL", style="bold red"
                )
            )
        if self.growth is not None and self.growth.is_shown:
            return Group(*parts, *self.growth.render())
        if not fields["loops"]:
            parts.append(Text("no event loop is open", style="yellow"))
        if self.shows_accounts:
            parts.append(Text("a: back, s: sort by another column, f: save a flame graph", style="dim"))
            parts.append(accounts_table(self.accountings, self.order))
            return Group(*parts)
        for name, loop in fields["loops"].items():
            parts.append(self._loop(name, loop, is_wide=width >= WIDE))
        parts.append(delays.blocks(fields["loops"]))
        iterations = delays.iterations(fields["loops"])
        if iterations is not None:
            parts.append(iterations)
        return Group(*parts)

    def _loop(self, name: str, loop: dict[str, Any], *, is_wide: bool) -> RenderableType:
        total = self.state.metrics[name]
        metrics, seconds = self.changes.get(name, (total, 0.0))
        past = self.history.get(name, deque())
        share = Text(f"{metrics.utilization:6.1%}", style=_style(metrics.utilization, BUSY, 0.95))
        rows: list[list[RenderableType]] = [
            ["utilization", _bar(metrics.utilization), share],
            ["delay", _percentiles(metrics.delay)],
            ["iterations", _percentiles(metrics.iteration_duration)],
        ]
        if is_wide:
            worst = max([late for _, late in past] + [LATE])
            rows[0].append(_curve([utilization for utilization, _ in past], 1.0))
            rows[1] += [Text("p99", style="dim"), _curve([late for _, late in past], worst)]
        top = Table.grid(padding=(0, 2))
        for row in rows:
            top.add_row(*row)
        return Panel(
            Group(top, Text(), _rates(metrics, total, seconds, columns=4 if is_wide else 3)),
            title=f"loop {name}" + ("" if loop["running"] else ", not running"),
            title_align="left",
            box=box.ROUNDED,
        )


def _style(value: float, unhealthy: float, bad: float) -> str:
    return "red" if value >= bad else "yellow" if value >= unhealthy else "green"


def _bar(share: float, width: int = 44) -> Text:
    full = round(share * width)
    return Text.assemble(("█" * full, _style(share, BUSY, 0.95)), ("░" * (width - full), "dim"))


def _curve(values: list[float], highest: float, width: int = 24) -> Text:
    """One character per value, or per group of values, of which the highest is shown."""
    each = -(-len(values) // width) or 1
    several = [max(values[start : start + each]) for start in range(0, len(values), each)]
    scale = (len(LEVELS) - 1) / highest
    return Text(
        "".join(LEVELS[min(round(value * scale), len(LEVELS) - 1)] for value in several), style="cyan"
    )


def _percentiles(histogram: Histogram) -> Text:
    parts: list[tuple[str, str]] = []
    for p in (50, 90, 99, 100):
        value = histogram.percentile(p)
        label = f"p{p} " if p < 100 else "max "
        parts += [(label, "dim"), (f"{duration(value):<10}", _style(value, LATE, 10 * LATE))]
    text = Text.assemble(*parts)
    text.rstrip()
    return text


def _rates(metrics: Metrics, total: Metrics, seconds: float, *, columns: int) -> Table:
    def rate(value: int) -> str:
        return f"{_short(value / seconds)}/s" if seconds else "-"

    def volume(value: int) -> str:
        return f"{_bytes(value / seconds)}/s" if seconds else "-"

    table = Table.grid(padding=(0, 2), expand=True)
    for _ in range(columns):
        table.add_column(style="dim")
        table.add_column(justify="right")
    rows = [
        ("callbacks", rate(metrics.callbacks)),
        ("iterations", rate(metrics.iterations)),
        ("I/O events", rate(metrics.io_events)),
        ("ready", f"{total.ready:,}"),
        ("tasks", rate(metrics.tasks_created)),
        ("timers fired", rate(metrics.timers_fired)),
        ("cancelled", rate(metrics.timers_cancelled)),
        ("wake-ups", rate(metrics.wakeups)),
        ("read", volume(metrics.bytes_read)),
        ("written", volume(metrics.bytes_written)),
        ("waiting", _bytes(total.bytes_waiting)),
        ("transports", f"{total.transports:,}"),
        ("accepted", rate(metrics.accepted)),
        ("connected", rate(metrics.connected)),
        ("most ready", f"{total.ready_highest:,}"),
    ]
    if total.accept_pauses:
        rows.append(("accept pauses", f"{total.accept_pauses:,}"))
        rows.append(("paused", f"{metrics.accept_paused / seconds:.0%}" if seconds else "-"))
    rows += [("", "")] * (-len(rows) % columns)
    for start in range(0, len(rows), columns):
        table.add_row(*(cell for row in rows[start : start + columns] for cell in row))
    return table


def _bytes(value: float) -> str:
    number = _short(value)
    return f"{number[:-1]} {number[-1]}B" if number[-1].isalpha() else f"{number} B"


def _short(value: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.1f}{unit}"
    return f"{value:.0f}"
