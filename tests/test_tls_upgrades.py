"""start_tls: connections that become TLS later, once or twice, through transports and through streams."""

import asyncio
import contextlib
import inspect
import os
import ssl

import helpers
import pytest
from helpers import BufferedRecorder, Recorder
from helpers_tls import Peer, against_peer, client_context, server_context


@contextlib.asynccontextmanager
async def plain_pair(loop, kind, client=None, server=None):
    """Two protocols with a plain connection between them."""
    ours, theirs = helpers.PAIRS[kind]()
    client, server = client or Recorder(), server or Recorder()
    await loop.create_connection(lambda: client, sock=ours)
    await loop.connect_accepted_socket(lambda: server, theirs)
    try:
        yield client, server
    finally:
        for protocol in (client, server):
            protocol.transport.abort()
        await helpers.iterations(4)


async def upgrade(loop, tls, client, server, **options):
    """Make the connection between two protocols TLS: start_tls on both sides."""
    before = client.transport, server.transport
    client.transport, server.transport = await asyncio.gather(
        loop.start_tls(client.transport, client, tls[1], server_hostname="localhost", **options),
        loop.start_tls(server.transport, server, tls[0], server_side=True, **options),
    )
    return before


async def exchange(client, server, size=100_000):
    for sender, receiver in ((client, server), (server, client)):
        data, before = os.urandom(size), len(receiver.data)
        sender.transport.write(data)
        assert (await receiver.received(before + size))[before:] == data


# Transports


@pytest.mark.parametrize("make", [Recorder, BufferedRecorder])
async def test_the_life_of_an_upgraded_connection(loop, tls, kind, make):
    view = (
        {"get_buffer": lambda protocol, hint: memoryview(protocol.buffer)} if make is BufferedRecorder else {}
    )
    async with plain_pair(loop, kind, make(**view), make(**view)) as (client, server):
        await exchange(client, server)
        plain, _ = await upgrade(loop, tls, client, server)
        await exchange(client, server)
        assert client.transport is not plain
        assert client.transport.get_protocol() is client
        assert client.transport.get_extra_info("sslcontext") is tls[1]
        assert client.transport.get_extra_info("socket") is plain.get_extra_info("socket")
        assert client.transport.get_extra_info("peername") == plain.get_extra_info("peername")
        assert plain.get_extra_info("ssl_object") is None
        client.transport.close()
        assert await client.lost() is None
        assert await server.lost() is None
        assert plain.is_closing()
        for protocol in (client, server):
            assert protocol.calls.count("connection_made") == 1
            assert protocol.calls.count("connection_lost") == 1


async def test_what_was_written_before_goes_before_and_is_plain(loop, tls, kind):
    ours, theirs = helpers.PAIRS[kind]()
    plain, protocol = await loop.create_connection(Recorder, sock=ours)
    words = b"plain words, " * 1000
    with theirs:
        plain.write(words)
        upgrading = loop.create_task(loop.start_tls(plain, protocol, tls[1], server_hostname="localhost"))
        assert await helpers.read_exactly(theirs, len(words)) == words
        peer = Peer(theirs, tls[0], server_side=True)
        await peer.handshake()
        transport = await upgrading
        transport.write(b"hidden words")
        assert await peer.receive(12) == b"hidden words"
        transport.abort()
        await protocol.lost()


async def test_an_upgrade_can_be_asked_for_in_data_received(loop, tls, kind):
    """And the client's first flight, which is there by then, is not taken for plain data."""
    upgraded = loop.create_future()

    def received(protocol, data):
        if data == b"STARTTLS\n":
            protocol.transport.write(b"go\n")
            task = loop.create_task(loop.start_tls(protocol.transport, protocol, tls[0], server_side=True))
            task.add_done_callback(upgraded.set_result)

    async with plain_pair(loop, kind, server=Recorder(data_received=received)) as (client, server):
        client.transport.write(b"STARTTLS\n")
        await client.received(3)
        client.transport = await loop.start_tls(client.transport, client, tls[1], server_hostname="localhost")
        server.transport = (await upgraded).result()
        await exchange(client, server)
        assert server.data.startswith(b"STARTTLS\n")


