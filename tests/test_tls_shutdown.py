"""The ends of TLS connections: close, abort, the peer's close_notify or its want of manners, exceptions."""

import asyncio
import contextlib
import gc
import socket
import ssl
import warnings

import helpers
import pytest
from helpers import BufferedRecorder, Recorder
from helpers_tls import Peer, against_peer, both_ends, echo, serving

ENDED = ["connection_made", "eof_received", "connection_lost"]


@pytest.fixture(params=["client", "server"])
def server_side(request):
    return request.param == "server"


# Closing


async def test_close_says_so_and_waits_for_the_peer_to_say_it_too(loop, tls, kind, server_side):
    async with against_peer(loop, tls, kind, server_side=server_side) as (protocol, peer):
        transport = protocol.transport
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        await peer.at_end()
        await asyncio.sleep(0.002)
        assert "connection_lost" not in protocol.calls
        await peer.say_end()
        assert await protocol.lost() is None
        assert protocol.calls.count("connection_lost") == 1
        assert await helpers.read_to_end(peer.sock) == b""


async def test_a_peer_that_does_not_say_so(loop, tls, kind, server_side):
    options = {"ssl_shutdown_timeout": 0.01}
    async with against_peer(loop, tls, kind, server_side=server_side, **options) as (protocol, peer):
        protocol.transport.close()
        error = await protocol.lost()
        assert isinstance(error, TimeoutError)
        assert str(error) == "SSL shutdown timed out"
        assert "eof_received" not in protocol.calls
        await peer.at_end()


async def test_a_timely_end_is_not_disturbed_by_the_timeout(loop, tls, reports):
    options = {"ssl_shutdown_timeout": 0.15}
    async with against_peer(loop, tls, **options) as (protocol, peer):
        protocol.transport.close()
        await peer.at_end()
        await peer.say_end()
        assert await protocol.lost() is None
        await asyncio.sleep(0.16)
        assert protocol.calls.count("connection_lost") == 1


@pytest.mark.parametrize("last", ["close", "abort"])
async def test_closing_twice(loop, tls, last):
    async with against_peer(loop, tls) as (protocol, peer):
        protocol.transport.close()
        getattr(protocol.transport, last)()
        assert protocol.transport.is_closing()
        await peer.at_end()
        await peer.say_end()
        assert await protocol.lost() is None
        protocol.transport.close()
        await helpers.iterations(3)
        assert protocol.calls.count("connection_lost") == 1
        protocol.transport = None


async def test_close_sends_what_was_written(loop, tls, kind, server_side):
    async with against_peer(loop, tls, kind, server_side=server_side) as (protocol, peer):
        data = bytes(range(256)) * 4000
        protocol.transport.write(data)
        protocol.transport.writelines([b"one", bytearray(b"two"), memoryview(b"three")])
        protocol.transport.close()
        assert await peer.receive(len(data)) == data
        assert await peer.receive(11) == b"onetwothree"
        await peer.at_end()
        await peer.say_end()
        assert await protocol.lost() is None


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_what_is_written_after_the_end_is_dropped_and_warned_of(loop, tls, logged, end):
    async with against_peer(loop, tls) as (protocol, peer):
        transport = protocol.transport
        getattr(transport, end)()
        for _ in range(7):
            transport.write(b"late")
        assert logged() == ["SSL connection is closed"] * 2
        if end == "close":
            await peer.at_end()
            await peer.say_end()
        assert await protocol.lost() is None


async def test_data_that_comes_after_close(loop, tls, server_side):
    """It is an error: nobody is there to receive it, and close_notify would have to come first."""
    async with against_peer(loop, tls, server_side=server_side) as (protocol, peer):
        protocol.transport.close()
        await peer.at_end()
        await peer.send(b"late")
        error = await protocol.lost()
        assert isinstance(error, ssl.SSLError)
        assert error.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"
        assert protocol.data == b""


async def test_data_that_came_before_close_is_received(loop, tls, server_side):
    async with against_peer(loop, tls, server_side=server_side) as (protocol, peer):
        protocol.transport.pause_reading()
        await peer.send(b"early")
        await asyncio.sleep(0.002)
        assert protocol.data == b""
        protocol.transport.resume_reading()
        await protocol.received(5)
        protocol.transport.close()
        await peer.at_end()
        await peer.say_end()
        assert await protocol.lost() is None


