"""Reports of callbacks that block an event loop: see loop.watch_blocking().

The extension's watchdog thread calls observe() when a callback has run for the threshold. That records the
stack of the loop's thread. When the callback has returned, the loop's thread calls end(), which reports it.
observe_iteration() and end_iteration() are the same for an iteration, which is kept and not reported.
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
import sysconfig
import threading
import time
import traceback
import weakref
from collections import deque
from contextvars import Context
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from .. import _core
from .._support import HAS_THREADS
from ..blocking import Block, Iteration, where_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..loop import Loop

    # Code, line and globals.
    _Frame = tuple[CodeType, int, dict[str, Any]]

logger = logging.getLogger("hotloop")

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# Minimum seconds between two reports of a loop. Blocks in between are counted.
REPORT_INTERVAL = 1.0
# Garbage collections that take fewer seconds are not recorded.
SHORTEST_COLLECTION = 0.001
# Blocks per loop that are kept for `hotloop top`.
REMEMBERED = 20
# Iterations per loop that are kept: the longest ones.
WORST = 10


@dataclass
class _Observed:
    """The observation of a callback that still runs."""

    number: int
    # By time.perf_counter().
    began: float
    task: asyncio.Task[Any] | None
    # A copy of the task's context at the observation.
    context: Context | None
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
    before: float
    processor: float | None
    collecting: float
    waiting_for_gil: float | None
    not_scheduled: float | None
    asleep: float | None


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
        # The longest iterations, the longest first. Replaced as a whole: any thread may read it.
        self.worst: list[Iteration] = []
        # The observation of an iteration that is under way: its number, and the stack.
        self.observed_iteration: tuple[int, traceback.StackSummary] | None = None
        # Of the blocks since the last iteration that was noticed: their ends, lengths and stacks.
        self.blocks: deque[tuple[float, float, traceback.StackSummary]] = deque(maxlen=64)
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


def observe(watch_id: int, number: int, ran: float, again: bool, frames: tuple[_Frame, ...] | None) -> None:
    """Record the stack of a callback that has run for the threshold, or *again*, for ten times that.

    Called by the watchdog thread. *ran* is the callback's duration until now in seconds. *frames* are those
    of the loop's thread, the innermost first, on a free-threaded build.
    """
    state = _watches.get(watch_id)
    loop = None if state is None else state.loop()
    if state is None or loop is None or loop._thread_id is None:
        return
    stack = _stack(loop._thread_id, frames)
    # The loop's thread may take it meanwhile, to report it.
    before = state.observed
    if again and before is not None and before.number == number:
        before.later_stack = stack
        logger.warning("%s, for %.3f s by now", _still(stack), ran)
        return
    task = asyncio.current_task(loop)
    state.observed = _Observed(number, time.perf_counter() - ran, task, _copied_context(task), stack)


def _copied_context(task: asyncio.Task[Any] | None) -> Context | None:
    # Without a GIL, the task may be changing it.
    if HAS_THREADS or sys.version_info < (3, 12) or not isinstance(task, asyncio.Task):
        return None
    return task.get_context().copy()


def observe_iteration(watch_id: int, number: int, frames: tuple[_Frame, ...] | None) -> None:
    """Record the stack when an iteration has taken the threshold. Called by the watchdog thread."""
    state = _watches.get(watch_id)
    loop = None if state is None else state.loop()
    if state is not None and loop is not None and loop._thread_id is not None:
        state.observed_iteration = number, _stack(loop._thread_id, frames)


def _still(stack: traceback.StackSummary) -> str:
    return f"{where_in(stack) or 'A callback without Python code'} is blocking the event loop"


def _run_forever() -> CodeType:
    from ..loop import Loop

    return Loop.run_forever.__code__


def _stack(ident: int, frames: Iterable[_Frame] | None) -> traceback.StackSummary:
    """The frames of the callback: those called by run_forever().

    Nothing here releases the GIL, as reading source files would: the callback would go on, and could end.
    """
    if frames is None:
        # Without a GIL, the thread would end the frames while they are read.
        frames = () if FREE_THREADED else _walk(sys._current_frames().get(ident))
    outermost = _run_forever()
    stack: list[traceback.FrameSummary] = []
    for code, line, variables in frames:
        if code is outermost:
            return traceback.StackSummary.from_list(reversed(stack))
        # Not a frame of the program.
        if code is not _note_collection.__code__:
            linecache.lazycache(code.co_filename, variables)
            stack.append(traceback.FrameSummary(code.co_filename, line, code.co_name, lookup_line=False))
    # The callback has ended, and run_forever(), too.
    return traceback.StackSummary()


def _walk(frame: FrameType | None) -> Iterator[_Frame]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno, frame.f_globals
        frame = frame.f_back


def end(
    loop: Loop,
    number: int,
    what: Any,
    context: Context | None,
    duration: float,
    before: float,
    parts: tuple[float | None, ...],
) -> None:
    """Report a callback that has ended. Called by the loop's thread.

    It began *before* seconds after the iteration. The *parts* of its duration are processor time, waiting
    for the GIL, not being scheduled, and sleep.
    """
    state = loop._blocking
    if state is None:
        return
    now = time.perf_counter()
    observed, state.observed = state.observed, None
    if observed is None or observed.number != number:
        # It ended before it was observed.
        observed = _Observed(number, now - duration, None, None, traceback.StackSummary())
    task = observed.task
    if task is None:
        owner = getattr(getattr(what, "_callback", what), "__self__", None)
        task = owner if isinstance(owner, asyncio.Task) else None
    source = getattr(task, "_source_traceback", None) or getattr(what, "_source_traceback", None)
    processor, waiting_for_gil, not_scheduled, asleep = parts
    if context is None:
        context = getattr(what, "_context", None)
    block = Block(
        what=_repr(task if task is not None else what),
        task=task,
        context=observed.context or context,
        duration=duration,
        before=before,
        processor=processor,
        collecting=_collecting(state, now - duration),
        waiting_for_gil=waiting_for_gil,
        not_scheduled=not_scheduled,
        asleep=asleep,
        stack=observed.stack,
        later_stack=observed.later_stack,
        created_at=source,
        unreported=state.unreported,
    )
    state.count += 1
    state.blocks.append((now, duration, block.later_stack or block.stack))
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


def end_iteration(
    loop: Loop, number: int, duration: float, callbacks: int, parts: tuple[float | None, ...]
) -> None:
    """Keep an iteration that has ended, if it is one of the longest. Called by the loop's thread.

    The *parts* are as for end().
    """
    state = loop._blocking
    if state is None:
        return
    began = time.perf_counter() - duration
    observed, state.observed_iteration = state.observed_iteration, None
    stack = observed[1] if observed is not None and observed[0] == number else traceback.StackSummary()
    blocks = [(took, stack) for ended, took, stack in state.blocks if ended >= began]
    state.blocks.clear()
    if blocks:
        stack = max(blocks, key=lambda block: block[0])[1]
    processor, waiting_for_gil, not_scheduled, asleep = parts
    iteration = Iteration(
        at=time.time(),
        duration=duration,
        callbacks=callbacks,
        blocked=sum(took for took, _ in blocks),
        processor=processor,
        collecting=_collecting(state, began),
        waiting_for_gil=waiting_for_gil,
        not_scheduled=not_scheduled,
        asleep=asleep,
        stack=stack,
    )
    longest = sorted([*state.worst, iteration], key=lambda each: each.duration, reverse=True)
    state.worst = longest[:WORST]


def _collecting(state: Watch, since: float) -> float:
    return sum(took for ended, took in state.collections if ended >= since)


def _repr(what: object) -> str:
    try:
        return repr(what)
    except Exception as error:
        # repr() of the program's objects can raise. The report is made nevertheless.
        return f"<{type(what).__name__}, whose repr() raised {type(error).__name__}>"


def _remembered(block: Block) -> Remembered:
    return Remembered(
        at=time.time(),
        where=where_in(block.later_stack or block.stack) or block.what,
        what=block.what,
        duration=block.duration,
        before=block.before,
        processor=block.processor,
        collecting=block.collecting,
        waiting_for_gil=block.waiting_for_gil,
        not_scheduled=block.not_scheduled,
        asleep=block.asleep,
    )


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
