"""Callbacks that block an event loop: how they are looked at, and what is told of them.

The extension's thread notices that a callback runs for long, and calls observe(), which looks at the stack of
the loop's thread. When the callback is over, the loop's thread calls end(), which reports it.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import itertools
import linecache
import logging
import math
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from .. import _core
from ..blocking import Block, where_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..loop import Loop

logger = logging.getLogger("hotloop")

# Seconds in which a loop is reported on once: what comes in between is counted.
REPORT_INTERVAL = 1.0
# Garbage collections that take fewer seconds are not remembered.
SHORTEST_COLLECTION = 0.001
# How many blocks of a loop are remembered for those who ask later.
REMEMBERED = 20


@dataclass
class _Observed:
    """What was seen of a turn of the loop that is not over."""

    number: int
    # When it began and when it was first looked at, by time.perf_counter(), and the processor time that its
    # thread had used by then.
    began: float
    looked_at: float
    processor: float | None
    task: asyncio.Task[Any] | None
    stack: traceback.StackSummary
    later_stack: traceback.StackSummary | None = None


@dataclass(frozen=True)
class Remembered:
    """What is kept of a block."""

    # By time.time(): when it ended.
    at: float
    where: str
    what: str
    duration: float
    processor: float | None
    collecting: float


class Watch:
    """What one loop is watched for."""

    ids = itertools.count(1)

    def __init__(self, loop: Loop) -> None:
        self.loop = weakref.ref(loop)
        self.id = next(self.ids)
        self.threshold = 0.0
        self.handler: Callable[[Block], object] | None = None
        self.observed: _Observed | None = None
        self.last_report = float("-inf")
        self.unreported = 0
        # All blocks, and the last of them: without tasks and stacks, which they would keep.
        self.count = 0
        self.remembered: deque[Remembered] = deque(maxlen=REMEMBERED)
        # Ends and lengths of the last garbage collections of the loop's thread.
        self.collections: deque[tuple[float, float]] = deque(maxlen=64)

    def end(self, loop: Loop) -> None:
        loop._watch(self.id, None)
        loop._blocking = None


_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
_collecting_since: dict[int, float] = {}


def watch(loop: Loop, threshold: float | None, handler: Callable[[Block], object] | None) -> None:
    """Do what loop.watch_blocking() says."""
    if threshold is not None and not 0 < threshold < math.inf:
        raise ValueError(f"the threshold must be a positive number of seconds, not {threshold!r}")
    state = loop._blocking
    if threshold is None:
        if state is not None:
            state.end(loop)
        return
    if state is None:
        state = loop._blocking = Watch(loop)
        _watches[state.id] = state
    state.threshold = threshold
    state.handler = handler
    if _note_collection not in gc.callbacks:
        gc.callbacks.append(_note_collection)
    loop._watch(state.id, threshold)


def _note_collection(phase: str, _: dict[str, int]) -> None:
    now = time.perf_counter()
    ident = threading.get_ident()
    if phase == "start":
        _collecting_since[ident] = now
        return
    took = now - _collecting_since.pop(ident, now)
    if took >= SHORTEST_COLLECTION:
        for state in list(_watches.values()):
            loop = state.loop()
            if loop is not None and loop._thread_id == ident:
                state.collections.append((now, took))


def observe(
    watch_id: int, number: int, ran: float, observed: float, processor: float | None, again: bool
) -> None:
    """Look at a callback that has run for *ran* seconds: for the first time, or *again* after ten thresholds.

    Called by the extension's thread, which saw it *observed* seconds ago. By then, the loop's thread had used
    so many seconds of processor time.
    """
    state = _watches.get(watch_id)
    loop = None if state is None else state.loop()
    if state is None or loop is None or loop._thread_id is None:
        return
    stack = _stack(sys._current_frames().get(loop._thread_id))
    if again and state.observed is not None and state.observed.number == number:
        state.observed.later_stack = stack
        logger.warning("%s, for %.3f s by now", _still(stack), ran)
        return
    now = time.perf_counter()
    state.observed = _Observed(
        number, now - ran, now - observed, processor, asyncio.current_task(loop), stack
    )


def _still(stack: traceback.StackSummary) -> str:
    return f"{where_in(stack) or 'A callback without Python code'} is blocking the event loop"


def _run_forever() -> CodeType:
    from ..loop import Loop

    return Loop.run_forever.__code__


def _stack(frame: FrameType | None) -> traceback.StackSummary:
    """The frames of the callback: those inside of run_forever().

    Nothing here releases the GIL, as a look at the files would: the callback would go on, and might be over.
    """
    outermost = _run_forever()
    frames: list[traceback.FrameSummary] = []
    while frame is not None and frame.f_code is not outermost:
        code = frame.f_code
        # What was called while a collection was noted is not the program's.
        if code is not _note_collection.__code__:
            linecache.lazycache(code.co_filename, frame.f_globals)
            frames.append(
                traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)
            )
        frame = frame.f_back
    if frame is None:
        # The callback is over, and the loop with it.
        return traceback.StackSummary()
    return traceback.StackSummary.from_list(reversed(frames))


def end(loop: Loop, number: int, what: Any, seconds: float) -> None:
    """Report a callback that is over. Called by the loop's thread."""
    state = loop._blocking
    if state is None:
        return
    observed, state.observed = state.observed, None
    if observed is None or observed.number != number:
        # It was over before anybody could look.
        now = time.perf_counter()
        observed = _Observed(number, now - seconds, now, None, None, traceback.StackSummary())
    now = time.perf_counter()
    task = observed.task
    if task is None:
        owner = getattr(getattr(what, "_callback", what), "__self__", None)
        task = owner if isinstance(owner, asyncio.Task) else None
    source = getattr(task, "_source_traceback", None) or getattr(what, "_source_traceback", None)
    block = Block(
        what=_repr(task if task is not None else what),
        task=task,
        duration=seconds,
        processor=_processor(observed, now, seconds),
        collecting=sum(took for ended, took in state.collections if ended >= now - seconds),
        stack=observed.stack,
        later_stack=observed.later_stack,
        created_at=source,
        unreported=state.unreported,
    )
    state.count += 1
    state.remembered.append(_remembered(block))
    if now - state.last_report < REPORT_INTERVAL:
        state.unreported += 1
        return
    state.last_report, state.unreported = now, 0
    if state.handler is not None and not loop.is_closed():
        loop.call_soon(state.handler, block)
    else:
        _log(block)


