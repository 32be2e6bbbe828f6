"""Name look-ups, in threads of their own.

asyncio's run in the default executor: they wait for whatever else fills it, and those that a name server does
not answer fill it themselves. The threads of this module do nothing else. There are few, they are started
when needed, and end when there has been nothing to do for a while. They are daemons, so that no look-up
holds up the end of the interpreter.

- What needs no name server (numbers, localhost, names in /etc/hosts) has threads that nothing slow gets into.
- Look-ups of an event loop that ask the same at the same time are one.
- A cancelled look-up frees its caller at once. It is not made, if it has not begun and nobody else waits.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import os
import socket
import threading
from asyncio.log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

# How long a thread waits for more to do, in seconds.
IDLE = 5.0
# Threads for what asks name servers, and for what does not.
MOST_SLOW = 16
MOST_QUICK = 2
HOSTS = "/etc/hosts"
# A larger file is read in a thread, which takes some time.
SMALL_FILE = 64 * 1024


class LookUp:
    """A call of socket.getaddrinfo() or getnameinfo() for whoever asks the same on one event loop."""

    def __init__(
        self, loop: Loop, key: object, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self.loop = loop
        self.key = key
        self.function = function
        self.arguments = arguments
        # The event loop's thread alone touches these.
        self.waiters: list[asyncio.Future[Any]] = []
        self.is_over = False
        self.made_by = look_ups
        # Whether it need not be made.
        self.is_unwanted = False

    def make(self) -> None:
        """Make the call, in a thread of its lane."""
        if self.is_unwanted:
            return
        result: Any = None
        error: BaseException | None = None
        try:
            result = self.function(*self.arguments)
        except BaseException as raised:
            error = raised
        self.tell(result, error)
        # The error's traceback has this frame.
        del error

    def tell(self, result: Any, error: BaseException | None) -> None:
        """Have the event loop end the look-up. Called by any thread."""
        # A closed loop has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.end, result, error)

    def end(self, result: Any, error: BaseException | None) -> None:
        """Wake those who wait, each with a result or an error of its own."""
        self.is_over = True
        self.forget()
        waiters = [waiter for waiter in self.waiters if not waiter.done()]
        for waiter in waiters:
            if error is None:
                waiter.set_result(list(result) if isinstance(result, list) else result)
            else:
                waiter.set_exception(error if waiter is waiters[-1] else _copy_of(error))

    def forget(self) -> None:
        """Have the next one who asks the same begin anew."""
        under_way = self.loop._look_ups
        if under_way is not None and under_way.get(self.key) is self:
            del under_way[self.key]


def _copy_of(error: BaseException) -> BaseException:
    try:
        copied: BaseException = copy.copy(error)
    except Exception:
        return error
    return copied.with_traceback(error.__traceback__)


class Lane:
    """Threads for look-ups, which are made in the order in which they came."""

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._waiting: collections.deque[LookUp | Hosts] = collections.deque()
        self._changed = threading.Condition(threading.Lock())
        self._threads = 0
        self._idle = 0

    def add(self, look_up: LookUp | Hosts) -> None:
        """Have a thread make the look-up. Raise RuntimeError if there is none, and none can be started."""
        with self._changed:
            self._waiting.append(look_up)
            is_new = len(self._waiting) > self._idle and self._threads < self._most
            if is_new:
                self._threads += 1
            else:
                self._changed.notify()
        if is_new:
            self._start_thread(look_up)

    def _start_thread(self, look_up: LookUp | Hosts) -> None:
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except Exception as error:
            left: list[LookUp | Hosts] = []
            with self._changed:
                self._threads -= 1
                if self._threads == 0:
                    left.extend(self._waiting)
                    self._waiting.clear()
            # Others have left theirs to the thread that there is not.
            for each in left:
                if isinstance(each, LookUp) and each is not look_up:
                    each.tell(None, _copy_of(error))
            if look_up in left:
                raise

    def discard(self, look_up: LookUp) -> None:
        """Do not make a look-up that has not begun.

        This does not wait for the lock. A garbage collection that ends a coroutine calls it, in any thread,
        also in one that has the lock; and in a forked child, a thread that is not there may have it.
        """
        look_up.is_unwanted = True
        if not self._changed.acquire(blocking=False):
            # A thread takes it out when its turn comes.
            return
        try:
            with contextlib.suppress(ValueError):
                self._waiting.remove(look_up)
        finally:
            self._changed.release()

    def _run(self) -> None:
        while (look_up := self._next()) is not None:
            try:
                look_up.make()
            except Exception:
                # There is no memory to tell those who wait. An executor's thread goes on, too.
                logger.exception("the end of a name look-up was lost")
            # Not kept while there is nothing to do.
            del look_up

    def _next(self) -> LookUp | Hosts | None:
        with self._changed:
            while not self._waiting:
                self._idle += 1
                try:
                    is_woken = self._changed.wait(IDLE)
                finally:
                    self._idle -= 1
                if not is_woken and not self._waiting:
                    self._threads -= 1
                    return None
            return self._waiting.popleft()


class Hosts:
    """The names in /etc/hosts, by the family of their addresses. Read when the file has changed."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._version: tuple[int, int] | None = None
        self._names: dict[int, set[str]] = {}

    def has(self, name: str, family: int) -> bool:
        """Whether the file has an address of this family, or of any if it is AF_UNSPEC, for a name."""
        try:
            status = os.stat(HOSTS)
            version = (status.st_mtime_ns, status.st_size)
            if version != self._version:
                if status.st_size <= SMALL_FILE:
                    # Another thread that asks meanwhile reads it, too.
                    self.make()
                    self._version = version
                else:
                    self._version = version
                    self._lane.add(self)
        except (OSError, RuntimeError):
            return False
        families = self._names if family == socket.AF_UNSPEC else (family,)
        return any(name in self._names.get(each, ()) for each in families)

    def make(self) -> None:
        """Read the file."""
        names: dict[int, set[str]] = {socket.AF_INET: set(), socket.AF_INET6: set()}
        with contextlib.suppress(OSError), open(HOSTS, encoding="utf-8", errors="replace") as file:
            for line in file:
                address, *others = line.partition("#")[0].split() or [""]
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                names[family].update(each.lower() for each in others)
        self._names = names


