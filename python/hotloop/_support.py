"""What the extension says in Python because it says it rarely: error reports, warnings, debug output."""

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

# Until 3.13 a Server counts its connections; since then it wants to know them.
SERVER_TAKES_TRANSPORT = len(inspect.signature(base_events.Server._attach).parameters) > 1  # type: ignore[attr-defined]

# Since 3.14 create_task() knows nothing of the keyword arguments that it is given.
CREATE_TASK_TAKES_ALL = not asyncio.BaseEventLoop.create_task.__kwdefaults__

# What asyncio counts for a datagram that waits to be sent, beside its data.
DATAGRAM_HEADER = 8 if sys.version_info >= (3, 13) else 0

_selector_events: Any = selector_events
_FORMAT_TAKES_DEBUG = "debug" in inspect.signature(format_helpers._format_callback_source).parameters


def of_asyncio(function: Any, module: Any) -> Any:
    """A function of a module of asyncio's; None for another that the program has put in its place."""
    is_theirs = isinstance(function, types.FunctionType) and function.__globals__ is vars(module)
    return function if is_theirs else None


_usual_socket = socket.socket
usual_monotonic = time.monotonic if isinstance(time.monotonic, types.BuiltinFunctionType) else None
usual_run = of_asyncio(events.Handle._run, events)
usual_extra_info = of_asyncio(transports.BaseTransport.get_extra_info, transports)

c_task: Any = getattr(asyncio.tasks, "_CTask", None) or type(None)
c_future: Any = getattr(asyncio.futures, "_CFuture", None) or type(None)


def task_step_type() -> type:
    """The type of what a task written in C gives call_soon(), to have its next step run."""
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
        # A name of its own: the numbers in the usual names are for the program's tasks.
        task = c_task(coroutine, loop=Scheduler(), name="hotloop")
        task._log_destroy_pending = False
        coroutine.close()
    return seen[-1]


class DatagramTransport(transports._FlowControlMixin, asyncio.DatagramTransport):
    """The classes that a datagram transport of asyncio's is an instance of."""

    __slots__ = ()


class StreamSocket(trsock.TransportSocket):
    """What a stream tells of its socket: what is done to it comes after what was written."""

    __slots__ = ("_transport",)

    def __init__(self, sock: socket.socket, transport: Any) -> None:
        super().__init__(sock)
        self._transport = weakref.ref(transport)

    def _send_what_was_written(self) -> None:
        transport = self._transport()
        if transport is None:
            return
        if transport._loop._thread_id == threading.get_ident():
            transport.get_write_buffer_size()
        else:
            # What follows from an error, or from a full socket, is left to the loop.
            transport._send_in_thread()

    def fileno(self) -> int:
        self._send_what_was_written()
        return super().fileno()

    def dup(self) -> socket.socket:
        self._send_what_was_written()
        return super().dup()

    def shutdown(self, how: int) -> None:
        self._send_what_was_written()
        super().shutdown(how)


def _format_callback(handle: Any) -> str:
    kwargs = {"debug": handle._loop.get_debug()} if _FORMAT_TAKES_DEBUG else {}
    callback = handle._callback
    try:
        source: str = format_helpers._format_callback_source(callback, handle._args, **kwargs)
    except Exception as error:
        # Its repr() is the program's own, and must not keep anybody from being told.
        return f"<{type(callback).__name__}, whose repr() raised {type(error).__name__}>"
    return source


def source_traceback() -> traceback.StackSummary:
    """The stack of whoever called the method of the event loop that asks."""
    stack: traceback.StackSummary = format_helpers.extract_stack(sys._getframe(1))
    return stack


def report_handle(handle: Any, exception: BaseException) -> None:
    """What asyncio.Handle._run() does with an exception."""
    context = {
        "message": f"Exception in callback {_format_callback(handle)}",
        "exception": exception,
        "handle": handle,
    }
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    handle._loop.call_exception_handler(context)


def report_entry(loop: Any, subject: Any, exception: BaseException) -> None:
    """Report an exception of the event loop's own code: asyncio's is in callbacks, which report theirs so.

    *subject* is what the code was run for: a transport, a listener, a handle that could not be reported, or
    the loop.
    """
    if isinstance(subject, asyncio.Handle):
        report_handle(subject, exception)
        return
    context = {"message": f"Exception in callback of {subject!r}", "exception": exception}
    if isinstance(subject, asyncio.BaseTransport):
        context |= {"transport": subject, "protocol": subject.get_protocol()}
    loop.call_exception_handler(context)


