"""TLS: a conversation of a transport with a peer that is made of a socket and the ssl module alone.

The peer sends its records whole, in parts or several at once; updates keys, renegotiates, and ends or breaks
the connection at any time. Our end acts between two runs of the loop, in callbacks, and in the calls of its
protocol. After each step the loop comes to rest.

What is compared is all that our end and the peer see, in order: hotloop cuts data as asyncio does, and calls
its protocols at the same moments.
"""

import asyncio
import fcntl
import functools
import gc
import ssl
import sys
import termios
import weakref

from . import running
from .tls_peer import FLIGHTS, Peer, Sent, Stream, contexts
from .tls_programs import Do, program
from .transports import connected

__all__ = ["machine", "program"]

TIMEOUTS = {"ssl_handshake_timeout": 60, "ssl_shutdown_timeout": 60}  # longer than any program


class Unusual(BaseException):
    """An exception that is no Exception, and does not end the loop."""


EXCEPTIONS = {"Failure": running.Failure, "Unusual": Unusual}


class Sequence(running.Trace):
    """Keeps all notes in one order, whatever they are about."""

    def note(self, about, *what):
        super().note("", about, *what)

    def once(self, about, *what):
        if self.about.get("", [None])[-1] != (about, *what):
            self.note(about, *what)

    def lines(self):
        return [line.removeprefix(": ") for line in super().lines()]


class _Calls:
    """A protocol that notes its calls, and reacts."""

    def __init__(self, end):
        self.end = end
        end.protocols.append(weakref.ref(self))

    def called(self, call, *what):
        self.end.note(call, *what)
        if call != "connection_lost":
            self.end.react()

    def connection_made(self, transport):
        self.end.transport = transport
        self.called("connection_made")

    def connection_lost(self, exc):
        self.end.lost = True
        self.called("connection_lost", self.end.told(exc))

    def eof_received(self):
        self.called("eof_received")
        return self.end.program.keep_open

    def pause_writing(self):
        self.called("pause_writing")

    def resume_writing(self):
        self.called("resume_writing")


class Streamed(_Calls, asyncio.Protocol):
    def data_received(self, data):
        self.end.received.take(data)
        self.called("data_received", type(data).__name__, len(data))


class Buffered(_Calls, asyncio.BufferedProtocol):
    def __init__(self, end):
        super().__init__(end)
        self.buffer = bytearray(end.program.room)

    def get_buffer(self, sizehint):
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        self.end.received.take(self.buffer[:nbytes])
        self.called("buffer_updated", nbytes)


