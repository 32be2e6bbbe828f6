"""create_connection and connect_accepted_socket over TCP."""

import asyncio
import contextlib
import gc
import socket
import time

import helpers
import pytest
from helpers import Recorder


@contextlib.asynccontextmanager
async def serving(loop, host="127.0.0.1", **options):
    """A server; its address, and the protocols of its connections as they come."""
    protocols = []

    def factory():
        protocols.append(Recorder())
        return protocols[-1]

    server = await loop.create_server(factory, host, 0, **options)
    async with helpers.running(server) as address:
        yield address, protocols
    for protocol in protocols:
        protocol.transport.abort()
    await helpers.iterations(2)


def answering(*addresses):
    """A getaddrinfo that gives these addresses, whatever is asked for."""

    async def getaddrinfo(host, port, *, family=0, type=0, proto=0, flags=0):
        return [
            (socket.AF_INET6 if len(address) == 4 else socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in addresses
        ]

    return getaddrinfo


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", b"127.0.0.1"])
async def test_connecting(loop, host):
    async with serving(loop) as (address, protocols):
        transport, protocol = await loop.create_connection(Recorder, host, address[1])
        assert protocol.transport is transport
        await helpers.until(lambda: protocols)
        (server,) = protocols
        await server.until("connection_made")
        assert transport.get_extra_info("peername") == address
        assert server.transport.get_extra_info("peername") == transport.get_extra_info("sockname")
        assert server.transport.get_extra_info("sockname") == address
        transport.write(b"question")
        await server.received(8)
        server.transport.write(b"answer")
        await protocol.received(6)
        transport.close()
        assert await protocol.lost() is None
        assert await server.lost() is None


@pytest.mark.skipif(not helpers.HAS_IPV6, reason="no IPv6 here")
async def test_connecting_over_ipv6(loop):
    async with serving(loop, "::1") as (address, protocols):
        transport, protocol = await loop.create_connection(Recorder, *address[:2])
        assert transport.get_extra_info("peername") == address
        await helpers.until(lambda: protocols)
        transport.close()
        await protocol.lost()
    with pytest.raises(socket.gaierror):
        await loop.create_connection(Recorder, "::1", 1, family=socket.AF_INET)


async def test_many_connections(loop):
    async with serving(loop, backlog=300) as (address, protocols):
        clients = await asyncio.gather(*(loop.create_connection(Recorder, *address) for _ in range(200)))
        for number, (transport, _) in enumerate(clients):
            transport.write(b"%03d" % number)
        await helpers.until(lambda: len(protocols) == 200)
        received = await asyncio.gather(*(protocol.received(3) for protocol in protocols))
        assert sorted(received) == [b"%03d" % number for number in range(200)]
        for transport, _ in clients:
            transport.close()
        await asyncio.gather(*(protocol.lost() for protocol in protocols))


async def test_small_writes_are_not_held_back(loop):
    async with serving(loop) as (address, protocols):
        transport, _protocol = await loop.create_connection(Recorder, *address)
        await helpers.until(lambda: protocols and protocols[0].transport)
        for end in (transport, protocols[0].transport):
            assert end.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()


@pytest.mark.hotloop_only
async def test_small_writes_are_not_held_back_on_a_socket_made_by_hand(loop):
    """Its proto is 0, for which asyncio does not set TCP_NODELAY."""
    sock = socket.socket()
    assert sock.proto == 0
    sock.bind(("127.0.0.1", 0))
    protocols = []
    server = await loop.create_server(lambda: protocols.append(Recorder()) or protocols[-1], sock=sock)
    async with helpers.running(server) as address:
        client = socket.create_connection(address)
        transport, _protocol = await loop.create_connection(Recorder, sock=client)
        await helpers.until(lambda: protocols and protocols[0].transport)
        for end in (transport, protocols[0].transport):
            assert end.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        await protocols[0].lost()


async def test_a_refused_connection(loop):
    with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
        await loop.create_connection(Recorder, "127.0.0.1", helpers.unused_port())


async def test_several_refused_connections(loop, monkeypatch):
    one, other = helpers.unused_port(), helpers.unused_port()
    monkeypatch.setattr(loop, "getaddrinfo", answering(("127.0.0.1", one), ("127.0.0.2", other)))
    with pytest.raises(OSError, match=r"Multiple exceptions: .*127\.0\.0\.1.*127\.0\.0\.2"):
        await loop.create_connection(Recorder, "example", 80)


@pytest.mark.asyncio_from(3, 12)
async def test_all_errors(loop, monkeypatch):
    one, other = helpers.unused_port(), helpers.unused_port()
    monkeypatch.setattr(loop, "getaddrinfo", answering(("127.0.0.1", one), ("127.0.0.2", other)))
    with pytest.raises(ExceptionGroup) as caught:
        await loop.create_connection(Recorder, "example", 80, all_errors=True)
    assert [type(error) for error in caught.value.exceptions] == [ConnectionRefusedError] * 2


async def test_the_second_address_after_the_first_has_failed(loop, monkeypatch):
    async with serving(loop) as (address, _protocols):
        monkeypatch.setattr(loop, "getaddrinfo", answering(("127.0.0.1", helpers.unused_port()), address))
        transport, protocol = await loop.create_connection(Recorder, "example", 80)
        assert transport.get_extra_info("peername") == address
        transport.close()
        await protocol.lost()


async def test_happy_eyeballs(loop, monkeypatch):
    """The second address is tried while the first does not answer."""
    silent, waiting = helpers.never_answering()
    async with serving(loop) as (address, _protocols):
        monkeypatch.setattr(loop, "getaddrinfo", answering(silent.getsockname(), address))
        start = time.monotonic()
        transport, protocol = await loop.create_connection(Recorder, "example", 80, happy_eyeballs_delay=0.02)
        assert time.monotonic() - start < 5
        assert transport.get_extra_info("peername") == address
        transport.close()
        await protocol.lost()
    for sock in (silent, *waiting):
        sock.close()


async def test_a_cancelled_connection_leaves_nothing_open(loop):
    silent, waiting = helpers.never_answering()
    before = helpers.open_descriptors()
    task = loop.create_task(loop.create_connection(Recorder, *silent.getsockname()))
    await asyncio.sleep(0.01)
    assert not task.done()
    await helpers.cancel(task)
    await helpers.iterations(3)
    del task
    assert not helpers.opened_since(before)
    for sock in (silent, *waiting):
        sock.close()


async def test_a_local_address(loop):
    async with serving(loop) as (address, _protocols):
        port = helpers.unused_port()
        transport, protocol = await loop.create_connection(Recorder, *address, local_addr=("127.0.0.1", port))
        assert transport.get_extra_info("sockname") == ("127.0.0.1", port)
        with pytest.raises(OSError, match="error while attempting to bind on address"):
            await loop.create_connection(Recorder, *address, local_addr=("127.0.0.1", address[1]))
        transport.close()
        await protocol.lost()


async def test_a_socket_that_is_already_connected(loop):
    async with serving(loop) as (address, protocols):
        sock = socket.create_connection(address)
        assert sock.gettimeout() is None
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        assert sock.gettimeout() == 0
        assert protocol.calls == ["connection_made"]
        assert transport.get_extra_info("socket").fileno() == sock.fileno()
        await helpers.until(lambda: protocols)
        transport.write(b"hello")
        assert await protocols[0].received(5) == b"hello"
        transport.close()
        await protocol.lost()
        assert sock.fileno() == -1


async def test_a_socket_cannot_have_two_transports(loop):
    ours, peer = helpers.tcp_pair()
    transport, protocol = await loop.create_connection(Recorder, sock=ours)
    if helpers.PYTHON >= (3, 12):
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_connection(Recorder, sock=ours)
    transport.abort()
    await protocol.lost()
    peer.close()


async def test_arguments_that_contradict_each_other(loop):
    with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        for arguments, options, message in (
            (("127.0.0.1", 80), {"sock": stream}, "host/port and sock can not be specified at the same time"),
            ((), {}, "host and port was not specified and no sock specified"),
            ((), {"sock": datagram}, "A Stream Socket was expected"),
            (("127.0.0.1", 80), {"server_hostname": "x"}, "server_hostname is only meaningful with ssl"),
            (
                ("127.0.0.1", 80),
                {"ssl_handshake_timeout": 1},
                "ssl_handshake_timeout is only meaningful with ssl",
            ),
            (
                ("127.0.0.1", 80),
                {"ssl_shutdown_timeout": 1},
                "ssl_shutdown_timeout is only meaningful with ssl",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                await loop.create_connection(Recorder, *arguments, **options)


async def test_a_name_that_does_not_resolve(loop):
    with pytest.raises(socket.gaierror):
        await loop.create_connection(Recorder, "nonsense", 80, flags=socket.AI_NUMERICHOST)


async def test_a_factory_that_fails(loop):
    def factory():
        raise ValueError("no protocol")

    async with serving(loop) as (address, protocols):
        with pytest.raises(ValueError, match="no protocol"):
            await loop.create_connection(factory, *address)
        await helpers.until(lambda: protocols)
        await protocols[0].lost()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_factory_that_makes_no_protocol(loop):
    """The usual mistake is a function that forgets to return it."""
    with helpers.listener() as server:
        address = server.getsockname()
        with pytest.raises(AttributeError, match="connection_made"):
            await loop.create_connection(lambda: None, *address)
        gc.collect()  # asyncio's transport, which still has the number that the next socket gets
        sock = socket.create_connection(address)
        with pytest.raises(AttributeError, match="connection_made"):
            await loop.create_connection(lambda: None, sock=sock)
        sock.close()


async def test_an_accepted_socket(loop):
    with helpers.listener() as server:
        client = socket.create_connection(server.getsockname())
        server.setblocking(True)
        accepted, address = server.accept()
    transport, protocol = await loop.connect_accepted_socket(Recorder, accepted)
    assert protocol.calls == ["connection_made"]
    assert transport.get_extra_info("peername") == address
    client.sendall(b"hello")
    assert await protocol.received(5) == b"hello"
    client.close()
    assert await protocol.lost() is None
    with socket.socket(type=socket.SOCK_DGRAM) as datagram, socket.socket() as stream:
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.connect_accepted_socket(Recorder, datagram)
        with pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful with ssl"):
            await loop.connect_accepted_socket(Recorder, stream, ssl_handshake_timeout=1)


async def test_socket_options_can_be_set(loop):
    async with serving(loop) as (address, _protocols):
        transport, protocol = await loop.create_connection(Recorder, *address)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.close()
        await protocol.lost()


def test_a_loop_closed_under_its_connections(loop, recwarn):
    ours, peer = helpers.tcp_pair()
    transport, protocol = loop.run_until_complete(loop.create_connection(Recorder, sock=ours))
    loop.close()
    assert "connection_lost" not in protocol.calls
    del transport, protocol
    ours.close()
    peer.close()
