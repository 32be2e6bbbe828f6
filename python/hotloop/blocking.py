"""What loop.watch_blocking() finds: callbacks that blocked the event loop, and iterations that took long."""

from __future__ import annotations

import asyncio
import os
import sysconfig
import traceback
from contextvars import Context
from dataclasses import dataclass
from typing import Any

LIBRARIES = tuple(
    {os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {"<frozen "}
)


@dataclass(frozen=True, slots=True)
class Block:
    """A callback that ran for at least the threshold of watch_blocking()."""

    what: str
    """repr() of the task or the handle."""
    task: asyncio.Task[Any] | None
    """The task, if the callback was a step of one."""
    duration: float
    """Seconds from its beginning to its end."""
    before: float
    """Seconds from the beginning of the iteration to its beginning, in which other callbacks ran."""
    processor: float | None
    """Seconds of its duration in which its thread computed. None if it is not known."""
    collecting: float
    """Seconds spent in garbage collection in its duration, most of which are processor time, too."""
    waiting_for_gil: float | None
    """Seconds in which its thread waited for the GIL, 0 if there is none. None if it is not known."""
    not_scheduled: float | None
    """Seconds in which its thread could have run and got no processor. None if it is not known."""
    asleep: float | None
    """Seconds in which its thread waited for anything else. None if it is not known."""
    stack: traceback.StackSummary
    """The stack when it had run for the threshold; empty if no Python code ran."""
    later_stack: traceback.StackSummary | None
    """The stack after ten times as long; None if it ended before."""
    created_at: traceback.StackSummary | None
    """In debug mode, the stack that scheduled the callback or made the task."""
    unreported: int
    """Unreported blocks since the last report."""
    context: Context | None = None
    """The context variables. Those of a task are as they were at the threshold, from Python 3.12 on and with
    a GIL: the step may have ended its request since. Otherwise they are those at the end; None for an event
    of a transport."""

    @property
    def line(self) -> traceback.FrameSummary | None:
        """The innermost line outside the standard library and installed packages, or else the innermost."""
        return _innermost(self.later_stack or self.stack)

    def __str__(self) -> str:
        where = where_in(self.later_stack or self.stack) or self.what
        text = f"{where} blocked the event loop for {self.duration:.3f} s{_spent(self)}"
        if self.before >= MATTERS * self.duration:
            text += f", {self.before:.3f} s after the iteration began"
        return text


@dataclass(frozen=True, slots=True)
class Iteration:
    """An iteration of the event loop that took at least the threshold of watch_blocking()."""

    at: float
    """When it ended, by time.time()."""
    duration: float
    """Seconds from its beginning, after the poll, to its end."""
    callbacks: int
    """How many callbacks it had."""
    blocked: float
    """Seconds that those of its callbacks took which ran for the threshold themselves."""
    processor: float | None
    """Processor time of its thread in its duration, in seconds. None if it is not known."""
    collecting: float
    """Seconds spent in garbage collection in its duration, most of which are processor time, too."""
    waiting_for_gil: float | None
    """Seconds in which its thread waited for the GIL, 0 if there is none. None if it is not known."""
    not_scheduled: float | None
    """Seconds in which its thread could have run and got no processor. None if it is not known."""
    asleep: float | None
    """Seconds in which its thread waited for anything else. None if it is not known."""
    stack: traceback.StackSummary
    """The stack of the longest callback that ran for the threshold, or else that when the iteration had
    taken as long; empty if no Python code ran."""

    @property
    def line(self) -> traceback.FrameSummary | None:
        """The innermost line outside the standard library and installed packages, or else the innermost."""
        return _innermost(self.stack)

    def __str__(self) -> str:
        where = where_in(self.stack)
        text = f"an iteration of {self.callbacks:,} callback{'s' * (self.callbacks != 1)}"
        return f"{text} took {self.duration:.3f} s{_spent(self)}" + (f", {where}" if where else "")


# Parts of a duration that are shorter than this part of it are not written.
MATTERS = 0.05


def _spent(late: Block | Iteration) -> str:
    known = [
        (late.processor, "computing"),
        (late.collecting or None, "collecting garbage"),
        (late.waiting_for_gil, "waiting for the GIL"),
        (late.not_scheduled, "not scheduled"),
        (late.asleep, "asleep"),
    ]
    parts = [(seconds, what) for seconds, what in known if seconds is not None]
    # If the others are not known, even a processor time of 0 tells something.
    written = [
        f"{seconds:.3f} s {what}"
        for seconds, what in parts
        if seconds >= MATTERS * late.duration or late.asleep is None
    ]
    return f" ({', '.join(written)})" if written else ""


def where_in(stack: traceback.StackSummary) -> str | None:
    """Format the innermost line of the user's code in a stack, or else the innermost; None if it is empty."""
    line = _innermost(stack)
    return f"{line.filename}:{line.lineno} in {line.name}" if line else None


def _innermost(stack: traceback.StackSummary) -> traceback.FrameSummary | None:
    own = [frame for frame in stack if not frame.filename.startswith(LIBRARIES)]
    return next(reversed(own or stack), None)
