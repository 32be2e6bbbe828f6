"""Functions that the extension calls, rarely: error reports, warnings, debug output, socket objects."""

from __future__ import annotations

import _socket
import asyncio
import inspect
import socket
import sys
import threading
import time
import traceback
import types
import warnings
import weakref
from asyncio import base_events, constants, events, format_helpers, selector_events, transports, trsock
from asyncio.log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["logger"]

transport_socket = trsock.TransportSocket
check_ssl_socket: Callable[[Any], None] = base_events._check_ssl_socket  # type: ignore[attr-defined]

# Until 3.13 a Server counts its connections; since then it takes the transports.
SERVER_TAKES_TRANSPORT = len(inspect.signature(base_events.Server._attach).parameters) > 1  # type: ignore[attr-defined]

# Since 3.14 create_task() passes all keyword arguments on.
CREATE_TASK_TAKES_ALL = not asyncio.BaseEventLoop.create_task.__kwdefaults__

# Bytes that asyncio counts for a queued datagram, in addition to its data.
DATAGRAM_HEADER = 8 if sys.version_info >= (3, 13) else 0

# Without the GIL, another thread than the loop's may end things, but does not touch the loop's state.
HAS_THREADS = "t" in sys.abiflags

_selector_events: Any = selector_events
_FORMAT_TAKES_DEBUG = "debug" in inspect.signature(format_helpers._format_callback_source).parameters


def original_or_none(function: Any, module: Any) -> Any:
    """Return a function that a module of asyncio defines; None if it is patched."""
    is_original = isinstance(function, types.FunctionType) and function.__globals__ is vars(module)
    return function if is_original else None


def private_names(function: Any) -> set[str]:
    """The private attributes and globals that a function uses."""
    return {name for name in function.__code__.co_names if name[0] == "_"}


class Originals:
    """Classes of asyncio as they were when this was made. Programs patch their methods."""

    def __init__(self, *kinds: Any) -> None:
        # Not dicts: CPython crashes where there is no memory to iterate over the items of one.
        self._kinds = [(kind, list(vars(kind).items())) for kind in kinds]
        # The versions of the classes when they were as they had been.
        self._unchanged: list[int] | None = None

    def are_patched(self, loop: Any) -> bool:
        if self._versions(loop) == self._unchanged:
            return False
        for kind, originals in self._kinds:
            # A class that was changed has no version until something is looked up in it, which this does.
            kind.__init__  # noqa: B018
            if any(vars(kind).get(name) is not original for name, original in originals):
                return True
        versions = self._versions(loop)
        self._unchanged = None if 0 in versions else versions
        return False

    def _versions(self, loop: Any) -> list[int]:
        return [loop._type_version(kind) for kind, _ in self._kinds]


_original_socket = socket.socket
original_monotonic = time.monotonic if isinstance(time.monotonic, types.BuiltinFunctionType) else None
original_run = original_or_none(events.Handle._run, events)
original_extra_info = original_or_none(transports.BaseTransport.get_extra_info, transports)

c_task: Any = getattr(asyncio.tasks, "_CTask", None) or type(None)
c_future: Any = getattr(asyncio.futures, "_CFuture", None) or type(None)

# The callback of the weak references that asyncio's set of all tasks has until 3.13.
_all_tasks = getattr(asyncio.tasks, "_scheduled_tasks", None) or getattr(asyncio.tasks, "_all_tasks", None)
forget_task = getattr(_all_tasks, "_remove", None)


def name_of(subject: Any) -> tuple[str, str, int]:
    """Return the name, the file and the line of a function, a method, a code object or any object's class.

    What was not written in Python has the name of its module for the file.
    """
    function = getattr(subject, "__func__", subject)
    code = function if isinstance(function, types.CodeType) else getattr(function, "__code__", None)
    if type(code) is types.CodeType:
        return code.co_qualname, code.co_filename, code.co_firstlineno
    if isinstance(function, types.BuiltinFunctionType):
        return str(function.__qualname__), str(function.__module__ or ""), 0
    kind = type(subject)
    return kind.__qualname__, str(kind.__module__), 0


def find_chain(task: Any, number: int) -> int | None:
    """Return the number of the chain of who awaits a task, for the accounts of its loop; None for no more."""
    from .accounting import find_chain

    return find_chain(task, number)


def task_step_type() -> type:
    """The type of the callable that asyncio's C task passes to call_soon() for its next step."""
    seen: list[type] = [type(None)]

    class Scheduler:
        def call_soon(self, callback: object, *args: object, context: object = None) -> None:
            seen.append(type(callback))

        def get_debug(self) -> bool:
            return False

    async def nothing() -> None:
        pass

    if c_task is not type(None):
        coroutine = nothing()
        # With a name, so that the program's tasks are numbered from 1.
        task = c_task(coroutine, loop=Scheduler(), name="hotloop")
        task._log_destroy_pending = False
        coroutine.close()
    return seen[-1]