class LookUps:
    """All look-ups of a process."""

    def __init__(self) -> None:
        self.quick = Lane("hotloop names, quick", MOST_QUICK)
        self.slow = Lane("hotloop names", MOST_SLOW)
        self.hosts = Hosts(self.quick)


look_ups = LookUps()


def _start_anew() -> None:
    global look_ups
    # Threads do not survive a fork, and locks may be held.
    look_ups = LookUps()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def _asks_nobody(host: Any, family: int, flags: int) -> bool:
    """Whether the system answers a getaddrinfo() by itself."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not host or not isinstance(host, str):
        return True
    # Other types are wrong, which is told at once, too.
    if not isinstance(flags, int) or flags & socket.AI_NUMERICHOST:
        return True
    name = host.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) or look_ups.hosts.has(name, family)


def _key(function: Callable[..., Any], arguments: tuple[Any, ...]) -> object:
    """What is equal for look-ups that ask the same."""
    key = (function, arguments, tuple(map(type, arguments)))
    try:
        hash(key)
    except TypeError:
        return object()
    return key


async def getaddrinfo(loop: Loop, *arguments: Any) -> Any:
    """socket.getaddrinfo(host, port, family, type, proto, flags)."""
    host, _, family, _, _, flags = arguments
    is_quick = _asks_nobody(host, family, flags)
    return await _look_up(loop, is_quick, socket.getaddrinfo, arguments)


async def getnameinfo(loop: Loop, address: Any, flags: int) -> Any:
    """socket.getnameinfo(address, flags)."""
    is_quick = not isinstance(flags, int) or bool(flags & socket.NI_NUMERICHOST)
    return await _look_up(loop, is_quick, socket.getnameinfo, (address, flags))


async def _look_up(
    loop: Loop, is_quick: bool, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    key = _key(function, arguments)
    lane = look_ups.quick if is_quick else look_ups.slow
    if loop._look_ups is None:
        loop._look_ups = {}
    look_up = loop._look_ups.get(key)
    # Those from before a fork are made by nobody.
    if look_up is None or look_up.made_by is not look_ups:
        look_up = LookUp(loop, key, function, arguments)
        lane.add(look_up)
        loop._look_ups[key] = look_up
    waiter = loop.create_future()
    look_up.waiters.append(waiter)
    try:
        return await waiter
    finally:
        look_up.waiters.remove(waiter)
        if not look_up.waiters and not look_up.is_over:
            lane.discard(look_up)
            look_up.forget()


def end(loop: Loop) -> None:
    """Make no look-ups of a loop that is closed."""
    for look_up in (loop._look_ups or {}).values():
        look_ups.quick.discard(look_up)
        look_ups.slow.discard(look_up)
    loop._look_ups = None
