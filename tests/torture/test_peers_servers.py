"""Servers under storms of connections, and without descriptors for them."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import ssl

import helpers
import helpers_leaks
import pytest
from helpers import DatagramRecorder, Recorder, running

from torture import peers
from torture.effort import effort, seeded
from torture.limits import no_descriptors


class Counted(asyncio.Protocol):
    """Counts, for all connections of a test, those that were made and those that were lost."""

    def __init__(self, counts):
        self.counts = counts

    def connection_made(self, transport):
        self.transport = transport
        self.counts["made"] += 1

    def data_received(self, data):
        self.transport.write(data)

    def connection_lost(self, exc):
        self.counts["lost"] += 1
        self.counts[type(exc)] = self.counts.get(type(exc), 0) + 1


async def _all_lost(counts, made):
    await helpers.until(lambda: counts["lost"] == made, timeout=30)
    await asyncio.sleep(peers.A_POLL)
    assert counts["made"] == counts["lost"] == made, counts


async def test_connections_reset_before_they_are_accepted(loop, reports):
    """Each is made, and lost with ConnectionResetError."""
    counts = {"made": 0, "lost": 0}
    count = 60
    async with running(
        await loop.create_server(lambda: Counted(counts), "127.0.0.1", 0, backlog=count)
    ) as address:
        for round in range(1, 1 + int(effort(3, 300))):
            for _ in range(count):
                sock = socket.create_connection(address)
                helpers.reset(sock)
            await _all_lost(counts, round * count)
    assert counts[ConnectionResetError] == counts["made"]
    await peers.check_loop()


async def test_a_storm_of_connections(loop, reports):
    """Connections by the thousand, each ended at a moment of its own: all are lost, and memory stays."""
    counts = {"made": 0, "lost": 0}
    random = seeded("storm")
    resident = 0

    async def client(address):
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        end = random.randrange(5)
        if end >= 1:
            await loop.sock_sendall(sock, b"x" * random.randrange(1, 5000))
        if end >= 2:
            await loop.sock_recv(sock, 100)
        if end == 3:
            sock.shutdown(socket.SHUT_WR)
            await helpers.read_to_end(sock)
        if end % 2:
            sock.close()
        else:
            helpers.reset(sock)

    total = 0
    async with running(
        await loop.create_server(lambda: Counted(counts), "127.0.0.1", 0, backlog=200)
    ) as address:
        for round in range(int(effort(4, 200))):
            await asyncio.gather(*(client(address) for _ in range(150)))
            total += 150
            await _all_lost(counts, total)
            if round == 1:
                resident = helpers_leaks.resident()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()
        await writer.wait_closed()
        await _all_lost(counts, total + 1)
    assert set(counts) <= {"made", "lost", type(None), ConnectionResetError, BrokenPipeError}
    assert helpers_leaks.resident() - resident < 8 << 20


async def test_a_server_that_closes_in_a_storm(loop, reports):
    """Connections that were accepted are served to their end; what waits in the backlog is refused."""
    random = seeded("closing storm")
    counts = {"made": 0, "lost": 0}

    async def storm(limit):
        accepted = 0

        def factory():
            nonlocal accepted
            accepted += 1
            if accepted == limit:
                server.close()
            return Counted(counts)

        server = await loop.create_server(factory, "127.0.0.1", 0, backlog=40)
        address = server.sockets[0].getsockname()
        socks = [socket.create_connection(address) for _ in range(40)]
        await helpers.until(lambda: not server.is_serving())
        await asyncio.sleep(peers.A_POLL)
        for sock in socks:
            helpers.reset(sock) if random.random() < 0.5 else sock.close()
        await helpers.until(lambda: counts["made"] == counts["lost"])
        return accepted

    for _ in range(int(effort(10, 1000))):
        limit = random.randrange(1, 40)
        assert limit <= await storm(limit) <= 40
    await peers.check_loop()


async def test_accepting_without_descriptors(loop, reports):
    """It is reported, not retried at once, and who waited is served when there are some again."""
    counts = {"made": 0, "lost": 0}
    server = await loop.create_server(lambda: Counted(counts), "127.0.0.1", 0, backlog=5)
    async with running(server) as address:
        clients = [socket.create_connection(address) for _ in range(5)]
        with no_descriptors():
            await helpers.until(lambda: reports)
            async with helpers.idle(0.3):
                pass
            assert counts["made"] == 0
        assert all(report["exception"].errno == errno.EMFILE for report in reports)
        # asyncio's own loop, on some Pythons, reports it for each connection that could have waited.
        assert len(reports) <= 8
        reports.clear()
        await helpers.until(lambda: counts["made"] == 5, timeout=10)
        for client in clients:
            helpers.reset(client)
        await _all_lost(counts, 5)
    await peers.check_loop()


async def test_nothing_can_be_made_without_descriptors(loop, tmp_path, reports):
    """Whoever asks for something gets the OSError; the loop, and what it has already, goes on."""
    counts = {"made": 0, "lost": 0}
    server = await loop.create_server(lambda: Counted(counts), "127.0.0.1", 0)
    ours, peer = helpers.unix_pair()
    recorder = Recorder()
    await loop.create_connection(lambda: recorder, sock=ours)
    # What threads need is imported, and what a child needs is made, before.
    await loop.run_in_executor(None, int)
    async with running(server) as address:

        async def subprocess():
            transport, _ = await loop.subprocess_exec(asyncio.SubprocessProtocol, "true")
            await transport._wait()
            transport.close()

        async def connection():
            transport, _ = await loop.create_connection(asyncio.Protocol, *address)
            transport.abort()

        async def connection_by_name():
            transport, _ = await loop.create_connection(asyncio.Protocol, "localhost", address[1])
            transport.abort()

        async def unix_server():
            (await loop.create_unix_server(asyncio.Protocol, tmp_path / "socket")).close()

        async def tls():
            context = ssl.create_default_context()
            await loop.create_connection(
                asyncio.Protocol,
                *address,
                ssl=context,
                server_hostname="localhost",
                ssl_handshake_timeout=0.1,
            )

        async def endpoint():
            transport, _ = await loop.create_datagram_endpoint(DatagramRecorder, local_addr=("127.0.0.1", 0))
            transport.abort()

        makers = [subprocess, connection, connection_by_name, unix_server, tls, endpoint]
        for left in range(int(effort(3, 8))):
            for make in makers:
                with no_descriptors(left):
                    try:
                        await asyncio.wait_for(make(), 20)
                        raised = False
                    except (OSError, ssl.SSLError):
                        raised = True
                    assert raised or left > 0, make
                    # What is there works meanwhile.
                    peer.send(b"x")
                    await recorder.until(lambda recorder: recorder.data)
                    recorder.data.clear()
                    recorder.transport.write(b"y")
                    assert await loop.sock_recv(peer, 10) == b"y"
                # A connection that could be made on one side only is accepted now.
                await asyncio.sleep(peers.A_POLL)
        reports.clear()
        for make in makers:
            if make is not tls:
                (tmp_path / "socket").unlink(missing_ok=True)
                await asyncio.wait_for(make(), 20)
        recorder.transport.abort()
        peer.close()
        # A connection whose TLS could not be made lives as long as its exception.
        gc.collect()
        await helpers.until(lambda: counts["made"] == counts["lost"], timeout=10)
    reports.clear()
    await peers.check_loop()


@pytest.mark.asyncio_bug("a loop that is half made leaves its descriptors")
def test_loops_without_descriptors(new_loop):
    """A loop that cannot be made raises OSError, and leaves nothing; one that was made runs."""
    before = helpers.open_descriptors()
    loop = new_loop()
    made = 0
    for left in range(8):
        with no_descriptors(left):
            other = None
            with contextlib.suppress(OSError):
                other = type(loop)()
            if other is not None:
                made += 1
                other.run_until_complete(asyncio.sleep(0))
                other.close()
    assert made > 0
    with no_descriptors():
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.call_later(0.01, os.kill, os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    loop.run_until_complete(peers.check_loop())
    helpers.close_loop(loop)
    assert not helpers.opened_since(before)