class DatagramTransport(transports._FlowControlMixin, asyncio.DatagramTransport):
    """Base of datagram transports, with the bases of asyncio's."""

    __slots__ = ()


class StreamSocket(trsock.TransportSocket):
    """The socket in a stream's extra info. Pending data is sent before fileno(), dup() and shutdown()."""

    __slots__ = ("_transport",)

    def __init__(self, sock: socket.socket, transport: Any) -> None:
        super().__init__(sock)
        self._transport = weakref.ref(transport)

    def _send_pending(self) -> None:
        transport = self._transport()
        if transport is None:
            return
        if transport._loop._thread_id == threading.get_ident():
            transport.get_write_buffer_size()
        else:
            # Errors and a full socket are left to the loop's thread.
            transport._send_in_thread()

    def fileno(self) -> int:
        self._send_pending()
        return super().fileno()

    def dup(self) -> socket.socket:
        self._send_pending()
        return super().dup()

    def shutdown(self, how: int) -> None:
        self._send_pending()
        super().shutdown(how)


def _format_callback(handle: Any) -> str:
    kwargs = {"debug": handle._loop.get_debug()} if _FORMAT_TAKES_DEBUG else {}
    callback = handle._callback
    try:
        source: str = format_helpers._format_callback_source(callback, handle._args, **kwargs)
    except Exception as error:
        # repr() of the program's objects can raise. The report is made nevertheless.
        return f"<{type(callback).__name__}, whose repr() raised {type(error).__name__}>"
    return source


# What is called with each transport that is made, while the extension tells of them.
on_opened: list[Callable[[Any, Any], object]] = []


def note_opened(loop: Any, transport: Any, is_pipe: bool) -> None:
    """Note a transport that was made."""
    if is_pipe:
        note_unlisted(loop, transport)
    for act in on_opened:
        act(loop, transport)


def note_unlisted(loop: Any, transport: Any) -> None:
    """Note a transport for snapshots that the extension does not list for them."""
    if loop._unlisted is None:
        loop._unlisted = weakref.WeakSet()
    loop._unlisted.add(transport)


def source_traceback() -> traceback.StackSummary:
    """The stack of the Python code that called the extension."""
    stack: traceback.StackSummary = format_helpers.extract_stack(sys._getframe(1))
    return stack


def report_handle(handle: Any, exception: BaseException) -> None:
    """Report an exception of a callback, as asyncio.Handle._run() does."""
    context = {
        "message": f"Exception in callback {_format_callback(handle)}",
        "exception": exception,
        "handle": handle,
    }
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    handle._loop.call_exception_handler(context)


def report_entry(loop: Any, subject: Any, exception: BaseException) -> None:
    """Report an exception of the event loop's own code as one of a callback, as asyncio does.

    *subject* is the transport, the listener or the loop concerned, or a handle that could not be reported.
    """
    if isinstance(subject, asyncio.Handle):
        report_handle(subject, exception)
        return
    context = {"message": f"Exception in callback of {subject!r}", "exception": exception}
    if isinstance(subject, asyncio.BaseTransport):
        context |= {"transport": subject, "protocol": subject.get_protocol()}
    loop.call_exception_handler(context)


def report_slow(loop: Any, subject: Any, duration: float) -> None:
    """Log a slow callback, in debug mode; *subject* is its handle, or the transport."""
    if duration >= loop.slow_callback_duration:
        if isinstance(subject, asyncio.Handle):
            subject = base_events._format_handle(subject)  # type: ignore[attr-defined]
        logger.warning("Executing %s took %.3f seconds", subject, duration)


def log_connection_error(transport: Any, message: str, exception: BaseException) -> None:
    """Log, in debug mode, a network error that ends a connection."""
    logger.debug("%r: %s", transport, message, exc_info=exception)


def report_protocol(loop: Any, message: str, exception: BaseException, transport: Any, protocol: Any) -> None:
    """Call the exception handler with an exception that a protocol raised."""
    context = {"message": message, "exception": exception}
    if transport is not None:
        context |= {"transport": transport, "protocol": protocol}
    loop.call_exception_handler(context)


def report_accept(loop: Any, exception: OSError, sock: socket.socket, listener: Any) -> None:
    """Report that accept() is out of descriptors or memory; the listener resumes after ACCEPT_RETRY_DELAY."""
    loop.call_exception_handler(
        {
            "message": "socket.accept() out of system resource",
            "exception": exception,
            "socket": trsock.TransportSocket(sock),
        }
    )
    loop.call_later(constants.ACCEPT_RETRY_DELAY, listener.resume)


