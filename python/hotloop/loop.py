"""The event loop: scheduling, polling and transports by the extension, the rest by asyncio.BaseEventLoop."""

from __future__ import annotations

import _socket
import asyncio
import contextlib
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
from ._patches import ReadyHandles, sync_patches
from ._signals import SignalHandling
from ._streams import of_streams
from ._subprocesses import SubprocessSupport
from ._support import HAS_THREADS, check_ssl_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Self, TypeVar

    from ._names import LookUp
    from ._observing.listing import Listed
    from ._observing.watching import Watch
    from .accounting import Accounted, Accounting
    from .blocking import Block, Iteration
    from .metrics import Metrics
    from .recording import Recording

    _Function = TypeVar("_Function", bound=Callable[..., Any])

# Originals of the methods with a fast path here. The fast path is skipped if the program has patched them.
_create_connection = asyncio.BaseEventLoop.create_connection
_start_tls = asyncio.BaseEventLoop.start_tls
_getaddrinfo = asyncio.BaseEventLoop.getaddrinfo
_getnameinfo = asyncio.BaseEventLoop.getnameinfo
_CONNECTION_OPTIONS: dict[str, Any] = _create_connection.__kwdefaults__ or {}

# Originals of what asyncio's create_connection() uses besides methods of the loop. A patched one is called,
# also if it was patched before this module was imported: then _Socket is None.
_Socket = socket.socket if socket.socket.__module__ == "socket" else None
_socket_connect = _socket.socket.connect
# The original of what asyncio's servers call.
_socket_accept = None if _Socket is None else _Socket.accept

# asyncio's event loop for Unix. Some of its methods, which run once per connection or once per program, work
# on this loop, too. Each Python brings its own version of them.
_UnixLoop: Any = asyncio.SelectorEventLoop


# The sockets that servers were given: other processes may accept from them, too.
_given_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _note_given(sock: socket.socket | None) -> None:
    if sock is not None:
        with contextlib.suppress(TypeError):  # What stands for a socket need not be hashable.
            _given_sockets.add(sock)


def _with_signature_of(function: _Function) -> Callable[[Callable[..., Any]], _Function]:
    """functools.wraps() for a method with the parameters that another has in the running Python."""
    # wraps() keeps the method's own signature for type checkers. This returns the other's.
    return functools.wraps(function)  # type: ignore[return-value]


def _replaces_connecting(cls: type) -> bool:
    """Whether the class overrides a method that create_connection() calls.

    Not a part of Loop.__init__(): out of memory, a generator expression before 3.12 leaks those arguments of
    its function that it uses, which there include the loop.
    """
    return any(getattr(cls, name) is not getattr(Loop, name) for name in _core.CONNECTING)


_tasks: Any = asyncio.tasks