async def test_abort(loop, tls, kind, server_side):
    """Nothing is said: the connection is gone."""
    async with against_peer(loop, tls, kind, server_side=server_side) as (protocol, peer):
        protocol.transport.write(helpers.TOO_MUCH)
        protocol.transport.abort()
        assert protocol.transport.is_closing()
        assert protocol.calls[-1] != "connection_lost"
        assert await protocol.lost() is None
        assert protocol.calls.count("connection_lost") == 1
        with contextlib.suppress(ConnectionResetError):
            assert len(await helpers.read_to_end(peer.sock)) < len(helpers.TOO_MUCH)


async def test_there_is_no_half_of_a_connection(loop, tls):
    async with against_peer(loop, tls) as (protocol, _peer):
        assert protocol.transport.can_write_eof() is False
        with pytest.raises(NotImplementedError):
            protocol.transport.write_eof()


# The peer's end


@pytest.mark.parametrize("answer", [None, False, True])
async def test_a_peer_that_says_it_ends(loop, tls, kind, server_side, logged, answer):
    """The answer of eof_received counts for nothing, of which asyncio warns."""
    protocol = Recorder(eof_received=lambda protocol: answer)
    async with against_peer(loop, tls, kind, protocol, server_side) as (_, peer):
        await peer.send(b"last words")
        await peer.say_end()
        assert await protocol.lost() is None
        assert protocol.data == b"last words"
        assert protocol.calls == ["connection_made", "data_received", *ENDED[1:]]
        assert protocol.transport.is_closing()
        await peer.at_end()
    said = "returning true from eof_received() has no effect when using ssl"
    assert logged() == ([said] if answer else [])


async def test_a_peer_that_just_hangs_up(loop, tls, kind, server_side):
    async with against_peer(loop, tls, kind, server_side=server_side) as (protocol, peer):
        await peer.send(b"last words")
        await protocol.received(10)
        with contextlib.suppress(BlockingIOError):
            peer.sock.recv(65536)  # a socket closed with something to read sends a reset
        peer.sock.close()
        assert await protocol.lost() is None
        assert protocol.data == b"last words"
        assert protocol.calls == ["connection_made", "data_received", *ENDED[1:]]


async def test_a_peer_that_hangs_up_for_sending_only(loop, tls, kind):
    """Half-closing the socket ends the whole."""
    async with against_peer(loop, tls, kind) as (protocol, peer):
        peer.sock.shutdown(socket.SHUT_WR)
        assert await protocol.lost() is None
        assert protocol.calls == ENDED


async def test_what_was_written_when_the_peer_ended_arrives(loop, tls):
    farewell = bytes(200_000)
    protocol = Recorder(eof_received=lambda protocol: protocol.transport.write(b"never sent"))
    async with against_peer(loop, tls, "tcp", protocol) as (_, peer):
        protocol.transport.write(farewell)
        await peer.say_end()
        assert await peer.receive(len(farewell)) == farewell
        assert await protocol.lost() is None


async def test_a_reset(loop, tls, server_side):
    async with against_peer(loop, tls, server_side=server_side) as (protocol, peer):
        helpers.reset(peer.sock)
        assert isinstance(await protocol.lost(), ConnectionResetError)
        assert protocol.calls == ["connection_made", "connection_lost"]


async def test_garbage_instead_of_a_record(loop, tls, server_side, reports):
    """The network's exceptions, of which SSLError is one, are not reported."""
    async with against_peer(loop, tls, server_side=server_side) as (protocol, peer):
        await loop.sock_sendall(peer.sock, b"\x17\x03\x03\x00\x20" + b"garbage!" * 4)
        error = await protocol.lost()
        assert isinstance(error, ssl.SSLError)
        assert protocol.calls == ["connection_made", "connection_lost"]


async def test_the_end_is_not_seen_while_reading_is_paused(loop, tls):
    async with against_peer(loop, tls) as (protocol, peer):
        protocol.transport.pause_reading()
        await peer.send(b"last words")
        await peer.say_end()
        peer.sock.close()
        await asyncio.sleep(0.005)
        assert protocol.calls == ["connection_made"]
        protocol.transport.resume_reading()
        assert await protocol.lost() is None
        assert protocol.data == b"last words"
        assert protocol.calls == ["connection_made", "data_received", *ENDED[1:]]


