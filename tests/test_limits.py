"""hotloop.limit(): a server has no more connections than its limit."""

import asyncio
import gc
import socket
import threading

import helpers
import pytest
from helpers import iterations, until
from helpers_limits import PATIENCE, Counting, counting, serving, settled, until_accepted

pytestmark = [
    pytest.mark.hotloop_only,
    pytest.mark.skipif("hotloop" not in helpers.LOOP_NAMES, reason="hotloop is not under test"),
]

if "hotloop" in helpers.LOOP_NAMES:
    import hotloop


async def test_there_are_never_more_connections_than_the_limit(loop):
    served = 0

    class Serve(Counting):
        def data_received(self, data):
            nonlocal served
            served += 1
            loop.call_later(0.001, self.transport.close)

    protocol = counting(Serve)
    async with serving(loop, protocol, backlog=600) as (server, address):
        limit = hotloop.limit(server, connections=20)

        async def client():
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x")
            await reader.read()
            writer.close()

        await asyncio.wait_for(asyncio.gather(*(client() for _ in range(500))), PATIENCE)
        assert served == 500
        assert protocol.most == 20
        await until(lambda: limit.open == 0, PATIENCE)
        assert not limit.paused
        assert loop.metrics().accept_pauses > 0


@pytest.mark.parametrize(("most", "resumes"), [(1, 0), (2, 1), (10, 9), (30, 27)])
async def test_accepting_resumes_at_nine_tenths(loop, clients, most, resumes):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, connections=most)
        assert (limit.connections, limit.delay, limit.paused, limit.open) == (most, None, False, 0)
        clients(address, most)
        await until_accepted(protocol, most)
        assert limit.paused
        clients(address, 1)
        for count in range(most - 1, resumes - 1, -1):
            assert limit.paused
            assert limit.open == protocol.now == count + 1
            next(iter(protocol.transports)).close()
            if count > resumes:
                await until(lambda count=count: limit.open == count, PATIENCE)
                await settled(loop)
                assert limit.paused
                assert protocol.now == count
        await until_accepted(protocol, resumes + 1)
        assert protocol.most == most


async def test_a_limit_below_the_number_of_connections_pauses_at_once(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        clients(address, 5)
        await until_accepted(protocol, 5)
        limit = hotloop.limit(server, connections=3)
        assert limit.paused
        assert limit.open == 5
        clients(address, 1)
        await settled(loop)
        assert protocol.now == 5
        limit.remove()
        assert not limit.paused
        assert limit.connections is None
        await until_accepted(protocol, 6)


async def test_a_limit_is_replaced_while_paused(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, connections=2)
        clients(address, 9)
        await until_accepted(protocol, 2)
        assert hotloop.limit(server, connections=4) is limit
        await until_accepted(protocol, 4)
        await settled(loop)
        assert protocol.now == 4
        assert limit.paused
        hotloop.limit(server, connections=100, delay=20.0)
        assert (limit.connections, limit.delay) == (100, 20.0)
        await until_accepted(protocol, 9)
        hotloop.limit(server, connections=2)
        assert limit.paused
        assert limit.delay is None
        assert hotloop.limit(server) is limit
        assert (limit.connections, limit.delay, limit.paused) == (None, None, False)


async def test_a_limit_may_come_before_the_server_starts(loop, clients):
    protocol = counting()
    async with serving(loop, protocol, start_serving=False) as (server, _):
        limit = hotloop.limit(server, connections=1)
        await server.start_serving()
        clients(server.sockets[0].getsockname(), 3)
        await until_accepted(protocol, 1)
        await settled(loop)
        assert protocol.now == 1
        assert limit.paused


async def test_all_sockets_of_a_server_pause_together(loop, clients):
    protocol = counting()
    async with serving(loop, protocol, host=["127.0.0.1", "127.0.0.2"]) as (server, _):
        first, second = (sock.getsockname() for sock in server.sockets)
        limit = hotloop.limit(server, connections=2)
        clients(first, 2)
        await until_accepted(protocol, 2)
        peers = {transport.get_extra_info("peername") for transport in protocol.transports}
        clients(first, 1)
        clients(second, 2)
        await settled(loop)
        assert protocol.now == 2
        assert limit.paused
        accepted = set()
        while len(accepted) < 3:
            new = {transport.get_extra_info("peername") for transport in protocol.transports}
            for transport in list(protocol.transports):
                transport.close()
            accepted |= new - peers
            await asyncio.sleep(0.001)
        assert protocol.most == 2


async def test_a_unix_server(loop, clients, tmp_path):
    protocol = counting()
    path = str(tmp_path / "socket")
    server = await loop.create_unix_server(protocol, path)
    limit = hotloop.limit(server, connections=3)
    clients(path, 5)
    await until_accepted(protocol, 3)
    await settled(loop)
    assert protocol.now == 3
    assert limit.paused
    protocol.transports.pop().abort()
    await until(lambda: len(protocol.transports) == 3, PATIENCE)
    server.close()
    assert not limit.paused
    for transport in list(protocol.transports):
        transport.abort()
    await until(lambda: limit.open == 0, PATIENCE)


async def test_streams(loop):
    """A server of asyncio.start_server()."""
    now = most = 0

    async def handle(reader, writer):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await reader.read()
        now -= 1
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    hotloop.limit(server, connections=4)
    address = server.sockets[0].getsockname()

    async def client():
        _, writer = await asyncio.open_connection(*address)
        await iterations(5)
        writer.close()
        await writer.wait_closed()

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(40))), PATIENCE)
    await until(lambda: now == 0, PATIENCE)
    assert most <= 4
    server.close()