class _Selector:
    """A selector for programs that run asyncio's iteration themselves, such as nest_asyncio.

    select() runs an iteration of the loop, including what is ready and due, and reports no events.
    """

    def __init__(self, loop: Loop | None = None) -> None:
        self._loop = loop

    def __get__(self, loop: Loop | None, _: type) -> _Selector:
        return _Selector(loop)

    def get_key(self, fd: int) -> Any:
        """Raise KeyError. repr() of asyncio's own transports calls this."""
        raise KeyError(fd)

    def select(self, timeout: float | None = None) -> list[Any]:
        """Run an iteration of the loop. A task that calls this is not the current one meanwhile."""
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

    It takes and ignores the argument of asyncio.SelectorEventLoop, so that it can replace that class. The
    environment variable HOTLOOP_POLLER=portable makes a new loop wait as on platforms without epoll.
    """

    # Undocumented members of asyncio.BaseEventLoop.
    _debug: bool
    _stopping: bool
    _thread_id: int | None
    _check_running: Callable[[], None]
    _set_coroutine_origin_tracking: Callable[[bool], None]
    _asyncgen_firstiter_hook: Callable[[Any], None]
    _asyncgen_finalizer_hook: Callable[[Any], None]
    _ensure_resolved: Callable[..., Awaitable[Any]]

    # The tasks that accept connections, for asyncio.all_tasks(). None until a server is started.
    _accepting: Accepting | None = None
    # Look-ups of names that are under way, by what they ask.
    _look_ups: dict[object, LookUp] | None = None
    # Pipe and subprocess transports, for snapshots. None until there is one.
    _unlisted: weakref.WeakSet[Any] | None = None
    # What snapshots have listed. None until there is one.
    _listed: Listed | None = None
    # What encrypts, once that was asked for.
    _tls_engine: str | None = None

    # The hooks for asynchronous generators that were set before a run.
    _old_agen_hooks: Any = None

    # Called with each new loop.
    _on_created: Callable[[Loop], object] | None = None

    # Called with each server, or None, whose socket is about to be served.
    _on_serving: Callable[[Any], object] | None = None

    # The state of watch_blocking(); None if it is off.
    _blocking: Watch | None = None
    # The seconds of record(); None if it is off.
    _recorded_seconds: float | None = None
    # The state of account(); None if it is off.
    _accounted: Accounted | None = None

    # Only for programs: the loop waits in the extension.
    _selector = _Selector()

    def __init__(self, selector: object = None) -> None:
        try:
            asyncio.BaseEventLoop.__init__(self)
            sync_patches(Loop)
            self._replaces_connecting = _replaces_connecting(type(self))
            SignalHandling.__init__(self)
            SubprocessSupport.__init__(self)
            self._transports: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
            self._unix_server_sockets: dict[socket.socket, int] = {}
            # The task that sends a file, by its transport's empty waiter.
            self._sendfiles: dict[asyncio.Future[None], asyncio.Task[Any] | None] = {}
            if Loop._on_created is not None:
                Loop._on_created(self)
        except BaseException:
            # Only descriptors need closing. __del__() does nothing for a closed loop.
            self._close()
            self._closed = True
            raise

    # --- Running ---

    def run_forever(self) -> None:
        """Run until stop() is called."""
        self._run_forever_setup()
        try:
            self._wait_by(_patched_select())
            waking = self._wake_on_signals()
            try:
                if self._run_once == _core.Loop._run_once.__get__(self):
                    self._run()
                else:
                    self._run_as_asyncio()
            finally:
                if waking:
                    self._stop_waking_on_signals()
        finally:
            # Ctrl-C can come before the first line of the cleanup. The loop must not stay marked as running.
            try:
                self._stopping = False
                self._thread_id = None
                events._set_running_loop(None)
            finally:
                self._run_forever_cleanup()

    def _run_forever_setup(self) -> None:
        """Prepare the first iteration. Overrides asyncio's method of Python 3.13 and later."""
        self._check_closed()
        self._check_running()
        sync_patches(Loop)
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
        """Undo _run_forever_setup(). Overrides asyncio's method of Python 3.13 and later."""
        self._stopping = False
        self._thread_id = None
        # Each step can fail out of memory. The others are done nevertheless.
        try:
            events._set_running_loop(None)
        finally:
            try:
                self._set_coroutine_origin_tracking(False)
            finally:
                hooks, self._old_agen_hooks = self._old_agen_hooks, None
                if hooks is not None:
                    sys.set_asyncgen_hooks(*hooks)

    def _run_as_asyncio(self) -> None:
        """Run as asyncio's loops do: by calling _run_once(), which a subclass has overridden."""
        while True:
            self._run_once()
            if self._stopping:
                break

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: _Selector.select() reports no events."""

    def close(self) -> None:
        """Close the event loop: drop scheduled callbacks, and send pending data that sockets take at once.

        The executor is shut down without waiting. Raise RuntimeError if the loop is running.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._blocking is not None:
            self._blocking.end(self)
        self._end_signal_handling()
        self._unwatch_children()
        if self._look_ups:
            from . import _names

            _names.end(self)
        # Not asyncio.BaseEventLoop.close(): at the end of the interpreter this module's names may be None.
        super().close()
        self._close()
        if self._accepting is not None:
            self._accepting.end()
            if HAS_THREADS:
                # Freed at once: a collection stops all threads.
                self._accepting = None

    def __copy__(self) -> Self:
        """Return the loop itself."""
        return self

    @property
    def _ready(self) -> ReadyHandles:
        """The ready queue, for programs that inspect asyncio's or add to it."""
        return ReadyHandles(self)

    @_ready.setter
    def _ready(self, handles: object) -> None:
        # BaseEventLoop's __init__() sets an empty one.
        pass

    @property
    def _scheduled(self) -> list[asyncio.TimerHandle]:
        """The timers, for programs that inspect asyncio's."""
        # asyncio's close() reads this after it has set _closed.
        return [] if self._closed else list(self._timer_handles())

    @_scheduled.setter
    def _scheduled(self, timers: object) -> None:
        pass

    def set_debug(self, enabled: bool) -> None:
        """Turn asyncio's debug mode on or off."""
        asyncio.BaseEventLoop.set_debug(self, enabled)

    # --- Metrics ---

    def metrics(self) -> Metrics:
        """Return a snapshot of the counters since the loop was made, or since reset_metrics().

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
        """Report callbacks that run for *threshold* seconds or longer; None turns that off.

        A report is a warning of the logger `hotloop`. A *handler* is instead scheduled on the loop with a
        hotloop.blocking.Block when the callback has ended. There is at most one report per second. Closing
        the loop turns this off.

        Raise ValueError for a threshold that is not positive.
        """
        from ._observing import watching

        watching.watch(self, threshold, handler)

    def worst_iterations(self) -> list[Iteration]:
        """Return the ten longest iterations that took the threshold of watch_blocking(), the longest first.

        They are those since watching began, or since reset_metrics(); none if the loop is not watched. May
        be called from any thread.
        """
        state = self._blocking
        return [] if state is None else list(state.worst)

    def reset_metrics(self) -> None:
        """Restart the counts of metrics(), and forget the worst iterations. May be called from any thread."""
        super().reset_metrics()
        state = self._blocking
        if state is not None:
            state.worst = []

    def record(self, seconds: float | None = 10.0, *, memory: int = 8 * 1024 * 1024) -> None:
        """Record what the loop does, for recording(), which reaches back *seconds*; None turns that off.

        A record has 32 bytes: there are some five for a request to a server. They are kept in *memory*
        bytes, or less, and the oldest are overwritten. Called again, it starts anew.

        Raise ValueError for a number that is not positive, and MemoryError if there is no memory.
        """
        from . import recording

        recording.record(self, seconds, memory)

    def recording(self) -> Recording:
        """Return what the loop did in the last seconds, as record() keeps it. Its save() writes a file.

        May be called from any thread, also while the loop runs, and when it is closed. Raise RuntimeError if
        the loop does not record.
        """
        from .recording import Recording

        return Recording(self)

    def account(self, on: bool = True, *, slow: float = 0.01) -> None:
        """Count how much of the loop's time each coroutine, callback and protocol takes, for accounting().

        A step or a callback is slow that takes *slow* seconds or longer. Called again, it starts anew.

        Raise ValueError unless *slow* is a positive number.
        """
        from . import accounting

        accounting.account(self, on, slow)

    def accounting(self) -> Accounting:
        """Return who has used the loop since account() was called.

        May be called from any thread, also while the loop runs, and when it is closed; times are then up to
        a millisecond of work old. Raise RuntimeError if the loop keeps no accounts.
        """
        from .accounting import Accounting

        return Accounting.of(self)

    # --- Names ---

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """socket.getaddrinfo() in a thread, but in this one for an IP address with a numeric port."""
        is_patched = asyncio.BaseEventLoop.getaddrinfo is not _getaddrinfo
        if not is_patched and _is_numeric(host) and _is_port(port):
            return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        if not is_patched and self._looks_names_up():
            from . import _names

            return await _names.getaddrinfo(self, host, port, family, type, proto, flags)
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> Any:
        """socket.getnameinfo() in a thread, but in this one for a numeric host and service."""
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        is_patched = asyncio.BaseEventLoop.getnameinfo is not _getnameinfo
        if not is_patched and flags & numeric == numeric:
            return socket.getnameinfo(sockaddr, flags)
        if not is_patched and self._looks_names_up():
            from . import _names

            return await _names.getnameinfo(self, sockaddr, flags)
        return await super().getnameinfo(sockaddr, flags)

    def _looks_names_up(self) -> bool:
        """Whether names are looked up in threads of their own, not in the default executor."""
        if self._debug or not self._has_own_executors():
            return False
        self._check_closed()
        self._check_default_executor()
        return True

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
        connection = self._connect(host, port) if self._connects_natively(options) else None
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

    def _connects_natively(self, options: dict[str, Any]) -> bool:
        """Whether the extension can do create_connection() to an IP address with these options."""
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
        # Not every Python has the ssl module, which this needs.
        from ._tls import make_protocol

        ssl_protocol = make_protocol(
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
        if asyncio.BaseEventLoop.start_tls is not _start_tls:
            return await super().start_tls(*args, **options)
        from ._tls import start_tls

        return await start_tls(self, *args, **options)

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        """os.sendfile() on a duplicate of the transport's descriptor, so that both can be watched."""
        resume_reading = transp.is_reading()
        # Raises if another sendfile is under way, which goes on undisturbed.
        waiter = transp._make_empty_waiter()
        try:
            transp.pause_reading()
            await waiter
            sock = transp._sock
            if sock is None:
                # Its descriptor number may belong to another connection by now.
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
                    # fail_empty_waiter() has cancelled the task, not the program.
                    if waiter in self._sendfiles or task is None or task.uncancel() > 0:
                        raise
                    raise ConnectionError("Connection is closed by peer") from None
                finally:
                    self._sendfiles.pop(waiter, None)
        finally:
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()

    _sock_sendfile_native = _UnixLoop._sock_sendfile_native
    _sock_sendfile_native_impl = _UnixLoop._sock_sendfile_native_impl
    _sock_sendfile_update_filepos = _UnixLoop._sock_sendfile_update_filepos
    _sock_add_cancellation_callback = _UnixLoop._sock_add_cancellation_callback

    @_with_signature_of(_UnixLoop._start_serving)
    def _start_serving(self, protocol_factory: Any, sock: Any, *args: Any, **options: Any) -> None:
        if self._accepting is None:
            self._accepting = Accepting(self)
        if not has_original_accept(sock):
            # A patched or overridden accept() is called, by asyncio's own code.
            _UnixLoop._start_serving(self, protocol_factory, sock, *args, **options)
            return
        if Loop._on_serving is not None:
            Loop._on_serving(args[1] if len(args) > 1 else options.get("server"))
        protocol_factory = of_streams(self, protocol_factory)
        options["shared"] = sock in _given_sockets
        _core.Loop._start_serving(self, protocol_factory, sock, *args, **options)

    def _stop_serving(self, sock: socket.socket) -> None:
        # Python 3.13 and later list the paths to remove here.
        inode = self._unix_server_sockets.pop(sock, None)
        path = None if inode is None else sock.getsockname()
        self._stop_accepting(sock)
        if path is not None:
            try:
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.error("Unable to clean up listening UNIX socket %r: %r", path, error)

    _stop_accepting = _core.Loop._stop_serving

    if HAS_THREADS:
        # mypy wants all conditional definitions to be functions of Python's.
        def _stop_accepting(self, sock: socket.socket) -> None:  # type: ignore[misc]
            try:
                _core.Loop._stop_serving(self, sock)
            except RuntimeError:
                # Another thread runs the loop. The address is free at once nevertheless.
                if has_original_accept(sock):
                    self.call_soon_threadsafe(self._forget_listener, sock, sock.fileno())
                    sock.close()
                else:
                    self.call_soon_threadsafe(_core.Loop._stop_serving, self, sock)

    @_with_signature_of(asyncio.BaseEventLoop.create_server)
    async def create_server(self, *args: Any, sock: Any = None, **options: Any) -> Any:
        _note_given(sock)
        return await super().create_server(*args, sock=sock, **options)

    @_with_signature_of(_UnixLoop.create_unix_server)
    async def create_unix_server(self, *args: Any, sock: Any = None, **options: Any) -> Any:
        _note_given(sock)
        return await _UnixLoop.create_unix_server(self, *args, sock=sock, **options)

    create_unix_server.__doc__ = asyncio.AbstractEventLoop.create_unix_server.__doc__

    if not TYPE_CHECKING:  # Its type is AbstractEventLoop's.
        create_unix_connection = _UnixLoop.create_unix_connection
    _accept_connection = _UnixLoop._accept_connection
    _accept_connection2 = _UnixLoop._accept_connection2


def _patched_select() -> Callable[..., object] | None:
    """The select.select() of gevent or eventlet, which runs their other threads; None if it is not patched.

    They also remove select.epoll(), by which this recognises them. The module that asyncio's selectors use is
    inspected: with a hub that is one of asyncio's loops, eventlet leaves that one unpatched.
    """
    # Type checkers do not know what these modules import.
    module = selector_events.selectors.select  # type: ignore[attr-defined]
    replaced: Callable[..., object] = module.select
    return None if isinstance(replaced, BuiltinFunctionType) or hasattr(module, "epoll") else replaced


def has_original_accept(sock: Any) -> bool:
    """Whether connections of a listening socket are accepted by the extension."""
    accept = getattr(sock, "accept", None)
    return _socket_accept is not None and getattr(accept, "__func__", None) is _socket_accept


def _is_numeric(host: object) -> bool:
    """Whether *host* is an IP address, in a form that needs no resolving; IPv6 may have a scope."""
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
    """Send pending data before a fork, as asyncio has by then. The child never sends it."""
    loop = events._get_running_loop()
    if isinstance(loop, Loop):
        loop._flush()


os.register_at_fork(before=_send_before_fork)
