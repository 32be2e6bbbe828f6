"""The event loop: the extension's Loop for what happens often, asyncio's BaseEventLoop for the rest."""

from __future__ import annotations

import _socket
import asyncio
import functools
import os
import socket
import sys
import threading
import weakref
from asyncio import events, exceptions, selector_events
from asyncio.log import logger
from types import BuiltinFunctionType

from . import _core
from ._accepting import Accepting
from ._executors import ExecutorSupport
from ._patches import ReadyHandles, adopt
from ._signals import SignalHandling
from ._subprocesses import SubprocessSupport
from ._support import check_ssl_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Self, TypeVar

    from ._observing.watching import Watch
    from .blocking import Block
    from .metrics import Metrics

    _Function = TypeVar("_Function", bound=Callable[..., Any])

# Methods with a shorter way here, which is not taken where the program has replaced one.
_create_connection = asyncio.BaseEventLoop.create_connection
_start_tls = asyncio.BaseEventLoop.start_tls
_getaddrinfo = asyncio.BaseEventLoop.getaddrinfo
_getnameinfo = asyncio.BaseEventLoop.getnameinfo
_CONNECTION_OPTIONS: dict[str, Any] = _create_connection.__kwdefaults__ or {}

# What create_connection() asks besides methods of the loop. Where the program has another instead, that is
# asked; also if that was there before this module.
_Socket = socket.socket if socket.socket.__module__ == "socket" else None
_socket_connect = _socket.socket.connect
# The same for what asyncio's servers ask.
_socket_accept = None if _Socket is None else _Socket.accept

# What asyncio's event loop for Unix does once a connection, or once a program, in functions that ask nothing
# of their loop but the methods that this one has, too. Each Python brings its own version.
_Unix: Any = asyncio.SelectorEventLoop


def _with_signature_of(function: _Function) -> Callable[[Callable[..., Any]], _Function]:
    """functools.wraps() for a method that takes what another does, whatever that is in the running Python."""
    # To type checkers wraps() returns what keeps the method's own signature: this says the other's.
    return functools.wraps(function)  # type: ignore[return-value]


def _replaces_connecting(cls: type) -> bool:
    """Whether methods are overridden that create_connection() goes through.

    Not a part of Loop.__init__(): before 3.12, a function whose arguments a generator expression refers to
    leaks them, here the loop, where there is no memory.
    """
    return any(getattr(cls, name) is not getattr(Loop, name) for name in _core.CONNECTING)


_tasks: Any = asyncio.tasks


class _Selector:
    """Takes the place of a selector for an iteration that is the program's own, as nest_asyncio's.

    What is ready and due is run in the wait: the program finds nothing but what that has made ready.
    """

    def __init__(self, loop: Loop | None = None) -> None:
        self._loop = loop

    def __get__(self, loop: Loop | None, _: type) -> _Selector:
        return _Selector(loop)

    def get_key(self, fd: int) -> Any:
        """What repr() of asyncio's own transports asks: nothing is known here."""
        raise KeyError(fd)

    def select(self, timeout: float | None = None) -> list[Any]:
        """Run an iteration of the loop, perhaps within a task, which is not the current one meanwhile."""
        loop: Any = self._loop
        task = asyncio.current_task(loop)
        if task is not None:
            _tasks._leave_task(loop, task)
        try:
            _core.Loop._run_once(loop)
        finally:
            if task is not None:
                _tasks._enter_task(loop, task)
        return []


