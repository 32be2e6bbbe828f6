"""DatagramTransport.sendto(): what can be sent, where to, and of which size."""

import helpers
import pytest
from helpers import DatagramRecorder

LOCAL = ("127.0.0.1", 0)


@pytest.fixture
def peer():
    """A UDP socket to talk to."""
    with helpers.datagram_socket() as sock:
        yield sock


async def connected(endpoint, peer):
    return await endpoint(DatagramRecorder(), remote_addr=peer.getsockname())


async def test_any_sort_of_bytes_can_be_sent(loop, endpoint, peer):
    class Bytes(bytes):
        pass

    class Bytearray(bytearray):
        pass

    protocol = await connected(endpoint, peer)
    for data in (
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[3:],
        memoryview(bytearray(b"of a bytearray")),
        Bytes(b"mine"),
        Bytearray(b"mine, too"),
    ):
        protocol.transport.sendto(data)
        assert await loop.sock_recv(peer, 100) == bytes(data)


@pytest.mark.parametrize("bad", ["text", 42, None, [b"list"], object()])
async def test_what_is_not_bytes_is_refused(loop, endpoint, peer, bad):
    protocol = await connected(endpoint, peer)
    with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
        protocol.transport.sendto(bad)
    with pytest.raises(TypeError, match=type(bad).__name__):
        protocol.transport.sendto(bad, peer.getsockname())
    protocol.transport.sendto(b"fine")
    assert await loop.sock_recv(peer, 100) == b"fine"
    protocol.transport.close()
    with pytest.raises(TypeError):
        protocol.transport.sendto(bad)


async def test_a_buffer_may_be_changed_as_soon_as_sendto_returns(loop, endpoint, peer):
    protocol = await connected(endpoint, peer)
    data = bytearray(b"original")
    protocol.transport.sendto(data)
    data[:] = b"changed!"
    protocol.transport.sendto(memoryview(data)[1:4])
    data.clear()
    assert await loop.sock_recv(peer, 100) == b"original"
    assert await loop.sock_recv(peer, 100) == b"han"


async def test_an_address_may_be_given_by_name(loop, endpoint, peer):
    protocol = await connected(endpoint, peer)
    protocol.transport.sendto(addr=peer.getsockname(), data=b"hello")
    assert await loop.sock_recv(peer, 100) == b"hello"
    with pytest.raises(TypeError):
        protocol.transport.sendto()


async def test_sending_to_many_addresses(loop, endpoint):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    peers = [helpers.datagram_socket() for _ in range(10)]
    for number, peer in enumerate(peers):
        protocol.transport.sendto(b"%d" % number, peer.getsockname())
    for number, peer in enumerate(peers):
        assert await loop.sock_recvfrom(peer, 10) == (b"%d" % number, protocol.address)
        peer.close()


async def test_a_connected_endpoint_sends_to_its_peer_only(loop, endpoint, peer):
    protocol = await connected(endpoint, peer)
    protocol.transport.sendto(b"one")
    protocol.transport.sendto(b"two", peer.getsockname())
    protocol.transport.sendto(b"three", None)
    for other in (protocol.address, ("127.0.0.1", 9), "127.0.0.1", list(peer.getsockname())):
        with pytest.raises(ValueError, match=r"Invalid address: must be None or \('127.0.0.1', "):
            protocol.transport.sendto(b"astray", other)
    assert [await loop.sock_recv(peer, 10) for _ in range(3)] == [b"one", b"two", b"three"]


@pytest.mark.skipif(not helpers.HAS_IPV6, reason="no IPv6 here")
async def test_the_address_of_a_peer_has_four_parts_in_ipv6(loop, endpoint):
    with helpers.datagram_socket("::1") as peer:
        protocol = await endpoint(DatagramRecorder(), remote_addr=peer.getsockname()[:2])
        protocol.transport.sendto(b"whole", peer.getsockname())
        with pytest.raises(ValueError, match="Invalid address"):
            protocol.transport.sendto(b"half", peer.getsockname()[:2])
        assert await loop.sock_recv(peer, 10) == b"whole"
        unconnected = await endpoint(DatagramRecorder(), local_addr=("::1", 0))
        unconnected.transport.sendto(b"two parts", peer.getsockname()[:2])
        assert await loop.sock_recvfrom(peer, 10) == (b"two parts", unconnected.address)


async def test_sending_to_a_host_name(loop, endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    protocol.transport.sendto(b"hello", ("localhost", peer.getsockname()[1]))
    assert await loop.sock_recv(peer, 10) == b"hello"


@pytest.mark.parametrize(
    "address", [None, 42, "127.0.0.1", ("127.0.0.1",), ("127.0.0.1", 70_000), ("127.0.0.1", "9")]
)
async def test_what_is_no_address_ends_the_endpoint(endpoint, reports, address):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    protocol.transport.sendto(b"hello", address)
    error = await protocol.lost()
    assert isinstance(error, (TypeError, OverflowError, UnicodeError))
    report = reports.take()
    assert report["message"] == "Fatal write error on datagram transport"
    assert report["exception"] is error
    assert report["transport"] is protocol.transport
    assert report["protocol"] is protocol
    assert protocol.errors == []


# Sizes


@pytest.mark.asyncio_bug("drops them", (3, 11), (3, 12))
async def test_empty_datagrams_are_sent(loop, endpoint, peer):
    protocol = await connected(endpoint, peer)
    for data in (b"", bytearray(), memoryview(b""), b"end"):
        protocol.transport.sendto(data)
    assert [await loop.sock_recv(peer, 10) for _ in range(4)] == [b"", b"", b"", b"end"]
    unconnected = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    unconnected.transport.sendto(b"", peer.getsockname())
    assert await loop.sock_recvfrom(peer, 10) == (b"", unconnected.address)


async def test_empty_datagrams_are_received(endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    for data in (b"", b"x", b"", b""):
        peer.sendto(data, protocol.address)
    assert await protocol.received(4) == [(data, peer.getsockname()) for data in (b"", b"x", b"", b"")]


async def test_the_largest_datagram(endpoint):
    server = await endpoint(
        DatagramRecorder(datagram_received=lambda protocol, *args: protocol.transport.sendto(*args)),
        local_addr=LOCAL,
    )
    client = await endpoint(DatagramRecorder(), remote_addr=server.address)
    data = bytes(range(256)) * 256
    client.transport.sendto(data[:65507])
    assert await client.received(1) == [(data[:65507], server.address)]
    assert type(client.contents[0]) is bytes


async def test_large_datagrams_of_unix_sockets_are_whole(endpoint):
    ours, peer = helpers.datagram_pair()
    protocol = await endpoint(DatagramRecorder(), sock=ours)
    for number, size in enumerate((150_000, 1, 100_000, 0), 1):
        peer.send(b"%d" % number * size)
        await protocol.received(number)
        assert protocol.contents[-1] == b"%d" % number * size
    peer.close()


async def test_a_datagram_that_is_too_big_is_an_error(loop, endpoint, peer):
    protocol = await endpoint(DatagramRecorder(), local_addr=LOCAL)
    protocol.transport.sendto(bytes(65508), peer.getsockname())
    await protocol.until("error_received")
    assert [str(error) for error in protocol.errors] == ["[Errno 90] Message too long"]
    protocol.transport.sendto(b"small", peer.getsockname())
    assert await loop.sock_recv(peer, 10) == b"small"
    assert protocol.calls == ["connection_made", "error_received"]