async def test_a_paused_transport_can_be_upgraded(loop, tls, kind):
    async with plain_pair(loop, kind) as (client, server):
        client.transport.pause_reading()
        await upgrade(loop, tls, client, server)
        assert client.transport.is_reading()
        await exchange(client, server)


async def test_a_protocol_of_the_other_sort_may_take_over(loop, tls, kind):
    async with plain_pair(loop, kind) as (client, server):
        other = BufferedRecorder(get_buffer=lambda protocol, hint: memoryview(protocol.buffer))
        other.transport = client.transport
        await upgrade(loop, tls, other, server)
        await exchange(other, server)
        assert client.data == b""
        assert other.calls[:1] == ["get_buffer"]
        client.transport = other.transport
        client.transport.close()
        assert await other.lost() is None
        assert "connection_lost" not in client.calls


async def test_an_upgrade_without_a_name(loop, authority, kind):
    context = client_context(authority)
    context.check_hostname = False
    async with plain_pair(loop, kind) as (client, server):
        client.transport, server.transport = await asyncio.gather(
            loop.start_tls(client.transport, client, context),
            loop.start_tls(server.transport, server, server_context(authority), server_side=True),
        )
        assert client.transport.get_extra_info("ssl_object").server_hostname is None
        await exchange(client, server)


async def test_an_upgrade_with_a_certificate_on_both_sides(loop, authority, kind):
    served = server_context(authority)
    authority.configure_trust(served)
    served.verify_mode = ssl.CERT_REQUIRED
    async with plain_pair(loop, kind) as (client, server):
        await upgrade(loop, (served, client_context(authority, "somebody")), client, server)
        names = server.transport.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", "somebody"),)


@pytest.mark.parametrize("server_side", [False, True])
async def test_an_upgrade_that_nobody_answers(loop, tls, kind, server_side):
    ours, silent = helpers.PAIRS[kind]()
    plain, protocol = await loop.create_connection(Recorder, sock=ours)
    options = {"server_side": True} if server_side else {"server_hostname": "localhost"}
    with silent:
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer"):
            await loop.start_tls(
                plain, protocol, tls[0 if server_side else 1], ssl_handshake_timeout=0.01, **options
            )
        assert plain.is_closing()
        await helpers.read_to_end(silent)
        await helpers.iterations(3)
    # Only a connection that is through with its handshake is lost, as asyncio sees it.
    assert protocol.calls == ["connection_made"]


@pytest.mark.parametrize("server_side", [False, True])
async def test_an_upgrade_whose_peer_goes(loop, tls, kind, server_side):
    ours, peer = helpers.PAIRS[kind]()
    plain, protocol = await loop.create_connection(Recorder, sock=ours)
    upgrading = loop.create_task(
        loop.start_tls(
            plain, protocol, tls[0 if server_side else 1], server_side=server_side, server_hostname="x"
        )
    )
    if not server_side:
        await loop.sock_recv(peer, 65536)
    else:
        await helpers.iterations(2)
    peer.close()
    with pytest.raises(ConnectionResetError):
        await upgrading
    assert isinstance(await protocol.lost(), ConnectionResetError)


async def test_an_upgrade_whose_peer_speaks_plainly(loop, tls, kind):
    ours, peer = helpers.PAIRS[kind]()
    plain, protocol = await loop.create_connection(Recorder, sock=ours)
    with peer:
        peer.send(b"I beg your pardon?")
        with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
            await loop.start_tls(plain, protocol, tls[1], server_hostname="localhost")
        assert isinstance(await protocol.lost(), ssl.SSLError)
    assert protocol.data == b""