class Loop(SignalHandling, SubprocessSupport, ExecutorSupport, asyncio.BaseEventLoop):
    """An asyncio event loop that runs callbacks, timers and transports in Rust.

    It takes and ignores the argument of asyncio.SelectorEventLoop, so that it can stand in for it. The
    environment variable HOTLOOP_POLLER=portable, read here, forces the wait that platforms without a faster
    one use.
    """

    # What asyncio.BaseEventLoop has besides what it documents.
    _debug: bool
    _stopping: bool
    _thread_id: int | None
    _check_running: Callable[[], None]
    _set_coroutine_origin_tracking: Callable[[bool], None]
    _asyncgen_firstiter_hook: Callable[[Any], None]
    _asyncgen_finalizer_hook: Callable[[Any], None]
    _ensure_resolved: Callable[..., Awaitable[Any]]

    # What tasks accept connections, for whoever asks; since there is a server.
    _accepting: Accepting | None = None

    # How the hooks for asynchronous generators were set before a run.
    _old_agen_hooks: Any = None

    # Called with each loop that is made.
    _when_made: Callable[[Loop], object] | None = None

    # How callbacks are watched, for blocking the loop.
    _blocking: Watch | None = None

    # What asyncio's own loops wait with. Here the extension does.
    _selector = _Selector()

    def __init__(self, selector: object = None) -> None:
        try:
            asyncio.BaseEventLoop.__init__(self)
            adopt(Loop)
            self._replaces_connecting = _replaces_connecting(type(self))
            SignalHandling.__init__(self)
            SubprocessSupport.__init__(self)
            self._transports: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
            self._unix_server_sockets: dict[socket.socket, int] = {}
            # The task that sends a file, by the future of its transport that waits for no more to be written.
            self._sendfiles: dict[asyncio.Future[None], asyncio.Task[Any] | None] = {}
            if Loop._when_made is not None:
                Loop._when_made(self)
        except BaseException:
            # Half a loop has nothing to close but its descriptors, and __del__() asks no more of it.
            self._close()
            self._closed = True
            raise

    # --- Running ---

    def run_forever(self) -> None:
        """Run until stop() is called."""
        self._run_forever_setup()
        try:
            self._wait_by(_replaced_select())
            waking = self._wake_on_signals()
            try:
                if self._run_once == _core.Loop._run_once.__get__(self):
                    self._run()
                else:
                    self._run_by_method()
            finally:
                if waking:
                    self._stop_waking_on_signals()
        finally:
            # Ctrl-C can come as a method begins: without these, the loop would count as running for good.
            try:
                self._stopping = False
                self._thread_id = None
                events._set_running_loop(None)
            finally:
                self._run_forever_cleanup()

    def _run_forever_setup(self) -> None:
        """What comes before the first iteration: asyncio has it in a method of its own since Python 3.13."""
        self._check_closed()
        self._check_running()
        adopt(Loop)
        self._note_overrides()
        self._set_coroutine_origin_tracking(self._debug)
        self._old_agen_hooks = sys.get_asyncgen_hooks()
        self._thread_id = threading.get_ident()
        try:
            sys.set_asyncgen_hooks(self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)
            events._set_running_loop(self)
        except BaseException:
            self._run_forever_cleanup()
            raise

    def _run_forever_cleanup(self) -> None:
        """What comes after the last iteration."""
        self._stopping = False
        self._thread_id = None
        # Each can fail where there is no memory, which is no reason to leave out the others.
        try:
            events._set_running_loop(None)
        finally:
            try:
                self._set_coroutine_origin_tracking(False)
            finally:
                hooks, self._old_agen_hooks = self._old_agen_hooks, None
                if hooks is not None:
                    sys.set_asyncgen_hooks(*hooks)

    def _run_by_method(self) -> None:
        """What asyncio does, which calls the _run_once() of a subclass."""
        while True:
            self._run_once()
            if self._stopping:
                break

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing: see _Selector."""

    def close(self) -> None:
        """Close the event loop: what is scheduled is dropped, what was written and the network takes is sent.

        The executor is shut down without waiting. Raise RuntimeError if the loop is running.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._blocking is not None:
            self._blocking.end(self)
        self._end_signal_handling()
        self._forget_children()
        # Not by its name: at the end of the interpreter this module may have none any more.
        super().close()
        self._close()

    def __copy__(self) -> Self:
        """The loop itself: two cannot share what it has."""
        return self

    @property
    def _ready(self) -> ReadyHandles:
        """What is ready to be run, as asyncio has it, to be looked at or added to."""
        return ReadyHandles(self)

    @_ready.setter
    def _ready(self, handles: object) -> None:
        # BaseEventLoop's __init__() sets an empty one.
        pass

    @property
    def _scheduled(self) -> list[asyncio.TimerHandle]:
        """The timers, as asyncio has them, to be looked at."""
        # A loop that is closed has dropped them, or is about to: asyncio's close() asks for them.
        return [] if self._closed else list(self._timer_handles())

    @_scheduled.setter
    def _scheduled(self, timers: object) -> None:
        pass

    def set_debug(self, enabled: bool) -> None:
        """Turn debug mode on or off, as asyncio has it."""
        asyncio.BaseEventLoop.set_debug(self, enabled)

    # --- What it does ---

    def metrics(self) -> Metrics:
        """Return what the loop did since it was made, or since reset_metrics(): see hotloop.metrics.Metrics.

        May be called from any thread.
        """
        from .metrics import Histogram, Metrics

        counted = self._metrics()
        for name in ("iteration_duration", "delay"):
            counted[name] = Histogram(*counted[name])
        return Metrics(**counted)

    def watch_blocking(
        self, threshold: float | None = 0.1, handler: Callable[[Block], object] | None = None
    ) -> None:
        """Report callbacks that run for *threshold* seconds or longer; with None, no more.

        Each is a warning of the logger `hotloop`. A *handler* is called instead, with an object that says the
        same, on the loop, when the callback is over. Nobody is told more than once a second. Closing the loop
        ends it.

        Raise ValueError for a threshold that is not positive.
        """
        from ._observing import watching

        watching.watch(self, threshold, handler)

    # --- Names ---

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """socket.getaddrinfo() in a thread; an IP address and a number for the port need none."""
        is_replaced = asyncio.BaseEventLoop.getaddrinfo is not _getaddrinfo
        if not is_replaced and _is_numeric(host) and _is_port(port):
            return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        """socket.getnameinfo() in a thread; none is needed to write numbers down."""
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        is_replaced = asyncio.BaseEventLoop.getnameinfo is not _getnameinfo
        if not is_replaced and flags & numeric == numeric:
            return socket.getnameinfo(sockaddr, flags)
        return await super().getnameinfo(sockaddr, flags)

    # --- Sockets ---

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a non-blocking socket; a host name is resolved first."""
        check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        await self._sock_connect(sock, address)

    # --- Transports ---

    @_with_signature_of(_create_connection)
    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        connection = self._connect(host, port) if self._connects_itself(options) else None
        if connection is None:
            return await super().create_connection(protocol_factory, host, port, **options)
        try:
            await connection.connected
            transport, protocol, made = connection.transport(protocol_factory)
        except BaseException:
            connection.close()
            raise
        try:
            await made
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    def _connects_itself(self, options: dict[str, Any]) -> bool:
        """Whether create_connection() to an IP address needs nothing of anybody else, with these options."""
        for name, value in options.items():
            if name not in _CONNECTION_OPTIONS or value is not _CONNECTION_OPTIONS[name]:
                return False
        return not (
            self._debug
            or self._replaces_connecting
            or self._sockets_are_patched
            or socket.socket is not _Socket
            or socket.socket.connect is not _socket_connect
            or asyncio.BaseEventLoop.create_connection is not _create_connection
        )

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[Any] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: Any = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        context: Any = None,
    ) -> Any:
        # Only here: not every Python has the ssl module, which this needs.
        from ._tls import SSLProtocol

        ssl_protocol = SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, ssl_protocol, extra=extra, server=server, context=context)
        return ssl_protocol._app_transport

    @_with_signature_of(_start_tls)
    async def start_tls(self, *args: Any, **options: Any) -> Any:
        from ._tls import hasten

        transport = await super().start_tls(*args, **options)
        hasten(transport)
        return transport

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        """os.sendfile() on a duplicate of the transport's descriptor, which can be watched beside it."""
        resume_reading = transp.is_reading()
        # It fails if another sendfile is under way, which goes on as if this one had not been asked for.
        waiter = transp._make_empty_waiter()
        try:
            transp.pause_reading()
            await waiter
            sock = transp._sock
            if sock is None:
                # Its descriptor may be another connection's by now.
                raise ConnectionError("Connection is closed by peer")
            try:
                duplicate = os.dup(sock.fileno())
            except OSError as error:
                raise exceptions.SendfileNotAvailableError("no descriptor to send through") from error
            with socket.socket(fileno=duplicate) as sock:
                sock.setblocking(False)
                task = asyncio.current_task(self)
                self._sendfiles[waiter] = task
                try:
                    return await self.sock_sendfile(sock, file, offset, count, fallback=False)
                except asyncio.CancelledError:
                    # The transport's end, not the program, has cancelled it.
                    if waiter in self._sendfiles or task is None or task.uncancel() > 0:
                        raise
                    raise ConnectionError("Connection is closed by peer") from None
                finally:
                    self._sendfiles.pop(waiter, None)
        finally:
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()

    _sock_sendfile_native = _Unix._sock_sendfile_native
    _sock_sendfile_native_impl = _Unix._sock_sendfile_native_impl
    _sock_sendfile_update_filepos = _Unix._sock_sendfile_update_filepos
    _sock_add_cancellation_callback = _Unix._sock_add_cancellation_callback

    @_with_signature_of(_Unix._start_serving)
    def _start_serving(self, protocol_factory: Any, sock: Any, *args: Any, **options: Any) -> None:
        if self._accepting is None:
            self._accepting = Accepting(self)
        # asyncio's own way calls accept(), which may be the program's.
        accept = getattr(sock, "accept", None)
        is_usual = _socket_accept is not None and getattr(accept, "__func__", None) is _socket_accept
        start = _core.Loop._start_serving if is_usual else _Unix._start_serving
        start(self, protocol_factory, sock, *args, **options)

    def _stop_serving(self, sock: socket.socket) -> None:
        # Python 3.13 and later note here which paths are to be removed.
        inode = self._unix_server_sockets.pop(sock, None)
        path = None if inode is None else sock.getsockname()
        _core.Loop._stop_serving(self, sock)
        if path is not None:
            try:
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.error("Unable to clean up listening UNIX socket %r: %r", path, error)

    if not TYPE_CHECKING:  # Their types are AbstractEventLoop's.
        create_unix_connection = _Unix.create_unix_connection
        create_unix_server = _Unix.create_unix_server
    _accept_connection = _Unix._accept_connection
    _accept_connection2 = _Unix._accept_connection2


