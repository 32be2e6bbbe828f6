"""create_datagram_endpoint: addresses, sockets of the program, options, and what it refuses."""

import asyncio
import contextlib
import os
import secrets
import socket
import stat

import helpers
import pytest
from helpers import DatagramRecorder

LOCAL = ("127.0.0.1", 0)
needs_ipv6 = pytest.mark.skipif(not helpers.HAS_IPV6, reason="no IPv6 here")
HOSTS = [pytest.param("127.0.0.1", id="ipv4"), pytest.param("::1", id="ipv6", marks=needs_ipv6)]


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def echo(protocol, data, addr):
    protocol.transport.sendto(data, addr)


async def call(client, server, data=b"hello"):
    """One echo between two protocols."""
    client.transport.sendto(data)
    assert await client.received(1) == [(data, server.address)]
    assert server.datagrams[-1] == (data, client.address)


# Addresses


@pytest.mark.parametrize("host", HOSTS)
async def test_a_conversation(endpoint, host):
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=(host, 0))
    client = await endpoint(DatagramRecorder(), remote_addr=server.address[:2])
    await call(client, server)
    assert server.address[0] == client.address[0] == host
    assert len(server.datagrams[0][1]) == (4 if host == "::1" else 2)
    assert client.transport.get_extra_info("peername") == server.address
    assert server.transport.get_extra_info("peername") is None


@pytest.mark.parametrize("host", HOSTS)
async def test_an_address_of_its_own_and_one_to_talk_to(endpoint, host):
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=(host, 0))
    client = await endpoint(DatagramRecorder(), local_addr=(host, 0), remote_addr=server.address[:2])
    assert client.address[0] == host
    await call(client, server)


async def test_addresses_by_position(loop):
    server, _ = await loop.create_datagram_endpoint(DatagramRecorder, LOCAL)
    address = server.get_extra_info("sockname")
    client, _ = await loop.create_datagram_endpoint(DatagramRecorder, None, address)
    assert client.get_extra_info("peername") == address
    server.close()
    client.close()


async def test_names_are_resolved(endpoint):
    ipv4 = {"family": socket.AF_INET}  # it may have an address of the other family, too
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=("localhost", 0), **ipv4)
    assert server.address[0] == "127.0.0.1"
    client = await endpoint(DatagramRecorder(), remote_addr=("localhost", server.address[1]), **ipv4)
    await call(client, server)


async def test_of_several_addresses_the_first_that_can_be_had(loop, endpoint, monkeypatch):
    taken = helpers.datagram_socket()

    async def getaddrinfo(host, port, *, family=0, type=0, proto=0, flags=0):
        assert (host, type) == ("somewhere", socket.SOCK_DGRAM)
        assert (family, flags) == (0, socket.AI_PASSIVE)
        addresses = [taken.getsockname(), ("127.0.0.1", 0)]
        return [
            (socket.AF_INET, type, proto, "", addr) for proto, addr in zip((0, 17), addresses, strict=True)
        ]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    protocol = await endpoint(DatagramRecorder(), local_addr=("somewhere", 1), flags=socket.AI_PASSIVE)
    assert protocol.address != taken.getsockname()
    assert protocol.transport.get_extra_info("socket").proto == 17
    taken.close()


async def test_a_name_that_has_no_address(loop, monkeypatch):
    async def getaddrinfo(*args, **kwargs):
        return []

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match="getaddrinfo\\(\\) returned empty list"):
        await loop.create_datagram_endpoint(DatagramRecorder, local_addr=("nowhere", 0))


async def test_a_family_without_an_address(endpoint):
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=LOCAL)
    client = await endpoint(DatagramRecorder(), family=socket.AF_INET)
    client.transport.sendto(b"hello", server.address)
    assert await client.received(1) == [(b"hello", server.address)]


# Unix sockets


