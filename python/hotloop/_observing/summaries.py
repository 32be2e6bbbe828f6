"""The summaries of loops that `python -m hotloop --stats` prints."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import time
from typing import TYPE_CHECKING

from ..loop import Loop

# Not in the signal handler, which may run during another import.
from ..metrics import Histogram, Metrics
from .awaiting import coroutines
from .loops import name_loop, on_loop_created, open_loops
from .stderr import print_error

if TYPE_CHECKING:
    from types import FrameType

# Tasks listed per loop.
MOST_TASKS = 50


def print_at_end() -> None:
    """Print a summary of each loop when it is closed, or when the program ends."""
    original = Loop.close
    is_over = False

    def close(self: Loop) -> None:
        if not is_over and not self.is_running():
            for name, loop in open_loops():
                if loop is self:
                    _print_loop(name, loop)
        original(self)

    def at_exit() -> None:
        nonlocal is_over
        _print_all()
        # All loops are printed by now, also those that are closed later.
        is_over = True

    Loop.close = close  # type: ignore[method-assign]
    on_loop_created(name_loop)
    atexit.register(at_exit)


def print_on_signal(number: int) -> None:
    """Print a summary of each loop, and where its tasks wait, when the process receives a signal."""
    on_loop_created(name_loop)

    def handle(_: int, __: FrameType | None) -> None:
        _print_all(tasks=True)

    signal.signal(number, handle)
    signal.siginterrupt(number, False)


def _print_all(*, tasks: bool = False) -> None:
    for name, loop in open_loops():
        _print_loop(name, loop, tasks=tasks)


def _print_loop(name: str, loop: Loop, *, tasks: bool = False) -> None:
    text = summary(name, loop.metrics())
    if loop._accounted is not None:
        text += "\n" + "\n".join(f"  {line}" for line in str(loop.accounting()).splitlines())
    if tasks:
        text += "\n" + "\n".join(task_lines(loop))
    print_error(text)


def summary(name: str, metrics: Metrics) -> str:
    """Format a loop's metrics."""
    io = f"{metrics.bytes_read:,} bytes read, {metrics.bytes_written:,} written"
    lines = [
        f"hotloop: loop {name}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}",
        f"  busy {duration(metrics.busy)}, idle {duration(metrics.idle)}: {metrics.utilization:.1%} utilized",
        f"  {metrics.iterations:,} iterations, {metrics.callbacks:,} callbacks, "
        f"{metrics.io_events:,} I/O events, {metrics.tasks_created:,} tasks, "
        f"{metrics.wakeups:,} wake-ups by threads",
        f"  {metrics.timers_fired:,} timers fired, {metrics.timers_cancelled:,} cancelled",
        f"  delay      {_distribution(metrics.delay)}",
        f"  iterations {_distribution(metrics.iteration_duration)}",
        f"  ready: {metrics.ready:,} callbacks, {metrics.ready_highest:,} at most",
        f"  {metrics.transports:,} transports open, {metrics.accepted:,} connections accepted, "
        f"{metrics.connected:,} made",
        f"  {io}, {metrics.bytes_waiting:,} waiting",
    ]
    if metrics.accept_pauses:
        times = "once" if metrics.accept_pauses == 1 else f"{metrics.accept_pauses:,} times"
        lines.append(f"  accepting paused {times} by limits, for {duration(metrics.accept_paused)}")
    return "\n".join(lines)


def _distribution(histogram: Histogram) -> str:
    percentiles = "  ".join(f"p{p} {duration(histogram.percentile(p))}" for p in (50, 90, 99))
    return f"{percentiles}  max {duration(histogram.max)}"


def duration(seconds: float) -> str:
    """Format a duration in s, ms or µs."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"


def task_lines(loop: Loop) -> list[str]:
    """Format the tasks of a loop, and where each of them waits."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    lines = [f"  {len(tasks)} task{'s' * (len(tasks) != 1)}"]
    for task in tasks[:MOST_TASKS]:
        where = " < ".join(
            f"{each.name} {os.path.basename(each.file)}:{each.line}" for each in reversed(coroutines(task))
        )
        lines.append(f"    {task.get_name()}: {where or task.get_coro()}")
    if len(tasks) > MOST_TASKS:
        lines.append(f"    and {len(tasks) - MOST_TASKS} more")
    return lines
