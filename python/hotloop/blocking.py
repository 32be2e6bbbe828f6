"""What the handler of loop.watch_blocking() is told of a callback that blocked the event loop."""

from __future__ import annotations

import asyncio
import os
import sysconfig
import traceback
from dataclasses import dataclass
from typing import Any

_LIBRARIES = tuple(
    {os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {"<frozen "}
)


@dataclass(frozen=True, slots=True)
class Block:
    """A callback that kept an event loop from everything else."""

    what: str
    """The callback, as asyncio writes handles and tasks."""
    task: asyncio.Task[Any] | None
    """The task of which it was a step."""
    duration: float
    """Seconds from its beginning to its end."""
    processor: float | None
    """Seconds of that in which its thread computed. None where the system does not tell."""
    collecting: float
    """Seconds of that in which it collected garbage."""
    stack: traceback.StackSummary
    """Where it was when it had run for as long as the threshold; empty if it is in no Python code."""
    later_stack: traceback.StackSummary | None
    """Where it was after ten times as long."""
    created_at: traceback.StackSummary | None
    """In debug mode, who scheduled the callback or made the task."""
    unreported: int
    """Other blocks since the last that was reported."""

    @property
    def line(self) -> traceback.FrameSummary | None:
        """The innermost line outside the standard library and installed packages, or else the last."""
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
    """Name the innermost line of the user's code in a stack; None if that has none."""
    line = _innermost(stack)
    return f"{line.filename}:{line.lineno} in {line.name}" if line else None


def _innermost(stack: traceback.StackSummary) -> traceback.FrameSummary | None:
    own = [frame for frame in stack if not frame.filename.startswith(_LIBRARIES)]
    return next(reversed(own or stack), None)
