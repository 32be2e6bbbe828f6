"""What `python -m hotloop --watch` and `--stats` do to all loops that the program makes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .loop import Loop

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import FrameType

    from .metrics import Histogram, Metrics

# Tasks that a listing has.
MOST_TASKS = 50

_names: weakref.WeakKeyDictionary[Loop, str] = weakref.WeakKeyDictionary()
_counter = 0


def watch_all(threshold: float) -> None:
    """Watch every loop that is made from now on."""
    _whenever_made(lambda loop: loop.watch_blocking(threshold))


def tell_at_the_end() -> None:
    """Print what each loop did: when it is closed, or when the program ends."""
    import atexit

    original = Loop.close

    def close(self: Loop) -> None:
        if self in _names and not self.is_closed() and not self.is_running():
            _tell(self)
        original(self)

    Loop.close = close  # type: ignore[method-assign]
    _whenever_made(_name)
    atexit.register(_tell_at_exit)


def _tell_all(*, tasks: bool = False) -> None:
    for loop in list(_names):
        if not loop.is_closed():
            _tell(loop, tasks=tasks)


def _tell_at_exit() -> None:
    _tell_all()
    # What is closed from now on was told of.
    _names.clear()


def tell_on_signal(number: int) -> None:
    """Print what each loop did, and what its tasks wait for, when the process receives a signal."""
    _whenever_made(_name)

    def handle(_: int, __: FrameType | None) -> None:
        _tell_all(tasks=True)

    signal.signal(number, handle)
    signal.siginterrupt(number, False)


def _whenever_made(act: Any) -> None:
    former = Loop._when_made

    def both(loop: Loop) -> None:
        if former is not None:
            former(loop)
        act(loop)

    Loop._when_made = staticmethod(both)


def _name(loop: Loop) -> None:
    global _counter
    if loop not in _names:
        _counter += 1
        _names[loop] = f"{threading.current_thread().name}-{_counter}"


def _tell(loop: Loop, *, tasks: bool = False) -> None:
    text = summary(_names.get(loop, "loop"), loop.metrics())
    if tasks:
        text += "\n" + "\n".join(waiting(loop))
    print(text, file=sys.stderr, flush=True)


def summary(name: str, metrics: Metrics) -> str:
    """What a loop did, to be read by people."""
    io = f"{metrics.bytes_read:,} bytes read, {metrics.bytes_written:,} written"
    lines = [
        f"hotloop: loop {name}, process {os.getpid()}, {time.strftime('%Y-%m-%d %H:%M:%S')}",
        f"  busy {_seconds(metrics.busy)}, idle {_seconds(metrics.idle)}: {metrics.utilization:.1%} utilized",
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
    percentiles = "  ".join(f"p{p} {_seconds(histogram.percentile(p))}" for p in (50, 90, 99))
    return f"{percentiles}  max {_seconds(histogram.max)}"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"


def waiting(loop: Loop) -> list[str]:
    """The tasks of a loop, and where each of them waits."""
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    lines = [f"  {len(tasks)} tasks"]
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
