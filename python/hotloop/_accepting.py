"""Tasks that stand for connections just accepted, made only when asyncio.all_tasks() is called.

asyncio accepts a connection in a task, which ends when connection_made() was called and the tasks that it
made have begun. A program that ends by cancelling all tasks thereby closes such connections, which their own
tasks, cancelled before they began, would not do. Here a server accepts without tasks.
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
    """Wait until the tasks of connection_made() have begun; close the connections if cancelled before."""
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
    """An object among a loop's tasks that turns into the task of accepted connections on demand.

    asyncio.all_tasks() calls done() of each task. It is True here unless connections have just been accepted:
    then done() makes a task for these, of which this is a proxy from then on, and registers a successor.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._task: Any = None
        # It has the methods that are called, but is no task to type checkers.
        asyncio._register_task(self)  # type: ignore[arg-type]

    # At the end of the interpreter this module's names may be None.
    _unregister = staticmethod(asyncio._unregister_task)

    def end(self) -> None:
        """Leave the tasks: the loop is closed.

        asyncio.all_tasks() looks at the tasks of all loops, and threads that call it would keep this alive
        for each other.
        """
        # As in __init__(), this is no task to type checkers.
        self._unregister(self)  # type: ignore[arg-type]

    # For isinstance(). To type checkers __class__ is no property.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return asyncio.Task

    # Callbacks get the task itself, which asyncio looks up in a set that has this object.

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
            # Called by another thread than the loop's.
            return True
        transports = self._loop._take_accepted()
        if not transports:
            return True
        successor = Accepting(self._loop)
        coroutine = _accept(self._loop, transports)
        # A task cancelled before its first step would not run the coroutine's except clause.
        coroutine.send(None)
        try:
            # Not by the program's task factory, which all_tasks() must not call.
            task = asyncio.Task(coroutine, loop=self._loop)
        except BaseException:
            coroutine.close()
            raise
        # Before the hash changes.
        self.end()
        self._task = task
        self._loop._accepting = successor
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __await__(self) -> Any:
        return self._task.__await__()

    def __repr__(self) -> str:
        return repr(self._task)
