"""Programs: descriptors, sockets, transports, servers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket

from .parts import (
    DATA,
    MUCH,
    VARIED,
    Buffered,
    Datagrams,
    Protocol,
    connected,
    contexts,
    discard,
    pair,
    program,
    served,
)


@program
def add_reader(loop, clean):
    ours, peer = pair(clean)

    def receive():
        ours.recv(1)
        loop.stop()

    def act():
        peer.send(b"x")
        loop.add_reader(ours, receive)
        loop.add_writer(ours, abs, 1)
        loop.run_forever()
        loop.remove_writer(ours)
        loop.remove_reader(ours)

    clean.callback(lambda: loop.is_closed() or (loop.remove_reader(ours), loop.remove_writer(ours)))
    return act


@program
def errors(loop, clean):
    """What is raised for wrong arguments has a message, which needs memory, too."""
    transport, _ = connected(loop, clean, Protocol(loop))
    # asyncio takes it, and fails where it compares it.
    when = None if isinstance(loop, asyncio.SelectorEventLoop) else "text"
    wrong = [
        lambda: loop.call_soon(),
        lambda: loop.call_later(None, abs),
        lambda: loop.call_at(when, abs),
        lambda: loop.add_reader(-1, abs),
        lambda: loop.remove_reader("text"),
        lambda: loop.call_soon(abs, nonsense=1),
        lambda: transport.write("text"),
        lambda: transport.set_write_buffer_limits(1, 2),
        lambda: loop.add_reader(transport.get_extra_info("socket"), abs),
        lambda: loop.add_reader(1 << 20, abs),
    ]

    def act():
        for call in wrong:
            with contextlib.suppress(TypeError, ValueError, RuntimeError, OSError):
                call()

    return act


@program
def sock_recv(loop, clean):
    ours, peer = pair(clean)

    async def main():
        async def send():
            await asyncio.sleep(0)
            await loop.sock_sendall(peer, b"hello")

        await asyncio.gather(loop.sock_recv(ours, 100), send())
        peer.send(b"hello")
        await loop.sock_recv_into(ours, bytearray(10))

    return main


async def receive_much(loop, sock):
    left = len(MUCH)
    while left:
        data = await loop.sock_recv(sock, 1 << 20)
        if not data:
            break
        left -= len(data)


@program
def sock_sendall(loop, clean):
    ours, peer = pair(clean)

    async def main():
        await asyncio.gather(loop.sock_sendall(ours, MUCH), receive_much(loop, peer))

    return main


@program
def sock_connect(loop, clean):
    server = socket.socket()
    clean.callback(server.close)
    server.bind(("127.0.0.1", 0))
    server.listen(100)
    server.setblocking(False)
    ours = socket.socket()
    clean.callback(ours.close)
    ours.setblocking(False)

    async def main():
        accepting = loop.sock_accept(server)
        (accepted, _), _ = await asyncio.gather(accepting, loop.sock_connect(ours, server.getsockname()))
        accepted.close()

    return main


@program
def sock_datagrams(loop, clean):
    both = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in both:
        clean.callback(sock.close)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)

    async def main():
        for _ in range(2):
            await loop.sock_sendto(both[0], b"hello", both[1].getsockname())
        await loop.sock_recvfrom(both[1], 100)
        await loop.sock_recvfrom_into(both[1], bytearray(10))

    return main


async def exchange(loop, connect, *address, **options):
    """Connect to an echo server, and wait for its answer, and for the end."""
    protocol = Protocol(loop)
    transport, _ = await connect(lambda: protocol, *address, **options)
    try:
        transport.write(DATA)
        await protocol.arrived
    finally:
        transport.close()
    await protocol.lost


@program
def connect(loop, clean):
    """Also accept, and all that comes with them."""
    return functools.partial(exchange, loop, loop.create_connection, *served(loop, clean))


@program
def serve(loop, clean):
    async def main():
        server = await loop.create_server(lambda: Protocol(loop), "127.0.0.1", 0)
        server.close()
        await server.wait_closed()

    return main


def receiving(loop, clean, protocol):
    _, peer = connected(loop, clean, protocol)

    async def main():
        peer.send(DATA)
        await protocol.arrived

    return main


@program
def read(loop, clean):
    return receiving(loop, clean, Protocol(loop))


@program
def buffered_read(loop, clean):
    return receiving(loop, clean, Buffered(loop))


@program
def write(loop, clean):
    protocol = Protocol(loop)
    transport, peer = connected(loop, clean, protocol)

    async def main():
        transport.write(DATA)
        transport.write(bytearray(DATA))
        transport.writelines([DATA, memoryview(DATA)])
        transport.get_extra_info("peername")
        transport.get_extra_info("socket")
        repr(transport)
        transport.pause_reading()
        transport.resume_reading()
        transport.write_eof()
        await loop.sock_recv(peer, 10_000)

    return main


@program
def large_write(loop, clean):
    protocol = Protocol(loop)
    transport, peer = connected(loop, clean, protocol)

    async def main():
        transport.write(MUCH)
        await receive_much(loop, peer)

    return main


@program
def lose(loop, clean):
    protocol = Protocol(loop)
    _, peer = connected(loop, clean, protocol)

    async def main():
        peer.close()
        await protocol.lost

    return main


@program
def streams(loop, clean):
    address = served(loop, clean)

    async def main():
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(DATA)
            await writer.drain()
            await reader.read(10)
        finally:
            writer.close()
        await writer.wait_closed()

    return main


@program
def unix(loop, clean):
    path = f"\0hotloop-{os.getpid()}"
    server = loop.run_until_complete(loop.create_unix_server(lambda: Protocol(loop, echo=True), path))
    clean.callback(server.close)
    return functools.partial(exchange, loop, loop.create_unix_connection, path)


@program
def tls(loop, clean):
    server, client = contexts()
    address = served(loop, clean, ssl=server)
    return functools.partial(
        exchange, loop, loop.create_connection, *address, ssl=client, server_hostname="localhost"
    )


@program
def tls_data(loop, clean):
    """Much data both ways over a connection that is there: as it was sent, or the connection ends."""
    server, client = contexts()
    address = served(loop, clean, ssl=server)
    protocol = Protocol(loop)
    protocol.expected = 3 * len(VARIED)
    transport, _ = loop.run_until_complete(
        loop.create_connection(lambda: protocol, *address, ssl=client, server_hostname="localhost")
    )
    clean.callback(discard, transport)
    received = []
    protocol.received = received.append

    async def main():
        for _ in range(3):
            transport.write(VARIED)
        await protocol.arrived
        assert (3 * VARIED).startswith(b"".join(received))

    return main


@program
def datagrams(loop, clean):
    transport, protocol = loop.run_until_complete(
        loop.create_datagram_endpoint(lambda: Datagrams(loop), local_addr=("127.0.0.1", 0))
    )
    clean.callback(discard, transport)
    address = transport.get_extra_info("sockname")

    async def main():
        client, _ = await loop.create_datagram_endpoint(lambda: Datagrams(loop), remote_addr=address)
        try:
            client.sendto(b"hello")
            await protocol.arrived
        finally:
            client.close()

    return main


@program
def pipes(loop, clean):
    descriptors = os.pipe()
    reader, writer = os.fdopen(descriptors[0], "rb", 0), os.fdopen(descriptors[1], "wb", 0)
    clean.callback(reader.close)
    clean.callback(writer.close)

    async def main():
        protocol = Protocol(loop)
        reading, _ = await loop.connect_read_pipe(lambda: protocol, reader)
        try:
            writing, _ = await loop.connect_write_pipe(lambda: Protocol(loop), writer)
            try:
                writing.write(DATA)
                await protocol.arrived
            finally:
                writing.close()
            await protocol.lost
        finally:
            reading.close()

    return main
