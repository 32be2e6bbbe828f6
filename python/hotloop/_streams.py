"""asyncio's streams with fewer calls and copies, by subclasses of its classes.

Those of asyncio.start_server() are made so; others become so when they receive much at a time. What raises,
or is rarely asked for, is left to asyncio's own methods, which see the same attributes.
"""

from __future__ import annotations

import asyncio
import types
from asyncio import base_subprocess, streams, subprocess

from ._support import HAS_THREADS, Originals, original_or_none, private_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .loop import Loop

_Reader: Any = asyncio.StreamReader
_Writer: Any = asyncio.StreamWriter
_Protocol: Any = asyncio.StreamReaderProtocol
_PipeProtocol: Any = base_subprocess.ReadSubprocessPipeProto
_SubprocessProtocol: Any = subprocess.SubprocessStreamProtocol
_streams: Any = streams

# The methods of asyncio's classes that are replaced, with those that they call, and what attributes they use.
_EXPECTED: dict[Any, tuple[str, str]] = {
    _Reader: (
        "feed_data read readexactly readline readuntil _wait_for_data _wakeup_waiter _maybe_resume_transport",
        "_buffer _eof _exception _limit _loop _paused _transport _waiter",
    ),
    _Writer: ("drain", "_drain_helper _protocol _reader _transport"),
    _Protocol: ("data_received", "_stream_reader"),
    _streams.FlowControlMixin: ("_drain_helper", "_connection_lost _drain_waiters _loop _paused"),
}
# The functions that start_server() and start_unix_server() make protocols with, and what they use.
_FACTORIES: list[types.CodeType] = [
    code
    for start in (_streams.start_server, getattr(_streams, "start_unix_server", None))
    if isinstance(start, types.FunctionType) and original_or_none(start, _streams)
    for code in start.__code__.co_consts
    if isinstance(code, types.CodeType) and code.co_name == "factory"
]
_USED = {"client_connected_cb", "limit", "loop"}

# Up to so many bytes are copied rather than kept in two objects.
_SMALL = 1024


def _are_as_expected() -> bool:
    """Whether asyncio's classes are its own, and no attributes matter that are not known here."""
    for kind, (methods, attributes) in _EXPECTED.items():
        known = {*methods.split(), *attributes.split()}
        for name in methods.split():
            method = original_or_none(vars(kind).get(name), _streams)
            if method is None or not known.issuperset(private_names(method)):
                return False
    return original_or_none(vars(_Protocol).get("connection_made"), _streams) is not None


_IS_ON = _are_as_expected()

_ORIGINALS = Originals(*_EXPECTED)


def _are_patched(loop: Loop) -> bool:
    """Whether the program has changed asyncio's classes, or they are not as expected."""
    return not _IS_ON or _ORIGINALS.are_patched(loop)


def of_streams(loop: Loop, factory: Any) -> Any:
    """The factory of a server's protocols; for that of asyncio.start_server(), one of the protocols here."""
    if type(factory) is not types.FunctionType or factory.__code__ not in _FACTORIES:
        return factory
    used = dict(zip(factory.__code__.co_freevars, factory.__closure__ or (), strict=True))
    if used.keys() != _USED or used["loop"].cell_contents is not loop:
        return factory
    limit, connected = used["limit"].cell_contents, used["client_connected_cb"].cell_contents

    def made() -> Any:
        classes = _streams.StreamReader, _streams.StreamReaderProtocol, _streams.StreamWriter
        if classes != (_Reader, _Protocol, _Writer) or _are_patched(loop):
            return factory()
        return StreamReaderProtocol(StreamReader(limit=limit, loop=loop), connected, loop=loop)

    made.__name__, made.__qualname__ = factory.__name__, factory.__qualname__
    return made


def adopt(loop: Loop, protocol: Any) -> None:
    """Change the classes of a protocol of asyncio's streams and of its reader, or of a child's readers."""
    # Without the GIL, changing an object's class stops all threads.
    if HAS_THREADS or _are_patched(loop):
        return
    if type(protocol) is _Protocol:
        if protocol._stream_reader_wr is not None:
            _adopt_reader(protocol._stream_reader_wr())
        _become(protocol, StreamReaderProtocol)
    elif type(protocol) is _PipeProtocol and type(protocol.proc._protocol) is _SubprocessProtocol:
        _adopt_reader(protocol.proc._protocol.stdout)
        _adopt_reader(protocol.proc._protocol.stderr)


def _adopt_reader(reader: Any) -> None:
    if type(reader) is _Reader:
        buffer = reader._buffer
        reader._hotloop_received = None
        reader._hotloop_buffer = buffer
        _become(reader, StreamReader)


def _become(subject: Any, kind: type) -> None:
    subject.__class__ = kind
    # Not dict(), which copies a dict that shares its keys as one that does: the interpreter does not
    # specialize the access to attributes in such a dict.
    subject.__dict__ = {**vars(subject)}


