"""TLS: what a connection does once. What it does for each piece of data is in the extension.

The arguments, their defaults and their errors are those of asyncio's SSLProtocol.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import types
import warnings
from asyncio import base_events, constants, sslproto
from asyncio.log import logger

from ._support import HAS_THREADS, Originals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._core import SSLProtocol
    from .loop import Loop

_Protocol: Any = sslproto.SSLProtocol
AGAIN: Any = sslproto.SSLAgainErrors
SSL_ERROR = ssl.SSLError
CERTIFICATE_ERROR = ssl.CertificateError
# The methods of an ssl object that only pass on to the one in C. Classes of programs override them.
_read, _write, _pending = ssl.SSLObject.read, ssl.SSLObject.write, ssl.SSLObject.pending
# In what asyncio's versions differ.
IS_CLOSING_ASKS_BELOW = hasattr(_Protocol, "_is_transport_closing")
KEEPS_SHUTDOWN_TIMEOUT = "call_later" in _Protocol._on_shutdown_complete.__code__.co_names

# What asyncio's classes are made of. Programs patch their methods, and `max_size`.
_Transport: Any = sslproto._SSLProtocolTransport
_ORIGINALS = Originals(_Protocol, _Transport)
_LIMITS = (256, 512)

# Without the GIL, other threads may use the ssl object, which only its own methods lock.
_IS_DIRECT = not HAS_THREADS


def _engine_of(loop: Loop) -> str:
    """What encrypts: `direct`, `portable`, or asyncio's own classes."""
    if loop._tls_engine is not None:
        return loop._tls_engine
    engine = os.environ.get("HOTLOOP_TLS") or ("direct" if _IS_DIRECT else "portable")
    if engine not in ("direct", "portable", "asyncio"):
        raise ValueError(f"HOTLOOP_TLS={engine!r}: expected direct, portable or asyncio")
    loop._tls_engine = engine
    return engine


def _is_patched(loop: Loop) -> bool:
    """Whether the program has changed asyncio's SSLProtocol or its transport: these are used then."""
    limits = (constants.FLOW_CONTROL_HIGH_WATER_SSL_READ, constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE)
    return sslproto.SSLProtocol is not _Protocol or limits != _LIMITS or _ORIGINALS.are_patched(loop)


def _timeout(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if value <= 0:
        raise ValueError(f"{name} should be a positive number, got {value}")
    return value


def _raw(ssl_object: Any) -> Any:
    """The object in C behind an ssl object, if its methods only pass on to that."""
    kind = type(ssl_object)
    if (
        getattr(kind, "read", None) is _read
        and getattr(kind, "write", None) is _write
        and getattr(kind, "pending", None) is _pending
    ):
        return ssl_object._sslobj
    return None


def make_protocol(
    loop: Loop,
    app_protocol: asyncio.BaseProtocol,
    sslcontext: Any,
    waiter: asyncio.Future[Any] | None,
    server_side: bool = False,
    server_hostname: str | None = None,
    call_connection_made: bool = True,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
) -> Any:
    """asyncio's SSLProtocol(), or one that does the same."""
    engine = _engine_of(loop)
    if engine == "asyncio" or _is_patched(loop):
        asyncios: Any = sslproto.SSLProtocol
        return asyncios(
            loop,
            app_protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
    handshake = _timeout("ssl_handshake_timeout", ssl_handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT)
    shutdown = _timeout("ssl_shutdown_timeout", ssl_shutdown_timeout, constants.SSL_SHUTDOWN_TIMEOUT)
    if not sslcontext:
        sslcontext = sslproto._create_transport_context(server_side, server_hostname)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ssl_object = sslcontext.wrap_bio(
        incoming,
        outgoing,
        server_side=server_side,
        server_hostname=server_hostname if server_hostname and not server_side else None,
    )
    raw = _raw(ssl_object)
    # A callback for each message may raise, and the methods of the ssl object raise that.
    direct = engine == "direct" and raw is not None and raw.context._msg_callback is None
    return loop._make_ssl_protocol(
        app_protocol,
        waiter,
        ssl_object,
        raw,
        incoming,
        outgoing,
        {"sslcontext": sslcontext},
        direct,
        call_connection_made,
        handshake,
        shutdown,
    )


class Incoming:
    """What asyncio's start_tls() calls a protocol's `_incoming`: takes what was received before."""

    def __init__(self, protocol: SSLProtocol) -> None:
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> int:
        return self._protocol._add_incoming(data)


def _with_our_protocol(function: Any) -> Any:
    """asyncio's start_tls(), as the running Python has it, with make_protocol() for SSLProtocol."""
    names = {**vars(base_events), "sslproto": types.SimpleNamespace(SSLProtocol=make_protocol)}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


start_tls = _with_our_protocol(asyncio.BaseEventLoop.start_tls)


def complete_handshake(ssl_object: Any, extra: dict[str, Any], engine: str) -> None:
    """Add what get_extra_info() knows after the handshake. asyncio's does not know the engine."""
    extra.update(
        peercert=ssl_object.getpeercert(),
        cipher=ssl_object.cipher(),
        compression=ssl_object.compression(),
        ssl_object=ssl_object,
        tls_engine=engine,
    )


def report_error(loop: Loop, protocol: Any, transport: Any, exception: BaseException, message: str) -> None:
    """Report an error that has ended a connection: that of a system call or of OpenSSL in debug mode only."""
    if isinstance(exception, OSError):
        if loop.get_debug():
            logger.debug("%r: %s", protocol, message, exc_info=exception)
    elif not isinstance(exception, asyncio.CancelledError):
        loop.call_exception_handler(
            {"message": message, "exception": exception, "transport": transport, "protocol": protocol}
        )


def warn_unclosed() -> None:
    """Warn of a transport that was not closed, in asyncio's words."""
    warnings.warn("unclosed transport <asyncio._SSLProtocolTransport object>", ResourceWarning, stacklevel=2)
