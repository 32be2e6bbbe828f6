"""run_in_executor(), with fewer callbacks than asyncio.wrap_future()."""

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

# Names that type checkers do not know, or not as taking this loop.
_futures: Any = futures
_base_run_in_executor: Any = asyncio.BaseEventLoop.run_in_executor

# Since 3.14, work that ends in the event loop's own thread sets the future at once.
_COPIES_AT_ONCE = sys.version_info >= (3, 14)


def _copy_state(future: Any, work: Any) -> None:
    """Copy the outcome of finished work. Its state cannot change any more, so its lock is not needed."""
    if future.cancelled():
        return
    if work._state != _base.FINISHED:
        _futures._copy_future_state(work, future)
    elif work._exception is not None:
        future.set_exception(_futures._convert_future_exc(work._exception))
    else:
        future.set_result(work._result)


def _wrap_future(work: concurrent.futures.Future[Any], loop: Any) -> Any:
    """A future of the event loop for the outcome of the work. Cancelling the future cancels the work."""
    future = loop.create_future()

    def cancel_work(future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            work.cancel()

    # The work refers to this, so it must not refer to the work: a cycle would need the garbage collector.
    def finished(work: concurrent.futures.Future[Any]) -> None:
        if _COPIES_AT_ONCE and events._get_running_loop() is loop:
            _copy_state(future, work)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_copy_state, future, work)

    future.add_done_callback(cancel_work)
    work.add_done_callback(finished)
    return future


class ExecutorSupport(_core.Loop):
    """run_in_executor()."""

    # Members of asyncio.BaseEventLoop.
    _debug: bool
    _default_executor: concurrent.futures.Executor | None
    # The default one, if the program has not set another.
    _own_executor: concurrent.futures.Executor | None = None
    _check_default_executor: Callable[[], None]

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Call func(*args) in an executor, or in the default one, and return a future of the result."""
        future: asyncio.Future[_T]
        base: Any = asyncio.BaseEventLoop.run_in_executor
        # A patched method is called, too.
        if self._debug or base is not _base_run_in_executor:
            future = base(self, executor, func, *args)
            return future
        self._check_closed()
        if executor is None:
            executor = self._default_executor
            self._check_default_executor()
            if executor is None:
                executor = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="asyncio")
                self._default_executor = self._own_executor = executor
        work = executor.submit(func, *args)
        is_plain = type(work) is concurrent.futures.Future
        future = _wrap_future(work, self) if is_plain else _futures.wrap_future(work, loop=self)
        return future

    def _has_own_executors(self) -> bool:
        """Whether work that names no executor goes to this loop's own one, as far as the program has said."""
        return (
            self._default_executor is self._own_executor
            and type(self).run_in_executor is ExecutorSupport.run_in_executor
            and "run_in_executor" not in vars(self)
            and asyncio.BaseEventLoop.run_in_executor is _base_run_in_executor
        )