# To type checkers the bases of these classes are Any.
class StreamReader(_Reader):  # type: ignore[misc]
    """A reader that copies no data that are read as they were received.

    `_hotloop_received` is what came while the buffer was empty, or None; `_hotloop_buffer` is the buffer.

    What waits does it as asyncio's _wait_for_data(), in place, and does not look for data where there are
    none: two calls, which cost 2,300 instructions.
    """

    _hotloop_received: Any
    _hotloop_buffer: Any
    _exception: Any
    _waiter: Any
    _paused: Any
    _transport: Any

    @property
    def _buffer(self) -> Any:
        buffer = self._hotloop_buffer
        received = self._hotloop_received
        if received is not None:
            # Not by a call, after which an interrupt could come.
            buffer += received
            self._hotloop_received = None
        return buffer

    @_buffer.setter
    def _buffer(self, buffer: Any) -> None:
        self._hotloop_received = None
        self._hotloop_buffer = buffer

    def feed_data(self, data: Any) -> None:
        if self._eof or not data:
            _Reader.feed_data(self, data)
            return
        if type(data) is bytes and self._hotloop_received is None and not self._hotloop_buffer:
            self._hotloop_received = data
            size = len(data)
        else:
            buffer = self._buffer
            buffer.extend(data)
            size = len(buffer)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.cancelled():
                waiter.set_result(None)
        if size > 2 * self._limit and not self._paused and self._transport is not None:
            try:
                self._transport.pause_reading()
            except NotImplementedError:
                self._transport = None
            else:
                self._paused = True

    async def read(self, n: int = -1) -> Any:
        if self._exception is not None:
            raise self._exception
        if n == 0:
            return b""
        if n < 0:
            return await _Reader.read(self, n)
        received = self._hotloop_received
        if received is None and not self._hotloop_buffer and not self._eof:
            if self._waiter is not None or self._paused:
                await self._wait_for_data("read")
            else:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            received = self._hotloop_received
        if received is None:
            return self._hotloop_take(min(n, len(self._hotloop_buffer)))
        if len(received) > n:
            return self._hotloop_take(n)
        self._hotloop_received = None
        if self._paused:
            self._maybe_resume_transport()
        return received

    async def readexactly(self, n: int) -> Any:
        if n <= 0 or self._exception is not None:
            return await _Reader.readexactly(self, n)
        data = None
        while (self._hotloop_received is None and not self._hotloop_buffer) or (
            data := self._hotloop_take(n)
        ) is None:
            if self._eof:
                incomplete = bytes(self._buffer)
                self._buffer.clear()
                raise asyncio.IncompleteReadError(incomplete, n)
            if self._waiter is not None or self._paused:
                await self._wait_for_data("readexactly")
            else:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        return data

    async def readline(self) -> Any:
        if self._exception is not None:
            return await _Reader.readline(self)
        start = 0
        while True:
            if self._hotloop_received is not None or self._hotloop_buffer or self._eof:
                found = self._hotloop_take_until(b"\n", start)
                if type(found) is bytes:
                    return found
                if found is None:
                    break
                start = found
            if self._waiter is not None or self._paused:
                await self._wait_for_data("readuntil")
            else:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        return await self._hotloop_without_exception(_Reader.readline)

    async def readuntil(self, separator: Any = b"\n") -> Any:
        if self._exception is not None or type(separator) is not bytes or not separator:
            return await _Reader.readuntil(self, separator)
        start = 0
        while True:
            if self._hotloop_received is not None or self._hotloop_buffer or self._eof:
                found = self._hotloop_take_until(separator, start)
                if type(found) is bytes:
                    return found
                if found is None:
                    break
                start = found
            if self._waiter is not None or self._paused:
                await self._wait_for_data("readuntil")
            else:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        return await self._hotloop_without_exception(_Reader.readuntil, separator)

    async def _hotloop_without_exception(self, read: Any, *args: Any) -> Any:
        """Call a method that does not wait, after a wait, during which an exception may have been set.

        asyncio's methods do not look at it any more then.
        """
        exception, self._exception = self._exception, None
        try:
            return await read(self, *args)
        finally:
            self._exception = exception

    def _hotloop_take(self, n: int) -> Any:
        """Take so many bytes; None if there are fewer."""
        data = self._hotloop_received
        size = -1 if data is None else len(data)
        if size == n:
            self._hotloop_received = None
        elif n < size <= _SMALL:
            data, self._hotloop_received = data[:n], data[n:]
        else:
            buffer = self._buffer
            if len(buffer) < n:
                return None
            data = bytes(buffer[:n]) if n <= _SMALL else bytes(memoryview(buffer)[:n])
            del buffer[:n]
        if self._paused:
            self._maybe_resume_transport()
        return data

    def _hotloop_take_until(self, separator: bytes, start: int) -> Any:
        """Take what ends with the separator.

        If there is none, return where to look for it among more data, or None for asyncio's method to raise.
        """
        data = self._hotloop_received
        if data is None:
            data = self._hotloop_buffer
        found = data.find(separator, start)
        if found < 0:
            start = max(start, len(data) + 1 - len(separator))
            return None if start > self._limit or self._eof else start
        return self._hotloop_take(found + len(separator)) if found <= self._limit else None


class StreamWriter(_Writer):  # type: ignore[misc]
    """A writer whose drain() makes no other coroutines if there is nothing to wait for."""

    async def drain(self) -> None:
        protocol, reader = self._protocol, self._reader
        if (
            type(protocol) is not StreamReaderProtocol
            or protocol._paused
            or protocol._connection_lost
            or (reader is not None and reader._exception is not None)
            or self._transport.is_closing()
        ):
            await _Writer.drain(self)


class StreamReaderProtocol(_Protocol):  # type: ignore[misc]
    """A protocol that passes data on to its reader in one step."""

    # asyncio's, which makes a writer of the class here.
    connection_made = types.FunctionType(
        _Protocol.connection_made.__code__,
        {**vars(_streams), "StreamWriter": StreamWriter},
        "connection_made",
    )

    def data_received(self, data: Any) -> None:
        reference = self._stream_reader_wr
        if reference is not None:
            reader = reference()
            if reader is not None:
                reader.feed_data(data)