async def test_unix_sockets_with_paths(endpoint, path):
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=path, family=socket.AF_UNIX)
    client = await endpoint(
        DatagramRecorder(), local_addr=path + "2", remote_addr=path, family=socket.AF_UNIX
    )
    await call(client, server)
    assert server.address == path
    assert client.transport.get_extra_info("peername") == path
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    server.transport.close()
    await server.lost()
    assert os.path.exists(path)


async def test_a_sender_without_a_name_has_no_address(endpoint, path):
    server = await endpoint(DatagramRecorder(), local_addr=path, family=socket.AF_UNIX)
    connected = await endpoint(DatagramRecorder(), remote_addr=path, family=socket.AF_UNIX)
    connected.transport.sendto(b"one")
    assert await server.received(1) == [(b"one", None)]
    unconnected = await endpoint(DatagramRecorder(), family=socket.AF_UNIX)
    unconnected.transport.sendto(b"two", path)
    assert await server.received(2) == [(b"one", None), (b"two", None)]


async def test_abstract_names(endpoint):
    names = [f"\0hotloop-{secrets.token_hex(8)}" for _ in range(2)]
    server = await endpoint(
        DatagramRecorder(datagram_received=echo), local_addr=names[0], family=socket.AF_UNIX
    )
    client = await endpoint(
        DatagramRecorder(), local_addr=names[1], remote_addr=names[0], family=socket.AF_UNIX
    )
    await call(client, server)
    assert server.address == os.fsencode(names[0])


async def test_a_stale_socket_file_is_replaced(endpoint, path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as old:
        old.bind(path)
    before = os.stat(path).st_ino, os.stat(path).st_ctime_ns
    protocol = await endpoint(DatagramRecorder(), local_addr=path, family=socket.AF_UNIX)
    assert (os.stat(path).st_ino, os.stat(path).st_ctime_ns) != before
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", path)
    assert await protocol.received(1) == [(b"hello", None)]


async def test_a_file_that_is_no_socket_stays(loop, path):
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(OSError, match="in use"):
        await loop.create_datagram_endpoint(DatagramRecorder, local_addr=path, family=socket.AF_UNIX)
    with open(path) as file:
        assert file.read() == "precious"


# Sockets of the program


async def test_a_socket_made_by_hand(endpoint):
    sock = helpers.datagram_socket()
    sock.setblocking(True)
    server = await endpoint(DatagramRecorder(datagram_received=echo), sock=sock)
    assert sock.gettimeout() == 0
    client = await endpoint(DatagramRecorder(), remote_addr=sock.getsockname())
    await call(client, server)
    server.transport.close()
    await server.lost()
    assert sock.fileno() == -1


async def test_a_connected_socket_made_by_hand(endpoint):
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=LOCAL)
    sock = helpers.datagram_socket()
    sock.connect(server.address)
    client = await endpoint(DatagramRecorder(), sock=sock)
    assert client.transport.get_extra_info("peername") == server.address
    await call(client, server)


async def test_a_socket_connected_by_hand_sends_to_its_peer_whatever_address_is_given(endpoint):
    with helpers.datagram_socket() as peer, helpers.datagram_socket() as other:
        sock = helpers.datagram_socket()
        sock.connect(peer.getsockname())
        client = await endpoint(DatagramRecorder(), sock=sock)
        client.transport.sendto(b"hello", other.getsockname())
        assert await asyncio.get_running_loop().sock_recv(peer, 10) == b"hello"


async def test_a_pair_of_unix_sockets_with_names(endpoint):
    ours, peer = helpers.datagram_pair()
    protocol = await endpoint(DatagramRecorder(datagram_received=echo), sock=ours)
    other = await endpoint(DatagramRecorder(), sock=peer)
    await call(other, protocol)


@pytest.mark.asyncio_bug("takes a peer without a name for none at all, and has nowhere to send to")
async def test_a_pair_of_unix_sockets_without_names(endpoint):
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    other = await endpoint(DatagramRecorder(), sock=peer)
    protocol.transport.sendto(b"hello")
    assert not protocol.transport.is_closing()
    assert await other.received(1) == [(b"hello", None)]