def report_connection(loop: Any, exception: BaseException) -> None:
    """Report that no transport could be made for an incoming connection."""
    loop.call_exception_handler(
        {"message": "Error on transport creation for incoming connection", "exception": exception}
    )


def _arguments_for(fd: int) -> tuple[int, ...]:
    """The arguments besides *fd* with which socket.accept() calls socket.socket, if that is patched."""
    if socket.socket is _original_socket:
        return ()
    probe = _socket.socket(fileno=fd)
    try:
        return probe.family, probe.type, probe.proto
    finally:
        probe.detach()


def log_connection(server: Any, address: Any, fd: int) -> None:
    """Log an incoming connection, in debug mode."""
    # It may be patched with a function.
    cls: Any = socket.socket if isinstance(socket.socket, type) else _socket.socket
    arguments = _arguments_for(fd)
    sock: Any = cls.__new__(cls, *arguments, fileno=fd)
    # Ctrl-C can come between any two steps, also those of Python's own detach().
    detach = _socket.socket.detach.__get__(sock) if isinstance(sock, _socket.socket) else sock.detach
    try:
        cls.__init__(sock, *arguments, fileno=fd)
        logger.debug("%r got a new connection from %r: %r", server, address or sock.getpeername(), sock)
    finally:
        detach()


def has_own_method(sock: Any, name: str) -> bool:
    """Whether a method of *sock* is not that of _socket.socket."""
    method = getattr(sock, name)
    return not isinstance(sock, _socket.socket) or method != getattr(_socket.socket, name).__get__(sock)


_STREAM_METHODS = ("recv", "recv_into", "send", "sendmsg")
_DATAGRAM_METHODS = ("recvfrom", "recv", "sendto", "send")


def has_own_methods(sock: Any, is_stream: bool) -> bool:
    """Whether a transport must call methods of *sock*, which overrides them or is no socket."""
    methods = _STREAM_METHODS if is_stream else _DATAGRAM_METHODS
    return any(not hasattr(sock, name) or has_own_method(sock, name) for name in methods)


def asyncio_stream(loop: Any, sock: Any, protocol: Any, options: dict[str, Any]) -> Any:
    """Make asyncio's own stream transport, which calls the methods of its socket."""
    return _selector_events._SelectorSocketTransport(loop, sock, protocol, **options)


def asyncio_datagram(loop: Any, sock: Any, protocol: Any, options: dict[str, Any]) -> Any:
    """Make asyncio's own datagram transport, which calls the methods of its socket."""
    return _selector_events._SelectorDatagramTransport(loop, sock, protocol, **options)


def send_by_method(sock: Any, data: Any, sent: int) -> tuple[int, bool]:
    """Send data, of which *sent* bytes have been sent, by a socket's send().

    Return the number of bytes sent by now, and whether all are.
    """
    if sent:
        sent += sock.send(memoryview(data).cast("B")[sent:])
    else:
        sent = sock.send(data)
    return sent, sent >= memoryview(data).nbytes


def make_socket(fd: int) -> socket.socket:
    """Make a non-blocking socket object that owns *fd*. On an error, the caller still owns *fd*."""
    arguments = _arguments_for(fd)
    cls: Any = socket.socket
    is_class = isinstance(cls, type)
    sock: socket.socket = cls.__new__(cls, *arguments, fileno=fd) if is_class else cls(*arguments, fileno=fd)
    try:
        if is_class:
            cls.__init__(sock, *arguments, fileno=fd)
        sock.setblocking(False)
    except BaseException:
        # Ctrl-C can come between any two steps.
        sock.detach()
        raise
    return sock


def closed_socket() -> socket.socket:
    """Make a socket object that is closed."""
    sock = socket.socket()
    sock.close()
    return sock


def warn_unclosed(transport: Any) -> None:
    warnings.warn(f"unclosed transport {transport!r}", ResourceWarning, stacklevel=2, source=transport)


def warn_unawaited(name: str) -> None:
    warnings.warn(f"coroutine {name!r} was never awaited", RuntimeWarning, stacklevel=2)


def fail_empty_waiter(waiter: asyncio.Future[None]) -> None:
    """End the sendfile of a transport that has ended. It sends through a duplicate of its descriptor."""
    if not waiter.done():
        waiter.set_exception(ConnectionError("Connection is closed by peer"))
        return
    loop: Any = waiter.get_loop()
    task = loop._sendfiles.pop(waiter, None)
    if task is not None:
        task.cancel()
