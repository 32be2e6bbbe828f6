"""Takes snapshots: see hotloop.snapshot()."""

from __future__ import annotations

import asyncio
import functools
import itertools
import socket
import threading
import time
import weakref
from types import MethodType
from typing import TYPE_CHECKING, Any

from .. import _core
from ..loop import Loop
from ..snapshots import Snapshot, Task, TaskName, Timer, Transport
from . import awaiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias

    # The number and the age of each object, by its address.
    _Known: TypeAlias = dict[int, tuple[int, float | None]]

_serials = itertools.count(1)
_loops = itertools.count(1)

# What transports of the extension are called in snapshots. Streams are called by their addresses.
_KINDS: dict[type, str] = {
    _core.StreamTransport: "",
    _core.DatagramTransport: "datagram",
    _core.ReadPipeTransport: "read pipe",
    _core.WritePipeTransport: "write pipe",
}


class Listed:
    """What snapshots of a loop have listed: by it, an object has the same number in each of them.

    Invariant: nothing is kept alive, and an object at the address of a former one is another.
    """

    def __init__(self) -> None:
        self.loop = next(_loops)
        # By address: objects of the program's need not be hashable.
        self.known: dict[int, tuple[weakref.ref[Any], int, float]] = {}

    def update(self, listed: Iterable[Any], now: float) -> _Known:
        """Return the number and the age of each object by its address, and forget all others."""
        known: dict[int, tuple[weakref.ref[Any], int, float]] = {}
        found: dict[int, tuple[int, float | None]] = {}
        for each in listed:
            address = id(each)
            former = self.known.get(address)
            if former is not None and former[0]() is each:
                known[address] = former
                found[address] = (former[1], now - former[2])
                continue
            serial = next(_serials)
            found[address] = (serial, None)
            try:
                known[address] = (weakref.ref(each), serial, now)
            except TypeError:
                # It has no weak references: each snapshot gives it a new number.
                continue
        self.known = known
        return found


def check(loop: Any) -> Loop:
    """Return the loop to take a snapshot of: the running one for None.

    Raise TypeError for what is no loop of hotloop's, RuntimeError if no loop runs, or another thread runs it.
    """
    if loop is None:
        loop = asyncio.get_running_loop()
    if not isinstance(loop, Loop):
        raise TypeError(f"the loop must be one of hotloop's, not {type(loop).__qualname__}")
    if loop._thread_id not in (None, threading.get_ident()):
        raise RuntimeError("Non-thread-safe operation invoked on an event loop other than the current one")
    return loop


def take(loop: Any) -> Snapshot:
    """Implement hotloop.snapshot()."""
    loop = check(loop)
    now = time.monotonic()
    tasks = all_tasks(loop)
    transports, sockets = open_transports(loop)
    timers = loop._scheduled
    if loop._listed is None:
        loop._listed = Listed()
    known = loop._listed.update((*tasks, *transports, *sockets, *timers), now)
    return Snapshot(
        now,
        loop._listed.loop,
        tuple(list_task(each, known) for each in tasks),
        tuple(list_transports(transports, sockets, known)),
        tuple(list_timer(each, known, loop.time()) for each in timers),
    )


def all_tasks(loop: Loop) -> list[asyncio.Task[Any]]:
    """Tasks of a loop that have not ended, in the order of the numbers that asyncio names them by."""
    return sorted(asyncio.all_tasks(loop), key=_order)


def open_transports(loop: Loop) -> tuple[list[Any], tuple[socket.socket, ...]]:
    """Transports, some of which can be closed, and the sockets of servers."""
    listed, sockets = loop._transports_and_listeners()
    # Those of asyncio's own, for sockets with methods of their own, and what the extension does not list.
    others = [*loop._transports.values(), *(loop._unlisted or ())]
    return list({id(each): each for each in (*listed, *others)}.values()), sockets


def _order(task: asyncio.Task[Any]) -> tuple[str, int]:
    name = _name(task)
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdecimal() else (name, 0)


def _name(task: Any) -> str:
    try:
        return str(task.get_name())
    except Exception:
        # What a task factory made need not have one.
        return type(task).__qualname__


def _task_name(task: Any) -> TaskName | None:
    return None if task is None else TaskName(_name(task), awaiting.name_of(task))


