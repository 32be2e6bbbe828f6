"""run_in_executor(), with fewer callbacks than asyncio.wrap_future().

A ThreadPoolExecutor's threads get the work itself, without a concurrent future that nobody would see.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from asyncio import events, futures
from concurrent.futures import _base, thread

from . import _core
from ._support import original_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar, TypeVarTuple

    _T = TypeVar("_T")
    _Ts = TypeVarTuple("_Ts")

# Names that type checkers do not know, or not as taking this loop.
_futures: Any = futures
_base_run_in_executor: Any = asyncio.BaseEventLoop.run_in_executor

_thread: Any = thread
_ThreadPool: Any = concurrent.futures.ThreadPoolExecutor
# What a pool's own submit() uses, in all versions together. Programs replace that method, to pass things on.
_USED_BY_SUBMIT = {"_shutdown_lock", "_global_shutdown_lock", "_broken", "_shutdown", "_work_queue"}
_USED_BY_SUBMIT |= {"_adjust_thread_count", "_base", "_WorkItem", "_resolve_work_item_task"}
_submit: Any = original_or_none(_ThreadPool.submit, thread)
if _submit and any(name[0] == "_" and name not in _USED_BY_SUBMIT for name in _submit.__code__.co_names):
    _submit = None
_WorkItem = getattr(_thread, "_WorkItem", None)

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


class _Work:
    """What a pool's thread runs for a future of the event loop, and the future that the pool has of it."""

    __slots__ = ("_args", "_func", "_future", "_loop")

    def __init__(self, loop: Any, future: Any, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._loop = loop
        self._future = future
        self._func = func
        self._args = args

    @property
    def future(self) -> _Work:
        return self

    def run(self, context: object = None) -> None:
        if self._future.cancelled():
            return
        try:
            result = self._func(*self._args)
        except BaseException as error:
            self._end(_set_exception, error)
            # The exception has this frame, and the future has the exception.
            del self
        else:
            self._end(_set_result, result)

    def cancel(self) -> None:
        """Cancel the work, which the pool does not run any more."""
        self._end(_cancel, None)

    def set_exception(self, error: BaseException) -> None:
        """Fail, because the pool's threads could not start."""
        self._end(_set_exception, error)

    def _end(self, act: Callable[[Any, Any], None], outcome: object) -> None:
        if self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(act, self._future, outcome)
        except Exception:
            # The pool's thread goes on, as after a callback of a concurrent future.
            _base.LOGGER.exception("exception calling callback for %r", self)


def _set_result(future: Any, result: object) -> None:
    if not future.cancelled():
        future.set_result(result)


def _set_exception(future: Any, error: BaseException) -> None:
    if not future.cancelled():
        future.set_exception(_futures._convert_future_exc(error))


def _cancel(future: Any, _: None) -> None:
    future.cancel()


def _put(executor: Any, work: _Work) -> bool:
    """As ThreadPoolExecutor.submit(). Returns False if that raises."""
    with executor._shutdown_lock, _thread._global_shutdown_lock:
        if executor._broken or executor._shutdown or _thread._shutdown:
            return False
        executor._work_queue.put(work)
        executor._adjust_thread_count()
        return True


def _is_plain_pool(executor: Any) -> bool:
    """Whether it is a ThreadPoolExecutor whose submit() does what it always did."""
    return (
        type(executor) is _ThreadPool
        and _ThreadPool.submit is _submit
        and _thread._WorkItem is _WorkItem
        and "submit" not in vars(executor)
    )


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
        if _is_plain_pool(executor):
            future = self.create_future()
            if _put(executor, _Work(self, future, func, args)):
                return future
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