async def test_the_transport_forgets_its_protocol(loop, tls):
    async with against_peer(loop, tls) as (protocol, _peer):
        protocol.transport.abort()
        await protocol.lost()
        assert protocol.transport.get_protocol() is None


# Servers


@pytest.mark.asyncio_from(3, 12)
async def test_a_closed_server_waits_for_its_connections(loop, tls):
    protocols = []
    server = await loop.create_server(
        lambda: protocols.append(Recorder(data_received=echo)) or protocols[-1], "127.0.0.1", 0, ssl=tls[0]
    )
    client = Recorder()
    address = server.sockets[0].getsockname()
    transport, _ = await loop.create_connection(
        lambda: client, *address, ssl=tls[1], server_hostname="localhost"
    )
    await helpers.until(lambda: protocols and protocols[0].transport)
    server.close()
    waiting = loop.create_task(server.wait_closed())
    transport.write(b"still there?")
    assert await client.received(12) == b"still there?"
    assert not waiting.done()
    transport.close()
    await waiting
    assert await protocols[0].lost() is None
    await client.lost()


@pytest.mark.asyncio_from(3, 13)
@pytest.mark.parametrize("end", ["close_clients", "abort_clients"])
async def test_a_server_that_ends_its_connections(loop, tls, end):
    protocols = []
    server = await loop.create_server(
        lambda: protocols.append(Recorder()) or protocols[-1], "127.0.0.1", 0, ssl=tls[0]
    )
    client = Recorder()
    address = server.sockets[0].getsockname()
    await loop.create_connection(lambda: client, *address, ssl=tls[1], server_hostname="localhost")
    await helpers.until(lambda: protocols and protocols[0].transport)
    server.close()
    getattr(server, end)()
    assert await client.lost() is None
    assert await protocols[0].lost() is None
    await server.wait_closed()


# Exceptions of protocols


class Broken(Exception):
    pass


def fail(protocol, *args):
    raise Broken


@pytest.mark.parametrize(
    ("make", "name"),
    [(Recorder, "data_received"), (BufferedRecorder, "get_buffer"), (BufferedRecorder, "buffer_updated")],
)
async def test_a_failure_while_receiving_ends_the_connection(loop, tls, reports, make, name):
    async with against_peer(loop, tls, "tcp", make()) as (protocol, peer):
        protocol.hooks[name] = fail
        with contextlib.suppress(ConnectionError):  # get_buffer is called for less than data
            await peer.send(b"hello")
        assert isinstance(await protocol.lost(), Broken)
        assert protocol.calls[-1] == "connection_lost"
        assert protocol.calls.count("connection_lost") == 1
    report = reports.take()
    assert report["message"] == "Fatal error on SSL protocol"
    assert isinstance(report["exception"], Broken)
    assert report.keys() == {"message", "exception", "transport", "protocol"}


async def test_a_failure_in_connection_made_fails_the_connecting(loop, tls, reports):
    protocol = Recorder(connection_made=fail)
    async with serving(loop, tls) as (connect, _protocols):
        with pytest.raises(Broken):
            await connect(protocol)
        assert isinstance(await protocol.lost(), Broken)
    assert isinstance(reports.take()["exception"], Broken)


async def test_a_failure_in_eof_received(loop, tls, reports):
    protocol = Recorder(eof_received=fail)
    async with against_peer(loop, tls, "tcp", protocol) as (_, peer):
        await peer.say_end()
        assert isinstance(await protocol.lost(), Broken)
        assert protocol.calls == ENDED
    report = reports.take()
    assert report["message"] == "Error calling eof_received()"
    assert report.keys() == {"message", "exception", "transport", "protocol"}


async def test_a_failure_in_connection_lost(loop, tls, reports):
    protocol = Recorder(connection_lost=fail)
    async with against_peer(loop, tls, "tcp", protocol) as (_, peer):
        await peer.say_end()
        await protocol.lost()
        await helpers.iterations(2)
    report = reports.take()
    assert report["message"].startswith("Exception in callback ")
    assert report.keys() == {"message", "exception", "handle"}


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
async def test_a_failure_in_flow_control_is_reported_and_the_connection_stays(loop, tls, reports, name):
    protocol = Recorder(**{name: fail})
    async with against_peer(loop, tls, "tcp", protocol) as (_, peer):
        for _ in range(2):  # the first fills the socket, the second waits
            protocol.transport.write(bytes(6_000_000))
        assert await peer.receive(12_000_000) == bytes(12_000_000)
        await protocol.until("resume_writing")
        await peer.send(b"hello")
        assert await protocol.received(5) == b"hello"
    report = reports.take()
    assert report["message"] == f"protocol.{name}() failed"
    assert report.keys() == {"message", "exception", "transport", "protocol"}