def report_slow(loop: Any, subject: Any, duration: float) -> None:
    """Log a callback that took long, in debug mode; *subject* is its handle, or the transport."""
    if duration >= loop.slow_callback_duration:
        if isinstance(subject, asyncio.Handle):
            subject = base_events._format_handle(subject)  # type: ignore[attr-defined]
        logger.warning("Executing %s took %.3f seconds", subject, duration)


def log_connection_error(transport: Any, message: str, exception: BaseException) -> None:
    """Log, in debug mode, an error of the network's that ends a connection."""
    logger.debug("%r: %s", transport, message, exc_info=exception)


def report_protocol(loop: Any, message: str, exception: BaseException, transport: Any, protocol: Any) -> None:
    """Hand an exception that a protocol raised to the exception handler."""
    context = {"message": message, "exception": exception}
    if transport is not None:
        context |= {"transport": transport, "protocol": protocol}
    loop.call_exception_handler(context)


def report_accept(loop: Any, exception: OSError, sock: socket.socket, listener: Any) -> None:
    """Report that there is no descriptor or memory for a connection, and have the listener try again."""
    loop.call_exception_handler(
        {
            "message": "socket.accept() out of system resource",
            "exception": exception,
            "socket": trsock.TransportSocket(sock),
        }
    )
    loop.call_later(constants.ACCEPT_RETRY_DELAY, listener.resume)


def report_connection(loop: Any, exception: BaseException) -> None:
    """Report that no transport could be made of an incoming connection."""
    loop.call_exception_handler(
        {"message": "Error on transport creation for incoming connection", "exception": exception}
    )


def _arguments_for(fd: int) -> tuple[int, ...]:
    """What socket.accept() makes a socket of, besides *fd*: a class or function of the program's needs it."""
    if socket.socket is _usual_socket:
        # It asks the descriptor.
        return ()
    probe = _socket.socket(fileno=fd)
    try:
        return probe.family, probe.type, probe.proto
    finally:
        probe.detach()


def log_connection(server: Any, address: Any, fd: int) -> None:
    """Say in debug mode that a server has got a connection."""
    # A function can be in its place.
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
    """Whether a method of *sock* is not the one that all sockets have from C."""
    method = getattr(sock, name)
    return not isinstance(sock, _socket.socket) or method != getattr(_socket.socket, name).__get__(sock)


_STREAM_METHODS = ("recv", "recv_into", "send", "sendmsg")
_DATAGRAM_METHODS = ("recvfrom", "recv", "sendto", "send")


def has_own_methods(sock: Any, is_stream: bool) -> bool:
    """Whether a transport has to call the methods of *sock*: an object like a socket, or of a subclass."""
    methods = _STREAM_METHODS if is_stream else _DATAGRAM_METHODS
    return any(not hasattr(sock, name) or has_own_method(sock, name) for name in methods)


def stream_by_methods(loop: Any, sock: Any, protocol: Any, options: dict[str, Any]) -> Any:
    """asyncio's own transport, which calls the methods of its socket."""
    return _selector_events._SelectorSocketTransport(loop, sock, protocol, **options)


def datagram_by_methods(loop: Any, sock: Any, protocol: Any, options: dict[str, Any]) -> Any:
    """The same for datagrams."""
    return _selector_events._SelectorDatagramTransport(loop, sock, protocol, **options)


def send_by_method(sock: Any, data: Any, sent: int) -> tuple[int, bool]:
    """Send data, of which some has been sent, by the method of a socket.

    Return how much has been sent by now, and whether that is all.
    """
    if sent:
        sent += sock.send(memoryview(data).cast("B")[sent:])
    else:
        sent = sock.send(data)
    return sent, sent >= memoryview(data).nbytes


def make_socket(fd: int) -> socket.socket:
    """A socket object that owns *fd*, which does not block. If that fails, *fd* is still the caller's."""
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
    """A socket object that is closed."""
    sock = socket.socket()
    sock.close()
    return sock


def warn_unclosed(transport: Any) -> None:
    warnings.warn(f"unclosed transport {transport!r}", ResourceWarning, stacklevel=2, source=transport)


def warn_unawaited(name: str) -> None:
    warnings.warn(f"coroutine {name!r} was never awaited", RuntimeWarning, stacklevel=2)


def fail_empty_waiter(waiter: asyncio.Future[None]) -> None:
    """End a sendfile whose transport has ended: it sends through a descriptor of its own."""
    if not waiter.done():
        waiter.set_exception(ConnectionError("Connection is closed by peer"))
        return
    loop: Any = waiter.get_loop()
    task = loop._sendfiles.pop(waiter, None)
    if task is not None:
        task.cancel()