async def test_tls_connections_count_from_the_beginning(loop, tls, clients):
    """Peers that do not even begin the handshake count; those that fail it do no longer."""
    protocol = counting()
    async with serving(loop, protocol, ssl=tls[0]) as (server, address):
        limit = hotloop.limit(server, connections=3)
        silent = clients(address, 2)
        await until(lambda: limit.open == 2, PATIENCE)
        assert protocol.now == 0

        async def client():
            return await loop.create_connection(
                asyncio.Protocol, *address, ssl=tls[1], server_hostname="localhost"
            )

        transport, _ = await client()
        await until_accepted(protocol, 1)
        assert limit.open == 3
        assert limit.paused
        waits = asyncio.ensure_future(client())
        await settled(loop)
        assert limit.open == 3
        assert not waits.done()
        silent[0].sendall(b"this is no TLS" * 100)
        other, _ = await asyncio.wait_for(waits, PATIENCE)
        silent[1].close()
        transport.close()
        other.close()
        await until(lambda: limit.open == 0, PATIENCE)


@pytest.mark.parametrize("where", ["factory", "connection_made", "no protocol"])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_connection_that_fails_counts_no_longer(loop, tls, clients, reports, where, encrypted):
    class Fails(asyncio.Protocol):
        connection_made = helpers.fail

    factory = {"factory": helpers.fail, "connection_made": Fails, "no protocol": object}[where]
    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls[0] if encrypted else None)
    limit = hotloop.limit(server, connections=2)
    address = server.sockets[0].getsockname()
    for _ in range(4):
        for sock in clients(address, 2):
            sock.setblocking(True)
            sock.close()
    accepted = lambda: loop.metrics().accepted == 8 and limit.open == 0  # noqa: E731
    await until(accepted, PATIENCE)
    server.close()
    reports.clear()


async def test_a_transport_that_is_dropped_counts_no_longer(loop, clients):
    protocol = counting()
    async with serving(loop, protocol) as (server, address):
        limit = hotloop.limit(server, connections=1)
        clients(address, 2)
        await until_accepted(protocol, 1)
        transport = protocol.transports.pop()
        transport.pause_reading()
        await settled(loop)
        made = protocol.most
        assert limit.paused
        assert made == 1
        transport.get_protocol().transport = None
        dropped = [transport]
        del transport

        def drop():
            dropped.clear()
            gc.collect()

        with pytest.warns(ResourceWarning, match="unclosed transport"):
            drop()
        await until(lambda: protocol.most == 2, PATIENCE)
        assert limit.open == 1


def test_transports_of_asyncio_count(new_loop, clients, monkeypatch):
    """If the methods of sockets are patched, asyncio's own transports call them."""

    class Patched(socket.socket):
        def recv(self, *args):
            return super().recv(*args)

    async def main(loop):
        protocol = counting()
        async with serving(loop, protocol) as (server, address):
            limit = hotloop.limit(server, connections=2)
            waiting = clients(address, 4)
            await until_accepted(protocol, 2)
            await settled(loop)
            assert limit.open == protocol.now == 2
            assert limit.paused
            modules = {type(transport).__module__ for transport in protocol.transports}
            assert modules == {"asyncio.selector_events"}
            for transport in list(protocol.transports):
                transport.abort()
            await until_accepted(protocol, 2)
            for sock in waiting:
                sock.close()
            await until(lambda: limit.open == 0, PATIENCE)

    monkeypatch.setattr(socket, "socket", Patched)
    # Patches are noticed when a loop begins to run.
    loop = new_loop()
    loop.run_until_complete(main(loop))


# --- Arguments ---


async def test_wrong_arguments(loop):
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    for connections in (0, -1, -(1 << 70)):
        with pytest.raises(ValueError, match="connections"):
            hotloop.limit(server, connections=connections)
    for connections in (1.5, "3", b"3", object()):
        with pytest.raises(TypeError):
            hotloop.limit(server, connections=connections)
    for delay in (0, 0.0, -1, float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="delay"):
            hotloop.limit(server, delay=delay)
    for delay in ("1", b"1", object(), [1]):
        with pytest.raises(TypeError):
            hotloop.limit(server, delay=delay)
    for wrong in (None, 1, loop, object(), server.sockets[0]):
        with pytest.raises(TypeError, match="server"):
            hotloop.limit(wrong, connections=1)
    with pytest.raises(TypeError):
        hotloop.limit(server, 1)
    limit = hotloop.limit(server, connections=1 << 70)
    assert not limit.paused
    with pytest.raises(TypeError):
        hotloop.Limit()
    assert "Limit" in repr(limit)
    server.close()


def test_a_server_of_another_loop():
    loop = asyncio.SelectorEventLoop()
    try:
        server = loop.run_until_complete(loop.create_server(asyncio.Protocol, "127.0.0.1", 0))
        with pytest.raises(ValueError, match="hotloop loop"):
            hotloop.limit(server, connections=1)
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


async def test_sockets_with_an_accept_of_their_own(loop):
    class Listening(socket.socket):
        def accept(self):
            return super().accept()

    listening = Listening()
    listening.bind(("127.0.0.1", 0))
    server = await loop.create_server(asyncio.Protocol, sock=listening)
    with pytest.raises(ValueError, match="accept"):
        hotloop.limit(server, connections=1)
    server.close()


async def test_another_thread_is_refused(loop):
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    limit = hotloop.limit(server, connections=5)
    errors, seen = [], []

    def elsewhere():
        for call in (lambda: hotloop.limit(server, connections=1), limit.remove):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
        seen.append((limit.connections, limit.delay, limit.paused, limit.open, repr(limit)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(errors) == 2
    assert all("Non-thread-safe" in error for error in errors)
    assert seen[0][:4] == (5, None, False, 0)
    server.close()
