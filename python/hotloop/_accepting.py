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


class Accepting:
    """Stands among a loop's tasks for those that accept connections.

    asyncio.all_tasks() asks each of them whether it is done. This one is, unless connections have been
    accepted a moment ago: then it makes a task for these, is that task from then on to whoever asked, and
    leaves its place to another one.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._task: Any = None
        # It has what tasks are asked for, and is none to type checkers.
        asyncio._register_task(self)  # type: ignore[arg-type]

    # For isinstance(), which asks for it: type checkers have it as no property.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return asyncio.Task

    # Callbacks are called with the task, and whoever waits looks it up among those that were asked for.

    def __eq__(self, other: object) -> bool:
        return self is other or (self._task is not None and self._task is other)

    def __hash__(self) -> int:
        return object.__hash__(self) if self._task is None else hash(self._task)

    def get_loop(self) -> Any:
        return self._loop

    def done(self) -> bool:
        if self._task is not None:
            finished: bool = self._task.done()
            return finished
        if self._loop._thread_id not in (None, threading.get_ident()):
            # Another thread looks at the tasks.
            return True
        transports = self._loop._take_accepted()
        if not transports:
            return True
        successor = Accepting(self._loop)
        coroutine = _accept(self._loop, transports)
        # A cancellation before a coroutine's first step is none to the coroutine.
        coroutine.send(None)
        try:
            # Not by the program's task factory, of which all_tasks() is to know nothing.
            task = asyncio.Task(coroutine, loop=self._loop)
        except BaseException:
            coroutine.close()
            raise
        # Before the hash changes. For the type, see above.
        asyncio._unregister_task(self)  # type: ignore[arg-type]
        self._task = task
        self._loop._accepting = successor
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __await__(self) -> Any:
        return self._task.__await__()

    def __repr__(self) -> str:
        return repr(self._task)
