"""Connections that end in every way leave nothing behind. See helpers_leaks.py."""

import asyncio
import socket

import helpers
import helpers_leaks
import pytest
from helpers import Recorder

pytestmark = [
    pytest.mark.timeout(3600 if helpers_leaks.FULL else 60),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


# Connections


async def connected(kind="unix", protocol=None):
    """A protocol with a transport, and its peer."""
    ours, peer = helpers.PAIRS[kind]()
    protocol = protocol or Recorder()
    await asyncio.get_running_loop().create_connection(lambda protocol=protocol: protocol, sock=ours)
    return protocol, peer


async def echo():
    protocol, peer = await connected(
        "unix", Recorder(data_received=lambda self, data: self.transport.write(data))
    )
    peer.send(b"hello")
    assert await helpers.read_exactly(peer, 5) == b"hello"
    protocol.transport.close()
    await protocol.lost()
    peer.close()


async def left_by_the_peer():
    protocol, peer = await connected()
    peer.send(b"hello")
    peer.close()
    await protocol.lost()


async def aborted_before_connection_made():
    """The transport is there, and connection_made is due in the same iteration or the next."""
    for count in range(4):
        ours, peer = helpers.unix_pair()
        protocol = Recorder()
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(lambda protocol=protocol: protocol, sock=ours))
        await helpers.iterations(count)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()[0].abort()
        await helpers.iterations(3)
        ours.close()
        peer.close()


async def aborted_in_connection_made():
    protocol, peer = await connected(
        "unix", Recorder(connection_made=lambda self, transport: transport.abort())
    )
    await protocol.lost()
    peer.close()


async def aborted_in_data_received():
    protocol, peer = await connected(
        "unix", Recorder(data_received=lambda self, data: self.transport.abort())
    )
    peer.send(b"x")
    await protocol.lost()
    peer.close()


async def aborted_with_a_full_buffer():
    protocol, peer = await connected()
    for _ in range(3):
        protocol.transport.write(bytes(400_000))
    await asyncio.sleep(0)
    protocol.transport.abort()
    await protocol.lost()
    peer.close()


async def closed_with_a_full_buffer():
    protocol, peer = await connected()
    protocol.transport.write(bytes(400_000))
    protocol.transport.close()
    await asyncio.sleep(0)
    peer.close()
    await protocol.lost()


async def aborted_while_paused():
    protocol, peer = await connected()
    protocol.transport.pause_reading()
    peer.send(b"hello")
    await helpers.iterations(2)
    protocol.transport.abort()
    await protocol.lost()
    peer.close()


async def dropped_while_paused():
    protocol, peer = await connected()
    protocol.transport.pause_reading()
    peer.send(b"hello")
    await helpers.iterations(2)
    peer.close()


async def aborted_half_closed():
    for ours in (True, False):
        protocol, peer = await connected("unix", Recorder(eof_received=lambda self: True))
        if ours:
            protocol.transport.write_eof()
        else:
            peer.shutdown(socket.SHUT_WR)
            await protocol.until("eof_received")
        await asyncio.sleep(0)
        protocol.transport.abort()
        await protocol.lost()
        peer.close()


async def reset_by_the_peer():
    protocol, peer = await connected("tcp")
    protocol.transport.write(b"hello")
    helpers.reset(peer)
    await protocol.lost()


async def streams():
    ours, peer = helpers.unix_pair()
    reader, writer = await asyncio.open_connection(sock=ours)
    peer.send(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.writelines([b"one", b"two"])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    peer.close()


@pytest.mark.parametrize(
    ("once", "full"),
    [
        (echo, 100_000),
        (left_by_the_peer, 20_000),
        (aborted_before_connection_made, 10_000),
        (aborted_in_connection_made, 20_000),
        (aborted_in_data_received, 20_000),
        (aborted_with_a_full_buffer, 10_000),
        (closed_with_a_full_buffer, 10_000),
        (aborted_while_paused, 20_000),
        (dropped_while_paused, 10_000),
        (aborted_half_closed, 10_000),
        (reset_by_the_peer, 20_000),
        (streams, 20_000),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_connections(repeat, rounds, once, full):
    repeat(once, rounds(3000, full))


def test_connections_in_which_a_protocol_raises(repeat, rounds, reports):
    def fail(*args):
        raise ValueError

    async def once():
        for call in ("connection_made", "data_received", "eof_received", "connection_lost"):
            protocol, peer = await connected("unix", Recorder(**{call: fail}))
            peer.send(b"x")
            peer.close()
            await protocol.lost()
        reports.clear()

    repeat(once, rounds(2000, 10_000))


def test_connections_to_a_server(loop, repeat, rounds):
    accepted = []
    server = loop.run_until_complete(
        loop.create_server(
            lambda: Recorder(connection_made=lambda self, _: accepted.append(self)), "127.0.0.1", 0
        )
    )
    address = server.sockets[0].getsockname()

    async def once():
        transport, protocol = await loop.create_connection(Recorder, *address)
        while not accepted:
            await asyncio.sleep(0)
        transport.write(b"x")
        transport.close()
        await protocol.lost()
        await accepted.pop().lost()

    repeat(once, rounds(2500, 20_000))
    server.close()


def test_servers(loop, repeat, rounds):
    async def once():
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        server.close()
        await asyncio.sleep(0)
        client.close()

    repeat(once, rounds(2000, 10_000))


def test_connections_that_are_refused(loop, repeat, rounds):
    port = helpers.unused_port()

    async def once():
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, "127.0.0.1", port)

    repeat(once, rounds(2000, 10_000))


# TLS

OPENSSL_CACHES = 1 << 16


@pytest.fixture
def tls_server(loop, tls):
    opened = []
    server = loop.run_until_complete(
        loop.create_server(
            lambda: Recorder(
                connection_made=lambda self, _: opened.append(self),
                data_received=lambda self, data: self.transport.write(data),
            ),
            "127.0.0.1",
            0,
            ssl=tls[0],
        )
    )
    server.opened = opened
    yield server
    server.close()


@pytest.mark.parametrize("end", ["close", "abort"])
def test_tls(loop, repeat, rounds, tls, tls_server, end):
    address = tls_server.sockets[0].getsockname()

    async def once():
        transport, protocol = await loop.create_connection(
            Recorder, *address, ssl=tls[1], server_hostname="localhost"
        )
        transport.write(b"hello")
        await protocol.received(5)
        getattr(transport, end)()
        await protocol.lost()
        await tls_server.opened.pop().lost()

    repeat(once, rounds(800, 3000), caches=OPENSSL_CACHES)


def test_tls_left_during_the_handshake(loop, repeat, rounds, tls, tls_server, reports):
    address = tls_server.sockets[0].getsockname()

    async def once():
        # By a client of the server, and by whoever is meant to be one.
        sock = socket.create_connection(address)
        sock.send(b"\x16\x03\x01\x02\x00\x01")
        await helpers.iterations(3)
        sock.close()
        with helpers.listener() as server:
            connecting = loop.create_task(
                loop.create_connection(
                    Recorder, *server.getsockname(), ssl=tls[1], server_hostname="localhost"
                )
            )
            peer, _ = await loop.sock_accept(server)
            await helpers.iterations(3)
            connecting.cancel()
            await asyncio.wait([connecting])
            await helpers.iterations(3)
            peer.close()
        reports.clear()

    repeat(once, rounds(800, 3000), caches=OPENSSL_CACHES)
