"""The argument of loop.watch_blocking() handlers: a callback that blocked the event loop."""

from __future__ import annotations

import asyncio
import os
import sysconfig
import traceback
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
    processor: float | None
    """Processor time of its thread in that time, in seconds. None if it is not known."""
    collecting: float
    """Seconds spent in garbage collection in that time."""
    stack: traceback.StackSummary
    """The stack when it had run for the threshold; empty if no Python code ran."""
    later_stack: traceback.StackSummary | None
    """The stack after ten times as long; None if it ended before."""
    created_at: traceback.StackSummary | None
    """In debug mode, the stack that scheduled the callback or made the task."""
    unreported: int
    """Unreported blocks since the last report."""

    @property
    def line(self) -> traceback.FrameSummary | None:
        """The innermost line outside the standard library and installed packages, or else the innermost."""
        return _innermost(self.later_stack or self.stack)

    def __str__(self) -> str:
        where = where_in(self.later_stack or self.stack) or self.what
        spent = [] if self.processor is None else [f"{self.processor:.3f} s computing"]
        if self.collecting:
            spent.append(f"{self.collecting:.3f} s collecting garbage")
        return f"{where} blocked the event loop for {self.duration:.3f} s" + (
            f" ({', '.join(spent)})" if spent else ""
        )


def where_in(stack: traceback.StackSummary) -> str | None:
    """Format the innermost line of the user's code in a stack, or else the innermost; None if it is empty."""
    line = _innermost(stack)
    return f"{line.filename}:{line.lineno} in {line.name}" if line else None


def _innermost(stack: traceback.StackSummary) -> traceback.FrameSummary | None:
    own = [frame for frame in stack if not frame.filename.startswith(LIBRARIES)]
    return next(reversed(own or stack), None)
