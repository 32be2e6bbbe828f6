"""TLS: asyncio's SSLProtocol, with fast paths for an established connection.

The state machine, flow control, handshake and shutdown are the standard library's. The methods that run for
each piece of data behave as there, but do not call OpenSSL when it has no more data, which would raise an
exception, and do not allocate 256 KiB to read a record of at most 16 KiB.
"""

from __future__ import annotations

import ssl
from asyncio import sslproto

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_Protocol: Any = sslproto.SSLProtocol
_WRAPPED: Any = sslproto.SSLProtocolState.WRAPPED
_AGAIN: Any = sslproto.SSLAgainErrors
_SSLObject: Any = ssl.SSLObject

# The maximum size of a record's data, which is the most that one read returns.
_RECORD = 16 * 1024


def use_fast_paths(transport: Any) -> None:
    """Switch the protocol of an established connection from asyncio's class to the one here."""
    protocol = getattr(transport, "_ssl_protocol", None)
    if type(protocol) is _Protocol:
        protocol.__class__ = SSLProtocol


# Untyped: the types of asyncio's class lack most of the members that are used here.
class SSLProtocol(_Protocol):  # type: ignore[misc]
    """asyncio's SSLProtocol with fast paths. It has no attributes of its own."""

    def _raw(self) -> Any:
        """The object in C behind an ssl.SSLObject. A subclass may override methods and is returned itself."""
        sslobj = self._sslobj
        return sslobj._sslobj if type(sslobj) is _SSLObject else sslobj

    def get_buffer(self, n: int) -> Any:
        # The buffer is never smaller than max_size, which asyncio uses for an unknown size.
        return self._ssl_buffer_view if n == -1 else _Protocol.get_buffer(self, n)

    def buffer_updated(self, nbytes: int) -> None:
        if self._state is not _WRAPPED or self._app_protocol_is_buffer or self._app_reading_paused:
            _Protocol.buffer_updated(self, nbytes)
            return
        incoming = self._incoming
        incoming.write(self._ssl_buffer_view[:nbytes])
        try:
            self._do_read__copied()
            if self._write_backlog:
                self._do_write()
            elif self._outgoing.pending or self._app_writing_paused or not self._outgoing_high_water:
                self._process_outgoing()
            if self._ssl_reading_paused or incoming.pending >= self._incoming_high_water:
                self._control_ssl_reading()
        except Exception as error:
            self._fatal_error(error, "Fatal error on SSL protocol")

    def _do_read__copied(self) -> None:
        sslobj = self._raw()
        incoming = self._incoming
        try:
            chunk = sslobj.read(min(incoming.pending, _RECORD) or _RECORD)
        except _AGAIN:
            return
        if chunk and not incoming.pending and not sslobj.pending():
            self._app_protocol.data_received(chunk)
            return
        chunks = []
        try:
            while chunk:
                chunks.append(chunk)
                chunk = sslobj.read(_RECORD)
        except _AGAIN:
            pass
        if chunks:
            self._app_protocol.data_received(b"".join(chunks))
        if not chunk:
            # close_notify
            self._call_eof_received()
            self._start_shutdown()

    def _write_appdata(self, list_of_data: Any) -> None:
        is_one = type(list_of_data) is tuple and len(list_of_data) == 1
        if not is_one or self._write_backlog or self._state is not _WRAPPED:
            _Protocol._write_appdata(self, list_of_data)
            return
        data = list_of_data[0]
        try:
            try:
                count = self._raw().write(data)
            except _AGAIN:
                count = 0
            except Exception:
                self._append_to_backlog(data)
                raise
            if count < len(data):
                self._append_to_backlog(data[count:])
                self._do_write()
            elif self._ssl_writing_paused or self._app_writing_paused or not self._outgoing_high_water:
                self._process_outgoing()
            else:
                self._transport.write(self._outgoing.read())
        except Exception as error:
            self._fatal_error(error, "Fatal error on SSL protocol")

    def _append_to_backlog(self, data: Any) -> None:
        self._write_backlog.append(data)
        self._write_buffer_size += len(data)
