"""Work in other threads and processes: run_in_executor() without the detours of asyncio.wrap_future()."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from asyncio import events, futures
from concurrent.futures import _base

from . import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, TypeVarTuple

    _T = TypeVar("_T")
    _Ts = TypeVarTuple("_Ts")

# What type checkers do not know of asyncio, or not that a loop of ours is one.
_futures: Any = futures
_base_run_in_executor: Any = asyncio.BaseEventLoop.run_in_executor

# Since 3.14 the end of work that is noticed in the event loop's own thread is told at once.
_TELLS_AT_ONCE = sys.version_info >= (3, 14)


def _set_state(future: Any, work: Any) -> None:
    """Copy what came of the work. Nothing changes any more, so the lock of its state is left alone."""
    if future.cancelled():
        return
    if work._state != _base.FINISHED:
        _futures._copy_future_state(work, future)
    elif work._exception is not None:
        future.set_exception(_futures._convert_future_exc(work._exception))
    else:
        future.set_result(work._result)


def _follow(work: concurrent.futures.Future[Any], loop: Any) -> Any:
    """A future of the event loop that follows the work, and cancels it when it is cancelled itself."""
    future = loop.create_future()

    def cancel_work(future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            work.cancel()

    # The work keeps this, so it must not refer to the work: no garbage is left for the collector.
    def finished(work: concurrent.futures.Future[Any]) -> None:
        if _TELLS_AT_ONCE and events._get_running_loop() is loop:
            _set_state(future, work)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_set_state, future, work)

    future.add_done_callback(cancel_work)
    work.add_done_callback(finished)
    return future


class ExecutorSupport(_core.Loop):
    """Work in other threads and processes."""

    # asyncio.BaseEventLoop has these.
    _debug: bool
    _default_executor: concurrent.futures.Executor | None
    _check_default_executor: Callable[[], None]

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Call func(*args) in an executor, or in the default one, and return a future of what it returns."""
        future: asyncio.Future[_T]
        base: Any = asyncio.BaseEventLoop.run_in_executor
        # Also one that the program has put in its place.
        if self._debug or base is not _base_run_in_executor:
            future = base(self, executor, func, *args)
            return future
        self._check_closed()
        if executor is None:
            executor = self._default_executor
            self._check_default_executor()
            if executor is None:
                executor = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="asyncio")
                self._default_executor = executor
        work = executor.submit(func, *args)
        is_usual = type(work) is concurrent.futures.Future
        future = _follow(work, self) if is_usual else _futures.wrap_future(work, loop=self)
        return future
