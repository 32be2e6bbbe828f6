"""What programs are made of: protocols, connections, servers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
import ssl

PROGRAMS = {}
DATA = b"x" * 1000
# More than a pair of loopback socket buffers holds.
MUCH = b"x" * (8 << 20)
# Which part is where can be told.
VARIED = b"".join(b"%08d" % number for number in range(15_000))


@functools.cache
def contexts():
    """TLS contexts of a server at localhost, and of a client that trusts it."""
    import trustme

    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def program(function):
    """What a program returns is run without memory: a function, or a coroutine function for its loop."""

    def prepare(loop, clean):
        act = function(loop, clean)
        if inspect.iscoroutinefunction(act):
            return lambda: loop.run_until_complete(act())
        return act

    PROGRAMS[function.__name__.rstrip("_")] = prepare
    return prepare


class Protocol(asyncio.Protocol):
    """Keeps what it got, and lets a coroutine wait for a condition."""

    def __init__(self, loop, echo=False):
        self.echo = echo
        self.size = 0
        self.lost = loop.create_future()
        self.arrived = loop.create_future()
        self.expected = len(DATA)
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.size += len(data)
        self.received(data)
        if self.echo:
            self.transport.write(data)
        if self.size >= self.expected and not self.arrived.done():
            self.arrived.set_result(None)

    def received(self, data):
        """Do nothing more, unless a program does."""

    def connection_lost(self, exc):
        if not self.lost.done():
            self.lost.set_result(None)
        if not self.arrived.done():
            self.arrived.set_result(None)


class Buffered(asyncio.BufferedProtocol):
    def __init__(self, loop):
        self.buffer = bytearray(4096)
        self.arrived = loop.create_future()

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        if not self.arrived.done():
            self.arrived.set_result(None)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, loop):
        self.arrived = loop.create_future()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        if not self.arrived.done():
            self.arrived.set_result(None)


def pair(clean):
    both = socket.socketpair()
    for sock in both:
        sock.setblocking(False)
        clean.callback(sock.close)
    return both


def discard(transport):
    """Closing a transport when its loop still is open."""
    if not transport.is_closing():
        transport.abort()


def connected(loop, clean, protocol):
    """A transport over one end of a connection, and the other end."""
    ours, peer = pair(clean)
    transport, _ = loop.run_until_complete(loop.create_connection(lambda: protocol, sock=ours))
    clean.callback(discard, transport)
    return transport, peer


def served(loop, clean, **options):
    """The address of an echo server."""
    server = loop.run_until_complete(
        loop.create_server(lambda: Protocol(loop, echo=True), "127.0.0.1", 0, **options)
    )
    clean.callback(server.close)
    return server.sockets[0].getsockname()[:2]