async def test_receiving_over_a_pair_of_unix_sockets_without_names(endpoint):
    ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    with peer:
        peer.send(b"hello")
        assert await protocol.received(1) == [(b"hello", None)]


# Options


async def test_a_port_can_be_shared(endpoint):
    first = await endpoint(DatagramRecorder(), local_addr=LOCAL, reuse_port=True)
    second = await endpoint(DatagramRecorder(), local_addr=first.address, reuse_port=True)
    assert first.address == second.address
    with pytest.raises(OSError, match="in use"):
        await endpoint(DatagramRecorder(), local_addr=first.address)


async def test_broadcasting(endpoint):
    """An endpoint that may broadcast is not connected: its answers can come from anywhere."""
    server = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    client = await endpoint(DatagramRecorder(), remote_addr=server.address, allow_broadcast=True)
    sock = client.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1
    assert client.transport.get_extra_info("peername") is None
    client.transport.sendto(b"hello")
    client.transport.sendto(b"again", server.address)
    (_, address), _ = await server.received(2)
    assert server.contents == [b"hello", b"again"]
    with pytest.raises(ValueError, match="Invalid address"):
        client.transport.sendto(b"x", LOCAL)
    with helpers.datagram_socket() as other:
        other.sendto(b"answer", ("127.0.0.1", address[1]))
        assert await client.received(1) == [(b"answer", other.getsockname())]


async def test_without_options_none_is_set(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    sock = protocol.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


async def test_a_protocol_number(endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL, proto=socket.IPPROTO_UDP)
    assert protocol.transport.get_extra_info("socket").proto == socket.IPPROTO_UDP


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "unexpected address family"),
        ({"proto": socket.IPPROTO_UDP}, ValueError, "unexpected address family"),
        ({"local_addr": "127.0.0.1"}, TypeError, "2-tuple is expected"),
        ({"local_addr": ("127.0.0.1",)}, TypeError, "2-tuple is expected"),
        ({"local_addr": ["127.0.0.1", 0]}, TypeError, "2-tuple is expected"),
        ({"remote_addr": ("::1", 1, 0, 0)}, TypeError, "2-tuple is expected"),
        ({"local_addr": LOCAL, "family": socket.AF_UNIX}, TypeError, "string is expected"),
        ({"remote_addr": b"path", "family": socket.AF_UNIX}, TypeError, "string is expected"),
        ({"local_addr": ("localhost", 0), "flags": socket.AI_NUMERICHOST}, socket.gaierror, None),
        ({"local_addr": ("::1", 0), "family": socket.AF_INET}, socket.gaierror, None),
        ({"local_addr": ("127.0.0.1", 70_000)}, OverflowError, "port must be 0-65535"),
        ({"remote_addr": ("127.0.0.1", -1)}, OverflowError, "port must be 0-65535"),
    ],
)
async def test_arguments_that_are_refused(loop, options, error, message):
    before = helpers.open_descriptors()
    with pytest.raises(error, match=message):
        await loop.create_datagram_endpoint(lambda: pytest.fail("nothing was made"), **options)
    assert not helpers.opened_since(before)


@needs_ipv6
async def test_addresses_of_two_families(loop):
    with pytest.raises(ValueError, match="can not get address information"):
        await loop.create_datagram_endpoint(DatagramRecorder, local_addr=LOCAL, remote_addr=("::1", 9))


@pytest.mark.parametrize(
    "options",
    [
        {"local_addr": LOCAL},
        {"remote_addr": ("127.0.0.1", 9)},
        {"family": socket.AF_INET},
        {"proto": socket.IPPROTO_UDP},
        {"flags": socket.AI_PASSIVE},
        {"reuse_port": True},
        {"allow_broadcast": True, "proto": 17},
    ],
)
async def test_a_socket_and_something_else(loop, options):
    with helpers.datagram_socket() as sock:
        with pytest.raises(ValueError, match="can not be used when sock is specified") as caught:
            await loop.create_datagram_endpoint(DatagramRecorder, sock=sock, **options)
        for name, value in options.items():
            assert f"{name}={value}" in str(caught.value)
        assert sock.fileno() != -1


