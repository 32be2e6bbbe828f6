"""The page of `hotloop top` about what piles up: the kinds that grew most since it was started."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.text import Text

from .asking import Process, Unavailable
from .summaries import duration
from .tables import new_table

if TYPE_CHECKING:
    from rich.console import RenderableType

# Rows per loop.
ROWS = 20
# A loop is asked again after this many times what its answer took it.
PATIENCE = 50


class GrowthPage:
    """What a process has, and how much more that is than when the page was made."""

    def __init__(self, path: str, timeout: float = 1.0) -> None:
        self.is_shown = False
        self.process = Process(path)
        self.timeout = timeout
        # By loop: what there is, and what there was at first, each by what it is and its kind.
        self.latest: dict[str, dict[str, Any] | None] = {}
        self.first: dict[str, dict[tuple[str, str], int]] = {}
        self.began = self.asked = time.monotonic()
        self._ask(timeout)

    def close(self) -> None:
        self.process.close()

    def toggle(self) -> None:
        """Show the page, or no longer."""
        self.is_shown = not self.is_shown
        self.update()

    def update(self) -> None:
        """Query the process, if the page is shown and the last answer did not take it long."""
        took = max((loop["took"] for loop in self.latest.values() if loop), default=0.0)
        if self.is_shown and time.monotonic() - self.asked >= PATIENCE * took:
            self._ask(self.timeout)

    def _ask(self, timeout: float) -> None:
        self.asked = time.monotonic()
        try:
            answer = self.process.ask_growth(timeout)
        except Unavailable:
            # The main page says so.
            return
        if answer is None:
            return
        for name, loop in answer["growth"].items():
            if loop is None:
                self.latest.setdefault(name, None)
                continue
            self.latest[name] = loop
            self.first.setdefault(name, {(what, kind): count for what, kind, count, _ in loop["kinds"]})
        for name in [name for name in self.latest if name not in answer["growth"]]:
            del self.latest[name]

    def render(self) -> list[RenderableType]:
        """Draw the page."""
        if not self.latest:
            return [Text("no event loop has answered", style="yellow")]
        return [self._table(name, loop) for name, loop in self.latest.items()]

    def _table(self, name: str, loop: dict[str, Any] | None) -> RenderableType:
        if loop is None:
            return Text(f"loop {name}: no answer: it is blocked, or not running", style="yellow")
        first = self.first[name]
        rows = [
            (count - first.get((what, kind), 0), count, what, kind, example)
            for what, kind, count, example in loop["kinds"]
        ]
        rows.sort(key=lambda row: (-row[0], -row[1], row[2], row[3]))
        title = f"loop {name}: what piles up, in {duration(time.monotonic() - self.began)}"
        table = new_table(title, ("change", "now"))
        table.add_column("what", no_wrap=True)
        table.add_column("kind", overflow="fold")
        table.add_column("the newest", ratio=1, overflow="fold")
        for change, count, what, kind, example in rows[:ROWS]:
            style = "yellow" if change > 0 else "dim"
            changed = Text(f"{change:+,}" if change else "", style=style)
            table.add_row(changed, f"{count:,}", what, Text(kind), Text(example))
        return table
