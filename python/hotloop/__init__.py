"""A drop-in asyncio event loop, written in Rust.

Three ways to use it::

    hotloop.run(main())                                          # instead of asyncio.run(main())
    asyncio.Runner(loop_factory=hotloop.new_event_loop)          # wherever a loop factory is taken
    hotloop.install()                                            # where Python still has event loop policies

For pytest, which would warn of a package with a plugin that is imported before it: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations as _annotations

import asyncio as _asyncio

from ._core import Limit, __version__
from ._limits import limit
from ._policy import HAS_POLICIES as _HAS_POLICIES
from .loop import Loop

__all__ = ["Limit", "Loop", "__version__", "limit", "new_event_loop", "run", "snapshot"]

# Importing typing takes longer than importing this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine as _Coroutine
    from typing import Any as _Any
    from typing import TypeVar as _TypeVar

    from .snapshots import Snapshot as _Snapshot

    _T = _TypeVar("_T")


def new_event_loop() -> Loop:
    """Return a new event loop. It is not set as the current one."""
    return Loop()


def run(main: _Coroutine[_Any, _Any, _T], *, debug: bool | None = None) -> _T:
    """Run a coroutine on a new event loop and return its result: asyncio.run() with this package's loop.

    Raise RuntimeError when called from a running event loop, ValueError or TypeError (as the running Python's
    asyncio.run() does) when *main* is not a coroutine.
    """
    if _asyncio._get_running_loop() is not None:
        # asyncio.run() checks this before it makes a loop.
        raise RuntimeError("hotloop.run() cannot be called from a running event loop")
    with _asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)


def snapshot(loop: _asyncio.AbstractEventLoop | None = None) -> _Snapshot:
    """Return what a loop has now: its tasks and where they wait, its transports, and its timers.

    The loop is the running one unless *loop* is given, which must not be running in another thread. Two
    snapshots tell what grew: see hotloop.snapshots.Snapshot.since(). It takes some 10
    microseconds for each task.

    Raise RuntimeError if no loop runs, or another thread runs it; TypeError for a loop that isn't hotloop's.
    """
    from ._observing import listing as _listing

    return _listing.take(loop)


if _HAS_POLICIES:
    from ._policy import EventLoopPolicy, install

    __all__ += ["EventLoopPolicy", "install"]