@pytest.mark.parametrize("bad", [None, True, 1, object()])
async def test_an_upgrade_needs_a_context(loop, attach, bad):
    protocol, _peer = await attach(Recorder())
    with pytest.raises(TypeError, match="sslcontext is expected to be an instance of"):
        await loop.start_tls(protocol.transport, protocol, bad)
    assert protocol.transport.get_protocol() is protocol


def test_only_what_asyncio_says_can_be_upgraded_is(loop):
    async def main():
        ours, theirs = os.pipe()
        with os.fdopen(ours, "rb") as reading, os.fdopen(theirs, "wb"):
            transport, protocol = await loop.connect_read_pipe(Recorder, reading)
            with pytest.raises(TypeError, match="is not supported by start_tls"):
                await loop.start_tls(transport, protocol, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
            transport.close()
            await protocol.lost()

    loop.run_until_complete(main())


# TLS in TLS


async def test_tls_inside_tls(loop, tls, authority, kind):
    inside = server_context(authority, "localhost", "inside"), client_context(authority)
    async with plain_pair(loop, kind) as (client, server):
        await upgrade(loop, tls, client, server)
        outer, _ = await upgrade(loop, inside, client, server)
        await exchange(client, server, 1_000_000)
        names = client.transport.get_extra_info("peercert")["subjectAltName"]
        assert ("DNS", "inside") in names
        assert ("DNS", "inside") not in outer.get_extra_info("peercert")["subjectAltName"]
        assert client.transport.get_extra_info("sslcontext") is inside[1]
        assert client.transport.get_extra_info("socket").fileno() > 0
        client.transport.close()
        assert await client.lost() is None
        assert await server.lost() is None
        for protocol in (client, server):
            assert protocol.calls.count("connection_lost") == 1


@pytest.mark.asyncio_from(3, 13)  # in 3.12 of later patch releases, too
async def test_the_inner_handshake_can_fail(loop, tls, authority):
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with plain_pair(loop, "tcp") as (client, server):
        await upgrade(loop, tls, client, server)
        outer = client.transport
        found = await asyncio.gather(
            loop.start_tls(client.transport, client, untrusting, server_hostname="localhost"),
            loop.start_tls(server.transport, server, tls[0], server_side=True),
            return_exceptions=True,
        )
        assert isinstance(found[0], ssl.SSLCertVerificationError)
        assert isinstance(found[1], (ssl.SSLError, ConnectionResetError))
        await client.lost()
        await server.lost()
        assert outer.is_closing()


async def test_a_tunnel_through_a_tls_proxy(loop, tls, authority):
    """CONNECT over TLS to a proxy, then TLS to the server behind it."""
    behind = server_context(authority, "behind")

    async def answer(reader, writer):
        writer.write(b"you said " + await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def forward(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def proxy(reader, writer):
        port = int((await reader.readline()).split(b":")[1])
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"200\n")
        await asyncio.gather(forward(reader, inner_writer), forward(inner_reader, writer))
        await asyncio.gather(writer.wait_closed(), inner_writer.wait_closed())
        done.set()

    done = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=behind)
    between = await asyncio.start_server(proxy, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address, helpers.running(between) as through:
        protocol = Recorder()
        outer, _ = await loop.create_connection(
            lambda: protocol, *through, ssl=tls[1], server_hostname="localhost"
        )
        outer.write(b"CONNECT behind:%d\n" % address[1])
        assert await protocol.received(4) == b"200\n"
        inner = await loop.start_tls(outer, protocol, client_context(authority), server_hostname="behind")
        inner.write(b"hello\n")
        await protocol.lost()
        assert protocol.data == b"200\nyou said hello\n"
        await done.wait()


# Streams


async def close(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("keeping", ["tcp", "unix"])
async def test_streams_on_both_sides(loop, tls, tmp_path, keeping):
    finished = loop.create_future()

    async def serve(reader, writer):
        before = writer.transport
        assert await reader.readline() == b"upgrade\n"
        writer.write(b"go ahead\n")
        await writer.drain()
        await writer.start_tls(tls[0])
        assert writer.transport is not before
        assert writer.get_extra_info("sslcontext") is tls[0]
        while line := await reader.readline():
            writer.write(line[::-1])
            await writer.drain()
        await close(writer)
        finished.set_result(None)

    if keeping == "tcp":
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        connecting = asyncio.open_connection(*server.sockets[0].getsockname())
    else:
        path = str(tmp_path / "socket")
        server = await asyncio.start_unix_server(serve, path)
        connecting = asyncio.open_unix_connection(path)
    reader, writer = await connecting
    writer.write(b"upgrade\n")
    assert await reader.readline() == b"go ahead\n"
    await writer.start_tls(tls[1], server_hostname="localhost")
    assert not writer.can_write_eof()
    for _ in range(3):
        writer.write(b"one\n")
        assert await reader.readexactly(4) == b"\neno"
    writer.write(bytes(50_000) + b"\n")
    assert await reader.readexactly(1) == b"\n"
    assert await reader.readexactly(50_000) == bytes(50_000)
    await close(writer)
    await finished
    server.close()


async def test_a_stream_that_is_refused(loop, tls):
    ended = loop.create_future()

    async def serve(reader, writer):
        try:
            await writer.start_tls(tls[0])
        except (ssl.SSLError, ConnectionResetError) as error:
            ended.set_result(error)
        await close(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with helpers.running(server) as address:
        _reader, writer = await asyncio.open_connection(*address)
        with pytest.raises(ssl.SSLCertVerificationError):
            await writer.start_tls(tls[1], server_hostname="example.org")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.drain()
        writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await writer.wait_closed()
        await ended


async def test_the_timeouts_of_a_streams_upgrade(loop, tls):
    taken = set(inspect.signature(asyncio.StreamWriter.start_tls).parameters)
    names = {"ssl_handshake_timeout", "ssl_shutdown_timeout"} & taken
    assert "ssl_handshake_timeout" in names
    for name in names:
        ours, silent = helpers.tcp_pair()
        _reader, writer = await asyncio.open_connection(sock=ours)
        with silent:
            with pytest.raises(ValueError, match=f"{name} should be a positive number, got -1"):
                await writer.start_tls(tls[1], server_hostname="localhost", **{name: -1})
            with pytest.raises(ConnectionAbortedError):
                await writer.start_tls(tls[1], server_hostname="localhost", ssl_handshake_timeout=0.01)
            assert writer.is_closing()
            await helpers.read_to_end(silent)


async def test_upgrading_a_stream_that_is_tls_already(loop, tls, authority):
    """A second layer, as for transports."""

    async def serve(reader, writer):
        await writer.start_tls(tls[0])
        writer.write(b"inside: " + await reader.readline())
        await close(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls[0])
    async with helpers.running(server) as address:
        reader, writer = await asyncio.open_connection(*address, ssl=tls[1], server_hostname="localhost")
        outer = writer.get_extra_info("ssl_object")
        await writer.start_tls(client_context(authority), server_hostname="localhost")
        assert writer.get_extra_info("ssl_object") is not outer
        writer.write(b"hello\n")
        assert await reader.read() == b"inside: hello\n"
        await close(writer)


async def test_a_transport_that_is_tls_from_the_start_can_be_upgraded_by_a_blocking_peer(loop, tls):
    """What the inner layer sends is data of the outer one, to the byte."""
    async with against_peer(loop, tls) as (protocol, outer):
        upgrading = loop.create_task(
            loop.start_tls(protocol.transport, protocol, tls[1], server_hostname="localhost")
        )
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inner = tls[0].wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                inner.do_handshake()
                break
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    await outer.send(outgoing.read())
                incoming.write(await outer.call(outer.object.read, 65536))
        inner.write(b"hello")
        await outer.send(outgoing.read())
        protocol.transport = await upgrading
        assert await protocol.received(5) == b"hello"
