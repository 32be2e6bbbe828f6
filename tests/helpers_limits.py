"""What the tests of limits share: servers whose connections are counted."""

import asyncio
import contextlib
import socket

from helpers import iterations, until

# Longer than any test takes on a busy machine.
PATIENCE = 30.0


class Counting(asyncio.Protocol):
    """Counts connections that are open at a time, of all instances of a class made by counting()."""

    now = most = 0

    def connection_made(self, transport):
        cls = type(self)
        cls.now += 1
        cls.most = max(cls.most, cls.now)
        cls.transports.add(transport)
        self.transport = transport

    def connection_lost(self, exc):
        type(self).now -= 1
        type(self).transports.discard(self.transport)


def counting(base=Counting, **attributes):
    return type("Protocol", (base,), {"transports": set(), **attributes})


def connect(address):
    """Begin to connect a socket; the kernel accepts it, if it has room in the backlog."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(address)
    return sock


@contextlib.asynccontextmanager
async def serving(loop, protocol, host="127.0.0.1", **options):
    """A server, and the address of its first socket; closed, with its connections, after the block."""
    server = await loop.create_server(protocol, host, 0, **options)
    try:
        yield server, server.sockets[0].getsockname() if server.sockets else None
    finally:
        server.close()
        for transport in list(getattr(protocol, "transports", ())):
            transport.abort()
        await iterations(3)


async def settled(loop):
    """Let what waits be accepted, if anything is."""
    for _ in range(3):
        # A connection of our own is accepted after those that were there before.
        await iterations(10)
        await asyncio.sleep(0.01)


async def until_accepted(protocol, count):
    await until(lambda: protocol.now == count, PATIENCE)