class Ours:
    """Our end: what its transport and its ssl object are told to do."""

    # What it does after connection_lost. set_protocol() and set_write_buffer_limits() are known to differ if
    # writing was paused; and in others asyncio may fail in its own insides.
    AFTERWARDS = ("write", "writelines", "close", "abort", "stop")

    def __init__(self, machine, program):
        self.machine, self.program = machine, program
        self.transport = None
        self.lost = False
        # A second close(), or that of a connection that fails to be made, takes its protocol from asyncio's
        # transport: every method fails then.
        self.closed_twice = False
        self.received, self.sent = Stream(), Sent()
        self.reactions = list(program.reactions)
        self.protocols = []  # weak references

    def note(self, *what):
        self.machine.trace.note("ours", *what)

    def told(self, exc):
        """An exception. If data crossed a renegotiation, OpenSSL has one reason or another."""
        if isinstance(exc, ssl.SSLError) and self.machine.peer.has_renegotiated:
            return "SSLError"
        return running.told(exc)

    def protocol(self, buffered):
        return (Buffered if buffered else Streamed)(self)

    async def connect(self, sock):
        program = self.program
        server, client = contexts(program.version)
        context = server if program.server_side else client
        hostname = {} if program.server_side else {"server_hostname": "localhost"}
        loop = self.machine.loop
        make = loop.connect_accepted_socket if program.server_side else loop.create_connection
        arguments = {"sock": sock}
        factory = functools.partial(self.protocol, program.buffered)
        try:
            if program.upgraded:
                below, _ = await make(asyncio.Protocol, **arguments)
                self.transport = await loop.start_tls(
                    below, factory(), context, server_side=program.server_side, **hostname, **TIMEOUTS
                )
            else:
                await make(factory, **arguments, ssl=context, **hostname, **TIMEOUTS)
        except (Exception, asyncio.CancelledError, Unusual) as exc:
            self.closed_twice = True
            self.note("is not connected", self.told(exc))
        else:
            self.note("is connected")

    def react(self):
        if self.reactions and self.machine.now >= self.reactions[0].step and self.transport is not None:
            do = self.reactions.pop(0).do
            self.note("reacts", do.what)
            if do.what == "fail":
                raise EXCEPTIONS[do.arguments[0]]("raised")
            self.perform(do)

    def perform(self, do):
        if self.transport is None or self.closed_twice or (self.lost and do.what not in self.AFTERWARDS):
            return
        try:
            method = getattr(self, do.what, None) or getattr(self.transport, do.what)
            result = method(*do.arguments)
        except (Exception, Unusual) as exc:
            result = self.told(exc)
        if result is not None:
            self.note("  ", do.what, result)

    def write(self, kind, size):
        data = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}[kind](self.sent.next(size))
        self.transport.write(data)

    def write_much(self, size):
        self.transport.write(self.sent.next(size))

    def write_and_close(self, size):
        self.transport.write(self.sent.next(size))
        self.close()

    def writelines(self, sizes):
        self.transport.writelines([self.sent.next(size) for size in sizes])

    def set_protocol(self, buffered):
        self.transport.set_protocol(self.protocol(buffered))

    def close(self):
        self.closed_twice = self.transport.is_closing()
        self.transport.close()

    def close_soon(self):
        self.machine.loop.call_soon(self.perform, Do("close"))

    def abort_below(self):
        below = self.transport._ssl_protocol._transport
        if below is not None:
            below.abort()

    def stop(self):
        self.machine.loop.stop()

    def object_read(self):
        return self.transport.get_extra_info("ssl_object").read(10)

    def object_write(self):
        return self.transport.get_extra_info("ssl_object").write(b"o" * 10)

    def object_pending(self):
        return self.transport.get_extra_info("ssl_object").pending()

    def object_unwrap(self):
        return self.transport.get_extra_info("ssl_object").unwrap()

    def state(self):
        """What was received, and what the transport looks like. Signatures of handshakes vary in length."""
        transport = self.transport
        if transport is None or self.lost or self.closed_twice:
            return self.received.state()
        return (
            *self.received.state(),
            "closing" if transport.is_closing() else "open",
            "reading" if transport.is_reading() else "not reading",
            "buffer" if transport.get_write_buffer_size() else "no buffer",
            "more" if transport.get_read_buffer_size() else "no more",
        )

    def is_quiet(self):
        """Whether no data are under way."""
        transport = self.transport
        return (
            transport is None
            or transport.is_closing()
            or (transport.is_reading() and not transport.get_write_buffer_size())
        )


class Machine(running.Machine):
    """What runs such a program."""

    tracing = Sequence

    def __init__(self, loop, trace, program, slowness):
        super().__init__(loop, trace, program.debug)
        self.pause = (slowness - 1) * 0.0003
        self.now = 0  # the step
        self.ours = Ours(self, program)
        self.sock, theirs = connected(program.kind)
        with self.sock, theirs:
            self.peer = Peer(self, theirs, program)
            self.converse(program)
            loop.close()
        self.protocols = self.ours.protocols
        self.ours = self.peer = None
        gc.collect()
        self.note("alive", sum(protocol() is not None for protocol in self.protocols))

    def rest(self):
        task = self.loop.create_task(self.come_to_rest())
        while not task.done():
            try:
                self.loop.run_until_complete(task)
            except RuntimeError:
                self.note("stopped")

    async def come_to_rest(self):
        await running.rest(self.trace)
        if self.pause:
            await asyncio.sleep(self.pause)
            await running.rest(self.trace)

    def not_received(self):
        """How many bytes wait in our socket."""
        if self.sock.fileno() < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(self.sock, termios.FIONREAD, bytes(4)), sys.byteorder)

    def converse(self, program):
        ours, peer = self.ours, self.peer
        connecting = self.loop.create_task(ours.connect(self.sock))
        self.rest()
        for flight in range(FLIGHTS):
            if flight == 2:
                self.interrupt(program.interruption, connecting)
            peer.read()
            self.rest()
        for self.now, step in enumerate(program.steps):
            self.note("-- step", self.now, step.end, step.do.what)
            if step.soon:
                self.loop.call_soon(ours.perform, step.do)
            else:
                getattr(self, step.end).perform(step.do)
            self.rest()
            self.note(*ours.state())
        peer.shake_hands()
        peer.close()
        self.rest()
        if ours.transport is not None:
            self.note("closing" if ours.transport.is_closing() else "open")
            ours.transport.abort()
            self.rest()
        self.note("the peer received", *peer.received.state())
        if not connecting.done():
            self.note("is still being connected")
            connecting.cancel()
            self.rest()

    def interrupt(self, how, connecting):
        if how == "cancel":
            connecting.cancel()
        elif how == "garbage":
            self.peer.garbage(b"garbage that is no record")
        elif how is not None:
            getattr(self.peer, how)(False)


machine = Machine
