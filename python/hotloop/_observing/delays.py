"""The tables of `hotloop top` about what made a loop late: callbacks that blocked it, and long iterations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..blocking import MATTERS
from .summaries import duration
from .tables import new_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# Parts of a duration, and the titles of their columns. One is shown if it matters in any row.
PARTS = {
    "before": "before",
    "processor": "computing",
    "collecting": "collecting",
    "waiting_for_gil": "GIL",
    "not_scheduled": "not scheduled",
    "asleep": "asleep",
}


def blocks(loops: dict[str, Any]) -> RenderableType:
    """Draw the last blocks of all loops, those under way first."""
    watched = [loop for loop in loops.values() if "threshold" in loop]
    count = sum(loop["blocked"] for loop in watched)
    last = sorted((block for loop in watched for block in loop["blocks"]), key=lambda block: -block["at"])[
        :10
    ]
    parts = _parts(last)
    table = _table(
        f"{count:,} callback{'s' * (count != 1)} blocked a loop for {_thresholds(watched)} or longer",
        ["ended", "took", *(PARTS[part] for part in parts)],
    )
    for loop in watched:
        if "blocking" in loop:
            now = loop["blocking"]
            table.add_row(
                "now", duration(now["duration"]), *("" for _ in parts), now["where"], style="bold red"
            )
    for block in last:
        table.add_row(*_times(block), *_cells(block, parts), block["where"])
    return table


def iterations(loops: dict[str, Any]) -> RenderableType | None:
    """Draw the longest iterations that blocks do not explain. None if there are none."""
    watched = [loop for loop in loops.values() if "threshold" in loop]
    found = [
        iteration
        for loop in watched
        for iteration in loop.get("iterations", ())
        if iteration["duration"] - iteration["blocked"] >= loop["threshold"]
    ]
    if not found:
        return None
    longest = sorted(found, key=lambda iteration: -iteration["duration"])[:5]
    parts = _parts(longest)
    table = _table(
        f"Longest iterations whose other callbacks took {_thresholds(watched)} or longer together",
        ["ended", "took", "callbacks", *(PARTS[part] for part in parts)],
    )
    for iteration in longest:
        cells = _cells(iteration, parts)
        table.add_row(*_times(iteration), f"{iteration['callbacks']:,}", *cells, iteration["where"])
    return table


def _thresholds(watched: list[dict[str, Any]]) -> str:
    return ", ".join(duration(threshold) for threshold in sorted({loop["threshold"] for loop in watched}))


def _table(title: str, columns: list[str]) -> Table:
    table = new_table(title, columns)
    table.add_column("where", ratio=1, overflow="fold")
    return table


def _parts(rows: list[dict[str, Any]]) -> list[str]:
    """The parts that matter in any row. The processor time is shown whenever it is known."""
    return [part for part in PARTS if any(_matters(row, part) for row in rows)]


def _matters(row: dict[str, Any], part: str) -> bool:
    seconds = row.get(part)
    if seconds is None:
        return False
    return part == "processor" or bool(seconds >= MATTERS * row["duration"])


def _times(row: dict[str, Any]) -> list[str | Text]:
    ended = time.strftime("%H:%M:%S", time.localtime(row["at"]))
    return [ended, Text(duration(row["duration"]), style="yellow")]


def _cells(row: dict[str, Any], parts: list[str]) -> list[str]:
    return [duration(row[part]) if _matters(row, part) else "" for part in parts]