def list_task(task: asyncio.Task[Any], known: _Known) -> Task:
    serial, age = known[id(task)]
    return Task(
        serial,
        _name(task),
        awaiting.name_of(task),
        tuple(awaiting.coroutines(task)),
        age,
        _task_name(awaiting.awaiting_task(task)),
    )


def list_transports(
    transports: Iterable[Any], sockets: Iterable[socket.socket], known: _Known
) -> Iterator[Transport]:
    """Describe what open_transports() returned."""
    for transport in transports:
        if (listed := _transport(transport, known)) is not None:
            yield listed
    for sock in sockets:
        if (listed := _server(sock, known)) is not None:
            yield listed


def _transport(transport: Any, known: _Known) -> Transport | None:
    serial, seen = known[id(transport)]
    if type(transport) not in _KINDS:
        return _transport_of_asyncio(transport, serial, seen)
    fd, age, idle, read, written, waiting, is_paused, protocol, peer = transport._traffic()
    if protocol is None:
        # It is closed.
        return None
    outer = transport.get_protocol()
    kind = _KINDS[type(transport)] or ("tcp" if isinstance(peer, tuple) else "unix")
    if hasattr(outer, "_app_protocol"):
        kind = "tls"
        # That of asyncio's class is the program's one below it.
        protocol = outer._app_protocol if protocol is outer else protocol
    return Transport(
        serial,
        kind,
        _address(peer),
        fd,
        _class_of(protocol),
        age,
        idle,
        read,
        written,
        waiting,
        is_paused,
        transport.is_closing(),
    )


def _class_of(protocol: object) -> str:
    return "" if protocol is None else type(protocol).__qualname__


def _transport_of_asyncio(transport: Any, serial: int, age: float | None) -> Transport | None:
    """A transport of a class of asyncio's: that of a subprocess, or for a socket with methods of its own."""

    def attribute(name: str) -> Any:
        return getattr(transport, name, None)

    if isinstance(transport, asyncio.SubprocessTransport):
        if attribute("_closed"):
            return None
        kind, fd, waiting = "subprocess", None, 0
        peer = f"process {transport.get_pid()}"
    else:
        sock = attribute("_sock")
        if sock is None:
            return None
        kind, fd, waiting = type(transport).__name__, sock.fileno(), transport.get_write_buffer_size()
        peer = _address(transport.get_extra_info("peername")) or ""
    is_paused = bool(attribute("_paused"))
    protocol = _class_of(attribute("_protocol"))
    return Transport(
        serial,
        kind,
        peer or None,
        fd,
        protocol,
        age,
        None,
        None,
        None,
        waiting,
        is_paused,
        transport.is_closing(),
    )


def _server(sock: socket.socket, known: _Known) -> Transport | None:
    serial, age = known[id(sock)]
    try:
        address = _address(sock.getsockname())
    except OSError:
        # It was closed.
        return None
    return Transport(serial, "server", address, sock.fileno(), "", age, None, None, None, 0, False, False)


def _address(address: Any) -> str | None:
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        # A name in Linux's abstract namespace begins with a null byte.
        return "@" + address[1:].decode(errors="replace") if address else None
    return str(address) if address else None


def list_timer(timer: asyncio.TimerHandle, known: _Known, now: float) -> Timer:
    callback: Any = getattr(timer, "_callback", None)
    arguments: Any = getattr(timer, "_args", None)
    while type(callback) is functools.partial:
        arguments = (*callback.args, *(arguments or ()))
        callback = callback.func
    return Timer(
        known[id(timer)][0],
        _qualified_name(callback),
        timer.when() - now,
        timer.cancelled(),
        _task_name(_task_of(callback, arguments or ())),
    )


def _qualified_name(callback: Any) -> str:
    try:
        name = getattr(callback, "__qualname__", None)
    except Exception:
        name = None
    return name if isinstance(name, str) else type(callback).__qualname__


def _task_of(callback: Any, arguments: Iterable[Any]) -> Any:
    """The task that a timer wakes, by a future, or that asyncio.timeout() cancels."""
    owner = callback.__self__ if type(callback) is MethodType else None
    if isinstance(owner, asyncio.Timeout):
        return getattr(owner, "_task", None)
    for argument in arguments:
        if awaiting.is_task(argument):
            return argument
        if asyncio.isfuture(argument):
            return awaiting.awaiting_task(argument)
    return None
