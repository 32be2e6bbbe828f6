"""Connections that a server has just accepted, as the task that asyncio has for each meanwhile.

asyncio accepts a connection in a task of its own, which ends when connection_made() was called and what that
made has begun. A program that ends by cancelling all tasks closes such connections by that: their own tasks,
cancelled before they began, would not. Here a server accepts without tasks. One is made if anybody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import types

from ._support import report_connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any


@types.coroutine
def _next_iteration() -> Generator[None]:
    yield


async def _accept(loop: Any, transports: tuple[asyncio.Transport, ...]) -> None:
    """What is left to do of accepting connections: nothing, unless it is cancelled."""
    try:
        await _next_iteration()
        # connection_made() has been called. Tasks that it made have not begun yet.
        await _next_iteration()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        for transport in transports:
            # The loop may be closed.
            with contextlib.suppress(RuntimeError):
                transport.close()
        if loop.get_debug():
            report_connection(loop, error)


class _Callback:
    """Tells a callback of the end of a task, by what stands for that."""

    def __init__(self, function: Any, task: Accepting) -> None:
        self._function = function
        self._task = task

    def __call__(self, _: object) -> None:
        self._function(self._task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Callback) and bool(self._function == other._function)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._function)


class Accepting:
    """Stands among a loop's tasks for those that accept connections.

    asyncio.all_tasks() asks each of them whether it is done. This one is, unless connections have been
    accepted a moment ago: then it makes a task for these, and is that task for good to whoever asked. Another
    one takes its place among the loop's.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._task: Any = None
        asyncio._register_task(self)  # type: ignore[arg-type]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return asyncio.Task

    def get_loop(self) -> Any:
        return self._loop

    def done(self) -> bool:
        if self._task is not None:
            is_done: bool = self._task.done()
            return is_done
        if self._loop._thread_id not in (None, threading.get_ident()):
            # Another thread looks at the tasks.
            return True
        transports = self._loop._take_accepted()
        if not transports:
            return True
        coroutine = _accept(self._loop, transports)
        # A cancellation before a coroutine's first step is none to the coroutine.
        coroutine.send(None)
        try:
            self._task = self._loop.create_task(coroutine)
        except BaseException:
            coroutine.close()
            raise
        # In this order: somebody goes through them, who notices if there is one more or one less.
        self._loop._accepting = Accepting(self._loop)
        asyncio._unregister_task(self)  # type: ignore[arg-type]
        return False

    def add_done_callback(self, fn: Any, /, **options: Any) -> None:
        self._task.add_done_callback(_Callback(fn, self), **options)

    def remove_done_callback(self, fn: Any, /) -> int:
        removed: int = self._task.remove_done_callback(_Callback(fn, self))
        return removed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __await__(self) -> Any:
        return self._task.__await__()

    def __repr__(self) -> str:
        return repr(self._task)
