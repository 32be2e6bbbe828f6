"""Peers of TLS connections that go, or talk nonsense, at each stage of a connection."""

import asyncio
import contextlib
import socket
import ssl

import helpers
import pytest
from helpers import Recorder
from helpers_tls import Peer

from torture import peers
from torture.effort import effort, seeded


def _go(sock, end):
    with contextlib.suppress(OSError):
        end(sock)
    sock.close()


async def _outcome(task):
    """What a connection that was being made came to."""
    try:
        await asyncio.wait_for(asyncio.shield(task), 20)
    except Exception as exc:
        # OpenSSL's words differ; that it was the peer who ended it does not.
        return "SSL" if isinstance(exc, ssl.SSLError) else peers.kind_of(exc)
    return None


async def _while_shaking_hands(loop, tls, server_side, flights, end):
    """A peer goes after it has sent some flights of the handshake, the last of them in part."""
    ours, theirs = helpers.tcp_pair()
    protocol = Recorder()
    if server_side:
        making = loop.connect_accepted_socket(lambda: protocol, ours, ssl=tls[0], ssl_handshake_timeout=10)
        peer = Peer(theirs, tls[1], server_hostname="localhost")
    else:
        making = loop.create_connection(
            lambda: protocol, sock=ours, ssl=tls[1], server_hostname="localhost", ssl_handshake_timeout=10
        )
        peer = Peer(theirs, tls[0], server_side=True)
    task = asyncio.ensure_future(making)
    await asyncio.sleep(peers.A_POLL)
    for flight in range(flights):
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.object.do_handshake()
        data = peer.outgoing.read()
        last = flight == flights - 1
        if data:
            await loop.sock_sendall(theirs, data[: len(data) // 2] if last else data)
        if not last:
            peer.incoming.write(await asyncio.wait_for(loop.sock_recv(theirs, 1 << 16), 10))
    await asyncio.sleep(peers.A_POLL)
    _go(theirs, end)
    outcome = await _outcome(task)
    await asyncio.sleep(peers.A_POLL)
    assert "connection_made" not in protocol.calls or protocol.calls.count("connection_lost") == 1
    return outcome


@pytest.mark.parametrize("end", [peers.resets, peers.vanishes, peers.sends_and_resets])
@pytest.mark.parametrize("flights", [0, 1])
@pytest.mark.parametrize("server_side", [False, True])
def test_a_handshake_that_ends(tls, server_side, flights, end):
    """create_connection() and connect_accepted_socket() raise what they do on asyncio's loop."""
    outcome = peers.same_on_each_loop(lambda loop: _while_shaking_hands(loop, tls, server_side, flights, end))
    assert outcome is not None


async def _established(loop, tls, protocol):
    ours, theirs = helpers.tcp_pair()
    peer = Peer(theirs, tls[0], server_side=True)
    options = {"ssl": tls[1], "server_hostname": "localhost", "ssl_shutdown_timeout": 5}
    await asyncio.gather(
        loop.create_connection(lambda: protocol, sock=ours, **options),
        peer.handshake(),
    )
    return peer


async def reading(protocol, peer):
    await peer.send(b"hello")
    await protocol.received(5)


async def in_a_record(protocol, peer):
    """Half of a record is there."""
    peer.object.write(b"x" * 10_000)
    await asyncio.get_running_loop().sock_sendall(peer.sock, peer.outgoing.read(5000))


async def paused(protocol, peer):
    protocol.transport.pause_reading()
    await peer.send(b"hello")


async def blocked(protocol, peer):
    protocol.transport.write(b"x" * (8 << 20))
    await asyncio.sleep(peers.A_POLL)


async def closing(protocol, peer):
    """close_notify was sent, and its answer is waited for."""
    protocol.transport.close()
    await asyncio.sleep(peers.A_POLL)


async def blocked_and_closing(protocol, peer):
    await blocked(protocol, peer)
    protocol.transport.close()


async def closed_by_peer(protocol, peer):
    await peer.say_end()


STAGES = [reading, in_a_record, paused, blocked, closing, blocked_and_closing, closed_by_peer]


def nonsense(sock):
    """Bytes that are no record."""
    with contextlib.suppress(OSError):
        sock.send(b"GET / HTTP/1.1\r\n\r\n" * 10)
    sock.shutdown(socket.SHUT_WR)


async def _to_its_end(loop, tls, stage, end):
    protocol = Recorder()
    peer = await _established(loop, tls, protocol)
    with peer.sock:
        await stage(protocol, peer)
        with contextlib.suppress(OSError):
            end(peer.sock)
        await asyncio.sleep(peers.A_POLL)
        if "connection_lost" not in protocol.calls:
            protocol.transport.resume_reading()
            await asyncio.sleep(peers.A_POLL)
        stays = "connection_lost" not in protocol.calls
        if stays:
            protocol.transport.abort()
        await asyncio.wait_for(protocol.lost(), 20)
    await asyncio.sleep(peers.A_POLL)
    peers.check_life(protocol)
    return bytes(protocol.data), peers.kind_of(protocol.exception), stays


@pytest.mark.parametrize("end", [peers.resets, peers.vanishes, nonsense])
@pytest.mark.parametrize("stage", STAGES)
def test_a_connection_that_ends(tls, stage, end):
    """hotloop's protocols see the data and the exception that asyncio's do, and no more is reported."""
    data, _, _ = peers.same_on_each_loop(lambda loop: _to_its_end(loop, tls, stage, end))
    if stage is reading:
        assert data == b"hello"


async def test_nonsense_instead_of_a_handshake(loop, tls, reports):
    """Whatever strangers send a TLS server: it goes on, and serves those who know how."""
    random = seeded("nonsense")
    made = []

    def factory():
        made.append(Recorder(data_received=lambda p, data: p.transport.write(data)))
        return made[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls[0], ssl_handshake_timeout=5)
    hello = Peer(None, tls[1], server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.object.do_handshake()
    hello = hello.outgoing.read()
    async with helpers.running(server) as address:

        async def stranger():
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            data = bytearray(hello) if random.random() < 0.7 else bytearray(random.randbytes(600))
            for _ in range(random.randrange(4)):
                data[random.randrange(len(data))] = random.randrange(256)
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, data[: random.randrange(len(data) + 1)])
                if random.random() < 0.3:
                    await asyncio.sleep(peers.A_POLL)
            _go(sock, random.choice([peers.resets, peers.vanishes, peers.shuts_down]))

        for _ in range(int(effort(4, 500))):
            await asyncio.gather(*(stranger() for _ in range(20)))
        reader, writer = await asyncio.open_connection(*address, ssl=tls[1], server_hostname="localhost")
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
        await helpers.until(lambda: not asyncio.all_tasks() - {asyncio.current_task()}, timeout=20)
        await asyncio.sleep(peers.A_POLL)
    for protocol in made:
        if protocol.calls:
            peers.check_life(protocol)
    await peers.check_loop()
