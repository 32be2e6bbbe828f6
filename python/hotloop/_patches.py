"""What the program has put in place of asyncio's own, and what it finds of asyncio's loop in ours."""

from __future__ import annotations

import asyncio
from asyncio import base_events

from . import _core
from ._support import of_asyncio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Methods of BaseEventLoop that the extension has its own of, though asyncio's work on our loops, too. Tools
# replace some to see who calls them, and go on with what they found.
_SHARED = (
    "create_future",
    "create_task",
    "call_soon",
    "call_soon_threadsafe",
    "call_later",
    "time",
    "stop",
    "get_debug",
)
_base = vars(asyncio.BaseEventLoop)
_usual = {name: of_asyncio(_base[name], base_events) for name in _SHARED}


# What adopt() has put into classes.
_adopted: dict[tuple[type, str], object] = {}


def adopt(cls: type) -> None:
    """Give a class the methods that the program has put into BaseEventLoop, and take back the others.

    What the program has put into the class itself stays.
    """
    for name in _SHARED:
        method, present = _base.get(name), vars(cls).get(name)
        if present is not None and present is not _adopted.get((cls, name)):
            continue
        if method is not _usual[name]:
            if present is not method:
                setattr(cls, name, method)
                _adopted[cls, name] = method
        elif present is not None:
            delattr(cls, name)
            del _adopted[cls, name]


class ReadyHandles:
    """The ready queue of a loop, as far as programs use asyncio's, which is a deque."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def __len__(self) -> int:
        return len(self._loop._ready_handles())

    def __iter__(self) -> Iterator[asyncio.Handle]:
        return iter(self._loop._ready_handles())

    def __getitem__(self, index: int) -> asyncio.Handle:
        handle: asyncio.Handle = self._loop._ready_handles()[index]
        return handle

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)!r})"

    def append(self, handle: asyncio.Handle) -> None:
        """Queue a handle; of a timer that has fired already, nothing is left to do."""
        if isinstance(handle, _core.TimerHandle):
            self._loop._make_ready(handle)
        else:
            self._loop._add_callback(handle)

    def popleft(self) -> asyncio.Handle:
        """Take out the next handle and return it; IndexError if there is none."""
        handle: asyncio.Handle | None = self._loop._pop_ready()
        if handle is None:
            raise IndexError("pop from an empty deque")
        return handle

    def clear(self) -> None:
        """Do nothing: asyncio's close() calls this, and ours has dropped what was queued."""
