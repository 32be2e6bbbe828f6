"""Reports of callbacks that block an event loop: see loop.watch_blocking().

The extension's watchdog thread calls observe() when a callback has run for the threshold. That records the
stack of the loop's thread. When the callback has returned, the loop's thread calls end(), which reports it.
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

# Minimum seconds between two reports of a loop. Blocks in between are counted.
REPORT_INTERVAL = 1.0
# Garbage collections that take fewer seconds are not recorded.
SHORTEST_COLLECTION = 0.001
# Blocks per loop that are kept for `hotloop top`.
REMEMBERED = 20


@dataclass
class _Observed:
    """The observation of a callback that still runs."""

    number: int
    # The beginning and the first observation, by time.perf_counter(), and the thread's processor time at the
    # latter.
    began: float
    observed_at: float
    processor: float | None
    task: asyncio.Task[Any] | None
    stack: traceback.StackSummary
    later_stack: traceback.StackSummary | None = None


@dataclass(frozen=True)
class Remembered:
    """The facts of a block that are kept, without the task and the stacks.

    *at* is its end, by time.time().
    """

    at: float
    where: str
    what: str
    duration: float
    processor: float | None
    collecting: float


class Watch:
    """The state of watch_blocking() for one loop."""

    ids = itertools.count(1)

    def __init__(self, loop: Loop) -> None:
        self.loop = weakref.ref(loop)
        self.id = next(self.ids)
        self.threshold = 0.0
        self.handler: Callable[[Block], object] | None = None
        self.observed: _Observed | None = None
        self.last_report = float("-inf")
        self.unreported = 0
        # The number of blocks, and the last of them.
        self.count = 0
        self.remembered: deque[Remembered] = deque(maxlen=REMEMBERED)
        # Ends and lengths of the last garbage collections of the loop's thread.
        self.collections: deque[tuple[float, float]] = deque(maxlen=64)

    def end(self, loop: Loop) -> None:
        loop._watch(self.id, None)
        loop._blocking = None


# What is called at the end of each block, reported or not, on the loop's thread.
on_block: list[Callable[[Loop, Block], object]] = []

_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
_collecting_since: dict[int, float] = {}


def watch(loop: Loop, threshold: float | None, handler: Callable[[Block], object] | None) -> None:
    """Implement loop.watch_blocking()."""
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
    """Record the stack of a callback that has run for the threshold, or *again*, for ten times that.

    Called by the watchdog thread, which saw it *observed* seconds ago. *ran* is its duration until now in
    seconds; *processor* is the processor time of the loop's thread when it was seen, in seconds.
    """
    state = _watches.get(watch_id)
    loop = None if state is None else state.loop()
    if state is None or loop is None or loop._thread_id is None:
        return
    stack = _stack(sys._current_frames().get(loop._thread_id))
    # The loop's thread may take it meanwhile, to report it.
    before = state.observed
    if again and before is not None and before.number == number:
        before.later_stack = stack
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
    """The frames of the callback: those called by run_forever().

    Nothing here releases the GIL, as reading source files would: the callback would go on, and could end.
    """
    outermost = _run_forever()
    frames: list[traceback.FrameSummary] = []
    while frame is not None and frame.f_code is not outermost:
        code = frame.f_code
        # Not a frame of the program.
        if code is not _note_collection.__code__:
            linecache.lazycache(code.co_filename, frame.f_globals)
            frames.append(
                traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)
            )
        frame = frame.f_back
    if frame is None:
        # The callback has ended, and run_forever(), too.
        return traceback.StackSummary()
    return traceback.StackSummary.from_list(reversed(frames))


def end(loop: Loop, number: int, what: Any, seconds: float) -> None:
    """Report a callback that has ended. Called by the loop's thread."""
    state = loop._blocking
    if state is None:
        return
    observed, state.observed = state.observed, None
    if observed is None or observed.number != number:
        # It ended before it was observed.
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
    for act in on_block:
        act(loop, block)
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
        # repr() of the program's objects can raise. The report is made nevertheless.
        return f"<{type(what).__name__}, whose repr() raised {type(error).__name__}>"


def _remembered(block: Block) -> Remembered:
    where = where_in(block.later_stack or block.stack) or block.what
    return Remembered(time.time(), where, block.what, block.duration, block.processor, block.collecting)


def _processor(observed: _Observed, now: float, seconds: float) -> float | None:
    """Processor time in seconds, extrapolated from that since the first observation."""
    if observed.processor is None:
        return None
    watched = now - observed.observed_at
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


# Some versions of traceback import modules when they first format, which fails out of descriptors.
traceback.StackSummary.from_list([(__file__, 1, __name__, "")]).format()

os.register_at_fork(before=_core._begin_fork, after_in_parent=_core._end_fork, after_in_child=_core._end_fork)

# Before the interpreter ends, after which the watchdog thread must not take the GIL.
atexit.register(_core._stop_watching)
