"""Patches of asyncio.BaseEventLoop that also apply to Loop, and the ready queue as asyncio's deque."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from asyncio import base_events

from . import _core
from ._support import original_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

# Methods of BaseEventLoop that the extension overrides. Tools patch some of them in BaseEventLoop, to observe
# calls, and call the original, which works on Loop, too.
_PATCHABLE = (
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
_originals = {name: original_or_none(_base[name], base_events) for name in _PATCHABLE}

# What sync_patches() has put into classes.
_applied: dict[tuple[type, str], object] = {}


def sync_patches(cls: type) -> None:
    """Copy methods that are patched in BaseEventLoop into a class, and remove copies of former patches.

    Methods that the program has put into the class itself stay.
    """
    for name in _PATCHABLE:
        method, present = _base.get(name), vars(cls).get(name)
        if present is not None and present is not _applied.get((cls, name)):
            continue
        if method is not _originals[name]:
            if present is not method:
                setattr(cls, name, method)
                _applied[cls, name] = method
        elif present is not None:
            # A loop in another thread may have removed it just before.
            with contextlib.suppress(AttributeError):
                delattr(cls, name)
            _applied.pop((cls, name), None)


# Timers that were taken out of a ready queue and are not back, by id.
_taken_out: weakref.WeakValueDictionary[int, asyncio.Handle] = weakref.WeakValueDictionary()


class ReadyHandles:
    """The ready queue of a loop, with the methods of asyncio's deque that programs use."""

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
        """Queue a handle. A timer that has fired is ignored, unless it was taken out of this queue."""
        if isinstance(handle, _core.TimerHandle) and _taken_out.pop(id(handle), None) is not handle:
            self._loop._make_ready(handle)
        else:
            self._loop._add_callback(handle)

    def extendleft(self, handles: Iterable[asyncio.Handle]) -> None:
        """Queue handles before the others, the last one first."""
        first = list(handles)
        if first:
            others = [self.popleft() for _ in range(len(self))]
            for handle in [*reversed(first), *others]:
                self.append(handle)

    def popleft(self) -> asyncio.Handle:
        """Take out the next handle and return it; IndexError if there is none."""
        handle: asyncio.Handle | None = self._loop._pop_ready()
        if handle is None:
            raise IndexError("pop from an empty deque")
        if isinstance(handle, _core.TimerHandle):
            _taken_out[id(handle)] = handle
        return handle

    def clear(self) -> None:
        """Do nothing. asyncio's close() calls this; the extension drops the queue itself."""
