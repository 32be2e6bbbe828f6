"""What `python -m hotloop --stats` prints of all loops that the program makes."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from ..loop import Loop

# Now, for a signal handler that imports may do so in the midst of another import.
from ..metrics import Histogram, Metrics
from .loops import give_name, open_loops, whenever_made
from .telling import tell

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import FrameType

# Tasks that a listing has.
MOST_TASKS = 50


def tell_at_the_end() -> None:
    """Print what each loop did: when it is closed, or when the program ends."""
    original = Loop.close
    is_over = False

    def close(self: Loop) -> None:
        if not is_over and not self.is_running():
            for name, loop in open_loops():
                if loop is self:
                    _tell(name, loop)
        original(self)

    def at_exit() -> None:
        nonlocal is_over
        _tell_all()
        # What is closed from now on was told of.
        is_over = True

    Loop.close = close  # type: ignore[method-assign]
    whenever_made(give_name)
    atexit.register(at_exit)


def tell_on_signal(number: int) -> None:
    """Print what each loop did, and what its tasks wait for, when the process receives a signal."""
    whenever_made(give_name)

    def handle(_: int, __: FrameType | None) -> None:
        _tell_all(tasks=True)

    signal.signal(number, handle)
    signal.siginterrupt(number, False)


def _tell_all(*, tasks: bool = False) -> None:
    for name, loop in open_loops():
        _tell(name, loop, tasks=tasks)


def _tell(name: str, loop: Loop, *, tasks: bool = False) -> None:
    text = summary(name, loop.metrics())
    if tasks:
        text += "\n" + "\n".join(waiting(loop))
    tell(text)


def summary(name: str, metrics: Metrics) -> str:
    """What a loop did, to be read by people."""
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
    return "\n".join(lines)


def _distribution(histogram: Histogram) -> str:
    percentiles = "  ".join(f"p{p} {duration(histogram.percentile(p))}" for p in (50, 90, 99))
    return f"{percentiles}  max {duration(histogram.max)}"


def duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"


def waiting(loop: Loop) -> list[str]:
    """The tasks of a loop, and where each of them waits."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    lines = [f"  {len(tasks)} task{'s' * (len(tasks) != 1)}"]
    for task in tasks[:MOST_TASKS]:
        frames = _frames(task.get_coro())
        where = " < ".join(
            f"{frame.f_code.co_qualname} {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            for frame in reversed(frames)
        )
        lines.append(f"    {task.get_name()}: {where or task.get_coro()}")
    if len(tasks) > MOST_TASKS:
        lines.append(f"    and {len(tasks) - MOST_TASKS} more")
    return lines


def _frames(awaited: Coroutine[Any, Any, Any] | Any) -> list[FrameType]:
    """The frames of a coroutine and of those that it awaits, outermost first."""
    frames = []
    while awaited is not None:
        for prefix in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                frames.append(frame)
                awaited = getattr(awaited, f"{prefix}_await" if prefix != "gi" else "gi_yieldfrom", None)
                break
        else:
            return frames
    return frames