async def test_a_socket_and_options_that_are_not_set(endpoint):
    sock = helpers.datagram_socket()
    await endpoint(DatagramRecorder(), sock=sock, family=0, proto=0, flags=0, reuse_port=False)


@pytest.mark.parametrize("make", [socket.socket, helpers.listener])
async def test_a_socket_for_streams_is_refused(loop, make):
    with make() as sock:
        with pytest.raises(ValueError, match=r"(?i)a (udp|datagram) socket was expected, got"):
            await loop.create_datagram_endpoint(DatagramRecorder, sock=sock)
        assert sock.fileno() != -1


@pytest.mark.parametrize("in_debug_mode", [False, True])
async def test_what_fails_leaves_no_descriptor(loop, path, in_debug_mode):
    loop.set_debug(in_debug_mode)
    taken = helpers.datagram_socket()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(path)
    before = helpers.open_descriptors()
    caught = []
    for error, options in (
        ("in use", {"local_addr": taken.getsockname()}),
        ("refused", {"remote_addr": path, "family": socket.AF_UNIX}),
        ("No such file", {"remote_addr": path + "2", "family": socket.AF_UNIX}),
        ("too long", {"local_addr": path * 10, "family": socket.AF_UNIX}),
        ("not supported", {"local_addr": LOCAL, "family": 99}),
    ):
        with pytest.raises(OSError, match=error) as info:  # which keeps what the frames refer to
            await loop.create_datagram_endpoint(DatagramRecorder, **options)
        caught.append(info)
    assert not helpers.opened_since(before)
    taken.close()


async def test_a_factory_that_fails(loop):
    with helpers.datagram_socket() as sock:
        with pytest.raises(ZeroDivisionError):
            await loop.create_datagram_endpoint(lambda: 1 / 0, sock=sock)
        assert sock.fileno() != -1
        loop.add_reader(sock, print)
        assert loop.remove_reader(sock) is True


async def test_giving_up_on_an_endpoint_closes_it(loop):
    protocol = DatagramRecorder()
    sock = helpers.datagram_socket()
    task = loop.create_task(loop.create_datagram_endpoint(lambda: protocol, sock=sock))
    await asyncio.sleep(0)
    await helpers.cancel(task)
    assert await protocol.lost() is None
    await helpers.iterations(2)
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert sock.fileno() == -1


# What programs do


async def test_many_clients_of_an_echo_server(loop, endpoint):
    server = await endpoint(DatagramRecorder(datagram_received=echo), local_addr=LOCAL)

    async def client(number):
        protocol = await endpoint(DatagramRecorder(), remote_addr=server.address)
        for turn in range(5):
            protocol.transport.sendto(b"%d %d" % (number, turn))
            await protocol.received(turn + 1)
        assert protocol.contents == [b"%d %d" % (number, turn) for turn in range(5)]
        protocol.transport.close()
        assert await protocol.lost() is None
        return protocol

    clients = await asyncio.gather(*map(client, range(64)))
    assert len(server.datagrams) == 64 * 5
    assert len({addr for _, addr in server.datagrams}) == 64
    assert not any(client.errors for client in clients)


async def test_endpoints_one_after_another_leave_nothing(loop):
    with helpers.datagram_socket() as peer, contextlib.ExitStack() as stack:
        before = helpers.open_descriptors()
        for number in range(20):
            transport, protocol = await loop.create_datagram_endpoint(
                DatagramRecorder, remote_addr=peer.getsockname()
            )
            stack.callback(transport.abort)
            transport.sendto(b"%d" % number)
            assert await loop.sock_recv(peer, 10) == b"%d" % number
            transport.close()
            await protocol.lost()
            await helpers.iterations(1)
            assert not helpers.opened_since(before)