@pytest.mark.parametrize("name", ["data_received", "eof_received", "connection_lost"])
@pytest.mark.parametrize("error", [helpers.Leave, helpers.Interrupt])
def test_a_callback_that_leaves_the_loop(loop, tls, name, error):
    def leave(protocol, *args):
        raise error

    protocol = Recorder(**{name: leave})
    stack = against_peer(loop, tls, "tcp", protocol)
    _, peer = loop.run_until_complete(stack.__aenter__())

    async def end():
        await peer.send(b"hello")
        await peer.say_end()
        await loop.create_future()

    task = loop.create_task(end())
    with pytest.raises(error):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(stack.__aexit__(None, None, None))
    assert protocol.calls.count(name) == 1


# Dropped


def test_a_transport_that_is_dropped_warns(loop, tls):
    """A paused one: the loop keeps those that it reads for."""

    async def connect():
        ours, theirs = helpers.tcp_pair()
        made = loop.connect_accepted_socket(Recorder, theirs, ssl=tls[0])
        (transport, client), (other, _) = await asyncio.gather(
            loop.create_connection(Recorder, sock=ours, ssl=tls[1], server_hostname="localhost"), made
        )
        client.transport = None
        return transport, other

    transport, other = loop.run_until_complete(connect())
    loop.run_until_complete(helpers.iterations(3))
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transport, other
        for _ in range(3):
            gc.collect()
    said = [str(warning.message) for warning in caught if warning.category is ResourceWarning]
    assert said.count("unclosed transport <asyncio._SSLProtocolTransport object>") == 2


async def test_a_closed_transport_does_not_warn(loop, tls):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        async with both_ends(loop, tls) as (client, server):
            client.transport.close()
            assert await client.lost() is None
            assert await server.lost() is None
        client.transport = server.transport = None
        gc.collect()


@pytest.mark.asyncio_bug("a connection whose reading is paused when the peer goes is never closed")
async def test_close_while_reading_is_paused_and_the_peer_is_gone(loop, tls, kind, tls_engine):
    if tls_engine == "asyncio":
        pytest.skip("asyncio's own class")
    options = {"ssl_shutdown_timeout": 0.05}
    async with against_peer(loop, tls, kind, **options) as (protocol, peer):
        transport = protocol.transport
        transport.pause_reading()
        await peer.send(b"what nobody wants")
        peer.sock.close()
        while "read=polling" in repr(transport._ssl_protocol._transport):
            await asyncio.sleep(0.001)
        transport.close()
        assert str(await protocol.lost()) == "SSL shutdown timed out"
        assert protocol.calls == ["connection_made", "connection_lost"]
        assert protocol.data == b""


@pytest.mark.parametrize("later", [0, 0.01], ids=["at once", "later"])
@pytest.mark.parametrize("says_end", [False, True])
async def test_close_before_reading_what_has_come_of_a_peer_that_is_gone(loop, tls, says_end, later):
    """A stream's transport is paused at its limit."""
    read = loop.create_future()

    async def serve(reader, writer):
        try:
            await paused.wait()
            writer.close()
            await asyncio.sleep(later)
            read.set_result(await reader.read())
            await writer.wait_closed()
        except BaseException as error:
            read.set_exception(error)

    paused = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls[0], limit=100)
    with socket.create_connection(server.sockets[0].getsockname()) as sock:
        sock.setblocking(False)
        peer = Peer(sock, tls[1], server_hostname="localhost")
        await peer.handshake()
        for _ in range(20):
            await peer.send(b"x" * 1000)
            await asyncio.sleep(0.002)
        if says_end:
            await peer.say_end()
        sock.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.02)
        paused.set()
        assert await asyncio.wait_for(read, 5) == b"x" * 20_000
    server.close()