def _repr(what: object) -> str:
    try:
        return repr(what)
    except Exception as error:
        # It is the program's own, and must not keep anybody from being told.
        return f"<{type(what).__name__}, whose repr() raised {type(error).__name__}>"


def _remembered(block: Block) -> Remembered:
    where = where_in(block.later_stack or block.stack) or block.what
    return Remembered(time.time(), where, block.what, block.duration, block.processor, block.collecting)


def _processor(observed: _Observed, now: float, seconds: float) -> float | None:
    """Seconds of computing: measured from the first look on, and taken to have been alike before."""
    if observed.processor is None:
        return None
    watched = now - observed.looked_at
    used = time.thread_time() - observed.processor
    return min(used / watched, 1.0) * seconds if watched > 0 else None


def _log(block: Block) -> None:
    for filename in {frame.filename for frame in (*block.stack, *(block.later_stack or ()))}:
        linecache.checkcache(filename)
    text = [str(block), f"  {block.what}"]
    for title, stack in (
        ("Stack at the threshold", block.stack),
        ("Stack at ten times the threshold", block.later_stack),
        ("Scheduled at", block.created_at),
    ):
        if stack:
            text.append(f"{title} (most recent call last):")
            text.append("".join(stack.format()).rstrip())
    if block.unreported:
        text.append(f"{block.unreported} more since the last report")
    logger.warning("\n".join(text))


# Some versions of the module import what they need when they first format, which a program can't that has no
# descriptors left.
traceback.StackSummary.from_list([(__file__, 1, __name__, "")]).format()

os.register_at_fork(before=_core._begin_fork, after_in_parent=_core._end_fork, after_in_child=_core._end_fork)

# Before the interpreter ends: the thread may want the GIL until then.
atexit.register(_core._stop_watching)