def _replaced_select() -> Callable[..., object] | None:
    """What gevent or eventlet has put in place of select.select(), so that its other threads run meanwhile.

    It has also taken away what waits in other ways, which would stop them. What counts is what asyncio's own
    loops wait by: eventlet, with a hub that is one of asyncio's loops, gives them back what it has replaced.
    """
    # Type checkers do not know what these modules import.
    module = selector_events.selectors.select  # type: ignore[attr-defined]
    replaced: Callable[..., object] = module.select
    return None if isinstance(replaced, BuiltinFunctionType) or hasattr(module, "epoll") else replaced


def _is_numeric(host: object) -> bool:
    """Whether *host* is an IP address, possibly with a scope, in one of the forms that need no resolving."""
    if not isinstance(host, str):
        return False
    address, _, scope = host.partition("%")
    try:
        if ":" in address:
            socket.inet_pton(socket.AF_INET6, address)
        else:
            socket.inet_pton(socket.AF_INET, address)
            return not scope
    except (OSError, ValueError):
        return False
    return True


def _is_port(port: object) -> bool:
    """Whether *port* is a number, not the name of a service."""
    return port is None or isinstance(port, int) or (isinstance(port, str) and port.isdecimal())


def _send_before_fork() -> None:
    """Have what was written before a fork sent before it, by this process: asyncio has sent it by then."""
    loop = events._get_running_loop()
    if isinstance(loop, Loop):
        loop._flush()


os.register_at_fork(before=_send_before_fork)
