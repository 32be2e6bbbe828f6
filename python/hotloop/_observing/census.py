"""The server's answer about what piles up: how many tasks, transports and timers of each kind there are."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from . import awaiting, listing
from .loops import open_loops

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..loop import Loop
    from ..snapshots import Task, Timer, Transport

# Seconds to wait for a loop, which is busy or blocked.
TIMEOUT = 0.5
# Kinds per loop in an answer, the most frequent ones.
MOST_KINDS = 500


def answer() -> dict[str, Any]:
    """Count what each loop has, on its own thread. None stands for one that is blocked or does not run."""
    deadline = time.monotonic() + TIMEOUT
    asked = [(name, _Asked(loop)) for name, loop in open_loops() if loop.is_running()]
    counted = {name: each.wait(deadline) for name, each in asked}
    return {"clock": time.monotonic(), "growth": {name: counted.get(name) for name, _ in open_loops()}}


class _Asked:
    """A count that a loop has been asked for."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.done = threading.Event()
        self.is_over = False
        self.counted: dict[str, Any] | None = None
        try:
            loop.call_soon_threadsafe(self.run)
        except RuntimeError:
            # It was closed.
            self.done.set()

    def run(self) -> None:
        # Nobody waits any more after a long block.
        if not self.is_over:
            try:
                self.counted = count(self.loop)
            finally:
                self.done.set()

    def wait(self, deadline: float) -> dict[str, Any] | None:
        self.done.wait(max(0.0, deadline - time.monotonic()))
        self.is_over = True
        return self.counted


def count(loop: Loop) -> dict[str, Any]:
    """Count the tasks, transports and timers of a loop by kind. It takes some microseconds for each of them.

    The result is of what JSON has: rows of what it is, the kind, the count, and an example.
    """
    began = time.perf_counter()
    unknown: dict[int, tuple[int, float | None]] = defaultdict(lambda: (0, None))
    tasks = listing.all_tasks(loop)
    # The newest of each kind.
    examples = {awaiting.name_of(task): task for task in tasks}
    kinds = Counter(awaiting.name_of(task) for task in tasks)
    rows = [
        ("task", kind, number, str(listing.list_task(examples[kind], unknown)))
        for kind, number in _most(kinds)
    ]
    rows += _rows("transport", listing.list_transports(*listing.open_transports(loop), unknown))
    rows += _rows("timer", (listing.list_timer(each, unknown, loop.time()) for each in loop._scheduled))
    return {"kinds": rows, "took": time.perf_counter() - began}


def _most(kinds: Counter[str]) -> list[tuple[str, int]]:
    return kinds.most_common(MOST_KINDS)


def _rows(what: str, listed: Iterable[Task | Transport | Timer]) -> list[tuple[str, str, int, str]]:
    listed = list(listed)
    examples = {each.kind: each for each in listed}
    return [
        (what, kind, number, str(examples[kind]))
        for kind, number in _most(Counter(each.kind for each in listed))
    ]
