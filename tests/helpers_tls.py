"""What the tests of TLS share: servers, and a peer that does only what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import helpers
from helpers import Recorder


def echo(protocol, data):
    protocol.transport.write(data)


def server_context(authority, *names, **client):
    """A server's context with a certificate for those names (or for localhost)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost",)), **client).configure_cert(context)
    return context


def client_context(authority, *names):
    """A client's context that trusts the authority, with a certificate for those names, if there are any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    if names:
        authority.issue_cert(*names).configure_cert(context)
    return context


@contextlib.asynccontextmanager
async def serving(loop, tls, kind="tcp", path=None, server_options=None, **hooks):
    """A TLS server; a function that connects to it; and the protocols of its connections as they come."""
    protocols = []
    server_options = server_options or {}

    def factory():
        protocols.append(Recorder(**hooks))
        return protocols[-1]

    if kind == "tcp":
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls[0], **server_options)
        address = server.sockets[0].getsockname()

        async def connect(protocol, **options):
            options = {"ssl": tls[1], "server_hostname": "localhost"} | options
            return (await loop.create_connection(lambda: protocol, *address, **options))[0]
    else:
        server = await loop.create_unix_server(factory, path, ssl=tls[0], **server_options)

        async def connect(protocol, **options):
            options = {"ssl": tls[1], "server_hostname": "localhost"} | options
            return (await loop.create_unix_connection(lambda: protocol, path, **options))[0]

    try:
        yield connect, protocols
    finally:
        server.close()
        for protocol in protocols:
            if protocol.transport is not None:
                protocol.transport.abort()
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def both_ends(
    loop, tls, kind="tcp", client=None, server=None, client_options=None, server_options=None
):
    """Two protocols, the client's and the server's, with a TLS connection between them."""
    client, server = client or Recorder(), server or Recorder()
    ours, theirs = helpers.PAIRS[kind]()
    options = {"ssl": tls[1], "server_hostname": "localhost"} | (client_options or {})
    accepting = loop.create_task(
        loop.connect_accepted_socket(lambda: server, theirs, ssl=tls[0], **(server_options or {}))
    )
    try:
        await loop.create_connection(lambda: client, sock=ours, **options)
        await accepting
        yield client, server
    except BaseException:
        ours.close()
        raise
    finally:
        await asyncio.wait([accepting])
        for protocol in (client, server):
            if protocol.transport is not None:
                protocol.transport.abort()
        await helpers.iterations(3)


class Peer:
    """An end of a TLS connection made of a socket and the ssl module alone."""

    def __init__(self, sock, context, **options):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, **options)

    async def flush(self):
        if self.outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self.sock, self.outgoing.read())

    async def call(self, function, *args):
        """Call a method of the SSLObject, with the network behind it."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return function(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                data = await loop.sock_recv(self.sock, 1 << 16)
                self.incoming.write(data) if data else self.incoming.write_eof()
            finally:
                await self.flush()

    async def handshake(self):
        await self.call(self.object.do_handshake)

    async def send(self, data):
        await self.call(self.object.write, data)

    async def receive(self, count):
        """Exactly that many bytes."""
        data = bytearray()
        while len(data) < count:
            chunk = await self.call(self.object.read, count - len(data))
            assert chunk, "the end came first"
            data += chunk
        return bytes(data)

    async def at_end(self):
        """Wait for the other's close_notify, which must be next."""
        with contextlib.suppress(ssl.SSLZeroReturnError):
            assert await self.call(self.object.read, 1) == b""

    async def say_end(self):
        """Send close_notify, and wait for nothing."""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self.object.unwrap()
        await self.flush()


@contextlib.asynccontextmanager
async def against_peer(loop, tls, kind="tcp", protocol=None, server_side=False, **options):
    """A protocol with a TLS transport, client or server, and its Peer."""
    protocol = protocol or Recorder()
    ours, theirs = helpers.PAIRS[kind]()
    if server_side:
        peer = Peer(theirs, tls[1], server_hostname="localhost")
        made = loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls[0], **options)
    else:
        peer = Peer(theirs, tls[0], server_side=True)
        options = {"ssl": tls[1], "server_hostname": "localhost"} | options
        made = loop.create_connection(lambda: protocol, sock=ours, **options)
    with theirs:
        try:
            await asyncio.gather(made, peer.handshake())
            yield protocol, peer
        finally:
            if protocol.transport is not None:
                protocol.transport.abort()
            await helpers.iterations(3)
